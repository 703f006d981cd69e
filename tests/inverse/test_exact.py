"""Exact posteriors. Inverse problems: operators, posterior scores, methods at the nodes, against exact posteriors."""

from __future__ import annotations

import math

import pytest
import torch

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde._utils.shapes import dot
from tests.conventions import case_id
from tests.helpers import F64
from tests.inverse.cases import (
    MODES,
    OPERATORS,
    TILTED,
    VP,
    normal,
    seen,
)


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_gaussian_posterior(std: float) -> None:
    """By the precision form: C_y^-1 = C^-1 + A^T A / std^2; without noise by conditioning."""
    post = inverse.posterior(TILTED, seen(std))
    C, m = TILTED.covariance, TILTED.mean
    if std:
        A = torch.tensor([[1.0, 0.0]], dtype=F64)
        expected = torch.linalg.inv(torch.linalg.inv(C) + A.T @ A / std**2)
        mean = m + expected @ A.T @ (1 - A @ m) / std**2
    else:
        expected = torch.diag(torch.stack([0 * C[0, 0], C[1, 1] - C[0, 1] ** 2 / C[0, 0]]))
        mean = torch.stack([torch.ones_like(m[0]), m[1] + C[0, 1] / C[0, 0] * (1 - m[0])])
    torch.testing.assert_close(post.covariance, expected)
    torch.testing.assert_close(post.mean, mean)


@pytest.mark.parametrize("name", ["mix of features", "blocks of a line", "map"])
def test_mixture_posterior_is_prior_times_likelihood(name: str) -> None:
    """log p(x | y) - log p(x) - log p(y | x) is one number for all x: weights, means and covariances at once."""
    operator, shape = OPERATORS[name]
    prior = sg.oracles.GaussianMixture(normal(3, *shape), normal(3, *shape, seed=1).abs() + 0.2, [0.5, 0.3, 0.2])
    measurement = inverse.Measurement(operator, operator.apply(normal(1, *shape, seed=2))[0], std=0.7)
    x = 2 * normal(6, *shape, seed=3)
    residual = measurement.residual(x)
    likelihood = -0.5 * dot(residual, residual) / 0.7**2
    evidence = inverse.posterior(prior, measurement).log_prob(x) - prior.log_prob(x) - likelihood
    torch.testing.assert_close(evidence, evidence[:1].expand(6))
    twice = inverse.posterior(inverse.posterior(prior, measurement), measurement)  # two measurements of one value
    torch.testing.assert_close(
        twice.log_prob(x) - prior.log_prob(x) - 2 * likelihood,
        (twice.log_prob(x) - prior.log_prob(x) - 2 * likelihood)[:1].expand(6),
    )


def test_mixtures_of_full_covariance() -> None:
    """Moments of samples; the score is the density's gradient."""
    same, x, t = MODES.as_mixture(), 2 * normal(5, 2), torch.linspace(0.1, 0.9, 5, dtype=F64)
    torch.testing.assert_close(same.score(VP)(x, t), MODES.score(VP)(x, t))
    tilted = sg.oracles.Mixture([TILTED, sg.oracles.Gaussian(torch.tensor([2.0, 2.0]), 0.1)], [3.0, 1.0])
    n = 20000
    drawn = tilted.sample(n, seed=0, dtype=F64)
    spread = tilted.covariance.diag().sqrt()
    assert float(((drawn.mean(0) - tilted.mean) / spread).abs().max()) < 4 / math.sqrt(n)
    assert float(((drawn.T.cov() - tilted.covariance) / spread / spread[:, None]).abs().max()) < 4 * math.sqrt(3 / n)
    assert float(tilted.responsibilities(drawn).mean(0)[1]) == pytest.approx(0.25, abs=4 * math.sqrt(0.19 / n))
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(tilted.log_prob(y, VP, t).sum(), y)
    torch.testing.assert_close(tilted.score(VP)(x, t), slope)


@pytest.mark.parametrize("s", [None, VP], ids=case_id)
def test_mixtures_of_full_covariance_are_diagonal_ones_too(s: sg.LinearSDE | None) -> None:
    same, x, t = MODES.as_mixture(), 2 * normal(5, 2), torch.linspace(0.1, 0.9, 5, dtype=F64)

    torch.testing.assert_close(same.log_prob(x, s, t), MODES.log_prob(x, s, t))
    torch.testing.assert_close(same.responsibilities(x, s, t), MODES.responsibilities(x, s, t))
