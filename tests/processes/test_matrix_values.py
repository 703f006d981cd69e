"""Values by hand. Linear processes with a matrix: kernels, scores, solvers and likelihoods of CLD and its kin."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.integrate import quad_vec
from torch import Tensor

import sgm_sde as sg
from benchmarks.cld_defaults import THIRD
from sgm_sde.engine.matrix import Matrix, finite
from sgm_sde.processes.matrix import MatrixNode, apply, require_covariance, van_loan
from sgm_sde.schemes.matrix import root
from tests.conventions import case_id
from tests.helpers import F64
from tests.processes.matrix_cases import CRITICAL, SIGMA_0, A, D, P, law, moved, rate_between

COUPLED = sg.processes.MatrixSDE.from_rate(
    A, D, prior_covariance=P, initial_covariance=SIGMA_0, beta_min=0.5, beta_max=2.0, T=2.0, eps=0.01
)  # everything couples with everything: whatever is transposed or left out shows


INTEGRATED = sg.processes.MatrixSDE.from_functions(
    lambda t: (0.5 + 1.5 * t) * A,
    lambda t: math.sqrt(0.5 + 1.5 * t) * D,
    prior_covariance=P,
    initial_covariance=SIGMA_0,
    T=2.0,
    eps=0.01,
)


CHAIN = np.array([[0.0, 1, 0], [-1, 0, 2], [0, -2, -3]])


@pytest.mark.parametrize("sde", [COUPLED, INTEGRATED], ids=["rate", "functions"])
def test_propagators(sde: sg.processes.MatrixSDE) -> None:
    """Forward and backward in time, with and without a pull to the prior; the noise's covariance is positive."""
    Q = D @ D.T
    for s, t in ((0.2, 1.5), (1.5, 0.2), (0.7, 0.7)):
        B, back = rate_between(s, t), -1.0 if t < s else 1.0
        for pull, noise in ((0.0, 1.0), (0.75, 0.5), (-2.0, 0.0)):
            M = A + pull * Q @ np.linalg.inv(P)
            phi, N = sde.propagate(s, t, pull, noise)
            expected = moved(back * M, noise**2 * Q, abs(B))
            np.testing.assert_allclose(phi, expected[0], rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(N, expected[1], rtol=1e-8, atol=1e-10)
    for got, expected_ in zip(sde.propagate(0.2, 0.9), moved(A, Q, rate_between(0.2, 0.9)), strict=True):
        np.testing.assert_allclose(got, expected_, rtol=1e-8)


@pytest.mark.parametrize("sde", [COUPLED, INTEGRATED], ids=["rate", "functions"])
def test_nodes_hold_the_process_at_a_time(sde: sg.processes.MatrixSDE) -> None:
    """Drift, diffusion, transition, law given the data, its Cholesky factor, and what leads to other times."""
    t, beta = 0.6, 0.5 + 1.5 * 0.6
    early, node = sde.nodes([0.1, t])
    assert isinstance(node, MatrixNode)
    assert (early.t, node.t, node.sde) == (0.1, t, sde)
    phi, N = moved(A, D @ D.T, rate_between(0, t))
    mu, cov = law(sde, t)
    np.testing.assert_allclose(node.F, beta * A, rtol=1e-12)
    np.testing.assert_allclose(node.g.array, math.sqrt(beta) * D, rtol=1e-12)
    for got, expected in ((node.phi, phi), (node.N, N), (node.mu, mu), (node.cov, cov), (node.L @ node.L.T, cov)):
        np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert node.L[0, 1] == 0.0
    for to in (0.1, 1.7):
        B = rate_between(t, to)
        np.testing.assert_allclose(node.noise_until(to).array, abs(B) * D @ D.T, rtol=1e-12)
        step, none = node.transport(to)
        np.testing.assert_allclose(step.array, scipy.linalg.expm(A * B), rtol=1e-8)
        assert not none.any()
        for got, expected in zip(node.transport(to, 0.5, 2.0), sde.propagate(t, to, 0.5, 2.0), strict=True):
            np.testing.assert_array_equal(getattr(got, "array", got), expected)


def test_conversions_by_hand() -> None:
    """Through the noise: z = mu D + L eps; for each pair (from, to) the coefficients on state and output."""
    (node,) = COUPLED.nodes([0.6])
    assert isinstance(node, MatrixNode)
    mu, L, phi, N, R, F, GG = node.mu, node.L, node.phi, node.N, node.R, node.F, node.g.array @ node.g.array.T
    eps, x0 = np.array([0.7, -0.4]), 1.3
    z = mu * x0 + L @ eps
    score = -np.linalg.solve(L.T, eps)
    truth = {
        "noise": eps,
        "score": score,
        "gddim-noise": -R.T @ score,
        "drift": F @ z - (1 + 0.5**2) / 2 * GG @ score,
        "data": np.linalg.solve(phi, z + N @ score),  # Tweedie: E[z_0 | z]
    }
    outputs = {
        "noise": eps,
        "score": score,
        "data_x": np.array([x0, 99.0]),
        "noise_v": np.array([99.0, eps[1]]),
        "score_v": np.array([99.0, -eps[1] / L[1, 1]]),
    }
    for source, output in outputs.items():
        for target, expected in truth.items():
            if source == target:
                assert node.convert(source, target) == (0.0, 1.0)
                continue
            c_z, c_r = node.convert(source, target, 0.5)
            np.testing.assert_allclose(c_z.array @ z + c_r.array @ output, expected, rtol=1e-9, atol=1e-12)
    c_z, c_r = node.convert("noise", "drift")  # eta is 0
    np.testing.assert_allclose(c_z.array @ z + c_r.array @ eps, F @ z - GG @ score / 2, rtol=1e-9)


@pytest.mark.parametrize("sde", [COUPLED, INTEGRATED], ids=["rate", "functions"])
def test_kernels_over_batches_of_times(sde: sg.processes.MatrixSDE) -> None:
    """Shapes follow the times', a scalar beside a batch too; values are those of each time alone."""
    t = torch.tensor([0.3, 1.1], dtype=F64)
    for s_, t_ in ((0.1, t), (t, 1.8), (t / 2, t)):
        phi, N = sde.transition(s_, t_)
        assert phi.shape == N.shape == (2, 2, 2)
        for i in range(2):
            a, b = (float(v[i]) if isinstance(v, Tensor) else v for v in (s_, t_))
            expected = moved(A, D @ D.T, rate_between(a, b))
            np.testing.assert_allclose(phi[i], expected[0], rtol=1e-8)
            np.testing.assert_allclose(N[i], expected[1], rtol=1e-8)
    assert sde.transition(0.1, 0.2)[0].shape == (2, 2)
    assert sde.transition(0.1, torch.tensor([0.5]))[0].dtype == torch.float32
    assert sde.drift_matrix(t).shape == sde.g(t).shape == (2, 2, 2)
    assert sde.drift_matrix(t.reshape(1, 2)).shape == (1, 2, 2, 2)
    beta = 0.5 + 1.5 * t.numpy()
    np.testing.assert_allclose(sde.drift_matrix(t), beta[:, None, None] * A, rtol=1e-12)
    np.testing.assert_allclose(sde.g(t), np.sqrt(beta)[:, None, None] * D, rtol=1e-12)


@pytest.mark.parametrize("sde", [COUPLED, INTEGRATED], ids=["rate", "functions"])
def test_the_law_given_the_data(sde: sg.processes.MatrixSDE) -> None:
    """Kernel, marginal, perturbed data, observation, log-SNR and its inverse, drift and diffusion of a state."""
    t = torch.tensor([0.3, 1.1], dtype=F64)
    x0 = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.0, 4.0]], dtype=F64)
    z = torch.arange(12.0, dtype=F64).reshape(2, 2, 3) - 5
    mean, covariance = sde.marginal(x0, t)
    noisy = sde.perturb(x0, t, z)
    w, level = sde.observation(t)
    log_snr = sde.log_snr(t)
    drift, diffusion = sde.f(z, t), sde.diffusion(z, t)
    for i, t_i in enumerate(t.tolist()):
        mu, cov = law(sde, t_i)
        beta = 0.5 + 1.5 * t_i
        np.testing.assert_allclose(sde.kernel(t_i)[0], mu, rtol=1e-8)
        np.testing.assert_allclose(sde.kernel(t_i)[1], cov, rtol=1e-8)
        np.testing.assert_allclose(mean[i], np.outer(mu, x0[i]), rtol=1e-8)
        np.testing.assert_allclose(covariance[i], cov, rtol=1e-8)
        np.testing.assert_allclose(noisy[i], mean[i].numpy() + np.linalg.cholesky(cov) @ z[i].numpy(), rtol=1e-8)
        precision = mu @ np.linalg.solve(cov, mu)
        np.testing.assert_allclose(w[i], np.linalg.solve(cov, mu) / precision, rtol=1e-8)
        assert float(level[i]) == pytest.approx(precision**-0.5)
        assert float(log_snr[i]) == pytest.approx(math.log(precision))
        np.testing.assert_allclose(drift[i], beta * A @ z[i].numpy(), rtol=1e-9)
        np.testing.assert_allclose(diffusion[i], beta * D @ D.T @ z[i].numpy(), rtol=1e-9)
    assert sde.marginal(x0, 0.3)[1].shape == (2, 2)
    assert sde.log_snr(t.float()).dtype == torch.float32


