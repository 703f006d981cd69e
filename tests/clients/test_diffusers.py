"""Pipelines of diffusers with our solvers in them, and networks of diffusers in ours."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.adapters import SolverScheduler, from_diffusers
from tests.clients.pipelines import (
    BETAS,
    CASES,
    FAMILIES,
    FLOWS,
    few_steps,
    flux,
    latents,
    loud,
    noise,
    our_noise,
    theirs_of,
    unet,
)
from tests.conventions import case_id

pytestmark = pytest.mark.filterwarnings("ignore")
diffusers.logging.set_verbosity_error()


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units of the largest number."""
    assert a.shape == b.shape
    assert bool(a.isfinite().all())
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_pipeline_ends_where_it_does_with_its_own_scheduler(family: str, kind: str) -> None:
    """Our DDIM on the scheduler's own grid, from the same seed: 20 steps, or 12 of them from an image."""
    theirs = theirs_of(family)
    expected = latents(family, kind, theirs)
    ours = SolverScheduler(theirs, "ddim", grid="scheduler", unit_noise=True)
    assert isinstance(ours, diffusers.SchedulerMixin)
    assert apart(latents(family, kind, ours), expected) < 1e-5


@pytest.mark.parametrize(
    ("family", "kind"), [c for c in CASES if c[0] in ("Stable Diffusion", "Flux", "PixArt", "DiT")]
)
@pytest.mark.parametrize("solver", ["dpm++2m", "unipc3", "euler-ancestral", None])
def test_other_solvers_run(family: str, kind: str, solver: str | None) -> None:
    """On their own grids, with noise and without, in every task; the same seed gives the same image."""
    a, b = (latents(family, kind, SolverScheduler(theirs_of(family), solver, seed=3), 12) for _ in range(2))
    assert bool(a.isfinite().all())
    assert torch.equal(a, b)


def test_solvers_of_several_calls_begin_where_their_steps_do() -> None:
    """Half of the steps of Heun's method, or an error that says where they begin."""
    heun = SolverScheduler(theirs_of("Stable Diffusion"), "heun")
    heun.set_timesteps(20)
    calls = len(heun.timesteps)  # 19: nine steps and the denoising call
    assert calls == 19
    assert bool(latents("Stable Diffusion", "Img2Img", heun, 20, 0.5).isfinite().all()) is True
    with pytest.raises(ValueError, match=r"lies within a step of heun, whose steps begin at 0, 2, 4, 6, 8, 10, \.\.\."):
        latents("Stable Diffusion", "Img2Img", heun, 20, 0.55)


class AtItsTimesteps(diffusers.DPMSolverMultistepScheduler):
    """Theirs with flow matching, along the noise levels of the timesteps at which it calls the network.

    As it is, it truncates its timesteps to integers and steps along the noise levels from before, up to 1e-3 away.
    """

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.sigmas[:-1] = self.timesteps / self.config.num_train_timesteps


@pytest.mark.parametrize("family", ["Stable Diffusion", "Stable Diffusion 3"])
def test_multistep_on_the_same_grid(family: str) -> None:
    """Our DPM-Solver++(2M) is DPMSolverMultistepScheduler, whose timesteps ours takes."""
    if family in FLOWS:
        options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
        theirs, expected = diffusers.DPMSolverMultistepScheduler(**options), AtItsTimesteps(**options)
    else:
        theirs = expected = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing")
    ours = SolverScheduler(theirs, sg.DPMSolverPP(2).strict(), grid="scheduler", unit_noise=True)
    assert apart(latents(family, "", ours), latents(family, "", expected)) < 1e-5


def test_same_seed_same_image() -> None:
    """With `unit_noise`, from the same noise as diffusers'; without, from the process' own, a little less."""
    theirs = theirs_of("Stable Diffusion")
    expected = latents("Stable Diffusion", "", theirs)
    own = apart(latents("Stable Diffusion", "", SolverScheduler(theirs, "ddim", grid="scheduler")), expected)
    assert 1e-4 < own < 1e-2


# ---------------------------------------------------------------------------------------------- shift, given timesteps


