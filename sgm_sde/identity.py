"""The identity of values: what tells one process, solver or network from another, as JSON.

Runs compare it before they go on in a folder. It rests on what a value does and not on its code or its address: on its
fields, on the coefficients of a process on a fixed grid of times, on the weights that a score reaches, and on its
outputs at a few fixed states and times. Numbers that were measured are compared with a tolerance.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sgm_sde._shapes import on_host
from sgm_sde.processes.base import SDE
from sgm_sde.scores.score import Score

LONGEST = 32  # sequences of more numbers are told apart by their checksum
TIMES = 5  # at which a score is measured
ROWS = 4  # states at each of them
COEFFICIENTS = 1e-9  # within which the coefficients of a process agree, of their largest
OUTPUTS = {torch.float64: 1e-3, torch.float32: 1e-3}  # within which outputs agree, by the network's dtype
HALF = 3e-2  # the same for float16 and bfloat16


def spec(value: Any) -> Any:
    """The identity of a value as JSON values.

    A process, solver, grid or other object is its class with its fields; a process, its coefficients on a grid of times
    besides, and these alone tell its functions of time; a network is the checksum of its weights; a tensor, or a long
    table, that of its contents. A function is its name: what it does is measured where it is used.

    Example:
        >>> import sgm_sde as sg
        >>> spec(sg.grids.Karras(rho=5.0))
        {'class': 'Karras', 'rho': 5.0}
        >>> a, b = (sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t, T=0.9) for _ in range(2))
        >>> a == b, spec(a) == spec(b)
        (False, True)
    """
    return _spec(value, ())


def _spec(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, torch.dtype | torch.device | Path | complex):
        return str(value)
    if id(value) in above:
        return {"class": type(value).__qualname__}
    within = (*above, id(value))

    if isinstance(value, Tensor | np.ndarray | np.generic):
        tensor = torch.as_tensor(value)
        return {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "sha256": fingerprint({"": tensor})}
    if isinstance(value, Mapping):
        return {str(key): _spec(item, within) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_spec(item, within) for item in value]
        return {"length": len(items), "sha256": checksum(items)} if len(items) > LONGEST else items
    if isinstance(value, set | frozenset):
        return sorted((_spec(item, within) for item in value), key=json.dumps)
    if isinstance(value, nn.Module):
        return {"class": type(value).__qualname__, "weights": weights(value)}
    if isinstance(value, functools.partial):
        return {"function": _spec(value.func, within), "given": _spec([value.args, value.keywords], within)}
    if isinstance(value, Score):
        plain = {name: item for name, item in _fields(value).items() if name not in ("net", "sde")}
        return {"class": type(value).__qualname__, "net": _name(value.net)} | _spec(plain, within)
    if isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType):
        return {"function": value.__qualname__}

    known: dict[str, Any] = {"class": type(value).__qualname__}
    for name, item in _fields(value).items():
        if isinstance(value, SDE) and _is_function(item):
            continue  # its values tell it
        known[name] = _spec(item, within)
    if isinstance(value, SDE):
        known["coefficients"] = coefficients(value)
    return known


def _name(net: Any) -> str:
    return str(getattr(net, "__qualname__", type(net).__qualname__))


def _fields(value: Any) -> dict[str, Any]:
    """What an object is made of, by name."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.compare}
    try:
        return {name: item for name, item in vars(value).items() if not name.startswith("_")}
    except TypeError:  # slots, or an extension's object
        return {}


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, nn.Module)


def checksum(value: Any) -> str:
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


def measured(rows: Sequence[Sequence[float]], within: float) -> dict[str, Any]:
    """Numbers that another machine may round differently, as JSON values; rows are of numbers of one size."""
    return {"values": [[_spec(float(v), ()) for v in row] for row in rows], "within": within}


def disagreement(there: Any, now: Any) -> float | None:
    """The largest difference of two measurements, as a share of the largest number of its row.

    None where they are no measurements of the same kind; 0 within the tolerance.

    Example:
        >>> a, b = measured([[1.0, 2.0]], 1e-3), measured([[1.0, 2.001]], 1e-3)
        >>> disagreement(a, b), disagreement(a, measured([[1.0, 2.5]], 1e-3)), disagreement(a, 3)
        (0.0, 0.2, None)
    """
    for value in (there, now):
        if not isinstance(value, dict) or value.keys() != {"values", "within"} or not _is_table(value["values"]):
            return None
    if there["within"] != now["within"] or [len(r) for r in there["values"]] != [len(r) for r in now["values"]]:
        return None
    largest = 0.0
    for a, b in zip(there["values"], now["values"], strict=True):
        known = [(float(x), float(y)) for x, y in zip(a, b, strict=True)]
        if any((math.isfinite(x) or math.isfinite(y)) and not math.isfinite(x - y) for x, y in known):
            return math.inf  # finite in one of them only
        pairs = [(x, y) for x, y in known if math.isfinite(x)]
        size = max((max(abs(x), abs(y)) for x, y in pairs), default=0.0)
        if size:
            largest = max(largest, max(abs(x - y) for x, y in pairs) / size)
    return largest if not largest <= now["within"] else 0.0


