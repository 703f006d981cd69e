"""Predictions."""

from __future__ import annotations

import pytest

from sgm_sde.processes.predictions import MarginalValues, convert, weights

KERNEL = MarginalValues(alpha=0.6, sigma=0.8, d_alpha=-1.0, d_sigma=0.75)


PAIRS: dict[tuple[str, float, float], tuple[float, float]] = {  # (prediction, eta, sigma_data): (a, b)
    ("data", 0.0, 1.0): (1, 0),
    ("noise", 0.0, 1.0): (0, 1),
    ("score", 0.0, 1.0): (0, -1.25),
    ("v", 0.0, 1.0): (-0.8, 0.6),
    ("v", 0.0, 0.5): (-1.6, 0.3),
    ("rectified", 0.0, 1.0): (-1, 1),
    ("flow", 0.0, 1.0): (-1, 0.75),
    ("flow", 2.0, 1.0): (-1, 0.75),
    ("drift", 0.0, 1.0): (-1, 0.75),
    ("drift", 1.0, 1.0): (-1, 2 * 0.75 + 0.8 / 0.6),
    ("drift", 2.0, 1.0): (-1, 5 * 0.75 + 4 * 0.8 / 0.6),
}


def test_predictions_are_combinations_of_data_and_noise() -> None:
    """The table of `sgm_sde.processes.predictions` with numbers put in."""
    for (prediction, eta, sigma_data), pair in PAIRS.items():
        assert weights(prediction, KERNEL, eta, sigma_data) == pytest.approx(pair, rel=1e-14), prediction
    for prediction in ("flow", "drift"):  # eta = 0 by default
        assert weights(prediction, KERNEL) == (-1, 0.75)
    assert weights("v", KERNEL) == (-0.8, 0.6)


@pytest.mark.parametrize("source", ["data", "noise", "score", "v", "flow", "rectified", "drift"])
def test_any_prediction_gives_any_other(source: str) -> None:
    """From the output a D + b e at x = alpha D + sigma e, for two choices of (D, e)."""
    a_r, b_r = PAIRS[source, 0.0, 1.0]
    for target, (a_p, b_p) in PAIRS.items():
        c_x, c_r = convert(source, target[0], KERNEL, *target[1:])
        for D, e in ((1.0, 0.0), (0.0, 1.0)):
            got = c_x * (0.6 * D + 0.8 * e) + c_r * (a_r * D + b_r * e)
            assert got == pytest.approx(a_p * D + b_p * e, abs=1e-13), target


def test_the_same_prediction_is_left_alone() -> None:
    """Where it would divide by zero, too; a velocity in other units and a drift with noise are not the same."""
    silent = MarginalValues(alpha=0.0, sigma=1.0, d_alpha=-1.0, d_sigma=0.0)
    assert convert("noise", "noise", silent) == (0.0, 1.0)
    for prediction in ("data", "noise", "score", "v", "flow", "rectified"):
        assert convert(prediction, prediction, KERNEL) == (0.0, 1.0)
    assert convert("drift", "drift", KERNEL) == (0.0, 1.0)
    assert convert("drift", "drift", KERNEL, 1.0) != (0.0, 1.0)
    assert convert("v", "v", KERNEL, 0.0, 0.5) != (0.0, 1.0)
    with pytest.raises(ZeroDivisionError):
        convert("noise", "data", silent)
    with pytest.raises(
        ValueError, match="unknown prediction 'x'; known: data, noise, score, v, flow, rectified, drift"
    ):
        weights("x", KERNEL)
