"""diffusers: a model with the configuration of its scheduler becomes a score on its process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgm_sde._checks import described, one_of, whole
from sgm_sde.adapters.networks import with_output
from sgm_sde.processes import DiscreteVPSDE, LinearSDE, RectifiedFlowSDE, presets
from sgm_sde.scores.score import Score
from sgm_sde.scores.time_labels import TimeLabel, ddpm, flow

PREDICTION_TYPES = {
    "epsilon": "noise", "sample": "data", "v_prediction": "velocity", "flow_prediction": "flow",
}  # fmt: skip


class Convention(NamedTuple):
    """What a scheduler's configuration says about its network.

    Attributes:
        config: the configuration.
        sde: the process.
        prediction: what the network predicts.
        time_label: what it expects as time.
        split: whether its output carries a variance in a second half of channels.
    """

    config: dict[str, Any]
    sde: LinearSDE
    prediction: str
    time_label: TimeLabel
    split: bool

    def output(self, out: Any, x: Tensor) -> Tensor:
        """The prediction (B, *) in what the model returned for x (B, *)."""
        if not isinstance(out, Tensor):
            out = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
        if not isinstance(out, Tensor):
            raise TypeError(f"the model must return a tensor, a tuple or something with .sample, got {out!r}")
        return out[:, : x.shape[1]] if self.split and out.shape[1] == 2 * x.shape[1] else out


def convention(scheduler: Any, T: float | None = None, integer: bool = False) -> Convention:
    """Read a scheduler's configuration; arguments as those of `from_diffusers`."""
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise TypeError(f"scheduler must be one of diffusers' or its configuration as a dictionary, got {scheduler!r}")
    name = config.get("_class_name") or ("the configuration" if config is scheduler else type(scheduler).__name__)
    config = dict(config)
    n = whole("num_train_timesteps", config.get("num_train_timesteps", 1000))
    flows = name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"
    flows = flows or ("shift" in config and "beta_schedule" not in config)
    if flows:
        if config.get("invert_sigmas"):
            raise ValueError("invert_sigmas=True, a time from noise to data, is not read here: use from_flow_matching")
        if integer:
            raise ValueError("integer=True goes with a table of times, and flow matching has none")
        return Convention(config, RectifiedFlowSDE(T=0.999 if T is None else T), "flow", flow(n), False)
    if T is not None:
        raise ValueError(f"T={T} goes with flow matching; {name} starts at the end of its table")
    kind = config.get("prediction_type", "epsilon")
    one_of("prediction_type", kind, PREDICTION_TYPES)
    split = config.get("variance_type") in ("learned", "learned_range")
    return Convention(
        config, DiscreteVPSDE(_betas(name, config, n)), PREDICTION_TYPES[kind], ddpm(n, integer=integer), split
    )


def _betas(name: str, config: Mapping[str, Any], n: int) -> list[float]:
    if config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "rescale_betas_zero_snr=True leaves no signal at the last entry (beta = 1), where noise says nothing about "
            "the data: give the table without it as trained_betas, its last entries left out, and start there"
        )
    if config.get("trained_betas") is not None:
        betas = [float(b) for b in config["trained_betas"]]
        if len(betas) != n:
            raise ValueError(f"num_train_timesteps={n}, but trained_betas has {len(betas)} entries")
        return betas
    if "beta_schedule" not in config:
        raise ValueError(f"{name} has neither beta_schedule nor trained_betas, and is no flow matching: not supported")
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    schedule = config["beta_schedule"]
    if schedule == "squaredcos_cap_v2":
        return list(presets.iddpm_cosine(n).betas)
    if schedule == "linear":
        return torch.linspace(start, end, n, dtype=torch.float64, device="cpu").tolist()
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64, device="cpu").square().tolist()
    raise ValueError(f"beta_schedule must be linear, scaled_linear or squaredcos_cap_v2, got {described(schedule)}")


def from_diffusers(
    model: Callable[..., Any], scheduler: Any, *, T: float | None = None, integer: bool = False
) -> tuple[Score, LinearSDE]:
    """A model of diffusers and the scheduler that it was trained with as a score on its process.

    | configuration                                   | process                | label              |
    |-------------------------------------------------|------------------------|--------------------|
    | `beta_schedule` linear, scaled_linear, squaredcos_cap_v2; `trained_betas` | `DiscreteVPSDE` | N t - 1 |
    | FlowMatch..., `prediction_type="flow_prediction"` | `RectifiedFlowSDE`   | N t                |

    Entry i of a table sits at t = (i + 1)/N. What the configuration says about sampling (`timestep_spacing`,
    `clip_sample`, `shift`, ...) is not read: that is a matter of `grid=` and solver. Nothing is clipped.

    Args:
        model: `model(x, timestep, **kwargs)`, such as a `UNet2DModel`; returns a tensor, a tuple, or an object with
            `.sample`. Of outputs with a learned variance, the first half of the channels is taken.
        scheduler: a scheduler of diffusers, or its configuration as a dictionary.
        T: where sampling starts, for flow matching; 0.999 if not given.
        integer: the nearest entry of the table as int64, for models that look their time up in an `nn.Embedding`.

    Raises:
        TypeError: for a scheduler that is neither.
        ValueError: for schedules that are not supported, zero terminal signal-to-noise among them.

    Example:
        >>> import sgm_sde as sg
        >>> config = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
        >>> score, sde = from_diffusers(lambda x, timestep: (0.1 * x,), config)
        >>> sg.sample(score, sde, (2, 3, 8, 8), solver="ddim", nfe=10, seed=0)
        SampleResult(x=(2, 3, 8, 8) torch.float32, nfe=10, completed)
    """
    says = convention(scheduler, T, integer)
    net = with_output(model, says.output)
    return Score(net, says.sde, says.prediction, time_label=says.time_label), says.sde
