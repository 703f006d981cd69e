"""Values of their specs."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgm_sde._utils.checks import described
from sgm_sde._utils.files import JsonMapping, parse_json
from sgm_sde.identity.writing import MARKS, Value, class_name, spec

__all__ = ["from_spec"]


def from_spec(data: object) -> Value:
    """The value of a spec: a process, solver, corrector, grid, setting, tableau or program.

    Args:
        data: what `spec` returned, or its JSON text.

    Raises:
        ValueError: for what is no spec of such a value, or of one that holds a function or a network, with the place.

    Examples:
        >>> import json
        >>> import sgm_sde as sg
        >>> solver = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.16))
        >>> from_spec(json.dumps(solver.spec())) == solver
        True
    """
    if isinstance(data, str | bytes):
        text = data
        try:
            data = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the spec of a value is JSON, got {text[:80]!r}: {error}") from None
    if not isinstance(data, dict) or "class" not in data:
        raise ValueError(f"the spec of a value is a JSON object with its class, got {str(data)[:200]}")
    made: Value = _read(data, "the value")
    return made


def _read(data: object, where: str) -> Any:
    if isinstance(data, list):
        return tuple(_read(item, f"{where}[{i}]") for i, item in enumerate(data))
    if not isinstance(data, dict):
        return _read_scalar(data, where)

    marks = [mark for mark in MARKS if mark in data]
    if not marks:
        return {key: _read(item, f"{where}.{key}") for key, item in data.items()}
    try:
        return _marked(data, where)
    except _FingerprintOnly:
        raise ValueError(f"{where} is {marks[0]} only by its fingerprint: give it anew") from None
    except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{where} is not the spec of a value: {error}") from None


def _read_scalar(data: object, where: str) -> object:
    finite = not isinstance(data, float) or math.isfinite(data)
    if finite and (data is None or isinstance(data, bool | int | float | str)):
        return data
    raise ValueError(f"{where} must be made of JSON values, got {described(data)}")


class _FingerprintOnly(Exception):
    """A spec that tells a value from others and does not hold it."""


def _marked(data: JsonMapping, where: str) -> Any:
    """The value of a JSON object that says of what kind it is."""
    if "class" in data:
        return _object(data, where)
    if "mapping" in data:
        return {_read(key, where): _read(item, where) for key, item in data["mapping"]}
    if "set" in data:
        return frozenset(_read(item, where) for item in data["set"])
    if "tensor" in data and "values" in data["tensor"]:
        return _tensor(data["tensor"], where)
    for mark, make in _MAKERS.items():
        if mark in data:
            return make(data[mark])
    raise _FingerprintOnly


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{name!r} is no dtype")
    return found


_MAKERS: dict[str, Callable[[str], object]] = {
    "float": float, "complex": complex, "dtype": _dtype, "device": torch.device, "path": Path,
}  # fmt: skip


def _tensor(data: JsonMapping, where: str) -> Tensor:
    values = [_read(v, where) for v in data["values"]]
    return torch.tensor(values, dtype=_dtype(data["dtype"].removeprefix("torch."))).reshape(data["shape"])


def _object(data: JsonMapping, where: str) -> Value:
    kind = _class_of(data["class"], where)
    made = kind._of_spec(data, lambda item, key: _read(item, f"{where}.{key}"))
    if spec(made) != data:
        raise ValueError(f"{where} is no {data['class']} of this version: made anew it is {spec(made)}, not {data}")
    return made


def _class_of(name: object, where: str) -> type[Value]:
    """The class of values that has a name."""
    known = _classes()
    if isinstance(name, str) and name not in known:
        package = f"sgm_sde.{name.partition('.')[0]}"
        if package.replace(".", "").replace("_", "").isalnum() and find_spec(package) is not None:
            import_module(package)
        known = _classes()
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{where} is of a class that is not known here: {name!r}")
    return known[name]


def _classes() -> dict[str, type[Value]]:
    """All classes of values that are defined by now, by name."""
    found: dict[str, type[Value]] = {}
    waiting: list[type[Value]] = [Value]
    while waiting:
        kind = waiting.pop()
        found[class_name(kind)] = kind
        waiting += kind.__subclasses__()
    return found
