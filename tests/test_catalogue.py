"""Methods that should coincide do, and none loses in float32 what it gained in steps."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.program import Program
from sgm_sde.sampling.diagnosis import ImplausibleWarning
from sgm_sde.sampling.options import Execution
from sgm_sde.testing import active_start, flow_reference, rough, smooth_end
from tests.conventions import case_id, some_slow
from tests.helpers import (
    ALL,
    DETERMINISTIC,
    DOUBLE,
    F64,
    GAUSSIAN,
    LINEAR,
    MIXTURE,
    SOLVERS,
    bind,
    impulse_response,
    marginal_std,
)

MIXTURE_OF_TWO = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.3], [1.0, -0.5]]), 0.2)
PROCESSES = [name for name in LINEAR if name != "schedule"]


def end_state(solver: sg.Solver, process: str, steps: int = 12, seed: int = 0) -> Tensor:
    """Where a solver ends on the mixture, from the same noise, on a rough grid."""
    sde = LINEAR[process]
    grid = rough(seed=seed)(sde, steps)
    return sg.sample(
        MIXTURE.score(sde), sde, (8, 2), solver=solver.strict(), grid=grid, final="none", seed=0, execution=DOUBLE
    ).x  # fmt: skip


# --- methods under several names -------------------------------------------------------------------------------------

SAME = {
    "ddim = dpm++1m": (sg.DDIM(), sg.DPMSolverPP(1)),
    "ddim = dpm-solver-1": (sg.DDIM(), sg.DPMSolver(1)),
    "ddim = single-step dpm++1": (sg.DDIM(), sg.DPMSolverPP(1, singlestep=True)),
    "ddim = exponential Euler, noise in any variable": (sg.DDIM(), sg.DEIS(1)),
    "ddim = lms1": (sg.DDIM(), sg.schemes.LMS(1)),
    "ddim = ipndm1": (sg.DDIM(), sg.schemes.IPNDM(1)),
    "ddim(1) = sde-dpm++1": (sg.DDIM(eta=1.0), sg.DPMSolverPP(1, eta=1.0)),
    "ddim(1) = ddim, ancestral": (sg.DDIM(eta=1.0), sg.schemes.AncestralNoise(sg.DPMSolver(1))),
    "ddim(eta) = ddim, ancestral": (sg.DDIM(eta=0.6), sg.schemes.AncestralNoise(sg.DPMSolver(1), eta=0.6)),
    "unip2 = dpm++2m": (sg.UniPC(2, corrector=False), sg.DPMSolverPP(2)),
    "unip3 = dpm++3m": (sg.UniPC(3, variant="exact", corrector=False), sg.DPMSolverPP(3, start="cold")),
    "unip3 of noise = dpm3m": (
        sg.UniPC(3, prediction="noise", variant="exact", corrector=False),
        sg.DPMSolver(3, singlestep=False, start="cold"),
    ),
    "unipc = unic of unip": (sg.UniPC(3), sg.schemes.UniC(sg.UniPC(3, corrector=False))),
    "sa-solver without noise = unipc": (
        sg.SASolver(3, eta=0.0, window=(0.0, math.inf)),
        sg.UniPC(3, variant="exact"),
    ),
    "seeds1 = sde-dpm++1": (sg.schemes.SEEDS(1), sg.DPMSolverPP(1, eta=1.0)),
    "seeds2 = sde-dpm++2s": (
        sg.schemes.SEEDS(2),
        sg.DPMSolverPP(2, eta=1.0, singlestep=True, variant="exact"),
    ),
    "published seeds1 = sde-dpm1-published": (sg.schemes.SEEDS(1, prediction="noise"), sg.DPMSolver(1, eta=1.0)),
    "published seeds2 = sde-dpm-solver 2s": (sg.schemes.SEEDS(2, prediction="noise"), sg.DPMSolver(2, eta=1.0)),
    "er-sde1 in log-snr": (sg.schemes.ERSDE(1), sg.schemes.ExponentialAdams(nodes=1, noise_scale="er")),
    "a constant eta(t)": (sg.DPMSolverPP(2, eta=0.7), sg.DPMSolverPP(2, eta=lambda t: 0.7)),
    "a window around everything": (
        sg.DPMSolverPP(2, eta=0.7),
        sg.schemes.ExponentialAdams(variant="midpoint", eta=0.7, window=(1e-9, 1e9)),
    ),
    "velocity of VP data = angle": (
        sg.schemes.Rosenbrock(2, sigma_data=1.0),
        sg.schemes.ExponentialAdams(prediction="v"),
    ),
    "a corrector of one node more, by name": (sg.schemes.UniC(sg.DEIS(2)), replace(sg.DEIS(2), corrector=3)),
}
# eta = 0 of each stochastic solver and its deterministic twin.
TWINS = {
    "euler-maruyama": (sg.EulerMaruyama(eta=0.0), sg.RungeKutta(sg.tableaus.EULER)),
    "ddim": (sg.DDIM(eta=0.0), sg.DPMSolverPP(1)),
    "edm churn": (sg.Heun(s_churn=0.0), sg.Heun()),
    **{
        f"dpm++{n}m": (replace(sg.DPMSolverPP(n, eta=1.0), eta=0.0), sg.DPMSolverPP(n, start="cold")) for n in (1, 2, 3)
    },
    **{
        f"dpm{n}m": (
            replace(sg.DPMSolver(n, eta=1.0, singlestep=False), eta=0.0),
            sg.DPMSolver(n, start="cold", singlestep=False),
        )
        for n in (1, 2, 3)
    },
    **{
        f"seeds{n}": (replace(sg.schemes.SEEDS(n), eta=0.0), sg.DPMSolverPP(n, singlestep=True, variant="exact"))
        for n in (1, 2, 3)
    },
    **{
        f"published seeds{n}": (replace(sg.schemes.SEEDS(n, prediction="noise"), eta=0.0), sg.DPMSolver(n))
        for n in (1, 2, 3)
    },
    "dpm++2s": (replace(sg.DPMSolverPP(2, eta=1.0, singlestep=True), eta=0.0), sg.DPMSolverPP(2, singlestep=True)),
    "rosenbrock2": (replace(sg.schemes.Rosenbrock(2, eta=1.0), eta=0.0), sg.schemes.Rosenbrock(2)),
    "sa-solver": (sg.SASolver(2, eta=0.0, window=(0.0, math.inf)), sg.UniPC(2, variant="exact")),
    "an eta(t) of 0": (sg.DPMSolverPP(2, eta=lambda t: 0.0), sg.DPMSolverPP(2)),
    "a small eta": (sg.DPMSolverPP(3, eta=1e-12), sg.DPMSolverPP(3, start="cold")),
}


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # few steps
@pytest.mark.parametrize("process", ["vp", "edm", *some_slow(["flow", "ddpm"])])
@pytest.mark.parametrize("case", [*SAME, *TWINS])
def test_methods_that_coincide(case: str, process: str) -> None:
    """The same method under two names, and a stochastic one without its noise, give the same samples."""
    one, other = {**SAME, **TWINS}[case]
    torch.testing.assert_close(end_state(one, process), end_state(other, process), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("sigma_data", "other"),
    [
        (1e5, sg.DPMSolver(2, singlestep=False, variant="exact")),
        (1e-5, sg.DPMSolverPP(2, variant="exact")),
    ],
    ids=case_id,
)
def test_velocity_in_log_snr_lies_between_noise_and_data(sigma_data: float, other: Any) -> None:
    """For data of large scale it is DPM-Solver, for data of small scale DPM-Solver++."""
    velocity = sg.schemes.Rosenbrock(2, sigma_data=sigma_data, variable="log-snr")
    torch.testing.assert_close(end_state(velocity, "vp"), end_state(other, "vp"), rtol=1e-4, atol=1e-4)


def test_what_a_network_is_off_by_near_noise_is_not_multiplied() -> None:
    """A noise estimate off by a constant b moves x / sigma by b for each unit of log(sigma / alpha), in one step."""
    sde = sg.EDMSDE(0.002, 1e6)
    score = sg.from_noise(lambda x, t: x / t[:, None] + 0.05, sde)
    grid = sg.Grid([1e6, 1e4])
    moved = {}
    for no_signal_above in (1.0, None):
        solver = sg.schemes.Rosenbrock(1, variable="log-snr", no_signal_above=no_signal_above)
        res = sg.sample(score, sde, x_T=torch.zeros(1, 1, dtype=F64), solver=solver, grid=grid, final="none")
        moved[no_signal_above] = float(res.x[0, 0]) / 1e4
    assert moved[1.0] == pytest.approx(-0.05 * math.log(100), rel=1e-6)
    assert moved[None] == pytest.approx(-0.05 * 99, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"variable": "angle"}, 3),
        ({"variable": "log-snr"}, 2),
        ({"variable": "log-signal", "no_signal_above": 7.0}, 1),
    ],
)
def test_the_order_of_velocity_where_even_times_start_without_signal(options: dict[str, Any], order: int) -> None:
    """As the docstring says: log-SNR has no fine steps near alpha = 0 on a grid that is even in time."""
    sde = sg.RectifiedFlowSDE(T=1.0)
    means = torch.tensor([[-1.0], [0.3], [1.2]], dtype=F64)
    exact = sg.from_score(sg.oracles.GaussianMixture(means, 0.4).score(sde), sde)
    score = sg.from_flow(lambda x, t: exact.predict("flow", x, t.clamp(max=1 - 1e-9)), sde)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]

    def end(solver: sg.Solver, n: int) -> Tensor:
        grid = sg.Grid(torch.linspace(1, 0.05, n + 1, dtype=F64).tolist())
        return sg.sample(score, sde, x_T=x, solver=solver, grid=grid, final="none").x

    adams = sg.schemes.Rosenbrock(3, sigma_data=0.7, start="cold", lower_final=False, **options)
    reference = end(sg.solvers()["rk4"], 256)
    coarse, fine = (float((end(sg.schemes.UniC(adams, 3), n) - reference).abs().max()) for n in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


POINT = lambda x, t: torch.full_like(x, 0.3)  # noqa: E731


@pytest.mark.parametrize("prediction", ["data", "noise", "v", "rectified"])
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_a_sample_from_one_evaluation_is_the_estimate_at_the_last_call(process: str, prediction: str) -> None:
    """Which is also what a call at the end of the grid before the last step gives."""
    sde = LINEAR[process]
    score = bimodal(sde)
    x = sde.prior_sample((4, 2), seed=0, dtype=F64)
    times = sg.grids.LogSNR()(sde, 9).times
    adams = sg.schemes.ExponentialAdams(nodes=2, prediction=prediction)
    one = sg.sample(score, sde, x_T=x, solver=replace(adams, final_nodes=1), grid=times)
    before = sg.sample(score, sde, x_T=x, solver=adams, grid=times[:-1])
    assert one.nfe == before.nfe == 9
    assert torch.allclose(one.x, before.x, atol=1e-12)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # the estimates are no data
@pytest.mark.parametrize("prediction", ["data", "noise", "v", "rectified"])
@pytest.mark.parametrize("process", LINEAR)
def test_a_sample_from_several_evaluations_is_exact_where_their_polynomial_is(process: str, prediction: str) -> None:
    """A parabola in the square of the noise level, whatever the method in the steps before; data at a point are one."""
    sde = LINEAR[process]
    x = sde.prior_sample((4, 2), seed=0, dtype=F64)

    def parabola(x: Tensor, t: Tensor) -> Tensor:
        square = (sde.sigma(t) / sde.alpha(t)).to(x)[:, None] ** 2
        return (0.3 - 0.2 * square + 0.1 * square**2).expand_as(x)

    adams = sg.schemes.ExponentialAdams(nodes=3, corrector=3, prediction=prediction, final_nodes=3)
    times = sg.grids.LogSNR()(sde, 12, t_start=active_start(sde)).times
    got = sg.sample(sg.from_denoiser(parabola, sde), sde, x_T=x, solver=adams, grid=times)
    assert got.nfe == 12
    expected = parabola(x, torch.full((4,), sde.eps, dtype=F64))
    assert torch.allclose(got.x, expected, atol=1e-6)


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 8, 12, 20, 35])
@pytest.mark.parametrize("process", LINEAR)
def test_the_default_meets_data_at_a_point(process: str, nfe: int) -> None:
    """At any budget, as an estimate at the end does."""
    sde = LINEAR[process]
    res = sg.sample(sg.from_denoiser(POINT, sde), sde, (4, 2), nfe=nfe, seed=0, execution=DOUBLE)
    assert torch.allclose(res.x, torch.full_like(res.x, 0.3), atol=1e-9)


@pytest.mark.parametrize("process", sorted(LINEAR))
def test_a_grid_to_the_data_has_a_step_more(process: str) -> None:
    """From the last level to eps, unless the end is given; where eps is above the level, it ends there all the same."""
    sde = LINEAR[process]
    rule = sg.grids.Thinned(to_data=True)
    assert rule(sde, 8).times == (*sg.grids.Thinned()(sde, 7).times, sde.eps)
    assert rule(sde, 8, t_end=0.2 * sde.T) == sg.grids.Thinned()(sde, 8, t_end=0.2 * sde.T)
    far = replace(rule, data_std=0.01)(sde, 8)  # the call belongs where estimates no longer change, as far as there is
    assert (far.steps, far.times[-1]) == (8, sde.eps)
    many = rule(sde, 400)
    assert (many.steps, many.times[-1]) == (400, sde.eps)


@pytest.mark.parametrize(
    ("variable", "nodes", "corrector", "bound"),
    [("log-snr", 3, 3, 0.47), ("log-snr", 4, 5, 0.25), ("log-signal", 3, 3, 0.9), ("log-signal", 4, 5, 0.9)],
)
def test_errors_on_narrow_modes_decay_on_steps_up_to_a_bound(
    variable: str, nodes: int, corrector: int, bound: float
) -> None:
    """Data at one point, to which the exact flow contracts as the noise level does: the bounds in the docstring."""
    sde = sg.EDMSDE(1e-9, 1.0)
    score = sg.from_denoiser(lambda x, t: 0 * x, sde)
    adams = sg.schemes.Rosenbrock(nodes, variable=variable, no_signal_above=7.0, start="cold", lower_final=False)
    solver = sg.schemes.UniC(adams, corrector)

    def growth(h: float) -> float:
        """Of the state in a step, the mean of the last eight."""
        times = [0.5 * math.exp(-h * i) for i in range(int(17 / h) + 1)]
        record = sg.Record(trajectory=(times[-9], times[-1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImplausibleWarning)
            res = sg.sample(
                score,
                sde,
                x_T=torch.ones(1, 1, dtype=F64),
                solver=solver,
                grid=sg.Grid(times),
                final="none",
                record=record,
            )
        assert res.trajectory is not None
        return float((res.trajectory[-1] / res.trajectory[0]).abs() ** (1 / 8))

    assert growth(0.9 * bound) < 1 < growth(1.15 * bound)


def test_deis_in_vp_time_is_deis_on_vp() -> None:
    """There the two times are one; on EDM, where time is the noise level, they are not."""
    ours, own = sg.DEIS(3, variable="vp-time"), sg.DEIS(3)
    torch.testing.assert_close(end_state(ours, "vp"), end_state(own, "vp"), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(end_state(ours, "edm"), end_state(own, "edm"), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(end_state(own, "edm"), end_state(sg.schemes.LMS(3), "edm"), rtol=1e-9, atol=1e-9)


def test_variants_differ() -> None:
    """What is offered as another method is another method."""
    states = {name: end_state(ALL[name], "vp") for name in DETERMINISTIC}
    pairs = [
        (one, other)
        for i, one in enumerate(DETERMINISTIC)
        for other in DETERMINISTIC[:i]
        if torch.allclose(states[one], states[other], rtol=1e-9)
    ]
    assert set(pairs) == {
        ("dpm++1m", "ddim"),
        ("dpm1", "ddim"),
        ("dpm1", "dpm++1m"),
        ("unip2", "dpm++2m"),
        ("euler-maruyama-flow", "euler"),
    }


@given(sigma_data=st.floats(0.05, 20.0), steps=st.integers(1, 5), process=st.sampled_from(PROCESSES))
@settings(max_examples=20)
def test_rosenbrock_is_exact_for_data_of_its_spread(sigma_data: float, steps: int, process: str) -> None:
    """One step crosses all noise levels where the data are Gaussian of the stated standard deviation around 0."""
    sde = LINEAR[process]
    oracle = sg.oracles.Gaussian(torch.zeros(2), sigma_data**2)
    x = sde.prior_sample((4, 2), seed=0, dtype=F64)
    solver = sg.schemes.Rosenbrock(2, sigma_data=sigma_data)
    got = sg.sample(oracle.score(sde), sde, x_T=x, solver=solver, steps=steps, final="none", seed=0).x
    torch.testing.assert_close(got, flow_reference(oracle, sde, x, sde.eps), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variant", ["bh1", "bh2", "exact"])
@given(n=st.integers(1, 40))
def test_a_corrector_costs_no_call(n: int, variant: str) -> None:
    """Predictor and corrector share their network calls: one a step."""
    assert sg.UniPC(3, variant=variant).nfe(n) == sg.UniPC(3, variant=variant, corrector=False).nfe(n) == n


# --- budgets ---------------------------------------------------------------------------------------------------------


@given(budget=st.integers(1, 200), name=st.sampled_from(list(SOLVERS)))
@settings(max_examples=200)
def test_fit_never_exceeds_a_budget(budget: int, name: str) -> None:
    """The fitted solver takes at most the budget, and one step more would exceed it."""
    solver, steps = SOLVERS[name].fit(budget)
    if steps:
        assert solver.nfe(steps) <= budget
    assert solver.nfe(steps + 1) > budget or solver.nfe(steps) == budget


@given(budget=st.integers(1, 100), stages=st.sampled_from([2, 3]))
def test_single_step_solvers_use_any_budget_in_full(budget: int, stages: int) -> None:
    """Mixed orders: the last steps do with a stage less."""
    solver, steps = sg.DPMSolverPP(stages, singlestep=True).fit(budget)
    assert solver.nfe(steps) == budget
    assert solver.compile(LINEAR["vp"], sg.grids.LogSNR()(LINEAR["vp"], steps)).nfe == budget


def test_mixed_orders_cost_no_order() -> None:
    """Steps of order 2 at the end of a run of order 3 leave the order of the whole at 3."""
    sde = LINEAR["vp"]
    start, end = active_start(sde), smooth_end(sde)
    x = sde.prior_sample((8, 2), t=start, seed=1, dtype=F64)
    exact = flow_reference(GAUSSIAN, sde, x, end, start)
    errors = []
    for budget in (80, 320):  # neither is a multiple of 3
        solver, steps = sg.DPMSolver(3).fit(budget)
        grid = rough()(sde, steps, start, end)
        got = sg.sample(GAUSSIAN.score(sde), sde, x_T=x, solver=solver, grid=grid, final="none", seed=0).x
        errors.append(float((got - exact).norm()))
    assert math.log(errors[0] / errors[1]) / math.log(4) > 2.85


# --- float32 ---------------------------------------------------------------------------------------------------------

# Multistep solvers, whose weights might cancel, and one each of the others.
PLATEAU = [name for name in DETERMINISTIC if ALL[name].nfe_per_step == 1 or name in ("rk4", "heun", "dpm3", "res3")]
LONG_HISTORIES = ("dpm++3m", "unipc3", "deis3", "lms4", "pndm", "ipndm4", "rosenbrock3", "rk4")


@pytest.mark.parametrize("name", some_slow(PLATEAU, fast=LONG_HISTORIES))
def test_float32_errors_do_not_rise_again(name: str) -> None:
    """With 1000 steps the error in float32 is not above that with 100, but for rounding: weights do not cancel."""
    sde = LINEAR["vp"]
    end = smooth_end(sde)
    x = sde.prior_sample((4, 2), seed=1, dtype=F64)
    exact = flow_reference(GAUSSIAN, sde, x, end)
    errors = {}
    for steps in (100, 1000):
        grid = sg.grids.LogSNR()(sde, steps, t_end=end)
        score = GAUSSIAN.score(sde)
        res = sg.sample(score, sde, x_T=x.float(), solver=ALL[name], grid=grid, final="none", seed=0)
        errors[steps] = float((res.x.double() - exact).abs().max())
    rounding = 2e-6 * math.sqrt(1000)  # that many roundings of numbers of size 5, at random
    limit = errors[100] if ALL[name].order == 1 else min(errors[100], 1e-3)
    assert errors[1000] < limit + rounding, errors


@pytest.mark.parametrize(
    "solver", [sg.DPMSolverPP(4, start="cold"), sg.DEIS(4, start="cold"), sg.schemes.LMS(4, start="cold")], ids=case_id
)
def test_weights_keep_their_digits(solver: Any) -> None:
    """Weights of short steps come from moments that do not cancel: polynomials are integrated to 1e-12."""
    sde = LINEAR["vp"]
    grid = sg.grids.LogSNR()(sde, 3000)
    program: Program = solver.compile(sde, grid)
    model = bind(sg.from_denoiser(lambda x, t: torch.ones_like(x), sde), sde, grid.times)
    assert model.plan(program).n_slots <= 5
    nodes = sde.nodes([grid.times[2000], grid.times[2001]])
    part = solver.part(*nodes)
    history = sde.nodes(grid.times[2000:1996:-1])
    total = sum(part.weights(*nodes, history))
    assert total == pytest.approx(part.moments(*nodes, 1)[0], rel=1e-11)


@pytest.mark.parametrize(
    "solver", [*SOLVERS.values(), sg.Restart(sg.DPMSolver(2)), sg.Restart(sg.schemes.PNDM())], ids=case_id
)
@given(budget=st.integers(0, 8))
def test_no_budget_gives_negative_steps(budget: int, solver: Any) -> None:
    """Too few calls for a step are no steps."""
    assert solver.steps(budget) >= 0


# --- choosing --------------------------------------------------------------------------------------------------------


def bimodal(sde: sg.LinearSDE) -> sg.Score:
    """Two narrow modes."""
    return MIXTURE_OF_TWO.score(sde)


@pytest.mark.parametrize("process", ["vp", "edm"])
def test_a_pilot_finds_the_best(process: str) -> None:
    """Its errors are those of runs against the exact flow; the best but for one noise is taken by `sample` as it is."""
    sde = LINEAR[process]
    score = bimodal(sde)
    candidates = [sg.Setting(name, grid) for name in ("ddim", "dpm++2m", "unipc3") for grid in ("log-snr", "uniform")]
    result = sg.pilot(
        score, sde, (16, 2), nfe=12, candidates=candidates, seed=3, final="none", dtype=F64, t_end=smooth_end(sde)
    )
    x = sde.prior_sample((16, 2), seed=3, dtype=F64)
    exact = flow_reference(MIXTURE_OF_TWO, sde, x, smooth_end(sde))
    assert result.reference_error < 1e-4
    typical = []
    for setting, error in result.errors:
        got = sg.sample(
            score, sde, x_T=x, solver=setting, nfe=12, final="none", seed=0, t_end=smooth_end(sde)
        ).x  # fmt: skip
        squares = (got - exact).square().mean(1) / exact.var(0).mean()
        assert error == pytest.approx(float(squares.mean().sqrt()), rel=1e-3, abs=2 * result.reference_error)
        typical.append(float(squares.sort().values[:-1].mean().sqrt()))
    assert all(one <= other + 4 * result.reference_error for one, other in pairwise(typical))
    best = result.errors[0][0]
    assert (result.solver, result.grid) == (best.solver, best.grid)
    one, other = (sg.sample(score, sde, (4, 2), solver=s, nfe=12, seed=0).x for s in (result, best))
    assert torch.equal(one, other)
    assert best.solver.name in str(result)


def test_a_pilot_of_a_broken_network() -> None:
    """Without a reference there is no ranking."""
    sde = LINEAR["vp"]
    score = bimodal(sde)
    with pytest.raises(ValueError, match="no reference to compare with: non-finite"):
        sg.pilot(lambda x, t: score(x, t).masked_fill((t < 0.5)[:, None], math.nan), sde, (4, 2), nfe=8, seed=1)


def test_a_pilot_is_repeatable() -> None:
    """The same seed gives the same errors; a generator is drawn from once."""
    sde = LINEAR["vp"]
    one, other = (sg.pilot(bimodal(sde), sde, (16, 2), nfe=8, seed=1, candidates=["ddim"]) for _ in range(2))
    assert one.errors == other.errors
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    sg.pilot(bimodal(sde), sde, (16, 2), nfe=8, generator=generator, candidates=["ddim"])
    expected = torch.Generator()
    expected.set_state(before)
    torch.randint(2**63 - 1, (), generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"candidates": []}, ValueError, "none"),
        ({"candidates": ["ancestral"]}, ValueError, "ancestral"),
        ({"candidates": ["dpm++2n"]}, ValueError, "dpm"),
        ({"candidates": ["rk4"], "nfe": 3}, ValueError, "nfe=3"),
        ({"nfe": 0}, ValueError, "0"),
        ({"final": "clean"}, ValueError, "clean"),
    ],
)
def test_pilots_that_cannot_run(options: dict[str, object], error: type[Exception], shown: str) -> None:
    """Bad input is refused in the user's words."""
    sde = LINEAR["vp"]
    with pytest.raises(error, match=shown):
        sg.pilot(bimodal(sde), sde, (2, 2), **{"nfe": 8, "seed": 0, **options})


