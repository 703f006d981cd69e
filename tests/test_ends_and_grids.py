"""What happens at both ends of a run and on any grid between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import scipy.integrate
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import expit
from torch import Tensor

import sgm_sde as sg
from sgm_sde.calibration.flow import Flow
from sgm_sde.engine.noise import NoiseStream, resolve_seeds
from sgm_sde.grids import RULES, rule_name
from sgm_sde.grids.thinned import _standstill
from sgm_sde.sampling.trials import WHOLE
from sgm_sde.schemes import resolve
from tests.conventions import case_id, some_slow
from tests.helpers import (
    ALL,
    DETERMINISTIC,
    DOUBLE,
    F64,
    FAMILIES,
    LINEAR,
    SOLVERS,
    Recorder,
    elementwise_score,
    impulse_response,
    marginal_std,
    sampler,
)

# Any number of steps on any grid, here also where they are too few for other data than a point.
pytestmark = pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")

TARGET = torch.tensor([0.7, -1.3, 12.0], dtype=F64)
DELTA = sg.oracles.Gaussian(TARGET, 0.0)
STOCHASTIC = [name for name in ALL if name not in DETERMINISTIC]
TABLED = {"ddpm": 999, "ncsn": 9}  # the most steps that a table has to offer
# Rectified flow to a point has constant data and noise, but not a constant velocity of the angle.
STRAIGHT = [
    name
    for name in DETERMINISTIC
    if name
    not in ("heun", "reverse-diffusion-flow", "pndm", "plms", "deis3-unic")  # extrapolations that amplify rounding
    and not name.startswith(("rosenbrock", "velocity"))
]
# Exact where the noise's share of the state is known, as it is for data at one point, on any grid.
EXACT_ON_DELTA: dict[str, sg.Solver] = {
    "ddim": sg.DDIM(),
    "dpm++1m": sg.DPMSolverPP(order=1),
    "dpm++2m": sg.DPMSolverPP(order=2),
    "dpm++2m exact": sg.DPMSolverPP(order=2, variant="exact"),
    "heun": sg.Heun(),
}


def delta_flow(sde: sg.LinearSDE, x: Tensor, start: float, end: float) -> Tensor:
    """The probability flow of data at TARGET: the noise (x - alpha c) / sigma never changes."""
    noise = (x - sde.alpha(start) * TARGET) / sde.sigma(start)
    return sde.alpha(end) * TARGET + sde.sigma(end) * noise


def largest(x: Tensor) -> float:
    return float(x.abs().max())


def steps_of(sde: sg.LinearSDE, process: str, steps: int) -> int:
    return min(steps, TABLED.get(process, steps))


def adds_noise_last(solver: sg.Solver) -> bool:
    """True if the last noise of a run does not go through the network, by the table; a corrector's is beside it."""
    sde = LINEAR["vp"]
    stages = solver.compile(sde, sg.grids.LogSNR()(sde, 3)).stages
    last = max(m for stage in stages for m, _ in stage.noises)
    drawn = next(k for k, stage in enumerate(stages) if last in dict(stage.noises))
    return not isinstance(solver, sg.PredictorCorrector) and not any(stage.evaluate for stage in stages[drawn:])


# --- the last step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, *some_slow([{"final": "denoise"}])], ids=["default", "denoise"])
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # ten even steps of Euler-Maruyama
@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("name", FAMILIES)
def test_denoising_leaves_no_noise(name: str, process: str, options: Any) -> None:
    """Data at one point come back to 1e-6 after ten steps of any solver, by default and with final="denoise"."""
    sde = LINEAR[process]
    solver = sampler(name, sde)
    res = sg.sample(DELTA.score(sde), sde, (5, 3), solver=solver, steps=10, seed=0, execution=DOUBLE, **options)
    assert res.nfe == solver.nfe(10) + 1
    assert largest(res.x - TARGET) < 1e-6


@pytest.mark.parametrize("process", ["vp", "edm", *some_slow(["sub-vp", "ve", "flow"])])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("pc", "annealed-langevin")])
def test_noise_left_without_denoising(name: str, process: str) -> None:
    """final="none" leaves noise of standard deviation sigma(eps), to 5 % and without Monte Carlo."""
    sde, solver = LINEAR[process], SOLVERS[name]
    first_order = solver.order == 1 and name not in EXACT_ON_DELTA
    grid = sg.grids.LogSNR()(sde, (1000 if name == "euler" else 400) if first_order else 100)
    left = float(impulse_response(solver, sde, grid, std=0.0).norm())
    assert left == pytest.approx(float(sde.sigma(sde.eps)), rel=0.05)
    if name in EXACT_ON_DELTA:
        assert left == pytest.approx(float(sde.sigma(sde.eps)), rel=1e-9)


def test_noise_left_by_annealed_langevin() -> None:
    """Enough updates at the last levels leave sigma(eps), up to the bias 1/(1 - delta / 4 sigma^2) of its steps."""
    sde = LINEAR["ve"]
    solver = sg.schemes.AnnealedLangevin(step_ratio=0.1, n_steps=40)
    left = impulse_response(solver, sde, sg.grids.Uniform()(sde, 40, t_start=0.3), std=0.0).norm()
    assert float(left) == pytest.approx(float(sde.sigma(sde.eps)), rel=0.05)


