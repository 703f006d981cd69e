"""Probes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.engine.noise import SampleSeeds
from sgm_sde.likelihood import (
    Exact,
    FixedGrid,
    Hutchinson,
    choose_probe_basis,
)
from sgm_sde.likelihood.trace import probe_transform
from tests.helpers import DONATES, F64, LINEAR, Square, UsedUp
from tests.likelihood.cases import points

VP = LINEAR["vp"]
X = torch.tensor([[0.3, -0.2], [1.0, 0.5], [-1.0, 0.1]], dtype=F64)
COUPLED = sg.oracles.Gaussian(torch.zeros(6), 0.3 * torch.eye(6) + 0.2 * torch.ones(6, 6))


@pytest.mark.parametrize(
    ("n_probes", "probe"), [(1, "rademacher"), (2, "rademacher"), (8, "rademacher"), (4, "gaussian")]
)
def test_standard_errors_cover_the_truth(n_probes: int, probe: str) -> None:
    """Over many seeds the estimates scatter about the exact trace's value as their standard errors say."""
    sde = LINEAR["vp"]
    x = COUPLED.sample(1, sde, 1e-5, seed=0, dtype=F64).expand(1600, -1)
    exactly = sg.log_prob(COUPLED.score(sde), sde, x[:1], trace="exact").value
    # On a grid that stays: samples of so few dimensions that leave it have their exact trace.
    res = sg.log_prob(COUPLED.score(sde), sde, x, seed=1, trace=Hutchinson(n_probes, probe=probe), method=FixedGrid(48))
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
    probes = Hutchinson(2, probe="gaussian")
    gaussian = sg.log_prob(oracle.score(sde), sde, x, seed=0, trace=probes, method=FixedGrid(48))
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
def test_a_pilot_finds_the_right_basis(basis: str) -> None:
    """At the cost it says, and it is used as if it were given."""
    sde, oracle = LINEAR["vp"], in_basis(basis)
    x = oracle.sample(1, sde, 1e-5, seed=0, dtype=F64)
    score, several = oracle.score(sde), x.expand(4, -1, -1, -1)
    pilot = choose_probe_basis(score, sde, several, seed=0)
    assert pilot.basis == basis
    assert (pilot.nfe, pilot.vjps) == (3 * 17, 3 * 17 * 3)
    assert pilot.variances[basis] == min(pilot.variances.values())
    chosen = sg.log_prob(score, sde, several, method=FixedGrid(12), trace=Hutchinson(basis="pilot"), seed=0)
    again = sg.log_prob(score, sde, several, method=FixedGrid(12), trace=Hutchinson(basis=pilot), seed=0)
    torch.testing.assert_close(chosen.value, again.value, rtol=0, atol=0)
    assert "chosen by a pilot" in str(chosen.protocol)
    assert chosen.nfe == again.nfe + pilot.nfe
    if basis != "pixel":
        assert f"in the {basis} basis" in str(again.protocol)


@pytest.mark.parametrize("basis", ["pixel", "colour", "dct"])
@pytest.mark.parametrize("other", ["pixel", "colour", "dct"])
def test_the_right_basis_leaves_no_variance(basis: str, other: str) -> None:
    """Where it makes the Jacobian diagonal; others are unbiased."""
    sde, oracle = LINEAR["vp"], in_basis(basis)
    x = oracle.sample(1, sde, 1e-5, seed=0, dtype=F64)
    score, exactly = (
        oracle.score(sde),
        sg.log_prob(oracle.score(sde), sde, x, trace="exact", method=FixedGrid(12)).value,
    )
    many = x.expand(100, -1, -1, -1)

    res = sg.log_prob(score, sde, many, method=FixedGrid(12), trace=Hutchinson(basis=other), seed=0)
    if other == basis:
        torch.testing.assert_close(res.value, exactly.expand(100), rtol=1e-9, atol=1e-9)
    else:
        assert float(res.value.std()) > 1e-3
        assert abs(float((res.value - exactly).mean())) < 4 * float(res.value.std()) / 10


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
    fresh, fixed = (
        sg.log_prob(COUPLED.score(sde), sde, x, seed=0, trace="hutchinson", method=method).value.var()
        for method in (FixedGrid(48), "rk45-scipy")
    )
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


@pytest.mark.parametrize(
    "trace", [Exact(), Exact(chunk=2), Hutchinson(), Hutchinson(2), Hutchinson(3, probe="gaussian")], ids=str
)
def test_the_traces_of_some_samples(trace: sg.likelihood.Trace) -> None:
    """Of a batch that the network sees as a whole, those of some samples are what they are among all."""
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = x.tanh().cumsum(1)
    seeds = SampleSeeds(0, range(5))
    seen = torch.tensor([3, 0])
    of_all = trace.estimate(x, seeds, True)(out, x, None, False)
    of_some = trace.estimate(x, seeds, True)(out, x, None, False, seen)
    torch.testing.assert_close(of_some, of_all[seen], rtol=0, atol=0, equal_nan=True)


def once(x: Tensor, t: Tensor) -> Tensor:
    """A score of which one product is to be had."""
    return -x - UsedUp.apply(x) / 8


def often(x: Tensor, t: Tensor) -> Tensor:
    """The same of which any number is."""
    return -x - x**2 / 8


@DONATES
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_networks_whose_graphs_give_a_single_product(trace: str) -> None:
    """They are asked again for each product, which are counted, and three times for what a function may lose that has a
    derivative of its own: the values are those of the others, probes included."""
    options: dict[str, Any] = {"method": FixedGrid(8), "trace": trace, "seed": 0}
    found = sg.log_prob(once, VP, X, **options)
    expected = sg.log_prob(often, VP, X, **options)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-12, atol=1e-12)
    assert (expected.nfe, expected.vjps) == (9, 18)
    assert (found.nfe, found.vjps) == (27 + 3, 18 + 1)


@DONATES
def test_second_derivatives_of_compiled_networks_are_refused() -> None:
    with pytest.raises(
        ValueError, match="enable_grad=True takes second ones here: give it the network as it was before"
    ):
        sg.log_prob(once, VP, X, method=FixedGrid(8), enable_grad=True)


class _InPlace(Square):
    """The square, whose product with a vector is written where vmap cannot follow, as compiled functions do."""

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.mul(2 * x, v, out=torch.empty_like(x))


def test_rows_at_once_of_a_network_that_vmap_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"trace=Exact\(chunk=2\) takes several rows at once by vmap.* take Exact\(\)"):
        sg.log_prob(lambda x, t: -x - _InPlace.apply(x), VP, X, method=FixedGrid(8), trace=Exact(2))


@pytest.mark.slow
def test_a_compiled_network_whose_parameters_are_not_frozen() -> None:
    """By torch.compile, of any number of samples, where its graph gives a single product."""
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    compiled = torch.compile(net, backend="aot_eager", dynamic=True)
    found, expected = (
        sg.log_prob(lambda x, t, of=of: of(x) - x, VP, X, method=FixedGrid(8), seed=0) for of in (compiled, net)
    )
    torch.testing.assert_close(found.value, expected.value, rtol=1e-10, atol=1e-10)
    assert (found.nfe, expected.nfe) == (27, 9)
    assert all(p.requires_grad for p in net.parameters())
