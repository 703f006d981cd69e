"""Methods for the probability flow of a likelihood, and estimators of its trace, as values.

Each has a short form by name with its defaults: `"exponential"`, `"adaptive"`, `"dopri5-adjoint"` and `"rk45-scipy"`;
`"hutchinson"` and `"exact"`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from sgm_sde._utils.checks import FAR, described, number, one_of, settle, table_size
from sgm_sde._utils.elsewhere import OF_FLOW_METHODS
from sgm_sde.engine.adaptive import check_tolerances
from sgm_sde.engine.noise import SampleSeeds
from sgm_sde.identity import Value
from sgm_sde.likelihood import batch_steps, codes, integrals, nodes, own_steps, refinement
from sgm_sde.likelihood.checks import OnOutput, require_count
from sgm_sde.likelihood.codes import Carried
from sgm_sde.likelihood.problem import Problem, Solution
from sgm_sde.likelihood.results import Unresolved
from sgm_sde.likelihood.trace import BASES, FEW_DIMENSIONS, PROBES, Estimate, ExactTrace, RandomTrace
from sgm_sde.scores.score import Score

LEAST_STEPS = 6
TOO_COARSE = 1.0  # step of lambda where data take shape, beyond which a result says so
PILOT = "pilot"


class Found(NamedTuple):
    """A solution, how it was found in words, and the samples whose error did not come down to the tolerance."""

    solution: Solution
    how: str
    unresolved: Unresolved = Unresolved()


class Method(Value):
    """A way to solve the probability flow together with its change of volume.

    Attributes:
        fresh: whether the probes of a trace may be drawn anew at each evaluation.
        differentiable: whether gradients pass through.
        data_std: standard deviation of the data that a grid is made for.
    """

    _elsewhere = OF_FLOW_METHODS

    data_std: float = 0.5
    fresh: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    @abstractmethod
    def solve(self, problem: Problem) -> Found:
        """From the data to the noise."""

    def carry(self, problem: Problem) -> Carried:
        """States (B, *) at the other end, without their volume, with their error.

        Raises:
            ValueError: for a method that goes one way only.
        """
        raise ValueError(f"{self!r} goes from data to noise only: encode and decode with FixedGrid or AdaptiveFlow")

    def again(self, problem: Problem, on_output: OnOutput) -> None:
        """Visit what `solve` did once more, where that is possible, to find where a value was not finite."""


@dataclass(frozen=True)
class FixedGrid(Method):
    """A multistep method of order 5 on a grid that all samples share, one network call per node.

    By default 48 steps, and more on processes with a long way in log-SNR, as rectified flow: steps are no longer there
    where data take shape. Samples whose estimated error exceeds the tolerance go on, without the rest of the batch
    where the network is a module or its conditions are marked (`sg.PerSample`), else with it. With the exact trace they
    go to twice the steps where the error is within 64 times the tolerance, and else, and from there, to an adaptive
    solver, at 0.03, 0.003 and 0.0003 of the tolerance; where it is the integral of the divergence that is inexact, to
    four and eight times the steps before. With random probes they go to two and four times the steps where the error is
    within 256 times the tolerance and falls, and beyond have the exact trace in up to 16 dimensions, in more probes
    that stay the same, at least four. A sample that the adaptive solver cannot finish keeps the value and the error
    that it had, and is named in `unresolved`. So does one of a network whose output is rough or random to the steps, as
    in half precision, where shorter ones only meet more of it: after some hundred calls the steps' own slopes say so,
    of which polynomials of a higher degree leave as much as those of a low one.

    Given `steps`, all samples use that grid, whatever the error; where these are too few for it to be known, the
    protocol of the result says so.

    Codes, `encode` and `decode`, go from the first grid to the adaptive solver where their error exceeds ten times the
    tolerance, in units of the spread that data of `data_std` have at the other end.

    Args:
        steps: of the grid, one network call each and one more.
        data_std: standard deviation of the data, about which the grid is dense; a matter of accuracy only.
        atol: largest numerical error of a log-likelihood, in nats/dim, where `steps` is not given.
        rtol: the same, as a share of the log-likelihood.
        max_calls: network calls of the adaptive solver for each sample at most, in all its runs.

    Raises:
        ValueError: for fewer than 6 steps, and numbers out of range.

    Examples:
        >>> FixedGrid(96)
        FixedGrid(steps=96, data_std=0.5, atol=0.0001, rtol=0.0, max_calls=5000)
    """

    steps: int | None = None
    data_std: float = 0.5
    atol: float = 1e-4
    rtol: float = 0.0
    max_calls: int = 5000

    fresh: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, data_std=number("data_std", self.data_std, least=1 / FAR, most=FAR))
        check_tolerances(self.rtol, self.atol, 1)
        settle(self, max_calls=require_count("max_calls", self.max_calls))
        if self.steps is not None:
            settle(self, steps=table_size("steps", self.steps, LEAST_STEPS, Integral))

    @property
    def n_steps(self) -> int:
        """Steps of the first grid, by default the fewest."""
        return nodes.LEAST if self.steps is None else self.steps

    def steps_on(self, problem: Problem) -> int:
        """Steps of the first grid for a problem."""
        if self.steps is not None:
            return self.steps
        return nodes.first_grid(problem.sde, problem.eps, self.data_std)

    def solve(self, problem: Problem) -> Found:
        """From the data to the noise."""
        n = self.steps_on(problem)
        how = f"a multistep method of order 5 with {n} fixed steps"
        grid = nodes.fixed_grid(problem.sde, problem.eps, n, self.data_std, problem.to_noise)
        if grid.longest > TOO_COARSE:
            how += ", too few for their error to be known"
        if self.steps is not None:
            return Found(integrals.on_grid(problem, self.steps, self.data_std)[0], how)

        def tolerance(solution: Solution) -> Tensor:
            return self.atol * problem.d + self.rtol * solution.volume.detach().abs()

        tightness = self.atol or self.rtol
        refined = refinement.exponential(problem, n, self.data_std, tolerance, tightness, self.max_calls)
        return Found(refined.solution, how + self._refined(n), refined.unresolved)

    def _refined(self, n: int) -> str:
        """Words for how far n steps are refined."""
        most = max(refinement.OF_ROUGH) * n
        of_value = f" + {self.rtol:g} of the value" if self.rtol else ""
        return f", up to {most} or an adaptive method where the error exceeds {self.atol:g} nats/dim{of_value}"

    def carry(self, problem: Problem) -> Carried:
        """States alone (B, *) at the other end with their error, and the times of the first grid."""
        n = self.steps_on(problem)
        grid = nodes.fixed_grid(problem.sde, problem.eps, n, self.data_std, problem.to_noise)
        found = codes.on_grid(problem, grid)
        if self.steps is not None:
            return found
        return codes.refined(found, problem, self.data_std, self.atol, self.rtol, self.max_calls)

    def again(self, problem: Problem, on_output: OnOutput) -> None:
        """Visit the nodes of all grids once more."""
        refined = self.steps is None and problem.estimate is not None
        refinement.revisit(problem, self.steps_on(problem), self.data_std, refined, on_output)


@dataclass(frozen=True)
class AdaptiveFlow(Method):
    """Dormand and Prince's pair with steps of each sample's own.

    Args:
        rtol: relative tolerance of a step; 1e-5 for densities and 1e-8 for codes if not given.
        atol: absolute tolerance of a step, in units of the data's spread at a time; the same if not given.
        data_std: standard deviation of the data.

    Raises:
        ValueError: for numbers out of range.

    Source: Dormand & Prince, 1980, doi:10.1016/0771-050X(80)90013-3.

    Examples:
        >>> import sgm_sde as sg, torch
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sde)
        >>> lp = sg.log_prob(score, sde, torch.zeros(1, 2), method=AdaptiveFlow(rtol=1e-6), trace="exact")
        >>> round(float(lp.value), 3)  # -log(2 pi 0.5)
        -1.145
    """

    rtol: float | None = None
    atol: float | None = None
    data_std: float = 0.5

    def __post_init__(self) -> None:
        settle(self, data_std=number("data_std", self.data_std, least=1 / FAR, most=FAR))
        check_tolerances(*self.tolerances(1e-5), 1)

    def tolerances(self, default: float) -> tuple[float, float]:
        """rtol and atol."""
        return default if self.rtol is None else self.rtol, default if self.atol is None else self.atol

    def solve(self, problem: Problem) -> Found:
        """From the data to the noise."""
        rtol, atol = self.tolerances(1e-5)
        solution = own_steps.joint(own_steps.adaptive(own_steps.NormalisedFlow(problem, self.data_std), rtol, atol))
        return Found(solution, f"Dormand and Prince's method with steps of each sample's own {_words(rtol, atol)}")

    def carry(self, problem: Problem) -> Carried:
        """States alone (B, *) at the other end with their error, and the times of the two ends."""
        ends = own_steps.adaptive(own_steps.NormalisedFlow(problem, self.data_std), *self.tolerances(1e-8))
        times = problem.eps, problem.sde.T
        return Carried(ends.x, codes.error_of(ends), times if problem.to_noise else times[::-1])


@dataclass(frozen=True)
class AdjointFlow(Method):
    """torchdiffeq's dopri5 on the whole batch at once, with gradients by the adjoint equation, whose memory does not
    grow with the steps.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
        data_std: standard deviation of the data.
        parameters: what is differentiated with respect to besides x; those of the network if not given, and none where
            that is no `nn.Module`, whose parameters cannot be found.

    Raises:
        ValueError: for numbers out of range.

    Source: Chen et al., 2018, arXiv:1806.07366.

    Examples:
        >>> import sgm_sde as sg, torch
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sde)
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> lp = sg.log_prob(score, sde, x, method=AdjointFlow(), trace="exact", enable_grad=True)
        >>> torch.autograd.grad(lp.value.sum(), x)[0].round(decimals=2)  # -x / 0.5
        tensor([[-2., -2.]])
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    data_std: float = 0.5
    parameters: Sequence[Tensor] | None = field(default=None, repr=False)

    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, data_std=number("data_std", self.data_std, least=1 / FAR, most=FAR))
        check_tolerances(self.rtol, self.atol, 1)
        if self.parameters is not None:
            given = self.parameters if isinstance(self.parameters, Sequence) else (None,)
            if not all(isinstance(one, Tensor) for one in given):
                raise TypeError(f"parameters must be a sequence of tensors, got {described(self.parameters)}")

    def solve(self, problem: Problem) -> Found:
        """From the data to the noise."""
        flow = own_steps.NormalisedFlow(problem, self.data_std)
        ends = batch_steps.adjoint(flow, self.rtol, self.atol, self._parameters(problem.model.score))
        return Found(own_steps.joint(ends), f"torchdiffeq's dopri5 on the batch {_words(self.rtol, self.atol)}")

    def _parameters(self, score: Score) -> tuple[Tensor, ...]:
        if self.parameters is not None:
            return tuple(self.parameters)
        return tuple(score.net.parameters()) if isinstance(score.net, nn.Module) else ()


