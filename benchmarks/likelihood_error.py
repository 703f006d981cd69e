"""True if log-likelihoods have the error that they state: coverage and factor of `error`, coverage of `stderr`.

    python -m benchmarks.likelihood_error --out out/bench                # all beds, some minutes on one core
    python -m benchmarks.likelihood_error --only moons --out out/bench   # with a word in their name, beside the rest
    python -m benchmarks.likelihood_error --summary --out out/bench      # of what is there, a line for each kind of bed
    python -m benchmarks.likelihood_error --rough                        # scores that are rough at random instead
    python -m benchmarks.likelihood_error --along                        # `sample(log_prob=True)` instead
    python -m benchmarks.likelihood_error --methods                      # the methods that find their own steps instead
    python -m benchmarks.likelihood_error --precision                    # float32 beside float64 instead
    python -m benchmarks.likelihood_error --coverage                     # intervals of 95 % with probes instead

Points are drawn from beds whose log-density is known: in closed form (Gaussians of standard deviation 0.001, 0.5 and
30, of two scales and of condition 1e6, mixtures at points of the data and off them, points with a bandwidth), or by
Dormand and Prince's pair at a tolerance of 1e-10 with the exact trace in float64 (exact scores with a wave in x and
log-SNR added, 0.003 to 0.03 in size and of three and eight waves a unit, or with a wave in x alone, a bias that is the
same at all times; multilayer perceptrons trained on two moons).
The prior's gap is taken out of the first.

For each bed: quantiles of the error that is left in the default's value, in nats/dim; network calls; the share of the
points where `error` is at least the error, and the median over points of their ratio, either way, of `error` and error
of at least 1e-6 nats/dim; the same of the first grid alone, before any refinement; points named unresolved; and the
share of seeds in which the interval of 95 % holds the truth, with one probe.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import bed_networks, command, rough_scores
from sgm_sde.likelihood import AdaptiveFlow, FixedGrid, Hutchinson, LikelihoodWarning
from sgm_sde.likelihood.nodes import first_grid

F64 = torch.float64
FLOOR = 1e-6  # nats/dim
PROCESSES: dict[str, Callable[[], Any]] = {
    "vp": sg.VPSDE,
    "sub-vp": sg.SubVPSDE,
    "ve": sg.VESDE,
    "edm": sg.EDMSDE,
    "flow": sg.RectifiedFlowSDE,
    "ddpm": sg.presets.ddpm,
}
NETWORKS = ("moons-vp-0", "moons-vp-1", "moons-ve-0", "moons-ve-1", "moons-flow-0", "moons-flow-1")
# Constants of the estimates are chosen on these beds alone, on all processes, and on networks of seed 0; the table
# names the others, on which they are reported.
CHOSEN_ON = (
    "gaussian-0.001",
    "mixture-2",
    "mixture-4-off",
    "condition-1e6",
    "wave-0.003-3",
    "wave-0.03-8",
    "bias-2-*",
    "moons-*-0",
)
WAVES = ((0.003, 3), (0.01, 3), (0.003, 8), (0.03, 8))  # size, and waves a unit of log-SNR
BIASES = ((2, 0.005), (2, 0.02), (2, 0.05), (4, 0.03))  # dimensions of a mixture, and size of a wave in x alone
ROUGH = 80  # scores that are rough at random, half of them for choosing
ROUGH_PROCESSES = ("vp", "edm", "flow", "ddpm", "ve", "sub-vp")
ALONG = {"dpm++3m": (8, 12, 24, 48), "heun": (16, 24, 48), "ddim": (8, 12, 24, 48)}  # solvers, and their network calls
SAMPLES = 64
POINTS, SEEDS = 4, 400  # of the coverage of intervals by probes


class Counting(nn.Module):
    """A network that counts the samples that it is asked about.

    It is a module, as networks are, so that it may be asked about some of a batch alone.
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self.asked: list[int] = []

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The output (B, *) for states x (B, *) and what is passed as their times."""
        self.asked.append(len(x))
        out: Tensor = self.net(x, t, **kwargs)
        return out


def counted(score: sg.Score) -> tuple[sg.Score, list[int]]:
    """The score, and a list to which each call of its network adds its number of samples."""
    counting = Counting(score.net)
    return score.map_net(lambda _: counting), counting.asked


def half(name: str) -> str:
    """The half of the beds that one of this name belongs to, `"chosen on"` or `"reported"`."""
    kind = name.split("/")[0]
    return "chosen on" if any(fnmatchcase(kind, part) for part in CHOSEN_ON) else "reported"


@dataclass(frozen=True)
class Bed:
    """A score, points at `eps`, and their log-densities where they are known in closed form."""

    name: str
    kind: str
    sde: Any
    score: sg.Score
    x: Tensor
    known: Tensor | None
    prior: Callable[[Tensor], Tensor] | None

    def log_prob(self, **options: Any) -> sg.LogProbResult:
        """Ours."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LikelihoodWarning)
            return sg.log_prob(self.score, self.sde, self.x, prior=self.prior, **options)

    @property
    def half(self) -> str:
        """`"chosen on"` or `"reported"`."""
        return half(self.name)

    @property
    def first_grid(self) -> FixedGrid:
        """That of the default, alone."""
        s = FixedGrid().data_std
        return FixedGrid(first_grid(self.sde, self.sde.likelihood_eps, s))

    def truth(self) -> Tensor:
        """The log-densities (B,)."""
        if self.known is not None:
            return self.known
        return self.log_prob(method=AdaptiveFlow(1e-10, 1e-10), trace="exact").value


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracles() -> dict[str, tuple[sg.oracles.Oracle, float]]:
    """Data, and how far off them the points are."""
    found: dict[str, tuple[sg.oracles.Oracle, float]] = {}
    for std in (1e-3, 0.5, 30.0):
        found[f"gaussian-{std:g}"] = sg.oracles.Gaussian(torch.full((2,), 0.3 * std, dtype=F64), std**2), 0.0
    scales = torch.tensor([1.0, 1e-3], dtype=F64).repeat_interleave(4)
    found["two-scales"] = sg.oracles.Gaussian(torch.zeros(8, dtype=F64), torch.diag(scales**2)), 0.0
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], dtype=F64)
    modes = sg.oracles.GaussianMixture(means, torch.tensor([[0.1], [0.3], [0.2]], dtype=F64).expand(3, 2))
    found["mixture-2"], found["mixture-2-off"] = (modes, 0.0), (modes, 1.0)
    four = sg.oracles.GaussianMixture(torch.randn(4, 4, generator=_generator(3), dtype=F64), 0.15)
    found["mixture-4"], found["mixture-4-off"] = (four, 0.0), (four, 0.7)
    turned, _ = torch.linalg.qr(torch.randn(6, 6, generator=_generator(4), dtype=F64))
    covariance = turned @ torch.diag(torch.logspace(-6, 0, 6, dtype=F64)) @ turned.T
    found["condition-1e6"] = sg.oracles.Gaussian(torch.zeros(6, dtype=F64), covariance), 0.0
    found["points"] = sg.oracles.Empirical(torch.randn(40, 3, generator=_generator(5), dtype=F64), 0.05), 0.0
    return found


