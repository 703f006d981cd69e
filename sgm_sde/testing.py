"""Checks to run on a process, a network or a solver of your own: the ones this library runs on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, instance_of, number, one_of, reals, sizes
from sgm_sde._utils.shapes import cpu_float64, flat
from sgm_sde.engine.executor import PreDrawnNoise, execute
from sgm_sde.engine.matrix import number as engine_number
from sgm_sde.engine.node import Coefficient
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Program
from sgm_sde.evaluation.score_check import ScoreCheck as ScoreCheck
from sgm_sde.evaluation.score_check import ScoreCheckWarning as ScoreCheckWarning
from sgm_sde.evaluation.score_check import check_score as check_score
from sgm_sde.grids import Grid, GridRule, LogSNR
from sgm_sde.processes.base import SDE, require_sde
from sgm_sde.processes.base import CheckError as CheckError
from sgm_sde.processes.kinds import has_matrix_marginal, has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.schemes import Solver, resolve
from sgm_sde.schemes.base import called
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.oracles import Gaussian, GaussianMixture, Oracle
from sgm_sde.scores.score import Score

F64 = torch.float64

# Gaussian data sets, side by side as coordinates: an error that changes its sign on one of them is seen on another.
MEANS = (0.7, -1.2, 0.4, 0.9)
STDS = (0.6, 0.2, 1.5, 0.4)


def check_sde(sde: SDE, *, n: int = 4000, seed: int = 0) -> tuple[str, ...]:
    r"""Check a process against its own declarations; raise at the first contradiction.

    For every process: shapes of f and g for t of shape () and (B,), finite coefficients on [eps, T], and the
    prior's samples against its density. For a `LinearSDE` also: f and g against autograd of alpha and sigma;
    the semigroup of transitions; log-SNR decreasing and `time` its inverse; and the forward process simulated
    step by step against alpha and sigma at five times.

    Args:
        sde: the process.
        n: number of simulated paths.
        seed: of the simulation.

    Returns:
        the checks that were made, in words.

    Raises:
        CheckError: with the time and the two values that contradict one another.

    Examples:
        >>> import sgm_sde as sg
        >>> len(check_sde(sg.VPSDE()))
        7
    """
    require_sde(sde)
    n = check_integer("n", n, 2)
    seed = check_integer("seed", seed, 0)
    times = torch.linspace(_after_eps(sde), sde.T, 64, dtype=F64)
    checks: list[Callable[[], str]] = [lambda: _check_shapes(sde, times), lambda: _check_prior(sde, n, seed)]
    if has_scalar_marginal(sde):
        checks += [
            lambda: _check_drift(sde, times),
            lambda: _check_diffusion(sde, times),
            lambda: _check_semigroup(sde, times),
            lambda: _check_time(sde, times),
            lambda: _check_simulation(sde, n, seed),
        ]
    return tuple(check() for check in checks)


def _after_eps(sde: SDE) -> float:
    """A time near eps, where coefficients that are infinite at 0 are finite though eps be 0."""
    return sde.eps + 1e-3 * (sde.T - sde.eps)


def _agree(values: str, got: Tensor, expected: Tensor, times: Tensor, rtol: float) -> None:
    atol = rtol * float(expected.abs().max()) * 1e-6
    differ = ~torch.isclose(got, expected, rtol=rtol, atol=atol)
    if bool(differ.any()):
        i = int(differ.nonzero()[0])
        declared = got[i].item()
        raise CheckError(f"{values} at t={times[i].item():.6g}: declared {declared}, expected {expected[i].item()}")


def _check_shapes(sde: SDE, times: Tensor) -> str:
    for shape in ((5,), (5, 3), (5, 2, 4, 4)):
        x = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape)
        _check_batch(sde, x, times[:: len(times) // 5][:5])

    at_one = torch.ones(len(times), 1, dtype=F64)
    _require_finite("f", sde.f(at_one, times)[:, 0], times)
    _require_finite("g", sde.g(times), times)
    return "f and g keep the shapes of x and t and are finite on (eps, T]"


def _check_batch(sde: SDE, x: Tensor, t: Tensor) -> None:
    """Raise where f and g of a batch have other shapes than x and t, or f mixes the times of samples."""
    f = sde.f(x, t)
    g = sde.g(t)
    if f.shape != x.shape or g.shape != t.shape:
        raise CheckError(
            f"for x of shape {tuple(x.shape)} and t of shape (5,): f has shape {tuple(f.shape)}, "
            f"g has shape {tuple(g.shape)}"
        )
    apart = torch.stack([sde.f(x[i : i + 1], t_i)[0] for i, t_i in enumerate(t)])
    _agree("f with t of shape (B,)", flat(f).sum(1), flat(apart).sum(1), t, 1e-9)


def _require_finite(name: str, value: Tensor, times: Tensor) -> None:
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise CheckError(f"{name} is {value[i].item()} at t={times[i].item():.6g}")


def _check_prior(sde: SDE, n: int, seed: int) -> str:
    x = sde.prior_sample((n, 3), seed=seed, dtype=F64)
    log_p = sde.prior_log_prob(x)
    if log_p.shape != (n,):
        raise CheckError(f"prior_log_prob of {n} samples has shape {tuple(log_p.shape)}")

    # E[d log p(c x)/dc at c = 1] = -d for any density: the samples have the density's scale.
    c = torch.ones(n, dtype=F64, requires_grad=True)
    with torch.enable_grad():
        total = sde.prior_log_prob(c[:, None] * x).sum()
        (slope,) = torch.autograd.grad(total, c)
    z = float((slope.mean() + 3) / (slope.std() / math.sqrt(n)))
    if not abs(z) < 4.5:
        raise CheckError(f"prior samples do not have the scale of prior_log_prob: {z:.1f} standard errors off")
    return "prior samples have the scale of the prior's density"


def _gradient(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = fn(t)
        if not value.requires_grad:  # constant
            return torch.zeros_like(t)
        (gradient,) = torch.autograd.grad(value.sum(), t)
        return gradient


def _check_drift(sde: LinearSDE, times: Tensor) -> str:
    expected = _gradient(lambda t: sde.alpha(t).log(), times)
    one = torch.ones(len(times), 1, dtype=F64)
    _agree("f(x, t) / x", sde.f(one, times)[:, 0], expected, times, 1e-6)
    _agree("d_alpha", sde.d_alpha(times), _gradient(sde.alpha, times), times, 1e-6)
    return "f is the derivative of log(alpha)"


def _check_diffusion(sde: LinearSDE, times: Tensor) -> str:
    rate = _gradient(lambda t: sde.alpha(t).log(), times)
    expected = _gradient(lambda t: sde.sigma(t) ** 2, times) - 2 * rate * sde.sigma(times) ** 2
    _agree("g^2", sde.g(times) ** 2, expected, times, 1e-6)
    _agree("d_sigma", sde.d_sigma(times), _gradient(sde.sigma, times), times, 1e-6)
    return "g^2 is d(sigma^2)/dt - 2 f sigma^2"


def _check_semigroup(sde: LinearSDE, times: Tensor) -> str:
    r = times[:-2]
    s = times[1:-1]
    t = times[2:]
    a_sr, b_sr = sde.transition(r, s)
    a_ts, b_ts = sde.transition(s, t)
    a_tr, b_tr = sde.transition(r, t)
    _agree("scale of r to t", a_tr, a_ts * a_sr, t, 1e-7)
    _agree("variance of r to t", b_tr**2, (a_ts * b_sr) ** 2 + b_ts**2, t, 1e-7)
    _agree("alpha", sde.alpha(t), a_ts * sde.alpha(s), t, 1e-7)
    _agree("sigma^2", sde.sigma(t) ** 2, (a_ts * sde.sigma(s)) ** 2 + b_ts**2, t, 1e-7)
    return "transitions compose, and carry the marginal along"


def _check_time(sde: LinearSDE, times: Tensor) -> str:
    log_snr = sde.log_snr(times)
    _agree("log_snr", log_snr, 2 * (sde.alpha(times) / sde.sigma(times)).log(), times, 1e-6)
    if not bool((log_snr.diff() < 0).all()):
        raise CheckError("log_snr does not decrease with t")
    _agree("time(log_snr(t))", sde.time(log_snr), times, times, 1e-6)
    return "time is the inverse of log_snr, which decreases"


def _check_simulation(sde: LinearSDE, n: int, seed: int) -> str:
    # Midpoint steps, equal in log-SNR: the bias is far below the statistical error.
    start = _after_eps(sde)
    grid = LogSNR()(sde, 1000, t_end=start).times[::-1]
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(n, 1, dtype=F64, generator=generator)

    x0 = 1.5
    x = sde.alpha(start) * x0 + sde.sigma(start) * draw()
    for i, (s, t) in enumerate(pairwise(grid), start=1):
        x = _midpoint_step(sde, x, s, t, draw())
        if i % 200 == 0:
            _require_moments(x, t, float(sde.alpha(t)) * x0, float(sde.sigma(t)))
    return "the simulated forward process has the declared moments at five times"


def _midpoint_step(sde: SDE, x: Tensor, s: float, t: float, z: Tensor) -> Tensor:
    h = t - s
    start = torch.tensor(s, dtype=F64)
    middle = torch.tensor((s + t) / 2, dtype=F64)
    x_middle = x + h / 2 * sde.f(x, start)
    return x + h * sde.f(x_middle, middle) + sde.g(middle) * math.sqrt(h) * z


def _require_moments(x: Tensor, t: float, mean: float, std: float) -> None:
    """Raise where samples (n, 1) have other moments than declared, by 4 standard errors."""
    n = len(x)
    z_mean = float((x.mean() - mean) / (std / math.sqrt(n)))
    z_variance = float((x.var() / std**2 - 1) / math.sqrt(2 / n))
    if not (abs(z_mean) < 4 and abs(z_variance) < 4):
        raise CheckError(
            f"simulated forward to t={t:.6g}: mean {x.mean().item():.6g}, std {x.std().item():.6g}; declared "
            f"{mean:.6g} and {std:.6g} ({z_mean:.1f} and {z_variance:.1f} standard errors off)"
        )


@dataclass(frozen=True, repr=False)
class OrderMeasurement:
    """Errors at rising numbers of steps.

    Attributes:
        steps: numbers of steps.
        errors: the error at each.
        stderrs: the standard error of each, where errors are estimated; empty where they are exact.

    Examples:
        >>> OrderMeasurement((10, 20, 40), (1e-2, 2.5e-3, 6.25e-4)).order
        2.0
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    stderrs: tuple[float, ...] = ()

    @property
    def slopes(self) -> tuple[float, ...]:
        """Order of convergence between successive numbers of steps."""
        return tuple(
            math.log(e1 / e2) / math.log(n2 / n1)
            for (n1, e1), (n2, e2) in pairwise(zip(self.steps, self.errors, strict=True))
        )

    @property
    def order(self) -> float:
        """Slope over the last two refinements whose errors are above rounding and 5 standard errors."""
        return self._fitted[0]

    @property
    def order_stderr(self) -> float:
        """Standard error of `order`."""
        return self._fitted[1]

    def __str__(self) -> str:
        """Steps, error and order between neighbours, a line each."""
        orders = ["", *(f"{slope:.2f}" for slope in self.slopes)]
        errors = [f"{error:.2e}" for error in self.errors]
        if self.stderrs:
            errors = [f"{error} +- {stderr:.0e}" for error, stderr in zip(errors, self.stderrs, strict=True)]
        width = max(map(len, [*errors, "error"]))
        lines = [f"{'steps':>6}  {'error':>{width}}  order"]
        lines += [f"{n:6d}  {e:>{width}}  {o:>5}" for n, e, o in zip(self.steps, errors, orders, strict=True)]
        stderr = f" +- {self.order_stderr:.2f}" if self.stderrs else ""
        return "\n".join([*map(str.rstrip, lines), f"order {self.order:.2f}{stderr}"])

    __repr__ = __str__

    @property
    def _fitted(self) -> tuple[float, float]:
        """The order and its standard error; NaN where fewer than two errors stand out."""
        rows = zip(self.steps, self.errors, self.stderrs or [0.0] * len(self.steps), strict=True)
        clean = [row for row in rows if row[1] > max(1e-12, 5 * row[2])][-3:]
        if len(clean) < 2:
            return math.nan, math.nan

        (n1, e1, s1), (n2, e2, s2) = clean[0], clean[-1]
        finer = math.log(n2 / n1)
        return math.log(e1 / e2) / finer, math.hypot(s1 / e1, s2 / e2) / finer


