"""What `pilot` finds, on noises that it has not seen, beside the best of the registry.

    python -m benchmarks.pilots --out out/bench

On each test bed (`benchmarks/beds.py`) a pilot of 32 noises of its own chooses for several budgets at once. Its choice
is run on the bed's noises; the ratio is to the least error of the frozen registry there (`benchmarks/beds/best.json`),
which has seen them. Takes five minutes on one core.
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
    """Ratios by budget: geometric mean, share within 1.1, worst."""
    lines = ["| NFE | geometric mean | at most 1.1 | worst | at |", "|--:|--:|--:|--:|---|"]
    for nfe in BUDGETS:
        ratios = {name: row[nfe][2] for name, row in rows.items()}
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        share = sum(r <= 1.1 for r in ratios.values()) / len(ratios)
        worst = max(ratios, key=lambda name: ratios[name])
        lines.append(f"| {nfe} | {mean:.2f} | {share:.0%} | {ratios[worst]:.2f} | {worst} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the pilots and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=beds.HALVES, default="report")
    parser.add_argument("--family", choices=beds.FAMILIES)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)

    torch.set_num_threads(1)
    rows: dict[str, dict[int, tuple[str, float, float]]] = {}
    for bed in tqdm(beds.load(half=args.half, family=args.family)):
        rows[bed.name] = measure(bed)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pilots.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
