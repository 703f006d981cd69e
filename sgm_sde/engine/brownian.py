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

CACHED = 2**22  # numbers that a tree holds of what samples visited last: 32 MiB
MADE = 2**23  # numbers that it holds of the first pieces of all samples: 64 MiB
FIRST = 5  # levels of them: 32 pieces
FEW = 64  # numbers of a sample below which arrays are quicker with the samples next to one another
AT_A_TIME = 2**16  # numbers, so that what is computed of them stays in a core's cache
POINTS_AT_A_TIME = 2**17
SCALES = 0.5 * np.cumprod([1.0, *[math.sqrt(0.5)] * 1100])  # of a bridge's noise, level by level
ONE = np.uint64(1)
UNKNOWN = np.uint64(2**64 - 1)  # no node has this number
TWO = np.uint64(2)
DEEPEST = 63  # level of the tree down to which 64 bits count the nodes: 2^63 and on
WITHIN = np.uint64(2**53 - 1)  # a level, the place of a piece: floats that need so many halvings have 53 digits at most
NEXT_LEVEL = np.uint64(2**53)  # between the numbers of nodes on levels beyond
LEVELS = 8  # of a path that is shared by grids: 256 pieces
KEPT = 8  # pieces before a place


class BrownianTree:
    r"""The Brownian paths of a batch as a function of the place, on [0, 1] with variance 1.

    A piece [a, b] is halved at m by a Brownian bridge,

    $$ W_m \mid W_a, W_b \sim N\big(\tfrac12 (W_a + W_b),\ \tfrac14 (b - a)\, I\big) $$

    with the noise of its node in the tree: the whole path has draw 0, the piece that is halved first is node 1, and the
    halves of node k are nodes 2k and 2k + 1, as far as 64 bits count them. What a halving adds falls to nothing at the
    ends of its piece, so a path is the sum of what the pieces around a place add (Lévy and Ciesielski),

    $$ W_s = s\,z_0 + \sum_{l \ge 0} \min(r_l, 1 - r_l)\,2^{-l/2}\,z_l, \qquad r_l = 2^l s \bmod 1 $$

    with $z_l$ the noise of the piece of length $2^{-l}$ that s lies in. So a path does not depend on how often, in
    which order and with which steps it is evaluated, and its law is exact. Places are binary fractions; the sum ends
    with the last of their digits.

    Nothing has to be stored. But most places share their first pieces with others: of samples of few numbers the path
    is halved down to `FIRST` levels for all samples together, and what is left is added to the line between the ends
    of such a piece; the noises of their nodes are those of `NoiseStream.of_nodes`. Of larger samples the noises of the
    nodes that were visited last are kept, each a draw of the stream, since neighbouring steps lie in the same large
    pieces.

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
        self._few = self._size < FEW
        self._visited: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # nodes (B,) and noises of samples, by level

        points = MADE // max(1, self._samples * self._size)
        self._held = min(FIRST, max(0, points - 1).bit_length() - 1)  # levels of pieces of all samples; -1 for none

    def at(self, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """W (b, D) in float64 at a place (b,) for each of the samples of numbers `rows` (b,)."""
        path = np.empty((len(rows), self._size))
        if not path.size:
            return path

        step = max(1, AT_A_TIME // self._size)
        fill = self._of_few_numbers if self._few else self._of_many_numbers
        for i in range(0, len(rows), step):
            some = slice(i, i + step)
            fill(path[some], places[some], rows[some])
        return path

    def _of_few_numbers(self, path: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Fill in W (b, D) at places (b,): the line between the ends of one of the first pieces, and what is added."""
        pieces = 2**FIRST
        r = places * pieces
        piece = np.minimum(r.astype(np.int64), pieces - 1)
        r -= piece

        keys = self._keys.take(rows, axis=1)
        start, end = self._first_piece(piece, rows, keys)
        w = _between(start, end, r)

        order, going = _by_depth(r)
        node = (piece.take(order) + pieces).astype(np.uint64)
        r = r.take(order)
        w = w.take(order, axis=1)
        keys = keys.take(order, axis=1)
        for level, n in enumerate(going, FIRST):  # those on the way come first
            node = node[:n]
            r = r[:n]
            keys = keys[:, :n]
            z = self._of_nodes(node, keys)
            z *= _weights(r, level)
            w[:, :n] += z

            r *= 2
            right = r >= 1
            r -= right
            node = _half_of(node, right, level)

        path[order] = w.T

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        """Keys (k, B) of the nodes' noises."""
        return self._stream.keys(self._size)

    def _of_nodes(self, node: np.ndarray | int, keys: np.ndarray) -> np.ndarray:
        """The noises (D, b) in float64 of nodes, (b,) or one, of samples with these keys (k, b)."""
        return self._stream.of_nodes(node, keys)[: self._size].astype(np.float64)

    def _first_piece(self, piece: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Paths (D, b) at both ends of one of the first pieces (b,) for each of some samples."""
        if self._held < 0:
            end = self._whole(rows)
            start = np.zeros_like(end)
        else:
            places = rows * (2**self._held + 1)
            places += piece >> (FIRST - self._held)
            start = self._points.take(places, axis=0).T
            places += 1
            end = self._points.take(places, axis=0).T

        for level in range(max(0, self._held), FIRST):
            node = (piece >> (FIRST - level)) + 2**level
            middle = _middle(start, end, self._of_nodes(node.astype(np.uint64), keys), level)
            right = (piece >> (FIRST - 1 - level)) & 1 == 1
            np.copyto(start, middle, where=right)
            np.copyto(end, middle, where=~right)
        return start, end

    @functools.cached_property
    def _points(self) -> np.ndarray:
        """Paths at the ends of the first pieces of all samples, those of one after the other (B P, D)."""
        pieces = 2**self._held
        whole = self._whole(None)
        points = np.empty((self._samples, pieces + 1, self._size))
        step = max(1, POINTS_AT_A_TIME // (pieces * self._size))
        for i in range(0, self._samples, step):
            some = slice(i, i + step)
            keys = self._keys[:, some]
            ends = np.zeros((self._size, pieces + 1, keys.shape[1]))
            ends[:, -1] = whole[:, some]
            for level in range(self._held):
                length = pieces >> level
                nodes = np.arange(2**level, 2 ** (level + 1), dtype=np.uint64)[:, None]
                z = self._of_nodes(nodes, keys[:, None])
                of_pieces = ends[:, ::length]
                ends[:, length // 2 :: length] = _middle(of_pieces[:, :-1], of_pieces[:, 1:], z, level)
            points[some] = ends.T
        return points.reshape(-1, self._size)

    def _whole(self, rows: np.ndarray | None) -> np.ndarray:
        """The ends (D, b) of the paths of some samples, or of all, in float64."""
        return self._drawn(0, rows).T.astype(np.float64)

    def _drawn(self, draw: int | np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """A draw (b, D) of some samples, or of all, in float32."""
        n = self._samples if rows is None else len(rows)
        return self._stream.at(draw, (n, self._size), torch.float32, "cpu", rows=rows).numpy()

    def _of_many_numbers(self, path: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Fill in W (b, D) at places (b,), the sum of what the pieces add."""
        node = np.zeros(len(rows), dtype=np.uint64)
        np.multiply(self._noises(-1, node, rows), places[:, None], out=path)
        r = places % 1.0
        node += ONE
        level = 0
        while True:
            weight = _weights(r, level)
            on_the_way = np.flatnonzero(weight)
            if not len(on_the_way):
                return
            z = self._noises(level, node[on_the_way], rows[on_the_way])
            z *= weight[on_the_way, None]
            if len(on_the_way) == len(path):
                path += z
            else:
                path[on_the_way] += z
            r *= 2
            right = r >= 1
            r -= right
            node = _half_of(node, right, level)
            level += 1

    def _noises(self, level: int, node: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The noises (b, D) of nodes in float64; those drawn last on a level are kept; level -1 is the whole path's."""
        if (level + 2) * self._samples * self._size > CACHED:
            return self._drawn(node, rows).astype(np.float64)

        if level not in self._visited:
            nodes = np.full(self._samples, UNKNOWN)
            self._visited[level] = nodes, np.empty((self._samples, self._size))
        nodes, visited = self._visited[level]
        new = np.flatnonzero(nodes.take(rows) != node)
        z = visited.take(rows, axis=0)
        if len(new):
            those = rows[new]
            z[new] = visited[those] = self._drawn(node[new], those)
            nodes[those] = node[new]
        return z


def _between(start: np.ndarray, end: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Points (D, b) at shares r (b,) of the way from start to end."""
    w, of_end = np.empty((2, *start.shape))
    np.multiply(start, 1 - r, out=w)
    np.multiply(end, r, out=of_end)
    w += of_end
    return w


def _by_depth(r: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The order of places r in [0, 1] by how many halvings lead to them, the most first, and how many places have more
    than none, than one, and so on."""
    share, exponent = np.frexp(r)
    last = (share * 2.0**53).astype(np.int64)
    last &= -last  # its last digit alone
    _, zeros = np.frexp(last)
    depth = np.where(r > 0, 54 - zeros - exponent, 0)

    order = np.argsort(-depth.astype(np.int16), kind="stable")
    there = np.bincount(depth).cumsum()
    return order, (len(r) - there[:-1]).tolist()


def _weights(r: np.ndarray, level: int) -> np.ndarray:
    """Shares of the noises of pieces on a level that are added to paths, at places r in them."""
    weight = 1 - r
    np.minimum(weight, r, out=weight)
    weight *= 2 * SCALES[level]
    return weight


def _middle(start: np.ndarray, end: np.ndarray, z: np.ndarray, level: int) -> np.ndarray:
    """Paths half-way between the ends of pieces on a level, from the noises of these, which are used up."""
    z *= SCALES[level]
    middle = start + end
    middle *= 0.5
    middle += z
    return middle


def _half_of(node: np.ndarray, right: np.ndarray, level: int) -> np.ndarray:
    """The numbers of the halves, right or left, of nodes on a level; where 2k + 1 does not fit, those nothing else has.

    On level 63 the nodes are 2^63 and the place of the piece, below 2^53, since only places near 0 take so many
    halvings. So the nodes of the levels beyond, which are fewer than 2^10, are 2^53 apart.
    """
    if level < DEEPEST:
        return TWO * node + right
    level_of_half = (node & ~WITHIN) + NEXT_LEVEL
    return level_of_half | (TWO * (node & WITHIN) + right) & WITHIN


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
