"""Adaptive steps by hand: controller, first step, variables of the flow, exponential pairs, registry of what adapts."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.adaptive import (
    Active,
    Attempt,
    Controller,
    Counting,
    EmbeddedStepper,
    Integration,
    State,
    integrate,
    integrate_adaptive,
    rms,
)
from sgm_sde.engine.brownian import BrownianTree
from sgm_sde.engine.coordinates import COORDINATES
from sgm_sde.engine.noise import SampleSeeds
from sgm_sde.engine.phi import phi
from sgm_sde.schemes.adaptive import PI, Flow, default_variable
from sgm_sde.schemes.base import ADAPTIVE, AdaptiveSolver, EtaSolver, Problem, resolve, resolve_any
from tests.conventions import case_id
from tests.helpers import F64, LINEAR, bind, elementwise_score

VP = sg.VPSDE()


class DoubleWell(sg.SDE):
    """A process that is not linear."""

    T, eps, prior_std = 1.0, 1e-3, 1.0

    def f(self, x: Tensor, t: float | Tensor) -> Tensor:
        return x - x**3

    def g(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(torch.as_tensor(t))


@pytest.mark.parametrize(
    "value",
    [
        Controller(),
        sg.Adaptive(),
        sg.schemes.GGF(),
        sg.schemes.ExponentialPair(2),
        sg.tableaus.BOSH3,
        sg.schemes.TorchDiffEq("rk4"),
        sg.schemes.SciPy("RK45"),
        sg.schemes.TorchSDE("srk"),
        resolve("euler-maruyama"),
        Problem(None, VP, torch.zeros(1, 1), 1.0, 0.1, ((0, 0),)),
    ],
    ids=case_id,
)
def test_values_do_not_change(value: object) -> None:
    """Options are values: equal to their copies, hashable, and not to be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)  # type: ignore[arg-type]
    assert hash(value) == hash(value)


def test_defaults() -> None:
    """Those of the papers and of the docstrings."""
    controller = "Controller(safety=0.9, integral=0.7, proportional=0.4, smallest=0.2, largest=10.0, digits=None)"
    assert repr(Controller()) == repr(PI) == controller
    adaptive = sg.Adaptive()
    assert (adaptive.pair, adaptive.rtol, adaptive.atol, adaptive.max_steps) == (sg.tableaus.DOPRI5, 1e-3, 1e-3, 10_000)
    assert (adaptive.variable, adaptive.first_step, adaptive.batch_coupled) == (None, None, False)
    assert repr(sg.schemes.GGF()) == (
        "GGF(rtol=0.02, atol=0.0078125, first_step=0.01, safety=0.9, exponent=0.9, growth=5.0, max_steps=10000)"
    )
    assert (sg.schemes.GGF().order, sg.schemes.GGF().stochastic, adaptive.stochastic, adaptive.takes_steps) == (
        1,
        True,
        False,
        False,
    )
    assert sg.schemes.ExponentialPair() == sg.schemes.ExponentialPair(3)
    given = {name: p.default for name, p in signature(integrate).parameters.items() if p.kind == p.KEYWORD_ONLY}
    limits = {"rtol": 1e-5, "atol": 1e-5, "max_steps": 10_000}
    assert given == limits | {
        "controller": None,
        "first_step": None,
        "batch_coupled": False,
        "on_leave": None,
        "on_places": None,
    }
    assert EtaSolver.__dataclass_fields__["eta"].default == 1.0
    assert (
        sg.schemes.TorchDiffEq("rk4").rtol,
        sg.schemes.TorchDiffEq("rk4").atol,
        sg.schemes.SciPy("RK45").per_sample,
    ) == (1e-3, 1e-3, False)


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


def rows_of(y: Tensor, u: float) -> Active:
    """Samples at the start of a run."""
    n = len(y)
    at, no = np.full(n, u), np.zeros(n, dtype=bool)
    counts = (np.zeros(n, dtype=np.int64) for _ in range(2))
    return Active(np.arange(n), (y,), (), at, np.zeros(n), at, np.ones(n), no, ~no, *counts)


class Script:
    """A stepper whose errors are written down: `errors[i]` are those of sample i, attempt by attempt, then `rest`.

    Its state is the place, its carry the number of the attempt, negative after a rejection. `seen` has the columns of
    the rows, attempt by attempt.
    """

    def __init__(self, errors: Sequence[Sequence[float]], rest: float = 1.0, first: float = 1.0, order: float = 1.0):
        self.errors, self.rest, self.first, self.order = errors, rest, first, order
        self.calls, self.evaluations = 0, np.zeros(len(errors), dtype=np.int64)
        self.seen: list[dict[str, list[Any]]] = []
        self.told: list[tuple[list[int], list[float], list[bool]]] = []
        self.carries: list[list[float]] = []

    def first_step(self, rows: Active, end: float) -> np.ndarray:
        """As given."""
        return np.full(len(rows.samples), self.first)

    def attempt(self, rows: Active) -> Attempt:
        """To where the rows are to go, with the errors of the script."""
        columns = ("samples", "u", "h", "u_next", "last_error", "last_accepted", "may_grow", "nan_count")
        self.seen.append({name: getattr(rows, name).tolist() for name in columns})
        self.carries.append(rows.carry[0].tolist() if rows.carry else [])
        at = self.evaluations[rows.samples]
        error = [
            self.errors[i][k] if k < len(self.errors[i]) else self.rest for i, k in zip(rows.samples, at, strict=True)
        ]
        self.calls += 1
        self.evaluations[rows.samples] += 1
        count = torch.from_numpy(self.evaluations[rows.samples].astype(float))
        end = torch.from_numpy(rows.u_next)[:, None]
        return Attempt((end,), torch.tensor(error, dtype=F64), (count,), (-count,))

    def advance(self, who: np.ndarray, u: np.ndarray, ok: np.ndarray) -> None:
        """Noted."""
        self.told.append((who.tolist(), u.tolist(), ok.tolist()))

    def column(self, name: str, sample: int = 0) -> list[Any]:
        """One of the columns for a sample, attempt by attempt."""
        return [seen[name][seen["samples"].index(sample)] for seen in self.seen if sample in seen["samples"]]


