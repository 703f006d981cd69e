"""Distances between sets of samples."""

from sgm_sde.evaluation.metrics.frechet import FrechetResult, frechet_distance, gaussian_frechet
from sgm_sde.evaluation.metrics.kernel import KernelResult, kernel_distance
from sgm_sde.evaluation.metrics.neighbours import PRDCResult, prdc
from sgm_sde.evaluation.metrics.sliced import SlicedResult, sliced_wasserstein

__all__ = [
    "FrechetResult",
    "KernelResult",
    "PRDCResult",
    "SlicedResult",
    "frechet_distance",
    "gaussian_frechet",
    "kernel_distance",
    "prdc",
    "sliced_wasserstein",
]
