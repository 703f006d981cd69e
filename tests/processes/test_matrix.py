"""Matrix. Linear processes with a matrix: kernels, scores, solvers and likelihoods of CLD and its kin."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks.cld import kernel_by_scipy
from benchmarks.cld_defaults import THIRD
from sgm_sde.engine.executor import execute
from sgm_sde.engine.matrix import Matrix
from sgm_sde.processes.matrix import MatrixNode, apply, require_covariance, van_loan
from sgm_sde.testing import default_oracle
from tests.conventions import case_id
from tests.helpers import F64, bind, stream
from tests.processes.matrix_cases import (
    COUPLED,
    CRITICAL,
    OVER,
    QUADRATIC,
    SIGMA_0,
    UNDER,
    A,
    D,
    P,
    law,
    moved,
    rate_between,
)

PROCESSES = {"critical": CRITICAL, "over": OVER, "under": UNDER}


@pytest.mark.parametrize("friction", [None, 0.2, 0.999999, 1.000001, 3.0, 20.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 2e-11), (torch.float32, 3e-7)])
def test_the_covariance_keeps_its_digits(friction: Any, dtype: torch.dtype, tolerance: float) -> None:
    """From B = 1e-5 to 10, every entry in units of its own standard deviations."""
    sde = sg.CLD(friction=friction)
    for B in np.geomspace(1e-5, 10, 19):
        rate = torch.tensor(B, dtype=dtype)
        phi, N = (v.double().numpy() for v in sde.transition_of_rate(rate))
        exact_phi, exact_N = kernel_by_scipy(sde, float(rate))
        scale = np.sqrt(np.diag(exact_N))
        assert np.abs((N - exact_N) / np.outer(scale, scale)).max() < tolerance
        assert np.abs(phi - exact_phi).max() < tolerance


def test_the_doubled_exponential_is_the_closed_form() -> None:
    """Two derivations of one kernel, over a batch of rates."""
    B = torch.logspace(-5, 1, 7, dtype=F64)
    phi, N = CRITICAL.transition_of_rate(B)
    A, D = (torch.from_numpy(m.array) for m in (CRITICAL.A, CRITICAL.D))
    other_phi, other_N = van_loan(A, D @ D.T, B)
    torch.testing.assert_close(phi, other_phi, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(N.diagonal(dim1=1, dim2=2), other_N.diagonal(dim1=1, dim2=2), rtol=1e-12, atol=0)


def integrated() -> sg.processes.MatrixSDE:
    """Overdamped dynamics as a user gives them, by the functions of time."""
    return sg.processes.MatrixSDE.from_functions(
        lambda t: OVER.drift_matrix(t).numpy(),
        lambda t: OVER.g(t).numpy(),
        prior_covariance=OVER.prior_covariance.array,
        initial_covariance=OVER.initial_covariance.array,
    )


def test_integrated_matrices_are_those_of_the_rate() -> None:
    """`from_functions` by SciPy against the closed form, and the same solver table on both."""
    numeric = integrated()
    for got, expected in zip(numeric.propagate(0.9, 0.2, 1.0), OVER.propagate(0.9, 0.2, 1.0), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)
    grid = QUADRATIC(OVER, 1, t_end=0.4)
    tables = [sg.schemes.SSCS().compile(sde, grid) for sde in (numeric, OVER)]
    x, score = OVER.prior_sample((4, 2, 2), seed=0, dtype=F64), default_oracle().score(OVER)
    runs = [execute(table, x, bind(score, OVER, grid.times), stream(4)).x for table in tables]
    torch.testing.assert_close(*runs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("s, t", [(0.0, 0.01), (0.2, 0.9)])
def test_transitions_of_integrated_matrices_are_those_of_the_rate(s: float, t: float) -> None:
    """By SciPy against the closed form."""
    numeric = integrated()
    for got, expected in zip(numeric.transition(s, t), OVER.transition(s, t), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("sde", [*PROCESSES.values(), THIRD], ids=[*PROCESSES, "third"])
def test_transitions_compose_and_keep_the_prior(sde: sg.processes.MatrixSDE) -> None:
    """Phi and covariance of r to s to t are those of r to t, and P is stationary."""
    r, s, t = 0.1, 0.3, 0.8
    (p1, n1), (p2, n2), (p, n) = sde.transition(r, s), sde.transition(s, t), sde.transition(r, t)
    torch.testing.assert_close(p2 @ p1, p)
    torch.testing.assert_close(p2 @ n1 @ p2.mT + n2, n)
    P = torch.from_numpy(sde.prior_covariance.array)
    torch.testing.assert_close(p @ P @ p.mT + n, P)


def test_the_forward_process_has_the_declared_moments() -> None:
    """Simulated in small steps from one data point."""
    generator, sde, n, steps = torch.Generator().manual_seed(0), OVER, 4000, 400
    z = torch.zeros(n, 2, 1, dtype=F64)
    z[:, 0] = 1.5
    z[:, 1] = math.sqrt(sde.gamma * sde.mass) * torch.randn(n, 1, dtype=F64, generator=generator)
    h = 0.5 / steps
    for i in range(steps):
        t = torch.tensor((i + 0.5) * h, dtype=F64)
        half = z + h / 2 * sde.f(z, t)
        noise = torch.randn(z.shape, dtype=F64, generator=generator)
        z = z + h * sde.f(half, t) + math.sqrt(h) * apply(sde.g(t), noise)
    mean, covariance = sde.marginal(torch.full((1, 1), 1.5, dtype=F64), 0.5)
    whitened = apply(torch.linalg.inv(torch.linalg.cholesky(covariance)), z - mean)[..., 0]
    assert float(whitened.mean(0).norm()) < 4 * math.sqrt(2 / n)
    assert float((torch.cov(whitened.T) - torch.eye(2)).abs().max()) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("sde", [*PROCESSES.values(), THIRD], ids=[*PROCESSES, "third"])
def test_oracles_know_the_joint_score(kind: str, sde: sg.processes.MatrixSDE) -> None:
    """It is the gradient of the joint density, which for Gaussian data is a Gaussian's."""
    oracle = default_oracle(kind)
    z = oracle.sample(5, sde, 0.3, seed=0, dtype=F64).requires_grad_()
    log_p = oracle.log_prob(z, sde, 0.3)
    (gradient,) = torch.autograd.grad(log_p.sum(), z)
    torch.testing.assert_close(oracle.score(sde)(z.detach(), 0.3), gradient, rtol=1e-9, atol=1e-10)
    if kind == "gaussian":
        mu, covariance = sde.kernel(torch.tensor(0.3, dtype=F64))
        C = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)
        joint = torch.kron(torch.outer(mu, mu), C) + torch.kron(covariance, torch.eye(2, dtype=F64))
        mean = torch.kron(mu, torch.tensor([0.3, -0.7], dtype=F64))
        law = torch.distributions.MultivariateNormal(mean, joint)
        torch.testing.assert_close(log_p, law.log_prob(z.flatten(1)), rtol=1e-6, atol=1e-6)


