r"""Solving the probability flow with its change of volume, from eps to T.

With $\rho^2 = \alpha^2 s^2 + \sigma^2$, the spread that data of standard deviation s have at a time, the flow of
$z = x/\rho$ in $\lambda = \log(\alpha/\sigma)$ is

$$ \frac{dz}{d\lambda} = -\frac{\alpha\sigma s}{\rho^3}\,v, \qquad v = \alpha s\,\epsilon - \frac{\sigma}{s} D $$

which is 0 for Gaussian data of that spread. Along it

$$ \log p_\epsilon(x_\epsilon) = \log p_T(x_T) + d\log\frac{\rho_T}{\rho_\epsilon}
   - \int_{\lambda_T}^{\lambda_\epsilon} \operatorname{div}_z\frac{dz}{d\lambda}\,d\lambda $$
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._kept import kept
from sgm_sde._shapes import as_time, dot, expand
from sgm_sde.engine.adaptive import integrate
from sgm_sde.engine.executor import execute
from sgm_sde.likelihood.checks import OnOutput, check_output
from sgm_sde.likelihood.grid import Stretched
from sgm_sde.likelihood.multistep import program, spread, tables
from sgm_sde.likelihood.trace import OutputDependsOnBatch, TraceModel, fixed_probe_error, probe_error
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.predictions import Kernel, KernelValues, convert
from sgm_sde.scores.model import BoundModel
from sgm_sde.solvers.runge_kutta import DOPRI5

DAMPED_BELOW = 0.2  # noise, as a fraction of the data
LARGEST_DEFECT = 2e-4  # nats/dim that one grid may leave
REFINEMENTS = (2, 4)  # times the steps


class Solution(NamedTuple):
    """The latent (B, *); (B,) each: what its volume adds, the standard error of that, and the defect it contains."""

    latent: Tensor
    volume: Tensor
    error: Tensor
    defect: Tensor


def rate(prediction: str, k: Kernel, s: float) -> tuple[Any, Any]:
    """Coefficients with dz/dlambda = a_x x + a_r r, for a network's output r."""
    factor = -k.alpha * k.sigma * s / spread(k, s) ** 3
    c_x, c_r = convert(prediction, "velocity", k, sigma_data=s)
    return factor * c_x, factor * c_r


class Rates(NamedTuple):
    """Coefficients (c_x, c_r) at a node of what is c_x x + c_r r, for a network's output r: dz/dtheta and the score in
    z, damped; for each dimension the divergence of dz/dtheta, and the factor of the trace of r's Jacobian in it."""

    slope: tuple[float, float]
    score: tuple[float, float]
    divergence: tuple[float, float]

    @classmethod
    def at(cls, node: Any, prediction: str, s: float) -> Rates:
        """Where the noise is small beside the data, networks know the score badly, and trajectories are good."""
        rho = spread(node, s)
        damped = rho / (1 + (DAMPED_BELOW * node.alpha * s / node.sigma) ** 2)
        (s_x, s_r), (v_x, v_r) = (convert(prediction, target, node, sigma_data=s) for target in ("score", "velocity"))
        return cls((v_x / rho, v_r / rho), (damped * s_x, damped * s_r), (v_x, v_r))


class NoNoise:
    """The probability flow draws none."""

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any = None) -> Tensor:
        """Raises."""
        raise RuntimeError("the probability flow draws no noise")


class FixedGrid:
    """The flow on a fixed grid, from the data to the noise or back; see `multistep`.

    Args:
        sde: the process.
        eps: where the flow ends, with the data.
        steps: of the grid.
        s: standard deviation of the data.
        to_noise: the direction.
    """

    def __init__(self, sde: LinearSDE, eps: float, steps: int, s: float, to_noise: bool = True) -> None:
        rule = Stretched(data_std=s)
        times = rule(sde, steps, t_end=eps).times
        self.s, self.times = s, times[::-1] if to_noise else times
        self.nodes = sde.nodes(self.times)
        self.spreads = [spread(node, s) for node in self.nodes]
        self.table = tables(rule.curve(sde, sde.T, eps), s, steps, to_noise)
        self.program = program(self.nodes, self.table, s)
        self._rates: dict[str, list[Rates]] = {}

    def rates(self, prediction: str) -> list[Rates]:
        """What a network's output means at each node."""
        if prediction not in self._rates:
            self._rates[prediction] = [Rates.at(node, prediction, self.s) for node in self.nodes]
        return self._rates[prediction]

    def carry(self, model: BoundModel, x: Tensor, on_output: OnOutput | None = None) -> Tensor:
        """The state at the last of the times; order 4."""
        return execute(self.program, x, model, NoNoise(), on_output=on_output, grad=torch.is_grad_enabled()).x


