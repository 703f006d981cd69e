"""Refusals and warnings: at the call, by what was typed, and alone, without the traceback of somebody else's below."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde import cli
from sgm_sde.adapters import from_flow_matching
from sgm_sde.runs import distributed as runs
from sgm_sde.schemes.base import REGISTRY
from tests.conventions import case_id
from tests.fuzz import PACKAGE, shown_below

VP, FLOW, CLD = sg.VPSDE(), sg.RectifiedFlowSDE(), sg.CLD()
ONE = sg.oracles.Gaussian(torch.zeros(2), 0.25)
SCORE = ONE.score(VP)
JOINT = ONE.score(CLD)
DIGITS = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)


def net(x: Tensor, t: Tensor, **_: Any) -> Tensor:
    """A network of nothing."""
    return 0 * x


TABLE = sg.from_noise(net, sg.presets.ddpm())
COUPLED = sg.from_flow(net, FLOW, coupled=True)


def drawn(score: sg.Score, event: int = 1, **options: Any) -> sg.SampleResult:
    """Two samples."""
    return sg.sample(score, score.sde, (2, *[2] * event), seed=0, **options)


def own_process(**methods: Any) -> sg.SDE:
    """A process of the caller's own, with some of its methods."""

    class Own(sg.SDE):
        T, eps, prior_std = 1.0, 1e-3, 1.0

        def f(self, x: Tensor, t: Any) -> Tensor:
            return methods.get("f", lambda x, t: -x)(x, t)

        def g(self, t: Any) -> Tensor:
            return methods.get("g", torch.ones_like)(t)

    return Own()


def of_own(sde: sg.SDE) -> sg.SampleResult:
    """Samples of a process of one's own."""
    return sg.sample(lambda x, t: -x, sde, (2, 2), solver="euler-maruyama", steps=4, seed=0, final="none")


def without_an_end() -> sg.SDE:
    """A process of the caller's own that says nothing of its times."""

    class Endless(sg.LinearSDE):
        def alpha(self, t: Any) -> Tensor:
            return torch.exp(-t)

        def sigma(self, t: Any) -> Tensor:
            return t

    return Endless()


def own_solver(step: Callable[[Any], Any]) -> sg.Solver:
    """A solver of the caller's own."""

    class Own(sg.Solver):
        name, order, prediction, source = "own", 1, "drift", "here"

        def step(self, k: Any) -> Any:
            return step(k)

    return Own()


def own_corrector(update: Callable[..., Any] = lambda x, z: (x, z), constants: Any = None) -> sg.Corrector:
    """A corrector of the caller's own."""

    class Own(sg.Corrector):
        n_steps = 1

        def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> Any:
            return update(x, z)

        def constants(self, sde: sg.SDE, grid: sg.Grid) -> Any:
            return [1.0] * len(grid.times) if constants is None else constants

    return Own()


def own_rule(place: Callable[[Tensor], Any]) -> sg.grids.GridRule:
    """A rule of the caller's own."""

    class Own(sg.grids.GridRule):
        def place(self, sde: sg.SDE, u: Tensor, start: float, end: float) -> Any:
            return place(u)

    return Own()


def scheduled(alpha: Callable[[Tensor], Any] = torch.cos) -> sg.LinearSDE:
    """A process of functions that are made anew."""
    return sg.LinearSDE.from_schedule(alpha, lambda t: torch.sin(t))


