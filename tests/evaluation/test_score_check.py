"""A network that is not what it was taken for is told what it is."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.sampling.start import PriorWarning
from sgm_sde.testing import CheckError, ScoreCheck, check_score
from tests.conventions import some_slow
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
    [
        *((process, "noise") for process in LINEAR if process != "ncsn"),
        pytest.param("ncsn", "noise", marks=pytest.mark.filterwarnings("ignore:these data are not only noise at T")),
        *(("vp", name) for name in ("data", "v", "flow", "score")),
    ],
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
    with pytest.warns(sg.testing.ScoreCheckWarning, match="1.25 times as much as the best linear estimate"):
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
            r"not finite at t=0\.\d+ in samples 0, 1, 2, 3, 4, 5, 6, 7 and \d+ more",
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


@pytest.mark.filterwarnings("ignore:samples of the network itself")
def test_a_level_that_was_not_learnt_is_told() -> None:
    """The errors at large noise alone exceed the Gaussian's; their geometric mean does not."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        D = EXACT.predict("data", x, t)
        return D + 1.5 * (SDE.sigma(t) / SDE.alpha(t) > 4.0)[:, None]

    with pytest.warns(sg.testing.ScoreCheckWarning, match=r"at sigma/alpha = .* the network errs 1\.\d+ times"):
        assert check_score(sg.from_denoiser(net, SDE), DATA).ratio < 1


@pytest.mark.filterwarnings("ignore:samples of the network itself")
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


@pytest.mark.parametrize("process", ["vp", *some_slow(["edm", "flow"])])
@pytest.mark.parametrize("prediction", ["noise", "data"])
@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        (1.0, 20.0),
        (127.5, 127.5),
        (0.5, 0.0),
        *(pytest.param(*of, marks=pytest.mark.slow) for of in ((0.5, 0.5), (3.0, 0.0))),
    ],
)
def test_data_of_another_place_or_scale(process: str, prediction: str, scale: float, shift: float) -> None:
    """Are no fault of the reading: the error says what data the network knows."""
    sde = LINEAR[process]
    law = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]]), 0.3)
    exact = law.score(sde)
    score = sg.Score(lambda x, t: exact.predict(prediction, x, t), sde, prediction)
    data = law.sample(128, seed=1)
    assert check_score(score, data).ratio < 1
    given = scale * data + shift
    with pytest.raises(CheckError, match=r"read as it is given, knows data around -.* of standard deviation 0") as told:
        check_score(score, given)
    known = float(str(told.value).split("of standard deviation ")[1].split(",")[0])
    assert known == pytest.approx(0.786, rel=0.1)  # of the law, by 128 samples
    std = float(given.std(0, correction=0).square().mean().sqrt())
    assert f"these are around {float(given.mean()):.3g} of {std:.3g}: give data" in str(told.value)


TINY_TABLE = sg.DiscreteVPSDE(torch.linspace(1e-4, 0.02, 50).tolist())  # alpha(T) = 0.78


@pytest.mark.parametrize(
    ("sde", "mean", "std"),
    [(SDE, 76.0, 69.0), (SDE, 127.0, 60.0), (sg.EDMSDE(0.002, 1.0), 0.0, 1.0), (TINY_TABLE, 0.0, 1.0)],
    ids=["pixels", "bright pixels", "edm", "short table"],
)
def test_data_that_noise_does_not_hide_are_told(sde: sg.LinearSDE, mean: float, std: float) -> None:
    """By how much a run from noise alone misses Gaussian data, whose exact score has no other fault."""
    law = sg.oracles.Gaussian(torch.full((8,), mean), std**2)
    share = float(sde.alpha(sde.T)) / sde.prior_std
    kept = 1 / math.hypot(1, share * std)
    with pytest.warns(PriorWarning, match="start from noised data, x_T=sde.alpha") as told:
        assert check_score(sg.from_score(law.score(sde), sde), law.sample(2048, seed=0)).ratio < 1.01
    said = float(str(told[0].message).split("off by some ")[1].split()[0])
    assert said == pytest.approx(math.hypot(share * mean * kept, 1 - kept), rel=0.05)


