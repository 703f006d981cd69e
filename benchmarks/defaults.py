"""The default beside the best that the registry could do, on test beds as networks are.

    python -m benchmarks.defaults --out out/bench            # tables and picture
    python -m benchmarks.defaults measure                    # all of the registry, into out/beds/registry
    python -m benchmarks.defaults freeze                     # the best of it, into benchmarks/beds/best.json

"Best" is the least error, bed by bed and budget by budget, over every deterministic entry of the registry as it was at
commit 1336d6e, on three grids (the process' own, even in log-SNR, Karras'), as it is and with `lower_final=True` where
there is that option. Its figures are frozen, so that no smaller registry can help the ratios; `freeze` made them from a
checkout of that commit, with this one's benchmarks:

    git worktree add --detach /tmp/registry 1336d6e
    cd /tmp/registry && PYTHONPATH=<this checkout> python -m benchmarks.defaults measure
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

import sgm_sde as sg
from benchmarks import beds, command, pictures
from benchmarks.beds import BUDGETS, HERE, Bed
from sgm_sde.engine.program import Program
from sgm_sde.sampling.planning import plan

BEST = HERE / "best.json"
GRIDS = (None, "log-snr", "karras")
BEFORE = ("ipndm3", "dpm5m-cold")  # the default at that commit, on log-SNR: up to 8 calls, and from 9 on
OWN = "own"  # the process' own grid, in files and tables


@dataclass(frozen=True)
class Candidate:
    """An entry of the registry on a grid, as it is or with a final step of lower order."""

    solver: str
    grid: str | None
    lower_final: bool

    def __str__(self) -> str:
        return f"{self.solver}{'+lower_final' if self.lower_final else ''} on {self.grid or OWN}"

    @classmethod
    def of(cls, name: str) -> Candidate:
        """The candidate that a table calls by a name."""
        solver, grid = name.split(" on ")
        lower_final = solver.endswith("+lower_final")
        return cls(solver.removesuffix("+lower_final"), None if grid == OWN else grid, lower_final)

    def build(self) -> sg.Solver:
        """The solver."""
        solver = sg.solvers().fixed[self.solver]
        if self.lower_final:
            return replace(solver, lower_final=True)
        return solver.strict() if hasattr(solver, "strict") else solver  # at the commit of the best, all were


def candidates() -> Iterator[Candidate]:
    """All of them."""
    for name, solver in sg.solvers().fixed.items():
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
            program = plan(sde, candidate.build(), nfe=nfe, grid=candidate.grid or sde.default_grid)[2]
        except ValueError as error:
            if "too small" not in str(error):
                raise
        else:
            assert program is not None
            found.setdefault(program, candidate)
    return found


def measure(chosen: Sequence[Bed]) -> None:
    """The errors of all candidates on each bed and budget, one file a bed in out/beds/registry; what is there stays."""
    for process in dict.fromkeys(bed.process for bed in chosen):
        here = [bed for bed in chosen if bed.process == process and not _measured(bed).exists()]
        tried = {nfe: programs(here[0].sde, nfe) for nfe in BUDGETS} if here else {}
        for bed in tqdm(here, desc=process, mininterval=10):
            rows: dict[int, dict[str, list[float | None]]] = {}
            for nfe, those in tried.items():
                found = zip(beds.errors_of(bed, list(those)), those.values(), strict=True)
                rows[nfe] = {str(c): [_round(e.rmse), _round(e.median)] for e, c in found}
            file = _measured(bed)
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({"bed": bed.name, "doubt": bed.reference.doubt, "errors": rows}) + "\n")
            partial.replace(file)


def freeze(chosen: Sequence[Bed], path: Path) -> None:
    """Write the best of the registry, and DDIM, for each bed and budget."""
    entries: dict[str, Any] = {}
    for bed in chosen:
        stored = json.loads(_measured(bed).read_text())
        best, ddim, before = {}, {}, {}
        for nfe, rows in stored["errors"].items():
            by = min(rows, key=lambda name: _value(rows[name][0]))
            best[nfe] = {"rmse": rows[by][0], "median": rows[by][1], "by": by}
            ddim[nfe] = {grid or OWN: _of(rows, "ddim", grid)[0] for grid in GRIDS}
            before[nfe] = _of(rows, BEFORE[int(nfe) > 8], "log-snr")[0]
        entries[bed.name] = {
            "hash": bed.hash, "doubt": stored["doubt"], "best": best, "ddim": ddim, "before": before,
        }  # fmt: skip
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _of(rows: dict[str, list[float | None]], solver: str, grid: str | None) -> list[float | None]:
    """The errors of a solver on a grid; where they run what they run on the process' own grid, they are under that."""
    name = str(Candidate(solver, grid, False))
    return rows[name] if name in rows else rows[str(Candidate(solver, None, False))]


