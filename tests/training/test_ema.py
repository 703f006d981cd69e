"""Averages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sgm_sde import training
from tests.conventions import F64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_averages_move_in_any_dtype(dtype: torch.dtype) -> None:
    """1000 updates at 0.999: 2 - 0.999^1000, which half precision does not see one by one."""
    net = nn.Linear(1, 1, bias=False, dtype=dtype)
    net.weight.data.fill_(1.0)
    ema = training.EMA(net, 0.999)
    ema.updates = 10**6
    net.weight.data.fill_(2.0)
    for _ in range(1000):
        ema.update(net)
    assert abs(float(ema.average["weight"]) - (2 - 0.999**1000)) < 1e-4
    ema.copy_to(net)
    assert net.weight.dtype == dtype and abs(float(net.weight.detach()) - (2 - 0.999**1000)) < 4e-3
    again = training.EMA(net, 0.999)
    again.load_state_dict(ema.state_dict())
    assert torch.equal(again.average["weight"], ema.average["weight"])


WRAPPERS = [nn.DataParallel, lambda net: torch.compile(net, backend="eager")]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["parallel", "compiled"])
@pytest.mark.parametrize("before", [True, False])
def test_wrapped_networks_have_the_names_of_their_weights(before: bool, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Wrapped before the average is made or after it, and where it is copied to."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False))
    net[0].weight.data.fill_(1.0)
    ema = training.EMA(wrap(net) if before else net, 0.5)
    ema.updates = 10**6
    net[0].weight.data.fill_(2.0)
    ema.update(net if before else wrap(net))
    assert list(ema.average) == ["0.weight"] and float(ema.average["0.weight"]) == 1.5

    other = nn.Sequential(nn.Linear(1, 1, bias=False))
    ema.copy_to(wrap(other))
    assert float(other[0].weight.detach()) == 1.5


def test_a_part_that_is_compiled_has_the_names_of_its_weights() -> None:
    """Where torch.compile has made some of the modules alone."""
    net = nn.Sequential(nn.Linear(1, 1))
    ema = training.EMA(net)
    compiled = nn.Sequential(torch.compile(net[0], backend="eager"))
    ema.update(compiled)
    ema.copy_to(compiled)
    assert sorted(ema.average) == ["0.bias", "0.weight"]


@pytest.mark.parametrize("act", ["update", "copy_to"])
@pytest.mark.parametrize(
    ("other", "unlike"), [(nn.Sequential(nn.Linear(1, 1)), "'0.bias'"), (nn.Linear(2, 1), r"\['weight'\]")]
)
def test_other_networks_are_refused(other: nn.Module, unlike: str, act: str) -> None:
    """By their names or shapes."""
    ema = training.EMA(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=rf"not the one whose weights are averaged.*{unlike}"):
        getattr(ema, act)(other)
