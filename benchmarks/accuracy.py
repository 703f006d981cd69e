"""Accuracy for the same number of network calls: ours on every grid, other libraries' on the same grids.

    python -m benchmarks.accuracy --out out/bench [--quick]

The error of a run is that of its end state against the exact probability flow from the same initial noise: root mean
square over samples and coordinates, relative to the standard deviation of the data. Four test beds: exact denoisers of
a mixture of three in 2 dimensions and of one of ten in 64, whose components have scales from 0.05 to 1; that of
every eighth of scikit-learn's digits, each a Gaussian of standard deviation 0.15; and the trained digits network that
ships with the package, with fixed labels. Two processes: `EDMSDE`, from the noise level 80 to 0.002, and `VPSDE`, from
152 to 0.01. Three grids: even in t, even in log-SNR, Karras'.

Every run stops at the grid's end, without a final denoising, so that all solve the same problem; a budget of network
calls (NFE) counts all of them and is never exceeded. Peers (`peers.py`; optional) get the noise levels of the same
grid, in EDM's coordinates. float64, but for the network, whose weights are float32.

The exact flow is 1000 steps of "unipc4" in log-SNR, and what "lms4" makes of as many calls is compared with it. Takes
ten minutes on one core with all peers, six without, one with --quick: EDMSDE, fewer samples, budgets of 5, 10 and 20.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command, peers
from sgm_sde.nn.digits import digits_data, load_digits_denoiser
from sgm_sde.schemes import resolve
from sgm_sde.testing import default_oracle

OURS = "sgm_sde"
BUDGETS = (4, 5, 6, 8, 10, 12, 16, 20, 35, 50)
QUICK = (5, 10, 20)
RANGES = ((4, 8), (10, 20), (35, 50))
GRIDS = ("uniform", "log-snr", "karras")
PROCESSES: dict[str, sg.LinearSDE] = {"EDM": sg.EDMSDE(), "VP": sg.VPSDE()}
REFERENCE = 1000  # network calls
F64 = torch.float64

# Beside the registry: other starts, correctors, and what peers do that has no name of its own.
EXTRAS: dict[str, sg.Solver] = {
    "dpm++2m-exact": sg.DPMSolverPP(2, variant="exact"),
    "dpm++3m-cold": sg.DPMSolverPP(3, start="cold"),
    "dpm2m-exact": sg.DPMSolver(2, variant="exact", singlestep=False),
    "dpm3m-cold": sg.DPMSolver(3, start="cold", singlestep=False),
    "dpm3m-unic": sg.schemes.UniC(sg.DPMSolver(3, singlestep=False)),
    "deis3-cold": sg.DEIS(3, start="cold"),
    "deis2-unic": sg.schemes.UniC(sg.DEIS(2)),
    "deis3-unic": sg.schemes.UniC(sg.DEIS(3)),
    "deis3-unic-cold": sg.schemes.UniC(sg.DEIS(3, start="cold")),
    "lms3-cold": sg.schemes.LMS(3, start="cold"),
    "lms2-unic": sg.schemes.UniC(sg.schemes.LMS(2)),
    "lms3-unic": sg.schemes.UniC(sg.schemes.LMS(3)),
    "lms3-unic-cold": sg.schemes.UniC(sg.schemes.LMS(3, start="cold")),
    "unipc2-bh1": sg.UniPC(2, variant="bh1"),
    "unipc2-exact": sg.UniPC(2, variant="exact"),
    "unipc3-bh1": sg.UniPC(3, variant="bh1"),
    **{
        f"{name}-lower-final": replace(solver, lower_final=True)
        for name, solver in {
            "dpm++2m": sg.DPMSolverPP(2),
            "unipc2": sg.UniPC(2),
            "unipc3": sg.UniPC(3),
            "unipc3-bh1": sg.UniPC(3, variant="bh1"),
            "unipc3-noise": sg.UniPC(3, prediction="noise"),
            "dpm3m-cold": sg.DPMSolver(3, start="cold", singlestep=False),
            "rectified2-unic": sg.schemes.UniC(sg.schemes.RectifiedAdams(2)),
            "rectified3-unic-cold": sg.schemes.UniC(sg.schemes.RectifiedAdams(3, start="cold")),
        }.items()
    },
    "unipc3-noise": sg.UniPC(3, prediction="noise"),
    "rectified3-cold": sg.schemes.RectifiedAdams(3, start="cold"),
    "rectified2-unic": sg.schemes.UniC(sg.schemes.RectifiedAdams(2)),
    "rectified3-unic-cold": sg.schemes.UniC(sg.schemes.RectifiedAdams(3, start="cold")),
    "rectified5-unic-cold": sg.schemes.UniC(sg.schemes.RectifiedAdams(5, start="cold")),
    "rosenbrock3-cold": sg.schemes.Rosenbrock(3, start="cold"),
    "rosenbrock2-unic": sg.schemes.UniC(sg.schemes.Rosenbrock(2)),
    "rosenbrock3-unic": sg.schemes.UniC(sg.schemes.Rosenbrock(3)),
    "rosenbrock3-unic-cold": sg.schemes.UniC(sg.schemes.Rosenbrock(3, start="cold")),
    "rosenbrock2-1.0": sg.schemes.Rosenbrock(2, sigma_data=1.0),
    "rosenbrock3-1.0": sg.schemes.Rosenbrock(3, sigma_data=1.0),
    "rosenbrock3-1.0-cold": sg.schemes.Rosenbrock(3, sigma_data=1.0, start="cold"),
    "rosenbrock2-1.0-unic": sg.schemes.UniC(sg.schemes.Rosenbrock(2, sigma_data=1.0)),
    "rosenbrock3-1.0-unic": sg.schemes.UniC(sg.schemes.Rosenbrock(3, sigma_data=1.0)),
    "rosenbrock3-1.0-unic-cold": sg.schemes.UniC(sg.schemes.Rosenbrock(3, sigma_data=1.0, start="cold")),
}


# What `peers.SAMPLERS` has not: diffusers' default last steps, of lower orders down to 1 (with DPM-Solver and DEIS only
# below 15 steps), and UniPC with noise prediction.
LAST: dict[str, Any] = {"lower_order_final": True}
NOISE: dict[str, Any] = {"predict_x0": False}
MORE_PEERS = tuple(
    peers.PeerSampler("diffusers", method, ours, drive, variant=method)
    for method, ours, drive in (
        ("DPMSolverMultistep ++2 lower_order_final", "dpm++2m", peers._dpm(**LAST)),
        ("DPMSolverMultistep ++2 heun lower_order_final", "dpm++2m", peers._dpm(solver_type="heun", **LAST)),
        ("DPMSolverMultistep ++3 lower_order_final", "dpm++3m", peers._dpm(solver_order=3, **LAST)),
        ("DPMSolverMultistep 2 lower_order_final", "dpm2m", peers._dpm(algorithm_type="dpmsolver", **LAST)),
        ("UniPCMultistep bh2 2 lower_order_final", "unipc2", peers._unipc(solver_order=2, **LAST)),
        ("UniPCMultistep bh2 3 lower_order_final", "unipc3", peers._unipc(solver_order=3, **LAST)),
        ("UniPCMultistep bh1 3 lower_order_final", "unipc3", peers._unipc(solver_order=3, solver_type="bh1", **LAST)),
        ("UniPCMultistep bh2 3 noise", "unipc3", peers._unipc(solver_order=3, **NOISE)),
        ("UniPCMultistep bh2 3 noise lower_order_final", "unipc3", peers._unipc(solver_order=3, **NOISE, **LAST)),
        (
            "DEISMultistep 3 lower_order_final",
            "deis3",
            peers._d("DEISMultistep", "deis_multistep", solver_order=3, **LAST, **peers.DATA),
        ),
    )
)


class Denoiser:
    """A test bed: the estimate of the data at x (B, *) and the noise level, () or (B,), in EDM's coordinates.

    Attributes:
        name: what the tables call it.
        shape: of the samples.
        std: standard deviation of the data, the mean square over coordinates.
        calls: how often it was called.
    """

    def __init__(self, name: str, shape: Sequence[int], std: float) -> None:
        self.name, self.shape, self.std, self.calls = name, tuple(shape), std, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.denoised(x, sigma.expand(len(x)))

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate for noise levels (B,)."""
        raise NotImplementedError


