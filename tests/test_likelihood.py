"""Likelihoods against closed forms, their standard errors against the truth, and bits/dim against known densities."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.engine.noise import NoiseStream, resolve_seeds
from sgm_sde.likelihood import (
    AdaptiveFlow,
    AdjointFlow,
    Exact,
    FixedGrid,
    Hutchinson,
    LikelihoodWarning,
    ScipyRK45,
    Stretched,
    choose_probe_basis,
)
from sgm_sde.likelihood.decoders import Levels
from sgm_sde.likelihood.dequantisation import _truncated_normal
from sgm_sde.likelihood.multistep import tables
from sgm_sde.likelihood.trace import probe_transform
from tests.helpers import F64, GAUSSIAN, LINEAR, MIXTURE

PROCESSES = [name for name in LINEAR if name != "schedule"]  # which has a marginal at T far from its prior


def points(oracle: sg.oracles.Oracle, process: str, n: int = 32) -> Tensor:
    """Samples of the marginal at the end of the likelihood's flow."""
    sde = LINEAR[process]
    return oracle.sample(n, sde, sde.likelihood_eps, seed=0, dtype=F64)


def exact(oracle: sg.oracles.Oracle, process: str, x: Tensor) -> Tensor:
    """The closed form."""
    return oracle.log_prob(x, LINEAR[process], LINEAR[process].likelihood_eps)


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("process", PROCESSES)
def test_log_density_of_the_marginal(process: str, data: str) -> None:
    """Under the exact marginal as a prior: 1e-4 nats/dim at the defaults, 1e-7 with small steps, in float64."""
    oracle, sde = {"gaussian": GAUSSIAN, "mixture": MIXTURE}[data], LINEAR[process]
    x = points(oracle, process)
    for steps, tolerance in ((48, 1e-4), (400, 1e-7)):
        res = sg.log_prob(
            oracle.score(sde),
            sde,
            x,
            trace="exact",
            method=FixedGrid(steps),
            prior=lambda z: oracle.log_prob(z, sde, sde.T),
        )
        error = (res.value - exact(oracle, process, x)) / x[0].numel()
        assert float(error.square().mean().sqrt()) < tolerance
        assert res.nfe == steps + 1
        assert res.vjps == (steps + 1) * 2
        assert bool((res.stderr == 0).all())


@pytest.mark.parametrize("process", PROCESSES)
def test_log_density_under_the_prior(process: str) -> None:
    """Under N(0, sigma(T)^2) the density of Gaussian data is that of an affine map of the prior, in closed form."""
    sde = LINEAR[process]
    eps, mean, std = sde.likelihood_eps, 0.4, 0.7
    oracle = sg.oracles.Gaussian(torch.full((3,), mean), std**2)
    x = points(oracle, process)
    # The flow multiplies what lies beyond the mean by the ratio of the marginals' spreads.
    spread = [math.hypot(float(sde.alpha(t)) * std, float(sde.sigma(t))) for t in (eps, sde.T)]
    latent = float(sde.alpha(sde.T)) * mean + spread[1] / spread[0] * (x - float(sde.alpha(eps)) * mean)
    expected = sde.prior_log_prob(latent) + 3 * math.log(spread[1] / spread[0])
    res = sg.log_prob(oracle.score(sde), sde, x, trace="exact")
    assert float((res.value - expected).abs().max()) / 3 < 1e-4
    torch.testing.assert_close(res.latent, latent, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(res.prior + res.divergence, res.value)


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
def test_the_density_has_mass_one(process: str) -> None:
    """Summed over a fine grid of points the density in one dimension is 1."""
    sde = LINEAR[process]
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [0.8]], dtype=F64), [0.3, 0.5], [0.4, 0.6])
    x = torch.linspace(-4, 4, 801, dtype=F64)[:, None]
    res = sg.log_prob(oracle.score(sde), sde, x, trace="exact")
    assert float(res.value.exp().sum() * (x[1] - x[0])) == pytest.approx(1, abs=2e-4)


def test_the_density_has_mass_one_in_two_dimensions() -> None:
    """Summed over a fine grid of the plane."""
    sde = LINEAR["vp"]
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-0.7, 0.2], [0.6, -0.4]], dtype=F64), [0.4, 0.3])
    side = torch.linspace(-3, 3, 61, dtype=F64)
    x = torch.cartesian_prod(side, side)
    res = sg.log_prob(oracle.score(sde), sde, x, trace="exact", method=FixedGrid(32))
    assert float(res.value.exp().sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("make", [sg.from_noise, sg.from_denoiser, sg.from_v, sg.from_flow, sg.from_score])
def test_every_prediction_gives_the_same_likelihood(make: Any) -> None:
    """Whatever the network predicts, to 1e-9."""
    sde = LINEAR["vp"]
    target = {"from_noise": "noise", "from_denoiser": "data", "from_v": "v", "from_flow": "flow"}
    exact_score = GAUSSIAN.score(sde)
    kind = target.get(make.__name__, "score")
    score = make(lambda x, t: exact_score.predict(kind, x, t), sde)
    x = points(GAUSSIAN, "vp", 4)
    one, other = (sg.log_prob(s, sde, x, trace="exact").value for s in (score, exact_score))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (1, 2, 2)])
def test_any_rank(shape: tuple[int, ...]) -> None:
    """Vectors to images; chunks of the exact trace change nothing."""
    sde = LINEAR["vp"]
    oracle = sg.oracles.Gaussian(torch.zeros(shape), 0.5)
    x = oracle.sample(3, sde, 1e-5, seed=0, dtype=F64)
    results = [sg.log_prob(oracle.score(sde), sde, x, trace=Exact(chunk)) for chunk in (1, 2, 100)]
    for res in results:
        assert res.value.shape == res.stderr.shape == (3,)
        assert res.latent.shape == x.shape
        torch.testing.assert_close(res.value, results[0].value, rtol=1e-12, atol=1e-12)


# --- protocols -------------------------------------------------------------------------------------------------------


def test_song_s_protocol() -> None:
    """SciPy's RK45 with one fixed probe: the same estimate as the exact trace in the mean, calls counted once."""
    sde = LINEAR["vp"]
    x = points(GAUSSIAN, "vp", 8)
    calls = [0]
    score = GAUSSIAN.score(sde)

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return score.denoised(x, t)

    res = sg.log_prob(sg.from_denoiser(net, sde), sde, x, method="rk45-scipy", trace="exact")
    ours = sg.log_prob(score, sde, x, trace="exact", method=FixedGrid(200))
    torch.testing.assert_close(res.value, ours.value, rtol=2e-4, atol=2e-4)
    assert res.nfe == calls[0]
    fixed = sg.log_prob(score, sde, x, method="rk45-scipy", seed=0, trace=Hutchinson(2, probe="gaussian"))
    assert bool((fixed.stderr > 0).all())
    assert bool(sg.log_prob(score, sde, x, method="rk45-scipy", trace="hutchinson", seed=0).stderr.isnan().all())
    for quoted in ("rtol = 1e-05", "RK45", "fixed", "point log p_eps", "eps = 1e-05"):
        assert quoted in str(fixed.protocol)


