"""Variational bounds: closed forms, their standard errors, DDPM's terms by hand, and what is left of the gap."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.stats import norm
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.likelihood import LearnedVariance
from tests.conventions import case_id
from tests.helpers import F64, LINEAR, MIXTURE

VP = LINEAR["vp"]
STD = 0.6
GAUSSIAN = sg.oracles.Gaussian(torch.zeros(2), STD**2)
POINT = torch.tensor([[0.5, -0.3]], dtype=F64)


def expectation(x: Tensor, sde: sg.LinearSDE, eps: float) -> dict[str, float]:
    """The parts of the bound for the exact score of N(0, STD^2), from the mean squared error of its noise."""
    d, square = x.numel(), float(x.square().sum())

    def error(t: float) -> float:
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        rho2 = (alpha * STD) ** 2 + sigma**2
        return d * ((alpha * STD) ** 2 / rho2) ** 2 + (alpha * sigma / rho2) ** 2 * square

    ends = [float(sde.log_snr(t)) / 2 for t in (sde.T, eps)]
    diffusion = quad(lambda lam: error(float(sde.time(2 * lam))), *ends, epsabs=1e-10, epsrel=1e-10, limit=200)[0]
    v = float(sde.sigma(eps) / sde.alpha(eps))
    prior = 0.5 * (float(sde.alpha(sde.T)) / sde.prior_std) ** 2 * square
    return {
        "prior": prior,
        "diffusion": diffusion,
        "reconstruction": 0.5 * error(eps) + 0.5 * d * math.log(2 * math.pi * v**2),
    }


# --- continuous time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["vp", "sub-vp", "ve", "flow"])
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_the_exact_score_leaves_no_gap(process: str, data: str) -> None:
    """The bound is the log-density itself, within its standard error: what is below eps and beyond T is less."""
    oracle, sde = {"gaussian": GAUSSIAN, "mixture": MIXTURE}[data], LINEAR[process]
    x = oracle.sample(24, seed=3, dtype=F64)
    bound = sg.elbo(oracle.score(sde), sde, x, n_times=100, seed=0)
    z = (bound.value - oracle.log_prob(x)) / bound.stderr
    assert float(z.abs().max()) < 5
    assert abs(float(z.mean())) < 4 / math.sqrt(24)
    torch.testing.assert_close(bound.value, -(bound.prior + bound.diffusion + bound.reconstruction))
    torch.testing.assert_close(bound.terms.sum(0), bound.diffusion)


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({}, (0.8, 1.3)),
        ({"control_variate": False}, (0.8, 1.3)),
        ({"stratified": False}, (0.8, 1.25)),
        ({"stratified": False, "times": "time"}, (0.7, 1.4)),
        ({"times": "time"}, (0.6, 1.6)),
    ],
)
def test_standard_errors_of_the_bound(options: dict[str, Any], window: tuple[float, float]) -> None:
    """Over many seeds every part has the mean of its closed form, and scatters as the standard error says."""
    eps, n = 1e-2, 600
    x = POINT.expand(n, -1)
    bound = sg.elbo(GAUSSIAN.score(VP), VP, x, eps=eps, n_times=24, seed=1, **options)
    expected = expectation(POINT, VP, eps)
    for name, value in expected.items():
        got = getattr(bound, name)
        assert abs(float(got.mean()) - value) < 4 * float(got.std()) / math.sqrt(n) + 1e-9
    ratio = float(bound.stderr.square().mean() / (bound.value + sum(expected.values())).square().mean())
    assert window[0] < ratio < window[1]


def test_stratified_times_and_the_control_variate_pay() -> None:
    """Each leaves less variance than without; uniform log-SNR less than uniform time, which is why it is taken."""
    x = POINT.expand(300, -1)

    def variance(**options: Any) -> float:
        return float(sg.elbo(GAUSSIAN.score(VP), VP, x, n_times=16, seed=1, **options).diffusion.var())

    full = variance()
    assert full < 0.3 * variance(control_variate=False)
    assert full < 0.7 * variance(stratified=False)
    assert full < 0.5 * variance(times="time")


def test_a_wrong_score_has_a_gap() -> None:
    """Half as much again as the score of N(0, STD^2): the bound lies below the likelihood of its own reverse SDE.

    That is Gaussian, and its variance follows dV = (2 f + 3 g^2 / rho^2) V dt - g^2 dt backwards from T.
    """
    eps = 1e-2

    def rho2(t: Any) -> Any:
        return (VP.alpha(t) * STD) ** 2 + VP.sigma(t) ** 2

    def slope(t: float, V: np.ndarray) -> np.ndarray:
        g2 = float(VP.g(t)) ** 2
        return (2 * float(VP.rate(torch.tensor(t, dtype=F64))) + 3 * g2 / float(rho2(t))) * V - g2

    V = solve_ivp(slope, (VP.T, eps), [VP.prior_std**2], rtol=1e-9, atol=1e-12).y[0, -1]
    alpha, sigma = float(VP.alpha(eps)), float(VP.sigma(eps))
    gain = (1 - 1.5 * sigma**2 / float(rho2(eps))) / alpha
    model = torch.distributions.Normal(0.0, math.sqrt(gain**2 * V + (sigma / alpha) ** 2))
    x = torch.linspace(-0.9, 0.9, 5, dtype=F64)[:, None].repeat_interleave(100, 0)
    bound = sg.elbo(lambda x, t: -1.5 * x / rho2(t)[:, None], VP, x, eps=eps, n_times=32, seed=0)
    gap = (model.log_prob(x)[:, 0] - bound.value).view(5, 100)
    error = gap.std(1) / 10
    assert bool((gap.mean(1) > -4 * error).all())
    assert float(gap.mean()) > 6 * float(error.mean()) / math.sqrt(5)


def test_bits_of_whole_numbers() -> None:
    """Above those of the known distribution and near them; the parts are those of the middle of each bin."""
    levels, sde = 64, sg.VPSDE(eps=1e-2)
    edges = torch.linspace(-2, 2, levels + 1, dtype=F64) / STD
    truth = -(torch.special.ndtr(edges[1:]) - torch.special.ndtr(edges[:-1])).log2()
    images = torch.arange(8, 56).repeat_interleave(2).view(-1, 2)
    # where the noise is about a bin wide the decoder has something to say
    eps = float(sde.time(2 * math.log(1 / (4 / levels))))
    options: dict[str, Any] = {"n_levels": levels, "data_range": (-2, 2), "eps": eps, "dtype": F64}
    bound = sg.elbo(GAUSSIAN.score(sde), sde, images, n_times=200, n_decodings=50, seed=0, **options)
    gap = bound.bits_per_dim - truth[images].mean(1)
    error = float(gap.std()) / math.sqrt(len(gap))
    assert float(gap.mean()) > -3 * error
    assert float(gap.mean()) < 0.1
    assert f"{float(bound.bits_per_dim.mean()):.4f}" in str(bound)
    assert "decoder over the levels' bins" in bound.protocol


@pytest.mark.parametrize(
    ("bound", "sde"), [(sg.elbo, VP), (sg.likelihood.ddpm_bound, sg.DiscreteVPSDE([0.01, 0.05, 0.2, 0.5, 0.9]))]
)
def test_a_bound_depends_on_its_own_seed(bound: Any, sde: sg.LinearSDE) -> None:
    """In any batch the same."""
    score, x = GAUSSIAN.score(sde), GAUSSIAN.sample(4, seed=0, dtype=F64)
    together = bound(score, sde, x, seed=[3, 1, 4, 5]).value
    alone = bound(score, sde, x[2:3], seed=[4]).value
    torch.testing.assert_close(alone, together[2:3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("bound", "sde"), [(sg.elbo, VP), (sg.likelihood.ddpm_bound, sg.DiscreteVPSDE([0.01, 0.05, 0.2, 0.5, 0.9]))]
)
@pytest.mark.parametrize(
    "make, kind", [(sg.from_noise, "noise"), (sg.from_v, "v"), (sg.from_flow, "flow")], ids=case_id
)
def test_a_bound_does_not_depend_on_what_the_network_predicts(
    bound: Any, sde: sg.LinearSDE, make: Callable[..., sg.Score], kind: str
) -> None:
    score, x = GAUSSIAN.score(sde), GAUSSIAN.sample(4, seed=0, dtype=F64)
    together = bound(score, sde, x, seed=[3, 1, 4, 5]).value

    other = make(lambda x, t, kind=kind: score.predict(kind, x, t), sde)
    torch.testing.assert_close(bound(other, sde, x, seed=[3, 1, 4, 5]).value, together, rtol=1e-8, atol=1e-8)


# --- DDPM ------------------------------------------------------------------------------------------------------------

BETAS = [0.02, 0.05, 0.1, 0.3, 0.6]
LEVELS: dict[str, Any] = {"n_levels": 16, "data_range": (-1.0, 1.0), "dtype": F64, "seed": 5}


def by_hand(images: Tensor, variance: str, fraction: float) -> dict[str, list[float]]:
    """The terms for one image, as Ho et al. write them, with a network that predicts the noise 0.3 x."""
    abar = np.cumprod(1 - np.array(BETAS))
    before = np.concatenate([[1.0], abar[:-1]])
    beta = np.array(BETAS)
    tilde = beta * (1 - before) / (1 - abar)
    clipped = np.concatenate([[tilde[1]], tilde[1:]])
    Sigma = {
        "fixed-small": clipped,
        "fixed-large": np.concatenate([[tilde[1]], beta[1:]]),
        "learned": np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(clipped)),
    }[variance]
    x0 = -1 + 2 * (images.double().numpy() + 0.5) / 16
    draws = NoiseStream([(5, 0)], "probe")
    terms, simple = [], []
    for t in range(4, 0, -1):
        eps = draws.normal(tuple(images.shape), F64).numpy()
        x = math.sqrt(abar[t]) * x0 + math.sqrt(1 - abar[t]) * eps
        guess = (x - math.sqrt(1 - abar[t]) * 0.3 * x) / math.sqrt(abar[t])
        mean = [
            (math.sqrt(before[t]) * beta[t] * d + math.sqrt(1 - beta[t]) * (1 - before[t]) * x) / (1 - abar[t])
            for d in (x0, guess)
        ]
        kl = 0.5 * (np.log(Sigma[t] / tilde[t]) + (tilde[t] + (mean[0] - mean[1]) ** 2) / Sigma[t] - 1)
        terms.append(float(kl.sum()))
        simple.append(float(((eps - 0.3 * x) ** 2).mean()))
    last = []
    draws = NoiseStream([(5, 0)], "dequantisation")
    for _ in range(2):
        eps = draws.normal(tuple(images.shape), F64).numpy()
        x = math.sqrt(abar[0]) * x0 + math.sqrt(beta[0]) * eps
        guess = (x - math.sqrt(beta[0]) * 0.3 * x) / math.sqrt(abar[0])
        total = 0.0
        for k, value, centre in zip(images.flatten().tolist(), x0.flatten(), guess.flatten(), strict=True):
            below = norm(centre, math.sqrt(Sigma[0])).cdf
            high = 1.0 if k == 15 else below(value + 1 / 16)
            low = 0.0 if k == 0 else below(value - 1 / 16)
            total -= math.log(high - low)
        last.append(total)
    top = 0.5 * (-math.log(1 - abar[-1]) + (1 - abar[-1]) + abar[-1] * x0**2 - 1)
    return {"prior": [float(top.sum())], "terms": terms, "simple": [np.mean(simple)], "reconstruction": [np.mean(last)]}


@pytest.mark.parametrize(("variance", "fraction"), [("fixed-small", 0.0), ("fixed-large", 0.0), ("learned", 0.7)])
def test_ddpm_s_terms_by_hand(variance: str, fraction: float) -> None:
    """L_T, every L_{t-1}, L_0 and L_simple for the same draws, to the last digits."""
    images, sde = torch.tensor([[[0, 3, 15], [7, 8, 12]]]), sg.DiscreteVPSDE(BETAS)

    def net(x: Tensor, label: Tensor) -> Tensor:
        return 0.3 * x

    def double(x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([0.3 * x, torch.full_like(x, 2 * fraction - 1)], 1)

    score = sg.from_noise(LearnedVariance(double) if variance == "learned" else net, sde)
    bound = sg.likelihood.ddpm_bound(
        score, sde, images, variance=variance, n_decodings=2, control_variate=False, **LEVELS
    )
    for name, expected in by_hand(images, variance, fraction).items():
        torch.testing.assert_close(getattr(bound, name).flatten(), torch.tensor(expected, dtype=F64))
    total = bound.prior + bound.terms.sum(0) + bound.reconstruction
    torch.testing.assert_close(bound.bits_per_dim, total / (6 * math.log(2)))
    assert bound.nfe == len(BETAS) - 1 + 2


def test_clipping_the_denoised_data() -> None:
    """As DDPM's code does: a network that points far outside is cut at the range."""
    images, sde = torch.tensor([[0, 15]]), sg.DiscreteVPSDE(BETAS)
    wild = sg.from_denoiser(lambda x, t: 100 * x.sign(), sde)
    edge = sg.from_denoiser(lambda x, t: x.sign(), sde)
    options = {"control_variate": False, **LEVELS}
    clipped = sg.likelihood.ddpm_bound(wild, sde, images, clip=(-1, 1), **options)
    torch.testing.assert_close(clipped.value, sg.likelihood.ddpm_bound(edge, sde, images, **options).value)
    assert "clipped to (-1, 1)" in clipped.protocol


