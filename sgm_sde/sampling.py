"""`sample`: from a score function to samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde import grids
from sgm_sde._autograd import outside_inference_mode
from sgm_sde._checks import (
    arguments,
    flag,
    float_dtype,
    one_of,
    require_floating,
    shape_of_samples,
    usable_device,
    whole,
)
from sgm_sde._shapes import finite
from sgm_sde._times import same_time
from sgm_sde.compiled import compile_network, replay
from sgm_sde.defaults import Setting, default_setting
from sgm_sde.diagnosis import ADVICE, ImplausibleWarning, Watch, described
from sgm_sde.engine.adaptive import COMPLETED, GIVEN_UP, NOT_FINITE, OUT_OF_STEPS, STEP_TOO_SMALL
from sgm_sde.engine.brownian import PathNoise
from sgm_sde.engine.executor import Hook, execute
from sgm_sde.engine.noise import Generators, NoiseSource, NoiseStream, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.program import Program
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.grids import Grid, GridRule
from sgm_sde.processes.base import SDE
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.model import BoundModel
from sgm_sde.scores.score import Score, as_score
from sgm_sde.solvers import AdaptiveSolver, Solver, resolve_any
from sgm_sde.solvers.base import Problem

DEFAULT_NFE = 50
FINALS = ("denoise", "mean", "none")
NOISES = ("independent", "path")


class NonFiniteWarning(UserWarning):
    """A state became infinite or NaN; the result's status says when, and in which samples."""


class UnfinishedWarning(UserWarning):
    """Some samples stopped before the end; the result's status says which, where and why."""


