"""Train the digits denoiser and classifier whose weights ship in sgm_sde/assets.

    python benchmarks/train_digits.py --seed 0 --out sgm_sde/assets

Denoising score matching with the EDM loss (Karras et al. 2022, arXiv:2206.00364) for the denoiser,
cross-entropy for the classifier; both take a few minutes on two CPU cores.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm_sde.nn import DigitsDenoiser

# ln(sigma) ~ N(P_MEAN, P_STD^2): one batch in its two tails reaches 0.002 and 80.
P_MEAN, P_STD = -0.6, 1.8
LABEL_DROPOUT = 0.1
SIGMA_BINS = (0.002, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 80.0)


def augment(images: Tensor, generator: torch.Generator, shift: float, degrees: float, zoom: float) -> Tensor:
    """Shift (pixels), rotate (degrees) and zoom (relative) each image by independent uniform amounts."""

    def uniform(limit: float) -> Tensor:
        return limit * (2 * torch.rand(len(images), generator=generator) - 1)

    angle, scale = uniform(math.radians(degrees)), 1 + uniform(zoom)
    dx, dy = uniform(shift / 4), uniform(shift / 4)  # a pixel is 1/4 of grid_sample's [-1, 1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, dx, sin, cos, dy], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # The background is -1 and grid_sample pads with 0; bicubic, because bilinear blurs 8x8 images visibly.
    moved = F.grid_sample(images + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False) - 1
    return moved.clamp(-1, 1)


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches drawn with replacement, for ever."""
    while True:
        index = torch.randint(len(images), (size,), generator=generator)
        yield images[index], labels[index]


def denoising_loss(net: DigitsDenoiser, x: Tensor, y: Tensor | None, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return the EDM loss of each image (B,): (sigma^2 + s^2) / (sigma s)^2 times the mean squared error."""
    denoised = net(x + sigma[:, None, None, None] * noise, sigma, y)
    weight = (sigma**2 + net.sigma_data**2) / (sigma * net.sigma_data) ** 2
    return weight * (denoised - x).square().flatten(1).mean(1)
