"""Runs in which each token, frame or pixel has times of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import described
from sgm_sde._utils.shapes import finite, flat
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.executor import Loop
from sgm_sde.engine.lowering import Conversion, lower
from sgm_sde.engine.matrix import Diagonal, times
from sgm_sde.engine.noise import NoiseSource, NoiseStream, SampleSeeds, resolve_seeds
from sgm_sde.engine.status import Status
from sgm_sde.engine.times import in_words_of_table
from sgm_sde.engine.tokens import Column, TokenProgram, align
from sgm_sde.grids import Grid, TokenGrid
from sgm_sde.processes import LinearSDE
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.sampling.defaults import Setting, default_setting
from sgm_sde.sampling.diagnosis import Watch, listed, size_of_start, strange_starts
from sgm_sde.sampling.job import StartArguments
from sgm_sde.sampling.on_gaussians import is_unsuited
from sgm_sde.sampling.parts import Joined, models_of, slices_of
from sgm_sde.sampling.planning import require_flow, table_of
from sgm_sde.sampling.results import SampleResult
from sgm_sde.sampling.statuses import NonFiniteWarning, plausibility
from sgm_sde.schemes import AdaptiveSolver, Solver, resolve_any
from sgm_sde.schemes.base import called
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.model import BoundScore, checked_conversion
from sgm_sde.scores.score import Score

MOST_WATCHED = 64  # distinct columns of times whose tokens are watched


def sample_tokens(
    score: Score,
    sde: SDE,
    grid: TokenGrid,
    start: StartArguments,
    solver: Solver | AdaptiveSolver | Setting | str | None,
    final: str,
    model_kwargs: Conditions,
    batch_size: int | None,
) -> tuple[SampleResult, type[Warning] | None]:
    """Samples of a solver on a grid with times for each token, and what to warn of: `sample(grid=TokenGrid(...))`.

    The network is called with t of the rank of x, (B, *) with ones where times are shared. A token that never moves
    stays as it was given, whatever the network says of it. Each of the others has the noises of a run of all tokens on
    its own column.
    """
    if not has_scalar_marginal(sde):
        raise TypeError(f"times for each token need a LinearSDE, got {described(sde)}")
    t = grid.times.numpy()
    lowest = float(t.min())
    highest = float(t.max())
    if highest > sde.T:
        words = in_words_of_table(sde, highest)
        raise ValueError(f"the grid starts at t={highest}, beyond T={sde.T}{words}")

    if solver is None:
        solver = default_setting(sde, grid.steps + 1, t_end=sde.eps, **score.traits).solver
    method = _method(solver)
    dtype, seeds, states = _start(score, sde, grid, start)
    if score.dtype is None and dtype in (torch.float16, torch.bfloat16):
        score = score.cast_to(dtype)
    batch = len(seeds)
    model = BoundScore(score, sde, (lowest, highest), model_kwargs)
    require_rows(model.kwargs, batch)

    aligned = align(t, lambda column: table_of(method, sde, Grid(column), final))
    require_flow(score, solver, aligned.program)
    denoises = final == "denoise" and not method.ends_in_data
    slices = slices_of(batch, batch_size)
    models = list(models_of(model, slices, batch))
    joined = Joined(batch)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.no_grad():
        for at, of_part in zip(slices, models, strict=True):
            noise = _TokenNoise(NoiseStream(seeds[at], "solver", highest), aligned.draws)
            x = states(at)
            watches = _Watches(sde, score, method, aligned, x, given=start.x_T is not None)
            end = _driven(sde, of_part, aligned, x, noise, watches)
            if denoises:
                end = _denoised(sde, of_part, end, t[-1], t[0] > t[-1])
            joined.put(at, end)
            if not end.is_meta:
                seen.append(watches.judged(end, denoised=denoises or method.ends_in_data))

    rows = tuple(grid.times.flatten(1).amax(1).tolist())
    status, category = _status(joined.whole, lowest, seen, sde, _misses(method, aligned, sde))
    result = SampleResult(
        joined.whole.to(dtype),
        max(of_part.nfe for of_part in models),
        rows,
        status,
        seeds=seeds,
        network_evals=sum(of_part.network_evals for of_part in models),
    )
    return result, category


def _misses(method: Solver, aligned: TokenProgram, sde: LinearSDE) -> str:
    """The solver's name, if along the times of any token it misses Gaussian data, else ""."""
    misses = any(is_unsuited(method, column.program, sde) for column in watched(aligned))
    return called(method) if misses else ""


