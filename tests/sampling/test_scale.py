"""Data of a large scale, of which the default errs several times what the one for their scale does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.sampling.defaults import scale_of_data
from sgm_sde.sampling.scale import ScaleWarning, words_if_wide
from tests.conventions import case_id

F64 = torch.float64
DDPM = sg.DiscreteVPSDE(torch.linspace(1e-4, 0.02, 1000, dtype=F64))
MODES = torch.tensor([[-1.0], [0.3], [1.2]], dtype=F64)


def score_of(scale: float, sde: sg.LinearSDE = DDPM) -> sg.Score:
    """The exact score of three modes, of the scale given."""
    return sg.oracles.GaussianMixture(scale * MODES, 0.2 * scale).score(sde)


def error(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x - exact).square().mean().sqrt() / exact.std())


def test_the_default_on_data_of_a_large_scale_says_what_errs_less() -> None:
    """On DDPM's table in ten calls: .12 of the standard deviation, and .004 by what the warning says."""
    score = score_of(84.0)
    x_T = DDPM.prior_sample((256, 1), seed=0, dtype=F64)
    exact = sg.sample(score, DDPM, x_T=x_T, solver="dpm++3m", nfe=400, t_end=DDPM.eps).x
    with pytest.warns(ScaleWarning, match=r"vary by 6\d\.\d, and with 10 calls .*data_std=\d+\)") as told:
        found = sg.sample(score, DDPM, x_T=x_T, nfe=10)
    assert found.status.ok
    assert error(found.x, exact) > 0.1

    given = str(told[0].message).split("solver=")[1].split(", or")[0]
    solver = eval(given, {"sg": sg, "sde": DDPM})
    assert error(sg.sample(score, DDPM, x_T=x_T, nfe=10, solver=solver).x, exact) < 0.01


@pytest.mark.parametrize(
    "scale, options",
    [
        (1.0, {"nfe": 5}),
        (5.0, {"nfe": 5}),
        (10.0, {"nfe": 8}),
        (30.0, {"nfe": 30}),
        (84.0, {"nfe": 3}),
        (84.0, {"nfe": 10, "solver": sg.defaults.default_setting(DDPM, 10, data_std=84)}),
        (84.0, {"nfe": 20, "solver": "dpm++2m"}),
        (84.0, {"nfe": 10, "shape": (8, 1)}),
    ],
    ids=case_id,
)
@pytest.mark.filterwarnings("error::sgm_sde.sampling.scale.ScaleWarning")
def test_runs_that_are_not_told(scale: float, options: dict[str, Any]) -> None:
    """Data of about unit scale, enough calls, solvers that are named, few samples, and networks of few calls."""
    found = sg.sample(score_of(scale), DDPM, **({"shape": (64, 1), "seed": 0} | options))
    assert found.status.ok


def test_the_scale_is_that_of_the_process() -> None:
    """Noise levels in the data's units are those of data of a large scale."""
    samples = 500 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    assert words_if_wide(samples, 10, sg.EDMSDE(10.0, 400_000.0)) == ""
    assert "data_std=" in words_if_wide(samples, 10, sg.EDMSDE())


@pytest.mark.parametrize("sde", ["vp", sg.CLD()], ids=["a name", "a matrix"])
def test_only_processes_with_noise_levels_are_made_for_a_scale(sde: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a forward process|needs noise_level"):
        scale_of_data(sde)