@pytest.mark.parametrize("family", FLOWS)
@pytest.mark.parametrize("shift", [1.0, 3.0, "dynamic", "linear"])
def test_shift(family: str, shift: Any) -> None:
    """Constant, and by the resolution: the pipelines pass mu, and Flux its sigmas as well."""
    if isinstance(shift, str):
        kind = {"dynamic": "exponential", "linear": "linear"}[shift]
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    else:
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = SolverScheduler(theirs, "ddim", grid="scheduler")
    assert apart(latents(family, "", ours), latents(family, "", theirs)) < 1e-5
    named = SolverScheduler(theirs, "dpm++2m")
    named.set_timesteps(10, mu=0.9)
    if family != "Flux" and shift == 3.0:
        expected = sg.grids.Shifted(3.0)(sg.RectifiedFlowSDE(), 9).times
        torch.testing.assert_close(named.timesteps, torch.tensor(expected) * 1000)
    if shift == "dynamic":
        expected = sg.grids.Shifted.of_resolution(0.9)(sg.RectifiedFlowSDE(), 9).times
        torch.testing.assert_close(named.timesteps, torch.tensor(expected) * 1000)


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
def test_shifted_is_the_once_shifted_table(shift: float) -> None:
    """Their table, whose own timesteps are evenly spaced before the shift."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    sde = sg.RectifiedFlowSDE(T=1.0, eps=float(theirs.sigmas[-1]))
    ours = sg.grids.Shifted(shift)(sde, 999).times
    torch.testing.assert_close(torch.tensor(ours), theirs.sigmas, rtol=1e-5, atol=1e-6)


def test_given_timesteps_and_sigmas() -> None:
    """Align Your Steps, as timesteps and as noise levels, through a pipeline and through a grid."""
    from diffusers.schedulers import AysSchedules

    two_m = diffusers.DPMSolverMultistepScheduler(**BETAS)
    euler = diffusers.EulerDiscreteScheduler(**BETAS)
    solver = sg.DPMSolverPP(2).strict()
    for theirs, method, options in (
        (two_m, solver, {"timesteps": AysSchedules["StableDiffusionTimesteps"]}),
        (euler, "ddim", {"sigmas": AysSchedules["StableDiffusionSigmas"]}),
    ):
        ours = SolverScheduler(theirs, method, unit_noise=True)
        a = latents("Stable Diffusion", "", ours, **options)
        assert len(ours.timesteps) == 10
        b = latents("Stable Diffusion", "", theirs, **options)
        assert apart(a, b) < (1e-5 if "timesteps" in options else 5e-3)  # theirs starts from one more unit of variance
    levels = sg.grids.FromLevels(AysSchedules["StableDiffusionSigmas"])
    by_rule = SolverScheduler(euler, solver, grid=levels)
    by_rule.set_timesteps(10)
    ours.set_timesteps(sigmas=AysSchedules["StableDiffusionSigmas"])
    torch.testing.assert_close(by_rule.timesteps, ours.timesteps, rtol=1e-4, atol=1e-2)


# --------------------------------------------------------------------------------------- saved, copied, swapped


def test_a_saved_pipeline_loads(tmp_path: Path) -> None:
    """With solver, grid and options; other schedulers are made of its configuration, and it of theirs."""
    net = loud(diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ))  # fmt: skip
    theirs = diffusers.DDPMScheduler(beta_schedule="linear", prediction_type="sample")
    scheduler = SolverScheduler(theirs, sg.DPMSolverPP(3), grid=sg.grids.Karras(rho=5.0), seed=4, unit_noise=True)
    pipe = diffusers.DDPMPipeline(net, scheduler)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is type(scheduler)
    assert again.scheduler.solver == scheduler.solver
    assert again.scheduler.grid == scheduler.grid
    assert (again.scheduler.seed, again.scheduler.unit_noise, again.scheduler.final) == (4, True, "denoise")
    images = []
    for p in (pipe, again):
        p.set_progress_bar_config(disable=True)
        images.append(p(2, torch.Generator().manual_seed(0), num_inference_steps=10, output_type="np").images)
    assert (images[0] == images[1]).all()
    assert images[0].std() > 0.01

    loaded = SolverScheduler.from_pretrained(tmp_path, subfolder="scheduler", solver="heun")
    assert (loaded.solver.name, loaded.grid) == ("heun", scheduler.grid)
    assert diffusers.UniPCMultistepScheduler in scheduler.compatibles
    flow = SolverScheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "ddim")
    assert flow.compatibles[0].__name__.startswith("FlowMatch")
    assert SolverScheduler.from_config(flow.config)._convention.is_flow
    assert diffusers.FlowMatchEulerDiscreteScheduler.from_config(flow.config).config.shift == 3.0
    diffusers.DDPMPipeline.from_pretrained(tmp_path, scheduler=scheduler)


@pytest.mark.parametrize("kind", [diffusers.DPMSolverMultistepScheduler, diffusers.DDIMScheduler])
def test_schedulers_are_made_of_one_another_s_configuration(kind: Any) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule="linear", prediction_type="sample")
    scheduler = SolverScheduler(theirs, sg.DPMSolverPP(3), grid=sg.grids.Karras(rho=5.0), seed=4, unit_noise=True)
    other = kind.from_config(scheduler.config)
    assert (other.config.prediction_type, other.config.beta_schedule) == ("sample", "linear")
    back = SolverScheduler.from_config(other.config, solver="unipc3")
    assert back.solver.name == "unipc3"
    back.set_timesteps(5)


def test_copies_go_on_in_mid_run() -> None:
    """A pipeline whose scheduler is replaced by a copy, in memory or pickled, at each of its steps."""
    expected = latents(
        "Stable Diffusion", "", SolverScheduler(theirs_of("Stable Diffusion"), "sde-dpm++2m", seed=1), 12
    )

    def pickled(scheduler: Any) -> Any:
        return pickle.loads(pickle.dumps(scheduler))

    for duplicate in (copy.deepcopy, pickled):

        def swap(pipe: Any, i: int, t: Any, kept: dict[str, Any], duplicate: Any = duplicate) -> dict[str, Any]:
            pipe.scheduler = duplicate(pipe.scheduler)
            return {"latents": kept["latents"].clone()}

        scheduler = SolverScheduler(theirs_of("Stable Diffusion"), "sde-dpm++2m", seed=1)
        a = latents("Stable Diffusion", "", scheduler, 12, callback_on_step_end=swap)
        assert torch.equal(a, expected)
    score, _ = from_diffusers(unet(), theirs_of("Stable Diffusion"))
    x = noise((2, 4, 8, 8), 0)
    both = (score, pickled(score))
    condition = {"encoder_hidden_states": noise((2, 5, 8), 1)}
    assert torch.equal(*(s.denoised(x, 0.5, **condition) for s in both))


def test_interrupted_and_run_again() -> None:
    """A pipeline stopped half-way starts anew."""
    scheduler = SolverScheduler(theirs_of("Stable Diffusion"), "dpm++3m")
    expected = latents("Stable Diffusion", "", scheduler, 12)

    def stop(pipe: Any, i: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = i >= 4
        return {}

    latents("Stable Diffusion", "", scheduler, 12, callback_on_step_end=stop)
    assert torch.equal(latents("Stable Diffusion", "", scheduler, 12), expected)


def test_noise_is_scaled_as_theirs_is() -> None:
    x, z = noise((3, 4, 8, 8), 0), noise((3, 4, 8, 8), 1)
    theirs = theirs_of("Stable Diffusion")
    ours = SolverScheduler(theirs)
    flow = theirs_of("Flux")
    flow.set_timesteps(10)
    ours = SolverScheduler(flow)
    at = flow.timesteps[4:5]
    torch.testing.assert_close(ours.scale_noise(x, at, z), flow.scale_noise(x, at, z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", [torch.tensor([999, 500, 0]), torch.tensor([250])], ids=case_id)
def test_noise_is_added_as_theirs_does(at: Tensor) -> None:
    x, z = noise((3, 4, 8, 8), 0), noise((3, 4, 8, 8), 1)
    theirs = theirs_of("Stable Diffusion")
    ours = SolverScheduler(theirs)

    torch.testing.assert_close(ours.add_noise(x, z, at), theirs.add_noise(x, z, at), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------- networks of theirs in ours


@pytest.mark.parametrize("family", ["Stable Diffusion 3", "Flux", "PixArt", "DiT", "Stable Diffusion"])
def test_networks_called_by_us(family: str) -> None:
    """`from_diffusers` and `sample` from a pipeline's noise give what it does without guidance."""
    make, _ = FAMILIES[family]
    theirs = theirs_of(family)
    pipe, arguments = make("", theirs)
    x_T = noise((2, 16, 16) if family == "Flux" else (2, 16 if family in FLOWS else 4, 8, 8), 9)
    net = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    T = 1.0 if family in FLOWS else None
    score, sde = from_diffusers(net, theirs, T=T)
    kwargs: dict[str, Any] = {}
    if family == "DiT":
        kwargs = {"class_labels": torch.tensor([3, 5])}
    else:
        kwargs = {"encoder_hidden_states": arguments["prompt_embeds"]}
    if family in FLOWS:
        kwargs["pooled_projections"] = arguments["pooled_prompt_embeds"]
    if family == "Flux":
        ids = flux.__globals__["diffusers"].FluxPipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
        kwargs |= {"img_ids": ids, "txt_ids": torch.zeros(5, 3)}
    if family == "PixArt":
        kwargs["encoder_attention_mask"] = arguments["prompt_attention_mask"]
        kwargs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    theirs.set_timesteps(10)
    grid = [float(t) / 1000 if family in FLOWS else (float(t) + 1) / 1000 for t in theirs.timesteps]
    res = sg.sample(score, sde, x_T=x_T, solver="ddim", grid=grid, model_kwargs=kwargs)

    x = x_T
    with torch.no_grad():
        for t in theirs.timesteps:
            label = t.expand(2) / (1000 if family == "Flux" else 1)
            out = net(x, timestep=label, return_dict=False, **kwargs)[0][:, : x.shape[1]]
            x = theirs.step(out, t, x, return_dict=False)[0]
    assert apart(res.x, x) < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_networks_in_edms_preconditioning(prediction: str) -> None:
    """EDMEulerScheduler's loop is our Euler method in the noise level."""
    theirs = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_min=0.01, sigma_max=20.0)
    net = lambda x, label: torch.tanh(x + label.reshape(-1, 1, 1, 1))  # noqa: E731
    score, sde = from_diffusers(net, theirs)
    theirs.set_timesteps(12)
    x_T = float(theirs.init_noise_sigma) * noise((2, 3, 4, 4), 0)
    grid = theirs.sigmas.double().tolist()
    res = sg.sample(score, sde, x_T=x_T, solver="euler", grid=grid)
    x = x_T
    for t in theirs.timesteps:
        out = net(theirs.scale_model_input(x, t), t.expand(2))
        x = theirs.step(out, t, x, return_dict=False)[0]
    assert apart(res.x, x) < 1e-5
    with pytest.raises(ValueError, match="its coordinates are EDM's own"):
        SolverScheduler(theirs)


