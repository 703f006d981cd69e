"""`sample`: from a score function to samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sgm_sde import grids
from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.checks import (
    arguments,
    check_integer,
    float_dtype,
    instance_of,
    moment,
    one_of,
    require_floating,
    shape_of_samples,
    usable_device,
)
from sgm_sde._utils.checks import described as shown
from sgm_sde._utils.shapes import finite
from sgm_sde._utils.tree import Conditions
from sgm_sde._utils.warn import warn
from sgm_sde.engine.adaptive import (
    COMPLETED,
    GIVEN_UP,
    NOT_FINITE,
    OUT_OF_STEPS,
    STEP_TOO_SMALL,
    Integration,
)  # fmt: skip
from sgm_sde.engine.brownian import PathNoise
from sgm_sde.engine.executor import Hook, Position, Run, execute, missing
from sgm_sde.engine.noise import Generators, NoiseStream, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.program import Program
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.engine.status import Status
from sgm_sde.engine.times import same_time
from sgm_sde.grids import Grid, GridRule, TokenGrid
from sgm_sde.likelihood import along
from sgm_sde.likelihood.methods import TRACES, Trace
from sgm_sde.processes.base import SDE, has_scalar_marginal, require_sde
from sgm_sde.sampling.compiled import compile_network, replay
from sgm_sde.sampling.defaults import Setting, default_final, default_setting
from sgm_sde.sampling.diagnosis import ADVICE, ImplausibleWarning, Watch, described
from sgm_sde.sampling.options import Execution, Record, StepInfo
from sgm_sde.sampling.parallel import run_in_parallel
from sgm_sde.sampling.results import AdaptiveStats, Continuation, SampleResult
from sgm_sde.sampling.tokens import sample_tokens
from sgm_sde.schemes import AdaptiveSolver, Solver, resolve_any
from sgm_sde.schemes.base import Problem
from sgm_sde.scores.conditions import map_rows, require_rows
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score, as_score

DEFAULT_NFE = 50
FINALS = ("denoise", "mean", "none")
NOISES = ("independent", "path")
SHOWN_REASONS = 4  # of samples that stopped early, in the status' text


class NonFiniteWarning(UserWarning):
    """A state became infinite or NaN; the result's status says when, and in which samples."""


class UnfinishedWarning(UserWarning):
    """Some samples stopped before the end; the result's status says which, where and why."""


