"""Calibrated solvers: tables fitted to a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import sgm_sde as sg
from sgm_sde.engine.program import Form, Step

GAUSSIAN = sg.oracles.Gaussian(torch.full((2,), 0.5), 0.3)


@dataclass(frozen=True)
class OneJump(sg.Solver):
    """The data estimated at the start of the last step: a solver whose last state is the sample."""

    name, order, prediction, source = "one-jump", 1, "data", "this test"
    ends_in_data = True
    budget = 3

    def step(self, k: Step) -> Form:
        """DDIM, and the data at the end."""
        D = k.evaluate(k.x, k.start)
        if k.i == k.n - 1:
            return D
        r = k.end.sigma / k.start.sigma
        return r * k.x + (k.end.alpha - r * k.start.alpha) * D


def test_a_solver_that_ends_in_data_takes_no_call_to_denoise() -> None:
    sde = sg.VPSDE()
    score = GAUSSIAN.score(sde)
    seen: list[float] = []
    res = sg.sample(score, sde, (4, 2), solver=OneJump(), seed=0, callback=lambda info: seen.append(info.t_next))
    assert (res.nfe, len(seen)) == (3, 3)

    # Denoising where its last call is made is DDIM's way to end.
    ddim = sg.sample(score, sde, (4, 2), solver="ddim", grid=res.times[:-1], seed=0)
    torch.testing.assert_close(res.x, ddim.x)

    kept = sg.sample(score, sde, (4, 2), solver=OneJump(), seed=0, trajectory="all")
    assert kept.trajectory is not None and kept.trajectory_times == res.times
    torch.testing.assert_close(kept.trajectory[-1], res.x)

    for final in ("none", "mean"):
        torch.testing.assert_close(sg.sample(score, sde, (4, 2), solver=OneJump(), seed=0, final=final).x, res.x)


def test_correctors_leave_a_sample_without_noise() -> None:
    sde = sg.VPSDE()
    solver = sg.PredictorCorrector(OneJump(), sg.Langevin(0.1))
    res = sg.sample(GAUSSIAN.score(sde), sde, (4, 2), solver=solver, steps=3, seed=0)
    assert res.status.ok and solver.ends_in_data
