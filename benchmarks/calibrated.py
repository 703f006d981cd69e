"""Calibrated solvers on the test beds: fitted on some noises, measured on others.

    python -m benchmarks.calibrated measure --half report     # one file a bed in out/beds/calibrated, kept
    python -m benchmarks.calibrated report --out out/bench    # tables and picture of what was measured
    python -m benchmarks.calibrated store                     # what was measured into benchmarks/beds/calibrated.json
    python -m benchmarks.calibrated frechet                   # digits and clothes: distances to data and to the flow
    python -m benchmarks.calibrated peers --names moons-vp    # other libraries' samplers on the same noises
    python -m benchmarks.calibrated stated --names points     # errors as stated, and on 2048 further noises
    python -m benchmarks.calibrated cpu                       # CPU seconds beside the network's, by dimensions

On each bed (`benchmarks/beds.py`) `calibrate` fits to noises of its own and compares on further ones of its own. What
it returns is run on the bed's noises, against the bed's reference, an RK4 solution in double precision. Beside it
stand, on the same noises: what the pilot inside takes; the least error of the frozen registry
(`benchmarks/beds/best.json`), which was chosen on these very noises; and the best of three multistep methods, chosen on
these noises too, on a grid as GITS (Chen et al., 2024, arXiv:2405.11326) places it: dynamic programming on the
deviation of Euler steps from exact trajectories.

A bed has 2 to 128 noises, and where single ones end in another mode these make the error. So the three (ours, the
pilot's and the setting that was best on the bed) also run on 256 further noises, against a tight run of the library;
the better of the two others is the best there.

No constant of the method was chosen on the report half.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sgm_sde as sg
from benchmarks import beds, command, pictures
from benchmarks import peers as others
from benchmarks.beds import Bed
from benchmarks.defaults import frozen, geometric
from benchmarks.pilots import frozen_setting, kwargs_for, with_noises
from benchmarks.stopwatch import Stopwatch
from sgm_sde.calibration import closed
from sgm_sde.calibration.flow import Flow
from sgm_sde.calibration.result import as_calibrations
from sgm_sde.data.images import to_uint8
from sgm_sde.engine import coordinates
from sgm_sde.engine.noise import resolve_seeds
from sgm_sde.evaluation.bench import SHIPPED, black_white
from sgm_sde.evaluation.metrics import gaussian_frechet
from sgm_sde.evaluation.metrics.features import load_extractor
from sgm_sde.evaluation.metrics.frechet import moments
from sgm_sde.evaluation.metrics.reference import load_reference
from sgm_sde.grids import GridRule
from sgm_sde.sampling.trials import REFERENCE

BUDGETS = (4, 5, 6, 8, 10, 12)
NOISES = 64
VARIED = (16, 64, 256)  # noises of the cost curve
HELD_OUT = 128
FURTHER = 256  # noises beside those of a bed, of which it has 2 to 128
SEED = 1
FIT = 6  # of the present form of fits and of the choice: numbers of an earlier one are measured again
HALF, MOST = 0.5, 0.7  # of the best off the shelf: what is asked of a fit
FEWER = 8  # calls up to which it is half
DPMPP2M = sg.Setting("dpm++2m", "karras")
MULTISTEP = ("ipndm3", "dpm++2m", "unipc3")
LARGEST = 80.0
MANY = 2048  # noises that stated errors are compared on
SAMPLES = {"digits": 3000, "fashion": 3000}  # of a Frechet distance
SHIPPED_NOISES = {"digits": 128, "fashion": 64}  # of the tables that ship
DIMENSIONS = (64, 3072)  # of the networks that CPU seconds are measured on
CACHE = beds.CACHE / "calibrated"
STORED = beds.HERE / "calibrated.json"  # of the last full run


Found = Sequence[dict[str, Any]]  # what was measured, bed by bed


class Timed(nn.Module):
    """A module whose calls are timed; its parameters tell dtype and device."""

    def __init__(self, net: nn.Module, watch: Stopwatch) -> None:
        super().__init__()
        self.net = net
        self.timed = watch.around(net)
        self.train(net.training)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's output."""
        output: Tensor = self.timed(*args, **kwargs)
        return output


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