def wave(modes: sg.oracles.GaussianMixture, sde: Any, size: float, frequency: float | None) -> sg.Score:
    """The exact score of a mixture whose noise estimate is off by a wave in x and, with a frequency, in log-SNR."""

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (k(t).to(x.dtype)[:, None] for k in (sde.alpha, sde.sigma))
        exact = (x - alpha * modes.denoised(x, alpha[:, 0], sigma[:, 0])) / sigma
        in_time = 1.0 if frequency is None else (frequency * sde.log_snr(t)).sin()[:, None]
        return exact + size * in_time * (3 * x / (0.5 * alpha + sigma)).sin()

    return sg.from_noise(noise, sde)


def beds(n: int) -> Iterator[Bed]:
    """All beds, with n points each."""
    known = oracles()
    for name, (oracle, off) in known.items():
        for process, make in PROCESSES.items():
            sde = make()
            x = oracle.sample(n, sde, sde.likelihood_eps, seed=0, dtype=F64)
            x = x + off * torch.randn(x.shape, generator=_generator(7), dtype=F64)
            exactly = oracle.log_prob(x, sde, sde.likelihood_eps)

            def prior(z: Tensor, oracle: sg.oracles.Oracle = oracle, sde: Any = sde) -> Tensor:
                return oracle.log_prob(z, sde, sde.T)

            yield Bed(f"{name}/{process}", "smooth", sde, oracle.score(sde), x, exactly, prior)
    rough: dict[str, tuple[int, float, float | None]] = {f"wave-{size}-{k}": (2, size, k) for size, k in WAVES}
    rough |= {f"bias-{d}-{size}": (d, size, None) for d, size in BIASES}
    for name, (d, size, frequency) in rough.items():
        for process in ("vp", "edm", "flow"):
            sde = PROCESSES[process]()
            modes = known[f"mixture-{d}"][0]
            assert isinstance(modes, sg.oracles.GaussianMixture)
            x = modes.sample(n, sde, sde.likelihood_eps, seed=0, dtype=F64)
            yield Bed(f"{name}/{process}", "rough", sde, wave(modes, sde, size, frequency), x, None, None)
    for name in NETWORKS:
        score = bed_networks.score(name, bed_networks.trained(name).double())
        x = bed_networks.moons(n, _generator(11)).double()
        yield Bed(name, "network", score.sde, score, x, None, None)


