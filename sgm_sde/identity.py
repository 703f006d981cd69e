"""The identity of values: what tells one process, solver or network from another, as JSON.

Whatever compares, stores or quotes settings does it by `spec`: stores of results, benchmarks, fitted solvers. `repr` is
for people and may leave things out. A spec rests on what a value is made of and not on its address: on its fields, on
the values of functions of time on a fixed grid, on the weights that a score reaches. Numbers that were measured are
compared with a tolerance, so that a run goes on on another machine.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from sgm_sde._utils.files import JsonMapping, JsonObject, parse_json
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde._utils.value import Value
from sgm_sde.engine.program import Program
from sgm_sde.processes.base import SDE, has_matrix_marginal, has_scalar_marginal
from sgm_sde.scores.score import Score

LONGEST = 32  # numbers of a sequence that a store's settings spell out; longer ones are told apart by their checksum
WRITTEN_OUT = 4096  # numbers of a tensor that a spec holds, and not only their checksum
DEEPEST = 24  # objects within objects
TIMES = 5  # at which a score is measured
ROWS = 4  # states at each of them
COEFFICIENTS = 1e-9  # within which the coefficients of a process agree, of their largest
OUTPUTS = {torch.float64: 1e-3, torch.float32: 1e-3}  # within which outputs agree, by the network's dtype
HALF = 3e-2  # the same for float16 and bfloat16

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
    return _Writer().write(value, ())


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
            raise ValueError(f"the spec of a value is JSON, got {text[:80]!r}: {error}") from error
    if not isinstance(data, dict) or "class" not in data:
        raise ValueError(f"the spec of a value is a JSON object with its class, got {str(data)[:200]}")
    made: Value = _read(data, "the value")
    return made


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


# --- writing ---------------------------------------------------------------------------------------------------------


class _Writer:
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

        if isinstance(value, Score):
            return self.score(value, within)
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
        """The class with the fields; a process' functions are in its coefficients."""
        kind = type(value)
        ours = _ours(kind)
        process = isinstance(value, SDE)
        known: dict[str, object] = {"class": class_name(kind)}
        code: list[object] = [] if ours else [self.class_code(kind, above)]
        for name, item in _fields(value).items():
            if process and _is_function(item):
                code.append(self.write(item, above))
            elif name == "eta" and callable(item):
                known[name] = self.function_of_time(item, above)
            else:
                known[name] = self.write(item, above)

        text = repr(value) if len(known) == 1 and not ours else ""
        if text and " at 0x" not in text:
            known["text"] = text  # a date, a fraction, a range

        if isinstance(value, SDE) and code:
            known["coefficients"] = coefficients(value)
        if code:
            known["code"] = checksum(code)
        return known

    def score(self, value: Score, above: tuple[int, ...]) -> dict[str, object]:
        """Spec of a score: prediction, time label, scales, and the network or scores inside."""
        kind = type(value)
        known: dict[str, object] = {"class": class_name(kind), "sde": self.write(value.sde, above)}
        parts = _fields(value)
        inner = [name for name, item in parts.items() if _holds_score(item)]
        if not inner:
            known["net"] = self.network(value.net, above)

        for name, item in parts.items():
            if name in ("net", "sde"):
                continue
            if name in ("time_label", "input_scale") and callable(item):
                known[name] = self.function_of_times(item, value.sde, above)
            else:
                known[name] = self.write(item, above)
        for name in inner:
            _drop_process(known[name])

        known["dtype"] = self.write(value.dtype, above)
        if not _ours(kind):
            known["code"] = checksum(self.class_code(kind, above))
        return known

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
        held = [[name, self.write(item, above)] for name, item in _closure(function)]
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
        return known | {"values": measured([[at(t) for t in FUNCTION_TIMES]], COEFFICIENTS)}

    def function_of_times(self, function: Callable[[Tensor], Tensor], sde: SDE, above: tuple[int, ...]) -> object:
        """A score's function of times (B,)."""
        known: dict[str, object] = self.write(function, above)
        t = cpu_float64(times_of(sde, 9))
        try:
            values = torch.as_tensor(function(t)).detach().double().reshape(-1).tolist()
        except Exception:  # anyone's function, as above
            values = []
        return known | {"values": measured([values], COEFFICIENTS)}


