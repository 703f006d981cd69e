"""Kernel distance, precision and recall, sliced Wasserstein: closed forms, brute force, and other packages."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sgm_sde.evaluation.metrics import frechet_distance, kernel_distance, prdc, sliced_wasserstein


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kernel_distance_is_the_closed_form_of_power_sums_for_one_feature() -> None:
    """(x y + 1)^3 is a sum over powers, so that every double sum is a product of power sums."""
    a, b = _rand(30, 1), 1.5 * _rand(20, 1, seed=1) + 0.5
    exact = 0.0
    for p in range(1, 4):
        own = [((x**p).sum() ** 2 - (x ** (2 * p)).sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
        exact += math.comb(3, p) * float(own[0] + own[1] - 2 * (a**p).mean() * (b**p).mean())
    assert kernel_distance(a, b).value == pytest.approx(exact, rel=1e-12)


def test_kernel_distance_of_a_shifted_gaussian() -> None:
    """Of N(0, I) and N(v, I) it is sum_p C(3, p) / d^p |E x^(p) - E y^(p)|^2, from the moments' tensors."""
    d, n = 3, 2000
    v = torch.tensor([0.6, -0.4, 0.2], dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)
    first = v
    second = torch.einsum("i,j->ij", v, v)
    third = torch.einsum("i,j,k->ijk", v, v, v)
    for pattern in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
        third = third + torch.einsum(pattern, v, eye)
    exact = sum(float(math.comb(3, p) * m.square().sum() / d**p) for p, m in ((1, first), (2, second), (3, third)))
    result = kernel_distance(_rand(n, d), _rand(n, d, seed=1) + v)
    assert abs(result.value - exact) < 3 * result.stderr < exact / 2


def test_kernel_distance_of_equal_laws_is_zero_within_its_error_and_unbiased() -> None:
    results = [kernel_distance(_rand(40, 5, seed=2 * i), _rand(60, 5, seed=2 * i + 1)) for i in range(200)]
    values = torch.tensor([r.value for r in results])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
    inside = sum(abs(r.value) < 2 * r.stderr for r in results)
    assert inside > 0.9 * 200
    assert values.min() < 0


def test_kernel_distance_states_the_spread_of_its_values() -> None:
    """Where the laws differ, the standard error is the standard deviation over repetitions."""
    results = [kernel_distance(_rand(80, 4, seed=2 * i), _rand(50, 4, seed=2 * i + 1) + 1) for i in range(200)]
    spread = torch.tensor([r.value for r in results]).std()
    claimed = torch.tensor([r.stderr for r in results]).mean()
    assert claimed / spread == pytest.approx(1, abs=0.2)


def test_the_jackknife_is_that_of_leaving_rows_out() -> None:
    a, b = _rand(6, 2), _rand(5, 2, seed=1) + 1
    variance = 0.0
    for own, call in ((a, lambda x: kernel_distance(x, b)), (b, lambda x: kernel_distance(a, x))):
        kept = [torch.cat([own[:i], own[i + 1 :]]) for i in range(len(own))]
        less = torch.tensor([call(x).value for x in kept], dtype=torch.float64)
        variance += float(less.var(correction=0)) * (len(own) - 1)
    assert kernel_distance(a, b).stderr == pytest.approx(math.sqrt(variance), rel=1e-9)


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


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_is_that_of_all_distances(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgm_sde.evaluation.metrics.neighbours._ROWS", 7)  # several blocks
    x, y = 1.2 * _rand(40, 3), _rand(30, 3, seed=1) + 0.4
    result = prdc(x, y, k=k)
    found = (result.precision, result.recall, result.density, result.coverage)
    assert found == pytest.approx(_prdc_by_hand(x.numpy(), y.numpy(), k), abs=1e-12)
    assert (result.k, result.n, result.dim) == (k, (40, 30), 3)


def test_prdc_tells_missing_modes_from_bad_samples() -> None:
    """One of two modes: real but not all; both and as much junk: all of it, half of them real."""
    modes = torch.cat([_rand(60, 2), _rand(60, 2, seed=1) + 100])
    one = prdc(_rand(60, 2, seed=2), modes)
    assert one.precision > 0.8
    assert one.recall < 0.55
    assert one.coverage < 0.55
    junk = prdc(torch.cat([modes + 0.01, 1e6 + 1e3 * _rand(120, 2, seed=3)]), modes)  # spread, and far from the data
    assert junk.precision == 0.5
    assert junk.coverage == 1


def test_prdc_does_not_depend_on_the_origin() -> None:
    x, y = _rand(60, 4), _rand(50, 4, seed=1)
    assert prdc(x + 1e6, y + 1e6) == prdc(x, y)


def test_sliced_wasserstein_of_a_shift_is_exact() -> None:
    a = _rand(50, 6)
    v = torch.arange(6.0, dtype=torch.float64)
    assert sliced_wasserstein(a, a + v, n_directions=12).value == pytest.approx(
        float(v.norm()) / math.sqrt(6), rel=1e-12
    )
    assert sliced_wasserstein(a, a, n_directions=12).value == 0
    assert sliced_wasserstein(a, 3 * a, n_directions=600).value == pytest.approx(
        2 * float(a.square().mean().sqrt()), rel=1e-12
    )  # W_2(x, 3 x) = 2 |x|, whatever the direction


def test_sliced_wasserstein_between_gaussians() -> None:
    """Of N(0, s^2 I) and N(v, r^2 I): sqrt(|v|^2 / d + (s - r)^2)."""
    v = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    a, b = _rand(8000, 4), 2.5 * _rand(8000, 4, seed=1) + v
    exact = math.sqrt(float(v.square().sum()) / 4 + 1.5**2)
    assert sliced_wasserstein(a, b, n_directions=64).value == pytest.approx(exact, rel=0.02)


def test_sliced_wasserstein_with_unequal_counts() -> None:
    """Repeating every row changes nothing; by hand: {0, 1} against {0, 1, 2} moves 0, 1/6, 1/6, ... of the mass."""
    a, b = _rand(6, 2), _rand(4, 2, seed=1)
    value = sliced_wasserstein(a, b, n_directions=8).value
    assert sliced_wasserstein(a.repeat(2, 1), b.repeat(3, 1), n_directions=8).value == pytest.approx(value, rel=1e-12)
    # Quantiles of {0, 1} and {0, 1, 2}: (0, 0) to 1/3, (0, 1) to 1/2, (1, 1) to 2/3, (1, 2) to 1.
    line = sliced_wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [2.0]]), n_directions=1).value
    assert line == pytest.approx(math.sqrt(1 / 6 + 1 / 3), rel=1e-12)