class Mixture(Denoiser):
    """Exact, for a mixture of Gaussians."""

    def __init__(self, name: str, n: int, oracle: sg.oracles.Oracle) -> None:
        super().__init__(name, (n, *oracle.event_shape), spread(oracle.sample(20000, seed=0)))
        self.oracle = oracle

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate for noise levels (B,)."""
        return self.oracle.denoised(x, torch.ones_like(sigma), sigma)


class Points(Denoiser):
    """Exact, for equal Gaussians on many points: `sg.oracles.Empirical`, by matrix products."""

    def __init__(self, name: str, n: int, data: Tensor, bandwidth: float) -> None:
        super().__init__(name, (n, *data.shape[1:]), math.hypot(spread(data), bandwidth))
        self.data, self.variance = data.to(F64).flatten(1), bandwidth**2
        self.halves = self.data.square().sum(1) / 2

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate for noise levels (B,)."""
        y, s2 = x.flatten(1), sigma.square()[:, None]
        mean = ((y @ self.data.T - self.halves) / (s2 + self.variance)).softmax(1) @ self.data
        return (mean + self.variance / (s2 + self.variance) * (y - mean)).reshape(x.shape)


class Network(Denoiser):
    """The digits network that ships with the package; labels 0 to 9 in turn."""

    def __init__(self, name: str, n: int, data: Tensor) -> None:
        super().__init__(name, (n, *data.shape[1:]), spread(data))
        self.net, self.labels = load_digits_denoiser(), torch.arange(n) % 10

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate for noise levels (B,)."""
        return self.net(x, sigma, self.labels)


def spread(data: Tensor) -> float:
    """Standard deviation of data (N, *) around its mean."""
    return float((data - data.mean(0)).square().mean().sqrt())


def beds(n: int) -> list[Denoiser]:
    """The test beds; where samples of a mixture end is decided late for a few, so there are more of them."""
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(10, 64, generator=generator, dtype=F64)
    stds = 0.05 * 20 ** torch.rand(10, 64, generator=generator, dtype=F64)
    digits = torch.cat([digits_data("train")[0], digits_data("held_out")[0]])
    return [
        Mixture("mixture 2-D", 4 * n, default_oracle("mixture")),
        Mixture("mixture 64-D", 2 * n, sg.oracles.GaussianMixture(means, stds)),
        Points("digits", 4 * n, digits[::8], 0.15),
        Network("network", n, digits),
    ]


class Problem:
    """A test bed on a process: the initial noise and where the probability flow takes it, in EDM's coordinates."""

    def __init__(self, bed: Denoiser, process: str) -> None:
        self.bed, self.process, self.sde = bed, process, PROCESSES[process]
        sde = self.sde
        label, scale = sg.time_labels.noise_level(sde), lambda t: 1 / sde.alpha(t)
        self.score = sg.from_denoiser(bed, sde, time_label=label, input_scale=scale)
        self.x = sde.prior_sample(bed.shape, seed=0, dtype=F64)
        self.exact = self.solve(resolve("unipc4"), "log-snr", REFERENCE)
        other = self.solve(resolve("lms4"), "log-snr", REFERENCE)
        self.doubt = float((other - self.exact).square().mean().sqrt()) / bed.std

    def solve(self, solver: sg.Solver, grid: str, nfe: int) -> Tensor:
        """The end state of one of our solvers."""
        res = sg.sample(self.score, self.sde, x_T=self.x, solver=solver, nfe=nfe, grid=grid, final="none")
        return res.x / self.sde.alpha(res.times[-1])

    def solve_peer(self, sampler: peers.PeerSampler, grid: str, steps: int) -> Tensor:
        """The end state of a peer's sampler, along the noise levels of the grid."""
        times = torch.tensor(sg.grids.rule(grid)(self.sde, steps).times, dtype=F64)
        sigmas = (-self.sde.log_snr(times) / 2).exp()
        return sampler.run(self.bed, sigmas, self.x / self.sde.alpha(times[0]))

    def errors(self, x: Tensor) -> tuple[float, float]:
        """The error of an end state, and the median of the errors of single samples."""
        each = (x - self.exact).flatten(1).square().mean(1)
        return float(each.mean().sqrt()) / self.bed.std, float(each.sqrt().median()) / self.bed.std


