"""The memory of a run and its arithmetic: what an `Instruction` does to tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from sgm_sde.engine.lowering import Conversion, Instruction, Plan
from sgm_sde.engine.matrix import Matrix, number, times
from sgm_sde.engine.node import Coefficient

Summands = Iterator[tuple[Tensor, Coefficient]]


class Memory(Protocol):
    """Registers for states, and slots for the history of evaluations and noises.

    Attributes:
        registers: the states (B, *).
        slots: the history, each (B, *).
    """

    registers: list[Tensor]
    slots: list[Tensor]

    def combine(self, k: int, ins: Instruction, terms: Summands) -> None:
        """Stage k: its state from registers, slots and further terms, each let go of before the next."""

    def replace(self, register: int, value: Tensor) -> None:
        """Put another state in a register."""

    def store(self, slot: int, state: Tensor, output: Tensor, mix: Conversion) -> None:
        """Put c_x state + c_r output in a slot."""

    def load(self, slot: int, value: Tensor) -> None:
        """Put a value in a slot."""

    def holds(self, register: int, value: Tensor) -> bool:
        """True if the value lies in a register's memory, which is about to be overwritten."""


def allocate_memory(x: Tensor, plan: Plan, grad: bool = False, *, own: bool = False) -> Memory:
    """The memory that a plan runs in, for states like x (B, *); with `own` x is part of it and may be overwritten."""
    if plan.blocks != 1:
        return OperatorMemory(x, plan)
    return GraphMemory(x, plan) if grad else Buffers(x, plan, own=own)


class Buffers:
    """Preallocated memory: a stage is one matrix-vector product wherever it can be."""

    def __init__(self, x: Tensor, plan: Plan, *, own: bool = False) -> None:
        # Zeros, not empty: slots out of use enter the product with coefficient 0, and 0 * NaN is NaN.
        buffer = torch.zeros((plan.n_slots, x.numel()), dtype=x.dtype, device=x.device)
        self.slots = [row.view(x.shape) for row in buffer]
        self._history = buffer.t()

        known = {register: self.slots[slot] for register, slot in plan.borrowed.items()}
        if own and x.is_contiguous():
            known[plan.instructions[0].target] = x
        self.registers = [
            known[register] if register in known else torch.empty_like(x, memory_format=torch.contiguous_format)
            for register in range(plan.n_registers)
        ]
        self._flat = [register.view(-1) for register in self.registers]
        self._ends = [(flat.data_ptr(), flat.data_ptr() + flat.nbytes) for flat in self._flat]
        # As tensors: torch would convert numbers at every call.
        self._weights = plan.weights.to(x).unbind(0)
        self._factors = plan.factors.to(x).unbind(0)

    def combine(self, k: int, ins: Instruction, terms: Summands) -> None:
        state = self.registers[ins.target]
        source = ins.base
        if source is None:
            state.zero_()
            source = ins.target

        # The first operation writes into `state`, and those after it add in place.
        base = self.registers[source]
        if ins.kind == "product":
            weights = self._weights[k]
            torch.addmv(self._flat[source], self._history, weights, beta=number(ins.beta), out=self._flat[ins.target])
            base = state
        elif ins.kind == "blend":
            end, weight = next(terms)
            base = torch.lerp(base, end, number(weight), out=state)
        elif ins.kind == "factor":
            base = torch.mul(base, self._factors[k], out=state)

        if ins.kind != "product":
            for slot, c in ins.slots:
                base = _add(base, self.slots[slot], c, state)
        for register, c in ins.states:
            base = _add(base, self.registers[register], c, state)
        for value, c in terms:
            base = _add(base, value, c, state)
            del value
        self.replace(ins.target, base)

    def replace(self, register: int, value: Tensor) -> None:
        if value is not self.registers[register]:
            self.registers[register].copy_(value)

    def store(self, slot: int, state: Tensor, output: Tensor, mix: Conversion) -> None:
        c_x = number(mix[0])
        c_r = number(mix[1])
        if c_x == 0:
            self.slots[slot].copy_(output)
        elif c_r == 1:
            torch.add(output, state, alpha=c_x, out=self.slots[slot])
        else:
            torch.add(state, output, alpha=c_r, out=self.slots[slot])

    def load(self, slot: int, value: Tensor) -> None:
        self.slots[slot].copy_(value)

    def holds(self, register: int, value: Tensor) -> bool:
        start, end = self._ends[register]
        return start <= value.data_ptr() < end


def _add(base: Tensor, value: Tensor, c: Coefficient, state: Tensor) -> Tensor:
    assert not isinstance(c, Matrix)
    return base.add_(value, alpha=c) if base is state else torch.add(base, value, alpha=c, out=state)


class GraphMemory:
    """The same arithmetic without reuse of memory, for backpropagation through the run."""

    def __init__(self, x: Tensor, plan: Plan) -> None:
        self.slots: list[Tensor] = [torch.empty(0)] * plan.n_slots
        self.registers = [x] * plan.n_registers

    def combine(self, k: int, ins: Instruction, terms: Summands) -> None:
        base = self.registers[ins.target if ins.base is None else ins.base]
        state = times(ins.beta, base)
        for slot, c in ins.slots:
            state = state + times(c, self.slots[slot])
        for register, c in ins.states:
            state = state + times(c, self.registers[register])
        for value, c in terms:
            state = state + times(c, value)
            del value
        self.replace(ins.target, state)

    def replace(self, register: int, value: Tensor) -> None:
        self.registers[register] = value

    def store(self, slot: int, state: Tensor, output: Tensor, mix: Conversion) -> None:
        c_x, c_r = mix
        self.slots[slot] = times(c_x, state) + times(c_r, output)

    def load(self, slot: int, value: Tensor) -> None:
        self.slots[slot] = value

    def holds(self, register: int, value: Tensor) -> bool:
        """Never: nothing is overwritten."""
        return False


class OperatorMemory(GraphMemory):
    """The same with a number for each token, or matrices that act on the blocks of the state.

    No matrix products of torch: under autocast, or with TF32, those would round the state.
    """

    def __init__(self, x: Tensor, plan: Plan) -> None:
        if plan.blocks and (x.ndim < 2 or x.shape[1] != plan.blocks):
            raise ValueError(
                f"the process has a state of {plan.blocks} blocks, (B, {plan.blocks}, *): got {tuple(x.shape)}"
            )
        super().__init__(x, plan)
        self._given = x

    def replace(self, register: int, value: Tensor) -> None:
        """Put another state in a register; a copy of the caller's, since a network may write into what it is given."""
        super().replace(register, value.clone() if value is self._given else value)