@pytest.mark.parametrize("gain", [-0.05, 0.05])
def test_samples_that_spread_otherwise_than_the_data_are_told(gain: float) -> None:
    r"""A noise estimate of N(0, I) times 1 + a above s_0: d log std = (1 + a) s^2 / (1 + s^2) d log s there."""
    start = 0.6

    def noise(x: Tensor, t: Tensor) -> Tensor:
        factor = 1 + gain * (t > start).to(x)
        return (factor * VP.sigma(t))[:, None] * x

    levels = [float(VP.sigma(t) / VP.alpha(t)) for t in torch.tensor([start, VP.T], dtype=torch.float64)]
    low, high = levels
    expected = ((1 + low**2) / (1 + high**2)) ** (gain / 2)
    data = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(sg.testing.ScoreCheckWarning, match="samples of the network itself spread") as told:
        assert check_score(sg.from_noise(noise, VP), data).ratio < 1.01
    said = float(str(told[0].message).split("spread ")[1].split()[0])
    assert said == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("process", ["cosine", "vp", "edm", "flow"])
@pytest.mark.parametrize("correlated", [False, True])
def test_exact_networks_of_gaussians_are_not_accused(process: str, correlated: bool) -> None:
    """Their samples spread as the data, and no linear estimate is better."""
    sde = LINEAR[process]
    covariance = torch.eye(8) + 3 * float(correlated) * torch.ones(8, 8)
    law = sg.oracles.Gaussian(torch.ones(8), covariance)
    assert check_score(sg.from_score(law.score(sde), sde), law.sample(128, seed=0)).ratio < 1.01


def test_a_network_that_was_not_trained_is_told() -> None:
    """What EDM's preconditioning makes of an output of 0, for numbers that go together: no worse than a Gaussian's."""
    law = sg.oracles.Gaussian(torch.zeros(8), 0.2 * torch.eye(8) + 0.8 * torch.ones(8, 8))
    score, _ = sg.adapters.from_edm(lambda x, sigma: x / (1 + sigma[:, None] ** 2))
    with pytest.warns(sg.testing.ScoreCheckWarning, match="has it been trained, and are its weights loaded") as told:
        assert check_score(score, law.sample(256, seed=0)).ratio == pytest.approx(1.0, abs=0.02)
    said = float(str(told[0].message).split("errs ")[1].split()[0])
    variances = torch.tensor([0.2] * 7 + [6.6], dtype=torch.float64)
    squared = torch.tensor([0.2, 0.33, 0.6, 1.0, 1.7, 3.0, 5.0], dtype=torch.float64)[:, None] ** 2
    least = (variances * squared / (variances + squared)).mean(1)
    network = squared[:, 0] / (1 + squared[:, 0])
    assert said == pytest.approx(float((network / least).log().mean().div(2).exp()), rel=0.05)


def test_a_network_of_another_sigma_data_is_told() -> None:
    """Preconditioned for 0.5 where it was trained for 1: its samples are half as wide."""
    sde = sg.EDMSDE()
    law = sg.oracles.GaussianMixture(torch.tensor([[-0.95], [0.95]]).expand(2, 8).clone(), 0.3)
    exact = law.score(sde)

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        y = x * ((1 + s**2) / (0.25 + s**2)).sqrt()  # what the bare network takes for its state
        D = exact.denoised(y, sigma.double().clamp(sde.eps, sde.T)).to(y)
        F = (D - y / (1 + s**2)) * (1 + s**2).sqrt() / s
        return 0.25 / (0.25 + s**2) * x + 0.5 * s / (0.25 + s**2).sqrt() * F

    with pytest.raises(CheckError, match=r"knows data around 0.* of standard deviation 0.4.*, and these .* of 0.9"):
        check_score(sg.from_denoiser(denoised, sde), law.sample(128, seed=0))


