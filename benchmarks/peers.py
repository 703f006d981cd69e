"""Samplers of other libraries, driven step for step along a given grid of noise levels.

    for sampler in peers.SAMPLERS:
        if sampler.peer in peers.available():
            x = sampler.run(denoiser, sigmas, x_T)

Peers are optional (`pip install ".[peers]"`, `pip install --no-deps k-diffusion azula einops`); without them the table
is the same and `available()` is empty. Each is called as its documentation says wherever that can be done; what had to
be set by hand is said beside it. All of them run in EDM's coordinates, x = x0 + sigma * noise, from the first noise
level to the last, without a final denoising.

Left out: k-diffusion's `dpm_fast` and `dpm_adaptive`, which place their own steps; churn, which the libraries measure
in numbers of steps to 0; azula's `ItoSampler`, `PCSampler` and `REABSampler` (whose order is 1), which have no
counterpart among ours; diffusers' `sde-dpmsolver` of order 3, which has no code.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.schemes import REGISTRY

Denoiser = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Task:
    """What a sampler is asked to do.

    Attributes:
        denoiser: estimate of the data at a state (B, *) and its noise level, a 0-d tensor.
        sigmas: the noise levels, float64, decreasing, the last one above 0.
        x: the state at the first of them, (B, *).
        noises: what the sampler draws; None for the library's own noise.
        native: whether the denoiser stands for the network itself: it gets the state in the library's coordinates and
            returns what the library expects of a network. Nothing is converted, so that only the library is timed.
    """

    denoiser: Denoiser
    sigmas: Tensor
    x: Tensor
    noises: Iterator[Tensor] | None
    native: bool

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    def draw(self) -> Tensor:
        """The next of the given noises."""
        assert self.noises is not None
        return next(self.noises)


@dataclass(frozen=True)
class PeerSampler:
    """A sampler of another library.

    Attributes:
        peer: the library's name on PyPI.
        method: what it is called there, with the options that matter.
        ours: the name in our registry of the same method; it need not exist.
        variant: what our solver of that name has to be told to be the same method; empty for its defaults.
        stochastic: whether it draws noise.
        nfe_per_step: network calls per step.
        extra_nfe: network calls besides, at the start.
        defect: what is wrong with it, if it is not the method it is named after.
    """

    peer: str
    method: str
    ours: str
    drive: Callable[[Task], Tensor] = field(repr=False)
    variant: str = ""
    stochastic: bool = False
    nfe_per_step: int = 1
    extra_nfe: int = 0
    defect: str = ""

    @property
    def key(self) -> str:
        """Library and method, which no other entry shares."""
        return f"{self.peer} {self.method}"

    @property
    def version(self) -> str | None:
        """The installed version; None without the library."""
        return available().get(self.peer)

    def run(
        self,
        denoiser: Denoiser,
        sigmas: Sequence[float] | Tensor,
        x: Tensor,
        noises: Iterator[Tensor] | None = None,
        *,
        native: bool = False,
    ) -> Tensor:
        """The state (B, *) at the last of `sigmas`, from x (B, *) at the first; see `Task`.

        Raises:
            ImportError: without the library.
        """
        sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of and in the libraries
            return self.drive(Task(denoiser, sigmas, x, noises, native))


class _Torch:
    """torch with some of its names replaced: what a library's module sees for the time of a call."""

    def __init__(self, **names: Any) -> None:
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def _patched(module: ModuleType, **names: Any) -> Iterator[None]:
    """Names of a module replaced for the time of a call."""
    before = {name: getattr(module, name) for name in names}
    try:
        module.__dict__.update(names)
        yield
    finally:
        module.__dict__.update(before)


# ---------------------------------------------------------------------------------------------------- k-diffusion


