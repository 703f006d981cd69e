"""The samples of a run in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgm_sde.engine.executor import Position
from sgm_sde.sampling.diagnosis import Watch
from sgm_sde.scores.conditions import rows_at
from sgm_sde.scores.model import BoundScore

WATCHED = 2**16  # samples that are looked at together


@dataclass(frozen=True)
class Part:
    """By-products of the run of some samples.

    Attributes:
        sound: whether each sample was finite before the end, and at it, and whether nothing accounts for its size;
            (3, b), None without values.
        starts: the sizes (b,) of states given at T that are not of the prior's size, NaN of others; None where no
            states are given there.
        nodes: number of nodes reached.
        first_bad: finds the first node at which a state was not finite.
        trajectory: states on the way, and their times.
        position: where the run was stopped, if it was.
        draws: how often the solver and its correctors have drawn.
        nfe: network calls.
        network_evals: samples that the network saw in them.
    """

    sound: np.ndarray | None
    starts: np.ndarray | None
    nodes: int
    first_bad: Callable[[], int | None]
    trajectory: tuple[list[Tensor], list[float]]
    position: Position | None
    draws: tuple[int, int]
    nfe: int
    network_evals: int


def slices_of(size: int, batch_size: int | None) -> list[slice]:
    """The samples of a run in as few parts as may be, none in one part."""
    most = batch_size or max(size, 1)
    return [slice(i, min(i + most, size)) for i in range(0, max(size, 1), most)]


def models_of(model: BoundScore, parts: Sequence[slice], batch: int) -> Iterator[BoundScore]:
    """The model for each part of a batch, with the arguments of its samples."""
    if len(parts) == 1:
        yield model
        return
    resolved = model.resolved(batch, called=parts[0].stop - parts[0].start)
    for at in parts:
        part = model.with_kwargs(rows_at(resolved, at))
        part.rows = range(at.start, at.stop)
        yield part


class Joined:
    """The samples of all parts in one tensor, which is made when the first of them comes; one part is its own."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.x: Tensor | None = None

    def put(self, at: slice, x: Tensor) -> None:
        if len(x) == self.batch:
            self.x = x
            return
        if self.x is None:
            self.x = x.new_empty((self.batch, *x.shape[1:]))
        self.x[at] = x

    @property
    def whole(self) -> Tensor:
        assert self.x is not None
        return self.x


class WatchInBlocks:
    """A `Watch` over many samples, some of them at a time: with one number per sample, each intermediate value would be
    half a state where samples have two numbers.

    Args:
        watch: makes the watch over states (b, *) to start from.
        x: those of all samples (B, *).
    """

    def __init__(self, watch: Callable[[Tensor], Watch], x: Tensor) -> None:
        blocks = max(1, -(-len(x) // WATCHED))
        even = slices_of(len(x), max(1, -(-len(x) // blocks)))  # of one that is small, states would be kept
        self._blocks = [(at, watch(x[at])) for at in even]
        self._looks = self._blocks[0][1].looks

    def see(self, x: Tensor, output: Tensor, t: float) -> None:
        """Keep the sizes of a node's state and of the network's output there."""
        if t not in self._looks:  # most nodes, where a slice would be a large part of a small step
            return
        for at, watch in self._blocks:
            watch.see(x[at], output[at], t)

    def implausible(self, sample: Tensor, *, denoised: bool) -> Tensor:
        """Mask (B,) of final states x (B, *), denoised or not, that the run cannot account for."""
        return torch.cat([watch.implausible(sample[at], denoised=denoised) for at, watch in self._blocks])
