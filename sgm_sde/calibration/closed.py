r"""Closed-form parts of a calibration: levels by dynamic programming, rows by least squares.

For exact states $y(s_i)$ and estimates $D_i$ at K levels, the Gram matrix of all of them tells how much of $y(s_j)$ is
no combination of $y(s_i)$, $D_i$ and the estimate before, which is what a step from i to j cannot get right, whatever
its weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgm_sde.calibration.flow import Flow, Trajectories
from sgm_sde.calibration.rows import Rows

RIDGE = 1e-5  # of Gram matrices with a diagonal of ones


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
    """Mean square of what features (..., m) do not explain of targets (...), all of them numbers of rows of G."""
    scale = G.diagonal().clamp(min=1e-300).rsqrt()
    correlation = G * scale[:, None] * scale
    inner = correlation[features[..., :, None], features[..., None, :]]
    inner = inner + ridge * torch.eye(features.shape[-1], dtype=G.dtype)
    outer = correlation[features, targets[..., None]]
    explained = (outer * torch.linalg.solve(inner, outer)).sum(-1)
    return (1 - explained).clamp(min=0) * G.diagonal()[targets]


def levels(G: Tensor, log_levels: Tensor, scale: float, n: int) -> list[int]:
    """The n of K levels with the least sum of unexplained parts, weighted by c^2 / (c^2 + s^2)."""
    K = len(log_levels)
    n = min(n, K)
    s2 = (2 * log_levels).exp()
    weight = scale**2 / (scale**2 + s2)
    state = torch.arange(K)
    estimate, end, noise = state + K, 2 * K, 2 * K + 1

    first = weight * residuals(G, state, torch.full((K, 1), noise))
    i, j = torch.meshgrid(state, state, indexing="ij")
    one = weight[j] * residuals(G, j, torch.stack([i, i + K], -1))  # after the first call
    p, i, j = torch.meshgrid(state, state, state, indexing="ij")
    two = weight[j] * residuals(G, j, torch.stack([i, i + K, p + K], -1))
    later = torch.triu(torch.ones(K, K, dtype=torch.bool), 1)
    one = one.masked_fill(~later, torch.inf)
    two = two.masked_fill(~(later[:, :, None] & later[None]), torch.inf)

    if n == 1:
        ends = residuals(G, torch.full((K,), end), torch.stack([state, estimate], -1))
        return [int((first + ends).argmin())]
    best = first[:, None] + one  # (call before, last call)
    back: list[Tensor] = []
    for _ in range(n - 2):
        total = best[:, :, None] + two
        best, before = total.min(0)
        back.append(before)
    p, i = torch.meshgrid(state, state, indexing="ij")
    ends = residuals(G, torch.full((K, K), end), torch.stack([i, i + K, p + K], -1))
    where = int((best + ends).argmin())
    path = [where % K, where // K]
    for before in reversed(back):
        path.append(int(before[path[-1], path[-2]]))
    return path[::-1]


def fit_rows(flow: Flow, exact: Trajectories, z: Tensor, chosen: list[int], samples: range, consistent: bool) -> Rows:
    """Rows in closed form, one after another, on the solver's own evaluations: ridge least squares to exact states.

    With `consistent`, each row is exact for a constant estimate of the data.
    """
    n = len(chosen)
    t = exact.log_levels[chosen]
    c, B = torch.zeros(n + 1, dtype=torch.float64), torch.zeros(n + 1, n, dtype=torch.float64)
    c[0] = t[0].exp()
    y, estimates = c[0].item() * z, torch.empty((n, *z.shape), dtype=z.dtype, device=z.device)
    for k in range(1, n + 1):
        estimates[k - 1] = flow.data(y[None], [float(t[k - 1])], samples)[0]
        target = exact.y[chosen[k]] if k < n else exact.end
        last = estimates[k - 1]
        if consistent:
            features = torch.cat([(z - flow.inverse * last)[None], estimates[: k - 1] - last])
            found = _ridge(features, target - last)
            c[k], B[k, : k - 1] = found[0], found[1:]
            B[k, k - 1] = 1 - flow.inverse * c[k] - B[k, : k - 1].sum()
        else:
            found = _ridge(torch.cat([z[None], estimates[:k]]), target)
            c[k], B[k, :k] = found[0], found[1:]
        if k < n:
            c[k] = c[k].clamp(0.2 * t[k].exp(), 5 * t[k].exp())
            if consistent:
                B[k, k - 1] = 1 - flow.inverse * c[k] - B[k, : k - 1].sum()
        y = c[k].item() * z + torch.tensordot(B[k, :k].to(z), estimates[:k], 1)
    return Rows(t, c, B)


def _ridge(features: Tensor, target: Tensor) -> Tensor:
    """Weights of features (m, N, d) for a target (N, d)."""
    m, d = len(features), target.shape[1]
    G = torch.zeros(m + 1, m + 1, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(target)), max(1, 2**22 // (d * (m + 1)))):
        flat = torch.cat([features[:, rows], target[None, rows]]).flatten(1).double()
        G = G + (flat @ flat.T).cpu()
    scale = G.diagonal()[:m].clamp(min=1e-300).rsqrt()
    inner = G[:m, :m] * scale[:, None] * scale + RIDGE * torch.eye(m, dtype=torch.float64)
    return torch.linalg.solve(inner, G[:m, m] * scale) * scale
