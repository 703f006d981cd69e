"""Arguments that a caller may get wrong anywhere."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor

from sgm_sde._shapes import finite


def whole(option: str, value: Any, least: int = 1, kind: type[Any] = Real) -> int:
    """The value as an int.

    Raises:
        ValueError: for anything but a number of that kind, whole and at least `least`.
    """
    if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value) or value % 1 or value < least:
        raise ValueError(f"{option} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def instead(value: Any) -> str:
    """What a caller gave, where an object was wanted: for a class, that it is to be called."""
    return f"the class {value.__name__}: call it" if isinstance(value, type) else repr(value)


def require_one_a_sample(what: str, value: Any, n: int) -> None:
    """Raise ValueError unless a function of the caller's returned one number a sample, (n,)."""
    if not isinstance(value, Tensor) or value.shape != (n,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{what} must return one number a sample, ({n},), got {got}")


def not_finite(value: Tensor) -> list[int]:
    """The samples with values (B, *) that are not finite."""
    return (~finite(value)).nonzero().flatten().tolist()