def further(bed: Bed, calls: int) -> Bed | None:
    """The bed with noises of its own seed, and their exact ends by a tight run; None for the large networks."""
    if bed.noise[0].numel() > 256 and bed.weights:
        return None
    return with_noises(bed, FURTHER, SEED, calls)


def gits_levels(bed: Bed, budgets: Sequence[int]) -> dict[int, list[float]]:
    """Noise levels by dynamic programming on the deviation of Euler steps, by budget.

    They begin where EDM's do, in units of the data, or at T: a call at much more noise would be wasted.
    """
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
        best[int((t.exp() > LARGEST * bed.data_std).sum())] = 0.0
        for _ in range(n - 1):
            best, before = (best[:, None] + cost).min(0)
            back.append(before)
        path = [K - 1]
        for before in reversed(back):
            path.append(int(before[path[-1]]))
        found[n] = t[path[::-1]].exp().tolist()
    return found


def fit_to(
    bed: Bed, score: sg.scores.Score, budgets: Sequence[int], noises: int, folder: Path | None = None
) -> sg.calibration.Calibrations:
    """The calibration for a bed; what it says of itself is in its remarks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sg.calibrate(
            score, bed.sde, (noises, *bed.shape[1:]), nfe=budgets, held_out=HELD_OUT, seed=SEED, dtype=bed.dtype,
            model_kwargs=kwargs_for(bed, noises), checkpoint=folder,
        )  # fmt: skip


def measure(bed: Bed, budgets: Sequence[int], noises: int = NOISES, peers: bool = True) -> dict[str, Any]:
    """All numbers of a bed, by budget; interrupted, it continues with the budgets that are missing."""
    watch = Stopwatch(time.process_time)
    folder = CACHE / f"{bed.hash}-{noises}"
    score = bed.score.map_net(lambda net: Timed(net, watch) if isinstance(net, nn.Module) else watch.around(net))
    start = time.process_time()
    found = fit_to(bed, score, budgets, noises, folder)
    total, network = time.process_time() - start, watch.seconds
    levels = gits_levels(bed, budgets) if peers else {}
    more = further(bed, max(one.protocol["reference_nfe"] for one in found.values()))
    rows: dict[int, dict[str, Any]] = {}
    for n, one in found.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, shelf = (squares(bed, setting, n) for setting in (one, one.off_the_shelf.setting))
            gits = {}
            if peers:
                rule = GivenLevels(tuple(levels[n]))
                gits = {name: float(squares(bed, name, n, rule).mean().sqrt()) for name in MULTISTEP}
            wide = {}
            if more is not None:
                three = {"ours": (one,), "pilot": (one.off_the_shelf.setting,), "best": frozen_setting(bed, n)}
                errors = {who: squares(more, solver, n, *grid) for who, (solver, *grid) in three.items()}
                wide = {who: [float(e.mean().sqrt()), float(e.sqrt().median())] for who, e in errors.items()}
                wide["best"] = min(wide["best"], wide["pilot"])
        change = ours - shelf
        rows[n] = {
            "error": float(ours.mean().sqrt()), "pilot": float(shelf.mean().sqrt()), "gits": gits,
            "all": {e.name: float(squares(bed, e.setting, n).mean().sqrt()) for e in reversed(one.errors)},
            "further": wide, "median": float(ours.sqrt().median()), "change": float(change.mean()),
            "change_stderr": float(change.std()) / math.sqrt(len(change)), "taken": one.errors[0].name,
            "held_out": {e.name: [e.rmse, e.stderr, e.median, e.worst] for e in reversed(one.errors)},
            "network_evals": one.network_evals, "shared_evals": one.shared_evals, "remarks": list(one.remarks),
            "fit": FIT,
        }  # fmt: skip
    return {"bed": bed.name, "half": bed.half, "seconds": total, "network": network, "budgets": rows}


def compare_stated(bed: Bed, budgets: Sequence[int]) -> None:
    """Print the errors that a calibration states beside those on many further noises."""
    found = fit_to(bed, bed.score, budgets, NOISES)
    more = with_noises(bed, MANY, SEED, max(one.protocol["reference_nfe"] for one in found.values()))
    for n, one in found.items():
        for who, stated in (("calibrated", one.errors[0]), ("off the shelf", one.off_the_shelf)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                each = squares(more, stated.setting, n)
            error = float(each.mean().sqrt())
            spread = float(each.std()) / math.sqrt(MANY) / (2 * error)
            median = float(each.median().sqrt())
            sys.stdout.write(
                f"{bed.name} at {n} calls, {who}: stated {stated.rmse:.3g} +- {stated.stderr:.1g}, on {MANY} further "
                f"noises {error:.3g} +- {spread:.1g}, medians {stated.median:.2g} and {median:.2g}\n"
            )
        sys.stdout.flush()


def peers_best(bed: Bed, nfe: int) -> tuple[float, str]:
    """The least error of the deterministic samplers of other libraries, and whose it is.

    Each runs on three grids in EDM's coordinates and is denoised at its last level, which is one of the calls. The
    best is chosen on these noises.
    """
    sde, best = bed.sde, (math.inf, "none")
    calls = 0

    def denoiser(y: Tensor, s: Any) -> Tensor:
        nonlocal calls
        calls += 1
        t = sde.time(torch.tensor(-2 * math.log(float(s)), dtype=torch.float64)).clamp(sde.eps, sde.T)
        x = (float(sde.alpha(t)) * y).to(bed.dtype)
        return bed.score.predict("data", x, t.to(x.dtype).expand(len(x)), **bed.model_kwargs).to(y.dtype)

    for sampler, grid in itertools.product(others.SAMPLERS, ("uniform", "log-snr", "karras")):
        steps = (nfe - 1 - sampler.extra_nfe) // sampler.nfe_per_step
        if sampler.stochastic or sampler.peer not in others.available() or steps < 1:
            continue
        times = torch.tensor(sg.grids.rule(grid)(sde, steps).times, dtype=torch.float64)
        sigmas = coordinates.noise_level(sde, times)
        if not bool(sigmas.isfinite().all()):
            continue
        calls = 0
        try:
            y = sampler.run(denoiser, sigmas, float(sigmas[0]) * bed.noise.double())
            x = denoiser(y, sigmas[-1])
        except (ValueError, IndexError, AssertionError, ZeroDivisionError):  # too few steps for this method
            continue
        error = beds.compare(bed, x).rmse
        if calls <= nfe and error < best[0]:
            best = error, f"{sampler.key} on {grid}"
    return best


def file_of(bed: Bed, noises: int = NOISES) -> Path:
    """Where a bed's numbers are kept."""
    return CACHE / f"{bed.hash}-{noises}.json"


