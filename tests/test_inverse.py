"""Inverse problems: operators, posterior scores, methods at the nodes, against exact posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde._utils.shapes import dot
from sgm_sde.engine.executor import execute
from sgm_sde.inverse.linalg import conjugate_gradient, conjugate_residual
from sgm_sde.likelihood import FixedGrid
from sgm_sde.scores import Score
from sgm_sde.testing import CheckError
from tests.helpers import F64, LINEAR, Recorder, bind, elementwise_score

VP = sg.VPSDE()
HALF = inverse.Mask(torch.tensor([True, False]))
TILTED = sg.oracles.Gaussian(torch.tensor([0.3, -0.7], dtype=F64), torch.tensor([[1.0, 0.8], [0.8, 1.2]], dtype=F64))
MODES = sg.oracles.GaussianMixture(
    torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]], dtype=F64), [0.4, 0.5, 0.3], [0.5, 0.3, 0.2]
)


def seen(std: float = 0.0) -> inverse.Measurement:
    """The first of two coordinates, measured as 1."""
    return inverse.Measurement(HALF, torch.tensor([1.0, 0.0], dtype=F64), std)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def dense(operator: inverse.LinearOperator, shape: tuple[int, ...]) -> Tensor:
    """The operator's matrix (m, d)."""
    d = math.prod(shape)
    return operator.apply(torch.eye(d, dtype=F64).reshape(d, *shape)).flatten(1).T


def checkerboard(*shape: int) -> Tensor:
    """A mask with every other entry observed."""
    return (torch.arange(math.prod(shape)) % 2 == 0).reshape(shape)


MIX = torch.tensor([[0.2, 0.7, 0.1], [0.5, -0.5, 0.3]], dtype=F64)
KERNEL = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.5, 0.1]], dtype=F64)
OPERATORS: dict[str, tuple[inverse.LinearOperator, tuple[int, ...]]] = {
    "mask": (inverse.Mask(checkerboard(3, 4)), (3, 4)),
    "mask a sample": (inverse.Mask(normal(4, 5, seed=3) > 0), (5,)),
    "grey": (inverse.ChannelMix.grey(3), (3, 2, 2)),
    "mix of channels": (inverse.ChannelMix(MIX), (3, 4)),
    "mix of features": (inverse.ChannelMix(MIX), (3,)),
    "blocks": (inverse.BlockAverage(2), (2, 4, 6)),
    "blocks of a line": (inverse.BlockAverage(3, dims=1), (2, 6)),
    "blur": (inverse.Blur(KERNEL), (2, 4, 5)),
    "gaussian blur": (inverse.Blur.gaussian(0.8, size=3), (1, 4, 4)),
    "map": (inverse.LinearMap(lambda x: x[:, 1:] - x[:, :-1], (5,)), (5,)),
    "map of full rank": (inverse.LinearMap(lambda x: x[:, 1:] - x[:, :-1], (5,), full_rank=True), (5,)),
    "map with adjoint": (
        inverse.LinearMap(lambda x: x.sum(2), (3, 2), adjoint=lambda y: y[:, :, None].expand(-1, -1, 2)),
        (3, 2),
    ),
}


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_what_they_declare(name: str) -> None:
    """Linear, with their adjoint, solutions and pseudo-inverse."""
    operator, shape = OPERATORS[name]
    assert len(inverse.check_operator(operator, shape)) == (5 if operator.full_rank else 4)
    assert type(operator).__name__ in repr(operator)


def test_operators_against_torch() -> None:
    """The same numbers as indexing, matrix products, pooling and convolution."""
    x = normal(4, 3, 4, 6)
    mask = checkerboard(3, 4, 6)
    assert torch.equal(inverse.Mask(mask).apply(x)[:, mask], x[:, mask])
    assert not inverse.Mask(mask).apply(x)[:, ~mask].any()
    torch.testing.assert_close(inverse.ChannelMix.grey(3).apply(x), x.mean(1, keepdim=True))
    torch.testing.assert_close(inverse.ChannelMix(MIX).apply(x)[:, 1], 0.5 * x[:, 0] - 0.5 * x[:, 1] + 0.3 * x[:, 2])
    torch.testing.assert_close(inverse.BlockAverage(2).apply(x), F.avg_pool2d(x, 2))
    # conv2d correlates, so with the mirrored kernel; its centre is entry 1 of both sides
    padded = F.pad(x.reshape(12, 1, 4, 6), (1, 1, 0, 1), mode="circular")
    expected = F.conv2d(padded, KERNEL.flip(0, 1)[None, None]).reshape(4, 3, 4, 6)
    torch.testing.assert_close(inverse.Blur(KERNEL).apply(x), expected)
    line = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=F64) / 0.7) ** 2)
    torch.testing.assert_close(inverse.Blur.gaussian(0.7, 5).kernel, line[:, None] * line / line.sum() ** 2)


@pytest.mark.parametrize("name", OPERATORS)
def test_pseudo_inverse_is_that_of_the_matrix(name: str) -> None:
    """A^+ y, and the nearest consistent data."""
    operator, shape = OPERATORS[name]
    if not operator.full_rank:
        with pytest.raises(ValueError, match="no pseudo-inverse"):
            operator.pseudo_inverse(operator.apply(normal(4, *shape)))
        return
    if name == "mask a sample":
        return  # no one matrix
    y = operator.apply(normal(4, *shape))
    inverse_matrix = torch.linalg.pinv(dense(operator, shape))
    torch.testing.assert_close(operator.pseudo_inverse(y).flatten(1), y.flatten(1) @ inverse_matrix.T)
    nearest = inverse.Measurement(operator, y).consistent(normal(4, *shape, seed=1))
    torch.testing.assert_close(operator.apply(nearest), y)
    moved = (nearest - normal(4, *shape, seed=1)).flatten(1)
    torch.testing.assert_close(moved @ inverse_matrix @ dense(operator, shape), moved)  # within the row space


