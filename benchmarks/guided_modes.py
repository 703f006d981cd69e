"""The default of `sample` beside DDIM on exact conditional scores under strong guidance, at few network calls.

    python -m benchmarks.guided_modes

Modes of equal weight, a class each, with classifier-free guidance towards the sample's own; 16 noises, the error over
the standard deviation of the samples against a tight solution of the guided flow, in geometric mean and worst over
scales and processes. The first table is of cells on which, with those of `python -m benchmarks.guided_defaults`, the
default for guided scores was chosen, the second of others: means of another seed, other numbers of modes, dimensions,
widths and scales. The third is of the network for digits that ships, beside two solvers of the literature; `--digits`
prints it alone.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks.defaults import geometric
from sgm_sde.sampling.diagnosis import ImplausibleWarning

F64 = torch.float64
PROCESSES: dict[str, sg.LinearSDE] = {"VP": sg.VPSDE(), "EDM": sg.EDMSDE(), "flow": sg.RectifiedFlowSDE()}
BUDGETS = (4, 5, 6, 8, 10, 11, 12, 16, 24)
NOISES = 16
TIGHT = 300  # network calls of the reference
STRONG = (4.0, 7.0, 15.0)  # scales on the network for digits
OTHERS = ("ddim", "dpm++2m")
FEW_BUDGETS = (5, 10, 20, 40)


@dataclass(frozen=True)
class Modes:
    """A mixture, and the scale of guidance towards one of its modes."""

    seed: int
    n: int
    dimension: int
    width: float
    scale: float


CHOSEN_ON = [Modes(0, 6, 16, width, scale) for width, scale in ((0.2, 3.0), (0.2, 5.0), (0.5, 5.0), (0.5, 8.0))]
REPORTED = [
    Modes(seed, n, dimension, width, scale)
    for seed, n, dimension, width in ((1, 3, 2, 0.3), (2, 10, 64, 0.3), (3, 4, 256, 1.0))
    for scale in (2.0, 4.0, 7.5)
]


def guided_score(modes: Modes, sde: sg.LinearSDE) -> sg.Score:
    """Classifier-free guidance of the exact noise, with label n for no class."""
    generator = torch.Generator().manual_seed(modes.seed)
    means = torch.randn(modes.n, modes.dimension, generator=generator, dtype=F64)
    each = [sg.oracles.GaussianMixture(mean[None], modes.width).score(sde) for mean in means]
    scores = [*each, sg.oracles.GaussianMixture(means, modes.width).score(sde)]

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        noises = torch.stack([-sde.sigma(t)[:, None] * score(x, t) for score in scores])
        return noises[y, torch.arange(len(x))]

    score = sg.from_noise(net, sde)
    return sg.guidance.ClassifierFree(score, modes.scale, {"y": torch.tensor(modes.n)})


def ratios(modes: Modes, sde: sg.LinearSDE) -> Iterator[tuple[int, float, float]]:
    """Budgets, with the errors of the default and of DDIM."""
    score = guided_score(modes, sde)
    x = sde.prior_sample((NOISES, modes.dimension), seed=1, dtype=F64)
    kwargs = {"y": torch.arange(NOISES) % modes.n}
    exact = sg.sample(score, sde, x_T=x, solver="dpm++3m", grid="log-snr", nfe=TIGHT, model_kwargs=kwargs).x

    def error(nfe: int, solver: str | None) -> float:
        off = sg.sample(score, sde, x_T=x, solver=solver, nfe=nfe, model_kwargs=kwargs).x - exact
        return float(off.square().mean().sqrt() / exact.std())

    for nfe in BUDGETS:
        yield nfe, error(nfe, None), error(nfe, "ddim")


def table(cells: list[Modes]) -> list[str]:
    """Errors by budget."""
    found: dict[int, list[tuple[float, float]]] = {nfe: [] for nfe in BUDGETS}
    for modes in cells:
        for sde in PROCESSES.values():
            for nfe, ours, ddim in ratios(modes, sde):
                found[nfe].append((ours, ddim))

    lines = ["| calls | cells | default | worst | default / DDIM | worst | worse than DDIM |", "|--:|" + "--:|" * 6]
    for nfe, pairs in found.items():
        ours = [error for error, _ in pairs]
        over = [error / ddim for error, ddim in pairs]
        worse = sum(ratio > 1 for ratio in over)
        numbers = f"{geometric(ours):.3f} | {max(ours):.2f} | {geometric(over):.2f} | {max(over):.2f}"
        lines.append(f"| {nfe} | {len(pairs)} | {numbers} | {worse} |")
    return lines


def digits_table() -> list[str]:
    """Errors on the network for digits under strong guidance, and how well its reference is known."""
    model = sg.load_model("digits")
    n = 2 * NOISES
    x = model.sde.prior_sample((n, *model.shape), seed=1)
    kwargs = {"y": torch.arange(n) % 10}
    lines = ["| scale | calls | default | " + " | ".join(OTHERS) + " |", "|--:|--:|--:|" + "--:|" * len(OTHERS)]
    for scale in STRONG:
        score = sg.guidance.ClassifierFree(model.score, scale)

        def end(nfe: int, solver: str | None, grid: str | None = None, score: sg.Score = score) -> Tensor:
            return sg.sample(score, model.sde, x_T=x, solver=solver, nfe=nfe, grid=grid, model_kwargs=kwargs).x

        exact = end(2 * TIGHT, "dpm++3m", "log-snr")
        solvers = (None, *OTHERS)

        def error(state: Tensor, exact: Tensor = exact) -> float:
            return float((state - exact).square().mean().sqrt() / exact.std())

        for nfe in FEW_BUDGETS:
            errors = " | ".join(f"{error(end(nfe, solver)):.3f}" for solver in solvers)
            lines.append(f"| {scale:g} | {nfe} | {errors} |")
        lines.append(
            f"| {scale:g} | {TIGHT} on log-SNR, `dpm++3m` | {error(end(TIGHT, 'dpm++3m', 'log-snr')):.1e} | | |"
        )
    return lines


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true", help="only the table of the network for digits")
    only_digits = parser.parse_args().digits
    warnings.simplefilter("ignore", ImplausibleWarning)
    for title, cells in () if only_digits else (("chosen on", CHOSEN_ON), ("reported", REPORTED)):
        sys.stdout.write("\n".join(["", f"## {title}", "", *table(cells)]) + "\n")
        sys.stdout.flush()
    sys.stdout.write("\n".join(["", "## digits", "", *digits_table()]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