def keep_peers(bed: Bed, budgets: Sequence[int]) -> None:
    """Measure other libraries on a bed, at the budgets that they were not measured at."""
    path = file_of(bed)
    known = json.loads(path.read_text()) if path.exists() else {"bed": bed.name, "half": bed.half, "budgets": {}}
    stored = json.loads(STORED.read_text()).get(path.stem, {}) if STORED.exists() else {}
    peers = stored.get("peers", {}) | known.get("peers", {})
    for nfe in budgets:
        if str(nfe) not in peers:
            peers[str(nfe)] = peers_best(bed, nfe)
        error, who = peers[str(nfe)]
        sys.stdout.write(f"{bed.name} at {nfe} calls: {error:.4f}, {who}\n")
        sys.stdout.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | {"peers": peers}) + "\n")


def keep(bed: Bed, noises: int, budgets: Sequence[int], peers: bool = True) -> None:
    """Measure a bed at the budgets that it was not measured at, here or for the repository's file."""
    path = file_of(bed, noises)
    known = rows_of(bed, noises) or {"budgets": {}}
    missing = [n for n in budgets if known["budgets"].get(str(n), {}).get("fit") != FIT]
    if not missing:
        return
    running = path.with_suffix(".running")
    interrupted = running.exists()
    running.parent.mkdir(parents=True, exist_ok=True)
    running.touch()
    found = measure(bed, missing, noises, peers)
    shown = {n: f"{row['error']:.3g}/{row['pilot']:.3g}" for n, row in found["budgets"].items()}
    found["budgets"] = known["budgets"] | {str(n): row for n, row in found["budgets"].items()}
    spent = [found.pop(name) for name in ("seconds", "network")]
    if not interrupted:  # else it is not known
        found["spent"] = {",".join(map(str, missing)): spent}
    found["spent"] = known.get("spent", {}) | found.get("spent", {})
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found) + "\n")
    partial.replace(path)
    running.unlink()
    sys.stdout.write(f"{bed.name}: {shown}\n")
    sys.stdout.flush()


