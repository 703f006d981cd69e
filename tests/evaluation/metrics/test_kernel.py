"""The kernel distance: closed forms, brute force, and other packages."""

from __future__ import annotations

import math

import pytest
import torch

from sgm_sde.evaluation.metrics import kernel_distance
from tests.evaluation.cases import normal


def test_kernel_distance_is_the_closed_form_of_power_sums_for_one_feature() -> None:
    """(x y + 1)^3 is a sum over powers, so that every double sum is a product of power sums."""
    a, b = normal(30, 1), 1.5 * normal(20, 1, seed=1) + 0.5
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
    result = kernel_distance(normal(n, d), normal(n, d, seed=1) + v)
    assert abs(result.value - exact) < 3 * result.stderr < exact / 2


@pytest.mark.parametrize("m", [16, 17], ids=["by pairs", "by moments"])
def test_kernel_distance_is_that_of_all_pairs(m: int) -> None:
    """Three features and a constant have 16 products two by two: of more rows these are fewer than the pairs."""
    a, b = normal(9, 3), normal(m, 3, seed=1) + 0.5
    (aa, ab, bb) = (((x @ y.T / 3 + 1) ** 3) for x, y in ((a, a), (a, b), (b, b)))
    own = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (aa, bb)]
    assert kernel_distance(a, b).value == pytest.approx(float(own[0] + own[1] - 2 * ab.mean()), rel=1e-12)


def test_kernel_distance_of_equal_laws_is_zero_within_its_error_and_unbiased() -> None:
    results = [kernel_distance(normal(40, 5, seed=2 * i), normal(60, 5, seed=2 * i + 1)) for i in range(200)]
    values = torch.tensor([r.value for r in results])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
    inside = sum(abs(r.value) < 2 * r.stderr for r in results)
    assert inside > 0.9 * 200
    assert values.min() < 0


def test_kernel_distance_states_the_spread_of_its_values() -> None:
    """Where the laws differ, the standard error is the standard deviation over repetitions."""
    results = [kernel_distance(normal(80, 4, seed=2 * i), normal(50, 4, seed=2 * i + 1) + 1) for i in range(200)]
    spread = torch.tensor([r.value for r in results]).std()
    claimed = torch.tensor([r.stderr for r in results]).mean()
    assert claimed / spread == pytest.approx(1, abs=0.2)


def test_the_jackknife_is_that_of_leaving_rows_out() -> None:
    a, b = normal(6, 2), normal(5, 2, seed=1) + 1
    variance = 0.0
    for own, call in ((a, lambda x: kernel_distance(x, b)), (b, lambda x: kernel_distance(a, x))):
        kept = [torch.cat([own[:i], own[i + 1 :]]) for i in range(len(own))]
        less = torch.tensor([call(x).value for x in kept], dtype=torch.float64)
        variance += float(less.var(correction=0)) * (len(own) - 1)
    assert kernel_distance(a, b).stderr == pytest.approx(math.sqrt(variance), rel=1e-9)
