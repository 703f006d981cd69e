"""`sample`: from a score function to samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeVar

from torch import Tensor

from sgm_sde._utils.autograd import gradients, is_transformed, outside_inference_mode, refuse_transformed
from sgm_sde._utils.checks import arguments, described, instance_of, one_of
from sgm_sde._utils.elsewhere import (
    BOUNDS,
    FIRST_TIMES,
    OF_NETWORKS,
    OF_RUNS,
    SAMPLES,
    STATES,
    TOLERANCES,
    instead_of,
    named_elsewhere,
)
from sgm_sde._utils.tree import Conditions
from sgm_sde._utils.warn import warn
from sgm_sde.engine.executor import missing
from sgm_sde.engine.noise import Generators, Seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.engine.status import Status
from sgm_sde.grids import Grid, GridRule, TokenGrid
from sgm_sde.likelihood import along, checks
from sgm_sde.likelihood.checks import LikelihoodWarning
from sgm_sde.likelihood.methods import TRACES, Trace
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.sampling.compiled import compile_network
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.diagnosis import ImplausibleWarning, advice, strange_starts
from sgm_sde.sampling.job import NOISES, Job, StartArguments, begin, resumed
from sgm_sde.sampling.on_grid import run_on_grid
from sgm_sde.sampling.options import Execution, Record
from sgm_sde.sampling.own_steps import run_adaptive
from sgm_sde.sampling.parts import WatchInBlocks
from sgm_sde.sampling.planning import (
    DEFAULT_NFE,
    StepArguments,
    final_update,
    plan,
    require_flow,
    require_unused,
    solver_of,
)
from sgm_sde.sampling.resolution import UnresolvedWarning, words_if_unresolved
from sgm_sde.sampling.results import SampleResult
from sgm_sde.sampling.scale import ScaleWarning, words_if_away, words_if_coarse, words_if_wide
from sgm_sde.sampling.start import PriorWarning, words_if_off_prior
from sgm_sde.sampling.statuses import plausibility
from sgm_sde.sampling.tokens import sample_tokens
from sgm_sde.schemes import AdaptiveSolver, Solver
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score, as_score

__all__ = ["plan", "sample"]

# Names of arguments elsewhere, by what is given here.
ELSEWHERE = (
    OF_NETWORKS
    | OF_RUNS
    | {
        **{field.name: f"execution=Execution({field.name}=...)" for field in fields(Execution)},
        **{field.name: f"record=Record({field.name}=...)" for field in fields(Record)},
        **instead_of(SAMPLES, "shape=, with the number of samples first: shape=(64, 3, 32, 32)"),
        **instead_of(STATES, "x_T="),
        **instead_of(("timesteps", "times", "sigmas"), "grid=, times of the process"),
        **instead_of(BOUNDS, "the score in bounds: guidance.Thresholded(score, limit)"),
        **instead_of((*FIRST_TIMES, "eps"), "t_end=, the time at which sampling ends"),
        **instead_of(TOLERANCES, "an adaptive solver: solver=Adaptive(rtol=..., atol=...)"),
        **instead_of(("return_trajectory", "return_intermediates"), "record=Record(trajectory='all')"),
        **instead_of(("verbose", "disable"), "record=Record(progress=...)"),
        **instead_of(("rng", "random_state", "manual_seed"), "seed=, or generator="),
        **instead_of(
            ("predictor", "corrector", "snr"), "solver=PredictorCorrector('reverse-diffusion', Langevin(snr=...))"
        ),
        **instead_of(("churn", "s_churn", "S_churn"), "an option of the solver: solver=Heun(s_churn=...)"),
        **instead_of(("order", "solver_order"), "an option of the solver: solver=DPMSolverPP(order=...)"),
        **instead_of(("sigma_min", "sigma_max"), "a process with them, as EDMSDE(sigma_min=..., sigma_max=...)"),
        **instead_of(("denoise", "denoise_final", "denoise_to_zero"), "final='denoise', which is the default"),
        **instead_of(("mask", "image", "strength"), "x_T= with t_start=, or a solver of sg.inverse"),
        "rho": "grid=grids.Karras(rho=...)",
        "size": "shape=",
        "callbacks": "record=Record(callback=...)",
        "compile_model": "execution=Execution(compile=True)",
        "eta": "an option of the solver: solver=DDIM(eta=...)",
    }
)


@outside_inference_mode
@named_elsewhere(ELSEWHERE)
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
    it had not been stopped, multistep methods and correctors included. Another network may continue it, and `solver`,
    the steps from there (`nfe`, `steps`, `grid`, `t_end`), `noise` and `final` may be given anew. The noise continues
    where it was. A multistep method keeps its history of evaluations, whichever network made them; another method
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
        nfe: budget of network calls, final one included, never exceeded. Default 50, or that for which the setting
            was chosen; none for adaptive solvers, whose samples stop where they are when it is spent, and the status
            says so.
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
        record: what is kept or shown on the way: `Record(trajectory=..., callback=..., progress=...)`.
        execution: how the run is carried out: `Execution(batch_size=..., until=..., compile=..., enable_grad=...,
            dtype=..., device=..., parallel=..., tolerance=...)`.
        resume: a result to continue from, which brings its states, seeds and dtype.
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
        ImplausibleWarning: if samples are larger, or further from the network's estimates, than the run accounts for.
        LikelihoodWarning: if the numerical error of a log-density is above one nat a dimension.
        UnfinishedWarning: if an adaptive solver ran out of steps or calls.
        BatchCoupledWarning: if a backend takes one step size for a batch.
        UnresolvedWarning: if samples vary by less than half the noise at the last network call.
        ScaleWarning: if samples of the default vary by more than it takes data for, or lie far from 0, with few calls,
            or those of an adaptive solver vary by little more than its absolute tolerance.
        PriorWarning: if data of their place and scale are more than noise at T, where the run starts from noise alone.
        LangevinNormWarning: if Langevin's step comes from norms of few numbers.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(3), 0.25).score(sde)
        >>> res = sg.sample(score, sde, shape=(64, 3), solver="dpm++2m", nfe=20, seed=0)
        >>> res.nfe, res.status.ok
        (20, True)
    """
    score = as_score(score_fn, sde)
    recorded = _option("record", record, Record)
    execution = _option("execution", execution, Execution)
    model_kwargs = arguments("model_kwargs", model_kwargs)
    if noise is not None:
        one_of("noise", noise, NOISES)
    _check_log_prob(log_prob)

    if solver is not None:
        require_flow(score, solver)  # before what the solver asks of its budget

    start = StartArguments(shape, x_T, seed, generator, execution.dtype, execution.device)
    if isinstance(grid, TokenGrid):
        refuse_transformed("sample() looks at values on a TokenGrid", "take a Grid")
        absent = {"noise": noise, "resume": resume, "log_prob": log_prob or None}
        timed = {"nfe": nfe, "steps": steps, "t_start": t_start, "t_end": t_end}
        _require_plain(absent, timed, recorded, execution)
        return _warned(
            *sample_tokens(
                score, sde, grid, start, solver, final_update(sde, final), model_kwargs, execution.batch_size
            ),
            sde,
            x_T is None,
        )

    asked = StepArguments(solver, nfe, steps, grid, t_start, t_end, final, score.traits)
    if log_prob is not False:
        asked = _along_flow(asked, {"resume": resume, "t_start": t_start, "noise": noise, "record": record}, execution)

    job = begin(score, sde, start, asked, noise) if resume is None else resumed(resume, sde, start, asked, noise)
    require_flow(score, job.solver if solver is None else solver, job.program)
    job.solver.look_at(score)
    _require_applicable(job, recorded, execution, noise)
    _require_without_values(job, execution, log_prob)
    if score.dtype is None and job.dtype != job.state_dtype:
        score = score.cast_to(job.dtype)
    if execution.compile:
        score = compile_network(score)
    require_rows(model_kwargs, job.size)
    if log_prob is not False:
        found = _with_log_prob(job, score, log_prob, model_kwargs, execution.enable_grad, asked.by_rule)
        return _warned(*found, sde, job.from_prior)

    model = BoundScore(score, sde, (job.grid.times[-1], job.grid.times[0]), model_kwargs)
    if job.position is not None and job.program is not None and missing(model.plan(job.program), job.position):
        job = job.without_history()

    with gradients(execution.enable_grad):
        if job.program is None:
            result, category = run_adaptive(job, model, nfe, steps, recorded, execution)
        else:
            result, category = run_on_grid(job, model, recorded, execution)
    if result.status.ok and not is_transformed():
        _warn_of_data(result, job, score)
    return _warned(result, category, sde, job.from_prior)


