"""The fixed grid."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sgm_sde as sg
from sgm_sde.likelihood import (
    FixedGrid,
    Hutchinson,
    Stretched,
)
from sgm_sde.likelihood.multistep import tables
from tests.helpers import F64, LINEAR, MIXTURE
from tests.likelihood.cases import PROCESSES, RIDGE, exact, points


@given(steps=st.integers(6, 40), to_noise=st.booleans(), data_std=st.floats(0.1, 2), process=st.sampled_from(PROCESSES))
@settings(max_examples=30)
def test_the_tables_integrate_polynomials(steps: int, to_noise: bool, data_std: float, process: str) -> None:
    """In the number of the node, over theta: the method cubics, and the fifth power where all slopes are known."""
    sde = LINEAR[process]
    curve = Stretched(data_std=data_std).curve(sde, sde.T, sde.likelihood_eps)
    table = tables(curve, data_std, steps, to_noise)
    k = np.arange(steps + 1)

    def theta(u: np.ndarray) -> np.ndarray:
        lam, _ = curve(1 - u / steps if to_noise else u / steps)
        return np.arctan(np.exp(-lam) / data_std)

    x, w = np.polynomial.legendre.leggauss(40)
    u = (k[:-1, None] + (x + 1) / 2).ravel()
    h = 1e-5
    slopes = (theta(u + h) - theta(u - h)) / (2 * h)
    for power in range(6):
        pieces = (w / 2 * (slopes * (u / steps) ** power).reshape(steps, -1)).sum(1)
        scale, values = np.abs(pieces).sum(), (k / steps) ** power
        assert table.weights @ values == pytest.approx(pieces.sum(), abs=1e-7 * scale)
        found = [sum(c * values[j] for j, c in row) for row in table.integrals]
        np.testing.assert_allclose(found, pieces, atol=1e-7 * scale)
        if power < 4:
            whole = (table.steps.sum(0) + table.correction) @ values
            assert whole == pytest.approx(pieces.sum(), abs=1e-7 * scale)
        if power == 0:  # a constant slope is integrated exactly from the first step on
            np.testing.assert_allclose(table.steps[1:] @ np.ones(steps + 1), pieces, atol=1e-7 * scale)


LONG = {
    "long": sg.VPSDE(T=10.0),
    "longer": sg.VPSDE(T=40.0),
    "beta": sg.VPSDE(beta_max=1000.0),
    "cosine": sg.CosineVPSDE(T=0.99999),
    "edm": sg.EDMSDE(sigma_max=1e5),
}


@pytest.mark.parametrize("process", list(LONG))
def test_pure_noise_takes_no_steps(process: str) -> None:
    """However long a process is noise alone, a grid is as good as without that, and few steps state their error."""
    sde = LONG[process]
    x = MIXTURE.sample(12, sde, sde.likelihood_eps, seed=0, dtype=F64)
    known = MIXTURE.log_prob(x, sde, sde.likelihood_eps)
    marginal: dict[str, Any] = {"prior": lambda z: MIXTURE.log_prob(z, sde, sde.T)}
    d = x[0].numel()
    for steps, largest in ((16, 0.5), (48, 2e-3)):
        res = sg.log_prob(MIXTURE.score(sde), sde, x, method=FixedGrid(steps), trace="exact", **marginal)
        off = (res.value - known).abs() / d
        assert float(off.max()) < largest
        assert bool((off <= res.error / d + 1e-6).all())

    res = sg.log_prob(MIXTURE.score(sde), sde, x, method=FixedGrid(48), trace="hutchinson", seed=0, **marginal)
    low, high = res.interval(0.9999)
    assert bool(res.stderr.isfinite().all()) and float(res.stderr.max()) < 2
    assert bool(((low <= known) & (known <= high)).all())


def test_grids_end_at_the_process_own_ends() -> None:
    """On processes that are mostly noise too, one interval of which they leave to that."""
    for sde in LONG.values():
        times = Stretched()(sde, 16, t_end=sde.likelihood_eps).times
        assert (times[0], times[-1]) == (sde.T, sde.likelihood_eps)
        assert all(before > after for before, after in itertools.pairwise(times))
        assert float(sde.log_snr(times[1])) / 2 > -12


def test_too_few_steps_say_so() -> None:
    """In the protocol: of steps longer than what data take to take shape the error is not known."""
    x = points(MIXTURE, "vp")
    words = "too few for their error to be known"
    for steps, said in ((8, True), (16, False)):
        res = sg.log_prob(MIXTURE.score(LINEAR["vp"]), LINEAR["vp"], x, method=FixedGrid(steps))
        assert (words in str(res.protocol)) is said


def test_the_defect_makes_up_for_the_path() -> None:
    """Without it the error is many times larger, for exact scores."""
    sde = LINEAR["vp"]
    x = points(MIXTURE, "vp")
    marginal: dict[str, Any] = {"prior": lambda z: MIXTURE.log_prob(z, sde, sde.T), "trace": "exact"}
    res = sg.log_prob(MIXTURE.score(sde), sde, x, method=FixedGrid(48), **marginal)
    error = res.value - exact(MIXTURE, "vp", x)
    assert 15 * float(error.square().mean()) ** 0.5 < float((error - res.defect).square().mean()) ** 0.5
    adaptive = sg.log_prob(MIXTURE.score(sde), sde, x[:2], method="adaptive", **marginal)
    assert bool(adaptive.defect.isnan().all())


def test_samples_that_a_grid_does_not_resolve_go_on() -> None:
    """Close by a ridge between modes 48 steps are off by nats, and the default is not; others stay as they were."""
    sde = LINEAR["vp"]
    score, x = RIDGE.score(sde), torch.tensor([[1.0, 0.0], [0.15, 0.0], [0.05, 0.0]], dtype=F64)
    marginal: dict[str, Any] = {"prior": lambda z: RIDGE.log_prob(z, sde, sde.T)}
    coarse = sg.log_prob(score, sde, x, trace="exact", method=FixedGrid(48), **marginal)
    res = sg.log_prob(score, sde, x, trace="exact", **marginal)
    error = (coarse.value - exact(RIDGE, "vp", x)).abs()
    assert float(error[1]) > 1 < float(coarse.defect[1])
    assert float((res.value - exact(RIDGE, "vp", x)).abs().max()) < 2e-4
    assert bool((res.error < 2 * 1e-4).all()) and res.unresolved == ()
    loose = sg.log_prob(score, sde, x, trace="exact", method=FixedGrid(atol=1e-3), **marginal)
    torch.testing.assert_close(loose.value[0], coarse.value[0], rtol=0, atol=0)
    assert float((loose.value - exact(RIDGE, "vp", x)).abs().max()) < 4e-3 and loose.nfe < res.nfe
    assert coarse.nfe == 49 and res.nfe > 49 + 97
    assert "48 fixed steps, up to 192 or an adaptive method where the error exceeds 0.0001 nats/dim" in str(
        res.protocol
    )
    assert "up to" not in str(coarse.protocol)


def test_going_on_is_a_sample_s_own_matter() -> None:
    """The same value alone as in a batch, with arguments and probes of its own, and gradients through it."""
    sde = LINEAR["vp"]
    score = RIDGE.score(sde)

    def net(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return score.denoised(x - shift[:, None] * expand_alpha(t), t) + shift[:, None]

    def expand_alpha(t: Tensor) -> Tensor:
        return sde.alpha(t)[:, None]

    x, shift = torch.tensor([[1.1, 0.0], [0.3, 0.1], [0.9, 0.1]], dtype=F64), torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    wrapped, options = sg.from_denoiser(net, sde), {"trace": Hutchinson(2)}
    res = sg.log_prob(wrapped, sde, x, seed=[1, 2, 3], model_kwargs={"shift": shift}, **options)
    assert res.nfe > 49
    for i in range(3):
        rows = slice(i, i + 1)
        alone = sg.log_prob(wrapped, sde, x[rows], seed=[i + 1], model_kwargs={"shift": shift[rows]}, **options)
        torch.testing.assert_close(alone.value, res.value[rows], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(alone.stderr, res.stderr[rows], rtol=1e-9, atol=1e-11)
    # A function may hold what belongs to the samples itself, and is asked about all of them.
    closed = sg.log_prob(sg.from_denoiser(lambda x, t: net(x, t, shift), sde), sde, x, seed=[1, 2, 3], **options)
    torch.testing.assert_close(closed.value, res.value, rtol=1e-11, atol=1e-11)
    assert closed.nfe == res.nfe
    y = torch.tensor([[1.0, 0.0], [0.4, 0.0]], dtype=F64, requires_grad=True)
    marginal: dict[str, Any] = {"prior": lambda z: RIDGE.log_prob(z, sde, sde.T), "trace": "exact"}
    res = sg.log_prob(score, sde, y, enable_grad=True, **marginal)
    assert res.nfe > 49
    (grad,) = torch.autograd.grad(res.value.sum(), y)
    expected = score(y.detach(), torch.tensor(sde.likelihood_eps, dtype=F64))
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)
