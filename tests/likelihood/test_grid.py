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
    LikelihoodWarning,
    Stretched,
)
from sgm_sde.likelihood.multistep import quadrature, tables
from sgm_sde.likelihood.nodes import first_grid
from tests.conventions import some_slow
from tests.helpers import F64, LINEAR, MIXTURE
from tests.likelihood.cases import PROCESSES, RIDGE, exact, points


def rules_and_slopes(steps: int, to_noise: bool, data_std: float, process: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """Rules of a grid, and the slopes of theta at the nodes of quadratures between its nodes, with their weights."""
    sde = LINEAR[process]
    curve = Stretched(data_std=data_std).curve(sde, sde.T, sde.likelihood_eps)

    def theta(u: np.ndarray) -> np.ndarray:
        lam, _ = curve(1 - u / steps if to_noise else u / steps)
        return np.arctan(np.exp(-lam) / data_std)

    x, w = np.polynomial.legendre.leggauss(40)
    u = np.arange(steps)[:, None] + (x + 1) / 2
    h = 1e-5
    slopes = (theta(u + h) - theta(u - h)) / (2 * h)
    return tables(curve, data_std, steps, to_noise), u, w / 2 * slopes


@given(
    steps=st.integers(6, 40),
    to_noise=st.booleans(),
    data_std=st.floats(0.1, 2),
    process=st.sampled_from(PROCESSES),
    power=st.integers(0, 5),
)
@settings(max_examples=90)
def test_the_tables_integrate_polynomials(
    steps: int, to_noise: bool, data_std: float, process: str, power: int
) -> None:
    """In the number of the node, over theta: the method the fourth power, and the fifth where all slopes are known."""
    table, u, slopes = rules_and_slopes(steps, to_noise, data_std, process)
    k = np.arange(steps + 1)
    pieces = (slopes * (u / steps) ** power).sum(1)
    scale, values = np.abs(pieces).sum(), (k / steps) ** power
    assert table.weights @ values == pytest.approx(pieces.sum(), abs=1e-7 * scale)
    found = [sum(c * values[j] for j, c in row) for row in table.integrals]
    np.testing.assert_allclose(found, pieces, atol=1e-7 * scale)
    if power < 5:
        whole = (table.steps.sum(0) + table.correction) @ values
        assert whole == pytest.approx(pieces.sum(), abs=1e-7 * scale)
    if power == 0:  # a constant slope is integrated exactly from the first step on
        np.testing.assert_allclose(table.steps[1:] @ np.ones(steps + 1), pieces, atol=1e-7 * scale)


@given(
    steps=st.integers(6, 30),
    degree=st.integers(0, 5),
    of_jumps=st.integers(1, 5),
    stretch=st.floats(0.0, 0.4),
)
@settings(max_examples=30)
def test_shares_of_jumps_integrate_polynomials(steps: int, degree: int, of_jumps: int, stretch: float) -> None:
    """Of what has known values at the nodes, along what has jumped so far: exactly up to the fifth power of each."""
    at = np.arange(steps + 1) / steps
    at = at + stretch * at * (1 - at)
    table = quadrature(at, np.ones_like)
    jumps = np.diff(at**of_jumps)
    moved = np.array([sum(w * jumps[i] for i, w in row) for row in table.shares])
    power = degree + of_jumps
    assert moved @ at**degree == pytest.approx(of_jumps / power, rel=1e-9)
    if max(degree, of_jumps) < 4:
        coarse = np.array([sum(w * jumps[i] for i, w in row) for row in table.coarse_shares])
        assert coarse @ at**degree == pytest.approx(of_jumps / power, rel=1e-9)


@pytest.mark.parametrize(("process", "steps"), [("vp", 48), ("edm", 48), ("ve", 48), ("sub-vp", 60), ("flow", 68)])
def test_the_first_grid_follows_the_way(process: str, steps: int) -> None:
    """In log-SNR: its steps where data take shape are no longer on processes that go further, nor fewer than 48."""
    sde = LINEAR[process]
    assert first_grid(sde, sde.likelihood_eps, 0.5) == steps
    assert longest_of(sde, steps) < 0.19


def longest_of(sde: sg.LinearSDE, steps: int) -> float:
    """The longest step of lambda within a third of where steps are shortest."""
    lam = np.array([node.lam for node in sde.nodes(Stretched()(sde, steps, t_end=sde.likelihood_eps).times)])
    return float(np.diff(lam)[np.abs(lam[1:] - np.log(6)) < 1 / 3].max())


def test_the_first_grid_has_an_end() -> None:
    """However far a process goes: what is next to pure noise and next to none takes one interval each."""
    sde = sg.VESDE(sigma_min=1e-60, sigma_max=1e60)
    assert first_grid(sde, sde.likelihood_eps, 0.5) == 74
    assert longest_of(sde, 74) < 0.19


LONG = {
    "long": sg.VPSDE(T=10.0),
    "longer": sg.VPSDE(T=40.0),
    "beta": sg.VPSDE(beta_max=1000.0),
    "cosine": sg.CosineVPSDE(T=0.99999),
    "edm": sg.EDMSDE(sigma_max=1e5),
}
BEYOND = {  # that go on far to the data, or both ways
    "flow": sg.RectifiedFlowSDE(T=0.99999),
    "sub-vp": sg.SubVPSDE(),
    "both": sg.VESDE(sigma_min=1e-60, sigma_max=1e60),
}


@pytest.mark.parametrize("process", list(LONG))
def test_pure_noise_leaves_the_standard_error_finite(process: str) -> None:
    """And true."""
    sde = LONG[process]
    x = MIXTURE.sample(12, sde, sde.likelihood_eps, seed=0, dtype=F64)
    known = MIXTURE.log_prob(x, sde, sde.likelihood_eps)
    marginal: dict[str, Any] = {"prior": lambda z: MIXTURE.log_prob(z, sde, sde.T)}

    res = sg.log_prob(MIXTURE.score(sde), sde, x, method=FixedGrid(48), trace="hutchinson", seed=0, **marginal)
    low, high = res.interval(0.9999)
    assert bool(res.stderr.isfinite().all()) and float(res.stderr.max()) < 2
    assert bool(((low <= known) & (known <= high)).all())


@pytest.mark.parametrize("process", list(LONG))
@pytest.mark.parametrize("steps, largest", [(16, 0.5), (48, 2e-3)])
def test_pure_noise_takes_no_steps(process: str, steps: int, largest: float) -> None:
    """However long a process is noise alone, a grid is as good as without that, and few steps state their error."""
    sde = LONG[process]
    x = MIXTURE.sample(12, sde, sde.likelihood_eps, seed=0, dtype=F64)
    known = MIXTURE.log_prob(x, sde, sde.likelihood_eps)
    marginal: dict[str, Any] = {"prior": lambda z: MIXTURE.log_prob(z, sde, sde.T)}
    d = x[0].numel()

    res = sg.log_prob(MIXTURE.score(sde), sde, x, method=FixedGrid(steps), trace="exact", **marginal)
    off = (res.value - known).abs() / d
    assert float(off.max()) < largest
    assert int((off > res.error / d + 1e-6).sum()) <= 1


@pytest.mark.parametrize("sde", LONG.values(), ids=LONG)
def test_grids_end_at_the_process_own_ends(sde: sg.LinearSDE) -> None:
    """On processes that are mostly noise too, one interval of which they leave to that."""
    times = Stretched()(sde, 16, t_end=sde.likelihood_eps).times
    assert (times[0], times[-1]) == (sde.T, sde.likelihood_eps)
    assert all(before > after for before, after in itertools.pairwise(times))
    assert float(sde.log_snr(times[1])) / 2 > -12


@pytest.mark.parametrize("process", [*LONG, *BEYOND])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.3, 0.9])
@pytest.mark.parametrize("data_std", [0.1, 0.5, 2.0])
def test_curves_end_at_the_process_own_ends(process: str, eps: float, data_std: float) -> None:
    """As the grid does, whose nodes and whose tables are then of one curve."""
    sde = (LONG | BEYOND)[process]
    lam, _ = Stretched(data_std=data_std).curve(sde, sde.T, eps)(np.array([0.0, 1.0]))
    first, last = (float(sde.log_snr(t)) / 2 for t in (sde.T, eps))
    assert lam[1] == pytest.approx(last, rel=1e-12, abs=1e-12)
    assert np.exp(lam[0]) == pytest.approx(np.exp(first), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("process", list(BEYOND))
def test_curves_rise_at_the_slope_that_they_say(process: str) -> None:
    """Bent at both ends, at every place."""
    sde = BEYOND[process]
    curve = Stretched().curve(sde, sde.T, sde.likelihood_eps)
    u = np.linspace(0.02, 0.98, 49)
    h = 1e-6
    before, after = (curve(place)[0] for place in (u - h, u + h))
    _, slope = curve(u)
    np.testing.assert_allclose(slope, (after - before) / (2 * h), rtol=1e-6)
    assert bool((slope > 0).all())


@pytest.mark.parametrize("std", [1e-3, 3e-4])
@pytest.mark.parametrize("process", ["flow", "sub-vp"])
def test_small_scales_beside_large_ones(process: str, std: float) -> None:
    """Far below the noise at which data take shape they are seen, and what steps leave there is refined."""
    sde = LINEAR[process]
    scales = torch.tensor([1.0, std], dtype=F64)
    oracle = sg.oracles.Gaussian(torch.zeros(2, dtype=F64), torch.diag(scales**2))
    x = oracle.sample(24, sde, sde.likelihood_eps, seed=0, dtype=F64)
    known = exact(oracle, process, x)

    res = sg.log_prob(oracle.score(sde), sde, x, prior=lambda z: oracle.log_prob(z, sde, sde.T))
    off = (res.value - known).abs() / 2
    assert float(off.quantile(0.95)) < 1e-4
    assert int((off > res.error / 2 + 1e-6).sum()) <= 1


@pytest.mark.parametrize("mean", [0.0, 5.0])
@pytest.mark.parametrize("eps", [0.3, 0.7, 1.0])
def test_large_eps_on_long_processes(eps: float, mean: float) -> None:
    """The closed form within the stated error, although the flow begins close to pure noise."""
    sde = sg.VPSDE(T=2.0)
    means = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.3, 0.0]], dtype=F64) + mean
    mixture = sg.oracles.GaussianMixture(means, 0.3)
    x = mixture.sample(16, sde, eps, seed=0, dtype=F64)
    res = sg.log_prob(mixture.score(sde), sde, x, eps=eps, prior=lambda z: mixture.log_prob(z, sde, sde.T))
    off = (res.value - mixture.log_prob(x, sde, eps)).abs()
    assert bool((off <= res.error + 1e-9).all())
    assert float(off.max()) < 1e-4


