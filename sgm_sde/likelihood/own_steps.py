"""The flow and its change of volume by solvers that find their own steps, and by torchdiffeq and SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.shapes import as_time, dot, expand
from sgm_sde.engine.adaptive import (
    Active,
    Attempt,
    Controller,
    EmbeddedStepper,
    Integration,
    State,
    integrate_adaptive,
)
from sgm_sde.likelihood.checks import check_output
from sgm_sde.likelihood.errors import fixed_probe_error
from sgm_sde.likelihood.multistep import spread
from sgm_sde.likelihood.problem import FLAT, Problem, Solution
from sgm_sde.processes.linear import MarginalAt
from sgm_sde.processes.predictions import Marginal, Scalars, convert
from sgm_sde.schemes.tableaus import DOPRI5

ADAPTIVE_ERROR = 1.5  # times the sum of the embedded errors, at the tolerance of
CALIBRATED_AT = 3e-6  # a step
COARSER = 1 / 4  # power of the tolerance: coarser steps are further off, in units of the embedded errors


def rate(prediction: str, k: Marginal[Scalars], s: float) -> tuple[Scalars, Scalars]:
    """Coefficients with dz/dlambda = a_x x + a_r r, for a network's output r."""
    factor = -k.alpha * k.sigma * s / spread(k, s) ** 3
    c_x, c_r = convert(prediction, "v", k, sigma_data=s)
    return factor * c_x, factor * c_r


