"""Calibrated solvers: tables fitted to a network."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.calibration import HeldOut, Table, closed, exact, fits, rough, search
from sgm_sde.calibration.choice import Comparison
from sgm_sde.calibration.exact import Exact, References, arranged
from sgm_sde.calibration.flow import Flow, Trajectories
from sgm_sde.calibration.held import HeldOutRuns, Ranked
from sgm_sde.calibration.network import network_of, process_of
from sgm_sde.calibration.refine import Refinement, Unknowns, _Point
from sgm_sde.calibration.remarks import remarks_on
from sgm_sde.calibration.result import PILOT, load_settings
from sgm_sde.calibration.rows import Rows
from sgm_sde.calibration.strata import Strata, hardest, weighted_median
from sgm_sde.cli import main
from sgm_sde.engine.noise import resolve_seeds
from sgm_sde.engine.program import Form, Step
from sgm_sde.evaluation.bench import bench
from sgm_sde.runs.distributed import load
from sgm_sde.sampling.trials import default_candidates
from tests.conventions import case_id, some_slow
from tests.helpers import DOUBLE

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
    res = sg.sample(
        score, sde, (4, 2), solver=OneJump(), seed=0, record=sg.Record(callback=lambda info: seen.append(info.t_next))
    )
    assert (res.nfe, len(seen)) == (3, 3)

    # Denoising where its last call is made is DDIM's way to end.
    ddim = sg.sample(score, sde, (4, 2), solver="ddim", grid=res.times[:-1], seed=0)
    torch.testing.assert_close(res.x, ddim.x)

    kept = sg.sample(score, sde, (4, 2), solver=OneJump(), seed=0, record=sg.Record(trajectory="all"))
    assert kept.trajectory is not None and kept.trajectory_times == res.times
    torch.testing.assert_close(kept.trajectory[-1], res.x)


@pytest.mark.parametrize("final", ["none", "mean"])
def test_a_solver_that_ends_in_data_ends_in_one_way(final: str) -> None:
    sde = sg.VPSDE()
    score = GAUSSIAN.score(sde)
    by_default = sg.sample(score, sde, (4, 2), solver=OneJump(), seed=0)
    named = sg.sample(score, sde, (4, 2), solver=OneJump(), seed=0, final=final)
    torch.testing.assert_close(named.x, by_default.x)


def test_correctors_leave_a_sample_without_noise() -> None:
    sde = sg.VPSDE()
    solver = sg.PredictorCorrector(OneJump(), sg.Langevin(0.1))
    res = sg.sample(GAUSSIAN.score(sde), sde, (4, 2), solver=solver, steps=3, seed=0)
    assert res.status.ok and solver.ends_in_data


# --- tables and fits -------------------------------------------------------------------------------------------------

MIXTURE = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.3], [1.0, 0.0], [0.2, 0.9]]), 0.2)
PROCESSES: dict[str, sg.LinearSDE] = {
    "vp": sg.VPSDE(), "ddpm": sg.presets.ddpm(), "flow": sg.RectifiedFlowSDE(), "edm": sg.EDMSDE(), "ve": sg.VESDE(),
}  # fmt: skip


def references(flow: Flow, n: int, held: int, screened: int = 0, nfe: int | None = None) -> References:
    """Noises to fit to, to compare on, and further ones of which the hardest are compared on."""
    noises, *others = search._ranges(n, held, 0, screened)
    return References(flow, noises, others[0], others[1:], nfe)


def runs_beside(of: References) -> HeldOutRuns:
    """Runs beside exact trajectories, in double precision."""
    return HeldOutRuns(*arranged(of.flow, of.made(), of.screened[1]), torch.float64)


DDIM_IN_ONE = Table((50.0,), (50.0, 0.0), ((1.0,),))


def a_flow(sde: sg.LinearSDE, n: int, score: sg.Score | None = None) -> Flow:
    """Noises of the mixture."""
    score = MIXTURE.score(sde) if score is None else score
    seeds = resolve_seeds(0, None, n)
    return Flow(score, sde, (2,), seeds, n, {}, 64, torch.float64, torch.device("cpu"))


def a_table(sde: sg.LinearSDE, n: int = 4) -> Table:
    """Levels and weights without any meaning."""
    flow = a_flow(sde, 1)
    top, bottom = min(flow.high, math.log(20.0)), max(flow.low, math.log(0.05))
    t = torch.linspace(top, bottom, n, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    B = torch.tril(torch.randn(n + 1, n, generator=generator, dtype=torch.float64) / n, -1)
    c = torch.cat([t.exp(), torch.tensor([0.01], dtype=torch.float64)])
    c[1:-1] *= 1.1
    return Rows(t, c, B).table()


@pytest.mark.parametrize("levels", [(0.5, -0.2, 0.1), (0.3, 0.3, 0.3)], ids=["several", "one"])
@pytest.mark.parametrize("units", [None, [0.5, 3.0]])
def test_groups_at_levels_of_their_own_are_estimated_as_one_by_one(
    levels: tuple[float, ...], units: list[float] | None
) -> None:
    """In network calls of seven rows, which cut the groups of eight."""
    sde = sg.VPSDE()
    flow = a_flow(sde, 8)
    flow.batch_size = 7
    y = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = sde.time(-2 * torch.tensor(levels, dtype=torch.float64))
    alpha = sde.alpha(t)
    right = [flow.score.denoised(a * of, time.expand(8)) for a, of, time in zip(alpha, y, t, strict=True)]

    of_unit = torch.ones(2, dtype=torch.float64) if units is None else torch.tensor(units, dtype=torch.float64)
    flow.units = None if units is None else of_unit
    out = torch.empty_like(y)
    found = flow.data(y * of_unit, levels, range(8), out=out)
    assert found is out
    torch.testing.assert_close(found, torch.stack(right) * of_unit)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_table_runs_as_it_was_fitted(process: str) -> None:
    sde = PROCESSES[process]
    flow, table = a_flow(sde, 8), a_table(sde)
    samples = range(8)
    by_rows, _ = Rows.of(table).run(flow, flow.noise(samples), samples)
    solver = sg.calibration.Calibrated(table, process_of(sde))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.diagnosis.ImplausibleWarning)
        res = sg.sample(flow.score, sde, (8, 2), solver=solver, seed=0, execution=DOUBLE)
    assert res.nfe == 4 and len(res.times) == 5
    torch.testing.assert_close(res.x, by_rows, rtol=1e-8, atol=1e-8)


def test_a_first_call_next_to_T_is_at_T() -> None:
    """Grids of given times take what is T in single precision for T, where the noise level grows without bound."""
    sde = PROCESSES["flow"]
    flow = a_flow(sde, 2)
    assert flow.snapped(flow.high - 5e-4) == flow.high and flow.snapped(flow.high - 0.1) == flow.high - 0.1
    table = Table((999.0, 1.0), (999.0, 1.0, 0.0), ((1.0,), (0.0, 1.0)))
    solver = sg.calibration.Calibrated(table)
    times = solver.default_grid(sde)(sde, 2).times
    assert solver.compile(sde, sg.Grid(times).on(sde)).nfe == 2


def test_ddim_is_a_table() -> None:
    sde = sg.EDMSDE()
    levels = (80.0, 5.0, 1.0, 0.1)
    rows = [[0.0] * k for k in range(1, 5)]
    for k in range(1, 5):
        r = levels[k] / levels[k - 1] if k < 4 else 0.0
        rows[k - 1][: k - 1] = [r * b for b in rows[k - 2]] if k > 1 else []
        rows[k - 1][k - 1] = 1 - r
    table = Table(levels, (*levels, 0.0), tuple(map(tuple, rows)))
    score = MIXTURE.score(sde)
    ours = sg.sample(score, sde, (8, 2), solver=sg.calibration.Calibrated(table), seed=0, execution=DOUBLE).x
    ddim = sg.sample(score, sde, (8, 2), solver="ddim", grid=levels, seed=0, execution=DOUBLE).x
    torch.testing.assert_close(ours, ddim, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
def test_consistent_rows_are_exact_for_constant_data(process: str) -> None:
    sde = PROCESSES[process]
    flow, n = a_flow(sde, 16), 4
    samples = range(16)
    exact, z = flow.trajectories(samples, 48, 24), flow.noise(samples)
    chosen = closed.levels(closed.weighted_grams(exact, z, 1.0, None), n)
    start = closed.fit_rows(flow, exact, z, 1.0, chosen, samples, True)
    fitted = Refinement(flow, z, exact.end, 1.0, samples, True).fit(start)
    for rows in (start, fitted):
        torch.testing.assert_close(rows.B[1:].sum(1), 1 - flow.inverse * rows.c[1:])

    # Data that are one point: the sample is that point, but for what is left of the noise.
    point = torch.tensor([0.7, -0.4], dtype=torch.float64)
    constant = a_flow(sde, 16, sg.from_denoiser(lambda x, t: point.expand_as(x), sde))
    x, _ = fitted.run(constant, z, samples)
    start_mean = -flow.inverse * fitted.c[-1].item() * point
    torch.testing.assert_close(x - fitted.c[-1].item() * z, (point + start_mean).expand_as(x))


@pytest.mark.parametrize("consistent", [False, True])
def test_unknowns_name_a_table_and_differences_are_its_derivatives(consistent: bool) -> None:
    flow = a_flow(sg.VPSDE(), 8)
    samples, z = range(8), a_flow(sg.VPSDE(), 8).noise(range(8))
    exact = flow.trajectories(samples, 48, 24)
    chosen = closed.levels(closed.weighted_grams(exact, z, 1.0, None), 3)

    rows = closed.fit_rows(flow, exact, z, 1.0, chosen, samples, consistent)
    unknowns = Unknowns(3, consistent, flow.inverse)
    theta = unknowns.of(rows)
    again = unknowns.rows(theta)
    for a, b in ((rows.t, again.t), (rows.c, again.c), (rows.B, again.B)):
        torch.testing.assert_close(a, b)

    fit = Refinement(flow, z, exact.end, 1.0, samples, consistent)
    J = fit._jacobian(unknowns, fit._point(unknowns, theta))
    slopes = torch.autograd.functional.jacobian(unknowns.weights_of, theta)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(unknowns.slopes_of(theta), slopes)
    for p in range(len(theta)):
        ends = []
        for h in (1e-5, -1e-5):
            moved = theta.clone()
            moved[p] += h
            ends.append(unknowns.rows(moved).run(flow, z, samples)[0])
        slope = (ends[0] - ends[1]) / 2e-5
        size = max(float(slope.square().mean().sqrt()), 1e-3)
        assert float((J[p] - slope).square().mean().sqrt()) < 0.1 * size, unknowns.entries[p]


def test_products_of_derivatives_are_kept_up_to_date() -> None:
    """By Broyden's formula, whose derivatives give the change that was seen, and products without a new one of all."""
    flow = a_flow(sg.VPSDE(), 6)
    z = flow.noise(range(6))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    fit = Refinement(flow, z, draw(6, 2), 0.7, range(6), True)
    before, after = (_Point(draw(3), draw(6, 2), draw(2, 6, 2), draw(6), draw(3)) for _ in range(2))
    w = torch.rand(6, generator=generator, dtype=torch.float64)
    J = draw(3, 6, 2)
    first = fit._products(J, before.y - fit.exact, w)
    A, g = fit._updated(J, first, first[0].diagonal(), before, after, w)
    torch.testing.assert_close(torch.tensordot(after.theta - before.theta, J, 1), after.y - before.y)
    torch.testing.assert_close((A, g), fit._products(J, after.y - fit.exact, w))


