"""The default on networks that look their noise level up in a table of few entries, as NCSN's.

    python -m benchmarks.few_levels

Exact scores of Gaussian mixtures with the noise level rounded to the nearest of a geometric table. Root mean square
errors of 256 samples against the flow of that very score, for the default, the same on free times (`on_table=False`)
and DDIM on even steps of log-SNR. Two modes in the plane and six in 16 dimensions on tables from 20 to .01 chose; three
in 5 dimensions and ten in 64 on tables from 50 to .02 chose nothing. Below each half are the geometric means of default
over free times and over DDIM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import command
from benchmarks.defaults import geometric
from sgm_sde.grids import Thinned

BUDGETS = (5, 8, 12, 16, 20, 35, 50)
REFERENCE = 12001  # calls


@dataclass(frozen=True)
class Half:
    """Mixtures, each on all tables.

    Attributes:
        ends: the largest and the smallest level of each table.
        tables: their numbers of levels.
        mixtures: number of modes, dimension, and the standard deviation within a mode.
    """

    ends: tuple[float, float]
    tables: tuple[int, ...]
    mixtures: tuple[tuple[int, int, float], ...]


HALVES = {
    "choose": Half((20.0, 0.01), (10, 20, 50, 200), ((2, 2, 0.2), (6, 16, 0.3))),
    "report": Half((50.0, 0.02), (14, 30, 100), ((3, 5, 0.15), (10, 64, 0.4))),
}


def modes_of(n: int, dimension: int) -> Tensor:
    """Modes (n, d); the two in the plane are given, others are drawn."""
    if dimension == 2:
        return torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(3))


def looked_up(levels: Sequence[float], modes: Tensor, width: float) -> sg.Score:
    """The score of a mixture, as a network of score_sde that has the index of its level as label."""
    sigma = torch.tensor(levels)

    def net(x: Tensor, i: Tensor) -> Tensor:
        variance = (sigma[i.long()] ** 2 + width**2)[:, None].to(x)
        away = x[:, None] - modes.to(x)
        weights = torch.softmax(-away.square().sum(2) / 2 / variance, 1)
        return -(weights[..., None] * away).sum(1) / variance

    return sg.adapters.from_score_sde(net, sg.DiscreteVESDE(levels))[0]


def errors(score: sg.Score, dimension: int) -> list[tuple[float, float, float]]:
    """Errors by budget: of the default, on free times, and of DDIM."""
    sde = score.sde
    x = sde.prior_sample((256, dimension), seed=0, dtype=torch.float64)
    exact = sg.sample(score, sde, x_T=x, solver="rk4", grid="log-snr", nfe=REFERENCE).x

    def error(nfe: int, solver: sg.Setting | str, grid: str | None = None) -> float:
        off = sg.sample(score, sde, x_T=x, nfe=nfe, solver=solver, grid=grid).x - exact
        return float(off.square().mean().sqrt())

    found = []
    for nfe in BUDGETS:
        default = sg.defaults.default_setting(sde, nfe)
        assert isinstance(default.grid, Thinned)
        free = sg.Setting(default.solver, replace(default.grid, on_table=False))
        found.append((error(nfe, default), error(nfe, free), error(nfe, "ddim", "log-snr")))
    return found


def table(half: Half) -> list[str]:
    """The lines of a half."""
    lines = [f"| levels | modes, dimension | {' | '.join(map(str, BUDGETS))} |", "|--:|---|" + "--:|" * len(BUDGETS)]
    rows = []
    for n_levels in half.tables:
        for n, dimension, width in half.mixtures:
            levels = np.geomspace(*half.ends, n_levels).tolist()
            rows.append(errors(looked_up(levels, modes_of(n, dimension), width), dimension))
            cells = [" / ".join(f"{value:.2g}" for value in of_budget) for of_budget in rows[-1]]
            lines.append(f"| {n_levels} | {n}, {dimension} | {' | '.join(cells)} |")

    for other, name in ((1, "free times"), (2, "DDIM")):
        means = [geometric([of[0] / of[other] for of in of_budget]) for of_budget in zip(*rows, strict=True)]
        lines.append(f"| | over {name} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    return lines


def main() -> None:
    """Print the tables."""
    command.begin(command.parser(__doc__), None)
    lines = [line for name, half in HALVES.items() for line in ["", f"{name}:", "", *table(half)]]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
