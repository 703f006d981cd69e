"""Grids: shifted, from a table of levels, and those that cannot be right: times that nearly coincide or are rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sgm_sde as sg
from sgm_sde.adapters import SolverScheduler, from_diffusers
from sgm_sde.engine.program import Program
from sgm_sde.schemes.exponential import ExponentialAdams
from tests.adapters.cases import DDPM, network
from tests.conventions import case_id, some_slow
from tests.helpers import F64, FAMILIES, impulse_response

VP = sg.VPSDE()


GAUSSIAN = sg.oracles.Gaussian(torch.tensor([0.3]), 0.25)


MULTISTEP = {name: solver for name, solver in sg.solvers().fixed.items() if isinstance(solver, ExponentialAdams)}


PROCESSES = {"vp": VP, "edm": sg.EDMSDE(), "flow": sg.RectifiedFlowSDE(), "cosine": sg.CosineVPSDE()}


LOG_SNR = sg.grids.LogSNR()(VP, 60).times


DISTANCES = [1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-12]


def with_time(times: tuple[float, ...], *more: float) -> list[float]:
    """The grid with further times."""
    return sorted({*times, *more}, reverse=True)


def near_duplicates() -> list[list[float]]:
    """The grid with one of its times twice, but for a distance, down to the last bit."""
    t = LOG_SNR[30]
    return [with_time(LOG_SNR, u) for u in (*(t * (1 - d) for d in DISTANCES), math.nextafter(t, 0.0))]


def joined() -> tuple[list[float], list[float]]:
    """Two pieces of a grid in float32 that meet at .3, where they differ in the last bit, and the same with one .3."""
    upper, lower = torch.linspace(1, 0.3, 32), torch.linspace(0.3, 0.001, 32)
    lower[0] = torch.nextafter(lower[0], torch.tensor(0.0))
    return torch.cat([upper, lower]).tolist(), torch.cat([upper, lower[1:]]).tolist()


def test_times_that_single_precision_cannot_tell_apart_are_one() -> None:
    """The ends stay as they are, the first of two others does; a distance that solvers can use is left."""
    t, below = 0.3, math.nextafter(0.3, 0.0)
    assert sg.Grid([1.0, t, below, 0.1]).times == (1.0, t, 0.1)
    assert sg.Grid([1.0, below, t, 0.1]).times == (1.0, below, 0.1)
    assert sg.Grid([1.0, 1.0 - 1e-12, 0.1 + 1e-12, 0.1]).times == (1.0, 0.1)
    assert sg.Grid([1.0, t, t * (1 - 2e-6), 0.1]).steps == 3
    pieces, once = joined()
    assert sg.Grid(pieces).times == sg.Grid(once).times


@pytest.mark.parametrize("times", [[0.3, 0.3], [1.0, 0.3, 0.3, 0.1], [0.3, math.nextafter(0.3, 0.0)], [0.3, 0.31]])
def test_times_that_cannot_be_a_grid_are_shown(times: list[float]) -> None:
    """Equal times, ends that coincide, and times that increase are refused with both values."""
    t, u = next((t, u) for t, u in pairwise(times) if u >= t * (1 - 1e-9))
    with pytest.raises(ValueError, match="strictly decrease") as refused:
        sg.Grid(times)
    assert str(t) in str(refused.value)
    assert str(u) in str(refused.value)


def test_steps_of_a_millionth_are_steps() -> None:
    """Steps of a millionth of the time, as a grid of a million even steps has them, are not taken for rounding."""
    step = (80.0 - 0.002) / 1e6
    assert sg.Grid([80.0, 80.0 - step, 80.0 - 2 * step]).steps == 2


def variance(name: str, grid: Sequence[float]) -> float:
    """That of a solver's output, exactly, on Gaussian data."""
    return float(impulse_response(MULTISTEP[name], VP, sg.Grid(grid), 0.5).square().sum())


