"""diffusers: a model with the configuration of its scheduler becomes a score on its process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sgm_sde._utils.checks import FAR, check_integer, described, flag, number, one_of
from sgm_sde._utils.files import JsonMapping, JsonObject
from sgm_sde._utils.shapes import expand
from sgm_sde._utils.warn import warn
from sgm_sde._utils.wrappers import unwrapped
from sgm_sde.adapters.networks import SIGMA_MAX, SIGMA_MIN, with_output
from sgm_sde.processes import EDMSDE, DiscreteVPSDE, LinearSDE, RectifiedFlowSDE, presets
from sgm_sde.scores.guidance import Thresholded
from sgm_sde.scores.score import Score, from_denoiser
from sgm_sde.scores.time_labels import TimeLabel, ddpm, flow, flow_from_noise, noise_level

PREDICTION_TYPES = {
    "epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "flow",
}  # fmt: skip


N_TIMESTEPS = 1000  # of diffusers' schedulers, where the configuration does not say
CLIPPING = ("DDPM", "DDIM", "RePaint", "UnCLIP")  # whose clip_sample is true where the configuration does not say
LEAST_SIGNAL = 2.0**-24  # alpha^2 at the end of a table of zero terminal signal-to-noise
DEEP = -12.0  # log-SNR at the end of a table, from which on what a network errs near pure noise moves samples far


class Convention(NamedTuple):
    """A network's conventions, as a scheduler's configuration states them.

    Attributes:
        config: the configuration.
        sde: the process.
        prediction: what the network predicts.
        time_label: what it expects as time.
        split: whether its output carries a variance in a second half of channels.
        is_flow: whether it is flow matching.
        n: number of timesteps of the training.
        threshold: options of `Thresholded` by which the scheduler keeps estimates of the data in range, if it does.
    """

    config: JsonObject
    sde: LinearSDE
    prediction: str
    time_label: TimeLabel
    split: bool
    is_flow: bool
    n: int
    threshold: JsonMapping | None = None

    def time_of(self, label: Tensor) -> Tensor:
        """The times (B,) in float64 of timesteps (B,), as the network knows them."""
        label = label.detach().to(device="cpu", dtype=torch.float64)
        return label / self.n if self.is_flow else (label + 1) / self.n

    def output(self, out: object, x: Tensor) -> Tensor:
        """The prediction (B, *) in what the model returned for x (B, *).

        Raises:
            ValueError: for twice as many channels, where nothing says what the others are.
        """
        out = _first_tensor(out)
        channels = x.shape[1]
        if out.shape[1:2] != (2 * channels,):
            return out
        if not self.split:
            raise ValueError(
                f"the model returned {2 * channels} channels for x of {channels}, and nothing says that the others are "
                f"a variance: neither model.config, with in_channels={channels} and out_channels={2 * channels}, nor "
                f"the scheduler's variance_type. Give it variance_type='learned_range', which takes the first half"
            )
        return out[:, :channels]


def convention(scheduler: Any, T: float | None = None, integer: bool = False) -> Convention:
    """Read a scheduler's configuration; arguments as those of `from_diffusers`."""
    config, name = _configuration(scheduler)
    n = check_integer("num_train_timesteps", config.get("num_train_timesteps", N_TIMESTEPS))
    _refuse(name)
    if _knows_noise(config):
        raise ValueError(f"{name} with timestep_type='continuous': {INSTEAD['EDM']}")

    if _is_flow(name, config):
        if config.get("invert_sigmas"):
            raise ValueError("invert_sigmas=True, a time from noise to data, is not read here: use from_flow_matching")
        if integer:
            raise ValueError("integer=True goes with a table of times, and flow matching has none")
        sde = RectifiedFlowSDE() if T is None else RectifiedFlowSDE(T=T)
        return Convention(config, sde, "flow", flow(n), split=False, is_flow=True, n=n)

    if T is not None:
        raise ValueError(f"T={T} goes with flow matching; {name} starts at the end of its table")
    kind = config.get("prediction_type", "epsilon")
    one_of("prediction_type", kind, PREDICTION_TYPES)
    prediction = PREDICTION_TYPES[kind]
    split = config.get("variance_type") in ("learned", "learned_range")
    process = DiscreteVPSDE(_betas(name, config, n))
    label = ddpm(n, integer=integer)
    return Convention(config, process, prediction, label, split, is_flow=False, n=n, threshold=_threshold(name, config))