FREE = Controller(safety=1.0, integral=1.0, proportional=0.0, smallest=1e-30, largest=1e30)


def carry_on(script: Script, end: float = 16.0, start: float = 0.0, **options: Any) -> Integration:
    """A run of the script from 0 to 16, where h' = h / E by default."""
    y = (torch.full((len(script.errors), 1), start, dtype=F64),)
    return integrate_adaptive(script, y, start, end, **{"max_steps": 100, "controller": FREE} | options)


@pytest.mark.parametrize("sign", [1, -1])
def test_steps_by_hand(sign: int) -> None:
    """h / E after every attempt, but no growth after a step that was accepted right after a rejection."""
    script = Script([[0.5, 2.0, 4.0, 0.5, 0.25, 1.0]], first=1.0)
    end = carry_on(script, sign * 16.0)
    # accepted and doubled; halved; quartered; accepted, not grown; times 4; E = 1 is accepted; and as before
    assert script.column("h")[:8] == [sign * h for h in (1.0, 2.0, 1.0, 0.25, 0.25, 1.0, 1.0, 1.0)]
    assert script.column("u")[:8] == [sign * u for u in (0.0, 1.0, 1.0, 1.0, 1.25, 1.5, 2.5, 3.5)]
    assert script.column("u_next")[:5] == [sign * u for u in (1.0, 3.0, 2.0, 1.25, 1.5)]
    assert script.column("last_error")[:7] == [1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 1.0]  # 1 at first
    assert script.column("last_accepted")[:6] == [False, True, False, False, True, True]
    assert script.column("may_grow")[:6] == [True, True, False, False, True, True]
    assert script.column("nan_count")[:6] == [0] * 6
    assert script.carries[:6] == [[], [1.0], [-2.0], [-3.0], [4.0], [5.0]]  # carry of accepted steps, else kept
    assert [told[1:] for told in script.told[:4]] == [
        ([sign * 1.0], [True]), ([sign * 1.0], [False]), ([sign * 1.0], [False]), ([sign * 1.25], [True]),
    ]  # fmt: skip
    assert (end.outcome, end.t.tolist(), end.y[0].tolist()) == (("completed",), [sign * 16.0], [[sign * 16.0]])
    assert script.column("u")[-1] == sign * 15.5
    assert script.column("h")[-1] == sign * 0.5  # what remains
    assert (end.accepted.tolist(), end.rejected.tolist(), end.evaluations.tolist(), end.calls) == ([18], [2], [20], 20)


def test_the_error_before_counts() -> None:
    """A PI controller sees the error of the last accepted step, across a rejection."""
    script = Script([[0.25, 4.0, 0.5, 0.5]], first=1.0)
    controller = dataclasses.replace(FREE, integral=0.0, proportional=1.0)
    carry_on(script, controller=controller)
    # h' = h E_last: 1 at first; rejected: h / E; then 0.25 of the last accepted, then 0.5
    assert script.column("h")[:5] == [1.0, 1.0, 0.25, 0.0625, 0.03125]


def test_samples_have_steps_of_their_own() -> None:
    """Rejected beside accepted, and arrived beside those on their way; who leaves is told in groups."""
    left: list[int] = []
    script = Script([[1.0], [2.0], [1.0], [0.25]], first=8.0)
    end = carry_on(script, on_leave=left.append)
    assert [seen["samples"] for seen in script.seen] == [[0, 1, 2, 3], [0, 1, 2, 3], [1], [1], [1]]
    assert script.column("h", 1) == [8.0, 4.0, 4.0, 4.0, 4.0]
    assert script.column("h", 3) == [8.0, 8.0]  # four times 8, but for the end
    assert script.carries[1] == [1.0, -1.0, 1.0, 1.0]
    assert script.told[0] == ([0, 1, 2, 3], [8.0, 0.0, 8.0, 8.0], [True, False, True, True])
    assert left == [3, 1]
    assert end.y[0].tolist() == [[16.0]] * 4
    assert (end.accepted.tolist(), end.rejected.tolist()) == ([2, 4, 2, 2], [0, 1, 0, 0])
    assert end.completed.tolist() == [True] * 4


@pytest.mark.parametrize(("short", "steps"), [(0.5e-9, 1), (1e-9, 1), (1.5e-9, 2)])
def test_a_step_that_almost_arrives_arrives(short: float, steps: int) -> None:
    """From 1e-9 of what remains on there is no last step of that size: the step ends at the end exactly."""
    script = Script([[]])
    end = carry_on(script, 1.0, first_step=1 - short)
    assert (int(end.accepted), end.t.tolist()) == (steps, [1.0])
    assert script.column("u_next") == ([1.0] if steps == 1 else [1 - short, 1.0])


def test_a_first_step_is_rounded() -> None:
    """To a few binary digits of the share of the run."""
    script = Script([[0.75]])
    carry_on(script, 18.0, 2.0, first_step=3.0, controller=dataclasses.replace(FREE, digits=1))
    # one binary digit of the share of 16: 2 instead of 3; 2 / 0.75 = 2.67 is 2 again
    assert script.column("h")[:2] == [2.0, 2.0]


@pytest.mark.parametrize(
    "first, given, h", [(0.5, None, 0.5), (0.5, 2.0, 2.0), (99.0, None, 16.0), (math.nan, None, 16.0)]
)
def test_a_first_step_is_no_longer_than_the_run(first: float, given: float | None, h: float) -> None:
    """Given, or the stepper's; the run's length where it is no number."""
    script = Script([[]], first=first)
    carry_on(script, -8.0, 8.0, first_step=given)
    assert script.column("h")[0] == -h


def test_a_limit_on_attempts() -> None:
    """Accepted and rejected ones count; who arrives with the last one has arrived."""
    end = carry_on(Script([[1.0, 2.0]], first=8.0), max_steps=4)
    assert (end.outcome, end.accepted.tolist(), end.rejected.tolist()) == (("completed",), [3], [1])
    end = carry_on(Script([[1.0, 2.0]], first=8.0), max_steps=3)
    assert (end.outcome, end.t.tolist(), end.y[0].tolist()) == (("out of steps",), [12.0], [[12.0]])


