"""What many small samples cost: against the batch size beside other libraries, by call, memory and attempt.

    python benchmarks/crowds.py --out out/bench [--only curve fixed memory adaptive path] [--draw docs/crowds.png]

One thread and its CPU time, float32, a network that halves its input, the least of some turns. Parts are kept in
crowds.json as they are measured, so that they can be measured one at a time.

- `curve`: a call of 20 steps of ancestral sampling against the number of samples, at 1 to 256 dimensions: ours, other
  libraries' and a loop over `torch.randn`. Runs of more than two million numbers are left out.
- `fixed`: a call of one step; what is left beside the step is the call.
- `memory`: peak of all tensors of a run of a million samples, in states.
- `adaptive`: `ggf` and embedded pairs beside their network calls: for `ggf` with two draws of `torch.randn` for each
  attempt, for pairs the calls and one combination of as many rows as the pair has stages.
- `path`: noise="path" beside independent noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import overhead
import torch
from torch import Tensor

import sgm_sde as sg

STEPS = 20
SIZES = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
DIMENSIONS = (1, 2, 16, 256)
LARGEST = 2_000_000
MANY = 1_000_000
METHOD = "ancestral"
SDE = overhead.SDE


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
        x = torch.randn((n, d), generator=torch.Generator().manual_seed(0))
        ours = overhead.our_run(METHOD, x)
        runs: dict[str, Callable[[], Any]] = {"ours": lambda run=ours: run(STEPS)}
        for peer in overhead.PEERS:
            if (found := overhead.peer_run(peer, METHOD, x)) is not None:
                runs[peer] = lambda run=found[1]: run(STEPS)
        runs["plain loop"] = overhead.plain_loop(METHOD, (n, d), STEPS)
        rows.append({"n": n, "d": d} | least(runs, 2 if n * d > 100_000 else 9))
    return rows


def fixed() -> list[dict[str, Any]]:
    """A call of one step, and what the samples add to it."""
    rows = []
    for name, n in itertools.product(("ddim", "dpm++2m", METHOD), (1, 1_000, 100_000, 1_000_000)):
        x = torch.randn(n, 1)
        one, more = overhead.our_run(name, x), overhead.our_run(name, x)
        found = least({"one": lambda run=one: run(1), "eleven": lambda run=more: run(11)}, 30 if n < 10_000 else 5)
        step = (found["eleven"] - found["one"]) / 10
        rows.append({"method": name, "n": n, "call_us": 1e6 * (found["one"] - step), "step_us": 1e6 * step})
    return rows


def memory() -> list[dict[str, Any]]:
    """Peak of the tensors of a run, in states, whole and in parts."""
    rows = []
    score = sg.from_denoiser(overhead.network, SDE)
    for name, parts in itertools.product(("ddim", "dpm++3m", METHOD, "sde-dpm++2m", "pc"), (None, 50_000)):
        execution = sg.Execution(batch_size=parts)

        def run(steps: int, name: str = name, execution: sg.Execution = execution) -> Any:
            return sg.sample(
                score, SDE, (MANY, 2), solver=name, grid=overhead.grid(steps), seed=0, final="none", execution=execution
            )

        peak = overhead.peak_bytes(run, 4) / (4 * 2 * MANY)
        rows.append({"method": name, "batch_size": parts, "states": peak})
    return rows


def adaptive(n: int = 10_000, d: int = 2) -> list[dict[str, Any]]:
    """Solvers that find their own steps beside their attempts."""
    sde = sg.VPSDE()
    score = sg.oracles.GaussianMixture(torch.tensor([[-1.0] * d, [1.0] * d]), 0.3).score(sde)
    rows = []
    for name in ("bosh3", "dopri5", "tsit5", "ggf"):
        res = sg.sample(score, sde, (n, d), solver=name, seed=0, final="none")
        assert res.control is not None
        attempts, share = res.nfe, res.network_evals / res.nfe / n
        b = max(1, int(share * n))
        x, t = torch.randn(b, d), torch.full((b,), 0.5)
        draws = 1 if name == "ggf" else 0

        def bare(attempts: int = attempts, x: Tensor = x, t: Tensor = t, draws: int = draws) -> None:
            for _ in range(attempts):
                score(x, t)
                for _ in range(draws):
                    torch.randn(x.shape)

        runs = {
            "ours": lambda name=name: sg.sample(score, sde, (n, d), solver=name, seed=0, final="none"),
            "calls": bare,
        }
        rows.append({"solver": name, "nfe": res.nfe, "rows": res.network_evals} | least(runs, 2))
    return rows


def path() -> list[dict[str, Any]]:
    """noise="path" beside independent noise, on a grid."""
    rows = []
    score = sg.from_denoiser(overhead.network, SDE)
    for shape in ((10_000, 2), (100_000, 2), (4, 3, 32, 32), (64, 3, 32, 32)):

        def run(noise: str, shape: tuple[int, ...] = shape) -> Any:
            return sg.sample(score, SDE, shape, solver="euler-maruyama", grid=overhead.grid(STEPS), seed=0, noise=noise)

        runs = {"independent": lambda run=run: run("independent"), "path": lambda run=run: run("path")}
        rows.append({"shape": list(shape)} | least(runs, 3))
    return rows


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "curve": curve, "fixed": fixed, "memory": memory, "adaptive": adaptive, "path": path,
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--dimensions", nargs="*", type=int, help="of the curve, these alone")
    parser.add_argument("--draw", type=Path, help="the curve as a picture")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
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
    if args.draw is not None:
        draw(known["curve"], args.draw)


if __name__ == "__main__":
    main()
