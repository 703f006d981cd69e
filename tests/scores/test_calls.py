"""What a network raises stays its own, and a note says what the call was and what to give instead."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.scores.calls import CALLED
from tests.conventions import case_id

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")

VP = sg.VPSDE()
CLASSES = nn.Embedding(4, 2)
CONVOLUTION = nn.Conv2d(3, 3, 3, padding=1)
LABELLED = "`time_label=` says what it gets as time: indices of a table by sgm_sde.time_labels.ddpm(n, integer=True)"
INT64 = "classes and indices are int64 tensors (B,), as torch.tensor([3, 7]) is or y.long()"
CALLED_AS = "a network is called as net(x, t, **model_kwargs), and one of another form goes in a function: "


def linear(dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    """A network whose weights nobody sees, for two numbers."""
    layer = nn.Linear(2, 2, dtype=dtype)
    return lambda x, t: layer(x)


def of_time(x: Tensor, t: Tensor) -> Tensor:
    """A network with half weights for its time alone."""
    return x * nn.Linear(1, 2, dtype=torch.float16)(t[:, None])


def classes(x: Tensor, t: Tensor, y: Any) -> Tensor:
    """A network that looks classes up."""
    return x + CLASSES(y)


def gradient(x: Tensor) -> Tensor:
    """Of an energy, where gradients are on."""
    return torch.autograd.grad(x.square().sum(), x)[0]


def saying(words: str) -> Callable[..., Tensor]:
    """A network that raises what torch would on a machine with other devices."""

    def raising(x: Tensor, t: Tensor, **_: Any) -> Tensor:
        raise RuntimeError(words)

    return raising


def sampled(net: Callable[..., Tensor], *, shape: tuple[int, ...] = (3, 2), **options: Any) -> sg.SampleResult:
    """Samples of it."""
    given: dict[str, Any] = {} if "x_T" in options else {"shape": shape}
    return sg.sample(sg.from_noise(net, VP), VP, nfe=2, seed=0, **given, **options)


def with_y(y: object, net: Callable[..., Tensor] = classes) -> sg.SampleResult:
    """Samples of these classes."""
    return sampled(net, model_kwargs={"y": y})


ADVICE: dict[str, tuple[Callable[[], object], str]] = {
    # Dtypes.
    "weights in double": (
        lambda: sampled(linear(torch.float64)),
        "the network got x in float32, as x_T or the data are, or as execution=Execution(dtype=...) says: dtype= of "
        "from_noise and its siblings casts x to the dtype of the network's weights",
    ),
    "weights in half": (lambda: sampled(linear(torch.float16)), "the network got x in float32"),
    "a state in double": (
        lambda: sampled(linear(), x_T=torch.zeros(3, 2, dtype=torch.float64)),
        "the network got x in float64, as x_T or the data are",
    ),
    "a convolution in half": (
        lambda: sampled(lambda x, t: nn.Conv2d(3, 3, 1, dtype=torch.float16)(x), shape=(2, 3, 4, 4)),
        "dtype= of from_noise and its siblings casts x",
    ),
    "weights for the time in half": (
        lambda: sg.sample(sg.from_noise(of_time, VP, dtype=torch.float16), VP, (3, 2), nfe=2, seed=0),
        "and the time label stays in float32: lambda x, t: net(x, t.to(x.dtype))",
    ),
    # Devices.
    **{
        f"another device: {words}": (
            lambda words=words: sampled(saying(words)),
            "the state is on cpu, as x_T or the data are, or as execution=Execution(device=...) says: network, state "
            "and conditions go on one device",
        )
        for words in (
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
            "Tensor on device meta is not on the expected device cpu!",
            "Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should be the same",
        )
    },
    "a table on another device": (
        lambda: sg.from_noise(saying("Expected all tensors to be on the same device"), VP)(
            torch.zeros(3, 2), 0.5, nested={"table": torch.zeros(3, device="meta")}
        ),
        "the state is on cpu and nested.table on meta, as x_T or the data are",
    ),
    # Shapes.
    "features": (
        lambda: sampled(linear(), shape=(4, 3)),
        "x is (B, *), here 4 samples of the shape (3,), by shape=, x_T or the data",
    ),
    "features of data": (
        lambda: sg.testing.check_score(sg.from_noise(linear(), VP), torch.eye(64, 3)),
        "here 64 samples of the shape (3,), by shape=, x_T or the data",
    ),
    "channels last": (
        lambda: sampled(lambda x, t: CONVOLUTION(x), shape=(2, 8, 8, 3)),
        "here 2 samples of the shape (8, 8, 3), by shape=, x_T or the data: images are (B, channels, height, width)",
    ),
    "channels": (
        lambda: sampled(lambda x, t: CONVOLUTION(x), shape=(2, 1, 8, 8)),
        "here 2 samples of the shape (1, 8, 8), by shape=, x_T or the data",
    ),
    "images as vectors": (
        lambda: sampled(lambda x, t: CONVOLUTION(x), shape=(2, 192)),
        "here 2 samples of the shape (192,)",
    ),
    "times against images": (lambda: sampled(lambda x, t: x * t, shape=(3, 1, 4, 4)), "as t[:, None, None, None]"),
    "too many indices": (lambda: sampled(lambda x, t: x[:, 0, 0]), "here 3 samples of the shape (2,)"),
    # Conditions.
    "too few classes": (lambda: with_y(torch.tensor([0, 1])), "y has 2 rows for 3 samples"),
    "too many classes": (lambda: with_y(torch.tensor([0, 1, 2, 3])), "y has 4 rows for 3 samples"),
    "classes of floats": (lambda: with_y(torch.zeros(3)), f"y (3,) of float32, state and time by position; {INT64}"),
    "classes of bytes": (lambda: with_y(torch.zeros(3, dtype=torch.uint8)), INT64),
    "a list": (lambda: with_y([0, 1, 2]), "is passed on as it is, here y: give tensors"),
    "an int": (lambda: with_y(1), "is passed on as it is, here y: give tensors"),
    "an array": (lambda: with_y(torch.arange(3).numpy()), "is passed on as it is, here y: give tensors"),
    "a text": (lambda: with_y("cat"), "is passed on as it is, here y: give tensors"),
    "a class beyond the table": (
        lambda: with_y(torch.tensor([0, 4, 1])),
        "a table of n rows has indices from 0 to n - 1, and it got y from 0 to 4",
    ),
    "a class below the table": (lambda: with_y(torch.tensor([0, -1, 1])), "and it got y from -1 to 1"),
    "a class beyond the table of a device": (
        lambda: with_y(torch.tensor([0, 4, 1]), saying("CUDA error: device-side assert triggered")),
        "a table of n rows has indices from 0 to n - 1",
    ),
    "no condition": (
        lambda: sampled(lambda x, t, y: x),
        "model_kwargs= is what it gets besides, here of the name 'y'",
    ),
    "a condition of another name": (
        lambda: sampled(classes, model_kwargs={"label": torch.arange(3)}),
        "model_kwargs= goes by the names of the network's own arguments, of which 'label' is none",
    ),
    # Times.
    "times in the place of indices": (lambda: sampled(lambda x, t: x + CLASSES(t)), f"{INT64}; {LABELLED}"),
    "a time beyond the table": (lambda: sampled(lambda x, t: x + CLASSES((1000 * t).long())), LABELLED),
    # Other forms.
    "more than it says": (lambda: sampled(lambda *args: nn.Linear(2, 2)(*args)), f"{CALLED_AS}lambda x, t: net(x)"),
    "time first": (lambda: sampled(lambda a, b: b + nn.Linear(1, 2)(a[:, None])), "state and time by position"),
    "an energy": (
        lambda: sampled(lambda x, t: gradient(x.requires_grad_())),
        "`with torch.enable_grad():` at x.detach().requires_grad_()",
    ),
    "anything": (lambda: sampled(saying("no")), f"state and time by position; {LABELLED}"),
}


@pytest.mark.parametrize("case", ADVICE, ids=case_id)
def test_what_is_wrong_with_a_call_is_said(case: str) -> None:
    """Beside the network's own exception."""
    call, words = ADVICE[case]
    with pytest.raises((RuntimeError, TypeError, IndexError)) as error:
        call()
    (note,) = error.value.__notes__
    assert note.startswith(CALLED)
    assert words in note


