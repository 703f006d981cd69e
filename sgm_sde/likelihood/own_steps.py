"""The flow and its change of volume by steps of each sample's own."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.shapes import dot, flat
from sgm_sde.engine.adaptive import (
    Active,
    Attempt,
    Controller,
    EmbeddedStepper,
    Integration,
    State,
    integrate_adaptive,
    rms,
)
from sgm_sde.engine.places import AtPlaces
from sgm_sde.likelihood.errors import (
    error_of_step,
    fixed_probe_error,
    ratio,
    roughness_of_step,
    rounded,
    safety_of_steps,
    sensitivity,
    smoothness,
    stiffness,
)
from sgm_sde.likelihood.multistep import spread, trust
from sgm_sde.likelihood.problem import FLAT, Problem, Solution
from sgm_sde.likelihood.results import BY_JUMPS, BY_NOISE
from sgm_sde.likelihood.trace import some_of
from sgm_sde.processes.linear import LinearNode
from sgm_sde.processes.predictions import Marginal, Scalars, convert
from sgm_sde.schemes.tableaus import DOPRI5

CALLS_A_STEP = 6
ATTEMPTS = 10_000  # of a sample at most
MOST_GROWTH = 3.0  # logarithm of that of an error over a step

# Of slopes of a step null rules of a high degree leave E_1, those of a low one E_2: see `roughness_of_step`.
RESOLVED = 0.5  # E_1 / E_2 below which they are smooth
SHORT = 0.1  # gamma of `stiffness` below which a step that leaves more has met a jump, or noise; else it is too long
NOISY = 0.2  # share of steps with such slopes from which a sample is given up
LEAST_STEPS = 40  # after which that is told
FALLS = 4  # power of the step with which E_1 of smooth slopes falls
OF_JUMP = 0.6  # times the step and E_1, the size of the error that a jump leaves
JUMPS = 3  # power of E_1 / E_2, the share of E_1 that is a jump
SEEN = 0.1  # share of what jumps leave in the error, from which more of them are missed
MISSED = 7.5  # times what is beyond, in size
MOST_MISSED = 1.5  # times the error at most
GROWN = 20.0  # times the E_1 that is to be expected of smooth slopes: what is more is a jump


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
        coefficients: of the flow, at each sample's lambda.

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
        still = -FLAT - math.log(s)
        self.lam = {self.data: max(self.data.lam, still), self.noise: max(self.noise.lam, still - 1)}
        self.coefficients = AtPlaces(_Coefficients, self._values)

    @property
    def ends(self) -> tuple[LinearNode, LinearNode]:
        """The two ends, in the direction of the problem."""
        return (self.data, self.noise) if self.problem.to_noise else (self.noise, self.data)

    def __call__(self, lam: Tensor, y: State, rows: Tensor) -> State:
        """Slopes at lambda, (b,) or (1,) of all, float64 on the host, for samples of these numbers among those solved
        for."""
        z = y[0]
        k = self.coefficients.at(lam, z)
        x = k.rho * z
        out, trace = self._ask(x, k.t.expand(len(x)).contiguous(), self.rows[rows])
        slope = k.a_x * x + k.a_r * out.to(x.dtype)
        if trace is None:
            return (slope,)

        a_x, a_r, rho = (flat(weight)[:, :1] for weight in (k.a_x, k.a_r, k.rho))
        return slope, rho * (self.problem.d * a_x + a_r * trace.to(z.dtype))

    def _values(self, lam: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """The fields of `_Coefficients` at lambda (m,)."""
        t = self.sde.time(2 * lam).clamp(self.problem.eps, self.sde.T)
        k = self.sde.values(t)
        rho = spread(k, self.s)
        a_x, a_r = rate(self.model.score.prediction, k, self.s)
        return self.model.round_times(t.numpy(), like), rho, a_x, a_r, (rho / k.sigma) ** 2, trust(k, self.s)

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
        seen = None if whole or self.alone else index
        if estimate is None:
            return some_of(model.output(x, times, rows), seen), None
        out, trace = model.with_trace(x, times, estimate, rows, seen)
        return some_of(out, seen), trace[:, : estimate.columns]

    def score(self, lam: Tensor, z: Tensor, slope: Tensor) -> Tensor:
        r"""The score in z that goes with slopes of z in lambda (b,): $(\rho/\sigma)^2\,dz/d\lambda - z$."""
        return self.coefficients.at(lam, z).score * slope - z

    def trusted(self, lam: Tensor, z: Tensor) -> Tensor:
        """Share (b,) of the score that is trusted at lambda (b,)."""
        return flat(self.coefficients.at(lam, z).trusted)[:, 0]


class _Coefficients(NamedTuple):
    """Time, and coefficients of the flow, at some lambda.

    Attributes:
        t: times, as the network is given them.
        rho: x / z.
        a_x: coefficient of the state in dz/dlambda.
        a_r: that of the network's output.
        score: that of dz/dlambda in the score in z.
        trusted: share of the score that is trusted.
    """

    t: Tensor
    rho: Tensor
    a_x: Tensor
    a_r: Tensor
    score: Tensor
    trusted: Tensor


class Resolving(EmbeddedStepper):
    """Steps of the flow that keep what they were made of, and give up samples on which they resolve nothing.

    Args:
        flow: the flow.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        limits: attempts of each sample (B,), lowered to none for one that is given up; none is if not given.
        z: the first states (B, *).

    Slopes are noise where no polynomial of a higher degree follows them better, short as the step is beside what is
    near.
    """

    _lam: Tensor  # of the last stage
    _gamma: Tensor  # (b,), of the step that is tried, see `stiffness`
    _noisy: np.ndarray  # (b,), whether its slopes are noise

    def __init__(self, flow: NormalisedFlow, rtol: float, atol: float, limits: np.ndarray | None, z: Tensor) -> None:
        super().__init__(flow, DOPRI5, rtol, atol, len(z), flow.coefficients.prepare)
        self.flow = flow
        self.limits = limits
        self.given_up = np.full(len(z), "", dtype=object)  # why a sample was
        self._stages: list[tuple[State, State]] = []  # states and slopes of a step, but for the first
        self._left = torch.full_like(flat(z)[:, 0], math.inf)  # E_1 of the last attempt, as if smooth, for a step of 1
        self._steps = np.zeros((2, len(z)))  # that were taken, and those of them on which slopes were noise

    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """The right-hand side, whose states and slopes are kept."""
        slopes = super().rhs(t, y, index)
        self._stages.append((y, slopes))
        self._lam = t
        return slopes

    def attempt(self, active: Active) -> Attempt:
        """One step of each sample."""
        first = active.carry
        self._stages.clear()
        attempt = super().attempt(active)
        slopes = [first, *(slope for _, slope in self._stages)]
        del slopes[-2]  # at the same time as the last
        parts = []
        for part in zip(*slopes, strict=True):
            rows = torch.stack([flat(slope) for slope in part])
            parts.append(roughness_of_step(rows))

        shares = [share for _, share in parts]
        rough = torch.stack(shares).amin(0) >= RESOLVED
        self._gamma = stiffness(torch.from_numpy(active.h), *self._between())
        noisy = rough & (self._gamma < SHORT)
        self._noisy = noisy.cpu().numpy()
        of_jumps = self._of_jumps(active, *parts[-1])
        self.attempted(active, attempt, of_jumps)
        return attempt

    def _between(self) -> tuple[Tensor, Tensor]:
        """From the last stage but one to the last, which are at one time: how states change (b, *), and slopes."""
        (z_6, *_), (f_6, *_) = self._stages[-2]
        (z_7, *_), (f_7, *_) = self._stages[-1]
        return z_7 - z_6, f_7 - f_6

    def _of_jumps(self, active: Active, left: Tensor, share: Tensor) -> Tensor:
        r"""Error (b,) that jumps of slopes may leave in their integral over a step h.

        $$ 0.6\,h\,E_1 \max\big((E_1/E_2)^3,\,1 - 20\,E_1^-/E_1\big) \min\big(1,\,0.1/\gamma\big)^2 $$

        with the $E_1^-$ that the attempt before makes one expect of smooth slopes, and `left` for $E_1$, `share` for
        $E_1/E_2$. Steps that are long beside what is near, $\gamma > 0.1$, leave as much of smooth slopes.
        """
        index = active.index
        h = torch.from_numpy(np.abs(active.h)).to(left)
        smooth = h**FALLS
        expected = self._left[index] * smooth
        self._left[index] = left / smooth
        beyond = 1 - ratio(GROWN * expected, left)
        jumps = torch.maximum(share**JUMPS, beyond.clamp(min=0.0))
        jumps = jumps * ratio(torch.full_like(left, SHORT), self._gamma).clamp(max=1.0).square()
        return OF_JUMP * h * jumps * left

    @abstractmethod
    def attempted(self, active: Active, attempt: Attempt, of_jumps: Tensor) -> None:
        """Take note of a step, with what jumps of the last part of the slopes within it may do, (b,)."""

    @abstractmethod
    def taken(self, samples: Tensor, rows: Tensor) -> None:
        """Take note that the samples have taken the steps of these rows."""

    def advance(self, samples: np.ndarray, u: np.ndarray, ok: np.ndarray) -> None:
        """Add what the accepted steps' errors do, and give up samples on which nothing is resolved."""
        device = self._left.device
        arrived = samples[ok]
        rows = np.flatnonzero(ok)
        on_device = [torch.from_numpy(numbers).to(device) for numbers in (arrived, rows)]
        self.taken(*on_device)

        taken, noisy = self._steps
        taken[arrived] += 1
        noisy[arrived] += self._noisy[ok]
        self.give_up((taken >= LEAST_STEPS) & (noisy > NOISY * taken), BY_NOISE)

    def give_up(self, samples: np.ndarray, reason: str) -> None:
        """Let the samples of a mask (B,) make no further step, where attempts are limited."""
        if self.limits is not None:
            self.limits[samples] = 0
            self.given_up[samples] = reason


