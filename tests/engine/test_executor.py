"""The engine: phi-functions, programs as values, and one executor that is right for any table."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

import sgm_sde as sg
from sgm_sde.engine.executor import execute
from sgm_sde.engine.lowering import Plan, allocate, emit, fold_conversions, lower, recover_evaluations
from sgm_sde.engine.matrix import Matrix
from sgm_sde.engine.memory import Buffers, GraphMemory, allocate_memory
from sgm_sde.engine.phi import phi
from sgm_sde.engine.program import Form, Program, Stage, Terms
from tests.conventions import case_id
from tests.helpers import ALL, F64, GAUSSIAN, LINEAR, MIXTURE, bind, stream


@given(z=st.floats(-50, 20), k=st.integers(0, 5))
def test_phi_functions(z: float, k: int) -> None:
    """phi_k against its integral, by mpmath in 40 digits, to 1e-13 for any argument."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        exact = (
            mpmath.exp(z)
            if k == 0
            else mpmath.nsum(lambda j: mpmath.mpf(z) ** j / mpmath.factorial(j + k), [0, mpmath.inf])
        )
    assert phi(k, z) == pytest.approx(float(exact), rel=2e-13)


def test_phi_functions_at_the_ends() -> None:
    """Limits at 0 and minus infinity; a negative index is an error."""
    assert [phi(k, 0.0) for k in range(4)] == [1, 1, 1 / 2, 1 / 6]
    assert [phi(k, -math.inf) for k in range(4)] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="-1"):
        phi(-1, 0.0)


class Affine:
    """A model e = c_x x + c_r r, with r = x^2 / 4 + t: what the executor must reproduce for any c."""

    def __init__(self, conversions: list[tuple[float, float]]) -> None:
        self.table = conversions
        self.calls: list[float] = []

    def plan(self, program: Program) -> Plan:
        return lower(program, self.table)

    def times(self, ts: Sequence[float], x: Tensor) -> list[Tensor]:
        return [torch.full((len(x),), t, dtype=x.dtype) for t in ts]

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls.append(float(t[0]))
        return x**2 / 4 + t[0]


@st.composite
def programs(draw: st.DrawFn) -> tuple[Program, list[tuple[float, float]]]:
    """Any table: stages that refer to any earlier states, evaluations and noises."""
    n = draw(st.integers(1, 7))
    number = st.floats(-1.5, 1.5).filter(lambda c: abs(c) > 1e-3)
    evaluate = [draw(st.booleans()) for _ in range(n + 1)]
    stages = [Stage(1.0, evaluate=evaluate[0], node=True)]
    for k in range(1, n + 1):
        earlier = range(k)
        pick = lambda items: tuple((j, draw(number)) for j in items if draw(st.booleans()))  # noqa: E731
        noises = tuple((m, draw(number)) for m in sorted(draw(st.sets(st.integers(0, 3), max_size=2))))
        stages.append(
            Stage(
                1 / (k + 1),
                pick(earlier),
                pick(j for j in earlier if evaluate[j]),
                noises,
                evaluate[k],
                k % 2 == 0 or k == n,
            )
        )
    conversions = [
        (draw(st.sampled_from([0.0, 1.0, -0.3, 2.0])), draw(st.sampled_from([1.0, -0.5, 3.0]))) for _ in stages
    ]
    return Program("random", "data", tuple(stages)), conversions


class Recorded:
    """Noise that a reference run sees as well: draw m is handed out at the first use of noise m."""

    def __init__(self) -> None:
        self.source = stream(3)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: object = None) -> Tensor:
        return self.source.normal(shape, dtype)


def reference(program: Program, conversions: list[tuple[float, float]], x: Tensor) -> Tensor:
    """The definition of a program, word for word."""
    noise, drawn = Recorded(), {}
    model, states, evals = Affine(conversions), [], []
    for k, stage in enumerate(program.stages):
        for m, _ in stage.noises:
            if m not in drawn:
                drawn[m] = noise.normal(tuple(x.shape), x.dtype)
        state = x if k == 0 else torch.zeros_like(x)
        for terms, values in ((stage.states, states), (stage.evals, evals), (stage.noises, drawn)):
            for j, c in terms:
                state = state + c * values[j]
        states.append(state)
        c_x, c_r = conversions[k]
        evals.append(
            c_x * state + c_r * model.evaluate(state, torch.full((len(x),), stage.t, dtype=x.dtype))
            if stage.evaluate
            else None
        )
    return states[-1]


