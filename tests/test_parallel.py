"""Parallel in time: the sequential run, in fewer rounds, for every solver on a grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.parallel import sample_in_parallel
from sgm_sde.schemes.base import ADAPTIVE, REGISTRY
from tests.helpers import F64, LINEAR, sampler

CORRECTED = {"pc"}


def net(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser that is not linear in x."""
    return torch.tanh(x)


def runs(solver: Any, sde: Any, **options: Any) -> tuple[Any, Any]:
    score = sg.from_denoiser(net, sde)
    x_T = sde.prior_std * torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    shared = {"x_T": x_T, "solver": solver, "steps": 12, "seed": 1} | options
    ours = {name: shared.pop(name) for name in ("window", "tolerance") if name in shared}
    return sg.sample(score, sde, **shared), sample_in_parallel(score, sde, **shared, **ours)


@pytest.mark.filterwarnings("ignore::sgm_sde.diagnosis.ImplausibleWarning")
@pytest.mark.parametrize("process", ["vp", "edm", "flow", "ddpm"])
@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in CORRECTED])
def test_the_limit_is_the_sequential_run(name: str, process: str) -> None:
    """For every solver on a grid, with noise and without; never in more rounds than it has calls."""
    sde = LINEAR[process]
    res, par = runs(sampler(name, sde), sde, window=6, tolerance=1e-10)
    scale = 1 + float(res.x.abs().max())
    assert float((par.x - res.x).abs().max()) < 1e-7 * scale
    assert par.rounds <= res.nfe == par.sequential
    assert par.network_evals >= res.network_evals
    assert par.times == res.times
    assert tuple(par.seeds) == tuple(res.seeds)


@pytest.mark.parametrize("final", ["denoise", "mean", "none"])
@pytest.mark.parametrize("solver", ["sde-dpm++2m", "ancestral", "heun"])
def test_without_tolerance_it_is_exact(solver: str, final: str) -> None:
    """What has not changed at all stands; a window of one is the sequential run."""
    for window in (1, 5, 100):
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
    res, par = (f(score, sde, **options) for f in (sg.sample, sample_in_parallel))
    torch.testing.assert_close(par.x, res.x, rtol=1e-2, atol=1e-2)
    guided = sg.guidance.ClassifierFree(score, 2.0, null={"y": 0.0})
    res, par = (f(guided, sde, **options) for f in (sg.sample, sample_in_parallel))
    torch.testing.assert_close(par.x, res.x, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="nothing says whether it goes with them"):
        sample_in_parallel(score, sde, **options | {"model_kwargs": {"y": torch.zeros(3), "table": torch.ones(3)}})


def test_blocks() -> None:
    """Blocks with matrices."""
    sde = sg.CLD()
    score = sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 1.0).score(sde)
    x_T = torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    res, par = (f(score, sde, x_T=x_T, solver="heun2", steps=8, seed=0) for f in (sg.sample, sample_in_parallel))
    torch.testing.assert_close(par.x, res.x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*ADAPTIVE, "pc"])
def test_refused_by_name(name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=r"finds its own steps|moves states between its steps"):
        sample_in_parallel(
            sg.from_denoiser(net, sg.VPSDE()),
            sg.VPSDE(),
            (2, 2),
            solver=name,
            nfe=None if name in ADAPTIVE else 9,
            seed=0,
        )


def test_misuse() -> None:
    score = sg.from_denoiser(net, sg.VPSDE())
    for options, match in (
        ({"window": 0}, "window must be an integer of at least 1"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"shape": None}, "give shape="),
    ):
        with pytest.raises(ValueError, match=match):
            sample_in_parallel(score, sg.VPSDE(), **{"shape": (2, 2), "nfe": 5, "seed": 0} | options)
    broken = sg.from_denoiser(lambda x, t: x / 0, sg.VPSDE())
    with pytest.warns(sg.sampling.NonFiniteWarning, match="2 of 2 samples are not finite"):
        assert not sample_in_parallel(broken, sg.VPSDE(), (2, 2), nfe=5, seed=0).ok
