"""Runge-Kutta methods on the probability-flow ODE, from tableaus; EDM's Heun sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgm_sde.engine.program import Form, Step
from sgm_sde.solvers.base import Solver


@dataclass(frozen=True)
class Tableau:
    r"""Butcher tableau of an explicit method: slopes $k_i = v(x + h \sum_{j<i} a_{ij} k_j, t + c_i h)$, step
    $x + h \sum_i b_i k_i$.

    Args:
        a: rows of coefficients, row i with i entries (the first row empty).
        b: weights of the slopes.
        name: what to call it.
        source: where it is from.

    Raises:
        ValueError: if the rows have the wrong lengths, the weights do not sum to 1, or a node
            $c_i = \sum_j a_{ij}$ lies outside [0, 1] (the score is known inside the step only).

    Source: Butcher, 2016, Numerical Methods for Ordinary Differential Equations.

    Example:
        >>> Tableau(a=[[], [0.5]], b=[0, 1], name="midpoint").order
        2
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    name: str
    source: str

    def __init__(
        self, a: Sequence[Sequence[float]], b: Sequence[float], name: str = "tableau", source: str = "user"
    ) -> None:
        rows = tuple(tuple(float(v) for v in row) for row in a)
        for field, value in (
            ("a", rows),
            ("b", tuple(float(v) for v in b)),
            ("name", name),
            ("source", source),
        ):
            object.__setattr__(self, field, value)
        if [len(row) for row in rows] != list(range(len(self.b))):
            raise ValueError(
                f"an explicit tableau with {len(self.b)} weights has rows of lengths 0..{len(self.b) - 1}, "
                f"got {[len(row) for row in rows]}"
            )
        if not math.isclose(math.fsum(self.b), 1.0, abs_tol=1e-12):
            raise ValueError(f"the weights b must sum to 1, got {math.fsum(self.b)}")
        if not all(0 <= c <= 1 for c in self.c):
            raise ValueError(f"the nodes c must lie in [0, 1], got {self.c}")

    def __repr__(self) -> str:
        return f"Tableau({self.name!r}, {len(self.b)} stages)"

    @property
    def c(self) -> tuple[float, ...]:
        """Nodes: the row sums, with rounding near 0 and 1 removed."""
        sums = (math.fsum(row) for row in self.a)
        return tuple(float(round(c)) if abs(c - round(c)) < 1e-12 else c for c in sums)

    @property
    def order(self) -> int:
        """Order from the order conditions (Butcher's eight rooted trees), at most 4."""
        s = len(self.b)
        A, b, c = np.zeros((s, s)), np.array(self.b), np.array(self.c)
        for i, row in enumerate(self.a):
            A[i, :i] = row
        conditions: list[list[tuple[Any, float]]] = [
            [(b @ np.ones(s), 1)],
            [(b @ c, 1 / 2)],
            [(b @ c**2, 1 / 3), (b @ A @ c, 1 / 6)],
            [(b @ c**3, 1 / 4), ((b * c) @ A @ c, 1 / 8), (b @ A @ c**2, 1 / 12), (b @ A @ A @ c, 1 / 24)],
        ]
        holds = [all(math.isclose(lhs, rhs, abs_tol=1e-10) for lhs, rhs in level) for level in conditions]
        return holds.index(False) if False in holds else len(holds)


EULER = Tableau([[]], [1], "euler", "Euler, 1768")
MIDPOINT = Tableau([[], [1 / 2]], [0, 1], "midpoint", "Runge, 1895")
HEUN2 = Tableau([[], [1]], [1 / 2, 1 / 2], "heun2", "Heun, 1900")
RALSTON = Tableau([[], [2 / 3]], [1 / 4, 3 / 4], "ralston", "Ralston, 1962")
RK3 = Tableau([[], [1 / 2], [-1, 2]], [1 / 6, 2 / 3, 1 / 6], "rk3", "Kutta, 1901")
RK4 = Tableau([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], "rk4", "Kutta, 1901")


