"""The default of `sample` on exact scores whose data are not of unit scale, and on narrow modes.

    python -m benchmarks.scales

First table: error over the standard deviation of the data against the probability flow, three modes in one dimension,
256 noises; the default, `defaults.default_setting(..., data_std=)` for the scale at hand, and what a `pilot` of 128
other noises finds; the last row is EDM with its noise levels in the data's own units. Second: the same of two numbers
of unlike scale, two modes each, number by number. Third: of three modes of unit scale around a mean, the default, the
same about 0, with steps near pure noise as long as others, and `dpm++2m`; the last rows are of the scale 4 on an EDM
that starts from sigma = 800, and "told" is where the default's samples raise a `ScaleWarning`. Fourth: the largest
distance of 128 samples to the nearest of four modes in eight dimensions, a thousandth of their distance wide, for the
default, the same in log- SNR, and `dpm++2m`. Fifth: data of large scales, where `ScaleWarning` speaks ("told"): three
modes, which chose it, and data that did not, five modes in eight dimensions and a Gaussian in four.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace

import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.sampling.diagnosis import ImplausibleWarning
from sgm_sde.sampling.resolution import UnresolvedWarning
from sgm_sde.sampling.scale import ScaleWarning

F64 = torch.float64
PROCESSES: dict[str, sg.LinearSDE] = {"VP": sg.VPSDE(), "EDM": sg.EDMSDE(), "flow": sg.RectifiedFlowSDE()}
SCALES = (0.02, 0.2, 1.0, 5.0, 50.0)
BUDGETS = (8, 16, 30)
MORE = (16, 24, 35, 50)
MEANS = (0.0, 5.0, 20.0)
TO_800 = sg.EDMSDE(0.02, 800.0)
FAR = (20.0, 50.0, 100.0)
FEW = (5, 8, 12, 20)


WIDE = (3.0, 10.0, 30.0, 84.0, 300.0)
WIDE_BUDGETS = (5, 8, 12, 20, 35, 50)
RAW = 5000.0  # units of data that EDM's levels are multiplied by
UNLIKE = torch.tensor([8.0, 0.03], dtype=F64)


def off_scale(sde: sg.LinearSDE, scale: float) -> list[str]:
    """Errors of the default, of the one for the scale, and of a pilot's choice, by budget."""
    oracle = sg.oracles.GaussianMixture(scale * torch.tensor([[-1.0], [0.3], [1.2]], dtype=F64), 0.2 * scale)
    score, x = oracle.score(sde), sde.prior_sample((256, 1), seed=0, dtype=F64)
    exact = tight(score, sde, x, scale)
    found = sg.pilot(score, sde, (128, 1), nfe=BUDGETS, seed=1, dtype=F64)
    cells = []
    for nfe in BUDGETS:
        for setting in (None, sg.defaults.default_setting(sde, nfe, data_std=scale), found[nfe]):
            off = sg.sample(score, sde, x_T=x, nfe=nfe, solver=setting).x - exact
            cells.append(f"{float(off.square().mean().sqrt() / exact.std()):.4f}")
    return cells


def tight(score: sg.Score, sde: sg.LinearSDE, x: Tensor, scale: float) -> Tensor:
    """Where the flow leads, for data of a scale."""
    solver = sg.Adaptive(sg.tableaus.TSIT5, rtol=1e-8, atol=1e-9 * scale)
    return sg.sample(score, sde, x_T=x, solver=solver, t_end=sde.eps).x


def unlike() -> list[list[str]]:
    """Errors of two numbers of unlike scale, each over its standard deviation, of the default and a pilot's choice."""
    sde = sg.EDMSDE()

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        y, s2 = x / UNLIKE, (sigma[:, None] / UNLIKE).square()
        return UNLIKE * (0.09 * y + s2 * (y / (s2 + 0.09)).tanh()) / (s2 + 0.09)

    score = sg.from_denoiser(denoised, sde)
    x = sde.prior_sample((256, 2), seed=0, dtype=F64)
    exact = tight(score, sde, x, float(UNLIKE.min()))
    found = sg.pilot(score, sde, (128, 2), nfe=BUDGETS, seed=1, dtype=F64)
    rows = []
    for name in ("default", "pilot"):
        cells = [name]
        for nfe in BUDGETS:
            off = sg.sample(score, sde, x_T=x, nfe=nfe, solver=found[nfe] if name == "pilot" else None).x - exact
            cells += [f"{float(error):.4f}" for error in (off / exact.std(0)).square().mean(0).sqrt()]
        rows.append(cells)
    return rows


