"""A cache of functions' results that keeps no network alive."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_NOTHING: Any = object()


def cached(maxsize: int, holders: tuple[int, ...] = (0,)) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A cache of a function's results by its arguments, like `functools.lru_cache`, that keeps no network alive.

    A process or solver may hold a function, and with it a network: the results for such an argument are stored in the
    argument itself, and are freed with it. Nothing is stored for arguments that are not hashable.

    Args:
        maxsize: number of results.
        holders: positions of the arguments that may hold a function.

    Examples:
        >>> @cached(maxsize=2)
        ... def double(x):
        ...     print("computed")
        ...     return 2 * x
        >>> double(2.0) + double(2.0)
        computed
        8.0
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        shared: dict[tuple[object, ...], R] = {}  # for plain arguments, and so for all that equal them

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if kwargs:
                return function(*args, **kwargs)
            try:
                found = shared.get(args, _NOTHING)
            except TypeError:  # not hashable
                return function(*args, **kwargs)
            if found is not _NOTHING:
                return found

            owner = next((args[i] for i in holders if not _is_plain(args[i])), None)
            if owner is None:
                return _result(shared, args, maxsize, lambda: function(*args, **kwargs))
            try:
                results = vars(owner).setdefault("_cached", {})
            except TypeError:  # slots
                return function(*args, **kwargs)
            key = (function, *(value for value in args if value is not owner))
            return _result(results, key, maxsize, lambda: function(*args, **kwargs))

        return call

    return decorate


def _result(results: dict[tuple[object, ...], R], key: tuple[object, ...], most: int, compute: Callable[[], R]) -> R:
    """A result that is stored, or is from now on, in the place of the oldest if there are too many."""
    if (found := results.get(key, _NOTHING)) is _NOTHING:
        found = compute()
        while len(results) >= most:
            results.pop(next(iter(results)), None)
        results[key] = found
    return found


def _is_plain(value: object) -> bool:
    """True if a value is made of numbers, texts and values of such alone."""
    if value is None or isinstance(value, float | int | str):
        return True
    if isinstance(value, tuple):
        return set(map(type, value)) <= {float, int, str} or all(map(_is_plain, value))
    if not is_dataclass(value):
        return False
    own = [getattr(value, field.name) for field in fields(value)]
    return all(map(_is_plain, own)) and all(_is_plain(v) for k, v in vars(value).items() if not k.startswith("_"))
