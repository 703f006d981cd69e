r"""Network predictions, and the conversion between any two of them.

Every prediction of a linear process is a combination $p = a\,D + b\,\epsilon$ of the denoised data $D$ and the
noise $\epsilon$, and the state is $x = \alpha D + \sigma\epsilon$. Solving two equations for two unknowns turns
a network's output $r = a_r D + b_r \epsilon$ into a prediction $p$:

$$ p = \frac{(a_p b_r - b_p a_r)\,x + (b_p \alpha - a_p \sigma)\,r}{\alpha b_r - \sigma a_r} $$

| name       | a           | b                                               |
|------------|-------------|-------------------------------------------------|
| `data`     | 1           | 0                                               |
| `noise`    | 0           | 1                                               |
| `score`    | 0           | $-1/\sigma$                                     |
| `v` | $-\sigma/\sigma_d$ | $\alpha\sigma_d$ (v-prediction of data divided by $\sigma_d$) |
| `flow`     | $\alpha'$   | $\sigma'$ (the time derivative of the path)     |
| `rectified`| $-1$        | 1 (the flow of the straight path $(1-w)D + w\epsilon$) |
| `drift`    | $\alpha'$   | $(1+\eta^2)\sigma' - \eta^2 (\alpha'/\alpha) \sigma$ (drift of the reverse process) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from sgm_sde.engine.program import PREDICTIONS as PREDICTIONS

Scalars = TypeVar("Scalars", float, Tensor)
Scalars_co = TypeVar("Scalars_co", float, Tensor, covariant=True)


class Marginal(Protocol[Scalars_co]):
    """Coefficients of the marginal x_t | x_0 and their time derivatives: at one time, or tensors of them at many."""

    @property
    def alpha(self) -> Scalars_co: ...
    @property
    def sigma(self) -> Scalars_co: ...
    @property
    def d_alpha(self) -> Scalars_co: ...
    @property
    def d_sigma(self) -> Scalars_co: ...


@dataclass(frozen=True)
class MarginalValues(Generic[Scalars]):
    """A `Marginal` made of given values."""

    alpha: Scalars
    sigma: Scalars
    d_alpha: Scalars
    d_sigma: Scalars


def weights(
    prediction: str, k: Marginal[Scalars], eta: float = 0.0, sigma_data: float = 1.0
) -> tuple[Scalars | float, Scalars | float]:
    r"""The pair (a, b) of a prediction $a\,D + b\,\epsilon$.

    `eta` matters for `"drift"` alone, `sigma_data` for `"v"`.

    Raises:
        ValueError: for an unknown name.
    """
    if prediction == "data":
        return 1.0, 0.0
    if prediction == "noise":
        return 0.0, 1.0
    if prediction == "score":
        return 0.0, -1 / k.sigma

    if prediction == "v":
        return -k.sigma / sigma_data, k.alpha * sigma_data
    if prediction == "rectified":
        return -1.0, 1.0

    if prediction == "flow" or (prediction == "drift" and eta == 0):  # no rate: it is infinite where alpha = 0
        return k.d_alpha, k.d_sigma
    if prediction == "drift":
        rate = k.d_alpha / k.alpha
        return k.d_alpha, (1 + eta**2) * k.d_sigma - eta**2 * rate * k.sigma

    known = ", ".join(PREDICTIONS)
    raise ValueError(f"unknown prediction {prediction!r}; known: {known}")


def convert(
    source: str,
    target: str,
    k: Marginal[Scalars],
    eta: float = 0.0,
    sigma_data: float = 1.0,
    state: tuple[Scalars, Scalars] | None = None,
) -> tuple[Scalars | float, Scalars | float]:
    r"""Coefficients $(c_x, c_r)$ with target prediction $= c_x x + c_r r$, for a network output $r$.

    A network's own v is that of `sigma_data` 1. For a scaled state in the place of x, `state` has its alpha and sigma.

    Raises:
        ValueError: for an unknown name.
        ZeroDivisionError: where the source says nothing about the target (noise at alpha = 0), on floats.

    Examples:
        >>> convert("noise", "score", MarginalValues(alpha=0.6, sigma=0.8, d_alpha=-1.0, d_sigma=0.75))
        (0.0, -1.25)
    """
    if source == target and source != "drift" and sigma_data == 1:
        return 0.0, 1.0
    a_r, b_r = weights(source, k)
    a_p, b_p = weights(target, k, eta, sigma_data)
    alpha, sigma = state or (k.alpha, k.sigma)
    determinant = _times(alpha, b_r) - _times(sigma, a_r)
    c_x = (a_p * b_r - b_p * a_r) / determinant
    c_r = (_times(alpha, b_p) - _times(sigma, a_p)) / determinant
    return c_x, c_r


def _times(value: Scalars, weight: Scalars | float) -> Scalars | float:
    """value * weight, without a pass over values of which nothing or all is taken."""
    if isinstance(weight, float) and isinstance(value, Tensor) and weight in (0.0, 1.0):
        return value if weight else 0.0
    return value * weight
