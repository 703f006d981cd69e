"""Arguments that a caller may get wrong anywhere."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def whole(option: str, value: Any, least: int = 1) -> int:
    """The value as an int.

    Raises:
        ValueError: for anything but a whole number of at least `least`.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or int(value) != value or value < least:
        raise ValueError(f"{option} must be a whole number of at least {least}, got {value!r}")
    return int(value)
