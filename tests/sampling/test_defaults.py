"""The default on guided scores: stable where guidance is strong, and exact across the ends of its interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.sampling.candidates import default_candidates
from sgm_sde.sampling.planning import plan
from sgm_sde.schemes import ExponentialAdams
from sgm_sde.scores.guidance import Classifier, ClassifierFree, Interval, Thresholded, Weakened
from tests.conventions import case_id

# Methods that are not stable throw samples out, and say so.
pytestmark = pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")

F64 = torch.float64
PROCESSES = [sg.VPSDE(), sg.EDMSDE(), sg.RectifiedFlowSDE()]
NARROW, WIDE = 0.2, 1.0  # standard deviations of a class and of all data, each around 0
SCALE = 15.0
INTERVAL = (0.3, 5.0)


def network(x: torch.Tensor, level: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The data estimate of Gaussian data around 0, narrow for the class 0, from x / alpha."""
    std = torch.where(y == 0, NARROW, WIDE).to(x)
    return (std**2 / (std**2 + level**2))[:, None] * x


def guided(sde: sg.LinearSDE, interval: Interval | None = None, scale: float = SCALE) -> ClassifierFree:
    scale_in = lambda t: 1 / sde.alpha(t)  # noqa: E731
    score = sg.from_denoiser(network, sde, time_label=sg.time_labels.noise_level(sde), input_scale=scale_in)
    return ClassifierFree(score, scale, {"y": 1}, interval=interval)


def end_of_flow(score: ClassifierFree, x: torch.Tensor, interval: Interval = (0.0, math.inf)) -> torch.Tensor:
    """The sample, by the integral of d log y / d log s = 1 - D / y, which depends on the level s alone."""
    sde = score.sde
    start, end = (math.exp(-float(sde.log_snr(torch.tensor(t, dtype=F64))) / 2) for t in (sde.T, sde.eps))
    start = min(start, 1e8)  # beyond it the state is pure noise
    levels = torch.linspace(math.log(end), math.log(start), 400_001, dtype=F64).exp()

    def estimate(s: torch.Tensor) -> torch.Tensor:
        narrow, wide = (std**2 / (std**2 + s**2) for std in (NARROW, WIDE))
        inside = (s > interval[0]) & (s <= interval[1])
        return torch.where(inside, wide + score.scale * (narrow - wide), narrow)

    rate = 1 - estimate(levels)
    growth = torch.trapezoid(rate, levels.log())
    return estimate(levels[:1]) * (-growth).exp() * start * x / float(sde.sigma(sde.T))


def error(score: ClassifierFree, nfe: int, solver: object = None, interval: Interval = (0.0, math.inf)) -> float:
    """Error relative to the spread of the class."""
    x = score.sde.prior_sample((8, 2), seed=0, dtype=F64)
    kwargs = {"y": torch.zeros(8, dtype=torch.long)}
    found = sg.sample(score, score.sde, x_T=x, nfe=nfe, solver=solver, model_kwargs=kwargs).x
    return float((found - end_of_flow(score, x, interval)).square().mean().sqrt()) / NARROW


@pytest.mark.parametrize("sde", PROCESSES, ids=str)
def test_more_calls_err_less_under_strong_guidance(sde: sg.LinearSDE) -> None:
    found = [error(guided(sde, scale=7.5), nfe) for nfe in (20, 35, 50)]
    assert found[2] < found[1] < found[0]
    assert found[2] < 1e-3


@pytest.mark.parametrize("sde", PROCESSES, ids=str)
def test_few_calls_under_strong_guidance_have_no_corrector(sde: sg.LinearSDE) -> None:
    """Up to 8 calls it throws samples out; up to 10 a step through two evaluations does, with one."""
    score = guided(sde, scale=7.5)
    lowest, low, some, _ = sg.defaults.GUIDED
    chosen = [sg.defaults.default_setting(sde, nfe, guided=True).plain for nfe in (8, 9, 10, 11)]
    assert chosen == [lowest, low, low, some]
    assert error(score, 7) < 0.4 * error(score, 7, low)
    assert error(score, 10) < error(score, 10, some)


