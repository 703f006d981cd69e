"""Adaptive solvers: orders, tolerances, and steps that are a sample's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.adaptive import Active, Controller, Integration, Pair, integrate
from sgm_sde.engine.brownian import BrownianTree
from sgm_sde.engine.noise import SampleSeeds
from sgm_sde.engine.phi import phi, phi_values
from sgm_sde.grids import LogSNR
from sgm_sde.schemes import ADAPTIVE, BOSH3, DOP853, DOPRI5, TSIT5, ExponentialPair, resolve_any
from sgm_sde.schemes.adaptive import VARIABLES, Flow, _PathStepper
from sgm_sde.schemes.tableaus import order_of
from sgm_sde.scores.model import BoundScore
from tests.conventions import case_id
from tests.helpers import DOUBLE, F64, LINEAR, MIXTURE, Recorder, elementwise_score

ODE = [name for name in ADAPTIVE if name != "ggf"]
PAIRS: list[Pair] = [BOSH3, DOPRI5, TSIT5, DOP853, ExponentialPair(2), ExponentialPair(3)]
EVEN = Controller(safety=1.0, integral=0.0, proportional=0.0, smallest=1.0, largest=1.0)


def names(pair: Pair) -> str:
    """For the tests' names."""
    return pair.name


def even_steps(rhs: Callable[..., object], y0: object, t0: float, t1: float, pair: Pair, steps: int) -> Integration:
    """Even steps: a tolerance that everything meets and a controller that changes nothing."""
    return integrate(
        rhs, y0, t0, t1, pair, rtol=0.0, atol=1e9, controller=EVEN, first_step=abs(t1 - t0) / steps
    )  # fmt: skip


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tableau", "order", "embedded", "error_order", "calls"),
    [(BOSH3, 3, 2, 3, 3), (DOPRI5, 5, 4, 5, 6), (TSIT5, 5, 4, 5, 6), (DOP853, 8, 5, 8, 12)],
    ids=lambda v: getattr(v, "name", ""),
)
def test_orders_from_rooted_trees(
    tableau: sg.tableaus.EmbeddedTableau, order: int, embedded: int, error_order: int, calls: int
) -> None:
    """All order conditions up to the claimed order hold, and one of the next order does not."""
    assert (tableau.order, tableau.embedded_order, tableau.error_order) == (order, embedded, error_order)
    assert tableau.nfe_per_step == calls
    assert tableau.fsal == (tableau is not DOP853)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_order_conditions_tell_quadrature_apart(steps: int) -> None:
    """A tableau without inner slopes is Euler's method, whatever its weights; a Taylor method has any order."""
    assert order_of(tuple(tuple([0.0] * i) for i in range(steps)), (1 / steps,) * steps) == 1
    # Extrapolated Euler: T_{n} from 1..n substeps has order n (Hairer, Norsett & Wanner, 1993, II.9).
    rows: list[list[float]] = []
    weights: list[float] = []
    n = min(steps, 4)
    for k in range(1, n + 1):
        share = math.prod(k / (k - j) for j in range(1, n + 1) if j != k)
        first = len(rows)
        for i in range(k):
            row = [0.0] * len(rows)
            for j in range(i):
                row[first + j] = 1 / k
            rows.append(row)
            weights.append(share / k)
    assert order_of(tuple(map(tuple, rows)), tuple(weights)) == n


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.5), (1.5, 0.0)])
@pytest.mark.parametrize("pair", PAIRS, ids=names)
def test_order_of_convergence(pair: Pair, t0: float, t1: float) -> None:
    """Even steps on y' = L y + N(t, y) with a known solution reach the order of the pair, in both directions."""
    # y = 1 / (1 + sin t) solves y' = -y^2 cos t.
    known = lambda t: 1 / (1 + math.sin(t))  # noqa: E731
    y0 = torch.full((1, 1), known(t0), dtype=F64)
    counts = {8: (4, 8), 5: (8, 16)}.get(pair.order, (24, 48))
    errors = []
    for steps in counts:
        end = even_steps(
            lambda t, y, i: -(y**2) * t.cos()[:, None] - pair.linear * y, y0, t0, t1, pair, steps
        )  # fmt: skip
        assert int(end.accepted) == steps
        errors.append(abs(float(end.y[0]) - known(t1)))
    assert math.log2(errors[0] / errors[1]) > pair.order - 0.25, errors


@pytest.mark.parametrize("pair", PAIRS, ids=names)
def test_the_error_estimate_vanishes_with_its_order(pair: Pair) -> None:
    """The estimate of one step falls by 2^error_order when the step is halved."""
    errors = []
    for h in (0.2, 0.1) if pair.order == 8 else (0.1, 0.05):
        seen: list[Tensor] = []
        spy = _spy(pair, seen)
        integrate(lambda t, y, i: -(y**2) * t.cos()[:, None] - pair.linear * y, torch.full((1, 1), 0.8, dtype=F64),
                  0.3, 0.3 + h, spy, rtol=0.0, atol=1.0, first_step=h)  # fmt: skip
        errors.append(float(seen[0]))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(pair.error_order, abs=0.75)


def _spy(pair: Pair, seen: list[Tensor]) -> Pair:
    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(pair, name)

        def error(self, norms: list[Tensor]) -> Tensor:
            seen.append(pair.error(norms))
            return seen[-1]

    return Spy()  # type: ignore[return-value]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5])
