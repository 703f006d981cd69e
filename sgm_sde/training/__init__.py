"""Parts for training a score network: losses, distributions of the training time, a moving average, data.

A training loop stays the user's own: `benchmarks/train_images.py` is one.
"""

from sgm_sde.data.images import Images, load_images
from sgm_sde.training.ema import EMA
from sgm_sde.training.losses import (
    EDM,
    WEIGHTINGS,
    MinSNR,
    PosteriorMean,
    Weighting,
    denoising_score_matching,
    score_matching,
)
from sgm_sde.training.times import Importance, LogNormal, Table, Times, Uniform

__all__ = [
    "EDM",
    "EMA",
    "WEIGHTINGS",
    "Images",
    "Importance",
    "LogNormal",
    "MinSNR",
    "PosteriorMean",
    "Table",
    "Times",
    "Uniform",
    "Weighting",
    "denoising_score_matching",
    "load_images",
    "score_matching",
]