@outside_inference_mode
def sample(
    score_fn: ScoreFn,
    sde: SDE,
    shape: Sequence[int] | None = None,
    *,
    x_T: Tensor | None = None,
    solver: Solver | AdaptiveSolver | Setting | str | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    grid: Grid | GridRule | TokenGrid | str | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    noise: str | None = None,
    final: str | None = None,
    model_kwargs: Conditions | None = None,
    dtype: torch.dtype | None = None,
    record: Record | None = None,
    execution: Execution | None = None,
    resume: SampleResult | None = None,
    log_prob: bool | str | Trace = False,
) -> SampleResult:
    r"""Draw samples by running the reverse process from noise at `sde.T` to data.

    Sample i depends on its own seed, the network and the settings, and on nothing else. Nothing is clipped or
    rescaled: samples come out in the range the network was trained on. The global random state, the network's
    train/eval mode and anyone's `requires_grad` are left alone.

    States are looked at once, at the end. Where one is infinite or NaN there, the run is repeated from the same seeds
    up to the first step that made it so, and the status names it; the calls of that second run are not in `nfe`. The
    status also names samples of a size that the noise and the network's own estimates along the way do not account for.

    A run on a grid that was stopped, by `Execution(until=...)` or a callback, is resumed by `resume=`, to the bit as if
    it had not been stopped, multistep methods and correctors included. Another network may go on, and `solver`, the
    steps from there (`nfe`, `steps`, `grid`, `t_end`), `noise` and `final` may be given anew. The noise goes on where
    it was. A multistep method keeps its history of evaluations, whichever network made them; another method
    starts without one, and so does a run that had reached its end. Solvers that find their own steps are refused.

    Args:
        score_fn: the score, `score_fn(x, t, **kwargs)` with x (B, *), t (B,); or what `from_noise`,
            `from_denoiser`, `from_v` or `from_flow` made of a network.
        sde: the forward process.
        shape: (B, *) of the samples; or give `x_T`.
        x_T: the states (B, *) to start from, instead of prior samples. bfloat16 and float16 are integrated in
            float32 and returned as they came.
        solver: a name from `solvers()`, a `Solver`, or a `Setting`, which brings its grid along, such as `pilot` finds;
            an adaptive solver, or `"library:method"` for torchdiffeq, torchsde and SciPy: they find their own steps. By
            default that of `default_setting`, which depends on the process and the budget.
        nfe: budget of network calls, final one included, never exceeded. Default 50; none for adaptive solvers, whose
            samples stop where they are when it is spent, and the status says so.
        steps: number of steps, instead of `nfe`.
        grid: a rule (`grids.Karras()`, or a name such as "log-snr") that places the steps, or the times
            themselves (then neither `nfe` nor `steps`), or a `grids.TokenGrid` of times for each token, frame or pixel.
            By default that of the setting, or the solver's `default_grid`, which `solvers()` shows.
        t_start: where to start, default `sde.T`, unless the grid rule chooses, as `grids.Widening` does; then `x_T` is
            still the state at `sde.T`. Below T, give the noised data as `x_T`.
        t_end: where to end, default `sde.eps`; with `final="denoise"` a rule may choose an earlier end.
        seed: one int for the batch, or one per sample: an int, or a pair (seed, index) as in a result's `seeds`.
        generator: one `torch.Generator`, from which one seed is drawn for the batch, or one for each sample; instead
            of `seed`.
        noise: of a stochastic solver on a grid: "independent" draws at each step, which is the default, or "path",
            increments of one Brownian path per sample, so that 20 and 40 steps see the same noise; for solvers with one
            noise per step.
        final: what to return at the end: "denoise", Tweedie's estimate of the data, one network call (default for
            linear processes); "mean", the last state without the noise its last update added (default for others);
            "none", the last state.
        model_kwargs: passed on to the network at each call. A condition of one row per sample that nothing else names
            as one is `sg.PerSample(y)`, a tensor that is the same for all `sg.Shared(table)`, nested ones too; where
            samples leave the batch or guidance doubles it, a tensor that may be either is an error.
        dtype: of the samples if `shape` is given; torch's default if not given.
        record: what is kept or shown on the way: `Record(trajectory=..., callback=..., progress=...)`.
        execution: how the run is carried out: `Execution(batch_size=..., until=..., compile=..., enable_grad=...,
            device=..., parallel=..., tolerance=...)`.
        resume: a result to go on from, which brings its states, seeds and dtype.
        log_prob: whether the samples' log-density under the probability flow at `t_end` is found in the same network
            calls and one more, for deterministic solvers on a grid and with `final="none"`; or its trace, as
            `sg.log_prob` takes it.

    Returns:
        a `SampleResult`.

    Raises:
        ValueError: for arguments out of range, unknown names, or a network output of the wrong shape.
        TypeError: for arguments of the wrong type, or a solver that the process does not allow.

    Warns:
        NonFiniteWarning: if a state became infinite or NaN.
        ImplausibleWarning: if samples are of a size that nothing in the run accounts for.
        UnfinishedWarning: if an adaptive solver ran out of steps or calls.
        BatchCoupledWarning: if a backend takes one step size for a batch.
        LangevinNormWarning: if Langevin's step comes from norms of few numbers.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(3), 0.25).score(sde)
        >>> res = sg.sample(score, sde, shape=(64, 3), solver="dpm++2m", nfe=20, seed=0)
        >>> res.nfe, res.status.ok
        (20, True)
    """
    score = as_score(score_fn, sde)
    given_record = record
    record = _option("record", record, Record)
    execution = _option("execution", execution, Execution)
    model_kwargs = arguments("model_kwargs", model_kwargs)
    if noise is not None:
        one_of("noise", noise, NOISES)
    if isinstance(log_prob, str):
        one_of("log_prob", log_prob, tuple(TRACES))
    else:
        instance_of("log_prob", log_prob, bool | Trace, "True, False, or a trace such as Exact()")
    if isinstance(grid, TokenGrid):
        fixed: dict[str, object] = {
            "nfe": nfe,
            "steps": steps,
            "t_start": t_start,
            "t_end": t_end,
            "noise": noise,
            "resume": resume,
        }
        fixed["log_prob"] = log_prob or None
        _require_plain(fixed, record, execution)
        tokens = sample_tokens(
            score, sde, grid, shape=shape, x_T=x_T, solver=solver, seed=seed, generator=generator,
            final=_final(sde, final), model_kwargs=model_kwargs, dtype=dtype, device=execution.device,
        )  # fmt: skip
        if not tokens.status:
            warn(tokens.status.message, NonFiniteWarning)
        return tokens

    if log_prob is not False:
        others = {
            "resume": resume,
            "t_start": t_start,
            "noise": noise,
            "record": given_record,
            "batch_size": execution.batch_size,
        }
        others |= {"until": execution.until, "compile": execution.compile or None, "parallel": execution.parallel}
        budget = DEFAULT_NFE if nfe is None else nfe
        by_rule = grid is None or isinstance(grid, GridRule | str)
        nfe, final = along.solver_arguments(budget, nfe is None and not (by_rule and steps is None), final, others)

    if resume is None:
        job = _new_job(
            score, sde, shape, x_T, solver, nfe, steps, grid, t_start, t_end, seed, generator, noise, final, dtype,
            execution.device,
        )  # fmt: skip
    else:
        given = {"shape": shape, "x_T": x_T, "t_start": t_start, "seed": seed, "generator": generator, "dtype": dtype}
        for name, value in (given | {"device": execution.device}).items():
            if value is not None:
                raise ValueError(f"resume= brings its states, time, seeds and dtype: leave out {name}={shown(value)}")
        job = _resumed_job(resume, sde, solver, nfe, steps, grid, t_end, noise, final)
    _require_applicable(job, record, execution, noise)

    if score.dtype is None and job.dtype != job.state_dtype:
        score = score.cast_to(job.dtype)
    if execution.compile:
        score = compile_network(score)
    if log_prob is not False:
        return _with_log_prob(job, score, log_prob, model_kwargs, execution.enable_grad, by_rule)
    model = BoundScore(score, sde, (job.grid.times[-1], job.grid.times[0]), model_kwargs)
    require_rows(model.kwargs, job.size)
    if job.position is not None and job.program is not None and missing(model.plan(job.program), job.position):
        job = job.without_history()

    with torch.set_grad_enabled(execution.enable_grad):
        if job.program is None:
            result, category = _run_adaptive(job, model, nfe, steps, record, execution)
        else:
            result, category = _run_on_grid(job, model, record, execution)
    if category is not None:
        advice = f": {ADVICE}" if category is ImplausibleWarning else ""
        warn(f"{result.status.message}{advice}", category)
    return result


@outside_inference_mode
def _with_log_prob(
    job: _Job,
    score: Score,
    trace: bool | str | Trace,
    model_kwargs: Conditions,
    enable_grad: bool,
    by_rule: bool,
) -> SampleResult:
    """The result of a run along the flow, with the samples' log-density."""
    along.require_flow(job.sde, job.solver, job.program, job.grid.times, by_rule)
    sde = job.sde
    assert job.program is not None and has_scalar_marginal(sde)
    with torch.set_grad_enabled(enable_grad):
        x, found = along.draw_with_log_prob(
            score, sde, job.states(slice(None)), job.program, job.seeds, trace, model_kwargs
        )
    evals = found.nfe * job.size
    return SampleResult(
        x.to(job.dtype), found.nfe, job.grid.times, Status(), seeds=job.seeds, network_evals=evals, log_prob=found
    )


