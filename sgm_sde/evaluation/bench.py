"""Quality against network calls: solvers on one network, measured with a protocol to quote.

    sgm-sde bench --model digits --solvers ddim,dpm++2m,heun --nfe 5,10,20 --n 10000 --seeds 0,1,2 --out out

Every cell of the table, a solver at a budget of network calls with one seed, is n samples drawn with a seed each,
turned into 8-bit images and features, and compared with a reference; it is kept in a `Store` once it is measured. So a
run that was killed is resumed, with the same result, and solvers, budgets and seeds may be added later.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, instance_of, listed, unknown
from sgm_sde._utils.elsewhere import OF_BENCHES, named_elsewhere
from sgm_sde._utils.files import JsonMapping, JsonObject, parse_json, reading
from sgm_sde._utils.warn import warn
from sgm_sde.calibration.result import Calibrations, as_calibrations, at_budget, load_calibration
from sgm_sde.data.images import to_uint8
from sgm_sde.evaluation.metrics.features import Extractor, load_extractor
from sgm_sde.evaluation.metrics.frechet import gaussian_frechet, moments
from sgm_sde.evaluation.metrics.kernel import LEAST, kernel_distance
from sgm_sde.evaluation.metrics.neighbours import NEIGHBOURS, prdc
from sgm_sde.evaluation.metrics.reference import Reference, load_reference
from sgm_sde.evaluation.metrics.sliced import sliced_wasserstein
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
Entry = Setting | Solver | AdaptiveSolver | Calibrations | None
FORMAT = "sgm_sde bench 3"
NFE = (5, 6, 8, 10, 15, 20, 35, 50)
SOLVERS = ("default", "ddim", "dpm++2m", "dpm++3m", "unipc3", "deis3", "heun", "ancestral", "sde-dpm++2m")
FEATURES = "raw, pixels, efficientnet-lite0, inception, or MODULE:FUNCTION"
REFERENCES = "real data in a file .npy, .npz or .safetensors"
SHIPPED = {  # features, reference, baseline
    "digits": ("digits-classifier-32", "digits-held-out", "digits-train"),
    "fashion": ("fashion-classifier-64", "fashion-test", ""),
}


@dataclass(frozen=True)
class Metric:
    """A metric: a function of features (n, d) and a reference that returns named numbers.

    Attributes:
        measure: the function.
        labels: table headings of its numbers by name; numbers without one, such as a standard error, are in rows only.
        fid_label: heading of its only number where the features are those of Inception.
        statistics: whether the reference's mean and covariance are enough.
        least: smallest number of samples.

    Examples:
        >>> METRICS["sliced"].labels["sliced"], METRICS["frechet"].fid_label
        ('Sliced Wasserstein distance', 'FID')
    """

    measure: Callable[[Tensor, Reference], dict[str, float]]
    labels: Mapping[str, str]
    fid_label: str = ""
    statistics: bool = False
    least: int = 2


def _frechet(features: Tensor, reference: Reference) -> dict[str, float]:
    return {"frechet": gaussian_frechet(*moments(features.double()), reference.mean, reference.cov)}


def _kernel(features: Tensor, reference: Reference) -> dict[str, float]:
    result = kernel_distance(features, reference.rows)
    return {"kernel": result.value, "kernel_stderr": result.stderr}


def _prdc(features: Tensor, reference: Reference) -> dict[str, float]:
    result = prdc(features, reference.rows)
    return {name: getattr(result, name) for name in PRDC}


def _sliced(features: Tensor, reference: Reference) -> dict[str, float]:
    return {"sliced": sliced_wasserstein(features, reference.rows).value}


PRDC = ("precision", "recall", "density", "coverage")
DISTANCES = ("frechet", "kernel", "sliced")  # numbers that are less for better samples
METRICS: dict[str, Metric] = {
    "frechet": Metric(_frechet, {"frechet": "Frechet distance"}, "FID", statistics=True),
    "kernel": Metric(_kernel, {"kernel": "Kernel distance"}, "KID", least=LEAST),
    "prdc": Metric(_prdc, {name: name.capitalize() for name in PRDC}, least=NEIGHBOURS + 1),
    "sliced": Metric(_sliced, {"sliced": "Sliced Wasserstein distance"}),
}
ALIASES = {"fid": "frechet", "kid": "kernel", "sw": "sliced"}


@dataclass(frozen=True)
class BenchResult:
    """Measurements with their protocol; prints as tables.

    Attributes:
        protocol: what all numbers depend on, as JSON values: model, process, n, features, reference, versions, ...
        rows: one for each solver, budget and seed: `solver`, `definition` (the specs of solver and grid), `budget`,
            `nfe` (calls for a batch), `rows` (samples that the network has seen in all), `seed`, `images` (their
            SHA-256), `metrics` by name, and `note`, which says why where there are none.
        baseline: the same metrics of other real data, with their `name`, `hash` and `n`; empty without any.

    Examples:
        >>> row = {"solver": "ddim", "budget": 5, "metrics": {"fd": 1.5}}
        >>> result = BenchResult({}, (row, {**row, "budget": 10, "metrics": {"fd": 0.5}}))
        >>> result.budgets, result.values("ddim", 10, "fd")
        ((5, 10), [0.5])
    """

    protocol: JsonMapping
    rows: tuple[JsonMapping, ...]
    baseline: JsonMapping = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """Measured numbers by name, with their labels in tables."""
        fid = self.protocol["features"]["fid"]
        chosen = [METRICS[name] for name in self.protocol["metrics"]]
        return {name: (fid and m.fid_label) or label for m in chosen for name, label in m.labels.items()}

    @property
    def solvers(self) -> tuple[str, ...]:
        """The solvers' labels."""
        return tuple(dict.fromkeys(row["solver"] for row in self.rows))

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets of network calls, increasing."""
        return tuple(sorted({row["budget"] for row in self.rows}))

    def values(self, solver: str, budget: int, name: str) -> list[float]:
        """A number for each seed, where there is one."""
        found = [row for row in self.rows if (row["solver"], row["budget"]) == (solver, budget)]
        return [row["metrics"][name] for row in found if row["metrics"]]

    def save(self, path: Path | str) -> None:
        """Write it as JSON, which `load_result` reads."""
        contents = {"format": FORMAT, "protocol": self.protocol, "rows": self.rows, "baseline": self.baseline}
        write_atomically(Path(path), (json.dumps(contents, indent=1, sort_keys=True) + "\n").encode())

    def __str__(self) -> str:
        return _tables({"": self})


# The fields of a file of results, and their types.
ROW = {
    "solver": str, "definition": dict, "budget": int, "nfe": int, "rows": int, "seed": int, "images": str,
    "metrics": dict, "note": str,
}  # fmt: skip
PROTOCOL = {
    "model": str, "weights": str, "score": dict, "outputs": dict, "sde": dict, "shape": list, "n": int, "labels": str,
    "final": str, "batch": int,
    "dtype": str, "device": str, "data_range": list, "features": dict, "reference": dict, "metrics": list,
    "versions": dict,
}  # fmt: skip


def load_result(path: Path | str) -> BenchResult:
    """The result in a file that `BenchResult.save` wrote.

    Raises:
        ValueError: for a file with other things in it.
        OSError: if it cannot be read.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> result = BenchResult({key: kind() for key, kind in PROTOCOL.items()}, rows=())
        >>> result.save(path)
        >>> load_result(path) == result
        True
    """
    with reading(path, "result of a benchmark"):
        contents = parse_json(Path(path).read_bytes())
        if contents["format"] != FORMAT:
            raise ValueError(f"its format is {contents['format']!r}, not {FORMAT!r}")
        _check("the protocol", contents["protocol"], PROTOCOL)
        for i, row in enumerate(contents["rows"]):
            _check(f"row {i}", row, ROW)
        return BenchResult(contents["protocol"], tuple(contents["rows"]), dict(contents["baseline"]))


def _check(what: str, found: JsonMapping, wanted: Mapping[str, type]) -> None:
    if found.keys() != wanted.keys():
        raise ValueError(f"{what} must have {', '.join(sorted(wanted))}, got {', '.join(sorted(found))}")
    for key, kind in wanted.items():
        if not isinstance(found[key], kind) or isinstance(found[key], bool):
            raise ValueError(f"{key} of {what} must be a {kind.__name__}, got {found[key]!r}")


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
    _pyplot()  # what is missing is said before the work is done
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
            _require_comparable(protocol, other.protocol, path)
        if note := _singular(protocol):
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
    write_atomically(out / "table.md", (_tables(shown) + "\n").encode())
    _draw(shown, out / "curves.png")


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
        return at_budget(self.solver, self.budget) if isinstance(self.solver, Calibrations) else self.solver

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
                entries[Path(label).stem] = as_calibrations(load_calibration(label))
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


def _require_comparable(protocol: JsonMapping, other: JsonMapping, path: str) -> None:
    """Refuse to show numbers beside one another that are not of the same kind."""
    for key in ("n", "metrics", "features", "reference"):
        if protocol[key] != other[key]:
            raise ValueError(f"{path} does not compare: its {key} is {other[key]}, here it is {protocol[key]}")


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


def _singular(protocol: JsonMapping) -> str:
    """A warning where a covariance is singular; else nothing."""
    n_samples = protocol["n"]
    n_images = protocol["reference"]["n"]
    dim = protocol["features"]["dim"]
    if "frechet" not in protocol["metrics"] or min(n_samples, n_images) >= dim:
        return ""
    return (
        f"{n_samples} samples and {n_images} images for {dim} features: with fewer than features a covariance is "
        f"singular and the Frechet distance is biased upwards"
    )


def _bar(cells: Sequence[_Cell], progress: bool) -> Iterable[_Cell]:
    if not progress:
        return cells
    from tqdm.auto import tqdm

    bar: Iterable[_Cell] = tqdm(cells, desc="bench", unit="cell")
    return bar


def _tables(results: Mapping[str, BenchResult]) -> str:
    """Markdown, a table for each number; the first result, called "", comes with its protocol."""
    first = results[""]
    lines = [_caption(first)]
    if note := _singular(first.protocol):
        lines += ["", f"Caution: {note}."]

    for name in first.labels:
        lines += ["", *_table(name, results)]
    if notes := _notes(first):
        lines += ["", *notes]
    return "\n".join(lines)


def _notes(result: BenchResult) -> list[str]:
    """One place for each reason why there are no numbers."""
    where = {row["note"]: f"{row['solver']} at {row['budget']}" for row in result.rows if row["note"]}
    return [f"- {place}: {note}" for note, place in where.items()]


def _caption(result: BenchResult) -> str:
    """The protocol in words."""
    about = result.protocol
    features = about["features"]
    real = about["reference"]
    used = about["versions"]
    n_seeds = len({row["seed"] for row in result.rows})
    repeats = f"mean ± standard deviation over {n_seeds} seeds" if n_seeds > 1 else "one seed"
    return (
        f"{about['model']}: {about['n']} samples each against the {real['n']} of {real['name']}, {repeats}. Features "
        f"{features['name']} ({features['hash'][:12] or 'no weights'}), reference {real['hash'][:12]}, sgm_sde "
        f"{used['sgm_sde']}, torch {used['torch']}. Columns are budgets of network calls."
    )


def _table(name: str, results: Mapping[str, BenchResult]) -> Iterable[str]:
    """Lines of one number's table."""
    first = results[""]
    budgets = _all_budgets(results)
    better = "lower" if name in DISTANCES else "higher"

    yield f"{_title(name, first)}, {better} is better:"
    yield ""
    yield f"| solver | {' | '.join(map(str, budgets))} |"
    yield "|---|" + "---:|" * len(budgets)
    for source, result in results.items():
        for solver in result.solvers:
            cells = [_shown(result.values(solver, budget, name)) for budget in budgets]
            yield f"| {_legend(solver, source)} | {' | '.join(cells)} |"

    if first.baseline:
        yield ""
        yield _baseline(first, name)


