"""The one loop: runs any `Program` on any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sgm_sde.engine.matrix import Matrix, times
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Coefficient, Program, Stage, Terms


class Evaluator(Protocol):
    """A network bound to one run: whatever the executor evaluates."""

    def plan(self, program: Program) -> Plan:
        """The program made ready for what the network predicts."""

    def times(self, ts: Sequence[float], x: Tensor) -> Sequence[Tensor]:
        """Each of the times as a tensor (B,) on the state's device, before the loop."""

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """Output of the network at state x (B, *) and time t (B,)."""


class Hook(Protocol):
    """State-dependent callback at grid nodes: corrector, projection."""

    def __call__(self, x: Tensor, i: int) -> Tensor:
        """The state to continue with from node i."""


@dataclass(frozen=True)
class Instruction:
    """A stage made ready to run: state = beta * base + sum of the terms. States live in registers.

    Attributes:
        target: register of the new state; that of the base where the base is not needed again.
        base: register of the state it builds on, or None.
        beta: the base's coefficient.
        states: pairs (register, coefficient) besides the base.
        output: coefficient of the network output just before, when nothing else needs it.
        slots: pairs (slot of the history, coefficient).
        noises: for each noise, its coefficient and the slot it is kept in for later stages, if any needs it.
        store: slot of the history that this stage's evaluation goes to, or None.
        mix: (c_x, c_r) of what is stored: c_x x + c_r output.
        kind: how the sum begins: `"product"` of the history with weights, `"blend"` of the base with the only term,
            an output or a noise, `"factor"` of the base, or `"sum"`, the base as it is.
    """

    target: int
    base: int | None
    beta: Coefficient
    states: Terms
    output: Coefficient | None
    slots: Terms
    noises: tuple[tuple[Coefficient, int | None], ...]
    store: int | None
    mix: tuple[Coefficient, Coefficient]
    kind: str = "sum"


@dataclass(frozen=True)
class Plan:
    """A program made ready to run.

    Attributes:
        program: the program.
        instructions: one for each stage.
        n_slots: slots of the history.
        n_registers: states alive at the same time.
        blocks: of the state, on which matrices among the coefficients act; 1 where there are none.
        weights: the coefficients of all slots (stages, n_slots), float64 on the host; for numbers only.
        needed: for the stage of each node, what later stages need besides its state, and where it lies.
    """

    program: Program
    instructions: tuple[Instruction, ...]
    n_slots: int
    n_registers: int
    blocks: int
    weights: Tensor = field(repr=False, compare=False)
    needed: Mapping[int, tuple[Needed, ...]] = field(repr=False, compare=False)

    @property
    def node_stages(self) -> tuple[int, ...]:
        """The stage of each node."""
        return tuple(self.needed)


@dataclass(frozen=True)
class Needed:
    """A value of an earlier stage that a later one needs.

    Attributes:
        kind: "eval", "noise" or "state".
        number: of the stage that evaluates or is the state; of the noise.
        place: slot of the history, or register of the state.
        scale: what the row is multiplied by to give the evaluation.
    """

    kind: str
    number: int
    place: int
    scale: Coefficient = 1.0


@dataclass(frozen=True, eq=False)
class Position:
    """Position of a run: a node whose hooks have been called, before its state is evaluated.

    Attributes:
        node: its number in the grid.
        x: the state there (B, *).
        history: what later stages need besides, by kind and number: a scale, and the value divided by it.
    """

    node: int
    x: Tensor
    history: Mapping[tuple[str, int], tuple[Coefficient, Tensor]] = field(default_factory=dict, repr=False)


class _Slots:
    """Numbered places, the lowest free one handed out first."""

    def __init__(self) -> None:
        self.of: dict[Any, int] = {}
        self.n = 0
        self._free: list[int] = []

    def claim(self, key: Any) -> int:
        if not self._free:
            self._free.append(self.n)
            self.n += 1
        self.of[key] = self._free.pop()
        return self.of[key]

    def release(self, key: Any) -> None:
        self._free.append(self.of.pop(key))


