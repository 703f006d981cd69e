"""A run that went wrong says so, and no other does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from benchmarks import alarms
from sgm_sde.calibration import Calibrated, Table
from sgm_sde.likelihood import FixedGrid
from sgm_sde.sampling import diagnosis
from sgm_sde.scores.score import Network
from tests.conventions import case_id, some_slow
from tests.helpers import LINEAR

VP = sg.VPSDE()
MODES, D = alarms.data(1.0)["ten modes"]


@pytest.mark.parametrize("case", [case for i, case in enumerate(alarms.faults(16)) if i % 5 == 0], ids=lambda c: c.name)
def test_faults_are_named(case: alarms.Case) -> None:
    """Every listed fault names samples."""
    assert case.samples_named() > 0


@pytest.mark.parametrize("case", list(alarms.other_faults(8))[::6], ids=lambda c: c.name)
def test_faults_on_other_grids_and_processes_are_named(case: alarms.Case) -> None:
    """The noise taken for the score on CLD, with times for each token, and along with the density: all samples."""
    assert case.samples_named() == 8


OTHERS = [*alarms.cld_runs(n=16), *list(alarms.token_runs(n=16))[::19], *list(alarms.log_prob_runs(n=4))[::23]]


@pytest.mark.parametrize("case", some_slow(OTHERS, fast=OTHERS[::3]), ids=lambda c: c.name)
def test_what_went_well_there_is_not_named(case: alarms.Case) -> None:
    assert case.samples_named() == 0


@pytest.mark.parametrize("prediction", ["score", "noise", "data", "noise_v"])
def test_what_a_state_of_blocks_says_of_the_data(prediction: str) -> None:
    """The statistic of `MatrixSDE.observation`, and the mean of Gaussian data given the state."""
    sde = sg.CLD()
    (node,) = sde.nodes([0.3])
    z = sde.prior_sample((5, 2, 3), seed=0, dtype=torch.float64)
    t = torch.full((5,), 0.3, dtype=torch.float64)
    score = sg.from_score(sg.oracles.Gaussian(torch.zeros(3), 0.25).score(sde), sde)
    weights, level = sde.observation(t[0])
    y = weights[0] * z[:, 0] + weights[1] * z[:, 1]

    assert node.observation_noise == pytest.approx(float(level), rel=1e-9)
    seen = diagnosis.Observed.at(node, prediction)
    torch.testing.assert_close(seen.state(z), y)
    output = score.predict("noise" if prediction == "noise_v" else prediction, z, t)
    torch.testing.assert_close(seen.data(z, output), y * 0.25 / (0.25 + level**2), rtol=1e-6, atol=1e-6)


def test_tokens_are_watched_column_by_column() -> None:
    """A network that is wrong of the last of four tokens alone, which is the last to move."""
    sde = LINEAR["vp"]
    exact = alarms.of_tokens(1.0, sde)
    grid = sg.grids.TokenGrid.staggered(sg.grids.LogSNR()(sde, 12), torch.arange(4)[:, None])

    def wrong(x: Tensor, t: Tensor) -> Tensor:
        score = exact(x, t)
        sigma = sde.sigma(t).to(x)
        sigma = sigma if sigma.ndim == x.ndim else sigma[:, None, None]
        last = torch.arange(4)[:, None] == 3
        of_second = torch.arange(len(x))[:, None, None] == 1
        return torch.where(last & of_second, -sigma * score, score)

    with pytest.warns(sg.diagnosis.ImplausibleWarning, match="try what `pilot` finds"):
        res = sg.sample(wrong, sde, (3, 4, 4), solver="ddim", grid=grid, seed=0)
    assert res.status.samples == (1,)

    x_T = 80 * torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    with pytest.warns(sg.diagnosis.StartWarning, match="3 of 3 samples"):
        sg.sample(exact, sde, x_T=x_T, solver="ddim", grid=grid)


GIVEN = [case for i, case in enumerate(alarms.runs_from_given_states()) if i % 7 == 0]
FEW = [case for i, case in enumerate(alarms.right_runs(n=64)) if i % 61 == 0]


@pytest.mark.parametrize("case", [*FEW, *GIVEN], ids=lambda c: c.name)
def test_what_went_well_is_not_named(case: alarms.Case) -> None:
    """A part of the runs of `benchmarks/alarms.py`, at every scale and on every process."""
    assert case.samples_named() == 0


@pytest.mark.parametrize(
    "options", [{"solver": "dpm++2m", "grid": "log-snr"}, {"solver": "sde-dpm++2m", "grid": "log-snr"}], ids=case_id
)
def test_many_samples_in_few_dimensions_are_not_named(options: Any) -> None:
    """Chance alone names none of 20000 samples in one dimension."""
    res = sg.sample(sg.oracles.Gaussian(torch.zeros(1), 1.0).score(VP), VP, (20_000, 1), nfe=12, seed=0, **options)
    assert res.status.ok


@pytest.mark.parametrize(
    "options", [{"solver": "ddim", "nfe": 50}, {"solver": "dpm++2m", "nfe": 20}, {"nfe": 15}], ids=case_id
)
@pytest.mark.parametrize("scale", [4.0, 7.5])
def test_strong_guidance_towards_other_modes_is_not_named(scale: float, options: Any) -> None:
    """Guided noise may be several times the noise: in 64 dimensions, towards two modes of which the others are none."""
    generator = torch.Generator().manual_seed(0)
    anything, wanted = (
        sg.oracles.GaussianMixture(2 * torch.randn(n, 64, generator=generator), 0.3).score(VP) for n in (5, 2)
    )

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        score = torch.where((y == 1)[:, None], wanted(x, t), anything(x, t))
        return -VP.sigma(t).to(x)[:, None] * score

    guided = sg.guidance.ClassifierFree(sg.from_noise(net, VP), scale, {"y": torch.tensor(0)})
    kwargs = {"y": torch.ones(8, dtype=torch.long)}
    assert sg.sample(guided, VP, (8, 64), seed=0, model_kwargs=kwargs, **options).status.ok


@pytest.mark.parametrize("options", [{"nfe": 20}, {"nfe": 60}, {"solver": "unipc3", "nfe": 60}], ids=case_id)
@pytest.mark.parametrize("weight", [3.0, 10.0])
def test_rewards_at_the_scale_1_pull_states_far_out_and_are_not_named(weight: float, options: Any) -> None:
    """Samples of the flow are right: three modes, drawn towards one side."""
    modes = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]]), 0.2)
    score = sg.guidance.Classifier(modes.score(VP), lambda x, t: weight * x[:, 0], condition=())
    x_T = VP.prior_sample((16, 2), seed=0)
    exact = sg.sample(score, VP, x_T=x_T, solver="dpm++3m", grid="log-snr", nfe=200).x

    result = sg.sample(score, VP, x_T=x_T, **options)
    assert result.status.ok
    assert float((result.x - exact).norm(dim=1).max()) < 0.1 * weight


@pytest.mark.parametrize("solver", [None, "euler-maruyama", "dopri5"])
@pytest.mark.parametrize(
    ("sde", "scale", "shown"),
    [(sg.EDMSDE(), 1.0, "80: write x_T = sde.prior_std"), (VP, 80.0, "1: write x_T = sde.prior_std")],
    ids=["EDM", "VP"],
)
def test_states_of_another_process_scale_are_named(sde: Any, scale: float, shown: str, solver: str | None) -> None:
    """Sample by sample: those beside them are of the prior, or zero."""
    noise = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    x_T = noise * torch.tensor([[scale], [float(sde.prior_std)], [0.0], [scale]])
    options: dict[str, Any] = {} if solver == "dopri5" else {"nfe": 20}
    with pytest.warns(sg.diagnosis.StartWarning, match=r"2 of 4 samples \(0, 3\) start from x_T of root mean square"):
        res = sg.sample(MODES.score(sde), sde, x_T=x_T, solver=solver, seed=0, **options)
    assert res.status.samples == (0, 3) and shown in res.status.message

    with pytest.warns(sg.diagnosis.StartWarning, match=r"1 of 1 samples"):
        alone = sg.sample(MODES.score(sde), sde, x_T=x_T[3:], solver=solver, seed=0, **options)
    assert alone.status.samples == (0,)


def test_states_on_a_process_with_a_matrix_are_compared_in_their_first_block() -> None:
    sde = sg.CLD()
    x_T = sde.prior_sample((2, 2, D), seed=0)
    score = MODES.score(sde)
    assert sg.sample(score, sde, x_T=x_T, solver=sg.schemes.GDDIM(2), nfe=20).status.ok
    with pytest.warns(sg.diagnosis.StartWarning, match=r"write x_T = sde.prior_transform\(noise\)"):
        sg.sample(score, sde, x_T=80 * x_T, solver=sg.schemes.GDDIM(2), nfe=20)


def test_states_at_an_earlier_time_and_in_few_dimensions_are_taken_as_they_are() -> None:
    sde = sg.EDMSDE()
    assert sg.sample(MODES.score(sde), sde, x_T=torch.randn(2, D), t_start=1.0, nfe=10).status.ok
    few = sg.oracles.Gaussian(torch.zeros(8), 1.0).score(sde)
    assert sg.sample(few, sde, x_T=torch.randn(2, 8), solver="dpm++2m", nfe=10).status.ok


@pytest.mark.parametrize("solver", [None, "ipndm3", "euler"])
def test_a_flow_in_the_wrong_direction_is_named(solver: str | None) -> None:
    """A flow from noise to data, taken for one from data to noise, is told by samples far smaller than it promises."""
    sde = sg.RectifiedFlowSDE()
    score = sg.from_score(MODES.score(sde), sde)
    with pytest.warns(sg.diagnosis.ImplausibleWarning):
        res = sg.sample(alarms.reversed_flow(score, sde), sde, (8, D), solver=solver, nfe=20, seed=0)
    assert res.status.samples == tuple(range(8))


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # which the noise at T does not hide
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.scale.ScaleWarning")  # of the batch, and of no sample
@pytest.mark.parametrize("scale", [30.0, 300.0, 3000.0])
@pytest.mark.parametrize("solver", [None, "ipndm3", "euler"])
def test_a_flow_of_large_data_is_not_named(scale: float, solver: str | None) -> None:
    """Of data of a large scale, it runs against the noise at the start, and its samples are as large."""
    oracle, d = alarms.data(scale)["ten modes"]
    sde = sg.RectifiedFlowSDE()
    score = sg.from_score(oracle.score(sde), sde)
    flow = sg.from_flow(lambda x, t: score.predict("flow", x, t), sde)

    assert sg.sample(flow, sde, (64, d), solver=solver, nfe=20, seed=0).status.ok


def noise(x: Tensor, t: Tensor) -> Tensor:
    """The noise where the score is wanted, in samples whose first number is positive."""
    score = MODES.score(VP)(x, t)
    return torch.where(x[:, :1] > 0, -VP.sigma(t).to(x)[:, None] * score, score)


@pytest.mark.parametrize("solver", ["ipndm3", "euler-maruyama", "dopri5"])
def test_the_warning_says_what_to_try_and_the_status_who(solver: str) -> None:
    """Which samples are named depends on each alone; the warning names what to try."""
    x = VP.prior_sample((6, D), seed=0)
    options = {"solver": solver, "nfe": None if solver == "dopri5" else 20, "seed": [(0, i) for i in range(6)]}
    wrong = lambda x, t: -VP.sigma(t).to(x)[:, None] * MODES.score(VP)(x, t)  # noqa: E731
    with pytest.warns(sg.diagnosis.ImplausibleWarning, match=r"accounts for.*pilot.*from_noise"):
        res = sg.sample(wrong, VP, x_T=x, **options)
    assert not res.status
    assert res.status.samples == tuple(range(6))
    assert (res.status.time, res.status.stopped) == (None, False)
    with pytest.warns(sg.diagnosis.ImplausibleWarning):
        alone = sg.sample(wrong, VP, x_T=x[2:3], **options | {"seed": [(0, 2)]})
    assert alone.status.samples == (0,)


@pytest.mark.parametrize("zeta", [0.3, 1.0, 3.0])
def test_a_measurement_s_pull_is_accounted_for(zeta: float) -> None:
    """The steps of DPS do not shrink with the noise; a score of the wrong sign is named there, too."""
    data = sg.oracles.GaussianMixture(torch.tensor([[1.0, -0.5, 0.2], [-0.6, 0.4, 0.9]]), 0.4)
    seen = sg.inverse.Measurement(
        sg.inverse.Mask(torch.tensor([True, False, True])), torch.tensor([0.8, 0.0, -0.1]), 0.2
    )
    dps = sg.inverse.DPS(sg.Ancestral(), seen, zeta=zeta)
    assert sg.sample(data.score(VP), VP, (64, 3), solver=dps, grid="log-snr", steps=12, seed=0).status.ok
    wide = sg.inverse.Measurement(sg.inverse.Mask(torch.arange(D) % 2 == 0), torch.zeros(D), 0.2)
    wrong = lambda x, t: -VP.sigma(t).to(x)[:, None] * MODES.score(VP)(x, t)  # noqa: E731
    with pytest.warns(sg.diagnosis.ImplausibleWarning):
        sg.sample(wrong, VP, (2, D), solver=sg.inverse.DPS(sg.Ancestral(), wide, zeta=zeta), steps=12, seed=0)


def test_batch_mates_do_not_matter() -> None:
    """Samples of a batch are named as they are alone."""
    x = VP.prior_sample((8, D), seed=3)
    with pytest.warns(sg.diagnosis.ImplausibleWarning):
        together = sg.sample(noise, VP, x_T=x, solver="ipndm3", nfe=20).status.samples
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.diagnosis.ImplausibleWarning)
        alone = [i for i in range(8) if sg.sample(noise, VP, x_T=x[i : i + 1], solver="ipndm3", nfe=20).status.samples]
    assert 0 < len(together) < 8
    assert list(together) == alone


def test_it_costs_no_call_and_changes_nothing() -> None:
    """Calls are those of the solver, and samples those of a run that nobody watches."""
    calls = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return MODES.score(VP)(x, t)

    res = sg.sample(net, VP, (4, D), solver="dpm++2m", grid="log-snr", nfe=12, seed=0)
    assert (res.nfe, len(calls)) == (12, 12)
    assert res.status.ok


def test_a_run_that_the_callback_stops_is_not_judged() -> None:
    """Half-way states are noise."""
    res = sg.sample(
        MODES.score(VP), VP, (4, D), solver="ddim", nfe=10, seed=0, record=sg.Record(callback=lambda info: info.i == 2)
    )
    assert res.status.stopped
    assert res.status.samples == ()


def test_the_bound_is_that_of_the_formula() -> None:
    """One look by hand: EDM at t = 2, the node before at 4; growth 3/2, kappa 8 in one dimension."""
    watch = diagnosis.Watch(sg.EDMSDE(), (4.0, 2.0, 1.0), "data", torch.tensor([[4.0]]))
    watch.see(torch.tensor([[2.0]]), torch.tensor([[3.0]]), 2.0)
    watch.see(torch.tensor([[9.0]]), torch.tensor([[9.0]]), 1.5)  # not one of the nodes
    limit = 1.5 * 3.0 + 8 * 4.0
    assert watch.implausible(torch.tensor([[limit - 1e-3]]), denoised=True).tolist() == [False]
    assert watch.implausible(torch.tensor([[limit + 1e-3]]), denoised=True).tolist() == [True]
    unseen = diagnosis.Watch(sg.EDMSDE(), (4.0, 2.0, 1.0), "data", torch.tensor([[4.0]]))
    assert unseen.implausible(torch.tensor([[4.0 + 48 * 4.0 - 1e-3]]), denoised=True).tolist() == [False]
    assert unseen.implausible(torch.tensor([[4.0 + 48 * 4.0 + 1e-3]]), denoised=True).tolist() == [True]


@pytest.mark.parametrize("sde", [VP, sg.EDMSDE(), sg.RectifiedFlowSDE()], ids=case_id)
@pytest.mark.parametrize("prediction", ["data", "noise", "v", "flow", "score"])
@pytest.mark.parametrize("d", [2, 20])
def test_states_kept_until_the_end_say_what_states_looked_at_on_the_way_say(
    sde: sg.SDE, prediction: str, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, of states and outputs of many sizes, some of them not finite."""
    times = sg.grids.Uniform()(sde, 8).times
    z = torch.randn((len(times), 40, d), generator=torch.Generator().manual_seed(0))
    states = torch.logspace(-3, 3, 40)[:, None] * z
    states[3, 5] = torch.inf
    states[6, 7] = torch.nan

    def told(small: int) -> list[Tensor | None]:
        monkeypatch.setattr(diagnosis, "SMALL", small)
        watch = diagnosis.Watch(sde, times, prediction, states[0])
        for t, x in zip(times, states, strict=True):
            watch.see(x, x.flip(0), t)
        named = watch.implausible(states[-1].roll(9, 0), denoised=True)
        return [named, watch._limit, watch._least, watch._apart, watch._against]

    kept = told(diagnosis.SMALL)
    assert kept[0] is not None and kept[0].any()
    torch.testing.assert_close(kept, told(0), rtol=0, atol=0, equal_nan=True)


