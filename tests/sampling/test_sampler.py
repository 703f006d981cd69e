"""What a caller may rely on: options, shapes, counts, devices, gradients, callbacks."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import subprocess
import sys
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import sgm_sde as sg
from sgm_sde.calibration import Calibrated, Table
from sgm_sde.engine.executor import execute
from sgm_sde.schemes.base import ADAPTIVE
from tests.conventions import case_id, some_slow
from tests.helpers import (
    ALL,
    DETERMINISTIC,
    DOUBLE,
    F64,
    LINEAR,
    Recorder,
    bind,
    elementwise_score,
    half_at_the_end,
    sampler,
    stream,
)

VP = LINEAR["vp"]
SCORE = elementwise_score(VP)
CP = sg.PredictorCorrector(sg.DPMSolverPP(), sg.Langevin(n_steps=2), order="CP")
PC3 = sg.PredictorCorrector(sg.Heun(), sg.schemes.AnnealedLangevin(step_ratio=0.1, n_steps=3))
# One of each kind: what differs between their siblings is coefficients.
KINDS = [
    "euler",
    "rk4",
    "heun",
    "ddim",
    "dpm++2m",
    "dpm++3m",
    "unipc3",
    "dpm3",
    "euler-maruyama",
    "ancestral",
    "heun-churn",
    "seeds2",
    "sa-solver",
    "dpm++3m-restart",
    "annealed-langevin",
    "pc",
]
SAMPLERS = {**{name: sampler(name, VP) for name in KINDS}, "cp": CP, "pc3": PC3}


def run(solver: sg.Solver | str = "dpm++2m", **options: Any) -> sg.SampleResult:
    """A small run on VP, of five steps by default."""
    if "nfe" not in options and "grid" not in options:
        options.setdefault("steps", 5)
    if "x_T" not in options:
        options.setdefault("shape", (3, 2))
    options.setdefault("seed", 0)
    return sg.sample(options.pop("score_fn", SCORE), VP, solver=solver, **options)


def run_joint(solver: sg.Solver, **options: Any) -> sg.SampleResult:
    """The same on a process with a matrix."""
    sde = sg.CLD()
    score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3).score(sde)
    return sg.sample(score, sde, (3, 2, 1), solver=solver, steps=5, seed=0, **options)


# --- no option is ignored --------------------------------------------------------------------------------------------

# Every option of every solver: the same solver with another value, which must give other samples.
CHURN = sg.Heun(s_churn=10, s_tmin=0.05, s_tmax=20, s_noise=1.0)
ETAS = {cls: [(cls(eta=0.5), cls(eta=0.75)), (cls(eta=0.5), cls(eta=0.0))] for cls in
        (sg.DDIM, sg.EulerMaruyama, sg.ReverseDiffusion)}  # fmt: skip
LANGEVIN = sg.PredictorCorrector(sg.DDIM(), sg.Langevin(snr=0.1))


def corrected(**options: Any) -> sg.PredictorCorrector:
    return sg.PredictorCorrector(sg.DDIM(), sg.Langevin(**{"snr": 0.1, **options}))


def joint(**options: Any) -> sg.PredictorCorrector:
    return sg.PredictorCorrector(sg.schemes.GDDIM(), sg.schemes.VelocityLangevin(**{"snr": 0.1, **options}))


RESTART = sg.Restart(sg.DPMSolverPP(2), s_max=3.0)


def exponential(cls: Any) -> dict[str, list[tuple[sg.Solver, sg.Solver]]]:
    """The options that exponential integrators share."""
    noise = {"prediction": "noise"}
    v = {"prediction": "v", "variable": "log-snr"}
    log_signal = {"prediction": "v", "variable": "log-signal"}
    return {
        "prediction": [(cls(), cls(prediction=other)) for other in ("noise", "v", "rectified")],
        "variable": [
            (cls(**noise), cls(**noise, variable="time")),
            (cls(**noise), cls(**noise, variable="noise-level")),
        ],
        "variant": [(cls(), cls(variant="midpoint"))],
        "eta": [(cls(), cls(eta=0.5)), (cls(eta=1.0), cls(eta=half_at_the_end))],
        "noise_scale": [(cls(), cls(noise_scale="er"))],
        "window": [(cls(eta=1.0), cls(eta=1.0, window=(0.1, 2.0)))],
        "sigma_data": [(cls(prediction="v"), cls(prediction="v", sigma_data=0.5))],
        "no_signal_above": [(cls(**v), cls(**v, no_signal_above=1.0))],
        "linear_below": [(cls(**log_signal), cls(**log_signal, linear_below=5.0))],
        "name": [],
        "source": [],
    }


CHANGES: dict[type, dict[str, list[tuple[sg.Solver, sg.Solver]]]] = {
    **{cls: {"eta": pairs} for cls, pairs in ETAS.items()},
    sg.RungeKutta: {"tableau": [(sg.RungeKutta(sg.tableaus.MIDPOINT), sg.RungeKutta(sg.tableaus.RALSTON))]},
    sg.Heun: {
        option: [(CHURN, dataclasses.replace(CHURN, **{option: value}))]
        for option, value in {"s_churn": 1.0, "s_tmin": 1.0, "s_tmax": 1.0, "s_noise": 1.1}.items()
    },
    sg.schemes.ExponentialAdams: {
        **exponential(sg.schemes.ExponentialAdams),
        "nodes": [(sg.schemes.ExponentialAdams(nodes=1), sg.schemes.ExponentialAdams(nodes=2))],
        "corrector": [
            (sg.schemes.ExponentialAdams(nodes=1), sg.schemes.ExponentialAdams(nodes=1, corrector=2)),
            (sg.schemes.ExponentialAdams(nodes=2, corrector=2), sg.schemes.ExponentialAdams(nodes=2, corrector=3)),
        ],
        "start": [(sg.schemes.ExponentialAdams(nodes=3), sg.schemes.ExponentialAdams(nodes=3, start="warm"))],
        "lower_final": [(sg.schemes.ExponentialAdams(nodes=3), sg.schemes.ExponentialAdams(nodes=3, lower_final=True))],
        "final_nodes": [
            (sg.schemes.ExponentialAdams(final_nodes=1), sg.schemes.ExponentialAdams(final_nodes=2)),
        ],
        "jumps": [(sg.schemes.ExponentialAdams(nodes=3), sg.schemes.ExponentialAdams(nodes=3, jumps=(1.0,)))],
        "centred_below": [
            (
                sg.schemes.ExponentialAdams(prediction="v"),
                sg.schemes.ExponentialAdams(prediction="v", centred_below=5.0),
            ),
        ],
    },
    sg.schemes.ExponentialRungeKutta: {
        **exponential(sg.schemes.ExponentialRungeKutta),
        "stages": [(sg.schemes.ExponentialRungeKutta(stages=2), sg.schemes.ExponentialRungeKutta(stages=3))],
        "c2": [(sg.schemes.ExponentialRungeKutta(), sg.schemes.ExponentialRungeKutta(c2=0.7))],
        "reduced": [(sg.schemes.ExponentialRungeKutta(), sg.schemes.ExponentialRungeKutta(reduced=2))],
    },
    sg.schemes.PNDM: {"runge_kutta": [(sg.schemes.PNDM(), sg.schemes.PNDM(runge_kutta=False))]},
    sg.schemes.AncestralNoise: {
        "solver": [(sg.schemes.AncestralNoise(sg.DPMSolver(2)), sg.schemes.AncestralNoise(sg.DPMSolver(1)))],
        "eta": [(sg.schemes.AncestralNoise(sg.DPMSolver(2)), sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=0.5))],
    },
    sg.Restart: {
        option: [(RESTART, dataclasses.replace(RESTART, **{option: value}))]
        for option, value in {"solver": sg.DPMSolver(2), "s_min": 1.0, "s_max": 1.0, "rounds": 2, "n_steps": 4}.items()
    },
    sg.Ancestral: {"variance": [(sg.Ancestral(), sg.Ancestral(variance="transition"))]},
    sg.schemes.AnnealedLangevin: {
        "step_ratio": [(sg.schemes.AnnealedLangevin(0.1, 2), sg.schemes.AnnealedLangevin(0.2, 2))],
        "n_steps": [(sg.schemes.AnnealedLangevin(0.1, 2), sg.schemes.AnnealedLangevin(0.1, 3))],
    },
    sg.Langevin: {
        "snr": [(LANGEVIN, corrected(snr=0.2))],
        "n_steps": [(LANGEVIN, corrected(n_steps=2))],
        "norm": [(LANGEVIN, corrected(norm="batch")), (LANGEVIN, corrected(norm="sample"))],
        "data_std": [(LANGEVIN, corrected(data_std=0.3))],
    },
    sg.schemes.GDDIM: {"nodes": [(sg.schemes.GDDIM(2), sg.schemes.GDDIM(3))]},
    sg.schemes.SSCS: {"eta": [(sg.schemes.SSCS(), sg.schemes.SSCS(eta=0.5))]},
    sg.schemes.VelocityLangevin: {
        "snr": [(joint(), joint(snr=0.2))],
        "n_steps": [(joint(), joint(n_steps=2))],
        "norm": [(joint(), joint(norm="batch")), (joint(), joint(norm="sample"))],
        "data_std": [(joint(), joint(data_std=0.3))],
    },
    sg.schemes.Consistency: {"eta": [(sg.schemes.Consistency(eta=0.5), sg.schemes.Consistency(eta=0.75))]},
    sg.schemes.TCD: {"gamma": [(sg.schemes.TCD(0.3), sg.schemes.TCD(0.6))]},
    sg.PredictorCorrector: {
        "predictor": [(LANGEVIN, sg.PredictorCorrector(sg.DDIM(eta=0.5), sg.Langevin(snr=0.1)))],
        "corrector": [(LANGEVIN, sg.PredictorCorrector(sg.DDIM(), sg.schemes.AnnealedLangevin(0.1, 1)))],
        "order": [(LANGEVIN, sg.PredictorCorrector(sg.DDIM(), sg.Langevin(snr=0.1), order="CP"))],
        "sequence": [(LANGEVIN, sg.PredictorCorrector(sg.DDIM(), sg.Langevin(snr=0.1), sequence="CP"))],
    },
}
PARTS = [
    cls for cls in vars(sg.schemes).values()
    if isinstance(cls, type) and issubclass(cls, sg.Solver | sg.Corrector) and not inspect.isabstract(cls)
]  # fmt: skip
FAMILY_NAMES = [
    name for name in sg.schemes.__all__ if inspect.isfunction(getattr(sg.schemes, name)) and name[0].isupper()
]
LABELS = ("name", "source")  # say what a solver is, and change nothing
# Options beside which the others act: those without a default, and orders with a start and a last step to choose.
WARM = {"order": 3}
NEEDED: dict[str, dict[str, Any]] = {
    "DPMSolver": {**WARM, "singlestep": False},
    "DPMSolverPP": WARM,
    "RectifiedAdams": WARM,
    "Rosenbrock": {**WARM, "variable": "log-signal"},
    "UniC": {"predictor": sg.DEIS(2)},
    "UniPC": {**WARM, "lower_final": False},
}


def other_values(make: Callable[..., Any], option: str, default: Any) -> Iterator[Any]:
    """Values that an option might take beside its own: a solver, numbers, a bool, or the words that it knows."""
    if isinstance(default, sg.Solver):
        yield sg.DPMSolver(2, singlestep=False)
    elif isinstance(default, bool):
        yield not default
    elif isinstance(default, tuple):
        yield tuple(value / 2 for value in default)
    elif isinstance(default, int | float):
        yield from (default + 1, default / 2, 2 * default, 0.5, 0)
    else:
        yield from (True, False, 1, 2)
        with pytest.raises((TypeError, ValueError)) as refusal:
            make(**{option: "?"})
        yield from re.findall(r"'([^']+)'", str(refusal.value))


def changed(part: Callable[..., Any], option: str) -> Iterator[tuple[sg.Solver, sg.Solver]]:
    """Pairs of solvers that differ in one option: those written down above, or any that can be made."""
    if option in CHANGES.get(part, {}):
        yield from CHANGES[part][option]
        return
    beside = NEEDED.get(part.__name__, {})
    make = partial(part, **beside)
    base = make()
    own = beside.get(option, inspect.signature(part).parameters[option].default)
    for value in other_values(make, option, own):
        with suppress(TypeError, ValueError):  # of values that it refuses
            other = make(**{option: value})
            if other != base:
                yield run_by(base), run_by(other)


def run_by(part: sg.Solver | sg.Corrector) -> sg.Solver:
    """The solver itself, or the corrector behind a predictor."""
    if isinstance(part, sg.Solver):
        return part
    predictor = sg.schemes.SSCS() if isinstance(part, sg.schemes.VelocityLangevin) else sg.DDIM()
    return sg.PredictorCorrector(predictor, part)


@pytest.mark.filterwarnings("ignore::sgm_sde.schemes.LangevinNormWarning")
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # an option may be any number here
@pytest.mark.parametrize(
    ("part", "option"), [(part, option) for part in PARTS for option in inspect.signature(part).parameters]
)
def test_every_option_of_a_solver_matters(part: type, option: str) -> None:
    """Another value of any option of any public solver or corrector gives other samples."""
    draw = run_joint if part in (sg.schemes.GDDIM, sg.schemes.SSCS, sg.schemes.VelocityLangevin) else run
    pairs = list(changed(part, option)) if option not in LABELS else []
    assert pairs or option in LABELS, "no two values of it are known: add a pair to CHANGES"
    differ = [
        one != other and not torch.equal(*(draw(s, final="none").x for s in (one, other))) for one, other in pairs
    ]
    assert all(differ) if option in CHANGES.get(part, {}) else any(differ) or option in LABELS


@pytest.mark.filterwarnings(
    "ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning"
)  # published forms diverge in few steps
@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in FAMILY_NAMES for option in inspect.signature(getattr(sg.schemes, name)).parameters],
)
def test_every_option_of_a_family_matters(name: str, option: str) -> None:
    """The same of the functions that make a solver by a paper's name: some value of each gives another table."""
    edm = LINEAR["edm"]  # on VP some options of time are one
    grid = sg.grids.Karras()(edm, 5)
    pairs = changed(getattr(sg.schemes, name), option)
    assert any(one.compile(edm, grid).stages != other.compile(edm, grid).stages for one, other in pairs)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: sg.Heun(s_noise=1.1), "s_noise"),
        (lambda: sg.Heun(s_tmin=0.1), "s_tmin"),
        (lambda: sg.Heun(s_tmax=10.0), "s_tmax"),
        (lambda: sg.DPMSolverPP(order=1, variant="midpoint"), "variant"),
        (lambda: sg.DPMSolverPP(order=2, start="warm"), "warm"),
        (lambda: sg.DPMSolverPP(order=2, singlestep=True, start="warm"), "start"),
        (lambda: sg.schemes.ExponentialAdams(window=(0.0, 1.0)), "window"),
        (lambda: sg.schemes.ExponentialAdams(sigma_data=0.5), "sigma_data"),
        (lambda: sg.schemes.ExponentialAdams(nodes=3, eta=1.0, start="warm"), "warm"),
        (lambda: sg.schemes.ExponentialRungeKutta(stages=1, c2=0.5), "c2"),
    ],
)
def test_options_that_would_do_nothing_are_errors(make: Callable[[], sg.Solver], shown: str) -> None:
    """An option that another one has switched off is refused, not ignored."""
    with pytest.raises((TypeError, ValueError), match=shown):
        make()


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: sg.DDIM(eta=1.5), "1.5"),
        (lambda: sg.DDIM(eta=-0.1), "-0.1"),
        (lambda: sg.EulerMaruyama(eta=math.nan), "nan"),
        (lambda: sg.ReverseDiffusion(eta=-1), "-1"),
        (lambda: sg.Heun(s_churn=-1), "-1"),
        (lambda: sg.Heun(s_churn=1, s_noise=math.nan), "nan"),
        (lambda: sg.Heun(s_churn=1, s_tmin=2, s_tmax=1), "2.0 and 1.0"),
        (lambda: sg.DPMSolverPP(order=0), "0"),
        (lambda: sg.DPMSolver(order=4), "4"),
        (lambda: sg.DPMSolverPP(variant="heun"), "heun"),
        (lambda: sg.UniPC(variant="bh3"), "bh3"),
        (lambda: sg.schemes.ExponentialAdams(prediction="score"), "score"),
        (lambda: sg.schemes.ExponentialAdams(variable="angle"), "angle"),
        (lambda: sg.schemes.ExponentialAdams(variant="bh1", prediction="noise", variable="time"), "time"),
        (lambda: sg.schemes.ExponentialAdams(variant="fixed"), "fixed"),
        (lambda: sg.schemes.ExponentialAdams(prediction="rectified", eta=1.0), "eta=1.0"),
        (lambda: sg.schemes.ExponentialAdams(eta=-0.5), "-0.5"),
        (lambda: sg.schemes.ExponentialAdams(eta=1.0, window=(2.0, 1.0)), r"\(2.0, 1.0\)"),
        (lambda: sg.schemes.ExponentialAdams(prediction="v", sigma_data=0.0), "0.0"),
        (lambda: sg.schemes.ExponentialAdams(nodes=0), "0"),
        (lambda: sg.schemes.ExponentialAdams(nodes=2, corrector=4), "4"),
        (lambda: sg.schemes.ExponentialAdams(start="hot"), "hot"),
        (lambda: sg.schemes.ExponentialRungeKutta(stages=4), "4"),
        (lambda: sg.schemes.ExponentialRungeKutta(stages=3, c2=0.8), "0.8"),
        (lambda: sg.schemes.ExponentialRungeKutta(stages=3, variant="midpoint"), "stages=3"),
        (lambda: sg.schemes.ExponentialRungeKutta(variant="published"), "published"),
        (lambda: sg.schemes.ExponentialRungeKutta(reduced=-1), "-1"),
        (lambda: sg.schemes.ExponentialAdams(noise_scale="odd"), "odd"),
        (lambda: sg.schemes.ExponentialAdams(noise_scale="er", eta=1.0), "er"),
        (lambda: sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=1.5), "1.5"),
        (lambda: sg.Restart(sg.DDIM(), s_min=0.5, s_max=0.3), "0.5 and 0.3"),
        (lambda: sg.Restart(sg.DDIM(), rounds=0), "0"),
        (lambda: sg.Ancestral(variance="learned"), "learned"),
        (lambda: sg.Langevin(snr=0.0), "0.0"),
        (lambda: sg.Langevin(n_steps=0), "0"),
        (lambda: sg.Langevin(norm="l1"), "l1"),
        (lambda: sg.schemes.AnnealedLangevin(step_ratio=-1e-5), "-1e-05"),
        (lambda: sg.schemes.AnnealedLangevin(n_steps=1.5), "1.5"),
        (lambda: sg.PredictorCorrector(sg.DDIM(), sg.Langevin(), order="PPC"), "PPC"),
        (lambda: sg.Tableau([[], [1.0]], [0.5, 0.6]), "1.1"),
        (lambda: sg.Tableau([[], [2.0]], [0.5, 0.5]), "2.0"),
        (lambda: sg.Tableau([[], [0.5, 0.5]], [0.5, 0.5]), r"\[0, 2\]"),
        (lambda: sg.grids.Karras(rho=-7), "-7"),
    ],
)
def test_values_out_of_range_are_errors(make: Callable[[], object], shown: str) -> None:
    """The message shows the offending value."""
    with pytest.raises(ValueError, match=shown):
        make()


