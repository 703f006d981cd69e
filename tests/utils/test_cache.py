"""What is kept for the next call: found by equal values, and gone with the network that a process or solver holds."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde._utils.cache import cached
from sgm_sde.likelihood import FixedGrid
from sgm_sde.schemes.base import _cached


class Scheduled(nn.Module):
    """A network whose method is the schedule of its process, as azula's denoisers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - 0.9 * t

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x * self.weight


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")  # Euler with four calls
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # and what it throws out
def test_no_network_is_kept_alive() -> None:
    """After sampling, a likelihood, and a process with matrices, whose functions hold a network each."""

    def use() -> list[weakref.ref[nn.Module]]:
        nets = [Scheduled() for _ in range(3)]
        for net in nets:
            sde = sg.LinearSDE.from_schedule(net.alpha, lambda t: t, T=0.9)
            score = sg.from_noise(net, sde)
            sg.sample(score, sde, (2, 3), solver="dpm++2m", nfe=5, seed=0)
            sg.sample(score, sde, (2, 3), solver=sg.SASolver(eta=lambda t, net=net: 0.5), nfe=5, seed=0)
            sg.log_prob(score, sde, torch.ones(2, 3), method=FixedGrid(8), trace="exact")
            matrix = sg.processes.MatrixSDE.from_functions(
                lambda t, net=net: [[0, 4], [-4, -8]], lambda t: [[0, 0], [0, 2]],
                prior_covariance=[[1, 0], [0, 0.25]], initial_covariance=[[0, 0], [0, 0.01]],
            )  # fmt: skip
            sg.sample(sg.from_score(lambda x, t: -x, matrix), matrix, (2, 2, 3), solver="euler-maruyama", nfe=4, seed=0)
        return [weakref.ref(net) for net in nets]

    alive = use()
    gc.collect()
    assert [net() for net in alive] == [None] * 3


def test_equal_values_share_what_is_kept() -> None:
    """Processes made of numbers by their values, those that hold functions each its own."""
    grid = sg.Grid([0.9, 0.5, 0.1])
    assert _cached(sg.DDIM(), sg.VPSDE(), grid) is _cached(sg.DDIM(), sg.VPSDE(), grid)
    assert _cached(sg.DDIM(), sg.VPSDE(beta_max=9.0), grid) is not _cached(sg.DDIM(), sg.VPSDE(), grid)
    one, two = (sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t, T=0.9) for _ in range(2))
    assert _cached(sg.DDIM(), one, grid) is _cached(sg.DDIM(), one, grid)
    assert _cached(sg.DDIM(), one, grid) is not _cached(sg.DDIM(), two, grid)


def test_what_is_kept_has_a_limit() -> None:
    """The oldest goes first, in an argument too; what cannot be told apart is computed anew."""
    calls: list[Any] = []

    class Holder:
        pass

    @cached(maxsize=2)
    def compute(holder: Any, k: int) -> int:
        calls.append(k)
        return k

    holder = Holder()
    for k in (1, 2, 1, 3, 2, 1):
        assert compute(holder, k) == k
    assert calls == [1, 2, 3, 1]
    for _ in range(2):
        compute([], 5)
    assert calls[4:] == [5, 5]