def test_a_run_that_was_thrown_out_and_drawn_back_is_named() -> None:
    """The bound the other way round, by hand: growth 3/2, kappa 8 in one dimension, the node before at 4."""
    limit = 1.5 * 1.0 + 8 * 4.0
    for size, odd in ((limit - 1e-3, False), (limit + 1e-3, True)):
        watch = diagnosis.Watch(sg.EDMSDE(), (4.0, 2.0, 1.0), "data", torch.tensor([[4.0]]))
        watch.see(torch.tensor([[size]]), torch.tensor([[1.0]]), 2.0)
        assert watch.implausible(torch.tensor([[1.0]]), denoised=True).tolist() == [odd]


def test_guided_scores_may_be_thrown_out_and_drawn_back() -> None:
    """The same state, a thousand times as far out; of the bound on the sample itself, 3/2 x 1000 + 32, all is left."""
    watch = diagnosis.Watch(sg.EDMSDE(), (4.0, 2.0, 1.0), "data", torch.tensor([[4.0]]), density=False)
    watch.see(torch.tensor([[1000.0]]), torch.tensor([[1.0]]), 2.0)
    assert watch.implausible(torch.tensor([[1.0]]), denoised=True).tolist() == [False]
    assert watch.implausible(torch.tensor([[1533.0]]), denoised=True).tolist() == [True]


