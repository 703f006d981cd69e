"""What a table makes of Gaussian data, beside what it makes of them when it is run."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.sampling import on_gaussians
from sgm_sde.sampling.diagnosis import UnsuitedWarning
from tests.conventions import case_id
from tests.helpers import LINEAR

F64 = torch.float64
MODES = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.2)


def of_a_run(sde: sg.LinearSDE, solver: str, nfe: int, scale: float, n: int) -> float:
    """The standard deviation at the end of a run from the marginal of Gaussian data, over what it should be."""
    found, grid, _ = sg.sampling.plan(sde, solver, nfe=nfe, final="none")
    first, last = (
        math.hypot(float(sde.alpha(t)) * scale, float(sde.sigma(t))) for t in (grid.times[0], grid.times[-1])
    )
    x = first * torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    score = sg.oracles.Gaussian(torch.zeros(1, dtype=F64), scale**2).score(sde)
    end = sg.sample(score, sde, x_T=x, solver=found, grid=grid, final="none", seed=0).x
    return float(end.square().mean().sqrt() / x.square().mean().sqrt() * first / last)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")
@pytest.mark.parametrize("process", ["vp", "edm", "flow", "ddpm"])
@pytest.mark.parametrize(("solver", "nfe"), [("heun", 4), ("dpm++2m", 8), ("rk4", 8)])
def test_the_ratio_of_a_deterministic_table_is_that_of_its_run(process: str, solver: str, nfe: int) -> None:
    """The least over the scales looked at, run one by one."""
    sde = LINEAR[process]
    _, _, program = sg.sampling.plan(sde, solver, nfe=nfe, final="none")
    assert program is not None
    runs = [of_a_run(sde, solver, nfe, float(S), 2) for S in on_gaussians.scales(sde, program)]
    assert on_gaussians.std_ratio(program, sde) == pytest.approx(min(runs), rel=1e-6)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")
@pytest.mark.parametrize(("solver", "nfe"), [("ancestral", 12), ("seeds2-published", 12), ("euler-maruyama", 8)])
def test_noises_add_their_squares(solver: str, nfe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one scale, beside 40000 samples of a run, whose standard deviation is known to a third of a percent."""
    sde = LINEAR["vp"]
    monkeypatch.setattr(on_gaussians, "scales", lambda sde, program: on_gaussians.np.array([0.5]))
    _, _, program = sg.sampling.plan(sde, solver, nfe=nfe, final="none")
    assert program is not None
    ratio = on_gaussians.std_ratio.__wrapped__(program, sde)
    assert of_a_run(sde, solver, nfe, 0.5, 40_000) == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "ddpm", "cosine"])
def test_a_solver_with_too_few_calls_names_all_samples(process: str) -> None:
    """Heun's method with four calls throws two modes to many times their size."""
    with pytest.warns(UnsuitedWarning, match="heun ends at least twice as large as it should even on Gaussian data"):
        res = sg.sample(MODES.score(LINEAR[process]), LINEAR[process], (8, 2), solver="heun", nfe=4, seed=0)
    assert not res.status.ok
    assert res.status.samples == tuple(range(8))
    assert float(res.x.square().mean().sqrt()) > 5


USUAL: list[tuple[str | None, int]] = [
    (None, 2), (None, 4), (None, 8), (None, 50), ("ddim", 2), ("dpm++2m", 5), ("unipc3", 5), ("deis3", 6),
    ("ipndm4", 6), ("heun", 20), ("ancestral", 5), ("euler-maruyama", 30), ("sde-dpm++2m", 5), ("edm-sde", 30),
    ("pc", 40),
]  # fmt: skip


@pytest.mark.parametrize("process", list(LINEAR))
@pytest.mark.parametrize(("solver", "nfe"), USUAL)
def test_budgets_that_are_usual_are_not_named(process: str, solver: str | None, nfe: int) -> None:
    """On no process."""
    found, _, program = sg.sampling.plan(LINEAR[process], solver, nfe=nfe)
    assert isinstance(found, sg.Solver) and program is not None
    assert not on_gaussians.misses_gaussians(program, LINEAR[process])


class Fitted(sg.schemes.Heun):
    """Heun's method, as if it were fitted."""

    lags = True


@pytest.mark.parametrize(
    "options",
    [
        {"solver": Fitted(), "nfe": 4},
        {"solver": sg.PredictorCorrector("heun", sg.Langevin(snr=0.16)), "steps": 2},
        {"solver": "heun", "steps": 2, "t_start": 0.02, "x_T": torch.ones(4, 2)},
        {"solver": "heun", "steps": 2, "t_start": 0.6, "x_T": 5 * torch.ones(4, 2)},
        {"solver": "heun", "steps": 60},
    ],
    ids=["fitted", "corrector", "little noise", "the middle", "many calls"],
)
def test_runs_that_the_table_does_not_tell_of_are_not_judged_by_it(options: dict[str, Any]) -> None:
    """Fits are to other data, correctors repair, data may be as large as noise in the middle, many calls are enough."""
    shape = None if "x_T" in options else (4, 2)
    res = sg.sample(MODES.score(LINEAR["vp"]), LINEAR["vp"], shape, seed=0, **options)
    assert "Gaussian" not in res.status.message


