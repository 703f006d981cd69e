"""Networks within wrappers."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde._utils.wrappers import plain_name, unwrapped


class Parallel(nn.Module):
    """A wrapper by the name of another library's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = net


DeepSpeedEngine = type("DeepSpeedEngine", (Parallel,), {})


def test_the_innermost_network() -> None:
    """Through wrappers of every kind; a network that has a part called `module` is no wrapper."""
    net = Parallel(nn.Linear(1, 1))
    assert unwrapped(net) is net
    assert unwrapped(DeepSpeedEngine(nn.DataParallel(net))) is net
    assert unwrapped(functools.partial(net.forward, 1)) is net
    assert unwrapped(3) == 3


class Half(nn.Module):
    """A network that halves its state."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x


EXAMPLE = (torch.ones(3, 2), torch.ones(3))
RECORDED = {
    "traced": lambda: torch.jit.trace(Half(), EXAMPLE),
    "scripted": lambda: torch.jit.script(Half()),
    "exported": lambda: torch.export.export(Half(), EXAMPLE).module(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of torch.jit
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize("form", RECORDED)
def test_recorded_networks_are_their_own(form: str) -> None:
    """They have no wrapper, and run as what they were made of."""
    net = RECORDED[form]()
    assert unwrapped(net) is net
    sde = sg.VPSDE()
    x, expected = (
        sg.sample(sg.from_noise(each, sde), sde, (3, 2), solver="ddim", nfe=4, seed=0).x for each in (net, Half())
    )
    assert torch.equal(x, expected)


def test_names_without_what_compiling_adds() -> None:
    """And nothing else."""
    assert plain_name("_orig_mod.a._orig_mod.weight") == "a.weight"
    assert plain_name("module.a") == "module.a"