@pytest.mark.parametrize("sde", PROCESSES, ids=str)
def test_few_calls_resolve_an_interval(sde: sg.LinearSDE) -> None:
    score = guided(sde, INTERVAL, scale=3.0)
    found = [error(score, nfe, None, INTERVAL) for nfe in (5, 8, 12)]
    assert found[0] < 0.2
    assert found[1] < 0.05
    assert found[2] < 0.01


@pytest.mark.parametrize(("sde", "by_eight"), list(zip(PROCESSES, (0.2, 0.03, 0.15), strict=True)), ids=str)
def test_guided_data_may_lie_far_from_0(sde: sg.LinearSDE, by_eight: float) -> None:
    """What two Gaussians around 20 give is what they give around 0, moved."""
    place = 20.0
    scale_in = lambda t: 1 / sde.alpha(t)  # noqa: E731
    moved = sg.from_denoiser(
        lambda x, level, y: place + network(x - place, level, y),
        sde,
        time_label=sg.time_labels.noise_level(sde),
        input_scale=scale_in,
    )
    score = ClassifierFree(moved, 3.0, {"y": 1})
    x = sde.prior_sample((8, 2), seed=0, dtype=F64)
    kwargs = {"y": torch.zeros(8, dtype=torch.long)}
    exact = sg.sample(score, sde, x_T=x, nfe=300, solver="dpm++3m", grid="log-snr", model_kwargs=kwargs).x

    def off(nfe: int) -> float:
        found = sg.sample(score, sde, x_T=x, nfe=nfe, model_kwargs=kwargs).x
        return float((found - exact).square().mean().sqrt()) / NARROW

    assert off(8) < by_eight
    assert off(12) < 0.06
    assert off(20) < 0.004


def test_the_default_of_other_scores_is_not_stable_where_that_of_guided_ones_is() -> None:
    score = guided(PROCESSES[0])
    assert error(score, 50) < 1e-2
    assert error(score, 50, sg.defaults.default_setting(score.sde, 50)) > 1


@pytest.mark.parametrize("nfe", [35, 50])
@pytest.mark.parametrize("sde", PROCESSES[:2], ids=str)
def test_an_interval_costs_no_more_than_it_costs_a_method_of_short_history(sde: sg.LinearSDE, nfe: int) -> None:
    score = guided(sde, INTERVAL, scale=7.5)
    assert error(score, nfe, None, INTERVAL) < 2 * error(score, nfe, "rectified2", INTERVAL)


@pytest.mark.parametrize("sde", PROCESSES, ids=str)
def test_the_default_goes_across_no_end_of_an_interval(sde: sg.LinearSDE) -> None:
    score = guided(sde, INTERVAL, scale=7.5)
    assert error(score, 50, None, INTERVAL) < 2e-3
    assert error(score, 50, sg.defaults.default_setting(sde, 50), INTERVAL) > 1


@pytest.mark.parametrize("sde", PROCESSES, ids=str)
@pytest.mark.parametrize("nodes", [2, 4])
def test_data_that_jump_at_a_level_are_met_exactly_by_a_solver_that_knows_it(sde: sg.LinearSDE, nodes: int) -> None:
    """The estimate is 1 above the level b and -1 from b on: y = D + s / s_0 (y_0 - D), one piece after the other."""
    b = 0.7
    level = sg.time_labels.noise_level(sde)
    score = sg.from_denoiser(lambda x, t: torch.where(level(t) > b * (1 + 1e-5), 1.0, -1.0).to(x)[:, None], sde)
    solver = ExponentialAdams(nodes=nodes, corrector=nodes, jumps=(b,))
    grid = sg.grids.Thinned(jumps=(b,))(sde, 12)

    start, end = sde.nodes((grid.times[0], grid.times[-1]))
    x = sde.prior_sample((3, 1), seed=0, dtype=F64)
    at_b = 1 + b / start.noise_level * (x / start.alpha - 1)
    exact = end.alpha * (-1 + end.noise_level / b * (at_b + 1))
    assert any(math.isclose(node.noise_level, b) for node in sde.nodes(grid.times))
    found, blind = (
        sg.sample(score, sde, x_T=x, solver=of, grid=grid, final="none").x
        for of in (solver, ExponentialAdams(nodes=nodes, corrector=nodes))
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)
    assert (blind - exact).abs().min() > 1e-4


