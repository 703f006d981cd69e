"""Precision, recall, density and coverage: closed forms, brute force, and other packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sgm_sde.evaluation.metrics import prdc
from tests.evaluation.cases import normal


def _prdc_by_hand(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    between = np.linalg.norm(x[:, None] - y[None], axis=-1)
    radius = {}
    for name, own in (("x", x), ("y", y)):
        radius[name] = np.sort(np.linalg.norm(own[:, None] - own[None], axis=-1), axis=1)[:, k]
    precision = np.mean([any(between[i] <= radius["y"]) for i in range(len(x))])
    recall = np.mean([any(between[:, j] <= radius["x"]) for j in range(len(y))])
    density = np.mean([np.sum(between[i] <= radius["y"]) for i in range(len(x))]) / k
    coverage = np.mean([any(between[:, j] <= radius["y"][j]) for j in range(len(y))])
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.parametrize("d", [3, 12], ids=["by trees", "by distances"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_that_of_all_distances(k: int, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in ("_ROWS", "_PAIRS"):
        monkeypatch.setattr(f"sgm_sde.evaluation.metrics.neighbours.{block}", 7)  # several
    x, y = 1.2 * normal(40, d), normal(30, d, seed=1) + 0.4
    result = prdc(x, y, k=k)
    found = (result.precision, result.recall, result.density, result.coverage)
    assert found == pytest.approx(_prdc_by_hand(x.numpy(), y.numpy(), k), abs=1e-12)
    assert (result.k, result.n, result.dim) == (k, (40, 30), d)


def test_prdc_tells_missing_modes_from_bad_samples() -> None:
    """One of two modes: real but not all; both and as much junk: all of it, half of them real."""
    modes = torch.cat([normal(60, 2), normal(60, 2, seed=1) + 100])
    one = prdc(normal(60, 2, seed=2), modes)
    assert one.precision > 0.8
    assert one.recall < 0.55
    assert one.coverage < 0.55
    junk = prdc(torch.cat([modes + 0.01, 1e6 + 1e3 * normal(120, 2, seed=3)]), modes)  # spread, and far from the data
    assert junk.precision == 0.5
    assert junk.coverage == 1


def test_prdc_does_not_depend_on_the_origin() -> None:
    x, y = normal(60, 4), normal(50, 4, seed=1)
    assert prdc(x + 1e6, y + 1e6) == prdc(x, y)


def test_a_vector_on_the_edge_of_a_ball_is_in_it() -> None:
    """Of the same vectors twice, each lies in the balls around itself and around those whose k-th neighbour it is."""
    x = normal(200, 2)
    assert prdc(x, x, k=3).density == pytest.approx(4 / 3, rel=1e-12)
