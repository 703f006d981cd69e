"""Steps of an embedded pair, with the error of each sample from evaluations that the step makes anyway."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.shapes import column, dimension, row_sums
from sgm_sde.engine.adaptive.loop import Active, Attempt, State

Rhs = Callable[[Tensor, State, Tensor], State]

# Hairer, Norsett & Wanner's guess of the first step
NEGLIGIBLE = 1e-5  # size of a state or slope, in units of the tolerance, that tells nothing of the step
LEAST_FIRST_STEP = 1e-6
TRIAL_SHARE = 0.01  # of the time in which the state would change by its own size, or the slope by the tolerance
MOST_GROWN = 100  # times the trial step
FLAT = 1e-15  # a slope and its change of less are none


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
        longest: the longest step, whatever its error estimate.
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
    @property
    def longest(self) -> float: ...

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
