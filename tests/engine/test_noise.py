"""Noise and phi-functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.counter import LANES, Run, philox, squares
from sgm_sde.engine.noise import LARGEST, NoiseStream, SampleSeeds, check_seeds, resolve_seeds
from sgm_sde.engine.phi import phi, phi_values
from tests.by_hand import column
from tests.conventions import case_id
from tests.helpers import F64

# Random123's published vectors of philox4x64 with 10 rounds: counter, key, block. The last are digits of pi.
PHILOX = [
    ([0] * 4, [0] * 2, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    ([2**64 - 1] * 4, [2**64 - 1] * 2, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]

# Of the C code of Widynski's paper: counter, key, word.
SQUARES = [
    (0, 0x548C9DECBCE65297, 0x36D88366CEE633A5),
    (1, 0x548C9DECBCE65297, 0x944716E00E60DFAA),
    (2, 0x548C9DECBCE65297, 0xC8A8F4E0678654BF),
    (1023, 0x85493E21F23649A5, 0x88E211A508A3AD75),
    (2**63, 0x85493E21F23649A5, 0x0B29C612C24356FF),
    (2**64 - 2, 0xFBE3C695413B867F, 0x7E5A9323B0281FCC),
]


STREAM_NUMBERS = {"prior": 1, "solver": 2, "corrector": 3, "probe": 4, "dequantisation": 5, "measurement": 6}


SEEDS = [(0, 0), (0, 1), (7, 3), (2**32 + 7, 3), (2**64 - 1, 5)]


@pytest.mark.parametrize("counter, key, block", PHILOX)
def test_philox_known_answers(counter: list[int], key: list[int], block: str) -> None:
    """The published blocks, in arrays and by NumPy's generator, which counts before it evaluates."""
    expected = [int(word, 16) for word in block.split()]
    assert philox(tuple(counter), tuple(key)).tolist() == [expected]
    if counter[0]:
        run = Run()
        run.seek(tuple(counter), tuple(key))
        assert run.words(4).tolist() == expected
        run.seek(tuple(counter), tuple(key), skip=3)
        assert run.words(1).tolist() == expected[3:]


def test_squares_known_answers() -> None:
    """Words of the C code, of counters and keys next to one another and of one key for one counter."""
    counters, keys, words = (np.array(column, dtype=np.uint64) for column in zip(*SQUARES, strict=True))
    assert np.array_equal(squares(counters, keys), words)
    assert [int(squares(counter, keys[i : i + 1])[0]) for i, (counter, *_) in enumerate(SQUARES)] == words.tolist()


def test_philox_evaluations_agree() -> None:
    """Words of consecutive counters, one by one in arrays and together in C; each with its own key and counter."""
    n = 3 * LANES // 2
    run, first = Run(), np.arange(2**40, 2**40 + n, dtype=np.uint64)
    run.seek((2**40, 7, 2**63, 9), (2**64 - 1, 2))
    assert (run.words(4 * n).reshape(n, 4) == philox((first, 7, 2**63, 9), (2**64 - 1, 2))).all()
    draws, seeds = first[::-1].copy(), first * np.uint64(2**23 + 1)
    blocks = philox((first, draws, 0, 1), (seeds, 3))
    for i in (0, 1, n - 1):
        run.seek((int(first[i]), int(draws[i]), 0, 1), (int(seeds[i]), 3))
        assert run.words(4).tolist() == blocks[i].tolist()


def box_muller(words: list[int]) -> list[float]:
    """Cosines and then sines, the lower half of all the bits telling radii and the upper angles, in float64."""
    halves = [half for word in words for half in (word % 2**32, word >> 32)]
    radii = [math.sqrt(-2 * math.log((half + 0.5) / 2**32)) for half in halves[: len(words)]]
    angles = [2 * math.pi * half / 2**32 for half in halves[len(words) :]]
    return [r * f(a) for f in (math.cos, math.sin) for r, a in zip(radii, angles, strict=True)]


