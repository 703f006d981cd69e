"""Discrete tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator
from torch.overrides import TorchFunctionMode

import sgm_sde as sg
from sgm_sde.processes.discrete import _Interpolant
from tests.by_hand import LOG2, column
from tests.conventions import case_id
from tests.helpers import F64


def values_and_slopes(values: Sequence[float] | np.ndarray, n: int = 97) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The interpolant of the values at the times 0, 1/N, ..., 1, its slopes in the table's units, and where."""
    interpolant, t = _Interpolant(np.array(values)), torch.linspace(0, 1, n, dtype=F64)
    steps = len(values) - 1
    return interpolant(t).numpy(), interpolant.slope(t).numpy() / steps, t.numpy() * steps


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_smooth_tables_get_a_cubic_spline(scale: float) -> None:
    """u^3 + u is reproduced, and so is its slope 3 u^2 + 1; other smooth tables get SciPy's spline."""
    value, slope, u = values_and_slopes([scale * (u**3 + u) for u in range(6)])
    np.testing.assert_allclose(value, scale * (u**3 + u), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope, scale * (3 * u**2 + 1), rtol=1e-11)
    table = scale * np.exp(np.arange(6) / 2)
    value, slope, u = values_and_slopes(table)
    np.testing.assert_allclose(value, CubicSpline(np.arange(6.0), table)(u), rtol=1e-12)
    np.testing.assert_allclose(slope, CubicSpline(np.arange(6.0), table).derivative()(u), rtol=1e-11)


ROUGH = [
    [0.0, 1.0, 2.0, 2.001, 3.001, 4.001, 5.001],  # splines through these fall between two knots, and only there
    [0.0, 5.0, 5.001, 10.001, 15.001, 16.001, 21.001],
    [0.0, 0.001, 5.001, 6.001, 7.001, 12.001],
    [0.0, 1.0, 1.01, 4.0, 4.5, 9.0, 9.01],
]


