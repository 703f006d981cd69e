"""Parallel in time: the sequential run, in fewer rounds, for every solver on a grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.schemes.base import ADAPTIVE, REGISTRY
from tests.conventions import case_id, some_slow
from tests.helpers import F64, LINEAR, sampler

CORRECTED = {"pc"}


def net(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser that is not linear in x."""
    return torch.tanh(x)


def both(score: Any, sde: Any, window: int = 8, tolerance: float | None = None, **options: Any) -> tuple[Any, Any]:
    """The run step after step, and in parallel."""
    execution = sg.Execution(parallel=window, tolerance=tolerance)
    return sg.sample(score, sde, **options), sg.sample(score, sde, **options, execution=execution)


def runs(solver: Any, sde: Any, **options: Any) -> tuple[Any, Any]:
    x_T = sde.prior_std * torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    given = {"x_T": x_T, "solver": solver, "steps": 12, "seed": 1} | options
    return both(sg.from_denoiser(net, sde), sde, **given)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")
@pytest.mark.parametrize("process", ["vp", "flow", *some_slow(["edm", "ddpm"])])
@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in CORRECTED])
def test_the_limit_is_the_sequential_run(name: str, process: str) -> None:
    """For every solver on a grid, with noise and without; never in more rounds than it has calls."""
    sde = LINEAR[process]
    res, par = runs(sampler(name, sde), sde, window=6, tolerance=1e-10)
    scale = 1 + float(res.x.abs().max())
    assert float((par.x - res.x).abs().max()) < 1e-7 * scale
    assert par.rounds == par.nfe <= res.nfe
    assert par.network_evals >= res.network_evals
    assert par.times == res.times
    assert tuple(par.seeds) == tuple(res.seeds)


@pytest.mark.parametrize("window", [1, 5, 100])
@pytest.mark.parametrize("final", ["denoise", "mean", "none"])
@pytest.mark.parametrize("solver", ["sde-dpm++2m", "ancestral", "heun"])
def test_without_tolerance_it_is_exact(solver: str, final: str, window: int) -> None:
    """What has not changed at all stands; a window of one is the sequential run."""
    res, par = runs(solver, sg.VPSDE(), window=window, tolerance=0.0, final=final)
    torch.testing.assert_close(par.x, res.x, rtol=1e-12, atol=1e-12)
    if window == 1:
        assert (par.rounds, par.network_evals) == (res.nfe, res.network_evals)


def test_fewer_rounds() -> None:
    """A long smooth run takes a fraction of its calls, the less the larger the tolerance and the window."""
    sde = sg.VPSDE()
    rounds = {}
    for window in (8, 32):
        for tolerance in (1e-3, 1e-6):
            res, par = runs("ddim", sde, steps=200, window=window, tolerance=tolerance)
            assert float((par.x - res.x).abs().max()) < 100 * tolerance
            rounds[window, tolerance] = par.rounds
    assert rounds[8, 1e-3] < 80
    assert rounds[32, 1e-3] < 40
    assert rounds[8, 1e-3] <= rounds[8, 1e-6]
    assert rounds[32, 1e-3] <= rounds[32, 1e-6]


def test_conditions_are_repeated_with_their_samples() -> None:
    sde = sg.VPSDE()
    score = sg.from_denoiser(lambda x, t, y, table: torch.tanh(x + y[:, None] + table.sum()), sde)
    kwargs = {"y": sg.PerSample(torch.tensor([0.0, 1.0, -1.0])), "table": sg.Shared(torch.ones(3))}
    options = {"shape": (3, 2), "solver": "dpm++2m", "nfe": 12, "seed": 0, "model_kwargs": kwargs}
    res, par = both(score, sde, **options)
    torch.testing.assert_close(par.x, res.x, rtol=1e-2, atol=1e-2)
    guided = sg.guidance.ClassifierFree(score, 2.0, null={"y": 0.0})
    res, par = both(guided, sde, **options)
    torch.testing.assert_close(par.x, res.x, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="nothing says whether it goes with them"):
        both(score, sde, **options | {"model_kwargs": {"y": torch.zeros(3), "table": torch.ones(3)}})


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")
def test_blocks() -> None:
    """Blocks with matrices."""
    sde = sg.CLD()
    score = sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 1.0).score(sde)
    x_T = torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    res, par = both(score, sde, x_T=x_T, solver="heun2", steps=8, seed=0)
    torch.testing.assert_close(par.x, res.x, rtol=1e-3, atol=1e-3)