def lower(program: Program, conversions: Sequence[tuple[Coefficient, Coefficient]]) -> Plan:
    """Turn a program into a plan.

    The conversion from the network's output to the program's prediction, c_x x + c_r output with a pair (c_x, c_r)
    a stage, is folded into the coefficients, in double precision. An evaluation that only the next stage uses is
    folded away: e = c_x x + c_r r becomes more of x and some of r. One that is used later goes to a row of the
    history, as x + (c_r / c_x) r or r + (c_x / c_r) x, the other factor going to the coefficients; so storing is
    one pass. Where coefficients are matrices it goes there as it is.
    """
    stages = _recover_evaluations(program.stages)
    blocks = max([program.blocks, *(len(c.rows) for pair in conversions for c in pair if isinstance(c, Matrix))])
    uses: Counter[tuple[str, int]] = Counter()
    last: dict[tuple[str, int], int] = {}
    for k, stage in enumerate(stages):
        for key in [("eval", j) for j, _ in stage.evals] + [("noise", m) for m, _ in stage.noises]:
            uses[key] += 1
            last[key] = k
    folded = {j for kind, j in uses if kind == "eval" and uses[kind, j] == 1 and last[kind, j] == j + 1}

    on_states: list[dict[int, Coefficient]] = []  # coefficients on states, folded evaluations included
    on_evals: list[dict[int, Coefficient]] = []  # and on evaluations that are not folded
    for k, stage in enumerate(stages):
        total, evals = dict(stage.states), {j: b for j, b in stage.evals if j not in folded}
        for j, b in stage.evals:
            if j not in folded or not (c := b * conversions[j][0]):
                continue
            # A state made of nothing but what this stage needs anyway is written out, and not needed itself.
            made_of = on_states[j].keys() <= total.keys() and on_evals[j].keys() <= evals.keys()
            if made_of and not (stages[j].node or stages[j].noises) and len(on_evals[j]) == len(stages[j].evals):
                for mine, parts in ((total, on_states[j]), (evals, on_evals[j])):
                    for i, part in parts.items():
                        mine[i] += c * part
            else:
                total[j] = total.get(j, 0.0) + c
        on_states.append(total)
        on_evals.append(evals)
        last[("state", k)] = k
        for j in total:
            last[("state", j)] = k

    rows, registers = _Slots(), _Slots()
    instructions: list[Instruction] = []
    scale: dict[int, Coefficient] = {}
    needed: dict[int, tuple[Needed, ...]] = {}
    for k, stage in enumerate(stages):
        output = next((b * conversions[j][1] for j, b in stage.evals if j in folded), None)
        terms = [(rows.of["eval", j], b * scale[j]) for j, b in on_evals[k].items()]
        noises: list[tuple[Coefficient, int | None]] = []
        for m, c in stage.noises:
            if ("noise", m) in rows.of:
                terms.append((rows.of["noise", m], c))
            else:
                noises.append((c, rows.claim(("noise", m)) if uses["noise", m] > 1 else None))
        # Build on a state that is dropped here, if there is one, so that its memory serves again.
        states = sorted(on_states[k].items(), key=lambda jc: last["state", jc[0]] == k)
        base, beta = states.pop() if states else (None, 0.0)
        others = tuple((registers.of[j], c) for j, c in states)
        source = None if base is None else registers.of[base]
        if base is not None and last["state", base] == k:
            registers.of[k] = registers.of.pop(base)
        else:
            registers.claim(k)
        for key in [key for key in rows.of if last[key] == k]:
            rows.release(key)
        if stage.node:
            history = [
                Needed(kind, j, place, scale[j] if kind == "eval" else 1.0) for (kind, j), place in rows.of.items()
            ]
            behind = [Needed("state", j, place) for j, place in registers.of.items() if k != j and last["state", j] > k]
            needed[k] = (*history, *behind)
        store: int | None = None
        mix: tuple[Coefficient, Coefficient] = (0.0, 1.0)
        if uses["eval", k] and k not in folded:
            store = rows.claim(("eval", k))
            scale[k], mix = _scaled(*conversions[k])
        target = registers.of[k]
        for j in [j for j in registers.of if last["state", j] == k]:
            registers.release(j)
        ins = Instruction(target, source, beta, others, output, tuple(terms), tuple(noises), store, mix)
        instructions.append(replace(ins, kind=_kind(ins)))
    weights = torch.zeros((len(stages), rows.n), dtype=torch.float64, device="cpu")
    if blocks == 1:
        for k, ins in enumerate(instructions):
            for row, c in ins.slots:
                weights[k, row] = c
    return Plan(program, tuple(instructions), rows.n, registers.n, blocks, weights, needed)


