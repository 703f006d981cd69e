"""Calibrated solvers on the test beds: fitted on some noises, measured on others.

    python -m benchmarks.calibrated measure --half report     # one file a bed in out/beds/calibrated, kept
    python -m benchmarks.calibrated report --out out/bench    # tables and picture of what was measured
    python -m benchmarks.calibrated frechet                   # digits and clothes: distances to data and to the flow

On each bed (`benchmarks/beds.py`) `calibrate` fits to noises of its own and compares on further ones of its own. What
it returns is run on the bed's noises, against the bed's reference, an RK4 solution in double precision. Beside it
stand, on the same noises: what the pilot inside takes; the least error of the frozen registry
(`benchmarks/beds/best.json`), which was chosen on these very noises; and the best of three multistep methods, chosen on
these noises too, on a grid as GITS (Chen et al., 2024, arXiv:2405.11326) places it: dynamic programming on the
deviation of Euler steps from exact trajectories.

No constant of the method was chosen on the report half.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import beds
from benchmarks.beds import Bed
from benchmarks.pilots import kwargs_for
from sgm_sde.calibration import closed
from sgm_sde.calibration.flow import Flow
from sgm_sde.engine.noise import resolve_seeds
from sgm_sde.grids import GridRule

BUDGETS = (4, 5, 6, 8, 10, 12)
NOISES = 64
HELD_OUT = 64
SEED = 1
MULTISTEP = ("ipndm3", "dpm++2m", "unipc3")
CACHE = beds.CACHE / "calibrated"


class Clock:
    """CPU seconds spent in a network."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, net: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The network, timed."""

        def timed(*args: Any, **kwargs: Any) -> Tensor:
            start = time.process_time()
            out = net(*args, **kwargs)
            self.seconds += time.process_time() - start
            return out

        return timed


@dataclass(frozen=True)
class GivenLevels(GridRule):
    """A rule that knows its noise levels."""

    levels: tuple[float, ...]

    def __call__(self, sde: Any, steps: int, t_start: float | None = None, t_end: float | None = None) -> sg.Grid:
        """The grid."""
        return sg.Grid(self.place(sde, torch.zeros(()), sde.T, sde.eps).clamp(max=sde.T).tolist())

    def place(self, sde: Any, u: Tensor, start: float, end: float) -> Tensor:
        """Times of the levels."""
        times: Tensor = sde.time(-2 * torch.tensor(self.levels, dtype=torch.float64).log())
        return times.nan_to_num(nan=sde.T)


def squares(bed: Bed, solver: Any, nfe: int, grid: Any = None) -> Tensor:
    """Mean square error of each of the bed's noises, relative to the variance of the data."""
    x = beds.run(bed, solver, nfe, grid)
    each = (x.double() - bed.reference.x).flatten(1).square().mean(1) / bed.data_std**2
    return each.nan_to_num(nan=math.inf)


def gits_levels(bed: Bed, budgets: Sequence[int]) -> dict[int, list[float]]:
    """Noise levels by dynamic programming on the deviation of Euler steps, by budget."""
    seeds = resolve_seeds(SEED, None, NOISES)
    kwargs = kwargs_for(bed, NOISES)
    flow = Flow(bed.score, bed.sde, bed.shape[1:], seeds, NOISES, kwargs, 512, bed.dtype, torch.device("cpu"))
    exact, z = flow.trajectories(range(NOISES), 128, 61), flow.noise(range(NOISES))
    G, t = closed.gram(exact, z), exact.log_levels
    K = len(t)
    i, j = torch.meshgrid(torch.arange(K), torch.arange(K), indexing="ij")
    r = (t[j] - t[i]).exp()
    # |y_j - r y_i - (1 - r) D_i|^2, from mean products.
    cost = G[j, j] + r**2 * G[i, i] + (1 - r) ** 2 * G[i + K, i + K]
    cost = cost - 2 * r * G[j, i] - 2 * (1 - r) * G[j, i + K] + 2 * r * (1 - r) * G[i, i + K]
    cost = cost.clamp(min=0).sqrt().masked_fill(j <= i, math.inf)
    found = {}
    for n in budgets:
        best, back = torch.full((K,), math.inf, dtype=t.dtype), []
        best[0] = 0.0
        for _ in range(n - 1):
            best, before = (best[:, None] + cost).min(0)
            back.append(before)
        path = [K - 1]
        for before in reversed(back):
            path.append(int(before[path[-1]]))
        found[n] = t[path[::-1]].exp().tolist()
    return found


