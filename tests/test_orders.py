"""Every solver has the order it claims: deterministic and weak, on every linear process, on even and uneven grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from sgm_sde.grids import LogSNR
from sgm_sde.testing import measure_order, measure_weak_order, rough, warped
from tests.helpers import ALL, DETERMINISTIC, FAMILIES, LINEAR, MIXTURE, WEAK

RULES = {"log-snr": LogSNR(), "warped": warped(), "rough": rough()}
STEPS = (160, 320)  # whole periods of the random grid


def cases(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Every solver on VP, on the grid of the literature and on a random one; one of each structure on the others."""
    everywhere = [(name, "vp", rule) for name in names for rule in ("log-snr", "rough")]
    elsewhere = [name for name in names if name in FAMILIES]
    return everywhere + [
        (name, process, "warped" if process == "edm" else "rough")
        for name in elsewhere
        for process in LINEAR
        if process != "vp"
    ]


@pytest.mark.parametrize(("name", "process", "rule"), cases(DETERMINISTIC))
def test_order_on_a_gaussian(name: str, process: str, rule: str) -> None:
    """Error against the closed form of the probability flow."""
    measured = measure_order(ALL[name], LINEAR[process], rule=RULES[rule], steps=STEPS)
    assert measured.order > ALL[name].order - 0.15, measured


@pytest.mark.parametrize(("process", "rule"), [("vp", "log-snr"), ("edm", "warped"), ("flow", "rough")])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_a_mixture(name: str, process: str, rule: str) -> None:
    """Error against a tight reference by another code, in other coordinates."""
    measured = measure_order(ALL[name], LINEAR[process], oracle=MIXTURE, rule=RULES[rule], steps=STEPS)
    assert measured.order > ALL[name].order - 0.15, measured


@pytest.mark.parametrize(("name", "process", "rule"), cases(WEAK))
def test_weak_order_by_impulse_response(name: str, process: str, rule: str) -> None:
    """Exact output mean and variance on Gaussian data, without Monte Carlo."""
    measured = measure_weak_order(ALL[name], LINEAR[process], rule=RULES[rule], steps=(64, 128, 256))
    weak_order = ALL[name].weak_order
    assert weak_order is not None
    assert measured.order > weak_order - 0.15, measured


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if ALL[name].order > 1])
def test_a_claim_is_not_modest(name: str) -> None:
    """The claimed order is not below what is measured on a mixture, where nothing cancels by chance."""
    measured = measure_order(ALL[name], LINEAR["vp"], oracle=MIXTURE, rule=RULES["rough"], steps=(160, 320, 640))
    assert measured.order < ALL[name].order + 0.5 or not math.isfinite(measured.order), measured