@cache
def _k_diffusion(module: str = "sampling") -> ModuleType:
    """A module of k_diffusion alone: the package itself imports training code, and utils asks for torchvision, which it
    does not use here and which need not fit the torch that is there."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("k-diffusion is not installed")
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    stand_ins = {"k_diffusion": package} | {name: ModuleType(name) for name in names}
    stand_ins[names[1]].functional = stand_ins[names[2]]  # type: ignore[attr-defined]
    before = dict(sys.modules)
    try:
        sys.modules.update(stand_ins)
        return importlib.import_module(f"k_diffusion.{module}")
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] in ("k_diffusion", "torchvision")]:
            if name in before:
                sys.modules[name] = before[name]
            else:
                del sys.modules[name]


def _k(function: str, **options: Any) -> Callable[[Task], Tensor]:
    """A function of k_diffusion.sampling, in the state's dtype.

    `sample_dpmpp_sde` asks twice a step for noise, up to the middle of the step in log sigma and up to its end. Of
    `noises` it gets those of one path of the reverse process through both, each half with a noise of its own.
    """
    half: list[Tensor] = []

    def draw(task: Task, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        z = task.draw()
        if function != "sample_dpmpp_sde":
            return z
        if not half:
            half.append(z)
            return z
        q = sigma_next / sigma
        return (q.sqrt() * half.pop() + z) / (1 + q).sqrt()

    def drive(task: Task) -> Tensor:
        sample = getattr(_k_diffusion(), function)
        # It calls the model with noise levels (B,), all equal.
        model = task.denoiser if task.native else lambda x, sigma: task.denoiser(x, sigma[0])
        noise = {}
        if task.noises is not None and "noise_sampler" in inspect.signature(sample).parameters:
            half.clear()
            noise["noise_sampler"] = partial(draw, task)
        return sample(model, task.x, task.sigmas.to(task.x), disable=True, **options, **noise)

    return drive


def k_log_likelihood(
    denoiser: Denoiser, x: Tensor, sigma_min: float, sigma_max: float, tolerance: float, probe: Tensor
) -> tuple[Tensor, dict[str, int]]:
    """k-diffusion's `log_likelihood` of x (B, *) with a given probe of zeros and ones, (B, *), for its +-1."""
    module = _k_diffusion()
    with _patched(module, torch=_Torch(randint_like=lambda x, high: probe.to(x))):
        value: tuple[Tensor, dict[str, int]] = module.log_likelihood(
            denoiser, x, sigma_min, sigma_max, atol=tolerance, rtol=tolerance
        )
    return value


# ---------------------------------------------------------------------------------------------------------- azula


@cache
def _azula() -> ModuleType:
    return importlib.import_module("azula.sample")


