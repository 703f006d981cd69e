"""Coefficients of a process at single times, as solvers' formulas see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from torch import Tensor

from sgm_sde.engine.matrix import Matrix

Coefficient: TypeAlias = float | Matrix  # the algebra is the same


class Process(Protocol):
    """A forward process, as far as compiling a formula needs it.

    Attributes:
        T: end of the forward time.
        eps: default end of sampling.
        table_times: times of the table that networks are trained at, None where time is continuous.
    """

    @property
    def T(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def table_times(self) -> tuple[float, ...] | None: ...

    def nodes(self, times: Sequence[float], /) -> Sequence[Node]:
        """The coefficients at each of the given times."""

    def log_snr(self, t: Tensor | float, /) -> Tensor:
        """Log signal-to-noise ratio 2 log(alpha / sigma)."""

    def time(self, log_snr: Tensor | float, /) -> Tensor:
        """The time at which the log-SNR is the given one."""


class Node(Protocol):
    r"""A time with the coefficients of a process there, in double precision on the host.

    A process without a coefficient raises TypeError where a formula asks for it.

    Attributes:
        sde: the process.
        t: the time.
        alpha: signal scale.
        sigma: noise scale.
        d_alpha: time derivative of alpha.
        d_sigma: time derivative of sigma.
        lam: half the log-SNR, log(alpha / sigma).
        log_snr: log signal-to-noise ratio 2 log(alpha / sigma).
        rate: $d\log\alpha/dt$, the drift's factor on the state.
        g: diffusion coefficient, a matrix where the state has blocks.
        noise_level: sigma / alpha.
    """

    @property
    def sde(self) -> Process: ...
    @property
    def t(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def sigma(self) -> float: ...
    @property
    def d_alpha(self) -> float: ...
    @property
    def d_sigma(self) -> float: ...
    @property
    def lam(self) -> float: ...
    @property
    def log_snr(self) -> float: ...
    @property
    def rate(self) -> float: ...
    @property
    def g(self) -> Coefficient: ...
    @property
    def noise_level(self) -> float: ...

    def at_reduced_noise(self, noise_level: float, /) -> Node:
        """A node with the same alpha and less noise."""

    def convert(
        self, source: str, target: str, eta: float = 0.0, sigma_data: float = 1.0
    ) -> tuple[Coefficient, Coefficient]:
        """Coefficients (c_x, c_r) with target prediction = c_x x + c_r r, for a network output r."""
