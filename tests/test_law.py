"""The law of what every sampler returns: right in any number of dimensions, at every scale, on every process.

Runs start from the exact marginal at T, so that the prior's distance does not enter. On Gaussian data the law is known
exactly by impulse response (`output_law`); what goes through Monte Carlo is compared with that, within four standard
errors, since hundreds of comparisons are made.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.executor import execute
from sgm_sde.grids import LogSNR, Quadratic
from sgm_sde.testing import output_law
from tests.helpers import ALL, F64, LINEAR, bind

PROCESSES = [name for name in LINEAR if name != "schedule"]
COMPOSED: dict[str, sg.Solver] = {
    "pc-dpm++2m": sg.PredictorCorrector(sg.DPMSolverPP(), sg.Langevin()),
    "pc-seeds2": sg.PredictorCorrector(sg.SEEDS(2), sg.Langevin(0.1, n_steps=2)),
    "cp": sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(), order="CP"),
    "pc-annealed": sg.PredictorCorrector(sg.DDIM(), sg.AnnealedLangevin(0.1, n_steps=2)),
    "heun-restart": sg.Restart(sg.Heun(), rounds=4, n_steps=8),
    "ancestral-restart": sg.Restart(sg.Ancestral(), s_min=0.1, s_max=0.9, n_steps=40),
    "ddim-ancestral-half": sg.AncestralNoise(sg.DPMSolver(1), eta=0.5),
    "dpm2-ancestral-half": sg.AncestralNoise(sg.DPMSolver(2), eta=0.5),
}
STOCHASTIC = {**{name: solver for name, solver in ALL.items() if solver.stochastic}, **COMPOSED}
WITH_ORDER = [name for name, solver in STOCHASTIC.items() if solver.weak_order]
# What a sampler's own options leave, in any number of steps: of a standard deviation.
OWN_BIAS = {
    "pc": 0.014,  # 1 / sqrt(1 - r^2) is 1.013
    "pc-dpm++2m": 0.014,
    "pc-seeds2": 0.006,
    "cp": 0.014,
    "pc-annealed": 0.026,  # 1 / sqrt(1 - q / 4) is 1.013, and steps of DDIM
    "annealed-langevin": 0.03,  # 1 / sqrt(1 - q / 4) is 1.026
    "edm-sde": 0.015,  # noise inflated by 1.003, and a churn that many steps do not thin out
    "dpm++3m-restart": 0.003,
    "heun-restart": 0.003,
    "ancestral-restart": 0.03,
}
PREDICTORS = {"pc": "reverse-diffusion", "cp": "reverse-diffusion", "pc-seeds2": "seeds2"}

MEAN = torch.tensor([0.0, 5.0, 0.0, 5.0, 0.0, 5.0], dtype=F64)
STD = torch.tensor([0.01, 0.01, 0.5, 0.5, 10.0, 10.0], dtype=F64)
THREE_MODES = sg.oracles.GaussianMixture(torch.tensor([[-2.0], [0.0], [1.5]]), [0.2, 0.3, 0.1], [0.1, 0.3, 0.6])


def relative_errors(name: str, process: str, steps: int) -> Tensor:
    """Errors of means and standard deviations of six Gaussians at the grid's end, in standard deviations there."""
    sde = LINEAR[process]
    grid = LogSNR()(sde, steps)
    mean, std = output_law(STOCHASTIC[name], sde, MEAN, STD, grid)
    end = grid.times[-1]
    exact = torch.hypot(sde.alpha(end) * STD, sde.sigma(end))
    return torch.cat([(mean - sde.alpha(end) * MEAN) / exact, std / exact - 1])


def assert_right_in_the_limit(name: str, process: str, steps: int) -> None:
    """The error falls by the declared weak order when steps double; what has none comes to its own bias."""
    coarse, fine = (relative_errors(name, process, n) for n in (steps, 2 * steps))
    weak_order = STOCHASTIC[name].weak_order
    if weak_order:
        assert float(fine.norm()) < max(float(coarse.norm()) * 2.0 ** (0.2 - weak_order), 1e-5), (coarse, fine)
        assert float(fine.abs().max()) < 0.15, fine
    else:
        predictor = PREDICTORS.get(name)
        left = float(relative_errors(predictor, process, 2 * steps).abs().max()) if predictor else 0.0
        assert float(fine.abs().max()) < left + OWN_BIAS[name], fine


