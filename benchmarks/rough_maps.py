"""The default of many calls and that of some, on exact scores off by a random network of state and log-SNR.

    python -m benchmarks.rough_maps

Three modes; the noise is off by `size` times a fixed random network of two layers, of values within 1, whose first
layer has the given frequency in the state and in the logarithm of the noise level. The geometric mean, over processes
and dimensions, of the error of the last setting of `sgm_sde.defaults.SETTINGS` over that of the one before; each
without the tenth of the noises where it is largest. From `MANY` calls on the default is the former.
"""

from __future__ import annotations

import sys
import warnings
from itertools import product

import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks.defaults import geometric
from sgm_sde.sampling.diagnosis import ImplausibleWarning

F64 = torch.float64
PROCESSES: dict[str, sg.LinearSDE] = {"VP": sg.VPSDE(), "EDM": sg.EDMSDE(), "flow": sg.RectifiedFlowSDE()}
SIZES = (0.0, 0.03, 0.1, 0.3)
BUDGETS = (20, 24, 30, 35, 50)
NOISES = 32
WIDTH = 64
TIGHT = 400  # network calls of the reference
HALVES = {"first": (0, (2, 16), (2.0, 6.0)), "second": (1, (1, 64), (1.0, 4.0))}  # seed, dimensions, frequencies


def rough_score(sde: sg.LinearSDE, dimension: int, size: float, frequency: float, seed: int) -> sg.Score:
    """The exact noise of three modes and a random network of the scaled state."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(3, dimension, generator=generator, dtype=F64)
    exact = sg.oracles.GaussianMixture(means, 0.3).score(sde)
    first = torch.randn(dimension + 1, WIDTH, generator=generator, dtype=F64) / (dimension + 1) ** 0.5
    phase = 6.28 * torch.rand(WIDTH, generator=generator, dtype=F64)
    last = torch.randn(WIDTH, dimension, generator=generator, dtype=F64) / WIDTH**0.5

    def net(x: Tensor, t: Tensor) -> Tensor:
        alpha = sde.alpha(t)[:, None]
        sigma = sde.sigma(t)[:, None]
        scaled = torch.cat([x / (alpha**2 + sigma**2).sqrt(), (sigma / (alpha + 1e-12)).log1p()], 1)
        off = torch.tanh(torch.sin(frequency * scaled @ first + phase) @ last)
        return -sigma * exact(x, t) + size * off

    return sg.from_noise(net, sde)


def ratio(sde: sg.LinearSDE, dimension: int, size: float, frequency: float, seed: int) -> dict[int, float]:
    """Errors of the setting of many calls over those of the setting of some, by budget."""
    score = rough_score(sde, dimension, size, frequency, seed)
    x = sde.prior_sample((NOISES, dimension), seed=3, dtype=F64)
    exact = sg.sample(score, sde, x_T=x, solver="dpm++3m", grid="log-snr", nfe=TIGHT).x

    def error(nfe: int, setting: sg.Setting) -> float:
        squares = (sg.sample(score, sde, x_T=x, nfe=nfe, solver=setting).x - exact).square().mean(1)
        return float(squares.sort().values[: NOISES - NOISES // 10].mean().sqrt())

    *_, some, many = sg.defaults.SETTINGS
    return {nfe: error(nfe, many) / error(nfe, some) for nfe in BUDGETS}


def main() -> int:
    """Print both tables."""
    warnings.simplefilter("ignore", ImplausibleWarning)
    for half, (seed, dimensions, frequencies) in HALVES.items():
        lines = ["", f"## {half}", "", f"| size | {' | '.join(f'{n} calls' for n in BUDGETS)} |", "|--:" * 6 + "|"]
        for size in SIZES:
            cases = product(PROCESSES.values(), dimensions, frequencies if size else frequencies[:1])
            found = [ratio(sde, dimension, size, frequency, seed) for sde, dimension, frequency in cases]
            means = [f"{geometric([each[nfe] for each in found]):.2f}" for nfe in BUDGETS]
            lines.append(f"| {size:g} | {' | '.join(means)} |")
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
