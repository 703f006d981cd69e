"""Errors as stated."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import benchmarks.likelihood
import sgm_sde as sg
from benchmarks import bed_networks, rough_scores
from benchmarks.likelihood_error import PROCESSES, ROUGH_PROCESSES
from sgm_sde.engine.noise import resolve_seeds
from sgm_sde.likelihood import (
    AdaptiveFlow,
    AdjointFlow,
    Exact,
    FixedGrid,
    Hutchinson,
    LikelihoodWarning,
)
from sgm_sde.likelihood.errors import PLAUSIBLE, of_kinks, plausible_share, quadrature_error
from sgm_sde.likelihood.multistep import quadrature
from tests.conventions import some_slow
from tests.helpers import F64, LINEAR, MIXTURE
from tests.likelihood.cases import RIDGE, VP, exact, with_wave

SCALES = torch.tensor([1.0, 1e-3], dtype=F64).repeat_interleave(4)


STATED: dict[str, tuple[sg.oracles.Oracle, float]] = {
    "narrow": (sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 1e-6), 0.0),
    "wide": (sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 900.0), 0.0),
    "two scales": (sg.oracles.Gaussian(torch.zeros(8, dtype=F64), torch.diag(SCALES**2)), 0.0),
    "mixture": (MIXTURE, 0.0),
    "off the data": (MIXTURE, 1.0),
}


@pytest.mark.parametrize("process", ["vp", "edm", *some_slow(["ve", "flow"])])
@pytest.mark.parametrize("name", list(STATED))
def test_the_error_is_the_stated_one(name: str, process: str) -> None:
    """`error` bounds what is off in nearly all points, on one grid; the default is within its tolerance, and its error
    within a factor of 5 of what is off in the median, or of 15 by the adaptive solver, to which wide data go."""
    (oracle, off), sde = STATED[name], LINEAR[process]
    x = oracle.sample(12, sde, sde.likelihood_eps, seed=0, dtype=F64)
    x = x + off * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    d, known = x[0].numel(), oracle.log_prob(x, sde, sde.likelihood_eps)
    options: dict[str, Any] = {"prior": lambda z: oracle.log_prob(z, sde, sde.T), "trace": "exact"}
    grid = sg.log_prob(oracle.score(sde), sde, x, method=FixedGrid(48), **options)
    off_by = (grid.value - known).abs() / d
    assert int((off_by > grid.error / d + 1e-6).sum()) <= 1
    res = sg.log_prob(oracle.score(sde), sde, x, **options)
    off_by = (res.value - known).abs() / d
    assert float(off_by.max()) < 2e-4
    assert bool((res.error <= 1e-4 * d).all()) and res.unresolved == () and res.status.ok
    factor = (res.error / d).clamp(min=1e-6) / off_by.clamp(min=1e-6)
    assert float(factor.log().abs().median()) < math.log(15 if name == "wide" else 5)


@pytest.mark.slow
def test_a_wave_that_no_grid_resolves() -> None:
    """The rules of two grids agree by chance, and so do their values: the roughness, which does not fall, tells."""
    sde = LINEAR["edm"]
    score = benchmarks.likelihood.with_wave(MIXTURE.score(sde), 0.001, 12)
    x = MIXTURE.sample(24, sde, sde.likelihood_eps, seed=0, dtype=F64)
    known = sg.log_prob(score, sde, x, method=AdaptiveFlow(1e-8, 1e-8)).value
    res = sg.log_prob(score, sde, x)
    off = (res.value - known).abs() / 2
    assert float((off <= res.error / 2 + 1e-6).double().mean()) > 0.9
    assert float(off.quantile(0.95)) < 1e-4


NODES = torch.arange(65, dtype=F64)
RULES = quadrature(NODES.numpy(), np.ones_like)


def kinks_of(values: Tensor) -> float:
    """What kinks seem to leave in the integral of what has these values at even nodes, a step of 1 apart."""
    return float(of_kinks((torch.from_numpy(RULES.remainders) @ values)[:, :, None]))


@pytest.mark.parametrize("place", [30.05, 30.2, 30.35, 30.5, 30.65])
def test_what_a_kink_leaves_is_seen(place: float) -> None:
    """In the integral of |k - place|: 0.12 at most, by where between two nodes it is."""
    off = float(torch.from_numpy(RULES.weights) @ (NODES - place).abs()) - (place**2 + (64 - place) ** 2) / 2
    assert abs(off) < 2 * kinks_of((NODES - place).abs()) < 0.8


@pytest.mark.parametrize("place", [30.05, 30.2, 30.35, 30.5, 30.65])
def test_what_a_jump_leaves_is_seen(place: float) -> None:
    """In the integral of 1 beyond the place: half a step at most, and 0.29 of it as the root of the mean square."""
    beyond = (place < NODES).double()
    off = float(torch.from_numpy(RULES.weights) @ beyond) - (64 - place)
    assert abs(off) < kinks_of(beyond)
    assert kinks_of(beyond) == pytest.approx(2 / 12**0.5, rel=0.1)


@pytest.mark.parametrize("frequency", [0.3, 0.6, 0.9])
def test_what_is_smooth_has_no_kinks(frequency: float) -> None:
    """Waves of seven nodes and more: less than rules of more slopes tell of their error."""
    values = (frequency * NODES).sin()
    error, _ = quadrature_error(values[:, None], RULES, longest=0.2)
    assert kinks_of(values) < 0.2 * float(error)


@pytest.mark.parametrize("number", [pytest.param(37, marks=pytest.mark.slow), 62])
def test_kinks_of_a_network_are_seen_on_the_first_grid(number: int) -> None:
    """Those of random directions of x and time, and of triangular waves: points stopped there, a fifth of them off by
    more than they stated."""
    _, score, modes = rough_scores.rough(number, {name: PROCESSES[name] for name in ROUGH_PROCESSES})
    sde: Any = score.sde
    x = modes.sample(16, sde, sde.likelihood_eps, seed=number, dtype=F64)
    d = x[0].numel()
    known = sg.log_prob(score, sde, x, method=AdaptiveFlow(1e-9, 1e-9), trace="exact").value
    res = sg.log_prob(score, sde, x, trace="exact")
    assert float(((res.value - known).abs() <= res.error + 1e-6 * d).double().mean()) > 0.9


@pytest.mark.parametrize("steps", [24, 48])
@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
def test_a_score_off_by_a_factor(process: str, steps: int) -> None:
    """That of no density of the flow's: for Gaussian data the flow is a scaling still, and its value known."""
    sde, s, factor = LINEAR[process], 0.3, 1.1
    eps = sde.likelihood_eps

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return factor * sigma / (s**2 * alpha**2 + sigma**2) * x

    # d log(x / alpha) / d lambda = -factor sigma^2 / (alpha^2 s^2 + sigma^2), whose integral is elementary.
    (low, high) = (float(sde.log_snr(t)) / 2 for t in (sde.T, eps))
    below, above = (math.log(s**2 + math.exp(-2 * lam)) for lam in (low, high))
    grown = factor / 2 * (below - above)
    scale = math.log(float(sde.alpha(torch.tensor(sde.T))) / float(sde.alpha(torch.tensor(eps)))) + grown
    x = s * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    known = sde.prior_log_prob(math.exp(scale) * x) + 2 * scale

    res = sg.log_prob(sg.from_noise(noise, sde), sde, x, method=FixedGrid(steps))
    off = (res.value - known).abs()
    assert bool((off <= res.error + 2e-6).all())
    assert float((res.error / off).median()) < 5