@pytest.mark.parametrize(
    ("factor", "error", "attempts", "outcome"),
    [
        (32.0, 2.0, 2, "step too small"),  # 16 is tried, 8 is not
        (31.0, 2.0, 1, "step too small"),
        (159.0, math.nan, 1, "not finite"),  # a tenth of it
        (160.0, math.nan, 2, "not finite"),
    ],
)
@pytest.mark.parametrize(("start", "stop"), [(0.0, 2.0), (2.0, 0.0), (0.0, -2.0), (-2.0, 0.0)])
def test_the_smallest_step(start: float, stop: float, factor: float, error: float, attempts: int, outcome: str) -> None:
    """Below 16 rounding errors of the larger end a sample stops, as not finite if the error was no number."""
    unit = 2 * float(np.finfo(np.float64).eps)
    end = carry_on(Script([[]], rest=error), stop, start, first_step=factor * unit)
    assert (end.outcome, int(end.rejected), end.t.tolist()) == ((outcome,), attempts, [start]), factor


def test_errors_that_are_no_numbers() -> None:
    """Eight in a row end a sample where it is, each a tenth of the step before; others start the count anew."""
    nan = math.nan
    again = [*[nan] * 7, 1e-7, 1e-7, *[nan] * 7, 2.0, nan]  # not grown after a rejection, then to 1 again
    script = Script([[1.0, *[nan] * 8], again, [math.inf, nan]])
    end = carry_on(script, max_steps=60)
    assert end.outcome == ("not finite", "out of steps", "out of steps")
    assert (end.accepted[0], end.rejected[0], end.t[0], end.y[0][0]) == (1, 8, 1.0, 1.0)
    assert script.column("h")[:9] == pytest.approx([1.0, *(10.0**-k for k in range(8))])
    assert script.column("nan_count") == [0, *range(8)]
    assert script.column("nan_count", 1)[:19] == [*range(8), 0, *range(8), 0, 1]
    assert script.column("h", 2)[:3] == pytest.approx([1.0, 0.1, 0.01])
    assert (end.accepted[1] + end.rejected[1], end.rejected[1]) == (60, 16)


def test_one_error_for_all() -> None:
    """With `batch_coupled`, the root mean square of the errors that are numbers; without, each its own."""
    errors = [0.8 * math.sqrt(2) * math.sin(0.3), 0.8 * math.sqrt(2) * math.cos(0.3), math.nan]
    for coupled, h in ((True, [5.0, 5.0, 0.4]), (False, [4 / errors[0], 4 / errors[1], 0.4])):
        script = Script([[error] for error in errors], first=4.0)
        end = carry_on(script, batch_coupled=coupled)
        assert [script.column("h", i)[1] for i in range(3)] == pytest.approx(h)
        assert end.rejected.tolist() == [0, 0 if coupled else 1, 1]
    script = Script([[math.nan], [math.inf]], first=4.0)  # nothing to average
    carry_on(script, batch_coupled=True)
    assert [script.column("h", i)[1] for i in (0, 1)] == pytest.approx([0.4, 0.4])


def test_states_that_are_not_finite_do_not_start() -> None:
    """A NaN in any part of the state, and in any place."""
    part = torch.zeros(4, 2, dtype=F64)
    other = torch.zeros(4, dtype=F64)
    part[1, 0], part[2, 1], other[3] = math.nan, math.inf, -math.inf
    left: list[int] = []
    end = integrate(
        lambda t, y, index: (0 * y[0], 0 * y[1]), (part, other), 0.0, 1.0, sg.tableaus.BOSH3, on_leave=left.append
    )  # fmt: skip
    assert end.outcome == ("completed", *["not finite"] * 3)
    assert end.t.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert end.evaluations.tolist()[1:] == [0, 0, 0]
    assert left == [3, 1]
    end = integrate(lambda t, y, index: 0 * y, part[1:2], 0.0, 1.0, sg.tableaus.BOSH3)
    assert (end.outcome, end.calls) == (("not finite",), 0)


class Squares(Counting):
    """The square of the state, with a note of who asked where."""

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.asked: list[tuple[list[int], list[float]]] = []

    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """y^2."""
        self.asked.append((index.tolist(), t.tolist()))
        return (y[0] ** 2,)


def test_where_nothing_is_known_all_is_evaluated() -> None:
    """The slopes of all rows, however stale."""
    rows = rows_of(torch.tensor([[1.0], [2.0], [3.0]], dtype=F64), 0.0)
    rows.samples, rows.u = np.array([4, 1, 2]), np.array([0.1, 0.2, 0.3])
    assert Squares(5).first(rows, (), np.array([False] * 3))[0].flatten().tolist() == [1.0, 4.0, 9.0]


@pytest.mark.parametrize(
    "stale, expected, asked",
    [
        ([False, False, False], [-1.0, -2.0, -3.0], []),
        ([False, True, False], [-1.0, 4.0, -3.0], [([1], [0.2])]),
        ([True, False, True], [1.0, -2.0, 9.0], [([4, 2], [0.1, 0.3])]),
        ([True, True, True], [1.0, 4.0, 9.0], [([4, 1, 2], [0.1, 0.2, 0.3])]),
    ],
    ids=case_id,
)
def test_what_is_known_is_not_evaluated_again(stale: list[bool], expected: list[float], asked: list[Any]) -> None:
    """The slope at the start of a step: only the rows whose slope is stale are evaluated, each where it is."""
    rows = rows_of(torch.tensor([[1.0], [2.0], [3.0]], dtype=F64), 0.0)
    rows.samples, rows.u = np.array([4, 1, 2]), np.array([0.1, 0.2, 0.3])
    known = (torch.tensor([[-1.0], [-2.0], [-3.0]], dtype=F64),)

    stepper = Squares(5)
    (value,) = stepper.first(rows, known, np.array(stale))
    assert (value.flatten().tolist(), stepper.asked) == (expected, asked)
    assert stepper.calls == len(asked)
    assert [i for i in range(5) if stepper.evaluations[i]] == sorted(i for who, _ in asked for i in who)


