"""Results of `sample`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgm_sde.engine.executor import Position
from sgm_sde.engine.noise import SampleSeeds
from sgm_sde.engine.program import Program
from sgm_sde.engine.status import Status
from sgm_sde.grids import Grid
from sgm_sde.processes.base import SDE
from sgm_sde.schemes import Solver

if TYPE_CHECKING:
    from sgm_sde.likelihood.results import LogProbResult


@dataclass(frozen=True, eq=False)
class AdaptiveStats:
    """Per-sample statistics of an adaptive run.

    Attributes:
        outcome: of each sample: "completed", "out of steps", "not finite", "step too small" or, where another library
            gave a batch up for one of its samples, "given up".
        times: time that each reached, (B,) in float64.
        accepted: accepted steps of each, (B,).
        rejected: rejected steps of each, (B,).
        evaluations: evaluations of the score at each, (B,), that of `final="denoise"` not counted.

    Examples:
        >>> import sgm_sde as sg
        >>> import torch
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sg.VPSDE())
        >>> control = sg.sample(score, sg.VPSDE(), (2, 2), solver="dopri5", seed=0).control
        >>> control.outcome, control.accepted.shape
        (('completed', 'completed'), torch.Size([2]))
    """

    outcome: tuple[str, ...]
    times: Tensor = field(repr=False)
    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor


@dataclass(frozen=True, eq=False)
class Continuation:
    """State of a run on a grid, from which `sample(..., resume=result)` continues exactly.

    Attributes:
        sde: the process.
        solver: the solver.
        grid: the times of the whole run.
        seeds: the (seed, index) pair of each sample.
        segment: the time at which the streams of noise began.
        draws: number of noises that the solver and its correctors have drawn.
        position: the node reached, the state there, and the evaluations, states and noises that later steps build on.
        program: the solver's table on the whole grid.
        noise: "independent" or "path".
        final: what the run is to return at its end.
        dtype: of the samples.
    """

    sde: SDE
    solver: Solver
    grid: Grid
    seeds: SampleSeeds
    segment: float
    draws: tuple[int, int]
    position: Position = field(repr=False)
    program: Program = field(repr=False)
    noise: str
    final: str
    dtype: torch.dtype

    @property
    def t(self) -> float:
        """The time reached."""
        return self.grid.times[self.position.node]


@dataclass(frozen=True, eq=False)
class SampleResult:
    """Samples with the record of their run.

    Attributes:
        x: samples (B, *), in the range of the data the network was trained on.
        nfe: calls of the score function by this run, each on the whole batch; with `batch_size=`, on each part of it;
            with `parallel=`, one after the other, each at several times.
        times: the grid's times, decreasing; those of the whole run if it was resumed.
        status: how the run ended; false in a boolean context if states were not finite, if samples are of a size that
            nothing in the run accounts for, or if it was stopped.
        trajectory: states (K, B, *) at `trajectory_times`, if asked for; the last one is `x` when "all" are.
        trajectory_times: the times of the trajectory, 0 standing for the final denoised state.
        seeds: the (seed, index) pair of each sample, which `seed=` takes again; a range takes no memory.
        network_evals: samples that the network has seen in all its calls, a guided score's branches counted apart.
        control: statistics of step control for each sample; None on a grid.
        continuation: state that `resume=` continues from, of a run on a grid that was stopped, or that ended with
            `final="none"`; where no dtype is converted its state shares the memory of the latter's `x`.
        log_prob: the samples' log-density, if asked for.

    Examples:
        >>> import sgm_sde as sg
        >>> import torch
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sg.VPSDE())
        >>> res = sg.sample(score, sg.VPSDE(), (4, 2), nfe=10, seed=0)
        >>> res.x.shape, res.nfe, res.status.ok, res.seeds[3]
        (torch.Size([4, 2]), 10, True, (0, 3))
    """

    x: Tensor
    nfe: int
    times: tuple[float, ...]
    status: Status
    trajectory: Tensor | None = field(default=None, repr=False)
    trajectory_times: tuple[float, ...] = field(default=(), repr=False)
    seeds: Sequence[tuple[int, int]] = field(default=(), repr=False)
    network_evals: int = 0
    control: AdaptiveStats | None = None
    continuation: Continuation | None = field(default=None, repr=False)
    log_prob: LogProbResult | None = field(default=None, repr=False)

    @property
    def rounds(self) -> int:
        """Network calls one after the other, which is `nfe`: with `parallel=`, less than the sequential run's."""
        return self.nfe

    def __repr__(self) -> str:
        return f"SampleResult(x={tuple(self.x.shape)} {self.x.dtype}, nfe={self.nfe}, {self.status})"
