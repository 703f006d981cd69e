"""Brownian paths: the same noise when a step is tried again, and on a finer grid."""

from __future__ import annotations

import functools
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
MADE = 2**23  # numbers that it holds of the first pieces of all samples: 64 MiB
FIRST = 6  # levels of them, at most: 64 pieces
AT_A_TIME = 16384  # samples
FEW = 64  # numbers of a sample below which arrays are quicker with the samples next to one another
SCALES = 0.5 * np.cumprod([1.0, *[math.sqrt(0.5)] * 1100])  # of a bridge's noise, level by level
TWO = np.uint64(2)
DEEPEST = 63  # level of the tree down to which 64 bits count the nodes: 2^63 and on
WITHIN = np.uint64(2**53 - 1)  # a level, the place of a piece: floats that need so many halvings have 53 digits at most
NEXT_LEVEL = np.uint64(2**53)  # between the numbers of nodes on levels beyond
LEVELS = 8  # of a path that is shared by grids: 256 pieces
KEPT = 8  # pieces before a place


class BrownianTree:
    r"""The Brownian paths of a batch as a function of the place, on [0, 1] with variance 1.

    A piece [a, b] with the increment D is halved at m by a Brownian bridge,

    $$ W_m - W_a \mid D \sim N\big(\tfrac12 D,\ \tfrac14 (b - a)\, I\big) $$

    with the noise of its node in the tree: the whole path has draw 0, the piece that is halved first is node 1, and the
    halves of node k are nodes 2k and 2k + 1, as far as 64 bits count them; for samples of one or two numbers one draw
    has the noises of several levels. A place is reached by halving until it is the end of a piece. So a path does not
    depend on how often, in which order and with which steps it is evaluated, and its law is exact. Places are binary
    fractions; n digits take n halvings.

    Nothing has to be stored. But most places share their first halvings with others, and a draw for all samples at once
    takes a fraction of the time of one for each of some. So where samples have few numbers, the pieces of the first
    levels are made for all samples together, up to `MADE` numbers. Of larger samples the noises of the nodes that
    were visited last are kept, since neighbouring steps lie in the same large pieces.

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
        self._samples = len(seeds)
        self._size = math.prod(shape)
        self._levels = max(1, (NUMBERS // max(1, self._size) + 1).bit_length() - 1)  # in one block of the generator
        self._places = 2**self._levels - 1  # of the tree, in one block
        self._few = self._size < FEW
        self._visited: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # nodes (B,) and noises of samples, by level
        self._made: np.ndarray | None = None  # the first pieces of all samples, once they are made

        self._first = 0  # levels whose pieces are made for all samples together
        most = FIRST if self._few else 0
        for levels in range(self._levels, most + 1, self._levels):
            if self._may_hold(levels):
                self._first = levels

    def at(self, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """W (b, D) in float64 at a place (b,) for each of the samples of numbers `rows` (b,)."""
        path = np.empty((len(rows), self._size))
        for i in range(0, len(rows), AT_A_TIME):
            some = slice(i, i + AT_A_TIME)
            self._descend(path[some], places[some], rows[some])
        return path

    def _descend(self, path: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Fill in W (b, D) at places (b,) of samples: from the first pieces to those that begin there."""
        level = self._first
        below = places * 2.0**level
        piece = below.astype(np.int64)
        below -= piece
        node = (piece + 2**level).astype(np.uint64)
        pieces = self._first_pieces(piece, rows)

        on_the_way = np.arange(len(rows))
        while True:
            arrived = np.flatnonzero(below == 0)
            if len(arrived):
                path[on_the_way[arrived]] = self._some(pieces[: self._size], arrived).T
                rest = np.flatnonzero(below)
                pieces = self._some(pieces, rest)
                on_the_way = on_the_way[rest]
                below = below[rest]
                node = node[rest]
            if not len(on_the_way):
                return
            heap = self._noises(level, node, rows[on_the_way])
            pieces, below, node = self._halve(pieces, below, node, heap, level)
            level += self._levels

    def _some(self, columns: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Columns (k, b) of some samples, next to one another in memory where each has few numbers."""
        return columns.take(at, axis=1) if self._few else columns.T.take(at, axis=0).T

    def _first_pieces(self, piece: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Paths at the start of some of the first pieces, and the increments over these (2 D, b)."""
        if self._made is None and self._may_hold(self._first):
            self._made = self._all_first(None)
        if self._made is not None:
            return self._some(self._made, piece * self._samples + rows)
        return self._some(self._all_first(rows), piece * len(rows) + np.arange(len(rows)))

    def _may_hold(self, levels: int) -> bool:
        """True if the pieces of the first levels are not too many to be held."""
        return (2**levels + 1) * 2 * self._samples * self._size <= MADE

    def _all_first(self, rows: np.ndarray | None) -> np.ndarray:
        """The first pieces of some samples, or of all, and the end of the path: the first of each sample, and so on,
        (2 D, P b)."""
        d = self._size
        whole = self._drawn(0, rows, d)
        count = 2**self._first + 1
        n = whole.shape[1]
        pieces = np.empty((2 * d, count, n)) if self._few else np.empty((count, n, 2 * d)).transpose(2, 0, 1)
        pieces[:d, 0] = 0
        pieces[d:, 0] = whole
        pieces[:d, -1] = whole
        pieces[d:, -1] = 0
        for level in range(0, self._first, self._levels):
            for node, part in enumerate(np.split(pieces[:, :-1], 2**level, axis=1), 2**level):
                self._fill(part, self._heap(node, rows), level)
        return pieces.reshape(2 * d, -1)

    def _fill(self, pieces: np.ndarray, heap: np.ndarray, level: int) -> None:
        """Fill the pieces (2 D, P, b) from the first of them, which is as long as all and is halved again and again."""
        d = self._size
        near, far = _halves(pieces[d:, 0], heap[0], level)
        middle = pieces.shape[1] // 2
        pieces[:d, middle] = pieces[:d, 0] + near
        pieces[d:, middle] = far
        pieces[d:, 0] = near
        if len(heap) > 1:
            for half, below in zip(np.split(pieces, 2, axis=1), _halves_of_heap(len(heap)), strict=True):
                self._fill(half, heap[below], level + 1)

    def _halve(
        self, pieces: np.ndarray, below: np.ndarray, node: np.ndarray, heap: np.ndarray, level: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pieces that places lie in after as many halvings as one draw has noises for.

        A piece that begins at its place stays there, and the path as it is.

        Args:
            pieces: where the paths are at the start of each piece, and the increments over it (2 D, b).
            below: how far the place is from the piece's start, in units of its length (b,).
            node: number of the piece (b,).
            heap: noises of the node and of those below, as a binary heap (nodes, D, b).
            level: of the node.
        """
        path, increment = np.split(pieces, 2)
        while True:
            near, far = _halves(increment, heap[0], level)
            below = 2 * below
            right = below >= 1
            node = _half_of(node, right, level)
            increment[:] = np.where(right, far, near)
            on_right = right.astype(np.float64)
            below -= on_right
            near *= on_right
            path += near
            if len(heap) == 1:
                return pieces, below, node
            left_half, right_half = _halves_of_heap(len(heap))
            heap = np.where(right, heap[right_half], heap[left_half])
            level += 1

    def _heap(self, node: int | np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """The noises of a node and of those below, as many levels as one draw has (nodes, D, b), float32."""
        numbers = self._places * self._size
        if self._places == 1:
            z = self._drawn(node, rows, numbers)
        elif rows is None or isinstance(node, int):
            z = self._drawn(node, rows, NUMBERS)[:numbers]
        else:
            z = self._stream.of_blocks(node, rows, numbers)
        return z.reshape(self._places, self._size, -1)

    def _drawn(self, draw: int | np.ndarray, rows: np.ndarray | None, numbers: int) -> np.ndarray:
        """A draw of some samples, or of all, as columns (numbers, b) in float32."""
        n = self._samples if rows is None else len(rows)
        z = self._stream.at(draw, (n, numbers), torch.float32, "cpu", rows=rows).numpy().T
        return np.ascontiguousarray(z) if self._few else z

    def _noises(self, level: int, node: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The noises of nodes and of those below (nodes, D, b); large samples keep those drawn last on each level."""
        if self._few or (level + 1) * self._samples * self._size > CACHED:
            return self._heap(node, rows)

        if level not in self._visited:
            nodes = np.zeros(self._samples, dtype=np.uint64)  # no place has the number 0
            self._visited[level] = nodes, np.empty((self._samples, self._size), dtype=np.float32)
        nodes, visited = self._visited[level]
        z = visited.take(rows, axis=0)
        new = np.flatnonzero(nodes.take(rows) != node)
        if len(new):
            those = rows[new]
            z[new] = visited[those] = self._heap(node[new], those)[0].T
            nodes[those] = node[new]
        return z.T[None]


def _halves(increment: np.ndarray, z: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """The increments over both halves of pieces on a level (D, b), with the noises of their nodes."""
    bridge = np.multiply(z, SCALES[level], dtype=np.float64)
    half = 0.5 * increment
    near = half + bridge
    return near, np.subtract(half, bridge, out=bridge)


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