@pytest.mark.parametrize("betas", [(0.1, 20.0), (0.001, 5.0), (3.0, 3.0)])
@pytest.mark.parametrize("prediction", ["data", "noise", "v", "score", "flow"])
@pytest.mark.parametrize("variable", ["flow-time", "noise-level", "log-snr"])
def test_coefficients_in_single_precision(variable: str, prediction: str, betas: tuple[float, float]) -> None:
    """Those of states in float32 are the others but for some roundings, times among them, and at the ends these are."""
    sde = sg.VPSDE(*betas, eps=1e-5)
    score = sg.Score(lambda x, t: x, sde, prediction)
    ends = (sde.T, sde.eps)
    flow = Flow(bind(score, sde, ends), variable, ends, 100)
    inside = torch.linspace(0, 1, 100, dtype=torch.float64)
    u = flow.start + inside * (flow.end - flow.start)
    u[-1] = flow.end
    single = flow._values(u, torch.zeros(0))
    double = flow._values(u, torch.zeros(0, dtype=torch.float64))
    for one, other in zip(single, double, strict=True):
        exact = torch.as_tensor(other).double()
        atol = 1e-6 * float(exact.abs().amin()) if exact.amin() * exact.amax() > 0 else 1e-6  # that of a change of sign
        torch.testing.assert_close(torch.as_tensor(one).double(), exact, rtol=1e-6, atol=atol)
    assert [float(single[0][k]) for k in (0, -1)] == [1.0, np.nextafter(np.float32(1e-5), np.float32(1))]  # inside


@pytest.mark.parametrize("sde", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("prediction", ["data", "noise", "v", "rectified"])
@pytest.mark.parametrize("variable", ["log-snr", "noise-level", "flow-time", "time"])
def test_places_may_be_known_before(sde: sg.LinearSDE, prediction: str, variable: str) -> None:
    """Slopes at places that were made ready for together are those at the same places one by one, to the bit."""
    score = sg.Score(lambda x, t: torch.tanh(x + t[:, None]), sde, prediction)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    index = torch.arange(5)
    ends = (0.9 * sde.T, 0.1 * sde.T)

    one, together = (Flow(bind(score, sde, ends), variable, ends, 5) for _ in range(2))
    z = one.enter(x)
    assert torch.equal(z, together.enter(x))
    shares = torch.linspace(0, 1, 20, dtype=F64).view(4, 5)
    places = one.start + (one.end - one.start) * shares
    together.prepare(places)
    for u in places.unbind(0):
        assert torch.equal(together.slope(u, z, index), one.slope(u.clone(), z, index)), variable


@pytest.mark.parametrize("end", [5.0, -3.0])
@pytest.mark.parametrize("pair", [sg.tableaus.DOPRI5, sg.schemes.ExponentialPair(3)], ids=lambda pair: pair.name)
def test_the_first_step(pair: Any, end: float) -> None:
    """Hairer's guess for y' = a y (Hairer, Norsett & Wanner, 1993, II.4), in both directions of the run, whichever
    part of the slope the pair takes for its own."""
    rate, rtol, atol, sign = -2.0, 0.1, 0.01, math.copysign(1.0, end)
    y0 = torch.tensor([[1.0, 1.0], [3.0, 3.0]], dtype=F64)
    asked: list[tuple[Tensor, Tensor]] = []

    def rhs(t: Tensor, y: State, index: Tensor) -> State:
        asked.append((t, y[0]))
        return ((rate - pair.linear) * y[0],)

    stepper = EmbeddedStepper(rhs, pair, rtol, atol, 2)
    got = stepper.first_step(rows_of(y0, 1.0), end)
    for i, y in enumerate((1.0, 3.0)):
        scale = atol + rtol * y
        h0 = 0.01 * (y / scale) / (abs(rate) * y / scale)  # the norm of y over that of y'
        change = rate * rate * y * h0 / scale / h0  # y' at the end of h0 is a (y + h0 a y)
        h1 = (0.01 / max(abs(rate) * y / scale, abs(change))) ** (1 / pair.error_order)
        assert got[i] == pytest.approx(min(100 * h0, h1), rel=1e-9)
        assert [float(t[i]) for t, _ in asked] == pytest.approx([1.0, 1.0 + sign * h0])
        assert asked[1][1][i].tolist() == pytest.approx([y + sign * h0 * rate * y] * 2)
    assert (stepper.calls, stepper.evaluations.tolist()) == (2, [2, 2])
    asked.clear()
    EmbeddedStepper(rhs, pair, 0.0, 1e-9, 1).first_step(rows_of(y0[:1], 1.0), 1.0 + sign * 1e-3)
    assert float(asked[1][0]) == 1.0 + sign * 1e-3  # and not beyond the run, where 5e-3 would lead


@pytest.mark.parametrize(
    ("size", "slope", "h0", "h1"),
    [
        (1e-5, 1e-5, 0.01, math.inf),
        (0.5e-5, 1.0, 1e-6, 0.01**0.2),
        (1.0, 0.5e-5, 1e-6, math.inf),
        (1.0, 1.5e-15, 1e-6, math.inf),
        (1.0, 1e-15, 1e-6, 1e-6),
        (1.0, 0.0, 1e-6, 1e-6),
    ],
)
def test_the_first_step_of_what_stands_still(size: float, slope: float, h0: float, h1: float) -> None:
    """From a state of size below 1e-5, or with so small a slope, h0 = 1e-6; h1 = 1e-6 for slopes of up to 1e-15."""
    constant = EmbeddedStepper(lambda t, y, i, s=slope: (0 * y[0] + s,), sg.tableaus.DOPRI5, 0.0, 1.0, 1)
    got = constant.first_step(rows_of(torch.full((1, 1), size, dtype=F64), 0.0), 1e9)
    assert got[0] == pytest.approx(min(100 * h0, h1), rel=1e-9)


def test_a_step_ends_where_it_is_to_end() -> None:
    """The last stage of the last step lies at the end itself, not where u + (end - u) is rounded to."""
    ends = [(k / 10, 1 / k) for k in range(2, 12)]
    assert any(start + (end - start) != end for start, end in ends)
    for start, end in ends:
        asked: list[float] = []

        def rhs(t: Tensor, y: Tensor, index: Tensor, asked: list[float] = asked) -> Tensor:
            asked.append(float(t))
            return 0 * y

        integrate(rhs, torch.ones(1, 1, dtype=F64), start, end, sg.tableaus.DOPRI5, first_step=99.0)
        assert asked[-1] == end


def test_the_norm_of_the_error() -> None:
    """Root mean square over a sample, each component over atol + rtol max(|y|, |y_next|); the worst part counts."""
    stepper = EmbeddedStepper(lambda t, y, i: y, sg.tableaus.DOPRI5, 0.5, 0.25, 1)
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
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.calls = 1  # type: ignore[misc]


Y0 = torch.ones(1, 1, dtype=F64)


def decay(t: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """The slope of exp(-t)."""
    return -y


def test_options_at_their_limits() -> None:
    """One attempt is enough, shares may be halves; no function and no number are refused."""
    with pytest.raises(TypeError, match=r"rhs must be a function of \(t, y, index\), got"):
        integrate(lambda t, y: y, Y0, 0.0, 1.0, sg.tableaus.DOPRI5)  # type: ignore[arg-type, misc]
    with pytest.raises(TypeError, match="t1 must be one number, got '1'"):
        integrate(decay, Y0, 0.0, "1", sg.tableaus.DOPRI5)  # type: ignore[arg-type]
    assert sg.Adaptive(max_steps=1, first_step=0.5).first_step == 0.5
    assert sg.schemes.GGF(first_step=0.5, safety=0.5, exponent=0.5).exponent == 0.5


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": 0.0}, {"max_steps": 1}], ids=case_id)
def test_one_tolerance_may_be_zero_and_one_attempt_is_enough(options: dict[str, object]) -> None:
    assert integrate(decay, Y0, 0.0, 1e-3, sg.tableaus.DOPRI5, first_step=1e-3, **options).outcome == ("completed",)


@pytest.mark.parametrize("max_steps", [True, 1.5, 0])
def test_the_number_of_attempts_is_an_integer(max_steps: float) -> None:
    """A bool is none."""
    with pytest.raises(ValueError, match=f"max_steps must be an integer of at least 1, got {max_steps}"):
        integrate(decay, Y0, 0.0, 1.0, sg.tableaus.DOPRI5, max_steps=max_steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"rtol": math.inf}, {"atol": -1.0}], ids=case_id)
