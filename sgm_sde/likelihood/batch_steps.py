"""The flow and its change of volume by steps of the whole batch, those of torchdiffeq and of SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_output
from sgm_sde.engine.adaptive import State
from sgm_sde.likelihood.errors import error_of_step, safety_of_steps, stiffness
from sgm_sde.likelihood.own_steps import Ends, NormalisedFlow, whole_flow
from sgm_sde.likelihood.problem import Problem, Solution
from sgm_sde.processes.predictions import convert
from sgm_sde.schemes.tableaus import DOPRI5

if TYPE_CHECKING:
    from scipy.integrate import RK45

LONG = 3  # power of a step's length in lambda, beyond 1, for a solver in time: near the data what a step in time goes
# over is no polynomial in time, and the embedded error is chance


class _Batch:
    """The flow of a whole batch with its volume in u = -lambda, as torchdiffeq asks for it, and its steps' errors.

    The embedded errors are not handed out: they follow from the slopes, which are asked for here.

    Attributes:
        error: sum of what the errors of the steps so far may do to log p, (B,).
        seen: whether errors are added up; not while gradients are found.
    """

    def __init__(self, flow: NormalisedFlow) -> None:
        self.flow = flow
        n = len(flow.problem.x)
        self.rows = torch.arange(n, device=flow.problem.x.device)
        self.error = torch.zeros(n, dtype=flow.problem.x.dtype, device=flow.problem.x.device)
        self.seen = True
        self._first: State = ()  # slopes at the start of a step
        self._stages: list[tuple[State, State]] = []  # states and slopes of the others

    def __call__(self, u: Tensor, y: State) -> State:
        """The slopes of all samples."""
        slopes = tuple(-part for part in self.flow(_lam(u), y, self.rows))
        if self.seen:
            state, slope = (tuple(part.detach() for part in parts) for parts in (y, slopes))
            self._first = self._first or slope
            self._stages.append((state, slope))
        return slopes

    def callback_step(self, u: Tensor, y: State, h: Tensor) -> None:
        """A step is going to be tried."""
        self._stages.clear()

    def callback_accept_step(self, u: Tensor, y: State, h: Tensor) -> None:
        """It is taken, with length h."""
        step = h.detach().to(self.error)
        slopes = [self._first, *(slope for _, slope in self._stages)]
        e, e_volume = (_embedded(step, part) for part in zip(*slopes, strict=True))

        (z_6, _), (f_6, _) = self._stages[-2]
        (z_7, _), (f_7, _) = self._stages[-1]
        score = self.flow.score(_lam(u + h), z_7, -f_7)
        self.error += error_of_step(score, e, e_volume) * (1 + stiffness(step, z_7 - z_6, f_7 - f_6))
        self._first = self._stages[-1][1]


def _lam(u: Tensor) -> Tensor:
    """Lambda (1,) of the whole batch at a place u of torchdiffeq's."""
    return -u.detach().double().cpu().reshape(1)