def test_the_control_variate_leaves_the_mean_of_ddpm_s_bound() -> None:
    """Over many seeds both estimates agree; the standard error is that of their scatter."""
    sde = sg.DiscreteVPSDE(torch.linspace(1e-3, 0.3, 40).tolist())
    x = POINT.expand(400, -1)
    with_it, without = (
        sg.likelihood.ddpm_bound(GAUSSIAN.score(sde), sde, x, control_variate=flag, seed=2) for flag in (True, False)
    )
    spread = float((with_it.value - without.value).std()) / 20
    assert abs(float((with_it.value - without.value).mean())) < 4 * spread
    assert float(with_it.value.var()) < 0.5 * float(without.value.var())
    twice = sg.likelihood.ddpm_bound(GAUSSIAN.score(sde), sde, x, repeats=2, seed=2)
    assert 0.8 < float(twice.stderr.square().mean() / twice.value.var()) < 1.25
    assert bool(with_it.stderr.isnan().all())


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_the_gap_shrinks_as_steps_grow(data: str) -> None:
    """With the exact score and the variance beta at every step the gap is positive and vanishes with 1/N."""
    oracle = {"gaussian": GAUSSIAN, "mixture": MIXTURE}[data]
    x = oracle.sample(2000, seed=4, dtype=F64)
    gaps = []
    for n in (10, 40, 120):
        rate = torch.linspace(0.1, 9, n, dtype=F64)
        sde = sg.DiscreteVPSDE((rate / n).tolist())
        exact = oracle.score(sde)

        def net(x: Tensor, t: Tensor, exact: sg.Score = exact) -> Tensor:
            return torch.cat([exact.predict("noise", x, t), torch.ones_like(x)], 1)

        bound = sg.likelihood.ddpm_bound(
            sg.from_noise(LearnedVariance(net), sde), sde, x, variance="learned", n_decodings=16, seed=0
        )
        gap = oracle.log_prob(x) - bound.value
        gaps.append((float(gap.mean()), float(gap.std()) / math.sqrt(2000)))
    assert gaps[0][0] > 4 * gaps[0][1]
    for (before, _), (after, error) in pairwise(gaps):
        assert after > -4 * error
        assert after < before / 2 + 4 * error