def _knows_noise(config: JsonMapping) -> bool:
    """True for networks whose time is log(sigma) / 4, whatever table is beside it, as of Stable Video Diffusion."""
    return bool(config.get("timestep_type") == "continuous")


def _is_flow(name: str, config: JsonMapping) -> bool:
    """True for flow matching.

    Raises:
        ValueError: for a scheduler with a shift of which no more is known: its networks may run from noise to data.
    """
    if name.startswith(FLOWS) or config.get("prediction_type") == "flow_prediction":
        return True
    if "shift" not in config or "beta_schedule" in config:
        return False
    if "_class_name" in config:
        raise ValueError(
            f"{name} has a shift and says nothing about what its networks predict: if that is noise minus data at N t, "
            f"as of FlowMatchEulerDiscreteScheduler, give its configuration with prediction_type='flow_prediction'"
        )
    return True


def _threshold(name: str, config: JsonMapping) -> JsonMapping | None:
    """Options of `Thresholded` that do what a scheduler does to estimates of the data; None if it leaves them."""
    if config.get("thresholding"):
        ratio = number("dynamic_thresholding_ratio", config.get("dynamic_thresholding_ratio", 0.995), above=0, below=1)
        most = number("sample_max_value", config.get("sample_max_value", 1.0), least=1, most=FAR)
        return {"percentile": ratio, "most": most}
    if config.get("clip_sample", name.startswith(CLIPPING)):
        return {"limit": number("clip_sample_range", config.get("clip_sample_range", 1.0), above=0, most=FAR)}
    return None


def _configuration(scheduler: Any) -> tuple[JsonObject, str]:
    """A scheduler's configuration, with its class if that is known, and what to call it in messages."""
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise TypeError(
            f"scheduler must be one of diffusers' or its configuration as a dictionary, got {described(scheduler)}"
        )

    name = config.get("_class_name")
    if not name and config is scheduler:
        return dict(config), "the configuration"
    name = name or type(scheduler).__name__
    return {**config, "_class_name": name}, name


# Networks of flow matching that take another time than N t, or predict data minus noise, as their pipelines have it: by
# the beginnings of their classes' names.
TAKE_NOISE_FIRST = ("LuminaNextDiT", "Lumina2Transformer")  # 1 - t
TAKE_UNIT_TIME = (
    "Flux", "Chroma", "LongCatImage", "OvisImage", "AuraFlow", "QwenImage", "Krea2", "PRXTransformer", "BriaFibo2",
    "NucleusMoEImage", "CosmosTransformer3D", *TAKE_NOISE_FIRST,
)  # fmt: skip
PREDICT_DATA_FIRST = ("HiDreamImage", "NucleusMoEImage", *TAKE_NOISE_FIRST)

# Schedulers of flow matching whose names do not begin as the others'.
FLOWS = ("FlowMatch", "LTXEulerAncestralRF")

INSTEAD = {
    "EDM": "its coordinates are EDM's own: sample(*from_diffusers(model, scheduler)) reads it, a pipeline does not",
    "ScoreSdeVe": "its networks are score_sde's: take from_score_sde(net, VESDE(...))",
    "KarrasVe": "its networks know the noise level: take from_edm(net)",
    "CMStochastic": "consistency models map to the data: take from_edm(net) and a solver of few steps",
    "SCM": "its networks predict TrigFlow's velocity: take from_flow or from_v on a process of your own",
    "VQDiffusion": "its states are discrete, and no process of real numbers is behind it",
    "MiniMaxH3": "its networks run from noise to data: take from_flow_matching(net, from_noise=True)",
    "FlowMap": "its networks predict the way between two times, and no flow at one",
    "Piflow": "its networks predict several states at once, and no flow",
    "Helios": "its networks go through stages of resolution: take from_flow_matching(net) for one of them",
}


def _refuse(name: str) -> None:
    for start, instead in INSTEAD.items():
        if name.startswith(start):
            raise ValueError(f"{name}: {instead}")
    if name.startswith("CosineDPMSolver"):
        raise ValueError(f"{name}: {INSTEAD['EDM']}")


def _betas(name: str, config: JsonMapping, n: int) -> list[float]:
    """The table of a configuration, with what it does to it.

    Raises:
        ValueError: for tables that are not known, and one without a signal at its end for networks of noise.
    """
    betas = _table(name, config, n)
    scale = float(config.get("snr_shift_scale", 3.0 if name.startswith("CogVideoX") else 1.0))
    pure = bool(config.get("rescale_betas_zero_snr"))
    if pure and config.get("prediction_type", "epsilon") == "epsilon":
        raise ValueError(
            "rescale_betas_zero_snr=True leaves no signal at the last entry (beta = 1), where noise says nothing about "
            "the data: it goes with networks of prediction_type 'v_prediction' or 'sample'"
        )
    if scale == 1 and not pure:
        return betas

    squared = np.cumprod(1 - np.array(betas))  # alpha^2
    squared = squared / (scale + (1 - scale) * squared)
    if pure:
        squared = _without_signal(squared)
    ratios = squared / np.concatenate([[1.0], squared[:-1]])
    return [float(beta) for beta in 1 - ratios]


