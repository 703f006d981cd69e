"""Likelihoods that can be quoted: densities, bits/dim, bounds and exact codes, each with how it was obtained."""

from sgm_sde.likelihood.bounds import LearnedVariance, ddpm_bound, elbo
from sgm_sde.likelihood.checks import LikelihoodWarning
from sgm_sde.likelihood.dequantisation import Dequantisation, bits_per_dim
from sgm_sde.likelihood.encoding import decode, encode, slerp
from sgm_sde.likelihood.flow import log_prob, pilot_probe_basis
from sgm_sde.likelihood.grid import Stretched
from sgm_sde.likelihood.methods import (
    AdaptiveFlow,
    AdjointFlow,
    Exact,
    FixedGrid,
    Hutchinson,
    ProbePilot,
    ScipyRK45,
)
from sgm_sde.likelihood.results import BitsPerDimResult, BoundResult, FlowResult, LikelihoodProtocol, LogProbResult

__all__ = [
    "AdaptiveFlow",
    "AdjointFlow",
    "BitsPerDimResult",
    "BoundResult",
    "Dequantisation",
    "Exact",
    "FixedGrid",
    "FlowResult",
    "Hutchinson",
    "LearnedVariance",
    "LikelihoodProtocol",
    "LikelihoodWarning",
    "LogProbResult",
    "ProbePilot",
    "ScipyRK45",
    "Stretched",
    "bits_per_dim",
    "ddpm_bound",
    "decode",
    "elbo",
    "encode",
    "log_prob",
    "pilot_probe_basis",
    "slerp",
]
