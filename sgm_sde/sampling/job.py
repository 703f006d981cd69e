"""A run that is settled: from which states, with which noise, and how it resumes another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, float_dtype, require_floating, shape_of_samples, usable_device
from sgm_sde._utils.warn import warn
from sgm_sde.engine.brownian import PathNoise
from sgm_sde.engine.executor import Hook, Position
from sgm_sde.engine.noise import Generators, NoiseStream, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.program import Program
from sgm_sde.engine.times import same_time
from sgm_sde.grids import Grid
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.diagnosis import Watch, size_of_start
from sgm_sde.sampling.on_gaussians import is_unsuited
from sgm_sde.sampling.parts import WatchInBlocks
from sgm_sde.sampling.planning import StepArguments, final_update, table_of
from sgm_sde.sampling.resolution import FEW_CALLS
from sgm_sde.sampling.results import Continuation, SampleResult
from sgm_sde.schemes import AdaptiveSolver, Solver, resolve_any
from sgm_sde.schemes.base import called
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score

NOISES = ("independent", "path")


@dataclass(frozen=True)
class Job:
    """A run that is settled: what is run, from which states, with which noise.

    Attributes:
        sde: the process.
        solver: the solver.
        given: the solver as the caller gave it, None for the default.
        grid: the times; of a solver that finds its own steps the two ends.
        program: its table; None for a solver that finds its own steps.
        seeds: the samples'.
        dtype: of the samples.
        states: those of some samples, of the run's own precision, to start from.
        noise: "independent" or "path".
        final: what to return at the end.
        segment: the time at which the streams of noise began.
        draws: how often the solver and its correctors have drawn.
        position: where on the grid to resume, None at its start.
        start: the sizes (b,) of some of the states that are given at T, None where they are not given there.
        fresh: whether the states are made anew whenever they are asked for, so that a run may overwrite them.
        from_prior: whether it starts from noise alone, at T, and goes along the marginals.
        ends_by_rule: whether a rule chose where it ends, and not the caller.
    """

    sde: SDE
    solver: Solver | AdaptiveSolver
    given: object
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
    start: Callable[[slice], Tensor] | None = None
    fresh: bool = False
    from_prior: bool = False
    ends_by_rule: bool = False

    @property
    def name(self) -> str:
        """Name of the solver in messages."""
        return f"the default solver ({self.solver.name})" if self.given is None else called(self.solver, self.given)

    @property
    def is_default(self) -> bool:
        """True if nobody has named a solver, a place on the way or an end, on a process with noise levels."""
        chosen = self.given is None and self.ends_by_rule and self.position is None
        return chosen and has_scalar_marginal(self.sde) and self.grid.times[0] > self.sde.T / 2

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
    def misses_gaussians(self) -> bool:
        """True if the table alone makes all of the samples, and ends too large on Gaussian data of any scale."""
        if self.program is None or self.position is not None:
            return False
        return is_unsuited(self.solver, self.program, self.sde)

    @property
    def last_level(self) -> float:
        """The noise level of the call that makes the samples, 0 if caller or fit chose where it is."""
        if self.program is None or not self.ends_by_rule or not has_scalar_marginal(self.sde):
            return 0.0
        assert isinstance(self.solver, Solver)
        if self.solver.budget or self.program.nfe + self.denoises <= FEW_CALLS:  # fitted to a network, or distilled
            return 0.0

        called = [stage.t for stage in self.program.stages if stage.evaluate]
        if self.denoises:
            called.append(self.grid.times[-1])
        elif not self.solver.ends_in_data:
            return 0.0

        return self.sde.nodes((called[-1],))[0].noise_level

    @property
    def state_dtype(self) -> torch.dtype:
        """The run's own precision."""
        return torch.promote_types(self.dtype, torch.float32)

    def watch(self, score: Score, x: Tensor) -> WatchInBlocks:
        """The watch over a run of some of the samples from states x (b, *)."""
        watched = partial(Watch, self.sde, prediction=score.prediction, density=score.follows_marginals)
        if self.program is None:
            watched = partial(watched, times=self.grid.times)
        else:
            assert isinstance(self.solver, Solver)
            times = self.program.asked_times[self.first :]
            watched = partial(watched, times=times, guided=self.solver.guided, lags=self.solver.lags)
            if self.solver.guided and has_scalar_marginal(self.sde):
                watched = partial(watched, reach=self.solver.reach(self.sde, self.grid))
        return WatchInBlocks(lambda some: watched(x=some), x)

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

    def without_history(self) -> Job:
        """The rest of the run as one that starts where it stands."""
        rest = Grid(self.grid.times[self.first :])
        assert isinstance(self.solver, Solver)
        return replace(self, grid=rest, program=table_of(self.solver, self.sde, rest, self.final), position=None)

    def noises(self, at: slice, model: BoundScore) -> tuple[NoiseStream | PathNoise, NoiseStream, Sequence[Hook]]:
        """For some of the samples, the noise of the steps, that of the correctors, and what runs at the nodes."""
        assert isinstance(self.solver, Solver) and self.program is not None
        seeds = self.seeds[at]
        of_solver, of_correctors = self.draws
        source: NoiseStream | PathNoise = NoiseStream(seeds, "solver", self.segment, of_solver)
        if self.noise == "path":
            source = brownian_path(self.solver, self.program, self.sde, seeds)
        corrections = NoiseStream(seeds, "corrector", self.segment, of_correctors)
        last_without_noise = self.final == "mean" or self.solver.ends_in_data
        hooks = self.solver.hooks(self.sde, self.grid, model, corrections, mean=last_without_noise)
        return source, corrections, hooks


