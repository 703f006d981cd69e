"""What a run of many small samples holds at a time."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks.peak_memory import peak_bytes
from sgm_sde._utils import shapes
from sgm_sde.sampling import parts
from sgm_sde.scores.model import BoundScore
from tests.conventions import some_slow
from tests.helpers import ALL

SDE = sg.EDMSDE()
N = 400_000


def network(x: Tensor, sigma: Tensor) -> Tensor:
    """The estimate for normal data, in one piece of memory."""
    return x / (1 + float(sigma[0]) ** 2)


SCORE = sg.from_denoiser(network, SDE)


@pytest.mark.parametrize("solver", ["heun", "dpm++3m", "sde-dpm++2m", *some_slow(["ddim", "dpm++2m", "ancestral"])])
def test_state_history_and_one_scratch(solver: str) -> None:
    """Besides what the network is given and returns, and the two numbers of a sample that its size is judged by."""
    grid = sg.grids.Karras()(SDE, 8)
    plan = BoundScore(SCORE, SDE, (grid.times[-1], grid.times[0])).plan(ALL[solver].compile(SDE, grid))
    states = plan.n_registers - len(plan.borrowed) + plan.n_slots  # history and scratch among them
    output = 1.0  # gone when noise is drawn
    sizes = 1.0
    times = 0.5

    def run() -> sg.SampleResult:
        return sg.sample(SCORE, SDE, (N, 2), solver=solver, grid=grid, seed=0, final="none")

    peak = peak_bytes(run) / (N * 2 * 4)
    assert peak < states + output + sizes + times + 0.1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 lets go of an argument after the next call only")
def test_a_corrector_runs_without_the_last_output() -> None:
    """State, score or what noise adds, noise, the mean, and the sizes."""
    grid = sg.grids.Karras()(SDE, 8)

    def run() -> sg.SampleResult:
        return sg.sample(SCORE, SDE, (N, 2), solver="pc", grid=grid, seed=0, final="none")

    assert peak_bytes(run) / (N * 2 * 4) < 5.1


@pytest.mark.parametrize("solver", ["ancestral", *some_slow(["ddim", "dpm++3m"])])
def test_a_run_in_parts_holds_the_samples_and_little_else(solver: str) -> None:
    """The samples, three bytes for each, and the part that is running; no list of their numbers."""
    grid = sg.grids.Karras()(SDE, 8)
    execution = sg.Execution(batch_size=N // 40)

    def run() -> sg.SampleResult:
        return sg.sample(SCORE, SDE, (N, 2), solver=solver, grid=grid, seed=0, final="none", execution=execution)

    assert peak_bytes(run) / (N * 2 * 4) < 2


@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
def test_sizes_are_judged_in_blocks(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples are named, however many are looked at together."""

    def thrown(x: Tensor, sigma: Tensor) -> Tensor:
        far = (torch.arange(len(x)) % 7 == 3) & (x.shape == (40, 2))
        return torch.where(far[:, None] & (sigma < 0.1)[:, None], x + 1e4, network(x, sigma))

    score = sg.from_denoiser(thrown, SDE)

    def named(block: int) -> tuple[int, ...]:
        monkeypatch.setattr(parts, "WATCHED", block)
        with pytest.warns(sg.diagnosis.ImplausibleWarning):
            return sg.sample(score, SDE, (40, 2), solver=solver, nfe=20, seed=0).status.samples

    assert named(2**15) == named(16) != ()


@pytest.mark.parametrize("numbers", [1, 7, 100])
def test_a_sample_that_is_not_finite_is_found_in_any_block(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """In each of several blocks, and across rows of many numbers."""
    x = torch.zeros(10, 3)
    x[0, 0], x[4, 2], x[9, 1] = torch.nan, torch.inf, -torch.inf

    monkeypatch.setattr(shapes, "AT_A_TIME", numbers)
    assert (~shapes.finite(x)).nonzero().flatten().tolist() == [0, 4, 9]
