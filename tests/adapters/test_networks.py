"""Networks of other libraries, built from the classes of those libraries."""

from __future__ import annotations

import copy
import importlib
import itertools
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from benchmarks import peers
from sgm_sde.adapters import from_azula, from_diffusers, from_edm, from_flow_matching, from_score_sde
from sgm_sde.likelihood import LearnedVariance
from tests.adapters.cases import DDPM, network, noise
from tests.helpers import F64, Recorder


def distance(a: Tensor, b: Tensor) -> float:
    assert a.dtype == b.dtype
    return float((a - b).norm() / b.norm())


TABLES: list[dict[str, Any]] = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
    {"trained_betas": [0.001 + 0.00002 * i for i in range(500)], "num_train_timesteps": 500},
]


@pytest.mark.parametrize(
    ("i", "prediction"),
    [(0, "epsilon"), (0, "sample"), (0, "v_prediction"), (1, "epsilon"), (2, "v_prediction"), (3, "sample")],
)
def test_ddim_is_diffusers(diffusers: Any, unet: Any, i: int, prediction: str) -> None:
    """Our DDIM on the adapted network is theirs: to rounding with their table in float64, to 1e-5 as it is."""
    scheduler = diffusers.DDIMScheduler(**TABLES[i], prediction_type=prediction, clip_sample=False)
    labels = torch.tensor([0, 2])
    score, sde = from_diffusers(unet, scheduler)
    assert score.parameter is next(unet.parameters())
    torch.testing.assert_close(torch.tensor(sde.betas, dtype=F64), scheduler.betas.double(), rtol=2e-5, atol=0)
    exact = copy.copy(scheduler)
    exact.alphas_cumprod = (1 - torch.tensor(sde.betas, dtype=F64)).cumprod(0)
    exact.final_alpha_cumprod = torch.tensor(1.0, dtype=F64)
    for theirs, tolerance in ((exact, 1e-9), (scheduler, 1e-5)):
        theirs.set_timesteps(10)
        x = noise()
        for t in theirs.timesteps:
            x = theirs.step(unet(x, t, class_labels=labels).sample, t, x).prev_sample
        grid = [(int(t) + 1) / len(sde.betas) for t in theirs.timesteps]
        res = sg.sample(score, sde, x_T=noise(), solver="ddim", grid=grid, model_kwargs={"class_labels": labels})
        assert res.nfe == 10
        assert distance(res.x, x) < tolerance


CLIPPED: dict[str, dict[str, Any]] = {
    "clipped": {"clip_sample": True, "clip_sample_range": 0.8},
    "thresholded": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
}


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize("pipeline", [False, True], ids=["score", "scheduler"])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("how", CLIPPED)
def test_estimates_in_the_range_of_a_configuration_are_diffusers(
    diffusers: Any, how: str, beta_schedule: str, pipeline: bool
) -> None:
    """With their noise from the clipped estimate, by `clip=True` and in a pipeline."""
    theirs = diffusers.DDIMScheduler(beta_schedule=beta_schedule, **CLIPPED[how])
    theirs.set_timesteps(10)
    x_T = 3 * noise()
    x = x_T
    for t in theirs.timesteps:
        out = network(x, t[None])
        x = theirs.step(out, t, x, use_clipped_model_output=True).prev_sample

    if pipeline:
        ours = sg.adapters.SolverScheduler(theirs, "ddim", grid="scheduler")
        ours.set_timesteps(10)
        y = x_T
        for t in ours.timesteps:
            y = ours.step(network(y, t[None]), t, y, use_clipped_model_output=True).prev_sample
    else:
        score, sde = from_diffusers(network, theirs, clip=True)
        grid = [(int(t) + 1) / len(sde.betas) for t in theirs.timesteps]
        y = sg.sample(score, sde, x_T=x_T, solver="ddim", grid=grid).x
    assert distance(y.double(), x.double()) < 1e-4

    bare = diffusers.DDIMScheduler.from_config(theirs.config, clip_sample=False, thresholding=False)
    bare.set_timesteps(10)
    x = x_T
    for t in bare.timesteps:
        x = bare.step(network(x, t[None]), t, x).prev_sample
    assert distance(y.double(), x.double()) > 0.05


