"""What `pilot` finds, on noises that it has not seen, beside the best of the registry.

    python -m benchmarks.pilots --out out/bench

On each test bed (`benchmarks/beds.py`) a pilot of 32 noises of its own, for one or two coordinates of 128 as the
documentation advises, chooses for several budgets at once. Its choice is run on the bed's noises; the ratio is to the
least error of the frozen registry there (`benchmarks/beds/best.json`), which has seen them: it is that of the luckiest
of some 400 settings, where one of 8 or 32 noises that changes sides between modes is most of the error. So both, the
choice and the setting that was the registry's best on the bed, also run on further noises that none of them has seen,
against a tight run of the library. With the same hindsight as the registry's, the table also has the least error of any
of the pilot's candidates, which tells what is missing among them.

The cost is what the network saw in all of a pilot, over what it saw in the two references. Takes a quarter of an hour
on a core that does nothing else. Beds that `pilots.json` in the folder has already are not run again, unless with
`--anew`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import beds, command
from benchmarks.beds import Bed
from benchmarks.defaults import candidates, frozen, geometric
from sgm_sde.sampling.planning import plan
from sgm_sde.sampling.trials import REFERENCE, REFERENCE_NFE, default_candidates

BUDGETS = (5, 10, 20)
FEW = 2  # coordinates up to which noises cost little
NOISES, NOISES_OF_FEW = 32, 128
FURTHER, FURTHER_OF_ORACLES, FURTHER_OF_FEW = 32, 64, 256
LARGE = 256  # coordinates of a network's samples from which on there are no further noises
JUMPS = 4  # times as many calls of the tight run where a network looks its time up


def kwargs_for(bed: Bed, n: int) -> dict[str, Any]:
    """The bed's arguments of the network for n samples: labels in turn, as the bed has them."""

    def rows(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(bed.noise):
            return value
        return sg.PerSample(value.repeat(math.ceil(n / len(value)))[:n])

    return {name: rows(value) for name, value in bed.model_kwargs.items()}


def with_noises(bed: Bed, n: int, seed: int, calls: int) -> Bed:
    """The bed with other noises, and their exact ends by a tight run of so many calls."""
    more = replace(bed, shape=(n, *bed.shape[1:]), model_kwargs=kwargs_for(bed, n))
    z = torch.randn(more.shape, generator=torch.Generator().manual_seed(seed)).to(bed.dtype)
    vars(more)["noise"] = z
    vars(more)["reference"] = beds.Reference(beds.run(more, REFERENCE, calls).double(), math.nan)
    return more


def further(bed: Bed) -> Bed | None:
    """The bed with noises that neither it nor its pilot has; None for the large networks."""
    coordinates = bed.noise[0].numel()
    if bed.weights and coordinates > LARGE:
        return None
    n = FURTHER_OF_FEW if coordinates <= FEW else FURTHER if bed.weights else FURTHER_OF_ORACLES
    return with_noises(bed, n, seed=1, calls=REFERENCE_NFE * (JUMPS if bed.jumps else 1))


def frozen_setting(bed: Bed, nfe: int) -> tuple[Any, Any]:
    """Solver and grid with the least error on the bed's noises, of the frozen registry."""
    name = frozen()[bed.name]["best"][str(nfe)]["by"]
    best = next(candidate for candidate in candidates() if str(candidate) == name)
    return best.build(), best.grid or bed.sde.default_grid


def least_of_candidates(bed: Bed, nfe: int) -> float:
    """The least error on the bed's noises of any candidate of the pilot."""
    programs = {}
    for setting in default_candidates(nfe):
        with contextlib.suppress(ValueError, TypeError):  # a pilot leaves out those that a process or budget refuses
            programs[plan(bed.sde, setting, nfe=nfe, final="denoise")[2]] = setting
    return min(error.rmse for error in beds.errors_of(bed, [program for program in programs if program is not None]))


@dataclass(frozen=True)
class Cell:
    """What a pilot took on a bed at a budget.

    Attributes:
        setting: the choice.
        error: its root-mean-square error on the bed's noises.
        ratio: that over the least of the registry.
        median: the median error of single noises over that of the registry's best by root mean square.
        hindsight: the least error of any of the pilot's candidates on the bed's noises, over the least of the registry.
        further: its error on further noises over that of the setting that was the registry's best on the bed; None
            where there are none.
        cost: of the pilot of all budgets, over that of its references.
        remarks: what the pilot said of itself.
    """

    setting: str
    error: float
    ratio: float
    median: float
    hindsight: float
    further: float | None
    cost: float
    remarks: list[str]


def measure(bed: Bed) -> dict[int, Cell]:
    """What the pilot took, by budget."""
    noises = NOISES_OF_FEW if bed.noise[0].numel() <= FEW else NOISES
    shape = (noises, *bed.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the pilot says of itself is in its remarks
        found = sg.pilot(
            bed.score, bed.sde, shape, nfe=BUDGETS, seed=1, dtype=bed.dtype, model_kwargs=kwargs_for(bed, noises)
        )
        known = frozen()[bed.name]
        more = further(bed)
        cost = 1 + sum(result.network_evals for result in found.values()) / found[BUDGETS[0]].shared_evals
        cells = {}
        for nfe, result in found.items():
            error = beds.errors(bed, result, nfe)
            best = known["best"][str(nfe)]
            pairs = (
                (error.rmse, best["rmse"]),
                (error.median, best["median"]),
                (min(error.rmse, least_of_candidates(bed, nfe)), best["rmse"]),
            )
            ratio, median, hindsight = (max(one, known["doubt"]) / max(other, known["doubt"]) for one, other in pairs)
            wide = None
            if more is not None:
                ours, its = (beds.error(more, *setting) for setting in ((result, nfe), _run_of(bed, nfe)))
                wide = max(ours, known["doubt"]) / max(its, known["doubt"])
            name = str(result.errors[0][0])
            cells[nfe] = Cell(name, error.rmse, ratio, median, hindsight, wide, cost, list(result.remarks))
    return cells


def _run_of(bed: Bed, nfe: int) -> tuple[Any, int, Any]:
    """Solver, budget and grid of the registry's best on a bed."""
    solver, grid = frozen_setting(bed, nfe)
    return solver, nfe, grid


def table(rows: dict[str, dict[int, Cell]]) -> str:
    """Ratios by budget: of errors, of medians over noises, of the best candidate with hindsight, on further noises."""
    columns = ["geometric mean", "at most 1.1", "at most 1.3", "worst"]
    titles = [*columns, *[f"{of}: {name}" for of in ("medians", "hindsight", "further noises") for name in columns]]
    lines = [f"| network calls | {' | '.join(titles)} |", "|--:|" + "--:|" * len(titles)]
    for nfe in BUDGETS:
        cells = [row[nfe] for row in rows.values()]
        wide = [cell.further for cell in cells if cell.further is not None]
        own = [[getattr(cell, kind) for cell in cells] for kind in ("ratio", "median", "hindsight")]
        summaries = [summary(ratios) for ratios in (*own, wide)]
        lines.append(f"| {nfe} | {' | '.join(itertools.chain(*summaries))} |")

    wider = sum(row[BUDGETS[0]].further is not None for row in rows.values())
    costs = [row[BUDGETS[0]].cost for row in rows.values()]
    above = [row[nfe] for row in rows.values() for nfe in BUDGETS if row[nfe].ratio > 1.1]
    told = sum(any("known to" in remark for remark in row[nfe].remarks) for row in rows.values() for nfe in BUDGETS)
    within = sum(cell.median <= 1.1 for cell in above)
    notes = [
        f"{len(rows)} beds, {wider} of them with further noises. Cost over that of the two references: "
        f"{sum(costs) / len(costs):.2f} in the mean, {max(costs):.2f} at most. Of {len(above)} cells above 1.1 the "
        f"median is within 1.1 in {within}; {told} cells say that their reference is not known well."
    ]
    return "\n".join([*lines, "", *notes])


def summary(ratios: Sequence[float]) -> list[str]:
    """Geometric mean, shares within 1.1 and 1.3, the worst."""
    if not ratios:
        return [""] * 4
    shares = [f"{100 * share(ratios, bound):.0f} %" for bound in (1.1, 1.3)]
    return [short(geometric(ratios)), *shares, short(max(ratios))]


def short(ratio: float) -> str:
    """Two digits of a ratio."""
    return f"{ratio:.2g}" if ratio >= 1 else f"{ratio:.2f}".removeprefix("0")


def share(ratios: Sequence[float], bound: float) -> float:
    """The share of ratios that are at most a bound."""
    held = [ratio <= bound for ratio in ratios]
    return sum(held) / len(held)


def missed(rows: dict[str, dict[int, Cell]]) -> str:
    """The cells above 1.1, the worst first, with what the pilot said of itself."""
    cells = [(row[nfe], name, nfe) for name, row in rows.items() for nfe in BUDGETS if row[nfe].ratio > 1.1]
    cells.sort(key=lambda entry: -entry[0].ratio)
    lines = []
    for cell, name, nfe in cells:
        wide = "" if cell.further is None else f", further noises {cell.further:.2f}"
        lines.append(
            f"{cell.ratio:6.2f}  {name} at {nfe}: {cell.error:.3g} by {cell.setting}, medians {cell.median:.2f}{wide}"
        )
        lines += [f"        {remark}" for remark in cell.remarks]
    return "\n".join(lines)


def stored(path: Path) -> dict[str, dict[int, Cell]]:
    """The rows of a file, none if there is no such file."""
    read = json.loads(path.read_text()) if path.exists() else {}
    return {name: {int(nfe): Cell(**cell) for nfe, cell in row.items()} for name, row in read.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the pilots and print the table."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--half", choices=beds.HALVES, default="report")
    parser.add_argument("--family", choices=beds.FAMILIES)
    parser.add_argument("--names", default="", help="beds whose name contains this")
    parser.add_argument("--anew", action="store_true", help="run the beds again that the file has already")
    args = command.begin(parser, argv)

    path = args.out / "pilots.json"
    known = {} if args.anew else stored(path)
    chosen = beds.load(half=args.half, family=args.family, names=args.names)
    for bed in tqdm(chosen, mininterval=10):
        if bed.name not in known:
            known[bed.name] = measure(bed)
            written = {name: {nfe: asdict(cell) for nfe, cell in row.items()} for name, row in known.items()}
            path.write_text(json.dumps(written, indent=1) + "\n")

    rows = {bed.name: known[bed.name] for bed in chosen}
    text = f"{table(rows)}\n\nAbove 1.1:\n{missed(rows)}\n"
    (args.out / f"pilots-{args.half}.md").write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
