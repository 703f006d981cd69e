"""Distances between sets of samples."""

from sgm_sde.metrics.frechet import FrechetResult, frechet_distance, gaussian_frechet

__all__ = ["FrechetResult", "frechet_distance", "gaussian_frechet"]