@dataclass(frozen=True)
class Status:
    """How a run ended, readable and testable.

    Attributes:
        ok: whether it reached the end with finite states, of a size that the run accounts for.
        message: what happened.
        time: the first grid time at which a state was not finite, if any.
        samples: the samples that ended so.
        stopped: whether the callback stopped the run.
    """

    ok: bool = True
    message: str = "completed"
    time: float | None = None
    samples: tuple[int, ...] = ()
    stopped: bool = False

    def __str__(self) -> str:
        return self.message

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees after each step.

    Attributes:
        i: number of the step, from 0.
        n: number of steps.
        t: time the step left.
        t_next: time it reached.
        x: a copy of the state at `t_next`, (B, *).
        denoised: estimate of the data from the step's first network call, (B, *); None for a nonlinear process.
        nfe: network calls so far.
    """

    i: int
    n: int
    t: float
    t_next: float
    x: Tensor
    denoised: Tensor | None
    nfe: int

    def __repr__(self) -> str:
        shape = tuple(self.x.shape)
        return (
            f"StepInfo(step {self.i + 1} of {self.n}, t={self.t:.4g} -> {self.t_next:.4g}, x={shape}, nfe={self.nfe})"
        )


@dataclass(frozen=True)
class StepControl:
    """What an adaptive solver did with each sample.

    Attributes:
        outcome: how each ended: "completed", "out of steps", "not finite", "step too small" or, where another library
            gave a batch up for one of its samples, "given up".
        times: where each got to, (B,) in float64.
        accepted: accepted steps of each, (B,).
        rejected: rejected ones, (B,).
        evaluations: evaluations of the score at each, (B,), that of `final="denoise"` not counted.
    """

    outcome: tuple[str, ...]
    times: Tensor = field(repr=False)
    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class SampleResult:
    """Samples and how they came about.

    Attributes:
        x: samples (B, *), in the range of the data the network was trained on.
        nfe: calls of the score function, each on the whole batch, of the run itself.
        times: the grid's times, decreasing.
        status: how the run ended; false in a boolean context if states were not finite, if samples are of a size that
            nothing in the run accounts for, or if it was stopped.
        trajectory: states (K, B, *) at `trajectory_times`, if asked for; the last one is `x` when "all" are.
        trajectory_times: the times of the trajectory, 0 standing for the final denoised state.
        seeds: the (seed, index) pair of each sample, which `seed=` takes again; a range takes no memory.
        rows: samples that the network has seen in all its calls, a guided score's branches counted apart.
        control: how a solver that finds its own steps went about it, sample by sample; None on a grid.
    """

    x: Tensor
    nfe: int
    times: tuple[float, ...]
    status: Status
    trajectory: Tensor | None = field(default=None, repr=False)
    trajectory_times: tuple[float, ...] = field(default=(), repr=False)
    seeds: Sequence[tuple[int, int]] = field(default=(), repr=False)
    rows: int = 0
    control: StepControl | None = None

    def __repr__(self) -> str:
        return f"SampleResult(x={tuple(self.x.shape)} {self.x.dtype}, nfe={self.nfe}, {self.status})"


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
    grid: Grid | GridRule | str | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    noise: str = "independent",
    final: str | None = None,
    callback: Callable[[StepInfo], bool | None] | None = None,
    progress: bool = False,
    trajectory: str | Sequence[float] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    enable_grad: bool = False,
    compile: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> SampleResult:
    r"""Draw samples by running the reverse process from noise at `sde.T` to data.

    Sample i depends on its own seed, the network and the settings, and on nothing else. Nothing is clipped or
    rescaled: samples come out in the range the network was trained on. The global random state, the network's
    train/eval mode and anyone's `requires_grad` are left alone.

    States are looked at once, at the end. Where one is infinite or NaN there, the run is repeated from the same seeds
    up to the first step that made it so, and the status names it; the calls of that second run are not in `nfe`. The
    status also names samples of a size that the noise and the network's own estimates along the way do not account for.

    Args:
        score_fn: the score, `score_fn(x, t, **kwargs)` with x (B, *), t (B,); or what `from_noise`,
            `from_denoiser`, `from_velocity` or `from_flow` made of a network.
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
            themselves (then neither `nfe` nor `steps`). By default that of the setting, or the solver's `default_grid`,
            which `solvers()` shows.
        t_start: where to start, default `sde.T`, unless the grid rule chooses, as `grids.Widening` does; then `x_T` is
            still the state at `sde.T`. Below T, give the noised data as `x_T`.
        t_end: where to end, default `sde.eps`; with `final="denoise"` a rule may choose an earlier end.
        seed: one int for the batch, or one per sample: an int, or a pair (seed, index) as in a result's `seeds`.
        generator: one `torch.Generator`, from which one seed is drawn for the batch, or one for each sample; instead
            of `seed`.
        noise: of a stochastic solver on a grid: "independent" draws at each step, or "path", increments of one Brownian
            path a sample, so that 20 and 40 steps see the same noise; for solvers with one noise a step.
        final: what to return at the end: "denoise", Tweedie's estimate of the data, one network call (default for
            linear processes); "mean", the last state without the noise its last update added (default for others);
            "none", the last state.
        callback: called after each step with a `StepInfo`; returning True stops the run.
        progress: show a progress bar.
        trajectory: "all", or some of the grid's times (0 for the denoised end), to keep the states at.
        model_kwargs: passed on to the network at each call. A condition of one row a sample that nothing else names as
            one is `sg.PerSample(y)`, a tensor that is the same for all `sg.Shared(table)`, nested ones too; where
            samples leave the batch or guidance doubles it, a tensor that may be either is an error.
        enable_grad: build the graph, to backpropagate through sampling.
        compile: run the network through `torch.compile`, once for all runs; on CUDA, where nothing looks on
            (callback, progress bar, trajectory, corrector, guidance), the whole run is one CUDA graph, recorded at the
            first call with the same network, solver, grid and shape. The first call takes its time.
        dtype: of the samples if `shape` is given; torch's default if not given.
        device: of the samples if `shape` is given; the network's if it has parameters, torch's default if not.

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

    Example:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(3), 0.25).score(sde)
        >>> res = sg.sample(score, sde, shape=(64, 3), solver="dpm++2m", nfe=20, seed=0)
        >>> res.nfe, res.status.ok
        (20, True)
    """
    score = as_score(score_fn, sde)
    final = _final(sde, final)
    chosen = t_start is None and (grid is None or isinstance(grid, GridRule | str))  # the first time, by a rule
    solver, grid, program = plan(
        sde, solver, nfe=nfe, steps=steps, grid=grid, t_start=t_start, t_end=t_end, final=final
    )
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a StepInfo, got {callback!r}")
    model_kwargs = arguments("model_kwargs", model_kwargs)
    enable_grad, compile = flag("enable_grad", enable_grad), flag("compile", compile)
    one_of("noise", noise, NOISES)
    if isinstance(solver, AdaptiveSolver):
        given = {"callback": callback, "trajectory": trajectory, "compile": compile or None}
        for option, value in (given | {"noise": None if noise == "independent" else noise}).items():
            if value is not None:
                raise ValueError(f"{option}= needs a solver on a grid, and {solver.name} finds its own steps")

    x, seeds, dtype = _initial_state(score, sde, grid.times[0], chosen, shape, x_T, seed, generator, dtype, device)
    if score.dtype is None and dtype != x.dtype:
        score = score.cast_to(dtype)
    if compile:
        if enable_grad:
            raise ValueError("compile=True keeps no graph to backpropagate through: it excludes enable_grad=True")
        score = compile_network(score)
    ends = grid.times[-1], grid.times[0]
    model = BoundModel(score, sde, ends, model_kwargs)
    require_rows(model.kwargs, len(x))
    if isinstance(solver, AdaptiveSolver):
        model.resolved(len(x))  # samples leave the batch: now is the time to say what cannot be known then
        with torch.set_grad_enabled(enable_grad):
            return _run_adaptive(solver, model, x, grid.times, seeds, dtype, final, nfe, steps, progress)
    assert program is not None

    def randomness(model: BoundModel) -> tuple[NoiseSource, Sequence[Hook]]:
        source: NoiseSource = NoiseStream(seeds, "solver", grid.times[0])
        if noise == "path":
            source = _path(solver, program, sde, seeds)
        corrections = NoiseStream(seeds, "corrector", grid.times[0])
        last_without_noise = final == "mean" or solver.ends_in_data
        return source, solver.hooks(sde, grid, model, corrections, mean=last_without_noise)

    def first_bad_node() -> int | None:
        again = BoundModel(score, sde, ends, model_kwargs)
        source, hooks = randomness(again)
        with torch.no_grad():
            run = execute(program, x, again, source, hooks=hooks, on_node=lambda _, state: not finite(state).all())
        return None if finite(run.x).all() else run.nodes - 1

    source, hooks = randomness(model)
    denoise = final == "denoise" and not solver.ends_in_data
    monitor = _Monitor(grid, model, solver.name, callback, progress, trajectory, denoise)
    watch = Watch(sde, grid.times, score.prediction, x, guided=solver.guided)

    def on_output(x: Tensor, output: Tensor, t: float) -> None:
        watch.see(x, output, t)
        if callback:
            monitor.on_output(x, output, t)

    with torch.set_grad_enabled(enable_grad), monitor:
        watched = bool(hooks or callback or progress or trajectory is not None)
        if compile and x.is_cuda and score.recordable and not watched:
            run = replay(program, x, model, source, model_kwargs)
        else:
            run = execute(
                program,
                x,
                model,
                source,
                hooks=hooks,
                on_node=monitor.on_node if watched else None,
                on_output=on_output,
                grad=enable_grad,
            )
        end = run.x
        if denoise and not monitor.stopped:
            end = model.predict("data", end, grid.times[-1])
        monitor.finish(end)
    implausible = watch.implausible(end, denoised=denoise or solver.ends_in_data)
    status = _status(run.x, end, grid, run.nodes - 1, monitor.stopped, first_bad_node, implausible)
    if status.samples and status.time is None:
        _warn_implausible(status, 3)
    elif status.samples:
        warnings.warn(status.message, NonFiniteWarning, stacklevel=3)
    kept = monitor.stacked(dtype), tuple(monitor.kept_times)
    return SampleResult(end.to(dtype), model.nfe, grid.times, status, *kept, seeds, model.rows)


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

    Example:
        >>> import sgm_sde as sg
        >>> solver, grid, program = plan(sg.VPSDE(), "heun", nfe=20)
        >>> solver.name, grid.steps, program.nfe
        ('heun', 9, 18)
    """
    final = _final(sde, final)
    if isinstance(solver, Setting) and grid is not None:
        raise ValueError(f"the setting {solver} brings its own grid: give no grid= besides, or its solver alone")
    setting: Solver | AdaptiveSolver | Setting | str
    if solver is None:
        setting = default_setting(sde, nfe if steps is None else whole("steps", steps) + 1, t_start, t_end)
    else:
        setting = solver
    if isinstance(setting, Setting):
        solver, grid = setting.solver, setting.grid if grid is None else grid
    else:
        solver = resolve_any(setting)
    if isinstance(solver, AdaptiveSolver):
        for option, value in {"grid": grid, "steps": None if solver.takes_steps else steps}.items():
            if value is not None:
                raise ValueError(f"{option}= needs a solver on a grid, and {solver.name} finds its own steps")
        return solver, grids.Uniform()(sde, 1, t_start, t_end), None
    solver, grid = _make_grid(sde, solver, final == "denoise", nfe, steps, grid, t_start, t_end)
    program = solver.compile(sde, grid)
    return solver, grid, solver.end_in_mean(program) if final == "mean" else program


