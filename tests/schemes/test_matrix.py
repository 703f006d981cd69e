"""Solvers on processes with a matrix: orders, laws, and tables by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.integrate import quad_vec
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.executor import execute
from sgm_sde.engine.program import Program
from sgm_sde.processes.matrix import apply
from sgm_sde.schemes.matrix import root
from sgm_sde.testing import default_oracle, measure_order, measure_weak_order
from tests.conventions import case_id
from tests.helpers import DOUBLE, F64, Recorder, bind
from tests.processes.matrix_cases import COUPLED, CRITICAL, OVER, QUADRATIC, A, D, P, rate_between


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


def test_correctors_name_one_another() -> None:
    """Of states with velocities, and of those without."""
    grid = sg.Grid([0.8, 0.3, 0.05])
    with pytest.raises(TypeError, match=r"Langevin.*CLD.*VelocityLangevin"):
        sg.Langevin().constants(sg.CLD(), grid)
    with pytest.raises(TypeError, match="cov"):
        sg.schemes.VelocityLangevin().constants(sg.VPSDE(), grid)


@pytest.mark.parametrize("s", [0.0, 0.7])
def test_the_velocity_corrector_s_step(s: float) -> None:
    """epsilon = 2 r^2 times the velocity's variance given the position: what regression on it leaves."""
    grid = sg.Grid([0.8, 0.3, 0.05])

    known = []
    for t in grid.times:
        mu, cov = CRITICAL.kernel(torch.tensor(t, dtype=torch.float64))
        (xx, xv), (_, vv) = (cov + s**2 * torch.outer(mu, mu)).tolist()
        known.append(2 * 0.3**2 * (vv - xv**2 / xx))
    corrector = sg.schemes.VelocityLangevin(snr=0.3, data_std=s)
    assert corrector.constants(CRITICAL, grid) == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("solver", ["ggf", "torchsde:euler"])
def test_solvers_of_one_noise_level(solver: str) -> None:
    """A matrix has none."""
    with pytest.raises(TypeError, match=f"{solver} needs one diffusion coefficient .* got CLD"):
        sg.sample(lambda z, t: -z, CRITICAL, (1, 2, 3), solver=solver, seed=0)


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


def test_tables_of_numbers_have_one_block() -> None:
    """On a process with matrices, too."""
    grid = QUADRATIC(CRITICAL, 4)
    assert sg.DDIM().compile(sg.VPSDE(), QUADRATIC(sg.VPSDE(), 4)).blocks == 1
    assert sg.EulerMaruyama(eta=0.0).compile(CRITICAL, grid).blocks == 1


@pytest.mark.parametrize("solver", [sg.schemes.SSCS(), sg.schemes.GDDIM(2), sg.EulerMaruyama()], ids=case_id)
def test_tables_with_matrices_are_values(solver: sg.Solver) -> None:
    """They go through JSON to the last bit, print, and hash."""
    grid = QUADRATIC(CRITICAL, 4)

    program = solver.compile(CRITICAL, grid)
    assert Program.from_json(program.to_json()) == program
    assert program.blocks == 2 and hash(program) == hash(Program.from_json(program.to_json()))
    assert "[" in str(program)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # no score of a density
@pytest.mark.parametrize(("solver", "first"), [(sg.schemes.SSCS(), None), (sg.schemes.GDDIM(2), 1.0)], ids=case_id)
def test_the_network_is_called_inside_the_times_and_counted(solver: Any, first: Any) -> None:
    """SSCS in the middle of its steps, GDDIM at their starts, and once more for the denoised end."""
    net = Recorder(lambda z, t: -z[:, 1])
    res = sg.sample(sg.scores.from_velocity_score(net, CRITICAL), CRITICAL, (2, 2, 3), solver=solver, nfe=6, seed=0)
    assert res.nfe == len(net.times) == 6 and max(net.times) <= 1.0 and min(net.times) >= 0.000999
    assert first is None or net.times[0] == first
