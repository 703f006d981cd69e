"""Brownian paths: increments that add up, a law that is right, and the same noise for any number of steps."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import sgm_sde as sg
from sgm_sde.engine.brownian import BrownianPath, PathNoise, noisy_steps
from sgm_sde.engine.program import Program, Stage
from sgm_sde.grids import Grid, LogSNR, Uniform
from tests.helpers import F64, elementwise_score

PLACES = [0.9, 0.73, 0.41, 0.4, 0.125, 0.001]


def walk(path: BrownianPath, places: list[float]) -> np.ndarray:
    """The increments between places, in order."""
    found = []
    for place in places:
        found.append(path.increment(place))
        path.advance(place)
    return np.stack(found)


@pytest.mark.parametrize("levels", [0, 8])
def test_increments_add_up(levels: int) -> None:
    """W(a, c) = W(a, b) + W(b, c), however the path is asked, both ends included."""
    path = BrownianPath((3, 1), (5,), 1.0, 0.0, levels=levels)
    whole = path.increment(0.0)
    tried = [path.increment(place) for place in (0.4, 0.9, 0.1)]
    assert np.array_equal(path.increment(1.0), np.zeros(5))
    parts = walk(path, [0.9, 0.4, 0.1, 0.0])
    np.testing.assert_allclose(parts[0], tried[1], atol=1e-14)
    np.testing.assert_allclose(parts[:2].sum(0), tried[0], atol=1e-14)
    np.testing.assert_allclose(parts[:3].sum(0), tried[2], atol=1e-14)
    np.testing.assert_allclose(parts.sum(0), whole, atol=1e-14)


@pytest.mark.parametrize("levels", [0, 6])
@pytest.mark.parametrize("clock", ["distance", "exponential"])
def test_increments_are_independent_and_of_the_right_size(clock: str, levels: int) -> None:
    """Normalised increments are uncorrelated with variance 1, whatever was tried and rejected before."""
    n = 20000
    of = (lambda p: p) if clock == "distance" else (lambda p: math.exp(-5 * p))
    path = BrownianPath((0, 0), (n,), 1.0, 0.0, levels=levels, clock=of)
    z, before = [], 1.0
    for place in PLACES:
        path.increment(place / 2)  # a step too long, rejected
        z.append(path.increment(place) / math.sqrt(abs(of(before) - of(place))))
        path.advance(place)
        before = place
    covariance = np.cov(np.stack(z))
    assert np.abs(covariance - np.eye(len(PLACES))).max() < 5 * math.sqrt(2 / n)


def test_the_tree_makes_paths_agree() -> None:
    """Two walks over one seed agree at shared places to the resolution of the tree, and at its nodes exactly."""
    coarse = walk(BrownianPath((7, 0), (500,), 1.0, 0.0, levels=10), [0.75, 0.5, 0.3, 0.0])
    fine = walk(BrownianPath((7, 0), (500,), 1.0, 0.0, levels=10), [0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0])
    np.testing.assert_allclose(fine[:2].sum(0), coarse[0], atol=1e-13)
    np.testing.assert_allclose(fine[2:4].sum(0), coarse[1], atol=1e-13)
    difference = fine[4:6].sum(0) - coarse[2]
    assert 0 < np.sqrt(np.mean(difference**2)) < 2 * 2.0**-5
    other = walk(BrownianPath((7, 1), (500,), 1.0, 0.0, levels=10), [0.75, 0.5, 0.3, 0.0])
    assert abs(np.corrcoef(other.ravel(), coarse.ravel())[0, 1]) < 5 / math.sqrt(coarse.size)


@pytest.mark.parametrize("place", [-0.1, 1.1])
def test_a_path_ends_where_it_ends(place: float) -> None:
    """Beyond the end and behind the place where it stands there is nothing to ask for."""
    path = BrownianPath((0, 0), (2,), 1.0, 0.0)
    with pytest.raises(ValueError, match=f"increment to {place} was asked for"):
        path.increment(place)
    path.increment(0.0)
    path.advance(0.0)
    with pytest.raises(ValueError, match="has ended"):
        path.increment(0.0)


# --- Noises of a program ---------------------------------------------------------------------------------------------


def test_noises_of_a_program_by_hand() -> None:
    """Each is the increment over its step over its standard deviation, for every sample; 12 halvings unless told."""
    grid = [0.9, 0.5, 0.3, 0.1]
    program = sg.DDIM(eta=1.0).compile(sg.VPSDE(), Grid(grid))
    seeds = [(3, 1), (3, 2)]

    def clock(t: float) -> float:
        return math.exp(-t)

    def middle(a: float, b: float) -> float:
        return (2 * a + b) / 3

    def by_hand(levels: int) -> np.ndarray:
        paths = [BrownianPath(seed, (4,), 0.9, 0.1, clock=clock, middle=middle, levels=levels) for seed in seeds]
        steps = np.stack([walk(path, grid[1:]) for path in paths], 1)
        return steps / np.sqrt(np.diff([clock(t) for t in grid]))[:, None, None]

    for options, levels in (({}, 12), ({"levels": 3}, 3)):
        noise = PathNoise(program, seeds, clock=clock, middle=middle, **options)
        z = torch.stack([noise.normal((2, 4), F64) for _ in range(3)])
        np.testing.assert_allclose(z.numpy(), by_hand(levels), rtol=1e-12)
    assert np.abs(by_hand(12) - by_hand(11)).max() > 1e-6


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
    given = {"noise": "path", "seed": 0, "grid": LogSNR(), "final": "none", "dtype": F64} | options
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
    """With the method's own clock, noises of short steps add up: any grid through a time gives the same state there."""
    sde = sg.VPSDE()
    score = sg.oracles.Gaussian(torch.zeros(3), 0.0).score(sde)

    def at(times: list[float]) -> torch.Tensor:
        return sg.sample(
            score, sde, (4, 3), solver="euler-ancestral", grid=times, seed=0, noise="path", final="none", dtype=F64
        ).x  # fmt: skip

    halves = [1.0]
    for _ in range(3):  # nodes of the tree between 1 and 0.1
        a, b = halves[-1], 0.1
        halves.append(float(sde.time((sde.log_snr(a) + sde.log_snr(b)) / 2)))
    torch.testing.assert_close(at([1.0, 0.1]), at([*halves, 0.1]), rtol=1e-9, atol=1e-9)


def test_noises_have_the_right_law() -> None:
    """Whatever the solver's clock, the noises of a program are standard normal and independent."""
    sde, n = sg.VPSDE(), 60
    for name in ("euler-maruyama", "sde-dpm++2m", "sde-dpm2m", "dpm2-ancestral"):
        solver = sg.solvers.__globals__["resolve"](name)
        program = solver.compile(sde, Uniform()(sde, 6))
        source = PathNoise(
            program, [(0, i) for i in range(n)], clock=lambda t, s=solver: s.clock(sde, t),
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
    assert torch.equal(run("ddim", 5, sg.VPSDE()), run("ddim", 5, sg.VPSDE(), noise="independent"))