def _final(sde: SDE, final: str | None) -> str:
    """What to return at the end, the process' default if not given."""
    if final is None:
        return "denoise" if sde.has_kernel else "mean"
    one_of("final", final, FINALS)
    if final == "denoise" and not sde.has_kernel:
        raise ValueError(f"final='denoise' needs a LinearSDE, got {sde!r}; use 'mean' or 'none'")
    return final


def _initial_state(
    score: Score,
    sde: SDE,
    start: float,
    chosen: bool,
    shape: Sequence[int] | None,
    x_T: Tensor | None,
    seed: Seeds,
    generator: Generators,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[Tensor, SampleSeeds, torch.dtype]:
    """The state to start from, at least float32, the samples' seeds, and the dtype to return.

    Where a rule has chosen the start, states given are those at T, and go there by the linear part of the flow.
    """
    if (shape is None) == (x_T is None):
        raise ValueError("give shape= for samples from the prior, or x_T= to start from, and not both")
    if x_T is None:
        shape = shape_of_samples("shape", shape)
        parameter = score.parameter
        device = parameter.device if device is None and parameter is not None else device
        device = torch.get_default_device() if device is None else usable_device("device", device)
        dtype = float_dtype("dtype", torch.get_default_dtype() if dtype is None else dtype)
    else:
        require_floating("x_T", x_T)
        if dtype is not None or device is not None:
            raise ValueError("dtype and device follow x_T; give them with shape= only")
        shape, dtype, device = tuple(x_T.shape), x_T.dtype, x_T.device
    seeds = resolve_seeds(seed, generator, shape[0])
    state_dtype = torch.promote_types(dtype, torch.float32)
    if x_T is None:
        if start < sde.T and not chosen:
            warnings.warn(
                f"starting at t={start:g} < T={sde.T:g} from pure noise: the marginal there contains data; "
                f"pass noised data as x_T",
                stacklevel=4,
            )
        return sde.prior_transform(NoiseStream(seeds, "prior").normal(shape, state_dtype, device), start), seeds, dtype
    x = x_T.to(state_dtype)
    if chosen and start < sde.T:
        x = sde.prior_transform(x / sde.prior_std, start)
    return x, seeds, dtype


def _path(solver: Solver, program: Program, sde: SDE, seeds: SampleSeeds) -> PathNoise:
    """Noise from one Brownian path a sample, halved evenly in log-SNR, where there is one."""

    def middle(a: float, b: float) -> float:
        linear: Any = sde
        t = float(linear.time((linear.log_snr(a) + linear.log_snr(b)) / 2)) if sde.is_linear else math.nan
        return t if min(a, b) < t < max(a, b) else (a + b) / 2

    for t in (program.times[0], program.times[-1]):
        if program.stochastic and not math.isfinite(solver.clock(sde, t)):
            raise ValueError(f"noise='path' needs a finite log-SNR at both ends, and at t={t} it is infinite")
    return PathNoise(program, seeds, clock=partial(solver.clock, sde), middle=middle)


def _run_adaptive(
    solver: AdaptiveSolver,
    model: BoundModel,
    x: Tensor,
    ends: tuple[float, ...],
    seeds: SampleSeeds,
    dtype: torch.dtype,
    final: str,
    nfe: int | None,
    steps: int | None,
    progress: bool,
) -> SampleResult:
    """A run of a solver that finds its own steps."""
    if isinstance(model.score.net, torch.nn.parallel.DistributedDataParallel):
        warnings.warn(
            "the network is wrapped for distributed training, where every process must call it as often as the others, "
            "and an adaptive solver does not: pass net.module",
            stacklevel=4,
        )
    denoise = final == "denoise"
    calls = None if nfe is None else whole("nfe", nfe) - denoise
    if calls is not None and calls < solver.least_calls:
        raise _too_small(nfe, f"the first step of {solver.name}", solver.least_calls, denoise)
    bar, watch = _bar(progress, len(x), solver.name, "sample"), Watch(model.sde, ends, model.score.prediction, x)
    try:
        end = solver.run(
            Problem(model, model.sde, x, ends[0], ends[1], seeds, calls, steps, bar.update if progress else None)
        )
    finally:
        if progress:
            bar.close()
    (x,), arrived = end.y, end.completed.nonzero().flatten().to(x.device)
    if denoise and len(arrived):
        with model.only(arrived, len(x)):
            x = x.index_copy(0, arrived, model.predict("data", x[arrived], ends[1]))
    outcome, known = end.outcome, finite(x)
    if not known.all():
        outcome = tuple(
            o if ok or o != COMPLETED else NOT_FINITE for o, ok in zip(outcome, known.tolist(), strict=True)
        )
    status = _adaptive_status(outcome, end.t, ends[1], end.not_finite)
    if status.ok and not x.is_meta:
        status = _plausible(watch.implausible(x, denoised=denoise).cpu().numpy())
    if status.samples and status.time is None:
        _warn_implausible(status, 4)
    elif not status.ok:
        warnings.warn(status.message, NonFiniteWarning if NOT_FINITE in outcome else UnfinishedWarning, stacklevel=4)
    control = StepControl(outcome, end.t, end.accepted, end.rejected, end.evaluations)
    return SampleResult(x.to(dtype), model.nfe, ends, status, seeds=seeds, rows=model.rows, control=control)


def _adaptive_status(outcome: Sequence[str], t: Tensor, t_end: float, not_finite: Mapping[int, float]) -> Status:
    """Which samples did not arrive, where they are, and why."""
    if outcome.count(COMPLETED) == len(outcome):
        return Status()
    samples = tuple(i for i, o in enumerate(outcome) if o != COMPLETED)
    why = {
        OUT_OF_STEPS: "out of steps",
        NOT_FINITE: "the score or the state is not finite beyond",
        STEP_TOO_SMALL: "the step is too small to go on",
        GIVEN_UP: "its batch was given up",
    }
    first = sorted(samples, key=lambda i: (outcome[i] == GIVEN_UP, i not in not_finite, -not_finite.get(i, 0.0)))
    shown = "; ".join(
        f"sample {i}: not finite at t={not_finite[i]:.6g}"
        if i in not_finite
        else f"sample {i} at t={float(t[i]):.6g}: {why[outcome[i]]}"
        for i in first[:4]
    )
    more = "; ..." if len(samples) > 4 else ""
    message = f"{len(samples)} of {len(outcome)} samples stopped before t={t_end:.6g} ({shown}{more})"
    return Status(False, message, not_finite.get(first[0], float(t[first[0]])), samples)


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
    if steps is not None:
        steps = whole("steps", steps)
    else:
        budget = whole("nfe", (solver.budget or DEFAULT_NFE) if nfe is None else nfe)
        solver, steps = solver.fit(budget - denoise)
        if steps < 1 and not (denoise and budget == 1):
            raise _too_small(budget, f"one step of {solver.name}", solver.nfe(1), denoise)
    placed = solver.default_grid(sde, steps, t_start, t_end) if grid is None else grid
    return solver, placed(sde, steps, t_start, t_end)


def _too_small(nfe: int | None, what: str, calls: int, denoise: bool) -> ValueError:
    more = " and final='denoise' one more" if denoise else ""
    return ValueError(f"nfe={nfe} is too small: {what} takes {calls} network calls{more}")


def _bar(progress: bool, total: int, name: str, unit: str) -> Any:
    if not progress:
        return None
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=name, unit=unit)


