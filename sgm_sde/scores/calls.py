"""Calls of a network: what it must take, and what is said of a call in which it raised.

A network whose arguments do not let it be called is refused before. Of a call that raised there is a note to the
exception: what the network was given, and what may be wrong with it.

The exception stays the network's own. What it says decides the advice: each of `ADVICE` looks at a call and at the
words of torch or Python, and has something to say or nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sgm_sde._utils.checks import annotate, function_name, require_function
from sgm_sde._utils.tree import each_leaf, shown
from sgm_sde._utils.wrappers import unwrapped

CALLED = "sgm_sde called the network"
CHANNELS = (1, 3, 4)  # of images
BY_POSITION = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
ARGUMENTS = 120  # characters of a network's arguments in an error message

OF_DEVICES = "same device|expected device|expected it to be on|torch\\.cuda\\."
OF_DTYPES = "dtype|scalar type|bias type|weight type"
OF_INDICES = "(?<!too many )indices|index .*out of (range|bounds)|device-side assert"
OF_FORMS = "positional arg|keyword-only|multiple values"
OF_SHAPES = (
    "shapes cannot be multiplied|channels|normalized_shape|size of tensor a|sizes of tensors must match|"
    "invalid for input of size|expected \\dd|dimension out of range|too many indices|dimension specified|"
    "shape mismatch|must match the existing size|values to unpack|size mismatch|kernel size can't be greater"
)


# Names of networks' arguments, by which those are told that take them in another order.
STATES = frozenset(("x", "xt", "x_t", "z", "zt", "z_t", "sample", "samples", "inputs", "latents", "state"))
TIMES = frozenset(
    (
        "t",
        "ts",
        "time",
        "times",
        "timestep",
        "timesteps",
        "time_steps",
        "sigma",
        "sigmas",
        "tau",
        "noise_level",
        "c_noise",
    )
)
CONDITIONS = frozenset(
    ("y", "c", "cond", "condition", "context", "label", "labels", "class_labels", "classes", "encoder_hidden_states")
)


def require_network(net: object) -> None:
    """Check that a network can be called with state and time by position.

    Raises:
        TypeError: for what is no function, and for one of other arguments, with how to wrap it.

    Examples:
        >>> require_network(lambda x, *, sd: x)
        Traceback (most recent call last):
        ...
        TypeError: a network is called as net(x, t, **model_kwargs), and <lambda>(x, *, sd) takes other arguments: ...
    """
    require_function("the network", net, "of (x, label)")
    signature = _signature(net)
    wrapped = "" if signature is None else _wrapped(list(signature.parameters.values()))
    if wrapped:
        name = type(unwrapped(net)).__name__
        named = f"{name}.forward" if isinstance(net, nn.Module) else function_name(net, name)
        raise TypeError(
            f"a network is called as net(x, t, **model_kwargs), and {named}{str(signature)[:ARGUMENTS]} takes other "
            f"arguments: give {wrapped}"
        )


def _signature(net: object) -> inspect.Signature | None:
    """The arguments of a network; None where it does not tell."""
    inner = unwrapped(net) if isinstance(net, nn.Module) else net  # a wrapper takes anything
    called = inner.forward if isinstance(inner, nn.Module) else inner
    assert callable(called)
    try:
        return inspect.signature(called).replace(return_annotation=inspect.Signature.empty)
    except (TypeError, ValueError):
        return None


def _wrapped(parameters: Sequence[inspect.Parameter]) -> str:
    """A function of state and time around a network of other arguments; empty for one of these."""
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return ""
    first = [each.name for each in parameters if each.kind in BY_POSITION]
    others = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    times = [each.name for each in parameters if each.name in TIMES]
    if len(first) > 1:
        return _reordered(first, times)
    return _by_name(others, times, state=not first) if others or not first else "lambda x, t: net(x)"


def _by_name(names: Sequence[str], times: Sequence[str], *, state: bool) -> str:
    """A function of state and time around a network that takes time, or `state` as well, by name alone."""
    x = next((name for name in names if name in STATES), "x")
    t = [*times, *(name for name in names if name != x), "t"][0]
    given = f"{x}=x" if state else "x"
    return f"lambda x, t, **kwargs: net({given}, {t}=t, **kwargs)"


def _reordered(first: Sequence[str], times: Sequence[str]) -> str:
    """A function of state and time around a network whose arguments have another order; empty for this one."""
    if first[0] in TIMES and first[1] in STATES:
        return "lambda x, t, **kwargs: net(t, x, **kwargs)"
    if first[1] in CONDITIONS and times:
        return f"lambda x, t, **kwargs: net(x, {times[0]}=t, **kwargs)"
    return ""


@dataclass(frozen=True)
class Call:
    """A call of a network and what it raised.

    Args:
        error: the exception.
        x: the state (B, *), as the network got it.
        label: the time label.
        kwargs: what it got besides, by name.
    """

    error: Exception
    x: Tensor
    label: Tensor
    kwargs: Mapping[str, object]

    def says(self, words: str) -> re.Match[str] | None:
        """The place of words, a regular expression, in what the exception says; None without them."""
        return re.search(words, str(self.error), re.IGNORECASE)

    @property
    def conditions(self) -> dict[str, object]:
        """Tensors and other values in the arguments, nested ones too, by their names."""
        return {shown(path): leaf for path, leaf in each_leaf(self.kwargs)}


def tell_call(error: Exception, x: Tensor, label: Tensor, kwargs: Mapping[str, object]) -> None:
    """Add the call in which a network raised to its exception, unless a score inside of this one has.

    Args:
        error: the exception.
        x: the state (B, *).
        label: the time label.
        kwargs: what the network got besides, by name.
    """
    told = any(CALLED in note for note in getattr(error, "__notes__", ()))
    if not told:
        annotate(error, _described(Call(error, x, label, kwargs)))


def _described(call: Call) -> str:
    """Description of a call; only that there was one where tensors have no values, as under a transformation."""
    try:
        return _in_words(call)
    except RuntimeError:
        return CALLED


def _in_words(call: Call) -> str:
    """Description of a call, and of what may be wrong with it."""
    inputs = {"x": call.x, "time label": call.label, **call.kwargs}
    given = ", ".join(f"{name} {_kind(value)}" for name, value in inputs.items())

    advice = [words for of in ADVICE if (words := of(call))]
    return f"{CALLED} with {given}, state and time by position; {'; '.join(advice or [OF_TIME])}"


OF_TIME = "`time_label=` says what it gets as time: indices of a table by sgm_sde.time_labels.ddpm(n, integer=True)"


def _of_gradients(call: Call) -> str:
    """Advice on a network that takes a gradient itself."""
    if not call.says("does not require grad"):
        return ""
    return (
        "calls run without gradients: a network that takes one itself, as of an energy, does so in "
        "`with torch.enable_grad():` at x.detach().requires_grad_()"
    )


def _of_devices(call: Call) -> str:
    """Advice on weights or conditions on another device than the state."""
    if not call.says(OF_DEVICES):
        return ""
    elsewhere = [
        f"{name} on {value.device}"
        for name, value in call.conditions.items()
        if isinstance(value, Tensor) and value.device != call.x.device
    ]
    named = f" and {', '.join(elsewhere)}" if elsewhere else ""
    return (
        f"the state is on {call.x.device}{named}, as x_T or the data are, or as execution=Execution(device=...) says: "
        f"network, state and conditions go on one device"
    )


def _of_dtypes(call: Call) -> str:
    """Advice on weights of another dtype than the state."""
    if not call.says(OF_DTYPES) or call.says(OF_INDICES) or call.says(OF_DEVICES):
        return ""
    words = (
        f"the network got x in {_name(call.x)}, as x_T or the data are, or as execution=Execution(dtype=...) says: "
        f"dtype= of from_noise and its siblings casts x to the dtype of the network's weights"
    )
    if call.label.is_floating_point() and call.label.dtype != call.x.dtype:
        words += f", and the time label stays in {_name(call.label)}: lambda x, t: net(x, t.to(x.dtype))"
    return words


def _of_shapes(call: Call) -> str:
    """Advice on a state, time or condition of another shape than the network expects."""
    if not call.says(OF_SHAPES) or call.says(OF_INDICES):
        return ""
    x = call.x
    n = len(x)
    event = tuple(x.shape[1:])
    words = f"x is (B, *), here {n} samples of the shape {event}, by shape=, x_T or the data"

    is_image = len(event) == 3
    if is_image and event[-1] in CHANNELS and event[0] not in CHANNELS:
        words += ": images are (B, channels, height, width)"

    broadcast = call.says("size of tensor a|shape mismatch")
    if broadcast and event and call.label.ndim == 1:
        ones = ", None" * len(event)
        words += f", and times (B,) go with it as t[:{ones}]"

    short = [
        f"{name} has {len(value)} rows for {n} samples"
        for name, value in call.conditions.items()
        if isinstance(value, Tensor) and value.ndim and len(value) != n
    ]
    return "; ".join([words, *short])


def _of_indices(call: Call) -> str:
    """Advice on what is looked up in a table."""
    if not call.says(OF_INDICES):
        return ""
    words = [f"classes and indices are int64 tensors (B,), as torch.tensor([3, 7]) is or y.long(); {OF_TIME}"]
    if call.says("out of|assert"):
        words.append(f"a table of n rows has indices from 0 to n - 1{_ranges(call)}")
    return "; ".join(words)


def _ranges(call: Call) -> str:
    """The ranges of the integers that a network got, by their names; empty without any, and after a device failed."""
    given = {"time labels": call.label, **call.conditions}
    integers = {
        name: value
        for name, value in given.items()
        if isinstance(value, Tensor) and value.numel() and value.dtype in (torch.int32, torch.int64)
    }
    if not integers or call.says("device-side assert"):
        return ""
    ranges = (f"{name} from {int(value.min())} to {int(value.max())}" for name, value in integers.items())
    return f", and it got {', '.join(ranges)}"


def _of_arguments(call: Call) -> str:
    """Advice on arguments that a network asks for, or does not have."""
    if missing := call.says(r"missing \d+ required .* arguments?: (.*)"):
        return f"model_kwargs= is what it gets besides, here of the name {missing[1]}"
    if unexpected := call.says("unexpected keyword argument ('.*?')"):
        return f"model_kwargs= goes by the names of the network's own arguments, of which {unexpected[1]} is none"
    return ""


def _of_form(call: Call) -> str:
    """Advice on a network of other arguments than state and time."""
    if not isinstance(call.error, TypeError) or not call.says(OF_FORMS):
        return ""
    return (
        "a network is called as net(x, t, **model_kwargs), and one of another form goes in a function: "
        "lambda x, t: net(x), lambda x, t: net(t, x), lambda x, t: net(x, sigma=t)"
    )


def _of_plain_values(call: Call) -> str:
    """Advice on arguments that are no tensors."""
    plain = [
        name for name, value in call.kwargs.items() if isinstance(value, int | float | str | list | tuple | np.ndarray)
    ]
    if not plain:
        return ""
    names = ", ".join(plain)
    return f"what is no tensor in model_kwargs is passed on as it is, here {names}: give tensors"


ADVICE: tuple[Callable[[Call], str], ...] = (
    _of_gradients,
    _of_devices,
    _of_dtypes,
    _of_shapes,
    _of_indices,
    _of_arguments,
    _of_form,
    _of_plain_values,
)


def _kind(value: object) -> str:
    """Shape and dtype of a tensor, the type of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} of {_name(value)}"


def _name(value: Tensor) -> str:
    """A tensor's dtype as users write it."""
    return str(value.dtype).removeprefix("torch.")
