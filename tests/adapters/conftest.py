"""A network of diffusers for the tests of adapters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def diffusers() -> Iterator[Any]:
    """The library, where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def unet(diffusers: Any) -> Any:
    """A small network of it, with classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, num_class_embeds=3,
        )  # fmt: skip
    return net.double().eval().requires_grad_(False)