@pytest.mark.parametrize("process", ["vp", "ve"])
@pytest.mark.parametrize("order", ["PC", "CP"])
def test_noise_left_by_a_corrector(process: str, order: str) -> None:
    """A corrector at the end leaves sigma(eps) too, to 5 %; denoising removes it."""
    sde = LINEAR[process]
    score = elementwise_score(sde, mean=3.0, std=0.0)
    solver = sg.PredictorCorrector(sg.DDIM(eta=1.0), sg.Langevin(snr=0.1), order=order)

    def run(final: str) -> Tensor:
        res = sg.sample(score, sde, (8, 2048), solver=solver, steps=100, final=final, seed=0, execution=DOUBLE)
        return res.x - 3.0

    assert float(run("none").std()) == pytest.approx(float(sde.sigma(sde.eps)), rel=0.05)
    assert largest(run("denoise")) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("process", ["vp", "flow", *some_slow(["ve", "edm"])])
@pytest.mark.parametrize("name", [name for name in STOCHASTIC if adds_noise_last(ALL[name])])
def test_mean_is_the_last_state_without_its_last_noise(name: str, process: str, steps: int) -> None:
    """final="mean" is what final="none" would be, had the last step's last draw been zero, in every solver that
    adds its noise last. Churned noise has been through the network by then: without it the last call would be at a
    noise level that the state does not have."""
    sde = LINEAR[process]
    solver = sampler(name, sde)
    grid = sg.grids.LogSNR()(sde, steps)
    expected = impulse_response(solver, sde, grid, std=0.5)
    stages = solver.compile(sde, grid).stages
    last_node = max(k for k, stage in enumerate(stages[:-1]) if stage.node)
    for m in [m for stage in stages[last_node + 1 :] for m, _ in stage.noises][-1:]:
        expected[m] = 0.0
    mean = impulse_response(solver, sde, grid, std=0.5, mean=True)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("process", ["ve", "edm", *some_slow(["vp", "flow"])])
@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "pc"])
def test_mean_is_no_noisier_than_the_last_state(name: str, process: str, steps: int) -> None:
    """Leaving noise out adds none: on data at a point final="mean" ends no farther from it than final="none"."""
    sde = LINEAR[process]
    grid = sg.grids.LogSNR()(sde, steps)
    none, mean = (impulse_response(sampler(name, sde), sde, grid, std=0.0, mean=mean) for mean in (False, True))
    assert float(mean.norm()) <= float(none.norm()) * (1 + 1e-9)


def test_mean_with_a_corrector_spares_the_predictors_noise() -> None:
    """After PC the last update is the corrector's: only its noise goes. After CP it is the predictor's."""
    sde = LINEAR["vp"]
    corrector = sg.schemes.AnnealedLangevin(n_steps=2)
    grid = sg.grids.LogSNR()(sde, 3)
    last = {
        "PC": (math.sqrt(0.2) * float(sde.sigma(grid.times[-1])), "corrector", 3 * 2),
        "CP": (sg.ReverseDiffusion().compile(sde, grid).stages[-1].noises[0][1], "solver", 3),
    }
    for order, (coefficient, name, draws) in last.items():
        solver = sg.PredictorCorrector(sg.ReverseDiffusion(), corrector, order=order)
        none, mean = (
            sg.sample(
                elementwise_score(sde), sde, (2, 4), solver=solver, grid=grid, final=final, seed=0, execution=DOUBLE
            ).x
            for final in ("none", "mean")
        )  # fmt: skip
        noise = NoiseStream([(0, 0), (0, 1)], name, grid.times[0])
        z = [noise.normal((2, 4), F64) for _ in range(draws)][-1]
        torch.testing.assert_close(none - mean, coefficient * z, rtol=1e-9, atol=1e-12, msg=order)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_mean_of_a_deterministic_solver(name: str) -> None:
    """Without noise there is none to leave out: "mean" and "none" agree, and neither makes a last call."""
    sde = LINEAR["vp"]
    mean, none = (
        sg.sample(elementwise_score(sde), sde, (2, 3), solver=ALL[name], steps=4, final=final, seed=0)
        for final in ("mean", "none")
    )
    assert torch.equal(mean.x, none.x)
    assert mean.nfe == none.nfe == ALL[name].nfe(4)


# --- the grid that is shown is the grid that is used -----------------------------------------------------------------


def fractions(max_size: int = 12) -> st.SearchStrategy[list[float]]:
    """Strictly decreasing numbers in (0, 1), at least 1e-3 apart."""
    whole = st.lists(st.integers(1, 999), min_size=0, max_size=max_size, unique=True)
    return whole.map(lambda ns: [n / 1000 for n in sorted(ns, reverse=True)])


def uneven_grid(sde: sg.LinearSDE, inner: list[float]) -> sg.Grid:
    """Given fractions of the time between T and eps, and both ends."""
    return sg.Grid([sde.T, *(sde.eps + u * (sde.T - sde.eps) for u in inner), sde.eps])


@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("name", EXACT_ON_DELTA)
@settings(max_examples=8)
@given(inner=fractions())
def test_exact_on_any_grid_for_data_at_a_point(name: str, process: str, inner: list[float]) -> None:
    """Solvers that know the noise's share end at the exact state on any decreasing grid: no step is off by one."""
    sde = LINEAR[process]
    grid = uneven_grid(sde, inner)
    x = sde.prior_sample((4, 3), seed=0, dtype=F64)
    res = sg.sample(DELTA.score(sde), sde, x_T=x, solver=EXACT_ON_DELTA[name], grid=grid, final="none", seed=0)
    assert res.times == grid.times
    # Heun's slope, the noise, loses the digits by which the data exceed it at the end.
    rounding = 1e-13 * float(sde.sigma(sde.T) / sde.alpha(sde.T) / sde.sigma(sde.eps)) if name == "heun" else 1e-10
    assert largest(res.x - delta_flow(sde, x, sde.T, sde.eps)) < rounding * max(largest(x), largest(TARGET))