def test_tolerances_are_finite_and_not_negative(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be finite, at least 0 and at most 1e\+12"):
        integrate(decay, Y0, 0.0, 1.0, sg.tableaus.DOPRI5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["on_leave", "on_places"])
@pytest.mark.parametrize("value, shown", [(3, "3"), (lambda: None, "<function")], ids=["number", "too few arguments"])
def test_observers_are_functions(name: str, value: object, shown: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a function of .*, got {shown}"):
        integrate(decay, Y0, 0.0, 1.0, sg.tableaus.DOPRI5, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("first_step", [0.0, math.inf, -1.0])
def test_a_first_step_is_positive(first_step: float) -> None:
    with pytest.raises(ValueError, match="first_step must be positive"):
        sg.Adaptive(first_step=first_step)


# --- Tableaus --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [sg.tableaus.DOPRI5, sg.tableaus.TSIT5], ids=lambda pair: pair.name)
def test_the_first_column_simplifying_assumption(pair: sg.tableaus.EmbeddedTableau) -> None:
    """sum_i b_i a_ij = b_j (1 - c_j), which both pairs satisfy by design: with the order conditions it ties down every
    coefficient, the second node too, on which the conditions of order 5 hardly depend (Tsitouras, 2011)."""
    A = np.array([[*row, *[0.0] * (len(pair.b) - len(row))] for row in pair.a])
    b, c = np.array(pair.b), np.array(pair.c)
    np.testing.assert_allclose(b @ A, b * (1 - c), rtol=0, atol=1e-14)
    assert c.tolist() == pytest.approx(A.sum(1).tolist(), abs=1e-15)


def test_classical_pairs_have_no_linear_part() -> None:
    """L = 0."""
    assert [pair.linear for pair in (sg.tableaus.BOSH3, sg.tableaus.DOPRI5, sg.tableaus.TSIT5, sg.tableaus.DOP853)] == [
        0.0
    ] * 4


def test_facts_of_the_pairs() -> None:
    """Order, order of the other method, power of the step in the error, and what a step costs, as in the literature."""
    facts = {
        sg.tableaus.BOSH3: (3, 2, 3, True, 3),
        sg.tableaus.DOPRI5: (5, 4, 5, True, 6),
        sg.tableaus.TSIT5: (5, 4, 5, True, 6),
        sg.tableaus.DOP853: (8, 5, 8, False, 12),
        sg.tableaus.EmbeddedTableau([[], [1.0]], [1.0, 0.0], [[-0.5, 0.5]]): (1, 2, 2, True, 1),  # Euler's, with Heun's
    }
    for pair, known in facts.items():
        assert (pair.order, pair.embedded_order, pair.error_order, pair.fsal, pair.nfe_per_step) == known


def test_facts_of_embedded_tableaus() -> None:
    """The last slope serves the next step only if its row is the weights and its weight is 0."""
    a, e = [[], [1.0]], [[0.5, -0.5]]
    assert not sg.tableaus.EmbeddedTableau(a, [0.5, 0.5], e).fsal
    assert not sg.tableaus.EmbeddedTableau([[], [0.5]], [1.0, 0.0], e).fsal
    assert sg.tableaus.EmbeddedTableau(a, [1.0, 0.0], e).fsal
    two = sg.tableaus.EmbeddedTableau(a, [0.5, 0.5], [[0.5, -0.5], [-0.5, 0.5]])
    assert (two.embedded_order, two.error_order) == (1, 2)
    with pytest.raises(ValueError, match=re.escape("must lie in [0, 1]")):
        sg.Tableau([[], [1.5]], [0.5, 0.5])


@pytest.mark.parametrize("weights", [[0.5, -0.4], [0.5, -0.25, -0.25], [0.5, -0.5 + 1.5e-12]], ids=case_id)
def test_weights_of_an_error_sum_to_zero(weights: list[float]) -> None:
    """And are as many as the stages."""
    with pytest.raises(ValueError, match="2 weights that sum to 0"):
        sg.tableaus.EmbeddedTableau([[], [1.0]], [0.5, 0.5], [weights])


def test_weights_for_steps() -> None:
    """The state once in every stage and in the end, slopes with h: Heun's method with Euler's."""
    pair = sg.tableaus.EmbeddedTableau([[], [1.0]], [0.5, 0.5], [[0.5, -0.5]])
    table = pair.weights(torch.tensor([2.0, 4.0], dtype=F64))
    assert table[..., 0].tolist() == [[1, 0, 0], [1, 2, 0], [1, 1, 1], [0, 1, -1]]
    assert table[..., 1].tolist() == [[1, 0, 0], [1, 4, 0], [1, 2, 2], [0, 2, -2]]


def test_the_error_of_two_estimates() -> None:
    """|e5|^2 / sqrt(|e5|^2 + |e3|^2 / 100), 0 where both vanish."""
    e5, e3 = torch.tensor([0.3, 0.0, 3.0], dtype=F64), torch.tensor([4.0, 0.0, 40.0], dtype=F64)
    assert sg.tableaus.DOP853.error([e5, e3]).tolist() == pytest.approx([0.09 / 0.5, 0.0, 9 / 5])
    assert sg.tableaus.BOSH3.error([e5]).tolist() == e5.tolist()


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
        pair = sg.schemes.ExponentialPair(order)
        got = pair.weights(torch.tensor([h], dtype=F64))[..., 0]
        torch.testing.assert_close(got, torch.tensor(known, dtype=F64), rtol=1e-12, atol=1e-14)
        assert (pair.c, pair.linear, pair.fsal, pair.error_order) == (c, -1.0, False, order)
        assert pair.name == ("exp-rk21", "exp-rk32")[order - 2]


@pytest.mark.parametrize("order", [1, 4, 6])
def test_exponential_pairs_are_of_second_or_third_order(order: int) -> None:
    with pytest.raises(ValueError, match=f"got {order}"):
        sg.schemes.ExponentialPair(order)


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
        "flow-time": (s / (a + s), a + s, noise - data),
        "time": (t, 1.0, drift),
    }
    a0, s0 = float(VP.alpha(t0)), float(VP.sigma(t0))
    first = {"log-snr": a0, "noise-level": a0, "flow-time": a0 + s0, "time": 1.0}
    index = torch.arange(1)
    for variable, (u, scale, slope) in known.items():
        flow = Flow(model, variable, (t0, t1), 1)
        at = torch.tensor([u], dtype=F64)
        assert float(flow.time(at)) == pytest.approx(t, rel=1e-9)
        assert COORDINATES[variable].of(VP.nodes([t])[0]) == pytest.approx(u, rel=1e-12)
        assert float(flow.slope(at, x / scale, index)) == pytest.approx(slope, rel=1e-8)
        assert float(flow.leave(x / scale, at)[0]) == pytest.approx(1.5, rel=1e-9)
        assert float(flow.enter(x)) == pytest.approx(1.5 / first[variable], rel=1e-12)
        ends = torch.tensor([flow.start, flow.end], dtype=F64)
        assert flow.time(ends).tolist() == [t0, t1]
        beyond = flow.time(ends + torch.tensor([-1e-3, 1e-3]) * (flow.end - flow.start))
        assert beyond.tolist() == [t0, t1]
    linear = Flow(model, "log-snr", (t0, t1), 1, linear=True)
    assert float(linear.slope(torch.tensor([math.log(a / s)], dtype=F64), x / a, index)) == pytest.approx(data)
    assert (default_variable(VP), default_variable(DoubleWell())) == ("flow-time", "time")


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 1.0)], ids=case_id)
def test_where_a_place_has_no_time(ends: Any) -> None:
    """Beyond the ends of a run between pure data and pure noise there is none, and the nearer end is taken."""
    sde = sg.RectifiedFlowSDE(T=1.0, eps=0.0)
    flow = Flow(bind(sg.from_flow(lambda x, t: x, sde), sde, (1.0, 0.0)), "flow-time", ends, 1)
    places = torch.tensor([1 + 1e-9, 1.4, -1e-9, -0.4, 0.25], dtype=F64)
    assert flow.time(places).tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0, 0.25], abs=1e-15)


