"""Small trained networks, for the demo and the tests."""

from sgm_sde.nn.digits import (
    DigitsClassifier,
    DigitsDenoiser,
    digits_data,
    load_digits_classifier,
    load_digits_denoiser,
)

__all__ = [
    "DigitsClassifier",
    "DigitsDenoiser",
    "digits_data",
    "load_digits_classifier",
    "load_digits_denoiser",
]