def test_log_snr_at_both_ends() -> None:
    """Infinite at 0, even beside other times; its inverse is the time."""
    t = torch.tensor([0.0, 0.2, 2.0], dtype=F64)
    assert COUPLED.log_snr(t)[0] == math.inf
    assert COUPLED.log_snr(0.0) == math.inf
    assert torch.isfinite(COUPLED.log_snr(t)[1:]).all()
    torch.testing.assert_close(CRITICAL.time(CRITICAL.log_snr(t[1:2])), t[1:2], rtol=1e-9, atol=0)
    assert float(CRITICAL.time(float(CRITICAL.log_snr(0.4)))) == pytest.approx(0.4, rel=1e-9)


def test_the_prior_by_hand() -> None:
    """N(0, P), at an earlier time N(0, Sigma); its density per sample is PyTorch's."""
    z = torch.arange(12.0, dtype=F64).reshape(2, 2, 3) / 5 - 1
    for t, cov in ((None, P), (2.0, P), (0.6, law(COUPLED, 0.6)[1])):
        expected = np.einsum("ij,bjn->bin", np.linalg.cholesky(cov), z.numpy())
        np.testing.assert_allclose(COUPLED.prior_transform(z, t), expected, rtol=1e-9)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), torch.from_numpy(P))
    torch.testing.assert_close(COUPLED.prior_log_prob(z), prior.log_prob(z.mT).sum(1))
    assert (COUPLED.blocks, COUPLED.marginal_kind, THIRD.blocks, CRITICAL.prior_std) == (2, "matrix", 3, 1.0)
    wide = sg.processes.MatrixSDE.from_rate(
        CHAIN, CHAIN, prior_covariance=4 * np.eye(3), initial_covariance=np.zeros((3, 3))
    )
    assert wide.prior_std == 2.0
    assert COUPLED.position(z).tolist() == z[:, 0].tolist()
    assert CRITICAL.velocity(z).tolist() == z[:, 1].tolist()