def plan(
    sde: SDE,
    solver: Solver | AdaptiveSolver | Setting | str | None = None,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    grid: Grid | GridRule | str | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    final: str | None = None,
) -> tuple[Solver | AdaptiveSolver, Grid, Program | None]:
    """The solver, the grid and the table that `sample` runs for the same arguments.

    A solver that finds its own steps has no table, and its grid is the two ends.

    Raises:
        ValueError: for arguments out of range or unknown names.
        TypeError: for arguments of the wrong type, or a solver that the process does not allow.

    Examples:
        >>> import sgm_sde as sg
        >>> solver, grid, program = plan(sg.VPSDE(), "heun", nfe=20)
        >>> solver.name, grid.steps, program.nfe
        ('heun', 9, 18)
    """
    final = _final(sde, final)
    t_start = None if t_start is None else moment("t_start", t_start)
    t_end = None if t_end is None else moment("t_end", t_end)

    if solver is None:
        budget = nfe if steps is None else check_integer("steps", steps) + 1
        solver = default_setting(sde, budget, t_start, t_end)
    elif isinstance(solver, Setting) and grid is not None:
        raise ValueError(f"the setting {solver} brings its own grid: give no grid= besides, or its solver alone")
    if isinstance(solver, Setting):
        grid = solver.grid if grid is None else grid
        solver = solver.solver
    else:
        solver = resolve_any(solver)

    if isinstance(solver, AdaptiveSolver):
        unused = {"grid": grid, "steps": None if solver.takes_steps else steps}
        _refuse_on_own_steps(solver, unused)
        return solver, grids.Uniform()(sde, 1, t_start, t_end), None

    solver, grid = _make_grid(sde, solver, final == "denoise", nfe, steps, grid, t_start, t_end)
    return solver, grid, _table(solver, sde, grid, final)


def _refuse_on_own_steps(solver: AdaptiveSolver, unused: Mapping[str, object]) -> None:
    """Raise ValueError for an option that a solver without a grid would not use."""
    for option, value in unused.items():
        if value is not None:
            raise ValueError(f"{option}= needs a solver on a grid, and {solver.name} finds its own steps")


def _final(sde: SDE, final: str | None) -> str:
    """Final update of a run: the given one, or the process' default."""
    require_sde(sde)
    if final is None:
        return default_final(sde)
    one_of("final", final, FINALS)
    if final == "denoise" and sde.marginal_kind == "unknown":
        raise ValueError(f"final='denoise' needs a LinearSDE, got {sde!r}; use 'mean' or 'none'")
    return final


@dataclass(frozen=True)
class _Job:
    """A run that is settled: what is run, from which states, with which noise.

    Attributes:
        sde: the process.
        solver: the solver.
        grid: the times; of a solver that finds its own steps the two ends.
        program: its table; None for a solver that finds its own steps.
        seeds: the samples'.
        dtype: of the samples.
        states: those of some samples, of the run's own precision, to start from.
        noise: "independent" or "path".
        final: what to return at the end.
        segment: the time at which the streams of noise began.
        draws: how often the solver and its correctors have drawn.
        position: where on the grid to go on from, None at its start.
        fresh: whether the states are made anew whenever they are asked for, so that a run may overwrite them.
    """

    sde: SDE
    solver: Solver | AdaptiveSolver
    grid: Grid
    program: Program | None
    seeds: SampleSeeds
    dtype: torch.dtype
    states: Callable[[slice], Tensor]
    noise: str
    final: str
    segment: float
    draws: tuple[int, int] = (0, 0)
    position: Position | None = None
    fresh: bool = False

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.seeds)

    @property
    def first(self) -> int:
        """The node that the run starts from."""
        return 0 if self.position is None else self.position.node

    @property
    def denoises(self) -> bool:
        """True if a last network call makes the sample of the last state."""
        return self.final == "denoise" and not self.solver.ends_in_data

    @property
    def state_dtype(self) -> torch.dtype:
        """The run's own precision."""
        return torch.promote_types(self.dtype, torch.float32)

    def continuation(self, position: Position, draws: tuple[int, int]) -> Continuation:
        """The state of the run at a position, after so many draws."""
        assert isinstance(self.solver, Solver) and self.program is not None
        return Continuation(
            sde=self.sde,
            solver=self.solver,
            grid=self.grid,
            position=position,
            program=self.program,
            seeds=self.seeds,
            segment=self.segment,
            draws=draws,
            noise=self.noise,
            final=self.final,
            dtype=self.dtype,
        )

    def without_history(self) -> _Job:
        """The rest of the run as one that starts where it stands."""
        rest = Grid(self.grid.times[self.first :])
        assert isinstance(self.solver, Solver)
        return replace(self, grid=rest, program=_table(self.solver, self.sde, rest, self.final), position=None)

    def parts(self, batch_size: int | None) -> list[slice]:
        """The samples in as few parts as may be."""
        size = self.size if batch_size is None else batch_size
        return [slice(i, min(i + size, self.size)) for i in range(0, self.size, size)]

    def noises(self, at: slice, model: BoundScore) -> tuple[NoiseStream | PathNoise, NoiseStream, Sequence[Hook]]:
        """For some of the samples, the noise of the steps, that of the correctors, and what runs at the nodes."""
        assert isinstance(self.solver, Solver) and self.program is not None
        seeds = self.seeds[at]
        of_solver, of_correctors = self.draws
        source: NoiseStream | PathNoise = NoiseStream(seeds, "solver", self.segment, of_solver)
        if self.noise == "path":
            source = _path(self.solver, self.program, self.sde, seeds)
        corrections = NoiseStream(seeds, "corrector", self.segment, of_correctors)
        last_without_noise = self.final == "mean" or self.solver.ends_in_data
        hooks = self.solver.hooks(self.sde, self.grid, model, corrections, mean=last_without_noise)
        return source, corrections, hooks


def _table(solver: Solver, sde: SDE, grid: Grid, final: str) -> Program:
    """The solver's table, without noise in its last update if that is to be the mean."""
    program = solver.compile(sde, grid)
    return solver.end_in_mean(program) if final == "mean" else program