class _Monitor:
    """What watches a run: callback, progress bar, trajectory."""

    def __init__(
        self,
        grid: Grid,
        model: BoundModel,
        name: str,
        callback: Callable[[StepInfo], bool | None] | None,
        progress: bool,
        trajectory: str | Sequence[float] | None,
        denoise: bool,
    ) -> None:
        self.grid, self.model, self.callback = grid, model, callback
        self.denoised: Tensor | None = None
        self.stopped = False
        self.wanted, self.keep_end = _wanted(trajectory, grid, denoise)
        self.kept: list[Tensor] = []
        self.kept_times: list[float] = []
        self.bar = _bar(progress, grid.steps, name, "step")

    def __enter__(self) -> _Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_output(self, x: Tensor, output: Tensor, t: float) -> None:
        """Keep the estimate of the data that a step starts from."""
        if self.model.sde.has_kernel:
            self.denoised = self.model.predict("data", x, t, output)

    def on_node(self, i: int, x: Tensor) -> bool:
        """Called with each node's state."""
        if i in self.wanted:
            self._keep(self.grid.times[i], x)
        if i == 0:
            return False
        if self.bar is not None:
            self.bar.update()
        if self.callback is not None:
            t, t_next = self.grid.times[i - 1 : i + 1]
            info = StepInfo(i - 1, self.grid.steps, t, t_next, x.clone(), self.denoised, self.model.nfe)
            answer = self.callback(info)
            self.stopped = answer in (True,) and i < self.grid.steps  # equal to True: numpy's and torch's, too
        return self.stopped

    def finish(self, x: Tensor) -> None:
        """Called with the result."""
        if self.keep_end and not self.stopped:
            self._keep(0.0, x)

    def _keep(self, t: float, x: Tensor) -> None:
        self.kept.append(x.clone())
        self.kept_times.append(t)

    def stacked(self, dtype: torch.dtype) -> Tensor | None:
        return torch.stack(self.kept).to(dtype) if self.kept else None


