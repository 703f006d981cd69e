"""Solvers: formulas that compile into programs."""

from sgm_sde.solvers.ancestral import DDIM, Ancestral
from sgm_sde.solvers.base import REGISTRY, Solver, SolverTable, resolve, solvers
from sgm_sde.solvers.correctors import AnnealedLangevin, Corrector, Langevin, PredictorCorrector
from sgm_sde.solvers.euler import EulerMaruyama, ReverseDiffusion
from sgm_sde.solvers.exponential import DPMSolverPP
from sgm_sde.solvers.runge_kutta import EULER, HEUN2, MIDPOINT, RALSTON, RK3, RK4, Heun, RungeKutta, Tableau

REGISTRY.update(
    {
        "euler": lambda: RungeKutta(EULER),
        "midpoint": lambda: RungeKutta(MIDPOINT),
        "heun2": lambda: RungeKutta(HEUN2),
        "ralston": lambda: RungeKutta(RALSTON),
        "rk3": lambda: RungeKutta(RK3),
        "rk4": lambda: RungeKutta(RK4),
        "heun": Heun,
        "ddim": DDIM,
        "dpm++1m": lambda: DPMSolverPP(order=1),
        "dpm++2m": lambda: DPMSolverPP(order=2),
        "euler-maruyama": EulerMaruyama,
        "reverse-diffusion": ReverseDiffusion,
        "ancestral": Ancestral,
        "ddpm": lambda: Ancestral(variance="transition"),
        "edm-sde": lambda: Heun(s_churn=40, s_tmin=0.05, s_tmax=50, s_noise=1.003),
        "annealed-langevin": AnnealedLangevin,
        "pc": lambda: PredictorCorrector(ReverseDiffusion(), Langevin()),
    }
)

__all__ = [
    "DDIM",
    "EULER",
    "HEUN2",
    "MIDPOINT",
    "RALSTON",
    "RK3",
    "RK4",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "DPMSolverPP",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "PredictorCorrector",
    "ReverseDiffusion",
    "RungeKutta",
    "Solver",
    "SolverTable",
    "Tableau",
    "resolve",
    "solvers",
]
