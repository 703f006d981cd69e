"""In which variable should an adaptive pair solve the flow? Print error and evaluations for each.

    python -m benchmarks.adaptive [--out out/bench]

64 samples of a three-mode mixture in float64 on VP, VE and rectified flow, at the tolerances 1e-2, 1e-3 and 1e-5: root
mean square error against DOP853 at 1e-10, and evaluations of the score, mean over samples.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command
from sgm_sde.schemes import ADAPTIVE
from sgm_sde.schemes.adaptive import VARIABLES
from sgm_sde.testing import default_oracle

PROCESSES: dict[str, sg.LinearSDE] = {"VP": sg.VPSDE(), "VE": sg.VESDE(), "flow": sg.RectifiedFlowSDE()}
TOLERANCES = (1e-2, 1e-3, 1e-5)


def main() -> None:
    """Measure, print and write."""
    parser = command.parser(__doc__, out="out/bench")
    args = command.begin(parser)
    oracle = default_oracle("mixture")
    shape = (64, oracle.means.shape[1])
    lines = [
        "| process | solver | tolerance | " + " | ".join(VARIABLES) + " |",
        "|---|---|---:|" + "---:|" * len(VARIABLES),
    ]
    solvers = {name: make() for name, make in ADAPTIVE.items()}
    for process, sde in tqdm(PROCESSES.items(), desc="processes"):
        score = oracle.score(sde)
        tight = sg.Adaptive(sg.tableaus.DOP853, 1e-10, 1e-10)
        known = sg.sample(score, sde, shape, solver=tight, seed=0, execution=sg.Execution(dtype=torch.float64)).x
        for name, solver in solvers.items():
            if not isinstance(solver, sg.Adaptive):
                continue
            for tolerance in TOLERANCES:
                cells = []
                for variable in VARIABLES:
                    if solver.pair.linear and variable != "log-snr":
                        cells.append("-")
                        continue
                    tried = replace(solver, rtol=tolerance, atol=tolerance, variable=variable)
                    res = sg.sample(
                        score, sde, shape, solver=tried, seed=0, execution=sg.Execution(dtype=torch.float64)
                    )
                    error = float((res.x - known).square().mean().sqrt())
                    cells.append(f"{error:.1e} ({float(res.control.evaluations.double().mean()):.0f})")
                lines.append(f"| {process} | `{name}` | {tolerance:g} | {' | '.join(cells)} |")
    (args.out / "adaptive.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + f"\n\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
