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
from sgm_sde.engine.program import Program, Stage
from sgm_sde.engine.reverse import ReverseSDE
from sgm_sde.grids import Grid
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
    EULER,
    HEUN2,
    MIDPOINT,
    RALSTON,
    RK3,
    RK4,
    Ancestral,
    AnnealedLangevin,
    Corrector,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta,
    Solver,
    Tableau,
    solvers,
)

__all__ = [
    "DDIM",
    "EDMSDE",
    "EULER",
    "HEUN2",
    "MIDPOINT",
    "RALSTON",
    "RK3",
    "RK4",
    "SDE",
    "VESDE",
    "VPSDE",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "CosineVPSDE",
    "DPMSolverPP",
    "DiscreteVESDE",
    "DiscreteVPSDE",
    "EulerMaruyama",
    "Grid",
    "Heun",
    "Langevin",
    "LinearSDE",
    "NonFiniteWarning",
    "PredictorCorrector",
    "Program",
    "RectifiedFlowSDE",
    "ReverseDiffusion",
    "ReverseSDE",
    "RungeKutta",
    "SampleResult",
    "Score",
    "Solver",
    "Stage",
    "Status",
    "StepInfo",
    "SubVPSDE",
    "Tableau",
    "__version__",
    "from_denoiser",
    "from_flow",
    "from_noise",
    "from_score",
    "from_velocity",
    "grids",
    "oracles",
    "presets",
    "sample",
    "solvers",
    "time_labels",
]