class FlowStepper(Resolving):
    """Steps of the flow with its volume, with what their errors do to the log-density added up: raised where steps are
    long or slopes jump, as sizes, with signs, and the squares of what rounding does.

    A sample is given up as soon as jumps of the trace have left more than `most` (B,): shorter steps meet as many.
    """

    _of_step: Tensor  # what the errors of the step that is tried do, (b, 5)

    def __init__(
        self, flow: NormalisedFlow, rtol: float, atol: float, limits: np.ndarray | None, z: Tensor, most: Tensor | None
    ) -> None:
        super().__init__(flow, rtol, atol, limits, z)
        self.most = most
        self._sums = z.new_zeros(len(z), 5)

    def attempted(self, active: Active, attempt: Attempt, of_jumps: Tensor) -> None:
        """Find what the errors of the step do."""
        ((e, e_volume),) = attempt.estimates
        (z_7, _), (f_7, _) = self._stages[-1]

        score = self.flow.score(self._lam, z_7, f_7)
        size = error_of_step(score, e, e_volume)
        raised = size * (1 + self._gamma)
        signed = dot(score, e) - e_volume.mean(1)
        rounding = self.flow.trusted(self._lam, z_7).square() * sensitivity(z_7, score)
        self._of_step = torch.stack([raised, size, signed, rounding, of_jumps], 1)

    def taken(self, samples: Tensor, rows: Tensor) -> None:
        """Add what the accepted steps' errors do."""
        self._sums.index_add_(0, samples, self._of_step.index_select(0, rows))
        if self.most is not None:
            of_jumps = self._sums[:, 4]
            self.give_up((of_jumps > self.most).cpu().numpy(), BY_JUMPS)

    def errors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The error of the log-density (B,), what of it are jumps of the trace, what a relative change by 1 of the
        states does to it on the way, and how much more it would be but for the signs of the steps' errors."""
        raised, size, signed, rounding, of_jumps = self._sums.unbind(1)
        whole = safety_of_steps(self.rtol, self.atol) * raised
        embedded = smoothness(signed, size) * whole
        error = embedded + of_jumps
        missed = (MISSED * (of_jumps - SEEN * error)).clamp(min=0.0)
        missed = torch.minimum(missed, MOST_MISSED * error)
        return error + missed, of_jumps + missed, rounding.sqrt(), whole - embedded