def default_oracle(kind: str = "gaussian") -> Oracle:
    """The data that orders are measured on, two-dimensional, `"gaussian"` or a three-mode `"mixture"`, or a `"scalar"`
    mixture of two modes.

    Raises:
        ValueError: for another name.

    Examples:
        >>> default_oracle("mixture")
        GaussianMixture(3 components of shape (2,))
    """
    one_of("kind", kind, ("gaussian", "mixture", "scalar"))
    return _oracle(kind)


@lru_cache
def _oracle(kind: str) -> Oracle:
    if kind == "scalar":
        return GaussianMixture(torch.tensor([[-1.2], [0.6]]), [0.4, 0.6], [0.25, 0.75])
    if kind == "gaussian":
        return Gaussian(torch.tensor([0.3, -0.7]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    means = torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]])
    return GaussianMixture(means, [0.4, 0.5, 0.3], [0.5, 0.3, 0.2])


def _require_rule(rule: GridRule | None) -> None:
    if rule is not None:
        instance_of("rule", rule, GridRule, "a grid rule, such as LogSNR()")


def warped(rule: GridRule | None = None, warp: Sequence[float] = (0.4, -0.3, 0.2)) -> GridRule:
    r"""A smooth but strongly uneven version of a grid rule: equal steps of $u + \sum_k w_k \sin(\pi k u)/(\pi k)$.

    Raises:
        ValueError: if the weights' absolute values add up to 1 or more, where the grid would turn back.

    Examples:
        >>> import sgm_sde as sg
        >>> times = warped(sg.grids.Uniform())(sg.VPSDE(), 4).times
        >>> [round(t, 2) for t in times]
        [1.0, 0.69, 0.39, 0.1, 0.0]
    """
    warp = reals("warp", warp)
    _require_rule(rule)
    if not sum(map(abs, warp)) < 1:
        raise ValueError(f"the absolute weights must add up to less than 1, got {list(warp)}")
    return _Warped(rule or LogSNR(), tuple(warp))