@pytest.mark.parametrize("process", ["beta", *some_slow(["long"])])
@pytest.mark.parametrize("method", ["exponential", "adaptive"])
def test_long_processes_by_steps_of_each_sample_s_own(process: str, method: str) -> None:
    """The adaptive solver goes no further than something varies: log-SNR may be minus infinity at T."""
    sde = LONG[process]
    assert sde.nodes([sde.T])[0].lam == -np.inf
    x = RIDGE.sample(64, sde, sde.likelihood_eps, seed=0, dtype=F64)
    x[:4, 0] = torch.tensor([0.05, -0.1, 0.15, 0.3], dtype=F64)
    known = RIDGE.log_prob(x, sde, sde.likelihood_eps)
    marginal: dict[str, Any] = {"prior": lambda z: RIDGE.log_prob(z, sde, sde.T)}

    res = sg.log_prob(RIDGE.score(sde), sde, x, method=method, **marginal)
    off = (res.value - known).abs()
    assert bool((off <= res.error + 2e-6).all())
    assert float(off.max()) < 1e-3 and res.unresolved == ()
    if method == "exponential":  # samples on the ridge are handed over
        assert float(off.max()) < 2e-4
        assert res.nfe > 49 + 97 + 193


@pytest.mark.parametrize("process", ["long", "beta"])
def test_codes_of_long_processes(process: str) -> None:
    """There and back by steps of each sample's own, with the grid's codes between, and the adjoint's density."""
    sde = LONG[process]
    score = MIXTURE.score(sde)
    x = MIXTURE.sample(8, sde, sde.likelihood_eps, seed=0, dtype=F64)
    code = sg.encode(score, sde, x, method="adaptive")
    back = sg.decode(score, sde, code.x, method="adaptive")
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-5)
    on_grid = sg.encode(score, sde, x, method=FixedGrid(192))
    torch.testing.assert_close(code.x, on_grid.x, rtol=0, atol=1e-4)

    res = sg.log_prob(score, sde, x, method="dopri5-adjoint", prior=lambda z: MIXTURE.log_prob(z, sde, sde.T))
    torch.testing.assert_close(res.value, MIXTURE.log_prob(x, sde, sde.likelihood_eps), rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["adaptive", "dopri5-adjoint"])