def test_what_a_matrix_process_is_without_options() -> None:
    """Rate 1, T = 1, eps = 1e-3, and a rate that stays what it is at 0."""
    options = {"prior_covariance": P, "initial_covariance": SIGMA_0}
    plain, other = (
        sg.processes.MatrixSDE.from_rate(A, D, **options),
        sg.processes.MatrixSDE.from_functions(lambda t: A, lambda t: D, **options),
    )
    for sde in (plain, other):
        assert (sde.T, sde.eps, sde.default_grid) == (1.0, 1e-3, "quadratic")
        np.testing.assert_allclose(sde.drift_matrix(0.0), A)
        np.testing.assert_allclose(sde.drift_matrix(0.9), A)
        assert (sde.prior_covariance, sde.initial_covariance) == (Matrix.of(P), Matrix.of(SIGMA_0))
        with pytest.raises(dataclasses.FrozenInstanceError):
            sde.T = 2.0
    assert (COUPLED.T, COUPLED.eps, INTEGRATED.T, INTEGRATED.eps) == (2.0, 0.01, 2.0, 0.01)
    sloped = sg.processes.MatrixSDE.from_rate(A, D, **options, beta_min=0.5, beta_max=2.0)
    np.testing.assert_allclose(sloped.drift_matrix(1.0), 2 * A)
    np.testing.assert_allclose(sloped.drift_matrix(0.0), A / 2)
    text = "CLD(mass=0.25, friction=1.0, beta_min=4.0, beta_max=4.0, gamma=0.04, T=1.0, eps=0.001)"
    assert repr(sg.CLD()) == text


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
    A_, D_ = sde.A.array, sde.D.array
    for B in (1e-3, 0.1, 1.0, 2.5, 6.0, 20.0):
        phi, N = sde.transition_of_rate(torch.tensor(B, dtype=F64))
        expected = moved(A_, D_ @ D_.T, B)
        np.testing.assert_allclose(phi, expected[0], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(N, expected[1], rtol=1e-9, atol=1e-13)
    many = torch.tensor([[0.1, 1.0, 6.0]], dtype=F64)
    assert sde.transition_of_rate(many)[1].shape == (1, 3, 2, 2)
    assert sde.transition_of_rate(many.float())[1].dtype == torch.float32


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


def test_limits_of_covariances() -> None:
    """A prior is definite, an initial covariance may be singular; neither is ragged, infinite or asymmetric."""
    assert require_covariance("prior", P).array.tolist() == P.tolist()
    assert require_covariance("prior", Matrix.of(P)) == Matrix.of(P)
    flat = [[1.0, 0.0], [0.0, 0.0]]
    assert require_covariance("start", flat, definite=False) == Matrix.of(flat)
    with pytest.raises(ValueError, match="positive definite"):
        require_covariance("prior", flat)
    wrong: list[tuple[Any, bool, str]] = [
        ([[1.0, math.inf], [math.inf, 1.0]], True, "finite square matrix"),
        (flat, True, "positive definite, got .* with the eigenvalue 0"),
        ([[-1.0]], False, "positive semi-definite, got .* with the eigenvalue -1"),
        ([1.0, 2.0], True, "finite square matrix"),
        ([[[1.0]]], True, "finite square matrix"),
        ([[1.0, 2.0]], True, "finite square matrix"),
        ([[math.inf]], True, "finite square matrix"),
        ([[1.0, 0.1], [0.0, 1.0]], True, "symmetric"),
    ]
    for matrix, definite, message in wrong:
        with pytest.raises(ValueError, match=message):
            require_covariance("prior", matrix, definite=definite)


def test_van_loan_by_hand() -> None:
    """Any length of time, none at all, and no times at all; the result is symmetric."""
    A_, Q = torch.from_numpy(A), torch.from_numpy(D @ D.T)
    B = torch.tensor([0.0, 1e-4, 0.3, 1.0, 5.0], dtype=F64)
    phi, N = van_loan(A_, Q, B)
    for i, b in enumerate(B.tolist()):
        expected = moved(A, D @ D.T, b)
        np.testing.assert_allclose(phi[i], expected[0], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(N[i], expected[1], rtol=1e-11, atol=0)
    assert torch.equal(N, N.mT)
    assert torch.equal(van_loan(A_, Q, torch.zeros(2, dtype=F64))[0], torch.eye(2, dtype=F64).expand(2, 2, 2))
    assert van_loan(A_, Q, torch.zeros(0, dtype=F64))[1].shape == (0, 2, 2)
    far, _ = van_loan(torch.tensor([[-1.0, 0.0], [0.0, -2.0]], dtype=F64), Q, torch.tensor(700.0, dtype=F64))
    assert float(far[0, 0]) == pytest.approx(math.exp(-700), rel=1e-10)
    uneven, _ = van_loan(torch.tensor([[-0.1, 0.0], [0.0, -40.0]], dtype=F64), Q, torch.tensor(1.0, dtype=F64))
    np.testing.assert_allclose(uneven, np.diag(np.exp([-0.1, -40.0])), rtol=1e-12)


def test_rotations_by_hand() -> None:
    """The Cholesky factor at T; before, R' = (F + GG^T Sigma^-1 / 2) R, by differences; down to 1e-7 T, no further."""
    t = np.array([2.0, 1.2, 0.05])
    R = COUPLED.rotation(t)
    np.testing.assert_allclose(R[0], np.linalg.cholesky(law(COUPLED, 2.0)[1]), rtol=1e-8, atol=1e-12)
    for t_i, R_i in zip(t[1:], R[1:], strict=True):
        cov, beta, h = law(COUPLED, t_i)[1], 0.5 + 1.5 * t_i, 1e-4 * t_i
        ahead, back = COUPLED.rotation([t_i + h, t_i - h])
        slope = (beta * A + beta * D @ D.T @ np.linalg.inv(cov) / 2) @ R_i
        np.testing.assert_allclose((ahead - back) / (2 * h), slope, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(R_i @ R_i.T, cov, rtol=1e-12)
    (node,) = COUPLED.nodes([1.2])
    np.testing.assert_allclose(node.R, R[1], rtol=1e-12)
    u = [1.3, 2.0]
    for got, u_i in zip(COUPLED.carried(u, 1.2), u, strict=True):
        back_ = scipy.linalg.expm(-A * rate_between(1.2, u_i))
        np.testing.assert_allclose(got, back_ @ COUPLED.rotation([u_i])[0], rtol=1e-9)
    early = CRITICAL.rotation([1e-7])[0]
    np.testing.assert_allclose(early @ early.T, CRITICAL.nodes([1e-7])[0].cov, rtol=1e-9, atol=1e-20)
    CRITICAL.rotation([1 + 1e-9])
    for wrong in (0.99e-7, 1 + 1.5e-9):
        with pytest.raises(ValueError, match=r"rotation is known from 1e-07 to T=1\.0"):
            CRITICAL.rotation([0.5, wrong])
    with pytest.raises(ValueError, match=r"is known from 2e-07 to T=2\.0"):
        COUPLED.rotation([1.5e-7])


def test_rotations_of_a_short_process() -> None:
    """They are a longer one's, turned: the flow is the same, down to 1e-7 of its own end."""
    short, long = sg.CLD(T=0.01, eps=1e-4), sg.CLD()
    turn = np.linalg.solve(long.rotation([0.01])[0], short.rotation([0.01])[0])
    for got, expected in zip(short.rotation([1e-3, 2e-7]), long.rotation([1e-3, 2e-7]), strict=True):
        np.testing.assert_allclose(got, expected @ turn, rtol=1e-8, atol=1e-8 * abs(expected).max())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_of_sscs_by_hand(eta: float) -> None:
    """Half of the prior's dynamics, the score's kick in the middle, the other half; noise only if eta asks for it."""
    solver = sg.schemes.SSCS(eta=eta) if eta != 1.0 else sg.schemes.SSCS()
    program = solver.compile(COUPLED, sg.Grid([1.6, 0.8, 0.2]))
    assert [s.t for s in program.stages] == pytest.approx([1.6, 1.2, 0.8, 0.5, 0.2])
    assert [s.evaluate for s in program.stages] == [False, True, False, True, False]
    assert [s.node for s in program.stages] == [True, False, True, False, True]
    assert (program.name, program.prediction, program.stochastic) == ("sscs", "score", eta > 0)
    assert solver.order == 1
    c = (1 + eta**2) / 2
    for i, (s, t) in enumerate(((1.6, 0.8), (0.8, 0.2))):
        m = (s + t) / 2
        (first, N1), (second, N2) = (COUPLED.propagate(a, b, c, eta) for a, b in ((s, m), (m, t)))
        push = c * rate_between(t, s) * D @ D.T
        middle, last = program.stages[2 * i + 1 : 2 * i + 3]
        ((j, phi),) = middle.states
        assert j == 2 * i
        np.testing.assert_allclose(phi.array, first, rtol=1e-12)
        ((j, after),) = last.states
        assert j == 2 * i + 1
        np.testing.assert_allclose(after.array, second @ (np.eye(2) + push @ np.linalg.inv(P)), rtol=1e-11)
        ((j, kick),) = last.evals
        assert j == 2 * i + 1
        np.testing.assert_allclose(kick.array, second @ push, rtol=1e-11)
        assert middle.evals == ()
        for stage, N, number in ((middle, N1, 2 * i), (last, N2, 2 * i + 1)):
            if eta:
                ((m_, factor),) = stage.noises
                assert m_ == number
                np.testing.assert_allclose(factor.array, np.linalg.cholesky(N), rtol=1e-9)
            else:
                assert stage.noises == ()


def test_roots_of_covariances() -> None:
    """Cholesky's where there is one; of a singular covariance, rounded below zero, a root all the same."""
    assert root(P).array.tolist() == np.linalg.cholesky(P).tolist()
    v = np.array([[3.0], [4.0]])
    for singular in (v @ v.T, np.zeros((2, 2)), np.diag([4.0, -1e-18])):
        np.testing.assert_allclose(root(singular).array @ root(singular).array.T, singular, atol=1e-13)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_steps_of_gddim_by_hand(nodes: int) -> None:
    """Each weight is the integral of W' l_j in log t, by parts and SciPy's quadrature."""
    times = [2.0, 1.4, 0.8, 0.5, 0.3]
    program = sg.schemes.GDDIM(nodes).compile(COUPLED, sg.Grid(times))
    assert (program.name, program.prediction, program.nfe, program.stochastic) == ("gddim", "gddim-noise", 4, False)
    assert (sg.schemes.GDDIM(nodes).order, sg.schemes.GDDIM().nodes) == (min(nodes, 2), 2)
    for i, stage in enumerate(program.stages[1:]):
        s, t, n = times[i], times[i + 1], min(nodes, i + 1)
        phi = scipy.linalg.expm(A * rate_between(s, t))
        ((j, coefficient),) = stage.states
        assert j == i
        np.testing.assert_allclose(coefficient.array, phi, rtol=1e-9)
        R_s, R_t = COUPLED.rotation([s, t])
        known = np.log(times[i - n + 1 : i + 1])[::-1]
        assert [j for j, _ in stage.evals] == list(range(i - n + 1, i + 1))
        weights = dict(stage.evals)
        for j in range(n):
            others = np.delete(known, j)
            l_j = np.poly1d(others, True) / np.prod(known[j] - others)
            slope = np.polyder(l_j)

            def inner(u: float, t: float = t, back: Any = phi @ R_s, slope: Any = slope) -> np.ndarray:
                return (COUPLED.carried([math.exp(u)], t)[0] - back) * slope(u)

            expected = (R_t - phi @ R_s) * l_j(math.log(t))
            if n > 1:
                expected = expected - quad_vec(inner, math.log(s), math.log(t), epsrel=1e-8)[0]
            np.testing.assert_allclose(weights[i - j].array, expected, rtol=1e-6, atol=1e-9)


def test_the_velocity_corrector_on_more_blocks() -> None:
    """Only the last of three moves."""
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    score, z = torch.full_like(x, 0.5), torch.full_like(x, 2.0)
    score[:, :2], z[:, :2] = 7.0, 9.0
    mean, added = sg.schemes.VelocityLangevin(snr=0.3, norm="sample").update(x, score, z, 1.0)
    e = 2 * (0.3 * 2.0 / 0.5) ** 2
    torch.testing.assert_close(mean, torch.cat([x[:, :2], x[:, 2:] + e * 0.5], 1))
    torch.testing.assert_close(added, torch.cat([torch.zeros(2, 2, 4), torch.full((2, 1, 4), math.sqrt(2 * e) * 2)], 1))


def test_the_velocity_corrector_s_step() -> None:
    """epsilon = 2 r^2 times the velocity's variance given the position: what regression on it leaves."""
    grid = sg.Grid([0.8, 0.3, 0.05])
    for s in (0.0, 0.7):
        known = []
        for t in grid.times:
            mu, cov = CRITICAL.kernel(torch.tensor(t, dtype=torch.float64))
            (xx, xv), (_, vv) = (cov + s**2 * torch.outer(mu, mu)).tolist()
            known.append(2 * 0.3**2 * (vv - xv**2 / xx))
        corrector = sg.schemes.VelocityLangevin(snr=0.3, data_std=s)
        assert corrector.constants(CRITICAL, grid) == pytest.approx(known, rel=1e-9)
    with pytest.raises(TypeError, match=r"Langevin.*CLD.*VelocityLangevin"):
        sg.Langevin().constants(sg.CLD(), grid)
    with pytest.raises(TypeError, match="cov"):
        sg.schemes.VelocityLangevin().constants(sg.VPSDE(), grid)


def test_the_loss_of_each_sample() -> None:
    """The mean over the data's axes of the last block's squared error."""
    x0, noise = torch.zeros(2, 2, 2), torch.arange(16.0).reshape(2, 2, 2, 2)
    t = torch.ones(2)
    loss = sg.processes.hybrid_score_matching(
        lambda z, t, up: torch.full((2, 2, 2), up), CRITICAL, x0, t, noise, up=1.0
    )
    assert loss.tolist() == [(9 + 16 + 25 + 36) / 4, (11**2 + 12**2 + 13**2 + 14**2) / 4]


def test_matrices_beside_numbers() -> None:
    """Sums, differences and products with numbers on either side, and what cannot be multiplied."""
    M = Matrix.of([[1, 2], [3, 4]])
    assert (M + 2).rows == ((3.0, 2.0), (3.0, 6.0))
    assert (M - 2).rows == ((-1.0, 2.0), (3.0, 2.0))
    assert (M * 2).rows == (2 * M).rows == (M * 2.0).rows == ((2.0, 4.0), (6.0, 8.0))
    assert (-M).rows == ((-1.0, -2.0), (-3.0, -4.0))
    assert (M.T.rows, M.inverse.array.tolist()) == (((1.0, 3.0), (2.0, 4.0)), np.linalg.inv(M.array).tolist())
    assert M and not Matrix.of(np.zeros((2, 2)))
    assert f"{M:.1f}" == "[1.0 2.0; 3.0 4.0]"
    with pytest.raises(TypeError, match="unsupported operand"):
        M * None
    assert [finite(c) for c in (1.0, math.inf, M, Matrix.of([[1.0, math.nan]]))] == [True, False, True, False]
    with pytest.raises(dataclasses.FrozenInstanceError):
        M.rows = ()  # type: ignore[misc]
    for form in (M, torch.tensor(M.rows)):
        z = torch.arange(12.0).reshape(1, 2, 3, 2)
        assert torch.equal(apply(form, z), torch.einsum("ij,bjkl->bikl", torch.tensor(M.rows), z))
    many = torch.tensor([M.rows, (M * M).rows])
    z = torch.arange(12.0).reshape(2, 2, 3)
    assert torch.equal(apply(many, z), torch.einsum("bij,bjk->bik", many, z))


@pytest.mark.parametrize(
    "value",
    [CRITICAL, COUPLED, INTEGRATED, sg.schemes.SSCS(), sg.schemes.GDDIM(), sg.schemes.VelocityLangevin()],
    ids=case_id,
)
def test_matrix_processes_and_their_solvers_do_not_change(value: Any) -> None:
    """They are values."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)
    assert hash(value) == hash(dataclasses.replace(value))


@pytest.mark.parametrize(("s", "t"), [(0.5, 1.5), (1.5, 0.5)])
def test_noise_between_times_of_a_rate_that_is_no_line(s: float, t: float) -> None:
    """GG^T = t^4 DD^T: from 0.5 to 1.5 its integral is (1.5^5 - 0.5^5) / 5."""
    flat = np.diag([0.0, 0.1])
    sde = sg.processes.MatrixSDE.from_functions(
        lambda t: A, lambda t: t * t * D, prior_covariance=P, initial_covariance=flat, T=2.0
    )
    (node,) = sde.nodes([s])
    assert isinstance(node, MatrixNode)
    np.testing.assert_allclose(node.noise_until(t).array, (1.5**5 - 0.5**5) / 5 * D @ D.T, rtol=1e-12)


@pytest.mark.parametrize("sde", [COUPLED, INTEGRATED], ids=["rate", "functions"])
def test_the_kernel_at_time_zero(sde: sg.processes.MatrixSDE) -> None:
    """The data, and around it the initial covariance."""
    mu, covariance = sde.kernel(0.0)
    assert mu.tolist() == [1.0, 0.0]
    assert covariance.tolist() == SIGMA_0.tolist()
    times = torch.tensor([0.0, 0.5], dtype=F64)
    assert sde.kernel(times)[0][0].tolist() == [1.0, 0.0]
    assert torch.equal(sde.transition(times, 0.5)[0][1], torch.eye(2, dtype=F64))


def test_three_blocks_by_hand() -> None:
    """Where the last block is not the second: noise and score of the last block alone give the whole noise."""
    (node,) = THIRD.nodes([0.5])
    assert isinstance(node, MatrixNode)
    eps, x0 = np.array([0.7, -0.4, 1.1]), 1.3
    z = node.mu * x0 + node.L @ eps
    score = -np.linalg.solve(node.L.T, eps)
    for source, last in (("noise_v", eps[2]), ("score_v", score[2])):
        c_z, c_r = node.convert(source, "noise")
        np.testing.assert_allclose(c_z.array @ z + c_r.array @ [99.0, 77.0, last], eps, rtol=1e-7)


def test_conversions_over_a_batch() -> None:
    """Each sample at its own time; eta is 0 by default, and what is asked for already is left alone."""
    t = torch.tensor([0.9, 0.3, 0.9], dtype=F64)
    z, out = (torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    drift = COUPLED.convert("score", "drift", z, t, out)
    noisy = COUPLED.convert("score", "drift", z, t, out, eta=1.0)
    for i, t_i in enumerate(t.tolist()):
        beta = 0.5 + 1.5 * t_i
        flow = beta * A @ z[i].numpy() - beta / 2 * D @ D.T @ out[i].numpy()
        np.testing.assert_allclose(drift[i], flow, rtol=1e-9)
        np.testing.assert_allclose(noisy[i], flow - beta / 2 * D @ D.T @ out[i].numpy(), rtol=1e-9)
    assert COUPLED.convert("score", "score", z, t, out) is out
    assert COUPLED.convert("score", "score", z[:1], t[:1], out[:1]).shape == (1, 2, 2)
    torch.testing.assert_close(COUPLED.convert("score", "drift", z[:1], t[:1], out[:1]), drift[:1])


def test_states_have_a_batch_and_blocks() -> None:
    """(B, k) is a state of nothing but blocks; (k,) and another number of blocks are none."""
    assert COUPLED.position(torch.tensor([[1.0, 2.0]])).tolist() == [1.0]
    for shape in ((2,), (2, 3), (3, 3, 2)):
        with pytest.raises(ValueError, match=r"has 2 blocks on axis 1"):
            COUPLED.position(torch.zeros(shape))


def test_single_precision_is_double_precision_rounded() -> None:
    """Kernels are computed in float64, whatever the times' dtype."""
    t = torch.tensor([1e-5, 1e-3, 0.3], dtype=torch.float32)
    for sde in (CRITICAL, COUPLED):
        exact = sde.transition_of_rate(sde.integrated_beta(t).double())  # type: ignore[attr-defined]
        for got, expected in zip(sde.transition(0.0, t), exact, strict=True):
            assert torch.equal(got, expected.float())
        torch.testing.assert_close(sde.log_snr(t), sde.log_snr(t.double()).float(), rtol=1e-6, atol=0)
    B = torch.tensor([1e-4, 0.3], dtype=torch.float32)
    for got, expected in zip(CRITICAL.transition_of_rate(B), CRITICAL.transition_of_rate(B.double()), strict=True):
        assert torch.equal(got, expected.float())


def test_the_loss_is_of_the_last_block() -> None:
    """Of three blocks the third."""
    noise = torch.zeros(1, 3, 1)
    noise[0, 2] = 2.0
    assert (
        sg.processes.hybrid_score_matching(lambda z, t: 0 * z[:, 0], THIRD, torch.ones(1, 1), torch.ones(1), noise)
        == 4.0
    )


@pytest.mark.parametrize("solver", ["ggf", "torchsde:euler"])
def test_solvers_of_one_noise_level(solver: str) -> None:
    """A matrix has none."""
    with pytest.raises(TypeError, match=f"{solver} needs one diffusion coefficient .* got CLD"):
        sg.sample(lambda z, t: -z, CRITICAL, (1, 2, 3), solver=solver, seed=0)


def test_the_hybrid_loss_needs_a_matrix() -> None:
    zero, vp = torch.zeros(1, 2), sg.VPSDE()
    with pytest.raises(TypeError, match=r"for a process with a matrix, such as CLD\(\), got VPSDE"):
        sg.processes.hybrid_score_matching(lambda z, t: z, vp, zero, torch.ones(1), torch.zeros(1, 2, 2))  # type: ignore[arg-type]
