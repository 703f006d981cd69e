"""Warnings point at the caller's line."""

from __future__ import annotations

import pytest
import torch

import sgm_sde as sg
from sgm_sde._utils.warn import warn


class Wrapped(torch.nn.Module):
    """A network that samples in its forward, so that torch's frames lie between."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sg.sample(lambda x, t: x * torch.nan, sg.VPSDE(), x_T=x, nfe=4).x


def test_a_warning_of_one_s_own() -> None:
    """Where the function is called that warns, outside the package."""
    with pytest.warns(UserWarning, match="so it is") as caught:
        warn("so it is")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("frames", [1, 2])
def test_whatever_lies_between(frames: int) -> None:
    """Decorators of ours and of torch's, and modules."""

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * torch.nan

    with pytest.warns(sg.sampling.NonFiniteWarning) as caught:
        if frames == 1:
            torch.no_grad()(sg.sample)(score, sg.VPSDE(), (2, 2), nfe=4, seed=0)
        else:
            Wrapped()(torch.ones(2, 2))
    assert {w.filename for w in caught} == {__file__}
