"""Networks whose output jumps or jitters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from benchmarks.likelihood_error import oracles
from sgm_sde.likelihood import FixedGrid, LikelihoodWarning
from sgm_sde.likelihood.refinement import error_of_finer_steps
from tests.helpers import F64, LINEAR, MIXTURE
from tests.likelihood.cases import points, with_wave

VP = LINEAR["vp"]
WIDTH = 0.06  # of the pieces of a slope


def of_pieces(z: Tensor) -> Tensor:
    """A slope of straight pieces, from 0.05 to 0.15 and back."""
    return 0.05 + 0.1 * (2 * (z / (2 * WIDTH) - (z / (2 * WIDTH)).round())).abs()


def with_kinks(x: Tensor, t: Tensor) -> Tensor:
    """A score of which the flow of z in lambda has this slope, times the share of the noise."""
    alpha, sigma = VP.alpha(t)[:, None], VP.sigma(t)[:, None]
    rho = (0.25 * alpha**2 + sigma**2).sqrt()
    z = x / rho
    return (of_pieces(z) - z) / rho


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.LikelihoodWarning")
def test_the_error_at_kinks() -> None:
    """The volume of a flow of one dimension whose slope is a function of the state times one of time is the ratio of
    that function at the ends; the trace jumps at every kink, where embedded errors are ten times and more too small."""
    x = torch.linspace(-1, 1, 24, dtype=F64)[:, None]
    res = sg.log_prob(with_kinks, VP, x)
    ends = [(VP.alpha(t) ** 2 / 4 + VP.sigma(t) ** 2).sqrt() for t in (VP.likelihood_eps, VP.T)]
    slopes = [of_pieces(state / rho) for state, rho in zip((x, res.latent), ends, strict=True)]
    volume = (slopes[1] / slopes[0]).log()[:, 0] + float((ends[1] / ends[0]).log())
    off = (res.divergence - volume).abs()
    assert float((off <= res.error + 1e-6).double().mean()) > 0.95
    assert float(res.error.median()) < 1e-3


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.LikelihoodWarning")
def test_steps_by_a_ridge_are_no_noise() -> None:
    """Where they are long beside what is near, no polynomial follows the slopes either; shorter ones arrive."""
    modes, _ = oracles()["mixture-2-off"]
    x = modes.sample(24, VP, VP.likelihood_eps, seed=0, dtype=F64)
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=F64)
    res = sg.log_prob(modes.score(VP), VP, x, prior=lambda z: modes.log_prob(z, VP, VP.T))
    assert "noise" not in res.reasons
    off = (res.value - modes.log_prob(x, VP, VP.likelihood_eps)).abs() / 2
    assert float(off.max()) < 1e-4 and float((off <= res.error / 2 + 1e-6).double().mean()) > 0.9


def test_a_change_that_is_small_by_chance() -> None:
    """It leaves what the steps say: errors of a sixth of that, and ten times as large before, are bounded."""
    off, before = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0), dtype=F64)
    stated = torch.full_like(off, 6.0)
    error = error_of_finer_steps(stated, (10 * before - off).abs())
    assert float((off.abs() <= error).double().mean()) > 0.95
    assert float(error.median()) < 5 * float(off.abs().median())


@pytest.mark.slow
def test_a_change_takes_nothing_off_what_signs_have_lowered() -> None:
    """On Gaussian data all steps err the same way, which lowers the error already; data of this scale take a second
    run, whose change tells of the same."""
    sde, std = LINEAR["sub-vp"], 1e-4
    data = sg.oracles.Gaussian(torch.full((2,), 0.3 * std, dtype=F64), std**2)
    x = data.sample(6, sde, sde.likelihood_eps, seed=0, dtype=F64)
    res = sg.log_prob(data.score(sde), sde, x, trace="exact", prior=lambda z: data.log_prob(z, sde, sde.T))
    on_own_steps = res.defect.isnan()
    off = (res.value - data.log_prob(x, sde, sde.likelihood_eps)).abs()
    assert bool(on_own_steps.any())
    assert bool((off <= res.error)[on_own_steps].all())


@pytest.mark.parametrize(("change", "error"), [(0.0, 2.3 * math.sqrt(2 / 3)), (10.0, 2.3), (100.0, 6.0)])
def test_the_error_of_finer_steps(change: float, error: float) -> None:
    """The formula, and what the steps say at most."""
    found = error_of_finer_steps(torch.tensor([6.0], dtype=F64), torch.tensor([change], dtype=F64))
    assert float(found) == pytest.approx(error, rel=1e-12)


class Coarse(nn.Module):
    """An exact noise estimate, rounded to half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Its values at x and t."""
        seen = x.to(self.dtype).to(x.dtype)
        return MIXTURE.score(VP).predict("noise", seen, t).to(self.dtype).to(x.dtype)


def prior(z: Tensor) -> Tensor:
    """The density of the data at the noise's end."""
    return MIXTURE.log_prob(z, VP, VP.T)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 1e-4), (torch.float16, 1e-6)])
