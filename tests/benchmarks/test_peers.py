"""Our samplers against the same methods in other libraries: same grid, oracle and noise, float64, same result.

Peers are optional: what is not installed is skipped. To compare another solver, add a line to `peers.OURS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import peers
from benchmarks.peers import OURS, SAMPLERS, PeerSampler
from sgm_sde.engine.executor import execute
from sgm_sde.schemes import REGISTRY
from tests.helpers import F64, MIXTURE, bind

SDE = sg.EDMSDE()
GRID = sg.grids.Karras()(SDE, 15, t_end=0.02)
SHAPE = (6, 2)
X_T = 80 * torch.randn(SHAPE, dtype=F64, generator=torch.Generator().manual_seed(3))

COMPARED = [s for s in SAMPLERS if (s.ours, s.variant) in OURS]
SAME = {
    key: group
    for key in dict.fromkeys((s.ours, s.variant) for s in SAMPLERS if not s.defect)
    if len(group := [s for s in SAMPLERS if (s.ours, s.variant) == key and not s.defect]) > 1
}


class Noises:
    """The same noises for everyone, in the order they are drawn: an iterator, and a `NoiseSource` of the executor."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(4)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        return torch.randn(SHAPE, dtype=F64, generator=self.generator)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        """The next draw."""
        assert shape == SHAPE
        return next(self).to(device=device, dtype=dtype)


def denoised(x: Tensor, sigma: Tensor) -> Tensor:
    return MIXTURE.score(SDE).denoised(x, sigma)


def theirs(sampler: PeerSampler, denoiser: peers.Denoiser = denoised) -> Tensor:
    """Their result; skips the test without the library."""
    if sampler.peer not in peers.available():
        pytest.skip(f"{sampler.peer} is not installed")
    return sampler.run(denoiser, GRID.times, X_T, iter(Noises()))


def ours(solver: sg.Solver) -> Tensor:
    """Our result."""
    score = MIXTURE.score(SDE)
    if not solver.stochastic:
        return sg.sample(score, SDE, x_T=X_T, solver=solver, grid=list(GRID.times), final="none").x
    with torch.no_grad():
        return execute(solver.compile(SDE, GRID), X_T, bind(score, SDE, GRID.times), Noises()).x


def distance(a: Tensor, b: Tensor) -> float:
    assert a.dtype == b.dtype == F64
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("sampler", COMPARED, ids=lambda s: s.key)
def test_ours_is_theirs(sampler: PeerSampler) -> None:
    """Ours and theirs agree to rounding: all peers can be run in float64 (see `peers._d` about diffusers)."""
    if sampler.ours not in REGISTRY:
        pytest.skip(f"the registry has no {sampler.ours}")
    solver = OURS[sampler.ours, sampler.variant]()
    assert solver.stochastic == sampler.stochastic
    expected = theirs(sampler)
    assert distance(ours(solver), expected) < 1e-9


@pytest.mark.parametrize(("method", "name"), [("++3", "dpm++3s"), ("3", "dpm3")])
def test_diffusers_three_stages(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers gives the inner stage of its three-stage solvers the midpoint weights of the two-stage one; with the
    exact ones of the papers it is ours."""
    if name not in REGISTRY:
        pytest.skip(f"the registry has no {name}")
    sampler = next(s for s in SAMPLERS if s.method == f"DPMSolverSinglestep {method}")
    assert 1e-5 < distance(ours(REGISTRY[name]().strict()), theirs(sampler)) < 1e-2
    scheduler = peers._diffusers("dpmsolver_singlestep").DPMSolverSinglestepScheduler
    inner = scheduler.singlestep_dpm_solver_second_order_update

    def exact(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        self.register_to_config(solver_type="heun")
        try:
            return inner(self, *args, **kwargs)
        finally:
            self.register_to_config(solver_type="midpoint")

    monkeypatch.setattr(scheduler, inner.__name__, exact)
    assert distance(ours(REGISTRY[name]().strict()), theirs(sampler)) < 1e-9


@pytest.mark.parametrize(
    "pair", [p for group in SAME.values() for p in itertools.pairwise(group)], ids=lambda p: f"{p[0].key}, {p[1].key}"
)
def test_they_agree_with_each_other(pair: tuple[PeerSampler, PeerSampler]) -> None:
    """Libraries that have the same method, driven by different adapters, agree: so the adapters are right."""
    assert distance(theirs(pair[0]), theirs(pair[1])) < 1e-9


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.key)
def test_network_calls(sampler: PeerSampler) -> None:
    """Every entry calls its network as often as it says, at noise levels of the run, and returns a state."""
    levels: list[float] = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        assert x.shape == SHAPE
        assert sigma.ndim == 0
        levels.append(float(sigma))
        return denoised(x, sigma)

    x = theirs(sampler, counted)
    assert len(levels) == GRID.steps * sampler.nfe_per_step + sampler.extra_nfe
    assert levels[0] == 80
    assert min(levels) > 0.02 * (1 - 1e-12)
    assert x.shape == SHAPE
    assert bool(x.isfinite().all())


def test_the_table_stands_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are unique; a library that cannot be imported is not available, whatever it raises."""

    def broken() -> None:
        raise RuntimeError("no such thing")

    assert len({s.key for s in SAMPLERS}) == len(SAMPLERS)
    assert {s.peer for s in SAMPLERS} == set(peers._LOADERS)
    monkeypatch.setattr(peers, "_LOADERS", dict.fromkeys(peers._LOADERS, broken))
    assert peers.available.__wrapped__() == {}
