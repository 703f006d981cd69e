"""Programs and their tracing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest

import sgm_sde as sg
from sgm_sde.engine.program import Form, Program, ProgramBuilder, Stage, Step
from tests.by_hand import EDM, node
from tests.helpers import stream

ZERO = Stage(2.0, evaluate=True, node=True)


END = Stage(1.0, states=((0, 1.0),), evals=((0, 0.5),), node=True)


def test_programs_are_checked() -> None:
    """Where they start and end, what they refer to, and that their numbers are finite."""
    ok = Program("p", "data", (ZERO, END))
    assert (ok.eta, ok.sigma_data, ok.nfe, ok.steps, ok.times, ok.stochastic) == (0.0, 1.0, 1, 1, (2.0, 1.0), False)
    start, ends = "starts with the initial state", "starts and ends at a node"
    wrong: list[tuple[tuple[Stage, ...], str]] = [
        ((), start),
        ((dataclasses.replace(ZERO, states=((0, 1.0),)), END), start),
        ((dataclasses.replace(ZERO, evals=((0, 1.0),)), END), start),
        ((dataclasses.replace(ZERO, node=False), END), ends),
        ((ZERO, dataclasses.replace(END, node=False)), ends),
        ((ZERO, Stage(1.0, states=((0, math.inf),), node=True)), "coefficient inf on state 0 in stage 1, at t=1"),
        ((ZERO, Stage(1.0, noises=((3, math.nan),), node=True)), "coefficient nan on noise 3"),
        ((ZERO, Stage(1.0, states=((1, 1.0),), node=True)), "stage 1 refers to state 1, which does not exist yet"),
        ((ZERO, Stage(1.0, evals=((-1, 1.0),), node=True)), "stage 1 refers to eval -1"),
        ((Stage(2.0, node=True), END), "stage 1 refers to eval 0, which is not evaluated"),
    ]
    for stages, text in wrong:
        with pytest.raises(ValueError, match=text):
            Program("p", "data", stages)
    Program("p", "data", (ZERO, Stage(1.0, states=((0, 1.0),), noises=((7, 1.0),), node=True)))
    assert hash(ok) == hash(Program("p", "data", (ZERO, END)))
    assert hash(ok) != hash(Program("q", "data", (ZERO, END)))
    assert hash(ok) != hash(Program("p", "data", (ZERO, dataclasses.replace(END, t=0.5))))


def test_programs_know_their_noise() -> None:
    """Any stage's noise makes a program stochastic; the last stage's own can be left out."""
    noisy = Stage(1.5, states=((0, 1.0),), noises=((0, 1.0),))
    last = Stage(1.0, states=((1, 1.0),), noises=((0, 0.5), (1, 2.0)), node=True)
    program = Program("p", "data", (ZERO, noisy, last))
    assert program.stochastic
    assert program.without_final_noise().stages == (ZERO, noisy, dataclasses.replace(last, noises=((0, 0.5),)))
    text = str(program).splitlines()
    assert text[0] == "p: 1 steps, 1 evaluations of the data"
    assert text[1:] == [
        "*e x0 (t=2) = initial state",
        "   x1 (t=1.5) = +1 x0 +1 z0",
        "*  x2 (t=1) = +1 x1 +0.5 z0 +2 z1",
    ]
    assert Program.from_json(program.to_json()) == program


@pytest.mark.parametrize("text_", ["[]", "{}", '{"stages": [{}]}'])
def test_other_json_is_no_program(text_: str) -> None:
    with pytest.raises(ValueError, match="not the JSON of a program"):
        Program.from_json(text_)


def test_forms() -> None:
    """Linear forms add, scale and negate; terms of coefficient 0 are left out of a table."""
    x, e = Form({("states", 0): 1.0}), Form({("evals", 2): 4.0, ("evals", 1): 0.0})
    assert (x + x + e).terms == {("states", 0): 2.0, ("evals", 2): 4.0, ("evals", 1): 0.0}
    assert (-e).terms == {("evals", 2): -4.0, ("evals", 1): 0.0}
    assert (e / 8).terms[("evals", 2)] == 0.5
    assert (3 * e).terms[("evals", 2)] == (e * 3).terms[("evals", 2)] == 12.0
    assert (x - 2 * x).terms == {("states", 0): -1.0}
    assert e.of("evals") == ((2, 4.0),)
    assert (e + Form({("evals", 0): 1.0})).of("evals") == ((0, 1.0), (2, 4.0))
    assert e.of("states") == ()
    assert Form.combine([2.0, 3.0, 5.0], [x, e]).terms == {("states", 0): 2.0, ("evals", 2): 12.0, ("evals", 1): 0.0}
    assert Form.combine([], []).terms == {}


def traced(times: Sequence[float] = (4.0, 2.0, 1.0, 0.5), i: int = 0, sde: sg.SDE = EDM) -> tuple[ProgramBuilder, Step]:
    """A tracer and its step i, with the states of the steps before."""
    tracer = ProgramBuilder(sde, tuple(times))
    for j in range(i):
        tracer.add(Form({("states", j): 0.5}), times[j + 1], node=True)
    return tracer, Step(tracer, tracer.path, i)


def test_what_a_step_sees() -> None:
    """Its number, its nodes, the path's last, and its own state."""
    _, k = traced(i=1)
    assert (k.i, k.n, k.start.t, k.end.t, k.last.t) == (1, 3, 2.0, 1.0, 0.5)
    assert k.x.terms == {("states", 1): 1.0}
    assert k.memory == {}
    other = k.with_end(node(0.7))
    assert (other.i, other.start.t, other.end.t) == (1, 2.0, 0.7)