def _without_signal(squared: np.ndarray) -> np.ndarray:
    r"""The table of $\alpha^2$ (N,) rescaled to $\alpha_N = 0$, but for $2^{-24}$, as of diffusers' Euler schedulers.

    Where the entry before is less than twice that, the last is half of it: no table has two entries alike.

    Source: Lin et al., 2023, arXiv:2305.08891, algorithm 1.
    """
    alpha = np.sqrt(squared)
    rescaled = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    rescaled[-1] = min(LEAST_SIGNAL, rescaled[-2] / 2)
    return np.asarray(rescaled)


def _table(name: str, config: JsonMapping, n: int) -> list[float]:
    if config.get("trained_betas") is not None:
        betas = [float(beta) for beta in config["trained_betas"]]
        if len(betas) != n:
            raise ValueError(f"num_train_timesteps={n}, but trained_betas has {len(betas)} entries")
        return betas
    if "beta_schedule" not in config:
        raise ValueError(f"{name} has neither beta_schedule nor trained_betas, and is no flow matching: not supported")

    start = float(config.get("beta_start", 1e-4))
    end = float(config.get("beta_end", 0.02))
    return _scheduled_betas(config["beta_schedule"], start, end, n)


def _scheduled_betas(schedule: str, start: float, end: float, n: int) -> list[float]:
    """The table of a schedule by name, as diffusers computes it."""
    if schedule == "squaredcos_cap_v2":
        return list(presets.iddpm_cosine(n).betas)
    if schedule == "linear":
        return torch.linspace(start, end, n, dtype=torch.float64, device="cpu").tolist()
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64, device="cpu").square().tolist()
    if schedule == "sigmoid":
        steps = torch.linspace(-6, 6, n, dtype=torch.float64, device="cpu")
        return (torch.sigmoid(steps) * (end - start) + start).tolist()
    raise ValueError(
        f"beta_schedule must be linear, scaled_linear, squaredcos_cap_v2 or sigmoid, got {described(schedule)}: "
        f"give the table itself as trained_betas"
    )


class _Keyword(nn.Module):
    """A module that takes its timestep by name, whatever stands second among its arguments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, label: Tensor, /, **kwargs: object) -> object:
        return self.model(x, timestep=label, **kwargs)


@dataclass(frozen=True)
class _KeywordFunction:
    """A function that takes its timestep by name; it can be pickled where the function can."""

    model: Callable[..., object]

    def __call__(self, x: Tensor, label: Tensor, /, **kwargs: object) -> object:
        return self.model(x, timestep=label, **kwargs)


class _EDMPreconditioned(nn.Module):
    """The network inside of EDM's preconditioning, as diffusers' EDM schedulers have it, as D(x, sigma)."""

    def __init__(
        self, model: Callable[..., object], sigma_data: float, sign: float, output: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.sigma_data = sigma_data
        self.sign = sign
        self.output = output

    def forward(self, x: Tensor, sigma: Tensor, /, **kwargs: object) -> Tensor:
        level = expand(sigma.to(x.dtype), x)
        total = (level**2 + self.sigma_data**2).sqrt()
        F = self.output(self.model(x / total, sigma.log() / 4, **kwargs), x)
        D = (self.sigma_data / total) ** 2 * x + self.sign * level * self.sigma_data / total * F
        return D.to(x.dtype)


def _by_keyword(model: Callable[..., object]) -> Callable[..., object]:
    """The model with its timestep second, by name where another argument stands there."""
    inner = unwrapped(model)  # a wrapper's own arguments are any
    called = inner.forward if isinstance(inner, nn.Module) else inner
    try:
        names = list(inspect.signature(called).parameters)
    except (TypeError, ValueError):
        return model
    if "timestep" not in names[2:]:
        return model
    return _Keyword(model) if isinstance(model, nn.Module) else _KeywordFunction(model)


def _edm(model: Callable[..., object], name: str, config: JsonMapping) -> tuple[Score, LinearSDE]:
    kind = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction") or name.startswith("Cosine"):
        raise ValueError(f"{name} with prediction_type={kind!r}: give D(x, sigma) to from_edm")

    sigma_min = float(config.get("sigma_min", SIGMA_MIN))
    sigma_max = float(config.get("sigma_max", SIGMA_MAX))
    sigma_data = float(config.get("sigma_data", 0.5))
    sign = 1.0 if kind == "epsilon" else -1.0
    return _preconditioned(model, EDMSDE(sigma_min, sigma_max), sigma_data, sign)


def _preconditioned(
    model: Callable[..., object], sde: LinearSDE, sigma_data: float, sign: float
) -> tuple[Score, LinearSDE]:
    """The score of a network inside of EDM's preconditioning, whose output is times a sign, and its process."""
    net = _EDMPreconditioned(_by_keyword(model), sigma_data, sign, _plain_output)
    return from_denoiser(net, sde, time_label=noise_level(sde)), sde


