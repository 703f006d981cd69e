"""The reverse-time SDE."""

from __future__ import annotations

import math

import pytest
import torch

from sgm_sde.engine.reverse import ReverseSDE
from tests.by_hand import DoubleWell


def test_the_reverse_process() -> None:
    """eta = 1 by default; drift f - (1 + eta^2)/2 g^2 s and diffusion eta g."""
    sde, x = DoubleWell(), torch.full((1, 1), 2.0)
    for reverse in (sde.reverse(lambda x, t: x), ReverseSDE(sde, lambda x, t: x)):
        assert reverse.eta == 1.0
        assert float(reverse.f(x, 0.5)) == -6 - 9 * 2
        assert float(reverse.g(0.5)) == 3.0
    assert float(sde.reverse(lambda x, t: x, eta=2.0).f(x, 0.5)) == -6 - 5 / 2 * 9 * 2
    assert float(sde.reverse(lambda x, t: x, eta=2.0).g(0.5)) == 6.0
    assert float(sde.reverse(lambda x, t: x, eta=0.0).f(x, 0.5)) == -6 - 1 / 2 * 9 * 2


@pytest.mark.parametrize("eta", [-0.1, math.inf])
def test_the_reverse_process_has_finite_noise(eta: float) -> None:
    """Not negative, either."""
    with pytest.raises(ValueError, match=f"got {eta}"):
        DoubleWell().reverse(lambda x, t: x, eta)
