"""Units in which the numbers of a sample are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FEW_NUMBERS = 16  # of a sample, up to which each may be of something else
UNLIKE = 4.0  # times the standard deviation of another number: beyond, each is measured in its own
ROUNDING = 1e-6  # of the largest: a standard deviation that single precision makes


def units_of(x: Tensor, event: Sequence[int], noise: float) -> Tensor | None:
    """Factors (d,) that make the standard deviations of a few numbers (N, d) alike; None where they nearly are.

    Such numbers are of different things, and the small ones would not count. Those of images are of one. What varies by
    less than the noise level sigma / alpha at which a run ends, a network can hardly tell from a constant: it is
    measured by that.

    Examples:
        >>> import torch
        >>> units_of(torch.tensor([[-1.0, -40.0], [1.0, 40.0]]), (2,), noise=0.01).tolist()
        [6.32..., 0.158...]
        >>> units_of(torch.tensor([[-1.0, 0.0], [1.0, 1e-4]]), (2,), noise=0.01).tolist()
        [0.084..., 11.8...]
        >>> units_of(torch.tensor([[-1.0, -2.0], [1.0, 2.0]]), (2,), noise=0.01)
    """
    if len(event) != 1 or event[0] > FEW_NUMBERS:
        return None
    spread = x.double().std(0)
    largest = float(spread.max())
    spread = spread.clamp(min=max(noise, ROUNDING * largest))
    if not largest > UNLIKE * float(spread.min()):
        return None
    return (spread.log().mean().exp() / spread).to(x)


def in_units(x: Tensor, units: Tensor | None) -> Tensor:
    """Numbers (..., d) times their factors (`units_of`), as they are without."""
    return x if units is None else x * units


def spread_of(x: Tensor, units: Tensor | None) -> float:
    """Standard deviation of all numbers of samples (N, d) together, 1 if they are all the same.

    With units of its own (`units_of`) each number varies around a mean of its own, which means nothing to the others.
    """
    if units is not None:
        x = x - x.mean(0)
    return float(x.double().std(correction=min(1, x.numel() - 1))) or 1.0


def principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean (d,) of numbers (N, d), their standard deviations (k,) along the principal directions, and those (k, d).

    Examples:
        >>> import torch
        >>> _, std, directions = principal(torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, -1.0], [0.0, 1.0]]))
        >>> std.tolist(), directions.abs().tolist()
        ([2.12..., 0.70...], [[1.0, 0.0], [0.0, 1.0]])
    """
    mean = x.mean(0)
    _, std, directions = torch.linalg.svd((x - mean) / math.sqrt(len(x)), full_matrices=False)
    return mean, std, directions