def test_phi_of_tensors_is_phi(k: int) -> None:
    """The tensor version agrees with the scalar one to rounding, near 0, at the seam and far out."""
    z = [0.0, -1e-12, 1e-6, -0.3, 0.999999, -0.999999, -1.0, 1.0, -1.5, -7.0, 3.0, -40.0]
    values = phi_values(k, torch.tensor(z, dtype=F64)).tolist()
    assert values == pytest.approx([phi(k, v) for v in z], rel=2e-15 * 4**k, abs=1e-300)
    with pytest.raises(ValueError, match="k >= 0, got -1"):
        phi_values(-1, torch.zeros(1, dtype=F64))


@pytest.mark.parametrize("order", [2, 3])
def test_exponential_pairs_are_the_solvers_on_a_grid(order: int) -> None:
    """Even steps of lambda give what ExponentialRungeKutta gives on a log-SNR grid."""
    sde, steps = sg.VPSDE(), 12
    grid = LogSNR()(sde, steps)
    known = sg.sample(
        MIXTURE.score(sde), sde, (4, 2), solver=sg.schemes.ExponentialRungeKutta(stages=order), grid=grid, seed=0,
        execution=DOUBLE, final="none",
    )  # fmt: skip
    length = float(sde.log_snr(sde.eps) - sde.log_snr(sde.T)) / 2
    solver = sg.Adaptive(ExponentialPair(order), 0.0, 1e9, controller=EVEN, first_step=length / steps)
    got = sg.sample(MIXTURE.score(sde), sde, (4, 2), solver=solver, seed=0, execution=DOUBLE, final="none")
    assert got.control.accepted.tolist() == [steps] * 4
    torch.testing.assert_close(got.x, known.x, rtol=1e-9, atol=1e-9)


def test_bad_tableaus() -> None:
    """An estimate that does not vanish on constants, or of the wrong length, is refused; so is a strange order."""
    a, b = [[], [1.0]], [0.5, 0.5]
    with pytest.raises(ValueError, match="sum to 0"):
        sg.tableaus.EmbeddedTableau(a, b, [[0.5, 0.4]])
    with pytest.raises(ValueError, match="2 weights"):
        sg.tableaus.EmbeddedTableau(a, b, [[0.5, -0.4, -0.1]])
    with pytest.raises(ValueError, match="one error estimate, or two, got 3"):
        sg.tableaus.EmbeddedTableau(a, b, [[0.5, -0.5]] * 3)
    with pytest.raises(ValueError, match="got 4"):
        ExponentialPair(4)


def test_a_tableau_of_ones_own() -> None:
    """Heun's method with Euler's as its companion: orders and samples."""
    pair = sg.tableaus.EmbeddedTableau([[], [1.0]], [0.5, 0.5], [[0.5, -0.5]], name="heun-euler")
    assert (pair.order, pair.error_order, pair.fsal, pair.nfe_per_step) == (2, 2, False, 2)
    sde = sg.VPSDE()
    res = sg.sample(elementwise_score(sde), sde, (3, 2), solver=sg.Adaptive(pair), seed=0, execution=DOUBLE)
    known = sg.sample(
        elementwise_score(sde),
        sde,
        (3, 2),
        solver=sg.Adaptive(DOP853, 1e-9, 1e-9),
        seed=0,
        execution=DOUBLE,
    )
    assert float((res.x - known.x).abs().max()) < 1e-2


# --- tolerances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
@pytest.mark.parametrize(("name", "process"), [(n, p) for n in ODE for p in LINEAR if n == "dopri5" or p == "vp"])
def test_the_error_follows_the_tolerance(name: str, process: str, tol: float) -> None:
    """On Gaussian data the flow is a known scaling: the error is within 50 tolerances on every process."""
    sde, std = LINEAR[process], 0.5
    score = sg.oracles.Gaussian(torch.zeros(3), std**2).score(sde)
    ends = [math.hypot(float(sde.alpha(t)) * std, float(sde.sigma(t))) for t in (sde.T, sde.eps)]
    x = sde.prior_sample((2, 3), seed=1, dtype=F64)
    solver = replace(resolve_any(name), rtol=tol, atol=tol)
    res = sg.sample(score, sde, x_T=x, solver=solver, final="none")
    assert res.status.ok
    assert float((res.x - x * ends[1] / ends[0]).abs().max()) < 50 * tol, res.control


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_solves_the_same_flow(variable: str) -> None:
    """At a tight tolerance the variables agree, on a mixture."""
    sde = sg.VPSDE()

    def run(variable: str | None) -> Tensor:
        solver = sg.Adaptive(DOP853, 1e-9, 1e-9, variable=variable)
        return sg.sample(MIXTURE.score(sde), sde, (3, 2), solver=solver, seed=0, execution=DOUBLE).x

    torch.testing.assert_close(run(variable), run(None), rtol=1e-6, atol=1e-6)


