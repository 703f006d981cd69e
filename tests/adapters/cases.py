"""What the tests of adapters share."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.helpers import F64

SHAPE = (2, 3, 8, 8)
DDPM = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """A state of standard normal numbers."""
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, label: Tensor) -> Tensor:
    """A network of noise whose label is in float32, as a pipeline's timesteps are."""
    return torch.tanh(x + 0.001 * label.float().reshape(-1, *[1] * (x.ndim - 1)))
