"""A score bound to one run: counts calls, makes time tensors, knows every conversion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import arguments
from sgm_sde._utils.tree import Arguments, Conditions
from sgm_sde._utils.warn import warn
from sgm_sde.engine.lowering import Plan, lower
from sgm_sde.engine.matrix import Matrix, finite
from sgm_sde.engine.node import Coefficient, Node
from sgm_sde.engine.program import Program
from sgm_sde.processes.base import SDE
from sgm_sde.processes.linear import LinearNode
from sgm_sde.processes.matrix import apply
from sgm_sde.scores.conditions import AmbiguousArgument, has_rows, require_numbers, resolve, rows_at
from sgm_sde.scores.score import Score
from sgm_sde.scores.train_mode import TrainModeWarning, in_train_mode

TIMES_AT_HAND = 2**20  # numbers; beyond, times are made when they are needed


class _Times(Sequence[Tensor]):
    """Times (n,), each as a tensor (B,) of its own when it is asked for: a run of many samples holds one at a time."""

    def __init__(self, times: Tensor, batch: int) -> None:
        self._times = times
        self._batch = batch

    def __len__(self) -> int:
        return len(self._times)

    @overload
    def __getitem__(self, k: int) -> Tensor: ...
    @overload
    def __getitem__(self, k: slice) -> _Times: ...

    def __getitem__(self, k: int | slice) -> Tensor | _Times:
        if isinstance(k, slice):
            return _Times(self._times[k], self._batch)
        return self._times[k].expand(self._batch).clone()


class BoundScore:
    """A score bound to one run, as the executor and the correctors call it.

    Args:
        score: the score.
        sde: its process.
        times: (end, start) of the run; no call leaves them.
        model_kwargs: passed on to the network at each call.

    Attributes:
        nfe: number of network calls so far.
        network_evals: number of samples that the network has seen in them, a guided score's branches counted apart.
        kwargs: passed on to the network at each call.
        rows: numbers of the samples that it is for, of a run in parts; None for all.
    """

    def __init__(
        self,
        score: Score,
        sde: SDE,
        times: tuple[float, float],
        model_kwargs: Conditions | None = None,
    ) -> None:
        self.score = score
        self.sde = sde
        for part in score.parts or (score,):
            if (said := in_train_mode(part.net)) is not None:
                warn(said, TrainModeWarning)
        self._low, self._high = times
        self.kwargs = arguments("model_kwargs", model_kwargs)
        self._target = score.prediction  # what `evaluate` returns, and the stochasticity of a drift
        self._eta = 0.0
        self._nodes: dict[float, Node] = {}
        self.rows: range | None = None
        self.nfe = 0
        self.network_evals = 0

    def with_kwargs(self, kwargs: Conditions) -> BoundScore:
        """The same model with other arguments for the network, and its own count of calls."""
        return BoundScore(self.score, self.sde, (self._low, self._high), kwargs)

    def plan(self, program: Program) -> Plan:
        """The program made ready for what the network predicts.

        Raises:
            ValueError: where the network's prediction does not determine what the program needs.
        """
        self._target = self.sde.evaluated(self.score.prediction, program.prediction)
        self._eta = program.eta
        return _plan(program, self._target, self.sde)

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at x (B, *) and time t (B,); the reverse drift for a process that is not linear."""
        out = self._call(x, t)
        if self._target == self.score.prediction:
            return out
        return self.sde.convert(self.score.prediction, self._target, x, t, out, self._eta)

    def expect(self, times: Sequence[float], x: Tensor) -> Sequence[Tensor]:
        """Make ready for predictions at these times and states like x (B, *); returns each as a tensor (B,), a new one
        whenever it is asked for."""
        self._nodes = dict(zip(times, self.sde.nodes(tuple(times)), strict=True))
        return _Times(self.round_times(times, x), len(x))

    def predict(
        self, target: str, x: Tensor, t: float, output: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        """A prediction at x (B, *) and t, by a network call, `times` (B,) being t where it is at hand, or from the
        output of one."""
        if t not in self._nodes:
            self._nodes = {t: self.sde.nodes((t,))[0]}
        c_x, c_r = checked_conversion(self.score.prediction, target, self._nodes[t])
        if output is None:
            output = self._call(x, self.times([t], x)[0] if times is None else times)
        if isinstance(c_x, Matrix):
            return apply(c_x, x) + apply(c_r, output.to(x.dtype))
        assert not isinstance(c_r, Matrix)
        scaled = c_r * output.to(x.dtype)
        return scaled if c_x == 0 else scaled.add_(x, alpha=c_x)

    @contextmanager
    def only(self, index: Tensor, batch: int) -> Iterator[None]:
        """While some of the samples are evaluated, those of numbers `index` (b,): arguments of one row per sample are
        passed on with their rows.

        Raises:
            ValueError: for arguments of which nothing says what they are.
        """
        of_all = self.kwargs
        self.kwargs = self.of_some(index, batch)
        try:
            yield
        finally:
            self.kwargs = of_all

    def of_some(self, index: Tensor, batch: int) -> Arguments:
        """The network's arguments for the samples of numbers `index` (b,) alone.

        Raises:
            ValueError: for arguments of which nothing says what they are.
        """
        if len(index) == batch:
            return self.kwargs
        return rows_at(self.resolved(batch), index)

    def resolved(self, batch: int, called: int | None = None) -> Arguments:
        """The arguments, each tensor marked as what it is in a batch of which so many are called at once, or all.

        Raises:
            ValueError: for a tensor of which nothing says what it is.
        """
        return resolve(self.kwargs, batch, self.score.conditions, called) if batch > 1 else self.kwargs

    def takes_some(self, batch: int) -> bool:
        """True if the network can be asked about some of the samples alone.

        Not where the role of an argument is not known; nor a function, which may hold what belongs to all samples
        itself, unless it is given something of each sample.
        """
        try:
            resolved = self.resolved(batch)
        except AmbiguousArgument:
            return False
        return has_rows(resolved) or isinstance(self.score.net, nn.Module)

    def _call(self, x: Tensor, t: Tensor, kwargs: Arguments | None = None) -> Tensor:
        if not self.nfe and not x.is_meta:
            require_numbers(self.kwargs)
        self.nfe += 1
        self.network_evals += self.score.network_evals(t)
        return self.score.output(x, t, **(self.kwargs if kwargs is None else kwargs))

    def times(self, ts: Sequence[float], x: Tensor) -> Sequence[Tensor]:
        """Times as tensors (B,) in the state's dtype, rounded into the run and never out of it."""
        rounded = self.round_times(ts, x)
        if rounded.numel() * len(x) > TIMES_AT_HAND:
            return _Times(rounded, len(x))
        return rounded[:, None].expand(-1, len(x)).clone().unbind(0)

    def round_times(self, ts: Sequence[float] | np.ndarray, x: Tensor) -> Tensor:
        """Times in the state's dtype and on its device, rounded into the run and never out of it."""
        given = np.asarray(ts, dtype=np.float64)
        if x.dtype == torch.float64 or not given.size:
            return torch.from_numpy(given).to(device=x.device, dtype=x.dtype)

        single = given.astype(np.float32)
        # Most times round to inside of the run; where one does not, it takes the next number.
        if float(single.min()) < self._low or float(single.max()) > self._high:
            low = (single.astype(np.float64) < self._low) & (given >= self._low)
            high = (single.astype(np.float64) > self._high) & (given <= self._high)
            single = np.where(low, np.nextafter(single, np.float32(np.inf)), single)
            single = np.where(high, np.nextafter(single, np.float32(-np.inf)), single)
        return torch.from_numpy(single).to(device=x.device, dtype=x.dtype)

    def output_at(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output in x's dtype, at x (B, *) and a time for each sample, (B,) in float64 on the host."""
        return self._call(x, self.round_times(t.numpy(), x)).to(x.dtype)

    def predict_at(self, target: str, x: Tensor, t: Tensor, eta: float = 0.0) -> Tensor:
        """A prediction at x (B, *) and times of each sample's own, (B,) in float64 on the host."""
        return self.sde.convert(self.score.prediction, target, x, t, self.output_at(x, t), eta)


@overload
def checked_conversion(
    source: str, target: str, node: LinearNode, eta: float = 0.0, sigma_data: float = 1.0
) -> tuple[float, float]: ...
@overload
def checked_conversion(
    source: str, target: str, node: Node, eta: float = 0.0, sigma_data: float = 1.0
) -> tuple[Coefficient, Coefficient]: ...
def checked_conversion(
    source: str, target: str, node: Node, eta: float = 0.0, sigma_data: float = 1.0
) -> tuple[Coefficient, Coefficient]:
    """Conversion between predictions at a node.

    Raises:
        ValueError: where the source says nothing about the target.
    """
    c_x: Coefficient
    c_r: Coefficient
    try:
        c_x, c_r = node.convert(source, target, eta, sigma_data)
    except ZeroDivisionError:
        c_x = c_r = float("nan")
    if not (finite(c_x) and finite(c_r)):
        scales = f", where alpha={node.alpha} and sigma={node.sigma}" if isinstance(node, LinearNode) else ""
        way_out = "start below it (t_start=, or a smaller T)" if node.t > 0 else "end above it (t_end=)"
        raise ValueError(
            f"a network that predicts {source} does not determine the {target} at t={node.t}{scales}: {way_out}"
        )
    return c_x, c_r


@cached(maxsize=64, holders=(2,))
def _plan(program: Program, source: str, sde: SDE) -> Plan:
    nodes = sde.nodes([stage.t for stage in program.stages])
    conversions = [
        checked_conversion(source, program.prediction, node, program.eta, program.sigma_data)
        if stage.evaluate
        else (0.0, 1.0)
        for node, stage in zip(nodes, program.stages, strict=True)
    ]
    return lower(program, conversions)
