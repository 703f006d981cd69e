"""Beside another library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse
from tests.helpers import F64, LINEAR
from tests.inverse.cases import (
    MODES,
    normal,
)


@pytest.mark.parametrize("name", ["cg", "gcr", "diffpir"])
def test_beside_azula(name: str) -> None:
    """The same posterior means as azula's, on a mixture."""
    guidance = pytest.importorskip("azula.guidance")
    denoise, noise = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.noise")
    score = MODES.score(sg.EDMSDE())

    class Theirs(denoise.Denoiser):  # type: ignore[misc, name-defined]
        schedule = noise.VESchedule()

        def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Any:
            sigma = self.schedule(t)[1].expand(len(x))
            return denoise.DiracPosterior(mean=score.denoised(x, sigma))

    A = torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=F64)
    y, x = torch.tensor([0.7, 0.1], dtype=F64), normal(3, 2)
    m = inverse.Measurement(inverse.ChannelMix(A), y, 0.3)
    t = torch.tensor(0.4, dtype=F64)
    sigma = float(Theirs.schedule(t)[1])

    def apply(v: Tensor) -> Tensor:
        return v @ A.T

    if name != "diffpir":
        cov = pytest.importorskip("azula.linalg.covariance").IsotropicCovariance(torch.tensor(0.09, dtype=F64))
        theirs = guidance.MMPSDenoiser(Theirs(), y, apply, cov, solver={"gcr": "gmres"}.get(name, name), iterations=1)
        ours: sg.Score = inverse.MMPS(score, m, 1, name)
    else:
        theirs = guidance.DiffPIRDenoiser(Theirs(), y, apply, 0.09, lmbda=4.0, solver="cg", iterations=4)
        ours = inverse.DiffPIR(score, m, strength=4.0)
    torch.testing.assert_close(ours.denoised(x, sigma).detach(), theirs(x, t).mean.detach(), rtol=1e-6, atol=1e-8)


RESCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "to alpha = 1": lambda t: LINEAR["vp"].alpha(t),
    "growing": lambda t: torch.exp(-0.7 * t),
    "shrinking": lambda t: 0.5 * torch.exp(0.4 * t),
}


