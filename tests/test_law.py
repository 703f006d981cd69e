"""The law of what every sampler returns: right in any number of dimensions, at every scale, on every process.

Runs start from the exact marginal at T, so that the prior's distance does not enter. On Gaussian data the law is known
exactly by impulse response (`output_law`); what goes through Monte Carlo is compared with that, within three standard
errors. One comparison in 370 misses them by chance, and thousands are made: one that does is made once more, with
another seed, and must then hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.executor import execute
from sgm_sde.grids import LogSNR, Quadratic
from sgm_sde.testing import output_law
from tests.conventions import case_id, some_slow
from tests.helpers import ALL, F64, LINEAR, bind

PROCESSES = [name for name in LINEAR if name != "schedule"]
COMPOSED: dict[str, sg.Solver] = {
    "pc-dpm++2m": sg.PredictorCorrector(sg.DPMSolverPP(), sg.Langevin()),
    "pc-seeds2": sg.PredictorCorrector(sg.schemes.SEEDS(2), sg.Langevin(0.1, n_steps=2)),
    "cp": sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(), order="CP"),
    "pc-annealed": sg.PredictorCorrector(sg.DDIM(), sg.schemes.AnnealedLangevin(0.1, n_steps=2)),
    "heun-restart": sg.Restart(sg.Heun(), rounds=4, n_steps=8),
    "ancestral-restart": sg.Restart(sg.Ancestral(), s_min=0.1, s_max=0.9, n_steps=40),
    "ddim-ancestral-half": sg.schemes.AncestralNoise(sg.DPMSolver(1), eta=0.5),
    "dpm2-ancestral-half": sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=0.5),
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


@pytest.mark.parametrize("process", ["vp", *some_slow(["edm"])])
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


@pytest.mark.parametrize(
    ("name", "sde"),
    [
        ("er-sde1", sg.VPSDE(beta_max=100.0)),
        ("er-sde2", sg.VPSDE(beta_max=100.0)),
        ("er-sde3", sg.VPSDE(beta_max=100.0)),
        ("er-sde3", sg.EDMSDE(sigma_max=1e12)),
        ("sa-solver", sg.VPSDE(T=10.0)),
    ],
    ids=case_id,
)
def test_the_law_from_next_to_no_signal(name: str, sde: sg.LinearSDE) -> None:
    """Noise levels of 1e11, and times without any signal above a window of noise, are no ends of a formula."""
    start = min(sde.T, 2.0) if isinstance(sde, sg.VPSDE) else sde.T
    times = sg.grids.LogSNR()(sde, 400, t_start=start).times
    grid = sg.Grid([sde.T, *times[start == sde.T :]])
    mean, std = output_law(name, sde, MEAN[2:4], STD[2:4], grid)
    end = grid.times[-1]
    exact = torch.hypot(sde.alpha(end) * STD[2:4], sde.sigma(end))
    assert float(((mean - sde.alpha(end) * MEAN[2:4]) / exact).abs().max()) < 0.05
    assert float((std / exact - 1).abs().max()) < 0.05


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


def assert_law(misses: Callable[[int], dict[str, float]]) -> None:
    """No comparison misses three standard errors with two seeds; `misses` gives those that do with one."""
    first = misses(0)
    if first:
        second = misses(1)
        twice = {what: (first[what], second[what]) for what in first.keys() & second.keys()}
        assert not twice, twice


def missed_moments(x: Tensor, mean: float, std: float, slack: float = 0.0) -> dict[str, float]:
    """Mean and variance of all numbers of x, in standard errors, where beyond three of them and `slack`."""
    n, x = x.numel(), x.double()
    error, relative = std / math.sqrt(n), math.sqrt(2 / n)
    off = {
        "mean": (float(x.mean()) - mean) / (error + slack * std / 3),
        "variance": (float((x - mean).square().mean()) / std**2 - 1) / (relative + slack / 3),
    }
    return {what: value for what, value in off.items() if not abs(value) < 3}


def assert_dimension_does_not_matter(name: str, process: str, n: int) -> None:
    """Isotropic Gaussians in 1, 2 and 16 dimensions, at three scales: what the impulse response says."""
    sde, solver = LINEAR[process], STOCHASTIC[name]
    if name == "annealed-langevin":
        solver = sg.schemes.AnnealedLangevin(n_steps=2)
    grid = LogSNR()(sde, 24)
    means, stds = output_law(solver, sde, MEAN[1::2], STD[1::2], grid)
    for m, s, mean, std in zip(MEAN[1::2].tolist(), STD[1::2].tolist(), means.tolist(), stds.tolist(), strict=True):
        for d in (1, 2, 16):
            oracle = sg.oracles.Gaussian(torch.full((d,), m), s**2)

            def misses(
                seed: int, oracle: sg.oracles.Gaussian = oracle, d: int = d, mean: float = mean, std: float = std
            ) -> dict[str, float]:
                x = oracle.sample(n // d, sde, grid.times[0], seed=d + 100 * seed).double()
                return missed_moments(draw(solver, sde, oracle.score(sde), x, grid, seed), mean, std)

            assert_law(misses)


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

    def misses(seed: int) -> dict[str, float]:
        starts = oracle.sample(400, sde, sde.T, seed=1 + seed)
        ends = [
            sg.sample(oracle.score(sde), sde, x_T=x[None], solver=solver, grid=grid, seed=1000 * seed + i).x
            for i, x in enumerate(starts)
        ]
        return missed_moments(torch.cat(ends), float(mean), float(std))

    assert_law(misses)


def cumulative(x: np.ndarray, sde: sg.LinearSDE, t: float) -> np.ndarray:
    """Distribution function of the three modes at time t."""
    total = np.zeros_like(x)
    for mean, std, weight in zip((-2.0, 0.0, 1.5), (0.2, 0.3, 0.1), (0.1, 0.3, 0.6), strict=True):
        spread = math.hypot(float(sde.alpha(t)) * std, float(sde.sigma(t)))
        z = torch.from_numpy((x - float(sde.alpha(t)) * mean) / spread)
        total += weight * torch.special.ndtr(z).numpy()
    return total


def missed_modes(x: Tensor, sde: sg.LinearSDE, t: float, moved: float = 0.0) -> dict[str, float]:
    """Weights of the modes beyond three standard errors, and Kolmogorov and Smirnov's distance at that level.

    A share `moved` of the samples may be in another mode besides.
    """
    values = np.sort(x.double().flatten().numpy())
    n = len(values)
    exact = cumulative(values, sde, t)
    distance = max((np.arange(1, n + 1) / n - exact).max(), (exact - np.arange(n) / n).max()) * math.sqrt(n)
    borders = float(sde.alpha(t)) * np.array([-1.0, 0.9])
    got = np.diff(np.concatenate([[0], np.searchsorted(values, borders) / n, [1]]))
    expected = np.diff(np.concatenate([[0], cumulative(borders, sde, t), [1]]))
    off = (got - expected) / (np.sqrt(expected * (1 - expected) / n) + moved / 3)
    misses = {f"weight {k}": float(value) for k, value in enumerate(off) if not abs(value) < 3}
    # Exceeded as rarely as three standard errors.
    return misses | ({} if distance < 1.82 + moved * math.sqrt(n) else {"distribution": float(distance)})


def assert_three_modes(name: str, process: str, steps: int, n: int) -> None:
    """Unequal weights and widths in one dimension."""
    sde = LINEAR[process]
    grid = LogSNR()(sde, steps)

    def misses(seed: int) -> dict[str, float]:
        x = THREE_MODES.sample(n, sde, grid.times[0], seed=1 + seed).double()
        end = draw(STOCHASTIC[name], sde, THREE_MODES.score(sde), x, grid, seed)
        # Langevin steps between modes that the noise no longer joins are rare: what is in a basin stays there.
        return missed_modes(end, sde, grid.times[-1], 0.015 if name == "annealed-langevin" else 0.0)

    assert_law(misses)


@pytest.mark.parametrize("name", ["euler-maruyama", "sde-dpm++2m", "pc", "heun-restart"])
def test_three_modes(name: str) -> None:
    """Some samplers on VP."""
    assert_three_modes(name, "vp", 150, 4000)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_three_modes_everywhere(name: str, process: str) -> None:
    """The same for every sampler with noise and every process, in many steps."""
    assert_three_modes(name, process, 30 if name == "annealed-langevin" else 400, 8000)


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


JOINT = [sg.schemes.SSCS(), sg.EulerMaruyama(), sg.schemes.GDDIM(2)]
VELOCITY = [None, sg.schemes.VelocityLangevin(0.16), sg.schemes.VelocityLangevin(0.16, n_steps=3)]


def joint_solver(predictor: sg.Solver, corrector: sg.Corrector | None) -> sg.Solver:
    """With corrections of the velocity, or without."""
    return predictor if corrector is None else sg.PredictorCorrector(predictor, corrector)


@pytest.mark.slow
@pytest.mark.parametrize("corrector", VELOCITY)
@pytest.mark.parametrize("predictor", JOINT)
def test_the_law_on_cld(predictor: sg.Solver, corrector: sg.Corrector | None) -> None:
    """Position and velocity of critically damped Langevin dynamics on six Gaussians, exactly: the error halves when
    steps double, but for the corrector's own."""
    sde, solver = sg.CLD(), joint_solver(predictor, corrector)
    errors = []
    for steps in (100, 200):
        grid = Quadratic()(sde, steps)
        mean, std = output_law(solver, sde, MEAN, STD, grid)
        (node,) = sde.nodes([grid.times[-1]])
        mu, own = torch.from_numpy(node.mu)[:, None], torch.from_numpy(node.cov).diagonal()[:, None]
        exact = (mu.square() * STD.square() + own).sqrt()
        errors.append(torch.cat([(mean - mu * MEAN) / exact, std / exact - 1]).abs())
    bias = 0.013 * corrector.n_steps if corrector else 0.0
    assert (errors[1] < 0.6 * errors[0] + bias + 1e-9).all(), errors


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("corrector", VELOCITY)
@pytest.mark.parametrize("predictor", JOINT)
def test_the_dimension_does_not_matter_on_cld(predictor: sg.Solver, corrector: sg.Corrector | None, d: int) -> None:
    """What the impulse response says, of position and velocity."""
    sde, solver, n = sg.CLD(), joint_solver(predictor, corrector), 16_000
    oracle = sg.oracles.Gaussian(torch.full((d,), 0.3), 0.25)
    grid = Quadratic()(sde, 24)
    mean, std = output_law(solver, sde, torch.tensor([0.3]), torch.tensor([0.5]), grid)

    def misses(seed: int) -> dict[str, float]:
        x = oracle.sample(n // d, sde, grid.times[0], seed=1 + seed).double()  # type: ignore[arg-type]
        end = draw(solver, sde, oracle.score(sde), x, grid, seed)  # type: ignore[arg-type]
        found = {}
        for k, block in enumerate(("position", "v")):
            for what, value in missed_moments(end[:, k], float(mean[k]), float(std[k])).items():
                found[f"{what} of the {block}"] = value
        return found

    assert_law(misses)


def missed_at_eps(
    oracle: sg.oracles.Gaussian, sde: sg.LinearSDE, n: int, seed: int, bias: float, **options: object
) -> dict[str, float]:
    """Moments of N(0.3, 0.25) at eps through `sample`, beyond three errors and the sampler's own bias."""
    x = oracle.sample(n, sde, sde.T, seed=1 + seed)
    end = sg.sample(oracle.score(sde), sde, x_T=x, final="none", seed=seed, **options).x  # type: ignore[arg-type]
    alpha, sigma = float(sde.alpha(sde.eps)), float(sde.sigma(sde.eps))
    return missed_moments(end, 0.3 * alpha, math.hypot(0.5 * alpha, sigma), bias)


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
def test_the_law_of_the_adaptive_sde_solver(process: str, d: int) -> None:
    """In one dimension the error vanishes by chance, and steps must not leap for that."""
    sde = LINEAR[process]
    oracle = sg.oracles.Gaussian(torch.full((d,), 0.3), 0.25)
    assert_law(lambda seed: missed_at_eps(oracle, sde, 2000 // d, seed, 0.02, solver=sg.schemes.GGF(rtol=0.05)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["euler", "milstein", "srk", "midpoint", "heun", "euler_heun"])
def test_the_law_of_torchsde(method: str) -> None:
    """Even steps in flow time on a mild process, in 8 dimensions: to the bias of its steps."""
    sde = sg.VPSDE(0.1, 5.0, eps=0.01)
    oracle = sg.oracles.Gaussian(torch.full((8,), 0.3), 0.25)
    assert_law(lambda seed: missed_at_eps(oracle, sde, 500, seed, 0.04, solver=f"torchsde:{method}", steps=150))