Option = TypeVar("Option")


def _option(name: str, value: object, kind: type[Option]) -> Option:
    """An object of options, that of the defaults if none is given."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be sg.{kind.__name__}(...), got {shown(value)}")
    return kind() if value is None else value


def _require_applicable(job: _Job, record: Record, execution: Execution, noise: str | None) -> None:
    """Raise ValueError for an option that would do nothing."""
    if isinstance(job.solver, AdaptiveSolver):
        unused = {
            "callback": record.callback,
            "trajectory": record.trajectory,
            "until": execution.until,
            "compile": execution.compile or None,
            "noise": None if noise == "independent" else noise,
            "parallel": execution.parallel,
        }
        _refuse_on_own_steps(job.solver, unused)
    if record.callback is not None and execution.batch_size is not None:
        raise ValueError("a callback sees all samples at each step: leave out batch_size=, which runs them in parts")
    if execution.parallel is not None:
        _require_parallel(job, record)


def _require_plain(given: Mapping[str, object], record: Record, execution: Execution) -> None:
    """Raise ValueError for an option that a run with times for each token does not have."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}={shown(value)} does not go with a TokenGrid, which has all times")
    if record != Record() or execution != Execution(device=execution.device):
        raise ValueError(f"a run on a TokenGrid keeps no record and runs in one piece, got {record} and {execution}")


def _require_parallel(job: _Job, record: Record) -> None:
    """Raise ValueError for what needs one step after the other."""
    if isinstance(job.solver, Solver) and job.solver.has_hooks:
        raise ValueError(
            f"{job.solver.name} moves states between its steps by what the network says there, which no table holds: "
            f"leave out parallel="
        )
    if record.callback is not None:
        raise ValueError("a callback may stop a run between two steps, and a run in parallel makes many at once")
    if job.position is not None:
        raise ValueError("resume= takes one step after the other: leave out parallel=")