@dataclass(frozen=True)
class _Warped(GridRule):
    rule: GridRule
    warp: tuple[float, ...]

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        waves = [w * torch.sin(math.pi * k * u) / (math.pi * k) for k, w in enumerate(self.warp, start=1)]
        return self.rule.place(sde, u + sum(waves), start, end)


def rough(rule: GridRule | None = None, jitter: float = 0.4, seed: int = 0, period: int = 16) -> GridRule:
    """A grid rule whose nodes are moved at random, each by at most `jitter` of half the distance to its neighbours.

    No refinement makes such a grid smooth: methods that take even steps for granted lose their order on it. The random
    pattern repeats after `period` nodes; whole periods compare best.

    Raises:
        ValueError: for a jitter outside [0, 1), or a period that is not an integer of at least 2.

    Examples:
        >>> import sgm_sde as sg
        >>> even, uneven = (rule(sg.VPSDE(), 16).times for rule in (sg.grids.Uniform(), rough(sg.grids.Uniform())))
        >>> even[0] == uneven[0], even[5] == uneven[5], even[16] == uneven[16]
        (True, False, True)
    """
    _require_rule(rule)
    jitter = number("jitter", jitter, least=0, below=1)
    seed = check_integer("seed", seed, 0)
    period = check_integer("period", period, 2)
    return _Rough(rule or LogSNR(), jitter, seed, period)


@dataclass(frozen=True)
class _Rough(GridRule):
    rule: GridRule
    jitter: float
    seed: int
    period: int = 16

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        # A random pattern that repeats: errors then fall without the scatter of fresh draws.
        pattern = np.random.default_rng(self.seed).uniform(-0.5, 0.5, self.period) * self.jitter
        v = u + torch.from_numpy(np.resize(pattern, len(u))) / (len(u) - 1)
        v[0] = 0.0
        v[-1] = 1.0
        return self.rule.place(sde, v, start, end)


