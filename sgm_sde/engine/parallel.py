r"""Parallel in time: a program's evaluations by Picard iteration, a window of them in one network call.

A program's states are affine in its evaluations. Given all evaluations of a window, right or wrong, its states follow
without the network; evaluated there together, they give better evaluations. The first of them is always exact, so that
the iteration ends, and its limit is the sequential run itself, whatever the solver.

What is kept of an evaluation is not the prediction that the program asks for but one that changes little with the
state, $F = f_x x + f_r r$ of the network's output r: where the state moves, the evaluation moves with it as if F stood
still. Behind the window F is that of the window's last evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.shapes import flat
from sgm_sde.engine.executor import Run
from sgm_sde.engine.matrix import number, times
from sgm_sde.engine.node import Coefficient
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Program

Rows = Sequence[tuple[int, Tensor]]  # stages, each with the numbers (b,) of the samples that are evaluated there


@dataclass(frozen=True)
class Frozen:
    """Kept form of an evaluation: F = f_x x + f_r r, from which the evaluation is e = p_x x + p_r F."""

    f_x: Coefficient
    f_r: Coefficient
    p_x: Coefficient
    p_r: Coefficient

    @staticmethod
    def evaluation(c_x: Coefficient, c_r: Coefficient) -> Frozen:
        """The evaluation e = c_x x + c_r r itself."""
        return Frozen(c_x, c_r, 0.0, 1.0)

    @staticmethod
    def prediction(c_x: float, c_r: float, f_x: float, f_r: float) -> Frozen:
        """The prediction F = f_x x + f_r r, for an evaluation e = c_x x + c_r r."""
        return Frozen(f_x, f_r, c_x - c_r * f_x / f_r, c_r / f_r)

    def output(self, x: Tensor, kept: Tensor) -> Tensor:
        """The network's output at x (B, *) from F (B, *), where coefficients are numbers."""
        return (kept - number(self.f_x) * x) / number(self.f_r)


