"""Solvers around a solver: ancestral noise between its steps, and restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sgm_sde._utils.checks import check_integer, described, number, real, settle
from sgm_sde.engine.program import Form, Step
from sgm_sde.processes.base import SDE
from sgm_sde.schemes.base import Solver, WrappedSolver, resolve
from sgm_sde.schemes.exponential import ExponentialRungeKutta


@dataclass(frozen=True)
class AncestralNoise(WrappedSolver):
    r"""Turns a single-step ODE solver into an ancestral one: a step too far down, and noise back up.

    $$ x_t = \alpha_t\left[\text{ODE}(x_s/\alpha_s; s \to s_d) + s_{up}\,z\right], \qquad
       s_{up} = \eta\,\frac{s_t}{s_s}\sqrt{s_s^2 - s_t^2}, \qquad s_d^2 = s_t^2 - s_{up}^2 $$

    with noise levels $s = \sigma/\alpha$. Of `DDIM()` it makes `DDIM(eta)`, of two-stage solvers the "ancestral" ones.
    Order that of the solver, weak order too, up to 2; as many network calls per step.

    Args:
        solver: a deterministic solver of one step or its name, whose inner nodes lie within the step.
        eta: stochasticity in (0, 1].

    Raises:
        TypeError: for a solver of another kind.
        ValueError: for `eta` out of range.

    Source: Katherine Crowson, 2022, k-diffusion (`dpm_2_ancestral`, `dpmpp_2s_ancestral`).

    Examples:
        >>> import sgm_sde as sg
        >>> AncestralNoise(sg.schemes.DPMSolver(2)).weak_order
        2
    """

    solver: Solver
    eta: float = 1.0

    def __init__(self, solver: Solver | str, eta: float = 1.0) -> None:
        if isinstance(solver, str):
            solver = resolve(solver)
        if not isinstance(solver, ExponentialRungeKutta) or solver.stochastic or solver.stages > 2:
            raise TypeError(
                f"solver must be a deterministic ExponentialRungeKutta of 1 or 2 stages, got {described(solver)}"
            )
        settle(self, solver=solver, eta=number("eta", eta, above=0, most=1))

    @property
    def name(self) -> str:
        """The solver's, and what was done to it."""
        return f"{self.solver.name}-ancestral"

    @property
    def weak_order(self) -> int | None:
        """The solver's order, at most 2."""
        return min(self.solver.order, 2)

    def brownian_time(self, sde: SDE, t: float) -> float:
        """Time change of ancestral steps, whatever that of the solver inside."""
        return Solver.brownian_time(self, sde, t)

    source = "Crowson, 2022, github.com/crowsonkb/k-diffusion"

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        t = k.end.noise_level
        kept = math.exp(2 * (k.start.lam - k.end.lam))
        up = self.eta * t * math.sqrt(1 - kept)
        down = k.end.at_reduced_noise(t * math.sqrt(1 - self.eta**2 + self.eta**2 * kept))
        return self.solver.step(k.with_end(down)) + k.end.alpha * up * k.noise()


@dataclass(frozen=True)
class Restart(WrappedSolver):
    r"""Restart sampling: goes back up a stretch of noise levels with fresh noise, and down again, K times.

    When a step has first reached $s_{min}$, `rounds` times:

    $$ x \leftarrow x\,\frac{\alpha_{max}}{\alpha_{min}} + \alpha_{max}\sqrt{s_{max}^2 - s_{min}^2}\,z, \qquad
       \text{then the solver from } s_{max} \text{ to } s_{min} \text{ in } \texttt{n\_steps} \text{ steps} $$

    with noise levels $s = \sigma/\alpha$ and the steps even in $s^{1/7}$. $s_{min}$ is the level of the first node at
    or below the one asked for. Each pass starts without a history; the last one's is what the main run goes on
    with. What the network's errors have added up to by $s_{min}$ is washed out by the noise.

    Order that of the solver; network calls: the solver's, and those of `rounds` passes.

    Args:
        solver: any solver or its name, multistep too.
        s_min: lower end of the stretch.
        s_max: upper end.
        rounds: how often, K.
        n_steps: steps of a pass.

    Raises:
        TypeError: for something that is no solver, or one with hooks at the nodes, such as a corrector.
        ValueError: for options out of range.

    Source: Xu et al., 2023, arXiv:2306.14878.

    Examples:
        >>> import sgm_sde as sg
        >>> Restart(sg.schemes.ExponentialAdams(nodes=2), s_min=0.14, s_max=0.3, rounds=2, n_steps=3).nfe(18)
        24
    """

    solver: Solver
    s_min: float = 0.14
    s_max: float = 0.3
    rounds: int = 1
    n_steps: int = 3

    def __init__(
        self, solver: Solver | str, s_min: float = 0.14, s_max: float = 0.3, rounds: int = 1, n_steps: int = 3
    ) -> None:
        solver = resolve(solver)
        if solver.has_hooks:
            raise TypeError(f"{solver!r} works at the grid's nodes, which restarts leave: wrap it outside of Restart")
        if not 0 < real("s_min", s_min) < real("s_max", s_max) < math.inf:
            raise ValueError(f"need 0 < s_min < s_max, got {s_min} and {s_max}")
        settle(
            self,
            solver=solver,
            s_min=s_min,
            s_max=s_max,
            rounds=check_integer("rounds", rounds),
            n_steps=check_integer("n_steps", n_steps),
        )

    stochastic = True
    source = "Xu et al., 2023, arXiv:2306.14878"

    @property
    def name(self) -> str:
        """The solver's, and that it restarts."""
        return f"{self.solver.name}-restart"

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps of the main run."""
        return self.solver.nfe(steps) + self.rounds * self.solver.nfe(self.n_steps)

    def step(self, k: Step) -> Form:
        """One step, and the passes if it is the one that reaches s_min."""
        x = self.solver.step(k)
        if k.i == 0 and not k.last.noise_level <= self.s_min < self.s_max <= k.start.noise_level:
            raise ValueError(
                f"a restart between the noise levels {self.s_min:g} and {self.s_max:g} needs a grid that covers them; "
                f"this one runs from {k.start.noise_level:.4g} to {k.last.noise_level:.4g}"
            )
        reached = k.end.noise_level <= self.s_min < k.start.noise_level
        return self._passes(k, x) if reached else x

    def _passes(self, k: Step, x: Form) -> Form:
        """The state at the step's end after all passes from there up to s_max and down again."""
        low = k.end
        # Karras' levels of a pass down, which begins with noise that goes up to s_max.
        levels = np.linspace(self.s_max ** (1 / 7), low.noise_level ** (1 / 7), self.n_steps + 1) ** 7
        high = k.at_noise_level(self.s_max)
        inside = [k.at_noise_level(float(level)).t for level in levels[1:-1]]
        added = math.sqrt(high.noise_level**2 - low.noise_level**2)
        for _ in range(self.rounds):
            x = k.keep(x, low)
            x = high.alpha * (x / low.alpha + added * k.noise())
            x = k.subrun(self.solver.strict(), x, [high.t, *inside, low.t])
        return x
