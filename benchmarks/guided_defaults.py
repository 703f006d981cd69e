"""The default on guided scores: networks under strong guidance, and guidance in an interval of noise levels.

    python -m benchmarks.guided_defaults                     # the half that is reported
    python -m benchmarks.guided_defaults --half choose       # the half that chose, with two perceptrons not kept here
    python -m benchmarks.guided_defaults --only intervals    # one of the tables: networks, network-intervals, intervals

Errors over the standard deviation of the samples, by calls: geometric mean and worst over the cells, for the default,
for what the default is where nothing is known of the score ("plain"), and for three solvers on their own grids. The
networks are those of the test beds for digits, trained with labels dropped; intervals are also of exact mixtures,
guided towards one of their modes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

import sgm_sde as sg
from benchmarks import beds, command
from benchmarks.beds import Bed
from benchmarks.defaults import geometric
from benchmarks.guided_modes import NOISES, Modes, guided_score
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.times import ROUNDING
from sgm_sde.scores.guidance import Interval

BUDGETS = (4, 5, 6, 7, 8, 12, 20, 35, 50)
SCALE = 7.5
OTHERS = ("rectified2", "dpm++2m", "ddim")
INTERVAL = (0.3, 5.0)

NETWORKS = {
    "choose": ("digits-flow-0/guided/flow", "digits-linear-0/guided/ddpm", "digits/guided/vp"),
    "report": ("digits-capped-0/guided/capped", "digits-v-0/guided/cosine", "digits/guided/edm"),
}
MODES: dict[str, list[tuple[Modes, Interval]]] = {
    "choose": [
        *[
            (Modes(seed, n, dimension, width, scale), INTERVAL)
            for seed, n, dimension, width in ((0, 6, 16, 0.3), (11, 3, 2, 0.3), (12, 10, 64, 0.5))
            for scale in (3.0, 7.5)
        ],
        (Modes(0, 6, 16, 0.3, 7.5), (0.6, 2.0)),
        (Modes(11, 3, 2, 0.3, 3.0), (0.15, 10.0)),
    ],
    "report": [
        (Modes(seed, n, dimension, width, scale), interval)
        for seed, n, dimension, width in ((1, 4, 2, 0.2), (2, 8, 16, 0.5), (3, 10, 64, 0.3))
        for scale, interval in ((3.0, (0.5, 8.0)), (7.5, (0.28, 2.9)))
    ],
}


def times_of_jumps(sde: sg.LinearSDE, interval: Interval) -> tuple[float, ...]:
    """The times just above which a score is guided otherwise than just below, in double precision."""
    above = cpu_float64(interval) * (1 + ROUNDING)
    return tuple(sde.time_of_noise_level(above).tolist())


def network(name: str, interval: Interval | None = None) -> Bed:
    """A test bed's network under strong guidance, in an interval or everywhere."""
    bed = beds.bed(f"network/{name}")
    score = sg.guidance.ClassifierFree(bed.score.parts[0], SCALE, {"y": 10}, interval=interval)
    jumps = () if interval is None else times_of_jumps(bed.sde, interval)
    return replace(bed, score=score, jumps=jumps, steps=(80, 120), recipe=replace(bed.recipe, mode=repr(score)))


def modes(case: Modes, interval: Interval, process: str) -> Bed:
    """An exact mixture, guided in an interval."""
    sde = beds.PROCESSES[process]()
    everywhere = guided_score(case, sde)
    null = {"y": torch.tensor(case.n)}
    score = sg.guidance.ClassifierFree(everywhere.parts[0], case.scale, null, interval=interval)
    kwargs = {"y": torch.arange(NOISES) % case.n}
    jumps = times_of_jumps(sde, interval)
    recipe = beds.Recipe("guided", "exact", process, f"{case}{interval}")
    shape = (NOISES, case.dimension)
    return Bed(recipe, sde, score, shape, 1.0, model_kwargs=kwargs, jumps=jumps, steps=(150, 0))


def cells(table: str, half: str) -> Iterator[Bed]:
    """The beds of a table."""
    if table == "intervals":
        yield from (modes(*case, process) for case in MODES[half] for process in ("vp", "edm", "flow"))
    else:
        yield from (network(name, INTERVAL if table == "network-intervals" else None) for name in NETWORKS[half])


def errors(bed: Bed, nfe: int) -> list[float]:
    """Those of the default, of the default that knows nothing of the score, and of the others."""
    spread = float(bed.reference.x.std()) / bed.data_std
    solvers = (None, sg.defaults.default_setting(bed.sde, nfe), *OTHERS)
    return [beds.error(bed, solver, nfe) / spread for solver in solvers]


def rows(chosen: Sequence[Bed], found: Callable[[Bed, int], list[float]] = errors) -> Iterator[str]:
    """A row of the table for each budget: geometric mean and worst over the beds."""
    for nfe in BUDGETS:
        columns = zip(*(found(bed, nfe) for bed in chosen), strict=True)
        shown = (f"{geometric(column):.2g}, {max(column):.2g}" for column in columns)
        yield f"| {nfe} | {' | '.join(shown)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    tables = ("networks", "network-intervals", "intervals")
    parser = command.parser(__doc__)
    parser.add_argument("--half", choices=beds.HALVES, default="report")
    parser.add_argument("--only", choices=tables)
    args = command.begin(parser, argv)
    for table in tables if args.only is None else (args.only,):
        chosen = list(cells(table, args.half))
        titles = " | ".join(f"`{solver}`" for solver in OTHERS)
        sys.stdout.write(f"\n## {table}, {args.half}, {len(chosen)} cells\n\n| calls | default | plain | {titles} |\n")
        sys.stdout.write("|--:" * 6 + "|\n")
        for row in rows(chosen):
            sys.stdout.write(row + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