def watched(aligned: TokenProgram) -> Sequence[Column]:
    """Columns whose tokens are watched: all, or so many of more."""
    every = -(-len(aligned.columns) // MOST_WATCHED)
    return aligned.columns[::every]


class _Watches:
    """A watch over the tokens of each column, which are a run of their own on their times.

    Args:
        sde: the process.
        score: the network.
        method: the solver.
        aligned: the program.
        x: the states (B, *) to start from.
        given: whether the caller gave them.
    """

    def __init__(
        self, sde: LinearSDE, score: Score, method: Solver, aligned: TokenProgram, x: Tensor, *, given: bool
    ) -> None:
        self._sde = sde
        self._watched: list[tuple[Column, Tensor, Watch]] = []
        self._starts: list[tuple[Tensor, Tensor]] = []
        for column in () if x.is_meta else watched(aligned):
            tokens = np.broadcast_to(column.tokens, tuple(x.shape[1:]))
            index = torch.from_numpy(np.flatnonzero(tokens)).to(x.device)
            start = _of_tokens(x, index)
            times = column.program.asked_times
            density = score.follows_marginals
            watch = Watch(sde, times, score.prediction, start, density=density, lags=method.lags)
            self._watched.append((column, index, watch))
            if given and column.program.times[0] == sde.T:
                self._starts.append((index, size_of_start(start, sde)))

    def see(self, stage: int, x: Tensor, output: Tensor) -> None:
        """Keep the sizes of the states of a stage and of the network's outputs there, where they are looked at."""
        for column, index, watch in self._watched:
            t = column.asked.get(stage)
            if t is not None and t in watch.looks:
                watch.see(_of_tokens(x, index), _of_tokens(output, index), t)

    def judged(self, end: Tensor, *, denoised: bool) -> tuple[np.ndarray, np.ndarray]:
        """Of the final states (B, *): a mask (B,) of those that the run cannot account for, and the sizes (B,) of their
        states given at T where these are not of the prior's, NaN of others."""
        implausible = torch.zeros(len(end), dtype=torch.bool, device=end.device)
        for _, index, watch in self._watched:
            implausible |= watch.implausible(_of_tokens(end, index), denoised=denoised)

        starts = torch.full((len(end),), math.nan, dtype=end.dtype, device=end.device)
        for index, size in self._starts:
            found = strange_starts(size, _of_tokens(end, index), self._sde)
            starts = torch.where(starts.isnan(), found, starts)
        return implausible.numpy(force=True), starts.numpy(force=True)


def _of_tokens(x: Tensor, index: Tensor) -> Tensor:
    """The numbers (B, n) of some tokens of states (B, *)."""
    return flat(x).index_select(1, index)


def _driven(
    sde: LinearSDE, model: BoundScore, aligned: TokenProgram, x: Tensor, noise: NoiseSource, watches: _Watches
) -> Tensor:
    """The last state of a program of tokens."""
    program = aligned.program
    conversions = [
        _conversion(sde, model.score, program.prediction, t, asked, program.eta, program.sigma_data)
        for t, asked in zip(aligned.times, aligned.asked, strict=True)
    ]
    times_of_stages = [_times(model, t, x) for t in aligned.times]
    table = lower(program, conversions)
    loop = Loop(table, x, times_of_stages, noise)
    asked = [None if of.all() else torch.from_numpy(of).to(x.device) for of in aligned.asked]

    def evaluate(state: Tensor, t: Tensor) -> Tensor:
        output = model.evaluate(state, t)
        watches.see(loop.stage, state, output)
        tokens = asked[loop.stage]
        if tokens is None:
            return output
        # What a network says of a token that waits is not used, and need not be a number: data at time 0, say.
        return torch.where(tokens, output, 0.0)

    return loop.drive(evaluate).x


def _denoised(sde: LinearSDE, model: BoundScore, x: Tensor, t: np.ndarray, moved: np.ndarray) -> Tensor:
    """Estimates of the data of the tokens that have moved, from their states at the last times; others as they are."""
    c_x, c_r = _conversion(sde, model.score, "data", t, moved)
    output = model.evaluate(x, _times(model, t, x)).to(x.dtype)
    data = times(c_x, x) + times(c_r, output)
    return torch.where(torch.from_numpy(moved).to(x.device), data, x)


def _status(
    end: Tensor, t: float, seen: Sequence[tuple[np.ndarray, np.ndarray]], sde: LinearSDE, misses: str
) -> tuple[Status, type[Warning] | None]:
    """Status of a run whose last states, at time t, are known, with what its watches have seen, and what to warn of."""
    if not seen:
        return Status(), None

    bad = tuple((~finite(end)).nonzero().flatten().tolist())
    if bad:
        message = f"non-finite state at the end in {len(bad)} of {len(end)} samples ({listed(bad)})"
        return Status(False, message, t, bad), NonFiniteWarning
    implausible, starts = (np.concatenate(values) for values in zip(*seen, strict=True))
    return plausibility(implausible, starts, sde, misses)


class _TokenNoise:
    """Noise of a run in which each token has draws of its own, in a stream that makes any of them at any time."""

    def __init__(self, stream: NoiseStream, draws: Sequence[np.ndarray]) -> None:
        self._stream = stream
        self._draws = iter(draws)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        return self._stream.mixed(next(self._draws), shape, dtype, device)


def _start(
    score: Score, sde: LinearSDE, grid: TokenGrid, start: StartArguments
) -> tuple[torch.dtype, SampleSeeds, Callable[[slice], Tensor]]:
    """The samples' dtype, their seeds, and the states that some of them start from, at least in float32."""
    shape, dtype, device = start.settled(score)
    _require_fitting(grid, shape)
    seeds = resolve_seeds(start.seed, start.generator, shape[0])
    precision = torch.promote_types(dtype, torch.float32)
    x_T = start.x_T
    if x_T is None and bool((grid.times[0] != sde.T).any()):
        raise ValueError(
            f"some tokens start below T={sde.T}, where states contain data: give x_T=, noised to their times"
        )

    def states(at: slice) -> Tensor:
        if x_T is not None:
            return x_T[at].to(precision)
        some = seeds[at]
        z = NoiseStream(some, "prior").normal((len(some), *shape[1:]), precision, device)
        return sde.prior_transform(z)

    return dtype, seeds, states


def _require_fitting(grid: TokenGrid, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the grid's tokens are those of states of a shape."""
    tokens = tuple(grid.times.shape[1:])
    if len(tokens) != len(shape) - 1 or any(n not in (1, m) for n, m in zip(tokens, shape[1:], strict=True)):
        raise ValueError(
            f"a TokenGrid for states {shape} has times (n + 1, *) with a length of {shape[1:]} or 1 on each axis, "
            f"got (n + 1, {', '.join(map(str, tokens))})"
        )


def _method(solver: Solver | AdaptiveSolver | Setting | str) -> Solver:
    """The solver, one whose table is all that it does."""
    if isinstance(solver, Setting):
        if solver.budget is None:
            raise ValueError(f"the setting {solver.plain} brings its own grid: give its solver alone")
        solver = solver.solver
    found = resolve_any(solver)
    if isinstance(found, AdaptiveSolver):
        raise ValueError(f"{called(found, solver)} finds its own steps, and a TokenGrid gives them")
    if found.budget is not None:
        raise ValueError(
            f"{found.name} was fitted to noise levels of its own, and a TokenGrid gives them: take another"
        )
    if found.has_hooks:
        raise ValueError(
            f"{called(found, solver)} moves states between steps by what the network says there, which no table holds: "
            f"it has no times for each token"
        )
    return found


def _conversion(
    sde: LinearSDE,
    score: Score,
    target: str,
    t: np.ndarray,
    asked: np.ndarray,
    eta: float = 0.0,
    sigma_data: float = 1.0,
) -> Conversion:
    """From the network's output to a prediction at the times (*) of tokens, 0 where it is not asked for."""
    at, inverse = np.unique(t[asked], return_inverse=True)
    pairs = [checked_conversion(score.prediction, target, node, eta, sigma_data) for node in sde.nodes(at.tolist())]
    if not pairs:
        return 0.0, 1.0
    found = np.zeros((2, *t.shape))
    found[:, asked] = np.array(pairs).T[:, inverse.reshape(-1)]
    c_x, c_r = (Diagonal.of(c) for c in found)
    return c_x, c_r


def _times(model: BoundScore, t: np.ndarray, x: Tensor) -> Tensor:
    """The times (*) of tokens as a tensor of the rank of x."""
    rounded = model.round_times(t.reshape(-1), x).reshape(1, *t.shape)
    return rounded.expand(len(x), *t.shape)
