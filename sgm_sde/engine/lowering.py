"""From a table to instructions: the four passes that make a `Program` ready to run on one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.matrix import Diagonal, Matrix, Operator, number
from sgm_sde.engine.node import Coefficient
from sgm_sde.engine.program import Program, Stage, Terms

Key = tuple[str, int]  # of a value: "state", "eval" or "noise", and its number
Conversion = tuple[Coefficient, Coefficient]  # (c_x, c_r): the program's prediction is c_x x + c_r output

# An interpolation's coefficients sum to 1 but for rounding; where alpha is not 1 they are far from it.
INTERPOLATION = 1e-14


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
    mix: Conversion
    kind: str = "sum"


@dataclass(frozen=True)
class Needed:
    """A value of an earlier stage that a later one needs.

    Attributes:
        kind: "eval", "noise" or "state".
        number: of the stage that evaluates or is the state; of the noise.
        place: slot of the history, or register of the state.
        scale: factor on the stored value that gives the evaluation.
    """

    kind: str
    number: int
    place: int
    scale: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A program made ready to run.

    Attributes:
        program: the program.
        instructions: one for each stage.
        n_slots: slots of the history.
        n_registers: states alive at the same time.
        borrowed: the slots that registers lie in which are needed only while these are not.
        blocks: of the state, on which matrices among the coefficients act; 1 where all are numbers, 0 where some
            are a number for each token.
        weights: the coefficients of all slots (stages, n_slots), float64 on the host; for numbers only.
        factors: those of the bases (stages,), 1 where the stage does not begin with that product; like the weights.
        needed: for each stage, what later ones need besides its state and evaluation, and where it lies.
    """

    program: Program
    instructions: tuple[Instruction, ...]
    n_slots: int
    n_registers: int
    borrowed: Mapping[int, int] = field(compare=False)
    blocks: int
    weights: Tensor = field(repr=False, compare=False)
    factors: Tensor = field(repr=False, compare=False)
    needed: tuple[tuple[Needed, ...], ...] = field(repr=False, compare=False)

    @property
    def node_stages(self) -> tuple[int, ...]:
        """The stage of each node."""
        return tuple(k for k, stage in enumerate(self.program.stages) if stage.node)


def lower(program: Program, conversions: Sequence[Conversion]) -> Plan:
    """Turn a program into a plan, in four passes.

    Args:
        program: the table.
        conversions: a pair (c_x, c_r) for each stage: the program's prediction is c_x x + c_r output there.
    """
    stages = recover_evaluations(program.stages)
    rows = fold_conversions(stages, conversions)
    allocation = allocate(rows)
    instructions = emit(rows, allocation, conversions)

    blocks = _blocks(program.stages, conversions)
    numbers_only = blocks == 1
    return Plan(
        program,
        instructions,
        allocation.n_slots,
        allocation.n_registers,
        borrow(instructions, allocation) if numbers_only else {},
        blocks,
        _weights(instructions, allocation.n_slots) if numbers_only else torch.zeros(0, device="cpu"),
        _factors(instructions) if numbers_only else torch.zeros(0, device="cpu"),
        tuple(_needed(place, conversions) for place in allocation.places),
    )


def _blocks(stages: Sequence[Stage], conversions: Sequence[Conversion]) -> int:
    """Blocks of the state that coefficients act on: 1 where all are numbers, 0 where some are one for each token."""
    coefficients = [c for stage in stages for c in stage.coefficients]
    coefficients += [c for pair in conversions for c in pair]
    if any(isinstance(c, Diagonal) for c in coefficients):
        return 0
    return max((len(c.rows) for c in coefficients if isinstance(c, Matrix)), default=1)


def _weights(instructions: Sequence[Instruction], n_slots: int) -> Tensor:
    """The coefficients of the history as a matrix (stages, n_slots)."""
    weights = torch.zeros((len(instructions), n_slots), dtype=torch.float64, device="cpu")
    for k, instruction in enumerate(instructions):
        for slot, c in instruction.slots:
            weights[k, slot] = number(c)
    return weights


