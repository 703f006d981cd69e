"""State and time as a network takes them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sgm_sde._utils.checks import annotate, described
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
        ValueError: if it returns values of another number than there are times.

    Examples:
        >>> import torch
        >>> network_inputs(torch.ones(2, 1), torch.tensor([0.0, 1.0]), lambda t: 999 * t)[1]
        tensor([  0., 999.])
    """
    label = t if time_label is None else _of_time("time_label", time_label, t)
    if label.shape[:1] != t.shape[:1]:
        raise _of_other_length("time_label", label, t)
    if input_scale is None:
        return x, label

    scale = _of_time("input_scale", input_scale, t)
    if scale.ndim and scale.shape[:1] != t.shape[:1]:
        raise _of_other_length("input_scale", scale, t)
    return expand(scale, x) * x, label


def _of_time(option: str, function: OfTime, t: Tensor) -> Tensor:
    """Values of a function of time at t (B,)."""
    try:
        value = function(t)
    except Exception as error:
        annotate(error, f"{option} was called with the times t (B,), here a tensor of shape {tuple(t.shape)}")
        raise
    if not isinstance(value, Tensor):
        raise TypeError(f"{option} must return a tensor, got {described(value)}")
    return value


def _of_other_length(option: str, value: Tensor, t: Tensor) -> ValueError:
    """The error for values of a function of time that are not one for each time."""
    return ValueError(
        f"{option} must return one value for each of the {len(t)} times t (B,), got a tensor of shape "
        f"{tuple(value.shape)}"
    )
