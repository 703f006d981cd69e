"""Oracles, processes and measurements that several test files use."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.executor import execute
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.sampling import job
from sgm_sde.schemes import REGISTRY
from sgm_sde.scores.model import BoundScore
from sgm_sde.testing import default_oracle

F64 = torch.float64
DOUBLE = sg.Execution(dtype=F64)

LINEAR: dict[str, sg.LinearSDE] = {
    "vp": sg.VPSDE(),
    "sub-vp": sg.SubVPSDE(),
    "cosine": sg.CosineVPSDE(),
    "ve": sg.VESDE(),
    "edm": sg.EDMSDE(),
    "flow": sg.RectifiedFlowSDE(),
    "ddpm": sg.presets.ddpm(),
    "ncsn": sg.presets.ncsn_cifar10(),
    "schedule": sg.LinearSDE.from_schedule(lambda t: torch.exp(-2 * t), lambda t: 0.01 + 2 * t),
}


ROOT = Path(__file__).parent.parent


def tool(name: str) -> dict[str, Any]:
    """What a script in tools/ defines."""
    return runpy.run_path(str(ROOT / "tools" / f"{name}.py"))


def half_at_the_end(t: float) -> float:
    """A noise level that depends on time."""
    return 0.5 + 0.5 * math.tanh(t)


SOLVERS: dict[str, sg.Solver] = {name: make() for name, make in REGISTRY.items()}
VARIANTS: dict[str, sg.Solver] = {
    "dpm++2m-exact": sg.DPMSolverPP(order=2, variant="exact"),
    "ddim-1": sg.DDIM(eta=1.0),
    "ddim-half": sg.DDIM(eta=0.5),
    "reverse-diffusion-flow": sg.ReverseDiffusion(eta=0.0),
    "euler-maruyama-flow": sg.EulerMaruyama(eta=0.0),
    "euler-maruyama-2": sg.EulerMaruyama(eta=2.0),
    "heun-churn": sg.Heun(s_churn=10.0),
    "dpm++3m-cold": sg.DPMSolverPP(3, start="cold"),
    "unipc3-lower-final": sg.UniPC(3, lower_final=True),
    "deis3-unic": sg.schemes.UniC(sg.DEIS(3)),
    "velocity2": sg.schemes.ExponentialAdams(nodes=2, prediction="v"),
    "velocity2-sde": sg.schemes.Rosenbrock(2, sigma_data=1.0, eta=1.0),
    "velocity3-near-noise": sg.schemes.ExponentialAdams(
        nodes=3, corrector=3, prediction="v", variable="log-snr", sigma_data=0.7, no_signal_above=7.0
    ),
    "velocity3-log-signal": sg.schemes.ExponentialAdams(
        nodes=3, corrector=3, prediction="v", variable="log-signal", sigma_data=0.7, no_signal_above=7.0
    ),
    "eta-of-t": sg.DPMSolverPP(2, eta=half_at_the_end),
}
ALL = {**SOLVERS, **VARIANTS}
# One of each structure: what differs between their siblings is coefficients.
FAMILIES = [
    *("euler", "rk4", "heun", "ddim", "dpm++2m", "dpm++3m", "dpm++2s", "dpm3", "res3", "unipc3"),
    *("deis3", "lms4", "pndm", "ipndm4", "rosenbrock3"),
    *("euler-maruyama", "reverse-diffusion", "ancestral", "dpm2-ancestral", "sde-dpm++2m"),
    *("seeds2", "sa-solver", "er-sde3", "dpm++3m-restart", "edm-sde", "annealed-langevin", "pc"),
]
DETERMINISTIC = [name for name, solver in ALL.items() if not solver.stochastic]
WEAK = [name for name, solver in ALL.items() if solver.weak_order]

GAUSSIAN = default_oracle("gaussian")
MIXTURE = default_oracle("mixture")


def bind(score: sg.Score, sde: sg.SDE, times: Sequence[float], **kwargs: object) -> BoundScore:
    """A score bound to a run over the given times."""
    return BoundScore(score, sde, (times[-1], times[0]), kwargs)


def stream(n: int, name: str = "solver", start: float = 0.0) -> NoiseStream:
    """Noise for n samples of seed 0, in a run that starts at a time."""
    return NoiseStream([(0, i) for i in range(n)], name, start)


@contextmanager
def noise_of_any_start() -> Iterator[None]:
    """Runs whose noise does not depend on the time they start at, so that those of several processes share it."""

    def without_start(seeds: Sequence[tuple[int, int]], name: str, start: float = 0.0, draw: int = 0) -> NoiseStream:
        return NoiseStream(seeds, name, draw=draw)

    with mock.patch.object(job, "NoiseStream", without_start):
        yield


def sampler(name: str, sde: sg.SDE, n_steps: int = 2) -> sg.Solver:
    """The solver of that name; annealed Langevin with few updates."""
    return sg.schemes.AnnealedLangevin(n_steps=n_steps) if name == "annealed-langevin" else ALL[name]


class Recorder:
    """A network that keeps what it is called with: copies of its states and labels."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        self.net = net
        self.states: list[Tensor] = []
        self.labels: list[Tensor] = []

    def __call__(self, x: Tensor, label: Tensor, **kwargs: object) -> Tensor:
        assert label.shape == (len(x),)
        self.states.append(x.clone())
        self.labels.append(label.clone())
        return self.net(x, label, **kwargs)

    @property
    def times(self) -> list[float]:
        """The label of each call, which must be one for the whole batch."""
        assert all(bool((label == label[0]).all()) for label in self.labels)
        return [label[0].item() for label in self.labels]


