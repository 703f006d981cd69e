"""The literature's processes by name, and every solver on every process towards the same data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sgm_sde as sg
from sgm_sde import presets
from sgm_sde.processes.linear import ScheduleSDE
from tests.conventions import case_id, some_slow
from tests.helpers import (
    ALL,
    DETERMINISTIC,
    F64,
    FAMILIES,
    LINEAR,
    elementwise_score,
    impulse_response,
    marginal_std,
    noise_of_any_start,
)


def running_product(factors: Sequence[float]) -> list[float]:
    out = [1.0]
    for factor in factors:
        out.append(out[-1] * factor)
    return out[1:]


def from_alpha_bar(alpha_bar: float) -> tuple[float, float]:
    """DDPM's kernel: sqrt(alpha-bar), sqrt(1 - alpha-bar)."""
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def ddpm_table(n: int = 1000) -> list[float]:
    """alpha-bar of linear betas, `np.linspace(1e-4, 0.02, n)` in Ho et al."""
    return running_product([1 - (1e-4 * (n - 1 - i) + 0.02 * i) / (n - 1) for i in range(n)])


def improved_table(n: int = 1000) -> list[float]:
    """alpha-bar of the clipped betas of Nichol & Dhariwal, equation 17."""

    def f(t: float) -> float:
        return math.cos((t / n + 0.008) / (1 + 0.008) * math.pi / 2) ** 2

    return running_product([1 - min(1 - f(t) / f(t - 1), 0.999) for t in range(1, n + 1)])


