"""The default of `sample` beside DDIM on scores that the gradient of a reward has been added to.

    python -m benchmarks.rewards                  # the half that is reported
    python -m benchmarks.rewards --half choose    # the half that chose

Rewards of the state (quadratic, linear, a network, the log-posterior of a mode) and of the data estimate (the first
three), at three weights each, on mixtures of 2 to 10 modes in 1 to 64 dimensions, on VP, EDM and rectified flow. On EDM
rewards of the state are of the state over its scale. A cell is a reward at a weight; its error is that of 10 of 12
noises, without the two worst, which may end in another mode, over the standard deviation of the exact samples. The
exact flow is solved by 160 steps of RK4 in log-SNR. Counted are cells in which DDIM errs by less than the spread;
"thrown out" are all cells in which the default errs by more than twice that, over all noises, and by more than DDIM.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import beds, command
from benchmarks.defaults import geometric
from benchmarks.guided_modes import F64, PROCESSES

BUDGETS = (4, 5, 6, 8, 10, 12, 16, 20, 30, 40, 50)
NOISES = 12
KEPT = 10
STEPS = 160  # of the exact flow
STRONGEST = 6.907755  # minus half the log-SNR at which runs on rectified flow start
ABOVE = 1.1

WEIGHTS = {
    "quadratic": (0.3, 1.0, 3.0),
    "linear": (1.0, 3.0, 10.0),
    "network": (1.0, 3.0, 10.0),
    "posterior": (2.0, 5.0, 10.0),
    "quadratic of the estimate": (0.3, 1.0, 4.0),
    "linear of the estimate": (1.0, 3.0, 10.0),
    "network of the estimate": (1.0, 3.0, 10.0),
}
CELLS = [(kind, weight) for kind, weights in WEIGHTS.items() for weight in weights]
Reward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Law:
    """A mixture, and the factor on all weights."""

    seed: int
    n: int
    dimension: int
    width: float
    factor: float = 1.0


LAWS = {
    "choose": [Law(0, 3, 2, 0.2), Law(1, 6, 16, 0.3)],
    "report": [Law(2, 2, 1, 0.3, 0.7), Law(3, 4, 3, 0.2, 0.7), Law(4, 10, 64, 0.4, 0.7)],
}


class Rewarded:
    """All cells of a law on a process as one batch, `NOISES` rows each."""

    def __init__(self, law: Law, process: str) -> None:
        self.sde = PROCESSES[process]
        self.scaled = process == "EDM"
        generator = torch.Generator().manual_seed(law.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=F64)

        d = law.dimension
        self.means = normal(law.n, d)
        self.width = law.width
        self.aim = normal(d) / 2
        self.along = torch.nn.functional.normalize(normal(d), dim=0)
        self.layers = normal(d, 32) / d**0.5, normal(32), 1.5 * normal(32, 3) / 32**0.5

        self.weight = law.factor * torch.tensor([weight for _, weight in CELLS], dtype=F64).repeat_interleave(NOISES)
        self.x_T = self.sde.prior_sample((NOISES, d), seed=1, dtype=F64).repeat(len(CELLS), 1)
        self.score = sg.guidance.Classifier(sg.from_noise(self.noise, self.sde), self.reward, condition=())

    def _posterior(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities (B, n) of the modes, alpha and the variance of each at t."""
        alpha = self.sde.alpha(t)[:, None]
        variance = (alpha * self.width) ** 2 + self.sde.sigma(t)[:, None] ** 2
        along = alpha * (x @ self.means.T) - alpha**2 * self.means.square().sum(1) / 2
        return (along / variance).log_softmax(1), alpha, variance

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """The exact noise estimate."""
        log_p, alpha, variance = self._posterior(x, t)
        return self.sde.sigma(t)[:, None] * (x - alpha * (log_p.exp() @ self.means)) / variance

    def _estimate(self, x: Tensor, t: Tensor) -> Tensor:
        log_p, alpha, variance = self._posterior(x, t)
        kept = alpha * self.width**2 / variance
        return log_p.exp() @ self.means * (1 - alpha * kept) + kept * x

    def _network(self, x: Tensor) -> Tensor:
        inner, bias, outer = self.layers
        return ((x @ inner + bias).tanh() @ outer).log_softmax(1)[:, 0]

    def reward(self, x: Tensor, t: Tensor) -> Tensor:
        """The rewards (B,) of all cells."""
        state = x / (1 + self.sde.sigma(t) ** 2).sqrt()[:, None] if self.scaled else x
        estimate = self._estimate(x, t)
        plain: list[Reward] = [lambda x: -(x - self.aim).square().sum(1), lambda x: x @ self.along, self._network]
        of_kinds = [
            *(reward(state) for reward in plain),
            self._posterior(x, t)[0][:, 0],
            *(reward(estimate) for reward in plain),
        ]
        rows = 3 * NOISES  # of a kind
        return self.weight * torch.cat([value[i * rows : (i + 1) * rows] for i, value in enumerate(of_kinds)])

    @cached_property
    def exact(self) -> Tensor:
        """The samples of the guided flow."""
        first = min(-float(self.sde.log_snr(torch.tensor(self.sde.T))) / 2, STRONGEST)
        last = -float(self.sde.log_snr(torch.tensor(self.sde.eps))) / 2
        h = (last - first) / STEPS

        def estimate(y: Tensor, log_level: float) -> Tensor:
            level = torch.tensor(log_level, dtype=F64).exp()
            t = self.sde.time_of_noise_level(level).clamp(self.sde.eps, self.sde.T)
            alpha = self.sde.alpha(t)
            score = self.score(alpha * y, t.expand(len(y)))
            return y + self.sde.sigma(t) ** 2 / alpha * score

        start = self.sde.time_of_noise_level(torch.tensor(first, dtype=F64).exp())
        y = self.x_T / self.sde.alpha(start)
        for i in range(STEPS):

            def slope(y: Tensor, j: int, at: float = first + i * h) -> Tensor:
                return y - estimate(y, at + j * h / 2)

            y = beds.rk4(slope, y, h)
        return estimate(y, last)

    def errors(self, nfe: int, solver: str | None) -> tuple[Tensor, Tensor]:
        """Errors of the cells, without the worst noises and of all."""
        off = sg.sample(self.score, self.sde, x_T=self.x_T, nfe=nfe, solver=solver).x - self.exact
        squares = off.view(len(CELLS), NOISES, -1).square().mean(2).nan_to_num(math.inf).sort(1).values
        spread = self.exact.view(len(CELLS), -1).std(1)
        return squares[:, :KEPT].mean(1).sqrt() / spread, squares.mean(1).sqrt() / spread


