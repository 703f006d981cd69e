r"""The one adaptive loop: step size, error, acceptance and end of every sample its own.

Each sample has its time, its step, its controller and its status. Samples that have arrived or given up leave the
batch, so the right-hand side sees the sum over samples and not the batch times the slowest. Decisions are made on the
host from one number a sample and attempt; nothing else is read back from the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sgm_sde._checks import check_integer, number
from sgm_sde._shapes import finite, flat
from sgm_sde._value import Value

State = tuple[Tensor, ...]
Rhs = Callable[[Tensor, State, Tensor], State]

COMPLETED = "completed"
OUT_OF_STEPS = "out of steps"
NOT_FINITE = "not finite"
STEP_TOO_SMALL = "step too small"
GIVEN_UP = "given up"
OUTCOMES = ("", COMPLETED, OUT_OF_STEPS, NOT_FINITE, STEP_TOO_SMALL, GIVEN_UP)
ATTEMPTS_AT_NAN = 8  # each with a tenth of the step before


@dataclass(frozen=True)
class Controller(Value):
    r"""PI step size controller: the next step from the errors of this one and the last.

    $$ h' = h \cdot \min(f_{\max}, \max(f_{\min}, \theta\,E^{-k_I/q}\,E_{\text{last}}^{\,k_P/q})) $$

    with q the order of the error estimate. After a rejection $k_P = 0$, and the next accepted step does not grow.

    Args:
        safety: theta.
        integral: k_I.
        proportional: k_P.
        smallest: f_min, of one change.
        largest: f_max.
        digits: binary digits that a step keeps, relative to the run's length; all if not given. Runs that differ by
            rounding then take the same steps, without which they would see a Brownian path at other places.

    Source: Gustafsson, 1991, doi:10.1145/210232.210242; Hairer & Wanner, 1996, section IV.2.

    Examples:
        >>> Controller().factor(np.array([1.0, 1e-9]), np.array([1.0, 1.0]), 5)
        array([ 0.9, 10. ])
    """

    safety: float = 0.9
    integral: float = 0.7
    proportional: float = 0.4
    smallest: float = 0.2
    largest: float = 10.0
    digits: int | None = None

    def rounded(self, h: np.ndarray, length: float) -> np.ndarray:
        """Steps with as many digits as they keep, not longer than given."""
        if self.digits is None:
            return h
        fraction, exponent = np.frexp(h / length)
        kept = 2.0**self.digits
        return np.ldexp(np.trunc(fraction * kept) / kept, exponent) * length

    def factor(self, error: np.ndarray, last_error: np.ndarray, order: float) -> np.ndarray:
        """The factor after an accepted step."""
        with np.errstate(divide="ignore", invalid="ignore"):
            before = np.maximum(last_error, 1e-4)
            raw = self.safety * error ** (-self.integral / order) * before ** (self.proportional / order)
        return np.clip(raw, self.smallest, self.largest)

    def after_rejection(self, error: np.ndarray, order: float) -> np.ndarray:
        """The factor after a rejected step; a tenth where the error is no number."""
        with np.errstate(divide="ignore", invalid="ignore"):
            raw = self.safety * error ** (-1 / order)
            return np.where(np.isfinite(error), np.clip(raw, self.smallest, self.safety), 0.1)


@dataclass
class Active:
    """The samples that are still on their way; everything but states on the host.

    Attributes:
        samples: indices in the batch, (b,).
        y: their states, each part (b, *).
        carry: what the last attempt left for the next, each part (b, *); () at first.
        u: where they are.
        h: the signed step to try.
        u_next: where the step ends.
        last_error: error of the last accepted step.
        last_accepted: whether the previous attempt was accepted, so that `carry` belongs to the current state.
        may_grow: whether the next step may be longer.
        nan_count: consecutive attempts with a NaN error.
    """

    samples: np.ndarray
    y: State
    carry: State
    u: np.ndarray
    h: np.ndarray
    u_next: np.ndarray
    last_error: np.ndarray
    last_accepted: np.ndarray
    may_grow: np.ndarray
    nan_count: np.ndarray

    @property
    def index(self) -> Tensor:
        """Their numbers in the batch, on the state's device."""
        return torch.from_numpy(self.samples).to(self.y[0].device)

    def select(self, at: np.ndarray) -> Active:
        """The chosen samples."""
        on_device = torch.from_numpy(at).to(self.y[0].device)
        y, carry = (tuple(part[on_device] for part in parts) for parts in (self.y, self.carry))
        hosts = (self.u, self.h, self.u_next, self.last_error, self.last_accepted, self.may_grow, self.nan_count)
        return Active(self.samples[at], y, carry, *(column[at] for column in hosts))


