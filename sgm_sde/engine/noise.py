"""Randomness: noise as a function of seed, sample, stream and draw, and of nothing else."""

from __future__ import annotations

import math
import operator
import secrets
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, SupportsIndex, TypeGuard, overload

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import described, has_numbers
from sgm_sde.engine.counter import LANES, WORDS, BoxMuller, Run, Words, philox, squares

SeedList = Iterable[SupportsIndex | tuple[SupportsIndex, SupportsIndex]]
Seeds = SupportsIndex | SeedList | None
Generators = torch.Generator | Sequence[torch.Generator] | None

VERSION = "philox-4x64-10, squares-64"  # what the numbers of a seed depend on; in protocols and folders of results

# A stream for each use, so that adding a corrector leaves the prior and the predictor's noise as they were.
STREAMS = {
    "prior": 1,
    "solver": 2,
    "corrector": 3,
    "probe": 4,
    "dequantisation": 5,
    "measurement": 6,
    "path": 7,
    "forward": 8,
    "check": 9,
}

HOST = torch.device("cpu")
FIXED = 2**64 - 1  # a draw that no run arrives at
LARGEST = 16384  # words of a row; of larger samples several rows are made
AT_A_TIME = 16384  # words, whose memory stays in a core's cache
LEAST_AHEAD = 4  # draws that have to fit in the cache, for draws ahead to be worth it
MOST_AHEAD = 16  # draws
MOST_PAIRS = WORDS * LANES  # made into normal numbers at a time
SCATTERED = 64  # words of a sample up to which arrays are quicker than one visit per sample
VISIT = 640  # words that take as long as setting the generator to another place


class NoiseSource(Protocol):
    """Whatever hands out standard normal noise, draw after draw."""

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None) -> Tensor: ...


@dataclass(frozen=True, eq=False, repr=False)
class SampleSeeds(Sequence[tuple[int, int]]):
    """The (seed, index) pairs of a batch, of which a range takes no memory.

    Args:
        seed: one for all samples, or one each (B,) in uint64.
        indices: the samples' (B,), a range or in int64.
        repeat: number of the repetition, for what is done several times with the same samples.

    Examples:
        >>> seeds = SampleSeeds(7, range(1_000_000))
        >>> seeds[5], len(seeds[10:20]), seeds[:2] == ((7, 0), (7, 1))
        ((7, 5), 10, True)
    """

    seed: int | np.ndarray
    indices: range | np.ndarray
    repeat: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, at: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, at: slice) -> SampleSeeds: ...
    def __getitem__(self, at: int | slice) -> tuple[int, int] | SampleSeeds:
        if isinstance(at, slice):
            seed = self.seed if isinstance(self.seed, int) else self.seed[at]
            return SampleSeeds(seed, self.indices[at], self.repeat)
        seed = self.seed if isinstance(self.seed, int) else int(self.seed[at])
        return seed, int(self.indices[at])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        seeds, indices = self.arrays()
        return zip(seeds.tolist(), indices.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SampleSeeds):
            return self.repeat == other.repeat and all(map(np.array_equal, self.arrays(), other.arrays()))
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        if isinstance(self.seed, int) and isinstance(self.indices, range):
            return f"SampleSeeds({self.seed}, {self.indices})"
        return f"SampleSeeds({', '.join(map(str, self[:4]))}{', ...' if len(self) > 4 else ''})"

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Seeds and indices, (B,) each."""
        seeds = np.broadcast_to(np.asarray(self.seed, dtype=np.uint64), len(self))
        if isinstance(self.indices, range):
            return seeds, np.arange(self.indices.start, self.indices.stop, self.indices.step)
        return seeds, self.indices

    def select(self, rows: np.ndarray) -> SampleSeeds:
        """Those of some samples."""
        seed = self.seed if isinstance(self.seed, int) else self.seed[rows]
        if isinstance(self.indices, range):
            return SampleSeeds(seed, self.indices.start + self.indices.step * rows, self.repeat)
        return SampleSeeds(seed, self.indices[rows], self.repeat)

    def divided(self, parts: int) -> SampleSeeds:
        """Seeds repeated for several rows per sample, each with its own index."""
        if parts == 1:
            return self
        if isinstance(self.seed, int) and isinstance(self.indices, range) and self.indices.step == 1:
            return replace(self, indices=range(self.indices.start * parts, self.indices.stop * parts))

        seeds, index = self.arrays()
        rows = (index[:, None] * parts + np.arange(parts)).ravel()
        seed = self.seed if isinstance(self.seed, int) else np.repeat(seeds, parts)
        return replace(self, seed=seed, indices=rows)

    def repeated(self, k: int) -> SampleSeeds:
        """The same samples once more, the k-th time, with other noise than theirs and any other time's."""
        return replace(self, repeat=self.repeat << 20 | k + 1)