@pytest.mark.parametrize("name", LINEAR)
def test_times_and_coefficients_of_noise_levels(name: str) -> None:
    """They are those of the times: inverse of sigma / alpha, and alpha and sigma there to a few roundings, also where a
    run rounds the times."""
    sde = LINEAR[name]
    t = torch.linspace(sde.eps, 0.98 * sde.T, 50, dtype=F64)[1:]
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    level = sigma / alpha
    torch.testing.assert_close(sde.time_of_noise_level(level), t, rtol=1e-10, atol=0)

    k = sde.at_noise_level(level)
    torch.testing.assert_close(k.t, t, rtol=1e-10, atol=0)
    k.t = t
    torch.testing.assert_close(k.alpha, alpha, rtol=1e-13, atol=0)
    torch.testing.assert_close(k.sigma, sigma, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["log-snr", "noise-level", "flow-time"])
def test_noise_levels_of_places(name: str) -> None:
    """sigma / alpha at a place is that of its log-SNR."""
    coordinate = COORDINATES[name]
    assert coordinate.state is not None
    u = torch.tensor([0.01, 0.3, 0.5, 0.9], dtype=F64)
    alpha, sigma = coordinate.state(u)
    expected = np.exp(-np.asarray(coordinate.half_log_snr(VP, u.numpy())))
    np.testing.assert_allclose((sigma / alpha).numpy(), expected, rtol=1e-13)


