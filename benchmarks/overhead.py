"""What a sampler costs beside its network: microseconds a step, ours, other libraries' and the least possible.

    python -m benchmarks.overhead --out out/bench [--repeats 15] [--only rows memory noise crowds] [--methods ddim]

One thread and its CPU time, float32, a network that halves its input. Every run is timed at two lengths; the slope is
the cost of a step, and what is left at length 0 the fixed cost of a call (ours: of `sg.sample`, the program being
compiled before). All runs of a method and shape take turns, so that what else the machine does hits them alike, and
medians are taken.

The floor of a step is its network calls, and for each call one pass over the state and as many rows of a buffer as the
method combines there, by `torch.addmv` or by `add_` row after row, whichever is faster; for a stochastic method also
drawing the noise. The overhead is what a step takes without its network calls; that of a peer is given as a multiple
of ours. Peers get the network in their own coordinates (`native`), so that none pays for a conversion; their noise is
`torch.randn`, unseeded, ours is a function of each sample's seed.

Crowds, many small samples in a call, are timed beside what one writes without a library: the same formula in a loop
over `torch.randn`, least of some turns.

Peak memory is that of all tensors and arrays a run allocates, network outputs included, in sizes of the state.
Takes five minutes with all peers, two without.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command, peers
from benchmarks.peak_memory import peak_bytes
from sgm_sde.engine.brownian import PathNoise
from sgm_sde.engine.noise import NoiseStream, SampleSeeds
from sgm_sde.sampling.diagnosis import ImplausibleWarning
from sgm_sde.schemes import REGISTRY


@dataclass(frozen=True)
class Method:
    """What to time.

    Attributes:
        name: ours, and through `peers.SAMPLERS` everyone's.
        rows: for each network call of a step, how many tensors besides the state are combined after it.
        stochastic: whether one of them is noise.
    """

    name: str
    rows: tuple[int, ...]
    stochastic: bool = False


METHODS = (
    Method("ddim", (1,)),
    Method("euler", (1,)),
    Method("heun", (1, 2)),
    Method("dpm++2m", (2,)),
    Method("dpm++3m", (3,)),
    Method("unipc2", (3,)),  # corrector and next predictor in one: both are linear in the last three evaluations
    Method("unipc3", (4,)),
    Method("deis3", (3,)),
    Method("lms4", (4,)),
    Method("ancestral", (2,), stochastic=True),
    Method("sde-dpm++2m", (3,), stochastic=True),
)
# Shape: lengths of the short and the long run, and how often they are run in the time of one of the largest.
SHAPES: dict[tuple[int, ...], tuple[int, int, int]] = {
    (4, 3, 32, 32): (10, 50, 5),
    (64, 3, 32, 32): (6, 22, 2),
    (64, 3, 64, 64): (6, 16, 1),
}
PEERS = ("diffusers", "k-diffusion", "azula")
SDE = sg.EDMSDE()
Run = Callable[[int], Any]
Network = Callable[[Tensor, Any], Tensor]


def network(x: Tensor, sigma: Any) -> Tensor:
    """The trivial network."""
    return x * 0.5


def denoiser(x: Tensor, sigma: Any) -> Tensor:
    """The network that is right for normal data, on levels of noise that all samples share.

    What the trivial one makes of many samples is no sample, and the status of a run lists them one by one.
    """
    s = float(sigma if isinstance(sigma, float) else sigma.reshape(-1)[0])
    return x * (1 / (1 + s * s))


@cache
def grid(steps: int) -> sg.Grid:
    """Karras' noise levels."""
    return sg.grids.Karras()(SDE, steps)


def our_run(name: str, x: Tensor, net: Network = network) -> Run:
    """`sample` along a given grid."""
    score = sg.from_denoiser(net, SDE)
    return lambda steps: sg.sample(score, SDE, x_T=x, solver=name, grid=grid(steps), seed=0, final="none")


