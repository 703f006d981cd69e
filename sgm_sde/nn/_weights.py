"""Shipped weights: safetensors files beside the package."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

_Net = TypeVar("_Net", bound=nn.Module)


def read_asset(name: str) -> dict[str, Tensor]:
    """The tensors of a shipped file."""
    return safetensors.torch.load((resources.files("sgm_sde") / "zoo" / "assets" / name).read_bytes())


def with_weights(make: Callable[[], _Net], asset: str) -> _Net:
    """The network that `make` builds, on the meta device so that no initial weights are drawn, with stored weights."""
    with torch.device("meta"):
        net = make()

    # Matrices are stored in half precision to keep the package small.
    net.load_state_dict({name: value.float() for name, value in read_asset(asset).items()}, assign=True)
    return net.eval().requires_grad_(False)


def store(net: nn.Module, path: Path) -> None:
    """Write the weights, matrices in half precision, and round those of `net` alike."""
    stored = {name: value.half() if value.ndim > 1 else value for name, value in net.state_dict().items()}
    safetensors.torch.save_file({name: value.contiguous() for name, value in stored.items()}, path)
    net.load_state_dict(stored)