class NormalisedFlow:
    """The flow of z in lambda and, for a problem with a trace, of its log-volume; each sample at its own lambda.

    Args:
        problem: states and network.
        s: standard deviation of the data.
        rows: numbers of the samples that are solved for; all if not given.
        alone: whether the network is asked about those on their way alone; else about their whole batch.

    Attributes:
        lam: lambda at the end of the data, and at that of the noise or where nothing varies any more: beyond, z stays.

    Raises:
        ValueError: unless s is positive.
    """

    def __init__(
        self,
        problem: Problem,
        s: float,
        *,
        rows: Tensor | None = None,
        alone: bool = True,
    ) -> None:
        if not s > 0:
            raise ValueError(f"data_std must be positive, got {s}")
        self.problem = problem
        self.model = problem.model
        self.sde = problem.sde
        self.s = s
        self.alone = alone
        self.rows = torch.arange(len(problem.x), device=problem.x.device) if rows is None else rows
        self.data, self.noise = self.sde.nodes([problem.eps, self.sde.T])
        self.scale = {end: spread(end, s) for end in (self.data, self.noise)}
        flat = -FLAT - math.log(s)
        self.lam = {self.data: max(self.data.lam, flat), self.noise: max(self.noise.lam, flat - 1)}

    def __call__(self, lam: Tensor, y: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        """Slopes at lambda (b,), float64 on the host, for the samples of these numbers among those solved for.

        Besides the state and its volume a third part is passed on, which does not change.
        """
        z = y[0]
        t, k = self._at(lam)
        rates = rate(self.model.score.prediction, k, self.s)
        rho, a_x, a_r = (_for_each(value, z) for value in (spread(k, self.s), *rates))

        x = expand(rho, z) * z
        out, trace = self._ask(x, self.model.round_times(t.numpy(), x), self.rows[rows])
        slope = expand(a_x, x) * x + expand(a_r, x) * out.to(x.dtype)
        if trace is None:
            return (slope,)

        divergence = self.problem.d * a_x[:, None] + a_r[:, None] * trace.to(z.dtype)
        volume = rho[:, None] * divergence
        return slope, volume, *(torch.zeros_like(part) for part in y[2:])

    def _at(self, lam: Tensor) -> tuple[Tensor, MarginalAt]:
        """Times of lambda (b,), and the process there."""
        t = self.sde.time(2 * lam).clamp(self.problem.eps, self.sde.T)
        return t, self.sde.values(t)

    def _ask(self, x: Tensor, times: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's output for the samples of these numbers in the batch, and its traces (B, columns) if any."""
        model = self.model
        estimate = self.problem.estimate
        n = len(self.problem.x)
        whole = len(index) == n
        if not (whole or self.alone):  # all are asked about, these where they are and the others where they began
            x = self.problem.x.detach().index_copy(0, index, x)
            times = times[:1].expand(n).index_copy(0, index, times)
        rows = None if whole or not self.alone else index
        at: Tensor | slice = slice(None) if whole or self.alone else index
        if estimate is None:
            return model.output(x, times, rows)[at], None
        out, trace = model.with_trace(x, times, estimate, rows)
        return out[at], trace[at][:, : estimate.columns]

    def score(self, lam: Tensor, z: Tensor, slope: Tensor) -> Tensor:
        """The score in z that goes with slopes of z in lambda (b,)."""
        _, k = self._at(lam)
        rho, alpha, sigma = (expand(_for_each(value, z), z) for value in (spread(k, self.s), k.alpha, k.sigma))

        # slope = -(alpha sigma s / rho^3) v with v, which determines the noise together with the state.
        v = -slope * rho**3 / (alpha * sigma * self.s)
        noise = (alpha * self.s * v + sigma * rho * z) / rho**2
        return -rho * noise / sigma


def _for_each(value: Scalars, z: Tensor) -> Tensor:
    """A value for each sample (b,) of states z (b, *)."""
    return as_time(value).expand(len(z)).to(z)


class FlowStepper(EmbeddedStepper):
    r"""Steps of the flow with its volume, with what their errors do to the log-density added up.

    An error e of the state and e' of the volume change it by $\nabla_z\log p\cdot e - e'$. The embedded errors are
    those of the lower order: of the size of the step's own, but of other directions and signs. So neither of the two
    terms is taken to cancel the other, and the first is the root of the squares of what it is and of its mean over
    directions:

    $$ \Big((s\cdot e)^2 + \frac{|s|^2|e|^2}{d}\Big)^{1/2} + |e'|, \qquad s = \nabla_z\log p $$

    Where a step is long beside the change of the slope, as where the flow leaves the ridge between two modes, they are
    too small. The last two stages, $z_6$ and $z_7$, are at one time, and their slopes f tell that change (Hairer &
    Wanner, 1996, section IV.2); errors are taken $1 + \gamma$ times:

    $$ \gamma = |h|\,\frac{|f_7 - f_6|}{|z_7 - z_6|} $$
    """

    flow: NormalisedFlow
    _last: tuple[State, ...] = ()

    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """The right-hand side, whose last two states and slopes are kept."""
        slopes = super().rhs(t, y, index)
        self._last = (*self._last[-2:], y, slopes)
        return slopes

    def attempt(self, rows: Active) -> Attempt:
        """One step of each row."""
        attempt = super().attempt(rows)
        z, volume, total = attempt.y
        ((e, e_volume, _),) = attempt.estimates

        score = self.flow.score(torch.from_numpy(rows.u_next), z, attempt.carry[0])
        along = dot(score, e).square()
        mean = dot(score, score) * dot(e, e) / self.flow.problem.d
        off = (along + mean).sqrt() + e_volume.mean(1).abs()

        h = torch.from_numpy(abs(rows.u_next - rows.u)).to(off)
        raised = off * (1 + h * self._steepness())
        return replace(attempt, y=(z, volume, total + raised[:, None]))

    def _steepness(self) -> Tensor:
        """|f_7 - f_6| / |z_7 - z_6| of each row (b,), of the last two evaluations."""
        (z_6, *_), (f_6, *_), (z_7, *_), (f_7, *_) = self._last
        moved = z_7 - z_6
        changed = f_7 - f_6
        ratio = dot(changed, changed) / dot(moved, moved).clamp(min=torch.finfo(moved.dtype).tiny)
        return ratio.sqrt()

    @property
    def safety(self) -> float:
        """Factor of the errors' sum at these tolerances."""
        return float(ADAPTIVE_ERROR * (max(self.rtol, self.atol) / CALIBRATED_AT) ** COARSER)


class Ends(NamedTuple):
    """Other end of a flow that was solved at once.

    Attributes:
        flow: the flow.
        x: the states there, (B, *).
        volumes: log-volumes (B, columns) that were solved with them, if any.
        errors: of the log-density (B,), where they are known.
    """

    flow: NormalisedFlow
    x: Tensor
    volumes: Tensor | None = None
    errors: Tensor | None = None


def adaptive(flow: NormalisedFlow, rtol: float, atol: float) -> Ends:
    """The other end by steps of each sample's own.

    Raises:
        ValueError: where a sample does not arrive.
    """
    ends, run = by_own_steps(flow, rtol, atol)
    _require_arrived(run, flow)
    return ends


def by_own_steps(flow: NormalisedFlow, rtol: float, atol: float) -> tuple[Ends, Integration]:
    """The run of an adaptive solver and its last states, at the other end for samples that have arrived."""
    problem = flow.problem
    x = problem.x[flow.rows]
    if flow.alone:
        flow.model.resolved(len(problem.x))  # samples leave the batch
    start, end = (flow.data, flow.noise) if problem.to_noise else (flow.noise, flow.data)

    stepper, volumes = _stepper(flow, x, rtol, atol)
    y = (x / flow.scale[start], *volumes)
    span = flow.lam[start], flow.lam[end]
    run = integrate_adaptive(stepper, y, *span, max_steps=10_000, controller=Controller())
    return _ends(flow, stepper, run.y, flow.scale[end]), run


def _ends(flow: NormalisedFlow, stepper: EmbeddedStepper, y: State, scale: float) -> Ends:
    """The ends, from the parts of the last states, of which the first is x over a scale."""
    x = scale * y[0]
    if not isinstance(stepper, FlowStepper):
        return Ends(flow, x)
    _, volume, errors = y
    return Ends(flow, x, volume, stepper.safety * errors[:, 0])


def _stepper(flow: NormalisedFlow, x: Tensor, rtol: float, atol: float) -> tuple[EmbeddedStepper, tuple[Tensor, ...]]:
    """Steps of the flow from states x (B, *), and what is carried along: log-volumes and their errors, if any."""
    estimate = flow.problem.estimate
    if estimate is None:
        return EmbeddedStepper(flow, DOPRI5, rtol, atol, len(x)), ()

    stepper = FlowStepper(flow, DOPRI5, rtol, atol, len(x))
    stepper.flow = flow
    volumes = x.new_zeros(len(x), estimate.columns)
    errors = x.new_zeros(len(x), 1)
    return stepper, (volumes, errors)


def _require_arrived(run: Integration, flow: NormalisedFlow) -> None:
    """Raise ValueError, naming the first sample that has not come to the other end."""
    for i in (~run.completed).nonzero().flatten().tolist()[:1]:
        t = float(flow.sde.time(2 * float(run.t[i])))
        raise ValueError(f"the flow of sample {int(flow.rows[i])} stopped at t={t:.6g}: {run.outcome[i]}")


def adjoint(flow: NormalisedFlow, rtol: float, atol: float, parameters: Sequence[Tensor]) -> Ends:
    """The noise's end by torchdiffeq's dopri5 on the whole batch.

    Gradients are those of the adjoint equation, in memory that steps do not add to.

    Raises:
        ValueError: where torchdiffeq gives up.
    """
    from torchdiffeq import odeint, odeint_adjoint

    x = flow.problem.x
    rows = torch.arange(len(x), device=x.device)

    def slope(u: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        lam = -u.detach().double().cpu()
        return tuple(-part for part in flow(lam.expand(len(x)), y, rows))

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
        z, volumes = integrate(slope, (z, volumes), u, rtol=rtol, atol=atol, **options)
    except AssertionError as error:  # of steps that get too small, and states that are not finite
        raise ValueError(f"torchdiffeq gave up: {error}") from error

    latent = z[-1] * flow.scale[flow.noise]
    return Ends(flow, latent, volumes[-1])


def _torchdiffeq_options(u: Tensor, parameters: Sequence[Tensor] | None) -> dict[str, object]:
    """Options of a solve from u[0] to u[1], and of its adjoint where there are parameters.

    Without step_t it would step beyond the end and interpolate, and the network would be called outside of [eps, T].
    """
    options: dict[str, object] = {"method": "dopri5", "options": {"step_t": u[1:]}}
    if parameters is not None:
        options["adjoint_params"] = tuple(parameters)
        options["adjoint_options"] = {"step_t": u[:1]}
    return options


def joint(ends: Ends) -> Solution:
    """The solution from the noise's end of a flow that was solved with its volume."""
    flow = ends.flow
    volumes = ends.volumes
    assert volumes is not None
    added = flow.problem.d * math.log(flow.scale[flow.noise] / flow.scale[flow.data])
    solution = whole_flow(flow.problem, ends.x, volumes, added)
    return solution if ends.errors is None else solution._replace(error=ends.errors.detach())


def whole_flow(problem: Problem, latent: Tensor, volumes: Tensor, added: float = 0.0) -> Solution:
    """The solution of a method without a defect, from log-volumes (B, columns) of whole flows."""
    volume = volumes.mean(1) + added
    unknown = torch.full_like(volume.detach(), math.nan)
    stderr, freedom = fixed_probe_error(volumes.detach())
    if problem.trace.fixed is None:
        stderr, freedom = torch.zeros_like(stderr), torch.full_like(stderr, math.inf)
    return Solution(latent, volume, stderr, freedom, unknown, unknown, unknown, unknown)


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
        model = self.problem.model
        x, _ = self.split(y)
        out, trace = self._with_trace(x, t)
        (node,) = problem.sde.nodes([t])
        c_x, c_r = convert(model.score.prediction, "flow", node)
        states = c_x * x + c_r * out
        volumes = c_x * problem.d + c_r * trace
        parts = [part.reshape(-1).double().cpu() for part in (states, volumes)]
        return torch.cat(parts).numpy()

    def _with_trace(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The network's output at states x (B, *) and time t, and its trace (B, columns)."""
        model = self.problem.model
        (time,) = model.times([t], x)
        out, trace = model.with_trace(x, time, self.problem.trace)
        out = out.to(x.dtype)
        trace = trace[:, : self.problem.trace.columns]
        check_output(x, out, t, trace)  # SciPy's first step would be NaN, and it would try it for ever
        return out, trace


def scipy_rk45(problem: Problem, rtol: float, atol: float) -> Solution:
    """One solve of the joint system of the whole batch in time: Song et al.'s protocol."""
    from scipy.integrate import solve_ivp

    system = _JointSystem(problem)
    span = problem.eps, problem.sde.T
    found = solve_ivp(system.slope, span, system.start(), method="RK45", rtol=rtol, atol=atol)
    if not found.success:
        raise ValueError(f"SciPy's RK45 gave up: {found.message}")
    latent, volumes = system.split(found.y[:, -1])
    return whole_flow(problem, latent, volumes)
