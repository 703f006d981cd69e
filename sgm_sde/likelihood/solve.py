r"""Solving the probability flow with its change of volume, from eps to T.

With $\rho^2 = \alpha^2 s^2 + \sigma^2$, the spread that data of standard deviation s have at a time, the flow of
$z = x/\rho$ in $\lambda = \log(\alpha/\sigma)$ is

$$ \frac{dz}{d\lambda} = -\frac{\alpha\sigma s}{\rho^3}\,v, \qquad v = \alpha s\,\epsilon - \frac{\sigma}{s} D $$

which is 0 for Gaussian data of that spread. Along it

$$ \log p_\epsilon(x_\epsilon) = \log p_T(x_T) + d\log\frac{\rho_T}{\rho_\epsilon}
   - \int_{\lambda_T}^{\lambda_\epsilon} \operatorname{div}_z\frac{dz}{d\lambda}\,d\lambda $$
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.cache import cached
from sgm_sde._utils.shapes import as_time, dot, expand
from sgm_sde.engine.adaptive import (
    Active,
    Attempt,
    Controller,
    EmbeddedStepper,
    Integration,
    State,
    integrate_adaptive,
)
from sgm_sde.engine.executor import Evaluator, execute
from sgm_sde.engine.lowering import Plan
from sgm_sde.engine.program import Program
from sgm_sde.likelihood.checks import OnOutput, check_output
from sgm_sde.likelihood.errors import fixed_probe_error, probe_error, quadrature_error
from sgm_sde.likelihood.grid import Stretched
from sgm_sde.likelihood.multistep import Quadrature, program, spread, tables
from sgm_sde.likelihood.trace import Estimate, TraceScore
from sgm_sde.processes.base import has_scalar_marginal
from sgm_sde.processes.linear import LinearNode, LinearSDE, MarginalAt
from sgm_sde.processes.predictions import Marginal, Scalars, convert
from sgm_sde.schemes.runge_kutta import DOPRI5

DAMPED_BELOW = 0.2  # noise, as a fraction of the data
REFINEMENTS = (2, 4)  # times the steps
SAFETY = 2.0  # of the estimated error of a grid
WRONG_SCORE = 0.01  # share of the score that may be wrong besides what the Jacobian's asymmetry shows
WRONG_BY_ASYMMETRY = 2.0  # share for each unit of asymmetry
UNSURE_BY_ASYMMETRY = 2.0  # share of what is not trusted whose sign is not known either
SKEW = 0.2  # asymmetry from which probes tell their noise by their spread alone
FLAT = 20.0  # logarithm of signal over noise beyond which nothing varies
COARSE = 0.7  # step of lambda beyond which the convergence over parts of the nodes is chance
HOPELESS = 2.0**-8  # of the tolerance to the error: beyond, a grid of more steps is not tried
REACH = 64.0  # times the tolerance: errors that a grid of twice the steps is taken to remove
SLOW = 1 / 16, 1 / 6  # factors of the error from a grid to the next, and of that of the divergence from half of its
# nodes to all: where both are above these the next grid is not tried
TOLERANCES = (0.03, 0.003, 0.0003)  # of an adaptive solver's steps, in units of the error that is asked of the value
ADAPTIVE_ERROR = 2.0  # times the sum of the embedded errors, each raised where the Jacobian is large


class Solution(NamedTuple):
    """The latent (B, *), and (B,) each.

    Attributes:
        latent: where the flow ends.
        volume: what its change of volume adds to the log-density.
        stderr: standard error of that by the probes.
        freedom: degrees of freedom of `stderr`.
        error: its numerical error, NaN where nothing tells.
        defect: what of it makes up for states that lie on no single trajectory, NaN for other methods.
        falls: factor of the error of the divergence on twice the nodes, NaN for other methods.
    """

    latent: Tensor
    volume: Tensor
    stderr: Tensor
    freedom: Tensor
    error: Tensor
    defect: Tensor
    falls: Tensor

    def replaced(self, rows: Tensor, by: Solution) -> Solution:
        """The same with other values at some rows."""
        return Solution(*(a.index_copy(0, rows, b.to(a.dtype)) for a, b in zip(self, by, strict=True)))

    def among(self, rows: Tensor) -> Solution:
        """Those of some rows."""
        return Solution(*(part[rows] for part in self))


def rate(prediction: str, k: Marginal[Scalars], s: float) -> tuple[Scalars, Scalars]:
    """Coefficients with dz/dlambda = a_x x + a_r r, for a network's output r."""
    factor = -k.alpha * k.sigma * s / spread(k, s) ** 3
    c_x, c_r = convert(prediction, "v", k, sigma_data=s)
    return factor * c_x, factor * c_r


class Rates(NamedTuple):
    """Coefficients (c_x, c_r) at a node of what is c_x x + c_r r, for a network's output r.

    Attributes:
        slope: of dz/dtheta.
        score: of the score in z.
        divergence: of the divergence of dz/dtheta, for each dimension, and of the trace of r's Jacobian in it.
        trusted: share of the score that corrections use. At low noise a learned score is unreliable while the error of
            the trajectory is already negligible, so that it is damped there.
    """

    slope: tuple[float, float]
    score: tuple[float, float]
    divergence: tuple[float, float]
    trusted: float

    @classmethod
    def at(cls, node: LinearNode, prediction: str, s: float) -> Rates:
        """Those at a node."""
        rho = spread(node, s)
        trusted = 1 / (1 + (DAMPED_BELOW * node.alpha * s / node.sigma) ** 2)
        (s_x, s_r), (v_x, v_r) = (convert(prediction, target, node, sigma_data=s) for target in ("score", "v"))
        return cls((v_x / rho, v_r / rho), (rho * s_x, rho * s_r), (v_x, v_r), trusted)