@pytest.mark.filterwarnings("ignore:near pure noise", "ignore:samples of the network itself")
@pytest.mark.parametrize("n", [16, 64])
def test_a_reading_that_is_better_at_one_level_only_is_not_named(n: int) -> None:
    """As of a level that was not learnt, where another scale of the state happens to err less."""
    sde = sg.EDMSDE(sigma_max=20.0)
    law = sg.oracles.Gaussian(torch.zeros(16), 0.04)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        wrong = torch.where(sigma > 0.9, (1 + sigma**2).sqrt(), 1.0)
        return -(wrong / (sigma**2 + 0.04))[:, None] * x

    with pytest.warns(sg.testing.ScoreCheckWarning, match="it has not learnt that level"):
        assert check_score(sg.from_score(score, sde), law.sample(n, seed=0)).ratio < 1.2


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_what_an_adapter_negates_is_named_by_its_own_option(scale: float) -> None:
    """The network in the error is the user's, and not its negative."""
    sde = sg.RectifiedFlowSDE()
    exact = LAW.score(sde)

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        t = 1 - tau.double() / scale
        return -exact.predict("flow", x, t.clamp(sde.eps, sde.T)).to(x)

    right, _ = sg.adapters.from_flow_matching(velocity, from_noise=True, scale=scale)
    assert check_score(right, MANY).ratio < 1
    wrong, _ = sg.adapters.from_flow_matching(velocity, from_noise=True, scale=1001 - scale)
    option = "" if scale == 1 else ", scale=1000"
    with pytest.raises(CheckError) as told:
        check_score(wrong, MANY)
    assert "from_flow(lambda x, t: -net(x, t), sde, time_label=time_labels.flow_from_noise(" in str(told.value)
    assert f"as adapters.from_flow_matching(net, from_noise=True{option}) makes it" in str(told.value)


def test_a_network_whose_output_an_adapter_reads_is_named() -> None:
    """The reading is of what the adapter made of it."""

    class Denoiser:
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return VP.alpha(t.clamp(VP.eps)), VP.sigma(t.clamp(VP.eps))

        def __call__(self, x: Tensor, t: Tensor) -> Any:
            return SimpleNamespace(mean=LAW.score(VP).predict("noise", x, t.clamp(VP.eps)))

    score, _ = sg.adapters.from_azula(Denoiser())
    with pytest.raises(CheckError, match=r"from_noise\(net, sde\), where net is score.net, in which the adapter holds"):
        check_score(score, DATA)


def by_reversed_index(x: Tensor, index: Tensor) -> Tensor:
    """Noise of a network whose first index is pure noise."""
    return by_index("noise")(x, 999 - index)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (
            sg.from_noise(by_reversed_index, SDE, time_label=sg.time_labels.ddpm(1000, integer=True)),
            "from_noise(net, sde, time_label=time_labels.flow_from_noise(1000))",  # 1000 (1 - t), the same,
        ),
        (
            sg.from_noise(lambda x, t: LAW.score(VP).predict("noise", x, (1 - t / 50).clamp(VP.eps, 1.0)), VP,
                          time_label=lambda t: 50 * t),
            "from_noise(net, sde, time_label=lambda t: label(1 - t), with the label as given)",
        ),
    ],
    ids=["table", "time"],
)  # fmt: skip
def test_a_time_that_runs_the_other_way_is_named(score: sg.Score, said: str) -> None:
    with pytest.raises(CheckError) as told:
        check_score(score, MANY)
    assert said in str(told.value)