def flow_reference(
    oracle: Oracle, sde: LinearSDE | MatrixSDE, x: Tensor, t_end: float, t_start: float | None = None
) -> Tensor:
    """The probability flow from `t_start` (default T) to `t_end`.

    In closed form for a Gaussian on a scalar process, else by SciPy's DOP853 at 1e-12.

    Examples:
        >>> import sgm_sde as sg
        >>> oracle = sg.oracles.Gaussian(torch.zeros(1, dtype=torch.float64), 1.0)
        >>> flow_reference(oracle, sg.EDMSDE(), torch.ones(1, 1, dtype=torch.float64), 1.0, 7.0)  # (1 + 1) / (1 + 7^2)
        tensor([[0.2000]], dtype=torch.float64)
    """
    t_start = sde.T if t_start is None else t_start
    if has_matrix_marginal(sde):
        return _joint_flow(oracle, sde, x, t_end, t_start)
    if isinstance(oracle, Gaussian):
        return oracle.flow(x, sde, t_start, t_end)
    return _flow_of_data(oracle, sde, x, t_end, t_start)


def _flow_of_data(oracle: Oracle, sde: LinearSDE, x: Tensor, t_end: float, t_start: float) -> Tensor:
    score = oracle.score(sde)

    def slope(lam: float, y: Tensor) -> Tensor:
        # In y = x / alpha and lam = log(alpha / sigma) the flow is dy/dlam = D - y on every process.
        t = sde.time(torch.tensor(2 * lam, dtype=F64)).clamp(t_end, t_start)
        return score.denoised(sde.alpha(t) * y, t) - y

    start = float(sde.log_snr(t_start)) / 2
    end = float(sde.log_snr(t_end)) / 2
    return sde.alpha(t_end) * _integrated(slope, (start, end), x / sde.alpha(t_start))


def _joint_flow(oracle: Oracle, sde: MatrixSDE, z: Tensor, t_end: float, t_start: float) -> Tensor:
    flow = sde.reverse(oracle.score(sde), eta=0.0)

    def slope(log_t: float, z: Tensor) -> Tensor:
        t = math.exp(log_t)  # fields change as fast at small times as their logarithm does
        return t * flow.f(z, min(t, sde.T))

    return _integrated(slope, (math.log(t_start), math.log(t_end)), z)


def _integrated(slope: Callable[[float, Tensor], Tensor], span: tuple[float, float], y: Tensor) -> Tensor:
    """The solution at the end of the span, by SciPy's DOP853 at 1e-12."""
    from scipy.integrate import solve_ivp

    def flat_slope(u: float, values: np.ndarray) -> np.ndarray:
        return np.asarray(slope(u, torch.from_numpy(values).reshape(y.shape)).flatten())

    solution = solve_ivp(flat_slope, span, y.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1]).reshape(y.shape)


def measure_order(
    solver: Solver | str,
    sde: LinearSDE | MatrixSDE,
    *,
    oracle: Oracle | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    rule: GridRule | None = None,
    steps: Sequence[int] = (80, 160, 320, 640),
) -> OrderMeasurement:
    """Errors of a deterministic solver against the exact probability flow, in float64.

    Args:
        solver: a solver or its name; it is measured as the method that it is at many steps (`Solver.strict`).
        sde: a linear process, with numbers or with a matrix.
        oracle: data with an exact score; two-dimensional Gaussian data if not given.
        t_start: where to start; the default is where sigma / alpha is 3, since at T, where the denoiser hardly
            moves, a first step of low order does not show.
        t_end: where to stop; the default leaves the fields smooth.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.

    Raises:
        TypeError: for a solver that finds its own steps, data that are no oracle, a rule that is none.
        ValueError: for an unknown name, or numbers of steps that are none.

    Examples:
        >>> import sgm_sde as sg
        >>> round(measure_order("ddim", sg.VPSDE()).order, 1)
        1.0
    """
    require_sde(sde)
    _require_rule(rule)
    if oracle is not None:
        instance_of("oracle", oracle, Oracle, "an oracle, such as oracles.Gaussian")
    steps = sizes("steps", steps)

    solver = resolve(solver).strict()
    oracle = oracle or default_oracle()
    rule = rule or LogSNR()
    t_start, t_end = _span(sde, t_start, t_end)
    problem = _problem if isinstance(sde, Hashable) else _problem.__wrapped__
    x, exact = problem(oracle, sde, t_start, t_end)

    score = oracle.score(sde)
    errors = []
    for n in steps:
        grid = rule(sde, n, t_start, t_end)
        end = _run(solver, sde, score, x, _Silence(), grid=grid)
        errors.append(float((end - exact).norm()))
    return OrderMeasurement(tuple(steps), tuple(errors))


@lru_cache(maxsize=64)
def _problem(oracle: Oracle, sde: LinearSDE | MatrixSDE, t_start: float, t_end: float) -> tuple[Tensor, Tensor]:
    """Initial states and their images under the probability flow, cached for all solvers."""
    blocks = (sde.blocks,) if has_matrix_marginal(sde) else ()
    x = sde.prior_sample((16, *blocks, *oracle.event_shape), t=t_start, seed=1, dtype=F64)
    return x, flow_reference(oracle, sde, x, t_end, t_start)


