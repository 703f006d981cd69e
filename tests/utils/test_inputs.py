"""State and time as a network takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde._utils.inputs import network_inputs

X, T = torch.ones(2, 3), torch.tensor([0.25, 0.5])


def test_inputs_by_hand() -> None:
    """Each by its function of time, and as they are without one."""
    x, label = network_inputs(X, T, lambda t: 8 * t, lambda t: 1 / t)
    assert x.tolist() == [[4.0] * 3, [2.0] * 3]
    assert label.tolist() == [2.0, 4.0]
    assert network_inputs(X, T) == (X, T)


@pytest.mark.parametrize("option", ["time_label", "input_scale"])
def test_functions_of_time_return_tensors(option: str) -> None:
    """Those of networks and those of classifiers."""

    def net(x: Tensor, label: Tensor) -> Tensor:
        return torch.zeros(len(x), 4)

    with pytest.raises(TypeError, match=f"{option} must return a tensor, got 3"):
        sg.from_noise(net, sg.VPSDE(), **{option: lambda t: 3})(X, T)
    with pytest.raises(TypeError, match=f"{option} must return a tensor, got 3"):
        sg.guidance.from_classifier(net, **{option: lambda t: 3})(X, T, torch.tensor([0, 1]))
