"""Likelihoods on processes with a matrix: joint densities, and the bound by the velocity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import sgm_sde as sg
from benchmarks.cld_defaults import THIRD
from sgm_sde.likelihood import FixedGrid, Hutchinson
from sgm_sde.testing import default_oracle
from tests.helpers import F64
from tests.processes.matrix_cases import CRITICAL, UNDER


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_joint_likelihood(kind: str) -> None:
    """With the latent's own density in the place of the prior's the value is the oracle's; probes have their error."""
    oracle, eps = default_oracle(kind), 0.01
    z = oracle.sample(6, CRITICAL, eps, seed=0, dtype=F64)
    exact = oracle.log_prob(z, CRITICAL, eps)
    result = sg.log_prob(oracle.score(CRITICAL), CRITICAL, z, trace="exact", eps=eps, method=FixedGrid(40))
    at_T = oracle.log_prob(result.latent, CRITICAL, 1.0)
    assert float((result.divergence + at_T - exact).abs().max()) < 2e-3
    assert result.nfe == 4 * (40 + 20) + 2 and torch.equal(result.prior, CRITICAL.prior_log_prob(result.latent))
    fuzzy = sg.likelihood.joint_log_prob(
        oracle.score(CRITICAL), CRITICAL, z, eps=eps, method=FixedGrid(40), trace=Hutchinson(4), seed=0
    )
    assert float(((fuzzy.value - result.value) / fuzzy.stderr).abs().max()) < 5
    assert bool((fuzzy.stderr > 0).all())


UNEQUAL = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1, [0.3, 0.7])


@pytest.mark.parametrize(
    ("sde", "dtype"),
    [(CRITICAL, torch.float32), (CRITICAL, F64), (UNDER, F64), (THIRD, F64)],
    ids=["critical-float32", "critical", "under", "third"],
)
@pytest.mark.parametrize(
    "oracle", [sg.oracles.Gaussian(torch.tensor([0.3]), 0.25), UNEQUAL], ids=["gaussian", "mixture"]
)
def test_the_error_of_a_joint_density_bounds_it(oracle: Any, sde: sg.processes.MatrixSDE, dtype: torch.dtype) -> None:
    """Against the process' own law, from which the prior is some way off, in 95 % of points; and not by far."""
    eps = 1e-3
    z = oracle.sample(40, sde, eps, seed=0, dtype=dtype)
    result = sg.log_prob(oracle.score(sde), sde, z, eps=eps, method=FixedGrid(48))
    off = (result.value - oracle.log_prob(z.double(), sde, eps)).abs()
    assert float((off <= result.error).double().mean()) >= 0.95
    assert float(result.error.median()) < 30 * float(off.median())

    low, high = result.interval(0.95)
    assert bool((low < result.value).all()) and bool((result.value < high).all())
    assert result.unresolved == () and not result.error.requires_grad


@pytest.mark.slow
def test_joint_densities_go_on_until_the_tolerance() -> None:
    """Samples within it keep their value, whatever the others; what does not arrive is named, with a warning."""
    oracle, eps = UNEQUAL, 1e-2
    z = oracle.sample(6, CRITICAL, eps, seed=0, dtype=F64)
    score = oracle.score(CRITICAL)
    loose = sg.log_prob(score, CRITICAL, z, eps=eps, method=FixedGrid(atol=1.0))
    assert loose.nfe == 4 * (48 + 24) + 2 and loose.unresolved == ()
    assert torch.equal(loose.value, sg.log_prob(score, CRITICAL, z, eps=eps, method=FixedGrid(48)).value)

    alone = sg.log_prob(score, CRITICAL, z[2:3], eps=eps)
    among = sg.log_prob(score, CRITICAL, z, eps=eps)
    assert among.nfe > loose.nfe and bool((among.error <= loose.error).all())
    torch.testing.assert_close(among.value[2:3], alone.value, rtol=0, atol=1e-12)
    with pytest.warns(sg.likelihood.LikelihoodWarning, match="did not come down to the tolerance"):
        beyond = sg.log_prob(score, CRITICAL, z[:1], eps=eps, method=FixedGrid(atol=1e-13))
    assert beyond.unresolved == (0,) and beyond.reasons == ("error",)


def test_the_velocity_bound_is_below_the_density_and_not_far() -> None:
    """The mean gap is the divergence from the velocity's law at t = 0 to its law given the data: 0 at eps -> 0."""
    oracle, eps = sg.oracles.Gaussian(torch.zeros(3), 0.25), 1e-3
    x = oracle.sample(400, seed=3, dtype=F64)
    bound = sg.likelihood.velocity_bound(
        oracle.score(CRITICAL), CRITICAL, x, seed=0, trace="exact", eps=eps, method=FixedGrid(24)
    )
    # The joint law at eps is a Gaussian: the bound's mean over q(x) q(v) is known.
    mu, covariance = (v.numpy() for v in CRITICAL.kernel(torch.tensor(eps, dtype=F64)))
    joint = 0.25 * np.outer(mu, mu) + covariance
    moments = np.diag([0.25, CRITICAL.gamma * CRITICAL.mass])
    cross = 0.5 * (np.trace(np.linalg.solve(joint, moments)) + np.linalg.slogdet(2 * math.pi * joint)[1])
    entropy = 0.5 * math.log(2 * math.pi * math.e * CRITICAL.gamma * CRITICAL.mass)
    expected = 3 * (entropy - cross)
    error = float(bound.value.std()) / math.sqrt(len(x))
    assert abs(float(bound.value.mean()) - expected) < 4 * error + 0.03  # steps and the prior's mismatch
    assert expected < 3 * (-0.5 * math.log(2 * math.pi * math.e * 0.25)) + 1e-3
    levels = ((x + 2) * 4).long().clamp(0, 15)  # of this density: fewer bits than the 4 of a uniform guess
    options: dict[str, Any] = {"seed": 0, "trace": "exact", "eps": eps, "method": FixedGrid(24)}
    bits = sg.bits_per_dim(oracle.score(CRITICAL), CRITICAL, levels, n_levels=16, data_range=(-2.0, 2.0), **options)
    of_the_density = math.log2(16 / 4) - float(bound.value.mean()) / (3 * math.log(2))
    assert abs(bits.value - of_the_density) < 4 * bits.stderr and bits.value < 4
    assert "velocity draw" in bits.protocol
