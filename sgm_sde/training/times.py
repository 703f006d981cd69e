r"""At which times a loss is measured: distributions of the training time, each a quantile function.

A draw is $t = Q(u)$ with $u$ uniform on (0, 1), so that stratified draws of $u$ serve every distribution. Where a
distribution only lowers the variance of an average over uniform times, it comes with the factor
$w(t) = \text{uniform density} / \text{own density}$ that keeps the average; elsewhere the distribution is part of the
objective and $w = 1$.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, flag, instance_of, number, reals, settle
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.times import at_ends
from sgm_sde.processes import SDE, LinearSDE
from sgm_sde.processes.base import require_sde
from sgm_sde.processes.kinds import has_scalar_marginal


@dataclass(frozen=True, kw_only=True)
class Times(ABC):
    """A distribution of training times; derive from it and give `quantile`.

    Args:
        stratified: one draw in each of B equal parts of (0, 1), in random order, instead of B independent ones: the
            same expectation with less variance.

    Raises:
        TypeError: for a `stratified` that is no bool.

    Examples:
        >>> import sgm_sde as sg
        >>> class Late(Times):
        ...     def quantile(self, sde, u): return sde.T * u.sqrt()
        >>> Late().quantile(sg.VPSDE(), torch.tensor([0.25]))
        tensor([0.5000])
    """

    stratified: bool = True

    def __post_init__(self) -> None:
        settle(self, stratified=flag("stratified", self.stratified))

    @abstractmethod
    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """The times (n,) below which shares u (n,) of the distribution lie."""

    def weight(self, sde: SDE, t: Tensor) -> Tensor:
        """The factor w(t) (n,) on the loss."""
        return torch.ones_like(t)

    def draw(self, sde: SDE, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """N times and their weights, float64 on the CPU.

        Raises:
            TypeError: for a generator that is none, or an n that is no integer.
            ValueError: for an n below 1.

        Examples:
            >>> import sgm_sde as sg
            >>> t, w = Uniform().draw(sg.VPSDE(), 4, torch.Generator().manual_seed(0))
            >>> bool((t.sort().values * 4).floor().equal(torch.arange(4.0).double())), w.tolist()
            (True, [1.0, 1.0, 1.0, 1.0])
        """
        require_sde(sde)
        n = check_integer("n", n)
        instance_of("generator", generator, torch.Generator, "a torch.Generator")
        device = generator.device
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        if self.stratified:
            u = (torch.randperm(n, generator=generator, device=device) + u) / n
        t = self.quantile(sde, u.cpu())
        return t, self.weight(sde, t)


@dataclass(frozen=True, kw_only=True)
class Uniform(Times):
    """Uniform on [low, high].

    Args:
        low: earliest time; the process' `eps` if not given.
        high: latest time; the process' `T` if not given.

    Raises:
        ValueError: at a draw, unless 0 <= low < high <= T.

    Source: Song et al., 2021, arXiv:2011.13456; stratified: Kingma et al., 2021, arXiv:2107.00630, appendix I.1.

    Examples:
        >>> import sgm_sde as sg
        >>> Uniform(low=0.5).quantile(sg.VPSDE(), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.5000, 0.7500, 1.0000])
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("low", "high"):
            if getattr(self, option) is not None:
                settle(self, **{option: number(option, getattr(self, option))})

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """low + (high - low) u."""
        low = sde.eps if self.low is None else at_ends(sde, self.low, option="low")
        high = sde.T if self.high is None else at_ends(sde, self.high, option="high")
        if not 0 <= low < high <= sde.T:
            raise ValueError(f"need 0 <= low < high <= T = {sde.T}, got low={low} and high={high}")
        return low + (high - low) * u