def test_sigmoid_table() -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule="sigmoid")
    _, sde = from_diffusers(lambda x, t: x, theirs)
    torch.testing.assert_close(torch.tensor(sde.betas, dtype=torch.float32), theirs.betas, rtol=2e-5, atol=0)


# ------------------------------------------------------------------------------------ latent and trajectory consistency


SCHEDULERS = {"lcm": diffusers.LCMScheduler, "tcd": diffusers.TCDScheduler}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("original", [4, 30, 50, 77])
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_timesteps_of_few_steps(name: str, original: int, strength: float) -> None:
    """Theirs, by the configuration, by the argument and from part of the way."""
    for n in (1, 2, 3, 4):
        by_config = SCHEDULERS[name](**BETAS, original_inference_steps=original)
        ours = [SolverScheduler(by_config), SolverScheduler(by_config, name)]
        for scheduler in (by_config, *ours):
            if int(original * strength) >= n:
                scheduler.set_timesteps(n, strength=strength)
                assert scheduler.timesteps.tolist() == by_config.timesteps.tolist()
    other = SolverScheduler(SCHEDULERS[name](**BETAS), name)
    other.set_timesteps(4, original_inference_steps=original)
    by_config.set_timesteps(4)
    assert other.timesteps.tolist() == by_config.timesteps.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_few_steps_on_their_own_timesteps(name: str, steps: int, prediction: str) -> None:
    """Their loop with our noise, as a scheduler and by `sample`; TCD ends at the table's first entry."""
    theirs = SCHEDULERS[name](**BETAS, prediction_type=prediction)
    net = lambda x, t: torch.tanh(x + t.reshape(-1, 1, 1, 1) / 1000)  # noqa: E731
    final = "denoise" if name == "lcm" else "none"
    x_T = noise((3, 2, 4, 4), 0)
    theirs.set_timesteps(steps)
    expected = x_T
    with our_noise(7, 3, 1.0):
        for t in theirs.timesteps:
            expected = theirs.step(net(expected, t.expand(3)), int(t), expected, return_dict=False)[0]

    ours = SolverScheduler(theirs, seed=7, final=final)
    ours.set_timesteps(steps)
    x = x_T
    for t in ours.timesteps:
        x, denoised = ours.step(net(x, t.expand(3)), t, x, return_dict=False)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert apart(x, expected) < 1e-5
    assert final == "none" or torch.equal(x, denoised)

    score, sde = from_diffusers(net, theirs)
    grid = sg.grids.Distilled(theirs.config.original_inference_steps)
    for options in ({}, {"grid": grid}):
        res = sg.sample(score, sde, x_T=x_T, nfe=steps, solver=name, seed=7, final=final, **options)
        assert res.nfe == steps
        assert apart(res.x, expected) < 1e-5