@dataclass(frozen=True)
class RungeKutta(Solver):
    r"""An explicit Runge-Kutta method in time on the probability-flow ODE, for every process.

    $$ \frac{dx}{dt} = f(x, t) - \tfrac12 g(t)^2\,\text{score}(x, t) $$

    Order that of the tableau; as many network calls a step as it has stages.

    Args:
        tableau: one of `EULER`, `MIDPOINT`, `HEUN2`, `RALSTON`, `RK3`, `RK4`, or your own `Tableau`.

    Source: Butcher, 2016; Song et al., 2021, arXiv:2011.13456 (probability flow).

    Example:
        >>> ralston = RungeKutta(Tableau(a=[[], [2 / 3]], b=[1 / 4, 3 / 4], name="ralston"))
        >>> ralston.order, ralston.nfe_per_step
        (2, 2)
    """

    tableau: Tableau = RK4
    prediction = "drift"

    @property
    def name(self) -> str:
        """The tableau's name."""
        return self.tableau.name

    @property
    def order(self) -> int:
        """The tableau's order."""
        return self.tableau.order

    @property
    def source(self) -> str:
        """The tableau's source."""
        return self.tableau.source

    @property
    def nfe_per_step(self) -> int:
        """Number of stages."""
        return len(self.tableau.b)

    def step(self, k: Step) -> Form:
        """One step."""
        h = k.end.t - k.start.t
        slopes: list[Form] = []
        for row, c in zip(self.tableau.a, self.tableau.c, strict=True):
            x = k.x + h * Form.combine(row, slopes)
            slopes.append(k.evaluate(x, k.at(k.start.t + c * h)))
        return k.x + h * Form.combine(self.tableau.b, slopes)


@dataclass(frozen=True)
class Heun(Solver):
    r"""EDM's sampler: Heun's method in the noise level, with noise churned in before each step.

    In the coordinates $y = x/\alpha$, $s = \sigma/\alpha$, on any linear process:

    $$ \hat s = (1 + \gamma)\,s, \quad \hat y = y + \sqrt{\hat s^2 - s^2}\,S_{\text{noise}}\,z, \quad
       y' = \hat y + (s' - \hat s)\,\tfrac12\left[\epsilon(\hat y, \hat s) + \epsilon(y'_{\text{Euler}}, s')\right] $$

    with $\gamma = \min(S_{\text{churn}}/N, \sqrt2 - 1)$ where $S_{\text{tmin}} \le s \le S_{\text{tmax}}$ and 0
    elsewhere, N the number of noise levels in the grid. Noise is never raised beyond the level of `sde.T`, since
    networks are not trained there. EDM's last step to noise level 0 is `final="denoise"`; `final="mean"` changes
    nothing, since churned noise has been through the network by the end of a step.

    Order 2 and weak order 2: churned noise carries one marginal exactly into another, so that the law errs by
    Heun's error alone. Inflated noise (`s_noise` above 1, as in the paper's settings) makes up for a network that
    denoises too much and leaves too much noise with one that does not, however small the steps: no weak order
    then. Two network calls a step.

    Args:
        s_churn: total amount of noise added; 0 is the deterministic sampler.
        s_tmin: smallest noise level with churn.
        s_tmax: largest noise level with churn.
        s_noise: inflation of the added noise.

    Raises:
        ValueError: for negative options, s_tmin > s_tmax, or options of churn without churn.

    Source: Karras et al., 2022, arXiv:2206.00364, algorithm 2.

    Example:
        >>> Heun().order, Heun(s_churn=30).weak_order, Heun(s_churn=30, s_noise=1.007).weak_order
        (2, 2, None)
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    name = "heun"
    order = 2
    nfe_per_step = 2
    prediction = "noise"
    source = "Karras et al., 2022, arXiv:2206.00364"

    def __post_init__(self) -> None:
        for option in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
            if not getattr(self, option) >= 0:
                raise ValueError(f"{option} must be at least 0, got {getattr(self, option)}")
        if self.s_tmin > self.s_tmax:
            raise ValueError(f"need s_tmin <= s_tmax, got {self.s_tmin} and {self.s_tmax}")
        if not self.s_churn and (self.s_tmin, self.s_tmax, self.s_noise) != (0.0, math.inf, 1.0):
            raise ValueError(f"s_tmin, s_tmax and s_noise act on churn, and s_churn is 0: {self}")

    @property
    def weak_order(self) -> int | None:
        """2; None without churn, or with inflated noise."""
        return 2 if self.s_churn and self.s_noise == 1 else None

    @property
    def stochastic(self) -> bool:
        """Whether there is churn."""
        return self.s_churn > 0

    def step(self, k: Step) -> Form:
        """One step."""
        hat, x_hat = k.start, k.x
        if self.s_churn and self.s_tmin <= k.start.noise_level <= self.s_tmax:
            gamma = min(self.s_churn / (k.n + 1), math.sqrt(2) - 1)
            hat = k.at_noise_level((1 + gamma) * k.start.noise_level)
            added = math.sqrt(hat.noise_level**2 - k.start.noise_level**2)
            x_hat = hat.alpha * (k.x / k.start.alpha + added * self.s_noise * k.noise())
        h = k.end.alpha * (k.end.noise_level - hat.noise_level)
        y = k.end.alpha / hat.alpha * x_hat
        eps = k.evaluate(x_hat, hat)
        eps_end = k.evaluate(y + h * eps, k.end)
        return y + h / 2 * (eps + eps_end)
