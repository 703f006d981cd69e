"""DPS. Inverse problems: operators, posterior scores, methods at the nodes, against exact posteriors."""

from __future__ import annotations

import pytest
import torch

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde.engine.executor import execute
from tests.helpers import F64, bind
from tests.inverse.cases import (
    MODES,
    VP,
    Listed,
    normal,
    seen,
)


@pytest.mark.parametrize("solver", [sg.Ancestral(), sg.DDIM(0.5), sg.EulerMaruyama()])
def test_dps_as_published(solver: sg.Solver) -> None:
    """The published loop written out: the sampler's step, then down the gradient of the norm at the state before."""
    grid, m, score = sg.Grid([1.0, 0.7, 0.4, 0.1]), seen(), MODES.score(VP)
    z, x_T = [normal(2, 2, seed=i) for i in range(3)], normal(2, 2, seed=20)
    guided = inverse.DPS(solver, m, zeta=0.3)
    model = bind(score, VP, grid.times)
    hooks = guided.hooks(VP, grid, model, Listed(), mean=False)
    with torch.no_grad():
        got = execute(guided.compile(VP, grid), x_T, model, Listed(*z), hooks=hooks).x
    x = x_T
    for i in range(3):
        before = x.clone().requires_grad_()
        D = score.denoised(before, torch.full((2,), grid.times[i], dtype=F64))
        (slope,) = torch.autograd.grad((1 - D[:, 0]).abs().sum(), before)  # the norm of one number
        step = sg.Grid(grid.times[i : i + 2])
        with torch.no_grad():
            moved = execute(solver.compile(VP, step), x, bind(score, VP, step.times), Listed(z[i])).x
        x = moved - 0.3 * slope
    torch.testing.assert_close(got, x)


def test_dps_at_a_misfit_of_zero() -> None:
    """No gradient, and no NaN."""
    exact = sg.from_denoiser(lambda x, t: torch.cat([torch.ones_like(x[:, :1]), x[:, 1:]], 1), VP)
    res = sg.sample(exact, VP, (2, 2), solver=inverse.DPS(sg.DDIM(), seen()), steps=5, seed=0)
    assert torch.equal(res.x, sg.sample(exact, VP, (2, 2), solver="ddim", steps=5, seed=0).x)