def fitted(name: str, budgets: Sequence[int]) -> sg.calibration.Calibrations:
    """Tables for a shipped network, with labels in turn; interrupted, it continues with what is in the folders."""
    model = sg.load_model(name)
    noises = SHIPPED_NOISES[name]
    found = sg.calibrate(
        model.score, model.sde, (noises, *model.shape), nfe=budgets, held_out=HELD_OUT, seed=SEED,
        model_kwargs={"y": sg.PerSample(torch.arange(noises) % 10)}, checkpoint=CACHE / f"{name}-{noises}",
    )  # fmt: skip
    # What ships with the network: the solver taken, and what it is compared with.
    short = {
        n: sg.Calibration(
            [one.errors[0], one.off_the_shelf][: 1 + one.is_fitted], n, reference_error=one.reference_error,
            network_evals=one.network_evals, shared_evals=one.shared_evals, seconds=one.seconds,
            protocol=one.protocol, remarks=one.remarks,
        )
        for n, one in found.items()
    }  # fmt: skip
    sg.calibration.Calibrations(short).save(CACHE / f"{name}_solvers.json")
    return found


def shipped(name: str) -> sg.calibration.Calibrations:
    """The tables that ship with a network."""
    file = resources.files("sgm_sde") / "zoo" / "assets" / f"{name}_solvers.json"
    return as_calibrations(sg.calibration.load_calibration(str(file)))


