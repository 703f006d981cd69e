"""The one loop: runs any `Program` on any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Program, Terms


class Model(Protocol):
    """A network bound to one run: whatever the executor evaluates."""

    def conversions(self, program: Program) -> list[tuple[float, float]]:
        """Coefficients (c_x, c_r), a pair a stage: the program's prediction is c_x x + c_r evaluate(x, t)."""

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        """Output of the network at state x (B, *) and time t."""


class Hook(Protocol):
    """What depends on x and stands beside the table: correctors, projections."""

    def __call__(self, x: Tensor, i: int) -> Tensor:
        """The state to go on with from node i."""


@dataclass(frozen=True)
class Instruction:
    """A stage made ready to run: state = beta * base + sum of the terms.

    Attributes:
        base: the state it builds on, or None.
        beta: the base's coefficient.
        in_place: whether the base is not needed again, so that its memory serves the new state.
        states: pairs (state, coefficient) besides the base.
        output: coefficient of the network output just before, when nothing else needs it.
        rows: pairs (row of the history, coefficient).
        noises: for each noise, its coefficient and the row it is kept in for later stages, if any needs it.
        store: row of the history that this stage's evaluation goes to, or None.
        mix: (c_x, c_r) of what is stored: c_x x + c_r output.
        drop: states that no later stage needs.
    """

    base: int | None
    beta: float
    in_place: bool
    states: Terms
    output: float | None
    rows: Terms
    noises: tuple[tuple[float, int | None], ...]
    store: int | None
    mix: tuple[float, float]
    drop: tuple[int, ...]


def lower(program: Program, conversions: Sequence[tuple[float, float]]) -> tuple[list[Instruction], int]:
    """Turn a program into instructions and the number of history rows they need.

    The conversion from the network's output to the program's prediction is folded into the coefficients, in
    double precision. An evaluation that only the next stage uses is folded away: e = c_x x + c_r r becomes
    more of x and some of r. One that is used later goes to a row of the history, as x + (c_r / c_x) r or
    r + (c_x / c_r) x, the other factor going to the coefficients; so storing is one pass.
    """
    stages = program.stages
    uses: Counter[tuple[str, int]] = Counter()
    last: dict[tuple[str, int], int] = {}
    for k, stage in enumerate(stages):
        for key in [("eval", j) for j, _ in stage.evals] + [("noise", m) for m, _ in stage.noises]:
            uses[key] += 1
            last[key] = k
    folded = {j for kind, j in uses if kind == "eval" and uses[kind, j] == 1 and last[kind, j] == j + 1}

    on_states: list[dict[int, float]] = []  # coefficients on states, folded evaluations included
    for k, stage in enumerate(stages):
        total = dict(stage.states)
        for j, b in stage.evals:
            if j in folded and conversions[j][0] != 0:
                total[j] = total.get(j, 0.0) + b * conversions[j][0]
        on_states.append(total)
        last[("state", k)] = k
        for j in total:
            last[("state", j)] = k

    free: list[int] = []
    row_of: dict[tuple[str, int], int] = {}
    n_rows = 0

    def claim(key: tuple[str, int]) -> int:
        nonlocal n_rows
        if not free:
            free.append(n_rows)
            n_rows += 1
        row_of[key] = free.pop()
        return row_of[key]

    instructions: list[Instruction] = []
    scale: dict[int, float] = {}
    for k, stage in enumerate(stages):
        output = next((b * conversions[j][1] for j, b in stage.evals if j in folded), None)
        rows = [(row_of["eval", j], b * scale[j]) for j, b in stage.evals if j not in folded]
        noises: list[tuple[float, int | None]] = []
        for m, c in stage.noises:
            if ("noise", m) in row_of:
                rows.append((row_of["noise", m], c))
            else:
                noises.append((c, claim(("noise", m)) if uses["noise", m] > 1 else None))
        # Build on a state that is dropped here, if there is one, so that its memory serves again.
        states = sorted(on_states[k].items(), key=lambda jc: last["state", jc[0]] == k)
        base, beta = states.pop() if states else (None, 0.0)
        for key in [key for key in row_of if last[key] == k]:
            free.append(row_of.pop(key))
        store, mix = None, (0.0, 1.0)
        if uses["eval", k] and k not in folded:
            store = claim(("eval", k))
            c_x, c_r = conversions[k]
            scale[k] = c_x if abs(c_x) > abs(c_r) else c_r
            mix = (c_x / scale[k], c_r / scale[k])
        in_place = base is not None and last["state", base] == k
        drop = tuple(j for j in {k, *on_states[k]} if last["state", j] == k and not (in_place and j == base))
        instructions.append(
            Instruction(base, beta, in_place, tuple(states), output, tuple(rows), tuple(noises), store, mix, drop)
        )
    return instructions, n_rows