class _TimeOfTheTable(nn.Module):
    """A noise network of two numbers that knows times as indices from 0 to 999."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(34, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        angles = index.to(x)[:, None] * torch.logspace(0, -3, 16)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))


@pytest.fixture(scope="module")
def noise_by_index() -> _TimeOfTheTable:
    """The network, trained for a second by the usual recipe."""
    sde, generator = sg.presets.ddpm(), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = _TimeOfTheTable()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    modes = torch.tensor([[-2.0, -2.0], [1.0, 1.0]])
    for _ in range(400):
        which = (torch.rand(128, generator=generator) < 0.7).long()
        x0 = modes[which] + 0.2 * torch.randn(128, 2, generator=generator)
        index = torch.randint(0, 1000, (128,), generator=generator)
        t = torch.tensor(sde.table_times)[index]
        noise = torch.randn(128, 2, generator=generator)
        x = sde.alpha(t)[:, None] * x0 + sde.sigma(t)[:, None] * noise
        loss = (net(x.float(), index) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("options", [{"nfe": 20}, {"solver": "ddim", "nfe": 50}, {"solver": "ancestral", "nfe": 50}])
@pytest.mark.parametrize("label", ["the time itself", "a table of a tenth of the size", "reversed", "right"])
def test_a_network_that_is_given_other_times_is_named(
    noise_by_index: _TimeOfTheTable, label: str, options: Any
) -> None:
    """It finds no noise where there is nothing else; with the times that it knows, no sample is named."""
    sde = sg.presets.ddpm()
    labels: dict[str, Any] = {
        "the time itself": None,
        "a table of a tenth of the size": sg.time_labels.ddpm(100),
        "reversed": lambda t: 999 - sg.time_labels.ddpm(1000)(t),
        "right": sg.time_labels.ddpm(1000),
    }
    score = sg.from_noise(noise_by_index, sde, time_label=labels[label])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        res = sg.sample(score, sde, (256, 2), seed=0, **options)

    assert len(res.status.samples) > 200 if label != "right" else res.status.ok
    assert [("`time_label=`" in str(warning.message)) for warning in shown] == ([] if res.status.ok else [True])


def test_the_noise_left_at_the_start_is_that_of_the_formula() -> None:
    """By hand on EDM at sigma = 80 in one dimension: of a noise of 1, .45 leaves 44 = .55 x 80, for samples of 5.5.

    Of a noise of 4, it must leave more than half of that.
    """
    x = torch.tensor([[80.0], [80.0], [80.0], [320.0], [320.0]])
    noise = torch.tensor([[0.45], [0.45], [0.55], [2.1], [1.9]])
    watch = diagnosis.Watch(sg.EDMSDE(), (80.0, 79.0, 78.0), "noise", x)
    watch.see(x, noise, 80.0)
    blind = watch.implausible(torch.tensor([[5.49], [5.51], [0.0], [5.0], [5.0]]), denoised=True)
    assert blind.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("solver", ["sde-dpm2m-published", "seeds3-published"])
def test_a_solver_that_diverges_is_named(solver: str) -> None:
    """At so few steps they are not stable, and end far from data of unit size."""
    with pytest.warns(sg.diagnosis.ImplausibleWarning):
        res = sg.sample(MODES.score(VP), VP, (8, D), solver=solver, nfe=13, seed=0)
    assert float(res.x.square().mean().sqrt()) > 3


class Dropping(nn.Module):
    """A score with layers that train mode puts to use."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), *layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """-x / (alpha^2 + sigma^2) but for nothing."""
        return -x + 0 * self.layers(x)


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(2)], ids=["Dropout", "BatchNorm"])
def test_train_mode_is_told_of_once(layer: nn.Module) -> None:
    """Once for each network, for samples as for codes, and the mode stays."""
    net = Dropping(layer)
    with pytest.warns(sg.scores.TrainModeWarning, match=type(layer).__name__):
        sg.sample(net, VP, (4, 2), nfe=4, seed=0)
    sg.sample(net, VP, (4, 2), nfe=4, seed=0)
    assert net.training
    other = Dropping(layer)
    with pytest.warns(sg.scores.TrainModeWarning, match="net.eval"):
        sg.encode(other, VP, torch.zeros(2, 2), method=FixedGrid(6))


class Holder:
    """An object that trains one network and samples with another, as trainers do."""

    def __init__(self, trained: nn.Module, average: nn.Module) -> None:
        self.trained = trained
        self.average = average

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.of_average(x, t)

    def of_average(self, x: Tensor, t: Tensor) -> Tensor:
        return self.average(x, t)


HELD = Holder(Dropping(), Dropping())

IN_FUNCTIONS: dict[str, Callable[[Dropping], Network]] = {
    "closure": lambda net: lambda x, t: net(x, t),
    "method": lambda net: net.forward,
    "partial": lambda net: partial(net),
    "partial of a function": lambda net: partial(lambda net, x, t: net(x, t), net),
    "default": lambda net: lambda x, t, net=net: net(x, t),
    "module inside": lambda net: lambda x, t: 0 * net.layers(x) - x,
    "dictionary": lambda net: lambda x, t, of={"net": net}: of["net"](x, t),
    "object": lambda net: Holder(Dropping(), net),
    "method of an object": lambda net: Holder(Dropping(), net).of_average,
    "object that is named": lambda net: lambda x, t: HELD.average(x, t),
    "score inside": lambda net: sg.from_score(sg.from_score(net, VP), VP),
}


@pytest.mark.parametrize("how", IN_FUNCTIONS)
def test_train_mode_is_told_of_behind_a_function(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not of the network that is trained while another one is called."""
    net = Dropping(nn.Dropout(0.1))
    monkeypatch.setattr(HELD, "average", net)
    with pytest.warns(sg.scores.TrainModeWarning, match="Dropout"):
        sg.sample(IN_FUNCTIONS[how](net), VP, (4, 2), nfe=4, seed=0)
    sg.sample(IN_FUNCTIONS[how](net), VP, (4, 2), nfe=4, seed=0)

    held = Holder(Dropping(nn.Dropout(0.1)), Dropping(nn.Dropout(0.1)).eval())
    monkeypatch.setattr(HELD, "trained", held.trained)
    monkeypatch.setattr(HELD, "average", held.average)
    for called in (held, held.of_average, lambda x, t: held.average(x, t), lambda x, t: HELD.average(x, t)):
        sg.sample(called, VP, (4, 2), nfe=4, seed=0)


