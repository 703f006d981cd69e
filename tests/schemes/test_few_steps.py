"""Consistency models and their kin: steps against the published algorithms, and what they do on a perfect network."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import sgm_sde as sg
from sgm_sde.engine.noise import NoiseStream, resolve_seeds
from tests.helpers import F64, LINEAR

X = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "ddpm"])
def test_consistency_is_the_published_algorithm(process: str) -> None:
    """Song et al.'s algorithm 1: the data, and all of the noise anew; the last call's data are the sample."""
    sde = LINEAR[process]
    times = sg.grids.rule("log-snr")(sde, 3).times
    res = sg.sample(sg.from_denoiser(net, sde), sde, x_T=X, grid=times, solver=sg.schemes.Consistency(), seed=1)
    noise = NoiseStream(resolve_seeds(1, None, 4), "solver", times[0])
    x = X
    for t in times[1:]:
        D = net(x, x)
        x = float(sde.alpha(t)) * D + float(sde.sigma(t)) * noise.normal((4, 3), F64)
    torch.testing.assert_close(res.x, net(x, x), rtol=1e-10, atol=1e-10)
    assert res.nfe == 4


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_is_the_published_algorithm(gamma: float) -> None:
    """Zheng et al.'s strategic stochastic sampling: by DDIM to s below t', and noise from s to t'."""
    sde = sg.VPSDE()
    times = [1.0, 0.6, 0.3, 0.1]
    res = sg.sample(
        sg.from_denoiser(net, sde), sde, x_T=X, grid=times, solver=sg.schemes.TCD(gamma), seed=1, final="none"
    )
    noise = NoiseStream(resolve_seeds(1, None, 4), "solver", times[0])
    x = X
    for before, t in pairwise(times):
        D = net(x, x)
        eps = (x - float(sde.alpha(before)) * D) / float(sde.sigma(before))
        s = (1 - gamma) * t
        a, b = (float(f(s)) for f in (sde.alpha, sde.sigma))
        ratio = float(sde.alpha(t)) / a
        x = ratio * (a * D + b * eps)
        if gamma:
            x = x + (float(sde.sigma(t)) ** 2 - (ratio * b) ** 2) ** 0.5 * noise.normal((4, 3), F64)
    torch.testing.assert_close(res.x, x, rtol=1e-10, atol=1e-10)


def test_the_ends_of_the_family() -> None:
    """eta = 0 and gamma = 0 are DDIM, gamma = 1 is consistency."""
    sde = sg.VPSDE()
    score = sg.from_denoiser(net, sde)
    results = [
        sg.sample(score, sde, x_T=X, nfe=5, grid="log-snr", solver=solver, seed=1).x
        for solver in (
            sg.DDIM(),
            sg.schemes.Consistency(eta=0.0),
            sg.schemes.TCD(0.0),
            sg.schemes.Consistency(),
            sg.schemes.TCD(1.0),
        )
    ]
    for a, b in ((0, 1), (0, 2), (3, 4)):
        torch.testing.assert_close(results[a], results[b], rtol=1e-12, atol=1e-12)


def test_a_perfect_consistency_function_samples_the_data() -> None:
    """With the map of the flow itself, of normal data, any number of steps gives the data's law."""
    sde, std = sg.EDMSDE(), 0.5
    score = sg.from_denoiser(lambda x, t: x * std / (std**2 + t[:, None] ** 2).sqrt(), sde)
    for nfe in (1, 2, 4):
        x = sg.sample(
            score, sde, (20000, 1), nfe=nfe, grid="karras", solver=sg.schemes.Consistency(), seed=0, dtype=F64
        ).x
        assert float(x.std()) == pytest.approx(std, rel=0.02)


def test_names() -> None:
    """As other libraries spell them; not among the solvers of diffusion models."""
    assert sg.schemes.resolve("lcm") == sg.schemes.resolve("Consistency") == sg.schemes.Consistency()
    assert sg.schemes.resolve_any("TCD") == sg.schemes.TCD()
    assert not {"lcm", "tcd", "consistency"} & set(sg.solvers())
    score = sg.from_denoiser(net, sg.VPSDE())
    named, given = (
        sg.sample(score, sg.VPSDE(), x_T=X, nfe=4, seed=0, solver=solver).x
        for solver in ("lcm", sg.schemes.Consistency())
    )
    assert torch.equal(named, given)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="eta must be"):
        sg.schemes.Consistency(eta=2.0)
    with pytest.raises(ValueError, match="gamma must be"):
        sg.schemes.TCD(-0.1)
