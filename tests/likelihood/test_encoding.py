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
    FixedGrid,
    Stretched,
)
from tests.helpers import F64, GAUSSIAN, LINEAR, MIXTURE
from tests.likelihood.cases import PROCESSES, points


@pytest.mark.parametrize("process", PROCESSES)
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


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
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
    _, slopes = rule.curve(sde, sde.T, end)(np.linspace(0, 1, 2001))
    whole = float(sde.log_snr(end) - sde.log_snr(sde.T)) / 2
    assert float(((slopes[1:] + slopes[:-1]) / 2).mean()) == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("density", [False, True])
def test_codes_are_called_as_they_are_given(density: bool) -> None:
    z = torch.full((2, 2), math.nan)
    with pytest.raises(ValueError, match="z must be finite, sample 0 is not"):
        sg.decode(MIXTURE.score(sg.VPSDE()), sg.VPSDE(), z, log_prob=density)
    with pytest.raises(TypeError, match=r"z must be a floating tensor \(B, \*\), got dtype torch.int64$"):
        sg.decode(MIXTURE.score(sg.VPSDE()), sg.VPSDE(), torch.ones(2, 2, dtype=torch.int64), log_prob=density)