@pytest.mark.parametrize("method", [AdaptiveFlow, AdjointFlow])
@pytest.mark.parametrize("process", ["vp", "ve", "flow"])
def test_adaptive_methods(process: str, method: type[AdaptiveFlow] | type[AdjointFlow]) -> None:
    """The closed form at the accuracy asked for, and no call outside of [eps, T]."""
    sde, eps = LINEAR[process], LINEAR[process].likelihood_eps
    times: list[Tensor] = []
    score = MIXTURE.score(sde)

    def net(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return score.denoised(x, t)

    x = points(MIXTURE, process, 6)
    options: dict[str, Any] = {"trace": "exact", "prior": lambda z: MIXTURE.log_prob(z, sde, sde.T)}
    errors = []
    for tol in (1e-4, 1e-8):
        res = sg.log_prob(sg.from_denoiser(net, sde), sde, x, method=method(tol, tol), **options)
        errors.append(float((res.value - exact(MIXTURE, process, x)).abs().max()))
        assert f"rtol = {tol:g}" in str(res.protocol)
    assert errors[0] < 5e-2
    assert errors[1] < 2e-6
    called = torch.cat(times)
    assert eps <= float(called.min()) <= float(called.max()) <= sde.T
    fixed = sg.log_prob(score, sde, x, method=method(), trace=Hutchinson(2, probe="gaussian"), seed=0)
    assert bool((fixed.stderr > 0).all())
    assert "fixed at each evaluation" in str(fixed.protocol)


def test_steps_of_each_sample_s_own() -> None:
    """Alone as beside an outlier; tensors among the network's arguments follow the samples that are still there."""
    sde = LINEAR["vp"]
    score = GAUSSIAN.score(sde)

    def net(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        assert len(shift) == len(x)
        return score.denoised(x - shift[:, None], t) + shift[:, None]

    wrapped = sg.from_denoiser(net, sde)
    x, shift = torch.cat([points(COUPLED_2D, "vp", 3), torch.full((1, 2), 30.0)]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    options: dict[str, Any] = {"method": AdaptiveFlow(1e-6, 1e-6), "trace": Hutchinson(2)}
    together = sg.log_prob(wrapped, sde, x, seed=[1, 2, 3, 4], model_kwargs={"shift": sg.PerSample(shift)}, **options)
    alone = sg.log_prob(wrapped, sde, x[1:2], seed=[2], model_kwargs={"shift": shift[1:2]}, **options)
    torch.testing.assert_close(alone.value, together.value[1:2], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(alone.stderr, together.stderr[1:2], rtol=1e-9, atol=1e-11)


def test_a_forward_pass_serves_drift_and_divergence() -> None:
    """One network call a node, however many probes."""
    sde = LINEAR["vp"]
    for probes in (1, 4):
        res = sg.log_prob(
            GAUSSIAN.score(sde), sde, points(GAUSSIAN, "vp", 2), method=FixedGrid(10), trace=Hutchinson(probes), seed=0
        )
        assert (res.nfe, res.vjps) == (11, 11 * (probes + 1))  # one more that is the same at all nodes


# --- the fixed grid --------------------------------------------------------------------------------------------------


@given(steps=st.integers(6, 40), to_noise=st.booleans(), data_std=st.floats(0.1, 2), process=st.sampled_from(PROCESSES))
@settings(max_examples=30)
def test_the_tables_integrate_polynomials(steps: int, to_noise: bool, data_std: float, process: str) -> None:
    """In the number of the node, over theta: the method cubics, and the fifth power where all slopes are known."""
    sde = LINEAR[process]
    curve = Stretched(data_std=data_std).curve(sde, sde.T, sde.likelihood_eps)
    table = tables(curve, data_std, steps, to_noise)
    k = np.arange(steps + 1)

    def theta(u: np.ndarray) -> np.ndarray:
        lam, _ = Stretched.on(curve, 1 - u / steps if to_noise else u / steps)
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


RIDGE = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2)


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


# --- probes ----------------------------------------------------------------------------------------------------------

COUPLED_2D = sg.oracles.Gaussian(torch.zeros(2), 0.3 * torch.eye(2) + 0.2 * torch.ones(2, 2))
COUPLED = sg.oracles.Gaussian(torch.zeros(6), 0.3 * torch.eye(6) + 0.2 * torch.ones(6, 6))


@pytest.mark.parametrize(
    ("n_probes", "probe"), [(1, "rademacher"), (2, "rademacher"), (8, "rademacher"), (4, "gaussian")]
)
def test_standard_errors_cover_the_truth(n_probes: int, probe: str) -> None:
    """Over many seeds the estimates scatter about the exact trace's value as their standard errors say."""
    sde = LINEAR["vp"]
    x = COUPLED.sample(1, sde, 1e-5, seed=0, dtype=F64).expand(1600, -1)
    exactly = sg.log_prob(COUPLED.score(sde), sde, x[:1], trace="exact").value
    res = sg.log_prob(COUPLED.score(sde), sde, x, seed=1, trace=Hutchinson(n_probes, probe=probe))
    low, high = replace(res, error=torch.zeros_like(res.error)).interval()
    assert abs(float((res.value - exactly).mean() / (res.value.std() / math.sqrt(1600)))) < 4
    assert 0.8 < float(res.stderr.square().mean() / (res.value - exactly).square().mean()) < 1.25
    assert 0.92 < float(((low <= exactly) & (exactly <= high)).double().mean()) < 0.98


def test_standard_errors_fall_with_the_probes() -> None:
    """As the root of their number."""
    sde = LINEAR["vp"]
    x = COUPLED.sample(64, sde, 1e-5, seed=0, dtype=F64)
    errors = [
        float(sg.log_prob(COUPLED.score(sde), sde, x, seed=0, trace=Hutchinson(n)).stderr.mean()) for n in (2, 8, 32)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_rademacher_is_exact_on_a_diagonal() -> None:
    """Independent coordinates have a diagonal Jacobian, on which Rademacher probes have no variance."""
    sde = LINEAR["vp"]
    oracle = sg.oracles.Gaussian(torch.zeros(3, dtype=F64), torch.diag(torch.tensor([0.2, 0.5, 1.0], dtype=F64)))
    x = oracle.sample(4, sde, 1e-5, seed=0, dtype=F64)
    exactly = sg.log_prob(oracle.score(sde), sde, x, trace="exact").value
    res = sg.log_prob(oracle.score(sde), sde, x, seed=0, trace=Hutchinson(2))
    torch.testing.assert_close(res.value, exactly, rtol=1e-9, atol=1e-9)
    assert float(res.stderr.max()) < 1e-9
    gaussian = sg.log_prob(oracle.score(sde), sde, x, seed=0, trace=Hutchinson(2, probe="gaussian"))
    assert float(gaussian.stderr.min()) > 1e-3


@given(
    basis=st.sampled_from(["pixel", "colour", "dct"]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
)
def test_bases_are_orthonormal(basis: str, shape: tuple[int, int, int]) -> None:
    """The transform of all unit vectors is an orthogonal matrix; that of the first of them is flat."""
    d = math.prod(shape)
    Q = probe_transform(basis, shape)(torch.eye(d, dtype=F64).view(d, *shape)).reshape(d, d)
    torch.testing.assert_close(Q @ Q.T, torch.eye(d, dtype=F64), rtol=0, atol=1e-12)
    if basis == "dct":
        torch.testing.assert_close(Q[0], torch.full((d,), d**-0.5, dtype=F64))


def in_basis(basis: str, shape: tuple[int, int, int] = (2, 2, 3)) -> sg.oracles.Gaussian:
    """Gaussian data whose covariance is diagonal in a basis alone."""
    d = math.prod(shape)
    Q = probe_transform(basis, shape)(torch.eye(d, dtype=F64).view(d, *shape)).reshape(d, d)
    variances = torch.linspace(0.1, 1, d, dtype=F64)
    return sg.oracles.Gaussian(torch.zeros(shape, dtype=F64), Q.T @ torch.diag(variances) @ Q)


@pytest.mark.parametrize("basis", ["pixel", "colour", "dct"])
def test_the_right_basis_leaves_no_variance(basis: str) -> None:
    """Where it makes the Jacobian diagonal; others are unbiased, and the pilot finds the right one."""
    sde, oracle = LINEAR["vp"], in_basis(basis)
    x = oracle.sample(1, sde, 1e-5, seed=0, dtype=F64)
    score, exactly = (
        oracle.score(sde),
        sg.log_prob(oracle.score(sde), sde, x, trace="exact", method=FixedGrid(12)).value,
    )
    many = x.expand(100, -1, -1, -1)
    for other in ("pixel", "colour", "dct"):
        res = sg.log_prob(score, sde, many, method=FixedGrid(12), trace=Hutchinson(basis=other), seed=0)
        if other == basis:
            torch.testing.assert_close(res.value, exactly.expand(100), rtol=1e-9, atol=1e-9)
        else:
            assert float(res.value.std()) > 1e-3
            assert abs(float((res.value - exactly).mean())) < 4 * float(res.value.std()) / 10
    pilot = choose_probe_basis(score, sde, many[:4], seed=0)
    assert pilot.basis == basis
    assert (pilot.nfe, pilot.vjps) == (3 * 17, 3 * 17 * 3)
    assert pilot.variances[basis] == min(pilot.variances.values())
    chosen = sg.log_prob(score, sde, many[:4], method=FixedGrid(12), trace=Hutchinson(basis="pilot"), seed=0)
    again = sg.log_prob(score, sde, many[:4], method=FixedGrid(12), trace=Hutchinson(basis=pilot), seed=0)
    torch.testing.assert_close(chosen.value, again.value, rtol=0, atol=0)
    assert "chosen by a pilot" in str(chosen.protocol)
    assert chosen.nfe == again.nfe + pilot.nfe
    if basis != "pixel":
        assert f"in the {basis} basis" in str(again.protocol)


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.dequantisation.BitsPerDimWarning")  # not its data
def test_one_pilot_serves_all_draws() -> None:
    """bits_per_dim asks it once."""
    sde, oracle = LINEAR["vp"], in_basis("dct")
    images = torch.arange(24).reshape(2, 2, 2, 3) % 16
    options: dict[str, Any] = {
        "n_levels": 16,
        "data_range": (-1.0, 1.0),
        "seed": 0,
        "method": FixedGrid(6),
        "repeats": 2,
    }
    bits = sg.bits_per_dim(oracle.score(sde), sde, images, trace=Hutchinson(basis="pilot"), **options)
    assert bits.nfe == 2 * 7 + 3 * 17
    assert "in the dct basis" in bits.protocol


def test_fresh_probes_beat_a_fixed_one() -> None:
    """At the same number of products the variance of fresh probes is several times smaller."""
    sde = LINEAR["vp"]
    x = COUPLED.sample(1, sde, 1e-5, seed=0, dtype=F64).expand(200, -1)
    fresh = sg.log_prob(COUPLED.score(sde), sde, x, seed=0).value.var()
    fixed = sg.log_prob(COUPLED.score(sde), sde, x, seed=0, method="rk45-scipy").value.var()
    assert float(fresh / fixed) < 0.25


@given(order=st.permutations(range(4)))
@settings(max_examples=4)
def test_a_likelihood_depends_on_its_own_seed(order: list[int]) -> None:
    """Alone, in any batch and order: the same value."""
    sde = LINEAR["vp"]
    x, seeds = points(COUPLED, "vp", 4), [3, 1, 4, 5]
    together = sg.log_prob(COUPLED.score(sde), sde, x, seed=seeds, method=FixedGrid(8)).value
    permuted = sg.log_prob(
        COUPLED.score(sde), sde, x[list(order)], seed=[seeds[i] for i in order], method=FixedGrid(8)
    ).value
    torch.testing.assert_close(permuted, together[list(order)], rtol=1e-12, atol=1e-12)
    alone = sg.log_prob(COUPLED.score(sde), sde, x[2:3], seed=[4], method=FixedGrid(8)).value
    torch.testing.assert_close(alone, together[2:3], rtol=1e-12, atol=1e-12)


# --- errors as stated ------------------------------------------------------------------------------------------------

SCALES = torch.tensor([1.0, 1e-3], dtype=F64).repeat_interleave(4)
STATED: dict[str, tuple[sg.oracles.Oracle, float]] = {
    "narrow": (sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 1e-6), 0.0),
    "wide": (sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 900.0), 0.0),
    "two scales": (sg.oracles.Gaussian(torch.zeros(8, dtype=F64), torch.diag(SCALES**2)), 0.0),
    "mixture": (MIXTURE, 0.0),
    "off the data": (MIXTURE, 1.0),
}


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
@pytest.mark.parametrize("name", list(STATED))
def test_the_error_is_the_stated_one(name: str, process: str) -> None:
    """`error` bounds what is off in nearly all points, on one grid; the default is within its tolerance."""
    (oracle, off), sde = STATED[name], LINEAR[process]
    x = oracle.sample(12, sde, sde.likelihood_eps, seed=0, dtype=F64)
    x = x + off * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    d, known = x[0].numel(), oracle.log_prob(x, sde, sde.likelihood_eps)
    options: dict[str, Any] = {"prior": lambda z: oracle.log_prob(z, sde, sde.T), "trace": "exact"}
    grid = sg.log_prob(oracle.score(sde), sde, x, method=FixedGrid(48), **options)
    off_by = (grid.value - known).abs() / d
    assert int((off_by > grid.error / d + 1e-6).sum()) <= 1
    res = sg.log_prob(oracle.score(sde), sde, x, **options)
    assert float((res.value - known).abs().max()) / d < 2e-4
    assert bool((res.error <= 1e-4 * d).all()) and res.unresolved == ()


def test_two_scales_leave_no_noise() -> None:
    """A trace that is rough between the nodes is no noise of the probes: on a diagonal these have none."""
    oracle, sde = STATED["two scales"][0], LINEAR["vp"]
    x = oracle.sample(3, sde, 1e-5, seed=0, dtype=F64)
    res = sg.log_prob(oracle.score(sde), sde, x, trace="hutchinson", method=FixedGrid(48), seed=0)
    exactly = sg.log_prob(oracle.score(sde), sde, x, trace="exact", method=FixedGrid(48))
    assert float(res.stderr.max()) < 1e-9
    torch.testing.assert_close(res.value, exactly.value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(res.error, exactly.error, rtol=1e-6, atol=1e-9)


def test_samples_that_do_not_reach_the_tolerance_are_named() -> None:
    """In the result and a warning, where gradients leave no adaptive solver."""
    sde = LINEAR["vp"]
    x = torch.tensor([[1.0, 0.0], [0.05, 0.0]], dtype=F64)
    with pytest.warns(LikelihoodWarning, match=r"of 2 of 2 samples did not come down .* sample 0 is .* nats/dim"):
        res = sg.log_prob(RIDGE.score(sde), sde, x, method=FixedGrid(atol=1e-12), enable_grad=True)
    assert res.unresolved == (0, 1) and bool((res.error > 2e-12).all())
    assert "2 above the tolerance" in str(res)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_parts_of_a_batch(trace: str) -> None:
    """Values do not depend on how many samples are run at once, refined ones neither."""
    sde = LINEAR["vp"]
    x = torch.tensor([[1.0, 0.0], [0.1, 0.1], [-1.0, 0.2], [0.4, 0.3], [0.9, -0.2]], dtype=F64)
    whole = sg.log_prob(RIDGE.score(sde), sde, x, trace=trace, seed=0)
    for batch_size in (1, 2, 5):
        parts = sg.log_prob(RIDGE.score(sde), sde, x, trace=trace, seed=0, batch_size=batch_size)
        torch.testing.assert_close(parts.value, whole.value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(parts.stderr, whole.stderr, rtol=1e-6, atol=1e-9)


def test_the_trace_is_exact_in_few_dimensions() -> None:
    """By default; the protocol says which it was."""
    for d, said in ((16, "by its exact trace"), (17, "Hutchinson's estimate with 1 rademacher probe, fresh")):
        oracle = sg.oracles.Gaussian(torch.zeros(d), 0.25)
        res = sg.log_prob(oracle.score(VP), VP, torch.zeros(2, d), method=FixedGrid(8), seed=0)
        assert said in str(res.protocol)


def test_the_asymmetry_of_a_jacobian() -> None:
    """Zero for a gradient; of two probes the mean over draws is that of the Jacobian itself."""
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = torch.zeros(4000, 3, dtype=F64, requires_grad=True)
    for a in (matrix, matrix + matrix.T):
        out = x @ a.T
        truth = torch.stack([(a - a.T).square().sum(), (a + a.T).square().sum()])
        exactly = Exact().estimate(x, resolve_seeds(0, None, 4000), True)(out, x, None, False)[:, -2:]
        torch.testing.assert_close(exactly, truth.expand(4000, 2))
        drawn = Hutchinson().estimate(x, resolve_seeds(0, None, 4000), True)(out, x, None, False)[:, -2:]
        torch.testing.assert_close(drawn.mean(0), truth, rtol=0.1, atol=1e-9)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_the_variance_of_an_estimate_from_its_products(basis: str) -> None:
    """Its mean over draws is the variance that Rademacher probes have, of a symmetric Jacobian and of another."""
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = torch.zeros(4000, 1, 2, 2, dtype=F64, requires_grad=True)
    seeds = resolve_seeds(0, None, 4000)
    for a in (matrix, matrix + matrix.T, torch.diag(torch.arange(1.0, 5.0, dtype=F64))):
        out = (x.flatten(1) @ a.T).view_as(x)
        for n in (1, 3):
            drawn = Hutchinson(n, basis=basis).estimate(x, seeds, True)(out, x, None, False)
            truth = drawn[:, 0].var()
            torch.testing.assert_close(drawn[:, -3].mean(), truth, rtol=0.1, atol=1e-9)
            scatter = drawn[:, :n].mean(1).var()
            torch.testing.assert_close(drawn[:, -3].mean() / n, scatter, rtol=0.1, atol=1e-9)


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_samples_with_their_density_in_one_solve(process: str, trace: str) -> None:
    """`decode` finds both in the calls of one: the closed form within its stated error."""
    sde = LINEAR[process]
    z = sde.prior_sample((6, 2), seed=0, dtype=F64)
    options: dict[str, Any] = {"method": FixedGrid(96)}
    found = sg.decode(MIXTURE.score(sde), sde, z, log_prob=True, trace=trace, seed=0, **options)
    alone = sg.decode(MIXTURE.score(sde), sde, z, **options)
    torch.testing.assert_close(found.x, alone.x, rtol=1e-12, atol=1e-12)
    assert found.nfe == alone.nfe == 97 and alone.log_prob is None
    assert found.log_prob is not None and found.error is not None and found.stderr is not None
    gap = MIXTURE.log_prob(z, sde, sde.T) - sde.prior_log_prob(z)
    off = (found.log_prob + gap - exact(MIXTURE, process, found.x)).abs()
    assert bool((off < found.error + 6 * found.stderr + 1e-5).all())


def test_densities_of_codes_need_to_be_asked_for() -> None:
    """Their options do nothing alone, and other methods have none."""
    z = torch.zeros(2, *MIXTURE.event_shape)
    with pytest.raises(ValueError, match="seed=0 is for log_prob=True"):
        sg.decode(MIXTURE.score(VP), VP, z, seed=0)
    with pytest.raises(ValueError, match=r"log_prob=True needs method=FixedGrid"):
        sg.decode(MIXTURE.score(VP), VP, z, log_prob=True, method="adaptive")


# --- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_with_respect_to_the_data() -> None:
    """That of the log-density is the score."""
    sde = LINEAR["vp"]
    x = points(GAUSSIAN, "vp", 3).requires_grad_()
    marginal = {"prior": lambda z: GAUSSIAN.log_prob(z, sde, sde.T)}
    value = sg.log_prob(
        GAUSSIAN.score(sde), sde, x, trace="exact", enable_grad=True, method=FixedGrid(100), **marginal
    ).value
    (grad,) = torch.autograd.grad(value.sum(), x)
    expected = GAUSSIAN.score(sde)(x.detach(), torch.tensor(1e-5, dtype=F64))
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_gradients_with_respect_to_parameters() -> None:
    """Against finite differences, and nothing is left behind in the parameters."""
    sde = LINEAR["vp"]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5, 0.2], dtype=F64))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(self.w[0] * x) + self.w[1] * x * t[:, None]

    net = Net()
    score = sg.from_noise(net, sde)
    x = torch.tensor([[0.3, -0.4]], dtype=F64)

    def value() -> Tensor:
        return sg.log_prob(score, sde, x, trace="exact", enable_grad=True, method=FixedGrid(12)).value.sum()

    (grad,) = torch.autograd.grad(value(), net.w)
    for i in range(2):
        with torch.no_grad():
            net.w[i] += 1e-5
            up = value()
            net.w[i] -= 2e-5
            down = value()
            net.w[i] += 1e-5
        assert float(grad[i]) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)
    assert net.w.grad is None
    assert net.w.requires_grad
    assert not sg.log_prob(score, sde, x, seed=0, method=FixedGrid(6)).value.requires_grad


class Small(nn.Module):
    """A network of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, 0.2], dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.w[0] * x) + self.w[1] * x * t[:, None]


class Held:
    """A tensor that the tape keeps; detached, since an output held by its own node would never go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def test_the_adjoint_s_gradients_are_backpropagation_s() -> None:
    """With respect to x and to parameters, to 5e-6 at tolerance 1e-8, in memory that does not grow with the steps."""
    sde, net = LINEAR["vp"], Small()
    score = sg.from_noise(net, sde)
    x = torch.tensor([[0.3, -0.4], [0.1, 0.9]], dtype=F64, requires_grad=True)

    def value(method: FixedGrid | AdjointFlow) -> Tensor:
        return sg.log_prob(score, sde, x, trace="exact", enable_grad=True, method=method).value

    def kept(method: FixedGrid | AdjointFlow) -> int:
        alive: weakref.WeakSet[Held] = weakref.WeakSet()

        def pack(tensor: Tensor) -> Held:
            held = Held(tensor)
            alive.add(held)
            return held

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            result = value(method)
            return sum(held.tensor.numel() for held in alive) + 0 * len(result)

    tight = AdjointFlow(1e-8, 1e-8)
    gradients = [
        torch.autograd.grad(value(method).sum(), (x, net.w))
        for method in (FixedGrid(200), tight, AdjointFlow(1e-8, 1e-8, parameters=(net.w,)))
    ]
    for backward, adjoint, with_parameters in zip(*gradients, strict=True):
        torch.testing.assert_close(adjoint, backward, rtol=5e-6, atol=5e-6)
        torch.testing.assert_close(with_parameters, adjoint)
    assert kept(tight) == kept(AdjointFlow(1e-3, 1e-3))
    assert kept(FixedGrid(60)) > 3 * kept(FixedGrid(12))
    assert net.w.grad is None


# --- bits/dim --------------------------------------------------------------------------------------------------------


def uniform_score(monkeypatch: pytest.MonkeyPatch, lo: float, hi: float) -> None:
    """Replaces the flow by the density that is uniform on the range."""

    def fake(score_fn: Any, sde: Any, x: Tensor, **_: Any) -> Any:
        assert bool(((x >= lo) & (x < hi)).all())
        value = torch.full((len(x),), -x[0].numel() * math.log(hi - lo), dtype=F64)
        nothing, latent = 0 * value, torch.ones_like(x)
        return sg.LogProbResult(value, nothing, nothing, latent, value, value, value, value, value, (), 1, 0, None)  # type: ignore[arg-type]

    monkeypatch.setattr(sg.likelihood.dequantisation, "log_prob", fake)


@pytest.mark.parametrize(("lo", "hi"), [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (0.0, 256.0)])
@pytest.mark.parametrize(("levels", "bits"), [(256, 8.0), (32, 5.0), (2, 1.0)])
def test_a_uniform_density_has_as_many_bits_as_levels(
    monkeypatch: pytest.MonkeyPatch, lo: float, hi: float, levels: int, bits: float
) -> None:
    """log2(n), exactly, whatever the range: nothing is hard-coded."""
    uniform_score(monkeypatch, lo, hi)
    images = torch.arange(2 * 3 * 4).reshape(2, 3, 4) % levels
    res = sg.bits_per_dim(
        GAUSSIAN.score(LINEAR["vp"]), LINEAR["vp"], images, n_levels=levels, data_range=(lo, hi), seed=0
    )
    assert res.value == pytest.approx(bits, abs=1e-12)
    assert res.guess == bits and str(res).endswith(f"; a uniform guess has {bits:.2f}")


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.dequantisation.BitsPerDimWarning")  # 4.5 bits, known
def test_bits_per_dim_of_a_known_density() -> None:
    """Gaussian data: the discrete distribution is known, the bound lies above its bits and comes down with draws."""
    sde, levels, std = LINEAR["vp"], 16, 0.4
    oracle = sg.oracles.Gaussian(torch.zeros(2), std**2)
    edges = torch.linspace(-1, 1, levels + 1, dtype=F64)
    masses = torch.special.ndtr(edges[1:] / std) - torch.special.ndtr(edges[:-1] / std)
    images = torch.arange(levels).repeat_interleave(2).reshape(levels, 2)
    truth = -(masses.log2())[images].mean(1)
    options: dict[str, Any] = {
        "n_levels": levels, "data_range": (-1.0, 1.0), "trace": "exact", "seed": 0, "dtype": F64,
        "method": FixedGrid(24),
    }  # fmt: skip
    score = oracle.score(sde)
    one = sg.bits_per_dim(score, sde, images, **options)
    mean = sg.bits_per_dim(score, sde, images, repeats=64, **options)
    weighted = sg.bits_per_dim(score, sde, images, repeats=64, importance=True, **options)
    assert one.repeats.shape == (1, levels)
    torch.testing.assert_close(mean.repeats[0], one.repeats[0])
    assert mean.value > float(truth.mean()) - 0.003
    assert float(truth.mean()) - 0.01 < weighted.value < mean.value
    assert weighted.value == pytest.approx(float(truth.mean()), abs=0.01)
    assert mean.stderr == pytest.approx(float(mean.per_image.std()) / math.sqrt(levels))
    assert "64 draws of uniform dequantisation, 16 levels" in str(mean)


def test_variational_dequantisation() -> None:
    """A callable's noise and density enter the bound; the uniform one by hand is the uniform one."""
    sde = LINEAR["vp"]
    score = sg.oracles.Gaussian(torch.zeros(2), 0.2).score(sde)
    images = torch.tensor([[3, 4], [8, 9]])
    options: dict[str, Any] = {
        "n_levels": 16,
        "data_range": (-1.0, 1.0),
        "trace": "exact",
        "dtype": F64,
        "method": FixedGrid(12),
    }

    def middle(images: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        return torch.full(images.shape, 0.5), torch.full((len(images),), 0.3)

    res = sg.bits_per_dim(score, sde, images, dequantize=middle, seed=0, **options)
    x = -1 + 2 * (images.double() + 0.5) / 16
    by_hand = sg.log_prob(score, sde, x, trace="exact", method=FixedGrid(12)).value
    expected = -(by_hand + 2 * math.log(2 / 16) - 0.3) / (2 * math.log(2))
    torch.testing.assert_close(res.per_image, expected)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        sg.bits_per_dim(score, sde, images, dequantize=lambda i, k: (torch.ones(i.shape), torch.zeros(2)), **options)


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.dequantisation.BitsPerDimWarning")  # narrow noise
def test_truncated_normal_dequantisation() -> None:
    """Above the known bits, closing in on them with draws; exact moments of the noise; the uniform for wide noise."""
    sde, levels, std = LINEAR["vp"], 16, 0.4
    score = sg.oracles.Gaussian(torch.zeros(2), std**2).score(sde)
    images = torch.arange(levels).repeat_interleave(2).reshape(levels, 2)
    for eps in (1e-5, float(sde.time(2 * math.log(1 / (1.0 / levels))))):  # noise of 1/60 of a bin, and of half of it
        alpha, sigma = float(sde.alpha(eps)), float(sde.sigma(eps))
        spread = math.hypot(alpha * std, sigma)
        edges = alpha * torch.linspace(-1, 1, levels + 1, dtype=F64) / spread
        truth = -(torch.special.ndtr(edges[1:]) - torch.special.ndtr(edges[:-1])).log2()[images].mean(1)
        options: dict[str, Any] = {
            "n_levels": levels, "data_range": (-1.0, 1.0), "trace": "exact", "seed": 0, "dtype": F64,
            "method": FixedGrid(16), "dequantize": "truncated-normal", "eps": eps,
        }  # fmt: skip
        mean = sg.bits_per_dim(score, sde, images, repeats=64, **options)
        assert mean.estimator == "truncated-normal bound"
        assert mean.value > float(truth.mean()) - 0.01
        assert "64 draws of truncated-normal dequantisation" in str(mean)
    assert mean.value < float(truth.mean()) + 0.05  # where the noise fills the bin
    weighted = sg.bits_per_dim(score, sde, images, repeats=64, importance=True, **options)
    assert weighted.value == pytest.approx(float(truth.mean()), abs=0.01)
    assert weighted.estimator == "importance-weighted bound of 64 draws"


@pytest.mark.parametrize("tau", [0.01, 1.0, 3.0, 12.0])
def test_moments_of_the_truncated_normal(tau: float) -> None:
    """Variance 1 - 2 tau phi(tau) / Z, inside of the bin, and the density that was drawn from."""
    sde = LINEAR["edm"]
    levels = Levels.of(torch.full((4, 5000), 3), 8, (-1.0, 1.0), F64)
    eps = levels.width / (2 * tau)
    x, minus_log_q = _truncated_normal(levels, sde, eps, NoiseStream([(0, i) for i in range(4)], "dequantisation"))
    z = (x - levels.x) / eps
    Z = math.erf(tau / math.sqrt(2))
    variance = 1 - 2 * tau * math.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi) / Z
    assert float(z.abs().max()) <= tau * (1 + 1e-9)
    assert float(z.square().mean() / variance) == pytest.approx(1, abs=0.04)
    assert abs(float(z.mean())) < 4 * math.sqrt(variance / 20000)
    expected = (0.5 * z.square() + 0.5 * math.log(2 * math.pi) + math.log(eps * Z)).sum(1)
    torch.testing.assert_close(minus_log_q, expected)


def test_the_decoder_s_bound_on_the_density_of_data() -> None:
    """Over many draws its mean is below the density of what the decoder makes of the process at eps, and near it."""
    sde, eps, std = LINEAR["vp"], 0.1, 0.4
    oracle = sg.oracles.Gaussian(torch.zeros(1), std**2)
    x = torch.full((600, 1), 0.5, dtype=F64)
    marginal: dict[str, Any] = {"prior": lambda z: oracle.log_prob(z, sde, sde.T), "trace": "exact"}
    res = sg.log_prob(oracle.score(sde), sde, x, decoder="gaussian", eps=eps, method=FixedGrid(16), seed=0, **marginal)
    alpha, sigma = float(sde.alpha(eps)), float(sde.sigma(eps))
    V = (alpha * std) ** 2 + sigma**2
    gain = alpha * std**2 / V
    made = torch.distributions.Normal(0.0, math.sqrt(gain**2 * V + (sigma / alpha) ** 2))
    # The gap is the divergence of q(x_eps | x) from the posterior of x_eps under that, both Gaussian.
    precision = 1 / V + gain**2 * (alpha / sigma) ** 2
    centre = gain * (alpha / sigma) ** 2 * 0.5 / precision
    gap = 0.5 * (precision * (sigma**2 + (alpha * 0.5 - centre) ** 2) - 1 - math.log(precision * sigma**2))
    error = float(res.value.std()) / math.sqrt(600)
    assert gap > 1e-3
    assert float(res.value.mean()) == pytest.approx(float(made.log_prob(torch.tensor(0.5))) - gap, abs=4 * error)
    torch.testing.assert_close(res.prior + res.divergence + res.decoder, res.value)
    assert res.nfe == 18
    assert str(res.protocol).startswith("Jensen bound by diffusion to eps")


# --- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
def test_encoding_is_the_exact_flow(process: str) -> None:
    """Latents are those of the closed form, and decoding returns, at the order of the method."""
    sde = LINEAR[process]
    x = points(GAUSSIAN, process, 8)
    expected = GAUSSIAN.flow(x, sde, sde.likelihood_eps, sde.T)
    errors, trips = [], []
    for steps in (40, 80):
        z = sg.encode(GAUSSIAN.score(sde), sde, x, method=FixedGrid(steps))
        back = sg.decode(GAUSSIAN.score(sde), sde, z.x, method=FixedGrid(steps))
        errors.append(float((z.x - expected).abs().max() / expected.abs().max()))
        trips.append(float((back.x - x).abs().max()))
        assert z.nfe == back.nfe == steps + 1
        assert z.times == back.times[::-1]
    assert errors[1] < max(errors[0] / 5, 1e-8)
    assert trips[1] < max(trips[0] / 5, 1e-8)


def test_many_steps_return_to_a_millionth() -> None:
    """The round trip on a mixture comes back to 1e-6 and below."""
    sde = LINEAR["vp"]
    x = points(MIXTURE, "vp", 8)
    z = sg.encode(MIXTURE.score(sde), sde, x, method=FixedGrid(400)).x
    assert float((sg.decode(MIXTURE.score(sde), sde, z, method=FixedGrid(400)).x - x).abs().max()) < 1e-6


def test_adaptive_codes_return_to_a_millionth() -> None:
    """The round trip at tolerance 1e-8 comes back to 1e-6 and below, a sample alone as in the batch."""
    sde, score = LINEAR["vp"], MIXTURE.score(LINEAR["vp"])
    x = points(MIXTURE, "vp", 6)
    code = sg.encode(score, sde, x, method="adaptive")
    back = sg.decode(score, sde, code.x, method="adaptive")
    assert float((back.x - x).abs().max()) < 1e-6
    assert code.times == back.times[::-1] == (sde.likelihood_eps, sde.T)
    torch.testing.assert_close(sg.encode(score, sde, x[2:3], method="adaptive").x, code.x[2:3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(code.x, sg.encode(score, sde, x, method=FixedGrid(400)).x, rtol=1e-5, atol=1e-5)


@given(weight=st.floats(0, 1))
def test_interpolation_keeps_the_norm(weight: float) -> None:
    """Between latents of one length all are of that length; the ends are the ends."""
    a, b = torch.tensor([[3.0, 0.0], [1.0, 1.0]], dtype=F64), torch.tensor([[0.0, 3.0], [1.0, 1.0]], dtype=F64)
    mixed = sg.likelihood.slerp(a, b, weight)
    torch.testing.assert_close(mixed.norm(dim=1), a.norm(dim=1))
    torch.testing.assert_close(sg.likelihood.slerp(a, b, 0.0), a)
    torch.testing.assert_close(sg.likelihood.slerp(a, b, 1.0), b)


@given(
    stretch=st.floats(0.1, 12),
    data_std=st.floats(0.01, 30),
    process=st.sampled_from(PROCESSES),
    steps=st.integers(1, 99),
)
def test_stretched_grids(stretch: float, data_std: float, process: str, steps: int) -> None:
    """Decreasing times from T to the end, with the slopes that its own differences have."""
    sde = LINEAR[process]
    rule = Stretched(stretch, data_std)
    end = sde.likelihood_eps
    times = rule(sde, steps, t_end=end).times
    assert (times[0], times[-1]) == (sde.T, end)
    _, slopes = Stretched.on(rule.curve(sde, sde.T, end), np.linspace(0, 1, 2001))
    whole = float(sde.log_snr(end) - sde.log_snr(sde.T)) / 2
    assert float(((slopes[1:] + slopes[:-1]) / 2).mean()) == pytest.approx(whole, rel=1e-4)


# --- bad input -------------------------------------------------------------------------------------------------------

VP = LINEAR["vp"]
SCORE = GAUSSIAN.score(VP)
X = torch.zeros(2, 2, dtype=F64)


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"x": torch.zeros(2, 2, dtype=torch.long)}, TypeError, "int64"),
        ({"x": [[0.0]]}, TypeError, "tensor"),
        ({"x": torch.zeros(0, 2)}, ValueError, r"at least one sample, got shape \(0, 2\)"),
        ({"x": torch.full((2, 2), math.nan)}, ValueError, "sample 0"),
        ({"eps": 0.0}, ValueError, r"eps must lie in \(0, T\)"),
        ({"eps": 1.0}, ValueError, "1.0"),
        ({"trace": "hutch++"}, ValueError, "hutch"),
        ({"trace": 3}, TypeError, r"trace must be a name, Hutchinson\(\.\.\.\) or Exact\(\.\.\.\), got 3"),
        ({"method": FixedGrid}, TypeError, "method must be a name or a method"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        ({"method": "dopri5"}, ValueError, "dopri5"),
        ({"method": "rk45-scipy", "enable_grad": True}, ValueError, "gradients"),
        ({"method": "adaptive", "enable_grad": True}, ValueError, "gradients"),
        ({"trace": Hutchinson(basis="dct")}, ValueError, r"\(B, C, H, W\), got x of shape \(B, 2\)"),
        ({"trace": Hutchinson(basis="pilot")}, ValueError, "images"),
        ({"prior": 3}, TypeError, "prior must be a function .* got 3"),
        ({"prior": lambda z: z.sum()}, ValueError, r"the prior must return one number per sample, \(2,\), got \(\)"),
        ({"prior": lambda z: z}, ValueError, r"got \(2, 2\)"),
        ({"prior": lambda z: None}, ValueError, "got NoneType"),
        ({"prior": lambda z: z.sum(1) * math.nan}, ValueError, "the prior's log-density of sample 0 is nan"),
        ({"score_fn": lambda x, t: torch.zeros_like(x)}, ValueError, "gives no gradient with respect to x"),
        ({"score_fn": lambda x, t: -x.detach()}, ValueError, "gives no gradient .* One whose output is constant"),
        ({"method": "rk45-scipy", "score_fn": lambda x, t: x * math.nan}, ValueError, "at t=1e-05 in sample 0"),
        (
            {"method": "rk45-scipy", "score_fn": lambda x, t: -x + (x - x.detach()).abs().sqrt()},
            ValueError,
            "the trace of the network's Jacobian is not finite at t=1e-05 in sample 0",
        ),
        (
            {"score_fn": lambda x, t: -x + torch.where(t[:, None] > 0.5, (x - x.detach()).abs().sqrt(), 0 * x)},
            ValueError,
            "the trace of the network's Jacobian is not finite at t=",
        ),
        ({"decoder": "laplace"}, ValueError, "laplace"),
        ({"method": "adaptive", "score_fn": lambda x, t: x * math.nan}, ValueError, "sample 0 stopped at t="),
        ({"method": "dopri5-adjoint", "score_fn": lambda x, t: x * math.nan}, ValueError, "gave up"),
        ({"score_fn": lambda x, t: x * math.nan}, ValueError, "not finite"),
        ({"seed": [1, 2, 3]}, ValueError, "3 seeds for 2"),
        ({"sde": sg.VPSDE}, TypeError, "class VPSDE: call it"),
    ],
)
def test_bad_input_to_log_prob(options: dict[str, Any], error: type[Exception], shown: str) -> None:
    """An error at the call, in the user's words."""
    given_options = {"score_fn": SCORE, "sde": VP, "x": X, **options}
    with pytest.raises(error, match=shown):
        sg.log_prob(**given_options)