@dataclass
class Attempt:
    """One attempted step.

    Attributes:
        y: the states at its end.
        error: of each sample relative to the tolerance, (b,), accepted up to 1.
        carry: what continues with a sample whose step is accepted.
        kept: what goes on where it is rejected.
        estimates: of the error of `y`, part by part, where the method has such.
    """

    y: State
    error: Tensor
    carry: State
    kept: State
    estimates: Sequence[State] = ()


class Stepper(Protocol):
    """A method that can attempt a step of its own size for each sample.

    Attributes:
        order: power of the step with which its error vanishes.
        calls: evaluations of the right-hand side so far, each on all samples given.
        evaluations: the same, counted for each sample of the batch.
    """

    order: float
    calls: int
    evaluations: np.ndarray

    def first_step(self, active: Active, end: float) -> np.ndarray:
        """Positive sizes (b,) of the first step."""

    def attempt(self, active: Active) -> Attempt:
        """One step of each sample."""

    def advance(self, samples: np.ndarray, u: np.ndarray, ok: np.ndarray) -> None:
        """Told where each of the samples is now, and whether its step was accepted."""


@dataclass(frozen=True)
class Integration:
    """Final states and times of all samples.

    Attributes:
        y: last accepted states, each part (B, *).
        t: times of these states, (B,), float64 on the host.
        outcome: how each sample ended, one of `OUTCOMES`.
        accepted: accepted steps of each sample, (B,).
        rejected: rejected ones.
        evaluations: evaluations of the right-hand side by each sample, (B,).
        calls: evaluations of the right-hand side, each on all samples that were still on their way.
        not_finite: of samples whose first value that was not finite is known, the time of it.
    """

    y: State
    t: Tensor
    outcome: tuple[str, ...]
    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor
    calls: int
    not_finite: Mapping[int, float] = field(default_factory=dict)

    @property
    def completed(self) -> Tensor:
        """Mask of the samples that reached the end, (B,) on the host."""
        if self.outcome.count(COMPLETED) == len(self.outcome):
            return torch.ones(len(self.outcome), dtype=torch.bool, device="cpu")
        return torch.tensor([outcome == COMPLETED for outcome in self.outcome], device="cpu")


