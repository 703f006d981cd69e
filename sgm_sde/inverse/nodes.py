"""Methods that work on the state at the grid's nodes, around a solver: replacement, RePaint, DPS."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.checks import check_integer, described, number, one_of, settle
from sgm_sde._utils.shapes import dot
from sgm_sde._utils.tree import Path
from sgm_sde.engine.executor import Hook, execute
from sgm_sde.engine.node import Node
from sgm_sde.engine.noise import NoiseSource, fixed_noise
from sgm_sde.engine.program import Form, Program, Step
from sgm_sde.grids import Grid
from sgm_sde.inverse.linalg import Linearised
from sgm_sde.inverse.operators import Measurement
from sgm_sde.inverse.posterior_scores import require_measurement
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.schemes.base import Solver, WrappedSolver, called, resolve
from sgm_sde.schemes.euler import SONG, forward_kernel
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score


def _looks_back(program: Program) -> bool:
    """True if a step builds on what was before its start."""
    start = 0
    for k, stage in enumerate(program.stages):
        if any(j < start for j, _ in (*stage.states, *stage.evals)):
            return True
        start = k if stage.node else start
    return False


@dataclass(frozen=True)
class AtNodes(WrappedSolver):
    """A solver with something at the nodes of its grid that depends on a measurement.

    It approximates no flow, and so claims no order.
    """

    solver: Solver
    measurement: Measurement

    def __init__(self, solver: Solver | str, measurement: Measurement) -> None:
        require_measurement(measurement)
        if isinstance(solver, Score):
            name = type(self).__name__
            raise TypeError(
                f"{name} goes around a solver, sample(score, ..., solver={name}('ddim', measurement)), "
                f"got {described(solver)}"
            )
        settle(self, solver=resolve(solver), measurement=measurement)

    order = 0
    stochastic = True
    guided = True

    def fit(self, nfe: int) -> tuple[Solver, int]:
        """With the solver made for the budget."""
        solver, steps = self.solver.fit(nfe)
        return replace(self, solver=solver), steps

    def step(self, k: Step) -> Form:
        """Not a formula: raises TypeError, so that no wrapper of steps drops what happens at the nodes."""
        raise TypeError(
            f"{self.name} works at the grid's nodes and not within a step: put it outside of other wrappers"
        )

    def compile(self, sde: SDE, grid: Grid) -> Program:
        """The solver's table, if this method can go with it."""
        if not has_scalar_marginal(sde):
            raise TypeError(f"{self.name} needs a LinearSDE, got {described(sde)}")
        program = self.solver.compile(sde, grid)
        self.check(program)
        return program

    def measured(self, model: BoundScore, x: Tensor) -> Measurement:
        """The measurement of states x (b, *): those of all samples, or of the part that the model is for."""
        if model.rows is None:
            return self.measurement
        rows = torch.arange(model.rows.start, model.rows.stop, device="cpu")
        return self.measurement.of_samples(rows, x)

    @abstractmethod
    def check(self, program: Program) -> None:
        """Raise ValueError for a program that the method cannot go with."""


