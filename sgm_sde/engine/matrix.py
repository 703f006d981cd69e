"""Linear maps as coefficients, where a number is not enough: states of several blocks, or with a time per token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgm_sde.identity import Value


class Operator(Value):
    """A linear map of a state as a coefficient, with the algebra of a number."""


@dataclass(frozen=True)
class Matrix(Operator):
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
        """A matrix from what `numpy.asarray` takes for one."""
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


@dataclass(frozen=True, eq=False)
class Diagonal(Operator):
    """A number for each element, or for each token, frame or pixel, of a sample: a diagonal matrix.

    Args:
        values: an array that broadcasts with a sample (*).

    Examples:
        >>> a = Diagonal(np.array([[1.0], [2.0]]))  # two tokens, of samples (2, d)
        >>> (a * a + 1).values.tolist(), bool(a - a)
        ([[2.0], [5.0]], False)
    """

    values: np.ndarray

    @staticmethod
    def of(values: np.ndarray) -> Any:  # a `Coefficient`, which solvers' formulas know as a number or a matrix
        """The array as a coefficient, a number if it has one entry only."""
        first = float(values.flat[0])
        return first if (values == first).all() else Diagonal(values)

    def __add__(self, other: Diagonal | float) -> Diagonal:
        return Diagonal(self.values + _values(other))

    __radd__ = __add__

    def __sub__(self, other: Diagonal | float) -> Diagonal:
        return Diagonal(self.values - _values(other))

    def __rsub__(self, other: Diagonal | float) -> Diagonal:
        return Diagonal(_values(other) - self.values)

    def __mul__(self, other: Diagonal | float) -> Diagonal:
        return Diagonal(self.values * _values(other))

    __rmul__ = __mul__

    def __neg__(self) -> Diagonal:
        return Diagonal(-self.values)

    def __bool__(self) -> bool:
        return bool(self.values.any())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Diagonal) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash((self.values.shape, self.values.tobytes()))

    def __format__(self, spec: str) -> str:
        return "[" + " ".join(format(value, spec) for value in self.values.flat) + "]"

    def times(self, value: Tensor) -> Tensor:
        """The product with a state (B, *)."""
        return torch.from_numpy(self.values).to(device=value.device, dtype=value.dtype) * value


def _values(c: Diagonal | float) -> np.ndarray | float:
    return c.values if isinstance(c, Diagonal) else c


def finite(coefficient: Operator | float) -> bool:
    """True if a coefficient, number or operator, is finite."""
    if isinstance(coefficient, Diagonal):
        return bool(np.isfinite(coefficient.values).all())
    if isinstance(coefficient, Matrix):
        return bool(np.isfinite(coefficient.array).all())
    return math.isfinite(number(coefficient))


def number(coefficient: Operator | float) -> float:
    """A coefficient that must be a number: of a process without blocks, at one time for all of a sample."""
    assert not isinstance(coefficient, Operator)
    return coefficient


def times(c: Operator | float, value: Tensor) -> Tensor:
    """A coefficient times a state, a matrix over its blocks (B, k, *)."""
    if isinstance(c, Diagonal):
        return c.times(value)
    if not isinstance(c, Matrix):
        return number(c) * value
    rows = [sum(a * block for a, block in zip(row, value.unbind(1), strict=True)) for row in c.rows]
    return torch.stack(rows, 1)  # type: ignore[arg-type]