def _is_table(rows: Any) -> bool:
    plain = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    return plain and all(isinstance(v, float | int) or v in ("nan", "inf", "-inf") for row in rows for v in row)


def times_of(sde: SDE, n: int) -> list[float]:
    """Times of a process at which it and its scores are measured: n of them, in equal ratios, from T down."""
    first = max(sde.eps, 1e-4 * sde.T)
    return [sde.T * (first / sde.T) ** (k / (n - 1)) for k in range(n - 1)] + [first]


def coefficients(sde: SDE) -> dict[str, Any]:
    """The coefficients of a process at nine times: alpha and sigma, drift and diffusion matrices, or the diffusion."""
    t = on_host(times_of(sde, 9))
    process: Any = sde
    if sde.is_linear:
        functions = [process.alpha, process.sigma]
    elif sde.has_kernel:
        functions = [process.drift_matrix, process.g]
    else:
        functions = [process.g]
    return measured([f(t).detach().reshape(-1).tolist() for f in functions], COEFFICIENTS)


@torch.no_grad()
def outputs(
    score: Score,
    shape: Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """What a score does: projections of its network's output, and of the score itself, at fixed states and times.

    States are those of data N(0, 1/4), four at each of five times. The global random state stays as it is.

    Args:
        score: the score.
        shape: of one sample.
        labels: classes that samples take in turn, passed on as `y`.
        device: where the network is.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    size = (ROWS, *shape)
    rows = []
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)  # for networks that draw on it
        for k, t in enumerate(times_of(score.sde, TIMES)):
            data, noise, *directions = torch.randn((5, *size), generator=generator).unbind(0)
            x = _state(score.sde, data / 2, noise, t).to(device=device, dtype=torch.get_default_dtype())
            time = torch.full((ROWS,), t, dtype=x.dtype, device=x.device)
            kwargs = {}
            if labels is not None:
                kwargs["y"] = torch.tensor([labels[(ROWS * k + i) % len(labels)] for i in range(ROWS)], device=device)
            out = score.output(x, time, **kwargs)
            predicted = score.convert("score", x, time, out)
            rows.append([v for direction in directions[:2] for v in _projections(out, direction)])
            rows.append(_projections(predicted, directions[2]))
    return measured(rows, OUTPUTS.get(score.dtype or torch.float32, HALF))


def _state(sde: Any, data: Tensor, noise: Tensor, t: float) -> Tensor:
    if sde.is_linear:
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


def weights(value: Any) -> str:
    """SHA-256 of all parameters, buffers and tensors that a score or function reaches; "" without any."""
    found = list(reached(value))
    if len(found) == 1 and isinstance(found[0], nn.Module):
        return fingerprint(_tensors(found[0]))
    named = {}
    for i, one in enumerate(found):
        for name, tensor in _tensors(one).items():
            named[f"{i}.{name}"] = tensor
    return fingerprint(named)


def networks(value: Any) -> list[nn.Module]:
    """The modules that a score or function reaches."""
    return [one for one in reached(value) if isinstance(one, nn.Module)]


def _tensors(value: Any) -> dict[str, Tensor]:
    if isinstance(value, nn.Module):
        return {name: item for name, item in value.state_dict().items() if isinstance(item, Tensor)}
    return {"": torch.as_tensor(value)}


def reached(value: Any) -> Iterator[nn.Module | Tensor | np.ndarray]:
    """Modules, tensors and arrays behind a score: its parts, and what functions close over, hold or name."""
    return _reached(value, set(), 0)


def _reached(value: Any, seen: set[int], depth: int) -> Iterator[nn.Module | Tensor | np.ndarray]:
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


def _parts(value: Any) -> list[Any]:
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


def _named(function: FunctionType) -> list[Any]:
    """What a function closes over, has as defaults, and names of its module: data, and functions written there."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not set yet
            continue
    found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for name in _names(function.__code__):
        named = function.__globals__.get(name)
        own = isinstance(named, FunctionType) and named.__module__ == function.__module__
        if own or isinstance(named, nn.Module | Tensor | np.ndarray | Score):
            found.append(named)
    return found


def _names(code: Any) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names += _names(constant)
    return names
