r"""The flow and its change of volume on one fixed grid, by quadrature along the nodes.

In the angle $\theta = \arctan(\sigma/(\alpha s))$ the flow of $z = x/\rho$ is $dz/d\theta = v/\rho$, and the
log-density changes along it by the divergence. States on a grid lie on no single trajectory; the score says what their
jumps from one to another do to the log-density.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.cache import cached
from sgm_sde._utils.shapes import column, dot
from sgm_sde.engine.executor import Evaluator, execute
from sgm_sde.engine.lowering import Plan
from sgm_sde.engine.program import Program
from sgm_sde.likelihood.checks import OnOutput
from sgm_sde.likelihood.errors import ALIASED, COARSE, probe_error, quadrature_error, ratio, rounded, sensitivity
from sgm_sde.likelihood.grid import Stretched
from sgm_sde.likelihood.multistep import Quadrature, Weights, program, spread, tables, trust
from sgm_sde.likelihood.problem import FLAT, NoNoise, Problem, Solution
from sgm_sde.likelihood.trace import TraceScore
from sgm_sde.processes.linear import LinearNode, LinearSDE
from sgm_sde.processes.predictions import convert

SAFETY = 1.5  # of the estimated error of a grid
ROUGH_SLOPES = 2.0  # of what a rule of more slopes adds to each interval, in the root of the squares
WRONG_SCORE = 5.0  # share of the score that may be wrong, for each unit of what is seen of that
UNSEEN = 0.0025  # units where nothing is seen
SKEW = 0.2  # asymmetry from which probes tell their noise by their spread alone
COARSELY = 1.5  # times the error of a grid that is coarse
LIKE_PRIOR = 20.0  # reciprocal of the distance of a score from that of pure noise, up to which its wave is told


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
        trusted = trust(node, s)
        (s_x, s_r), (v_x, v_r) = (convert(prediction, target, node, sigma_data=s) for target in ("score", "v"))
        return cls((v_x / rho, v_r / rho), (rho * s_x, rho * s_r), (v_x, v_r), trusted)


class Nodes:
    """A grid along which the flow and the trace are integrated.

    Args:
        sde: the process.
        times: of the nodes, from one end to the other.
        table: their quadrature.
        s: standard deviation of the data.

    Attributes:
        reach: for each interval the first and the last node of which something is needed to cross it.
        first: for each node the first jump that it has a share of.
        last: the last one.
        longest: step of lambda, among those within 1 of where the noise is a third of the data.
    """

    def __init__(self, sde: LinearSDE, times: tuple[float, ...], table: Quadrature, s: float) -> None:
        self.times = times
        self.table = table
        self.s = s
        self.nodes = sde.nodes(times)
        self.spreads = [spread(node, s) for node in self.nodes]
        self.reach = [reach(i, table.integrals, table.corrections) for i in range(len(times) - 1)]
        around = [[i for row in rows for i, _ in row] for rows in zip(table.shares, table.coarse_shares, strict=True)]
        self.first = [min(jumps) for jumps in around]
        self.last = [max(jumps) for jumps in around]
        self.longest = longest_step(np.array([node.lam for node in self.nodes]), s)
        self._rates: dict[str, list[Rates]] = {}

    def rates(self, prediction: str) -> list[Rates]:
        """Conversion of the network's output at each node."""
        if prediction not in self._rates:
            self._rates[prediction] = [Rates.at(node, prediction, self.s) for node in self.nodes]
        return self._rates[prediction]

    def jump(self, i: int, states: Mapping[int, Tensor], slopes: Mapping[int, Tensor]) -> Tensor:
        """From the end of the path of the slopes over interval i to the next state, in z."""
        jump = states[i] - states[i + 1]
        for j, w in self.table.integrals[i]:
            jump.add_(slopes[j], alpha=w)
        return jump


def reach(i: int, *rules: Sequence[Weights]) -> tuple[int, int]:
    """The first and the last node of which rules need something to cross interval i."""
    needed = [i, i + 1, *(j for rule in rules for j, _ in rule[i])]
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
        """The state at the last of the times; order 5."""
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


def weighted(weights: Weights, values: dict[int, Tensor]) -> Tensor | None:
    """The sum of weights times values, where there are any."""
    total: Tensor | None = None
    for j, w in weights:
        total = w * values[j] if total is None else total.add_(values[j], alpha=w)
    return total


