"""Orders of convergence: of solutions, and of laws on Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, instance_of, sizes
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.executor import execute
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.grids import Grid, GridRule, LogSNR
from sgm_sde.processes.base import SDE, require_sde
from sgm_sde.processes.kinds import has_matrix_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.schemes import Solver, resolve
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.oracles import Gaussian, Oracle
from sgm_sde.scores.score import Score
from sgm_sde.testing.problems import Silence, default_oracle, flow_reference, run_on, span
from sgm_sde.testing.uneven import require_rule

F64 = torch.float64

# Gaussian data sets, side by side as coordinates: an error that changes its sign on one of them is seen on another.
MEANS = (0.7, -1.2, 0.4, 0.9)


STDS = (0.6, 0.2, 1.5, 0.4)


@dataclass(frozen=True, repr=False)
class OrderMeasurement:
    """Errors at rising numbers of steps.

    Attributes:
        steps: numbers of steps.
        errors: the error at each.
        stderrs: the standard error of each, where errors are estimated; empty where they are exact.

    Examples:
        >>> OrderMeasurement((10, 20, 40), (1e-2, 2.5e-3, 6.25e-4)).order
        2.0
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    stderrs: tuple[float, ...] = ()

    @property
    def slopes(self) -> tuple[float, ...]:
        """Order of convergence between successive numbers of steps."""
        return tuple(
            math.log(e1 / e2) / math.log(n2 / n1)
            for (n1, e1), (n2, e2) in pairwise(zip(self.steps, self.errors, strict=True))
        )

    @property
    def order(self) -> float:
        """Slope over the last two refinements whose errors are above rounding and 5 standard errors."""
        return self._fitted[0]

    @property
    def order_stderr(self) -> float:
        """Standard error of `order`."""
        return self._fitted[1]

    def __str__(self) -> str:
        """Steps, error and order between neighbours, a line each."""
        orders = ["", *(f"{slope:.2f}" for slope in self.slopes)]
        errors = [f"{error:.2e}" for error in self.errors]
        if self.stderrs:
            errors = [f"{error} +- {stderr:.0e}" for error, stderr in zip(errors, self.stderrs, strict=True)]
        width = max(map(len, [*errors, "error"]))
        lines = [f"{'steps':>6}  {'error':>{width}}  order"]
        lines += [f"{n:6d}  {e:>{width}}  {o:>5}" for n, e, o in zip(self.steps, errors, orders, strict=True)]
        stderr = f" +- {self.order_stderr:.2f}" if self.stderrs else ""
        return "\n".join([*map(str.rstrip, lines), f"order {self.order:.2f}{stderr}"])

    __repr__ = __str__

    @property
    def _fitted(self) -> tuple[float, float]:
        """The order and its standard error; NaN where fewer than two errors stand out."""
        rows = zip(self.steps, self.errors, self.stderrs or [0.0] * len(self.steps), strict=True)
        clean = [row for row in rows if row[1] > max(1e-12, 5 * row[2])][-3:]
        if len(clean) < 2:
            return math.nan, math.nan

        (n1, e1, s1), (n2, e2, s2) = clean[0], clean[-1]
        finer = math.log(n2 / n1)
        return math.log(e1 / e2) / finer, math.hypot(s1 / e1, s2 / e2) / finer


def measure_order(
    solver: Solver | str,
    sde: LinearSDE | MatrixSDE,
    *,
    oracle: Oracle | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    rule: GridRule | None = None,
    steps: Sequence[int] = (80, 160, 320, 640),
) -> OrderMeasurement:
    """Errors of a deterministic solver against the exact probability flow, in float64.

    Args:
        solver: a solver or its name; it is measured as the method that it is at many steps (`Solver.strict`).
        sde: a linear process, with numbers or with a matrix.
        oracle: data with an exact score; two-dimensional Gaussian data if not given.
        t_start: where to start; the default is where sigma / alpha is 3, since at T, where the denoiser hardly
            moves, a first step of low order does not show.
        t_end: where to stop; the default leaves the fields smooth.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.

    Raises:
        TypeError: for a solver that finds its own steps, data that are no oracle, a rule that is none.
        ValueError: for an unknown name, or numbers of steps that are none.

    Examples:
        >>> import sgm_sde as sg
        >>> round(measure_order("ddim", sg.VPSDE()).order, 1)
        1.0
    """
    require_sde(sde)
    require_rule(rule)
    if oracle is not None:
        instance_of("oracle", oracle, Oracle, "an oracle, such as oracles.Gaussian")
    steps = sizes("steps", steps)

    solver = resolve(solver).strict()
    oracle = oracle or default_oracle()
    rule = rule or LogSNR()
    t_start, t_end = span(sde, t_start, t_end)
    problem = _problem if isinstance(sde, Hashable) else _problem.__wrapped__
    x, exact = problem(oracle, sde, t_start, t_end)

    score = oracle.score(sde)
    errors = []
    for n in steps:
        grid = rule(sde, n, t_start, t_end)
        end = run_on(solver, sde, score, x, Silence(), grid=grid)
        errors.append(float((end - exact).norm()))
    return OrderMeasurement(tuple(steps), tuple(errors))