class _Given:
    """What azula calls a denoiser, on the process x = x0 + t * noise."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @staticmethod
    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t."""
        return torch.ones_like(t), t

    def __call__(self, x: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(mean=self.task.denoiser(x, t))


def _a(name: str, **options: Any) -> Callable[[Task], Tensor]:
    """A sampler of azula, its equidistant times replaced by the given ones, in the state's dtype."""

    def drive(task: Task) -> Tensor:
        module = _azula()
        times = task.sigmas.to(task.x)
        given = type(name, (getattr(module, name),), {"timesteps": property(lambda self: times)})
        sampler = given(_Given(task), steps=task.steps, silent=True, **options)
        if task.noises is None:
            return sampler(task.x)
        with _patched(module, torch=_Torch(randn_like=lambda x: task.draw())):
            return sampler(task.x)

    return drive


# ------------------------------------------------------------------------------------------------------ diffusers


@cache
def _diffusers(file: str) -> ModuleType:
    return importlib.import_module(f"diffusers.schedulers.scheduling_{file}")


Levels = Tensor
Prepare = Callable[[Any, Tensor], Levels]


def _nodes(scheduler: Any, sigmas: Tensor) -> Levels:
    """The grid as it is; returns the noise levels at which the network is called."""
    scheduler.sigmas = sigmas
    return sigmas[:-1]


def _heun_nodes(scheduler: Any, sigmas: Tensor) -> Levels:
    """The layout of HeunDiscreteScheduler.set_timesteps, whose last step would otherwise be one of Euler's to 0."""
    scheduler.sigmas = sigmas.repeat_interleave(2)[1:-1]
    return scheduler.sigmas


def _midpoint_nodes(scheduler: Any, sigmas: Tensor) -> Levels:
    """The layout of KDPM2DiscreteScheduler.set_timesteps, for a grid that does not end at 0."""
    middle = (sigmas[1:] * sigmas[:-1]).sqrt()
    scheduler.sigmas = sigmas.repeat_interleave(2)[1:-1]
    scheduler.sigmas_interpol = middle.repeat_interleave(2)
    return torch.stack([sigmas[:-1], middle], 1).flatten()


def _refined_nodes(parts: int, scheduler: Any, sigmas: Tensor) -> Levels:
    """A singlestep scheduler spends one of its steps on each stage; ours are equidistant in log sigma."""
    logs = sigmas.log()
    fractions = torch.arange(parts, dtype=sigmas.dtype) / parts
    inner = (logs[:-1, None] + fractions * (logs[1:] - logs[:-1])[:, None]).exp()
    inner[:, 0] = sigmas[:-1]
    scheduler.sigmas = torch.cat([inner.flatten(), sigmas[-1:]])
    return scheduler.sigmas[:-1]


def _table(scheduler: Any, sigmas: Tensor) -> Levels:
    """The grid as a training table of alpha-bar, one of whose entries is one step."""
    scheduler.alphas_cumprod = 1 / (1 + sigmas.flip(0) ** 2)
    scheduler.num_inference_steps = scheduler.config.num_train_timesteps  # a step from entry i to entry i - 1
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
    return sigmas[:-1]


def _plms_table(scheduler: Any, sigmas: Tensor) -> Levels:
    """The same for PNDMScheduler(skip_prk_steps=True), which does its first step twice."""
    levels = _table(scheduler, sigmas)
    again = torch.cat([torch.tensor([0, 1, 1]), torch.arange(2, len(levels))])
    scheduler.timesteps = scheduler.timesteps[again]
    return levels[again]


def _prk_table(scheduler: Any, sigmas: Tensor) -> Levels:
    """The same for PNDMScheduler, whose first three steps are Runge-Kutta's, through the middle of sigma."""
    between = torch.stack([sigmas[:-1], (sigmas[:-1] + sigmas[1:]) / 2], 1).flatten()
    sigmas = torch.cat([between, sigmas[-1:]])
    _table(scheduler, sigmas)
    scheduler.num_inference_steps = scheduler.config.num_train_timesteps // 2  # a step: from entry i to entry i - 2
    last = len(sigmas) - 1
    prk = [last - 2 * k - stage for k in range(3) for stage in (0, 1, 1, 2)]
    scheduler.prk_timesteps = torch.tensor(prk)
    scheduler.timesteps = torch.tensor([*prk, *range(last - 6, 0, -2)])
    return sigmas[last - scheduler.timesteps]


def _ipndm_table(scheduler: Any, sigmas: Tensor) -> Levels:
    """IPNDMScheduler keeps alpha and sigma of its grid, under the names alphas and betas."""
    scheduler.alphas = (1 + sigmas**2).rsqrt()
    scheduler.betas = sigmas * scheduler.alphas
    return sigmas[:-1]


def _d(
    name: str,
    file: str,
    *,
    vp: bool = True,
    predicts: str = "sample",
    prepare: Prepare = _nodes,
    per_step: int = 1,
    step: dict[str, Any] | None = None,
    **options: Any,
) -> Callable[[Task], Tensor]:
    """A scheduler of diffusers, in the loop that its pipelines run.

    Its `set_timesteps` offers no grid of one's own that ends above 0 (or rounds it to float32), so that is called to
    reset the scheduler and the tensors of its grid are then set. Schedulers that cast their state to float32 (the
    "upcast" before the update in `step`) are left to it for a float32 state; for a float64 state the scheduler's
    module sees float64 under that name, so that its formulas can be compared to more digits.

    `scale_model_input`, the input scaling of networks trained in another coordinate, is not called.

    Args:
        name: the class without "Scheduler".
        file: its module without "scheduling_".
        vp: whether the state is x / sqrt(1 + sigma^2).
        predicts: what it is told that the network predicts: "sample", "epsilon" or "v".
        prepare: sets the grid.
        per_step: calls of `step` a step.
        step: options of `step`.
        options: of the constructor.
    """

    def scale(sigma: Tensor) -> Any:
        return (1 + sigma**2).rsqrt() if vp else 1.0

    def drive(task: Task) -> Tensor:
        module = _diffusers(file)
        scheduler = getattr(module, f"{name}Scheduler")(**options)
        scheduler.set_timesteps(task.steps * per_step)
        levels = prepare(scheduler, task.sigmas)
        if len(scheduler.timesteps) != len(levels):
            scheduler.timesteps = torch.arange(len(levels), 0, -1).to(scheduler.timesteps.dtype)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        scheduler.is_scale_input_called = True
        if name == "EDMDPMSolverMultistep":  # what it gets is the denoised state, not the network inside EDM's
            scheduler.precondition_outputs = lambda sample, output, sigma: output
        levels = levels.to(task.x)
        for table in ("sigmas", "sigmas_interpol", "alphas_cumprod", "alphas", "betas"):
            if isinstance(value := getattr(scheduler, table, None), Tensor):
                setattr(scheduler, table, value.to(task.x))

        def output(x: Tensor, sigma: Tensor) -> Tensor:
            if task.native:
                return task.denoiser(x, sigma)
            alpha = scale(sigma)
            data = task.denoiser(x / alpha, sigma)
            if predicts == "sample":
                return data
            noise = (x / alpha - data) / sigma
            return noise if predicts == "epsilon" else alpha * (noise - sigma * data)

        names: dict[str, Any] = {"torch": _Torch(float32=torch.float64)} if task.x.dtype == torch.float64 else {}
        if task.noises is not None and hasattr(module, "randn_tensor"):
            names["randn_tensor"] = lambda *args, **kwargs: task.draw()
        x = task.x if task.native else task.x * scale(levels[0])
        with _patched(module, **names):
            for t, sigma in zip(scheduler.timesteps, levels, strict=True):
                x = scheduler.step(output(x, sigma), t, x, return_dict=False, **(step or {}))[0]
        return x if task.native else x / scale(task.sigmas[-1].to(x))

    return drive


GRID_END: dict[str, Any] = {"final_sigmas_type": "sigma_min", "lower_order_final": False}  # no special last step
DATA: dict[str, Any] = {"prediction_type": "sample"}
NOISE: dict[str, Any] = {"prediction_type": "epsilon", "predicts": "epsilon"}
_ddim = partial(_d, "DDIM", "ddim", prepare=_table, clip_sample=False, **DATA)
_dpm = partial(_d, "DPMSolverMultistep", "dpmsolver_multistep", **GRID_END, **DATA)
_edm = partial(_d, "EDMDPMSolverMultistep", "edm_dpmsolver_multistep", vp=False, **GRID_END)
_unipc = partial(_d, "UniPCMultistep", "unipc_multistep", **GRID_END, **DATA)
_deis = partial(_d, "DEISMultistep", "deis_multistep", lower_order_final=False, **DATA)
_sa = partial(_d, "SASolver", "sasolver", lower_order_final=False, tau_func=lambda t: 1.0, **DATA)
_pndm = partial(_d, "PNDM", "pndm", **NOISE)


def _single(order: int, **options: Any) -> Callable[[Task], Tensor]:
    nodes: dict[str, Any] = {"prepare": partial(_refined_nodes, order), "per_step": order}
    return _d("DPMSolverSinglestep", "dpmsolver_singlestep", solver_order=order, **nodes, **GRID_END, **DATA, **options)


SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
NOISY: dict[str, Any] = {"stochastic": True}
COLD: dict[str, Any] = {"variant": "cold"}  # the first steps are of lower order
LOG: dict[str, Any] = {"variant": "log-snr"}  # the polynomial is one in log sigma (and the start cold)
INNER: dict[str, Any] = {"variant": "inner stage midpoint"}  # the paper's is exact; the order is the same
WRONG: dict[str, Any] = {"variant": "published", "defect": "second order: the second derivative has half its weight"}
HALF_WRONG: dict[str, Any] = WRONG | {"variant": "published, second step exact"}
WORSE: dict[str, Any] = {"variant": "published", "defect": "first order: the last 0.5 has the wrong sign"}
_hf = partial(PeerSampler, "diffusers")
_kd = partial(PeerSampler, "k-diffusion")
_az = partial(PeerSampler, "azula")

SAMPLERS: tuple[PeerSampler, ...] = (
    _hf("DDIM", "ddim", _ddim()),
    _hf("DDIM eta=1", "ancestral", _ddim(step={"eta": 1.0}), **NOISY),
    _hf("EulerDiscrete", "euler", _d("EulerDiscrete", "euler_discrete", vp=False, **DATA)),
    _hf(
        "EulerAncestralDiscrete",
        "ancestral",
        _d("EulerAncestralDiscrete", "euler_ancestral_discrete", vp=False, **NOISE),
        **NOISY,
    ),
    _hf(
        "HeunDiscrete",
        "heun",
        _d("HeunDiscrete", "heun_discrete", vp=False, prepare=_heun_nodes, **DATA),
        nfe_per_step=2,
    ),
    _hf(
        "KDPM2Discrete",
        "dpm2",
        _d("KDPM2Discrete", "k_dpm_2_discrete", vp=False, prepare=_midpoint_nodes, **NOISE),
        nfe_per_step=2,
    ),
    _hf("DPMSolverMultistep ++1", "dpm++1m", _dpm(solver_order=1)),
    _hf("DPMSolverMultistep ++2", "dpm++2m", _dpm()),
    _hf("DPMSolverMultistep ++2 heun", "dpm++2m", _dpm(solver_type="heun"), variant="exact"),
    _hf("DPMSolverMultistep ++3", "dpm++3m", _dpm(solver_order=3), **WRONG),
    _hf("DPMSolverMultistep 2", "dpm2m", _dpm(algorithm_type="dpmsolver")),
    _hf("DPMSolverMultistep 2 heun", "deis2", _dpm(algorithm_type="dpmsolver", solver_type="heun"), **LOG),
    _hf("DPMSolverMultistep sde++1", "sde-dpm++1m", _dpm(solver_order=1, **SDE), **NOISY),
    _hf("DPMSolverMultistep sde++2", "sde-dpm++2m", _dpm(**SDE), **NOISY),
    _hf("DPMSolverMultistep sde++2 heun", "sde-dpm++2m", _dpm(solver_type="heun", **SDE), variant="exact", **NOISY),
    _hf("DPMSolverMultistep sde++3", "sde-dpm++3m", _dpm(solver_order=3, **SDE), **NOISY, **WORSE),
    _hf("DPMSolverMultistep sde 2", "sde-dpm2m-published", _dpm(algorithm_type="sde-dpmsolver"), **NOISY),
    _hf("EDMDPMSolverMultistep ++2", "dpm++2m", _edm()),
    _hf("EDMDPMSolverMultistep sde++2", "sde-dpm++2m", _edm(**SDE), **NOISY),
    _hf("DPMSolverSinglestep ++2", "dpm++2s", _single(2), nfe_per_step=2),
    _hf("DPMSolverSinglestep ++3", "dpm++3s", _single(3), nfe_per_step=3, **INNER),
    _hf("DPMSolverSinglestep 2", "dpm2", _single(2, algorithm_type="dpmsolver"), nfe_per_step=2),
    _hf("DPMSolverSinglestep 3", "dpm3", _single(3, algorithm_type="dpmsolver"), nfe_per_step=3, **INNER),
    _hf("UniPCMultistep bh2 2", "unipc2", _unipc(solver_order=2)),
    _hf("UniPCMultistep bh2 3", "unipc3", _unipc(solver_order=3)),
    _hf("UniPCMultistep bh1 2", "unipc2", _unipc(solver_order=2, solver_type="bh1"), variant="bh1"),
    _hf("UniPCMultistep bh1 3", "unipc3", _unipc(solver_order=3, solver_type="bh1"), variant="bh1"),
    _hf("DEISMultistep 2", "deis2", _deis(solver_order=2), **LOG),
    _hf("DEISMultistep 3", "deis3", _deis(solver_order=3), **LOG),
    _hf("LMSDiscrete 4", "lms4", _d("LMSDiscrete", "lms_discrete", vp=False, **DATA), **COLD),
    _hf("PNDM", "pndm", _pndm(prepare=_prk_table), extra_nfe=9),
    _hf("PNDM skip_prk_steps", "plms", _pndm(prepare=_plms_table, skip_prk_steps=True), extra_nfe=1),
    _hf("IPNDM", "ipndm4", _d("IPNDM", "ipndm", prepare=_ipndm_table, predicts="v")),
    _hf("SASolver 2 2", "sa-solver", _sa(predictor_order=2, corrector_order=2), variant="2, 2", **NOISY),
    _hf("SASolver 3 3", "sa-solver", _sa(predictor_order=3, corrector_order=3), variant="3, 3", **NOISY),
    _hf("SASolver 3 4", "sa-solver", _sa(predictor_order=3, corrector_order=4), variant="3, 4", **NOISY),
    _kd("sample_euler", "euler", _k("sample_euler")),
    _kd("sample_euler_ancestral", "ancestral", _k("sample_euler_ancestral"), **NOISY),
    _kd("sample_heun", "heun", _k("sample_heun"), nfe_per_step=2),
    _kd("sample_dpm_2", "dpm2", _k("sample_dpm_2"), nfe_per_step=2),
    _kd("sample_dpm_2_ancestral", "dpm2-ancestral", _k("sample_dpm_2_ancestral"), nfe_per_step=2, **NOISY),
    _kd("sample_lms", "lms4", _k("sample_lms"), **COLD),
    _kd("sample_dpmpp_2s_ancestral", "dpm++2s-ancestral", _k("sample_dpmpp_2s_ancestral"), nfe_per_step=2, **NOISY),
    _kd("sample_dpmpp_2s_ancestral eta=0", "dpm++2s", _k("sample_dpmpp_2s_ancestral", eta=0.0), nfe_per_step=2),
    _kd("sample_dpmpp_sde", "sde-dpm++2s", _k("sample_dpmpp_sde"), nfe_per_step=2, **NOISY),
    _kd("sample_dpmpp_sde eta=0", "dpm++2s", _k("sample_dpmpp_sde", eta=0.0), nfe_per_step=2),
    _kd("sample_dpmpp_2m", "dpm++2m", _k("sample_dpmpp_2m")),
    _kd("sample_dpmpp_2m_sde", "sde-dpm++2m", _k("sample_dpmpp_2m_sde"), **NOISY),
    _kd(
        "sample_dpmpp_2m_sde heun",
        "sde-dpm++2m",
        _k("sample_dpmpp_2m_sde", solver_type="heun"),
        variant="exact",
        **NOISY,
    ),
    _kd("sample_dpmpp_2m_sde eta=0", "dpm++2m", _k("sample_dpmpp_2m_sde", eta=0.0)),
    _kd("sample_dpmpp_3m_sde", "sde-dpm++3m", _k("sample_dpmpp_3m_sde"), **NOISY, **HALF_WRONG),
    _kd("sample_dpmpp_3m_sde eta=0", "dpm++3m", _k("sample_dpmpp_3m_sde", eta=0.0), **HALF_WRONG),
    _az("DDIMSampler", "ddim", _a("DDIMSampler")),
    _az("EulerSampler", "euler", _a("EulerSampler")),
    _az("HeunSampler", "heun", _a("HeunSampler"), nfe_per_step=2),
    _az("DDPMSampler", "ancestral", _a("DDPMSampler"), **NOISY),
    _az("zABSampler 2", "lms2", _a("zABSampler", order=2)),
    _az("zABSampler 3", "lms3", _a("zABSampler", order=3), **COLD),
    _az("zABSampler 4", "lms4", _a("zABSampler", order=4), **COLD),
    _az("vABSampler 2", "rectified2", _a("vABSampler", order=2)),
    _az("vABSampler 3", "rectified3", _a("vABSampler", order=3), variant="cold"),
    _az("zEABSampler 2", "deis2", _a("zEABSampler", order=2), **LOG),
    _az("zEABSampler 3", "deis3", _a("zEABSampler", order=3), **LOG),
    _az("xEABSampler 2", "dpm++2m", _a("xEABSampler", order=2), variant="exact"),
    _az("xEABSampler 3", "dpm++3m", _a("xEABSampler", order=3), **COLD),
)

# (name, variant) of an entry of `SAMPLERS`: our solver. One line serves every library that has the method.
# What the registry has not is skipped, so a line may come before its solver.
OURS: dict[tuple[str, str], Callable[[], sg.Solver]] = {
    ("dpm++2m", "exact"): lambda: sg.DPMSolverPP(2, variant="exact"),
    ("dpm++3m", "cold"): lambda: sg.DPMSolverPP(3, start="cold"),
    ("dpm++3m", "published"): lambda: sg.DPMSolverPP(3, variant="published"),
    ("deis2", "log-snr"): lambda: sg.schemes.ExponentialAdams(nodes=2, prediction="noise"),
    ("deis3", "log-snr"): lambda: sg.schemes.ExponentialAdams(nodes=3, prediction="noise"),
    ("rectified3", "cold"): lambda: sg.schemes.RectifiedAdams(3, start="cold"),
    ("lms3", "cold"): lambda: sg.schemes.LMS(3, start="cold"),
    ("lms4", "cold"): lambda: sg.schemes.LMS(4, start="cold"),
    ("unipc2", "bh1"): lambda: sg.UniPC(2, variant="bh1"),
    ("unipc3", "bh1"): lambda: sg.UniPC(3, variant="bh1"),
    ("sde-dpm++2m", "exact"): lambda: sg.DPMSolverPP(2, eta=1.0, variant="exact"),
    # diffusers' SA-Solver simplifies its second moment where two evaluations are used, as UniPC's B1 does.
    ("sa-solver", "2, 2"): lambda: sg.schemes.ExponentialAdams(nodes=2, corrector=2, eta=1.0, variant="bh1"),
    ("sa-solver", "3, 3"): lambda: sg.schemes.ExponentialAdams(nodes=3, corrector=3, eta=1.0, variant="bh1"),
    ("sa-solver", "3, 4"): lambda: sg.schemes.ExponentialAdams(nodes=3, corrector=4, eta=1.0, variant="bh1"),
}
OURS |= {(s.ours, ""): REGISTRY[s.ours] for s in SAMPLERS if s.ours in REGISTRY and not s.variant}  # our defaults
# Peers run without lower orders at the end, so ours do, too.
OURS = {key: lambda make=make: make().strict() for key, make in OURS.items()}
_LOADERS: dict[str, Callable[[], ModuleType]] = {
    "diffusers": partial(_diffusers, "ddim"),
    "k-diffusion": _k_diffusion,
    "azula": _azula,
}


@cache
def available() -> dict[str, str]:
    """The peers that can be imported, and their versions; never raises."""
    found = {}
    for peer, load in _LOADERS.items():
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load()
            found[peer] = importlib.metadata.version(peer)
    return found


def find(peer: str, ours: str, variant: str = "") -> PeerSampler | None:
    """The first sampler of a library that is ours of that name."""
    return next((s for s in SAMPLERS if (s.peer, s.ours, s.variant) == (peer, ours, variant)), None)
