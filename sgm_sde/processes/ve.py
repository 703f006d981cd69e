"""Variance-exploding process: geometric noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.checks import settle_range, table_size
from sgm_sde._utils.shapes import Time, as_time
from sgm_sde.processes.linear import LinearSDE, in_order


class UnitScaleSDE(LinearSDE):
    """Processes with alpha = 1: no drift, noise added on top of the data."""

    def alpha(self, t: Time) -> Tensor:
        """Signal scale: 1."""
        return torch.ones_like(as_time(t))

    def d_alpha(self, t: Time) -> Tensor:
        """Time derivative of `alpha`: 0."""
        return torch.zeros_like(as_time(t))

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio -2 log(sigma)."""
        return -2 * self.sigma(t).log()

    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient sqrt(2 sigma sigma')."""
        return (2 * self.sigma(t) * self.d_sigma(t)).sqrt()


def geometric_ladder(sigma_min: float, sigma_max: float, levels: int | None) -> Tensor:
    """Noise levels even in log sigma, the largest first."""
    n = table_size("levels", 1000 if levels is None else levels, 2)
    return torch.linspace(math.log(sigma_max), math.log(sigma_min), n, dtype=torch.float64, device="cpu").exp()


@dataclass(frozen=True)
class VESDE(UnitScaleSDE):
    r"""Variance-exploding process with geometric noise levels: the continuous limit of NCSN.

    $$ dx = \sigma(t)\sqrt{2\log(\sigma_{\max}/\sigma_{\min})}\,dw, \qquad
       \sigma(t) = \sigma_{\min}(\sigma_{\max}/\sigma_{\min})^t $$

    As in Song et al. the kernel's standard deviation is $\sigma(t)$ itself, which is $\sigma_{\min}$ at t = 0.

    Args:
        sigma_min: noise at t = 0.
        sigma_max: noise at t = 1; about the largest distance between two data points.
        T: end of the forward time.
        eps: default end of sampling.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and 0 <= eps < T.

    Source: Song et al., 2021, arXiv:2011.13456; Song & Ermon, 2019, arXiv:1907.05600.

    Examples:
        >>> round(float(VESDE(sigma_min=0.01, sigma_max=50.0).sigma(0.5)), 6)
        0.707107
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    T: float = 1.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_range(self, "sigma_min", "sigma_max")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Time) -> Tensor:
        """Noise scale sigma_min (sigma_max / sigma_min)^t, from the nearer end: small exponents keep their digits."""
        t = as_time(t)
        return torch.where(
            t < 0.5,
            self.sigma_min * (self._log_ratio * t).exp(),
            self.sigma_max * (self._log_ratio * (t - 1)).exp(),
        )

    def d_sigma(self, t: Time) -> Tensor:
        """Time derivative of `sigma`."""
        return self._log_ratio * self.sigma(t)

    def ladder(self, levels: int | None = None) -> Tensor:
        """Levels even in log sigma between `sigma_max` and `sigma_min`, 1000 if not given."""
        return geometric_ladder(self.sigma_min, self.sigma_max, levels)

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio, linear in t."""
        return -2 * (math.log(self.sigma_min) + self._log_ratio * as_time(t))

    def time(self, log_snr: Time) -> Tensor:
        """Inverse of `log_snr`."""
        return (-as_time(log_snr) / 2 - math.log(self.sigma_min)) / self._log_ratio

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Scale 1 and standard deviation sqrt(sigma_t^2 - sigma_s^2) of x_t given x_s, s <= t."""
        s, t = in_order(s, t)
        return torch.ones_like(s + t), self.sigma(s) * torch.expm1(2 * self._log_ratio * (t - s)).sqrt()