def _new_job(
    score: Score,
    sde: SDE,
    shape: Sequence[int] | None,
    x_T: Tensor | None,
    solver: Solver | AdaptiveSolver | Setting | str | None,
    nfe: int | None,
    steps: int | None,
    grid: Grid | GridRule | str | Sequence[float] | None,
    t_start: float | None,
    t_end: float | None,
    seed: Seeds,
    generator: Generators,
    noise: str | None,
    final: str | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> _Job:
    """A run from the prior or from states given.

    Where a rule has chosen the start, states given are those at T, and go there by the linear part of the flow.
    """
    final = _final(sde, final)
    by_rule = t_start is None and (grid is None or isinstance(grid, GridRule | str))  # the rule chooses the start
    solver, grid, program = plan(
        sde, solver, nfe=nfe, steps=steps, grid=grid, t_start=t_start, t_end=t_end, final=final
    )
    start = grid.times[0]

    if (shape is None) == (x_T is None):
        raise ValueError("give shape= for samples from the prior, or x_T= to start from, and not both")
    if x_T is None:
        shape = shape_of_samples("shape", shape)
        dtype, device = _dtype_and_device(score, dtype, device)
    else:
        require_floating("x_T", x_T)
        if dtype is not None or device is not None:
            raise ValueError("dtype and device follow x_T; give them with shape= only")
        shape = tuple(x_T.shape)
        dtype = x_T.dtype
        device = x_T.device

    seeds = resolve_seeds(seed, generator, shape[0])
    state_dtype = torch.promote_types(dtype, torch.float32)
    if x_T is None and start < sde.T and not by_rule:
        warn(
            f"starting at t={start:g} < T={sde.T:g} from pure noise: the marginal there contains data; "
            f"pass noised data as x_T",
        )

    def states(at: slice) -> Tensor:
        if x_T is None:
            some = seeds[at]
            z = NoiseStream(some, "prior").normal((len(some), *shape[1:]), state_dtype, device)
            return sde.prior_transform(z, start)

        x = x_T[at].to(state_dtype)
        if by_rule and start < sde.T:
            return sde.prior_transform(x / sde.prior_std, start)
        return x

    return _Job(
        sde, solver, grid, program, seeds, dtype, states, noise or "independent", final, start, fresh=x_T is None
    )


def _dtype_and_device(
    score: Score, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.dtype, torch.device | str]:
    """Of samples from the prior: those given, else torch's default dtype and the network's device."""
    dtype = float_dtype("dtype", torch.get_default_dtype() if dtype is None else dtype)
    if device is None and score.parameter is not None:
        device = score.parameter.device
    device = torch.get_default_device() if device is None else usable_device("device", device)
    return dtype, device


def _resumed_job(
    resume: SampleResult,
    sde: SDE,
    solver: Solver | AdaptiveSolver | Setting | str | None,
    nfe: int | None,
    steps: int | None,
    grid: Grid | GridRule | str | Sequence[float] | None,
    t_end: float | None,
    noise: str | None,
    final: str | None,
) -> _Job:
    """A run that resumes another."""
    known = _continuation(resume, sde)
    final = known.final if final is None else _final(sde, final)
    noise = known.noise if noise is None else noise
    position = known.position
    past = known.grid.times[: position.node + 1]
    t = known.t

    chosen = known.solver if solver is None else solver
    options = (nfe, steps, grid, t_end)
    if isinstance(chosen, Setting) or any(option is not None for option in options):
        by_rule = grid is None or isinstance(grid, GridRule | str)
        t_start = t if by_rule else None
        chosen, placed, _ = plan(
            sde, chosen, nfe=nfe, steps=steps, grid=grid, t_start=t_start, t_end=t_end, final=final
        )
        whole_grid = _continued(past, placed)
    else:
        chosen = resolve_any(chosen)
        whole_grid = known.grid
        if len(past) == len(whole_grid.times):
            raise ValueError(
                f"the run has reached the end of its grid at t={t:.6g}: give nfe=, steps=, grid= or t_end= to go on"
            )

    if isinstance(chosen, AdaptiveSolver):
        raise ValueError(
            f"resume= goes on along a grid, and {chosen.name} finds its own steps: "
            f"give it x_T=result.x and t_start={t:.6g}"
        )

    job = _Job(
        sde, chosen, whole_grid, known.program, known.seeds, known.dtype, lambda at: position.x[at], noise, final,
        known.segment, known.draws, position,
    )  # fmt: skip

    # Another method, or another way here, has no use for the history.
    future = whole_grid.times[len(past) :]
    if type(chosen) is not type(known.solver) or whole_grid.times[: len(past)] != past:
        return replace(job, grid=Grid((*past, *future))).without_history()
    program = _table(chosen, sde, whole_grid, final)
    job = replace(job, program=program)
    return job if _same_until(position.node, program, known.program) else job.without_history()


def _continued(past: tuple[float, ...], placed: Grid) -> Grid:
    """The whole grid of a run that has come along some times, and continues on others."""
    if placed.times[: len(past)] == past:
        return placed
    if same_time(placed.times[0], past[-1]):
        return Grid((*past, *placed.times[1:]))
    raise ValueError(
        f"the run stands at t={past[-1]:.6g}: a grid to resume on starts there, or is one that it has come along so "
        f"far; got one from t={placed.times[0]:.6g}"
    )


def _same_until(node: int, one: Program, other: Program) -> bool:
    """True if two tables are the same up to a node."""
    stages = sum(1 for _ in _until_node(one, node))
    if one.stages[:stages] != other.stages[:stages]:
        return False
    return (one.prediction, one.eta, one.sigma_data) == (other.prediction, other.eta, other.sigma_data)


def _until_node(program: Program, node: int) -> Iterator[int]:
    """The numbers of the stages up to that of a node."""
    for k, stage in enumerate(program.stages):
        yield k
        node -= stage.node
        if node < 0:
            return


def _continuation(resume: object, sde: SDE) -> Continuation:
    """Stored state of a result, to be resumed."""
    if not isinstance(resume, SampleResult):
        raise TypeError(f"resume must be the result of sample(), got {shown(resume)}")
    known = resume.continuation
    if resume.control is not None:
        raise ValueError("a run whose solver found its own steps cannot be resumed: resume= goes on along a grid")
    if known is None:
        raise ValueError(
            "the run is complete, and what it returned is no state to go on from: stop it on the way, by "
            "execution=Execution(until=...) or a callback, or end it with final='none'"
        )
    if sde is not known.sde and sde.spec() != known.sde.spec():
        raise ValueError(f"a run on {known.sde!r} cannot go on on another process, got {sde!r}")
    return known


def _path(solver: Solver, program: Program, sde: SDE, seeds: SampleSeeds) -> PathNoise:
    """Noise from one Brownian path per sample, halved evenly in log-SNR, where there is one."""

    def middle(a: float, b: float) -> float:
        t = float(sde.time((sde.log_snr(a) + sde.log_snr(b)) / 2)) if has_scalar_marginal(sde) else math.nan
        return t if min(a, b) < t < max(a, b) else (a + b) / 2

    for t in (program.times[0], program.times[-1]):
        if program.stochastic and not math.isfinite(solver.brownian_time(sde, t)):
            raise ValueError(f"noise='path' needs a finite log-SNR at both ends, and at t={t} it is infinite")
    return PathNoise(program, seeds, brownian_time=partial(solver.brownian_time, sde), middle=middle)


def _models(model: BoundScore, parts: Sequence[slice], batch: int) -> Iterator[BoundScore]:
    """The model for each part of a batch, with the arguments of its samples."""
    if len(parts) == 1:
        yield model
        return
    resolved = model.resolved(batch)
    for at in parts:
        yield model.with_kwargs(_of_part(resolved, at))


def _of_part(resolved: Mapping[str, object], at: slice) -> dict[str, object]:
    """The arguments of some of the samples."""
    return map_rows(lambda _, rows: rows[at], resolved)


class _Joined:
    """The samples of all parts in one tensor, which is made when the first of them comes; one part is its own."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.x: Tensor | None = None

    def put(self, at: slice, x: Tensor) -> None:
        if len(x) == self.batch:
            self.x = x
            return
        if self.x is None:
            self.x = x.new_empty((self.batch, *x.shape[1:]))
        self.x[at] = x

    @property
    def whole(self) -> Tensor:
        assert self.x is not None
        return self.x


@dataclass(frozen=True)
class _Part:
    """By-products of the run of some samples.

    Attributes:
        sound: whether each sample was finite before the end, and at it, and whether nothing accounts for its size;
            (3, b), None without values.
        nodes: number of nodes reached.
        first_bad: finds the first node at which a state was not finite.
        trajectory: states on the way, and their times.
        position: where the run was stopped, if it was.
        draws: how often the solver and its correctors have drawn.
        nfe: network calls.
        network_evals: samples that the network saw in them.
    """

    sound: np.ndarray | None
    nodes: int
    first_bad: Callable[[], int | None]
    trajectory: tuple[list[Tensor], list[float]]
    position: Position | None
    draws: tuple[int, int]
    nfe: int
    network_evals: int


def _run_on_grid(
    job: _Job, model: BoundScore, record: Record, execution: Execution
) -> tuple[SampleResult, type[Warning] | None]:
    """The result of a run on a grid, and what to warn of."""
    assert isinstance(job.solver, Solver) and job.program is not None
    slices = job.parts(execution.batch_size)
    n_steps = (job.grid.steps - job.first) * len(slices)
    nodes, keep_end = _wanted(record.trajectory, job.grid, job.denoises)
    stop = _node_of(execution.until, job)

    joined = _Joined(job.size)
    parts: list[_Part] = []
    with _bar(record.progress, n_steps, job.solver.name, "step") as advance:
        for at, mine in zip(slices, _models(model, slices, job.size), strict=True):
            monitor = _Monitor(job.grid, mine, record.callback, advance, nodes, keep_end, stop, record.progress)
            parts.append(_run_part(job, mine, at, monitor, execution, joined))

    reached = parts[0].nodes - 1
    stopped = ""
    if reached < job.grid.steps:
        stopped = "stopped as until= asks" if reached == stop else "stopped by the callback"
    status = _status(parts, job.grid, stopped)

    trajectory, times = _trajectory(parts, job.dtype)
    result = SampleResult(
        joined.whole.to(job.dtype),
        max(part.nfe for part in parts),
        job.grid.times,
        status,
        trajectory,
        times,
        job.seeds,
        sum(part.network_evals for part in parts),
        continuation=_resumable(job, parts, joined.whole),
    )
    if not status.samples:
        return result, None
    return result, ImplausibleWarning if status.time is None else NonFiniteWarning


def _trajectory(parts: Sequence[_Part], dtype: torch.dtype) -> tuple[Tensor | None, tuple[float, ...]]:
    """The states on the way of all samples (times, B, *), None if there are none, and their times."""
    _, times = parts[0].trajectory
    if not times:
        return None, ()
    stacks = [torch.stack(states).to(dtype) for states, _ in (part.trajectory for part in parts)]
    return torch.cat(stacks, 1), tuple(times)


def _resumable(job: _Job, parts: Sequence[_Part], x: Tensor) -> Continuation | None:
    """The run where it was stopped, or at an end that is a state of the process; None if it cannot be resumed."""
    position = _together([part.position for part in parts])
    complete = parts[0].nodes > job.grid.steps
    if position is None and complete and job.final == "none":
        position = Position(job.grid.steps, x.to(job.state_dtype))
    return None if position is None else job.continuation(position, parts[0].draws)


def _run_part(
    job: _Job, model: BoundScore, at: slice, monitor: _Monitor, execution: Execution, joined: _Joined
) -> _Part:
    """The run of some of the samples, which go where all are gathered."""
    assert isinstance(job.solver, Solver) and job.program is not None
    solver = job.solver
    x = job.states(at)
    position = None if job.position is None else _some(job.position, at)
    source, corrections, hooks = _noises(job, at, model, x, position)
    times = job.grid.times[job.first :]
    watch = Watch(job.sde, times, model.score.prediction, x, guided=solver.guided, lags=solver.lags)

    def on_output(x: Tensor, output: Tensor, t: float) -> None:
        watch.see(x, output, t)
        monitor.on_output(x, output, t)

    run = _run_program(job, model, x, source, hooks, position, monitor, on_output, execution)
    end = run.x
    if run.position is not None:
        end = end.clone()  # the other is what the run goes on from
    elif job.denoises:
        end = model.predict("data", end, job.grid.times[-1])
    monitor.finish(end)
    joined.put(at, end)

    sound = None
    if not end.is_meta:
        odd = watch.implausible(end, denoised=job.denoises or solver.ends_in_data)
        # The one place where values come back from the device.
        sound = torch.stack([finite(run.x), finite(end), odd]).numpy(force=True)

    return _Part(
        sound,
        run.nodes,
        partial(_first_bad, job, model, at, position),
        (monitor.states, monitor.times),
        run.position,
        (job.draws[0] if isinstance(source, PathNoise) else source.draw, corrections.draw),
        model.nfe,
        model.network_evals,
    )


def _noises(
    job: _Job, at: slice, model: BoundScore, x: Tensor, position: Position | None
) -> tuple[NoiseStream | PathNoise, NoiseStream, Sequence[Hook]]:
    """The noise of the steps of states x from a position on, that of the correctors, and what runs at the nodes."""
    assert job.program is not None
    source, corrections, hooks = job.noises(at, model)
    if isinstance(source, PathNoise) and position is not None:
        for _ in range(_drawn(job.program, position.node)):  # a path is followed from its start
            source.normal(tuple(x.shape), x.dtype, x.device)
    return source, corrections, hooks


def _run_program(
    job: _Job,
    model: BoundScore,
    x: Tensor,
    source: NoiseStream | PathNoise,
    hooks: Sequence[Hook],
    position: Position | None,
    monitor: _Monitor,
    on_output: Callable[[Tensor, Tensor, float], None],
    execution: Execution,
) -> Run:
    """The run of a table: in parallel, as a recorded graph, or step after step."""
    program = job.program
    assert program is not None
    on_node = monitor.on_node if monitor.looks_on else None
    if execution.parallel is not None:
        return run_in_parallel(
            program,
            x,
            model,
            source,
            window=execution.parallel,
            tolerance=execution.tolerance or 0.0,
            on_node=on_node,
            on_output=on_output,
        )

    observed = bool(hooks or on_node or position)
    if execution.compile and x.is_cuda and model.score.recordable and not observed:
        return replay(program, x, model, source, model.kwargs)

    return execute(
        program,
        x,
        model,
        source,
        hooks=hooks,
        on_node=on_node,
        on_output=on_output,
        grad=execution.enable_grad,
        start=position,
        own=job.fresh,
    )


def _first_bad(job: _Job, model: BoundScore, at: slice, position: Position | None) -> int | None:
    """The first node with a state that is not finite, found by a repetition of the run; None if that meets none."""
    assert job.program is not None
    again = model.with_kwargs(model.kwargs)
    start = job.states(at) if position is None else position.x
    source, _, hooks = _noises(job, at, again, start, position)

    def stop(i: int, x: Tensor) -> bool:
        return not finite(x).all()

    with torch.no_grad():
        run = execute(job.program, start, again, source, hooks=hooks, on_node=stop, start=position)
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
    return len({m for k in _until_node(program, node) for m, _ in program.stages[k].noises})


def _node_of(until: float | None, job: _Job) -> int | None:
    """The node at which to stop."""
    if until is None:
        return None
    for i, t in enumerate(job.grid.times):
        if job.first < i < job.grid.steps and same_time(t, until):
            return i

    inside = job.grid.times[job.first + 1 : -1]
    nearest = f"; the nearest is {min(inside, key=lambda t: abs(t - until))}" if inside else ""
    raise ValueError(f"until must be a time of the grid between its ends, got {until}{nearest}")


def _run_adaptive(
    job: _Job, model: BoundScore, nfe: int | None, steps: int | None, record: Record, execution: Execution
) -> tuple[SampleResult, type[Warning] | None]:
    """The result of a solver that finds its own steps, and what to warn of."""
    calls = _calls_of_adaptive(job, model, nfe)
    slices = job.parts(execution.batch_size)
    t_start, t_end = job.grid.times
    joined = _Joined(job.size)
    models: list[BoundScore] = []
    integrations: list[Integration] = []
    odd: list[np.ndarray] = []
    not_finite: dict[int, float] = {}
    with _bar(record.progress, job.size, job.solver.name, "sample") as advance:
        on_leave = advance if record.progress else None
        for at, mine in zip(slices, _models(model, slices, job.size), strict=True):
            start = job.states(at)
            watch = Watch(job.sde, job.grid.times, model.score.prediction, start)
            problem = Problem(mine, job.sde, start, t_start, t_end, job.seeds[at], calls, steps, on_leave)
            integration, x = _integrate(job, problem)

            models.append(mine)
            integrations.append(integration)
            joined.put(at, x)
            for i, t in integration.not_finite.items():
                not_finite[at.start + i] = t
            if not x.is_meta:
                implausible = watch.implausible(x, denoised=job.final == "denoise")
                odd.append(implausible.cpu().numpy())

    control = _adaptive_stats(integrations)
    status = _adaptive_status(control.outcome, control.times, t_end, not_finite)
    if status.ok and odd:
        status = _plausible(np.concatenate(odd))
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


def _adaptive_stats(parts: Sequence[Integration]) -> AdaptiveStats:
    """Outcomes, times and steps of the samples of all parts."""
    return AdaptiveStats(
        tuple(itertools.chain.from_iterable(part.outcome for part in parts)),
        torch.cat([part.t for part in parts]),
        torch.cat([part.accepted for part in parts]),
        torch.cat([part.rejected for part in parts]),
        torch.cat([part.evaluations for part in parts]),
    )


def _calls_of_adaptive(job: _Job, model: BoundScore, nfe: int | None) -> int | None:
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
        raise _too_small(nfe, f"the first step of {solver.name}", solver.least_calls, denoise)
    return calls


def _integrate(job: _Job, problem: Problem) -> tuple[Integration, Tensor]:
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
    """The outcomes, where a sample that arrived is not finite after the denoising as well."""
    bad = ~finite(x)
    if not bad.any():
        return outcome
    checked = list(outcome)
    for i in bad.nonzero().flatten().tolist():
        checked[i] = NOT_FINITE if outcome[i] == COMPLETED else outcome[i]
    return tuple(checked)


def _adaptive_status(outcome: Sequence[str], t: Tensor, t_end: float, not_finite: Mapping[int, float]) -> Status:
    """Status of an adaptive run: samples that did not reach the end, with their times and reasons."""
    if outcome.count(COMPLETED) == len(outcome):
        return Status()

    # First those whose own values failed, in the order of their times; those given up with another last.
    def rank(i: int) -> tuple[bool, bool, float]:
        return outcome[i] == GIVEN_UP, i not in not_finite, -not_finite.get(i, 0.0)

    samples = tuple(i for i, reason in enumerate(outcome) if reason != COMPLETED)
    ranked = sorted(samples, key=rank)
    first = ranked[0]
    time = not_finite[first] if first in not_finite else float(t[first])

    reasons = [_reason(i, outcome[i], float(t[i]), not_finite) for i in ranked[:SHOWN_REASONS]]
    if len(samples) > SHOWN_REASONS:
        reasons.append("...")
    message = f"{len(samples)} of {len(outcome)} samples stopped before t={t_end:.6g} ({'; '.join(reasons)})"
    return Status(False, message, time, samples)


def _reason(i: int, outcome: str, t: float, not_finite: Mapping[int, float]) -> str:
    """Text of why a sample stopped."""
    if i in not_finite:
        return f"sample {i}: not finite at t={not_finite[i]:.6g}"
    return f"sample {i} at t={t:.6g}: {_REASONS[outcome]}"


_REASONS = {
    OUT_OF_STEPS: "out of steps",
    NOT_FINITE: "the score or the state is not finite beyond",
    STEP_TOO_SMALL: "the step is too small to go on",
    GIVEN_UP: "its batch was given up",
}


def _make_grid(
    sde: SDE,
    solver: Solver,
    denoise: bool,
    nfe: int | None,
    steps: int | None,
    grid: Grid | GridRule | str | Sequence[float] | None,
    t_start: float | None,
    t_end: float | None,
) -> tuple[Solver, Grid]:
    denoise = denoise and not solver.ends_in_data
    if isinstance(grid, str):
        grid = grids.rule(grid)

    if not isinstance(grid, GridRule | None):
        given = {"nfe": nfe, "steps": steps, "t_start": t_start, "t_end": t_end}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}={value} does not go with a grid of given times; give a grid rule instead")
        grid = grid if isinstance(grid, Grid) else Grid(grid)
        return solver, grid.on(sde, denoised=denoise)

    if nfe is not None and steps is not None:
        raise ValueError(f"give nfe= or steps=, not both (got {nfe} and {steps})")
    if t_end is None and not denoise:
        t_end = sde.eps  # the state there is what is asked for
    if steps is None:
        solver, steps = _fit(solver, nfe, denoise)
    else:
        steps = check_integer("steps", steps)

    if grid is None:
        grid = solver.default_grid(sde, steps, t_start, t_end)
    return solver, grid(sde, steps, t_start, t_end)


def _fit(solver: Solver, nfe: int | None, denoise: bool) -> tuple[Solver, int]:
    """The solver as it fits a budget of network calls, and the number of its steps.

    Raises:
        ValueError: for a budget of less than a step.
    """
    default = solver.budget or DEFAULT_NFE
    budget = check_integer("nfe", default if nfe is None else nfe)
    solver, steps = solver.fit(budget - denoise)
    only_denoise = denoise and budget == 1
    if steps < 1 and not only_denoise:
        raise _too_small(budget, f"one step of {solver.name}", solver.nfe(1), denoise)
    return solver, steps


def _too_small(nfe: int | None, what: str, calls: int, denoise: bool) -> ValueError:
    more = " and final='denoise' one more" if denoise else ""
    return ValueError(f"nfe={nfe} is too small: {what} takes {calls} network calls{more}")


@contextmanager
def _bar(progress: bool, total: int, name: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Advances a progress bar by as much as it is called with; does nothing where none is asked for."""
    if not progress:
        yield lambda n: None
        return
    from tqdm.auto import tqdm

    with closing(tqdm(total=total, desc=name, unit=unit)) as bar:
        yield bar.update


class _Monitor:
    """Observers of a run: callback, progress bar, trajectory, and the node at which to stop."""

    def __init__(
        self,
        grid: Grid,
        model: BoundScore,
        callback: Callable[[StepInfo], bool | None] | None,
        advance: Callable[[int], None],
        wanted: frozenset[int],
        keep_end: bool,
        stop: int | None,
        shows: bool,
    ) -> None:
        self.grid = grid
        self.model = model
        self.callback = callback
        self.advance = advance
        self.stop = stop
        self.denoised: Tensor | None = None
        self.stopped = False
        self.wanted = wanted
        self.keep_end = keep_end
        self.states: list[Tensor] = []
        self.times: list[float] = []
        self.looks_on = bool(callback is not None or shows or wanted or stop is not None)

    def on_output(self, x: Tensor, output: Tensor, t: float) -> None:
        """Keep the estimate of the data that a step starts from."""
        if self.callback is not None and self.model.sde.marginal_kind != "unknown":
            self.denoised = self.model.predict("data", x, t, output)

    def on_node(self, i: int, x: Tensor) -> bool:
        """Observe a node's state; returns whether to stop."""
        if i in self.wanted:
            self._keep(self.grid.times[i], x)
        if i == 0:
            return False

        self.advance(1)
        if self.callback is not None:
            self.stopped = self._ask(self.callback, i, x) and i < self.grid.steps
        self.stopped = self.stopped or i == self.stop
        return self.stopped

    def _ask(self, callback: Callable[[StepInfo], bool | None], i: int, x: Tensor) -> bool:
        """Show the callback the step to node i; returns whether it asks to stop."""
        t, t_next = self.grid.times[i - 1 : i + 1]
        info = StepInfo(i - 1, self.grid.steps, t, t_next, x.clone(), self.denoised, self.model.nfe)
        answer = callback(info)
        if isinstance(answer, Tensor | np.ndarray) and math.prod(answer.shape) != 1:
            raise ValueError(f"the callback must return True to stop, or nothing, got {shown(answer)}")
        return answer in (True,)  # equal to True: numpy's and torch's, too

    def finish(self, x: Tensor) -> None:
        """Observe the result."""
        if self.keep_end and not self.stopped:
            self._keep(0.0, x)

    def _keep(self, t: float, x: Tensor) -> None:
        self.states.append(x.clone())
        self.times.append(t)


def _wanted(trajectory: str | Sequence[float] | None, grid: Grid, denoise: bool) -> tuple[frozenset[int], bool]:
    """The nodes whose states to keep, and whether to keep the denoised end, which stands at t = 0."""
    if trajectory is None:
        return frozenset(), False
    if isinstance(trajectory, str):
        return frozenset(range(len(grid.times))), denoise

    end = denoise and any(t == 0 for t in trajectory)
    return frozenset(_node_at(t, grid) for t in trajectory if not (denoise and t == 0)), end


def _node_at(t: float, grid: Grid) -> int:
    """Number of the node at a time of a trajectory."""
    nearest = min(range(len(grid.times)), key=lambda i: abs(grid.times[i] - t))
    if not same_time(grid.times[nearest], t):
        raise ValueError(f"trajectory time {t} is not on the grid; the nearest of its times is {grid.times[nearest]}")
    return nearest


def _status(parts: Sequence[_Part], grid: Grid, stopped: str) -> Status:
    """Status of a run from those of its parts; `stopped` says by whom, if it was."""
    checked = [part.sound for part in parts if part.sound is not None]
    if not checked:
        return Status()

    before_end, at_end, odd = np.concatenate(checked, 1)
    failed = np.flatnonzero(~(before_end & at_end))
    reached = parts[0].nodes - 1
    if not len(failed):
        return Status(False, f"{stopped} at t={grid.times[reached]:.6g}", stopped=True) if stopped else _plausible(odd)

    samples = tuple(failed.tolist())
    node = grid.steps + 1 if before_end.all() else _first_bad_node(parts)
    at = reached if node is None else min(node, grid.steps)
    message = f"{_non_finite(node, at, grid)} in {len(samples)} of {len(odd)} samples ({_listed(samples)})"
    return Status(False, message, grid.times[at], samples, bool(stopped))


def _first_bad_node(parts: Sequence[_Part]) -> int | None:
    """The first node at which a state of any part was not finite; None if a repetition meets none."""
    failed = [part for part in parts if part.sound is not None and not part.sound[0].all()]
    return min((at for part in failed if (at := part.first_bad()) is not None), default=None)


def _non_finite(found: int | None, at: int, grid: Grid) -> str:
    """Text of a state that was not finite at a node, or before it where `found` is None."""
    text = f"non-finite state at t={grid.times[at]:.6g}"
    if found is None:
        return f"{text} or before it, where is not known since the network does not repeat itself,"
    return f"{text}, after the step from t={grid.times[at - 1]:.6g}," if 0 < found == at else text


def _listed(samples: Sequence[int], most: int = 8) -> str:
    """Some of the samples' numbers as text."""
    return ", ".join(map(str, samples[:most])) + (", ..." if len(samples) > most else "")


def _plausible(odd: np.ndarray) -> Status:
    """Status of a run with finite states, given the mask (B,) of implausible samples."""
    samples = tuple(np.flatnonzero(odd).tolist())
    return Status(False, described(samples, len(odd)), samples=samples) if samples else Status()