def test_a_bad_variable() -> None:
    """One of four."""
    model = bind(sg.from_flow(lambda x, t: x, sg.RectifiedFlowSDE(T=1.0)), sg.RectifiedFlowSDE(T=1.0), (1.0, 1e-3))
    with pytest.raises(ValueError, match=r"variable must be one of 'log-snr', .* got 'sigma'"):
        Flow(model, "sigma", (1.0, 0.5), 1)


@pytest.mark.parametrize("ends", [(1.0, 0.5), (0.5, 1.0)], ids=case_id)
def test_the_log_snr_is_a_variable_between_finite_ends(ends: tuple[float, ...]) -> None:
    model = bind(sg.from_flow(lambda x, t: x, sg.RectifiedFlowSDE(T=1.0)), sg.RectifiedFlowSDE(T=1.0), (1.0, 1e-3))

    with pytest.raises(ValueError, match="both must be finite; take variable='flow-time' or 'time'"):
        Flow(model, "log-snr", ends, 1)


# --- Budgets ---------------------------------------------------------------------------------------------------------

GROWS_LITTLE = Controller(largest=1.5)


def run_for(solver: sg.Adaptive | sg.schemes.GGF, calls: int) -> Integration:
    """Three samples from noise, with at most so many calls."""
    x = VP.prior_sample((3, 2), seed=0, dtype=F64)
    model = bind(sg.from_score(elementwise_score(VP), VP), VP, (VP.T, VP.eps))
    end = solver.run(Problem(model, VP, x, VP.T, VP.eps, ((0, 0), (0, 1), (0, 2)), calls))
    assert model.nfe == end.calls
    return end


PAIRS = [sg.tableaus.BOSH3, sg.tableaus.DOPRI5, sg.tableaus.DOP853, *map(sg.schemes.ExponentialPair, (2, 3))]


PAIRS = [sg.tableaus.BOSH3, sg.tableaus.DOPRI5, sg.tableaus.DOP853, *map(sg.schemes.ExponentialPair, (2, 3))]


@pytest.mark.parametrize("attempts", [1, 2, 5])
@pytest.mark.parametrize("first_step", [None, 1e-4])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_budget_is_used_up(pair: Any, first_step: float | None, attempts: int) -> None:
    """A step takes as many calls as stages, less one where the last slope serves the next step, which the first
    has to make; finding the size of the first step takes another."""
    calls = attempts * (len(pair.c) - pair.fsal) + pair.fsal + (first_step is None)
    solver = sg.Adaptive(pair, 1e-7, 1e-7, first_step=first_step, controller=GROWS_LITTLE)
    end = run_for(solver, calls)
    assert end.accepted.tolist() == [attempts] * 3
    assert end.calls == calls
    if attempts > 1:
        assert run_for(solver, calls - 1).accepted.tolist() == [attempts - 1] * 3
        assert run_for(dataclasses.replace(solver, max_steps=1), calls).accepted.tolist() == [1] * 3
    else:
        assert solver.least_calls == calls


def test_attempts_of_the_sde() -> None:
    """No more than allowed, whatever the budget; the first takes two calls."""
    solver = sg.schemes.GGF(atol=1e3)
    assert run_for(dataclasses.replace(solver, max_steps=1), 100).accepted.tolist() == [1] * 3
    assert solver.least_calls == 2


