"""Samplers for networks that map any state to the data in one call: consistency models and their kin."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar

from sgm_sde._utils.checks import number, settle
from sgm_sde.engine.program import Form, Step
from sgm_sde.engine.times import ROUNDING
from sgm_sde.schemes.base import Solver


def renoised(k: Step, eta: float) -> Form:
    r"""$\alpha' D + \sigma'\,(\sqrt{1 - \eta^2}\,\epsilon + \eta\,z)$ with $\epsilon = (x - \alpha D)/\sigma$."""
    s = k.start
    t = k.end
    D = k.evaluate(k.x, s)
    kept = t.sigma * math.sqrt(1 - eta**2) / s.sigma
    state = kept * k.x + (t.alpha - kept * s.alpha) * D
    return state + eta * t.sigma * k.noise() if eta else state


@dataclass(frozen=True)
class FewStepSolver(Solver):
    """A sampler for networks that map any state to the data in one call, on the timesteps of their distillation.

    Attributes:
        share: name of the option in [0, 1] without which no noise is drawn.
    """

    share: ClassVar[str]
    order = 0
    prediction = "data"
    grids = ("distilled", "table")

    def __post_init__(self) -> None:
        settle(self, **{self.share: number(self.share, getattr(self, self.share), least=0, most=1)})

    @property
    def stochastic(self) -> bool:
        """True if noise is drawn."""
        return bool(getattr(self, self.share) > 0)


@dataclass(frozen=True)
class Consistency(FewStepSolver):
    r"""Multistep consistency sampling: to the data in one call, and back to the next noise level.

    $$ x' = \alpha' D + \sigma'\,\bigl(\sqrt{1 - \eta^2}\,\epsilon + \eta\,z\bigr), \qquad
       \epsilon = \frac{x - \alpha D}{\sigma} $$

    $\eta = 1$ draws all of the noise anew, as consistency and latent consistency models do, $\eta = 0$ is DDIM. For
    networks whose output is a sample and not the mean of the data: with the mean, $\eta > 0$ takes out spread at each
    step however short, so that no order is claimed. One network call per step; `final="denoise"` is the last of them.
    As names they are `"consistency"` or `"lcm"`, and `"tcd"`; they are not among `solvers()`. Their timesteps, on a
    process with a table, are those of the distillation, `grids.Distilled()`.

    | network | needs | solver |
    |---|---|---|
    | consistency model (Song et al., 2023) | D(x, t), equal to x at the smallest noise | `Consistency()` |
    | latent consistency (Luo et al., 2023) | noise or v on the teacher's table, scale as condition | `Consistency()` |
    | trajectory consistency (Zheng et al., 2024) | the same, consistent from t to any s below | `TCD(gamma)` |
    | a diffusion model | the mean of the data | `DDIM()` and others, not these |

    Args:
        eta: share of new noise, in [0, 1].

    Raises:
        ValueError: for `eta` out of range.

    Source: Song et al., 2023, arXiv:2303.01469, algorithm 1; Luo et al., 2023, arXiv:2310.04378.

    Examples:
        >>> import sgm_sde as sg
        >>> print(Consistency().compile(sg.EDMSDE(), sg.Grid([2.0, 1.0])))
        consistency: 1 steps, 1 evaluations of the data
        *e x0 (t=2) = initial state
        *  x1 (t=1) = +1 e0 +1 z0
    """

    eta: float = 1.0
    name = "consistency"
    source = "Song et al., 2023, arXiv:2303.01469"
    share = "eta"

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        return renoised(k, self.eta)


@dataclass(frozen=True)
class TCD(FewStepSolver):
    r"""Strategic stochastic sampling of trajectory consistency: by DDIM below the next time, and noise back up to it.

    $$ x_s = \alpha_s D + \sigma_s \epsilon, \quad s = (1 - \gamma)\,t', \qquad
       x' = \frac{\alpha'}{\alpha_s} x_s + \sqrt{\sigma'^2 - \Bigl(\frac{\alpha'\sigma_s}{\alpha_s}\Bigr)^2}\;z $$

    $\gamma = 0$ is DDIM and, without a table, $\gamma = 1$ is `Consistency()`. On a network's table s is the entry
    whose number, from 0, is $1 - \gamma$ times that of $t'$, rounded down; so with $\gamma = 1$ it is the first entry.
    One network call per step; no order is claimed.

    Args:
        gamma: in [0, 1]; the paper takes 0.3.

    Raises:
        ValueError: for `gamma` out of range.

    Source: Zheng et al., 2024, arXiv:2402.19159, section 4.2.

    Examples:
        >>> TCD(0.0).stochastic, TCD().stochastic
        (False, True)
    """

    gamma: float = 0.3
    name = "tcd"
    source = "Zheng et al., 2024, arXiv:2402.19159"
    share = "gamma"

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        if not self.gamma:
            return renoised(k, 0.0)
        s = self._below(k)
        kept = k.below(s).noise_level / k.end.noise_level if s else 0.0
        return renoised(k, math.sqrt(1 - kept**2))

    def _below(self, k: Step) -> float:
        """The time s."""
        table = k.end.sde.table_times
        if table is None:
            return (1 - self.gamma) * k.end.t

        number = bisect_right(table, k.end.t * (1 + ROUNDING)) - 1
        entry = math.floor((1 - self.gamma) * number + 1e-9)  # an integer but for rounding is one
        return float(table[entry]) if number >= 0 else k.end.t