def _require_without_values(job: Job, execution: Execution, log_prob: bool | str | Trace) -> None:
    """Check that a run within a transformation of `torch.func` is one that looks at no values.

    Raises:
        RuntimeError: for any other.
    """
    plain = job.program is not None and log_prob is False
    if not (plain and execution.enable_grad and execution.parallel is None):
        refuse_transformed(
            "sample() looks at values",
            "with a solver on a grid, execution=Execution(enable_grad=True) and no log_prob= it looks at none",
        )


def _warn_of_data(result: SampleResult, job: Job, score: Score) -> None:
    """Warnings where samples show data of a place or scale that the solver does not suit."""
    level = job.last_level
    unresolved = words_if_unresolved(result.x, level, job.sde) if level else ""
    if unresolved:
        warn(unresolved, UnresolvedWarning)

    coarse = words_if_coarse(result.x, level, job.solver.allowance)
    if coarse:
        warn(coarse, ScaleWarning)

    plain = not (score.guided or score.coupled or score.jumps)  # as it was measured
    if not (plain and job.is_default and job.program is not None):
        return
    words = words_if_wide(result.x, result.nfe, job.sde)
    if not (words or unresolved):
        words = words_if_away(result.x, job.program, job.sde)
    if words:
        warn(words, ScaleWarning)


