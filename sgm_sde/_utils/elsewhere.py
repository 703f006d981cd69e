"""Arguments by their names in other libraries: refused, with what there is instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from sgm_sde._utils.checks import known_arguments

P = ParamSpec("P")
T = TypeVar("T")

STEPS = "num_steps", "n_steps", "num_inference_steps", "sampling_steps", "sample_steps"
SAMPLES = "batch", "n", "n_samples", "num_samples"
STATES = "latents", "x_init", "init", "x"
SOLVERS = "sampler", "method", "scheduler"
CONDITIONS = "y", "labels", "class_labels", "cond", "context"
GUIDANCE = "guidance_scale", "cfg_scale"
PROBES = "n_probes", "num_probes", "probes", "hutchinson"
TOLERANCES = "rtol", "atol", "tol", "tolerance"


def instead_of(names: Iterable[str], words: str) -> dict[str, str]:
    """The same words for several names."""
    return dict.fromkeys(names, words)


OF_NETWORKS = {
    **instead_of(CONDITIONS, "model_kwargs={...}, by the network's own name"),
    **instead_of(
        GUIDANCE,
        "the score guided in place of the score: guidance.ClassifierFree(score, scale=...)",
    ),
}
OF_FLOWS = OF_NETWORKS | {
    **instead_of((*STEPS, "steps", "nfe"), "method=, such as sg.likelihood.FixedGrid(100), of so many steps"),
    **instead_of(("sampler", "scheduler", "solver"), "method=, such as sg.likelihood.FixedGrid(100) or 'adaptive'"),
    **instead_of(TOLERANCES, "method=, such as sg.likelihood.AdaptiveFlow(rtol=...)"),
    **instead_of(("t_end", "t0", "t_min"), "eps=, the time of the data"),
    **instead_of(SAMPLES, "fewer states at a time"),
    "device": "states on that device, and a network there",
    "dtype": "states of that dtype",
}
OF_TRACES = OF_FLOWS | instead_of(PROBES, "trace=, such as sg.likelihood.Hutchinson(16)")
OF_JOINT_TRACES = OF_TRACES | {
    **instead_of(("sampler", "scheduler", "solver"), "method=, such as sg.likelihood.FixedGrid(100)"),
    **instead_of(TOLERANCES, "method=sg.likelihood.FixedGrid(atol=..., rtol=...)"),
}
OF_DENSITIES = OF_TRACES | instead_of(SAMPLES, "batch_size=, the largest number of rows at a time")
OF_BOUNDS = OF_NETWORKS | {
    **instead_of(SAMPLES, "fewer data at a time"),
    "device": "data on that device, and a network there",
}
OF_RUNS = {
    **instead_of(STEPS, "nfe=, the number of network calls, or steps="),
    **instead_of(SOLVERS, "solver="),
}
OF_MODELS = instead_of(CONDITIONS, "labels=") | instead_of(GUIDANCE, "guidance=")
OF_BENCHES = {
    **instead_of((*STEPS, "steps"), "nfe=, a list of budgets of network calls"),
    **instead_of((*SOLVERS, "solver"), "solvers=[...]"),
    **instead_of(("batch", "device", "threads", "progress"), "run=sg.bench.RunOptions(...), which has it"),
}
OF_TRIALS = OF_NETWORKS | {
    **instead_of((*STEPS, "steps"), "nfe=, a budget of network calls or a list of them"),
    **instead_of(SAMPLES, "shape=, with the number of noises first: shape=(32, 3, 32, 32)"),
    **instead_of((*STATES, "x_T"), "seed=, from which the noises are drawn"),
}


def named_elsewhere(instead: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function that refuses arguments it does not have, and says what to give instead of those known elsewhere.

    What a function passes on (`**options`) is left to it, but for those.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        name = function.__name__
        known = inspect.signature(function).parameters
        passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for option in kwargs:
                if option not in known and option in instead:
                    raise TypeError(f"{name}() has no argument {option!r}: give {instead[option]}")
            if not passes_on:
                known_arguments(name, kwargs, known)
            return function(*args, **kwargs)

        return call

    return decorate
