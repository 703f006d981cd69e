"""Odd arguments: every refusal is one of ours."""

from __future__ import annotations

import inspect
import warnings
from types import ModuleType
from typing import Any

import pytest

import sgm_sde as sg
from sgm_sde import likelihood, metrics, nn, training
from tests import fuzz

MODULES: list[ModuleType] = [
    sg, sg.adapters, sg.grids, sg.guidance, sg.inverse, sg.oracles, sg.presets, sg.time_labels, likelihood, metrics, nn,
    training,
]  # fmt: skip


def public(module: ModuleType) -> dict[str, Any]:
    """What of a module can be called: the names that it declares, or those that it defines."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith(("_", "require_"))])
    found = {name: getattr(module, name) for name in names}
    kinds = {name: value for name, value in found.items() if inspect.isroutine(value) or inspect.isclass(value)}
    return {name: value for name, value in kinds.items() if not (inspect.isclass(value) and issubclass(value, Warning))}


def test_every_public_callable_is_tried() -> None:
    """A name that can be called is in the table of calls, or in the list of those that are not called by users."""
    tried = [function for function, _ in fuzz.CALLS.values()]
    tried += [type(function) for function in tried] + [sg.Record, sg.Execution]  # by a run that takes them
    missing = {
        name
        for module in MODULES
        for name, value in public(module).items()
        if value not in tried and name not in fuzz.NOT_CALLED and inspect.signature(value).parameters
    }
    assert not missing


def test_every_right_call_goes_through() -> None:
    """The table's own arguments are right ones, so that what is refused is the odd one among them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of points that the density does not know
        for function, right in fuzz.CALLS.values():
            by_position = [value for key, value in right.items() if key.startswith("*")]
            by_name = {key: value for key, value in right.items() if not key.startswith("*")}
            function(*by_position, **by_name)


@pytest.mark.parametrize("seed", range(2))
def test_refusals_are_ours(seed: int) -> None:
    """No internal error and none in foreign words, in as many calls as there is time for here."""
    _, findings = fuzz.run(4 * len(fuzz.CALLS), seed)
    assert not findings, "\n".join(map(str, findings))


@pytest.mark.slow
def test_refusals_are_ours_in_a_long_run() -> None:
    """The same for 40000 calls, those of `make fuzz`."""
    _, findings = fuzz.run(40_000, 2)
    assert not findings, "\n".join(map(str, findings))
