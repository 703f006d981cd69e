"""Tables: the times of a network's own, those of a distillation, and published noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from sgm_sde._utils.checks import moments, reals, table_size
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.coordinates import noise_level
from sgm_sde.engine.times import ROUNDING, at_ends, same_time
from sgm_sde.grids.base import GridRule, require_linear, time_of
from sgm_sde.processes.kinds import has_scalar_marginal

if TYPE_CHECKING:
    from sgm_sde.processes import SDE


@dataclass(frozen=True)
class Table(GridRule):
    """Times of a network's own table, evenly spaced in its indices up to rounding to integers.

    Args:
        times: the table; by default that of the process (`DiscreteVPSDE`, `DiscreteVESDE`).

    Raises:
        ValueError: for a table that is not one of numbers.

    Examples:
        >>> import sgm_sde as sg
        >>> Table()(sg.presets.ddpm(), 3).times
        (1.0, 0.667, 0.334, 0.001)
    """

    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", None if self.times is None else reals("times", self.times))

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        inside = self._inside(sde, start, end)
        if inside is None:
            raise ValueError(f"{sde!r} has no table of times: give one, Table(times=...)")
        if len(u) > len(inside):
            raise ValueError(f"{len(u) - 1} steps visit {len(u)} times, and the table has {len(inside)} there")
        return cpu_float64(inside)[(u * (len(inside) - 1)).round().long()]

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if there is a table with a time for each step."""
        inside = self._inside(sde, start, end)
        return inside is not None and (steps is None or steps < len(inside))

    def _inside(self, sde: SDE, start: float, end: float) -> list[float] | None:
        """The table's times between the ends, decreasing; None without a table."""
        table = sde.table_times if self.times is None else self.times
        low = end * (1 - ROUNDING)
        high = start * (1 + ROUNDING)
        return None if table is None else sorted((float(t) for t in table if low <= t <= high), reverse=True)


