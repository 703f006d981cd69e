"""A network's own flow in y = x / alpha, s = sigma / alpha: estimates of the data, and exact trajectories."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde._utils.shapes import column, finite, flat
from sgm_sde._utils.units import in_units, units_of
from sgm_sde.engine.executor import PreDrawnNoise, execute
from sgm_sde.engine.node import Node
from sgm_sde.engine.noise import NoiseStream, SampleSeeds
from sgm_sde.engine.times import same_time
from sgm_sde.grids import PUREST, UNBOUNDED
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling.planning import plan
from sgm_sde.sampling.trials import REFERENCE
from sgm_sde.scores.conditions import resolve, rows_at
from sgm_sde.scores.model import BoundScore, checked_conversion
from sgm_sde.scores.score import Score

Samples = range | Tensor  # places of noises

LARGEST = -PUREST / 2  # log of the noise level where a process has no bound, for a prior of unit scale
ROOM = 1e-3  # between the last call and eps, in log s


class _Place(NamedTuple):
    """A time, and as a tensor (4,) that time rounded, alpha, and what an estimate takes of state and output."""

    t: float
    numbers: Tensor


@dataclass(frozen=True)
class Trajectories:
    """Exact states of some noises.

    Attributes:
        log_levels: log s of K levels, decreasing.
        y: states (K, N, d) there.
        D: estimates of the data (K, N, d) there.
        end: where they end, denoised (N, d).
    """

    log_levels: Tensor
    y: Tensor
    D: Tensor
    end: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Trajectories:
        """Those of some noises."""
        return Trajectories(self.log_levels, self.y[:, rows], self.D[:, rows], self.end[rows])

    def coordinate(self, i: int) -> Trajectories:
        """One coordinate of them, d = 1."""
        one = slice(i, i + 1)
        return Trajectories(self.log_levels, self.y[..., one], self.D[..., one], self.end[:, one])

    def joined(self, other: Trajectories) -> Trajectories:
        """These and others, at the same levels."""
        y = torch.cat([self.y, other.y], 1)
        D = torch.cat([self.D, other.D], 1)
        return Trajectories(self.log_levels, y, D, torch.cat([self.end, other.end]))

    def times(self, units: Tensor) -> Trajectories:
        """With each coordinate times a number (d,)."""
        return Trajectories(self.log_levels, self.y * units, self.D * units, self.end * units)

    @property
    def finite(self) -> Tensor:
        """The noises of which all numbers are finite, as truth values (N,)."""
        states = self.y.isfinite().all(2).all(0) if len(self.y) else True
        found: Tensor = finite(self.end) & states
        return found


class Flow:
    """Evaluations of a score in batches of rows, each row at the noise level and with the condition of its own.

    Args:
        score: the score.
        sde: its process.
        event: shape of one sample.
        seeds: of all noises.
        given: number of samples that `kwargs` has rows for; noise i goes with row i modulo that, whatever its place.
        kwargs: arguments of the network.
        batch_size: rows of a network call, at most.
        dtype: of states.
        device: of states.

    Attributes:
        network_evals: samples that the network has seen so far.
        high, low: bounds of log s.
        units: what each coordinate (d,) is multiplied by in noises, states and estimates; None for nothing.
    """

    def __init__(
        self,
        score: Score,
        sde: LinearSDE,
        event: Sequence[int],
        seeds: SampleSeeds,
        given: int,
        kwargs: Mapping[str, object],
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.sde = sde
        self.event = tuple(event)
        self.seeds = seeds
        self.given = given
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.device = device
        self.score = score.cast_to(dtype) if score.dtype is None and dtype != self.dtype else score
        self.resolved = resolve(kwargs, given, score.conditions) if given > 1 else dict(kwargs)
        self.batch_size = batch_size
        self.model = BoundScore(self.score, sde, (sde.eps, sde.T), kwargs)
        self.network_evals = 0
        self.units: Tensor | None = None
        self.numbers = torch.arange(len(seeds), device=device)
        self._at: dict[float, _Place] = {}  # by log s

        self._set_bounds()

    def _set_bounds(self) -> None:
        """Bounds of log s, and the inverse of the first level."""
        first, last = (node.noise_level for node in self.sde.nodes([self.sde.T, self.sde.eps]))
        unbounded = LARGEST + math.log(max(1.0, self.sde.prior_std))
        self.high = math.log(first) if math.log(first) <= -UNBOUNDED / 2 else unbounded
        self.low = max(math.log(last) if last > 0 else -math.inf, -LARGEST) + ROOM
        self.inverse = 0.0 if math.isinf(first) else 1 / first

    @property
    def rounding(self) -> float:
        """The relative rounding of the network's numbers."""
        parameter = self.score.parameter
        dtype = self.score.dtype or (self.dtype if parameter is None else parameter.dtype)
        return float(torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0

    def arranged(self, places: Tensor) -> Flow:
        """The same network with some of the noises, in the order of their places (n,)."""
        other = copy.copy(self)
        other.seeds = self.seeds.select(places.numpy())
        other.numbers = self.numbers[places.to(self.device)]
        return other

    def noise(self, samples: Samples) -> Tensor:
        """The noises of some samples (n, d)."""
        return self.measured(self._drawn(samples))

    def units_of(self, ends: Tensor) -> Tensor | None:
        """Units for numbers of unlike scale, by samples (N, d) of the network; None where there is no need."""
        return units_of(ends, self.event, math.exp(self.low))

    def measured(self, x: Tensor) -> Tensor:
        """States (..., d) of the network in the units of this flow."""
        return in_units(x, self.units)

    def unmeasured(self, y: Tensor) -> Tensor:
        """States (..., d) in the units of this flow, in those of the network."""
        return y if self.units is None else y / self.units

    def _drawn(self, samples: Samples) -> Tensor:
        if isinstance(samples, range):
            seeds = self.seeds[samples.start : samples.stop]
        else:
            seeds = self.seeds.select(samples.numpy())
        return flat(NoiseStream(seeds, "prior").normal((len(samples), *self.event), self.dtype, self.device))

    def conditions(self, samples: Tensor) -> dict[str, object]:
        """Arguments of the network for samples of given numbers."""
        if not self.resolved:
            return {}
        index = self.numbers[samples] % self.given
        return rows_at(self.resolved, index)

    def data(self, y: Tensor, log_levels: Sequence[float], samples: range, out: Tensor | None = None) -> Tensor:
        """The data estimated at states y (P, n, d) of n samples, each of the P groups at its own level; put into `out`
        if it is given.
        """
        groups, n, d = y.shape
        t, alpha, c_x, c_r = self._at_levels(log_levels, y)
        states = self.unmeasured(y).view(groups * n, d)
        found = torch.empty_like(y) if out is None else out
        rows = found.view(groups * n, d)

        # Groups and samples as one batch, cut into calls.
        for first in range(0, groups * n, self.batch_size):
            part = slice(first, first + self.batch_size)
            x = _of(alpha, part) * states[part]
            r = self._output(x, t[part], first, n, samples)
            torch.mul(x, _of(c_x, part), out=rows[part]).addcmul_(_of(c_r, part), r)
        return found if self.units is None else found.mul_(self.units)

    def _output(self, x: Tensor, t: Tensor, first: int, n: int, samples: range) -> Tensor:
        """The network's output (m, d) at states x (m, d), the first of which is one of groups of n samples."""
        kwargs = {}
        if self.resolved:
            numbers = torch.arange(first, first + len(x), device=x.device)
            kwargs = self.conditions(samples.start + numbers % n)
        output = self.score.output(x.view(-1, *self.event), t, **kwargs)
        self.network_evals += self.score.network_evals(t)
        return flat(output).to(x.dtype)

    def estimate(self, y: Tensor, log_level: float, samples: range, out: Tensor | None = None) -> Tensor:
        """The data estimated at states y (n, d) of n samples, all at one level; put into `out` if it is given."""
        return self.data(y[None], [log_level], samples, None if out is None else out[None])[0]

    def _at_levels(self, log_levels: Sequence[float], y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Times (P n,), and alpha and the weights of state and output, of states y (P, n, d): columns (P n, 1), or one
        number each where the levels are one.
        """
        self.prepare(log_levels)
        groups, n, d = y.shape
        if len(set(log_levels)) == 1:
            t, alpha, c_x, c_r = self._at[log_levels[0]].numbers.unbind()
            return t.expand(groups * n).contiguous(), alpha, c_x, c_r

        places = torch.stack([self._at[level].numbers for level in log_levels])
        t, *columns = places.repeat_interleave(n, 0).unbind(1)
        state = y.view(groups * n, d)
        alpha, c_x, c_r = (column(values, state) for values in columns)
        return t, alpha, c_x, c_r

    def snapped(self, level: float) -> float:
        """log s, or that of T where the time is T but for the rounding of single precision."""
        self.prepare([level])
        return self.high if same_time(self._at[level].t, self.sde.T) else level

    def prepare(self, levels: Sequence[float]) -> None:
        """Find what `data` needs to know of each log s, together: time, alpha, and the weights of state and output."""
        if len(self._at) > 10000:
            self._at.clear()
        new = [level for level in dict.fromkeys(levels) if level not in self._at]
        if not new:
            return

        # A table knows no time beyond its ends, not even by the rounding of a level.
        log_snr = -2 * torch.tensor(new, dtype=torch.float64).clamp(max=self.high)
        times = self.sde.time(log_snr).clamp(self.sde.eps, self.sde.T).tolist()
        self._at.update(zip(new, self._places(times), strict=True))

    def _places(self, times: Sequence[float]) -> list[_Place]:
        """Times with the numbers of estimates there."""
        state = torch.empty(0, dtype=self.dtype, device=self.device)
        rounded = self.model.round_times(times, state)
        weights = []
        for node in self.sde.nodes(times):
            c_x, c_r = checked_conversion(self.score.prediction, "data", node)
            weights.append((node.alpha, c_x, c_r))

        numbers = torch.cat([rounded[:, None], state.new_tensor(weights)], 1)
        return list(map(_Place, times, numbers))

    def trajectories(self, samples: Samples, nfe: int, keep: int = 0) -> Trajectories:
        """Exact trajectories by a tight solution, at `keep` of its levels.

        A warning for a network in train mode is the caller's: it comes with the first of these calls.
        """
        _, grid, program = plan(self.sde, REFERENCE, nfe=nfe, t_end=self.sde.eps)
        assert program is not None
        times = grid.times
        z = self._drawn(samples)
        record = _Record(self.sde.nodes(_spread(times[:-1], keep)), z)
        end = torch.empty_like(z)

        places = torch.as_tensor(samples if isinstance(samples, Tensor) else list(samples), device=self.device)
        for rows in torch.split(torch.arange(len(samples), device=self.device), self.batch_size):
            model = BoundScore(self.score, self.sde, (times[-1], times[0]), self.conditions(places[rows]))
            x = self.sde.prior_transform(z[rows].view(-1, *self.event), times[0])
            run = execute(program, x, model, PreDrawnNoise(()), on_output=record.of(model, rows))
            end[rows] = flat(model.predict("data", run.x, times[-1]))
            self.network_evals += model.network_evals
        found = Trajectories(record.log_levels, record.y, record.D, end)
        return found if self.units is None else found.times(self.units)


def _of(numbers: Tensor, part: slice) -> Tensor:
    """The numbers of some rows, of a column of them; those of all rows, of a single one."""
    return numbers if numbers.ndim == 0 else numbers[part]


class _Record:
    """States y = x / alpha and estimates at some nodes (K, N, d) of runs from noises z (N, d)."""

    def __init__(self, nodes: Sequence[Node], z: Tensor) -> None:
        self.at = {node.t: (k, node.alpha) for k, node in enumerate(nodes)}
        self.log_levels = torch.tensor([math.log(node.noise_level) for node in nodes], dtype=torch.float64)
        self.y = torch.empty((len(nodes), *z.shape), dtype=z.dtype, device=z.device)
        self.D = torch.empty_like(self.y)

    def of(self, model: BoundScore, rows: Tensor) -> Callable[[Tensor, Tensor, float], None]:
        """The callback of a run from some rows of the noises."""

        def on_output(x: Tensor, output: Tensor, t: float) -> None:
            if t in self.at:
                k, alpha = self.at[t]
                self.y[k, rows] = flat(x) / alpha
                self.D[k, rows] = flat(model.predict("data", x, t, output))

        return on_output


def _spread(times: Sequence[float], keep: int) -> list[float]:
    """`keep` of the times, evenly spread over their indices; all, if there are no more."""
    if not keep:
        return []
    indices = torch.linspace(0, len(times) - 1, min(keep, len(times))).round().long()
    return [times[i] for i in indices.tolist()]