@dataclass(frozen=True)
class Problem:
    """Flow from states at one end, which a method is to solve with its change of volume.

    Attributes:
        model: the network.
        x: states (B, *), at the data's end if the flow goes to the noise.
        eps: the time of the data's end.
        estimate: of the trace; none where states alone are wanted.
        to_noise: the direction.
    """

    model: TraceScore
    x: Tensor
    eps: float
    estimate: Estimate | None = None
    to_noise: bool = True

    @property
    def sde(self) -> LinearSDE:
        """The process."""
        assert has_scalar_marginal(self.model.sde)
        return self.model.sde

    @property
    def d(self) -> int:
        """Dimensions of a sample."""
        return self.x[0].numel()

    @property
    def trace(self) -> Estimate:
        """The estimate of the trace, where there is one."""
        assert self.estimate is not None
        return self.estimate

    def run(self, number: int, *, constant: bool = False) -> Problem:
        """The problem with the probes of run `number`; with `constant`, the same probes at each evaluation."""
        estimate = self.trace.run(number)
        return replace(self, estimate=estimate.constant() if constant else estimate)


class NoNoise:
    """The probability flow draws none."""

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        """Raises."""
        raise RuntimeError("the probability flow draws no noise")


class Nodes:
    """A grid along which the flow and the trace are integrated.

    Args:
        sde: the process.
        times: of the nodes, from one end to the other.
        table: their quadrature.
        s: standard deviation of the data.

    Attributes:
        reach: for each interval the first and the last node of which something is needed to cross it.
        longest: step of lambda, among those within 1 of where the noise is a third of the data.
        coarse: whether it is so long that integrals over parts of the nodes do not tell how they converge.
    """

    def __init__(self, sde: LinearSDE, times: tuple[float, ...], table: Quadrature, s: float) -> None:
        self.times = times
        self.table = table
        self.s = s
        self.nodes = sde.nodes(times)
        self.spreads = [spread(node, s) for node in self.nodes]
        self.reach = [_reach(table, i) for i in range(len(times) - 1)]
        self.longest = longest_step(np.array([node.lam for node in self.nodes]), s)
        self.coarse = self.longest > COARSE
        self._rates: dict[str, list[Rates]] = {}

    def rates(self, prediction: str) -> list[Rates]:
        """Conversion of the network's output at each node."""
        if prediction not in self._rates:
            self._rates[prediction] = [Rates.at(node, prediction, self.s) for node in self.nodes]
        return self._rates[prediction]


def _reach(table: Quadrature, i: int) -> tuple[int, int]:
    """The first and the last node of which something is needed to cross interval i."""
    needed = [i, i + 1]
    for rows in (table.integrals, table.corrections, table.averages):
        needed += [j for j, _ in rows[i]]
    return min(needed), max(needed)


def longest_step(lam: np.ndarray, s: float) -> float:
    """The longest step between nodes at lambda (n + 1,) within 1 of the middle of `Stretched` grids."""
    low, high = np.sort(np.stack([lam[:-1], lam[1:]]), axis=0)
    middle = math.log(3) - math.log(s)
    near = (high > middle - 1) & (low < middle + 1)
    return float((high - low)[near].max(initial=0.0))


class GridFlow(Nodes):
    """The flow on a fixed grid, from the data to the noise or back; see `multistep`.

    Args:
        sde: the process.
        eps: where the flow ends, with the data.
        steps: of the grid.
        s: standard deviation of the data.
        to_noise: the direction.
    """

    def __init__(self, sde: LinearSDE, eps: float, steps: int, s: float, to_noise: bool = True) -> None:
        rule = Stretched(data_std=s)
        times = rule(sde, steps, t_end=eps).times
        table = tables(rule.curve(sde, sde.T, eps), s, steps, to_noise)
        super().__init__(sde, times[::-1] if to_noise else times, table, s)
        self.program = program(self.nodes, table, s)

    def carry(self, model: Evaluator, x: Tensor) -> Tensor:
        """The state at the last of the times; order 4."""
        return execute(self.program, x, model, NoNoise(), grad=torch.is_grad_enabled()).x


def fixed_grid(sde: LinearSDE, *options: Any) -> GridFlow:
    """A `GridFlow`, kept where processes can be told apart."""
    return _fixed_grid(sde, *options)


@cached(maxsize=64)
def _fixed_grid(sde: LinearSDE, *options: Any) -> GridFlow:
    return GridFlow(sde, *options)


class OutputDependsOnBatch(ValueError):
    """The network says something else of some samples alone than of them in their batch."""