@dataclass(frozen=True)
class Distilled(GridRule):
    r"""Timesteps that a latent consistency model was distilled on, taken at even steps of their numbers.

    Of a network's table of N entries, distillation to m timesteps has seen those numbered $ik - 1$ with
    $k = \lfloor N/m \rfloor$ and $i = 1, \dots, m$, from 0. Counted from noise to data, n network calls are made at
    those numbered $\lfloor jm/n \rfloor$, $j = 0, \dots, n - 1$, and the last of them is where the grid ends. With an
    end of its own (`t_end=`, or that of `final="none"`), every step starts at one of these, and the grid ends at that
    end.

    A start below T leaves out the timesteps above it, as image-to-image pipelines do.

    Args:
        original_steps: the number m of timesteps of the distillation; `original_inference_steps` in the configurations
            of diffusers' LCMScheduler and TCDScheduler.

    Raises:
        ValueError: for a number below 1; on a process, without a table or with fewer timesteps than network calls.

    Source: Luo et al., 2023, arXiv:2310.04378, section 4.3 (skipping steps).

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.DiscreteVPSDE([1e-4 + 2e-5 * i for i in range(1000)])
        >>> Distilled(50)(sde, 3)  # four calls: timesteps 999, 759, 499 and 259
        Grid(1, 0.76, 0.5, 0.26)
        >>> Distilled(50)(sde, 4, t_end=sde.eps)
        Grid(1, 0.76, 0.5, 0.26, 0.001)
    """

    original_steps: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "original_steps", table_size("original_steps", self.original_steps))

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """First and last time of a grid of `steps` steps; a time given is kept."""
        known = self._known(sde, sde.T if t_start is None else at_ends(sde, t_start, option="t_start"))
        start = known[0] if t_start is None else at_ends(sde, t_start, option="t_start")
        if t_end is not None:
            return start, at_ends(sde, t_end, option="t_end")
        return start, self._spread(known, steps + 1)[-1] if steps else min(sde.eps, start / 2)

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        known = self._known(sde, start)
        calls = len(u)
        ends_with_call = calls <= len(known) and same_time(self._spread(known, calls)[-1], end)
        times = self._spread(known, calls) if ends_with_call else [*self._spread(known, calls - 1), end]
        if times[-2] <= end:
            raise ValueError(
                f"{calls - 1} steps, each from a timestep of a distillation, have their last at t={times[-2]}, "
                f"not above t_end={end}"
            )
        return cpu_float64(times)

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if the table has the timesteps, one for each step and one to end with."""
        table = sde.table_times
        if table is None or len(table) < self.original_steps:
            return False
        known = self._known(sde, start)
        return len(known) > 0 if steps is None else len(known) > steps and self._spread(known, steps + 1)[-1] >= end

    def _known(self, sde: SDE, start: float) -> list[float]:
        """The timesteps of the distillation from a start on, decreasing."""
        table = sde.table_times
        if table is None:
            raise ValueError(f"{sde!r} has no table of times, and timesteps of a distillation are some of a table")
        if len(table) < self.original_steps:
            raise ValueError(
                f"original_steps={self.original_steps} timesteps of a distillation from a table that has {len(table)}"
            )
        k = len(table) // self.original_steps
        seen = [float(table[i * k - 1]) for i in range(1, self.original_steps + 1)]
        known = [t for t in reversed(seen) if t <= start * (1 + ROUNDING)]
        if not known:
            raise ValueError(f"no timestep of the distillation lies below t={start}: they begin at t={seen[0]}")
        return known

    def _spread(self, known: list[float], calls: int) -> list[float]:
        """So many of the timesteps."""
        if calls > len(known):
            raise ValueError(
                f"{calls} network calls asked of {len(known)} timesteps of a distillation: take fewer, or another grid"
            )
        skip = len(known) / calls  # its multiples are rounded as in the published code
        return [known[math.floor(j * skip)] for j in range(calls)]


@dataclass(frozen=True)
class FromLevels(GridRule):
    r"""A table of noise levels $\sigma/\alpha$ on any process, log-linear between its entries.

    For published tables of optimised levels, such as those of Align Your Steps, at any number of steps.

    Args:
        levels: noise levels, decreasing; a final 0, which stands for the denoised data, is left out.

    Raises:
        TypeError: for what is no sequence of numbers.
        ValueError: for fewer than two levels, or levels that do not decrease to something above 0.

    Source: Sabour et al., 2024, arXiv:2404.14507.

    Examples:
        >>> import sgm_sde as sg
        >>> ten = FromLevels([14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0])
        >>> [round(t, 6) for t in ten(sg.EDMSDE(0.02, 20.0), 9).times[:3]]
        [14.615, 6.475, 3.861]
    """

    levels: tuple[float, ...]
    of_noise_levels: ClassVar[bool] = True

    def __init__(self, levels: Sequence[float] | Tensor) -> None:
        given = moments("levels", levels)
        if len(given) > 2 and given[-1] == 0:
            given.pop()
        if len(given) < 2:
            raise ValueError(f"a table needs two noise levels or more, got {len(given)}")
        for i, (level, lower) in enumerate(pairwise(given)):
            if not (math.isfinite(level) and 0 < lower < level):
                raise ValueError(
                    f"levels must decrease to something above 0, got levels[{i}] = {level} followed by {lower}"
                )
        object.__setattr__(self, "levels", tuple(given))

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """The times of the first and the last level; a time given is kept."""
        require_linear(self, sde)
        start = time_of(sde, self.levels[0]) if t_start is None else at_ends(sde, t_start, option="t_start")
        end = time_of(sde, self.levels[-1]) if t_end is None else at_ends(sde, t_end, option="t_end")
        return start, end

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        logs = [math.log(level) for level in self.levels]
        # Where the ends lie in the table, in entries; beyond it, on the line through its last two.
        first, last = (self._place(logs, math.log(float(noise_level(sde, t)))) for t in (start, end))
        at = (first + (last - first) * u).tolist()
        log_levels = [self._at(logs, place) for place in at]
        times: Tensor = sde.time(-2 * cpu_float64(log_levels))
        return times

    @staticmethod
    def _place(logs: Sequence[float], log_level: float) -> float:
        i = next((i for i in range(len(logs) - 1) if logs[i + 1] <= log_level), len(logs) - 2)
        return i + (log_level - logs[i]) / (logs[i + 1] - logs[i])

    @staticmethod
    def _at(logs: Sequence[float], place: float) -> float:
        i = min(max(math.floor(place), 0), len(logs) - 2)
        return logs[i] + (place - i) * (logs[i + 1] - logs[i])

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if log-SNR is finite at both ends."""
        return has_scalar_marginal(sde) and all(math.isfinite(node.lam) for node in sde.nodes([start, end]))
