"""A network that is not what it was taken for is told what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.testing import CheckError, check_score
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
            sg.from_noise(lambda x, t: 0 * x, SDE),
            "says less of these data than a Gaussian fitted to them:\nsigma/alpha",
        ),
    ],
    ids=["label", "noise as v", "v as noise", "data as noise without a label", "noise as score", "sign", "no reading"],
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


@pytest.mark.parametrize(
    ("score", "data", "error", "match"),
    [
        (lambda x, t: x, DATA, TypeError, "from_noise"),
        (EXACT, DATA[:8], ValueError, r"at least 16 data, got a tensor of shape \(8, 2\)"),
        (EXACT, DATA * float("nan"), ValueError, "finite"),
        (EXACT, torch.zeros(32, 2), ValueError, "differ"),
    ],
    ids=["function", "few", "nan", "constant"],
)
def test_refused(score: Any, data: Tensor, error: type[Exception], match: str) -> None:
    """In the user's words."""
    with pytest.raises(error, match=match):
        check_score(score, data)
