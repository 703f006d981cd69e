"""Langevin correctors, and their composition with any solver."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sgm_sde._utils.checks import FAR, check_integer, described, number, one_of, settle
from sgm_sde._utils.elsewhere import OF_METHODS
from sgm_sde._utils.shapes import cpu_float64, flat
from sgm_sde._utils.warn import warn
from sgm_sde.engine.executor import Hook
from sgm_sde.engine.node import Node
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Form, Program, Step
from sgm_sde.grids import Grid
from sgm_sde.identity import Value
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.schemes.base import Solver, WrappedSolver, resolve
from sgm_sde.schemes.euler import SONG
from sgm_sde.scores.model import BoundScore


class Corrector(Value, ABC):
    """Moves a state towards its marginal at a fixed time, by Markov chain steps.

    A corrector of your own gives `n_steps`, `update` and, if its step depends on the time, `constants`.

    Attributes:
        n_steps: updates at each node, one network call each.

    Examples:
        >>> class Drift(Corrector):
        ...     n_steps = 1
        ...     def update(self, x, score, z, constant): return x + 0.1 * score, 0.2**0.5 * z
        >>> mean, noise = Drift().update(torch.ones(1), -torch.ones(1), torch.zeros(1), 1.0)
        >>> mean + noise
        tensor([0.9000])
    """

    _elsewhere = OF_METHODS

    n_steps: int

    def constants(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """Per-node constants passed to `update`."""
        return [1.0] * len(grid.times)

    def begin(self, x: Tensor) -> None:
        """Hook before the first update of a run, with its state (B, *): for warnings that depend on the shape."""

    @abstractmethod
    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """One update of x (B, *) given the score there and standard normal noise: its mean, and what noise adds."""

    def corrector(self, sde: SDE, grid: Grid, model: BoundScore, noise: NoiseSource, *, mean: bool) -> Hook:
        """The function to call at a node of the grid; with `mean`, its very last update adds no noise."""
        constants = self._checked_constants(sde, grid)
        times: Sequence[Tensor] = ()

        def correct(x: Tensor, i: int) -> Tensor:
            nonlocal times
            if not times:
                self.begin(x)
                times = model.expect(grid.times, x)
            for n in range(self.n_steps):
                pair = self.update(  # nothing here holds on to score and noise
                    x,
                    model.predict("score", x, grid.times[i], times=times[i]),
                    noise.normal(tuple(x.shape), x.dtype, x.device),
                    constants[i],
                )
                x, added = self._checked_pair(pair, x)
                del pair
                if not (mean and i == grid.steps and n == self.n_steps - 1):
                    x = x + added
            return x

        return correct

    def _checked_constants(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """The constants, one for each node."""
        constants = self.constants(sde, grid)
        n = len(grid.times)
        if len(constants) != n:
            raise ValueError(
                f"constants of {type(self).__name__} must be one for each of {n} nodes, got {len(constants)}"
            )
        return constants

    def _checked_pair(self, pair: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of an update of x and what the noise adds, each of the shape of x."""
        shapes = [getattr(value, "shape", None) for value in pair] if isinstance(pair, tuple) else []
        if shapes != [x.shape, x.shape]:
            raise ValueError(
                f"update of {type(self).__name__} must return two tensors of the shape {tuple(x.shape)} of x, the mean "
                f"and what the noise adds, got {described(pair)}"
            )
        return pair


class LangevinNormWarning(UserWarning):
    """Langevin steps sized by norms of few numbers, whose law is off by more than a tenth."""


