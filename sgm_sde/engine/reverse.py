"""The reverse process: a learned score turned into a drift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sgm_sde._utils.checks import described, require_function, stochasticity
from sgm_sde._utils.shapes import Time, as_time, batch_time

__all__ = ["ReverseSDE"]

ScoreFn = Callable[..., Tensor]


class DriftDiffusion(Protocol):
    """All that reversing a process takes."""

    def f(self, x: Tensor, t: Time) -> Tensor:
        """Drift at x (B, *) and t, () or (B,)."""

    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient, of the shape of t."""

    def diffusion(self, v: Tensor, t: Time) -> Tensor:
        """g^2 times v (B, *)."""


def reverse_drift(sde: DriftDiffusion, x: Tensor, t: Time, score: Tensor, eta: float) -> Tensor:
    r"""Drift $f - \tfrac{1 + \eta^2}{2} g^2 s$ of the reverse process at x (B, *) and t, given the score there."""
    return forward_drift(sde, x, t) - (1 + eta**2) / 2 * sde.diffusion(score, t)


def forward_drift(sde: DriftDiffusion, x: Tensor, t: Time) -> Tensor:
    """The drift f of the forward process at x (B, *) and t.

    Raises:
        ValueError: for one of another shape.
    """
    drift = sde.f(x, t)
    if not isinstance(drift, Tensor) or drift.shape != x.shape:
        raise ValueError(f"f(x, t) must return a tensor of the shape {tuple(x.shape)} of x, got {described(drift)}")
    return drift


class ReverseSDE:
    r"""The family of processes that run a forward SDE backwards, all with its marginals.

    $$ dx = \left[f(x, t) - \tfrac{1 + \eta^2}{2} g(t)^2 s(x, t)\right] dt + \eta\, g(t)\, dw $$

    with time running from $T$ to 0, and $GG^\top$ in the place of $g^2$ for a matrix. $\eta = 0$ is the
    probability-flow ODE, $\eta = 1$ the reverse SDE of Anderson (1982); any $\eta \ge 0$ has the same marginals when
    the score is exact.

    Args:
        sde: the forward process.
        score_fn: `score_fn(x, t, **kwargs)` with x (B, *), t (B,); returns (B, *).
        eta: stochasticity.

    Raises:
        ValueError: if `eta` is negative or not finite.

    Source: Song et al., 2021, arXiv:2011.13456; Huang et al., 2021, arXiv:2106.02808.

    Examples:
        >>> import torch
        >>> from sgm_sde import VESDE
        >>> rev = VESDE(0.01, 50.0).reverse(lambda x, t: -x, eta=0.0)
        >>> float(rev.g(torch.tensor(0.5)))
        0.0
    """

    def __init__(self, sde: DriftDiffusion, score_fn: ScoreFn, eta: float = 1.0) -> None:
        require_function("score_fn", score_fn, "of (x, t)")
        self.sde = sde
        self.score_fn = score_fn
        self.eta = stochasticity(eta)

    def f(self, x: Tensor, t: Time, **kwargs: object) -> Tensor:
        """Drift of the reverse process at x (B, *) and t, () or (B,)."""
        t = as_time(t)
        score = self.score_fn(x, batch_time(t, x, tokens=True), **kwargs)
        return reverse_drift(self.sde, x, t, score, self.eta)

    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient of the reverse process, of the shape of `t`."""
        return self.eta * self.sde.g(t)

    def __repr__(self) -> str:
        return f"ReverseSDE({self.sde!r}, eta={self.eta})"