def test_jumps_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"a level of jumps must be .*, got 0"):
        ExponentialAdams(nodes=3, jumps=(0.0,))
    with pytest.raises(ValueError, match=r"jumps=\(1\.0,\) go with start='cold'"):
        ExponentialAdams(nodes=3, start="warm", jumps=(1.0,))
    with pytest.raises(TypeError, match="jumps must be a sequence of numbers, got 3"):
        sg.grids.Thinned(jumps=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [9, 20])
def test_a_grid_has_a_node_at_each_jump(steps: int) -> None:
    sde = sg.EDMSDE()
    jumps = (5.0, 4.9, 0.3)
    times = sg.grids.Thinned(jumps=jumps)(sde, steps).times
    assert all(any(math.isclose(t, jump) for t in times) for jump in jumps)
    assert len(times) == steps + 1


def test_jumps_are_levels_in_any_order_each_once() -> None:
    sde = sg.EDMSDE()
    given = (0.3, 5.0, 5.0, 4.9)
    assert sg.grids.Thinned(jumps=given) == sg.grids.Thinned(jumps=(5.0, 4.9, 0.3))
    assert ExponentialAdams(nodes=3, jumps=given).jumps == (5.0, 4.9, 0.3)
    assert ExponentialAdams(nodes=3).with_jumps(given).name.endswith("jumps-5-4.9-0.3")
    times = sg.grids.Thinned(jumps=(5.0, 4.9, 4.8, 4.7))(sde, 5).times  # as many as there are nodes between the ends
    assert times[1:-1] == pytest.approx((5.0, 4.9, 4.8, 4.7))


@pytest.mark.parametrize("final", ["denoise", "none"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 8])
def test_the_default_has_nodes_at_as_many_jumps_as_there_is_room_for(nfe: int, final: str) -> None:
    """Those at most noise, at any budget."""
    sde = sg.EDMSDE()
    setting = sg.defaults.default_setting(sde, nfe, jumps=INTERVAL, guided=True)
    assert setting.grid.jumps == (5.0, 0.3)[: max(nfe - 2, 0)]
    assert setting.solver.jumps == (5.0, 0.3)
    assert plan(sde, nfe=nfe, final=final, jumps=(5.0, 1.0, 0.3), guided=True)[1].steps <= nfe
    assert plan(sde, steps=nfe, jumps=(5.0, 1.0, 0.3), guided=True)[1].steps == nfe


def test_a_stepper_takes_the_default_of_a_score() -> None:
    sde = sg.EDMSDE()
    traits = guided(sde, INTERVAL).traits
    for given in ({}, traits):
        stepper = sg.stepping.stepper(None, sde, nfe=12, **given)
        assert stepper.program == plan(sde, nfe=12, **given)[2]
    assert sg.stepping.stepper(None, sde, nfe=12).program != stepper.program


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_the_ends_of_a_grid_stay_where_they_are(steps: int) -> None:
    """Jumps nearest to an end, or beyond, leave the grid as it is."""
    sde = sg.EDMSDE()
    plain = sg.grids.Thinned()(sde, steps)
    first, last = plain.times[0], plain.times[-1]
    assert sg.grids.Thinned(jumps=(90.0, 0.99 * first, 1.01 * last, 1e-5))(sde, steps) == plain


def test_scores_tell_where_they_jump_and_whether_they_are_guided() -> None:
    sde = sg.EDMSDE()
    plain = guided(sde).parts[0]
    assert plain.traits == {"coupled": False, "guided": False, "tilted": False, "bare": False, "jumps": ()}
    assert guided(sde, INTERVAL, scale=1.0).traits == plain.traits
    assert guided(sde).traits == {"coupled": False, "guided": True, "tilted": False, "bare": False, "jumps": ()}
    assert guided(sde, (0.0, math.inf)).jumps == ()

    score = Weakened(guided(sde, INTERVAL), plain, 2.0, interval=(0.3, 1.0))
    assert Thresholded(score).traits == {
        "coupled": False,
        "guided": True,
        "tilted": False,
        "bare": False,
        "jumps": (5.0, 1.0, 0.3),
    }


