"""Samplers from the Gaussian posterior of a step: DDPM's and NCSN's ancestral sampling, DDIM."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgm_sde._utils.checks import one_of
from sgm_sde.engine.program import Form, Step
from sgm_sde.schemes.base import EtaSolver, Solver
from sgm_sde.schemes.euler import forward_kernel


def posterior_mean(k: Step, std: float) -> Form:
    r"""DDIM's noise-free part: $\alpha_t D + \sqrt{\sigma_t^2 - \text{std}^2}\,\epsilon$, with
    $\epsilon = (x - \alpha_s D)/\sigma_s$."""
    s = k.start
    t = k.end
    D = k.evaluate(k.x, s)
    ratio = math.sqrt(max(t.sigma**2 - std**2, 0.0)) / s.sigma
    return ratio * k.x + (t.alpha - ratio * s.alpha) * D


def posterior_std(k: Step) -> float:
    r"""Standard deviation $\sigma_t b/\sigma_s$ of $x_t$ given $x_s$ and $x_0$."""
    _, b2 = forward_kernel(k.end, k.start)
    return float(k.end.sigma * math.sqrt(b2) / k.start.sigma)


@dataclass(frozen=True)
class DDIM(EtaSolver):
    r"""DDIM: exact for data at a single point, on any grid.

    $$ x_t = \alpha_t D + \sqrt{\sigma_t^2 - \text{std}^2}\,\epsilon + \text{std}\,z, \qquad
       \text{std} = \eta\,\frac{\sigma_t}{\sigma_s}\,b, \qquad b^2 = \sigma_s^2 - (\alpha_s/\alpha_t)^2\sigma_t^2 $$

    $\eta = 0$ is Euler's method in $\sigma/\alpha$ (DPM-Solver-1), $\eta = 1$ DDPM's ancestral sampling. Order 1,
    weak order 1; one network call per step.

    Args:
        eta: stochasticity in [0, 1].

    Raises:
        ValueError: for `eta` outside [0, 1].

    Source: Song, Meng & Ermon, 2021, arXiv:2010.02502.

    Examples:
        >>> import sgm_sde as sg
        >>> print(DDIM().compile(sg.EDMSDE(), sg.Grid([2.0, 1.0])))
        ddim: 1 steps, 1 evaluations of the data
        *e x0 (t=2) = initial state
        *  x1 (t=1) = +0.5 x0 +0.5 e0
    """

    eta: float = 0.0
    largest_eta = 1.0
    name = "ddim"
    order = 1
    prediction = "data"
    grids = ("table",)
    source = "Song, Meng & Ermon, 2021, arXiv:2010.02502"

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        std = self.eta * posterior_std(k)
        return posterior_mean(k, std) + std * k.noise()


@dataclass(frozen=True)
class Ancestral(Solver):
    r"""Ancestral sampling: the mean of the posterior of $x_t$ given $x_s$ and $x_0 = D$, plus noise.

    $$ x_t = \frac{a\,\sigma_t^2}{\sigma_s^2}\,x_s + \frac{\alpha_t b^2}{\sigma_s^2}\,D + \text{std}\,z $$

    On DDPM's table it is $x_{t-1} = (x_t - \beta_t/\sqrt{1 - \bar\alpha_t}\,\epsilon)/\sqrt{1 - \beta_t} +
    \text{std}\,z$, on NCSN's the ancestral sampler of Song et al. Order 1, weak order 1; one network call per step.

    Args:
        variance: `"posterior"`, $\text{std} = \sigma_t b/\sigma_s$ (DDPM's $\tilde\beta$, optimal for data at a
            point), or `"transition"`, $\text{std} = b$ (DDPM's $\beta$, optimal for standard normal data).

    Raises:
        ValueError: for another `variance`.

    Source: Ho et al., 2020, arXiv:2006.11239; Song et al., 2021, arXiv:2011.13456, appendix F.

    Examples:
        >>> Ancestral(variance="transition").stochastic
        True
    """

    variance: str = "posterior"
    name = "ancestral"
    prediction = "data"
    order = 1
    weak_order = 1
    grids = ("table",)
    source = "Ho et al., 2020, arXiv:2006.11239"

    def __post_init__(self) -> None:
        one_of("variance", self.variance, ("posterior", "transition"))

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        std = posterior_std(k)
        _, b2 = forward_kernel(k.end, k.start)
        added = std if self.variance == "posterior" else math.sqrt(b2)
        return posterior_mean(k, std) + added * k.noise()