def log_mean(t: float) -> float:
    """-t^2 (beta_1 - beta_0) / 4 - t beta_0 / 2: `log_mean_coeff` of Song et al., equations 29 and 33."""
    return -(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2


def lu_cosine(t: float) -> tuple[float, float]:
    """DPM-Solver's continuous cosine schedule: log alpha = log cos(...) - log cos(at 0)."""
    alpha = math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    return alpha, math.sqrt(1 - alpha**2)


Kernel = Callable[[float], tuple[float, float]]


TIMES = (0.001, 0.1, 0.4, 0.75, 1.0)  # each an entry of the tables of a thousand


PRESETS: dict[str, tuple[sg.LinearSDE, Sequence[float], Kernel]] = {
    "ddpm": (presets.ddpm(), TIMES, lambda t: from_alpha_bar(ddpm_table()[round(1000 * t) - 1])),
    "ddpm, 50": (
        presets.ddpm(50), (0.02, 0.1, 0.4, 0.74, 1.0), lambda t: from_alpha_bar(ddpm_table(50)[round(50 * t) - 1])
    ),
    "iddpm": (presets.iddpm_cosine(), TIMES, lambda t: from_alpha_bar(improved_table()[round(1000 * t) - 1])),
    "cosine": (presets.cosine(), (0.001, 0.1, 0.4, 0.75, 0.9946), lu_cosine),
    "vp": (presets.score_sde_vp(), TIMES, lambda t: (math.exp(log_mean(t)), math.sqrt(-math.expm1(2 * log_mean(t))))),
    "sub-vp": (presets.score_sde_subvp(), TIMES, lambda t: (math.exp(log_mean(t)), -math.expm1(2 * log_mean(t)))),
    "ve": (presets.score_sde_ve_cifar10(), TIMES, lambda t: (1.0, 0.01 * (50 / 0.01) ** t)),
    "ncsn": (presets.ncsn_cifar10(), (0.1, 0.2, 0.5, 0.8, 1.0), lambda t: (1.0, 0.01 * 100 ** ((10 * t - 1) / 9))),
    "edm": (presets.edm(), (0.002, 0.1, 1.0, 25.0, 80.0), lambda t: (1.0, t)),
    "flow": (sg.RectifiedFlowSDE(), (0.001, 0.1, 0.4, 0.75, 0.999), lambda t: (1 - t, t)),
}  # fmt: skip


ENDS = {
    "ddpm": (1.0, 1 / 1000), "ddpm, 50": (1.0, 1 / 50), "iddpm": (1.0, 1 / 1000), "cosine": (0.9946, 1e-3),
    "vp": (1.0, 1e-3), "sub-vp": (1.0, 1e-3), "ve": (1.0, 1e-5), "ncsn": (1.0, 1 / 10), "edm": (80.0, 0.002),
    "flow": (0.999, 1e-3),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_kernels_of_the_literature(name: str) -> None:
    """alpha and sigma at five times are what the papers' formulas give, and the ends are the papers'."""
    sde, times, kernel = PRESETS[name]
    assert (sde.T, sde.eps) == ENDS[name]
    for t in times:
        alpha, sigma = kernel(t)
        got = torch.tensor(t, dtype=F64)
        assert float(sde.alpha(got)) == pytest.approx(alpha, rel=1e-11)
        assert float(sde.sigma(got)) == pytest.approx(sigma, rel=1e-11)
        assert float(sde.log_snr(got)) == pytest.approx(2 * math.log(alpha / sigma), rel=1e-9, abs=1e-9)


def test_every_preset_has_its_table() -> None:
    """No preset of the module is left without a comparison."""
    made = {fn() for fn in vars(presets).values() if callable(fn) and getattr(fn, "__module__", "") == presets.__name__}
    assert made <= {sde for sde, _, _ in PRESETS.values()}
    assert len(made) == 8


@pytest.mark.parametrize("name", ["ddpm", "iddpm"])
def test_transitions_of_the_tables(name: str) -> None:
    """From one table time to the next the kernel is sqrt(1 - beta_i), sqrt(beta_i), for each of the thousand."""
    sde = PRESETS[name][0]
    alpha_bar = ddpm_table() if name == "ddpm" else improved_table()
    t = torch.tensor(sde.times, dtype=F64)
    scale, std = sde.transition(t[:-1], t[1:])
    betas = torch.tensor([1 - b / a for a, b in pairwise(alpha_bar)], dtype=F64)
    torch.testing.assert_close(std**2, betas, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(scale**2, 1 - betas, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_drift_and_diffusion_of_the_literature(name: str) -> None:
    """f = d log(alpha)/dt and g^2 = d(sigma^2)/dt - 2 f sigma^2 by central differences of the papers' formulas."""
    sde, times, kernel = PRESETS[name]
    if name in ("ddpm", "ddpm, 50", "iddpm", "ncsn"):  # tables: no formula between their entries
        return
    for t in times[1:-1]:
        h = 1e-5 * t
        (alpha_0, sigma_0), (_, sigma), (alpha_1, sigma_1) = (kernel(s) for s in (t - h, t, t + h))
        f = (math.log(alpha_1) - math.log(alpha_0)) / (2 * h)
        g2 = (sigma_1**2 - sigma_0**2) / (2 * h) - 2 * f * sigma**2
        got = torch.tensor(t, dtype=F64)
        assert float(sde.f(torch.ones(1, 1, dtype=F64), got)) == pytest.approx(f, rel=1e-6, abs=1e-9)
        assert float(sde.g(got)) ** 2 == pytest.approx(g2, rel=1e-6)


@given(level=st.floats(0.002, 80.0))
def test_noise_levels_go_from_vp_to_edm_and_back(level: float) -> None:
    """VP's time of an EDM noise level has that level, in formula and in label, to 1e-10."""
    vp, edm = presets.score_sde_vp(), presets.edm()
    t = vp.time(edm.log_snr(level))
    by_hand = math.sqrt(math.expm1(-2 * log_mean(float(t))))
    assert by_hand == pytest.approx(level, rel=1e-10)
    assert float(sg.time_labels.noise_level(vp)(t)) == pytest.approx(level, rel=1e-10)
    assert float(edm.time(vp.log_snr(t))) == pytest.approx(level, rel=1e-10)
    assert float(vp.time(edm.log_snr(edm.time(vp.log_snr(t))))) == pytest.approx(float(t), rel=1e-10)


@pytest.mark.parametrize("process", LINEAR)
@given(u=st.floats(0.0, 1.0))
def test_every_process_goes_to_edm_and_back(process: str, u: float) -> None:
    """time(log_snr(t)) is t, by way of EDM's noise level, to 1e-10 of the noise level."""
    sde, edm = LINEAR[process], sg.EDMSDE(1e-6, 1e6)
    t = sde.eps + u * (sde.T - sde.eps)
    level = float(edm.time(sde.log_snr(t)))
    back = sde.time(edm.log_snr(level))
    assert float(sde.sigma(back) / sde.alpha(back)) == pytest.approx(level, rel=1e-9)
    assert float(back) == pytest.approx(t, rel=1e-8)


@pytest.mark.parametrize("process", ["vp", "sub-vp", "cosine", "ve", "flow", "ddpm"])
@pytest.mark.parametrize("name", ["ddim", "ddim-1", "dpm++2m", "dpm++2m-exact", "heun", "ancestral"])
def test_solvers_in_the_noise_level_are_the_same_on_all_processes(name: str, process: str) -> None:
    """On corresponding grids, from corresponding states, x / alpha is the same as on EDM's process."""
    sde = LINEAR[process]
    levels = [float(edm_level) for edm_level in torch.logspace(0.9, -0.6, 8, dtype=F64)]  # on all of them
    edm = sg.EDMSDE(levels[-1], levels[0])
    grid = sg.Grid([float(sde.time(-2 * math.log(level))) for level in levels])
    x = levels[0] * torch.linspace(-1, 1, 12, dtype=F64).reshape(4, 3)

    def run(process: sg.LinearSDE, grid: sg.Grid) -> Tensor:
        scale = float(process.alpha(grid.times[0]))
        options = {"solver": ALL[name], "grid": grid, "final": "denoise", "seed": 0}
        return sg.sample(elementwise_score(process), process, x_T=scale * x, **options).x

    with noise_of_any_start():  # the same level is another time on another process
        torch.testing.assert_close(run(sde, grid), run(edm, sg.Grid(levels)), rtol=1e-8, atol=1e-8)


PROCESSES = ["vp", "ve", "sub-vp", "edm", "cosine", "flow"]


MEAN, STD = 0.3, 0.5


def smooth_end(sde: sg.LinearSDE) -> float:
    """The time where sigma / alpha is 0.05, far below the data's spread."""
    return float(sde.time(-2 * math.log(0.05)))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    "name",
    some_slow(
        [name for name in FAMILIES if name in DETERMINISTIC and name != "lms4"],
        fast=("heun", "ddim", "dpm++3m", "unipc3", "rosenbrock3"),
    ),
)
def test_the_flow_reaches_the_data_with_the_stated_order(name: str, process: str) -> None:
    """Each deterministic solver moves a quantile of the prior to the same quantile of the data, at its order."""
    sde, solver = LINEAR[process], ALL[name]
    end = smooth_end(sde)
    u = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    start, stop = marginal_std(sde, STD, sde.T), marginal_std(sde, STD, end)
    x_T = float(sde.alpha(sde.T)) * MEAN + start * u
    exact = float(sde.alpha(end)) * MEAN + stop * u
    errors = []
    for steps in (200, 400) if solver.order == 1 else (50, 100):
        grid = sg.grids.LogSNR()(sde, steps, t_end=end)
        got = sg.sample(elementwise_score(sde, MEAN, STD), sde, x_T=x_T, solver=solver, grid=grid, final="none", seed=0)
        errors.append(float((got.x - exact).abs().max()))
    assert errors[1] < (0.15 if solver.order == 1 else 4e-3)
    assert errors[1] < max(errors[0] * 0.5 ** (solver.order - 0.3), 1e-12)


@pytest.mark.parametrize("process", some_slow(PROCESSES, fast=("vp", "edm", "flow")))
@pytest.mark.parametrize("name", [name for name in FAMILIES if ALL[name].weak_order])
def test_the_law_reaches_the_data_with_the_stated_weak_order(name: str, process: str) -> None:
    """Each stochastic solver's exact output variance comes to that of the data, at its weak order."""
    sde, solver = LINEAR[process], ALL[name]
    end = smooth_end(sde)
    exact, errors = marginal_std(sde, STD, end), []
    for steps in (50, 100):
        response = impulse_response(solver, sde, sg.grids.LogSNR()(sde, steps, t_end=end), STD)
        errors.append(abs(float(response.norm()) / exact - 1))
    assert errors[1] < (0.15 if solver.weak_order == 1 else 5e-3)
    assert errors[1] < max(errors[0] * 0.5 ** (solver.weak_order - 0.3), 1e-12)


@pytest.mark.parametrize("process", some_slow(PROCESSES, fast=("vp", "edm")))
@pytest.mark.parametrize("name", ["edm-sde", "annealed-langevin"])
def test_samplers_without_an_order_come_close(name: str, process: str) -> None:
    """Samplers with a bias of their own end within it of the data's spread, exactly computed, on every process."""
    sde, end = LINEAR[process], smooth_end(LINEAR[process])
    solver = sg.schemes.AnnealedLangevin(0.1, 50) if name == "annealed-langevin" else ALL[name]
    got = impulse_response(solver, sde, sg.grids.LogSNR()(sde, 60, t_end=end), STD).norm()
    assert float(got) == pytest.approx(marginal_std(sde, STD, end), rel=0.05)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("order", ["PC", "CP"])
def test_predictor_corrector_comes_close(order: str, process: str) -> None:
    """With a corrector the samples have the data's mean and spread up to its bias, on every process."""
    sde, end = LINEAR[process], smooth_end(LINEAR[process])
    solver = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.1), order=order)
    grid = sg.grids.LogSNR()(sde, 100, t_end=end)
    score = elementwise_score(sde, MEAN, STD)
    x = sg.sample(score, sde, (16, 1024), solver=solver, grid=grid, final="none", seed=0).x
    assert float(x.mean()) == pytest.approx(float(sde.alpha(end)) * MEAN, abs=0.04)
    assert float(x.std()) == pytest.approx(marginal_std(sde, STD, end), rel=0.05)


def test_presets_have_the_constants_of_their_papers() -> None:
    """Constants as printed in the papers."""
    assert sg.presets.score_sde_vp() == sg.VPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=1e-3)
    assert sg.presets.score_sde_subvp() == sg.SubVPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=1e-3)
    assert sg.presets.score_sde_ve_cifar10() == sg.VESDE(sigma_min=0.01, sigma_max=50.0, T=1.0, eps=1e-5)
    assert sg.presets.cosine() == sg.CosineVPSDE(s=0.008, T=0.9946, eps=1e-3)
    assert sg.presets.edm() == sg.EDMSDE(sigma_min=0.002, sigma_max=80.0)
    assert (sg.presets.edm().T, sg.presets.edm().eps) == (80.0, 0.002)


