r"""Grids along which the probability flow is integrated, and networks that are asked node by node.

In the angle $\theta = \arctan(\sigma/(\alpha s))$ the flow of $z = x/\rho$ is $dz/d\theta = v/\rho$, and the
log-density changes along it by the divergence.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.cache import cached
from sgm_sde.engine.executor import Evaluator, execute
from sgm_sde.engine.lowering import Plan
from sgm_sde.engine.program import Program
from sgm_sde.likelihood.grid import Stretched
from sgm_sde.likelihood.multistep import Quadrature, Weights, program, spread, tables, trust
from sgm_sde.likelihood.problem import NoNoise
from sgm_sde.likelihood.trace import TraceScore
from sgm_sde.processes.linear import LinearNode, LinearSDE
from sgm_sde.processes.predictions import convert

LEAST = 48  # steps of the default's first grid
SHORTEST = 0.175  # of lambda, of its steps where data take shape


class Rates(NamedTuple):
    """Coefficients (c_x, c_r) at a node of what is c_x x + c_r r, for a network's output r.

    Attributes:
        slope: of dz/dtheta.
        score: of the score in z.
        divergence: of the divergence of dz/dtheta, for each dimension, and of the trace of r's Jacobian in it.
        trusted: share of the score that corrections use. At low noise a learned score is unreliable while the error of
            the trajectory is already negligible, so that it is damped there.
    """

    slope: tuple[float, float]
    score: tuple[float, float]
    divergence: tuple[float, float]
    trusted: float

    @classmethod
    def at(cls, node: LinearNode, prediction: str, s: float) -> Rates:
        """Those at a node."""
        rho = spread(node, s)
        trusted = trust(node, s)
        (s_x, s_r), (v_x, v_r) = (convert(prediction, target, node, sigma_data=s) for target in ("score", "v"))
        return cls((v_x / rho, v_r / rho), (rho * s_x, rho * s_r), (v_x, v_r), trusted)


class Nodes:
    """A grid along which the flow and the trace are integrated.

    Args:
        sde: the process.
        times: of the nodes, from one end to the other.
        table: their quadrature.
        s: standard deviation of the data.

    Attributes:
        reach: for each interval the first and the last node of which something is needed to cross it.
        first: for each node the first jump that it has a share of.
        last: the last one.
        longest: step of lambda, among those within 1 of where the noise is a third of the data.
    """

    def __init__(self, sde: LinearSDE, times: tuple[float, ...], table: Quadrature, s: float) -> None:
        self.times = times
        self.table = table
        self.s = s
        self.nodes = sde.nodes(times)
        self.spreads = [spread(node, s) for node in self.nodes]
        self.reach = [reach(i, table.integrals, *table.corrections) for i in range(len(times) - 1)]
        around = [[i for row in rows for i, _ in row] for rows in zip(table.shares, table.coarse_shares, strict=True)]
        self.first = [min(jumps) for jumps in around]
        self.last = [max(jumps) for jumps in around]
        self.longest = longest_step(np.array([node.lam for node in self.nodes]), s)
        self._rates: dict[str, list[Rates]] = {}

    def rates(self, prediction: str) -> list[Rates]:
        """Conversion of the network's output at each node."""
        if prediction not in self._rates:
            self._rates[prediction] = [Rates.at(node, prediction, self.s) for node in self.nodes]
        return self._rates[prediction]

    def jump(self, i: int, states: Mapping[int, Tensor], slopes: Mapping[int, Tensor]) -> Tensor:
        """From the end of the path of the slopes over interval i to the next state, in z."""
        jump = states[i] - states[i + 1]
        for j, w in self.table.integrals[i]:
            jump.add_(slopes[j], alpha=w)
        return jump


def reach(i: int, *rules: Sequence[Weights]) -> tuple[int, int]:
    """The first and the last node of which rules need something to cross interval i."""
    needed = [i, i + 1, *(j for rule in rules for j, _ in rule[i])]
    return min(needed), max(needed)


def longest_step(lam: np.ndarray, s: float) -> float:
    """The longest step between nodes at lambda (n + 1,) within 1 of the middle of `Stretched` grids."""
    low, high = np.sort(np.stack([lam[:-1], lam[1:]]), axis=0)
    middle = math.log(3) - math.log(s)
    near = (high > middle - 1) & (low < middle + 1)
    return float((high - low)[near].max(initial=0.0))


