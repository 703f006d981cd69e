"""Scores: what networks predict, and exact scores of known densities."""

from sgm_sde.scores import guidance, oracles, time_labels
from sgm_sde.scores.composition import compose_posteriors
from sgm_sde.scores.conditions import PerSample, Shared
from sgm_sde.scores.joint import from_joint_denoiser, from_velocity_noise, from_velocity_score
from sgm_sde.scores.score import Score, from_denoiser, from_flow, from_noise, from_score, from_v
from sgm_sde.scores.train_mode import TrainModeWarning

__all__ = [
    "PerSample",
    "Score",
    "Shared",
    "TrainModeWarning",
    "compose_posteriors",
    "from_denoiser",
    "from_flow",
    "from_joint_denoiser",
    "from_noise",
    "from_score",
    "from_v",
    "from_velocity_noise",
    "from_velocity_score",
    "guidance",
    "oracles",
    "time_labels",
]
