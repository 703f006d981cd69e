"""What `pilot` finds, on noises that it has not seen, beside the best of the registry.

    python -m benchmarks.pilots --out out/bench

On each test bed (`benchmarks/beds.py`) a pilot of 32 noises of its own chooses for several budgets at once. Its choice
is run on the bed's noises; the ratio is to the least error of the frozen registry there (`benchmarks/beds/best.json`),
which has seen them. Takes ten minutes on one core. Beds that `pilots.json` in the folder has already are not run again,
unless with `--anew`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import beds
from benchmarks.beds import Bed
from benchmarks.defaults import frozen

BUDGETS = (5, 10, 20)
NOISES = 32


def kwargs_for(bed: Bed, n: int) -> dict[str, Any]:
    """The bed's arguments of the network for n samples: labels in turn, as the bed has them."""

    def rows(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(bed.noise):
            return value
        return sg.PerSample(value.repeat(math.ceil(n / len(value)))[:n])

    return {name: rows(value) for name, value in bed.model_kwargs.items()}


def measure(bed: Bed) -> dict[int, tuple[str, float, float]]:
    """By budget: what the pilot took, its error on the bed's noises, and its ratio to the best of the registry."""
    shape = (NOISES, *bed.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the pilot says of itself is in its remarks
        found = sg.pilot(
            bed.score, bed.sde, shape, nfe=BUDGETS, seed=1, dtype=bed.dtype, model_kwargs=kwargs_for(bed, NOISES)
        )
        best = frozen()[bed.name]
        rows = {}
        for nfe, result in found.items():
            error = beds.error(bed, result, nfe)
            least = max(best["best"][str(nfe)]["rmse"], best["doubt"])
            rows[nfe] = (str(result.errors[0][0]), error, error / least)
    return rows


def table(rows: dict[str, dict[int, tuple[str, float, float]]]) -> str:
    """Ratios by budget: geometric mean, shares within 1.1 and 1.3, the worst."""
    lines = ["| NFE | geometric mean | at most 1.1 | at most 1.3 | worst | at |", "|--:|--:|--:|--:|--:|---|"]
    for nfe in BUDGETS:
        ratios = {name: row[nfe][2] for name, row in rows.items()}
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        shares = [sum(r <= bound for r in ratios.values()) / len(ratios) for bound in (1.1, 1.3)]
        worst = max(ratios, key=lambda name: ratios[name])
        cells = [f"{nfe}", f"{mean:.2f}", *(f"{share:.0%}" for share in shares), f"{ratios[worst]:.2f}", worst]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def missed(rows: dict[str, dict[int, tuple[str, float, float]]]) -> str:
    """The cells above 1.1, the worst first."""
    cells = [(row[nfe][2], name, nfe, row[nfe]) for name, row in rows.items() for nfe in BUDGETS]
    return "\n".join(
        f"{ratio:6.2f}  {name} at {nfe}: {error:.3g} by {setting}"
        for ratio, name, nfe, (setting, error, _) in sorted(cells, reverse=True)
        if ratio > 1.1
    )


def stored(path: Path) -> dict[str, dict[int, tuple[str, float, float]]]:
    """The rows of a file, none if there is no such file."""
    read = json.loads(path.read_text()) if path.exists() else {}
    return {name: {int(nfe): tuple(row) for nfe, row in of.items()} for name, of in read.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the pilots and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=beds.HALVES, default="report")
    parser.add_argument("--family", choices=beds.FAMILIES)
    parser.add_argument("--names", default="", help="beds whose name contains this")
    parser.add_argument("--anew", action="store_true", help="run the beds again that the file has already")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)

    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "pilots.json"
    known = {} if args.anew else stored(path)
    chosen = beds.load(half=args.half, family=args.family, names=args.names)
    for bed in tqdm(chosen, mininterval=10):
        if bed.name not in known:
            known[bed.name] = measure(bed)
            path.write_text(json.dumps(known, indent=1) + "\n")

    rows = {bed.name: known[bed.name] for bed in chosen}
    print(f"{len(rows)} beds: {', '.join(rows)}\n\n{table(rows)}\n\nAbove 1.1:\n{missed(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
