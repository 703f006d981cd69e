"""Files, tables and plots of what a benchmark measured."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sgm_sde._utils.files import JsonMapping, file_to_write, parse_json, reading
from sgm_sde.evaluation.metrics.frechet import gaussian_frechet, moments
from sgm_sde.evaluation.metrics.kernel import LEAST, kernel_distance
from sgm_sde.evaluation.metrics.neighbours import NEIGHBOURS, prdc
from sgm_sde.evaluation.metrics.reference import Reference
from sgm_sde.evaluation.metrics.sliced import sliced_wasserstein
from sgm_sde.runs.store import write_atomically

__all__ = ["BenchResult", "Metric", "load_result"]

FORMAT = "sgm_sde bench 3"


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
        write_atomically(file_to_write(path), (json.dumps(contents, indent=1, sort_keys=True) + "\n").encode())

    def __str__(self) -> str:
        return tables({"": self})


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


def require_comparable(protocol: JsonMapping, other: JsonMapping, path: str) -> None:
    """Refuse to show numbers beside one another that are not of the same kind."""
    for key in ("n", "metrics", "features", "reference"):
        if protocol[key] != other[key]:
            raise ValueError(f"{path} does not compare: its {key} is {other[key]}, here it is {protocol[key]}")


def tables(results: Mapping[str, BenchResult]) -> str:
    """Markdown, a table for each number; the first result, called "", comes with its protocol."""
    first = results[""]
    lines = [_caption(first)]
    if note := singular(first.protocol):
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


def singular(protocol: JsonMapping) -> str:
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


def pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('the curves are drawn with matplotlib: pip install "sgm_sde[bench]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw(results: Mapping[str, BenchResult], path: Path) -> None:
    """A panel for each number, network calls across."""
    plt = pyplot()
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
