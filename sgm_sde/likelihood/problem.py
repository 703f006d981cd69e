r"""The probability flow with its change of volume, from eps to T: what is asked, and what answers it.
With $\rho^2 = \alpha^2 s^2 + \sigma^2$, the spread that data of standard deviation s have at a time, the flow of
$z = x/\rho$ in $\lambda = \log(\alpha/\sigma)$ is

$$ \frac{dz}{d\lambda} = -\frac{\alpha\sigma s}{\rho^3}\,v, \qquad v = \alpha s\,\epsilon - \frac{\sigma}{s} D $$

which is 0 for Gaussian data of that spread. Along it

$$ \log p_\epsilon(x_\epsilon) = \log p_T(x_T) + d\log\frac{\rho_T}{\rho_\epsilon}
   - \int_{\lambda_T}^{\lambda_\epsilon} \operatorname{div}_z\frac{dz}{d\lambda}\,d\lambda $$
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde.likelihood.trace import Estimate, TraceScore
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE

FLAT = 20.0  # logarithm of signal over noise beyond which nothing varies


def among(parts: Iterable[Tensor], rows: Tensor) -> list[Tensor]:
    """Those of some samples, of tensors with a row for each."""
    return [part[rows] for part in parts]


def replaced(parts: Iterable[Tensor], rows: Tensor, by: Iterable[Tensor]) -> list[Tensor]:
    """The same tensors with the rows of others at some samples."""
    return [a.index_copy(0, rows, b.to(a.dtype)) for a, b in zip(parts, by, strict=True)]


class Solution(NamedTuple):
    """The latent (B, *), and (B,) each.

    Attributes:
        latent: where the flow ends.
        volume: what its change of volume adds to the log-density.
        stderr: standard error of that by the probes.
        freedom: degrees of freedom of `stderr`.
        error: its numerical error, of steps and nodes.
        rounding: what rounding may add to that.
        defect: what of it makes up for states that lie on no single trajectory, NaN for other methods.
        of_kinks: the part of the error that kinks leave, of an adaptive solver the jumps of the divergence; NaN for
            other methods.
        of_divergence: on a grid, the part of the error that is the integral's of the divergence, with that of kinks;
            NaN for other methods.
    """

    latent: Tensor
    volume: Tensor
    stderr: Tensor
    freedom: Tensor
    error: Tensor
    rounding: Tensor
    defect: Tensor
    of_kinks: Tensor
    of_divergence: Tensor

    @property
    def stated(self) -> Tensor:
        """The error with that of rounding, (B,)."""
        return torch.hypot(self.error, self.rounding)

    def replaced(self, rows: Tensor, by: Solution) -> Solution:
        """The same with other values at some rows."""
        return Solution(*replaced(self, rows, by))

    def with_errors(self, rows: Tensor, errors: Tensor) -> Solution:
        """The same with other errors at some rows."""
        return self._replace(error=self.error.index_copy(0, rows, errors))

    def among(self, rows: Tensor) -> Solution:
        """Those of some rows."""
        return Solution(*among(self, rows))


@dataclass(frozen=True)
class Problem:
    """Flow from states at one end, which a method is to solve with its change of volume.

    Attributes:
        model: the network.
        x: states (B, *), at the data's end if the flow goes to the noise.
        eps: the time of the data's end.
        estimate: of the trace; none where states alone are wanted.
        to_noise: the direction.
        prior_std: standard deviation of the Gaussian at the noise's end, where that is the density there.
        prior: log-density (B,) of states (B, *) at the noise's end; the process's own if not given.
        first: number of the first state in the caller's batch, by which errors name it.
    """

    model: TraceScore
    x: Tensor
    eps: float
    estimate: Estimate | None = None
    to_noise: bool = True
    prior_std: float | None = None
    prior: Callable[[Tensor], Tensor] | None = None
    first: int = 0

    @property
    def sde(self) -> LinearSDE:
        """The process."""
        assert has_scalar_marginal(self.model.sde)
        return self.model.sde

    @property
    def d(self) -> int:
        """Dimensions of a sample."""
        return self.x[0].numel()

    @property
    def trace(self) -> Estimate:
        """The estimate of the trace, where there is one."""
        assert self.estimate is not None
        return self.estimate

    def at_noise(self, latent: Tensor) -> Tensor:
        """Log-density (B,) of latents (B, *)."""
        return self.sde.prior_log_prob(latent) if self.prior is None else self.prior(latent)

    def run(self, number: int, *, constant: bool = False) -> Problem:
        """The problem with the probes of run `number`; with `constant`, the same probes at each evaluation."""
        estimate = self.trace.run(number)
        return replace(self, estimate=estimate.constant() if constant else estimate)


class NoNoise:
    """The probability flow draws none."""

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        """Raises."""
        raise RuntimeError("the probability flow draws no noise")