@pytest.mark.parametrize("name", STRAIGHT)
@settings(max_examples=8)
@given(inner=fractions())
def test_straight_paths_are_exact_on_any_grid(name: str, inner: list[float]) -> None:
    """Rectified flow to a point is a straight line, which every method in time follows exactly."""
    sde = LINEAR["flow"]
    x = sde.prior_sample((4, 3), seed=0, dtype=F64)
    grid = uneven_grid(sde, inner)
    res = sg.sample(DELTA.score(sde), sde, x_T=x, solver=ALL[name], grid=grid, final="none", seed=0)
    # A prediction of the noise loses the digits by which the noise exceeds the data at the start.
    assert largest(res.x - delta_flow(sde, x, sde.T, sde.eps)) < (1e-7 if ALL[name].prediction == "noise" else 1e-9)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # steps too large for some solvers
@pytest.mark.parametrize("process", ["vp", "edm", *some_slow(["ve"])])
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=5)
@given(inner=fractions(6))
def test_steps_are_the_grids(name: str, process: str, inner: list[float]) -> None:
    """Steps go between neighbouring grid times, to the last bit, and the network is called inside the step."""
    sde = LINEAR[process]
    grid = uneven_grid(sde, inner)
    net = Recorder(elementwise_score(sde))
    pairs: list[tuple[float, float]] = []
    calls: list[int] = [0]

    def callback(info: sg.options.StepInfo) -> None:
        pairs.append((info.t, info.t_next))
        calls.append(len(net.labels))

    solver = sampler(name, sde, n_steps=1)
    res = sg.sample(
        net,
        sde,
        (1, 2),
        solver=solver,
        grid=grid,
        record=sg.Record(callback=callback),
        seed=0,
        execution=DOUBLE,
    )
    assert res.times == grid.times
    assert pairs == list(pairwise(grid.times))
    highest = sde.T if name in ("edm-sde", "dpm++3m-restart") else 0.0  # these raise the noise before they step down
    for (t, t_next), first, last in zip(pairs, calls[:-1], calls[1:], strict=True):
        assert all(t_next <= u <= max(t, highest) for u in net.times[first:last])
    if solver.nfe(grid.steps) == grid.steps:
        assert net.times == list(grid.times)
    assert net.times[-1] == grid.times[-1]


@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("name", FAMILIES)
def test_no_step_is_empty(name: str, process: str) -> None:
    """A program's nodes are the grid's times, each once."""
    sde = LINEAR[process]
    grid = RULES[sde.default_grid](sde, 7)
    program = sampler(name, sde).compile(sde, grid)
    assert program.times == grid.times
    assert program.steps == 7
    assert all(t > u for t, u in pairwise(program.times))


DEFAULT_GRIDS: dict[str, dict[str, str]] = {  # of a solver by process, "" for all others
    "dpm++2m": {"": "log-snr", "edm": "karras"},
    "unipc3": {"": "log-snr"},
    "heun": {"": "karras"},
    "euler-maruyama": {"": "uniform", "edm": "karras"},
    "pc": {"": "uniform", "edm": "karras", "ddpm": "table", "ncsn": "table"},
}


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # six even steps of Euler-Maruyama
@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("name", DEFAULT_GRIDS)
def test_the_default_grid_can_be_given(name: str, process: str) -> None:
    """The default grid as a rule's name, as a rule, as a `Grid`, as numbers or as a tensor changes no bit."""
    sde = LINEAR[process]
    rule = DEFAULT_GRIDS[name].get(process, DEFAULT_GRIDS[name][""])

    def run(**options: object) -> sg.SampleResult:
        return sg.sample(elementwise_score(sde), sde, (3, 2), solver=name, seed=0, **options)

    default = run(steps=6)
    grid = RULES[rule](sde, 6)
    assert default.times == grid.times
    given_times: list[object] = [grid, list(grid.times), default.times, torch.tensor(grid.times, dtype=F64)]
    runs = [run(grid=times) for times in given_times]
    runs += [run(grid=given, steps=6) for given in (rule, RULES[rule])]
    for res in runs:
        assert res.times == grid.times
        assert torch.equal(res.x, default.x)


def test_a_solver_does_without_the_grid_that_a_process_does_not_have() -> None:
    """Log-SNR and sigma / alpha without bound, tables too short or between their times: the process' own grid then."""

    def rule(name: str, sde: sg.SDE, *options: Any) -> str:
        return rule_name(resolve(name).default_grid(sde, *options))

    flow, table = sg.RectifiedFlowSDE(T=1.0), sg.DiscreteVPSDE([0.1] * 10)
    vp, edm = sg.VPSDE(), sg.EDMSDE()
    assert [rule(name, flow) for name in ("dpm++2m", "unipc3", "heun")] == ["uniform"] * 3
    assert [rule("dpm++2m", sde, 10, None, 0.0) for sde in (vp, edm, table)] == ["uniform", "karras", "uniform"]
    assert [rule("heun", sde, 10, None, 0.0) for sde in (vp, edm, table)] == ["karras"] * 3
    assert [rule("ancestral", table, n) for n in (None, 9, 10)] == ["table", "table", "uniform"]
    assert [rule("ancestral", table, 4, start) for start in (0.5, 0.4)] == ["table", "uniform"]
    assert [rule(name, table, 4) for name in ("ddim", "pndm", "reverse-diffusion", "pc")] == ["table"] * 4
    assert [rule(name, table, 4) for name in ("euler-maruyama", "rk4", "rectified2")] == ["uniform"] * 3
    assert [rule(name, sg.CLD()) for name in ("euler-maruyama", "dpm++2m", "ancestral")] == ["quadratic"] * 3
    short = sg.sample(elementwise_score(table), table, (2, 2), solver="ancestral", steps=9, seed=0)
    assert short.times == table.times[::-1]
    long = sg.sample(elementwise_score(table), table, (2, 2), solver="ancestral", steps=20, seed=0)
    assert long.times == sg.grids.Uniform()(table, 20).times


