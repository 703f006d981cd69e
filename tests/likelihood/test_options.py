"""Options that would do nothing."""

from __future__ import annotations

import pytest
import torch

import sgm_sde as sg
from sgm_sde.likelihood import AdjointFlow, FixedGrid
from tests.conventions import VP


def test_options_that_would_do_nothing() -> None:
    """An error, whichever of them it is."""
    x = torch.zeros(2, 2)
    gaussian = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(VP)
    cld = sg.CLD()
    joint = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(cld)
    for call in (
        lambda: sg.log_prob(joint, cld, torch.zeros(2, 2, 2), method=FixedGrid(data_std=0.7)),  # type: ignore[arg-type]
        lambda: sg.encode(gaussian, VP, x, method="rk45-scipy"),
        lambda: sg.decode(gaussian, VP, x, method=AdjointFlow()),
    ):
        with pytest.raises(ValueError, match=r"data_std=|goes from data to noise only"):
            call()
    with pytest.raises(ValueError, match=r"data_std must be finite, at least 1e-06 .* got -7"):
        sg.log_prob(gaussian, VP, x, method=FixedGrid(data_std=-7))
