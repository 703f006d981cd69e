"""The default of `sample` on exact scores whose data are not of unit scale, and on narrow modes.

    python -m benchmarks.scales

First table: error over the standard deviation of the data against the probability flow, three modes in one dimension,
256 noises; the default, `defaults.default_setting(..., data_std=)` for the scale at hand, and what a `pilot` of 128
other noises finds. Second: the largest
distance of 128 samples to the nearest of four modes in eight dimensions, a thousandth of their distance wide, for the
default, the same in log-SNR, and `dpm++2m`.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import torch

import sgm_sde as sg
from sgm_sde.sampling.diagnosis import ImplausibleWarning
from sgm_sde.sampling.resolution import UnresolvedWarning

F64 = torch.float64
PROCESSES: dict[str, sg.LinearSDE] = {"VP": sg.VPSDE(), "EDM": sg.EDMSDE(), "flow": sg.RectifiedFlowSDE()}
SCALES = (0.02, 0.2, 1.0, 5.0, 50.0)
BUDGETS = (8, 16, 30)
MORE = (16, 24, 35, 50)


def off_scale(sde: sg.LinearSDE, scale: float) -> list[str]:
    """Errors of the default and of the one for the scale, by budget."""
    oracle = sg.oracles.GaussianMixture(scale * torch.tensor([[-1.0], [0.3], [1.2]], dtype=F64), 0.2 * scale)
    score, x = oracle.score(sde), sde.prior_sample((256, 1), seed=0, dtype=F64)
    solver = sg.Adaptive(sg.tableaus.TSIT5, rtol=1e-8, atol=1e-9 * scale)
    exact = sg.sample(score, sde, x_T=x, solver=solver, t_end=sde.eps).x
    found = sg.pilot(score, sde, (128, 1), nfe=BUDGETS, seed=1, dtype=F64)
    cells = []
    for nfe in BUDGETS:
        for setting in (None, sg.defaults.default_setting(sde, nfe, data_std=scale), found[nfe]):
            off = sg.sample(score, sde, x_T=x, nfe=nfe, solver=setting).x - exact
            cells.append(f"{float(off.square().mean().sqrt() / exact.std()):.4f}")
    return cells


def narrow(sde: sg.LinearSDE) -> list[list[str]]:
    """Largest distances to a mode, by setting and budget."""
    modes = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    score = sg.oracles.GaussianMixture(modes, 0.001).score(sde)
    x = sde.prior_sample((128, 8), seed=0, dtype=F64)
    rows = []
    for name in ("default", "in log-SNR", "dpm++2m"):
        cells = []
        for nfe in MORE:
            setting = sg.defaults.default_setting(sde, nfe)
            log_snr = sg.Setting(replace(setting.solver, variable="log-snr", linear_below=None), setting.grid)
            solver = {"default": setting, "in log-SNR": log_snr}.get(name, name)
            found = sg.sample(score, sde, x_T=x, nfe=nfe, solver=solver).x
            cells.append(f"{float(torch.cdist(found, modes).amin(1).max()):.0e}")
        rows.append([name, *cells])
    return rows


def main() -> int:
    """Print both tables."""
    for category in (ImplausibleWarning, UnresolvedWarning):
        warnings.simplefilter("ignore", category)
    heads = [f"{nfe} calls, {which}" for nfe in BUDGETS for which in ("default", "for the scale", "pilot")]
    lines = [f"| process | scale | {' | '.join(heads)} |", "|---|--:|" + "--:|" * len(heads)]
    for name, sde in PROCESSES.items():
        lines += [f"| {name} | {scale:g} | {' | '.join(off_scale(sde, scale))} |" for scale in SCALES]
    lines += [
        "",
        f"| process | setting | {' | '.join(f'{nfe} calls' for nfe in MORE)} |",
        "|---|---|" + "--:|" * len(MORE),
    ]
    for name, sde in PROCESSES.items():
        lines += [f"| {name} | {' | '.join(row)} |" for row in narrow(sde)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
