"""Oracles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from tests.conventions import F64, VP


def test_what_is_no_covariance_is_refused_at_any_scale() -> None:
    """Not symmetric, not positive, not finite: relative to the largest entry."""
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64), torch.tensor([[1.0, 0.9], [0.0, 1.0]], dtype=F64)
    for scale in (1e-30, 1e-11, 1.0, 1e20):
        with pytest.raises(ValueError, match="negative eigenvalue"):
            sg.oracles.Gaussian(torch.zeros(2), scale * bad[0])
        with pytest.raises(ValueError, match=r"symmetric \(2, 2\) matrix, got entries that differ"):
            sg.oracles.Gaussian(torch.zeros(2), scale * bad[1])
        root = torch.tensor([[1.0, 0.3], [0.5, 1.0]], dtype=F64)
        covariance = scale * (root @ root.T)
        torch.testing.assert_close(
            sg.oracles.Gaussian(torch.zeros(2), covariance).covariance, covariance, atol=0.0, rtol=1e-12
        )
    assert float(sg.oracles.Gaussian(torch.zeros(2), 0.0).covariance.abs().max()) == 0.0
    nan, inf = math.nan, math.inf
    for make in (
        lambda: sg.oracles.Gaussian(torch.tensor([nan, 0.0]), 1.0),
        lambda: sg.oracles.Gaussian(torch.zeros(2), inf),
        lambda: sg.oracles.GaussianMixture(torch.tensor([[nan], [1.0]]), 1.0),
        lambda: sg.oracles.GaussianMixture(torch.zeros(2, 1), nan),
        lambda: sg.oracles.GaussianMixture(torch.zeros(2, 1), 1.0, [1.0, inf]),
        lambda: sg.oracles.Mixture([sg.oracles.Gaussian(torch.zeros(1), 1.0)], [nan]),
        lambda: sg.oracles.Empirical(torch.tensor([[inf]])),
    ):
        with pytest.raises(ValueError, match="must be finite"):
            make()
    for make in (
        lambda: sg.oracles.Gaussian([0.0], 1.0),  # type: ignore[arg-type]
        lambda: sg.oracles.Gaussian(torch.zeros(1), "wide"),  # type: ignore[arg-type]
        lambda: sg.oracles.GaussianMixture(torch.zeros(2, 1), [1.0, [2.0]]),  # type: ignore[list-item]
    ):
        with pytest.raises(TypeError, match="must be a tensor"):
            make()


def test_small_weights_keep_their_logarithm() -> None:
    """A weight of 1e-60 is 0 in float32, its logarithm is not."""
    weights = torch.tensor([1e-60, 1.0], dtype=F64)
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1, weights)
    x = torch.tensor([[-1.0]])
    assert abs(float(oracle.log_prob(x)) + 136.771) < 1e-2
    torch.testing.assert_close(oracle.log_prob(x), oracle.as_mixture().log_prob(x))
    torch.testing.assert_close(oracle.log_prob(x).double(), oracle.log_prob(x.double()), rtol=1e-5, atol=0.0)


def test_without_spread_there_is_no_density() -> None:
    """An error where a direction has no spread and no noise is added; a value where there is noise."""
    flat = sg.oracles.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.0])))
    for oracle in (flat, sg.oracles.Empirical(torch.zeros(3, 2)), sg.oracles.Mixture([flat], [1.0])):
        with pytest.raises(ValueError, match="no density without noise"):
            oracle.log_prob(torch.zeros(1, 2))
        assert bool(oracle.log_prob(torch.zeros(1, 2), VP, 0.1).isfinite())


def test_oracles_are_exact_under_autocast() -> None:
    """Density, score, samples and flow are what they are without it, to the bit."""
    root = torch.tensor([[1.0, 0.3], [0.5, 1.0]])
    gaussian = sg.oracles.Gaussian(torch.tensor([0.2, -0.3]), root @ root.T)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    for oracle in (gaussian, sg.oracles.Mixture([gaussian, gaussian], [0.3, 0.7])):

        def values(oracle: Any = oracle) -> list[Tensor]:
            return [
                oracle.log_prob(x), oracle.log_prob(x, VP, 0.4), oracle.score(VP)(x, 0.4),
                oracle.sample(4, VP, 0.4, seed=0),
                oracle.flow(x, VP, 0.9, 0.1) if oracle is gaussian else oracle.responsibilities(x, VP, 0.4),
            ]  # fmt: skip

        plain = values()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for a, b in zip(plain, values(), strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)