def _recover_evaluations(stages: Sequence[Stage]) -> list[Stage]:
    """Elimination of stored evaluations that follow from the intermediate state: e = (x' - A x)/b.

    For x' = A x + b e, and e needed once more by the stage after, e = (x' - A x) / b: so it need not be stored, as in
    Heun's method. Not where rounding would grow, |b| being less than the coefficient to come.
    """
    users: dict[int, list[int]] = {}
    for k, stage in enumerate(stages):
        for j, _ in stage.evals:
            users.setdefault(j, []).append(k)
    rewritten = list(stages)
    for j in [j for j, ks in users.items() if ks == [j + 1, j + 2]]:
        between, after = rewritten[j + 1], rewritten[j + 2]
        evals, states = dict(after.evals), dict(after.states)
        b, c = dict(between.evals)[j], evals.pop(j)
        plain = not (isinstance(b, Matrix) or isinstance(c, Matrix) or between.node or between.noises)
        if plain and len(between.evals) == 1 and abs(c) <= abs(b):
            for i, a in between.states:
                states[i] = states.get(i, 0.0) - c / b * a
            states[j + 1] = states.get(j + 1, 0.0) + c / b
            rewritten[j + 2] = replace(after, states=tuple(states.items()), evals=tuple(evals.items()))
    return rewritten


def _kind(ins: Instruction) -> str:
    """Initial operation of a stage's sum, for the fewest passes over memory."""
    if len(ins.slots) > 1:
        return "product"
    beta, terms = ins.beta, [c for c, _ in ins.noises] + ([] if ins.output is None else [ins.output])
    if ins.base is None or beta == 1 or any(isinstance(c, Matrix) for c in (beta, *terms)):
        return "sum"
    # Where alpha is 1 and data are predicted, steps are (1 - c) x + c D; where it is not, the two are far from it.
    alone = len(terms) == 1 and not (ins.slots or ins.states)
    return "blend" if alone and abs(beta + terms[0] - 1) <= 1e-14 else "factor"


def _scaled(c_x: Coefficient, c_r: Coefficient) -> tuple[Coefficient, tuple[Coefficient, Coefficient]]:
    """A scale and (c_x, c_r) divided by it, so that one of them is 1; matrices stay as they are."""
    if isinstance(c_x, Matrix) or isinstance(c_r, Matrix):
        return 1.0, (c_x, c_r)
    scale = c_x if abs(c_x) > abs(c_r) else c_r
    return scale, (c_x / scale, c_r / scale)


def _add(base: Tensor, value: Tensor, c: Any, state: Tensor) -> Tensor:
    return base.add_(value, alpha=c) if base is state else torch.add(base, value, alpha=c, out=state)


