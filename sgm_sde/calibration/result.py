"""Result of a calibration: printable, storable, a setting for `sample`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from sgm_sde import grids, schemes
from sgm_sde._utils.checks import instance_of
from sgm_sde._utils.files import JsonMapping, JsonObject, file_to_write, parse_json, reading
from sgm_sde.calibration.table import Calibrated, Table
from sgm_sde.grids import GridRule
from sgm_sde.identity import Value
from sgm_sde.runs.store import write_atomically
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.trials import texts_of
from sgm_sde.schemes import Solver, Tableau

FORMAT = "sgm_sde calibration 1"
SETTINGS = "sgm_sde settings 1"
PILOT = "off the shelf"
Found = TypeVar("Found", bound=Setting)
NUMBERS = ("rmse", "stderr", "median", "worst")


@dataclass(frozen=True)
class HeldOut(Value):
    """The error of a setting on noises that nothing was fitted to, in units of the samples' standard deviation.

    Attributes:
        name: how the setting came about.
        setting: what `sample(solver=...)` takes.
        rmse: root mean square over samples and coordinates.
        stderr: standard error of `rmse`.
        median: of the samples' root mean squares.
        worst: the largest of them.

    Examples:
        >>> import sgm_sde as sg
        >>> found = HeldOut("off the shelf", Setting(sg.DDIM()), 0.02, 0.001, 0.01, 0.05)
        >>> str(found).startswith("2.000e-02 +- 1e-03, median 1.0e-02, worst 5.0e-02: off the shelf")
        True
    """

    name: str
    setting: Setting
    rmse: float
    stderr: float
    median: float
    worst: float

    def __str__(self) -> str:
        return (
            f"{self.rmse:.3e} +- {self.stderr:.0e}, median {self.median:.1e}, worst {self.worst:.1e}: "
            f"{self.name}, {self.setting}"
        )


@dataclass(frozen=True, init=False)
class Calibration(Setting):
    """The best setting for one network, process and budget; `sample(solver=...)` takes it as it is.

    Attributes:
        solver: a `Calibrated` solver, or the one off the shelf where that is as good.
        grid: its grid; None for a calibrated solver, which has its own.
        nfe: the budget of network calls.
        errors: what was compared on held-out noises (`HeldOut`), the one taken first: for it the error of the choice,
            made without the noises that it is measured on.
        reference_error: how well the exact samples are known: errors of its size say nothing.
        network_evals: what the network saw, counted in samples, in all that was done for this budget and, with
            `shared_evals`, for all budgets.
        shared_evals: what it saw for the exact trajectories, which all budgets share.
        seconds: time spent on this budget.
        protocol: how it was fitted, as JSON values.
        remarks: sentences on what to know about it.

    Raises:
        ValueError: for errors without one off the shelf, and a solver of another budget.

    Examples:
        >>> import sgm_sde as sg
        >>> setting = Setting(sg.DDIM(), sg.grids.LogSNR())
        >>> fitted = Calibration([HeldOut("off the shelf", setting, 0.02, 0.001, 0.01, 0.05)], nfe=8)
        >>> fitted.budget, fitted.error
        (8, 0.02)
    """

    nfe: int = 0
    errors: tuple[HeldOut, ...] = field(default=(), compare=False)
    reference_error: float = field(default=0.0, compare=False)
    network_evals: int = field(default=0, compare=False)
    shared_evals: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    protocol: JsonMapping = field(default_factory=dict, compare=False)
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def __init__(
        self,
        errors: Sequence[HeldOut],
        nfe: int,
        *,
        reference_error: float = 0.0,
        network_evals: int = 0,
        shared_evals: int = 0,
        seconds: float = 0.0,
        protocol: JsonMapping | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        taken = _taken(errors, nfe)
        super().__init__(taken.solver, taken.grid)
        values = {
            "nfe": nfe, "errors": tuple(errors), "reference_error": reference_error, "network_evals": network_evals,
            "shared_evals": shared_evals, "seconds": seconds, "protocol": dict(protocol or {}),
            "remarks": tuple(remarks),
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def budget(self) -> int:
        """The number of network calls that it was fitted for."""
        return self.nfe

    @property
    def error(self) -> float:
        """Root-mean-square error on held-out noises, in units of the samples' standard deviation."""
        return self.errors[0].rmse

    @property
    def off_the_shelf(self) -> HeldOut:
        """The best setting without a fit, as `pilot` finds it."""
        return next(found for found in self.errors if found.name.startswith(PILOT))

    @property
    def is_fitted(self) -> bool:
        """True if the solver is a calibrated one."""
        return isinstance(self.solver, Calibrated)

    def __str__(self) -> str:
        first = self.errors[0]
        shelf = self.off_the_shelf
        calls = "1 call" if self.nfe == 1 else f"{self.nfe} calls"
        lines = [
            f"at {calls}: error {first.rmse:.3e} +- {first.stderr:.0e} of the samples' standard deviation, "
            f"{self._beside(first, shelf)}",
            f"on {self._noises()}, whose exact samples are known to {self.reference_error:.0e}; the first is taken:",
            "  error      +-     median   worst",
            *(f"  {line}" for line in self._lines()),
            f"in {self.seconds:.1f} s the network evaluated {self.network_evals} samples, and {self.shared_evals} for "
            f"the exact ones",
            *self.remarks,
        ]
        return "\n".join(lines)

    def _noises(self) -> str:
        """The held-out noises in words."""
        hard = self.protocol.get("hard_held_out", 0)
        of = self.protocol.get("screened_held_out", 0)
        further = f" and {hard} of {of} more, the hardest" if hard < of else f" and {of} more"
        return f"{self.protocol.get('held_out', '?')} held-out noises{further if hard else ''}"

    def _lines(self) -> list[str]:
        """The settings compared, one a line: fits by how they came about, others by solver and grid."""
        texts = texts_of([one.setting for one in self.errors])
        names = [
            one.name if isinstance(one.setting.solver, Calibrated) else f"{one.name}: {text}"
            for one, text in zip(self.errors, texts, strict=True)
        ]
        return [
            f"{one.rmse:.3e}  {one.stderr:.0e}  {one.median:.1e}  {one.worst:.1e}  {name}"
            for one, name in zip(self.errors, names, strict=True)
        ]

    __repr__ = __str__

    def _beside(self, first: HeldOut, shelf: HeldOut) -> str:
        """Ratio of the error to that off the shelf."""
        if not self.is_fitted:
            return "the best setting off the shelf"
        if not shelf.rmse:
            return "as off the shelf, where nothing is off"
        ratio = shelf.rmse / first.rmse if first.rmse else math.inf
        if ratio >= 1.1:
            return f"{ratio:.2g} times less than the best setting off the shelf ({shelf.rmse:.3e})"
        median = shelf.median / first.median if first.median else math.inf
        return f"as off the shelf but for chance, with a median {median:.2g} times less"

    def save(self, path: Path | str) -> None:
        """Write it as JSON, which `load_calibration` reads."""
        Calibrations({self.nfe: self}).save(path)


