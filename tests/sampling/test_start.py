"""Data that are more than noise at T: told where samples are off by a quarter of the data's standard deviation."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.sampling.diagnosis import scales_at_T
from sgm_sde.sampling.start import PriorWarning, words_if_data_off_prior, words_if_off_prior
from tests.conventions import case_id

VP = sg.VPSDE()
SD = sg.DiscreteVPSDE(torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
OPTIONS = {"solver": "dpm++2m", "grid": "log-snr", "nfe": 20}
PROCESSES = [VP, sg.CosineVPSDE(), SD, sg.RectifiedFlowSDE(), sg.EDMSDE(), sg.VESDE(), sg.CLD()]


def caught(score: Any, sde: sg.SDE, shape: tuple[int, ...] | None, **options: Any) -> list[str]:
    """What is warned of the start."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sg.sample(score, sde, shape, seed=0, **options)
    assert {w.category for w in found} <= {PriorWarning}
    return [str(w.message) for w in found]


def truly_off(sde: sg.SDE, mean: float, std: float) -> float:
    """What samples of Gaussian data are off by, in standard deviations of the data."""
    signal, prior_std = scales_at_T(sde)
    shrunk = 1 / math.hypot(1, signal * std / prior_std)
    return math.hypot(signal * mean / prior_std * shrunk, 1 - shrunk)


@pytest.mark.parametrize("sde", PROCESSES, ids=case_id)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 1e3), (1e3, 1.0), (20.0, 1.0), (1e3, 30.0)])
def test_data_beyond_the_noise_at_T(sde: sg.SDE, mean: float, std: float) -> None:
    """Told if samples are off by that much, and by how much, whatever the process."""
    event = (2, 2) if isinstance(sde, sg.CLD) else (2,)
    options = {"nfe": 20} if isinstance(sde, sg.CLD) else OPTIONS
    told = caught(sg.oracles.Gaussian(torch.full((2,), mean), std**2).score(sde), sde, (64, *event), **options)
    off = truly_off(sde, mean, std)
    assert bool(told) == (off > 0.25)
    if told and off < 3:
        said = float(told[0].split("off by some ")[1].split()[0])
        assert said == pytest.approx(off, rel=0.5)


def test_the_samples_are_as_far_off_as_is_said() -> None:
    """By the law of the samples themselves, up to three standard errors of their mean."""
    options = OPTIONS | {"nfe": 60}
    score = sg.oracles.Gaussian(torch.full((1,), 100.0), 1.0).score(VP)
    (told,) = caught(score, VP, (4096, 1), **options)
    with pytest.warns(PriorWarning):
        x = sg.sample(score, VP, (4096, 1), seed=0, **options).x
    assert float(told.split("off by some ")[1].split()[0]) == pytest.approx(100 - float(x.mean()), abs=3 / 4096**0.5)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((64, 1), {"solver": "dopri5"}),
        ((64, 1), {"nfe": 20, "final": "none"}),
        ((64, 1), {"nfe": 100, "log_prob": "exact"}),
    ],
    ids=case_id,
)
def test_whatever_the_run(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Adaptive, to a state, with its density."""
    score = sg.oracles.Gaussian(torch.full((1,), 50.0), 1.0).score(VP)
    assert len(caught(score, VP, shape, **options)) == 1


def test_one_number_of_a_few_and_the_mean_of_many() -> None:
    """A number of its own is told; of many those count that vary."""
    mean = torch.zeros(2)
    mean[1] = 100.0
    variance = torch.tensor([100.0**2, 1.0])
    assert caught(sg.oracles.Gaussian(mean, variance.diag()).score(VP), VP, (64, 2), **OPTIONS)

    mean = torch.zeros(64)
    mean[:4] = 100.0
    variance = torch.ones(64)
    variance[:4] = 1e-4
    assert not caught(sg.oracles.Gaussian(mean, variance.diag()).score(VP), VP, (64, 64), **OPTIONS)


def test_few_samples_and_states_that_are_given() -> None:
    """A few of large numbers are told by their size; noised data start right."""
    pictures = sg.oracles.Gaussian(torch.full((64,), 160.0), 60.0**2)
    assert caught(pictures.score(VP), VP, (4, 64), **OPTIONS)

    noised = pictures.sample(16, VP, 1.0, seed=1)
    assert not caught(pictures.score(VP), VP, None, x_T=noised, **OPTIONS)
    assert not caught(sg.oracles.Gaussian(torch.zeros(2), 30.0**2).score(VP), VP, (1, 2), **OPTIONS)


@pytest.mark.parametrize(("sde", "t_end"), [(sg.EDMSDE(), 60.0), (sg.VESDE(), 0.97)], ids=case_id)
def test_noised_states_are_no_data(sde: sg.LinearSDE, t_end: float) -> None:
    score = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sde)
    assert not caught(score, sde, (64, 2), solver="ddim", nfe=8, t_end=t_end, final="none")


def test_one_number_of_many_may_be_off() -> None:
    x = torch.zeros(64, 3072)
    x[:, 0] = 400 + torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert "off by some 2.6" in words_if_off_prior(x, VP)


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_data_whose_numbers_go_together(scale: float) -> None:
    """64 numbers that are one number: its direction is 8 times as wide as each, and loses 1 - 1 / sqrt(1 + u^2)."""
    sde = sg.EDMSDE(sigma_max=10.0)
    one = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    expected = 1 - 1 / math.hypot(1, 8 * scale / 10)
    words = words_if_data_off_prior(scale * one.expand(-1, 64), sde)
    assert float(words.split("off by some ")[1].split()[0]) == pytest.approx(expected, rel=0.05)
    assert not words_if_data_off_prior(scale * torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)), sde)


@pytest.mark.parametrize("sde", PROCESSES[:-1], ids=case_id)
def test_data_of_unit_scale_are_hidden(sde: sg.LinearSDE) -> None:
    """On every process with a scalar kernel, also where some numbers never change."""
    x0 = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    x0[:, :4] = 5.0
    assert not words_if_data_off_prior(x0, sde)


@pytest.mark.parametrize(("mass", "friction"), [(0.25, None), (4.0, 1.0), (16.0, 2.0)])
def test_what_velocities_keep_of_the_data(mass: float, friction: float | None) -> None:
    """Little may be left in the positions at T, and much in the velocities, so that means are off: -1.2 of 2, -1.9."""
    sde = sg.CLD(mass=mass) if friction is None else sg.CLD(mass=mass, friction=friction)
    score = sg.oracles.Gaussian(torch.full((1,), 2.0), 1.0).score(sde)
    told = caught(score, sde, (64, 2, 1), solver="heun2", steps=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PriorWarning)
        off = 2 - float(sg.sample(score, sde, (512, 2, 1), solver="heun2", steps=60, seed=0).x[:, 0].mean())
    assert bool(told) == (off > 0.25)
