"""Encoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sgm_sde as sg
from sgm_sde.likelihood import (
    AdaptiveFlow,
    FixedGrid,
    LikelihoodWarning,
    Stretched,
)
from sgm_sde.likelihood.decoders import normal_log_prob
from sgm_sde.likelihood.nodes import first_grid
from tests.conventions import some_slow
from tests.helpers import F64, GAUSSIAN, LINEAR, MIXTURE
from tests.likelihood.cases import PROCESSES, VP, points, with_wave


@pytest.mark.parametrize("process", some_slow(PROCESSES, fast=("vp", "edm", "flow")))
def test_encoding_is_the_exact_flow(process: str) -> None:
    """Latents are those of the closed form, and decoding returns, at the order of the method."""
    sde = LINEAR[process]
    x = points(GAUSSIAN, process, 8)
    expected = GAUSSIAN.flow(x, sde, sde.likelihood_eps, sde.T)
    errors, trips = [], []
    for steps in (40, 80):
        z = sg.encode(GAUSSIAN.score(sde), sde, x, method=FixedGrid(steps))
        back = sg.decode(GAUSSIAN.score(sde), sde, z.x, method=FixedGrid(steps))
        errors.append(float((z.x - expected).abs().max() / expected.abs().max()))
        trips.append(float((back.x - x).abs().max()))
        assert z.nfe == back.nfe == steps + 1
        assert z.times == back.times[::-1]
    assert errors[1] < max(errors[0] / 5, 1e-8)
    assert trips[1] < max(trips[0] / 5, 1e-8)


@pytest.mark.parametrize("process", ["vp", *some_slow(["edm", "flow"])])
def test_the_order_of_fixed_grids(process: str) -> None:
    """That which the protocol states, at least: 5, from some hundred steps on a mixture."""
    sde = LINEAR[process]
    x = points(MIXTURE, process, 8)
    exact, *coarse = (sg.encode(MIXTURE.score(sde), sde, x, method=FixedGrid(steps)).x for steps in (448, 112, 224))
    before, after = (float((z - exact).abs().max()) for z in coarse)
    assert np.log2(before / after) > 5


def test_many_steps_return_to_a_millionth() -> None:
    """The round trip on a mixture comes back to 1e-6 and below."""
    sde = LINEAR["vp"]
    x = points(MIXTURE, "vp", 8)
    z = sg.encode(MIXTURE.score(sde), sde, x, method=FixedGrid(400)).x
    assert float((sg.decode(MIXTURE.score(sde), sde, z, method=FixedGrid(400)).x - x).abs().max()) < 1e-6


def test_adaptive_codes_return_to_a_millionth() -> None:
    """The round trip at tolerance 1e-8 comes back to 1e-6 and below, a sample alone as in the batch."""
    sde, score = LINEAR["vp"], MIXTURE.score(LINEAR["vp"])
    x = points(MIXTURE, "vp", 6)
    code = sg.encode(score, sde, x, method="adaptive")
    back = sg.decode(score, sde, code.x, method="adaptive")
    assert float((back.x - x).abs().max()) < 1e-6
    assert code.times == back.times[::-1] == (sde.likelihood_eps, sde.T)
    torch.testing.assert_close(sg.encode(score, sde, x[2:3], method="adaptive").x, code.x[2:3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(code.x, sg.encode(score, sde, x, method=FixedGrid(400)).x, rtol=1e-5, atol=1e-5)


@given(weight=st.floats(0, 1))
def test_interpolation_keeps_the_norm(weight: float) -> None:
    """Between latents of one length all are of that length; the ends are the ends."""
    a, b = torch.tensor([[3.0, 0.0], [1.0, 1.0]], dtype=F64), torch.tensor([[0.0, 3.0], [1.0, 1.0]], dtype=F64)
    mixed = sg.likelihood.slerp(a, b, weight)
    torch.testing.assert_close(mixed.norm(dim=1), a.norm(dim=1))
    torch.testing.assert_close(sg.likelihood.slerp(a, b, 0.0), a)
    torch.testing.assert_close(sg.likelihood.slerp(a, b, 1.0), b)


@given(
    stretch=st.floats(0.1, 12),
    data_std=st.floats(0.01, 30),
    process=st.sampled_from(PROCESSES),
    steps=st.integers(1, 99),
)
def test_stretched_grids(stretch: float, data_std: float, process: str, steps: int) -> None:
    """Decreasing times from T to the end, with the slopes that its own differences have."""
    sde = LINEAR[process]
    rule = Stretched(stretch, data_std)
    end = sde.likelihood_eps
    times = rule(sde, steps, t_end=end).times
    assert (times[0], times[-1]) == (sde.T, end)
    v = np.linspace(0, 1, 4001)
    u = v**4 * (35 - 84 * v + 70 * v**2 - 20 * v**3)  # dense at both ends, where curves may be bent
    _, slopes = rule.curve(sde, sde.T, end)(u)
    whole = float(sde.log_snr(end) - sde.log_snr(sde.T)) / 2
    assert float(((slopes[1:] + slopes[:-1]) / 2) @ np.diff(u)) == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("density", [False, True])
def test_codes_are_called_as_they_are_given(density: bool) -> None:
    z = torch.full((2, 2), math.nan)
    with pytest.raises(ValueError, match="z must be finite, sample 0 is not"):
        sg.decode(MIXTURE.score(sg.VPSDE()), sg.VPSDE(), z, log_prob=density)
    with pytest.raises(TypeError, match=r"z must be a floating tensor \(B, \*\), got dtype torch.int64$"):
        sg.decode(MIXTURE.score(sg.VPSDE()), sg.VPSDE(), torch.ones(2, 2, dtype=torch.int64), log_prob=density)


CASES = [("vp", MIXTURE), ("edm", MIXTURE), ("ve", GAUSSIAN), ("flow", GAUSSIAN)]


@pytest.mark.parametrize(("process", "oracle"), CASES)
def test_codes_state_their_error(process: str, oracle: sg.oracles.Oracle) -> None:
    """Smooth scores stay on the first grid, whose error bounds what is off, on the way there and back."""
    sde = LINEAR[process]
    score = oracle.score(sde)
    x = points(oracle, process, 24)
    exact = sg.encode(score, sde, x, method=AdaptiveFlow(1e-10, 1e-10))
    for result, known in (
        (sg.encode(score, sde, x), exact.x),
        (sg.decode(score, sde, exact.x), x),
        (sg.encode(score, sde, x, method="adaptive"), exact.x),
    ):
        assert result.error is not None and result.error.shape == (24,)
        off = (result.x - known).square().mean(1).sqrt()
        scale = float(known.std())
        assert float((off <= result.error + 1e-7 * scale).double().mean()) > 0.8
        assert float((off <= 3 * result.error + 1e-7 * scale).double().mean()) == 1
        assert float(result.error.max()) < 1e-3 * scale and result.status.ok and result.unresolved == ()
        assert result.nfe == first_grid(sde, sde.likelihood_eps, 0.5) + 1 or result.times[1:] in (
            (sde.T,),
            (sde.likelihood_eps,),
        )


@pytest.mark.slow
def test_codes_of_a_rough_network_are_refined() -> None:
    """Samples in which the error is above the tolerance take steps of their own, and return to where they were."""
    sde = LINEAR["vp"]
    score = with_wave("vp", 0.1, 8)
    x = points(MIXTURE, "vp", 12)
    exact = sg.encode(score, sde, x, method=AdaptiveFlow(1e-10, 1e-10)).x
    grid = sg.encode(score, sde, x, method=FixedGrid(48))
    code = sg.encode(score, sde, x)
    assert grid.error is not None and code.error is not None
    assert grid.nfe == 49 < code.nfe < 1500
    for result in (grid, code):
        off = (result.x - exact).square().mean(1).sqrt()
        assert float((off <= result.error).double().mean()) > 0.6 and bool((off <= 2.5 * result.error).all())
    assert float((grid.x - exact).abs().max()) > 5e-3
    assert float(code.error.max()) < 1e-3 * sde.prior_std and code.status.ok
    back = sg.decode(score, sde, code.x)
    assert float((back.x - x).abs().max()) < 2e-3
    tighter = sg.encode(score, sde, x, method=FixedGrid(atol=1e-6))
    assert float((tighter.x - exact).abs().max()) < 2e-5
    alone = sg.encode(score, sde, x[3:4])
    torch.testing.assert_close(alone.x, code.x[3:4], rtol=1e-9, atol=1e-9)


def test_codes_that_do_not_reach_the_tolerance_are_named() -> None:
    """In the result and a warning that says why; gradients leave no steps of their own."""
    sde = LINEAR["vp"]
    score = with_wave("vp", 0.1, 8)
    x = points(MIXTURE, "vp", 3)
    words = (
        r"tolerance of FixedGrid\(.*; for 3 of them max_calls=20 network calls did not suffice; the error of sample 0"
    )
    with pytest.warns(LikelihoodWarning, match=words):
        code = sg.encode(score, sde, x, method=FixedGrid(max_calls=20))
    assert code.unresolved == (0, 1, 2) == code.status.samples and not code.status
    assert "max_calls=20 network calls did not suffice" in code.status.message
    assert code.reasons == ("calls",) * 3 and "3 above the tolerance" in repr(code)
    with pytest.warns(LikelihoodWarning):
        kept = sg.encode(score, sde, x, enable_grad=True)
    assert kept.nfe == 49 and kept.error is not None and not kept.error.requires_grad
    torch.testing.assert_close(kept.x, sg.encode(score, sde, x, method=FixedGrid(48)).x)


Z = torch.linspace(-9, 9, 241, dtype=F64)


def of_thin_banana(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Log-density at a time of (u, 2 u^2 + 0.02 v), of normal u and v: the mean over u given x_1 of that of x_2."""
    alpha, sigma = (k(t).to(F64)[:, None] for k in (VP.alpha, VP.sigma))
    square = alpha**2 + sigma**2
    u = alpha * x[:, :1] / square + sigma / square.sqrt() * Z
    std = (0.02**2 * alpha**2 + sigma**2).sqrt()
    given_u = normal_log_prob((x[:, 1:] - 2 * alpha * u**2) / std, std)
    weights = normal_log_prob(Z, float(Z[1] - Z[0]) ** -1)
    along = normal_log_prob(x[:, :1] / square.sqrt(), square.sqrt())[:, 0]
    return along + (given_u + weights).logsumexp(1)


def score_of_banana(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        (score,) = torch.autograd.grad(of_thin_banana(x, t).sum(), x, create_graph=create)
    return score


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.LikelihoodWarning")
def test_densities_by_jumps_that_are_long_beside_what_is_near() -> None:
    """One grid to a thin density leaves states several of its widths away, where no score says what a jump does: the
    error says so, by how the score changes over it."""
    z = VP.prior_sample((24, 2), seed=4, dtype=F64)
    found = sg.decode(score_of_banana, VP, z, log_prob=True, method=FixedGrid(48))
    latent = sg.encode(score_of_banana, VP, found.x, method=FixedGrid(200)).x
    end = torch.ones(24, dtype=F64)
    gap = of_thin_banana(latent, VP.T * end) - VP.prior_log_prob(latent)
    assert found.log_prob is not None and found.error is not None
    off = (found.log_prob + gap - of_thin_banana(found.x, VP.likelihood_eps * end)).abs()
    assert float((off <= found.error + 1e-5).double().mean()) > 0.95 and float(off.max()) > 1.0
    ratio = found.error.clamp(min=2e-6) / off.clamp(min=2e-6)
    assert float(ratio.log().abs().median().exp()) < 5
