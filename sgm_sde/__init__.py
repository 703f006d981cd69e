"""SDE and ODE solvers for score-based generative models.

Time runs from data at t = 0 to noise at t = T; grids decrease. A score is `score_fn(x, t, **kwargs)` with x of
shape (B, *) and t of shape (B,).

Example:
    >>> import sgm_sde as sg, torch
    >>> sde = sg.VPSDE()
    >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1).score(sde)
    >>> x = sg.sample(score, sde, shape=(256, 1), solver="dpm++2m", nfe=20, seed=0).x
    >>> bool((x.abs() > 0.5).all())
    True
"""

from sgm_sde import grids
from sgm_sde._version import __version__
from sgm_sde.defaults import Setting, default_setting
from sgm_sde.engine.program import Program, Stage
from sgm_sde.engine.reverse import ReverseSDE
from sgm_sde.grids import Grid
from sgm_sde.likelihood import LogProbResult, bits_per_dim, decode, encode, log_prob, slerp
from sgm_sde.models import Model, load_model
from sgm_sde.pilot import PilotResult, pilot
from sgm_sde.processes import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    LinearSDE,
    RectifiedFlowSDE,
    SubVPSDE,
    presets,
)
from sgm_sde.sampling import NonFiniteWarning, SampleResult, Status, StepInfo, sample
from sgm_sde.scores import (
    Score,
    from_denoiser,
    from_flow,
    from_noise,
    from_score,
    from_velocity,
    oracles,
    time_labels,
)
from sgm_sde.solvers import (
    DDIM,
    DEIS,
    ERSDE,
    EULER,
    HEUN2,
    IPNDM,
    LMS,
    MIDPOINT,
    PNDM,
    RALSTON,
    RES,
    RK3,
    RK4,
    SEEDS,
    Ancestral,
    AncestralNoise,
    AnnealedLangevin,
    Corrector,
    DPMSolver,
    DPMSolverPP,
    EulerMaruyama,
    ExponentialAdams,
    ExponentialRungeKutta,
    Heun,
    Langevin,
    PredictorCorrector,
    RectifiedAdams,
    Restart,
    ReverseDiffusion,
    Rosenbrock,
    RungeKutta,
    SASolver,
    Solver,
    Tableau,
    UniC,
    UniPC,
    solvers,
)

__all__ = [
    "DDIM",
    "DEIS",
    "EDMSDE",
    "ERSDE",
    "EULER",
    "HEUN2",
    "IPNDM",
    "LMS",
    "MIDPOINT",
    "PNDM",
    "RALSTON",
    "RES",
    "RK3",
    "RK4",
    "SDE",
    "SEEDS",
    "VESDE",
    "VPSDE",
    "Ancestral",
    "AncestralNoise",
    "AnnealedLangevin",
    "Corrector",
    "CosineVPSDE",
    "DPMSolver",
    "DPMSolverPP",
    "DiscreteVESDE",
    "DiscreteVPSDE",
    "EulerMaruyama",
    "ExponentialAdams",
    "ExponentialRungeKutta",
    "Grid",
    "Heun",
    "Langevin",
    "LinearSDE",
    "LogProbResult",
    "Model",
    "NonFiniteWarning",
    "PilotResult",
    "PredictorCorrector",
    "Program",
    "RectifiedAdams",
    "RectifiedFlowSDE",
    "Restart",
    "ReverseDiffusion",
    "ReverseSDE",
    "Rosenbrock",
    "RungeKutta",
    "SASolver",
    "SampleResult",
    "Score",
    "Setting",
    "Solver",
    "Stage",
    "Status",
    "StepInfo",
    "SubVPSDE",
    "Tableau",
    "UniC",
    "UniPC",
    "__version__",
    "bits_per_dim",
    "decode",
    "default_setting",
    "encode",
    "from_denoiser",
    "from_flow",
    "from_noise",
    "from_score",
    "from_velocity",
    "grids",
    "load_model",
    "log_prob",
    "oracles",
    "pilot",
    "presets",
    "sample",
    "slerp",
    "solvers",
    "time_labels",
]
