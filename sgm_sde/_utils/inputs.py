"""State and time as a network takes them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sgm_sde._utils.checks import described
from sgm_sde._utils.shapes import expand

OfTime = Callable[[Tensor], Tensor]


def network_inputs(
    x: Tensor, t: Tensor, time_label: OfTime | None = None, input_scale: OfTime | None = None
) -> tuple[Tensor, Tensor]:
    """State and time label of a network that is asked at x (B, *) and t (B,).

    Args:
        x: the state.
        t: the time.
        time_label: from t to what the network expects; t itself if not given.
        input_scale: from t to what x is multiplied by; nothing if not given.

    Raises:
        TypeError: if one of the functions returns no tensor.

    Examples:
        >>> import torch
        >>> network_inputs(torch.ones(2, 1), torch.tensor([0.0, 1.0]), lambda t: 999 * t)[1]
        tensor([  0., 999.])
    """
    label = t if time_label is None else _of_time("time_label", time_label, t)
    if input_scale is None:
        return x, label
    return expand(_of_time("input_scale", input_scale, t), x) * x, label


def _of_time(option: str, function: OfTime, t: Tensor) -> Tensor:
    """Values of a function of time at t (B,)."""
    value = function(t)
    if not isinstance(value, Tensor):
        raise TypeError(f"{option} must return a tensor, got {described(value)}")
    return value