class NodeByNode:
    """A network as the executor calls it along a grid."""

    def __init__(self, model: TraceScore) -> None:
        self.model = model

    def plan(self, program: Program) -> Plan:
        """The program made ready for what the network predicts."""
        return self.model.plan(program)

    def times(self, ts: Sequence[float], x: Tensor) -> Sequence[Tensor]:
        """Times as tensors (B,)."""
        return self.model.times(ts, x)

    @abstractmethod
    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The output at the state (B, *) of the next node, and its times (B,)."""


def _combined(c: tuple[float, float], x: Tensor, r: Tensor) -> Tensor:
    """c_x x + c_r r."""
    c_x, c_r = c
    return torch.add(c_x * x, r, alpha=c_r)


class Integrals(NodeByNode):
    r"""Streaming quadrature along the probability flow: the network as the executor calls it, node by node, with its
    traces taken and the integrands accumulated.

    Along any path z(u), $d\log p = -\operatorname{div}\,d\theta + \nabla_z\log p\cdot(dz - v/\rho\,d\theta)$ where the
    score is exact. The computed states do not lie on one trajectory of the ODE: between two nodes the path follows the
    interpolated slopes, plus a jump to the next computed state, spread over the interval. The score times the jumps is
    the defect, the first-order change of the log-density.

    The remaining error has four parts, each estimated by a rule of another order on the same nodes: the quadrature of
    the divergence (`quadrature_error`), that of the slopes, the mean of the score over an interval, and the share of
    the score that is not trusted.

    Args:
        problem: whose network is asked.
        grid: the grid.
        rows: numbers of the samples, where these are some of the problem's.
        expected: the network's output (B, *) at the first node, from which it may differ by rounding, be it that of
            bfloat16.

    Attributes:
        first: the network's output at the first node.
    """

    first: Tensor

    def __init__(
        self, problem: Problem, grid: Nodes, rows: Tensor | None = None, expected: Tensor | None = None
    ) -> None:
        super().__init__(problem.model)
        self.estimate = problem.trace
        self.grid = grid
        self.rows = rows
        self.expected = expected
        self.rates = grid.rates(problem.model.score.prediction)
        self._traces: list[Tensor] = []
        self._slopes: dict[int, Tensor] = {}  # dz/dtheta of the flow
        self._states: dict[int, Tensor] = {}  # z
        self._scores: dict[int, Tensor] = {}  # in z
        self._crossed = 0
        self._defect: Tensor | float = 0.0
        self._errors: list[Tensor] = []  # each (4, B): of slopes, mean score and trust; what is added

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at the state of the next node.

        Raises:
            OutputDependsOnBatch: where the first is not what is expected.
        """
        out, trace = self.model.with_trace(x, t, self.estimate, self.rows)
        if not self._traces:
            self._require_expected(out)
            self.first = out.detach().clone()
        self._add(x, out.to(x.dtype), trace)
        return out

    def _require_expected(self, out: Tensor) -> None:
        if self.expected is None:
            return
        expected = self.expected.double()
        off = (out - self.expected).detach().double()
        if bool((dot(off, off) > 0.05**2 * dot(expected, expected)).any()):
            raise OutputDependsOnBatch("for some samples the network's output is not what it was in their batch")

    def _add(self, x: Tensor, r: Tensor, trace: Tensor) -> None:
        """Take in the next node, with its state x, output r and traces."""
        k = len(self._traces)
        rates = self.rates[k]
        self._traces.append(trace)
        self._slopes[k] = _combined(rates.slope, x, r)
        self._scores[k] = _combined(rates.score, x, r)
        self._states[k] = x / self.grid.spreads[k]

        while self._crossed < len(self.grid.reach) and self.grid.reach[self._crossed][1] <= k:
            self._cross(self._crossed)
            self._crossed += 1
            self._forget()

    def _cross(self, i: int) -> None:
        """Take the jump of interval i, when all that it needs is known."""
        averages = self.grid.table.averages[i]
        jump = self._jump(i)
        products = {j: dot(self._scores[j], jump) for j, _ in averages}

        # The mean over the interval of the score that is trusted, times the jump.
        added = torch.zeros_like(products[i])
        for j, w in averages:
            share = w * self.rates[j].trusted
            added = added + share * products[j]
        self._defect = self._defect + added

        with torch.no_grad():
            errors = self._errors_of(i, products, added)
        self._errors.append(torch.stack(errors).detach())

    def _jump(self, i: int) -> Tensor:
        """From the end of the path of the slopes over interval i to the next state."""
        jump = self._states[i] - self._states[i + 1]
        for j, w in self.grid.table.integrals[i]:
            jump = torch.add(jump, self._slopes[j], alpha=w)
        return jump

    def _errors_of(self, i: int, products: dict[int, Tensor], added: Tensor) -> list[Tensor]:
        """Errors of the jump of interval i by rules of another order: of the slopes, of the mean of the score, and of
        the share of it that is not trusted; and what is added."""
        here = self.rates[i].trusted
        there = self.rates[i + 1].trusted
        of_slopes = torch.zeros_like(added)
        off = self._correction(i)
        if off is not None:
            ends = here * self._scores[i] + there * self._scores[i + 1]
            of_slopes = dot(ends, off) / 2

        linear = (here * products[i] + there * products[i + 1]) / 2
        of_trust = torch.zeros_like(added)
        for j, w in self.grid.table.averages[i]:
            share = w * (1 - self.rates[j].trusted)
            of_trust = of_trust + share * products[j]
        return [of_slopes, linear - added, of_trust, added]

    def _correction(self, i: int) -> Tensor | None:
        """Correction by two more slopes of the integral over interval i, where there are as many."""
        off: Tensor | None = None
        for j, w in self.grid.table.corrections[i]:
            term = w * self._slopes[j]
            off = term if off is None else off + term
        return off

    def _forget(self) -> None:
        """Let go of nodes that no interval needs any more."""
        ahead = min(self._crossed, len(self.grid.reach) - 1)
        needed = self.grid.reach[ahead][0]
        for held in (self._slopes, self._states, self._scores):
            for j in [j for j in held if j < needed]:
                del held[j]

    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights of each node in the integral of the divergence: for each dimension, and of the trace."""
        constants, factors = np.array([rates.divergence for rates in self.rates]).T * self.grid.table.weights
        return constants, factors

    def terms(self, latent: Tensor) -> Tensor:
        """The terms of the quadrature of div dtheta, (nodes, B, columns)."""
        constants, factors = self._factors()
        a = torch.from_numpy(constants * latent[0].numel()).to(latent)
        b = torch.from_numpy(factors).to(latent)
        traces = torch.stack(self._traces).to(latent.dtype)
        return a[:, None, None] + b[:, None, None] * traces

    def solution(self, latent: Tensor) -> Solution:
        """Result of the run that ended in the latent (B, *)."""
        columns = self.estimate.columns
        terms = self.terms(latent)
        seen = terms.detach().double()
        defect = self._whole_defect(latent)
        volume = terms[:, :, :columns].mean(2).sum(0) + self._scaling(latent)

        error, falls = self._numerical_error(seen)
        stderr, freedom = self._probe_error(seen)
        stated = [part.to(volume.dtype) for part in (stderr, freedom, error, defect, falls)]
        return Solution(latent, volume + defect, *stated)

    def _scaling(self, latent: Tensor) -> float:
        """Change of the volume by that of the spread."""
        first = self.grid.spreads[0]
        last = self.grid.spreads[-1]
        return latent[0].numel() * math.log(last / first)

    def _whole_defect(self, latent: Tensor) -> Tensor:
        """The defect (B,) with that of the last correction, which moves the state as well."""
        last = len(self._traces) - 1
        jump = self._states[last] - latent / self.grid.spreads[-1]
        return self._defect + dot(self._scores[last], jump)

    def _numerical_error(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """The error (B,) from the terms (nodes, B, columns) of the divergence, and how that of the divergence falls."""
        of_divergence, falls = self._divergence_error(terms)
        of_slopes, of_mean, of_trust, added = torch.stack(self._errors, 1).double()
        of_jumps = torch.zeros_like(of_divergence)
        for part in (of_slopes, of_mean, of_trust):
            of_jumps = of_jumps + part.sum(0).abs()

        # What the score says of a jump is off as it is no gradient, and so is the sign of what is not trusted.
        asymmetry = self._asymmetry()
        share = WRONG_SCORE + WRONG_BY_ASYMMETRY * asymmetry
        wrong = share * added.abs().sum(0)
        unsure = UNSURE_BY_ASYMMETRY * asymmetry * of_trust.abs().sum(0)
        return SAFETY * (of_divergence + of_jumps) + wrong + unsure, falls

    def _divergence_error(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """Error of the integral, of a probe that is the same at all nodes, where there is one: fresh ones are rough."""
        table = self.grid.table
        same = self.estimate.columns + self.estimate.companion - 1
        weights = torch.from_numpy(table.weights).to(terms)[:, None]
        return quadrature_error(terms[:, :, same] / weights, table, self.grid.coarse)

    def _asymmetry(self) -> Tensor:
        """|J - J^T| / |J + J^T| of the Jacobian along the way (B,), 1 at most."""
        squares = torch.stack([trace[:, -2:] for trace in self._traces]).detach().double().sum(0)
        skew, symmetric = squares.unbind(1)
        ratio = skew / symmetric.clamp(min=torch.finfo(skew.dtype).tiny)
        return ratio.sqrt().clamp(max=1.0)

    def _probe_error(self, terms: Tensor) -> tuple[Tensor, Tensor]:
        """Standard error (B,) by the probes from the terms (nodes, B, columns), and its degrees of freedom (B,)."""
        if self.estimate.fixed is None:
            nothing = torch.zeros_like(terms[0, :, 0])
            return nothing, torch.full_like(nothing, torch.inf)

        by_spread = self._probe_error_by(terms, None)
        variance = self._variance(terms)
        if bool(variance.isnan().any()):
            return by_spread

        # A skew part of the Jacobian leaves z^T J z alone, but not its products, whose noise it is.
        by_products = self._probe_error_by(terms, variance)
        skew = self._asymmetry() > SKEW
        stderr, freedom = (torch.where(skew, *pair) for pair in zip(by_spread, by_products, strict=True))
        return stderr, freedom

    def _probe_error_by(self, terms: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same by the probes' spread, or the variance (nodes, B) of a term where it is given."""
        columns = self.estimate.columns
        companion = terms[:, :, columns] if self.estimate.companion else None
        return probe_error(terms[:, :, :columns], self._slow_weights(), companion, variance)

    def _slow_weights(self) -> Tensor:
        """Weights (nodes,) without which the terms are slopes in lambda, and vary slowly from node to node."""
        ratios = np.array([node.lam + math.log(self.grid.s) for node in self.grid.nodes])
        return torch.from_numpy(self.grid.table.weights * 2 * np.cosh(ratios.clip(-FLAT, FLAT)))

    def _variance(self, terms: Tensor) -> Tensor:
        """Variance of each term (nodes, B) of one probe, NaN where its products have not told it."""
        _, factors = self._factors()
        squares = torch.from_numpy(factors).to(terms)[:, None].square()
        return torch.stack([trace[:, -3] for trace in self._traces]).detach().double() * squares


