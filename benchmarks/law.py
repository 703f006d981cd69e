"""The variance of what samplers with noise return, over the right one: by dimension, and by scale of the data.

    python -m benchmarks.law [--out out/bench] [--before] [--numbers 2000]

Runs start from the exact marginal at T, on N(0.3, 0.25 I) with its exact score, and end at eps without denoising. The
first table is Monte Carlo through `sample`; the second is the bias of Langevin's published norms at one time; the
third, of every sampler of the registry that adds noise, is exact, by impulse response. `--before` makes the first table
alone, which also runs on versions before `Langevin`'s step came from the process: put one of them on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command

DIMENSIONS = (1, 2, 4, 16, 64)
NUMBERS = 2000  # of all samples of a cell together: a standard error of 3 %
NORM_NUMBERS = (1, 2, 4, 8, 16, 64, 256, 3072)
CHANGED = ("the same", "norm", "annealed", "ggf")  # what names the entries that once had another law
VARIANCE = 0.25
VP, VE, EDM, FLOW = sg.VPSDE(), sg.VESDE(), sg.EDMSDE(), sg.RectifiedFlowSDE()


def corrected(**options: Any) -> sg.Solver:
    """The paper's sampler."""
    return sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.16, **options))


def joint() -> sg.Solver:
    """Its like on CLD."""
    return sg.PredictorCorrector(sg.schemes.SSCS(), sg.schemes.VelocityLangevin(snr=0.16))


# Name, process, solver, steps.
ENTRIES: list[tuple[str, sg.SDE, Callable[[], Any], int | None]] = [
    ("VP: `ReverseDiffusion()`", VP, sg.ReverseDiffusion, 100),
    ("VP: the same and `Langevin(snr=0.16)`", VP, corrected, 100),
    ("VE: the same", VE, corrected, 100),
    ('VP: `norm="sample"`', VP, lambda: corrected(norm="sample"), 100),
    ('VP: `norm="expected"`', VP, lambda: corrected(norm="expected"), 100),
    ('VP: `norm="batch"`', VP, lambda: corrected(norm="batch"), 100),
    ("CLD: `SSCS()`", sg.CLD(), sg.schemes.SSCS, 100),
    ("CLD: the same and `VelocityLangevin(snr=0.16)`", sg.CLD(), joint, 100),
    ("VE: `annealed-langevin`", VE, sg.schemes.AnnealedLangevin, 20),
    ("EDM: `annealed-langevin`", EDM, sg.schemes.AnnealedLangevin, 20),
    ("flow: `annealed-langevin`", FLOW, sg.schemes.AnnealedLangevin, 20),
    ("VP: `sde-dpm++2m`", VP, lambda: sg.DPMSolverPP(2, eta=1.0), 100),
    ("VP: `dpm++3m-restart`", VP, lambda: sg.Restart(sg.DPMSolverPP(3)), 100),
    ("VP: `ggf`", VP, sg.schemes.GGF, None),
]


def ratio(sde: Any, solver: Any, steps: int | None, d: int, numbers: int) -> float:
    """Variance over the exact one."""
    oracle = sg.oracles.Gaussian(torch.full((d,), 0.3), VARIANCE)
    x = oracle.sample(max(32, numbers // d), sde, sde.T, seed=1)
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    end = sg.sample(oracle.score(sde), sde, x_T=x, solver=solver, final="none", seed=0, **options).x
    return variance(sde, end) / exact(sde)


def variance(sde: Any, end: Tensor) -> float:
    """About the right mean; of the data's block, where there are several."""
    linear = sde.marginal_kind == "scalar"
    mean = float(sde.alpha(sde.eps)) if linear else float(sde.nodes([sde.eps])[0].mu[0])
    position = end if linear else sde.position(end)
    return float((position.double() - 0.3 * mean).square().mean())


def exact(sde: Any) -> float:
    """The variance at the end of the process' grid."""
    (node,) = sde.nodes([sde.eps])
    if sde.marginal_kind == "scalar":
        return float(node.alpha**2 * VARIANCE + node.sigma**2)
    return float(node.mu[0] ** 2 * VARIANCE + node.cov[0, 0])


def shown(value: float) -> str:
    """Two decimals, or the size of what is far off."""
    return f"{value:.2f}" if 0.1 < value < 100 else f"{value:.0e}"


def by_dimension(numbers: int, only: tuple[str, ...]) -> dict[str, list[str]]:
    """Rows of the first table, of the entries with one of the words in their names."""
    rows = {}
    chosen = [entry for entry in ENTRIES if any(word in entry[0] for word in only)]
    for name, sde, make, steps in tqdm(chosen, desc="samplers"):
        rows[name] = [shown(ratio(sde, make(), steps, d, numbers)) for d in DIMENSIONS]
    return rows


def of_norms() -> list[str]:
    """Rows of the second table: Langevin's published norms on N(0, 1), by how many numbers are in the norm."""
    rows = []
    for snr in (0.16, 0.05):
        corrector, cells = sg.Langevin(snr, norm="sample"), []
        for n in tqdm(NORM_NUMBERS, desc="norms"):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(max(16, 40_000 // n), n, generator=generator)
            for _ in range(1000 if n < 256 else 300):
                x = sum(corrector.update(x, -x, torch.randn(x.shape, generator=generator), 1.0))
            cells.append(shown(float(x.square().mean())))
        rows.append(f"| r = {snr:g} | {' | '.join(cells)} |")
    return rows


def by_scale() -> list[str]:
    """Rows of the third table: every sampler of the registry with noise, 100 steps, three scales, two processes."""
    from sgm_sde.testing import output_law

    stds = torch.tensor([0.01, 0.5, 10.0], dtype=torch.float64)
    rows = []
    for name, solver in tqdm([entry for entry in sg.solvers().fixed.items() if entry[1].stochastic], desc="exact laws"):
        cells = []
        for sde in (VP, EDM):
            steps = 20 if name == "annealed-langevin" else 100
            grid = sg.grids.LogSNR()(sde, steps)
            _, std = output_law(solver, sde, torch.zeros(3), stds, grid)
            end = grid.times[-1]
            cells += (std / torch.hypot(sde.alpha(end) * stds, sde.sigma(end))).square().tolist()
        rows.append(f"| `{name}` | {' | '.join(f'{v:.3f}' for v in cells)} |")
    return rows


def main() -> int:
    """Print the tables and write them to law.md and law.json."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--before", action="store_true", help="the first table alone, of what has changed")
    parser.add_argument("--numbers", type=int, default=NUMBERS, help="numbers of all samples of a cell together")
    args = command.begin(parser)
    warnings.simplefilter("ignore")  # of norms of few numbers, and of samples that did not stay finite
    rows = by_dimension(args.numbers, CHANGED if args.before else ("",))
    lines = ["| sampler | " + " | ".join(f"D = {d}" for d in DIMENSIONS) + " |", "|---|" + "---:|" * len(DIMENSIONS)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    if not args.before:
        lines += [
            "",
            f"| n | {' | '.join(map(str, NORM_NUMBERS))} |",
            "|---|" + "---:|" * len(NORM_NUMBERS),
            *of_norms(),
        ]
        lines += ["", "| sampler | " + " | ".join(f"{p}, {s}" for p in ("VP", "EDM") for s in (0.01, 0.5, 10)) + " |"]
        lines += ["|---|" + "---:|" * 6, *by_scale()]
    (args.out / "law.json").write_text(json.dumps({"dimensions": DIMENSIONS, "rows": rows}, indent=1) + "\n")
    (args.out / "law.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