def measure_weak_order(
    solver: Solver | str,
    sde: LinearSDE | MatrixSDE,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    rule: GridRule | None = None,
    steps: Sequence[int] = (80, 160, 320, 640),
) -> OrderMeasurement:
    r"""Errors of a stochastic solver's output law on Gaussian data, without Monte Carlo: by impulse response.

    With a linear score a sampler is an affine map of its initial state and its noises. A batch in which sample
    j has a one-hot noise at draw j gives the map's columns; the sum of their squares is the exact output
    variance, and a run without noise from the marginal's mean gives the output mean.

    Args:
        solver: a solver or its name, without correctors.
        sde: a linear process, with numbers or with a matrix.
        t_start: where to start; the default is where sigma / alpha is 3.
        t_end: where to stop; the default leaves the fields smooth.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.

    Returns:
        relative error of mean and standard deviation over four data sets, root of the sum of squares; on a process
        with a matrix, of the whitened mean and covariance of the joint state.

    Examples:
        >>> import sgm_sde as sg
        >>> round(measure_weak_order("ancestral", sg.VPSDE()).order, 1)
        1.0
    """
    solver = resolve(solver).strict()
    rule = rule or LogSNR()
    t_start, t_end = _span(sde, t_start, t_end)
    mean = cpu_float64(MEANS)
    std = cpu_float64(STDS)
    score = Gaussian(mean, std.square().diag()).score(sde)
    exact = _marginal(sde, mean, std, t_end)
    errors = []
    for n in steps:
        run = partial(_run, solver, sde, score, grid=rule(sde, n, t_start, t_end))
        output_mean, impulses = _affine_map(run, sde, mean, std, t_start)
        errors.append(_law_error(output_mean, impulses, *exact))
    return OrderMeasurement(tuple(steps), tuple(errors))


def _law_error(mean: Tensor, impulses: Tensor, exact_mean: Tensor, exact_root: Tensor) -> float:
    """Error of means (k, d) and of the covariance of impulse responses (n, k, d), whitened by the exact law."""
    inverse = torch.linalg.inv(exact_root.movedim(-1, 0))
    mean_error = torch.einsum("dij,jd->id", inverse, mean - exact_mean)
    white = torch.einsum("dij,njd->nid", inverse, impulses)
    covariance = torch.einsum("nid,njd->dij", white, white)

    k = len(mean)
    std_error = covariance.sqrt()[:, 0, 0, None] - 1 if k == 1 else (covariance - torch.eye(k)).flatten(1) / 2
    return float(torch.cat([mean_error.flatten(), std_error.flatten()]).norm())


