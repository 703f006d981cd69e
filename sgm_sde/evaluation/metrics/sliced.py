"""Sliced Wasserstein distance between two sets of feature vectors."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer
from sgm_sde.evaluation.metrics.inputs import Vectors, pair


@dataclass(frozen=True)
class SlicedResult:
    """Sliced Wasserstein distance `value` (not squared), and what it was computed from.

    n_directions and seed fix the projections, n holds the two sample counts, dim the number of features, features
    the name of their extractor.

    Examples:
        >>> import torch
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> result = sliced_wasserstein(x, x)
        >>> result.value, result.seed
        (0.0, 0)
    """

    value: float
    n_directions: int
    seed: int
    n: tuple[int, int]
    dim: int
    features: str


def sliced_wasserstein(
    a: Vectors, b: Vectors, *, n_directions: int = 512, seed: int = 0, features: str = "raw"
) -> SlicedResult:
    r"""The sliced 2-Wasserstein distance of a (n, d) and b (m, d).

        SW = sqrt(mean over theta of W_2(theta . a, theta . b)^2),

    with the exact W_2 of the two empirical laws on each line, theta unit vectors, in float64. The directions are
    drawn from the seed in orthogonal blocks of d, which leaves each of them uniform and lowers the error; with
    whole blocks a shift by v is measured exactly, as |v| / sqrt(d).

    Args:
        a: vectors (n, d) of samples or of their features.
        b: others (m, d).
        n_directions: number of directions.
        seed: of the directions.
        features: name of the extractor that made them; it is only recorded.

    Raises:
        ValueError: for vectors of other shapes, unequal d, too few of them, or values that are not finite;
            for a number of directions below 1.

    Source: Bonneel, Rabin, Peyre, Pfister (2015), "Sliced and Radon Wasserstein barycenters of measures", J. Math.
    Imaging Vis. 51, 22-45; orthogonal directions: Rowland, Hron, Tang, Choromanski, Sarlos, Weller (2019),
    "Orthogonal estimation of Wasserstein distances", arXiv:1903.03784.

    Examples:
        >>> a = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
        >>> result = sliced_wasserstein(a, a + 3.0)
        >>> round(result.value, 6), result.n, result.dim, result.features
        (3.0, (4, 4), 2, 'raw')
    """
    check_integer("n_directions", n_directions, kind=int)
    check_integer("seed", seed, 0, kind=int)
    x, y = pair(a, b)
    dim = x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    steps = _Steps(len(x), len(y))
    total = 0.0
    for start in range(0, n_directions, dim):
        basis = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator)).Q
        theta = basis[:, : min(dim, n_directions - start)]
        total += float(steps.squared_wasserstein(x @ theta, y @ theta).sum())
    return SlicedResult(math.sqrt(total / n_directions), n_directions, seed, (len(x), len(y)), dim, features)


class _Steps:
    """The quantiles of n and of m numbers, which are steps, as steps at the same places."""

    def __init__(self, n: int, m: int) -> None:
        # Those of n numbers change at i/n, those of m at j/m. In units of 1/(n m) both are integers.
        ends = np.arange(1, n + 1) * m
        if n != m:
            ends = np.union1d(ends, np.arange(1, m + 1) * n)
        self._widths = np.diff(ends, prepend=0) / (n * m)
        self._of_n = (ends - 1) // m
        self._of_m = (ends - 1) // n

    def squared_wasserstein(self, x: Tensor, y: Tensor) -> np.ndarray:
        """Squares W_2^2 between each column of x (n, k) and the same column of y (m, k)."""
        of_x, of_y = (np.sort(columns.T.numpy()) for columns in (x, y))  # without the order, which torch finds as well
        squares = np.square(of_x.take(self._of_n, 1) - of_y.take(self._of_m, 1))
        distances: np.ndarray = squares @ self._widths
        return distances
