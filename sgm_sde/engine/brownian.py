"""Brownian paths: noise that stays the same where a step is tried again, or where a grid has more steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde.engine.program import Program


class _Piece(NamedTuple):
    start: float
    end: float
    increment: np.ndarray
    node: int  # of the tree: the root is 1, the halves of k are 2k and 2k + 1; 0 for what was cut elsewhere


class BrownianPath:
    r"""The path of one sample, known by its increments over the pieces that it has been cut into.

    A piece [a, b] with the increment D is cut at m by a Brownian bridge: with variances $v_a, v_m, v_b$ of the clock,

    $$ W_m - W_a \mid D \sim N\Big(\tfrac{v_m - v_a}{v_b - v_a} D,\ \tfrac{(v_m - v_a)(v_b - v_m)}{v_b - v_a} I\Big) $$

    So whatever has been asked stays true: a step that is rejected and tried again shorter sees the same path. Down to
    `levels` halvings, pieces are cut in the middle first, by noise that depends on the place in the tree alone: paths
    of the same seed then agree to that resolution whatever is asked of them, and in law exactly.

    Args:
        seed: the sample's (seed, index) pair.
        shape: of the sample.
        start: where the path begins.
        end: where it ends, above or below `start`.
        clock: variance of the path as a function of the place, up to a constant; the distance if not given.
        middle: the place at which to halve a piece; the arithmetic mean if not given.
        levels: halvings before any other cut.

    Source: Lévy, 1948; Rackauckas & Nie, 2017, arXiv:1804.04344 (rejection without bias); Li et al., 2020,
    arXiv:2001.01328 (the tree).

    Example:
        >>> path = BrownianPath((7, 0), (1000,), 1.0, 0.0)
        >>> far = path.increment(0.5)
        >>> near = path.increment(0.75)
        >>> path.advance(0.75)
        >>> bool(np.allclose(near + path.increment(0.5), far))
        True
    """

    def __init__(
        self,
        seed: tuple[int, int],
        shape: Sequence[int],
        start: float,
        end: float,
        *,
        clock: Callable[[float], float] | None = None,
        middle: Callable[[float, float], float] | None = None,
        levels: int = 0,
    ) -> None:
        self._seed, self._shape, self._levels = seed, tuple(shape), levels
        self._clock = clock or (lambda place: place)
        self._middle = middle or (lambda a, b: (a + b) / 2)
        self._sign = math.copysign(1.0, end - start)
        self._draws = self._generator(0)
        whole = math.sqrt(self._variance(start, end)) * self._normal(1)
        self._pieces = [_Piece(start, end, whole, 1)]  # the nearest last

    def increment(self, place: float) -> np.ndarray:
        """The increment from where the path stands to a place ahead, in float64.

        Raises:
            ValueError: for a place behind, or beyond the end.
        """
        if not self._pieces:
            raise ValueError(f"the path has ended, and its increment to {place} was asked for")
        first, last = self._pieces[-1].start, self._pieces[0].end
        if not self._sign * first <= self._sign * place <= self._sign * last:
            raise ValueError(f"the path lies between {first} and {last}, and its increment to {place} was asked for")
        total = np.zeros(self._shape)
        i = len(self._pieces) - 1
        while i >= 0 and self._pieces[i].start != place:
            piece = self._pieces[i]
            if self._sign * piece.end > self._sign * place:
                self._pieces[i : i + 1] = self._cut(piece, place)
                i += 1
                continue
            total += piece.increment
            i -= 1
        return total

    def advance(self, place: float) -> None:
        """Forget what lies before a place whose increment has been asked for."""
        while self._pieces and self._sign * self._pieces[-1].end <= self._sign * place:
            self._pieces.pop()

    def _cut(self, piece: _Piece, place: float) -> list[_Piece]:
        """The two halves of a piece, the far one first."""
        node = piece.node if piece.node < 2**self._levels else 0
        middle = self._middle(piece.start, piece.end) if node else place
        before, after = self._variance(piece.start, middle), self._variance(middle, piece.end)
        z = self._normal(2 * node)
        near = before / (before + after) * piece.increment + math.sqrt(before * after / (before + after)) * z
        left = _Piece(piece.start, middle, near, 2 * node)
        return [_Piece(middle, piece.end, piece.increment - near, 2 * node + 1 if node else 0), left]

    def _variance(self, a: float, b: float) -> float:
        return abs(self._clock(b) - self._clock(a))

    def _normal(self, node: int) -> np.ndarray:
        source = self._generator(node) if node else self._draws
        return np.asarray(source.standard_normal(self._shape))

    def _generator(self, node: int) -> np.random.Generator:
        # Counter-based: sample and place in the tree are key and counter as they are, so that no two ever meet.
        return np.random.Generator(np.random.Philox(key=list(self._seed), counter=[0, 0, 0, node]))


class PathNoise:
    """The noises of a program as normalised increments of one Brownian path a sample, the same for any grid.

    Args:
        program: a table that draws at most one noise a step.
        seeds: one (seed, index) pair a sample, from `resolve_seeds`.
        clock: variance of the path as a function of time.
        middle: the time at which to halve a piece.
        levels: halvings before any other cut: grids agree to a piece of 2^-levels.

    Raises:
        ValueError: for a program with more noises in a step.
    """

    def __init__(
        self,
        program: Program,
        seeds: Sequence[tuple[int, int]],
        *,
        clock: Callable[[float], float],
        middle: Callable[[float, float], float],
        levels: int = 12,
    ) -> None:
        self._times = iter(noisy_steps(program))
        self._ends = program.times[0], program.times[-1]
        self._seeds, self._levels = seeds, levels
        self._clock, self._middle = cache(clock), cache(middle)
        self._paths: list[BrownianPath] = []

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        """The next step's noise, (B, *)."""
        if not self._paths:
            self._paths = [
                BrownianPath(
                    seed, shape[1:], *self._ends, clock=self._clock, middle=self._middle, levels=self._levels
                )
                for seed in self._seeds
            ]  # fmt: skip
        start, end = next(self._times)
        for path in self._paths:
            path.increment(start)
            path.advance(start)
        z = np.stack([path.increment(end) for path in self._paths])
        z /= math.sqrt(abs(self._clock(end) - self._clock(start)))
        return torch.from_numpy(z).to(device=device, dtype=dtype)


def noisy_steps(program: Program) -> list[tuple[float, float]]:
    """Start and end of the step that each noise of a program belongs to, in the order in which they are drawn."""
    steps = list(pairwise(program.times))
    found: dict[int, int] = {}
    i = -1  # the initial state draws none
    for stage in program.stages:
        for m, _ in stage.noises:
            found.setdefault(m, i)
        i += stage.node
    if len(set(found.values())) < len(found):
        raise ValueError(
            f"{program.name} draws more than one noise in a step, so that its noises are no increments of one path: "
            f"leave noise= at 'independent'"
        )
    return [steps[k] for k in found.values()]