COSINE = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True}


@pytest.mark.parametrize(
    ("config", "clip", "said"),
    [
        (COSINE, None, r"Thresholded\(score, limit=1\)"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"}, None, "clip=True"),
        (COSINE | {"clip_sample": False, "thresholding": True}, None, "percentile=0.995, most=1"),
        (COSINE, False, None),
        (COSINE | {"clip_sample": False}, None, None),
        (DDPM | {"clip_sample": True}, None, None),
    ],
    ids=["cosine", "by class", "thresholding", "told", "off", "linear"],
)
def test_that_a_configuration_clips_is_told(config: dict[str, Any], clip: bool | None, said: str | None) -> None:
    """Where the table goes on so far that it matters, unless it was decided; the score is the network's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        score, _ = from_diffusers(lambda x, i: x, config, clip=clip)
    assert [bool(re.search(said or "", str(w.message))) for w in caught] == ([True] if said else [])
    assert type(score) is sg.Score


def test_clipping_that_a_configuration_does_not_have() -> None:
    with pytest.raises(ValueError, match="clip=True, but the configuration does not clip"):
        from_diffusers(lambda x, i: x, DDPM, clip=True)
    with pytest.raises(ValueError, match="clip=True does not go with EDM"):
        from_diffusers(lambda x, i: x, {"_class_name": "EDMEulerScheduler"}, clip=True)
    with pytest.raises(TypeError, match="clip must be True or False, got 1"):
        from_diffusers(lambda x, i: x, DDPM, clip=1)  # type: ignore[arg-type]


def test_flow_matching_is_diffusers(diffusers: Any, unet: Any) -> None:
    """Euler steps along their shifted noise levels, from pure noise at t = 1 on."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    scheduler.sigmas = scheduler.sigmas.double()
    x = noise()
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, class_labels=torch.tensor([1, 1])).sample, t, x).prev_sample
    score, sde = from_diffusers(unet, scheduler, T=1.0)
    kwargs = {"class_labels": torch.tensor([1, 1])}
    res = sg.sample(score, sde, x_T=noise(), solver="ddim", grid=scheduler.sigmas[:-1].tolist(), model_kwargs=kwargs)
    assert distance(res.x, x.double()) < 1e-5
    assert sg.adapters.from_diffusers(unet, dict(scheduler.config))[1] == sg.RectifiedFlowSDE()


