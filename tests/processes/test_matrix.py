"""Matrix. Linear processes with a matrix: kernels, scores, solvers and likelihoods of CLD and its kin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks.cld import kernel_by_scipy
from benchmarks.cld_defaults import THIRD
from sgm_sde.engine.executor import execute
from sgm_sde.engine.matrix import Matrix
from sgm_sde.engine.program import Program
from sgm_sde.likelihood import FixedGrid, Hutchinson
from sgm_sde.processes.matrix import apply, van_loan
from sgm_sde.testing import default_oracle, measure_order, measure_weak_order
from tests.conventions import case_id
from tests.helpers import DOUBLE, F64, Recorder, bind, stream
from tests.processes.matrix_cases import CRITICAL

OVER = sg.CLD(beta_min=0.5, beta_max=8.0, friction=2.0)


UNDER = sg.CLD(mass=1.0, friction=0.5, beta_min=6.0)


PROCESSES = {"critical": CRITICAL, "over": OVER, "under": UNDER}


QUADRATIC = sg.grids.Quadratic()


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


def test_integrated_matrices_are_those_of_the_rate() -> None:
    """`from_functions` by SciPy against the closed form, and the same solver table on both."""
    kwargs: dict[str, Any] = {
        "prior_covariance": OVER.prior_covariance.array,
        "initial_covariance": OVER.initial_covariance.array,
    }
    numeric = sg.processes.MatrixSDE.from_functions(
        lambda t: OVER.drift_matrix(t).numpy(), lambda t: OVER.g(t).numpy(), **kwargs
    )
    for s, t in ((0.0, 0.01), (0.2, 0.9)):
        for got, expected in zip(numeric.transition(s, t), OVER.transition(s, t), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-12)
    for got, expected in zip(numeric.propagate(0.9, 0.2, 1.0), OVER.propagate(0.9, 0.2, 1.0), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)
    grid = QUADRATIC(OVER, 1, t_end=0.4)
    tables = [sg.schemes.SSCS().compile(sde, grid) for sde in (numeric, OVER)]
    x, score = OVER.prior_sample((4, 2, 2), seed=0, dtype=F64), default_oracle().score(OVER)
    runs = [execute(table, x, bind(score, OVER, grid.times), stream(4)).x for table in tables]
    torch.testing.assert_close(*runs, rtol=1e-7, atol=1e-8)


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


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize(
    "solver",
    [
        sg.EulerMaruyama(eta=0.0),
        sg.RungeKutta(sg.tableaus.HEUN2),
        sg.schemes.SSCS(eta=0.0),
        sg.schemes.GDDIM(1),
        sg.schemes.GDDIM(2),
        sg.schemes.GDDIM(3),
    ],
    ids=["euler", "heun2", "sscs", "gddim1", "gddim2", "gddim3"],
)
def test_orders_on_the_flow(solver: sg.Solver, kind: str) -> None:
    """The claimed order is measured on Gaussian and mixture data extended by the velocity."""
    measured = measure_order(
        solver, CRITICAL, oracle=default_oracle(kind), rule=QUADRATIC, t_start=0.35, t_end=0.06, steps=(40, 80)
    )
    assert measured.order > solver.order - 0.15


@pytest.mark.parametrize("solver", [sg.EulerMaruyama(), sg.schemes.SSCS(), sg.schemes.SSCS(eta=0.5)], ids=repr)
def test_weak_orders(solver: sg.Solver) -> None:
    """The law of the joint state errs by the first power of the step, on a rate that depends on time."""
    measured = measure_weak_order(solver, OVER, rule=QUADRATIC, t_start=0.7, t_end=0.2, steps=(40, 80))
    assert 0.85 < measured.order < 1.2


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sscs_is_exact_where_the_data_are_the_prior(eta: float) -> None:
    """The kick vanishes, and two exact halves of a time-dependent rate leave N(0, P) alone, in one step of any size."""

    def score(z: Tensor, t: Tensor) -> Tensor:
        return -apply(OVER.prior_covariance.inverse, z)

    grid = sg.Grid([1.0, 0.1])
    program = sg.schemes.SSCS(eta=eta).compile(OVER, grid)
    draws = sum(len(stage.noises) for stage in program.stages)
    x = torch.zeros(2 + 2 * draws, 2, 1, dtype=F64)
    x[:2] = torch.from_numpy(np.linalg.cholesky(OVER.prior_covariance.array)).mT[..., None]

    class Impulses:
        row = 2

        def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any = None) -> Tensor:
            z = torch.zeros(shape, dtype=dtype)
            z[self.row, 0] = z[self.row + 1, 1] = 1
            self.row += 2
            return z

    y = execute(program, x, bind(sg.from_score(score, OVER), OVER, grid.times), Impulses()).x[..., 0]
    np.testing.assert_allclose((y.T @ y).numpy(), OVER.prior_covariance.array, rtol=1e-12, atol=1e-13)


SAMPLERS = {
    "em": sg.EulerMaruyama(),
    "sscs": sg.schemes.SSCS(),
    "gddim": sg.schemes.GDDIM(3),
    "rk4": sg.RungeKutta(),
    "pc": sg.PredictorCorrector(sg.schemes.SSCS(), sg.schemes.VelocityLangevin(snr=0.01)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_reach_the_data(name: str) -> None:
    """From the prior to Gaussian data: mean and covariance within the sampling error and a bias of the steps."""
    oracle, n = default_oracle(), 800
    res = sg.sample(oracle.score(CRITICAL), CRITICAL, (n, 2, 2), solver=SAMPLERS[name], steps=80, seed=0)
    x = CRITICAL.position(res.x).double()
    assert res.status.ok and CRITICAL.velocity(res.x).shape == x.shape
    assert float((x.mean(0) - torch.tensor([0.3, -0.7])).abs().max()) < 0.1
    assert float((torch.cov(x.T) - torch.tensor([[0.5, 0.2], [0.2, 0.3]])).abs().max()) < 0.1


def test_the_velocity_corrector_moves_velocities_alone() -> None:
    """The first block stays to the last bit, and the step does not depend on it."""
    z = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    mean, added = sg.schemes.VelocityLangevin(snr=0.3).update(z, torch.ones_like(z), torch.ones_like(z), 1.0)
    assert torch.equal(mean[:, 0], z[:, 0]) and not bool(added[:, 0].any())
    other = sg.Langevin(snr=0.3).update(z[:, 1], torch.ones(3, 4), torch.ones(3, 4), 1.0)
    assert torch.equal(mean[:, 1], other[0]) and torch.equal(added[:, 1], other[1])


@pytest.mark.parametrize("solver", [sg.schemes.SSCS(), sg.schemes.GDDIM(2)], ids=case_id)
def test_a_velocity_network_needs_no_more_than_the_velocity(solver: Any) -> None:
    """A network of s_v or of its noise, and one that denoises, draw the samples of the exact joint score."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
    exact = oracle.score(CRITICAL)

    def noise_v(z: Tensor, t: Tensor) -> Tensor:
        return exact.predict("noise", z, t)[:, 1]

    variance_of_v = 0.3

    def left(z: Tensor, t: Tensor) -> Tensor:
        mu, covariance = CRITICAL.kernel(t)
        share = torch.linalg.cholesky(covariance)[:, 1, 1] / (covariance[:, 1, 1] + variance_of_v**2 * mu[:, 1] ** 2)
        return noise_v(z, t) - share[:, None] * z[:, 1]

    scores = [
        exact,
        sg.scores.from_velocity_noise(noise_v, CRITICAL),
        sg.scores.from_velocity_noise(left, CRITICAL, mixed=variance_of_v),
        sg.scores.from_velocity_score(lambda z, t: exact(z, t)[:, 1], CRITICAL),
        sg.scores.from_joint_denoiser(lambda y, s: oracle.denoised(y, torch.ones_like(s), s), CRITICAL),
    ]
    runs = [sg.sample(s, CRITICAL, (4, 2, 1), solver=solver, nfe=12, seed=0, execution=DOUBLE).x for s in scores]
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-6, atol=1e-6)


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