def _taken(errors: Sequence[HeldOut], nfe: int) -> Setting:
    """The first setting of those compared at a budget, which it must be for; one is off the shelf."""
    if not any(one.name.startswith(PILOT) for one in errors):
        raise ValueError(f"what was compared must have a setting {PILOT!r}, got {[one.name for one in errors]}")
    taken = errors[0].setting
    budget = taken.solver.budget
    if budget not in (None, nfe):
        raise ValueError(f"the solver taken makes {budget} network calls, got nfe={nfe}")
    return taken


class Calibrations(Mapping[int, Calibration]):
    """Calibrations of one network by their budget of network calls.

    Examples:
        >>> import sgm_sde as sg, torch
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3).score(sde)
        >>> found = sg.calibrate(score, sde, (16, 1), nfe=(1, 2), held_out=16, seed=0)
        >>> list(found), found[2].nfe
        ([1, 2], 2)
    """

    def __init__(self, found: Mapping[int, Calibration]) -> None:
        self._found = dict(found)

    def __getitem__(self, nfe: int) -> Calibration:
        try:
            return self._found[nfe]
        except KeyError:
            raise KeyError(f"no table for {nfe} network calls; there are tables for {list(self._found)}") from None

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.values()), self.summary])

    __repr__ = __str__

    @property
    def summary(self) -> str:
        """The errors by budget, beside those off the shelf, as a table."""
        lines = ["calls  error    off the shelf  ratio"]
        for nfe, one in self.items():
            shelf = one.off_the_shelf.rmse
            ratio = one.error / shelf if shelf else 1.0
            lines.append(f"{nfe:5}  {one.error:.1e}  {shelf:13.1e}  {ratio:5.2f}")
        return "\n".join(lines)

    def save(self, path: Path | str) -> None:
        """Write them as JSON, which `load_calibration` reads."""
        contents = {"format": FORMAT, "budgets": [to_json(found) for found in self.values()]}
        write_atomically(file_to_write(path), (json.dumps(contents, indent=1) + "\n").encode())