METHODS: dict[str, Callable[[sg.Score, inverse.Measurement], tuple[sg.Score, sg.Solver]]] = {
    "langevin": lambda score, seen: (score, sg.PredictorCorrector(sg.DDIM(), sg.Langevin(0.3))),
    "langevin, spread": lambda score, seen: (
        score,
        sg.PredictorCorrector(sg.DDIM(), sg.Langevin(0.3, 2, data_std=0.4), "CP"),
    ),
    "annealed langevin": lambda score, seen: (score, sg.schemes.AnnealedLangevin(0.2, 3)),
    "langevin and diffpir": lambda score, seen: (
        sg.inverse.DiffPIR(score, seen, 2.0),
        sg.PredictorCorrector(sg.DPMSolverPP(2), sg.Langevin(0.2)),
    ),
    "dps": lambda score, seen: (score, sg.inverse.DPS(sg.Ancestral(), seen)),
    "dps, ddim": lambda score, seen: (score, sg.inverse.DPS(sg.DDIM(eta=0.5), seen, zeta=0.3)),
    "replacement": lambda score, seen: (score, sg.inverse.Replacement(sg.Ancestral(), seen)),
    "replacement, fixed": lambda score, seen: (score, sg.inverse.Replacement(sg.DPMSolverPP(2), seen, "fixed")),
    "repaint": lambda score, seen: (score, sg.inverse.RePaint(sg.Ancestral(), seen, resamples=2, jump=3)),
    "diffpir": lambda score, seen: (sg.inverse.DiffPIR(score, seen, 2.0), sg.DPMSolverPP(2)),
    "pigdm": lambda score, seen: (sg.inverse.PiGDM(score, seen), sg.DPMSolverPP(2)),
    "mmps": lambda score, seen: (sg.inverse.MMPS(score, seen), sg.DPMSolverPP(2, eta=1.0)),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scaling", RESCALED)
def test_methods_do_not_depend_on_the_scaling_of_the_state(name: str, scaling: str) -> None:
    """With x / c(t) in the place of x and the same denoiser, noise and times, samples are the same."""
    vp, c = LINEAR["vp"], RESCALED[scaling]
    other = sg.LinearSDE.from_schedule(lambda t: vp.alpha(t) / c(t), lambda t: vp.sigma(t) / c(t), eps=vp.eps)
    data = sg.oracles.GaussianMixture(torch.tensor([[1.0, -0.5, 0.2], [-0.6, 0.4, 0.9]], dtype=F64), 0.4)
    denoiser = data.score(vp).denoised
    operator = sg.inverse.Mask(torch.tensor([True, False, True]))
    std = 0.0 if name.startswith("rep") else 0.2
    seen = inverse.Measurement(operator, torch.tensor([0.8, 0.0, -0.1], dtype=F64), std)
    x_T = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    grid = sg.grids.LogSNR()(vp, 12)

    def run(sde: sg.LinearSDE, score: sg.Score, x_T: Tensor) -> Tensor:
        score, solver = METHODS[name](score, seen)
        return sg.sample(score, sde, x_T=x_T, solver=solver, grid=grid, seed=3).x

    mine = run(vp, sg.from_denoiser(denoiser, vp), x_T)
    rescaled = sg.from_denoiser(denoiser, other, input_scale=c)
    theirs = run(other, rescaled, x_T / float(c(torch.tensor(1.0, dtype=F64))))
    torch.testing.assert_close(theirs, mine, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("norm", ["sample", "batch", "expected"])
def test_langevins_published_norms_depend_on_a_scaling_that_changes(norm: str) -> None:
    """Their factor (alpha_i / alpha_{i+1})^2 does: the same samples in a constant scaling, others in one that grows."""
    vp, denoiser = LINEAR["vp"], sg.oracles.Gaussian(torch.zeros(300, dtype=F64), 0.3).score(LINEAR["vp"]).denoised
    x_T, grid = torch.randn(2, 300, dtype=F64, generator=torch.Generator().manual_seed(0)), sg.grids.LogSNR()(vp, 8)
    corrector = sg.PredictorCorrector(sg.DDIM(), sg.Langevin(0.3, norm=norm))

    def run(c: Callable[[Tensor], Tensor]) -> Tensor:
        sde = sg.LinearSDE.from_schedule(lambda t: vp.alpha(t) / c(t), lambda t: vp.sigma(t) / c(t), eps=vp.eps)
        score, start = sg.from_denoiser(denoiser, sde, input_scale=c), x_T / float(c(torch.tensor(1.0, dtype=F64)))
        return sg.sample(score, sde, x_T=start, solver=corrector, grid=grid, seed=3).x

    as_it_is, halved, growing = run(torch.ones_like), run(lambda t: torch.full_like(t, 2.0)), run(RESCALED["growing"])
    torch.testing.assert_close(halved, as_it_is, rtol=1e-7, atol=1e-7)
    apart = float((growing - as_it_is).abs().max())
    assert (apart < 1e-7) == (norm == "expected"), apart


def test_a_function_that_is_not_linear_is_no_linear_map() -> None:
    """Affine, rounding and squares are told when the operator is made; what is linear up to rounding is taken."""
    functions: list[tuple[Callable[[Tensor], Tensor], str]] = [
        (lambda x: (x + 1) / 2, r"A\(0\) and 0 differ, 0.5 and 0"),
        (lambda x: x**2, r"A\(2x - 3z\) and 2Ax - 3Az differ"),
        (lambda x: torch.fft.fft(x).abs(), r"not linear"),
        (lambda x: (8 * x).round() / 8, r"not linear"),
        (lambda x: x / 0, r"not linear"),
    ]
    for function, message in functions:
        with pytest.raises(ValueError, match=message):
            sg.inverse.LinearMap(function, (2,))
    single = torch.tensor([[0.1, 3e4], [1e-3, -7.0]])
    for matrix in (single, single.double(), single.bfloat16()):
        operator = sg.inverse.LinearMap(lambda x, matrix=matrix: x @ matrix, (2,))
        assert operator.apply(torch.ones(3, 2, dtype=matrix.dtype)).shape == (3, 2)
    late = sg.inverse.LinearMap(lambda x: (x @ single.bfloat16()) ** 2, (2,))  # float32 numbers do not go into it
    with pytest.raises(ValueError, match="not linear"):
        late.apply(torch.ones(1, 2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match="apply must be a function"):
        sg.inverse.LinearMap(single, (2,))  # type: ignore[arg-type]


def test_dps_differentiates_where_it_stands() -> None:
    """A step of DPS on a function that is not linear, by hand."""
    sde, zeta = LINEAR["edm"], 0.3
    data = sg.oracles.Gaussian(torch.tensor([0.5, -0.25], dtype=F64), 0.6)
    square = sg.inverse.NonlinearMap(lambda x: x**2 + x[:, :1], (2,))
    seen = inverse.Measurement(square, torch.tensor([0.7, 0.1], dtype=F64))
    score, x = data.score(sde), torch.tensor([[3.0, -2.0], [0.3, 0.9]], dtype=F64)
    times = (2.0, 0.5)
    plain = sg.sample(score, sde, x_T=x, solver="ancestral", grid=times, seed=1, final="none").x
    solver = sg.inverse.DPS(sg.Ancestral(), seen, zeta)
    res = sg.sample(score, sde, x_T=x, solver=solver, grid=times, seed=1, final="none").x
    leaf = x.clone().requires_grad_()
    misfit = (seen.y - square.apply(score.denoised(leaf, 2.0))).norm(dim=1)
    (gradient,) = torch.autograd.grad(misfit.sum(), leaf)
    torch.testing.assert_close(res, plain - zeta * math.sqrt(5.0 * 1.25) * gradient)
    for method in (sg.inverse.MMPS, sg.inverse.PiGDM, sg.inverse.DiffPIR):
        with pytest.raises(TypeError, match=r"a linear operator is needed, got NonlinearMap\(.*DPS takes any"):
            method(score, seen)
    with pytest.raises(TypeError, match="a linear operator is needed"):
        sg.inverse.Replacement(sg.Ancestral(), seen)
    with pytest.raises(TypeError, match="a linear operator is needed"):
        sg.inverse.posterior(data, seen)
