"""The shipped networks, as they load."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

import pytest
import torch
from torch import nn

from sgm_sde.nn import digits, fashion

LOADERS = [
    digits.load_digits_denoiser,
    digits.load_digits_velocity,
    digits.load_digits_classifier,
    fashion.load_fashion_denoiser,
    fashion.load_fashion_classifier,
]


SIZES = {  # bytes that a file of weights may have
    "digits_denoiser": 1_000_000,
    "digits_velocity": 1_100_000,
    "digits_classifier": 300_000,
    "fashion_denoiser": 4_000_000,
    "fashion_classifier": 4_000_000,
    "fashion_statistics": 4_000_000,
}


def test_the_files_of_weights() -> None:
    """All of them, and none is large."""
    assets = (resources.files("sgm_sde") / "zoo" / "assets").iterdir()
    sizes = {p.name.removesuffix(".safetensors"): len(p.read_bytes()) for p in assets if p.name.endswith("safetensors")}
    assert sizes.keys() == SIZES.keys()
    assert [name for name, size in sizes.items() if size > SIZES[name]] == []


@pytest.mark.parametrize("load", LOADERS)
def test_loaders_are_frozen_float32_and_leave_the_global_rng_alone(load: Callable[[], nn.Module]) -> None:
    before = torch.get_rng_state()
    net = load()
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.training
    tensors = list(net.state_dict().values())
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" and t.isfinite().all() for t in tensors)
    assert not any(p.requires_grad for p in net.parameters())