def fixed_grid(sde: LinearSDE, *options: Any) -> FixedGrid:
    """A `FixedGrid`, kept where processes can be told apart."""
    return _fixed_grid(sde, *options)


@kept(maxsize=64)
def _fixed_grid(sde: LinearSDE, *options: Any) -> FixedGrid:
    return FixedGrid(sde, *options)


class Integrals:
    r"""What is integrated along the flow on a grid, gathered while its nodes are visited.

    Along any path z(u), $d\log p = -\operatorname{div}\,d\theta + \nabla_z\log p\cdot(dz - v/\rho\,d\theta)$ where the
    score is exact. The states visited lie on no single trajectory: from one to the next the path is that of the slopes
    with a jump besides. With what the jumps add, the defect, the value has the error of the quadrature alone.

    Args:
        model: whose traces are taken.
        grid: the grid.

    Attributes:
        first: the network's output at the first node.
    """

    first: Tensor

    def __init__(self, model: TraceModel, grid: FixedGrid) -> None:
        self.model, self.grid, self.rates = model, grid, grid.rates(model.score.prediction)
        self._traces: list[Tensor] = []
        self._jumps: list[Tensor] = []  # twice what those of the intervals add, (B,) each
        self._slopes: dict[int, Tensor] = {}  # dz/dtheta of the flow
        self._states: dict[int, tuple[Tensor, Tensor]] = {}  # z and the score there

    def __call__(self, x: Tensor, out: Tensor, t: float) -> None:
        """The network's output at the state of the next node."""
        k, r, integrals = len(self._traces), out.to(x.dtype), self.grid.table.integrals
        if k == 0:
            self.first = out.detach().clone()
        self._traces.append(self.model.traces.pop())
        self._slopes[k], score = (torch.add(c_x * x, r, alpha=c_r) for c_x, c_r in self.rates[k][:2])
        self._states[k] = x / self.grid.spreads[k], score
        while len(self._jumps) < len(integrals) and integrals[len(self._jumps)][-1][0] <= k:
            self._cross(len(self._jumps))

    def _cross(self, i: int) -> None:
        """Take the jump of interval i, when all the slopes about it are known."""
        integrals, (z, score), (end, score_there) = self.grid.table.integrals, self._states.pop(i), self._states[i + 1]
        jump = z - end
        for j, w in integrals[i]:
            jump = torch.add(jump, self._slopes[j], alpha=w)
        self._jumps.append(dot(score + score_there, jump))
        needed = integrals[min(i + 1, len(integrals) - 1)][0][0]
        self._slopes = {j: slope for j, slope in self._slopes.items() if j >= needed}

    def terms(self, latent: Tensor) -> Tensor:
        """The terms of the quadrature of div dtheta, (nodes, B, columns)."""
        constants, factors = np.array([rates.divergence for rates in self.rates]).T * self.grid.table.weights
        traces = torch.stack(self._traces).to(latent.dtype)
        a, b = (torch.from_numpy(c).to(latent)[:, None, None] for c in (constants * latent[0].numel(), factors))
        return a + b * traces

    def defect(self, latent: Tensor) -> Tensor:
        """What all jumps add, the last one from the last state that was visited to the latent (B, *), (B,)."""
        (z, score) = self._states[len(self._traces) - 1]
        last = dot(score, z - latent / self.grid.spreads[-1])
        return torch.stack(self._jumps).sum(0) / 2 + last


def on_grid(model: TraceModel, sde: LinearSDE, x: Tensor, eps: float, steps: int, s: float) -> tuple[Solution, Tensor]:
    """On one fixed grid, where the trace is a quadrature over the nodes of the trajectory; and the first output."""
    grid = fixed_grid(sde, eps, steps, s)
    integrals = Integrals(model, grid)
    latent = grid.carry(model, x, integrals)
    defect, terms = integrals.defect(latent), integrals.terms(latent)
    volume = terms.mean(2).sum(0) + x[0].numel() * math.log(grid.spreads[-1] / grid.spreads[0])
    # As slopes in lambda the terms vary slowly from node to node.
    slowly = grid.table.weights * np.array([2 * math.cosh(node.lam + math.log(s)) for node in grid.nodes])
    error = probe_error(terms.detach(), torch.from_numpy(slowly))
    return Solution(latent, volume + defect, error, defect), integrals.first