def _of_noise_levels(model: Callable[..., object], name: str, config: JsonMapping) -> tuple[Score, LinearSDE]:
    """A network of v that knows log(sigma) / 4 on noise levels of its own: EDM's preconditioning of data of spread 1.

    Raises:
        ValueError: for other predictions, and without the noise levels.
    """
    if config.get("prediction_type") != "v_prediction":
        raise ValueError(
            f"{name} with timestep_type='continuous' and prediction_type={config.get('prediction_type')!r}: give "
            f"D(x, sigma) to from_edm"
        )
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if low is None or high is None:
        raise ValueError(f"{name} with timestep_type='continuous' needs sigma_min and sigma_max, got {low} and {high}")
    return _preconditioned(model, EDMSDE(float(low), float(high)), sigma_data=1.0, sign=-1.0)


def _plain_output(out: object, x: Tensor) -> Tensor:
    return _first_tensor(out)


def _first_tensor(out: object) -> Tensor:
    if not isinstance(out, Tensor):
        out = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
    if not isinstance(out, Tensor):
        raise TypeError(f"the model must return a tensor, a tuple or something with .sample, got {described(out)}")
    return out


def from_diffusers(
    model: Callable[..., object],
    scheduler: Any,
    *,
    T: float | None = None,
    integer: bool = False,
    time_scale: float | None = None,
    clip: bool | None = None,
) -> tuple[Score, LinearSDE]:
    """A model of diffusers and the scheduler that it was trained with as a score on its process.

    | configuration                                   | process                | label                  |
    |-------------------------------------------------|------------------------|------------------------|
    | `beta_schedule` linear, scaled_linear, squaredcos_cap_v2, sigmoid; `trained_betas` | `DiscreteVPSDE` | N t - 1 |
    | FlowMatch..., `prediction_type="flow_prediction"` | `RectifiedFlowSDE`   | N t, t for Flux's kin  |
    | EDMEuler, EDMDPMSolverMultistep; `timestep_type="continuous"` | `EDMSDE` | log(sigma) / 4         |

    Entry i of a table sits at t = (i + 1)/N. Read with a table are `snr_shift_scale`, as of CogVideoX, and for networks
    of v or the data `rescale_betas_zero_snr`, which leaves $\\alpha^2 = 2^{-24}$ at its end. What a configuration says
    about sampling (`timestep_spacing`, `shift`, ...) is not read: that is a matter of `grid=` and solver, such as
    `grids.Shifted(scheduler.config.shift)` or, for latent consistency models, `"lcm"` on
    `grids.Distilled(scheduler.config.original_inference_steps)`. Estimates of the data are clipped, as `clip_sample`
    and `thresholding` have it, with `clip=True` alone.

    The time goes to `timestep` by name where another argument stands second, as in the transformers of Stable Diffusion
    3, Flux and PixArt; their conditions are `model_kwargs`.

    Args:
        model: `model(x, timestep, **kwargs)`, such as a `UNet2DModel`; returns a tensor, a tuple, or an object with
            `.sample`. Of outputs with a learned variance, the first half of the channels is taken.
        scheduler: a scheduler of diffusers, or its configuration as a dictionary.
        T: where sampling starts, for flow matching; 0.999 if not given.
        integer: the nearest entry of the table as int64, for models that look their time up in an `nn.Embedding`.
        time_scale: of flow matching: what the model expects at t = 1. If not given, 1 for models by whose class it is
            known that they multiply their time themselves, such as those of Flux, Qwen-Image and AuraFlow, and N for
            others, times the `timestep_scale` that those of Sana declare. Lumina's know 1 - t in its place, and
            predict data minus noise, as HiDream's do.
        clip: whether the score keeps estimates of the data in the range of the configuration, as a `Thresholded`; if
            not given, it does not, and where the configuration clips on a long table that is told.

    Raises:
        TypeError: for a scheduler that is neither.
        ValueError: for schedules that are not supported, zero terminal signal-to-noise with a prediction of the noise
            among them, and `clip=True` with a configuration that does not clip.

    Warns:
        UserWarning: if the configuration clips, `clip` is not given, and the table of a network that predicts noise
            ends below a log-SNR of -12, as the cosine does: what a network errs near pure noise then moves samples far.

    Examples:
        >>> import sgm_sde as sg
        >>> config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
        >>> score, sde = from_diffusers(lambda x, timestep: (0.1 * x,), config)
        >>> sg.sample(score, sde, (2, 3, 8, 8), solver="ddim", nfe=10, seed=0)
        SampleResult(x=(2, 3, 8, 8) torch.float32, nfe=10, completed)
    """
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if isinstance(config, Mapping):
        name = config.get("_class_name") or type(scheduler).__name__
        knows_noise = _knows_noise(config)
        if knows_noise or name.startswith(("EDM", "CosineDPM")):
            unused = {"T": T, "integer": integer or None, "time_scale": time_scale, "clip": clip}
            for option, value in unused.items():
                if value is not None:
                    raise ValueError(
                        f"{option}={value} does not go with EDM's schedulers, whose time is the noise level"
                    )
            return (_of_noise_levels if knows_noise else _edm)(model, name, config)

    conventions = convention(scheduler, T, integer)
    output = conventions.output
    if conventions.is_flow:
        conventions = conventions._replace(time_label=_flow_label(model, conventions.n, time_scale))
        if _is_named(model, PREDICT_DATA_FIRST):
            output = partial(_negative, output)
    else:
        if time_scale is not None:
            raise ValueError(f"time_scale={time_scale} goes with flow matching; a table's entries have numbers")
        if _has_variance(model):
            output = conventions._replace(split=True).output
    net = with_output(_by_keyword(model), output)
    score = Score(net, conventions.sde, conventions.prediction, time_label=conventions.time_label)
    return _clipped(score, conventions, clip), conventions.sde