def of_class(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A network of a class."""
    return x * y[:, None]


def guided(score: sg.Score | None = None, **null: Any) -> sg.Score:
    """Guided by what stands for none, 10 if nothing is given."""
    return sg.guidance.ClassifierFree(score or sg.from_noise(of_class, VP), 2.0, null=null or {"y": 10})


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    # The solver by the name that was typed.
    **{
        f"{name} on a flow of coupled pairs": (
            lambda name=name: drawn(COUPLED, solver=name, nfe=5),
            rf"^{re.escape(name)}, which adds noise or corrects by the score, needs the score",
        )
        for name in ("edm-sde", "EDM-SDE", "euler-ancestral", "ddpm", "pc", "lcm", "annealed-langevin", "ggf")
    },
    "DDIM(eta=1) on a flow of coupled pairs": (
        lambda: drawn(COUPLED, solver=sg.DDIM(eta=1), nfe=5),
        r"^DDIM\(eta=1\.0\), which adds noise",
    ),
    "a setting on a flow of coupled pairs": (
        lambda: drawn(COUPLED, solver=sg.Setting("sde-dpm++2m", "uniform"), nfe=5),
        r"^sde-dpm\+\+2m, which adds noise",
    ),
    **{
        f"{name} on CLD": (
            lambda name=name: drawn(JOINT, 2, solver=name, steps=3),
            rf"^{re.escape(name)} needs [\w ]+\(t\), which CLD does not have",
        )
        for name in ("dpm++2m", "heun", "ddim", "pc", "edm-sde", "lcm", "dpm++3m-restart")
    },
    "a solver driven from outside on CLD": (
        lambda: sg.stepping.stepper("dpm++2m", CLD, nfe=5),
        r"^dpm\+\+2m needs lam\(t\)",
    ),
    "a budget below the first step": (
        lambda: drawn(SCORE, solver="rk45", nfe=5),
        r"^nfe=5 is too small: the first step of rk45 takes 8 network calls and final='denoise' one more",
    ),
    "a grid of a solver that has none": (
        lambda: drawn(SCORE, solver="rk45", grid="karras"),
        "^grid= needs a solver on a grid, and rk45 finds its own steps",
    ),
    # Networks, by what they predict.
    **{
        f"{name} on CLD": (lambda name=name: getattr(sg, name)(net, CLD), r"needs a LinearSDE, got CLD\(")
        for name in ("from_v", "from_flow")
    },
    "an unknown prediction on CLD": (
        lambda: sg.Score(net, CLD, "nonsense"),
        "^prediction must be one of 'data', 'data_x', 'noise', 'score', 'noise_v', 'score_v', got 'nonsense'",
    ),
    **{
        f"from_flow_matching(scale={scale})": (
            lambda scale=scale: from_flow_matching(net, scale=scale),
            f"^scale must be positive and finite, got {scale}",
        )
        for scale in (0, -1)
    },
    # The option by its name.
    **{
        f"default_candidates(10, {std})": (
            lambda std=std: sg.trials.default_candidates(10, std),
            f"^data_std must be finite, at least 1e-06 and at most 100000, got {std}",
        )
        for std in (1e-9, 2e5)
    },
    "calibrate(nfe='12')": (
        lambda: sg.calibrate(SCORE, VP, (4, 2), nfe="12"),  # type: ignore[call-overload]
        "^nfe must be an integer of at least 1, or a list of such, got '12'",
    ),
    "sample(grid=3)": (lambda: drawn(SCORE, grid=3), "^grid must be a sequence of numbers, got 3"),
    "sample(grid=[1, 'a'])": (lambda: drawn(SCORE, grid=[1, "a"]), r"^grid\[1\] must be one number, got 'a'"),
    "sample(grid=[0.1, 1])": (lambda: drawn(SCORE, grid=[0.1, 1]), r"^grid must strictly decrease, got grid\[0\] = 0"),
    "encode(eps='a')": (lambda: sg.encode(SCORE, VP, torch.zeros(1, 2), eps="a"), "^eps must be one number, got 'a'"),  # type: ignore[arg-type]
    "Uniform(low='a')": (lambda: sg.training.Uniform(low="a"), "^low must be one number, got 'a'"),  # type: ignore[arg-type]
    "t_start='a'": (lambda: drawn(SCORE, t_start="a"), "^t_start must be one number, got 'a'"),
    "generator='abc'": (
        lambda: VP.prior_sample((3, 2), generator="abc"),  # type: ignore[arg-type]
        "^generator must be a torch.Generator or a list of them, got 'abc'",
    ),
    **{
        f"device={name!r}": (
            lambda name=name: sg.sample(SCORE, VP, (2, 2), nfe=4, seed=0, execution=sg.Execution(device=name)),
            f"^device '{name}' is none that torch can use here|^device must be a device such as .*, got '{name}'",
        )
        for name in ("xla", "vulkan", "xx", "hpu", "mtia", "privateuseone", "cuda:x")
    },
    "a spec that is no JSON": (lambda: sg.from_spec("{"), "^the spec of a value is JSON, got '{'"),
    **{
        f"{name} of what is no path": (call, "^the path of a file or folder is needed, got 3")
        for name, call in {
            "a store": lambda: sg.store.Store(3, {}),  # type: ignore[arg-type]
            "a run": lambda: sg.distributed.sample("digits", 4, 3, nfe=4, device="cpu"),  # type: ignore[arg-type]
            "a calibration": lambda: sg.calibration.load_calibration(3),  # type: ignore[attr-defined]
        }.items()
    },
    "merge of one folder": (
        lambda: sg.distributed.merge("run", "whole"),
        "^give a list of at least one folder to merge, got 'run'",
    ),
    "one label": (
        lambda: sg.distributed.sample("digits", 4, "run", labels=3),  # type: ignore[arg-type]
        "^labels must be 'all', a list of classes or None, got 3",
    ),
    "a checkpoint without a name": (
        lambda: sg.calibrate(lambda x, t: x, VP, (16, 2), nfe=4, checkpoint=""), "'' names no folder"
    ),
    # Options that would do nothing, and those that are refused where they are given.
    **{
        f"default_setting(CLD, {name}=)": (
            lambda name=name, value=value: sg.defaults.default_setting(CLD, 10, **{name: value}),
            rf"^{name}={value} changes nothing: the default on CLD\(.*\) does not depend on it",
        )
        for name, value in {"data_std": 3.0, "coupled": True}.items()
    },
    "a scale where log-SNR is infinite": (
        lambda: sg.defaults.default_setting(VP, 10, t_end=0.0, data_std=3.0),
        r"^data_std=3.0 changes nothing for a run from or to t=0.0",
    ),
    "more jumps than nodes": (
        lambda: drawn(SCORE, nfe=4, solver="ddim", grid=sg.grids.Thinned(jumps=(9.0, 3.0, 1.0))),
        r"^jumps=\(9\.0, 3\.0, 1\.0\) need 3 nodes between the ends, and 3 steps have 2",
    ),
    "Thresholded(most=0.5)": (
        lambda: sg.guidance.Thresholded(SCORE, most=0.5),
        "^most=0.5 bounds a dynamic threshold: give a percentile",
    ),
    "a grid of no times": (lambda: drawn(SCORE, grid=[]), "^grid must have at least one time, got none"),
    "a grid of another library": (
        lambda: drawn(SCORE, grid="beta"),
        "^unknown grid 'beta': quantiles of a Beta distribution are times of your own",
    ),
    "a scheduler's grid of no name": (
        lambda: sg.adapters.SolverScheduler({"beta_schedule": "linear"}, "ddim", grid="karas"),
        "^unknown grid 'karas'; did you mean 'karras'",
    ),
    "a scheduler's grid that rises": (
        lambda: sg.adapters.SolverScheduler({"beta_schedule": "linear"}, "ddim", grid=[0.1, 1.0]),
        "^grid must strictly decrease",
    ),
    **{
        f"compile of {solver.name} on CLD": (
            lambda solver=solver: solver.compile(CLD, sg.Grid([1.0, 0.5])),
            rf"^{re.escape(solver.name)} needs \w+\(t\), which CLD does not have",
        )
        for solver in (sg.DPMSolverPP(), sg.Heun(), sg.DDIM())
    },
    "compile on times": (
        lambda: sg.Heun().compile(VP, [1.0, 0.5]),  # type: ignore[arg-type]
        r"^grid must be a Grid, such as Grid\(\[1.0, 0.5, 0.1\]\), got \[1.0, 0.5\]",
    ),
    "a stepper with noise on a flow of coupled pairs": (
        lambda: sg.stepping.stepper("ddpm", FLOW, nfe=5, coupled=True),
        "^ddpm adds noise by the score, which a flow of coupled pairs does not give",
    ),
    # What is no list, data or state.
    "bench(nfe=5)": (
        lambda: sg.bench.bench("digits", "nowhere", nfe=5),  # type: ignore[arg-type]
        "^nfe must be a list of integers, got 5",
    ),
    "bench(nfe=['a'])": (
        lambda: sg.bench.bench("digits", "nowhere", nfe=["a"]),  # type: ignore[list-item]
        "^nfe must be integers of at least 1, got 'a'",
    ),
    "bench(solvers='ddim')": (
        lambda: sg.bench.bench("digits", "nowhere", solvers="ddim"),
        "^solvers must be a list of names, or a mapping from labels, got 'ddim'",
    ),
    "labels=[0.5]": (
        lambda: sg.distributed.sample("digits", 4, "nowhere", labels=[0.5]),  # type: ignore[list-item]
        "^the model 'digits' has the classes 0 to 9, got label 0.5",
    ),
    "a measurement of no data": (
        lambda: sg.inverse.Measurement.simulate(sg.inverse.BlockAverage(2), [1.0]),  # type: ignore[arg-type]
        r"^x must be a floating tensor \(B, \*\), got \[1.0\]",
    ),
    "a step from no state": (
        lambda: sg.stepping.stepper("ddim", VP, nfe=4).step(torch.zeros(2, 2), 1.0, None),  # type: ignore[arg-type]
        r"^x must be a floating tensor \(B, \*\), got None",
    ),
    **{
        f"a step at t={t!r}": (
            lambda t=t: sg.stepping.stepper("ddim", VP, nfe=4).step(torch.zeros(2, 2), t, torch.zeros(2, 2)),
            words,
        )
        for t, words in (("a", "^t must be one number, got 'a'"), (math.inf, "^call 0 of the run is at .*, got t=inf"))
    },
    "a transition from before the data": (lambda: VP.transition(-1.0, 0.5), "need 0 <= s <= t, got s=-1.0"),
    # What own processes, solvers, correctors and grids return.
    "a diffusion that is no tensor": (
        lambda: of_own(own_process(g=lambda t: 1.0)),
        r"^g\(t\) must return a tensor of the shape \(5,\) of t, got 1.0",
    ),
    "a drift of one number": (
        lambda: of_own(own_process(f=lambda x, t: x.sum())),
        r"^f\(x, t\) must return a tensor of the shape \(2, 2\) of x, got tensor\(",
    ),
    "a path by a drift of one number": (
        lambda: sg.processes.simulate(own_process(f=lambda x, t: x.sum()), torch.zeros(2, 2), [0.0, 1.0], seed=0),
        r"^f\(x, t\) must return a tensor of the shape \(2, 2\) of x",
    ),
    **{
        f"a step that returns {returned!r}": (
            lambda returned=returned: drawn(SCORE, solver=own_solver(lambda k: returned), nfe=4),
            f"^the step of own must return a form, such as k.x, got {returned}",
        )
        for returned in (None, 3)
    },
    "an evaluation that is not there": (
        lambda: drawn(SCORE, solver=own_solver(lambda k: k.x + k.previous(0)[1]), nfe=4),
        r"^previous\(0\) is of no evaluation in step 0, which knows 0 so far",
    ),
    "more evaluations than are declared": (
        lambda: drawn(SCORE, solver=own_solver(lambda k: k.evaluate(k.x + k.evaluate(k.x, k.start), k.end)), nfe=4),
        "^own makes 6 network calls in 3 steps and declares 3: its nfe_per_step is to be",
    ),
    **{
        f"a corrector that returns {what}": (
            lambda update=update: drawn(SCORE, solver=sg.PredictorCorrector("ddim", own_corrector(update)), steps=2),
            r"^update of Own must return two tensors of the shape \(2, 2\) of x",
        )
        for what, update in {"one": lambda x, z: x, "rows": lambda x, z: (x[:1], z)}.items()
    },
    "too few constants": (
        lambda: drawn(SCORE, solver=sg.PredictorCorrector("ddim", own_corrector(constants=[1.0])), steps=2),
        "^constants of Own must be one for each of 3 nodes, got 1",
    ),
    **{
        f"a rule that places {what}": (
            lambda place=place: drawn(SCORE, solver="ddim", grid=own_rule(place), steps=4),
            r"^place of .* must return a tensor of 5 times, got ",
        )
        for what, place in {"two": lambda u: u[:2], "a list": lambda u: [1, 2]}.items()
    },
    # Times outside of the process.
    **{
        f"the {what} at t={t}": (
            lambda call=call, t=t: call(torch.zeros(2, 2), t),
            rf"^t must lie in \[0, T = 1\], got {re.escape(f'{float(torch.as_tensor(t).max()):g}')}: times are those",
        )
        for t in (2.0, -0.1, 500, torch.tensor([0.5, 999.0]), torch.tensor(math.nan))
        for what, call in {"score": SCORE, "denoised": SCORE.denoised, "marginal": VP.marginal}.items()
    },
    "the marginal of CLD at t=2": (lambda: CLD.marginal(torch.zeros(2, 2), 2.0), r"^t must lie in \[0, T = 1\], got 2"),
    # Labels and scales of times.
    **{
        f"time_label={name}": (
            lambda name=name: sg.from_noise(net, VP, time_label=getattr(sg.time_labels, name)),
            rf"^time_label={name} is the function that makes a label: give time_labels\.{re.escape(call)}$",
        )
        for name, call in {
            "ddpm": "ddpm(1000)",
            "score_sde_vp": "score_sde_vp()",
            "score_sde_ve": "score_sde_ve(sde)",
            "score_sde_ve_discrete": "score_sde_ve_discrete(sde)",
            "noise_level": "noise_level(sde)",
            "edm_c_noise": "edm_c_noise(sde)",
            "flow": "flow()",
            "flow_from_noise": "flow_from_noise()",
        }.items()
    },
    "time_label=ddpm of a classifier": (
        lambda: sg.guidance.from_classifier(nn.Linear(2, 2), time_label=sg.time_labels.ddpm),  # type: ignore[arg-type]
        r"^time_label=ddpm is the function that makes a label: give time_labels\.ddpm\(1000\)$",
    ),
    **{
        f"{option} of shape {shape}": (
            lambda option=option, change=change: drawn(sg.from_noise(net, VP, **{option: change}), nfe=2),
            rf"^{option} must return one value for each of the 2 times t \(B,\), got a tensor of shape "
            rf"{re.escape(shape)}$",
        )
        for option, change, shape in (
            ("time_label", lambda t: t[0], "()"),
            ("time_label", lambda t: t[:1], "(1,)"),
            ("input_scale", lambda t: t.repeat(2), "(4,)"),
        )
    },
    # Conditions.
    "guidance of what is guided": (
        lambda: guided(guided()),
        "^the score is guided by 'y' already, at scale 2.0: guide the score inside once, at the scale wanted$",
    ),
    "guidance around what is guided": (
        lambda: guided(sg.guidance.Thresholded(guided(), 1.0)),
        "^the score is guided by 'y' already",
    ),
    "a null label with a fraction": (
        lambda: drawn(guided(y=10.5), nfe=2, model_kwargs={"y": torch.tensor([0, 1])}),
        "^the null condition 'y' is 10.5, and the condition is of torch.int64$",
    ),
    "guided classes that are a list": (
        lambda: drawn(guided(), nfe=2, model_kwargs={"y": [0, 1]}),
        r"^the condition 'y' must be a tensor of one row per sample, 2 in all, got \[0, 1\]: classes are an int64 "
        r"tensor, as torch\.tensor\(\[3, 7\]\) for two samples$",
    ),
    # Scores and scales.
    **{
        f"{name} of time and state": (
            lambda call=call: call(0.5, torch.zeros(2, 2)),
            r"^x must be a tensor \(B, \*\), got 0.5: a score is called as score\(x, t\)$",
        )
        for name, call in {"score": SCORE, "denoised": SCORE.denoised}.items()
    },
    **{
        f"scale={scale!r}": (
            lambda scale=scale: sg.guidance.ClassifierFree(sg.from_noise(of_class, VP), scale, null={"y": 10}),
            r"^scale must be one number, got .*: PerSample\(w\) has one for each sample$",
        )
        for scale in ([1.0, 2.0], torch.tensor([1.0, 2.0]))
    },
    "classes of floats of a classifier": (
        lambda: sg.guidance.from_classifier(lambda x, t: x)(torch.zeros(2, 2), torch.ones(2), y=torch.zeros(2)),
        r"^labels must be \(2,\) integers, got .* and dtype torch.float32$",
    ),
    # Entries of tables in the place of times.
    **{
        f"entries of a table, {name}": (
            call,
            rf"{words}.*: entry i of a table of 1000 is at sde\.table_times\[i\], \(i \+ 1\)/1000 here, as 999 at t=1$",
        )
        for name, call, words in (
            ("grid=", lambda: drawn(TABLE, grid=[999, 749, 499]), r"^the grid starts at t=999\.0, beyond T=1\.0"),
            ("t_start=", lambda: drawn(TABLE, t_start=999, nfe=5), "^need 0 <= t_end < t_start <= T = 1.0"),
        )
    },
    "entries of a table where there is none": (
        lambda: drawn(SCORE, grid=[999, 749]),
        r"^the grid starts at t=999\.0, beyond T=1\.0: times are those of the process, from T to eps = 0\.001$",
    ),
    # Processes of functions.
    "a process made twice": (
        lambda: sg.sample(sg.from_noise(net, scheduled()), scheduled(), (2, 2), nfe=2),
        "^the score was made for another process than the call is on: two processes ScheduleSDE that were made apart, "
        "of functions that are equal and not the same: make the process once, and give that object to both$",
    ),
    "guidance on a process made twice": (
        lambda: sg.guidance.Auto(sg.from_noise(net, scheduled()), sg.from_noise(net, scheduled()), 2.0),
        "^the scores are on different processes: two processes ScheduleSDE that were made apart",
    ),
    "another process": (
        lambda: sg.sample(SCORE, sg.VPSDE(beta_max=10.0), (2, 2), nfe=2),
        r"^the score was made for another process than the call is on: VPSDE\(.*beta_max=20.* and VPSDE\(.*beta_max=10"
        r".*: give the one that the network was trained on to both$",
    ),
    **{
        f"a schedule of {name}": (
            lambda alpha=alpha: scheduled(alpha),
            r"^alpha\(t\) must be made of torch's functions, as torch\.cos and not np\.cos or math\.cos: the drift is "
            r"its derivative by autograd",
        )
        for name, alpha in {
            "NumPy": np.cos,
            "NumPy's arrays": lambda t: np.cos(t.detach().numpy()),
            "math": math.cos,
            "values": lambda t: t.detach().cos(),
        }.items()
    },
    "a schedule that ends in nothing": (
        lambda: sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t),
        r"^alpha\(t\) must be finite and positive on .*, got 0\.0 at t=1: nothing is left of the data there, end "
        r"earlier, as at T=0\.999$",
    ),
    "a score inside of a solver for measurements": (
        lambda: sg.inverse.DPS(SCORE, sg.inverse.Measurement(sg.inverse.BlockAverage(2), torch.zeros(1, 1), 0.1)),
        r"^DPS goes around a solver, sample\(score, \.\.\., solver=DPS\('ddim', measurement\)\), got Score\(",
    ),
    "a solver for measurements by its name": (
        lambda: drawn(SCORE, solver="RePaint", nfe=5),
        r"^unknown solver 'RePaint': what comes nearest is sg\.inverse\.RePaint\('ancestral', measurement\), around",
    ),
    "an adaptive method by its name": (
        lambda: sg.Adaptive("tsit5"),
        r"^pair must be an embedded pair, such as sgm_sde\.schemes\.DOPRI5, got 'tsit5'$",
    ),
    "a corrector by its name": (
        lambda: sg.PredictorCorrector("ddim", "langevin"),
        r"^corrector must be a Corrector, such as Langevin\(snr=0\.16\), got 'langevin'$",
    ),
    **{
        f"a run of {name}={value}": (
            lambda name=name, value=value: runs.likelihood("digits", DIGITS, "never", **{name: value}),
            words,
        )
        for name, value, words in (
            ("labels", [0, 1], r"^labels must be a tensor of an integer dtype, got \[0, 1\]$"),
            ("labels", torch.ones(2).bool(), r"^labels must be a tensor of an integer dtype, got dtype torch\.bool$"),
            ("repeats", "2", r"^repeats must be an integer of at least 1, got '2'$"),
            ("n_levels", "x", r"^n_levels must be an integer of at least 2, got 'x'$"),
        )
    },
    "a run of a model that is none": (lambda: runs.sample(3, 4, "never"), "^model must be a Model or its name, got 3$"),
    "a part that is no folder": (lambda: runs.merge([3], "never"), "^the path of a file or folder is needed, got 3$"),
    "a process without an end": (
        lambda: sg.from_noise(net, without_an_end()),
        r"^Endless has no T: give T, its end, and eps, where sampling ends$",
    ),
    "a tensor as a solver's coefficient": (
        lambda: drawn(SCORE, solver=own_solver(lambda k: VP.alpha(0.5) * k.x), nfe=5),
        r"its coefficients are Python numbers, such as float\(c\), got tensor\(",
    ),
    "a tensor to the right of a solver's state": (
        lambda: drawn(SCORE, solver=own_solver(lambda k: k.x / VP.alpha(0.5)), nfe=5),
        r"its coefficients are Python numbers, such as float\(c\), got tensor\(",
    ),
    "a time in the place of a node": (
        lambda: drawn(SCORE, solver=own_solver(lambda k: k.evaluate(k.x, k.start.t)), nfe=5),
        r"^evaluate takes a node, such as k\.start, k\.end or k\.at\(t\), got the time 1\.0$",
    ),
    **{
        f"a grid that is a {name}": (
            lambda grid=grid: drawn(SCORE, grid=grid, nfe=5),
            "^grid must be a rule's name, a rule or times, got .*: a rule of your own derives from grids.GridRule$",
        )
        for name, grid in {"function": lambda sde, n: [1.0, 0.001], "class": sg.grids.Uniform}.items()
    },
    "a program that is no JSON": (lambda: sg.Program.from_json("{"), "^not the JSON of a program"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS, ids=case_id)
def test_refusals_name_what_was_typed(case: str) -> None:
    """One error, in the user's words, and no other below it."""
    call, words = REFUSALS[case]
    with pytest.raises((ValueError, TypeError, OSError), match=words) as refused:
        call()
    assert shown_below(refused.value) is None


@pytest.mark.parametrize("t", [0.0, 1.0000001, torch.ones((), dtype=torch.bfloat16), torch.tensor([0.999999, 1.0])])
def test_times_at_the_ends_are_taken_as_precise_as_they_are(t: Any) -> None:
    """Of any precision; and under a transformation, which has no numbers to look at."""
    x = torch.ones(2, 2)
    assert SCORE.denoised(x, t).shape == VP.marginal(x, t)[0].shape == x.shape
    alone = torch.func.vmap(lambda x, t: SCORE(x[None], t[None])[0])
    torch.testing.assert_close(alone(x, torch.tensor([0.3, 0.6])), SCORE(x, torch.tensor([0.3, 0.6])))


FUNCTIONS: dict[str, Callable[..., object]] = {
    "log_prob": lambda **options: sg.log_prob(SCORE, VP, torch.zeros(2, 2), **options),
    "encode": lambda **options: sg.encode(SCORE, VP, torch.zeros(2, 2), **options),
    "decode": lambda **options: sg.decode(SCORE, VP, torch.zeros(2, 2), **options),
    "bits_per_dim": lambda **options: sg.bits_per_dim(
        SCORE, VP, torch.zeros(2, 2).byte(), n_levels=2, data_range=(-1, 1), **options
    ),
    "joint_log_prob": lambda **options: sg.likelihood.joint_log_prob(JOINT, CLD, torch.zeros(2, 2, 2), **options),
    "log_posterior": lambda **options: sg.likelihood.log_posterior(
        SCORE, VP, torch.zeros(2, 2), torch.zeros(3, 1), lambda x: -x.square().sum(1), **options
    ),
    "velocity_bound": lambda **options: sg.likelihood.velocity_bound(JOINT, CLD, torch.zeros(2, 2), **options),
    "elbo": lambda **options: sg.elbo(SCORE, VP, torch.zeros(2, 2), **options),
    "pilot": lambda **options: sg.pilot(SCORE, VP, (2, 2), nfe=5, **options),
    "calibrate": lambda **options: sg.calibrate(SCORE, VP, (2, 2), nfe=5, **options),
    "check_score": lambda **options: sg.testing.check_score(SCORE, torch.zeros(2, 2), **options),
    "stepper": lambda **options: sg.stepping.stepper("ddim", VP, **options),
    "bench": lambda **options: sg.bench.bench("digits", "nowhere", **options),
    "denoising_score_matching": lambda **options: sg.training.denoising_score_matching(
        SCORE, torch.zeros(2, 2), **options
    ),
    "score_matching": lambda **options: sg.training.score_matching(SCORE, torch.zeros(2, 2), **options),
    "sample": lambda **options: sg.sample(SCORE, VP, (2, 2), **options),
}
OF_SCORES = [name for name in FUNCTIONS if name not in ("stepper", "bench")]
ELSEWHERE = [
    *((name, "num_steps", "n_times=, the number of noise levels") for name in ("elbo",)),
    *(
        (name, option, words)
        for name, words in {
            "pilot": r"candidates=\[\.\.\.\]",
            "calibrate": r"pilot\(\), which compares solvers: calibrate fits a table of its own",
        }.items()
        for option in ("sampler", "solver", "method")
    ),
    ("check_score", "device", "data on that device, and a network there"),
    ("check_score", "sde", "the score alone, which has its process"),
    *(
        ("sample", option, words)
        for option, words in {
            "cfg": "the score guided in place of the score",
            "clip_denoised": r"the score in bounds: guidance\.Thresholded\(score, limit\)",
            "eps": "t_end=, the time at which sampling ends",
            "rtol": r"an adaptive solver: solver=Adaptive\(rtol=\.\.\., atol=\.\.\.\)",
            "return_trajectory": r"record=Record\(trajectory='all'\)",
            "verbose": r"record=Record\(progress=\.\.\.\)",
            "rng": "seed=, or generator=",
            "snr": r"solver=PredictorCorrector\('reverse-diffusion', Langevin\(snr=\.\.\.\)\)",
            "s_churn": r"an option of the solver: solver=Heun\(s_churn=\.\.\.\)",
            "order": r"an option of the solver: solver=DPMSolverPP\(order=\.\.\.\)",
            "sigma_max": r"a process with them, as EDMSDE\(sigma_min=\.\.\., sigma_max=\.\.\.\)",
            "denoise": "final='denoise', which is the default",
            "strength": "x_T= with t_start=, or a solver of sg.inverse",
            "rho": r"grid=grids\.Karras\(rho=\.\.\.\)",
            "size": "shape=",
            "callbacks": r"record=Record\(callback=\.\.\.\)",
            "compile_model": r"execution=Execution\(compile=True\)",
            "use_karras_sigmas": "grid=, such as grid='karras'",
            "prompt": r"model_kwargs=\{\.\.\.\}",
        }.items()
    ),
    ("log_prob", "device", "states on that device"),
    ("encode", "num_steps", r"method=, such as sg.likelihood.FixedGrid\(100\)"),
    ("decode", "steps", r"method=, such as sg.likelihood.FixedGrid\(100\)"),
    ("bits_per_dim", "n_probes", r"trace=, such as sg.likelihood.Hutchinson\(16\)"),
    ("log_prob", "batch", "batch_size="),
    ("encode", "seed", "none: the flow has no noise"),
    ("log_posterior", "steps", r"method=, such as sg.likelihood.FixedGrid\(100\)"),
    ("velocity_bound", "steps", r"method=, such as sg.likelihood.FixedGrid\(100\)"),
    ("denoising_score_matching", "seed", r"generator=torch\.Generator\(\)\.manual_seed\(\.\.\.\)"),
    ("score_matching", "weight", "weighting="),
    ("joint_log_prob", "rtol", r"method=sg.likelihood.FixedGrid\(atol=..., rtol=...\)"),
    ("elbo", "device", "data on that device"),
    ("pilot", "steps", "nfe=, a budget of network calls"),
    ("calibrate", "n_samples", "shape=, with the number of noises first"),
    ("bench", "batch", "run="),
    *((name, "guidance_scale", "the score guided in place of the score") for name in OF_SCORES),
    *((name, "class_labels", r"model_kwargs=\{\.\.\.\}") for name in OF_SCORES),
]


@pytest.mark.parametrize(("name", "option", "words"), ELSEWHERE, ids=case_id)
def test_names_of_options_elsewhere(name: str, option: str, words: str) -> None:
    """What to give instead."""
    with pytest.raises(TypeError, match=rf"^{name}\(\) has no argument '{option}': give .*{words}"):
        FUNCTIONS[name](**{option: 3})


CONSTRUCTORS: list[tuple[Callable[..., object], str, str]] = [
    (lambda **given: sg.guidance.ClassifierFree(SCORE, **given), "guidance_scale", "ClassifierFree.* give scale="),
    (lambda **given: sg.guidance.ClassifierFree(SCORE, **given), "null_label", r"ClassifierFree.* give null=\{"),
    (lambda **given: sg.guidance.Classifier(SCORE, **given), "cond_fn", "Classifier.* give log_likelihood="),
    (lambda **given: sg.guidance.Auto(SCORE, **given), "bad_model", "Auto.* give weak="),
    (lambda **given: sg.guidance.Thresholded(SCORE, **given), "p", "Thresholded.* give percentile="),
    (sg.VPSDE, "N", r"VPSDE.* give nfe= or steps= of sample .*sg\.DiscreteVPSDE\(betas\)"),
    (sg.VPSDE, "beta_start", "VPSDE.* give beta_min= and beta_max="),
    (sg.DiscreteVPSDE, "beta_start", r"DiscreteVPSDE.* sg\.presets\.ddpm\(\)"),
    (sg.presets.ddpm, "num_train_timesteps", "ddpm.* give n="),
    (sg.EDMSDE, "sigma_data", r"EDMSDE.* sg\.adapters\.from_edm\(net\)"),
    (sg.EDMSDE, "rho", r"EDMSDE.* grid=sg\.grids\.Karras\(rho=\.\.\.\)"),
    (sg.RectifiedFlowSDE, "shift", r"RectifiedFlowSDE.* grid=sg\.grids\.Shifted\(shift=\.\.\.\)"),
    (sg.LinearSDE.from_schedule, "t_max", "from_schedule.* give T="),
    (sg.grids.Karras, "sigma_min", r"Karras.* give them to the process"),
    (sg.grids.LogSNR, "steps", "LogSNR.* give nfe= or steps= of sample"),
    (sg.Grid, "sigmas", "Grid.* give times="),
    (sg.DDIM, "num_inference_steps", "DDIM.* give nfe= or steps= of sample"),
    (sg.DPMSolverPP, "solver_order", "DPMSolverPP.* give order="),
    (sg.DPMSolverPP, "algorithm_type", "DPMSolverPP.* give eta=1"),
    (sg.UniPC, "lower_order_final", "UniPC.* give lower_final="),
    (sg.Langevin, "target_snr", "Langevin.* give snr="),
    (sg.PredictorCorrector, "snr", r"PredictorCorrector.* give corrector=sg\.Langevin\(snr=\.\.\.\)"),
    (sg.Execution, "batch", "Execution.* give batch_size="),
    (sg.Record, "return_trajectory", "Record.* give trajectory='all'"),
    (sg.likelihood.FixedGrid, "nfe", "FixedGrid.* give steps="),
    (lambda **given: sg.adapters.from_edm(net, **given), "sigma_data", r"from_edm.* sg\.adapters\.from_edm\(net\)"),
    (lambda **given: from_flow_matching(net, **given), "num_steps", "from_flow_matching.* give nfe= or steps="),
    (lambda **given: sg.inverse.Measurement(**given), "sigma", "Measurement.* give std="),
    (sg.oracles.Gaussian, "std", r"Gaussian.* give the variance: covariance=std\*\*2"),
    *(
        (lambda make=make, **given: make(net, VP, **given), option, f"{make.__name__}.* give {words}")
        for make in (sg.from_noise, sg.from_denoiser, sg.from_v, sg.from_flow, sg.from_score)
        for option, words in {
            "num_timesteps": "time_label=",
            "class_labels": r"model_kwargs=\{\.\.\.\} to sample",
            "sigma_data": r".*sg\.adapters\.from_edm\(net\)",
        }.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "option", "words"), CONSTRUCTORS, ids=case_id)
def test_names_of_options_of_constructors_elsewhere(make: Callable[..., object], option: str, words: str) -> None:
    """What to give instead."""
    name, _, instead = words.partition(".*")
    with pytest.raises(TypeError, match=rf"^{name}\(\) has no argument '{option}':.*{instead}"):
        make(**{option: 3})


@pytest.mark.parametrize("make", [sg.VPSDE, sg.DDIM, sg.Execution, sg.grids.Karras, sg.Langevin], ids=case_id)
def test_options_that_no_constructor_has(make: Callable[..., object]) -> None:
    """In the words of the class, with what is similar."""
    with pytest.raises(TypeError, match=r"^\w+\(\) got an unexpected argument 'nonsense'"):
        make(nonsense=3)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_that_nobody_has(name: str) -> None:
    """In the words of the function that was called."""
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected argument 'nonsense'"):
        FUNCTIONS[name](nonsense=3)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_solver_is_named_where_a_process_lacks_what_it_needs(name: str) -> None:
    """On a process with a matrix."""
    try:
        sg.sampling.planning.plan(CLD, name, steps=2)
    except TypeError as error:
        assert str(error).startswith(f"{name} needs ")


RAISED_FROM = {"ImportError", "ConnectionError"}  # whose cause tells what is broken on this machine


def test_no_refusal_shows_the_error_of_somebody_else() -> None:
    """What is raised from another error has that error's words in its own."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.cause, ast.Name) and isinstance(node.exc, ast.Call):
                assert ast.unparse(node.exc.func) in RAISED_FROM, f"{path.name}:{node.lineno}"


def test_a_checkpoint_is_no_file(tmp_path: Path) -> None:
    """As a folder of results is none."""
    path = tmp_path / "notes.txt"
    path.write_text("")
    for call in (
        lambda: sg.calibrate(SCORE, VP, (4, 2), nfe=2, seed=0, checkpoint=path),
        lambda: sg.store.Store(path, {}),
    ):
        with pytest.raises(NotADirectoryError, match=r"notes\.txt is to be a folder, and that is a file") as refused:
            call()
        assert shown_below(refused.value) is None


def test_solvers_are_looked_up_by_what_was_typed() -> None:
    """In the table, too."""
    with pytest.raises(KeyError, match=re.escape("'DPM++ 2M Karras'")):
        sg.solvers()["DPM++ 2M Karras"]
    assert sg.solvers().get("nonsense") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("from_velocity", "did you mean 'from_flow', for the velocity of a flow, or 'from_v'"),
        ("LogSNR", "it is sg.grids.LogSNR"),
        ("FixedGrid", "it is sg.likelihood.FixedGrid"),
        ("sampel", "did you mean 'sample'"),
    ],
)
def test_names_that_are_elsewhere(name: str, words: str) -> None:
    """Where to find them."""
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; {re.escape(words)}"):
        getattr(sg, name)


def test_a_network_that_raises_is_described_once() -> None:
    """However many scores are around it."""

    def broken(x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("no")

    inner = sg.from_score(broken, VP)
    for score in (inner, sg.from_score(inner, VP), sg.from_score(sg.from_score(inner, VP), VP)):
        with pytest.raises(RuntimeError, match="no") as error:
            score(torch.zeros(1, 2), 0.5)
        assert len(getattr(error.value, "__notes__", ("",))) == 1


# --- what is advised -------------------------------------------------------------------------------------------------


def test_warnings_advise_what_the_process_has() -> None:
    """No pilot, v or flow where there is a matrix."""
    wrong = sg.from_score(lambda x, t: 1e3 * x, CLD)
    with pytest.warns(sg.diagnosis.ImplausibleWarning, match="`from_denoiser` or `scores.from_velocity_noise`") as told:
        drawn(wrong, 2, nfe=8)
    for text in (str(told[0].message), sg.diagnosis.words_of_misses("heun2", 4, CLD)):
        assert not re.search("pilot|from_v`|from_flow", text)
    assert "`pilot`" in sg.diagnosis.words_of_misses("heun2", 4, VP)

    with pytest.warns(sg.diagnosis.ImplausibleWarning, match="`from_v` or `from_flow`"):
        drawn(sg.from_score(lambda x, t: 1e3 * x, VP), nfe=8)


# --- commands --------------------------------------------------------------------------------------------------------

COMMANDS = [
    ("sample", ["-n", "4", "--solver", "rk45", "--nfe", "5"], "--nfe=5 is too small: the first step of rk45"),
    ("sample", ["-n", "4", "--batch", "0"], "--batch must be an integer of at least 1, got 0"),
    ("bench", ["--batch", "0"], "--batch must be an integer of at least 1, got 0"),
    ("sample", ["-n", "4", "--part", "4/4"], "argument --part: a part is K/N with K from 0 to N - 1, .* got '4/4'"),
    ("sample", ["-n", "4", "--guidance", "nan"], "--guidance must be finite"),
    ("sample", ["-n", "4", "--solver", "gddim"], "--solver='gddim' is no name"),
    ("sample", ["-n", "4", "--steps", "5", "--nfe", "5"], "give --nfe= or --steps=, not both"),
    ("bench", ["--seeds", "-1"], "got -1"),
    ("likelihood", ["--data-range", "1", "-1"], r"--data-range must be \(low, high\)"),
    ("demo", ["--seed", "-1"], r"seed must lie in \[0, 2\*\*64\), got -1"),
    ("bench", ["--features-weights", "x.pt"], "are of --features inception"),
    ("likelihood", ["--repeats", "0"], "--repeats must be an integer of at least 1, got 0"),
    ("likelihood", ["--eps", "700"], r"--eps must lie in"),
    ("sample", ["-n", "4", "--solver", "ddimm"], "unknown solver 'ddimm'; .*`sgm-sde solvers` has all of them"),
    ("sample", ["-n", "4", "--seed", "-1"], r"--seed must lie in \[0, 2\*\*64\), got -1"),
    (
        "sample",
        ["-n", "4", "--labels", "none", "--guidance", "2"],
        "--guidance=2 is towards classes, and --labels=none",
    ),
    ("sample", ["-n", "4", "--num_steps", "10"], r"unrecognized arguments: --num_steps 10; did you mean --nfe\?"),
    ("sample", ["-n", "4", "--num-inference-steps=10"], r"unrecognized .*; did you mean --nfe\?"),
    ("sample", ["-n", "4", "--sampler", "ddim"], r"unrecognized .*; did you mean --solver\?"),
    ("sample", ["-n", "4", "--batch-size", "2"], r"unrecognized .*; did you mean --batch\?"),
    ("sample", ["-n", "4", "--sead", "2"], r"unrecognized arguments: --sead 2; did you mean --seed"),
    ("sample", ["-n", "x"], "argument -n/--n: invalid int value: 'x'"),
    ("likelihood", ["--trace", "hutch"], "--trace must be one of 'hutchinson', 'exact', got 'hutch'"),
]


@pytest.mark.parametrize(
    ("nfe", "words"),
    [
        ("60", "--nfe must be 48 at most, .*, got 60$"),
        ("0", "--nfe must be an integer of at least 1, got 0$"),
        ("4,0", "--nfe must be an integer of at least 1, got 0$"),
    ],
)
def test_budgets_as_typed(nfe: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the brackets of lists."""
    with pytest.raises(SystemExit):
        cli.main(["calibrate", "--model", "digits", "--nfe", nfe, "--out", str(tmp_path / "table.json")])
    assert re.search(words, capsys.readouterr().err.strip())


@pytest.mark.parametrize(("command", "options", "words"), COMMANDS, ids=case_id)
def test_commands_name_options_as_typed_and_leave_nothing(
    command: str,
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No folder of a run that was refused, and none of those around it that were made for it."""
    monkeypatch.chdir(tmp_path)
    if command == "likelihood":
        np.save("images.npy", np.zeros((2, 1, 8, 8), dtype=np.uint8))
        options = ["--data", "images.npy", *options]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        cli.main([command, "--model", "digits", "--quiet", *options, "--out", "made/for/this"])
    assert re.search(words, capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("t", [10**300, -(10**400)], ids=["beyond single precision", "beyond any float"])
@pytest.mark.parametrize("call", ["score", "denoised"])
def test_a_whole_number_too_large_for_a_float_is_a_time_outside(call: str, t: int) -> None:
    evaluate = {"score": SCORE, "denoised": SCORE.denoised}[call]
    with pytest.raises(ValueError, match=r"t must lie in \[0, T = 1\], got "):
        evaluate(torch.zeros(2, 3), t)


@pytest.mark.parametrize("t", [0.0, -1e-9, torch.tensor(0.0), torch.tensor([0.5, 0.0])], ids=case_id)
@pytest.mark.parametrize("process", [sg.VPSDE(), sg.EDMSDE(), sg.RectifiedFlowSDE(), sg.presets.ddpm()], ids=case_id)
def test_a_point_has_no_score(process: sg.LinearSDE, t: float | Tensor) -> None:
    score = sg.from_noise(lambda x, t: 0.5 * x, process)
    x = torch.ones(2, 3)
    with pytest.raises(
        ValueError, match=f"there is no score at t=0, where sigma = 0: take times from eps = {process.eps:g}"
    ):
        score(x, t)


def test_a_process_that_is_noisy_at_its_start_has_a_score_there() -> None:
    score = sg.from_noise(lambda x, t: torch.ones_like(x), sg.VESDE(sigma_min=0.01, sigma_max=50.0))
    torch.testing.assert_close(score(torch.ones(2, 3), 0.0), torch.full((2, 3), -100.0))


@pytest.mark.parametrize("call", ["score", "denoised"])
def test_true_is_no_time(call: str) -> None:
    evaluate = {"score": SCORE, "denoised": SCORE.denoised}[call]
    with pytest.raises(TypeError, match="t must be a time, got True"):
        evaluate(torch.zeros(2, 3), True)


def test_a_network_that_predicts_the_score_has_one_at_data() -> None:
    """Data with a density have a score, and no conversion divides by sigma."""
    sde = sg.VPSDE()
    score = sg.from_score(lambda x, t: -x / (0.25 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2)[:, None], sde)
    torch.testing.assert_close(score(torch.ones(2, 3), 0.0), torch.full((2, 3), -4.0))


def test_a_numpy_time_is_a_time() -> None:
    with pytest.raises(ValueError, match="there is no score at t=0"):
        SCORE(torch.zeros(2, 3), np.float32(0.0))  # type: ignore[arg-type]