@pytest.mark.parametrize("process", ["vp", "edm"])
@pytest.mark.parametrize(
    "name",
    ["euler-maruyama", "reverse-diffusion", "ancestral", "dpm2-ancestral", "sde-dpm++2m", "sa-solver", "er-sde3",
     "dpm++3m-restart", "heun-churn", "pc", "pc-seeds2", "cp"],
)  # fmt: skip
def test_the_law_on_gaussians(name: str, process: str) -> None:
    """Standard deviations 0.01, 0.5 and 10 around 0 and 5, exactly, in any number of dimensions."""
    assert_right_in_the_limit(name, process, 60)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "annealed-langevin"])
def test_the_law_on_gaussians_everywhere(name: str, process: str) -> None:
    """The same for every sampler with noise and every process, with more steps."""
    assert_right_in_the_limit(name, process, 150)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["vp", "sub-vp", "ve", "edm", "flow", "ncsn"])
def test_the_law_of_annealed_langevin(process: str) -> None:
    """Of the registry's, with its 100 updates at each of 30 levels: its own bias, on processes where it blew up."""
    sde = LINEAR[process]
    grid = LogSNR()(sde, 30)
    mean, std = output_law("annealed-langevin", sde, MEAN[:4], STD[:4], grid)
    end = grid.times[-1]
    exact = torch.hypot(sde.alpha(end) * STD[:4], sde.sigma(end))
    assert float(((mean - sde.alpha(end) * MEAN[:4]) / exact).abs().max()) < 0.02
    assert float((std / exact - 1).abs().max()) < OWN_BIAS["annealed-langevin"]


# --- Monte Carlo -----------------------------------------------------------------------------------------------------


class Noise:
    """Noise for all samples from one generator: thousands of them at no cost."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: object = None) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=self.generator)


def draw(solver: sg.Solver, sde: sg.SDE, score: sg.Score, x: Tensor, grid: sg.Grid, seed: int = 0) -> Tensor:
    """The solver's run from x, correctors included, with noise from one generator."""
    model, noise = bind(score, sde, grid.times), Noise(seed)
    hooks = solver.hooks(sde, grid, model, noise, mean=False)
    with torch.no_grad():
        return execute(solver.compile(sde, grid), x, model, noise, hooks=hooks).x


def assert_moments(x: Tensor, mean: float, std: float, case: object) -> None:
    """Mean and variance of all numbers of x within four standard errors."""
    n = x.numel()
    assert abs(float(x.double().mean()) - mean) < 4 * std / math.sqrt(n), case
    variance = float((x.double() - mean).square().mean())
    assert abs(variance / std**2 - 1) < 4 * math.sqrt(2 / n), (case, variance / std**2)


