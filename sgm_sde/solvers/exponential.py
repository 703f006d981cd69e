"""Exponential multistep methods: the linear part of the probability flow solved exactly."""

from __future__ import annotations

from dataclasses import dataclass

from sgm_sde.engine.phi import phi
from sgm_sde.engine.program import Form, Step
from sgm_sde.solvers.base import Solver


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    r"""DPM-Solver++ (multistep): exponential Adams-Bashforth in half the log-SNR, data prediction.

    With $\lambda = \log(\alpha/\sigma)$, $h = \lambda_t - \lambda_s$ and $r = h_{\text{previous}}/h$:

    $$ x_t = \frac{\sigma_t}{\sigma_s}\,x_s + \alpha_t\left[h\phi_1(-h)\,D_s
             + w\,\frac{D_s - D_{\text{previous}}}{r}\right] $$

    where $w = h\phi_2(-h)$ integrates the line through the two values exactly (`variant="exact"`), and
    $w = h\phi_1(-h)/2$ is the published simplification (`variant="midpoint"`). The first step is of order 1,
    which keeps the global order at 2. One network call a step.

    Args:
        order: 1 (DDIM) or 2 ("2M").
        variant: `"midpoint"` or `"exact"`.

    Raises:
        ValueError: for another order or variant, or a variant of order 1.

    Source: Lu et al., 2022, arXiv:2211.01095.

    Example:
        >>> DPMSolverPP(order=2, variant="exact").name
        'dpm++2m'
    """

    order: int = 2
    variant: str = "midpoint"
    prediction = "data"
    source = "Lu et al., 2022, arXiv:2211.01095"

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order}")
        if self.variant not in ("midpoint", "exact"):
            raise ValueError(f"variant must be 'midpoint' or 'exact', got {self.variant!r}")
        if self.order == 1 and self.variant != "midpoint":
            raise ValueError(f"order 1 has no variants, got variant={self.variant!r}")

    @property
    def name(self) -> str:
        """`dpm++1m` or `dpm++2m`."""
        return f"dpm++{self.order}m"

    def step(self, k: Step) -> Form:
        """One step."""
        s, t = k.start, k.end
        h = t.lam - s.lam
        whole = h_phi(1, h)
        D = k.evaluate(k.x, s)
        x = t.sigma / s.sigma * k.x + t.alpha * whole * D
        if self.order == 1 or k.i == 0:
            return x
        before, D_before = k.previous(1)
        w = h_phi(2, h) if self.variant == "exact" else whole / 2
        return x + t.alpha * w * h / (s.lam - before.lam) * (D - D_before)


def h_phi(k: int, h: float) -> float:
    r"""$h\,\phi_k(-h)$, whose limit for k = 1 as $h \to \infty$ is 1."""
    return 1.0 if k == 1 and h == float("inf") else h * phi(k, -h)