def test_a_pilot_of_several_budgets() -> None:
    """One pair of references serves all; each result is the best at its budget, within what the trials may cost."""
    sde = LINEAR["vp"]
    score, calls = bimodal(sde), []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return score(x, t)

    results = sg.pilot(counted, sde, (16, 2), nfe=[5, 10], reference_nfe=200, seed=0, dtype=F64)
    assert list(results) == [5, 10]
    assert sum(calls) <= 2 * 2 * 200 * 16
    ends = {}
    for nfe, result in results.items():
        assert result.nfe == nfe
        ends[nfe] = result.errors[0][1]
        x = sg.sample(score, sde, (16, 2), solver=result, nfe=nfe, seed=0, execution=DOUBLE).x
        exact = sg.sample(score, sde, (16, 2), solver="dpm3m", grid="log-snr", nfe=400, seed=0, execution=DOUBLE).x
        assert float((x - exact).square().mean().sqrt() / exact.std()) == pytest.approx(ends[nfe], rel=0.05)
    assert ends[10] < ends[5]


def test_what_a_pilot_says_of_itself() -> None:
    """A best that is poor, two candidates that are one."""
    sde = LINEAR["vp"]
    with pytest.warns(sg.trials.PilotWarning, match="even the best"):
        poor = sg.pilot(bimodal(sde), sde, (4, 2), nfe=2, candidates=["ddim"], seed=1)
    assert any("give more calls" in remark for remark in poor.remarks)
    twins = [sg.Setting("dpm++1m", "log-snr"), sg.Setting("ddim", "log-snr")]
    result = sg.pilot(bimodal(sde), sde, (16, 2), nfe=20, candidates=twins, seed=1)
    assert any(remark.startswith("cannot tell") for remark in result.remarks)