def assert_dimension_does_not_matter(name: str, process: str, n: int) -> None:
    """Isotropic Gaussians in 1, 2 and 16 dimensions, at three scales: what the impulse response says."""
    sde, solver = LINEAR[process], STOCHASTIC[name]
    if name == "annealed-langevin":
        solver = sg.AnnealedLangevin(n_steps=2)
    grid = LogSNR()(sde, 24)
    start = grid.times[0]
    means, stds = output_law(solver, sde, MEAN[1::2], STD[1::2], grid)
    for m, s, mean, std in zip(MEAN[1::2].tolist(), STD[1::2].tolist(), means.tolist(), stds.tolist(), strict=True):
        for d in (1, 2, 16):
            oracle = sg.oracles.Gaussian(torch.full((d,), m), s**2)
            x = oracle.sample(n // d, sde, start, seed=d).double()
            assert_moments(draw(solver, sde, oracle.score(sde), x, grid), mean, std, (name, process, m, s, d))


@pytest.mark.parametrize("name", ["euler-maruyama", "pc", "cp", "heun-restart"])
def test_the_dimension_does_not_matter(name: str) -> None:
    """Nothing of a sample steers its own step."""
    assert_dimension_does_not_matter(name, "vp", 4000)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_dimension_does_not_matter_anywhere(name: str, process: str) -> None:
    """The same for every sampler with noise and every process."""
    assert_dimension_does_not_matter(name, process, 16_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler-maruyama", "sde-dpm++2m", "seeds2", "dpm++3m-restart", "pc", "cp"])
def test_batches_of_one(name: str) -> None:
    """`sample` with one sample in one dimension, 400 times: what the impulse response says."""
    sde, solver, steps = sg.VPSDE(), STOCHASTIC[name], 20
    oracle = sg.oracles.Gaussian(torch.tensor([0.3]), 0.25)
    grid = LogSNR()(sde, steps)
    (mean,), (std,) = output_law(solver, sde, torch.tensor([0.3]), torch.tensor([0.5]), grid, final="denoise")
    starts = oracle.sample(400, sde, sde.T, seed=1)
    ends = [
        sg.sample(oracle.score(sde), sde, x_T=x[None], solver=solver, grid=grid, seed=i).x for i, x in enumerate(starts)
    ]
    assert_moments(torch.cat(ends), float(mean), float(std), name)


def cumulative(x: np.ndarray, sde: sg.LinearSDE, t: float) -> np.ndarray:
    """Distribution function of the three modes at time t."""
    total = np.zeros_like(x)
    for mean, std, weight in zip((-2.0, 0.0, 1.5), (0.2, 0.3, 0.1), (0.1, 0.3, 0.6), strict=True):
        spread = math.hypot(float(sde.alpha(t)) * std, float(sde.sigma(t)))
        z = torch.from_numpy((x - float(sde.alpha(t)) * mean) / spread)
        total += weight * torch.special.ndtr(z).numpy()
    return total


def assert_three_modes(x: Tensor, sde: sg.LinearSDE, t: float, case: object) -> None:
    """Kolmogorov and Smirnov's distance below its 1e-4 quantile, and each mode's weight within four errors."""
    values = np.sort(x.double().flatten().numpy())
    n = len(values)
    exact = cumulative(values, sde, t)
    distance = max((np.arange(1, n + 1) / n - exact).max(), (exact - np.arange(n) / n).max())
    assert distance < 2.23 / math.sqrt(n), (case, distance)
    borders = float(sde.alpha(t)) * np.array([-1.0, 0.9])
    got = np.diff(np.concatenate([[0], np.searchsorted(values, borders) / n, [1]]))
    expected = np.diff(np.concatenate([[0], cumulative(borders, sde, t), [1]]))
    assert (np.abs(got - expected) < 4 * np.sqrt(expected * (1 - expected) / n)).all(), (case, got, expected)


@pytest.mark.parametrize("name", ["euler-maruyama", "sde-dpm++2m", "pc", "heun-restart"])
def test_three_modes(name: str) -> None:
    """Unequal weights and widths in one dimension."""
    sde, grid = LINEAR["vp"], LogSNR()(LINEAR["vp"], 150)
    x = THREE_MODES.sample(4000, sde, grid.times[0], seed=1).double()
    end = draw(STOCHASTIC[name], sde, THREE_MODES.score(sde), x, grid)
    assert_three_modes(end, sde, grid.times[-1], name)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_three_modes_everywhere(name: str, process: str) -> None:
    """The same for every sampler with noise and every process, in many steps."""
    sde = LINEAR[process]
    grid = LogSNR()(sde, 30 if name == "annealed-langevin" else 400)
    x = THREE_MODES.sample(8000, sde, grid.times[0], seed=1).double()
    end = draw(STOCHASTIC[name], sde, THREE_MODES.score(sde), x, grid)
    assert_three_modes(end, sde, grid.times[-1], (name, process))


# --- what is no table ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize(("n", "updates"), [(8, 200), (16, 200), (64, 200)])
def test_the_bias_of_published_norms(norm: str, n: int, updates: int) -> None:
    """(1 + 2 / n)^2 (1 + r^2), with n numbers in the norm, of one sample or of a batch: what the warning goes by."""
    r = 0.16
    corrector = sg.Langevin(r, norm=norm)
    shape = (1, n) if norm == "sample" else (n // 2, 2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000 // n, *shape, generator=generator)
    update = torch.vmap(lambda x, z: sum(corrector.update(x, -x, z, 1.0)))
    for _ in range(updates):
        x = update(x, torch.randn(x.shape, generator=generator))
    assert float(x.var()) == pytest.approx((1 + 2 / n) ** 2 * (1 + r**2), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("corrector", [None, sg.VelocityLangevin(0.16), sg.VelocityLangevin(0.16, n_steps=3)])
@pytest.mark.parametrize("predictor", [sg.SSCS(), sg.EulerMaruyama(), sg.GDDIM(2)])
def test_the_law_on_cld(predictor: sg.Solver, corrector: sg.Corrector | None, d: int) -> None:
    """Position and velocity of critically damped Langevin dynamics, with corrections of the velocity and without: the
    variance's error halves when steps double, but for the corrector's own."""
    sde, n = sg.CLD(), 20_000
    oracle = sg.oracles.Gaussian(torch.full((d,), 0.3), 0.25)
    solver = predictor if corrector is None else sg.PredictorCorrector(predictor, corrector)
    errors = []
    for steps in (200, 400):
        grid = Quadratic()(sde, steps)
        x = oracle.sample(n // d, sde, grid.times[0], seed=1).double()  # type: ignore[arg-type]
        end = draw(solver, sde, oracle.score(sde), x, grid)  # type: ignore[arg-type]
        node = sde.nodes([grid.times[-1]])[0]
        exact = np.diag(node.cov + 0.25 * np.outer(node.mu, node.mu))
        got = [float((end[:, k] - node.mu[k] * 0.3).square().mean()) for k in (0, 1)]
        errors.append(np.abs(np.array(got) / exact - 1))
    own = 0.026 * corrector.n_steps if corrector else 0.0
    assert (errors[1] < 0.6 * errors[0] + own + 4 * math.sqrt(2 / n)).all(), errors


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
def test_the_law_of_the_adaptive_sde_solver(process: str, d: int) -> None:
    """In one dimension the error vanishes by chance, and steps must not leap for that."""
    sde = LINEAR[process]
    oracle = sg.oracles.Gaussian(torch.full((d,), 0.3), 0.25)
    x = oracle.sample(2000 // d, sde, sde.T, seed=1)
    end = sg.sample(oracle.score(sde), sde, x_T=x, solver=sg.GGF(rtol=0.05), seed=0, final="none").x
    exact = (float(sde.alpha(sde.eps)) * 0.5) ** 2 + float(sde.sigma(sde.eps)) ** 2
    got = float((end - float(sde.alpha(sde.eps)) * 0.3).square().mean())
    assert abs(got / exact - 1) < 0.02 + 4 * math.sqrt(2 / end.numel()), got / exact


@pytest.mark.slow
@pytest.mark.parametrize("method", ["euler", "milstein", "srk", "midpoint", "heun", "reversible_heun", "euler_heun"])
def test_the_law_of_torchsde(method: str) -> None:
    """Even steps in time on a mild process, in 8 dimensions: to the bias of its steps."""
    sde = sg.VPSDE(0.1, 5.0, eps=0.01)
    oracle = sg.oracles.Gaussian(torch.full((8,), 0.3), 0.25)
    x = oracle.sample(500, sde, sde.T, seed=1)
    options = {"steps": 150, "final": "none", "seed": 0}
    end = sg.sample(oracle.score(sde), sde, x_T=x, solver=f"torchsde:{method}", **options).x
    exact = (float(sde.alpha(sde.eps)) * 0.5) ** 2 + float(sde.sigma(sde.eps)) ** 2
    got = float((end - float(sde.alpha(sde.eps)) * 0.3).square().mean())
    assert abs(got / exact - 1) < 0.04 + 4 * math.sqrt(2 / end.numel()), got / exact