def test_a_setting_without_a_grid_runs_on_the_solver_s() -> None:
    """As the solver alone does; one with a grid keeps it."""
    score, vp = elementwise_score(sg.VPSDE()), sg.VPSDE()
    alone, setting, given = (
        sg.sample(score, vp, (2, 2), solver=solver, nfe=8, seed=0).times
        for solver in ("dpm++2m", sg.Setting("dpm++2m"), sg.Setting("dpm++2m", "uniform"))
    )
    assert alone == setting == sg.grids.LogSNR()(vp, 7).times
    assert given == sg.grids.Uniform()(vp, 7).times


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([1.0, 0.5, 0.5, 0.1], r"grid\[1\] = 0.5 followed by grid\[2\] = 0.5"),
        ([0.1, 0.5, 1.0], r"grid\[0\] = 0.1 followed by grid\[1\] = 0.5"),
        ([1.0, -0.1], r"grid\[1\] = -0.1"),
        ([1.0, math.nan], r"grid\[1\] = nan"),
        ([math.inf, 0.5], r"grid\[0\] = inf"),
        ([], "at least one"),
        ([1.5, 0.5], "beyond T=1.0"),
    ],
)
def test_grids_that_do_not_decrease_are_errors(times: list[float], shown: str) -> None:
    """Duplicate, rising, negative, infinite or missing times are refused, with their values."""
    sde = LINEAR["vp"]
    with pytest.raises(ValueError, match=shown):
        sg.sample(elementwise_score(sde), sde, (1, 2), grid=times, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("process", LINEAR)
def test_the_network_is_never_called_outside_the_run(process: str, dtype: torch.dtype) -> None:
    """Times seen by the network lie in [t_end, t_start], not one rounding error out; churn may rise to T."""
    sde = LINEAR[process]
    for t_start, t_end in ((sde.T, sde.eps), (sde.T / 3, sde.eps + 0.1 * sde.T)):
        for name in ("rk4", "dpm++2m", "heun-churn", "annealed-langevin", "pc"):
            net = Recorder(elementwise_score(sde))
            options = {"steps": 3, "grid": "uniform", "t_start": t_start, "t_end": t_end, "seed": 0}
            x = sde.prior_sample((2, 2), seed=0, dtype=dtype)
            sg.sample(net, sde, x_T=x, solver=sampler(name, sde), **options)
            assert min(net.times) >= t_end
            assert max(net.times) <= (sde.T if name == "heun-churn" else t_start)


# --- any number of steps ---------------------------------------------------------------------------------------------


@given(
    process=st.sampled_from(list(LINEAR)),
    rule=st.sampled_from(list(RULES)),
    steps=st.one_of(st.integers(1, 200), st.sampled_from([1000, 4000])),
)
@example(process="ncsn", rule="thinned", steps=1)
@example(process="ncsn", rule="widening", steps=1)
@settings(max_examples=150)
def test_rules_place_any_number_of_times(process: str, rule: str, steps: int) -> None:
    """Every rule places N steps on every process: decreasing, between its ends exactly, most often T and eps."""
    sde = LINEAR[process]
    if rule == "distilled" and (TABLED.get(process, 0) < 50 or steps >= 50):
        with pytest.raises(ValueError, match=r"timesteps of a distillation"):
            RULES[rule](sde, steps)
        return
    if rule == "table" and steps > TABLED.get(process, 0):
        with pytest.raises(ValueError, match="table of times" if process not in TABLED else f"{steps} steps"):
            RULES[rule](sde, steps)
        return
    grid = RULES[rule](sde, steps)
    assert grid.steps == steps
    ends = RULES[rule].ends(sde, steps, None, None)
    assert (grid.times[0], grid.times[-1]) == ends
    assert ends == (sde.T, sde.eps) or rule in ("widening", "thinned", "distilled")
    assert all(t > u for t, u in pairwise(grid.times))


@given(
    name=st.sampled_from(list(SOLVERS)),
    process=st.sampled_from(list(LINEAR)),
    rule=st.sampled_from([name for name in RULES if name not in ("table", "distilled")]),
    steps=st.integers(1, 200),
)
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # one step is too few for some
def test_any_number_of_steps(name: str, process: str, rule: str, steps: int) -> None:
    """Every solver, process and rule takes exactly N steps for N from 1 to 200 and stays finite."""
    check_run(name, process, rule, steps)


@pytest.mark.parametrize("steps", [3, 9, 27])
@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_of_steps_that_broke_others(name: str, steps: int) -> None:
    """Powers of three, where times rounded to table indices collide elsewhere, also on a table's own times."""
    check_run(name, "ddpm", "table", steps)
    check_run(name, "cosine", "karras", steps)


@pytest.mark.parametrize(
    ("name", "process", "steps"),
    [
        ("dpm++2m", "ddpm", 999),
        ("annealed-langevin", "vp", 1000),
        ("ancestral", "flow", 4000),
        *(
            pytest.param(name, "vp", 1000, marks=pytest.mark.slow)
            for name in ("rk4", "heun", "ddim", "dpm++2m", "euler-maruyama", "edm-sde", "pc")
        ),
        pytest.param("pc", "ve", 4000, marks=pytest.mark.slow),
        pytest.param("ddim", "edm", 4000, marks=pytest.mark.slow),
    ],
)
def test_thousands_of_steps(name: str, process: str, steps: int) -> None:
    """A thousand steps of every kind of solver, four thousand of some."""
    check_run(name, process, "table" if process == "ddpm" else "log-snr", steps)


def check_run(name: str, process: str, rule: str, steps: int) -> None:
    """One run: exactly N steps, from the rule's start to eps, finite."""
    sde = LINEAR[process]
    solver, net = sampler(name, sde, n_steps=1), Recorder(elementwise_score(sde))
    res = sg.sample(
        sg.from_score(net, sde), sde, (2, 2), solver=solver, steps=steps, grid=rule, seed=0, final="none"
    )  # fmt: skip
    assert not res.status.stopped
    assert bool(torch.isfinite(res.x).all())
    assert len(res.times) == steps + 1
    start, _ = RULES[rule].ends(sde, steps, None, sde.eps)
    assert (res.times[0], res.times[-1]) == (start, sde.eps)
    assert all(t > u for t, u in pairwise(res.times))
    assert res.nfe == len(net.labels) == solver.nfe(steps)


# --- singular ends ---------------------------------------------------------------------------------------------------


def cosine_variance(t: Tensor) -> Tensor:
    """1 - cos^2(a + d) / cos^2(a) = sin(d) sin(2a + d) / cos^2(a), with d the angle covered since t = 0."""
    start, covered = math.pi / 2 * 0.008 / 1.008, math.pi / 2 * t / 1.008
    return covered.sin() * (2 * start + covered).sin() / math.cos(start) ** 2


def linear_beta_integral(t: Tensor) -> Tensor:
    return 0.1 * t + 19.9 * t**2 / 2


VARIANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "vp": lambda t: -torch.expm1(-linear_beta_integral(t)),
    "sub-vp": lambda t: torch.expm1(-linear_beta_integral(t)) ** 2,
    "cosine": cosine_variance,
    "ve": lambda t: 1e-4 * 5000 ** (2 * t),
    "edm": lambda t: t**2,
    "flow": lambda t: t**2,
}