def test_an_output_in_half_precision(dtype: torch.dtype, atol: float) -> None:
    """Shorter steps only meet more of its rounding: samples come back after some hundred calls with the grid's value
    and an error that holds, and the warning says why."""
    net = Coarse(dtype)
    x = MIXTURE.sample(8, VP, 1e-5, seed=0)
    with pytest.warns(LikelihoodWarning, match="too rough, or not the same at each call, for shorter steps"):
        res = sg.log_prob(sg.from_noise(net, VP), VP, x, method=FixedGrid(atol=atol), prior=prior)
        parts = sg.log_prob(sg.from_noise(net, VP), VP, x, method=FixedGrid(atol=atol), prior=prior, batch_size=3)
    assert res.nfe < 3000
    assert not res.status and "noise" in res.reasons and len(res.reasons) == len(res.unresolved)
    grid = sg.log_prob(sg.from_noise(net, VP), VP, x, method=FixedGrid(48), prior=prior)
    noisy = torch.tensor([i for i, reason in zip(res.unresolved, res.reasons, strict=True) if reason == "noise"])
    assert float(res.error[noisy].max()) <= 1.5 * float(grid.error.max())
    off = (res.value - MIXTURE.log_prob(x, VP, 1e-5)).abs()
    assert float(off.max()) < (0.02 if dtype == torch.bfloat16 else 0.003)
    assert (parts.unresolved, parts.reasons) == (res.unresolved, res.reasons)


def test_an_output_that_is_drawn_anew() -> None:
    """As that of dropout in train mode: after some hundred calls it is told."""
    drawn = torch.Generator().manual_seed(0)
    calls = 0

    def noise(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        factor = 1 + 0.1 * torch.randn(x.shape, generator=drawn, dtype=x.dtype)
        return factor * MIXTURE.score(VP).predict("noise", x, t)

    x = MIXTURE.sample(4, VP, 1e-5, seed=0, dtype=F64)
    with pytest.warns(LikelihoodWarning, match="or not the same at each call"):
        res = sg.log_prob(sg.from_noise(noise, VP), VP, x, seed=0)
    assert calls < 2000 and set(res.reasons) == {"noise"}
    assert float(res.error.min()) > 0.1


@pytest.mark.slow
def test_jumps_at_too_many_places_are_given_up() -> None:
    """Each costs an adaptive solver some ten steps: once those so far have left too much, the sample keeps the grid's
    value and error, and the warning says what errs less."""
    drawn = torch.Generator().manual_seed(0)
    into, out = torch.randn(2, 300, 2, generator=drawn, dtype=F64)
    rates, places = torch.randn(2, 300, generator=drawn, dtype=F64)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        kinks = (x @ into.T + rates * VP.log_snr(t)[:, None] / 4 - 4 * places).clamp(min=0)
        return MIXTURE.score(VP).predict("noise", x, t) + 0.01 * kinks @ out

    x = MIXTURE.sample(2, VP, 1e-5, seed=0, dtype=F64)[1:]
    score = sg.from_noise(noise, VP)
    with pytest.warns(LikelihoodWarning, match="of 1 samples .* divergence jumps, as with ReLU, at more places than"):
        res = sg.log_prob(score, VP, x)
    assert res.reasons == ("jumps",) and res.nfe < 2000
    finer = sg.log_prob(score, VP, x, method=FixedGrid(1500))
    assert float((res.value - finer.value).abs()) < float(res.error + finer.error)


def test_calls_of_a_point_are_limited() -> None:
    """What the adaptive solver may take is the user's to say, and samples that need more are named."""
    x = MIXTURE.sample(4, VP, 1e-5, seed=0, dtype=F64)
    score = MIXTURE.score(VP)
    with pytest.warns(LikelihoodWarning, match="for 4 of them max_calls=120 network calls did not suffice"):
        res = sg.log_prob(score, VP, x, method=FixedGrid(atol=1e-8, max_calls=120), prior=prior)
    assert res.nfe < 49 + 97 + 120 + 10 and res.reasons == ("calls",) * 4
    off = (res.value - MIXTURE.log_prob(x, VP, 1e-5)).abs()
    assert bool((off <= res.error + 1e-6).all())
    enough = sg.log_prob(score, VP, x, method=FixedGrid(atol=1e-6))
    assert enough.status.ok and math.isclose(float(enough.error.max()), 1e-6, rel_tol=1)
    with pytest.raises(ValueError, match="max_calls must be"):
        FixedGrid(max_calls=0)


@pytest.mark.slow
def test_a_grid_that_would_see_no_more_is_left_out() -> None:
    """Of a wave of eight a unit of log-SNR grids of 48 and 96 steps see nothing: 384 come next, not 192."""
    x = points(MIXTURE, "vp", 4)
    found = sg.log_prob(with_wave("vp", 0.003, 8), VP, x, method=FixedGrid())
    assert found.nfe == 49 + 97 + 385