@pytest.mark.parametrize("steps", [2, 5, 12])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_shares_of_noise_of_trajectory_consistency(gamma: float, steps: int) -> None:
    """TCD's gamma is the `eta` of their step; s is the same entry of the table."""
    theirs = diffusers.TCDScheduler(**BETAS)
    net = lambda x, t: torch.tanh(x + t.reshape(-1, 1, 1, 1) / 1000)  # noqa: E731
    theirs.set_timesteps(steps)
    x = x_T = noise((3, 2, 4, 4), 0)
    with our_noise(7, 3, 1.0):
        for t in theirs.timesteps:
            x = theirs.step(net(x, t.expand(3)), t, x, eta=gamma, return_dict=False)[0]
    score, sde = from_diffusers(net, theirs)
    res = sg.sample(score, sde, x_T=x_T, nfe=steps, solver=sg.schemes.TCD(gamma), seed=7, final="none")
    assert apart(res.x, x) < 1e-5


@pytest.mark.parametrize("kind", ["", "Img2Img"])
def test_pipelines_of_latent_consistency(kind: str) -> None:
    """Four steps from noise, or from an image, through diffusers' own pipeline, whose result is the last data."""
    theirs = diffusers.LCMScheduler(**BETAS)
    ours = SolverScheduler(theirs, seed=7, unit_noise=True)
    assert apart(few_steps(kind, ours, 7), few_steps(kind, theirs, 7)) < 1e-5