@pytest.mark.parametrize("process", LINEAR)
def test_noise_scale_in_single_precision(process: str) -> None:
    """sigma^2 in float32 is right to 1e-6 from T down to t = 1e-6, against closed forms in float64."""
    sde = LINEAR[process]
    t = torch.cat([torch.logspace(-6, math.log10(sde.T), 200, dtype=F64)[:-1], torch.tensor([sde.T], dtype=F64)])
    t = t.float()
    expected = VARIANCES.get(process, lambda t: sde.sigma(t) ** 2)(t.double())
    got = sde.sigma(t)
    assert got.dtype == torch.float32
    assert float(((got.double() ** 2 - expected) / expected).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("process", LINEAR)
def test_coefficients_are_finite(process: str, dtype: torch.dtype) -> None:
    """alpha, sigma, their derivatives, f and g are finite and of the right sign on [eps, T] in low precision too."""
    sde = LINEAR[process]
    t = torch.linspace(sde.eps, sde.T, 300, dtype=F64).to(dtype)
    t = t[(t.double() >= sde.eps) & (t.double() <= sde.T)]  # bfloat16 rounds 0.9946 and 0.999 up
    assert len(t) > 200
    columns = {name: getattr(sde, name)(t) for name in ("alpha", "sigma", "d_alpha", "d_sigma", "rate", "g")}
    for name, value in columns.items():
        assert value.dtype == dtype, name
        assert value.shape == t.shape, name
        assert bool(torch.isfinite(value).all()), name
    assert bool((columns["alpha"] > 0).all())
    assert bool((columns["sigma"] > 0).all())
    assert bool((columns["g"] >= 0).all())


ZERO_SNR = {
    "flow": sg.RectifiedFlowSDE(T=1.0),
    "cosine": sg.LinearSDE.from_schedule(
        lambda t: torch.cos(math.pi / 2 * t), lambda t: torch.sin(math.pi / 2 * t), eps=1e-2
    ),  # alpha(1) is 6e-17 in double precision
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("make", [sg.from_noise, sg.from_score])
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "ancestral", "rk4", "heun"])
@pytest.mark.parametrize("process", ZERO_SNR)
def test_noise_says_nothing_about_data_at_zero_snr(
    process: str, solver: str, make: Callable[..., sg.Score], dtype: torch.dtype
) -> None:
    """Where no signal is left a prediction of the noise or the score does not determine the data: an error says so."""
    sde = ZERO_SNR[process]
    score = make(lambda x, t: x if make is sg.from_noise else -x, sde)
    with pytest.raises(ValueError, match=r"t=1"):
        sg.sample(score, sde, (2, 3), solver=solver, steps=10, seed=0, execution=sg.Execution(dtype=dtype))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param(name, make, marks=[] if make is sg.from_v or name in FAMILIES else pytest.mark.slow)
        for name in DETERMINISTIC
        for make in (sg.from_denoiser, sg.from_v, sg.from_flow)
    ],
)
def test_zero_snr_with_a_prediction_of_the_data(name: str, make: Callable[..., sg.Score]) -> None:
    """From pure noise on, the flow of Gaussian data is exact to the solver's error, or the solver is refused."""
    sde = ZERO_SNR["flow"]
    mean, std = 0.3, 0.5

    def net(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = 1 - t[:, None], t[:, None]
        gain = 1 / ((alpha * std) ** 2 + sigma**2)
        data = mean + alpha * std**2 * gain * (x - alpha * mean)
        noise = sigma * gain * (x - alpha * mean)
        return {sg.from_denoiser: data, sg.from_v: alpha * noise - sigma * data}.get(make, noise - data)

    x = torch.linspace(-2, 2, 8, dtype=F64)[:, None]
    options = {"x_T": x, "solver": ALL[name], "steps": 400, "seed": 0, "final": "none"}
    # In sigma / alpha, and from kernels in powers of alpha.
    if ALL[name].prediction == "noise" or name == "reverse-diffusion-flow":
        with pytest.raises(ValueError, match="t=1"):
            sg.sample(make(net, sde), sde, **options)
        return
    res = sg.sample(make(net, sde), sde, **options)
    expected = (1 - sde.eps) * mean + marginal_std(sde, std, sde.eps) * x
    assert largest(res.x - expected) < (0.02 if ALL[name].order == 1 else 1e-3)


def test_schedules_without_signal_or_noise_are_errors() -> None:
    """Processes whose coefficients would be singular in [eps, T] cannot be made; the message shows the value."""
    with pytest.raises(ValueError, match=r"betas\[1\] = 1"):
        sg.DiscreteVPSDE([0.5, 1.0])
    with pytest.raises(ValueError, match=r"betas\[0\] = 0"):
        sg.DiscreteVPSDE([0.0, 0.5])
    with pytest.raises(ValueError, match=r"T < 1, got 1"):
        sg.CosineVPSDE(T=1.0)
    with pytest.raises(ValueError, match=r"T <= 1, got 1.1"):
        sg.RectifiedFlowSDE(T=1.1)
    with pytest.raises(ValueError, match="at t=1"):
        sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t)
    with pytest.raises(ValueError, match="at t=0"):
        sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t, T=0.9, eps=0.0)
    with pytest.raises(ValueError, match="eps=1"):
        sg.VPSDE(T=1.0, eps=1.0)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # networks of no data
