"""The default beside the best that the registry could do, on test beds as networks are.

    python -m benchmarks.defaults --out out/bench            # tables and picture
    python -m benchmarks.defaults freeze                     # the best of the registry, into benchmarks/beds/best.json

"Best" is the least error, bed by bed and budget by budget, over every deterministic entry of the registry as it was at
commit 1336d6e, on three grids (the process' own, even in log-SNR, Karras'), as it is and with `lower_final=True` where
there is that option. Its figures are frozen, so that no smaller registry can help the ratios; `freeze` made them from a
checkout of that commit, with this one's benchmarks:

    git worktree add --detach /tmp/registry 1336d6e
    cd /tmp/registry && PYTHONPATH=<this checkout> python -m benchmarks.defaults freeze
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import beds
from benchmarks.beds import BUDGETS, HERE, Bed
from sgm_sde.engine.program import Program
from sgm_sde.sampling import plan

BEST = HERE / "best.json"
GRIDS = (None, "log-snr", "karras")
OWN = "own"  # the process' own grid, in files and tables


@dataclass(frozen=True)
class Candidate:
    """An entry of the registry on a grid, as it is or with a final step of lower order."""

    solver: str
    grid: str | None
    lower_final: bool

    def __str__(self) -> str:
        return f"{self.solver}{'+lower_final' if self.lower_final else ''} on {self.grid or OWN}"

    def build(self) -> sg.Solver:
        """The solver."""
        solver = dict(sg.solvers())[self.solver]
        return replace(solver, lower_final=True) if self.lower_final else solver


def candidates() -> Iterator[Candidate]:
    """All of them."""
    for name, solver in sg.solvers():
        if not solver.stochastic:
            for grid in GRIDS:
                yield Candidate(name, grid, False)
                if hasattr(solver, "lower_final"):
                    yield Candidate(name, grid, True)


def programs(sde: Any, nfe: int) -> dict[Program, Candidate]:
    """What the candidates run for a budget, the first of those that run the same."""
    found: dict[Program, Candidate] = {}
    for candidate in candidates():
        try:
            program = plan(sde, candidate.build(), nfe=nfe, grid=candidate.grid)[2]
        except ValueError as error:
            if "too small" not in str(error):
                raise
        else:
            assert program is not None
            found.setdefault(program, candidate)
    return found


def freeze(chosen: Sequence[Bed], path: Path) -> None:
    """Write the best of the registry for each bed and budget, besides what the file holds of other beds.

    The errors of all candidates go to out/beds/registry.
    """
    for process in dict.fromkeys(bed.process for bed in chosen):
        here = [bed for bed in chosen if bed.process == process]
        tried = {nfe: programs(here[0].sde, nfe) for nfe in BUDGETS}
        for bed in tqdm(here, desc=process, mininterval=10):
            best: dict[str, Any] = {}
            everything: dict[str, Any] = {}
            for nfe, those in tried.items():
                found = beds.errors_of(bed, list(those))
                ranked = sorted(zip(found, those.values(), strict=True), key=lambda pair: pair[0].rmse)
                error, winner = ranked[0]
                best[str(nfe)] = {"rmse": _round(error.rmse), "median": _round(error.median), "by": str(winner)}
                everything[str(nfe)] = {str(c): _round(e.rmse) for e, c in ranked}
            _update(path, {bed.name: {"hash": bed.hash, "doubt": bed.reference.doubt, "best": best}})
            _update(beds.CACHE / "registry" / f"{process}.json", {bed.name: everything})


def _round(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _update(path: Path, entries: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(sorted((kept | entries).items())), indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Freeze the best, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["freeze"])
    parser.add_argument("--family", choices=beds.FAMILIES)
    parser.add_argument("--half", choices=beds.HALVES)
    parser.add_argument("--process", choices=list(beds.PROCESSES), nargs="+")
    parser.add_argument("--names", default="", help="beds whose name contains this")
    parser.add_argument("--best", type=Path, default=BEST)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    chosen = beds.load(args.half, args.family, args.names)
    freeze([bed for bed in chosen if args.process is None or bed.process in args.process], args.best)


if __name__ == "__main__":
    main()