def test_defaults_are_the_papers_too() -> None:
    """Without arguments a process is the one of its paper."""
    described = {
        sg.VPSDE: "VPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=0.001)",
        sg.SubVPSDE: "SubVPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=0.001)",
        sg.CosineVPSDE: "CosineVPSDE(s=0.008, T=0.9946, eps=0.001)",
        sg.VESDE: "VESDE(sigma_min=0.01, sigma_max=50.0, T=1.0, eps=1e-05)",
        sg.EDMSDE: "EDMSDE(sigma_min=0.002, sigma_max=80.0)",
        sg.RectifiedFlowSDE: "RectifiedFlowSDE(T=0.999, eps=0.001)",
    }
    for process, text in described.items():
        assert repr(process()) == text
    assert [p.default_grid for p in (sg.VPSDE, sg.VESDE, sg.EDMSDE)] == ["uniform", "uniform", "karras"]


@pytest.mark.parametrize(
    "schedule",
    [sg.LinearSDE.from_schedule(torch.ones_like, torch.exp), ScheduleSDE(torch.ones_like, torch.exp)],
    ids=case_id,
)
def test_schedules_run_from_one_to_a_thousandth_by_default(schedule: sg.LinearSDE) -> None:
    assert (schedule.T, schedule.eps) == (1.0, 1e-3)


