r"""A run's table on Gaussian data, where the truth is known: whether a budget is too small for solver and grid.

For data N(0, S^2) the denoiser is linear in the state, of one block or several: with the kernel N(\mu x_0, C) it is
$D = S^2\mu^\top\Sigma^{-1} x$, where $\Sigma = S^2\mu\mu^\top + C$. So every stage of a table is a sum of the start and
the noises, $x_k = A_k x_0 + \sum_m B_{km} z_m$. The run should end with the covariance $\Sigma_n$ and ends with

$$ \hat\Sigma_n = A_n\Sigma_0 A_n^\top + \sum_m B_{nm} B_{nm}^\top $$

of which the first block's standard deviation is looked at. Around a mean m the denoiser is $m + G(x - \mu m)$, the
states are off by $c_k m$ besides, and the flow carries what the start lacks of its mean to the end.

Too few steps for a solver, or steps where it is not stable, show here before any network is called: what ends too large
on Gaussian data of every scale from the noise at the end to a twentieth of that at the start is hardly right on others.
Data at a point, and tables fitted to a network, are the exceptions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sgm_sde._utils.cache import cached
from sgm_sde.engine.matrix import Matrix, number
from sgm_sde.engine.node import Coefficient, Node
from sgm_sde.engine.program import Program
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_matrix_marginal, has_scalar_marginal
from sgm_sde.schemes import AdaptiveSolver, Solver

MOST_CALLS = 100  # of tables that are looked at: with more, no solver in the registry misses
SCALES = 12
LARGEST = 1e3  # scale, where the process starts from alpha = 0
AMONG_NOISE = 20.0  # noise level at the start over the largest scale, so that the start says little of the data
FROM_NOISE = 0.1  # share of the process' first noise level, from which on a table starts from noise
NOISE = 10.0  # level at the start below which data of common scales are not among those that are looked at
ABOVE_END = 3.0  # smallest scale over the noise level at the end
MISSED = 2.0  # times as large as it should be


class Kernel(NamedTuple):
    """The law N(mu x_0, C) of the state at a time given the data, for k blocks.

    Attributes:
        node: the time.
        mu: (k,).
        C: (k, k).
        noise_level: standard deviation of what the state says of the data.
    """

    node: Node
    mu: np.ndarray
    C: np.ndarray
    noise_level: float

    def covariance(self, S: np.ndarray) -> np.ndarray:
        """Covariance of the state (scales, k, k) for data of the scales S."""
        signal: np.ndarray = np.outer(self.mu, self.mu)
        return S[:, None, None] ** 2 * signal + self.C

    def denoiser(self, S: np.ndarray) -> np.ndarray:
        """The factors (scales, 1, k) of the state in the estimate of the data."""
        factors = np.linalg.solve(self.covariance(S), np.broadcast_to(self.mu[:, None], (len(S), len(self.mu), 1)))
        return S[:, None, None] ** 2 * factors.swapaxes(1, 2)


def kernels(sde: SDE, times: tuple[float, ...]) -> list[Kernel]:
    """The kernels of a process at times; none of a nonlinear one."""
    if has_matrix_marginal(sde):
        return [Kernel(node, node.mu, node.cov, node.observation_noise) for node in sde.nodes(times)]
    if has_scalar_marginal(sde):
        return [
            Kernel(node, np.array([node.alpha]), np.array([[node.sigma**2]]), node.noise_level)
            for node in sde.nodes(times)
        ]
    return []


@cached(maxsize=64, holders=(1,))
def std_ratio(program: Program, sde: SDE) -> float:
    """The ratio of the standard deviation in which a run ends to what it should be, at the scale of Gaussian data where
    it is the least.

    Args:
        program: the table, of at most 100 network calls; the ratio of longer ones is taken for 1.
        sde: the process; on a nonlinear one the ratio is taken for 1.
    """
    S = scales(sde, program)
    if program.nfe > MOST_CALLS or not len(S):
        return 1.0

    times = tuple(stage.t for stage in program.stages)
    at = dict(zip(times, kernels(sde, times), strict=True))
    try:
        end = _end(program, at, S)
    except ZeroDivisionError:  # a prediction that does not exist at alpha = 0 or sigma = 0
        return 1.0

    ends = np.linalg.norm(end[:, 0, :-1], axis=1)
    ratios = ends / np.sqrt(at[times[-1]].covariance(S)[:, 0, 0])
    ratios[np.isnan(ratios)] = np.inf
    return float(ratios.min())


def mean_off(program: Program, sde: SDE, scale: float) -> float:
    r"""Distance between the end of a run and that of the flow, for data around 1, from noise around 0.

    $$ |c_n - \mu_n + \hat\sigma_n \mu_0 / \hat\sigma_0|, \qquad \hat\sigma_k^2 = \mu_k^2 S^2 + \sigma_k^2 $$

    for data N(m, S^2), in units of m, with n the end and 0 the start.

    Args:
        program: the table; that of one of more than 100 network calls is taken for 0.
        sde: the process; on others than linear ones it is taken for 0.
        scale: S.
    """
    times = tuple(stage.t for stage in program.stages)
    if program.nfe > MOST_CALLS or not has_scalar_marginal(sde):
        return 0.0

    at = dict(zip(times, kernels(sde, times), strict=True))
    S = np.array([scale])
    try:
        c = float(_end(program, at, S)[0, 0, -1])
    except ZeroDivisionError:  # a prediction that does not exist at alpha = 0 or sigma = 0
        return 0.0

    start, end = at[times[0]], at[times[-1]]
    kept = math.sqrt(end.covariance(S).item() / start.covariance(S).item())
    return abs(c - float(end.mu[0]) + kept * float(start.mu[0]))


def scales(sde: SDE, program: Program) -> np.ndarray:
    """The scales of data that are looked at: between the noise levels of the table's ends.

    Empty if these are close, or if the table starts in the middle of the process or in little noise, where data may be
    as large as that.
    """
    levels = [kernel.noise_level for kernel in kernels(sde, (sde.T, program.times[0], program.times[-1]))]
    if not levels:
        return np.empty(0)
    first, start, end = levels
    smallest = max(ABOVE_END * end, 1 / LARGEST)
    largest = min(start / AMONG_NOISE, LARGEST)
    of_first = FROM_NOISE * min(first, LARGEST)
    from_noise = start >= max(NOISE, of_first)
    return np.geomspace(smallest, largest, SCALES if from_noise and smallest < largest else 0)


def is_unsuited(solver: Solver | AdaptiveSolver, program: Program, sde: SDE) -> bool:
    """True if a table, which alone makes all of the samples, misses Gaussian data."""
    judged_by_table = isinstance(solver, Solver) and not (solver.has_hooks or solver.lags)
    return judged_by_table and misses_gaussians(program, sde)


def misses_gaussians(program: Program, sde: SDE) -> bool:
    """True if a run ends at least twice as large as it should, on Gaussian data of all scales looked at."""
    return std_ratio(program, sde) >= MISSED


def _end(program: Program, at: Mapping[float, Kernel], S: np.ndarray) -> np.ndarray:
    """The factors (scales, k, k + k noises + 1) in the last state of independent numbers of size 1, those of the start
    and of the noises, and of the data's mean."""
    start = at[program.stages[0].t]
    k = len(start.mu)
    noises = 1 + max((m for stage in program.stages for m, _ in stage.noises), default=-1)
    states: list[np.ndarray] = []
    evaluations: dict[int, np.ndarray] = {}
    for i, stage in enumerate(program.stages):
        x = np.zeros((len(S), k, k * (1 + noises) + 1))
        if not states:
            x[:, :, :k] = np.linalg.cholesky(start.covariance(S))
        for j, A in stage.states:
            x += _array(A, k) @ states[j]
        for j, B in stage.evals:
            x += _array(B, k) @ evaluations[j]
        for m, C in stage.noises:
            x[:, :, k * (1 + m) : k * (2 + m)] += _array(C, k)

        states.append(x)
        if stage.evaluate:
            evaluations[i] = _evaluated(at[stage.t], program, S, x)
    return states[-1]


def _evaluated(kernel: Kernel, program: Program, S: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The factors in what a program takes of the network there, of those in the state."""
    k = len(kernel.mu)
    source = "data" if k == 1 else "data_x"
    c_x, c_r = kernel.node.convert(source, program.prediction, program.eta, program.sigma_data)
    G = kernel.denoiser(S)
    of_data = G @ x
    of_data[:, :, -1] += 1 - G @ kernel.mu
    return _array(c_x, k) @ x + _array(c_r, k)[:, :1] * of_data


def _array(c: Coefficient, k: int) -> np.ndarray:
    """A coefficient as a matrix (k, k)."""
    return c.array if isinstance(c, Matrix) else number(c) * np.eye(k)
