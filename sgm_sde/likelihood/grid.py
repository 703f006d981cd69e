r"""The grid on which likelihoods are computed.

A long process, such as `VPSDE(T=10)` with $\lambda_T = -500$, is pure noise in nearly all of its log-SNR, and one that
begins at a noise of 1e-5 is data in much of it. There is nothing to integrate: the flow moves in the angle $\theta$ of
$\cot\theta = \sigma_d\,e^\lambda$, which is $\pi/2$ or 0 there but for what cannot be told from it. So the curve of the
grid goes from $\sigma_d\,e^\lambda = 10^{-4}$ to $10^4$ at most, and is bent to end where the process does all the
same, smoothly in $\theta$.
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

WIDE = 10.0  # times data_std, beyond which a grid is made for other data
NEXT_TO_NOTHING = 1e-4  # signal over noise, and noise over signal, below which one interval is enough
MOST = 700.0  # that exp takes


class Curve(NamedTuple):
    r"""$\lambda$ as a function of u in [0, 1], from the noise to the data.

    $$ \tilde\lambda = c + b\,\sinh(a(u - u_0)), \qquad e^{\lambda'} = e^{\tilde\lambda} + m, \qquad
       e^{-\lambda} = e^{-\lambda'} + m' $$

    with m and m' for which both ends of $\lambda$ are the process's own. Unless it goes on far into pure noise m is 0,
    and m' unless it goes on far to the data.

    Attributes:
        c: where steps are shortest.
        b: half of their length there, in units of a.
        u_0: its place.
        a: the stretch.
        first: lambda' at u = 0, where m is not 0.
        last: lambda at u = 1, where m' is not 0.
    """

    c: float
    b: float
    u_0: float
    a: float
    first: float | None = None
    last: float | None = None

    def __call__(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """lambda and d lambda / du."""
        lam, d_lam = self._from_noise(u)
        if self.last is None:
            return lam, d_lam

        end, _ = self._from_noise(np.ones(1))
        bent, d_lam = _bent(-lam, d_lam, -end, -self.last)
        return -bent, d_lam

    def _from_noise(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """lambda' and d lambda' / du."""
        lam, d_lam = self._straight(u)
        if self.first is None:
            return lam, d_lam

        start, _ = self._straight(np.zeros(1))
        return _bent(lam, d_lam, start, self.first)

    def _straight(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of the hyperbolic sine alone."""
        angle = self.a * (u - self.u_0)
        return self.c + self.b * np.sinh(angle), self.a * self.b * np.cosh(angle)


def _bent(lam: np.ndarray, d_lam: np.ndarray, start: np.ndarray, first: float) -> tuple[np.ndarray, np.ndarray]:
    """The logarithm of e^lam + m, and its derivative up to sign, with the m for which it is `first` at `start`."""
    # e^lambda = (e^lam - e^start) + e^first, in logarithms: e^first may be 0 in floating point.
    with np.errstate(divide="ignore"):
        above = lam + np.log(-np.expm1(np.minimum(start - lam, 0.0)))
    bent = np.logaddexp(above, first)
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

        # m and m' are added to all of e^lambda and e^-lambda, but must not move the other end: there it is taken off.
        least = math.log(NEXT_TO_NOTHING) - math.log(self.data_std)
        most = -math.log(NEXT_TO_NOTHING) - math.log(self.data_std)
        begin = first
        finish = last
        to_data = first < most < last
        if to_data:
            begin = first - math.log1p(math.exp(first - most) - math.exp(first - last))
            finish = most

        from_noise = begin < least < finish
        bent_begin = begin
        if from_noise:
            finish += math.log1p(math.exp(least - finish) - math.exp(begin - finish))
            begin = least

        c = min(max(math.log(3) - math.log(self.data_std), begin), finish)
        u_0, b = self._shape(c - begin, finish - c)
        return Curve(c, b, u_0, self.stretch, bent_begin if from_noise else None, last if to_data else None)

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
