"""CPU time that some functions take of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """CPU seconds spent in functions.

    Attributes:
        now: what tells the CPU time, of the thread or of the process.
        seconds: what was spent so far.
    """

    def __init__(self, now: Callable[[], float] = time.thread_time) -> None:
        self.now = now
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            output = function(*args, **kwargs)
            self.seconds += self.now() - start
            return output

        return timed