class _Buffers:
    """Arithmetic in preallocated memory: a stage is one matrix-vector product wherever it can be."""

    def __init__(self, x: Tensor, plan: Plan) -> None:
        # Zeros, not empty: rows out of use enter the product with coefficient 0, and 0 * NaN is NaN.
        buffer = torch.zeros((plan.n_slots, x.numel()), dtype=x.dtype, device=x.device)
        self.matrix, self.slots = buffer.t(), [row.view(x.shape) for row in buffer]
        self.shaped = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(plan.n_registers)]
        self.flat = [register.view(-1) for register in self.shaped]
        self.ends = [(flat.data_ptr(), flat.data_ptr() + flat.nbytes) for flat in self.flat]
        # Weights and factors as tensors: from a number torch would make one at each call.
        stages = list(enumerate(plan.instructions))
        wide, scaled = ([k for k, ins in stages if ins.kind == kind] for kind in ("product", "factor"))
        betas = torch.tensor([plan.instructions[k].beta for k in scaled], dtype=torch.float64, device="cpu")
        self.weights = dict(zip(wide, plan.weights[wide].to(device=x.device, dtype=x.dtype).unbind(0), strict=True))
        self.factors = dict(zip(scaled, betas.to(device=x.device, dtype=x.dtype).unbind(0), strict=True))

    def combine(self, k: int, ins: Instruction, terms: list[tuple[Tensor, Coefficient]]) -> None:
        state, source, kind = self.shaped[ins.target], ins.base, ins.kind
        if source is None:
            state.zero_()
            source = ins.target
        base = self.shaped[source]
        if kind == "product":
            torch.addmv(self.flat[source], self.matrix, self.weights[k], beta=ins.beta, out=self.flat[ins.target])
            base = state
        elif kind == "blend":
            base = torch.lerp(base, *terms.pop(), out=state)
        else:
            if kind == "factor":
                base = torch.mul(base, self.factors[k], out=state)
            for row, c in ins.slots:
                base = _add(base, self.slots[row], c, state)
        for register, c in ins.states:
            base = _add(base, self.shaped[register], c, state)
        for value, c in terms:
            base = _add(base, value, c, state)
        self.replace(ins.target, base)

    def replace(self, register: int, value: Tensor) -> None:
        if value is not self.shaped[register]:
            self.shaped[register].copy_(value)

    def store(self, row: int, state: Tensor, output: Tensor, mix: tuple[Coefficient, Coefficient]) -> None:
        c_x, c_r = mix
        if c_x == 0:
            self.slots[row].copy_(output)
        elif c_r == 1:
            torch.add(output, state, alpha=c_x, out=self.slots[row])
        else:
            torch.add(state, output, alpha=c_r, out=self.slots[row])

    def load(self, row: int, value: Tensor) -> None:
        self.slots[row].copy_(value)

    def holds(self, register: int, value: Tensor) -> bool:
        """True if the value lies in a register's memory, which is about to be overwritten."""
        start, end = self.ends[register]
        return start <= value.data_ptr() < end


class _Graph:
    """The same arithmetic without reuse of memory, for backpropagation through the run."""

    def __init__(self, x: Tensor, plan: Plan) -> None:
        self.slots: list[Tensor] = [torch.empty(0)] * plan.n_slots
        self.shaped = [x] * plan.n_registers

    def times(self, c: Coefficient, value: Tensor) -> Tensor:
        """A coefficient times a state."""
        return c * value

    def combine(self, k: int, ins: Instruction, terms: list[tuple[Tensor, Coefficient]]) -> None:
        state = 0.0 * self.shaped[ins.target] if ins.base is None else self.times(ins.beta, self.shaped[ins.base])
        kept = [(self.slots[row], c) for row, c in ins.slots] + [(self.shaped[at], c) for at, c in ins.states]
        for value, c in kept + terms:
            state = state + self.times(c, value)
        self.replace(ins.target, state)

    def replace(self, register: int, value: Tensor) -> None:
        self.shaped[register] = value

    def store(self, row: int, state: Tensor, output: Tensor, mix: tuple[Coefficient, Coefficient]) -> None:
        self.slots[row] = self.times(mix[0], state) + self.times(mix[1], output)

    def load(self, row: int, value: Tensor) -> None:
        self.slots[row] = value

    def holds(self, register: int, value: Tensor) -> bool:
        """Never: nothing is overwritten."""
        return False


class _Blocks(_Graph):
    """The same with matrices that act on the blocks of the state: sums of scalar multiples of its blocks.

    No matrix products of torch: under autocast, or with TF32, those would round the state.
    """

    def __init__(self, x: Tensor, plan: Plan) -> None:
        if x.ndim < 2 or x.shape[1] != plan.blocks:
            raise ValueError(
                f"the process has a state of {plan.blocks} blocks, (B, {plan.blocks}, *): got {tuple(x.shape)}"
            )
        super().__init__(x, plan)

    def times(self, c: Coefficient, value: Tensor) -> Tensor:
        return times(c, value)


def _memory(x: Tensor, plan: Plan, grad: bool = False) -> _Buffers | _Graph:
    if plan.blocks > 1:
        return _Blocks(x, plan)
    return _Graph(x, plan) if grad else _Buffers(x, plan)