def _clipped(score: Score, conventions: Convention, clip: bool | None) -> Score:
    """The score with its estimates of the data in the scheduler's range if that is asked for, and as it is if not."""
    threshold = conventions.threshold
    if clip is not None and flag("clip", clip):
        if not threshold:
            raise ValueError(
                "clip=True, but the configuration does not clip: take sg.guidance.Thresholded(score, limit)"
            )
        return Thresholded(score, **threshold)

    last = float(conventions.sde.log_snr(conventions.sde.T))
    if threshold and clip is None and last < DEEP and conventions.prediction == "noise":
        options = ", ".join(f"{name}={value:g}" for name, value in threshold.items())
        warn(
            f"the configuration keeps estimates of the data in range, and this score does not: on a table that "
            f"ends at log-SNR {last:.3g} what the network errs near pure noise then moves samples far. Give clip=True, "
            f"or sg.guidance.Thresholded(score, {options}); clip=False says that none is wanted"
        )
    return score


def _is_named(model: object, beginnings: tuple[str, ...]) -> bool:
    """True for a network of a class whose name has one of these beginnings."""
    return type(unwrapped(model)).__name__.startswith(beginnings)


def _flow_label(model: object, n: int, given: float | None) -> TimeLabel:
    """The time label of a network of flow matching whose scheduler has n timesteps."""
    if given is not None:
        scale = number("time_scale", given, above=0)
    elif _is_named(model, TAKE_UNIT_TIME):
        scale = 1.0
    elif _is_named(model, ("Sana",)):
        scale = n * float(getattr(getattr(unwrapped(model), "config", None), "timestep_scale", 1.0))
    else:
        scale = float(n)
    return flow_from_noise(scale) if _is_named(model, TAKE_NOISE_FIRST) else flow(scale)


def _negative(output: Callable[..., Tensor], out: object, x: Tensor) -> Tensor:
    """The negative of the prediction in what a network returned."""
    return -output(out, x)


def _has_variance(model: object) -> bool:
    """True for a network with twice as many channels in its output as in its input: the others are a variance."""
    sizes = getattr(unwrapped(model), "config", None)
    channels = getattr(sizes, "in_channels", None)
    if not channels:
        return False
    return bool(getattr(sizes, "out_channels", None) == 2 * channels)