def moved(sde: sg.LinearSDE, mean: float, scale: float = 1.0) -> list[str]:
    """Errors on three modes around a mean: the default, about 0, with even steps near noise, DPM-Solver++(2M)."""
    modes = mean + scale * torch.tensor([[-1.0], [0.3], [1.2]], dtype=F64)
    score = sg.oracles.GaussianMixture(modes, 0.2 * scale).score(sde)
    x = sde.prior_sample((256, 1), seed=0, dtype=F64)
    exact = tight(score, sde, x, scale)
    cells = []
    for nfe in FEW:
        default = sg.defaults.default_setting(sde, nfe)
        about_zero = sg.Setting(replace(default.solver, centred_below=None), default.grid)
        even_deep = sg.Setting(default.solver, replace(default.grid, even_deep=1.0))
        for setting in (None, about_zero, even_deep, "dpm++2m"):
            found, told = with_warning(score, sde, x, nfe, setting)
            off = found - exact
            cells.append(f"{float(off.square().mean().sqrt() / exact.std()):.3f}{told}")
    return cells


def with_warning(
    score: sg.Score, sde: sg.LinearSDE, x: Tensor, nfe: int, setting: sg.Setting | str | None
) -> tuple[Tensor, str]:
    """Samples of a setting, the default if it is None, and ", told" where they raise a `ScaleWarning`."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ScaleWarning)
        found = sg.sample(score, sde, x_T=x, nfe=nfe, solver=setting).x
    said = any(issubclass(warning.category, ScaleWarning) for warning in told)
    return found, ", told" if said else ""


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


def wide_data(scale: float) -> dict[str, tuple[sg.oracles.GaussianMixture, int]]:
    """Data of a large scale, and their dimensions."""
    five = torch.randn(5, 8, generator=torch.Generator().manual_seed(5), dtype=F64)
    three = torch.tensor([[-1.0], [0.3], [1.2]], dtype=F64)
    return {
        "three modes": (sg.oracles.GaussianMixture(scale * three, 0.2 * scale), 1),
        "five modes": (sg.oracles.GaussianMixture(scale * five, 0.3 * scale), 8),
        "Gaussian": (sg.oracles.GaussianMixture(torch.zeros(1, 4, dtype=F64), scale), 4),
    }


def wide(sde: sg.LinearSDE, data: str, scale: float) -> list[str]:
    """Errors of the default and of the one for the scale, and whether the samples tell so."""
    oracle, d = wide_data(scale)[data]
    score, x = oracle.score(sde), sde.prior_sample((256, d), seed=0, dtype=F64)
    exact = tight(score, sde, x, scale)
    cells = []
    for nfe in WIDE_BUDGETS:
        default, told = with_warning(score, sde, x, nfe, None)
        for_scale, _ = with_warning(score, sde, x, nfe, sg.defaults.default_setting(sde, nfe, data_std=scale))
        errors = [float((found - exact).square().mean().sqrt() / exact.std()) for found in (default, for_scale)]
        cells.append(f"{errors[0]:.4f}, {errors[1]:.4f}{told}")
    return cells


def main() -> int:
    """Print the tables."""
    for category in (ImplausibleWarning, ScaleWarning, UnresolvedWarning):
        warnings.simplefilter("ignore", category)
    heads = [f"{nfe} calls, {which}" for nfe in BUDGETS for which in ("default", "for the scale", "pilot")]
    lines = [f"| process | scale | {' | '.join(heads)} |", "|---|--:|" + "--:|" * len(heads)]
    for name, sde in PROCESSES.items():
        lines += [f"| {name} | {scale:g} | {' | '.join(off_scale(sde, scale))} |" for scale in SCALES]
    raw = sg.EDMSDE(0.002 * RAW, 80 * RAW)
    lines.append(f"| EDM x {RAW:g} | {RAW:g} | {' | '.join(off_scale(raw, RAW))} |")

    each = [f"{nfe} calls, std {float(std):g}" for nfe in BUDGETS for std in UNLIKE]
    lines += ["", f"| two numbers | {' | '.join(each)} |", "|---|" + "--:|" * len(each)]
    lines += [f"| {' | '.join(row)} |" for row in unlike()]
    each = [f"{nfe} calls, {which}" for nfe in FEW for which in ("default", "about 0", "even_deep=1", "dpm++2m")]
    lines += ["", f"| process | mean | {' | '.join(each)} |", "|---|--:|" + "--:|" * len(each)]
    for name, sde in PROCESSES.items():
        lines += [f"| {name} | {mean:g} | {' | '.join(moved(sde, mean))} |" for mean in MEANS]
    lines += [f"| EDM from 800 | {mean:g} | {' | '.join(moved(TO_800, mean, 4.0))} |" for mean in FAR]

    lines += [
        "",
        f"| process | setting | {' | '.join(f'{nfe} calls' for nfe in MORE)} |",
        "|---|---|" + "--:|" * len(MORE),
    ]
    for name, sde in PROCESSES.items():
        lines += [f"| {name} | {' | '.join(row)} |" for row in narrow(sde)]
    lines += [
        "",
        f"| process | data | large scale | {' | '.join(f'{nfe} calls' for nfe in WIDE_BUDGETS)} |",
        "|---|---|--:|" + "--:|" * len(WIDE_BUDGETS),
    ]
    for name, sde in {**PROCESSES, "DDPM's table": sg.presets.ddpm()}.items():
        for data in wide_data(1.0):
            lines += [f"| {name} | {data} | {scale:g} | {' | '.join(wide(sde, data, scale))} |" for scale in WIDE]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
