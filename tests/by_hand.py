"""What the tests of values share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.schemes.linear_part import (
    LinearPart,
)
from tests.helpers import F64

EDM = sg.EDMSDE()  # alpha = 1 and sigma = t: the noise level is the time, and its logarithm minus half the log-SNR


LOG2 = math.log(2)


def column(*values: float) -> Tensor:
    """Numbers as a float64 tensor."""
    return torch.tensor(values, dtype=F64)


class DoubleWell(sg.SDE):
    """A process that is not linear."""

    T, eps, prior_std = 1.0, 1e-3, 2.0

    def f(self, x: Tensor, t: float | Tensor) -> Tensor:
        return x - x**3

    def g(self, t: float | Tensor) -> Tensor:
        return 3 * torch.ones_like(torch.as_tensor(t))


def node(t: float, sde: sg.SDE = EDM) -> Any:
    """The coefficients at a time."""
    return sde.nodes([t])[0]


def place(part: LinearPart, sde: sg.LinearSDE, lam: float) -> float:
    """The variable where half the log-SNR is lam."""
    if part.variable == "angle":
        return math.atan(math.exp(-lam) / part.sigma_data)
    if part.variable == "flow-time":
        return 1 / (1 + math.exp(lam))
    time = lambda: float(sde.time(2 * lam))  # noqa: E731
    return {"log-snr": lambda: lam, "noise-level": lambda: math.exp(-lam), "time": time}[part.variable]()


def table(solver: sg.Solver, times: Sequence[float] = (4.0, 2.0, 1.0), sde: sg.SDE = EDM) -> list[dict[str, float]]:
    """The rows of a compiled solver: coefficients by the letter and number of what they multiply."""
    rows = []
    for stage in solver.compile(sde, sg.Grid(times)).stages[1:]:
        terms = [("x", stage.states), ("e", stage.evals), ("z", stage.noises)]
        rows.append({f"{letter}{j}": c for letter, pairs in terms for j, c in pairs if abs(c) > 1e-14})
    return rows


def same(rows: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> None:
    """Assert that two tables are the same but for rounding."""
    assert [list(row) for row in rows] == [list(row) for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-12)


def single(**options: Any) -> sg.schemes.ExponentialRungeKutta:
    """The single-step solver of the options."""
    return sg.schemes.ExponentialRungeKutta(**options)
