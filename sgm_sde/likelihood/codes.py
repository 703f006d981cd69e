r"""States at the other end of the flow with their error, and steps of their own for those whose error is too large.

On a grid the path from node to node is that of the slopes through six nodes. With what rules of eight add to an
interval, $r_i$, of ten to that, $r'_i$, the roots R and R' of the sums of their squares, and the farthest that a state
lies from the path, D, the error of the end in $z = x/\rho$ is of the size

$$ \big((8R)^2 + (2.5\,D\,u^4)^2\big)^{1/2}, \qquad u = \min(1, R'/R), $$

root mean square over the numbers of a sample, with rounding added in squares.

Where slopes are resolved, $R' \ll R$, states lie off the path on both sides in turn, which cancels; where they are not,
slopes are as wrong as they are far from it. On the way of an adaptive solver errors grow (`own_steps.StateStepper`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde._utils.shapes import dimension, row_sums
from sgm_sde.engine.adaptive import rms
from sgm_sde.likelihood.errors import rounded, share_unresolved
from sgm_sde.likelihood.grid import WIDE
from sgm_sde.likelihood.nodes import Crossing, GridFlow, reach, weighted
from sgm_sde.likelihood.own_steps import Ends, NormalisedFlow
from sgm_sde.likelihood.problem import Problem
from sgm_sde.likelihood.refinement import Budget
from sgm_sde.likelihood.results import Unresolved

OF_REST = 8.0  # times what rules of more slopes add
OFF_PATH = 2.5  # times the distance of a state from the path of the slopes, where these are not resolved
IN_SPREADS = 10.0  # times a tolerance in nats/dim, that of a state in units of its spread
TOLERANCES = (0.01, 0.001, 0.0001)  # of an adaptive solver's steps, in units of that of a state


class Carried(NamedTuple):
    """States (B, *) at the other end, their errors (B,) in units of the state, and the times of a shared grid.

    Attributes:
        unresolved: samples whose error did not come down to the tolerance.
    """

    x: Tensor
    error: Tensor
    times: tuple[float, ...]
    unresolved: Unresolved = Unresolved()


class _Path(Crossing):
    """A network as the executor calls it along a grid, with what its slopes tell of the error of the last state."""

    def __init__(self, problem: Problem, grid: GridFlow) -> None:
        table = grid.table
        self.rules = table.corrections[:2]
        reaches = [reach(i, table.integrals, *self.rules) for i in range(len(grid.times) - 1)]
        super().__init__(problem.model, grid, reaches)
        self._off = torch.zeros_like(problem.x.detach())  # of the state from the path
        self._farthest = row_sums(self._off)
        self._rest = torch.stack([self._farthest, self._farthest])  # sums of squares, of the two rules

    def _cross(self, i: int) -> None:
        """Add the jump of interval i, and what rules of more slopes do."""
        self._off += self.grid.jump(i, self._states, self._slopes)
        self._farthest = torch.maximum(self._farthest, row_sums(self._off.square()))

        for total, rule in zip(self._rest, self.rules, strict=True):
            added = weighted(rule[i], self._slopes)
            if added is not None:
                total += row_sums(added.square())

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at the state of the next node."""
        out = self.model.output(x, t)
        with torch.no_grad():
            self._take(x, out.to(x.dtype))
        return out

    def error(self, end: Tensor) -> Tensor:
        """Error (B,) of the last state (B, *), in its units."""
        R, R_of_more = self._rest.sqrt()
        off = self._farthest.sqrt() * share_unresolved(R, R_of_more)
        size = row_sums((end / self.grid.spreads[-1]).square()).sqrt()
        parts = torch.stack([OF_REST * R, OFF_PATH * off, rounded(end.dtype) * size])
        error = parts.square().sum(0).sqrt() / dimension(end) ** 0.5
        return self.grid.spreads[-1] * error


def on_grid(problem: Problem, grid: GridFlow) -> Carried:
    """The other end on one grid."""
    path = _Path(problem, grid)
    end = grid.carry(path, problem.x)
    return Carried(end, path.error(end.detach()), grid.times)


def refined(found: Carried, problem: Problem, s: float, atol: float, rtol: float, max_calls: int) -> Carried:
    """The same with samples of too large an error by steps of their own, at smaller and smaller tolerances.

    Args:
        found: on a grid.
        problem: the flow.
        s: standard deviation of the data.
        atol: a tenth of the largest error of a state, in units of the spread that data of that standard deviation have;
            or of a tenth of its size for a state that is wider, for which the grid is not made.
        rtol: the same, as a share of the state.
        max_calls: of the network for each sample.
    """
    x, error = found.x, found.error
    flow = NormalisedFlow(problem, s)
    first, last = flow.ends
    spread = float(flow.scale[last])
    size = rms(x.detach())
    absolute = atol * (size / WIDE).clamp(min=spread)
    relative = rtol * size
    tolerance = IN_SPREADS * (absolute + relative)

    before = rms(problem.x.detach())
    wide_at_first = before > WIDE * float(flow.scale[first])
    wide_at_last = size > WIDE * spread
    wide = wide_at_first | wide_at_last
    inexact = ~(error <= tolerance)

    budget = Budget(len(x), max_calls)
    going = wide | inexact
    alone = problem.model.takes_some(len(x))
    # An adaptive solver has no gradients, and what is not finite is reported for all.
    shares = TOLERANCES if not torch.is_grad_enabled() and bool(size.isfinite().all()) else ()
    for share in shares:
        rows = budget.affords(going)
        if not len(rows):
            break

        some = NormalisedFlow(problem, s, rows=rows, alone=alone)
        step = IN_SPREADS * share * max(atol, rtol)
        ends, arrived = budget.solve(some, step)

        arrivals = rows[arrived]
        x = x.index_copy(0, arrivals, ends.x[arrived])
        errors = error_of(ends)
        error = error.index_copy(0, arrivals, errors[arrived])
        going = going & ~(error <= tolerance)
    return Carried(x, error, found.times, budget.unresolved(going))


def error_of(ends: Ends) -> Tensor:
    """Error (b,) of the states at the end of an adaptive solve, in their units."""
    return torch.hypot(ends.errors, rounded(ends.x.dtype) * rms(ends.x.detach()))
