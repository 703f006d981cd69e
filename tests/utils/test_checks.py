"""Words of errors that many functions share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import sgm_sde as sg
from sgm_sde._utils.checks import check_integer, described

VP = sg.VPSDE()
SCORE = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(VP)
ARRAY = np.zeros((4, 2))
LEVELS = {"n_levels": 2, "data_range": (0, 1)}


def test_arrays_are_shown_by_their_shape() -> None:
    assert described(ARRAY.astype(np.uint8)) == "a NumPy array of shape (4, 2) and dtype uint8"


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: sg.bits_per_dim(SCORE, VP, ARRAY.astype(np.uint8), **LEVELS), "images must be a tensor of an integer"),
        (lambda: sg.log_prob(SCORE, VP, ARRAY), "x must be a floating tensor"),
        (lambda: sg.pictures.to_uint8(ARRAY), "samples must be a floating tensor"),
        (lambda: sg.inverse.Mask(ARRAY > 0), "the mask must be a boolean tensor"),
        (lambda: sg.sample(SCORE, VP, x_T=ARRAY), "x_T must be a floating tensor"),
    ],
)
def test_arrays_in_the_place_of_tensors(call: Callable[[], object], shown: str) -> None:
    with pytest.raises(TypeError, match=rf"{shown}.*got a NumPy array of shape \(4, 2\) and dtype"):
        call()


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: sg.from_noise(abs, VP, time_lable=1), r"from_noise\(\) .* 'time_lable'; did you mean 'time_label'"),
        (lambda: sg.from_flow(abs, VP, dtyp=1), r"from_flow\(\) .* 'dtyp'; did you mean 'dtype'"),
        (lambda: sg.bits_per_dim(SCORE, VP, ARRAY, **LEVELS, metod=1), r"bits_per_dim\(\) .* did you mean 'method'"),
        (
            lambda: sg.likelihood.choose_probe_basis(SCORE, VP, torch.zeros(1, 1, 2, 2), ep=1),
            r"choose_probe_basis\(\) .* did you mean 'eps'",
        ),
    ],
)
def test_the_function_that_was_called_is_named(call: Callable[[], object], shown: str) -> None:
    """Not the one that it passes its options on to."""
    with pytest.raises(TypeError, match=shown):
        call()


@pytest.mark.parametrize("value", [10**30, 2**53 + 2, math.inf, 1e300])
def test_integers_that_are_too_large_are_told_of_the_bound(value: float) -> None:
    with pytest.raises(ValueError, match=r"nfe must be an integer from 1 to 2\*\*53, got "):
        check_integer("nfe", value)
    with pytest.raises(ValueError, match="nfe must be an integer of at least 1, got -2"):
        check_integer("nfe", -2)
