"""Precision and recall, density and coverage of samples by nearest neighbours of their feature vectors."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from sgm_sde._utils.checks import check_integer
from sgm_sde.evaluation.metrics.inputs import Vectors, pair

NEIGHBOURS = 3
FEW = 10  # features up to which trees are quicker than all distances, from some thousand vectors on
ROUNDING = 1e-15  # of a distance that is the square root of what a ball's radius is compared with
_ROWS = 1024  # of the distance matrix at a time
_PAIRS = 2**20  # of a ball and a point in it at a time, about


@dataclass(frozen=True)
class PRDCResult:
    """Precision, recall, density and coverage, and what they were computed from.

    k is the number of neighbours, n holds the two sample counts, dim the number of features, features the name
    of their extractor.

    Examples:
        >>> import torch
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> result = prdc(x, x)
        >>> result.precision, result.recall, result.k
        (1.0, 1.0, 3)
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    n: tuple[int, int]
    dim: int
    features: str


def prdc(samples: Vectors, reference: Vectors, *, k: int = NEIGHBOURS, features: str = "raw") -> PRDCResult:
    r"""Precision, recall, density and coverage of samples (n, d) against reference data (m, d).

    With B(v) the closed ball around v whose radius is the distance to v's k-th nearest neighbour in its own set,
    a sample and r a vector of the reference,

        precision = share of the a in some B(r),    recall   = share of the r in some B(a),
        density   = mean over a of #{r: a in B(r)} / k,    coverage = share of the r with some a in B(r).

    Precision and density say how real the samples look, recall and coverage how much of the data they reach;
    density may exceed 1. Equal laws do not give 1: compare with what a second set of data gives, at the same n
    and m.

    Args:
        samples: vectors (n, d) of samples or of their features.
        reference: others (m, d).
        k: number of neighbours; 3 or 5 in the literature.
        features: name of the extractor that made them; it is only recorded.

    Raises:
        ValueError: for vectors of other shapes, unequal d, too few of them, or values that are not finite;
            for k below 1.

    Source: Kynkaanniemi, Karras, Laine, Lehtinen, Aila (2019), "Improved precision and recall metric for
    assessing generative models", arXiv:1904.06991 (k = 3); Naeem, Oh, Uh, Choi, Yoo (2020), "Reliable fidelity
    and diversity metrics for generative models", arXiv:2002.09797 (k = 5).

    Examples:
        >>> data = torch.arange(6.0)[:, None]
        >>> result = prdc(torch.tensor([[0.25], [0.5], [9.0], [9.5]]), data, k=1)
        >>> [round(value, 3) for value in (result.precision, result.recall, result.density, result.coverage)]
        [0.5, 0.167, 1.0, 0.333]
    """
    check_integer("k", k, kind=int)
    try:
        x, y = pair(samples, reference, least=k + 1)
    except ValueError as error:
        raise ValueError(str(error).replace("a ", "samples ", 1).replace("b ", "reference ", 1)) from None

    count = _by_trees if x.shape[1] <= FEW else _by_distances
    n_balls, covered, recalled = count(x, y, k)
    return PRDCResult(
        precision=float((n_balls > 0).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(n_balls.double().mean()) / k,
        coverage=float(covered.double().mean()),
        k=k,
        n=(len(x), len(y)),
        dim=x.shape[1],
        features=features,
    )


# For samples and reference data: the number of balls of the reference that each sample is in, whether there is a sample
# in each of these, and whether each vector of the reference is in a ball of the samples.
Counts = tuple[Tensor, Tensor, Tensor]


def _by_distances(x: Tensor, y: Tensor, k: int) -> Counts:
    """By all distances."""
    # They are taken by matrix products, which lose digits far from the origin.
    centre = y.mean(0)
    x = x - centre
    y = y - centre
    radius_x = _radii(x, k)
    radius_y = _radii(y, k)

    n_balls = torch.zeros(len(x), dtype=torch.long)
    recalled = torch.zeros(len(y), dtype=torch.bool)
    covered = torch.zeros(len(y), dtype=torch.bool)
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        distance = torch.cdist(x[rows], y)

        in_reference = distance <= radius_y
        n_balls[rows] = in_reference.sum(1)
        covered |= in_reference.any(0)

        in_samples = distance <= radius_x[rows, None]
        recalled |= in_samples.any(0)
    return n_balls, covered, recalled


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance of each row of x to its k-th nearest neighbour among the others."""
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1).values for rows in torch.split(x, _ROWS)])


def _by_trees(x: Tensor, y: Tensor, k: int) -> Counts:
    """By trees, in time that grows little faster than the number of vectors."""
    tree_x, tree_y = KDTree(x.numpy()), KDTree(y.numpy())
    n_balls, covered = _held(tree_x, tree_y, k)
    n_recalling, _ = _held(tree_y, tree_x, k)
    return n_balls, covered, n_recalling > 0


def _held(points: KDTree, centres: KDTree, k: int) -> tuple[Tensor, Tensor]:
    """The number of balls around centres that each point is in, and whether each ball holds a point."""
    distances, _ = centres.query(centres.data, k + 1)
    radii = distances[:, k] * (1 + ROUNDING)
    n_held = points.query_ball_point(centres.data, radii, return_length=True)

    n_balls = np.zeros(points.n, dtype=np.int64)
    parts = np.searchsorted(n_held.cumsum(), np.arange(_PAIRS, n_held.sum(), _PAIRS))
    for some in np.split(np.arange(centres.n), parts):
        found = points.query_ball_point(centres.data[some], radii[some])
        n_balls += np.bincount(np.concatenate([[], *found]).astype(np.int64), minlength=points.n)
    return torch.from_numpy(n_balls), torch.from_numpy(n_held > 0)