@dataclass(frozen=True)
class Replacement(AtNodes):
    r"""Puts the measurement, noised to the time, into the state at each node.

    $$ x \leftarrow x + A^+(\alpha y + \sigma A z - A x) $$

    Inpainting replaces what is known; for mixtures of channels it is colourisation by an orthogonal decoupling. The
    measurement is taken as exact. What is not known sees what is known through the next network call only, so samples
    harmonise badly with it: exact where the two are independent, biased elsewhere. The solver's own network calls.

    With `noise="fresh"`, z is drawn anew at each node, as published; a multistep solver, which would extrapolate from
    states of other noise, is an error. With `noise="fixed"` there is one z in a run, so that the known part follows a
    smooth path and multistep solvers go.

    `final="mean"` puts y in without noise and takes the solver's own mean for the rest. `final="denoise"` returns the
    denoised state, near y and not equal to it; `measurement.consistent(x)` makes it so.

    Around a predictor-corrector it acts after both; `PredictorCorrector(Replacement(predictor, m), corrector)` in
    between.

    Args:
        solver: any single-step solver or its name; any solver with fixed noise.
        measurement: with std 0.
        noise: `"fresh"` or `"fixed"`.

    Raises:
        TypeError: unless they are a `Solver` and a `Measurement`; in `sample`, for a process that is not linear.
        ValueError: for a measurement with noise, another `noise`; in `sample`, for a multistep solver with fresh noise.

    Source: Song et al., 2021, arXiv:2011.13456, appendix I.

    Examples:
        >>> import sgm_sde as sg
        >>> seen = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.tensor([1.0, 0.0]))
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sg.VESDE())
        >>> sampler = Replacement(sg.ReverseDiffusion(), seen)
        >>> sg.sample(score, sg.VESDE(), (2, 2), solver=sampler, steps=50, seed=0, final="mean").x[:, 0]
        tensor([1., 1.])
    """

    noise: str = "fresh"
    source = SONG

    def __init__(self, solver: Solver | str, measurement: Measurement, noise: str = "fresh") -> None:
        super().__init__(solver, measurement)
        one_of("noise", noise, ("fresh", "fixed"))
        settle(self, noise=noise)
        measurement.linear()
        if measurement.std != 0:
            raise ValueError(
                f"{self.name} takes y as exact, got std={measurement.std:g}: "
                f"MMPS, PiGDM and DiffPIR take noise into account"
            )

    @property
    def name(self) -> str:
        """The solver's, and that it replaces."""
        return f"{self.solver.name}-replacement"

    def check(self, program: Program) -> None:
        """Raise ValueError for a multistep program with fresh noise."""
        if self.noise == "fresh" and _looks_back(program):
            raise ValueError(
                f"{called(self.solver)} builds on earlier steps, whose states had other noise in them: "
                f"take a single-step solver, or Replacement(..., noise='fixed')"
            )

    def hooks(self, sde: SDE, grid: Grid, model: BoundScore, noise: NoiseSource, *, mean: bool) -> tuple[Hook, ...]:
        """The replacement, after the solver's own hooks."""
        return (*self.solver.hooks(sde, grid, model, noise, mean=mean), self._replacing(sde, grid, model, noise, mean))

    def _replacing(self, sde: SDE, grid: Grid, model: BoundScore, noise: NoiseSource, mean: bool) -> Hook:
        nodes = sde.nodes(grid.times)
        fixed: list[Tensor] = []

        def noise_like(x: Tensor) -> Tensor:
            if self.noise == "fresh":
                return noise.normal(tuple(x.shape), x.dtype, x.device)
            if not fixed:
                fixed.append(fixed_noise(noise, x))
            return fixed[0]

        def put_in(x: Tensor, i: int) -> Tensor:
            measurement = self.measured(model, x)
            operator = measurement.linear()
            Az = operator.apply(noise_like(x))
            Ax, y = measurement.of(x)
            exact = mean and i == grid.steps
            alpha = 1.0 if exact else nodes[i].alpha
            sigma = 0.0 if exact else nodes[i].sigma
            return x + operator.pseudo_inverse(alpha * y + sigma * Az - Ax)

        return put_in


