"""Small networks: a U-Net with EDM's preconditioning, and trained ones for the demo and the tests."""

from sgm_sde.nn.digits import (
    DigitsClassifier,
    DigitsDenoiser,
    DigitsVelocity,
    digits_data,
    load_digits_classifier,
    load_digits_denoiser,
    load_digits_velocity,
)
from sgm_sde.nn.fashion import (
    FashionClassifier,
    FeatureStatistics,
    load_fashion_classifier,
    load_fashion_denoiser,
    load_fashion_statistics,
)
from sgm_sde.nn.unet import EDMPreconditioned, UNet, edm_preconditioning

__all__ = [
    "DigitsClassifier",
    "DigitsDenoiser",
    "DigitsVelocity",
    "EDMPreconditioned",
    "FashionClassifier",
    "FeatureStatistics",
    "UNet",
    "digits_data",
    "edm_preconditioning",
    "load_digits_classifier",
    "load_digits_denoiser",
    "load_digits_velocity",
    "load_fashion_classifier",
    "load_fashion_denoiser",
    "load_fashion_statistics",
]
