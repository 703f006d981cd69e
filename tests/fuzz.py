# ruff: noqa: E501 - a table of calls
"""A seeded fuzzer of the public functions and constructors.

    make fuzz        # python -m tests.fuzz --calls 40000 --seed 2

Each call is a right one with one or two of its arguments replaced by something odd. It may return, or be refused: then
the error is one of ours, a ValueError or TypeError that a line of the package raises. Anything else is counted by kind:
an "internal" error (AttributeError, IndexError, ...), a "foreign" one, in Python's or torch's own words, or a "chained"
one of ours, below the traceback of somebody else's.
"""

from __future__ import annotations

import argparse
import ast
import math
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.distributions import Normal

import sgm_sde as sg
from sgm_sde import likelihood, metrics, nn, testing, training
from sgm_sde.likelihood import AdaptiveFlow, AdjointFlow, Exact, FixedGrid, Hutchinson, ScipyRK45
from sgm_sde.schemes import AdaptiveSolver

PACKAGE = Path(sg.__file__).parent
MODULE = torch.nn.modules.module.__file__
VP = sg.VPSDE()
LAW = sg.oracles.GaussianMixture(torch.tensor([[-0.5, 0.2], [0.4, -0.1]]), 0.3)
SCORE = LAW.score(VP)
X = torch.tensor([[0.1, -0.2], [0.3, 0.4], [0.0, 0.5]])
LEVELS = torch.tensor([[3, 7], [1, 2]])
MASK = sg.inverse.Mask(torch.tensor([True, False]))
SEEN = sg.inverse.Measurement(MASK, torch.tensor([0.5, 0.0]), 0.1)
EXACT = sg.inverse.Measurement(MASK, torch.tensor([0.5, 0.0]))
NET = torch.nn.Linear(2, 2)
CONFIG = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


CLOUD = torch.linspace(-1, 1, 24).reshape(12, 2).sin()
Z = torch.stack([X, 0.1 * X], 1)
JOINT = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sg.CLD())
IMAGES = sg.oracles.Gaussian(torch.zeros(3, 2, 2), 0.25).score(VP)
NOISE = sg.from_noise(lambda x, t, **kwargs: 0.1 * x, VP)
GUIDED = sg.guidance.Auto(SCORE, NOISE, 2.0)
LATENT = sg.latent.LatentScoreModel(lambda x: Normal(0.5 * x, 0.7), lambda z: Normal(z, 1.0), SCORE, VP)


