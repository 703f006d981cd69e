"""Error and cost of log-likelihoods: the fixed grid beside Song et al.'s protocol (SciPy's RK45), torchdiffeq's dopri5
and k-diffusion's.

    python -m benchmarks.likelihood --out out/bench                       # all test beds
    python -m benchmarks.likelihood --only digits --out out/bench         # some, beside those that are there
    python -m benchmarks.likelihood --picture docs/likelihood.png --out out/bench   # of what is there

On a 2-D mixture, on VP and rectified flow as well, with a wave in log-SNR on its score, as rough networks have; on an
empirical density of digits, on the shipped network of digits and on that of clothes; but for the two in EDM's
coordinates: error in bits/dim, network calls (the largest number that a sample took, and the mean), and seconds
with one Hutchinson probe, measured in turns on one thread. Errors are those of the solution in time alone. Methods of
ours are compared with the exact trace against a reference (600 steps of the fixed grid; its distance to RK45 at 1e-7,
in more dimensions to 300 steps, is printed); on the clothes, of 784 dimensions, with one probe that is the same for
all methods at all times. `k_diffusion.sampling.log_likelihood` has one fixed probe only: it is given one of ours, and
its reference is SciPy's RK45 at 1e-7 with the same. Networks run in float64 where errors are measured, and where times
are in float32, as they were trained.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command, peers, pictures
from benchmarks.likelihood_error import counted
from sgm_sde.engine.noise import NoiseStream, resolve_seeds
from sgm_sde.likelihood import AdaptiveFlow, AdjointFlow, Exact, FixedGrid, Hutchinson, ScipyRK45
from sgm_sde.likelihood.problem import Problem
from sgm_sde.likelihood.trace import RandomTrace, TraceScore
from sgm_sde.nn.digits import digits_data, load_digits_denoiser
from sgm_sde.nn.fashion import load_fashion_denoiser
from sgm_sde.testing import default_oracle

TOLERANCES = (1e-3, 1e-4, 1e-5)
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"fixed grid, {n} steps": {"method": FixedGrid(n)} for n in (24, 33, 40, 48, 64, 96)},
    **{f"adaptive, {tol:g}": {"method": AdaptiveFlow(tol, tol)} for tol in TOLERANCES},
    **{f"RK45 (SciPy), {tol:g}": {"method": ScipyRK45(tol, tol)} for tol in TOLERANCES},
    **{f"torchdiffeq, {tol:g}": {"method": AdjointFlow(tol, tol)} for tol in TOLERANCES},
}
STYLES = {  # of the families of methods in the picture
    "default": ("black", "*"), "fixed grid": ("black", "o"), "adaptive": ("tab:green", "s"),
    "RK45 (SciPy)": ("tab:red", "^"), "torchdiffeq": ("tab:blue", "v"), "k-diffusion": ("tab:orange", "D"),
}  # fmt: skip


@dataclass(frozen=True)
class Bed:
    """A problem: a score, points at eps, and what the network is called with."""

    score: sg.Score
    x: Tensor
    kwargs: dict[str, Any]
    eps: float
    single: Callable[[], sg.Score] | None = None  # the score that is timed, in float32
    exact: bool = True  # whether errors are measured with the exact trace

    @property
    def sde(self) -> sg.LinearSDE:
        """The process."""
        sde: Any = self.score.sde
        return sde

    def in_single_precision(self) -> Bed:
        """The same in float32, where there is a network."""
        return self if self.single is None else replace(self, score=self.single(), x=self.x.float())

    def log_prob(self, **options: Any) -> sg.LogProbResult:
        """Ours."""
        return sg.log_prob(self.score, self.sde, self.x, eps=self.eps, model_kwargs=self.kwargs, **options)

    def without_noise(self, **options: Any) -> tuple[Tensor, int]:
        """The value with the exact trace or with one probe at all times, and the network calls."""
        if self.exact or not isinstance(options.get("method", FixedGrid()), FixedGrid):
            result = self.log_prob(
                **options, **({"trace": Exact(64)} if self.exact else {"trace": Hutchinson(), "seed": 0})
            )
            return result.value, result.nfe
        seeds = resolve_seeds(0, None, len(self.x))
        estimate = RandomTrace(seeds, tuple(self.x.shape), 1, "rademacher", "pixel", fixed=True)
        model = TraceScore(self.score, self.sde, (self.eps, self.sde.T), self.kwargs, len(self.x))
        with torch.no_grad():
            problem = Problem(model, self.x, self.eps, estimate)
            solution = options.get("method", FixedGrid()).solve(problem).solution
        return self.sde.prior_log_prob(solution.latent) + solution.volume, model.nfe

    def k_diffusion(self, tolerance: float) -> tuple[Tensor, int]:
        """k-diffusion's value, and its network calls, with the probe that seed 0 gives `log_prob`."""
        z = NoiseStream(resolve_seeds(0, None, len(self.x)), "probe").normal(tuple(self.x.shape), self.x.dtype)
        probe = torch.where(z >= 0, 1, 0)
        ends = self.eps, self.sde.T
        value, info = peers.k_log_likelihood(
            lambda x, sigma: self.score.predict("data", x, sigma, **self.kwargs), self.x, *ends, tolerance, probe
        )
        return value, info["fevals"]


