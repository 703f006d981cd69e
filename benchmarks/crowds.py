"""What many small samples cost: against the batch size beside other libraries, by call, memory and attempt.

    python -m benchmarks.crowds --out out/bench [--only curve fixed memory adaptive path] [--draw docs/crowds.png]

One thread and its CPU time, float32, a network that is right for normal data, the least of some turns. Parts are kept
in crowds.json as they are measured, so that they can be measured one at a time.

- `curve`: a call of 20 steps of ancestral sampling against the number of samples, at 1 to 256 dimensions: ours, other
  libraries' and a loop over `torch.randn`. Runs of more than two million numbers are left out. Beside it the straight
  lines through them: what a call and its steps cost whatever the samples, and what each number adds.
- `fixed`: a call of one step; what is left beside the step is the call.
- `memory`: peak of all tensors and arrays of a run of a million samples, in states.
- `adaptive`: a run of an embedded pair, and `log_prob` of samples, beside what network calls and vector-Jacobian
  products take of it; the pair also beside a loop of the same decisions, and `ggf` beside one of as many attempts that
  takes its noise from `torch.randn`, on as many samples as are on their way on average. `network` says on what: a
  mixture of two Gaussians is about the least that a score can cost, and a perceptron on two moons what people have in
  two dimensions.
- `path`: noise="path" beside independent noise, in runs on a grid; and draws alone beside as many increments of paths
  at places of each sample's own, as `ggf` asks for them, and at the same places for all, as torchsde does.
- `metrics`: each of two sets of normal vectors of two numbers.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import bed_networks, command, overhead
from benchmarks.peak_memory import peak_bytes
from benchmarks.stopwatch import Stopwatch
from sgm_sde.engine.brownian import BrownianTree, PathWithArea
from sgm_sde.engine.noise import NoiseStream, SampleSeeds
from sgm_sde.sampling.diagnosis import ImplausibleWarning
from sgm_sde.schemes import GGF
from sgm_sde.schemes.tableaus import EmbeddedTableau

STEPS = 20
SIZES = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
DIMENSIONS = (1, 2, 16, 256)
LARGEST = 2_000_000
MANY = 1_000_000
METHOD = "ancestral"
MOONS = "moons-vp-0"
SDE = overhead.SDE
PAIRS = {"bosh3": sg.tableaus.BOSH3, "dopri5": sg.tableaus.DOPRI5, "tsit5": sg.tableaus.TSIT5}


def least(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Seconds of CPU time of each run, the least of some turns after one that does not count."""
    best: dict[str, float] = {}
    with torch.no_grad():
        for turn in range(1 + turns):
            for name, run in runs.items():
                seconds = overhead.seconds(lambda _, run=run: run(), 1)
                best[name] = min(best.get(name, float("inf")), seconds) if turn else float("inf")
    return best


def curve(dimensions: Sequence[int] = DIMENSIONS) -> list[dict[str, Any]]:
    """Seconds of a call against the number of samples."""
    rows = []
    for d, n in itertools.product(dimensions, SIZES):
        if n * d > LARGEST:
            continue
        x = SDE.prior_std * torch.randn((n, d), generator=torch.Generator().manual_seed(0))
        ours = overhead.our_run(METHOD, x, overhead.denoiser)
        runs: dict[str, Callable[[], Any]] = {"ours": lambda run=ours: run(STEPS)}
        for peer in overhead.PEERS:
            if (found := overhead.peer_run(peer, METHOD, x, overhead.denoiser)) is not None:
                runs[peer] = lambda run=found[1]: run(STEPS)
        runs["plain loop"] = overhead.plain_loop(METHOD, (n, d), STEPS)
        rows.append({"n": n, "d": d} | least(runs, 2 if n * d > 100_000 else 9))
    return rows


