"""What the tests of inverse share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse
from tests.helpers import F64

VP = sg.VPSDE()


HALF = inverse.Mask(torch.tensor([True, False]))


TILTED = sg.oracles.Gaussian(torch.tensor([0.3, -0.7], dtype=F64), torch.tensor([[1.0, 0.8], [0.8, 1.2]], dtype=F64))


MODES = sg.oracles.GaussianMixture(
    torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]], dtype=F64), [0.4, 0.5, 0.3], [0.5, 0.3, 0.2]
)


def seen(std: float = 0.0) -> inverse.Measurement:
    """The first of two coordinates, measured as 1."""
    return inverse.Measurement(HALF, torch.tensor([1.0, 0.0], dtype=F64), std)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def dense(operator: inverse.LinearOperator, shape: tuple[int, ...]) -> Tensor:
    """The operator's matrix (m, d)."""
    d = math.prod(shape)
    return operator.apply(torch.eye(d, dtype=F64).reshape(d, *shape)).flatten(1).T


def checkerboard(*shape: int) -> Tensor:
    """A mask with every other entry observed."""
    return (torch.arange(math.prod(shape)) % 2 == 0).reshape(shape)


MIX = torch.tensor([[0.2, 0.7, 0.1], [0.5, -0.5, 0.3]], dtype=F64)


KERNEL = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.5, 0.1]], dtype=F64)


OPERATORS: dict[str, tuple[inverse.LinearOperator, tuple[int, ...]]] = {
    "mask": (inverse.Mask(checkerboard(3, 4)), (3, 4)),
    "mask a sample": (inverse.Mask(normal(4, 5, seed=3) > 0), (5,)),
    "grey": (inverse.ChannelMix.grey(3), (3, 2, 2)),
    "mix of channels": (inverse.ChannelMix(MIX), (3, 4)),
    "mix of features": (inverse.ChannelMix(MIX), (3,)),
    "blocks": (inverse.BlockAverage(2), (2, 4, 6)),
    "blocks of a line": (inverse.BlockAverage(3, dims=1), (2, 6)),
    "blur": (inverse.Blur(KERNEL), (2, 4, 5)),
    "gaussian blur": (inverse.Blur.gaussian(0.8, size=3), (1, 4, 4)),
    "map": (inverse.LinearMap(lambda x: x[:, 1:] - x[:, :-1], (5,)), (5,)),
    "map of full rank": (inverse.LinearMap(lambda x: x[:, 1:] - x[:, :-1], (5,), full_rank=True), (5,)),
    "map with adjoint": (
        inverse.LinearMap(lambda x: x.sum(2), (3, 2), adjoint=lambda y: y[:, :, None].expand(-1, -1, 2)),
        (3, 2),
    ),
}


SCORES: dict[str, Callable[..., inverse.PosteriorScore]] = {
    "mmps": lambda s, m: inverse.MMPS(s, m, iterations=4),
    "mmps-cg": lambda s, m: inverse.MMPS(s, m, iterations=4, linear_solver="cg"),
    "pigdm": lambda s, m: inverse.PiGDM(s, m, data_std=0.8),
    "diffpir": lambda s, m: inverse.DiffPIR(s, m, strength=2.0),
}


class Listed:
    """Noise from a list."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = iter(draws)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: object = None) -> Tensor:
        """The next."""
        return next(self.draws)
