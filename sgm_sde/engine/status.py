"""Outcome of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """Outcome of a run, as a message and a truth value.

    Attributes:
        ok: whether it reached the end with finite states, of a size that the run accounts for.
        message: what happened.
        time: the first grid time at which a state was not finite, if any.
        samples: numbers of the samples concerned.
        stopped: whether the run was stopped before its end, by the callback or by `until=`.

    Examples:
        >>> str(Status()), bool(Status(ok=False, message="not finite", samples=(3,)))
        ('completed', False)
    """

    ok: bool = True
    message: str = "completed"
    time: float | None = None
    samples: tuple[int, ...] = ()
    stopped: bool = False

    def __str__(self) -> str:
        return self.message

    def __bool__(self) -> bool:
        return self.ok
