"""PNDM and PLMS, the methods of even steps."""

from __future__ import annotations

from dataclasses import dataclass

from sgm_sde._utils.checks import flag, settle
from sgm_sde.engine.node import Node
from sgm_sde.engine.program import Form, Step
from sgm_sde.schemes.base import Solver

# Adams-Bashforth weights for even steps, newest first.
ADAMS = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


@dataclass(frozen=True)
class PNDM(Solver):
    r"""PNDM: three pseudo-Runge-Kutta steps, then the four-step Adams-Bashforth method of even steps.

    $$ x_t = \frac{\alpha_t}{\alpha_s} x_s + \alpha_t\Big(\frac{\sigma_t}{\alpha_t} -
       \frac{\sigma_s}{\alpha_s}\Big)\,\epsilon', \qquad
       \epsilon' = \tfrac1{24}\left(55\epsilon_0 - 59\epsilon_1 + 37\epsilon_2 - 9\epsilon_3\right) $$

    The first three steps average four evaluations as the classical Runge-Kutta method does, the two in the middle at
    the middle of the step in time. Without that (`runge_kutta=False`, known as PLMS) the first step averages the
    evaluations at its ends and the next ones have two and three evaluations. Order 1 on rough grids, 2 on smooth ones;
    one network call per step, four in each of the first three, or one more in all.

    Args:
        runge_kutta: whether to start with three Runge-Kutta steps, as published.

    Raises:
        TypeError: for a `runge_kutta` that is no bool.

    Source: Liu et al., 2022, arXiv:2202.09778.

    Examples:
        >>> PNDM().nfe(10), PNDM(runge_kutta=False).nfe(10)
        (19, 11)
    """

    runge_kutta: bool = True

    def __post_init__(self) -> None:
        settle(self, runge_kutta=flag("runge_kutta", self.runge_kutta))

    order = 1
    prediction = "noise"
    grids = ("table",)
    source = "Liu et al., 2022, arXiv:2202.09778"

    @property
    def name(self) -> str:
        """`pndm` or `plms`."""
        return "pndm" if self.runge_kutta else "plms"

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps."""
        return steps + (3 * min(steps, 3) if self.runge_kutta else min(steps, 1))

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        e1 = k.evaluate(k.x, k.start)
        known = [eps for _, eps in k.known(4)]
        if len(known) == 4 or (len(known) > 1 and not self.runge_kutta):
            return _transfer(k, k.end, Form.combine(ADAMS[len(known)], known))

        if self.runge_kutta:
            return self._runge_kutta(k, e1)

        e2 = k.evaluate(_transfer(k, k.end, e1), k.end)
        return _transfer(k, k.end, (e1 + e2) / 2)

    def _runge_kutta(self, k: Step, e1: Form) -> Form:
        """A step of four evaluations, the first of which is made."""
        half = k.at((k.start.t + k.end.t) / 2)
        e2 = k.evaluate(_transfer(k, half, e1), half)
        e3 = k.evaluate(_transfer(k, half, e2), half)
        e4 = k.evaluate(_transfer(k, k.end, e3), k.end)
        return _transfer(k, k.end, (e1 + 2 * e2 + 2 * e3 + e4) / 6)


def _transfer(k: Step, to: Node, eps: Form) -> Form:
    """DDIM's update from the step's start to a node with a noise estimate."""
    s = k.start
    return to.alpha / s.alpha * k.x + to.alpha * (to.noise_level - s.noise_level) * eps
