"""The default on networks that look their noise level up in a table of few entries, as NCSN's.

    python -m benchmarks.few_levels

Exact scores of Gaussian mixtures, two modes in the plane and six in 16 dimensions, with the noise level rounded to the
nearest of a geometric table from 20 to .01. Root mean square errors of 256 samples against the flow of that very score,
for the default, the same on free times (`on_table=False`) and DDIM on even steps of log-SNR.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import command
from sgm_sde.grids import Thinned

LEVELS = (10, 20, 50, 200)
BUDGETS = (5, 8, 12, 16, 20, 35, 50)
REFERENCE = 12001  # calls
GENERATOR = torch.Generator().manual_seed(3)
MIXTURES = {
    "two modes": (torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.2),
    "six modes": (torch.randn(6, 16, generator=GENERATOR), 0.3),
}


def looked_up(levels: Sequence[float], modes: Tensor, width: float) -> sg.Score:
    """The score of a mixture, as a network of score_sde that has the index of its level as label."""
    sigma = torch.tensor(levels)

    def net(x: Tensor, i: Tensor) -> Tensor:
        variance = (sigma[i.long()] ** 2 + width**2)[:, None].to(x)
        away = x[:, None] - modes.to(x)
        weights = torch.softmax(-away.square().sum(2) / 2 / variance, 1)
        return -(weights[..., None] * away).sum(1) / variance

    return sg.adapters.from_score_sde(net, sg.DiscreteVESDE(levels))[0]


def errors(score: sg.Score, dimension: int) -> list[str]:
    """Errors by budget: of the default, on free times, and of DDIM."""
    sde = score.sde
    x = sde.prior_sample((256, dimension), seed=0, dtype=torch.float64)
    exact = sg.sample(score, sde, x_T=x, solver="rk4", grid="log-snr", nfe=REFERENCE).x

    def error(nfe: int, solver: sg.Setting | str, grid: str | None = None) -> float:
        off = sg.sample(score, sde, x_T=x, nfe=nfe, solver=solver, grid=grid).x - exact
        return float(off.square().mean().sqrt())

    cells = []
    for nfe in BUDGETS:
        default = sg.defaults.default_setting(sde, nfe)
        assert isinstance(default.grid, Thinned)
        free = sg.Setting(default.solver, replace(default.grid, on_table=False))
        found = error(nfe, default), error(nfe, free), error(nfe, "ddim", "log-snr")
        cells.append(" / ".join(f"{value:.2g}" for value in found))
    return cells


def main() -> None:
    """Print the table."""
    command.begin(command.parser(__doc__), None)
    lines = [f"| levels | data | {' | '.join(map(str, BUDGETS))} |", "|--:|---|" + "--:|" * len(BUDGETS)]
    for n in LEVELS:
        for name, (modes, width) in MIXTURES.items():
            score = looked_up(np.geomspace(20.0, 0.01, n).tolist(), modes, width)
            lines.append(f"| {n} | {name} | {' | '.join(errors(score, modes.shape[1]))} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
