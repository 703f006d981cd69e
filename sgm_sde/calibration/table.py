"""A solver of fitted numbers: noise levels, and what each row takes of the noise and of all estimates before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from sgm_sde._utils.checks import numbers
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.calibration.network import check_network, is_process
from sgm_sde.engine.node import Process
from sgm_sde.engine.program import Form, Step
from sgm_sde.engine.times import same_time
from sgm_sde.grids import Grid, GridRule
from sgm_sde.identity import Value
from sgm_sde.processes.base import SDE
from sgm_sde.schemes.base import Solver
from sgm_sde.scores.score import Score


@dataclass(frozen=True)
class Table(Value):
    r"""The rows of a calibrated solver, in the coordinates y = x / alpha and s = sigma / alpha.

    $$ y_k = c_k\,z + \sum_{j<k} b_{kj} D_j, \qquad D_k = D(y_k, s_k), \qquad k = 0, \dots, n $$

    with the standard normal noise z, the denoised data D, and the sample $y_n$. The first call is at $y_0 = s_0 z$.

    Args:
        levels: the noise levels $s_0 > \dots > s_{n-1}$ of the network calls.
        scales: $c_0 = s_0, c_1, \dots, c_n$; all but the last are positive.
        weights: the rows $b_k$, k numbers for $k = 1, \dots, n$.

    Raises:
        ValueError: for rows of another length, levels that do not decrease, or numbers that are not finite.

    Examples:
        >>> Table((10.0, 1.0), (10.0, 1.0, 0.0), ((0.9,), (0.0, 1.0))).nfe
        2
    """

    levels: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for name in ("levels", "scales"):
            object.__setattr__(self, name, tuple(numbers(name, getattr(self, name)).tolist()))
        rows = tuple(tuple(numbers("a row of weights", row).tolist()) for row in self.weights)
        object.__setattr__(self, "weights", rows)
        n = len(self.levels)
        if not n or len(self.scales) != n + 1 or [len(row) for row in rows] != list(range(1, n + 1)):
            raise ValueError(
                f"{n} levels go with {n + 1} scales and rows of 1 to {n} weights, got {len(self.scales)} scales and "
                f"rows of {[len(row) for row in rows]}"
            )
        if not (all(a > b for a, b in pairwise(self.levels)) and self.levels[-1] > 0):
            raise ValueError(f"the levels must be positive and decrease, got {self.levels}")
        if min(self.scales[:-1]) <= 0 or not math.isclose(self.scales[0], self.levels[0], rel_tol=1e-9):
            raise ValueError(f"the scales of states must be positive, the first that of its level, got {self.scales}")

    @property
    def nfe(self) -> int:
        """Number of network calls."""
        return len(self.levels)


@dataclass(frozen=True)
class FittedLevels(GridRule):
    """The noise levels of a table, and eps, where its sample stands.

    Args:
        levels: noise levels sigma / alpha, decreasing.
    """

    levels: tuple[float, ...]
    of_noise_levels: ClassVar[bool] = True

    def __call__(self, sde: SDE, steps: int, t_start: float | None = None, t_end: float | None = None) -> Grid:
        """The grid, whose number of steps and ends are the table's.

        Raises:
            ValueError: for another number of steps, or other ends than the process'.
        """
        if steps != len(self.levels):
            raise ValueError(f"the table was fitted for {len(self.levels)} steps of one network call, got {steps}")
        if t_end is not None and not same_time(t_end, sde.eps):
            raise ValueError(f"the table was fitted for an end at eps={sde.eps}, got t_end={t_end}")
        if t_start is not None and not same_time(t_start, sde.T):
            raise ValueError(f"the table was fitted for noise at T={sde.T}, got t_start={t_start}")
        times = self.place(sde, cpu_float64(0.0), sde.T, sde.eps)
        return Grid([*times.tolist(), sde.eps])

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """The times of the levels; u says nothing."""
        times: Tensor = sde.time(-2 * cpu_float64(self.levels).log())
        return times

    def __repr__(self) -> str:
        return f"FittedLevels({self.levels[0]:.4g} to {self.levels[-1]:.4g})"


@dataclass(frozen=True, repr=False)
class Calibrated(Solver):
    r"""Solver whose table was fitted to one network, one process and one number of calls; made by `calibrate`.

    $$ y_k = \frac{c_k}{c_{k-1}}\,y_{k-1} + \sum_{j<k} \Bigl(b_{kj} - \frac{c_k}{c_{k-1}} b_{k-1,j}\Bigr) D_j $$

    in y = x / alpha, which is the row of `Table` written from the state before, so that what moves a state, such as a
    corrector, moves those after it. One call per step, and none after the last: its state is the sample.

    Args:
        table: the rows.
        process: JSON of the process' `spec`, for which it was fitted; "" for any.
        network: the identity of the network that it was fitted to, as JSON; "" for any.

    Raises:
        ValueError: on another process, another number of calls, or a grid of other levels.

    Warns:
        CalibrationWarning: on a network of other weights, or with another guidance.

    Source: the family is that of Shaul et al., 2024, arXiv:2403.01329 (non-stationary solvers), with a first call that
    moves and rows that may be constrained; how it is fitted is this library's.

    Examples:
        >>> import sgm_sde as sg
        >>> from sgm_sde.calibration.network import process_of
        >>> sde = sg.EDMSDE()
        >>> table = Table((10.0, 1.0), (10.0, 1.0, 0.0), ((0.9,), (0.0, 1.0)))
        >>> Calibrated(table, process_of(sde)).compile(sde, Calibrated(table).default_grid(sde)(sde, 2)).nfe
        2
    """

    lags = True  # a fit minds where it ends, not what its states are on the way

    table: Table
    process: str = field(default="", repr=False)
    network: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """With its number of calls."""
        return f"calibrated{self.table.nfe}"

    @property
    def order(self) -> int:
        """1 where rows are constrained to be exact for a constant estimate; more is not claimed."""
        return 1

    @property
    def prediction(self) -> str:
        """The denoised data."""
        return "data"

    @property
    def source(self) -> str:
        """Origin of the method."""
        return "fitted to a network; family of Shaul et al., 2024, arXiv:2403.01329"

    @property
    def ends_in_data(self) -> bool:
        """Yes: the last row is the sample."""
        return True

    @property
    def budget(self) -> int:
        """Number of network calls of the table."""
        return self.table.nfe

    def fit(self, nfe: int) -> tuple[Solver, int]:
        """Itself and its number of steps, for its own budget alone."""
        if nfe != self.table.nfe:
            raise ValueError(f"{self.name} was fitted for nfe={self.table.nfe} network calls, got {nfe}")
        return self, self.table.nfe

    def default_grid(
        self, sde: SDE, steps: int | None = None, t_start: float | None = None, t_end: float | None = None
    ) -> GridRule:
        """Its own levels."""
        return FittedLevels(self.table.levels)

    def look_at(self, score: Score) -> None:
        """Warn of another network than the one it was fitted to."""
        check_network(self.network, score, self.name)

    def step(self, k: Step) -> Form:
        """The next row."""
        if k.i == 0:
            self._require_process(k.start.sde, k.n)
        self._require_level(k)
        k.evaluate(k.x, k.start)
        D = [estimate for _, estimate in reversed(k.known(k.i + 1))]

        kept, change = self._from_the_row_before(k.i)
        y = (kept / k.start.alpha) * k.x + Form.combine(change, D)
        return y if k.i == k.n - 1 else k.end.alpha * y

    def _from_the_row_before(self, i: int) -> tuple[float, list[float]]:
        """c_k / c_{k-1}, and what the row takes of the estimates beyond that part of the row before."""
        c = self.table.scales
        b = self.table.weights
        kept = c[i + 1] / c[i]
        before = (*b[i - 1], 0.0) if i else (0.0,)
        return kept, [now - kept * then for now, then in zip(b[i], before, strict=True)]

    def _require_level(self, k: Step) -> None:
        level = self.table.levels[k.i]
        if not same_time(k.start.t, float(k.start.sde.time(-2 * math.log(level)))):
            raise ValueError(
                f"{self.name} makes call {k.i} at the noise level {level:.6g}, and the grid has "
                f"{k.start.noise_level:.6g} there: leave grid= out"
            )

    def _require_process(self, sde: Process, steps: int) -> None:
        if steps != self.table.nfe:
            raise ValueError(f"{self.name} was fitted for {self.table.nfe} steps of one network call, got {steps}")
        if self.process and not is_process(self.process, sde):
            raise ValueError(f"{self.name} was fitted for another process than {sde!r}: calibrate on this one")

    def __repr__(self) -> str:
        levels = self.table.levels
        return f"Calibrated({self.table.nfe} calls, levels {levels[0]:.4g} to {levels[-1]:.4g})"

    @cached_property
    def largest(self) -> float:
        """The largest sum of absolute weights of a row: how much an error of an estimate may grow."""
        return max(sum(map(abs, row)) for row in self.table.weights)
