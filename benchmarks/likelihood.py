"""Error and cost of log-likelihoods: the fixed grid beside the protocol of Song et al. (SciPy's RK45).

    python benchmarks/likelihood.py --out out/bench

On a 2-D mixture, on an empirical density of digits and on the shipped digits network, all in EDM's coordinates: error
of the exact-trace value in bits/dim against a reference (300 steps of the fixed grid; its distance to RK45 at 1e-7,
for the network to 600 steps, is printed), network calls, and seconds with one Hutchinson probe, measured in turns. One
thread, float64 for the oracles and float32 for the network.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from sgm_sde.demo import digits_score
from sgm_sde.nn.digits import digits_data
from sgm_sde.testing import default_oracle

METHODS: dict[str, dict[str, Any]] = {
    **{f"fixed grid, {n} steps": {"steps": n} for n in (16, 24, 32, 48, 64)},
    **{f"RK45 (SciPy), {tol:g}": {"method": "rk45-scipy", "rtol": tol, "atol": tol} for tol in (1e-3, 1e-4, 1e-5)},
}


def beds(n: int) -> dict[str, tuple[Any, sg.LinearSDE, Tensor, dict[str, Any]]]:
    """Score, process, points at eps and the network's arguments, by name."""
    mixture, sde = default_oracle("mixture"), sg.EDMSDE()
    x = mixture.sample(n, sde, sde.eps, seed=0, dtype=torch.float64)
    images, _ = digits_data("train")
    empirical = sg.oracles.Empirical(images[:100].double().flatten(1), 0.2)
    pixels = empirical.sample(n, sde, sde.eps, seed=0, dtype=torch.float64)
    held, asked = (part[:n] for part in digits_data("held_out"))
    noisy = held + sde.eps * sde.prior_sample(tuple(held.shape), seed=1) / sde.prior_std
    return {
        "mixture, 2-D": (mixture.score(sde), sde, x, {}),
        "empirical digits, 64-D": (empirical.score(sde), sde, pixels, {}),
        "digits network, 64-D": (digits_score(sde), sde, noisy, {"model_kwargs": {"y": asked}}),
    }


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--n", type=int, default=8, help="points")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, in turns")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    lines = []
    for bed, (score, sde, x, kwargs) in tqdm(beds(args.n).items(), desc="test beds"):
        to_bits = 1 / (x[0].numel() * math.log(2))
        data_std = float(x.std())
        log_prob = partial(sg.log_prob, score, sde, x, **kwargs)
        exact = partial(log_prob, trace="exact", chunk=64)
        reference = exact(steps=300, data_std=data_std).value
        tight = {"method": "rk45-scipy", "rtol": 1e-7, "atol": 1e-7} if x.dtype == torch.float64 else {"steps": 600}
        known = float((exact(**tight).value - reference).abs().max() * to_bits)
        times: dict[str, list[float]] = {name: [] for name in METHODS}
        for _ in range(args.repeats):
            for name, options in METHODS.items():
                times[name].append(seconds(partial(log_prob, seed=0, **options)))
        lines += [f"**{bed}** (reference known to {known:.0e} bits/dim)", ""]
        lines += ["| method | mean error | rms error | network calls | seconds |", "|---|--:|--:|--:|--:|"]
        for name, options in METHODS.items():
            res = exact(**options)
            error = (res.value - reference) * to_bits
            row = {
                "bed": bed,
                "method": name,
                "mean": float(error.mean()),
                "rms": float(error.square().mean().sqrt()),
                "nfe": res.nfe,
                "seconds": median(times[name]),
            }
            rows.append(row)
            lines.append(f"| {name} | {row['mean']:+.1e} | {row['rms']:.1e} | {row['nfe']} | {row['seconds']:.3f} |")
        lines.append("")
    text = "\n".join(lines)
    (args.out / "likelihood.md").write_text(text)
    protocol = {"n": args.n, "repeats": args.repeats, "torch": torch.__version__, "rows": rows}
    (args.out / "likelihood.json").write_text(json.dumps(protocol, indent=1) + "\n")
    sys.stdout.write(text + f"\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