def integrate_adaptive(
    stepper: Stepper,
    y: State,
    start: float,
    end: float,
    *,
    max_steps: int,
    controller: Controller,
    first_step: float | None = None,
    batch_coupled: bool = False,
    on_leave: Callable[[int], None] | None = None,
) -> Integration:
    """Carry every sample from start to end with steps of its own.

    Args:
        stepper: the method.
        y: states at start, each part (B, *).
        start: where to begin.
        end: where to arrive, above or below start; the last step ends there, and nothing is evaluated beyond.
        max_steps: attempts for each sample.
        controller: of the step size.
        first_step: its size; the stepper's guess if not given.
        batch_coupled: one step for all samples, from the root mean square of their errors.
        on_leave: called with the number of samples that have just left the batch.
    """
    n, device, sign = len(y[0]), y[0].device, math.copysign(1.0, end - start)
    smallest = 16 * np.finfo(np.float64).eps * max(abs(start), abs(end))
    result, t = list(y), np.full(n, start)
    accepted, rejected, outcome = (np.zeros(n, dtype=np.int64) for _ in range(3))
    yes, no = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    at = np.full(n, start)
    active = Active(np.arange(n), y, (), at, np.zeros(n), at, np.ones(n), no, yes, np.zeros(n, dtype=np.int64))

    def leave(ended: np.ndarray) -> Active:
        """Take the samples with an outcome out of the batch."""
        out = np.flatnonzero(ended)
        if not len(out):
            return active
        samples, at = active.samples[out], torch.from_numpy(out).to(device)
        outcome[samples], t[samples] = ended[out], active.u[out]
        for k, part in enumerate(active.y):
            result[k] = result[k].index_copy(0, torch.from_numpy(samples).to(device), part[at])
        if on_leave is not None:
            on_leave(len(out))
        return active.select(np.flatnonzero(ended == 0))

    known = torch.stack([finite(part) for part in y]).all(0).cpu().numpy()
    active = leave(np.where(known, 0, OUTCOMES.index(NOT_FINITE)))
    if len(active.samples):
        size = stepper.first_step(active, end) if first_step is None else np.full(len(active.samples), first_step)
        active.h = controller.rounded(sign * np.fmin(size, abs(end - start)), abs(end - start))
    while len(active.samples):
        remaining = end - active.u
        arrives = np.abs(active.h) >= np.abs(remaining) * (1 - 1e-9)
        active.h = np.where(arrives, remaining, active.h)
        active.u_next = np.where(arrives, end, active.u + active.h)
        attempt = stepper.attempt(active)
        error = attempt.error.detach().double().cpu().numpy()
        known = np.isfinite(error)
        if batch_coupled and known.any():
            error = np.where(known, math.sqrt(np.mean(error[known] ** 2)), error)
        ok = error <= 1
        growth = controller.factor(error, active.last_error, stepper.order)
        growth = np.where(active.may_grow, growth, np.minimum(growth, 1.0))
        active.u = np.where(ok, active.u_next, active.u)
        stepper.advance(active.samples, active.u, ok)
        size = active.h * np.where(ok, growth, controller.after_rejection(error, stepper.order))
        active.h = controller.rounded(size, abs(end - start))
        active.y, active.carry = _choose(ok, attempt.y, active.y), _choose(ok, attempt.carry, attempt.kept)
        active.last_error = np.where(ok, error, active.last_error)
        active.nan_count = np.where(known, 0, active.nan_count + 1)
        active.last_accepted = active.may_grow = ok
        accepted[active.samples] += ok
        rejected[active.samples] += ~ok
        ended = np.zeros(len(ok), dtype=np.int64)
        for reason, holds in (
            (OUT_OF_STEPS, (accepted + rejected)[active.samples] >= max_steps),
            (STEP_TOO_SMALL, np.abs(active.h) < smallest),
            (NOT_FINITE, active.nan_count >= ATTEMPTS_AT_NAN),
            (NOT_FINITE, (active.nan_count > 0) & (np.abs(active.h) < smallest)),
            (COMPLETED, ok & arrives),
        ):
            ended[holds] = OUTCOMES.index(reason)
        active = leave(ended)
    arrived, failed, made = (torch.from_numpy(c) for c in (accepted, rejected, stepper.evaluations))
    reasons = tuple(np.array(OUTCOMES, dtype=object)[outcome].tolist())
    return Integration(tuple(result), torch.from_numpy(t), reasons, arrived, failed, made, stepper.calls)


def _choose(ok: np.ndarray, yes: State, no: State) -> State:
    """Sample by sample one of two states."""
    if ok.all():
        return yes
    if not ok.any():
        return no
    mask = torch.from_numpy(ok).to(yes[0].device)
    return tuple(torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(yes, no, strict=True))


class Pair(Protocol):
    r"""Two Runge-Kutta methods of different orders on the same evaluations, for $dy/du = L\,y + N(u, y)$.

    Attributes:
        name: what to call it.
        order: order of the method that is carried on.
        error_order: power of the step with which the difference of the two vanishes.
        linear: L, which the method integrates exactly; 0 for classical methods.
        c: the stages' places in the step.
        fsal: whether the last stage is the end of the step, and its evaluation the first of the next.
    """

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def error_order(self) -> int: ...
    @property
    def linear(self) -> float: ...
    @property
    def c(self) -> tuple[float, ...]: ...
    @property
    def fsal(self) -> bool: ...

    def weights(self, h: Tensor) -> Tensor:
        """The coefficients for steps h (b,): (stages + 1 + errors, 1 + stages, b).

        A row for each stage, one for the end of the step and one for each error estimate; a column for the state at
        the start and one for each evaluation.
        """

    def error(self, norms: Sequence[Tensor]) -> Tensor:
        """The error (b,) from the norms of the estimates."""


