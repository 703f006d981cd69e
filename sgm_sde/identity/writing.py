"""Specs of values: what they are made of, as JSON."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sgm_sde._utils.elsewhere import Constructed
from sgm_sde._utils.files import JsonMapping
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.identity.measured import measured
from sgm_sde.identity.weights import checksum, closure, fingerprint, weights

__all__ = ["Value", "portable", "spec"]

LONGEST = 32  # numbers of a sequence that a store's settings spell out; longer ones are told apart by their checksum
WRITTEN_OUT = 4096  # numbers of a tensor that a spec holds, and not only their checksum
DEEPEST = 24  # objects within objects
TOLERANCE = 1e-9  # within which values of functions agree, of their largest

# Times at which a solver's function of time is fingerprinted, whatever the process: 1e-5 to 100.
FUNCTION_TIMES = tuple(10.0 ** (-5 + 7 * k / 64) for k in range(65))
# Keys that say of what kind a JSON object is; a mapping with one of them is written as pairs.
MARKS = (
    "class",
    "function",
    "float",
    "complex",
    "dtype",
    "device",
    "path",
    "tensor",
    "set",
    "mapping",
    "above",
    "type",
)


class Value(Constructed):
    """The base of everything that is a value: two that differ have different specs.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Scale(Value):
        ...     factor: float = 2.0
        >>> Scale(3.0).spec()["factor"]
        3.0
    """

    def spec(self) -> dict[str, object]:
        """The value's identity as JSON values; see `sgm_sde.spec`."""
        found: dict[str, object] = spec(self)
        return found

    def _written(self, writer: Writer, above: tuple[int, ...]) -> dict[str, object]:
        """The value's part of a spec, inside of the objects of these numbers."""
        return writer.fields(self, above)

    def _held(self) -> dict[str, object]:
        """Parts of the value beside its fields and public attributes, by name."""
        return {}

    def _is_computed(self, part: object) -> bool:
        """True for a part of the value that `_computed` identifies."""
        return False

    def _computed(self) -> dict[str, object]:
        """Measurements of what the value computes."""
        return {}

    @classmethod
    def _of_spec(cls, data: JsonMapping, read: Callable[[object, str], Any]) -> Value:
        """The value of a spec, whose parts `read` makes of their data and their names."""
        taken = inspect.signature(cls).parameters
        given = {key: read(item, key) for key, item in data.items() if key not in ("class", "code")}
        return cls(**{key: item for key, item in given.items() if key in taken})


def spec(value: object) -> Any:
    """The identity of a value as JSON values: total, the same in another process, different for different values.

    A process, solver, corrector, grid or other object is its class with its fields; a function of time, its values on a
    fixed grid; a network, the checksum of its weights; another function, the checksum of its code and of what it closes
    over. `from_spec` makes the value again where all of it is numbers, texts and values of such.

    Examples:
        >>> import sgm_sde as sg
        >>> spec(sg.grids.Karras(rho=5.0))
        {'class': 'grids.Karras', 'rho': 5.0}
        >>> a, b = (sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t, T=0.9) for _ in range(2))
        >>> a == b, spec(a) == spec(b)
        (False, True)
    """
    return Writer().write(value, ())


def portable(known: object) -> Any:
    """A spec as stores compare it: without what another version of Python changes, and with checksums of long tables.

    Bytecode tells functions apart here and now. Where runs are compared, what a network does is measured besides.

    Examples:
        >>> portable({"class": "Table", "times": [0.5] * 40, "code": "1f"})["times"]["length"]
        40
    """
    if isinstance(known, dict):
        if known.keys() == {"values", "within"}:  # measured, to be compared number by number
            return known
        return {key: portable(item) for key, item in known.items() if key != "code"}
    if isinstance(known, list):
        items = [portable(item) for item in known]
        return {"length": len(items), "sha256": checksum(items)} if len(items) > LONGEST else items
    return known


