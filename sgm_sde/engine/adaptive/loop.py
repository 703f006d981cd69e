r"""The one adaptive loop: step size, error, acceptance and end of every sample its own.

Each sample has its time, its step, its controller and its status. Samples that have arrived or given up leave the
batch, so the cost is the sum of the samples' evaluations, not the batch size times those of the slowest. Decisions are
made on the host from one number per sample and attempt; nothing else is read back from the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.shapes import finite
from sgm_sde.engine.adaptive.controller import Controller

State = tuple[Tensor, ...]
COMPLETED = "completed"
OUT_OF_STEPS = "out of steps"
NOT_FINITE = "not finite"
STEP_TOO_SMALL = "step too small"
GIVEN_UP = "given up"
OUTCOMES = ("", COMPLETED, OUT_OF_STEPS, NOT_FINITE, STEP_TOO_SMALL, GIVEN_UP)
ON_THE_WAY = 0  # number of the first of them
ATTEMPTS_AT_NAN = 8  # each with a tenth of the step before
ROUNDINGS_A_STEP = 16  # a shorter step is made of rounding: the stages' places would coincide
SHORT_OF_THE_END = 1e-9  # a step that ends so close to the end, relative to its length, goes there


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
    longest: float = math.inf,
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
        longest: the longest step.
        batch_coupled: one step for all samples, from the root mean square of their errors.
        on_leave: called with the number of samples that have just left the batch.
    """
    running = _Running(stepper, controller, y, (start, end), max_steps, longest, batch_coupled, on_leave)
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
        longest: float,
        batch_coupled: bool,
        on_leave: Callable[[int], None] | None,
    ) -> None:
        start, end = ends
        self.stepper = stepper
        self.controller = controller
        self.end = end
        self.length = abs(end - start)
        self.longest = min(longest, self.length)
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
        h = np.copysign(np.fmin(guess, self.longest), self.end - active.u)
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
        size = np.clip(active.h * factor, -self.longest, self.longest)
        return self.controller.rounded(size, self.length)

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