@dataclass(frozen=True)
class Entry:
    """A sampler on a grid."""

    library: str
    sampler: str
    grid: str

    def __str__(self) -> str:
        prefix = "" if self.library == OURS else f"{self.library} "
        return f"{prefix}{self.sampler}, {self.grid}"


@dataclass
class Row:
    """The errors of an entry on a problem.

    Attributes:
        process: of the problem.
        bed: of the problem.
        entry: the sampler and its grid.
        rmse: error for each budget; infinite if the end state is not finite. Budgets that allow no step have none.
        median: median over samples of their errors, for each budget.
        calls: network calls made, for each budget.
    """

    process: str
    bed: str
    entry: Entry
    rmse: dict[int, float] = field(default_factory=dict)
    median: dict[int, float] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)

    def add(self, problem: Problem, nfe: int, x: Tensor) -> None:
        """Take in a run."""
        rmse, median = problem.errors(x)
        assert 0 < problem.bed.calls <= nfe, f"{self.entry}: {problem.bed.calls} calls of {nfe}"
        self.rmse[nfe] = float(f"{rmse:.5g}") if math.isfinite(rmse) else math.inf
        self.median[nfe] = float(f"{median:.5g}") if math.isfinite(median) else math.inf
        self.calls[nfe] = problem.bed.calls

    def as_json(self) -> dict[str, Any]:
        """The row with null for what is not finite."""
        values: dict[str, Any] = vars(self.entry) | {"process": self.process, "bed": self.bed, "calls": self.calls}
        for name, errors in (("rmse", self.rmse), ("median", self.median)):
            values[name] = {nfe: error if math.isfinite(error) else None for nfe, error in errors.items()}
        return values