def network(load: Callable[[], torch.nn.Module], dtype: torch.dtype = torch.float32) -> sg.Score:
    """A shipped network."""
    return sg.from_denoiser(load().to(dtype), sg.EDMSDE())


def with_wave(score: sg.Score, size: float = 0.01, frequency: float = 3.0) -> sg.Score:
    """The score with a wave in log-SNR and in x added to its noise estimate."""
    sde: Any = score.sde

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (k(t).to(x.dtype)[:, None] for k in (sde.alpha, sde.sigma))
        phase = (frequency * sde.log_snr(t)).sin()[:, None]
        return score.predict("noise", x, t) + size * phase * (3 * x / (0.5 * alpha + sigma)).sin()

    return sg.from_noise(noise, sde)


def beds(n: int) -> dict[str, Bed]:
    """The problems by name."""
    mixture, sde, f64 = default_oracle("mixture"), sg.EDMSDE(), torch.float64
    images, _ = digits_data("train")
    empirical = sg.oracles.Empirical(images[:100].double().flatten(1), 0.2)
    held, asked = (part[:n] for part in digits_data("held_out"))

    def noisy(images: Tensor, eps: float) -> Tensor:
        return images.double() + eps * sde.prior_sample(tuple(images.shape), seed=1, dtype=f64) / sde.prior_std

    few = min(n, 8)
    clothes = {"y": sg.PerSample(torch.arange(few) % 10)}
    drawn = sg.sample(
        network(load_fashion_denoiser), sde, shape=(few, 1, 28, 28), steps=25, seed=0, model_kwargs=clothes
    ).x.clamp(-1, 1)
    oracles = {"mixture, 2-D": mixture, "empirical digits, 64-D": empirical}
    points = {name: oracle.sample(n, sde, sde.eps, seed=0, dtype=f64) for name, oracle in oracles.items()}
    others = {"VP": sg.VPSDE(), "rectified flow": sg.RectifiedFlowSDE()}
    drawn_on = {name: mixture.sample(n, p, p.likelihood_eps, seed=0, dtype=f64) for name, p in others.items()}
    return {
        **{
            f"mixture on {name}, 2-D": Bed(mixture.score(p), drawn_on[name], {}, p.likelihood_eps)
            for name, p in others.items()
        },
        "wave, 2-D": Bed(with_wave(mixture.score(sde)), points["mixture, 2-D"], {}, sde.eps),
        **{name: Bed(oracle.score(sde), points[name], {}, sde.eps) for name, oracle in oracles.items()},
        "digits network, 64-D": Bed(
            network(load_digits_denoiser, f64),
            noisy(held, sde.eps),
            {"y": sg.PerSample(asked)},
            sde.eps,
            partial(network, load_digits_denoiser),
        ),
        # The network of clothes has seen next to nothing below this noise.
        "network of clothes, 784-D": Bed(
            network(load_fashion_denoiser, f64),
            noisy(drawn, 0.01),
            clothes,
            0.01,
            partial(network, load_fashion_denoiser),
            exact=False,
        ),
    }


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(bed: Bed, repeats: int) -> tuple[list[dict[str, Any]], float]:
    """A row for each method, and how well the reference is known."""
    to_bits = 1 / (bed.x[0].numel() * math.log(2))
    reference, _ = bed.without_noise(method=FixedGrid(600))
    small = bed.x[0].numel() < 10
    check = {"method": ScipyRK45(1e-7, 1e-7)} if small else {"method": FixedGrid(300)}
    known = float((bed.without_noise(**check)[0] - reference).abs().max() * to_bits)
    timed = bed.in_single_precision()
    runs: dict[str, Callable[[], object]] = {
        name: partial(timed.log_prob, trace=Hutchinson(), seed=0, **options) for name, options in METHODS.items()
    }
    errors: dict[str, tuple[Tensor, int, float]] = {}
    for name, options in METHODS.items():
        score, rows = counted(bed.score)
        value, nfe = replace(bed, score=score).without_noise(**options)
        errors[name] = (value - reference) * to_bits, nfe, sum(rows) / len(bed.x)
    if "k-diffusion" in peers.available() and isinstance(bed.sde, sg.EDMSDE):  # whose coordinates it is written in
        same_probe = bed.log_prob(method=ScipyRK45(rtol=1e-7, atol=1e-7), trace=Hutchinson(), seed=0).value
        for tol in TOLERANCES:
            name = f"k-diffusion, {tol:g}"
            value, nfe = bed.k_diffusion(tol)
            errors[name] = (value - same_probe) * to_bits, nfe, nfe
            runs[name] = partial(timed.k_diffusion, tol)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    rows = [
        {
            "method": name,
            "mean": float(error.mean()),
            "rms": float(error.square().mean().sqrt()),
            "median": float(error.abs().median()),
            "95 %": float(error.abs().quantile(0.95)),
            "nfe": nfe,
            "nfe a sample": each,
            "seconds": median(times[name]),
        }
        for name, (error, nfe, each) in errors.items()
    ]
    return rows, known


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, bed by bed."""
    lines = []
    for name in dict.fromkeys(row["bed"] for row in rows):
        here = [row for row in rows if row["bed"] == name]
        lines += [f"**{name}** (reference known to {here[0]['known']:.0e} bits/dim)", ""]
        lines += ["| method | mean error | rms | median of abs. | 95 % | calls | mean calls | seconds |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {row['method']} | {row['mean']:+.1e} | {row['rms']:.1e} | {row['median']:.1e} | {row['95 %']:.1e} | "
            f"{row['nfe']} | {row['nfe a sample']:.1f} | {row['seconds']:.3f} |"
            for row in here
        ]
        lines.append("")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error that 95 % of the points stay below against mean network calls a sample, a panel a test bed."""
    names = list(dict.fromkeys(row["bed"] for row in rows))
    figure, axes = pictures.panels(len(names), 3.6, 3.7)
    for name, axis in zip(names, axes, strict=True):
        for family, (colour, marker) in STYLES.items():
            here = [row for row in rows if row["bed"] == name and row["method"].split(",")[0] == family]
            calls, errors = ([row[key] for row in here] for key in ("nfe a sample", "95 %"))
            size = 13 if family == "default" else 5
            axis.plot(calls, errors, marker=marker, markersize=size, color=colour, linewidth=1.2, label=family)
        axis.axhline(1e-4 / math.log(2), color="grey", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", title=name, xlabel="network calls a sample")
        pictures.ticks(axis, [25, 50, 100, 200, 400])
    pictures.save(figure, path, "error of 95 % of the points, bits/dim", legend=0)


def main() -> None:
    """Measure, print and write."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--n", type=int, default=24, help="points")
    parser.add_argument("--only", default="", help="part of a test bed's name")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, in turns")
    parser.add_argument("--picture", type=Path, help="draw what is in --out, and measure nothing")
    args = command.begin(parser)
    kept = args.out / "likelihood.json"
    if args.picture is not None:
        draw(json.loads(kept.read_text())["rows"], args.picture)
        return
    protocol = {"n": args.n, "repeats": args.repeats, "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    if args.only and kept.exists():
        before = json.loads(kept.read_text())
        rows = before.pop("rows")
        if before != protocol:
            raise SystemExit(f"{kept} holds a run of {before}, and this one is of {protocol}: give another --out")
    chosen = {name: bed for name, bed in beds(args.n).items() if args.only in name}
    for name, bed in tqdm(chosen.items(), desc="test beds"):
        measured, known = measure(bed, args.repeats)
        rows = [row for row in rows if row["bed"] != name]
        rows += [{"bed": name, "known": known, **row} for row in measured]
        kept.write_text(json.dumps(protocol | {"rows": rows}, indent=1) + "\n")
    (args.out / "likelihood.md").write_text(table(rows))
    sys.stdout.write(table(rows) + f"\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