@pytest.mark.parametrize("name", [name for name, solver in MULTISTEP.items() if solver.stochastic])
def test_the_law_does_not_see_a_joint(name: str) -> None:
    """Of two grids in one."""
    plain = variance(name, LOG_SNR)
    assert plain == pytest.approx(0.25, rel=0.3)
    pieces, once = joined()
    assert variance(name, pieces) == variance(name, once)


@pytest.mark.parametrize("name", [name for name, solver in MULTISTEP.items() if solver.stochastic])
@pytest.mark.parametrize("grid", near_duplicates(), ids=case_id)
def test_the_law_does_not_see_a_time_twice(name: str, grid: list[float]) -> None:
    """A time close to another changes the exact variance of stochastic solvers by no more than a step more would."""
    assert variance(name, grid) == pytest.approx(variance(name, LOG_SNR), rel=0.01)


@pytest.mark.parametrize(
    "name",
    some_slow([n for n, s in MULTISTEP.items() if not s.stochastic and s.variant != "fixed"], fast=FAMILIES),
)
def test_the_error_does_not_see_a_time_twice(name: str) -> None:
    """One time close to another, or two, leave the error of multistep solvers where it is."""
    score = GAUSSIAN.score(VP)
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, last = (torch.tensor(t, dtype=torch.float64) for t in (VP.T, VP.eps))
    std_first, std_last = ((VP.alpha(t) ** 2 * 0.25 + VP.sigma(t) ** 2).sqrt() for t in (first, last))
    exact = VP.alpha(last) * 0.3 + std_last / std_first * (x - VP.alpha(first) * 0.3)

    def error(grid: list[float]) -> float:
        return float((sg.sample(score, VP, x_T=x, solver=name, grid=grid, final="none").x - exact).abs().max())

    plain, t = error(list(LOG_SNR)), LOG_SNR[30]
    for grid in [*near_duplicates(), *(with_time(LOG_SNR, t * (1 - d), t * (1 - 2 * d)) for d in DISTANCES)]:
        assert error(grid) < 1.3 * plain + 6e-5


def growth(program: Program) -> float:
    """The largest sum of the sizes of a step's weights, relative to their sum, a correction's to that of its step."""
    largest = before = 0.0
    for stage in program.stages[1:]:
        weights = [c for _, c in stage.evals]
        here = abs(sum(weights))
        if max(here, before) > 0:
            largest = max(largest, sum(map(abs, weights)) / max(here, before))
        before = here
    return largest


@given(
    name=st.sampled_from(list(MULTISTEP)),
    process=st.sampled_from(list(PROCESSES)),
    rule=st.sampled_from(["log-snr", "karras", "uniform", "quadratic"]),
    steps=st.integers(5, 40),
    place=st.floats(0, 1),
    distance=st.floats(-15.5, -1),
    above=st.booleans(),
)
@settings(max_examples=250)
def test_weights_are_bounded_beside_a_time_twice(
    name: str, process: str, rule: str, steps: int, place: float, distance: float, above: bool
) -> None:
    """The sizes of a step's weights sum to 10 at most, or twice what they do without the time in question."""
    sde, solver = PROCESSES[process], MULTISTEP[name]
    times = sg.grids.rule(rule)(sde, steps).times
    t = times[round(place * (steps - 1))]
    near = t * (1 + 10**distance) if above else t * (1 - 10**distance)
    grid = sg.Grid(with_time(times, min(max(near, times[-1]), times[0])))
    plain = growth(solver.compile(sde, sg.Grid(times)))
    assert growth(solver.compile(sde, grid)) <= max(10.0, 2 * plain) * (1 + 1e-9)


