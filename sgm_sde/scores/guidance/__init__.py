r"""Guidance: scores made of scores, for every solver, corrector and grid.

Each of these takes a `Score` and is one itself, in the prediction of the score it wraps, so they nest. At a given x
every prediction (noise, data, v, flow, score) is an affine function of the denoised data D, so a combination whose
weights sum to 1 is the same in all of them, and nothing is converted.

One convention for scales: `scale` multiplies the difference that guidance makes, 1 is plain conditional sampling, and 0
is none of it. Others in use:

| where                               | formula                                  | here                |
|-------------------------------------|------------------------------------------|---------------------|
| here, Imagen, EDM2, DPM-Solver      | $D_\emptyset + w (D_c - D_\emptyset)$    | `scale` = w         |
| Ho & Salimans, azula                | $(1 + \omega) D_c - \omega D_\emptyset$  | `scale` = 1 + omega |
| diffusers' Stable Diffusion         | as here, but w <= 1 turns guidance off   | `scale` = max(w, 1) |

A result's `nfe` counts calls of the guided score, its `rows` what the networks have seen in them.
"""

from sgm_sde.scores.guidance.around import APG, Rescaled, Thresholded, Weakened, ZeroStar
from sgm_sde.scores.guidance.base import Extrapolation, GuidedScore
from sgm_sde.scores.guidance.base import Interval as Interval
from sgm_sde.scores.guidance.base import Scale as Scale
from sgm_sde.scores.guidance.classifier import Classifier, LabelLikelihood, from_classifier
from sgm_sde.scores.guidance.free import Auto, ClassifierFree, cfg_plus_plus

__all__ = [
    "APG",
    "Auto",
    "Classifier",
    "ClassifierFree",
    "Extrapolation",
    "GuidedScore",
    "LabelLikelihood",
    "Rescaled",
    "Thresholded",
    "Weakened",
    "ZeroStar",
    "cfg_plus_plus",
    "from_classifier",
]
