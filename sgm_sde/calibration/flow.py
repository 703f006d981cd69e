"""A network's own flow in y = x / alpha, s = sigma / alpha: estimates of the data, and exact trajectories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.shapes import flat
from sgm_sde.engine.executor import PreDrawnNoise, execute
from sgm_sde.engine.noise import NoiseStream, SampleSeeds
from sgm_sde.engine.times import same_time
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling.sampler import plan
from sgm_sde.sampling.trials import REFERENCE
from sgm_sde.scores.conditions import map_rows, resolve
from sgm_sde.scores.model import BoundScore, checked_conversion
from sgm_sde.scores.score import Score

LARGEST = 10.0  # log of the noise level where a process has no bound
ROOM = 1e-3  # between the last call and eps, in log s


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


class Flow:
    """Evaluations of a score in batches of rows, each row at the noise level and with the condition of its own.

    Args:
        score: the score.
        sde: its process.
        event: shape of one sample.
        seeds: of all noises.
        given: number of samples that `kwargs` has rows for; noise i goes with row i modulo that.
        kwargs: arguments of the network.
        batch_size: rows of a network call, at most.
        dtype: of states.
        device: of states.

    Attributes:
        network_evals: samples that the network has seen so far.
        high, low: bounds of log s.
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
        self.sde, self.event, self.seeds, self.given = sde, tuple(event), seeds, given
        self.dtype, self.device = torch.promote_types(dtype, torch.float32), device
        self.score = score.cast_to(dtype) if score.dtype is None and dtype != self.dtype else score
        self.resolved = resolve(kwargs, given, score.conditions) if given > 1 else dict(kwargs)
        self.batch_size = batch_size
        self.model = BoundScore(self.score, sde, (sde.eps, sde.T), kwargs)
        self.network_evals = 0
        self._at: dict[float, tuple[float, float, float, float]] = {}

        first, last = (node.noise_level for node in sde.nodes([sde.T, sde.eps]))
        self.high = min(math.log(first), LARGEST)
        self.low = max(math.log(last) if last > 0 else -math.inf, -LARGEST) + ROOM
        self.inverse = 0.0 if math.isinf(first) else 1 / first

    def noise(self, samples: range) -> Tensor:
        """The noises of some samples (n, d)."""
        seeds = self.seeds[samples.start : samples.stop]
        return flat(NoiseStream(seeds, "prior").normal((len(samples), *self.event), self.dtype, self.device))

    def conditions(self, samples: Tensor) -> dict[str, object]:
        """Arguments of the network for samples of given numbers."""
        if not self.resolved:
            return {}
        index = samples % self.given
        return map_rows(lambda _, rows: rows[index.to(rows.device)], self.resolved)

    def data(self, y: Tensor, log_levels: Sequence[float], samples: range) -> Tensor:
        """The data estimated at states y (P, n, d) of n samples, each of the P groups at its own level."""
        groups, n, d = y.shape
        self.prepare(log_levels)
        found = [self._at[level] for level in log_levels]
        t = self.model.round_times([time for time, *_ in found], y)
        alpha, c_x, c_r = torch.tensor([rest for _, *rest in found], dtype=torch.float64).to(y).unbind(1)

        rows = torch.arange(groups * n, device=y.device)
        out = torch.empty_like(y).view(groups * n, d)
        for some in torch.split(rows, self.batch_size):
            group, sample = some // n, some % n
            x = alpha[group, None] * y.view(groups * n, d)[some]
            estimate = self.score.output(
                x.view(-1, *self.event), t[group], **self.conditions(sample + samples.start)
            )  # fmt: skip
            self.network_evals += self.score.network_evals(t[group])
            out[some] = c_x[group, None] * x + c_r[group, None] * flat(estimate).to(x.dtype)
        return out.view(y.shape)

    def snapped(self, level: float) -> float:
        """log s, or that of T where the time is T but for the rounding of single precision."""
        self.prepare([level])
        return self.high if same_time(self._at[level][0], self.sde.T) else level

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
        for level, time, node in zip(new, times, self.sde.nodes(times), strict=True):
            self._at[level] = (time, node.alpha, *checked_conversion(self.score.prediction, "data", node))

    def trajectories(self, samples: range, nfe: int, keep: int = 0) -> Trajectories:
        """Exact trajectories by a tight solution, at `keep` of its levels.

        A warning for a network in train mode is the caller's: it comes with the first of these calls.
        """
        _, grid, program = plan(self.sde, REFERENCE, nfe=nfe, t_end=self.sde.eps)
        assert program is not None
        times = grid.times
        kept = torch.linspace(0, len(times) - 2, min(keep, len(times) - 1)).round().long().tolist() if keep else []
        at = {times[i]: k for k, i in enumerate(kept)}
        nodes = self.sde.nodes([times[i] for i in kept])
        levels = torch.tensor([math.log(node.noise_level) for node in nodes], dtype=torch.float64)
        z = self.noise(samples)
        y, D = (torch.empty((len(kept), *z.shape), dtype=self.dtype, device=self.device) for _ in range(2))
        end = torch.empty_like(z)
        alphas = {node.t: node.alpha for node in self.sde.nodes(times)}

        for part in torch.split(torch.arange(len(samples), device=self.device), self.batch_size):
            kwargs = self.conditions(part + samples.start)
            model = BoundScore(self.score, self.sde, (times[-1], times[0]), kwargs)
            rows = slice(int(part[0]), int(part[-1]) + 1)

            def on_output(x: Tensor, output: Tensor, t: float, model: BoundScore = model, rows: slice = rows) -> None:
                if t in at:
                    y[at[t], rows] = flat(x) / alphas[t]
                    D[at[t], rows] = flat(model.predict("data", x, t, output))

            x = self.sde.prior_transform(z[rows].view(-1, *self.event), times[0])
            run = execute(program, x, model, PreDrawnNoise(()), on_output=on_output)
            end[rows] = flat(model.predict("data", run.x, times[-1]))
            self.network_evals += model.network_evals
        return Trajectories(levels, y, D, end)
