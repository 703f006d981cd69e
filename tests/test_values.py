"""Values are values."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.engine.lowering import lower
from sgm_sde.engine.program import Program, Stage
from sgm_sde.processes.linear import ScheduleSDE
from sgm_sde.schemes.linear_part import (
    DataPart,
    NoisePart,
    RectifiedPart,
    VPart,
)
from tests.by_hand import EDM
from tests.conventions import case_id

FROZEN: list[Any] = [
    sg.VPSDE(),
    sg.SubVPSDE(),
    sg.CosineVPSDE(),
    sg.VESDE(),
    EDM,
    sg.RectifiedFlowSDE(),
    sg.DiscreteVPSDE([0.1, 0.2]),
    sg.DiscreteVESDE([1.0, 2.0]),
    ScheduleSDE(torch.ones_like, torch.exp),
    sg.EulerMaruyama(),
    sg.ReverseDiffusion(),
    sg.DDIM(),
    sg.Ancestral(),
    sg.Langevin(),
    sg.schemes.AnnealedLangevin(),
    sg.PredictorCorrector(sg.DDIM(), sg.Langevin()),
    sg.RungeKutta(),
    sg.Tableau([[]], [1]),
    sg.Heun(),
    sg.schemes.PNDM(),
    sg.schemes.RES(),
    sg.schemes.ExponentialAdams(),
    sg.schemes.ExponentialRungeKutta(),
    sg.schemes.AncestralNoise(sg.DPMSolver(2)),
    sg.Restart(sg.DDIM()),
    DataPart("log-snr", 0.0),
    NoisePart("log-snr", 0.0),
    VPart("angle", 0.0),
    RectifiedPart("flow-time", 0.0),
    Stage(1.0),
    Program("p", "data", (Stage(1.0, node=True),)),
    lower(Program("p", "data", (Stage(1.0, node=True),)), [(0.0, 1.0)]).instructions[0],
]


@pytest.mark.parametrize("value", FROZEN, ids=case_id)
def test_values_do_not_change(value: Any) -> None:
    """Processes, solvers and tables are hashable, equal to their copies, and refuse to be changed."""
    name = next((field.name for field in dataclasses.fields(value)), "name")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)
    assert hash(value) == hash(value)
    assert value == dataclasses.replace(value)


def test_plans_do_not_change() -> None:
    """A plan is a value too; its weights, which follow from its instructions, do not enter the comparison."""
    program = Program("p", "data", (Stage(1.0, node=True),))
    plan = lower(program, [(0.0, 1.0)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.n_slots = 3  # type: ignore[misc]
    assert plan == lower(program, [(0.0, 1.0)])
    assert hash(plan) == hash(lower(program, [(0.0, 1.0)]))
    assert plan == dataclasses.replace(plan, weights=torch.ones(3))


def test_tables_are_replaced_by_their_entries() -> None:
    """T and eps of a discrete process follow from its table, and `dataclasses.replace` asks for the table alone."""
    vp = dataclasses.replace(sg.DiscreteVPSDE([0.1, 0.2]), betas=(0.1, 0.2, 0.3, 0.4))
    ve = dataclasses.replace(sg.DiscreteVESDE([1.0, 2.0]), sigmas=(1.0, 2.0, 3.0, 4.0))
    assert (vp.T, vp.eps, ve.T, ve.eps) == (1.0, 0.25, 1.0, 0.25)
    assert (sg.DiscreteVPSDE.T, sg.DiscreteVESDE.T) == (1.0, 1.0)
    assert vp.times == ve.times == (0.25, 0.5, 0.75, 1.0)
    edm = dataclasses.replace(EDM, sigma_max=10.0)
    assert (edm.T, edm.eps) == (10.0, 0.002)
    with pytest.raises(TypeError):
        sg.EDMSDE(0.1, 1.0, 2.0)  # type: ignore[call-arg]