def peer_run(peer: str, name: str, x: Tensor, net: Network = network) -> tuple[str, Run] | None:
    """The library's method and a run of it; None if it has none or is not installed."""
    if peer not in peers.available():
        return None
    found = [s for s in peers.SAMPLERS if (s.peer, s.ours) == (peer, name)]
    if not found:
        return None
    sampler = min(found, key=lambda s: bool(s.variant))  # the defaults of ours where there is a choice

    def noises() -> Iterator[Tensor]:
        while True:
            yield torch.randn_like(x)

    # k-diffusion's own noise for SDE solvers is a Brownian tree, which would be most of its time.
    noise = noises() if sampler.stochastic else None
    return sampler.method, lambda steps: sampler.run(net, grid(steps).times, x, noise, native=True)


def network_run(method: Method, x: Tensor) -> Run:
    """The network calls of a run alone."""

    def run(steps: int) -> None:
        for _ in range(steps * len(method.rows)):
            network(x, None)

    return run


def floor_run(method: Method, x: Tensor, fused: bool) -> Run:
    """The least that a run has to do, with one `addmv` a network call or with `add_` row after row."""
    state = x.flatten().clone()
    passes = [(torch.randn(rows, x.numel()), torch.full((rows,), 0.1)) for rows in method.rows]
    noise = torch.empty_like(state)

    def run(steps: int) -> None:
        for _ in range(steps):
            for rows, weights in passes:
                network(x, None)
                if fused:
                    torch.addmv(state, rows.t(), weights, beta=0.5, out=state)
                else:
                    state.mul_(0.5)
                    for row in rows.unbind(0):
                        state.add_(row, alpha=0.1)
            if method.stochastic:
                noise.normal_()

    return run


def seconds(run: Run, steps: int) -> float:
    """CPU time of a run."""
    start = time.thread_time()
    run(steps)
    return time.thread_time() - start


def time_runs(runs: dict[str, Run], short: int, long: int, repeats: int) -> dict[str, tuple[float, float]]:
    """For each run its microseconds a step and its fixed microseconds, as medians over repeats in turn."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    with torch.no_grad():
        for run, steps in itertools.product(runs.values(), (short, long)):
            run(steps)
        gc.collect()
        gc.disable()
        for _ in range(repeats):
            for name, run in runs.items():
                run(short)  # so that neither of the two finds its memory cold after another library's run
                measured[name].append((seconds(run, short), seconds(run, long)))
        gc.enable()
    results = {}
    for name, pairs in measured.items():
        low, high = (1e6 * statistics.median(column) for column in zip(*pairs, strict=True))
        slope = (high - low) / (long - short)
        results[name] = (slope, low - short * slope)
    return results


def row_of(method: Method, shape: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """One row of the table."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    runs = {"network": network_run(method, x), "ours": our_run(method.name, x)}
    runs |= {"addmv": floor_run(method, x, fused=True), "add": floor_run(method, x, fused=False)}
    methods = {}
    for peer in PEERS:
        if (found := peer_run(peer, method.name, x)) is not None:
            methods[peer], runs[peer] = found
    short, long, often = SHAPES[shape]
    times = time_runs(runs, short, long, often * repeats)
    net = times["network"][0]
    row: dict[str, Any] = {"method": method.name, "shape": list(shape), "network_us_per_step": net}
    row["ours_us_per_step"], row["ours_fixed_us"] = times["ours"]
    row["floor_us_per_step"] = min(times["addmv"][0], times["add"][0])
    row["peers"] = {
        peer: {
            "method": methods[peer],
            "us_per_step": times[peer][0],
            "fixed_us": times[peer][1],
            "overhead_ratio": (times[peer][0] - net) / (times["ours"][0] - net),
        }
        for peer in methods
    }
    return row


def memory(methods: tuple[Method, ...]) -> list[dict[str, Any]]:
    """Peak memory of our methods, for a short and a long run."""
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    size = x.numel() * x.element_size()
    rows = []
    for m in methods:
        run = our_run(m.name, x)
        peaks = {f"states_at_{n}_steps": peak_bytes(lambda run=run, n=n: run(n)) / size for n in (10, 100)}
        rows.append({"method": m.name} | peaks)
    return rows