@given(
    name=st.sampled_from(list(MULTISTEP)),
    process=st.sampled_from(list(PROCESSES)),
    shares=st.lists(st.floats(1e-9, 1), min_size=1, max_size=20, unique=True),
)
@settings(max_examples=150)
def test_weights_are_bounded_on_any_grid(name: str, process: str, shares: list[float]) -> None:
    """On any grid, however uneven, the sizes of the weights sum to 10 at most, or to what they do after even steps."""
    sde, solver = PROCESSES[process], MULTISTEP[name]
    times = with_time((sde.T, sde.eps), *(sde.eps + u * (sde.T - sde.eps) for u in shares))
    even = 2.0 ** max(solver.nodes, solver.corrector) - 1  # extrapolation over a step with all its weight at its end
    assert growth(solver.compile(sde, sg.Grid(times))) <= max(10.0, 1.1 * even)


def test_order_falls_no_further_than_it_must() -> None:
    """Behind two evaluations close together an older one is taken."""
    times = with_time(LOG_SNR, LOG_SNR[30] * (1 - 1e-6))
    program = sg.DPMSolver(3, singlestep=False, start="cold").compile(VP, sg.Grid(times))
    used = [len(stage.evals) for stage in program.stages]
    assert used[1:4] == [1, 2, 3]
    assert set(used[4:]) == {3}


@pytest.mark.parametrize("distance", [1e-6, 1e-9])
def test_gddim_passes_over_times_close_together(distance: float) -> None:
    """The same where coefficients are matrices."""
    sde = sg.CLD()
    oracle = sg.oracles.Gaussian(torch.zeros(1), 0.25)
    x = sde.prior_sample((20, 2, 1), seed=0, dtype=torch.float64)
    times = sg.grids.rule(sde.default_grid)(sde, 15).times

    def end(times: list[float]) -> torch.Tensor:
        return sg.sample(oracle.score(sde), sde, x_T=x, solver=sg.schemes.GDDIM(3), grid=times, final="none").x

    plain = end(list(times))
    torch.testing.assert_close(end(with_time(times, times[8] * (1 - distance))), plain, rtol=0, atol=2e-3)


def karras_in_float32(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0) -> torch.Tensor:
    """k-diffusion's `get_sigmas_karras` without its trailing 0."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + torch.linspace(0, 1, n) * (low - high)) ** rho


@pytest.mark.parametrize("zero", [False, True], ids=["without 0", "with 0"])
@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(0.0292, 14.6146), (0.002, 80.0), (0.01, 1000.1), (0.03, 157.4)])
def test_a_final_noise_level_of_zero_is_kept(sigma_min: float, sigma_max: float, zero: bool) -> None:
    """Where nothing is to be denoised."""
    sde = sg.EDMSDE(sigma_min, sigma_max)
    sigmas = karras_in_float32(sigma_min, sigma_max, 10)
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
    grid = torch.cat([sigmas, torch.zeros(1)]) if zero else sigmas
    last = sg.sample(score, sde, (2, 1), solver="euler", grid=grid, seed=0, final="none").times[-1]
    assert last == (0.0 if zero else sigma_min)


@pytest.mark.parametrize("zero", [False, True], ids=["without 0", "with 0"])
@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(0.0292, 14.6146), (0.002, 80.0), (0.01, 1000.1), (0.03, 157.4)])
@pytest.mark.parametrize("solver", ["heun", "dpm++2m", "euler", "lms4"])
def test_noise_levels_in_single_precision_are_the_grid(
    sigma_min: float, sigma_max: float, zero: bool, solver: str
) -> None:
    """k-diffusion's levels run from sigma_max to sigma_min exactly; their final 0 is the denoising call."""
    sde = sg.EDMSDE(sigma_min, sigma_max)
    sigmas = karras_in_float32(sigma_min, sigma_max, 10)
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
    grid = torch.cat([sigmas, torch.zeros(1)]) if zero else sigmas

    res = sg.sample(score, sde, (2, 1), solver=solver, grid=grid, seed=0)
    assert res.times == (sigma_max, *sigmas[1:-1].tolist(), sigma_min)