class Watched(NodeByNode):
    """Evaluations that are shown to a function, node by node.

    Args:
        problem: whose network is asked, for its traces too if it has an estimate of them.
        times: the grid.
        on_output: called with state, output, time and trace.
    """

    def __init__(self, problem: Problem, times: Sequence[float], on_output: OnOutput) -> None:
        super().__init__(problem.model)
        self.estimate = problem.estimate
        self.on_output = on_output
        self.grid = iter(times)

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at the state of the next node."""
        trace: Tensor | None = None
        if self.estimate is None:
            out = self.model.output(x, t)
        else:
            out, trace = self.model.with_trace(x, t, self.estimate)
        self.on_output(x, out, next(self.grid), trace)
        return out


def on_grid(
    problem: Problem, steps: int, s: float, rows: Tensor | None = None, expected: Tensor | None = None
) -> tuple[Solution, Tensor]:
    """On one fixed grid, where the trace is a quadrature over the nodes of the trajectory; and the first output.

    From the noise to the data the volume has the other sign: it is what the density loses. `rows` and `expected` are
    as in `Integrals`.
    """
    grid = fixed_grid(problem.sde, problem.eps, steps, s, problem.to_noise)
    integrals = Integrals(problem, grid, rows, expected)
    latent = grid.carry(integrals, problem.x if rows is None else problem.x[rows])
    return integrals.solution(latent), integrals.first


class Refined(NamedTuple):
    """A solution, and which samples (B,) ended within the tolerance."""

    solution: Solution
    resolved: Tensor


def exponential(
    problem: Problem,
    steps: int,
    s: float,
    tolerance: Callable[[Solution], Tensor],
    tightness: float,
) -> Refined:
    """On a fixed grid; samples of too large an error on finer ones, and where these do not help by an adaptive solver.

    They go there alone where the network can be asked about them, else in their batch. Errors of the network's are its
    own and pass as they are.

    Args:
        problem: the flow.
        steps: of the first grid.
        s: standard deviation of the data.
        tolerance: from a solution to the largest error (B,) of its samples.
        tightness: the tolerance that the adaptive solver's steps are to meet, in nats/dim.
    """
    solution, first = on_grid(problem.run(0), steps, s)
    some = Some(problem, s, first)

    solution, going = _on_finer_grids(solution, some, steps, tolerance)
    if not some.grad:  # which an adaptive solver has not
        solution, going = _adaptively(solution, some, going, tolerance, tightness)
    return Refined(solution, ~going)


def _on_finer_grids(
    solution: Solution, some: Some, steps: int, tolerance: Callable[[Solution], Tensor]
) -> tuple[Solution, Tensor]:
    """The solution with samples of too large an error on finer grids, and those (B,) whose error still is.

    A grid is tried where the one before says that it will arrive. With the exact trace an adaptive solver takes fewer
    calls than the finest grid, so that it has to be within `REACH`, and either the error or that of the divergence has
    to fall as on a smooth score. Random probes are still better off on grids, where their noise averages over the
    nodes.
    """
    excess = _excess(solution, tolerance)
    going = excess > 1
    exact = some.problem.trace.fixed is None and not some.grad
    reach = REACH if exact else 1 / HOPELESS
    hopeless = going & (excess > reach)

    for number, finer in enumerate(REFINEMENTS, 1):
        trying = going if some.grad else going & ~hopeless
        if not bool(trying.any()):
            break

        rows = trying.nonzero().flatten()
        solution = solution.replaced(rows, some.on_grid(number, finer * steps, rows))
        before = excess
        excess = _excess(solution, tolerance)
        going = going & (excess > 1)

        # The next grid divides the error by what this one did.
        slow = excess.square() > before
        if exact:
            least, least_of_divergence = SLOW
            slow = slow | ((excess > least * before) & (solution.falls > least_of_divergence))
        hopeless = going & (hopeless | slow)
    return solution, going


def _adaptively(
    solution: Solution, some: Some, going: Tensor, tolerance: Callable[[Solution], Tensor], tightness: float
) -> tuple[Solution, Tensor]:
    """The solution with some samples (B,) by an adaptive solver, and those (B,) whose error is still too large.

    A sample that does not arrive keeps what it had, and is not tried again: smaller steps do not bring it further.
    """
    trying = going
    for run, share in enumerate(TOLERANCES, len(REFINEMENTS) + 1):
        rows = trying.nonzero().flatten()
        if not len(rows):
            break

        found, arrived = some.adaptive(run, share * tightness, rows)
        arrivals = arrived.nonzero().flatten()
        solution = solution.replaced(rows[arrivals], found.among(arrivals))

        going = going & (_excess(solution, tolerance) > 1)
        trying = going & trying.index_copy(0, rows, arrived)
    return solution, going


def _excess(solution: Solution, tolerance: Callable[[Solution], Tensor]) -> Tensor:
    """The errors (B,) in units of the tolerance; infinite where they are not known, and 0 where a volume is not finite:
    no other method makes up for a network's failure, which is reported."""
    excess: Tensor = (solution.error / tolerance(solution)).detach()
    known = excess.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return torch.where(solution.volume.detach().isfinite(), known, 0.0)


