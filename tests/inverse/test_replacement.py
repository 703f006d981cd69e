"""Replacement. Inverse problems: operators, posterior scores, methods at the nodes, against exact posteriors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde.engine.executor import execute
from tests.helpers import DOUBLE, F64, bind
from tests.inverse.cases import (
    MODES,
    TILTED,
    VP,
    Listed,
    normal,
    seen,
)

APART = sg.oracles.Gaussian(torch.tensor([0.3, -0.7], dtype=F64), torch.diag(torch.tensor([1.0, 0.5], dtype=F64)))


@pytest.mark.parametrize("final", ["mean", "none", "denoise"])
@pytest.mark.parametrize("name", ["ancestral", "heun", "reverse-diffusion", "sde-dpm++2s"])
def test_replacement_leaves_the_independent_alone(name: str, final: str) -> None:
    """The unknown coordinate is the unguided sampler's, noise-free last step included; the known one is y."""
    solver = sg.solvers().fixed.get(name, sg.schemes.SEEDS(2))
    options: dict[str, Any] = {"steps": 6, "seed": 0, "final": final, "execution": DOUBLE}
    free = sg.sample(APART.score(VP), VP, (4, 2), solver=solver, **options).x
    res = sg.sample(APART.score(VP), VP, (4, 2), solver=inverse.Replacement(solver, seen()), **options)
    torch.testing.assert_close(res.x[:, 1], free[:, 1], rtol=1e-12, atol=1e-12)
    if final == "mean":
        assert torch.equal(res.x[:, 0], torch.ones(4, dtype=F64))
    else:
        assert float((res.x[:, 0] - 1).abs().max()) < 6 * float(VP.sigma(VP.eps))
    assert res.nfe == solver.nfe(6) + (final == "denoise")


def test_colours_are_decoupled() -> None:
    """Independent channels of one variance: the mean of the channels is y, what is orthogonal to it the sampler's."""
    grey = inverse.ChannelMix.grey(3)
    data = sg.oracles.Gaussian(torch.zeros(3, 2, dtype=F64), 0.5)
    y = torch.tensor([[0.4, -0.2]], dtype=F64)
    options: dict[str, Any] = {"steps": 6, "seed": 0, "final": "mean", "execution": DOUBLE}
    free = sg.sample(data.score(VP), VP, (4, 3, 2), solver="ancestral", **options).x
    solver = inverse.Replacement(sg.Ancestral(), inverse.Measurement(grey, y))
    x = sg.sample(data.score(VP), VP, (4, 3, 2), solver=solver, **options).x
    torch.testing.assert_close(x.mean(1, keepdim=True), y.expand(4, 1, 2))
    torch.testing.assert_close(x - x.mean(1, keepdim=True), free - free.mean(1, keepdim=True))


def test_inpainting_as_published() -> None:
    """Song et al.'s loop written out: predictor, then the known part at the new noise level."""
    sde, grid = sg.VESDE(sigma_max=5.0), sg.Grid([1.0, 0.6, 0.3, 0.1])
    score = MODES.score(sde)
    z, known = [normal(2, 2, seed=i) for i in range(3)], [normal(2, 2, seed=10 + i) for i in range(4)]
    solver = inverse.Replacement(sg.ReverseDiffusion(), seen())
    model = bind(score, sde, grid.times)
    hooks = solver.hooks(sde, grid, model, Listed(*known), mean=True)
    x_T = 5 * normal(2, 2, seed=20)
    got = execute(solver.end_in_mean(solver.compile(sde, grid)), x_T, model, Listed(*z), hooks=hooks).x

    def put_in(x: Tensor, i: int, std: float) -> Tensor:
        return torch.stack([1.0 + std * known[i][:, 0], x[:, 1]], 1)

    x = put_in(x_T, 0, float(sde.sigma(1.0)))
    for i in range(3):
        s, t = float(sde.sigma(grid.times[i])), float(sde.sigma(grid.times[i + 1]))
        mean = x + (s**2 - t**2) * score(x, torch.full((2,), grid.times[i], dtype=F64))
        x = mean + math.sqrt(s**2 - t**2) * z[i]
        x, mean = put_in(x, i + 1, t), put_in(mean, i + 1, 0.0)
    torch.testing.assert_close(got, mean)


def test_fixed_noise_is_one_path() -> None:
    """The known part is alpha y + sigma z with one z, so that a multistep solver goes."""
    solver = inverse.Replacement(sg.DPMSolverPP(3), seen(), "fixed")
    res = sg.sample(
        TILTED.score(VP),
        VP,
        (3, 2),
        solver=solver,
        steps=8,
        seed=0,
        record=sg.Record(trajectory="all"),
        final="none",
        execution=DOUBLE,
    )
    assert res.trajectory is not None
    alpha, sigma = (f(torch.tensor(res.times, dtype=F64))[:, None] for f in (VP.alpha, VP.sigma))
    z = (res.trajectory[..., 0] - alpha) / sigma
    torch.testing.assert_close(z, z[:1].expand_as(z))
    assert len(z[0].unique()) == 3


def test_replacement_composes() -> None:
    """Around a predictor-corrector, and inside of one, with the calls of both."""
    langevin = sg.Langevin(0.1)
    outside = inverse.Replacement(sg.PredictorCorrector(sg.ReverseDiffusion(), langevin), seen())
    between = sg.PredictorCorrector(inverse.Replacement(sg.ReverseDiffusion(), seen()), langevin)
    for solver in (outside, between, inverse.Replacement(between, seen())):
        res = sg.sample(APART.score(VP), VP, (2, 2), solver=solver, nfe=21, seed=0)
        assert (res.nfe, bool(res.status)) == (21, True)
    last = sg.sample(APART.score(VP), VP, (2, 2), solver=outside, steps=5, seed=0, final="mean", execution=DOUBLE).x
    assert last[:, 0].tolist() == [1.0, 1.0]
    mixed = inverse.Replacement(sg.DPMSolver(3), seen())  # makes up for the odd call by a step of lower order
    assert sg.sample(APART.score(VP), VP, (2, 2), solver=mixed, nfe=12, seed=0).nfe == 12