@pytest.mark.parametrize("nfe", [5, 8, 20, 50])
def test_the_default_for_a_guided_score_is_among_the_candidates_of_a_pilot(nfe: int) -> None:
    traits = guided(sg.VPSDE(), INTERVAL).traits
    setting = sg.defaults.default_setting(sg.VPSDE(), nfe, **traits)
    assert setting.solver.jumps == setting.grid.jumps == (5.0, 0.3)
    assert setting.plain in default_candidates(nfe, **traits)


@pytest.mark.parametrize("jumps", [None, 3.0, "ab", b"ab", (x for x in (0.3, 3.0)), torch.tensor(3.0), [-1.0], ["a"]])
@pytest.mark.parametrize(
    "take",
    [
        lambda jumps: sg.defaults.default_setting(sg.VPSDE(), 8, jumps=jumps),
        lambda jumps: sg.defaults.default_setting(sg.CLD(), 8, jumps=jumps),
        lambda jumps: sg.defaults.guided_settings(1.0, jumps),
        lambda jumps: sg.defaults.tilted_settings(1.0, jumps),
        lambda jumps: sg.defaults.across(sg.defaults.SETTINGS[0], jumps),
        lambda jumps: sg.sampling.candidates.default_candidates(8, jumps=jumps),
    ],
)
def test_levels_that_are_none_are_refused(take: Any, jumps: Any) -> None:
    """By the option's name, wherever they are given; nothing is lost on the way."""
    with pytest.raises((ValueError, TypeError), match="jumps"):
        take(jumps)


def test_a_setting_brings_its_budget() -> None:
    """The one for a scale is given in the place of a solver, without the budget again."""
    sde = sg.VPSDE()
    score = sg.oracles.Gaussian(torch.zeros(2), 0.01).score(sde)
    setting = sg.defaults.default_setting(sde, 8, data_std=0.1)
    assert sg.sample(score, sde, (2, 2), solver=setting, seed=0).nfe == 8
    assert sg.sample(score, sde, (2, 2), solver=setting, nfe=12, seed=0).nfe == 12
    assert sg.sample(score, sde, (2, 2), solver=setting, steps=3, seed=0).nfe == 3
    assert sg.sample(score, sde, (2, 2), solver=sg.Setting("ddim", nfe=5), seed=0).nfe == 5
    kept = [sg.defaults.across(setting, [3.0]), sg.defaults.on_table(setting), sg.defaults.with_room(setting, 8)]
    assert [one.budget for one in kept] == [8, 8, 8] and setting.plain.budget is None
    with pytest.raises(ValueError, match="nfe must be an integer of at least 1, got 0"):
        sg.Setting("ddim", nfe=0)
    with pytest.raises(ValueError, match="nfe must be at most 1000000, got 1000000000"):
        sg.defaults.default_setting(sde, 10**9)


# --- rewards ---------------------------------------------------------------------------

THREE = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], dtype=F64), 0.2)


def rewarded(weight: float, interval: Interval | None = None) -> Classifier:
    """Three modes on VP, with the gradient of a quadratic reward."""
    sde = PROCESSES[0]
    score = sg.from_score(THREE.score(sde), sde)
    reward = lambda x, t: -(x - 0.5).square().sum(1)  # noqa: E731
    return Classifier(score, reward, weight, condition=(), interval=interval)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.resolution.UnresolvedWarning")
@pytest.mark.parametrize("nfe", [8, 12, 20, 35, 50])
def test_rewards_that_draw_states_together_near_pure_noise(nfe: int) -> None:
    """Correctors are not stable there on long steps: that of guided scores ends beyond ten spreads of the samples."""
    score = rewarded(1.0)
    x = score.sde.prior_sample((16, 2), seed=0, dtype=F64)
    exact = sg.sample(score, score.sde, x_T=x, solver="dpm++3m", grid="log-snr", nfe=200).x

    def off(solver: object) -> float:
        found = sg.sample(score, score.sde, x_T=x, solver=solver, nfe=nfe).x
        return float((found - exact).square().mean().sqrt() / exact.std())

    ours = off(None)
    assert ours < off("ddim")
    assert ours < 0.12
    assert nfe > 12 or off(sg.defaults.default_setting(score.sde, nfe, guided=True)) > 10