def to_json(found: Calibration) -> JsonObject:
    """A calibration as JSON values."""
    return {
        "nfe": found.nfe, "reference_error": found.reference_error, "network_evals": found.network_evals,
        "shared_evals": found.shared_evals, "seconds": found.seconds, "protocol": dict(found.protocol),
        "remarks": list(found.remarks),
        "errors": [
            {
                "name": one.name, **{key: _written(getattr(one, key)) for key in NUMBERS},
                "solver": _written(one.setting.solver), "grid": _written(one.setting.grid),
            }
            for one in found.errors
        ],
    }  # fmt: skip


def from_json(data: JsonMapping) -> Calibration:
    """The calibration of JSON values.

    Raises:
        ValueError: for values that are none.
    """
    try:
        return Calibration(
            [_held_out(one) for one in data["errors"]],
            int(data["nfe"]),
            reference_error=float(data["reference_error"]),
            network_evals=int(data["network_evals"]),
            shared_evals=int(data["shared_evals"]),
            seconds=float(data["seconds"]),
            protocol=dict(data["protocol"]),
            remarks=[str(remark) for remark in data["remarks"]],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the JSON of a calibration: {type(error).__name__} {error}") from None


def _held_out(data: JsonMapping) -> HeldOut:
    setting = _setting(data)
    rmse, stderr, median, worst = (float(_read(data[key])) for key in NUMBERS)
    return HeldOut(str(data["name"]), setting, rmse, stderr, median, worst)


def load_calibration(path: Path | str) -> Calibration | Calibrations:
    """The calibration, or those of several budgets, that `save` wrote.

    Raises:
        ValueError: for a file that holds none.
        OSError: if it cannot be read.

    Examples:
        >>> import tempfile, torch
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3).score(sde)
        >>> path = tempfile.mkdtemp() + "/table.json"
        >>> sg.calibrate(score, sde, (16, 1), nfe=2, held_out=16, seed=0).save(path)
        >>> sg.sample(score, sde, (4, 1), solver=sg.calibration.load_calibration(path), seed=1).nfe
        2
    """
    with reading(path, "calibration"):
        contents = parse_json(Path(path).read_bytes())
        if not isinstance(contents, dict) or contents.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        found = {one.nfe: one for one in map(from_json, contents["budgets"])}
        if not found:
            raise ValueError("it has no budget")
    return Calibrations(found) if len(found) > 1 else next(iter(found.values()))


def as_calibrations(found: Calibration | Calibrations) -> Calibrations:
    """One calibration as a mapping of one."""
    return found if isinstance(found, Calibrations) else Calibrations({found.nfe: found})


def save_settings(found: Mapping[int, Setting], path: Path | str) -> None:
    """Write settings by budget, such as those of `pilot`, as JSON, which `load_settings` reads.

    Raises:
        TypeError: for what is no setting.
        OSError: if it cannot be written.
    """
    for one in found.values():
        instance_of("each of the settings", one, Setting, "a Setting, as pilot finds it")
    budgets = [{"nfe": nfe, "solver": _written(one.solver), "grid": _written(one.grid)} for nfe, one in found.items()]
    contents = {"format": SETTINGS, "budgets": budgets}
    write_atomically(file_to_write(path), (json.dumps(contents, indent=1) + "\n").encode())


def load_settings(path: Path | str) -> Mapping[int, Setting]:
    """The settings by budget of a file that `save_settings` wrote, or of one of calibrations.

    Raises:
        ValueError: for a file that holds none.
        OSError: if it cannot be read.

    Examples:
        >>> import tempfile
        >>> import sgm_sde as sg
        >>> path = tempfile.mkdtemp() + "/best.json"
        >>> save_settings({5: sg.Setting("ddim")}, path)
        >>> load_settings(path)[5].budget
        5
    """
    with reading(path, "calibration"):
        contents = parse_json(Path(path).read_bytes())
    if not isinstance(contents, dict) or contents.get("format") != SETTINGS:
        return as_calibrations(load_calibration(path))

    with reading(path, "settings"):
        found = {int(one["nfe"]): _setting(one, int(one["nfe"])) for one in contents["budgets"]}
        if not found:
            raise ValueError("it has no budget")
    return found


def _setting(data: JsonMapping, nfe: int | None = None) -> Setting:
    return Setting(_read(data["solver"]), _read(data["grid"]), nfe)


def at_budget(known: Mapping[int, Found], nfe: int | None) -> Found:
    """The setting for a budget; the only one, if no budget is named.

    Raises:
        ValueError: where there is none.
    """
    if nfe is None and len(known) == 1:
        return next(iter(known.values()))
    if nfe is None or nfe not in known:
        wanted = "give one of them as nfe=" if nfe is None else f"got nfe={nfe}"
        what = "calibrated solvers" if isinstance(known, Calibrations) else "settings"
        raise ValueError(f"there are {what} for {_budgets(known)} network calls: {wanted}")
    return known[nfe]


def _budgets(known: Iterable[int]) -> str:
    """The budgets in words.

    Examples:
        >>> _budgets((4, 6, 8))
        '4, 6 and 8'
    """
    *most, last = map(str, known)
    return f"{', '.join(most)} and {last}" if most else last


# --- solvers and grids off the shelf as JSON -------------------------------------------------------------------------

MADE_OF: dict[str, type] = {
    cls.__name__: cls
    for module in (schemes, grids)
    for cls in vars(module).values()
    if isinstance(cls, type) and is_dataclass(cls) and issubclass(cls, Solver | GridRule | Tableau)
} | {cls.__name__: cls for cls in (Calibrated, Table)}


def _written(value: object) -> object:
    """A solver or rule by its class and fields."""
    if isinstance(value, Calibrated):
        return {"class": "Calibrated", **asdict(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__} | {f.name: _written(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"class": "float", "value": str(value)}
    return [_written(item) for item in value] if isinstance(value, tuple) else value


def _read(value: object) -> Any:
    """Inverse of `_written`, for classes of this library alone."""
    if isinstance(value, list):
        return tuple(map(_read, value))
    if not isinstance(value, dict):
        return value
    given = dict(value)
    name = given.pop("class", "Table")
    if name == "float":
        return float(given["value"])
    if name not in MADE_OF:
        raise ValueError(f"unknown class {name!r}")
    return MADE_OF[name](**{key: _read(item) for key, item in given.items()})
