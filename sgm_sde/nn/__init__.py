"""Small trained networks, for the demo and the tests."""

from sgm_sde.nn.digits import (
    DigitsClassifier,
    DigitsDenoiser,
    DigitsVelocity,
    digits_data,
    load_digits_classifier,
    load_digits_denoiser,
    load_digits_velocity,
)

__all__ = [
    "DigitsClassifier",
    "DigitsDenoiser",
    "DigitsVelocity",
    "digits_data",
    "load_digits_classifier",
    "load_digits_denoiser",
    "load_digits_velocity",
]
