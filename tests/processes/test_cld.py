"""CLD by hand, and the loss of its networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks.cld_defaults import THIRD
from sgm_sde.processes.matrix import apply
from tests.helpers import F64
from tests.processes.matrix_cases import CRITICAL, moved


@pytest.mark.parametrize("friction", [0.2, 1.0, 3.0])
def test_cld_by_hand(friction: float) -> None:
    """Drift, diffusion, prior and initial law from the formulas; damping by the friction's ratio to 2 sqrt(M)."""
    sde = sg.CLD(mass=0.25, friction=friction, beta_min=2.0, beta_max=6.0, gamma=0.5)
    assert sde.damping == {0.2: "under", 1.0: "critical", 3.0: "over"}[friction]
    assert sde.A.rows == ((0.0, 4.0), (-1.0, -4 * friction))
    assert sde.D.rows == ((0.0, 0.0), (0.0, math.sqrt(2 * friction)))
    assert sde.prior_covariance.rows == ((1.0, 0.0), (0.0, 0.25))
    assert sde.initial_covariance.rows == ((0.0, 0.0), (0.0, 0.125))
    assert (float(sde.beta(0.0)), float(sde.beta(1.0)), float(sde.integrated_beta(1.0))) == (2.0, 6.0, 4.0)
    many = torch.tensor([[0.1, 1.0, 6.0]], dtype=F64)
    assert sde.transition_of_rate(many)[1].shape == (1, 3, 2, 2)
    assert sde.transition_of_rate(many.float())[1].dtype == torch.float32


@pytest.mark.parametrize("friction", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("B", [1e-3, 0.1, 1.0, 2.5, 6.0, 20.0])
def test_transitions_of_cld_by_hand(friction: float, B: float) -> None:
    """By the matrix exponential, over short times and long ones."""
    sde = sg.CLD(mass=0.25, friction=friction, beta_min=2.0, beta_max=6.0, gamma=0.5)
    A_, D_ = sde.A.array, sde.D.array

    phi, N = sde.transition_of_rate(torch.tensor(B, dtype=F64))
    expected = moved(A_, D_ @ D_.T, B)
    np.testing.assert_allclose(phi, expected[0], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(N, expected[1], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({}, 28.0),  # by the closed form: quadrature errs by 1e-10
        ({"friction": 1.5}, 27.0),
        ({"friction": 0.2}, 30.0),
        ({"friction": 200.0}, 8.0),  # by quadrature: the closed form cancels
        ({"friction": 200.0}, 15.9),
        ({"mass": 1e-4, "friction": 1e-8}, 15.9),
        ({"mass": 4e4}, 0.1),
    ],
)
def test_the_position_s_variance_keeps_its_digits(options: dict[str, float], reach: float) -> None:
    """Over so many e-foldings of the fastest mode of its square, against 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    sde = sg.CLD(**options)
    fastest = float(max(abs(np.linalg.eigvals(sde.A.array))))
    B = reach / (2 * fastest)
    with mpmath.workdps(50):
        m, friction = 1 / mpmath.mpf(sde.mass), mpmath.mpf(sde.friction)
        a, b = friction * m / 2, mpmath.mpf(B)
        w = mpmath.sqrt(a * a - m)
        S = mpmath.exp(-a * b) * (mpmath.sinh(w * b) / w if w else b)
        phi_xx = mpmath.exp(-a * b) * mpmath.cosh(w * b) + a * S
        exact = float(mpmath.re(1 - phi_xx**2 - m * S**2))
    assert float(sde.transition_of_rate(torch.tensor(B, dtype=F64))[1][0, 0]) == pytest.approx(exact, rel=2e-14, abs=0)


def test_limits_of_the_damping() -> None:
    """Critical within 1e-12 of the ratio 1, and no further."""
    assert [sg.CLD(friction=1 + d).damping for d in (9e-13, -9e-13)] == ["critical"] * 2
    assert [sg.CLD(friction=1 + d).damping for d in (1.5e-12, -1.5e-12)] == ["over", "under"]
    assert sg.CLD(mass=4.0).friction == 4.0
    assert [sg.CLD(mass=4.0, friction=f).damping for f in (3.0, 4.0, 5.0)] == ["under", "critical", "over"]
    assert (sg.CLD(beta_min=3.0).beta_max, sg.CLD(beta_max=7.0).beta_max) == (3.0, 7.0)


def test_hybrid_score_matching() -> None:
    """On Gaussian data the exact noise has the least loss, the noise's variance given the state."""
    sde, generator = CRITICAL, torch.Generator().manual_seed(0)
    oracle = sg.oracles.Gaussian(torch.zeros(1), 0.25)
    x0 = 0.5 * torch.randn(20000, 1, dtype=F64, generator=generator)
    t, noise = torch.full((20000,), 0.3, dtype=F64), torch.randn(20000, 2, 1, dtype=F64, generator=generator)
    score = oracle.score(sde)

    def exact(z: Tensor, t: Tensor) -> Tensor:
        return apply(torch.from_numpy(-node.L.T), score(z, 0.3))[:, 1]

    (node,) = sde.nodes([0.3])
    loss = sg.processes.hybrid_score_matching(exact, sde, x0, t, noise)
    joint = 0.25 * np.outer(node.mu, node.mu) + node.cov  # type: ignore[attr-defined]
    least = 1 - (node.L.T @ np.linalg.solve(joint, node.L))[1, 1]
    assert abs(float(loss.mean()) - least) < 4 * float(loss.std()) / math.sqrt(20000)
    assert float(sg.processes.hybrid_score_matching(lambda z, t: 1.1 * exact(z, t), sde, x0, t, noise).mean()) > least
    with pytest.raises(ValueError, match=r"shape \(4, 2, 1\) for data of shape \(4, 1\)"):
        sg.processes.hybrid_score_matching(lambda z, t: z, sde, x0[:4], t[:4], noise[:4])


def test_the_loss_of_each_sample() -> None:
    """The mean over the data's axes of the last block's squared error."""
    x0, noise = torch.zeros(2, 2, 2), torch.arange(16.0).reshape(2, 2, 2, 2)
    t = torch.ones(2)
    loss = sg.processes.hybrid_score_matching(
        lambda z, t, up: torch.full((2, 2, 2), up), CRITICAL, x0, t, noise, up=1.0
    )
    assert loss.tolist() == [(9 + 16 + 25 + 36) / 4, (11**2 + 12**2 + 13**2 + 14**2) / 4]


def test_the_loss_is_of_the_last_block() -> None:
    """Of three blocks the third."""
    noise = torch.zeros(1, 3, 1)
    noise[0, 2] = 2.0
    assert (
        sg.processes.hybrid_score_matching(lambda z, t: 0 * z[:, 0], THIRD, torch.ones(1, 1), torch.ones(1), noise)
        == 4.0
    )


def test_the_hybrid_loss_needs_a_matrix() -> None:
    zero, vp = torch.zeros(1, 2), sg.VPSDE()
    with pytest.raises(TypeError, match=r"for a process with a matrix, such as CLD\(\), got VPSDE"):
        sg.processes.hybrid_score_matching(lambda z, t: z, vp, zero, torch.ones(1), torch.zeros(1, 2, 2))  # type: ignore[arg-type]
