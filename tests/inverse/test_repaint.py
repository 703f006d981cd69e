"""RePaint. Inverse problems: operators, posterior scores, methods at the nodes, against exact posteriors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde.engine.executor import execute
from tests.helpers import DOUBLE, F64, Recorder, bind
from tests.inverse.cases import (
    MODES,
    TILTED,
    VP,
    seen,
)


def published_schedule(t_T: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """Times of RePaint, t_T first, as in the algorithm's published listing."""
    jumps = dict.fromkeys(range(0, t_T - jump_length, jump_length), jump_n_sample - 1)
    t, times = t_T, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [t_T, *times]


@pytest.mark.parametrize(("steps", "jump", "resamples"), [(12, 3, 3), (7, 2, 2), (5, 1, 4), (4, 5, 3)])
def test_repaint_visits_the_published_times(steps: int, jump: int, resamples: int) -> None:
    """Network calls are at the times from which the published schedule steps down, and budgets are kept."""
    times = [0.1 + 0.9 * i / steps for i in range(steps, -1, -1)]
    net = Recorder(lambda x, t: 0.5 * x)
    solver = inverse.RePaint(sg.Ancestral(), seen(), resamples=resamples, jump=jump)
    res = sg.sample(
        sg.from_denoiser(net, VP),
        VP,
        (2, 2),
        solver=solver,
        grid=times,
        seed=0,
        final="none",
        execution=DOUBLE,
    )
    schedule = published_schedule(steps, jump, resamples)
    down = [t for t, after in pairwise(schedule) if after < t]
    assert net.times == pytest.approx([times[steps - t] for t in down])
    assert res.nfe == len(down) == solver.nfe(steps)
    assert solver.steps(solver.nfe(steps)) == steps and solver.steps(solver.nfe(steps) - 1) < steps


@pytest.mark.parametrize("final", ["mean", "none", "denoise"])
def test_repaint_once_is_replacement(final: str) -> None:
    """Without resampling nothing is added, at any end."""
    options: dict[str, Any] = {"steps": 6, "seed": 0, "final": final}
    once = inverse.RePaint(sg.Ancestral(), seen(), resamples=1, jump=2)
    plain = inverse.Replacement(sg.Ancestral(), seen())
    a, b = (sg.sample(MODES.score(VP), VP, (3, 2), solver=s, **options).x for s in (once, plain))
    assert torch.equal(a, b)


class Columns:
    """Noise of which each number is 1 in one row and 0 in all others: rows are responses under a linear score."""

    def __init__(self, rows: int) -> None:
        self.rows, self.used = rows, 0

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: object = None) -> Tensor:
        """The next draw."""
        z = torch.zeros(shape, dtype=dtype)
        for c in range(shape[1]):
            z[min(self.used, self.rows - 1), c] = 1.0 if self.used < self.rows else 0.0
            self.used += 1
        return z


def exact_law(solver: sg.Solver, data: sg.oracles.Gaussian, steps: int, rows: int = 4000) -> tuple[Tensor, Tensor]:
    """Mean and covariance (without Monte Carlo) of the last state of a sampler on two-dimensional Gaussian data."""
    grid = sg.grids.LogSNR()(VP, steps, t_end=0.02)
    model, noise = bind(data.score(VP), VP, grid.times), Columns(rows)
    x = torch.zeros(rows + 3, 2, dtype=F64)  # one row a number drawn, two for the start, one for the mean
    x[rows : rows + 2] = VP.prior_std * torch.eye(2, dtype=F64)
    with torch.no_grad():
        out = execute(
            solver.compile(VP, grid), x, model, noise, hooks=solver.hooks(VP, grid, model, noise, mean=False)
        ).x  # fmt: skip
    assert noise.used <= rows
    responses = out[:-1] - out[-1]
    return out[-1], responses.T @ responses


def test_resampling_takes_the_bias_of_replacement_away() -> None:
    """Laws on correlated data without Monte Carlo: replacement is off, RePaint by much less."""
    exact = inverse.posterior(TILTED, seen())
    alpha, sigma = float(VP.alpha(0.02)), float(VP.sigma(0.02))
    expected = float(alpha * exact.mean[1]), float(alpha**2 * exact.covariance[1, 1] + sigma**2)

    def off(solver: sg.Solver) -> tuple[float, float]:
        mean, cov = exact_law(solver, TILTED, 20)
        return abs(float(mean[1]) - expected[0]), abs(float(cov[1, 1]) - expected[1])

    # Heun, whose own error is small beside the method's
    replaced = off(inverse.Replacement(sg.Heun(), seen()))
    some, many = (off(inverse.RePaint(sg.Heun(), seen(), resamples=n, jump=1)) for n in (3, 8))
    assert min(replaced) > 0.1
    for bias, less, least in zip(replaced, some, many, strict=True):
        assert bias / 1.5 > less and bias / 3 > least
