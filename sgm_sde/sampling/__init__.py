"""Samples from a score and a process: the call, its options and results, and which solver and grid it uses."""

from sgm_sde.engine.status import Status
from sgm_sde.sampling.diagnosis import ImplausibleWarning
from sgm_sde.sampling.options import Execution, Record, StepInfo
from sgm_sde.sampling.planning import plan
from sgm_sde.sampling.results import AdaptiveStats, SampleResult
from sgm_sde.sampling.sampler import sample
from sgm_sde.sampling.statuses import NonFiniteWarning, UnfinishedWarning

__all__ = [
    "AdaptiveStats",
    "Execution",
    "ImplausibleWarning",
    "NonFiniteWarning",
    "Record",
    "SampleResult",
    "Status",
    "StepInfo",
    "UnfinishedWarning",
    "plan",
    "sample",
]