class Broken(inverse.LinearOperator):
    """The identity, with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong, self.full_rank = wrong, wrong == "rank"

    def apply(self, x: Tensor) -> Tensor:
        if self.wrong == "linear":
            return x + 1
        if self.wrong == "batch":
            return x - x.mean(0)
        return x[:, :1] * torch.ones_like(x) if self.wrong == "rank" else x

    def adjoint(self, y: Tensor) -> Tensor:
        if self.wrong == "rank":
            return torch.cat([y.sum(1, keepdim=True), 0 * y[:, 1:]], 1)
        return self.apply(2 * y if self.wrong == "adjoint" else y)

    def solve(self, v: Tensor, shift: Tensor | float) -> Tensor:
        return v if self.wrong == "solve" else super().solve(v, shift)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("linear", "3Az"),
        ("adjoint", r"A\^T"),
        ("batch", "among others"),
        ("solve", "shift"),
        ("rank", r"A A\^\+ y"),
    ],
)
def test_check_operator_finds(wrong: str, message: str) -> None:
    """Each kind of contradiction."""
    with pytest.raises(CheckError, match=message):
        inverse.check_operator(Broken(wrong), (3,))


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "float mask": (lambda: inverse.Mask(torch.ones(2)), TypeError, "torch.float32"),
    "mask of a list": (lambda: inverse.Mask([True]), TypeError, "True"),  # type: ignore[arg-type]
    "empty mask": (lambda: inverse.Mask(torch.zeros(2, dtype=torch.bool)), ValueError, "observes nothing"),
    "mask of another shape": (
        lambda: inverse.Mask(checkerboard(8, 8)).apply(torch.zeros(4, 1, 8, 8)),
        ValueError,
        r"\(8, 8\).*\(4, 1, 8, 8\).*\(1, 8, 8\)",
    ),
    "dependent rows": (lambda: inverse.ChannelMix(torch.ones(2, 3)), ValueError, "rank is 1"),
    "vector for a matrix": (lambda: inverse.ChannelMix(torch.ones(3)), ValueError, "matrix"),
    "other channels": (lambda: inverse.ChannelMix.grey(3).apply(torch.zeros(2, 4, 5)), ValueError, r"\(2, 4, 5\)"),
    "factor": (lambda: inverse.BlockAverage(0), ValueError, "0"),
    "dims": (lambda: inverse.BlockAverage(2, dims=0), ValueError, "dims"),
    "indivisible": (lambda: inverse.BlockAverage(3).apply(torch.zeros(2, 1, 8, 9)), ValueError, r"3.*\(2, 1, 8, 9\)"),
    "too few dimensions": (lambda: inverse.BlockAverage(2).apply(torch.zeros(2, 8)), ValueError, r"\(2, 8\)"),
    "kernel": (lambda: inverse.Blur(torch.tensor([float("nan")])), ValueError, "nan"),
    "kernel of integers": (lambda: inverse.Blur(torch.ones(3, dtype=torch.int64)), TypeError, "floating"),
    "kernel too large": (lambda: inverse.Blur(torch.ones(9)).apply(torch.zeros(2, 8)), ValueError, r"\(9,\).*\(2, 8\)"),
    "blur's std": (lambda: inverse.Blur.gaussian(0.0, 3), ValueError, "0.0"),
    "iterations": (lambda: inverse.LinearMap(lambda x: x, (2,), iterations=0), ValueError, "0"),
    "map of other samples": (
        lambda: inverse.LinearMap(lambda x: x, (2,)).apply(torch.zeros(1, 3)), ValueError, r"\(2,\).*\(1, 3\)",
    ),
    "map of one": (lambda: inverse.LinearMap(lambda x: x[0], (2,)).apply(torch.zeros(3, 2)), ValueError, "returned"),
    "adjoint's shape": (
        lambda: inverse.LinearMap(lambda x: x, (2,), adjoint=lambda y: y[:, :1]).adjoint(torch.zeros(3, 2)),
        ValueError,
        "adjoint",
    ),
    "operator": (lambda: inverse.Measurement(torch.ones(2), torch.ones(2)), TypeError, "operator"),  # type: ignore[arg-type]
    "integer y": (lambda: inverse.Measurement(HALF, torch.ones(2, dtype=torch.int64)), TypeError, "floating"),
    "negative std": (lambda: seen(-0.1), ValueError, "-0.1"),
    "nan std": (lambda: seen(math.nan), ValueError, "nan"),
    "exact blur": (lambda: inverse.Measurement(inverse.Blur(KERNEL), torch.ones(3, 3)), ValueError, "std=0"),
    "exact map": (
        lambda: inverse.Measurement(inverse.LinearMap(lambda x: x, (2,)), torch.ones(2)), ValueError, "std=0",
    ),
    "y not finite": (lambda: inverse.Measurement(HALF, torch.tensor([math.inf, 0.0])), ValueError, "1 measured"),
    "y of another shape": (
        lambda: inverse.Measurement(inverse.BlockAverage(2, 1), torch.zeros(3)).residual(torch.zeros(5, 4)),
        ValueError,
        r"\(3,\).*\(5, 4\).*\(5, 2\)",
    ),
    "y for another batch": (
        lambda: inverse.Measurement(HALF, torch.zeros(3, 2)).residual(torch.zeros(5, 2)), ValueError, r"\(3, 2\)",
    ),
    "no score": (lambda: inverse.MMPS(lambda x, t: x, seen(0.1)), TypeError, "Score"),  # type: ignore[arg-type]
    "no measurement": (lambda: inverse.PiGDM(TILTED.score(VP), HALF), TypeError, "Measurement"),  # type: ignore[arg-type]
    "linear solver": (
        lambda: inverse.MMPS(TILTED.score(VP), seen(0.1), linear_solver="lu"), ValueError, "'lu'",
    ),
    "mmps iterations": (lambda: inverse.MMPS(TILTED.score(VP), seen(0.1), 0), ValueError, "0"),
    "data_std": (lambda: inverse.PiGDM(TILTED.score(VP), seen(0.1), data_std=-1.0), ValueError, "-1.0"),
    "strength": (lambda: inverse.DiffPIR(TILTED.score(VP), seen(0.1), strength=0.0), ValueError, "0.0"),
    "replacement with noise": (lambda: inverse.Replacement(sg.DDIM(), seen(0.1)), ValueError, "std=0.1.*MMPS"),
    "replacement of no solver": (lambda: inverse.Replacement("ddim", seen()), TypeError, "'ddim'"),  # type: ignore[arg-type]
    "replacement's noise": (lambda: inverse.Replacement(sg.DDIM(), seen(), "new"), ValueError, "'new'"),
    "repaint's noise": (lambda: inverse.RePaint(sg.DDIM(), seen(), "fixed"), ValueError, "fixed"),
    "resamples": (lambda: inverse.RePaint(sg.DDIM(), seen(), resamples=0), ValueError, "resamples.*0"),
    "jump": (lambda: inverse.RePaint(sg.DDIM(), seen(), jump=0), ValueError, "jump.*0"),
    "zeta": (lambda: inverse.DPS(sg.DDIM(), seen(), zeta=0.0), ValueError, "zeta.*0.0"),
    "oracle": (lambda: inverse.posterior("data", seen()), TypeError, "data"),  # type: ignore[arg-type]
    "posterior of many": (
        lambda: inverse.posterior(TILTED, inverse.Measurement(HALF, torch.zeros(2, 2))), ValueError, r"\(2, 2\)",
    ),
    "determined measurement": (
        lambda: inverse.posterior(sg.oracles.Gaussian(torch.zeros(2), torch.diag(torch.tensor([0.0, 1.0]))), seen()),
        ValueError,
        "std=0",
    ),
    "mixture of what": (lambda: sg.oracles.Mixture([MODES], [1.0]), TypeError, "Gaussian"),  # type: ignore[list-item]
    "mixture of shapes": (
        lambda: sg.oracles.Mixture([TILTED, sg.oracles.Gaussian(torch.zeros(3), 1.0)], [1.0, 1.0]), ValueError, "shape",
    ),
    "mixture's weights": (lambda: sg.oracles.Mixture([TILTED], [-1.0]), ValueError, "-1.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    """Errors at the call, with the value."""
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


SAMPLED_BAD: dict[str, tuple[Callable[[], sg.Solver], str, type[Exception], str]] = {
    "multistep": (lambda: inverse.Replacement(sg.DPMSolverPP(2), seen()), "vp", ValueError, "earlier steps.*fixed"),
    "multistep repaint": (lambda: inverse.RePaint(sg.DPMSolverPP(2), seen()), "vp", ValueError, "earlier steps"),
    "two evaluations": (lambda: inverse.DPS(sg.Heun(), seen()), "vp", ValueError, "heun has more"),
    "multistep dps": (lambda: inverse.DPS(sg.DPMSolverPP(2), seen()), "vp", ValueError, "DPS"),
    "inside": (lambda: sg.Restart(inverse.Replacement(sg.DDIM(), seen())), "edm", TypeError, "outside"),
}


@pytest.mark.parametrize("name", SAMPLED_BAD)
def test_solvers_that_do_not_go(name: str) -> None:
    """Methods refuse solvers with which they mean nothing, when the run is asked for."""
    make, process, error, message = SAMPLED_BAD[name]
    sde = LINEAR[process]
    with pytest.raises(error, match=message):
        sg.sample(TILTED.score(sde), sde, (2, 2), solver=make(), steps=10, seed=0)


def test_nonlinear_processes_are_refused() -> None:
    """Without alpha and sigma there is no denoiser."""

    class Drift(sg.SDE):
        T, eps, prior_std = 1.0, 1e-3, 1.0

        def f(self, x: Tensor, t: Tensor) -> Tensor:
            return -(x**3)

        def g(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

    with pytest.raises(TypeError, match="LinearSDE"):
        inverse.MMPS(sg.from_score(lambda x, t: -x, Drift()), seen(0.1))
    with pytest.raises(TypeError, match="LinearSDE"):
        sg.sample(lambda x, t: -x, Drift(), (2, 2), solver=inverse.Replacement(sg.EulerMaruyama(), seen()), steps=3)


# --- measurements and linear systems ---------------------------------------------------------------------------------


def test_measurements() -> None:
    """One for all or one per sample; what a mask hides is not looked at; simulated noise is a sample's own."""
    x = normal(3, 2)
    each = inverse.Measurement(HALF, normal(3, 2, seed=1))
    torch.testing.assert_close(each.residual(x)[:, 0], normal(3, 2, seed=1)[:, 0] - x[:, 0])
    assert not each.residual(x)[:, 1].any()
    hidden = inverse.Measurement(HALF, torch.tensor([1.0, math.nan]))
    torch.testing.assert_close(hidden.residual(x)[:, 0], 1 - x[:, 0])
    assert repr(hidden) == "Measurement(Mask(1 of 2 observed), y=(2,), std=0)"
    blocks, data = inverse.BlockAverage(2), torch.ones(2000, 1, 4, 4)
    noisy = inverse.Measurement.simulate(blocks, data, 0.5, seed=3)
    error = noisy.y - blocks.apply(data)
    assert abs(float(error.std()) - 0.5) < 4 * 0.5 / math.sqrt(2 * error.numel())
    assert torch.equal(inverse.Measurement.simulate(blocks, data[:5], 0.5, seed=3).y, noisy.y[:5])
    assert inverse.Measurement.simulate(blocks, data[:5]).y.eq(1).all()


