r"""The one adaptive loop: step size, error, acceptance and end of every sample its own.

Each sample has its time, its step, its controller and its status. Samples that have arrived or given up leave the
batch, so the cost is the sum of the samples' evaluations, not the batch size times those of the slowest. Decisions are
made on the host from one number per sample and attempt; nothing else is read back from the device.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, number, real, require_function
from sgm_sde._utils.shapes import column, dimension, finite, row_sums
from sgm_sde.identity import Value

State = tuple[Tensor, ...]
Rhs = Callable[[Tensor, State, Tensor], State]

COMPLETED = "completed"
OUT_OF_STEPS = "out of steps"
NOT_FINITE = "not finite"
STEP_TOO_SMALL = "step too small"
GIVEN_UP = "given up"
OUTCOMES = ("", COMPLETED, OUT_OF_STEPS, NOT_FINITE, STEP_TOO_SMALL, GIVEN_UP)
ON_THE_WAY = 0  # number of the first of them

ATTEMPTS_AT_NAN = 8  # each with a tenth of the step before
ROUNDINGS_A_STEP = 16  # a shorter step is made of rounding: the stages' places would coincide
FACTOR_AT_NAN = 0.1  # of the step after an attempt whose error is no number
LEAST_LAST_ERROR = 1e-4  # the last error from which the next step is predicted is at least so large
LARGEST_TOLERANCE = 1e12  # accepts every step, and its square is finite
SHORT_OF_THE_END = 1e-9  # a step that ends so close to the end, relative to its length, goes there

# Hairer, Norsett & Wanner's guess of the first step
NEGLIGIBLE = 1e-5  # size of a state or slope, in units of the tolerance, that tells nothing of the step
LEAST_FIRST_STEP = 1e-6
TRIAL_SHARE = 0.01  # of the time in which the state would change by its own size, or the slope by the tolerance
MOST_GROWN = 100  # times the trial step
FLAT = 1e-15  # a slope and its change of less are none


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
        scale = 2.0**self.digits
        return np.ldexp(np.trunc(fraction * scale) / scale, exponent) * length

    def factor(self, error: np.ndarray, last_error: np.ndarray, order: float) -> np.ndarray:
        """The factor after an accepted step."""
        with np.errstate(divide="ignore", invalid="ignore"):
            before = np.maximum(last_error, LEAST_LAST_ERROR)
            raw = self.safety * error ** (-self.integral / order) * before ** (self.proportional / order)
        return np.clip(raw, self.smallest, self.largest)

    def after_rejection(self, error: np.ndarray, order: float) -> np.ndarray:
        """The factor after a rejected step; a tenth where the error is no number."""
        with np.errstate(divide="ignore", invalid="ignore"):
            raw = self.safety * error ** (-1 / order)
            return np.where(np.isfinite(error), np.clip(raw, self.smallest, self.safety), FACTOR_AT_NAN)


@dataclass
class Active:
    """The samples that are still on their way; everything but states on the host.

    Attributes:
        samples: indices in the batch, (b,).
        y: their states, each part (b, *).
        carry: what the last attempt left for the next, each part (b, *); () at first.
        u: their times.
        h: the signed step to try.
        u_next: where the step ends.
        last_error: error of the last accepted step.
        last_accepted: whether the previous attempt was accepted, so that `carry` belongs to the current state.
        may_grow: whether the next step may be longer.
        nan_count: consecutive attempts with a NaN error.
        rejected: rejected steps so far.
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
    rejected: np.ndarray

    @property
    def index(self) -> Tensor:
        """Their numbers in the batch, on the state's device."""
        return torch.from_numpy(self.samples).to(self.y[0].device)

    def select(self, at: np.ndarray) -> Active:
        """The chosen samples."""
        rows = torch.from_numpy(at).to(self.y[0].device)
        y = tuple(part.index_select(0, rows) for part in self.y)
        carry = tuple(part.index_select(0, rows) for part in self.carry)
        columns = (
            self.u, self.h, self.u_next, self.last_error, self.last_accepted, self.may_grow, self.nan_count,
            self.rejected,
        )  # fmt: skip
        return Active(self.samples[at], y, carry, *(column.take(at) for column in columns))


