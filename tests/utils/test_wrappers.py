"""Networks within wrappers."""

from __future__ import annotations

import functools

from torch import nn

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


def test_names_without_what_compiling_adds() -> None:
    """And nothing else."""
    assert plain_name("_orig_mod.a._orig_mod.weight") == "a.weight"
    assert plain_name("module.a") == "module.a"
