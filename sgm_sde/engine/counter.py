r"""Philox-4x64-10: 256 random bits as a function of a 256-bit counter and a 128-bit key.

Ten rounds of multiplications by constants, each product's halves crossed over and mixed with the key (Salmon, Moraes,
Dror & Shaw, 2011, doi:10.1145/2063384.2063405). There is no state: any number is computed at any time, in any order.
Two implementations give the same bits: NumPy's, in C, for consecutive counters, and one in array operations for
arbitrary counters and keys.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # what a round adds to the key
ROUNDS = 10
WORDS = 4  # of 64 bits in a block
LANES = 16384  # blocks at a time: of fewer, most of the time is that of starting operations
VIEWS = 16  # shapes of which views are held: pieces and last pieces of some sizes of sample

Words = np.ndarray  # uint64
HALF, UNIT, MINUS_TWO, ANGLE = np.array([0.5, 2.0**-32, -2.0, math.pi * 2.0**-31], dtype=np.float32)[:, None, None]
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FACTOR = np.array(MULTIPLIERS, dtype=np.uint64)[:, None]
_FACTOR_LOW = _FACTOR & _LOW
_FACTOR_HIGH = _FACTOR >> _HALF
_WEYL = np.array(WEYL, dtype=np.uint64)[:, None]


def philox(counter: tuple[Words | int, ...], key: tuple[Words | int, ...]) -> Words:
    """The blocks (n, 4) for counters of four words and keys of two, each a number or an array (n,); words of the same
    number lie next to one another.

    Examples:
        >>> [f"{word:016x}" for word in philox((0, 0, 0, 0), (0, 0))[0].tolist()]
        ['16554d9eca36314c', 'db20fe9d672d0fdc', 'd7e772cee186176b', '7e68b68aec7ba23b']
    """
    words = [np.asarray(word, dtype=np.uint64) for word in (*counter, *key)]
    (n,) = np.broadcast_shapes((1,), *(word.shape for word in words))
    out = np.empty((WORDS, n), dtype=np.uint64)
    for i in range(0, n, LANES):
        some = slice(i, i + LANES)
        _rounds([word[some] if word.ndim else word for word in words], out[:, some])
    return out.T


def _rounds(words: list[Words], out: Words) -> None:
    """Blocks (4, n) from the four words of their counters and the two of their keys.

    Both halves of a block take a round together: most of the time of few blocks is that of starting an operation.
    """
    n = out.shape[1]
    x0, x1, x2, x3, key0, key1 = words
    x, y, high, low, *scratch = np.empty((6, 2, n), dtype=np.uint64)  # x multiplied, y crossed over
    x[0] = x0
    x[1] = x2
    y[0] = x1
    y[1] = x3
    both = np.broadcast_arrays(np.atleast_1d(key0), key1)
    keys = np.stack(both)

    for _ in range(ROUNDS):
        _multiply(x, high, low, scratch)
        np.bitwise_xor(high[::-1], y, out=x)
        np.bitwise_xor(x, keys, out=x)
        keys = keys + _WEYL
        y, low = low[::-1], y

    out[0::2] = x
    out[1::2] = y


def _multiply(a: Words, high: Words, low: Words, scratch: list[Words]) -> None:
    """Both halves of the products of a (2, n) and the multipliers, by multiplications of 32 bits."""
    a1, t = scratch

    np.bitwise_and(a, _LOW, out=low)
    np.right_shift(a, _HALF, out=a1)
    np.multiply(low, _FACTOR_LOW, out=t)
    np.right_shift(t, _HALF, out=t)
    np.multiply(a1, _FACTOR_LOW, out=high)
    np.add(t, high, out=t)  # a1 b0 + (a0 b0 >> 32)

    np.right_shift(t, _HALF, out=high)
    np.bitwise_and(t, _LOW, out=t)
    np.multiply(low, _FACTOR_HIGH, out=low)
    np.add(t, low, out=t)  # a0 b1 + the lower half of what there was

    np.right_shift(t, _HALF, out=t)
    np.add(high, t, out=high)
    np.multiply(a1, _FACTOR_HIGH, out=a1)
    np.add(high, a1, out=high)
    np.multiply(a, _FACTOR, out=low)


def squares(counter: Words | int, key: Words) -> Words:
    r"""Words of 64 bits for counters, (n,) or one, and odd keys (k, n): what costs least for each.

    With x' for x whose halves of 32 bits are exchanged, $y = n k$ and $z = y + k$ for counter n and key k,

    $$ a = (y^2 + y)', \qquad b = (a^2 + z)', \qquad c = (b^2 + y)', \qquad d = c^2 + z, \qquad
       d \oplus \lfloor 2^{-32} (d'^2 + y) \rfloor $$

    Five multiplications make two words of 32 bits, of which Philox' blocks take some thirty in array operations. Keys
    are to be random.

    Source: Widynski, 2020, arXiv:2004.06278.

    Examples:
        >>> [f"{word:016x}" for word in squares(1, np.array([0x548C9DECBCE65297], dtype=np.uint64)).tolist()]
        ['944716e00e60dfaa']
    """
    y = key * counter
    z = y + key
    x = np.empty_like(y)
    high = np.empty_like(y)

    squared = y
    for added in (y, z, y):
        np.multiply(squared, squared, out=x)
        np.add(x, added, out=x)
        _exchange(x, high, x)
        squared = x
    np.multiply(x, x, out=x)
    np.add(x, z, out=z)

    _exchange(z, high, x)
    np.multiply(x, x, out=x)
    np.add(x, y, out=x)
    np.right_shift(x, _HALF, out=x)
    return np.bitwise_xor(z, x, out=z)


def _exchange(x: Words, high: Words, out: Words) -> None:
    """Words with their halves exchanged, with memory for as many."""
    np.right_shift(x, _HALF, out=high)
    np.left_shift(x, _HALF, out=out)
    np.bitwise_or(out, high, out=out)


class Run:
    """Words of consecutive blocks, in C: NumPy's generator set to a key and a counter."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(0)
        self._state: dict[str, object] = {**self._bits.state}
        self._state["buffer"] = (0,) * WORDS  # numbers of Python are read sooner than those of an array
        self._state["buffer_pos"] = WORDS

    def seek(self, counter: tuple[int, int, int, int], key: tuple[int, int], skip: int = 0) -> None:
        """Go to a counter, whose first word is at least 1, and on by some words of its block."""
        first, *rest = counter
        self._state["state"] = {"counter": (first - 1, *rest), "key": key}  # NumPy counts before it evaluates
        self._bits.state = self._state  # type: ignore[assignment]
        if skip:
            self._bits.random_raw(skip)

    def words(self, n: int) -> Words:
        """The next n words."""
        words: Words = self._bits.random_raw(n)
        return words


class BoxMuller:
    r"""Pairs of independent standard normal numbers from two words of 32 bits, in memory that is reused.

    $$ z_1 = \sqrt{-2\log u}\,\cos\phi, \qquad z_2 = \sqrt{-2\log u}\,\sin\phi $$

    with u uniform in (0, 1], as fine as $2^{-32}$ near 0, and $\phi$ in $[0, 2\pi]$. So $|z| < 6.77$. A number
    does not depend on its place in the array.

    Args:
        size: the most pairs at a time.

    Source: Box & Muller, 1958, doi:10.1214/aoms/1177706645.
    """

    def __init__(self, size: int) -> None:
        self._memory = [np.empty(size, dtype=np.float32) for _ in range(3)]
        self._views: dict[tuple[int, int], tuple[Any, ...]] = {}

    def __call__(self, words: Words, cosines: np.ndarray, sines: np.ndarray | None) -> None:
        """Fill two arrays (r, k), the second cut short to as many columns as it has, from words (r, k) of 64 bits.

        The first half of the 2 k words of 32 bits of a row gives the radii, the second half the angles.
        """
        r, k = words.shape
        if (r, k) not in self._views:
            self._add_views(r, k)

        # NumPy is quicker to start, and torch at logarithms and circular functions.
        radius, angle, cosine, u, phi, cos = self._views[r, k]
        halves = words.view(np.uint32).reshape(r, 2, k)
        first = halves[:, 0]
        second = halves[:, 1]

        np.add(first, HALF, out=u, dtype=np.float32, casting="unsafe")
        np.multiply(u, UNIT, out=u)
        torch.log(radius, out=radius)
        np.multiply(u, MINUS_TWO, out=u)
        np.sqrt(u, out=u)

        np.multiply(second, ANGLE, out=phi, dtype=np.float32, casting="unsafe")
        torch.cos(angle, out=cosine)
        np.multiply(u, cos, out=cosines)

        if sines is not None:
            n = sines.shape[1]
            few = angle if n == k else angle[:, :n]
            torch.sin(few, out=few)
            np.multiply(u[:, :n], phi[:, :n], out=sines)

    def _add_views(self, r: int, k: int) -> None:
        """Views of the memory as arrays (r, k), for torch and for NumPy."""
        if len(self._views) >= VIEWS:
            self._views.clear()
        arrays = [memory[: r * k].reshape(r, k) for memory in self._memory]
        self._views[r, k] = (*map(torch.from_numpy, arrays), *arrays)