@pytest.mark.parametrize(
    "robust, bounded, right",
    [
        (False, False, [1.0, 1.0, 1.0, 1.0, 1.0]),
        (True, False, [1.0, 1.0, 1.0, 1.0, 0.2]),
        (False, True, [0.125, 1.0, 1.0, 1.0, 1.0]),
        (True, True, [0.125, 1.0, 1.0, 1.0, 0.2]),
    ],
    ids=case_id,
)
def test_noises_of_large_errors_or_derivatives_weigh_less(robust: bool, bounded: bool, right: list[float]) -> None:
    flow = a_flow(sg.VPSDE(), 5)
    z = flow.noise(range(5))
    each = torch.tensor([1.0, 1.0, 1.0, 0.25, 100.0], dtype=torch.float64)  # errors 1, 1, 1, 1/2, 10
    J = torch.ones(3, 5, z.shape[1])
    J[:, 0] = 4.0  # squares of 16 beside a median of 1

    fit = Refinement(flow, z, z, 1.0, range(5), True, robust=robust, bounded=bounded)
    torch.testing.assert_close(fit._weights(each, J), torch.tensor(right, dtype=torch.float64))


def test_a_noise_counts_for_as_many_as_it_stands_for() -> None:
    """Hard noises and others make an estimate of the mean over all that is right on average, and tells its error."""
    generator = torch.Generator().manual_seed(0)
    estimates, errors, plain = [], [], []
    for _ in range(400):
        values = torch.rand(40 + 360, generator=generator, dtype=torch.float64)
        values = 1 / (1.002 - values)  # with a tail, up to 500
        chosen, as_hard = hardest(values[:40], values[40:], 10)
        numbers = torch.cat([torch.arange(40), 40 + chosen])
        strata = Strata(numbers, torch.cat([as_hard, torch.ones(10, dtype=torch.bool)]), 40, 400)
        assert float(strata.weights.mean()) == pytest.approx(1.0)
        estimates.append(strata.mean(values[numbers]))
        errors.append(strata.stderr(values[numbers]))
        plain.append(float(values[:40].mean()))
    mean = math.log(1.002 / 0.002)
    spread = float(torch.tensor(estimates).std())
    assert float(torch.tensor(estimates).mean()) == pytest.approx(mean, abs=4 * spread / 20)
    assert spread < 0.5 * float(torch.tensor(plain).std())
    assert float(torch.tensor(errors).mean()) == pytest.approx(spread, rel=0.15)


def test_medians_over_all_noises() -> None:
    values = torch.tensor([5.0, 1.0, 2.0, 4.0, 3.0])
    assert Strata.even(range(5)).median(values) == 3.0
    rare = Strata(torch.arange(5), torch.tensor([True, False, False, True, False]), 3, 100)
    assert rare.median(values) == 2.0  # of 1, 2 and 3, for which 98 of 100 stand
    several = torch.stack([values, -values])
    torch.testing.assert_close(weighted_median(several, rare.weights), torch.tensor([2.0, -2.0]))


def test_hard_noises_count_in_a_fit_for_as_many_as_they_are() -> None:
    flow = a_flow(sg.VPSDE(), 5)
    z = flow.noise(range(5))
    weights = torch.tensor([1.5, 1.5, 1.5, 0.25, 0.25], dtype=torch.float64)
    each = torch.tensor([1.0, 4.0, 1.0, 1.0, 100.0], dtype=torch.float64)  # a median of 1
    fit = Refinement(flow, z, z, 1.0, range(5), True, weights=weights)
    right = weights * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.2], dtype=torch.float64)
    torch.testing.assert_close(fit._weights(each, torch.ones(3, 5, 2)), right)


def in_a_table(sde: sg.LinearSDE) -> sg.Score:
    """A network with an error of its own at each of 50 times."""
    off = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))

    def noise(x: Tensor, t: Tensor) -> Tensor:
        smooth = -sde.sigma(t)[:, None] * MIXTURE.score(sde)(x, t)
        return smooth + 0.2 * off[(50 * t).long().clamp(max=49)]

    return sg.from_noise(noise, sde)


