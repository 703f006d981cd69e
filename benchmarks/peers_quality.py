"""One network through our samplers and other libraries': quality, agreement, and time in and beside the network.

    python -m benchmarks.peers_quality --out out/bench [--model digits] [--n 2000] [--nfe 6,10,20]

Everyone gets the same network, noise levels (Karras'), initial noises, labels and, where a method draws noise, the same
noise. Runs stop at the last noise level, without a final denoising; a budget of network calls (NFE) is never exceeded.

Quality is the Frechet distance of the model's own features, as `sgm-sde bench` takes it. Methods that are the same must
give the same samples: "off by" is the root-mean-square difference to ours, over the standard deviation of ours. Times
are CPU time of one thread. "Network" is what is spent in its calls, "beside" all else that a run of a batch takes, from
the building of the sampler on: also the drawing of the noise, and giving a library another prediction than the data if
it wants one. `overhead.py` measures the cost of a step alone.

Peers are optional (`pip install ".[peers]"`). Takes three minutes on one core with all of them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command, peers
from sgm_sde.data.images import to_uint8
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.evaluation.bench import SHIPPED, black_white
from sgm_sde.evaluation.metrics.features import load_extractor
from sgm_sde.evaluation.metrics.reference import load_reference
from sgm_sde.evaluation.results import METRICS

OURS = "sgm_sde"
METHODS = (
    ("ddim", ""), ("euler", ""), ("heun", ""), ("dpm++2m", ""), ("dpm++2m", "exact"), ("dpm++3m", "cold"),
    ("dpm++3m", "published"), ("unipc2", ""), ("unipc3", ""), ("deis3", "log-snr"), ("lms4", "cold"), ("ipndm4", ""),
    ("ancestral", ""), ("sde-dpm++2m", ""),
)  # fmt: skip
SDE = sg.EDMSDE()


class Timed:
    """A denoiser that keeps the CPU time and the number of its calls."""

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        self.denoiser, self.seconds, self.calls = denoiser, 0.0, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        start = time.thread_time()
        out = self.denoiser(*args, **kwargs)
        self.seconds += time.thread_time() - start
        self.calls += 1
        return out


Run = Callable[[Timed, Tensor, sg.Grid, list[tuple[int, int]], dict[str, Tensor]], Tensor]


def our_run(solver: sg.Solver) -> Run:
    """Our sampler, seed by seed."""

    def run(net: Timed, x: Tensor, grid: sg.Grid, seeds: list[tuple[int, int]], kwargs: dict[str, Tensor]) -> Tensor:
        score = sg.from_denoiser(net, SDE)
        return sg.sample(score, SDE, x_T=x, solver=solver, grid=grid, seed=seeds, final="none", model_kwargs=kwargs).x

    return run


def peer_run(sampler: peers.PeerSampler) -> Run:
    """Theirs, with the noise that ours draws."""

    def run(net: Timed, x: Tensor, grid: sg.Grid, seeds: list[tuple[int, int]], kwargs: dict[str, Tensor]) -> Tensor:
        stream = NoiseStream(seeds, "solver", grid.times[0])

        def noises() -> Iterator[Tensor]:
            while True:
                yield stream.normal(tuple(x.shape), x.dtype)

        given = noises() if sampler.stochastic else None
        return sampler.run(lambda x, sigma: net(x, sigma, **kwargs), grid.times, x, given)

    return run


def measure(run: Run, model: sg.models.Model, steps: int, n: int, batch: int) -> tuple[Tensor, dict[str, Any]]:
    """Samples (n, *), the calls and steps of a batch, and the CPU seconds in and beside the network in all."""
    grid = sg.grids.Karras()(SDE, steps)

    def draw(net: Timed, first: int, last: int) -> tuple[Tensor, float]:
        seeds = [(0, i) for i in range(first, last)]
        noise = NoiseStream(seeds, "prior").normal((len(seeds), *model.shape), torch.float32)
        x = SDE.prior_transform(noise, grid.times[0])
        kwargs = {} if model.n_classes is None else {"y": torch.arange(first, last) % model.n_classes}
        start = time.thread_time()
        x = run(net, x, grid, seeds, kwargs)
        return x, time.thread_time() - start

    draw(Timed(model.score.denoised), 0, 2)  # imports and compiles what there is to
    net = Timed(model.score.denoised)
    parts, seconds = zip(*(draw(net, first, min(first + batch, n)) for first in range(0, n, batch)), strict=True)
    found = {"nfe": net.calls // len(parts), "steps": steps, "batches": len(parts)}
    return torch.cat(parts), found | {"network_s": net.seconds, "beside_s": sum(seconds) - net.seconds}


def methods(names: Sequence[str] | None) -> list[tuple[str, sg.Solver, list[peers.PeerSampler]]]:
    """A label, our solver and the peers that have it, for each method."""
    found = []
    for name, variant in METHODS:
        label = f"{name}, {variant}" if variant else name
        if names is None or name in names or label in names:
            same = [s for s in peers.SAMPLERS if (s.ours, s.variant) == (name, variant)]
            first = {s.peer: s for s in reversed(same) if s.peer in peers.available()}
            found.append((label, peers.OURS[name, variant](), sorted(first.values(), key=lambda s: s.peer)))
    return found


def table(rows: list[dict[str, Any]], budgets: Sequence[int]) -> list[str]:
    """Markdown: a line for each method and library."""
    names = ["method", "library", *(f"{nfe} NFE" for nfe in budgets), "off by", "network ms a call", "beside ms a step"]
    lines = ["| " + " | ".join(names) + " |", "|---|---|" + "---:|" * (len(names) - 2)]
    for label, library in dict.fromkeys((row["method"], row["library"]) for row in rows):
        own = [row for row in rows if (row["method"], row["library"]) == (label, library)]
        by_budget = {row["budget"]: f"{row['frechet']:.3f}" for row in own}
        steps, calls = (sum(row["batches"] * row[key] for row in own) for key in ("steps", "nfe"))
        off = "" if library == OURS else f"{max(row['off_by'] for row in own):.0e}"
        times = [1e3 * sum(row["network_s"] for row in own) / calls, 1e3 * sum(row["beside_s"] for row in own) / steps]
        cells = [label, library, *(by_budget.get(nfe, "-") for nfe in budgets), off, *(f"{v:.2f}" for v in times)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure, print and write."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--model", default="digits", help="a model in EDM's coordinates")
    parser.add_argument("--features", help="those of a shipped model if not given")
    parser.add_argument("--reference", help="that of a shipped model if not given")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--nfe", default="6,10,20")
    parser.add_argument("--methods", nargs="*", help="only these")
    args = command.begin(parser)
    model = sg.load_model(args.model)
    if model.sde != SDE:
        parser.error(f"the peers run in EDM's coordinates: the model must have the process {SDE}, not {model.sde}")
    own = SHIPPED.get(model.name, ("", "", ""))
    extractor = load_extractor(args.features or own[0], model.shape)
    limits = black_white(model)
    real = load_reference(args.reference or own[1], extractor, model.shape, limits)
    budgets = [int(nfe) for nfe in args.nfe.split(",")]
    rows: list[dict[str, Any]] = []
    for label, solver, others in tqdm(methods(args.methods), desc="methods"):
        for nfe in budgets:
            # Whoever spends calls at the start spends as many as the others of the same method.
            extra = others[0].extra_nfe if others else solver.nfe(1) - solver.nfe_per_step
            steps = (nfe - extra) // solver.nfe_per_step
            if steps < 1:
                continue
            runs = [(OURS, str(solver), our_run(solver))] + [(s.peer, s.method, peer_run(s)) for s in others]
            results = [(*about, *measure(run, model, steps, args.n, args.batch)) for *about, run in runs]
            x = results[0][2]
            for library, method, y, found in results:
                distance = METRICS["frechet"].measure(extractor(to_uint8(y, limits)), real)
                row = {"method": label, "library": library, "definition": method, "budget": nfe, **found}
                off = float((y - x).square().mean().sqrt() / x.std())
                rows.append(row | distance | {"off_by": off})
    about = (
        f"Frechet distance ({extractor.name}) of {args.n} samples of {model.name} to the {real.n} of {real.name}, "
        f"Karras' noise levels; batches of {args.batch}."
    )
    lines = [about, "", *table(rows, budgets)]
    protocol = {
        "model": model.name, "weights": model.weights, "n": args.n, "batch": args.batch, "seed": 0,
        "features": [extractor.name, extractor.hash], "reference": [real.name, real.hash], "sgm_sde": sg.__version__,
        "torch": torch.__version__, "peers": peers.available(), "rows": rows,
    }  # fmt: skip
    (args.out / "peers_quality.md").write_text("\n".join(lines) + "\n")
    (args.out / "peers_quality.json").write_text(json.dumps(protocol, indent=1) + "\n")
    sys.stdout.write("\n".join(lines) + f"\n\nPeers: {peers.available() or 'none installed'}. Written to {args.out}\n")


if __name__ == "__main__":
    main()