class Counting(ABC):
    """A stepper with a right-hand side whose evaluations are counted."""

    def __init__(self, batch: int) -> None:
        self.calls, self.evaluations = 0, np.zeros(batch, dtype=np.int64)

    @abstractmethod
    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """The right-hand side for the samples of numbers `index`."""

    def evaluate(self, active: Active, y: State, u: np.ndarray) -> State:
        """The right-hand side at other states and places of the rows."""
        self.calls += 1
        self.evaluations[active.samples] += 1
        return self.rhs(torch.from_numpy(u), y, active.index)

    def first(self, active: Active, known: State, stale: np.ndarray) -> State:
        """The evaluation at the start of the step: what is known, made anew for the rows where that is stale."""
        if not known or stale.all():
            return self.evaluate(active, active.y, active.u)
        if not stale.any():
            return known
        some = active.select(np.flatnonzero(stale))
        new, at = self.evaluate(some, some.y, some.u), torch.from_numpy(np.flatnonzero(stale)).to(active.y[0].device)
        return tuple(old.index_copy(0, at, part) for old, part in zip(known, new, strict=True))

    def advance(self, samples: np.ndarray, u: np.ndarray, ok: np.ndarray) -> None:
        """Told where each of the samples is now, and whether its step was accepted."""
        return


