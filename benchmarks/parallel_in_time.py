"""Rounds of runs in parallel in time against calls of the sequential run, on the beds of `benchmarks.beds`.

    python -m benchmarks.parallel_in_time measure [--beds NAMES] [--half choose] [--solvers ddim,heun] [--seconds 200]
    python -m benchmarks.parallel_in_time report

Each bed runs a solver sequentially and in parallel from the same noise, and finds the largest tolerance, among powers
of ten, at which the largest difference of a sample, in units of the data's standard deviation, is below the asked one.
Networks are evaluated in double precision, but for those in bfloat16, whose rounding depends on the batch.
What is measured is kept in out/parallel.json, so that `measure` may be ended and called again.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import sgm_sde as sg
from benchmarks import beds, command
from sgm_sde.sampling.planning import plan

KEPT = Path(__file__).parents[1] / "out" / "parallel.json"
SOLVERS = ("dpm++2m", "ddim", "euler-ancestral", "heun")
WINDOWS = (8, 16, 32)
ERRORS = (1e-4, 1e-6)
CALLS = 50
SAMPLES = 4
OF_IMAGES = 2  # samples of networks of images
TOLERANCES = tuple(10.0**-k for k in range(2, 10))

KINDS = {
    "exact scores": "exact/",
    "rough: waves": "rough/sin",
    "rough: tables": "rough/table",
    "rough: bias": "rough/bias",
    "networks, moons": "network/moons",
    "networks, images": "/labels/",
    "networks, images, guided": "/guided/",
    "networks, images, bfloat16": "/bfloat16/",
}


def rounds(bed: beds.Bed, solver: str) -> dict[str, Any]:
    """Rounds and work by window and error, of the largest tolerance that keeps it; None where none does."""
    chosen, grid, _ = plan(bed.sde, solver, nfe=CALLS)
    shape = bed.shape[1:]
    n = OF_IMAGES if bed.family == "network" and len(shape) > 1 else SAMPLES
    noise = bed.noise[:n].double()
    options: dict[str, Any] = {
        "x_T": float(bed.sde.sigma(grid.times[0])) * noise,
        "solver": chosen,
        "grid": grid,
        "seed": 0,
        "model_kwargs": {name: sg.PerSample(value[:n]) for name, value in bed.model_kwargs.items()},
    }
    score = bed.score if "bfloat16" in bed.name else bed.score.map_net(_double)
    exact = sg.sample(score, bed.sde, **options)
    found: dict[str, Any] = {"calls": exact.nfe, "shape": list(shape)}
    for window in WINDOWS:
        for tolerance in TOLERANCES:
            execution = sg.Execution(parallel=window, tolerance=tolerance)
            run = sg.sample(score, bed.sde, **options, execution=execution)
            error = float((run.x - exact.x).abs().max()) / bed.data_std
            for wanted in ERRORS:
                if error < wanted:
                    work = run.network_evals / exact.network_evals
                    found.setdefault(f"{window} {wanted:g}", [run.nfe, work, tolerance])
            if f"{window} {ERRORS[-1]:g}" in found:
                break
    return found


def _double(net: Any) -> Any:
    return copy.deepcopy(net).double() if isinstance(net, torch.nn.Module) else net


def measure(chosen: Sequence[beds.Bed], solvers: Sequence[str], seconds: float) -> None:
    """Measure what is not known yet, for so long."""
    end = time.monotonic() + seconds
    known = _known()
    for solver in solvers:
        for bed in chosen:
            key = f"{bed.name} {solver}"
            if key in known:
                continue
            if time.monotonic() > end:
                return
            known = _known() | {key: rounds(bed, solver)}
            KEPT.parent.mkdir(parents=True, exist_ok=True)
            KEPT.write_text(json.dumps(known, indent=1))
            print(key, known[key], flush=True)


def _known() -> dict[str, Any]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def report() -> None:
    """Print the table: median over beds, and the most, of rounds and work."""
    known = _known()
    columns = [f"{window} {error:g}" for window in WINDOWS for error in ERRORS]
    heads = [f"window {column.replace(' ', ', ')}" for column in columns]
    print(f"| beds | solver | calls | {' | '.join(heads)} |")
    print("|---" * (3 + len(columns)) + "|")
    for kind, name in KINDS.items():
        for solver in SOLVERS:
            rows = [row for key, row in known.items() if name in key and key.endswith(f" {solver}")]
            if not rows:
                continue
            cells = []
            for column in columns:
                found = [row[column] for row in rows if column in row]
                if not found:
                    cells.append("-")
                    continue
                middle, most = (f([value for value, *_ in found]) for f in (statistics.median_low, max))
                work = statistics.median([value for _, value, _ in found])
                missing = f", {len(rows) - len(found)} of {len(rows)} not" if len(found) < len(rows) else ""
                cells.append(f"{middle} (at most {most}{missing}; {work:.1f}x)")
            print(f"| {kind} ({len(rows)}) | {solver} | {rows[0]['calls']} | {' | '.join(cells)} |")


def main() -> None:
    """Measure, or print the table."""
    parser = command.parser(__doc__)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--beds", default="", help="those whose name contains this")
    parser.add_argument("--half", choices=beds.HALVES)
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no bed after so long")
    args = command.begin(parser)
    warnings.simplefilter("ignore")
    if args.what == "measure":
        measure(beds.load(args.half, names=args.beds), args.solvers.split(","), args.seconds)
    else:
        report()


if __name__ == "__main__":
    main()