def test_flows_that_begin_in_pure_noise(method: str) -> None:
    """Where nothing is left to vary the density is the prior's."""
    sde = LONG["beta"]
    x = MIXTURE.sample(4, sde, 0.3, seed=0, dtype=F64)
    res = sg.log_prob(MIXTURE.score(sde), sde, x, eps=0.3, method=method)
    torch.testing.assert_close(res.value, MIXTURE.log_prob(x, sde, 0.3), rtol=0, atol=1e-6)


def test_samples_that_cannot_be_finished_are_named() -> None:
    """They keep the grid's value and its error, with a warning; others are as without them."""
    sde = LINEAR["vp"]
    score = RIDGE.score(sde)
    grids = [Stretched()(sde, steps, t_end=sde.likelihood_eps).times for steps in (48, 96, 192)]
    on_grids = torch.tensor([t for times in grids for t in times], dtype=F64)

    def off_grids(x: Tensor, t: Tensor) -> Tensor:
        """Of which samples, below the axis, the times are between nodes."""
        between = (t.double()[:, None] - on_grids).abs().min(1).values > 1e-12
        return between & (x[:, 1] < 0)

    def net(x: Tensor, t: Tensor) -> Tensor:
        out = score.denoised(x, t)
        return torch.where(off_grids(x, t)[:, None], torch.nan, out)

    x = torch.tensor([[0.05, 0.02], [0.05, -0.02], [0.03, 0.01]], dtype=F64)
    options: dict[str, Any] = {"trace": "exact", "prior": lambda z: RIDGE.log_prob(z, sde, sde.T)}
    with pytest.warns(LikelihoodWarning, match=r"of 1 of 3 samples .* sample 1 is"):
        res = sg.log_prob(sg.from_denoiser(net, sde), sde, x, **options)
    assert res.unresolved == (1,)

    coarse = sg.log_prob(score, sde, x, method=FixedGrid(48), **options)
    torch.testing.assert_close(res.value[1], coarse.value[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(res.error[1], coarse.error[1], rtol=1e-6, atol=1e-9)
    off = (res.value - exact(RIDGE, "vp", x)).abs()
    assert bool((off[[0, 2]] <= res.error[[0, 2]]).all()) and float(res.error[[0, 2]].max()) < 2e-4

    def raising(x: Tensor, t: Tensor) -> Tensor:
        if bool(off_grids(x, t).any()):
            raise RuntimeError("out of order")
        return score.denoised(x, t)

    with pytest.raises(RuntimeError, match="out of order"):
        sg.log_prob(sg.from_denoiser(raising, sde), sde, x, **options)


@pytest.mark.parametrize("steps, said", [(8, True), (16, False)])
def test_too_few_steps_say_so(steps: int, said: bool) -> None:
    """In the protocol: of steps longer than what data take to take shape the error is not known."""
    x = points(MIXTURE, "vp")
    words = "too few for their error to be known"

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
    assert "48 fixed steps, up to 384 or an adaptive method where the error exceeds 0.0001 nats/dim" in str(
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


def test_a_flow_to_pure_noise_says_which_process_to_take() -> None:
    """At T = 1 of rectified flow no signal is left, and log-SNR is not finite."""
    sde = sg.RectifiedFlowSDE(T=1.0)
    score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
    with pytest.raises(ValueError, match=r"log-SNR is -inf at t=1.0 .*take a process .*RectifiedFlowSDE\(T=0.999\)"):
        sg.log_prob(score, sde, torch.zeros(2, 1))