@pytest.mark.parametrize("make, right", [(MIXTURE.score, 32), (in_a_table, 64)], ids=["smooth", "rough"])
def test_exact_samples_of_a_rough_network_take_more_calls(
    make: Callable[[sg.LinearSDE], sg.Score], right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sde, seeds = sg.VPSDE(), resolve_seeds(0, None, 8)
    monkeypatch.setattr(exact, "REFERENCES", (16, 32))
    monkeypatch.setattr(exact, "LONGER", (64,))
    monkeypatch.setattr(exact, "KNOWN", 1e-6)  # which none of them reaches
    flow = Flow(make(sde), sde, (2,), seeds, 8, {}, 64, torch.float32, torch.device("cpu"))
    calls, doubt, _ = references(flow, 6, 2).calls(range(6))
    assert calls == right and 0 < doubt < 0.5


def test_levels_of_a_rough_network_are_searched() -> None:
    """A search lowers the error of the noises, the same way each time; weights are fitted then, and levels stay."""
    sde = sg.VPSDE()
    samples = range(24)
    flow = a_flow(sde, 24, in_a_table(sde))
    z = flow.noise(samples)
    exact = flow.trajectories(samples, 256, 24)
    scale = float(exact.end.std())
    chosen = closed.levels(closed.weighted_grams(exact, z, scale, None), 4)
    start = closed.fit_rows(flow, exact, z, scale, chosen, samples, False)
    fit = Refinement(flow, z, exact.end, scale, samples, False, held=True)

    def error(rows: Rows) -> float:
        return float(fit.errors(rows.run(flow, z, samples)[0]).sqrt().median())

    found = rough.searched(fit, start)
    assert error(found) < 0.8 * error(start)
    assert torch.equal(found.t, rough.searched(fit, start).t)
    assert bool((found.t[:-1] - found.t[1:] > 0.02).all())

    refined = fit.fit(found)
    assert torch.equal(refined.t, found.t)
    assert not torch.equal(refined.B, found.B)
    assert error(refined) < error(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibration at 3 calls. exact samples are known")
@pytest.mark.parametrize(
    "make, reference_nfe, right",
    [(in_a_table, 64, True), (in_a_table, 512, True), (MIXTURE.score, 512, False), (MIXTURE.score, 16, False)],
    ids=["rough-64", "rough-512", "smooth-512", "smooth-16"],
)
def test_rough_networks_have_their_levels_searched(
    make: Callable[[sg.LinearSDE], sg.Score], reference_nfe: int, right: bool
) -> None:
    """Whatever the calls of exact samples: a network is rough by what is measured."""
    sde = sg.VPSDE()
    found = sg.calibrate(make(sde), sde, (16, 2), reference_nfe=reference_nfe, nfe=3, held_out=16, seed=0)
    assert any("levels searched" in one.name for one in found.errors) == right


def test_a_checkpoint_is_made_in_a_folder_that_is_there(tmp_path: Path) -> None:
    sde = sg.VPSDE()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing to make the checkpoint in"):
        sg.calibrate(MIXTURE.score(sde), sde, (8, 2), nfe=2, seed=0, checkpoint=tmp_path / "missing" / "run")
    assert not list(tmp_path.iterdir())


def test_the_fit_that_is_taken() -> None:
    """The least product of root mean square and median, among those whose mean square is within chance of the least."""
    held_out = Comparison(Strata.even(range(4)))
    far = 0.3  # what a noise that ends in another mode is off by
    errors = {
        "one noise off": [far, 1e-4, 1e-4, 1e-4],
        "another noise off": [1e-3, far, 1e-3, 1e-3],
        "all off": [far, far, far, far],
        "none off, but all coarse": [0.2, 0.2, 0.2, 0.2],
    }
    squares = {name: torch.tensor(each, dtype=torch.float64).square() for name, each in errors.items()}
    compared = [held_out.add(name, sg.Setting("ddim"), each) for name, each in squares.items()]

    order = [one.name for one in held_out.in_order(compared)]
    assert order[0] == "one noise off"
    assert order[-1] == "all off"
    assert held_out.in_order([]) == []


def test_a_fit_that_is_lost_on_a_noise_in_a_hundred_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the noises at random it is the best; the others that are held out say what it is lost on."""
    sde = sg.VPSDE()
    n, held, screened = 8, 16, 200
    flow = a_flow(sde, n + held + screened)
    found = runs_beside(references(flow, n, held, screened))
    exact = found.exact
    lost = found.held.start + held + torch.tensor([40, 150])
    off = {"dpm++2m": 1e-3, "ddim": 2e-3, "heun": 1e-2}  # from the exact sample

    def run(setting: sg.Setting, samples: range | Tensor, nfe: int) -> Tensor:
        places = torch.as_tensor(samples)
        ends = found.flow.trajectories(places, exact.nfe).end + off[setting.solver.name]
        if setting.solver.name == "dpm++2m":
            ends[torch.isin(places, lost)] += 1.0
        return ends

    monkeypatch.setattr(found, "run", run)
    held_out = Comparison(exact.of_held)
    lucky, safe, shelf = (
        found.compared(held_out, PILOT if name == "heun" else name, sg.Setting(name), 4) for name in off
    )
    at_random = Comparison(Strata.even(range(held)))
    few = [at_random.add(one.name, one.setting, held_out.squares[one][:held]) for one in (lucky, safe)]
    assert at_random.in_order(few)[0].setting is lucky.setting

    ranked = found.ranked(held_out, shelf, 4)
    assert [one.setting.solver.name for one in ranked.settings] == ["ddim", "heun", "dpm++2m"]
    assert ranked.settings[-1].rmse == pytest.approx(math.sqrt(2 / 216 / exact.variance), rel=0.05)


def test_what_is_stated_of_the_best_is_not_the_luck_of_the_best() -> None:
    """Of eight fits with the same law of errors the least is too low; the error of the choice is right on average."""
    generator = torch.Generator().manual_seed(0)
    of_choice = []
    least = []
    for _ in range(64):
        held_out = Comparison(Strata.even(range(96)))
        normal = torch.randn(8, 96, generator=generator, dtype=torch.float64)
        for name, each in enumerate((normal - 0.5).exp()):
            held_out.add(str(name), sg.Setting("ddim"), each)
        held_out.add(PILOT, sg.Setting("ddim"), torch.full((96,), 9.0, dtype=torch.float64))
        least.append(float(held_out.squares[held_out.best(lambda one: True).taken].mean()))
        of_choice.append(float(held_out.cross_fitted(held_out.by_part(lambda one: True)).mean()))

    away = [(statistics.mean(each) - 1) / (statistics.stdev(each) / 8) for each in (of_choice, least)]
    assert abs(away[0]) < 3
    assert away[1] < -5


def test_a_standard_error_has_that_of_the_unit() -> None:
    """Errors in proportion to the samples' size have a ratio that no draw changes; others add to what is not known."""
    generator = torch.Generator().manual_seed(0)
    size, other = torch.randn(2, 4000, generator=generator, dtype=torch.float64).square()
    size /= size.mean()
    held_out = Comparison(Strata.even(range(4000)), size)
    alike, apart = (held_out.add(name, sg.Setting("ddim"), each) for name, each in (("a", 4 * size), ("b", other)))
    assert alike.rmse == pytest.approx(2)
    assert alike.stderr == pytest.approx(0, abs=1e-12)
    assert apart.stderr == pytest.approx(math.sqrt((2 + 2) / 4000) / 2, rel=0.1)  # each varies by 2 around 1


@pytest.mark.parametrize(("units", "variance"), [(None, 9.0), ([1.0, 0.5], 1.0)])
def test_the_unit_is_that_of_the_noises_held_out(units: list[float] | None, variance: float) -> None:
    """Of all numbers together, or around a mean of each in units of its own; not of the noises that are fitted to."""
    ends = torch.tensor([[-1.0, 5.0], [1.0, 5.0], [-1.0, 7.0], [1.0, 7.0]], dtype=torch.float64)
    fitted = Trajectories(torch.zeros(0), ends, ends, 100 * ends)
    strata = Strata.even(range(4))
    given = None if units is None else torch.tensor(units)
    found = Exact(fitted, ends, strata, strata, 64, 0.0, 0.0, 0, given)
    assert found.variance == pytest.approx(variance + (units is None))


@pytest.mark.parametrize(("in_doubts", "surer"), [(0.5, 32), (4.9, 32), (5.1, 4), (99.0, 4), (101.0, 0)])
def test_errors_near_those_of_exact_samples_are_measured_by_surer_ones(in_doubts: float, surer: int) -> None:
    """By four times as many calls: for all noises, for the eighth of largest errors, or for none."""
    n, held = 4, 32
    found = runs_beside(references(a_flow(sg.VPSDE(), n + held), n, held, nfe=8))
    right = found.flow.trajectories(found.held, 32).end
    found.run = lambda setting, samples, nfe: right[torch.as_tensor(samples) - n] + 1e-5  # type: ignore[method-assign]
    held_out = Comparison(found.exact.of_held)
    one = found.compared(held_out, "fit", sg.Setting("ddim"), 4)
    before = held_out.squares[one]
    whole = [(one, torch.ones(held, dtype=torch.bool))]

    found.exact = replace(found.exact, doubt=one.rmse / in_doubts)
    after = found.each(held_out, whole, 4)
    unsure = torch.zeros(held, dtype=torch.bool)
    unsure[before.topk(surer).indices] = True
    torch.testing.assert_close(after[unsure], torch.full((surer,), 1e-10 / found.exact.variance, dtype=torch.float64))
    torch.testing.assert_close(after[~unsure], before[~unsure])
    assert torch.equal(found.surely_known, unsure)


def test_few_noises_that_make_the_error_are_told() -> None:
    """How many make half of the mean square, by how many each stands for; a remark says so."""
    each = torch.tensor([1.0, 8.0, 1.0, 6.0, 1.0, 1.0], dtype=torch.float64)
    assert Comparison(Strata.even(range(6))).of_few(each) == 2
    sde = sg.VPSDE()
    score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1).score(sde)
    found = sg.calibrate(score, sde, (8, 1), nfe=2, held_out=4, seed=0)
    assert any(re.match("half of the mean square error is that of .* nois", remark) for remark in found.remarks)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibration at 4 calls. exact samples are known")
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_stated_errors_are_those_of_fresh_noises_on_average(process: str) -> None:
    sde = PROCESSES[process]
    score = MIXTURE.score(sde)
    exact = sg.sample(score, sde, (8192, 2), solver="unipc3", grid="log-snr", steps=300, seed=77, t_end=sde.eps).x
    ratios = []
    for seed in range(16):
        found = sg.calibrate(score, sde, (48, 2), nfe=4, held_out=64, seed=seed)
        each = (sg.sample(score, sde, (8192, 2), solver=found, seed=77).x - exact).double().square().mean(1)
        ratios.append(found.error**2 / float(each.mean() / exact.double().var()))
    of_truth = float(each.std() / each.mean()) / math.sqrt(8192)  # the same noises for all
    error = math.hypot(statistics.stdev(ratios) / 4, of_truth)
    assert abs(statistics.mean(ratios) - 1) < 3 * error


@pytest.mark.parametrize(("calls", "known"), [(32, 80), (256, 80), (512, 40), (1024, 20), (8192, 4)])
def test_held_out_noises_are_as_many_as_their_exact_samples_are_cheap(calls: int, known: int) -> None:
    """All by 256 calls, of those with more the hardest, and at least a quarter of those at random."""
    n, held, screened = 4, 16, 80
    flow = a_flow(sg.VPSDE(), n + held + screened)
    of = references(flow, n, held, screened, calls)
    few = flow.trajectories(range(n + held + screened), 8)
    flow.trajectories = lambda places, *_: few[torch.as_tensor(places)]  # type: ignore[method-assign]
    found = runs_beside(of)
    assert len(found.exact.of_held) == len(found.exact.held) == held + known
    assert len(found.flow.seeds) - found.held.stop == screened - known
    numbers = found.flow.numbers[n:].tolist()  # of those held out: each once
    assert sorted(numbers) == list(range(n, n + held + screened))


@pytest.mark.parametrize("units", [None, [0.2, 5.0]])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_levels_are_those_of_the_least_sum(n: int, units: list[float] | None) -> None:
    """Dynamic programming against all choices; numbers of unlike scale weigh as much as each is told from its noise."""
    flow = a_flow(sg.EDMSDE(), 8)
    exact, z = flow.trajectories(range(8), 16, 7), flow.noise(range(8))
    K = len(exact.log_levels)
    u = torch.tensor(units or [1.0, 1.0])

    def cost(path: tuple[int, ...]) -> float:
        def left(target: int, *features: int) -> float:
            s = exact.log_levels[target].exp() if target < K else torch.tensor(0.0)
            root = (1 + (s * u).square()).rsqrt().to(z)
            G = closed.gram(exact.times(root), root * z)[None]
            return float(closed.residuals(G, torch.tensor([target]), torch.tensor([features]))[0])

        total = left(path[0], 2 * K + 1)
        for m in range(1, len(path)):
            before = [path[m - 2] + K] if m > 1 else []
            total += left(path[m], path[m - 1], path[m - 1] + K, *before)
        before = [path[-2] + K] if len(path) > 1 else []
        return total + left(2 * K, path[-1], path[-1] + K, *before)

    paths = [tuple(p.tolist()) for p in torch.combinations(torch.arange(K), n)]
    best = min(map(cost, paths))
    G = closed.weighted_grams(exact, z, 1.0, None if units is None else u)
    assert cost(tuple(closed.levels(G, n))) == pytest.approx(best, rel=1e-6)


# --- calibrate -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated() -> sg.calibration.Calibrations:
    """On VP."""
    sde = sg.VPSDE()
    return sg.calibrate(MIXTURE.score(sde), sde, (32, 2), nfe=(4, 5), held_out=32, seed=0)


def test_the_error_is_that_of_samples(calibrated: sg.calibration.Calibrations) -> None:
    sde = sg.VPSDE()
    score = MIXTURE.score(sde)
    for nfe, found in calibrated.items():
        assert found.is_fitted and found.nfe == nfe and found.error < 0.5 * found.off_the_shelf.rmse

        # On noises of another seed, against another reference.
        exact = sg.sample(score, sde, (400, 2), solver="unipc3", grid="log-snr", steps=300, seed=77, t_end=sde.eps).x
        ours = sg.sample(score, sde, (400, 2), solver=found, seed=77)
        assert ours.nfe == nfe
        error = float((ours.x - exact).square().mean().sqrt() / exact.std())
        shelf = sg.sample(score, sde, (400, 2), solver=found.off_the_shelf.setting, nfe=nfe, seed=77).x
        assert error < 0.7 * float((shelf - exact).square().mean().sqrt() / exact.std())
        assert f"at {nfe} calls" in str(found) and found.network_evals > 0


@pytest.mark.slow
def test_of_many_noises_some_are_fitted_to_and_the_others_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    """In few dimensions; the remark says so, and the fit is that of so many noises."""
    sde = sg.VPSDE()
    score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3).score(sde)
    monkeypatch.setattr(search, "MOST_IN_FEW", 16)

    def fitted(n: int) -> sg.Calibration:
        return sg.calibrate(score, sde, (n, 1), nfe=2, held_out=16, reference_nfe=32, seed=0)

    some, many, most = fitted(16), fitted(40), fitted(1000)
    assert not any("fitted to" in remark for remark in some.remarks)
    assert "16 of 40 noises were fitted to, and the hardest of the others" in many.remarks
    assert many.error == pytest.approx(some.error, rel=1e-6)
    assert many.protocol == some.protocol
    assert most.protocol["screened_noises"] == 1000 - 16