def _factors(instructions: Sequence[Instruction]) -> Tensor:
    """The coefficients of bases that stages begin with (stages,)."""
    return cpu_float64([number(ins.beta) if ins.kind == "factor" else 1.0 for ins in instructions])


def _needed(place: Place, conversions: Sequence[Conversion]) -> tuple[Needed, ...]:
    """The values alive behind a stage, each evaluation with the scale that it is stored in."""
    needed = []
    for (kind, j), at in place.alive.items():
        scale, _ = _scaled(*conversions[j]) if kind == "eval" else (1.0, None)
        needed.append(Needed(kind, j, at, scale))
    return tuple(needed)


# First pass


def recover_evaluations(stages: Sequence[Stage]) -> list[Stage]:
    """Elimination of stored evaluations that follow from the intermediate state: e = (x' - A x)/b.

    If x' = A x + b e, and the stage after needs e as well, then e = (x' - A x) / b need not be stored, as in Heun's
    method. Not applied where |b| is less than the coefficient of e to come, which would amplify rounding.
    """
    rewritten = list(stages)
    for j, users in _users(stages).items():
        if users == [j + 1, j + 2]:
            rewritten[j + 2] = _without(j, rewritten[j + 1], rewritten[j + 2])
    return rewritten


def _users(stages: Sequence[Stage]) -> dict[int, list[int]]:
    """The stages that use each evaluation."""
    users: dict[int, list[int]] = {}
    for k, stage in enumerate(stages):
        for j, _ in stage.evals:
            users.setdefault(j, []).append(k)
    return users


def _without(j: int, between: Stage, after: Stage) -> Stage:
    """The later stage with evaluation j expressed by the state between, where that state determines it."""
    evals = dict(after.evals)
    states = dict(after.states)
    c = evals.pop(j)
    b = dict(between.evals)[j]

    # A hook may change a node, and noises and other evaluations would have to be known as well.
    alone = len(between.evals) == 1 and not (between.node or between.noises)
    if not alone or isinstance(b, Operator) or isinstance(c, Operator) or abs(c) > abs(b):
        return after

    for i, a in between.states:
        states[i] = states.get(i, 0.0) + -(c / b) * a
    states[j + 1] = states.get(j + 1, 0.0) + c / b
    return replace(after, states=tuple(states.items()), evals=tuple(evals.items()))


# Second pass


@dataclass
class Row:
    """A stage in terms of what is there when it runs: states, stored evaluations, the network's last output, noises.

    Attributes:
        states: coefficients of earlier states.
        evals: coefficients of stored evaluations.
        output: coefficient of the network's output at the stage before, or None.
        noises: pairs (number, coefficient).
        stored: whether this stage's evaluation goes to the history.
        node: whether the state is one of the grid's.
    """

    states: dict[int, Coefficient]
    evals: dict[int, Coefficient]
    output: Coefficient | None
    noises: Terms
    stored: bool
    node: bool

    @property
    def bare(self) -> bool:
        """True if the state is made of states and stored evaluations alone, and nothing changes it."""
        return self.output is None and not (self.noises or self.node)


def fold_conversions(stages: Sequence[Stage], conversions: Sequence[Conversion]) -> list[Row]:
    """The stages with the network's outputs in the place of evaluations, where an evaluation is used at once.

    An evaluation that only the next stage uses becomes e = c_x x + c_r r: more of x and some of the output r, in double
    precision and without a pass over memory. One that is used later goes to the history, and stays an evaluation here.
    """
    users = _users(stages)
    at_once = {j for j, later in users.items() if later == [j + 1]}
    rows: list[Row] = []
    for k, stage in enumerate(stages):
        row = Row(dict(stage.states), {}, None, stage.noises, k in users and k not in at_once, stage.node)
        for j, b in stage.evals:
            if j not in at_once:
                row.evals[j] = b

        for j, b in stage.evals:
            if j in at_once:
                c_x, c_r = conversions[j]
                row.output = b * c_r
                _add_state(row, j, b * c_x, rows[j])
        rows.append(row)
    return rows


