"""The Frechet distance against closed forms and against scipy's matrix square root."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch

from sgm_sde.evaluation.metrics import (
    FrechetResult,
    frechet_distance,
    gaussian_frechet,
    kernel_distance,
)
from tests.evaluation.cases import normal


def _covariance(dim: int, seed: int) -> torch.Tensor:
    root = normal(dim, dim, seed=seed)
    return root @ root.T / dim


def test_gaussians_with_commuting_covariances_match_the_closed_form() -> None:
    basis = torch.linalg.qr(normal(7, 7)).Q
    var_a, var_b = normal(7, seed=1).exp(), normal(7, seed=2).exp()
    mean_a, mean_b = normal(7, seed=3), normal(7, seed=4)
    exact = (mean_a - mean_b).square().sum() + (var_a.sqrt() - var_b.sqrt()).square().sum()
    value = gaussian_frechet(mean_a, (basis * var_a) @ basis.T, mean_b, (basis * var_b) @ basis.T)
    assert value == pytest.approx(exact.item(), abs=1e-8)


def test_distance_is_the_closed_form_of_the_sample_moments_for_one_feature() -> None:
    a, b = normal(50, 1), 3 * normal(80, 1, seed=1) + 2
    exact = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b).value == pytest.approx(exact.item(), abs=1e-8)


def test_matches_scipy_sqrtm() -> None:
    a, b = normal(200, 12) @ _covariance(12, 1), normal(150, 12, seed=2) @ _covariance(12, 3) + 0.3
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    exact = np.sum((a.numpy().mean(0) - b.numpy().mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root).real
    assert frechet_distance(a, b).value == pytest.approx(exact, abs=1e-6)


def test_symmetric() -> None:
    a, b = normal(40, 6), 2 * normal(30, 6, seed=1) + 1
    assert frechet_distance(a, b).value == pytest.approx(frechet_distance(b, a).value, abs=1e-10)


def test_zero_on_itself() -> None:
    a = 100 * normal(40, 6)
    a[:, 2] = 5.0  # a constant feature makes the covariance singular
    assert 0 <= frechet_distance(a, a).value < 1e-8


@pytest.mark.parametrize(("rows_a", "rows_b", "name", "n"), [(5, 40, "a", 5), (40, 7, "b", 7)])
def test_fewer_samples_than_features_warns(rows_a: int, rows_b: int, name: str, n: int) -> None:
    a, b = normal(rows_a, 20), normal(rows_b, 20, seed=1)
    with pytest.warns(UserWarning, match=f"{name} has n={n} samples for d=20 features") as caught:
        value = frechet_distance(a, b).value
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert value > 0


def test_rank_deficient_is_still_zero_on_itself() -> None:
    a = normal(5, 20)
    with pytest.warns(UserWarning, match="n=5"):
        assert frechet_distance(a, a).value < 1e-8


def test_as_many_samples_as_features_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(normal(6, 6), normal(6, 6, seed=1))


def test_result_records_its_inputs_and_takes_numpy_and_single_precision() -> None:
    a, b = normal(30, 4), normal(20, 4, seed=1)
    result = frechet_distance(a, b, features="digits")
    assert result == FrechetResult(result.value, (30, 20), 4, "digits")
    readonly = a.numpy().copy()
    readonly.flags.writeable = False
    assert frechet_distance(readonly, b).value == result.value
    assert frechet_distance(a.float(), b.float()).value == pytest.approx(result.value, rel=1e-5)
    assert frechet_distance(a, b).features == "raw"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3, 2, 2), torch.zeros(3, 2), r"a must have shape .* got \(3, 2, 2\)"),
        (torch.zeros(3, 2), torch.zeros(4), r"b must have shape .* got \(4,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 5), "same number of features, got 2 and 5"),
        (torch.zeros(1, 2), torch.zeros(3, 2), "a needs at least 2 rows, got 1"),
        (torch.zeros(3, 2), torch.zeros(0, 2), "b needs at least 2 rows, got 0"),
        (
            torch.tensor([[0.0, 1.0], [2.0, torch.inf]]),
            torch.zeros(3, 2),
            "a must be finite, got inf at row 1, column 1",
        ),
        (
            torch.zeros(3, 2),
            torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]),
            "b must be finite, got nan at row 1, column 0",
        ),
    ],
)
def test_bad_input_is_named(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_the_frechet_distance_falls_with_the_number_of_samples() -> None:
    """Two samples of one law: the bias falls with n; the kernel distance has none."""
    sizes = (100, 400, 1600, 6400)
    pairs = [(normal(n, 64, seed=2 * i), normal(n, 64, seed=2 * i + 1)) for i, n in enumerate(sizes)]
    distances = [frechet_distance(a, b).value for a, b in pairs]
    assert all(later < 0.5 * earlier for earlier, later in pairwise(distances))
    assert distances[0] > 10
    for a, b in pairs[:2]:
        result = kernel_distance(a, b)
        assert abs(result.value) < 3 * result.stderr