def _measured(bed: Bed) -> Path:
    return beds.CACHE / "registry" / f"{bed.hash}.json"


def _round(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


# --------------------------------------------------------------------------------------------------------------- tables

DDIM_GRID = "log-snr"


@dataclass(frozen=True)
class Row:
    """The errors of a setting on a bed, by budget, with those of the frozen best, of DDIM and of the old default."""

    bed: Bed
    errors: dict[int, float]
    best: dict[int, float]
    ddim: dict[int, float]
    before: dict[int, float]

    def over(self, other: dict[int, float], nfe: int, errors: dict[int, float] | None = None) -> float:
        """This error divided by another's, neither below what the reference is known to."""
        doubt = self.bed.reference.doubt
        return max((errors or self.errors)[nfe], doubt) / max(other[nfe], doubt)

    def growth(self, nfe: int) -> float:
        """This error divided by the least of a smaller budget."""
        least = min((e for n, e in self.errors.items() if n < nfe), default=math.inf)
        return self.errors[nfe] / max(least, self.bed.reference.doubt)


def frozen(path: Path = BEST) -> dict[str, Any]:
    """The file of the best."""
    return json.loads(path.read_text()) if path.exists() else {}


def rows(chosen: Sequence[Bed], setting: Any = None, grid: Any = None, **options: Any) -> list[Row]:
    """The errors of a setting, by default what `sample` takes by default, on beds of which the best is known.

    Args:
        chosen: the beds.
        setting: what `sample(solver=...)` takes, or a function from a budget and a process to that.
        grid: what `sample(grid=...)` takes.
        options: `t_start`, `t_end`, `final`.
    """
    known = frozen()
    found = []
    for bed in chosen:
        entry = known.get(bed.name)
        if entry is None or entry["hash"] != bed.hash:
            continue
        errors = {}
        for nfe in BUDGETS:
            solver = setting if setting is None or isinstance(setting, str | sg.Setting | sg.Solver) else None
            if solver is None and setting is not None:
                solver = setting(nfe, bed.sde)
            errors[nfe] = beds.error(bed, solver, nfe, grid, **options)
        best = {int(n): value["rmse"] for n, value in entry["best"].items()}
        ddim = {int(n): _value(value.get(DDIM_GRID)) for n, value in entry["ddim"].items()}
        before = {int(n): _value(value) for n, value in entry["before"].items()}
        found.append(Row(bed, errors, best, ddim, before))
    return found


def _value(number: float | None) -> float:
    return math.inf if number is None else number


def geometric(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(v) if v > 0 else -math.inf for v in values) / len(values))


def summary(found: Sequence[Row], title: str) -> list[str]:
    """Ratios by budget: to the best, to DDIM, to the same with fewer calls."""
    lines = [f"### {title}, {len(found)} beds", ""]
    lines += ["| NFE | before / best | worst | error / best | worst | at | error / DDIM | worst | at | growth | at |"]
    lines += ["|---:|---:|---:|---:|---:|---|---:|---:|---|---:|---|"]
    for nfe in BUDGETS:
        old = [row.over(row.best, nfe, row.before) for row in found]
        cells = [f"{nfe}", f"{geometric(old):.2f}", f"{max(old):.1f}"]
        for ratios in (
            {row.bed.name: row.over(row.best, nfe) for row in found},
            {row.bed.name: row.over(row.ddim, nfe) for row in found},
        ):
            where = max(ratios, key=lambda name: ratios[name])
            cells += [f"{geometric(list(ratios.values())):.2f}", f"{ratios[where]:.2f}", where]
        growth = {row.bed.name: row.growth(nfe) for row in found}
        where = max(growth, key=lambda name: growth[name])
        cells += [f"{growth[where]:.2f}", where]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def detail(found: Sequence[Row], title: str) -> list[str]:
    """Error and best, bed by bed."""
    lines = [f"### {title}: error / best", "", f"| bed | {' | '.join(map(str, BUDGETS))} |"]
    lines.append("|---|" + "---:|" * len(BUDGETS))
    for row in found:
        cells = (f"{row.errors[nfe]:.3g} / {row.best[nfe]:.3g}" for nfe in BUDGETS)
        lines.append(f"| {row.bed.name} | {' | '.join(cells)} |")
    return [*lines, ""]


