"""Options of `sample`: records of a run, and its execution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.checks import (
    check_integer,
    described,
    flag,
    float_dtype,
    moment,
    number,
    reals,
    require_function,
    settle,
    usable_device,
)
from sgm_sde._utils.elsewhere import OF_EXECUTION, OF_RECORDS, Constructed

TOLERANCE = 1e-4  # of runs in parallel in time


@dataclass(frozen=True)
class StepInfo:
    """Argument of a callback after each step.

    Attributes:
        i: number of the step, from 0.
        n: number of steps.
        t: time the step left.
        t_next: time it reached.
        x: a copy of the state at `t_next`, (B, *).
        denoised: estimate of the data from the step's first network call, (B, *); None for a nonlinear process.
        nfe: network calls so far.

    Examples:
        >>> import torch
        >>> StepInfo(0, 10, 1.0, 0.9, torch.zeros(2, 3), None, nfe=1)
        StepInfo(step 1 of 10, t=1 -> 0.9, x=(2, 3), nfe=1)
    """

    i: int
    n: int
    t: float
    t_next: float
    x: Tensor
    denoised: Tensor | None
    nfe: int

    def __repr__(self) -> str:
        shape = tuple(self.x.shape)
        return (
            f"StepInfo(step {self.i + 1} of {self.n}, t={self.t:.4g} -> {self.t_next:.4g}, x={shape}, nfe={self.nfe})"
        )


@dataclass(frozen=True)
class Record(Constructed):
    """Records of a run: trajectory, callback, progress bar.

    Args:
        trajectory: "all", or some of the grid's times (0 for the denoised end), to keep the states at.
        callback: called after each step with a `StepInfo`; returning True stops the run, which `resume=` continues.
        progress: show a progress bar.

    Raises:
        TypeError: for a trajectory that is no sequence of numbers, and a callback that is no function.
        ValueError: for another word than "all", and times that are negative or not finite.

    Examples:
        >>> import sgm_sde as sg
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sg.VPSDE())
        >>> run = sg.sample(score, sg.VPSDE(), (4, 2), steps=5, seed=0, record=sg.Record(trajectory="all"))
        >>> run.trajectory.shape
        torch.Size([7, 4, 2])
    """

    _elsewhere = OF_RECORDS

    trajectory: str | Sequence[float] | None = None
    callback: Callable[[StepInfo], bool | None] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.trajectory is not None and not (isinstance(self.trajectory, str) and self.trajectory == "all"):
            settle(self, trajectory=_times(self.trajectory))
        require_function("callback", self.callback, "of a StepInfo", 1, optional=True)
        settle(self, progress=flag("progress", self.progress))


def _times(trajectory: object) -> tuple[float, ...]:
    """The times of a trajectory, as floats."""
    if isinstance(trajectory, str | bool):
        error = TypeError if isinstance(trajectory, bool) else ValueError
        raise error(f"trajectory must be 'all' or a sequence of times, got {described(trajectory)}")
    return tuple(number(f"trajectory[{i}]", t, least=0) for i, t in enumerate(reals("trajectory", trajectory)))


@dataclass(frozen=True)
class Execution(Constructed):
    """Execution of a run: device and precision, batches, graph, compilation.

    But for `parallel`, and the rounding of a precision, none of it changes a sample.

    Args:
        batch_size: largest number of samples run at a time, which bounds the memory of a run. Samples do not depend on
            it, up to rounding of a network or a solver at another batch size.
        until: a time of the grid at which to stop; `resume=` continues from there.
        enable_grad: build the graph, to backpropagate through sampling. Also for `grad`, `jvp` and `vmap` of
            `torch.func`, within which no value is looked at and the status says nothing.
        compile: run the network through `torch.compile`, once for all runs; on CUDA, where nothing looks on
            (callback, progress bar, trajectory, corrector, guidance, a stop), the whole run is one CUDA graph, recorded
            at the first call with the same network, solver, grid and shape. The first call takes the time of
            compilation.
        dtype: of the samples if their shape is given; torch's default if not given.
        device: of the samples if their shape is given; the network's if it has parameters, torch's default if not.
        parallel: a window: so many of a sample's network evaluations are made in one call, and repeated until they are
            those of the sequential run (Picard iteration, Shih et al., 2023, arXiv:2305.16317). `nfe` of the result
            counts calls one after the other, its `network_evals` all of the work; see docs/parallel.md.
        tolerance: of a run in parallel: how much a state may still change in a round for its evaluation to count as
            converged, as the root mean square over the sample's elements, divided by sqrt(alpha^2 + sigma^2); default
            1e-4. That is the size of a state whose data has standard deviation 1: for data of another scale, multiply
            the default by its standard deviation. With 0 only what is exact counts.

    Raises:
        ValueError: for a batch size or a window that is not an integer of at least 1, and for options that exclude each
            other: a graph keeps every value of a run, whatever its parts, and a compiled network records none; a run in
            parallel has no state to stop at.
            Also for a time that is negative or not finite, and a device that is not there.
        TypeError: for a time that is no number, flags that are neither True nor False, and what names no device.

    Examples:
        >>> import sgm_sde as sg
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sg.VPSDE())
        >>> few = sg.sample(score, sg.VPSDE(), (10, 2), steps=5, seed=0, execution=sg.Execution(batch_size=4))
        >>> torch.equal(few.x, sg.sample(score, sg.VPSDE(), (10, 2), steps=5, seed=0).x)
        True
    """

    _elsewhere = OF_EXECUTION

    batch_size: int | None = None
    until: float | None = None
    enable_grad: bool = False
    compile: bool = False
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    parallel: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            settle(self, batch_size=check_integer("batch_size", self.batch_size))
        for name in ("enable_grad", "compile"):
            settle(self, **{name: flag(name, getattr(self, name))})
        if self.dtype is not None:
            settle(self, dtype=float_dtype("dtype", self.dtype))
        if self.device is not None:
            settle(self, device=usable_device("device", self.device))
        if self.until is not None:
            settle(self, until=number("until", moment("until", self.until), least=0))
        if self.compile and self.enable_grad:
            raise ValueError("compile=True keeps no graph to backpropagate through: it excludes enable_grad=True")
        if self.batch_size is not None and self.enable_grad:
            raise ValueError("enable_grad=True keeps every value of a run: batch_size= would save nothing")
        self._settle_parallel()

    def _settle_parallel(self) -> None:
        if self.parallel is None:
            if self.tolerance is not None:
                raise ValueError(f"tolerance={self.tolerance} is that of a run in parallel: give parallel=, a window")
            return
        tolerance = TOLERANCE if self.tolerance is None else number("tolerance", self.tolerance, least=0)
        settle(self, parallel=check_integer("parallel", self.parallel), tolerance=tolerance)
        for name in ("until", "enable_grad", "compile"):
            if getattr(self, name) not in (None, False):
                raise ValueError(
                    f"{name}={getattr(self, name)} does not go with a run in parallel: leave out parallel="
                )