def test_a_sample_is_its_own() -> None:
    """Each sample has its own window: with others or alone, in parts, and beside one that takes longer."""
    sde = sg.VPSDE()
    score = sg.from_denoiser(lambda x, t: torch.tanh(5 * x), sde)
    x_T = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    options = {"solver": "sde-dpm++2m", "nfe": 40, "seed": [(3, i) for i in range(5)]}
    _, all_of_them = both(score, sde, x_T=x_T, **options)
    _, alone = both(score, sde, x_T=x_T[2:3], **options | {"seed": [(3, 2)]})
    assert torch.equal(all_of_them.x[2:3], alone.x)
    assert alone.nfe <= all_of_them.nfe
    parts = sg.sample(score, sde, x_T=x_T, **options, execution=sg.Execution(parallel=8, batch_size=2))
    assert torch.equal(parts.x, all_of_them.x)
    assert parts.network_evals == all_of_them.network_evals


@pytest.mark.parametrize("solver", ["dpm++2m", "heun", "sde-dpm++2m"])
def test_records(solver: str) -> None:
    """The trajectory is that of the sequential run, and the status looks at it as at any other."""
    sde = sg.VPSDE()
    record = sg.Record(trajectory="all")
    res, par = runs(solver, sde, tolerance=1e-12, window=5, record=record)
    assert par.trajectory_times == res.trajectory_times
    torch.testing.assert_close(par.trajectory, res.trajectory, rtol=1e-9, atol=1e-9)
    noise = sg.from_noise(lambda x, t: -x, sde)  # points against the state
    options = {"x_T": torch.ones(2, 40), "solver": "ddim", "nfe": 12, "seed": 0}
    with pytest.warns(sg.diagnosis.ImplausibleWarning):
        res = sg.sample(noise, sde, **options)
    with pytest.warns(sg.diagnosis.ImplausibleWarning):
        assert sg.sample(noise, sde, **options, execution=sg.Execution(parallel=4)).status.samples == res.status.samples


@pytest.mark.parametrize("name", [*ADAPTIVE, "pc"])
def test_refused_by_name(name: str) -> None:
    score = sg.from_denoiser(net, sg.VPSDE())
    with pytest.raises(ValueError, match=r"finds its own steps|moves states between steps"):
        sg.sample(score, sg.VPSDE(), (2, 2), solver=name, seed=0, execution=sg.Execution(parallel=4))


def test_misuse() -> None:
    score = sg.from_denoiser(net, sg.VPSDE())
    parallel = sg.Execution(parallel=4)
    with pytest.raises(ValueError, match="a callback may stop a run"):
        sg.sample(score, sg.VPSDE(), (2, 2), nfe=5, execution=parallel, record=sg.Record(callback=lambda info: None))
    _, grid, _ = sg.sampling.planning.plan(sg.VPSDE(), nfe=5, **score.traits)
    until = sg.Execution(until=grid.times[2])
    stopped = sg.sample(score, sg.VPSDE(), (2, 2), nfe=5, seed=0, execution=until)
    with pytest.raises(ValueError, match="resume= takes one step after the other"):
        sg.sample(score, sg.VPSDE(), resume=stopped, execution=parallel)
    broken = sg.from_denoiser(lambda x, t: x / 0, sg.VPSDE())
    with pytest.warns(sg.sampling.NonFiniteWarning, match="2 of 2 samples"):
        assert not sg.sample(broken, sg.VPSDE(), (2, 2), nfe=5, seed=0, execution=parallel).status


@pytest.mark.parametrize(
    "options, match",
    [
        ({"parallel": 0}, "parallel must be an integer of at least 1"),
        ({"parallel": 4, "tolerance": -1.0}, "tolerance must be"),
        ({"tolerance": 1e-3}, "give parallel="),
        ({"parallel": 4, "until": 0.5}, r"until=0.5 does not go with a run in parallel"),
        ({"parallel": 4, "compile": True}, "compile=True does not go with"),
        ({"parallel": 4, "enable_grad": True}, "enable_grad=True does not go with"),
    ],
    ids=case_id,
)
def test_options_of_a_parallel_run_are_checked(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sg.Execution(**options)


def test_runs_in_parallel_of_one_number() -> None:
    """Of the shape (B,), step by step and many steps at a time."""
    sde = sg.VPSDE()
    score = sg.from_noise(lambda x, t: x.tanh(), sde)
    x, expected = (
        sg.sample(score, sde, (5,), solver="ddim", nfe=10, seed=0, execution=execution).x
        for execution in (sg.Execution(parallel=4, tolerance=1e-8), None)
    )
    torch.testing.assert_close(x, expected)
