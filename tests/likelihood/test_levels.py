"""Bits per dimension."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.likelihood.dequantisation import BitsPerDimWarning
from sgm_sde.nn.digits import digits_data
from sgm_sde.zoo.models import load_model
from tests.conventions import VP


def test_shipped_models_give_their_own_number() -> None:
    """By the shortest call: the digits' levels, range and dequantisation go with the model."""
    model = load_model("digits")
    images, labels = digits_data("held_out")
    levels = ((images[:20] + 1) * 8).round().long()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = model.bits_per_dim(levels, seed=0)
    call: dict[str, Any] = {"n_levels": 17, "data_range": model.data_range, "dequantize": "diffusion", "eps": 0.1}
    by_hand = sg.bits_per_dim(model.score, sg.EDMSDE(), levels, seed=0, **call)
    assert own.per_image.tolist() == by_hand.per_image.tolist() and own.value < 2.3
    assert model.bits_per_dim(levels, labels[:20], seed=0).value != own.value
    with pytest.raises(ValueError, match="give n_levels: the model 'bare' does not tell it"):
        sg.models.Model("bare", model.score, model.sde, (1, 8, 8)).bits_per_dim(levels)


def test_a_range_that_no_number_of_bits_gives_away_is_told_by_the_latents() -> None:
    """Half of the right range: fewer bits than a uniform guess, and latents of a quarter of the prior's variance."""
    data = sg.oracles.Gaussian(torch.zeros(8), 0.25)
    levels = ((data.sample(256, seed=0) + 2) / 4 * 64).floor().long().clamp(0, 63)
    call: dict[str, Any] = {"n_levels": 64, "seed": 0, "trace": "exact"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = sg.bits_per_dim(data.score(VP), VP, levels, data_range=(-2.0, 2.0), **call)
    with pytest.warns(BitsPerDimWarning, match=r"latents of 0.2\d* times the prior's variance"):
        wrong = sg.bits_per_dim(data.score(VP), VP, levels, data_range=(-1.0, 1.0), **call)
    assert right.value < wrong.value < 6


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.checks.LikelihoodWarning")  # thirty deviations from the data
def test_numbers_that_cannot_be_meant() -> None:
    """More bits than a uniform guess warn with likely reasons; a range that the data show to be wrong is an error."""
    score = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(VP)
    outermost = torch.full((4, 2), 16)
    call: dict[str, Any] = {"n_levels": 17, "seed": 0, "trace": "exact"}
    with pytest.warns(BitsPerDimWarning, match=r"takes 4.09: look at data_range=.*; dequantize='diffusion' .*; labels"):
        value = sg.bits_per_dim(score, VP, outermost, data_range=(-3.0, 3.0), **call).value
    assert 8 < value < 10  # N(0, 1) at 2.8, in bins of 6/17
    with pytest.raises(ValueError, match=r"a uniform guess .* takes 4.09: data_range=\(-30.0, 30.0\) is not where"):
        sg.bits_per_dim(score, VP, outermost, data_range=(-30.0, 30.0), **call)