def test_tables_with_matrices_are_values() -> None:
    """They go through JSON to the last bit, print, and hash."""
    grid = QUADRATIC(CRITICAL, 4)
    for solver in (sg.schemes.SSCS(), sg.schemes.GDDIM(2), sg.EulerMaruyama()):
        program = solver.compile(CRITICAL, grid)
        assert Program.from_json(program.to_json()) == program
        assert program.blocks == 2 and hash(program) == hash(Program.from_json(program.to_json()))
        assert "[" in str(program)
    assert sg.DDIM().compile(sg.VPSDE(), QUADRATIC(sg.VPSDE(), 4)).blocks == 1
    assert sg.EulerMaruyama(eta=0.0).compile(CRITICAL, grid).blocks == 1


def test_matrix_algebra() -> None:
    """Products are matrix products, and numbers stand for multiples of the identity."""
    A, B = Matrix.of([[1, 2], [3, 4]]), Matrix.of([[0, 1], [1, 0]])
    assert (A * B).array.tolist() == [[2, 1], [4, 3]] and (B * A).array.tolist() == [[3, 4], [1, 2]]
    assert (A + 1).rows == (1 + A).rows == ((2.0, 2.0), (3.0, 5.0))
    assert (A - B).rows == (A + -B).rows and (2.0 * A).rows == (A * 2.0).rows
    assert not Matrix.of(np.zeros((2, 2))) and (A.inverse * A + 0.0) == Matrix.of(A.inverse.array @ A.array)
    z = torch.arange(4.0).reshape(1, 2, 2)
    assert torch.equal(apply(A, z), torch.einsum("ij,bjn->bin", torch.tensor(A.rows), z))