@pytest.mark.parametrize("flow", [sg.log_prob, sg.encode])
@pytest.mark.parametrize("first", [0.0, 0.4])
def test_where_a_flow_stops_being_finite(flow: Callable[..., Any], first: float) -> None:
    """At the first node of the grid at which the network fails, in that sample."""

    def fails(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((torch.arange(len(x)) == 1)[:, None] & (t[:, None] > first), math.inf, SCORE(x, t))

    t = min(t for t in Stretched(data_std=0.5)(VP, 48, t_end=VP.likelihood_eps).times if t > first)
    with pytest.raises(ValueError, match=f"output is not finite at t={t:.6g} in sample 1"):
        flow(fails, VP, X, method=FixedGrid(48))


def test_a_failure_on_a_finer_grid_alone() -> None:
    """Only samples that went there are named."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2)
    rule, ends = Stretched(data_std=0.5), {"t_end": VP.likelihood_eps}
    t_bad = next(t for t in rule(VP, 96, **ends).times[48:] if t not in rule(VP, 48, **ends).times)
    score, x = oracle.score(VP), torch.tensor([[1.0, 0.0], [0.65, 0.0]], dtype=F64)

    def fails(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(((t - t_bad).abs() < 1e-9)[:, None], math.nan, score(x, t))

    stated = sg.log_prob(score, VP, x, method=FixedGrid(48)).error / 2
    assert (stated > 1e-4).tolist() == [False, True]
    with pytest.raises(ValueError, match=f"output is not finite at t={t_bad:.6g} in sample 1"):
        sg.log_prob(fails, VP, x)


@pytest.mark.parametrize("held", [False, True])
def test_arguments_that_only_look_like_rows(held: bool) -> None:
    """Samples that go on alone get what they got in their batch, though a table be as long as it, or hidden."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2)
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.4, 0.0]], dtype=F64)
    table, label = torch.tensor([0.3, 0.0, 9.0], dtype=F64), torch.tensor([1, 1, 0])
    shift, score = torch.stack([table[label], torch.zeros(3, dtype=F64)], 1), oracle.score(VP)

    def moved(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return score(x - VP.alpha(t)[:, None] * shift, t)

    def by_table(x: Tensor, t: Tensor, table: Tensor, label: Tensor) -> Tensor:
        return moved(x, t, torch.stack([table[label], 0 * table[label]], 1))

    exactly = oracle.log_prob(x - VP.alpha(torch.tensor(1e-5, dtype=F64)) * shift, VP, 1e-5)
    if held:
        res = sg.log_prob(lambda x, t: moved(x, t, shift[: len(x)]), VP, x, seed=5)
    else:
        res = sg.log_prob(by_table, VP, x, seed=5, model_kwargs={"table": table, "label": label})
    assert float((res.value - exactly).abs().max()) < 2e-4
    alone = sg.log_prob(moved, VP, x[2:], seed=5, model_kwargs={"shift": shift[2:]})
    assert float((alone.value - exactly[2:]).abs().max()) < 2e-4


@pytest.mark.parametrize("basis", ["colour", "dct"])
def test_probes_under_autocast(basis: str) -> None:
    """Their transform stays orthonormal."""
    z = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = probe_transform(basis, (3, 8, 8))(z)
    assert torch.equal(rounded, probe_transform(basis, (3, 8, 8))(z))


@pytest.mark.parametrize(
    "options", [{}, {"trace": "exact"}, {"method": "adaptive"}, {"method": "rk45-scipy"}, {"decoder": "gaussian"}]
)
def test_scalars(options: dict[str, Any]) -> None:
    """Data (B,) are a dimension."""
    x = torch.tensor([0.1, -0.7, 0.4], dtype=F64)
    value = sg.log_prob(scalar_score, VP, x, seed=0, **options).value
    exactly = torch.distributions.Normal(0.0, 0.5).log_prob(x)
    assert value.shape == (3,)
    assert float((value - exactly).abs().max()) < 1e-4
    assert torch.equal(value, sg.log_prob(scalar_score, VP, x[:, None], seed=0, **options).value)


def scalar_score(x: Tensor, t: Tensor) -> Tensor:
    variance = 0.25 * VP.alpha(t) ** 2 + VP.sigma(t) ** 2
    return -x / (variance if x.ndim == 1 else variance[:, None])


def test_a_code_that_its_dtype_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"the other end of sample 0 is beyond torch\.float16"):
        sg.encode(lambda x, t: -50 * x, VP, torch.full((1, 2), 60000.0, dtype=torch.float16))


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.dequantisation.BitsPerDimWarning")  # not its data
def test_sixteen_bits() -> None:
    """Unsigned integers of any width."""
    images = torch.tensor([[0, 65535], [9, 700]])
    wide = sg.bits_per_dim(SCORE, VP, images.to(torch.uint16), n_levels=65536, data_range=(-1, 1), seed=0)
    assert wide.value == sg.bits_per_dim(SCORE, VP, images, n_levels=65536, data_range=(-1, 1), seed=0).value


