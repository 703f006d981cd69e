"""SDE and ODE solvers for score-based generative models.

Time runs from data at t = 0 to noise at t = T; grids decrease. A score is `score_fn(x, t, **kwargs)` with x of
shape (B, *) and t of shape (B,).

Examples:
    >>> import sgm_sde as sg, torch
    >>> sde = sg.VPSDE()
    >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1).score(sde)
    >>> x = sg.sample(score, sde, shape=(256, 1), solver="dpm++2m", nfe=20, seed=0).x
    >>> bool((x.abs() > 0.5).all())
    True
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sgm_sde import _start as _start  # before all others
from sgm_sde import adapters as adapters
from sgm_sde import grids as grids
from sgm_sde import inverse as inverse
from sgm_sde import likelihood as likelihood
from sgm_sde import processes as processes
from sgm_sde import schemes as schemes
from sgm_sde import scores as scores
from sgm_sde._utils.checks import did_you_mean as _did_you_mean
from sgm_sde._version import __version__
from sgm_sde.calibration import Calibration, calibrate
from sgm_sde.engine.program import Program
from sgm_sde.grids import Grid
from sgm_sde.identity import from_spec, spec
from sgm_sde.likelihood import LogProbResult, bits_per_dim, decode, elbo, encode, log_prob
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
    RectifiedFlowSDE,
    SubVPSDE,
)
from sgm_sde.processes import presets as presets
from sgm_sde.references import citation
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.options import Execution, Record
from sgm_sde.sampling.results import SampleResult
from sgm_sde.sampling.sampler import sample
from sgm_sde.sampling.trials import pilot
from sgm_sde.schemes import (
    DDIM,
    DEIS,
    Adaptive,
    AdaptiveSolver,
    Ancestral,
    Corrector,
    DPMSolver,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Restart,
    ReverseDiffusion,
    RungeKutta,
    SASolver,
    Solver,
    Tableau,
    UniPC,
    solvers,
)
from sgm_sde.schemes import tableaus as tableaus
from sgm_sde.scores import PerSample, Score, Shared, from_denoiser, from_flow, from_noise, from_score, from_v
from sgm_sde.scores import guidance as guidance
from sgm_sde.scores import oracles as oracles
from sgm_sde.scores import time_labels as time_labels
from sgm_sde.zoo.models import load_model

# Modules and functions that are imported when asked for: they need more than sampling does, or are slow to import.
_LATER = {
    "bench": "evaluation.bench",
    "calibration": "calibration",
    "cli": "cli",
    "data": "data",
    "defaults": "sampling.defaults",
    "demo": "evaluation.demo",
    "diagnosis": "sampling.diagnosis",
    "distributed": "runs.distributed",
    "engine": "engine",
    "evaluation": "evaluation",
    "latent": "latent",
    "metrics": "evaluation.metrics",
    "models": "zoo.models",
    "nn": "nn",
    "options": "sampling.options",
    "pictures": "runs.pictures",
    "references": "references",
    "results": "sampling.results",
    "runs": "runs",
    "sampling": "sampling",
    "stepping": "sampling.stepping",
    "store": "runs.store",
    "team": "runs.team",
    "testing": "testing",
    "training": "training",
    "trials": "sampling.trials",
    "zoo": "zoo",
}

# What others call it, by its first letters in small ones: names that look like another of ours would lead astray.
_CALLED_ELSEWHERE = {
    "from_eps": "'from_noise', for a network that predicts the noise",
    "from_x0": "'from_denoiser', for a network that predicts the data",
    "from_x_0": "'from_denoiser', for a network that predicts the data",
    "from_data": "'from_denoiser', for a network that predicts the data",
    "from_vel": "'from_flow', for the velocity of a flow, or 'from_v', for v-prediction",
    "from_v_": "'from_v'",
    "flowmatching": "'RectifiedFlowSDE'",
    "classifierfree": "'guidance.ClassifierFree'",
    "cfg": "'guidance.ClassifierFree'",
    "bpd": "'bits_per_dim'",
    "nll": "'log_prob', or of integers 'bits_per_dim'",
}

_FUNCTIONS_LATER = {"save_grid": "runs.pictures"}

if TYPE_CHECKING:
    from sgm_sde import calibration as calibration
    from sgm_sde import cli as cli
    from sgm_sde import data as data
    from sgm_sde import engine as engine
    from sgm_sde import evaluation as evaluation
    from sgm_sde import latent as latent
    from sgm_sde import nn as nn
    from sgm_sde import references as references
    from sgm_sde import runs as runs
    from sgm_sde import sampling as sampling
    from sgm_sde import testing as testing
    from sgm_sde import training as training
    from sgm_sde import zoo as zoo
    from sgm_sde.evaluation import bench as bench
    from sgm_sde.evaluation import demo as demo
    from sgm_sde.evaluation import metrics as metrics
    from sgm_sde.runs import distributed as distributed
    from sgm_sde.runs import pictures as pictures
    from sgm_sde.runs import store as store
    from sgm_sde.runs import team as team
    from sgm_sde.runs.pictures import save_grid
    from sgm_sde.sampling import defaults as defaults
    from sgm_sde.sampling import diagnosis as diagnosis
    from sgm_sde.sampling import options as options
    from sgm_sde.sampling import results as results
    from sgm_sde.sampling import stepping as stepping
    from sgm_sde.sampling import trials as trials
    from sgm_sde.zoo import models as models
else:

    def __getattr__(name: str) -> object:
        if name in _LATER:
            return import_module(f"sgm_sde.{_LATER[name]}")
        if name in _FUNCTIONS_LATER:
            return getattr(import_module(f"sgm_sde.{_FUNCTIONS_LATER[name]}"), name)
        raise AttributeError(f"module 'sgm_sde' has no attribute {name!r}{_near(name)}")

    def _is_ours(value: object) -> bool:
        return str(getattr(value, "__module__", "")).startswith("sgm_sde")

    def _near(name: str) -> str:
        """The place of a name that is in a module, or names that are similar, as the end of an error message."""
        if name.startswith("_"):
            return ""
        places = [
            f"sg.{module}.{name}"
            for module, value in globals().items()
            if not module.startswith("_") and _is_ours(getattr(value, name, None))
        ]
        if places:
            return f"; it is {places[0]}"
        for known, words in _CALLED_ELSEWHERE.items():
            if name.lower().startswith(known):
                return f"; did you mean {words}?"
        return _did_you_mean(name, __dir__())


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_FUNCTIONS_LATER} - {"TYPE_CHECKING", "import_module"})


__all__ = [
    "CLD",
    "DDIM",
    "DEIS",
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "Adaptive",
    "AdaptiveSolver",
    "Ancestral",
    "Calibration",
    "Corrector",
    "CosineVPSDE",
    "DPMSolver",
    "DPMSolverPP",
    "DiscreteVESDE",
    "DiscreteVPSDE",
    "EulerMaruyama",
    "Execution",
    "Grid",
    "Heun",
    "Langevin",
    "LinearSDE",
    "LogProbResult",
    "PerSample",
    "PredictorCorrector",
    "Program",
    "Record",
    "RectifiedFlowSDE",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "SASolver",
    "SampleResult",
    "Score",
    "Setting",
    "Shared",
    "Solver",
    "SubVPSDE",
    "Tableau",
    "UniPC",
    "__version__",
    "bits_per_dim",
    "calibrate",
    "citation",
    "decode",
    "elbo",
    "encode",
    "from_denoiser",
    "from_flow",
    "from_noise",
    "from_score",
    "from_spec",
    "from_v",
    "load_model",
    "log_prob",
    "pilot",
    "sample",
    "save_grid",
    "solvers",
    "spec",
]
