"""Accuracy for the same number of network calls, on oracles: a table and a JSON file.

    python benchmarks/accuracy.py --out out/bench

For every deterministic solver and grid: root-mean-square error of the samples against the exact probability flow
from the same noise, relative to the standard deviation of the data. Runs in about a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import sgm_sde as sg
from sgm_sde.testing import default_oracle, flow_reference

BUDGETS = (5, 8, 10, 16, 20, 35, 50, 100)
GRIDS = ("uniform", "log-snr", "karras")
PROCESSES: dict[str, sg.LinearSDE] = {"VP": sg.VPSDE(), "VE": sg.VESDE(), "EDM": sg.EDMSDE()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--n", type=int, default=256, help="number of samples")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    oracle = default_oracle("mixture")
    spread = oracle.sample(20000, seed=0).std()
    deterministic = [(name, solver) for name, solver in sg.solvers() if not solver.stochastic]
    rows = []
    for process, sde in PROCESSES.items():
        x = sde.prior_sample((args.n, 2), seed=0, dtype=torch.float64)
        exact = flow_reference(oracle, sde, x, sde.eps)
        for name, solver in deterministic:
            for grid in GRIDS:
                errors = {}
                for nfe in (b for b in BUDGETS if solver.steps(b)):
                    res = sg.sample(oracle.score(sde), sde, x_T=x, solver=solver, nfe=nfe, grid=grid, final="none")
                    errors[nfe] = float((res.x - exact).square().mean().sqrt() / spread)
                rows.append({"process": process, "solver": name, "grid": grid, "rmse": errors})
    lines = ["| process | solver | grid | " + " | ".join(f"{b} NFE" for b in BUDGETS) + " |"]
    lines.append("|---|---|---|" + "---:|" * len(BUDGETS))
    for row in rows:
        cells = [f"{row['rmse'][b]:.1e}" if b in row["rmse"] else "" for b in BUDGETS]
        lines.append(f"| {row['process']} | `{row['solver']}` | {row['grid']} | {' | '.join(cells)} |")
    (args.out / "accuracy.md").write_text("\n".join(lines) + "\n")
    protocol = {"n": args.n, "oracle": "three-mode mixture, 2-D", "torch": torch.__version__, "rows": rows}
    (args.out / "accuracy.json").write_text(json.dumps(protocol, indent=1) + "\n")
    sys.stdout.write("\n".join(lines) + f"\n\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
