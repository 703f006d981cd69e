"""Steps of their own for every sample: the loop, the size of steps, and embedded pairs with their errors."""

from sgm_sde.engine.adaptive.controller import Controller
from sgm_sde.engine.adaptive.embedded import Counting, EmbeddedStepper, Pair, rms
from sgm_sde.engine.adaptive.integration import check_tolerances, integrate
from sgm_sde.engine.adaptive.loop import (
    COMPLETED,
    GIVEN_UP,
    NOT_FINITE,
    OUT_OF_STEPS,
    STEP_TOO_SMALL,
    Active,
    Attempt,
    Integration,
    State,
    integrate_adaptive,
)

__all__ = [
    "COMPLETED",
    "GIVEN_UP",
    "NOT_FINITE",
    "OUT_OF_STEPS",
    "STEP_TOO_SMALL",
    "Active",
    "Attempt",
    "Controller",
    "Counting",
    "EmbeddedStepper",
    "Integration",
    "Pair",
    "State",
    "check_tolerances",
    "integrate",
    "integrate_adaptive",
    "rms",
]