@pytest.mark.parametrize("process", ["vp", *some_slow(["edm", "flow"])])
def test_a_bias_that_is_the_same_at_all_times(process: str) -> None:
    """Of a noise estimate, as networks have it: the score is that of no flow, and the error the stated one."""
    sde = LINEAR[process]

    def noise(x: Tensor, t: Tensor) -> Tensor:
        width = 0.5 * sde.alpha(t)[:, None] + sde.sigma(t)[:, None]
        return MIXTURE.score(sde).predict("noise", x, t) + 0.05 * (3 * x / width).sin()

    score = sg.from_noise(noise, sde)
    x = MIXTURE.sample(24, sde, sde.likelihood_eps, seed=0, dtype=F64)
    known = sg.log_prob(score, sde, x, method=AdaptiveFlow(1e-9, 1e-9)).value
    res = sg.log_prob(score, sde, x)
    off = (res.value - known).abs() / x[0].numel()
    assert float((off <= res.error / x[0].numel() + 1e-6).double().mean()) > 0.9
    assert float(off.quantile(0.95)) < 1e-4


def test_a_rough_score_meets_finer_grids() -> None:
    """With the exact trace, where the integral is what is inexact: they know their error."""
    sde = LINEAR["edm"]
    score = benchmarks.likelihood.with_wave(MIXTURE.score(sde), 0.003, 3)
    x = MIXTURE.sample(24, sde, sde.likelihood_eps, seed=0, dtype=F64)
    d = x[0].numel()
    known = sg.log_prob(score, sde, x, method=AdaptiveFlow(1e-9, 1e-9)).value
    res = sg.log_prob(score, sde, x, trace="exact")
    assert res.status.ok and bool((res.error <= 1e-4 * d).all())
    assert not bool(res.defect.isnan().any())
    assert float(((res.value - known).abs() <= res.error + 1e-6 * d).double().mean()) > 0.95