def test_a_call_is_described_by_what_the_network_got() -> None:
    """The inputs by name, with shape and dtype, and a table of times that is given times themselves."""
    table = nn.Embedding(1000, 2)

    def net(x: Tensor, index: Tensor, y: Tensor) -> Tensor:
        return x + table(index)

    score = sg.from_noise(net, sg.presets.ddpm())
    with pytest.raises(RuntimeError, match="indices") as error:
        sg.sample(score, score.sde, (3, 2), nfe=2, seed=0, model_kwargs={"y": torch.arange(3)})
    (note,) = error.value.__notes__
    assert "x (3, 2) of float32, time label (3,) of float32, y (3,) of int64" in note


def test_a_classifier_s_call_is_described() -> None:
    """As that of a network."""
    classifier = sg.guidance.from_classifier(lambda x, t: nn.Linear(3, 10)(x))
    with pytest.raises(RuntimeError, match="cannot be multiplied") as error:
        classifier(torch.zeros(4, 2), torch.ones(4), y=torch.arange(4))
    (note,) = error.value.__notes__
    assert "x is (B, *), here 4 samples of the shape (2,), by shape=, x_T or the data" in note


@pytest.mark.parametrize("null", [4, -1, None])
def test_what_stands_for_no_condition_is_named_where_a_network_does_not_know_it(null: int | None) -> None:
    """Beside the call."""
    score = sg.guidance.ClassifierFree(sg.from_noise(classes, VP), 2.0, null={"y": null})
    with pytest.raises((IndexError, TypeError)) as error:
        sg.sample(score, VP, (3, 2), nfe=2, seed=0, model_kwargs={"y": torch.arange(3)})
    called, named = error.value.__notes__
    assert called.startswith(CALLED)
    assert named.startswith(f"guidance gives the network null={{'y': {null}}} for no condition")