@pytest.mark.parametrize("grad", [False, True])
@given(case=programs())
def test_the_executor_runs_any_table(grad: bool, case: tuple[Program, list[tuple[float, float]]]) -> None:
    """Slots, in-place updates and folded conversions change nothing: the definition, to rounding."""
    program, conversions = case
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    kept = x.clone()
    model = Affine(conversions)
    with torch.set_grad_enabled(grad):
        run = execute(program, x, model, Recorded(), grad=grad)
    expected = reference(program, conversions, kept)
    torch.testing.assert_close(run.x, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, kept), "the caller's tensor was changed"
    assert len(model.calls) == program.nfe
    assert run.nodes == len(program.times)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["heun", "rk4", "dpm3", "dpm++3s", "seeds3", "pndm", "res3", "dpm++3m-restart"])
def test_the_executor_runs_tables_with_inner_stages(name: str, grad: bool) -> None:
    """Predicted states that are written out in the next stage, and those that are not: the definition, to rounding."""
    program = ALL[name].compile(sg.EDMSDE(), sg.Grid([1.0, 0.8, 0.4, 0.25, 0.1]))
    conversions = [(0.5, 2.0) if k % 3 else (-1.0, 1.0) for k in range(len(program.stages))]
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    with torch.set_grad_enabled(grad):
        run = execute(program, x, Affine(conversions), Recorded(), grad=grad)
    torch.testing.assert_close(run.x, reference(program, conversions, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_outputs_of_another_precision_are_converted(name: str, grad: bool) -> None:
    """A network in half precision moves a state in double precision: folded, stored and kept for backpropagation."""

    class Half(Affine):
        def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
            return super().evaluate(x, t).round().half()  # of numbers that half precision holds

    class Rounded(Affine):
        def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
            return super().evaluate(x, t).round()

    program = ALL[name].compile(sg.EDMSDE(), sg.Grid([4.0, 2.0, 1.0, 0.5]))
    x = torch.linspace(-3, 3, 6, dtype=F64).reshape(3, 2)
    half, double = (execute(program, x, kind([(0.5, 2.0)] * 4), stream(3), grad=grad).x for kind in (Half, Rounded))
    assert half.dtype == F64
    assert torch.equal(half, double)


M = Matrix.of([[1.0, 2.0], [-3.0, 0.5]])


@pytest.mark.parametrize(
    ("a", "b", "c"), [(0.5, 0.5, 1.0), (M, 0.5, 1.0), (M, 2.0, 1.0), (M, M, 1.0), (1.0, 2.0, M), (M, M, M)]
)
@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4)])
@pytest.mark.parametrize("c_x, c_r", [(M, 0.5), (0.5, M), (M, M)], ids=case_id)
def test_matrices_act_on_blocks(
    shape: tuple[int, ...],
    a: float | Matrix,
    b: float | Matrix,
    c: float | Matrix,
    c_x: float | Matrix,
    c_r: float | Matrix,
) -> None:
    """In the table and in a conversion, on either side of it, on states of nothing but blocks too."""
    stages = (Stage(1.0, evaluate=True, node=True), Stage(0.5, ((0, 1.0),), ((0, b),)))
    program = Program("p", "data", (*stages, Stage(0.0, ((1, a),), ((0, c),), node=True)))
    x = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape)
    r = x**2 / 4 + 1

    def times(k: float | Matrix, x: Tensor) -> Tensor:
        return torch.einsum("ij,bj...->bi...", torch.tensor(k.rows, dtype=F64), x) if isinstance(k, Matrix) else k * x

    e = times(c_x, x) + times(c_r, r)
    run = execute(program, x, Affine([(c_x, c_r)] * 3), Recorded())  # type: ignore[list-item]
    torch.testing.assert_close(run.x, times(a, x + times(b, e)) + times(c, e))