def test_time_labels_and_outputs() -> None:
    """Entry i of the table is called with i; tensors, tuples, objects, and the mean beside a learned variance."""
    net = Recorder(lambda x, i: x)
    score, sde = from_diffusers(net, {**DDPM, "num_train_timesteps": 250})
    score(noise(), sde.times[0])
    score(noise(), torch.tensor([sde.times[17], sde.times[249]], dtype=F64))
    seen = torch.cat(net.labels)
    torch.testing.assert_close(seen, torch.tensor([0, 0, 17, 249], dtype=F64), rtol=0, atol=1e-9)
    for wrap in (lambda x: x, lambda x: (x, 1), lambda x: SimpleNamespace(sample=x)):
        adapted, _ = from_diffusers(lambda x, i, wrap=wrap: wrap(2 * x), DDPM)
        assert torch.equal(adapted.output(noise(), torch.ones(2)), 2 * noise())
    double = from_diffusers(lambda x, i: torch.cat([x, 9 + x], 1), {**DDPM, "variance_type": "learned_range"})[0]
    assert torch.equal(double.output(noise(), torch.ones(2)), noise())


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({**DDPM, "rescale_betas_zero_snr": True}, "no signal at the last entry"),
        ({**DDPM, "beta_schedule": "laplace"}, "got 'laplace': give the table itself as trained_betas"),
        ({**DDPM, "prediction_type": "x"}, "got 'x'"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348.0}, "take from_score_sde"),
        ({"_class_name": "KarrasVeScheduler"}, "take from_edm"),
        ({"_class_name": "UnCLIPScheduler"}, "UnCLIPScheduler has neither"),
        ({"_class_name": "MiniMaxH3Scheduler", "shift": 12.0}, r"from_flow_matching\(net, from_noise=True\)"),
        ({"_class_name": "FlowMapEulerDiscreteScheduler", "shift": 1.0}, "the way between two times"),
        ({"_class_name": "PiflowScheduler", "shift": 5.0}, "several states at once"),
        ({"_class_name": "HeliosScheduler", "prediction_type": "flow_prediction"}, "stages of resolution"),
        ({"_class_name": "MyScheduler", "shift": 5.0}, "MyScheduler has a shift and says nothing about"),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 3}, "has 2 entries"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
    ],
)
def test_what_is_not_supported(scheduler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers(lambda x, t: x, scheduler)


def alphas_squared(betas: Tensor, scale: float = 1.0, pure: bool = False) -> Tensor:
    """The table of CogVideoX's schedulers, and of Lin et al., 2023, algorithm 1."""
    squared = (1 - betas).cumprod(0)
    squared = squared / (scale + (1 - scale) * squared)
    if not pure:
        return squared
    root = squared.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.0),
        ({"_class_name": "CogVideoXDDIMScheduler"}, 3.0),
        ({"_class_name": "CogVideoXDPMScheduler", "snr_shift_scale": 2.0}, 2.0),
    ],
)
def test_what_a_configuration_does_to_its_table(config: dict[str, Any], scale: float, pure: bool) -> None:
    """A shift of the signal-to-noise ratio, and none at the end, which is 2^-24 here, or half of the entry before."""
    _, sde = from_diffusers(lambda x, t: x, {**SCALED, **config, "rescale_betas_zero_snr": pure})
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64).square()
    expected = alphas_squared(betas, scale, pure)
    if pure:
        assert expected[-1] == 0
        expected[-1] = min(2.0**-24, expected[-2] / 2)
    t = torch.arange(1, 1001, dtype=F64) / 1000
    torch.testing.assert_close(sde.alpha(t).square(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_the_law_of_networks_without_a_signal_at_the_end(kind: str) -> None:
    """Samples of N(0.3, 0.5^2) from a network that was trained on the rescaled table, on all of it."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64).square()
    squared = alphas_squared(betas, pure=True)

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        alpha = squared[timestep.round().long()].sqrt()[:, None]
        sigma = (1 - alpha.square()).sqrt()
        gain = (x - 0.3 * alpha) / (0.25 * alpha.square() + sigma.square())
        data = 0.3 + 0.25 * alpha * gain
        return data if kind == "sample" else alpha * sigma * gain - sigma * data

    score, sde = from_diffusers(model, {**SCALED, "prediction_type": kind, "rescale_betas_zero_snr": True})
    grid = [(i + 1) / 1000 for i in (*range(999, 0, -4), 0)]
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    found = sg.sample(score, sde, x_T=x, solver="dpm++2m", grid=grid, final="none").x
    alpha = squared[0].sqrt()
    std = (0.25 * alpha.square() + 1 - alpha.square()).sqrt()
    assert (found - (0.3 * alpha + std * x)).abs().max() < 0.01


CONTINUOUS = {**SCALED, "_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}


@pytest.mark.parametrize("sigma", [0.01, 1.0, 500.0])
def test_networks_of_v_that_know_the_noise_level(sigma: float) -> None:
    """As of Stable Video Diffusion: at log(sigma) / 4 and x / sqrt(1 + sigma^2), on levels beyond their table's."""

    def model(x: Tensor, timestep: Tensor) -> Tensor:
        level = (4 * timestep).exp()[:, None]
        total = (1 + level.square()).sqrt()
        data = 0.3 + 0.25 * (x * total - 0.3) / (0.25 + level.square())
        return (x - total * data) / level  # data = x / total - level / total v, for the state x total

    score, sde = from_diffusers(model, {**CONTINUOUS, "sigma_min": 0.002, "sigma_max": 700.0})
    assert sde == sg.EDMSDE(0.002, 700.0)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    expected = 0.3 + 0.25 * (x - 0.3) / (0.25 + sigma**2)
    torch.testing.assert_close(score.denoised(x, sigma), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "needs sigma_min and sigma_max, got None and None"),
        ({"prediction_type": "epsilon"}, r"prediction_type='epsilon': give D\(x, sigma\) to from_edm"),
    ],
)
def test_networks_of_noise_levels_that_are_not_known(more: dict[str, Any], message: str) -> None:
    """And no pipeline with any, whose coordinates are EDM's."""
    with pytest.raises(ValueError, match=message):
        from_diffusers(lambda x, t: x, {**CONTINUOUS, **more})
    with pytest.raises(ValueError, match="timestep_type='continuous': its coordinates are EDM's own"):
        sg.adapters.SolverScheduler({**CONTINUOUS, **more}, "ddim")