class Writer:
    """One spec in the making; a function that is met twice in it is written out once."""

    def __init__(self) -> None:
        self.functions: set[int] = set()

    def write(self, value: object, above: tuple[int, ...]) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return _number(value)
        if isinstance(value, np.generic):
            return self.write(value.item(), above)

        plain = _plain(value)
        if plain is not None:
            return plain

        if id(value) in above:
            return {"above": len(above) - above.index(id(value))}
        if len(above) > DEEPEST:
            return {"type": class_name(type(value))}
        return self.composite(value, (*above, id(value)))

    def composite(self, value: object, within: tuple[int, ...]) -> Any:
        """Spec of what is made of other values, which lie `within` the objects of these numbers."""
        if isinstance(value, np.ndarray):
            return self.array(value, within)
        if isinstance(value, Tensor):
            return self.tensor(value)

        if isinstance(value, Mapping):
            return self.mapping(value, within)
        if isinstance(value, list | tuple):
            return [self.write(item, within) for item in value]
        if isinstance(value, set | frozenset):
            items = [self.write(item, within) for item in value]
            return {"set": sorted(items, key=json.dumps)}

        if isinstance(value, Value):
            return value._written(self, within)
        if isinstance(value, nn.Module):
            return self.module(value, within)
        if isinstance(value, type):
            return {"type": class_name(value)}
        if isinstance(value, ModuleType):
            return {"type": value.__name__}

        if callable(value):
            known = self.callable(value, within)
            if known is not None:
                return known
        return self.fields(value, within)

    def callable(self, value: Callable[..., object], within: tuple[int, ...]) -> dict[str, object] | None:
        """Spec of a function; None for an object that is called."""
        if isinstance(value, functools.partial):
            given = self.write([value.args, value.keywords], within)
            return {"function": "functools:partial", "of": self.write(value.func, within), "given": given}
        if isinstance(value, MethodType):
            return {"function": value.__func__.__qualname__, "of": self.write(value.__self__, within)}
        if isinstance(value, FunctionType | BuiltinFunctionType):
            return self.function(value, within)
        return None

    def array(self, value: np.ndarray, above: tuple[int, ...]) -> dict[str, object]:
        about = {"shape": list(value.shape), "dtype": f"numpy.{value.dtype}"}
        if value.size <= WRITTEN_OUT or value.dtype.hasobject:
            items = [self.write(item, above) for item in value.reshape(-1).tolist()]
            return {"tensor": about | {"items": items}}
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes())
        return {"tensor": about | {"sha256": digest.hexdigest()}}

    def tensor(self, value: Tensor) -> dict[str, object]:
        about: dict[str, object] = {"shape": list(value.shape), "dtype": str(value.dtype)}
        if value.is_meta:
            return {"tensor": about | {"device": "meta"}}
        if value.layout != torch.strided:
            about["layout"] = str(value.layout)
            value = value.to_dense()
        if value.numel() > WRITTEN_OUT or value.is_complex() or value.is_quantized:
            return {"tensor": about | {"sha256": fingerprint({"": value})}}
        numbers = value.detach().cpu().reshape(-1).tolist()
        return {"tensor": about | {"values": [_number(v) if isinstance(v, float) else v for v in numbers]}}

    def mapping(self, value: Mapping[str, object], above: tuple[int, ...]) -> dict[str, object]:
        if all(isinstance(key, str) and key not in MARKS for key in value):
            return {key: self.write(item, above) for key, item in value.items()}
        return {"mapping": [[self.write(key, above), self.write(item, above)] for key, item in value.items()]}

    def fields(self, value: object, above: tuple[int, ...]) -> dict[str, object]:
        """The class with the fields; parts that a value tells by what it computes are in its code besides."""
        kind = type(value)
        ours = is_ours(kind)
        known: dict[str, object] = {"class": class_name(kind)}
        code: list[object] = [] if ours else [self.class_code(kind, above)]
        for name, item in fields_of(value).items():
            if isinstance(value, Value) and value._is_computed(item):
                code.append(self.write(item, above))
            elif name == "eta" and callable(item):
                known[name] = self.function_of_time(item, above)
            else:
                known[name] = self.write(item, above)

        text = repr(value) if len(known) == 1 and not ours else ""
        if text and " at 0x" not in text:
            known["text"] = text  # a date, a fraction, a range

        if isinstance(value, Value) and code:
            known |= value._computed()
        if code:
            known["code"] = checksum(code)
        return known

    def code_elsewhere(self, value: object, above: tuple[int, ...]) -> dict[str, object]:
        """The checksum of the code of a class that is written outside of this package; nothing for one of ours."""
        kind = type(value)
        return {} if is_ours(kind) else {"code": checksum(self.class_code(kind, above))}

    def network(self, net: object, above: tuple[int, ...]) -> dict[str, object]:
        """A network of any kind, with the checksum of the weights that it reaches."""
        known: dict[str, object] = self.write(net, above)
        return known if isinstance(net, nn.Module) else known | {"weights": weights(net)}

    def module(self, net: nn.Module, above: tuple[int, ...]) -> dict[str, object]:
        parts = []
        for name, part in net.named_modules():
            public = {key: item for key, item in vars(part).items() if key[0] != "_" and key != "training"}
            options = {key: item for key, item in public.items() if _is_option(item)}
            kind = type(part)
            parts.append([name, class_name(kind), self.write(options, above), self.class_code(kind, above)])
        return {"class": class_name(type(net)), "weights": weights(net), "code": checksum(parts)}

    def function(self, value: object, above: tuple[int, ...]) -> dict[str, object]:
        known: dict[str, object] = {"function": _qualified(value)}
        if not isinstance(value, FunctionType) or id(value) in self.functions:
            return known
        self.functions.add(id(value))
        if found := weights(value):
            known["weights"] = found
        return known | {"code": checksum(self.code(value, above))}

    def code(self, function: FunctionType, above: tuple[int, ...]) -> list[object]:
        """Code of a function: bytecode, defaults, closure and globals."""
        held = [[name, self.write(item, above)] for name, item in closure(function)]
        for name in _globals(function.__code__):
            item = function.__globals__.get(name)
            own = isinstance(item, FunctionType) and item.__module__ == function.__module__
            if own or _is_option(item) or isinstance(item, Tensor | np.ndarray | nn.Module | Value):
                held.append([name, self.write(item, above)])

        defaults = [function.__defaults__, function.__kwdefaults__]
        return [_bytecode(function.__code__), self.write(defaults, above), held]

    def class_code(self, kind: type, above: tuple[int, ...]) -> list[object]:
        """Methods and options of a class that is written outside of this package, and of its bases out there."""
        found: list[object] = []
        for base in kind.__mro__:
            if base.__module__.split(".")[0] in ("sgm_sde", "torch", "builtins", "abc", "typing", "numpy"):
                continue
            for name, item in sorted(vars(base).items()):
                item = getattr(item, "__func__", item.fget if isinstance(item, property) else item)
                known = isinstance(item, FunctionType | BuiltinFunctionType | Tensor | Value) or _is_option(item)
                if known and name not in ("__module__", "__doc__", "__firstlineno__"):
                    found.append([name, self.write(item, above)])
        return found

    def function_of_time(self, function: Callable[[float], float], above: tuple[int, ...]) -> dict[str, object]:
        """A solver's function of a time."""

        def at(t: float) -> float:
            try:
                return float(function(t))
            except Exception:  # anyone's function, at times that it is not made for
                return math.nan

        known: dict[str, object] = self.write(function, above)
        return known | {"values": measured([[at(t) for t in FUNCTION_TIMES]], TOLERANCE)}

    def function_of_times(
        self, function: Callable[[Tensor], Tensor], times: Sequence[float], above: tuple[int, ...]
    ) -> dict[str, object]:
        """A score's function of times (B,)."""
        known: dict[str, object] = self.write(function, above)
        try:
            values = torch.as_tensor(function(cpu_float64(times))).detach().double().reshape(-1).tolist()
        except Exception:  # anyone's function, as above
            values = []
        return known | {"values": measured([values], TOLERANCE)}


