r"""Parallel in time: a program's evaluations by Picard iteration, a window of them in one network call.

A program's states are affine in its evaluations. Given all evaluations of a window, right or wrong, its states follow
without the network; evaluated there together, they give better evaluations. The first of them is always exact, so that
the iteration ends, and its limit is the sequential run itself, whatever the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sgm_sde.engine.matrix import times
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Program

Evaluate = Callable[[Tensor, Tensor], Tensor]


def picard(
    program: Program,
    x: Tensor,
    evaluate: Callable[[Sequence[int], Tensor], Tensor],
    noise: NoiseSource,
    scales: Sequence[float],
    *,
    window: int,
    tolerance: float,
) -> tuple[Tensor, int]:
    """The last state of a program from x (B, *), and the number of rounds.

    Args:
        program: the table.
        x: initial state.
        evaluate: from the numbers of w stages and their states (w, B, *) to the program's evaluations there, by one
            call of the network.
        noise: where noise comes from; drawn in the order of a sequential run.
        scales: the size of a state by stage, in units of which it may still change.
        window: evaluations in a round, at most.
        tolerance: largest root mean square of a sample's change, in units of the scale, for an evaluation to stand.
    """
    stages = program.stages
    called = [k for k, stage in enumerate(stages) if stage.evaluate]
    shape, dtype, device = tuple(x.shape), x.dtype, x.device
    last_state, last_eval, last_noise = _last_uses(program)

    states: dict[int, Tensor] = {}
    evals: dict[int, Tensor] = {}
    noises: dict[int, Tensor] = {}
    drawn = 0  # stages whose noises are there

    def draw(until: int) -> None:
        nonlocal drawn
        for stage in stages[drawn : until + 1]:
            for m, _ in stage.noises:
                if m not in noises:
                    noises[m] = noise.normal(shape, dtype, device)
        drawn = max(drawn, until + 1)

    def advance(first: int, until: int, held: Tensor | None) -> None:
        """States of stages, with `held` in the place of evaluations that are not known."""
        draw(until)
        for k in range(first, until + 1):
            stage = stages[k]
            total = torch.zeros_like(x) if k else x
            for j, c in stage.states:
                total = total + times(c, states[j])
            for j, c in stage.evals:
                value = evals.get(j, held)
                assert value is not None
                total = total + times(c, value)
            for m, c in stage.noises:
                total = total + times(c, noises[m])
            states[k] = total

    begin, rounds = 0, 0  # number of the first evaluation that does not stand
    reached = called[0] if called else len(stages) - 1  # the last stage that has a state
    advance(0, reached, None)
    held: Tensor | None = None
    while begin < len(called):
        ahead = called[begin : begin + window]
        if held is not None:
            advance(reached + 1, ahead[-1], held)
        else:
            ahead = ahead[:1]  # nothing is known that the states behind could be guessed from
        stacked = torch.stack([states[k] for k in ahead])
        values = evaluate(ahead, stacked).unbind(0)
        rounds += 1
        evals.update(zip(ahead, values, strict=True))
        held = values[-1]
        reached = len(stages) - 1 if begin + len(ahead) == len(called) else ahead[-1]
        advance(ahead[0] + 1, reached, held)

        stand = 1  # its state depends on nothing that has changed
        if len(ahead) > 1:
            changes = torch.stack([states[k] for k in ahead[1:]]) - stacked[1:]
            sizes = changes.flatten(2).double().square().mean(2).sqrt().amax(1).tolist()
            within = [size <= tolerance * scales[k] for size, k in zip(sizes, ahead[1:], strict=True)]
            stand += within.index(False) if False in within else len(within)
        begin += stand
        if begin < len(called):
            # Stages from here on are computed anew, and need what they are made of.
            done = min(reached, called[begin])
            _forget(states, last_state, done, keep=done)
            _forget(evals, last_eval, done)
            _forget(noises, last_noise, done)
    return states[len(stages) - 1], rounds


def _last_uses(program: Program) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """The last stage that needs each state, evaluation and noise."""
    uses: tuple[dict[int, int], ...] = ({}, {}, {})
    for k, stage in enumerate(program.stages):
        for use, terms in zip(uses, (stage.states, stage.evals, stage.noises), strict=True):
            use.update((j, k) for j, _ in terms)
    states, evals, noises = uses
    return states, evals, noises


def _forget(values: dict[int, Tensor], last: dict[int, int], done: int, keep: int | None = None) -> None:
    """Leave out what only stages up to `done` need, but for states from number `keep` on."""
    for j in [j for j in values if last.get(j, -1) <= done and (keep is None or j < keep)]:
        del values[j]