def test_density_of_a_point_close_to_the_data() -> None:
    """At t = 1e-5, where positions and velocities are all but the same, the density has its digits."""
    oracle = sg.oracles.Gaussian(torch.zeros(1), 0.25)
    z = oracle.sample(4, CRITICAL, 1e-5, seed=0, dtype=F64)
    mu, covariance = CRITICAL.kernel(torch.tensor(1e-5, dtype=F64))
    joint = 0.25 * torch.outer(mu, mu) + covariance
    law = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), joint)
    torch.testing.assert_close(oracle.log_prob(z, CRITICAL, 1e-5), law.log_prob(z.flatten(1)), rtol=1e-8, atol=1e-8)


# Not where the data has left no trace, OVER at T, nor three blocks close to the data: there the question is ill-posed.
@pytest.mark.parametrize(
    ("sde", "t"),
    [(CRITICAL, 1e-3), (CRITICAL, 0.2), (CRITICAL, 1.0), (OVER, 1e-3), (OVER, 0.2), (THIRD, 0.2)],
    ids=str,
)
def test_predictions_turn_into_one_another(sde: sg.processes.MatrixSDE, t: float) -> None:
    """Data, noise and score of the whole state, and noise and score of the velocity alone, tell the same."""
    oracle = default_oracle("mixture")
    z = oracle.sample(6, sde, t, seed=1, dtype=F64)
    time = torch.full((6,), t, dtype=F64)
    exact = oracle.score(sde)
    targets = {name: exact.predict(name, z, time) for name in ("data", "noise", "score", "drift")}
    flow = sde.reverse(exact, eta=0.0).f(z, t)
    torch.testing.assert_close(targets["drift"], flow, rtol=1e-8, atol=1e-8)
    last = torch.zeros_like(z)
    last[:, -1] = targets["noise"][:, -1]
    last_score = torch.zeros_like(z)
    last_score[:, -1] = targets["score"][:, -1]
    first = torch.zeros_like(z)
    first[:, 0] = targets["data"][:, 0]
    sources = {
        "data_x": first,
        "noise": targets["noise"],
        "score": targets["score"],
        "noise_v": last,
        "score_v": last_score,
    }
    for source, output in sources.items():
        for target, expected in targets.items():
            got = sde.convert(source, target, z, time, output)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("grid", [sg.Grid([1.0, 0.05]), sg.Grid([1.0, 0.9, 0.4, 0.1, 0.05])], ids=case_id)