@dataclass(frozen=True)
class RePaint(Replacement):
    r"""Replacement with resampling: goes back up and down again, so that the unknown can harmonise with the known.

    At every `jump`-th node, counted from the last, `resamples - 1` times:

    $$ x \leftarrow a\,x + b\,z, \qquad \text{\texttt{jump} nodes earlier, then down again by the solver} $$

    with the forward process' own a and b. Passes start without a history, and the main run goes on from the state
    alone: single-step solvers only. Network calls: the solver's, and `(resamples - 1) * solver.nfe(jump)` at each
    such node; the first of them, next to pure noise, is left out, as published.

    Args:
        solver: a single-step solver or its name; `Ancestral` in the paper.
        measurement: with std 0.
        resamples: visits of each stretch, r; 10 in the paper, on 250 steps.
        jump: steps of a stretch, j; 10 in the paper.

    Raises:
        TypeError: as `Replacement`.
        ValueError: as `Replacement`, and for `resamples` or `jump` below 1, or a noise that is not fresh.

    Source: Lugmayr et al., 2022, arXiv:2201.09865.

    Examples:
        >>> import sgm_sde as sg
        >>> seen = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.tensor([1.0, 0.0]))
        >>> RePaint(sg.Ancestral(), seen).nfe(250)
        2410
    """

    resamples: int = 10
    jump: int = 10
    source = "Lugmayr et al., 2022, arXiv:2201.09865"

    def __init__(
        self,
        solver: Solver | str,
        measurement: Measurement,
        noise: str = "fresh",
        resamples: int = 10,
        jump: int = 10,
    ) -> None:
        super().__init__(solver, measurement, noise)
        settle(self, resamples=check_integer("resamples", resamples), jump=check_integer("jump", jump))
        if noise != "fresh":
            raise ValueError(f"RePaint draws fresh noise, got noise={noise!r}")

    @property
    def name(self) -> str:
        """The solver's, and that it resamples."""
        return f"{self.solver.name}-repaint"

    def _ends(self, steps: int) -> Sequence[int]:
        """The nodes from which it goes back."""
        return range(steps, self.jump, -self.jump)

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps of the main run."""
        passes = len(self._ends(steps)) * (self.resamples - 1)
        return self.solver.nfe(steps) + passes * self.solver.nfe(self.jump)

    def fit(self, nfe: int) -> tuple[Solver, int]:
        """The solver unchanged: its passes are those of the given solver."""
        return self, self.steps(nfe)

    def hooks(self, sde: SDE, grid: Grid, model: BoundScore, noise: NoiseSource, *, mean: bool) -> tuple[Hook, ...]:
        """Everything at a node: the solver's own hooks, the replacement, and the way back."""
        hooks = super().hooks(sde, grid, model, noise, mean=mean)
        nodes = sde.nodes(grid.times)

        def at_node(x: Tensor, i: int) -> Tensor:
            for hook in hooks:
                x = hook(x, i)
            if i not in self._ends(grid.steps):
                return x

            first = i - self.jump
            program = self.solver.compile(sde, Grid(grid.times[first : i + 1]))
            inside = [_from_node(hook, first) for hook in hooks]
            exact = mean and i == grid.steps
            grad = torch.is_grad_enabled()
            for n in range(1, self.resamples):
                x = _diffused(x, nodes[i], nodes[first], noise)
                if exact and n == self.resamples - 1:
                    program = self.solver.end_in_mean(program)
                x = execute(program, x, model, noise, hooks=inside, grad=grad).x
            return x

        return (at_node,)

    def end_in_mean(self, program: Program) -> Program:
        """The solver's, unless passes follow the last node."""
        return program if self.resamples > 1 and self._ends(program.steps) else super().end_in_mean(program)


def _diffused(x: Tensor, end: Node, start: Node, noise: NoiseSource) -> Tensor:
    """The forward process' step from the cleaner node `end` back to the noisier `start`."""
    a, b2 = forward_kernel(end, start)
    z = noise.normal(tuple(x.shape), x.dtype, x.device)
    return a * x + math.sqrt(b2) * z


def _from_node(hook: Hook, first: int) -> Hook:
    """The hook for a pass that starts at node `first`, whose state is left as it is."""
    return lambda x, i: hook(x, first + i) if i else x


def _norm(r: Tensor) -> Tensor:
    """Norm of each sample, to divide r (B, *) by; 1 where it is 0."""
    square = dot(r, r)
    norm = torch.where(square > 0, square, 1).sqrt()
    return norm.reshape(-1, *[1] * (r.ndim - 1))


class _Remembering(Score):
    """A score that keeps the last call's graph, for the run that it was made for."""

    def __init__(self, score: Score) -> None:
        super().__init__(score.net, score.sde, score.prediction)
        self._score = score
        self.last: Linearised | None = None

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row per sample."""
        return self._score.conditions

    def network_evals(self, t: Tensor) -> int:
        """Samples that the network sees in a call at t (B,)."""
        return self._score.network_evals(t)

    @outside_inference_mode
    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The score's own output."""
        self.last = Linearised(lambda x: self._score.output(x, t, **kwargs), x)
        return self.last.value


