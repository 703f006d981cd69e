"""Our solvers as functions of k-diffusion's form, without k-diffusion, and the loop from outside."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from examples import comfyui
from sgm_sde.adapters.k_diffusion import sampler
from sgm_sde.schemes import ADAPTIVE, REGISTRY
from tests.conventions import case_id
from tests.helpers import ALL, F64, FAMILIES
from tests.helpers import sampler as solver_of

SIGMAS = torch.tensor([14.6, 6.0, 2.0, 0.7, 0.2, 0.05, 0.0], dtype=F64)
X = 14.6 * torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))


def model(x: Tensor, sigma: Tensor) -> Tensor:
    level = sigma[:, None]
    return torch.tanh(x / (1 + level)) / (1 + 0.1 * level)


SDE = sg.EDMSDE(0.05, 1.5 * 14.6)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # sde-dpm2m-published diverges
@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_solver_has_the_form(name: str) -> None:
    """What the function returns is what `sample` returns on the same grid, and the callback sees every level."""
    solver = solver_of(name, SDE)
    seen: list[dict[str, Any]] = []
    x = sampler(solver, seed=3)(model, X, SIGMAS, None, seen.append, True)
    res = sg.sample(sg.from_denoiser(model, SDE), SDE, x_T=X, solver=solver.strict(), grid=SIGMAS[:-1].tolist(), seed=3)
    torch.testing.assert_close(x, res.x, rtol=1e-12, atol=1e-12)
    levels = [float(at["sigma"]) for at in seen]
    assert levels == SIGMAS[:-1].tolist()
    assert [at["i"] for at in seen] == list(range(len(levels)))
    assert seen[-1]["denoised"] is not None
    torch.testing.assert_close(seen[-1]["denoised"], x)


@pytest.mark.parametrize("name", list(ADAPTIVE))
def test_adaptive_solvers_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name!r} finds its own steps"):
        sampler(name)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("dpmpp_2m", "dpm++2m"), ("DPMPP_2M", "dpm++2m"), ("DPM++ 2M", "dpm++2m"), ("sample_dpmpp_2m", "dpm++2m"),
        ("euler_a", "euler-ancestral"), ("Euler_A", "euler-ancestral"), ("k_euler", "euler"), ("dpm_2", "dpm2"),
        ("dpm_2_ancestral", "dpm2-ancestral"), ("dpmpp_2s_ancestral", "dpm++2s-ancestral"), ("lms", "lms4"),
        ("dpmpp_sde", "sde-dpm++2s"), ("dpmpp_sde_gpu", "sde-dpm++2s"), ("dpmpp_2m_sde", "sde-dpm++2m"),
        ("dpmpp_3m_sde_gpu", "sde-dpm++3m"), ("uni_pc", "unipc3"), ("deis", "deis3"), ("ipndm_v", "ipndm-v4"),
        ("er_sde", "er-sde3"), ("seeds_2", "seeds2"), ("sa_solver", "sa-solver"), ("HEUN", "heun"),
        ("sde_dpm2m", "sde-dpm++2m"), ("sde-dpm3m", "sde-dpm++3m"),
    ],
)  # fmt: skip
def test_names_as_others_spell_them(spelled: str, name: str) -> None:
    """Everywhere that a solver is named."""
    from sgm_sde.schemes import resolve

    assert resolve(spelled) == REGISTRY[name]()
    assert sg.Setting(spelled).solver == REGISTRY[name]()


@pytest.mark.parametrize(
    ("wrong", "right"),
    {"dpmpp_2mm": "dpm++2m", "eulr": "euler", "DPM++2S_ancestrl": "dpm++2s-ancestral"}.items(),
    ids=case_id,
)
def test_the_nearest_name_comes_first(wrong: Any, right: Any) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{right.replace('+', '[+]')}'"):
        sg.Setting(wrong)


def test_noise_comes_from_where_it_is_said_to() -> None:
    """From the seed of the call, of `extra_args`, of the function, or from `noise_sampler`; never from torch's own."""
    before = torch.random.get_rng_state()
    a = sampler("euler_a")(model, X, SIGMAS, disable=True, seed=5)
    b = sampler("euler_a", seed=5)(model, X, SIGMAS, disable=True)
    with_seed = lambda x, sigma, seed: model(x, sigma)  # noqa: E731
    c = sampler("euler_a")(with_seed, X, SIGMAS, {"seed": 5}, disable=True)
    d = sampler("euler_a", seed=6)(model, X, SIGMAS, disable=True)
    assert torch.equal(a, b)
    assert torch.equal(a, c)
    assert not torch.equal(a, d)
    assert torch.equal(before, torch.random.get_rng_state())

    asked: list[tuple[float, float]] = []

    def zero(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros_like(X)

    sampler("dpmpp_sde")(model, X, SIGMAS, disable=True, noise_sampler=zero)
    ends = [level for piece in asked for level in piece]
    assert ends == sorted(ends, reverse=True)
    assert asked[0][0] == 14.6
    assert asked[-1][1] == 0.05
    assert all(a == b for (_, a), (b, _) in itertools.pairwise(asked))
    with pytest.raises(ValueError, match="euler draws no noise"):
        sampler("euler")(model, X, SIGMAS, disable=True, noise_sampler=zero)
    with pytest.raises(ValueError, match=r"must return noise of shape \(3, 2\)"):
        sampler("euler_a")(model, X, SIGMAS, disable=True, noise_sampler=lambda a, b: torch.zeros(2))


@pytest.mark.parametrize("name", ["dpm++3m-restart", "edm-sde", "annealed-langevin"])
def test_noise_of_a_sampler_is_drawn_once_a_level(name: str) -> None:
    """Solvers that go back up have none there."""
    with pytest.raises(ValueError, match=r"draws noise at levels that it has reached already"):
        sampler(solver_of(name, SDE))(model, X, SIGMAS, disable=True, noise_sampler=lambda a, b: torch.zeros_like(X))


def test_options_of_the_solver_are_named() -> None:
    with pytest.raises(ValueError, match=r"euler-ancestral|ddim has no option 'rho'; its options: eta"):
        sampler("euler_a")(model, X, SIGMAS, disable=True, rho=7)


@pytest.mark.parametrize(
    "levels, match",
    [
        (torch.tensor([1.0, 2.0, 0.0]), r"sigmas must decrease, got sigmas\[0\] = 1 followed by 2"),
        (torch.tensor([1.0]), "two noise levels or more"),
        (torch.tensor([1.0, -1.0]), "must not be negative"),
    ],
    ids=case_id,
)
def test_levels_are_checked(levels: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sampler("euler")(model, X, levels, disable=True)


def test_one_level_is_one_call() -> None:
    x = sampler("dpmpp_2m")(model, X, torch.tensor([14.6, 0.0], dtype=F64), disable=True)
    torch.testing.assert_close(x, model(X, torch.full((3,), 14.6, dtype=F64)))


# ------------------------------------------------------------------------------------------------------- ComfyUI


class KSAMPLER:
    """A stand-in of ComfyUI's sampler object, which calls its function as ComfyUI does."""

    def __init__(self, sampler_function: Any, extra_options: dict[str, Any] | None = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model: Any, sigmas: Tensor, noise: Tensor, seed: int, callback: Any) -> Tensor:
        steps = len(sigmas) - 1
        return self.sampler_function(
            model,
            noise * sigmas[0],
            sigmas,
            extra_args={"model_options": {}, "seed": seed},
            callback=lambda at: callback(at["i"], at["denoised"], at["x"], steps),
            disable=True,
            **self.extra_options,
        )


class Wrapped:
    """A stand-in of the model that a sampling function of ComfyUI gets."""

    def __init__(self, sampling: Any) -> None:
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=sampling))

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any, seed: int) -> Tensor:
        return model(x, sigma)


