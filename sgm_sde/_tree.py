"""Nested arguments: the one walk through mappings, sequences and dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

Path = tuple[str | int, ...]


def children(value: Any) -> dict[str | int, Any] | None:
    """The parts of a container by name or number; None for a leaf."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def with_parts(value: Any, parts: dict[str | int, Any]) -> Any:
    """A container like `value` with other parts."""
    if isinstance(value, tuple):
        made = parts.values()
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, list):
        return list(parts.values())

    other = copy.copy(value)
    for name, part in parts.items():
        if isinstance(value, Mapping):
            other[name] = part
        else:
            object.__setattr__(other, str(name), part)  # of a frozen dataclass, too
    return other


def map_leaves(
    change: Callable[[Path, Any], Any], value: Any, leaves: tuple[type, ...] = (Tensor,), path: Path = ()
) -> Any:
    """The value with each leaf replaced by `change(path, leaf)`.

    Containers keep their type, and where nothing in them changes they are the very same objects.

    Args:
        change: told the path to a leaf, names and numbers, and the leaf.
        value: a leaf, or nested mappings, lists, tuples and dataclasses of leaves.
        leaves: types that are leaves though they may be containers.
        path: to the value.

    Examples:
        >>> map_leaves(lambda path, leaf: leaf + 1 if path[-1] == "b" else leaf, {"a": [1, {"b": 2}], "c": None})
        {'a': [1, {'b': 3}], 'c': None}
    """
    parts = None if isinstance(value, leaves) else children(value)
    if parts is None:
        return change(path, value)
    changed = {name: map_leaves(change, part, leaves, (*path, name)) for name, part in parts.items()}
    return value if all(changed[name] is parts[name] for name in parts) else with_parts(value, changed)


def each_leaf(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves with their paths.

    Examples:
        >>> list(each_leaf({"a": [1, {"b": 2}]}))
        [(('a', 0), 1), (('a', 1, 'b'), 2)]
    """
    parts = None if isinstance(value, Tensor) else children(value)
    if parts is None:
        yield path, value
        return
    for name, part in parts.items():
        yield from each_leaf(part, (*path, name))


def shown(path: Path) -> str:
    """A path as one would write it.

    Examples:
        >>> shown(("added", "blocks", 2))
        'added.blocks[2]'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
