"""Runs in which each token, frame or pixel has times of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import float_dtype, require_floating, shape_of_samples, usable_device
from sgm_sde._utils.shapes import finite
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.executor import Loop
from sgm_sde.engine.lowering import Conversion, lower
from sgm_sde.engine.matrix import Diagonal, times
from sgm_sde.engine.noise import Generators, NoiseStream, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.program import Program
from sgm_sde.engine.status import Status
from sgm_sde.engine.tokens import align
from sgm_sde.grids import Grid, TokenGrid
from sgm_sde.processes import LinearSDE
from sgm_sde.processes.base import SDE, has_scalar_marginal
from sgm_sde.sampling.defaults import Setting, default_setting
from sgm_sde.sampling.results import SampleResult
from sgm_sde.schemes import AdaptiveSolver, Solver, resolve_any
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.model import BoundScore, checked_conversion
from sgm_sde.scores.score import Score


def sample_tokens(
    score: Score,
    sde: SDE,
    grid: TokenGrid,
    *,
    shape: Sequence[int] | None = None,
    x_T: Tensor | None = None,
    solver: Solver | AdaptiveSolver | Setting | str | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    final: str = "denoise",
    model_kwargs: Conditions | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> SampleResult:
    """Samples of a solver on a grid with times for each token: `sample(grid=TokenGrid(...))`.

    The network is called with t of the rank of x, (B, *) with ones where times are shared. A token that never moves
    stays as it was given, whatever the network says of it. Each of the others has the noises of a run of all tokens on
    its own column.
    """
    if not has_scalar_marginal(sde):
        raise TypeError(f"times for each token need a LinearSDE, got {sde!r}")
    times_of = grid.times.numpy()
    lowest, highest = float(times_of.min()), float(times_of.max())
    if highest > sde.T:
        raise ValueError(f"the grid starts at t={highest}, beyond T={sde.T}")
    method = _method(sde, solver, grid)
    x, seeds = _start(score, sde, grid, shape, x_T, seed, generator, dtype, device)
    if score.dtype is None and x.dtype in (torch.float16, torch.bfloat16):
        score = score.cast_to(x.dtype)
    given, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    model = BoundScore(score, sde, (lowest, highest), model_kwargs)
    require_rows(model.kwargs, len(x))

    aligned = align(times_of, lambda column: _compiled(method, sde, column, final))
    program = aligned.program
    conversions = [
        _conversion(sde, score, program.prediction, t, asked, program.eta, program.sigma_data)
        for t, asked in zip(aligned.times, aligned.asked, strict=True)
    ]
    at = [_times(model, t, x) for t in aligned.times]
    with torch.no_grad():
        noise = _TokenNoise(NoiseStream(seeds, "solver", highest), aligned.draws)
        loop = Loop(lower(program, conversions), x, at, noise)
        asked = [None if of.all() else torch.from_numpy(of).to(x.device) for of in aligned.asked]

        def evaluate(state: Tensor, t: Tensor) -> Tensor:
            output, tokens = model.evaluate(state, t), asked[loop.stage]
            # What a network says of a token that waits is not used, and need not be a number: data at time 0, say.
            return output if tokens is None else torch.where(tokens, output, 0.0)

        end = loop.drive(evaluate).x
        if final == "denoise" and not method.ends_in_data:
            moved = times_of[0] > times_of[-1]
            c_x, c_r = _conversion(sde, score, "data", times_of[-1], moved)
            output = model.evaluate(end, _times(model, times_of[-1], x)).to(end.dtype)
            data = times(c_x, end) + times(c_r, output)
            end = torch.where(torch.from_numpy(moved).to(end.device), data, end)

    status = Status()
    if not end.is_meta and not (fine := finite(end)).all():
        bad = tuple((~fine).nonzero().flatten().tolist())
        listed = ", ".join(map(str, bad[:8]))
        message = f"non-finite state at the end in {len(bad)} of {len(end)} samples ({listed})"
        status = Status(False, message, lowest, bad)
    rows = tuple(grid.times.flatten(1).amax(1).tolist())
    return SampleResult(end.to(given), model.nfe, rows, status, seeds=seeds, network_evals=model.network_evals)


class _TokenNoise:
    """Noise of a run in which each token has draws of its own, in a stream that makes any of them at any time."""

    def __init__(self, stream: NoiseStream, draws: Sequence[np.ndarray]) -> None:
        self._stream, self._draws = stream, iter(draws)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        return self._stream.mixed(next(self._draws), shape, dtype, device)


def _start(
    score: Score,
    sde: LinearSDE,
    grid: TokenGrid,
    shape: Sequence[int] | None,
    x_T: Tensor | None,
    seed: Seeds,
    generator: Generators,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[Tensor, SampleSeeds]:
    """The states to start from, and the seeds."""
    if (shape is None) == (x_T is None):
        raise ValueError("give shape= for samples from the prior, or x_T= to start from, and not both")
    if x_T is not None:
        require_floating("x_T", x_T)
        if dtype is not None or device is not None:
            raise ValueError("dtype and device follow x_T; give them with shape= only")
        _require_fitting(grid, tuple(x_T.shape))
        return x_T, resolve_seeds(seed, generator, len(x_T))
    assert shape is not None
    shape = shape_of_samples("shape", shape)
    _require_fitting(grid, shape)
    if bool((grid.times[0] != sde.T).any()):
        raise ValueError(
            f"some tokens start below T={sde.T}, where states contain data: give x_T=, noised to their times"
        )
    parameter = score.parameter
    device = parameter.device if device is None and parameter is not None else device
    device = torch.get_default_device() if device is None else usable_device("device", device)
    dtype = float_dtype("dtype", torch.get_default_dtype() if dtype is None else dtype)
    seeds = resolve_seeds(seed, generator, shape[0])
    z = NoiseStream(seeds, "prior").normal(shape, torch.promote_types(dtype, torch.float32), device)
    return sde.prior_transform(z).to(dtype), seeds


def _require_fitting(grid: TokenGrid, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the grid's tokens are those of states of a shape."""
    tokens = tuple(grid.times.shape[1:])
    if len(tokens) != len(shape) - 1 or any(n not in (1, m) for n, m in zip(tokens, shape[1:], strict=True)):
        raise ValueError(
            f"a TokenGrid for states {shape} has times (n + 1, *) with a length of {shape[1:]} or 1 on each axis, "
            f"got (n + 1, {', '.join(map(str, tokens))})"
        )


def _method(sde: LinearSDE, solver: Solver | AdaptiveSolver | Setting | str | None, grid: TokenGrid) -> Solver:
    """The solver, one whose table is all that it does."""
    if isinstance(solver, Setting):
        raise ValueError(f"the setting {solver} brings its own grid: give its solver alone")
    found = default_setting(sde, grid.steps + 1).solver if solver is None else resolve_any(solver)
    if isinstance(found, AdaptiveSolver):
        raise ValueError(f"{found.name} finds its own steps, and a TokenGrid gives them")
    if found.has_hooks:
        raise ValueError(
            f"{found.name} moves states between its steps by what the network says there, which no table holds: it has "
            f"no times for each token"
        )
    return found


def _compiled(method: Solver, sde: SDE, column: tuple[float, ...], final: str) -> Program:
    program = method.compile(sde, Grid(column))
    return method.end_in_mean(program) if final == "mean" else program


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
