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

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from sgm_sde import adapters, grids, inverse, tableaus
from sgm_sde._version import __version__
from sgm_sde.calibration import Calibrated, Calibration, Calibrations, CalibrationWarning, calibrate, load_calibration
from sgm_sde.defaults import Setting, default_setting
from sgm_sde.diagnosis import ImplausibleWarning, TrainModeWarning
from sgm_sde.engine.program import Program, Stage
from sgm_sde.engine.reverse import ReverseSDE
from sgm_sde.grids import Grid
from sgm_sde.identity import from_spec, spec
from sgm_sde.latent import LatentBound, LatentScoreModel, MixedNoise
from sgm_sde.likelihood import LogProbResult, bits_per_dim, ddpm_bound, decode, elbo, encode, log_prob, slerp
from sgm_sde.likelihood.joint import joint_log_prob, velocity_bound
from sgm_sde.models import Model, load_model
from sgm_sde.options import Execution, Record, StepInfo
from sgm_sde.parallel import ParallelResult, sample_in_parallel
from sgm_sde.pilot import PilotResult, PilotWarning, pilot
from sgm_sde.processes import (
    CLD,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    LinearSDE,
    MatrixSDE,
    RectifiedFlowSDE,
    SubVPSDE,
    hybrid_score_matching,
    presets,
)
from sgm_sde.results import SampleResult, Status, StepControl
from sgm_sde.sampling import NonFiniteWarning, UnfinishedWarning, sample
from sgm_sde.scores import (
    PerSample,
    Score,
    Shared,
    from_denoiser,
    from_flow,
    from_joint_denoiser,
    from_noise,
    from_score,
    from_velocity,
    from_velocity_noise,
    from_velocity_score,
    guidance,
    oracles,
    time_labels,
)
from sgm_sde.solvers import (
    BOSH3,
    DDIM,
    DEIS,
    DOP853,
    DOPRI5,
    ERSDE,
    EULER,
    GDDIM,
    GGF,
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
    SSCS,
    TCD,
    TSIT5,
    Adaptive,
    AdaptiveSolver,
    Ancestral,
    AncestralNoise,
    AnnealedLangevin,
    BatchCoupledWarning,
    Consistency,
    Corrector,
    DPMSolver,
    DPMSolverPP,
    EmbeddedTableau,
    EulerMaruyama,
    ExponentialAdams,
    ExponentialPair,
    ExponentialRungeKutta,
    Heun,
    Langevin,
    LangevinNormWarning,
    PredictorCorrector,
    RectifiedAdams,
    Restart,
    ReverseDiffusion,
    Rosenbrock,
    RungeKutta,
    SASolver,
    SciPy,
    Solver,
    Tableau,
    TorchDiffEq,
    TorchSDE,
    UniC,
    UniPC,
    VelocityLangevin,
    solvers,
)
from sgm_sde.stepping import Stepper, stepper

# Modules that are imported when they are asked for: they need more than sampling does, or are slow to import.
_LATER = ("bench", "cli", "demo", "distributed", "metrics", "nn", "pictures", "store", "team", "testing", "training")

if TYPE_CHECKING:
    from sgm_sde import bench as bench
    from sgm_sde import cli as cli
    from sgm_sde import demo as demo
    from sgm_sde import distributed as distributed
    from sgm_sde import metrics as metrics
    from sgm_sde import nn as nn
    from sgm_sde import pictures as pictures
    from sgm_sde import store as store
    from sgm_sde import team as team
    from sgm_sde import testing as testing
    from sgm_sde import training as training
else:

    def __getattr__(name: str) -> ModuleType:
        if name in _LATER:
            return import_module(f"sgm_sde.{name}")
        raise AttributeError(f"module 'sgm_sde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "BOSH3",
    "CLD",
    "DDIM",
    "DEIS",
    "DOP853",
    "DOPRI5",
    "EDMSDE",
    "ERSDE",
    "EULER",
    "GDDIM",
    "GGF",
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
    "SSCS",
    "TCD",
    "TSIT5",
    "VESDE",
    "VPSDE",
    "Adaptive",
    "AdaptiveSolver",
    "Ancestral",
    "AncestralNoise",
    "AnnealedLangevin",
    "BatchCoupledWarning",
    "Calibrated",
    "Calibration",
    "CalibrationWarning",
    "Calibrations",
    "Consistency",
    "Corrector",
    "CosineVPSDE",
    "DPMSolver",
    "DPMSolverPP",
    "DiscreteVESDE",
    "DiscreteVPSDE",
    "EmbeddedTableau",
    "EulerMaruyama",
    "Execution",
    "ExponentialAdams",
    "ExponentialPair",
    "ExponentialRungeKutta",
    "Grid",
    "Heun",
    "ImplausibleWarning",
    "Langevin",
    "LangevinNormWarning",
    "LatentBound",
    "LatentScoreModel",
    "LinearSDE",
    "LogProbResult",
    "MatrixSDE",
    "MixedNoise",
    "Model",
    "NonFiniteWarning",
    "ParallelResult",
    "PerSample",
    "PilotResult",
    "PilotWarning",
    "PredictorCorrector",
    "Program",
    "Record",
    "RectifiedAdams",
    "RectifiedFlowSDE",
    "Restart",
    "ReverseDiffusion",
    "ReverseSDE",
    "Rosenbrock",
    "RungeKutta",
    "SASolver",
    "SampleResult",
    "SciPy",
    "Score",
    "Setting",
    "Shared",
    "Solver",
    "Stage",
    "Status",
    "StepControl",
    "StepInfo",
    "Stepper",
    "SubVPSDE",
    "Tableau",
    "TorchDiffEq",
    "TorchSDE",
    "TrainModeWarning",
    "UnfinishedWarning",
    "UniC",
    "UniPC",
    "VelocityLangevin",
    "__version__",
    "adapters",
    "bits_per_dim",
    "calibrate",
    "ddpm_bound",
    "decode",
    "default_setting",
    "elbo",
    "encode",
    "from_denoiser",
    "from_flow",
    "from_joint_denoiser",
    "from_noise",
    "from_score",
    "from_spec",
    "from_velocity",
    "from_velocity_noise",
    "from_velocity_score",
    "grids",
    "guidance",
    "hybrid_score_matching",
    "inverse",
    "joint_log_prob",
    "load_calibration",
    "load_model",
    "log_prob",
    "oracles",
    "pilot",
    "presets",
    "sample",
    "sample_in_parallel",
    "slerp",
    "solvers",
    "spec",
    "stepper",
    "tableaus",
    "time_labels",
    "velocity_bound",
]
