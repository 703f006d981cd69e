"""Gradients where the caller has turned autograd off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from sgm_sde._utils.tree import Path, map_leaves

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


def require_gradient(value: Tensor, what: str, hint: str) -> None:
    """Raise ValueError unless the value has a graph."""
    if not value.requires_grad:
        raise ValueError(
            f"{what} gives no gradient with respect to x, which is needed here: it runs under no_grad, detaches its "
            f"input or output, or takes a gradient itself without create_graph=True. {hint}"
        )
