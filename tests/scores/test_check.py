"""A network that is not what it was taken for is told what it is."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.testing import CheckError, ScoreCheck, check_score
from tests.helpers import LINEAR

LAW = sg.oracles.GaussianMixture(torch.tensor([[-2.0, -2.0], [1.0, 1.0]]), 0.2)
DATA = LAW.sample(48, seed=0)
SDE = sg.presets.ddpm()
EXACT = LAW.score(SDE)
LABEL = sg.time_labels.ddpm(1000)


def by_index(prediction: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact prediction of a network that knows times as indices of the table."""

    def net(x: Tensor, index: Tensor) -> Tensor:
        t = ((index.double() + 1) / 1000).clamp(1e-3, 1.0)
        return EXACT.predict(prediction, x, t).to(x.dtype)

    return net


@pytest.mark.parametrize(
    ("process", "prediction"),
    [*((process, "noise") for process in LINEAR), *(("vp", name) for name in ("data", "v", "flow", "score"))],
)
def test_what_a_network_is_passes(process: str, prediction: str) -> None:
    """On every process and for every prediction, exact estimates are better than a Gaussian's."""
    sde = LINEAR[process]
    exact = LAW.score(sde)
    score = sg.Score(lambda x, t: exact.predict(prediction, x, t), sde, prediction)
    found = check_score(score, DATA)
    assert 0 < found.ratio < 1
    assert "network / Gaussian" in str(found)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (sg.from_noise(by_index("noise"), SDE), "from_noise(net, sde, time_label=time_labels.ddpm(1000))"),
        (sg.from_v(by_index("noise"), SDE, time_label=LABEL), "from_noise(net, sde, time_label=...)"),
        (sg.from_noise(by_index("v"), SDE, time_label=LABEL), "from_v(net, sde, time_label=...)"),
        (sg.from_noise(by_index("data"), SDE), "from_denoiser(net, sde, time_label=time_labels.ddpm(1000))"),
        (sg.from_score(by_index("noise"), SDE, time_label=LABEL), "from_noise(net, sde, time_label=...)"),
        (
            sg.from_flow(lambda x, t: -by_index("flow")(x, t), SDE, time_label=LABEL),
            "from_flow(lambda x, t: -net(x, t), sde, time_label=...)",
        ),
        (
            sg.from_v(lambda x, t: -by_index("v")(x, t), SDE, time_label=LABEL),
            "from_v(lambda x, t: -net(x, t), sde, time_label=...)",
        ),
        (
            sg.from_noise(lambda x, t: -by_index("data")(x, t), SDE, time_label=LABEL),
            "from_denoiser(lambda x, t: -net(x, t), sde, time_label=...)",
        ),
        (
            sg.from_noise(lambda x, t: 0 * x, SDE),
            "says less of these data than a Gaussian fitted to them:\nsigma/alpha",
        ),
    ],
    ids=[
        "label",
        "noise as v",
        "v as noise",
        "data as noise without a label",
        "noise as score",
        "sign",
        "sign of v",
        "sign of data",
        "no reading",
    ],
)
def test_what_a_network_is_not_is_said(score: sg.Score, said: str) -> None:
    """The constructor and the options that the network was made for, of those that literature has."""
    with pytest.raises(CheckError) as error:
        check_score(score, DATA)
    assert said in str(error.value)