class StateStepper(Resolving):
    r"""Steps of the flow alone, with the error of the state that those so far leave: it grows as what is between the
    last two stages does, which are at one time.

    $$ E \leftarrow E\,\exp\frac{h\,(f_7 - f_6)\cdot(z_7 - z_6)}{|z_7 - z_6|^2} + |e| $$
    """

    _of_step: Tensor  # growth over the step that is tried, and its own error, (b, 2)

    def __init__(self, flow: NormalisedFlow, rtol: float, atol: float, limits: np.ndarray | None, z: Tensor) -> None:
        super().__init__(flow, rtol, atol, limits, z)
        self._error = z.new_zeros(len(z))

    def attempted(self, active: Active, attempt: Attempt, of_jumps: Tensor) -> None:
        """Find the error of the step, and by what one before it grows."""
        ((e,),) = attempt.estimates
        ((z_7,), _) = self._stages[-1]
        h = torch.from_numpy(active.h).to(e)
        moved, changed = self._between()
        of_rounding = rounded(moved.dtype) ** 2 * dot(z_7, z_7)  # a change of less says nothing
        growth = ratio(h * dot(changed, moved), dot(moved, moved) + of_rounding)
        factor = growth.clamp(-MOST_GROWTH, MOST_GROWTH).exp()
        self._of_step = torch.stack([factor, rms(e) + of_jumps], 1)

    def taken(self, samples: Tensor, rows: Tensor) -> None:
        """Let errors grow, and add those of the steps."""
        factor, size = self._of_step.index_select(0, rows).unbind(1)
        self._error[samples] = self._error[samples] * factor + size

    def error(self) -> Tensor:
        """Root mean square error (B,) of the states z."""
        return safety_of_steps(self.rtol, self.atol) * self._error


