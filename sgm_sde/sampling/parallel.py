"""Runs in parallel in time: some of the network calls of a run made together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sgm_sde.engine.executor import Run
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.parallel import Frozen, Rows, picard
from sgm_sde.engine.program import Program
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.scores.conditions import resolve, rows_at
from sgm_sde.scores.model import BoundScore, checked_conversion


def run_in_parallel(
    program: Program,
    x: Tensor,
    model: BoundScore,
    noise: NoiseSource,
    *,
    window: int,
    tolerance: float,
    on_node: Callable[[int, Tensor], object] | None = None,
    on_output: Callable[[Tensor, Tensor, float], None] | None = None,
) -> Run:
    r"""The run of a program from x (B, *), with a window of network evaluations in each call.

    The states of a window follow from the evaluations known so far; the network is called at all of them together, the
    states are computed anew, and the window moves to the first that still changed by more than the tolerance (Picard
    iteration). One evaluation at least is done in a round, so that it never takes more rounds than the sequential run
    takes calls; the limit is that run, for every solver on a grid, with the same noise from the same seed.

    Between rounds it is v that stands still, $v = (\alpha\epsilon - \sigma D)/\sqrt{\alpha^2 + \sigma^2}$ up to scale,
    which does not depend on the state for standard normal data, and not the prediction that the solver asks for.

    Args:
        program: the table of a solver on a grid.
        x: initial state.
        model: the network.
        noise: where noise comes from.
        window: evaluations of a sample in a round, at most.
        tolerance: root mean square of a sample's change in a round up to which an evaluation counts as converged, in
            units of $\sqrt{\alpha^2 + \sigma^2}$, the size of a state of data with standard deviation 1. With 0 only
            what is exact counts.
        on_node: called with each node's number and state.
        on_output: called with (x, output, t) of the first evaluation after each node.

    Source: Shih et al., 2023, arXiv:2305.16317 (ParaDiGMS).
    """
    model.plan(program)  # says what the network's prediction does not determine
    called = [k for k, stage in enumerate(program.stages) if stage.evaluate]
    ts = [stage.t for stage in program.stages]
    at = model.times(ts, x)
    frozen, scales = _frozen(program, model)
    arguments = resolve(model.kwargs, len(x), model.score.conditions)

    def outputs(rows: Rows, states: Tensor) -> Tensor:
        index = torch.cat([some for _, some in rows])
        model.kwargs = rows_at(arguments, index)
        return model.evaluate(states, torch.cat([at[k][: len(some)] for k, some in rows]))

    def on_evaluation(k: int, state: Tensor, kept: Tensor) -> None:
        if on_output is not None and has_scalar_marginal(model.sde):
            on_output(state, frozen[k].output(state, kept), ts[k])

    given = model.kwargs
    most = max(len(called), 1)
    try:
        return picard(
            program,
            x,
            outputs,
            noise,
            frozen,
            scales,
            window=min(window, most),
            tolerance=tolerance,
            on_node=on_node,
            on_evaluation=on_evaluation,
        )
    finally:
        model.kwargs = given


def _frozen(program: Program, model: BoundScore) -> tuple[Sequence[Frozen], Sequence[float]]:
    """By stage, what is kept of an evaluation, and the size of a state of standard data."""
    sde = model.sde
    source = sde.evaluated(model.score.prediction, program.prediction)
    nodes = sde.nodes([stage.t for stage in program.stages])

    def conversions(target: str, eta: float = 0.0, sigma_data: float = 1.0) -> list[tuple[Any, Any]]:
        """Of each stage, the coefficients of state and output; those of the output itself where there is none."""
        return [
            checked_conversion(source, target, node, eta, sigma_data) if stage.evaluate else (0.0, 1.0)
            for stage, node in zip(program.stages, nodes, strict=True)
        ]

    asked = conversions(program.prediction, program.eta, program.sigma_data)
    itself = [Frozen.evaluation(*c) for c in asked]
    if not has_scalar_marginal(sde):
        return itself, [1.0] * len(nodes)

    scales = [math.hypot(node.alpha, node.sigma) for node in nodes]
    try:
        vs = conversions("v")
    except ValueError:  # not determined at alpha = 0 by a network that predicts noise
        return itself, scales

    # v in units of the state's size, so that it may be held across stages whose sizes differ.
    scaled = [(f_x / s, f_r / s) for (f_x, f_r), s in zip(vs, scales, strict=True)]
    predictions = [Frozen.prediction(*c, *f) for c, f in zip(asked, scaled, strict=True)]
    return predictions, scales
