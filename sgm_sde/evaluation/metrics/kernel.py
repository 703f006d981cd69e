"""Kernel distance between two sets of feature vectors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde.evaluation.metrics.inputs import Vectors, pair

LEAST = 3  # rows, of which the standard error leaves one out
_ROWS = 1024  # of the kernel matrix at a time


@dataclass(frozen=True)
class KernelResult:
    """Squared maximum mean discrepancy `value` with its standard error, and what it was computed from.

    n holds the two sample counts, dim the number of features, features the name of their extractor.
    """

    value: float
    stderr: float
    n: tuple[int, int]
    dim: int
    features: str


def kernel_distance(a: Vectors, b: Vectors, *, features: str = "raw") -> KernelResult:
    r"""Return the unbiased squared maximum mean discrepancy of a (n, d) and b (m, d) under the kernel of KID.

        MMD^2 = sum_{i != j} k(a_i, a_j) / (n (n - 1)) + sum_{i != j} k(b_i, b_j) / (m (m - 1))
                - 2 sum_{i, j} k(a_i, b_j) / (n m),    k(x, y) = (x . y / d + 1)^3,

    over all pairs, in float64. Unlike a Frechet distance its expectation does not depend on n and m; it may be
    negative. The literature averages it over random subsets of 1000 vectors, which has the same expectation and
    a larger error. The standard error is that of the jackknife over both samples; it errs upwards where the two
    laws are equal. With Inception features `value` is the kernel Inception distance. `features` names the
    extractor that made the vectors; it is only recorded.

    Source: Binkowski, Sutherland, Arbel, Gretton (2018), "Demystifying MMD GANs", arXiv:1801.01401; Gretton,
    Borgwardt, Rasch, Scholkopf, Smola (2012), "A kernel two-sample test", JMLR 13, 723-773; Arvesen (1969),
    "Jackknifing U-statistics", Ann. Math. Statist. 40, 2076-2100.

    Examples:
        >>> a = torch.tensor([[0.0], [1.0], [-1.0]])
        >>> result = kernel_distance(a, a + 2)  # 2 (1 + 1 + 0) / 6 + 2 (27 + 343 + 64) / 6 - 2 * 93 / 9
        >>> round(result.value, 3), result.n, result.dim, result.features
        (124.667, (3, 3), 1, 'raw')
    """
    x, y = pair(a, b, LEAST)
    n = len(x)
    m = len(y)
    own_x = _row_sums(x, x, skip=True)
    cross_x = _row_sums(x, y)
    own_y = _row_sums(y, y, skip=True)
    cross_y = _row_sums(y, x)

    # Means of the kernel over pairs of different rows of x, of y, and over pairs of x and y.
    xx = own_x.sum() / (n * (n - 1))
    yy = own_y.sum() / (m * (m - 1))
    xy = cross_x.sum() / (n * m)

    # The same without one row of x, for each of them; then of y.
    xx_left = (own_x.sum() - 2 * own_x) / ((n - 1) * (n - 2))
    xy_left = (cross_x.sum() - cross_x) / ((n - 1) * m)
    without_x = xx_left + yy - 2 * xy_left

    yy_left = (own_y.sum() - 2 * own_y) / ((m - 1) * (m - 2))
    yx_left = (cross_y.sum() - cross_y) / ((m - 1) * n)
    without_y = yy_left + xx - 2 * yx_left

    jackknife = [float(left.var(correction=0)) * (len(left) - 1) for left in (without_x, without_y)]
    return KernelResult(float(xx + yy - 2 * xy), math.sqrt(sum(jackknife)), (n, m), x.shape[1], features)


def _row_sums(x: Tensor, y: Tensor, skip: bool = False) -> Tensor:
    """Return sum_j k(x_i, y_j) for each row of x; without j = i where `skip`."""
    dim = x.shape[1]
    sums = torch.cat([_cubic(rows @ y.T, dim).sum(1) for rows in torch.split(x, _ROWS)])
    if not skip:
        return sums
    return sums - _cubic(x.square().sum(1), dim)


def _cubic(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1).pow(3)