@pytest.mark.parametrize("sde", [VP, SDE], ids=["time", "table"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_labels_that_data_do_not_distinguish_are_all_named(sde: sg.LinearSDE, offset: float) -> None:
    """1000 t and the index 1000 t - 1, whichever it was."""
    exact = LAW.score(sde)

    def noise(x: Tensor, label: Tensor) -> Tensor:
        t = ((label.double() + offset) / 1000).clamp(sde.eps, sde.T)
        return exact.predict("noise", x, t).to(x)

    with pytest.raises(CheckError) as told:
        check_score(sg.from_noise(noise, sde), DATA)
    named, others = str(told.value).split("; these data do not distinguish that label from ")
    labels = ["time_labels.flow(1000)", "time_labels.ddpm(1000)"]
    first, second = labels if sde is VP else labels[::-1]
    assert first in named and second in others


def test_another_reading_that_explains_as_much_as_other_data_is_named_beside_them() -> None:
    """A flow from noise, read as one from data: of a Gaussian it is that of other data, exactly."""
    sde = sg.RectifiedFlowSDE()
    law = sg.oracles.Gaussian(torch.full((4,), 0.4), 0.09)
    exact = law.score(sde)

    def velocity(x: Tensor, tau: Tensor) -> Tensor:
        return -exact.predict("flow", x, (1 - tau).clamp(sde.eps, sde.T))

    with pytest.raises(CheckError, match="give data of the place and scale that it was trained on; or, ") as told:
        check_score(sg.from_flow(velocity, sde), law.sample(64, seed=3))
    assert "as adapters.from_flow_matching(net, from_noise=True) makes it" in str(told.value)


def test_a_network_that_keeps_something_between_calls_is_told() -> None:
    """A hundredth of its estimate is that of the call before: its second call on the same states is another."""
    kept = [torch.zeros_like(DATA)]

    def noise(x: Tensor, index: Tensor) -> Tensor:
        own = by_index("noise")(x, index)
        kept.append(torch.lerp(own, kept[-1], 0.01) if kept[-1].shape == own.shape else own)
        return kept[-1]

    score = sg.from_noise(noise, SDE, time_label=sg.time_labels.ddpm(1000))
    with pytest.warns(sg.testing.ScoreCheckWarning, match="asked again for the same states, the network moves"):
        check_score(score, DATA)


def rounded(x: Tensor, out: Callable[[Tensor], Tensor]) -> Tensor:
    return out(torch.round(x * 64) / 64)


def half_detached(x: Tensor, out: Callable[[Tensor], Tensor]) -> Tensor:
    value = out(x)
    return torch.cat([value[:, :1], value[:, 1:].detach()], 1)


@pytest.mark.parametrize("prediction", ["noise", "data", "v", "flow", "score"])
@pytest.mark.parametrize("change", [rounded, half_detached])
def test_lost_gradients_are_told(
    change: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor], prediction: str
) -> None:
    """Of the output, as behind rounding, or of half of it: samples are as before, and densities are wrong."""

    def net(x: Tensor, index: Tensor) -> Tensor:
        return change(x, lambda x: by_index(prediction)(x, index))

    make = getattr(sg, "from_" + {"data": "denoiser"}.get(prediction, prediction))
    score = make(net, SDE, time_label=sg.time_labels.ddpm(1000))
    with pytest.warns(sg.testing.ScoreCheckWarning, match="the network's gradient is not that of its output"):
        check_score(score, DATA)


def test_a_network_of_many_numbers_is_differentiated_at_some_of_the_data() -> None:
    """64 of them, with their rows of the conditions; one without any gradient is refused where it needs one."""
    law = sg.oracles.Gaussian(torch.zeros(256), 0.25)
    exact = law.score(SDE)
    data = law.sample(80, seed=0)
    seen = []

    def noise(x: Tensor, index: Tensor, shift: Tensor) -> Tensor:
        seen.append((len(x), len(shift)))
        t = ((index.double() + 1) / 1000).clamp(1e-3, 1.0)
        return exact.predict("noise", x, t).to(x.dtype).detach()

    score = sg.from_noise(noise, SDE, time_label=sg.time_labels.ddpm(1000))
    check_score(score, data, model_kwargs={"shift": sg.PerSample(torch.zeros(80, 256))})
    assert (64, 64) in seen


def test_a_network_that_draws_noise_of_its_own_is_told() -> None:
    def noise(x: Tensor, index: Tensor) -> Tensor:
        own = by_index("noise")(x, index)
        return own + 0.01 * torch.randn_like(x)

    score = sg.from_noise(noise, SDE, time_label=sg.time_labels.ddpm(1000))
    with pytest.warns(sg.testing.ScoreCheckWarning, match="or draws noise of its own") as told:
        check_score(score, DATA)
    said = float(str(told[0].message).split("estimates by ")[1].split()[0])
    assert 0.003 < said < 0.03


def test_data_of_one_number() -> None:
    """Of the shape (n,), as of (n, 1)."""
    sde = sg.VPSDE()
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    score = sg.from_score(lambda x, t: -x, sde)  # of N(0, 1)
    assert str(sg.testing.check_score(score, x)) == str(sg.testing.check_score(score, x[:, None]))