def picard(
    program: Program,
    x: Tensor,
    outputs: Callable[[Rows, Tensor], Tensor],
    noise: NoiseSource,
    frozen: Sequence[Frozen],
    scales: Sequence[float],
    *,
    window: int,
    tolerance: float,
    on_node: Callable[[int, Tensor], object] | None = None,
    on_evaluation: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Run:
    """Run a program from the initial state x (B, *), by fewer calls of the network than it has evaluations.

    Each sample has a window of its own, which moves on with it, so that none depends on the others. Once a round,
    sizes are read back from the device.

    Args:
        program: the table.
        x: initial state; not changed.
        outputs: the network's outputs (R, *) at states (R, *) of some samples at some stages, by one call.
        noise: where noise comes from; drawn in the order of a sequential run.
        frozen: what is kept of each stage's evaluation.
        scales: the size of a state by stage, in units of which it may still change.
        window: evaluations of a sample in a round, at most.
        tolerance: largest root mean square of a sample's change, in units of the scale, for an evaluation to stand.
        on_node: called with the number of each node and its state, in their order, once it stands for all samples.
        on_evaluation: called likewise with (stage, state, F) of the first evaluation after each node.
    """
    run = _Iteration(program, x, frozen, noise)
    report = _Report(run, on_node, on_evaluation)
    called = run.called
    n = len(called)
    last = len(program.stages) - 1
    scales_called = [scales[k] for k in called]
    scale_of = np.array(scales_called)

    def stage(c: int) -> int:
        """The stage of the c-th evaluation, the last one behind all of them."""
        return called[c] if c < n else last

    low = 0
    begin = np.zeros(len(x), dtype=np.int64)  # each sample's first evaluation that does not stand
    ends = np.minimum(begin + 1, n)  # of each sample's window: nothing is known yet that states behind follow from
    run.advance(stage(0))
    while low < n:
        high = int(ends.max())
        stages = called[low:high]
        before = [run.states[k] for k in stages]
        run.evaluate(outputs, begin, ends, low, high)
        run.restart(called[low] + 1)
        run.advance(called[high - 1] if high < n else last)

        # The first of a window depends on nothing that has changed; the others follow as long as none has moved.
        changes = [run.states[k] - old for k, old in zip(stages, before, strict=True)]
        sizes = _sizes(changes)
        limits = tolerance * scale_of[low:high, None]
        number = np.arange(low, high)[:, None]
        follows = (sizes <= limits) & (number < ends)
        stands = (number <= begin) | follows
        standing = np.cumprod(stands, 0).sum(0)
        begin = np.maximum(begin, low + standing)

        low = int(begin.min())
        ends = np.minimum(begin + window, n)
        if low < n:
            furthest = max(high, int(ends.max()))
            run.advance(called[furthest - 1])
        report.until(stage(low))
        run.forget(stage(low))
    return Run(run.states[last], report.nodes)


def _sizes(changes: Sequence[Tensor]) -> np.ndarray:
    """Root mean squares (c, B) of changes (B, *)."""
    squares = [flat(change).double().square() for change in changes]
    return torch.stack([square.mean(1).sqrt() for square in squares]).cpu().numpy()


class _Iteration:
    """States, noises and what is kept of evaluations, by stage."""

    def __init__(self, program: Program, x: Tensor, frozen: Sequence[Frozen], noise: NoiseSource) -> None:
        self.stages = program.stages
        self.x = x
        self.frozen = frozen
        self.noise = noise
        self._column = (-1, *[1] * (x.ndim - 1))  # the shape of a value for each sample
        self.called = [k for k, stage in enumerate(program.stages) if stage.evaluate]
        self.states: dict[int, Tensor] = {}
        self.kept: dict[int, Tensor] = {}  # F
        self.noises: dict[int, Tensor] = {}
        self.held = torch.zeros_like(x)  # F of each sample's last evaluation, in the place of those behind

        self._last_state, self._last_eval, self._last_noise = _last_uses(program)
        self._next = 0  # the first stage without a state
        self._drawn = 0  # stages whose noises are there

    def evaluate(
        self, outputs: Callable[[Rows, Tensor], Tensor], begin: np.ndarray, ends: np.ndarray, low: int, high: int
    ) -> None:
        """Call the network at all states in the windows, and keep what it says."""
        numbers = range(low, high)
        inside = [np.flatnonzero((begin <= c) & (c < ends)) for c in numbers]
        samples = [self._index(some) for some in inside]
        fresh = self._asked(outputs, [(self.called[c], some) for c, some in zip(numbers, samples, strict=True)])

        self.held = self._of_last(ends, zip(numbers, inside, fresh, strict=True))
        for c, called, value in zip(numbers, samples, fresh, strict=True):
            k = self.called[c]
            behind = self._index(ends <= c).reshape(self._column)
            known = torch.where(behind, self.held, self.kept.get(k, self.held))
            self.kept[k] = known.index_copy(0, called, value)

    def _of_last(self, ends: np.ndarray, found: Iterable[tuple[int, np.ndarray, Tensor]]) -> Tensor:
        """Values of each window's last evaluation, which stand behind it, too; what is held where there is none."""
        held = self.held.clone()
        for c, some, value in found:
            ending = np.flatnonzero(ends[some] == c + 1)
            held[self._index(some[ending])] = value[self._index(ending)]
        return held

    def _asked(self, outputs: Callable[[Rows, Tensor], Tensor], rows: Rows) -> list[Tensor]:
        """Values to keep of the evaluations of some samples at each of some stages, by one call."""
        parts = [self.states[k][some] for k, some in rows]
        stacked = torch.cat(parts)
        out = outputs([(k, some) for k, some in rows if len(some)], stacked).to(stacked.dtype)
        each = torch.split(out, [len(some) for _, some in rows])

        fresh: list[Tensor] = []
        for (k, _), x, r in zip(rows, parts, each, strict=True):
            of = self.frozen[k]
            fresh.append(times(of.f_x, x) + times(of.f_r, r))
        return fresh

    def _index(self, samples: np.ndarray) -> Tensor:
        """Numbers or a mask of samples, on the state's device."""
        return torch.from_numpy(samples).to(self.x.device)

    def restart(self, k: int) -> None:
        """Compute states anew from stage k on."""
        self._next = k

    def advance(self, until: int) -> None:
        """States of the stages up to a number, from what is known."""
        for k in range(self._next, until + 1):
            stage = self.stages[k]
            self._draw(k)
            total = torch.zeros_like(self.x) if k else self.x
            for j, c in stage.states:
                total = total + times(c, self.states[j])
            for j, c in stage.evals:
                total = total + times(c, self._evaluation(j))
            for m, c in stage.noises:
                total = total + times(c, self.noises[m])
            self.states[k] = total
        self._next = max(self._next, until + 1)

    def _evaluation(self, j: int) -> Tensor:
        """The evaluation of a stage, at the state that it has now."""
        of = self.frozen[j]
        value = times(of.p_r, self.kept.get(j, self.held))
        return value + times(of.p_x, self.states[j]) if of.p_x else value

    def _draw(self, k: int) -> None:
        if k < self._drawn:
            return
        self._drawn = k + 1
        for m, _ in self.stages[k].noises:
            if m not in self.noises:
                self.noises[m] = self.noise.normal(tuple(self.x.shape), self.x.dtype, self.x.device)

    def forget(self, done: int) -> None:
        """Leave out what no stage after `done` needs."""
        _drop(self.kept, self._last_eval, done)
        _drop(self.noises, self._last_noise, done)
        _drop(self.states, self._last_state, done, those_before=done)


class _Report:
    """Tells observers of nodes, in their order, as they stand."""

    def __init__(
        self,
        run: _Iteration,
        on_node: Callable[[int, Tensor], object] | None,
        on_evaluation: Callable[[int, Tensor, Tensor], None] | None,
    ) -> None:
        self._run = run
        self._on_node = on_node
        self._on_evaluation = on_evaluation
        self.nodes = 0
        self._next = 0
        self._waits = False

    def until(self, k: int) -> None:
        """Tell of the states up to stage k, and of the evaluations before it."""
        run = self._run
        for j in range(self._next, k + 1):
            if run.stages[j].node:
                self.nodes += 1
                if self._on_node is not None:
                    self._on_node(self.nodes - 1, run.states[j])

        for j in range(max(self._next - 1, 0), k):
            self._waits = self._waits or run.stages[j].node
            if self._waits and run.stages[j].evaluate:
                self._waits = False
                if self._on_evaluation is not None:
                    self._on_evaluation(j, run.states[j], run.kept[j])
        self._next = k + 1


def _drop(values: dict[int, Tensor], last: Mapping[int, int], done: int, those_before: float = math.inf) -> None:
    """Leave out values whose last use is not after stage `done`, of stages before a number."""
    unused = [j for j in values if last.get(j, -1) <= done and j < those_before]
    for j in unused:
        del values[j]


def _last_uses(program: Program) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """The last stage that needs each state, evaluation and noise."""
    states: dict[int, int] = {}
    evals: dict[int, int] = {}
    noises: dict[int, int] = {}
    for k, stage in enumerate(program.stages):
        states.update((j, k) for j, _ in (*stage.states, *stage.evals))  # an evaluation follows from its state, too
        evals.update((j, k) for j, _ in stage.evals)
        noises.update((m, k) for m, _ in stage.noises)
    return states, evals, noises