@dataclass(frozen=True, kw_only=True)
class Importance(Times):
    r"""Uniform in log-SNR on [eps, T], weighted so that averages are those over uniform times.

    The density in $t$ is proportional to $g^2/\sigma^2 = -d\,\text{log-SNR}/dt$, which is the likelihood weighting of
    the squared error of the noise: under it that loss has the same weight at every draw.

    Raises:
        ValueError: at a draw, where log-SNR is infinite at an end.
        TypeError: at a draw, for a process without alpha(t) and sigma(t).

    Source: Song, Durkan, Murray and Ermon, 2021, arXiv:2101.09258, section 4.

    Examples:
        >>> import sgm_sde as sg
        >>> t = Importance().quantile(sg.VPSDE(), torch.tensor([0.0, 0.5, 1.0]).double())
        >>> [round(float(s), 3) for s in t]
        [0.001, 0.305, 1.0]
    """

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """The time whose log-SNR lies at the share u between its values at eps and at T."""
        sde = _linear(sde)
        first, last = self._ends(sde)
        return sde.time(first + (last - first) * u).clamp(sde.eps, sde.T)

    @staticmethod
    def _ends(sde: LinearSDE) -> tuple[Tensor, Tensor]:
        """Log-SNR at eps and at T."""
        first = sde.log_snr(cpu_float64(sde.eps))
        last = sde.log_snr(cpu_float64(sde.T))
        if not (bool(torch.isfinite(first)) and bool(torch.isfinite(last))):
            raise ValueError(
                f"importance sampling needs a finite log-SNR at both ends, and on {sde!r} it is {float(first)} at "
                f"eps={sde.eps} and {float(last)} at T={sde.T}"
            )
        return first, last

    def weight(self, sde: SDE, t: Tensor) -> Tensor:
        """The whole fall of log-SNR over (T - eps) g^2 / sigma^2."""
        sde = _linear(sde)
        first, last = self._ends(sde)
        fall = first - last
        return fall * sde.sigma(t) ** 2 / ((sde.T - sde.eps) * sde.g(t) ** 2)


@dataclass(frozen=True, kw_only=True)
class LogNormal(Times):
    r"""EDM's distribution: $\ln(\sigma/\alpha) \sim N(\text{mean}, \text{std}^2)$, cut to the process' [eps, T].

    Args:
        mean: P_mean.
        std: P_std, positive.

    Raises:
        ValueError: for a std that is not positive; at a draw, where [eps, T] has no share at all.

    Source: Karras et al., 2022, arXiv:2206.00364, table 1.

    Examples:
        >>> import sgm_sde as sg
        >>> median = LogNormal().quantile(sg.EDMSDE(), torch.tensor([0.5]).double())
        >>> round(float(median), 3)  # exp(-1.2)
        0.301
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, mean=number("mean", self.mean), std=number("std", self.std, above=0))

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """The time whose ln(sigma / alpha) is the normal quantile, between the shares below eps and below T.

        Raises:
            ValueError: where [eps, T] has no share at all.
        """
        sde = _linear(sde)
        sign, first, last = self._shares(sde)
        z = sign * torch.special.ndtri(first + (last - first) * u)
        return sde.time(-2 * (self.mean + self.std * z)).clamp(sde.eps, sde.T)

    def _shares(self, sde: LinearSDE) -> tuple[float, Tensor, Tensor]:
        """Normal shares below eps and below T, with the sign 1; or those above, with -1."""
        low = self._deviations(sde, sde.eps)
        high = self._deviations(sde, sde.T)

        # Where both ends lie above the mean, shares below would be rounded to 1.
        sign = -1.0 if float(low) > 0 else 1.0
        first = _normal_share(sign * low)
        last = _normal_share(sign * high)
        if not float((last - first).abs()) > 0:
            raise ValueError(
                f"{self!r} has no share between eps={sde.eps} and T={sde.T}, where ln(sigma / alpha) is "
                f"{float(low * self.std + self.mean):.4g} and {float(high * self.std + self.mean):.4g}"
            )
        return sign, first, last

    def _deviations(self, sde: LinearSDE, t: float) -> Tensor:
        """ln(sigma / alpha) at a time, in standard deviations from the mean."""
        return (-sde.log_snr(cpu_float64(t)) / 2 - self.mean) / self.std


def _normal_share(z: Tensor) -> Tensor:
    """Share of N(0, 1) below z; torch's ndtr is 0 from -8 on."""
    return torch.erfc(-z / math.sqrt(2)) / 2


@dataclass(frozen=True, kw_only=True)
class Table(Times):
    """Every entry of a table alike: DDPM's and NCSN's ladders.

    Args:
        times: the table; the process' own `times` if not given.

    Raises:
        ValueError: at a draw, where neither the process nor the option has a table.

    Source: Ho et al., 2020, arXiv:2006.11239; Song and Ermon, 2019, arXiv:1907.05600.

    Examples:
        >>> import sgm_sde as sg
        >>> Table().quantile(sg.presets.ddpm(), torch.tensor([0.0, 0.999]).double())
        tensor([0.0010, 1.0000], dtype=torch.float64)
    """

    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, times=None if self.times is None else reals("times", self.times))

    def quantile(self, sde: SDE, u: Tensor) -> Tensor:
        """Entry floor(u N) of the N times."""
        times = sde.table_times if self.times is None else self.times
        if not times:
            raise ValueError(f"{sde!r} has no table of times: give Table(times=...)")
        return cpu_float64(times)[(u * len(times)).long()]


def _linear(sde: SDE) -> LinearSDE:
    if not has_scalar_marginal(sde):
        raise TypeError(f"times by noise level need a LinearSDE, got {described(sde)}")
    return sde