def test_a_pilot_with_labels() -> None:
    """Labels go with their samples if they are marked; if they are not, no trial is of some of the samples."""
    sde = LINEAR["vp"]
    score, batches = bimodal(sde), set()

    def labelled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert len(y) == len(x)
        batches.add(len(x))
        return score(x, t) + 0 * y[:, None]

    y = torch.arange(32.0)
    marked = sg.pilot(labelled, sde, (32, 2), nfe=8, seed=0, model_kwargs={"y": sg.PerSample(y)})
    assert batches == {4, 24, 32}  # of each round those that are new
    batches.clear()
    plain = sg.pilot(labelled, sde, (32, 2), nfe=8, seed=0, model_kwargs={"y": y})
    assert batches == {32}
    assert marked.errors[0][1] <= 1.2 * plain.errors[0][1]


@pytest.mark.parametrize("nfe", [5, 10, 20, 35])
def test_what_a_pilot_tries(nfe: int) -> None:
    """Solvers on log-SNR, Karras' and their own grids, with lower final orders."""
    tried = sg.trials.default_candidates(nfe)
    assert {sg.grids.LogSNR(), sg.grids.Karras(), None} <= {setting.grid for setting in tried}
    assert {True, False} <= {getattr(setting.solver, "lower_final", None) for setting in tried}
    assert set(tried) < set(sg.trials.default_candidates())