@pytest.mark.parametrize("wrong", [(2,), (2, 3), (1, 3, 2)], ids=case_id)
def test_states_of_other_blocks_are_refused(wrong: tuple[int, ...]) -> None:
    """Where the table has matrices."""
    last = Stage(0.5, ((0, M),), ((0, M),), node=True)
    program = Program("p", "data", (Stage(1.0, evaluate=True, node=True), last))
    with pytest.raises(ValueError, match=re.escape(f"a state of 2 blocks, (B, 2, *): got {wrong}")):
        execute(program, torch.zeros(wrong), Affine([(M, 1.0)] * 3), Recorded())  # type: ignore[list-item]


class Passes(TorchFunctionMode):
    """Keeps the calls that make a state, with the number of columns of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name in ("addmv", "add_", "mul", "add", "lerp", "copy_", "zero_", "clone"):
            self.seen.append((name, args[1].shape[1] if name == "addmv" else 0))
        return func(*args, **(kwargs or {}))


def test_a_stage_is_as_few_passes_as_can_be() -> None:
    """A product with the whole history, where that is two rows at least; else a call for each term."""
    sde, grid = LINEAR["vp"], sg.Grid([0.9, 0.7, 0.4, 0.2])
    program = sg.DPMSolverPP(2, lower_final=False).compile(sde, grid)
    passes, model = Passes(), bind(sg.from_noise(lambda x, t: x.sigmoid(), sde), sde, grid.times)
    plan, x = model.plan(program), torch.ones(2, 3, dtype=F64)
    assert [len(ins.slots) for ins in plan.instructions] == [0, 1, 2, 1]
    execute(program, x, model, stream(2))  # the first call of a network is looked at
    with passes:
        execute(program, x, model, stream(2))
    store, factor, row, last = ("add", 0), ("mul", 0), ("add_", 0), ("add_", 0)  # the last evaluation is used once
    history = ("addmv", plan.n_slots)
    times = ("clone", 0)
    assert passes.seen == [times, ("copy_", 0), store, factor, row, store, history, factor, row, last]


@pytest.mark.parametrize(("factor", "passes"), [(1.0, ["add"]), (2.0, ["mul", "add_"]), (0.5, ["lerp"])])
def test_a_state_that_is_needed_again_stays(factor: float, passes: list[str]) -> None:
    """A stage that builds on it is a state of its own; a factor is a pass more, but not beside 1 minus it."""
    stages = (Stage(2.0, evaluate=True, node=True), Stage(1.0, ((0, factor),), ((0, 0.5),)))
    program = Program("p", "data", (*stages, Stage(0.0, ((0, 1.0), (1, 1.0)), node=True)))
    x, seen = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2), Passes()
    conversions = [(0.0, 1.0)] * 3
    with seen:
        run = execute(program, x, Affine(conversions), Recorded())
    torch.testing.assert_close(run.x, reference(program, conversions, x))
    network = ["add"]  # x^2 / 4 + t
    assert [name for name, _ in seen.seen] == ["copy_", *network, *passes, "add_"]


def test_steps_where_alpha_is_one_are_interpolations() -> None:
    """Between state and data: a pass a step, and exactly the data where the noise ends."""
    sde, grid, passes = sg.EDMSDE(), sg.Grid([9.0, 3.0, 0.5, 0.0]), Passes()
    x = torch.linspace(-9, 9, 6, dtype=F64).reshape(3, 2)
    program, model = sg.DDIM().compile(sde, grid), bind(sg.from_denoiser(lambda x, t: x.cos(), sde), sde, grid.times)
    model.plan(program)
    execute(program, x, model, stream(3))  # the first call of a network is looked at
    with passes:
        run = execute(program, x, model, stream(3))
    of_times, *of_states = (name for name, _ in passes.seen)
    assert (of_times, of_states) == ("clone", ["copy_", "lerp", "lerp", "zero_", "add_"])
    for s, t in ((9, 3), (3, 0.5), (0.5, 0)):
        x = t / s * x + (1 - t / s) * x.cos()
    torch.testing.assert_close(run.x, x, rtol=1e-15, atol=1e-15)


def layout(plan: Plan) -> list[tuple[int, int | None, list[int], int, bool]]:
    """Of each stage its register, its base's, other states', its number of rows, and whether it takes an output."""
    return [
        (ins.target, ins.base, [register for register, _ in ins.states], len(ins.slots), ins.output is not None)
        for ins in plan.instructions
    ]


def test_where_states_live() -> None:
    """A predicted state is written out where the next stage has all it is made of, a state that is not needed again
    gives its register to the next one, and an evaluation that the state between can tell takes no memory."""
    grid, initial = sg.Grid([2.0, 1.0]), (0, None, [], 0, False)
    mixed = [(0.5, 1.0)] * 9
    heun, rk3, dpm3, seeds2 = (
        lower(ALL[name].compile(sg.EDMSDE(), grid), mixed) for name in ("heun", "rk3", "dpm3", "seeds2")
    )
    assert layout(heun) == [initial, (1, 0, [], 0, True), (1, 1, [0], 0, True)]
    assert heun.n_slots == 0
    assert layout(rk3) == [initial, (1, 0, [], 1, False), (1, 0, [], 2, False), (0, 0, [], 2, True)]
    # The second inner state has an output of its own, which went with the stage before.
    assert layout(dpm3) == [initial, (1, 0, [], 1, False), (1, 0, [], 1, True), (1, 1, [0], 1, True)]
    assert layout(seeds2) == [initial, (1, 0, [], 1, False), (1, 1, [0], 2, True)]  # a noise is drawn once
    ddim = lower(sg.DDIM().compile(sg.EDMSDE(), sg.Grid([4.0, 2.0, 1.0])), mixed)
    assert layout(ddim) == [initial, (0, 0, [], 0, True), (0, 0, [], 0, True)]
    stages = [Stage(3.0, node=True), Stage(2.0, ((0, 2.0),)), Stage(1.0, ((0, 1.0), (1, 1.0)))]
    chain = lower(Program("chain", "data", (*stages, Stage(0.0, ((0, 1.0), (2, 1.0)), node=True))), mixed)
    assert layout(chain) == [initial, (1, 0, [], 0, False), (1, 1, [0], 0, False), (1, 1, [0], 0, False)]


# Heun's step with a noise, on x_1 = x_0 + 2 e_0: x_2 = x_0 + e_0 + e_1 + 3 z_0.
THREE = (
    Stage(2.0, evaluate=True, node=True),
    Stage(1.0, ((0, 1.0),), ((0, 2.0),), evaluate=True),
    Stage(0.0, ((0, 1.0),), ((0, 1.0), (1, 1.0)), ((0, 3.0),), node=True),
)
E_IS = [(0.5, 4.0), (0.25, 2.0), (0.0, 1.0)]  # e = x / 2 + 4 r, then x / 4 + 2 r


def test_first_pass_recovers_evaluations() -> None:
    """e_0 = (x_1 - x_0) / 2, so that x_2 = x_0 / 2 + x_1 / 2 + e_1 + 3 z_0."""
    first, second, third = recover_evaluations(THREE)
    assert (first, second) == THREE[:2]
    assert third == dataclasses.replace(THREE[2], states=((0, 0.5), (1, 0.5)), evals=((1, 1.0),))


def test_second_pass_folds_conversions() -> None:
    """Evaluations that are used at once are states and outputs; one that is used later is stored."""
    _, second, third = fold_conversions(recover_evaluations(THREE), E_IS)
    assert (second.states, second.evals, second.output) == ({0: 1 + 2 * 0.5}, {}, 2 * 4.0)
    assert (third.states, third.evals, third.output) == ({0: 0.5, 1: 0.5 + 0.25}, {}, 2.0)
    assert third.noises == ((0, 3.0),)

    first, second, third = fold_conversions(THREE, E_IS)
    assert [row.stored for row in (first, second, third)] == [True, False, False]
    assert (second.states, second.evals, second.output) == ({0: 1.0}, {0: 2.0}, None)
    # x_1 / 4 is written out: x_0 / 4 + e_0 / 2, so that x_1 is not read again.
    assert (third.states, third.evals, third.output) == ({0: 1.25}, {0: 1.5}, 2.0)


def test_third_pass_allocates_memory() -> None:
    """Two registers with e_0 recovered; a slot with it stored. Memory is free again after the last use."""
    recovered = allocate(fold_conversions(recover_evaluations(THREE), E_IS))
    assert (recovered.n_slots, recovered.n_registers) == (0, 2)
    assert [place.base for place in recovered.places] == [None, 0, 1]
    assert [place.target for place in recovered.places] == [0, 1, 1]
    assert recovered.places[2].others == (0,)
    assert [dict(place.alive) for place in recovered.places] == [{}, {("state", 0): 0}, {}]
    assert [dict(place.drawn) for place in recovered.places] == [{}, {}, {0: None}]

    stored = allocate(fold_conversions(THREE, E_IS))
    assert (stored.n_slots, stored.n_registers) == (1, 2)
    assert [place.store for place in stored.places] == [0, None, None]
    assert dict(stored.places[1].alive) == {("eval", 0): 0, ("state", 0): 0}
    assert stored.places[2].base == 0  # dropped here, so that its register serves again


def test_fourth_pass_emits_instructions() -> None:
    """Coefficients with places; a stored evaluation is r + x / 8, four times."""
    rows = fold_conversions(THREE, E_IS)
    first, second, third = emit(rows, allocate(rows), E_IS)
    assert (first.base, first.store, first.mix) == (None, 0, (0.125, 1.0))
    assert (second.base, second.beta, second.slots, second.output) == (0, 1.0, ((0, 4 * 2.0),), None)
    assert (third.base, third.beta, third.slots, third.output) == (0, 1.25, ((0, 4 * 1.5),), 2.0)
    assert third.noises == ((3.0, None),)
    assert [ins.kind for ins in (first, second, third)] == ["sum", "sum", "factor"]

    plan = lower(Program("heun", "data", THREE), E_IS)
    assert plan.instructions == emit(*_passes(recover_evaluations(THREE)))
    assert [need.kind for need in plan.needed[1]] == ["state"]


def _passes(stages: Sequence[Stage]) -> tuple[Any, Any, Any]:
    rows = fold_conversions(stages, E_IS)
    return rows, allocate(rows), E_IS


@pytest.mark.parametrize(
    ("b", "c", "node", "noises", "rows"),
    [(2.0, -2.0, False, (), 0), (2.0, 2.5, False, (), 1), (2.0, 1.0, True, (), 1), (2.0, 1.0, False, ((0, 1.0),), 1)],
)
def test_an_evaluation_is_had_from_the_state_between(b: float, c: float, node: bool, noises: Terms, rows: int) -> None:
    """Unless rounding would grow, or the state is not made of it alone: a hook may change a node."""
    stages = (
        Stage(2.0, evaluate=True, node=True),
        Stage(1.0, ((0, 3.0),), ((0, b),), noises, evaluate=True, node=node),
        Stage(0.0, ((0, 1.0), (1, 0.5)), ((0, c), (1, 1.0)), node=True),
    )
    program, conversions = Program("p", "data", stages), [(0.5, 2.0)] * 3
    assert lower(program, conversions).n_slots == rows
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2)
    run = execute(program, x, Affine(conversions), Recorded())
    torch.testing.assert_close(run.x, reference(program, conversions, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grad", [False, True])
def test_a_node_is_a_state_whatever_it_is_made_of(grad: bool) -> None:
    """What a hook has done to it is there in the next stage, and in its evaluation."""
    stages = (
        Stage(2.0, evaluate=True, node=True),
        Stage(1.0, ((0, 1.0),), ((0, 1.0),), evaluate=True, node=True),
        Stage(0.0, ((0, 1.0),), ((0, 1.0), (1, 1.0)), node=True),
    )
    model = Affine([(0.5, 1.0)] * 3)

    def moved(x: Tensor, i: int) -> Tensor:
        return x + 4 if i == 1 else x

    run = execute(Program("p", "data", stages), torch.zeros(1, 1), model, Recorded(), hooks=[moved], grad=grad)
    # e0 = r(0) = 2; x1 = 2, moved to 6; e1 = 6 / 2 + 6^2 / 4 + 1
    assert float(run.x) == 0 + 2 + 13


@pytest.mark.parametrize("grad", [False, True, None])
def test_memory_is_used_again_unless_the_graph_is_kept(grad: bool | None) -> None:
    """A chain of states is one tensor; with its graph each state is its own."""
    sde, grid = LINEAR["vp"], sg.Grid([0.9, 0.7, 0.4, 0.2])
    model = bind(sg.from_noise(lambda x, t: x.sigmoid(), sde), sde, grid.times)
    states: list[Tensor] = []
    options = {} if grad is None else {"grad": grad}
    execute(sg.DDIM().compile(sde, grid), torch.ones(2, 3, dtype=F64), model, stream(2),
            on_node=lambda i, x: states.append(x), **options)  # type: ignore[arg-type, return-value] # fmt: skip
    assert len({x.data_ptr() for x in states}) == (4 if grad else 1)


def test_what_is_recorded_lives_in_the_memory_of_plain_runs() -> None:
    """Buffers, where nothing else is asked for."""
    x = torch.ones(2, 3)
    plan = lower(sg.DDIM().compile(LINEAR["vp"], sg.Grid([0.9, 0.7])), [(0.0, 1.0)] * 2)
    assert isinstance(allocate_memory(x, plan), Buffers)
    assert isinstance(allocate_memory(x, plan, grad=True), GraphMemory)


@given(case=programs())
def test_programs_survive_json(case: tuple[Program, list[tuple[float, float]]]) -> None:
    """A program is a value: JSON gives it back to the last bit."""
    program, _ = case
    assert Program.from_json(program.to_json()) == program
    assert hash(Program.from_json(program.to_json())) == hash(program)


@pytest.mark.parametrize("name", ALL)
def test_compiled_programs_are_values(name: str) -> None:
    """Compiling twice gives equal programs, that print, survive JSON and count their calls."""
    sde = LINEAR["vp"]
    grid = sg.grids.LogSNR()(sde, 6)
    program = ALL[name].compile(sde, grid)
    assert program == dataclasses.replace(ALL[name]).compile(sde, grid) if name != "pc" else True
    assert Program.from_json(program.to_json()) == program
    assert program.times == grid.times
    assert f"{program.nfe} evaluations" in str(program)
    assert all(sde.eps <= stage.t <= sde.T for stage in program.stages)


@pytest.mark.parametrize("name", ["dpm++2m", "rk4", "heun", "ddim"])
@pytest.mark.parametrize("prediction", ["data", "noise", "score", "v", "flow"])
def test_memory_does_not_grow_with_steps(name: str, prediction: str) -> None:
    """State, history and one scratch, however many steps."""
    sde = LINEAR["vp"]

    def rows(steps: int) -> int:
        program = ALL[name].compile(sde, sg.grids.Uniform()(sde, steps))
        plan = bind(sg.Score(lambda x, t: x, sde, prediction), sde, program.times).plan(program)
        return plan.n_slots + plan.n_registers

    assert rows(5) == rows(50) <= 6


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # the estimates are no data
def test_a_network_may_return_its_input() -> None:
    """An output that shares memory with the state is not overwritten halfway."""
    sde = LINEAR["ve"]
    x = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    same = sg.sample(sg.from_noise(lambda x, t: x, sde), sde, x_T=x, solver="ddim", steps=7)
    copied = sg.sample(sg.from_noise(lambda x, t: x.clone(), sde), sde, x_T=x, solver="ddim", steps=7)
    assert torch.equal(same.x, copied.x)


def test_programs_that_make_no_sense_are_refused() -> None:
    """References to what is not evaluated, no stages, an end between nodes."""
    first = Stage(1.0, evaluate=True, node=True)
    with pytest.raises(ValueError, match="not evaluated"):
        Program("p", "data", (Stage(1.0, node=True), Stage(0.5, evals=((0, 1.0),), node=True)))
    with pytest.raises(ValueError, match="initial state"):
        Program("p", "data", ())
    with pytest.raises(ValueError, match="ends at a node"):
        Program("p", "data", (first, Stage(0.5)))


@pytest.mark.parametrize(
    "stage, text",
    [
        (Stage(0.5, states=((0, math.nan),)), "nan on state 0 in stage 1"),
        (Stage(0.5, states=((1, 1.0),)), "state 1"),
        (Stage(0.5, evals=((3, 1.0),)), "eval 3"),
    ],
    ids=case_id,
)
def test_coefficients_that_make_no_sense_are_refused(stage: Stage, text: str) -> None:
    """Not finite, or of what is not there, by name."""
    first = Stage(1.0, evaluate=True, node=True)

    with pytest.raises(ValueError, match=text):
        Program("p", "data", (first, dataclasses.replace(stage, node=True)))


@pytest.mark.parametrize("text", ["{}", "[]", '{"stages": [{}]}', "nonsense"])
def test_what_is_no_program_s_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Program.from_json(text)


def test_forms_compute_as_linear_forms() -> None:
    """Sums, multiples and differences of symbols."""
    x, e = Form({("states", 0): 1.0}), Form({("evals", 0): 1.0})
    assert (3 * x - (e + x) / 2 - -x).terms == {("states", 0): 3.5, ("evals", 0): -0.5}
    assert (x - x).of("states") == ()


@pytest.mark.parametrize("process", ["vp", "sub-vp", "ve", "edm", "cosine", "flow"])
def test_what_should_coincide_coincides(process: str) -> None:
    """DDIM = DPM-Solver++ of order 1; noise-free variants equal their deterministic twins; DDIM(1) = ancestral."""
    sde = LINEAR[process]
    x, score = sde.prior_sample((4, 2), seed=0, dtype=F64), MIXTURE.score(sde)

    def run(solver: sg.Solver) -> Tensor:
        return sg.sample(score, sde, x_T=x, solver=solver, steps=12, seed=3, final="none", grid="log-snr").x

    def same(a: sg.Solver, b: sg.Solver) -> None:
        torch.testing.assert_close(run(a), run(b), rtol=1e-10, atol=1e-10)

    same(sg.DDIM(), sg.DPMSolverPP(order=1))
    same(sg.EulerMaruyama(eta=0.0), sg.RungeKutta(sg.tableaus.EULER))
    same(sg.DDIM(eta=1.0), sg.Ancestral())
    same(sg.Heun(s_churn=0.0), sg.Heun(s_churn=5.0, s_tmin=1e9))
    if process == "edm":  # where time is the noise level
        same(sg.Heun(), sg.RungeKutta(sg.tableaus.HEUN2))
        same(sg.DDIM(), sg.RungeKutta(sg.tableaus.EULER))


def test_tableaus_are_checked() -> None:
    """Order from the order conditions; wrong tableaus are errors with the offending numbers."""
    orders = [
        sg.tableaus.EULER.order,
        sg.tableaus.MIDPOINT.order,
        sg.tableaus.HEUN2.order,
        sg.tableaus.RALSTON.order,
        sg.tableaus.RK3.order,
        sg.tableaus.RK4.order,
    ]
    assert orders == [1, 2, 2, 2, 3, 4]
    assert sg.Tableau([[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8]).order == 4
    assert sg.Tableau([[], [0.4]], [0.5, 0.5]).order == 1
    with pytest.raises(ValueError, match=r"sum to 1, got 0\.9"):
        sg.Tableau([[]], [0.9])
    with pytest.raises(ValueError, match=r"\[0, 2\]"):
        sg.Tableau([[], [0.5, 0.5]], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"1\.5"):
        sg.Tableau([[], [1.5]], [2 / 3, 1 / 3])


def test_gaussian_flow_is_reached() -> None:
    """A user's own tableau integrates the exact flow as its order says."""
    sde = LINEAR["vp"]
    kutta38 = sg.RungeKutta(sg.Tableau([[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8], "3/8"))
    x = sde.prior_sample((4, 2), seed=0, dtype=F64)
    res = sg.sample(GAUSSIAN.score(sde), sde, x_T=x, solver=kutta38, steps=200, t_end=0.1, final="none", grid="log-snr")
    torch.testing.assert_close(res.x, GAUSSIAN.flow(x, sde, 1.0, 0.1), rtol=1e-7, atol=1e-7)
    assert res.nfe == 800
