"""Coefficients of a sample's own, and sums over its numbers."""

from __future__ import annotations

import pytest
import torch

from sgm_sde._utils.shapes import column, row_sums
from tests.helpers import F64


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (2, 2), (5,)])
def test_a_column_multiplies_each_sample_by_its_number(shape: tuple[int, ...]) -> None:
    """For states of any rank, and for several numbers of each sample at a time, in the dtype of the states."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, *shape), generator=generator)
    weights = torch.randn((3, 4), generator=generator, dtype=F64)
    expected = torch.stack([torch.stack([w.float() * one for w, one in zip(row, x, strict=True)]) for row in weights])
    assert torch.equal(column(weights, x) * x, expected)
    assert torch.equal(column(weights[0], x) * x, expected[0])


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7])
def test_row_sums_are_those_of_a_reduction(d: int) -> None:
    """To the last bit in few dimensions, whose columns are added; with their gradients."""
    x = torch.randn((1000, d), generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.equal(row_sums(x), x.sum(1))
    (gradient,) = torch.autograd.grad(row_sums(x).sum(), x)
    assert bool((gradient == 1).all())
