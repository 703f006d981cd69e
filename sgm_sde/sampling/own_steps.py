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
from sgm_sde.sampling.diagnosis import strange_starts
from sgm_sde.sampling.job import Job
from sgm_sde.sampling.observers import progress_bar
from sgm_sde.sampling.options import Execution, Record
from sgm_sde.sampling.parts import Joined, models_of, slices_of
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
    slices = slices_of(job.size, execution.batch_size)
    t_start, t_end = job.grid.times
    joined = Joined(job.size)
    models: list[BoundScore] = []
    parts: list[Integration] = []
    implausible: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    not_finite: dict[int, float] = {}

    with progress_bar(record.progress, job.size, job.solver.name, "sample") as advance:
        on_leave = advance if record.progress else None
        for at, part_model in zip(slices, models_of(model, slices, job.size), strict=True):
            start = job.states(at)
            watch = job.watch(model.score, start)
            problem = Problem(part_model, job.sde, start, t_start, t_end, job.seeds[at], calls, steps, on_leave)
            part, x = _integrate(job, problem)

            models.append(part_model)
            parts.append(part)
            joined.put(at, x)
            for i, t in part.not_finite.items():
                not_finite[at.start + i] = t
            if not x.is_meta:
                mask = watch.implausible(x, denoised=job.final == "denoise")
                implausible.append(mask.cpu().numpy())
                if job.start is not None:
                    starts.append(strange_starts(job.start(at), x, job.sde).numpy(force=True))

    control = _statistics(parts)
    status = adaptive_status(control.outcome, control.times, t_end, not_finite)
    category: type[Warning] | None = None
    if not status.ok:
        category = NonFiniteWarning if NOT_FINITE in control.outcome else UnfinishedWarning
    elif implausible:
        status, category = plausibility(
            np.concatenate(implausible), np.concatenate(starts) if starts else None, job.sde
        )
    result = SampleResult(
        joined.whole.to(job.dtype),
        max(part_model.nfe for part_model in models),
        job.grid.times,
        status,
        seeds=job.seeds,
        network_evals=sum(part_model.network_evals for part_model in models),
        control=control,
    )
    return result, category


def _statistics(parts: Sequence[Integration]) -> AdaptiveStats:
    """Statistics of step control for each sample of all parts."""
    return AdaptiveStats(
        tuple(itertools.chain.from_iterable(part.outcome for part in parts)),
        torch.cat([part.t for part in parts]),
        torch.cat([part.accepted for part in parts]),
        torch.cat([part.rejected for part in parts]),
        torch.cat([part.evaluations for part in parts]),
    )


def _calls_of_adaptive(job: Job, model: BoundScore, nfe: int | None) -> int | None:
    """The calls that a solver may make before the denoising, after a look at whether samples may leave the batch."""
    if isinstance(model.score.net, torch.nn.parallel.DistributedDataParallel):
        warn(
            "the network is wrapped for distributed training, where every process must call it as often as the others, "
            "and an adaptive solver does not: pass net.module",
        )
    model.resolved(job.size)  # samples leave the batch: now is the time to say what cannot be known then
    return None if nfe is None else check_integer("nfe", nfe) - (job.final == "denoise")


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
    return replace(end, y=(), outcome=_checked(end.outcome, x)), x


def _checked(outcome: tuple[str, ...], x: Tensor) -> tuple[str, ...]:
    """The outcomes, where a sample that arrived, but is not finite, did not complete."""
    bad = ~finite(x)
    if not bad.any():
        return outcome
    checked = list(outcome)
    for i in bad.nonzero().flatten().tolist():
        checked[i] = NOT_FINITE if outcome[i] == COMPLETED else outcome[i]
    return tuple(checked)