def test_what_more_slopes_add_does_not_cancel_by_chance() -> None:
    """Of a small wave between the nodes of the first grid: few points stop there, and their error is the stated one."""
    means = torch.tensor([[-0.8, 0.3], [0.9, -0.2], [0.1, 1.0]], dtype=F64)
    modes = sg.oracles.GaussianMixture(means, torch.tensor([[0.15], [0.25], [0.3]], dtype=F64).expand(3, 2))
    sde = LINEAR["edm"]
    score = benchmarks.likelihood.with_wave(modes.score(sde), 0.001, 3)
    x = modes.sample(64, sde, sde.likelihood_eps, seed=9, dtype=F64)
    known = sg.log_prob(score, sde, x, method=AdaptiveFlow(1e-8, 1e-8)).value
    res = sg.log_prob(score, sde, x)
    assert float(((res.value - known).abs() <= res.error + 2e-6).double().mean()) > 0.95


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
    assert not res.status and res.status.samples == (0, 1)
    assert str(res.status) == "the numerical error of 2 of 2 samples did not come down to the tolerance of " + repr(
        res.method
    )


@functools.cache
def on_the_ridge(trace: str, **options: Any) -> sg.likelihood.LogProbResult:
    """Five points, of which some are refined."""
    x = torch.tensor([[1.0, 0.0], [0.1, 0.1], [-1.0, 0.2], [0.4, 0.3], [0.9, -0.2]], dtype=F64)
    return sg.log_prob(RIDGE.score(LINEAR["vp"]), LINEAR["vp"], x, trace=trace, seed=0, **options)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("batch_size", [2, *some_slow([1, 5])])
def test_parts_of_a_batch(trace: str, batch_size: int) -> None:
    """Values do not depend on how many samples are run at once, refined ones neither."""
    whole, parts = on_the_ridge(trace), on_the_ridge(trace, batch_size=batch_size)
    torch.testing.assert_close(parts.value, whole.value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts.stderr, whole.stderr, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("probe", "n_probes"), [("rademacher", 1), pytest.param("gaussian", 4, marks=pytest.mark.slow)]
)
def test_what_leaves_the_grid_has_an_exact_trace_in_few_dimensions(probe: str, n_probes: int) -> None:
    """The spread of a few probes that stay the same says nothing there: four of two entries are all alike at times."""
    sde = LINEAR["vp"]
    method = FixedGrid(atol=1e-3)
    score = with_wave("vp", 0.2, 3)
    x = MIXTURE.sample(3, sde, sde.likelihood_eps, seed=0, dtype=F64)
    res = sg.log_prob(score, sde, x, trace=Hutchinson(n_probes, probe), method=method, seed=0)
    exactly = sg.log_prob(score, sde, x, trace="exact", method=method)
    left = res.defect.isnan()
    assert bool(left.any())
    assert bool((res.stderr[left] == 0).all())
    assert bool((res.freedom[left] == math.inf).all())
    torch.testing.assert_close(res.value[left], exactly.value[left], rtol=0, atol=4e-3)  # twice the tolerance


@pytest.mark.parametrize(
    "d, said", [(16, "by its exact trace"), (17, "Hutchinson's estimate with 1 rademacher probe, fresh")]
)
def test_the_trace_is_exact_in_few_dimensions(d: int, said: str) -> None:
    """By default; the protocol says which it was."""
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


