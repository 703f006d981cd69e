"""Scores that are rough at random: those of mixtures, with what a network may add to the noise in time and in x.

    python -m benchmarks.likelihood_error --rough --n 24 --out out/bench

By number: sums of one to three waves, of triangular waves, of waves whose heights a table interpolates in time, sums of
kinks (ReLU) and of waves along random directions of x and time together; of random size, frequency and phase, in
log-SNR or in time; on mixtures of one to five modes in one to five dimensions, and six processes in turns. Constants
are chosen on those of even number, and reported on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import sgm_sde as sg

F64 = torch.float64
SEED = 70_000
FEATURES = 48  # of sums along random directions
PURE_NOISE = -18.0  # log-SNR before which nothing is added

Shape = Callable[[Tensor, Tensor], Tensor]  # of scaled states (B, d) and the clock (B, 1), from 0 to 1


class Draw(NamedTuple):
    """Numbers of a random score.

    Attributes:
        d: dimensions.
        size: of what is added.
        span: of the clock.
        frequency: the highest, in units of the clock.
        frequencies: of all waves, (k,).
        phases: of these, (k,).
        directions: in x, (k, d, d).
        generator: of all further tensors.
    """

    d: int
    size: float
    span: float
    frequency: float
    frequencies: np.ndarray
    phases: np.ndarray
    directions: Tensor
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=F64)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, dtype=F64)

    def in_x(self, s: Tensor, heights: Tensor) -> Tensor:
        """Waves in s (B, d) of these heights (B, k)."""
        waves = (2 * torch.einsum("bd,kde->bke", s, self.directions)).sin()
        return self.size / len(self.directions) * (heights[:, :, None] * waves).sum(1)

    def sines(self, u: Tensor) -> Tensor:
        """Waves (B, k) of the clock."""
        return (torch.from_numpy(self.frequencies) * self.span * u + torch.from_numpy(self.phases)).sin()


def sine(draw: Draw) -> Shape:
    """Waves in time and x."""
    return lambda s, u: draw.in_x(s, draw.sines(u))


def triangle(draw: Draw) -> Shape:
    """Triangular waves in time."""
    return lambda s, u: draw.in_x(s, 2 / math.pi * draw.sines(u).clamp(-1, 1).asin())


def table(draw: Draw) -> Shape:
    """Heights that are interpolated in time between random numbers, with a kink at each."""
    n = max(math.ceil(draw.frequency * draw.span / math.pi), 4)
    values = draw.normal(n + 1, len(draw.directions))

    def added(s: Tensor, u: Tensor) -> Tensor:
        place = (u * n).clamp(0, n - 1e-9)
        row = place.floor().long()[:, 0]
        share = place - row[:, None]
        return draw.in_x(s, values[row] * (1 - share) + values[row + 1] * share)

    return added


def relu(draw: Draw) -> Shape:
    """Kinks along random directions of x and time."""
    into = draw.normal(FEATURES, draw.d)
    places = 1.2 * draw.uniform(FEATURES) - 0.1
    rates = draw.normal(FEATURES) * draw.frequency
    out = draw.normal(draw.d, FEATURES) / (FEATURES**0.5 * draw.frequency)
    return lambda s, u: draw.size * (s @ into.T + rates * (u - places) * draw.span).clamp(0, 50) @ out.T


def field(draw: Draw) -> Shape:
    """Waves along random directions of x and time."""
    into = 1.5 * draw.normal(FEATURES, draw.d)
    rates = draw.normal(FEATURES) * draw.frequency
    phases = 6.28 * draw.uniform(FEATURES)
    out = draw.normal(draw.d, FEATURES) * (2 / FEATURES) ** 0.5
    return lambda s, u: draw.size * (s @ into.T + rates * u * draw.span + phases).sin() @ out.T


KINDS = (sine, triangle, table, relu, field)


def rough(number: int, processes: dict[str, Callable[[], Any]]) -> tuple[str, sg.Score, sg.oracles.GaussianMixture]:
    """The name, the score and the data of this number."""
    drawn = np.random.default_rng(SEED + number)
    generator = torch.Generator().manual_seed(SEED + number)
    pair = number // 2
    kind = KINDS[pair % len(KINDS)]
    process = list(processes)[(pair // len(KINDS) + pair % len(KINDS)) % len(processes)]
    sde = processes[process]()

    d = int(drawn.choice([1, 2, 2, 2, 3, 5]))
    n_modes = int(drawn.integers(1, 6))
    means = torch.randn(n_modes, d, generator=generator, dtype=F64)
    stds = torch.from_numpy(10 ** drawn.uniform(-1.2, -0.3, size=(n_modes, 1)))
    modes = sg.oracles.GaussianMixture(means, stds.expand(n_modes, d))

    size = 10 ** drawn.uniform(-3.3, -1.7)
    k = int(drawn.integers(1, 4))
    in_time = process not in ("edm", "ve") and drawn.random() < 0.35
    frequency = 10 ** drawn.uniform(0, 1.1)
    directions = torch.randn(k, d, d, generator=generator, dtype=F64)
    phases = drawn.uniform(0, 6.28, size=k)
    frequencies = frequency * drawn.uniform(0.5, 1, size=k)
    frequencies[0] = frequency

    first = max(float(sde.log_snr(sde.T)), PURE_NOISE)
    last = float(sde.log_snr(sde.likelihood_eps))
    span = 4 * math.pi if in_time else last - first
    begin, end = (sde.likelihood_eps, sde.T) if in_time else (first, last)
    shape = kind(Draw(d, size, span, frequency, frequencies, phases, directions, generator))

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value(t).to(x.dtype)[:, None] for value in (sde.alpha, sde.sigma))
        exact = (x - alpha * modes.denoised(x, alpha[:, 0], sigma[:, 0])) / sigma
        now = t if in_time else sde.log_snr(t)
        clock = (now.to(x.dtype) - begin) / (end - begin)
        return exact + shape(x / (0.5 * alpha + sigma), clock[:, None])

    return f"{kind.__name__}-{number}/{process}", sg.from_noise(noise, sde), modes