@dataclass
class Attempt:
    """One attempted step.

    Attributes:
        y: the states at its end.
        error: of each sample relative to the tolerance, (b,), accepted up to 1.
        carry: what the next attempt of a sample may use where this one is accepted.
        carry_rejected: the same where it is rejected.
        estimates: of the error of `y`, part by part, where the method has such.
    """

    y: State
    error: Tensor
    carry: State
    carry_rejected: State
    estimates: Sequence[State] = ()


class Stepper(Protocol):
    """A method that can attempt a step of its own size for each sample.

    Attributes:
        order: power of the step with which its error vanishes.
        calls: evaluations of the right-hand side so far, each on all samples given.
    """

    order: float
    calls: int

    @property
    def evaluations(self) -> np.ndarray:
        """Evaluations of each sample of the batch."""

    def first_step(self, active: Active, end: float) -> np.ndarray:
        """Positive sizes (b,) of the first step."""

    def attempt(self, active: Active) -> Attempt:
        """One step of each sample."""

    def advance(self, samples: np.ndarray, u: np.ndarray, ok: np.ndarray) -> None:
        """Take note of where each of the samples is now, and whether its step was accepted."""


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
    max_steps: int | np.ndarray,
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
        max_steps: attempts for each sample, one number or (B,), which a stepper may lower on the way.
        controller: of the step size.
        first_step: its size; the stepper's guess if not given.
        batch_coupled: one step for all samples, from the root mean square of their errors.
        on_leave: called with the number of samples that have just left the batch.
    """
    running = _Running(stepper, controller, y, (start, end), max_steps, batch_coupled, on_leave)
    known = torch.stack([finite(part) for part in y]).all(0).cpu().numpy()
    running.retire(np.where(known, ON_THE_WAY, OUTCOMES.index(NOT_FINITE)))
    running.choose_first_step(first_step)
    while len(running.active.samples):
        arrives = running.choose_step()
        attempt = stepper.attempt(running.active)
        accepted = running.decide(attempt)
        running.retire(running.outcomes(accepted, arrives))
    return running.result()


class _Running:
    """The state of an adaptive run: the samples on their way, and the outcomes of all.

    Arguments are those of `integrate_adaptive`, with the start and the end as a pair.

    Attributes:
        active: the samples that are still on their way.
        attempts: those of each of these so far.
    """

    def __init__(
        self,
        stepper: Stepper,
        controller: Controller,
        y: State,
        ends: tuple[float, float],
        max_steps: int | np.ndarray,
        batch_coupled: bool,
        on_leave: Callable[[int], None] | None,
    ) -> None:
        start, end = ends
        self.stepper = stepper
        self.controller = controller
        self.end = end
        self.length = abs(end - start)
        self.max_steps = np.broadcast_to(max_steps, len(y[0]))
        self.batch_coupled = batch_coupled
        self.on_leave = on_leave
        self.smallest = ROUNDINGS_A_STEP * np.finfo(np.float64).eps * max(abs(start), abs(end))

        n = len(y[0])
        self.y = list(y)
        self.t = np.full(n, start)
        self.accepted = np.zeros(n, dtype=np.int64)
        self.rejected = np.zeros(n, dtype=np.int64)
        self.outcome = np.full(n, ON_THE_WAY)
        self.attempts = 0

        self.active = Active(
            samples=np.arange(n),
            y=y,
            carry=(),
            u=np.full(n, start),
            h=np.zeros(n),
            u_next=np.full(n, start),
            last_error=np.ones(n),
            last_accepted=np.zeros(n, dtype=bool),
            may_grow=np.ones(n, dtype=bool),
            nan_count=np.zeros(n, dtype=np.int64),
            rejected=np.zeros(n, dtype=np.int64),
        )

    def choose_first_step(self, size: float | None) -> None:
        """The size of the first step, the stepper's guess if none is given."""
        active = self.active
        n = len(active.samples)
        if not n:
            return

        guess = self.stepper.first_step(active, self.end) if size is None else np.full(n, size)
        h = np.copysign(np.fmin(guess, self.length), self.end - active.u)
        active.h = self.controller.rounded(h, self.length)

    def choose_step(self) -> np.ndarray:
        """End of each step, never beyond the run's end; True for the samples that arrive with it."""
        active = self.active
        remaining = self.end - active.u
        arrives = np.abs(active.h) >= np.abs(remaining) * (1 - SHORT_OF_THE_END)
        active.h = np.where(arrives, remaining, active.h)
        active.u_next = np.where(arrives, self.end, active.u + active.h)
        return arrives

    def decide(self, attempt: Attempt) -> np.ndarray:
        """Accept each sample's step or not (b,), and find the size of its next."""
        active = self.active
        error, known = self._errors(attempt)
        ok = error <= 1
        active.h = self._next_step(error, ok)

        failed = np.flatnonzero(~ok)
        active.u = _choose_numbers(failed, active.u_next, active.u)
        active.y = _choose(failed, attempt.y, active.y)
        active.carry = _choose(failed, attempt.carry, attempt.carry_rejected)
        self.stepper.advance(active.samples, active.u, ok)

        active.last_error = _choose_numbers(failed, error, active.last_error)
        active.nan_count = np.where(known, 0, active.nan_count + 1)
        active.last_accepted = ok
        active.may_grow = ok
        active.rejected[failed] += 1
        self.attempts += 1
        return ok

    def _errors(self, attempt: Attempt) -> tuple[np.ndarray, np.ndarray]:
        """The error that decides on each sample (b,), and whether its own is finite."""
        error = attempt.error.detach().double().cpu().numpy()
        known = np.isfinite(error)
        if self.batch_coupled and known.any():
            mean_square = np.mean(error[known] ** 2)
            error = np.where(known, math.sqrt(mean_square), error)
        return error, known

    def _next_step(self, error: np.ndarray, ok: np.ndarray) -> np.ndarray:
        """The signed size of each sample's next step, (b,)."""
        active = self.active
        order = self.stepper.order
        factor = self.controller.factor(error, active.last_error, order)

        # A step does not grow right after a rejection: what was too long there is likely to be so here.
        if not active.may_grow.all():
            factor = np.where(active.may_grow, factor, np.minimum(factor, 1.0))
        if not ok.all():
            failed = np.flatnonzero(~ok)
            factor[failed] = self.controller.after_rejection(error[failed], order)
        return self.controller.rounded(active.h * factor, self.length)

    def outcomes(self, ok: np.ndarray, arrives: np.ndarray) -> np.ndarray:
        """Outcome of each sample (b,), as a number of `OUTCOMES`; 0 for those that are still on their way."""
        active = self.active
        tiny = np.abs(active.h) < self.smallest

        # The last reason that holds counts.
        reasons = (
            (OUT_OF_STEPS, self.attempts >= self.max_steps[active.samples]),
            (STEP_TOO_SMALL, tiny),
            (NOT_FINITE, active.nan_count >= ATTEMPTS_AT_NAN),
            (NOT_FINITE, (active.nan_count > 0) & tiny),
            (COMPLETED, ok & arrives),
        )
        ended = np.full(len(ok), ON_THE_WAY)
        for reason, holds in reasons:
            np.putmask(ended, holds, OUTCOMES.index(reason))
        return ended

    def retire(self, ended: np.ndarray) -> None:
        """Take the samples with an outcome out of the batch."""
        active = self.active
        leaving = np.flatnonzero(ended)
        if not len(leaving):
            return

        samples = active.samples[leaving]
        self.outcome[samples] = ended[leaving]
        self.t[samples] = active.u[leaving]
        self.accepted[samples] = self.attempts - active.rejected[leaving]
        self.rejected[samples] = active.rejected[leaving]

        self._keep_states(leaving, samples)
        if self.on_leave is not None:
            self.on_leave(len(leaving))
        remaining = np.flatnonzero(ended == ON_THE_WAY)
        self.active = active.select(remaining)

    def _keep_states(self, leaving: np.ndarray, samples: np.ndarray) -> None:
        """Put the states of these rows of the active samples where those of samples of these numbers belong."""
        device = self.y[0].device
        rows = torch.from_numpy(leaving).to(device)
        index = torch.from_numpy(samples).to(device)
        for i, part in enumerate(self.active.y):
            self.y[i] = self.y[i].index_copy(0, index, part.index_select(0, rows))

    def result(self) -> Integration:
        """The states, times and outcomes of all samples."""
        return Integration(
            tuple(self.y),
            torch.from_numpy(self.t),
            tuple(np.array(OUTCOMES, dtype=object)[self.outcome].tolist()),
            torch.from_numpy(self.accepted),
            torch.from_numpy(self.rejected),
            torch.from_numpy(self.stepper.evaluations),
            self.stepper.calls,
        )