@dataclass
class Run:
    """Result of a run.

    Attributes:
        x: the last state (B, *).
        nodes: number of nodes reached, the first one included.
        position: where it was stopped, None at the end.
    """

    x: Tensor
    nodes: int = 0
    position: Position | None = None


Stages = Generator[tuple[Tensor, Tensor], Tensor, Run]


def execute(
    program: Program,
    x: Tensor,
    model: Evaluator,
    noise: NoiseSource,
    *,
    hooks: Sequence[Hook] = (),
    on_node: Callable[[int, Tensor], bool] | None = None,
    on_output: Callable[[Tensor, Tensor, float], None] | None = None,
    grad: bool = False,
    start: Position | None = None,
) -> Run:
    """Run a program from the initial state x (B, *), or on from where another run of it was stopped.

    No tensor decides a branch here, and nothing is read back from the device.

    Args:
        program: the table.
        x: initial state, at least float32; not changed.
        model: what to evaluate.
        noise: where noise comes from.
        hooks: called in order at each node with the state there, before it is evaluated.
        on_node: called with the node's number and its state (neither keep nor change it); True stops the run.
        on_output: called with (x, output, t) at the first evaluation after each node.
        grad: keep the graph for backpropagation, and with it every intermediate value.
        start: where to go on from; its history must have what `missing` asks for.

    Returns:
        the last state, how many nodes were reached and, if `on_node` stopped the run, where it stands.
    """
    plan = model.plan(program)
    memory = _memory(x, plan, grad)
    times = model.times([stage.t for stage in program.stages], x)
    return _loop(plan, x, memory, times, model, noise, hooks, on_node, on_output, start)


def missing(plan: Plan, start: Position) -> list[Needed]:
    """Evaluations that a resumed run needs and its history does not have."""
    return [need for need in plan.needed[plan.node_stages[start.node]] if (need.kind, need.number) not in start.history]


def _kept(plan: Plan, k: int, memory: _Buffers | _Graph) -> dict[tuple[str, int], tuple[Coefficient, Tensor]]:
    """Copies of what stages after the k-th need besides its state."""
    return {
        (need.kind, need.number): (
            need.scale,
            (memory.shaped if need.kind == "state" else memory.slots)[need.place].clone(),
        )
        for need in plan.needed[k]
    }


def _put_back(plan: Plan, k: int, memory: _Buffers | _Graph, start: Position) -> None:
    """Fill a memory with a position's state and history, in this plan's places and scales."""
    memory.replace(plan.instructions[k].target, start.x)
    for need in plan.needed[k]:
        scale, value = start.history[need.kind, need.number]
        if need.kind == "state":
            memory.replace(need.place, value)
        else:
            memory.load(need.place, value if scale == need.scale else scale / need.scale * value)


def _loop(
    plan: Plan,
    x: Tensor,
    memory: _Buffers | _Graph,
    times: Sequence[Tensor],
    model: Evaluator,
    noise: NoiseSource,
    hooks: Sequence[Hook] = (),
    on_node: Callable[[int, Tensor], bool] | None = None,
    on_output: Callable[[Tensor, Tensor, float], None] | None = None,
    start: Position | None = None,
) -> Run:
    loop = _stages(plan, x, memory, times, noise, hooks, on_node, on_output, start)
    send, evaluate = loop.send, model.evaluate
    output: Any = None
    while True:
        try:
            state, t = send(output)
        except StopIteration as end:
            run: Run = end.value
            return run
        except RuntimeError as error:
            if isinstance(error.__cause__, StopIteration):  # which a generator does not let a hook raise
                raise error.__cause__ from None
            raise
        output = evaluate(state, t)  # outside: a StopIteration of the network's is no end of the run


def iterate_stages(
    program: Program,
    x: Tensor,
    model: Evaluator,
    noise: NoiseSource,
    memory: _Buffers | _Graph | None = None,
    at: int = 0,
) -> Stages:
    """The run of a program from x (B, *), turned inside out: yields a state and its time, and is sent the output there.

    For those who call the network themselves; returns what `execute` returns. States are memory of the run: what is
    written to one before its output is sent is the state that the run continues with. With the `memory` of a run that
    waits for the output at stage `at`, it goes on there.
    """
    plan = model.plan(program)
    times = model.times([stage.t for stage in program.stages], x)
    return _stages(plan, x, _memory(x, plan) if memory is None else memory, times, noise, at=at)


