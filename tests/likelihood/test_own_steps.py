"""Likelihoods by solvers that find their own steps, and Song et al.'s protocol."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.likelihood import (
    AdaptiveFlow,
    AdjointFlow,
    FixedGrid,
    Hutchinson,
)
from sgm_sde.likelihood.multistep import spread
from sgm_sde.likelihood.own_steps import NormalisedFlow
from sgm_sde.likelihood.problem import Problem
from sgm_sde.likelihood.trace import TraceScore
from tests.conventions import some_slow
from tests.helpers import GAUSSIAN, LINEAR, MIXTURE
from tests.likelihood.cases import COUPLED_2D, exact, points


def test_song_s_protocol() -> None:
    """SciPy's RK45 with one fixed probe: the same estimate as the exact trace in the mean, calls counted once."""
    sde = LINEAR["vp"]
    x = points(GAUSSIAN, "vp", 8)
    calls = [0]
    score = GAUSSIAN.score(sde)

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return score.denoised(x, t)

    res = sg.log_prob(sg.from_denoiser(net, sde), sde, x, method="rk45-scipy", trace="exact")
    ours = sg.log_prob(score, sde, x, trace="exact", method=FixedGrid(200))
    torch.testing.assert_close(res.value, ours.value, rtol=2e-4, atol=2e-4)
    assert res.nfe == calls[0]
    fixed = sg.log_prob(score, sde, x, method="rk45-scipy", seed=0, trace=Hutchinson(2, probe="gaussian"))
    assert bool((fixed.stderr > 0).all())
    assert bool(sg.log_prob(score, sde, x, method="rk45-scipy", trace="hutchinson", seed=0).stderr.isnan().all())
    quoted = ("rtol = 1e-05", "RK45", "fixed", "point log p_eps", "eps = 1e-05")
    assert [text for text in quoted if text not in str(fixed.protocol)] == []


@pytest.mark.parametrize("method", [AdaptiveFlow, AdjointFlow])
@pytest.mark.parametrize("process", ["vp", *some_slow(["ve", "flow"])])
def test_adaptive_methods(process: str, method: type[AdaptiveFlow] | type[AdjointFlow]) -> None:
    """The closed form at the accuracy asked for, and no call outside of [eps, T]."""
    sde, eps = LINEAR[process], LINEAR[process].likelihood_eps
    times: list[Tensor] = []
    score = MIXTURE.score(sde)

    def net(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return score.denoised(x, t)

    x = points(MIXTURE, process, 6)
    options: dict[str, Any] = {"trace": "exact", "prior": lambda z: MIXTURE.log_prob(z, sde, sde.T)}
    errors = []
    for tol in (1e-4, 1e-8):
        res = sg.log_prob(sg.from_denoiser(net, sde), sde, x, method=method(tol, tol), **options)
        errors.append(float((res.value - exact(MIXTURE, process, x)).abs().max()))
        assert f"rtol = {tol:g}" in str(res.protocol)
        assert res.eps == res.protocol.eps
    assert errors[0] < 5e-2
    assert errors[1] < 2e-6
    called = torch.cat(times)
    assert eps <= float(called.min()) <= float(called.max()) <= sde.T
    fixed = sg.log_prob(score, sde, x, method=method(), trace=Hutchinson(2, probe="gaussian"), seed=0)
    assert bool((fixed.stderr > 0).all())
    assert "fixed at each evaluation" in str(fixed.protocol)


def test_steps_of_each_sample_s_own() -> None:
    """Alone as beside an outlier; tensors among the network's arguments follow the samples that are still there."""
    sde = LINEAR["vp"]
    score = GAUSSIAN.score(sde)

    def net(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        assert len(shift) == len(x)
        return score.denoised(x - shift[:, None], t) + shift[:, None]

    wrapped = sg.from_denoiser(net, sde)
    x, shift = torch.cat([points(COUPLED_2D, "vp", 3), torch.full((1, 2), 30.0)]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    options: dict[str, Any] = {"method": AdaptiveFlow(1e-6, 1e-6), "trace": Hutchinson(2)}
    together = sg.log_prob(wrapped, sde, x, seed=[1, 2, 3, 4], model_kwargs={"shift": sg.PerSample(shift)}, **options)
    alone = sg.log_prob(wrapped, sde, x[1:2], seed=[2], model_kwargs={"shift": shift[1:2]}, **options)
    torch.testing.assert_close(alone.value, together.value[1:2], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(alone.stderr, together.stderr[1:2], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("probes", [1, 4])
def test_a_forward_pass_serves_drift_and_divergence(probes: int) -> None:
    """One network call a node, however many probes."""
    sde = LINEAR["vp"]

    res = sg.log_prob(
        GAUSSIAN.score(sde), sde, points(GAUSSIAN, "vp", 2), method=FixedGrid(10), trace=Hutchinson(probes), seed=0
    )
    assert (res.nfe, res.vjps) == (11, 11 * (probes + 1))  # one more that is the same at all nodes


@pytest.mark.parametrize("process", LINEAR)
def test_scores_of_slopes(process: str) -> None:
    """A slope tells the score in z, whatever the network predicts; places that were made ready for together give the
    same slopes as one by one, but for the last digits of a process's functions."""
    sde, s = LINEAR[process], 0.5
    rows = torch.arange(5)
    for score in (MIXTURE.score(sde), sg.from_noise(lambda x, t: torch.tanh(x + t[:, None]), sde)):
        model = TraceScore(score, sde, (sde.likelihood_eps, sde.T), None, 5)
        problem = Problem(model, points(MIXTURE, process, 5), sde.likelihood_eps)
        one, together = (NormalisedFlow(problem, s) for _ in range(2))
        low, high = one.lam[one.noise], one.lam[one.data]
        lam = low + (high - low) * torch.linspace(0.1, 0.9, 20, dtype=torch.float64).view(4, 5)
        z = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(0), dtype=problem.x.dtype)
        together(lam[0].clone(), (z,), rows)
        together.coefficients.prepare(lam)
        for u in lam.unbind(0):
            (slope,) = one(u.clone(), (z,), rows)
            torch.testing.assert_close(together(u, (z,), rows)[0], slope, rtol=1e-12, atol=1e-14)
            t = sde.time(2 * u)
            rho = spread(sde.values(t), s)[:, None].to(z)
            torch.testing.assert_close(one.score(u, z, slope), rho * score(rho * z, t), rtol=1e-5, atol=1e-6)