@dataclass(frozen=True)
class Langevin(Corrector):
    r"""Langevin corrector with the step size set by a signal-to-noise ratio.

    $$ x \leftarrow x + \epsilon\,s + \sqrt{2\epsilon}\,z, \qquad \epsilon = 2\,r^2\,v, \qquad
       v = \alpha_t^2\,s_{data}^2 + \sigma_t^2 $$

    the same on every linear process: with x / c(t) for x and the same denoiser, samples are the same. In a direction of
    variance $v'$ the marginal's variance becomes $v' / (1 - r^2 v / v')$, in any number of dimensions: at most 2.6 %
    too much with r = 0.16.

    With `norm="expected"` the step size is that of the published $\epsilon = 2a(r\,|z|/|s|)^2$ with both norms at what
    they are for a marginal of variance v, and a = 1: known before x, so that nothing of a sample steers its own step.
    The published ones have $a = (\alpha_i/\alpha_{i+1})^2$ from the node and the next cleaner one (t = 0 after the
    last): 1 on VE, $1 - \beta_i$ on DDPM's table, whatever the number of steps; with it samples depend on the scaling
    of x, where c(t) changes from node to node. Their norms steer it, and have another
    law where they are made of few numbers n: D of them for `"sample"`, D times the batch for `"batch"`. Variance of
    $N(0, 1)$ after 1000 updates with the exact score and r = 0.16, measured by `make bench-law`; from n = 8 on it is
    $(1 + 2/n)^2 (1 + r^2)$ to 1 %:

    | D | `"expected"` | `"sample"`, or `"batch"` of 1 | `"batch"` of 4 | of 16 | of 256 |
    |---|---|---|---|---|---|
    | 1 | 1.03 | 6e+06 | 2.8 | 1.31 | 1.04 |
    | 2 | 1.03 | 88 | 1.63 | 1.17 | 1.03 |
    | 4 | 1.03 | 2.8 | 1.31 | 1.10 | 1.03 |
    | 16 | 1.03 | 1.31 | 1.10 | 1.04 | 1.03 |
    | 64 | 1.03 | 1.10 | 1.04 | 1.03 | 1.03 |
    | 256 | 1.03 | 1.04 | 1.03 | 1.03 | 1.03 |

    Args:
        snr: the ratio r; 0.16 on VE and 0.01 on VP at CIFAR-10 in the paper.
        n_steps: updates at each node, one network call each.
        norm: `"expected"`; `"sample"` with the norms of each sample, or `"batch"` with their means over the batch, as
            in the paper's code: samples of a batch then depend on one another.
        data_std: a standard deviation that the data have in every direction, around each mode; larger ones let
            the step grow beyond what is stable. 0 is safe for all data, and what images are like.

    Raises:
        ValueError: for options out of range; for `norm="expected"` the ratio must be below 1, where updates are stable.
        TypeError: on sampling with `norm="expected"`, for a process without alpha(t) and sigma(t).

    Warns:
        LangevinNormWarning: where $(1 + 2/n)^2$ is above 1.1, for n up to 40.

    Source: Song et al., 2021, arXiv:2011.13456, algorithms 4 and 5, and their code's `ald` corrector.

    Examples:
        >>> import sgm_sde as sg
        >>> Langevin(snr=0.5).constants(sg.EDMSDE(), sg.Grid([4.0, 2.0]))
        [8.0, 2.0]
    """

    snr: float = 0.16
    n_steps: int = 1
    norm: str = "expected"
    data_std: float = 0.0

    def __post_init__(self) -> None:
        settle(self, n_steps=check_integer("n_steps", self.n_steps), snr=number("snr", self.snr, above=0))
        one_of("norm", self.norm, ("expected", "sample", "batch"))
        if self.norm == "expected" and self.snr >= 1:
            raise ValueError(f"snr must be below 1, from where on updates are not stable, got {self.snr}")
        settle(self, data_std=number("data_std", self.data_std, least=0, most=FAR))
        if self.data_std and self.norm != "expected":
            raise ValueError(f"data_std={self.data_std} goes with norm='expected', got norm={self.norm!r}")

    def constants(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """The step size epsilon of each node; with norms of the state, the factor a."""
        if self.norm != "expected":
            return self._factors(sde, grid)
        return [2 * self.snr**2 * v for v in self._variances(sde, grid)]

    def _factors(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """The factor a of each node; 1 where there is no alpha."""
        if not has_scalar_marginal(sde):
            return super().constants(sde, grid)
        alphas = sde.alpha(cpu_float64([*grid.times, 0.0])).tolist()
        return [(noisier / cleaner) ** 2 for noisier, cleaner in pairwise(alphas)]

    def _variances(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """The variance v at each node."""
        if not has_scalar_marginal(sde):
            raise TypeError(
                f"{type(self).__name__}() takes its step size from alpha(t) and sigma(t), which {sde!r} does not have: "
                f"give norm='sample' or norm='batch', a corrector of your own, or on blocks VelocityLangevin()"
            )
        return [(node.alpha * self.data_std) ** 2 + node.sigma**2 for node in sde.nodes(grid.times)]

    def begin(self, x: Tensor) -> None:
        """Warn of norms of few numbers."""
        if self.norm == "expected":
            return
        numbers = self._moved(x).numel() // (len(x) if self.norm == "sample" else 1)
        # In the limit of small steps the law is the marginal's times |s|^2, and noise of large norm is made larger yet.
        excess = (1 + 2 / numbers) ** 2 - 1
        if excess > 0.1:
            of = "a sample has" if self.norm == "sample" else "the whole batch has"
            warn(
                f"norm={self.norm!r} takes Langevin's step from norms of the very state it moves, and {of} {numbers} "
                f"numbers only: that alone makes the variance {100 * excess:.0f} % too large, or more; take "
                f"norm='expected'",
                LangevinNormWarning,
            )

    def _moved(self, x: Tensor) -> Tensor:
        """The part of the state that is updated."""
        return x

    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """One update: its mean, and what noise adds."""
        if self.norm == "expected":
            mean = torch.add(x, score, alpha=constant)
            del score  # nothing else holds it, and noise needs as much memory
            return mean, math.sqrt(2 * constant) * z

        ratio = self._ratio(z, score).reshape(-1, *[1] * (x.ndim - 1))
        root = self.snr * ratio  # sqrt(epsilon / (2 a))
        mean = x + 2 * constant * root**2 * score
        return mean, 2 * math.sqrt(constant) * root * z

    def _ratio(self, z: Tensor, s: Tensor) -> Tensor:
        """|z| / |s|, one for each sample or one for all; 0 where the score vanishes, so that nothing moves."""
        z_norm = flat(z).norm(dim=1)
        s_norm = flat(s).norm(dim=1)
        if self.norm == "batch":
            z_norm = z_norm.mean()
            s_norm = s_norm.mean()

        moves = s_norm > 0
        return torch.where(moves, z_norm / torch.where(moves, s_norm, 1), 0)  # finite in its derivative, too


@dataclass(frozen=True)
class AnnealedLangevin(Solver, Corrector):
    r"""NCSN's annealed Langevin dynamics, as a sampler of its own and as a corrector.

    At each noise level of the grid, `n_steps` times:

    $$ x \leftarrow x + \tfrac{\delta_i}{2}\,s + \sqrt{\delta_i}\,z, \qquad \delta_i = q\,\sigma_i^2 $$

    and on to the next level by $\alpha_{i+1}/\alpha_i$, which is 1 on VE, the paper's process: elsewhere the state has
    the next level's scale from its first update on. The paper gives $\delta$ at the last level:
    $q = \delta/\sigma_{\text{last}}^2$, 0.2 for its 2e-5 at 0.01.

    As a sampler it visits every level, the last one included: `n_steps * (steps + 1)` network calls. Its law has a bias
    that depends on q and not on the grid, so it claims no order: in a direction in which the data have variance 0, the
    state ends with the variance $\sigma_i^2 / (1 - q/4)$ instead of $\sigma_i^2$, 5 % more for the paper's q.

    Args:
        step_ratio: q, the step size in units of the noise's variance; below 4, where updates are stable.
        n_steps: updates at each level.

    Raises:
        ValueError: for options out of range.

    Source: Song & Ermon, 2019, arXiv:1907.05600, algorithm 1.

    Examples:
        >>> AnnealedLangevin(step_ratio=2e-5 / 0.01**2, n_steps=100).nfe(9)
        1000
    """

    step_ratio: float = 0.2
    n_steps: int = 100
    lags = True
    name = "annealed-langevin"
    order = 0
    stochastic = True
    prediction = "score"
    grids = ("table",)
    source = "Song & Ermon, 2019, arXiv:1907.05600"

    def __post_init__(self) -> None:
        settle(
            self,
            n_steps=check_integer("n_steps", self.n_steps),
            step_ratio=number("step_ratio", self.step_ratio, above=0),
        )
        if self.step_ratio >= 4:
            raise ValueError(f"step_ratio must be below 4, from where on updates are not stable, got {self.step_ratio}")

    @property
    def nfe_per_step(self) -> int:
        """Updates at a level."""
        return self.n_steps

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps: every level counts."""
        return self.n_steps * (steps + 1)

    def step(self, k: Step) -> Form:
        """One level; the last step does the last level as well."""
        x = k.end.alpha / k.start.alpha * self._sweep(k, k.x, k.start)
        return self._sweep(k, x, k.end) if k.i == k.n - 1 else x

    def _sweep(self, k: Step, x: Form, node: Node) -> Form:
        delta = self.step_ratio * node.sigma**2
        for _ in range(self.n_steps):
            x = k.keep(x, node)
            x = x + delta / 2 * k.evaluate(x, node) + math.sqrt(delta) * k.noise()
        return x

    def constants(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """The step size of each node."""
        return [self.step_ratio * node.sigma**2 for node in sde.nodes(grid.times)]

    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """One update: its mean, and what noise adds."""
        return x + constant / 2 * score, math.sqrt(constant) * z


@dataclass(frozen=True)
class PredictorCorrector(WrappedSolver):
    """A solver with a corrector at the nodes of its grid.

    `order="PC"` corrects each state that a predictor step has reached, the last one included: the algorithms as
    published, and the default for that reason. `order="CP"` corrects before each predictor step, at `sde.T`
    first, and never at the end: what the paper's code does. Either way the corrector works at `steps` nodes, and
    a multistep predictor's evaluations are those at the corrected states. What the corrector adds at the end is
    removed by `final="denoise"`. Its bias depends on its own step size, so a composition claims no weak order.

    Network calls per step: the predictor's plus `corrector.n_steps`.

    Args:
        predictor: any solver or its name, stochastic or not, multistep too.
        corrector: `Langevin`, `AnnealedLangevin` or your own.
        order: `"PC"` or `"CP"`.
        sequence: the same, by the name of the attribute; as an attribute `order` is that of convergence.

    Raises:
        TypeError: unless the predictor is a `Solver` and the corrector a `Corrector`.
        ValueError: for another order.

    Source: Song et al., 2021, arXiv:2011.13456, algorithms 1 to 3.

    Examples:
        >>> import sgm_sde as sg
        >>> sampler = PredictorCorrector(sg.ReverseDiffusion(), Langevin(snr=0.16))
        >>> sampler.nfe(1000)
        2000
    """

    predictor: Solver
    corrector: Corrector
    sequence: str

    def __init__(
        self, predictor: Solver | str, corrector: Corrector, order: str = "PC", *, sequence: str | None = None
    ) -> None:
        order = order if sequence is None else sequence
        predictor = resolve(predictor, "predictor")
        if not isinstance(corrector, Corrector):
            raise TypeError(f"corrector must be a Corrector, such as Langevin(snr=0.16), got {described(corrector)}")
        one_of("order", order, ("PC", "CP"))
        settle(self, predictor=predictor, corrector=corrector, sequence=order)

    name = "predictor-corrector"
    stochastic = True
    source = SONG

    @property
    def solver(self) -> Solver:  # type: ignore[override]
        """The predictor, as the solver inside."""
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

    def hooks(self, sde: SDE, grid: Grid, model: BoundScore, noise: NoiseSource, *, mean: bool) -> tuple[Hook, ...]:
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
