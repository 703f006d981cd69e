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

    Examples:
        >>> import torch
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> result = kernel_distance(x, x + 3)
        >>> result.value > 3 * result.stderr, result.n
        (True, (64, 64))
    """

    value: float
    stderr: float
    n: tuple[int, int]
    dim: int
    features: str


def kernel_distance(a: Vectors, b: Vectors, *, features: str = "raw") -> KernelResult:
    r"""The unbiased squared maximum mean discrepancy of a (n, d) and b (m, d) under the kernel of KID.

        MMD^2 = sum_{i != j} k(a_i, a_j) / (n (n - 1)) + sum_{i != j} k(b_i, b_j) / (m (m - 1))
                - 2 sum_{i, j} k(a_i, b_j) / (n m),    k(x, y) = (x . y / d + 1)^3,

    over all pairs, in float64. Unlike a Frechet distance its expectation does not depend on n and m; it may be
    negative. The literature averages it over random subsets of 1000 vectors, which has the same expectation and
    a larger error. The standard error is that of the jackknife over both samples; it errs upwards where the two
    laws are equal. With Inception features `value` is the kernel Inception distance.

    Args:
        a: vectors (n, d) of samples or of their features.
        b: others (m, d).
        features: name of their extractor, as `frechet_distance` takes it.

    Raises:
        ValueError: for vectors that `frechet_distance` refuses, and fewer than three.

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
    own_y = _row_sums(y, y, skip=True)
    cross_x = _row_sums(x, y)
    cross_y = _row_sums(y, x)

    # Means of the kernel over pairs of different rows of x, of y, and over pairs of x and y.
    pairs_x = n * (n - 1)
    pairs_y = m * (m - 1)
    xx = own_x.sum() / pairs_x
    yy = own_y.sum() / pairs_y
    xy = cross_x.sum() / (n * m)
    value = float(xx + yy - 2 * xy)

    without_x = _without_each(own_x, cross_x, m, yy)
    without_y = _without_each(own_y, cross_y, n, xx)
    variance = _jackknife(without_x) + _jackknife(without_y)
    stderr = math.sqrt(variance)
    return KernelResult(value, stderr, (n, m), x.shape[1], features)


def _without_each(own: Tensor, cross: Tensor, m: int, other: Tensor) -> Tensor:
    """MMD^2 without one of n rows, for each of them.

    Args:
        own: sums of the kernel of each row with the others of its set, (n,).
        cross: its sums with the m rows of the other set, (n,).
        m: number of these.
        other: mean of the kernel over pairs of different rows of the other set.
    """
    n = len(own)
    xx = (own.sum() - 2 * own) / ((n - 1) * (n - 2))
    xy = (cross.sum() - cross) / ((n - 1) * m)
    return xx + other - 2 * xy


def _jackknife(values: Tensor) -> float:
    """The jackknife's variance of an estimate, from its values without one row each."""
    return float(values.var(correction=0)) * (len(values) - 1)


def _row_sums(x: Tensor, y: Tensor, skip: bool = False) -> Tensor:
    """Sums over j of k(x_i, y_j) for each row of x; without j = i where `skip`."""
    dim = x.shape[1]
    x, y = (torch.cat([rows / math.sqrt(dim), rows.new_ones(len(rows), 1)], 1) for rows in (x, y))

    # A sum over j of (x_i . y_j)^3 is by pairs, or by the third moments of y where these are fewer.
    if (dim + 1) ** 2 < len(y):
        moments = _third_moments(y)
        parts = [(_squares(rows) @ moments * rows).sum(1) for rows in torch.split(x, _ROWS)]
    else:
        parts = [(rows @ y.T).pow(3).sum(1) for rows in torch.split(x, _ROWS)]
    total = torch.cat(parts)
    return total - x.square().sum(1).pow(3) if skip else total


def _third_moments(y: Tensor) -> Tensor:
    """Sums of the products of three numbers of each row of y (m, p), as (p^2, p)."""
    p = y.shape[1]
    moments = y.new_zeros(p * p, p)
    for rows in torch.split(y, _ROWS):
        moments.addmm_(_squares(rows).T, rows)
    return moments


def _squares(x: Tensor) -> Tensor:
    """Products of the numbers of each row two by two, (n, p) to (n, p^2)."""
    return (x[:, :, None] * x[:, None]).flatten(1)