def test_random_ends_in_single_precision() -> None:
    """No upper end is refused or warned about for its image in float32."""
    for sigma_max in torch.empty(100, dtype=torch.float64).uniform_(5, 200, generator=torch.Generator().manual_seed(0)):
        sde = sg.EDMSDE(0.002, float(sigma_max))
        score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
        grid = torch.linspace(float(sigma_max), 0.002, 4)
        assert sg.sample(score, sde, (1, 1), solver="ddim", grid=grid, seed=0).times[0] == sde.T


@pytest.mark.parametrize("sde", [sg.EDMSDE(0.0292, 14.6146), sg.RectifiedFlowSDE(), sg.VESDE(T=0.7), sg.VPSDE(T=0.9)])
def test_ends_of_priors_and_records_in_single_precision(sde: sg.LinearSDE) -> None:
    """So do they; beyond that there is nothing."""
    start = float(torch.tensor(sde.T))
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
    assert torch.equal(sde.prior_sample((3, 2), t=start, seed=0), sde.prior_sample((3, 2), t=sde.T, seed=0))
    kept = sg.sample(
        score, sde, (2, 1), solver="ddim", steps=3, seed=0, record=sg.Record(trajectory=[start, 0.0])
    ).trajectory_times
    assert kept == (sde.T, 0.0)
    with pytest.raises(ValueError, match="beyond T"):
        sg.sample(score, sde, (2, 1), grid=[sde.T * 1.001, sde.eps])


@pytest.mark.parametrize("sde", [sg.EDMSDE(0.0292, 14.6146), sg.RectifiedFlowSDE(), sg.VESDE(T=0.7), sg.VPSDE(T=0.9)])
@pytest.mark.parametrize(
    "options", [{"solver": "ddim", "steps": 3, "grid": "uniform"}, {"solver": "dopri5"}], ids=case_id
)
def test_ends_of_a_run_in_single_precision(sde: sg.LinearSDE, options: dict[str, object]) -> None:
    """t_start, t_end and adaptive solvers take the float32 images of T and eps for T and eps."""
    start, end = (float(torch.tensor(t)) for t in (sde.T, sde.eps))
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)

    res = sg.sample(score, sde, (2, 1), seed=0, t_start=start, t_end=end, **options)
    assert (res.times[0], res.times[-1]) == (sde.T, sde.eps)
    assert torch.equal(res.x, sg.sample(score, sde, (2, 1), seed=0, **options).x)


def test_times_on_the_grid_are_found_in_single_precision() -> None:
    """A trajectory's times may come out of float32."""
    grid = sg.grids.Karras()(sg.EDMSDE(), 10)
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sg.EDMSDE())
    wanted = torch.tensor(grid.times)[[2, 5]].tolist()
    res = sg.sample(score, sg.EDMSDE(), (2, 1), solver="ddim", grid=grid, seed=0, record=sg.Record(trajectory=wanted))
    assert res.trajectory_times == (grid.times[2], grid.times[5])


def test_likelihoods_end_at_rounded_ends() -> None:
    """eps in single precision is the process' own, for densities and codes."""
    sde, x = sg.EDMSDE(0.0292, 14.6146), torch.ones(2, 1, dtype=torch.float64)
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
    eps = float(torch.tensor(sde.eps))
    assert torch.equal(sg.log_prob(score, sde, x, eps=eps).value, sg.log_prob(score, sde, x).value)
    assert torch.equal(sg.encode(score, sde, x, eps=eps).x, sg.encode(score, sde, x).x)


def test_windows_end_at_rounded_levels() -> None:
    """Guidance within an interval and churn within a window include an end that single precision has rounded."""
    sde = sg.EDMSDE(0.0292, 14.6146)
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
    guided = sg.guidance.ClassifierFree(score, 2.0, null={"y": 0.0}, interval=(1.0, 14.6146))
    assert guided._scale_at(torch.tensor([14.6146]), None) == 2.0
    assert guided._scale_at(torch.tensor([1.0]), None) == 1.0
    grid = sg.Grid([14.6146, float(torch.tensor(0.7)), 0.0292])
    churned = sg.Heun(s_churn=0.5, s_tmin=0.0, s_tmax=0.7).compile(sde, grid)
    assert sum(bool(stage.noises) for stage in churned.stages) >= 1