def test_where_alpha_or_sigma_vanish() -> None:
    """Rectified flow from t = 1 to t = 0, where log-SNR has no bound, by a network that predicts the flow."""
    sde = sg.RectifiedFlowSDE(T=1.0, eps=0.0)
    s = 0.5

    def net(x: Tensor, t: Tensor) -> Tensor:  # the flow of N(0, s^2): d log std / dt x
        return (t - (1 - t) * s**2)[:, None] / (t**2 + (1 - t) ** 2 * s**2)[:, None] * x

    score = sg.from_flow(net, sde)
    x = sde.prior_sample((4, 3), seed=0, dtype=F64)
    res = sg.sample(score, sde, x_T=x, solver=sg.Adaptive(rtol=1e-8, atol=1e-8), final="none")
    torch.testing.assert_close(res.x, s * x, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"log-snr is -inf at t=1.0 .* take variable='flow-time'"):
        sg.sample(score, sde, x_T=x, solver="exp-rk32", final="none")


@dataclass(frozen=True)
class Well(sg.SDE):
    """The flow of a double well, without noise."""

    T, eps, prior_std = 1.0, 1e-3, 1.0

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return x - x**3

    def g(self, t: Tensor) -> Tensor:
        return 0 * t


def test_a_nonlinear_process() -> None:
    """Time is the variable where there is neither alpha nor sigma."""
    x = torch.tensor([[0.5], [-0.2]], dtype=F64)
    res = sg.sample(lambda x, t: 0 * x, Well(), x_T=x, solver=sg.Adaptive(rtol=1e-9, atol=1e-9))
    s = 1.0 - 1e-3  # backwards along x' = x - x^3: x(T) = x0 e^s / sqrt(1 + x0^2 (e^2s - 1))
    known = x * math.exp(-s) / (1 + x**2 * (math.exp(-2 * s) - 1)).sqrt()
    torch.testing.assert_close(res.x, known, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", ["exp-rk32", sg.Adaptive(variable="flow-time")], ids=case_id)
def test_a_nonlinear_process_has_no_log_snr(solver: str | sg.Solver) -> None:
    """Nor a linear part for exponential pairs to solve."""
    with pytest.raises(TypeError, match="needs a process with alpha"):
        sg.sample(lambda x, t: 0 * x, Well(), (2, 1), solver=solver)


def test_a_log_density_beside_the_state() -> None:
    """A tuple of a state and a number for each sample: both to the tolerance, forwards and back."""
    rate = torch.tensor([0.5, 2.0, 6.0], dtype=F64)
    y0 = (torch.ones(3, 2, dtype=F64), torch.zeros(3, dtype=F64))

    def rhs(t: Tensor, y: tuple[Tensor, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        assert len(t) == len(y[0]) == len(y[1]) == len(index)
        return -rate[index][:, None] * y[0], -2 * rate[index]

    there = integrate(rhs, y0, 0.0, 1.0, DOPRI5, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(there.y[0], (-rate).exp()[:, None].expand(3, 2), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(there.y[1], -2 * rate, rtol=1e-6, atol=1e-7)
    back = integrate(rhs, there.y, 1.0, 0.0, DOPRI5, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back.y, y0, rtol=1e-5, atol=1e-5)
    assert bool(there.completed.all())


@pytest.mark.parametrize("name", ["dopri5", "exp-rk32"])
def test_gradients(name: str) -> None:
    """Backpropagation through the accepted steps: the flow of a Gaussian is linear in its start."""
    sde, std = sg.VPSDE(), 0.5
    score = sg.oracles.Gaussian(torch.zeros(2), std**2).score(sde)
    x = sde.prior_sample((3, 2), seed=0, dtype=F64).requires_grad_()
    solver = replace(resolve_any(name), rtol=1e-7, atol=1e-7)
    res = sg.sample(score, sde, x_T=x, solver=solver, execution=sg.Execution(enable_grad=True), final="none")
    (slope,) = torch.autograd.grad(res.x.sum(), x)
    ratio = [math.hypot(float(sde.alpha(t)) * std, float(sde.sigma(t))) for t in (sde.T, sde.eps)]
    torch.testing.assert_close(slope, torch.full_like(slope, ratio[1] / ratio[0]), rtol=1e-4, atol=0)


def test_second_derivatives() -> None:
    """Gradients and their gradients through a step, against differences."""

    def end(y: Tensor, k: Tensor) -> Tensor:
        return even_steps(lambda t, y, i: y.sin() - (k * y) ** 2, y, 0.0, 1.0, BOSH3, 2).y[0]

    y, k = torch.tensor([[0.3, -0.8]], dtype=F64), torch.tensor([0.7, 0.2], dtype=F64)
    assert torch.autograd.gradcheck(end, (y.requires_grad_(), k.requires_grad_()))
    assert torch.autograd.gradgradcheck(end, (y, k))


# --- a sample's own steps --------------------------------------------------------------------------------------------


def stiff(sde: sg.LinearSDE, which: int) -> Callable[..., Tensor]:
    """A Gaussian's score, with an oscillation at one of the samples, told apart by the argument `label` (B,)."""
    base = elementwise_score(sde)

    def score(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        hard = (label == which).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return base(x, t) + hard * 3 * torch.sin(40 * x)

    return score


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_sample_is_what_it_is_alone(name: str) -> None:
    """In a batch of 64 with an outlier, permuted, and alone: the same to 1e-12, and by the same steps."""
    sde = sg.VPSDE()
    seeds = list(range(100, 164))
    solver = sg.schemes.GGF(rtol=0.2, atol=0.05) if name == "ggf" else resolve_any(name)
    x = torch.cat([sde.prior_sample((1, 3), seed=[s], dtype=F64) for s in seeds])

    def run(rows: list[int], x: Tensor) -> sg.SampleResult:
        return sg.sample(elementwise_score(sde), sde, x_T=x[rows], solver=solver, seed=[seeds[i] for i in rows])

    everyone = run(list(range(64)), x)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    permuted = run(order, x)
    spoilt = x.clone()
    spoilt[5] *= 200
    outlier = run(list(range(64)), spoilt)
    others = [i for i in range(64) if i != 5]
    close = {"rtol": 0.0, "atol": 1e-12}  # exp() of a vector rounds its last elements differently
    torch.testing.assert_close(permuted.x, everyone.x[order], **close)
    torch.testing.assert_close(outlier.x[others], everyone.x[others], **close)
    assert not torch.equal(outlier.x[5], everyone.x[5])
    for i in (0, 5, 63):
        alone = run([i], x)
        torch.testing.assert_close(alone.x[0], everyone.x[i], **close)
        assert alone.control.accepted[0] == everyone.control.accepted[i]
        assert alone.nfe == alone.network_evals
        assert int(alone.control.evaluations[0]) == int(everyone.control.evaluations[i])


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # a network of no data
@pytest.mark.parametrize("solver", ["dopri5", sg.schemes.GGF(rtol=0.1, atol=0.02)], ids=case_id)
def test_with_a_network_of_other_rounding(solver: Any) -> None:
    """A convolutional network in float32 rounds by batch size: samples agree to that rounding, not to the tolerance."""
    # For the SDE this takes rounded steps: on a Brownian path a step longer by 1e-7 sees noise that differs by 3e-4.
    from tests.test_independence import conv_net

    sde = sg.VPSDE()
    score = sg.from_noise(conv_net(), sde)
    together = sg.sample(score, sde, (5, 2, 6, 6), solver=solver, seed=[7, 8, 9, 10, 11]).x
    alone = sg.sample(score, sde, (1, 2, 6, 6), solver=solver, seed=[9]).x
    assert float((together[2] - alone[0]).norm() / alone.norm()) < 1e-5


@pytest.mark.parametrize("name", ADAPTIVE)
def test_finished_samples_leave_the_batch(name: str) -> None:
    """With one stiff sample the network sees the sum over samples, not the batch times the slowest."""
    sde, n = sg.VPSDE(), 8
    solver = sg.schemes.GGF(rtol=0.2, atol=0.05) if name == "ggf" else replace(resolve_any(name), rtol=1e-2, atol=1e-2)
    label = torch.arange(n)
    seen: list[Tensor] = []

    def score(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        assert x.shape[:1] == t.shape == label.shape
        seen.append(label)
        return stiff(sde, 3)(x, t, label)

    res = sg.sample(
        score,
        sde,
        (n, 2),
        solver=solver,
        seed=0,
        model_kwargs={"label": sg.PerSample(label)},
        execution=DOUBLE,
        final="none",
    )
    made = res.control.evaluations
    assert res.network_evals == int(made.sum()) == sum(len(rows) for rows in seen)
    assert torch.equal(torch.bincount(torch.cat(seen), minlength=n), made)
    assert res.nfe == len(seen) >= int(made.max())
    assert int(made[3]) > 2 * int(made[:3].max())
    assert res.network_evals < 0.7 * n * int(made.max())
    easy = sg.sample(
        elementwise_score(sde), sde, (n, 2), solver=solver, seed=0, execution=DOUBLE, final="none"
    )  # fmt: skip
    others = [i for i in range(n) if i != 3]
    torch.testing.assert_close(res.x[others], easy.x[others], rtol=0.0, atol=1e-12)


def test_arguments_without_a_row_for_each_sample_are_passed_on() -> None:
    """Numbers, and tensors of another length, are the same for all."""
    sde = sg.VPSDE()

    def score(x: Tensor, t: Tensor, shift: Tensor, weight: float, flag: Tensor) -> Tensor:
        assert (shift.shape, weight, flag.shape) == ((3,), 1.0, ())
        return weight * elementwise_score(sde)(x, t) + 0 * shift

    kwargs = {"shift": torch.zeros(3), "weight": 1.0, "flag": torch.tensor(True)}
    assert sg.sample(score, sde, (5, 3), solver="dopri5", seed=0, model_kwargs=kwargs).status.ok


def test_one_step_for_all_couples_them() -> None:
    """batch_coupled=True takes as many calls as one trajectory, and lets batch-mates matter."""
    sde = sg.VPSDE()
    solver = sg.Adaptive(batch_coupled=True)
    x = sde.prior_sample((8, 2), seed=0, dtype=F64)
    res = sg.sample(MIXTURE.score(sde), sde, x_T=x, solver=solver)
    assert len(set(res.control.accepted.tolist())) == 1
    assert res.network_evals == 8 * res.nfe
    alone = sg.sample(MIXTURE.score(sde), sde, x_T=x[:1], solver=solver)
    assert not torch.equal(alone.x[0], res.x[0])
    assert float((alone.x[0] - res.x[0]).abs().max()) < 0.1


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4)])
@pytest.mark.parametrize("name", ["dopri5", "exp-rk32", "ggf"])
def test_any_shape_and_dtype(name: str, shape: tuple[int, ...]) -> None:
    """Samples of any rank, in float64, float32 and bfloat16, the last integrated in float32."""
    sde = sg.VESDE()
    # Pairs with tolerances that do not show: rounding may change which steps are accepted.
    solver = sg.schemes.GGF(rtol=0.2, atol=0.1) if name == "ggf" else replace(resolve_any(name), rtol=1e-4, atol=1e-4)
    results = {}
    for dtype in (F64, torch.float32, torch.bfloat16):
        x = sde.prior_sample((3, *shape), seed=0, dtype=F64).to(dtype)
        score = sg.from_score(lambda x, t: elementwise_score(sde)(x.double(), t.double()), sde)
        results[dtype] = sg.sample(score, sde, x_T=x, solver=solver, seed=0)
        assert results[dtype].x.shape == (3, *shape)
        assert results[dtype].x.dtype == dtype
    assert float((results[F64].x - results[torch.float32].x).abs().max()) < 1e-3


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "process", "dtype"),
    [(n, p, torch.float32) for n in ADAPTIVE for p in LINEAR if n == "bosh3" or p == "vp"]
    + [(n, "cosine", F64) for n in ADAPTIVE],
)
def test_no_call_outside_of_the_run(name: str, process: str, dtype: torch.dtype) -> None:
    """Every time that the score is called at lies in [eps, T], and the last one is reached."""
    sde = LINEAR[process]
    score = Recorder(sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sde))
    solver = replace(resolve_any(name), rtol=0.1, atol=0.1)
    res = sg.sample(score, sde, (3, 2), solver=solver, seed=0, execution=sg.Execution(dtype=dtype))
    t = torch.cat(score.labels).double()
    assert float(t.min()) >= sde.eps
    assert float(t.max()) <= sde.T
    assert res.control.times.tolist() == [sde.eps] * 3
    assert float(t.max()) == pytest.approx(sde.T, rel=1e-6)
    assert float(t.min()) == pytest.approx(sde.eps, rel=1e-6)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("process", ["vp", "cosine"])
def test_no_call_outside_on_the_way_to_noise(process: str, variable: str) -> None:
    """The same from eps to T, where likelihoods go; there and back is the identity."""
    sde = LINEAR[process]
    net = Recorder(sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sde))
    model = BoundScore(sg.from_score(net, sde), sde, (sde.eps, sde.T))
    x = 0.5 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    z, way = x, ((sde.eps, sde.T), (sde.T, sde.eps))
    for ends in way:
        flow = Flow(model, variable, ends, 3)
        end = integrate(flow.slope, flow.enter(z), flow.start, flow.end, DOPRI5, rtol=1e-7, atol=1e-7)
        z, t = flow.leave(end.y[0], end.t)
        assert t.tolist() == [ends[1]] * 3
    t = torch.cat(net.labels)
    assert float(t.min()) == sde.eps
    assert float(t.max()) == sde.T
    torch.testing.assert_close(z, x, rtol=1e-4, atol=1e-4)


