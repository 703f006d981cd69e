"""Multistep solvers whose last step is a leap: the error of a lower order there over that of the order kept.

    python -m benchmarks.leaps [--half choose]

On test beds of up to 64 numbers a sample, without guidance. Times even down to the data, or shifted, end in a step of
log-SNR that is several times the one before. A solver as its name gives it stands beside `lower_final=False`. The beds
of the choosing half chose from which ratio on a step is a leap.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import sgm_sde as sg
from benchmarks import beds, command
from benchmarks.defaults import geometric

SOLVERS = ("dpm++2m", "unipc3")
GRIDS = {"uniform": sg.grids.Uniform(), "shifted by 3": sg.grids.Shifted(3.0)}
PROCESSES = {"uniform": ("flow", "vp", "ddpm", "capped", "cosine"), "shifted by 3": ("flow",)}
BUDGETS = (16, 20, 28, 50)
LARGEST = 64  # numbers of a sample


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    options = command.parser(__doc__)
    options.add_argument("--half", choices=("choose", "report"), default="report", help="of the beds (%(default)s)")
    args = command.begin(options, argv)
    small = [bed for bed in beds.load(half=args.half) if math.prod(bed.shape[1:]) <= LARGEST and not bed.score.guided]

    lines = [f"| solver | times | beds | {' | '.join(map(str, BUDGETS))} | worst |", "|---|---|--:|" + "--:|" * 5]
    for name in SOLVERS:
        solver = sg.solvers().fixed[name]
        kept = replace(solver, lower_final=False)
        for grid, rule in GRIDS.items():
            chosen = [bed for bed in small if bed.process in PROCESSES[grid]]
            ratios = [
                [beds.error(bed, solver, nfe, rule) / beds.error(bed, kept, nfe, rule) for bed in chosen]
                for nfe in BUDGETS
            ]
            cells = " | ".join(f"{geometric(each):.2f}" for each in ratios)
            lines.append(f"| `{name}` | {grid} | {len(chosen)} | {cells} | {max(map(max, ratios)):.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
