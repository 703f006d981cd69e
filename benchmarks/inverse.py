"""Bias of the methods for inverse problems against exact posteriors, and pictures on digits.

    python -m benchmarks.inverse --out out/bench

Two-dimensional data, a Gaussian of correlation 0.8 and a mixture of three modes; the first coordinate is measured as
1, with noise of std 0.3 and exactly. Printed for each method: error of the mean and ratio of the standard deviation, of
the coordinate that was not measured, in units of the posterior's; for the mixture the largest error of a mode's weight.
One number is measured, so that one iteration of MMPS is all there are; its iterations are tried on a Gaussian of 32
dimensions. Two far modes show what the Gaussian approximations of the scores do to their weights.

Then held-out 8x8 digits under the shipped network, without labels: the lower half hidden, and 2x2 blocks averaged with
noise of std 0.1. One thread.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command, pictures
from sgm_sde import inverse
from sgm_sde.nn.digits import digits_data, load_digits_classifier
from sgm_sde.zoo.shipped import digits_score

STEPS = 50


@dataclass(frozen=True)
class Method:
    """A method made ready: score and solver from a score and a measurement, and its number of steps."""

    make: Callable[[sg.Score, inverse.Measurement], tuple[sg.Score, sg.Solver]]
    steps: int = STEPS
    noisy: bool = True


def by_score(make: Callable[[sg.Score, inverse.Measurement], sg.Score]) -> Method:
    """A posterior score, with a multistep solver."""
    return Method(lambda score, m: (make(score, m), sg.DPMSolverPP(2)))


def methods(iterations: int) -> dict[str, Method]:
    """The methods, by name."""
    return {
        f"MMPS, {iterations} it.": by_score(lambda s, m: inverse.MMPS(s, m, iterations)),
        "PiGDM": by_score(inverse.PiGDM),
        "DiffPIR, strength 1": by_score(inverse.DiffPIR),
        "DiffPIR, strength 7": by_score(lambda s, m: inverse.DiffPIR(s, m, 7.0)),
        "DPS, zeta 1": Method(lambda s, m: (s, inverse.DPS(sg.Ancestral(), m)), 1000),
        "DPS, zeta 0.1": Method(lambda s, m: (s, inverse.DPS(sg.Ancestral(), m, 0.1)), 1000),
        "Replacement": Method(lambda s, m: (s, inverse.Replacement(sg.Ancestral(), m)), 250, noisy=False),
        "Replacement, fixed noise": Method(
            lambda s, m: (s, inverse.Replacement(sg.DPMSolverPP(2), m, "fixed")), noisy=False
        ),
        "RePaint, 10 x 10": Method(lambda s, m: (s, inverse.RePaint(sg.Ancestral(), m)), 250, noisy=False),
    }


def products(score: sg.Score, solver: sg.Solver, nfe: int) -> int:
    """Vector-Jacobian products of a run."""
    if isinstance(score, inverse.PosteriorScore):
        return score.vjps * nfe
    return nfe - 1 if isinstance(solver, inverse.DPS) else 0


def run(method: Method, score: sg.Score, m: inverse.Measurement, shape: tuple[int, ...]) -> tuple[Tensor, int, int]:
    """Samples, network calls and vector-Jacobian products."""
    guided, solver = method.make(score, m)
    res = sg.sample(guided, score.sde, shape, solver=solver, steps=method.steps, grid="log-snr", seed=0)
    return res.x, res.nfe, products(guided, solver, res.nfe)


def biases(n: int) -> list[dict[str, Any]]:
    """Errors on two-dimensional data."""
    sde = sg.VPSDE()
    data: dict[str, Any] = {
        "Gaussian": sg.oracles.Gaussian(torch.tensor([0.3, -0.7]), torch.tensor([[1.0, 0.8], [0.8, 1.0]])),
        "mixture": sg.oracles.GaussianMixture(
            torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]]), [0.4, 0.5, 0.3], [0.5, 0.3, 0.2]
        ),
    }
    mask, rows = inverse.Mask(torch.tensor([True, False])), []
    for std in (0.3, 0.0):
        m = inverse.Measurement(mask, torch.tensor([1.0, 0.0]), std)
        names = {"exact score": by_score(lambda s, m: s), **methods(1)}
        for name, method in tqdm(names.items(), desc=f"biases at std {std:g}"):
            if std and not method.noisy:
                continue
            row: dict[str, Any] = {
                "std": std,
                "method": "DDNM" if not std and name[-1] == "1" and "PIR" in name else name,
            }
            if not std and name == "DiffPIR, strength 7":
                continue  # the same, without noise
            for kind, oracle in data.items():
                post = inverse.posterior(oracle, m)
                score = post.score(sde) if name == "exact score" else oracle.score(sde)
                x, row["nfe"], row["vjps"] = run(method, score, m, (n, 2))
                spread = float(post.covariance[1, 1].sqrt())
                row[kind] = {
                    "mean": float(x[:, 1].double().mean() - post.mean[1]) / spread,
                    "std": float(x[:, 1].double().std()) / spread,
                }
                if kind == "mixture":
                    # Modes by the free coordinate and the known one as it was measured, if exactly.
                    x = x if std else torch.cat([torch.ones_like(x[:, :1]), x[:, 1:]], 1)
                    odds = (oracle if not std else post).responsibilities(x.double()).mean(0)
                    row[kind]["weight"] = float((odds - post.weights).abs().max())
            rows.append(row)
    return rows


def far_modes(n: int) -> list[dict[str, Any]]:
    """Weight of the left one of two modes at -(2, 3) and (2, 3), of std 0.3 and weights 0.3 and 0.7."""
    sde = sg.VPSDE()
    data = sg.oracles.GaussianMixture(torch.tensor([[-2.0, -3.0], [2.0, 3.0]]), 0.3, [0.3, 0.7])
    rows = []
    for y, std in ((-0.2, 2.0), (-0.2, 1.0), (0.5, 0.5)):
        m = inverse.Measurement(inverse.Mask(torch.tensor([True, False])), torch.tensor([y, 0.0]), std)
        post = inverse.posterior(data, m)
        row: dict[str, Any] = {"y": y, "std": std, "exact": float(post.weights[0])}
        for name, method in tqdm(methods(1).items(), desc="far modes"):
            if method.steps == STEPS and method.noisy:
                x, _, _ = run(method, data.score(sde), m, (n, 2))
                row[name] = float(post.responsibilities(x.double())[:, 0].mean())
        rows.append(row)
    return rows


def iterations(n: int) -> list[dict[str, Any]]:
    """MMPS by its number of conjugate-gradient steps: half of 32 correlated numbers measured with noise of std 0.1."""
    sde, d = sg.VPSDE(), 32
    gap = torch.arange(d)[:, None] - torch.arange(d)
    data = sg.oracles.Gaussian(torch.zeros(d), torch.exp(-0.5 * (gap / 3.0) ** 2) + 1e-3 * torch.eye(d))
    truth = data.sample(1, seed=1)
    m = inverse.Measurement.simulate(inverse.Mask(torch.arange(d) % 2 == 0), truth, 0.1, seed=2)
    m = inverse.Measurement(m.operator, m.y[0], m.std)
    post, rows = inverse.posterior(data, m), []
    spread = post.covariance.diag().sqrt()
    for k in tqdm((1, 2, 3, 5, 8, 16), desc="iterations of MMPS"):
        x, _, vjps = run(by_score(lambda s, m, k=k: inverse.MMPS(s, m, k)), data.score(sde), m, (n, d))
        off, ratio = (x.double().mean(0) - post.mean) / spread, x.double().std(0) / spread
        rows.append(
            {"iterations": k, "mean": float(off.square().mean().sqrt()), "std": float(ratio.mean()), "vjps": vjps}
        )
    return rows


def digits(n: int) -> tuple[list[dict[str, Any]], dict[str, dict[str, Tensor]]]:
    """Held-out digits: numbers for a table, and pictures."""
    images, labels = (part[:n] for part in digits_data("held_out"))
    sde, classifier = sg.EDMSDE(), load_digits_classifier()
    upper = (torch.arange(8)[:, None] < 4).expand(1, 8, 8)
    tasks = {
        "inpainting": inverse.Measurement.simulate(inverse.Mask(upper), images),
        "super-resolution": inverse.Measurement.simulate(inverse.BlockAverage(2), images, 0.1, seed=1),
    }
    rows, drawn = [], {}
    for task, m in tasks.items():
        shown = m.y if task == "inpainting" else m.y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        drawn[task] = {"measured": torch.where(upper, shown, -1.0) if task == "inpainting" else shown}
        cg = {"MMPS, 5 it., CG": by_score(lambda s, m: inverse.MMPS(s, m, 5, "cg"))}
        for name, method in tqdm({**cg, **methods(5)}.items(), desc=task):
            if (m.std and not method.noisy) or (not m.std and name == "DiffPIR, strength 7"):
                continue
            name = "DDNM" if not m.std and name == "DiffPIR, strength 1" else name
            x, nfe, vjps = run(method, digits_score(sde), m, tuple(images.shape))
            misfit = float(m.residual(x).square().sum().sqrt()) / math.sqrt(
                m.operator.apply(torch.ones_like(x)).ne(0).sum()
            )
            error = (x - images)[..., 4:, :] if task == "inpainting" else x - images
            rows.append(
                {
                    "task": task, "method": name, "misfit": misfit, "rmse": float(error.square().mean().sqrt()),
                    "agreement": float((classifier(x).argmax(1) == labels).float().mean()), "nfe": nfe, "vjps": vjps,
                }
            )  # fmt: skip
            drawn[task][name] = x
        drawn[task]["truth"] = images
    return rows, drawn


def draw(shown: dict[str, dict[str, Tensor]], path: Path) -> None:
    """A row a method, a column a digit."""
    figure, columns = pictures.panels(len(shown), 13 / len(shown), 4.6)
    for axis, (task, rows) in zip(columns, shown.items(), strict=True):
        pictures.sheet(axis, rows, 12)
        axis.set_title(task, fontsize=9)
    pictures.save(figure, path, dpi=120)


def table(
    rows: list[dict[str, Any]],
    far: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    on_digits: list[dict[str, Any]],
    n: int,
) -> str:
    """Everything as markdown."""
    lines = []
    for std in (0.3, 0.0):
        lines += [
            f"**Measured {'with noise of std 0.3' if std else 'exactly'}** ({n} samples: standard errors "
            f"{1 / math.sqrt(n):.3f} of a mean, {1 / math.sqrt(2 * n):.3f} of a ratio)",
            "",
            "| method | Gaussian: mean | std | mixture: mean | std | mode weight | network calls | products |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in rows:
            if row["std"] == std:
                g, m = row["Gaussian"], row["mixture"]
                lines.append(
                    f"| {row['method']} | {g['mean']:+.2f} | {g['std']:.2f} | {m['mean']:+.2f} | {m['std']:.2f} "
                    f"| {m['weight']:.2f} | {row['nfe']} | {row['vjps']} |"
                )
        lines.append("")
    names = [name for name in far[0] if name not in ("y", "std")]
    lines += [f"| measured | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    lines += [
        f"| {row['y']:g}, std {row['std']:g} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |"
        for row in far
    ]
    lines.append("")
    lines += ["| MMPS, iterations | rms error of the mean | ratio of std | products |", "|--:|--:|--:|--:|"]
    lines += [f"| {r['iterations']} | {r['mean']:.2f} | {r['std']:.2f} | {r['vjps']} |" for r in steps]
    lines += [
        "",
        "| digits | method | misfit, rms | error, rms | classifier agrees | network calls | products |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r['task']} | {r['method']} | {r['misfit']:.3f} | {r['rmse']:.2f} | {100 * r['agreement']:.0f} % "
        f"| {r['nfe']} | {r['vjps']} |"
        for r in on_digits
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--n", type=int, default=1000, help="samples of each method on two-dimensional data")
    parser.add_argument("--digits", type=int, default=50, help="held-out digits")
    args = command.begin(parser)
    rows, far, steps = biases(args.n), far_modes(args.n), iterations(args.n)
    measured, drawn = digits(args.digits)
    text = table(rows, far, steps, measured, args.n)
    (args.out / "inverse.md").write_text(text)
    protocol = {
        "n": args.n,
        "torch": torch.__version__,
        "biases": rows,
        "far": far,
        "iterations": steps,
        "digits": measured,
    }
    (args.out / "inverse.json").write_text(json.dumps(protocol, indent=1) + "\n")
    draw(drawn, args.out / "inverse.png")
    sys.stdout.write(text + f"\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