@dataclass(frozen=True)
class ScipyRK45(Method):
    """SciPy's RK45 on the whole batch at once, in time: Song et al.'s protocol.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.

    Raises:
        ValueError: for numbers out of range.

    Source: Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> import sgm_sde as sg, torch
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sde)
        >>> lp = sg.log_prob(score, sde, torch.zeros(1, 2), method=ScipyRK45(), trace="exact")
        >>> round(float(lp.value), 3)
        -1.145
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, 1)

    def solve(self, problem: Problem) -> Found:
        """From the data to the noise."""
        solution = batch_steps.scipy_rk45(problem, self.rtol, self.atol)
        return Found(solution, f"SciPy's RK45 on the batch {_words(self.rtol, self.atol)}")


def _words(rtol: float, atol: float) -> str:
    return f"(rtol = {rtol:g}, atol = {atol:g})"


METHODS: dict[str, type[Method]] = {
    "exponential": FixedGrid,
    "adaptive": AdaptiveFlow,
    "dopri5-adjoint": AdjointFlow,
    "rk45-scipy": ScipyRK45,
}


def resolve_method(method: str | Method) -> Method:
    """The method, or that of the name with its defaults.

    Raises:
        ValueError: for an unknown name.
        TypeError: for what is no method.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, str):
        one_of("method", method, tuple(METHODS))
        return METHODS[method]()
    raise TypeError(f"method must be a name or a method such as FixedGrid(96), got {described(method)}")


