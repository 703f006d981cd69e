"""The most memory that a run holds at a time."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it that are alive, and, with what Python traces, their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in known and storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.forget, storage._cdata)
        self.peak = max(self.peak, self.live + tracemalloc.get_traced_memory()[0])
        return result

    def forget(self, storage: int) -> None:
        """A storage is gone."""
        self.live -= self.sizes.pop(storage)


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes of tensors and arrays that a run holds at a time; those from before it not counted."""
    with LiveBytes():
        run()  # what the first time loads and keeps is not of the run
    gc.collect()

    tracemalloc.start()  # NumPy tells it of its memory
    try:
        with LiveBytes() as count:
            run()
    finally:
        tracemalloc.stop()
    return int(count.peak)