def test_a_label_s_own_exception_says_what_it_was_called_with() -> None:
    score = sg.from_noise(lambda x, t: x, VP, time_label=lambda t: torch.tensor(t.item()))
    with pytest.raises(RuntimeError, match="4 elements") as error:
        sg.sample(score, VP, (4, 2), nfe=2, seed=0)
    assert error.value.__notes__ == ["time_label was called with the times t (B,), here a tensor of shape (4,)"]


class ByName(nn.Module):
    def forward(self, x: Tensor, *, timesteps: Tensor) -> Tensor:
        return x


class AllByName(nn.Module):
    def forward(self, *, sample: Tensor, timestep: Tensor, y: Tensor | None = None) -> Tensor:
        return sample


class TimeFirst(nn.Module):
    def forward(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        return x


class ConditionFirst(nn.Module):
    def forward(self, x: Tensor, context: Tensor | None = None, timesteps: Tensor | None = None) -> Tensor:
        return x


OTHERS = {
    "time by its name": (ByName(), "ByName.forward(x: ", "lambda x, t, **kwargs: net(x, timesteps=t, **kwargs)"),
    "a function": (lambda x, *, sd: x, "<lambda>(x, *, sd) takes", "lambda x, t, **kwargs: net(x, sd=t, **kwargs)"),
    "all by name": (
        AllByName(), "AllByName.forward(*, sample: ", "lambda x, t, **kwargs: net(sample=x, timestep=t, **kwargs)"
    ),
    "time first": (TimeFirst(), "TimeFirst.forward(t: ", "lambda x, t, **kwargs: net(t, x, **kwargs)"),
    "a condition before time": (
        ConditionFirst(), "ConditionFirst.forward(x: ", "lambda x, t, **kwargs: net(x, timesteps=t, **kwargs)"
    ),
    "no time": (nn.Linear(2, 2), "Linear.forward(input: ", "lambda x, t: net(x)"),
}  # fmt: skip
MAKERS: dict[str, Callable[[Any], object]] = {
    "from_noise": lambda net: sg.from_noise(net, VP),
    "from_v": lambda net: sg.from_v(net, VP),
    "from_flow": lambda net: sg.from_flow(net, VP),
    "from_denoiser": lambda net: sg.from_denoiser(net, VP),
    "from_score": lambda net: sg.from_score(net, VP),
    "sample": lambda net: sg.sample(net, VP, (3, 2), nfe=2),
    "log_prob": lambda net: sg.log_prob(net, VP, torch.zeros(3, 2)),
    "from_edm": lambda net: sg.adapters.from_edm(net),
    "from_flow_matching": lambda net: sg.adapters.from_flow_matching(net, from_noise=True),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("case", OTHERS, ids=case_id)
def test_networks_of_other_arguments_are_refused_with_how_to_wrap_them(maker: str, case: str) -> None:
    """Where they are given, and what is given in their place is taken."""
    net, named, wrapped = OTHERS[case]
    with pytest.raises(TypeError) as error:
        MAKERS[maker](net)
    said = str(error.value)
    assert said.startswith(f"a network is called as net(x, t, **model_kwargs), and {named}")
    assert said.endswith(f" takes other arguments: give {wrapped}")
    score = sg.from_noise(eval(wrapped, {"net": net}), VP)
    assert score(torch.ones(3, 2), 0.5).shape == (3, 2)


@pytest.mark.parametrize(
    "net",
    [
        lambda x, t, y=None: x,
        lambda *inputs: inputs[0],
        lambda x, t, *, y=None, **others: x,
        lambda x, y, context=None: x,
        partial(lambda x, t, scale: x, scale=2.0),
        nn.Bilinear(2, 2, 2),
        torch.multiply,
    ],
    ids=["condition", "any", "by name", "no time named", "partial", "module", "built in"],
)  # fmt: skip
def test_networks_that_take_state_and_time_are_taken(net: Callable[..., Tensor]) -> None:
    assert sg.from_noise(net, VP).net is net