class GridFlow(Nodes):
    """The flow on a fixed grid, from the data to the noise or back; see `multistep`.

    Args:
        sde: the process.
        eps: where the flow ends, with the data.
        steps: of the grid.
        s: standard deviation of the data.
        to_noise: the direction.
    """

    def __init__(self, sde: LinearSDE, eps: float, steps: int, s: float, to_noise: bool = True) -> None:
        rule = Stretched(data_std=s)
        times = rule(sde, steps, t_end=eps).times
        table = tables(rule.curve(sde, sde.T, eps), s, steps, to_noise)
        super().__init__(sde, times[::-1] if to_noise else times, table, s)
        self.program = program(self.nodes, table, s)

    def carry(self, model: Evaluator, x: Tensor) -> Tensor:
        """The state at the last of the times; order 5."""
        return execute(self.program, x, model, NoNoise(), grad=torch.is_grad_enabled()).x


@cached(maxsize=64)
def fixed_grid(sde: LinearSDE, eps: float, steps: int, s: float, to_noise: bool = True) -> GridFlow:
    """A `GridFlow`, kept where processes can be told apart."""
    return GridFlow(sde, eps, steps, s, to_noise)


def first_grid(sde: LinearSDE, eps: float, s: float) -> int:
    """Steps of the default's first grid: as many as it takes where data take shape, however far the process goes on."""
    needed = Stretched(data_std=s).steps_for(sde, sde.T, eps, SHORTEST)
    return max(needed, LEAST)


class NodeByNode:
    """A network as the executor calls it along a grid."""

    def __init__(self, model: TraceScore) -> None:
        self.model = model

    def plan(self, program: Program) -> Plan:
        """The program made ready for what the network predicts."""
        return self.model.plan(program)

    def times(self, ts: Sequence[float], x: Tensor) -> Sequence[Tensor]:
        """Times as tensors (B,)."""
        return self.model.times(ts, x)

    @abstractmethod
    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The output at the state (B, *) of the next node, and its times (B,)."""


class Crossing(NodeByNode):
    """A network along a grid, each of whose intervals is crossed as soon as all nodes that this takes are known.

    Args:
        model: the network.
        grid: the grid.
        reach: as that of `Nodes`, whose own is taken if not given.
    """

    def __init__(self, model: TraceScore, grid: Nodes, reach: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__(model)
        self.grid = grid
        self.reach = grid.reach if reach is None else reach
        self.rates = grid.rates(model.score.prediction)
        self._slopes: dict[int, Tensor] = {}  # dz/dtheta of the flow
        self._states: dict[int, Tensor] = {}  # z
        self._known = 0
        self._crossed = 0

    def _take(self, x: Tensor, r: Tensor) -> None:
        """Take in the next node with its state x and output r, and cross the intervals for which it was wanting."""
        k = self._known
        self._slopes[k] = combined(self.rates[k].slope, x, r)
        self._hold(k, x, r)
        self._known += 1
        while self._crossed < len(self.reach) and self.reach[self._crossed][1] <= k:
            self._cross(self._crossed)
            self._crossed += 1
            self._forget()

    def _hold(self, k: int, x: Tensor, r: Tensor) -> None:
        """Keep what crossing takes of node k besides its slope."""
        self._states[k] = x / self.grid.spreads[k]

    @abstractmethod
    def _cross(self, i: int) -> None:
        """Add what interval i tells."""

    def _forget(self) -> None:
        """Let go of what no later interval needs."""
        first, _ = self.reach[min(self._crossed, len(self.reach) - 1)]
        forget_before(first, self._slopes)
        forget_before(self._oldest_state(), self._states)

    def _oldest_state(self) -> int:
        """The first node whose state is still needed."""
        return self._crossed


def weighted(weights: Weights, values: dict[int, Tensor]) -> Tensor | None:
    """The sum of weights times values, where there are any."""
    total: Tensor | None = None
    for j, w in weights:
        total = w * values[j] if total is None else total.add_(values[j], alpha=w)
    return total


def forget_before(first: int, held: dict[int, Tensor]) -> None:
    """Let go of what is held of nodes before the first that is needed."""
    for j in [j for j in held if j < first]:
        del held[j]


def combined(c: tuple[float, float], x: Tensor, r: Tensor) -> Tensor:
    """c_x x + c_r r."""
    c_x, c_r = c
    return (c_x * x).add_(r, alpha=c_r)
