"""Data with noise at several levels, and how far estimates of them are off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from sgm_sde._utils.checks import check_output
from sgm_sde._utils.shapes import column, flat
from sgm_sde._utils.units import principal
from sgm_sde.engine import coordinates
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.evaluation.score_check.result import TINY, ScoreCheck
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores.model import BoundScore

LEVELS = (0.2, 0.33, 0.6, 1.0, 1.7, 3.0, 5.0)  # sigma / alpha, in standard deviations of the data
NEAR_NOISE = tuple(LEVELS[-1] * math.e**k for k in range(13))  # above them, a factor e apart
MOST_NOISES = 32  # for each datum, where data have few numbers
NUMBERS = 16384  # of states, which are enough at a noise level


class Noised:
    """Data with one noise at several levels, and how far estimates of them are off.

    Args:
        sde: the process.
        x0: data (n, *).
        noise: standard normal numbers (n, *).
        levels: noise levels, in standard deviations of the data.

    Attributes:
        std: of the data, root mean square over their coordinates.
        nodes: the process at the levels.
        states: a state (n, *) and times (n,) for each node.
    """

    def __init__(self, sde: LinearSDE, x0: Tensor, noise: Tensor, levels: Sequence[float] = LEVELS) -> None:
        self.sde = sde
        self.x0 = x0
        self.mean = x0.double().mean(0)
        self.variance = (x0 - self.mean).square().mean(0)
        self.std = float(self.variance.mean().sqrt())
        if not self.std > 0:
            raise ValueError(f"data must differ from one another, got a standard deviation of {self.std:g}")

        within = torch.tensor(_levels(sde, self.std, levels), dtype=torch.float64)
        times = sde.time_of_noise_level(within).tolist()
        self.nodes = sde.nodes(times)
        self.states = [
            (node.alpha * x0 + node.sigma * noise, torch.full((len(x0),), t, dtype=x0.dtype, device=x0.device))
            for node, t in zip(self.nodes, times, strict=True)
        ]

    def error(self, estimate: Tensor) -> float:
        """The root mean square of what an estimate (n, *) of the data is off by, in standard deviations of the data."""
        return float((estimate - self.x0).double().square().mean().sqrt()) / self.std

    def brought(self, mean: Tensor, std: float) -> Tensor:
        """The data (n, *) moved to a mean and scaled to a standard deviation."""
        centred = self.x0 - self.mean
        return (centred * (std / self.std) + mean).to(self.x0.dtype)

    def squared_errors(self, estimate: Tensor) -> Tensor:
        """The mean square (n,) of what an estimate (n, *) of each datum is off by."""
        off = flat(estimate - self.x0).double()
        return off.square().mean(1).clamp(min=TINY**2)

    def estimate_of(self, model: BoundScore, k: int) -> Tensor:
        """The data that a score finds in the k-th state, which must be finite."""
        x, _ = self.states[k]
        estimate = model.predict("data", x, self.nodes[k].t)
        check_output(x, estimate, self.nodes[k].t)
        return estimate

    def error_of(self, model: BoundScore, k: int) -> float:
        """The error of the data that a score finds in the k-th state."""
        return self.error(self.estimate_of(model, k))

    def gaussian(self, x: Tensor, t: Tensor) -> Tensor:
        """G(x), the estimate of a Gaussian with the means and variances of the data."""
        alpha = column(self.sde.alpha(t.double()), x)
        sigma = column(self.sde.sigma(t.double()), x)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return (self.mean + gain * (x - alpha * self.mean)).to(x.dtype)

    def linear_estimates(self) -> list[Tensor]:
        """The estimates (n, *) of Gaussians with the means and covariances of the other half of the data, by level."""
        rows = flat(self.x0).double()
        first = torch.arange(len(rows), device=rows.device) % 2 == 0
        halves = [(first, principal(rows[~first])), (~first, principal(rows[first]))]

        estimates = []
        for node, (x, _) in zip(self.nodes, self.states, strict=True):
            y = flat(x).double() / node.alpha
            estimate = torch.empty_like(y)
            for half, fitted in halves:
                estimate[half] = _linear(y[half], node.noise_level, *fitted)
            estimates.append(estimate.reshape(x.shape))
        return estimates

    def losses(self, name: str, outputs: Sequence[Tensor]) -> Tensor:
        """Squared errors (levels, n) of outputs that are taken for a prediction, in those of the Gaussian."""
        estimates = estimates_of(name, outputs, self)
        off = [self.squared_errors(estimate) for estimate in estimates]
        of_gaussian = [(self.std * max(error, TINY)) ** 2 for error in self.gaussian_errors]
        return torch.stack([one / fitted for one, fitted in zip(off, of_gaussian, strict=True)])

    def check(self, errors: Sequence[float]) -> ScoreCheck:
        """Errors at the nodes beside those of the Gaussian."""
        levels = tuple(node.noise_level for node in self.nodes)
        return ScoreCheck(levels, tuple(errors), self.gaussian_errors)

    @cached_property
    def gaussian_errors(self) -> tuple[float, ...]:
        errors = []
        for node, (x, _) in zip(self.nodes, self.states, strict=True):
            gain = node.alpha * self.variance / (node.alpha**2 * self.variance + node.sigma**2)
            errors.append(self.error(self.mean + gain * (x - node.alpha * self.mean)))
        return tuple(errors)


class Noises:
    """Data with several noises, as many as tell enough of data of few numbers.

    Attributes:
        sde: the process.
        first: the data with the first noise.
    """

    def __init__(self, sde: LinearSDE, x0: Tensor, stream: NoiseSource) -> None:
        self.sde = sde
        self._x0 = x0
        self._stream = stream
        self.first = self._make()

    @cached_property
    def all(self) -> list[Noised]:
        """The data with all noises."""
        n = min(MOST_NOISES, NUMBERS // self._x0.numel())
        return [self.first, *(self._make() for _ in range(n - 1))]

    def near_pure_noise(self) -> Noised:
        """The data with another noise, at the levels above those of the data."""
        return self._make(NEAR_NOISE)

    def of(self, x0: Tensor) -> Noised:
        """Other data with another noise."""
        return Noised(self.sde, x0, self.draw())

    def draw(self) -> Tensor:
        """Another noise (n, *)."""
        x0 = self._x0
        return self._stream.normal(tuple(x0.shape), x0.dtype, x0.device)

    def _make(self, levels: Sequence[float] = LEVELS) -> Noised:
        return Noised(self.sde, self._x0, self.draw(), levels)


def _linear(y: Tensor, noise_level: float, mean: Tensor, std: Tensor, directions: Tensor) -> Tensor:
    """The data (n, d) that a Gaussian with standard deviations along directions has at y, its samples with noise."""
    gain = std**2 / (std**2 + noise_level**2)
    along = (y - mean) @ directions.T
    return mean + (gain * along) @ directions


def _levels(sde: LinearSDE, std: float, levels: Sequence[float]) -> list[float]:
    """Noise levels in standard deviations of the data, of those that the process passes through."""
    least, most = range_of_levels(sde)
    return sorted({min(max(level * std, 1.01 * least), 0.99 * most) for level in levels})


def range_of_levels(sde: LinearSDE) -> tuple[float, float]:
    """The least and the largest noise level of a process."""
    least, most = coordinates.noise_level(sde, torch.tensor([sde.eps, sde.T]).double()).tolist()
    return least, most


def estimates_of(name: str, outputs: Sequence[Tensor], noised: Noised) -> list[Tensor]:
    """Data by outputs that are taken for a prediction, of `CONSTRUCTORS`; none if it gives no data."""
    sign = -1.0 if name.startswith("-") else 1.0
    try:
        known = [node.convert(name.removeprefix("-"), "data") for node in noised.nodes]
    except ZeroDivisionError:
        return []
    of_nodes = zip(known, noised.states, outputs, strict=True)
    return [c_x * x + sign * c_r * output for (c_x, c_r), (x, _), output in of_nodes]


def standard_error(values: Tensor) -> float:
    """Of the mean of values (n,)."""
    return float(values.std()) / math.sqrt(len(values))