@dataclass(frozen=True)
class DPS(AtNodes):
    r"""Diffusion posterior sampling: after each step, down the gradient of the misfit before it.

    $$ x_{i+1} \leftarrow x_{i+1} - \zeta\,\rho_i\,\rho_{i+1}\,\nabla_{x_i} \lVert y - A(D(x_i))\rVert, \qquad
       \rho^2 = \alpha^2 + \sigma^2 $$

    The operator may be any differentiable one (`NonlinearMap`), and is differentiated at $D(x_i)$. With $\rho$, which
    is 1 on VP where the paper works, the step is the same in every scaling of x: one denoiser gives the same samples
    on every process. The norm is a sample's own. As in the paper's code, the step size is $\zeta$ on the norm; its
    algorithm 1 writes $\zeta_i = \zeta'/\lVert y - AD\rVert$ on the square, the same with $\zeta = 2\zeta'$. Its
    pull grows with the number of steps, $\sigma_y$ does not enter, no posterior is approximated: a heuristic for 1000
    steps of ancestral sampling. For steps of one evaluation, on any linear process. The solver's network calls, and
    one vector-Jacobian product each.

    Args:
        solver: `Ancestral`, `DDIM` or another of one evaluation a step, or its name.
        measurement: what was measured; its std is not used.
        zeta: step size.

    Raises:
        TypeError: unless they are a `Solver` and a `Measurement`; in `sample`, for a process that is not linear.
        ValueError: for a zeta that is not positive; in `sample`, for a solver of more than one evaluation a step, or a
            network without gradient.

    Source: Chung et al., 2023, arXiv:2209.14687.

    Examples:
        >>> import sgm_sde as sg
        >>> seen = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.tensor([1.0, 0.0]))
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sg.VPSDE())
        >>> sg.sample(score, sg.VPSDE(), (4, 2), solver=DPS(sg.Ancestral(), seen, zeta=0.5), steps=50, seed=0).nfe
        51
    """

    zeta: float = 1.0
    source = "Chung et al., 2023, arXiv:2209.14687"

    def __init__(self, solver: Solver | str, measurement: Measurement, zeta: float = 1.0) -> None:
        super().__init__(solver, measurement)
        settle(self, zeta=number("zeta", zeta, above=0))

    @property
    def name(self) -> str:
        """The solver's, and that it is guided."""
        return f"{self.solver.name}-dps"

    def check(self, program: Program) -> None:
        """Raise ValueError for a program of more than one evaluation a step."""
        if _looks_back(program) or not all(stage.node for stage in program.stages):
            raise ValueError(
                f"the step size of DPS goes with one evaluation a step; {called(self.solver)} has more, or builds on "
                f"earlier ones: take Ancestral() or DDIM(), or a score such as MMPS or PiGDM with any solver"
            )

    def hooks(self, sde: SDE, grid: Grid, model: BoundScore, noise: NoiseSource, *, mean: bool) -> tuple[Hook, ...]:
        """The gradient step, before the solver's own hooks."""
        model.score = remembering = _Remembering(model.score)
        rho = [math.hypot(node.alpha, node.sigma) for node in sde.nodes(grid.times)]

        @outside_inference_mode
        def descend(x: Tensor, i: int) -> Tensor:
            if remembering.last is None:
                return x
            descent = self._descent(model, remembering.last, grid.times[i - 1])
            return x + self.zeta * rho[i - 1] * rho[i] * descent

        return (descend, *self.solver.hooks(sde, grid, model, noise, mean=mean))

    def reach(self, sde: LinearSDE, grid: Grid) -> float:
        r"""The norm by which the pulls move samples of a sound network, twice over for good measure.

        Of data of the scale S the denoiser's Jacobian is that of a Gaussian, $\alpha S^2/(\alpha^2 S^2 + \sigma^2)$, or
        less; the measurement's size stands for S and that of the operator.
        """
        y = self.measurement.y.double()
        size = max(1.0, float(y.square().mean().sqrt()))
        moved = 0.0
        for before, node in pairwise(sde.nodes(grid.times)):
            rho = math.hypot(before.alpha, before.sigma)
            rho_after = math.hypot(node.alpha, node.sigma)
            noise = before.sigma / size
            moved += rho * rho_after / (before.alpha**2 + noise**2)
        return 2 * self.zeta * size * moved

    def _descent(self, model: BoundScore, last: Linearised, t: float) -> Tensor:
        """Minus the gradient of the misfit by the state at t, where the network was last evaluated."""

        def denoised(x: Tensor, output: Tensor) -> Tensor:
            return model.predict("data", x, t, output)

        with torch.enable_grad():
            D = denoised(last.x, last.output)
        at = D if torch.is_grad_enabled() else D.detach()
        measurement = self.measured(model, at)
        r = measurement.residual(at)
        return last.vjp(measurement.operator.vjp(at, r / _norm(r)), denoised)
