r"""Closed-form parts of a calibration: levels by dynamic programming, rows by least squares.

For exact states $y(s_i)$ and estimates $D_i$ at K levels, the Gram matrix of all of them tells how much of $y(s_j)$ is
no combination of $y(s_i)$, $D_i$ and the estimate before, which is what a step from i to j cannot get right, whatever
its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sgm_sde.calibration.flow import Flow, Trajectories
from sgm_sde.calibration.rows import Rows

RIDGE = 1e-5  # of Gram matrices with a diagonal of ones


def importance(log_levels: Tensor, scale: float, units: Tensor | None) -> Tensor:
    """Weights c^2 / (c^2 + s^2) of states at K levels, (K, 1); with units u, c^2 / (c^2 + (s u)^2), (K, d)."""
    s = log_levels.exp()[:, None]
    if units is not None:
        s = s * units.cpu()
    return scale**2 / (scale**2 + s.square())


def weighted_grams(exact: Trajectories, z: Tensor, scale: float, units: Tensor | None) -> Tensor:
    """`gram` with the weights of each of the K levels, and of the end, (K + 1, 2 K + 2, 2 K + 2)."""
    w = importance(exact.log_levels, scale, units)
    w = torch.cat([w, torch.ones_like(w[:1])])
    if units is None:
        return w[..., None] * gram(exact, z)
    each = [gram(exact.coordinate(i), z[:, i : i + 1]) for i in range(w.shape[1])]
    return torch.tensordot(w, torch.stack(each), 1) / len(each)


def gram(exact: Trajectories, z: Tensor) -> Tensor:
    """Mean products of the K states, the K estimates, the end and the noise: (2 K + 2, 2 K + 2), float64."""
    total = torch.zeros((), dtype=torch.float64)
    n, d = z.shape
    for rows in torch.split(torch.arange(n), max(1, 2**22 // (d * len(exact.y) + 1))):
        parts = [exact.y[:, rows], exact.D[:, rows], exact.end[None, rows], z[None, rows]]
        flat = torch.cat(parts).flatten(1).double()
        total = total + (flat @ flat.T).cpu()
    return total / (n * d)


def residuals(G: Tensor, targets: Tensor, features: Tensor, ridge: float = RIDGE) -> Tensor:
    """Mean square of what features (..., m) do not explain of targets (...), all of them numbers of rows of matrices G
    (K + 1, ...), of which there is one for each of the K states and one for the end.
    """
    diagonal = G.diagonal(dim1=1, dim2=2)
    scale = diagonal.clamp(min=1e-300).rsqrt()
    correlation = G * scale[:, :, None] * scale[:, None]

    one = targets.clamp(max=len(G) - 1)
    inner = correlation[one[..., None, None], features[..., :, None], features[..., None, :]]
    inner = inner + ridge * torch.eye(features.shape[-1], dtype=G.dtype)
    outer = correlation[one[..., None], features, targets[..., None]]
    explained = (outer * torch.linalg.solve(inner, outer)).sum(-1)
    return (1 - explained).clamp(min=0) * diagonal[one, targets]


def levels(G: Tensor, n: int) -> list[int]:
    """The n of K levels with the least sum of unexplained parts, by the weighted Gram matrix of each level."""
    K = len(G) - 1
    n = min(n, K)
    first = _first(G)
    if n == 1:
        return [int((first + _alone(G)).argmin())]

    # The least sum by (call before, last call), and which call came before both.
    best = first[:, None] + _second(G)
    third = _third(G)
    back: list[Tensor] = []
    for _ in range(n - 2):
        total = best[:, :, None] + third
        best, before = total.min(0)
        back.append(before)

    return _path(best + _ends(G), back)


def _path(total: Tensor, back: list[Tensor]) -> list[int]:
    """The calls of the least of the sums (K, K), given which call came before each two."""
    K = len(total)
    least = int(total.argmin())
    path = [least % K, least // K]
    for before in reversed(back):
        earlier = before[path[-1], path[-2]]
        path.append(int(earlier))
    return path[::-1]


def nearest(log_levels: Tensor, wanted: Sequence[float]) -> list[int] | None:
    """The numbers of the levels nearest to those wanted, in turn the next one where one is taken; None if they end.

    Examples:
        >>> nearest(torch.tensor([3.0, 2.0, 1.0, 0.0]), [2.1, 1.9, 0.2])
        [1, 2, 3]
    """
    found: list[int] = []
    for level in wanted:
        k = int((log_levels - level).abs().argmin())
        found.append(max(k, found[-1] + 1) if found else k)
    return found if not found or found[-1] < len(log_levels) else None


# Costs of the calls. Of K levels, each matrix of G has the states first, then the estimates, the end and the noise.


def _first(G: Tensor) -> Tensor:
    """Costs (K,) of a first call, at the noise, scaled."""
    K = len(G) - 1
    noise = torch.full((K, 1), 2 * K + 1)
    return residuals(G, torch.arange(K), noise)


def _second(G: Tensor) -> Tensor:
    """Costs (K, K) of a call at j after the first one at i; infinite unless i comes before j."""
    K = len(G) - 1
    state = torch.arange(K)
    i, j = torch.meshgrid(state, state, indexing="ij")

    known = torch.stack([i, i + K], -1)
    cost = residuals(G, j, known)
    return cost.masked_fill(i >= j, torch.inf)


def _third(G: Tensor) -> Tensor:
    """Costs (K, K, K) of a call at j after those at p and i; infinite unless p, i, j come in this order."""
    K = len(G) - 1
    state = torch.arange(K)
    p, i, j = torch.meshgrid(state, state, state, indexing="ij")

    known = torch.stack([i, i + K, p + K], -1)
    cost = residuals(G, j, known)
    return cost.masked_fill((p >= i) | (i >= j), torch.inf)


def _alone(G: Tensor) -> Tensor:
    """Costs (K,) of the sample after a single call."""
    K = len(G) - 1
    i = torch.arange(K)
    known = torch.stack([i, i + K], -1)
    return residuals(G, torch.full((K,), 2 * K), known)


def _ends(G: Tensor) -> Tensor:
    """Costs (K, K) of the sample after calls at p and i."""
    K = len(G) - 1
    state = torch.arange(K)
    p, i = torch.meshgrid(state, state, indexing="ij")
    known = torch.stack([i, i + K, p + K], -1)
    return residuals(G, torch.full((K, K), 2 * K), known)


def fit_rows(
    flow: Flow, exact: Trajectories, z: Tensor, scale: float, chosen: list[int], samples: range, consistent: bool
) -> Rows:
    """Rows in closed form, one after another, on the solver's own evaluations: ridge least squares to exact states.

    With `consistent`, each row is exact for a constant estimate of the data. Numbers of unlike scale are weighted as
    their units say (`importance`): the small ones are noise, and large in these units, long before they are told.
    """
    rows = Rows.first(exact.log_levels[chosen])
    targets = [*exact.y[chosen[1:]], exact.end]
    roots: list[Tensor | float] = [1.0] * rows.n  # one weight of all numbers makes no difference
    if flow.units is not None:
        roots[:-1] = importance(rows.t[1:], scale, flow.units).sqrt().to(z)
    bounds = _bounds(rows.t.exp())
    fitted = partial(_consistent_row, inverse=flow.inverse) if consistent else _row

    D = torch.empty((rows.n, *z.shape), dtype=z.dtype, device=z.device)
    for k, (target, root) in enumerate(zip(targets, roots, strict=True), 1):
        y = rows.state(k - 1, z, D)
        level = float(rows.t[k - 1])
        D[k - 1] = flow.estimate(y, level, samples)
        c, b = fitted(root * z, root * D[:k], root * target, bounds[k])
        rows.c[k] = c
        rows.B[k, :k] = b
    return rows


Bounds = tuple[float, float]


def _bounds(s: Tensor) -> list[Bounds]:
    """Bounds of the scales: a state stays one of about its level, the sample need not."""
    states = [(0.2 * s_k, 5 * s_k) for s_k in s.tolist()]
    return [*states, (-torch.inf, torch.inf)]


def _row(z: Tensor, D: Tensor, target: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """The scale of the noise, within bounds, and the weights of the estimates D (k, N, d) in a row."""
    found = ridge(torch.cat([z[None], D]), target)
    return found[0].clamp(*bounds), found[1:]


def _consistent_row(z: Tensor, D: Tensor, target: Tensor, bounds: Bounds, inverse: float) -> tuple[Tensor, Tensor]:
    """The scale and the weights of a consistent row, whose last weight is the rest."""
    last = D[-1]
    noise = z - inverse * last
    earlier = D[:-1] - last
    found = ridge(torch.cat([noise[None], earlier]), target - last)

    c = found[0].clamp(*bounds)
    b = found[1:]
    rest = 1 - inverse * c - b.sum()
    return c, torch.cat([b, rest[None]])


def ridge(features: Tensor, target: Tensor, share: float = RIDGE) -> Tensor:
    """Weights of features (m, N, d) for a target (N, d), with a share of the diagonal added to it."""
    m = len(features)
    d = target.shape[1]
    G = torch.zeros(m + 1, m + 1, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(target)), max(1, 2**22 // (d * (m + 1)))):
        flat = torch.cat([features[:, rows], target[None, rows]]).flatten(1).double()
        G = G + (flat @ flat.T).cpu()
    scale = G.diagonal()[:m].clamp(min=1e-300).rsqrt()
    inner = G[:m, :m] * scale[:, None] * scale + share * torch.eye(m, dtype=torch.float64)
    return torch.linalg.solve(inner, G[:m, m] * scale) * scale
