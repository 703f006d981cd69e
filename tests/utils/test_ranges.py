"""Ranges that data show, and data that only look like it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.data.images import to_uint8

LEVELS = torch.arange(256.0)
GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("x", "data_range"),
    [
        (LEVELS / 255, (-1.0, 1.0)),
        (LEVELS / 127.5 - 1, (0.0, 1.0)),
        (LEVELS, (0.0, 1.0)),
        (LEVELS, (-1.0, 1.0)),
    ],
)
def test_images_of_another_range(x: Tensor, data_range: tuple[float, float]) -> None:
    """The three ranges that images have, taken for one another."""
    with pytest.raises(ValueError, match="8-bit images in"):
        to_uint8(x, data_range)


@pytest.mark.parametrize(
    ("x", "data_range"),
    [
        (torch.arange(64.0).repeat(2), (0.0, 63.0)),
        (torch.arange(101.0), (0.0, 100.0)),
        (torch.arange(200.0), (0.0, 4095.0)),
        (torch.arange(16.0).repeat(8) / 15, (-1.0, 1.0)),
        ((LEVELS / 127.5 - 1).clamp(min=0), (-1.0, 1.0)),
        (LEVELS / 127.5 - 1, (-1.5, 1.5)),
        (LEVELS / 255, (0.0, 2.0)),
    ],
)
def test_other_levels_pass(x: Tensor, data_range: tuple[float, float]) -> None:
    """Few bits, many bits, and values that were cut off."""
    assert to_uint8(x, data_range).dtype == torch.uint8


def test_counts_are_no_images() -> None:
    """A loss takes counts of any rank but that of images of many levels."""
    score = sg.from_noise(lambda x, t: x, sg.VPSDE())
    for x0 in (torch.poisson(torch.full((64, 2), 20.0), generator=GENERATOR), torch.arange(100.0)[:, None]):
        sg.training.denoising_score_matching(score, x0, generator=GENERATOR)
    with pytest.raises(ValueError, match="as 8-bit images that are not scaled"):
        sg.training.denoising_score_matching(score, LEVELS.reshape(4, 1, 8, 8), generator=GENERATOR)