def _warned(result: SampleResult, category: type[Warning] | None, sde: SDE, from_prior: bool) -> SampleResult:
    """The result, after the warning that it calls for."""
    if from_prior and result.status.ok and not is_transformed() and (words := words_if_off_prior(result.x, sde)):
        warn(words, PriorWarning)
    if category is not None:
        more = ""
        if category is ImplausibleWarning:
            more = f": {advice(sde)}"
        if category is LikelihoodWarning:
            more = f" of {checks.MOST_ERROR:g} nat a dimension: take more calls, or ask log_prob() of x"
        warn(f"{result.status.message}{more}", category)
    return result


def _check_log_prob(log_prob: object) -> None:
    """Raise unless it is a bool, a trace or the name of one."""
    if isinstance(log_prob, str):
        one_of("log_prob", log_prob, tuple(TRACES))
    else:
        instance_of("log_prob", log_prob, bool | Trace, "True, False, or a trace such as Exact()")


def _along_flow(asked: StepArguments, others: Mapping[str, object], execution: Execution) -> StepArguments:
    """The arguments of a run whose samples' density is found along, which takes one call of the budget."""
    others = {
        **others,
        "batch_size": execution.batch_size,
        "until": execution.until,
        "compile": execution.compile or None,
        "parallel": execution.parallel,
    }
    along.require_states_of_flow(solver_of(asked.solver))
    by_steps = asked.nfe is None and not (asked.by_rule and asked.steps is None)
    budget = DEFAULT_NFE if asked.nfe is None else asked.nfe
    nfe, final = along.solver_arguments(budget, by_steps, asked.final, others)
    return replace(asked, nfe=nfe, final=final)


