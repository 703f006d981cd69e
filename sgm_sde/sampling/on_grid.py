"""The run of a solver on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.autograd import is_transformed
from sgm_sde._utils.shapes import finite
from sgm_sde.engine.brownian import PathNoise
from sgm_sde.engine.executor import Hook, Position, Run, execute
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.engine.program import Program
from sgm_sde.sampling.compiled import replay
from sgm_sde.sampling.diagnosis import strange_starts
from sgm_sde.sampling.job import Job, until_node
from sgm_sde.sampling.observers import Monitor, node_to_stop_at, observed_nodes, progress_bar
from sgm_sde.sampling.options import Execution, Record
from sgm_sde.sampling.parallel import run_in_parallel
from sgm_sde.sampling.parts import Joined, Part, WatchInBlocks, models_of, slices_of
from sgm_sde.sampling.results import Continuation, SampleResult
from sgm_sde.sampling.statuses import status_on_grid
from sgm_sde.schemes import Solver
from sgm_sde.scores.model import BoundScore


def run_on_grid(
    job: Job, model: BoundScore, record: Record, execution: Execution
) -> tuple[SampleResult, type[Warning] | None]:
    """The result of a run on a grid, and what to warn of."""
    slices = slices_of(job.size, execution.batch_size)
    models = models_of(model, slices, job.size)
    steps = job.grid.steps - job.first
    nodes, keep_end = observed_nodes(record.trajectory, job.grid, job.denoises, job.solver.ends_in_data)
    stop = node_to_stop_at(execution.until, job.grid, job.first)

    joined = Joined(job.size)
    parts: list[Part] = []
    with progress_bar(record.progress, steps * len(slices), job.solver.name, "step") as advance:
        for at, part_model in zip(slices, models, strict=True):
            monitor = Monitor(job.grid, part_model, record, advance, nodes, keep_end, stop)
            part_of_run = _PartOfRun(job, part_model, at, monitor, execution)
            part, x = part_of_run.run()
            parts.append(part)
            joined.put(at, x)

    return _result(job, parts, joined.whole, stop)


def _result(job: Job, parts: Sequence[Part], x: Tensor, stop: int | None) -> tuple[SampleResult, type[Warning] | None]:
    """The result of all parts, whose samples are x, and what to warn of."""
    reached = parts[0].nodes - 1
    stopped = ""
    if reached < job.grid.steps:
        stopped = "stopped as until= asks" if reached == stop else "stopped by the callback"

    misses = job.name if job.misses_gaussians else ""
    status, category = status_on_grid(parts, job.grid, stopped, job.sde, misses)
    trajectory, times = _trajectory(parts, job.dtype)
    result = SampleResult(
        x.to(job.dtype),
        max(part.nfe for part in parts),
        job.grid.times,
        status,
        trajectory,
        times,
        job.seeds,
        sum(part.network_evals for part in parts),
        continuation=_continuation(job, parts, x),
    )
    return result, category


def _trajectory(parts: Sequence[Part], dtype: torch.dtype) -> tuple[Tensor | None, tuple[float, ...]]:
    """The states on the way of all samples, (times, B, *), or None, and their times."""
    _, times = parts[0].trajectory
    if not times:
        return None, ()
    of_parts = [torch.stack(part.trajectory[0]).to(dtype) for part in parts]
    return torch.cat(of_parts, 1), tuple(times)


def _continuation(job: Job, parts: Sequence[Part], x: Tensor) -> Continuation | None:
    """The run where it was stopped, or at an end that is a state of the process; None if it cannot be resumed."""
    position = _together([part.position for part in parts])
    complete = parts[0].nodes > job.grid.steps
    if position is None and complete and job.final == "none":
        position = Position(job.grid.steps, x.to(job.state_dtype))
    return None if position is None else job.continuation(position, parts[0].draws)


@dataclass(frozen=True)
class _PartOfRun:
    """The run of some of the samples: its part `at` of the run of all, with their arguments in the network's model."""

    job: Job
    model: BoundScore
    at: slice
    monitor: Monitor
    execution: Execution

    @property
    def program(self) -> Program:
        """The table."""
        assert self.job.program is not None
        return self.job.program

    @property
    def position(self) -> Position | None:
        """Position that the run continues from, None at its start."""
        return None if self.job.position is None else _some(self.job.position, self.at)

    def run(self) -> tuple[Part, Tensor]:
        """By-products of the run, and the samples."""
        job = self.job
        assert isinstance(job.solver, Solver)
        x = job.states(self.at)
        noise, corrections, hooks = self._noises(self.model, x)
        watch = job.watch(self.model.score, x)

        run = self._executed(x, noise, hooks, watch)
        end = run.x
        if run.position is not None:
            end = end.clone()  # the other is what a later run continues from
        elif job.denoises:
            end = self.model.predict("data", end, job.grid.times[-1])
        self.monitor.finish(end)

        sound = starts = None
        if not (end.is_meta or is_transformed()):
            sound, starts = self._seen(run.x, end, watch)

        drawn = job.draws[0] if isinstance(noise, PathNoise) else noise.draw
        part = Part(
            sound=sound,
            starts=starts,
            nodes=run.nodes,
            first_bad=self._first_bad,
            trajectory=(self.monitor.states, self.monitor.times),
            position=run.position,
            draws=(drawn, corrections.draw),
            nfe=self.model.nfe,
            network_evals=self.model.network_evals,
        )
        return part, end

    def _seen(self, last: Tensor, end: Tensor, watch: WatchInBlocks) -> tuple[np.ndarray, np.ndarray | None]:
        """A part's `sound` and `starts`: the one place where values come back from the device."""
        job = self.job
        whole = finite(end)
        before = whole if end is last else finite(last)
        seen = [before, whole, watch.implausible(end, denoised=job.denoises or job.solver.ends_in_data)]
        if job.start is None:
            return torch.stack(seen).numpy(force=True), None

        sizes = strange_starts(job.start(self.at), end, job.sde)
        values = torch.stack([*(mask.to(sizes.dtype) for mask in seen), sizes]).numpy(force=True)
        return values[:3].astype(bool), values[3]

    def _executed(self, x: Tensor, noise: NoiseStream | PathNoise, hooks: Sequence[Hook], watch: WatchInBlocks) -> Run:
        """The run of the table: in parallel in time, as a recorded graph, or step by step."""
        execution = self.execution
        monitor = self.monitor
        on_node = monitor.on_node if monitor.looks_on else None

        def see_both(x: Tensor, output: Tensor, t: float) -> None:
            watch.see(x, output, t)
            monitor.on_output(x, output, t)

        on_output = see_both if monitor.looks_on else watch.see
        if is_transformed():
            on_output = monitor.on_output

        if execution.parallel is not None and len(x):
            return run_in_parallel(
                self.program,
                x,
                self.model,
                noise,
                window=execution.parallel,
                tolerance=execution.tolerance or 0.0,
                on_node=on_node,
                on_output=on_output,
            )

        alone = not (hooks or monitor.looks_on or self.position)  # nothing but the network is called on the way
        if execution.compile and x.is_cuda and self.model.score.recordable and alone:
            return replay(self.program, x, self.model, noise, self.model.kwargs)

        return execute(
            self.program,
            x,
            self.model,
            noise,
            hooks=hooks,
            on_node=on_node,
            on_output=on_output,
            grad=execution.enable_grad,
            start=self.position,
            own=self.job.fresh,
        )

    def _noises(self, model: BoundScore, x: Tensor) -> tuple[NoiseStream | PathNoise, NoiseStream, Sequence[Hook]]:
        """The noise of the steps, that of the correctors, and what runs at the nodes."""
        noise, corrections, hooks = self.job.noises(self.at, model)
        if isinstance(noise, PathNoise) and self.position is not None:
            for _ in range(_drawn(self.program, self.position.node)):  # a path is followed from its start
                noise.normal(tuple(x.shape), x.dtype, x.device)
        return noise, corrections, hooks

    def _first_bad(self) -> int | None:
        """The first node at which a state is not finite, by running again; None if there is none."""
        model = self.model.with_kwargs(self.model.kwargs)
        position = self.position
        x = self.job.states(self.at) if position is None else position.x
        noise, _, hooks = self._noises(model, x)

        def is_bad(i: int, state: Tensor) -> bool:
            return not finite(state).all()

        with torch.no_grad():
            run = execute(self.program, x, model, noise, hooks=hooks, on_node=is_bad, start=position)
        return None if finite(run.x).all() else run.nodes - 1


def _some(position: Position, at: slice) -> Position:
    """The restriction to some of the samples."""
    history = {key: (scale, value[at]) for key, (scale, value) in position.history.items()}
    return Position(position.node, position.x[at], history)


def _together(positions: Sequence[Position | None]) -> Position | None:
    """One position of all samples from those of all parts; None if the run was not stopped."""
    known = [position for position in positions if position is not None]
    if len(known) < 2:
        return known[0] if known else None

    first = known[0]
    history = {}
    for key, (scale, _) in first.history.items():
        values = [position.history[key][1] for position in known]
        history[key] = scale, torch.cat(values)
    return Position(first.node, torch.cat([position.x for position in known]), history)


def _drawn(program: Program, node: int) -> int:
    """Number of noises that a table has drawn on reaching a node."""
    return len({m for k in until_node(program, node) for m, _ in program.stages[k].noises})