@pytest.mark.slow
def test_rare_noises_that_make_the_error_are_found() -> None:
    """One sample in 200 lies far out and is most of the error: it is in what is fitted to, and in what is measured."""
    sde = sg.VPSDE()
    means = torch.tensor([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0]])
    score = sg.oracles.GaussianMixture(means, 1.0, [0.995, 0.005]).score(sde)
    found = sg.calibrate(score, sde, (48, 3), nfe=5, held_out=96, seed=0)
    assert (found.protocol["hard_noises"], found.protocol["screened_held_out"]) == (12, 96 * 16)
    assert "on 96 held-out noises and 1536 more, whose exact samples" in str(found)

    exact = sg.sample(score, sde, (4000, 3), solver="unipc3", grid="log-snr", steps=200, seed=77, t_end=sde.eps).x
    errors = [
        float((sg.sample(score, sde, (4000, 3), solver=setting, nfe=5, seed=77).x - exact).square().mean().sqrt())
        for setting in (found, found.off_the_shelf.setting)
    ]
    assert errors[0] < 0.3 * errors[1]
    assert errors[0] / float(exact.std()) == pytest.approx(found.error, rel=0.5)
    assert found.errors[0].stderr < 0.3 * found.error  # eight samples of 1632 are far out


@pytest.mark.slow
def test_calibration_under_autocast() -> None:
    """The network alone computes in half precision: the products of the fit lost three digits there."""
    sde = sg.VPSDE()

    def weights() -> list[float]:
        fitted = sg.calibrate(MIXTURE.score(sde), sde, (8, 2), nfe=2, held_out=4, seed=0)
        return [*fitted.solver.table.scales, *fitted.solver.table.weights[-1]]

    with torch.autocast("cpu", torch.bfloat16):
        found = weights()
    assert found == pytest.approx(weights(), rel=1e-9)


@pytest.mark.parametrize("process", ["flow", *some_slow(["ddpm", "edm", "ve"])])
def test_every_linear_process(process: str) -> None:
    sde = PROCESSES[process]
    found = sg.calibrate(MIXTURE.score(sde), sde, (32, 2), nfe=3, held_out=32, seed=1)
    assert found.error < 0.8 * found.off_the_shelf.rmse
    assert sg.sample(MIXTURE.score(sde), sde, (4, 2), solver=found, seed=2).nfe == 3


def test_a_first_call_at_the_end_of_a_table() -> None:
    """A capped cosine table knows no level above its last, not even by rounding; trajectories begin there."""
    t = torch.arange(1001, dtype=torch.float64) / 1000
    bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    table = sg.DiscreteVPSDE((1 - bar[1:] / bar[:-1]).clamp(max=0.999))
    flow = a_flow(table, 4)
    exact = flow.trajectories(range(4), 32, 9)
    assert float(exact.log_levels[0]) == flow.high
    estimate = flow.data(exact.y[:1], [flow.high + 1e-8], range(4))
    torch.testing.assert_close(estimate[0], exact.D[0])


