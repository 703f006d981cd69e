"""The flow on a fixed grid, and on finer ones or by an adaptive solver for the samples whose error is too large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde.likelihood.checks import OnOutput
from sgm_sde.likelihood.integrals import OutputDependsOnBatch, on_grid
from sgm_sde.likelihood.nodes import NodeByNode, fixed_grid
from sgm_sde.likelihood.own_steps import CALLS_A_STEP, Ends, NormalisedFlow, by_own_steps, joint
from sgm_sde.likelihood.problem import Problem, Solution
from sgm_sde.likelihood.results import BY_CALLS, BY_ERROR, Unresolved

REFINEMENTS = (2, 4)  # times the steps
OF_ROUGH = (2, 4, 8)  # the same where the integral of the divergence is what is inexact
BY_DIVERGENCE = 0.5  # share of the error of that integral in the whole beyond which it is
REACH = 64.0  # times the tolerance: errors beyond go to the adaptive solver at once
REACH_OF_PROBES = 256.0  # the same of random probes
REACH_OF_ROUGH = 2048.0  # the same where the integral of the divergence is what is inexact
OF_CHANGE = {"grids": 0.5, "kinks": 1.0}  # share of the last change of a value that its error is at most
BY_CHANCE = {"grids": 1 / 3, "kinks": 1 / 2}  # of an error that it is at least, by chance
OF_STEPS = 1 / 6  # of the error that an adaptive solver's steps say, the standard deviation of what is left of it
AS_CHANGES = 2.0  # changes of a value that this is worth
BOUNDED = 2.3  # standard deviations of an error of which so few changes tell the size, that it is at most
FALLS = 2  # power of the step with which what kinks leave falls
SMOOTHER = 1 / 20  # the same of what only looks like kinks, where an integrand was not resolved and now is
FEW = 0.1  # share of what kinks leave in the rest of the error below which there are none
CONVERGES = 4  # power of the step with which the error falls where a change tells it: less than the order promises
UNSEEN = 0.5  # of the error of the grid before, of what is faster than both
FINER = 1 / 10  # of the tolerance, of which an adaptive solver's next run is
# Of an adaptive solver's steps, in units of the error that is asked of the value.
TOLERANCES = (0.03, 0.03 * FINER, 0.03 * FINER**2)
OF_JUMPS = (4.0, 2.0, 1.0)  # times that error: what jumps of the trace may leave, of which the next run leaves half
GAIN = 0.5  # share of the error of a sample that jumps may leave, for a run to be worth its calls
GROWS = 10 ** (1 / 5)  # factor of the calls at a tenth of a tolerance, that of a method of order 5


class Refined(NamedTuple):
    """A solution, and the samples that did not end within the tolerance."""

    solution: Solution
    unresolved: Unresolved


def exponential(
    problem: Problem,
    steps: int,
    s: float,
    tolerance: Callable[[Solution], Tensor],
    tightness: float,
    max_calls: int,
) -> Refined:
    """On a fixed grid; samples of too large an error on finer ones, and where these do not help by an adaptive solver.

    They go there alone where the network can be asked about them, else in their batch. Errors of the network's are its
    own and pass as they are. Where a sample is not finite the run ends with that grid, since it is reported for all.

    Args:
        problem: the flow.
        steps: of the first grid.
        s: standard deviation of the data.
        tolerance: from a solution to the largest error (B,) of its samples.
        tightness: the tolerance that the adaptive solver's steps are to meet, in nats/dim.
        max_calls: of the network by the adaptive solver, for each sample.
    """
    solution, first = on_grid(problem.run(0), steps, s)
    some = Some(problem, s, first, Budget(len(first), max_calls))
    if _failed(solution):
        return Refined(solution, Unresolved())

    solution, going = _on_finer_grids(solution, some, steps, tolerance)
    if not some.grad:  # which an adaptive solver has not
        solution, going = _adaptively(solution, some, going, tolerance, tightness)
    return Refined(solution, some.budget.unresolved(going))


def _on_finer_grids(
    solution: Solution, some: Some, steps: int, tolerance: Callable[[Solution], Tensor]
) -> tuple[Solution, Tensor]:
    """The solution with samples of too large an error on finer grids, and those (B,) whose error still is.

    A grid is tried where the one before says that it will arrive. With the exact trace an adaptive solver takes fewer
    calls than the second where it is states that are inexact, so that the first alone is tried, on errors within
    `REACH`. Where it is the integral, of a network that is rough in time, finer grids take fewer calls, and know their
    error. Random probes are better off on grids, where their noise averages over the nodes.
    """
    excess = _excess(solution, tolerance)
    going = excess > 1
    hopeless = excess > (REACH if some.exact else REACH_OF_PROBES)
    too_rough = excess > REACH_OF_ROUGH

    unseen = torch.zeros_like(going)
    times = torch.ones_like(excess)  # the steps of the first grid, of the last one of each
    grids = OF_ROUGH if some.exact else REFINEMENTS
    for number, finer in enumerate(grids, 1):
        trying = going if some.grad else going & ~hopeless
        if some.exact:
            rough = solution.of_divergence > BY_DIVERGENCE * solution.error
            of_rough = going & rough & ~too_rough
            trying = trying | of_rough if number == 1 else of_rough
        if not bool(trying.any()):
            break

        # What neither grid has seen one of twice the nodes would not see: they wait for the next.
        if finer < grids[-1]:
            trying = trying & ~unseen
        rows = trying.nonzero().flatten()
        if not len(rows):
            continue
        coarser = solution
        solution = solution.replaced(rows, some.on_grid(number, finer * steps, rows))
        if _failed(solution):
            return solution, torch.zeros_like(going)

        solution = some.compared_grids(coarser, solution, rows, finer / times[rows])
        times[rows] = finer
        before = excess
        excess = _excess(solution, tolerance)
        unseen = excess > UNSEEN * before

        # The next grid divides the error by what this one did.
        going = going & (excess > 1)
        hopeless = hopeless | (excess.square() > before)
    return solution, going


def _adaptively(
    solution: Solution, some: Some, going: Tensor, tolerance: Callable[[Solution], Tensor], tightness: float
) -> tuple[Solution, Tensor]:
    """The solution with some samples (B,) by an adaptive solver, and those (B,) whose error is still too large.

    A sample that does not arrive keeps what it had, and is not tried again: smaller steps do not bring it further. One
    is given up where jumps leave more than half of the error that it had, and more than the runs to come would mend.
    """
    for run, (share, of_jumps) in enumerate(zip(TOLERANCES, OF_JUMPS, strict=True), len(REFINEMENTS) + 1):
        rows = some.budget.affords(going)
        if not len(rows):
            break

        most = torch.maximum(of_jumps * tolerance(solution), GAIN * solution.stated)[rows]
        found, arrived, by_signs = some.adaptive(run, share * tightness, rows, most)
        arrivals = rows[arrived]
        coarser = solution
        solution = solution.replaced(arrivals, found.among(arrived))
        if share < TOLERANCES[0]:
            solution = some.compared_steps(coarser, solution, arrivals, by_signs[arrived])
        going = going & (_excess(solution, tolerance) > 1)
    return solution, going


def _failed(solution: Solution) -> bool:
    """True if a sample is not finite: no other grid or method makes up for a network's failure, which is reported."""
    return not all(bool(value.detach().isfinite().all()) for value in (solution.volume, solution.latent))


