"""Which solver and grid `sample` takes on processes with a matrix: gDDIM and others by network calls.

    python -m benchmarks.cld_defaults [--half choose|report] [--n 32] [--out out/cld_defaults]

Each bed is a law with its exact score, or a network of digits, on CLD or another process with a matrix. The error of a
run is the root mean square distance of its positions to those of a tight solution (RK4, 100 steps) from the same states
at T, in units of the data's spread; a row has the geometric mean over beds, and the largest. Settings are compared on
one half of the beds, and are reported on the other.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import command
from sgm_sde.nn.digits import load_digits_denoiser, load_digits_velocity

BUDGETS = (4, 6, 8, 10, 20, 50)
GDDIM, SSCS = sg.schemes.GDDIM, sg.schemes.SSCS
GRIDS = {"quadratic": (1, 2, 3, 4), "uniform": (3,), "exponential": (3,)}  # and nodes
CORRECTED = sg.PredictorCorrector(GDDIM(3), sg.schemes.VelocityLangevin(snr=0.1))
SOLVERS: dict[str, tuple[Any, str]] = {
    **{f"gDDIM({n}), {grid}": (GDDIM(n), grid) for grid in GRIDS for n in GRIDS[grid]},
    "gDDIM(3), quadratic, with Langevin steps in v": (CORRECTED, "quadratic"),
    "SSCS(eta=0), quadratic": (SSCS(eta=0), "quadratic"),
    "Heun in time, quadratic": ("heun2", "quadratic"),
}
THIRD = sg.processes.MatrixSDE.from_rate(
    [[0, 1, 0], [-1, 0, 2], [0, -2, -3]],
    np.diag([0, 0, math.sqrt(6)]),
    prior_covariance=np.eye(3),
    initial_covariance=np.diag([0, 0.04, 0.04]),
    beta_min=5.0,
)
CLD, RAMP, UNDER = sg.CLD(), sg.CLD(beta_min=0.5, beta_max=8.0), sg.CLD(friction=0.7)


@dataclass
class Bed:
    """A score on a process.

    Attributes:
        name: of both.
        sde: the process.
        score: the score.
        shape: of one sample.
        options: what else `sample` is given, for so many samples.
    """

    name: str
    sde: sg.processes.MatrixSDE
    score: Any
    shape: tuple[int, ...]
    options: Callable[[int], dict[str, Any]] = lambda n: {}

    def run(self, n: int, **options: Any) -> Tensor:
        """Positions of n samples."""
        x_T = self.sde.prior_sample((n, self.sde.blocks, *self.shape), seed=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = sg.sample(self.score, self.sde, x_T=x_T, seed=0, **options, **self.options(n))
        return self.sde.position(result.x)


def mixture(k: int, d: int, spread: float, std: float) -> sg.oracles.GaussianMixture:
    """k modes in d dimensions."""
    means = spread * torch.randn(k, d, generator=torch.Generator().manual_seed(d))
    return sg.oracles.GaussianMixture(means, std)


def exact(name: str, oracle: Any, sde: sg.processes.MatrixSDE, d: int) -> Bed:
    """The bed of a law."""
    return Bed(name, sde, oracle.score(sde), (d,))


def beds(half: str) -> list[Bed]:
    """One half of the beds."""
    bimodal = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
    narrow = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [0.2], [1.0]]), 0.05, [0.3, 0.3, 0.4])
    gaussian = sg.oracles.Gaussian(torch.tensor([0.3]), 0.25)
    labels = lambda n: {"model_kwargs": {"y": torch.arange(n) % 10}}  # noqa: E731
    if half == "choose":
        velocity = load_digits_velocity()
        trained = sg.scores.from_velocity_noise(velocity, CLD, mixed=float(velocity.sigma_data))
        return [
            exact("Gaussian, CLD", gaussian, CLD, 1),
            exact("narrow modes, ramp", narrow, RAMP, 1),
            exact("ten modes in 16, CLD", mixture(10, 16, 0.7, 0.2), CLD, 16),
            exact("three modes in 2, under", mixture(3, 2, 1.0, 0.2), UNDER, 2),
            exact("Gaussian, third order", gaussian, THIRD, 1),
            Bed("digits, a network of the velocity's noise, CLD", CLD, trained, (1, 8, 8), labels),
        ]
    denoiser = sg.scores.from_joint_denoiser(load_digits_denoiser(), CLD)
    return [
        exact("two modes, CLD", bimodal, CLD, 1),
        exact("narrow modes, CLD", narrow, CLD, 1),
        exact("three modes in 2, ramp", mixture(3, 2, 1.0, 0.2), RAMP, 2),
        exact("ten modes in 64, CLD", mixture(10, 64, 1.0, 0.3), CLD, 64),
        exact("two modes, third order", bimodal, THIRD, 1),
        Bed("digits, a denoiser, CLD", CLD, denoiser, (1, 8, 8), labels),
    ]


def errors(bed: Bed, n: int) -> dict[tuple[str, int], float]:
    """Errors by solver and network calls, infinite for what is not finite."""
    tight = bed.run(n, solver="rk4", grid="quadratic", steps=100)
    spread = float((tight - tight.mean(0)).square().mean().sqrt())
    found = {}
    for (name, (solver, grid)), nfe in ((s, b) for s in [*SOLVERS.items(), ("default", (None, ""))] for b in BUDGETS):
        given = {} if solver is None else {"solver": solver, "grid": grid}
        try:
            off = (bed.run(n, nfe=nfe, **given) - tight).square().mean().sqrt()
        except ValueError:  # fewer calls than a step takes
            continue
        found[name, nfe] = float(off.nan_to_num(math.inf)) / spread
    return found


def main() -> int:
    """Print the table of a half and write it."""
    parser = command.parser(__doc__, out="out/cld_defaults")
    parser.add_argument("--half", choices=("choose", "report"), default="report")
    parser.add_argument("--n", type=int, default=32, help="samples of each bed")
    args = command.begin(parser)
    of_beds = []
    for bed in beds(args.half):
        of_beds.append(errors(bed, args.n))
        sys.stderr.write(f"{bed.name}: default {[round(of_beds[-1]['default', b], 3) for b in BUDGETS]}\n")

    lines = ["| solver, grid | " + " | ".join(f"{b} calls" for b in BUDGETS) + " |", "|---|" + "---:|" * len(BUDGETS)]
    for name in [*SOLVERS, "default"]:
        cells = []
        for nfe in BUDGETS:
            known = [found[name, nfe] for found in of_beds if (name, nfe) in found]
            mean = math.exp(sum(math.log(max(e, 1e-9)) for e in known) / len(known)) if known else math.nan
            cells.append(f"{mean:.2g} ({max(known):.2g})" if known else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (args.out / f"{args.half}.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
