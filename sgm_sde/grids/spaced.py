"""Even steps of a function of time or of the noise level, and their shift."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import FAR, described, number
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.coordinates import noise_level
from sgm_sde.grids.base import GridRule, require_linear
from sgm_sde.processes.kinds import has_scalar_marginal

if TYPE_CHECKING:
    from sgm_sde.processes import SDE


@dataclass(frozen=True)
class Uniform(GridRule):
    """Equal steps of time (Song et al., 2021, arXiv:2011.13456).

    Examples:
        >>> import sgm_sde as sg
        >>> [round(t, 3) for t in Uniform()(sg.VPSDE(), 3).times]
        [1.0, 0.667, 0.334, 0.001]
    """

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        return start + u * (end - start)


@dataclass(frozen=True)
class Quadratic(GridRule):
    """Equal steps of the square root of time (Song, Meng & Ermon, 2021, arXiv:2010.02502).

    Examples:
        >>> import sgm_sde as sg
        >>> [round(t, 3) for t in Quadratic()(sg.VPSDE(), 3).times]
        [1.0, 0.459, 0.126, 0.001]
    """

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        return _power(u, start, end, 2.0)


@dataclass(frozen=True)
class Exponential(GridRule):
    """Equal steps of the logarithm of time; needs an end above 0.

    Examples:
        >>> import sgm_sde as sg
        >>> [round(t, 3) for t in Exponential()(sg.VPSDE(), 3).times]
        [1.0, 0.1, 0.01, 0.001]
    """

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        if end <= 0:
            raise ValueError(f"an exponential grid cannot end at t={end}: give t_end > 0")
        return start * (u * math.log(end / start)).exp()

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if the end is above 0."""
        return end > 0


@dataclass(frozen=True)
class LogSNR(GridRule):
    """Equal steps of log-SNR (Lu et al., 2022, arXiv:2206.00927).

    Examples:
        >>> import sgm_sde as sg
        >>> times = LogSNR()(sg.VPSDE(), 3).times
        >>> [round(float(sg.VPSDE().log_snr(t)), 2) for t in times]
        [-10.05, -3.66, 2.73, 9.12]
    """

    of_noise_levels: ClassVar[bool] = True

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        first, last = self.levels(sde, start, end)
        times: Tensor = sde.time(first + u * (last - first))
        return times

    @cached(maxsize=64, holders=(0, 1))
    def _placed(self, sde: SDE, steps: int, start: float, end: float) -> Tensor:
        """The times (steps + 1,), kept for the next run: to find them takes as long as some network calls."""
        return super()._placed(sde, steps, start, end)

    def levels(self, sde: SDE, start: float, end: float) -> tuple[float, float]:
        """Log-SNR at the ends.

        Raises:
            ValueError: where it is not finite.
        """
        require_linear(self, sde)
        first, last = (float(sde.log_snr(t)) for t in (start, end))
        if not (math.isfinite(first) and math.isfinite(last)):
            raise ValueError(f"log-SNR is {first} at t={start} and {last} at t={end}: a log-SNR grid needs finite ends")
        return first, last

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if log-SNR is finite at both ends."""
        return has_scalar_marginal(sde) and all(math.isfinite(node.lam) for node in sde.nodes([start, end]))


@dataclass(frozen=True)
class Karras(GridRule):
    r"""Equal steps of $(\sigma/\alpha)^{1/\rho}$ (Karras et al., 2022, arXiv:2206.00364).

    Args:
        rho: how strongly steps shorten towards the data.

    Raises:
        ValueError: for a rho that is not at least 0.01.

    Examples:
        >>> import sgm_sde as sg
        >>> [round(t, 3) for t in Karras()(sg.EDMSDE(), 3).times]
        [80.0, 9.723, 0.47, 0.002]
    """

    rho: float = 7.0
    of_noise_levels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", number("rho", self.rho, least=1e-2, most=FAR))

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        require_linear(self, sde)
        first, last = (float(noise_level(sde, t)) for t in (start, end))
        if not math.isfinite(first):
            raise ValueError(f"sigma / alpha is infinite at t={start}: a Karras grid needs a finite start")
        return sde.time(-2 * _power(u, first, last, self.rho).log())

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if sigma / alpha is finite at the start."""
        return has_scalar_marginal(sde) and math.isfinite(sde.nodes([start])[0].noise_level)


@dataclass(frozen=True)
class Shifted(GridRule):
    r"""The grid of another rule with each noise level $\sigma/\alpha$ multiplied by a shift.

    On rectified flow that is $t \mapsto s\,t / (1 + (s - 1)\,t)$, the shift of timesteps by resolution: it puts more
    steps at large noise the larger the images are. The ends stay: the base is placed between the times that the shift
    maps to them.

    Args:
        shift: the factor s; 1 is the base itself. For a resolution given by $\mu$, as Flux has it, it is $e^\mu$:
            `Shifted.of_resolution(mu)`.
        base: the rule that is shifted.

    Raises:
        ValueError: for a shift that is not positive and finite.

    Source: Esser et al., 2024, arXiv:2403.03206, section 5.3.2.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.RectifiedFlowSDE(T=1.0, eps=0.0)
        >>> Shifted(3.0)(sde, 4)
        Grid(1, 0.9, 0.75, 0.5, 0)
    """

    shift: float = 3.0
    base: GridRule = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", number("shift", self.shift, above=0))
        if not isinstance(self.base, GridRule):
            raise TypeError(f"base must be a grid rule, such as Uniform(), got {described(self.base)}")

    @classmethod
    def of_resolution(cls, mu: float, base: GridRule | None = None) -> Shifted:
        r"""The shift $e^\mu$, with $\mu$ linear in the number of an image's tokens."""
        return cls(math.exp(number("mu", mu)), Uniform() if base is None else base)

    @property
    def of_noise_levels(self) -> bool:  # type: ignore[override]
        """True if the base is one of noise levels."""
        return self.base.of_noise_levels

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        require_linear(self, sde)
        first, last = (float(self._moved(sde, cpu_float64([t]), 1 / self.shift)[0]) for t in (start, end))
        # What the process does not have is left out; a shift below 1 comes from beyond its end.
        first, last = (sde.T if not first <= sde.T else first), max(last, 0.0)
        return self._moved(sde, self.base.place(sde, u, first, last), self.shift)

    @staticmethod
    def _moved(sde: SDE, times: Tensor, factor: float) -> Tensor:
        """The times whose noise levels are those of `times` times a factor."""
        log_snr = sde.log_snr(times)
        moved: Tensor = sde.time(log_snr - 2 * math.log(factor))
        return torch.where(log_snr.isfinite(), moved, times)

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if the process has noise levels, and the base fits."""
        return has_scalar_marginal(sde) and self.base.fits(sde, steps, start, end)


def _power(u: Tensor, start: float, end: float, rho: float) -> Tensor:
    return (start ** (1 / rho) + u * (end ** (1 / rho) - start ** (1 / rho))) ** rho
