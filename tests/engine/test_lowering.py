"""The executor."""

from __future__ import annotations

import pytest
import torch

import sgm_sde as sg
from sgm_sde.engine.executor import execute
from sgm_sde.engine.lowering import lower
from sgm_sde.engine.memory import Buffers
from tests.by_hand import EDM
from tests.helpers import ALL, F64, bind, stream


def test_runs_report_their_nodes_and_outputs() -> None:
    """States at the nodes, outputs at the first evaluation after each."""
    program = sg.Heun().compile(EDM, sg.Grid([4.0, 2.0, 1.0]))
    model = bind(sg.from_noise(lambda x, t: torch.ones_like(x), EDM), EDM, (4.0, 1.0))
    seen: list[tuple[int, float]] = []
    outputs: list[tuple[float, float]] = []
    x = torch.full((2, 3), 8.0, dtype=F64)
    for grad in (False, True):
        seen.clear()
        outputs.clear()
        run = execute(
            program,
            x,
            model,
            stream(2),
            on_node=lambda i, x: seen.append((i, float(x[0, 0]))),  # type: ignore[arg-type, return-value]
            on_output=lambda x, r, t: outputs.append((float(x[0, 0]), t)),
            grad=grad,
        )
        assert seen == [(0, 8.0), (1, 6.0), (2, 5.0)]
        assert outputs == [(8.0, 4.0), (6.0, 2.0)]
        assert (run.nodes, run.x.tolist()) == (3, [[5.0] * 3] * 2)
        assert x.tolist() == [[8.0] * 3] * 2
    stopped = execute(program, x, model, stream(2), on_node=lambda i, x: i == 1)
    assert (stopped.nodes, float(stopped.x[0, 0])) == (2, 6.0)


def test_runs_keep_no_graph_unless_asked() -> None:
    """Memory is reused by default; with grad every number has its history."""
    program = sg.DDIM().compile(EDM, sg.Grid([4.0, 2.0]))
    model = bind(sg.from_denoiser(lambda x, t: x / 2, EDM), EDM, (4.0, 2.0))
    x = torch.ones(1, 1, dtype=F64, requires_grad=True)
    with torch.no_grad():
        assert not execute(program, x, model, stream(1)).x.requires_grad
    (slope,) = torch.autograd.grad(execute(program, x, model, stream(1), grad=True).x.sum(), x)
    assert float(slope) == 0.75


def test_plans_of_common_tables() -> None:
    """One register for a chain, no rows where each evaluation serves the next state alone."""
    ddim = sg.DDIM().compile(EDM, sg.Grid([4.0, 2.0, 1.0]))
    plan = lower(ddim, [(0.0, 1.0)] * 3)
    assert (plan.n_slots, plan.n_registers) == (0, 1)
    assert [ins.output for ins in plan.instructions] == [None, 0.5, 0.5]
    assert [ins.beta for ins in plan.instructions] == [0.0, 0.5, 0.5]
    folded = lower(ddim, [(0.25, 2.0)] * 3)  # e = x/4 + 2 r
    assert [ins.beta for ins in folded.instructions] == [0.0, 0.625, 0.625]
    assert [ins.output for ins in folded.instructions] == [None, 1.0, 1.0]
    multistep = lower(
        sg.DPMSolverPP(2, lower_final=False).compile(EDM, sg.Grid([4.0, 2.0, 1.0, 0.5])), [(0.0, 1.0)] * 4
    )
    assert (multistep.n_slots, multistep.n_registers) == (2, 1)
    assert [ins.store is not None for ins in multistep.instructions] == [True, True, False, False]
    seeds = lower(sg.schemes.SEEDS(2).compile(EDM, sg.Grid([4.0, 2.0])), [(0.0, 1.0)] * 3)
    assert [[row is not None for _, row in ins.noises] for ins in seeds.instructions] == [[], [True], [False]]
    mixed = lower(sg.DPMSolverPP(2, lower_final=False).compile(EDM, sg.Grid([4.0, 2.0, 1.0])), [(0.5, 0.25)] * 3)
    assert mixed.instructions[0].mix == (1.0, 0.5)
    mixed = lower(sg.DPMSolverPP(2, lower_final=False).compile(EDM, sg.Grid([4.0, 2.0, 1.0])), [(0.25, 0.5)] * 3)
    assert mixed.instructions[0].mix == (0.5, 1.0)
    assert mixed.instructions[0].output is None


@pytest.mark.parametrize("solver", ["dpm++3m", "unipc4", "heun"])
def test_states_of_first_steps_lie_in_the_history(solver: str) -> None:
    """They borrow slots that hold nothing yet; those that every step needs have memory of their own."""
    grid = sg.Grid([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    plan = lower(program := ALL[solver].compile(EDM, grid), [(0.0, 1.0)] * len(program.stages))
    assert plan.n_registers == 2
    assert len(plan.borrowed) == (solver != "heun")

    state = torch.ones(3, 2, dtype=F64)
    buffers = Buffers(state, plan)
    ends = [register.data_ptr() for register in buffers.registers]
    slots = [slot.data_ptr() for slot in buffers.slots]
    assert [end in slots for end in ends] == [register in plan.borrowed for register in range(2)]