def test_scores_tell_that_a_gradient_was_added() -> None:
    score = rewarded(1.0)
    assert score.traits == {"coupled": False, "guided": True, "tilted": True, "bare": False, "jumps": ()}
    assert Thresholded(score).tilted
    assert not rewarded(0.0).tilted


@pytest.mark.parametrize("nfe", [20, 30])
def test_a_classifier_s_gradient_falls_with_the_signal(nfe: int) -> None:
    """What is known to be one is taken as guided scores are: a step of first order would err several times more."""
    sde = sg.VPSDE()
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], dtype=F64)
    mixture = sg.oracles.GaussianMixture(means, 0.2)
    classifier = sg.guidance.from_classifier(lambda x, t: mixture.responsibilities(x, sde, t).log())
    score = Classifier(mixture.score(sde), classifier, 3.0)
    labels = {"y": torch.zeros(32, dtype=torch.long)}
    assert score.traits == {"coupled": False, "guided": True, "tilted": False, "bare": False, "jumps": ()}

    x = sde.prior_sample((32, 2), seed=0, dtype=F64)
    exact = sg.sample(score, sde, x_T=x, solver="dpm++3m", grid="log-snr", nfe=400, model_kwargs=labels).x

    def off(solver: object) -> float:
        found = sg.sample(score, sde, x_T=x, solver=solver, nfe=nfe, model_kwargs=labels).x
        return float((found - exact).square().mean().sqrt() / exact.std())

    assert off(None) < 0.6 * off(sg.defaults.default_setting(sde, nfe, tilted=True))
    assert off(None) < 0.3 * off("ddim")


@pytest.mark.parametrize("interval", [None, INTERVAL])
@pytest.mark.parametrize("nfe", [4, 8, 10, 20, 30, 50])
def test_the_default_for_an_added_gradient_is_among_the_candidates_of_a_pilot(
    nfe: int, interval: Interval | None
) -> None:
    traits = rewarded(1.0, interval).traits
    setting = sg.defaults.default_setting(sg.VPSDE(), nfe, **traits)
    assert setting.plain in default_candidates(nfe, **traits)
    assert setting.solver.jumps == ((5.0, 0.3) if interval else ())


def test_levels_in_a_tensor() -> None:
    """Arrays and tensors are sequences of numbers."""
    levels = torch.tensor([3.0, 0.3])
    assert sg.defaults.guided_settings(1.0, levels) == sg.defaults.guided_settings(1.0, (3.0, levels[1].item()))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: sg.defaults.across("dpm++2m", [3.0]), "setting must be a Setting, got 'dpm"),
        (lambda: sg.defaults.with_room("dpm++2m", 8), "setting must be a Setting, got 'dpm"),
        (lambda: sg.defaults.across(sg.Setting("heun"), [float("nan")]), "a level of jumps"),
        (lambda: sg.defaults.straight_settings(1e6), "data_std must be .* at most 100000, got"),
        (lambda: sg.defaults.guided_settings(1e6), "data_std must be .* at most 100000, got"),
        (lambda: sg.defaults.tilted_settings(1e6), "data_std must be .* at most 100000, got"),
        (lambda: sg.defaults.straight_adams(0), "nodes must be an integer of at least 1, got 0"),
        (lambda: sg.defaults.straight_adams(2, 0), "corrector must be an integer of at least 1, got 0"),
        (lambda: sg.defaults.default_setting(sg.CLD(), guided="x"), "guided must be True or False, got 'x'"),
        (lambda: sg.defaults.default_setting(sg.CLD(), tilted="x"), "tilted must be True or False, got 'x'"),
    ],
)
def test_options_by_their_names(call: Any, words: str) -> None:
    """At the call."""
    with pytest.raises((ValueError, TypeError), match=words):
        call()


