"""Quality against network calls: solvers on one network, measured with a protocol to quote.

    sgm-sde bench --model digits --solvers ddim,dpm++2m,heun --nfe 5,10,20 --n 10000 --seeds 0,1,2 --out out

Every cell of the table, a solver at a budget of network calls with one seed, is n samples drawn with a seed each,
turned into 8-bit images and features, and compared with a reference; it is kept in a `Store` once it is measured. So a
run that was killed is resumed, with the same result, and solvers, budgets and seeds may be added later.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, instance_of, listed, unknown
from sgm_sde._utils.elsewhere import OF_BENCHES, named_elsewhere
from sgm_sde._utils.files import JsonMapping, JsonObject
from sgm_sde._utils.warn import warn
from sgm_sde.calibration.result import at_budget, load_settings
from sgm_sde.data.images import to_uint8
from sgm_sde.evaluation.metrics.features import Extractor, load_extractor
from sgm_sde.evaluation.metrics.reference import Reference, load_reference
from sgm_sde.evaluation.results import (
    ALIASES,
    METRICS,
    BenchResult,
    Metric,
    draw,
    load_result,
    pyplot,
    require_comparable,
    singular,
    tables,
)
from sgm_sde.identity import checksum, fingerprint, portable, spec
from sgm_sde.runs import distributed
from sgm_sde.runs.store import Store, versions, write_atomically
from sgm_sde.runs.team import Team
from sgm_sde.sampling.defaults import Setting, default_final
from sgm_sde.sampling.planning import plan
from sgm_sde.schemes import AdaptiveSolver, Solver
from sgm_sde.schemes.base import resolve_any
from sgm_sde.zoo.models import Model, load_model

__all__ = ["BenchResult", "Metric", "RunOptions", "bench", "load_result", "on_grids"]

# What `sample(solver=...)` takes, None for its default; or calibrations, each at its budget.
Entry = Setting | Solver | AdaptiveSolver | Mapping[int, Setting] | None
NFE = (5, 6, 8, 10, 15, 20, 35, 50)
SOLVERS = ("default", "ddim", "dpm++2m", "dpm++3m", "unipc3", "deis3", "heun", "ancestral", "sde-dpm++2m")
FEATURES = "raw, pixels, efficientnet-lite0, inception, or MODULE:FUNCTION"
REFERENCES = "real data in a file .npy, .npz or .safetensors"
SHIPPED = {  # features, reference, baseline
    "digits": ("digits-classifier-32", "digits-held-out", "digits-train"),
    "fashion": ("fashion-classifier-64", "fashion-test", ""),
}


@dataclass(frozen=True)
class RunOptions:
    """The execution of a benchmark.

    Args:
        batch: samples per batch.
        device: "cpu", "cuda" or "mps"; CUDA where there is one if not given.
        threads: of a CPU; kernels may round differently with another number.
        keep_samples: keep the samples, in `out/samples`, where `distributed.load` reads them.
        progress: show a progress bar.

    Raises:
        ValueError: for a batch or a number of threads that is no integer of at least 1.

    Examples:
        >>> RunOptions(batch=100).threads
        1
    """

    batch: int = 500
    device: str | None = None
    threads: int = 1
    keep_samples: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "threads"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), kind=Integral))


@named_elsewhere(OF_BENCHES)
def bench(
    model: Model | str,
    out: Path | str,
    *,
    solvers: Sequence[str] | Mapping[str, Entry | str] = SOLVERS,
    nfe: Sequence[int] = NFE,
    n: int = 10000,
    seeds: Sequence[int] = (0,),
    features: str | Extractor | None = None,
    reference: str | Path | None = None,
    baseline: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    beside: Sequence[Path | str] = (),
    run: RunOptions | None = None,
) -> BenchResult:
    """Measure solvers on a network at several budgets of network calls.

    Sample i of seed s has the seed (s, i) for every solver and budget and, of a model with classes, the class i modulo
    their number. The same call resumes an interrupted run, and gives the same result.

    Args:
        model: a `Model` or its name, as `load_model` takes it.
        out: folder for `results.json`, `table.md` and `curves.png`, and for what is measured, in `cells`.
        solvers: names, NAME@GRID, "default", or files of calibrations; or a mapping from labels to what
            `sample(solver=...)` takes, or to calibrations.
        nfe: budgets of network calls, the final one included.
        n: samples of each cell.
        seeds: one a repetition; tables give mean and standard deviation over them.
        features: an `Extractor`, as `load_extractor` makes it, or its name; if not given those of a shipped model, and
            the numbers themselves, `"raw"`, of samples that are no images (C, H, W).
        reference: the real data, as `load_reference` takes them; those of a shipped model if not given.
        baseline: other real data to measure in the same way; those of a shipped model if not given.
        metrics: of `METRICS`, or "fid", "kid", "sw" for short; all that the reference allows if not given.
        beside: files of other results to show beside this one.
        run: batch size, device, threads, what is kept and shown.

    Returns:
        the measurements.

    Raises:
        ValueError: for arguments out of range or unknown names, results of another n, features, reference or metrics
            to show beside, and a folder that was made with other settings, with the difference.
        OSError: if the folder cannot be written, or another run is writing to it.

    Warns:
        UserWarning: for fewer samples or images than features, where Frechet distances are biased.

    Examples:
        >>> import tempfile
        >>> result = bench(
        ...     "digits", tempfile.mkdtemp(), solvers=["ddim", "dpm++2m"], nfe=[6], n=40, metrics=["sw"]
        ... )
        >>> [row["nfe"] for row in result.rows], list(result.labels)
        ([6, 6], ['sliced'])
    """
    pyplot()  # what is missing is said before the work is done
    if isinstance(model, str):
        model = load_model(model)
    options = RunOptions() if run is None else run
    if not isinstance(options, RunOptions):
        raise TypeError(f"run must be RunOptions, got {described(run)}")

    out = Path(out)
    others = {str(path): load_result(path) for path in beside}
    entries = _entries(solvers)
    budgets = _integers("nfe", nfe, least=1)
    repetitions = _integers("seeds", seeds, least=0)
    features, reference, baseline = _sources(model, features, reference, baseline)

    with Team(options.device, options.threads) as team:
        if team.size > 1:
            raise ValueError(f"a benchmark runs in one process, not in {team.size}")

        task = _Task.of(model, team, features, reference, metrics, n, options.batch)
        other_real = None
        if baseline:
            other_real = load_reference(baseline, task.extractor, model.shape, task.levels)
        protocol = task.protocol | {"device": team.device.type, "versions": versions()}
        for path, other in others.items():
            require_comparable(protocol, other.protocol, path)
        if note := singular(protocol):
            warn(note)

        settings = {key: value for key, value in protocol.items() if key != "versions"}  # the store adds its own
        with Store(out / "cells", settings) as store:
            shards = _Shards(store)
            # The baseline comes first: data too few for a metric are refused before anything is drawn.
            known = {}
            if other_real is not None:
                known = task.baseline(other_real, shards)

            cells = _cells(entries, budgets, repetitions)
            rows = _rows(task, cells, shards, out / "samples", team, options)
            store.finish(shards.names)

    if not options.keep_samples:
        shutil.rmtree(out / "samples", ignore_errors=True)
    result = BenchResult(protocol, tuple(rows), known)
    _write(result, others, out)
    return result


def _rows(
    task: _Task, cells: Sequence[_Cell], shards: _Shards, samples: Path, team: Team, options: RunOptions
) -> list[JsonObject]:
    """Rows of all cells, of which at least one has numbers."""
    rows = []
    for cell in _bar(cells, options.progress):
        rows.append(task.row(cell, shards, samples, team, options.keep_samples))
    if not any(row["definition"] for row in rows):
        raise ValueError(f"there is nothing to show: {rows[0]['note']}")
    return rows


def _sources(
    model: Model, features: str | Extractor | None, reference: str | Path | None, baseline: str | Path | None
) -> tuple[str | Extractor, str | Path, str | Path | None]:
    """Features, reference and baseline, where they are not given those that go with a shipped model."""
    own_features, own_reference, own_baseline = SHIPPED.get(model.name, ("", "", ""))
    if baseline is None and reference is None:  # the baseline goes with the shipped reference, not with another
        baseline = own_baseline

    raw = "" if _are_images(model.shape) else "raw"
    features = features or own_features or raw
    reference = reference or own_reference

    asked = {"features": (features, FEATURES), "reference": (reference, REFERENCES)}
    missing = {name: kinds for name, (given, kinds) in asked.items() if not given}
    if missing:
        wanted = "; and ".join(f"{name}=..., {kinds}" for name, kinds in missing.items())
        raise ValueError(f"the model {model.name!r} does not bring its {' and '.join(missing)}: give {wanted}")
    return features, reference, baseline


def _are_images(shape: Sequence[int]) -> bool:
    """True for the shape (C, H, W) of samples that may be images; of others their numbers are the features."""
    return len(shape) == 3


def _write(result: BenchResult, others: Mapping[str, BenchResult], out: Path) -> None:
    """The files of a result: its numbers, and tables and curves with others beside it."""
    result.save(out / "results.json")

    shown = {"": result}
    for path, other in others.items():
        shown[Path(path).resolve().parent.name] = other
    write_atomically(out / "table.md", (tables(shown) + "\n").encode())
    draw(shown, out / "curves.png")


@dataclass(frozen=True)
class _Cell:
    """One unit of work: a solver at a budget with a seed."""

    label: str
    solver: Entry
    budget: int
    seed: int

    @property
    def setting(self) -> Setting | Solver | AdaptiveSolver | None:
        """The solver or setting that runs at this budget.

        Raises:
            ValueError: for calibrations of other budgets.
        """
        return at_budget(self.solver, self.budget) if isinstance(self.solver, Mapping) else self.solver

    def identify(self, model: Model) -> tuple[str, JsonObject]:
        """A name that no other cell has, and the specs of solver and grid."""
        solver, grid, program = plan(model.sde, self.setting, nfe=self.budget, **model.score.traits)
        definition = {"solver": portable(spec(solver)), "grid": portable(spec(grid))}
        table = "" if program is None else program.to_json()
        digest = checksum([definition["solver"], table])[:16]
        slug = re.sub(r"[^A-Za-z0-9_+.-]", "-", self.label)
        return f"cell-{slug}-nfe{self.budget}-seed{self.seed}-{digest}", definition


@dataclass(frozen=True)
class _Task:
    """Setup shared by all cells."""

    model: Model
    extractor: Extractor
    levels: tuple[float, float] | None
    real: Reference
    metrics: tuple[str, ...]
    n: int
    batch: int
    identity: JsonMapping

    @classmethod
    def of(
        cls,
        model: Model,
        team: Team,
        features: str | Extractor,
        reference: str | Path,
        metrics: Sequence[str] | None,
        n: int,
        batch: int,
    ) -> _Task:
        """The setup, with extractor and reference loaded.

        Raises:
            ValueError: for unknown names, and fewer samples than a metric takes.
        """
        extractor = load_extractor(features, model.shape, device=team.device) if isinstance(features, str) else features
        levels = black_white(model) if extractor.images else None
        real = load_reference(reference, extractor, model.shape, levels)

        chosen = _metrics(metrics, real)
        n = check_integer("n", n, kind=Integral)
        _require_enough(chosen, n)

        model.to(team.device)
        classes = None if model.n_classes is None else list(range(model.n_classes))
        identity = distributed.identity(model, team, classes)
        return cls(model, extractor, levels, real, chosen, n, batch, identity)

    @property
    def protocol(self) -> JsonObject:
        """All that the numbers depend on but the machine, as JSON values."""
        model = self.model
        extractor = self.extractor
        real = self.real
        return {
            **self.identity,
            "shape": list(model.shape),
            "n": self.n,
            "labels": "none" if model.n_classes is None else f"i modulo {model.n_classes}",
            "final": default_final(model.sde),
            "batch": self.batch,
            "dtype": str(torch.get_default_dtype()),
            "data_range": list(self.levels or ()),
            "metrics": list(self.metrics),
            "features": {"name": extractor.name, "hash": extractor.hash, "dim": extractor.dim, "fid": extractor.fid},
            "reference": {"name": real.name, "hash": real.hash, "n": real.n},
        }

    def measure(self, features: Tensor) -> dict[str, float]:
        """All numbers of features (n, d)."""
        values: dict[str, float] = {}
        for name in self.metrics:
            values |= METRICS[name].measure(features, self.real)
        return values

    def row(self, cell: _Cell, shards: _Shards, samples: Path, team: Team, keep_samples: bool) -> JsonObject:
        """A row of the results: drawn and measured, or as it was kept."""
        row = {"solver": cell.label, "budget": cell.budget, "seed": cell.seed}
        try:
            name, definition = cell.identify(self.model)
        except ValueError as error:  # a budget too small for one step, a grid that the process does not have
            return row | {"definition": {}, "nfe": 0, "rows": 0, "images": "", "metrics": {}, "note": str(error)}

        measured = shards.cached(name, lambda: self.draw(cell, samples / name, team))
        if not keep_samples:  # only now that the numbers are in the store: a run killed before needs the samples again
            shutil.rmtree(samples / name, ignore_errors=True)
        return row | {"definition": definition} | measured

    def draw(self, cell: _Cell, folder: Path, team: Team) -> JsonObject:
        """Draw and measure a cell."""
        report = distributed.sample(
            self.model, self.n, folder, batch=self.batch, solver=cell.setting, nfe=cell.budget, seed=cell.seed,
            device=team.device.type, threads=team.threads,
        )  # fmt: skip
        calls = {name: report.result[name] for name in ("nfe", "rows")}
        if n_failed := len(report.result["failed"]):
            note = f"{n_failed} of {self.n} samples are not finite, short of the end, or cannot be right"
            return {**calls, "images": "", "metrics": {}, "note": note}

        x = distributed.load(folder)["x"]
        data = x if self.levels is None else to_uint8(x, self.levels)
        metrics = self.measure(self.extractor(data))
        return {**calls, "images": fingerprint({"x": data}), "metrics": metrics, "note": ""}

    def baseline(self, data: Reference, shards: _Shards) -> JsonObject:
        """The same numbers of other real data."""
        metrics = shards.cached(f"baseline-{data.hash[:16]}", lambda: self.measure(data.rows))
        return {"name": data.name, "hash": data.hash, "n": data.n, "metrics": metrics}


class _Shards:
    """Cached results in a store, and the names of those requested."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.names: list[str] = []

    def cached(self, name: str, compute: Callable[[], JsonObject]) -> JsonObject:
        """The result cached under a name, computed if absent."""
        if not self.store.has(name):
            self.store.save(name, {}, compute())
        self.names.append(name)
        return self.store.info(name)


