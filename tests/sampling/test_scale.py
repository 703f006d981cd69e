"""Data of a large scale or far from 0, of which the default errs several times what it could."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.sampling.defaults import scale_of_data
from sgm_sde.sampling.on_gaussians import mean_off
from sgm_sde.sampling.planning import plan
from sgm_sde.sampling.resolution import UnresolvedWarning
from sgm_sde.sampling.scale import ScaleWarning, words_if_away, words_if_wide
from tests.conventions import VP, case_id

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


def test_data_of_two_scales_are_told_of_both() -> None:
    """A column that the last call does not resolve does not hide that the others are wide."""
    std = torch.tensor([1e-3, 1.0, 300.0, 500.0], dtype=F64)
    sde = sg.EDMSDE(1e-4, 5000.0)
    score = sg.oracles.Gaussian(torch.zeros(4, dtype=F64), std.square().diag()).score(sde)
    wide = pytest.warns(ScaleWarning, match=r"with 8 calls .*data_std=\d+")
    with wide, pytest.warns(UnresolvedWarning, match="1 of 4"):
        sg.sample(score, sde, (256, 4), nfe=8, seed=0, execution=sg.Execution(dtype=F64))


WIDE_EDM = sg.EDMSDE(sigma_min=0.02, sigma_max=800.0)


def modes_around(mean: float, scale: float = 4.0, sde: sg.LinearSDE = WIDE_EDM) -> tuple[sg.Score, torch.Tensor]:
    """The exact score of three modes around a mean, and what the prior is in their units."""
    score = sg.oracles.GaussianMixture(scale * MODES + mean, 0.3 * scale).score(sde)
    return score, sde.prior_sample((128, 1), seed=3, dtype=F64)


@pytest.mark.parametrize("sde", [WIDE_EDM, sg.RectifiedFlowSDE()], ids=["edm", "flow"])
def test_the_default_on_data_far_from_0_says_so(sde: sg.LinearSDE) -> None:
    """Around 100, 25 times their scale from 0, in five calls: further off than DDIM."""
    score, x_T = modes_around(100.0, sde=sde)
    exact = sg.sample(score, sde, x_T=x_T, solver="dpm++3m", nfe=400, t_end=sde.eps).x
    with pytest.warns(ScaleWarning, match=r"lie around (98|99|1\d\d)\S* and vary by \d.*with 5 calls .*`pilot` finds"):
        found = sg.sample(score, sde, x_T=x_T, nfe=5)
    assert found.status.ok
    assert error(found.x, exact) > error(sg.sample(score, sde, x_T=x_T, nfe=5, solver="ddim").x, exact)


@pytest.mark.parametrize(
    "mean, options", [(0.0, {"nfe": 5}), (100.0, {"nfe": 20}), (100.0, {"nfe": 5, "solver": "ddim"})]
)
@pytest.mark.filterwarnings("error::sgm_sde.sampling.scale.ScaleWarning")
def test_runs_whose_mean_is_right_are_not_told(mean: float, options: dict[str, Any]) -> None:
    score, x_T = modes_around(mean)
    assert sg.sample(score, WIDE_EDM, x_T=x_T, **options).status.ok


@pytest.mark.parametrize("nfe", [5, 8, 12])
@pytest.mark.parametrize("sde", [WIDE_EDM, sg.EDMSDE(), sg.RectifiedFlowSDE()], ids=["wide", "edm", "flow"])
def test_how_far_the_mean_is_off(sde: sg.LinearSDE, nfe: int) -> None:
    """Of a Gaussian around 100, beside the flow from the same noise: what its table alone tells."""
    score = sg.oracles.Gaussian(torch.full((1,), 100.0, dtype=F64), 16.0).score(sde)
    x_T = torch.zeros(1, 1, dtype=F64)
    setting = sg.defaults.default_setting(sde, nfe)
    program = plan(sde, setting, nfe=nfe)[2]
    assert program is not None

    end = sde.nodes((program.times[-1],))[0]
    start = sde.nodes((sde.T,))[0]
    kept = math.hypot(4 * end.alpha, end.sigma) / math.hypot(4 * start.alpha, start.sigma)
    flow = 100 * (end.alpha - kept * start.alpha)
    found = float(sg.sample(score, sde, x_T=x_T, solver=setting, nfe=nfe).x)
    assert mean_off(program, sde, 4.0) * 100 == pytest.approx(abs(found - flow), rel=1e-6, abs=1e-7)


def test_few_samples_tell_no_place() -> None:
    """Of less than 16 nothing is known, nor with three calls, nor of samples that do not differ."""
    program = plan(WIDE_EDM, None, nfe=5)[2]
    assert program is not None
    x = 100 + 4 * torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    assert words_if_away(x, program, WIDE_EDM)
    assert words_if_away(x[:15], program, WIDE_EDM) == ""
    assert words_if_away(torch.full((64, 1), 100.0), program, WIDE_EDM) == ""
    of_three = plan(WIDE_EDM, None, nfe=3)[2]
    assert of_three is not None and words_if_away(x, of_three, WIDE_EDM) == ""


def test_the_scale_is_that_of_the_process() -> None:
    """Noise levels in the data's units are those of data of a large scale."""
    samples = 500 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    assert words_if_wide(samples, 10, sg.EDMSDE(10.0, 400_000.0)) == ""
    assert "data_std=" in words_if_wide(samples, 10, sg.EDMSDE())


