"""Flows of coupled pairs: what is a matter of the flow alone works, and what needs the score is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.adapters import from_flow_matching
from tests.conventions import case_id

C = 0.4  # data c eps, each with the noise that it was made of: the flow is a scaling by c
SDE = sg.RectifiedFlowSDE()


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """eps - x_0 at x = ((1 - t) c + t) eps."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return (1 - C) / ((1 - t) * C + t) * x


COUPLED = sg.from_flow(velocity, SDE, coupled=True)
NOISE = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SEEN = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.tensor([0.3, 0.0]), 0.1)


@pytest.mark.parametrize("options", [{}, {"solver": "dpm++2m"}, {"solver": "heun"}, {"solver": "dopri5"}], ids=case_id)
def test_deterministic_solvers_follow_the_flow(options: Any) -> None:
    """From eps to c eps, whether pairs were coupled or not."""
    budget = {} if options.get("solver") == "dopri5" else {"nfe": 100}
    start = (SDE.T * (1 - C) + C) * NOISE
    res = sg.sample(COUPLED, SDE, x_T=start, **budget, **options)
    torch.testing.assert_close(res.x, C * NOISE, rtol=0, atol=2e-3)


@pytest.mark.parametrize("nfe", [2, 3, 4, 8, 50])
def test_the_default_is_exact_on_straight_paths(nfe: int) -> None:
    """Data c eps: the velocity does not change along a path, and few steps in these coordinates meet the end."""
    start = (SDE.T * (1 - C) + C) * NOISE
    res = sg.sample(COUPLED, SDE, x_T=start, nfe=nfe)
    torch.testing.assert_close(res.x, C * NOISE, rtol=1e-12, atol=1e-12)
    setting = sg.defaults.default_setting(SDE, nfe, coupled=True)
    assert setting.plain in sg.sampling.candidates.default_candidates(nfe, coupled=True)


def test_the_default_has_a_scale() -> None:
    """That of the grid; three evaluations are used from 8 calls on."""
    few, more = (sg.defaults.default_setting(SDE, nfe, coupled=True) for nfe in (7, 8))
    assert (few.solver.nodes, more.solver.nodes) == (2, 3)
    small = sg.defaults.default_setting(SDE, 8, data_std=0.1, coupled=True)
    assert small == sg.Setting(more.solver, replace(more.grid, data_std=0.1), nfe=8)
    with pytest.raises(TypeError, match="coupled"):
        sg.defaults.default_setting(SDE, 8, coupled="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("T, eps", [(1.0, 1e-3), (1.0, 0.0), (0.999, 0.0)])
def test_the_default_reaches_both_ends(T: float, eps: float) -> None:
    """Where alpha or sigma is 0 as elsewhere."""
    sde = sg.RectifiedFlowSDE(T=T, eps=eps)
    start = (T * (1 - C) + C) * NOISE
    res = sg.sample(sg.from_flow(velocity, sde, coupled=True), sde, x_T=start, nfe=8, t_start=T, t_end=eps)
    torch.testing.assert_close(res.x, C * NOISE, rtol=0, atol=1e-12)


def test_densities_and_codes_are_those_of_the_flow() -> None:
    """N(0, c^2), but for the prior at T = 0.999."""
    x = C * NOISE[:20]
    found = sg.log_prob(COUPLED, SDE, x, trace="exact")
    expected = torch.distributions.Normal(0.0, C).log_prob(x).sum(1)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=0.02)
    code = sg.encode(COUPLED, SDE, x)
    scale = (SDE.T * (1 - C) + C) / (SDE.likelihood_eps * (1 - C) + C)
    torch.testing.assert_close(code.x, scale * x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sg.decode(COUPLED, SDE, code.x).x, x, rtol=1e-3, atol=1e-4)
    res = sg.sample(COUPLED, SDE, (4, 2), nfe=20, solver="dpm++2m", final="none", seed=0, log_prob=True)
    assert res.log_prob is not None and bool(res.log_prob.value.isfinite().all())


