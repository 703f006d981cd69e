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