@pytest.mark.parametrize("part", [*PARTS, sg.Tableau, sg.grids.Karras, sg.VPSDE, sg.sample, sg.Score])
def test_unknown_options_are_errors(part: Callable[..., object]) -> None:
    """A keyword that nobody knows is a TypeError that names it."""
    given_options = {
        sg.Restart: {"solver": sg.DDIM()},
        sg.schemes.AncestralNoise: {"solver": sg.DPMSolver(2)},
        sg.PredictorCorrector: {"predictor": sg.DDIM(), "corrector": sg.Langevin()},
        sg.Tableau: {"a": [[]], "b": [1]},
        sg.sample: {"score_fn": SCORE, "sde": VP, "shape": (1, 2)},
        sg.Score: {"net": SCORE, "sde": VP, "prediction": "score"},
    }.get(part, {})
    with pytest.raises(TypeError, match="churn_rate"):
        part(**given_options, churn_rate=1.0)


X_T = VP.prior_sample((3, 2), seed=5)
# Every argument of sample: options that change the samples, and those that cannot go together.
SAMPLE_CHANGES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "score_fn": [({}, {"score_fn": lambda x, t: -x})],
    "shape": [({"shape": (3, 2)}, {"shape": (3, 3)})],
    "x_T": [({}, {"x_T": X_T}), ({"x_T": X_T}, {"x_T": 2 * X_T})],
    "solver": [({"solver": "ddim"}, {"solver": "dpm++2m"})],
    "nfe": [({"nfe": 5}, {"nfe": 6}), ({"steps": 5}, {"nfe": 7})],
    "steps": [({"steps": 5}, {"steps": 6})],
    "grid": [({"grid": "uniform", "steps": 5}, {"grid": "karras", "steps": 5}), ({}, {"grid": [1.0, 0.5, 0.1]})],
    "t_start": [({"x_T": X_T}, {"x_T": X_T, "t_start": 0.5})],
    "t_end": [({}, {"t_end": 0.1})],
    "seed": [({"seed": 0}, {"seed": 1}), ({"seed": 0}, {"seed": [0, 1, 2]})],
    "generator": [
        ({"seed": 0}, {"seed": None, "generator": torch.Generator().manual_seed(1)}),
        ({"solver": "ancestral"}, {"solver": "ancestral", "seed": None, "generator": torch.Generator()}),
    ],
    "final": [
        ({"final": "denoise"}, {"final": "none"}),
        ({"solver": "ancestral", "final": "mean"}, {"solver": "ancestral", "final": "none"}),
    ],
    "model_kwargs": [
        ({"score_fn": lambda x, t, k: -k * x, "model_kwargs": {"k": 1.0}},
         {"score_fn": lambda x, t, k: -k * x, "model_kwargs": {"k": 0.9}}),
    ],
    "noise": [({"solver": "ancestral"}, {"solver": "ancestral", "noise": "path"})],
}  # fmt: skip
ELSEWHERE = {"sde", "record", "execution", "resume", "log_prob"}  # in tests of their own