def rows(batches: Sequence[Rewarded]) -> Iterator[str]:
    """A row of the table for each budget."""
    for nfe in BUDGETS:
        ours, all_of_ours, ddim, all_of_ddim = (
            torch.cat(column)
            for column in zip(*([*b.errors(nfe, None), *b.errors(nfe, "ddim")] for b in batches), strict=True)
        )
        thrown = int(((all_of_ours > 2) & (all_of_ours > ABOVE * all_of_ddim)).sum())
        counted = ddim < 1
        over = (ours / ddim)[counted]
        above = int((over > ABOVE).sum())
        numbers = f"{geometric(over.tolist()):.2f} | {over.quantile(0.9):.2f} | {over.max():.2g} | {above}"
        yield f"| {nfe} | {len(over)} | {numbers} | {thrown} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = command.parser(__doc__)
    parser.add_argument("--half", choices=beds.HALVES, default="report")
    args = command.begin(parser, argv)
    warnings.simplefilter("ignore")

    batches = [Rewarded(law, process) for law in LAWS[args.half] for process in PROCESSES]
    sys.stdout.write("| calls | cells | default / DDIM | nine in ten below | worst | above 1.1 | thrown out |\n")
    sys.stdout.write("|--:" * 7 + "|\n")
    for row in rows(batches):
        sys.stdout.write(row + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