def test_reproducible_by_seed_and_the_same_in_other_batches() -> None:
    sde = sg.VPSDE()
    first, again, other = (
        sg.calibrate(MIXTURE.score(sde), sde, (24, 2), nfe=2, held_out=24, seed=0, **options)
        for options in ({}, {}, {"batch_size": 25})
    )
    one, same = first.solver, again.solver
    assert isinstance(one, sg.calibration.Calibrated) and isinstance(same, sg.calibration.Calibrated)
    assert same.table.levels == pytest.approx(one.table.levels, rel=1e-6)
    assert again.error == pytest.approx(first.error, rel=1e-4)
    assert other.error == pytest.approx(first.error, rel=0.05)


def test_json_round_trip(calibrated: sg.calibration.Calibrations, tmp_path: Path) -> None:
    calibrated.save(tmp_path / "all.json")
    again = sg.calibration.load_calibration(tmp_path / "all.json")
    assert isinstance(again, sg.calibration.Calibrations) and list(again) == [4, 5]
    for nfe, found in again.items():
        assert (
            found == calibrated[nfe] and str(found) == str(calibrated[nfe]) and found.errors == calibrated[nfe].errors
        )

    calibrated[4].save(tmp_path / "one.json")
    assert sg.calibration.load_calibration(tmp_path / "one.json") == calibrated[4]


def test_what_is_off_the_shelf_is_kept_too(tmp_path: Path) -> None:
    for k, setting in enumerate(default_candidates()):
        found = sg.Calibration([HeldOut("off the shelf", setting, 0.1, 0.01, 0.1, math.inf)], 10)
        found.save(tmp_path / f"{k}.json")
        again = sg.calibration.load_calibration(tmp_path / f"{k}.json")
        assert isinstance(again, sg.Calibration)
        assert (again.solver, again.grid) == (setting.solver, setting.grid) and again.errors == found.errors


def test_where_nothing_is_off_nothing_is_better(calibrated: sg.calibration.Calibrations) -> None:
    """Of data at a point, of which every setting makes the exact samples."""
    errors = [replace(one, rmse=0.0, stderr=0.0, median=0.0, worst=0.0) for one in calibrated[4].errors]
    found = sg.Calibration(errors, 4)
    assert found.is_fitted
    assert "as off the shelf, where nothing is off" in str(found)


def test_files_that_are_none(calibrated: sg.calibration.Calibrations, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    calibrated.save(path)
    whole = json.loads(path.read_text())

    def refused(contents: Any, words: str) -> None:
        path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
        with pytest.raises(ValueError, match=words):
            sg.calibration.load_calibration(path)

    refused("{", "holds no calibration")
    refused({"format": "another"}, "format")
    refused({**whole, "budgets": []}, "no budget")
    refused({**whole, "budgets": [{"nfe": 4}]}, "calibration")
    damaged = json.loads(json.dumps(whole))
    damaged["budgets"][0]["nfe"] = 7
    refused(damaged, "makes 4 network calls, got nfe=7")
    damaged["budgets"][0]["nfe"] = 4
    damaged["budgets"][0]["errors"] = damaged["budgets"][0]["errors"][:1]
    refused(damaged, "must have a setting 'off the shelf'")

    damaged = json.loads(json.dumps(whole))
    damaged["budgets"][0]["errors"][0]["solver"]["table"]["levels"][0] = 0.0
    refused(damaged, "levels")
    damaged["budgets"][0]["errors"][0]["solver"] = {"class": "Path", "x": 1}
    refused(damaged, "unknown class")
    with pytest.raises(OSError, match="cannot read"):
        sg.calibration.load_calibration(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("", IsADirectoryError, "is a folder: name a file"),
        ("none/table.json", FileNotFoundError, "there is no folder .*none to write table.json in"),
        (3, TypeError, "the path of a file or folder is needed, got 3"),
    ],
)
def test_where_nothing_can_be_written(
    place: Any, error: type[Exception], words: str, calibrated: sg.calibration.Calibrations, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        calibrated.save(tmp_path / place if isinstance(place, str) else place)


def test_other_uses_are_refused(calibrated: sg.calibration.Calibrations) -> None:
    sde, found = sg.VPSDE(), calibrated[4]
    score = MIXTURE.score(sde)
    with pytest.raises(ValueError, match="leave grid= out"):
        sg.sample(score, sde, (4, 2), solver=found.solver, grid="karras", nfe=4, seed=0)

    assert sg.sample(score, sg.VPSDE(), (4, 2), solver=found, seed=0, nfe=4).nfe == 4

    with pytest.raises(TypeError, match="LinearSDE"):
        sg.calibrate(score, sg.CLD(), (8, 2), nfe=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"nfe": 5}, "fitted for nfe=4"),
        ({"steps": 3}, "fitted for 4 steps"),
        ({"t_end": 0.1}, "end at eps"),
        ({"t_start": 0.5}, "noise at T"),
        ({"grid": "karras"}, "its own grid"),
    ],
    ids=case_id,
)
def test_other_runs_are_refused(
    calibrated: sg.calibration.Calibrations, options: dict[str, object], words: str
) -> None:
    sde, found = sg.VPSDE(), calibrated[4]
    score = MIXTURE.score(sde)

    with pytest.raises(ValueError, match=words):
        sg.sample(score, sde, (4, 2), solver=found, seed=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [sg.VPSDE(beta_max=10.0), sg.EDMSDE()], ids=case_id)
def test_other_processes_are_refused(calibrated: sg.calibration.Calibrations, other: sg.SDE) -> None:
    with pytest.raises(ValueError, match="another process"):
        sg.sample(MIXTURE.score(other), other, (4, 2), solver=calibrated[4], seed=0)


@pytest.mark.parametrize(
    "shape, options, error, words",
    [
        ((1, 2), {}, ValueError, "at least 2 noises"),
        ((8, 2), {"held_out": 1}, ValueError, "held_out"),
        ((8, 2), {"nfe": 0}, ValueError, "nfe"),
        ((8, 2), {"time_limit": -1.0}, ValueError, "time_limit"),
        ((8, 2), {"nfe": 49}, ValueError, "nfe must be 48 at most, .* got 49"),
        ((8, 2), {"nfe": (4, 60)}, ValueError, "nfe must be 48 at most, .* got 60"),
        ((8, 2), {"dtype": "float32"}, TypeError, "dtype must be a floating-point torch.dtype, got 'float32'"),
        ((8, 2), {"reference_nfe": 2}, ValueError, "reference_nfe"),
        ((8, 2), {"batch_size": 0}, ValueError, "batch"),
        ((8, 2), {"seed": [1, 2]}, TypeError, r"seed must be an int, got \[1, 2\]"),
        ((8, 2), {"seed": -1}, ValueError, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ((8, 2), {"device": "meta"}, ValueError, "on the device meta have no numbers"),
    ],
    ids=case_id,
)
def test_arguments_of_calibrate_are_checked(
    shape: tuple[int, ...], options: dict[str, object], error: type[Exception], words: str
) -> None:
    sde = sg.VPSDE()
    with pytest.raises(error, match=words):
        sg.calibrate(MIXTURE.score(sde), sde, shape, **{"nfe": 4, "seed": 0, **options})  # type: ignore[call-overload]


@pytest.mark.parametrize(("above", "failed"), [(-math.inf, "8 of 8"), (1.5, "2 of 8")])
def test_networks_that_are_not_finite_are_said_to_be(above: float, failed: str) -> None:
    sde = sg.VPSDE()
    score = sg.from_noise(lambda x, t: torch.where(x.abs() > above, math.nan, x), sde)
    with pytest.raises(ValueError, match=f"{failed} exact trajectories by .* are not finite; .* does not predict what"):
        sg.calibrate(score, sde, (8, 2), nfe=4, seed=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (((1.0, 2.0), (1.0, 2.0, 0.0), ((1.0,), (0.0, 1.0))), "decrease"),
        (((2.0, 1.0), (2.0, 1.0), ((1.0,), (0.0, 1.0))), "scales"),
        (((2.0, 1.0), (2.0, 1.0, 0.0), ((1.0,), (1.0,))), "rows"),
        (((2.0, 1.0), (2.0, -1.0, 0.0), ((1.0,), (0.0, 1.0))), "positive"),
        (((2.0, 1.0), (2.0, 1.0, math.nan), ((1.0,), (0.0, 1.0))), "finite"),
    ],
)
def test_tables_that_are_none(values: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Table(*values)


class Denoiser(nn.Module):
    """Of Gaussian data, with a label that shifts their mean."""

    NULL_LABEL = 3

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0], [0.0, 0.0]]))

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        s2 = sigma[:, None] ** 2
        return self.means[y] + (0.1 * (x - self.means[y]) + 0.03 * torch.sin(2 * x)) / (0.1 + s2)


