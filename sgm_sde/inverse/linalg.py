"""Linear algebra a sample by itself: vector-Jacobian products, and linear systems of which only products are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sgm_sde._utils.autograd import repeated_product, require_gradient, require_repeatable
from sgm_sde._utils.shapes import dot, expand

NOTHING = 16  # roundings: a part of a vector that is as small is one of them

HINT = "DiffPIR and Replacement need none, LinearMap takes an adjoint="


class Linearised:
    """A function's value at x (B, *), with vector-Jacobian products there.

    Works under `torch.no_grad`, and under `torch.enable_grad` keeps the graph; touches nobody's `requires_grad`.

    Args:
        call: from x (B, *) to the value (B, *).
        x: where.

    Attributes:
        x: what the value was computed from.
        output: the value with its graph.

    Raises:
        ValueError: for a function that gives no gradient.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._outer = torch.is_grad_enabled()
        self._call = call
        with torch.enable_grad():
            # A copy, since the loop overwrites its states in place.
            self.x = x if self._outer and x.requires_grad else x.detach().clone().requires_grad_()
            self.output = call(self.x)
        require_gradient(self.output, "the function", HINT, call, self.x)

    @property
    def value(self) -> Tensor:
        """The value, without its graph unless gradients are asked for around it."""
        return self.output if self._outer else self.output.detach()

    def vjp(self, v: Tensor, made: Callable[[Tensor, Tensor], Tensor] = lambda _, output: output) -> Tensor:
        """The product of v (B, *) with the Jacobian of the value, or of what is made of x and the value."""
        with torch.enable_grad():
            value = made(self.x, self.output)
        try:
            (product,) = torch.autograd.grad(
                value,
                self.x,
                v,
                retain_graph=True,
                create_graph=self._outer,
            )
        except RuntimeError as error:
            require_repeatable(error, self._outer)
            return repeated_product(lambda x: made(x, self._call(x)), self.x, v)
        return product


# From p (B, *) to the pair (M p, L p) of a square M and any L, both linear; L p may have any shape (B, *).
Products = Callable[[Tensor], tuple[Tensor, Tensor]]


def conjugate_gradient(apply: Products, b: Tensor, iterations: int) -> Tensor:
    r"""$L M^{-1} b$ for a symmetric positive definite $M$, by conjugate gradients from 0.

    Each sample has its own step sizes, and all take the same number of steps: none waits for, or depends on, another.
    A sample whose residual has vanished stays where it is, and what follows is no part of its derivatives: a direction
    that is rounding has none.

    Args:
        apply: products with M and L.
        b: right-hand sides (B, *).
        iterations: how many.

    Source: Hestenes & Stiefel, 1952.

    Examples:
        >>> conjugate_gradient(lambda p: (4 * p, p), torch.tensor([[2.0], [8.0]]), 1)
        tensor([[0.5000],
                [2.0000]])
    """
    size, r = _with_unit_length(b)
    negligible = _negligible(b)
    p = r
    square = dot(r, r)
    solution = torch.zeros(())

    for _ in range(iterations):
        moves = square > negligible
        p = only_where(moves, p)
        Mp, Lp = apply(p)

        before = only_where(moves, square)
        curvature = dot(p, Mp)
        a = ratio(before, curvature)
        solution = solution + expand(a, Lp) * Lp
        r = r - expand(a, Mp) * Mp

        square = dot(r, r)
        kept = ratio(square, before)
        p = r + expand(kept, p) * p
    return expand(size, solution) * solution


def conjugate_residual(apply: Products, b: Tensor, iterations: int) -> Tensor:
    r"""$L M^{-1} b$ for any $M$, by generalised conjugate residuals (GMRES in another form) from 0.

    The residual shrinks with every step, whatever M: no step goes far where M is not symmetric or not positive. Samples
    by themselves, and still where they have arrived, as with `conjugate_gradient`; keeps three vectors a step.

    Args:
        apply: products with M and L.
        b: right-hand sides (B, *).
        iterations: how many.

    Source: Eisenstat, Elman & Schultz, 1983, doi:10.1137/0720023.

    Examples:
        >>> conjugate_residual(lambda p: (-4 * p, p), torch.tensor([[2.0], [8.0]]), 1)
        tensor([[-0.5000],
                [-2.0000]])
    """
    size, r = _with_unit_length(b)
    negligible = _negligible(b)
    solution = torch.zeros(())
    directions: list[tuple[Tensor, Tensor]] = []

    for _ in range(iterations):
        square = dot(r, r)
        moves = square > negligible
        moving = only_where(moves, r)
        of_r, L_r = apply(moving)
        Mp, Lp = _orthogonal(of_r, L_r, directions)

        before = dot(of_r, of_r)
        square = dot(Mp, Mp)
        is_new = square > negligible * before
        Mp = only_where(is_new, Mp)
        Lp = only_where(is_new, Lp)
        directions.append((Mp, Lp))

        along = dot(moving, Mp)
        square = dot(Mp, Mp)
        a = ratio(along, square)
        step = expand(a, Lp) * Lp
        solution = solution + step
        r = r - expand(a, Mp) * Mp
    return expand(size, solution) * solution


def _orthogonal(Mp: Tensor, Lp: Tensor, directions: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The products of the direction p made orthogonal to others, in the sense that M p is to theirs."""
    for Mq, Lq in directions:
        along = ratio(dot(Mp, Mq), dot(Mq, Mq))
        Mp = Mp - expand(along, Mq) * Mq
        Lp = Lp - expand(along, Lq) * Lq
    return Mp, Lp


def _with_unit_length(b: Tensor) -> tuple[Tensor, Tensor]:
    """The lengths (B,) of b (B, *), 1 of zeros, and b divided by them.

    The solution is as long as b, and the lengths of residuals do not leave the range of numbers, squared or inverted.
    """
    length = dot(b, b).detach().sqrt()
    size = torch.where(length > 0, length, 1)
    return size, b / expand(size, b)


def _negligible(b: Tensor) -> float:
    """The square of a length that is rounding, beside 1."""
    return float((NOTHING * torch.finfo(b.dtype).eps) ** 2)


def only_where(kept: Tensor, value: Tensor) -> Tensor:
    """The value (B, *) of some samples (B,), zeros for the others: no derivative goes through those."""
    ones = [1] * (value.ndim - 1)
    return torch.where(kept.reshape(-1, *ones), value, 0)


def ratio(a: Tensor, c: Tensor) -> Tensor:
    """a / c, per sample; 0 where c is not positive."""
    positive = c > 0
    return torch.where(positive, a / torch.where(positive, c, 1), 0)
