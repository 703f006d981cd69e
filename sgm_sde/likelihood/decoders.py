"""From data to eps and back: the last step of every bound on the likelihood of data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, float_dtype, is_integer, range_of, require_integers
from sgm_sde._utils.ranges import refuse_cast
from sgm_sde._utils.shapes import flat
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.likelihood.checks import check_points, require_count
from sgm_sde.scores.model import BoundScore


def normal_log_prob(z: Tensor, std: Tensor | float) -> Tensor:
    """Log-density, entry by entry, of std * z for standard normal z."""
    log_std = std.log() if isinstance(std, Tensor) else math.log(std)
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi) - log_std


class Decoder(Protocol):
    """A decoder: data and their log-probability under a Gaussian.

    Attributes:
        x: data for the process to start from, (B, *).
    """

    @property
    def x(self) -> Tensor: ...

    def __call__(self, mean: Tensor, std: Tensor | float) -> Tensor:
        """Log-probability (B,) of the data under N(mean, std^2)."""


@dataclass(frozen=True)
class GaussianDecoder:
    """The log-density of points."""

    x: Tensor

    def __call__(self, mean: Tensor, std: Tensor | float) -> Tensor:
        """Log-density (B,) of the data under N(mean, std^2)."""
        return flat(normal_log_prob((self.x - mean) / std, std)).sum(1)


@dataclass(frozen=True)
class Levels:
    """Integers as bins of a range: level k of n is [k, k + 1)/n of (low, high).

    Attributes:
        images: (B, *), integers in [0, n).
        n: number of levels.
        low: lower edge of level 0.
        width: of a bin.
        x: middle of each image's bins, (B, *).
    """

    images: Tensor
    n: int
    low: float
    width: float
    x: Tensor

    @staticmethod
    def of(images: Tensor, n_levels: int, data_range: tuple[float, float], dtype: torch.dtype | None) -> Levels:
        """Images with their range.

        Raises:
            TypeError: for images that are not of an integer dtype.
            ValueError: for levels outside of the range, and 0 and 1 alone where there are many levels.
        """
        require_integers("images", images, ": for points use log_prob")
        images = images.long()  # few operations know the wider unsigned ones
        n_levels = require_count("n_levels", n_levels, 2)
        low, high = range_of("data_range", data_range)
        dtype = torch.get_default_dtype() if dtype is None else float_dtype("dtype", dtype)
        _check_levels(images, n_levels)

        width = (high - low) / n_levels
        middle = low + width * (images.double() + 0.5)
        return Levels(images, n_levels, low, width, middle.to(dtype))

    def __call__(self, mean: Tensor, std: Tensor | float) -> Tensor:
        """Log of the mass (B,) that N(mean, std^2) has in the bins; the outermost go on for ever."""
        mean = mean.double()
        lower = (self.low + self.width * self.images.double() - mean) / std
        upper = torch.where(self.images == self.n - 1, math.inf, lower + self.width / std)
        lower = torch.where(self.images == 0, -math.inf, lower)
        flip = lower > 0  # so that both edges lie in the tail that keeps its digits
        low = torch.where(flip, -upper, lower)
        high = torch.where(flip, -lower, upper)
        log_low = torch.special.log_ndtr(low)
        log_high = torch.special.log_ndtr(high)
        return flat(log_high + torch.log1p(-(log_low - log_high).exp())).sum(1)


def _check_levels(images: Tensor, n_levels: int) -> None:
    """Raise ValueError unless images are (B, *) in [0, n_levels), and not 0 and 1 alone of many levels."""
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(f"images must have the shape (B, *), with at least one number, got {tuple(images.shape)}")
    least = int(images.min())
    most = int(images.max())
    if least < 0 or most >= n_levels:
        raise ValueError(f"images must lie in [0, {n_levels}) for n_levels={n_levels}, got {least} to {most}")
    refuse_cast("images", images, n_levels)


def decoder_of(
    x: Tensor, n_levels: int | None, data_range: tuple[float, float] | None, dtype: torch.dtype | None
) -> Decoder:
    """`Levels` for integers, a `GaussianDecoder` for points.

    Raises:
        ValueError: for levels or a range without integers, or integers without them.
    """
    if is_integer(x):
        if n_levels is None or data_range is None:
            raise ValueError("integers need n_levels= and data_range=")
        return Levels.of(x, n_levels, data_range, dtype)
    if n_levels is not None or data_range is not None:
        given = x.dtype if isinstance(x, Tensor) else described(x)
        raise ValueError(f"n_levels and data_range are for integers, got them with {given}")
    points = check_points(x)
    return GaussianDecoder(points if dtype is None else points.to(float_dtype("dtype", dtype)))


def diffuse(model: BoundScore, decoder: Decoder, eps: float, stream: NoiseStream) -> tuple[Tensor, Tensor]:
    """States (B, *) at eps, and log p(x | x_eps) - log q(x_eps | x), (B,); one network call.

    p is the decoder with the mean of the denoiser and the standard deviation sigma / alpha; q is the forward process.
    """
    (node,) = model.sde.nodes([eps])
    z = stream.normal(tuple(decoder.x.shape), decoder.x.dtype, decoder.x.device)
    x = node.alpha * decoder.x + node.sigma * z
    log_q = flat(normal_log_prob(z.double(), node.sigma)).sum(1)
    return x, decoder(model.predict("data", x, eps), node.sigma / node.alpha) - log_q
