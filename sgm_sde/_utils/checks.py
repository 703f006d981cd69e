"""Checks of arguments, with errors in the user's words."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from types import UnionType
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.shapes import finite

MOST_STEPS = 1_000_000  # of a run on a grid, each a row of its table, and of its network calls
LARGEST = 2.0**53  # integer, up to which floats know them all
NAMED = 8  # samples in an error message, which gives the number of the others
SHORT_TABLE = 20  # names, which an error lists where none is similar to the one given
SIMILAR = 0.65  # share of letters in common, from which on a name may have been meant
LONGEST = 200  # characters of a value in an error message
WORD_ENDS = re.compile("[-_ :@]")  # between the words of a name
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FAR = 1e6  # for what is of order one (noise levels, guidance, tolerances): its fourth power fits single precision


def annotate(error: BaseException, note: str) -> None:
    """Add a note to an exception, where Python has any."""
    if sys.version_info >= (3, 11):
        error.add_note(note)


def one_of(option: str, value: object, known: Iterable[object]) -> None:
    """Raise ValueError unless the value is one of those known."""
    known = tuple(known)
    if not any(isinstance(value, type(item)) and value == item for item in known):
        raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}, got {described(value)}")


def unknown(kind: str, name: str, known: Iterable[str], more: str = "", spelled: str | None = None) -> ValueError:
    """The error for a name that a table does not have, with similar names, or all names of a short table without any.

    Similarity is that to `spelled`, the name in the table's spelling, if given.
    """
    known = list(known)
    near = did_you_mean(name if spelled is None else spelled, known)
    if not near and len(known) <= SHORT_TABLE:
        near = f"; known are {', '.join(map(repr, known))}."
    end = "." if more and not near else ""
    return ValueError(f"unknown {kind} {name!r}{near}{end}{more}")


def did_you_mean(name: str, known: Iterable[str], most: int = 4) -> str:
    """The known names that are similar, as the end of an error message; empty where none is.

    Similar are those with most letters in common, then those that share a whole word.
    """
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=most, cutoff=SIMILAR)
    near += [each for each in spelled if each not in near and _share_a_word(name.lower(), each)]
    return f"; did you mean {', '.join(repr(spelled[each]) for each in near[:most])}?" if near else ""


def _share_a_word(one: str, other: str) -> bool:
    """True if one of two names is a word of the other, such as "langevin" of "annealed-langevin"."""
    return one in WORD_ENDS.split(other) or (len(other) > 2 and other in WORD_ENDS.split(one))


def known_arguments(
    function: str, given: Iterable[str], known: Iterable[str], instead: Mapping[str, str] | None = None
) -> None:
    """Raise TypeError, in the name of the function that was called, for arguments that it does not pass on.

    `instead` has what to give in the place of arguments that are known elsewhere.
    """
    known = list(dict.fromkeys(known))
    for name in given:
        if name in known:
            continue
        if instead and name in instead:
            raise TypeError(f"{function}() has no argument {name!r}: give {instead[name]}")
        raise TypeError(f"{function}() got an unexpected argument {name!r}{did_you_mean(name, known)}")


def keywords(*functions: Callable[..., object]) -> list[str]:
    """The names of the arguments that functions take by name only."""
    parameters = [each for function in functions for each in inspect.signature(function).parameters.values()]
    return [each.name for each in parameters if each.kind == inspect.Parameter.KEYWORD_ONLY]


def flag(option: str, value: object) -> bool:
    """True or False as a bool.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{option} must be True or False, got {described(value)}")
    return bool(value)


def stochasticity(value: object, at: float | None = None, most: float = FAR) -> float:
    """The stochasticity eta as a float; `at` is the time of one that is a function.

    Raises:
        TypeError: for anything but one real number.
        ValueError: for one out of range.
    """
    return number("eta" if at is None else f"eta at t={at:.6g}", value, least=0, most=most)


