"""Langevin correctors, and their composition with any solver."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sgm_sde._checks import whole
from sgm_sde._shapes import flat, on_host
from sgm_sde.engine.executor import Hook
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Form, Program, Step
from sgm_sde.grids import Grid
from sgm_sde.processes.base import SDE
from sgm_sde.solvers.base import Solver, WrappedSolver
from sgm_sde.solvers.euler import SONG


class Corrector(ABC):
    """Moves a state towards its marginal at a fixed time, by Markov chain steps.

    A corrector of your own gives `n_steps`, `update` and, if its step depends on the time, `constants`.

    Attributes:
        n_steps: updates at each node, one network call each.
    """

    n_steps: int

    def constants(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """What an update needs to know of each node of the grid."""
        return [1.0] * len(grid.times)

    @abstractmethod
    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """One update of x (B, *) given the score there and standard normal noise: its mean, and what noise adds."""

    def corrector(self, sde: SDE, grid: Grid, model: Any, noise: NoiseSource, *, mean: bool) -> Hook:
        """The function to call at a node of the grid; with `mean`, its very last update adds no noise."""
        constants = self.constants(sde, grid)

        def correct(x: Tensor, i: int) -> Tensor:
            for n in range(self.n_steps):
                score = model.predict("score", x, grid.times[i])
                x, added = self.update(x, score, noise.normal(tuple(x.shape), x.dtype, x.device), constants[i])
                if not (mean and i == grid.steps and n == self.n_steps - 1):
                    x = x + added
            return x

        return correct


def _require_counts(n_steps: int, **positive: float) -> None:
    whole("n_steps", n_steps)
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")


@dataclass(frozen=True)
class Langevin(Corrector):
    r"""Langevin corrector with the step size set by a signal-to-noise ratio.

    $$ x \leftarrow x + \epsilon\,s + \sqrt{2\epsilon}\,z, \qquad
       \epsilon = 2a\left(r\,\frac{\lVert z\rVert}{\lVert s\rVert}\right)^2 $$

    with $a = (\alpha_i/\alpha_{i+1})^2$ from the node and the next cleaner one (t = 0 after the last): 1 on VE,
    $1 - \beta_i$ on DDPM's table, whatever the number of steps.

    Args:
        snr: the ratio r; 0.16 on VE and 0.01 on VP at CIFAR-10 in the paper.
        n_steps: updates at each node, one network call each.
        norm: `"sample"` takes the norms of each sample, so that samples do not depend on one another; `"batch"`
            averages them over the batch, as the paper's code does; `"expected"` puts the root of the dimension
            for the noise's norm, which makes the step size independent of the noise drawn.

    Raises:
        ValueError: for options out of range.

    Source: Song et al., 2021, arXiv:2011.13456, algorithms 4 and 5.

    Example:
        >>> Langevin(snr=0.16).n_steps
        1
    """

    snr: float = 0.16
    n_steps: int = 1
    norm: str = "sample"

    def __post_init__(self) -> None:
        _require_counts(self.n_steps, snr=self.snr)
        if self.norm not in ("sample", "batch", "expected"):
            raise ValueError(f"norm must be 'sample', 'batch' or 'expected', got {self.norm!r}")

    def constants(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """The factor a of each node."""
        if not sde.is_linear:
            return super().constants(sde, grid)
        linear: Any = sde
        alphas = linear.alpha(on_host([*grid.times, 0.0])).tolist()
        return [(noisier / cleaner) ** 2 for noisier, cleaner in pairwise(alphas)]

    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """One update: its mean, and what noise adds."""
        root = self.snr * self._ratio(z, score).reshape(-1, *[1] * (x.ndim - 1))  # sqrt(epsilon / (2 a))
        return x + 2 * constant * root**2 * score, 2 * math.sqrt(constant) * root * z

    def _ratio(self, z: Tensor, s: Tensor) -> Tensor:
        """|z| / |s|, one for each sample or one for all; 0 where the score vanishes, so that nothing moves."""
        z_norm, s_norm = (flat(v).norm(dim=1) for v in (z, s))
        if self.norm == "expected":
            z_norm = torch.full_like(s_norm, math.sqrt(s[0].numel()))
        if self.norm == "batch":
            z_norm, s_norm = z_norm.mean(), s_norm.mean()
        moves = s_norm > 0
        return torch.where(moves, z_norm / torch.where(moves, s_norm, 1), 0)  # finite in its derivative, too


@dataclass(frozen=True)
class AnnealedLangevin(Solver, Corrector):
    r"""NCSN's annealed Langevin dynamics, as a sampler of its own and as a corrector.

    At each noise level of the grid, `n_steps` times:

    $$ x \leftarrow x + \tfrac{\delta_i}{2}\,s + \sqrt{\delta_i}\,z, \qquad
       \delta_i = \delta\,\frac{\sigma_i^2}{\sigma_{\text{last}}^2} $$

    As a sampler it visits every level, the last one included: `n_steps * (steps + 1)` network calls. Its law has
    a bias that depends on the step size and not on the grid, so it claims no order.

    Args:
        step_size: delta, the step size at the last level.
        n_steps: updates at each level.

    Raises:
        ValueError: for options out of range.

    Source: Song & Ermon, 2019, arXiv:1907.05600, algorithm 1.

    Example:
        >>> AnnealedLangevin(step_size=2e-5, n_steps=100).nfe(9)
        1000
    """

    step_size: float = 2e-5
    n_steps: int = 100
    name = "annealed-langevin"
    order = 0
    stochastic = True
    prediction = "score"
    source = "Song & Ermon, 2019, arXiv:1907.05600"

    def __post_init__(self) -> None:
        _require_counts(self.n_steps, step_size=self.step_size)

    @property
    def nfe_per_step(self) -> int:
        """Updates at a level."""
        return self.n_steps

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps: every level counts."""
        return self.n_steps * (steps + 1)

    def _delta(self, sigma: float, last: float) -> float:
        return self.step_size * (sigma / last) ** 2

    def step(self, k: Step) -> Form:
        """One level; the last step does the last level as well."""
        x = self._sweep(k, k.x, k.start)
        return self._sweep(k, x, k.end) if k.i == k.n - 1 else x

    def _sweep(self, k: Step, x: Form, node: Any) -> Form:
        delta = self._delta(node.sigma, k.last.sigma)
        for _ in range(self.n_steps):
            x = k.keep(x, node)
            x = x + delta / 2 * k.evaluate(x, node) + math.sqrt(delta) * k.noise()
        return x

    def constants(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """The step size of each node."""
        sigma = [node.sigma for node in sde.nodes(grid.times)]
        return [self._delta(s, sigma[-1]) for s in sigma]

    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """One update: its mean, and what noise adds."""
        return x + constant / 2 * score, math.sqrt(constant) * z


@dataclass(frozen=True)
class PredictorCorrector(WrappedSolver):
    """Any solver, with a corrector at the nodes of its grid.

    `order="PC"` corrects each state that a predictor step has reached, the last one included: the algorithms as
    published, and the default for that reason. `order="CP"` corrects before each predictor step, at `sde.T`
    first, and never at the end: what the paper's code does. Either way the corrector works at `steps` nodes, and
    a multistep predictor's evaluations are those at the corrected states. What the corrector adds at the end is
    removed by `final="denoise"`. Its bias depends on its own step size, so a composition claims no weak order.

    Network calls a step: the predictor's plus `corrector.n_steps`.

    Args:
        predictor: any solver, stochastic or not, multistep too.
        corrector: `Langevin`, `AnnealedLangevin` or your own.
        order: `"PC"` or `"CP"`.
        sequence: the same, by the name of the attribute; as an attribute `order` is that of convergence.

    Raises:
        TypeError: for a predictor that is no solver or a corrector that is none.
        ValueError: for another order.

    Source: Song et al., 2021, arXiv:2011.13456, algorithms 1 to 3.

    Example:
        >>> import sgm_sde as sg
        >>> sampler = PredictorCorrector(sg.ReverseDiffusion(), Langevin(snr=0.16))
        >>> sampler.nfe(1000)
        2000
    """

    predictor: Solver
    corrector: Corrector
    sequence: str

    def __init__(
        self, predictor: Solver, corrector: Corrector, order: str = "PC", *, sequence: str | None = None
    ) -> None:
        order = order if sequence is None else sequence
        if not isinstance(predictor, Solver):
            raise TypeError(f"predictor must be a Solver, got {predictor!r}")
        if not isinstance(corrector, Corrector):
            raise TypeError(f"corrector must be a Corrector, got {corrector!r}")
        if order not in ("PC", "CP"):
            raise ValueError(f"order must be 'PC' or 'CP', got {order!r}")
        for field, value in (("predictor", predictor), ("corrector", corrector), ("sequence", order)):
            object.__setattr__(self, field, value)

    name = "predictor-corrector"
    stochastic = True
    source = SONG

    @property
    def solver(self) -> Solver:  # type: ignore[override]
        """The predictor."""
        return self.predictor

    @property
    def nfe_per_step(self) -> int:
        """The predictor's plus the corrector's."""
        return self.predictor.nfe_per_step + self.corrector.n_steps

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps."""
        return self.predictor.nfe(steps) + steps * self.corrector.n_steps

    def compile(self, sde: SDE, grid: Grid) -> Program:
        """The predictor's table; the corrector depends on x and runs beside it."""
        return self.predictor.compile(sde, grid)

    def hooks(self, sde: SDE, grid: Grid, model: Any, noise: NoiseSource, *, mean: bool) -> tuple[Hook, ...]:
        """The corrector at the nodes it works at, after the predictor's own hooks."""
        ends = self.sequence == "PC"
        correct = self.corrector.corrector(sde, grid, model, noise, mean=mean)
        skipped = 0 if ends else grid.steps

        def at_nodes(x: Tensor, i: int) -> Tensor:
            return x if i == skipped else correct(x, i)

        return (*self.predictor.hooks(sde, grid, model, noise, mean=mean and not ends), at_nodes)

    def end_in_mean(self, program: Program) -> Program:
        """The predictor's, where it has the last word; else the corrector leaves its noise out."""
        return program if self.sequence == "PC" else self.predictor.end_in_mean(program)