def _marginal(sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Mean (k, d) of the state's k blocks on d Gaussian data sets, and a root (k, k, d) of their covariance."""
    if has_matrix_marginal(sde):
        mu, N = sde.kernel(torch.tensor(t, dtype=F64))
        covariance = torch.outer(mu, mu) * std.square()[:, None, None] + N
        return mu[:, None] * mean, torch.linalg.cholesky(covariance).movedim(0, -1)

    alpha = sde.alpha(t)
    std_t = torch.hypot(alpha * std, sde.sigma(t))
    return (alpha * mean)[None], std_t[None, None]


def _affine_map(
    run: Callable[[Tensor, NoiseSource], Tensor], sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, t_start: float
) -> tuple[Tensor, Tensor]:
    """Output mean (k, d) of a run from the marginal at t_start, and its responses (n, k, d) to n unit impulses."""
    mean_0, root_0 = _marginal(sde, mean, std, t_start)
    k = len(mean_0)

    def end(x: Tensor, noise: NoiseSource) -> Tensor:
        return run(x if has_matrix_marginal(sde) else x[:, 0], noise).view_as(x)

    silence = _Silence()
    middle = end(mean_0[None], silence)[0]
    # Rows: one per draw and block, one per block of the start's own impulse.
    x = mean_0.repeat(k * (silence.draws + 1), 1, 1)
    x[-k:] += root_0.movedim(1, 0)
    return middle, end(x, _OneHot(k)) - middle


def output_law(
    solver: Solver | str, sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, grid: Grid, *, final: str = "none"
) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of a sampler's output on Gaussian data, exactly: by impulse response.

    With a linear score a sampler is an affine map of its initial state and its noises, correctors included whose step
    does not depend on the state. A batch in which sample j has a one-hot noise at draw j gives the map's columns; the
    sum of their squares is the output's variance. The start is the exact marginal at the grid's first time.

    Args:
        solver: a solver or its name; a corrector's step must be known before the state, as `Langevin`'s is.
        sde: a linear process, with numbers or with a matrix.
        mean: of the data, (k,): k data sets side by side.
        std: of the data, (k,).
        grid: the times.
        final: `"none"`, `"mean"` or `"denoise"`, as in `sample`.

    Returns:
        mean and standard deviation, (k,) each, in float64; of every block of the state, (blocks, k) each, on a process
        with a matrix.

    Raises:
        ValueError: for shapes that differ, another `final`, or `"denoise"` on a process with a matrix.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> grid = sg.grids.LogSNR()(sde, 200)
        >>> mean, std = output_law("ancestral", sde, torch.tensor([0.3]), torch.tensor([0.5]), grid)
        >>> round(float(mean), 2), round(float(std), 2)
        (0.3, 0.49)
    """
    if mean.shape != std.shape or mean.ndim != 1:
        raise ValueError(f"mean and std must have one shape (k,), got {tuple(mean.shape)} and {tuple(std.shape)}")
    if final not in ("none", "mean", "denoise"):
        raise ValueError(f"final must be 'none', 'mean' or 'denoise', got {described(final)}")
    if final == "denoise" and has_matrix_marginal(sde):
        raise ValueError(f"final='denoise' needs a LinearSDE, got {described(sde)}; use 'mean' or 'none'")

    mean = mean.to(F64)
    std = std.to(F64)
    score = Gaussian(mean, std.square().diag()).score(sde)
    run = partial(_run_to_final, resolve(solver), sde, score, grid, final)
    output_mean, impulses = _affine_map(run, sde, mean, std, grid.times[0])
    output_std = impulses.square().sum(0).sqrt()
    return (output_mean, output_std) if has_matrix_marginal(sde) else (output_mean[0], output_std[0])


def _run_to_final(
    solver: Solver, sde: SDE, score: Score, grid: Grid, final: str, x: Tensor, noise: NoiseSource
) -> Tensor:
    """States at the grid's end, with correctors, and as `final` has them."""
    start, *_, end = grid.times
    model = BoundScore(score, sde, (end, start))
    program = solver.compile(sde, grid)
    if final == "mean":
        program = solver.end_in_mean(program)
    hooks = solver.hooks(sde, grid, model, noise, mean=final == "mean")
    with torch.no_grad():
        x = execute(program, x, model, noise, hooks=hooks).x
        return model.predict("data", x, end) if final == "denoise" else x


def measure_weak_order_on_mixture(
    solver: Solver | str,
    sde: LinearSDE,
    *,
    oracle: GaussianMixture | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    rule: GridRule | None = None,
    steps: Sequence[int] = (8, 16, 32),
    log2_points: int = 13,
    scrambles: int = 4,
    seed: int = 0,
) -> OrderMeasurement:
    r"""Errors of a stochastic solver's output law on a mixture, whose score is not linear, with standard errors.

    The error is that of $E\,f(y)$, $y = x/\alpha$, for $f = (y, y^2, \cos 2y, \sin 2y)$, from exact samples of the
    marginal at `t_start`. The solver runs on scrambled Sobol points, noises in the order of the slow cosines along the
    path. What is averaged is $f$ less a martingale that starts at 0: with $v_k$ the expectation of $f$ at the end,
    given the state, on DDIM's chain with the solver's own noises,

    $$ f(y_N) - \big[v_0(y_0) - E\,v_0(y_0)\big] - \sum_k \big[v_k(y_k) - E(v_k(y_k) \mid y_k\text{ without its fresh
       noise})\big] $$

    which has the same mean whatever the solver, and no variance left for DDIM itself.

    Args:
        solver: a solver or its name, without correctors.
        sde: a linear process.
        oracle: a one-dimensional mixture; two unequal modes if not given.
        t_start: where to start; the default is where sigma / alpha is 2.
        t_end: where to stop; the default is where sigma / alpha is 0.4.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.
        log2_points: logarithm of the number of points of a scrambling.
        scrambles: independent scramblings, whose differences give the standard errors; at least 2.
        seed: of the scramblings.

    Returns:
        the norm of the four errors, and its standard error.

    Raises:
        ValueError: for a solver that adds no noise, data that are not one-dimensional, a negative `log2_points`, or
            fewer than two scramblings.

    Source: Owen, 1997, Annals of Statistics 25 (scrambled nets); Belomestny et al., 2017, arXiv:1701.00273, after
    Newton, 1994 (martingales as control variates).

    Examples:
        >>> import sgm_sde as sg
        >>> round(measure_weak_order_on_mixture("ancestral", sg.VPSDE(), log2_points=8).order, 1)
        1.0
    """
    solver = resolve(solver).strict()
    rule = rule or LogSNR()
    if not solver.stochastic:
        raise ValueError(f"{called(solver)} adds no noise: measure_order measures it")
    data = _one_dimensional(oracle)
    log2_points = check_integer("log2_points", log2_points, 0)
    if scrambles < 2:
        raise ValueError(f"a standard error takes at least 2 scramblings, got {scrambles}")

    t_start, t_end = _span(sde, t_start, t_end, levels=(2.0, 0.4))
    (end,) = sde.nodes([t_end])
    exact = _expected_features(data, end.noise_level)

    measured = []
    for n in steps:
        program = solver.compile(sde, rule(sde, n, t_start, t_end))
        estimate = _ControlledMean(program, sde, data)
        paths = _sobol_paths(estimate.draws, log2_points, scrambles, seed)
        means = [estimate(z) for z in paths]
        measured.append(_error_of(np.stack(means), exact))

    errors, stderrs = zip(*measured, strict=True)
    return OrderMeasurement(tuple(steps), errors, stderrs)


def _one_dimensional(oracle: Any) -> Any:
    """A mixture in one dimension: the given one, or that of `default_oracle("scalar")`."""
    data = default_oracle("scalar") if oracle is None else oracle
    if data.event_shape != (1,):
        raise ValueError(f"the data must be one-dimensional, of shape (1,), got {tuple(data.event_shape)}")
    return data


def _error_of(means: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Norm of the error of means (n, 4) of n scramblings, and its standard error."""
    error = float(np.linalg.norm(means.mean(0) - exact))
    std = float(np.linalg.norm(means.std(0, ddof=1)))
    return error, std / math.sqrt(len(means))


def _features(y: np.ndarray) -> np.ndarray:
    """Observables (*, 4) of y (*)."""
    return np.stack([y, y**2, np.cos(2 * y), np.sin(2 * y)], -1)


def _expected_features(data: GaussianMixture, r: float) -> np.ndarray:
    """Their expectations (4,) under the marginal of y = x / alpha where sigma / alpha is r."""
    w = data.weights.numpy()
    m = data.means[:, 0].numpy()
    v = data.variances[:, 0].numpy() + r**2
    damping = np.exp(-2 * v)
    cosine = damping * np.cos(2 * m)
    sine = damping * np.sin(2 * m)
    return np.asarray([w @ m, w @ (m**2 + v), w @ cosine, w @ sine])


def _sobol_paths(draws: int, log2_points: int, scrambles: int, seed: int) -> Iterator[np.ndarray]:
    """Standard normals (B, 1 + draws) of each scrambling, the start's first."""
    from scipy.fft import idct
    from scipy.stats import qmc

    for i in range(scrambles):
        engine = qmc.Sobol(1 + draws, seed=np.random.default_rng([seed, i]))
        z = qmc.MultivariateNormalQMC(np.zeros(1 + draws), engine=engine).random(2**log2_points)
        yield np.concatenate([z[:, :1], idct(z[:, 1:], norm="ortho")], 1)


class _Observed(BoundScore):
    """A model that shows each state to `observe` before it is evaluated."""

    observe: Callable[[Tensor], None]

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at x (B, *) and time t (B,)."""
        self.observe(x)
        return super().evaluate(x, t)


def _spline(y: np.ndarray, values: np.ndarray) -> Any:
    from scipy.interpolate import CubicSpline

    return CubicSpline(y, values)


class _ControlledMean:
    """Mean of the observables at a program's end, less the martingale of DDIM's chain with the same noises."""

    def __init__(self, program: Program, sde: LinearSDE, data: GaussianMixture) -> None:
        self.program = program
        self.sde = sde
        self.data = data
        self.fresh = _fresh(program)
        self.draws = sum(map(len, self.fresh))
        self.nodes = sde.nodes([stage.t for stage in program.stages])
        self.values = self._values()

    def _values(self) -> dict[int, tuple[Any, Any]]:
        """Of each stage with fresh noise: the value v of its state, and that of the state without the noise.

        By backward recursion; of the first stage, v and its expectation.
        """
        values: dict[int, tuple[Any, Any]] = {}
        value: Any = _features
        r = self.nodes[-1].noise_level  # of the next stage with fresh noise,
        std = 0.0  # and of that noise
        for k in reversed(self._noisy):
            after, y = self._before(k, value, r, std)
            r = self.nodes[k].noise_level
            std = self._fresh_std(k)
            value = _spline(y, _smoothed(after, y, std))
            values[k] = after, value

        first, y = self._before(0, value, r, std)
        return values | {0: (first, self._expected(first, y))}

    def _before(self, k: int, value: Any, r: float, std: float) -> tuple[Any, np.ndarray]:
        """The value of the state of stage k from that at the next stage with fresh noise, and the places it is from."""
        y = self._places(k)
        return _spline(y, value(self._ddim(k, y, r, std))), y

    @property
    def _noisy(self) -> list[int]:
        """The stages with fresh noise, but for the first."""
        return [k for k, fresh in enumerate(self.fresh) if fresh and k]

    def _fresh_std(self, k: int) -> float:
        """Standard deviation of the fresh noise of stage k, in y = x / alpha."""
        coefficients = [engine_number(c) for _, c in self.fresh[k]]
        return math.hypot(*coefficients) / self.nodes[k].alpha

    def _places(self, k: int) -> np.ndarray:
        """Places y = x / alpha (n,) that cover the marginal of stage k."""
        reach = float(self.data.means.abs().max())
        variance = float(self.data.variances.max()) + self.nodes[k].noise_level ** 2
        return np.linspace(-1, 1, 801) * (reach + 10 * math.sqrt(variance))

    def _ddim(self, k: int, y: np.ndarray, r: float, std: float) -> np.ndarray:
        """DDIM's step from y at stage k to the noise level r, less the noise of deviation std that is fresh there."""
        s = self.nodes[k].noise_level
        D = self._denoised(y, s)
        ratio = math.sqrt(max(r**2 - std**2, 0.0)) / s
        return D + ratio * (y - D)

    def _expected(self, value: Callable[[np.ndarray], np.ndarray], y: np.ndarray) -> np.ndarray:
        """Expectation of a function of y under the first stage's marginal, from places y."""
        start = self.nodes[0]
        x = start.alpha * torch.from_numpy(y)[:, None]
        density = self.data.log_prob(x, self.sde, start.t).exp().numpy()
        return np.asarray(density @ value(y) / density.sum())

    def _denoised(self, y: np.ndarray, r: float) -> np.ndarray:
        state = torch.from_numpy(y)
        D = self.data.denoised(state[:, None], torch.ones_like(state), torch.full_like(state, r))
        return np.asarray(D[:, 0].numpy())

    def _start(self, z: np.ndarray) -> np.ndarray:
        """The marginal's quantiles (B,) at the first time for standard normals (B,)."""
        w = self.data.weights.numpy()
        m = self.data.means[:, 0].numpy()
        v = self.data.variances[:, 0].numpy() + self.nodes[0].noise_level ** 2
        return _mixture_quantiles(z, w, m, np.sqrt(v))

    def _increment(self, k: int, x: Tensor, z: np.ndarray) -> np.ndarray | float:
        """Increment of the martingale (B, 4) with the noise of stage k."""
        if not self.fresh[k]:
            return 0.0
        after, before = self.values[k]
        alpha = self.nodes[k].alpha
        state = x[:, 0].numpy()
        noise = sum(c * z[:, 1 + draw] for draw, c in self.fresh[k])
        return after(state / alpha) - before((state - noise) / alpha)

    def __call__(self, z: np.ndarray) -> np.ndarray | float:
        """Means (4,) over the starts z[:, 0] and the noises z[:, 1:]."""
        y = self._start(z[:, 0])
        value, expected = self.values[0]
        increments = [value(y) - expected]
        called = iter([k for k, stage in enumerate(self.program.stages) if stage.evaluate])

        x = self._run(y, z, lambda x: increments.append(self._increment(next(called), x, z)))
        martingale = sum(increments) + self._increment(len(self.nodes) - 1, x, z)
        controlled = _features(x[:, 0].numpy() / self.nodes[-1].alpha) - martingale
        return np.asarray(controlled.mean(0))

    def _run(self, y: np.ndarray, z: np.ndarray, observe: Callable[[Tensor], None]) -> Tensor:
        """States (B, 1) at the end from y (B,) with the noises z[:, 1:]; each that is evaluated is shown on the way."""
        start = self.nodes[0]
        model = _Observed(self.data.score(self.sde), self.sde, (self.nodes[-1].t, start.t))
        model.observe = observe
        noise = PreDrawnNoise(list(torch.from_numpy(z.T[1:].copy())[..., None]))
        x = start.alpha * torch.from_numpy(y)[:, None]
        with torch.no_grad():
            return execute(self.program, x, model, noise).x


def _mixture_quantiles(z: np.ndarray, w: np.ndarray, m: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Quantiles (B,) of a mixture at the levels of standard normals z (B,), by bisection."""
    from scipy.special import ndtr

    p = ndtr(z)
    low = np.full_like(z, (m - 10 * std).min())
    high = np.full_like(z, (m + 10 * std).max())
    for _ in range(60):
        middle = (low + high) / 2
        below = ndtr((middle[:, None] - m) / std) @ w < p
        low = np.where(below, middle, low)
        high = np.where(below, high, middle)
    return (low + high) / 2


def _smoothed(value: Callable[[np.ndarray], np.ndarray], y: np.ndarray, std: float) -> np.ndarray:
    """Expectation of a function (*, 4) at y plus noise of a standard deviation, (n, 4) for y (n,)."""
    points, weights = np.polynomial.hermite_e.hermegauss(24)
    weights /= weights.sum()
    return np.einsum("ijf,j->if", value(y[:, None] + std * points), weights)


def _fresh(program: Program) -> list[list[tuple[int, Coefficient]]]:
    """Of each stage, the noises that are drawn there: the number of the draw, and its coefficient."""
    seen: set[int] = set()
    drawn = []
    for stage in program.stages:
        new = [(m, c) for m, c in stage.noises if m not in seen]
        drawn.append([(len(seen) + i, c) for i, (_, c) in enumerate(new)])
        seen.update(m for m, _ in new)
    return drawn


def smooth_end(sde: LinearSDE | MatrixSDE, level: float = 0.2) -> float:
    """The time where sigma / alpha is `level`, or `sde.eps` if that is later: fields are still smooth there.

    Examples:
        >>> import sgm_sde as sg
        >>> round(smooth_end(sg.EDMSDE()), 6)
        0.2
    """
    return max(float(sde.time(-2 * math.log(level))), sde.eps)


def active_start(sde: LinearSDE | MatrixSDE, level: float = 3.0) -> float:
    """The time where sigma / alpha is `level`, or `sde.T` if that is earlier: the denoiser depends on x there.

    Examples:
        >>> import sgm_sde as sg
        >>> round(active_start(sg.EDMSDE()), 6)
        3.0
    """
    log_snr = -2 * math.log(level)
    return min(float(sde.time(log_snr)), sde.T) if float(sde.log_snr(sde.T)) < log_snr else sde.T


def _span(
    sde: LinearSDE | MatrixSDE, t_start: float | None, t_end: float | None, levels: tuple[float, float] = (3.0, 0.2)
) -> tuple[float, float]:
    """Times where a measurement starts and ends: the given ones, or where sigma / alpha is at these levels."""
    high, low = levels
    start = active_start(sde, high) if t_start is None else t_start
    end = smooth_end(sde, low) if t_end is None else t_end
    return start, end


def _run(solver: Solver, sde: SDE, score: Score, x: Tensor, noise: NoiseSource, *, grid: Grid) -> Tensor:
    model = BoundScore(score, sde, (grid.times[-1], grid.times[0]))
    with torch.no_grad():
        return execute(solver.compile(sde, grid), x, model, noise).x


class _Silence:
    """Noise of zeros that counts its draws."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        self.draws += 1
        return torch.zeros(shape, dtype=dtype, device=device)


class _OneHot:
    """Block b of draw j is 1 in sample j k + b, of k blocks, and 0 elsewhere."""

    def __init__(self, blocks: int = 1) -> None:
        self.draw = 0
        self.blocks = blocks

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        z = torch.zeros(shape, dtype=dtype, device=device)
        view = z.view(len(z), self.blocks, -1)
        for b in range(self.blocks):
            view[self.draw * self.blocks + b, b] = 1
        self.draw += 1
        return z
