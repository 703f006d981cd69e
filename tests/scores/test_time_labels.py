"""Time labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.scores import time_labels
from tests.conventions import F64, case_id


@pytest.mark.parametrize("n", [2, 4, 10, 232, 1000])
def test_labels_of_ladders_have_one_table(n: int) -> None:
    """The ladder's own."""
    sigmas = torch.logspace(1, -2, n, dtype=F64).tolist()
    ladder = sg.DiscreteVESDE(sigmas)
    with pytest.raises(TypeError, match="noise levels of DiscreteVESDE or VESDE, got 1000"):
        time_labels.score_sde_ve_discrete(1000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"has its own table of {n} levels, got levels=7"):
        time_labels.score_sde_ve_discrete(ladder, 7)


@pytest.mark.parametrize("n", [2, 4, 10, 232, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=case_id)
def test_labels_of_ladders_are_their_entries(n: int, dtype: torch.dtype) -> None:
    """Every entry of a ladder has its own number from the noise, on tables and on the continuous process."""
    sigmas = torch.logspace(1, -2, n, dtype=F64).tolist()
    ladder = sg.DiscreteVESDE(sigmas)
    expected = torch.arange(n - 1, -1, -1)

    assert torch.equal(time_labels.score_sde_ve_discrete(ladder)(torch.tensor(ladder.times, dtype=dtype)), expected)
    continuous = sg.VESDE(sigma_min=0.01, sigma_max=10.0)
    times = torch.linspace(0, 1, n, dtype=dtype)
    assert torch.equal(time_labels.score_sde_ve_discrete(continuous, n)(times), expected)
    _, sde = sg.adapters.from_score_sde(lambda x, label: x, ladder)
    assert sde is ladder


@pytest.mark.parametrize("sde", [sg.presets.ncsn_cifar10(), sg.presets.ddpm()], ids=case_id)
def test_ncsn_ladder_and_ddpm_table(sde: Any) -> None:
    """The published tables, entry by entry."""
    n = len(sde.times)
    times = torch.tensor(sde.times)
    if isinstance(sde, sg.DiscreteVESDE):
        assert torch.equal(time_labels.score_sde_ve_discrete(sde)(times), torch.arange(n - 1, -1, -1))
    else:
        assert torch.equal(time_labels.ddpm(sde, integer=True)(times), torch.arange(n))
        assert torch.equal(time_labels.ddpm(sde, integer=True)(times), time_labels.ddpm(n, integer=True)(times))


def test_an_index_is_never_out_of_its_table() -> None:
    """Below the first entry and above the last it is the first and the last: -1 would be the noisiest."""
    t = torch.tensor([0.0, 1e-5, 0.0004, 0.00051, 0.9996, 1.0])
    assert time_labels.ddpm(1000, integer=True)(t).tolist() == [0, 0, 0, 0, 999, 999]


def test_networks_that_look_their_time_up() -> None:
    """They run at once: an embedding of the index, from diffusers' configurations and as a scheduler."""

    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x + 0 * self.table(t)

    config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    net = Embedded()
    score, sde = sg.adapters.from_diffusers(net, config, integer=True)
    assert sg.sample(score, sde, (2, 2), nfe=5, seed=0).status.ok
    scheduler = sg.adapters.SolverScheduler(config, "ddim", integer=True, seed=0)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.dtype == torch.int64
    x = torch.ones(2, 2)
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(net(x, t[None].expand(2)), t, x).prev_sample
    assert bool(x.isfinite().all())
    with pytest.raises(ValueError, match="flow matching has none"):
        sg.adapters.from_diffusers(net, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, integer=True)