def float_dtype(option: str, value: object) -> torch.dtype:
    """A floating-point dtype that torch can compute with.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, torch.dtype) or value not in FLOATS:
        raise TypeError(f"{option} must be a floating-point torch.dtype, got {described(value)}")
    return value


def usable_device(option: str, value: object) -> torch.device:
    """A device that is there.

    Raises:
        TypeError: for what names no device.
        ValueError: for one that is not on this machine, or that torch does not know.
    """
    if not isinstance(value, str | torch.device):
        raise TypeError(f"{option} must be a torch.device or its name, got {described(value)}")
    try:
        device = torch.device(value)
    except RuntimeError:
        raise ValueError(
            f"{option} must be a device such as 'cpu', 'cuda:1' or 'mps', got {described(value)}"
        ) from None
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if (device.index or 0) >= there.get(device.type, math.inf):
        found = there[device.type]
        raise ValueError(f"{option} {str(device)!r} is not on this machine, where torch finds {found} of its kind")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):  # of a kind that this torch was not built for
        raise ValueError(f"{option} {str(device)!r} is none that torch can use here") from None
    return device


def arguments(option: str, value: object) -> dict[str, object]:
    """Arguments of a network by their names; none for None.

    Raises:
        TypeError: for anything but a mapping whose keys are names, and for `self`, the state and the time: these come
            first.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{option} must map names to arguments of the network, got {described(value)}")
    if taken := value.keys() & {"self", "x", "t"}:
        raise TypeError(
            f"{option} must not have {', '.join(sorted(taken))}: a network is called with state and time first"
        )
    return dict(value)


def settle_positive(owner: object, *names: str) -> None:
    """Give a frozen dataclass fields of positive numbers as floats.

    Raises:
        TypeError: for anything but one real number.
        ValueError: for one that is not positive and finite.
    """
    for name in names:
        settle(owner, **{name: number(name, getattr(owner, name), above=0)})


def settle_range(owner: object, low: str, high: str, *, equal: bool = False) -> None:
    """Give a frozen dataclass two fields of positive numbers as floats, of which the first is the smaller.

    Raises:
        TypeError: for anything but one real number.
        ValueError: for one that is not positive and finite, and for the wrong order; equal ones where they may be.
    """
    settle_positive(owner, low, high)
    a = getattr(owner, low)
    b = getattr(owner, high)
    if a > b or (a == b and not equal):
        raise ValueError(f"need {low} {'<=' if equal else '<'} {high}, got {a} and {b}")


def settle(owner: object, **values: object) -> None:
    """Give a frozen dataclass its checked fields."""
    for name, value in values.items():
        object.__setattr__(owner, name, value)


def function_name(function: object, otherwise: str = "function") -> str:
    """The name of a function, for messages; of a callable without one what is given."""
    return str(getattr(function, "__name__", otherwise))


def check_integer(option: str, value: object, least: int = 1, kind: type = Real) -> int:
    """The value as an int.

    Raises:
        ValueError: for anything but a number of that kind, whole and at least `least`, and beyond 2**53.
    """
    bounds = f"of at least {least}"
    if isinstance(value, kind) and isinstance(value, Real) and not isinstance(value, bool):
        found = float_of(value)
        if least <= found <= LARGEST and found == int(found):
            return int(found)
        if found > LARGEST:
            bounds = f"from {least} to 2**53"
    raise ValueError(f"{option} must be an integer {bounds}, got {described(value)}")


def table_size(option: str, value: object, least: int = 1, kind: type = Real) -> int:
    """A number of steps, network calls or noise levels, each of which a table has a row of, as an int.

    Raises:
        ValueError: for anything but a number of that kind, whole and at least `least`, and beyond a million.
    """
    found = check_integer(option, value, least, kind)
    if found > MOST_STEPS:
        raise ValueError(f"{option} must be at most {MOST_STEPS}, got {described(value)}")
    return found


def sizes(option: str, value: object, least: int = 1) -> tuple[int, ...]:
    """A shape as a tuple of ints.

    Raises:
        TypeError: for what is no sequence.
        ValueError: for entries that are not integers of at least `least`.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{option} must be a sequence of sizes, got {described(value)}")
    return tuple(check_integer(f"{option}[{i}]", n, least) for i, n in enumerate(value))


def is_dense(value: object) -> TypeGuard[Tensor]:
    """True if the value is a tensor that has all its entries, as arithmetic here takes them for granted."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_nested or value.is_quantized)


def has_numbers(value: object) -> TypeGuard[Tensor]:
    """True if the value is such a tensor, and its entries can be looked at: on the device meta there are none."""
    return is_dense(value) and not value.is_meta


def listed(value: object) -> object:
    """The same value, the entries of an array or tensor as Python's."""
    return value.tolist() if isinstance(value, np.ndarray) or has_numbers(value) else value


def instance_of(option: str, value: object, kind: type | UnionType, words: str) -> None:
    """Raise TypeError unless the value is an instance of a class."""
    if not isinstance(value, kind):
        raise TypeError(f"{option} must be {words}, got {described(value)}")


