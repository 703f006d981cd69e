"""Traversal of nested arguments: mappings, sequences and dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import TypeAlias, overload

from torch import Tensor

Path = tuple[str | int, ...]
Conditions: TypeAlias = Mapping[str, object]  # arguments of the network besides x and t, by name
Arguments: TypeAlias = dict[str, object]  # a copy of them that may be changed
Leaves: TypeAlias = tuple[type, ...] | Callable[[object], bool]


def children(value: object) -> dict[str | int, object] | None:
    """The parts of a container by name or number; None for a leaf."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def with_parts(value: object, parts: Mapping[str | int, object]) -> object:
    """A container like `value` with other parts."""
    if isinstance(value, tuple):
        kind: Callable[..., object] = type(value)
        return kind(*parts.values()) if hasattr(value, "_fields") else tuple(parts.values())
    if isinstance(value, list):
        return list(parts.values())

    other = copy.copy(value)
    if isinstance(other, MutableMapping):
        other.update(parts)
        return other
    for name, part in parts.items():
        object.__setattr__(other, str(name), part)  # of a frozen dataclass, too
    return other


@overload
def map_leaves(
    change: Callable[[Path, object], object],
    value: Arguments,
    leaves: Leaves = (Tensor,),
    path: Path = (),
) -> Arguments: ...
@overload
def map_leaves(
    change: Callable[[Path, object], object], value: object, leaves: Leaves = (Tensor,), path: Path = ()
) -> object: ...
def map_leaves(
    change: Callable[[Path, object], object], value: object, leaves: Leaves = (Tensor,), path: Path = ()
) -> object:
    """The value with each leaf replaced by `change(path, leaf)`.

    Containers keep their type, and where nothing in them changes they are the very same objects.

    Args:
        change: called with the path to a leaf, a tuple of names and numbers, and the leaf.
        value: a leaf, or nested mappings, lists, tuples and dataclasses of leaves.
        leaves: types that are leaves though they may be containers, or what tells it.
        path: to the value.

    Examples:
        >>> map_leaves(lambda path, leaf: leaf + 1 if path[-1] == "b" else leaf, {"a": [1, {"b": 2}], "c": None})
        {'a': [1, {'b': 3}], 'c': None}
    """
    parts = _parts(value, leaves)
    if parts is None:
        return change(path, value)

    changed = {name: map_leaves(change, part, leaves, (*path, name)) for name, part in parts.items()}
    return value if all(changed[name] is parts[name] for name in parts) else with_parts(value, changed)


def each_leaf(value: object, leaves: Leaves = (Tensor,), path: Path = ()) -> Iterator[tuple[Path, object]]:
    """The leaves with their paths; arguments are those of `map_leaves`.

    Examples:
        >>> list(each_leaf({"a": [1, {"b": 2}]}))
        [(('a', 0), 1), (('a', 1, 'b'), 2)]
    """
    parts = _parts(value, leaves)
    if parts is None:
        yield path, value
        return
    for name, part in parts.items():
        yield from each_leaf(part, leaves, (*path, name))


def _parts(value: object, leaves: Leaves) -> dict[str | int, object] | None:
    """The parts of a container; None for a leaf, which may be one."""
    is_leaf = leaves(value) if callable(leaves) else isinstance(value, leaves)
    return None if is_leaf else children(value)


def shown(path: Path) -> str:
    """A path as one would write it.

    Examples:
        >>> shown(("added", "blocks", 2))
        'added.blocks[2]'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
