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


@pytest.mark.parametrize("target", PAIRS, ids=str)
def test_predictions_are_combinations_of_data_and_noise(target: tuple[str, float, float]) -> None:
    """The table of `sgm_sde.processes.predictions` with numbers put in."""
    prediction, eta, sigma_data = target
    assert weights(prediction, KERNEL, eta, sigma_data) == pytest.approx(PAIRS[target], rel=1e-14)


@pytest.mark.parametrize("prediction, pair", [("flow", (-1, 0.75)), ("drift", (-1, 0.75)), ("v", (-0.8, 0.6))])
def test_predictions_are_without_noise_and_of_unit_scale_by_default(prediction: str, pair: tuple[float, float]) -> None:
    assert weights(prediction, KERNEL) == pair


@pytest.mark.parametrize("target", PAIRS, ids=str)
@pytest.mark.parametrize("source", ["data", "noise", "score", "v", "flow", "rectified", "drift"])
def test_any_prediction_gives_any_other(source: str, target: tuple[str, float, float]) -> None:
    """From the output a D + b e at x = alpha D + sigma e, for two choices of (D, e)."""
    (a_r, b_r), (a_p, b_p) = PAIRS[source, 0.0, 1.0], PAIRS[target]
    prediction, eta, sigma_data = target
    c_x, c_r = convert(source, prediction, KERNEL, eta, sigma_data)
    on_data, on_noise = c_x * 0.6 + c_r * a_r, c_x * 0.8 + c_r * b_r
    assert (on_data, on_noise) == pytest.approx((a_p, b_p), abs=1e-13)


@pytest.mark.parametrize("source", ["data", "noise", "score", "v", "flow"])
def test_a_scaled_state_has_coefficients_of_its_own(source: str) -> None:
    """z = x / 1.4 has alpha and sigma of the straight path; what it is multiplied with is 1.4 times as much."""
    c_x, c_r = convert(source, "rectified", KERNEL)
    expected = (1.4 * c_x, c_r)
    assert convert(source, "rectified", KERNEL, state=(0.6 / 1.4, 0.8 / 1.4)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("prediction", ["data", "noise", "score", "v", "flow", "rectified", "drift"])
def test_the_same_prediction_is_left_alone(prediction: str) -> None:
    assert convert(prediction, prediction, KERNEL) == (0.0, 1.0)


def test_the_same_prediction_in_other_units_is_another() -> None:
    """A velocity and a drift with noise; the same is left alone where it would divide by zero, too."""
    silent = MarginalValues(alpha=0.0, sigma=1.0, d_alpha=-1.0, d_sigma=0.0)
    assert convert("noise", "noise", silent) == (0.0, 1.0)
    assert convert("drift", "drift", KERNEL, 1.0) != (0.0, 1.0)
    assert convert("v", "v", KERNEL, 0.0, 0.5) != (0.0, 1.0)
    with pytest.raises(ZeroDivisionError):
        convert("noise", "data", silent)
    with pytest.raises(
        ValueError, match="unknown prediction 'x'; known: data, noise, score, v, flow, rectified, drift"
    ):
        weights("x", KERNEL)