@lru_cache(maxsize=64)
def _problem(oracle: Oracle, sde: LinearSDE | MatrixSDE, t_start: float, t_end: float) -> tuple[Tensor, Tensor]:
    """Initial states and their images under the probability flow, cached for all solvers."""
    blocks = (sde.blocks,) if has_matrix_marginal(sde) else ()
    x = sde.prior_sample((16, *blocks, *oracle.event_shape), t=t_start, seed=1, dtype=F64)
    return x, flow_reference(oracle, sde, x, t_end, t_start)


def measure_weak_order(
    solver: Solver | str,
    sde: LinearSDE | MatrixSDE,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    rule: GridRule | None = None,
    steps: Sequence[int] = (80, 160, 320, 640),
) -> OrderMeasurement:
    r"""Errors of a stochastic solver's output law on Gaussian data, without Monte Carlo: by impulse response.

    With a linear score a sampler is an affine map of its initial state and its noises. A batch in which sample
    j has a one-hot noise at draw j gives the map's columns; the sum of their squares is the exact output
    variance, and a run without noise from the marginal's mean gives the output mean.

    Args:
        solver: a solver or its name, without correctors.
        sde: a linear process, with numbers or with a matrix.
        t_start: where to start; the default is where sigma / alpha is 3.
        t_end: where to stop; the default leaves the fields smooth.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.

    Returns:
        relative error of mean and standard deviation over four data sets, root of the sum of squares; on a process
        with a matrix, of the whitened mean and covariance of the joint state.

    Examples:
        >>> import sgm_sde as sg
        >>> round(measure_weak_order("ancestral", sg.VPSDE()).order, 1)
        1.0
    """
    solver = resolve(solver).strict()
    rule = rule or LogSNR()
    t_start, t_end = span(sde, t_start, t_end)
    mean = cpu_float64(MEANS)
    std = cpu_float64(STDS)
    score = Gaussian(mean, std.square().diag()).score(sde)
    exact = _marginal(sde, mean, std, t_end)
    errors = []
    for n in steps:
        run = partial(run_on, solver, sde, score, grid=rule(sde, n, t_start, t_end))
        output_mean, impulses = _affine_map(run, sde, mean, std, t_start)
        errors.append(_law_error(output_mean, impulses, *exact))
    return OrderMeasurement(tuple(steps), tuple(errors))


def _law_error(mean: Tensor, impulses: Tensor, exact_mean: Tensor, exact_root: Tensor) -> float:
    """Error of means (k, d) and of the covariance of impulse responses (n, k, d), whitened by the exact law."""
    inverse = torch.linalg.inv(exact_root.movedim(-1, 0))
    mean_error = torch.einsum("dij,jd->id", inverse, mean - exact_mean)
    white = torch.einsum("dij,njd->nid", inverse, impulses)
    covariance = torch.einsum("nid,njd->dij", white, white)

    k = len(mean)
    std_error = covariance.sqrt()[:, 0, 0, None] - 1 if k == 1 else (covariance - torch.eye(k)).flatten(1) / 2
    return float(torch.cat([mean_error.flatten(), std_error.flatten()]).norm())


