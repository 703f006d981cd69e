"""The solvers of the literature by their names: cases of the exponential integrators, and wrappers."""

from sgm_sde.schemes.families.adams import DEIS, IPNDM, LMS, RectifiedAdams
from sgm_sde.schemes.families.dpm_solver import DPMSolver, DPMSolverPP
from sgm_sde.schemes.families.pndm import ADAMS, PNDM
from sgm_sde.schemes.families.rosenbrock import Rosenbrock
from sgm_sde.schemes.families.stochastic import ERSDE, SEEDS, SASolver
from sgm_sde.schemes.families.unipc import UniC, UniPC
from sgm_sde.schemes.families.wrappers import AncestralNoise, Restart

__all__ = [
    "ADAMS",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "LMS",
    "PNDM",
    "SEEDS",
    "AncestralNoise",
    "DPMSolver",
    "DPMSolverPP",
    "RectifiedAdams",
    "Restart",
    "Rosenbrock",
    "SASolver",
    "UniC",
    "UniPC",
]