def _embedded(h: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """The difference of the two methods of Dormand and Prince's pair over a step h, from the slopes of its stages."""
    (weights,) = DOPRI5.e
    total = torch.zeros_like(slopes[0])
    for weight, slope in zip(weights, slopes, strict=True):
        total = total.add(slope, alpha=weight)
    return h * total


def adjoint(flow: NormalisedFlow, rtol: float, atol: float, parameters: Sequence[Tensor]) -> Ends:
    """The noise's end by torchdiffeq's dopri5 on the whole batch.

    Gradients are those of the adjoint equation, in memory that steps do not add to.

    Raises:
        ValueError: where torchdiffeq gives up.
    """
    from torchdiffeq import odeint, odeint_adjoint

    x = flow.problem.x
    batch = _Batch(flow)
    z = x / flow.scale[flow.data]
    volumes = x.new_zeros(len(x), flow.problem.trace.columns)
    start = -flow.lam[flow.data]
    end = -flow.lam[flow.noise]
    u = torch.tensor([start, end], dtype=torch.float64, device=x.device)

    integrate = odeint
    options = _torchdiffeq_options(u, None)
    if torch.is_grad_enabled():
        integrate = odeint_adjoint
        options = _torchdiffeq_options(u, parameters)

    try:
        z, volumes = integrate(batch, (z, volumes), u, rtol=rtol, atol=atol, **options)
    except AssertionError as error:  # of steps that get too small, and states that are not finite
        raise ValueError(f"torchdiffeq gave up: {error}") from None
    finally:
        batch.seen = False

    latent = z[-1] * flow.scale[flow.noise]
    return Ends(flow, latent, safety_of_steps(rtol, atol) * batch.error, volumes[-1])


def _torchdiffeq_options(u: Tensor, parameters: Sequence[Tensor] | None) -> dict[str, object]:
    """Options of a solve from u[0] to u[1], and of its adjoint where there are parameters.

    Without step_t it would step beyond the end and interpolate, and the network would be called outside of [eps, T].
    """
    options: dict[str, object] = {"method": "dopri5", "options": {"step_t": u[1:]}}
    if parameters is not None:
        options["adjoint_params"] = tuple(parameters)
        options["adjoint_options"] = {"step_t": u[:1]}
    return options


class _JointSystem:
    """The flow of a batch with its log-volumes in time, as SciPy asks for it: one vector of float64."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x = problem.x

    def start(self) -> np.ndarray:
        """The states, and volumes of 0."""
        states = self.x.double().cpu().numpy().reshape(-1)
        volumes = np.zeros(len(self.x) * self.problem.trace.columns)
        return np.concatenate([states, volumes])

    def split(self, y: np.ndarray) -> tuple[Tensor, Tensor]:
        """States (B, *) and log-volumes (B, columns)."""
        both = torch.from_numpy(y).to(self.x)
        n = self.x.numel()
        return both[:n].view(self.x.shape), both[n:].view(len(self.x), -1)

    def slope(self, t: float, y: np.ndarray) -> np.ndarray:
        """Its slope at time t."""
        problem = self.problem
        model = problem.model
        x, _ = self.split(y)
        out, trace = self._with_trace(x, t)
        (node,) = problem.sde.nodes([t])
        c_x, c_r = convert(model.score.prediction, "flow", node)
        states = c_x * x + c_r * out
        volumes = c_x * problem.d + c_r * trace
        parts = [part.reshape(-1).double().cpu() for part in (states, volumes)]
        return torch.cat(parts).numpy()

    def error_of(self, solver: RK45) -> Tensor:
        """The change of log p (B,) by the error of the step that was just taken."""
        h = solver.t - solver.t_old
        slopes = solver.K
        x, _ = self.split(solver.y)
        e, e_volume = self.split(h * (slopes.T @ solver.E))
        x_6, _ = self.split(solver.y_old + h * (slopes[:5].T @ solver.A[5]))
        (f_6, _), (f_7, _) = self.split(slopes[5]), self.split(slopes[6])

        before, after = self.problem.sde.nodes([solver.t_old, solver.t])
        c_x, c_v = convert("flow", "score", after)
        score = c_x * x + c_v * f_7
        step = torch.full((len(x),), h, dtype=x.dtype, device=x.device)
        error = error_of_step(score, e, e_volume) * (1 + stiffness(step, x - x_6, f_7 - f_6))
        return max(1.0, abs(after.lam - before.lam)) ** LONG * error

    def _with_trace(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The network's output at states x (B, *) and time t, and its trace (B, columns)."""
        model = self.problem.model
        (time,) = model.times([t], x)
        out, trace = model.with_trace(x, time, self.problem.trace)
        out = out.to(x.dtype)
        trace = trace[:, : self.problem.trace.columns]
        check_output(
            x, out, t, trace, first=self.problem.first
        )  # SciPy's first step would be NaN, and it would try it for ever
        return out, trace


def scipy_rk45(problem: Problem, rtol: float, atol: float) -> Solution:
    """One solve of the joint system of the whole batch in time: Song et al.'s protocol."""
    from scipy.integrate import RK45

    system = _JointSystem(problem)
    solver = RK45(system.slope, problem.eps, system.start(), problem.sde.T, rtol=rtol, atol=atol)
    error = torch.zeros(len(problem.x), dtype=problem.x.dtype, device=problem.x.device)
    while solver.status == "running":
        message = solver.step()
        if solver.status == "failed":
            raise ValueError(f"SciPy's RK45 gave up: {message}")
        error += system.error_of(solver)

    latent, volumes = system.split(solver.y)
    return whole_flow(problem, latent, volumes, safety_of_steps(rtol, atol) * error)
