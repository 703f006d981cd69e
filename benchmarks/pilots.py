"""What `pilot` finds, on noises that it has not seen, beside the best of the registry.

    python -m benchmarks.pilots --out out/bench

On each test bed (`benchmarks/beds.py`) a pilot of 32 noises of its own chooses for several budgets at once. Its choice
is run on the bed's noises; the ratio is to the least error of the frozen registry there (`benchmarks/beds/best.json`),
which has seen them. Takes ten minutes on a core that does nothing else. Beds that `pilots.json` in the folder has
already are not run again, unless with `--anew`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import beds
from benchmarks.beds import Bed
from benchmarks.defaults import frozen, geometric

BUDGETS = (5, 10, 20)
NOISES = 32


def kwargs_for(bed: Bed, n: int) -> dict[str, Any]:
    """The bed's arguments of the network for n samples: labels in turn, as the bed has them."""

    def rows(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(bed.noise):
            return value
        return sg.PerSample(value.repeat(math.ceil(n / len(value)))[:n])

    return {name: rows(value) for name, value in bed.model_kwargs.items()}


@dataclass(frozen=True)
class Cell:
    """What a pilot took on a bed at a budget.

    Attributes:
        setting: the choice.
        error: its root-mean-square error on the bed's noises.
        ratio: that over the least of the registry.
        median: the median error of single noises over that of the registry's best by root mean square.
        remarks: what the pilot said of itself.
    """

    setting: str
    error: float
    ratio: float
    median: float
    remarks: list[str]


def measure(bed: Bed) -> dict[int, Cell]:
    """What the pilot took, by budget."""
    shape = (NOISES, *bed.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the pilot says of itself is in its remarks
        found = sg.pilot(
            bed.score, bed.sde, shape, nfe=BUDGETS, seed=1, dtype=bed.dtype, model_kwargs=kwargs_for(bed, NOISES)
        )
        known = frozen()[bed.name]
        cells = {}
        for nfe, result in found.items():
            error = beds.errors(bed, result, nfe)
            best = known["best"][str(nfe)]
            ratio, median = (
                max(one, known["doubt"]) / max(other, known["doubt"])
                for one, other in ((error.rmse, best["rmse"]), (error.median, best["median"]))
            )
            cells[nfe] = Cell(str(result.errors[0][0]), error.rmse, ratio, median, list(result.remarks))
    return cells


def table(rows: dict[str, dict[int, Cell]]) -> str:
    """Ratios by budget: geometric mean, shares within 1.1 and 1.3, the worst; and of medians over noises."""
    lines = ["| NFE | geometric mean | at most 1.1 | at most 1.3 | worst | at | medians | at most 1.1 | worst |"]
    lines += ["|--:|--:|--:|--:|--:|---|--:|--:|--:|"]
    for nfe in BUDGETS:
        ratios = {name: row[nfe].ratio for name, row in rows.items()}
        worst = max(ratios, key=lambda name: ratios[name])
        medians = [row[nfe].median for row in rows.values()]
        cells = [
            f"{nfe}",
            f"{geometric(list(ratios.values())):.2f}",
            f"{share(ratios.values(), 1.1):.0%}",
            f"{share(ratios.values(), 1.3):.0%}",
            f"{ratios[worst]:.2f}",
            worst,
            f"{geometric(medians):.2f}",
            f"{share(medians, 1.1):.0%}",
            f"{max(medians):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share(ratios: Iterable[float], bound: float) -> float:
    """The share of ratios that are at most a bound."""
    held = [ratio <= bound for ratio in ratios]
    return sum(held) / len(held)


def missed(rows: dict[str, dict[int, Cell]]) -> str:
    """The cells above 1.1, the worst first, with what the pilot said of itself."""
    cells = [(row[nfe], name, nfe) for name, row in rows.items() for nfe in BUDGETS if row[nfe].ratio > 1.1]
    cells.sort(key=lambda entry: -entry[0].ratio)
    lines = []
    for cell, name, nfe in cells:
        lines.append(
            f"{cell.ratio:6.2f}  {name} at {nfe}: {cell.error:.3g} by {cell.setting}, medians {cell.median:.2f}"
        )
        lines += [f"        {remark}" for remark in cell.remarks]
    return "\n".join(lines)


def stored(path: Path) -> dict[str, dict[int, Cell]]:
    """The rows of a file, none if there is no such file."""
    read = json.loads(path.read_text()) if path.exists() else {}
    return {name: {int(nfe): Cell(**cell) for nfe, cell in row.items()} for name, row in read.items()}


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
            written = {name: {nfe: asdict(cell) for nfe, cell in row.items()} for name, row in known.items()}
            path.write_text(json.dumps(written, indent=1) + "\n")

    rows = {bed.name: known[bed.name] for bed in chosen}
    print(f"{len(rows)} beds: {', '.join(rows)}\n\n{table(rows)}\n\nAbove 1.1:\n{missed(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