def test_refused_of_few_steps() -> None:
    """Arguments that the solver or the grid has no use for."""
    theirs = diffusers.LCMScheduler(**BETAS)
    with pytest.raises(ValueError, match="original_inference_steps=50 goes with a solver of few steps"):
        SolverScheduler(theirs, "dpm++2m").set_timesteps(4, original_inference_steps=50)
    with pytest.raises(ValueError, match="strength must be"):
        SolverScheduler(theirs).set_timesteps(4, strength=1.5)
    with pytest.raises(ValueError, match=r"strength=0.01 leaves none of 50 timesteps"):
        SolverScheduler(theirs).set_timesteps(1, strength=0.01)
    with pytest.raises(ValueError, match=r"strength=0.5 goes with a table whose timesteps are left"):
        SolverScheduler(theirs).set_timesteps(timesteps=[999, 499], strength=0.5)
    with pytest.raises(ValueError, match=r"strength=0.5 goes with a table whose timesteps are left"):
        SolverScheduler(theirs, grid="scheduler").set_timesteps(4, strength=0.5)
    with pytest.raises(ValueError, match="name the solver, such as 'lcm' or 'tcd'"):
        SolverScheduler.from_config(theirs.config)
    for other in (SolverScheduler(theirs), SolverScheduler.from_config(SolverScheduler(theirs).config)):
        other.set_timesteps(4)
        theirs.set_timesteps(4)
        assert other.timesteps.tolist() == theirs.timesteps.tolist()
    ours = SolverScheduler(theirs, "ddim", final="none")
    ours.set_timesteps(timesteps=[999, 499])
    assert ours.timesteps.tolist() == [999, 499]
