"""Rectified flow: straight lines from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.shapes import Time, as_time
from sgm_sde.processes.linear import LinearSDE, in_order


@dataclass(frozen=True)
class RectifiedFlowSDE(LinearSDE):
    r"""Rectified flow (flow matching with optimal-transport paths): $x_t = (1 - t)\,x_0 + t\,z$.

    $$ f = -\frac{1}{1 - t}, \qquad g^2 = \frac{2t}{1 - t}, \qquad \frac{dx}{dt} = z - x_0 $$

    Time runs from data (0) to noise, as everywhere in this library. Drift and diffusion are infinite at t = 1,
    so the default T stops short of it; `T=1.0` is allowed with deterministic solvers and networks that predict
    the flow or the data, whose coefficients stay finite there.

    Args:
        T: end of the forward time, at most 1.
        eps: default end of sampling.

    Raises:
        ValueError: unless 0 <= eps < T <= 1.

    Source: Liu et al., 2022, arXiv:2209.03003; Lipman et al., 2022, arXiv:2210.02747.

    Examples:
        >>> sde = RectifiedFlowSDE()
        >>> float(sde.alpha(0.25)), float(sde.sigma(0.25)), round(float(sde.time(sde.log_snr(0.25))), 12)
        (0.75, 0.25, 0.25)
    """

    T: float = 0.999
    eps: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.T > 1:
            raise ValueError(f"rectified flow ends at t = 1: need T <= 1, got {self.T}")

    def alpha(self, t: Time) -> Tensor:
        """Signal scale: 1 - t."""
        return 1 - as_time(t)

    def sigma(self, t: Time) -> Tensor:
        """Noise scale: t."""
        return as_time(t) + 0

    def d_alpha(self, t: Time) -> Tensor:
        """Time derivative of `alpha`: -1."""
        return -torch.ones_like(as_time(t))

    def d_sigma(self, t: Time) -> Tensor:
        """Time derivative of `sigma`: 1."""
        return torch.ones_like(as_time(t))

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio 2 log((1 - t) / t)."""
        t = as_time(t)
        return 2 * (torch.log1p(-t) - t.log())

    def time(self, log_snr: Time) -> Tensor:
        """Inverse of `log_snr`."""
        return torch.sigmoid(-as_time(log_snr) / 2)

    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient sqrt(2t / (1 - t))."""
        t = as_time(t)
        return (2 * t / (1 - t)).sqrt()

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Scale (1-t)/(1-s) and standard deviation of x_t given x_s, s <= t."""
        s, t = in_order(s, t)
        scale = (1 - t) / (1 - s)
        std = ((t - s) * (t * (1 - s) + s * (1 - t))).sqrt() / (1 - s)
        return scale, std