def fixed_noise(noise: NoiseSource, like: Tensor) -> Tensor:
    """Noise of the shape of `like` that is the same throughout a run, also after it was resumed.

    Of a source that is no `NoiseStream` it is the next draw.
    """
    draw = noise.fixed if isinstance(noise, NoiseStream) else noise.normal
    return draw(tuple(like.shape), like.dtype, like.device)


def resolve_seeds(seed: Seeds, generator: Generators, batch: int) -> SampleSeeds:
    """One (seed, index) pair per sample from whatever the caller gave.

    An int `s` gives sample i the pair (s, i), so the first rows of a larger batch are the smaller batch. A list
    gives sample i the pair (seed_i, 0): `seed=[7]` is the first sample of `seed=7`. A list may hold pairs itself:
    `seed=[(7, 5)]` is the sixth sample of `seed=7`. A generator supplies one seed for the batch, or a list of them one
    for each sample. With neither, fresh entropy is used and reported.

    Raises:
        ValueError: for both, for a negative seed or one of more than 64 bits, an index of more than 32 bits, or a
            list of the wrong length.
        TypeError: for anything that is no integer, pair of integers or generator.

    Examples:
        >>> resolve_seeds(3, None, 2) == ((3, 0), (3, 1)), resolve_seeds([7, (9, 4)], None, 2) == ((7, 0), (9, 4))
        (True, True)
    """
    if seed is not None and generator is not None:
        raise ValueError("give seed= or generator=, not both")
    if generator is not None:
        return _from_generator(generator, batch)
    if seed is None:
        seed = secrets.randbits(63)

    if not _is_list(seed):
        return SampleSeeds(_checked(seed), range(batch))

    seeds = seed if isinstance(seed, SampleSeeds) else list(_numbers(seed))
    if len(seeds) != batch:
        raise ValueError(f"got {len(seeds)} seeds for {batch} samples")
    return seeds if isinstance(seeds, SampleSeeds) else _of_list(seeds)


def one_seed(seed: object) -> int:
    """A seed of all samples as an int.

    Raises:
        TypeError: for anything but one integer.
        ValueError: for one that is negative or too large.
    """
    return _checked(seed, "seed")


def check_seeds(seed: Seeds) -> None:
    """Raise for a seed, or a list of them, that is none, before the number of samples is known.

    Raises:
        ValueError: as `resolve_seeds`.
        TypeError: as `resolve_seeds`.

    Examples:
        >>> check_seeds([7, -1])
        Traceback (most recent call last):
        ...
        ValueError: a seed must lie in [0, 2**64), got -1
    """
    if seed is None:
        return
    if not _is_list(seed):
        _checked(seed)
    elif isinstance(seed, Sized):
        resolve_seeds(seed, None, len(seed))


def _is_list(seed: object) -> TypeGuard[SeedList]:
    """True for seeds of several samples, in order; a tensor of no dimension can be iterated over, and is one seed."""
    one = isinstance(seed, str | bytes | bytearray | Mapping | Set) or getattr(seed, "ndim", None) == 0
    return not one and isinstance(seed, Iterable)


def _numbers(seeds: SeedList) -> SeedList:
    """The same seeds, those of an array or a tensor as Python's numbers."""
    if isinstance(seeds, Tensor) and not has_numbers(seeds):
        raise TypeError(f"seeds must be integers, a tensor of them dense, got {described(seeds)}")
    return seeds.tolist() if isinstance(seeds, Tensor | np.ndarray) else seeds