def test_every_argument_of_sample_has_a_test() -> None:
    """Of what it changes in the samples, or of what else it does."""
    assert set(SAMPLE_CHANGES) | ELSEWHERE == set(inspect.signature(sg.sample).parameters)


@pytest.mark.parametrize("name, pairs", SAMPLE_CHANGES.items(), ids=SAMPLE_CHANGES)
def test_every_argument_of_sample_matters(name: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Each changes the samples."""
    for one, other in pairs:
        x, y = run(**one).x, run(**other).x
        assert x.shape != y.shape or not torch.equal(x.double(), y.double()), name


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"solver": "dpm++2n"}, ValueError, "dpm..2m"),
        ({"solver": sg.DDIM}, TypeError, "class DDIM: call it"),
        ({"solver": 3}, TypeError, "3"),
        ({"solver": sg.Setting("ddim", "log-snr"), "grid": "karras"}, ValueError, "brings its own grid"),
        ({"nfe": 5, "steps": 5}, ValueError, "not both"),
        ({"nfe": 0}, ValueError, "0"),
        ({"nfe": 4.5}, ValueError, "4.5"),
        ({"nfe": 2, "solver": "rk4"}, ValueError, "nfe=2 is too small"),
        (
            {"nfe": 100, "solver": "annealed-langevin"},
            ValueError,
            r"takes 200 network calls \(100 a step, 100 once a run",
        ),
        (
            {"t_start": VP.eps * (1 + 1e-9)},
            ValueError,
            "both are 0.001 up to rounding in single precision",
        ),
        (
            {"t_start": 5.0},
            ValueError,
            r"need 0 <= t_end < t_start <= T = .*, got t_start=5.0; t_end is .* if not given",
        ),
        (
            {"noise": "path", "solver": None, "nfe": 8},
            ValueError,
            r"the default solver \(rosenbrock3-log-signal-.*-unic3-final3\) draws no noise",
        ),
        ({"nfe": "6"}, ValueError, "nfe must be an integer of at least 1, got '6'"),
        ({"nfe": math.inf}, ValueError, "nfe must be .* got inf"),
        ({"nfe": math.nan, "solver": "dopri5"}, ValueError, "nfe must be .* got nan"),
        ({"steps": [3]}, ValueError, r"steps must be .* got \[3\]"),
        ({"grid": sg.grids.Karras}, TypeError, "got the class Karras: call it"),
        ({"grid": 5}, TypeError, "grid must be a sequence of numbers, got 5"),
        ({"record": 3}, TypeError, r"record must be sg.Record\(...\), got 3"),
        ({"execution": {"compile": True}}, TypeError, "execution must be sg.Execution"),
        ({"model_kwargs": 3}, TypeError, "model_kwargs must map names .* got 3"),
        ({"model_kwargs": {"x": 3}}, TypeError, "model_kwargs must not have x: a network is called with state"),
        ({"model_kwargs": {"self": 3}}, TypeError, "model_kwargs must not have self: a network is called with state"),
        ({"shape": (True, 2)}, ValueError, r"shape\[0\] must be an integer of at least 1, got True"),
        ({"steps": 0}, ValueError, "0"),
        ({"steps": -3}, ValueError, "-3"),
        ({"steps": True}, ValueError, "True"),
        ({"grid": "kerras", "steps": 5}, ValueError, "karras"),
        ({"grid": [1.0, 0.1], "steps": 5}, ValueError, "steps=5"),
        ({"grid": [1.0, 0.1], "nfe": 5}, ValueError, "nfe=5 does not go with .* leave nfe= out, or give a grid rule"),
        ({"grid": [1.0, 0.1], "t_end": 0.2}, ValueError, "t_end=0.2"),
        ({"grid": [1.0, 0.1], "t_start": 0.9}, ValueError, "t_start=0.9"),
        ({"t_start": 1.5}, ValueError, "1.5"),
        ({"t_end": -0.5}, ValueError, "-0.5"),
        ({"t_end": 1.0}, ValueError, "1.0"),
        ({"final": "clean"}, ValueError, "clean"),
        ({"record": sg.Record([0.123])}, ValueError, "0.123"),
        ({"shape": None}, ValueError, "shape="),
        ({"shape": (3, 0)}, ValueError, r"shape\[1\] must be an integer of at least 1, got 0"),
        ({"shape": 3}, TypeError, "3"),
        ({"shape": (3, 2), "x_T": X_T}, ValueError, "not both"),
        ({"x_T": X_T, "execution": DOUBLE}, ValueError, "dtype"),
        ({"x_T": X_T, "execution": sg.Execution(device="cpu")}, ValueError, "device"),
        ({"x_T": X_T.long()}, TypeError, "int64"),
        ({"x_T": [[1.0, 2.0]]}, TypeError, "tensor"),
        ({"solver": "ddim", "noise": "path"}, ValueError, "noise='path' would change nothing: ddim draws no noise"),
        ({"score_fn": 3}, TypeError, "must be a function"),
        ({"score_fn": sg.from_noise(SCORE, LINEAR["ve"])}, ValueError, "VESDE.*VPSDE"),
    ],
)
def test_arguments_that_cannot_be_meant_are_errors(options: dict[str, Any], error: type[Exception], shown: str) -> None:
    """Wrong, unknown and conflicting arguments of `sample` are refused with their values."""
    with pytest.raises(error, match=shown):
        run(**options)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_seed_of_a_deterministic_run_from_a_given_state_does_not_matter(name: str) -> None:
    """With x_T given a deterministic solver draws nothing."""
    assert torch.equal(run(ALL[name], x_T=X_T, seed=0).x, run(ALL[name], x_T=X_T, seed=1).x)


@pytest.mark.parametrize("name", [*SAMPLERS, *ADAPTIVE, None])
def test_no_samples(name: str | None) -> None:
    """A batch of none, the last of a loader, say, is sampled as any other."""
    solver = SAMPLERS.get(name, name) if name else None
    got = sg.sample(SCORE, VP, x_T=torch.zeros(0, 3), solver=solver)
    assert got.x.shape == (0, 3)
    assert bool(got.status)


def test_no_samples_in_records_parts_and_in_parallel() -> None:
    options: tuple[dict[str, Any], ...] = (
        {"record": sg.Record(trajectory="all")},
        {"execution": sg.Execution(batch_size=4)},
        {"execution": sg.Execution(parallel=4)},
    )
    for option in options:
        got = sg.sample(SCORE, VP, x_T=torch.zeros(0, 3), nfe=6, **option)
        assert got.x.shape == (0, 3)
    with pytest.raises(ValueError, match="log_prob= needs at least one sample"):
        sg.sample(SCORE, VP, x_T=torch.zeros(0, 3), nfe=8, log_prob=True)


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 16, 3), (4, 3, 5, 5), (4, 1, 2, 3, 4), (1, 1)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_any_rank(name: str, shape: tuple[int, ...]) -> None:
    """The same numbers whatever shape they are arranged in, for states of rank one to five."""
    res = run(SAMPLERS[name], shape=shape, record=sg.Record(trajectory="all"))
    assert res.x.shape == shape
    assert res.trajectory is not None
    assert res.trajectory.shape == (7, *shape)
    assert bool(torch.isfinite(res.x).all())
    x_T = VP.prior_sample((4, 12), seed=1)
    flat = run(SAMPLERS[name], x_T=x_T).x
    assert torch.equal(run(SAMPLERS[name], x_T=x_T.reshape(4, 2, 3, 2)).x, flat.reshape(4, 2, 3, 2))


def test_outputs_are_tensors() -> None:
    """A number is none."""
    with pytest.raises(ValueError, match=r"must return a tensor, got float$"):
        run(score_fn=lambda x, t: 0.0)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda x: SimpleNamespace(loss=None, sample=x), r"net\(x, t\).sample, or .* from_diffusers"),
        (lambda x: (x,), r"got tuple: give lambda x, t: net\(x, t\)\[0\]"),
        (lambda x: {"eps": x}, r"net\(x, t\)\['eps'\]"),
        (lambda x: torch.cat([x, x], 1), r"net\(x, t\).chunk\(2, dim=1\)\[0\], or .* from_diffusers"),
    ],
    ids=["object", "tuple", "mapping", "learned variance"],
)
def test_outputs_that_hold_the_prediction_are_told_how_it_is_taken(wrap: Callable[[Tensor], Any], said: str) -> None:
    """The output of a model of diffusers, a tuple, a mapping, and that of a network with a learned variance."""
    with pytest.raises(ValueError, match=said):
        run(score_fn=lambda x, t: wrap(-x))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, t: -x[..., :1],
        lambda x, t: -x[:1],
        lambda x, t: -x.sum(),
        lambda x, t: torch.cat([x, x], 1),
        lambda x, t: -x.flatten(1),
        lambda x, t: -x.squeeze(1),
    ],
)
@pytest.mark.parametrize("make", [sg.from_score, sg.from_noise, sg.from_denoiser])
@pytest.mark.parametrize("solver", ["dpm++2m", "pc", "rk4"])
def test_outputs_that_would_broadcast_are_errors(
    make: Callable[..., sg.Score], wrong: Callable[..., Tensor], solver: str
) -> None:
    """An output of another shape than x is refused with both shapes, although arithmetic would accept it."""
    with pytest.raises(ValueError, match=r"shape \(.*for x of shape \(3, 1, 2\)"):
        run(solver, score_fn=make(wrong, VP), shape=(3, 1, 2))


@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 16), (4, 3, 2, 2, 2)])
def test_a_time_per_sample_is_many_scalar_times(process: str, shape: tuple[int, ...]) -> None:
    """Drift, kernel, transition, reverse process and scores at t of shape (B,) are those at each scalar, stacked."""
    sde = LINEAR[process]
    x = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape)
    t = torch.tensor([sde.eps, 0.2 * sde.T, 0.5 * sde.T, sde.T], dtype=F64)
    reverse = sde.reverse(elementwise_score(sde), eta=0.5)
    score = sg.from_noise(lambda x, t: torch.tanh(x), sde)
    for fn in (
        sde.f,
        lambda x, t: sde.marginal(x, t)[0],
        lambda x, t: sde.marginal(x, t)[1].expand_as(x),
        lambda x, t: sde.transition(t / 2, t)[1].reshape(-1, *[1] * (x.ndim - 1)).expand_as(x),
        reverse.f,
        score,
        score.denoised,
    ):
        together = fn(x, t)
        alone = torch.cat([fn(x[i : i + 1], t[i]) for i in range(4)])
        assert together.shape == x.shape
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert reverse.g(t).shape == (4,)
    assert sde.prior_log_prob(x).shape == (4,)
    wrong = torch.full((7,), sde.T / 2, dtype=F64)
    for fn in (sde.f, sde.marginal, score.denoised):
        with pytest.raises((ValueError, RuntimeError)):
            fn(x, wrong)


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")
@pytest.mark.parametrize("steps", [1, 2, 3, 17, *some_slow([50])])
@pytest.mark.parametrize("final", ["denoise", "mean", "none"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_calls_are_counted(name: str, final: str, steps: int) -> None:
    """The reported nfe is the number of calls the network got, and the number that the solver announces."""
    net = Recorder(SCORE)
    res = run(SAMPLERS[name], score_fn=net, steps=steps, final=final)
    assert res.nfe == len(net.labels) == SAMPLERS[name].nfe(steps) + (final == "denoise")
    assert all(x.shape == (3, 2) for x in net.states)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")
@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=8)
@given(nfe=st.integers(1, 40), final=st.sampled_from(["denoise", "none"]))
def test_a_budget_is_kept_and_used(name: str, nfe: int, final: str) -> None:
    """nfe= is never exceeded, one more step would exceed it, and what cannot be done says so."""
    solver, last = SAMPLERS[name], final == "denoise"
    _, steps = solver.fit(nfe - last)
    if steps < 1 and not (last and nfe == 1):
        with pytest.raises(ValueError, match=f"nfe={nfe} is too small"):
            run(solver, nfe=nfe, final=final)
        return
    net = Recorder(SCORE)
    res = run(solver, score_fn=net, nfe=nfe, final=final)
    assert res.nfe == len(net.labels) <= nfe
    assert solver.nfe(len(res.times)) + last > nfe


def test_the_default_is_a_budget_of_fifty() -> None:
    """Without nfe and steps a run makes fifty calls."""
    assert sg.sample(SCORE, VP, (1, 2), seed=0).nfe == 50


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # sde-dpm2m-published diverges
@pytest.mark.parametrize("name", [name for name in sg.solvers().fixed if name != "annealed-langevin"])
def test_the_registry_tells_what_a_step_costs(name: str) -> None:
    """The table's network calls per step are those that a run makes."""
    solver = sg.solvers().fixed[name]
    assert run(solver, steps=7, final="none").nfe == solver.nfe(7)
    assert solver.nfe(7) - solver.nfe(6) == solver.nfe_per_step  # a start of its own comes once


# --- the order of predictor and corrector ----------------------------------------------------------------------------


@pytest.mark.parametrize("final", ["denoise", "mean", "none"])
@pytest.mark.parametrize("predictor", [sg.ReverseDiffusion(), sg.DPMSolverPP(), sg.RungeKutta(sg.tableaus.HEUN2)])
def test_predictor_and_corrector_take_turns_as_documented(predictor: sg.Solver, final: str) -> None:
    """PC corrects each state a predictor reached; CP corrects before each predictor step. Then the final rule."""
    a, b, c, d = (1.0, 0.7, 0.3, 0.1)
    grid = sg.Grid([a, b, c, d])
    corrector = sg.schemes.AnnealedLangevin(step_ratio=0.1, n_steps=2)
    two_stages = predictor.nfe_per_step == 2

    def predict(s: float, t: float) -> list[float]:
        return [s, t] if two_stages else [s]

    def correct(t: float) -> list[float]:
        return [t, t]

    last = [d] if final == "denoise" else []
    expected = {
        "PC": [*predict(a, b), *correct(b), *predict(b, c), *correct(c), *predict(c, d), *correct(d), *last],
        "CP": [*correct(a), *predict(a, b), *correct(b), *predict(b, c), *correct(c), *predict(c, d), *last],
    }
    for order, times in expected.items():
        net = Recorder(SCORE)
        solver = sg.PredictorCorrector(predictor, corrector, order=order)
        res = run(solver, score_fn=net, grid=grid, final=final, execution=DOUBLE)
        assert net.times == pytest.approx(times, rel=1e-12)
        assert res.nfe == len(times)


def test_correctors_see_the_predicted_state_and_predictors_the_corrected() -> None:
    """The state of each call follows from the one before: no correction is lost and none is applied twice."""
    net, grid = Recorder(SCORE), sg.Grid([1.0, 0.5, 0.1])
    solver = sg.PredictorCorrector(sg.DDIM(), sg.Langevin(snr=0.3))
    res = run(solver, score_fn=net, grid=grid, final="none", execution=DOUBLE)
    x0, x1, x1_corrected, x2 = net.states
    z = stream(3, "corrector", 1.0)
    score = sg.from_score(SCORE, VP)

    def ddim(x: Tensor, s: float, t: float) -> Tensor:
        data = score.denoised(x, s)
        return VP.alpha(t) * data + VP.sigma(t) * (x - VP.alpha(s) * data) / VP.sigma(s)

    def langevin(x: Tensor, t: float) -> Tensor:
        s = score(x, t)
        eps = 2 * (0.3 * VP.sigma(t)) ** 2
        return x + eps * s + (2 * eps).sqrt() * z.normal((3, 2), F64)

    torch.testing.assert_close(x0, VP.prior_sample((3, 2), seed=0, dtype=F64), rtol=0, atol=0)
    torch.testing.assert_close(x1, ddim(x0, 1.0, 0.5), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x1_corrected, langevin(x1, 0.5), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x2, ddim(x1_corrected, 0.5, 0.1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(res.x, langevin(x2, 0.1), rtol=1e-10, atol=1e-10)


# --- devices ---------------------------------------------------------------------------------------------------------

DEVICES = ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])]


