"""Samples that are averages of data closer to each other than the noise at the last network call."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.sampling.resolution import UnresolvedWarning, words_if_unresolved
from tests.conventions import case_id

F64 = torch.float64
VP = sg.VPSDE()
MODES = torch.tensor([[-1.0], [0.3], [1.2]], dtype=F64)


def score_of(scale: float, centre: float = 0.0) -> Any:
    """The exact score of three modes, of the scale given."""
    return sg.oracles.GaussianMixture(centre + scale * MODES, 0.2 * scale).score(VP)


@pytest.mark.parametrize("centre", [0.0, 3.0])
def test_small_data_at_few_calls(centre: float) -> None:
    """Of data of the scale .02 the default of 8 calls returns averages, a tenth as wide as they should be."""
    score = score_of(0.02, centre)
    with pytest.warns(
        UnresolvedWarning, match=r"all numbers .*, by 0.00\d+ where sigma / alpha is 0.12, .*`pilot` .*data_std="
    ):
        found = sg.sample(score, VP, (64, 1), nfe=8, seed=0, execution=sg.Execution(dtype=F64))
    assert found.status.ok
    exact = sg.sample(score, VP, (64, 1), nfe=200, seed=0, execution=sg.Execution(dtype=F64)).x
    assert float(found.x.std()) < 0.25 * float(exact.std())


@pytest.mark.parametrize(
    "scale, options",
    [
        (1.0, {"nfe": 4}),
        (1.0, {"nfe": 8}),
        (0.02, {"nfe": 30}),
        (0.02, {"nfe": 8, "solver": sg.defaults.default_setting(VP, 8, data_std=0.02)}),
        (0.02, {"nfe": 8, "solver": "dpm++2m"}),
        (0.02, {"nfe": 8, "t_end": 0.1}),
        (0.02, {"grid": sg.grids.LogSNR()(VP, 8, t_end=0.1), "solver": "ddim"}),
        (0.02, {"nfe": 3}),
        (0.02, {"nfe": 8, "shape": (8, 1)}),
        (1e-9, {"nfe": 8}),
    ],
    ids=case_id,
)
def test_runs_that_are_not_told(scale: float, options: dict[str, Any]) -> None:
    """Data that are resolved, ends that the caller chose, few samples, networks of few calls, and data at a point."""
    sg.sample(score_of(scale, 3.0), VP, **({"shape": (64, 1), "seed": 0} | options))


@pytest.mark.parametrize("options", [{"nfe": 50}, {"nfe": 100}, {"nfe": 50, "solver": "dpm++2m"}], ids=case_id)
@pytest.mark.parametrize("sde", [VP, sg.EDMSDE(), sg.RectifiedFlowSDE()], ids=str)
def test_a_number_narrower_than_the_noise_at_eps(sde: sg.LinearSDE, options: dict[str, Any]) -> None:
    """No solver resolves it: N(0, S^2) comes back as S^2 / s, a fifth of S."""
    end = sde.nodes((sde.eps,))[0].noise_level
    score = sg.oracles.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, (end / 5) ** 2]))).score(sde)
    with pytest.warns(UnresolvedWarning, match=rf"at eps={sde.eps:g} the process ends in more"):
        found = sg.sample(score, sde, (64, 2), seed=0, **options)
    assert float(found.x[:, 1].std()) < 0.3 * end / 5


LINE = torch.linspace(-1, 1, 65)[:, None]  # of standard deviation .591
CURVE = 1.75 * LINE**2
BENT = 2.5 * LINE**3 - 1.5 * LINE


@pytest.mark.parametrize(
    "x, level, words",
    [
        (torch.zeros(0, 2), 1.0, None),
        (torch.zeros(64, 0), 1.0, None),
        (torch.zeros(64, 2), 1.0, None),
        (torch.zeros(64, 2, device="meta"), 1.0, None),
        (LINE[:9], 2.0, None),
        (LINE, 1.1, None),
        (LINE, 1.2, "all numbers .* by 0.59 where sigma / alpha is 1.2"),
        (LINE.bfloat16(), 1.2, "all numbers .* by 0.59"),
        (torch.cat([LINE, CURVE / 100], 1), 0.1, "1 of 2 numbers .* by 0.0054"),
        (torch.cat([LINE, LINE / 100], 1), 0.1, None),
        (torch.cat([LINE, CURVE, (LINE + CURVE) / 50, LINE / 500], 1), 0.1, None),
        (torch.cat([LINE, CURVE, (LINE + CURVE) / 50, BENT / 500], 1), 0.1, "1 of 4 numbers"),
        (torch.cat([LINE, 1 + 0 * LINE], 1), 0.1, None),
        (torch.cat([LINE.expand(-1, 16), LINE / 100], 1), 0.1, None),
        (torch.cat([LINE.expand(-1, 16), LINE / 100], 1), 1.2, "all numbers .* by 0.0059"),
    ],
    ids=case_id,
)
def test_numbers_beside_the_noise(x: Tensor, level: float, words: str | None) -> None:
    """Of few numbers each, of many all must vary by half the noise; constants and sums of others are meant."""
    found = words_if_unresolved(x, level, VP)
    assert re.search(words, found) if words else not found


@pytest.mark.parametrize(
    "covariance, averaged",
    [
        ([[1.0, 0.02], [0.02, 0.0004001]], False),
        ([[1.0, 0.02], [0.02, 0.0013]], True),
        ([[64.0, 0.0], [0.0, 9e-4]], True),
    ],
    ids=case_id,
)
def test_numbers_that_follow_from_others(covariance: list[list[float]], averaged: bool) -> None:
    """A small number is known as well as the large one that it follows, and what is added to it is lost."""
    score = sg.oracles.Gaussian(torch.zeros(2), torch.tensor(covariance)).score(VP)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sg.sample(score, VP, (64, 2), nfe=8, seed=0).x
    exact = sg.sample(score, VP, (64, 2), nfe=200, seed=0).x
    off = float((found - exact)[:, 1].std() / exact[:, 1].std())
    assert (off > 0.5) == averaged
    assert [w.category for w in caught] == [UnresolvedWarning] * averaged


def test_calibrated_solvers_are_not_asked() -> None:
    """What is fitted to a network is right where a denoiser's call is not."""
    score = sg.oracles.Gaussian(torch.zeros(2, 4, 4), 0.05**2).score(VP)
    fitted = sg.calibrate(score, VP, (32, 2, 4, 4), nfe=4, held_out=16, seed=0)
    assert fitted.error < 1e-3
    sg.sample(score, VP, (64, 2, 4, 4), solver=fitted, seed=0)


@pytest.mark.parametrize("sde", [VP, sg.EDMSDE(), sg.RectifiedFlowSDE(), sg.presets.iddpm_cosine()], ids=case_id)
@pytest.mark.parametrize("nfe", [4, 8, 20])
def test_data_at_zero(sde: sg.LinearSDE, nfe: int) -> None:
    """Samples that differ from 0 by rounding are right."""
    score = sg.from_denoiser(lambda x, t: 0 * x, sde)
    assert float(sg.sample(score, sde, (64, 2), nfe=nfe, seed=0).x.abs().max()) < 1e-7


def test_data_of_two_scales() -> None:
    """The small number is averaged, the large one not."""
    oracle = sg.oracles.GaussianMixture(
        torch.tensor([[-1.0, 0.0], [1.0, 0.02]]), torch.tensor([[0.3, 0.005], [0.3, 0.005]])
    )
    with pytest.warns(UnresolvedWarning, match="1 of 2 numbers"):
        sg.sample(oracle.score(VP), VP, (64, 2), nfe=8, seed=0)
