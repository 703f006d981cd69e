"""Bits/dim."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.likelihood import (
    FixedGrid,
)
from sgm_sde.likelihood.decoders import Levels
from sgm_sde.likelihood.dequantisation import BitsPerDimWarning, _truncated_normal
from sgm_sde.nn.digits import digits_data
from sgm_sde.zoo.models import load_model
from tests.conventions import VP
from tests.helpers import F64, GAUSSIAN, LINEAR


def uniform_score(monkeypatch: pytest.MonkeyPatch, lo: float, hi: float) -> None:
    """Replaces the flow by the density that is uniform on the range."""

    def fake(score_fn: Any, sde: Any, x: Tensor, **_: Any) -> Any:
        assert bool(((x >= lo) & (x < hi)).all())
        value = torch.full((len(x),), -x[0].numel() * math.log(hi - lo), dtype=F64)
        nothing, latent = 0 * value, torch.ones_like(x)
        return sg.LogProbResult(value, nothing, nothing, latent, value, value, value, value, value, (), 1, 0, None)  # type: ignore[arg-type]

    monkeypatch.setattr(sg.likelihood.dequantisation, "log_prob", fake)


@pytest.mark.parametrize(("lo", "hi"), [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (0.0, 256.0)])
@pytest.mark.parametrize(("levels", "bits"), [(256, 8.0), (32, 5.0), (2, 1.0)])
def test_a_uniform_density_has_as_many_bits_as_levels(
    monkeypatch: pytest.MonkeyPatch, lo: float, hi: float, levels: int, bits: float
) -> None:
    """log2(n), exactly, whatever the range: nothing is hard-coded."""
    uniform_score(monkeypatch, lo, hi)
    images = torch.arange(2 * 3 * 4).reshape(2, 3, 4) % levels
    res = sg.bits_per_dim(
        GAUSSIAN.score(LINEAR["vp"]), LINEAR["vp"], images, n_levels=levels, data_range=(lo, hi), seed=0
    )
    assert res.value == pytest.approx(bits, abs=1e-12)
    assert res.guess == bits and str(res).endswith(f"; a uniform guess has {bits:.2f}")


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.dequantisation.BitsPerDimWarning")  # 4.5 bits, known
def test_bits_per_dim_of_a_known_density() -> None:
    """Gaussian data: the discrete distribution is known, the bound lies above its bits and comes down with draws."""
    sde, levels, std = LINEAR["vp"], 16, 0.4
    oracle = sg.oracles.Gaussian(torch.zeros(2), std**2)
    edges = torch.linspace(-1, 1, levels + 1, dtype=F64)
    masses = torch.special.ndtr(edges[1:] / std) - torch.special.ndtr(edges[:-1] / std)
    images = torch.arange(levels).repeat_interleave(2).reshape(levels, 2)
    truth = -(masses.log2())[images].mean(1)
    options: dict[str, Any] = {
        "n_levels": levels, "data_range": (-1.0, 1.0), "trace": "exact", "seed": 0, "dtype": F64,
        "method": FixedGrid(24),
    }  # fmt: skip
    score = oracle.score(sde)
    one = sg.bits_per_dim(score, sde, images, **options)
    mean = sg.bits_per_dim(score, sde, images, repeats=64, **options)
    weighted = sg.bits_per_dim(score, sde, images, repeats=64, importance=True, **options)
    assert one.repeats.shape == (1, levels)
    torch.testing.assert_close(mean.repeats[0], one.repeats[0])
    assert mean.value > float(truth.mean()) - 0.003
    assert float(truth.mean()) - 0.01 < weighted.value < mean.value
    assert weighted.value == pytest.approx(float(truth.mean()), abs=0.01)
    assert mean.stderr == pytest.approx(float(mean.per_image.std()) / math.sqrt(levels))
    assert "64 draws of uniform dequantisation, 16 levels" in str(mean)


def test_variational_dequantisation() -> None:
    """A callable's noise and density enter the bound; the uniform one by hand is the uniform one."""
    sde = LINEAR["vp"]
    score = sg.oracles.Gaussian(torch.zeros(2), 0.2).score(sde)
    images = torch.tensor([[3, 4], [8, 9]])
    options: dict[str, Any] = {
        "n_levels": 16,
        "data_range": (-1.0, 1.0),
        "trace": "exact",
        "dtype": F64,
        "method": FixedGrid(12),
    }

    def middle(images: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        return torch.full(images.shape, 0.5), torch.full((len(images),), 0.3)

    res = sg.bits_per_dim(score, sde, images, dequantize=middle, seed=0, **options)
    x = -1 + 2 * (images.double() + 0.5) / 16
    by_hand = sg.log_prob(score, sde, x, trace="exact", method=FixedGrid(12)).value
    expected = -(by_hand + 2 * math.log(2 / 16) - 0.3) / (2 * math.log(2))
    torch.testing.assert_close(res.per_image, expected)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        sg.bits_per_dim(score, sde, images, dequantize=lambda i, k: (torch.ones(i.shape), torch.zeros(2)), **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.dequantisation.BitsPerDimWarning")  # narrow noise
def test_truncated_normal_dequantisation() -> None:
    """Above the known bits, closing in on them with draws; exact moments of the noise; the uniform for wide noise."""
    sde, levels, std = LINEAR["vp"], 16, 0.4
    score = sg.oracles.Gaussian(torch.zeros(2), std**2).score(sde)
    images = torch.arange(levels).repeat_interleave(2).reshape(levels, 2)
    for eps in (1e-5, float(sde.time(2 * math.log(1 / (1.0 / levels))))):  # noise of 1/60 of a bin, and of half of it
        alpha, sigma = float(sde.alpha(eps)), float(sde.sigma(eps))
        spread = math.hypot(alpha * std, sigma)
        edges = alpha * torch.linspace(-1, 1, levels + 1, dtype=F64) / spread
        truth = -(torch.special.ndtr(edges[1:]) - torch.special.ndtr(edges[:-1])).log2()[images].mean(1)
        options: dict[str, Any] = {
            "n_levels": levels, "data_range": (-1.0, 1.0), "trace": "exact", "seed": 0, "dtype": F64,
            "method": FixedGrid(16), "dequantize": "truncated-normal", "eps": eps,
        }  # fmt: skip
        mean = sg.bits_per_dim(score, sde, images, repeats=64, **options)
        assert mean.estimator == "truncated-normal bound"
        assert mean.value > float(truth.mean()) - 0.01
        assert "64 draws of truncated-normal dequantisation" in str(mean)
    assert mean.value < float(truth.mean()) + 0.05  # where the noise fills the bin
    weighted = sg.bits_per_dim(score, sde, images, repeats=64, importance=True, **options)
    assert weighted.value == pytest.approx(float(truth.mean()), abs=0.01)
    assert weighted.estimator == "importance-weighted bound of 64 draws"


@pytest.mark.parametrize("tau", [0.01, 1.0, 3.0, 12.0])
def test_moments_of_the_truncated_normal(tau: float) -> None:
    """Variance 1 - 2 tau phi(tau) / Z, inside of the bin, and the density that was drawn from."""
    sde = LINEAR["edm"]
    levels = Levels.of(torch.full((4, 5000), 3), 8, (-1.0, 1.0), F64)
    eps = levels.width / (2 * tau)
    x, minus_log_q = _truncated_normal(levels, sde, eps, NoiseStream([(0, i) for i in range(4)], "dequantisation"))
    z = (x - levels.x) / eps
    Z = math.erf(tau / math.sqrt(2))
    variance = 1 - 2 * tau * math.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi) / Z
    assert float(z.abs().max()) <= tau * (1 + 1e-9)
    assert float(z.square().mean() / variance) == pytest.approx(1, abs=0.04)
    assert abs(float(z.mean())) < 4 * math.sqrt(variance / 20000)
    expected = (0.5 * z.square() + 0.5 * math.log(2 * math.pi) + math.log(eps * Z)).sum(1)
    torch.testing.assert_close(minus_log_q, expected)


def test_the_decoder_s_bound_on_the_density_of_data() -> None:
    """Over many draws its mean is below the density of what the decoder makes of the process at eps, and near it."""
    sde, eps, std = LINEAR["vp"], 0.1, 0.4
    oracle = sg.oracles.Gaussian(torch.zeros(1), std**2)
    x = torch.full((600, 1), 0.5, dtype=F64)
    marginal: dict[str, Any] = {"prior": lambda z: oracle.log_prob(z, sde, sde.T), "trace": "exact"}
    res = sg.log_prob(oracle.score(sde), sde, x, decoder="gaussian", eps=eps, method=FixedGrid(16), seed=0, **marginal)
    alpha, sigma = float(sde.alpha(eps)), float(sde.sigma(eps))
    V = (alpha * std) ** 2 + sigma**2
    gain = alpha * std**2 / V
    made = torch.distributions.Normal(0.0, math.sqrt(gain**2 * V + (sigma / alpha) ** 2))
    # The gap is the divergence of q(x_eps | x) from the posterior of x_eps under that, both Gaussian.
    precision = 1 / V + gain**2 * (alpha / sigma) ** 2
    centre = gain * (alpha / sigma) ** 2 * 0.5 / precision
    gap = 0.5 * (precision * (sigma**2 + (alpha * 0.5 - centre) ** 2) - 1 - math.log(precision * sigma**2))
    error = float(res.value.std()) / math.sqrt(600)
    assert gap > 1e-3
    assert float(res.value.mean()) == pytest.approx(float(made.log_prob(torch.tensor(0.5))) - gap, abs=4 * error)
    torch.testing.assert_close(res.prior + res.divergence + res.decoder, res.value)
    assert res.nfe == 18
    assert str(res.protocol).startswith("Jensen bound by diffusion to eps")


def test_shipped_models_give_their_own_number() -> None:
    """By the shortest call: the digits' levels, range and dequantisation go with the model."""
    model = load_model("digits")
    images, labels = digits_data("held_out")
    levels = ((images[:20] + 1) * 8).round().long()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = model.bits_per_dim(levels, seed=0)
    call: dict[str, Any] = {"n_levels": 17, "data_range": model.data_range, "dequantize": "diffusion", "eps": 0.1}
    by_hand = sg.bits_per_dim(model.score, sg.EDMSDE(), levels, seed=0, **call)
    assert own.per_image.tolist() == by_hand.per_image.tolist() and own.value < 2.3
    assert model.bits_per_dim(levels, labels[:20], seed=0).value != own.value
    with pytest.raises(ValueError, match="give n_levels: the model 'bare' does not tell it"):
        sg.models.Model("bare", model.score, model.sde, (1, 8, 8)).bits_per_dim(levels)


def test_a_range_that_no_number_of_bits_gives_away_is_told_by_the_latents() -> None:
    """Half of the right range: fewer bits than a uniform guess, and latents of a quarter of the prior's variance."""
    data = sg.oracles.Gaussian(torch.zeros(8), 0.25)
    levels = ((data.sample(256, seed=0) + 2) / 4 * 64).floor().long().clamp(0, 63)
    call: dict[str, Any] = {"n_levels": 64, "seed": 0, "trace": "exact"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = sg.bits_per_dim(data.score(VP), VP, levels, data_range=(-2.0, 2.0), **call)
    with pytest.warns(BitsPerDimWarning, match=r"latents of 0.2\d* times the prior's variance"):
        wrong = sg.bits_per_dim(data.score(VP), VP, levels, data_range=(-1.0, 1.0), **call)
    assert right.value < wrong.value < 6


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.checks.LikelihoodWarning")  # thirty deviations from the data
def test_numbers_that_cannot_be_meant() -> None:
    """More bits than a uniform guess warn with likely reasons; a range that the data show to be wrong is an error."""
    score = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(VP)
    outermost = torch.full((4, 2), 16)
    call: dict[str, Any] = {"n_levels": 17, "seed": 0, "trace": "exact"}
    with pytest.warns(BitsPerDimWarning, match=r"takes 4.09: look at data_range=.*; dequantize='diffusion' .*; labels"):
        value = sg.bits_per_dim(score, VP, outermost, data_range=(-3.0, 3.0), **call).value
    assert 8 < value < 10  # N(0, 1) at 2.8, in bins of 6/17
    with pytest.raises(ValueError, match=r"a uniform guess .* takes 4.09: data_range=\(-30.0, 30.0\) is not where"):
        sg.bits_per_dim(score, VP, outermost, data_range=(-30.0, 30.0), **call)
