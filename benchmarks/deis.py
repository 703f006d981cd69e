"""DEIS on EDM's process with polynomials in its own time and in VP's: errors on the test beds in EDM's coordinates.

    python -m benchmarks.deis

Karras' grid, cold start, three evaluations; the geometric mean over the beds of both halves.
"""

from __future__ import annotations

import sys

import sgm_sde as sg
from benchmarks import beds
from benchmarks.defaults import geometric

BUDGETS = (8, 12, 20, 35)


def main() -> int:
    """Print the table."""
    chosen = [bed for bed in beds.load() if bed.process == "edm"]
    lines = [f"| {len(chosen)} beds | {' | '.join(map(str, BUDGETS))} |", "|---|" + "--:|" * len(BUDGETS)]
    for variable in ("time", "vp-time"):
        solver = sg.DEIS(3, variable=variable, start="cold")
        cells = [f"{geometric([beds.error(bed, solver, nfe, 'karras') for bed in chosen]):.3g}" for nfe in BUDGETS]
        lines.append(f"| `{variable}` | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