@pytest.mark.parametrize(
    ("sde", "scale"),
    [
        (sg.EDMSDE(10.0, 400_000.0), 200.0),
        (sg.EDMSDE(0.255, 10_200.0), 5.0),
        (sg.EDMSDE(0.002, 10_000.0), 2.0),
        (sg.EDMSDE(1e-8, 1e5), 1.0),
        (sg.VESDE(1e-4, 5000.0), 1.0),
    ],
    ids=str,
)
def test_data_are_wide_where_both_ends_say_so(sde: sg.LinearSDE, scale: float) -> None:
    """A process from far above any data to far below them says nothing of their scale."""
    assert scale_of_data(sde) == scale


@pytest.mark.parametrize("nfe", [5, 8, 12])
def test_enormous_ranges_of_noise_are_no_reason_to_err_more_than_ddim(nfe: int) -> None:
    sde = sg.EDMSDE(1e-8, 1e5)
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.5]], dtype=F64)
    score = sg.oracles.GaussianMixture(means, torch.tensor([0.1, 0.3, 0.05], dtype=F64)).score(sde)
    x_T = sde.prior_sample((32, 2), seed=0, dtype=F64)
    exact = sg.sample(score, sde, x_T=x_T, solver="dpm++3m", grid="log-snr", nfe=300).x

    def error(solver: str | None, grid: str | None = None) -> float:
        return float((sg.sample(score, sde, x_T=x_T, solver=solver, grid=grid, nfe=nfe).x - exact).square().mean())

    assert error(None) < 0.5 * min(error("ddim"), error("ddim", "log-snr"))


@pytest.mark.parametrize("sde", ["vp", sg.CLD()], ids=["a name", "a matrix"])
def test_only_processes_with_noise_levels_are_made_for_a_scale(sde: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a forward process|needs noise_level"):
        scale_of_data(sde)


@pytest.mark.parametrize("sde", [sg.EDMSDE(), sg.RectifiedFlowSDE(), sg.SubVPSDE()], ids=case_id)
def test_data_as_small_as_the_absolute_tolerance(sde: sg.LinearSDE) -> None:
    """Told with a tolerance that serves: the error of N(0, .003^2) falls from .1 of its scale to .02."""
    gaussian = sg.oracles.Gaussian(torch.zeros(1, dtype=F64), 0.003**2)
    score = gaussian.score(sde)
    x_T = gaussian.sample(64, sde, sde.T, seed=0, dtype=F64)
    exact = gaussian.flow(x_T, sde, sde.T, sde.eps)
    with pytest.warns(ScaleWarning, match=r"the samples vary by .*lets each step err by 0.001: give atol=") as told:
        loose = sg.sample(score, sde, x_T=x_T, solver="dopri5", final="none")

    atol = float(str(told[0].message).split("atol=")[1].split(",")[0])
    found = sg.sample(score, sde, x_T=x_T, solver=sg.Adaptive(atol=atol), final="none")
    assert error(loose.x, exact) > 0.1
    assert error(found.x, exact) < 0.02


def test_whose_absolute_tolerance_counts() -> None:
    """That of adaptive methods of the flow alone: a longest step, fixed steps and noise limit the error of others."""
    given = [
        sg.Adaptive(),
        sg.Adaptive(sg.schemes.ExponentialPair(3)),
        sg.schemes.SciPy("RK45"),
        sg.schemes.TorchDiffEq("rk4"),
        sg.schemes.TorchSDE("srk"),
        sg.schemes.GGF(),
    ]
    assert [solver.allowance for solver in given] == [1e-3, 0, 1e-3, 0, 0, 0]


@pytest.mark.parametrize(("scale", "solver"), [(0.3, "dopri5"), (0.003, "ggf"), (0.003, "exp-rk32"), (0.0, "dopri5")])
@pytest.mark.filterwarnings("error::sgm_sde.sampling.scale.ScaleWarning")
def test_tolerances_that_are_not_told(scale: float, solver: str) -> None:
    """Of data of an ordinary scale, where noise or a longest step limits the error, and of one point."""
    assert sg.sample(score_of(scale, VP), VP, (64, 1), solver=solver, seed=0).status.ok
