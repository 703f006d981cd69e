"""Brownian paths: increments that add up, a law that is right, and the same noise for any number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

import sgm_sde as sg
from sgm_sde.engine import brownian
from sgm_sde.engine.brownian import FEW, KEPT, BrownianTree, PathNoise, PathWithArea, _half_of, noisy_steps
from sgm_sde.engine.noise import NoiseStream, SampleSeeds
from sgm_sde.engine.program import Program, Stage
from sgm_sde.grids import Grid, LogSNR, Uniform
from sgm_sde.schemes import resolve
from tests.conventions import case_id
from tests.helpers import DOUBLE, F64, elementwise_score

Clock, Middle = Callable[[float], float], Callable[[float, float], float]
PLACES = [1 / 8, 1 / 4, 5 / 16, 1 / 2, 341 / 512, 2 / 3, 1.0]


def tree(n: int, d: int, **options: object) -> BrownianTree:
    """The paths of n samples of d numbers."""
    return BrownianTree(SampleSeeds(options.pop("seed", 3), range(n)), (d,), 1.0)


def at(paths: BrownianTree, place: float, n: int) -> np.ndarray:
    """All paths at one place."""
    return paths.at(np.full(n, place), np.arange(n))


def of_node(stream: NoiseStream, node: int, d: int) -> np.ndarray:
    """The noise (d,) of a node for the first sample: a draw of large ones, and of others what belongs to the node."""
    if d >= FEW:
        return stream.at(node, (1, d), F64).numpy()[0]
    return stream.of_nodes(node, stream.keys(d))[:d, 0].astype(np.float64)


# --- the tree --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 8, 150])
def test_a_path_is_a_function(d: int) -> None:
    """The same whatever is asked, of whom and in which order, to the last bit."""
    n = 6
    known = {place: at(tree(n, d), place, n) for place in [0.0, *PLACES]}
    assert np.array_equal(known[0.0], np.zeros((n, d)))
    paths, who = tree(n, d), np.array([4, 1, 1, 5, 0, 4, 2])
    mixed = paths.at(np.array(PLACES), who)
    for row, (place, i) in enumerate(zip(PLACES, who, strict=True)):
        assert np.array_equal(mixed[row], known[place][i])
    alone = BrownianTree(SampleSeeds(3, range(4, 5)), (d,), 1.0)
    assert np.array_equal(alone.at(np.array([PLACES[2]]), np.zeros(1, dtype=int))[0], known[PLACES[2]][4])
    assert not np.array_equal(at(tree(n, d, seed=4), 0.5, n), known[0.5])


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("pieces", [0, 1, 16])
def test_what_is_made_for_all_samples_changes_no_path(d: int, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the first pieces, one or some of them, to the last bit."""
    n = 6
    known = [at(tree(n, d), place, n) for place in PLACES]
    monkeypatch.setattr(brownian, "MADE", (pieces + 1) * n * d if pieces else 0)
    paths = tree(n, d)
    assert paths._held == {0: -1, 1: 0, 16: 4}[pieces]
    for place, path in zip(PLACES, known, strict=True):
        assert np.array_equal(at(paths, place, n), path)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_increments_are_independent_and_of_the_right_size(d: int) -> None:
    """Normalised increments between places, binary fractions or not, are uncorrelated with variance 1."""
    n = 20000 // d
    paths, z, before, place_before = tree(n, d), [], np.zeros((n, d)), 0.0
    for place in PLACES:
        now = at(paths, place, n)
        z.append((now - before).ravel() / math.sqrt(place - place_before))
        before, place_before = now, place
    covariance = np.cov(np.stack(z))
    assert np.abs(covariance - np.eye(len(PLACES))).max() < 5 * math.sqrt(2 / 20000)
    squares = np.stack(z) ** 2 - 1
    assert np.abs(np.corrcoef(squares) - np.eye(len(PLACES))).max() < 5 / math.sqrt(20000)


TINY = [2.0**-80, 1.7 * 2.0**-70, 2.0**-64, (1 + 2.0**-52) * 2.0**-63]