def test_evaluations_are_asked_for_once() -> None:
    """The step's own state is not copied, other states are stages; the history has each step's evaluation once."""
    tracer, k = traced()
    first = k.evaluate(k.x, k.start)
    again = k.evaluate(k.x, k.start)
    assert first.terms == again.terms == {("evals", 0): 1.0}
    assert len(tracer.stages) == 1
    assert tracer.stages[0].evaluate
    assert len(tracer.path.history) == 1
    inner = k.evaluate(k.x, k.end)  # the same state at another time is another stage
    assert inner.terms == {("evals", 1): 1.0}
    assert k.evaluate(0.5 * k.x, k.start).terms == {("evals", 2): 1.0}
    noise = k.noise()
    assert k.evaluate(noise, k.start).terms == {("evals", 3): 1.0}
    assert k.evaluate(1.0 * first, k.start).terms == {("evals", 4): 1.0}
    assert k.evaluate(k.x + first, k.start).terms == {("evals", 5): 1.0}
    assert len(tracer.path.history) == 1
    assert [stage.t for stage in tracer.stages] == [4.0, 2.0, 4.0, 4.0, 4.0, 4.0]
    assert [stage.node for stage in tracer.stages] == [True] + [False] * 5
    assert k.keep(k.x, k.start).terms == k.x.terms
    assert k.keep(2 * k.x, k.start).terms == {("states", 6): 1.0}


def test_noises_are_numbered() -> None:
    """From 0, one at a time."""
    tracer, k = traced()
    assert [k.noise().terms for _ in range(3)] == [{("noises", m): 1.0} for m in range(3)]
    assert tracer.n_noises == 3


def test_the_history() -> None:
    """Newest first, as far as there is one."""
    tracer, k = traced()
    forms = [Form({("evals", j): 1.0}) for j in range(3)]
    for t, form in zip((4.0, 3.0, 2.0), forms, strict=True):
        k.remember(node(t), form)
    assert [n.t for n, _ in k.known(2)] == [2.0, 3.0]
    assert [n.t for n, _ in k.known(3)] == [n.t for n, _ in k.known(9)] == [2.0, 3.0, 4.0]
    assert [n.t for n, _ in k.known(1)] == [2.0]
    assert k.previous(0) == (tracer.path.history[2][0], forms[2])
    assert k.previous(2)[1] is forms[0]


def test_times_inside_a_step() -> None:
    """Between T and the grid's end; within rounding of a step's ends they are its ends, beyond by rounding moved in."""
    tracer, k = traced((4.0, 2.0, 1.0), 1)
    assert k.at(2 * (1 + 1e-13)) is k.start
    assert k.at(1 * (1 + 1e-13)) is k.end
    assert k.at(2 * (1 + 1.5e-12)) is not k.start
    assert k.at(4.0) is not k.start
    assert k.at(1.5).t == 1.5
    assert k.at(1.5) is k.at(1.5)
    assert k.at(1 - 3e-9).t == k.at(1 - 1e-9 * 80).t == 1.0  # up to 1e-9 of the largest time
    assert k.at(80 * (1 + 0.5e-9)).t == k.at(80 * (1 + 1e-9)).t == 80.0
    assert k.at(80.0).t == 80.0
    assert k.at_noise_level(3.0).t == pytest.approx(3.0)
    assert k.at_noise_level(80.0).t == k.at_noise_level(100.0).t == 80.0
    assert tracer.node(1.5) is tracer.node(1.5)
    _, first = traced((4.0, 2.0, 1.0))
    assert first.at(1 + 1e-13).t == 1 + 1e-13  # the end of another step


