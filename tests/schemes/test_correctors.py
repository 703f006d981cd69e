"""Correctors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.schemes.correctors import Corrector
from tests.by_hand import EDM, DoubleWell, column
from tests.helpers import F64, stream


def test_defaults_of_the_correctors() -> None:
    """The papers' constants."""
    assert repr(sg.Langevin()) == "Langevin(snr=0.16, n_steps=1, norm='expected', data_std=0.0)"
    assert repr(sg.schemes.AnnealedLangevin()) == "AnnealedLangevin(step_ratio=0.2, n_steps=100)"
    assert sg.PredictorCorrector(sg.DDIM(), sg.Langevin()).sequence == "PC"
    assert sg.PredictorCorrector(sg.DDIM(), sg.Langevin()).stochastic and sg.schemes.AnnealedLangevin().stochastic
    assert sg.PredictorCorrector(sg.DDIM(), sg.Langevin(), "PC", sequence="CP").sequence == "CP"


def test_langevin_s_update() -> None:
    """epsilon = 2 a (r |z|/|s|)^2 with the norms of each sample, or of the batch on average; a number of its own."""
    x, s = torch.zeros(2, 2, dtype=F64), column(3.0, 4.0, 6.0, 8.0).reshape(2, 2)  # |s| = 5, 10
    z = column(1.0, 0.0, 0.0, 3.0).reshape(2, 2)  # |z| = 1, 3
    ratios = {"sample": (1 / 5, 3 / 10), "batch": (2 / 7.5, 2 / 7.5)}
    for norm, ratio in ratios.items():
        mean, added = sg.Langevin(snr=0.5, norm=norm).update(x + 1, s, z, 0.25)
        epsilon = [2 * 0.25 * (0.5 * q) ** 2 for q in ratio]
        for row in (0, 1):
            assert mean[row].tolist() == pytest.approx([1 + epsilon[row] * v for v in s[row].tolist()])
            assert added[row].tolist() == pytest.approx([math.sqrt(2 * epsilon[row]) * v for v in z[row].tolist()])
    mean, added = sg.Langevin(norm="sample").update(x + 1, 0 * s, z, 1.0)  # no score, no move
    assert (mean.tolist(), added.tolist()) == ([[1, 1], [1, 1]], [[0, 0], [0, 0]])
    mean, added = sg.Langevin().update(x + 1, s, z, 0.5)
    assert (mean.tolist(), added.tolist()) == ([[2.5, 3], [4, 5]], [[1, 0], [0, 3]])


def test_langevin_s_factor() -> None:
    """Ours has none: steps of (r sigma)^2, or of the data's scale too where it is given."""
    grid = sg.Grid([0.75, 0.5, 0.25])
    flow = sg.RectifiedFlowSDE()
    with pytest.raises(TypeError, match=r"Langevin\(\) takes its step size from alpha\(t\) and sigma\(t\)"):
        sg.Langevin().constants(DoubleWell(), grid)
    # On flow alpha = 1 - t and sigma = t.
    known = [2 * 0.1**2 * t**2 for t in grid.times]
    assert sg.Langevin(0.1).constants(flow, grid) == pytest.approx(known)
    wide = [2 * 0.1**2 * (t**2 + (1 - t) ** 2 * 9) for t in grid.times]
    assert sg.Langevin(0.1, data_std=3.0).constants(flow, grid) == pytest.approx(wide)
    annealed = sg.schemes.AnnealedLangevin(step_ratio=0.5)
    assert annealed.constants(EDM, sg.Grid([4.0, 2.0, 1.0])) == [8.0, 2.0, 0.5]
    mean, added = annealed.update(column(1.0), column(2.0), column(3.0), 0.25)
    assert (float(mean), float(added)) == (1.25, 1.5)


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_langevin_s_factor_is_that_of_both_norms(norm: str) -> None:
    """Published: (alpha_i / alpha_(i+1))^2 to the next cleaner node, t = 0 after the last."""
    grid = sg.Grid([0.75, 0.5, 0.25])
    flow = sg.RectifiedFlowSDE()
    factors = [1 / 4, 4 / 9, 9 / 16]

    assert sg.Langevin(norm=norm).constants(flow, grid) == pytest.approx(factors)
    assert sg.Langevin(norm=norm).constants(DoubleWell(), grid) == [1.0, 1.0, 1.0]


class Halving(Corrector):
    """Halves the state and adds the noise's constant, here 1 a node."""

    n_steps = 2

    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        return x / 2, torch.full_like(x, constant)


class Network:
    """Stands for a bound model."""

    def expect(self, times: Sequence[float], x: Tensor) -> Sequence[float]:
        return times

    def predict(self, target: str, x: Tensor, t: float, *, times: float) -> Tensor:
        assert times == t
        return x


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("i", range(3))
def test_correctors_at_a_node(mean: bool, i: int) -> None:
    """n_steps updates with their noise, without the noise of the very last one if the run ends in a mean."""
    grid = sg.Grid([4.0, 2.0, 1.0])
    correct = Halving().corrector(EDM, grid, Network(), stream(1), mean=mean)

    x = float(correct(torch.full((1, 1), 4.0), i))
    assert x == ((4 / 2 + 1) / 2 + 1 if i < 2 or not mean else (4 / 2 + 1) / 2)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("order", ["PC", "CP"])
def test_predictor_corrector_s_nodes(order: str, mean: bool) -> None:
    """PC corrects all nodes but the first, CP all but the last; who has the last word leaves its noise out."""
    grid = sg.Grid([4.0, 2.0, 1.0])
    outer = sg.PredictorCorrector(sg.PredictorCorrector(sg.DDIM(eta=1.0), Halving(), "CP"), Halving(), order)
    inner_hook, hook = outer.hooks(EDM, grid, Network(), stream(1), mean=mean)
    corrected, no_noise = (4 / 2 + 1) / 2 + 1, (4 / 2 + 1) / 2
    last = no_noise if mean else corrected
    expected = [4.0, corrected, last] if order == "PC" else [corrected, corrected, 4.0]
    four = torch.full((1, 1), 4.0)
    assert [float(hook(four, i)) for i in range(3)] == expected
    assert [float(inner_hook(four, i)) for i in range(3)] == [corrected, corrected, 4.0]
    program = sg.DDIM(eta=1.0).compile(EDM, grid)
    ended = sg.PredictorCorrector(sg.DDIM(eta=1.0), Halving(), order).end_in_mean(program)
    assert bool(ended.stages[-1].noises) is (order == "PC")


@pytest.mark.parametrize("order", ["PC", "CP"])
def test_a_predictor_s_own_hooks_end_in_a_mean_with_cp(order: str) -> None:
    """The predictor's hooks are told of the mean only where they have the last word."""
    told: list[bool] = []

    class Hooked(sg.DDIM):
        def hooks(self, sde: Any, grid: Any, model: Any, noise: Any, *, mean: bool) -> tuple[Any, ...]:
            told.append(mean)
            return ()

    solver = sg.PredictorCorrector(Hooked(), Halving(), order)
    for mean in (False, True):
        solver.hooks(EDM, sg.Grid([4.0, 2.0]), Network(), stream(1), mean=mean)
    assert told == [False, order == "CP"]