@given(
    name=st.sampled_from(list(SOLVERS)),
    process=st.sampled_from(list(LINEAR)),
    make=st.sampled_from([sg.from_noise, sg.from_denoiser, sg.from_v, sg.from_score]),
    steps=st.integers(1, 20),
    size=st.sampled_from([0.0, 1.0, 30.0]),
)
@settings(max_examples=150)
def test_finite_networks_give_finite_samples(
    name: str, process: str, make: Callable[..., sg.Score], steps: int, size: float
) -> None:
    """No solver turns a network of bounded output, zero included, into infinities or NaN."""
    sde = LINEAR[process]
    score = make(lambda x, t: size * torch.tanh(x), sde)
    res = sg.sample(score, sde, (3, 4), solver=sampler(name, sde), steps=steps, seed=0)
    assert bool(torch.isfinite(res.x).all())


# --- predictor-corrector at any number of steps ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # few steps leave samples as wide as noise
@pytest.mark.parametrize("process", ["vp", "ve"])
def test_predictor_corrector_improves_with_the_number_of_steps(process: str) -> None:
    """Up to a thousand steps the sampled variance comes closer to that of the data; from one step on it is finite."""
    sde, d = LINEAR[process], 2048
    score = elementwise_score(sde, mean=0.0)
    solver = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.05))
    errors = {}
    for steps in (1, 2, 5, 10, 20, 1000):
        res = sg.sample(score, sde, (8, d), solver=solver, steps=steps, seed=0)
        assert res.status.ok
        errors[steps] = abs(float(res.x.double().var()) / 0.25 - 1)
    from_two = [error for steps, error in errors.items() if steps > 1]
    assert from_two == sorted(from_two, reverse=True), errors
    assert errors[1000] < 0.02


@pytest.mark.parametrize(("eta", "name"), [(1.0, "euler-maruyama"), (0.0, "euler")])
def test_reverse_diffusion_converges_to_the_continuous_process(eta: float, name: str) -> None:
    """Without a corrector, doubling the steps halves the distance to the law of Euler on the same process."""
    sde = LINEAR["vp"]
    exact = marginal_std(sde, 0.5, sde.eps)
    distances = []
    for steps in (200, 400, 800):
        grid = sg.grids.LogSNR()(sde, steps)
        laws = [
            float(impulse_response(solver, sde, grid, 0.5).norm())
            for solver in (sg.ReverseDiffusion(eta), SOLVERS[name])
        ]
        distances.append(abs(laws[0] - exact) + abs(laws[1] - exact))
    for before, after in pairwise(distances):
        assert 1.8 < before / after < 2.2


# --- a grid whose range follows the number of steps ------------------------------------------------------------------