def _add_state(row: Row, j: int, c: Coefficient, source: Row) -> None:
    """More of state j in a row, or of what it is made of, so that the state itself need not be kept."""
    if not c:
        return

    at_hand = source.states.keys() <= row.states.keys() and source.evals.keys() <= row.evals.keys()
    if not (source.bare and at_hand):
        row.states[j] = row.states.get(j, 0.0) + c
        return

    for i, part in source.states.items():
        row.states[i] += c * part
    for i, part in source.evals.items():
        row.evals[i] += c * part


# Third pass


@dataclass(frozen=True)
class Place:
    """Memory of the values of one stage: registers for states, slots of the history for evaluations and noises.

    Attributes:
        base: number of the state that the stage builds on, or None.
        others: the other states that it reads.
        read: register or slot of each value that it reads.
        drawn: the noises that it draws, and the slot that each is kept in, if later stages need it.
        target: register of the new state.
        store: slot of its evaluation, or None.
        alive: register or slot of each value that later stages need, but for this state and evaluation.
    """

    base: int | None
    others: tuple[int, ...]
    read: Mapping[Key, int]
    drawn: Mapping[int, int | None]
    target: int
    store: int | None
    alive: Mapping[Key, int]


@dataclass(frozen=True)
class Allocation:
    """Places of all stages, and how many slots and registers they take."""

    places: tuple[Place, ...]
    n_slots: int
    n_registers: int


class _Pool:
    """Numbered places, the one that was given back last handed out first."""

    def __init__(self) -> None:
        self.of: dict[Key, int] = {}
        self.n = 0
        self._free: list[int] = []

    def claim(self, key: Key) -> int:
        if not self._free:
            self._free.append(self.n)
            self.n += 1
        self.of[key] = self._free.pop()
        return self.of[key]

    def release(self, keys: Sequence[Key]) -> None:
        self._free += [self.of.pop(key) for key in keys]

    def hand_on(self, key: Key, to: Key) -> int:
        self.of[to] = self.of.pop(key)
        return self.of[to]


def allocate(rows: Sequence[Row]) -> Allocation:
    """Register allocation: a slot for each value until its last use.

    Memory is the state, the history and one scratch register, for any number of steps.
    """
    last = _last_uses(rows)
    slots = _Pool()
    registers = _Pool()
    places: list[Place] = []
    for k, row in enumerate(rows):
        drawn = _draw(k, row, slots, last)
        read = slots.of | registers.of
        base, others, target = _target(k, row, registers, last)

        finished = [key for key in slots.of if last[key] == k]
        slots.release(finished)
        own = ("state", k)
        later = {key: place for key, place in registers.of.items() if key != own and last[key] > k}
        alive = slots.of | later

        # The evaluation comes when the state is made, and may take the place of one that was read for it.
        store = slots.claim(("eval", k)) if row.stored else None
        finished = [key for key in registers.of if last[key] == k]
        registers.release(finished)
        place = Place(base, others, read, drawn, target, store, alive)
        places.append(place)

    return Allocation(tuple(places), slots.n, registers.n)


def borrow(instructions: Sequence[Instruction], allocation: Allocation) -> dict[int, int]:
    """Slots for registers that are needed only while these are not, such as those of a multistep method's first steps.

    The first register is the memory of the run's first state, and a product reads all slots while it writes.
    """
    slots = [_held(place, states=False) | {place.store} for place in allocation.places]
    registers = [_held(place, states=True) | {place.target} for place in allocation.places]
    products = {ins.target for ins in instructions if ins.kind == "product"}

    found: dict[int, int] = {}
    for register in range(allocation.n_registers):
        if register == instructions[0].target or register in products:
            continue
        stages = [k for k, held in enumerate(registers) if register in held]
        taken = set().union(*(slots[k] for k in stages))
        free = [slot for slot in range(allocation.n_slots) if slot not in taken]
        if free:
            found[register] = free[0]
            for k in stages:
                slots[k] = slots[k] | {free[0]}
    return found


def _held(place: Place, *, states: bool) -> set[int | None]:
    """The registers of states, or the slots of other values, that are held at a stage or behind it."""
    held = [*place.read.items(), *place.alive.items()]
    return {at for (kind, _), at in held if (kind == "state") is states}