@pytest.mark.parametrize("name, number", STREAM_NUMBERS.items())
@pytest.mark.parametrize("d", [1, 2, 3, 11])
def test_noise_of_a_seed(name: str, number: int, d: int) -> None:
    """Row i is Box and Muller's pairs from its words of the blocks for (draw, start, repetition) under (seed, stream),
    today and in any later version."""
    k = -(-d // 2)
    for start, repeat in ((0.0, 0), (0.5, 3)):
        seeds = SampleSeeds(
            np.array([s for s, _ in SEEDS], dtype=np.uint64), np.array([i for _, i in SEEDS]), repeat=repeat
        )
        noise = NoiseStream(seeds, name, start)
        (segment,) = np.array([start]).view(np.uint64).tolist()
        for draw in range(2):
            z = noise.normal((5, d), F64)
            assert z.dtype == F64
            assert torch.equal(noise.at(draw, (5, d), torch.float32), z.float())
            for row, (seed, index) in zip(z.tolist(), SEEDS, strict=True):
                run = [w for b in range(9) for w in philox((b + 1, draw, segment, repeat), (seed, number))[0].tolist()]
                expected = box_muller(run[index * k : (index + 1) * k])[:d]
                assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)
    with pytest.raises(ValueError, match="noise for 4 samples asked of a stream for 5"):
        noise.normal((4, 3), F64)


@pytest.mark.parametrize("d", [1, 2, 3, 10, 130, 131, 4 * LARGEST + 1])
def test_noise_is_the_same_however_it_is_had(d: int) -> None:
    """Of a range, a permutation, a few, with all seeds given, with draws of their own: to the last bit."""
    n = 60 if d < 1000 else 5
    known = [NoiseStream(SampleSeeds(5, range(n)), "solver", 0.3).at(k, (n, d), torch.float32) for k in range(3)]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(d)).numpy()
    seeds = np.full(n, 5, dtype=np.uint64)
    for given in (SampleSeeds(5, order), SampleSeeds(seeds, order), [(5, i) for i in order.tolist()]):
        stream = NoiseStream(given, "solver", 0.3, draw=1)
        assert torch.equal(stream.normal((n, d), torch.float32), known[1][order])
        assert stream.draw == 2
    for i in range(0, n, 9):
        one = NoiseStream([(5, i)], "solver", 0.3).at(2, (1, d), torch.float32)
        assert torch.equal(one[0], known[2][i])
    draws = np.arange(n) % 3
    own = NoiseStream(SampleSeeds(5, range(n)), "solver", 0.3).at(draws.astype(np.uint64), (n, d), torch.float32)
    assert torch.equal(own, torch.stack([known[k][i] for i, k in enumerate(draws.tolist())]))
    twice = NoiseStream([(5, 1), (5, 1), (5, 0)] * 40, "solver", 0.3).at(0, (120, d), torch.float32)
    assert torch.equal(twice, known[0][[1, 1, 0] * 40])