def noise(shape: tuple[int, ...] = (64, 3, 32, 32), repeats: int = 50) -> dict[str, Any]:
    """Microseconds of a draw with a stream for each sample, of torch's own, and of a step along Brownian paths."""
    seeds, generator = SampleSeeds(0, range(shape[0])), torch.Generator().manual_seed(0)
    stream = NoiseStream(seeds, "solver")
    program = sg.EulerMaruyama().compile(sg.VPSDE(), sg.grids.Uniform()(sg.VPSDE(), 50))
    paths = PathNoise(program, seeds, brownian_time=lambda t: t, middle=lambda a, b: (a + b) / 2)
    draws: dict[str, tuple[Run, int]] = {
        "randn_us": (lambda _: torch.randn(shape, generator=generator), repeats),
        "streams_us": (lambda _: stream.normal(shape, torch.float32), repeats),
        "path_us": (lambda _: paths.normal(shape, torch.float32), 10),
    }
    times = {name: 1e6 * statistics.median(seconds(draw, 1) for _ in range(n)) for name, (draw, n) in draws.items()}
    return {"shape": list(shape)} | times | {"ratio": times["streams_us"] / times["randn_us"]}


CROWDS = ((1_000, 2), (10_000, 2), (100_000, 2), (1_000_000, 1))
CROWD_STEPS = 50


def plain_loop(name: str, shape: tuple[int, ...], steps: int = CROWD_STEPS) -> Callable[[], Tensor]:
    """What one writes without a library: the method's formula in sigma, step by step, with `torch.randn`."""
    times = grid(steps).times

    def run() -> Tensor:
        x, last, before = times[0] * torch.randn(shape), None, 0.0
        for t, u in itertools.pairwise(times):
            data = denoiser(x, t)
            if name == "ddim":
                x = x + (u - t) * (x - data) / t
            elif name == "euler-maruyama":
                x = x + 2 * (u - t) * (x - data) / t + math.sqrt(2 * t * (t - u)) * torch.randn(shape)
            elif name == "ancestral":
                up = u * math.sqrt(1 - (u / t) ** 2)
                x = x + (u * u / t - t) * (x - data) / t + up * torch.randn(shape)
            elif name == "sde-dpm++2m":
                h = math.log(t / u)
                c = -math.expm1(-2 * h)
                estimate = data if last is None else data + 0.5 * h / before * (data - last)
                x = (u / t) ** 2 * x + c * estimate + u * math.sqrt(c) * torch.randn(shape)
                last, before = data, h
            else:
                x = x - (1 - (u / t) ** 2) * (x - data) + math.sqrt(t * t - u * u) * torch.randn(shape)
                size = 2 * (0.16 * u) ** 2
                score = (denoiser(x, u) - x) / (u * u)
                x = x + size * score + math.sqrt(2 * size) * torch.randn(shape)
        return x

    return run


