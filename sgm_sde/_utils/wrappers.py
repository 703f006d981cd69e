"""Networks within what torch, and libraries around it, wrap about them: the arguments and names are theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

# Classes that hold the network as `module`: those of torch and of what trains with it.
PARALLEL = frozenset(
    ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine", "AveragedModel")
)
COMPILED = "_orig_mod"  # where torch.compile keeps the module


def unwrapped(net: Any) -> Any:
    """The network in a wrapper of torch.compile, of parallel training, of PEFT, or in a `functools.partial`.

    Args:
        net: a module or a function; what has no wrapper is returned as it is.

    Returns:
        the innermost one. A bound method `net.forward` is its module.

    Examples:
        >>> import torch
        >>> net = nn.Linear(1, 1)
        >>> unwrapped(nn.DataParallel(torch.compile(net))) is net
        True
    """
    while (inner := _inner(net)) is not None:
        net = inner
    return net


def _inner(net: Any) -> Any:
    """The content of the outermost wrapper; None without one."""
    if isinstance(net, functools.partial):
        return net.func
    owner = getattr(net, "__self__", None)
    if isinstance(owner, nn.Module):
        return owner
    if not isinstance(net, nn.Module):
        return None

    if type(net).__name__ in PARALLEL:
        return net.module
    compiled = getattr(net, COMPILED, None)
    if compiled is not None:
        return compiled
    base: Callable[[], object] | None = getattr(net, "get_base_model", None)
    return None if base is None else base()


def plain_name(name: str) -> str:
    """The name of a weight without the parts that torch.compile adds for modules within the network.

    Examples:
        >>> plain_name("blocks.0._orig_mod.weight")
        'blocks.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != COMPILED)
