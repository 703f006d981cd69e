"""`stepper`: what is wrong is refused where it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.sampling.stepping import stepper
from tests.helpers import LINEAR

VP = LINEAR["vp"]


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"prediction": "eps"}, ValueError, "prediction must be one of .* got 'eps'"),
        ({"seed": -1}, ValueError, r"a seed must lie in \[0, 2\*\*64\), got -1"),
        ({"seed": "a"}, TypeError, "a seed must be an int, got 'a'"),
        ({"seed": [1, (2, 3, 4)]}, ValueError, r"a pair \(seed, index\), got \(2, 3, 4\)"),
        ({"final": "clean"}, ValueError, "clean"),
    ],
    ids=["prediction", "negative", "text", "triple", "final"],
)
def test_arguments_that_cannot_be_meant_are_errors(options: dict[str, Any], error: type[Exception], shown: str) -> None:
    with pytest.raises(error, match=shown):
        stepper("ddim", VP, nfe=5, **options)


@pytest.mark.parametrize(
    "seed", [lambda: 3, lambda: torch.tensor(3), lambda: [3, 4], lambda: torch.tensor([3, 4]), lambda: iter([3, 4])]
)
def test_any_form_of_seeds_is_accepted(seed: Callable[[], Any]) -> None:
    """One for the batch, or one for each sample: the noise is that of `sample`."""
    run = stepper("ancestral", VP, nfe=4, prediction="score", seed=seed())
    x = x_T = torch.ones(2, 3)
    for t in run.times:
        x = run.step(-x, t, x)
    res = sg.sample(lambda x, t: -x, VP, x_T=x_T, solver="ancestral", nfe=4, seed=seed())
    assert torch.equal(x, res.x)