class Some:
    """Solves for some samples of a batch, and for these alone where the network allows that."""

    def __init__(self, problem: Problem, s: float, first: Tensor) -> None:
        self.problem = problem
        self.s = s
        self.first = first
        self.alone = problem.model.takes_some(len(problem.x))
        self.grad = torch.is_grad_enabled()

    def on_grid(self, number: int, steps: int, rows: Tensor) -> Solution:
        """On one fixed grid, by a run of this number."""
        if self.alone:
            try:
                return on_grid(self.problem.run(number), steps, self.s, rows, self.first[rows])[0]
            except OutputDependsOnBatch:
                self.alone = False
        return on_grid(self.problem.run(number), steps, self.s)[0].among(rows)

    def adaptive(self, number: int, tolerance: float, rows: Tensor) -> tuple[Solution, Tensor]:
        """By steps of each sample's own, by a run of this number, and which samples have arrived."""
        problem = self.problem.run(number, constant=True)
        flow = NormalisedFlow(problem, self.s, rows=rows, alone=self.alone)
        ends, run = _by_own_steps(flow, tolerance, tolerance)
        return joint(ends), run.completed.to(rows.device)


def revisit(problem: Problem, steps: int, s: float, refine: bool, on_output: OnOutput) -> None:
    """Walk along the grids of `exponential` again."""
    for finer in (1, *(REFINEMENTS if refine else ())):
        grid = fixed_grid(problem.sde, problem.eps, finer * steps, s, problem.to_noise)
        grid.carry(Watched(problem, grid.times, on_output), problem.x)