# --- gradients and bad input -----------------------------------------------------------------------------------------


def test_both_losses_have_gradients() -> None:
    """The weighted loss is differentiable with respect to the network; nothing is left in it otherwise."""
    sde, w = sg.DiscreteVPSDE(BETAS), torch.tensor(0.3, dtype=F64, requires_grad=True)
    score = sg.from_noise(lambda x, t: w * x, sde)
    for bound in (sg.elbo, sg.likelihood.ddpm_bound):

        def loss(enable_grad: bool, bound: Any = bound) -> Tensor:
            value: Tensor = bound(score, sde, POINT, seed=0, enable_grad=enable_grad).value
            return -value.sum()

        (gradient,) = torch.autograd.grad(loss(True), w)
        with torch.no_grad():
            w += 1e-5
            up = float(loss(False))
            w -= 2e-5
            down = float(loss(False))
            w += 1e-5
        assert float(gradient) == pytest.approx((up - down) / 2e-5, rel=1e-5)
        assert not loss(False).requires_grad


def test_bits_are_printed_for_whole_numbers_only() -> None:
    """Of a density they depend on the units."""
    score = GAUSSIAN.score(VP)
    points = sg.elbo(score, VP, POINT, seed=0)
    assert str(points).startswith(f"{float(points.value.mean()):.4f} +- ") and " nats (" in str(points)
    levels = sg.elbo(score, VP, torch.tensor([[1, 2]]), n_levels=4, data_range=(-1, 1), seed=0)
    assert str(levels).startswith(f"{float(levels.bits_per_dim.mean()):.4f} +- ") and " bits/dim (" in str(levels)


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"x": torch.tensor([[1, 2]])}, ValueError, "n_levels"),
        ({"x": POINT, "n_levels": 4}, ValueError, "float64"),
        ({"x": [[0.0]]}, TypeError, "tensor"),
        ({"x": torch.tensor([[math.inf]])}, ValueError, "sample 0"),
        ({"n_decodings": 0}, ValueError, "0"),
        ({"data_std": 0.0}, ValueError, "0.0"),
        ({"score_fn": lambda x, t: x * math.nan}, ValueError, "not finite"),
        ({"sde": sg.VPSDE}, TypeError, "class VPSDE: call it"),
    ],
)
@pytest.mark.parametrize("bound", [sg.elbo, sg.likelihood.ddpm_bound])
def test_bad_input(bound: Any, options: dict[str, Any], error: type[Exception], shown: str) -> None:
    """An error at the call, in the user's words."""
    sde = sg.DiscreteVPSDE(BETAS)
    with pytest.raises(error, match=shown):
        bound(**{"score_fn": GAUSSIAN.score(sde), "sde": sde, "x": POINT, **options})