def our_solvers() -> dict[str, sg.Solver]:
    """All candidates."""
    return {name: solver for name, solver in sg.solvers().fixed.items() if not solver.stochastic} | EXTRAS


def peer_samplers() -> list[peers.PeerSampler]:
    """The deterministic ones; of a method that several libraries have, the first (a test shows that all agree)."""
    found: dict[tuple[str, str, str], peers.PeerSampler] = {}
    for sampler in peers.SAMPLERS + MORE_PEERS:
        if not sampler.stochastic and sampler.peer in peers.available():
            found.setdefault((sampler.ours, sampler.variant, sampler.defect), sampler)
    return list(found.values())


def peer_steps(sampler: peers.PeerSampler, nfe: int) -> int:
    """Steps that a budget allows; samplers with a start of their own need four."""
    steps = (nfe - sampler.extra_nfe) // sampler.nfe_per_step
    return steps if not sampler.extra_nfe or steps > 3 else 0


def measure(problems: Sequence[Problem], budgets: Sequence[int]) -> list[Row]:
    """Every sampler on every grid and problem. Problems of a process take turns: a program is compiled once."""
    ours = our_solvers()
    theirs = {s.method: s for s in peer_samplers()}
    entries = [Entry(OURS, name, grid) for name, grid in itertools.product(ours, GRIDS)]
    entries += [Entry(s.peer, s.method, grid) for s, grid in itertools.product(theirs.values(), GRIDS)]
    rows: list[Row] = []
    for process in tqdm(dict.fromkeys(p.process for p in problems), desc="processes"):
        here = [p for p in problems if p.process == process]
        for entry in tqdm(entries, desc=process, leave=False):
            new = [Row(process, p.bed.name, entry) for p in here]
            for nfe, (row, problem) in itertools.product(budgets, zip(new, here, strict=True)):
                problem.bed.calls = 0
                if entry.library != OURS:
                    if steps := peer_steps(theirs[entry.sampler], nfe):
                        row.add(problem, nfe, problem.solve_peer(theirs[entry.sampler], entry.grid, steps))
                elif ours[entry.sampler].fit(nfe)[1]:
                    row.add(problem, nfe, problem.solve(ours[entry.sampler], entry.grid, nfe))
            rows += new
    return rows