def test_data_as_large_as_the_noise_at_the_start_are_not_judged_by_smaller_ones() -> None:
    """On VE up to 2 a table that misses all scales up to a tenth may be right for unit data: nothing is said."""
    narrow, wide = sg.VESDE(sigma_min=0.01, sigma_max=2.0), sg.VESDE(sigma_min=0.01, sigma_max=50.0)
    programs = [sg.sampling.plan(sde, "rk4", nfe=8)[2] for sde in (narrow, wide)]
    assert programs[0] is not None and programs[1] is not None
    assert not len(on_gaussians.scales(narrow, programs[0]))
    assert on_gaussians.scales(wide, programs[1]).max() == pytest.approx(2.5)
    assert not on_gaussians.misses_gaussians(programs[0], narrow)


def test_a_start_at_alpha_0() -> None:
    """The least over the scales, up to 50 where all of the start is noise, run one by one."""
    sde = sg.RectifiedFlowSDE(T=1.0)
    _, grid, program = sg.sampling.plan(sde, "euler", nfe=4, final="none")
    assert program is not None and grid.times[0] == 1.0
    runs = [of_a_run(sde, "euler", 4, float(S), 2) for S in on_gaussians.scales(sde, program)]
    assert on_gaussians.std_ratio(program, sde) == pytest.approx(min(runs), rel=1e-6)


def test_nothing_is_said_where_a_prediction_does_not_exist() -> None:
    """Heun's method ends in an evaluation, and there is no noise to be estimated at sigma = 0."""
    _, _, program = sg.sampling.plan(LINEAR["vp"], "heun", steps=2, t_end=0.0, final="none")
    assert program is not None
    assert on_gaussians.std_ratio(program, LINEAR["vp"]) == 1.0


CLD_SOLVERS: list[tuple[sg.Solver | str, int]] = [
    (sg.schemes.GDDIM(1), 6), (sg.schemes.GDDIM(3), 12), (sg.schemes.SSCS(eta=0.0), 12), ("euler", 20), ("rk4", 24),
]  # fmt: skip


@pytest.mark.parametrize(("solver", "nfe"), CLD_SOLVERS, ids=case_id)
def test_the_ratio_on_a_process_with_a_matrix_is_that_of_its_run(solver: Any, nfe: int) -> None:
    """A deterministic table carries the columns of the start's Cholesky factor to those of the end."""
    sde = sg.CLD()
    found, grid, program = sg.sampling.plan(sde, solver, nfe=nfe, final="none")
    assert program is not None
    ratios = []
    for S in on_gaussians.scales(sde, program):
        first, last = (kernel.covariance(torch.tensor([S]).numpy())[0] for kernel in ends_of(sde, grid))
        x = torch.linalg.cholesky(torch.from_numpy(first)).T[:, :, None].contiguous()
        score = sg.oracles.Gaussian(torch.zeros(1, dtype=F64), float(S) ** 2).score(sde)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            end = sg.sample(score, sde, x_T=x, solver=found, grid=grid, final="none", seed=0).x
        ratios.append(float(end[:, 0].norm()) / math.sqrt(last[0, 0]))
    assert on_gaussians.std_ratio(program, sde) == pytest.approx(min(ratios), rel=1e-6)


def ends_of(sde: sg.SDE, grid: sg.Grid) -> list[on_gaussians.Kernel]:
    """The kernels at the first and the last time."""
    return on_gaussians.kernels(sde, (grid.times[0], grid.times[-1]))


def test_too_few_calls_on_a_process_with_a_matrix_name_all_samples() -> None:
    """The fourth-order Runge-Kutta method with two steps."""
    sde = sg.CLD()
    with pytest.warns(UnsuitedWarning, match="rk4 ends at least twice as large as it should even on Gaussian data"):
        res = sg.sample(MODES.score(sde), sde, (4, 2, 2), solver="rk4", nfe=9, seed=0)
    assert res.status.samples == (0, 1, 2, 3)
    assert float(res.x[:, 0].square().mean().sqrt()) > 5


@pytest.mark.parametrize("nfe", [2, 4, 8, 20, 50])
def test_the_default_on_a_process_with_a_matrix_is_not_named(nfe: int) -> None:
    _, _, program = sg.sampling.plan(sg.CLD(), nfe=nfe)
    assert program is not None
    assert not on_gaussians.misses_gaussians(program, sg.CLD())


@pytest.mark.parametrize("name", ["edm-sde", "heun"])
def test_the_warning_has_the_name_that_was_given(name: str) -> None:
    sde = LINEAR["vp"]
    with pytest.warns(UnsuitedWarning, match=f"on this grid {name} ends"):
        sg.sample(MODES.score(sde), sde, (2, 2), solver=name, nfe=4, seed=0)


def test_tokens_with_too_few_calls_are_named() -> None:
    """As a run of all tokens together is."""
    sde = LINEAR["flow"]
    grid = sg.grids.TokenGrid.staggered(sg.grids.LogSNR()(sde, 2), [0, 1])
    score = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sde)
    with pytest.warns(UnsuitedWarning, match="heun ends at least twice"):
        res = sg.sample(tokenwise(sde), sde, (3, 2), solver="heun", grid=grid, seed=0)
    assert res.status.samples == (0, 1, 2)
    with pytest.warns(UnsuitedWarning):
        sg.sample(score, sde, (3, 2), solver="heun", grid=sg.grids.LogSNR()(sde, 2), seed=0)


def tokenwise(sde: sg.LinearSDE) -> sg.Score:
    """The exact score of numbers of the standard deviation .5, each at a time of its own."""

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (k(t).to(x) for k in (sde.alpha, sde.sigma))
        variance = alpha**2 / 4 + sigma**2
        return -x / (variance if variance.ndim == x.ndim else variance[:, None])

    return sg.from_score(score, sde)
