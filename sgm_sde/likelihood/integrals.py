r"""The flow's change of volume on one fixed grid, by quadrature along the nodes.

States on a grid lie on no single trajectory; the score says what their jumps from one to another do to the log-density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.shapes import column, dot
from sgm_sde.likelihood.errors import (
    ALIASED,
    AT_A_TIME,
    COARSE,
    of_kinks,
    plausible_share,
    probe_error,
    quadrature_error,
    ratio,
    rounded,
    sensitivity,
)
from sgm_sde.likelihood.multistep import Weights
from sgm_sde.likelihood.nodes import Crossing, Nodes, combined, fixed_grid, forget_before, weighted
from sgm_sde.likelihood.problem import FLAT, Problem, Solution
from sgm_sde.likelihood.trace import BLOCK, some_of

SAFETY = 1.5  # of the estimated error of a grid
ROUGH_SLOPES = 2.0  # of what a rule of more slopes adds to each interval, in the root of the squares
WRONG_SCORE = 4.0  # share of the score that may be wrong, for each unit of what is seen of that
UNSEEN = 0.0025  # units where nothing is seen
MOST_NOISE = 0.4  # that a noise estimate is taken to be off in the middle, which may be further off by the data
SKEW = 0.2  # asymmetry from which probes tell their noise by their spread alone
COARSELY = 1.5  # times the error of a grid that is coarse
BENT = 0.4  # of what the score changes over a jump, along it, in the mean over directions
UNBOUNDED = 1e30  # slope of a slope that nothing tells
LIKE_PRIOR = 20.0  # reciprocal of the distance of a score from that of pure noise, up to which its wave is told


class OutputDependsOnBatch(ValueError):
    """The network says something else of some samples alone than of them in their batch."""


class Integrals(Crossing):
    r"""Streaming quadrature along the probability flow: the network as the executor calls it, node by node, with its
    traces taken and the integrands accumulated.

    Along any path z(u), $d\log p = -\operatorname{div}\,d\theta + \nabla_z\log p\cdot(dz - v/\rho\,d\theta)$ where the
    score is exact. The computed states do not lie on one trajectory of the ODE: between two nodes the path follows the
    interpolated slopes, plus what it has to jump to the next computed state. The jumps so far are interpolated through
    the nodes as well; the integral of the score along them is the defect, the first-order change of the log-density.

    The remaining error has several parts, each estimated on the same nodes, whose squares are added: the quadrature of
    the divergence (`quadrature_error`), that of the slopes, what kinks of both leave, that of the score along the
    jumps, the share of the score that is not trusted, what may be wrong with the rest, the wave of the score in pure
    noise, and what the score changes over the jumps. A score's error
    changes slowly from node to node, while the jumps alternate: what it does with them is bounded by the longest of
    their partial sums, each jump times the size of the score there and of pure noise (Abel's summation by parts); one
    with a wave of its own, as the jumps have, is seen where the score is that of pure noise. What rounding may do is
    told apart.

    Args:
        problem: whose network is asked.
        grid: the grid.
        rows: numbers of the samples, where these are some of the problem's.
        alone: whether the network is asked about these alone; else about their whole batch.
        expected: the network's output (B, *) at the first node, from which it may differ by rounding, be it that of
            bfloat16.

    Attributes:
        off_gradient: units of what is seen of a wrong score for each that its Jacobian is off a symmetric one.
        off_prior: the same for each that it is off the prior's at the noise's end.
        off_noise: times what a noise estimate that is off by the data, and as much elsewhere, does along the jumps.
        fluctuation: times what the wave of a score in pure noise says of the jumps.
        aliased: see `quadrature_error`.
        kinked: times what kinks seem to leave.
        first: the network's output at the first node.
    """

    off_gradient: ClassVar[float] = 1.0
    off_prior: ClassVar[float] = 0.8
    off_noise: ClassVar[float] = 2.0
    fluctuation: ClassVar[float] = 3.0
    aliased: ClassVar[float] = ALIASED
    kinked: ClassVar[float] = 1.0
    first: Tensor
    _off_prior: Tensor

    def __init__(
        self,
        problem: Problem,
        grid: Nodes,
        rows: Tensor | None = None,
        alone: bool = True,
        expected: Tensor | None = None,
    ) -> None:
        super().__init__(problem.model, grid)
        self.estimate = problem.trace
        self.prior_std = problem.prior_std
        self.asked = rows if alone else None  # None for the batch
        self.seen = None if alone else rows  # rows of what the network says; None for all
        self.expected = expected
        self._traces: list[Tensor] = []
        self._scores: dict[int, Tensor] = {}  # in z
        self._jumps: dict[int, Tensor] = {}  # of the path in z
        self._noise = len(grid.times) - 1 if problem.to_noise else 0
        self._d = problem.d
        self._summed = 0  # nodes
        self._defect: Tensor | float = 0.0
        self._of_slopes: list[Tensor] = []  # what each rule of more slopes adds, (rules, B), an interval each
        self._of_nodes: list[Tensor] = []  # (4, B) each: of the rule, of trust, of the score's wave, squares of moves
        self._noises = [node.sigma / rho for node, rho in zip(grid.nodes, grid.spreads, strict=True)]
        x = problem.x.detach()
        if rows is not None:
            x = x[rows]
        by_score = torch.zeros_like(x)
        by_noise = torch.zeros_like(x)
        self._moved = by_score, by_noise  # sums of the jumps
        self._farthest = x.new_zeros(2, len(x))  # squares of their largest sizes
        self._sizes: list[Tensor] = []  # (2, B) each: squares of the score's size, and of what rounding does with it

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at the state of the next node.

        Raises:
            OutputDependsOnBatch: where the first is not what is expected.
        """
        out, trace = self.model.with_trace(x, t, self.estimate, self.asked, self.seen)
        if not self._traces:
            self._require_expected(out)
            self.first = out.detach().clone()
        self._traces.append(trace)
        self._take(some_of(x, self.seen), some_of(out, self.seen).to(x.dtype))
        return out

    def _require_expected(self, out: Tensor) -> None:
        if self.expected is None:
            return
        expected = self.expected.double()
        off = (out - self.expected).detach().double()
        if bool((dot(off, off) > 0.05**2 * dot(expected, expected)).any()):
            raise OutputDependsOnBatch("for some samples the network's output is not what it was in their batch")

    def _hold(self, k: int, x: Tensor, r: Tensor) -> None:
        """Keep the score at node k as well, and what rounding does there."""
        rates = self.rates[k]
        self._scores[k] = combined(rates.score, x, r)
        super()._hold(k, x, r)
        with torch.no_grad():
            score = self._scores[k]
            self._sizes.append(torch.stack([dot(score, score), sensitivity(self._states[k], score)]))
        if k == self._noise:
            self._off_prior = self._off_prior_at(x.detach(), self._scores[k].detach() / self.grid.spreads[k])

    def _off_prior_at(self, x: Tensor, score: Tensor) -> Tensor:
        """|s - g| / |s| (B,) of the score s at states x of the noise's end, and that of the prior g; 1 at most, and 0
        where the prior is another."""
        square = dot(score, score).double()
        if self.prior_std is None:
            return torch.zeros_like(square)
        off = score + x / self.prior_std**2
        return ratio(dot(off, off).double(), square).sqrt().clamp(max=1.0)

    def _cross(self, i: int) -> None:
        """Take the jump of interval i, and the sums at nodes for which it was wanting."""
        jump = self.grid.jump(i, self._states, self._slopes)
        self._jumps[i] = jump

        with torch.no_grad():
            trusted = self.rates[i].trusted, self.rates[i + 1].trusted
            ends = combined(trusted, self._scores[i], self._scores[i + 1])
            added = [weighted(rule[i], self._slopes) for rule in self.grid.table.corrections]
            nothing = torch.zeros_like(dot(jump, jump))
            of_slopes = [nothing if off is None else dot(ends, off) / 2 for off in added]
        self._of_slopes.append(torch.stack(of_slopes))

        last = self.grid.last
        while self._summed < len(last) and last[self._summed] <= i:
            self._sum(self._summed)
            self._summed += 1

    def _sum(self, k: int) -> None:
        """Add what the score at node k says of the jumps around it, as far as it is trusted."""
        trusted = self.rates[k].trusted
        score = self._scores[k]
        moved = self._moved_at(k, self.grid.table.shares)
        product = dot(score, moved)
        self._defect = self._defect + trusted * product

        with torch.no_grad():
            coarse = self._moved_at(k, self.grid.table.coarse_shares)
            of_coarse = dot(score, coarse)
            of_rule = trusted * (of_coarse - product)
            of_trust = (1 - trusted) * product
            square = dot(score, score)
            of_wave = trusted * self._along_wave(k, square, moved)
            self._of_nodes.append(torch.stack([of_rule, of_trust, of_wave, dot(moved, moved)]))

            # An error does not vanish with the score: beside it counts the size of that of pure noise.
            size = column((square + self._d).sqrt(), moved)
            of_score, of_noise = self._moved
            of_score.addcmul_(size, moved, value=trusted)
            of_noise.add_(moved, alpha=trusted / self._noises[k])
            squares = [
                dot(of_score, of_score),
                dot(of_noise, of_noise),
            ]
            self._farthest = torch.maximum(self._farthest, torch.stack(squares))

    def _along_wave(self, k: int, square: Tensor, moved: Tensor) -> Tensor:
        r"""The inner product (B,) of a move with the wave of the score at node k, as far as that is pure noise, -z.

        The wave is the score's difference from the mean of those two nodes before and behind; `square` is $|s|^2$.
        There the gradient of the flow's log-density is smooth, so that a wave is an error of the score; the jumps have
        the same wave, and what it says of them adds up.
        """
        score = self._scores[k]
        if k - 2 not in self._scores or k + 2 not in self._scores:
            return torch.zeros_like(square)
        off = score + self._states[k]
        unlike = LIKE_PRIOR**2 * ratio(dot(off, off), square)
        around = self._scores[k - 2] + self._scores[k + 2]
        wave = around.mul_(-0.5).add_(score)
        return dot(wave, moved) / unlike.square_().add_(1)

    def _moved_at(self, k: int, shares: tuple[Weights, ...]) -> Tensor:
        """Share of the jumps that goes with the score at node k."""
        moved = weighted(shares[k], self._jumps)
        assert moved is not None
        return moved

    def _forget(self) -> None:
        """Let go of what no later interval and no node needs."""
        super()._forget()
        first = self.grid.first[min(self._summed, len(self.grid.first) - 1)]
        forget_before(first, self._jumps)
        forget_before(self._summed - 2, self._scores)

    def _oldest_state(self) -> int:
        """The first node whose state is still needed, be it for the wave of its score."""
        return min(self._crossed, self._summed)

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

        plausible = self._plausible()
        parts = self._numerical_error(seen, plausible)
        rounding = self._rounding(seen, volume.detach(), plausible)
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

    def _numerical_error(self, terms: Tensor, plausible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The error (B,) from the terms (nodes, B, columns) of the divergence and the plausible shares (nodes, B) of
        the scores, what of it are kinks, and with them the part of the divergence."""
        of_divergence, kinks = quadrature_error(
            self._divergence(terms), self.grid.table, self.grid.longest, self.aliased
        )
        kinks = self.kinked * torch.hypot(kinks, of_kinks(torch.stack(self._of_slopes, 1).double()))
        of_slopes, squares_of_slopes = _sums([added[0] for added in self._of_slopes])
        (of_rule, _, of_wave, _), _ = _sums(self._of_nodes)
        of_trust = self._said_untrusted(plausible).sum(0)
        rough_slopes = squares_of_slopes.sqrt()
        farthest, farthest_of_noise = self._farthest.double().sqrt()

        # The sum of the slopes' errors may be small by chance where they are rough: their sizes count as well.
        errors = [
            SAFETY * of_divergence,
            SAFETY * of_slopes,
            SAFETY * of_rule,
            SAFETY * of_trust,
            self.fluctuation * of_wave,
            ROUGH_SLOPES * rough_slopes,
            WRONG_SCORE * self._wrong() * farthest,
            self.off_noise * self._wrong_noise(plausible) * farthest_of_noise,
            BENT * self._bent(),
            kinks,
        ]
        error = torch.stack(errors).square().sum(0).sqrt()
        if self.grid.longest > COARSE:
            error = COARSELY * error
        return error, kinks, torch.hypot(errors[0], kinks)

    def _rounding(self, terms: Tensor, volume: Tensor, plausible: Tensor) -> Tensor:
        """Error (B,) by rounding of states, of the terms (nodes, B, columns) and of the volume (B,), with the plausible
        shares (nodes, B) of the scores.

        It moves a state off its path, by a jump that the score makes up for as far as it is trusted. As far as it is
        not, what it says of the jumps of all sizes is an error already; a sum of rounded ones may be small by chance,
        and their sizes count as well.
        """
        unit = rounded(volume.dtype)
        sensitivities = torch.stack([sensitive for _, sensitive in self._sizes]).double()
        trusted = torch.tensor([rates.trusted for rates in self.rates], dtype=torch.float64).to(sensitivities)[:, None]
        shares = torch.stack([trusted.expand_as(plausible), (1 - trusted) * plausible])
        moved, untrusted = (shares.square() * sensitivities).sum(1).sqrt()
        of_trust = self._said_untrusted(plausible).square().sum(0).sqrt()
        of_terms = terms[:, :, : self.estimate.columns].mean(2).square().sum(0).sqrt()
        parts = [
            unit * moved,
            torch.minimum(unit * untrusted, of_trust),
            unit * of_terms,
            unit * volume.double().abs(),
        ]
        return torch.stack(parts).square().sum(0).sqrt()

    def _said_untrusted(self, plausible: Tensor) -> Tensor:
        """Products (nodes, B) of the untrusted shares of the scores and the jumps at each node."""
        said = torch.stack([of_trust for _, of_trust, *_ in self._of_nodes])
        return said.double() * plausible

    def _bent(self) -> Tensor:
        """Sum (B,) over the nodes of what the score changes over each jump, along it: one that is long beside what is
        near goes elsewhere than the score says."""
        pairs = zip(self.grid.spreads, self.rates, strict=True)
        rates = [(rho * rate.score[0], rho * rate.score[1]) for rho, rate in pairs]
        columns = self.estimate.columns
        changes = sizes_of_jacobians(rates, self._traces, columns, self._d, 0.0)

        moved = [square for *_, square in self._of_nodes]
        squares = torch.stack(moved).double()
        total = (changes * squares).sum(0)
        return total / self._d**0.5

    def _plausible(self) -> Tensor:
        """Share (nodes, B) of the score at each node that may be the flow's own; see `plausible_share`."""
        trusted = [rates.trusted for rates in self.rates]
        sizes = torch.stack([size for size, _ in self._sizes]).double().sqrt()
        growth = self._growth()
        d = self._d
        if self._noise == 0:
            return plausible_share(sizes, growth, trusted, d)
        return plausible_share(sizes.flip(0), growth.flip(0), trusted[::-1], d).flip(0)

    def _growth(self) -> Tensor:
        """Integrals (nodes - 1, B) in theta of the size of the Jacobian of the slope."""
        theta = [math.atan2(1.0, self.grid.s * math.exp(min(node.lam, FLAT))) for node in self.grid.nodes]
        rates = [rate.divergence for rate in self.rates]
        size = sizes_of_jacobians(rates, self._traces, self.estimate.columns, self._d, UNBOUNDED)
        steps = torch.tensor(theta, dtype=torch.float64).diff().abs().to(size)
        return steps[:, None] * (size[1:] + size[:-1]) / 2

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

    def _wrong_noise(self, plausible: Tensor) -> Tensor:
        """Root mean square (B,) of what the noise estimate is off by the data, in d dimensions over d, where the shares
        (nodes, B) of the score that are plausible say so."""
        squares = torch.stack([square for square, _ in self._sizes]).double()
        noises = squares.new_tensor(self._noises)[:, None]
        off = (1 - plausible) * noises * squares.sqrt()
        largest = off.amax(0) / self._d**0.5
        return largest.clamp(max=MOST_NOISE) / self._d

    def _asymmetry(self) -> Tensor:
        """|J - J^T| / |J + J^T| of the Jacobian along the way (B,), 1 at most."""
        (skew, symmetric), _ = _sums([trace.detach().mT[-2:] for trace in self._traces])
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


def sizes_of_jacobians(
    rates: Sequence[tuple[float, float]], traces: Sequence[Tensor], columns: int, d: int, unknown: float
) -> Tensor:
    """Frobenius norms (nodes, B) of c_x + c_r J at nodes with coefficients (c_x, c_r), from `traces`, what is known
    there of the Jacobian J of the network's output in d dimensions; `unknown` where nothing tells it."""
    c_x, c_r = torch.tensor(rates, dtype=torch.float64, device=traces[0].device)[:, :, None].unbind(1)
    blocks = max(1.0, d / BLOCK)  # of which an exact trace has seen the first alone
    known = [trace.detach().mT for trace in traces]
    skew, symmetric = (torch.stack([rows[k] for rows in known]).double() for k in (-2, -1))
    of_J = (skew + symmetric) * (blocks**2 / 4)
    product = torch.stack([rows[:columns] for rows in known]).double().mean(1)

    square = c_r**2 * of_J + 2 * c_x * c_r * product + d * c_x**2
    size = square.clamp_(min=0.0).sqrt_()
    return torch.where(of_J > 0, size, unknown)


def _sums(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sums (*, B) over nodes of values (*, B) each, and of their squares, in float64, of some samples at a time."""
    of_nodes = torch.stack(list(values))
    step = max(1, AT_A_TIME * of_nodes.shape[-1] // max(1, of_nodes.numel()))
    sums = []
    squares = []
    for some in torch.split(of_nodes, step, -1):
        double = some.double()
        sums.append(double.sum(0))
        squares.append(double.square().sum(0))
    return torch.cat(sums, -1), torch.cat(squares, -1)


def on_grid(
    problem: Problem,
    steps: int,
    s: float,
    rows: Tensor | None = None,
    alone: bool = True,
    expected: Tensor | None = None,
) -> tuple[Solution, Tensor]:
    """On one fixed grid, where the trace is a quadrature over the nodes of the trajectory; and the first output.

    From the noise to the data the volume has the other sign: it is what the density loses. `rows`, `alone` and
    `expected` are as in `Integrals`.
    """
    grid = fixed_grid(problem.sde, problem.eps, steps, s, problem.to_noise)
    integrals = Integrals(problem, grid, rows, alone, expected)
    latent = grid.carry(integrals, some_of(problem.x, integrals.asked))
    return integrals.solution(some_of(latent, integrals.seen)), integrals.first