def test_rotated_noise_is_carried_by_the_flow(grid: Any) -> None:
    """R is a root of the covariance, and mu x_0 + R eps moves along the flow of one data point."""
    times = np.array([0.05, 0.4, 1.0])
    for t, R in zip(times, CRITICAL.rotation(times), strict=True):
        np.testing.assert_allclose(R @ R.T, CRITICAL.nodes([t])[0].cov, rtol=1e-10, atol=1e-14)  # type: ignore[attr-defined]
    point = sg.oracles.GaussianMixture(torch.tensor([[0.7]], dtype=F64), 0.0)
    z = torch.tensor([[[0.3], [0.2]]], dtype=F64)
    program = sg.schemes.GDDIM(nodes=1).compile(CRITICAL, grid)
    end = execute(program, z, bind(point.score(CRITICAL), CRITICAL, grid.times), stream(1)).x
    nodes = CRITICAL.nodes([1.0, 0.05])
    start, last = (n.R for n in nodes)
    eps = np.linalg.solve(start, z[0, :, 0].numpy() - 0.7 * nodes[0].mu)
    np.testing.assert_allclose(end[0, :, 0].numpy(), 0.7 * nodes[1].mu + last @ eps, rtol=1e-8, atol=1e-9)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # no score of a density
def test_a_sample_depends_on_its_own_seed_alone() -> None:
    """In any batch, and with a gradient, to the last bit."""

    def score(z: Tensor, t: Tensor) -> Tensor:
        return -z / (0.5 + t.reshape(-1, *[1] * (z.ndim - 1)))

    options: dict[str, Any] = {"solver": sg.schemes.SSCS(), "steps": 5}
    together = sg.sample(score, CRITICAL, (5, 2, 3, 2), seed=0, **options).x
    assert torch.equal(sg.sample(score, CRITICAL, (2, 2, 3, 2), seed=0, **options).x, together[:2])
    assert torch.equal(
        sg.sample(score, CRITICAL, (5, 2, 3, 2), seed=0, execution=sg.Execution(enable_grad=True), **options).x,
        together,
    )