@pytest.mark.parametrize("table", ROUGH)
def test_rough_tables_get_pchip(table: list[float]) -> None:
    """Where the spline would not rise everywhere the interpolant is PCHIP, which does."""
    value, slope, u = values_and_slopes(table)
    pchip = PchipInterpolator(np.arange(float(len(table))), table)
    np.testing.assert_allclose(value, pchip(u), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(slope, pchip.derivative()(u), rtol=1e-11, atol=1e-13)
    assert bool((np.diff(value) > 0).all())


def test_a_slope_of_zero_is_not_monotone_enough() -> None:
    """A spline that stops rising, if only at a point, would have a rate of 0 there: PCHIP again."""
    table, u = np.array([0.0, 7.0, 8.0, 9.0]), np.arange(4.0)
    if CubicSpline(u, table).derivative()(u).min() != 0:
        pytest.skip("this SciPy's rounding leaves a slope")
    assert values_and_slopes(table.tolist())[1].min() > 0.5


def falls_between_knots(table: np.ndarray) -> bool:
    """True if the spline through the table rises at its knots and falls somewhere between them."""
    slope = CubicSpline(np.arange(len(table)), table).derivative()
    return bool((slope(np.arange(len(table))) > 0).all() and slope(np.linspace(0, len(table) - 1, 999)).min() < -1e-3)


def test_splines_that_fall_between_knots_are_found() -> None:
    """In whatever interval that happens."""
    rng = np.random.default_rng(0)
    tables = [np.concatenate([[0], np.cumsum(rng.choice([1e-3, 1, 5], size=6))]) for _ in range(400)]
    tables += [np.concatenate([[0], np.cumsum(rng.exponential(size=4))]) for _ in range(400)]
    rough = [table for table in tables if falls_between_knots(table)]
    assert len(rough) > 20
    for table in rough:
        value, _, u = values_and_slopes(table.tolist())
        np.testing.assert_allclose(value, PchipInterpolator(np.arange(len(table)), table)(u), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("table", [*ROUGH, [0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 10.0, 30.0, 68.0]])
def test_tables_are_inverted(table: list[float]) -> None:
    """Value to time and back, at the knots exactly; NaN beyond the ends, in a batch of all sorts."""
    interpolant = _Interpolant(np.array(table))
    knots = torch.linspace(0, 1, len(table), dtype=F64)
    inverse = interpolant.inverse(torch.tensor(table, dtype=F64))[:-1]
    assert inverse.tolist() == pytest.approx(knots[:-1].tolist(), abs=1e-15)
    t = torch.linspace(0, 1, 501, dtype=F64)
    value = interpolant(t[:-1])
    back = interpolant(interpolant.inverse(value))
    torch.testing.assert_close(back, value, rtol=1e-14, atol=1e-14)
    steep = interpolant.slope(t[:-1]) > 1e-2
    torch.testing.assert_close(interpolant.inverse(value)[steep], t[:-1][steep], rtol=1e-10, atol=1e-10)
    last = interpolant.table[:, -1].sum()
    assert interpolant.inverse(torch.stack([last, last + 1e-9])).isnan().tolist() == [False, True]
    assert float(interpolant.inverse(last)) == pytest.approx(1.0, abs=1e-15)
    beyond = interpolant.inverse(column(table[0] - 1e-9, 0.5, table[-1] + 1e-9)).isnan()
    assert beyond.tolist() == [True, False, True]
    single = interpolant.inverse(value.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(interpolant(single.double()), value, rtol=1e-5, atol=1e-5)


class Operations(TorchFunctionMode):
    """Counts calls of torch's functions."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call: Callable[[], object]) -> int:
    """How many functions of torch a call takes."""
    with Operations() as mode:
        call()
    return mode.count


def test_inversion_is_quick() -> None:
    """A straight table is inverted by its first guess, a smooth one in a few of Newton's steps, 64 at most."""
    straight, bent = _Interpolant(np.arange(4.0)), _Interpolant(np.array([0.0, 1.1, 2.1, 3.0]))
    value = column(0.25, 1.5, 2.75)
    one_step = operations(lambda: straight.inverse(value))
    assert one_step <= 60
    for x in (0.1, 0.3, 0.5, 1.3, 1.7, 2.3, 2.7):
        assert one_step < operations(lambda x=x: bent.inverse(column(x))) < 4 * one_step  # type: ignore[misc]
    several = operations(lambda: bent.inverse(column(1.1, 1.3)))
    assert several == operations(lambda: bent.inverse(column(1.3)))  # until the last of them is done
    worst = operations(lambda: _Interpolant(np.array(ROUGH[-1])).inverse(torch.linspace(0, 9, 99, dtype=F64)))
    assert worst < 40 * one_step


@pytest.mark.parametrize("sde", [sg.presets.ddpm(10), sg.presets.ncsn_cifar10()], ids=case_id)
def test_meta_tensors_have_shapes(sde: Any) -> None:
    """Times on the meta device give shapes, which need no values."""
    assert sde.time(torch.zeros(3, device="meta")).shape == (3,)
    assert sde.transition(torch.zeros(3, device="meta"), torch.zeros(3, device="meta"))[0].shape == (3,)


def test_discrete_processes_between_their_times() -> None:
    """Constant steps of B and of log(sigma) make straight lines of both, below the first level too."""
    vp = sg.DiscreteVPSDE([0.5, 0.5, 0.5, 0.5])  # alpha-bar = 2^-(4 t)
    assert float(vp.integrated_beta(0.3)) == pytest.approx(1.2 * LOG2, rel=1e-12)
    assert float(vp.beta(0.3)) == pytest.approx(4 * LOG2, rel=1e-12)
    assert float(vp.time_of_integrated_beta(column(3 * LOG2))) == pytest.approx(0.75, rel=1e-12)
    assert (vp.T, vp.eps, repr(vp)) == (1.0, 0.25, "DiscreteVPSDE(4 betas from 0.5 to 0.5)")
    ve = sg.DiscreteVESDE([4.0, 2.0, 1.0])
    assert (ve.sigmas, ve.T, ve.eps) == ((1.0, 2.0, 4.0), 1.0, pytest.approx(1 / 3))
    ve = sg.DiscreteVESDE([1.0, 2.0, 4.0, 8.0])  # sigma = 2^(4 t - 1)
    assert float(ve.sigma(0.1)) == pytest.approx(2**-0.6, rel=1e-12)
    assert float(ve.d_sigma(0.1)) == pytest.approx(4 * LOG2 * 2**-0.6, rel=1e-12)
    assert float(ve.log_snr(0.1)) == pytest.approx(1.2 * LOG2, rel=1e-12)
    assert float(ve.time(1.2 * LOG2)) == pytest.approx(0.1, rel=1e-12)
    rough = sg.DiscreteVESDE([1.0, 2.0, 16.0])  # geometric below the smallest level: 1/2 at t = 0
    assert float(rough.sigma(0.0)) == pytest.approx(0.5, rel=1e-12)
    assert repr(ve) == "DiscreteVESDE(4 sigmas from 1 to 8)"


N_ENTRIES = [4, 10, 50, 1000, 4000]


def literature(n: int) -> dict[str, np.ndarray]:
    """Tables of betas for n steps: of DDPM, Stable Diffusion, cosine, sigmoids, with next to no signal at the end."""
    u = np.linspace(0, 1, n)
    linear = np.minimum(np.linspace(1e-4, 0.02, n) * 1000 / n, 0.999)
    a = np.sqrt(np.cumprod(1 - linear))
    rescaled = ((a - a[-1]) * a[0] / (a[0] - a[-1])) ** 2
    sigmoid = 1 / (1 + np.exp(6 * np.linspace(0, 1, n + 1) - 3))
    bars = {"rescaled": rescaled, "jabri": ((sigmoid - sigmoid[-1]) / (sigmoid[0] - sigmoid[-1]))[1:]}
    return {
        "linear": linear,
        "scaled linear": np.minimum(np.linspace(0.00085**0.5, 0.012**0.5, n) ** 2 * 1000 / n, 0.999),
        "cosine": np.array(sg.presets.iddpm_cosine(n).betas),
        "sigmoid": (1e-4 + (0.02 - 1e-4) / (1 + np.exp(6 - 12 * u))) * min(1000 / n, 40),
        "DiffWave": np.linspace(1e-4, 0.05, n),
        **{name: np.minimum(1 - bar / np.append(1, bar[:-1]), 0.9999999) for name, bar in bars.items()},
    }


TABLES = [(name, n) for n in N_ENTRIES for name in literature(n)]


@pytest.mark.parametrize(("name", "n"), TABLES)
def test_betas_of_the_literature_are_taken_and_their_alphas_are_not(name: str, n: int) -> None:
    """Alphas and their products fall, from near 1, and as betas they would leave nothing of the data."""
    betas = literature(n)[name]
    assert sg.DiscreteVPSDE(betas).betas == tuple(betas)
    if betas[0] < 0.1:
        for wrong in (1 - betas, np.cumprod(1 - betas)):
            with pytest.raises(ValueError, match=r"betas\[0\] = .* did you pass alphas or alphas_cumprod"):
                sg.DiscreteVPSDE(wrong)


@pytest.mark.parametrize("name", ["linear", "scaled linear", "sigmoid"])
def test_betas_from_the_last_are_refused(name: str) -> None:
    """Noise that falls with the index; equal betas, and those that fall in part, stay what they are."""
    betas = literature(1000)[name].tolist()
    with pytest.raises(ValueError, match=r"betas rise with the index, from data to noise, got a table from betas\[0\]"):
        sg.DiscreteVPSDE(betas[::-1])
    assert sg.DiscreteVPSDE([betas[-1]] * 50).betas[0] == betas[-1]
    assert sg.DiscreteVPSDE([betas[-1], *betas]).betas[0] == betas[-1]


def test_betas_from_the_last_that_leave_no_signal_at_first_are_refused() -> None:
    """The cosine's, whose last is nearly 1: they may be alphas as well."""
    with pytest.raises(
        ValueError, match=r"betas are small at first.* did you pass alphas .*from the last, betas\[::-1\]"
    ):
        sg.DiscreteVPSDE(sg.presets.iddpm_cosine(100).betas[::-1])


def test_a_table_without_signal_is_refused() -> None:
    """alpha(T) = 0.1^(60/2) is a number in single precision, 0.1^(90/2) is none."""
    assert float(sg.DiscreteVPSDE([0.9] * 60).alpha(1.0)) == pytest.approx(1e-30, rel=1e-9)
    with pytest.raises(ValueError, match=r"betas\[89\] = 0.9 leaves no signal: alpha\(T\) = exp\(-103"):
        sg.DiscreteVPSDE([0.9] * 90)