def _marginal(sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Mean (k, d) of the state's k blocks on d Gaussian data sets, and a root (k, k, d) of their covariance."""
    if has_matrix_marginal(sde):
        mu, N = sde.kernel(torch.tensor(t, dtype=F64))
        covariance = torch.outer(mu, mu) * std.square()[:, None, None] + N
        return mu[:, None] * mean, torch.linalg.cholesky(covariance).movedim(0, -1)

    alpha = sde.alpha(t)
    std_t = torch.hypot(alpha * std, sde.sigma(t))
    return (alpha * mean)[None], std_t[None, None]


def _affine_map(
    run: Callable[[Tensor, NoiseSource], Tensor], sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, t_start: float
) -> tuple[Tensor, Tensor]:
    """Output mean (k, d) of a run from the marginal at t_start, and its responses (n, k, d) to n unit impulses."""
    mean_0, root_0 = _marginal(sde, mean, std, t_start)
    k = len(mean_0)

    def end(x: Tensor, noise: NoiseSource) -> Tensor:
        return run(x if has_matrix_marginal(sde) else x[:, 0], noise).view_as(x)

    silence = Silence()
    middle = end(mean_0[None], silence)[0]
    # Rows: one per draw and block, one per block of the start's own impulse.
    x = mean_0.repeat(k * (silence.draws + 1), 1, 1)
    x[-k:] += root_0.movedim(1, 0)
    return middle, end(x, _OneHot(k)) - middle


def output_law(
    solver: Solver | str, sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, grid: Grid, *, final: str = "none"
) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of a sampler's output on Gaussian data, exactly: by impulse response.

    With a linear score a sampler is an affine map of its initial state and its noises, correctors included whose step
    does not depend on the state. A batch in which sample j has a one-hot noise at draw j gives the map's columns; the
    sum of their squares is the output's variance. The start is the exact marginal at the grid's first time.

    Args:
        solver: a solver or its name; a corrector's step must be known before the state, as `Langevin`'s is.
        sde: a linear process, with numbers or with a matrix.
        mean: of the data, (k,): k data sets side by side.
        std: of the data, (k,).
        grid: the times.
        final: `"none"`, `"mean"` or `"denoise"`, as in `sample`.

    Returns:
        mean and standard deviation, (k,) each, in float64; of every block of the state, (blocks, k) each, on a process
        with a matrix.

    Raises:
        ValueError: for shapes that differ, another `final`, or `"denoise"` on a process with a matrix.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> grid = sg.grids.LogSNR()(sde, 200)
        >>> mean, std = output_law("ancestral", sde, torch.tensor([0.3]), torch.tensor([0.5]), grid)
        >>> round(float(mean), 2), round(float(std), 2)
        (0.3, 0.49)
    """
    if mean.shape != std.shape or mean.ndim != 1:
        raise ValueError(f"mean and std must have one shape (k,), got {tuple(mean.shape)} and {tuple(std.shape)}")
    if final not in ("none", "mean", "denoise"):
        raise ValueError(f"final must be 'none', 'mean' or 'denoise', got {described(final)}")
    if final == "denoise" and has_matrix_marginal(sde):
        raise ValueError(f"final='denoise' needs a LinearSDE, got {described(sde)}; use 'mean' or 'none'")

    mean = mean.to(F64)
    std = std.to(F64)
    score = Gaussian(mean, std.square().diag()).score(sde)
    run = partial(_run_to_final, resolve(solver), sde, score, grid, final)
    output_mean, impulses = _affine_map(run, sde, mean, std, grid.times[0])
    output_std = impulses.square().sum(0).sqrt()
    return (output_mean, output_std) if has_matrix_marginal(sde) else (output_mean[0], output_std[0])


def _run_to_final(
    solver: Solver, sde: SDE, score: Score, grid: Grid, final: str, x: Tensor, noise: NoiseSource
) -> Tensor:
    """States at the grid's end, with correctors, and as `final` has them."""
    start, *_, end = grid.times
    model = BoundScore(score, sde, (end, start))
    program = solver.compile(sde, grid)
    if final == "mean":
        program = solver.end_in_mean(program)
    hooks = solver.hooks(sde, grid, model, noise, mean=final == "mean")
    with torch.no_grad():
        x = execute(program, x, model, noise, hooks=hooks).x
        return model.predict("data", x, end) if final == "denoise" else x


class _OneHot:
    """Block b of draw j is 1 in sample j k + b, of k blocks, and 0 elsewhere."""

    def __init__(self, blocks: int = 1) -> None:
        self.draw = 0
        self.blocks = blocks

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        z = torch.zeros(shape, dtype=dtype, device=device)
        view = z.view(len(z), self.blocks, -1)
        for b in range(self.blocks):
            view[self.draw * self.blocks + b, b] = 1
        self.draw += 1
        return z
