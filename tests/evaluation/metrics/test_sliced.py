"""The sliced Wasserstein distance: closed forms, brute force, and other packages."""

from __future__ import annotations

import math

import pytest
import torch

from sgm_sde.evaluation.metrics import sliced_wasserstein
from tests.evaluation.cases import normal


def test_sliced_wasserstein_of_a_shift_is_exact() -> None:
    a = normal(50, 6)
    v = torch.arange(6.0, dtype=torch.float64)
    assert sliced_wasserstein(a, a + v, n_directions=12).value == pytest.approx(
        float(v.norm()) / math.sqrt(6), rel=1e-12
    )
    assert sliced_wasserstein(a, a, n_directions=12).value == 0
    assert sliced_wasserstein(a, 3 * a, n_directions=600).value == pytest.approx(
        2 * float(a.square().mean().sqrt()), rel=1e-12
    )  # W_2(x, 3 x) = 2 |x|, whatever the direction


def test_sliced_wasserstein_between_gaussians() -> None:
    """Of N(0, s^2 I) and N(v, r^2 I): sqrt(|v|^2 / d + (s - r)^2)."""
    v = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    a, b = normal(8000, 4), 2.5 * normal(8000, 4, seed=1) + v
    exact = math.sqrt(float(v.square().sum()) / 4 + 1.5**2)
    assert sliced_wasserstein(a, b, n_directions=64).value == pytest.approx(exact, rel=0.02)


def test_sliced_wasserstein_with_unequal_counts() -> None:
    """Repeating every row changes nothing; by hand: {0, 1} against {0, 1, 2} moves 0, 1/6, 1/6, ... of the mass."""
    a, b = normal(6, 2), normal(4, 2, seed=1)
    value = sliced_wasserstein(a, b, n_directions=8).value
    assert sliced_wasserstein(a.repeat(2, 1), b.repeat(3, 1), n_directions=8).value == pytest.approx(value, rel=1e-12)
    # Quantiles of {0, 1} and {0, 1, 2}: (0, 0) to 1/3, (0, 1) to 1/2, (1, 1) to 2/3, (1, 2) to 1.
    line = sliced_wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]]), n_directions=1).value
    assert line == pytest.approx(math.sqrt(1 / 6 + 1 / 3), rel=1e-12)


def test_sliced_wasserstein_is_seeded() -> None:
    state = torch.get_rng_state()
    a, b = normal(30, 5), normal(30, 5, seed=1)
    values = {seed: sliced_wasserstein(a, b, n_directions=3, seed=seed).value for seed in (0, 1)}
    assert sliced_wasserstein(a, b, n_directions=3, seed=0).value == values[0] != values[1]
    assert torch.equal(torch.get_rng_state(), state)