def _number(value: float) -> float | dict[str, str]:
    return value + 0.0 if math.isfinite(value) else {"float": str(float(value))}


def _plain(value: object) -> dict[str, str] | None:
    """Values that a text tells, with what kind of text it is."""
    if isinstance(value, complex):
        return {"complex": str(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, bytes):
        return {"type": f"bytes of sha256 {hashlib.sha256(value).hexdigest()}"}
    return None


def class_name(kind: type) -> str:
    """The name of a class in a spec: that of its package here and its own, or module and name of someone else's."""
    top, *inside = kind.__module__.split(".")
    if top == "sgm_sde":
        return f"{inside[0]}.{kind.__qualname__}" if inside else kind.__qualname__
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return f"{module}:{kind.__qualname__}"


def is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "sgm_sde"


def _qualified(function: object) -> str:
    named: Any = function
    module = "__main__" if named.__module__ == "__mp_main__" else named.__module__
    return f"{module}:{named.__qualname__}"


def fields_of(value: object) -> dict[str, object]:
    """Fields or public attributes of an object by name; numbers annotated as floats are floats."""
    if is_dataclass(value):
        return {field.name: _floats(field.type, getattr(value, field.name)) for field in fields(value)}
    try:
        named = {name: item for name, item in vars(value).items() if not name.startswith("_")}
    except TypeError:  # slots, or an extension's object
        named = {}
    return named | value._held() if isinstance(value, Value) else named


def _floats(kind: object, value: object) -> object:
    """The value with its integers as floats, where the annotation of its field has floats only."""
    kind = str(kind)
    if kind == "Terms" and isinstance(value, tuple):
        return tuple((j, float(c) if isinstance(c, int) else c) for j, c in value)
    if ("float" not in kind and kind != "Eta") or "int" in kind:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return tuple(_floats(kind, item) for item in value) if isinstance(value, tuple) else value


def is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _is_option(value: object) -> bool:
    if isinstance(value, tuple | list | frozenset):
        return all(map(_is_option, value))
    return value is None or isinstance(value, bool | int | float | str)


def _bytecode(code: CodeType) -> list[object]:
    constants = [_bytecode(c) if inspect.iscode(c) else _constant(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _constant(value: object) -> str:
    if isinstance(value, frozenset):
        return str(sorted(map(_constant, value)))
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def _globals(code: CodeType) -> list[str]:
    """Names that a function looks up in its module, those of functions inside it too."""
    names = [one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for constant in code.co_consts if inspect.iscode(constant) for name in _globals(constant)]
    return list(dict.fromkeys([*names, *inner]))
