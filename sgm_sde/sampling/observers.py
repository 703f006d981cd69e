"""Observers of a run on a grid: callback, progress bar, trajectory, and a node at which to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sgm_sde._utils.checks import described
from sgm_sde.engine.times import same_time
from sgm_sde.grids import Grid
from sgm_sde.sampling.options import Record, StepInfo
from sgm_sde.scores.model import BoundScore


@contextmanager
def progress_bar(progress: bool, total: int, name: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Advances a progress bar by as much as it is called with; does nothing where none is asked for."""
    if not progress:
        yield lambda n: None
        return
    from tqdm.auto import tqdm

    with closing(tqdm(total=total, desc=name, unit=unit)) as bar:
        yield bar.update


@dataclass(eq=False)
class Monitor:
    """Observers of the run of some samples, called at its nodes.

    Args:
        grid: of the run.
        model: the network with the arguments of these samples.
        record: callback and progress bar.
        advance: advances the bar.
        nodes: whose states are kept.
        keep_end: whether the denoised end is kept, too.
        stop: node to stop at.

    Attributes:
        looks_on: whether anything is to be done at a node.
        states: those of the trajectory.
        times: theirs.
    """

    grid: Grid
    model: BoundScore
    record: Record
    advance: Callable[[int], None]
    nodes: frozenset[int]
    keep_end: bool
    stop: int | None

    def __post_init__(self) -> None:
        watched = bool(self.nodes) or self.stop is not None
        self.callback = self.record.callback
        self.looks_on = self.callback is not None or self.record.progress or watched
        self.states: list[Tensor] = []
        self.times: list[float] = []
        self.denoised: Tensor | None = None
        self.stopped = False

    def on_output(self, x: Tensor, output: Tensor, t: float) -> None:
        """Keep the estimate of the data that a step starts from."""
        if self.callback is not None and self.model.sde.marginal_kind != "unknown":
            self.denoised = self.model.predict("data", x, t, output)

    def on_node(self, i: int, x: Tensor) -> bool:
        """Observe a node's state; returns whether to stop."""
        if i in self.nodes:
            self._keep(self.grid.times[i], x)
        if i == 0:
            return False

        self.advance(1)
        asked_to_stop = self.callback is not None and self._call_back(self.callback, i, x)
        self.stopped = (asked_to_stop and i < self.grid.steps) or i == self.stop
        return self.stopped

    def _call_back(self, callback: Callable[[StepInfo], bool | None], i: int, x: Tensor) -> bool:
        """True if the callback asks to stop after the step to node i."""
        t, t_next = self.grid.times[i - 1 : i + 1]
        info = StepInfo(i - 1, self.grid.steps, t, t_next, x.clone(), self.denoised, self.model.nfe)
        answer = callback(info)
        if isinstance(answer, Tensor | np.ndarray) and math.prod(answer.shape) != 1:
            raise ValueError(f"the callback must return True to stop, or nothing, got {described(answer)}")
        return answer in (True,)  # equal to True: numpy's and torch's, too

    def finish(self, x: Tensor) -> None:
        """Observe the result."""
        if self.keep_end and not self.stopped:
            self._keep(0.0, x)

    def _keep(self, t: float, x: Tensor) -> None:
        self.states.append(x.clone())
        self.times.append(t)


def observed_nodes(
    trajectory: str | Sequence[float] | None, grid: Grid, denoise: bool, ends_in_data: bool = False
) -> tuple[frozenset[int], bool]:
    """The nodes whose states to keep, and whether to keep the denoised end, or one in data, which stands at t = 0."""
    if trajectory is None:
        return frozenset(), False
    if isinstance(trajectory, str):
        return frozenset(range(len(grid.times))), denoise

    to_data = denoise or ends_in_data
    end = to_data and any(t == 0 for t in trajectory)
    return frozenset(_node_at(t, grid) for t in trajectory if not (to_data and t == 0)), end


def _node_at(t: float, grid: Grid) -> int:
    """Number of the node at a time of a trajectory."""
    nearest = min(range(len(grid.times)), key=lambda i: abs(grid.times[i] - t))
    if not same_time(grid.times[nearest], t):
        raise ValueError(f"trajectory time {t} is not on the grid; the nearest of its times is {grid.times[nearest]}")
    return nearest


def node_to_stop_at(until: float | None, grid: Grid, first: int) -> int | None:
    """Number of the node at the time until which to run, of a run that starts at the node `first`."""
    if until is None:
        return None
    for i in range(first + 1, grid.steps):
        if same_time(grid.times[i], until):
            return i

    inside = grid.times[first + 1 : -1]
    nearest = f"; the nearest is {min(inside, key=lambda t: abs(t - until))}" if inside else ""
    raise ValueError(f"until must be a time of the grid between its ends, got {until}{nearest}")
