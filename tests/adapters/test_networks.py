"""Networks of other libraries, built from the libraries' own classes, and our solvers in a pipeline of diffusers."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from benchmarks import peers
from sgm_sde.adapters import SolverScheduler, from_azula, from_diffusers, from_edm, from_flow_matching, from_score_sde
from tests.conventions import case_id
from tests.helpers import F64, FAMILIES, Recorder, sampler

SHAPE = (2, 3, 8, 8)
DDPM = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def distance(a: Tensor, b: Tensor) -> float:
    assert a.dtype == b.dtype
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def diffusers() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def unet(diffusers: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, num_class_embeds=3,
        )  # fmt: skip
    return net.double().eval().requires_grad_(False)


# ----------------------------------------------------------------------------------------------- from diffusers

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
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 3}, "has 2 entries"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
    ],
)
def test_what_is_not_supported(scheduler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers(lambda x, t: x, scheduler)


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


# ------------------------------------------------------------------------- k-diffusion, EDM, score_sde, azula


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


# ----------------------------------------------------------------------------------------- solvers in a pipeline


def network(x: Tensor, label: Tensor) -> Tensor:
    """A network of noise whose label is in float32, as a pipeline's timesteps are."""
    return torch.tanh(x + 0.001 * label.float().reshape(-1, *[1] * (x.ndim - 1)))


