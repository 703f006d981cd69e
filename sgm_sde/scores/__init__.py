"""Scores: what networks predict, and exact scores of known densities."""

from sgm_sde.scores import guidance, oracles, time_labels
from sgm_sde.scores.score import Score, from_denoiser, from_flow, from_noise, from_score, from_velocity

__all__ = [
    "Score",
    "from_denoiser",
    "from_flow",
    "from_noise",
    "from_score",
    "from_velocity",
    "guidance",
    "oracles",
    "time_labels",
]