def straight_lines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The straight lines a + b n nearest to the seconds of n samples, by relative squares, and how far off they are."""
    found = []
    for d in sorted({row["d"] for row in rows}):
        mine = [row for row in rows if row["d"] == d]
        for name in ("ours", *overhead.PEERS, "plain loop"):
            points = np.array([(row["n"], row[name]) for row in mine if name in row]).reshape(-1, 2)
            if not len(points):
                continue
            n, seconds = points.T
            terms = np.stack([np.ones_like(n), n], 1) / seconds[:, None]
            (a, b), *_ = np.linalg.lstsq(terms, np.ones_like(n), rcond=None)
            relative = np.abs(a + b * n - seconds) / seconds
            found.append({
                "d": d, "run": name, "fixed ms": 1e3 * a, "ns a number and step": 1e9 * b / (d * STEPS),
                "off at most": relative.max(),
            })  # fmt: skip
    return found


def fixed() -> list[dict[str, Any]]:
    """A call of one step, and what the samples add to it."""
    rows = []
    for name, n in itertools.product(("ddim", "dpm++2m", METHOD), (1, 1_000, 100_000, 1_000_000)):
        x = SDE.prior_std * torch.randn(n, 1)
        one, more = (overhead.our_run(name, x, overhead.denoiser) for _ in range(2))
        found = least({"one": lambda run=one: run(1), "eleven": lambda run=more: run(11)}, 30 if n < 10_000 else 5)
        step = (found["eleven"] - found["one"]) / 10
        rows.append({"method": name, "n": n, "call_us": 1e6 * (found["one"] - step), "step_us": 1e6 * step})
    return rows


def memory() -> list[dict[str, Any]]:
    """Peak of the tensors of a run, in states, whole and in parts."""
    rows = []
    score = sg.from_denoiser(overhead.denoiser, SDE)
    for name, parts in itertools.product(("ddim", "dpm++3m", METHOD, "sde-dpm++2m", "pc"), (None, 50_000)):
        execution = sg.Execution(batch_size=parts)

        def run(name: str = name, execution: sg.Execution = execution) -> Any:
            return sg.sample(
                score, SDE, (MANY, 2), solver=name, grid=overhead.grid(8), seed=0, final="none", execution=execution
            )

        rows.append({"method": name, "batch_size": parts, "states": peak_bytes(run) / (4 * 2 * MANY)})
    return rows


def scores(sde: sg.VPSDE, d: int) -> dict[str, sg.Score]:
    """That of a mixture of two Gaussians, and, in two dimensions, that of a perceptron trained on two moons."""
    mixture = sg.oracles.GaussianMixture(torch.tensor([[-1.0] * d, [1.0] * d]), 0.3).score(sde)
    moons = bed_networks.score(MOONS, bed_networks.trained(MOONS))
    return {"mixture": mixture} | ({MOONS: moons} if d == 2 else {})


def least_and_calls(run: Callable[[], Any], watch: Stopwatch, turns: int) -> tuple[float, float]:
    """Seconds of the shortest of some runs, and of the network calls and vector-Jacobian products in it.

    The watch is around the network already.
    """
    found = []
    with mock.patch.object(torch.autograd, "grad", watch.around(torch.autograd.grad)), torch.no_grad():
        for _ in range(turns):
            watch.seconds = 0.0
            whole = overhead.seconds(lambda _: run(), 1)
            found.append((whole, watch.seconds))
    return min(found)


def ggf_loop(score: sg.Score, sde: sg.VPSDE, b: int, d: int, attempts: int) -> Callable[[], Tensor]:
    """Attempts of `ggf` on b samples as one writes them without a library, with `torch.randn`.

    Times and steps are computed, and stay what they are, so that there are as many attempts as asked.
    """
    solver = GGF()
    x, t, h = torch.randn(b, d), torch.full((b,), 0.5), torch.full((b,), 0.01)

    def drift(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = (sde.beta_min + (sde.beta_max - sde.beta_min) * t)[:, None]
        return beta * (x / 2 + score(x, t)), beta.sqrt()

    def run() -> Tensor:
        now, before = x, x
        for _ in range(attempts):
            slope, g = drift(now, t)
            dW = h.sqrt()[:, None] * torch.randn(b, d)
            euler = now + h[:, None] * slope + g * dW
            end_slope, g_end = drift(euler, t - h)
            end = (euler + now + h[:, None] * end_slope + g_end * dW) / 2

            size = torch.maximum(euler.abs(), before.abs())
            error = ((end - euler) / (solver.rtol * size).clamp_min(solver.atol)).square().mean(1).sqrt()
            ok = error <= 1
            now, before = (torch.where(ok[:, None], new, old) for new, old in ((end, now), (euler, before)))
            torch.where(ok, t - h, t)
            torch.minimum(t - sde.eps, (solver.safety * h * error.pow(-solver.exponent)).clamp_max(solver.growth * h))
        return now

    return run


def pair_loop(score: sg.Score, sde: sg.VPSDE, pair: EmbeddedTableau, x: Tensor) -> Callable[[], Tensor]:
    """A run of a pair from x (B, 2) as one writes it without a library, for a network of data or noise.

    The decisions are those of `Adaptive`, by its defaults: a step of each sample's own in sigma / (alpha + sigma), and
    samples that have arrived leave. Nothing is checked, counted or told.
    """
    solver = sg.Adaptive(pair)
    control = solver.controller
    q = pair.error_order
    rows = [[(j, w) for j, w in enumerate(row) if w] for row in (*pair.a, *pair.e)]
    of_data = score.prediction == "data"
    half = sde.beta_min / 2
    slope = (sde.beta_max - sde.beta_min) / 2
    ends = sde.nodes([sde.T, sde.eps])
    start, end = (node.sigma / (node.alpha + node.sigma) for node in ends)
    x_of_start, x_of_end = (node.alpha + node.sigma for node in ends)

    def f(u: Tensor, z: Tensor) -> Tensor:
        alpha, sigma = (1 - u).float(), u.float()
        square = (sigma / alpha).square()
        B = torch.log1p(square)
        t = (B / (half + (half**2 + slope * B).sqrt())).clamp(sde.eps, sde.T)
        scale = (1 + square).rsqrt() / alpha
        output = score.net(scale[:, None] * z, t)
        return (z - output) / sigma[:, None] if of_data else (output - z) / alpha[:, None]

    def norm(error: Tensor, y: Tensor, end: Tensor) -> Tensor:
        scale = solver.atol + solver.rtol * torch.maximum(y.abs(), end.abs())
        return (error / scale).square().mean(1).sqrt().double()

    def combined(k: list[Tensor], row: list[tuple[int, float]]) -> Tensor:
        (j, w), *others = row
        total = k[j] * w
        for j, w in others:
            total.add_(k[j], alpha=w)
        return total

    def first_step(u: Tensor, z: Tensor, k: Tensor) -> Tensor:
        size, speed = norm(z, z, z), norm(k, z, z)
        trial = torch.minimum(0.01 * size / speed, u - end)
        moved = z - trial.float()[:, None] * k
        steepest = torch.maximum(speed, norm(f(u - trial, moved) - k, z, z) / trial)
        return -torch.minimum(100 * trial, (0.01 / steepest) ** (1 / q))

    def run() -> Tensor:
        samples = torch.arange(len(x))
        result = torch.empty_like(x)
        z = x / x_of_start
        u = torch.full((len(x),), start, dtype=torch.float64)
        k = f(u, z)
        h = first_step(u, z, k)
        last, grows = torch.ones_like(u), torch.ones_like(u, dtype=torch.bool)

        while len(samples):
            arrives = h <= end - u
            h = torch.where(arrives, end - u, h)
            u_next = torch.where(arrives, end, u + h)
            step = h.float()[:, None].expand_as(z).contiguous()
            slopes = [k]
            for c, row in zip(pair.c[1:], rows[1:], strict=False):
                y = torch.addcmul(z, combined(slopes, row), step)
                slopes.append(f(u_next if c == 1 else u + c * h, y))
            error = norm(combined(slopes, rows[-1]) * step, z, y)

            ok = error <= 1
            factor = control.safety * error ** (-control.integral / q)
            factor = factor * last.clamp_min(1e-4) ** (control.proportional / q)
            factor = factor.clamp(control.smallest, control.largest)
            factor = torch.where(grows, factor, factor.clamp_max(1))
            shorter = (control.safety * error ** (-1 / q)).clamp(control.smallest, control.safety)
            h = h * torch.where(ok, factor, shorter)

            u, last, grows = torch.where(ok, u_next, u), torch.where(ok, error, last), ok
            z, k = (torch.where(ok[:, None], new, old) for new, old in ((y, z), (slopes[-1], k)))
            there = ok & arrives
            if there.any():
                result[samples[there]] = z[there]
                samples, z, k, u, h, last, grows = (v[~there] for v in (samples, z, k, u, h, last, grows))
        return result * x_of_end

    return run


def adaptive(n: int = 10_000, d: int = 2) -> list[dict[str, Any]]:
    """What finds its own steps beside its calls, or its attempts."""
    sde = sg.VPSDE()
    rows = []
    for (network, score), name in itertools.product(scores(sde, d).items(), (*PAIRS, "ggf", "log_prob")):
        watch = Stopwatch()
        timed = copy.copy(score)
        timed.net = watch.around(score.net)
        x = sg.sample(score, sde, (n, d), solver="dopri5", seed=0).x

        def ours(name: str = name, score: sg.Score = timed, x: Tensor = x) -> Any:
            if name == "log_prob":
                return sg.log_prob(score, sde, x)
            return sg.sample(score, sde, (n, d), solver=name, seed=0, final="none")

        res = ours()
        row = {"network": network, "solver": name, "nfe": res.nfe}
        if name == "ggf":
            on_the_way = round(res.network_evals / res.nfe)
            runs = {"ours": ours, "loop": ggf_loop(score, sde, on_the_way, d, res.nfe // 2)}
            found = least(runs, 2)
            rows.append(row | found | {"of the loop": found["ours"] / found["loop"]})
        else:
            turns = 2 if name == "log_prob" else 6
            whole, calls = least_and_calls(ours, watch, turns)
            rows.append(row | {"ours": whole, "calls": calls, "of the calls": whole / calls})
            if name in PAIRS:
                start = sde.prior_transform(
                    NoiseStream(SampleSeeds(0, range(n)), "prior").normal((n, d), torch.float32)
                )
                loop, of_loop = least_and_calls(pair_loop(timed, sde, PAIRS[name], start), watch, turns)
                rows[-1] |= {"loop": loop, "loop of its calls": loop / of_loop, "of the loop": whole / loop}
    return rows


def path() -> list[dict[str, Any]]:
    """noise="path" beside independent noise, on a grid, and increments at other places beside as many draws."""
    rows = []
    score = sg.from_denoiser(overhead.denoiser, SDE)
    for shape in ((10_000, 2), (100_000, 2), (4, 3, 32, 32), (64, 3, 32, 32)):

        def run(noise: str, shape: tuple[int, ...] = shape) -> Any:
            return sg.sample(score, SDE, shape, solver="euler-maruyama", grid=overhead.grid(STEPS), seed=0, noise=noise)

        on_grid = {"independent": lambda run=run: run("independent"), "path": lambda run=run: run("path")}
        found = least(on_grid | increments(shape), 3)
        of_independent = {
            "on a grid": found["path"] / found["independent"],
            "at own places": found["own places"] / found["draws"],
            "at common places": found["common places"] / found["draws"],
        }
        rows.append({"shape": list(shape)} | found | of_independent)
    return rows


def increments(shape: tuple[int, ...]) -> dict[str, Callable[[], None]]:
    """As many independent draws, and increments of Brownian paths at places not known before, as a run has steps.

    The places are those of steps of three binary digits, 1/8 to 1/512 of the path.
    """
    n = shape[0]
    seeds = SampleSeeds(0, range(n))
    rng = np.random.default_rng(0)
    steps = np.ldexp(rng.integers(4, 8, (STEPS, n)) / 8, -rng.integers(3, 9, (STEPS, n)))
    places = np.minimum(steps.cumsum(0), 1.0)
    common = np.minimum(steps[:, 0].cumsum(), 0.9).tolist()

    def draws() -> None:
        stream = NoiseStream(seeds, "solver")
        for _ in range(STEPS):
            stream.normal(shape, torch.float32)

    def own() -> None:
        tree = BrownianTree(seeds, shape[1:], 1.0)
        before = np.zeros((n, math.prod(shape[1:])))
        for place in places:
            path = tree.at(place, np.arange(n))
            np.subtract(path, before, out=before)
            before = path

    def shared() -> None:
        paths = PathWithArea(seeds, shape, 1.0, 1.0, torch.float32)
        for a, b in itertools.pairwise(sorted({0.0, *common})):
            paths.between(a, b)

    return {"draws": draws, "own places": own, "common places": shared}


def metrics() -> list[dict[str, Any]]:
    """Seconds of a metric of so many vectors of two numbers, and of as many others."""
    rows = []
    for name in ("frechet_distance", "kernel_distance", "prdc", "sliced_wasserstein"):
        row: dict[str, Any] = {"metric": name}
        for n in (1_000, 10_000, 100_000):
            a, b = torch.randn((2, n, 2), generator=torch.Generator().manual_seed(0))
            row |= least({str(n): lambda name=name, a=a, b=b: getattr(sg.metrics, name)(a, b)}, 2)
        rows.append(row)
    return rows


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "curve": curve, "fixed": fixed, "memory": memory, "adaptive": adaptive, "path": path,
    "metrics": metrics,
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---:|" * len(columns)]
    for row in rows:
        cells = [row.get(column) for column in columns]
        shown = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in cells)
        lines.append("| " + " | ".join(shown) + " |")
    return lines


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """The curve as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(DIMENSIONS), figsize=(13, 3.6), sharey=True, layout="constrained")
    for axis, d in zip(axes, DIMENSIONS, strict=True):
        mine = [row for row in rows if row["d"] == d]
        for name in ("diffusers", "k-diffusion", "azula", "plain loop", "ours"):
            points = [(row["n"], row[name]) for row in mine if name in row]
            if points:
                style = {"ours": "k-o", "plain loop": "k:"}.get(name, "-")
                axis.loglog(*zip(*points, strict=True), style, label=name, linewidth=2 if name == "ours" else 1.2)
        axis.set(title=f"D = {d}", xlabel="samples")
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel(f"seconds of {STEPS} steps, one thread")
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Measure, print, write and draw."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--dimensions", nargs="*", type=int, help="of the curve, these alone")
    parser.add_argument("--draw", type=Path, help="the curve as a picture")
    args = command.begin(parser)
    warnings.simplefilter("ignore", ImplausibleWarning)  # what a network that halves its input gives is no sample
    kept = args.out / "crowds.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    for part in args.only:
        if part == "curve" and args.dimensions:
            others = [row for row in known.get(part, []) if row["d"] not in args.dimensions]
            known[part] = others + curve(args.dimensions)
        else:
            known[part] = PARTS[part]()
        kept.write_text(json.dumps(known, indent=1) + "\n")
        sys.stdout.write("\n".join([f"\n{part}\n", *table(known[part])]) + "\n")
        if part == "curve":
            sys.stdout.write("\n".join(["", *table(straight_lines(known[part]))]) + "\n")
    if args.draw is not None:
        draw(known["curve"], args.draw)


if __name__ == "__main__":
    main()
