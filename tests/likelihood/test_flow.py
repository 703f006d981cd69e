"""Closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.likelihood import (
    Exact,
    FixedGrid,
)
from tests.conventions import some_slow
from tests.helpers import F64, GAUSSIAN, LINEAR, MIXTURE
from tests.likelihood.cases import PROCESSES, exact, points


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("process", some_slow(PROCESSES, fast=("vp", "edm", "flow")))
@pytest.mark.parametrize("steps, tolerance", [(48, 1e-4), (200, 1e-7)])
def test_log_density_of_the_marginal(process: str, data: str, steps: int, tolerance: float) -> None:
    """Under the exact marginal as a prior: 1e-4 nats/dim at the defaults, 1e-7 with small steps, in float64."""
    oracle, sde = {"gaussian": GAUSSIAN, "mixture": MIXTURE}[data], LINEAR[process]
    x = points(oracle, process)

    res = sg.log_prob(
        oracle.score(sde),
        sde,
        x,
        trace="exact",
        method=FixedGrid(steps),
        prior=lambda z: oracle.log_prob(z, sde, sde.T),
    )
    error = (res.value - exact(oracle, process, x)) / x[0].numel()
    assert float(error.square().mean().sqrt()) < tolerance
    assert res.nfe == steps + 1
    assert res.vjps == (steps + 1) * 2
    assert bool((res.stderr == 0).all())


@pytest.mark.parametrize("process", PROCESSES)
def test_log_density_under_the_prior(process: str) -> None:
    """Under N(0, sigma(T)^2) the density of Gaussian data is that of an affine map of the prior, in closed form."""
    sde = LINEAR[process]
    eps, mean, std = sde.likelihood_eps, 0.4, 0.7
    oracle = sg.oracles.Gaussian(torch.full((3,), mean), std**2)
    x = points(oracle, process)
    # The flow multiplies what lies beyond the mean by the ratio of the marginals' spreads.
    spread = [math.hypot(float(sde.alpha(t)) * std, float(sde.sigma(t))) for t in (eps, sde.T)]
    latent = float(sde.alpha(sde.T)) * mean + spread[1] / spread[0] * (x - float(sde.alpha(eps)) * mean)
    expected = sde.prior_log_prob(latent) + 3 * math.log(spread[1] / spread[0])
    res = sg.log_prob(oracle.score(sde), sde, x, trace="exact")
    assert float((res.value - expected).abs().max()) / 3 < 1e-4
    torch.testing.assert_close(res.latent, latent, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(res.prior + res.divergence, res.value)


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
def test_the_density_has_mass_one(process: str) -> None:
    """Summed over a fine grid of points the density in one dimension is 1."""
    sde = LINEAR[process]
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [0.8]], dtype=F64), [0.3, 0.5], [0.4, 0.6])
    x = torch.linspace(-4, 4, 801, dtype=F64)[:, None]
    res = sg.log_prob(oracle.score(sde), sde, x, trace="exact")
    assert float(res.value.exp().sum() * (x[1] - x[0])) == pytest.approx(1, abs=2e-4)


def test_the_density_has_mass_one_in_two_dimensions() -> None:
    """Summed over a fine grid of the plane."""
    sde = LINEAR["vp"]
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-0.7, 0.2], [0.6, -0.4]], dtype=F64), [0.4, 0.3])
    side = torch.linspace(-3, 3, 61, dtype=F64)
    x = torch.cartesian_prod(side, side)
    res = sg.log_prob(oracle.score(sde), sde, x, trace="exact", method=FixedGrid(32))
    assert float(res.value.exp().sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("make", [sg.from_noise, sg.from_denoiser, sg.from_v, sg.from_flow, sg.from_score])
def test_every_prediction_gives_the_same_likelihood(make: Any) -> None:
    """Whatever the network predicts, to 1e-9."""
    sde = LINEAR["vp"]
    target = {"from_noise": "noise", "from_denoiser": "data", "from_v": "v", "from_flow": "flow"}
    exact_score = GAUSSIAN.score(sde)
    kind = target.get(make.__name__, "score")
    score = make(lambda x, t: exact_score.predict(kind, x, t), sde)
    x = points(GAUSSIAN, "vp", 4)
    one, other = (sg.log_prob(s, sde, x, trace="exact").value for s in (score, exact_score))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (1, 2, 2)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    """Vectors to images; chunks of the exact trace change nothing."""
    sde = LINEAR["vp"]
    oracle = sg.oracles.Gaussian(torch.zeros(shape), 0.5)
    x = oracle.sample(3, sde, 1e-5, seed=0, dtype=F64)
    results = [sg.log_prob(oracle.score(sde), sde, x, trace=Exact(chunk)) for chunk in (1, 2, 100)]
    for res in results:
        assert res.value.shape == res.stderr.shape == (3,)
        assert res.latent.shape == x.shape
        torch.testing.assert_close(res.value, results[0].value, rtol=1e-12, atol=1e-12)