def test_networks_that_are_the_same_in_both_modes_are_not_told_of() -> None:
    """No layer of that kind, none that drops, or all of them in eval mode."""
    half = Dropping(nn.BatchNorm1d(2))
    half.layers.eval()
    for net in (Dropping(), Dropping(nn.Dropout(0.0)), Dropping(nn.Dropout(0.5)).eval(), half):
        sg.sample(net, VP, (4, 2), nfe=4, seed=0)


@pytest.mark.parametrize("process", ["ve", "vp", "ncsn"])
def test_a_ladder_of_one_dimension_goes_far_and_is_right(process: str) -> None:
    """A hundred Langevin updates at a level move further than its noise; warnings are errors here."""
    sde = LINEAR[process]
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
    solver = sg.schemes.AnnealedLangevin(0.2, 100)
    res = sg.sample(score, sde, (200, 1), solver=solver, steps=20, seed=0)
    assert res.status.ok and abs(float(res.x.var()) - 1) < 0.3


def test_states_of_a_fitted_solver_are_its_own() -> None:
    """A table that goes through a state of 500 at the noise level 1 to samples of 100 was not thrown out."""
    sde = sg.EDMSDE()
    table = Table((10.0, 1.0), (10.0, 500.0, 0.0), ((0.0,), (0.0, 1.0)))
    oracle = sg.oracles.Gaussian(torch.zeros(64), 0.25)
    res = sg.sample(oracle.score(sde), sde, (4, 64), solver=Calibrated(table), seed=0)
    assert float(res.x.square().mean().sqrt()) == pytest.approx(100.0, rel=0.1)
    assert res.status.ok