class EPS:
    sigma_min, sigma_max = torch.tensor(0.03), torch.tensor(14.6)


class CONST:
    sigma_min, sigma_max = torch.tensor(0.001), torch.tensor(1.0)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    comfy, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    samplers.KSAMPLER = KSAMPLER  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    assert comfyui.NODE_CLASS_MAPPINGS.keys() == comfyui.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return {name: kind() for name, kind in comfyui.NODE_CLASS_MAPPINGS.items()}


def test_the_nodes_of_comfyui(nodes: dict[str, Any]) -> None:
    """A workflow of both nodes: their levels, their sampler, previews, and the seed's noise."""
    solver, grid = nodes["SgmSdeSolver"], nodes["SgmSdeSigmas"]
    names = solver.INPUT_TYPES()["required"]["solver"][0]
    assert "dpm++3m" in names
    assert not set(names) & set(ADAPTIVE)
    assert grid.INPUT_TYPES()["required"].keys() == {"model", "rule", "steps"}

    patcher = SimpleNamespace(get_model_object=lambda name: EPS())
    previews: list[int] = []
    for rule in comfyui.RULES:
        previews.clear()
        (sigmas,) = getattr(grid, grid.FUNCTION)(patcher, rule, 8)
        assert (len(sigmas), float(sigmas[-1])) == (9, 0.0)
        assert float(sigmas[0]) == pytest.approx(14.6)
        assert float(sigmas[-2]) == pytest.approx(0.03)

        (sampling,) = getattr(solver, solver.FUNCTION)("euler-ancestral")
        a, b, other = (
            sampling.sample(Wrapped(EPS()), sigmas, X.float() / 14.6, seed, lambda i, *_: previews.append(i))
            for seed in (1, 1, 2)
        )
        assert torch.equal(a, b)
        assert not torch.equal(a, other)
        assert previews == 3 * list(range(8))
        direct = sampler("euler_a", seed=1)(model, X.float() / 14.6 * sigmas[0], sigmas, disable=True)
        assert torch.equal(a, direct)


