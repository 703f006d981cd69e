"""Posteriors given several observations, and maxima of densities, against closed forms of Gaussians."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.likelihood import FixedGrid, find_modes, log_posterior
from sgm_sde.schemes import AnnealedLangevin
from sgm_sde.scores import compose_posteriors
from tests.helpers import F64, LINEAR

V0, W = 2.0, 0.5  # variances of the prior, of mean M0, and of the observation given the parameters
M0 = torch.tensor([0.4, -0.2], dtype=F64)
Y = torch.tensor([[1.0, 0.3], [0.2, -0.5], [1.4, 0.1]], dtype=F64)
V = 1 / (1 / V0 + 1 / W)  # of the posterior given one


def mean_given(y: Tensor) -> Tensor:
    return V * (M0 / V0 + y / W)


def network(sde: Any) -> Any:
    """The exact score of the posterior given one observation, at all times."""

    def score(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return -(x - alpha * mean_given(y)) / (alpha**2 * V + sigma**2)

    return score


def prior_score(x: Tensor) -> Tensor:
    return -(x - M0) / V0


def log_prior(x: Tensor) -> Tensor:
    return torch.distributions.Normal(M0, math.sqrt(V0)).log_prob(x).sum(1)


def posterior(n: int) -> tuple[Tensor, float]:
    """Mean and variance given the first n observations."""
    variance = 1 / (1 / V0 + n / W)
    return variance * (M0 / V0 + Y[:n].sum(0) / W), variance


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
@pytest.mark.parametrize("n", [1, 3])
def test_the_composed_score_with_next_to_no_noise_is_the_posterior_s(n: int, process: str) -> None:
    """Which is a Gaussian's."""
    sde = LINEAR[process]
    score = compose_posteriors(network(sde), sde, Y[:n], prior_score)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    mean, variance = posterior(n)
    t = torch.full((5,), 1e-7 * sde.T, dtype=F64)
    torch.testing.assert_close(score(x, t), -(x - mean) / variance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("share", [1e-4, 0.3, 1.0])
def test_the_composed_score_is_that_of_the_bridging_density(n: int, process: str, share: float) -> None:
    """A product of Gaussians at every time."""
    sde = LINEAR[process]
    score = compose_posteriors(network(sde), sde, Y[:n], prior_score)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)

    t = torch.full((5,), share * sde.T, dtype=F64)
    alpha, sigma = float(sde.alpha(t[0])), float(sde.sigma(t[0]))

    def log_bridge(x: Tensor, alpha: float = alpha, sigma: float = sigma) -> Tensor:
        single = torch.distributions.Normal(alpha * mean_given(Y[:n]), math.sqrt(alpha**2 * V + sigma**2))
        return single.log_prob(x[:, None]).sum((1, 2)) + (1 - n) * alpha**2 / (alpha**2 + sigma**2) * log_prior(x)

    expected = torch.autograd.functional.jacobian(lambda x: log_bridge(x).sum(), x)
    torch.testing.assert_close(score(x, t), expected)


def test_annealed_langevin_samples_the_posterior() -> None:
    """Mean and variance within statistical error and the method's bias of q n / 4."""
    n, sde = 3, sg.VESDE(sigma_min=0.02, sigma_max=10.0)
    score = compose_posteriors(network(sde), sde, Y, prior_score)
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=F64) * sde.prior_std / math.sqrt(n)
    solver = AnnealedLangevin(step_ratio=0.1, n_steps=12)
    x = sg.sample(score, sde, x_T=z, solver=solver, grid="log-snr", steps=40, seed=0, final="none").x
    mean, variance = posterior(n)
    assert float((x.mean(0) - mean).abs().max()) < 5 * math.sqrt(variance / 1000)
    assert abs(float(x.var(0).mean() / variance) - 1) < 0.15