def measure(bed: Bed, budgets: Sequence[int], noises: int = NOISES, peers: bool = True) -> dict[str, Any]:
    """All numbers of a bed, by budget."""
    clock = Clock()
    score = bed.score.map_net(clock.around)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a calibration says of itself is in its remarks
        found = sg.calibrate(
            score, bed.sde, (noises, *bed.shape[1:]), nfe=budgets, held_out=HELD_OUT, seed=SEED, dtype=bed.dtype,
            model_kwargs=kwargs_for(bed, noises),
        )  # fmt: skip
    total, network = time.process_time() - start, clock.seconds
    levels = gits_levels(bed, budgets) if peers else {}
    rows: dict[int, dict[str, Any]] = {}
    for n, one in found.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, shelf = (squares(bed, setting, n) for setting in (one, one.off_the_shelf.setting))
            gits = {}
            if peers:
                rule = GivenLevels(tuple(levels[n]))
                gits = {name: float(squares(bed, name, n, rule).mean().sqrt()) for name in MULTISTEP}
        change = ours - shelf
        rows[n] = {
            "error": float(ours.mean().sqrt()), "pilot": float(shelf.mean().sqrt()), "gits": gits,
            "median": float(ours.sqrt().median()), "change": float(change.mean()),
            "change_stderr": float(change.std()) / math.sqrt(len(change)), "taken": one.errors[0].name,
            "held_out": {e.name: [e.rmse, e.stderr, e.median, e.worst] for e in reversed(one.errors)},
            "rows": one.rows, "shared_rows": one.shared_rows, "remarks": list(one.remarks),
        }  # fmt: skip
    return {"bed": bed.name, "half": bed.half, "seconds": total, "network": network, "budgets": rows}


def file_of(bed: Bed, noises: int = NOISES) -> Path:
    """Where a bed's numbers are kept."""
    return CACHE / f"{bed.hash}-{noises}.json"


def keep(bed: Bed, noises: int, budgets: Sequence[int], peers: bool = True) -> None:
    """Measure a bed, unless it was."""
    path = file_of(bed, noises)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    found = measure(bed, budgets, noises, peers)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found) + "\n")
    partial.replace(path)
    shown = {n: f"{row['error']:.3g}/{row['pilot']:.3g}" for n, row in found["budgets"].items()}
    sys.stdout.write(f"{bed.name} {found['seconds']:.0f} s, {found['network']:.0f} s in the network: {shown}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "report"])
    parser.add_argument("--half", choices=beds.HALVES)
    parser.add_argument("--family", choices=beds.FAMILIES)
    parser.add_argument("--names", default="", help="beds whose name contains this")
    parser.add_argument("--budgets", type=lambda text: [int(n) for n in text.split(",")], default=list(BUDGETS))
    parser.add_argument("--noises", type=int, default=NOISES)
    parser.add_argument("--without", default="-", help="no beds whose name contains this")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th bed, from K")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no bed later than that")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    start = time.monotonic()
    if args.what == "measure":
        k, parts = map(int, args.part.split("/"))
        chosen = [bed for bed in beds.load(args.half, args.family, args.names) if args.without not in bed.name]
        for bed in chosen[k::parts]:
            if time.monotonic() - start < args.seconds:
                keep(bed, args.noises, args.budgets)


if __name__ == "__main__":
    main()