# --------------------------------------------------------------------------------------------------------------- traces


@dataclass(frozen=True)
class ProbeTrial:
    """Result of a pilot run over bases of probes.

    Attributes:
        basis: the one of least variance.
        variances: mean over the batch of the variance that one probe leaves in the log-likelihood, in nats^2.
        nfe: network calls that it took.
        vjps: vector-Jacobian products that it took.

    Examples:
        >>> trial = ProbeTrial("dct", {"pixel": 2.0, "dct": 0.5}, nfe=8, vjps=16)
        >>> Hutchinson(basis=trial).basis.basis
        'dct'
    """

    basis: str
    variances: dict[str, float]
    nfe: int
    vjps: int


@dataclass(frozen=True)
class Hutchinson(Value):
    """Hutchinson's estimate of the trace, from products with random probes.

    On a fixed grid probes are drawn anew at each node. One further probe, the same at all nodes, separates the standard
    error due to the probes from the numerical error of the quadrature. `stderr` is 0.96 to 1.04 of the spread over
    seeds, on Jacobians in 2 to 64 dimensions with skew parts of up to twice the symmetric one.

    Args:
        n_probes: probes per node and sample.
        probe: `"rademacher"`, of less variance, or `"gaussian"`.
        basis: where the probes' entries are independent: `"pixel"`; for images (B, C, H, W) also `"colour"`, a rotation
            of the channels, or `"dct"`, the cosine transform; or `"pilot"`, what `choose_probe_basis` finds on x; or
            what it has found before. Estimates stay unbiased in any.

    Raises:
        ValueError: for options out of range.

    Source: Hutchinson, 1989, doi:10.1080/03610918908812806; Grathwohl et al., 2019, arXiv:1810.01367.

    Examples:
        >>> import sgm_sde as sg, torch
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sde)
        >>> lp = sg.log_prob(score, sde, torch.zeros(1, 2), trace=Hutchinson(n_probes=4), seed=0)
        >>> lp.value.shape, lp.stderr.shape
        (torch.Size([1]), torch.Size([1]))
    """

    n_probes: int = 1
    probe: str = "rademacher"
    basis: str | ProbeTrial = "pixel"

    def __post_init__(self) -> None:
        settle(self, n_probes=require_count("n_probes", self.n_probes))
        one_of("probe", self.probe, PROBES)
        one_of("basis", self.basis.basis if isinstance(self.basis, ProbeTrial) else self.basis, (*BASES, PILOT))

    def estimate(self, x: Tensor, seeds: SampleSeeds, fresh: bool) -> Estimate:
        """The estimator for states x (B, *)."""
        basis = self.basis.basis if isinstance(self.basis, ProbeTrial) else self.basis
        return RandomTrace(seeds, tuple(x.shape), self.n_probes, self.probe, basis, fixed=not fresh)


