"""What the tests of conventions share."""

from __future__ import annotations

import torch

import sgm_sde as sg

F64 = torch.float64


VP = sg.VPSDE()