@pytest.mark.parametrize(
    "process, nfe",
    # What a process lacks it lacks at any budget, but for tables, which may be too short.
    [
        *(("vp", nfe) for nfe in (5, 10, 20, 35)),
        *((name, 5) for name in LINEAR if name != "vp"),
        ("ddpm", 35),
        ("ncsn", 35),
    ],
)
def test_a_pilot_has_enough_to_try(process: str, nfe: int) -> None:
    """24 settings or more at each budget and on each process."""
    sde, tried = LINEAR[process], sg.trials.default_candidates(nfe)
    options: sg.trials.RunOptions = {"t_end": None, "final": "denoise", "execution": Execution(dtype=F64)}
    race = sg.trials.Race(bimodal(sde), sde, (2,), (0,), torch.zeros(1, 2), 0.0, options, {}, {})
    assert len(race.possible(tried, nfe)) >= 24


def test_samples_that_change_sides_do_not_decide_a_pilot() -> None:
    """Ranks are by the error without the tenth of largest error, one of four at least; errors are of all samples."""
    typical = sg.trials.Race.typical
    assert typical(torch.tensor([4.0, 4.0, 9e9, 4.0])) == 2.0
    assert typical(torch.tensor([4.0] * 28 + [9e9, math.inf, 9e9])) == 2.0
    assert typical(torch.tensor([4.0] * 28 + [9e9, math.inf, 9e9, 9e9])) > 1e4
    assert typical(torch.tensor([1.0, 7.0])) == 2.0


