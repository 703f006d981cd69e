"""Times that callers have computed in single precision."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgm_sde._utils.checks import float_of, moment
from sgm_sde._utils.shapes import Time

if TYPE_CHECKING:
    from sgm_sde.engine.node import Process

ROUNDING = 1e-5  # relative: Karras' levels computed in float32 are off by up to 50 units in the last place
CLOSEST = 2.0**-20  # relative: eight units in the last place of float32, below which two times of a grid are one


def same_time(t: float, other: float, rounding: float = ROUNDING) -> bool:
    """True if two times, of which the second is finite, differ by rounding alone."""
    return abs(t) < math.inf and abs(t - other) <= rounding * max(abs(t), abs(other))


def at_ends(sde: Process, t: float, *more: float, option: str = "t") -> float:
    """The end of the process, T or eps or another one given, that a time is a rounded image of; itself if it is none.

    Args:
        sde: the process.
        t: the time.
        more: further ends.
        option: the name by which the caller knows the time.
    """
    t = moment(option, t)
    return next((float(end) for end in (sde.T, sde.eps, *more) if same_time(t, end)), t)


def in_words_of_table(sde: Process, t: float) -> str:
    """The way from an entry of a table to its time, as the end of an error message; without one, what times are."""
    table = sde.table_times
    if table is None or not 1 <= t <= len(table) or t != int(t):
        return f": times are those of the process, from T to eps = {sde.eps:g}"
    n = len(table)
    i = min(int(t), n - 1)
    return f": entry i of a table of {n} is at sde.table_times[i], (i + 1)/{n} here, as {i} at t={table[i]:g}"


def require_inside(sde: Process, t: Time) -> tuple[float, float] | None:
    """The first and the last of some times; None where they are not looked at.

    Tensors on other devices, which would have to be waited for, and those of a transformation or a compiler, which have
    no numbers yet, are not looked at.

    Raises:
        ValueError: for times that lie outside [0, T] by more than rounding.
        TypeError: for True and False.
    """
    rounding = ROUNDING
    if isinstance(t, Tensor):
        if t.device.type != "cpu" or not t.numel() or not t.is_floating_point() or torch.compiler.is_compiling():
            return None
        rounding = max(ROUNDING, torch.finfo(t.dtype).eps)
        try:
            low, high = (float(end) for end in t.detach().aminmax())
        except RuntimeError:  # under vmap
            return None
    elif isinstance(t, bool):
        raise TypeError(f"t must be a time, got {t}")
    elif isinstance(t, Real):
        low = high = float_of(t)
    else:
        return None

    if not (low >= -rounding * sde.T and high <= (1 + rounding) * sde.T):
        outside = low if low < 0 else high
        raise ValueError(
            f"t must lie in [0, T = {sde.T:g}], got {outside:g}: times are those of the process, and `time_label=` "
            f"makes of them what the network was trained with"
        )
    return low, high
