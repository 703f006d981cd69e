"""Comparison of a network with data: whether it predicts what it was taken for."""

from sgm_sde.evaluation.score_check.check import check_score
from sgm_sde.evaluation.score_check.result import ScoreCheck, ScoreCheckWarning

__all__ = ["ScoreCheck", "ScoreCheckWarning", "check_score"]