@pytest.mark.parametrize(("solver", "first"), [(sg.schemes.SSCS(), None), (sg.schemes.GDDIM(2), 1.0)], ids=case_id)
def test_the_network_is_called_inside_the_times_and_counted(solver: Any, first: Any) -> None:
    """SSCS in the middle of its steps, GDDIM at their starts, and once more for the denoised end."""
    net = Recorder(lambda z, t: -z[:, 1])
    res = sg.sample(sg.scores.from_velocity_score(net, CRITICAL), CRITICAL, (2, 2, 3), solver=solver, nfe=6, seed=0)
    assert res.nfe == len(net.times) == 6 and max(net.times) <= 1.0 and min(net.times) >= 0.000999
    assert first is None or net.times[0] == first


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
    assert beyond.unresolved == (0,)


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
    assert sg.defaults.default_setting(CRITICAL, 7) == sg.Setting(sg.schemes.GDDIM(1), "quadratic")
    assert sg.defaults.default_setting(CRITICAL, 8) == sg.Setting(sg.schemes.GDDIM(3), "quadratic")
    assert sg.defaults.default_setting(CRITICAL, 20, t_end=0.0) == sg.Setting("heun2")


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


def test_solvers_that_need_numbers_say_so() -> None:
    """And those that need a matrix, on a scalar process."""
    score = default_oracle().score(CRITICAL)
    for solver in ("dpm++2m", "reverse-diffusion", "heun"):
        with pytest.raises(TypeError, match="CLD does not have: its kernel is made of matrices"):
            sg.sample(score, CRITICAL, (2, 2, 2), solver=solver, nfe=5)
    for solver in (sg.schemes.SSCS(), sg.schemes.GDDIM()):
        with pytest.raises(TypeError, match="VPSDE does not have: its kernel is made of numbers"):
            sg.sample(default_oracle().score(sg.VPSDE()), sg.VPSDE(), (2, 2), solver=solver, nfe=5)
    with pytest.raises(TypeError, match="needs a process such as CLD"):
        sg.scores.from_velocity_noise(lambda z, t: z, sg.VPSDE())


def test_a_network_that_writes_into_its_state_leaves_the_caller_s() -> None:
    """It is refused, and x_T stays as it was."""
    x = CRITICAL.prior_sample((4, 2, 2), seed=0, dtype=F64)
    before = x.clone()
    score = sg.scores.from_velocity_score(lambda x, t: x.mul_(1.1)[:, 1:], CRITICAL)
    with pytest.raises(ValueError):
        sg.sample(score, CRITICAL, x_T=x, solver="euler", steps=4, seed=0)
    assert torch.equal(x, before)