@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("steps", [1, 4, 9, 19, 49, 99])
def test_a_widening_grid_has_the_levels_of_its_formula(process: str, steps: int) -> None:
    """From 0.05 (n + 1)^3, at least 8 and at most e^6, to 5 / (n + 1)^2 r / (1 + r), inside of the process' range."""
    sde = LINEAR[process]
    largest, smallest = (math.exp(-float(sde.log_snr(t)) / 2) for t in (sde.T, sde.eps))

    grid = sg.grids.Widening()(sde, steps)
    levels = [math.exp(-float(sde.log_snr(t)) / 2) for t in grid.times]
    first = min(largest, math.exp(6), max(8.0, 0.05 * (steps + 1) ** 3))
    last = max(smallest, 5 / (steps + 1) ** 2 * first / (1 + first))
    assert levels[0] == pytest.approx(first, rel=1e-6)
    assert levels[-1] == pytest.approx(last, rel=1e-6)
    if steps > 1:
        ratios = [a / b for a, b in pairwise(levels)]
        assert max(ratios) == pytest.approx(min(ratios), rel=1e-5)


def test_a_widening_grid_keeps_times_that_are_given() -> None:
    """A start inside the run brings a last level below it; scale and factors multiply the levels."""
    sde = sg.EDMSDE()
    grid = sg.grids.Widening()(sde, 9, t_start=0.1)
    assert grid.times[0] == 0.1
    assert grid.times[-1] == pytest.approx(0.05 * (0.1 / 1.1))
    assert sg.grids.Widening()(sde, 9, t_end=0.3).times[-1] == 0.3
    scaled = sg.grids.Widening(data_std=0.1, first=0.1, last=8.0)(sde, 9)
    assert scaled.times[0] == pytest.approx(10.0)
    assert scaled.times[-1] == pytest.approx(0.1 * 0.08 * 100 / 101)


@pytest.mark.parametrize(
    "options", [{"data_std": 0.0}, {"first": -1.0}, {"last": math.nan}, {"largest": math.inf}], ids=case_id
)
def test_options_of_a_widening_grid_are_positive(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be (positive and )?finite"):
        sg.grids.Widening(**options)


@pytest.mark.parametrize("even_deep", [1.0, 70.0])
@pytest.mark.parametrize("steps", [4, 15, 31, 99])
@pytest.mark.parametrize("process", LINEAR)
def test_a_thinned_grid_has_the_density_of_its_formula(process: str, steps: int, even_deep: float) -> None:
    """From T to 8 / (n + 1)^2; between neighbours the density's integral is the same."""
    sde = LINEAR[process]
    times = sg.grids.Thinned(even_deep=even_deep)(sde, steps).times
    levels = [float(sde.log_snr(t)) for t in times]
    assert levels[0] == pytest.approx(float(sde.log_snr(sde.T)), abs=1e-6)
    first, smallest = (math.exp(-level / 2) for level in (levels[0], float(sde.log_snr(sde.eps))))
    assert math.exp(-levels[-1] / 2) == pytest.approx(max(smallest, 8 / (steps + 1) ** 2 * first / (1 + first)))
    a = min(1.0, (steps + 1) / 45)
    b = min(a, (steps + 1) / even_deep)
    still = max(-13.0, _standstill(sde))

    def density(level: float) -> float:
        noisy = (1 - a) / (1 + math.exp((level + 5) / 1.5)) + (a - b) * float(expit((still - level) / 1.5))
        return 1 - noisy - 0.4 / (1 + math.exp((2 - level) / 1.5))

    counts = [scipy.integrate.quad(density, a, b)[0] for a, b in pairwise(levels)]
    assert max(counts) == pytest.approx(min(counts), rel=1e-5)
    if steps + 1 >= max(45, even_deep):
        even = [float(sde.log_snr(t)) for t in sg.grids.Thinned(clean=0.0, even_deep=even_deep)(sde, steps).times]
        gaps = [b - a for a, b in pairwise(even)]
        assert max(gaps) == pytest.approx(min(gaps), rel=1e-5)


@pytest.mark.parametrize(
    ("sde", "level"),
    [
        (sg.RectifiedFlowSDE(), 2 * math.log(0.02 / 0.98)),  # where t (1 - t) / 2 = 0.01
        (sg.CosineVPSDE(), -6.92),  # where sin(pi t) / (2 pi) is
        (sg.presets.iddpm_cosine(), -6.92),
        (sg.VPSDE(), -math.inf),
        (sg.presets.ddpm(), -math.inf),
        (sg.SubVPSDE(), -math.inf),
        (sg.EDMSDE(), -math.inf),
        (sg.VESDE(), -math.inf),
        (sg.EDMSDE(sigma_min=0.01, sigma_max=0.5), -math.inf),  # which has no level as noisy as the data
    ],
    ids=case_id,
)
def test_the_time_of_flows_and_cosine_schedules_stands_still_near_pure_noise(sde: sg.LinearSDE, level: float) -> None:
    assert _standstill(sde) == pytest.approx(level, abs=0.1)


def test_runs_references_and_fits_start_at_T_however_little_signal_is_there() -> None:
    """The cosine table of 4000 entries ends at log-SNR -22.6: what a network does there belongs to its flow."""
    sde = sg.presets.iddpm_cosine(4000)
    assert float(sde.log_snr(sde.T)) < -22
    assert sg.defaults.default_setting(sde, 10).grid(sde, 10).times[0] == sde.T
    assert WHOLE(sde, 255).times[0] == sde.T
    assert WHOLE(sde, 255).times[-1] == sde.eps

    score = sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 1.0).score(sde)
    flow = Flow(score, sde, (2,), resolve_seeds(0, None, 3), 3, {}, 64, F64, torch.device("cpu"))
    assert flow.high == pytest.approx(-float(sde.log_snr(sde.T)) / 2)


