r"""The grid on which likelihoods are computed.

A long process, such as `VPSDE(T=10)` with $\lambda_T = -500$, is pure noise in nearly all of its log-SNR. There is
nothing to integrate: the flow moves in the angle $\theta$ of $\cot\theta = \sigma_d\,e^\lambda$, which is $\pi/2$
there but for what cannot be told from it. So the curve of the grid begins at $\sigma_d\,e^\lambda = 10^{-4}$, and is
bent to end at T all the same, smoothly in $\theta$.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import FAR, number, settle
from sgm_sde.grids import GridRule
from sgm_sde.processes.base import SDE

PURE_NOISE = 1e-4  # signal over noise below which one interval is enough
MOST = 700.0  # that exp takes


class Curve(NamedTuple):
    r"""$\lambda$ as a function of u in [0, 1], from the noise to the data.

    $$ \tilde\lambda = c + b\,\sinh(a(u - u_0)), \qquad e^\lambda = e^{\tilde\lambda} + m $$

    with $m = e^{\lambda(0)} - e^{\tilde\lambda(0)}$, which is 0 unless the process goes on far into pure noise. Both
    ends of $\lambda$ are the process's own.

    Attributes:
        c: where steps are shortest.
        b: half of their length there, in units of a.
        u_0: its place.
        a: the stretch.
        first: lambda at u = 0.
        bent: whether m is not 0.
    """

    c: float
    b: float
    u_0: float
    a: float
    first: float
    bent: bool

    def __call__(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """lambda and d lambda / du."""
        angle = self.a * (u - self.u_0)
        lam = self.c + self.b * np.sinh(angle)
        d_lam = self.a * self.b * np.cosh(angle)
        if not self.bent:
            return lam, d_lam

        # e^lambda = (e^lam - e^start) + e^first, in logarithms: e^first may be 0 in floating point.
        start = self.c + self.b * math.sinh(-self.a * self.u_0)
        with np.errstate(divide="ignore"):
            above = lam + np.log(-np.expm1(np.minimum(start - lam, 0.0)))
        bent = np.logaddexp(above, self.first)
        return bent, d_lam * np.exp(np.minimum(lam - bent, MOST))


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

    def curve(self, sde: SDE, start: float, end: float) -> Curve:
        """The curve from a start in the noise to an end.

        Raises:
            ValueError: where log-SNR is not finite at an end.
        """
        first, last = (float(sde.log_snr(t)) / 2 for t in (start, end))
        if not (math.isfinite(first) and math.isfinite(last)):
            raise ValueError(
                f"log-SNR is {2 * first} at t={start} "
                f"and {2 * last} at t={end}: both must be finite; "
                f"take a process that has noise and signal at both ends, "
                f"such as RectifiedFlowSDE(T=0.999), its default, "
                f"and eps > 0"
            )

        noise = math.log(PURE_NOISE) - math.log(self.data_std)
        bent = first < noise < last
        begin = noise if bent else first
        if bent:  # m, which is added to all of e^lambda, must not move the end: there it is taken off beforehand
            last += math.log1p(math.exp(noise - last) - math.exp(first - last))
        c = min(max(math.log(3) - math.log(self.data_std), begin), last)
        u_0, b = self._shape(c - begin, last - c)
        return Curve(c, b, u_0, self.stretch, first, bent)

    def _shape(self, before: float, after: float) -> tuple[float, float]:
        """u_0 and b of ways of these lengths from c to the ends."""
        a = self.stretch
        if after <= 0:
            return 1.0, before / math.sinh(a)

        # sinh(a u_0) / sinh(a (1 - u_0)) is the ratio of the two.
        ratio = before / max(after, 1e-300)
        u_0 = math.atanh(ratio * math.sinh(a) / (1 + ratio * math.cosh(a))) / a
        b = before / math.sinh(a * u_0) if u_0 > 0 else after / math.sinh(a)
        return u_0, b

    def steps_for(self, sde: SDE, start: float, end: float, shortest: float) -> int:
        """The least number of steps of which those where data take shape, the shortest, are no longer in lambda.

        Raises:
            ValueError: where log-SNR is not finite at an end.
        """
        curve = self.curve(sde, start, end)
        return math.ceil(curve.a * curve.b / shortest)

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        lam, _ = self.curve(sde, start, end)(u.numpy())
        times: Tensor = sde.time(2 * torch.from_numpy(lam))
        return times
