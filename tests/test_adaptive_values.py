"""Adaptive steps by hand: controller, first step, variables of the flow, exponential pairs, registry of what adapts."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.adaptive import Controller, EmbeddedStepper, Integration, Rows, integrate, rms
from sgm_sde.engine.brownian import BrownianPath
from sgm_sde.engine.phi import phi
from sgm_sde.solvers.adaptive import PI, Flow, default_variable
from sgm_sde.solvers.base import ADAPTIVE, AdaptiveSolver, EtaSolver, resolve, resolve_any
from tests.helpers import F64, bind, elementwise_score

VP = sg.VPSDE()


class DoubleWell(sg.SDE):
    """A process that is not linear."""

    T, eps, prior_std = 1.0, 1e-3, 1.0

    def f(self, x: Tensor, t: float | Tensor) -> Tensor:
        return x - x**3

    def g(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(torch.as_tensor(t))


def test_values_do_not_change() -> None:
    """Options are values: equal to their copies, hashable, and not to be changed."""
    values = [Controller(), sg.Adaptive(), sg.GGF(), sg.ExponentialPair(2), sg.BOSH3, sg.TorchDiffEq("rk4"),
              sg.SciPy("RK45"), sg.TorchSDE("srk"), resolve("euler-maruyama")]  # fmt: skip
    for value in values:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)  # type: ignore[arg-type]
        assert hash(value) == hash(value)


def test_defaults() -> None:
    """Those of the papers and of the docstrings."""
    controller = "Controller(safety=0.9, integral=0.7, proportional=0.4, smallest=0.2, largest=10.0, digits=None)"
    assert repr(Controller()) == repr(PI) == controller
    adaptive = sg.Adaptive()
    assert (adaptive.pair, adaptive.rtol, adaptive.atol, adaptive.max_steps) == (sg.DOPRI5, 1e-3, 1e-3, 10_000)
    assert (adaptive.variable, adaptive.first_step, adaptive.batch_coupled) == (None, None, False)
    assert repr(sg.GGF()) == (
        "GGF(rtol=0.02, atol=0.0078125, first_step=0.01, safety=0.9, exponent=0.9, max_steps=10000)"
    )
    assert (sg.GGF().order, sg.GGF().stochastic, adaptive.stochastic, adaptive.takes_steps) == (1, True, False, False)
    assert sg.ExponentialPair() == sg.ExponentialPair(3)
    assert EtaSolver.__dataclass_fields__["eta"].default == 1.0
    assert (sg.TorchDiffEq("rk4").rtol, sg.TorchDiffEq("rk4").atol, sg.SciPy("RK45").per_sample) == (1e-3, 1e-3, False)


# --- The controller --------------------------------------------------------------------------------------------------


def test_the_factor_after_an_accepted_step() -> None:
    """theta E^(-k_I/q) E_last^(k_P/q), the last error at least 1e-4, within the limits of one change."""
    error, last = np.array([0.5, 0.5, 1e-30, 1.0]), np.array([0.25, 1e-9, 1.0, 1e-9])
    controller = Controller(0.8, 0.6, 0.3, smallest=0.5, largest=3.0)
    expected = [0.8 * 0.5 ** (-0.6 / 2) * 0.25 ** (0.3 / 2), 0.8 * 0.5 ** (-0.6 / 2) * 1e-4 ** (0.3 / 2), 3.0, 0.5]
    expected[1] = max(expected[1], 0.5)
    assert controller.factor(error, last, 2).tolist() == pytest.approx(expected)
    floor = Controller(0.8, 0.6, 0.3, smallest=0.0, largest=3.0).factor(error, last, 2)
    assert floor[1] == pytest.approx(0.8 * 0.5 ** (-0.3) * 1e-4**0.15)


def test_the_factor_after_a_rejected_step() -> None:
    """theta E^(-1/q), at least f_min and at most theta; a tenth where the error is no number."""
    error = np.array([4.0, 1e9, math.nan, math.inf, 1.0])
    factor = Controller(safety=0.8).after_rejection(error, 2)
    assert factor.tolist() == pytest.approx([0.4, 0.2, 0.1, 0.1, 0.8])


def test_steps_of_few_digits() -> None:
    """Rounded towards zero to three binary digits of the fraction of the run; all digits by default."""
    h = np.array([0.3, -0.3, 3.0])
    assert Controller().rounded(h, 2.0).tolist() == h.tolist()
    # 0.3/2 = 0.6 * 2^-2 and 4/8 of that is kept; 3/2 = 0.75 * 2^1, of three digits
    assert Controller(digits=3).rounded(h, 2.0).tolist() == [0.25, -0.25, 3.0]


# --- The loop --------------------------------------------------------------------------------------------------------


def rows_of(y: Tensor, u: float) -> Rows:
    """Samples at the start of a run."""
    n = len(y)
    at, no = np.full(n, u), np.zeros(n, dtype=bool)
    return Rows(np.arange(n), (y,), (), at, np.zeros(n), at, np.ones(n), no, ~no, np.zeros(n, dtype=np.int64))


@pytest.mark.parametrize("end", [5.0, -3.0])
def test_the_first_step(end: float) -> None:
    """Hairer's guess for y' = a y (Hairer, Norsett & Wanner, 1993, II.4), in both directions of the run."""
    rate, rtol, atol = -2.0, 0.1, 0.01
    y0 = torch.tensor([[1.0, 1.0], [3.0, 3.0]], dtype=F64)
    stepper = EmbeddedStepper(lambda t, y, i: (rate * y[0],), sg.DOPRI5, rtol, atol, 2)
    got = stepper.first_step(rows_of(y0, 1.0), end)
    for i, y in enumerate((1.0, 3.0)):
        scale = atol + rtol * y
        h0 = 0.01 * (y / scale) / (abs(rate) * y / scale)  # the norm of y over that of y'
        change = rate * rate * y * h0 / scale / h0  # y' at the end of h0 is a (y + h0 a y)
        h1 = (0.01 / max(abs(rate) * y / scale, abs(change))) ** (1 / 5)
        assert got[i] == pytest.approx(min(100 * h0, h1), rel=1e-9)
    assert (stepper.calls, stepper.evaluations.tolist()) == (2, [2, 2])


def test_the_first_step_of_what_stands_still() -> None:
    """From a state of size below 1e-5, or with so small a slope: h0 = 1e-6, and h1 = max(1e-6, h0/1000) without any."""
    still = EmbeddedStepper(lambda t, y, i: (0 * y[0],), sg.DOPRI5, 0.0, 1.0, 1)
    assert still.first_step(rows_of(torch.ones(1, 1, dtype=F64), 0.0), 1.0).tolist() == [1e-6]
    for size, slope, h0 in ((1.5e-5, 1.5e-5, 0.01), (0.5e-5, 1.0, 1e-6), (1.0, 0.5e-5, 1e-6)):
        constant = EmbeddedStepper(lambda t, y, i, s=slope: (0 * y[0] + s,), sg.DOPRI5, 0.0, 1.0, 1)
        got = constant.first_step(rows_of(torch.full((1, 1), size, dtype=F64), 0.0), 1e9)
        assert got[0] == pytest.approx(min(100 * h0, (0.01 / slope) ** (1 / 5)), rel=1e-9)


def test_the_norm_of_the_error() -> None:
    """Root mean square over a sample, each component over atol + rtol max(|y|, |y_next|); the worst part counts."""
    stepper = EmbeddedStepper(lambda t, y, i: y, sg.DOPRI5, 0.5, 0.25, 1)
    v, a, b = (torch.tensor([row], dtype=F64) for row in ([3.0, 4.0], [1.0, -2.0], [-3.0, 1.0]))
    expected = math.sqrt(((3 / 1.75) ** 2 + (4 / 1.25) ** 2) / 2)
    assert float(stepper._norm((v,), (a,), (b,))) == pytest.approx(expected)
    assert float(stepper._norm((0 * v, v), (a, a), (b, b))) == pytest.approx(expected)
    assert rms(torch.tensor([[3.0, 4.0]], dtype=F64)).tolist() == [math.sqrt(12.5)]


def test_which_samples_arrived() -> None:
    """`completed` tells who arrived."""
    one = torch.zeros(2)
    run = Integration((one,), one, ("completed", "out of steps"), one, one, one, 0)
    assert run.completed.tolist() == [True, False]


def test_options_at_their_limits() -> None:
    """One tolerance may be 0, one attempt is enough; both 0, and a bool for a number, are refused."""

    def decay(t: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return -y

    y0 = torch.ones(1, 1, dtype=F64)
    for options in ({"rtol": 0.0}, {"atol": 0.0}, {"max_steps": 1}):
        assert integrate(decay, y0, 0.0, 1e-3, sg.DOPRI5, first_step=1e-3, **options).outcome == ("completed",)
    for max_steps in (True, 1.5, 0):
        with pytest.raises(ValueError, match=f"max_steps must be a whole number of at least 1, got {max_steps}"):
            integrate(decay, y0, 0.0, 1.0, sg.DOPRI5, max_steps=max_steps)  # type: ignore[arg-type]
    for options in ({"rtol": math.inf}, {"atol": -1.0}):
        with pytest.raises(ValueError, match="must be finite and at least 0"):
            integrate(decay, y0, 0.0, 1.0, sg.DOPRI5, **options)  # type: ignore[arg-type]
    assert sg.Adaptive(max_steps=1, first_step=0.5).first_step == 0.5
    for first_step in (0.0, math.inf, -1.0):
        with pytest.raises(ValueError, match="first_step must be positive"):
            sg.Adaptive(first_step=first_step)
    assert sg.GGF(first_step=0.5, safety=0.5, exponent=0.5).exponent == 0.5


# --- Tableaus --------------------------------------------------------------------------------------------------------


def test_embedded_tableaus() -> None:
    """Methods of Bogacki & Shampine and Tsitouras satisfy their order conditions stage by stage: sum_j a_ij = c_i."""
    assert sg.BOSH3.c == pytest.approx((0, 1 / 2, 3 / 4, 1))
    assert sg.TSIT5.c == pytest.approx((0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1), abs=1e-12)
    assert (sg.BOSH3.order, sg.BOSH3.embedded_order, sg.TSIT5.order, sg.TSIT5.embedded_order) == (3, 2, 5, 4)
    assert [pair.linear for pair in (sg.BOSH3, sg.DOPRI5, sg.TSIT5, sg.DOP853)] == [0.0] * 4


def test_facts_of_the_pairs() -> None:
    """Order, order of the other method, power of the step in the error, and what a step costs, as in the literature."""
    facts = {
        sg.BOSH3: (3, 2, 3, True, 3),
        sg.DOPRI5: (5, 4, 5, True, 6),
        sg.TSIT5: (5, 4, 5, True, 6),
        sg.DOP853: (8, 5, 8, False, 12),
        sg.EmbeddedTableau([[], [1.0]], [1.0, 0.0], [[-0.5, 0.5]]): (1, 2, 2, True, 1),  # Euler's, with Heun's
    }
    for pair, known in facts.items():
        assert (pair.order, pair.embedded_order, pair.error_order, pair.fsal, pair.nfe_per_step) == known


def test_facts_of_embedded_tableaus() -> None:
    """The last slope serves the next step only if its row is the weights and its weight is 0."""
    a, e = [[], [1.0]], [[0.5, -0.5]]
    assert not sg.EmbeddedTableau(a, [0.5, 0.5], e).fsal
    assert not sg.EmbeddedTableau([[], [0.5]], [1.0, 0.0], e).fsal
    assert sg.EmbeddedTableau(a, [1.0, 0.0], e).fsal
    two = sg.EmbeddedTableau(a, [0.5, 0.5], [[0.5, -0.5], [-0.5, 0.5]])
    assert (two.embedded_order, two.error_order) == (1, 2)
    for weights in ([0.5, -0.4], [0.5, -0.25, -0.25], [0.5, -0.5 + 1.5e-12]):
        with pytest.raises(ValueError, match="2 weights that sum to 0"):
            sg.EmbeddedTableau(a, [0.5, 0.5], [weights])
    with pytest.raises(ValueError, match=re.escape("must lie in [0, 1]")):
        sg.Tableau([[], [1.5]], [0.5, 0.5])


def test_weights_for_steps() -> None:
    """The state once in every stage and in the end, slopes with h: Heun's method with Euler's."""
    pair = sg.EmbeddedTableau([[], [1.0]], [0.5, 0.5], [[0.5, -0.5]])
    table = pair.weights(torch.tensor([2.0, 4.0], dtype=F64))
    assert table[..., 0].tolist() == [[1, 0, 0], [1, 2, 0], [1, 1, 1], [0, 1, -1]]
    assert table[..., 1].tolist() == [[1, 0, 0], [1, 4, 0], [1, 2, 2], [0, 2, -2]]


def test_the_error_of_two_estimates() -> None:
    """|e5|^2 / sqrt(|e5|^2 + |e3|^2 / 100), 0 where both vanish."""
    e5, e3 = torch.tensor([0.3, 0.0, 3.0], dtype=F64), torch.tensor([4.0, 0.0, 40.0], dtype=F64)
    assert sg.DOP853.error([e5, e3]).tolist() == pytest.approx([0.09 / 0.5, 0.0, 9 / 5])
    assert sg.BOSH3.error([e5]).tolist() == e5.tolist()


# --- Exponential pairs and the flow ----------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [0.7, -0.4])
def test_exponential_pairs_by_hand(h: float) -> None:
    """The tables of the docstring."""

    def f(k: int, c: float = 1.0) -> float:
        return phi(k, -c * h)

    e = math.exp
    two = [[1, 0, 0], [e(-h / 2), h / 2 * f(1, 1 / 2), 0], [e(-h), h * (f(1) - 2 * f(2)), 2 * h * f(2)],
           [0, -2 * h * f(2), 2 * h * f(2)]]  # fmt: skip
    inner = h * 4 / 3 * f(2, 2 / 3)
    three = [[1, 0, 0, 0], [e(-h / 3), h / 3 * f(1, 1 / 3), 0, 0],
             [e(-2 * h / 3), h * 2 / 3 * f(1, 2 / 3) - inner, inner, 0],
             [e(-h), h * (f(1) - 1.5 * f(2)), 0, 1.5 * h * f(2)],
             [0, 1.5 * h * f(2), -3 * h * f(2), 1.5 * h * f(2)]]  # fmt: skip
    for order, known, c in ((2, two, (0, 1 / 2)), (3, three, (0, 1 / 3, 2 / 3))):
        pair = sg.ExponentialPair(order)
        got = pair.weights(torch.tensor([h], dtype=F64))[..., 0]
        torch.testing.assert_close(got, torch.tensor(known, dtype=F64), rtol=1e-12, atol=1e-14)
        assert (pair.c, pair.linear, pair.fsal, pair.error_order) == (c, -1.0, False, order)
        assert pair.name == ("exp-rk21", "exp-rk32")[order - 2]
    for order in (1, 4, 6):
        with pytest.raises(ValueError, match=f"got {order}"):
            sg.ExponentialPair(order)


def test_variables_of_the_flow() -> None:
    """u, x / z and dz/du at a time of VP, on Gaussian data."""
    t0, t1, t = 0.9, 0.2, 0.5
    a, s = float(VP.alpha(t)), float(VP.sigma(t))
    x = torch.tensor([[1.5]], dtype=F64)
    score = float(elementwise_score(VP)(x, torch.tensor([t], dtype=F64)))
    noise, data = -s * score, (1.5 + s * s * score) / a
    drift = float(VP.f(x, torch.tensor([t], dtype=F64))) - 0.5 * float(VP.g(t)) ** 2 * score
    model = bind(sg.from_score(elementwise_score(VP), VP), VP, (1.0, 1e-3))
    known = {
        "log-snr": (math.log(a / s), a, data - 1.5 / a),
        "noise-level": (s / a, a, noise),
        "noise-share": (s / (a + s), a + s, noise - data),
        "time": (t, 1.0, drift),
    }
    index = torch.arange(1)
    for variable, (u, scale, slope) in known.items():
        flow = Flow(model, variable, (t0, t1), 1)
        at = torch.tensor([u], dtype=F64)
        assert float(flow.time(at)) == pytest.approx(t, rel=1e-9)
        assert float(flow._place(torch.tensor([t], dtype=F64))) == pytest.approx(u, rel=1e-12)
        assert float(flow.slope(at, x / scale, index)) == pytest.approx(slope, rel=1e-8)
        assert float(flow.leave(x / scale, at)[0]) == pytest.approx(1.5, rel=1e-9)
        first = 1.0 if variable == "time" else float(flow.scale(torch.tensor([t0], dtype=F64)))
        assert float(flow.enter(x)) == pytest.approx(1.5 / first)
        ends = torch.tensor([flow.start, flow.end], dtype=F64)
        assert flow.time(ends).tolist() == [t0, t1]
        beyond = flow.time(ends + torch.tensor([-1e-3, 1e-3]) * (flow.end - flow.start))
        assert beyond.tolist() == [t0, t1]
    linear = Flow(model, "log-snr", (t0, t1), 1, linear=True)
    assert float(linear.slope(torch.tensor([math.log(a / s)], dtype=F64), x / a, index)) == pytest.approx(data)
    assert (default_variable(VP), default_variable(DoubleWell())) == ("noise-share", "time")


# --- Brownian paths --------------------------------------------------------------------------------------------------


def test_a_bridge_by_hand() -> None:
    """The first draws of the path are those of its generator: whole, then the bridge at a quarter of the clock."""
    draws = np.random.Generator(np.random.Philox(key=[3, 1], counter=[0, 0, 0, 0])).standard_normal((1, 4))
    first = np.random.Generator(np.random.Philox(key=[3, 1], counter=[0, 0, 0, 1])).standard_normal(4)
    for start, end, place in ((0.0, 4.0, 1.0), (4.0, 0.0, 3.0)):
        path = BrownianPath((3, 1), (4,), start, end)
        near = path.increment(place)
        np.testing.assert_allclose(near, 0.25 * 2 * first + math.sqrt(0.75) * draws[0], rtol=1e-12)
        np.testing.assert_allclose(path.increment(end), 2 * first, rtol=1e-12)
        assert path.increment(start).tolist() == [0.0] * 4


def test_nodes_of_the_tree_by_hand() -> None:
    """Piece k is halved by the noise of node 2k, as long as k is below 2^levels; the halves are 2k and 2k + 1."""

    def z(node: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[3, 1], counter=[0, 0, 0, node])).standard_normal(4)

    path = BrownianPath((3, 1), (4,), 0.0, 1.0, levels=2)
    whole = z(1)
    half = whole / 2 + z(2) / 2
    first = half / 2 + math.sqrt(1 / 8) * z(4)
    third = half + (whole - half) / 2 + math.sqrt(1 / 8) * z(6)
    for place, known in ((0.25, first), (0.5, half), (0.75, third), (1.0, whole)):
        np.testing.assert_allclose(path.increment(place), known, rtol=1e-12, atol=1e-14)
    assert [piece.node for piece in path._pieces] == [7, 6, 5, 4]
    eighth = path.increment(0.125)  # beyond the tree: the path's own draws
    np.testing.assert_allclose(eighth, first / 2 + math.sqrt(1 / 16) * z(0), rtol=1e-12)
    assert [piece.node for piece in path._pieces] == [7, 6, 5, 0, 0]


# --- Registry --------------------------------------------------------------------------------------------------------


def test_names_of_what_adapts() -> None:
    """Names, libraries with their methods, and what is refused."""
    for order, name in ((2, "exp-rk21"), (3, "exp-rk32")):
        assert resolve_any(name) == sg.Adaptive(sg.ExponentialPair(order))
    assert resolve_any("scipy:RK45") == sg.SciPy("RK45")
    assert resolve_any(sg.GGF()) == sg.GGF()
    assert resolve_any("ddim") == resolve_any(sg.DDIM()) == sg.DDIM()
    with pytest.raises(ValueError, match="unknown library 'jax' in 'jax:a:b'; known: torchdiffeq, torchsde, scipy"):
        resolve_any("jax:a:b")
    with pytest.raises(ValueError, match="scipy has no method 'RK45:x'"):
        resolve_any("scipy:RK45:x")
    for given in (sg.GGF(), "ggf", "scipy:RK45"):
        with pytest.raises(TypeError, match="finds its own steps"):
            resolve(given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got the class GGF: call it"):
        resolve_any(sg.GGF)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got 3"):
        resolve_any(3)  # type: ignore[arg-type]


def test_rows_of_what_adapts() -> None:
    """Order on the flow, none for the SDE; the cost is adaptive."""
    rows = {row[0]: row for row in sg.solvers().adaptive_rows()}
    assert list(rows) == list(ADAPTIVE)
    assert rows["dopri5"][1:4] == ("5", "-", "adaptive")
    assert rows["ggf"][1:4] == ("-", "-", "adaptive")


def test_an_adaptive_solver_says_nothing_more_than_it_knows() -> None:
    """Neither noise nor steps unless it says so."""
    assert (AdaptiveSolver.stochastic, AdaptiveSolver.takes_steps) == (False, False)


def test_clocks() -> None:
    """The signal-to-noise ratio alpha^2 / sigma^2; time where there is none."""
    clock = sg.DDIM().clock(VP, 0.5)
    assert clock == pytest.approx((float(VP.alpha(0.5)) / float(VP.sigma(0.5))) ** 2)
    assert sg.DDIM().clock(DoubleWell(), 0.5) == 0.5


@pytest.mark.parametrize("solver", [sg.DPMSolverPP(2, eta=0.5), sg.DPMSolverPP(1, eta=2.0), sg.DPMSolver(2, eta=0.7)])
def test_noises_are_increments_on_the_clock(solver: sg.ExponentialAdams) -> None:
    """Carried back to a step's start, its noise has the variance that the clock passes, up to a constant factor."""
    start, *ends = VP.nodes([0.8, 0.7, 0.3, 0.1])
    passed = []
    for end in ends:
        part = solver.part(start, end)
        variance = (part.std(start, end) / part.factor(start, end)) ** 2
        passed.append(variance / abs(solver.clock(VP, end.t) - solver.clock(VP, 0.8)))
    assert passed == pytest.approx([passed[0]] * 3)


def test_clocks_where_the_noise_level_is_not_one_number() -> None:
    """The signal-to-noise ratio again."""
    ratio = math.exp(float(VP.log_snr(0.3)))
    for solver in (sg.DPMSolverPP(2, eta=lambda t: t), sg.ERSDE(2)):
        assert solver.clock(VP, 0.3) == pytest.approx(ratio)