def exponential(
    model: TraceModel, sde: LinearSDE, x: Tensor, eps: float, steps: int, s: float, *, refine: bool
) -> Solution:
    """On one fixed grid, or for the samples whose defect is large on finer ones as well.

    They go there alone where the network can be asked about them, else in their batch. Errors of the network's are its
    own and pass as they are.
    """
    solution, first = on_grid(model, sde, x, eps, steps, s)
    alone = refine and model.takes_some(len(x))
    for finer in REFINEMENTS if refine else ():
        (rows,) = (solution.defect.detach().abs() > LARGEST_DEFECT * x[0].numel()).nonzero(as_tuple=True)
        if not len(rows):
            break
        if not (alone and (better := _alone(model, sde, x, eps, finer * steps, s, rows, first))):
            alone = False
            whole, _ = on_grid(model, sde, x, eps, finer * steps, s)
            better = Solution(*(part[rows] for part in whole))
        solution = Solution(*(a.index_copy(0, rows, b) for a, b in zip(solution, better, strict=True)))
    return solution


def _alone(
    model: TraceModel, sde: LinearSDE, x: Tensor, eps: float, steps: int, s: float, rows: Tensor, first: Tensor
) -> Solution | None:
    """Some rows on one fixed grid; None where the network says something else of them than in their batch."""
    try:
        with model.only(rows, len(x)), model.expecting(first[rows]):
            return on_grid(model, sde, x[rows], eps, steps, s)[0]
    except OutputDependsOnBatch:
        return None


def revisit(
    model: TraceModel, sde: LinearSDE, x: Tensor, eps: float, steps: int, s: float, refine: bool, on_output: OnOutput
) -> None:
    """Walk along the grids of `exponential` again."""
    for finer in (1, *(REFINEMENTS if refine else ())):
        grid = fixed_grid(sde, eps, finer * steps, s)
        grid.carry(model, x, lambda x, out, t: on_output(x, out, t, model.traces.pop()))