@outside_inference_mode
def _with_log_prob(
    job: Job,
    score: Score,
    trace: bool | str | Trace,
    model_kwargs: Conditions,
    enable_grad: bool,
    by_rule: bool,
) -> tuple[SampleResult, type[Warning] | None]:
    """The result of a run along the flow, with the samples' log-density, and what to warn of."""
    if job.size == 0:
        raise ValueError("log_prob= needs at least one sample, and x_T holds none")
    along.require_flow(job.sde, job.solver, job.name, job.program, job.grid.times, by_rule)
    sde = job.sde
    assert job.program is not None and has_scalar_marginal(sde)
    with gradients(enable_grad):
        x_T = job.states(slice(None))
        watch = job.watch(score, x_T)
        x, found = along.draw_with_log_prob(
            score, sde, x_T, job.program, job.seeds, trace, model_kwargs, on_output=watch.see
        )
    evals = found.nfe * job.size
    status, category = _judged(job, watch, x.detach())
    if status.ok and not found.status.ok:
        status, category = found.status, LikelihoodWarning
    result = SampleResult(
        x.to(job.dtype), found.nfe, job.grid.times, status, seeds=job.seeds, network_evals=evals, log_prob=found
    )
    return result, category


def _judged(job: Job, watch: WatchInBlocks, x: Tensor) -> tuple[Status, type[Warning] | None]:
    """Status of a run with finite states, which ends in x (B, *), and what to warn of."""
    implausible = watch.implausible(x, denoised=job.solver.ends_in_data).numpy(force=True)
    starts = None
    if job.start is not None:
        starts = strange_starts(job.start(slice(None)), x, job.sde).numpy(force=True)
    return plausibility(implausible, starts, job.sde, job.name if job.misses_gaussians else "")


Option = TypeVar("Option")


def _option(name: str, value: object, kind: type[Option]) -> Option:
    """An object of options, that of the defaults if none is given."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be sg.{kind.__name__}(...), got {described(value)}")
    return kind() if value is None else value


def _require_applicable(job: Job, record: Record, execution: Execution, noise: str | None) -> None:
    """Raise ValueError for an option that would do nothing."""
    if isinstance(job.solver, AdaptiveSolver):
        options = {
            "callback": record.callback,
            "trajectory": record.trajectory,
            "until": execution.until,
            "compile": execution.compile or None,
            "noise": None if noise == "independent" else noise,
            "parallel": execution.parallel,
        }
        require_unused(job.solver, job.given, options)
    elif noise == "path" and job.program is not None and not job.program.stochastic:
        raise ValueError(f"noise='path' would change nothing: {job.name} draws no noise in its steps; leave it out")
    if record.callback is not None and execution.batch_size is not None:
        raise ValueError("a callback sees all samples at each step: leave out batch_size=, which runs them in parts")
    if execution.parallel is not None:
        _require_parallel(job, record)


def _require_plain(
    absent: Mapping[str, object], timed: Mapping[str, object], record: Record, execution: Execution
) -> None:
    """Raise ValueError for an option that a run with times for each token does not have."""
    for name, value in absent.items():
        if value is not None:
            raise ValueError(f"{name}={described(value)} is not there on a TokenGrid: leave it out")
    for name, value in timed.items():
        if value is not None:
            raise ValueError(f"{name}={described(value)} does not go with a TokenGrid, which has all times")
    _require_defaults(record, Record())
    _require_defaults(
        execution, Execution(batch_size=execution.batch_size, dtype=execution.dtype, device=execution.device)
    )


def _require_defaults(options: Record | Execution, plain: Record | Execution) -> None:
    """Raise ValueError for an option that is not what it is in a plain run."""
    for field in fields(options):
        value = getattr(options, field.name)
        if value != getattr(plain, field.name):
            raise ValueError(
                f"{field.name}={described(value)} does not go with a TokenGrid, whose runs keep no record, and take of "
                f"Execution batch_size, dtype and device"
            )


def _require_parallel(job: Job, record: Record) -> None:
    """Raise ValueError for what needs one step after the other."""
    if isinstance(job.solver, Solver) and job.solver.has_hooks:
        raise ValueError(
            f"{job.name} moves states between steps by what the network says there, which no table holds: "
            f"leave out parallel="
        )
    if record.callback is not None:
        raise ValueError("a callback may stop a run between two steps, and a run in parallel makes many at once")
    if job.position is not None:
        raise ValueError("resume= takes one step after the other: leave out parallel=")
