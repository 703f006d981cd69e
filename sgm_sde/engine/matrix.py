"""A small matrix as a coefficient: what a scalar is to a scalar process, to one whose state has several blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgm_sde._value import Value


@dataclass(frozen=True)
class Matrix(Value):
    """A k x k matrix of Python floats that acts on axis 1 of states (B, k, *); a value like a float.

    Products are matrix products, and in a sum a number stands for that many times the identity.

    Args:
        rows: its rows.

    Examples:
        >>> A = Matrix(((0.0, 1.0), (-1.0, 0.0)))
        >>> A * A == -1.0 * Matrix.of(np.eye(2)), (A + 2).rows
        (True, ((2.0, 1.0), (-1.0, 2.0)))
    """

    rows: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(values: npt.ArrayLike) -> Matrix:
        """A matrix from anything that numpy takes for one."""
        return Matrix(tuple(tuple(row) for row in np.asarray(values, dtype=np.float64).tolist()))

    @property
    def array(self) -> np.ndarray:
        """The matrix as a float64 array (k, k)."""
        return np.array(self.rows)

    def _other(self, other: Matrix | float) -> np.ndarray:
        return other.array if isinstance(other, Matrix) else other * np.eye(len(self.rows))

    def __add__(self, other: Matrix | float) -> Matrix:
        return Matrix.of(self.array + self._other(other))

    __radd__ = __add__

    def __sub__(self, other: Matrix | float) -> Matrix:
        return Matrix.of(self.array - self._other(other))

    def __mul__(self, other: Matrix | float) -> Matrix:
        if not isinstance(other, Matrix | float | int):
            return NotImplemented
        return Matrix.of(self.array @ self._other(other))

    def __rmul__(self, c: float) -> Matrix:
        return Matrix.of(c * self.array)

    def __neg__(self) -> Matrix:
        return Matrix.of(-self.array)

    def __bool__(self) -> bool:
        return bool(self.array.any())

    def __format__(self, spec: str) -> str:
        return "[" + "; ".join(" ".join(format(v, spec) for v in row) for row in self.rows) + "]"

    @property
    def T(self) -> Matrix:
        """Transposed matrix."""
        return Matrix.of(self.array.T)

    @property
    def inverse(self) -> Matrix:
        """Inverse matrix."""
        return Matrix.of(np.linalg.inv(self.array))


def finite(coefficient: Matrix | float) -> bool:
    """True if a coefficient, number or matrix, is finite."""
    return bool(np.isfinite(coefficient.array).all() if isinstance(coefficient, Matrix) else np.isfinite(coefficient))


def number(coefficient: Matrix | float) -> float:
    """A coefficient of a process whose state has no blocks."""
    assert not isinstance(coefficient, Matrix)
    return coefficient


def times(c: Matrix | float, value: Tensor) -> Tensor:
    """A coefficient times a state, a matrix over its blocks (B, k, *)."""
    if not isinstance(c, Matrix):
        return c * value
    rows = [sum(a * block for a, block in zip(row, value.unbind(1), strict=True)) for row in c.rows]
    return torch.stack(rows, 1)  # type: ignore[arg-type]
