"""Times and coefficients as tensors that broadcast with states of any rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Time = Tensor | float
LARGEST = 1e300  # time
SORTED = 2**24  # numbers of which torch finds a quantile
AT_A_TIME = 2**18  # numbers of an intermediate value that is kept small


def cpu_float64(values: float | Sequence[float] | npt.NDArray[np.float64]) -> Tensor:
    """Numbers as a float64 tensor on the CPU, whatever torch's default device: what coefficients are made of."""
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def as_time(t: Time) -> Tensor:
    """The time `t` as a floating-point tensor; Python numbers become float64 scalars."""
    if isinstance(t, Tensor):
        if not t.is_floating_point() or t.layout != torch.strided:
            raise TypeError(f"times must be floating point, got a tensor of dtype {t.dtype} and layout {t.layout}")
        return t
    if not isinstance(t, Real):
        raise TypeError(f"a time must be one number or a tensor, got a {type(t).__name__}")
    try:
        number = float(t)  # NumPy compares its own in their precision
    except OverflowError:  # of an integer or fraction
        number = math.inf
    if not abs(number) < LARGEST:
        raise ValueError(f"a time must be finite, got {t!r}")
    return cpu_float64(number)


def require_times(t: Tensor, x: Tensor, *, tokens: bool = False) -> None:
    """Raise unless x is a tensor and t, () or (B,), goes with x (B, *).

    With `tokens`, t may also have the rank of x, with ones where it is shared: a time for each token, frame or pixel.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided:
        given = f"dtype {x.dtype} and layout {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating tensor (B, *), got {given}")
    if not t.ndim or (t.ndim == 1 and x.ndim and len(t) == len(x)):
        return
    if tokens and 1 < t.ndim == x.ndim and all(n in (1, m) for n, m in zip(t.shape, x.shape, strict=True)):
        return
    more = ", or the rank of x with ones where times are shared," if tokens else ""
    raise ValueError(
        f"t has shape {tuple(t.shape)}, expected () or ({x.shape[0] if x.ndim else ''},){more} "
        f"to go with x of shape {tuple(x.shape)}"
    )


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape a coefficient of shape () or (B,) so that it multiplies `x` of shape (B, *), in its dtype.

    One of the rank of x, with ones where it is shared, is a coefficient for each token, frame or pixel.

    Raises:
        ValueError: if the coefficient has any other shape.

    Examples:
        >>> expand(torch.ones(4), torch.zeros(4, 3, 8, 8)).shape
        torch.Size([4, 1, 1, 1])
    """
    require_times(coefficient, x, tokens=True)
    if coefficient.ndim == 0 or coefficient.ndim == x.ndim:
        return coefficient.to(x.dtype)
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def dimension(x: Tensor) -> int:
    """Numbers of each sample of x (B, *), of which there may be none."""
    return math.prod(x.shape[1:])


def flat(x: Tensor) -> Tensor:
    """x (B, *) as (B, d), of scalars as well."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def column(weight: Tensor, x: Tensor) -> Tensor:
    """Numbers for each sample (*, B), of any device and dtype, shaped to multiply x (B, *).

    Samples of two numbers get two each: torch goes sample by sample through a product with one, six times as long.
    """
    of_state = weight.to(device=x.device, dtype=x.dtype)
    if x.shape[1:] == (2,):
        return torch.view_as_real(torch.complex(of_state, of_state))
    return of_state.reshape(*weight.shape, *[1] * (x.ndim - 1))


def row_sums(x: Tensor) -> Tensor:
    """Sums (B,) over the numbers of x (B, *); of few by adding columns, in a sixth of the time of a reduction."""
    rows = flat(x)
    if rows.shape[1] not in (2, 3):
        return rows.sum(1)
    first, second, *third = rows.unbind(1)
    total = first + second
    return total + third[0] if third else total


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (B,) of a and b (B, *)."""
    return row_sums(a * b)


def finite(x: Tensor) -> Tensor:
    """True if each sample (B,) of x (B, *) is finite."""
    x = x.detach()
    if not x.numel() or not (x.is_floating_point() or x.is_complex()):
        return flat(torch.isfinite(x)).all(1)

    rows = flat(x)
    blocks = torch.split(rows, max(1, AT_A_TIME // rows.shape[1]))
    found = [block.abs().amax(1) < torch.inf for block in blocks]  # a fifth of the time that `isfinite` takes on a CPU
    return found[0] if len(found) == 1 else torch.cat(found)


def batch_time(t: Time, x: Tensor, *, tokens: bool = False) -> Tensor:
    """`t` as a tensor of shape (B,) on the device of `x` (B, *), at least float32.

    With `tokens`, a time for each token, frame or pixel, of the rank of x, keeps its shape but for the batch.
    """
    t = as_time(t)
    require_times(t, x, tokens=tokens)
    if x.ndim == 0:
        raise TypeError("x must be a floating tensor (B, *), got one number")
    dtype = torch.promote_types(x.dtype, torch.float32) if t.ndim == 0 else t.dtype
    return t.to(device=x.device, dtype=dtype).expand(len(x), *t.shape[1:])


def in_range(D: Tensor, limit: float = 1.0, percentile: float | None = None, most: float | None = None) -> Tensor:
    """Estimates of the data (B, *) as `guidance.Thresholded` keeps them."""
    if percentile is None:
        return D.clamp(-limit, limit)

    sizes = flat(D.abs()).double()
    s = quantile(sizes, percentile).clamp(limit, most)
    bound = expand(s.to(D.dtype), D)
    clipped = torch.minimum(torch.maximum(D, -bound), bound)
    return clipped * (limit / bound)


def quantile(values: Tensor, p: float) -> Tensor:
    """The p-quantile (B,) of each row of values (B, d), linear between the nearest two, of rows of any length.

    Examples:
        >>> quantile(torch.tensor([[3.0, 1.0, 2.0]]), 0.75)
        tensor([2.5000])
    """
    d = values.shape[1]
    if d <= SORTED:
        return values.quantile(p, dim=1)
    position = p * (d - 1)
    below = int(position)
    lower = values.kthvalue(below + 1, dim=1).values
    upper = values.kthvalue(min(below + 2, d), dim=1).values
    return lower.lerp(upper, position - below)