@dataclass(frozen=True)
class StartArguments:
    """Arguments of `sample` that settle the states a run starts from, as they were given.

    Attributes:
        shape: see `sample`; so are the others.
        x_T: states.
        seed: one, or one for each sample.
        generator: which seeds are drawn from.
        dtype: of the samples.
        device: of the samples.
    """

    shape: Sequence[int] | None = None
    x_T: Tensor | None = None
    seed: Seeds = None
    generator: Generators = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None

    def settled(self, score: Score) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
        """Shape, dtype and device of the samples."""
        if (self.shape is None) == (self.x_T is None):
            raise ValueError("give shape= for samples from the prior, or x_T= to start from, and not both")

        if self.x_T is not None:
            require_floating("x_T", self.x_T)
            if self.dtype is not None or self.device is not None:
                raise ValueError("dtype and device follow x_T; give them with shape= only")
            return tuple(self.x_T.shape), self.x_T.dtype, self.x_T.device

        assert self.shape is not None
        shape = shape_of_samples("shape", self.shape)
        device = device_of(score, self.device)
        dtype = torch.get_default_dtype() if self.dtype is None else self.dtype
        return shape, float_dtype("dtype", dtype), device


def device_of(score: Score, device: torch.device | str | None) -> torch.device:
    """The device that is named, the network's, or torch's default."""
    if device is not None:
        return usable_device("device", device)
    parameter = score.parameter
    return torch.empty(0).device if parameter is None else parameter.device  # of a `with torch.device(...)`, too


def begin(score: Score, sde: SDE, start: StartArguments, asked: StepArguments, noise: str | None) -> Job:
    """A run from the prior or from states given.

    Where a rule has chosen the first time, states given are those at T, and go there by the linear part of the flow.
    """
    final = final_update(sde, asked.final)
    solver, grid, program = asked.plan(sde)
    t_start = grid.times[0]
    by_rule = asked.t_start is None and asked.by_rule  # the rule chooses the first time

    shape, dtype, device = start.settled(score)
    x_T = start.x_T
    seeds = resolve_seeds(start.seed, start.generator, shape[0])
    state_dtype = torch.promote_types(dtype, torch.float32)
    if x_T is None and t_start < sde.T and not by_rule:
        warn(
            f"starting at t={t_start:g} < T={sde.T:g} from pure noise: the marginal there contains data; "
            f"pass noised data as x_T",
        )

    def states(at: slice) -> Tensor:
        if x_T is None:
            some = seeds[at]
            z = NoiseStream(some, "prior").normal((len(some), *shape[1:]), state_dtype, device)
            return sde.prior_transform(z, t_start)

        x = x_T[at].to(state_dtype)
        if by_rule and t_start < sde.T:
            return sde.prior_transform(x / sde.prior_std, t_start)
        return x

    def size(at: slice) -> Tensor:
        assert x_T is not None
        return size_of_start(x_T[at], sde)

    at_T = by_rule or t_start == sde.T
    lags = isinstance(solver, Solver) and solver.lags
    ends_by_rule = asked.by_rule and asked.t_end is None
    ends_in_data = final == "denoise" or ends_by_rule or grid.times[-1] <= sde.eps
    from_prior = at_T and x_T is None and not lags and ends_in_data
    return Job(
        sde, solver, asked.solver, grid, program, seeds, dtype, states,
        noise=noise or "independent", final=final, segment=t_start, start=size if at_T and x_T is not None else None,
        fresh=x_T is None, from_prior=from_prior, ends_by_rule=ends_by_rule,
    )  # fmt: skip


