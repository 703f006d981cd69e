"""Grids with steps that are not even, so that no order is one of even steps alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, instance_of, number, reals
from sgm_sde.grids import GridRule, LogSNR
from sgm_sde.processes.base import SDE


def warped(rule: GridRule | None = None, warp: Sequence[float] = (0.4, -0.3, 0.2)) -> GridRule:
    r"""A smooth but strongly uneven version of a grid rule: equal steps of $u + \sum_k w_k \sin(\pi k u)/(\pi k)$.

    Raises:
        ValueError: if the weights' absolute values add up to 1 or more, where the grid would turn back.

    Examples:
        >>> import sgm_sde as sg
        >>> times = warped(sg.grids.Uniform())(sg.VPSDE(), 4).times
        >>> [round(t, 2) for t in times]
        [1.0, 0.69, 0.39, 0.1, 0.0]
    """
    warp = reals("warp", warp)
    require_rule(rule)
    if not sum(map(abs, warp)) < 1:
        raise ValueError(f"the absolute weights must add up to less than 1, got {list(warp)}")
    return _Warped(rule or LogSNR(), tuple(warp))


@dataclass(frozen=True)
class _Warped(GridRule):
    rule: GridRule
    warp: tuple[float, ...]

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        waves = [w * torch.sin(math.pi * k * u) / (math.pi * k) for k, w in enumerate(self.warp, start=1)]
        return self.rule.place(sde, u + sum(waves), start, end)


def rough(rule: GridRule | None = None, jitter: float = 0.4, seed: int = 0, period: int = 16) -> GridRule:
    """A grid rule whose nodes are moved at random, each by at most `jitter` of half the distance to its neighbours.

    No refinement makes such a grid smooth: methods that take even steps for granted lose their order on it. The random
    pattern repeats after `period` nodes; whole periods compare best.

    Raises:
        ValueError: for a jitter outside [0, 1), or a period that is not an integer of at least 2.

    Examples:
        >>> import sgm_sde as sg
        >>> even, uneven = (rule(sg.VPSDE(), 16).times for rule in (sg.grids.Uniform(), rough(sg.grids.Uniform())))
        >>> even[0] == uneven[0], even[5] == uneven[5], even[16] == uneven[16]
        (True, False, True)
    """
    require_rule(rule)
    jitter = number("jitter", jitter, least=0, below=1)
    seed = check_integer("seed", seed, 0)
    period = check_integer("period", period, 2)
    return _Rough(rule or LogSNR(), jitter, seed, period)


@dataclass(frozen=True)
class _Rough(GridRule):
    rule: GridRule
    jitter: float
    seed: int
    period: int = 16

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        # A random pattern that repeats: errors then fall without the scatter of fresh draws.
        pattern = np.random.default_rng(self.seed).uniform(-0.5, 0.5, self.period) * self.jitter
        v = u + torch.from_numpy(np.resize(pattern, len(u))) / (len(u) - 1)
        v[0] = 0.0
        v[-1] = 1.0
        return self.rule.place(sde, v, start, end)


def require_rule(rule: GridRule | None) -> None:
    if rule is not None:
        instance_of("rule", rule, GridRule, "a grid rule, such as LogSNR()")