def cells(found: Sequence[Row], above: float, title: str) -> list[str]:
    """The cells whose ratio is above a bound, with the errors of typical samples and how many outweigh the others.

    Where the median is as good as the best's and few samples are nearly all of the error, these few have changed sides
    between modes, and the best is the one of some 400 settings under which none has. The best runs as it is in this
    checkout; its error beside the frozen one tells whether it is still the same.
    """
    known = frozen()
    lines = [f"### {title}: cells above {above:g}", ""]
    lines += ["| bed | NFE | error / best | median / median | samples with 90 % of the square | best | it errs now |"]
    lines += ["|---|---:|---:|---:|---:|---|---:|"]
    for row, nfe in ((row, nfe) for row in found for nfe in BUDGETS if row.over(row.best, nfe) > above):
        bed = row.bed
        name = known[bed.name]["best"][str(nfe)]["by"]
        best = Candidate.of(name)
        of_best = beds.by_sample(bed, beds.run(bed, best.build(), nfe, best.grid or bed.sde.default_grid))
        each = beds.by_sample(bed, beds.run(bed, None, nfe))

        share = each.square().sort(descending=True).values.cumsum(0) / each.square().sum()
        outweigh = int((share < 0.9).sum()) + 1
        median = float(each.median() / of_best.median())
        again = float(of_best.square().mean().sqrt())
        figures = f"{row.over(row.best, nfe):.1f} | {median:.2f} | {outweigh} of {len(each)}"
        lines.append(f"| {bed.name} | {nfe} | {figures} | {name} | {again:.3g} for {row.best[nfe]:.3g} |")
    return [*lines, ""]


def draw(found: Sequence[Row], path: Path) -> None:
    """The error of the default, the best and DDIM against the budget: geometric means by family, and of the default the
    error on each bed, too."""
    families = [family for family in beds.FAMILIES if any(row.bed.family == family for row in found)]
    figure, axes = pictures.panels(len(families), 4.6, 4.2, sharey=True)
    for family, axis in zip(families, axes, strict=True):
        here = [row for row in found if row.bed.family == family]
        for name, style in (("errors", "-"), ("best", ":"), ("ddim", "--")):
            label = {"errors": "default", "best": "best of the registry, bed by bed", "ddim": "DDIM on log-SNR"}[name]
            means = [geometric([getattr(row, name)[nfe] for row in here]) for nfe in BUDGETS]
            axis.plot(BUDGETS, means, style, marker="o", markersize=3, color="black", label=label)
        for i, row in enumerate(here):
            label = "" if i else "default, each of the beds"
            axis.plot(
                BUDGETS, [row.errors[nfe] for nfe in BUDGETS], linewidth=0.7, color="gray", alpha=0.6, label=label
            )
        axis.set(xscale="log", yscale="log", title=f"{family}, {len(here)} beds", xlabel="network calls (NFE)")
        pictures.ticks(axis, BUDGETS)
    pictures.save(figure, path, pictures.ERROR, legend=0, size=9)


def report(chosen: Sequence[Bed], out: Path, above: float = 3.0) -> None:
    """Measure the default, and write and print the tables and the picture; of cells above a ratio also why."""
    found = rows(chosen)
    lines = ["# The default beside the best of the registry", ""]
    lines += [f"{paragraph}\n" for paragraph in (beds.__doc__ or "").split("\n\n")[4:6]]
    for half in beds.HALVES:
        if here := [row for row in found if row.bed.half == half]:
            lines += [f"## {half}", "", *summary(here, "all")]
            for family in beds.FAMILIES:
                if of := [row for row in here if row.bed.family == family]:
                    lines += summary(of, family)
            lines += detail(here, half)
            lines += cells(here, above, half)
    out.mkdir(parents=True, exist_ok=True)
    (out / "defaults.md").write_text("\n".join(lines))
    table = [
        {"bed": row.bed.name, "half": row.bed.half, "errors": row.errors, "best": row.best, "ddim": row.ddim}
        for row in found
    ]
    (out / "defaults.json").write_text(json.dumps(table, indent=1) + "\n")
    draw([row for row in found if row.bed.half == "report"] or found, out / "defaults.png")
    sys.stdout.write("\n".join(lines) + f"\nWritten to {out}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Freeze the best, or print the tables."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("what", choices=["report", "measure", "freeze"], nargs="?", default="report")
    parser.add_argument("--family", choices=beds.FAMILIES)
    parser.add_argument("--half", choices=beds.HALVES)
    parser.add_argument("--process", choices=list(beds.PROCESSES), nargs="+")
    parser.add_argument("--names", default="", help="beds whose name contains this")
    parser.add_argument("--above", type=float, default=3.0, help="ratio from which on a cell is taken apart")
    args = command.begin(parser, argv)
    chosen = beds.load(args.half, args.family, args.names)
    chosen = [bed for bed in chosen if args.process is None or bed.process in args.process]
    if args.what == "measure":
        measure(chosen)
    elif args.what == "freeze":
        freeze([bed for bed in chosen if _measured(bed).exists()], BEST)
    else:
        report(chosen, args.out, args.above)


if __name__ == "__main__":
    main()