class NormalisedFlow:
    """The flow of z in lambda and, for a problem with a trace, of its log-volume; each sample at its own lambda.

    Args:
        problem: states and network.
        s: standard deviation of the data.
        rows: numbers of the samples that are solved for; all if not given.
        alone: whether the network is asked about those on their way alone; else about their whole batch.

    Attributes:
        lam: lambda at the end of the data, and at that of the noise or where nothing varies any more: beyond, z stays.

    Raises:
        ValueError: unless s is positive.
    """

    def __init__(
        self,
        problem: Problem,
        s: float,
        *,
        rows: Tensor | None = None,
        alone: bool = True,
    ) -> None:
        if not s > 0:
            raise ValueError(f"data_std must be positive, got {s}")
        self.problem = problem
        self.model = problem.model
        self.sde = problem.sde
        self.s = s
        self.alone = alone
        self.rows = torch.arange(len(problem.x), device=problem.x.device) if rows is None else rows
        self.data, self.noise = self.sde.nodes([problem.eps, self.sde.T])
        self.scale = {end: spread(end, s) for end in (self.data, self.noise)}
        flat = -FLAT - math.log(s)
        self.lam = {self.data: max(self.data.lam, flat), self.noise: max(self.noise.lam, flat - 1)}

    def __call__(self, lam: Tensor, y: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        """Slopes at lambda (b,), float64 on the host, for the samples of these numbers among those solved for.

        Besides the state and its volume a third part is passed on, which does not change.
        """
        z = y[0]
        t, k = self._at(lam)
        rates = rate(self.model.score.prediction, k, self.s)
        rho, a_x, a_r = (_for_each(value, z) for value in (spread(k, self.s), *rates))

        x = expand(rho, z) * z
        out, trace = self._ask(x, self.model.round_times(t.numpy(), x), self.rows[rows])
        slope = expand(a_x, x) * x + expand(a_r, x) * out.to(x.dtype)
        if trace is None:
            return (slope,)

        divergence = self.problem.d * a_x[:, None] + a_r[:, None] * trace.to(z.dtype)
        volume = rho[:, None] * divergence
        return slope, volume, *(torch.zeros_like(part) for part in y[2:])

    def _at(self, lam: Tensor) -> tuple[Tensor, MarginalAt]:
        """Times of lambda (b,), and the process there."""
        t = self.sde.time(2 * lam).clamp(self.problem.eps, self.sde.T)
        return t, self.sde.values(t)

    def _ask(self, x: Tensor, times: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's output for the samples of these numbers in the batch, and its traces (B, columns) if any."""
        model = self.model
        estimate = self.problem.estimate
        n = len(self.problem.x)
        whole = len(index) == n
        if not (whole or self.alone):  # all are asked about, these where they are and the others where they began
            x = self.problem.x.detach().index_copy(0, index, x)
            times = times[:1].expand(n).index_copy(0, index, times)
        rows = None if whole or not self.alone else index
        at: Tensor | slice = slice(None) if whole or self.alone else index
        if estimate is None:
            return model.output(x, times, rows)[at], None
        out, trace = model.with_trace(x, times, estimate, rows)
        return out[at], trace[at][:, : estimate.columns]

    def score(self, lam: Tensor, z: Tensor, slope: Tensor) -> Tensor:
        """The score in z that goes with slopes of z in lambda (b,)."""
        _, k = self._at(lam)
        rho, alpha, sigma = (expand(_for_each(value, z), z) for value in (spread(k, self.s), k.alpha, k.sigma))

        # slope = -(alpha sigma s / rho^3) v with v, which determines the noise together with the state.
        v = -slope * rho**3 / (alpha * sigma * self.s)
        noise = (alpha * self.s * v + sigma * rho * z) / rho**2
        return -rho * noise / sigma


def _for_each(value: Scalars, z: Tensor) -> Tensor:
    """A value for each sample (b,) of states z (b, *)."""
    return as_time(value).expand(len(z)).to(z)


class FlowStepper(EmbeddedStepper):
    r"""Steps of the flow with its volume, with what their errors do to the log-density added up.

    An error e of the state and e' of the volume change it by $\nabla_z\log p\cdot e - e'$. The embedded e are those of
    the lower order, larger than the step's own, unless the step is long beside the change of the slope: where the flow
    leaves the ridge between two modes they are too small. The last two stages, $z_6$ and $z_7$, are at one time, and
    their slopes f tell that change (Hairer & Wanner, 1996, section IV.2):

    $$ \gamma = |h|\,\frac{|f_7 - f_6|}{|z_7 - z_6|} $$

    Errors are taken $(1 + \gamma)^2$ times.
    """

    flow: NormalisedFlow
    _last: tuple[State, ...] = ()

    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """The right-hand side, whose last two states and slopes are kept."""
        slopes = super().rhs(t, y, index)
        self._last = (*self._last[-2:], y, slopes)
        return slopes

    def attempt(self, rows: Active) -> Attempt:
        """One step of each row."""
        attempt = super().attempt(rows)
        z, volume, total = attempt.y
        ((e, e_volume, _),) = attempt.estimates

        score = self.flow.score(torch.from_numpy(rows.u_next), z, attempt.carry[0])
        off = (dot(score, e) - e_volume.mean(1)).abs()

        (z_6, *_), (f_6, *_), (z_7, *_), (f_7, *_) = self._last
        moved = z_7 - z_6
        changed = f_7 - f_6
        ratio = dot(changed, changed) / dot(moved, moved).clamp(min=torch.finfo(z.dtype).tiny)
        h = torch.from_numpy(abs(rows.u_next - rows.u)).to(off)
        raised = off * (1 + h * ratio.sqrt()) ** 2
        return replace(attempt, y=(z, volume, total + raised[:, None]))


class Ends(NamedTuple):
    """Other end of a flow that was solved at once.

    Attributes:
        flow: the flow.
        x: the states there, (B, *).
        volumes: log-volumes (B, columns) that were solved with them, if any.
        errors: the sizes (B, 1) of the errors of all steps, where these are known.
    """

    flow: NormalisedFlow
    x: Tensor
    volumes: Tensor | None = None
    errors: Tensor | None = None


def adaptive(flow: NormalisedFlow, rtol: float, atol: float) -> Ends:
    """The other end by steps of each sample's own.

    Raises:
        ValueError: where a sample does not arrive.
    """
    ends, run = _by_own_steps(flow, rtol, atol)
    _require_arrived(run, flow)
    return ends


def _by_own_steps(flow: NormalisedFlow, rtol: float, atol: float) -> tuple[Ends, Integration]:
    """The run of an adaptive solver and its last states, at the other end for samples that have arrived."""
    problem = flow.problem
    x = problem.x[flow.rows]
    if flow.alone:
        flow.model.resolved(len(problem.x))  # samples leave the batch
    start, end = (flow.data, flow.noise) if problem.to_noise else (flow.noise, flow.data)

    stepper, volumes = _stepper(flow, x, rtol, atol)
    y = (x / flow.scale[start], *volumes)
    span = flow.lam[start], flow.lam[end]
    run = integrate_adaptive(stepper, y, *span, max_steps=10_000, controller=Controller())
    return Ends(flow, run.y[0] * flow.scale[end], *run.y[1:]), run


def _stepper(flow: NormalisedFlow, x: Tensor, rtol: float, atol: float) -> tuple[EmbeddedStepper, tuple[Tensor, ...]]:
    """Steps of the flow from states x (B, *), and what is carried along: log-volumes and their errors, if any."""
    estimate = flow.problem.estimate
    if estimate is None:
        return EmbeddedStepper(flow, DOPRI5, rtol, atol, len(x)), ()

    stepper = FlowStepper(flow, DOPRI5, rtol, atol, len(x))
    stepper.flow = flow
    volumes = x.new_zeros(len(x), estimate.columns)
    errors = x.new_zeros(len(x), 1)
    return stepper, (volumes, errors)


def _require_arrived(run: Integration, flow: NormalisedFlow) -> None:
    """Raise ValueError, naming the first sample that has not come to the other end."""
    for i in (~run.completed).nonzero().flatten().tolist()[:1]:
        t = float(flow.sde.time(2 * float(run.t[i])))
        raise ValueError(f"the flow of sample {int(flow.rows[i])} stopped at t={t:.6g}: {run.outcome[i]}")


def adjoint(flow: NormalisedFlow, rtol: float, atol: float, parameters: Sequence[Tensor]) -> Ends:
    """The noise's end by torchdiffeq's dopri5 on the whole batch.

    Gradients are those of the adjoint equation, in memory that steps do not add to.

    Raises:
        ValueError: where torchdiffeq gives up.
    """
    from torchdiffeq import odeint, odeint_adjoint

    x = flow.problem.x
    rows = torch.arange(len(x), device=x.device)

    def slope(u: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        lam = -u.detach().double().cpu()
        return tuple(-part for part in flow(lam.expand(len(x)), y, rows))

    z = x / flow.scale[flow.data]
    volumes = x.new_zeros(len(x), flow.problem.trace.columns)
    u = torch.tensor([-flow.lam[flow.data], -flow.lam[flow.noise]], dtype=torch.float64, device=x.device)

    integrate = odeint
    options = _torchdiffeq_options(u, None)
    if torch.is_grad_enabled():
        integrate = odeint_adjoint
        options = _torchdiffeq_options(u, parameters)

    try:
        z, volumes = integrate(slope, (z, volumes), u, rtol=rtol, atol=atol, **options)
    except AssertionError as error:  # of steps that get too small, and states that are not finite
        raise ValueError(f"torchdiffeq gave up: {error}") from error

    latent = z[-1] * flow.scale[flow.noise]
    return Ends(flow, latent, volumes[-1])


def _torchdiffeq_options(u: Tensor, parameters: Sequence[Tensor] | None) -> dict[str, object]:
    """Options of a solve from u[0] to u[1], and of its adjoint where there are parameters.

    Without step_t it would step beyond the end and interpolate, and the network would be called outside of [eps, T].
    """
    options: dict[str, object] = {"method": "dopri5", "options": {"step_t": u[1:]}}
    if parameters is not None:
        options["adjoint_params"] = tuple(parameters)
        options["adjoint_options"] = {"step_t": u[:1]}
    return options


def joint(ends: Ends) -> Solution:
    """The solution from the noise's end of a flow that was solved with its volume."""
    flow = ends.flow
    volumes = ends.volumes
    assert volumes is not None
    added = flow.problem.d * math.log(flow.scale[flow.noise] / flow.scale[flow.data])
    solution = whole_flow(flow.problem, ends.x, volumes, added)
    return solution if ends.errors is None else solution._replace(error=ADAPTIVE_ERROR * ends.errors[:, 0].detach())


def whole_flow(problem: Problem, latent: Tensor, volumes: Tensor, added: float = 0.0) -> Solution:
    """The solution of a method without a defect, from log-volumes (B, columns) of whole flows."""
    volume = volumes.mean(1) + added
    unknown = torch.full_like(volume.detach(), math.nan)
    stderr, freedom = fixed_probe_error(volumes.detach())
    if problem.trace.fixed is None:
        stderr, freedom = torch.zeros_like(stderr), torch.full_like(stderr, math.inf)
    return Solution(latent, volume, stderr, freedom, unknown, unknown, unknown)


class _JointSystem:
    """The flow of a batch with its log-volumes in time, as SciPy asks for it: one vector of float64."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x = problem.x

    def start(self) -> np.ndarray:
        """The states, and volumes of 0."""
        states = self.x.double().cpu().numpy().reshape(-1)
        volumes = np.zeros(len(self.x) * self.problem.trace.columns)
        return np.concatenate([states, volumes])

    def split(self, y: np.ndarray) -> tuple[Tensor, Tensor]:
        """States (B, *) and log-volumes (B, columns)."""
        both = torch.from_numpy(y).to(self.x)
        n = self.x.numel()
        return both[:n].view(self.x.shape), both[n:].view(len(self.x), -1)

    def slope(self, t: float, y: np.ndarray) -> np.ndarray:
        """Its slope at time t."""
        problem = self.problem
        model = self.problem.model
        x, _ = self.split(y)
        (time,) = model.times([t], x)
        out, trace = model.with_trace(x, time, problem.trace)
        out = out.to(x.dtype)
        trace = trace[:, : problem.trace.columns]
        check_output(x, out, t, trace)  # SciPy's first step would be NaN, and it would try it for ever

        (node,) = problem.sde.nodes([t])
        c_x, c_r = convert(model.score.prediction, "flow", node)
        states = c_x * x + c_r * out
        volumes = c_x * problem.d + c_r * trace
        parts = [part.reshape(-1).double().cpu() for part in (states, volumes)]
        return torch.cat(parts).numpy()


def scipy_rk45(problem: Problem, rtol: float, atol: float) -> Solution:
    """One solve of the joint system of the whole batch in time: Song et al.'s protocol."""
    from scipy.integrate import solve_ivp

    system = _JointSystem(problem)
    span = problem.eps, problem.sde.T
    found = solve_ivp(system.slope, span, system.start(), method="RK45", rtol=rtol, atol=atol)
    if not found.success:
        raise ValueError(f"SciPy's RK45 gave up: {found.message}")
    latent, volumes = system.split(found.y[:, -1])
    return whole_flow(problem, latent, volumes)
