"""Matrices as coefficients."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sgm_sde.engine.matrix import Matrix, finite
from sgm_sde.processes.matrix import apply


def test_matrix_algebra() -> None:
    """Products are matrix products, and numbers stand for multiples of the identity."""
    A, B = Matrix.of([[1, 2], [3, 4]]), Matrix.of([[0, 1], [1, 0]])
    assert (A * B).array.tolist() == [[2, 1], [4, 3]] and (B * A).array.tolist() == [[3, 4], [1, 2]]
    assert (A + 1).rows == (1 + A).rows == ((2.0, 2.0), (3.0, 5.0))
    assert (A - B).rows == (A + -B).rows and (2.0 * A).rows == (A * 2.0).rows
    assert not Matrix.of(np.zeros((2, 2))) and (A.inverse * A + 0.0) == Matrix.of(A.inverse.array @ A.array)
    z = torch.arange(4.0).reshape(1, 2, 2)
    assert torch.equal(apply(A, z), torch.einsum("ij,bjn->bin", torch.tensor(A.rows), z))


def test_matrices_beside_numbers() -> None:
    """Sums, differences and products with numbers on either side, and what cannot be multiplied."""
    M = Matrix.of([[1, 2], [3, 4]])
    assert (M + 2).rows == ((3.0, 2.0), (3.0, 6.0))
    assert (M - 2).rows == ((-1.0, 2.0), (3.0, 2.0))
    assert (M * 2).rows == (2 * M).rows == (M * 2.0).rows == ((2.0, 4.0), (6.0, 8.0))
    assert (-M).rows == ((-1.0, -2.0), (-3.0, -4.0))
    assert (M.T.rows, M.inverse.array.tolist()) == (((1.0, 3.0), (2.0, 4.0)), np.linalg.inv(M.array).tolist())
    assert M and not Matrix.of(np.zeros((2, 2)))
    assert f"{M:.1f}" == "[1.0 2.0; 3.0 4.0]"
    with pytest.raises(TypeError, match="unsupported operand"):
        M * None
    assert [finite(c) for c in (1.0, math.inf, M, Matrix.of([[1.0, math.nan]]))] == [True, False, True, False]
    with pytest.raises(dataclasses.FrozenInstanceError):
        M.rows = ()  # type: ignore[misc]
    for form in (M, torch.tensor(M.rows)):
        z = torch.arange(12.0).reshape(1, 2, 3, 2)
        assert torch.equal(apply(form, z), torch.einsum("ij,bjkl->bikl", torch.tensor(M.rows), z))
    many = torch.tensor([M.rows, (M * M).rows])
    z = torch.arange(12.0).reshape(2, 2, 3)
    assert torch.equal(apply(many, z), torch.einsum("bij,bjk->bik", many, z))
