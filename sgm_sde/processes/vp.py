"""Variance-preserving and sub-VP processes, as functions of the integrated rate B(t)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgm_sde._utils.checks import settle_positive, settle_range
from sgm_sde._utils.shapes import Time, as_time
from sgm_sde.processes.linear import LinearSDE, MarginalAt, in_order


class BetaSDE(LinearSDE):
    r"""Processes with the drift $-\tfrac12\beta(t)\,x$: functions of the integrated rate $B(t) = \int_0^t\beta$."""

    @abstractmethod
    def beta(self, t: Time) -> Tensor:
        """Rate beta(t); returns the shape of `t`."""

    @abstractmethod
    def integrated_beta(self, t: Time) -> Tensor:
        """B(t), the integral of beta from 0 to t."""

    def alpha(self, t: Time) -> Tensor:
        """Signal scale exp(-B/2)."""
        return (-self.integrated_beta(t) / 2).exp()

    def d_alpha(self, t: Time) -> Tensor:
        """Time derivative of `alpha`: -beta alpha / 2."""
        return self.rate(t) * self.alpha(t)

    def rate(self, t: Time) -> Tensor:
        """The linear drift's coefficient, -beta / 2."""
        return -self.beta(t) / 2


class VariancePreservingSDE(BetaSDE):
    r"""Processes with $\alpha^2 + \sigma^2 = 1$, from $\beta(t)$ and its integral $B(t)$.

    $$ dx = -\tfrac12\beta(t)\,x\,dt + \sqrt{\beta(t)}\,dw, \qquad \alpha = e^{-B/2}, \qquad \sigma^2 = 1 - e^{-B} $$

    A process of your own gives `beta`, `integrated_beta` and, if it has one, the inverse of the latter.
    """

    def time_of_integrated_beta(self, B: Tensor) -> Tensor:
        """The time at which the integrated rate is `B`."""
        return LinearSDE.time(self, _vp_log_snr(B))

    def sigma(self, t: Time) -> Tensor:
        """Noise scale sqrt(1 - exp(-B)), accurate for small times."""
        return (-torch.expm1(-self.integrated_beta(t))).sqrt()

    def d_sigma(self, t: Time) -> Tensor:
        """Time derivative of `sigma`: beta alpha^2 / (2 sigma)."""
        return self.beta(t) * self.alpha(t) ** 2 / (2 * self.sigma(t))

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio -log(exp(B) - 1)."""
        return _vp_log_snr(self.integrated_beta(t))

    def time(self, log_snr: Time) -> Tensor:
        """Inverse of `log_snr`."""
        return self.time_of_integrated_beta(_log_1p_exp(-as_time(log_snr)))

    def time_of_noise_level(self, noise_level: Tensor) -> Tensor:
        """The time at which sigma / alpha is the given one."""
        return self.time_of_integrated_beta(torch.log1p(noise_level.square()))

    def at_noise_level(self, noise_level: Tensor) -> MarginalAt:
        """alpha, sigma and their time derivatives where sigma / alpha is the given one, from which the first two follow
        without the time."""
        square = noise_level.square()
        k = self.values(self.time_of_integrated_beta(torch.log1p(square)))
        k.alpha = (1 + square).rsqrt()
        k.sigma = noise_level * k.alpha
        return k

    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient sqrt(beta)."""
        return self.beta(t).sqrt()

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Scale and standard deviation of x_t given x_s, s <= t."""
        s, t = in_order(s, t)
        dB = self.integrated_beta(t) - self.integrated_beta(s)
        scale = (-dB / 2).exp()
        std = (-torch.expm1(-dB)).sqrt()
        return scale, std


def _log_1p_exp(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to a few roundings, relative."""
    small = (-x.abs()).exp()
    rounded = 1 + small
    log_1p = rounded.log() - (rounded - 1).sub_(small).div_(rounded)
    return x.clamp_min(0) + log_1p


def _vp_log_snr(B: Tensor) -> Tensor:
    return -(B + torch.log(-torch.expm1(-B)))


