"""Networks that predict the data without a skip connection: their samples change down to the least noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.sampling.candidates import default_candidates

F64 = torch.float64
KEPT = 0.9  # of what an exact denoiser of N(0, I) estimates
PROCESSES = [sg.VPSDE(), sg.presets.cosine(), sg.RectifiedFlowSDE()]


def bare_network(sde: sg.LinearSDE) -> Any:
    """A denoiser D = 0.9 y / (1 + s^2) of y = x / alpha with s = sigma / alpha, off by 0.1 y where nothing is noise."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        alpha = sde.alpha(t)[:, None]
        sigma = sde.sigma(t)[:, None]
        return KEPT * alpha * x / (alpha**2 + sigma**2)

    return net


def end_of_flow(sde: sg.LinearSDE, x: Tensor) -> Tensor:
    """Its denoised end from x at T: with dy / d log s = y - D, y is in proportion to s^0.1 (1 + s^2)^0.45."""
    start, end = sde.nodes((sde.T, sde.eps))

    def size(s: float) -> float:
        return s ** (1 - KEPT) * (1 + s**2) ** (KEPT / 2)

    y = x / start.alpha * size(end.noise_level) / size(start.noise_level)
    return KEPT * y / (1 + end.noise_level**2)


@pytest.mark.parametrize("nfe", [8, 12, 20])
@pytest.mark.parametrize("sde", PROCESSES, ids=str)
def test_the_default_goes_down_to_where_samples_stand_still(sde: sg.LinearSDE, nfe: int) -> None:
    """It errs several times less than what is for networks with a skip connection, and less than DDIM."""
    x_T = sde.prior_sample((4, 2), seed=0, dtype=F64)
    exact = end_of_flow(sde, x_T)

    def error(solver: str | None = None, **options: bool) -> float:
        score = sg.from_denoiser(bare_network(sde), sde, **options)
        found = sg.sample(score, sde, x_T=x_T, solver=solver, nfe=nfe).x
        return float((found - exact).norm() / exact.norm())

    ours = error()
    assert ours < 0.1
    assert ours < 0.3 * error(bare=False)
    assert ours < error("ddim")


def net(x: Tensor, t: Tensor) -> Tensor:
    return x / 2


VP = sg.VPSDE()
SCORES = {
    "on VP": (sg.from_denoiser(net, VP), True),
    "on rectified flow": (sg.from_denoiser(net, sg.RectifiedFlowSDE()), True),
    "on a table": (sg.from_denoiser(net, sg.presets.ddpm()), True),
    "guided": (sg.guidance.Auto(sg.from_denoiser(net, VP), sg.from_noise(net, VP), 2.0), True),
    "declared to have a skip": (sg.from_denoiser(net, VP, bare=False), False),
    "on EDM": (sg.from_denoiser(net, sg.EDMSDE()), False),
    "declared on EDM": (sg.from_denoiser(net, sg.EDMSDE(), bare=True), True),
    "on VE": (sg.from_denoiser(net, sg.VESDE()), False),
    "of EDM on VP": (sg.adapters.from_edm(net, VP)[0], False),
    "a predictor of noise": (sg.from_noise(net, VP), False),
    "an oracle": (sg.oracles.Gaussian(torch.zeros(2), 1.0).score(VP), False),
}


@pytest.mark.parametrize(("score", "bare"), list(SCORES.values()), ids=list(SCORES))
def test_what_is_bare(score: sg.Score, bare: bool) -> None:
    assert score.bare is bare
    assert score.traits["bare"] is bare


def test_what_was_declared_stays() -> None:
    declared = sg.from_denoiser(net, VP, bare=False)
    assert not declared.cast_to(F64).bare
    assert sg.spec(declared)["bare"] is False
    assert "bare" not in sg.spec(sg.from_denoiser(net, VP))


def test_what_is_no_denoiser_is_not_declared() -> None:
    with pytest.raises(ValueError, match="bare=True is of denoisers, got a network that predicts noise"):
        sg.Score(net, VP, "noise", bare=True)
    with pytest.raises(TypeError, match="bare"):
        sg.from_noise(net, VP, bare=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="bare"):
        sg.defaults.default_setting(VP, 8, bare="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("nfe", [5, 8, 20, 50])
def test_its_default_is_among_the_candidates_of_a_pilot(nfe: int, guided: bool) -> None:
    setting = sg.defaults.default_setting(VP, nfe, bare=True, guided=guided)
    assert setting.plain in default_candidates(nfe, bare=True, guided=guided)
    assert setting.plain not in default_candidates(nfe, guided=guided)