@pytest.mark.parametrize("solve", [conjugate_gradient, conjugate_residual])
def test_linear_solvers(solve: Any) -> None:
    """Exact after as many steps as dimensions; each sample by itself, zero and huge right-hand sides among them."""
    root = normal(3, 4, 4)
    M = root @ root.mT + 0.1 * torch.eye(4, dtype=F64)
    if solve is conjugate_residual:  # any matrix with a positive symmetric part
        M = M + 0.5 * (root - root.mT)
    L = normal(3, 5, 4, seed=1)

    def apply(p: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        return (M[rows] @ p[..., None])[..., 0], (L[rows] @ p[..., None])[..., 0]

    b = normal(3, 4, seed=2) * torch.tensor([[1.0], [1e12], [0.0]], dtype=F64)
    exact = (L @ torch.linalg.solve(M, b[..., None]))[..., 0]
    for iterations in (4, 40):
        torch.testing.assert_close(solve(apply, b, iterations), exact, rtol=1e-8, atol=0)
    few = solve(apply, b, 2)
    alone = torch.cat([solve(lambda p, i=i: apply(p, slice(i, i + 1)), b[i : i + 1], 2) for i in range(3)])
    torch.testing.assert_close(few, alone, rtol=1e-13, atol=0)


def test_residuals_never_grow() -> None:
    """Conjugate residuals on matrices that are neither symmetric nor positive: each step is the better for it."""
    M, b = normal(50, 8, 8), normal(50, 8, seed=1)

    def apply(p: Tensor) -> tuple[Tensor, Tensor]:
        image = (M @ p[..., None])[..., 0]
        return image, image  # L = M: what is solved for is b itself

    residuals = torch.stack([(b - conjugate_residual(apply, b, k)).norm(dim=1) for k in range(1, 9)])
    assert bool((residuals[0] < b.norm(dim=1)).all())
    assert bool((residuals.diff(dim=0) <= 1e-9).all())


# --- exact posteriors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_gaussian_posterior(std: float) -> None:
    """By the precision form: C_y^-1 = C^-1 + A^T A / std^2; without noise by conditioning."""
    post = inverse.posterior(TILTED, seen(std))
    C, m = TILTED.covariance, TILTED.mean
    if std:
        A = torch.tensor([[1.0, 0.0]], dtype=F64)
        expected = torch.linalg.inv(torch.linalg.inv(C) + A.T @ A / std**2)
        mean = m + expected @ A.T @ (1 - A @ m) / std**2
    else:
        expected = torch.diag(torch.stack([0 * C[0, 0], C[1, 1] - C[0, 1] ** 2 / C[0, 0]]))
        mean = torch.stack([torch.ones_like(m[0]), m[1] + C[0, 1] / C[0, 0] * (1 - m[0])])
    torch.testing.assert_close(post.covariance, expected)
    torch.testing.assert_close(post.mean, mean)


@pytest.mark.parametrize("name", ["mix of features", "blocks of a line", "map"])
def test_mixture_posterior_is_prior_times_likelihood(name: str) -> None:
    """log p(x | y) - log p(x) - log p(y | x) is one number for all x: weights, means and covariances at once."""
    operator, shape = OPERATORS[name]
    prior = sg.oracles.GaussianMixture(normal(3, *shape), normal(3, *shape, seed=1).abs() + 0.2, [0.5, 0.3, 0.2])
    measurement = inverse.Measurement(operator, operator.apply(normal(1, *shape, seed=2))[0], std=0.7)
    x = 2 * normal(6, *shape, seed=3)
    residual = measurement.residual(x)
    likelihood = -0.5 * dot(residual, residual) / 0.7**2
    evidence = inverse.posterior(prior, measurement).log_prob(x) - prior.log_prob(x) - likelihood
    torch.testing.assert_close(evidence, evidence[:1].expand(6))
    twice = inverse.posterior(inverse.posterior(prior, measurement), measurement)  # two measurements of one value
    torch.testing.assert_close(
        twice.log_prob(x) - prior.log_prob(x) - 2 * likelihood,
        (twice.log_prob(x) - prior.log_prob(x) - 2 * likelihood)[:1].expand(6),
    )


def test_mixtures_of_full_covariance() -> None:
    """The diagonal mixture in its other form; moments of samples; the score is the density's gradient."""
    same, x, t = MODES.as_mixture(), 2 * normal(5, 2), torch.linspace(0.1, 0.9, 5, dtype=F64)
    for s in (None, VP):
        torch.testing.assert_close(same.log_prob(x, s, t), MODES.log_prob(x, s, t))
        torch.testing.assert_close(same.responsibilities(x, s, t), MODES.responsibilities(x, s, t))
    torch.testing.assert_close(same.score(VP)(x, t), MODES.score(VP)(x, t))
    tilted = sg.oracles.Mixture([TILTED, sg.oracles.Gaussian(torch.tensor([2.0, 2.0]), 0.1)], [3.0, 1.0])
    n = 20000
    drawn = tilted.sample(n, seed=0, dtype=F64)
    spread = tilted.covariance.diag().sqrt()
    assert float(((drawn.mean(0) - tilted.mean) / spread).abs().max()) < 4 / math.sqrt(n)
    assert float(((drawn.T.cov() - tilted.covariance) / spread / spread[:, None]).abs().max()) < 4 * math.sqrt(3 / n)
    assert float(tilted.responsibilities(drawn).mean(0)[1]) == pytest.approx(0.25, abs=4 * math.sqrt(0.19 / n))
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(tilted.log_prob(y, VP, t).sum(), y)
    torch.testing.assert_close(tilted.score(VP)(x, t), slope)


# --- posterior scores ------------------------------------------------------------------------------------------------

SCORES: dict[str, Callable[..., inverse.PosteriorScore]] = {
    "mmps": lambda s, m: inverse.MMPS(s, m, iterations=4),
    "mmps-cg": lambda s, m: inverse.MMPS(s, m, iterations=4, linear_solver="cg"),
    "pigdm": lambda s, m: inverse.PiGDM(s, m, data_std=0.8),
    "diffpir": lambda s, m: inverse.DiffPIR(s, m, strength=2.0),
}


def problem(name: str, std: float = 0.3, seed: int = 0) -> tuple[sg.oracles.Gaussian, inverse.Measurement]:
    """Gaussian data with correlations, and a measurement of it."""
    operator, shape = OPERATORS[name]
    root = normal(math.prod(shape), math.prod(shape), seed=seed) / math.sqrt(math.prod(shape))
    data = sg.oracles.Gaussian(normal(*shape, seed=seed + 1), root @ root.T)
    return data, inverse.Measurement(operator, operator.apply(normal(1, *shape, seed=seed + 2))[0], std)


SHARED = [name for name in OPERATORS if name != "mask a sample"]


@pytest.mark.parametrize("process", ["vp", "ve", "flow", "edm"])
@pytest.mark.parametrize("name", ["mask", "mix of channels", "blocks of a line", "blur", "map"])
def test_mmps_is_exact_on_gaussian_data(name: str, process: str) -> None:
    """The denoiser of the posterior itself, on every process, operator and time."""
    sde = LINEAR[process]
    data, measurement = problem(name)
    exact = inverse.posterior(data, measurement)
    t = sde.time(torch.linspace(-4, 4, 7, dtype=F64)).clamp(sde.eps, sde.T)
    x = exact.sample(7, sde, t, seed=0, dtype=F64)
    for linear_solver in ("gcr", "cg"):
        score = inverse.MMPS(data.score(sde), measurement, 60, linear_solver)
        with torch.no_grad():
            torch.testing.assert_close(score.denoised(x, t), exact.score(sde).denoised(x, t), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(score(x, t), exact.score(sde)(x, t), rtol=1e-5, atol=1e-5)


def formula(name: str, D: Tensor, J: Tensor, m: inverse.Measurement, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean of each method for one sample, with dense matrices."""
    A, eye = dense(m.operator, (len(D),)), torch.eye(len(D), dtype=F64)
    with_jacobian = sigma**2 / alpha * J.T
    r2 = (sigma * 0.8) ** 2 / (sigma**2 + (alpha * 0.8) ** 2)
    outer, inner = {
        "mmps": (with_jacobian, with_jacobian),
        "mmps-cg": (with_jacobian, with_jacobian),
        "pigdm": (with_jacobian, r2 * eye),
        "diffpir": (sigma**2 / (2 * alpha**2) * eye,) * 2,
    }[name]
    gram = A @ inner @ A.T + m.std**2 * torch.eye(len(A), dtype=F64)
    return D + outer @ A.T @ torch.linalg.solve(gram, m.y - A @ D)


@pytest.mark.parametrize("operator", ["mix of features", "map"])
@pytest.mark.parametrize("name", SCORES)
def test_posterior_means_against_dense_matrices(name: str, operator: str) -> None:
    """On a mixture, whose denoiser is not linear, with its Jacobian by autograd: each method's formula."""
    A, shape = OPERATORS[operator]
    data = sg.oracles.GaussianMixture(normal(3, *shape), normal(3, *shape, seed=1).abs() + 0.2)
    m = inverse.Measurement(A, A.apply(normal(1, *shape, seed=2))[0], 0.4)
    score = data.score(VP)
    x, t = normal(4, *shape, seed=3), torch.tensor([0.05, 0.3, 0.5, 0.8], dtype=F64)
    got = SCORES[name](score, m).denoised(x, t)
    for i in range(4):
        D = score.denoised(x[i : i + 1], t[i : i + 1])[0]
        J: Any = torch.autograd.functional.jacobian(lambda z, i=i: score.denoised(z[None], t[i : i + 1])[0], x[i])
        expected = formula(name, D, J, m, VP.alpha(t[i]), VP.sigma(t[i]))
        torch.testing.assert_close(got[i], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("operator", ["mask", "grey", "blocks", "gaussian blur"])
def test_pigdm_is_exact_on_independent_data(operator: str) -> None:
    """Data of one standard deviation, independent: the isotropic guess is the truth."""
    A, shape = OPERATORS[operator]
    data = sg.oracles.Gaussian(normal(*shape), 0.8**2)
    m = inverse.Measurement(A, A.apply(normal(1, *shape, seed=2))[0], 0.3)
    x, t = normal(3, *shape, seed=3), torch.tensor([0.1, 0.4, 0.9], dtype=F64)
    exact = inverse.posterior(data, m).score(VP)
    torch.testing.assert_close(inverse.PiGDM(data.score(VP), m, data_std=0.8)(x, t), exact(x, t))


def test_diffpir_minimises_its_objective() -> None:
    """The gradient of the objective vanishes; without noise the measurement is met exactly, whatever the strength."""
    A, shape = OPERATORS["gaussian blur"]
    score = sg.oracles.Gaussian(normal(*shape), 0.5).score(VP)
    m = inverse.Measurement(A, A.apply(normal(1, *shape, seed=2))[0], 0.3)
    x, t = normal(3, *shape, seed=3), torch.tensor([0.1, 0.4, 0.9], dtype=F64)
    best = inverse.DiffPIR(score, m, strength=3.0).denoised(x, t).detach().requires_grad_()
    ratio = 3.0 * (VP.alpha(t) / VP.sigma(t)) ** 2
    objective = dot(m.residual(best), m.residual(best)) / 0.3**2 + ratio * dot(
        best - score.denoised(x, t), best - score.denoised(x, t)
    )
    (slope,) = torch.autograd.grad(objective.sum(), best)
    assert float(slope.abs().max()) < 1e-9 * float(ratio.max())
    blocks, shape = OPERATORS["blocks"]
    exact = inverse.Measurement(blocks, blocks.apply(normal(3, *shape, seed=4)))
    data = sg.oracles.Gaussian(torch.zeros(shape, dtype=F64), 0.5).score(VP)
    z = normal(3, *shape)
    met = inverse.DiffPIR(data, exact, strength=7.0).denoised(z, t)
    torch.testing.assert_close(met, exact.consistent(data.denoised(z, t)))
    torch.testing.assert_close(blocks.apply(met), exact.y)


def law(score: sg.Score, sde: sg.LinearSDE, mean: Tensor, cov: Tensor, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of a flow's last state, linear in its start N(mean, cov), by its basis vectors."""
    d = len(mean)
    starts = torch.cat([mean[None], mean + torch.eye(d, dtype=F64)])
    out = sg.sample(
        score, sde, x_T=starts, solver="lms4", steps=steps, grid="log-snr", t_start=0.9, t_end=0.02, final="none"
    ).x
    J = (out[1:] - out[0]).T
    return out[0], J @ cov @ J.T


def test_biases_on_gaussian_data() -> None:
    """Output laws without Monte Carlo: MMPS has the posterior's, PiGDM is off by less than DiffPIR."""
    m = seen(0.3)
    exact = inverse.posterior(TILTED, m)

    def at(t: float) -> tuple[Tensor, Tensor]:
        a, s = float(VP.alpha(t)), float(VP.sigma(t))
        return a * exact.mean, a**2 * exact.covariance + s**2 * torch.eye(2, dtype=F64)

    (start_mean, start_cov), (end_mean, end_cov) = at(0.9), at(0.02)
    errors = {}
    own_mean, own_cov = law(exact.score(VP), VP, start_mean, start_cov)
    for name, make in SCORES.items():
        mean, cov = law(make(TILTED.score(VP), m), VP, start_mean, start_cov)
        errors[name] = float((mean - end_mean).norm() + (cov - end_cov).norm())
        if name[:4] == "mmps":
            torch.testing.assert_close(mean, own_mean, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(cov, own_cov, rtol=1e-10, atol=1e-12)
    assert errors["mmps"] < 1e-4  # the solver's
    assert 0.01 < errors["pigdm"] < errors["diffpir"]


def test_likelihood_of_a_posterior_score() -> None:
    """log p(x | y) by `log_prob` through MMPS: that of the posterior's own score, and the closed form."""
    m = seen(0.3)
    exact = inverse.posterior(TILTED, m)
    x = exact.sample(4, VP, 1e-2, seed=0, dtype=F64)
    options: dict[str, Any] = {"trace": "exact", "eps": 1e-2, "method": FixedGrid(60)}
    got = sg.log_prob(inverse.MMPS(TILTED.score(VP), m), VP, x, **options)
    own = sg.log_prob(exact.score(VP), VP, x, **options)
    torch.testing.assert_close(got.value, own.value, rtol=0, atol=1e-9)
    torch.testing.assert_close(got.value, exact.log_prob(x, VP, 1e-2), rtol=0, atol=0.02)  # the prior at T


@pytest.mark.parametrize(("y", "std"), [(-0.2, 2.0), (0.5, 0.5)])
def test_mode_weights(y: float, std: float) -> None:
    """Two far modes told apart by a measurement: right from the exact score, and off from MMPS, as documented."""
    data = sg.oracles.GaussianMixture(torch.tensor([[-2.0, -3.0], [2.0, 3.0]], dtype=F64), 0.3, [0.3, 0.7])
    m = inverse.Measurement(HALF, torch.tensor([y, 0.0], dtype=F64), std)
    exact, n = inverse.posterior(data, m), 1000
    weight = float(exact.weights[0])
    score, off = data.score(VP), {}
    scores = {"exact": exact.score(VP), "mmps": inverse.MMPS(score, m, 1), "pigdm": inverse.PiGDM(score, m)}
    for name, score in scores.items():
        x = sg.sample(score, VP, (n, 2), solver="dpm++2m", steps=40, grid="log-snr", seed=1, dtype=F64).x
        off[name] = float((exact.responsibilities(x)[:, 0].mean() - weight) / math.sqrt(weight * (1 - weight) / n))
    assert abs(off["exact"]) < 4  # standard errors
    if std == 2.0:
        assert abs(off["mmps"]) < 4 < abs(off["pigdm"])
    else:
        assert off["mmps"] > 50


# --- networks, gradients, counts -------------------------------------------------------------------------------------


class Counted(torch.autograd.Function):
    """The identity, which counts its backward passes."""

    backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        Counted.backwards += 1
        return grad


def small_net(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser that is not linear."""
    return torch.tanh(Counted.apply(x)) * 0.9


@pytest.mark.parametrize(
    ("make", "vjps"),
    [(lambda s, m: inverse.MMPS(s, m, 4), 4), (inverse.PiGDM, 1), (inverse.DiffPIR, 0)],
)
def test_counts_of_scores(make: Callable[..., inverse.PosteriorScore], vjps: int) -> None:
    """Calls, rows and vector-Jacobian products are what they are said to be."""
    net = Recorder(small_net)
    score = make(sg.from_denoiser(net, VP), seen(0.3))
    assert score.vjps == vjps
    Counted.backwards = 0
    res = sg.sample(score, VP, (3, 2), solver="dpm++2m", nfe=7, seed=0)
    assert (res.nfe, res.network_evals, len(net.states)) == (7, 21, 7)
    assert Counted.backwards == 7 * vjps


def test_counts_of_dps() -> None:
    """One product for each evaluation but the final one."""
    net = Recorder(small_net)
    Counted.backwards = 0
    res = sg.sample(sg.from_denoiser(net, VP), VP, (3, 2), solver=inverse.DPS(sg.Ancestral(), seen()), nfe=7, seed=0)
    assert (res.nfe, len(net.states), Counted.backwards) == (7, 7, 6)


def test_nothing_is_left_behind() -> None:
    """No graph, no gradients, no change to anyone's requires_grad; inference mode works."""
    net = nn.Linear(2, 2, dtype=F64)
    score = sg.from_denoiser(lambda x, t: net(x), VP)
    x = normal(3, 2)
    for guided, solver in (
        *((make(score, seen(0.3)), sg.DDIM()) for make in SCORES.values()),
        (score, inverse.DPS(sg.DDIM(), seen())),
        (score, inverse.RePaint(sg.DDIM(), seen(), resamples=2, jump=1)),
    ):
        res = sg.sample(guided, VP, x_T=x, solver=solver, steps=4, seed=0)
        with torch.inference_mode():
            again = sg.sample(guided, VP, x_T=x, solver=solver, steps=4, seed=0)
        assert torch.equal(res.x, again.x)
        assert not res.x.requires_grad and not x.requires_grad
        assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("prediction", ["noise", "data", "v", "flow", "score"])
@pytest.mark.parametrize("method", [inverse.MMPS, inverse.PiGDM])
def test_a_network_without_gradient_is_refused(method: Any, prediction: str) -> None:
    """Whatever it predicts: what the conversion to data adds has a gradient in any case."""
    exact = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(VP)
    score = Score(torch.no_grad()(lambda x, t: exact.predict(prediction, x, t)), VP, prediction)
    with pytest.raises(ValueError, match="the network gives no gradient with respect to x"):
        sg.sample(method(score, seen(0.3)), VP, (3, 2), steps=4, seed=0, dtype=F64)
    free = inverse.DiffPIR(score, seen(0.3))
    assert sg.sample(free, VP, (3, 2), steps=4, seed=0, dtype=F64).status.ok


def runs(score: sg.Score) -> dict[str, tuple[sg.Score, sg.Solver]]:
    """Every method on a score."""
    return {
        **{name: (make(score, seen(0.3)), sg.DPMSolverPP(2)) for name, make in SCORES.items()},
        "dps": (score, inverse.DPS(sg.Ancestral(), seen())),
        "replacement": (score, inverse.Replacement(sg.Ancestral(), seen())),
        "fixed replacement": (score, inverse.Replacement(sg.DPMSolverPP(2), seen(), "fixed")),
        "repaint": (score, inverse.RePaint(sg.Ancestral(), seen(), resamples=2, jump=2)),
    }


RUNS = list(runs(TILTED.score(VP)))


@pytest.mark.parametrize("name", RUNS)
def test_gradients_through_sampling(name: str) -> None:
    """`enable_grad=True`: the derivative with respect to the start is the difference quotient."""
    score, solver = runs(MODES.score(VP))[name]

    def run(x: Tensor, grad: bool) -> Tensor:
        res = sg.sample(
            score,
            VP,
            x_T=x,
            solver=solver,
            steps=5,
            t_start=0.5,
            t_end=0.1,
            seed=0,
            execution=sg.Execution(enable_grad=grad),
        )
        return res.x.square().sum()

    x, v = normal(2, 2).requires_grad_(), normal(2, 2, seed=1)
    (slope,) = torch.autograd.grad(run(x, True), x)
    h = 1e-5
    difference = (run(x.detach() + h * v, False) - run(x.detach() - h * v, False)) / (2 * h)
    assert float((slope * v).sum()) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
@settings(max_examples=3)
@given(order=st.permutations(range(4)), cut=st.integers(1, 3))
def test_samples_do_not_depend_on_one_another(name: str, order: list[int], cut: int) -> None:
    """Seeds alone, permuted and in two chunks."""
    sde, seeds = VP, [7, 2**40 + 1, 0, 3]
    score, solver = runs(sg.from_score(elementwise_score(sde), sde))[name]

    def draw(seeds: list[int]) -> Tensor:
        return sg.sample(score, sde, (len(seeds), 2), solver=solver, steps=5, seed=seeds, dtype=F64).x

    alone = torch.cat([draw([s]) for s in seeds])
    permuted = [seeds[i] for i in order]
    together = torch.cat([draw(permuted[:cut]), draw(permuted[cut:])])
    torch.testing.assert_close(together, alone[list(order)], rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # of the outlier
@pytest.mark.parametrize("name", RUNS)
def test_an_outlier_changes_no_other_sample(name: str) -> None:
    """A start far out, and one that is not finite, beside others."""
    score, solver = runs(MODES.score(VP))[name]
    x = normal(3, 2)
    options: dict[str, Any] = {"solver": solver, "steps": 5, "seed": [1, 2, 3]}
    plain = sg.sample(score, VP, x_T=x, **options).x
    far = sg.sample(score, VP, x_T=torch.cat([x[:2], 1e6 * x[2:]]), **options).x
    torch.testing.assert_close(far[:2], plain[:2], rtol=1e-12, atol=1e-12)
    with pytest.warns(sg.sampling.NonFiniteWarning, match=r"\(2\)"):
        broken = sg.sample(score, VP, x_T=torch.cat([x[:2], math.nan * x[2:]]), **options).x
    torch.testing.assert_close(broken[:2], plain[:2], rtol=1e-12, atol=1e-12)


def test_networks_without_gradient() -> None:
    """An error that says which methods need none."""
    blind = sg.from_denoiser(lambda x, t: 0.5 * x.detach(), VP)
    for score, solver in (
        (inverse.MMPS(blind, seen(0.3)), sg.DDIM()),
        (inverse.PiGDM(blind, seen(0.3)), sg.DDIM()),
        (blind, inverse.DPS(sg.DDIM(), seen())),
    ):
        with pytest.raises(ValueError, match="DiffPIR"):
            sg.sample(score, VP, (2, 2), solver=solver, steps=3, seed=0)
    assert sg.sample(inverse.DiffPIR(blind, seen(0.3)), VP, (2, 2), nfe=5, seed=0).status


@pytest.mark.parametrize("name", SCORES)
def test_precision_arguments_and_branches(name: str) -> None:
    """Half-precision networks and states, keyword arguments, other networks, guided bases."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.bfloat16))

        def forward(self, x: Tensor, t: Tensor, shift: float = 0.0) -> Tensor:
            assert x.dtype == torch.bfloat16
            return self.scale * x + shift

    base = sg.from_denoiser(Net(), VP)
    score = SCORES[name](base, seen(0.3))
    assert score.parameter is base.parameter and score.dtype == torch.bfloat16
    assert score.cast_to(torch.float32).dtype == torch.float32
    shifted = sg.sample(score, VP, (2, 2), nfe=4, seed=0, model_kwargs={"shift": 1.0}).x
    assert not torch.equal(shifted, sg.sample(score, VP, (2, 2), nfe=4, seed=0).x)
    plain = SCORES[name](sg.from_denoiser(lambda x, t: x, VP), seen(0.3))
    other = plain.map_net(lambda net: lambda x, t: 0 * x)
    assert float(other.denoised(torch.ones(1, 2), 0.5).detach()[0, 1]) == 0
    assert sg.sample(plain, VP, (2, 2), nfe=4, seed=0, dtype=torch.bfloat16).x.dtype == torch.bfloat16
    base.branches = 2
    assert sg.sample(SCORES[name](base, seen(0.3)), VP, (3, 2), nfe=4, seed=0).network_evals == 24
    assert name[:4] in repr(score).lower() and "Mask" in repr(score)


# --- replacement -----------------------------------------------------------------------------------------------------

APART = sg.oracles.Gaussian(torch.tensor([0.3, -0.7], dtype=F64), torch.diag(torch.tensor([1.0, 0.5], dtype=F64)))


@pytest.mark.parametrize("final", ["mean", "none", "denoise"])
@pytest.mark.parametrize("name", ["ancestral", "heun", "reverse-diffusion", "sde-dpm++2s"])
def test_replacement_leaves_the_independent_alone(name: str, final: str) -> None:
    """The unknown coordinate is the unguided sampler's, noise-free last step included; the known one is y."""
    solver = sg.solvers().fixed.get(name, sg.schemes.SEEDS(2))
    options: dict[str, Any] = {"steps": 6, "seed": 0, "final": final, "dtype": F64}
    free = sg.sample(APART.score(VP), VP, (4, 2), solver=solver, **options).x
    res = sg.sample(APART.score(VP), VP, (4, 2), solver=inverse.Replacement(solver, seen()), **options)
    torch.testing.assert_close(res.x[:, 1], free[:, 1], rtol=1e-12, atol=1e-12)
    if final == "mean":
        assert torch.equal(res.x[:, 0], torch.ones(4, dtype=F64))
    else:
        assert float((res.x[:, 0] - 1).abs().max()) < 6 * float(VP.sigma(VP.eps))
    assert res.nfe == solver.nfe(6) + (final == "denoise")


def test_colours_are_decoupled() -> None:
    """Independent channels of one variance: the mean of the channels is y, what is orthogonal to it the sampler's."""
    grey = inverse.ChannelMix.grey(3)
    data = sg.oracles.Gaussian(torch.zeros(3, 2, dtype=F64), 0.5)
    y = torch.tensor([[0.4, -0.2]], dtype=F64)
    options: dict[str, Any] = {"steps": 6, "seed": 0, "final": "mean", "dtype": F64}
    free = sg.sample(data.score(VP), VP, (4, 3, 2), solver="ancestral", **options).x
    solver = inverse.Replacement(sg.Ancestral(), inverse.Measurement(grey, y))
    x = sg.sample(data.score(VP), VP, (4, 3, 2), solver=solver, **options).x
    torch.testing.assert_close(x.mean(1, keepdim=True), y.expand(4, 1, 2))
    torch.testing.assert_close(x - x.mean(1, keepdim=True), free - free.mean(1, keepdim=True))


class Listed:
    """Noise from a list."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = iter(draws)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: object = None) -> Tensor:
        """The next."""
        return next(self.draws)


def test_inpainting_as_published() -> None:
    """Song et al.'s loop written out: predictor, then the known part at the new noise level."""
    sde, grid = sg.VESDE(sigma_max=5.0), sg.Grid([1.0, 0.6, 0.3, 0.1])
    score = MODES.score(sde)
    z, known = [normal(2, 2, seed=i) for i in range(3)], [normal(2, 2, seed=10 + i) for i in range(4)]
    solver = inverse.Replacement(sg.ReverseDiffusion(), seen())
    model = bind(score, sde, grid.times)
    hooks = solver.hooks(sde, grid, model, Listed(*known), mean=True)
    x_T = 5 * normal(2, 2, seed=20)
    got = execute(solver.end_in_mean(solver.compile(sde, grid)), x_T, model, Listed(*z), hooks=hooks).x

    def put_in(x: Tensor, i: int, std: float) -> Tensor:
        return torch.stack([1.0 + std * known[i][:, 0], x[:, 1]], 1)

    x = put_in(x_T, 0, float(sde.sigma(1.0)))
    for i in range(3):
        s, t = float(sde.sigma(grid.times[i])), float(sde.sigma(grid.times[i + 1]))
        mean = x + (s**2 - t**2) * score(x, torch.full((2,), grid.times[i], dtype=F64))
        x = mean + math.sqrt(s**2 - t**2) * z[i]
        x, mean = put_in(x, i + 1, t), put_in(mean, i + 1, 0.0)
    torch.testing.assert_close(got, mean)


def test_fixed_noise_is_one_path() -> None:
    """The known part is alpha y + sigma z with one z, so that a multistep solver goes."""
    solver = inverse.Replacement(sg.DPMSolverPP(3), seen(), "fixed")
    res = sg.sample(
        TILTED.score(VP),
        VP,
        (3, 2),
        solver=solver,
        steps=8,
        seed=0,
        record=sg.Record(trajectory="all"),
        final="none",
        dtype=F64,
    )
    assert res.trajectory is not None
    alpha, sigma = (f(torch.tensor(res.times, dtype=F64))[:, None] for f in (VP.alpha, VP.sigma))
    z = (res.trajectory[..., 0] - alpha) / sigma
    torch.testing.assert_close(z, z[:1].expand_as(z))
    assert len(z[0].unique()) == 3


def test_replacement_composes() -> None:
    """Around a predictor-corrector, and inside of one, with the calls of both."""
    langevin = sg.Langevin(0.1)
    outside = inverse.Replacement(sg.PredictorCorrector(sg.ReverseDiffusion(), langevin), seen())
    between = sg.PredictorCorrector(inverse.Replacement(sg.ReverseDiffusion(), seen()), langevin)
    for solver in (outside, between, inverse.Replacement(between, seen())):
        res = sg.sample(APART.score(VP), VP, (2, 2), solver=solver, nfe=21, seed=0)
        assert (res.nfe, bool(res.status)) == (21, True)
    last = sg.sample(APART.score(VP), VP, (2, 2), solver=outside, steps=5, seed=0, final="mean", dtype=F64).x
    assert last[:, 0].tolist() == [1.0, 1.0]
    mixed = inverse.Replacement(sg.DPMSolver(3), seen())  # makes up for the odd call by a step of lower order
    assert sg.sample(APART.score(VP), VP, (2, 2), solver=mixed, nfe=12, seed=0).nfe == 12


# --- RePaint ---------------------------------------------------------------------------------------------------------


def published_schedule(t_T: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """Times of RePaint, t_T first, as in the algorithm's published listing."""
    jumps = dict.fromkeys(range(0, t_T - jump_length, jump_length), jump_n_sample - 1)
    t, times = t_T, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [t_T, *times]


@pytest.mark.parametrize(("steps", "jump", "resamples"), [(12, 3, 3), (7, 2, 2), (5, 1, 4), (4, 5, 3)])
def test_repaint_visits_the_published_times(steps: int, jump: int, resamples: int) -> None:
    """Network calls are at the times from which the published schedule steps down, and budgets are kept."""
    times = [0.1 + 0.9 * i / steps for i in range(steps, -1, -1)]
    net = Recorder(lambda x, t: 0.5 * x)
    solver = inverse.RePaint(sg.Ancestral(), seen(), resamples=resamples, jump=jump)
    res = sg.sample(sg.from_denoiser(net, VP), VP, (2, 2), solver=solver, grid=times, seed=0, final="none", dtype=F64)
    schedule = published_schedule(steps, jump, resamples)
    down = [t for t, after in pairwise(schedule) if after < t]
    assert net.times == pytest.approx([times[steps - t] for t in down])
    assert res.nfe == len(down) == solver.nfe(steps)
    assert solver.steps(solver.nfe(steps)) == steps and solver.steps(solver.nfe(steps) - 1) < steps


def test_repaint_once_is_replacement() -> None:
    """Without resampling nothing is added, at any end."""
    for final in ("mean", "none", "denoise"):
        options: dict[str, Any] = {"steps": 6, "seed": 0, "final": final}
        once = inverse.RePaint(sg.Ancestral(), seen(), resamples=1, jump=2)
        plain = inverse.Replacement(sg.Ancestral(), seen())
        a, b = (sg.sample(MODES.score(VP), VP, (3, 2), solver=s, **options).x for s in (once, plain))
        assert torch.equal(a, b)


class Columns:
    """Noise of which each number is 1 in one row and 0 in all others: rows are responses under a linear score."""

    def __init__(self, rows: int) -> None:
        self.rows, self.used = rows, 0

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: object = None) -> Tensor:
        """The next draw."""
        z = torch.zeros(shape, dtype=dtype)
        for c in range(shape[1]):
            z[min(self.used, self.rows - 1), c] = 1.0 if self.used < self.rows else 0.0
            self.used += 1
        return z


def exact_law(solver: sg.Solver, data: sg.oracles.Gaussian, steps: int, rows: int = 4000) -> tuple[Tensor, Tensor]:
    """Mean and covariance (without Monte Carlo) of the last state of a sampler on two-dimensional Gaussian data."""
    grid = sg.grids.LogSNR()(VP, steps, t_end=0.02)
    model, noise = bind(data.score(VP), VP, grid.times), Columns(rows)
    x = torch.zeros(rows + 3, 2, dtype=F64)  # one row a number drawn, two for the start, one for the mean
    x[rows : rows + 2] = VP.prior_std * torch.eye(2, dtype=F64)
    with torch.no_grad():
        out = execute(
            solver.compile(VP, grid), x, model, noise, hooks=solver.hooks(VP, grid, model, noise, mean=False)
        ).x  # fmt: skip
    assert noise.used <= rows
    responses = out[:-1] - out[-1]
    return out[-1], responses.T @ responses


def test_resampling_takes_the_bias_of_replacement_away() -> None:
    """Laws on correlated data without Monte Carlo: replacement is off, RePaint by much less."""
    exact = inverse.posterior(TILTED, seen())
    alpha, sigma = float(VP.alpha(0.02)), float(VP.sigma(0.02))
    expected = float(alpha * exact.mean[1]), float(alpha**2 * exact.covariance[1, 1] + sigma**2)

    def off(solver: sg.Solver) -> tuple[float, float]:
        mean, cov = exact_law(solver, TILTED, 20)
        return abs(float(mean[1]) - expected[0]), abs(float(cov[1, 1]) - expected[1])

    # Heun, whose own error is small beside the method's
    replaced = off(inverse.Replacement(sg.Heun(), seen()))
    some, many = (off(inverse.RePaint(sg.Heun(), seen(), resamples=n, jump=1)) for n in (3, 8))
    assert min(replaced) > 0.1
    for bias, less, least in zip(replaced, some, many, strict=True):
        assert bias / 1.5 > less and bias / 3 > least


# --- DPS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [sg.Ancestral(), sg.DDIM(0.5), sg.EulerMaruyama()])
def test_dps_as_published(solver: sg.Solver) -> None:
    """The published loop written out: the sampler's step, then down the gradient of the norm at the state before."""
    grid, m, score = sg.Grid([1.0, 0.7, 0.4, 0.1]), seen(), MODES.score(VP)
    z, x_T = [normal(2, 2, seed=i) for i in range(3)], normal(2, 2, seed=20)
    guided = inverse.DPS(solver, m, zeta=0.3)
    model = bind(score, VP, grid.times)
    hooks = guided.hooks(VP, grid, model, Listed(), mean=False)
    with torch.no_grad():
        got = execute(guided.compile(VP, grid), x_T, model, Listed(*z), hooks=hooks).x
    x = x_T
    for i in range(3):
        before = x.clone().requires_grad_()
        D = score.denoised(before, torch.full((2,), grid.times[i], dtype=F64))
        (slope,) = torch.autograd.grad((1 - D[:, 0]).abs().sum(), before)  # the norm of one number
        step = sg.Grid(grid.times[i : i + 2])
        with torch.no_grad():
            moved = execute(solver.compile(VP, step), x, bind(score, VP, step.times), Listed(z[i])).x
        x = moved - 0.3 * slope
    torch.testing.assert_close(got, x)


def test_dps_at_a_misfit_of_zero() -> None:
    """No gradient, and no NaN."""
    exact = sg.from_denoiser(lambda x, t: torch.cat([torch.ones_like(x[:, :1]), x[:, 1:]], 1), VP)
    res = sg.sample(exact, VP, (2, 2), solver=inverse.DPS(sg.DDIM(), seen()), steps=5, seed=0)
    assert torch.equal(res.x, sg.sample(exact, VP, (2, 2), solver="ddim", steps=5, seed=0).x)


# --- beside another library ------------------------------------------------------------------------------------------


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