@dataclass(frozen=True)
class _LinearBetaSDE(BetaSDE):
    r"""The rate $\beta(t) = \beta_0 + (\beta_1 - \beta_0) t$ and its integral, shared by VP and sub-VP."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    T: float = 1.0
    eps: float = 1e-3

    def __post_init__(self) -> None:
        settle_range(self, "beta_min", "beta_max", equal=True)
        super().__post_init__()

    def beta(self, t: Time) -> Tensor:
        """Rate beta(t); returns the shape of `t`."""
        return self.beta_min + (self.beta_max - self.beta_min) * as_time(t)

    def integrated_beta(self, t: Time) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        t = as_time(t)
        return t * (self.beta_min + (self.beta_max - self.beta_min) / 2 * t)

    def time_of_integrated_beta(self, B: Tensor) -> Tensor:
        """The time at which the integrated rate is `B`."""
        slope = self.beta_max - self.beta_min
        half = (self.beta_min**2 / 4 + slope / 2 * B).sqrt()  # of beta at that time
        return B / (self.beta_min / 2 + half)


@dataclass(frozen=True)
class VPSDE(_LinearBetaSDE, VariancePreservingSDE):
    r"""Variance-preserving process with a linear rate: the continuous limit of DDPM.

    $$ \beta(t) = \beta_{\min} + (\beta_{\max} - \beta_{\min})\,t, \qquad
       \log\alpha = -\tfrac12\int_0^t\beta, \qquad \sigma^2 = 1 - \alpha^2 $$

    Args:
        beta_min: rate at t = 0.
        beta_max: rate at t = 1.
        T: end of the forward time.
        eps: default end of sampling.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max and 0 <= eps < T.

    Source: Song et al., 2021, arXiv:2011.13456; Ho et al., 2020, arXiv:2006.11239.

    Examples:
        >>> sde = VPSDE(beta_min=0.1, beta_max=20.0)
        >>> round(float(sde.alpha(1.0)), 6), round(float(sde.sigma(1e-3)), 6)
        (0.006572, 0.010485)
    """

    keeps_float32: ClassVar[bool] = True


@dataclass(frozen=True)
class SubVPSDE(_LinearBetaSDE):
    r"""The sub-VP process: the mean of VP, with a smaller variance.

    $$ \log\alpha = -B/2, \qquad \sigma = 1 - e^{-B}, \qquad g^2 = \beta\,(1 - e^{-2B}) $$

    Args:
        beta_min: rate at t = 0, as for `VPSDE`.
        beta_max: rate at t = 1, at least as large.
        T: end of the forward time.
        eps: default end of sampling, below it.

    Raises:
        ValueError: for arguments out of range.

    Source: Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> round(float(SubVPSDE().sigma(0.01)), 6)
        0.001993
    """

    def sigma(self, t: Time) -> Tensor:
        """Noise scale 1 - exp(-B)."""
        return -torch.expm1(-self.integrated_beta(t))

    def d_sigma(self, t: Time) -> Tensor:
        """Time derivative of `sigma`: beta exp(-B)."""
        return self.beta(t) * (-self.integrated_beta(t)).exp()

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio -2 log(2 sinh(B/2))."""
        B = self.integrated_beta(t)
        return -B - 2 * torch.log(-torch.expm1(-B))

    def time(self, log_snr: Time) -> Tensor:
        """Inverse of `log_snr`: B = 2 asinh(sigma / (2 alpha))."""
        noise_level = (-as_time(log_snr) / 2).exp()
        return self.time_of_integrated_beta(2 * torch.asinh(noise_level / 2))

    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient sqrt(beta (1 - exp(-2B)))."""
        return (self.beta(t) * -torch.expm1(-2 * self.integrated_beta(t))).sqrt()


@dataclass(frozen=True)
class CosineVPSDE(VariancePreservingSDE):
    r"""Variance-preserving process with the cosine schedule.

    $$ \alpha = \frac{\cos\phi(t)}{\cos\phi(0)}, \qquad \phi(t) = \frac\pi2\,\frac{t + s}{1 + s} $$

    $\alpha(1) = 0$, where drift and noise-prediction are singular; the default T is that of DPM-Solver's code.

    Args:
        s: offset that keeps the first noise levels from being too small.
        T: end of the forward time, below 1.
        eps: default end of sampling.

    Raises:
        ValueError: unless s > 0 and 0 <= eps < T < 1.

    Source: Nichol & Dhariwal, 2021, arXiv:2102.09672; T from Lu et al., 2022, arXiv:2206.00927.

    Examples:
        >>> round(float(CosineVPSDE().alpha(0.5)), 6)
        0.70274
    """

    s: float = 0.008
    T: float = 0.9946
    eps: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_positive(self, "s")
        if self.T >= 1:
            raise ValueError(f"the cosine schedule has alpha(1) = 0: need T < 1, got {self.T}")

    @property
    def _phi0(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    @property
    def _slope(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def _co_phi(self, t: Tensor) -> Tensor:
        return self._slope * (1 - t)  # pi/2 - phi(t), which keeps its digits as alpha goes to 0

    def beta(self, t: Time) -> Tensor:
        """Rate 2 phi' tan(phi), from the angle that keeps its digits."""
        t = as_time(t)
        phi = self._phi0 + self._slope * t
        tan_phi = torch.where(t < 0.5, phi.tan(), 1 / self._co_phi(t).tan())
        return 2 * self._slope * tan_phi

    def integrated_beta(self, t: Time) -> Tensor:
        """B = -2 log(alpha), by cos(a+d)/cos(a) = 1 - 2 sin(d/2) sin(a+d/2)/cos(a) where alpha is near 1."""
        t = as_time(t)
        cos0 = math.cos(self._phi0)
        half = self._slope * t / 2
        alpha_less_1 = -2 * half.sin() * (self._phi0 + half).sin() / cos0
        alpha = self._co_phi(t).sin() / cos0
        return torch.where(t < 0.5, -2 * torch.log1p(alpha_less_1), -2 * alpha.log())

    def time_of_integrated_beta(self, B: Tensor) -> Tensor:
        """Inverse, through sine and cosine of d = phi - phi(0): neither cancels near t = 0."""
        alpha = (-B / 2).exp()
        sigma2 = -torch.expm1(-B)
        sin0 = math.sin(self._phi0)
        cos0 = math.cos(self._phi0)

        sin_phi = (sin0**2 + sigma2 * cos0**2).sqrt()
        sin_d = cos0 * sigma2 / (sin_phi + alpha * sin0)
        cos_d = alpha * cos0**2 + sin_phi * sin0
        return torch.atan2(sin_d, cos_d) / self._slope