def called_back(scheduler: SolverScheduler, n: int | None, x: Tensor, **options: Any) -> Tensor:
    """The loop of a pipeline."""
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t[None]), t, x, **options).prev_sample
    return x


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("pc", "annealed-langevin")])
@pytest.mark.parametrize("final", ["denoise", "mean", "none"])
def test_every_solver_can_be_called_back(name: str, final: str) -> None:
    """A pipeline's loop gives what `sample` gives, with as many network calls, for every structure of solver."""
    x_T = noise(1, (3, 4))
    score, sde = from_diffusers(network, DDPM)
    solver = sampler(name, sde)
    n = 20
    res = sg.sample(score, sde, x_T=x_T, solver=solver, grid="log-snr", nfe=n, seed=5, final=final)
    scheduler = SolverScheduler(DDPM, solver, grid="log-snr", final=final, seed=5)
    for _ in range(2):  # set_timesteps starts anew
        x = called_back(scheduler, n, x_T)
        assert len(scheduler.timesteps) == res.nfe <= n
        torch.testing.assert_close(x, res.x, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
def test_defaults_of_the_scheduler() -> None:
    """Without a solver, grid and seed: those of `sample`, seeds from the pipeline's generator."""
    x_T = noise(1, (3, 4))
    score, sde = from_diffusers(network, DDPM)
    for n in (9, 12):  # on both sides of where the default changes its solver
        scheduler = SolverScheduler(DDPM)
        scheduler.set_timesteps(n)
        res = sg.sample(score, sde, x_T=x_T, nfe=n)
        assert res.times[0] == sde.T
        assert scheduler.init_noise_sigma == float(sde.prior_transform(torch.ones(()), res.times[0]))
        x = x_T / sde.prior_std * scheduler.init_noise_sigma
        torch.testing.assert_close(called_back(scheduler, n, x), res.x, rtol=1e-6, atol=1e-6)
    setting = sg.Setting(sg.DPMSolverPP(2, eta=1.0), sg.grids.LogSNR())
    a = called_back(SolverScheduler(DDPM, setting), 9, x_T, generator=torch.Generator().manual_seed(2))
    res = sg.sample(score, sde, x_T=x_T, nfe=9, solver=setting, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(a, res.x, rtol=1e-6, atol=1e-6)
    grid = [1.0, 0.5, 0.1, 0.01]
    b = called_back(SolverScheduler(DDPM, "ddim", grid=grid), None, x_T)
    res = sg.sample(score, sde, x_T=x_T, grid=grid, solver="ddim")
    torch.testing.assert_close(b, res.x, rtol=1e-6, atol=1e-6)
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    score, sde = from_diffusers(network, flow)
    c = called_back(SolverScheduler(flow, "heun"), 9, x_T)
    torch.testing.assert_close(c, sg.sample(score, sde, x_T=x_T, nfe=9, solver="heun").x, rtol=1e-6, atol=1e-6)


def test_the_pipelines_changes_count() -> None:
    """A state that the pipeline replaces or writes to between calls is the one the run continues with."""
    x_T = noise(1, (3, 4))
    score, sde = from_diffusers(network, DDPM)
    grid = [1.0, 0.7, 0.4, 0.1]
    expected = x_T
    for t, s in itertools.pairwise(grid):
        expected = 0.9 * sg.sample(score, sde, x_T=expected, grid=[t, s], solver="ddim", final="none").x
    scheduler = SolverScheduler(DDPM, "ddim", grid=grid, final="none")
    for change in (lambda x: 0.9 * x, lambda x: x.mul_(0.9)):
        x = x_T
        scheduler.set_timesteps(3)
        for t in scheduler.timesteps:
            x = change(scheduler.step(network(x, t[None]), t, x, return_dict=False)[0])
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)


def test_states_in_half_precision_stay_in_single() -> None:
    """What a pipeline sees in bfloat16 is kept in float32 between calls."""
    x_T = noise(1, (3, 4)).to(torch.bfloat16)
    seen: list[Tensor] = []
    scheduler = SolverScheduler(DDPM, "ddim", final="none")
    scheduler.set_timesteps(40)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
        seen.append(x)
    assert {v.dtype for v in seen} == {torch.bfloat16}
    _, sde = from_diffusers(network, DDPM)
    exact = float(sde.alpha(sde.eps) / sde.alpha(sde.T)) * x_T.float()  # no noise in it, says the network
    torch.testing.assert_close(x, exact.to(torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ddim", "dpm++3m", "heun", "ancestral", "unipc3"])
def test_pipelines(diffusers: Any, unet: Any, name: str) -> None:
    """DDPMPipeline and DDIMPipeline with our scheduler: `sample` from the same noise with the same seed."""
    net = diffusers.UNet2DModel.from_config({**unet.config, "num_class_embeds": None}).double().eval()
    config = diffusers.DDPMScheduler(prediction_type="sample").config
    x_T = torch.randn(SHAPE, dtype=F64, generator=torch.Generator().manual_seed(3))
    score, sde = from_diffusers(net, dict(config))
    res = sg.sample(score, sde, x_T=x_T, solver=name, nfe=8, seed=7)
    expected = (res.x / 2 + 0.5).clamp(0, 1)
    assert float(((expected > 0) & (expected < 1)).double().mean()) > 0.2  # there is something to compare
    ddpm = diffusers.DDPMPipeline(net, SolverScheduler(config, name, seed=7))
    ddim = diffusers.DDIMPipeline(net, diffusers.DDIMScheduler.from_config(config))
    ddim.scheduler = SolverScheduler(config, name, seed=7)  # its __init__ makes a DDIMScheduler of any scheduler
    for pipeline in (ddpm, ddim):
        pipeline.set_progress_bar_config(disable=True)
        image = pipeline(
            batch_size=2, num_inference_steps=8, generator=torch.Generator().manual_seed(3), output_type="pt"
        ).images
        torch.testing.assert_close(image, expected, rtol=1e-7, atol=1e-7)
        assert len(pipeline.scheduler.timesteps) == res.nfe


def test_misuse_of_the_scheduler() -> None:
    """Errors that say what is wrong."""
    x = torch.ones(2, 3)
    scheduler = SolverScheduler(DDPM, "ddim")
    scheduler.set_timesteps(2)
    first, second = scheduler.timesteps
    assert float(first) == 999
    with pytest.raises(ValueError, match=r"at timestep 999\.0, got 0\.0"):
        scheduler.step(x, second, x)
    with pytest.raises(ValueError, match=r"option of the solver, such as DDIM\(eta=1\.0\)"):
        scheduler.step(x, first, x, eta=0.5)
    x = scheduler.step(x, 999, x).prev_sample
    scheduler.step(x, second, x)
    with pytest.raises(ValueError, match="2 network calls are made"):
        scheduler.step(x, second, x)
    with pytest.raises(ValueError, match="calls the network between timesteps"):
        SolverScheduler(DDPM, "pc")
    with pytest.raises(ValueError, match=r"there is no run .*: call set_timesteps\(\) first"):
        SolverScheduler(DDPM, "ddim").step(x, first, x)
    assert str(inspect.signature(SolverScheduler)).startswith("(scheduler: 'Any', solver:")
    with pytest.raises(ValueError, match="takes 3 network calls, got num_inference_steps=5"):
        SolverScheduler(DDPM, "ddim", grid=[1.0, 0.5, 0.1]).set_timesteps(5)
    with pytest.raises(ValueError, match="final must be one of"):
        SolverScheduler(DDPM, final="x")
    with pytest.raises(ValueError, match="unknown solver"):
        SolverScheduler(DDPM, "ddimm")
    with pytest.raises(ValueError, match="too small"):
        SolverScheduler(DDPM, "heun").set_timesteps(2)
    with pytest.raises(AttributeError):
        _ = scheduler.config.nothing
    assert scheduler.config.num_train_timesteps == len(scheduler) == 1000
    assert scheduler.init_noise_sigma == pytest.approx(1, abs=1e-4)
    assert scheduler.scale_model_input(x, first) is x


# ------------------------------------------------------------------------------------------------ grids of pipelines


@pytest.mark.parametrize("sde", [sg.RectifiedFlowSDE(), sg.RectifiedFlowSDE(T=1.0, eps=0.0), sg.VPSDE(), sg.EDMSDE()])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted(sde: Any, shift: float) -> None:
    """Noise levels of the base times the shift; the ends stay."""
    grid = sg.grids.Shifted(shift)(sde, 8)
    assert (grid.times[0], grid.times[-1]) == (sde.T, sde.eps)
    levels = (-sde.log_snr(torch.tensor(grid.times[1:-1], dtype=F64)) / 2).exp() / shift
    base = sde.time(-2 * levels.log())
    steps = base.diff()
    torch.testing.assert_close(steps, steps[:1].expand(6), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sg.grids.Shifted(0.0), "shift must be positive and finite, got 0"),
        (lambda: sg.grids.Shifted(2.0, "uniform"), "base must be a grid rule"),
        (lambda: sg.grids.FromLevels([1.0, 2.0]), r"got levels\[0\] = 1.0 followed by 2.0"),
        (lambda: sg.grids.FromLevels([1.0]), "two noise levels or more, got 1"),
        (lambda: sg.grids.FromLevels("ays"), "levels must be a sequence of numbers"),
        (lambda: SolverScheduler(DDPM).set_timesteps(timesteps=[1], sigmas=[1]), "not both"),
        (lambda: SolverScheduler(DDPM).set_timesteps(5, mu=1.0), "mu=1.0 is a shift of flow matching's times"),
        (lambda: SolverScheduler(DDPM).set_begin_index(1), "there is no run to begin"),
        (lambda: from_diffusers(network, DDPM, time_scale=1.0), "time_scale=1.0 goes with flow matching"),
    ],
    ids=case_id,
)
def test_misuse_of_shifts_and_tables(make: Callable[..., Any], match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        make()


def test_a_table_of_levels() -> None:
    """Its entries at its own number of steps, log-linear between, and between the ends that are given."""
    levels = [14.0, 6.0, 2.0, 0.5, 0.1]
    rule = sg.grids.FromLevels([*levels, 0.0])
    sde = sg.EDMSDE(0.01, 20.0)
    torch.testing.assert_close(torch.tensor(rule(sde, 4).times), torch.tensor(levels))
    halves = torch.tensor(rule(sde, 8).times, dtype=F64)
    exact = torch.tensor(levels, dtype=F64)
    torch.testing.assert_close(halves[1::2], (exact[1:] * exact[:-1]).sqrt())
    inner = rule(sde, 3, t_start=6.0, t_end=0.5)
    assert inner.times[0] == 6.0
    assert inner.times[1] > 2.0 > inner.times[2] > inner.times[3] == 0.5
    vp = sg.VPSDE()
    at = torch.tensor(rule(vp, 4).times, dtype=F64)
    torch.testing.assert_close((-vp.log_snr(at) / 2).exp(), exact, rtol=1e-6, atol=1e-9)


def test_begin_later() -> None:
    """A run from a later timestep is the run of the rest of its grid from data noised to there."""
    score, sde = from_diffusers(network, DDPM)
    scheduler = SolverScheduler(DDPM, "dpm++2m", grid="log-snr", seed=1)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(3)
    assert scheduler.begin_index == 3
    clean, z = noise(1, (3, 4)), noise(2, (3, 4))
    x = x_t = scheduler.add_noise(clean, z, scheduler.timesteps[3:4].expand(3))
    for t in scheduler.timesteps[3:]:
        x = scheduler.step(network(x, t[None]), t, x).prev_sample
    times = sg.grids.LogSNR()(sde, 7).times[3:]
    expected = sg.sample(score, sde, x_T=x_t, solver="dpm++2m", grid=times).x
    torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)
    alpha, sigma = (float(f(times[0])) for f in (sde.alpha, sde.sigma))
    torch.testing.assert_close(x_t, alpha * clean + sigma * z, rtol=1e-12, atol=1e-12)
    heun = SolverScheduler(DDPM, "heun")
    heun.set_timesteps(9)
    with pytest.raises(ValueError, match="whose steps begin at 0, 2, 4, 6, 8: take another strength"):
        heun.set_begin_index(3)


def test_scheduler_without_diffusers_is_plain() -> None:
    """Pickled and copied as it is, made of a configuration; unit noise where asked."""
    import pickle

    scheduler = SolverScheduler(DDPM, "dpm++2m", unit_noise=True)
    assert scheduler.init_noise_sigma == 1.0
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)), type(scheduler).from_config(DDPM)):
        other.set_timesteps(5)
        assert len(other.timesteps) == 5