class NormalisedFlow:
    """The flow of z in lambda and, for a model that keeps traces, of its log-volume; each sample at its own lambda.

    Args:
        model: the network.
        sde: the process.
        x: states (B, *), whose dtype and device the flow has.
        eps: where the flow ends, with the data.
        s: standard deviation of the data.

    Raises:
        ValueError: unless s is positive.
    """

    def __init__(self, model: BoundModel, sde: LinearSDE, x: Tensor, eps: float, s: float) -> None:
        if not s > 0:
            raise ValueError(f"data_std must be positive, got {s}")
        self.model, self.sde, self.eps, self.s = model, sde, eps, s
        self.n, self.d = len(x), x[0].numel()
        self.data, self.noise = sde.nodes([eps, sde.T])
        self.scale = {end: spread(end, s) for end in (self.data, self.noise)}

    def __call__(self, lam: Tensor, y: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        """Slopes at lambda (b,), float64 on the host, for the samples of these numbers."""
        z, model = y[0], self.model
        t = self.sde.time(2 * lam).clamp(self.eps, self.sde.T)
        k = KernelValues(self.sde.alpha(t), self.sde.sigma(t), self.sde.d_alpha(t), self.sde.d_sigma(t))
        rho, *a = (
            as_time(v).expand(len(z)).to(z) for v in (spread(k, self.s), *rate(model.score.prediction, k, self.s))
        )
        x = expand(rho, z) * z
        times, gone = model.round_times(t.numpy(), x), len(rows) < self.n
        with model.only(rows, self.n) if gone else nullcontext():
            out = model.evaluate(x, times)
        slope = expand(a[0], x) * x + expand(a[1], x) * out.to(x.dtype)
        if not isinstance(model, TraceModel):
            return (slope,)
        return slope, rho[:, None] * (self.d * a[0][:, None] + a[1][:, None] * model.traces.pop().to(z.dtype))


def adaptive(flow: NormalisedFlow, x: Tensor, rtol: float, atol: float, *, to_noise: bool = True) -> tuple[Tensor, ...]:
    """The other end (B, *) and, for a model that keeps traces, log-volumes (B, columns); steps of each sample's own.

    Raises:
        ValueError: where a sample does not arrive.
    """
    flow.model.resolved(flow.n)  # samples leave the batch
    start, end = (flow.data, flow.noise) if to_noise else (flow.noise, flow.data)
    y: tuple[Tensor, ...] = (x / flow.scale[start],)
    if isinstance(flow.model, TraceModel):
        y = (*y, x.new_zeros(len(x), flow.model.estimate.columns))
    run = integrate(flow, y, start.lam, end.lam, DOPRI5, rtol=rtol, atol=atol)
    for i in (~run.completed).nonzero().flatten().tolist()[:1]:
        t = float(flow.sde.time(2 * float(run.t[i])))
        raise ValueError(f"the flow of sample {i} stopped at t={t:.6g}: {run.outcome[i]}")
    return (run.y[0] * flow.scale[end], *run.y[1:])


def adjoint(
    flow: NormalisedFlow, x: Tensor, rtol: float, atol: float, parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The latent and the log-volumes (B, columns) by torchdiffeq's dopri5 on the whole batch.

    Gradients are those of the adjoint equation, in memory that steps do not add to.

    Raises:
        ValueError: where torchdiffeq gives up.
    """
    from torchdiffeq import odeint, odeint_adjoint

    rows = torch.arange(len(x), device=x.device)

    def slope(u: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(-part for part in flow(-u.detach().double().cpu().expand(len(x)), y, rows))

    assert isinstance(flow.model, TraceModel)
    y0 = (x / flow.scale[flow.data], x.new_zeros(len(x), flow.model.estimate.columns))
    # Without step_t it would step beyond the end and interpolate, and the network would be called outside of [eps, T].
    u = torch.tensor([-flow.data.lam, -flow.noise.lam], dtype=torch.float64, device=x.device)
    options: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": "dopri5", "options": {"step_t": u[1:]}}
    if torch.is_grad_enabled():
        options |= {"adjoint_params": tuple(parameters), "adjoint_options": {"step_t": u[:1]}}
    try:
        z, volumes = (odeint_adjoint if torch.is_grad_enabled() else odeint)(slope, y0, u, **options)
    except AssertionError as error:  # of steps that get too small, and states that are not finite
        raise ValueError(f"torchdiffeq gave up: {error}") from error
    return z[-1] * flow.scale[flow.noise], volumes[-1]


def joint(flow: NormalisedFlow, latent: Tensor, volumes: Tensor) -> Solution:
    """The solution from its end and the log-volumes (B, columns) that were solved with it."""
    ratio = flow.scale[flow.noise] / flow.scale[flow.data]
    return whole_flow(latent, volumes, flow.d * math.log(ratio))


def whole_flow(latent: Tensor, volumes: Tensor, added: float = 0.0) -> Solution:
    """The solution of a method without a defect, from log-volumes (B, columns) of whole flows."""
    volume = volumes.mean(1) + added
    return Solution(latent, volume, fixed_probe_error(volumes.detach()), torch.full_like(volume.detach(), math.nan))


def scipy_rk45(model: TraceModel, sde: LinearSDE, x: Tensor, eps: float, rtol: float, atol: float) -> Solution:
    """One solve of the joint system of the whole batch in time: Song et al.'s protocol."""
    from scipy.integrate import solve_ivp

    d, shape, columns, prediction = x[0].numel(), x.shape, model.estimate.columns, model.score.prediction

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y[: x.numel()]).to(x).view(shape)
        (node,) = sde.nodes([t])
        (time,) = model.times([t], state)
        out = model.evaluate(state, time).to(x.dtype)
        trace = model.traces.pop()
        check_output(state, out, t, trace)  # SciPy's first step would be NaN, and it would try it for ever
        c_x, c_r = convert(prediction, "flow", node)
        traces = c_x * d + c_r * trace
        parts = [(c_x * state + c_r * out).reshape(-1), traces.reshape(-1)]
        return torch.cat([part.double().cpu() for part in parts]).numpy()

    y0 = np.concatenate([x.double().cpu().numpy().reshape(-1), np.zeros(len(x) * columns)])
    solution = solve_ivp(slope, (eps, sde.T), y0, method="RK45", rtol=rtol, atol=atol)
    if not solution.success:
        raise ValueError(f"SciPy's RK45 gave up: {solution.message}")
    end = torch.from_numpy(solution.y[:, -1]).to(x)
    return whole_flow(end[: x.numel()].view(shape), end[x.numel() :].view(len(x), columns))
