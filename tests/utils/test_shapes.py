"""Coefficients of a sample's own, and sums over its numbers."""

from __future__ import annotations

import warnings
from fractions import Fraction
from numbers import Real

import numpy as np
import pytest
import torch

from sgm_sde._utils import shapes
from sgm_sde._utils.shapes import as_time, column, quantile, row_sums
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


@pytest.mark.parametrize("p", [0.003, 0.5, 0.995])
@pytest.mark.parametrize("d", [5, 6, 1000])
def test_quantiles_of_long_rows(d: int, p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that torch finds of rows that it sorts: of longer ones it finds none."""
    values = torch.randn((3, d), generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = quantile(values, p)
    monkeypatch.setattr(shapes, "SORTED", 4)
    torch.testing.assert_close(quantile(values, p), expected)
    assert torch.equal(quantile(values, 1.0), values.amax(1))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_times_of_numpy(kind: type[np.floating]) -> None:
    """Without a warning of NumPy's on how large a time may be."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(as_time(kind(0.5))) == 0.5
    with pytest.raises(ValueError, match="a time must be finite"):
        as_time(kind("inf"))


@pytest.mark.parametrize("t", [10**400, Fraction(10**400), -(10**400)])
def test_times_beyond_floating_point(t: Real) -> None:
    with pytest.raises(ValueError, match="a time must be finite"):
        as_time(t)
