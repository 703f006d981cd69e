r"""Coordinates along a path: the variables in which predictions are interpolated and flows are integrated.

| name | u | flow's scaled state z | dz/du |
|---|---|---|---|
| `log-snr` | $\lambda = \log(\alpha/\sigma)$ | $x/\alpha$ | $D - z$ |
| `noise-level` | $\sigma/\alpha$ | $x/\alpha$ | $\epsilon$ |
| `flow-time` | $\sigma/(\alpha+\sigma)$ | $x/(\alpha+\sigma)$ | $\epsilon - D$ |
| `time` | $t$ | $x$ | $f - \tfrac12 g^2 s$ |
| `vp-time` | time at which VP has the noise level | | |
| `angle` | $\arctan(\sigma/(\alpha\sigma_d))$ | | |
| `log-signal` | $\log(1 + \sigma/(\alpha c))$ | | |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.node import Node, Process

Values = float | npt.NDArray[np.float64]  # at one place, or at the points of a quadrature
VP_BETAS = (0.1, 20.0)  # of the process whose time is "vp-time": Song et al., 2021


@dataclass(frozen=True)
class Coordinate:
    """A variable along a path, monotone in log-SNR, or time itself.

    Attributes:
        name: its name.
        of: a node's place.
        half_log_snr: half the log-SNR at places, on a process.
        slope: the prediction that is the flow's slope in it, the state scaled; None where there is none.
        state: alpha and sigma of the scaled state at places (B,); None where they depend on the process, or no flow has
            the variable.
    """

    name: str
    of: Callable[[Node], float]
    half_log_snr: Callable[[Process, Values], Values]
    slope: str | None = None
    state: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def time(self, sde: Process, u: float) -> float:
        """The time at a place."""
        return u if self.name == "time" else float(sde.time(2 * float(self.half_log_snr(sde, u))))


def noise_level(sde: Process, t: Tensor | float) -> Tensor:
    """sigma / alpha at times, of their shape."""
    return (-sde.log_snr(t) / 2).exp()


def _half_log_snr_of_time(sde: Process, t: Values) -> Values:
    return sde.log_snr(cpu_float64(t)).numpy() / 2


def _vp_time(node: Node) -> float:
    r"""The time at which VP has a noise level: $\log(1 + s^2)$ is the integral of its beta."""
    low, high = VP_BETAS
    integral = math.log1p(node.noise_level**2)
    return 2 * integral / (low + math.sqrt(low**2 + 2 * (high - low) * integral))


def _half_log_snr_of_vp_time(sde: Process, t: Values) -> Values:
    low, high = VP_BETAS
    return -np.log(np.expm1(low * t + (high - low) * t**2 / 2)) / 2


COORDINATES = {
    coordinate.name: coordinate
    for coordinate in (
        Coordinate("log-snr", lambda k: k.lam, lambda _, u: u, "data", lambda u: (torch.ones_like(u), (-u).exp())),
        Coordinate("time", lambda k: k.t, _half_log_snr_of_time, "drift"),
        Coordinate(
            "noise-level",
            lambda k: k.noise_level,
            lambda _, u: -np.log(u),
            "noise",
            lambda u: (torch.ones_like(u), u),
        ),
        Coordinate("vp-time", _vp_time, _half_log_snr_of_vp_time),
        Coordinate(
            "flow-time",
            lambda k: k.sigma / (k.alpha + k.sigma),
            lambda _, u: np.log1p(-u) - np.log(u),
            "rectified",
            lambda u: (1 - u, u),
        ),
    )
}


@lru_cache(maxsize=64)
def angle(sigma_data: float) -> Coordinate:
    """The angle of v-prediction, for data of a standard deviation."""
    return Coordinate(
        "angle",
        lambda k: math.atan2(k.sigma, k.alpha * sigma_data),
        lambda _, u: -np.log(sigma_data * np.tan(u)),
    )


@lru_cache(maxsize=64)
def log_signal(scale: float) -> Coordinate:
    """Minus the logarithm of the signal's share: even in the noise level below a scale, in its logarithm above it."""
    return Coordinate(
        "log-signal",
        lambda k: math.log1p(k.noise_level / scale),
        lambda _, u: -np.log(scale * np.expm1(u)),
    )
