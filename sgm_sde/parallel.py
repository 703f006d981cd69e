"""`sample_in_parallel`: a run whose network calls are made some at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgm_sde._autograd import outside_inference_mode
from sgm_sde._checks import check_integer, number
from sgm_sde._shapes import finite
from sgm_sde.defaults import Setting
from sgm_sde.engine.noise import Generators, Seeds
from sgm_sde.engine.parallel import picard
from sgm_sde.engine.program import Program
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.grids import Grid, GridRule
from sgm_sde.processes.base import SDE, has_scalar_marginal
from sgm_sde.processes.matrix import apply
from sgm_sde.sampling import NonFiniteWarning, _begun
from sgm_sde.schemes import AdaptiveSolver, Solver
from sgm_sde.scores.conditions import map_rows, require_rows
from sgm_sde.scores.model import BoundScore, checked_conversion
from sgm_sde.scores.score import as_score


@dataclass(frozen=True)
class ParallelResult:
    """Samples of a run in parallel, and what it took.

    Attributes:
        x: samples (B, *).
        rounds: network calls one after the other, that of `final="denoise"` included.
        network_evals: samples that the network has seen in them.
        sequential: network calls of the sequential run.
        times: the grid's times, decreasing.
        ok: whether all samples are finite.
        seeds: the (seed, index) pair of each sample.
    """

    x: Tensor = field(repr=False)
    rounds: int
    network_evals: int
    sequential: int
    times: tuple[float, ...] = field(repr=False)
    ok: bool
    seeds: Sequence[tuple[int, int]] = field(default=(), repr=False)


@outside_inference_mode
def sample_in_parallel(
    score_fn: ScoreFn,
    sde: SDE,
    shape: Sequence[int] | None = None,
    *,
    x_T: Tensor | None = None,
    window: int = 8,
    tolerance: float = 1e-4,
    solver: Solver | Setting | str | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    grid: Grid | GridRule | str | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    final: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ParallelResult:
    r"""The samples of `sample` with fewer network calls one after the other, each on a larger batch.

    A window of evaluations is made in one call of `window` times as many rows, at states that follow from the
    evaluations known so far; then the states are computed anew, and the window moves to the first whose state still
    changed by more than the tolerance (Picard iteration). One evaluation at least is done in a round, so that it never
    takes more rounds than the sequential run takes calls; the limit is that run, for every solver on a grid, with the
    same noise from the same seed.

    For networks that one batch does not saturate: time falls with `rounds`, work grows with `network_evals`.
    Samples agree with the sequential ones to about the tolerance times the number of steps, and those of one batch
    decide together how far a round gets.

    Args:
        score_fn: the score; as `sample` takes it, like all other arguments that are not named here.
        sde: the forward process.
        shape: (B, *) of the samples; or give `x_T`.
        x_T: the states (B, *) to start from.
        window: network evaluations in a round, at most.
        tolerance: root mean square of a sample's change in a round from which on an evaluation counts as converged, in
            units of $\sqrt{\alpha^2 + \sigma^2}$. With 0 only what is exact counts.
        solver: a solver on a grid, by default that of `default_setting`.
        nfe: budget of network calls of the sequential run.
        steps: number of steps, instead of `nfe`.
        grid: a rule or times.
        t_start: where to start.
        t_end: where to end.
        seed: of the noise.
        generator: instead of `seed`.
        final: `"denoise"`, `"mean"` or `"none"`.
        model_kwargs: passed on to the network; arguments of one row per sample are repeated with their samples, and
            named as such like in `sample`.
        dtype: of the samples if `shape` is given.
        device: of the samples if `shape` is given.

    Raises:
        TypeError: for a solver that finds its own steps.
        ValueError: for arguments out of range, and a solver that evaluates the network between two steps.

    Warns:
        NonFiniteWarning: if a sample is infinite or NaN.

    Source: Shih et al., 2023, arXiv:2305.16317 (ParaDiGMS).

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1).score(sde)
        >>> run = sample_in_parallel(score, sde, (64, 1), solver="ddim", nfe=100, window=25, tolerance=1e-3, seed=0)
        >>> same = sg.sample(score, sde, (64, 1), solver="ddim", nfe=100, seed=0).x
        >>> run.rounds < 50, bool((run.x - same).abs().max() < 1e-2)
        (True, True)
    """
    score = as_score(score_fn, sde)
    window = check_integer("window", window)
    tolerance = number("tolerance", tolerance, least=0)
    job = _begun(
        score, sde, shape, x_T, solver, nfe, steps, grid, t_start, t_end, seed, generator, None, final, dtype, device
    )
    if isinstance(job.solver, AdaptiveSolver) or job.program is None:
        raise TypeError(f"{job.solver.name} finds its own steps, and a solver on a grid is needed here")
    program, everyone = job.program, slice(0, job.size)
    if score.dtype is None and job.dtype != job.state_dtype:
        score = score.cast_to(job.dtype)
    times = program.times
    model = BoundScore(score, sde, (times[-1], times[0]), model_kwargs)
    require_rows(model.kwargs, job.size)
    noise, _, hooks = job.noises(everyone, model)
    if hooks:
        raise ValueError(
            f"{job.solver.name} moves states between its steps by what the network says there, which no table holds: "
            f"use sample()"
        )

    x = job.states(everyone)
    resolved = model.resolved(job.size)
    model.plan(program)  # says what the network's prediction does not determine
    at = model.times([stage.t for stage in program.stages], x)
    evaluated = sde.evaluated(score.prediction, program.prediction)
    nodes = sde.nodes([stage.t for stage in program.stages])

    def evaluate(stages: Sequence[int], states: Tensor) -> Tensor:
        w = len(stages)
        flat = states.reshape(-1, *states.shape[2:])
        model.kwargs = map_rows(lambda _, rows: rows.repeat(w, *[1] * (rows.ndim - 1)), resolved) if w > 1 else resolved
        out = model.evaluate(flat, torch.cat([at[k] for k in stages])).to(states.dtype).reshape(states.shape)
        parts = []
        for k, state, value in zip(stages, states, out, strict=True):
            c_x, c_r = checked_conversion(evaluated, program.prediction, nodes[k], program.eta, program.sigma_data)
            parts.append(apply(c_x, state) + apply(c_r, value))
        return torch.stack(parts)

    with torch.no_grad():
        scales = _scales(sde, program)
        end, rounds = picard(program, x, evaluate, noise, scales, window=window, tolerance=tolerance)
        model.kwargs = resolved
        if job.denoises:
            end = model.predict("data", end, times[-1])
            rounds += 1
    fine = finite(end)
    ok = end.is_meta or bool(fine.all())
    if not ok:
        bad = (~fine).nonzero().flatten().tolist()
        warnings.warn(
            f"{len(bad)} of {job.size} samples are not finite ({', '.join(map(str, bad[:8]))})",
            NonFiniteWarning,
            stacklevel=3,
        )
    calls = program.nfe + job.denoises
    return ParallelResult(end.to(job.dtype), rounds, model.network_evals, calls, times, ok, job.seeds)


def _scales(sde: SDE, program: Program) -> list[float]:
    """The size of a state of standard data at each stage; 1 where the process has no numbers alpha and sigma."""
    if not has_scalar_marginal(sde):
        return [1.0] * len(program.stages)
    return [math.hypot(node.alpha, node.sigma) for node in sde.nodes([stage.t for stage in program.stages])]