FLOW_SIGMAS = torch.tensor([1.0, 0.7, 0.3, 0.0])


@pytest.mark.parametrize("name", ["euler", "dpm++2m"])
def test_deterministic_solvers_on_flow_matching_in_comfyui(nodes: dict[str, Any], name: str) -> None:
    """They run: their equation is that of flow matching too."""
    (sampling,) = nodes["SgmSdeSolver"].make(name)
    assert sampling.sample(Wrapped(CONST()), FLOW_SIGMAS, X.float(), 0, lambda *_: None).isfinite().all()


@pytest.mark.parametrize("name", [name for name, solver in REGISTRY.items() if solver().stochastic])
def test_stochastic_solvers_refuse_flow_matching_in_comfyui(nodes: dict[str, Any], name: str) -> None:
    """Their noise is that of another process."""
    (sampling,) = nodes["SgmSdeSolver"].make(name)
    with pytest.raises(ValueError, match="this is a model of flow matching"):
        sampling.sample(Wrapped(CONST()), FLOW_SIGMAS, X.float(), 0, lambda *_: None)


# ------------------------------------------------------------------------------------------ the loop from outside


def driven(s: sg.stepping.Stepper, x: Tensor, copied: Any = None) -> Tensor:
    x = s.start(x) if not s.starts_at_x else x
    for i, t in enumerate(s.times):
        if copied is not None and i == len(s.times) // 2:
            s = copied(s)
            x = x.clone()
        x = s.step(model(x, torch.full((len(x),), t, dtype=x.dtype)), t, x)
    return x


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "pc"])
@pytest.mark.parametrize("final", ["denoise", "mean", "none"])
def test_the_loop_from_outside(name: str, final: str) -> None:
    """It gives the samples of `sample`; a copy of a run, in memory or pickled, goes on as the run would."""
    solver = ALL[name] if name != "annealed-langevin" else solver_of(name, SDE)
    res = sg.sample(
        sg.from_denoiser(model, SDE), SDE, x_T=X, solver=solver, grid="karras", steps=6, seed=4, final=final
    )
    s = sg.stepping.stepper(solver, SDE, "karras", steps=6, prediction="data", final=final, seed=4)
    x = driven(s, X)
    torch.testing.assert_close(x, res.x, rtol=1e-12, atol=1e-12)
    assert len(s.times) == res.nfe
    s.reset()
    again = driven(s, X, copy.deepcopy)
    assert torch.equal(x, again)
    s.reset()
    thrice = driven(s, X, lambda run: pickle.loads(pickle.dumps(run)))
    assert torch.equal(x, thrice)