def is_integer(value: object) -> TypeGuard[Tensor]:
    """True for a tensor of integers."""
    return isinstance(value, torch.Tensor) and not (
        value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
    )


def require_integers(option: str, value: object, instead: str = "") -> None:
    """Raise TypeError unless the value is a tensor of integers, with what to do instead."""
    if not is_integer(value):
        given = f"dtype {value.dtype}" if isinstance(value, torch.Tensor) else described(value)
        raise TypeError(f"{option} must be a tensor of an integer dtype, got {given}{instead}")


def require_floating(option: str, value: object, shape: str = "(B, *)") -> None:
    """Raise TypeError unless the value is a tensor of floating-point numbers of at least one dimension."""
    if not is_dense(value) or not value.is_floating_point() or value.ndim == 0:
        given = f"dtype {value.dtype}" if is_dense(value) and value.ndim else described(value)
        raise TypeError(f"{option} must be a floating tensor {shape}, got {given}")


def require_values(option: str, value: object, shape: str = "(B, *)") -> None:
    """The same for a tensor whose numbers are looked at: one on the device meta has none."""
    require_floating(option, value, shape)
    if not has_numbers(value):
        raise TypeError(f"{option} must be a floating tensor {shape}, got one on the device meta, which has no numbers")


def shape_of_samples(option: str, value: object) -> tuple[int, ...]:
    """A shape (B, *) as a tuple of ints.

    Raises:
        TypeError: for what is no sequence.
        ValueError: for none, or entries that are not integers of at least 1.
    """
    shape = sizes(option, value)
    if not shape:
        raise ValueError(f"{option} must be (B, *), got ()")
    return shape