def test_parts_of_the_run() -> None:
    """From t_start to t_end and on is the whole."""
    sde = sg.VPSDE()
    score = elementwise_score(sde)
    solver = sg.Adaptive(DOP853, 1e-10, 1e-10)
    whole = sg.sample(score, sde, (2, 3), solver=solver, seed=0, execution=DOUBLE)
    half = sg.sample(score, sde, (2, 3), solver=solver, seed=0, execution=DOUBLE, t_end=0.5, final="none")
    assert half.times == (1.0, 0.5)
    rest = sg.sample(score, sde, x_T=half.x, solver=solver, t_start=0.5)
    torch.testing.assert_close(rest.x, whole.x, rtol=1e-7, atol=1e-7)
    with pytest.raises(ValueError, match=r"t_start=2\.0"):
        sg.sample(score, sde, (2, 3), solver=solver, t_start=2.0)


# --- giving up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_limit_on_steps(name: str) -> None:
    """Samples that run out of steps keep their last state, which is that of a run of fewer steps, and say so."""
    sde = sg.VPSDE()
    solver = replace(resolve_any(name), rtol=1e-6, atol=1e-6, max_steps=3)
    with pytest.warns(
        sg.sampling.UnfinishedWarning, match=r"3 of 3 samples stopped before t=0.001 \(sample 0 at t=0\.\d+"
    ):
        res = sg.sample(elementwise_score(sde), sde, (3, 2), solver=solver, seed=0, execution=DOUBLE)
    assert not res.status.ok
    assert res.status.samples == (0, 1, 2)
    assert res.control.outcome == ("out of steps",) * 3
    assert (res.control.accepted + res.control.rejected).tolist() == [3] * 3
    assert bool(res.x.isfinite().all())
    assert bool(((res.control.times > sde.eps) & (res.control.times < 1)).all())
    if name != "ggf":  # the partial state is one of the flow's, whose marginal is known
        std = [math.hypot(float(sde.alpha(t)) * 0.5, float(sde.sigma(t))) for t in (1.0, *res.control.times.tolist())]
        x = sde.prior_sample((3, 2), seed=0, dtype=F64)
        for i in range(3):
            mean = [float(sde.alpha(t)) * 0.3 for t in (1.0, float(res.control.times[i]))]
            known = mean[1] + (x[i] - mean[0]) * std[1 + i] / std[0]
            torch.testing.assert_close(res.x[i], known, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("nfe", [15, 33])
def test_a_budget_is_never_exceeded(name: str, nfe: int) -> None:
    """nfe= counts the final call too; where it does not suffice the status says so."""
    sde = sg.VPSDE()
    net = Recorder(elementwise_score(sde))
    solver = replace(resolve_any(name), rtol=1e-6, atol=1e-6)
    with pytest.warns(sg.sampling.UnfinishedWarning, match="out of steps"):
        res = sg.sample(net, sde, (3, 2), solver=solver, seed=0, nfe=nfe, execution=DOUBLE)
    assert len(net.states) == res.nfe <= nfe
    enough = sg.sample(elementwise_score(sde), sde, (3, 2), solver=replace(solver, rtol=0.1, atol=0.1), seed=0, nfe=500)
    assert enough.status.ok
    assert enough.nfe <= 500


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("final, extra, more", [("denoise", 1, " and final='denoise' one more"), ("none", 0, "")])
def test_a_budget_of_less_than_a_step_is_refused(name: str, final: str, extra: int, more: str) -> None:
    """With what the first step takes, and the final call."""
    sde = sg.VPSDE()
    net = Recorder(elementwise_score(sde))
    solver = replace(resolve_any(name), rtol=1e-6, atol=1e-6)

    least = solver.least_calls + extra
    shown = f"nfe={least - 1} is too small: the first step of {name} takes {least - extra} network calls{more}"
    with pytest.raises(ValueError, match=f"^{re.escape(shown)}$"):
        sg.sample(net, sde, (3, 2), solver=solver, seed=0, nfe=least - 1, final=final)
    with pytest.warns(sg.sampling.UnfinishedWarning):
        assert sg.sample(net, sde, (3, 2), solver=solver, seed=0, nfe=least, final=final).nfe == least - extra


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_broken_sample_ends_alone(name: str) -> None:
    """NaN at the start, or in the score of one sample from some time on: the others do not move, the status tells."""
    sde = sg.VPSDE()
    clean = sg.sample(elementwise_score(sde), sde, (4, 2), solver=name, seed=0, execution=DOUBLE)
    x = sde.prior_sample((4, 2), seed=0, dtype=F64)
    x[1, 0] = math.nan
    with pytest.warns(
        sg.sampling.NonFiniteWarning, match=r"1 of 4 samples .*sample 1 at t=1: the score or the state is not"
    ):
        res = sg.sample(elementwise_score(sde), sde, x_T=x, solver=name, seed=0)
    assert res.status.samples == (1,)
    assert res.control.evaluations[1] == 0
    others = [0, 2, 3]
    torch.testing.assert_close(res.x[others], clean.x[others], rtol=0.0, atol=1e-12)

    def score(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        broken = (label == 2) & (t < 0.6)
        return elementwise_score(sde)(x, t).masked_fill(broken[:, None], math.nan)

    with pytest.warns(sg.sampling.NonFiniteWarning, match=r"sample 2 at t=0\.[56]"):
        res = sg.sample(
            score,
            sde,
            (4, 2),
            solver=name,
            seed=0,
            execution=DOUBLE,
            model_kwargs={"label": sg.PerSample(torch.arange(4))},
        )
    assert res.control.outcome[2] == "not finite"
    # Exponential pairs do not evaluate at a step's end, so that a step can end beyond what is still a number.
    lowest = 0.5 if name.startswith("exp") else 0.599
    assert lowest < res.control.times[2] < 0.601
    assert int(res.control.accepted[2] + res.control.rejected[2]) < 250
    assert bool(res.x.isfinite().all())
    torch.testing.assert_close(res.x[[0, 1, 3]], clean.x[[0, 1, 3]], rtol=0.0, atol=1e-12)


def test_a_field_that_no_step_fits() -> None:
    """A pole: the step shrinks to nothing and the sample stops, in bounded time."""
    end = integrate(
        lambda t, y, i: y**2, torch.tensor([[1.0], [0.1]], dtype=F64), 0.0, 2.0, DOPRI5, max_steps=400
    )  # 1 / (1 - t) has a pole at 1
    assert end.outcome[0] in ("step too small", "not finite", "out of steps")
    assert float(end.t[0]) == pytest.approx(1.0, abs=1e-3)
    assert end.outcome[1] == "completed"
    assert float(end.y[0][1]) == pytest.approx(0.125, rel=1e-4)


def test_errors_after_the_end_are_reported() -> None:
    """A final estimate that is not finite is not passed off as a sample."""
    sde = sg.VPSDE()
    base = elementwise_score(sde)
    calls = Recorder(base)
    sg.sample(calls, sde, (2, 2), solver="dopri5", seed=0, execution=DOUBLE)

    def score(x: Tensor, t: Tensor) -> Tensor:
        bad = (len(calls.states) == total) & (torch.arange(len(x)) == 0)
        calls.states.append(x)
        return base(x, t).masked_fill(bad[:, None], math.nan)

    total = len(calls.states) - 1
    calls.states.clear()
    with pytest.warns(sg.sampling.NonFiniteWarning, match="1 of 2 samples"):
        res = sg.sample(score, sde, (2, 2), solver="dopri5", seed=0, execution=DOUBLE)
    assert res.status.samples == (0,)


# --- the SDE ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise(sg.SDE):
    """No drift, and a diffusion that grows: x at the end is the integral of g dW, of a known variance."""

    T: float = 1.0
    eps: float = 0.0
    prior_std: float = 1.0

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return 0 * x

    def g(self, t: Tensor) -> Tensor:
        return 0.2 + 2 * t


VARIANCE = (2.2**3 - 0.2**3) / 6


def test_rejection_does_not_bias_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are rejected for large increments. On one path the variance is right; drawn anew it is too small."""
    n, sde = 1500, Noise()
    solver = sg.schemes.GGF(rtol=0.0, atol=0.08, first_step=0.5)

    def run() -> sg.SampleResult:
        return sg.sample(lambda x, t: 0 * x, sde, x_T=torch.zeros(n, 1, dtype=F64), solver=solver, seed=0, final="none")

    res = run()
    assert float(res.control.rejected.double().mean()) > 1
    stderr = VARIANCE * math.sqrt(2 / n)
    assert abs(float(res.x.mean())) < 4 * math.sqrt(VARIANCE / n)
    assert abs(float(res.x.square().mean()) - VARIANCE) < 4 * stderr

    draws = np.random.default_rng(0)

    def redrawn(stepper: _PathStepper, active: Active, x: torch.Tensor) -> torch.Tensor:
        stepper._next = stepper.place[active.samples], stepper.path[active.samples]
        z = draws.standard_normal((len(active.samples), 1))
        return torch.from_numpy(np.sqrt(np.abs(active.h))[:, None] * z).to(x)

    monkeypatch.setattr(_PathStepper, "_increment", redrawn)
    assert float(run().x.square().mean()) < VARIANCE - 5 * stderr


def test_the_law_on_gaussian_data() -> None:
    """Mean and variance of Gaussian data in one dimension, where every step is rejected for its own noise."""
    sde, n = sg.VPSDE(), 500
    score = sg.oracles.Gaussian(torch.full((1,), 0.5), 0.25).score(sde)
    res = sg.sample(
        score,
        sde,
        (n, 1),
        solver=sg.schemes.GGF(rtol=0.05, atol=0.02),
        seed=1,
        final="none",
        execution=DOUBLE,
        t_end=0.01,
    )
    alpha, sigma = float(sde.alpha(0.01)), float(sde.sigma(0.01))
    variance = (0.5 * alpha) ** 2 + sigma**2
    assert float(res.control.rejected.double().mean()) > 5
    assert abs(float(res.x.mean()) - 0.5 * alpha) < 4 * math.sqrt(variance / n)
    assert abs(float(res.x.var()) / variance - 1) < 4 * math.sqrt(2 / n)


def test_the_update_is_the_papers() -> None:
    """One accepted step from a known path, against the formulas."""
    sde = sg.VPSDE()
    score = elementwise_score(sde)
    h = (sde.T - sde.eps) / 128  # a step of one binary digit, which rounding leaves
    x = sde.prior_sample((1, 4), seed=0, dtype=F64)
    with pytest.warns(sg.sampling.UnfinishedWarning):
        res = sg.sample(
            score,
            sde,
            x_T=x,
            solver=sg.schemes.GGF(rtol=0.0, atol=1e3, max_steps=1, first_step=h),
            seed=5,
            final="none",
        )
    tree = BrownianTree(SampleSeeds(5, range(1)), (4,), sde.T)
    dW = math.sqrt(sde.T - sde.eps) * torch.from_numpy(tree.at(np.array([1 / 128]), np.zeros(1, dtype=int)))
    rev = sde.reverse(score, eta=1.0)
    t, t_next = torch.ones(1, dtype=F64), torch.ones(1, dtype=F64) - h
    euler = x - h * rev.f(x, t) + float(rev.g(t)) * dW
    other = x - h * rev.f(euler, t_next) + float(rev.g(t_next)) * dW
    torch.testing.assert_close(res.x, (euler + other) / 2, rtol=1e-12, atol=1e-12)
    assert float(res.control.times[0]) == 1.0 - h


def test_two_calls_a_step_and_one_where_it_is_tried_again() -> None:
    """The slope at the start is kept through rejections."""
    sde = sg.VPSDE()
    res = sg.sample(elementwise_score(sde), sde, (6, 3), solver=sg.schemes.GGF(first_step=0.5), seed=0, final="none")
    control = res.control
    assert int(control.rejected.min()) > 0
    assert torch.equal(control.evaluations, 2 * control.accepted + control.rejected)


@pytest.mark.parametrize("pair", PAIRS, ids=case_id)
def test_calls_a_step_of_pairs(pair: Any) -> None:
    """Stages, less the one that the step before has made, or that a rejected step knows; two for the first step."""
    sde = sg.VPSDE()
    res = sg.sample(MIXTURE.score(sde), sde, (5, 2), solver=sg.Adaptive(pair, 1e-4, 1e-4), seed=0, final="none")
    tried, stages = res.control.accepted + res.control.rejected, len(pair.c)
    more = 0 if pair.fsal else res.control.accepted - 1
    assert torch.equal(res.control.evaluations, 2 + tried * (stages - 1) + more), pair.name


# --- the interface ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"steps": 10}, "steps= needs a solver on a grid, and dopri5 finds its own steps"),
        ({"grid": "log-snr"}, "grid= needs"),
        ({"record": sg.Record(callback=print)}, "callback= needs"),
        ({"record": sg.Record(trajectory="all")}, "trajectory= needs"),
        ({"execution": sg.Execution(compile=True)}, "compile= needs"),
        ({"execution": sg.Execution(until=0.5)}, "until= needs"),
        ({"noise": "path"}, "noise= needs"),
        ({"nfe": 0}, "at least 1, got 0"),
        ({"nfe": 2.5}, "got 2.5"),
        ({"solver": sg.Adaptive, "x_T": None}, "call it"),
        ({"solver": "dopri6"}, "did you mean 'dopri5'"),
    ],
)
def test_what_does_not_apply_is_an_error(options: dict[str, object], shown: str) -> None:
    """Options of a grid, and values out of range, are refused in words."""
    arguments = {"shape": (2, 2), "solver": "dopri5", "seed": 0} | options
    with pytest.raises((ValueError, TypeError), match=shown):
        sg.sample(elementwise_score(LINEAR["vp"]), LINEAR["vp"], **arguments)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: sg.Adaptive(rtol=-1.0), "rtol must be finite, at least 0 and at most 1e.12, got -1"),
        (lambda: sg.Adaptive(atol=math.nan), "atol must be finite"),
        (lambda: sg.Adaptive(rtol=0, atol=0), "cannot both be 0"),
        (lambda: sg.Adaptive(max_steps=0), "max_steps must be an integer of at least 1, got 0"),
        (lambda: sg.Adaptive(first_step=0.0), "first_step must be positive and finite, got 0"),
        (lambda: sg.Adaptive(variable="sigma"), "variable must be one of None, 'log-snr'"),
        (lambda: sg.Adaptive(ExponentialPair(), variable="time"), "exp-rk32 is a method in log-snr"),
        (lambda: sg.schemes.GGF(exponent=0.0), "exponent must be positive and finite, got 0"),
        (lambda: sg.schemes.GGF(safety=math.inf), "safety must be positive"),
        (lambda: sg.schemes.GGF(growth=1.0), "growth must be finite, above 1, got 1"),
        (lambda: sg.schemes.GGF(growth=math.nan), "growth must be finite, above 1, got nan"),
    ],
)
def test_bad_options(make: Callable[[], object], shown: str) -> None:
    """Options out of range are refused with their value."""
    with pytest.raises(ValueError, match=shown):
        make()


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 0.0), (0.0, math.inf)])
def test_bad_ends(t0: float, t1: float) -> None:
    """A run needs two different finite ends."""
    with pytest.raises(ValueError, match="ends must be finite and different"):
        integrate(lambda t, y, i: y, torch.ones(1, 1), t0, t1, DOPRI5)


def test_names_and_table() -> None:
    """The registry resolves and prints adaptive solvers beside those on grids, and a grid refuses them."""
    table = sg.solvers()
    assert list(table.adaptive) == list(ADAPTIVE)
    text = str(table)
    for name, solver in table.adaptive.items():
        assert resolve_any(name) == solver
        assert solver.name == name
        assert f"\n{name} " in text
    with pytest.raises(TypeError, match="finds its own steps"):
        sg.Setting("dopri5", "log-snr")


def test_a_progress_bar_counts_samples(capsys: pytest.CaptureFixture[str]) -> None:
    """One tick for each sample that arrives."""
    sde = sg.VPSDE()
    sg.sample(elementwise_score(sde), sde, (7, 2), solver="dopri5", seed=0, record=sg.Record(progress=True))
    assert "7/7" in capsys.readouterr().err


def test_the_global_random_state_is_left_alone() -> None:
    """No adaptive run advances torch's or NumPy's generators."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    sde = sg.VPSDE()
    for name in ("ggf", "dopri5"):
        sg.sample(elementwise_score(sde), sde, (2, 2), solver=name, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_a_network_wrapped_for_training_is_met_with_a_warning() -> None:
    """Processes that call a wrapped network a different number of times wait for each other for ever."""
    import torch.distributed as dist

    net = torch.nn.Linear(2, 2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(net)
        sde = sg.VPSDE()

        class Net(torch.nn.parallel.DistributedDataParallel):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return x  # the noise, for data N(0, I) and but for a factor sigma

        with pytest.warns(UserWarning, match=r"pass net\.module"):
            sg.sample(sg.from_noise(Net(net), sde), sde, (2, 2), solver="dopri5", seed=0)
        del wrapped
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("pair", "name"), [(sg.tableaus.BOSH3, "RK23"), (sg.tableaus.DOPRI5, "RK45"), (sg.tableaus.DOP853, "DOP853")]
)
def test_tableaus_are_those_of_scipy(pair: sg.tableaus.EmbeddedTableau, name: str) -> None:
    """Every coefficient, to rounding."""
    theirs, n = getattr(scipy.integrate, name), len(pair.b)
    estimates = [theirs.E5, theirs.E3] if name == "DOP853" else [theirs.E]
    for i, row in enumerate((*pair.a, pair.b)[: len(theirs.A)]):
        np.testing.assert_allclose(row, theirs.A[i, :i], rtol=1e-15)
    np.testing.assert_allclose(pair.b, [*theirs.B, 0][:n], rtol=1e-15)
    np.testing.assert_allclose(pair.c[: len(theirs.C)], theirs.C, rtol=1e-14)
    for ours, estimate in zip(pair.e, estimates, strict=True):
        np.testing.assert_allclose(ours, estimate[:n], rtol=1e-14, atol=1e-17)