# --- tables of few levels ------------------------------------------------------------

LEVELS = np.geomspace(20.0, 0.01, 20)
MODES = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])


def looked_up(levels: np.ndarray) -> sg.Score:
    """The exact score of two modes of width .2, with its noise level looked up in a table, as NCSNv2 has it."""
    sigma = torch.tensor(levels)

    def net(x: Tensor, i: Tensor) -> Tensor:
        variance = (sigma[i.long()] ** 2 + 0.04)[:, None].to(x)
        away = x[:, None] - MODES.to(x)
        weights = torch.softmax(-away.square().sum(2) / 2 / variance, 1)
        return -(weights[..., None] * away).sum(1) / variance

    return sg.adapters.from_score_sde(net, sg.DiscreteVESDE(levels.tolist()))[0]


@pytest.fixture(scope="module")
def flow() -> tuple[sg.Score, Tensor, Tensor]:
    """The score, noise, and where the exact flow of the score takes it."""
    score = looked_up(LEVELS)
    sde = score.sde
    noise = sde.prior_std * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return score, noise, sg.sample(score, sde, x_T=noise, solver="rk4", grid="log-snr", nfe=6001).x


@pytest.mark.parametrize(("nfe", "most"), [(5, 0.09), (10, 0.02), (16, 0.02), (20, 0.02), (35, 0.02)])
def test_a_network_of_few_noise_levels_is_called_at_these(
    flow: tuple[sg.Score, Tensor, Tensor], nfe: int, most: float
) -> None:
    """Between its levels it takes states for those of another scale, and 16 calls erred by .2, DDIM by .09."""
    score, noise, exact = flow
    found = sg.sample(score, score.sde, x_T=noise, nfe=nfe)
    assert (found.x - exact).square().mean().sqrt() < most
    assert found.nfe <= nfe
    assert set(found.times) <= {score.sde.T, *score.sde.table_times}


@pytest.mark.parametrize(("steps", "moved"), [(1, True), (19, True), (59, True), (60, False)])
def test_times_are_moved_to_a_table_up_to_three_steps_an_entry(steps: int, moved: bool) -> None:
    sde = sg.DiscreteVESDE(LEVELS.tolist())
    free, on_table = (sg.grids.Thinned(on_table=on)(sde, steps) for on in (False, True))
    assert (on_table.times[0], on_table.times[-1]) == (free.times[0], free.times[-1])
    if not moved:
        assert on_table == free
    assert set(on_table.times[1:-1]).issubset(sde.table_times) == moved


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.presets.ddpm(), sg.presets.score_sde_ve_cifar10()], ids=case_id)
def test_other_processes_default_is_on_no_table(sde: sg.LinearSDE) -> None:
    grid = sg.defaults.default_setting(sde, 10).grid
    assert isinstance(grid, sg.grids.Thinned)
    assert not grid.on_table


def test_nodes_at_jumps_stay_on_no_table() -> None:
    sde = sg.DiscreteVESDE(LEVELS.tolist())
    free, on_table = (sg.grids.Thinned(jumps=(1.0, 0.3), on_table=on)(sde, 8) for on in (False, True))
    assert on_table == free


def test_part_of_a_table_counts_by_its_own_entries() -> None:
    """Five entries from t = .25 down to eps: fifteen steps are as many as three for each."""
    sde = sg.DiscreteVESDE(LEVELS.tolist())
    moved, free = (sg.grids.Thinned(on_table=True)(sde, steps, t_start=0.25) for steps in (14, 15))
    assert set(moved.times[1:-1]) <= set(sde.table_times)
    assert free == sg.grids.Thinned()(sde, 15, t_start=0.25)


@pytest.mark.parametrize("budget", [7, 17])
def test_a_table_too_short_for_a_grid_of_its_own_gets_a_free_one(budget: int) -> None:
    score = looked_up(np.geomspace(20.0, 0.01, 6))
    assert sg.sample(score, score.sde, (2, 2), nfe=budget, seed=0).nfe == budget