def test_a_network_with_labels_guided_and_another_network() -> None:
    sde, net = sg.EDMSDE(), Denoiser()
    score = sg.from_denoiser(net, sde)
    guided = sg.guidance.ClassifierFree(score, 2.0, null={"y": 3})
    labels = torch.arange(24) % 3
    found = sg.calibrate(guided, sde, (24, 2), nfe=4, held_out=36, seed=0, model_kwargs={"y": labels})
    assert found.error < 0.5 * found.off_the_shelf.rmse

    kwargs = {"y": torch.tensor([0, 1])}
    assert sg.sample(guided, sde, (2, 2), solver=found, seed=0, model_kwargs=kwargs).nfe == 4
    other = sg.guidance.ClassifierFree(score, 4.0, null={"y": 3})
    with pytest.warns(sg.calibration.CalibrationWarning, match="another guidance"):
        sg.sample(other, sde, (2, 2), solver=found, seed=0, model_kwargs=kwargs)

    trained = Denoiser()
    with torch.no_grad():
        trained.means[0] += 0.1
    again = sg.guidance.ClassifierFree(sg.from_denoiser(trained, sde), 2.0, null={"y": 3})
    with pytest.warns(sg.calibration.CalibrationWarning, match="other weights"):
        sg.sample(again, sde, (2, 2), solver=found, seed=0, model_kwargs=kwargs)


def of_digits(solver: sg.Setting | str, **options: int) -> Tensor:
    """Digits of sixty noises."""
    model = sg.load_model("digits")
    kwargs = {"y": torch.arange(60) % 10}
    return sg.sample(model.score, model.sde, (60, 1, 8, 8), solver=solver, seed=5, model_kwargs=kwargs, **options).x


@pytest.fixture(scope="module")
def exact_digits() -> Tensor:
    return of_digits("unipc3", steps=60)


@pytest.mark.parametrize("nfe", [4, 6, 8])
def test_solvers_that_ship(exact_digits: Tensor, nfe: int) -> None:
    """They fit their network, and are better than what is off the shelf on noises of another seed."""
    found = sg.load_model("digits").solver(nfe)
    settings = (found, found.off_the_shelf.setting)
    ours, off_the_shelf = (float((of_digits(s, nfe=nfe) - exact_digits).square().mean().sqrt()) for s in settings)
    assert found.is_fitted and ours < 0.8 * off_the_shelf


def test_budgets_without_a_solver_that_ships() -> None:
    model = sg.load_model("digits")
    with pytest.raises(ValueError, match="calibrated solvers for 4, 5, 6, 8, 10 and 12"):
        model.solver(7)
    with pytest.raises(ValueError, match="find one with calibrate"):
        sg.models.Model("mine", model.score, model.sde, (1, 8, 8)).solver(4)


def test_a_solver_that_ships_for_clothes_on_other_noises() -> None:
    """Nothing is warned of: they are for the network and the process that ship, at every budget."""
    model = sg.load_model("fashion")
    kwargs = {"y": torch.arange(4)}

    def run(setting: sg.Setting | str, nfe: int) -> Tensor:
        return sg.sample(model.score, model.sde, (4, 1, 28, 28), solver=setting, nfe=nfe, seed=5, model_kwargs=kwargs).x

    exact = run("unipc3", 32)
    six = model.solver(6)
    errors = [float((run(setting, 6) - exact).square().mean()) for setting in (six, six.off_the_shelf.setting)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("nfe", [4, 5, 6, 8, 10, 12])
def test_solvers_that_ship_for_clothes(nfe: int) -> None:
    """Nothing is warned of: they are for the network and the process that ship, at every budget."""
    model = sg.load_model("fashion")

    found = model.solver(nfe)
    assert found.is_fitted and found.nfe == nfe
    assert found.error < 0.75 * found.off_the_shelf.rmse  # on its held-out noises


def test_an_interrupted_call_goes_on(tmp_path: Path) -> None:
    sde = sg.VPSDE()
    calls = 0

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return MIXTURE.score(sde)(x, t)

    score = sg.from_score(net, sde)
    options: dict[str, Any] = {"held_out": 16, "seed": 0, "checkpoint": tmp_path / "run"}
    first = sg.calibrate(score, sde, (16, 2), nfe=2, **options)

    calls = 0
    both = sg.calibrate(score, sde, (16, 2), nfe=(2, 3), **options)
    assert both[2] == first and both[3].is_fitted and calls > 0
    before, calls = calls, 0
    assert sg.calibrate(score, sde, (16, 2), nfe=(2, 3), **options) == both and calls == 0 and before > 0
    with pytest.raises(ValueError, match="made with other settings"):
        sg.calibrate(score, sde, (16, 2), nfe=2, **{**options, "seed": 1})


class Ended(Exception):
    """What ends a call in the middle."""


@pytest.mark.slow
def test_a_fit_ended_in_the_middle_goes_on_with_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sde = sg.VPSDE()
    calls, ends = 0, False

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if ends and any(tmp_path.rglob("*bounded*")):
            raise Ended
        return MIXTURE.score(sde)(x, t)

    score = sg.from_score(net, sde)
    options: dict[str, Any] = {"nfe": 2, "held_out": 32, "seed": 0}
    whole, needed = sg.calibrate(score, sde, (32, 2), **options), calls
    ends = True
    with pytest.raises(Ended), monkeypatch.context() as patch:
        patch.setattr(search.time, "monotonic", itertools.count(step=1000.0).__next__)  # each part takes a while
        sg.calibrate(score, sde, (32, 2), checkpoint=tmp_path, **options)

    calls, ends = 0, False
    resumed = sg.calibrate(score, sde, (32, 2), checkpoint=tmp_path, **options)
    assert calls < needed and resumed.network_evals == whole.network_evals
    assert resumed.seconds > 1000 > whole.seconds  # what was done before counts
    assert isinstance(resumed.solver, sg.calibration.Calibrated) and isinstance(whole.solver, sg.calibration.Calibrated)
    assert resumed.solver.table.levels == pytest.approx(whole.solver.table.levels, rel=1e-6)
    assert resumed.error == pytest.approx(whole.error, rel=1e-6)


@pytest.mark.parametrize(
    ("doubt", "said"), [(0.01, "on the noises of the fit the median is"), (0.05, "exact samples are")]
)
def test_what_a_fit_lacks_is_named(doubt: float, said: str) -> None:
    """More noises, where its error is larger on others; surer exact samples, where these have errors like its own."""
    noises = Strata.even(range(1024))
    ends = torch.zeros(1024, 1)
    of = Exact(Trajectories(torch.zeros(0), ends, ends, ends), ends, noises, noises, 64, doubt, 0.0, 0)
    runs = HeldOutRuns(a_flow(sg.VPSDE(), 8), of, torch.float32)
    taken = HeldOut("refined", sg.Setting("ddim"), 0.1, 0.01, 0.1, 0.1)
    (remark,) = remarks_on(Ranked([taken], [], 100), runs, 0.02, is_late=False)
    assert remark.startswith(said)


def test_a_time_limit_ends_a_fit() -> None:
    sde = sg.VPSDE()
    found = sg.calibrate(MIXTURE.score(sde), sde, (16, 2), nfe=6, held_out=16, seed=0, time_limit=1e-3)
    assert any("time limit" in remark for remark in found.remarks)
    assert found.error <= found.off_the_shelf.rmse


def test_in_the_place_of_other_solvers(calibrated: sg.calibration.Calibrations) -> None:
    sde, found = sg.VPSDE(), calibrated[5]
    score = MIXTURE.score(sde)
    corrected = sg.PredictorCorrector(found.solver, sg.Langevin(0.05))
    by_default = sg.sample(score, sde, (4, 2), solver=corrected, seed=0)
    assert by_default.status.ok and (len(by_default.times), by_default.nfe, corrected.budget) == (6, 10, 10)
    torch.testing.assert_close(sg.sample(score, sde, (4, 2), solver=corrected, steps=5, seed=0).x, by_default.x)
    with pytest.raises(TypeError, match=r"got a Calibration: give its solver, found\.solver"):
        sg.PredictorCorrector(found, sg.Langevin(0.05))  # type: ignore[arg-type]

    kept = sg.sample(score, sde, (4, 2), solver=found, seed=0, record=sg.Record(trajectory="all"))
    assert kept.trajectory is not None and len(kept.trajectory) == 6
    torch.testing.assert_close(kept.trajectory[-1], kept.x)


def test_as_a_scheduler() -> None:
    config = {"beta_schedule": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon"}

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) / (1 + 1e-4 * t.reshape(-1, 1))

    score, sde = sg.adapters.from_diffusers(net, config)
    setting = sg.Setting(sg.calibration.Calibrated(a_table(sde), process_of(sde)))
    found = sg.Calibration([HeldOut("off the shelf", setting, 0.1, 0.01, 0.1, math.inf)], 4)
    scheduler = sg.adapters.SolverScheduler(config, found)
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 4
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    x = z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t), t, x).prev_sample
    start = sg.Grid(found.solver.compile(sde, found.solver.default_grid(sde)(sde, 4)).times)
    there = sg.sample(score, sde, x_T=z * scheduler.init_noise_sigma, solver=found.solver, grid=start, seed=0).x
    torch.testing.assert_close(x, there, rtol=1e-4, atol=1e-4)