def crowds(repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of `sample` and of a plain loop for many small samples, the least of some turns."""
    rows = []
    score = sg.from_denoiser(denoiser, SDE)
    for shape, name in itertools.product(CROWDS, ("ddim", "euler-maruyama", "ancestral", "sde-dpm++2m", "pc")):

        def ours(shape: tuple[int, ...] = shape, name: str = name, **options: Any) -> Any:
            return sg.sample(score, SDE, shape, solver=name, grid=grid(CROWD_STEPS), seed=0, final="none", **options)

        runs: dict[str, Callable[[], Any]] = {"plain": plain_loop(name, shape), "ours": ours}
        if name == "euler-maruyama":
            runs["path"] = lambda ours=ours: ours(noise="path")
        times: dict[str, list[float]] = {which: [] for which in runs}
        with torch.no_grad():
            for _ in range(1 + repeats):
                for which, run in runs.items():
                    times[which].append(1e3 * seconds(lambda _, run=run: run(), 1))
        least = {f"{which}_ms": min(of[1:]) for which, of in times.items()}
        rows.append({"method": name, "shape": list(shape), **least, "ratio": least["ours_ms"] / least["plain_ms"]})
    return rows


def crowd_table(rows: list[dict[str, Any]]) -> list[str]:
    """The times of many small samples as a Markdown table."""
    head = f"| {CROWD_STEPS} steps | shape | plain loop ms | ours ms | ours / plain | path ms |"
    lines = [head, "|---|---|---:|---:|---:|---:|"]
    for row in rows:
        path = f"{row['path_ms']:.1f}" if "path_ms" in row else ""
        lines.append(
            f"| `{row['method']}` | {'x'.join(map(str, row['shape']))} | {row['plain_ms']:.1f} | {row['ours_ms']:.1f} "
            f"| {row['ratio']:.2f} | {path} |"
        )
    return lines


def cpu_name() -> str:
    """The processor's name, as well as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The times as a Markdown table."""
    names = ["method", "shape", "ours us/step", "floor us/step", "ours/floor", "ours fixed us"]
    names += [cell for peer in PEERS for cell in (f"{peer} us/step", "overhead / ours")]
    lines = ["| " + " | ".join(names) + " |", "|---|---|" + "---:|" * (len(names) - 2)]
    for row in rows:
        ours, floor = row["ours_us_per_step"], row["floor_us_per_step"]
        cells = [f"`{row['method']}`", "x".join(map(str, row["shape"]))]
        cells += [f"{ours:.1f}", f"{floor:.1f}", f"{ours / floor:.2f}", f"{row['ours_fixed_us']:.0f}"]
        for peer in PEERS:
            entry = row["peers"].get(peer)
            cells += [f"{entry['us_per_step']:.1f}", f"{entry['overhead_ratio']:.1f}"] if entry else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def report(known: dict[str, Any]) -> list[str]:
    """All tables of what has been measured."""
    lines = table(known["rows"]) if "rows" in known else []
    if "memory" in known:
        lines += ["", "| method | peak memory, 10 steps | 100 steps |", "|---|---:|---:|"]
        for peak in known["memory"]:
            values = [f"{peak[f'states_at_{n}_steps']:.2f} states" for n in (10, 100)]
            lines.append(f"| `{peak['method']}` | {' | '.join(values)} |")
    if "noise" in known:
        drawn = known["noise"]
        lines += ["", "| noise (64, 3, 32, 32) | us | of torch.randn |", "|---|---:|---:|"]
        for name in ("randn_us", "streams_us", "path_us"):
            lines.append(f"| {name[:-3]} | {drawn[name]:.0f} | {drawn[name] / drawn['randn_us']:.2f} |")
    if "crowds" in known:
        lines += ["", *crowd_table(known["crowds"])]
    return lines


PARTS = ("rows", "memory", "noise", "crowds")


def main() -> None:
    """Measure, print and write."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="these parts alone")
    args = command.begin(parser)
    warnings.simplefilter("ignore", ImplausibleWarning)  # what a network that halves its input gives is no sample

    # Parts are kept as they are measured, so that a long measurement can be made in pieces.
    kept = args.out / "overhead.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() and len(args.only) < len(PARTS) else {}
    methods = tuple(m for m in METHODS if m.name in REGISTRY and (not args.methods or m.name in args.methods))
    if "rows" in args.only:
        todo = list(itertools.product(SHAPES, methods))
        new = [row_of(method, shape, args.repeats) for shape, method in tqdm(todo, desc="runs")]
        of = {(row["method"], tuple(row["shape"])): row for row in [*known.get("rows", []), *new]}
        order = list(itertools.product(SHAPES, METHODS))
        known["rows"] = [of[m.name, shape] for shape, m in order if (m.name, shape) in of]
    if "memory" in args.only:
        known["memory"] = memory(METHODS)
    if "noise" in args.only:
        known["noise"] = noise()
    if "crowds" in args.only:
        known["crowds"] = crowds(max(1, args.repeats // 5))

    machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    known |= machine | {"peers": peers.available(), "repeats": args.repeats}
    lines = report(known)
    (args.out / "overhead.md").write_text("\n".join(lines) + "\n")
    kept.write_text(json.dumps(known, indent=1) + "\n")
    sys.stdout.write("\n".join(lines) + f"\n\n{machine}\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
