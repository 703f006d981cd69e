"""Arguments that a caller may get wrong anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde._shapes import finite

LARGEST = 2.0**53  # whole number, up to which floats know them all
LONGEST = 200  # characters of a value in an error message


def whole(option: str, value: Any, least: int = 1, kind: type[Any] = Real) -> int:
    """The value as an int.

    Raises:
        ValueError: for anything but a number of that kind, whole and at least `least`.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{option} must be a whole number of at least {least}, got {described(value)}")
    if not least <= float_of(value) <= LARGEST or value % 1:
        raise ValueError(f"{option} must be a whole number of at least {least}, got {described(value)}")
    return int(value)


def sizes(option: str, value: Any) -> tuple[int, ...]:
    """A shape as a tuple of ints.

    Raises:
        TypeError: for what is no sequence.
        ValueError: for entries that are not whole numbers of at least 1.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{option} must be a sequence of sizes, got {described(value)}")
    return tuple(whole(f"{option}[{i}]", n) for i, n in enumerate(value))


def described(value: Any) -> str:
    """A value in an error message: tensors by their shape, a class by what to do with it, the rest as written, cut."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" if value.numel() != 1 else f"tensor({value.tolist()})"
    text = instead(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def real(option: str, value: Any) -> float:
    """One real number as a float, finite or not; infinite where a whole number is too large for one.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"{option} must be one number, got {described(value)}")
    return float_of(value)


def moment(option: str, value: Any) -> float:
    """One time as a float: a real number, or a tensor of one.

    Raises:
        TypeError: for anything else.
    """
    one = isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex()
    return float(value) if one else real(option, value)


def ends_of(option: str, value: Any) -> tuple[float, float]:
    """A pair (low, high) of real numbers.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{option} must be a pair (low, high), got {described(value)}")
    return real(f"{option}[0]", value[0]), real(f"{option}[1]", value[1])


def require_function(option: str, value: Any) -> None:
    """Raise TypeError unless the value is a function, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{option} must be a function, got {described(value)}")


def number(
    option: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> float:
    """The value as a float.

    Raises:
        TypeError: for anything but one real number.
        ValueError: for one that is not finite or out of range.
    """
    found = real(option, value)
    if math.isfinite(found) and above < found < below and least <= found <= most:
        return found
    if above == 0 and below == most == math.inf:
        raise ValueError(f"{option} must be positive and finite, got {value}")
    if above == least == -math.inf and below == most == math.inf:
        raise ValueError(f"{option} must be a finite number, got {value}")
    bounds = {"above": above, "at least": least, "below": below, "at most": most}
    asked = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
    raise ValueError(f"{option} must be finite, {asked}, got {value}")


def numbers(option: str, value: Any) -> Tensor:
    """Finite numbers as a float64 tensor on the host.

    Raises:
        TypeError: for anything but a tensor, or nested sequences of one shape, of real numbers.
        ValueError: for one that is not finite.
    """
    if not isinstance(value, Tensor):
        found = np.asarray(value) if is_regular(value) else np.asarray(None)
        if found.dtype.kind not in "fiu":
            raise TypeError(f"{option} must be a tensor or sequence of numbers, got {described(value)}")
        value = torch.from_numpy(found.astype(np.float64))
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{option} must be real numbers, got dtype {value.dtype}")
    found = value.detach().to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{option} must be finite, got {int((~torch.isfinite(found)).sum())} numbers that are not")
    return found


def is_regular(value: Any) -> bool:
    """Whether nested sequences are those of an array: as many entries each at one depth, numbers at the last."""
    if isinstance(value, np.ndarray):
        return True
    if not isinstance(value, Sequence) or isinstance(value, str):
        return isinstance(value, Real) and not isinstance(value, bool)
    inner = {np.shape(part) if is_regular(part) else None for part in value}
    return len(inner) == 1 and None not in inner


def float_of(value: Any) -> float:
    """A real number as a float, infinite where a whole number is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


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
