"""Gradients where the caller has turned autograd off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node, get_gradient_edge

from sgm_sde._utils.tree import Path, each_leaf, map_leaves

DONATED = "donated buffers"  # torch's words where the graph of a compiled function is to be used more than once

OF_CONSTANTS = "One whose output is constant may add 0 * x"

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


def is_transformed() -> bool:
    """True within a transformation of `torch.func`, where tensors may have no values to look at."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def refuse_transformed(what: str, instead: str) -> None:
    """Check that what looks at values runs outside of every transformation of `torch.func`.

    Raises:
        RuntimeError: within one, with what to do instead.
    """
    if is_transformed():
        raise RuntimeError(f"{what} within a transformation of torch.func, whose tensors have none: {instead}")


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


@outside_autocast
def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """The sums (*, ...) of rows (k, ...) with weights (*, k): a matrix product that autocast does not round."""
    return torch.tensordot(weights, rows, 1)


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


# Whether the call in progress is to be differentiated, as `enable_grad=True` says: then every network in it is asked.
_asked: ContextVar[bool] = ContextVar("gradients asked for", default=False)


@contextmanager
def gradients(wanted: bool) -> Iterator[None]:
    """Autograd on or off, and while it is on networks without gradients are refused by `require_asked`."""
    before = _asked.set(wanted)
    try:
        with torch.set_grad_enabled(wanted):
            yield
    finally:
        _asked.reset(before)


def require_asked(call: Callable[[Tensor], Tensor], x: Tensor, output: Tensor, given: object, net: object) -> None:
    """Raise ValueError for a network without the gradients that `enable_grad=True` asks for.

    What solvers add to its output has a gradient in any case, and a wrong one without the network's.

    Args:
        call: the network as a function of the state.
        x: its input (B, *).
        output: its output there.
        given: what it got besides.
        net: the network, whose parameters may be what is asked for.
    """
    if not (_asked.get() and torch.is_grad_enabled()):
        return
    if x.requires_grad:
        require_gradient(output, "the network", OF_CONSTANTS, call, x)

    wanted = "its parameters" if isinstance(net, nn.Module) and _any(net.parameters()) else ""
    if _any(leaf for _, leaf in each_leaf(given)):
        wanted = "its conditions"
    if wanted and not output.requires_grad:
        raise ValueError(
            f"the network gives no gradient with respect to {wanted}, which require grad under enable_grad=True: it "
            f"runs under no_grad or inference_mode, or detaches its output. Take one that does not, or "
            f"requires_grad_(False) of what is not to be differentiated"
        )


def _any(values: Iterable[object]) -> bool:
    """True if any of the values is a tensor that requires a gradient."""
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def require_gradient(
    value: Tensor,
    what: str,
    hint: str,
    call: Callable[[Tensor], Tensor] | None = None,
    x: Tensor | None = None,
) -> None:
    """Raise ValueError unless the value has a graph, and with it a gradient with respect to x.

    A graph may be that of parameters alone, where the value does not depend on x, or x is detached on the way. Which of
    both it is, another call tells.

    Args:
        value: a function's value.
        what: the function, in the message.
        hint: what may be done.
        call: the function, of the input alone; without it any graph will do.
        x: the input.
    """
    if value.requires_grad and (call is None or x is None or _reaches(value, x) or _is_constant(call, x, value)):
        return
    raise ValueError(
        f"{what} gives no gradient with respect to x, which is needed here: it runs under no_grad or inference_mode, "
        f"detaches its input or output, or takes a gradient itself without create_graph=True. {hint}"
    )


def _reaches(value: Tensor, x: Tensor) -> bool:
    """True if x is in the graph of the value."""
    if value.grad_fn is None:
        return value is x

    with torch.enable_grad():  # which torch 2.4 needs for the edge of a leaf
        goal = get_gradient_edge(x).node
    found: set[Node] = set()
    ahead: list[Node] = [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is goal:
            return True
        following = {after for after, _ in node.next_functions if after is not None}
        ahead.extend(following - found)
        found |= following
    return False


def _is_constant(call: Callable[[Tensor], Tensor], x: Tensor, value: Tensor) -> bool:
    """True if the function has this value at another x as well."""
    with torch.no_grad():
        return torch.equal(call(2 * x + 1), value)