class Transformer(nn.Module):
    """A network that takes its time third, as those of Flux and Stable Diffusion 3."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=3, out_channels=3)

    def forward(self, hidden: Tensor, context: Tensor | None = None, timestep: Tensor | None = None) -> tuple[Tensor]:
        assert context is None and timestep is not None
        return (hidden * timestep.reshape(-1, 1),)


class FluxTransformer(Transformer):
    """One that multiplies its time itself."""


NAMED = {
    "Flux2Transformer2DModel": (0.25, 1), "QwenImageTransformer2DModel": (0.25, 1),
    "AuraFlowTransformer2DModel": (0.25, 1), "PRXTransformer2DModel": (0.25, 1),
    "CosmosTransformer3DModel": (0.25, 1), "SD3Transformer2DModel": (250.0, 1), "WanTransformer3DModel": (250.0, 1),
    "HiDreamImageTransformer2DModel": (250.0, -1), "NucleusMoEImageTransformer2DModel": (0.25, -1),
    "Lumina2Transformer2DModel": (0.75, -1), "LuminaNextDiT2DModel": (0.75, -1),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_networks_of_flow_matching_are_called_as_their_pipelines_call_them(name: str) -> None:
    """The time that they know at t = 1/4, and the sign of what they predict."""
    label, sign = NAMED[name]
    net = type(name, (Transformer,), {})()
    score, _ = from_diffusers(net, {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    x = torch.ones(2, 3)
    torch.testing.assert_close(score.output(x, torch.full((2,), 0.25)), sign * label * x)
    given, _ = from_diffusers(net, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, time_scale=2.0)
    own = 1.5 if label == 0.75 else 0.5
    torch.testing.assert_close(given.output(x, torch.full((2,), 0.25)), sign * own * x)


def test_the_scale_that_a_network_declares() -> None:
    """As of Sana, of which one is called in [0, 1]."""
    net = type("SanaTransformer2DModel", (Transformer,), {})()
    net.config.timestep_scale = 0.001
    score, _ = from_diffusers(net, {"prediction_type": "flow_prediction", "beta_schedule": "linear"})
    torch.testing.assert_close(score.output(torch.ones(1, 3), torch.full((1,), 0.25)), torch.full((1, 3), 0.25))


class Adapted(nn.Module):
    """A network with adapters, as PEFT wraps it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.base = net

    def get_base_model(self) -> nn.Module:
        return self.base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs)