class EmbeddedStepper(Counting):
    """Steps of a pair on a right-hand side, with the error of each sample.

    The error of a part is the root mean square over its components, each over atol + rtol max(|y|, |y_next|); that of a
    sample is the largest of its parts'.
    """

    def __init__(self, rhs: Rhs, pair: Pair, rtol: float, atol: float, batch: int) -> None:
        super().__init__(batch)
        self._rhs, self.pair, self.rtol, self.atol = rhs, pair, rtol, atol
        self.order = float(pair.error_order)
        table = pair.weights(torch.ones(1, dtype=torch.float64, device="cpu"))[:, :, 0]
        self.used = [[j for j in range(table.shape[1]) if row[j] != 0] for row in table]

    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """The right-hand side."""
        return self._rhs(t, y, index)

    def first_step(self, active: Active, end: float) -> np.ndarray:
        """Hairer's guess from the slope and its change over a small step (Hairer, Norsett & Wanner, 1993, II.4)."""
        y = active.y
        first = self.evaluate(active, y, active.u)
        slope = self._slope(y, first)
        size, speed = (self._norm(v, y, y).double().cpu().numpy() for v in (y, slope))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            h0 = np.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
            h0 = np.fmin(np.abs(end - active.u), h0)
            signed = np.copysign(h0, end - active.u)
            u_next = tuple(a + column(torch.from_numpy(signed), a) * b for a, b in zip(y, slope, strict=True))
            after = self._slope(u_next, self.evaluate(active, u_next, active.u + signed))
            change = self._norm(tuple(a - b for a, b in zip(after, slope, strict=True)), y, y)
            steepest = np.fmax(speed, change.double().cpu().numpy() / h0)
            h1 = np.where(steepest <= 1e-15, 1e-6, (0.01 / steepest) ** (1 / self.order))
        active.carry = first
        return np.fmin(100 * h0, h1)

    def _slope(self, y: State, value: State) -> State:
        linear = self.pair.linear
        return tuple(linear * a + b for a, b in zip(y, value, strict=True)) if linear else value

    def attempt(self, active: Active) -> Attempt:
        """One step of each sample."""
        pair, y, stages = self.pair, active.y, len(self.pair.c)
        first = self.first(active, active.carry, active.last_accepted & (not pair.fsal))
        table = pair.weights(torch.from_numpy(active.h)).to(device=y[0].device, dtype=y[0].dtype)
        values, state = [first], y
        for i in range(1, stages):
            state = self._combine(table, i, y, values)
            place = active.u_next if pair.c[i] == 1 else active.u + pair.c[i] * active.h
            values.append(self.evaluate(active, state, place))
        end = state if pair.fsal else self._combine(table, stages, y, values)
        estimates = [self._combine(table, i, y, values) for i in range(stages + 1, len(self.used))]
        error = pair.error([self._norm(estimate, y, end) for estimate in estimates])
        return Attempt(end, error, values[-1] if pair.fsal else first, first, estimates)

    def _combine(self, table: Tensor, i: int, y: State, values: Sequence[State]) -> State:
        """Row i of the table on the state and the evaluations."""
        parts = []
        for k, start in enumerate(y):
            total: Tensor | None = None
            for j in self.used[i]:
                source = start if j == 0 else values[j - 1][k]
                weight = column(table[i, j], source)
                total = source * weight if total is None else total.addcmul_(source, weight)
            assert total is not None
            parts.append(total)
        return tuple(parts)

    def _norm(self, value: State, y: State, end: State) -> Tensor:
        norms = []
        for v, a, b in zip(value, y, end, strict=True):
            scale = torch.maximum(a.detach().abs(), b.detach().abs()).mul_(self.rtol).add_(self.atol)
            norms.append(rms(v.detach() / scale))
        return torch.stack(norms).amax(0)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (B, *) to (B,)."""
    return flat(x).square().mean(1).sqrt()


def column(weight: Tensor, x: Tensor) -> Tensor:
    """A number for each sample (B,), wherever it is, to go with x (B, *)."""
    return weight.to(device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def integrate(
    rhs: Callable[[Tensor, Any, Tensor], Any],
    y0: Tensor | State,
    t0: float,
    t1: float,
    pair: Pair,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
    controller: Controller | None = None,
    first_step: float | None = None,
    batch_coupled: bool = False,
    on_leave: Callable[[int], None] | None = None,
) -> Integration:
    r"""Solve $dy/dt = L\,y + N(t, y)$ with steps of their own for every sample, forwards or backwards in t.

    Nothing is evaluated outside of [t0, t1]. A sample that has arrived, run out of steps or met a value that is not
    finite leaves the batch in its last accepted state, and the others go on.

    Args:
        rhs: N, as `rhs(t, y, index)` with t (b,) in float64 on the host, y of the form of `y0` with the b samples that
            are on their way, and index (b,) their numbers, by which to select whatever else belongs to a sample.
        y0: initial state (B, *), or a tuple of such: a state and its log-density, say.
        t0: where to begin.
        t1: where to end.
        pair: the method, such as `sgm_sde.schemes.DOPRI5`.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        max_steps: attempts for each sample.
        controller: of the step size; PI if not given.
        first_step: its size; from the slope if not given, which takes one evaluation more.
        batch_coupled: one step for all samples, from the root mean square of their errors.
        on_leave: called with the number of samples that have just left the batch.

    Raises:
        ValueError: for tolerances or limits out of range.

    Examples:
        >>> from sgm_sde.schemes import DOPRI5
        >>> y0 = torch.ones(2, 1, dtype=torch.float64)
        >>> end = integrate(lambda t, y, index: -y, y0, 0.0, 1.0, DOPRI5, rtol=1e-9, atol=1e-9)
        >>> bool((end.y[0] - math.exp(-1)).abs().max() < 1e-9), end.outcome
        (True, ('completed', 'completed'))
    """
    check_tolerances(rtol, atol, max_steps)
    if not (math.isfinite(t0) and math.isfinite(t1) and t0 != t1):
        raise ValueError(f"the ends must be finite and different, got {t0} and {t1}")
    single = isinstance(y0, Tensor)
    y = (y0,) if isinstance(y0, Tensor) else tuple(y0)
    parts: Rhs = (lambda t, y, index: (rhs(t, y[0], index),)) if single else rhs
    return integrate_adaptive(
        EmbeddedStepper(parts, pair, rtol, atol, len(y[0])),
        y,
        t0,
        t1,
        max_steps=max_steps,
        controller=controller or Controller(),
        first_step=first_step,
        batch_coupled=batch_coupled,
        on_leave=on_leave,
    )


def check_tolerances(rtol: float, atol: float, max_steps: int) -> None:
    """Raise ValueError for values out of range."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        number(name, value, least=0, most=1e12)  # so large a tolerance accepts every step, and its square is finite
    if rtol == atol == 0:
        raise ValueError("rtol and atol cannot both be 0")
    check_integer("max_steps", max_steps)
