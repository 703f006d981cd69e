"""The run of a solver that finds its own steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer
from sgm_sde._utils.shapes import finite
from sgm_sde._utils.warn import warn
from sgm_sde.engine.adaptive import COMPLETED, NOT_FINITE, Integration
from sgm_sde.sampling.diagnosis import ImplausibleWarning, Watch
from sgm_sde.sampling.job import Job
from sgm_sde.sampling.observers import progress_bar
from sgm_sde.sampling.options import Execution, Record
from sgm_sde.sampling.parts import Joined, models_of
from sgm_sde.sampling.planning import too_small
from sgm_sde.sampling.results import AdaptiveStats, SampleResult
from sgm_sde.sampling.statuses import NonFiniteWarning, UnfinishedWarning, adaptive_status, plausibility
from sgm_sde.schemes import AdaptiveSolver
from sgm_sde.schemes.base import Problem
from sgm_sde.scores.model import BoundScore


def run_adaptive(
    job: Job, model: BoundScore, nfe: int | None, steps: int | None, record: Record, execution: Execution
) -> tuple[SampleResult, type[Warning] | None]:
    """The result of a solver that finds its own steps, and what to warn of."""
    calls = _calls_of_adaptive(job, model, nfe)
    at = job.parts(execution.batch_size)
    t_start, t_end = job.grid.times
    joined = Joined(job.size)
    found: list[Integration] = []
    odd: list[np.ndarray] = []
    models: list[BoundScore] = []

    with progress_bar(record.progress, job.size, job.solver.name, "sample") as advance:
        on_leave = advance if record.progress else None
        for where, mine in zip(at, models_of(model, at, job.size), strict=True):
            start = job.states(where)
            watch = Watch(job.sde, job.grid.times, model.score.prediction, start)
            problem = Problem(mine, job.sde, start, t_start, t_end, job.seeds[where], calls, steps, on_leave)
            end, x = _integrate(job, problem)

            models.append(mine)
            found.append(end)
            joined.put(where, x)
            if not x.is_meta:
                odd.append(watch.implausible(x, denoised=job.final == "denoise").cpu().numpy())

    control = _statistics(found)
    not_finite = {
        where.start + i: time for where, end in zip(at, found, strict=True) for i, time in end.not_finite.items()
    }
    status = adaptive_status(control.outcome, control.times, t_end, not_finite)
    if status.ok and odd:
        status = plausibility(np.concatenate(odd))
    result = SampleResult(
        joined.whole.to(job.dtype),
        max(mine.nfe for mine in models),
        job.grid.times,
        status,
        seeds=job.seeds,
        network_evals=sum(mine.network_evals for mine in models),
        control=control,
    )

    if status.ok:
        return result, None
    if status.time is None:
        return result, ImplausibleWarning
    return result, NonFiniteWarning if NOT_FINITE in control.outcome else UnfinishedWarning


def _statistics(found: Sequence[Integration]) -> AdaptiveStats:
    """Statistics of step control for each sample of all parts."""
    return AdaptiveStats(
        tuple(itertools.chain.from_iterable(end.outcome for end in found)),
        torch.cat([end.t for end in found]),
        torch.cat([end.accepted for end in found]),
        torch.cat([end.rejected for end in found]),
        torch.cat([end.evaluations for end in found]),
    )


def _calls_of_adaptive(job: Job, model: BoundScore, nfe: int | None) -> int | None:
    """The calls that a solver may make before the denoising, after a look at whether samples may leave the batch."""
    solver = job.solver
    assert isinstance(solver, AdaptiveSolver)
    if isinstance(model.score.net, torch.nn.parallel.DistributedDataParallel):
        warn(
            "the network is wrapped for distributed training, where every process must call it as often as the others, "
            "and an adaptive solver does not: pass net.module",
        )
    model.resolved(job.size)  # samples leave the batch: now is the time to say what cannot be known then
    if nfe is None:
        return None

    denoise = job.final == "denoise"
    calls = check_integer("nfe", nfe) - denoise
    if calls < solver.least_calls:
        raise too_small(nfe, f"the first step of {solver.name}", solver.least_calls, denoise)
    return calls


def _integrate(job: Job, problem: Problem) -> tuple[Integration, Tensor]:
    """The run of some samples, without its states, and these, denoised where they arrived."""
    assert isinstance(job.solver, AdaptiveSolver)
    end = job.solver.run(problem)
    (x,) = end.y
    arrived = end.completed.nonzero().flatten().to(x.device)
    if job.final == "denoise" and len(arrived):
        with problem.model.only(arrived, len(x)):
            data = problem.model.predict("data", x[arrived], problem.end)
        x = x.index_copy(0, arrived, data)

    # A sample that arrived, but not as a number, did not complete.
    known = finite(x)
    outcome = end.outcome
    if not known.all():
        pairs = zip(outcome, known.tolist(), strict=True)
        outcome = tuple(NOT_FINITE if o == COMPLETED and not ok else o for o, ok in pairs)
    return replace(end, y=(), outcome=outcome), x
