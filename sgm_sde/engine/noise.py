"""Randomness: every sample owns streams of noise that depend on its seed and on nothing else."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol, SupportsIndex

import torch
from torch import Tensor

Seeds = SupportsIndex | Iterable[SupportsIndex | tuple[SupportsIndex, SupportsIndex]] | None
Generators = torch.Generator | Sequence[torch.Generator] | None

# A stream for each use, so that adding a corrector leaves the prior and the predictor's noise as they were.
STREAMS = {
    "prior": 0x9E3779B9,
    "solver": 0x85EBCA6B,
    "corrector": 0xC2B2AE35,
    "probe": 0x27D4EB2F,
    "dequantisation": 0x165667B1,
    "measurement": 0xD3A2646C,
}


class NoiseSource(Protocol):
    """Whatever hands out standard normal noise, draw after draw."""

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None) -> Tensor: ...


def resolve_seeds(seed: Seeds, generator: Generators, batch: int) -> tuple[tuple[int, int], ...]:
    """One (seed, index) pair per sample from whatever the caller gave.

    An int `s` gives sample i the pair (s, i), so the first rows of a larger batch are the smaller batch. A list
    gives sample i the pair (seed_i, 0): `seed=[7]` is the first sample of `seed=7`. A list may hold pairs itself:
    `seed=[(7, 5)]` is the sixth sample of `seed=7`. A generator supplies seeds and is advanced by one draw per
    sample. With neither, fresh entropy is used and reported.

    Raises:
        ValueError: for both, for a negative seed or one of 64 bits and more, an index of more than 32 bits, or a
            list of the wrong length.
        TypeError: for anything that is no integer, pair of integers or generator.

    Example:
        >>> resolve_seeds(3, None, 2), resolve_seeds([7, (9, 4)], None, 2)
        (((3, 0), (3, 1)), ((7, 0), (9, 4)))
    """
    if seed is not None and generator is not None:
        raise ValueError("give seed= or generator=, not both")
    if generator is not None:
        if isinstance(generator, torch.Generator):
            return tuple((int(s), 0) for s in _draw_seeds(generator, batch))
        if not isinstance(generator, Sequence):
            raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
        if len(generator) != batch:
            raise ValueError(f"got {len(generator)} generators for {batch} samples")
        return tuple((_draw_seeds(g, 1)[0], 0) for g in generator)
    if seed is None:
        seed = secrets.randbits(63)
    if (
        isinstance(seed, Iterable) and not isinstance(seed, str) and getattr(seed, "ndim", None) != 0
    ):  # a 0-d tensor is one seed
        seeds = list(seed)
        if len(seeds) != batch:
            raise ValueError(f"got {len(seeds)} seeds for {batch} samples")
        return tuple(_pair(s) for s in seeds)
    seed = _checked(seed)
    return tuple((seed, i) for i in range(batch))


def seeds_of_draw(seeds: Sequence[tuple[int, int]], draw: int) -> list[int]:
    """A seed for each sample and draw, for what draws several times for the same samples (fewer than 2^20 of them)."""
    return [(seed + 0x9E3779B97F4A7C15 * (draw * 2**20 + index)) % 2**64 for seed, index in seeds]


def _draw_seeds(generator: torch.Generator, n: int) -> list[int]:
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    drawn: list[int] = torch.randint(2**62, (n,), generator=generator, device=generator.device).tolist()
    return drawn


def _pair(seed: object) -> tuple[int, int]:
    if not isinstance(seed, tuple):
        return _checked(seed), 0
    if len(seed) != 2:
        raise ValueError(f"a seed in a list must be an int or a pair (seed, index), got {seed!r}")
    return _checked(seed[0]), _checked(seed[1], "the index of a seed", 32)


def _checked(value: object, name: str = "a seed", bits: int = 64) -> int:
    try:
        index = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not 0 <= index < 2**bits:
        raise ValueError(f"{name} must lie in [0, 2**{bits}), got {index}")
    return index


def _mix(x: int) -> int:
    """A bijection on 32 bits that spreads every input bit (MurmurHash3's finaliser, Appleby 2011)."""
    x &= 0xFFFFFFFF
    x = ((x ^ x >> 16) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ x >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ x >> 16


class NoiseStream:
    """Standard normal noise in which row i depends only on its (seed, index) pair, the stream and the draw.

    Numbers are drawn on the CPU in float32 and then moved and cast, so that CPU and GPU runs, and float32 and
    float64 runs, see the same noise.

    Args:
        seeds: one (seed, index) pair per sample, from `resolve_seeds`.
        stream: what the noise is for, one of `STREAMS`.

    Example:
        >>> both = NoiseStream(((5, 0), (5, 1)), "solver").normal((2, 3), torch.float32, None)
        >>> one = NoiseStream(((5, 1),), "solver").normal((1, 3), torch.float32, None)
        >>> bool((both[1] == one[0]).all())
        True
    """

    def __init__(self, seeds: Sequence[tuple[int, int]], stream: str) -> None:
        self._seeds, self._salt = seeds, STREAMS[stream]

    @cached_property
    def _generators(self) -> list[torch.Generator]:
        # torch's CPU generator keeps 32 bits of a seed. Every map below is a bijection of 32-bit words in the
        # low word of the seed and in the index, so neighbouring seeds and samples of one call never collide.
        return [
            torch.Generator("cpu").manual_seed(_mix(_mix(seed & 0xFFFFFFFF ^ _mix(seed >> 32 ^ self._salt)) + index))
            for seed, index in self._seeds
        ]

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        """The next draw, of shape (B, *)."""
        if shape[0] != len(self._seeds):
            raise ValueError(f"noise for {shape[0]} samples asked of a stream for {len(self._seeds)}")
        z = torch.empty(shape, dtype=torch.float32, device="cpu")
        for row, generator in zip(z, self._generators, strict=True):
            row.normal_(generator=generator)
        return z.to(device=device, dtype=dtype, non_blocking=True)
