"""Networks whose gradient is not that of their output: they round, quantise or detach some of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sgm_sde._utils.shapes import dot
from sgm_sde.identity import called_networks

LOST = 0.1  # share of the change with the state that is not in the gradient, from which it is told
SMOOTHED = 0.05  # standard deviations of the noise, over which a difference goes
COARSEST = 2.0**-9  # relative rounding of bfloat16
TINY = 1e-300  # of what does not change at all
OFTEN = 5.0  # standard deviations of what rounding does to a difference
OF_LOST = "how it changes with x is not in it, as behind rounding, quantised layers or detach()"
STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "floor_divide", "bucketize", "searchsorted"}
LIKE = ("new_", "zeros_like", "ones_like", "empty_like", "full_like", "rand")  # which take a shape, and no values
OF_FIRST = {"to", "type_as", "view_as", "expand_as", "reshape_as"}  # which take no values of what comes second


class Cuts(TorchFunctionMode):
    """A record of what a network may lose its gradient by: numbers that have none, made of such that have.

    Attributes:
        seen: whether there are any. Most such networks have the right gradient all the same, as with a maximum that is
            taken off exponents.

    Examples:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with Cuts() as cuts:
        ...     y = x * x.detach()
        >>> cuts.seen
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The value of the function."""
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(out, Tensor) and out.dtype != torch.bool and not name.startswith(LIKE):
            lost = name.rstrip("_") in STEPS or not out.requires_grad
            self.seen = self.seen or (lost and _any(args[:1] if name in OF_FIRST else args))
        return out


def _any(values: Iterable[object]) -> bool:
    """True if a gradient is asked of any of the values, or of those in a list of them."""
    return any(
        value.requires_grad if isinstance(value, Tensor) else isinstance(value, list | tuple) and _any(value)
        for value in values
    )


def is_compiled(net: object) -> bool:
    """True if torch.compile has made a network, or a part of it."""
    parts = [net, *(part for network in called_networks(net) for part in network.modules())]
    names = ("_orig_mod", "_compiled_call_impl", "_torchdynamo_orig_callable")
    return any(getattr(part, name, None) is not None for part in parts for name in names)


def lost_share(call: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, sigma: float) -> float:
    r"""Share of how a network changes with its state that is not in its gradient, but for what rounding may do.

    Its Jacobian J in a direction z, $z^\top Jz$, by autograd and by a difference, both in the mean over the states, of
    which the second smooths the network over a twentieth of the noise. 0 for a network without any gradient, which what
    needs one refuses. Three calls.

    Args:
        call: the network as a function of the state.
        x: states (B, *) with noise.
        z: directions (B, *), of numbers +-1.
        sigma: standard deviation of the noise.

    Examples:
        >>> x = torch.linspace(-1.0, 1.0, 6)[:, None]
        >>> z = torch.ones_like(x)
        >>> shares = [lost_share(net, x, z, 1.0) for net in (torch.exp, lambda x: x + 0.5 * x.detach())]
        >>> [round(share, 2) for share in shares]
        [0.0, 0.29]
    """
    h = SMOOTHED * sigma
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        output = call(leaf)
    if not output.requires_grad:
        return 0.0
    (product,) = torch.autograd.grad(output, leaf, z.to(output), allow_unused=True, materialize_grads=True)

    with torch.no_grad():
        behind = call(x - h * z)
        before = call(x + h * z)
    direction = z.double()
    by_difference = dot(direction, (before - behind).double()) / (2 * h)
    by_autograd = dot(direction, product.double())

    values = output.detach().double()
    size_of_values = float(values.square().sum().sqrt())
    rounding = COARSEST * size_of_values / (2**0.5 * h)

    missing = by_autograd - by_difference
    off = float(missing.sum().abs()) - OFTEN * rounding
    whole = float(by_difference.abs().sum())
    return max(off, 0.0) / max(whole, TINY)
