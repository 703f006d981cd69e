"""Averages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sgm_sde import training
from tests.conventions import F64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_averages_move_in_any_dtype(dtype: torch.dtype) -> None:
    """1000 updates at 0.999: 2 - 0.999^1000, which half precision does not see one by one."""
    net = nn.Linear(1, 1, bias=False, dtype=dtype)
    net.weight.data.fill_(1.0)
    ema = training.EMA(net, 0.999)
    ema.updates = 10**6
    net.weight.data.fill_(2.0)
    for _ in range(1000):
        ema.update(net)
    assert abs(float(ema.average["weight"]) - (2 - 0.999**1000)) < 1e-4
    ema.copy_to(net)
    assert net.weight.dtype == dtype and abs(float(net.weight.detach()) - (2 - 0.999**1000)) < 4e-3
    again = training.EMA(net, 0.999)
    again.load_state_dict(ema.state_dict())
    assert torch.equal(again.average["weight"], ema.average["weight"])
