"""Checks to run on a process, a network or a solver of your own: the ones this library runs on its own."""

from sgm_sde.evaluation.score_check import ScoreCheck, ScoreCheckWarning, check_score
from sgm_sde.processes.base import CheckError
from sgm_sde.testing.mixtures import measure_weak_order_on_mixture
from sgm_sde.testing.orders import OrderMeasurement, measure_order, measure_weak_order, output_law
from sgm_sde.testing.problems import active_start, default_oracle, flow_reference, smooth_end
from sgm_sde.testing.processes import check_sde
from sgm_sde.testing.uneven import rough, warped

__all__ = [
    "CheckError",
    "OrderMeasurement",
    "ScoreCheck",
    "ScoreCheckWarning",
    "active_start",
    "check_score",
    "check_sde",
    "default_oracle",
    "flow_reference",
    "measure_order",
    "measure_weak_order",
    "measure_weak_order_on_mixture",
    "output_law",
    "rough",
    "smooth_end",
    "warped",
]
