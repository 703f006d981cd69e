"""Gradients where the caller has turned autograd off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def outside_inference_mode(function: Callable[P, T]) -> Callable[P, T]:
    """The function outside of inference mode, which records no graph, on copies of inference tensors."""

    def copied(value: Any) -> Any:
        if isinstance(value, Mapping):
            items = {name: copied(item) for name, item in value.items()}
            return items if any(items[name] is not value[name] for name in items) else value
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        grad = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            return function(*map(copied, args), **copied(kwargs))

    return call


def require_gradient(value: Tensor, what: str, hint: str) -> None:
    """Raise ValueError unless the value has a graph."""
    if not value.requires_grad:
        raise ValueError(
            f"{what} gives no gradient with respect to x, which is needed here: it runs under no_grad or detaches its "
            f"input or output. {hint}"
        )