@pytest.mark.parametrize("n_probes", [1, 2])
@pytest.mark.parametrize("size", [0.0, 0.5, 3.0])
def test_a_skew_jacobian_leaves_the_standard_error_alone(n_probes: int, size: float) -> None:
    """It is the spread over seeds, whatever antisymmetric matrix a network's Jacobian has in it: z^T A z is 0."""
    sde, d, n = LINEAR["vp"], 8, 200
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, d, d, generator=generator, dtype=F64) / d**0.5
    symmetric = torch.eye(d, dtype=F64) + 0.15 * (one + one.T)
    x = (0.5 * torch.randn(1, d, generator=generator, dtype=F64)).expand(n, d)

    matrix = symmetric + size / 2 * (other - other.T)

    def noise(x: Tensor, t: Tensor, matrix: Tensor = matrix) -> Tensor:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return sigma / (0.25 * alpha**2 + sigma**2) * (x @ matrix)

    score, method = sg.from_noise(noise, sde), FixedGrid(32)
    exactly = sg.log_prob(score, sde, x[:1], trace="exact", method=method).value
    res = sg.log_prob(score, sde, x, trace=Hutchinson(n_probes), method=method, seed=list(range(n)))
    spread = (res.value - exactly).square().mean().sqrt()
    stated = res.stderr.square().mean().sqrt()
    assert 0.8 < float(stated / spread) < 1.2


def test_steps_off_a_ridge_state_their_error() -> None:
    """The difference of the embedded errors of state and volume tells nothing of a step's, and their sizes do; they are
    too small where the flow leaves the ridge between two modes, and are raised there."""
    modes = sg.oracles.GaussianMixture(torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=F64), 0.15)
    sde = LINEAR["ve"]
    x = modes.sample(24, sde, sde.likelihood_eps, seed=0, dtype=F64)
    x = x + 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=F64)
    options: dict[str, Any] = {"prior": lambda z: modes.log_prob(z, sde, sde.T), "trace": "exact"}
    res = sg.log_prob(modes.score(sde), sde, x, method=AdaptiveFlow(1e-5, 1e-5), **options)
    off = (res.value - modes.log_prob(x, sde, sde.likelihood_eps)).abs()
    assert float((off > 4e-4).double().mean()) > 0.1  # which 1e-5 a step leaves
    assert float((off <= res.error + 4e-6).double().mean()) > 0.95


@pytest.mark.parametrize("method", ["rk45-scipy", "dopri5-adjoint"])
@pytest.mark.parametrize("process", ["vp", "ve", "flow"])
def test_solvers_of_a_whole_batch_state_their_error(process: str, method: str) -> None:
    """From the embedded errors of their steps, which the interval contains."""
    sde = LINEAR[process]
    x = MIXTURE.sample(24, sde, sde.likelihood_eps, seed=0, dtype=F64)
    options: dict[str, Any] = {"prior": lambda z: MIXTURE.log_prob(z, sde, sde.T), "trace": "exact"}
    res = sg.log_prob(MIXTURE.score(sde), sde, x, method=method, **options)
    known = MIXTURE.log_prob(x, sde, sde.likelihood_eps)
    assert float(((res.value - known).abs() <= res.error + 2e-6).double().mean()) > 0.95
    assert float(res.error.max()) < 2e-2
    low, high = res.interval()
    torch.testing.assert_close(high - low, 2 * res.error)


@pytest.mark.parametrize("method", [FixedGrid(), FixedGrid(192), AdaptiveFlow()])
@pytest.mark.parametrize("process", ["vp", *some_slow(["ve", "edm"])])
def test_rounding_is_in_the_error(process: str, method: FixedGrid | AdaptiveFlow) -> None:
    """In float32, of what is exact in float64 but for a hundredth of it: data of the grid's own spread."""
    sde, oracle = LINEAR[process], sg.oracles.Gaussian(torch.zeros(16), 0.25)
    x = oracle.sample(64, sde, sde.likelihood_eps, seed=0)
    options: dict[str, Any] = {"prior": lambda z: oracle.log_prob(z, sde, sde.T), "method": method, "trace": "exact"}
    known = oracle.log_prob(x.double(), sde, sde.likelihood_eps)
    res = sg.log_prob(oracle.score(sde), sde, x, **options)
    off = (res.value.double() - known).abs()
    assert res.value.dtype == res.error.dtype == torch.float32
    assert float((off <= res.error).double().mean()) > 0.95
    assert float((res.error / off.clamp(min=1e-7)).median()) < 30
    fine = sg.log_prob(oracle.score(sde), sde, x.double(), **options)
    assert float(fine.error.max()) < 0.1 * float(res.error.min())


