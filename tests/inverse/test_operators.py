"""Operators. Inverse problems: operators, posterior scores, methods at the nodes, against exact posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde.testing import CheckError
from tests.helpers import F64, LINEAR
from tests.inverse.cases import (
    HALF,
    KERNEL,
    MIX,
    MODES,
    OPERATORS,
    TILTED,
    VP,
    checkerboard,
    dense,
    normal,
    seen,
)


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
def test_operators_under_autocast(name: str) -> None:
    """Their products are those of the state's precision."""
    operator, shape = OPERATORS[name]
    x = normal(4, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        y = operator.apply(x)
        back = operator.adjoint(y)
    assert torch.equal(y, operator.apply(x))
    assert torch.equal(back, operator.adjoint(y))


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


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 1, 4, 6), (5, 1, 4, 6), (3, 1, 6)])
def test_masks_with_sizes_of_one(shape: tuple[int, ...]) -> None:
    """For all channels, all samples, all rows: the mask that has them all."""
    mask = normal(*shape, seed=1) > 0
    x = normal(5, 3, 4, 6)
    whole = inverse.Mask(mask.expand(5, 3, 4, 6))
    brief = inverse.Mask(mask)
    assert torch.equal(brief.apply(x), whole.apply(x))
    assert torch.equal(brief.restrict(x), whole.restrict(x))

    rows = torch.tensor([3, 1])
    assert torch.equal(brief.of_samples(rows, x[rows]).apply(x[rows]), whole.apply(x)[rows])


@pytest.mark.parametrize("shape", [(1, 4, 4), (5, 1, 4, 4)])
def test_runs_with_masks_for_all_channels(shape: tuple[int, ...]) -> None:
    """In parts, what is known is there, and the rest as with the whole mask."""
    mask = normal(*shape, seed=1) > 0
    score = sg.oracles.Gaussian(torch.zeros(3, 4, 4, dtype=F64), 0.5).score(VP)
    y = normal(5, 3, 4, 4, seed=2)
    kwargs = {"nfe": 6, "seed": 0, "final": "mean", "execution": sg.Execution(batch_size=2)}

    def run(mask: Tensor) -> Tensor:
        solver = inverse.Replacement(sg.DDIM(), inverse.Measurement(inverse.Mask(mask), y))
        return sg.sample(score, VP, (5, 3, 4, 4), solver=solver, **kwargs).x

    x = run(mask)
    known = mask.expand(5, 3, 4, 4)
    torch.testing.assert_close(x[known], y[known].to(x.dtype))
    torch.testing.assert_close(x, run(known))


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
    "y that the mask does not fit": (
        lambda: inverse.Measurement(HALF, torch.zeros(5)), ValueError, r"y has shape \(5,\).*the mask's, \(2,\)",
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
    "replacement of no solver": (lambda: inverse.Replacement(3, seen()), TypeError, "a Solver, got 3"),  # type: ignore[arg-type]
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


METHODS = {"MMPS": inverse.MMPS, "PiGDM": inverse.PiGDM, "DiffPIR": inverse.DiffPIR}


@pytest.mark.parametrize(
    "call",
    [
        lambda: inverse.LinearMap(lambda x: torch.fft.fft(x), (4,)),
        lambda: inverse.NonlinearMap(lambda x: torch.fft.fft(x), (4,)).apply(torch.ones(2, 4)),
        lambda: inverse.Measurement.simulate(Spectrum(), torch.ones(2, 4), 0.1),
        lambda: inverse.Measurement(Spectrum(), torch.ones(4), 0.1).residual(torch.ones(2, 4)),
        lambda: inverse.Measurement(HALF, torch.ones(2, dtype=torch.complex64), 0.1),
    ],
    ids=["linear", "nonlinear", "simulated", "compared", "y"],
)
def test_complex_measurements_are_refused_where_they_arise(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"is complex, of torch\.complex.* torch\.view_as_real"):
        call()


class Spectrum(inverse.LinearOperator):
    """An operator of the user's own with complex values."""

    def apply(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y


def test_real_and_imaginary_parts_are_measured() -> None:
    """As real numbers, by the Hermitian product's real part."""
    operator = inverse.LinearMap(lambda x: torch.view_as_real(torch.fft.rfft(x)), (4,))
    assert len(inverse.check_operator(operator, (4,))) == 4


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_one_measurement_with_a_leading_one_is_that_of_all_samples(make: str, batch_size: int | None) -> None:
    x = normal(1, 2)
    one = inverse.Measurement.simulate(HALF, x, 0.3, seed=0)
    assert one.y.shape == (1, 2)
    options = {"nfe": 4, "seed": 0, "execution": sg.Execution(batch_size=batch_size)}
    found, same = (
        sg.sample(METHODS[make](TILTED.score(VP), m), VP, (5, 2), **options).x
        for m in (one, inverse.Measurement(HALF, one.y[0], 0.3))
    )
    assert torch.equal(found, same)


def test_measurements_of_another_number_than_the_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"y has shape \(3, 2\), but x of shape \(5, 2\) is measured as \(5, 2\)"):
        inverse.Measurement(HALF, torch.zeros(3, 2), 0.3).residual(torch.zeros(5, 2))