class Ends(NamedTuple):
    """Other end of a flow that was solved at once.

    Attributes:
        flow: the flow.
        x: the states there, (B, *).
        errors: of the log-density (B,) with volumes, else of the states in their units.
        volumes: log-volumes (B, columns) that were solved with them, if any.
        of_jumps: what of the errors are jumps of the trace (B,), where it is known.
        moved: what a relative change by 1 of the states does to the log-density on the way (B,), where it is known.
        given_up: why each sample was given up (B,); empty where it was not.
        by_signs: what the signs of the steps' errors have taken off the errors (B,), where they have.
    """

    flow: NormalisedFlow
    x: Tensor
    errors: Tensor
    volumes: Tensor | None = None
    of_jumps: Tensor | None = None
    moved: Tensor | None = None
    given_up: np.ndarray | None = None
    by_signs: Tensor | None = None


def adaptive(flow: NormalisedFlow, rtol: float, atol: float) -> Ends:
    """The other end by steps of each sample's own.

    Raises:
        ValueError: where a sample does not arrive.
    """
    ends, run = by_own_steps(flow, rtol, atol)
    _require_arrived(run, flow)
    return ends


def by_own_steps(
    flow: NormalisedFlow, rtol: float, atol: float, limits: np.ndarray | None = None, most: Tensor | None = None
) -> tuple[Ends, Integration]:
    """The run of an adaptive solver and its last states, at the other end for samples that have arrived.

    `limits` are the attempts of each sample (B,), which become none for those that are given up, since shorter steps
    resolve nothing; `most` is what jumps of the trace may leave in its log-density (B,).
    """
    problem = flow.problem
    x = problem.x[flow.rows]
    if flow.alone:
        flow.model.resolved(len(problem.x))  # samples leave the batch
    start, end = flow.ends

    z = x / flow.scale[start]
    y: State = (z,)
    stepper: StateStepper | FlowStepper = StateStepper(flow, rtol, atol, limits, z)
    if problem.estimate is not None:
        y = z, x.new_zeros(len(x), problem.trace.columns)
        stepper = FlowStepper(flow, rtol, atol, limits, z, most)

    span = flow.lam[start], flow.lam[end]
    attempts = ATTEMPTS if limits is None else limits
    run = integrate_adaptive(stepper, y, *span, max_steps=attempts, controller=Controller())
    z, *volumes = run.y
    latent = flow.scale[end] * z
    if isinstance(stepper, FlowStepper):
        (volume,) = volumes
        error, of_jumps, moved, by_signs = stepper.errors()
        return Ends(flow, latent, error, volume, of_jumps, moved, stepper.given_up, by_signs), run
    return Ends(flow, latent, flow.scale[end] * stepper.error(), given_up=stepper.given_up), run


def _require_arrived(run: Integration, flow: NormalisedFlow) -> None:
    """Raise ValueError, naming the first sample that has not come to the other end."""
    for i in (~run.completed).nonzero().flatten().tolist()[:1]:
        t = float(flow.sde.time(2 * float(run.t[i])))
        sample = flow.problem.first + int(flow.rows[i])
        raise ValueError(f"the flow of sample {sample} stopped at t={t:.6g}: {run.outcome[i]}")


def joint(ends: Ends) -> Solution:
    """The solution from the noise's end of a flow that was solved with its volume."""
    flow = ends.flow
    volumes = ends.volumes
    assert volumes is not None
    added = flow.problem.d * math.log(flow.scale[flow.noise] / flow.scale[flow.data])
    solution = whole_flow(flow.problem, ends.x, volumes, ends.errors, ends.moved, added)
    return solution if ends.of_jumps is None else solution._replace(of_kinks=ends.of_jumps)


def whole_flow(
    problem: Problem, latent: Tensor, volumes: Tensor, error: Tensor, moved: Tensor | None = None, added: float = 0.0
) -> Solution:
    """The solution of a method without a defect, from log-volumes (B, columns) of whole flows, its error (B,), and what
    a relative change by 1 of its states does on the way."""
    volume = volumes.mean(1) + added
    unknown = torch.full_like(volume.detach(), math.nan)
    stderr, freedom = fixed_probe_error(volumes.detach())
    if problem.trace.fixed is None:
        stderr, freedom = torch.zeros_like(stderr), torch.full_like(stderr, math.inf)
    size = volume.detach()
    rounding = rounded(size.dtype) * (size.abs() if moved is None else torch.hypot(size, moved))
    return Solution(latent, volume, stderr, freedom, error.detach(), rounding, unknown, unknown, unknown)
