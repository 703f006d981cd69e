"""Linear systems, a sample by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (B,) of a and b (B, *)."""
    return (a * b).flatten(1).sum(1)


def conjugate_gradient(apply: Callable[[Tensor], tuple[Tensor, Tensor]], b: Tensor, iterations: int) -> Tensor:
    r"""$L M^{-1} b$ for a positive definite $M$ and any linear $L$, by conjugate gradients from 0.

    Each sample has its own step sizes, and all take the same number of steps: none waits for, or depends on, another.
    A sample whose residual has vanished stays where it is.

    Args:
        apply: from p (B, *) to the pair (M p, L p).
        b: right-hand sides (B, *).
        iterations: how many.

    Source: Hestenes & Stiefel, 1952.

    Example:
        >>> conjugate_gradient(lambda p: (4 * p, p), torch.tensor([[2.0], [8.0]]), 1)
        tensor([[0.5000],
                [2.0000]])
    """

    def ratio(a: Tensor, c: Tensor) -> Tensor:
        moves = (a > tiny) & (c > 0)
        return torch.where(moves, a / torch.where(moves, c, 1), 0).reshape(-1, *[1] * (b.ndim - 1))

    r = p = b
    square = dot(r, r)
    tiny = torch.finfo(b.dtype).eps ** 2 * square
    solution: Tensor | None = None
    for _ in range(iterations):
        image, part = apply(p)
        a = ratio(square, dot(p, image))
        solution = a * part if solution is None else solution + a * part
        r = r - a * image
        before, square = square, dot(r, r)
        p = r + ratio(square, before) * p
    if solution is None:
        raise ValueError(f"conjugate gradients need at least one iteration, got {iterations}")
    return solution