class _Buffers:
    """Arithmetic in preallocated memory: a stage with history is one matrix-vector product."""

    def __init__(self, x: Tensor, instructions: Sequence[Instruction], n_rows: int) -> None:
        # Zeros, not empty: rows out of use enter the product with coefficient 0, and 0 * NaN is NaN.
        buffer = torch.zeros((n_rows, x.numel()), dtype=x.dtype, device=x.device)
        self.rows, self.matrix = buffer.unbind(0), buffer.t()
        table = [[dict(ins.rows).get(r, 0.0) for r in range(n_rows)] for ins in instructions]
        self.weights = torch.tensor(table, dtype=x.dtype, device=x.device).unbind(0)

    def initial(self, x: Tensor) -> Tensor:
        return x.reshape(-1).clone()

    def combine(self, k: int, ins: Instruction, base: Tensor, terms: list[tuple[Tensor, float]]) -> Tensor:
        if len(ins.rows) > 1:
            out = base if ins.in_place else torch.empty_like(base)
            state = torch.addmv(base, self.matrix, self.weights[k], beta=ins.beta, out=out)
        else:
            terms = [(self.rows[row], c) for row, c in ins.rows] + terms
            state = base.mul_(ins.beta) if ins.in_place else base * ins.beta
        for value, c in terms:
            state.add_(value, alpha=c)
        return state

    def store(self, row: int, state: Tensor, output: Tensor, mix: tuple[float, float]) -> None:
        c_x, c_r = mix
        if c_x == 0:
            self.rows[row].copy_(output)
        elif c_r == 1:
            torch.add(output, state, alpha=c_x, out=self.rows[row])
        else:
            torch.add(state, output, alpha=c_r, out=self.rows[row])


class _Graph:
    """The same arithmetic without reuse of memory, for backpropagation through the run."""

    def __init__(self, n_rows: int) -> None:
        self.rows: list[Tensor] = [torch.empty(0)] * n_rows

    def initial(self, x: Tensor) -> Tensor:
        return x.reshape(-1)

    def combine(self, k: int, ins: Instruction, base: Tensor, terms: list[tuple[Tensor, float]]) -> Tensor:
        state = ins.beta * base
        for value, c in [(self.rows[row], c) for row, c in ins.rows] + terms:
            state = state + c * value
        return state

    def store(self, row: int, state: Tensor, output: Tensor, mix: tuple[float, float]) -> None:
        self.rows[row] = mix[0] * state + mix[1] * output


@dataclass
class Run:
    """What a run leaves behind.

    Attributes:
        x: the last state (B, *).
        nodes: number of nodes reached, the first one included.
        checksums: per-sample sums (B,) of the state at each node, on the device: not finite where it was not.
    """

    x: Tensor
    nodes: int = 0
    checksums: list[Tensor] = field(default_factory=list)


def execute(
    program: Program,
    x: Tensor,
    model: Model,
    noise: NoiseSource,
    *,
    hooks: Sequence[Hook] = (),
    on_node: Callable[[int, Tensor], bool] | None = None,
    on_output: Callable[[Tensor, Tensor, float], None] | None = None,
    grad: bool = False,
) -> Run:
    """Run a program from the initial state x (B, *).

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

    Returns:
        the last state and the per-node checksums.
    """
    shape, dtype, device = tuple(x.shape), x.dtype, x.device
    instructions, n_rows = lower(program, model.conversions(program))
    memory = _Graph(n_rows) if grad else _Buffers(x, instructions, n_rows)
    states: dict[int, Tensor] = {}
    output = x.new_empty(0)
    run, reported = Run(x), 0
    for k, (stage, ins) in enumerate(zip(program.stages, instructions, strict=True)):
        if k == 0:
            state = memory.initial(x)
        else:
            terms = [(states[j], c) for j, c in ins.states]
            if ins.output is not None:
                terms.append((output, ins.output))
            for c, row in ins.noises:
                z = noise.normal(shape, dtype, device).reshape(-1)
                terms.append((z, c))
                if row is not None:
                    memory.store(row, z, z, (0.0, 1.0))
            base = torch.zeros_like(state) if ins.base is None else states[ins.base]
            state = memory.combine(k, ins, base, terms)
            if ins.in_place and ins.base is not None:
                del states[ins.base]
        states[k] = state
        if stage.node:
            for hook in hooks:
                states[k] = state = hook(state.view(shape), run.nodes).reshape(-1)
            run.checksums.append(state.detach().view(len(x), -1).sum(1))  # one number a sample: cheap to keep
            run.nodes, run.x = run.nodes + 1, state.view(shape)
            if on_node is not None and on_node(run.nodes - 1, run.x):
                break
        if stage.evaluate:
            output = model.evaluate(state.view(shape), stage.t)
            if on_output is not None and run.nodes > reported:
                on_output(state.view(shape), output, stage.t)
                reported = run.nodes
            output = output.reshape(-1).to(dtype)
            if ins.store is not None:
                memory.store(ins.store, state, output, ins.mix)
            elif output.untyped_storage().data_ptr() == state.untyped_storage().data_ptr():
                output = output.clone()  # a network that returns its input, which is about to be overwritten
        for j in ins.drop:
            del states[j]
    return run
