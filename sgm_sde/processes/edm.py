"""The EDM process: time is the noise level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sgm_sde._utils.checks import settle_range
from sgm_sde._utils.shapes import Time, as_time
from sgm_sde.processes.linear import in_order
from sgm_sde.processes.ve import UnitScaleSDE, geometric_ladder


@dataclass(frozen=True)
class EDMSDE(UnitScaleSDE):
    r"""The process of EDM, whose time is the noise level: $dx = \sqrt{2t}\,dw$, $\sigma(t) = t$.

    Args:
        sigma_min: noise level at which sampling ends.
        sigma_max: noise level at which it starts.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.

    Source: Karras et al., 2022, arXiv:2206.00364.

    Examples:
        >>> sde = EDMSDE(sigma_min=0.002, sigma_max=80.0)
        >>> sde.T, sde.eps, float(sde.sigma(3.0))
        (80.0, 0.002, 3.0)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    T: float = field(init=False, repr=False)
    eps: float = field(init=False, repr=False)
    default_grid: ClassVar[str] = "karras"
    time_is_noise_level: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle_range(self, "sigma_min", "sigma_max")
        object.__setattr__(self, "T", self.sigma_max)
        object.__setattr__(self, "eps", self.sigma_min)

    def sigma(self, t: Time) -> Tensor:
        """Noise scale: t."""
        return as_time(t) + 0

    def d_sigma(self, t: Time) -> Tensor:
        """Time derivative of `sigma`: 1."""
        return torch.ones_like(as_time(t))

    @property
    def likelihood_eps(self) -> float:
        """`eps`: the network has seen nothing below."""
        return self.eps

    def ladder(self, levels: int | None = None) -> Tensor:
        """Levels even in log sigma between `sigma_max` and `sigma_min`, 1000 if not given."""
        return geometric_ladder(self.sigma_min, self.sigma_max, levels)

    def time(self, log_snr: Time) -> Tensor:
        """Inverse of `log_snr`."""
        return (-as_time(log_snr) / 2).exp()

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Scale 1 and standard deviation sqrt(t^2 - s^2) of x_t given x_s, s <= t."""
        s, t = in_order(s, t)
        return torch.ones_like(s + t), ((t - s) * (t + s)).sqrt()
