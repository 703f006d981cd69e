"""Brownian paths: the same noise when a step is tried again, and on a finer grid."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde.engine.noise import NoiseStream, SampleSeeds
from sgm_sde.engine.program import Program

NUMBERS = 8  # of one block of the generator
CACHED = 2**22  # numbers that a tree holds of what samples visited last: 16 MiB
FEW = 64  # numbers of a sample below which arrays are quicker with the samples next to one another
SCALES = 0.5 * np.cumprod([1.0, *[math.sqrt(0.5)] * 1100])  # of a bridge's noise, level by level
EXACT = 52  # binary digits of a place that are counted without rounding
TWO = np.uint64(2)
DEEPEST = 63  # level of the tree down to which 64 bits count the nodes: 2^63 and on
WITHIN = np.uint64(2**53 - 1)  # a level, the place of a piece: floats that need so many halvings have 53 digits at most
NEXT_LEVEL = np.uint64(2**53)  # between the numbers of nodes on levels beyond
LEVELS = 8  # of a path that is shared by grids: 256 pieces
KEPT = 8  # pieces before a place


class _Visited:
    """The place in the tree that each sample visited last at one depth.

    Args:
        samples: how many.
        numbers: of the noises of a sample.
        size: numbers of a state, of which the path's are kept; 0 if they are not.

    Attributes:
        nodes: of the pieces (B,).
        z: their noises (B, numbers).
        pieces: where their paths begin, and the increments over them (B, 2 size).
    """

    def __init__(self, samples: int, numbers: int, size: int) -> None:
        self.nodes = np.zeros(samples, dtype=np.uint64)  # no place has the number 0
        self.z = np.empty((samples, numbers), dtype=np.float32)
        self.pieces = np.empty((samples, 2 * size))


class BrownianTree:
    r"""The Brownian paths of a batch as a function of the place, on [0, 1] with variance 1.

    A piece [a, b] with the increment D is halved at m by a Brownian bridge,

    $$ W_m - W_a \mid D \sim N\big(\tfrac12 D,\ \tfrac14 (b - a)\, I\big) $$

    with the noise of its node in the tree: the whole path has draw 0, the piece that is halved first is node 1, and the
    halves of node k are nodes 2k and 2k + 1, as far as 64 bits count them; for samples of one or two numbers one draw
    has the noises of several levels. A place is reached by halving until it is the end of a piece. So a path does not
    depend on how often, in which order and with which steps it is evaluated, and its law is exact. Places are binary
    fractions; n digits take n halvings.

    Nothing has to be stored. But neighbouring steps lie in the same large pieces, so the noises of the nodes that were
    visited last are cached, up to `CACHED` numbers; for samples of few numbers also the path at the pieces' start, from
    where the next place is reached.

    Args:
        seeds: the samples'.
        shape: of one sample.
        start: the time at which the run starts, as for a `NoiseStream`.

    Source: Lévy, 1948; Li et al., 2020, arXiv:2001.01328 (the tree); Jelinčič et al., 2024, arXiv:2405.06464.

    Examples:
        >>> tree = BrownianTree(SampleSeeds(7, range(2)), (1000,), 1.0)
        >>> quarter, half = (tree.at(np.full(2, place), np.arange(2)) for place in (0.25, 0.5))
        >>> bool(abs(np.var(half - quarter) - 0.25) < 0.05)
        True
    """

    def __init__(self, seeds: SampleSeeds, shape: Sequence[int], start: float) -> None:
        self._stream = NoiseStream(seeds, "path", start)
        self._size = math.prod(shape)
        self._levels = max(1, (NUMBERS // max(1, self._size) + 1).bit_length() - 1)  # in one block of the generator
        self._places = 2**self._levels - 1  # of the tree, in one block
        self._few = self._size < FEW
        self._kept = (self._places + 4 * self._few) * self._size  # numbers of a sample and depth, in float32
        self._visited: dict[int, _Visited] = {}  # by depth, in blocks
        self._increments: np.ndarray | None = None  # of the whole paths

    def at(self, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """W (b, D) in float64 at a place (b,) for each of the samples of numbers `rows` (b,)."""
        whole = self._whole(rows).astype(np.float64)
        at_end = (places == 1)[:, None]
        path = np.where(at_end, whole, 0.0)
        pieces = np.concatenate([path, whole], axis=1)
        joins_at, node, below = self._nearest_known(places, rows)

        for depth in itertools.count():
            if depth:
                joining = np.flatnonzero(joins_at == depth)
                if len(joining):
                    visited = self._visited[depth]
                    pieces[joining] = visited.pieces.take(rows[joining], axis=0)

            joined = joins_at <= depth
            alive = np.flatnonzero(joined & (below > 0))
            if len(alive):
                at_start = pieces.take(alive, axis=0)
                z = self._normals(depth, node[alive], rows[alive], at_start)
                pieces[alive], below[alive], node[alive] = self._halve(at_start, below[alive], node[alive], z, depth)
            elif not (joins_at > depth).any():
                break
        return pieces[:, : self._size]

    def _nearest_known(self, places: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The depth from which each place is reached, the node there, and what is left to go in its piece; (b,) each.

        That is the smallest piece around the place that the sample has been in before, if its path is known.
        """
        joins_at = np.zeros(len(rows), dtype=np.int64)
        node = np.ones(len(rows), dtype=np.uint64)
        below = np.where(places < 1, places, 0.0)
        if not self._few:
            return joins_at, node, below

        for depth, visited in self._visited.items():
            level = depth * self._levels
            if not 0 < level <= EXACT:
                continue
            scaled = places * 2.0**level
            there = scaled.astype(np.uint64)
            nodes = there + np.uint64(2**level)
            known = np.flatnonzero(visited.nodes.take(rows) == nodes)
            joins_at[known] = depth
            node[known] = nodes[known]
            below[known] = scaled[known] - there[known]
        return joins_at, node, below

    def _halve(
        self, pieces: np.ndarray, below: np.ndarray, node: np.ndarray, z: np.ndarray, depth: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pieces that places lie in after as many halvings as one draw has noises for.

        A piece that begins at its place stays there, and the path as it is.

        Args:
            pieces: where the paths are at the start of each piece, and the increments over it (b, 2 D).
            below: how far the place is from the piece's start, in units of its length (b,).
            node: number of the piece (b,).
            z: noises of the node and of those below, as a binary heap (b, nodes D).
            depth: of the draw.
        """
        d = self._size
        # A column for each sample: next to one another in memory where each has few numbers.
        columns, noises = pieces.T, z.T
        if self._few:
            columns, noises = np.ascontiguousarray(columns), np.ascontiguousarray(noises)
        path, increment = columns[:d], columns[d:]
        heap = noises.reshape(self._places, d, -1)

        for level in range(depth * self._levels, (depth + 1) * self._levels):
            bridge = np.multiply(heap[0], SCALES[level], dtype=np.float64)
            increment *= 0.5
            below = 2 * below
            right = below >= 1
            below -= right
            node = _half_of(node, right, level)

            near = increment + bridge
            increment -= bridge
            path += near * right
            np.copyto(increment, near, where=~right)
            if len(heap) > 1:
                left_half, right_half = _halves_of_heap(len(heap))
                heap = np.where(right, heap[right_half], heap[left_half])
        return columns.T, below, node

    def _whole(self, rows: np.ndarray) -> np.ndarray:
        """The increments of the whole paths (b, D), float32."""
        n = len(self._stream.seeds)
        if n * self._size > CACHED:
            return self._stream.at(0, (len(rows), self._size), torch.float32, "cpu", rows=rows).numpy()

        if self._increments is None:
            self._increments = self._stream.at(0, (n, self._size), torch.float32, "cpu").numpy()
        return self._increments.take(rows, axis=0)

    def _normals(self, depth: int, node: np.ndarray, rows: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        """The noises of a node and of those below, as many levels as one draw has (b, nodes D), float32.

        They are drawn only for samples that were elsewhere at this depth before, whose pieces are noted.
        """
        n = len(self._stream.seeds)
        if (depth + 1) * n * self._kept > CACHED:
            return self._drawn(node, rows)

        if depth not in self._visited:
            self._visited[depth] = _Visited(n, self._places * self._size, self._size * self._few)

        visited = self._visited[depth]
        z = visited.z.take(rows, axis=0)
        known = visited.nodes.take(rows)
        new = np.flatnonzero(known != node)
        if len(new):
            those = rows[new]
            nodes = node[new]
            drawn = self._drawn(nodes, those)
            z[new] = drawn
            visited.z[those] = drawn
            visited.nodes[those] = nodes
            if self._few:
                visited.pieces[those] = pieces.take(new, axis=0)
        return z

    def _drawn(self, node: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The same without the cache."""
        numbers = self._size if self._places == 1 else NUMBERS
        z = self._stream.at(node, (len(rows), numbers), torch.float32, "cpu", rows=rows).numpy()
        return z[:, : self._places * self._size]


def _half_of(node: np.ndarray, right: np.ndarray, level: int) -> np.ndarray:
    """The numbers of the halves, right or left, of nodes on a level; where 2k + 1 does not fit, those nothing else has.

    On level 63 the nodes are 2^63 and the place of the piece, below 2^53, since only places near 0 take so many
    halvings. So the nodes of the levels beyond, which are fewer than 2^10, are 2^53 apart.
    """
    if level < DEEPEST:
        return TWO * node + right
    level_of_half = (node & ~WITHIN) + NEXT_LEVEL
    return level_of_half | (TWO * (node & WITHIN) + right) & WITHIN


@functools.cache
def _halves_of_heap(nodes: int) -> tuple[list[int], list[int]]:
    """The places of the left and of the right half of a binary heap, each a heap itself.

    Examples:
        >>> _halves_of_heap(7)
        ([1, 3, 4], [2, 5, 6])
    """
    halves: tuple[list[int], list[int]] = ([], [])
    for place in range(1, nodes):
        above = place
        while above > 2:
            above = (above - 1) // 2
        halves[above - 1].append(place)
    return halves


class _Piece(NamedTuple):
    start: float
    end: float
    increment: Tensor
    node: int  # of the tree
    cut: int  # how often it has been cut beyond the tree


class PathNoise:
    r"""The noises of a program as normalised increments of one Brownian path per sample, the same for any grid.

    All samples are evaluated at the same places, in order. With variances $v_a, v_m, v_b$ of the Brownian time,

    $$ W_m - W_a \mid D \sim N\Big(\tfrac{v_m - v_a}{v_b - v_a} D,\ \tfrac{(v_m - v_a)(v_b - v_m)}{v_b - v_a} I\Big) $$

    Pieces are cut in the middle, as in a `BrownianTree`, down to `levels` halvings, and below that at the places
    themselves. So any two grids see the same path at the nodes of the tree, and at other places as long as no two of
    them lie in one piece; its law is exact everywhere. The pieces ahead are stored, one for each level.

    Args:
        program: a table that draws at most one noise per step.
        seeds: one (seed, index) pair per sample, from `resolve_seeds`.
        brownian_time: variance of the path as a function of time.
        middle: the time at which to halve a piece.
        levels: halvings before any other cut.

    Raises:
        ValueError: for a program with more noises in a step.

    Source: Lévy, 1948; Li et al., 2020, arXiv:2001.01328.
    """

    def __init__(
        self,
        program: Program,
        seeds: Sequence[tuple[int, int]],
        *,
        brownian_time: Callable[[float], float],
        middle: Callable[[float, float], float],
        levels: int = LEVELS,
    ) -> None:
        self._times = iter(noisy_steps(program))
        self._start = program.times[0]
        self._end = program.times[-1]
        self._sign = math.copysign(1.0, self._end - self._start)
        self._stream = NoiseStream(seeds, "path", self._start)
        self._levels = levels
        self._brownian_time = brownian_time
        self._middle = middle
        self._pieces: list[_Piece] = []  # the nearest last

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        """The next step's noise, (B, *)."""
        if not self._pieces:
            z = self._stream.at(0, shape, dtype, device)
            whole = z * math.sqrt(self._variance(self._start, self._end))
            self._pieces = [_Piece(self._start, self._end, whole, 1, 0)]

        start, end = next(self._times)
        self._go_to(start)
        increment = self._go_to(end)
        assert increment is not None
        return increment / math.sqrt(self._variance(start, end))

    def _go_to(self, place: float) -> Tensor | None:
        """The increment up to a place ahead; the pieces before it are dropped."""
        total: Tensor | None = None
        while self._pieces and self._pieces[-1].start != place:
            piece = self._pieces.pop()
            if self._sign * piece.end > self._sign * place:
                self._pieces += self._cut(piece, place)
            else:
                total = piece.increment if total is None else total + piece.increment
        return total

    def _cut(self, piece: _Piece, place: float) -> list[_Piece]:
        """The two parts of a piece, the far one first."""
        start, end, increment, node, cut = piece
        in_tree = node < 2**self._levels
        at = self._middle(start, end) if in_tree else place
        draw = node + (cut << 32)
        near, far = self._bridge(increment, self._variance(start, at), self._variance(at, end), draw)
        if in_tree:
            return [_Piece(at, end, far, 2 * node + 1, 0), _Piece(start, at, near, 2 * node, 0)]
        return [_Piece(at, end, far, node, cut + 1), _Piece(start, at, near, node, cut)]

    def _bridge(self, increment: Tensor, before: float, after: float, draw: int) -> tuple[Tensor, Tensor]:
        """The increments of two parts with these variances, given that of the whole, which is used up."""
        total = before + after
        near = self._stream.at(draw, tuple(increment.shape), increment.dtype, increment.device)
        near *= math.sqrt(before * after / total)
        near.add_(increment, alpha=before / total)
        far = increment.sub_(near)
        return near, far

    def _variance(self, a: float, b: float) -> float:
        return abs(self._brownian_time(b) - self._brownian_time(a))


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


class _Interval(NamedTuple):
    start: float
    end: float
    increment: Tensor
    area: Tensor | None


class PathWithArea:
    r"""Brownian paths of a batch with the areas below them, at places that are asked for one after the other.

    For another library's solver, which goes from place to place, and back to where a step is tried again. The area over
    [a, b] of length h depends on the increment W and on H, normal with variance h / 12 and independent of W:

    $$ \int_a^b (W_t - W_a)\,dt = h\,(\tfrac12 W + H) $$

    A piece is cut at a place into the near part of length l and the far one of length r by two standard normal numbers
    x and y, with $v^2 = lr / (4 (l^3 + r^3))$:

    $$ W_l = \tfrac lh W + \tfrac{6 l r}{h^2} H + \tfrac{2 v (l^3 + r^3)}{h^2}\,x, \qquad
       H_l = \tfrac{l^2}{h^2} H - \tfrac{v l^2}{h} x + \tfrac{v r}{\sqrt 3} y, \qquad
       H_r = \tfrac{r^2}{h^2} H - \tfrac{v r^2}{h} x - \tfrac{v l}{\sqrt 3} y $$

    All samples are cut at the same places, with noise of their own. The last few pieces before a place are kept, and
    all of those ahead.

    Args:
        seeds: the samples'.
        shape: of all of them (B, *).
        length: of the paths, from 0.
        start: the time at which the run starts, as for a `NoiseStream`.
        dtype: of the paths.
        device: of the paths.
        with_area: whether areas are asked for.

    Source: Foster, 2020, thesis, University of Oxford, theorem 6.1.4 (the cut); Lévy, 1948 (without area).

    Examples:
        >>> paths = PathWithArea(SampleSeeds(7, range(2)), (2, 1000), 1.0, 1.0, torch.float64, with_area=True)
        >>> w, area = paths.between(0.0, 0.5)
        >>> bool(abs(w.var() - 0.5) < 0.05), bool(abs(area.var() - 0.5**3 / 3) < 0.005)
        (True, True)
    """

    def __init__(
        self,
        seeds: SampleSeeds,
        shape: tuple[int, ...],
        length: float,
        start: float,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        *,
        with_area: bool = False,
    ) -> None:
        self._stream = NoiseStream(seeds, "path", start)
        self._like = shape, dtype, device
        whole = self._noise().mul_(math.sqrt(length))
        area = self._noise().mul_(math.sqrt(length / 12)) if with_area else None
        self._intervals = [_Interval(0.0, length, whole, area)]

    def between(self, a: float, b: float) -> tuple[Tensor, Tensor | None]:
        """The increment over [a, b], and the area below it.

        Raises:
            ValueError: for places outside of the paths, or long before those asked for last.
        """
        first = self._intervals[0].start
        last = self._intervals[-1].end
        if not first <= a < b <= last:
            raise ValueError(f"the paths are known from {first} to {last}, and [{a}, {b}] is asked for")

        self._cut_at(a)
        self._cut_at(b)
        before = sum(interval.end <= a for interval in self._intervals)
        del self._intervals[: max(0, before - KEPT)]

        increment: Tensor | None = None
        area: Tensor | None = None
        for start, end, w, h in self._intervals:
            if not (a <= start and end <= b):
                continue
            length = end - start
            if h is not None:
                mean = w / 2 + h
                own = mean * length
                area = own if area is None or increment is None else area + own + length * increment
            increment = w if increment is None else increment + w
        assert increment is not None
        return increment, area

    def _cut_at(self, place: float) -> None:
        """Cut the piece that the place lies in."""
        for i, interval in enumerate(self._intervals):
            if interval.start < place < interval.end:
                self._intervals[i : i + 1] = self._parts(interval, place)
                return

    def _parts(self, interval: _Interval, place: float) -> list[_Interval]:
        """The near and the far part of a piece."""
        start, end, whole, area = interval
        left = place - start
        right = end - place
        h = end - start
        x = self._noise()
        if area is None:
            near = left / h * whole + math.sqrt(left * right / h) * x
            return [_Interval(start, place, near, None), _Interval(place, end, whole - near, None)]

        near, area_near, area_far = _with_area(left, right, h, whole, area, x, self._noise())
        return [_Interval(start, place, near, area_near), _Interval(place, end, whole - near, area_far)]

    def _noise(self) -> Tensor:
        return self._stream.normal(*self._like)


def _with_area(
    left: float, right: float, h: float, whole: Tensor, area: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The near increment and the areas of both parts of a piece, of lengths left, right and h in all."""
    cubes = left**3 + right**3
    v = math.sqrt(left * right / cubes) / 2
    near = left / h * whole + 6 * left * right / h**2 * area + 2 * v * cubes / h**2 * x
    area_near = (left / h) ** 2 * area - v * left**2 / h * x + v * right / math.sqrt(3) * y
    area_far = (right / h) ** 2 * area - v * right**2 / h * x - v * left / math.sqrt(3) * y
    return near, area_near, area_far
