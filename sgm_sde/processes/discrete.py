"""The ladders of DDPM and NCSN as continuous processes that agree with their tables at the tables' times."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import reals
from sgm_sde._utils.shapes import Time, as_time, cpu_float64
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.ve import UnitScaleSDE
from sgm_sde.processes.vp import VariancePreservingSDE

NO_BETA = 0.9  # the first noise of a table is less
_INSTEAD = (
    "did you pass alphas or alphas_cumprod? betas = 1 - alphas, or 1 - alphas_cumprod / [1, *alphas_cumprod[:-1]]"
)


class _Interpolant:
    """Monotone piecewise cubic through values at the times 0, 1/N, ..., 1, and its derivative.

    The cubic spline where it is monotone, as it is for smooth tables: its two continuous derivatives let solvers
    in t keep their order. Else PCHIP (Fritsch & Butland, 1984), which is monotone always. Slopes are SciPy's;
    evaluation is torch's, in the dtype and on the device of t.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.n = len(values) - 1
        self.range = float(values[0]), float(values[-1])
        slopes = _monotone_slopes(values)

        # Hermite's cubic on each interval
        y0 = values[:-1]
        m0 = slopes[:-1]
        m1 = slopes[1:]
        step = np.diff(values)
        c2 = 3 * step - 2 * m0 - m1
        c3 = m0 + m1 - 2 * step
        self.table = torch.from_numpy(np.stack([y0, m0, c2, c3]))

    def _local(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = t * self.n
        k = position.detach().floor().long().clamp(0, self.n - 1)  # as integers: bfloat16 has no 999
        return position - k, self.table.to(device=t.device, dtype=t.dtype)[:, k]

    def __call__(self, t: Tensor) -> Tensor:
        u, coefficients = self._local(t)
        return _cubic(u, *coefficients)

    def slope(self, t: Tensor) -> Tensor:
        u, (_, m0, c2, c3) = self._local(t)
        return self.n * _cubic_slope(u, m0, c2, c3)

    def inverse(self, value: Tensor) -> Tensor:
        """The time at which the interpolant has the value; NaN outside of its range."""
        table = self.table.to(device=value.device, dtype=value.dtype)
        knots = table[0]
        k = (torch.searchsorted(knots, value, right=True) - 1).clamp(0, self.n - 1)
        u = _root_of_cubic(value, *table[:, k])

        low, high = self.range
        rounding = 8 * torch.finfo(value.dtype).eps * max(map(abs, self.range))  # of what the value has been through
        outside = (value < low - rounding) | (value > high + rounding)
        return torch.where(outside, torch.nan, (k + u) / self.n)


def _monotone_slopes(values: np.ndarray) -> np.ndarray:
    """Derivatives at 0, 1, ... of the cubic spline through increasing values, or of PCHIP where that turns."""
    from scipy.interpolate import CubicSpline, PchipInterpolator  # here: they take a while to import

    u = np.arange(len(values), dtype=np.float64)
    spline = CubicSpline(u, values)

    # A spline is monotone if its slope is positive where that is least: at a knot, or where it turns.
    turning = spline.derivative(2).roots()
    within = (turning > 0) & (turning < u[-1])
    extremes = np.concatenate([u, turning[within]])
    monotone = bool((spline.derivative()(extremes) > 0).all())

    interpolant = spline if monotone else PchipInterpolator(u, values)
    return np.asarray(interpolant.derivative()(u))


def _cubic(u: Tensor, y0: Tensor, m0: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    return y0 + u * (m0 + u * (c2 + u * c3))


def _cubic_slope(u: Tensor, m0: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    return m0 + u * (2 * c2 + 3 * u * c3)


def _root_of_cubic(value: Tensor, y0: Tensor, m0: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """u in [0, 1] where an increasing cubic has a value, by Newton's method, and bisection where that overshoots."""
    low = torch.zeros_like(value)
    high = torch.ones_like(value)
    chord = m0 + c2 + c3
    u = ((value - y0) / chord).clamp(0, 1)

    for _ in range(64):
        excess = _cubic(u, y0 - value, m0, c2, c3)
        low = torch.where(excess > 0, low, u)
        high = torch.where(excess > 0, u, high)

        newton = u - excess / _cubic_slope(u, m0, c2, c3)
        bracketed = (newton >= low) & (newton <= high)
        middle = (low + high) / 2
        before = u
        u = torch.where(bracketed, newton, middle)
        if not u.is_meta and bool((u == before).all()):
            break
    return u


def _table(name: str, values: Sequence[float]) -> tuple[float, ...]:
    table = reals(name, values)
    if len(table) < 2:
        raise ValueError(f"{name} needs at least two entries, got {len(table)}")
    return table


def _require_betas(table: tuple[float, ...]) -> None:
    """Raise ValueError for a table that is none of betas, which are small at first and leave some signal at the end."""
    for i, beta in enumerate(table):
        if not 0 < beta < 1:
            raise ValueError(f"betas must lie in (0, 1), got betas[{i}] = {beta}")

    said = f"a table from betas[0] = {table[0]:.6g} to betas[{len(table) - 1}] = {table[-1]:.6g}"
    _require_order(table, said)
    log_alpha = float(np.log1p(-np.array(table)).sum()) / 2
    if log_alpha <= math.log(torch.finfo(torch.float32).tiny):
        lost = f"leaves no signal: alpha(T) = exp({log_alpha:.4g}) is 0 in single precision"
        raise ValueError(f"{said} {lost}: {_INSTEAD}")


def _require_order(table: tuple[float, ...], said: str) -> None:
    """Raise ValueError for betas that fall throughout, as alphas do, and betas from the last."""
    if table[0] > table[-1] and all(then <= now for now, then in pairwise(table)):
        if table[0] > NO_BETA:
            raise ValueError(
                f"betas are small at first, got {said}: {_INSTEAD}; or, of betas from the last, betas[::-1]"
            )
        raise ValueError(
            f"betas rise with the index, from data to noise, got {said}: in the other order they are betas[::-1]"
        )


class _TableSDE(LinearSDE):
    """A process from a table, whose entry i stands at the time (i + 1) / N."""

    @property
    @abstractmethod
    def _entries(self) -> int: ...

    @property
    def times(self) -> tuple[float, ...]:
        """The table's times, increasing."""
        return tuple((i + 1) / self._entries for i in range(self._entries))

    @property
    def table_times(self) -> tuple[float, ...]:
        """`times`: networks are trained at these alone."""
        return self.times


@dataclass(frozen=True)
class DiscreteVPSDE(_TableSDE, VariancePreservingSDE):
    r"""DDPM's ladder of noise levels as a variance-preserving process.

    Entry i of the table (from 0) sits at the time $t_i = (i + 1)/N$, where the process has DDPM's kernel,
    $\alpha^2(t_i) = \bar\alpha_i = \prod_{j \le i} (1 - \beta_j)$; in between $\log\bar\alpha$ is a monotone
    cubic. Transitions between table times are DDPM's exactly.

    Args:
        betas: DDPM's table, each in (0, 1).

    Raises:
        ValueError: for fewer than two entries or one outside (0, 1), for a table of alphas or of their products, and
            for betas that fall throughout, as in reversed order.

    Source: Ho et al., 2020, arXiv:2006.11239.

    Examples:
        >>> sde = DiscreteVPSDE([0.1, 0.2, 0.3])
        >>> scale, std = sde.transition(sde.times[0], sde.times[1])
        >>> round(float(scale**2), 12), round(float(std**2), 12)
        (0.8, 0.2)
    """

    betas: tuple[float, ...]
    T: float = field(default=1.0, init=False, repr=False)
    eps: float = field(init=False, repr=False)

    def __init__(self, betas: Sequence[float]) -> None:
        object.__setattr__(self, "betas", _table("betas", betas))
        object.__setattr__(self, "T", 1.0)
        object.__setattr__(self, "eps", 1 / len(self.betas))
        _require_betas(self.betas)

    @property
    def _entries(self) -> int:
        return len(self.betas)

    @cached_property
    def _B(self) -> _Interpolant:
        log_alpha_bar = np.log1p(-np.array(self.betas)).cumsum()
        return _Interpolant(np.concatenate([[0.0], -log_alpha_bar]))

    def beta(self, t: Time) -> Tensor:
        """Continuous rate beta(t), about N times the table's entry."""
        return self._B.slope(as_time(t))

    def integrated_beta(self, t: Time) -> Tensor:
        """B(t) = -log(alpha-bar), the integral of beta from 0 to t."""
        return self._B(as_time(t))

    def time_of_integrated_beta(self, B: Tensor) -> Tensor:
        """The time at which the integrated rate is `B`; NaN beyond the table's end."""
        return self._B.inverse(B)

    @property
    def likelihood_eps(self) -> float:
        """`eps`: the network has seen nothing below."""
        return self.eps

    def __repr__(self) -> str:
        return f"DiscreteVPSDE({len(self.betas)} betas from {self.betas[0]:.6g} to {self.betas[-1]:.6g})"


@dataclass(frozen=True)
class DiscreteVESDE(_TableSDE, UnitScaleSDE):
    r"""NCSN's ladder of noise levels as a variance-exploding process.

    The levels, sorted upwards, sit at the times $t_i = (i + 1)/N$; in between $\log\sigma$ is a monotone cubic,
    and below the smallest level it goes on geometrically.

    Args:
        sigmas: NCSN's ladder, positive and distinct; rising or falling.

    Raises:
        ValueError: for fewer than two entries, one that is not positive, or an order that is not monotone.

    Source: Song & Ermon, 2019, arXiv:1907.05600.

    Examples:
        >>> sde = DiscreteVESDE([10.0, 1.0, 0.1])
        >>> [round(float(sde.sigma(t)), 12) for t in sde.times]
        [0.1, 1.0, 10.0]
    """

    sigmas: tuple[float, ...]
    T: float = field(default=1.0, init=False, repr=False)
    eps: float = field(init=False, repr=False)

    def __init__(self, sigmas: Sequence[float]) -> None:
        table = _table("sigmas", sigmas)
        if table[0] > table[-1]:
            table = table[::-1]
        for low, high in pairwise(table):
            if not 0 < low < high < float("inf"):
                raise ValueError(f"sigmas must be positive and strictly monotone, got {low} beside {high}")

        object.__setattr__(self, "sigmas", table)
        object.__setattr__(self, "T", 1.0)
        object.__setattr__(self, "eps", 1 / len(table))

    @property
    def _entries(self) -> int:
        return len(self.sigmas)

    def ladder(self, levels: int | None = None) -> Tensor:
        """The table, the largest level first."""
        if levels is not None:
            raise ValueError(f"{self!r} has its own table of {len(self.sigmas)} levels, got levels={levels}")
        return cpu_float64(self.sigmas[::-1])

    @cached_property
    def _log_sigma(self) -> _Interpolant:
        log_sigma = np.log(self.sigmas)
        below = 2 * log_sigma[0] - log_sigma[1]  # at t = 0: one more step of the ladder's first ratio
        return _Interpolant(np.concatenate([[below], log_sigma]))

    def sigma(self, t: Time) -> Tensor:
        """Noise scale; the ladder's level at the ladder's times."""
        return self._log_sigma(as_time(t)).exp()

    def d_sigma(self, t: Time) -> Tensor:
        """Time derivative of `sigma`."""
        return self._log_sigma.slope(as_time(t)) * self.sigma(t)

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio -2 log(sigma)."""
        return -2 * self._log_sigma(as_time(t))

    def time(self, log_snr: Time) -> Tensor:
        """Inverse of `log_snr`; NaN outside of the ladder's range."""
        return self._log_sigma.inverse(-as_time(log_snr) / 2)

    @property
    def likelihood_eps(self) -> float:
        """`eps`: the network has seen nothing below."""
        return self.eps

    def __repr__(self) -> str:
        return f"DiscreteVESDE({len(self.sigmas)} sigmas from {self.sigmas[0]:.6g} to {self.sigmas[-1]:.6g})"
