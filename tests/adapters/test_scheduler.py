"""Our solvers as a scheduler of diffusers, and in its pipelines."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.adapters import SolverScheduler, from_diffusers
from tests.adapters.cases import DDPM, SHAPE, network, noise
from tests.conventions import case_id
from tests.helpers import F64, FAMILIES, sampler


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
def test_settings_of_the_scheduler() -> None:
    """Those of `sample`, seeds from the pipeline's generator."""
    x_T = noise(1, (3, 4))
    score, sde = from_diffusers(network, DDPM)
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


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("n", [9, 12])
def test_defaults_of_the_scheduler(n: int, prediction: str) -> None:
    """Without a solver, grid and seed: those of `sample`, on both sides of where the default changes its solver."""
    x_T = noise(1, (3, 4))
    config = {**DDPM, "prediction_type": prediction}
    score, sde = from_diffusers(network, config)

    scheduler = SolverScheduler(config)
    scheduler.set_timesteps(n)
    res = sg.sample(score, sde, x_T=x_T, nfe=n)
    assert res.times[0] == sde.T
    assert scheduler.init_noise_sigma == float(sde.prior_transform(torch.ones(()), res.times[0]))
    x = x_T / sde.prior_std * scheduler.init_noise_sigma
    torch.testing.assert_close(called_back(scheduler, n, x), res.x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("change", [lambda x: 0.9 * x, lambda x: x.mul_(0.9)], ids=case_id)
def test_the_pipelines_changes_count(change: Callable[[Tensor], Tensor]) -> None:
    """A state that the pipeline replaces or writes to between calls is the one the run continues with."""
    x_T = noise(1, (3, 4))
    score, sde = from_diffusers(network, DDPM)
    grid = [1.0, 0.7, 0.4, 0.1]
    expected = x_T
    for t, s in itertools.pairwise(grid):
        expected = 0.9 * sg.sample(score, sde, x_T=expected, grid=[t, s], solver="ddim", final="none").x
    scheduler = SolverScheduler(DDPM, "ddim", grid=grid, final="none")

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
    config = diffusers.DDPMScheduler(prediction_type="sample", clip_sample=False).config
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


@pytest.mark.parametrize("n", [4, 8, 12, 20, 35])
def test_the_default_begins_at_any_timestep(n: int) -> None:
    """As image-to-image pipelines ask for it, and with as many calls as timesteps are left."""
    for index in range(1, n):
        scheduler = SolverScheduler(DDPM, seed=1)
        scheduler.set_timesteps(n)
        scheduler.set_begin_index(index)
        x = scheduler.add_noise(noise(1, (3, 4)), noise(2, (3, 4)), scheduler.timesteps[index : index + 1].expand(3))
        for t in scheduler.timesteps[index:]:
            x = scheduler.step(0.5 * x, t, x).prev_sample
        assert bool(x.isfinite().all())


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


@pytest.mark.parametrize("config", [{"shift": 5.0}, {"flow_shift": 5.0, "beta_schedule": "linear"}])
def test_the_shift_of_flow_matching_by_either_name(config: dict[str, Any]) -> None:
    """Of FlowMatchEulerDiscreteScheduler, and of the solvers' own as Sana and Wan have them: s t / (1 + (s - 1) t)."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, **config}
    scheduler = SolverScheduler(flow, "ddim")
    scheduler.set_timesteps(4)
    sde = sg.RectifiedFlowSDE()
    expected = sg.grids.Shifted(5.0)(sde, 3, sde.T, sde.eps).times
    torch.testing.assert_close(scheduler.timesteps, torch.tensor(expected) * 1000)
    scheduler.set_timesteps(sigmas=[0.9, 0.5])
    assert scheduler.timesteps.tolist() == pytest.approx([4500 / 4.6, 2500 / 3.0])


def test_networks_of_few_steps_on_a_flow() -> None:
    """FlowMatchLCMScheduler's: from data to noise and back, on its shifted times, and not along the flow."""
    config = {"_class_name": "FlowMatchLCMScheduler", "shift": 3.0}
    scheduler = SolverScheduler(config, seed=0)
    named = SolverScheduler(config, "lcm", seed=0)
    runs = []
    for each in (scheduler, named):
        each.set_timesteps(4)
        x = noise(1, (500, 1))
        for t in each.timesteps:
            sign = x.sign()  # the data that a consistent network of two points finds
            x = each.step((x - sign) / (t / 1000), t, x).prev_sample
        runs.append(x)
    assert torch.equal(scheduler.timesteps, named.timesteps) and torch.equal(*runs)
    assert bool((runs[0].abs() - 1 < 1e-6).all())
    assert bool((runs[0].sign() != noise(1, (500, 1)).sign()).any())  # new noise on the way
