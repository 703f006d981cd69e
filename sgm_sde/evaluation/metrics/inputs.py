"""Checks of feature vectors, shared by all distances."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgm_sde._utils.checks import described, is_dense, is_regular

Vectors = Tensor | npt.NDArray[np.generic]


def pair(a: Vectors, b: Vectors, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of vectors (n, d) and (m, d) as float64 on the CPU.

    Raises:
        ValueError: for other shapes, unequal d, fewer than `least` rows, or values that are not finite.
    """
    x = _samples(a, "a", least)
    y = _samples(b, "b", least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"a and b must have the same number of features, got {x.shape[1]} and {y.shape[1]}")
    return x, y


def _samples(values: Vectors, name: str, least: int) -> Tensor:
    """The values as a float64 tensor (n, d) on the CPU; a ValueError says what is wrong with them."""
    x = _as_tensor(values, name)
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape (samples, features), got {tuple(x.shape)}")
    if len(x) < least:
        raise ValueError(f"{name} needs at least {least} rows, got {len(x)}")

    bad = ~x.isfinite()
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite, got {x[row, column].item()} at row {row}, column {column}")
    return x


def _as_tensor(values: Vectors, name: str) -> Tensor:
    """Real numbers of any shape as a float64 tensor on the CPU."""
    if isinstance(values, Tensor):
        if not is_dense(values) or values.is_complex():
            raise TypeError(f"{name} must be real numbers (samples, features), got dtype {values.dtype}")
        return values.detach().cpu().double()

    array = np.asarray(values) if isinstance(values, np.ndarray) or is_regular(values) else None
    if array is None or array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be a tensor or array (samples, features), got {described(values)}")
    return torch.from_numpy(array.astype(np.float64))