def _entries(solvers: Sequence[str] | Mapping[str, Entry | str]) -> dict[str, Entry]:
    """Solvers and settings by label."""
    entries: dict[str, Entry] = {}
    if isinstance(solvers, Mapping):
        for label, given in solvers.items():
            entries[label] = resolve_any(given) if isinstance(given, str) else given
    else:
        if isinstance(solvers, str) or not isinstance(solvers, Sequence):
            raise TypeError(f"solvers must be a list of names, or a mapping from labels, got {described(solvers)}")
        for label in solvers:
            instance_of("a solver to bench", label, str, "a name")
            if label.endswith(".json"):
                entries[Path(label).stem] = load_settings(label)
            else:
                entries[label] = _named(label)

    if not entries:
        raise ValueError("give at least one solver")
    return entries


def _named(label: str) -> Setting | Solver | AdaptiveSolver | None:
    """The setting that NAME, NAME@GRID or "default" stands for."""
    if label == "default":
        return None
    solver, _, grid = label.partition("@")
    if solver.endswith(".json"):
        raise ValueError(f"calibrated solvers bring their own grids, got {label!r}: leave @{grid} out")
    return Setting(solver, grid) if grid else resolve_any(solver)


def _cells(entries: Mapping[str, Entry], budgets: Iterable[int], seeds: Iterable[int]) -> list[_Cell]:
    """All cells, those of one solver in a row."""
    each = itertools.product(entries.items(), budgets, seeds)
    return [_Cell(label, solver, budget, seed) for (label, solver), budget, seed in each]