def quantities(error: Tensor, stated: Tensor, d: int) -> dict[str, float]:
    """Quantiles of errors (B,) in nats/dim, the share that the stated ones (B,) bound, and the median ratio."""
    e, s = error.abs() / d, stated / d
    ratio = s.clamp(min=FLOOR) / e.clamp(min=FLOOR)
    return {
        "median": float(e.median()),
        "95 %": float(e.quantile(0.95)),
        "bounded": float((s + FLOOR >= e).double().mean()),
        "factor": float(ratio.log().abs().median().exp()),
    }


def measure(bed: Bed, seeds: int) -> dict[str, Any]:
    """A row of the table."""
    truth, d = bed.truth(), bed.x[0].numel()
    score, asked = counted(bed.score)
    result = replace(bed, score=score).log_prob(trace="exact")
    first = bed.log_prob(trace="exact", method=bed.first_grid)
    row: dict[str, Any] = {"bed": bed.name, "kind": bed.kind, **quantities(result.value - truth, result.error, d)}
    grid = quantities(first.value - truth, first.error, d)
    row |= {f"first grid: {name}": value for name, value in grid.items()}
    row |= {"calls": result.nfe, "calls a sample": sum(asked) / len(bed.x), "unresolved": len(result.unresolved)}
    if seeds and d > 1:
        # Of each seed the truth is the value with the exact trace and the error stated with probes.
        runs = [bed.log_prob(trace=Hutchinson(), method=bed.first_grid, seed=k) for k in range(seeds)]
        inside = [(low <= first.value) & (first.value <= high) for low, high in (_by_probes(run) for run in runs)]
        row["interval"] = float(torch.stack(inside).double().mean())
        row["stated with probes: bounded"] = quantities(first.value - truth, runs[0].error, d)["bounded"]
    return row


def along(word: str) -> Iterator[dict[str, Any]]:
    """Rows of the error that `sample(log_prob=True)` states, of those with a word in their name: by score, process,
    solver and network calls."""
    modes = oracles()["mixture-2"][0]
    assert isinstance(modes, sg.oracles.GaussianMixture)
    for name, size in {"exact": 0.0, **{f"bias-{size}": size for d, size in BIASES if d == 2}}.items():
        for process in ("vp", "ve", "edm", "flow"):
            sde = PROCESSES[process]()
            score = wave(modes, sde, size, None)
            for solver, budgets in ALONG.items():
                for nfe in budgets:
                    run_name = f"{name}/{process}, {solver}, {nfe} calls"
                    if word not in run_name:
                        continue
                    run = sg.sample(
                        score, sde, (SAMPLES, 2), solver=solver, nfe=nfe, seed=0, log_prob="exact",
                        execution=sg.Execution(dtype=F64),
                    )  # fmt: skip
                    found = run.log_prob
                    assert found is not None
                    known = sg.log_prob(score, sde, run.x, eps=run.times[-1], method=AdaptiveFlow(1e-8, 1e-8))
                    row = quantities(found.value - known.value, found.error, 2)
                    yield {"bed": run_name, **row}


def rough_at_random(n: int, word: str) -> Iterator[dict[str, Any]]:
    """Rows of scores that are rough at random, of those with a word in their name, with n points each."""
    processes = {name: PROCESSES[name] for name in ROUGH_PROCESSES}
    for number in range(ROUGH):
        name, score, modes = rough_scores.rough(number, processes)
        if word not in name:
            continue
        sde: Any = score.sde
        x = modes.sample(n, sde, sde.likelihood_eps, seed=number, dtype=F64)
        bed = Bed(name, "rough", sde, score, x, None, None)
        counting, asked = counted(score)
        found = replace(bed, score=counting).log_prob(trace="exact")
        row = quantities(found.value - bed.truth(), found.error, x[0].numel())
        part = "reported" if number % 2 else "chosen on"
        yield {"bed": name, "method": "default", "half": part, **row, "calls a sample": sum(asked) / n}