@pytest.mark.parametrize("process", ["vp", "edm"])
def test_the_log_posterior_is_the_closed_form(process: str) -> None:
    """Up to the constant: differences between points, but for what the flow's prior forgets."""
    sde = LINEAR[process]
    theta = torch.tensor([[0.5, 0.0], [1.0, -0.3], [0.0, 0.4]], dtype=F64)
    mean, variance = posterior(3)
    expected = torch.distributions.Normal(mean, math.sqrt(variance)).log_prob(theta).sum(1)

    def marginal(z: Tensor) -> Tensor:
        many = mean_given(Y.repeat(3, 1))
        alpha, sigma = float(sde.alpha(sde.T)), float(sde.sigma(sde.T))
        return torch.distributions.Normal(alpha * many, math.sqrt(alpha**2 * V + sigma**2)).log_prob(z).sum(1)

    found = log_posterior(network(sde), sde, theta, Y, log_prior, prior=marginal)
    off = (found.value - found.value[0]) - (expected - expected[0])
    assert float(off.abs().max()) < 1e-3 and bool((found.error < 3e-4).all())
    assert found.each.shape == (3, 3) and bool((found.stderr == 0).all())
    single = log_posterior(network(sde), sde, theta, Y[:1], log_prior)
    alone = sg.log_prob(network(sde), sde, theta, model_kwargs={"y": Y[:1].expand(3, -1)})
    torch.testing.assert_close(single.value, alone.value)


def test_map_estimates() -> None:
    """The mean of Gaussian posteriors, given one observation and several."""
    sde = LINEAR["vp"]
    start = torch.zeros(2, 2, dtype=F64)
    options: dict[str, Any] = {"method": FixedGrid(48), "enable_grad": True}

    def of_one(x: Tensor) -> Tensor:
        return sg.log_prob(network(sde), sde, x, model_kwargs={"y": sg.PerSample(Y[:2])}, **options).value

    found = find_modes(of_one, start)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.x, mean_given(Y[:2]), rtol=0, atol=0.01)  # the prior at T forgets a hundredth
    several = find_modes(lambda x: log_posterior(network(sde), sde, x, Y, log_prior, **options).value, start)
    torch.testing.assert_close(several.x, posterior(3)[0].expand(2, -1), rtol=0, atol=0.01)
    assert float(several.gradient.max()) <= 1e-4 and several.evaluations < 20


@pytest.mark.parametrize(
    ("call", "error", "shown"),
    [
        (lambda: compose_posteriors(network(VP), VP, Y[:0], prior_score), ValueError, "n of at least 1"),
        (lambda: compose_posteriors(network(VP), VP, Y.long(), prior_score), TypeError, "observations"),
        (lambda: compose_posteriors(network(VP), VP, Y, lambda x: x[0])(ZERO, HALF), ValueError, "prior_score must"),
        (lambda: log_posterior(network(VP), VP, ZERO, Y[:0], log_prior), ValueError, "n of at least 1"),
        (lambda: log_posterior(network(VP), VP, ZERO, Y, lambda x: x), ValueError, "log_prior"),
        (lambda: find_modes(lambda x: x.detach().sum(1), ZERO), TypeError, "no gradient"),
        (lambda: find_modes(lambda x: x.log().sum(1), ZERO), ValueError, "log-density of sample 0 is -inf"),
        (lambda: find_modes(log_prior, ZERO, gtol=0.0), ValueError, "gtol"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], shown: str) -> None:
    with pytest.raises(error, match=shown):
        call()


VP = LINEAR["vp"]
ZERO, HALF = torch.zeros(2, 2, dtype=F64), torch.full((2,), 0.5, dtype=F64)


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow", "cosine"])
@pytest.mark.parametrize("n", [2, 10, 100])
def test_bridging_densities_exist_at_every_time(n: int, process: str) -> None:
    """Their precision is positive: the slope of the score of Gaussians is below 0, for a prior of unit variance."""
    sde = LINEAR[process]
    y = torch.zeros(n, 2, dtype=F64)
    score = compose_posteriors(network(sde), sde, y, prior_score)
    t = torch.linspace(sde.eps, sde.T, 50, dtype=F64)
    one, zero = torch.ones(50, 2, dtype=F64), torch.zeros(50, 2, dtype=F64)
    assert float((score(one, t) - score(zero, t)).max()) < 0
