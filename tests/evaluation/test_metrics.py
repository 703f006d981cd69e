"""What the metrics promise together: records of their inputs, errors that name bad arguments, other packages agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sgm_sde.evaluation.metrics import kernel_distance, prdc, sliced_wasserstein
from tests.evaluation.cases import normal


@pytest.mark.parametrize("metric", [kernel_distance, prdc, sliced_wasserstein])
def test_results_record_their_inputs(metric: Callable[..., Any]) -> None:
    a, b = normal(30, 4), normal(20, 4, seed=1)
    result = metric(a, b, features="digits")
    assert (result.n, result.dim, result.features) == ((30, 20), 4, "digits")
    assert metric(a.float().numpy(), b.numpy()).features == "raw"
    with pytest.raises(ValueError, match="same number of features, got 4 and 3"):
        metric(a, b[:, :3])
    with pytest.raises(ValueError, match="finite, got nan at row 2, column 1"):
        metric(a.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(math.nan, dtype=torch.float64)), b)


def test_bad_arguments_are_named() -> None:
    a = normal(4, 2)
    with pytest.raises(ValueError, match="a needs at least 3 rows, got 2"):
        kernel_distance(a[:2], a)
    with pytest.raises(ValueError, match="reference needs at least 5 rows, got 4"):
        prdc(normal(5, 2), a, k=4)
    with pytest.raises(ValueError, match="k must be an integer of at least 1, got 0"):
        prdc(a, a, k=0)
    with pytest.raises(ValueError, match="n_directions must be an integer of at least 1, got 0"):
        sliced_wasserstein(a, a, n_directions=0)


def test_other_packages_agree() -> None:
    """torchmetrics' kernel distance of all vectors of two sets of the same size is ours."""
    kid = pytest.importorskip("torchmetrics.image.kid", exc_type=ImportError)
    a, b = normal(40, 6), normal(40, 6, seed=1) + 0.3
    assert kernel_distance(a, b).value == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-10)