def on_grids(solvers: Sequence[str], grids: Sequence[str]) -> list[str]:
    """Names of solvers as NAME@GRID, for each of the grids; those that have a grid, and "default", stay.

    Examples:
        >>> on_grids(["ddim", "default"], ["karras", "log-snr"])
        ['ddim@karras', 'ddim@log-snr', 'default']
    """
    named: list[str] = []
    for name in solvers:
        has_grid = name == "default" or "@" in name or name.endswith(".json")
        named += [name] if has_grid or not grids else [f"{name}@{grid}" for grid in grids]
    return named


def _metrics(names: Sequence[str] | None, real: Reference) -> tuple[str, ...]:
    if names is None:
        return tuple(name for name, metric in METRICS.items() if metric.statistics or real.features is not None)

    chosen = tuple(dict.fromkeys(ALIASES.get(name, name) for name in names))
    if not chosen:
        raise ValueError("give at least one metric")
    for name in chosen:
        if name not in METRICS:
            raise unknown("metric", name, [*METRICS, *ALIASES])
        if real.features is None and not METRICS[name].statistics:
            raise ValueError(
                f"{real.name} holds statistics only, which is not enough for the metric {name!r}: give data"
            )
    return chosen


def black_white(model: Model) -> tuple[float, float]:
    """The values of black and white: the middles of the lowest and the highest level.

    Raises:
        ValueError: for a model that does not tell its `data_range`.
    """
    if model.data_range is None:
        raise ValueError(f"the model {model.name!r} must tell its data_range to make images of its samples")
    lo, hi = model.data_range
    half = 0.0 if model.n_levels is None else (hi - lo) / model.n_levels / 2
    return lo + half, hi - half


def _require_enough(metrics: Sequence[str], n: int) -> None:
    """Refuse fewer samples than a metric takes."""
    for name in metrics:
        least = METRICS[name].least
        if n < least:
            raise ValueError(f"the metric {name!r} takes at least {least} samples, got n={n}")


def _integers(name: str, values: Iterable[int], least: int) -> tuple[int, ...]:
    """Integers of at least so much, without repeats."""
    entries = listed(values)
    if isinstance(entries, str) or not isinstance(entries, Iterable):
        raise TypeError(f"{name} must be a list of integers, got {described(values)}")
    numbers = []
    for value in entries:
        number = value if isinstance(value, Integral) and not isinstance(value, bool) else None
        if number is None or number < least:
            raise ValueError(f"{name} must be integers of at least {least}, got {described(value)}")
        numbers.append(int(number))

    if not numbers:
        raise ValueError(f"give at least one of {name}")
    return tuple(dict.fromkeys(numbers))


def _bar(cells: Sequence[_Cell], progress: bool) -> Iterable[_Cell]:
    if not progress:
        return cells
    from tqdm.auto import tqdm

    bar: Iterable[_Cell] = tqdm(cells, desc="bench", unit="cell")
    return bar
