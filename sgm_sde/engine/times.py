"""Times that callers have computed in single precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgm_sde._utils.checks import moment

if TYPE_CHECKING:
    from sgm_sde.engine.node import Process

ROUNDING = 1e-5  # relative: Karras' levels computed in float32 are off by up to 50 units in the last place
CLOSEST = 2.0**-20  # relative: eight units in the last place of float32, below which two times of a grid are one


def same_time(t: float, other: float, rounding: float = ROUNDING) -> bool:
    """True if two times differ by rounding alone."""
    return abs(t - other) <= rounding * max(abs(t), abs(other))


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
