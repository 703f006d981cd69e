"""A rule that places times between the start and the end of sampling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, moment, table_size
from sgm_sde._utils.elsewhere import OF_PLACES
from sgm_sde.engine.times import at_ends, in_words_of_table
from sgm_sde.grids.times import Grid
from sgm_sde.identity import Value
from sgm_sde.processes.base import require_sde
from sgm_sde.processes.kinds import has_scalar_marginal

if TYPE_CHECKING:
    from sgm_sde.processes import SDE


class GridRule(Value, ABC):
    """A way to place `steps + 1` times between the start and the end of sampling.

    Attributes:
        of_noise_levels: whether the noise levels sigma / alpha that it visits are the same on every linear process.

    Examples:
        >>> import sgm_sde as sg
        >>> class Late(GridRule):
        ...     def place(self, sde, u, start, end): return start + u**2 * (end - start)
        >>> [round(t, 3) for t in Late()(sg.VPSDE(), 3).times]
        [1.0, 0.889, 0.556, 0.001]
    """

    _elsewhere = OF_PLACES

    of_noise_levels: ClassVar[bool] = False

    def __call__(self, sde: SDE, steps: int, t_start: float | None = None, t_end: float | None = None) -> Grid:
        """The grid of `steps` steps from `t_start` (default `sde.T`) to `t_end` (default `sde.eps`).

        Ends that are rounded images of T and eps, as float32 has them, are T and eps.

        Raises:
            ValueError: for a negative number of steps or times outside [0, T].
        """
        require_sde(sde)
        steps = table_size("the number of steps", steps, 0)
        t_start = None if t_start is None else moment("t_start", t_start)
        t_end = None if t_end is None else moment("t_end", t_end)
        if t_start is not None and not 0 < t_start < math.inf:
            raise ValueError(f"t_start must be positive and finite, got {t_start}")
        start, end = self.ends(sde, steps, t_start, t_end)
        if not 0 <= end < start <= sde.T:
            raise not_in_order(sde, [("t_start", t_start, start), ("t_end", t_end, end)])
        if steps == 0:
            return Grid([start])

        inner = self._placed(sde, steps, start, end)
        return Grid([start, *inner[1:-1].tolist(), end])  # the ends to the last bit

    def _placed(self, sde: SDE, steps: int, start: float, end: float) -> Tensor:
        """The times (steps + 1,), of which the ends may be rounded."""
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
        times = self.place(sde, u, start, end)
        if not isinstance(times, Tensor) or times.shape != u.shape:
            raise ValueError(f"place of {self!r} must return a tensor of {len(u)} times, got {described(times)}")
        return times

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """First and last time of a grid of `steps` steps: those given, else `sde.T` and `sde.eps`."""
        start = sde.T if t_start is None else at_ends(sde, t_start, option="t_start")
        end = sde.eps if t_end is None else at_ends(sde, t_end, option="t_end")
        return start, end

    @abstractmethod
    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u in [0, 1] of the way from start to end."""

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if the process has what the rule needs between the ends, and room for that many steps, if given."""
        return True


def not_in_order(sde: SDE, ends: Sequence[tuple[str, float | None, float]]) -> ValueError:
    """The error for a start and an end, named, given and placed, that are not in this order within a process."""
    (_, first, start), (_, last, end) = ends
    words = in_words_of_table(sde, start) if start > sde.T else ""
    if start == end and first != last:
        words = f": both are {start} up to rounding in single precision"
    return ValueError(f"need 0 <= t_end < t_start <= T = {sde.T}, got {_of_ends(ends)}{words}")


def _of_ends(ends: Iterable[tuple[str, float | None, float]]) -> str:
    """Words for ends of a grid: name, what was given, and where it is placed."""
    ends = list(ends)
    got = [f"{name}={asked}" for name, asked, _ in ends if asked is not None]
    own = [f"; {name} is {placed} if not given" for name, asked, placed in ends if asked is None]
    return f"{' and '.join(got) or 'neither'}{''.join(own)}"


def require_linear(rule: GridRule, sde: SDE) -> None:
    if not has_scalar_marginal(sde):
        raise TypeError(f"{rule!r} needs a process with alpha(t) and sigma(t), got {described(sde)}")


def time_of(sde: SDE, level: float) -> float:
    """The time at which sigma / alpha is `level`, or that of eps and T which is nearer."""
    log_snr = -2 * math.log(level)
    if log_snr <= float(sde.log_snr(sde.T)):
        return float(sde.T)
    if log_snr >= float(sde.log_snr(sde.eps)):
        return float(sde.eps)
    return float(sde.time(torch.tensor(log_snr, dtype=torch.float64, device="cpu")))
