"""Runge-Kutta methods on the probability-flow ODE, from tableaus; EDM's Heun sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgm_sde._utils.checks import described, real, settle
from sgm_sde.engine.node import Node
from sgm_sde.engine.program import Form, Step
from sgm_sde.engine.times import ROUNDING
from sgm_sde.schemes.base import Solver, TableauMethod
from sgm_sde.schemes.tableaus import RK4, Tableau


@dataclass(frozen=True)
class RungeKutta(TableauMethod, Solver):
    r"""An explicit Runge-Kutta method in time on the probability-flow ODE, for every process.

    $$ \frac{dx}{dt} = f(x, t) - \tfrac12 g(t)^2\,\text{score}(x, t) $$

    Order that of the tableau; as many network calls per step as it has stages.

    Args:
        tableau: one of `EULER`, `MIDPOINT`, `HEUN2`, `RALSTON`, `RK3`, `RK4`, or your own `Tableau`.

    Raises:
        TypeError: for anything but a `Tableau`.

    Source: Butcher, 2016; Song et al., 2021, arXiv:2011.13456 (probability flow).

    Examples:
        >>> ralston = RungeKutta(Tableau(a=[[], [2 / 3]], b=[1 / 4, 3 / 4], name="ralston"))
        >>> ralston.order, ralston.nfe_per_step
        (2, 2)
    """

    tableau: Tableau = RK4
    prediction = "drift"

    def __post_init__(self) -> None:
        if not isinstance(self.tableau, Tableau):
            raise TypeError(f"tableau must be a Tableau, such as RK4, got {described(self.tableau)}")

    @property
    def _facts(self) -> Tableau:
        return self.tableau

    @property
    def nfe_per_step(self) -> int:
        """Number of stages."""
        return len(self.tableau.b)

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
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
    then. Two network calls per step.

    Args:
        s_churn: total amount of noise added; 0 is the deterministic sampler.
        s_tmin: smallest noise level with churn.
        s_tmax: largest noise level with churn.
        s_noise: inflation of the added noise.

    Raises:
        ValueError: for negative options, s_tmin > s_tmax, or options of churn without churn.

    Source: Karras et al., 2022, arXiv:2206.00364, algorithm 2.

    Examples:
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
    grids = ("karras",)
    source = "Karras et al., 2022, arXiv:2206.00364"

    def __post_init__(self) -> None:
        for option in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
            value = real(option, getattr(self, option))
            if not value >= 0:
                raise ValueError(f"{option} must be at least 0, got {value}")
            settle(self, **{option: value})
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
        """True if there is churn."""
        return self.s_churn > 0

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        hat, x_hat = self._churned(k)
        t = k.end
        h = t.alpha * (t.noise_level - hat.noise_level)
        y = t.alpha / hat.alpha * x_hat

        eps = k.evaluate(x_hat, hat)
        eps_end = k.evaluate(y + h * eps, t)
        return y + h / 2 * (eps + eps_end)

    def _churned(self, k: Step) -> tuple[Node, Form]:
        """The node of a raised noise level, and the state with noise added up to it."""
        s = k.start
        low = self.s_tmin * (1 - ROUNDING)
        high = self.s_tmax * (1 + ROUNDING)
        if not self.s_churn or not low <= s.noise_level <= high:
            return s, k.x

        gamma = min(self.s_churn / (k.n + 1), math.sqrt(2) - 1)
        hat = k.at_noise_level((1 + gamma) * s.noise_level)
        std = math.sqrt(hat.noise_level**2 - s.noise_level**2)
        return hat, hat.alpha * (k.x / s.alpha + std * self.s_noise * k.noise())
