"""Data, spans of time and exact flows that errors are measured on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import one_of
from sgm_sde.engine.executor import execute
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.grids import Grid
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_matrix_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.schemes import Solver
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.oracles import Gaussian, GaussianMixture, Oracle
from sgm_sde.scores.score import Score

F64 = torch.float64


def default_oracle(kind: str = "gaussian") -> Oracle:
    """The data that orders are measured on, two-dimensional, `"gaussian"` or a three-mode `"mixture"`, or a `"scalar"`
    mixture of two modes.

    Raises:
        ValueError: for another name.

    Examples:
        >>> default_oracle("mixture")
        GaussianMixture(3 components of shape (2,))
    """
    one_of("kind", kind, ("gaussian", "mixture", "scalar"))
    return _oracle(kind)


@lru_cache
def _oracle(kind: str) -> Oracle:
    if kind == "scalar":
        return GaussianMixture(torch.tensor([[-1.2], [0.6]]), [0.4, 0.6], [0.25, 0.75])
    if kind == "gaussian":
        return Gaussian(torch.tensor([0.3, -0.7]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    means = torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]])
    return GaussianMixture(means, [0.4, 0.5, 0.3], [0.5, 0.3, 0.2])


def flow_reference(
    oracle: Oracle, sde: LinearSDE | MatrixSDE, x: Tensor, t_end: float, t_start: float | None = None
) -> Tensor:
    """The probability flow from `t_start` (default T) to `t_end`.

    In closed form for a Gaussian on a scalar process, else by SciPy's DOP853 at 1e-12.

    Examples:
        >>> import sgm_sde as sg
        >>> oracle = sg.oracles.Gaussian(torch.zeros(1, dtype=torch.float64), 1.0)
        >>> flow_reference(oracle, sg.EDMSDE(), torch.ones(1, 1, dtype=torch.float64), 1.0, 7.0)  # (1 + 1) / (1 + 7^2)
        tensor([[0.2000]], dtype=torch.float64)
    """
    t_start = sde.T if t_start is None else t_start
    if has_matrix_marginal(sde):
        return _joint_flow(oracle, sde, x, t_end, t_start)
    if isinstance(oracle, Gaussian):
        return oracle.flow(x, sde, t_start, t_end)
    return _flow_of_data(oracle, sde, x, t_end, t_start)


def _flow_of_data(oracle: Oracle, sde: LinearSDE, x: Tensor, t_end: float, t_start: float) -> Tensor:
    score = oracle.score(sde)

    def slope(lam: float, y: Tensor) -> Tensor:
        # In y = x / alpha and lam = log(alpha / sigma) the flow is dy/dlam = D - y on every process.
        t = sde.time(torch.tensor(2 * lam, dtype=F64)).clamp(t_end, t_start)
        return score.denoised(sde.alpha(t) * y, t) - y

    start = float(sde.log_snr(t_start)) / 2
    end = float(sde.log_snr(t_end)) / 2
    return sde.alpha(t_end) * _integrated(slope, (start, end), x / sde.alpha(t_start))


def _joint_flow(oracle: Oracle, sde: MatrixSDE, z: Tensor, t_end: float, t_start: float) -> Tensor:
    flow = sde.reverse(oracle.score(sde), eta=0.0)

    def slope(log_t: float, z: Tensor) -> Tensor:
        t = math.exp(log_t)  # fields change as fast at small times as their logarithm does
        return t * flow.f(z, min(t, sde.T))

    return _integrated(slope, (math.log(t_start), math.log(t_end)), z)


def _integrated(slope: Callable[[float, Tensor], Tensor], span: tuple[float, float], y: Tensor) -> Tensor:
    """The solution at the end of the span, by SciPy's DOP853 at 1e-12."""
    from scipy.integrate import solve_ivp

    def flat_slope(u: float, values: np.ndarray) -> np.ndarray:
        return np.asarray(slope(u, torch.from_numpy(values).reshape(y.shape)).flatten())

    solution = solve_ivp(flat_slope, span, y.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1]).reshape(y.shape)


def smooth_end(sde: LinearSDE | MatrixSDE, level: float = 0.2) -> float:
    """The time where sigma / alpha is `level`, or `sde.eps` if that is later: fields are still smooth there.

    Examples:
        >>> import sgm_sde as sg
        >>> round(smooth_end(sg.EDMSDE()), 6)
        0.2
    """
    return max(float(sde.time(-2 * math.log(level))), sde.eps)


def active_start(sde: LinearSDE | MatrixSDE, level: float = 3.0) -> float:
    """The time where sigma / alpha is `level`, or `sde.T` if that is earlier: the denoiser depends on x there.

    Examples:
        >>> import sgm_sde as sg
        >>> round(active_start(sg.EDMSDE()), 6)
        3.0
    """
    log_snr = -2 * math.log(level)
    return min(float(sde.time(log_snr)), sde.T) if float(sde.log_snr(sde.T)) < log_snr else sde.T


def span(
    sde: LinearSDE | MatrixSDE, t_start: float | None, t_end: float | None, levels: tuple[float, float] = (3.0, 0.2)
) -> tuple[float, float]:
    """Times where a measurement starts and ends: the given ones, or where sigma / alpha is at these levels."""
    high, low = levels
    start = active_start(sde, high) if t_start is None else t_start
    end = smooth_end(sde, low) if t_end is None else t_end
    return start, end


def run_on(solver: Solver, sde: SDE, score: Score, x: Tensor, noise: NoiseSource, *, grid: Grid) -> Tensor:
    model = BoundScore(score, sde, (grid.times[-1], grid.times[0]))
    with torch.no_grad():
        return execute(solver.compile(sde, grid), x, model, noise).x


class Silence:
    """Noise of zeros that counts its draws."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        self.draws += 1
        return torch.zeros(shape, dtype=dtype, device=device)