def test_a_failure_that_does_not_repeat() -> None:
    """It has a sample, but no time."""
    calls = iter([math.nan])
    with pytest.raises(ValueError, match="the log-likelihood of sample 0 is nan: the score is not finite"):
        sg.log_prob(lambda x, t: SCORE(x, t) * next(calls, 1.0), VP, X, method=FixedGrid(48))


def test_likelihoods_in_inference_mode() -> None:
    """Autograd is off for good there, but not for the trace."""

    def scaled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return SCORE(x, t) * y[:, None]

    y = torch.full((len(X),), 0.5, dtype=F64)
    outside = sg.log_prob(scaled, VP, X, seed=0, model_kwargs={"y": y})
    with torch.inference_mode():
        inside = sg.log_prob(scaled, VP, X.clone(), seed=0, model_kwargs={"y": y.clone()})
    assert torch.equal(inside.value, outside.value)


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"images": X}, TypeError, "float64"),
        ({"images": torch.tensor([[0, 256]])}, ValueError, "0 to 256"),
        ({"images": torch.tensor([[-1, 3]])}, ValueError, "-1 to 3"),
        ({"n_levels": 1}, ValueError, "1"),
        ({"data_range": (1.0, -1.0)}, ValueError, r"\(1.0, -1.0\)"),
        ({"repeats": 0}, ValueError, "0"),
        ({"dequantize": "gaussian"}, ValueError, "gaussian"),
        ({"decoder": "gaussian"}, ValueError, "decoder"),
        ({"enable_grad": True}, ValueError, "enable_grad"),
        ({"eps": 1.0}, ValueError, "eps"),
        ({"data_range": (0.0, math.inf)}, ValueError, "inf"),
        ({"unknown": 1}, TypeError, "unknown"),
    ],
)
def test_bad_input_to_bits_per_dim(options: dict[str, Any], error: type[Exception], shown: str) -> None:
    """Integers in the range only, and no unknown option."""
    given_options = {"images": torch.tensor([[1, 2]]), "n_levels": 256, "data_range": (-1.0, 1.0), **options}
    with pytest.raises(error, match=shown):
        sg.bits_per_dim(SCORE, VP, **given_options)