def test_sliced_wasserstein_is_seeded() -> None:
    state = torch.get_rng_state()
    a, b = _rand(30, 5), _rand(30, 5, seed=1)
    values = {seed: sliced_wasserstein(a, b, n_directions=3, seed=seed).value for seed in (0, 1)}
    assert sliced_wasserstein(a, b, n_directions=3, seed=0).value == values[0] != values[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("metric", [kernel_distance, prdc, sliced_wasserstein])
def test_results_record_their_inputs(metric: Callable[..., Any]) -> None:
    a, b = _rand(30, 4), _rand(20, 4, seed=1)
    result = metric(a, b, features="digits")
    assert (result.n, result.dim, result.features) == ((30, 20), 4, "digits")
    assert metric(a.float().numpy(), b.numpy()).features == "raw"
    with pytest.raises(ValueError, match="same number of features, got 4 and 3"):
        metric(a, b[:, :3])
    with pytest.raises(ValueError, match="finite, got nan at row 2, column 1"):
        metric(a.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(math.nan, dtype=torch.float64)), b)


def test_bad_arguments_are_named() -> None:
    a = _rand(4, 2)
    with pytest.raises(ValueError, match="a needs at least 3 rows, got 2"):
        kernel_distance(a[:2], a)
    with pytest.raises(ValueError, match="reference needs at least 5 rows, got 4"):
        prdc(_rand(5, 2), a, k=4)
    with pytest.raises(ValueError, match="k must be an integer of at least 1, got 0"):
        prdc(a, a, k=0)
    with pytest.raises(ValueError, match="n_directions must be an integer of at least 1, got 0"):
        sliced_wasserstein(a, a, n_directions=0)


def test_other_packages_agree() -> None:
    """torchmetrics' kernel distance of all vectors of two sets of the same size is ours."""
    kid = pytest.importorskip("torchmetrics.image.kid", exc_type=ImportError)
    a, b = _rand(40, 6), _rand(40, 6, seed=1) + 0.3
    assert kernel_distance(a, b).value == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-10)


def test_the_frechet_distance_falls_with_the_number_of_samples() -> None:
    """Two samples of one law: the bias falls with n; the kernel distance has none."""
    sizes = (100, 400, 1600, 6400)
    pairs = [(_rand(n, 64, seed=2 * i), _rand(n, 64, seed=2 * i + 1)) for i, n in enumerate(sizes)]
    distances = [frechet_distance(a, b).value for a, b in pairs]
    assert all(later < 0.5 * earlier for earlier, later in pairwise(distances))
    assert distances[0] > 10
    for a, b in pairs[:2]:
        result = kernel_distance(a, b)
        assert abs(result.value) < 3 * result.stderr
