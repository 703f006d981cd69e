"""Configurations that clip, with ranges that are none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sgm_sde as sg

LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
CLIPS = {"clip_sample": True}
THRESHOLDS = {"thresholding": True}


@pytest.mark.parametrize(
    "config, words",
    [
        (CLIPS | {"clip_sample_range": -1}, "clip_sample_range must be finite, above 0 .*, got -1"),
        (CLIPS | {"clip_sample_range": 0}, "clip_sample_range must be finite, above 0 .*, got 0"),
        (CLIPS | {"clip_sample_range": math.nan}, "clip_sample_range must be finite, .* got nan"),
        (CLIPS | {"clip_sample_range": "a"}, "clip_sample_range must be one number, got 'a'"),
        (THRESHOLDS | {"sample_max_value": 0.5}, "sample_max_value must be finite, at least 1 .*, got 0.5"),
        (THRESHOLDS | {"dynamic_thresholding_ratio": 2.0}, "dynamic_thresholding_ratio must be .*, got 2.0"),
    ],
)
def test_ranges_are_refused_by_the_names_of_the_configuration(config: dict[str, Any], words: str) -> None:
    """Where the scheduler, or the score, is made."""
    with pytest.raises((ValueError, TypeError), match=words):
        sg.adapters.SolverScheduler(LINEAR | config, "ddim")
    with pytest.raises((ValueError, TypeError), match=words):
        sg.adapters.from_diffusers(lambda x, t: x, LINEAR | config, clip=True)


@pytest.mark.parametrize("clips", [True, False])
def test_outputs_of_another_shape_are_refused(clips: bool) -> None:
    """Whether estimates of the data are clipped or not."""
    scheduler = sg.adapters.SolverScheduler(LINEAR | {"clip_sample": clips}, "ddim")
    scheduler.set_timesteps(5)
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"output must be a tensor of shape \(2, 3\), got a tensor of shape \(1, 3\)"):
        scheduler.step(x[:1], scheduler.timesteps[0], x)


def test_twice_the_channels_are_a_variance_where_something_says_so() -> None:
    """Neither a function nor this configuration does, and the error names what would."""

    def model(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.1 * x, x], 1)

    score, _ = sg.adapters.from_diffusers(model, LINEAR)
    words = "6 channels for x of 3, .* model.config, with in_channels=3 and out_channels=6, .* variance_type"
    with pytest.raises(ValueError, match=words):
        score(torch.ones(1, 3, 2, 2), 0.5)
    first, _ = sg.adapters.from_diffusers(model, LINEAR | {"variance_type": "learned_range"})
    plain, _ = sg.adapters.from_diffusers(lambda x, timestep: 0.1 * x, LINEAR)
    x = torch.ones(1, 3, 2, 2)
    assert torch.equal(first(x, 0.5), plain(x, 0.5))
