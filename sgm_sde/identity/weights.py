"""Checksums, and the networks and weights that a score or function reaches."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

CALLED = 256  # values that are looked at in search of the modules that a function calls
PLAIN = (str, bytes, int, float, type, ModuleType)  # what holds no network and no tensor
DATA = (*PLAIN, type(None), BuiltinFunctionType, Tensor, np.ndarray)  # what calls none


class ReachesNetwork:
    """A marker of scores: what they reach belongs to a function that names them in its module."""


def checksum(value: object) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, dtypes and shapes; "" without any."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        data = value.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if tensors else ""


def weights(value: object) -> str:
    """SHA-256 of all parameters, buffers and tensors that a score or function reaches; "" without any."""
    found = list(reached(value))
    if len(found) == 1 and isinstance(found[0], nn.Module):
        return fingerprint(_tensors(found[0]))
    named = {}
    for i, one in enumerate(found):
        for name, tensor in _tensors(one).items():
            named[f"{i}.{name}"] = tensor
    return fingerprint(named)


def networks(value: object) -> list[nn.Module]:
    """The modules that a score or function reaches."""
    return [one for one in reached(value) if isinstance(one, nn.Module)]


def called_networks(value: object) -> list[nn.Module]:
    """The modules that a function calls: of what it closes over, holds or names, the attributes that its code names.

    `lambda x, t: trainer.average(x, t)` calls the average of a trainer, and not the network that it trains. Nothing is
    run for it, and what is fetched by a text (`getattr`) is not found.
    """
    found: list[nn.Module] = []
    seen: set[object] = set()
    ahead: deque[tuple[object, frozenset[str]]] = deque([(value, frozenset())])
    while ahead and len(seen) < CALLED:
        one, names = ahead.popleft()
        place = _place(one, names)
        if place in seen or isinstance(one, DATA):
            continue

        seen.add(place)
        parts, names = _used(one, names)
        if isinstance(one, nn.Module) and not parts:
            found.append(one)
        for part in parts:
            ahead.append((part, names))
    return list(dict.fromkeys(found))


def _place(value: object, names: frozenset[str]) -> tuple[object, ...]:
    """Identity of a value in a search; a method is made anew whenever it is asked for."""
    return (id(value.__self__), id(value.__func__)) if isinstance(value, MethodType) else (id(value), names)


def _used(value: object, names: frozenset[str]) -> tuple[list[object], frozenset[str]]:
    """Parts of a value that code with these names may call, with the names in their own code."""
    if isinstance(value, MethodType):
        parts, names = _used(value.__func__, names)
        return [value.__self__, *parts], names
    if isinstance(value, FunctionType):
        return _known(value, object), frozenset(_names(value.__code__))
    if isinstance(value, Mapping | list | tuple | functools.partial):
        return _parts(value)[:CALLED], names
    return _used_of_object(value, names), names


def _used_of_object(value: object, names: frozenset[str]) -> list[object]:
    """Attributes and methods of these names; without any, of what is no module, how it is called."""
    held: Mapping[str, object] = value._modules if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
    attributes = [item for name, item in held.items() if name in names]
    parts = [*attributes, *_methods(value, names)]
    return parts if parts or isinstance(value, nn.Module) else _methods(value, ["__call__"])


def _methods(value: object, names: Iterable[str]) -> list[object]:
    """Methods of these names that someone wrote for the value's class."""
    found = [getattr(type(value), name, None) for name in names]
    # What is run by `exec` has no module.
    own = [one for one in found if isinstance(one, FunctionType) and not str(one.__module__).startswith("torch")]
    return [MethodType(method, value) for method in own]


def _tensors(value: object) -> dict[str, Tensor]:
    if isinstance(value, nn.Module):
        return {name: item for name, item in value.state_dict().items() if isinstance(item, Tensor)}
    return {"": torch.as_tensor(value)}


def reached(value: object) -> Iterator[nn.Module | Tensor | np.ndarray]:
    """Modules, tensors and arrays behind a score: its parts, and what functions close over, hold or name."""
    return _reached(value, set(), 0)


def _reached(value: object, seen: set[int], depth: int) -> Iterator[nn.Module | Tensor | np.ndarray]:
    if id(value) in seen or depth > 12 or isinstance(value, PLAIN):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module | Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fiub":
            yield value
    else:
        for part in _parts(value):
            yield from _reached(part, seen, depth + 1)


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return [item for item in value if not isinstance(item, float | int)]

    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        return _named(value)
    if isinstance(value, BuiltinFunctionType):
        return []

    try:
        held = list(vars(value).values())
    except TypeError:  # slots, or an extension's object
        held = []
    call = type(value).__dict__.get("__call__")
    return [*held, *([call] if isinstance(call, FunctionType) else [])]


def _named(function: FunctionType) -> list[object]:
    """Closure, defaults and globals of a function: data, and functions of the same module."""
    return _known(function, nn.Module, Tensor, np.ndarray, ReachesNetwork)


def _known(function: FunctionType, *kinds: type) -> list[object]:
    """Closure and defaults of a function, and the globals that it names: functions of its module, and other kinds."""
    found = [held for _, held in closure(function)]
    found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for name in _names(function.__code__):
        named = function.__globals__.get(name)
        own = named.__module__ == function.__module__ if isinstance(named, FunctionType) else isinstance(named, kinds)
        if own:
            found.append(named)
    return found


def _names(code: CodeType) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names += _names(constant)
    return names


def closure(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Names that a function closes over with what they hold; None for one that is not set yet."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held = cell.cell_contents
        except ValueError:
            held = None
        yield name, held