Place = tuple[str, str, int]  # process, bed, budget


def places(rows: Iterable[Row]) -> dict[Place, dict[Entry, float]]:
    """For each process, bed and budget, the errors of all entries."""
    found: dict[Place, dict[Entry, float]] = {}
    for row in rows:
        for nfe, rmse in row.rmse.items():
            found.setdefault((row.process, row.bed, nfe), {})[row.entry] = rmse
    return found


@dataclass(frozen=True)
class Robustness:
    """How far an entry is from the best of all, over places: the geometric mean, the worst and where that is."""

    entry: Entry
    mean: float
    worst: float
    where: Place


def robustness(
    by_place: dict[Place, dict[Entry, float]], budgets: tuple[int, int] = (5, max(BUDGETS)), process: str = ""
) -> list[Robustness]:
    """Ratios to the best of all within a range of budgets, of all entries that can do with each, the best one first."""
    ratios: dict[Entry, dict[Place, float]] = {}
    there = [p for p in by_place if budgets[0] <= p[2] <= budgets[1] and process in ("", p[0])]
    for place in there:
        least = min(by_place[place].values())
        for entry, error in by_place[place].items():
            ratios.setdefault(entry, {})[place] = error / least
    table = []
    for entry, own in ratios.items():
        if len(own) < len(there):
            continue
        worst = max(own, key=lambda place: own[place])
        mean = math.exp(sum(map(math.log, own.values())) / len(own))
        table.append(Robustness(entry, mean, own[worst], worst))
    return sorted(table, key=lambda r: r.mean)


def best(errors: dict[Entry, float], ours: bool) -> tuple[Entry, float] | None:
    """The best entry of ours, or of the peers."""
    mine = {entry: error for entry, error in errors.items() if (entry.library == OURS) == ours}
    return min(mine.items(), key=lambda item: item[1]) if mine else None


