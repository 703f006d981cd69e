"""Gradients where the caller has turned autograd off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sgm_sde._utils.tree import Path, map_leaves

DONATED = "donated buffers"  # torch's words where the graph of a compiled function is to be used more than once

P = ParamSpec("P")
T = TypeVar("T")


def outside_inference_mode(function: Callable[P, T]) -> Callable[P, T]:
    """`function` with inference mode off, on clones of inference tensors among its arguments."""

    def recordable(_: Path, leaf: object) -> object:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    def copied(value: object) -> Any:
        return map_leaves(recordable, value) if isinstance(value, Tensor | Mapping) else value

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            named: Any = {name: copied(value) for name, value in kwargs.items()}
            return function(*map(copied, args), **named)

    return call


def outside_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """The function with autocast off, so that it computes in the precision of its tensors."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        devices = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        with ExitStack() as stack:
            for kind in devices:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return call


def require_repeatable(error: RuntimeError, differentiated: bool) -> None:
    """Raise an error unless it says that a compiled function's graph gives a single product, and one is all it takes.

    Raises:
        ValueError: where the product is to be differentiated once more.
    """
    if DONATED not in str(error):
        raise error
    if differentiated:
        raise ValueError(
            "torch.compile gives first derivatives alone, and enable_grad=True takes second ones here: give it the "
            "network as it was before it was compiled"
        ) from None


def repeated_product(call: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The product of v with the Jacobian of a call at x, from a graph of its own."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = call(x)
    (product,) = torch.autograd.grad(output, x, v)
    return product


def repeating(call: Callable[[Tensor], Tensor], x: Tensor, output: Tensor) -> Tensor:
    """The output of a call at x (B, *), whose products with the Jacobian may be asked for any number of times.

    Each repeats the call, so that a graph that gives a single product, as that of a compiled network, is a new one each
    time. It is not differentiable once more, as compiled networks are not.

    Examples:
        >>> x = torch.tensor([2.0, 3.0], requires_grad=True)
        >>> square = repeating(torch.square, x, x**2)
        >>> [torch.autograd.grad(square, x, v, retain_graph=True)[0] for v in torch.eye(2)]
        [tensor([4., 0.]), tensor([0., 6.])]
    """
    repeated: Tensor = _Repeating.apply(x, output.detach(), call)  # type: ignore[no-untyped-call]
    return repeated


class _Repeating(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.call = call
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return repeated_product(ctx.call, x, v), None, None


def require_gradient(value: Tensor, what: str, hint: str) -> None:
    """Raise ValueError unless the value has a graph."""
    if not value.requires_grad:
        raise ValueError(
            f"{what} gives no gradient with respect to x, which is needed here: it runs under no_grad, detaches its "
            f"input or output, or takes a gradient itself without create_graph=True. {hint}"
        )
