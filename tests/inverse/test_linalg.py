"""Measurements and linear systems."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sgm_sde import inverse
from sgm_sde.inverse.linalg import Linearised, conjugate_gradient, conjugate_residual
from tests.helpers import DONATES, F64, UsedUp
from tests.inverse.cases import (
    HALF,
    normal,
)


def test_measurements() -> None:
    """One for all or one per sample; what a mask hides is not looked at; simulated noise is a sample's own."""
    x = normal(3, 2)
    each = inverse.Measurement(HALF, normal(3, 2, seed=1))
    torch.testing.assert_close(each.residual(x)[:, 0], normal(3, 2, seed=1)[:, 0] - x[:, 0])
    assert not each.residual(x)[:, 1].any()
    hidden = inverse.Measurement(HALF, torch.tensor([1.0, math.nan]))
    torch.testing.assert_close(hidden.residual(x)[:, 0], 1 - x[:, 0])
    assert repr(hidden) == "Measurement(Mask(1 of 2 observed), y=(2,), std=0)"
    blocks, data = inverse.BlockAverage(2), torch.ones(2000, 1, 4, 4)
    noisy = inverse.Measurement.simulate(blocks, data, 0.5, seed=3)
    error = noisy.y - blocks.apply(data)
    assert abs(float(error.std()) - 0.5) < 4 * 0.5 / math.sqrt(2 * error.numel())
    assert torch.equal(inverse.Measurement.simulate(blocks, data[:5], 0.5, seed=3).y, noisy.y[:5])
    assert inverse.Measurement.simulate(blocks, data[:5]).y.eq(1).all()


@DONATES
@torch.no_grad()
def test_products_where_a_graph_gives_a_single_one() -> None:
    """Of the square, and of the cube that is made of it: 2 x v and 3 x^2 v, as often as they are asked for."""
    x, v = normal(3, 2), normal(3, 2, seed=1)
    square = Linearised(UsedUp.apply, x)
    for _ in range(2):
        torch.testing.assert_close(square.vjp(v), 2 * x * v)
        torch.testing.assert_close(square.vjp(v, torch.mul), 3 * x**2 * v)


def systems(solve: Any) -> tuple[Callable[..., tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Three systems M x = b as a solver takes them, zero and huge b among them, and what L x is exactly."""
    root = normal(3, 4, 4)
    M = root @ root.mT + 0.1 * torch.eye(4, dtype=F64)
    if solve is conjugate_residual:  # any matrix with a positive symmetric part
        M = M + 0.5 * (root - root.mT)
    L = normal(3, 5, 4, seed=1)

    def apply(p: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        return (M[rows] @ p[..., None])[..., 0], (L[rows] @ p[..., None])[..., 0]

    b = normal(3, 4, seed=2) * torch.tensor([[1.0], [1e12], [0.0]], dtype=F64)
    return apply, b, (L @ torch.linalg.solve(M, b[..., None]))[..., 0]


@pytest.mark.parametrize("solve", [conjugate_gradient, conjugate_residual])
def test_linear_solvers_treat_each_sample_by_itself(solve: Any) -> None:
    """Zero and huge right-hand sides among them."""
    apply, b, _ = systems(solve)
    few = solve(apply, b, 2)
    alone = torch.cat([solve(lambda p, i=i: apply(p, slice(i, i + 1)), b[i : i + 1], 2) for i in range(3)])
    torch.testing.assert_close(few, alone, rtol=1e-13, atol=0)


@pytest.mark.parametrize("solve", [conjugate_gradient, conjugate_residual])
@pytest.mark.parametrize("iterations", [4, 40])
def test_linear_solvers_are_exact_after_as_many_steps_as_dimensions(solve: Any, iterations: int) -> None:
    apply, b, exact = systems(solve)
    torch.testing.assert_close(solve(apply, b, iterations), exact, rtol=1e-8, atol=0)


def test_residuals_never_grow() -> None:
    """Conjugate residuals on matrices that are neither symmetric nor positive: each step is the better for it."""
    M, b = normal(50, 8, 8), normal(50, 8, seed=1)

    def apply(p: Tensor) -> tuple[Tensor, Tensor]:
        image = (M @ p[..., None])[..., 0]
        return image, image  # L = M: what is solved for is b itself

    residuals = torch.stack([(b - conjugate_residual(apply, b, k)).norm(dim=1) for k in range(1, 9)])
    assert bool((residuals[0] < b.norm(dim=1)).all())
    assert bool((residuals.diff(dim=0) <= 1e-9).all())