def resumed(resume: SampleResult, sde: SDE, start: StartArguments, asked: StepArguments, noise: str | None) -> Job:
    """A run that resumes another."""
    known = _continuation(resume, sde)
    brought = {name: getattr(start, name) for name in ("shape", "x_T", "seed", "generator", "dtype", "device")}
    for name, value in (brought | {"t_start": asked.t_start}).items():
        if value is not None:
            raise ValueError(f"resume= brings its states, time, seeds and dtype: leave out {name}={described(value)}")

    final = known.final if asked.final is None else final_update(sde, asked.final)
    past = known.grid.times[: known.position.node + 1]
    solver, grid = _rest(known, sde, replace(asked, final=final), past)
    if isinstance(solver, AdaptiveSolver):
        raise ValueError(
            f"resume= continues along a grid, and {called(solver, asked.solver)} finds its own steps: "
            f"give it x_T=result.x and t_start={known.t:.6g}"
        )

    position = known.position
    job = Job(
        sde=sde,
        solver=solver,
        given=known.solver if asked.solver is None else asked.solver,
        grid=grid,
        program=known.program,
        seeds=known.seeds,
        dtype=known.dtype,
        states=lambda at: position.x[at],
        noise=known.noise if noise is None else noise,
        final=final,
        segment=known.segment,
        draws=known.draws,
        position=position,
    )

    # Another method, or another way here, has no use for the history.
    if type(solver) is not type(known.solver) or grid.times[: len(past)] != past:
        return replace(job, grid=Grid((*past, *grid.times[len(past) :]))).without_history()

    program = table_of(solver, sde, grid, final)
    job = replace(job, program=program)
    return job if _same_until(position.node, program, known.program) else job.without_history()


def _rest(
    known: Continuation, sde: SDE, asked: StepArguments, past: tuple[float, ...]
) -> tuple[Solver | AdaptiveSolver, Grid]:
    """The solver of the rest of a run, and the whole grid, with the times that it has come along."""
    solver = known.solver if asked.solver is None else asked.solver
    placed_anew = any(option is not None for option in (asked.nfe, asked.steps, asked.grid, asked.t_end))
    if isinstance(solver, Setting) or placed_anew:
        from_here = replace(asked, solver=solver, t_start=known.t if asked.by_rule else None)
        chosen, placed, _ = from_here.plan(sde)
        return chosen, _continued(past, placed)

    if len(past) == len(known.grid.times):
        raise ValueError(
            f"the run has reached the end of its grid at t={known.t:.6g}: give nfe=, steps=, grid= or t_end= for more"
        )
    return resolve_any(solver), known.grid


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
    stages = sum(1 for _ in until_node(one, node))
    if one.stages[:stages] != other.stages[:stages]:
        return False
    return (one.prediction, one.eta, one.sigma_data) == (other.prediction, other.eta, other.sigma_data)


def until_node(program: Program, node: int) -> Iterator[int]:
    """The numbers of the stages up to that of a node."""
    for k, stage in enumerate(program.stages):
        yield k
        node -= stage.node
        if node < 0:
            return


def _continuation(resume: object, sde: SDE) -> Continuation:
    """Stored state of a result, to be resumed."""
    if not isinstance(resume, SampleResult):
        raise TypeError(f"resume must be the result of sample(), got {described(resume)}")
    known = resume.continuation
    if resume.control is not None:
        raise ValueError("a run whose solver found its own steps cannot be resumed: resume= continues along a grid")
    if known is None:
        raise ValueError(
            "the run is complete, and what it returned is no state to continue from: stop it on the way, by "
            "execution=Execution(until=...) or a callback, or end it with final='none'"
        )
    if sde is not known.sde and sde.spec() != known.sde.spec():
        raise ValueError(f"a run on {known.sde!r} cannot be resumed on another process, got {described(sde)}")
    return known


def brownian_path(solver: Solver, program: Program, sde: SDE, seeds: SampleSeeds) -> PathNoise:
    """Noise from one Brownian path per sample, halved evenly in log-SNR, where there is one."""

    def middle(a: float, b: float) -> float:
        t = math.nan
        if has_scalar_marginal(sde):
            log_snr = (sde.log_snr(a) + sde.log_snr(b)) / 2
            t = float(sde.time(log_snr))
        return t if min(a, b) < t < max(a, b) else (a + b) / 2

    for t in (program.times[0], program.times[-1]):
        if program.stochastic and not math.isfinite(solver.brownian_time(sde, t)):
            raise ValueError(f"noise='path' needs a finite log-SNR at both ends, and at t={t} it is infinite")
    return PathNoise(program, seeds, brownian_time=partial(solver.brownian_time, sde), middle=middle)
