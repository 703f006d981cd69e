"""What the tests of conventions share."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch

import sgm_sde as sg

F64 = torch.float64


VP = sg.VPSDE()


def some_slow(values: Iterable[Any], fast: Collection[Any] = ()) -> list[Any]:
    """Values of a parameter, slow but for those named fast: what the fast ones have tested, at other places."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def case_id(value: object) -> str:
    """The name of a parameter in a test: a text or number as it is, a function by what it calls last."""
    if isinstance(value, dict):
        return ",".join(f"{name}={case_id(entry)}" for name, entry in value.items()) or "nothing"
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}".replace(" ", "")
    if callable(value):
        called = getattr(getattr(value, "__code__", None), "co_names", ())
        return called[-1] if called else str(getattr(value, "__name__", type(value).__name__))
    text = str(value)
    return text if len(text) <= 60 else getattr(value, "name", "") or type(value).__name__