def test_a_stochastic_solver_would_have_the_wrong_law() -> None:
    """The reason: the noise given x_t is known here, and -E[eps | x] / sigma would be the score of less."""
    undeclared = sg.from_flow(velocity, SDE)
    x = sg.sample(undeclared, SDE, (2000, 2), solver="ancestral", nfe=400, seed=0).x
    assert abs(float(x.std()) - C) > 0.1


STOCHASTIC: list[Callable[[], object]] = [
    *(
        lambda name=name: sg.sample(COUPLED, SDE, (2, 2), solver=name, nfe=20, seed=0)
        for name in ("ancestral", "euler-maruyama", "sde-dpm++2m", "sa-solver", "edm-sde", "pc")
    ),
    lambda: sg.sample(COUPLED, SDE, (2, 2), solver="ggf", seed=0),
    lambda: sg.sample(COUPLED, SDE, (2, 2), solver=sg.Restart("heun"), nfe=40, seed=0),
    lambda: sg.sample(COUPLED, SDE, (2, 2), solver=sg.inverse.DPS("ddim", SEEN), nfe=20, seed=0),
    lambda: sg.sample(
        COUPLED, SDE, (2, 2), solver="ancestral", seed=0, grid=sg.grids.TokenGrid(torch.tensor([[[0.9]], [[0.5]]]))
    ),
    lambda: COUPLED(NOISE, 0.5),
    lambda: SDE.reverse(COUPLED).f(NOISE, 0.5),
    lambda: sg.inverse.PiGDM(COUPLED, SEEN),
    lambda: sg.guidance.Classifier(COUPLED, lambda x, t, y: x.sum(1)),
    lambda: sg.scores.compose_posteriors(COUPLED, SDE, torch.zeros(2, 1), lambda x: -x),
    lambda: sg.elbo(COUPLED, SDE, NOISE),
    lambda: sg.sample(
        sg.guidance.Auto(COUPLED, sg.from_flow(velocity, SDE), 2.0), SDE, (2, 2), solver="ancestral", nfe=20, seed=0
    ),
    lambda: sg.sample(COUPLED.cast_to(torch.float64), SDE, (2, 2), solver="ancestral", nfe=20, seed=0),
]


@pytest.mark.parametrize("call", STOCHASTIC, ids=case_id)
def test_what_needs_the_score_is_refused(call: Callable[[], object]) -> None:
    """At the call, by what was said of the network."""
    with pytest.raises(ValueError, match=r"coupled pairs \(coupled=True\)"):
        call()


def test_guidance_of_velocities_is_there() -> None:
    """Extrapolation between two velocities follows the flow of their combination."""
    weak = sg.from_flow(lambda x, t: 0 * x, SDE, coupled=True)
    guided = sg.guidance.Auto(COUPLED, weak, 1.5)
    res = sg.sample(guided, SDE, x_T=NOISE, solver="rk4", nfe=401, final="none")
    path = (SDE.eps * (1 - C) + C) / (SDE.T * (1 - C) + C)  # of the flow alone; log of it is linear in the velocity
    torch.testing.assert_close(res.x, math.pow(path, 1.5) * NOISE, rtol=1e-4, atol=0)


def test_the_option_is_part_of_the_identity_and_of_flows_alone() -> None:
    """Two scores that differ in it are two; a network that predicts the noise has none."""
    assert sg.spec(COUPLED) != sg.spec(sg.from_flow(velocity, SDE))
    assert "coupled" not in sg.spec(sg.from_flow(velocity, SDE))
    with pytest.raises(ValueError, match="a network that predicts noise"):
        sg.Score(velocity, SDE, "noise", coupled=True)
    with pytest.raises(TypeError, match="coupled"):
        sg.from_noise(velocity, SDE, coupled=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("from_noise", [False, True])
def test_the_adapter_hands_it_on(from_noise: bool) -> None:
    """In both directions of the network's time."""
    score, _ = from_flow_matching(lambda x, t: x, from_noise=from_noise, coupled=True)
    assert score.coupled
    assert not from_flow_matching(lambda x, t: x, from_noise=from_noise)[0].coupled
    with pytest.raises(TypeError, match="coupled"):
        from_flow_matching(lambda x, t: x, coupled="ot")  # type: ignore[arg-type]
