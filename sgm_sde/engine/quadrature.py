"""Gauss-Legendre quadrature and weights of polynomial interpolants, in float64 on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def gauss_legendre(n: int) -> tuple[Array, Array]:
    """Points and weights (n,) on [0, 1], exact for polynomials of degree 2n - 1.

    Examples:
        >>> points, weights = gauss_legendre(2)
        >>> round(float(weights @ points**3), 12)
        0.25
    """
    points, weights = np.polynomial.legendre.leggauss(n)
    return (points + 1) / 2, weights / 2


def interpolatory_weights(r: Sequence[float] | Array, moments: Sequence[float] | Array) -> Array:
    r"""Weights $w_j$ of values at $r_j$ with $\sum_j w_j r_j^k = m_k$ for the moments $m_k$, k = 0, ..., n - 1.

    They integrate the polynomial through the values against the kernel that has these moments.

    Args:
        r: the n places.
        moments: (n,), or (n, ...) of a kernel of arrays.

    Returns:
        of the shape of the moments.

    Examples:
        >>> [round(float(w), 12) for w in interpolatory_weights([0.0, 0.5, 1.0], [1, 1 / 2, 1 / 3])]  # Simpson's rule
        [0.166666666667, 0.666666666667, 0.166666666667]
    """
    m = np.asarray(moments, dtype=np.float64)
    return np.linalg.solve(np.vander(r, increasing=True).T, m.reshape(len(m), -1)).reshape(m.shape)