def _target(k: int, row: Row, registers: _Pool, last: Mapping[Key, int]) -> tuple[int | None, tuple[int, ...], int]:
    """The state that a stage builds on, the others that it reads, and the register of the new one.

    It builds on a state that is dropped here, if there is one, so that its memory serves again.
    """
    others = sorted(row.states, key=lambda j: last["state", j] == k)
    base = others.pop() if others else None
    if base is not None and last["state", base] == k:
        return base, tuple(others), registers.hand_on(("state", base), ("state", k))
    return base, tuple(others), registers.claim(("state", k))


def _last_uses(rows: Sequence[Row]) -> dict[Key, int]:
    """The last stage that needs each value; of a state that none does, its own."""
    last: dict[Key, int] = {}
    for k, row in enumerate(rows):
        last["state", k] = k
        last.update({("state", j): k for j in row.states})
        last.update({("eval", j): k for j in row.evals})
        last.update({("noise", m): k for m, _ in row.noises})
    return last


def _draw(k: int, row: Row, slots: _Pool, last: Mapping[Key, int]) -> dict[int, int | None]:
    """The noises that a stage is the first to need, each with a slot if it is not the last to do so."""
    new = [m for m, _ in row.noises if ("noise", m) not in slots.of]
    return {m: slots.claim(("noise", m)) if last["noise", m] > k else None for m in new}


# Fourth pass


def emit(rows: Sequence[Row], allocation: Allocation, conversions: Sequence[Conversion]) -> tuple[Instruction, ...]:
    """The instructions: coefficients with the places they go with.

    A stored evaluation is x + (c_r / c_x) r or r + (c_x / c_r) x, the other factor going to the coefficients, so that
    storing is one pass. Where coefficients are matrices it is stored as it is.
    """
    stored = {k: _scaled(*conversions[k]) for k, row in enumerate(rows) if row.stored}
    scales = {k: scale for k, (scale, _) in stored.items()}
    instructions = []
    for k, (row, place) in enumerate(zip(rows, allocation.places, strict=True)):
        beta: Coefficient = 0.0
        register = None
        if place.base is not None:
            beta = row.states[place.base]
            register = place.read["state", place.base]

        instruction = Instruction(
            target=place.target,
            base=register,
            beta=beta,
            states=tuple((place.read["state", j], row.states[j]) for j in place.others),
            output=row.output,
            slots=_slots(row, place, scales),
            noises=tuple((c, place.drawn[m]) for m, c in row.noises if m in place.drawn),
            store=place.store,
            mix=stored[k][1] if row.stored else (0.0, 1.0),
        )
        instructions.append(replace(instruction, kind=_kind(instruction)))
    return tuple(instructions)


def _slots(row: Row, place: Place, scales: Mapping[int, float]) -> Terms:
    """The terms that lie in the history: evaluations as they are scaled there, and the noises drawn before."""
    evals = [(place.read["eval", j], b * scales[j]) for j, b in row.evals.items()]
    noises = [(place.read["noise", m], c) for m, c in row.noises if m not in place.drawn]
    return (*evals, *noises)


def _kind(ins: Instruction) -> str:
    """Initial operation of a stage's sum, for the fewest passes over memory."""
    if len(ins.slots) > 1:
        return "product"

    terms = [c for c, _ in ins.noises]
    if ins.output is not None:
        terms.append(ins.output)
    if ins.base is None or ins.beta == 1 or any(isinstance(c, Operator) for c in (ins.beta, *terms)):
        return "sum"

    # Where alpha is 1 and data are predicted, steps are (1 - c) x + c D.
    alone = len(terms) == 1 and not (ins.slots or ins.states)
    return "blend" if alone and abs(number(ins.beta) + number(terms[0]) - 1) <= INTERPOLATION else "factor"


def _scaled(c_x: Coefficient, c_r: Coefficient) -> tuple[float, Conversion]:
    """A scale and (c_x, c_r) divided by it, so that one of them is 1; matrices stay as they are."""
    if isinstance(c_x, Operator) or isinstance(c_r, Operator):
        return 1.0, (c_x, c_r)
    scale = c_x if abs(c_x) > abs(c_r) else c_r
    return scale, (c_x / scale, c_r / scale)