@pytest.mark.parametrize("sde", [sg.RectifiedFlowSDE(), sg.RectifiedFlowSDE(T=1.0, eps=0.0), sg.VPSDE(), sg.EDMSDE()])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted(sde: Any, shift: float) -> None:
    """Noise levels of the base times the shift; the ends stay."""
    grid = sg.grids.Shifted(shift)(sde, 8)
    assert (grid.times[0], grid.times[-1]) == (sde.T, sde.eps)
    levels = (-sde.log_snr(torch.tensor(grid.times[1:-1], dtype=F64)) / 2).exp() / shift
    base = sde.time(-2 * levels.log())
    steps = base.diff()
    torch.testing.assert_close(steps, steps[:1].expand(6), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sg.grids.Shifted(0.0), "shift must be positive and finite, got 0"),
        (lambda: sg.grids.Shifted(2.0, "uniform"), "base must be a grid rule"),
        (lambda: sg.grids.FromLevels([1.0, 2.0]), r"got levels\[0\] = 1.0 followed by 2.0"),
        (lambda: sg.grids.FromLevels([1.0]), "two noise levels or more, got 1"),
        (lambda: sg.grids.FromLevels("ays"), "levels must be a sequence of numbers"),
        (lambda: SolverScheduler(DDPM).set_timesteps(timesteps=[1], sigmas=[1]), "not both"),
        (lambda: SolverScheduler(DDPM).set_timesteps(5, mu=1.0), "mu=1.0 is a shift of flow matching's times"),
        (lambda: SolverScheduler(DDPM).set_begin_index(1), "there is no run to begin"),
        (lambda: from_diffusers(network, DDPM, time_scale=1.0), "time_scale=1.0 goes with flow matching"),
    ],
    ids=case_id,
)
def test_misuse_of_shifts_and_tables(make: Callable[..., Any], match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        make()


def test_a_table_of_levels() -> None:
    """Its entries at its own number of steps, log-linear between, and between the ends that are given."""
    levels = [14.0, 6.0, 2.0, 0.5, 0.1]
    rule = sg.grids.FromLevels([*levels, 0.0])
    sde = sg.EDMSDE(0.01, 20.0)
    torch.testing.assert_close(torch.tensor(rule(sde, 4).times), torch.tensor(levels))
    halves = torch.tensor(rule(sde, 8).times, dtype=F64)
    exact = torch.tensor(levels, dtype=F64)
    torch.testing.assert_close(halves[1::2], (exact[1:] * exact[:-1]).sqrt())
    inner = rule(sde, 3, t_start=6.0, t_end=0.5)
    assert inner.times[0] == 6.0
    assert inner.times[1] > 2.0 > inner.times[2] > inner.times[3] == 0.5
    vp = sg.VPSDE()
    at = torch.tensor(rule(vp, 4).times, dtype=F64)
    torch.testing.assert_close((-vp.log_snr(at) / 2).exp(), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("times", "delays", "shown"),
    [
        ([1.0], [0, 1], r"moves along two times or more, got \[1.0\]"),
        ([1.0, 0.5], [0, 5], "between a delay of 0 and the next, of 5, no token would move: each moves for 1 rows"),
        ([1.0, 0.5], torch.zeros(2, dtype=torch.int64, device="meta"), "delays must be integers from 0"),
    ],
    ids=["one time", "a gap", "meta"],
)
def test_staggered_grids_are_refused_in_words_of_their_delays(times: Any, delays: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        sg.grids.TokenGrid.staggered(times, delays)