@pytest.mark.parametrize("t", [1 - 100e-9, 80 * (1 + 1.5e-9), 0.5, 100.0])
def test_times_outside_the_run_are_refused(t: float) -> None:
    """Beyond by more than rounding."""
    _, k = traced((4.0, 2.0, 1.0), 1)
    with pytest.raises(ValueError, match=r"lies outside \[1.0, 80.0\]"):
        k.at(t)


def test_times_up_to_the_grid_s_start() -> None:
    """A grid that starts beyond T, as a user's own process may have it, reaches up to its own start."""
    _, k = traced((100.0, 2.0, 1.0), 1)
    assert k.at(90.0).t == 90.0
    with pytest.raises(ValueError, match=r"\[1.0, 100.0\]"):
        k.at(101.0)
    _, k = traced((0.5, 1.0, 2.0))  # and so does one that runs up, from data to noise
    assert k.at(0.7).t == 0.7
    with pytest.raises(ValueError, match=r"\[0.5, 80.0\]"):
        k.at(0.4)


@dataclasses.dataclass(frozen=True)
class Fixed(sg.Solver):
    """A solver whose facts are given."""

    prediction: str = "drift"
    eta: float = 0.5
    sigma_data: float = 0.25
    name = "fixed"
    order = 1
    source = "here"

    def step(self, k: Step) -> Form:
        return k.x + 2 * k.evaluate(k.x, k.start)


def test_programs_carry_what_their_prediction_needs() -> None:
    """eta with the drift, sigma_data with the velocity, and neither with anything else."""
    expected = {"drift": (0.5, 1.0), "v": (0.0, 0.25), "data": (0.0, 1.0)}
    for prediction, pair in expected.items():
        program = Fixed(prediction).compile(EDM, sg.Grid([2.0, 1.0]))
        assert (program.name, program.prediction, program.eta, program.sigma_data) == ("fixed", prediction, *pair)
        assert [stage.t for stage in program.stages] == [2.0, 1.0]


def test_solvers_by_default() -> None:
    """What a solver is that says nothing: deterministic, one call a step, no hooks."""

    class Plain(sg.Solver):
        name, order, prediction, source = "plain", 1, "data", "here"

        def step(self, k: Step) -> Form:
            return k.x / k.start.alpha / 0.0

    plain = Plain()
    assert (plain.weak_order, plain.nfe_per_step, plain.eta, plain.sigma_data) == (None, 1, 0.0, 1.0)
    assert (plain.stochastic, plain.nfe(7), plain.steps(7), plain.fit(7)) == (False, 7, 7, (plain, 7))
    assert plain.steps(-1) == 0
    grid = sg.Grid([2.0, 1.0])
    assert plain.hooks(EDM, grid, None, stream(1), mean=True) == ()
    with pytest.raises(ValueError, match=r"plain divides by zero in the step from t=2.0 to t=1.0"):
        plain.compile(EDM, grid)


def test_solvers_without_a_hash_are_compiled_too() -> None:
    """A list among the options only costs the cache; other errors are not hidden by it."""

    @dataclasses.dataclass
    class Listed(sg.Solver):
        options: list[float]
        name = "listed"
        order = 1
        prediction = "data"
        source = "here"

        def step(self, k: Step) -> Form:
            return self.options[0] * k.x

    grid = sg.Grid([2.0, 1.0])
    assert Listed([0.5]).compile(EDM, grid).stages[1].states == ((0, 0.5),)
    with pytest.raises(TypeError, match="float"):
        Fixed("data", eta=0.0).compile(EDM, grid).stages[1].states[0] + 1.0  # type: ignore[operator]

    class Wrong(Fixed):
        def step(self, k: Step) -> Form:
            raise TypeError("something else")

    with pytest.raises(TypeError, match="something else"):
        Wrong().compile(EDM, grid)


@pytest.mark.parametrize("name", ["rectified3", "dpm++2s-ancestral", "heun", "ancestral"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_steps_without_signal_are_told_in_words(name: str) -> None:
    """On a process without any signal at the first times."""
    sde = sg.VPSDE(T=10.0)
    with pytest.raises(ValueError, match=r"divides by zero in the step from t=10\.0 to t=9\.8"):
        sg.solvers()[name].compile(sde, sg.grids.Uniform()(sde, 50))