@pytest.mark.parametrize(
    ("bound", "options", "error", "shown"),
    [
        (sg.elbo, {"times": "quadratic"}, ValueError, "quadratic"),
        (sg.elbo, {"n_times": 0}, ValueError, "0"),
        (sg.elbo, {"eps": 0.0}, ValueError, "eps"),
        (sg.likelihood.ddpm_bound, {"variance": "medium"}, ValueError, "medium"),
        (sg.likelihood.ddpm_bound, {"variance": "learned"}, TypeError, "LearnedVariance"),
        (sg.likelihood.ddpm_bound, {"clip": (1, -1)}, ValueError, "clip"),
        (sg.likelihood.ddpm_bound, {"sde": VP, "score_fn": GAUSSIAN.score(VP)}, TypeError, "DiscreteVPSDE"),
    ],
)
def test_bad_options(bound: Any, options: dict[str, Any], error: type[Exception], shown: str) -> None:
    """Those of one bound alone."""
    sde = sg.DiscreteVPSDE(BETAS)
    with pytest.raises(error, match=shown):
        bound(**{"score_fn": GAUSSIAN.score(sde), "sde": sde, "x": POINT, **options})


def test_a_learned_variance_needs_twice_the_channels() -> None:
    """An error that shows both shapes."""
    sde = sg.DiscreteVPSDE(BETAS)
    score = sg.from_noise(LearnedVariance(lambda x, t: x), sde)
    with pytest.raises(ValueError, match=r"twice the channels of \(1, 2\)"):
        sg.likelihood.ddpm_bound(score, sde, POINT, variance="learned")
