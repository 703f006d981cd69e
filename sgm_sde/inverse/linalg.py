"""Linear algebra a sample by itself: vector-Jacobian products, and linear systems of which only products are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sgm_sde._utils.autograd import repeated_product, require_gradient, require_repeatable
from sgm_sde._utils.shapes import dot, expand

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
        require_gradient(self.output, "the function", HINT)

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
    A sample whose residual has vanished stays where it is.

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
    r = p = b
    square = dot(r, r)
    negligible = torch.finfo(b.dtype).eps ** 2 * square
    solution = torch.zeros(())
    for _ in range(iterations):
        Mp, Lp = apply(p)
        a = ratio(torch.where(square > negligible, square, 0), dot(p, Mp))
        solution = solution + expand(a, Lp) * Lp
        r = r - expand(a, Mp) * Mp

        before = square
        square = dot(r, r)
        p = r + expand(ratio(square, before), p) * p
    return solution


def conjugate_residual(apply: Products, b: Tensor, iterations: int) -> Tensor:
    r"""$L M^{-1} b$ for any $M$, by generalised conjugate residuals (GMRES in another form) from 0.

    The residual shrinks with every step, whatever M: no step goes far where M is not symmetric or not positive. Samples
    by themselves, as with `conjugate_gradient`; keeps three vectors a step.

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
    r = b
    solution = torch.zeros(())
    negligible = torch.finfo(b.dtype).eps ** 2 * dot(b, b)
    directions: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        Mp, Lp = _orthogonal(*apply(r), directions)
        directions.append((Mp, Lp))

        moves = dot(r, r) > negligible
        a = ratio(torch.where(moves, dot(r, Mp), 0), dot(Mp, Mp))
        solution = solution + expand(a, Lp) * Lp
        r = r - expand(a, Mp) * Mp
    return solution


def _orthogonal(Mp: Tensor, Lp: Tensor, directions: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The products of the direction p made orthogonal to others, in the sense that M p is to theirs."""
    for Mq, Lq in directions:
        along = ratio(dot(Mp, Mq), dot(Mq, Mq))
        Mp = Mp - expand(along, Mq) * Mq
        Lp = Lp - expand(along, Lq) * Lq
    return Mp, Lp


def ratio(a: Tensor, c: Tensor) -> Tensor:
    """a / c, per sample; 0 where c is not positive."""
    positive = c > 0
    return torch.where(positive, a / torch.where(positive, c, 1), 0)
