"""Methods at the nodes: DPS, replacement, RePaint, against the published algorithms and exact posteriors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde.engine.executor import execute
from tests.conventions import case_id
from tests.helpers import DOUBLE, F64, LINEAR, Recorder, bind
from tests.inverse.cases import (
    MODES,
    TILTED,
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


def test_dps_differentiates_where_it_stands() -> None:
    """A step of DPS on a function that is not linear, by hand."""
    sde, zeta = LINEAR["edm"], 0.3
    data = sg.oracles.Gaussian(torch.tensor([0.5, -0.25], dtype=F64), 0.6)
    square = sg.inverse.NonlinearMap(lambda x: x**2 + x[:, :1], (2,))
    seen = inverse.Measurement(square, torch.tensor([0.7, 0.1], dtype=F64))
    score, x = data.score(sde), torch.tensor([[3.0, -2.0], [0.3, 0.9]], dtype=F64)
    times = (2.0, 0.5)
    plain = sg.sample(score, sde, x_T=x, solver="ancestral", grid=times, seed=1, final="none").x
    solver = sg.inverse.DPS(sg.Ancestral(), seen, zeta)
    res = sg.sample(score, sde, x_T=x, solver=solver, grid=times, seed=1, final="none").x
    leaf = x.clone().requires_grad_()
    misfit = (seen.y - square.apply(score.denoised(leaf, 2.0))).norm(dim=1)
    (gradient,) = torch.autograd.grad(misfit.sum(), leaf)
    torch.testing.assert_close(res, plain - zeta * math.sqrt(5.0 * 1.25) * gradient)
    with pytest.raises(TypeError, match="a linear operator is needed"):
        sg.inverse.Replacement(sg.Ancestral(), seen)
    with pytest.raises(TypeError, match="a linear operator is needed"):
        sg.inverse.posterior(data, seen)


@pytest.mark.parametrize("method", [sg.inverse.MMPS, sg.inverse.PiGDM, sg.inverse.DiffPIR], ids=case_id)
def test_methods_for_linear_operators_name_dps(method: Callable[..., object]) -> None:
    square = sg.inverse.NonlinearMap(lambda x: x**2, (2,))
    seen = inverse.Measurement(square, torch.tensor([0.7, 0.1], dtype=F64))
    score = sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 0.6).score(LINEAR["edm"])
    with pytest.raises(TypeError, match=r"a linear operator is needed, got NonlinearMap\(.*DPS takes any"):
        method(score, seen)


# --- Measurements of each sample's own --------------------------------------------------------------------------------

MASKS = torch.tensor([[True, False], [False, True], [True, True]]).repeat(3, 1)
OWN = normal(9, 2, seed=5)
AT_NODES: dict[str, Callable[[inverse.Measurement], sg.Solver]] = {
    "replacement": lambda m: inverse.Replacement(sg.Ancestral(), m),
    "replacement, fixed noise": lambda m: inverse.Replacement("dpm++2m", m, noise="fixed"),
    "repaint": lambda m: inverse.RePaint(sg.Ancestral(), m, resamples=2, jump=2),
    "dps": lambda m: inverse.DPS(sg.Ancestral(), m),
    "inside of a predictor-corrector": lambda m: sg.PredictorCorrector(
        inverse.Replacement(sg.ReverseDiffusion(), m), sg.Langevin()
    ),
}


@pytest.mark.parametrize("method", AT_NODES)
@pytest.mark.parametrize("mask", [MASKS[0], MASKS], ids=["one mask", "a mask a sample"])
def test_measurements_of_each_samples_own_in_parts(mask: Tensor, method: str) -> None:
    """A run in parts puts in what was measured of the samples of each part."""
    solver = AT_NODES[method](inverse.Measurement(inverse.Mask(mask), OWN))
    whole, parts = (
        sg.sample(MODES.score(VP), VP, (9, 2), solver=solver, steps=6, seed=0, execution=execution).x
        for execution in (sg.Execution(dtype=F64), sg.Execution(dtype=F64, batch_size=4))
    )
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("zeta", [0.3, 3.0])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_dps_names_samples_that_a_network_throws_far_out(zeta: float, gain: float) -> None:
    """Beyond what the start and all pulls account for, half of them and more; of a sound network none."""
    sde = sg.EDMSDE()
    law = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.3)
    exact = sg.from_score(law.score(sde), sde)
    score = sg.from_noise(lambda x, t: exact.predict("noise", x, t) + gain * torch.sin(3 * x), sde)
    seen = inverse.Measurement(inverse.Mask(torch.tensor([True, False])), torch.tensor([1.0, 0.0]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        res = sg.sample(score, sde, (8, 2), solver=inverse.DPS("ddim", seen, zeta=zeta), steps=100, seed=0)
    named = res.status.samples
    assert (len(named) >= 4) == bool(gain) != res.status.ok
    assert [w.category for w in caught] == [sg.diagnosis.ImplausibleWarning] * bool(gain)
    assert all(float(res.x[i].abs().max()) > 100 for i in named)