def _choose(failed: np.ndarray, accepted: State, rejected: State) -> State:
    """One of two states for each sample, the second for those of these numbers."""
    if not len(failed):
        return accepted
    if not accepted or len(failed) == len(rejected[0]):
        return rejected

    rows = torch.from_numpy(failed).to(accepted[0].device)
    return tuple(a.index_copy(0, rows, b.index_select(0, rows)) for a, b in zip(accepted, rejected, strict=True))


def _choose_numbers(failed: np.ndarray, accepted: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """The same of two numbers for each sample."""
    if not len(failed):
        return accepted
    chosen = accepted.copy()
    chosen[failed] = rejected[failed]
    return chosen


@runtime_checkable
class Pair(Protocol):
    r"""Two Runge-Kutta methods of different orders on the same evaluations, for $dy/du = L\,y + N(u, y)$.

    Attributes:
        name: what to call it.
        order: order of the method that is carried on.
        error_order: power of the step with which the difference of the two vanishes.
        linear: L, which the method integrates exactly; 0 for classical methods.
        c: the stages' places in the step.
        fsal: whether the last stage is the end of the step, and its evaluation the first of the next.
        source: authors and year.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
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
        self.calls = 0
        self._made = np.zeros(batch, dtype=np.int64)
        self._latest: tuple[np.ndarray, Tensor, int] | None = None  # the samples of the last ones, and how many

    @property
    def evaluations(self) -> np.ndarray:
        """Evaluations of each sample of the batch."""
        if self._latest is not None:
            samples, _, n = self._latest
            self._made[samples] += n
            self._latest = None
        return self._made

    def _count(self, active: Active) -> Tensor:
        """Count an evaluation of the active samples, and return their numbers.

        As long as no sample leaves, one number is raised: a step has several evaluations.
        """
        self.calls += 1
        if self._latest is None or self._latest[0] is not active.samples:
            self._made = self.evaluations
            self._latest = active.samples, active.index, 0
        samples, index, n = self._latest
        self._latest = samples, index, n + 1
        return index

    @abstractmethod
    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """The right-hand side for the samples of numbers `index`; t is the same tensor at the same places."""

    def evaluate(self, active: Active, y: State, u: np.ndarray | Tensor) -> State:
        """The right-hand side of the active samples at states y and times u."""
        places = u if isinstance(u, Tensor) else torch.from_numpy(u)
        return self.rhs(places, y, self._count(active))

    def first(self, active: Active, known: State, stale: np.ndarray) -> State:
        """The evaluation at the start of the step: the known one, computed anew for samples where it is stale."""
        if not known or stale.all():
            return self.evaluate(active, active.y, active.u)
        if not stale.any():
            return known

        at = np.flatnonzero(stale)
        some = active.select(at)
        new = self.evaluate(some, some.y, some.u)
        rows = torch.from_numpy(at).to(active.y[0].device)
        return tuple(old.index_copy(0, rows, part) for old, part in zip(known, new, strict=True))

    def advance(self, samples: np.ndarray, u: np.ndarray, ok: np.ndarray) -> None:
        """Take note of where each of the samples is now, and whether its step was accepted."""
        return


class EmbeddedStepper(Counting):
    """Steps of a pair on a right-hand side, with the error of each sample.

    The error of a part is the root mean square over its components, each over atol + rtol max(|y|, |y_next|); that of a
    sample is the largest of its parts'.

    Args:
        rhs: the right-hand side; see `integrate`, of the others as well.
        pair: the method.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        batch: number of samples.
        on_places: called with the places of a step's stages before they are evaluated.
    """

    def __init__(
        self,
        rhs: Rhs,
        pair: Pair,
        rtol: float,
        atol: float,
        batch: int,
        on_places: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__(batch)
        self._rhs = rhs
        self._on_places = on_places
        self.pair = pair
        self.rtol = rtol
        self.atol = atol
        self.order = float(pair.error_order)
        self._c = pair.c

        self.rows, self.classical = _rows_of(pair)
        self.used = [[j for j, weight in enumerate(row) if weight] for row in self.rows]

    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """The right-hand side."""
        return self._rhs(t, y, index)

    def first_step(self, active: Active, end: float) -> np.ndarray:
        """Hairer's guess from the slope and its change over a small step (Hairer, Norsett & Wanner, 1993, II.4)."""
        y = active.y
        first = self.evaluate(active, y, active.u)
        active.carry = first
        slope = self._slope(y, first)
        size = self._norms(y, y, y)
        speed = self._norms(slope, y, y)
        remaining = end - active.u

        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            negligible = (size < NEGLIGIBLE) | (speed < NEGLIGIBLE)
            trial = np.where(negligible, LEAST_FIRST_STEP, TRIAL_SHARE * size / speed)
            trial = np.fmin(np.abs(remaining), trial)

            change = self._change(active, slope, np.copysign(trial, remaining))
            steepest = np.fmax(speed, change / trial)
            guess = (TRIAL_SHARE / steepest) ** (1 / self.order)
            guess = np.where(steepest <= FLAT, LEAST_FIRST_STEP, guess)

        longest = MOST_GROWN * trial
        return np.fmin(longest, guess)

    def _change(self, active: Active, slope: State, step: np.ndarray) -> np.ndarray:
        """Norm of the slope's change over a step of Euler's method."""
        y = active.y
        h = torch.from_numpy(step)
        moved = tuple(a + column(h, a) * b for a, b in zip(y, slope, strict=True))
        value = self.evaluate(active, moved, active.u + step)
        after = self._slope(moved, value)
        change = tuple(a - b for a, b in zip(after, slope, strict=True))
        return self._norms(change, y, y)

    def _slope(self, y: State, value: State) -> State:
        linear = self.pair.linear
        return tuple(linear * a + b for a, b in zip(y, value, strict=True)) if linear else value

    def attempt(self, active: Active) -> Attempt:
        """One step of each sample."""
        fsal = self.pair.fsal
        n_stages = len(self._c)
        stale = active.last_accepted & (not fsal)
        first = self.first(active, active.carry, stale)
        step = self._step(active)

        values, last = self._evaluations(active, first, step)
        end = last if fsal else step(n_stages, values)
        estimates = [step(i, values) for i in range(n_stages + 1, len(self.used))]
        norms = [self._norm(estimate, active.y, end) for estimate in estimates]
        carry = values[-1] if fsal else first
        return Attempt(end, self.pair.error(norms), carry, first, estimates)

    def _evaluations(
        self, active: Active, first: State, step: Callable[[int, Sequence[State]], State]
    ) -> tuple[list[State], State]:
        """The evaluations of all stages, and the last stage's state."""
        values = [first]
        state = active.y
        for i, u in enumerate(self._places_of(active), start=1):
            state = step(i, values)
            values.append(self.evaluate(active, state, u))
        return values, state

    def _places_of(self, active: Active) -> list[Tensor]:
        """The places (b,) of the stages but for the first; the same tensor where two of them have the same."""
        shares = list(dict.fromkeys(self._c[1:]))
        table = np.empty((len(shares), len(active.u)))
        for row, c in zip(table, shares, strict=True):
            if c == 1:
                row[:] = active.u_next
            else:
                np.multiply(active.h, c, out=row)
                row += active.u

        places = torch.from_numpy(table)
        if self._on_places is not None:
            self._on_places(places)
        of_share = dict(zip(shares, places.unbind(0), strict=True))
        return [of_share[c] for c in self._c[1:]]

    def _step(self, active: Active) -> Callable[[int, Sequence[State]], State]:
        """The combination of the state and the evaluations by row i of the table, as a function of i and these.

        It is computed elementwise, so that a sample does not depend on its batch. Where samples are small, products
        with a column of one number per sample cost most by far: a classical pair needs a single one, the step.
        """
        y = active.y
        h = torch.from_numpy(active.h)
        if self.classical:
            steps = [column(h, part) for part in y]
        else:
            table = self.pair.weights(h).to(y[0])

        def step(i: int, values: Sequence[State]) -> State:
            parts = []
            for k, part in enumerate(y):
                known = [value[k] for value in values]
                if self.classical:
                    parts.append(self._classical(i, part, steps[k], known))
                else:
                    parts.append(self._weighted(i, part, table[i], known))
            return tuple(parts)

        return step

    def _classical(self, i: int, y: Tensor, h: Tensor, values: Sequence[Tensor]) -> Tensor:
        """c y + h times the sum of the evaluations with the numbers of row i."""
        weights = self.rows[i]
        first, *others = [j for j in self.used[i] if j > 0] or [1]
        total = values[first - 1] * weights[first]
        for j in others:
            total = total.add_(values[j - 1], alpha=weights[j])
        if weights[0] == 1:
            return torch.addcmul(y, total, h)
        total = total.mul_(h)
        return total.add_(y, alpha=weights[0]) if weights[0] else total

    def _weighted(self, i: int, y: Tensor, weights: Tensor, values: Sequence[Tensor]) -> Tensor:
        """The sum of state and evaluations with a weight for each sample."""
        first, *others = self.used[i]
        sources = (y, *values)
        total = sources[first] * column(weights[first], y)
        for j in others:
            total = total.addcmul_(sources[j], column(weights[j], y))
        return total

    def _norm(self, value: State, y: State, end: State) -> Tensor:
        norms = []
        for v, a, b in zip(value, y, end, strict=True):
            scale = torch.maximum(a.detach().abs(), b.detach().abs()).mul_(self.rtol).add_(self.atol)
            norms.append(rms(v.detach() / scale))
        return functools.reduce(torch.maximum, norms)

    def _norms(self, value: State, y: State, end: State) -> np.ndarray:
        """The norm of each sample on the host, in float64."""
        norms: np.ndarray = self._norm(value, y, end).double().cpu().numpy()
        return norms


def _rows_of(pair: Pair) -> tuple[list[list[float]], bool]:
    """The weights of a step of 1, and whether those of any other are the step times these, but for the state's: what
    Runge-Kutta methods have, and exponential ones have not."""
    steps = torch.tensor([1.0, 2.0], dtype=torch.float64, device="cpu")
    once, twice = pair.weights(steps).unbind(2)
    rows: list[list[float]] = once.tolist()
    of_state = twice[:, 0] == once[:, 0]
    of_slopes = twice[:, 1:] == 2 * once[:, 1:]
    return rows, bool(of_state.all() and of_slopes.all())


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (B, *) to (B,)."""
    return (row_sums(x.square()) / dimension(x)).sqrt()


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
    on_places: Callable[[Tensor], None] | None = None,
) -> Integration:
    r"""Solve $dy/dt = L\,y + N(t, y)$ with steps of their own for every sample, forwards or backwards in t.

    Nothing is evaluated outside of [t0, t1]. A sample that has arrived, run out of steps or met a value that is not
    finite leaves the batch in its last accepted state, and the others continue.

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
        on_places: called before the stages of a step are evaluated with the places t (n, b) of all but the first,
            whose rows `rhs` will be given.

    Raises:
        TypeError: for a function that takes other arguments, or an end that is no number.
        ValueError: for tolerances or limits out of range.

    Examples:
        >>> from sgm_sde.schemes import DOPRI5
        >>> y0 = torch.ones(2, 1, dtype=torch.float64)
        >>> end = integrate(lambda t, y, index: -y, y0, 0.0, 1.0, DOPRI5, rtol=1e-9, atol=1e-9)
        >>> bool((end.y[0] - math.exp(-1)).abs().max() < 1e-9), end.outcome
        (True, ('completed', 'completed'))
    """
    require_function("rhs", rhs, "of (t, y, index)", 3)
    require_function("on_leave", on_leave, "of a number of samples", 1, optional=True)
    require_function("on_places", on_places, "of places t (n, b)", 1, optional=True)
    check_tolerances(rtol, atol, max_steps)
    t0 = real("t0", t0)
    t1 = real("t1", t1)
    if not (math.isfinite(t0) and math.isfinite(t1) and t0 != t1):
        raise ValueError(f"the ends must be finite and different, got {t0} and {t1}")

    single = isinstance(y0, Tensor)
    y = (y0,) if isinstance(y0, Tensor) else tuple(y0)
    parts: Rhs = (lambda t, y, index: (rhs(t, y[0], index),)) if single else rhs
    stepper = EmbeddedStepper(parts, pair, rtol, atol, len(y[0]), on_places)
    return integrate_adaptive(
        stepper,
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
        number(name, value, least=0, most=LARGEST_TOLERANCE)
    if rtol == atol == 0:
        raise ValueError("rtol and atol cannot both be 0")
    check_integer("max_steps", max_steps)
