"""A CUDA device that is not there: tensors on the CPU that say they lie on it, and what such a device refuses.

Operations take tensors of one device alone, but for numbers without dimensions, as CUDA's do; and everything that waits
for the device is counted with the line of the package that asks. What is computed is what the CPU computes.

Not seen are kernels, streams and graphs, and what torch does inside of its own functions.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import sgm_sde

PACKAGE = str(Path(sgm_sde.__file__).parent)
CUDA = torch.device("cuda", 0)
WAITS = {
    Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__,
    Tensor.__contains__,
    Tensor.nonzero, torch.nonzero, Tensor.equal, torch.equal, torch.allclose, Tensor.allclose, Tensor.numpy, Tensor.cpu,
    torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique, torch.argwhere, Tensor.argwhere,
}  # fmt: skip
ENTRIES = {Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put_, Tensor.index_put}
ACROSS = {Tensor.copy_, Tensor.to, Tensor.type_as, *ENTRIES}  # which take tensors of two devices


class FarTensor(Tensor):
    """A tensor that says it lies on the device."""

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def far(x: Any) -> Any:
    """Tensors of a condition on the device, copied to it."""
    return tree_map(lambda leaf: leaf.clone().as_subclass(FarTensor) if isinstance(leaf, Tensor) else leaf, x)


def near(x: Tensor) -> Tensor:
    """The tensor on the CPU."""
    return x.detach().as_subclass(Tensor)


class FarDevice(TorchFunctionMode):
    """While it is entered, `device="cuda"` makes and takes tensors that say they lie there.

    Attributes:
        waits: how often a line of the package waited for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._there = patch.object(torch.cuda, "device_count", lambda: 1)

    def __enter__(self) -> FarDevice:
        _entered.append(self)
        self._there.start()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        self._there.stop()
        _entered.remove(self)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_entered: list[FarDevice] = []


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of torch as the device would run it."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [x for x in tensors if isinstance(x, FarTensor)]
    here = [x for x in tensors if not isinstance(x, FarTensor)]
    goes_there = _goes_there(func, args, kwargs)

    if there and here and func not in ACROSS and goes_there is None:
        _require_one_device(func, here)
    if there and func in ENTRIES:
        _require_entries(func, args)
    if there and (func in WAITS or goes_there is False or _waits_for_entries(func, args)):
        _wait(func)

    if goes_there is not None:
        args, kwargs = _on_cpu(args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        out = func(*args, **kwargs)

    if goes_there is False or func in (Tensor.numpy, Tensor.cpu):
        return tree_map(lambda leaf: near(leaf) if type(leaf) is FarTensor else leaf, out)
    if not there and not goes_there:
        return out
    if any(out is x for x in here):  # what is on the CPU already is no copy of it
        return far(out) if goes_there else out
    return tree_map(_marked, out) if not isinstance(out, torch.Size) else out


def _goes_there(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
    """True for what is to lie on the device, False for the CPU, None where nothing is said."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == "cuda"
    if func is not Tensor.to:
        return None
    for given in args[1:]:
        if isinstance(given, torch.device | str):
            return torch.device(given).type == "cuda"
        if isinstance(given, Tensor):
            return isinstance(given, FarTensor)
    return None


def _on_cpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with the CPU for the device that they name."""
    cpu = torch.device("cpu")
    named = tuple(cpu if isinstance(given, torch.device | str) else given for given in args)
    return named, {name: cpu if name == "device" else given for name, given in kwargs.items()}


def _require_one_device(func: Callable[..., Any], here: list[Tensor]) -> None:
    if any(x.ndim for x in here):
        shapes = [tuple(x.shape) for x in here]
        raise RuntimeError(f"Expected all tensors to be on the same device, in {func}: {shapes} are on the CPU")


def _require_entries(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if not isinstance(args[0], FarTensor):
        raise RuntimeError(f"{func} of a tensor on the CPU by one on the device")


def _waits_for_entries(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """True for entries by a mask, whose number the host has to know, or by numbers from the host."""
    if func not in ENTRIES:
        return False
    indices = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor) and leaf.ndim]
    return any(index.dtype == torch.bool or not isinstance(index, FarTensor) for index in indices)


def _wait(func: Callable[..., Any]) -> None:
    """Count the line of the package that asks."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    place = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}" if frame else "elsewhere"
    for device in _entered:
        device.waits[f"{place} {getattr(func, '__name__', func)}"] += 1


def _marked(leaf: Any) -> Any:
    """A new tensor as one on the device, itself: a copy would have another place in autograd's graph."""
    if type(leaf) is Tensor:
        leaf.__class__ = FarTensor
    return leaf