def _of_list(seeds: Sequence[object]) -> SampleSeeds:
    """Seeds of a list: plain integers are checked together, and what is wrong with others is said one by one."""
    plain = [seed for seed in seeds if isinstance(seed, int) and not isinstance(seed, bool)]
    if 0 < len(plain) == len(seeds) and 0 <= min(plain) <= max(plain) < 2**64:
        return _of_arrays(np.array(plain, dtype=np.uint64), np.zeros(len(plain), dtype=np.int64))
    return _of_pairs([_pair(seed) for seed in seeds])


def _from_generator(generator: object, batch: int) -> SampleSeeds:
    """Seeds drawn from one generator for the batch, or from one for each sample."""
    if isinstance(generator, torch.Generator):
        return SampleSeeds(_drawn_seed(generator), range(batch))

    if not isinstance(generator, Sequence) or isinstance(generator, str | bytes):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {described(generator)}")
    if len(generator) != batch:
        raise ValueError(f"got {len(generator)} generators for {batch} samples")
    return _of_pairs([(_drawn_seed(one), 0) for one in generator])


def _of_pairs(pairs: Sequence[tuple[int, int]]) -> SampleSeeds:
    """The pairs as `SampleSeeds`."""
    seeds = np.array([seed for seed, _ in pairs], dtype=np.uint64)
    return _of_arrays(seeds, np.array([i for _, i in pairs], dtype=np.int64))


def _of_arrays(seeds: np.ndarray, indices: np.ndarray) -> SampleSeeds:
    """Seeds and indices (B,) as `SampleSeeds`, with a range or one seed where they allow it."""
    alike = len(seeds) > 0 and bool((seeds == seeds[0]).all())
    if not alike:
        return SampleSeeds(seeds, indices)

    seed = int(seeds[0])
    first = int(indices[0])
    consecutive = bool((np.diff(indices) == 1).all())
    return SampleSeeds(seed, range(first, first + len(indices)) if consecutive else indices)


def _drawn_seed(generator: torch.Generator) -> int:
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _pair(seed: object) -> tuple[int, int]:
    if not isinstance(seed, tuple):
        return _checked(seed), 0
    if len(seed) != 2:
        raise ValueError(f"a seed in a list must be an int or a pair (seed, index), got {described(seed)}")
    return _checked(seed[0]), _checked(seed[1], "the index of a seed", 32)


def _is_one(value: Tensor) -> bool:
    """True if a tensor may be a seed: it has one number, which is no flag."""
    return has_numbers(value) and value.ndim == 0 and value.dtype != torch.bool


def _checked(value: object, name: str = "a seed", bits: int = 64) -> int:
    try:
        no_number = isinstance(value, bool) or (isinstance(value, Tensor) and not _is_one(value))
        index = operator.index(None if no_number else value)  # type: ignore[arg-type]
    except TypeError:
        instead = ": functions that take one have generator=" if isinstance(value, torch.Generator) else ""
        raise TypeError(f"{name} must be an int, got {described(value)}{instead}") from None
    if not 0 <= index < 2**bits:
        raise ValueError(f"{name} must lie in [0, 2**{bits}), got {index}")
    return index


def _joined(halves: np.ndarray) -> Words:
    """Rows (n, k) of words from their halves (n, 2, k) of 32 bits."""
    return halves.reshape(len(halves), -1).view(np.uint64)