def test_settings_are_values() -> None:
    """A setting is made from names or objects, compares by what it holds, and refuses a grid of given times."""
    assert sg.Setting("ddim", "karras") == sg.Setting(sg.DDIM(), sg.grids.Karras())
    with pytest.raises(TypeError, match="rule"):
        sg.Setting("ddim", sg.Grid([1.0, 0.5]))
    with pytest.raises(ValueError, match="karras"):
        sg.Setting("ddim", "karas")


def test_which_default() -> None:
    """By the budget, and by what the process allows at the times that are given."""
    vp = LINEAR["vp"]
    budgets = (1, 5, 6, 9, 10, 15, 16, 29, 30, 500)
    settings = {budget: sg.defaults.default_setting(vp, budget) for budget in budgets}
    assert [setting.budget for setting in settings.values()] == list(budgets)
    chosen = {budget: setting.plain for budget, setting in settings.items()}
    assert chosen[1] == chosen[5] != chosen[6]
    assert chosen[6] == chosen[9] == chosen[10] == chosen[15] != chosen[16]
    assert chosen[16] == chosen[29] != chosen[30]
    assert chosen[30] == chosen[500] == sg.defaults.default_setting(vp)
    for budget, nodes in ((5, 3), (15, 3), (16, 5), (29, 5), (30, 5)):
        solver, grid = chosen[budget].solver, chosen[budget].grid
        assert isinstance(solver, sg.schemes.ExponentialAdams)
        assert (solver.nodes, solver.corrector, solver.lower_final) == (nodes, nodes, budget < 30)
        assert solver.final_nodes == (3 if budget < 30 else 0)
        to_an_end = sg.defaults.default_setting(vp, budget, t_end=0.1).solver
        assert to_an_end == solver.ending_in_a_state()
        assert (solver.prediction, solver.variable) == ("v", "log-signal")
        assert isinstance(grid, sg.grids.Thinned)
        assert grid(vp, 10).times[0] == vp.T
    for sde in (vp, sg.CLD()):
        with pytest.raises(TypeError, match="data_std must be one number, got True"):
            sg.defaults.default_setting(sde, data_std=True)
        with pytest.raises(
            ValueError, match=r"data_std must be finite, at least 1e-06 and at most 100000, got 1e\+300"
        ):
            sg.defaults.default_setting(sde, data_std=1e300)
    assert sg.defaults.default_setting(sg.RectifiedFlowSDE(T=1.0), 20) == sg.defaults.default_setting(vp, 20)
    assert sg.defaults.default_setting(sg.RectifiedFlowSDE(T=1.0), t_start=1.0) == sg.Setting("rectified2")
    assert sg.defaults.default_setting(vp, t_end=0.0) == sg.Setting("rectified2")

    class Pull(sg.SDE):
        T, eps, prior_std = 1.0, 1e-3, 1.0

        def f(self, x: Tensor, t: Tensor) -> Tensor:
            return -x

        def g(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

    assert sg.defaults.default_setting(Pull()) == sg.Setting("heun2")
    assert sg.sample(lambda x, t: -x, Pull(), (2, 3), nfe=10, seed=0).status.ok
    x = sg.sample(sg.from_flow(lambda x, t: x, sg.RectifiedFlowSDE(T=1.0)), sg.RectifiedFlowSDE(T=1.0), (2, 2), seed=0)
    assert x.status.ok
    assert sg.sample(bimodal(vp), vp, (2, 2), t_end=0.0, final="none", seed=0).status.ok


@pytest.mark.parametrize("roughness", [0.01, 0.0])
@pytest.mark.parametrize("sde", [sg.presets.ddpm(), sg.VPSDE(), sg.RectifiedFlowSDE()], ids=["ddpm", "vp", "flow"])
def test_the_default_on_a_noise_estimate_that_is_rough_in_time(sde: sg.LinearSDE, roughness: float) -> None:
    """With 16 calls it stays within .03 standard deviations of the flow of an exact noise plus 0.01 sin(3 log-SNR)."""
    score = sg.testing.default_oracle("mixture").score(sde)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        wave = torch.sin(3 * sde.log_snr(t)).to(x.dtype)
        return -sde.sigma(t).to(x.dtype)[:, None] * score(x, t) + roughness * wave[:, None]

    rough = sg.from_noise(noise, sde)
    x = sde.prior_sample((200, 2), seed=1, dtype=F64)
    exact = sg.sample(rough, sde, x_T=x, solver="dpm3m", grid="log-snr", nfe=300).x
    got = sg.sample(rough, sde, x_T=x, nfe=16).x
    assert float((got - exact).square().mean().sqrt() / exact.std()) < 0.03


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # NCSN's table starts at the data's scale
@pytest.mark.parametrize("process", some_slow(PROCESSES, fast=("vp", "edm", "flow", "ncsn")))
@given(budget=st.integers(2, 120))
@settings(max_examples=10)
def test_the_default_keeps_every_budget(process: str, budget: int) -> None:
    """Without a solver's name a run uses the budget in full, or the ten levels of NCSN's table while it has no more
    than three calls for each; below 30 calls the sample is made of estimates at levels above the last."""
    sde = LINEAR[process]
    res = sg.sample(bimodal(sde), sde, (2, 2), nfe=budget, seed=0)
    levels = 10 if budget == 30 else 9
    assert res.nfe == (min(budget, levels) if process == "ncsn" and budget <= 30 else budget)
    assert res.status.ok
    named = sg.sample(bimodal(sde), sde, (2, 2), nfe=budget, seed=0, solver=sg.defaults.default_setting(sde, budget))
    assert torch.equal(named.x, res.x)


# --- compositions ----------------------------------------------------------------------------------------------------

DIVERGING = ("sde-dpm2m-published", "sde-dpm3m-published")  # in few steps
PREDICTORS = [name for name in SOLVERS if name not in ("pc", "annealed-langevin")]


@pytest.mark.parametrize("order", ["PC", *some_slow(["CP"])])
@pytest.mark.parametrize("name", PREDICTORS)
def test_every_solver_is_a_predictor(name: str, order: str) -> None:
    """In a predictor-corrector: calls as declared, finite, near the data, and not what the predictor gives alone."""
    sde, steps = LINEAR["vp"], 60 if name in DIVERGING else 12
    solver = sg.PredictorCorrector(SOLVERS[name], sg.Langevin(snr=0.01), order=order)
    res = sg.sample(bimodal(sde), sde, (64, 2), solver=solver, steps=steps, grid="log-snr", seed=0)
    assert res.nfe == solver.nfe(steps) + 1
    assert res.status.ok
    alone = sg.sample(bimodal(sde), sde, (64, 2), solver=SOLVERS[name], steps=steps, grid="log-snr", seed=0)
    # Multistep solvers of the noise with noise overshoot at so few steps, alone as well.
    assert float(res.x.abs().max()) < max(2.5, 3 * float(alone.x.abs().max()))
    assert not torch.allclose(res.x, alone.x)


def test_a_corrector_by_unic_keeps_what_a_langevin_corrector_moved() -> None:
    """UniC corrects by a difference of integrals: with the evaluations of a run where nothing moves it changes
    nothing that a hook has done to the state."""
    sde = LINEAR["edm"]
    grid = sg.grids.Karras()(sde, 6)
    program = sg.UniPC(2).compile(sde, grid)
    for k, stage in enumerate(program.stages[1:], start=1):
        assert stage.states == ((k - 1, stage.states[0][1]),)  # built on the node's own state, never an older one


@pytest.mark.parametrize("name", ["ddim", "dpm++3m", "unipc3", "heun", "sde-dpm++2m"])
def test_restart_starts_afresh(name: str) -> None:
    """A pass refers to nothing from before it; the run continues with the last pass' history; calls add up."""
    sde = LINEAR["edm"]
    solver = sg.Restart(SOLVERS[name], s_min=0.1, s_max=1.0, rounds=2, n_steps=4)
    grid = sg.grids.Karras()(sde, 12)
    program = solver.compile(sde, grid)
    assert program.times == grid.times
    assert program.nfe == solver.nfe(12) == SOLVERS[name].nfe(12) + 2 * SOLVERS[name].nfe(4)
    times = [stage.t for stage in program.stages]
    lifted = [k for k in range(1, len(times)) if times[k] > times[k - 1] * 1.0001 and times[k] == pytest.approx(1.0)]
    assert len(lifted) == 2
    for first in lifted:
        ((low, scale),) = program.stages[first].states
        assert scale == 1.0  # alpha is 1
        assert [c for _, c in program.stages[first].noises] == [pytest.approx(math.sqrt(1 - times[low] ** 2))]
        for stage in program.stages[first + 1 :]:
            assert all(j >= first for j, _ in (*stage.states, *stage.evals))


@pytest.mark.parametrize("rounds", [1, 3])
def test_restart_keeps_the_law(rounds: int) -> None:
    """On Gaussian data the spread after the passes is that of the data: noise up and flow down are in balance."""
    sde = LINEAR["edm"]
    solver = sg.Restart(sg.RungeKutta(sg.tableaus.RK4), s_min=0.1, s_max=2.0, rounds=rounds, n_steps=40)
    grid = sg.grids.Karras()(sde, 100)
    response = impulse_response(solver, sde, grid, std=0.5)
    assert float(response.norm()) == pytest.approx(math.hypot(0.5, sde.eps), rel=1e-4)
    assert len(response) == rounds + 1


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("solver", [sg.DPMSolver(1), sg.DPMSolverPP(1, singlestep=True)], ids=case_id)
def test_ancestral_noise_is_the_forward_kernel(eta: float, solver: sg.Solver) -> None:
    """What is added and what is taken make the marginal's variance: exact for data at a point."""
    sde = LINEAR["vp"]
    grid = rough()(sde, 5)
    response = impulse_response(sg.schemes.AncestralNoise(solver, eta=eta), sde, grid, std=0.0)
    assert float(response.norm()) == pytest.approx(float(sde.sigma(sde.eps)), rel=1e-9)


def test_restart_takes_no_corrector_inside() -> None:
    """What works at the grid's nodes would be dropped in the passes: it goes outside."""
    inside = sg.PredictorCorrector(sg.DDIM(), sg.Langevin())
    with pytest.raises(TypeError, match="outside of Restart"):
        sg.Restart(inside)
    assert sg.PredictorCorrector(sg.Restart(sg.DDIM()), sg.Langevin()).nfe(5) > 10


@pytest.mark.parametrize(("steps", "off"), [(10, 0.15), (20, 0.12), (40, 0.05)])
@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
@pytest.mark.parametrize("name", ["seeds2", "seeds3", "sa-solver"])
def test_stochastic_solvers_are_stable_at_few_steps(name: str, process: str, steps: int, off: float) -> None:
    """The exact spread of their samples on their own grids: within 15 % at 10 steps and 5 % at 40."""
    sde, solver = LINEAR[process], SOLVERS[name]
    grid = solver.default_grid(sde, steps)(sde, steps)
    spread = float(impulse_response(solver, sde, grid, std=0.3).norm()) / marginal_std(sde, 0.3, sde.eps)
    assert abs(spread - 1) < off, (steps, spread)