def test_ddpm_s_table() -> None:
    """A thousand betas, linear from 1e-4 to 0.02 (Ho et al., section 4)."""
    betas = sg.presets.ddpm().betas
    assert len(betas) == 1000
    assert betas == pytest.approx(np.linspace(1e-4, 0.02, 1000), rel=1e-12)
    assert sg.presets.ddpm(3).betas == pytest.approx([1e-4, 0.01005, 0.02])


def test_improved_ddpm_s_table() -> None:
    """A thousand betas from cos^2((t + 0.008)/1.008 pi/2), none above 0.999 (Nichol & Dhariwal, equation 17)."""
    betas = sg.presets.iddpm_cosine().betas
    assert len(betas) == 1000
    assert (betas[0], betas[-1]) == (pytest.approx(4.128422482e-5, rel=1e-9), 0.999)  # as their code prints them
    f = np.cos((np.linspace(0, 1, 6) + 0.008) / 1.008 * np.pi / 2) ** 2
    small = sg.presets.iddpm_cosine(5).betas
    assert np.cumprod(1 - np.array(small))[:4] == pytest.approx(f[1:5] / f[0], rel=1e-12)
    assert small[4] == 0.999


def test_ncsn_s_ladder() -> None:
    """Ten levels from 1 to 0.01, each 10^(-2/9) times the one before (Song & Ermon, section 5)."""
    sigmas = sg.presets.ncsn_cifar10().sigmas
    assert sigmas == pytest.approx(np.geomspace(0.01, 1, 10), rel=1e-12)
