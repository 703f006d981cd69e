"""The solution of any differential equation with steps of their own for every sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sgm_sde._utils.checks import check_integer, number, real, require_function
from sgm_sde.engine.adaptive.controller import Controller
from sgm_sde.engine.adaptive.embedded import EmbeddedStepper, Pair, Rhs
from sgm_sde.engine.adaptive.loop import Integration, State, integrate_adaptive

LARGEST_TOLERANCE = 1e12  # accepts every step, and its square is finite


def integrate(
    rhs: Callable[[Tensor, Any, Tensor], Any],
    y0: Tensor | State,
    t0: float,
    t1: float,
    pair: Pair,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
    controller: Controller | None = None,
    first_step: float | None = None,
    batch_coupled: bool = False,
    on_leave: Callable[[int], None] | None = None,
    on_places: Callable[[Tensor], None] | None = None,
) -> Integration:
    r"""Solve $dy/dt = L\,y + N(t, y)$ with steps of their own for every sample, forwards or backwards in t.

    Nothing is evaluated outside of [t0, t1]. A sample that has arrived, run out of steps or met a value that is not
    finite leaves the batch in its last accepted state, and the others continue.

    Args:
        rhs: N, as `rhs(t, y, index)` with t (b,) in float64 on the host, y of the form of `y0` with the b samples that
            are on their way, and index (b,) their numbers, by which to select whatever else belongs to a sample.
        y0: initial state (B, *), or a tuple of such: a state and its log-density, say.
        t0: where to begin.
        t1: where to end.
        pair: the method, such as `sgm_sde.schemes.DOPRI5`.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        max_steps: attempts for each sample.
        controller: of the step size; PI if not given.
        first_step: its size; from the slope if not given, which takes one evaluation more.
        batch_coupled: one step for all samples, from the root mean square of their errors.
        on_leave: called with the number of samples that have just left the batch.
        on_places: called before the stages of a step are evaluated with the places t (n, b) of all but the first,
            whose rows `rhs` will be given.

    Raises:
        TypeError: for a function that takes other arguments, or an end that is no number.
        ValueError: for tolerances or limits out of range.

    Examples:
        >>> import torch
        >>> from sgm_sde.schemes import DOPRI5
        >>> y0 = torch.ones(2, 1, dtype=torch.float64)
        >>> end = integrate(lambda t, y, index: -y, y0, 0.0, 1.0, DOPRI5, rtol=1e-9, atol=1e-9)
        >>> bool((end.y[0] - math.exp(-1)).abs().max() < 1e-9), end.outcome
        (True, ('completed', 'completed'))
    """
    require_function("rhs", rhs, "of (t, y, index)", 3)
    require_function("on_leave", on_leave, "of a number of samples", 1, optional=True)
    require_function("on_places", on_places, "of places t (n, b)", 1, optional=True)
    check_tolerances(rtol, atol, max_steps)
    t0 = real("t0", t0)
    t1 = real("t1", t1)
    if not (math.isfinite(t0) and math.isfinite(t1) and t0 != t1):
        raise ValueError(f"the ends must be finite and different, got {t0} and {t1}")

    single = isinstance(y0, Tensor)
    y = (y0,) if isinstance(y0, Tensor) else tuple(y0)
    parts: Rhs = (lambda t, y, index: (rhs(t, y[0], index),)) if single else rhs
    stepper = EmbeddedStepper(parts, pair, rtol, atol, len(y[0]), on_places)
    return integrate_adaptive(
        stepper,
        y,
        t0,
        t1,
        max_steps=max_steps,
        controller=controller or Controller(),
        first_step=first_step,
        longest=pair.longest,
        batch_coupled=batch_coupled,
        on_leave=on_leave,
    )


def check_tolerances(rtol: float, atol: float, max_steps: int) -> None:
    """Raise ValueError for values out of range."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        number(name, value, least=0, most=LARGEST_TOLERANCE)
    if rtol == atol == 0:
        raise ValueError("rtol and atol cannot both be 0")
    check_integer("max_steps", max_steps)