def _closure(function: FunctionType) -> Iterator[tuple[str, object]]:
    """Names that a function closes over with what they hold; None for one that is not set yet."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held = cell.cell_contents
        except ValueError:
            held = None
        yield name, held


def _drop_process(known: object) -> None:
    """Take the process out of the spec of a score, or of a list of such, that is inside of one on the same process."""
    for score in known if isinstance(known, list) else [known]:
        if isinstance(score, dict):
            score.pop("sde", None)


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
    package, *rooms = kind.__module__.split(".")
    if package == "sgm_sde":
        return f"{rooms[0]}.{kind.__qualname__}" if rooms else kind.__qualname__
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return f"{module}:{kind.__qualname__}"


def _ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "sgm_sde"


def _qualified(function: object) -> str:
    named: Any = function
    module = "__main__" if named.__module__ == "__mp_main__" else named.__module__
    return f"{module}:{named.__qualname__}"


def _fields(value: object) -> dict[str, object]:
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


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def _is_option(value: object) -> bool:
    if isinstance(value, tuple | list | frozenset):
        return all(map(_is_option, value))
    return value is None or isinstance(value, bool | int | float | str)


def _holds_score(value: object) -> bool:
    return isinstance(value, Score) or (isinstance(value, tuple) and bool(value) and isinstance(value[0], Score))


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


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(data: object, where: str) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        raise ValueError(f"{where} must be made of JSON values, got {data!r}")
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return tuple(_read(item, f"{where}[{i}]") for i, item in enumerate(data))
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be made of JSON values, got {data!r}")

    marks = [mark for mark in MARKS if mark in data]
    if not marks:
        return {key: _read(item, f"{where}.{key}") for key, item in data.items()}
    try:
        return _marked(data, where)
    except _FingerprintOnly:
        raise ValueError(f"{where} is {marks[0]} only by its fingerprint: give it anew") from None
    except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{where} is not the spec of a value: {error}") from error


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
    if kind is Program:
        return Program.from_json(json.dumps(_without_classes(data, "engine.Stage", "engine.Program", "engine.Matrix")))
    given = {key: _read(item, f"{where}.{key}") for key, item in data.items() if key not in ("class", "code")}
    taken = inspect.signature(kind).parameters
    made = kind(**{key: item for key, item in given.items() if key in taken})
    if spec(made) != data:
        raise ValueError(f"{where} is no {data['class']} of this version: made anew it is {spec(made)}, not {data}")
    return made


def _class_of(name: object, where: str) -> type[Value]:
    """The class of values that has a name."""
    known = _classes()
    if isinstance(name, str) and name not in known:
        room = f"sgm_sde.{name.partition('.')[0]}"
        if room.replace(".", "").replace("_", "").isalnum() and find_spec(room) is not None:
            import_module(room)
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


def _without_classes(data: object, *names: str) -> object:
    if isinstance(data, list):
        return [_without_classes(item, *names) for item in data]
    if not isinstance(data, dict):
        return data
    return {k: _without_classes(v, *names) for k, v in data.items() if not (k == "class" and v in names)}


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


# --- what is measured ------------------------------------------------------------------------------------------------


def measured(rows: Sequence[Sequence[float]], within: float) -> dict[str, object]:
    """Numbers that another machine may round differently, as JSON values; rows are of numbers of one size."""
    return {
        "values": [[v + 0.0 if math.isfinite(v) else str(v) for v in map(float, row)] for row in rows],
        "within": within,
    }


def disagreement(there: object, now: object) -> float | None:
    """The largest difference of two measurements, as a share of the largest number of its row.

    None where they are no measurements of the same kind; 0 within the tolerance.

    Examples:
        >>> a, b = measured([[1.0, 2.0]], 1e-3), measured([[1.0, 2.001]], 1e-3)
        >>> disagreement(a, b), disagreement(a, measured([[1.0, 2.5]], 1e-3)), disagreement(a, 3)
        (0.0, 0.2, None)
    """
    if not (_is_measurement(there) and _is_measurement(now)):
        return None
    if there["within"] != now["within"] or [len(r) for r in there["values"]] != [len(r) for r in now["values"]]:
        return None

    rows = zip(there["values"], now["values"], strict=True)
    largest = max((_row_difference(a, b) for a, b in rows), default=0.0)
    return largest if not largest <= now["within"] else 0.0


def _row_difference(there: Sequence[float | str], now: Sequence[float | str]) -> float:
    """The largest difference of two rows as a share of their largest number; infinite where one alone is finite."""
    known = [(float(x), float(y)) for x, y in zip(there, now, strict=True)]
    if any((math.isfinite(x) or math.isfinite(y)) and not math.isfinite(x - y) for x, y in known):
        return math.inf
    pairs = [(x, y) for x, y in known if math.isfinite(x)]
    size = max((max(abs(x), abs(y)) for x, y in pairs), default=0.0)
    return max(abs(x - y) for x, y in pairs) / size if size else 0.0


def _is_measurement(value: object) -> TypeGuard[JsonObject]:
    """True for what `measured` makes."""
    if not isinstance(value, dict) or value.keys() != {"values", "within"}:
        return False
    rows = value["values"]
    plain = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    return plain and all(isinstance(v, float | int) or v in ("nan", "inf", "-inf") for row in rows for v in row)


def times_of(sde: SDE, n: int) -> list[float]:
    """Times of a process at which it and its scores are measured: n of them, in equal ratios, from T down."""
    first = max(sde.eps, 1e-4 * sde.T)
    return [sde.T * (first / sde.T) ** (k / (n - 1)) for k in range(n - 1)] + [first]


def coefficients(sde: SDE) -> dict[str, object]:
    """The coefficients of a process at nine times: alpha and sigma, drift and diffusion matrices, or the diffusion."""
    t = cpu_float64(times_of(sde, 9))
    functions: list[Callable[[Tensor], Tensor]] = [sde.g]
    if has_scalar_marginal(sde):
        functions = [sde.alpha, sde.sigma]
    elif has_matrix_marginal(sde):
        functions = [sde.drift_matrix, sde.g]
    return measured([f(t).detach().reshape(-1).tolist() for f in functions], COEFFICIENTS)


@torch.no_grad()
def outputs(
    score: Score,
    shape: Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, object]:
    """Measured outputs of a score: projections of network output and score at fixed states and times.

    States are those of data N(0, 1/4), four at each of five times. The global random state stays as it is.

    Args:
        score: the score.
        shape: of one sample.
        labels: classes that samples take in turn, passed on as `y`.
        device: where the network is.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    rows: list[list[float]] = []
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)  # for networks that draw on it
        for k, t in enumerate(times_of(score.sde, TIMES)):
            normals = torch.randn((5, ROWS, *shape), generator=generator)
            kwargs = {} if labels is None else {"y": _labels(labels, k, device)}
            rows += _outputs_at(score, t, normals, device, kwargs)
    return measured(rows, OUTPUTS.get(score.dtype or torch.float32, HALF))