@pytest.mark.parametrize("d", [1, 3])
def test_increments_between_places_next_to_nothing(d: int) -> None:
    """Deeper than 64 bits count nodes, in any order, by whatever way the places are reached."""
    n = 1500 // d
    places = [*TINY, *PLACES]
    paths = tree(n, d)
    known = {place: at(paths, place, n) for place in places}
    backwards = tree(n, d)
    for place in reversed(places):
        assert np.array_equal(at(backwards, place, n), known[place])

    z = []
    before, place_before = np.zeros((n, d)), 0.0
    for place in places:
        z.append((known[place] - before).ravel() / math.sqrt(place - place_before))
        before, place_before = known[place], place
    covariance = np.cov(np.stack(z))
    assert np.abs(covariance - np.eye(len(places))).max() < 5 * math.sqrt(2 / (n * d))
    smallest = 2.0**-1074
    assert 0 < np.abs(at(tree(2, d), smallest, 2)).max() < 7 * math.sqrt(smallest)


@pytest.mark.parametrize("d", [1, 3, 70])
def test_places_of_all_depths_together(d: int) -> None:
    """Each path is what it is alone, to the last bit, however many halvings the others take."""
    places = np.array([1.0, 2.0**-1074, 0.5, *TINY, 0.0, *PLACES, 1 - 2.0**-53])
    n = len(places)
    together = tree(n, d).at(places, np.arange(n))
    alone = [tree(n, d).at(places[i : i + 1], np.array([i]))[0] for i in range(n)]
    assert np.array_equal(together, np.stack(alone))


def test_nodes_of_the_path_have_numbers_of_their_own() -> None:
    """Those on the ways to places of 53 digits, wherever their first digit is."""
    numbers: dict[int, tuple[int, int]] = {}
    rng = np.random.default_rng(0)
    for place in rng.random(300) * 2.0 ** -rng.integers(0, 1021, 300):
        node, below, k, level = np.ones(1, dtype=np.uint64), place, 0, 0
        while below > 0:
            assert numbers.setdefault(int(node[0]), (level, k)) == (level, k)
            right = 2 * below >= 1
            below = 2 * below - right
            node, k, level = _half_of(node, np.array([right]), level), 2 * k + right, level + 1
    assert 0 not in numbers


