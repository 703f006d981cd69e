"""Training times."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import training
from tests.conventions import F64, case_id


@pytest.mark.parametrize("mean", [-20.0, -9.0, -1.2, 3.0, 8.0, 20.0])
def test_log_normal_times_have_the_right_proportions(mean: float) -> None:
    """Refused where nothing is left."""
    sde, rule = sg.EDMSDE(), training.LogNormal(mean=mean, std=1.0)
    middle = math.log(float(rule.quantile(sde, torch.tensor(0.5, dtype=F64)))) - mean
    below, at, above = (
        math.erfc(-z / math.sqrt(2)) for z in (math.log(sde.eps) - mean, middle, math.log(sde.T) - mean)
    )
    if -5 < mean < 5:  # beyond that, shares are rounded to 1
        assert abs((at - below) / (above - below) - 0.5) < 1e-6
    with pytest.raises(ValueError, match=r"has no share between eps=0.002 and T=80"):
        training.LogNormal(mean=math.copysign(60.0, mean), std=1.0).quantile(sde, torch.rand(3))
    with pytest.raises(ValueError, match="std must be positive and finite, got inf"):
        training.LogNormal(std=math.inf)


@pytest.mark.parametrize("mean", [-20.0, -9.0, -1.2, 3.0, 8.0, 20.0])
@pytest.mark.parametrize(
    "u",
    [torch.linspace(0, 1, 1001, dtype=F64), torch.rand(100, generator=torch.Generator().manual_seed(0))],
    ids=case_id,
)
def test_log_normal_times_stay_within_the_process(mean: float, u: Tensor) -> None:
    """Whatever the mean, far tails too: within [eps, T]."""
    sde, rule = sg.EDMSDE(), training.LogNormal(mean=mean, std=1.0)

    t = rule.quantile(sde, u)
    assert sde.eps <= float(t.min()) <= float(t.max()) <= sde.T


def test_importance_needs_finite_ends() -> None:
    """At eps = 0 there is no largest log-SNR to draw up to."""
    with pytest.raises(ValueError, match=r"needs a finite log-SNR at both ends, .* eps=0"):
        training.Importance().quantile(sg.VPSDE(eps=0.0), torch.rand(3))