@pytest.mark.parametrize(
    ("make", "error", "shown"),
    [
        (lambda: FixedGrid(5), ValueError, "5"),
        (lambda: FixedGrid(10.5), ValueError, "10.5"),  # type: ignore[arg-type]
        (lambda: FixedGrid(math.inf), ValueError, "got inf"),  # type: ignore[arg-type]
        (lambda: FixedGrid(data_std=0.0), ValueError, "0.0"),
        (lambda: FixedGrid(atol=-1.0), ValueError, "-1.0"),
        (lambda: FixedGrid(atol=0.0), ValueError, "both"),
        (lambda: AdaptiveFlow(data_std=-1.0), ValueError, "-1.0"),
        (lambda: AdaptiveFlow(rtol=-1.0), ValueError, "-1.0"),
        (lambda: AdjointFlow(atol=math.nan), ValueError, "nan"),
        (lambda: ScipyRK45(rtol=math.inf), ValueError, "inf"),
        (lambda: Hutchinson(0), ValueError, "0"),
        (lambda: Hutchinson(2.0), ValueError, "n_probes must be an integer of at least 1, got 2.0"),  # type: ignore[arg-type]
        (lambda: Hutchinson(probe="uniform"), ValueError, "uniform"),
        (lambda: Hutchinson(basis="wavelet"), ValueError, "wavelet"),
        (lambda: Exact(0), ValueError, "0"),
    ],
)
def test_bad_options(make: Callable[[], object], error: type[Exception], shown: str) -> None:
    """Of a method or a trace, where they are written."""
    with pytest.raises(error, match=shown):
        make()