def _excess(solution: Solution, tolerance: Callable[[Solution], Tensor]) -> Tensor:
    """The errors (B,) in units of the tolerance; infinite where they are not known."""
    excess: Tensor = (solution.stated / tolerance(solution)).detach()
    return excess.nan_to_num(nan=torch.inf, posinf=torch.inf)


class Budget:
    """Calls of the network that the adaptive solver may make for each sample, and how its last runs on them ended.

    Args:
        n: samples.
        most: calls for each.
    """

    def __init__(self, n: int, most: int) -> None:
        self.most = most
        self._spent = np.zeros(n, dtype=np.int64)
        self._last = np.zeros(n, dtype=np.int64)  # calls of the last run
        self._arrived = np.ones(n, dtype=bool)  # in that, or not tried yet
        self._given_up = np.full(n, "", dtype=object)  # why a sample was

    def solve(self, flow: NormalisedFlow, tolerance: float, most: Tensor | None = None) -> tuple[Ends, Tensor]:
        """The other end of the flow of some samples (b,) by what calls are left to them, and which have arrived; `most`
        is what jumps of the trace may leave in their log-densities (b,)."""
        at = flow.rows.cpu().numpy()
        left = self.most - self._spent[at]
        limits = (left // CALLS_A_STEP).clip(min=1)
        ends, run = by_own_steps(flow, tolerance, tolerance, limits, most)

        self._last[at] = run.evaluations.numpy()
        self._spent[at] += self._last[at]
        self._arrived[at] = run.completed.numpy()
        self._given_up[at] = ends.given_up
        return ends, run.completed.to(flow.rows.device)

    def affords(self, going: Tensor) -> Tensor:
        """Numbers of those of some samples (n,) that may run again: they have arrived, and calls suffice."""
        able = torch.from_numpy(self._able()).to(going.device)
        return (going & able).nonzero().flatten()

    def unresolved(self, going: Tensor) -> Unresolved:
        """Numbers of some samples (n,), and names of what kept each from the tolerance."""
        by_error = np.where(self._able(), BY_ERROR, BY_CALLS)
        reasons = np.where(self._given_up != "", self._given_up, by_error)
        rows = going.nonzero().flatten().cpu().numpy()
        return Unresolved(tuple(rows.tolist()), tuple(reasons[rows].tolist()))

    def _able(self) -> np.ndarray:
        """Mask of the samples (n,) that have arrived, and on which another run, at a tenth of the tolerance, is within
        the calls."""
        enough = self._spent + GROWS * self._last <= self.most
        able: np.ndarray = self._arrived & enough
        return able


class Some:
    """Solves for some samples of a batch, and for these alone where the network allows that.

    Attributes:
        alone: whether the network is asked about them alone.
        grad: whether gradients are wanted, which an adaptive solver has not.
        exact: whether their trace is exact, and an adaptive solver may follow.
    """

    def __init__(self, problem: Problem, s: float, first: Tensor, budget: Budget) -> None:
        self.problem = problem
        self.budget = budget
        self.s = s
        self.first = first
        self.alone = problem.model.takes_some(len(problem.x))
        self.grad = torch.is_grad_enabled()
        self.exact = problem.trace.fixed is None and not self.grad
        self.last_change = problem.x.new_zeros(len(problem.x))  # of the values, on the grid before

    def on_grid(self, number: int, steps: int, rows: Tensor) -> Solution:
        """On one fixed grid, by a run of this number."""
        if self.alone:
            try:
                return on_grid(self.problem.run(number), steps, self.s, rows, expected=self.first[rows])[0]
            except OutputDependsOnBatch:
                self.alone = False
        return on_grid(self.problem.run(number), steps, self.s, rows, alone=False)[0]

    def adaptive(self, number: int, tolerance: float, rows: Tensor, most: Tensor) -> tuple[Solution, Tensor, Tensor]:
        """By steps of each sample's own, by a run of this number, which samples have arrived, and what signs have taken
        off their errors (b,); `most` is what jumps of the trace may leave (b,)."""
        problem = self.problem.run(number, constant=True)
        flow = NormalisedFlow(problem, self.s, rows=rows, alone=self.alone)
        ends, arrived = self.budget.solve(flow, tolerance, most)
        assert ends.by_signs is not None
        return joint(ends), arrived, ends.by_signs

    def compared_grids(self, before: Solution, after: Solution, rows: Tensor, finer: Tensor) -> Solution:
        """The solution with the errors of some rows in the light of those on a grid of fewer steps, by factors (b,).

        What kinks leave falls with the square of the step at least, whatever the rules say of its size: no more is left
        than the value has changed, or a quarter of the change before, since one may be small by chance. Where there are
        none, and the error falls as the order promises, the change is the error of the grid before, and leaves little
        on this.
        """
        if self.problem.trace.fixed is not None:
            return after

        change = self._change(before, after)[rows]
        left = change.maximum(self.last_change[rows] / finer**FALLS)
        self.last_change[rows] = change

        kinks = after.of_kinks[rows]
        smooth = (after.error[rows].square() - kinks.square()).clamp(min=0.0).sqrt()
        capped = _at_most(kinks, left, "kinks")
        error = torch.hypot(smooth, capped)

        promised = before.error[rows] / finer**CONVERGES
        resolved = (kinks < FEW * smooth) | (kinks < SMOOTHER * before.of_kinks[rows])
        converges = resolved & (error < promised)
        lowered = _at_most(error, change, "grids")
        error = torch.where(converges, lowered, error)
        return after.with_errors(rows, error)

    def compared_steps(self, before: Solution, after: Solution, rows: Tensor, by_signs: Tensor) -> Solution:
        """The solution with the errors of some rows in the light of an adaptive solver's at ten times the tolerance.

        What signs have taken off an error (b,) tells of the same as the change: the two do not add up.
        """
        if self.problem.trace.fixed is not None:
            return after
        change = self._change(before, after)[rows]
        stated = after.error[rows]
        error = stated.minimum(error_of_finer_steps(stated + by_signs, change))
        return after.with_errors(rows, error.maximum(after.of_kinks[rows]))  # jumps cancel by chance

    def _change(self, before: Solution, after: Solution) -> Tensor:
        """Sizes (B,) of the change of the log-densities, which random probes would bury in their noise."""
        with torch.no_grad():
            first, second = (self.problem.at_noise(one.latent) + one.volume for one in (before, after))
            return (second - first).abs().to(after.error.dtype)


def error_of_finer_steps(stated: Tensor, change: Tensor) -> Tensor:
    r"""Error (B,) of an adaptive solver's values, from that E which its steps say and their change e' by a tenth of the
    tolerance.

    The change is about the error before, which falls as the tolerance does. It is one number of unknown sign, small by
    chance as often as not, so that what the steps say counts beside it, as two such numbers:

    $$ \min\Big(E,\ 2.3\,\Big(\frac{2\,(E/6)^2 + (e'/10)^2}{3}\Big)^{1/2}\Big) $$
    """
    squares = AS_CHANGES * (OF_STEPS * stated).square() + (FINER * change).square()
    spread = (squares / (AS_CHANGES + 1)).sqrt()
    return stated.minimum(BOUNDED * spread)


def _at_most(error: Tensor, change: Tensor, of: str) -> Tensor:
    """Errors (B,) brought down to their share of a change (B,), but for what that may be too small by chance."""
    return error.minimum(OF_CHANGE[of] * change).maximum(BY_CHANCE[of] * error)


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


def revisit(problem: Problem, steps: int, s: float, refine: bool, on_output: OnOutput) -> None:
    """Walk along the grids of `exponential` again, those that it may refine to included."""
    for finer in (1, *(OF_ROUGH if refine else ())):
        grid = fixed_grid(problem.sde, problem.eps, finer * steps, s, problem.to_noise)
        grid.carry(Watched(problem, grid.times, on_output), problem.x)
