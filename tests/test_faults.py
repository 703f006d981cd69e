"""Faults that were found by trial do not come back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sgm_sde as sg
from tests.faults import FAULTS, Fault

SLOW = ("log-density of data of two scales", "bits/dim of the shipped digits", "ranges that are not")


@pytest.mark.parametrize(
    "fault",
    [pytest.param(one, marks=pytest.mark.slow if one.name.startswith(SLOW) else ()) for one in FAULTS],
    ids=lambda fault: fault.name[:60],
)
def test_the_right_value(fault: Fault) -> None:
    """The minimal input of each fault gives the right value, an error of ours, or a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a fault is about it collects itself
        shown, right = fault.now()
    assert right, f"{shown}, and right is {fault.right}; it was {fault.was}"


NORMAL = sg.from_score(sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sg.VPSDE()), sg.VPSDE())
WITHOUT_NUMBERS: dict[str, Callable[[], torch.Tensor]] = {
    "meta": lambda: torch.ones(3, device="meta"),
    "meta, one": lambda: torch.zeros((), dtype=torch.long, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
}
TAKING_NUMBERS: dict[str, Callable[[Any], object]] = {
    "seed": lambda bad: sg.sample(NORMAL, sg.VPSDE(), (3, 2), nfe=4, seed=bad),
    "nfe": lambda bad: sg.sample(NORMAL, sg.VPSDE(), (3, 2), nfe=bad),
    "grid": lambda bad: sg.sample(NORMAL, sg.VPSDE(), (3, 2), grid=bad),
    "x": lambda bad: sg.log_prob(NORMAL, sg.VPSDE(), bad),
    "trajectory": lambda bad: sg.Record(trajectory=bad),
    "betas": lambda bad: sg.DiscreteVPSDE(bad),
    "token times": lambda bad: sg.grids.TokenGrid(bad),
    "data": lambda bad: sg.testing.check_score(NORMAL, bad),
}


@pytest.mark.parametrize("kind", WITHOUT_NUMBERS)
@pytest.mark.parametrize("option", TAKING_NUMBERS)
def test_tensors_without_numbers_are_refused_in_words(option: str, kind: str) -> None:
    """Where numbers are looked at, on the device meta or sparse."""
    with pytest.raises((TypeError, ValueError), match="must be"):
        TAKING_NUMBERS[option](WITHOUT_NUMBERS[kind]())
