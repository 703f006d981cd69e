"""Likelihoods that can be quoted: densities, bits/dim, bounds and exact codes, each with how it was obtained."""

from sgm_sde.likelihood.bounds import LearnedVariance, ddpm_bound, elbo
from sgm_sde.likelihood.checks import LikelihoodWarning
from sgm_sde.likelihood.dequantisation import BitsPerDimWarning, Dequantisation, bits_per_dim
from sgm_sde.likelihood.encoding import decode, encode, slerp
from sgm_sde.likelihood.flow import choose_probe_basis, log_prob
from sgm_sde.likelihood.grid import Stretched
from sgm_sde.likelihood.joint import joint_log_prob, velocity_bound
from sgm_sde.likelihood.methods import (
    AdaptiveFlow,
    AdjointFlow,
    Exact,
    FixedGrid,
    Hutchinson,
    ProbeTrial,
    ScipyRK45,
)
from sgm_sde.likelihood.posterior import ModeResult, PosteriorResult, find_modes, log_posterior
from sgm_sde.likelihood.results import BitsPerDimResult, BoundResult, FlowResult, LikelihoodProtocol, LogProbResult

__all__ = [
    "AdaptiveFlow",
    "AdjointFlow",
    "BitsPerDimResult",
    "BitsPerDimWarning",
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
    "ModeResult",
    "PosteriorResult",
    "ProbeTrial",
    "ScipyRK45",
    "Stretched",
    "bits_per_dim",
    "choose_probe_basis",
    "ddpm_bound",
    "decode",
    "elbo",
    "encode",
    "find_modes",
    "joint_log_prob",
    "log_posterior",
    "log_prob",
    "slerp",
    "velocity_bound",
]
