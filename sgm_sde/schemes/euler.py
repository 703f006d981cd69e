"""Samplers of Song et al.: Euler-Maruyama and reverse diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgm_sde.engine.node import Node
from sgm_sde.engine.program import Form, Step
from sgm_sde.processes.base import SDE
from sgm_sde.schemes.base import EtaSolver

SONG = "Song et al., 2021, arXiv:2011.13456"


def forward_kernel(end: Node, start: Node) -> tuple[float, float]:
    r"""Scale $a$ and variance $b^2$ of the forward process from the cleaner node `end` (t) to the noisier `start` (s).

    $a = \alpha_s/\alpha_t$ and $b^2 = \sigma_s^2 - a^2\sigma_t^2$, without cancellation.
    """
    a = start.alpha / end.alpha
    b2 = -(start.sigma**2) * math.expm1(2 * (start.lam - end.lam))
    return a, b2


@dataclass(frozen=True)
class EulerMaruyama(EtaSolver):
    r"""Euler-Maruyama on the reverse SDE, for every process, nonlinear drifts too.

    $$ x_t = x_s - h\left[f(x_s, s) - \tfrac{1+\eta^2}{2} g(s)^2\,\text{score}\right] + \eta\,g(s)\sqrt h\,z,
       \qquad h = s - t > 0 $$

    Order 1, weak order 1; one network call per step.

    Args:
        eta: stochasticity; 0 is Euler's method on the probability-flow ODE, 1 the reverse SDE.

    Raises:
        ValueError: for a negative `eta`.

    Source: Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> EulerMaruyama(eta=0.5).weak_order
        1
    """

    name = "euler-maruyama"
    order = 1
    prediction = "drift"
    source = SONG

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        h = k.start.t - k.end.t
        drift = k.evaluate(k.x, k.start)
        noise = Form()
        if self.eta:  # without, g may be infinite
            noise = self.eta * k.start.g * math.sqrt(h) * k.noise()
        return k.x - h * drift + noise

    def brownian_time(self, sde: SDE, t: float) -> float:
        """Time itself."""
        return t


@dataclass(frozen=True)
class ReverseDiffusion(EtaSolver):
    r"""Reverse diffusion: the forward process' own discretisation, run backwards.

    $$ x_t = (2 - a)\,x_s + \tfrac{1+\eta^2}{2}\,b^2\,\text{score} + \eta\,b\,z $$

    where $x_s \mid x_t \sim N(a x_t, b^2 I)$ is the exact forward kernel. On the tables of DDPM and NCSN it is the
    paper's update line by line; from the continuous kernel it is finite for any number of steps, where
    beta_max / N is not. Order 1, weak order 1; one network call per step.

    Args:
        eta: stochasticity; 0 is the paper's probability-flow form.

    Raises:
        ValueError: for a negative `eta`.

    Source: Song et al., 2021, arXiv:2011.13456, appendix E.

    Examples:
        >>> ReverseDiffusion().prediction
        'score'
    """

    name = "reverse-diffusion"
    order = 1
    prediction = "score"
    grids = ("table",)
    source = SONG

    def brownian_time(self, sde: SDE, t: float) -> float:
        """Time itself."""
        return t

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        if k.start.alpha == 0:
            raise ValueError(
                f"reverse diffusion cannot leave t={k.start.t}, where alpha = 0: start below it (t_start=)"
            )
        a, b2 = forward_kernel(k.end, k.start)
        score = k.evaluate(k.x, k.start)
        return (2 - a) * k.x + (1 + self.eta**2) / 2 * b2 * score + self.eta * math.sqrt(b2) * k.noise()