# --- the command line ------------------------------------------------------------------------------------------------


def test_calibrated_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.json"
    argv = ["calibrate", "--model", "digits", "--nfe", "2,3", "-n", "24", "--held-out", "24", "--device", "cpu"]
    assert main([*argv, "--out", str(table), "--quiet"]) == 0
    assert "at 3 calls: error" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    found = sg.calibration.load_calibration(table)
    assert isinstance(found, sg.calibration.Calibrations) and found[3].error < found[3].off_the_shelf.rmse

    argv = ["sample", "--model", "digits", "-n", "4", "--solver", str(table), "--device", "cpu", "--quiet"]
    assert main([*argv, "--nfe", "3", "--out", str(tmp_path / "run")]) == 0
    drawn = load(tmp_path / "run")["x"]
    model = sg.load_model("digits")
    labels = {"y": torch.arange(4)}
    pairs = [(0, i) for i in range(4)]
    there = sg.sample(model.score, model.sde, (4, 1, 8, 8), solver=found[3], seed=pairs, model_kwargs=labels).x
    torch.testing.assert_close(drawn, there)
    with pytest.raises(SystemExit):
        main([*argv, "--out", str(tmp_path / "other")])
    assert "calibrated solvers for 2 and 3 network calls" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, "--nfe", "9", "--out", str(tmp_path / "other")])
    assert "calibrated solvers for 2 and 3 network calls" in capsys.readouterr().err

    argv = ["bench", "--model", "digits", "--solvers", f"ddim,{table}", "--nfe", "3,4", "-n", "20", "--metrics", "sw"]
    assert main([*argv, "--out", str(tmp_path / "bench"), "--device", "cpu", "--quiet"]) == 0
    rows = json.loads((tmp_path / "bench" / "results.json").read_text())["rows"]
    by = {(row["solver"], row["budget"]): row for row in rows}
    assert by["table", 3]["nfe"] == 3 and by["table", 3]["metrics"] and by["ddim", 4]["metrics"]
    assert "calibrated solvers for 2 and 3 network calls" in by["table", 4]["note"]


def test_a_pilot_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its choice as a file, which `sample` and `bench` take as those of calibrations; a file of neither is refused."""
    file = tmp_path / "best.json"
    argv = ["pilot", "--model", "digits", "--nfe", "3,5", "-n", "8", "--reference-nfe", "32", "--device", "cpu"]
    assert main([*argv, "--out", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "at 3 calls, reference known to" in shown and f"--solver {file} --nfe 3" in shown
    model = sg.load_model("digits")
    labels = {"y": sg.PerSample(torch.arange(8))}
    found = sg.pilot(model.score, model.sde, (8, 1, 8, 8), nfe=[3, 5], reference_nfe=32, seed=0, model_kwargs=labels)
    known = load_settings(file)
    assert {nfe: (one.solver, one.grid, one.budget) for nfe, one in known.items()} == {
        nfe: (one.solver, one.grid, nfe) for nfe, one in found.items()
    }

    argv = ["sample", "--model", "digits", "-n", "4", "--solver", str(file), "--device", "cpu", "--quiet"]
    assert main([*argv, "--nfe", "5", "--out", str(tmp_path / "run")]) == 0
    pairs = [(0, i) for i in range(4)]
    there = sg.sample(
        model.score, model.sde, (4, 1, 8, 8), solver=found[5], seed=pairs, model_kwargs={"y": torch.arange(4)}
    )
    torch.testing.assert_close(load(tmp_path / "run")["x"], there.x)
    argv = ["bench", "--model", "digits", "--solvers", str(file), "--nfe", "3,4", "-n", "20", "--metrics", "sw"]
    assert main([*argv, "--out", str(tmp_path / "bench"), "--device", "cpu", "--quiet"]) == 0
    rows = json.loads((tmp_path / "bench" / "results.json").read_text())["rows"]
    assert [row["nfe"] for row in rows if row["metrics"]] == [3]
    assert any("there are settings for 3 and 5 network calls: got nfe=4" in (row.get("note") or "") for row in rows)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"format": "sgm_sde settings 1", "budgets": []}, "holds no settings: it has no budget"),
        ({"format": "sgm_sde settings 1", "budgets": [{"nfe": 4}]}, "holds no settings: it has no 'solver'"),
        ({"format": "sgm_sde settings 2", "budgets": []}, "holds no calibration: its format is not"),
    ],
    ids=["empty", "no-solver", "format"],
)
def test_files_of_no_settings(contents: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    file.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=words):
        load_settings(file)


@pytest.mark.parametrize(
    ("out", "shown"),
    [
        ("table", "must end in .json"),
        ("folder.json", "is a folder"),
        ("there.json", "there.json is there already: name another file, or delete that one"),
        ("nowhere/table.json", "there is no folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, shown: str
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "there.json").write_text("a table")
    with pytest.raises(SystemExit):
        main(["calibrate", "--model", "digits", "--nfe", "4", "--out", str(tmp_path / out)])
    assert shown in capsys.readouterr().err
    assert (tmp_path / "there.json").read_text() == "a table"


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("--threads", "0", "threads must be an integer of at least 1, got 0"),
        ("-n", "1", "--n must be an integer of at least 2, got 1"),
        ("--batch", "0", "--batch must be an integer of at least 1, got 0"),
        ("--labels", "12", "the classes 0 to 9, got label 12"),
    ],
)
def test_a_wrong_option_is_named_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, shown: str
) -> None:
    argv = ["calibrate", "--model", "digits", "--nfe", "4", "--out", str(tmp_path / "table.json"), option, value]
    with pytest.raises(SystemExit):
        main(argv)
    assert shown in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_command_goes_on_from_its_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [
        "calibrate",
        "--model",
        "digits",
        "--nfe",
        "2,3",
        "-n",
        "8",
        "--held-out",
        "8",
        "--device",
        "cpu",
        "--quiet",
    ]
    argv = [*argv, "--out", str(tmp_path / "table.json")]
    budget = search._Search.budget

    def interrupted(self: search._Search, n: int, *rest: Any) -> sg.Calibration:
        if n == 3:
            raise KeyboardInterrupt
        return budget(self, n, *rest)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(search._Search, "budget", interrupted)
        main(argv)
    assert f"kept in {tmp_path / 'table.parts'}" in capsys.readouterr().err

    done: list[int] = []
    monkeypatch.setattr(search._Search, "budget", lambda self, n, *rest: done.append(n) or budget(self, n, *rest))
    assert main(argv) == 0
    assert done == [3] and not (tmp_path / "table.parts").exists()


def test_the_command_says_once_that_a_table_is_for_another_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.json"
    argv = ["--model", "digits", "-n", "8", "--device", "cpu", "--quiet"]
    assert main(["calibrate", *argv, "--nfe", "2", "--held-out", "8", "--guidance", "2", "--out", str(table)]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        argv = ["sample", *argv, "--batch", "2", "--nfe", "2", "--solver", str(table), "--out", str(tmp_path / "run")]
        assert main(argv) == 0
    err = capsys.readouterr().err
    assert err.count("sgm-sde: warning: calibrated2 is used on another guidance") == 1 and "sys.exit" not in err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.resolution.UnresolvedWarning")  # in the common scale
def test_numbers_of_unlike_scale_are_measured_by_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modes at +-8 and two at +-.03: by their common standard deviation the small number would not count."""
    sde = sg.EDMSDE(sigma_min=0.001, sigma_max=80.0)
    scale = torch.tensor([8.0, 0.03])

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        y = x / scale
        s2 = (sigma[:, None] / scale).square()
        v = s2 + 0.09
        return scale * (0.09 * y + s2 * (y / v).tanh()) / v

    score = sg.from_denoiser(denoised, sde)
    exact = sg.sample(score, sde, (500, 2), solver="unipc3", grid="log-snr", steps=200, seed=9).x

    def errors(unlike: bool) -> Tensor:
        found = sg.calibrate(score, sde, (64, 2), nfe=4, held_out=32, seed=0)
        assert any("unlike scale" in remark for remark in found.remarks) == unlike
        x = sg.sample(score, sde, (500, 2), solver=found, seed=9).x
        return ((x - exact) / exact.std(0)).square().mean(0).sqrt()

    own = errors(unlike=True)
    monkeypatch.setattr(Flow, "units_of", lambda flow, ends: None)
    common = errors(unlike=False)
    assert float(own.max()) < 0.1 < 0.2 < float(common[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.resolution.UnresolvedWarning")  # in the common scale
@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.RectifiedFlowSDE()], ids=["vp", "edm", "flow"])
def test_numbers_from_a_hundredth_to_a_hundred(sde: sg.LinearSDE) -> None:
    """Of six numbers none is left behind, by its own standard deviation, and errors are as stated."""
    scale = torch.logspace(-2, 2, 6)
    means = torch.randn(6, 6, generator=torch.Generator().manual_seed(5)) * scale
    score = sg.oracles.GaussianMixture(means, (0.3 * scale).expand(6, 6)).score(sde)
    found = sg.calibrate(score, sde, (128, 6), nfe=(4, 6, 8), seed=0)
    x_T = sde.prior_sample((1024, 6), seed=9)
    exact = sg.sample(score, sde, x_T=x_T, solver="unipc3", grid="log-snr", steps=300).x

    def squares(setting: Any, nfe: int) -> Tensor:
        x = sg.sample(score, sde, x_T=x_T, solver=setting, nfe=nfe).x
        return ((x - exact) / exact.std(0)).square()

    for nfe, one in found.items():
        ours = squares(one, nfe)
        each = ours.mean(1)
        error = float(each.mean().sqrt())
        stderr = float(each.std()) / 32 / (2 * error)
        assert abs(error - one.error) < 4 * math.hypot(stderr, one.errors[0].stderr)
        assert error < float(squares(one.off_the_shelf.setting, nfe).mean().sqrt())
        assert float(ours.mean(0).sqrt().max()) < 3 * one.error