def elementwise_score(sde: sg.LinearSDE, mean: float = 0.3, std: float = 0.5) -> Callable[[Tensor, Tensor], Tensor]:
    """The score of Gaussian data by elementwise arithmetic alone, whose rounding no batch-mate can change."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (f(t).reshape(-1, *[1] * (x.ndim - 1)) for f in (sde.alpha, sde.sigma))
        return -(x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)

    return score


class Impulses:
    """Noise whose draw j is 1 in row j and 0 elsewhere: under a linear score row j is the response to draw j."""

    def __init__(self) -> None:
        self.drawn = 0

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        """The next draw."""
        z = torch.zeros(shape, dtype=dtype, device=device)
        z[self.drawn] = 1
        self.drawn += 1
        return z


def impulse_response(solver: sg.Solver, sde: sg.LinearSDE, grid: sg.Grid, std: float, mean: bool = False) -> Tensor:
    """Responses of a sampler's last state to each of its draws and, last, to its start, on data N(0, std^2).

    Their norm is the exact standard deviation of the output.
    """
    program = solver.compile(sde, grid)
    draws = 1 + max((m for stage in program.stages for m, _ in stage.noises), default=-1)
    program = solver.end_in_mean(program) if mean else program
    x = torch.zeros(draws + 1, 1, dtype=F64)
    x[-1] = marginal_std(sde, std, grid.times[0])
    model = bind(sg.oracles.Gaussian(torch.zeros(1), std**2).score(sde), sde, grid.times)
    with torch.no_grad():
        return execute(program, x, model, Impulses()).x[:, 0]


def marginal_std(sde: sg.LinearSDE, std: float, t: float) -> float:
    """Standard deviation at time t of data N(0, std^2)."""
    return math.hypot(float(sde.alpha(t)) * std, float(sde.sigma(t)))


class Square(torch.autograd.Function):
    """The square, without a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2


DONATES = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"),
    reason="no graph of this torch gives a single product",
)


class UsedUp(Square):
    """The square, whose graph gives a single product, as those of compiled functions may."""

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        if torch._C._autograd._get_current_graph_task_keep_graph():
            raise RuntimeError("This backward function was compiled with non-empty donated buffers which requires ...")
        (x,) = ctx.saved_tensors
        return 2 * x * v