def forget_before(first: int, held: dict[int, Tensor]) -> None:
    """Let go of what is held of nodes before the first that is needed."""
    for j in [j for j in held if j < first]:
        del held[j]


def combined(c: tuple[float, float], x: Tensor, r: Tensor) -> Tensor:
    """c_x x + c_r r."""
    c_x, c_r = c
    return (c_x * x).add_(r, alpha=c_r)


class Integrals(NodeByNode):
    r"""Streaming quadrature along the probability flow: the network as the executor calls it, node by node, with its
    traces taken and the integrands accumulated.

    Along any path z(u), $d\log p = -\operatorname{div}\,d\theta + \nabla_z\log p\cdot(dz - v/\rho\,d\theta)$ where the
    score is exact. The computed states do not lie on one trajectory of the ODE: between two nodes the path follows the
    interpolated slopes, plus what it has to jump to the next computed state. The jumps so far are interpolated through
    the nodes as well; the integral of the score along them is the defect, the first-order change of the log-density.

    The remaining error has several parts, each estimated on the same nodes, whose squares are added: the quadrature of
    the divergence (`quadrature_error`), that of the slopes, that of the score along the jumps, the share of the score
    that is not trusted, what may be wrong with the rest, and the wave of the score in pure noise. A score's error
    changes slowly from node to node, while the jumps alternate: what it does with them is bounded by the longest of
    their partial sums, each jump times the size of the score there (Abel's summation by parts); one with a wave of its
    own, as the jumps have, is seen where the score is that of pure noise. What rounding may do is told apart.

    Args:
        problem: whose network is asked.
        grid: the grid.
        rows: numbers of the samples, where these are some of the problem's.
        expected: the network's output (B, *) at the first node, from which it may differ by rounding, be it that of
            bfloat16.

    Attributes:
        off_gradient: units of what is seen of a wrong score for each that its Jacobian is off a symmetric one.
        off_prior: the same for each that it is off the prior's at the noise's end.
        fluctuation: times what the wave of a score in pure noise says of the jumps.
        aliased: see `quadrature_error`.
        first: the network's output at the first node.
    """

    off_gradient: ClassVar[float] = 1.0
    off_prior: ClassVar[float] = 0.8
    fluctuation: ClassVar[float] = 3.0
    aliased: ClassVar[float] = ALIASED
    first: Tensor
    _off_prior: Tensor

    def __init__(
        self, problem: Problem, grid: Nodes, rows: Tensor | None = None, expected: Tensor | None = None
    ) -> None:
        super().__init__(problem.model)
        self.estimate = problem.trace
        self.prior_std = problem.prior_std
        self.grid = grid
        self.rows = rows
        self.expected = expected
        self.rates = grid.rates(problem.model.score.prediction)
        self._traces: list[Tensor] = []
        self._slopes: dict[int, Tensor] = {}  # dz/dtheta of the flow
        self._states: dict[int, Tensor] = {}  # z
        self._scores: dict[int, Tensor] = {}  # in z
        self._jumps: dict[int, Tensor] = {}  # of the path in z
        self._noise = len(grid.times) - 1 if problem.to_noise else 0
        self._crossed = 0
        self._summed = 0  # nodes
        self._defect: Tensor | float = 0.0
        self._of_slopes: list[Tensor] = []  # errors (B,), an interval each
        self._of_nodes: list[Tensor] = []  # (3, B) each: of the rule, of trust and of the score's wave
        self._moved = torch.zeros_like(problem.x if rows is None else problem.x[rows]).detach()
        self._farthest = self._moved.new_zeros(len(self._moved))  # square of the largest size of the sum that is moved
        self._sensitivity = torch.zeros(2, len(self._moved), dtype=torch.float64, device=self._moved.device)

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
        self._slopes[k] = combined(rates.slope, x, r)
        self._scores[k] = combined(rates.score, x, r)
        self._states[k] = x / self.grid.spreads[k]
        with torch.no_grad():
            square = sensitivity(self._states[k], self._scores[k])
            shares = rates.trusted, 1 - rates.trusted
            self._sensitivity += torch.stack([square * share**2 for share in shares])
        if k == self._noise:
            self._off_prior = self._off_prior_at(x.detach(), self._scores[k].detach() / self.grid.spreads[k])

        self._go_on_to(k)

    def _go_on_to(self, k: int) -> None:
        """Take the jumps and sums of all intervals for which nodes up to k are enough."""
        grid = self.grid
        while self._crossed < len(grid.reach) and grid.reach[self._crossed][1] <= k:
            self._cross(self._crossed)
            self._crossed += 1
            while self._summed < len(grid.last) and grid.last[self._summed] < self._crossed:
                self._sum(self._summed)
                self._summed += 1
            self._forget()

    def _off_prior_at(self, x: Tensor, score: Tensor) -> Tensor:
        """|s - g| / |s| (B,) of the score s at states x of the noise's end, and that of the prior g; 1 at most, and 0
        where the prior is another."""
        square = dot(score, score).double()
        if self.prior_std is None:
            return torch.zeros_like(square)
        off = score + x / self.prior_std**2
        return ratio(dot(off, off).double(), square).sqrt().clamp(max=1.0)

    def _cross(self, i: int) -> None:
        """Take the jump of interval i, when all that it needs is known."""
        jump = self.grid.jump(i, self._states, self._slopes)
        self._jumps[i] = jump

        with torch.no_grad():
            ends = self.rates[i].trusted * self._scores[i] + self.rates[i + 1].trusted * self._scores[i + 1]
            off = weighted(self.grid.table.corrections[i], self._slopes)
            of_slopes = torch.zeros_like(dot(jump, jump)) if off is None else dot(ends, off) / 2
        self._of_slopes.append(of_slopes)

    def _sum(self, k: int) -> None:
        """Add what the score at node k says of the jumps around it, as far as it is trusted."""
        trusted = self.rates[k].trusted
        score = self._scores[k]
        moved = self._moved_at(k, self.grid.table.shares)
        product = dot(score, moved)
        self._defect = self._defect + trusted * product

        with torch.no_grad():
            of_rule = trusted * (dot(score, self._moved_at(k, self.grid.table.coarse_shares)) - product)
            of_trust = (1 - trusted) * product
            of_wave = trusted * dot(self._wave(k), moved)
            self._of_nodes.append(torch.stack([of_rule, of_trust, of_wave]))

            size = column(dot(score, score).sqrt(), moved)
            self._moved.addcmul_(size, moved, value=trusted)
            self._farthest = torch.maximum(self._farthest, dot(self._moved, self._moved))

    def _wave(self, k: int) -> Tensor:
        r"""The difference of the score at node k from the mean of those two nodes before and behind, as far as it is
        that of pure noise, -z.

        There the gradient of the flow's log-density is smooth, so that a wave is an error of the score; the jumps have
        the same wave, and what it says of them adds up.
        """
        score = self._scores[k]
        if k - 2 not in self._scores or k + 2 not in self._scores:
            return torch.zeros_like(score)
        off = score + self._states[k]
        unlike = LIKE_PRIOR**2 * ratio(dot(off, off), dot(score, score))
        share = 1 / (1 + unlike.square())
        before = self._scores[k - 2]
        behind = self._scores[k + 2]
        wave = score - (before + behind) / 2
        return column(share, score) * wave

    def _moved_at(self, k: int, shares: tuple[Weights, ...]) -> Tensor:
        """Share of the jumps that goes with the score at node k."""
        moved = weighted(shares[k], self._jumps)
        assert moved is not None
        return moved

    def _forget(self) -> None:
        """Let go of what no interval and no node needs any more."""
        reach = self.grid.reach[min(self._crossed, len(self.grid.reach) - 1)][0]
        first = self.grid.first[min(self._summed, len(self.grid.first) - 1)]
        for held, needed in (
            (self._slopes, reach),
            (self._states, min(reach, self._summed)),
            (self._scores, min(reach, self._summed - 2)),
            (self._jumps, first),
        ):
            forget_before(needed, held)

    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights of each node in the integral of the divergence: for each dimension, and of the trace."""
        constants, factors = np.array([rates.divergence for rates in self.rates]).T * self.grid.table.weights
        return constants, factors

    def terms(self, latent: Tensor) -> Tensor:
        """The terms of the quadrature of div dtheta, (nodes, B, columns), that of the companion the last."""
        columns = self.estimate.columns + self.estimate.companion
        constants, factors = self._factors()
        a = torch.from_numpy(constants * latent[0].numel()).to(latent)
        b = torch.from_numpy(factors).to(latent)
        traces = torch.stack([trace.mT[:columns] for trace in self._traces]).mT.to(latent.dtype)
        return a[:, None, None] + b[:, None, None] * traces

    def solution(self, latent: Tensor) -> Solution:
        """Result of the run that ended in the latent (B, *)."""
        columns = self.estimate.columns
        terms = self.terms(latent)
        seen = terms.detach().double()
        defect = self._whole_defect(latent)
        volume = terms[:, :, :columns].mean(2).sum(0) + self._scaling(latent)

        parts = self._numerical_error(seen)
        rounding = self._rounding(seen, volume.detach())
        stderr, freedom = self._probe_error(seen)
        error, *others = parts
        stated = [part.to(volume.dtype) for part in (stderr, freedom, error, rounding, defect, *others)]
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

    def _numerical_error(self, terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The error (B,) from the terms (nodes, B, columns) of the divergence, the roughness of that, and its part."""
        of_divergence, roughness = quadrature_error(
            self._divergence(terms), self.grid.table, self.grid.longest, self.aliased
        )
        of_slopes = torch.stack(self._of_slopes).double()
        of_nodes = torch.stack(self._of_nodes, 1).double()
        of_rule, of_trust, of_wave = of_nodes.sum(1)
        rough_slopes = of_slopes.square().sum(0).sqrt()
        farthest = self._farthest.double().sqrt()

        # The sum of the slopes' errors may be small by chance where they are rough: their sizes count as well.
        errors = [
            SAFETY * of_divergence,
            SAFETY * of_slopes.sum(0),
            SAFETY * of_rule,
            SAFETY * of_trust,
            self.fluctuation * of_wave,
            ROUGH_SLOPES * rough_slopes,
            WRONG_SCORE * self._wrong() * farthest,
        ]
        error = torch.stack(errors).square().sum(0).sqrt()
        if self.grid.longest > COARSE:
            error = COARSELY * error
        return error, roughness, errors[0]

    def _rounding(self, terms: Tensor, volume: Tensor) -> Tensor:
        """Error (B,) by rounding of states, of the terms (nodes, B, columns) and of the volume (B,).

        It moves a state off its path, by a jump that the score makes up for as far as it is trusted. As far as it is
        not, what it says of the jumps of all sizes is an error already; a sum of rounded ones may be small by chance,
        and their sizes count as well.
        """
        unit = rounded(volume.dtype)
        moved, untrusted = self._sensitivity.sqrt()
        of_trust = torch.stack(self._of_nodes, 1)[1].double().square().sum(0).sqrt()
        of_terms = terms[:, :, : self.estimate.columns].mean(2).square().sum(0).sqrt()
        parts = [
            unit * moved,
            torch.minimum(unit * untrusted, of_trust),
            unit * of_terms,
            unit * volume.double().abs(),
        ]
        return torch.stack(parts).square().sum(0).sqrt()

    def _divergence(self, terms: Tensor) -> Tensor:
        """Its values (nodes, B) from the terms (nodes, B, columns) of its integral, of a probe that is the same at all
        nodes, where there is one: fresh ones are rough."""
        same = self.estimate.columns + self.estimate.companion - 1
        return terms[:, :, same] / torch.from_numpy(self.grid.table.weights).to(terms)[:, None]

    def _wrong(self) -> Tensor:
        """Size of the error that the score seems to have (B,): as it is no gradient, and not the prior's where that is
        known."""
        skew = self.off_gradient * self._asymmetry()
        off = self.off_prior * self._off_prior
        return (skew.square() + off.square() + UNSEEN**2).sqrt()

    def _asymmetry(self) -> Tensor:
        """|J - J^T| / |J + J^T| of the Jacobian along the way (B,), 1 at most."""
        squares = torch.stack([trace.mT[-2:] for trace in self._traces]).detach().double().sum(0)
        skew, symmetric = squares
        return ratio(skew, symmetric).sqrt().clamp(max=1.0)

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
