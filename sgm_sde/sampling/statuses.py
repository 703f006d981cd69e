"""Status of a run, and what is warned of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from sgm_sde.engine.adaptive import (
    COMPLETED,
    GIVEN_UP,
    NOT_FINITE,
    OUT_OF_STEPS,
    STEP_TOO_SMALL,
)  # fmt: skip
from sgm_sde.engine.status import Status
from sgm_sde.grids import Grid
from sgm_sde.processes.base import SDE
from sgm_sde.sampling.diagnosis import (
    ImplausibleWarning,
    StartWarning,
    UnsuitedWarning,
    listed,
    words_of_misses,
    words_of_sizes,
    words_of_starts,
)
from sgm_sde.sampling.parts import Part

SHOWN_REASONS = 4  # of samples that stopped early
_REASONS = {
    OUT_OF_STEPS: "out of steps",
    NOT_FINITE: "the score or the state is not finite beyond",
    STEP_TOO_SMALL: "the step is too small to go on",
    GIVEN_UP: "its batch was given up",
}


class NonFiniteWarning(UserWarning):
    """A state became infinite or NaN; the result's status says when, and in which samples."""


class UnfinishedWarning(UserWarning):
    """Some samples stopped before the end; the result's status says which, where and why."""


def status_on_grid(
    parts: Sequence[Part], grid: Grid, stopped: str, sde: SDE, misses: str
) -> tuple[Status, type[Warning] | None]:
    """Status of a run on a process from those of its parts, and what to warn of.

    Args:
        parts: of the run.
        grid: its times.
        stopped: by whom it was stopped, "" if it was not.
        sde: the process.
        misses: the solver, if on this grid it misses Gaussian data of any scale, else "".
    """
    checked = [part.sound for part in parts if part.sound is not None]
    if not checked:
        return Status(), None

    before_end, at_end, implausible = np.concatenate(checked, 1)
    finite = before_end & at_end
    failed = np.flatnonzero(~finite)
    reached = parts[0].nodes - 1
    if len(failed):
        node = grid.steps + 1 if before_end.all() else _first_bad_node(parts)
        at = reached if node is None else min(node, grid.steps)
        what = _non_finite(node, at, grid)
        message = f"{what} in {len(failed)} of {len(implausible)} samples"
        return _failed(message, failed, grid.times[at], stopped), NonFiniteWarning

    if stopped:
        t = grid.times[reached]
        return Status(False, f"{stopped} at t={t:.6g}", stopped=True), None

    known = [part.starts for part in parts if part.starts is not None]
    starts = np.concatenate(known) if known else None
    return plausibility(implausible, starts, sde, misses)


def _failed(message: str, failed: np.ndarray, t: float, stopped: str) -> Status:
    samples = tuple(failed.tolist())
    return Status(False, f"{message} ({listed(samples)})", t, samples, bool(stopped))


def _first_bad_node(parts: Sequence[Part]) -> int | None:
    """The first node at which a state of any part was not finite; None if a repetition meets none."""
    failed = [part for part in parts if part.sound is not None and not part.sound[0].all()]
    return min((at for part in failed if (at := part.first_bad()) is not None), default=None)


def _non_finite(found: int | None, at: int, grid: Grid) -> str:
    """Text of a state that was not finite at a node, or before it where `found` is None."""
    text = f"non-finite state at t={grid.times[at]:.6g}"
    if found is None:
        return f"{text} or before it, where is not known since the network does not repeat itself,"
    return f"{text}, after the step from t={grid.times[at - 1]:.6g}," if 0 < found == at else text


def plausibility(
    implausible: np.ndarray, starts: np.ndarray | None, sde: SDE, misses: str = ""
) -> tuple[Status, type[Warning] | None]:
    """Status of a run with finite states, and what to warn of.

    Args:
        implausible: mask (B,) of implausible samples.
        starts: the sizes (B,) of states given at T that are not of the prior's size, NaN of others; None without.
        sde: the process.
        misses: the solver, if on its grid it misses Gaussian data of any scale, else "".
    """
    strange = np.zeros_like(implausible) if starts is None else ~np.isnan(starts)
    samples = tuple(np.flatnonzero(implausible | strange).tolist())
    n = len(implausible)
    if starts is not None and strange.any():
        at = np.flatnonzero(strange).tolist()
        message = words_of_starts(starts[at].tolist(), at, n, sde)
        return Status(False, message, samples=samples), StartWarning
    if misses:
        return Status(False, words_of_misses(misses, n, sde), samples=tuple(range(n))), UnsuitedWarning
    if samples:
        return Status(False, words_of_sizes(samples, n), samples=samples), ImplausibleWarning
    return Status(), None


def adaptive_status(outcome: Sequence[str], t: Tensor, t_end: float, not_finite: Mapping[int, float]) -> Status:
    """Status of an adaptive run: samples that did not reach the end, with their times and reasons."""
    if outcome.count(COMPLETED) == len(outcome):
        return Status()

    samples = tuple(i for i, reason in enumerate(outcome) if reason != COMPLETED)
    ranked = _ranked(samples, outcome, not_finite)
    reasons = [_reason(i, outcome[i], float(t[i]), not_finite) for i in ranked[:SHOWN_REASONS]]
    if len(samples) > SHOWN_REASONS:
        reasons.append("...")
    message = f"{len(samples)} of {len(outcome)} samples stopped before t={t_end:.6g} ({'; '.join(reasons)})"

    first = ranked[0]
    time = not_finite[first] if first in not_finite else float(t[first])
    return Status(False, message, time, samples)


def _ranked(samples: Sequence[int], outcome: Sequence[str], not_finite: Mapping[int, float]) -> list[int]:
    """First the samples whose own values failed, in the order of their times; those given up with another last."""

    def rank(i: int) -> tuple[bool, bool, float]:
        return outcome[i] == GIVEN_UP, i not in not_finite, -not_finite.get(i, 0.0)

    return sorted(samples, key=rank)


def _reason(i: int, outcome: str, t: float, not_finite: Mapping[int, float]) -> str:
    """Text of why a sample stopped."""
    if i in not_finite:
        return f"sample {i}: not finite at t={not_finite[i]:.6g}"
    return f"sample {i} at t={t:.6g}: {_REASONS[outcome]}"
