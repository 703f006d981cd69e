"""Faults that were found by trial do not come back."""

from __future__ import annotations

import warnings

import pytest

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