@pytest.mark.parametrize(
    ("sde", "nfe", "off"), [(CRITICAL, 10, 0.15), (CRITICAL, 20, 0.03), (CRITICAL, 50, 0.02), (THIRD, 20, 0.15)]
)
def test_the_default_has_the_law_of_the_data(sde: sg.processes.MatrixSDE, nfe: int, off: float) -> None:
    """Mean, variance and the share of each mode, of positions of two modes."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3, [0.4, 0.6])
    res = sg.sample(oracle.score(sde), sde, (4000, sde.blocks, 1), nfe=nfe, seed=0)
    assert res.nfe == nfe and res.status.ok
    x = sde.position(res.x)
    assert abs(float(x.var()) - 1.05) < off * 1.05 + 4 * 0.02
    assert abs(float(x.mean()) - 0.2) < off + 4 * 1.03 / 4000**0.5
    assert abs(float((x > 0).double().mean()) - 0.6) < off + 4 * 0.49 / 4000**0.5


def test_which_default_on_a_process_with_a_matrix() -> None:
    """gDDIM, by one evaluation where steps are long, where its rotation is known; at t = 0 it is not."""
    assert sg.defaults.default_setting(CRITICAL, 7) == sg.Setting(sg.schemes.GDDIM(1), "quadratic", 7)
    assert sg.defaults.default_setting(CRITICAL, 8) == sg.Setting(sg.schemes.GDDIM(3), "quadratic", 8)
    assert sg.defaults.default_setting(CRITICAL, 20, t_end=0.0) == sg.Setting("heun2", nfe=20)


BAD: list[tuple[Any, str]] = [
    (lambda: sg.CLD(mass=-1.0), "mass must be finite, at least .* got -1.0"),
    (lambda: sg.CLD(friction=0.0), "friction must be finite, at least .* got 0.0"),
    (lambda: sg.CLD(gamma=math.inf), "gamma must be finite, at least .* got inf"),
    (lambda: sg.CLD(beta_min=5.0, beta_max=1.0), "beta_min <= beta_max"),
    (lambda: sg.CLD(eps=2.0), "0 <= eps < T"),
    (
        lambda: sg.processes.MatrixSDE.from_rate(
            np.eye(2), np.eye(2), prior_covariance=[[1, 2], [2, 1]], initial_covariance=np.eye(2)
        ),
        "prior covariance must be positive definite.*eigenvalue -1",
    ),
    (
        lambda: sg.processes.MatrixSDE.from_rate(
            np.eye(2), np.eye(2), prior_covariance=np.eye(2), initial_covariance=[[1, 0.5], [0, 1]]
        ),
        "initial covariance must be symmetric",
    ),
    (
        lambda: sg.processes.MatrixSDE.from_rate(
            np.eye(3), np.eye(3), prior_covariance=np.eye(2), initial_covariance=np.eye(2)
        ),
        r"drift matrix has the shape \(3, 3\), the prior covariance \(2, 2\)",
    ),
    (lambda: CRITICAL.prior_sample((4, 3), seed=0), r"2 blocks on axis 1, \(B, 2, \*\): got \(4, 3\)"),
    (lambda: CRITICAL.transition(0.5, 0.2), "runs forward in time"),
    (lambda: CRITICAL.rotation([1e-9]), "rotation is known from"),
    (lambda: sg.schemes.GDDIM(nodes=0), "nodes must be an integer of at least 1, got 0"),
    (lambda: sg.schemes.SSCS(eta=-1.0), "eta must be finite, at least 0"),
    (lambda: sg.likelihood.joint_log_prob(lambda z, t: z, CRITICAL, torch.zeros(2, 3)), r"need states \(B, 2, \*\)"),
    (
        lambda: sg.likelihood.joint_log_prob(
            lambda z, t: z * z.new_tensor([1.0, math.inf]).view(2, 1, 1), CRITICAL, torch.ones(2, 2, 1)
        ),
        r"output is not finite at t=1e-05 in sample 1",
    ),
    (
        lambda: sg.log_prob(lambda z, t: z, CRITICAL, torch.zeros(2, 2, 1), method="rk45-scipy"),
        "take method=FixedGrid",
    ),
    (
        lambda: sg.sample(lambda z, t: z, CRITICAL, x_T=torch.zeros(2, 3, 1), solver=sg.schemes.SSCS(), steps=2),
        r"state of 2 blocks, \(B, 2, \*\): got \(2, 3, 1\)",
    ),
    (
        lambda: sg.sample(
            sg.scores.from_velocity_noise(lambda z, t: z, CRITICAL),
            CRITICAL,
            (2, 2, 1),
            solver=sg.schemes.SSCS(),
            steps=2,
        ),
        "the network returned shape",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call: Any, message: str) -> None:
    """Errors say what was wrong, with the value."""
    with pytest.raises(ValueError, match=message):
        call()


def test_velocities_need_a_process_with_matrices() -> None:
    """They have none on a scalar process."""
    with pytest.raises(TypeError, match="needs a process such as CLD"):
        sg.scores.from_velocity_noise(lambda z, t: z, sg.VPSDE())


@pytest.mark.parametrize("solver", ["dpm++2m", "reverse-diffusion", "heun"])
def test_solvers_that_need_numbers_say_so(solver: str) -> None:
    """On a process with matrices."""
    score = default_oracle().score(CRITICAL)

    with pytest.raises(TypeError, match="CLD does not have: its kernel is made of matrices"):
        sg.sample(score, CRITICAL, (2, 2, 2), solver=solver, nfe=5)


@pytest.mark.parametrize("solver", [sg.schemes.SSCS(), sg.schemes.GDDIM()], ids=case_id)
def test_solvers_that_need_matrices_say_so(solver: sg.Solver) -> None:
    """On a scalar process."""
    with pytest.raises(TypeError, match="VPSDE does not have: its kernel is made of numbers"):
        sg.sample(default_oracle().score(sg.VPSDE()), sg.VPSDE(), (2, 2), solver=solver, nfe=5)


def test_a_network_that_writes_into_its_state_leaves_the_caller_s() -> None:
    """It is refused, and x_T stays as it was."""
    x = CRITICAL.prior_sample((4, 2, 2), seed=0, dtype=F64)
    before = x.clone()
    score = sg.scores.from_velocity_score(lambda x, t: x.mul_(1.1)[:, 1:], CRITICAL)
    with pytest.raises(ValueError):
        sg.sample(score, CRITICAL, x_T=x, solver="euler", steps=4, seed=0)
    assert torch.equal(x, before)


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
def test_propagators_are_transitions_by_default(sde: sg.processes.MatrixSDE) -> None:
    """Without a pull, and with the process' own noise."""
    for got, expected in zip(sde.propagate(0.2, 0.9), moved(A, D @ D.T, rate_between(0.2, 0.9)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8)


@pytest.mark.parametrize("sde", [COUPLED, INTEGRATED], ids=["rate", "functions"])
@pytest.mark.parametrize("s, t", [(0.2, 1.5), (1.5, 0.2), (0.7, 0.7)])
@pytest.mark.parametrize("pull, noise", [(0.0, 1.0), (0.75, 0.5), (-2.0, 0.0)])
def test_propagators(sde: sg.processes.MatrixSDE, s: float, t: float, pull: float, noise: float) -> None:
    """Forward and backward in time, with and without a pull to the prior; the noise's covariance is positive."""
    Q, back = D @ D.T, -1.0 if t < s else 1.0
    M = A + pull * Q @ np.linalg.inv(P)
    phi, N = sde.propagate(s, t, pull, noise)
    expected = moved(back * M, noise**2 * Q, abs(rate_between(s, t)))
    np.testing.assert_allclose(phi, expected[0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(N, expected[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sde", [COUPLED, INTEGRATED], ids=["rate", "functions"])
def test_nodes_hold_the_process_at_a_time(sde: sg.processes.MatrixSDE) -> None:
    """Drift, diffusion, transition, law given the data and its Cholesky factor."""
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


@pytest.mark.parametrize("sde", [COUPLED, INTEGRATED], ids=["rate", "functions"])
@pytest.mark.parametrize("to", [0.1, 1.7])
def test_nodes_lead_to_other_times(sde: sg.processes.MatrixSDE, to: float) -> None:
    """By the noise on the way, the process without noise, and a propagator."""
    t = 0.6
    (node,) = sde.nodes([t])

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


def test_the_prior_s_density_by_hand() -> None:
    """PyTorch's, per sample; its largest scale, blocks, positions and velocities."""
    z = torch.arange(12.0, dtype=F64).reshape(2, 2, 3) / 5 - 1
    prior = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), torch.from_numpy(P))
    torch.testing.assert_close(COUPLED.prior_log_prob(z), prior.log_prob(z.mT).sum(1))
    assert (COUPLED.blocks, COUPLED.marginal_kind, THIRD.blocks, CRITICAL.prior_std) == (2, "matrix", 3, 1.0)
    wide = sg.processes.MatrixSDE.from_rate(
        CHAIN, CHAIN, prior_covariance=4 * np.eye(3), initial_covariance=np.zeros((3, 3))
    )
    assert wide.prior_std == 2.0
    assert COUPLED.position(z).tolist() == z[:, 0].tolist()
    assert CRITICAL.velocity(z).tolist() == z[:, 1].tolist()


@pytest.mark.parametrize("t, cov", [(None, P), (2.0, P), (0.6, law(COUPLED, 0.6)[1])], ids=case_id)
def test_the_prior_by_hand(t: float | None, cov: np.ndarray) -> None:
    """N(0, P), at an earlier time N(0, Sigma)."""
    z = torch.arange(12.0, dtype=F64).reshape(2, 2, 3) / 5 - 1

    expected = np.einsum("ij,bjn->bin", np.linalg.cholesky(cov), z.numpy())
    np.testing.assert_allclose(COUPLED.prior_transform(z, t), expected, rtol=1e-9)


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
    """The Cholesky factor at T; before, R' = (F + GG^T Sigma^-1 / 2) R, by differences; down to 1e-7 T."""
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
    with pytest.raises(ValueError, match=r"is known from 2e-07 to T=2\.0"):
        COUPLED.rotation([1.5e-7])


@pytest.mark.parametrize("wrong", [0.99e-7, 1 + 1.5e-9])
def test_rotations_are_known_within_the_process(wrong: float) -> None:
    """Down to 1e-7 T, no further, and up to T but for rounding."""
    with pytest.raises(ValueError, match=r"rotation is known from 1e-07 to T=1\.0"):
        CRITICAL.rotation([0.5, wrong])


def test_rotations_of_a_short_process() -> None:
    """They are a longer one's, turned: the flow is the same, down to 1e-7 of its own end."""
    short, long = sg.CLD(T=0.01, eps=1e-4), sg.CLD()
    turn = np.linalg.solve(long.rotation([0.01])[0], short.rotation([0.01])[0])
    for got, expected in zip(short.rotation([1e-3, 2e-7]), long.rotation([1e-3, 2e-7]), strict=True):
        np.testing.assert_allclose(got, expected @ turn, rtol=1e-8, atol=1e-8 * abs(expected).max())


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
    """(B, k) is a state of nothing but blocks."""
    assert COUPLED.position(torch.tensor([[1.0, 2.0]])).tolist() == [1.0]


@pytest.mark.parametrize("shape", [(2,), (2, 3), (3, 3, 2)], ids=case_id)
def test_states_of_other_blocks_are_refused(shape: tuple[int, ...]) -> None:
    """(k,) and another number of blocks are none."""
    with pytest.raises(ValueError, match=r"has 2 blocks on axis 1"):
        COUPLED.position(torch.zeros(shape))


def test_transitions_of_a_rate_in_single_precision() -> None:
    """They are those of double precision, rounded."""
    B = torch.tensor([1e-4, 0.3], dtype=torch.float32)
    for got, expected in zip(CRITICAL.transition_of_rate(B), CRITICAL.transition_of_rate(B.double()), strict=True):
        assert torch.equal(got, expected.float())


@pytest.mark.parametrize("sde", [CRITICAL, COUPLED], ids=case_id)
def test_single_precision_is_double_precision_rounded(sde: sg.processes.MatrixSDE) -> None:
    """Kernels are computed in float64, whatever the times' dtype."""
    t = torch.tensor([1e-5, 1e-3, 0.3], dtype=torch.float32)

    exact = sde.transition_of_rate(sde.integrated_beta(t).double())  # type: ignore[attr-defined]
    for got, expected in zip(sde.transition(0.0, t), exact, strict=True):
        assert torch.equal(got, expected.float())
    torch.testing.assert_close(sde.log_snr(t), sde.log_snr(t.double()).float(), rtol=1e-6, atol=0)