@dataclass(frozen=True)
class Exact(Value):
    """The trace itself, by as many vector-Jacobian products as dimensions at each evaluation.

    Args:
        chunk: rows of the Jacobian at once; more takes more memory and a network that `vmap` can take.

    Raises:
        ValueError: for a chunk below 1.

    Examples:
        >>> import sgm_sde as sg, torch
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sde)
        >>> lp = sg.log_prob(score, sde, torch.zeros(1, 2), trace=Exact())
        >>> round(float(lp.value), 3), float(lp.stderr)
        (-1.145, 0.0)
    """

    chunk: int = 1

    def __post_init__(self) -> None:
        settle(self, chunk=require_count("chunk", self.chunk))

    def estimate(self, x: Tensor, seeds: SampleSeeds, fresh: bool) -> Estimate:
        """The estimator for states x (B, *)."""
        return ExactTrace(self.chunk)


Trace = Hutchinson | Exact
TRACES: dict[str, type[Hutchinson] | type[Exact]] = {"hutchinson": Hutchinson, "exact": Exact}


def resolve_trace(trace: str | Trace | None, x: Tensor) -> Trace:
    """The trace, that of the name with its defaults, or for None the one that suits the dimensions of x (B, *).

    Raises:
        ValueError: for an unknown name.
        TypeError: for what is no trace.
    """
    if trace is None:
        return Exact() if x[0].numel() <= FEW_DIMENSIONS else Hutchinson()
    if isinstance(trace, Hutchinson | Exact):
        return trace
    if isinstance(trace, str):
        one_of("trace", trace, tuple(TRACES))
        return TRACES[trace]()
    raise TypeError(f"trace must be a name, Hutchinson(...) or Exact(...), got {described(trace)}")
