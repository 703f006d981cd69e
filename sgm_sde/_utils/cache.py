"""A cache of functions' results that keeps no network alive."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


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
        shared = functools.lru_cache(maxsize)(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if kwargs or not all(isinstance(value, Hashable) for value in args):
                return function(*args, **kwargs)
            owner = next((args[i] for i in holders if not _is_plain(args[i])), None)
            if owner is None:
                return shared(*args)
            try:
                results = vars(owner).setdefault("_cached", {})
            except TypeError:  # slots
                return function(*args, **kwargs)
            key = (function, *(value for value in args if value is not owner))
            if key not in results:
                while len(results) >= maxsize:
                    results.pop(next(iter(results)), None)
                results[key] = function(*args, **kwargs)
            found: R = results[key]
            return found

        return call

    return decorate


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
