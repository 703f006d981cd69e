"""Arguments by their names in other libraries: refused, with what there is instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from sgm_sde._utils.checks import known_arguments

if TYPE_CHECKING:
    from typing_extensions import Self

P = ParamSpec("P")
T = TypeVar("T")

STEPS = (
    "num_steps", "n_steps", "num_inference_steps", "sampling_steps", "sample_steps", "num_sampling_steps",
    "num_timesteps", "n_timesteps", "num_train_timesteps",
)  # fmt: skip
SAMPLES = "batch", "n", "n_samples", "num_samples"
STATES = "latents", "x_init", "init", "x"
SOLVERS = "sampler", "method", "scheduler"
CONDITIONS = (
    "y", "labels", "class_labels", "classes", "cond", "condition", "conditions", "context", "prompt", "prompt_embeds",
    "kwargs", "net_kwargs", "extra_args", "cross_attention_kwargs",
)  # fmt: skip
GUIDANCE = (
    "guidance_scale", "cfg_scale", "cfg", "cfg_weight", "cond_scale", "guidance_weight",
    "guidance_strength", "guidance",
)  # fmt: skip
BOUNDS = "clip", "clip_denoised", "clip_sample", "clamp", "thresholding"
FIRST_TIMES = "t_eps", "eps_t", "t_min", "t0", "epsilon"
LAST_TIMES = "t_max", "T_max", "t1", "t_final"
GRIDS = "schedule", "timestep_spacing", "discretization", "use_karras_sigmas", "noise_schedule", "skip_type"
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
    **instead_of(("seed", "generator"), "none: the flow has no noise"),
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
    **instead_of((*STEPS, "steps", "nfe"), "n_times=, the number of noise levels at which the network is called"),
    **instead_of(SAMPLES, "fewer data at a time"),
    "device": "data on that device, and a network there",
}
OF_LOSSES = OF_NETWORKS | {
    "seed": "generator=torch.Generator().manual_seed(...), made once before the loop",
    **instead_of(("loss_weight", "weight", "loss_type"), "weighting=, such as 'simple' or MinSNR(5)"),
    "sde": "the score alone, which has its process",
}
OF_RUNS = {
    **instead_of(STEPS, "nfe=, the number of network calls, or steps="),
    **instead_of(SOLVERS, "solver="),
    **instead_of(GRIDS, "grid=, such as grid='karras'"),
}
OF_CHECKS = OF_NETWORKS | {
    "device": "data on that device, and a network there",
    "dtype": "data of that dtype",
    "sde": "the score alone, which has its process",
    **instead_of((*STEPS, "steps", "nfe"), "more data: the calls are as many as their number asks for"),
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

# Of constructors.
AT_SAMPLE = "nfe= or steps= of sample"
OF_PROCESSES = {
    **instead_of(
        ("N", "n", "timesteps", *STEPS),
        f"{AT_SAMPLE} for the steps; a table of N noise levels is sg.DiscreteVPSDE(betas), as sg.presets.ddpm(N)",
    ),
    **instead_of(
        ("beta_start", "beta_end", "beta_schedule", "beta_0", "beta_1"),
        "beta_min= and beta_max= of VPSDE in continuous time, or the table of sg.DiscreteVPSDE(betas), such as "
        "sg.presets.ddpm()",
    ),
    **instead_of(FIRST_TIMES, "eps=, the time at which sampling ends"),
    **instead_of(LAST_TIMES, "T=, the time at which sampling starts"),
    **instead_of(("device", "dtype"), "execution=sg.Execution(...) of sample, which has it: a process has none"),
    "sigma_data": "the network with its preconditioning: sg.adapters.from_edm(net)",
    "rho": "grid=sg.grids.Karras(rho=...) of sample",
    "shift": "grid=sg.grids.Shifted(shift=...) of sample",
}
OF_TABLES = OF_PROCESSES | instead_of(("N", "timesteps", *STEPS), "n=, the number of noise levels")
OF_PLACES = {
    **instead_of(("steps", "nfe", "n", "N", "num", *STEPS), f"{AT_SAMPLE}: the rule is called with them"),
    **instead_of(("sigma_min", "sigma_max"), "them to the process, as sg.EDMSDE(sigma_min=..., sigma_max=...)"),
    **instead_of((*FIRST_TIMES, *LAST_TIMES, "t_start", "t_end"), "t_start= and t_end= of sample"),
}
OF_TIMES = instead_of(("sigmas", "timesteps", "t", "ts"), "times=, those of the process: sde.time(log_snr) has them")
OF_METHODS = {
    **instead_of(("steps", "nfe", "n", "N", *STEPS), AT_SAMPLE),
    **instead_of(GRIDS, "grid= of sample, such as grid='karras'"),
    **instead_of((*BOUNDS, "dynamic_thresholding_ratio"), "the score in bounds: sg.guidance.Thresholded(score, limit)"),
    **instead_of(("prediction_type", "parameterization"), "the score of what the network predicts: from_v, from_noise"),
    **instead_of(("algorithm_type", "solver_type"), "eta=1 for steps with noise; the rest is DPMSolver or DPMSolverPP"),
    "solver_order": "order=",
    "lower_order_final": "lower_final=",
    "target_snr": "snr=",
    "snr": "corrector=sg.Langevin(snr=...)",
}
OF_SCORES = {
    **instead_of((*STEPS, "N", "timesteps"), "time_label=, such as sg.time_labels.ddpm(1000)"),
    **instead_of((*CONDITIONS, "model_kwargs"), "model_kwargs={...} to sample, by the network's own name"),
    **instead_of(GUIDANCE, "the score to guidance.ClassifierFree(score, scale=...)"),
    **instead_of(("sigma_data", "scaling"), "the network with its preconditioning: sg.adapters.from_edm(net)"),
    **instead_of(("device",), "the network there: states follow it"),
    **instead_of(("prediction_type", "parameterization"), "the prediction by the function: from_v, from_noise"),
    **instead_of(BOUNDS, "the score in bounds: sg.guidance.Thresholded(score, limit)"),
}
OF_ADAPTERS = OF_SCORES | instead_of((*STEPS, "N", "timesteps"), AT_SAMPLE)
OF_GUIDANCE = OF_SCORES | {
    **instead_of((*GUIDANCE, "w", "weight", "omega", "strength"), "scale="),
    **instead_of(
        ("null_label", "null_class", "null_cond", "uncond", "unconditional", "num_classes"),
        "null={...}, what stands for no condition by its name, such as null={'y': 10}",
    ),
    **instead_of(("negative_prompt", "negative_prompt_embeds"), "negative={...}, by the network's own name"),
    **instead_of(("guidance_interval", "guidance_start", "guidance_end"), "interval=(low, high), of noise levels"),
    **instead_of(("bad", "weak_model", "bad_model"), "weak=, the score of the weaker network"),
    **instead_of(("classifier", "cond_fn"), "log_likelihood=, as guidance.from_classifier(net) makes it"),
    **instead_of(("p", "ratio", "dynamic_thresholding_ratio"), "percentile="),
}
OF_EXECUTION = {
    **instead_of((*SAMPLES, "max_batch_size", "chunk_size"), "batch_size=, the largest number of samples at a time"),
    **instead_of(("progress", "verbose", "callback"), "record=sg.Record(...) of sample, which has it"),
}
OF_RECORDS = {
    **instead_of(("return_trajectory", "return_intermediates", "return_all_timesteps"), "trajectory='all'"),
    **instead_of(("verbose", "disable", "tqdm"), "progress=True"),
}
OF_FLOW_METHODS = {
    **instead_of(("nfe", "n", "N", *STEPS), "steps=, where the method has it: FixedGrid(steps=100)"),
    **instead_of(("tol", "tolerance"), "atol= and rtol="),
}
OF_ORACLES = {"std": "the variance: covariance=std**2", "mu": "the mean by its name", "sigma": "the variance"}


class Constructed:
    """The base of classes whose constructor refuses arguments it does not have, and says what to give instead.

    `_elsewhere` has what to give in the place of those that are known elsewhere.
    """

    _elsewhere: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """The object, whose `__init__` gets the arguments."""
        if cls.__init__ is object.__init__ and args:
            raise TypeError(f"{cls.__name__}() takes no arguments, got {len(args)}")
        made: type = cls
        known = _options(made)
        if kwargs and known is not None:
            known_arguments(cls.__name__, kwargs, known, cls._elsewhere)
        return super().__new__(cls)


@cache
def _options(cls: type) -> tuple[str, ...] | None:
    """The names of a constructor's arguments; None where it takes any."""
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return ()
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return None
    return tuple(each.name for each in parameters)


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
            passed_on = [name for name in kwargs if name not in instead] if passes_on else []
            known_arguments(name, kwargs, [*known, *passed_on], instead)
            return function(*args, **kwargs)

        return call

    return decorate
