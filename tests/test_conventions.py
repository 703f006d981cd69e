"""Yardsticks and conventions: labels, averages, exact scores, training times, options, bits per dimension."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde import training
from sgm_sde.likelihood import AdjointFlow, FixedGrid
from sgm_sde.likelihood.dequantisation import BitsPerDimWarning
from sgm_sde.nn.digits import digits_data
from sgm_sde.scores import time_labels
from sgm_sde.zoo.models import load_model

F64 = torch.float64
VP = sg.VPSDE()


# --- time labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 10, 232, 1000])
def test_labels_of_ladders_are_their_entries(n: int) -> None:
    """Every entry of a ladder has its own number from the noise, on tables and on the continuous process."""
    sigmas = torch.logspace(1, -2, n, dtype=F64).tolist()
    ladder = sg.DiscreteVESDE(sigmas)
    expected = torch.arange(n - 1, -1, -1)
    for dtype in (torch.float32, F64):
        assert torch.equal(time_labels.score_sde_ve_discrete(ladder)(torch.tensor(ladder.times, dtype=dtype)), expected)
        continuous = sg.VESDE(sigma_min=0.01, sigma_max=10.0)
        times = torch.linspace(0, 1, n, dtype=dtype)
        assert torch.equal(time_labels.score_sde_ve_discrete(continuous, n)(times), expected)
        _, sde = sg.adapters.from_score_sde(lambda x, label: x, ladder)
        assert sde is ladder
    with pytest.raises(TypeError, match="noise levels of DiscreteVESDE or VESDE, got 1000"):
        time_labels.score_sde_ve_discrete(1000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"has its own table of {n} levels, got levels=7"):
        time_labels.score_sde_ve_discrete(ladder, 7)


def test_ncsn_ladder_and_ddpm_table() -> None:
    """The published tables, entry by entry."""
    for sde in (sg.presets.ncsn_cifar10(), sg.presets.ddpm()):
        n = len(sde.times)
        times = torch.tensor(sde.times)
        if isinstance(sde, sg.DiscreteVESDE):
            assert torch.equal(time_labels.score_sde_ve_discrete(sde)(times), torch.arange(n - 1, -1, -1))
        else:
            assert torch.equal(time_labels.ddpm(sde, integer=True)(times), torch.arange(n))
            assert torch.equal(time_labels.ddpm(sde, integer=True)(times), time_labels.ddpm(n, integer=True)(times))


def test_an_index_is_never_out_of_its_table() -> None:
    """Below the first entry and above the last it is the first and the last: -1 would be the noisiest."""
    t = torch.tensor([0.0, 1e-5, 0.0004, 0.00051, 0.9996, 1.0])
    assert time_labels.ddpm(1000, integer=True)(t).tolist() == [0, 0, 0, 0, 999, 999]


def test_networks_that_look_their_time_up() -> None:
    """They run at once: an embedding of the index, from diffusers' configurations and as a scheduler."""

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x + 0 * self.table(t)

    config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    net = Embedded()
    score, sde = sg.adapters.from_diffusers(net, config, integer=True)
    assert sg.sample(score, sde, (2, 2), nfe=5, seed=0).status.ok
    scheduler = sg.adapters.SolverScheduler(config, "ddim", integer=True, seed=0)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.dtype == torch.int64
    x = torch.ones(2, 2)
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(net(x, t[None].expand(2)), t, x).prev_sample
    assert bool(x.isfinite().all())
    with pytest.raises(ValueError, match="flow matching has none"):
        sg.adapters.from_diffusers(net, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, integer=True)


# --- averages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_averages_move_in_any_dtype(dtype: torch.dtype) -> None:
    """1000 updates at 0.999: 2 - 0.999^1000, which half precision does not see one by one."""
    net = nn.Linear(1, 1, bias=False, dtype=dtype)
    net.weight.data.fill_(1.0)
    ema = training.EMA(net, 0.999)
    ema.updates = 10**6
    net.weight.data.fill_(2.0)
    for _ in range(1000):
        ema.update(net)
    assert abs(float(ema.average["weight"]) - (2 - 0.999**1000)) < 1e-4
    ema.copy_to(net)
    assert net.weight.dtype == dtype and abs(float(net.weight.detach()) - (2 - 0.999**1000)) < 4e-3
    again = training.EMA(net, 0.999)
    again.load_state_dict(ema.state_dict())
    assert torch.equal(again.average["weight"], ema.average["weight"])


# --- oracles ---------------------------------------------------------------------------------------------------------


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


# --- training times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [-20.0, -9.0, -1.2, 3.0, 8.0, 20.0])
def test_log_normal_times_stay_within_the_process(mean: float) -> None:
    """Whatever the mean, far tails too: within [eps, T], in the right proportions; refused where nothing is left."""
    sde, rule = sg.EDMSDE(), training.LogNormal(mean=mean, std=1.0)
    for u in (torch.linspace(0, 1, 1001, dtype=F64), torch.rand(100, generator=torch.Generator().manual_seed(0))):
        t = rule.quantile(sde, u)
        assert sde.eps <= float(t.min()) <= float(t.max()) <= sde.T
    middle = math.log(float(rule.quantile(sde, torch.tensor(0.5, dtype=F64)))) - mean
    below, at, above = (
        math.erfc(-z / math.sqrt(2)) for z in (math.log(sde.eps) - mean, middle, math.log(sde.T) - mean)
    )
    if -5 < mean < 5:  # beyond that, shares are rounded to 1
        assert abs((at - below) / (above - below) - 0.5) < 1e-6
    with pytest.raises(ValueError, match=r"has no share between eps=0.002 and T=80"):
        training.LogNormal(mean=math.copysign(60.0, mean), std=1.0).quantile(sde, torch.rand(3))
    with pytest.raises(ValueError, match="std must be positive and finite, got inf"):
        training.LogNormal(std=math.inf)


def test_importance_needs_finite_ends() -> None:
    """At eps = 0 there is no largest log-SNR to draw up to."""
    with pytest.raises(ValueError, match=r"needs a finite log-SNR at both ends, .* eps=0"):
        training.Importance().quantile(sg.VPSDE(eps=0.0), torch.rand(3))


# --- options that would do nothing -----------------------------------------------------------------------------------


def test_options_that_would_do_nothing() -> None:
    """An error, whichever of them it is."""
    x = torch.zeros(2, 2)
    gaussian = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(VP)
    cld = sg.CLD()
    joint = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(cld)
    for call in (
        lambda: sg.log_prob(joint, cld, torch.zeros(2, 2, 2), method=FixedGrid(data_std=0.7)),  # type: ignore[arg-type]
        lambda: sg.encode(gaussian, VP, x, method="rk45-scipy"),
        lambda: sg.decode(gaussian, VP, x, method=AdjointFlow()),
    ):
        with pytest.raises(ValueError, match=r"data_std=|goes from data to noise only"):
            call()
    with pytest.raises(ValueError, match=r"data_std must be finite, above 0 .* got -7"):
        sg.log_prob(gaussian, VP, x, method=FixedGrid(data_std=-7))


# --- bits per dimension ----------------------------------------------------------------------------------------------


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