def _outputs_at(
    score: Score, t: float, normals: Tensor, device: torch.device | str, kwargs: Mapping[str, Tensor]
) -> list[list[float]]:
    """Projections of the network's output on two random directions, and of the score on a third, at a time."""
    data, noise, first, second, third = normals.unbind(0)
    x = _state(score.sde, data / 2, noise, t).to(device=device, dtype=torch.get_default_dtype())
    times = torch.full((ROWS,), t, dtype=x.dtype, device=x.device)
    out = score.output(x, times, **kwargs)
    predicted = score.convert("score", x, times, out)
    return [[*_projections(out, first), *_projections(out, second)], _projections(predicted, third)]


def _labels(labels: Sequence[int], k: int, device: torch.device | str) -> Tensor:
    """Labels (ROWS,) of the states at the k-th time: all classes in turn."""
    of_states = [labels[(ROWS * k + i) % len(labels)] for i in range(ROWS)]
    return torch.tensor(of_states, device=device)


def _state(sde: SDE, data: Tensor, noise: Tensor, t: float) -> Tensor:
    if has_scalar_marginal(sde):
        state: Tensor = float(sde.alpha(t)) * data + float(sde.sigma(t)) * noise
    else:
        state = sde.prior_transform(noise)
    return state


def _projections(value: Tensor, direction: Tensor) -> list[float]:
    """One number a row: its share along a random direction."""
    along = (value.detach().cpu().double() * direction.double()).reshape(ROWS, -1).sum(1)
    projections: list[float] = (along / direction[0].numel() ** 0.5).tolist()
    return projections


# --- what a score reaches --------------------------------------------------------------------------------------------


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


def _tensors(value: object) -> dict[str, Tensor]:
    if isinstance(value, nn.Module):
        return {name: item for name, item in value.state_dict().items() if isinstance(item, Tensor)}
    return {"": torch.as_tensor(value)}


def reached(value: object) -> Iterator[nn.Module | Tensor | np.ndarray]:
    """Modules, tensors and arrays behind a score: its parts, and what functions close over, hold or name."""
    return _reached(value, set(), 0)


def _reached(value: object, seen: set[int], depth: int) -> Iterator[nn.Module | Tensor | np.ndarray]:
    if id(value) in seen or depth > 12 or isinstance(value, str | bytes | int | float | type | ModuleType):
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
    found = [held for _, held in _closure(function)]
    found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for name in _names(function.__code__):
        named = function.__globals__.get(name)
        own = isinstance(named, FunctionType) and named.__module__ == function.__module__
        if own or isinstance(named, nn.Module | Tensor | np.ndarray | Score):
            found.append(named)
    return found


def _names(code: CodeType) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names += _names(constant)
    return names