class NoDoublesOnDevices(TorchFunctionMode):
    """Refuses float64 tensors off the CPU, and, with float32 states, any rise of one to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):
            assert tensor.dtype != F64 or tensor.device.type == "cpu", func
            if tensor.dtype == F64:
                assert all(given.dtype != torch.float32 for given in tensors(args)), func
        return out


READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "numpy", "cpu", "nonzero")


class Readbacks(TorchFunctionMode):
    """Counts what waits for the value of a state. Coefficients, float64 on the host, may be read."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        on_states = any(tensor.dtype != F64 for tensor in tensors(args))
        self.count += on_states and getattr(func, "__name__", "") in READS
        return func(*args, **(kwargs or {}))


def tensors(nest: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, list | tuple):
        for part in nest:
            yield from tensors(part)


def plain(x: Tensor, t: Tensor) -> Tensor:
    """A score of elementwise arithmetic only."""
    return -x / (1 + t.reshape(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("process", ["vp", "ddpm", *some_slow(["edm", "schedule"])])
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a score of no data
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_live_where_they_are_asked_for(name: str, device: str, process: str) -> None:
    """On another device everything follows x, without a `.to` by the user, and no float64 tensor goes there."""
    sde = LINEAR[process]
    solver = sampler(name, sde) if name in ALL else SAMPLERS[name]
    with NoDoublesOnDevices():
        x_T = sde.prior_sample((2, 3), seed=0, device=device)
        runs = [
            sg.sample(
                plain,
                sde,
                (2, 3),
                solver=solver,
                steps=3,
                seed=0,
                execution=sg.Execution(device=device),
                record=sg.Record(trajectory="all"),
            ),
            sg.sample(
                plain, sde, x_T=x_T, solver=solver, steps=3, seed=0, record=sg.Record(callback=lambda info: None)
            ),
        ]
        with torch.device(device):
            runs.append(sg.sample(plain, sde, (2, 3), solver=solver, steps=3, seed=0))
    for res in runs:
        assert res.x.device.type == device
        assert res.x.is_meta or bool(torch.isfinite(res.x).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("process", LINEAR)
def test_processes_and_oracles_follow_their_argument(process: str, device: str) -> None:
    """Coefficients and exact scores, built on the CPU, come out on the device and in the dtype of x and t."""
    sde = LINEAR[process]
    x, t = torch.ones(2, 3, device=device), torch.full((2,), sde.T / 2, device=device)
    mixture = sg.oracles.GaussianMixture(torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]), 0.5)
    oracles = [sg.oracles.Gaussian(torch.zeros(3), 1.0), mixture]
    with NoDoublesOnDevices():
        out = [f(t) for f in (sde.alpha, sde.sigma, sde.log_snr, sde.g)]
        out += [sde.f(x, t), sde.prior_log_prob(x), *sde.marginal(x, t)]
        out += [value for oracle in oracles for value in (oracle.score(sde)(x, t), oracle.log_prob(x, sde, t))]
    for value in out:
        assert value.device.type == device
        assert value.dtype == torch.float32


def test_the_networks_device_is_the_samples() -> None:
    """Samples of a network with parameters are drawn where those are."""
    net = nn.Linear(3, 3, device="meta")
    score = sg.from_noise(NetOfTwo(net), VP)
    assert sg.sample(score, VP, (2, 3), steps=2, seed=0).x.is_meta


class NetOfTwo(nn.Module):
    """A network of x and t from one of x."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_reads_nothing_back(name: str, grad: bool) -> None:
    """In the loop no value of a state is asked for, so that nothing waits for the device."""
    solver, grid = SAMPLERS[name], sg.grids.LogSNR()(VP, 4)
    program = solver.compile(VP, grid)
    shift = torch.ones(3, requires_grad=grad)
    score = sg.from_noise(lambda x, t: torch.tanh(x) + shift, VP)
    score(torch.ones(2, 3), 0.5)  # the first call looks at its input, on the CPU alone
    model = bind(score, VP, grid.times)
    hooks = solver.hooks(VP, grid, model, stream(2, "corrector"), mean=False)
    with torch.set_grad_enabled(grad), Readbacks() as reads:
        got = execute(program, torch.ones(2, 3), model, stream(2), hooks=hooks, grad=grad).x
        assert reads.count == 0
        assert bool(torch.isfinite(got).all())
        assert reads.count == 1  # the mode sees what it should
    assert model.nfe == solver.nfe(4)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize("name", ["dpm++3m", "ancestral", "pc"])
def test_compiling_changes_rounding_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """compile=True is the same run. Compiled here by the tracer alone: the machine may lack a compiler."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, **{**options, "backend": "eager"}))
    score_fn = sg.from_noise(lambda x, t: torch.tanh(x) * t[:, None], VP)
    plainly = run(name, score_fn=score_fn, steps=3, execution=DOUBLE)
    for _ in range(2):
        compiled = run(name, score_fn=score_fn, steps=3, execution=sg.Execution(compile=True, dtype=F64))
        torch.testing.assert_close(compiled.x, plainly.x, rtol=1e-10, atol=1e-10)
        assert compiled.nfe == plainly.nfe


def test_compiling_keeps_no_graph() -> None:
    """Options that exclude one another are refused."""
    with pytest.raises(ValueError, match="enable_grad"):
        run(execution=sg.Execution(compile=True, enable_grad=True))


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a score of no data
@pytest.mark.slow
def test_compiled_by_the_compiler() -> None:
    """The same by torch.compile's own compiler, module and function."""
    net = nn.Linear(3, 3)
    score = sg.from_noise(lambda x, t: net(x), VP)
    options = {"shape": (4, 3), "solver": "unipc3", "steps": 6, "seed": 0}
    torch.testing.assert_close(
        sg.sample(score, VP, execution=sg.Execution(compile=True), **options).x,
        sg.sample(score, VP, **options).x,
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["dpm++3m", "unipc3", "heun", "ancestral", "sa-solver"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_cuda_graph_replays_the_eager_run(name: str, seed: int) -> None:
    """One graph for the whole run: the eager run's samples, also with other noise and another condition."""
    net = nn.Linear(8, 8).cuda()
    score = sg.from_noise(lambda x, t, shift=0.0: net(x) + shift, VP)

    options = {"shape": (4, 8), "solver": name, "steps": 10, "seed": seed}
    options["model_kwargs"] = {"shift": torch.full((4, 8), 0.1 * seed, device="cuda")}
    eager, graph = (
        sg.sample(score, VP, execution=sg.Execution(compile=c, device="cuda"), **options) for c in (False, True)
    )
    torch.testing.assert_close(graph.x, eager.x, rtol=1e-4, atol=1e-4)
    assert graph.nfe == eager.nfe


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_synchronisation_on_a_gpu() -> None:
    """Between the first network call and the last the GPU is never waited for."""
    grid = sg.grids.LogSNR()(VP, 4)
    for solver in SAMPLERS.values():
        model = bind(sg.from_noise(lambda x, t: torch.tanh(x), VP), VP, grid.times)
        hooks = solver.hooks(VP, grid, model, stream(2, "corrector"), mean=False)
        x = torch.ones(2, 3, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            execute(solver.compile(VP, grid), x, model, stream(2), hooks=hooks)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
def test_one_read_at_the_end() -> None:
    """A whole run asks once whether all states were finite, however many steps it takes."""

    counts = []
    for steps in (2, 20):
        with Readbacks() as reads:
            run("pc", score_fn=plain, steps=steps)
        counts.append(reads.count)
    assert counts == [1, 1]


# --- gradients -------------------------------------------------------------------------------------------------------


class TinyNet(nn.Module):
    """A nonlinear network with three parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.3, 0.2], dtype=F64))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a, b, c = (self.weight[i] for i in range(3))
        return torch.tanh(a * x + b * t[:, None]) + c


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_match_finite_differences(name: str) -> None:
    """With enable_grad=True the samples' derivatives by the parameters and by x_T are right to 1e-4."""
    net = TinyNet()
    x_T = VP.prior_sample((2, 3), seed=0, dtype=F64)
    direction = torch.tensor([1.0, -0.5, 0.25], dtype=F64)

    def total(weight: Tensor, x: Tensor, enable_grad: bool = False) -> Tensor:
        with torch.no_grad():
            net.weight.copy_(weight)
        options = {
            "solver": SAMPLERS[name],
            "steps": 4,
            "grid": "log-snr",
            "seed": 0,
            "execution": sg.Execution(enable_grad=enable_grad),
        }
        return sg.sample(sg.from_noise(net, VP), VP, x_T=x, **options).x.square().sum()

    weight = net.weight.detach().clone()
    x = x_T.clone().requires_grad_()
    value = total(weight, x, enable_grad=True)
    by_weight, by_x = torch.autograd.grad(value, (net.weight, x))
    torch.testing.assert_close(value.detach(), total(weight, x_T), rtol=1e-10, atol=0)
    h = 1e-5
    along = (total(weight + h * direction, x_T) - total(weight - h * direction, x_T)) / (2 * h)
    assert float(by_weight @ direction) == pytest.approx(float(along), rel=1e-4)
    step = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)
    along = (total(weight, x_T + h * step) - total(weight, x_T - h * step)) / (2 * h)
    assert float((by_x * step).sum()) == pytest.approx(float(along), rel=1e-4)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_graph_unless_asked_for(name: str) -> None:
    """By default no step leaves anything behind for a backward pass, and the network stays as it was."""
    net = TinyNet().train()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x_T = torch.ones(2, 3, dtype=F64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        res = sg.sample(
            sg.from_noise(net, VP),
            VP,
            x_T=x_T,
            solver=SAMPLERS[name],
            steps=10,
            seed=0,
            record=sg.Record(trajectory="all"),
        )
    assert saved == []
    assert res.x.grad_fn is None
    assert not res.x.requires_grad
    assert not res.trajectory.requires_grad
    assert net.training
    assert net.dropout.training
    assert net.weight.requires_grad
    assert net.weight.grad is None
    assert bool((x_T == 1).all())
    assert torch.is_grad_enabled()
    assert not res.x.is_inference()  # the samples can take part in a loss later


@pytest.mark.parametrize("solver", ["dpm++2m", "pc"])
def test_a_network_may_take_gradients_of_its_own(solver: str) -> None:
    """A guided score that calls autograd inside works without enable_grad."""

    def guided(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(-(y**2).sum() / 2, y)
        return gradient

    assert torch.equal(run(solver, score_fn=guided).x, run(solver, score_fn=lambda x, t: -x).x)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # a score of data of any size
def test_gradients_through_a_vanishing_score() -> None:
    """A corrector that does not move where the score is zero has a finite derivative there."""
    weight = torch.zeros((), dtype=F64, requires_grad=True)
    solver = sg.PredictorCorrector(sg.DDIM(), sg.Langevin())
    res = run(solver, score_fn=lambda x, t: weight * x, execution=sg.Execution(enable_grad=True, dtype=F64))
    (gradient,) = torch.autograd.grad(res.x.sum(), weight)
    assert bool(torch.isfinite(gradient))


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize(("name", "solver"), SAMPLERS.items(), ids=case_id)
def test_a_network_that_returns_its_input_is_no_trap(name: str, solver: Any) -> None:
    """A network whose output shares memory with x, or is overwritten at its next call, changes nothing."""
    buffer = torch.empty(3, 2)

    def reuses(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x, out=buffer)

    same, copied = (run(solver, score_fn=sg.from_noise(net, VP)).x for net in (lambda x, t: x, lambda x, t: x + 0))
    assert torch.equal(same, copied), name
    fresh = run(solver, score_fn=sg.from_noise(lambda x, t: torch.tanh(x), VP)).x
    assert torch.equal(run(solver, score_fn=sg.from_noise(reuses, VP)).x, fresh), name


# --- watching a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_callback_sees_every_step(name: str) -> None:
    """One call per step, in order, with the step's times, state and calls so far; looking changes nothing."""
    seen: list[sg.options.StepInfo] = []
    net = Recorder(SCORE)
    solver = SAMPLERS[name]

    def callback(info: sg.options.StepInfo) -> None:
        assert info.nfe == len(net.labels)
        seen.append(info)

    res = run(solver, score_fn=net, steps=6, record=sg.Record(callback=callback, trajectory="all"))
    assert [info.i for info in seen] == list(range(6))
    assert {info.n for info in seen} == {6}
    assert [(info.t, info.t_next) for info in seen] == list(pairwise(res.times))
    assert res.trajectory is not None
    for info, x in zip(seen, res.trajectory[1:-1], strict=True):
        assert torch.equal(info.x, x)
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen[0].x = 0
    assert torch.equal(res.x, run(solver, steps=6).x)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # the estimates are no data
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_callback_sees_an_estimate_of_the_data(name: str) -> None:
    """`denoised` is the network's estimate from the step the callback reports, not from an earlier one."""
    estimates: list[Tensor | None] = []
    levels = iter(range(100))
    counts: list[int] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, next(levels))  # the n-th call estimates n

    def callback(info: sg.options.StepInfo) -> None:
        counts.append(info.nfe)
        estimates.append(info.denoised)

    run(SAMPLERS[name], score_fn=sg.from_denoiser(net, VP), steps=4, record=sg.Record(callback=callback))
    for before, after, estimate in zip([0, *counts], counts, estimates, strict=False):
        assert estimate is not None
        assert estimate.shape == (3, 2)
        value = float(estimate[0, 0])
        assert torch.equal(estimate, torch.full((3, 2), value))
        assert before <= value < after


@pytest.mark.parametrize("make", [sg.from_score, sg.from_denoiser], ids=case_id)
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a score of no data
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_callback_gets_is_its_own(name: str, make: Any) -> None:
    """Overwriting the state or the estimate in a callback does not reach the run."""

    def vandal(info: sg.options.StepInfo) -> None:
        info.x.fill_(math.nan)
        if info.denoised is not None:
            info.denoised.fill_(math.nan)

    score = make(SCORE, VP)
    clean = run(SAMPLERS[name], score_fn=score).x
    assert torch.equal(run(SAMPLERS[name], score_fn=score, record=sg.Record(callback=vandal)).x, clean)


@pytest.mark.parametrize("answer", [True, np.True_, torch.tensor(True)])
@pytest.mark.parametrize("name", ["dpm++2m", "rk4", "pc", "annealed-langevin"])
def test_a_callback_can_stop_the_run(name: str, answer: object) -> None:
    """Returning True ends the run at that step: no call more, the state as it is, and a status that says so."""
    net = Recorder(SCORE)
    calls: list[int] = []

    def callback(info: sg.options.StepInfo) -> object:
        calls.append(len(net.labels))
        return answer if info.i == 2 else None

    res = run(SAMPLERS[name], score_fn=net, steps=6, record=sg.Record(callback=callback, trajectory="all"))
    assert len(calls) == 3
    assert res.nfe == len(net.labels) == calls[-1]
    assert res.status.stopped
    assert not res.status
    assert f"t={res.times[3]:.6g}" in str(res.status)
    assert res.trajectory_times == res.times[:4]
    assert torch.equal(res.trajectory[-1], res.x)
    assert torch.equal(res.x, run(SAMPLERS[name], steps=6, record=sg.Record(trajectory="all")).trajectory[3])


@pytest.mark.parametrize("answer", [None, False, 0])
def test_a_callback_that_does_not_stop(answer: object) -> None:
    """Any other answer goes on; stopping at the last step is a completed run, denoised as usual."""
    res = run(steps=3, record=sg.Record(callback=lambda info: answer))
    assert res.status.ok
    assert not res.status.stopped
    assert str(res.status) == "completed"
    last = run(steps=3, record=sg.Record(callback=lambda info: info.i == 2))
    assert last.status.ok
    assert torch.equal(last.x, res.x)


def test_a_callback_answers_for_the_run() -> None:
    """One truth value; several have no meaning, and are refused in words."""
    assert run(steps=3, record=sg.Record(callback=lambda info: torch.tensor(True))).status.stopped
    with pytest.raises(ValueError, match=r"the callback must return True to stop, or nothing, got a tensor of shape"):
        run(steps=3, record=sg.Record(callback=lambda info: info.x > 0))


@pytest.mark.parametrize("process", ["vp", "ve", "edm"])
@pytest.mark.parametrize("final", ["denoise", "mean", "none"])
@pytest.mark.parametrize("name", ["dpm++2m", "ancestral", "pc"])
def test_trajectories(name: str, final: str, process: str) -> None:
    """All nodes and the denoised end, or those asked for; the last of all is the result."""
    sde = LINEAR[process]
    options = {"solver": name, "steps": 4, "seed": 0, "final": final}
    x_T = sde.prior_sample((3, 2), seed=0)
    every = sg.sample(elementwise_score(sde), sde, x_T=x_T, record=sg.Record(trajectory="all"), **options)
    end = (0.0,) if final == "denoise" else ()
    assert every.trajectory_times == (*every.times, *end)
    assert every.trajectory.shape == (5 + len(end), 3, 2)
    assert torch.equal(every.trajectory[0], x_T)
    assert torch.equal(every.trajectory[-1], every.x)
    wanted = [every.times[3], every.times[1], *end]
    some = sg.sample(elementwise_score(sde), sde, x_T=x_T, record=sg.Record(trajectory=wanted), **options)
    assert some.trajectory_times == (every.times[1], every.times[3], *end)
    assert torch.equal(some.trajectory, every.trajectory[[1, 3, *([5] if end else [])]])
    assert sg.sample(elementwise_score(sde), sde, x_T=x_T, **options).trajectory is None


def test_a_trajectory_to_time_zero_ends_in_the_result() -> None:
    """Where the grid itself reaches t = 0 the denoised end is still the last of the trajectory."""
    sde = LINEAR["ve"]
    res = sg.sample(
        elementwise_score(sde),
        sde,
        (3, 2),
        solver="ddim",
        steps=4,
        t_end=0.0,
        seed=0,
        record=sg.Record(trajectory="all"),
    )
    assert torch.equal(res.trajectory[-1], res.x)


@pytest.mark.parametrize("stop", [None, 2])
def test_progress(monkeypatch: pytest.MonkeyPatch, stop: int | None) -> None:
    """A bar is shown if asked for, counts every step and is closed, also when the run is stopped or fails."""
    bars: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.options, self.done, self.closed = options, 0, False
            bars.append(self)

        def update(self, n: int = 1) -> None:
            self.done += n

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    quiet = run(steps=5)
    assert bars == []
    res = run(steps=5, record=sg.Record(progress=True, callback=lambda info: info.i == stop))
    (bar,) = bars
    assert bar.options["total"] == 5
    assert bar.done == (5 if stop is None else 3)
    assert bar.closed
    assert stop is not None or torch.equal(res.x, quiet.x)
    with pytest.raises(ZeroDivisionError):
        run(steps=5, record=sg.Record(progress=True, callback=lambda info: 1 // (info.i - 1)))
    assert bars[-1].closed


def test_a_run_without_tqdm() -> None:
    """The package imports and samples where tqdm is missing; only progress=True needs it."""
    code = (
        "import sys; sys.modules['tqdm'] = sys.modules['tqdm.auto'] = None\n"
        "import sgm_sde as sg\n"
        "assert sg.sample(lambda x, t: -x, sg.VPSDE(), (1, 2), steps=2, seed=0).status.ok\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rows_count_what_the_network_has_seen() -> None:
    """Every call sees the whole batch, a corrector's and the final one too."""
    solver = sg.PredictorCorrector(sg.DDIM(), sg.Langevin(n_steps=2))
    res = sg.sample(lambda x, t: -x, sg.VPSDE(), (5, 2), solver=solver, steps=3, seed=0)
    assert (res.nfe, res.network_evals) == (10, 50)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a score of no data
def test_a_network_may_change_its_own_copy() -> None:
    """That a cast makes; without one it is said at once."""
    clean, dirty = (torch.nn.Sequential(torch.nn.ReLU(inplace=i), torch.nn.Linear(2, 2)) for i in (False, True))
    dirty.load_state_dict(clean.state_dict())
    score = sg.from_noise(lambda x, t: dirty(x), VP)
    with pytest.raises(ValueError, match="changed its input in place"):
        score(torch.ones(3, 2), 0.5)

    class Net(torch.nn.Module):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out

    a, b = (sg.sample(sg.from_noise(Net(n), VP), VP, (3, 2), solver="heun", nfe=6, seed=0, execution=DOUBLE).x
            for n in (clean, dirty))  # fmt: skip
    assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a score of no data
@pytest.mark.parametrize("solver", [None, "heun", "dpm++2m", "ancestral", "dopri5", "torchdiffeq:dopri5"])
@pytest.mark.parametrize("mode", [torch.no_grad(), torch.inference_mode()], ids=case_id)
def test_a_network_may_not_change_its_input(solver: str | None, mode: AbstractContextManager[None]) -> None:
    """Said at once, since the input is the run's state."""
    clean, dirty = (torch.nn.Sequential(torch.nn.ReLU(inplace=i), torch.nn.Linear(2, 2)) for i in (False, True))
    dirty.load_state_dict(clean.state_dict())
    score = sg.from_noise(lambda x, t: dirty(x), VP)

    with mode, warnings.catch_warnings(), pytest.raises(ValueError, match="changed its input in place"):
        warnings.simplefilter("ignore")
        sg.sample(score, VP, (3, 2), solver=solver, seed=0)


def through_numpy(x: Tensor) -> Tensor:
    """What a network of NumPy may do to the memory of its state."""
    array = x.numpy()
    array *= 0.9
    return torch.from_numpy(array.copy())


def through_data(x: Tensor) -> Tensor:
    return x.data.mul_(0.9).clone()


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a score of no data
@pytest.mark.parametrize("solver", [None, "heun", "dpm++2m", "pc", "dopri5"])
@pytest.mark.parametrize("change", [through_numpy, through_data])
def test_memory_that_is_written_past_autograd(solver: str | None, change: Callable[[Tensor], Tensor]) -> None:
    """By NumPy or `x.data`, which no version counter sees: said at the first call."""
    score = sg.from_noise(lambda x, t: change(x), VP)
    with pytest.raises(ValueError, match="changed its input in place"):
        sg.sample(score, VP, (3, 2), solver=solver, seed=0)


def test_states_that_are_no_numbers_are_not_changed() -> None:
    score = sg.from_noise(lambda x, t: x, VP)
    assert bool(score(torch.full((2, 2), math.nan), 0.5).isnan().all())
    assert torch.func.vmap(lambda x: sg.from_noise(lambda x, t: x, VP)(x, 0.5))(torch.ones(2, 1, 2)).shape == (2, 1, 2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_networks_return_floating_point_numbers(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"floating-point numbers, got dtype {dtype}"):
        sg.sample(lambda x, t, dtype=dtype: x.to(dtype), VP, (2, 2), nfe=3, seed=0)


UNTRACED: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "no_grad": lambda net: torch.no_grad()(lambda x, t: net(x, t)),
    "inference": lambda net: torch.inference_mode()(lambda x, t: net(x, t)),
    "detached input": lambda net: lambda x, t: net(x.detach(), t),
    "detached output": lambda net: lambda x, t: net(x, t).detach(),
}
DIFFERENTIATED = {
    "grid": lambda score, x: sg.sample(score, VP, x_T=x, nfe=4, execution=sg.Execution(enable_grad=True)),
    "adaptive": lambda score, x: sg.sample(
        score, VP, x_T=x, solver="bosh3", nfe=30, execution=sg.Execution(enable_grad=True)
    ),
    "encode": lambda score, x: sg.encode(score, VP, x, enable_grad=True),
    "decode": lambda score, x: sg.decode(score, VP, x, enable_grad=True),
    "auto": lambda score, x: sg.sample(
        sg.guidance.Auto(sg.from_noise(TinyNet(), VP), score, 2.0),
        VP,
        x_T=x,
        nfe=4,
        execution=sg.Execution(enable_grad=True),
    ),
}


@pytest.mark.parametrize("run", DIFFERENTIATED)
@pytest.mark.parametrize("kind", UNTRACED)
def test_networks_without_gradients_are_refused_where_they_are_asked_for(kind: str, run: str) -> None:
    """What solvers add to the output has a gradient in any case, and a wrong one."""
    x_T = torch.ones(2, 3, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="the network gives no gradient with respect to x, which is needed here"):
        DIFFERENTIATED[run](sg.from_noise(UNTRACED[kind](TinyNet()), VP), x_T)


@pytest.mark.parametrize("kind", UNTRACED)
def test_networks_without_gradients_run_where_none_is_asked_for(kind: str) -> None:
    x_T = torch.ones(2, 3, dtype=F64)
    net = TinyNet()
    found = run(x_T=x_T, score_fn=sg.from_noise(UNTRACED[kind](net), VP))
    assert torch.equal(found.x, run(x_T=x_T, score_fn=sg.from_noise(net, VP)).x)


class Untraced(TinyNet):
    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t)


def test_parameters_and_conditions_without_gradients_are_refused() -> None:
    """Without x_T's gradient, too."""
    options: dict[str, Any] = {"nfe": 3, "seed": 0, "execution": sg.Execution(enable_grad=True, dtype=F64)}
    net = Untraced()
    with pytest.raises(ValueError, match="no gradient with respect to its parameters, which require grad"):
        sg.sample(sg.from_noise(net, VP), VP, (2, 3), **options)
    net.requires_grad_(False)
    assert not sg.sample(sg.from_noise(net, VP), VP, (2, 3), **options).x.requires_grad

    score = sg.from_noise(lambda x, t, c: net(x, t) + c.detach(), VP)
    c = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient with respect to its conditions, which require grad"):
        sg.sample(score, VP, (2, 3), model_kwargs={"c": c}, **options)


class OfTime(TinyNet):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.weight * t[:, None]


def test_networks_that_do_not_depend_on_the_state_have_gradients() -> None:
    """By their parameters; the state's is that of the steps alone."""
    net = OfTime()
    x_T = torch.ones(2, 3, dtype=F64, requires_grad=True)
    options: dict[str, Any] = {"solver": "ddim", "steps": 4, "final": "none"}
    x = sg.sample(sg.from_noise(net, VP), VP, x_T=x_T, execution=sg.Execution(enable_grad=True), **options).x
    by_x, by_weight = torch.autograd.grad(x.sum(), (x_T, net.weight))
    with torch.no_grad():
        moved = sg.sample(sg.from_noise(net, VP), VP, x_T=x_T + 1, **options).x - x
        net.weight += 1
        turned = sg.sample(sg.from_noise(net, VP), VP, x_T=x_T, **options).x - x
    torch.testing.assert_close(by_x, moved, rtol=1e-8, atol=0)
    torch.testing.assert_close(by_weight.sum(), turned.sum(), rtol=1e-8, atol=0)


def test_gradients_asked_for_in_inference_mode() -> None:
    """`enable_grad=True` means what it says there, too."""
    weight = torch.tensor(1.0, requires_grad=True)
    with torch.inference_mode():
        x = sg.sample(lambda x, t: -weight * x, VP, (2, 2), nfe=3, seed=0, execution=sg.Execution(enable_grad=True)).x
        code = sg.encode(lambda x, t: -weight * x, VP, torch.ones(2, 2), enable_grad=True).x
    assert x.requires_grad and code.requires_grad


def test_arguments_pass_as_they_are() -> None:
    """Containers among the network's arguments keep their type."""

    class Condition(UserDict[str, float]):
        scale = property(lambda self: self["scale"])

    def net(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return -condition.scale * x

    options: dict[str, Any] = {"model_kwargs": {"condition": Condition(scale=1.0)}}
    assert sg.sample(net, VP, (2, 2), nfe=3, seed=0, **options).status.ok
    assert sg.log_prob(net, VP, torch.ones(2, 2), **options).status.ok


@pytest.mark.parametrize("solver", ["ddim", "dopri5", "torchdiffeq:dopri5"])
def test_warnings_point_at_the_call(solver: str) -> None:
    with pytest.warns(UserWarning) as caught:
        sg.sample(lambda x, t: x * math.nan, VP, (2, 2), solver=solver, seed=0, t_start=0.5)
    assert {w.filename for w in caught} == {__file__}


@pytest.mark.parametrize("t", [torch.full((2,), 0.5), torch.full((3, 1, 1), 0.5)], ids=case_id)
def test_times_go_with_samples(t: Any) -> None:
    """One, one per sample, or as many axes as x."""
    with pytest.raises(ValueError, match=r"t has shape .*, expected \(\) or \(3,\), .* x of shape \(3, 2\)"):
        sg.from_noise(lambda x, t: x, VP)(torch.ones(3, 2), t)


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [(None, TypeError, "got None"), (3, TypeError, "got 3"), ("foo", ValueError, "'foo'")],
)
def test_a_wrong_log_prob_is_named(value: Any, error: type[Exception], shown: str) -> None:
    with pytest.raises(error, match=f"log_prob must be .*{shown}"):
        sg.sample(plain, VP, (2, 2), nfe=10, seed=0, log_prob=value)


@pytest.mark.parametrize("process", ["vp", "edm"])
def test_the_default_for_data_of_another_scale(process: str) -> None:
    """Nearer to the flow than that for data of scale 1."""
    sde, s = LINEAR[process], 0.02
    oracle = sg.oracles.GaussianMixture(s * torch.tensor([[-1.0], [0.3], [1.2]], dtype=F64), 0.2 * s)
    x = sde.prior_sample((64, 1), seed=0, dtype=F64)
    solver = sg.Adaptive(sg.tableaus.TSIT5, rtol=1e-8, atol=1e-10)
    exact = sg.sample(oracle.score(sde), sde, x_T=x, solver=solver, t_end=sde.eps).x
    errors = [
        float((sg.sample(oracle.score(sde), sde, x_T=x, nfe=16, solver=setting).x - exact).square().mean().sqrt())
        for setting in (None, sg.defaults.default_setting(sde, 16, data_std=s))
    ]
    assert errors[1] < 0.2 * errors[0] and errors[1] < 0.03 * s


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
def test_results_are_compared_by_identity() -> None:
    """Tensors have no truth value, so that two results are equal when they are one."""
    one, other = (sg.sample(plain, VP, (2, 2), nfe=10, seed=0) for _ in range(2))
    assert one == one and one != other


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"t_start": math.nan}, "t_start"),
        ({"t_end": 2.0}, "t_end"),
        ({"t_start": -1.0}, "t_start"),
        ({"data_std": 1e-300}, "data_std must be .*1e-300"),
        ({"data_std": 2e5}, "data_std must be .*at most 100000, got 200000"),
    ],
    ids=case_id,
)
def test_defaults_of_no_process_are_refused(options: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        sg.defaults.default_setting(VP, 12, **options)


def test_a_start_beyond_the_process_is_told_with_the_end_that_it_has() -> None:
    """And not with one that nobody gave."""
    with pytest.raises(ValueError, match=r"got t_start=3.0; t_end is 0.001 if not given"):
        sg.sample(SCORE, VP, (2, 3), nfe=4, t_start=3.0)
    assert sg.defaults.default_setting(VP, 12, t_start=5e-4) == sg.defaults.default_setting(VP, 12)


def test_what_is_no_result_is_told_before_what_it_would_bring() -> None:
    with pytest.raises(TypeError, match=r"resume must be the result of sample\(\), got 3"):
        sg.sample(SCORE, VP, (2, 3), nfe=4, resume=3)  # type: ignore[arg-type]


def test_the_way_out_of_a_singular_end_is_above_it() -> None:
    """And that of a singular start below."""
    score = sg.from_denoiser(lambda x, t: x, VP)
    with pytest.raises(ValueError, match=r"does not determine the noise at t=0.0, .*: end above it \(t_end=\)"):
        sg.sample(score, VP, (2, 2), nfe=10, solver="heun", t_end=0.0, final="none")
    flow = sg.RectifiedFlowSDE(T=1.0)
    with pytest.raises(ValueError, match=r"does not determine the data at t=1.0, .*: start below it"):
        sg.sample(sg.from_noise(lambda x, t: x, flow), flow, (2, 2), nfe=10, solver="dpm++2m", grid="uniform")


def test_a_fitted_solver_is_refused_on_times_of_tokens_in_a_line() -> None:
    """Without its table, alone and as a setting."""
    table = Calibrated(Table((10.0, 1.0), (10.0, 500.0, 0.0), ((0.0,), (0.0, 1.0))))
    grid = sg.grids.TokenGrid.staggered([1.0, 0.5, 0.1], [0, 1])
    for solver in (table, sg.Setting(table)):
        with pytest.raises(ValueError, match=r"^calibrated2 was fitted to noise levels of its own, .{1,40}$"):
            sg.sample(SCORE, VP, (2, 2), solver=solver, grid=grid)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cpu"}, r"sample\(\) has no argument 'device': give execution=Execution\(device=\.\.\.\)"),
        ({"progress": True}, r"record=Record\(progress=\.\.\.\)"),
        ({"num_steps": 18}, "nfe=, the number of network calls, or steps="),
        ({"n_steps": 18}, "nfe=, the number of network calls, or steps="),
        ({"batch": 4}, "shape=, with the number of samples first"),
        ({"latents": 0}, "x_T="),
        ({"y": 3}, "model_kwargs="),
        ({"stepz": 18}, r"unexpected argument 'stepz'; did you mean 'steps'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_an_argument_of_another_name_is_told(given: dict[str, Any], said: str) -> None:
    """Options that other libraries have, and those that belong in an object."""
    sde = sg.VPSDE()
    with pytest.raises(TypeError, match=said):
        sg.sample(sg.from_noise(lambda x, t: x, sde), sde, (4, 2), **given)


TRANSFORMED = ["ddim", "dpm++2m", "heun", "euler-maruyama", "unipc3", None]
SCALES = torch.tensor([0.1, 0.3], dtype=F64)


def scaled(factor: Tensor, x: Tensor, solver: str | None) -> Tensor:
    """Samples from states by a network that multiplies by a factor."""
    score = sg.from_noise(lambda x, t: factor * x, VP)
    return sg.sample(score, VP, x_T=x, solver=solver, nfe=6, seed=0, execution=sg.Execution(enable_grad=True)).x


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")  # few calls
@pytest.mark.parametrize("solver", TRANSFORMED)
def test_runs_within_transformations(solver: str | None) -> None:
    """An ensemble by vmap is that of separate runs; jvp and jacrev are the slope in x, which is constant here."""
    x = torch.ones(2, 3, dtype=F64)
    together = torch.func.vmap(lambda factor: scaled(factor, x, solver))(SCALES)
    apart = torch.stack([scaled(factor, x, solver) for factor in SCALES])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)

    factor = SCALES[1]
    slope = scaled(factor, 2 * x, solver) - scaled(factor, x, solver)
    _, tangent = torch.func.jvp(lambda x: scaled(factor, x, solver), (x,), (x,))
    jacobian = torch.func.jacrev(lambda x: scaled(factor, x, solver))(x)
    torch.testing.assert_close(tangent, slope, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(jacobian.flatten(0, 1).flatten(1).sum(1).reshape(2, 3), slope, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")  # few calls
@pytest.mark.parametrize("solver", TRANSFORMED)
def test_gradients_of_a_run_by_a_transformation(solver: str | None) -> None:
    """Those of autograd, with respect to the network."""
    x = torch.ones(2, 3, dtype=F64)
    found = torch.func.grad(lambda factor: scaled(factor, x, solver).sum())(SCALES[0])
    factor = SCALES[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(scaled(factor, x, solver).sum(), factor)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "dopri5", "nfe": None, "execution": sg.Execution(enable_grad=True)},
        {"solver": "ddim", "nfe": 8, "log_prob": True, "execution": sg.Execution(enable_grad=True)},
        {"execution": sg.Execution(parallel=2)},
        {"grid": sg.grids.TokenGrid.staggered([1.0, 0.5, 0.1], [0, 1, 1]), "nfe": None, "solver": "ddim"},
    ],
    ids=["no graph", "adaptive", "density", "parallel", "tokens"],
)
def test_runs_that_look_at_values_are_refused_within_transformations(options: dict[str, Any]) -> None:
    def run(x: Tensor) -> Tensor:
        return sg.sample(SCORE, VP, x_T=x, **{"nfe": 6, "seed": 0} | options).x.sum()

    with pytest.raises(RuntimeError, match=r"sample\(\) looks at values .*within a transformation of torch\.func"):
        torch.func.grad(run)(torch.ones(2, 3))