def test_a_score_that_grows_on_a_flow_that_does_not_is_not_the_flow_s() -> None:
    """Where the noise falls to a thousandth a score of pure error grows by a thousand, and that of data as wide as the
    noise as much as the flow contracts."""
    noise = torch.logspace(0, -3, 7, dtype=F64)[:, None]
    trusted = [1.0, 1.0, *[0.0] * 5]
    contracts = torch.full((6, 1), math.log(10) / 2, dtype=F64)
    share = plausible_share(2 / noise, contracts, trusted, 4)
    torch.testing.assert_close(share, torch.ones_like(share))

    still = plausible_share(2 / noise, torch.zeros_like(contracts), trusted, 4)[2:]
    last_trusted = 2 / noise[1]
    torch.testing.assert_close(still, (PLAUSIBLE * last_trusted / (2 / noise[2:])).clamp(max=1.0))


@pytest.mark.parametrize("name", ["moons-flow-0", *some_slow(["moons-flow-1", "moons-vp-1"])])
def test_networks_in_single_precision_are_known_as_well_as_in_double(name: str) -> None:
    """At next to no noise their score is what they are off over the noise, and says nothing of what rounding does."""
    x = bed_networks.moons(24, torch.Generator().manual_seed(5))
    in_single, in_double = (bed_networks.score(name, bed_networks.trained(name).to(t)) for t in (torch.float32, F64))
    options: dict[str, Any] = {"method": FixedGrid(75), "trace": "exact"}
    known = sg.log_prob(in_double, in_double.sde, x.double(), method=FixedGrid(600), trace="exact")
    double = sg.log_prob(in_double, in_double.sde, x.double(), **options)
    single = sg.log_prob(in_single, in_single.sde, x, **options)
    off = (single.value.double() - known.value).abs()
    assert float((off <= single.error + 2e-6).double().mean()) > 0.9
    assert float((single.error / double.error).median()) < 1.5


def test_the_error_of_a_batch_s_steps_with_gradients() -> None:
    """Is what it is without: the adjoint's way back adds nothing to it."""
    sde = LINEAR["vp"]
    x = MIXTURE.sample(4, sde, sde.likelihood_eps, seed=0, dtype=F64).requires_grad_()
    options: dict[str, Any] = {"method": "dopri5-adjoint", "trace": "exact"}
    plain = sg.log_prob(MIXTURE.score(sde), sde, x, **options)
    res = sg.log_prob(MIXTURE.score(sde), sde, x, enable_grad=True, **options)
    res.value.sum().backward()
    assert not res.error.requires_grad and x.grad is not None
    torch.testing.assert_close(res.error, plain.error)


def test_errors_of_torchdiffeq_s_steps_are_those_of_the_pair() -> None:
    """What is made of the slopes it asks for is Dormand and Prince's own embedded error."""
    sde = LINEAR["vp"]
    x = MIXTURE.sample(1, sde, sde.likelihood_eps, seed=0, dtype=F64)
    by_batch, alone = (
        sg.log_prob(MIXTURE.score(sde), sde, x, method=method, trace="exact").error
        for method in (AdjointFlow(1e-7, 1e-7), AdaptiveFlow(1e-7, 1e-7))
    )
    assert 1 / 3 < float(by_batch / alone) < 3  # the two choose their steps by other rules


