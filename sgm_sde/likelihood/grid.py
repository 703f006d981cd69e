"""The grid on which likelihoods are computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import FAR, number, settle
from sgm_sde.grids import GridRule
from sgm_sde.processes.base import SDE


@dataclass(frozen=True)
class Stretched(GridRule):
    r"""Steps of log-SNR that grow like a hyperbolic sine away from the noise level where data take shape.

    $$ \lambda(u) = c + b\,\sinh(a(u - u_0)), \qquad c = -\log(\sigma_d/3) $$

    Args:
        stretch: a; steps at an end that takes half of the grid are about cosh(a/2) times those in the middle.
        data_std: standard deviation of the data.

    Raises:
        ValueError: unless both are positive.

    Examples:
        >>> import sgm_sde as sg
        >>> Stretched()(sg.EDMSDE(), 48).steps
        48
    """

    stretch: float = 3.0
    data_std: float = 0.5

    def __post_init__(self) -> None:
        for option in ("stretch", "data_std"):
            settle(self, **{option: number(option, getattr(self, option), above=0, most=FAR)})

    def curve(self, sde: SDE, start: float, end: float) -> tuple[float, float, float, float]:
        """c, b, u_0 and a, with u from 0 at the start."""
        first, last = (float(sde.log_snr(t)) / 2 for t in (start, end))
        if not (math.isfinite(first) and math.isfinite(last)):
            raise ValueError(f"log-SNR is {2 * first} at t={start} and {2 * last} at t={end}: both must be finite")
        c = min(max(math.log(3) - math.log(self.data_std), first), last)
        # sinh(a u_0) / sinh(a (1 - u_0)) is the ratio of the two ways from c to the ends.
        ratio, a = (c - first) / max(last - c, 1e-300), self.stretch
        u0 = math.atanh(ratio * math.sinh(a) / (1 + ratio * math.cosh(a))) / a if last > c else 1.0
        b = (c - first) / math.sinh(a * u0) if u0 > 0 else (last - c) / math.sinh(a)
        return c, b, u0, a

    @staticmethod
    def on(curve: tuple[float, float, float, float], u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """lambda and d lambda / du at u on a curve (c, b, u_0, a)."""
        c, b, u0, a = curve
        return c + b * np.sinh(a * (u - u0)), a * b * np.cosh(a * (u - u0))

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        lam, _ = self.on(self.curve(sde, start, end), u.numpy())
        times: Tensor = sde.time(2 * torch.from_numpy(lam))
        return times