def frechet(name: str, n: int, found: Mapping[int, sg.Calibration], of: str) -> None:
    """Frechet distances of a shipped network's samples to data, and to the samples of its exact flow.

    Errors of single samples raise a distance by what falls as 1 / n, so that to the flow is also extrapolated, from n
    and from half of the samples (Chong and Forsyth, 2019, arXiv:1911.07023). They are kept by number of samples, and by
    what calibrated solvers they are `of`.
    """
    model = sg.load_model(name)
    extractor = load_extractor(SHIPPED[name][0], model.shape, device="cpu")
    levels = black_white(model)
    real = load_reference(SHIPPED[name][1], extractor, model.shape, levels)
    labels = torch.arange(n) % 10

    def samples(solver: Any, nfe: int) -> Tensor:
        parts = []
        for k in range(0, n, 256):
            kwargs = {"y": sg.PerSample(labels[k : min(k + 256, n)])}
            shape, seed = (min(256, n - k), *model.shape), 1000 + k
            x = sg.sample(model.score, model.sde, shape, solver=solver, nfe=nfe, seed=seed, model_kwargs=kwargs).x
            parts.append(extractor(to_uint8(x, levels) if levels is not None else x))
        return torch.cat(parts)

    path = CACHE / f"{name}-frechet-{n}-{of}.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    kept = CACHE / f"{name}-frechet-{n}.pt"
    if not kept.exists():
        torch.save(samples(REFERENCE, 48), kept)
    exact = torch.load(kept)

    def to_flow(features: Tensor, n: int) -> float:
        return gaussian_frechet(*moments(features[:n]), *moments(exact[:n]))

    rows["exact"] = [gaussian_frechet(*moments(exact), real.mean, real.cov), 0.0, 0.0]
    for nfe, one in found.items():
        settings = {"calibrated": one, "off the shelf": one.off_the_shelf.setting, "dpm++2m, karras": DPMPP2M}
        for label, setting in settings.items():
            if f"{label} {nfe}" in rows:
                continue
            features = samples(setting, nfe)
            to_data = gaussian_frechet(*moments(features), real.mean, real.cov)
            whole, half = to_flow(features, n), to_flow(features, n // 2)
            rows[f"{label} {nfe}"] = [to_data, whole, 2 * whole - half]
            path.write_text(json.dumps(rows, indent=1) + "\n")
    sys.stdout.write(f"{name}: {n} samples against {real.name}: {json.dumps(rows, indent=1)}\n")


def spend(dimensions: int, budgets: Sequence[int]) -> None:
    """CPU seconds of a fit beside those of its network: a Gaussian's denoiser and two layers of random weights."""
    generator = torch.Generator().manual_seed(0)
    variance = torch.logspace(-4, 0, dimensions)
    first = torch.randn(dimensions, 64, generator=generator) / dimensions**0.5
    last = torch.randn(64, dimensions, generator=generator) / 64**0.5

    def denoised(x: Tensor, s: Tensor) -> Tensor:
        s2 = s[:, None].square()
        found: Tensor = x * variance / (variance + s2)
        return found + s2 / (1 + s2) * variance.sqrt() * ((x / (1 + s2).sqrt() @ first).tanh() @ last)

    for nfe in budgets:
        watch = Stopwatch(time.process_time)
        score = sg.from_denoiser(watch.around(denoised), sg.EDMSDE())
        start = time.process_time()
        found = sg.calibrate(score, sg.EDMSDE(), (NOISES, dimensions), nfe=nfe, held_out=HELD_OUT, seed=SEED)
        total = time.process_time() - start
        sys.stdout.write(
            f"{dimensions} dimensions at {nfe} calls: {total - watch.seconds:.1f} CPU s beside {watch.seconds:.1f} of "
            f"the network; error {found.error:.2g}, off the shelf {found.off_the_shelf.rmse:.2g}\n"
        )
        sys.stdout.flush()


# --------------------------------------------------------------------------------------------------------------- report


def rows_of(bed: Bed, noises: int) -> dict[str, Any] | None:
    """What was measured on a bed, here or for the repository's file."""
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    row: dict[str, Any] | None = stored.get(file_of(bed, noises).stem)
    if not file_of(bed, noises).exists():
        return row
    return joined(row, json.loads(file_of(bed, noises).read_text()))


def joined(stored: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """What was measured of a bed before and now, by budget; CPU seconds, in all and in the network, by run.

    Runs whose budgets were all measured again are forgotten.
    """
    if stored is None:
        return found
    both = {name: stored.get(name, {}) | found.get(name, {}) for name in ("budgets", "peers")}
    again = set(found.get("budgets", {}))
    earlier = {run: spent for run, spent in stored.get("spent", {}).items() if not set(run.split(",")) <= again}
    return stored | found | both | {"spent": earlier | found.get("spent", {})}


def measured(half: str, noises: int = NOISES) -> list[dict[str, Any]]:
    """What was measured on the beds of a half in the present form, with the frozen best."""
    known, found = frozen(), []
    for bed in beds.load(half):
        row = rows_of(bed, noises) or {"budgets": {}}
        row["budgets"] = {int(n): cells for n, cells in row["budgets"].items() if cells.get("fit") == FIT}
        if row["budgets"]:
            for cells in row["budgets"].values():  # what is not finite has no number in JSON
                cells["gits"] = {name: math.inf if error is None else error for name, error in cells["gits"].items()}
            row["doubt"] = known[bed.name]["doubt"]
            row["best"] = {int(n): value["rmse"] or math.inf for n, value in known[bed.name]["best"].items()}
            found.append(row)
    return found


def store() -> None:
    """Write what was measured, rounded, into the repository's file."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}") if math.isfinite(value) else None
        if isinstance(value, dict):
            return {name: short(each) for name, each in value.items() if name not in ("held_out", "remarks")}
        return [short(each) for each in value] if isinstance(value, list) else value

    found = json.loads(STORED.read_text()) if STORED.exists() else {}
    for path in sorted(CACHE.glob("*-*.json")):
        if path.stem[:16].isalnum():
            found[path.stem] = joined(found.get(path.stem), short(json.loads(path.read_text())))
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(found.items()))
    STORED.write_text(f"{{\n{lines}\n}}\n")


def ratios(found: Found, nfe: int, other: str) -> dict[str, float]:
    """The calibrated error over another, by bed, neither below what the reference is known to; where both are."""
    result = {}
    for row in found:
        cells = row["budgets"].get(nfe)
        if cells is None:
            continue
        errors = {
            "best": row["best"][nfe],
            "pilot": cells["pilot"],
            "gits": min(cells["gits"].values(), default=math.inf),
            "peers": row.get("peers", {}).get(str(nfe), [math.nan])[0],
        }
        if errors[other] is None or math.isnan(errors[other]):
            continue
        result[row["bed"]] = max(cells["error"], row["doubt"]) / max(errors[other], row["doubt"])
    return result


def further_ratios(found: Found, nfe: int, other: str, medians: bool = False) -> dict[str, float]:
    """The calibrated error over another on further noises, or that of medians over them, by bed."""
    cells = {row["bed"]: row["budgets"][nfe].get("further") for row in found if nfe in row["budgets"]}
    i = 1 if medians else 0  # of (error, median)
    return {bed: errors["ours"][i] / errors[other][i] for bed, errors in cells.items() if errors}


def tables(half: str) -> str:
    """The tables of a half."""
    found = measured(half)
    budgets = sorted({nfe for row in found for nfe in row["budgets"]})
    whole = [row for row in found if set(row["budgets"]) == set(budgets)]
    lines = [
        f"## {half}: {len(found)} beds, fitted to {NOISES} noises", "",
        *_on_own_noises(found, budgets), "",
        "CPU seconds beside the network's, all budgets:", "", _beside(whole, budgets), "",
        "Samples that the network evaluated:", "", *_evaluated(found, budgets), "",
        f"Cells above {HALF} at up to {FEWER} calls, or above {MOST} beyond:", "",
        *_above({n: ratios(found, n, "best") for n in budgets}, {n: HALF if n <= FEWER else MOST for n in budgets}), "",
        f"On {FURTHER} further noises of each bed:", "", *_on_further_noises(found, budgets), "",
        "Of these, worse than the pilot's choice:", "",
        *_above({n: further_ratios(found, n, "pilot") for n in budgets}, dict.fromkeys(budgets, 1.0)), "",
        "Over the best deterministic sampler of diffusers, k-diffusion and azula:", "",
        *_over_peers(found, budgets), "",
        *_bed_by_bed(found, budgets), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in markdown; its first column is left where the cells are names."""
    columns = head.count(",") + 1
    first = "---:" if rows and rows[0][0].isdigit() else "---"
    lines = ["| " + head.replace(", ", " | ") + " |", "|" + "|".join([first, *["---:"] * (columns - 1)]) + "|"]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]


def _on_own_noises(found: Found, budgets: Sequence[int]) -> list[str]:
    """Ratios on the noises of the beds."""
    rows = []
    for nfe in budgets:
        cells = [row["budgets"][nfe] for row in found if nfe in row["budgets"]]
        if not cells:
            continue

        best, pilot, gits = (ratios(found, nfe, other) for other in ("best", "pilot", "gits"))
        worse = sum(cell["change"] > 2 * cell["change_stderr"] > 0 for cell in cells)
        rows.append([
            str(nfe), str(len(best)), *_spread(list(best.values())), _mean(pilot), str(worse), _mean(gits),
        ])  # fmt: skip
    head = "calls, beds, calibrated / best, worst, at most .5, at most .7, / pilot"
    return _table(f"{head}, worse by 2 s.e., / GITS-like", rows)


def _beside(found: Found, budgets: Sequence[int]) -> str:
    """CPU seconds without the network's of the fits that were made for all budgets at once."""
    run = ",".join(map(str, budgets))
    spent = [row["spent"].get(run, [None, None]) for row in found]
    beside = [total - network for total, network in spent if None not in (total, network)] or [math.nan]
    return f"- at most {max(beside):.0f}, on average {sum(beside) / len(beside):.0f} of {len(beside)} beds"


def _evaluated(found: Found, budgets: Sequence[int]) -> list[str]:
    """Samples that the network evaluated, for a budget and for what budgets share."""
    rows = []
    for nfe in budgets:
        cells = [row["budgets"][nfe] for row in found if nfe in row["budgets"]]
        if cells:
            own, shared = ([cell[name] for cell in cells] for name in ("network_evals", "shared_evals"))
            counts = (len(cells), statistics.median(own), max(own), statistics.median(shared), max(shared))
            rows.append([str(nfe), *(f"{count:.0f}" for count in counts)])
    return _table("calls, beds, median, at most, shared: median, shared: at most", rows)


def _above(by_budget: dict[int, dict[str, float]], limits: dict[int, float]) -> list[str]:
    """The beds whose ratio is above a limit at some budget."""
    cells: dict[str, list[str]] = {}
    for nfe, of_beds in by_budget.items():
        for bed, ratio in of_beds.items():
            if ratio > limits[nfe]:
                cells.setdefault(bed, []).append(f"{ratio:.2f} at {nfe}")
    return [f"- {bed}: {', '.join(those)}" for bed, those in cells.items()]


def _on_further_noises(found: Found, budgets: Sequence[int]) -> list[str]:
    """Ratios on further noises, and those of the medians over noises."""
    rows = []
    for nfe in budgets:
        best, pilot = (further_ratios(found, nfe, other) for other in ("best", "pilot"))
        if best:
            medians = further_ratios(found, nfe, "best", medians=True)
            rows.append([
                str(nfe), str(len(best)), *_spread(list(best.values())), _mean(medians), _mean(pilot),
                f"{max(pilot.values()):.2f}",
            ])  # fmt: skip
    return _table("calls, beds, calibrated / best, worst, at most .5, at most .7, of medians, / pilot, worst", rows)


def _over_peers(found: Found, budgets: Sequence[int]) -> list[str]:
    """Ratios to other libraries, where they were run."""
    peers = {nfe: list(ratios(found, nfe, "peers").values()) for nfe in budgets}
    rows = [[str(nfe), str(len(those)), *_spread(those)] for nfe, those in peers.items() if those]
    return _table("calls, beds, calibrated / best of the libraries, worst, at most .5, at most .7", rows)


def _bed_by_bed(found: Found, budgets: Sequence[int]) -> list[str]:
    """The errors themselves."""

    def cell(row: dict[str, Any], n: int) -> str:
        here = row["budgets"].get(n)
        return "-" if here is None else f"{here['error']:.2g} / {here['pilot']:.2g} / {row['best'][n]:.2g}"

    rows = [[row["bed"], *(cell(row, n) for n in budgets)] for row in found]
    return _table(", ".join(["bed", *(f"{n}: calibrated / pilot / best" for n in budgets)]), rows)


def _mean(ratios: dict[str, float]) -> str:
    return f"{geometric(list(ratios.values())):.3f}"


def _spread(ratios: Sequence[float]) -> list[str]:
    """Geometric mean, the worst, and the parts of at most a half and at most 0.7."""
    shares = [sum(r <= limit for r in ratios) / len(ratios) for limit in (0.5, 0.7)]
    return [f"{geometric(list(ratios)):.3f}", f"{max(ratios):.2f}", *(f"{share:.0%}" for share in shares)]


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Error against calls, geometric means by family: calibrated, pilot, the best of the registry, a GITS-like grid."""
    found = [row for row in found if set(BUDGETS) <= set(row["budgets"])] or found
    families = [family for family in beds.FAMILIES if any(row["bed"].startswith(family) for row in found)]
    figure, axes = pictures.panels(len(families), 4.4, 3.9, sharey=True)
    for family, axis in zip(families, axes, strict=True):
        here = [row for row in found if row["bed"].startswith(family)]
        budgets = sorted(set.intersection(*(set(row["budgets"]) for row in here)))
        curves = {
            "calibrated": ("-", lambda row, n: row["budgets"][n]["error"]),
            "pilot": ("--", lambda row, n: row["budgets"][n]["pilot"]),
            "best of the registry, bed by bed": (":", lambda row, n: row["best"][n]),
            "GITS-like grid, best of three methods": ("-.", lambda row, n: min(row["budgets"][n]["gits"].values())),
        }
        for label, (style, value) in curves.items():
            means = [geometric([max(value(row, n), row["doubt"]) for row in here]) for n in budgets]
            width = 2.0 if label == "calibrated" else 1.2
            axis.plot(budgets, means, style, marker="o", markersize=4, color="black", linewidth=width, label=label)
        axis.set(yscale="log", title=f"{family}: {len(here)} of the beds", xlabel="network calls (NFE)")
        axis.set_xticks(budgets, [str(n) for n in budgets])
    pictures.save(figure, path, pictures.ERROR, legend=-1)


def costs() -> dict[tuple[str, int], list[tuple[int, int, float]]]:
    """By bed and budget: noises of the fit, samples the network evaluated for it, and the error; where N was varied.

    What an earlier form of the fit took is left out.
    """
    found: dict[tuple[str, int], list[tuple[int, int, float]]] = {}
    for bed in beds.load("report"):
        rows = {noises: rows_of(bed, noises) for noises in VARIED}
        for noises, row in rows.items():
            if row is None or sum(known is not None for known in rows.values()) < 2:
                continue
            for nfe, cells in sorted(row["budgets"].items(), key=lambda item: int(item[0])):
                if cells.get("fit") != FIT:
                    continue
                evals = cells["network_evals"] + cells["shared_evals"]
                found.setdefault((bed.name, int(nfe)), []).append((noises, evals, cells["error"]))
    return {key: values for key, values in found.items() if len(values) > 1}


def draw_costs(path: Path) -> None:
    """Error against the samples that the network evaluated for the fit, one line a bed and budget."""
    found = costs()
    names = list(dict.fromkeys(name for name, _ in found))
    figure, axes = pictures.panels(max(1, len(names)), 4.4, 3.6)
    for name, axis in zip(names, axes, strict=False):
        for style, (nfe, values) in zip(
            ("-", "--", ":"), [(n, v) for (of, n), v in found.items() if of == name], strict=False
        ):
            _, evals, errors = zip(*values, strict=True)
            axis.plot(evals, errors, style, marker="o", markersize=4, color="black", label=f"{nfe} calls")
            for noises, x, y in values:
                axis.annotate(f"N = {noises}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
        axis.set(xscale="log", yscale="log", title=name, xlabel="samples evaluated for the fit")
        axis.tick_params(axis="x", which="minor", labelbottom=False)
        axis.margins(x=0.25, y=0.12)  # for the labels
        axis.legend(frameon=False, fontsize=8)
    pictures.save(figure, path, pictures.ERROR)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or print the tables."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("what", choices=["measure", "report", "store", "frechet", "peers", "stated", "cpu"])
    parser.add_argument("--half", choices=beds.HALVES)
    parser.add_argument("--family", choices=beds.FAMILIES)
    parser.add_argument("--names", default="", help="beds whose name contains this")
    parser.add_argument("--budgets", type=lambda text: [int(n) for n in text.split(",")], default=list(BUDGETS))
    parser.add_argument("--noises", type=int, default=NOISES)
    parser.add_argument("--without", default="", help="no beds whose name contains one of these words, with commas")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th bed, from K")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no bed later than that")
    parser.add_argument("--shipped", action="store_true", help="distances of the tables that ship, without a fit")
    args = command.begin(parser, argv)
    start = time.monotonic()
    k, parts = map(int, args.part.split("/"))
    chosen = [
        bed
        for bed in beds.load(args.half, args.family, args.names)
        if not any(word in bed.name for word in args.without.split(",") if word)
    ]
    # Families and processes mixed, so that what is measured first is like the rest.
    chosen = sorted(chosen, key=lambda bed: bed.hash)[k::parts]
    if args.what == "measure":
        for bed in chosen:
            if time.monotonic() - start < args.seconds:
                keep(bed, args.noises, args.budgets)
    elif args.what == "store":
        store()
    elif args.what == "cpu":
        for dimensions in DIMENSIONS:
            spend(dimensions, args.budgets)
    elif args.what == "stated":
        for bed in chosen:
            compare_stated(bed, args.budgets)
    elif args.what == "peers":
        for bed in chosen:
            if time.monotonic() - start < args.seconds:
                keep_peers(bed, args.budgets)
    elif args.what == "frechet":
        CACHE.mkdir(parents=True, exist_ok=True)
        for name, n in SAMPLES.items():
            if args.names in name:
                found, of = (shipped(name), "shipped") if args.shipped else (fitted(name, args.budgets), "fitted")
                frechet(name, n, {nfe: found[nfe] for nfe in args.budgets}, of)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        text = "\n".join(tables(half) for half in beds.HALVES if measured(half))
        (args.out / "calibrated.md").write_text(text)
        draw(measured("report") or measured("choose"), args.out / "calibrated.png")
        draw_costs(args.out / "calibrated_cost.png")
        sys.stdout.write(f"{text}\nWritten to {args.out}: calibrated.md, calibrated.png, calibrated_cost.png\n")


if __name__ == "__main__":
    main()