@pytest.mark.parametrize(
    "sde",
    [
        sg.LinearSDE.from_schedule(lambda t: torch.cos(math.pi * t / 2), lambda t: torch.sin(math.pi * t / 2)),
        sg.RectifiedFlowSDE(T=1.0 - 1e-12),
    ],
    ids=["cosine", "flow"],
)
def test_a_signal_that_is_rounding_alone_is_none(sde: sg.LinearSDE) -> None:
    """Near T times no longer tell levels apart: runs, references and fits start at log-SNR -20, as where alpha is 0."""
    assert float(sde.log_snr(sde.T)) < -50
    for grid in (sg.defaults.default_setting(sde, 40).grid(sde, 40), WHOLE(sde, 255)):
        assert float(sde.log_snr(grid.times[0])) == pytest.approx(-20, abs=1e-3)
    assert sg.defaults.default_setting(sde, 40).grid(sde, 40).steps == 40

    score = sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 1.0).score(sde)
    flow = Flow(score, sde, (2,), resolve_seeds(0, None, 3), 3, {}, 64, F64, torch.device("cpu"))
    assert flow.high == pytest.approx(10.0)


@pytest.mark.parametrize("process", LINEAR)
def test_references_are_in_even_steps_of_log_snr(process: str) -> None:
    sde = LINEAR[process]
    levels = [float(sde.log_snr(t)) for t in WHOLE(sde, 64).times]
    gaps = [b - a for a, b in pairwise(levels)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-5)
    assert levels[-1] == pytest.approx(float(sde.log_snr(sde.eps)))


@pytest.mark.parametrize(("data_std", "level"), [(1.0, -7.77), (50.0, -7.77), (0.02, -7.77 - 2 * math.log(0.02))])
def test_steps_are_longer_where_time_stands_still_also_for_data_of_another_scale(data_std: float, level: float) -> None:
    """A standstill is the process' own; narrow data leave no signal up to a lower noise. The step doubles around it."""
    sde = sg.RectifiedFlowSDE()
    options = {"data_std": data_std, "even": 1.0, "clean": 0.0}
    even, longer = (sg.grids.Thinned(**options, even_deep=d)(sde, 99).times for d in (1.0, 200.0))
    ratios = {
        float(sde.log_snr(a)): float(sde.log_snr(b) - sde.log_snr(a)) for a, b in pairwise(longer)
    }  # of steps by their first level
    far, near = ratios[min(ratios)], ratios[max(ratios)]
    middle = min(ratios, key=lambda at: abs(1 / ratios[at] - (1 / far + 1 / near) / 2))
    assert far > 1.5 * near
    assert middle == pytest.approx(level, abs=0.6)
    assert len(even) == len(longer)


def test_a_thinned_grid_keeps_what_it_is_given() -> None:
    """Ends that are given, a scale that moves all levels with it, and a start where log-SNR has no bound."""
    sde = sg.EDMSDE()
    grid = sg.grids.Thinned()(sde, 9, t_start=0.1, t_end=0.01)
    assert (grid.times[0], grid.times[-1]) == (0.1, 0.01)
    one, tenth = (sg.grids.Thinned(data_std=s)(sde, 9, t_start=50 * s, t_end=0.05 * s) for s in (1.0, 0.1))
    assert tenth.times == pytest.approx([t / 10 for t in one.times])
    flow = sg.RectifiedFlowSDE(T=1.0)
    assert float(flow.log_snr(sg.grids.Thinned()(flow, 20).times[0])) == pytest.approx(-20.0)
    with pytest.raises(ValueError, match="finite ends"):
        sg.grids.Thinned()(flow, 20, t_start=1.0)
    for options in ({"clean": 1.0}, {"clean": -0.1}, {"near_data": -6.0}, {"near_noise": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            sg.grids.Thinned(**options)


@pytest.mark.parametrize(
    "options", [{"data_std": 0.0}, {"even": -1.0}, {"last": math.nan}, {"largest": math.inf}], ids=case_id
)
def test_options_of_a_thinned_grid_are_positive(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be (positive and )?finite"):
        sg.grids.Thinned(**options)


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "cosine", "ddpm"])
def test_a_run_on_a_widening_grid_starts_from_the_same_noise(process: str) -> None:
    """Noise by seed, noise given at T and noise given at the first time are one run; final="none" ends at eps."""
    sde = LINEAR[process]
    score = sg.oracles.Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.5).score(sde)
    solver = sg.DPMSolver(4, singlestep=False, start="cold", lower_final=False)
    options = {"nfe": 10, "seed": 3, "solver": sg.Setting(solver, "widening")}
    by_seed = sg.sample(score, sde, (5, 2), execution=DOUBLE, **options)
    at_T = sg.sample(score, sde, x_T=sde.prior_sample((5, 2), seed=3, dtype=F64), **options)
    start = by_seed.times[0]
    there = sde.prior_sample((5, 2), t=start, seed=3, dtype=F64)
    explicit = sg.sample(score, sde, x_T=there, solver=solver, grid=by_seed.times, final="denoise", seed=3)
    assert start < sde.T
    torch.testing.assert_close(at_T.x, by_seed.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(explicit.x, by_seed.x, rtol=1e-12, atol=1e-12)
    assert sg.sample(score, sde, (5, 2), final="none", **options).times[-1] == sde.eps


@pytest.mark.parametrize("data_std", [-1.0, 0.0, math.nan, "a"])
def test_the_scale_of_data_is_a_positive_number(data_std: Any) -> None:
    with pytest.raises(TypeError if isinstance(data_std, str) else ValueError, match=f"data_std .* got '?{data_std}"):
        sg.defaults.default_setting(sg.VPSDE(), 20, data_std=data_std)
