"""Frechet distance between two sets of feature vectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.checks import numbers
from sgm_sde._utils.warn import warn
from sgm_sde.evaluation.metrics.inputs import Vectors, pair


@dataclass(frozen=True)
class FrechetResult:
    """Squared Frechet distance `value`, with what it was computed from.

    n holds the two sample counts, dim the number of features, features the name of their extractor.

    Examples:
        >>> import torch
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> result = frechet_distance(x, x + 1)
        >>> round(result.value, 3), result.n, result.dim
        (2.0, (64, 64), 2)
    """

    value: float
    n: tuple[int, int]
    dim: int
    features: str


def frechet_distance(a: Vectors, b: Vectors, *, features: str = "raw") -> FrechetResult:
    r"""The squared Frechet distance between Gaussians fitted to a (n, d) and b (m, d).

        |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}),

    with the sample means mu and the unbiased sample covariances C, all in float64. With fewer vectors than d it is
    biased upwards, and warns.

    Args:
        a: vectors (n, d) of samples or of their features.
        b: others (m, d).
        features: name of the extractor that made them; it is only recorded.

    Raises:
        ValueError: for vectors of other shapes, unequal d, too few of them, or values that are not finite.

    Source: Dowson and Landau (1982), "The Frechet distance between multivariate normal distributions",
    J. Multivariate Anal. 12, 450-455; Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter (2017),
    arXiv:1706.08500.

    Examples:
        >>> a = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
        >>> result = frechet_distance(a, a + 3.0)
        >>> round(result.value, 6), result.n, result.dim, result.features
        (18.0, (4, 4), 2, 'raw')
    """
    x, y = pair(a, b)
    dim = x.shape[1]
    for name, rows in (("a", len(x)), ("b", len(y))):
        if rows < dim:
            message = f"{name} has n={rows} samples for d={dim} features: its covariance is singular"
            warn(f"{message} and the distance is biased upwards")
    value = gaussian_frechet(*moments(x), *moments(y))
    return FrechetResult(value, (len(x), len(y)), dim, features)


def gaussian_frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    r"""The squared Frechet (2-Wasserstein) distance of N(mean_a, cov_a) and N(mean_b, cov_b).

        |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a^{1/2} cov_b cov_a^{1/2})^{1/2}),

    in float64.

    Args:
        mean_a: mean (d,) of the one.
        cov_a: its covariance (d, d), symmetric and positive semi-definite.
        mean_b: mean of the other.
        cov_b: its covariance.

    Raises:
        ValueError: for other shapes.

    Source: Dowson and Landau (1982), J. Multivariate Anal. 12, 450-455.

    Examples:
        >>> eye = torch.eye(2)
        >>> round(gaussian_frechet(torch.zeros(2), eye, torch.ones(2), 4 * eye), 6)
        4.0
    """
    mean_a, cov_a = _law("a", mean_a, cov_a)
    mean_b, cov_b = _law("b", mean_b, cov_b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"mean_a and mean_b must have one shape, got {tuple(mean_a.shape)} and {tuple(mean_b.shape)}")

    # The trace of the square root is the sum of the singular values of P = cov_b^{1/2} cov_a^{1/2}. The
    # eigenvalues of cov_a^{1/2} cov_b cov_a^{1/2} are their squares: a root taken of those would turn a rounding
    # error of 1e-16 into one of 1e-8.
    P = _sqrt(cov_b) @ _sqrt(cov_a)
    cross = torch.linalg.svdvals(P).sum()
    squared_means = (mean_a - mean_b).square().sum()
    squared = squared_means + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(float(squared), 0.0)  # rounding can leave a distance of zero slightly negative


def _law(name: str, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) in float64 on the host."""
    mean = numbers(f"mean_{name}", mean)
    cov = numbers(f"cov_{name}", cov)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"mean_{name} and cov_{name} must be (d,) and (d, d), got {tuple(mean.shape)} and {tuple(cov.shape)}"
        )
    return mean, cov


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) and the unbiased covariance (d, d) of the rows of x (n, d)."""
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def _sqrt(cov: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