def methods(chosen: Iterable[Bed]) -> Iterator[dict[str, Any]]:
    """Rows of the error that methods with steps of their own state, by bed and method at their default tolerances."""
    for bed in chosen:
        truth = bed.truth()
        for name in ("adaptive", "dopri5-adjoint", "rk45-scipy"):
            found = bed.log_prob(trace="exact", method=name)
            row = quantities(found.value - truth, found.error, bed.x[0].numel())
            yield {"bed": f"{bed.name}, {name}", "method": name, "half": bed.half, **row, "calls": found.nfe}


def precision(chosen: Iterable[Bed]) -> Iterator[dict[str, Any]]:
    """Rows of the error that runs in float32 state, by bed and method, and the change from the same run in float64."""
    for bed in chosen:
        single, double = in_single_precision(bed), replace(bed, x=bed.x.float().double(), known=None)
        truth, d = double.truth(), bed.x[0].numel()
        for name, method in {"default": FixedGrid(), "one grid": bed.first_grid, "adaptive": AdaptiveFlow()}.items():
            found, same = (one.log_prob(trace="exact", method=method) for one in (single, double))
            row = quantities(found.value.double() - truth, found.error.double(), d)
            change = float((found.value.double() - same.value).abs().quantile(0.95)) / d
            alone = quantities(same.value - truth, same.error, d)["bounded"]
            names = {"bed": f"{bed.name}, {name}", "method": name, "half": bed.half}
            yield {**names, **row, "float64: bounded": alone, "change": change}


def in_single_precision(bed: Bed) -> Bed:
    """The same in float32."""
    score = bed.score
    if bed.kind == "network":
        score = bed_networks.score(bed.name, bed_networks.trained(bed.name))
    return replace(bed, x=bed.x.float(), score=score, known=None)


def coverage(chosen: Iterable[Bed], seeds: int) -> Iterator[dict[str, Any]]:
    """Rows of how often the interval of 95 % by Rademacher probes holds the value of the exact trace, and the spread of
    the values over seeds in units of `stderr`, by bed of the reported half and number of probes."""
    for bed in chosen:
        process = bed.name.split("/")[-1]
        if bed.half != "reported" or not (process in ("vp", "edm", "flow") or bed.kind == "network"):
            continue
        if bed.kind != "network" and bed.name.split("/")[0] not in ("mixture-2-off", "mixture-4", "points"):
            continue
        exact = bed.log_prob(trace="exact", method=bed.first_grid).value.repeat_interleave(seeds)
        many = replace(bed, x=bed.x.repeat_interleave(seeds, 0))
        for n in (1, 2, 4):
            found = many.log_prob(method=bed.first_grid, trace=Hutchinson(n), seed=[*range(seeds)] * len(bed.x))
            low, high = _by_probes(found)
            spread = (found.value - exact).square().mean().sqrt() / found.stderr.square().mean().sqrt()
            inside = float(((low <= exact) & (exact <= high)).double().mean())
            yield {"bed": f"{bed.name}, {n} probes", "interval": inside, "spread / stderr": float(spread)}


def _only(word: str, n: int) -> Iterator[Bed]:
    """Beds with a word in their name, with n points each."""
    return (bed for bed in beds(n) if word in bed.name)


def _by_probes(result: sg.LogProbResult) -> tuple[Tensor, Tensor]:
    """The interval that probes alone leave, with as much room as rounding needs."""
    return replace(result, error=torch.full_like(result.error, 1e-9 * result.latent[0].numel())).interval()


COLUMNS = (
    "median", "95 %", "bounded", "factor", "first grid: 95 %", "first grid: bounded", "first grid: factor", "calls",
    "calls a sample", "unresolved", "interval",
)  # fmt: skip