def _stages(
    plan: Plan,
    x: Tensor,
    memory: _Buffers | _Graph,
    times: Sequence[Tensor],
    noise: NoiseSource,
    hooks: Sequence[Hook] = (),
    on_node: Callable[[int, Tensor], bool] | None = None,
    on_output: Callable[[Tensor, Tensor, float], None] | None = None,
    start: Position | None = None,
    at: int = 0,
) -> Stages:
    program, shape, dtype, device = plan.program, tuple(x.shape), x.dtype, x.device
    output: Tensor | None = None
    run, first = Run(x, sum(stage.node for stage in program.stages[:at])), at
    if start is not None:
        run.nodes, first = start.node, plan.node_stages[start.node]
        _put_back(plan, first, memory, start)
    elif not at:
        memory.replace(plan.instructions[0].target, x)
    reported = run.nodes
    ahead = zip(program.stages[first:], plan.instructions[first:], strict=True)
    for k, (stage, ins) in enumerate(ahead, first):
        if k > first:
            terms: list[tuple[Tensor, Coefficient]] = []
            if ins.output is not None and output is not None:
                terms.append((output, ins.output))
            for c, row in ins.noises:
                z = noise.normal(shape, dtype, device)
                terms.append((z, c))
                if row is not None:
                    memory.store(row, z, z, (0.0, 1.0))
            memory.combine(k, ins, terms)
        state = memory.shaped[ins.target]
        if stage.node:
            going_on = start is not None and k == first  # hooks and callback have seen this state
            if not going_on:
                for hook in hooks:
                    memory.replace(ins.target, hook(state, run.nodes))
                    state = memory.shaped[ins.target]
            run.nodes += 1
            run.x = state
            if not going_on and on_node is not None and on_node(run.nodes - 1, state):
                run.position = Position(run.nodes - 1, state, _kept(plan, k, memory))
                break
        if stage.evaluate:
            terms, output = [], None  # free the last output before the network makes another
            output = yield state, times[k]
            if on_output is not None and run.nodes > reported:
                on_output(state, output, stage.t)
                reported = run.nodes
            if output.dtype is not dtype:
                output = output.to(dtype)
            if ins.store is not None:
                memory.store(ins.store, state, output, ins.mix)
            elif memory.holds(ins.target, output):
                output = output.clone()  # a network that returns its input, which is about to be overwritten
    return run


class Recording:
    """A run on a CUDA device, recorded once as a graph and replayed: no Python and no launches in the loop.

    Everything lives in memory of its own, the noises of the whole run too; what a replay returns is a copy.

    Args:
        program: the table.
        x: a state of the shape, dtype and device of all runs to come.
        model: what to evaluate; its network must not wait for the device.
    """

    def __init__(self, program: Program, x: Tensor, model: Evaluator) -> None:
        self.plan, self.model = model.plan(program), model
        self.x = x.detach().clone()
        self.memory = _memory(x, self.plan)
        self.times = model.times([stage.t for stage in program.stages], x)
        self.draws = len({m for stage in program.stages for m, _ in stage.noises})
        self.z = [torch.zeros_like(self.x) for _ in range(self.draws)]
        side = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            for _ in range(2):  # what a network does the first time does not belong into the graph
                self._run()
        torch.cuda.current_stream(x.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.run = self._run()

    def _run(self) -> Run:
        return _loop(self.plan, self.x, self.memory, self.times, self.model, PreDrawnNoise(self.z))

    def replay(self, x: Tensor, noise: NoiseSource) -> Run:
        """The run from another state x with other noise."""
        self.x.copy_(x)
        for z in self.z:
            z.copy_(noise.normal(tuple(x.shape), x.dtype, x.device))
        self.graph.replay()
        return Run(self.run.x.clone(), self.run.nodes)


class PreDrawnNoise:
    """Noise drawn before."""

    def __init__(self, z: Sequence[Tensor]) -> None:
        self._z = iter(z)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any = None) -> Tensor:
        return next(self._z)