def test_a_copy_is_a_run_of_its_own() -> None:
    """Two halves of a run go on from one point, and neither moves the other."""
    s = sg.stepping.stepper("sde-dpm++2m", SDE, nfe=6, prediction="data", seed=0)
    x = X
    for t in s.times[:3]:
        x = s.step(model(x, torch.full((3,), t, dtype=F64)), t, x)
    other = copy.deepcopy(s)
    ends = []
    for run in (s, other):
        y = x
        for t in run.times[3:]:
            y = run.step(model(y, torch.full((3,), t, dtype=F64)), t, y)
        ends.append(y)
    assert torch.equal(*ends)


@pytest.mark.parametrize("change", [lambda x: 0.9 * x, lambda x: x.mul_(0.9)], ids=case_id)
@pytest.mark.parametrize("duplicate", [lambda run: run, copy.deepcopy], ids=case_id)
def test_what_the_caller_changes_counts(change: Callable[..., Any], duplicate: Callable[..., Any]) -> None:
    grid = [8.0, 4.0, 2.0, 1.0]
    expected = X
    score = sg.from_denoiser(model, SDE)
    for start, end in itertools.pairwise(grid):
        expected = 0.9 * sg.sample(score, SDE, x_T=expected, grid=[start, end], solver="ddim", final="none").x

    s = sg.stepping.stepper("ddim", SDE, grid, prediction="data", final="none")
    x = X
    for t in s.times:
        s = duplicate(s)
        x = change(s.step(model(x, torch.full((3,), t, dtype=F64)), t, x))
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)


def test_misuse_of_the_loop() -> None:
    s = sg.stepping.stepper("ddim", SDE, [8.0, 4.0, 2.0], prediction="data")
    with pytest.raises(ValueError, match=r"call 0 of the run is at t=8\.0, got t=4\.0"):
        s.step(X, 4.0, X)
    with pytest.raises(ValueError, match=r"must be a tensor of shape \(3, 2\), got a tensor of shape \(3,\)"):
        s.step(X[:, 0], 8.0, X)
    for t in s.times:
        x = s.step(X, t, X)
    with pytest.raises(ValueError, match="the run's 3 network calls are made"):
        s.step(x, 2.0, x)
    with pytest.raises(ValueError, match="the run has started"):
        s.start(x)
    with pytest.raises(TypeError, match="dopri5 finds its own steps"):
        sg.stepping.stepper("dopri5", SDE)
    with pytest.raises(ValueError, match="calls the network between timesteps"):
        sg.stepping.stepper("pc", SDE)
    with pytest.raises(ValueError, match=r"begin with x = start\(x\)"):
        sg.stepping.stepper("edm-sde", SDE, "karras", steps=4, prediction="data").step(X, SDE.T, X)


def test_gradients_do_not_follow_the_loop() -> None:
    """A network with parameters needs no `no_grad` around the loop; half precision is kept in float32 between calls."""
    w = torch.ones((), requires_grad=True)
    s = sg.stepping.stepper("dpm++2m", SDE, nfe=5, prediction="data")
    x = X.to(torch.bfloat16)
    for t in s.times:
        x = s.step(w * model(x, torch.full((3,), t)).to(torch.bfloat16), t, x)
    assert x.dtype is torch.bfloat16
    assert not x.requires_grad


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")  # Heun with five steps
def test_blocks_of_a_matrix_process() -> None:
    """The loop from outside on critically damped Langevin dynamics."""
    sde = sg.CLD()
    score = sg.oracles.Gaussian(torch.zeros(2, dtype=F64), 1.0).score(sde)
    x_T = torch.randn(3, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    res = sg.sample(score, sde, x_T=x_T, solver="heun2", steps=5)
    s = sg.stepping.stepper("heun2", sde, steps=5, prediction=score.prediction)
    x = x_T
    for t in s.times:
        x = s.step(score.output(x, torch.full((3,), t, dtype=F64)), t, x)
    torch.testing.assert_close(x, res.x)