class Azula:
    """A denoiser as azula's."""

    def schedule(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Alpha and sigma."""
        return 1 - 0.999 * t, 1e-3 + 0.999 * t

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        """The posterior's mean."""
        return SimpleNamespace(mean=0 * x)


def recorded(**options: Any) -> sg.SampleResult:
    """A run of which something is kept."""
    return sg.sample(SCORE, VP, (3, 2), nfe=5, seed=0, record=sg.Record(**options))


def saved(x: torch.Tensor, **options: Any) -> Path:
    """A picture in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return sg.save_grid(x, Path(folder) / "grid.png", **options)


def executed(**options: Any) -> sg.SampleResult:
    """A run in pieces."""
    return sg.sample(SCORE, VP, (3, 2), nfe=5, seed=0, execution=sg.Execution(**options))


def velocity_net(x: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """A network of the last block of a joint state."""
    return 0.1 * x[:, -1]


def net(x: torch.Tensor, t: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """A network that takes anything."""
    return 0.1 * x


def odd(rng: random.Random) -> Any:
    """Something that an argument is probably not."""
    return rng.choice(ODD)()


ODD: Sequence[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -1, lambda: 0, lambda: 1, lambda: 0.5,
    lambda: -0.5, lambda: 2.0, lambda: math.nan, lambda: math.inf, lambda: -math.inf, lambda: 1e300, lambda: 1e-300,
    lambda: 10**400, lambda: 1j, lambda: "x", lambda: "", lambda: "ddim", lambda: b"x", lambda: [], lambda: [1.0],
    lambda: ["a"], lambda: [[1.0], [0.5]], lambda: [1.0, [2.0]], lambda: (), lambda: (1, 2), lambda: (0.5, 0.1),
    lambda: {}, lambda: {"a": 1}, lambda: {"y": torch.zeros(3)}, lambda: {1, 2}, lambda: object(),
    lambda: lambda *a, **k: None, lambda: lambda *a, **k: torch.zeros(7), lambda: torch.tensor(0.5),
    lambda: torch.tensor([0.5, 0.25]), lambda: torch.tensor(math.nan), lambda: torch.zeros(0),
    lambda: torch.zeros(3, 2), lambda: torch.full((3, 2), math.nan), lambda: torch.zeros(2, 3, dtype=torch.int64),
    lambda: torch.zeros(3, 2, dtype=torch.complex64), lambda: torch.ones(3, dtype=torch.bool),
    lambda: np.array([0.5, 0.25]), lambda: np.float64(0.5), lambda: np.int64(3), lambda: Fraction(1, 2),
    lambda: Decimal("0.5"), lambda: int, lambda: sg.VPSDE, lambda: sg.VPSDE(), lambda: sg.CLD(), lambda: sg.DDIM,
    lambda: sg.DDIM(), lambda: SCORE, lambda: SEEN, lambda: torch.float32, lambda: torch.device("cpu"),
    lambda: torch.Generator().manual_seed(0), lambda: range(3), lambda: Path("x"), lambda: sg.grids.LogSNR(),
    lambda: np.array(["a"]), lambda: [None], lambda: torch.nn.Linear(2, 2), lambda: 2**64, lambda: -(2**63),
    lambda: True + 1.5, lambda: -0.0, lambda: np.float32(math.nan), lambda: np.float16(2.0), lambda: np.bool_(True),
    lambda: np.str_("data"), lambda: np.int8(-1), lambda: np.array(2), lambda: np.array([]), lambda: np.array([[1j]]),
    lambda: np.array([[0.1, -0.2], [0.3, 0.4]]), lambda: [math.nan, 1.0], lambda: [math.inf], lambda: [10**400],
    lambda: [True, False], lambda: {"a": {"b": [None]}}, lambda: {1: 2}, lambda: {"y": [torch.zeros(3), "x"]},
    lambda: (number for number in (1.0, 0.5)), lambda: iter([]), lambda: frozenset({0.5}), lambda: bytearray(b"12"),
    lambda: torch.tensor(3), lambda: torch.tensor(True), lambda: torch.tensor(1e300, dtype=torch.float64),
    lambda: torch.tensor(1j), lambda: torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64), lambda: torch.zeros(3, 0),
    lambda: torch.zeros(1, 3, 2), lambda: torch.full((2,), math.inf), lambda: torch.zeros(3, 2, dtype=torch.float16),
    lambda: torch.zeros(3, 2, dtype=torch.bfloat16), lambda: torch.zeros(3, 2, requires_grad=True),
    lambda: torch.eye(2).to_sparse(), lambda: torch.zeros(3, 2, dtype=torch.uint8), lambda: torch.full((3, 2), 1e30),
    lambda: torch.int64, lambda: torch.complex64, lambda: torch.device("cuda", 7), lambda: "cuda:7", lambda: "mps",
    lambda: torch.Size([3, 2]), lambda: slice(0, 2), lambda: ..., lambda: NotImplemented, lambda: type, lambda: Exception("x"),
    lambda: sg.guidance, lambda: sg.tableaus.DOPRI5, lambda: sg.tableaus.RK4, lambda: sg.schemes.GGF(), lambda: sg.Langevin(), lambda: MASK,
    lambda: sg.Grid([1.0, 0.1]), lambda: sg.EDMSDE(), lambda: "é\0", lambda: "x" * 10_000, lambda: ["ddim"] * 3,
]  # fmt: skip


# By name: the callable, and arguments of a right call; "*" before a name stands for one that goes by position.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "sample": (sg.sample, {
        "*score_fn": SCORE, "*sde": VP, "shape": (3, 2), "x_T": None, "solver": "dpm++2m", "nfe": 5, "steps": None,
        "grid": "log-snr", "t_start": None, "t_end": None, "seed": 0, "generator": None, "noise": "independent",
        "final": "denoise", "model_kwargs": None, "record": None, "execution": None, "resume": None,
    }),
    "sample adaptive": (sg.sample, {
        "*score_fn": SCORE, "*sde": VP, "shape": (3, 2), "solver": "bosh3", "nfe": 30, "seed": 0, "final": None,
        "t_start": None, "t_end": None, "model_kwargs": None, "grid": None,
    }),
    "log_prob": (sg.log_prob, {
        "*score_fn": SCORE, "*sde": VP, "*x": X, "eps": None, "method": FixedGrid(8), "trace": "hutchinson", "prior": None,
        "decoder": None, "seed": 0, "generator": None, "model_kwargs": None, "batch_size": None,
    }),
    "bits_per_dim": (sg.bits_per_dim, {
        "*score_fn": SCORE, "*sde": VP, "*images": LEVELS, "n_levels": 16, "data_range": (-1.0, 1.0), "repeats": 1,
        "importance": False, "dequantize": "uniform", "seed": 0, "generator": None, "dtype": None, "method": FixedGrid(8), "eps": None,
    }),
    "FixedGrid": (FixedGrid, {"steps": 8, "data_std": 0.5, "atol": 1e-4, "rtol": 0.0}),
    "AdaptiveFlow": (AdaptiveFlow, {"rtol": 1e-5, "atol": 1e-5, "data_std": 0.5}),
    "AdjointFlow": (AdjointFlow, {"rtol": 1e-5, "atol": 1e-5, "data_std": 0.5, "parameters": None}),
    "ScipyRK45": (ScipyRK45, {"rtol": 1e-5, "atol": 1e-5}),
    "Hutchinson": (Hutchinson, {"n_probes": 1, "probe": "rademacher", "basis": "pixel"}),
    "Exact": (Exact, {"chunk": 1}),
    "elbo": (sg.elbo, {
        "*score_fn": SCORE, "*sde": VP, "*x": X, "n_levels": None, "data_range": None, "eps": None, "n_times": 3,
        "times": "log-snr", "n_decodings": 1, "data_std": 0.5, "seed": 0, "generator": None, "dtype": None,
        "model_kwargs": None,
    }),
    "ddpm_bound": (sg.likelihood.ddpm_bound, {
        "*score_fn": net, "*sde": sg.DiscreteVPSDE([0.1, 0.2, 0.3]), "*x": X, "n_levels": None, "data_range": None,
        "variance": "fixed-small", "clip": None, "repeats": 1, "n_decodings": 1, "data_std": 0.5, "seed": 0, "dtype": None,
    }),
    "log_posterior": (likelihood.log_posterior, {
        "*score_fn": NOISE, "*sde": VP, "*theta": X, "*observations": X, "*log_prior": lambda x: -x.square().sum(1),
        "argument": "y", "method": FixedGrid(6), "seed": 0,
    }),
    "find_modes": (likelihood.find_modes, {
        "*log_density": lambda x: -(x - 0.3).square().sum(1), "*x": X, "gtol": 1e-4, "max_iterations": 20,
    }),
    "encode": (sg.encode, {
        "*score_fn": SCORE, "*sde": VP, "*x": X, "eps": None, "method": FixedGrid(6), "model_kwargs": None,
    }),
    "decode": (sg.decode, {"*score_fn": SCORE, "*sde": VP, "*z": X, "eps": None, "method": FixedGrid(6), "log_prob": True, "trace": None, "seed": 0}),
    "slerp": (sg.likelihood.slerp, {"*a": X, "*b": X.flip(0), "*weight": 0.5}),
    "pilot": (sg.pilot, {"*score_fn": SCORE, "*sde": VP, "*shape": (3, 2), "nfe": 4, "seed": 0, "model_kwargs": None}),
    "calibrate": (sg.calibrate, {
        "*score_fn": SCORE, "*sde": VP, "*shape": (4, 2), "nfe": 2, "held_out": 4, "seed": 0, "model_kwargs": None,
        "batch_size": 64, "reference_nfe": 8, "time_limit": None,
    }),
    "default_setting": (sg.defaults.default_setting, {"*sde": VP, "nfe": 10, "t_start": None, "t_end": None, "data_std": 1.0}),
    "VPSDE": (sg.VPSDE, {"beta_min": 0.1, "beta_max": 20.0, "T": 1.0, "eps": 1e-3}),
    "SubVPSDE": (sg.SubVPSDE, {"beta_min": 0.1, "beta_max": 20.0, "T": 1.0, "eps": 1e-3}),
    "CosineVPSDE": (sg.CosineVPSDE, {"T": 0.99, "eps": 1e-3}),
    "VESDE": (sg.VESDE, {"sigma_min": 0.01, "sigma_max": 50.0, "T": 1.0, "eps": 1e-5}),
    "EDMSDE": (sg.EDMSDE, {"sigma_min": 0.002, "sigma_max": 80.0}),
    "RectifiedFlowSDE": (sg.RectifiedFlowSDE, {"T": 0.999, "eps": 1e-3}),
    "DiscreteVPSDE": (sg.DiscreteVPSDE, {"*betas": [0.1, 0.2]}),
    "DiscreteVESDE": (sg.DiscreteVESDE, {"*sigmas": [1.0, 0.1]}),
    "CLD": (sg.CLD, {"mass": 0.25, "gamma": 0.04}),
    "LinearSDE.from_schedule": (sg.LinearSDE.from_schedule, {"*alpha": VP.alpha, "*sigma": VP.sigma, "T": 1.0, "eps": 1e-3}),
    "prior_sample": (VP.prior_sample, {"*shape": (3, 2), "seed": 0}),
    "prior_log_prob": (VP.prior_log_prob, {"*x": X}),
    "marginal": (VP.marginal, {"*x0": X, "*t": 0.5}),
    "transition": (VP.transition, {"*s": 0.2, "*t": 0.5}),
    "f": (VP.f, {"*x": X, "*t": 0.5}),
    "reverse": (VP.reverse, {"*score_fn": SCORE, "eta": 1.0}),
    "Grid": (sg.Grid, {"*times": [1.0, 0.5, 0.1]}),
    "Karras": (sg.grids.Karras, {"rho": 7.0}),
    "Karras()": (sg.grids.Karras(), {"*sde": VP, "*steps": 4, "*t_start": None, "*t_end": None}),
    "LogSNR()": (sg.grids.LogSNR(), {"*sde": VP, "*steps": 4, "*t_start": None, "*t_end": None}),
    "Uniform()": (sg.grids.Uniform(), {"*sde": VP, "*steps": 4, "*t_start": None, "*t_end": None}),
    "grids.rule": (sg.grids.rule, {"*name": "karras"}),
    "DDIM": (sg.DDIM, {"eta": 0.0}),
    "Ancestral": (sg.Ancestral, {}),
    "EulerMaruyama": (sg.EulerMaruyama, {"eta": 1.0}),
    "ReverseDiffusion": (sg.ReverseDiffusion, {"eta": 1.0}),
    "Heun": (sg.Heun, {"s_churn": 0.0, "s_noise": 1.0}),
    "RungeKutta": (sg.RungeKutta, {"*tableau": sg.tableaus.RK4}),
    "DPMSolver": (sg.DPMSolver, {"*order": 2, "variant": None, "start": None, "eta": 0.0, "singlestep": True}),
    "DPMSolverPP": (sg.DPMSolverPP, {"*order": 2, "variant": None, "start": None, "eta": 0.0, "singlestep": False}),
    "DEIS": (sg.DEIS, {"*order": 3, "variable": "time", "start": None}),
    "LMS": (sg.schemes.LMS, {"*order": 3, "start": None}),
    "IPNDM": (sg.schemes.IPNDM, {"*order": 3}),
    "UniC": (sg.schemes.UniC, {"*predictor": sg.DEIS(2), "*nodes": None}),
    "UniPC": (sg.UniPC, {"*order": 3, "prediction": "data", "variant": "bh2", "start": "cold"}),
    "SASolver": (sg.SASolver, {"*order": 2, "corrector": None, "eta": 1.0, "window": (0.05, 1.0)}),
    "SEEDS": (sg.schemes.SEEDS, {"*order": 2}),
    "Rosenbrock": (sg.schemes.Rosenbrock, {"*order": 2, "sigma_data": 0.5, "variable": "angle", "no_signal_above": None, "linear_below": None, "centred_below": None, "eta": 0.0, "start": None}),
    "RectifiedAdams": (sg.schemes.RectifiedAdams, {"*order": 2, "start": None}),
    "ERSDE": (sg.schemes.ERSDE, {"*order": 3}),
    "PNDM": (sg.schemes.PNDM, {"*runge_kutta": True}),
    "ExponentialAdams": (sg.schemes.ExponentialAdams, {"nodes": 2, "prediction": "data", "variant": "exact", "eta": 0.0}),
    "ExponentialRungeKutta": (sg.schemes.ExponentialRungeKutta, {"stages": 2, "prediction": "data", "c2": None, "eta": 0.0}),
    "RES": (sg.schemes.RES, {}),
    "AncestralNoise": (sg.schemes.AncestralNoise, {"*solver": sg.DPMSolver(2), "*eta": 1.0}),
    "Restart": (sg.Restart, {"*solver": sg.DDIM(), "s_min": 0.14, "s_max": 0.3, "rounds": 1, "n_steps": 3}),
    "Langevin": (sg.Langevin, {"snr": 0.16, "n_steps": 1, "norm": "expected"}),
    "AnnealedLangevin": (sg.schemes.AnnealedLangevin, {"step_ratio": 0.1, "n_steps": 10}),
    "PredictorCorrector": (sg.PredictorCorrector, {
        "*predictor": sg.DDIM(), "*corrector": sg.Langevin(), "*order": "PC",
    }),
    "Adaptive": (sg.Adaptive, {
        "*pair": sg.tableaus.DOPRI5, "rtol": 1e-3, "atol": 1e-3, "max_steps": 100, "variable": None, "first_step": None,
    }),
    "ExponentialPair": (sg.schemes.ExponentialPair, {"*order": 2}),
    "GGF": (sg.schemes.GGF, {"rtol": 0.02, "atol": 0.01, "first_step": 0.01, "safety": 0.9, "exponent": 0.9, "max_steps": 100}),
    "SciPy": (sg.schemes.SciPy, {"*method": "RK45", "rtol": 1e-3, "atol": 1e-3}),
    "SSCS": (sg.schemes.SSCS, {}),
    "Score": (sg.Score, {"*net": net, "*sde": VP, "*prediction": "noise", "time_label": None, "input_scale": None}),
    "Shifted": (sg.grids.Shifted, {"*shift": 3.0, "*base": sg.grids.Uniform()}),
    "TokenGrid": (sg.grids.TokenGrid, {"*times": torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.1, 0.1]])}),
    "TokenGrid.staggered": (sg.grids.TokenGrid.staggered, {"*grid": [1.0, 0.5, 0.1], "*delays": [0, 1]}),
    "FromLevels": (sg.grids.FromLevels, {"*levels": [14.0, 6.0, 3.0, 1.0, 0.0]}),
    "Rescaled": (sg.guidance.Rescaled, {"*guided": GUIDED, "*strength": 0.7}),
    "ZeroStar": (sg.guidance.ZeroStar, {"*guided": GUIDED}),
    "APG": (sg.guidance.APG, {"*guided": GUIDED, "*eta": 0.0, "*norm": None}),
    "Weakened": (sg.guidance.Weakened, {"*score": SCORE, "*weak": SCORE, "*scale": 1.0, "interval": None}),
    "Thresholded": (sg.guidance.Thresholded, {"*score": SCORE, "*limit": 1.0, "*percentile": None, "most": None}),
    "cfg_plus_plus": (sg.guidance.cfg_plus_plus, {"*scale": 0.6, "*sde": sg.EDMSDE(), "*grid": [8.0, 4.0, 1.0]}),
    "Thinned": (sg.grids.Thinned, {"data_std": 1.0, "even": 15.0, "even_deep": 60.0, "on_table": True, "last": 5.0, "largest": 400.0, "near_noise": -5.0, "near_data": 3.0, "clean": 0.2}),
    "Record": (recorded, {"trajectory": None, "callback": None, "progress": False}),
    "Execution": (executed, {
        "batch_size": 2, "until": None, "enable_grad": False, "compile": False, "device": None,
    }),
    "simulate": (sg.processes.simulate, {"*sde": VP, "*x0": X, "*times": [0.0, 0.5], "substeps": 3, "seed": 0}),
    "save_grid": (saved, {"*x": torch.zeros(2, 1, 4, 4), "data_range": (-1.0, 1.0), "columns": 2}),
    "citation": (sg.citation, {"*part": "ddim"}),
    "spec": (sg.spec, {"*value": VP}),
    "from_spec": (sg.from_spec, {"*data": sg.DDIM().spec()}),
    "from_noise": (sg.from_noise, {"*net": net, "*sde": VP, "time_label": None, "input_scale": None, "dtype": None}),
    "from_denoiser": (sg.from_denoiser, {"*net": net, "*sde": VP, "time_label": None}),
    "from_v": (sg.from_v, {"*net": net, "*sde": VP, "time_label": None}),
    "from_flow": (sg.from_flow, {"*net": net, "*sde": VP, "time_label": None}),
    "from_score": (sg.from_score, {"*net": net, "*sde": VP, "time_label": None}),
    "score()": (SCORE, {"*x": X, "*t": 0.5}),
    "denoised": (SCORE.denoised, {"*x": X, "*t": 0.5}),
    "PerSample": (sg.PerSample, {"*value": X}),
    "Shared": (sg.Shared, {"*value": X}),
    "ClassifierFree": (sg.guidance.ClassifierFree, {"*score": NOISE, "*scale": 2.0, "null": {"y": 0}, "interval": None}),
    "Auto": (sg.guidance.Auto, {"*score": SCORE, "*weak": SCORE, "*scale": 2.0, "interval": None}),
    "Classifier": (sg.guidance.Classifier, {
        "*score": SCORE, "*log_likelihood": lambda x, t, y: x.sum(1), "scale": 1.0, "condition": ("y",), "interval": None,
    }),
    "Gaussian": (sg.oracles.Gaussian, {"*mean": torch.zeros(2), "*covariance": 0.25}),
    "GaussianMixture": (sg.oracles.GaussianMixture, {"*means": torch.zeros(2, 1), "*stds": 0.5, "*weights": [0.5, 0.5]}),
    "Mixture": (sg.oracles.Mixture, {"*components": [sg.oracles.Gaussian(torch.zeros(1), 1.0)], "*weights": [1.0]}),
    "Empirical": (sg.oracles.Empirical, {"*data": X, "bandwidth": 0.1}),
    "oracle.log_prob": (sg.oracles.Gaussian(torch.zeros(2), 1.0).log_prob, {"*x": X, "*sde": VP, "*t": 0.5}),
    "oracle.sample": (sg.oracles.Gaussian(torch.zeros(2), 1.0).sample, {"*n": 3, "*sde": VP, "*t": 0.5, "seed": 0}),
    "Mask": (sg.inverse.Mask, {"*mask": torch.tensor([True, False])}),
    "ChannelMix": (sg.inverse.ChannelMix, {"*matrix": torch.ones(1, 3)}),
    "BlockAverage": (sg.inverse.BlockAverage, {"*factor": 2, "dims": 1}),
    "Blur": (sg.inverse.Blur, {"*kernel": torch.tensor([0.5, 0.5])}),
    "Blur.gaussian": (sg.inverse.Blur.gaussian, {"*std": 1.0, "*size": 3, "dims": 1}),
    "LinearMap": (sg.inverse.LinearMap, {"*apply": lambda x: 2 * x, "*shape": (2,), "adjoint": None, "iterations": 5}),
    "NonlinearMap": (sg.inverse.NonlinearMap, {"*apply": lambda x: x**2, "*shape": (2,)}),
    "Measurement": (sg.inverse.Measurement, {"*operator": MASK, "*y": torch.zeros(2), "*std": 0.1}),
    "MMPS": (sg.inverse.MMPS, {"*score": SCORE, "*measurement": SEEN, "iterations": 1, "linear_solver": "gcr"}),
    "PiGDM": (sg.inverse.PiGDM, {"*score": SCORE, "*measurement": SEEN, "data_std": 1.0}),
    "DiffPIR": (sg.inverse.DiffPIR, {"*score": SCORE, "*measurement": SEEN, "strength": 1.0}),
    "DPS": (sg.inverse.DPS, {"*solver": sg.Ancestral(), "*measurement": SEEN, "zeta": 1.0}),
    "Replacement": (sg.inverse.Replacement, {"*solver": sg.Ancestral(), "*measurement": EXACT, "noise": "fresh"}),
    "RePaint": (sg.inverse.RePaint, {"*solver": sg.Ancestral(), "*measurement": EXACT, "resamples": 2, "jump": 2}),
    "time_labels.ddpm": (sg.time_labels.ddpm, {"*n": 1000, "integer": True}),
    "score_sde_ve_discrete": (sg.time_labels.score_sde_ve_discrete, {"*sde": sg.VESDE(), "levels": 10}),
    "EMA": (training.EMA, {"*net": NET, "decay": 0.9}),
    "LogNormal": (training.LogNormal, {"mean": -1.2, "std": 1.2}),
    "from_edm": (sg.adapters.from_edm, {"*denoiser": net, "*sde": None}),
    "from_flow_matching": (sg.adapters.from_flow_matching, {
        "*net": net, "from_noise": False, "scale": 1.0, "T": 0.999,
    }),
    "from_score_sde": (sg.adapters.from_score_sde, {"*net": net, "*sde": VP, "levels": None}),
    "from_diffusers": (sg.adapters.from_diffusers, {"*model": net, "*scheduler": CONFIG, "T": None}),
    "SolverScheduler": (sg.adapters.SolverScheduler, {
        "*scheduler": CONFIG, "*solver": "ddim", "grid": None, "final": "denoise",
    }),
    "from_azula": (sg.adapters.from_azula, {"*denoiser": Azula()}),
    "GDDIM": (sg.schemes.GDDIM, {"nodes": 2}),
    "stepper": (sg.stepping.stepper, {
        "*solver": "ddim", "*sde": VP, "*grid": None, "prediction": "score", "nfe": 5, "steps": None, "final": "denoise",
        "seed": 0,
    }),
    "digits_data": (nn.digits_data, {"*split": "train"}),
    "load_fashion_statistics": (nn.load_fashion_statistics, {"*split": "test"}),
    "TorchDiffEq": (sg.schemes.TorchDiffEq, {"*method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "per_sample": False, "variable": None}),
    "TorchSDE": (sg.schemes.TorchSDE, {"*method": "euler", "rtol": 1e-3, "atol": 1e-3, "per_sample": False}),
    "VelocityLangevin": (sg.schemes.VelocityLangevin, {"snr": 0.16, "n_steps": 1, "norm": "expected", "data_std": 0.0}),
    "Tableau": (sg.Tableau, {"*a": [[], [0.5]], "*b": [0.0, 1.0], "name": "midpoint", "source": "x"}),
    "EmbeddedTableau": (sg.tableaus.EmbeddedTableau, {"*a": [[], [1.0]], "*b": [0.5, 0.5], "*e": [[-0.5, 0.5]], "name": "heun"}),
    "Setting": (sg.Setting, {"*solver": "ddim", "*grid": "log-snr"}),
    "Stage": (sg.engine.program.Stage, {"*t": 1.0, "states": (), "evals": (), "noises": (), "evaluate": True, "node": True}),
    "Program.from_json": (sg.Program.from_json, {"*text": sg.DDIM().compile(VP, sg.Grid([1.0, 0.5])).to_json()}),
    "ReverseSDE": (sg.engine.reverse.ReverseSDE, {"*sde": VP, "*score_fn": SCORE, "*eta": 1.0}),
    "reverse.f": (VP.reverse(SCORE).f, {"*x": X, "*t": 0.5}),
    "reverse.g": (VP.reverse(SCORE).g, {"*t": 0.5}),
    "alpha": (VP.alpha, {"*t": 0.5}),
    "sigma": (sg.VESDE().sigma, {"*t": 0.5}),
    "g": (sg.RectifiedFlowSDE().g, {"*t": 0.5}),
    "log_snr": (sg.CosineVPSDE().log_snr, {"*t": 0.5}),
    "time": (sg.DiscreteVPSDE([0.1, 0.2]).time, {"*log_snr": 0.5}),
    "edm transition": (sg.EDMSDE().transition, {"*s": 0.2, "*t": 0.5}),
    "cld transition": (sg.CLD().transition, {"*s": 0.2, "*t": 0.5}),
    "cld marginal": (sg.CLD().marginal, {"*x0": X, "*t": 0.5}),
    "cld prior": (sg.CLD().prior_log_prob, {"*x": Z}),
    "from_velocity_noise": (sg.scores.from_velocity_noise, {"*net": velocity_net, "*sde": sg.CLD(), "mixed": None, "time_label": None}),
    "from_velocity_score": (sg.scores.from_velocity_score, {"*net": velocity_net, "*sde": sg.CLD(), "time_label": None, "dtype": None}),
    "from_joint_denoiser": (sg.scores.from_joint_denoiser, {"*net": net, "*sde": sg.CLD(), "time_label": None}),
    "hybrid_score_matching": (sg.processes.hybrid_score_matching, {
        "*predict": velocity_net, "*sde": sg.CLD(), "*x0": X, "*t": torch.tensor([0.1, 0.5, 0.9]), "*noise": Z,
    }),
    "joint_log_prob": (sg.likelihood.joint_log_prob, {
        "*score_fn": JOINT, "*sde": sg.CLD(), "*z": Z, "eps": None, "method": FixedGrid(6), "trace": "hutchinson", "seed": 0, "generator": None, "model_kwargs": None,
    }),
    "velocity_bound": (sg.likelihood.velocity_bound, {
        "*score_fn": JOINT, "*sde": sg.CLD(), "*x": X, "n_draws": 1, "seed": 0, "method": FixedGrid(6), "eps": None,
    }),
    "sample on CLD": (sg.sample, {
        "*score_fn": JOINT, "*sde": sg.CLD(), "shape": (3, 2, 2), "solver": sg.schemes.SSCS(), "steps": 4, "seed": 0, "final": None,
    }),
    "LatentScoreModel": (sg.latent.LatentScoreModel, {"*encoder": LATENT.encoder, "*decoder": LATENT.decoder, "*score_fn": SCORE, "*sde": VP}),
    "LatentScoreModel.bound": (LATENT.bound, {"*x": X, "method": "flow", "n_draws": 1, "n_times": None, "eps": None, "seed": 0}),
    "MixedNoise": (sg.latent.MixedNoise, {"*net": net, "*sde": VP, "*shape": (2,), "initial": 0.5, "time_label": None}),
    "Model": (sg.models.Model, {
        "name": "x", "score": SCORE, "sde": VP, "shape": (2,), "n_classes": None, "data_range": None, "n_levels": None,
    }),
    "load_model": (sg.load_model, {"*name": "digits"}),
    "Quadratic()": (sg.grids.Quadratic(), {"*sde": VP, "*steps": 4, "*t_start": None, "*t_end": None}),
    "Exponential()": (sg.grids.Exponential(), {"*sde": VP, "*steps": 4, "*t_start": None, "*t_end": None}),
    "Widening": (sg.grids.Widening, {"data_std": 1.0, "first": 0.05, "last": 5.0, "largest": 400.0}),
    "Widening()": (sg.grids.Widening(), {"*sde": VP, "*steps": 4, "*t_start": None, "*t_end": None}),
    "Distilled": (sg.grids.Distilled, {"original_steps": 50}),
    "Distilled()": (sg.grids.Distilled(), {"*sde": sg.presets.ddpm(), "*steps": 4, "*t_start": None, "*t_end": None}),
    "grids.Table": (sg.grids.Table, {"*times": (1.0, 0.5)}),
    "grids.rule_name": (sg.grids.rule_name, {"*rule": sg.grids.Karras()}),
    "from_classifier": (sg.guidance.from_classifier, {"*net": net, "time_label": None, "input_scale": None}),
    "LabelLikelihood": (sg.guidance.LabelLikelihood, {"*net": net, "time_label": None, "input_scale": None}),
    "check_operator": (sg.inverse.check_operator, {"*operator": MASK, "*shape": (2,), "seed": 0}),
    "posterior": (sg.inverse.posterior, {"*oracle": sg.oracles.Gaussian(torch.zeros(2), 1.0), "*measurement": SEEN}),
    "iddpm_cosine": (sg.presets.iddpm_cosine, {"*n": 10}),
    "presets.ddpm": (sg.presets.ddpm, {"*n": 10}),
    "score_sde_ve": (sg.time_labels.score_sde_ve, {"*sde": sg.VESDE()}),
    "noise_level": (sg.time_labels.noise_level, {"*sde": sg.VESDE()}),
    "edm_c_noise": (sg.time_labels.edm_c_noise, {"*sde": sg.EDMSDE()}),
    "flow": (sg.time_labels.flow, {"*scale": 1000.0}),
    "flow_from_noise": (sg.time_labels.flow_from_noise, {"*scale": 1.0}),
    "frechet_distance": (metrics.frechet_distance, {"*a": CLOUD, "*b": CLOUD + 1, "features": "raw"}),
    "gaussian_frechet": (metrics.gaussian_frechet, {
        "*mean_a": torch.zeros(2), "*cov_a": torch.eye(2), "*mean_b": torch.ones(2), "*cov_b": torch.eye(2),
    }),
    "kernel_distance": (metrics.kernel_distance, {"*a": CLOUD, "*b": CLOUD + 1, "features": "raw"}),
    "prdc": (metrics.prdc, {"*samples": CLOUD, "*reference": CLOUD + 1, "k": 3, "features": "raw"}),
    "sliced_wasserstein": (metrics.sliced_wasserstein, {"*a": CLOUD, "*b": CLOUD + 1, "n_directions": 8, "seed": 0}),
    "training.EDM": (training.EDM, {"*sigma_data": 0.5}),
    "MinSNR": (training.MinSNR, {"gamma": 5.0}),
    "PosteriorMean": (training.PosteriorMean, {"variance": "beta", "n": 10}),
    "Importance": (training.Importance, {"stratified": True}),
    "training.Uniform": (training.Uniform, {"low": 0.1, "high": 0.9, "stratified": True}),
    "training.Table": (training.Table, {"times": (0.5, 1.0), "stratified": True}),
    "Times.draw": (training.Uniform().draw, {"*sde": VP, "*n": 3, "*generator": torch.Generator().manual_seed(0)}),
    "denoising_score_matching": (training.denoising_score_matching, {
        "*score": NOISE, "*x0": X, "generator": torch.Generator().manual_seed(0), "weighting": "simple", "times": None,
        "t": None, "noise": None, "reduction": "mean", "model_kwargs": None,
    }),
    "score_matching": (training.score_matching, {
        "*score": NOISE, "*x0": X, "generator": torch.Generator().manual_seed(0), "weighting": "sigma^2", "times": None,
        "t": None, "noise": None, "trace": "exact", "n_probes": 1, "reduction": "mean", "model_kwargs": None,
    }),
    "EMA.update": (training.EMA(NET).update, {"*net": NET}),
    "EMA.copy_to": (training.EMA(NET).copy_to, {"*net": torch.nn.Linear(2, 2)}),
    "Stretched": (likelihood.Stretched, {"*data_std": 0.5}),
    "choose_probe_basis": (likelihood.choose_probe_basis, {
        "*score_fn": IMAGES, "*sde": VP, "*x": torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2), "method": FixedGrid(6),
        "probe": "rademacher", "eps": None, "seed": 0,
    }),
    "UNet": (nn.UNet, {
        "in_channels": 1, "channels": (8,), "blocks": 1, "attention": (), "classes": None, "patch": 1, "embed": 8,
        "groups": 4, "heads": 1,
    }),
    "EDMPreconditioned": (nn.EDMPreconditioned, {"*net": NET, "*sigma_data": 0.5}),
    "edm_preconditioning": (nn.edm_preconditioning, {"*sigma": torch.tensor(0.75), "*sigma_data": 0.5}),
    "LearnedVariance": (likelihood.LearnedVariance, {"*net": net}),
    "check_sde": (testing.check_sde, {"*sde": VP, "n": 64, "seed": 0}),
    "check_score": (testing.check_score, {"*score": SCORE, "*data": LAW.sample(24, seed=0), "seed": 0, "model_kwargs": {}}),
    "ScoreCheck": (testing.ScoreCheck, {"*levels": (0.5, 2.0), "*errors": (0.1, 0.4), "*gaussian": (0.2, 0.8)}),
    "measure_order": (testing.measure_order, {"*solver": sg.DDIM(), "*sde": VP, "steps": (2, 4)}),
    "warped": (testing.warped, {"*rule": sg.grids.LogSNR(), "*warp": (0.4, -0.3, 0.2)}),
    "rough": (testing.rough, {"*rule": sg.grids.LogSNR(), "*jitter": 0.4, "*seed": 0, "*period": 16}),
    "default_oracle": (testing.default_oracle, {"*kind": "gaussian"}),
}  # fmt: skip

# Public names that are not called by users: results, values of the engine, abstract classes, networks with weights, folders.
NOT_CALLED = {
    "AdaptiveSolver", "BitsPerDimResult", "BoundResult", "Calibrated", "Calibration", "Calibrations", "Continuation", "Corrector", "Dequantisation", "DigitsClassifier",
    "DigitsDenoiser", "DigitsVelocity", "Extrapolation", "FashionClassifier", "FeatureStatistics", "FlowResult",
    "FrechetResult", "GridRule", "GuidedScore", "Images", "KernelResult", "LatentBound", "LikelihoodProtocol",
    "LinearOperator", "LinearSDE", "LogProbResult", "MatrixSDE", "Operator", "Oracle", "PRDCResult", "ModeResult", "PilotResult", "PosteriorResult",
    "PosteriorScore", "ProbeTrial", "Program", "SDE", "SampleResult", "SlicedResult", "load_calibration", "load_images", "Solver", "Status",
    "AdaptiveStats", "StepInfo", "Stepper", "Times", "Weighting", "solvers",
    "save_grid",  # by `saved`, whose path is not odd: what is written stays in a folder of its own
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """An error that is not one of ours.

    Attributes:
        kind: "internal", "foreign" or "chained".
        name: of the callable.
        changed: the arguments that were replaced.
        error: what was raised.
        place: the last line of the package that it went through.
    """

    kind: str
    name: str
    changed: dict[str, Any]
    error: BaseException
    place: str

    def __str__(self) -> str:
        values = ", ".join(f"{name}={_shown(value)}" for name, value in self.changed.items())
        error = f"{type(self.error).__name__}: {str(self.error)[:110]!r}"
        return f"{self.kind:8} {self.name}({values}): {error} at {self.place}"


def _shown(value: Any) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, torch.Tensor) else str(value)[:40]


@cache
def _raises(file: str) -> frozenset[int]:
    """The lines of a file that belong to a raise statement with an error of its own."""
    tree = ast.parse(Path(file).read_text())
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None)
    return frozenset(line for node in nodes for line in range(node.lineno, (node.end_lineno or node.lineno) + 1))


def judge(error: BaseException) -> tuple[str | None, str]:
    """None for an error of ours, else its kind; and the last line of the package that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    place = f"{Path(ours[-1].filename).relative_to(PACKAGE)}:{ours[-1].lineno}" if ours else "no line of the package"
    if not isinstance(error, ValueError | TypeError | ImportError | OSError | testing.CheckError):
        return "internal", place
    if not (Path(last.filename).is_relative_to(PACKAGE) and last.lineno in _raises(last.filename)):
        return "foreign", place
    return ("chained" if shown_below(error) is not None and not isinstance(error, ImportError) else None), place


def shown_below(error: BaseException) -> BaseException | None:
    """The error that a traceback shows before this one."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def is_callers(error: BaseException) -> bool:
    """True if a function of the caller's raised it, a module of torch's or one of those here: these pass as they are."""
    _, *inner = traceback.extract_tb(error.__traceback__)
    ours = (recorded.__name__, executed.__name__)  # which only pass options on
    return any(frame.filename in (MODULE, __file__) and frame.name not in ours for frame in inner)


def call(name: str, rng: random.Random) -> Finding | None:
    """One odd call; None where it returned or was refused by us."""
    function, right = CALLS[name]
    arguments = dict(right)
    chosen = rng.sample(sorted(arguments), min(len(arguments), rng.choice((1, 1, 2))))
    changed = {argument: odd(rng) for argument in chosen}
    arguments |= changed
    by_position = [value for key, value in arguments.items() if key.startswith("*")]
    by_name = {key: value for key, value in arguments.items() if not key.startswith("*")}
    try:
        made = function(*by_position, **by_name)
        if isinstance(made, sg.Solver | AdaptiveSolver):
            sg.sample(SCORE, VP, (2, 2), solver=made, nfe=25, seed=0, grid=None, final="denoise")
        elif isinstance(made, sg.Score) and not isinstance(made.sde, sg.processes.MatrixSDE):
            kwargs = {"y": torch.zeros(2)} if name.startswith("Classifier") else {}
            sg.sample(made, made.sde, (2, 2), nfe=5, seed=0, model_kwargs=kwargs)
        elif isinstance(made, sg.Score):
            sg.sample(made, made.sde, (2, 2, 2), steps=3, seed=0)
        elif isinstance(made, sg.SDE) and made.marginal_kind == "scalar":
            sg.sample(lambda x, t: -x, made, (2, 2), nfe=5, seed=0, final="none")
        elif isinstance(made, sg.grids.GridRule):
            made(VP, 4)
        elif isinstance(made, likelihood.methods.Method):
            sg.log_prob(SCORE, VP, X, method=made, seed=0)
        elif isinstance(made, Hutchinson | Exact):
            sg.log_prob(SCORE, VP, X, method=FixedGrid(6), trace=made, seed=0)
        elif isinstance(made, training.Times) or hasattr(made, "error_of"):
            which = "times" if isinstance(made, training.Times) else "weighting"
            generator = torch.Generator().manual_seed(0)
            training.denoising_score_matching(NOISE, X, generator=generator, **{which: made})
    except Exception as error:
        kind, place = judge(error)
        if kind is not None and not is_callers(error):
            return Finding(kind, name, changed, error, place)
    return None


def run(calls: int, seed: int, names: Sequence[str] | None = None) -> tuple[int, list[Finding]]:
    """Make calls, as many of each callable; the number made and what was found."""
    rng = random.Random(seed)
    names = list(CALLS) if names is None else names
    findings: list[Finding] = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for i in range(calls):
            found = call(names[i % len(names)], rng)
            if found is not None:
                findings.append(found)
    return calls, findings


def main() -> int:
    """Run, print counts by kind and place, and an example of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of callables")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made, findings = run(args.calls, args.seed, args.only)
    by_kind = Counter(finding.kind for finding in findings)
    sys.stdout.write(f"{made} calls, {dict(by_kind) or 'none'} of which are no refusals of ours\n")
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.place), []).append(finding)
    for _, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        sys.stdout.write(f"{len(group):5}  {group[0]}\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