@pytest.mark.parametrize("d", [1, 2, 7, 63])
@pytest.mark.parametrize("seeds", [SampleSeeds(7, range(9)), SampleSeeds(np.arange(9, dtype=np.uint64), range(9))])
def test_numbers_of_nodes_by_hand(seeds: SampleSeeds, d: int) -> None:
    """Each two numbers from a key of their own, an odd word of the stream's last draw, and the node."""
    stream = NoiseStream(seeds, "path", 0.5)
    keys = stream.keys(d)
    assert len(np.unique(keys)) == keys.size == 9 * -(-d // 2)
    assert (keys % 2 == 1).all()
    for i in range(0, 9, 4):
        alone = NoiseStream([seeds[i]], "path", 0.5).keys(d)
        assert np.array_equal(alone[:, 0], keys[:, i])

    nodes = np.arange(3, 12, dtype=np.uint64)
    z = stream.of_nodes(nodes, keys)
    for k, i in ((0, 0), (len(keys) - 1, 8)):
        word = int(squares(int(nodes[i]), keys[k : k + 1, i])[0])
        radius = math.sqrt(-2 * math.log((word % 2**32 + 0.5) / 2**32))
        angle = 2 * math.pi * (word >> 32) / 2**32
        by_hand = [radius * math.cos(angle), radius * math.sin(angle)]
        np.testing.assert_allclose(z[[k, len(keys) + k], i], by_hand, rtol=1e-4, atol=1e-5)
    table = stream.of_nodes(nodes[:4, None], keys[:, None])
    assert np.array_equal(table[:, 2, 5], stream.of_nodes(int(nodes[2]), keys)[:, 5])


def test_numbers_of_many_nodes() -> None:
    """Independent normal numbers for the nodes of a sample, for neighbours among these, and for samples."""
    n = 200_000
    stream = NoiseStream(SampleSeeds(3, range(n)), "path", 0.5)
    keys = stream.keys(2)
    same = np.broadcast_to(keys[:, :1], keys.shape)
    nodes = np.arange(1, n + 1, dtype=np.uint64)
    of_sample = stream.of_nodes(nodes, same)
    columns = [*(stream.of_nodes(node, keys) for node in (1, 2, 3, 2**63)), of_sample, stream.of_nodes(2 * nodes, same)]
    z = np.concatenate(columns).astype(np.float64)

    off = 5 / math.sqrt(n)
    assert np.abs(z.mean(1)).max() < off
    assert np.abs(np.cov(z) - np.eye(len(z))).max() < off * math.sqrt(2)
    assert np.abs(np.corrcoef(z**2) - np.eye(len(z))).max() < off
    assert np.abs((z**4).mean(1) - 3).max() < off * math.sqrt(96)
    assert np.abs((z[:, 1:] * z[:, :-1]).mean(1)).max() < off


def test_draws_made_ahead_are_the_draws() -> None:
    """One after another, of whatever shapes and from wherever: each is what it is when asked for by its number."""
    source, seeds = NoiseStream(SampleSeeds(5, range(3, 7)), "solver", 0.3), SampleSeeds(5, range(3, 7))
    shapes = [(4, 3)] * 9 + [(4, 2, 2)] * 3 + [(4,)] * 4 + [(4, 3)] * 5 + [(4, 0)] * 3 + [(4, 5000)] * 4
    for k, shape in enumerate(shapes):
        known = NoiseStream(seeds, "solver", 0.3).at(k, shape, torch.float32)
        assert torch.equal(source.normal(shape, torch.float32), known), k
    with pytest.raises(ValueError, match="noise for 3 samples"):
        source.normal((3, 3), F64)


@pytest.mark.parametrize("draw", [2, 50, 3, 4])
def test_a_draw_is_had_by_its_number(draw: int) -> None:
    """Whatever was drawn before."""
    source, seeds = NoiseStream(SampleSeeds(5, range(3, 7)), "solver", 0.3), SampleSeeds(5, range(3, 7))

    source.draw = draw
    assert torch.equal(source.normal((4, 3), F64), NoiseStream(seeds, "solver", 0.3).at(draw, (4, 3), F64))


@pytest.mark.parametrize("seeds", [4, [4, 9, (2, 7)], [(3, 9), (3, 2), (3, 100)]])
@pytest.mark.parametrize("d", [1, 2, 7, 130, 1283, 4000, 2 * LARGEST - 1, 2 * LARGEST + 2, 70001])
def test_elements_of_several_draws(seeds: Any, d: int) -> None:
    """Spans and scattered elements of different draws are what the whole draws have there; none is 0."""
    stream = NoiseStream(resolve_seeds(seeds, None, 3), "solver", 0.5)
    whole = [stream.at(draw, (3, d), F64) for draw in range(4)]
    rng = np.random.default_rng(d)
    for trial in range(8):
        if trial % 2:
            of = rng.integers(-1, 4, d)
        else:
            cuts = np.sort(rng.integers(0, d + 1, 3))
            of = rng.permutation([-1, 0, 1, 2, 3])[np.searchsorted(cuts, np.arange(d), side="right")]
        made = stream.mixed(of, (3, d), F64)
        for draw, all_of_it in enumerate(whole):
            at = of == draw
            assert torch.equal(made[:, at], all_of_it[:, at])
        assert not bool(made[:, of < 0].any())
    frames = np.array([0, 2, -1]).reshape(3, 1)
    made = stream.mixed(frames, (3, 3, d), torch.float32)
    assert torch.equal(made[:, 1], stream.at(2, (3, 3, d), torch.float32)[:, 1])


def test_large_samples_are_standard_normal() -> None:
    """Neighbouring seeds, indices, draws, streams, starts and repetitions: each of mean 0, variance 1 and skew 0, of
    the right distribution, and uncorrelated with the others, in lags as well."""
    n = 2**14

    def one(stream: str = "solver", start: float = 1.0, draw: int = 0, repeat: int = 0, **of: int) -> Tensor:
        seeds = SampleSeeds(of.get("seed", 3), range(of.get("index", 0), of.get("index", 0) + 1), repeat)
        return NoiseStream(seeds, stream, start).at(draw, (1, n), torch.float32)[0]

    z = torch.stack([
        one(), one(seed=4), one(seed=3 + 2**32), one(index=1), one(draw=1), one("corrector"), one("prior"),
        one(start=0.5), one(start=math.nextafter(1, 0)), one(repeat=1),
        NoiseStream(SampleSeeds(3, range(n)), "solver", 1.0).at(0, (n, 1), torch.float32)[:, 0],
        NoiseStream(SampleSeeds(np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.int64)), "solver", 1.0)
        .at(0, (n, 1), torch.float32)[:, 0],
        NoiseStream([(3, 0)] * n, "solver", 1.0).at(np.arange(n, dtype=np.uint64), (n, 1), torch.float32)[:, 0],
    ]).double()  # fmt: skip
    assert float(z.mean(1).abs().max()) < 4.5 / math.sqrt(n)
    assert float((z.var(1) - 1).abs().max()) < 4.5 * math.sqrt(2 / n)
    assert float(z.pow(3).mean(1).abs().max()) < 4.5 * math.sqrt(15 / n)
    assert float((z.pow(4).mean(1) - 3).abs().max()) < 4.5 * math.sqrt(96 / n)
    place = (torch.arange(n) + 0.5) / n
    assert float((torch.special.ndtr(z.sort(1).values) - place).abs().max()) < 2 / math.sqrt(n)
    for values in (z, z.square() - 1):
        lagged = torch.cat([values, values.roll(1, 1), values.roll(n // 2, 1)])
        correlation = torch.corrcoef(lagged) - torch.eye(len(lagged), dtype=F64)
        assert float(correlation.abs().max()) < 5.5 / math.sqrt(n)


@pytest.mark.parametrize(("n", "d", "draws"), [(10**6, 2, 25), (400, 12288, 10)])
@pytest.mark.slow
def test_a_hundred_million_numbers(n: int, d: int, draws: int) -> None:
    """Moments and distribution of 1e8 numbers, of crowds and of images, to their statistical errors."""
    stream = NoiseStream(SampleSeeds(11, range(n)), "solver", 1.0)
    count, moments, largest = 0, torch.zeros(4, dtype=F64), 0.0
    bins = torch.zeros(1000, dtype=F64)
    for _ in range(draws):
        z = stream.normal((n, d), torch.float32).flatten()
        count += len(z)
        largest = max(largest, float(z.abs().max()))
        powers = z.double()
        for k in range(4):
            moments[k] += powers.sum()
            powers *= z
        bins += torch.histc(torch.special.ndtr(z), 1000, 0.0, 1.0).double()
    moments /= count
    for got, exact, variance in zip(moments.tolist(), (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(got - exact) < 4.5 * math.sqrt(variance / count)
    chi2 = float(((bins - count / 1000) ** 2).sum() / (count / 1000))
    assert abs(chi2 - 999) < 5 * math.sqrt(2 * 999)
    assert 5.0 < largest < 6.8


def test_seeds_are_compact() -> None:
    """A range is a range, in slices and lists too; what is no range, arrays; equal to the pairs that they stand for."""
    many = resolve_seeds(3, None, 10**6)
    assert isinstance(many, SampleSeeds)
    assert isinstance(many.indices, range)
    assert many[-1] == (3, 10**6 - 1)
    assert isinstance(many[5:10].indices, range)
    assert many[5:8] == ((3, 5), (3, 6), (3, 7)) == tuple(many[5:8])
    assert many[5:8] != ((3, 5), (3, 6), (3, 8))
    assert isinstance(resolve_seeds([(3, i) for i in range(7, 12)], None, 5).indices, range)
    assert resolve_seeds(many[5:8], None, 3) == many[5:8]
    assert many.select(np.array([4, 2])) == [(3, 4), (3, 2)]
    assert resolve_seeds([(3, 4), (5, 2)], None, 2).select(np.array([1])) == [(5, 2)]
    assert hash(many[:2]) == hash(((3, 0), (3, 1)))
    assert repr(many[5:8]) == "SampleSeeds(3, range(5, 8))"
    assert repr(resolve_seeds([1, 2], None, 2)) == "SampleSeeds((1, 0), (2, 0))"
    assert many[:2].divided(3) == [(3, i) for i in range(6)]
    assert resolve_seeds([(3, 4), (5, 2)], None, 2).divided(2) == [(3, 8), (3, 9), (5, 4), (5, 5)]


def test_seeds_of_repetitions() -> None:
    """The same pairs, with a number that tells repetitions of repetitions apart, too."""
    seeds = resolve_seeds(3, None, 2)
    found = {seeds.repeat}
    for k in range(3):
        found |= {seeds.repeated(k).repeat} | {seeds.repeated(k).repeated(j).repeat for j in range(3)}
        assert tuple(seeds.repeated(k)) == tuple(seeds)
        assert seeds.repeated(k) != seeds
    assert len(found) == 13


def test_all_bits_of_a_seed_count() -> None:
    """Seeds that agree in their lower half, once one run, are two; samples of a generator never share their noise."""
    a, b = (sg.VPSDE().prior_sample((4, 3), seed=seed) for seed in (5, 7047780872))
    assert not bool((a == b).any())
    x = sg.VPSDE().prior_sample((300_000, 3), generator=torch.Generator().manual_seed(0))
    assert len(x.unique(dim=0)) == len(x)


def test_seeds_from_generators() -> None:
    """One seed a generator, whose samples are numbered, and the generator is left where that draw left it."""
    g, same = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    drawn = int(torch.randint(2**63 - 1, (), generator=same))
    assert resolve_seeds(None, g, 3) == tuple((drawn, i) for i in range(3))
    several = [torch.Generator().manual_seed(i) for i in range(2)]
    copies = [torch.Generator().manual_seed(i) for i in range(2)]
    expected = tuple((int(torch.randint(2**63 - 1, (), generator=c)), 0) for c in copies)
    assert resolve_seeds(None, several, 2) == expected
    for a, b in zip([g, *several], [same, *copies], strict=True):
        assert torch.equal(a.get_state(), b.get_state())
    with pytest.raises(ValueError, match="got 2 generators for 3 samples"):
        resolve_seeds(None, several, 3)
    with pytest.raises(ValueError, match="not both"):
        resolve_seeds(1, g, 3)


@pytest.mark.parametrize(
    "bad",
    [True, "7", 1.5, torch.tensor([True]), torch.tensor([[5]]), [torch.tensor(True)], {5: 6}, {5}, b"7"],
    ids=["bool", "text", "float", "flags", "matrix", "flag", "mapping", "set", "bytes"],
)
def test_what_is_no_seed(bad: Any) -> None:
    """By what checks seeds, and by what has them."""
    with pytest.raises(TypeError, match="a seed must be an int"):
        check_seeds(bad)
    with pytest.raises(TypeError, match="a seed must be an int"):
        resolve_seeds(bad, None, 1)


@pytest.mark.parametrize("bad", [torch.eye(3).long().to_sparse(), torch.ones(3, dtype=torch.long, device="meta")])
def test_seeds_without_numbers_in_memory(bad: Tensor) -> None:
    """Sparse tensors and those of the device meta are no list of seeds."""
    with pytest.raises(TypeError, match="seeds must be integers, a tensor of them dense, got"):
        check_seeds(bad)
    with pytest.raises(TypeError, match="seeds must be integers, a tensor of them dense, got"):
        resolve_seeds(bad, None, 3)


def test_seeds_from_numbers() -> None:
    """Any integer of 64 bits; a tensor of no dimension is one seed, of one dimension a list; none is fresh entropy."""
    assert resolve_seeds(0, None, 2) == ((0, 0), (0, 1))
    assert resolve_seeds(torch.tensor(5), None, 2) == ((5, 0), (5, 1))
    assert resolve_seeds(torch.tensor([5, 6]), None, 2) == ((5, 0), (6, 0))
    assert resolve_seeds(np.array([5, 2**64 - 1], dtype=np.uint64), None, 2) == ((5, 0), (2**64 - 1, 0))
    assert resolve_seeds([2**64 - 1], None, 1) == ((2**64 - 1, 0),)
    assert resolve_seeds([(7, 2**32 - 1)], None, 1) == ((7, 2**32 - 1),)
    with pytest.raises(ValueError, match=r"the index of a seed must lie in \[0, 2\*\*32\), got 4294967296"):
        resolve_seeds([(7, 2**32)], None, 1)
    with pytest.raises(ValueError, match="got 1 seeds for 2 samples"):
        resolve_seeds([7], None, 2)
    fresh = {resolve_seeds(None, None, 1)[0] for _ in range(8)}
    assert len(fresh) == 8
    assert all(0 <= seed < 2**63 and index == 0 for seed, index in fresh)
    assert max(seed for seed, _ in fresh) >= 2**40


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_have_64_bits(seed: int) -> None:
    with pytest.raises(ValueError, match=str(seed)):
        resolve_seeds(seed, None, 1)


@pytest.mark.parametrize("z", [0.25, -0.25, 0.99, -0.99, 1.0, -1.0, 1.01, -1.01, 1.75, -1.75, -1.99, 6.0, -6.0, -40.0])
@pytest.mark.parametrize("k", range(5))
def test_phi_functions_on_both_sides_of_the_switch(z: float, k: int) -> None:
    """phi_k(z) = sum of z^j / (j + k)!, in exact arithmetic; from |z| = 1 on the recurrence takes over."""
    exact = sum((Fraction(z) ** j / math.factorial(j + k) for j in range(40 if abs(z) < 2 else 180)), Fraction(0))
    assert phi(k, z) == pytest.approx(float(exact), rel=2e-13, abs=0)
    assert float(phi_values(k, column(z))) == pytest.approx(float(exact), rel=2e-13, abs=0)


def test_phi_functions_at_zero_and_far_away() -> None:
    """1/k! at 0, e^z at k = 0, and 1/((k-1)! |z|) in the limit."""
    assert [phi(k, 0.0) for k in range(4)] == [1, 1, 0.5, 1 / 6]
    assert phi(0, 2.0) == math.exp(2.0)
    assert [1e9 * phi(k, -1e9) for k in (1, 2, 3)] == pytest.approx([1, 1, 0.5], rel=1e-8)


@pytest.mark.parametrize("k", range(4))
def test_phi_functions_of_several_numbers(k: int) -> None:
    """Near and far beside one another."""
    several = phi_values(k, column(0.0, -1e9, 2.0, 0.5))
    assert several.tolist() == pytest.approx([phi(k, z) for z in (0.0, -1e9, 2.0, 0.5)], rel=1e-14, abs=0)


@pytest.mark.parametrize("call", [lambda: phi(-1, 1.0), lambda: phi_values(-1, column(1.0))], ids=case_id)
def test_phi_functions_are_counted_from_zero(call: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="got -1"):
        call()


@pytest.mark.parametrize("seed", [torch.Generator(), [torch.Generator()]], ids=["one", "list"])
def test_a_generator_is_no_seed(seed: Any) -> None:
    with pytest.raises(TypeError, match=r"a seed must be an int, got .*: functions that take one have generator="):
        resolve_seeds(seed, None, 1)