@pytest.mark.parametrize("calls", [2, 3, 4, 5])
def test_a_budget_of_the_sde(calls: int) -> None:
    """Two calls a step."""
    solver = sg.schemes.GGF(atol=1e3)

    end = run_for(solver, calls)
    assert (end.accepted.tolist(), end.calls) == ([calls // 2] * 3, calls // 2 * 2)


@pytest.mark.parametrize(
    "solver",
    [
        sg.schemes.GGF(rtol=0.3, atol=0.05, first_step=0.03, max_steps=60),
        sg.schemes.GGF(rtol=1e-5, atol=1e-6, first_step=0.5, max_steps=20),  # the first step is cut to a thousandth
        sg.schemes.GGF(rtol=0.01, atol=0.01, first_step=0.05, safety=0.7, exponent=0.5, max_steps=40),
        sg.schemes.GGF(rtol=0.3, atol=0.05, first_step=0.001, growth=1.5),
    ],
    ids=["default", "tight", "other", "slow"],
)
def test_the_sde_solver_by_hand(solver: sg.schemes.GGF) -> None:
    """Jolicoeur-Martineau et al.'s algorithm for one sample, its steps of three digits and on one path."""
    x = VP.prior_sample((1, 6), seed=0, dtype=F64)
    rev, length = VP.reverse(elementwise_score(VP), eta=1.0), VP.T - VP.eps
    seeds = SampleSeeds(5, range(1))
    tree, place, behind = BrownianTree(seeds, (6,), VP.T), 0.0, np.zeros((1, 6))
    model = bind(sg.from_score(elementwise_score(VP), VP), VP, (VP.T, VP.eps))
    end = solver.run(Problem(model, VP, x, VP.T, VP.eps, seeds))

    def rounded(h: float) -> float:
        unit = 2.0 ** math.floor(math.log2(h / length)) / 4  # the first of three digits is worth four units
        return math.floor(h / length / unit) * unit * length

    t, h, before, grows, tried = VP.T, rounded(solver.first_step), x, True, [0, 0]
    while t > VP.eps and sum(tried) < solver.max_steps:
        h = min(h, t - VP.eps)
        there = max(t - h, VP.eps) if t - h - VP.eps > 1e-12 else VP.eps
        now, then = (torch.tensor([v], dtype=F64) for v in (t, there))
        ahead = 1.0 if there == VP.eps else place + float(Fraction(round(h / length * 2**50), 2**50))
        dW = math.sqrt(length) * torch.from_numpy(tree.at(np.array([ahead]), np.zeros(1, dtype=int)) - behind)
        euler = x - h * rev.f(x, now) + rev.g(now) * dW
        other = x - h * rev.f(euler, then) + rev.g(then) * dW
        after = (euler + other) / 2
        scale = torch.maximum(torch.tensor(solver.atol), solver.rtol * torch.maximum(euler.abs(), before.abs()))
        error = float(((after - euler) / scale).square().mean().sqrt())
        expected = (h * rev.f(x, now)).square().mean() + h * rev.g(now) ** 2
        error *= max(1.0, float((expected / (euler - x).square().mean()).sqrt()))
        factor = min(solver.growth, max(1e-3, solver.safety * error**-solver.exponent))
        if error <= 1:
            x, t, before = after, there, euler
            place, behind = ahead, tree.at(np.array([ahead]), np.zeros(1, dtype=int))
            factor = factor if grows else min(factor, 1.0)
        grows = error <= 1
        tried[error > 1] += 1
        h = rounded(h * factor)
    assert tried[0] > 2
    assert tried[1] > 1 or solver.growth < 2
    assert (end.accepted.tolist(), end.rejected.tolist()) == ([tried[0]], [tried[1]])
    assert float(end.t) == pytest.approx(t, abs=1e-14)
    torch.testing.assert_close(end.y[0], x, rtol=1e-9, atol=1e-9)


# --- Registry --------------------------------------------------------------------------------------------------------


def test_names_of_what_adapts() -> None:
    """Names, libraries with their methods, and what is refused."""
    assert resolve_any("scipy:RK45") == resolve_any("scipy:rk45") == sg.schemes.SciPy("RK45")
    assert resolve_any(sg.schemes.GGF()) == sg.schemes.GGF()
    assert resolve_any("ddim") == resolve_any(sg.DDIM()) == sg.DDIM()
    with pytest.raises(ValueError, match="unknown library 'jax' in 'jax:a:b'; known: torchdiffeq, torchsde, scipy"):
        resolve_any("jax:a:b")
    with pytest.raises(ValueError, match="unknown method of scipy 'RK45:x'"):
        resolve_any("scipy:RK45:x")
    with pytest.raises(TypeError, match="got the class GGF: call it"):
        resolve_any(sg.schemes.GGF)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got 3"):
        resolve_any(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("order, name", [(2, "exp-rk21"), (3, "exp-rk32")])
def test_names_of_exponential_pairs(order: int, name: str) -> None:
    assert resolve_any(name) == sg.Adaptive(sg.schemes.ExponentialPair(order))


@pytest.mark.parametrize("given", [sg.schemes.GGF(), "ggf", "scipy:RK45"], ids=case_id)
def test_what_finds_its_own_steps_is_no_solver_of_a_grid(given: sg.Solver | str) -> None:
    with pytest.raises(TypeError, match="finds its own steps"):
        resolve(given)  # type: ignore[arg-type]


def test_rows_of_what_adapts() -> None:
    """Order on the flow, none for the SDE; the cost is adaptive."""
    table = sg.solvers()
    rows = {row[0]: row for row in table.rows() if row[0] in table.adaptive}
    assert list(rows) == list(ADAPTIVE)
    assert rows["dopri5"][1:4] == ("5", "-", "var.")
    assert rows["ggf"][1:4] == ("-", "-", "var.")


def test_an_adaptive_solver_says_nothing_more_than_it_knows() -> None:
    """Neither noise nor steps unless it says so."""
    assert (AdaptiveSolver.stochastic, AdaptiveSolver.takes_steps) == (False, False)


def test_clocks() -> None:
    """The signal-to-noise ratio alpha^2 / sigma^2; time where there is none."""
    brownian_time = sg.DDIM().brownian_time(VP, 0.5)
    assert brownian_time == pytest.approx((float(VP.alpha(0.5)) / float(VP.sigma(0.5))) ** 2)
    assert sg.DDIM().brownian_time(DoubleWell(), 0.5) == 0.5


@pytest.mark.parametrize("solver", [sg.DPMSolverPP(2, eta=0.5), sg.DPMSolverPP(1, eta=2.0), sg.DPMSolver(2, eta=0.7)])
def test_noises_are_increments_on_the_clock(solver: sg.schemes.ExponentialAdams) -> None:
    """At a step's start its noise has the variance that the Brownian time passes, up to a constant factor."""
    start, *ends = VP.nodes([0.8, 0.7, 0.3, 0.1])
    passed = []
    for end in ends:
        part = solver.part(start, end)
        variance = (part.std(start, end) / part.factor(start, end)) ** 2
        passed.append(variance / abs(solver.brownian_time(VP, end.t) - solver.brownian_time(VP, 0.8)))
    assert passed == pytest.approx([passed[0]] * 3)


@pytest.mark.parametrize("solver", [sg.DPMSolverPP(2, eta=lambda t: t), sg.schemes.ERSDE(2)], ids=case_id)
def test_clocks_where_the_noise_level_is_not_one_number(solver: Any) -> None:
    """The signal-to-noise ratio again."""
    ratio = math.exp(float(VP.log_snr(0.3)))
    assert solver.brownian_time(VP, 0.3) == pytest.approx(ratio)


@pytest.mark.parametrize("scale", [0.1, 0.01, 0.003])
@pytest.mark.parametrize("solver", ["exp-rk21", "exp-rk32"])
@pytest.mark.parametrize("sde", [sg.RectifiedFlowSDE(), sg.EDMSDE(), sg.SubVPSDE()], ids=case_id)
def test_exponential_pairs_do_not_step_over_where_data_take_shape(sde: sg.LinearSDE, solver: str, scale: float) -> None:
    """Of data of a small scale, with estimates that are the same above it and below it: .4 to .7 of their standard
    deviation off in such steps."""
    means = torch.tensor([[-0.8, 0.6], [0.7, -0.5]], dtype=torch.float64)
    score = sg.oracles.GaussianMixture(scale * means, 0.3 * scale).score(sde)
    x_T = sde.prior_sample((32, 2), seed=1, dtype=torch.float64)
    exact = sg.sample(score, sde, x_T=x_T, solver="dpm++3m", grid="log-snr", steps=400).x
    found = sg.sample(score, sde, x_T=x_T, solver=solver)
    assert float((found.x - exact).square().mean().sqrt() / exact.std()) < 0.025
    assert found.nfe < 80