def table(rows: list[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Markdown."""
    lines = ["| bed | " + " | ".join(columns) + " |", "|---" + "|--:" * len(columns) + "|"]
    for row in rows:
        cells = [f"{row[name]:.3g}" if name in row else "" for name in columns]
        lines.append(f"| {row['bed']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _kind(name: str) -> str:
    """The bed without its process."""
    return name.split("/")[0] if "/" in name else f"moons networks, seed {name[-1]}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for the processes of each bed, of which errors and shares are the worst and factors the median;
    and in how many beds what is promised holds."""
    lines = [
        "| bed | half | processes | error, 95 % of points | bounded | factor | calls "
        "| one grid: error, 95 % | bounded | factor |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in dict.fromkeys(_kind(row["bed"]) for row in rows):
        here = [row for row in rows if _kind(row["bed"]) == kind]
        cells = []
        for grid in ("", "first grid: "):
            worst, share = max(row[f"{grid}95 %"] for row in here), min(row[f"{grid}bounded"] for row in here)
            cells += [f"{worst:.0e}", f"{share:.2f}", f"{median(row[f'{grid}factor'] for row in here):.1f}"]
            if not grid:
                cells.append(f"{median(row['calls a sample'] for row in here):.0f}")
        lines.append(f"| {kind} | {half(here[0]['bed'])} | {len(here)} | " + " | ".join(cells) + " |")

    lines += ["", "| half | beds | 95 % of points within 1e-4 | bounded in 95 % | factor at most 5 | both | calls |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for part in ("chosen on", "reported"):
        here = [row for row in rows if half(row["bed"]) == part]
        if here:
            good = [(row["95 %"] <= 1e-4, row["bounded"] >= 0.95, row["factor"] <= 5) for row in here]
            counts = [sum(column) for column in zip(*good, strict=True)] + [sum(b and c for _, b, c in good)]
            calls = mean(row["calls a sample"] for row in here)
            lines.append(f"| {part} | {len(here)} | " + " | ".join(map(str, counts)) + f" | {calls:.0f} |")
    short = [
        f"{row['bed']}: bounded {row['bounded']:.2f}, factor {row['factor']:.1f}"
        for row in rows
        if row["bounded"] < 0.95 or row["factor"] > 5
    ]
    return "\n".join([*lines, "", "Short of it: " + "; ".join(short)])


def others_table(kept: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Print and keep what one of the other questions finds, with a line for each method where there are several."""
    found: list[dict[str, Any]] = []
    for row in rows:
        found.append(row)
        kept.write_text(json.dumps(found, indent=1) + "\n")
    columns = [name for name in found[0] if name not in ("bed", "method", "half")]
    lines = [table(found, columns), ""]
    for part in ("chosen on", "reported"):
        for method in dict.fromkeys(row.get("method", "") for row in found):
            here = [row for row in found if (row.get("half"), row.get("method", "")) == (part, method)]
            if here:
                good = sum(row["bounded"] >= 0.95 for row in here), sum(row["factor"] <= 5 for row in here)
                share = mean(row["bounded"] for row in here)
                lines.append(
                    f"{part}, {method}: {len(here)} beds, bounded in 95 % of points on {good[0]} and in {share:.2f} of "
                    f"all, factor at most 5 on {good[1]}, {median(row['factor'] for row in here):.1f} in the median"
                )
    sys.stdout.write("\n".join(lines) + f"\n\nWritten to {kept}\n")


def main() -> None:
    """Measure, print and write."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--n", type=int, default=32, help="points")
    parser.add_argument("--seeds", type=int, default=20, help="of the probes")
    parser.add_argument("--only", default="", help="part of a bed's name")
    parser.add_argument("--summary", action="store_true", help="of what is in --out, measuring nothing")
    parser.add_argument("--rough", action="store_true", help="of scores that are rough at random")
    parser.add_argument("--along", action="store_true", help="of samples drawn with their density")
    parser.add_argument("--methods", action="store_true", help="of methods that find their own steps")
    parser.add_argument("--precision", action="store_true", help="of runs in float32")
    parser.add_argument("--coverage", action="store_true", help="of intervals by probes")
    args = command.begin(parser)
    others: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "rough": lambda: rough_at_random(args.n, args.only),
        "along": lambda: along(args.only),
        "methods": lambda: methods(_only(args.only, args.n)),
        "precision": lambda: precision(_only(args.only, args.n)),
        "coverage": lambda: coverage(_only(args.only, POINTS), SEEDS),
    }
    for name, rows_of in others.items():
        if getattr(args, name):
            warnings.simplefilter("ignore", LikelihoodWarning)
            others_table(args.out / f"likelihood_{name}.json", tqdm(rows_of(), desc="runs"))
            return

    kept = args.out / "likelihood_error.json"
    protocol = {"n": args.n, "seeds": args.seeds}
    rows: dict[str, dict[str, Any]] = {}
    if (args.only or args.summary) and kept.exists():
        before = json.loads(kept.read_text())
        rows = {row["bed"]: row for row in before.pop("rows")}
        if args.only and before != protocol:
            raise SystemExit(f"{kept} holds a run of {before}, and this one is of {protocol}: give another --out")
    known = list(beds(args.n))
    if not args.summary:
        for bed in tqdm([bed for bed in known if args.only in bed.name], desc="beds"):
            rows[bed.name] = measure(bed, args.seeds)
            # What a killed run leaves is a table of the beds before.
            kept.write_text(json.dumps(protocol | {"rows": list(rows.values())}, indent=1) + "\n")

    found = [rows[bed.name] for bed in known if bed.name in rows]
    text = summary(found) if args.summary else table(found)
    (args.out / "likelihood_error.md").write_text(text + "\n")
    sys.stdout.write(text + f"\n\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
