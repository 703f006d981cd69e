"""Oracles: scores, densities and flows against closed forms, and what their arguments may be."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.testing import flow_reference
from tests.conventions import VP, case_id
from tests.helpers import F64, GAUSSIAN, LINEAR, MIXTURE

EMPIRICAL = sg.oracles.Empirical(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.2, -1.5]], dtype=F64), bandwidth=0.3)


ANISOTROPIC = sg.oracles.GaussianMixture(
    torch.tensor([[-1.0, 0.5], [0.8, -0.6]], dtype=F64), torch.tensor([[0.3, 0.6], [0.2, 0.9]]), [1.0, 3.0]
)


ORACLES = {"gaussian": GAUSSIAN, "mixture": MIXTURE, "empirical": EMPIRICAL, "anisotropic": ANISOTROPIC}


def component(means: Tensor, covariances: Tensor, weights: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), torch.distributions.MultivariateNormal(means, covariances)
    )


def marginal(oracle: sg.oracles.Oracle, alpha: float, sigma: float) -> torch.distributions.Distribution:
    """The same marginal by torch.distributions, from the parameters typed in again."""
    eye = torch.eye(2, dtype=F64)
    if oracle is GAUSSIAN:
        means, cov, w = torch.tensor([[0.3, -0.7]]), torch.tensor([[[0.5, 0.2], [0.2, 0.3]]]), torch.ones(1)
    elif oracle is MIXTURE:
        means, w = torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]]), torch.tensor([0.5, 0.3, 0.2])
        cov = torch.tensor([0.16, 0.25, 0.09])[:, None, None] * eye
    elif oracle is EMPIRICAL:
        means, w = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.2, -1.5]]), torch.ones(3) / 3
        cov = (0.09 * eye).expand(3, 2, 2)
    else:
        means, w = torch.tensor([[-1.0, 0.5], [0.8, -0.6]]), torch.tensor([0.25, 0.75])
        cov = torch.diag_embed(torch.tensor([[0.09, 0.36], [0.04, 0.81]]))
    return component(alpha * means.double(), alpha**2 * cov.double() + sigma**2 * eye, w.double())


@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("name", ORACLES)
def test_density_and_score(name: str, process: str) -> None:
    """log_prob is torch.distributions', and the score its gradient, at several times."""
    oracle, sde = ORACLES[name], LINEAR[process]
    x = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) * 1.5
    for t in (max(sde.eps, 0.02 * sde.T), 0.3 * sde.T, sde.T):
        expected = marginal(oracle, float(sde.alpha(t)), float(sde.sigma(t)))
        y = x.clone().requires_grad_()
        torch.testing.assert_close(oracle.log_prob(y, sde, t), expected.log_prob(y), rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad(expected.log_prob(y).sum(), y)
        torch.testing.assert_close(oracle.score(sde)(x, t), gradient, rtol=1e-5, atol=1e-5)
    data = marginal(oracle, 1.0, 0.0)
    torch.testing.assert_close(oracle.log_prob(x), data.log_prob(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_samples_of_one_seed_begin_alike(name: str) -> None:
    """However many they are."""
    oracle = ORACLES[name]
    again = oracle.sample(10, LINEAR["vp"], 0.3, seed=0, dtype=F64)
    assert torch.equal(again, oracle.sample(20, LINEAR["vp"], 0.3, seed=0, dtype=F64)[:10])


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("sde, t", [(None, 0.0), (LINEAR["vp"], 0.3), (LINEAR["ve"], 0.6)], ids=case_id)
def test_samples_follow_the_marginal(name: str, sde: sg.LinearSDE | None, t: float) -> None:
    """Mean, covariance and log-density of samples at several times, within four standard errors."""
    oracle, n = ORACLES[name], 20000

    x = oracle.sample(n, sde, t, seed=0, dtype=F64)
    alpha, sigma = (1.0, 0.0) if sde is None else (float(sde.alpha(t)), float(sde.sigma(t)))
    expected = marginal(oracle, alpha, sigma)
    z = (x.mean(0) - expected.mean) / (expected.variance / n).sqrt()
    assert z.abs().max() < 4
    torch.testing.assert_close(x.var(0), expected.variance, rtol=0.05, atol=0)
    assert math.isfinite(float(oracle.log_prob(x, sde, t).mean()))


@pytest.mark.parametrize("process", LINEAR)
def test_the_gaussian_flow_solves_the_ode(process: str) -> None:
    """The closed form against SciPy's DOP853 in other coordinates."""
    sde = LINEAR[process]
    x = sde.prior_sample((3, 2), seed=0, dtype=F64)
    end = float(sde.time(torch.tensor(3.0, dtype=F64)))
    same = sg.oracles.GaussianMixture(torch.zeros(1, 2, dtype=F64), 0.7)
    gaussian = sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 0.49)
    torch.testing.assert_close(
        gaussian.flow(x, sde, sde.T, end), flow_reference(same, sde, x, end), rtol=1e-8, atol=1e-8
    )


def test_posterior_of_the_components() -> None:
    """Responsibilities are Bayes' rule and sum to one."""
    x = torch.tensor([[-1.0, 0.5], [0.4, 1.0]], dtype=F64)
    r = MIXTURE.responsibilities(x, LINEAR["vp"], 0.1)
    torch.testing.assert_close(r.sum(1), torch.ones(2, dtype=F64))
    assert r[0].argmax() == 0
    assert r[1].argmax() == 2


def test_a_perfect_memoriser() -> None:
    """Bandwidth 0: the denoiser is the softmax-weighted mean of the data."""
    data = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64)
    oracle = sg.oracles.Empirical(data)
    x, sde = torch.tensor([[0.4, 0.3]], dtype=F64), LINEAR["edm"]
    w = torch.softmax(-(x - data).square().sum(1) / 2 / 0.5**2, 0)
    torch.testing.assert_close(oracle.score(sde).denoised(x, 0.5), (w[:, None] * data).sum(0)[None])


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: sg.oracles.Gaussian(torch.zeros(2), torch.eye(3)), r"\(3, 3\)"),
        (lambda: sg.oracles.Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "-1"),
        (lambda: sg.oracles.GaussianMixture(torch.zeros(3), 1.0), r"\(3,\)"),
        (lambda: sg.oracles.GaussianMixture(torch.zeros(3, 2), [1.0, 1.0]), r"\(2,\)"),
        (lambda: sg.oracles.GaussianMixture(torch.zeros(3, 2), -1.0), "-1"),
        (lambda: sg.oracles.GaussianMixture(torch.zeros(2, 2), 1.0, [0.0, 1.0]), "0.0"),
    ],
    ids=case_id,
)
def test_bad_parameters_are_named(call: Callable[..., object], text: str) -> None:
    """Shapes and signs, with the offending value."""
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 2, 1)])
def test_points_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Broadcasting would give a number for points that the data cannot have."""
    oracle = sg.oracles.Gaussian(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        oracle.log_prob(torch.zeros(shape))
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        oracle.score(sg.VPSDE())(torch.zeros(shape), 0.5)


def test_no_covariance_is_one() -> None:
    """All mass at one point."""
    assert float(sg.oracles.Gaussian(torch.zeros(2), 0.0).covariance.abs().max()) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: sg.oracles.Gaussian(torch.tensor([math.nan, 0.0]), 1.0),
        lambda: sg.oracles.Gaussian(torch.zeros(2), math.inf),
        lambda: sg.oracles.GaussianMixture(torch.tensor([[math.nan], [1.0]]), 1.0),
        lambda: sg.oracles.GaussianMixture(torch.zeros(2, 1), math.nan),
        lambda: sg.oracles.GaussianMixture(torch.zeros(2, 1), 1.0, [1.0, math.inf]),
        lambda: sg.oracles.Mixture([sg.oracles.Gaussian(torch.zeros(1), 1.0)], [math.nan]),
        lambda: sg.oracles.Empirical(torch.tensor([[math.inf]])),
    ],
    ids=["mean", "variance", "means", "stds", "weights", "shares", "data"],
)
def test_parameters_are_finite(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        make()


@pytest.mark.parametrize("scale", [1e-30, 1e-11, 1.0, 1e20])
def test_what_is_no_covariance_is_refused_at_any_scale(scale: float) -> None:
    """Not symmetric, not positive: relative to the largest entry."""
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64), torch.tensor([[1.0, 0.9], [0.0, 1.0]], dtype=F64)

    with pytest.raises(ValueError, match="negative eigenvalue"):
        sg.oracles.Gaussian(torch.zeros(2), scale * bad[0])
    with pytest.raises(ValueError, match=r"symmetric \(2, 2\) matrix, got entries that differ"):
        sg.oracles.Gaussian(torch.zeros(2), scale * bad[1])
    root = torch.tensor([[1.0, 0.3], [0.5, 1.0]], dtype=F64)
    covariance = scale * (root @ root.T)
    torch.testing.assert_close(
        sg.oracles.Gaussian(torch.zeros(2), covariance).covariance, covariance, atol=0.0, rtol=1e-12
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: sg.oracles.Gaussian([0.0], 1.0),  # type: ignore[arg-type]
        lambda: sg.oracles.Gaussian(torch.zeros(1), "wide"),  # type: ignore[arg-type]
        lambda: sg.oracles.GaussianMixture(torch.zeros(2, 1), [1.0, [2.0]]),  # type: ignore[list-item]
    ],
    ids=case_id,
)
def test_parameters_are_tensors(make: Callable[..., object]) -> None:
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


FLAT = sg.oracles.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize(
    "oracle",
    [FLAT, sg.oracles.Empirical(torch.zeros(3, 2)), sg.oracles.Mixture([FLAT], [1.0])],
    ids=["gaussian", "empirical", "mixture"],
)
def test_without_spread_there_is_no_density(oracle: sg.oracles.Oracle) -> None:
    """An error where a direction has no spread and no noise is added; a value where there is noise."""
    with pytest.raises(ValueError, match="no density without noise"):
        oracle.log_prob(torch.zeros(1, 2))
    assert bool(oracle.log_prob(torch.zeros(1, 2), VP, 0.1).isfinite())


@pytest.mark.parametrize(
    "make",
    [lambda s: sg.oracles.Gaussian(torch.zeros(1), s**2), lambda s: sg.oracles.GaussianMixture(torch.zeros(1, 1), s)],
)
def test_variances_that_single_precision_has_no_room_for(make: Callable[[float], sg.oracles.Oracle]) -> None:
    """A standard deviation of 1e-25 has the square 1e-50, which float32 rounds to 0."""
    with pytest.raises(ValueError, match=r"a direction of variance 1e-50 is too narrow for torch\.float32"):
        make(1e-25).log_prob(torch.zeros(1, 1))
    value = float(make(1e-25).log_prob(torch.zeros(1, 1, dtype=F64)))
    assert value == pytest.approx(-math.log(1e-25) - 0.5 * math.log(2 * math.pi), rel=1e-12)


TILTED = sg.oracles.Gaussian(torch.tensor([0.2, -0.3]), torch.tensor([[1.09, 0.8], [0.8, 1.25]]))


@pytest.mark.parametrize(
    "oracle", [TILTED, sg.oracles.Mixture([TILTED, TILTED], [0.3, 0.7])], ids=["gaussian", "mixture"]
)
def test_oracles_are_exact_under_autocast(oracle: Any) -> None:
    """Density, score, samples and flow are what they are without it, to the bit."""
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))

    def values() -> list[Tensor]:
        return [
            oracle.log_prob(x),
            oracle.log_prob(x, VP, 0.4),
            oracle.score(VP)(x, 0.4),
            oracle.sample(4, VP, 0.4, seed=0),
            oracle.flow(x, VP, 0.9, 0.1) if oracle is TILTED else oracle.responsibilities(x, VP, 0.4),
        ]

    plain = values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for a, b in zip(plain, values(), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.CLD()], ids=["VP", "CLD"])
def test_scores_of_oracles_can_be_sent_to_other_processes(sde: sg.SDE) -> None:
    """By pickle, and say the same there."""
    score = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.3).score(sde)
    x = sde.prior_sample((3, 2) if isinstance(sde, sg.VPSDE) else (3, 2, 2), seed=0)
    t = torch.tensor(0.5)
    assert torch.equal(pickle.loads(pickle.dumps(score))(x, t), score(x, t))


def test_a_gaussian_of_one_number() -> None:
    """Of the event shape (), as of (1,)."""
    flat = sg.oracles.Gaussian(torch.tensor(0.3), 0.25)
    column = sg.oracles.Gaussian(torch.tensor([0.3]), 0.25)
    sde = sg.VPSDE()
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    assert torch.equal(flat.score(sde)(x, 0.5), column.score(sde)(x[:, None], 0.5)[:, 0])
    assert torch.equal(flat.log_prob(x, sde, 0.5), column.log_prob(x[:, None], sde, 0.5))
    assert torch.equal(flat.sample(4, sde, 0.5, seed=0), column.sample(4, sde, 0.5, seed=0)[:, 0])