@pytest.mark.parametrize("d", [1, 2, 3, 70])
def test_halvings_by_hand(d: int) -> None:
    """W(1) is draw 0; half-way stands half of it and half of the noise of node 1; and so on, the halves of k being 2k
    and 2k + 1, of which large samples have a draw each, and small ones what belongs to nodes."""
    stream = NoiseStream([(3, 0)], "path", 1.0)

    z = partial(of_node, stream, d=d)
    whole = stream.at(0, (1, d), F64).numpy()[0]
    half = whole / 2 + z(1) / 2
    quarter = half / 2 + math.sqrt(1 / 8) * z(2)
    third = half + (whole - half) / 2 + math.sqrt(1 / 8) * z(3)
    eighth = quarter / 2 + math.sqrt(1 / 16) * z(4)
    eleven = half + (third - half) / 2 + math.sqrt(1 / 16) * z(6)
    sixteenth = eighth / 2 + math.sqrt(1 / 32) * z(8)
    for place, known in (
        (1.0, whole), (0.5, half), (0.25, quarter), (0.75, third), (0.125, eighth), (0.625, eleven),
        (0.0625, sixteenth),
    ):  # fmt: skip
        np.testing.assert_allclose(at(tree(1, d), place, 1)[0], known, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("d", [2, 70])
@pytest.mark.parametrize("digits", [0b1, 0b1011, 0b10110101, 0b110010111001])
def test_bridges_by_hand(d: int, digits: int) -> None:
    """Halving after halving down to a place of 12 digits."""
    stream = NoiseStream([(3, 0)], "path", 1.0)
    whole = stream.at(0, (1, d), F64).numpy()[0]
    start, end = np.zeros(d), whole
    node = 1
    for level in range(12):
        middle = (start + end) / 2 + of_node(stream, node, d) * 2 ** (-1 - level / 2)
        right = digits >> (11 - level) & 1
        start, end = (middle, end) if right else (start, middle)
        node = 2 * node + right
    np.testing.assert_allclose(at(tree(1, d), digits / 2**12, 1)[0], start, rtol=1e-12, atol=1e-13)


# --- Noises of a program ---------------------------------------------------------------------------------------------


def bridges(
    seeds: list[tuple[int, int]], d: int, times: list[float], brownian_time: object, middle: object, levels: int
) -> list:
    """Increments between times, by bridges from the whole path on: in the middle of a piece down to so many levels, at
    the time itself below, with the draw of the piece's number and of how often it has been cut below."""
    stream = NoiseStream(seeds, "path", times[0])

    def z(node: int, cut: int = 0) -> np.ndarray:
        return stream.at(node + cut * 2**32, (len(seeds), d), F64).numpy()

    a, b = times[0], times[-1]
    pieces = [(a, b, math.sqrt(abs(brownian_time(b) - brownian_time(a))) * z(0), 1, 0)]
    for time in times[1:-1]:
        while all(time != end for _, end, *_ in pieces):
            (k,) = [k for k, (a, b, *_) in enumerate(pieces) if min(a, b) < time < max(a, b)]
            a, b, increment, node, cut = pieces.pop(k)
            m = middle(a, b) if node < 2**levels else time
            near, far = abs(brownian_time(m) - brownian_time(a)), abs(brownian_time(b) - brownian_time(m))
            first = near / (near + far) * increment + math.sqrt(near * far / (near + far)) * z(node, cut)
            halves = ((2 * node, 0), (2 * node + 1, 0)) if node < 2**levels else ((node, cut), (node, cut + 1))
            pieces[k:k] = [(a, m, first, *halves[0]), (m, b, increment - first, *halves[1])]
    found = []
    for start, end in pairwise(times):
        found.append(sum(w for a, b, w, *_ in pieces if min(start, end) <= min(a, b) and max(a, b) <= max(start, end)))
    return found


GRID = [0.9, 0.5, 0.3, 0.299, 0.298, 0.1]
SEEDS = [(3, 1), (3, 2)]


def falling(t: float) -> float:
    """A Brownian time of one's own."""
    return math.exp(-t)


def third(a: float, b: float) -> float:
    """A middle of one's own."""
    return (2 * a + b) / 3


def noises_by_hand(levels: int) -> np.ndarray:
    """Increments over their standard deviations."""
    steps = np.stack(bridges(SEEDS, 4, GRID, falling, third, levels))
    return steps / np.sqrt(np.diff([falling(t) for t in GRID]))[:, None, None]


@pytest.mark.parametrize("options, levels", [({}, 8), ({"levels": 3}, 3), ({"levels": 0}, 0)], ids=case_id)
def test_noises_of_a_program_by_hand(options: dict[str, int], levels: int) -> None:
    """Each is the increment over its step over its standard deviation, for every sample; 8 halvings unless told."""
    program = sg.DDIM(eta=1.0).compile(sg.VPSDE(), Grid(GRID))
    noise = PathNoise(program, SEEDS, brownian_time=falling, middle=third, **options)
    z = torch.stack([noise.normal((2, 4), F64) for _ in range(5)])
    np.testing.assert_allclose(z.numpy(), noises_by_hand(levels), rtol=1e-3, atol=1e-4)


def test_a_halving_more_is_another_noise() -> None:
    """By more than the tolerance of the comparison by hand."""
    assert np.abs(noises_by_hand(8) - noises_by_hand(7)).max() > 1e-3


def test_grids_share_their_path() -> None:
    """A time of two grids has the same state on the path in both, where no other time lies in its piece of the tree."""
    coarse = [1.0, 0.71, 0.5, 0.29, 0.1]
    fine = sorted([*coarse, 0.9, 0.6, 0.4, 0.2], reverse=True)
    found = []
    for grid in (coarse, fine):
        program = sg.DDIM(eta=1.0).compile(sg.VPSDE(), Grid(grid))
        noise = PathNoise(program, [(7, 0), (7, 1)], brownian_time=lambda t: t, middle=lambda a, b: (a + b) / 2)
        steps = [noise.normal((2, 50), F64) * math.sqrt(a - b) for a, b in pairwise(grid)]
        found.append(dict(zip(grid[1:], torch.stack(steps).cumsum(0), strict=True)))
    for time in coarse[1:]:
        torch.testing.assert_close(found[0][time], found[1][time], rtol=0, atol=2e-6)


def test_which_step_a_noise_belongs_to() -> None:
    """The step in which a noise is first used, whichever stage of it; one that is used again is drawn once."""
    noisy = {"states": ((0, 1.0),), "evaluate": True}
    stages = (
        Stage(1.0, evaluate=True, node=True),
        Stage(0.9, **noisy),
        Stage(0.8, **noisy, node=True),  # a step without noise
        Stage(0.7, **noisy, noises=((0, 1.0),)),  # inside of a step
        Stage(0.6, **noisy, noises=((0, 0.5),), node=True),
        Stage(0.5, **noisy, noises=((1, 1.0), (0, 0.1)), node=True),
        Stage(0.4, **noisy, noises=((1, 1.0),), node=True),
        Stage(0.3, **noisy, noises=((2, 1.0),), node=True),
    )
    assert noisy_steps(Program("p", "data", stages)) == [(0.8, 0.6), (0.6, 0.5), (0.4, 0.3)]
    twice = replace(stages[-1], noises=((2, 1.0), (3, 1.0)))
    with pytest.raises(ValueError, match="p draws more than one noise in a step"):
        noisy_steps(Program("p", "data", (*stages[:-1], twice)))


# --- sample(noise="path") --------------------------------------------------------------------------------------------


def run(name: str | sg.Solver, steps: int, sde: sg.LinearSDE, n: int = 12, **options: object) -> torch.Tensor:
    """Last states of a run on a log-SNR grid, with noise from paths."""
    given = {"noise": "path", "seed": 0, "grid": LogSNR(), "final": "none", "execution": DOUBLE} | options
    return sg.sample(elementwise_score(sde), sde, (n, 4), solver=name, steps=steps, **given).x


@pytest.mark.parametrize(
    ("name", "process"),
    [("euler-maruyama", sg.VPSDE()), ("euler-ancestral", sg.EDMSDE()), ("sde-dpm++2m", sg.VPSDE())],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_strong_order(name: str, process: sg.LinearSDE) -> None:
    """On one path the distance between n and 2n steps falls like 1/n: strong order 1 of additive noise."""
    states = [run(name, steps, process) for steps in (20, 40, 80, 160)]
    apart = [float((a - b).square().mean().sqrt()) for a, b in pairwise(states)]
    assert math.log2(apart[0] / apart[2]) / 2 > 0.8, apart
    independent = [run(name, steps, process, noise="independent") for steps in (80, 160)]
    assert float((independent[0] - independent[1]).square().mean().sqrt()) > 10 * apart[2]


def test_all_mass_at_one_point_is_exact() -> None:
    """With the method's own Brownian time noises of short steps add up: the state at a time is that of any grid."""
    sde = sg.VPSDE()
    score = sg.oracles.Gaussian(torch.zeros(3), 0.0).score(sde)

    def at(times: list[float]) -> torch.Tensor:
        return sg.sample(
            score,
            sde,
            (4, 3),
            solver="euler-ancestral",
            grid=times,
            seed=0,
            noise="path",
            final="none",
            execution=DOUBLE,
        ).x

    halves = [1.0]
    for _ in range(3):  # nodes of the tree between 1 and 0.1
        a, b = halves[-1], 0.1
        halves.append(float(sde.time((sde.log_snr(a) + sde.log_snr(b)) / 2)))
    torch.testing.assert_close(at([1.0, 0.1]), at([*halves, 0.1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["euler-maruyama", "sde-dpm++2m", "sde-dpm2m-published", "dpm2-ancestral"])
def test_noises_have_the_right_law(name: str) -> None:
    """Whatever the solver's Brownian time, the noises of a program are standard normal and independent."""
    sde, n = sg.VPSDE(), 60
    solver = resolve(name)
    program = solver.compile(sde, Uniform()(sde, 6))
    source = PathNoise(
        program, [(0, i) for i in range(n)], brownian_time=lambda t, s=solver: s.brownian_time(sde, t),
        middle=lambda a, b: (a + b) / 2, levels=5,
    )  # fmt: skip
    draws = len(noisy_steps(program))
    z = torch.stack([source.normal((n, 250), F64).reshape(-1) for _ in range(draws)])
    assert float((torch.cov(z) - torch.eye(draws, dtype=F64)).abs().max()) < 5 * math.sqrt(2 / z.shape[1]), name


def test_a_sample_is_what_it_is_alone() -> None:
    """Paths belong to samples: alone, in a batch, in another order."""
    sde = sg.VPSDE()
    together = run("sde-dpm++2m", 10, sde, 3, seed=[5, 6, 7])
    assert torch.equal(run("sde-dpm++2m", 10, sde, 1, seed=[6])[0], together[1])
    assert torch.equal(run("sde-dpm++2m", 10, sde, 2, seed=[7, 5]), together[[2, 0]])


def test_a_corrector_keeps_its_own_noise() -> None:
    """A predictor's path and a corrector's stream go together."""
    pc = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr=0.05))
    assert bool(run(pc, 10, sg.VPSDE()).isfinite().all())


def test_what_has_no_path() -> None:
    """Solvers with more noises in a step, ends without log-SNR, and unknown choices are refused in words."""
    with pytest.raises(ValueError, match="seeds2 draws more than one noise in a step"):
        run("seeds2", 5, sg.VPSDE())
    with pytest.raises(ValueError, match="noise must be one of 'independent', 'path', got 'tree'"):
        run("ddim", 5, sg.VPSDE(), noise="tree")
    with pytest.raises(ValueError, match=r"needs a finite log-SNR at both ends, and at t=0\.0"):
        sg.sample(lambda x, t: -x, sg.VPSDE(), (2, 2), solver="euler-ancestral", grid=[1.0, 0.5, 0.0], noise="path")
    with pytest.raises(ValueError, match="noise='path' would change nothing: ddim draws no noise in its steps"):
        run("ddim", 5, sg.VPSDE())


# --- Paths with the area below them ----------------------------------------------------------------------------------


def with_area(n: int = 3, d: int = 4, seed: int = 7) -> PathWithArea:
    """Paths on [0, 2]."""
    return PathWithArea(SampleSeeds(seed, range(n)), (n, d), 2.0, 1.0, F64, with_area=True)


def test_areas_add_up() -> None:
    """The increment and the area of a piece are those of its parts, wherever it is cut."""
    paths = with_area()
    w, area = paths.between(0.0, 1.3)
    parts = [paths.between(a, b) for a, b in pairwise((0.0, 0.7, 0.9, 1.3))]
    torch.testing.assert_close(w, sum(part[0] for part in parts))

    total = torch.zeros_like(w)
    below = torch.zeros_like(w)
    for (part, own), length in zip(parts, (0.7, 0.2, 0.4), strict=True):
        assert own is not None
        total = total + own + below * length
        below = below + part
    torch.testing.assert_close(area, total)


def test_the_law_of_increments_and_areas() -> None:
    """Normal, independent between pieces, with the covariance of a path and its integral, also where a step is tried
    again with two halves, and where pieces of different lengths meet."""
    paths = with_area(1, 40_000)
    paths.between(0.0, 1.5)
    places = (0.0, 0.3, 0.45, 1.1, 2.0)
    rows = torch.cat([torch.cat([w, area]) for w, area in (paths.between(a, b) for a, b in pairwise(places))])
    expected = torch.block_diag(
        *(torch.tensor([[h, h**2 / 2], [h**2 / 2, h**3 / 3]], dtype=F64) for h in (b - a for a, b in pairwise(places)))
    )
    size = expected.diag().sqrt()
    normed = (torch.cov(rows) - expected) / torch.outer(size, size)
    assert float(normed.abs().max()) < 0.03  # six standard deviations
    kurtosis = (rows / size[:, None]).pow(4).mean(1)
    assert float((kurtosis - 3).abs().max()) < 0.3


@pytest.mark.parametrize("area", [False, True])
def test_paths_of_a_sample_are_its_own(area: bool) -> None:
    """Alone and in a batch, with area and without."""
    seeds = SampleSeeds(3, range(4))
    all_of_them = PathWithArea(seeds, (4, 5), 2.0, 1.0, F64, with_area=area)
    alone = PathWithArea(seeds[2:3], (1, 5), 2.0, 1.0, F64, with_area=area)
    pieces = [(0.0, 0.5), (0.0, 0.25), (0.25, 0.5), (0.5, 2.0)]  # each after the one before
    in_batch = [value for a, b in pieces for value in all_of_them.between(a, b)]
    by_itself = [value for a, b in pieces for value in alone.between(a, b)]
    for one, other in zip(in_batch, by_itself, strict=True):
        assert one is other is None or torch.equal(one[2:3], other)


PLACES_ON_THE_WAY = torch.linspace(0, 2, 41, dtype=F64).tolist()


def test_what_lies_behind_is_dropped() -> None:
    """All but a few pieces."""
    paths = with_area()
    for a, b in pairwise(PLACES_ON_THE_WAY):
        paths.between(a, b)
        assert len(paths._intervals) <= KEPT + 2
    paths.between(PLACES_ON_THE_WAY[-6], PLACES_ON_THE_WAY[-5])


@pytest.mark.parametrize("a, b", [(0.0, 0.1), (1.9, 2.1), (2.0, 2.0)])
def test_what_is_not_known_is_refused(a: float, b: float) -> None:
    """What was dropped, a place outside, and no piece at all."""
    paths = with_area()
    for start, end in pairwise(PLACES_ON_THE_WAY):
        paths.between(start, end)
    with pytest.raises(ValueError, match="the paths are known from"):
        paths.between(a, b)
