r"""The phi-functions of exponential integrators, without cancellation.

$$ \phi_0(z) = e^z, \qquad \phi_k(z) = \int_0^1 e^{(1-\theta)z}\frac{\theta^{k-1}}{(k-1)!}\,d\theta
   = \sum_{j \ge 0} \frac{z^j}{(j+k)!} $$
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TERMS = 19  # of the series: 1 / 19! is below the rounding of the sum


def phi(k: int, z: float) -> float:
    r"""$\phi_k(z)$ in double precision, for real z including minus infinity.

    The recurrence $\phi_{k+1} = (\phi_k - 1/k!)/z$ loses all digits as z goes to 0 (phi_3 in float32 is off by
    300 % at z = 0.003), so the series is used for |z| < 1.

    Raises:
        ValueError: for a negative k.

    Source: Hochbruck & Ostermann, 2010, doi:10.1017/S0962492910000048.

    Examples:
        >>> phi(1, 0.0), phi(3, 0.0) * 6
        (1.0, 1.0)
    """
    if k < 0:
        raise ValueError(f"phi_k needs k >= 0, got {k}")
    if abs(z) < 1:
        return _series(k, z)

    value = math.exp(z)
    if k > 0:
        value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def _series(k: int, z: float) -> float:
    """The sum of z^j / (j + k)! over j, until a term is below its rounding."""
    term = 1 / math.factorial(k)
    total = 0.0
    j = 0
    while total + term != total:
        total += term
        j += 1
        term *= z / (j + k)
    return total


def phi_values(k: int, z: Tensor) -> Tensor:
    r"""$\phi_k(z)$ of a float64 tensor, as accurate as `phi`.

    Raises:
        ValueError: for a negative k.

    Examples:
        >>> phi_values(2, torch.tensor([0.0, -1e-9], dtype=torch.float64))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if k < 0:
        raise ValueError(f"phi_k needs k >= 0, got {k}")
    if k == 0:
        return z.exp()

    # Each formula is evaluated everywhere, with a harmless argument where the other one holds.
    near = z.abs() < 1
    small = torch.where(near, z, 0.0)
    large = torch.where(near, 1.0, z)

    total = torch.zeros_like(z)
    for j in reversed(range(TERMS)):
        total.mul_(small).add_(1 / math.factorial(j + k))

    value = torch.expm1(large) / large
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / large
    return torch.where(near, total, value)