@pytest.mark.parametrize("tol", [1e-5, 1e-6])
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_steps_whose_errors_have_one_sign(process: str, tol: float) -> None:
    """On narrow Gaussian data all errors of an adaptive solver's steps do: it states a seventh, and still a bound."""
    sde, oracle = LINEAR[process], STATED["narrow"][0]
    x = oracle.sample(12, sde, sde.likelihood_eps, seed=0, dtype=F64)
    options: dict[str, Any] = {"prior": lambda z: oracle.log_prob(z, sde, sde.T), "trace": "exact"}
    res = sg.log_prob(oracle.score(sde), sde, x, method=AdaptiveFlow(tol, tol), **options)
    off = (res.value - oracle.log_prob(x, sde, sde.likelihood_eps)).abs()
    assert bool((off <= res.error).all())
    assert float((res.error / off).median()) < 6


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


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.checks.LikelihoodWarning")
@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize(("solver", "nfe"), [("dpm++3m", 8), ("dpm++3m", 12), ("heun", 24), ("ddim", 16)])
def test_few_calls_state_their_error(solver: str, nfe: int, process: str) -> None:
    """Of samples with their density along a coarse grid, where how integrals converge is chance."""
    sde = LINEAR[process]
    z = sde.prior_sample((64, 2), seed=1, dtype=F64)
    found = sg.sample(MIXTURE.score(sde), sde, x_T=z, solver=solver, nfe=nfe, seed=0, log_prob=True)
    assert found.log_prob is not None
    gap = MIXTURE.log_prob(z, sde, sde.T) - sde.prior_log_prob(z)
    off = (found.log_prob.value + gap - MIXTURE.log_prob(found.x, sde, found.log_prob.protocol.eps)).abs()
    assert float((off <= found.log_prob.error + 2e-6).double().mean()) > 0.95


@pytest.mark.parametrize(("process", "solver", "nfe"), [("edm", "ddim", 48), ("ve", "ddim", 24), ("ve", "ddim", 48)])
def test_samples_of_a_biased_score_state_their_error(process: str, solver: str, nfe: int) -> None:
    """The bias shows where the prior is known, but for samples at which it is zero there."""
    sde = LINEAR[process]

    def noise(x: Tensor, t: Tensor) -> Tensor:
        width = 0.5 * sde.alpha(t)[:, None] + sde.sigma(t)[:, None]
        return MIXTURE.score(sde).predict("noise", x, t) + 0.02 * (3 * x / width).sin()

    score = sg.from_noise(noise, sde)
    z = sde.prior_sample((32, *MIXTURE.event_shape), seed=1, dtype=F64)
    found = sg.sample(score, sde, x_T=z, solver=solver, nfe=nfe, seed=0, log_prob="exact")
    assert found.log_prob is not None
    eps = found.log_prob.protocol.eps
    known = sg.log_prob(score, sde, found.x, eps=eps, method=AdaptiveFlow(1e-6, 1e-6)).value
    off = (found.log_prob.value - known).abs()
    assert float((off <= found.log_prob.error + 1e-5).double().mean()) > 0.9
    assert float((found.log_prob.error / off).median()) < 6


def test_densities_of_codes_need_to_be_asked_for() -> None:
    """Their options do nothing alone, and other methods have none."""
    z = torch.zeros(2, *MIXTURE.event_shape)
    with pytest.raises(ValueError, match="seed=0 is for log_prob=True"):
        sg.decode(MIXTURE.score(VP), VP, z, seed=0)
    with pytest.raises(ValueError, match=r"log_prob=True needs method=FixedGrid"):
        sg.decode(MIXTURE.score(VP), VP, z, log_prob=True, method="adaptive")


@pytest.mark.parametrize("option", [{"atol": 1e-6}, {"rtol": 1e-3}, {"max_calls": 100}], ids=str)
def test_densities_of_codes_are_of_one_grid(option: Any) -> None:
    """What refines it would do nothing."""
    with pytest.raises(ValueError, match=f"one grid, on which {next(iter(option))}=.* would do nothing: leave it out"):
        sg.decode(
            MIXTURE.score(VP), VP, torch.zeros(2, *MIXTURE.event_shape), log_prob=True, method=FixedGrid(**option)
        )


def test_densities_of_codes_that_are_not_known() -> None:
    """Those on too few steps, of a rough score, are named."""

    def noise(x: Tensor, t: Tensor) -> Tensor:
        return MIXTURE.score(VP).predict("noise", x, t) + 0.3 * (20 * x).sin()

    z = VP.prior_sample((8, *MIXTURE.event_shape), seed=0, dtype=F64)
    with pytest.warns(LikelihoodWarning, match=r"samples did not come down to the tolerance; .* is .* nats/dim"):
        found = sg.decode(sg.from_noise(noise, VP), VP, z, log_prob=True, method=FixedGrid(6))
    assert found.unresolved and not found.status and found.error is not None
    above = (found.error / 2 > 1).nonzero().flatten().tolist()
    assert list(found.unresolved) == above