def best_tables(by_place: dict[Place, dict[Entry, float]]) -> list[str]:
    """Our best and the peers' best, for each problem and budget."""
    lines = []
    for process, bed in dict.fromkeys((p, b) for p, b, _ in by_place):
        lines += [f"### {bed}, {process}", "", "| NFE | our best | error | best peer | error | peer / ours |"]
        lines.append("|---:|---|---:|---|---:|---:|")
        for nfe in sorted(n for p, b, n in by_place if (p, b) == (process, bed)):
            ours, theirs = (best(by_place[process, bed, nfe], ours) for ours in (True, False))
            assert ours is not None
            cells = [f"{theirs[0]}", f"{theirs[1]:.3g}", f"{theirs[1] / ours[1]:.2f}"] if theirs else ["", "", ""]
            lines.append(f"| {nfe} | {ours[0]} | {ours[1]:.3g} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def robustness_table(table: Sequence[Robustness], shown: int) -> list[str]:
    """The first entries, as Markdown."""
    lines = ["| sampler, grid | geometric mean | worst | at |", "|---|---:|---:|---|"]
    for r in table[:shown]:
        lines.append(f"| {r.entry} | {r.mean:.2f} | {r.worst:.1f} | {r.where[1]}, {r.where[0]}, {r.where[2]} NFE |")
    return [*lines, ""]


def report(by_place: dict[Place, dict[Entry, float]]) -> list[str]:
    """All tables."""
    lines = ["# Accuracy for the same number of network calls", "", *(__doc__ or "").split("\n\n", 2)[2].splitlines()]
    lines += ["", "## Our best and the peers' best", "", *best_tables(by_place)]
    lines += ["## Robustness", ""]
    lines += ["Error divided by the best error of anyone on the same test bed at the same budget.", ""]
    lines += ["### From 5 NFE on", "", *robustness_table(robustness(by_place), 60)]
    for process, budgets in itertools.product(dict.fromkeys(p for p, _, _ in by_place), RANGES):
        if table := robustness(by_place, budgets, process):
            lines += [f"### {process}, {budgets[0]} to {budgets[1]} NFE", "", *robustness_table(table, 12)]
    return lines


def relevant(by_place: dict[Place, dict[Entry, float]]) -> list[Entry]:
    """Ten entries to draw: three everyone knows, our four most robust others, and the most robust of each peer."""
    table = [r.entry for r in robustness(by_place)]
    known = [next(e for e in table if (e.library, e.sampler) == (OURS, name)) for name in ("ddim", "heun", "dpm++2m")]
    others = {e.sampler: e for e in reversed(table) if e.library == OURS and e not in known}
    ours = sorted(others.values(), key=table.index)[:4]
    theirs = {e.library: e for e in reversed(table) if e.library != OURS}
    return [*known, *ours, *theirs.values()]


def draw(by_place: dict[Place, dict[Entry, float]], path: Path) -> None:
    """The errors of ten entries against the number of network calls, a panel for each problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((process, bed) for process, bed, _ in by_place))
    across = len({bed for _, bed in panels})
    down = len(panels) // across
    figure, axes = plt.subplots(down, across, figsize=(4 * across, 3.6 * down + 0.8), sharex=True, squeeze=False)
    for (process, bed), axis in zip(panels, axes.flat, strict=True):
        budgets = sorted(n for p, b, n in by_place if (p, b) == (process, bed))
        for entry in relevant(by_place):
            errors = {n: by_place[process, bed, n].get(entry, math.inf) for n in budgets}
            errors = {n: error for n, error in errors.items() if math.isfinite(error)}
            style = {} if entry.library == OURS else {"linestyle": "--"}
            axis.plot(list(errors), list(errors.values()), marker="o", markersize=3, label=str(entry), **style)
        axis.set(xscale="log", yscale="log", title=f"{bed}, {process}")
        axis.set_xticks(budgets, [str(b) for b in budgets])
        axis.minorticks_off()
    for axis in axes[-1]:
        axis.set_xlabel("network calls (NFE)")
    for axis in axes[:, 0]:
        axis.set_ylabel("error / standard deviation of the data")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.8 / (3.6 * down + 0.8), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print and write."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--quick", action="store_true", help="about a minute: EDMSDE, fewer samples and budgets")
    args = command.begin(parser)
    processes, budgets, n = (["EDM"], QUICK, 16) if args.quick else (list(PROCESSES), BUDGETS, 64)
    with torch.no_grad():
        todo = list(itertools.product(processes, beds(n)))
        problems = [Problem(bed, process) for process, bed in tqdm(todo, desc="exact flows")]
        rows = measure(problems, budgets)
    by_place = places(rows)
    lines = report(by_place)
    doubts = [{"process": p.process, "bed": p.bed.name, "std": p.bed.std, "reference": p.doubt} for p in problems]
    protocol: dict[str, Any] = {"sgm_sde": sg.__version__, "torch": torch.__version__, "peers": peers.available()}
    protocol |= {"samples": {p.bed.name: p.bed.shape[0] for p in problems}, "budgets": budgets}
    protocol |= {"processes": {name: repr(sde) for name, sde in PROCESSES.items()}, "problems": doubts}
    protocol |= {"solvers": {name: repr(solver) for name, solver in our_solvers().items()}}
    protocol["rows"] = [row.as_json() for row in rows]
    (args.out / "accuracy.md").write_text("\n".join(lines))
    (args.out / "accuracy.json").write_text(json.dumps(protocol) + "\n")
    draw(by_place, args.out / "accuracy.png")
    sys.stdout.write("\n".join(lines) + f"\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