def _moved(z: np.ndarray, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """Numbers made on the host, on a device and of a dtype."""
    made = torch.from_numpy(z)
    return made if dtype == torch.float32 and device == HOST else made.to(device, dtype, non_blocking=True)


def _layout(d: int) -> tuple[int, int]:
    """Rows that a sample of d numbers is made in, and the words of each."""
    pairs = -(-d // 2)
    parts = -(-pairs // LARGEST)
    return parts, -(-pairs // parts)


class _OfThread(threading.local):
    """A thread's generator and memory, shared by all streams: each draw begins by setting the counter."""

    tools: tuple[Run, BoxMuller] | None = None


_of_thread = _OfThread()


def _tools() -> tuple[Run, BoxMuller]:
    """Those of this thread, made when they are first asked for."""
    if _of_thread.tools is None:
        _of_thread.tools = Run(), BoxMuller(MOST_PAIRS)
    return _of_thread.tools


class NoiseStream:
    r"""Standard normal noise, a function of a sample's seed and index, the stream, the segment and the draw.

    The numbers of a sample come from its own words of 64 bits, those at $[iK, (i+1)K)$ for index i and K words, in
    the blocks of Philox-4x64-10 with

    | key | seed | stream | | |
    |---|---|---|---|---|
    | counter | block of four words, from 1 | draw | segment | repetition |

    each of 64 bits, so that no two numbers ever share their bits. A word gives two numbers by Box and Muller's method.
    They are made on the host in float32, and moved and cast: CPU and GPU, float32 and float64 runs see the same noise.
    The bits are the same everywhere, the numbers but for the last bits of log, cos and sin on another processor.

    Args:
        seeds: one (seed, index) pair per sample, from `resolve_seeds`.
        stream: what the noise is for, one of `STREAMS`.
        start: the time at which the run starts, whose bits are the segment: runs that continue one another from another
            time do not share their noise. 0 for what belongs to no run.
        draw: how many draws have been made before.

    Attributes:
        draw: how many draws have been made.

    Source: Salmon et al., 2011, doi:10.1145/2063384.2063405 (counter-based generators).

    Examples:
        >>> both = NoiseStream(((5, 0), (5, 1)), "solver").normal((2, 3), torch.float32, None)
        >>> one = NoiseStream(((5, 1),), "solver").normal((1, 3), torch.float32, None)
        >>> bool((both[1] == one[0]).all())
        True
    """

    def __init__(self, seeds: Sequence[tuple[int, int]], stream: str, start: float = 0.0, draw: int = 0) -> None:
        self.seeds = seeds if isinstance(seeds, SampleSeeds) else _of_pairs(seeds)
        self.draw = draw
        self._stream = STREAMS[stream]
        self._repeat = self.seeds.repeat
        (self._segment,) = struct.unpack("<Q", struct.pack("<d", start))
        self._order: tuple[tuple[int, int], np.ndarray, np.ndarray] = (0, 0), np.empty(0), np.empty(0)
        self._run, self._box_muller = _tools()
        self._ahead: list[np.ndarray] = []  # draws made before they are asked for, the next one last
        self._expected = 0
        self._many = 1

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        """The next draw, of shape (B, *)."""
        self.draw += 1
        if not self._ahead or self._ahead[-1].shape != shape or self._expected != self.draw:
            self._draw_ahead(shape)
        if not self._ahead:
            return self.at(self.draw - 1, shape, dtype, device)
        self._expected = self.draw + 1
        return _moved(self._ahead.pop(), dtype, device)

    def fixed(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        """A draw of its own that is the same whenever it is asked for."""
        return self.at(FIXED, shape, dtype, device)

    def _draw_ahead(self, shape: tuple[int, ...]) -> None:
        """Make the next draws of small samples together, 1, 2, 4, ...: most of their time is overhead."""
        self._ahead = []
        seed = self.seeds.seed
        indices = self.seeds.indices
        in_a_row = isinstance(indices, range) and indices.step == 1 and len(indices) > 0
        if not (isinstance(seed, int) and in_a_row) or shape[0] != len(indices):
            return

        n = len(indices)
        k = -(-math.prod(shape[1:]) // 2)  # words of a sample
        most = AT_A_TIME // max(1, n * k)
        if most < LEAST_AHEAD:
            return

        count = min(self._many, most)
        self._many = min(2 * self._many, MOST_AHEAD)
        if count < 2:
            return

        words = self._next_draws(seed, indices[0] * k, count, n * k)
        self._ahead = self._normals(words.reshape(count * n, k), (count, *shape))
        self._expected = self.draw

    def _next_draws(self, seed: int, first: int, count: int, n: int) -> Words:
        """The n words from the first on of this draw and those after it, (count, n)."""
        words = np.empty((count, n), dtype=np.uint64)
        for draw, row in enumerate(words, self.draw - 1):
            self._seek(seed, first, draw)
            row[:] = self._run.words(n)
        return words

    def _normals(self, words: Words, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Draws of shape (count, B, *) from words (count B, k), the last one first."""
        rows, k = words.shape
        d = math.prod(shape[2:])
        z = np.empty((rows, d), dtype=np.float32)
        self._box_muller(words, z[:, :k], z[:, k:] if d > k else None)
        return list(z.reshape(shape)[::-1])

    def at(
        self,
        draw: int | np.ndarray,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        *,
        rows: np.ndarray | None = None,
    ) -> Tensor:
        """A draw, of shape (B, *); one for all samples, or one each (B,) in uint64; of all samples, or of some."""
        seeds = self.seeds if rows is None else self.seeds.select(rows)
        if shape[0] != len(seeds):
            raise ValueError(f"noise for {shape[0]} samples asked of a stream for {len(seeds)}")
        z = np.empty(shape, dtype=np.float32)
        if z.size:
            self._fill(z.reshape(len(z), -1), seeds, draw)
        return _moved(z, dtype, device)

    def keys(self, numbers: int) -> Words:
        """A word (k, B) for each two numbers of each sample, of a draw that no run arrives at: keys of `of_nodes`."""
        _, k = _layout(numbers)
        keys = np.empty((k, len(self.seeds)), dtype=np.uint64)
        for at, words in self._words(self.seeds, k, FIXED):
            keys[:, at] = words.T
        keys |= np.uint64(1)
        return keys

    def of_nodes(self, nodes: Words | int, keys: Words) -> np.ndarray:
        """Normal numbers (2 k, *) in float32 that belong to nodes of a tree, (*) or one, and keys (k, *)."""
        words = squares(nodes, keys)
        z = np.empty((2, *words.shape), dtype=np.float32)
        column = words.reshape(-1, 1)
        cosines, sines = z.reshape(2, -1, 1)
        for i in range(0, len(column), MOST_PAIRS):
            some = slice(i, i + MOST_PAIRS)
            self._box_muller(column[some], cosines[some], sines[some])
        return z.reshape(-1, *words.shape[1:])

    def mixed(
        self,
        draws: np.ndarray,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Numbers of several draws, of shape (B, *): each element's from the draw in an array (*), 0 where that is -1.

        Nothing is kept: what a draw has at an element is made without what it has between others.
        """
        different = [int(draw) for draw in np.unique(draws) if draw >= 0]
        if len(different) == 1 and bool((draws == different[0]).all()):
            return self.at(different[0], shape, dtype, device)

        draw_of = np.broadcast_to(draws, shape[1:]).reshape(-1)
        z = np.zeros((shape[0], len(draw_of)), dtype=np.float32)
        if not z.size:
            return _moved(z.reshape(shape), dtype, device)

        for draw in different:
            (elements,) = np.nonzero(draw_of == draw)
            self._fill_elements(z, draw, elements)
        return _moved(z.reshape(shape), dtype, device)

    def _fill_elements(self, out: np.ndarray, draw: int, elements: np.ndarray) -> None:
        """Fill some columns of (B, d) with these elements of each sample's draw."""
        first = int(elements[0])
        last = int(elements[-1]) + 1
        if len(elements) == last - first:
            self._fill_span(out[:, first:last], draw, out.shape[1], first)
            return

        whole = np.empty_like(out)
        self._fill(whole, self.seeds, draw)
        out[:, elements] = whole[:, elements]

    def _fill_span(self, out: np.ndarray, draw: int, d: int, first: int) -> None:
        """Fill (B, m) with the elements from the first on of each sample's draw of d numbers."""
        parts, k = _layout(d)
        size = 2 * k
        places = self.seeds.divided(parts)
        samples = np.arange(len(out))
        last = first + out.shape[1]
        for part in range(first // size, -(-last // size)):
            start = part * size
            a = max(first - start, 0)
            b = min(last - start, size)
            rows = places if parts == 1 else places.select(samples * parts + part)
            self._fill_part(out[:, start + a - first : start + b - first], rows, k, draw, a, b)

    def _fill_part(self, out: np.ndarray, rows: SampleSeeds, k: int, draw: int, a: int, b: int) -> None:
        """Fill (B, b - a) with the elements from a to b of rows of k cosines and then k sines."""
        low = 0  # the pairs that are needed
        high = k
        if b <= k:
            low = a
            high = b
        elif a >= k:
            low = a - k
            high = b - k

        for at, words in self._columns(rows, k, draw, low, high):
            cosines = np.empty(words.shape, dtype=np.float32)
            sines = np.empty(words.shape, dtype=np.float32) if b > k else None
            self._box_muller(words, cosines, sines)
            if a < k:
                end = min(b, k)
                out[at, : end - a] = cosines[:, a - low : end - low]
            if sines is not None:
                begin = max(a, k)
                out[at, begin - a :] = sines[:, begin - k - low : b - k - low]

    def _columns(
        self, places: SampleSeeds, k: int, draw: int, low: int, high: int
    ) -> Iterator[tuple[slice | np.ndarray, Words]]:
        """The words that the pairs from low to high of rows of k words are made of, as rows of high - low words."""
        width = high - low
        if k - width > VISIT:
            yield from self._visited_columns(places, k, draw, low, width)
            return

        # The others are passed over sooner than visited.
        for at, words in self._words(places, k, draw):
            halves = words.view(np.uint32).reshape(len(words), 2, k)
            yield at, _joined(np.ascontiguousarray(halves[:, :, low:high]))

    def _visited_columns(
        self, places: SampleSeeds, k: int, draw: int, low: int, width: int
    ) -> Iterator[tuple[slice, Words]]:
        """The same for rows of which most is passed over, one visit for the cosines and one for the sines of each."""
        seeds, index = places.arrays()
        step = max(1, AT_A_TIME // width)
        for i in range(0, len(places), step):
            count = min(step, len(places) - i)
            some = slice(i, i + count)
            halves = np.empty((count, 2, width), dtype=np.uint32)
            for row, seed, number in zip(halves, seeds[some].tolist(), index[some].tolist(), strict=True):
                word = number * k
                row[0] = self._halves(seed, word, low, width, draw)
                row[1] = self._halves(seed, word, k + low, width, draw)
            yield some, _joined(halves)

    def _halves(self, seed: int, word: int, first: int, count: int, draw: int) -> np.ndarray:
        """Some of the 32-bit halves of the words from one on."""
        skip = first % 2
        self._seek(seed, word + first // 2, draw)
        words = self._run.words((skip + count + 1) // 2)
        return words.view(np.uint32)[skip : skip + count]

    def _fill(self, out: np.ndarray, seeds: SampleSeeds, draw: int | np.ndarray) -> None:
        """Fill rows (B, D); those of many numbers as several shorter ones."""
        n, d = out.shape
        parts, k = _layout(d)
        places = seeds.divided(parts)
        if parts > 1 and not isinstance(draw, int):
            draw = np.repeat(draw, parts)
        rows = out if d == 2 * k * parts or parts == 1 else np.empty((n, 2 * k * parts), dtype=np.float32)
        self._fill_rows(rows.reshape(n * parts, -1), places, k, draw)
        if rows is not out:
            out[:] = rows[:, :d]

    def _fill_rows(self, out: np.ndarray, places: SampleSeeds, k: int, draw: int | np.ndarray) -> None:
        """Fill rows of up to 2 k numbers from k words each, as many at a time as the cache holds."""
        d = out.shape[1]
        for at, words in self._words(places, k, draw):
            in_place = isinstance(at, slice)
            rows = out[at] if in_place else np.empty((len(words), d), dtype=np.float32)
            sines = rows[:, k:] if d > k else None
            self._box_muller(words, rows[:, :k], sines)
            if not in_place:
                out[at] = rows

    def _words(self, places: SampleSeeds, k: int, draw: int | np.ndarray) -> Iterator[tuple[slice | np.ndarray, Words]]:
        """The words (rows, k) at all places, some rows at a time; in the quickest way, which does not change them."""
        if isinstance(draw, int) and isinstance(places.seed, int):
            if isinstance(places.indices, range) and places.indices.step == 1:
                return self._in_a_row(places.seed, places.indices, k, draw)
            if k <= SCATTERED:
                order, runs = self._runs(places, k)
                if len(runs) * VISIT < len(places) * k:
                    return self._spans(places, k, draw, order, runs)

        draws = np.broadcast_to(np.asarray(draw, dtype=np.uint64), len(places))
        return self._visits(places, k, draws) if k > SCATTERED else self._scattered(places, k, draws)

    def _in_a_row(self, seed: int, indices: range, k: int, draw: int) -> Iterator[tuple[slice, Words]]:
        """Words of consecutive indices, which are contiguous."""
        step = max(1, AT_A_TIME // k)
        self._seek(seed, indices[0] * k, draw)
        for i in range(0, len(indices), step):
            count = min(step, len(indices) - i)
            yield slice(i, i + count), self._run.words(count * k).reshape(count, k)

    def _visits(self, places: SampleSeeds, k: int, draws: np.ndarray) -> Iterator[tuple[slice, Words]]:
        """Words of large samples, one visit each."""
        seeds, index = places.arrays()
        first = index.astype(np.uint64) * np.uint64(k)
        step = max(1, AT_A_TIME // k)
        for i in range(0, len(places), step):
            count = min(step, len(places) - i)
            words = np.empty((count, k), dtype=np.uint64)
            for j, row in enumerate(words, i):
                self._seek(int(seeds[j]), int(first[j]), int(draws[j]))
                row[:] = self._run.words(k)
            yield slice(i, i + count), words

    def _scattered(self, places: SampleSeeds, k: int, draws: np.ndarray) -> Iterator[tuple[slice, Words]]:
        """Words of small samples with arbitrary seeds, indices and draws, by array operations over their blocks."""
        seeds, index = places.arrays()
        first = index.astype(np.uint64) * np.uint64(k)
        blocks = -(-(WORDS - math.gcd(k, WORDS) + k) // WORDS)  # at most, wherever in one the words begin
        step = max(1, LANES // blocks)
        rows = max(1, AT_A_TIME // k)
        for i in range(0, len(places), step):
            at = slice(i, min(i + step, len(places)))
            seed = places.seed if isinstance(places.seed, int) else np.repeat(seeds[at], blocks)
            words = self._words_of_blocks(first[at], seed, draws[at], k, blocks)
            for j in range(0, len(words), rows):
                some = words[j : j + rows]
                yield slice(i + j, i + j + len(some)), some

    def _words_of_blocks(
        self, first: np.ndarray, seed: int | np.ndarray, draws: np.ndarray, k: int, blocks: int
    ) -> Words:
        """The k words from each of the first ones on, (b, k), which lie in some blocks in a row."""
        block, skip = np.divmod(first, np.uint64(WORDS))
        ahead = np.arange(1, blocks + 1, dtype=np.uint64)  # counters begin at 1
        number = (block[:, None] + ahead).ravel()
        counter = (number, np.repeat(draws, blocks), self._segment, self._repeat)
        words = np.ascontiguousarray(philox(counter, (seed, self._stream))).reshape(len(block), -1)
        if k % WORDS == 0:
            return words

        # They may begin inside of a block.
        within = skip[:, None] + np.arange(k, dtype=np.uint64)
        return np.take_along_axis(words, within.astype(np.int64), 1)

    def _seek(self, seed: int, word: int, draw: int) -> None:
        block, skip = divmod(word, WORDS)
        counter = (block + 1, draw, self._segment, self._repeat)
        self._run.seek(counter, (seed, self._stream), skip)

    def _runs(self, places: SampleSeeds, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the indices, and where in it runs begin whose gaps are passed over sooner than visited."""
        known, order, runs = self._order
        if known != (id(places), k):
            _, index = places.arrays()
            order = np.argsort(index, kind="stable")
            (gaps,) = np.nonzero(np.diff(index[order]) * k > VISIT)
            runs = np.concatenate([[0], gaps + 1])
            if places is self.seeds:
                self._order = (id(places), k), order, runs
        return order, runs

    def _spans(
        self, places: SampleSeeds, k: int, draw: int, order: np.ndarray, runs: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Words]]:
        """Words from one end of a run to the other, of which those at the places are kept."""
        assert isinstance(places.seed, int)
        sorted_index = places.arrays()[1][order]
        step = max(1, AT_A_TIME // k)
        for a, b in pairwise([*runs.tolist(), len(order)]):
            first = int(sorted_index[a])
            end = int(sorted_index[b - 1]) + 1
            self._seek(places.seed, first * k, draw)
            for i in range(first, end, step):
                count = min(step, end - i)
                words = self._run.words(count * k).reshape(count, k)
                low, high = a + np.searchsorted(sorted_index[a:b], [i, i + count])
                for some in range(low, high, step):  # more than are there, where one occurs twice
                    those = slice(some, min(some + step, high))
                    yield order[those], words[sorted_index[those] - i]