def described(value: object) -> str:
    """A value in an error message: arrays by their shape, a class by what to do with it, the rest on one line, cut."""
    if isinstance(value, Tensor) and not is_dense(value):
        kind = "nested " if value.is_nested else "quantized " if value.is_quantized else ""
        return f"a {kind}tensor of layout {value.layout}"
    if isinstance(value, Tensor) and value.is_meta:
        return f"a tensor of shape {tuple(value.shape)} on the device meta"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" if value.numel() != 1 else f"tensor({value.tolist()})"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}: call it"
    text = re.sub(r"\s*\n\s*", " ", repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def real(option: str, value: object) -> float:
    """One real number as a float, finite or not; infinite where an integer is too large for one.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"{option} must be one number, got {described(value)}")
    return float_of(value)


def moment(option: str, value: object) -> float:
    """One time as a float: a real number, or a tensor of one.

    Raises:
        TypeError: for anything else.
    """
    if has_numbers(value) and value.ndim == 0 and not value.is_complex():
        return float(value)
    return real(option, value)


def moments(option: str, value: object) -> list[float]:
    """Times of any iterable, as floats.

    Raises:
        TypeError: for anything else, or something in it that is no real number.
    """
    times = listed(value)
    if isinstance(times, list | tuple) and set(map(type, times)) == {float}:
        return list(times)
    if not isinstance(times, Iterable) or isinstance(times, str | Tensor):
        raise TypeError(f"{option} must be a sequence of numbers, got {described(value)}")
    return [moment(f"{option}[{i}]", t) for i, t in enumerate(times)]


def ends_of(option: str, value: object) -> tuple[float, float]:
    """A pair (low, high) of real numbers.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{option} must be a pair (low, high), got {described(value)}")
    return real(f"{option}[0]", value[0]), real(f"{option}[1]", value[1])


def range_of(option: str, value: object) -> tuple[float, float]:
    """A pair (low, high) of finite numbers, low < high.

    Raises:
        TypeError: for anything but a pair of real numbers.
        ValueError: for one that is not finite or does not ascend.
    """
    low, high = ends_of(option, value)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{option} must be (low, high) with low < high, got {value}")
    return low, high


def require_function(
    option: str, value: object, of: str, takes: int | None = None, optional: bool = False, named: Sequence[str] = ()
) -> None:
    """Raise TypeError unless the value can be called, with `takes` arguments and those named if a number is given.

    A class is something that has yet to be called.
    """
    if optional and value is None:
        return
    if not callable(value) or isinstance(value, type) or (takes is not None and not _can_take(value, takes, named)):
        raise TypeError(f"{option} must be a function {of}, got {described(value)}")


def _can_take(function: Callable[..., object], n: int, named: Sequence[str]) -> bool:
    """True if a function can be called with n arguments by position and some by name; True where it does not tell."""
    try:
        inspect.signature(function).bind(*range(n), **dict.fromkeys(named))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def number(
    option: str,
    value: object,
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


def reals(option: str, value: object) -> tuple[float, ...]:
    """A sequence of real numbers, of any length, as floats.

    Raises:
        TypeError: for what is no sequence, or has something else in it.
    """
    entries = listed(value)
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise TypeError(f"{option} must be a sequence of numbers, got {described(value)}")
    return tuple(real(f"{option}[{i}]", entry) for i, entry in enumerate(entries))


def levels_of(option: str, value: object) -> tuple[float, ...]:
    """Noise levels, each positive and finite, falling and each once, in whatever order they are given.

    Raises:
        TypeError: for what is no sequence of numbers.
        ValueError: for a level that is not positive and finite.
    """
    levels = {number(f"a level of {option}", level, above=0, most=FAR) for level in reals(option, value)}
    return tuple(sorted(levels, reverse=True))


def rows_of(option: str, value: object) -> tuple[tuple[float, ...], ...]:
    """A sequence of sequences of real numbers, of any lengths, as floats.

    Raises:
        TypeError: for anything else.
    """
    rows = listed(value)
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise TypeError(f"{option} must be a sequence of rows of numbers, got {described(value)}")
    return tuple(reals(f"{option}[{i}]", row) for i, row in enumerate(rows))


def numbers(option: str, value: object) -> Tensor:
    """Finite numbers as a float64 tensor on the host.

    Raises:
        TypeError: for anything but a tensor, or nested sequences of one shape, of real numbers.
        ValueError: for one that is not finite.
    """
    if not isinstance(value, Tensor):
        array = np.asarray(value) if is_regular(value) else np.asarray(None)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{option} must be a tensor or sequence of numbers, got {described(value)}")
        value = torch.from_numpy(array.astype(np.float64))
    if value.is_complex() or value.dtype == torch.bool or not has_numbers(value):
        raise TypeError(f"{option} must be real numbers, got {described(value)}, of dtype {value.dtype}")
    found = value.detach().to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{option} must be finite, got {int((~torch.isfinite(found)).sum())} numbers that are not")
    return found


def is_regular(value: object) -> bool:
    """True if nested sequences are those of an array: as many entries each at one depth, numbers at the last."""
    if isinstance(value, np.ndarray):
        return True
    if not isinstance(value, Sequence) or isinstance(value, str):
        return isinstance(value, Real) and not isinstance(value, bool)
    inner = {np.shape(part) if is_regular(part) else None for part in value}
    return len(inner) == 1 and None not in inner


def float_of(value: Real | float | np.number) -> float:
    """A real number as a float, infinite where an integer is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def check_per_sample_scalar(what: str, value: object, n: int) -> None:
    """Raise ValueError unless a function of the caller's returned one number per sample, (n,)."""
    if not isinstance(value, Tensor) or value.shape != (n,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{what} must return one number per sample, ({n},), got {got}")


def not_finite(value: Tensor) -> list[int]:
    """The samples with values (B, *) that are not finite."""
    return (~finite(value)).nonzero().flatten().tolist()


def check_output(
    x: Tensor,
    output: Tensor,
    t: float,
    trace: Tensor | None = None,
    *,
    among: Sequence[int] | None = None,
    first: int = 0,
) -> None:
    """Raise ValueError, naming time and samples, unless states, the network's output and its trace (B, *) are finite.

    `among` are the samples that are named, in the end not finite all of them; all if not given. `first` is the number
    of the first sample in the caller's batch.
    """
    values = {"state": x, "network's output": output, "trace of the network's Jacobian": trace}
    for what, value in values.items():
        bad = [] if value is None else not_finite(value)
        named = [i for i in bad if among is None or i in among]
        if not named:
            continue

        samples = _in_samples([first + i for i in named], [first + i for i in among or ()])
        raise ValueError(f"the {what} is not finite at t={t:.6g} in {samples}")


def _in_samples(named: Sequence[int], among: Sequence[int]) -> str:
    """Words for some samples, and for the others among which they are."""
    plural = "s" if len(named) > 1 else ""
    numbers = ", ".join(map(str, named[:NAMED]))
    if len(named) > NAMED:
        numbers += f" and {len(named) - NAMED} more"
    later = ", ".join(str(i) for i in among if i not in named)
    return f"sample{plural} {numbers} and later in {later}" if later else f"sample{plural} {numbers}"