WRAPPERS = [
    lambda net: net,
    nn.DataParallel,
    Adapted,
    partial,
    lambda net: net.forward,
    lambda net: torch.compile(net, backend="eager"),
    lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
]
WRAPPER_NAMES = ["plain", "parallel", "peft", "partial", "method", "compiled", "both"]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=WRAPPER_NAMES)
@pytest.mark.parametrize(("kind", "label"), [(Transformer, 500.0), (FluxTransformer, 0.5)])
def test_wrapped_networks_get_their_time_where_they_take_it(
    kind: type[nn.Module], label: float, wrap: Callable[[nn.Module], Any]
) -> None:
    """By name, and in their own units, whatever is around them."""
    score, _ = from_diffusers(wrap(kind()), {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert torch.equal(score.output(torch.ones(2, 3), torch.full((2,), 0.5)), torch.full((2, 3), label))


@pytest.mark.parametrize("wrap", WRAPPERS[:4], ids=WRAPPER_NAMES[:4])
def test_wrapped_networks_with_a_variance(wrap: Callable[[nn.Module], Any]) -> None:
    """The sizes that say so are those of the network inside."""
    net = Backbone()
    net.config = SimpleNamespace(in_channels=3, out_channels=6)
    net.forward = lambda x, label: torch.cat([x, 9 + x], 1)  # type: ignore[method-assign]
    score, _ = from_diffusers(wrap(net), DDPM)
    assert torch.equal(score.output(noise(), torch.ones(2)), noise())


def test_wrapped_networks_that_take_their_time_by_name_are_refused() -> None:
    """Where nothing says how they are called."""
    with pytest.raises(TypeError, match=r"Ordered.forward\(hidden.* give lambda x, t, \*\*kwargs: net\(x, timestep"):
        sg.from_noise(nn.DataParallel(Ordered()), sg.VPSDE())


def test_what_wrapped_networks_declare() -> None:
    """EDM's range of noise levels, and azula's schedule."""
    net = Backbone()
    net.sigma_min = 0.0292
    net.sigma_max = 14.6
    assert from_edm(nn.DataParallel(net))[1] == sg.EDMSDE(0.0292, 14.6)
    net.schedule = lambda t: (1 - 0.9 * t, t + 1e-3)
    _, sde = from_azula(nn.DataParallel(net))
    assert float(sde.alpha(0.5)) == 0.55


class Ordered(nn.Module):
    """A network whose second argument is a condition."""

    def forward(self, hidden: Tensor, context: Tensor, timestep: Tensor) -> Tensor:
        return hidden


def test_what_is_not_understood() -> None:
    with pytest.raises(TypeError, match="got 3"):
        from_diffusers(lambda x, t: x, 3)
    with pytest.raises(TypeError, match=r"must be a function of .*, got 3"):
        from_diffusers(3, DDPM)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"T=0.9 goes with flow matching"):
        from_diffusers(lambda x, t: x, DDPM, T=0.9)
    with pytest.raises(TypeError, match=r"something with \.sample, got None"):
        from_diffusers(lambda x, t: None, DDPM)[0](noise(), 0.5)
    with pytest.raises(TypeError, match="has a schedule, got"):
        from_azula(lambda x, t: x)
    with pytest.raises(TypeError, match="levels=5 goes with VESDE"):
        from_score_sde(lambda x, t: x, sg.VPSDE(), levels=5)
    with pytest.raises(TypeError, match="got EDMSDE"):
        from_score_sde(lambda x, t: x, sg.EDMSDE())


class Backbone(nn.Module):
    """A small network of a state and a time."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 3, 3, padding=1, dtype=F64).requires_grad_(False)

    def forward(self, x: Tensor, label: Tensor, **kwargs: Any) -> Tensor:
        label = label.to(x.dtype).reshape(-1, 1, 1, 1)
        return torch.tanh(self.conv(x) + torch.sin(label))


def euler(denoiser: Callable[..., Tensor], sigmas: list[float], x: Tensor) -> Tensor:
    """EDM's sampler without its second order: the first lines of the paper's algorithm 1."""
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        d = (x - denoiser(x, torch.full((len(x),), sigma, dtype=x.dtype))) / sigma
        x = x + (after - sigma) * d
    return x


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # of a network that never learned
@pytest.mark.parametrize("kind", ["DiscreteEpsDDPMDenoiser", "DiscreteVDDPMDenoiser", "VDenoiser", "Denoiser"])
def test_k_diffusion(kind: str) -> None:
    """Their Euler sampler on their denoisers is our DDIM, on their process and on another."""
    if "k-diffusion" not in peers.available():
        pytest.skip("k-diffusion is not installed")
    if kind == "Denoiser":
        pytest.importorskip("dctorch")
        denoiser = peers._k_diffusion("layers").Denoiser(Backbone(), sigma_data=0.5)
    elif kind == "VDenoiser":
        denoiser = peers._k_diffusion("external").VDenoiser(Backbone())
    else:
        alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
        denoiser = getattr(peers._k_diffusion("external"), kind)(Backbone(), alphas_cumprod, quantize=False)
    score, sde = from_edm(denoiser)
    low = 0.01 if kind.startswith("Discrete") else 0.002  # what the network declares
    assert (sde.T, sde.eps) == pytest.approx((80, low), rel=1e-3)
    grid = sg.grids.Karras()(sde, 9)
    x_T = sde.T * noise()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sigmas = torch.tensor([*grid.times, 0.0], dtype=F64)
        expected = peers._k_diffusion().sample_euler(denoiser, x_T, sigmas, disable=True)
    assert distance(sg.sample(score, sde, x_T=x_T, solver="ddim", grid=grid).x, expected) < 1e-10

    vp = sg.VPSDE()
    on_vp, _ = from_edm(denoiser, vp)
    times = [float(vp.time(-2 * torch.tensor(s, dtype=F64).log())) for s in grid.times[2:]]
    start = float(vp.alpha(times[0])) * x_T
    res = sg.sample(on_vp, vp, x_T=start, solver="ddim", grid=times)
    assert distance(res.x, euler(denoiser, list(grid.times[2:]), x_T)) < 1e-8


class EDMPrecond(nn.Module):
    """EDM's preconditioning as its code has it: attributes, argument names and all."""

    sigma_min, sigma_max, sigma_data = 0, float("inf"), 0.5

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        out = c_skip * x + c_out * self.model(c_in * x, (sigma.log() / 4).flatten())
        return out if class_labels is None else out + class_labels.reshape(-1, 1, 1, 1)


def test_edm() -> None:
    """EDM's Heun sampler of 18 steps, 35 calls, ending at 0."""
    net = EDMPrecond()
    score, sde = from_edm(net)
    assert sde == sg.EDMSDE(0.002, 80.0)
    label = torch.tensor([0.1, -0.2], dtype=F64)
    sigmas = [*sg.grids.Karras(rho=7.0)(sde, 17).times, 0.0]
    x = x_T = 80 * noise()
    with torch.no_grad():
        for a, b in itertools.pairwise(sigmas):
            d = (x - net(x, torch.full((2,), a, dtype=F64), label)) / a
            y = x + (b - a) * d
            if b:
                d = (d + (y - net(y, torch.full((2,), b, dtype=F64), label)) / b) / 2
            x = x + (b - a) * d
    res = sg.sample(score, sde, x_T=x_T, solver="heun", steps=17, model_kwargs={"class_labels": label})
    assert res.nfe == 35
    assert distance(res.x, x) < 1e-10


def test_score_sde() -> None:
    """Scores as `mutils.get_score_fn` makes them, and the labels that it calls with."""
    net = Recorder(Backbone())
    x, t = noise(), torch.tensor([0.3, 0.8], dtype=F64)

    def column(v: Tensor) -> Tensor:
        return v.reshape(-1, 1, 1, 1)

    with torch.no_grad():
        for sde in (sg.VPSDE(), sg.SubVPSDE()):
            score, _ = from_score_sde(net, sde)
            torch.testing.assert_close(score(x, t), -net(x, 999 * t) / column(sde.marginal(x, t)[1].flatten()))
        ve = sg.presets.score_sde_ve_cifar10()
        torch.testing.assert_close(from_score_sde(net, ve)[0](x, t), net(x, 0.01 * (50 / 0.01) ** t))
        index = torch.tensor([699.0, 200.0])  # round((N - 1) (1 - t))
        torch.testing.assert_close(from_score_sde(net, ve, levels=1000)[0](x, t), net(x, index))
        ddpm = sg.presets.ddpm()
        times = torch.tensor([ddpm.times[4], ddpm.times[900]], dtype=F64)
        std = (1 - (1 - torch.tensor(ddpm.betas, dtype=F64)).cumprod(0))[[4, 900]].sqrt()
        expected = -net(x, torch.tensor([4, 900])) / column(std)
        torch.testing.assert_close(from_score_sde(net, ddpm)[0](x, times), expected, rtol=1e-7, atol=1e-7)
        ncsn = sg.presets.ncsn_cifar10()  # levels from 0.01 up; label 0 is the largest
        times = torch.tensor([ncsn.times[9], ncsn.times[2]], dtype=F64)
        torch.testing.assert_close(from_score_sde(net, ncsn)[0](x, times), net(x, torch.tensor([0, 7])))


def test_flow_matching_in_both_directions() -> None:
    """The same network of data to noise, told the other way round, gives the same samples."""
    net = Backbone()
    forth, sde = from_flow_matching(net, scale=10.0)
    back, _ = from_flow_matching(lambda x, tau: -net(x, 10 * (1 - tau)), from_noise=True)
    a, b = (sg.sample(s, sde, x_T=noise(), solver="rk4", steps=5).x for s in (forth, back))
    assert distance(a, b) < 1e-12
    x = noise()
    for t, s in ((0.999, 0.5), (0.5, 0.001)):  # dx/dt is the network itself: explicit Euler
        x = x + (s - t) * net(x, torch.full((2,), 10 * t, dtype=F64))
    euler_steps = sg.sample(forth, sde, x_T=noise(), solver="ddim", grid=[0.999, 0.5, 0.001], final="none").x
    assert distance(euler_steps, x.detach()) < 1e-10


@pytest.mark.parametrize("name", ["label", "model", "change", "sigma", "z", "target", "score", "kwargs"])
def test_conditions_of_any_name(name: str) -> None:
    """No argument of a wrapper is in the way of one of the network's."""

    def net(a: Tensor, b: Tensor, /, **condition: Tensor) -> Tensor:
        return a * condition[name][:, None]

    turned, _ = from_flow_matching(net, from_noise=True)
    plain = from_flow_matching(lambda a, b: a * torch.tensor([0.5, 0.25])[:, None], from_noise=True)[0]
    learned = sg.from_noise(LearnedVariance(doubled(net)), sg.VPSDE())
    x, t, condition = torch.ones(2, 2), torch.full((2,), 0.5), {name: torch.tensor([0.5, 0.25])}
    expected = plain.predict("data", x, t)
    assert torch.equal(turned.predict("data", x, t, **condition), expected)
    assert torch.equal(sg.guidance.Thresholded(turned, 9.0).predict("data", x, t, **condition), expected)
    assert torch.equal(learned.output(x, t, **condition), x * condition[name][:, None])


def doubled(net: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, t, /, **kwargs: torch.cat([net(x, t, **kwargs)] * 2, 1)


@pytest.mark.parametrize(
    "schedule", ["VPSchedule", "VESchedule", "CosineSchedule", "RectifiedSchedule", "DecaySchedule"]
)
@pytest.mark.parametrize("kind", ["SimpleDenoiser", "KarrasDenoiser"])
def test_azula(kind: str, schedule: str) -> None:
    """Their DDIM on their denoisers and schedules is ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("azula")
        denoise, schedules, samplers = (importlib.import_module(f"azula.{m}") for m in ("denoise", "noise", "sample"))
    denoiser = getattr(denoise, kind)(Backbone(), getattr(schedules, schedule)())
    score, sde = from_azula(denoiser)
    x_T = sde.prior_std * noise()
    expected = samplers.DDIMSampler(denoiser, steps=8, silent=True, dtype=F64)(x_T)
    res = sg.sample(score, sde, x_T=x_T, solver="ddim", grid="uniform", steps=8, final="none")
    assert res.nfe == 8
    assert distance(res.x, expected) < 1e-9


def test_the_libraries_are_not_needed() -> None:
    """Nothing of them is imported with the package."""
    code = (
        "import sys, sgm_sde; sgm_sde.adapters.SolverScheduler({'beta_schedule': 'linear'}).set_timesteps(5); "
        "sys.exit(bool({'diffusers', 'k_diffusion', 'azula', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""