def test_a_network_that_looks_its_time_up() -> None:
    """Readings that the network does not take are passed over; what it raises for the given one is its own error."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times = nn.Embedding(1000, 1)
            self.times.weight.data = ((torch.arange(1000) + 1) / 1000)[:, None]

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return EXACT.predict("v", x, self.times(index)[:, 0])

    right = sg.time_labels.ddpm(1000, integer=True)
    assert check_score(sg.from_v(Table(), SDE, time_label=right), DATA).ratio < 1
    with pytest.raises(CheckError, match=r"from_v\(net, sde, time_label=\.\.\.\)"):
        check_score(sg.from_noise(Table(), SDE, time_label=right), DATA)
    with pytest.raises((RuntimeError, IndexError), match="indices"):
        check_score(sg.from_v(Table(), SDE), DATA)


def test_arguments_of_the_network_are_passed_on() -> None:
    """As rows of the data."""

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return EXACT.predict("noise", x, t) + y[:, None]

    score, y = sg.from_noise(net, SDE), torch.zeros(len(DATA))
    assert check_score(score, DATA, model_kwargs={"y": y}).ratio < 1
    with pytest.raises(CheckError, match="less of these data than a Gaussian"):
        check_score(score, DATA, model_kwargs={"y": y + 5})


@pytest.mark.parametrize("prediction", ["rectified", "drift"])
def test_predictions_that_no_constructor_has(prediction: str) -> None:
    """Are among the readings, and stay where they are right."""
    score = sg.Score(lambda x, t: EXACT.predict(prediction, x, t), SDE, prediction)
    assert check_score(score, DATA).ratio < 1


def test_readings_that_are_not_finite_are_passed_over() -> None:
    """Such as those of a network whose output is infinite at times that are no indices."""

    def net(x: Tensor, index: Tensor) -> Tensor:
        return by_index("noise")(x, index) / (index[:, None] > 1)

    assert check_score(sg.from_noise(net, SDE, time_label=LABEL), DATA).ratio < 1


def test_a_process_of_next_to_no_signal_is_compared_at_the_levels_of_the_data() -> None:
    """alpha = exp(-740 t), whose noise level at T is beyond double precision."""
    sde = sg.LinearSDE.from_schedule(lambda t: (-740 * t).exp(), lambda t: (-torch.expm1(-1480 * t)).sqrt(), eps=1e-5)
    fitted = sg.oracles.Gaussian(DATA.mean(0), float(DATA.var(0, unbiased=False).mean()))
    found = check_score(sg.from_score(fitted.score(sde), sde), DATA)
    assert found.levels[-1] == pytest.approx(5 * float(DATA.std(0, unbiased=False).square().mean().sqrt()), rel=1e-6)
    assert found.ratio == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("seed", [0, 7])
def test_its_noise_is_nobody_else_s(seed: int) -> None:
    """Data that a generator of the same seed has drawn are no part of the noise, nor are a run's of that seed."""
    seen: list[Tensor] = []

    def kept(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x - SDE.alpha(t[0]) * data) / SDE.sigma(t[0]))
        return -x

    shape = (400, 2)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for data in (drawn, SDE.prior_sample(shape, seed=seed)):
        seen.clear()
        with contextlib.suppress(CheckError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_score(sg.from_score(kept, SDE), data, seed=seed)
        assert abs(float((seen[0] * data).mean())) < 4 / math.sqrt(data.numel())


def test_a_network_in_train_mode_is_told() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return EXACT.predict("noise", x, t) + 0 * self.dropout(x)

    with pytest.warns(sg.scores.TrainModeWarning, match="Dropout"):
        check_score(sg.from_noise(Net(), SDE), DATA)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"score": lambda x, t: x}, TypeError, "from_noise"),
        ({"score": sg.from_score(lambda x, t: x, sg.CLD())}, TypeError, r"needs a LinearSDE, got CLD\("),
        (
            {"score": sg.from_noise(lambda x, t: x / 0, SDE)},
            ValueError,
            r"not finite at t=0\.\d+ in sample 0",
        ),
        ({"data": DATA[:8]}, ValueError, r"at least 16 data, got a tensor of shape \(8, 2\)"),
        ({"data": DATA[:, :0]}, ValueError, r"got a tensor of shape \(48, 0\)"),
        ({"data": DATA * float("nan")}, ValueError, "data must be finite, sample 0 is not"),
        ({"data": torch.zeros(32, 2)}, ValueError, "differ from one another, got a standard deviation of 0"),
        ({"data": DATA.int()}, TypeError, r"floating tensor \(n, \*\), got dtype torch.int32"),
        ({"data": DATA.tolist()}, TypeError, r"floating tensor \(n, \*\), got \[\["),
        ({"data": DATA.to("meta")}, TypeError, "got one on the device meta, which has no numbers"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0, got -1"),
        ({"model_kwargs": [1]}, TypeError, r"model_kwargs must map names to arguments of the network, got \[1\]"),
        ({"model_kwargs": {"y": sg.PerSample(torch.zeros(8))}}, ValueError, r"shape \(8,\): expected one row .* 48"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refused(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    """In the user's words."""
    given = {"score": EXACT, "data": DATA} | changes
    with pytest.raises(error, match=match):
        check_score(**given)


def test_a_result_has_as_many_errors_as_levels() -> None:
    with pytest.raises(ValueError, match="got 1 in levels, 2 in errors, 1 in gaussian"):
        ScoreCheck((1.0,), (1.0, 2.0), (1.0,))
    with pytest.raises(TypeError, match="errors must be a sequence of numbers, got 1"):
        ScoreCheck((1.0,), 1.0, (1.0,))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["levels", "errors", "gaussian"])
def test_errors_are_not_negative(name: str) -> None:
    given = {"levels": (0.5, 2.0), "errors": (0.1, 0.4), "gaussian": (0.2, 0.8)}
    with pytest.raises(ValueError, match=f"{name} of a ScoreCheck are not negative, got -1.0"):
        ScoreCheck(**given | {name: (0.5, -1.0)})


MANY = LAW.sample(256, seed=1)
VP = sg.VPSDE()
LEVEL = sg.time_labels.noise_level(VP)


def edm(y: Tensor, level: Tensor) -> Tensor:
    """The exact denoiser in EDM's coordinates."""
    sde = sg.EDMSDE()
    return LAW.score(sde).denoised(y, level.double().clamp(sde.eps, sde.T)).to(y.dtype)


def coupled(x: Tensor, tau: Tensor) -> Tensor:
    """Data minus noise where data are 0.4 times the noise that they came from, in a time from noise to data."""
    return -0.6 / (0.4 * tau + (1 - tau))[:, None] * x


SUBTLE = {
    "input scale": (
        sg.from_denoiser(edm, VP, time_label=LEVEL),
        "from_denoiser(net, sde, input_scale=lambda t: 1 / sde.alpha(t), time_label=...)",
    ),
    "schedule": (
        sg.from_noise(by_index("noise"), sg.presets.iddpm_cosine(), time_label=LABEL),
        "from_noise(net, sde=sg.presets.ddpm(1000), time_label=time_labels.ddpm(1000))",
    ),
    "schedule of data": (
        sg.from_denoiser(by_index("data"), sg.presets.iddpm_cosine(), time_label=LABEL),
        "from_denoiser(net, sde=sg.presets.ddpm(1000), time_label=time_labels.ddpm(1000))",
    ),
}


@pytest.mark.parametrize("case", SUBTLE)
def test_what_is_wrong_by_little_is_found_with_more_data(case: str) -> None:
    """Where the given reading is no worse than a Gaussian's, datum by datum and with more noises."""
    score, said = SUBTLE[case]
    with pytest.raises(CheckError) as error:
        check_score(score, MANY)
    assert said in str(error.value)


def test_the_right_scale_passes() -> None:
    right = sg.from_denoiser(edm, VP, time_label=LEVEL, input_scale=lambda t: 1 / VP.alpha(t))
    assert check_score(right, MANY).ratio < 1


def test_a_flow_in_the_wrong_direction_is_named_where_no_reading_is_as_good_as_a_gaussian() -> None:
    """Pairs that were coupled: with independent noise the right reading errs more than a Gaussian too."""
    data = 0.4 * torch.randn(128, 2, generator=torch.Generator().manual_seed(9))
    right, _ = sg.adapters.from_flow_matching(coupled, from_noise=True, coupled=True)
    found = check_score(right, data)
    assert found.ratio > 1
    with pytest.raises(CheckError, match=r"from_flow\(lambda x, t: -net\(x, t\), sde, time_label="):
        check_score(sg.adapters.from_flow_matching(coupled)[0], data)


def test_a_level_that_was_not_learnt_is_told() -> None:
    """The errors at large noise alone exceed the Gaussian's; their geometric mean does not."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        D = EXACT.predict("data", x, t)
        return D + 1.5 * (SDE.sigma(t) / SDE.alpha(t) > 4.0)[:, None]

    with pytest.warns(sg.testing.ScoreCheckWarning, match=r"at sigma/alpha = .* the network errs 1\.\d+ times"):
        assert check_score(sg.from_denoiser(net, SDE), DATA).ratio < 1


@pytest.mark.parametrize("process", ["cosine", "ddpm", "vp", "edm", "flow"])
def test_a_noise_estimate_that_is_wrong_near_pure_noise_is_told(process: str) -> None:
    """The same error of the noise everywhere above the levels of the data: told by how far its flow goes."""
    sde = LINEAR[process]
    exact = LAW.score(sde)
    std = float(DATA.std(0, unbiased=False).square().mean().sqrt())

    def net(error: float) -> Callable[[Tensor, Tensor], Tensor]:
        def noise(x: Tensor, t: Tensor) -> Tensor:
            far = sde.sigma(t) / sde.alpha(t) > 7 * std
            return exact.predict("noise", x, t) + error * far[:, None]

        return noise

    last = 0.99 * float(sde.sigma(torch.tensor(sde.T).double()) / sde.alpha(torch.tensor(sde.T).double()))
    expected = 0.3 * math.log(last / (7 * std))
    with pytest.warns(sg.testing.ScoreCheckWarning, match="near pure noise") as found:
        check_score(sg.from_noise(net(0.3), sde), DATA)
    said = str(found[0].message)
    moved = float(said.split("moves samples by up to ")[1].split(" of it")[0])
    assert moved == pytest.approx(expected, abs=0.3 / 2)  # half a step between levels, a factor e apart
    start = float(said.split("t_start=")[1].split(",")[0])
    assert sde.eps < start < sde.T
    check_score(sg.from_noise(net(0.005), sde), DATA)


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("prediction", ["noise", "data"])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 20.0), (127.5, 127.5), (0.5, 0.0), (0.5, 0.5), (3.0, 0.0)])
def test_data_of_another_place_or_scale(process: str, prediction: str, scale: float, shift: float) -> None:
    """Are no fault of the reading: the error says what data the network knows."""
    sde = LINEAR[process]
    law = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]]), 0.3)
    exact = law.score(sde)
    score = sg.Score(lambda x, t: exact.predict(prediction, x, t), sde, prediction)
    data = law.sample(128, seed=1)
    assert check_score(score, data).ratio < 1
    given = scale * data + shift
    with pytest.raises(
        CheckError, match=r"read as it is given, knows data around -.* of standard deviation 0.7"
    ) as told:
        check_score(score, given)
    std = float(given.std(0, correction=0).square().mean().sqrt())
    assert f"these are around {float(given.mean()):.3g} of {std:.3g}: give data" in str(told.value)