def _baseline(result: BenchResult, name: str) -> str:
    """The same number of the baseline's real data."""
    known = result.baseline
    value = _shown([known["metrics"][name]])
    return f"{known['name']}, {known['n']} real images: {value}."


def _title(name: str, result: BenchResult) -> str:
    """A number's label, with the extractor where the label does not imply it."""
    label = result.labels[name]
    features = result.protocol["features"]
    implied = features["fid"] and label in ("FID", "KID")
    return label if implied else f"{label} ({features['name']})"


def _all_budgets(results: Mapping[str, BenchResult]) -> list[int]:
    return sorted({budget for result in results.values() for budget in result.budgets})


def _legend(solver: str, source: str) -> str:
    """A solver's label, and which result it is of where that is another than the first."""
    return f"{solver} [{source}]" if source else solver


def _shown(values: Sequence[float]) -> str:
    """Mean and standard deviation, to three digits of the mean."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    digits = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 2
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('the curves are drawn with matplotlib: pip install "sgm_sde[bench]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _draw(results: Mapping[str, BenchResult], path: Path) -> None:
    """A panel for each number, network calls across."""
    plt = _pyplot()
    first = results[""]
    labels = first.labels
    n_columns = min(2, len(labels))
    n_rows = math.ceil(len(labels) / n_columns)
    size = (6.4 * n_columns, 4.2 * n_rows)  # inches

    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(labels) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, labels, strict=False):
        _panel(axis, name, results)

    axes.flat[0].legend(fontsize=7, frameon=False, loc="upper right")
    about = first.protocol
    features = about["features"]["name"]
    figure.suptitle(f"{about['model']}, {about['n']} samples, features {features}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(axis: Any, name: str, results: Mapping[str, BenchResult]) -> None:
    """One number over network calls, for each solver, with the baseline as a line."""
    first = results[""]
    for source, result in results.items():
        for i, solver in enumerate(result.solvers):
            _curve(axis, name, result, solver, source, i)
    if first.baseline:
        axis.axhline(first.baseline["metrics"][name], color="gray", linestyle=":", label=first.baseline["name"])

    axis.set(xscale="log", xlabel="network calls (NFE)", ylabel=first.labels[name])
    if name in ("frechet", "sliced") and 0 < axis.dataLim.y0 < math.inf:  # kernel distances can be negative
        axis.set_yscale("log")

    budgets = _all_budgets(results)
    axis.set_xticks(budgets, [str(budget) for budget in budgets])
    axis.minorticks_off()


def _curve(axis: Any, name: str, result: BenchResult, solver: str, source: str, i: int) -> None:
    """Mean and standard deviation of the i-th solver at its budgets."""
    measured = {budget: values for budget in result.budgets if (values := result.values(solver, budget, name))}
    means = [statistics.fmean(values) for values in measured.values()]
    deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in measured.values()]
    color = f"C{i % 10}"
    marker = "os^v"[i // 10 % 4]  # another one after each ten colours
    axis.errorbar(
        list(measured), means, yerr=deviations, capsize=2, marker=marker, markersize=4, linewidth=1.2, color=color,
        linestyle="--" if source else "-", label=_legend(solver, source),
    )  # fmt: skip