@pytest.mark.parametrize("as_oracle", [True, False], ids=["oracle", "function"])
def test_networks_without_a_module_are_known_by_their_tensors(as_oracle: bool) -> None:
    sde = sg.VPSDE()

    def score(mean: float) -> sg.scores.Score:
        means = torch.tensor([[-mean], [mean]])
        if as_oracle:
            return sg.oracles.GaussianMixture(means, 0.3).score(sde)
        return sg.from_noise(lambda x, t: x - means.mean() + 0 * t[:, None], sde)

    solver = sg.calibration.Calibrated(DDIM_IN_ONE, process_of(sde), network_of(score(1.0)))
    sg.sample(score(1.0), sde, (4, 1), solver=solver, seed=0)
    with pytest.warns(sg.calibration.CalibrationWarning, match="a network of other weights"):
        sg.sample(score(2.0), sde, (4, 1), solver=solver, seed=0)


def test_another_network_is_told_once() -> None:
    """Of a run in parts."""
    sde = sg.VPSDE()
    fitted, other = (sg.oracles.GaussianMixture(torch.tensor([[-m], [m]]), 0.3).score(sde) for m in (1.0, 2.0))
    solver = sg.calibration.Calibrated(DDIM_IN_ONE, process_of(sde), network_of(fitted))
    with pytest.warns(sg.calibration.CalibrationWarning) as told:
        sg.sample(other, sde, (4, 1), solver=solver, seed=0, execution=sg.Execution(batch_size=1))
    assert len(told) == 1
    assert not solver.has_hooks


def test_a_grid_beside_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bring their own grids.*leave @karras out"):
        bench("digits", tmp_path, solvers=["table.json@karras"], nfe=[4], n=20)


def test_levels_of_what_is_off_the_shelf() -> None:
    sde = sg.VPSDE()
    flow = a_flow(sde, 8)
    t = torch.linspace(flow.high, flow.low, 48, dtype=torch.float64)
    for setting, times in (
        (sg.Setting("dpm++2m", "log-snr"), sg.grids.rule("log-snr")(sde, 4).times),  # four steps, and a call to denoise
        (sg.Setting("heun", "log-snr"), None),  # two calls at the same level
    ):
        levels = fits.levels_of([setting], 5, sde, t)
        if times is None:
            assert levels == []
            continue
        exact = [-float(sde.log_snr(torch.tensor(time, dtype=torch.float64))) / 2 for time in times]
        assert [float(t[k]) for k in levels[0]] == pytest.approx(exact, abs=float(t[0] - t[1]) / 2 + 1e-9)


def test_fits_from_the_levels_of_what_is_off_the_shelf(calibrated: sg.calibration.Calibrations) -> None:
    names = {one.name for found in calibrated.values() for one in found.errors}
    assert {fits.FITS[name].words for name in ("shelf", "free-shelf", "direct-shelf")} <= names


@pytest.mark.parametrize("dtype, change", [(torch.float32, 0.01), (torch.bfloat16, 13 / 128)], ids=case_id)
def test_differences_are_larger_than_the_rounding_of_the_network(dtype: torch.dtype, change: float) -> None:
    sde = sg.VPSDE()
    net = Linear().to(dtype)
    seeds = resolve_seeds(0, None, 4)
    score = sg.from_noise(net, sde, dtype=dtype)
    flow = Flow(score, sde, (2,), seeds, 4, {}, 4, torch.float32, torch.device("cpu"))
    z = flow.noise(range(4))
    assert Refinement(flow, z, z, 1.0, range(4), True).change == pytest.approx(change)


def test_too_few_noises_are_said_to_be() -> None:
    sde = sg.VPSDE()
    found = sg.calibrate(MIXTURE.score(sde), sde, (4, 2), nfe=4, held_out=64, seed=0)
    assert found.is_fitted and any("more of them would help" in remark for remark in found.remarks)


class Linear(nn.Module):
    """A network that knows no time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The output."""
        out: Tensor = self.linear(x)
        return out


def test_the_network_of_a_stored_fit_is_named_by_what_differs(tmp_path: Path) -> None:
    sde = sg.VPSDE()
    scores = [sg.from_noise(Linear(), sde) for _ in range(2)]
    sg.calibrate(scores[0], sde, (8, 2), nfe=2, held_out=8, seed=0, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"network\.weights = \"[0-9a-f]+\" there, \"[0-9a-f]+\" now"):
        sg.calibrate(scores[1], sde, (8, 2), nfe=2, held_out=8, seed=0, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "error", "shown"),
    [
        ("device", "foo", ValueError, "device .*foo"),
        ("progress", 3, TypeError, "progress .*3"),
        ("checkpoint", 3, TypeError, "checkpoint must be the path of a folder, got 3"),
    ],
)
def test_wrong_places_and_flags_are_named(option: str, value: Any, error: type[Exception], shown: str) -> None:
    with pytest.raises(error, match=shown):
        sg.calibrate(lambda x, t: -x, sg.VPSDE(), (4, 2), nfe=4, seed=0, **{option: value})


@pytest.mark.parametrize(
    ("fitted", "off_the_shelf", "stays"),
    [(0.0, 0.0, True), (0.04, 0.0, True), (0.06, 0.0, False), (0.06, 0.06, True), (math.nan, 0.0, False)],
)
def test_a_fit_that_sends_noises_out_of_the_data_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, fitted: float, off_the_shelf: float, stays: bool
) -> None:
    """With a sample that far from (1, 1) in one coordinate; where those off the shelf end they may end too."""
    sde = sg.VPSDE()
    ends = 1 + torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]])  # at most 0.1 / sqrt(2) from (1, 1)
    strata = Strata.even(range(4))
    of = Exact(Trajectories(torch.zeros(0), ends, ends, ends), ends, strata, strata, 64, 0.0, 0.0, 0)
    found = HeldOutRuns(a_flow(sde, 8), of, torch.float32)
    one, shelf = (sg.calibration.HeldOut(name, sg.Setting("ddim"), 0.1, 0.0, 0.1, 0.1) for name in ("fit", "shelf"))
    far = {id(one.setting): fitted, id(shelf.setting): off_the_shelf}
    monkeypatch.setattr(found, "run", lambda setting, samples, n: ends + torch.tensor([far[id(setting)], 0.0]))

    assert found.inside(shelf, 4)(one) == stays


@pytest.mark.parametrize(("n", "d", "few"), [(16, 1, True), (31, 32, True), (32, 32, False)])
def test_few_noises_of_few_numbers_are_told(n: int, d: int, few: bool) -> None:
    """Where noises times dimensions are less than 1024."""
    score = sg.oracles.Gaussian(torch.zeros(d), 0.25).score(sg.VPSDE())
    found = sg.calibrate(score, sg.VPSDE(), (n, d), nfe=3, held_out=16, seed=0)
    assert any("are few: errors on others" in remark for remark in found.remarks) == few