def _wanted(trajectory: str | Sequence[float] | None, grid: Grid, denoise: bool) -> tuple[frozenset[int], bool]:
    """The nodes whose states to keep, and whether to keep the denoised end, which stands at t = 0."""
    if trajectory is None:
        return frozenset(), False
    if isinstance(trajectory, str):
        if trajectory != "all":
            raise ValueError(f"trajectory must be 'all' or a sequence of times, got {trajectory!r}")
        return frozenset(range(len(grid.times))), denoise
    nodes: set[int] = set()
    end = False
    for t in trajectory:
        if t == 0 and denoise:
            end = True
            continue
        nearest = min(range(len(grid.times)), key=lambda i: abs(grid.times[i] - t))
        if not same_time(grid.times[nearest], float(t)):
            raise ValueError(
                f"trajectory time {t} is not on the grid; the nearest of its times is {grid.times[nearest]}"
            )
        nodes.add(nearest)
    return frozenset(nodes), end


def _status(
    state: Tensor,
    end: Tensor,
    grid: Grid,
    node: int,
    stopped: bool,
    first_bad_node: Callable[[], int | None],
    implausible: Tensor,
) -> Status:
    """How a run ended from the last state, that of a node, and what it returns."""
    if end.is_meta:
        return Status()
    # The one place where values come back from the device.
    before_end, at_end, odd = torch.stack([finite(state), finite(end), implausible]).cpu().double().numpy() > 0
    samples = tuple(np.flatnonzero(~(before_end & at_end)).tolist())
    if samples:
        found = grid.steps + 1 if before_end.all() else first_bad_node()
        i = node if found is None else min(found, grid.steps)
        shown = ", ".join(map(str, samples[:8])) + (", ..." if len(samples) > 8 else "")
        before = f", after the step from t={grid.times[i - 1]:.6g}," if found is not None and 0 < found == i else ""
        unknown = " or before it, where is not known since the network does not repeat itself," if found is None else ""
        message = f"non-finite state at t={grid.times[i]:.6g}{before}{unknown} in {len(samples)} of {len(end)} samples"
        return Status(False, f"{message} ({shown})", grid.times[i], samples, stopped)
    if stopped:
        return Status(False, f"stopped by the callback at t={grid.times[node]:.6g}", stopped=True)
    return _plausible(odd)


def _plausible(odd: np.ndarray) -> Status:
    """How a run ended whose states are finite, from whether nothing accounts for the size of a sample, (B,)."""
    samples = tuple(np.flatnonzero(odd).tolist())
    return Status(False, described(samples, len(odd)), samples=samples) if samples else Status()


def _warn_implausible(status: Status, stacklevel: int) -> None:
    warnings.warn(f"{status.message}: {ADVICE}", ImplausibleWarning, stacklevel=stacklevel + 1)
