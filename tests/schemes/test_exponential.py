"""Exponential integrators."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.schemes.exponential import Exponential
from sgm_sde.schemes.families import ADAMS
from sgm_sde.schemes.linear_part import (
    DataPart,
    VPart,
)
from tests.by_hand import EDM, LOG2, node, same, single, table
from tests.conventions import case_id, some_slow
from tests.helpers import LINEAR

R2, R3 = math.sqrt(2), math.sqrt(3)


M1 = 1 - 1 / (2 * LOG2)  # first moment of the data kernel over h = log 2


TABLES: dict[str, tuple[sg.Solver, list[dict[str, float]]]] = {
    "dpm++1m": (sg.DPMSolverPP(1), [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e1": 1 / 2}]),
    "dpm++2m": (sg.DPMSolverPP(2), [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -1 / 4, "e1": 3 / 4}]),
    "sde-dpm++2m": (
        sg.DPMSolverPP(2, eta=1.0),
        [{"x0": 1 / 4, "e0": 3 / 4, "z0": R3}, {"x1": 1 / 4, "e0": -3 / 8, "e1": 9 / 8, "z1": R3 / 2}],
    ),
    "dpm2m": (
        sg.DPMSolver(2, singlestep=False),
        [{"x0": 1, "e0": -2}, {"x1": 1, "e0": 1 / 2, "e1": -3 / 2}],
    ),
    "sde-dpm2m-published": (
        sg.DPMSolver(2, singlestep=False, eta=1.0),
        [{"x0": 1, "e0": -4, "z0": 2 * R3}, {"x1": 1, "e0": 1, "e1": -3, "z1": R3}],
    ),
    "lms2": (sg.schemes.LMS(2), [{"x0": 1, "e0": -2}, {"x1": 1, "e0": 1 / 4, "e1": -5 / 4}]),
    "deis2": (sg.DEIS(2), [{"x0": 1, "e0": -2}, {"x1": 1, "e0": 1 / 4, "e1": -5 / 4}]),  # in EDM's time
    # w = 4/5, 2/3, 1/2 and 1 + s = 5, 3, 2: x' = x/(1 + s) is on a straight line in w.
    "rectified2": (
        sg.schemes.RectifiedAdams(2),
        [
            {"x0": 3 / 5, "e0": 3 * (2 / 3 - 4 / 5)},
            {"x1": 2 / 3, "e0": -2 / 6 * -5 / 8, "e1": -2 / 6 * (1 + 5 / 8)},
        ],
    ),
    "ipndm2": (sg.schemes.IPNDM(2), [{"x0": 1, "e0": -2}, {"x1": 1, "e0": 1 / 2, "e1": -3 / 2}]),
    # x1 becomes x0/2 + (e0 + e1)/4 once e1 is known.
    "unipc1": (sg.UniPC(1), [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -1 / 8, "e1": 5 / 8}]),
    "unipc1-bh1": (
        sg.UniPC(1, variant="bh1"),
        [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -LOG2 / 4, "e1": 1 / 2 + LOG2 / 4}],
    ),
    "unipc1-exact": (
        sg.UniPC(1, variant="exact"),
        [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -M1 / 2, "e1": 1 / 2 + M1 / 2}],
    ),
    "unip2": (
        sg.UniPC(2, corrector=False),
        [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e0": -1 / 4, "e1": 3 / 4}],
    ),
    "dpm++2s": (
        sg.DPMSolverPP(2, singlestep=True),
        [
            {"x0": 1 / R2, "e0": 1 - 1 / R2},
            {"x0": 1 / 2, "e1": 1 / 2},
            {"x2": 1 / R2, "e2": 1 - 1 / R2},
            {"x2": 1 / 2, "e3": 1 / 2},
        ],
    ),
    "dpm2": (
        sg.DPMSolver(2),
        [{"x0": 1, "e0": 2 * R2 - 4}, {"x0": 1, "e1": -2}, {"x2": 1, "e2": R2 - 2}, {"x2": 1, "e3": -1}],
    ),
    "seeds2": (  # one Brownian path: the end has the inner node's noise as well
        sg.schemes.SEEDS(2, prediction="noise"),
        [
            {"x0": 1, "e0": 4 * R2 - 8, "z0": 2 * R2},
            {"x0": 1, "e1": -4, "z0": 2 * R2, "z1": 2},
            {"x2": 1, "e2": 2 * R2 - 4, "z2": R2},
            {"x2": 1, "e3": -2, "z2": R2, "z3": 1},
        ],
    ),
    "sde-dpm++2s": (  # L = 1/2 for half the step, 1/4 for all of it
        sg.DPMSolverPP(2, singlestep=True, eta=1.0),
        [
            {"x0": 1 / 2, "e0": 1 / 2, "z0": 2},
            {"x0": 1 / 4, "e1": 3 / 4, "z0": 1, "z1": R2},
            {"x2": 1 / 2, "e2": 1 / 2, "z2": 1},
            {"x2": 1 / 4, "e3": 3 / 4, "z2": 1 / 2, "z3": R2 / 2},
        ],
    ),
    "exact-2s": (
        sg.schemes.ExponentialRungeKutta(stages=2),
        [
            {"x0": 1 / R2, "e0": 1 - 1 / R2},
            {"x0": 1 / 2, "e0": 1 / 2 - 2 * M1, "e1": 2 * M1},
            {"x2": 1 / R2, "e2": 1 - 1 / R2},
            {"x2": 1 / 2, "e2": 1 / 2 - 2 * M1, "e3": 2 * M1},
        ],
    ),
    "reduced": (
        sg.schemes.ExponentialRungeKutta(stages=2, reduced=1),
        [
            {"x0": 1 / R2, "e0": 1 - 1 / R2},
            {"x0": 1 / 2, "e0": 1 / 2 - 2 * M1, "e1": 2 * M1},
            {"x2": 1 / 2, "e2": 1 / 2},
        ],
    ),
    "dpm++3m": (  # a warm first step of two stages, then the two evaluations there are
        sg.DPMSolverPP(3),
        [
            {"x0": 1 / R2, "e0": 1 - 1 / R2},
            {"x0": 1 / 2, "e0": 1 / 2 - 2 * M1, "e1": 2 * M1},
            {"x2": 1 / 2, "e0": -M1, "e2": 1 / 2 + M1},
        ],
    ),
    "dpm2-ancestral": (  # down to s_t^2/s_s, with s_d between, and up by s_t/s_s sqrt(s_s^2 - s_t^2)
        sg.schemes.AncestralNoise(sg.DPMSolver(2)),
        [
            {"x0": 1, "e0": -2},
            {"x0": 1, "e1": -3, "z0": R3},
            {"x2": 1, "e2": -1},
            {"x2": 1, "e3": -3 / 2, "z1": R3 / 2},
        ],
    ),
    "ddim-ancestral-half": (  # up by half of that: s_d^2 = 4 - 3/4
        sg.schemes.AncestralNoise(sg.DPMSolver(1), eta=0.5),
        [
            {"x0": 1, "e0": math.sqrt(3.25) - 4, "z0": R3 / 2},
            {"x1": 1, "e1": math.sqrt(0.8125) - 2, "z1": R3 / 4},
        ],
    ),
    "res3": (
        sg.schemes.RES(),
        [
            row
            for j in (0, 3)
            for row in (
                {f"x{j}": 1 / R2, f"e{j}": 1 - 1 / R2},
                {f"x{j}": 1 / 2, f"e{j}": 1 / 2 - LOG2 * 1.69786, f"e{j + 1}": LOG2 * 1.69786},
                {f"x{j}": 1 / 2, f"e{j}": 1 / 2 - 5 * M1 / 3, f"e{j + 1}": 4 * M1 / 3, f"e{j + 2}": M1 / 3},
            )
        ],
    ),
    "heun": (
        sg.Heun(),
        [
            {"x0": 1, "e0": -2},
            {"x0": 1, "e0": -1, "e1": -1},
            {"x2": 1, "e2": -1},
            {"x2": 1, "e2": -1 / 2, "e3": -1 / 2},
        ],
    ),
    "ddim": (sg.DDIM(), [{"x0": 1 / 2, "e0": 1 / 2}, {"x1": 1 / 2, "e1": 1 / 2}]),
    "ddim-1": (
        sg.DDIM(eta=1.0),
        [{"x0": 1 / 4, "e0": 3 / 4, "z0": R3}, {"x1": 1 / 4, "e1": 3 / 4, "z1": R3 / 2}],
    ),
    "ancestral": (
        sg.Ancestral(),
        [{"x0": 1 / 4, "e0": 3 / 4, "z0": R3}, {"x1": 1 / 4, "e1": 3 / 4, "z1": R3 / 2}],
    ),
    "ddpm": (
        sg.Ancestral(variance="transition"),
        [{"x0": 1 / 4, "e0": 3 / 4, "z0": 2 * R3}, {"x1": 1 / 4, "e1": 3 / 4, "z1": R3}],
    ),
    "reverse-diffusion": (  # b^2 = 12 and 3
        sg.ReverseDiffusion(),
        [{"x0": 1, "e0": 12, "z0": 2 * R3}, {"x1": 1, "e1": 3, "z1": R3}],
    ),
    "reverse-diffusion-3": (
        sg.ReverseDiffusion(eta=3.0),
        [{"x0": 1, "e0": 60, "z0": 6 * R3}, {"x1": 1, "e1": 15, "z1": 3 * R3}],
    ),
    "euler-maruyama": (  # g^2 = 2 t, over steps of 2 and 1
        sg.EulerMaruyama(),
        [{"x0": 1, "e0": -2, "z0": 4}, {"x1": 1, "e1": -1, "z1": 2}],
    ),
    "euler-maruyama-3": (
        sg.EulerMaruyama(eta=3.0),
        [{"x0": 1, "e0": -2, "z0": 12}, {"x1": 1, "e1": -1, "z1": 6}],
    ),
    "euler": (sg.RungeKutta(sg.tableaus.EULER), [{"x0": 1, "e0": -2}, {"x1": 1, "e1": -1}]),
    "annealed-langevin": (  # delta = 16 and 4 times that at the last level, which is visited as well
        sg.schemes.AnnealedLangevin(step_ratio=0.5, n_steps=1),
        [{"x0": 1, "e0": 4, "z0": 2 * R2}, {"x1": 1, "e1": 1, "z1": R2}, {"x2": 1, "e2": 1 / 4, "z2": 1 / R2}],
    ),
}


A_RES = 2 * (1 - (1 - 1 / R2) * 2 / LOG2) * 2 / LOG2 + 2 * M1 / LOG2  # 2 phi_2(-h/2) + 2 phi_2(-h)


for _row in (TABLES["res3"][1][1], TABLES["res3"][1][4]):
    for _key in list(_row)[1:]:
        _row[_key] = LOG2 * A_RES if _key in ("e1", "e4") else 1 / 2 - LOG2 * A_RES


@pytest.mark.parametrize(("solver", "expected"), TABLES.values(), ids=list(TABLES))
def test_tables_by_hand(solver: Any, expected: Any) -> None:
    """EDM's process from noise level 4 over 2 to 1: h = log 2 a step, e^-h = 1/2."""
    same(table(solver.strict()), expected)


class Doubled(sg.LinearSDE):
    """A process without signal at its start and without noise at its end."""

    T, eps = 1.0, 0.0

    def alpha(self, t: float | Tensor) -> Tensor:
        return 1 - torch.as_tensor(t)

    def sigma(self, t: float | Tensor) -> Tensor:
        return 2 * torch.as_tensor(t)


def test_multisteps_from_no_signal() -> None:
    """sigma_t/sigma_s and alpha_t from alpha = 0."""
    same(table(sg.DPMSolverPP(3), (1.0, 0.25), Doubled()), [{"x0": 1 / 4, "e0": 3 / 4}])


@pytest.mark.parametrize(
    "solver",
    [
        sg.schemes.ExponentialRungeKutta(),
        sg.schemes.ExponentialRungeKutta(stages=3),
        sg.schemes.RES(),
        sg.DDIM(),
    ],
    ids=case_id,
)
def test_single_steps_from_no_signal_and_to_no_noise(solver: sg.Solver) -> None:
    """Where half the log-SNR is infinite single-step solvers do without their inner nodes."""
    same(table(solver, (1.0, 0.25), Doubled()), [{"x0": 1 / 4, "e0": 3 / 4}])
    same(table(solver, (1.0, 0.0)), [{"e0": 1.0}])


def test_res_with_signal_that_fades() -> None:
    """In the middle of the step in log-SNR; x_t = sigma_t/sigma_s x, and for data at a point, exactly."""
    flow = sg.RectifiedFlowSDE()
    program = sg.schemes.RES().compile(EDM, sg.Grid([4.0, 2.0]))
    assert [stage.t for stage in program.stages] == pytest.approx([4, 2 * R2, 2, 2])
    for row, (alpha, sigma) in zip(table(sg.schemes.RES(), (0.6, 0.3), flow)[1:], [(0.7, 0.3)] * 2, strict=True):
        assert row["x0"] == pytest.approx(sigma / 0.6)
        assert 0.4 * row["x0"] + sum(c for key, c in row.items() if key[0] == "e") == pytest.approx(alpha)


def test_inner_nodes_where_asked_for() -> None:
    """c2 = 1/4 in log-SNR from 4 to 1/4 is the noise level 2; the weights are exact for lines."""
    rows = table(sg.schemes.ExponentialRungeKutta(stages=2, c2=0.25), (4.0, 0.25))
    h = 4 * LOG2
    m1 = 1 - (1 - 1 / 16) / h
    same(rows, [{"x0": 1 / 2, "e0": 1 / 2}, {"x0": 1 / 16, "e0": 15 / 16 - 4 * m1, "e1": 4 * m1}])
    three = sg.schemes.ExponentialRungeKutta(stages=3, c2=0.25).compile(EDM, sg.Grid([16.0, 2.0]))
    assert [stage.t for stage in three.stages] == pytest.approx([16, 16 / 8**0.25, 4, 2])
    default = sg.schemes.ExponentialRungeKutta(stages=3).compile(EDM, sg.Grid([16.0, 2.0]))
    assert [stage.t for stage in default.stages] == pytest.approx([16, 8, 4, 2])
    last = {"x0": 1 / 8, "e0": 7 / 8 - 3 / 2 * (1 - 7 / 8 / (3 * LOG2)), "e2": 3 / 2 * (1 - 7 / 8 / (3 * LOG2))}
    assert table(sg.schemes.ExponentialRungeKutta(stages=3), (16.0, 2.0))[-1] == pytest.approx(last)


def test_a_warm_start_with_two_inner_nodes_leaves_one_behind() -> None:
    """Of the first step the evaluations at its start and at two thirds are remembered."""
    rows = table(sg.schemes.LMS(4), (8.0, 2.0, 1.0))
    program = sg.schemes.LMS(4).compile(EDM, sg.Grid([8.0, 2.0, 1.0]))
    assert [stage.t for stage in program.stages] == pytest.approx([8, 6, 4, 2, 1])
    assert list(rows[2]) == ["x0", "e0", "e2"]
    assert list(rows[3]) == ["x3", "e0", "e2", "e3"]
    # In the noise level from 2 to 1 with 4 and 8 before: integrals of Lagrange's polynomials through 2, 4, 8.
    lagrange = [np.poly1d(np.poly(others)) for others in ([2, 4], [2, 8], [4, 8])]
    at = [8.0, 4.0, 2.0]
    expected = [(p.integ()(1) - p.integ()(2)) / p(x) for p, x in zip(lagrange, at, strict=True)]
    assert list(rows[3].values())[1:] == pytest.approx(expected, rel=1e-10)


def test_correctors_at_every_step_but_the_last() -> None:
    """UniC with three evaluations: each step is done again with the evaluation at its end; warm starts are not."""
    cold = table(sg.schemes.UniC(sg.schemes.LMS(2, start="cold")), (4.0, 3.0, 2.0, 1.0))
    ab, am = [-3 / 2, 1 / 2], [-5 / 12, -8 / 12, 1 / 12]
    same(
        cold,
        [
            {"x0": 1, "e0": -1},
            {"x1": 1, "e0": 1 - 1 / 2 + 1 / 2, "e1": -1 / 2 - 3 / 2},
            {"x2": 1, "e0": am[2] - ab[1], "e1": am[1] - ab[0] - ab[1] * -1, "e2": am[0] + ab[0]},
        ],
    )
    # With one evaluation, that at the step's end: x1 - e1 + e0, and on with Adams-Bashforth's weights.
    same(
        table(sg.schemes.UniC(sg.schemes.LMS(2), nodes=1), (4.0, 3.0, 2.0)),
        [{"x0": 1, "e0": -1}, {"x1": 1, "e0": 3 / 2, "e1": -5 / 2}],
    )


NUMBERS: list[tuple[Any, ...]] = [  # solver, order, weak order, network calls for 10 steps, steps for 10, 3 and 0 calls
    (sg.schemes.ExponentialAdams(nodes=1), 1, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, start="warm"), 3, None, 11, 9, 2, 0),
    (sg.schemes.ExponentialAdams(nodes=3, start="warm", lower_final=True), 2, None, 11, 9, 2, 0),
    (sg.schemes.ExponentialAdams(nodes=4, start="warm"), 4, None, 12, 8, 1, 0),
    (sg.schemes.ExponentialAdams(nodes=5, start="warm"), 4, None, 12, 8, 1, 0),
    (sg.schemes.ExponentialAdams(nodes=3, variant="published"), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=4, variant="published", start="warm"), 4, None, 12, 8, 1, 0),
    (sg.schemes.ExponentialAdams(nodes=1, corrector=1), 1, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=1, corrector=2), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=2, corrector=3), 3, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=4), 3, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=4, start="warm"), 4, None, 12, 8, 1, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=2), 2, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=4, variant="published"), 3, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=1, eta=1.0), 1, 1, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, eta=1.0), 2, 2, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=3, corrector=4, eta=0.5), 3, 2, 10, 10, 3, 0),
    (sg.schemes.ExponentialAdams(nodes=2, eta=abs), 2, 2, 10, 10, 3, 0),
    (sg.schemes.IPNDM(4), 1, None, 10, 10, 3, 0),
    (sg.schemes.UniC(sg.schemes.IPNDM(4)), 1, None, 10, 10, 3, 0),
    (sg.schemes.UniC(sg.DPMSolverPP(3)), 4, None, 12, 8, 1, 0),
    (sg.schemes.UniC(sg.DPMSolverPP(3), 3), 3, None, 10, 10, 3, 0),
    (sg.schemes.UniC(sg.DPMSolverPP(2)), 3, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialRungeKutta(stages=1), 1, None, 10, 10, 3, 0),
    (sg.schemes.ExponentialRungeKutta(), 2, None, 20, 5, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=3), 3, None, 30, 3, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=3, reduced=2), 3, None, 28, 4, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=3, reduced=20), 3, None, 20, 5, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=2, reduced=1), 2, None, 19, 5, 2, 0),
    (sg.schemes.ExponentialRungeKutta(stages=3, eta=1.0), 3, 2, 30, 3, 1, 0),
    (sg.schemes.ExponentialRungeKutta(stages=1, eta=1.0), 1, 1, 10, 10, 3, 0),
    (sg.schemes.RES(), 3, None, 30, 3, 1, 0),
    (sg.schemes.PNDM(), 1, None, 19, 2, 0, 0),
    (sg.schemes.PNDM(runge_kutta=False), 1, None, 11, 9, 2, 0),
    (sg.schemes.AncestralNoise(sg.DPMSolver(1)), 1, 1, 10, 10, 3, 0),
    (sg.schemes.AncestralNoise(sg.DPMSolver(2)), 2, 2, 20, 5, 1, 0),
    (sg.Restart(sg.DPMSolver(2), rounds=2, n_steps=2), 2, None, 28, 1, 0, 0),
    (sg.Restart(sg.DDIM()), 1, None, 13, 7, 0, 0),
    (sg.Heun(), 2, None, 20, 5, 1, 0),
    (sg.Heun(s_churn=0.5), 2, 2, 20, 5, 1, 0),
    (sg.Heun(s_churn=0.5, s_noise=1.01), 2, None, 20, 5, 1, 0),
    (sg.RungeKutta(), 4, None, 40, 2, 0, 0),
    (sg.RungeKutta(sg.tableaus.RK3), 3, None, 30, 3, 1, 0),
    (sg.EulerMaruyama(), 1, 1, 10, 10, 3, 0),
    (sg.EulerMaruyama(eta=0.0), 1, None, 10, 10, 3, 0),
    (sg.ReverseDiffusion(), 1, 1, 10, 10, 3, 0),
    (sg.DDIM(), 1, None, 10, 10, 3, 0),
    (sg.DDIM(eta=1.0), 1, 1, 10, 10, 3, 0),
    (sg.Ancestral(), 1, 1, 10, 10, 3, 0),
    (sg.schemes.AnnealedLangevin(n_steps=2), 0, None, 22, 4, 0, 0),
    (sg.PredictorCorrector(sg.DDIM(), sg.Langevin(n_steps=2)), 1, None, 30, 3, 1, 0),
    (sg.PredictorCorrector(sg.DPMSolverPP(3), sg.Langevin()), 3, None, 21, 4, 1, 0),
]


@pytest.mark.parametrize("numbers", NUMBERS, ids=lambda numbers: repr(numbers[0]))
def test_orders_and_budgets(numbers: tuple[Any, ...]) -> None:
    """Orders as documented, the cost of 10 steps, and the steps that 10, 3 and 0 network calls allow."""
    solver, order, weak, nfe, *steps = numbers
    assert (solver.order, solver.weak_order, solver.nfe(10)) == (order, weak, nfe)
    assert [max(solver.steps(n), 0) for n in (10, 3, 0)] == steps


@pytest.mark.parametrize("solver", [solver for solver, *_ in NUMBERS], ids=repr)
def test_budgets_are_used_in_full(solver: sg.Solver) -> None:
    """`steps` is the largest number whose cost the budget covers."""
    for budget in range(40):
        steps = solver.steps(budget)
        if steps:
            assert solver.nfe(steps) <= budget
        assert solver.nfe(steps + 1) > budget


def test_single_steps_spend_the_whole_budget() -> None:
    """By a last step of fewer stages."""
    solver = sg.schemes.ExponentialRungeKutta(stages=3, c2=0.4)
    assert solver.fit(7) == (dataclasses.replace(solver, reduced=2), 3)
    assert solver.fit(2) == (dataclasses.replace(solver, reduced=1), 1)
    assert solver.fit(1) == (sg.schemes.ExponentialRungeKutta(stages=2, reduced=1), 1)
    assert sg.DDIM().fit(7) == (sg.DDIM(), 7)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_single_steps_are_fitted_to_the_budget(stages: int) -> None:
    """All of it is spent."""
    for budget in range(1, 13):
        fitted, steps = sg.schemes.ExponentialRungeKutta(stages=stages, c2=0.4 if stages > 1 else None).fit(budget)
        assert fitted.nfe(steps) == budget
        assert fitted.compile(EDM, sg.grids.Karras()(EDM, steps)).nfe == budget


def test_noise_levels_and_their_window() -> None:
    """A number or a function of the step's start; inside the window in part, in proportion of its square."""
    steps = [(node(4.0), node(2.0)), (node(2.0), node(0.5)), (node(1.0), node(0.5)), (node(0.5), node(0.25))]
    windowed = sg.schemes.ExponentialAdams(eta=2.0, window=(0.25, 1.0))
    assert [windowed.eta_on(s, t) for s, t in steps] == pytest.approx([0.0, 2 * math.sqrt(0.5), 2.0, 2.0])
    low = sg.schemes.ExponentialAdams(eta=2.0, window=(0.5, 4.0))
    assert [low.eta_on(s, t) for s, t in [*steps, (node(1.0), node(0.25))]] == pytest.approx([2, 2, 2, 0, R2])
    assert sg.schemes.ExponentialAdams(eta=lambda t: t / 2).eta_on(*steps[0]) == 2.0
    assert sg.schemes.ExponentialAdams(eta=lambda t: t / 2, window=(0.25, 1.0)).eta_on(*steps[1]) == pytest.approx(
        R2 / 2
    )
    assert sg.schemes.ExponentialAdams().eta_on(*steps[0]) == 0.0
    noisy, flow = sg.schemes.ExponentialAdams(eta=2.0), sg.RectifiedFlowSDE(T=1.0)
    assert noisy.eta_on(node(1.0, flow), node(0.5, flow)) == 2.0  # from where alpha = 0
    assert noisy.eta_on(node(1.0), node(0.0)) == 2.0  # to where sigma = 0
    with pytest.raises(ValueError, match=r"eta at t=4 must be finite, .* got -1.0"):
        sg.schemes.ExponentialAdams(eta=lambda t: -1.0).eta_on(*steps[0])
    data = sg.schemes.ExponentialAdams(eta=0.5, variable="time", variant="midpoint").part(*steps[0])
    assert data == DataPart("time", 0.5, "midpoint", 1.0)
    velocity = sg.schemes.Rosenbrock(2, sigma_data=0.3).part(*steps[0])
    assert velocity == VPart("angle", 0.0, "exact", 0.3)


REFUSED: list[tuple[Callable[[], object], str]] = [
    (
        lambda: sg.schemes.ExponentialAdams(prediction="score"),
        "prediction must be one of 'data', 'noise', 'v', 'rectified', got",
    ),
    (
        lambda: sg.schemes.ExponentialAdams(variable="angle"),
        "of data must be one of 'log-snr', 'time', 'noise",
    ),
    (
        lambda: sg.schemes.ExponentialAdams(prediction="v", variable="time"),
        "of v must be one of 'angle', 'log-signal', 'log-snr', got",
    ),
    (
        lambda: sg.schemes.ExponentialAdams(prediction="rectified", variable="angle"),
        "must be one of 'flow-time', got",
    ),
    (
        lambda: sg.schemes.ExponentialAdams(prediction="rectified", eta=1.0),
        "prediction='rectified' is for the flow, got eta=1.0",
    ),
    (lambda: sg.schemes.ExponentialAdams(prediction="rectified", variant="bh1"), "made for data or noise in log-SNR"),
    (
        lambda: sg.schemes.ExponentialAdams(variant="x"),
        "variant must be one of 'exact', 'midpoint', 'bh1', 'published', 'fix",
    ),
    (lambda: sg.schemes.ExponentialAdams(prediction="v", variant="bh1"), "made for data or noise in log-SNR"),
    (lambda: sg.schemes.ExponentialAdams(variable="time", variant="bh1"), "made for data or noise in log-SNR"),
    (lambda: sg.schemes.ExponentialAdams(variable="noise-level", variant="fixed"), "made for noise in the noise level"),
    (lambda: sg.schemes.ExponentialAdams(prediction="noise", variant="fixed"), "made for noise in the noise level"),
    (lambda: sg.schemes.ExponentialAdams(eta=-0.5), r"eta must be finite, at least 0 and at most 1e\+06, got -0.5$"),
    (lambda: sg.schemes.ExponentialAdams(eta=math.inf), r"eta must be finite, at least 0 and at most 1e\+06, got inf$"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="x"), "noise_scale must be one of 'er', got 'x'"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="er", eta=1.0), "without eta"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="er", eta=abs), "without eta"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="er", prediction="noise"), "goes with data prediction"),
    (lambda: sg.schemes.ExponentialAdams(noise_scale="er", window=(0.1, 1.0)), "without eta"),
    (lambda: sg.schemes.ExponentialAdams(eta=1.0, window=(1.0, 0.5)), "0 <= low <= high"),
    (lambda: sg.schemes.ExponentialAdams(eta=1.0, window=(-1.0, 0.5)), "0 <= low <= high"),
    (lambda: sg.schemes.ExponentialAdams(window=(0.1, 1.0)), "window acts on eta, which is 0"),
    (lambda: sg.schemes.ExponentialAdams(prediction="v", no_signal_above=7.0), "no_signal_above acts on v in log-SNR"),
    (lambda: sg.schemes.Rosenbrock(variable="log-snr", no_signal_above=0.0), "no_signal_above must be finite, above 0"),
    (lambda: sg.schemes.Rosenbrock(variable="log-signal", linear_below=0.0), "linear_below must be finite, above 0"),
    (lambda: sg.schemes.Rosenbrock(linear_below=5.0), "acts on the variable log-signal, got it with angle"),
    (lambda: sg.schemes.Rosenbrock(centred_below=-1.0), "centred_below must be finite, above 0"),
    (lambda: sg.schemes.ExponentialAdams(centred_below=5.0), "centred_below acts on v-prediction, got it with data"),
    (lambda: sg.schemes.ExponentialAdams(final_nodes=-1), "final_nodes must be an integer of at least 0, got -1"),
    (lambda: sg.schemes.ExponentialAdams(final_nodes=2, eta=1.0), "final_nodes=2 is for deterministic .* got eta=1.0"),
    (lambda: sg.schemes.ExponentialAdams(final_nodes=2, variant="published"), "got eta=0.0 and variant='published'"),
    (lambda: sg.schemes.ExponentialAdams(prediction="v", sigma_data=0.0), "sigma_data must be finite, above 0"),
    (lambda: sg.schemes.ExponentialAdams(prediction="v", sigma_data=math.inf), "sigma_data must be finite, above 0"),
    (lambda: sg.schemes.ExponentialAdams(sigma_data=0.5), "sigma_data acts on v-prediction, got it with data"),
    (lambda: sg.schemes.ExponentialAdams(nodes=0), "nodes must be an integer of at least 1, got 0"),
    (lambda: sg.schemes.ExponentialAdams(nodes=1.5), "nodes must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.schemes.ExponentialAdams(nodes=2, corrector=4), r"between 0 and nodes \+ 1 = 3, got 4"),
    (lambda: sg.schemes.ExponentialAdams(corrector=-1), "got -1"),
    (lambda: sg.schemes.ExponentialAdams(corrector=1.5), "got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.schemes.ExponentialAdams(start="hot"), "start must be one of 'cold', 'warm', got 'hot'"),
    (lambda: sg.schemes.ExponentialAdams(nodes=2, start="warm"), "start='warm' changes nothing at order 2"),
    (
        lambda: sg.schemes.ExponentialAdams(nodes=2, corrector=3, start="warm"),
        "start='warm' changes nothing at order 3",
    ),
    (lambda: sg.schemes.ExponentialAdams(nodes=3, variant="published", start="warm"), "changes nothing at order 2"),
    (
        lambda: sg.schemes.ExponentialAdams(nodes=3, corrector=4, variant="published", start="warm"),
        "start='warm' changes nothing at order 3",
    ),
    (lambda: sg.schemes.ExponentialAdams(nodes=3, start="warm", eta=1.0), "start='warm' is for deterministic solvers"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=0), "stages must be an integer of at least 1, got 0"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=4), "stages must be one of 1, 2, 3, got 4"),
    (
        lambda: sg.schemes.ExponentialRungeKutta(variant="bh1"),
        "must be one of 'exact', 'midpoint'",
    ),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=3, variant="midpoint"), "one of two stages, got stages=3"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=1, variant="midpoint"), "one of two stages, got stages=1"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=1, c2=0.5), "c2 must lie inside the step"),
    (lambda: sg.schemes.ExponentialRungeKutta(c2=0.0), "c2 must lie inside the step"),
    (lambda: sg.schemes.ExponentialRungeKutta(c2=1.0), "c2 must lie inside the step"),
    (lambda: sg.schemes.ExponentialRungeKutta(stages=3, c2=2 / 3), "for three stages below 2/3"),
    (lambda: sg.schemes.ExponentialRungeKutta(reduced=-1), "reduced must be an integer of at least 0"),
    (lambda: sg.schemes.ExponentialRungeKutta(reduced=0.5), "reduced must be an integer of at least 0"),  # type: ignore[arg-type]
    (lambda: sg.schemes.ExponentialRungeKutta(stages=1, reduced=1), "must be 0 for one stage, got 1"),
    (lambda: sg.DPMSolverPP(0), "order must be an integer of at least 1, got 0"),
    (lambda: sg.DPMSolverPP(1.5), "got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.DPMSolver(4), "order must be 1, 2 or 3, multistep also more, got 4"),
    (lambda: sg.DPMSolver(2, start="warm"), "a single-step solver needs no start, got start='warm'"),
    (lambda: sg.DPMSolverPP(1, variant="midpoint"), "order 1 has no variants, got variant='midpoint'"),
    (lambda: sg.UniPC(variant="bh3"), "variant must be one of 'bh1', 'bh2', 'exact', got 'bh3'"),
    (lambda: sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=0.0), "eta must be finite, above 0 and at most 1, got 0.0"),
    (lambda: sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=1.5), "eta must be finite, above 0 and at most 1, got 1.5"),
    (lambda: sg.Restart(sg.DDIM(), s_min=0.0), "need 0 < s_min < s_max, got 0.0 and 0.3"),
    (lambda: sg.Restart(sg.DDIM(), s_min=0.3), "need 0 < s_min < s_max, got 0.3 and 0.3"),
    (lambda: sg.Restart(sg.DDIM(), s_max=math.inf), "got 0.14 and inf"),
    (lambda: sg.Restart(sg.DDIM(), rounds=0), "rounds must be an integer of at least 1, got 0"),
    (lambda: sg.Restart(sg.DDIM(), n_steps=1.5), "n_steps must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.Heun(s_churn=-1.0), "s_churn must be at least 0, got -1.0"),
    (lambda: sg.Heun(s_churn=1.0, s_tmin=2.0, s_tmax=1.0), "need s_tmin <= s_tmax, got 2.0 and 1.0"),
    (lambda: sg.Heun(s_tmin=0.1), "s_churn is 0"),
    (lambda: sg.DDIM(eta=1.01), "eta must be finite, at least 0 and at most 1, got 1.01"),
    (lambda: sg.DDIM(eta=-0.1), "got -0.1"),
    (lambda: sg.EulerMaruyama(eta=-0.1), r"at least 0 and at most 1e\+06, got -0.1"),
    (lambda: sg.EulerMaruyama(eta=math.inf), r"at least 0 and at most 1e\+06, got inf"),
    (lambda: sg.Ancestral(variance="x"), "variance must be one of 'posterior', 'transition', got 'x'"),
    (lambda: sg.Langevin(snr=0.0), "snr must be positive and finite, got 0.0"),
    (lambda: sg.Langevin(snr=math.inf), "snr must be positive and finite, got inf"),
    (lambda: sg.Langevin(n_steps=0), "n_steps must be an integer of at least 1, got 0"),
    (lambda: sg.Langevin(n_steps=1.5), "n_steps must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
    (lambda: sg.Langevin(norm="x"), "norm must be one of 'expected', 'sample', 'batch', got 'x'"),
    (lambda: sg.Langevin(snr=1.0), "snr must be below 1, from where on updates are not stable, got 1.0"),
    (lambda: sg.Langevin(data_std=-0.5), "data_std must be finite, at least 0 .* got -0.5"),
    (lambda: sg.Langevin(data_std=math.inf), "data_std must be finite, at least 0 .* got inf"),
    (lambda: sg.Langevin(data_std=0.5, norm="batch"), "data_std=0.5 goes with norm='expected', got norm='batch'"),
    (lambda: sg.schemes.AnnealedLangevin(step_ratio=0.0), "step_ratio must be positive and finite, got 0.0"),
    (
        lambda: sg.schemes.AnnealedLangevin(4.0),
        "step_ratio must be below 4, from where on updates are not stable, got 4.0",
    ),
    (lambda: sg.PredictorCorrector(sg.DDIM(), sg.Langevin(), order="PP"), "order must be one of 'PC', 'CP', got 'PP'"),
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=case_id)
def test_options_out_of_range_are_refused(make: Any, text: Any) -> None:
    """The message names the option and the value."""
    with pytest.raises(ValueError, match=text):
        make()


def test_options_at_their_limits_are_taken() -> None:
    """The last value inside each limit, and combinations that are allowed."""
    sg.schemes.ExponentialAdams(eta=1.0, window=(0.5, 0.5))
    sg.schemes.ExponentialAdams(eta=1.0, window=(0.0, 0.5))
    sg.schemes.ExponentialAdams(prediction="noise", variable="log-snr", variant="bh1")
    sg.schemes.ExponentialAdams(prediction="noise", variable="noise-level", variant="fixed", corrector=3)
    sg.schemes.ExponentialAdams(noise_scale="er", window=(0.0, math.inf))
    sg.schemes.ExponentialRungeKutta(stages=3, c2=0.66)
    sg.schemes.ExponentialRungeKutta(stages=2, c2=0.99, variant="midpoint", reduced=1)
    sg.DPMSolverPP(5)
    sg.DPMSolverPP(3, singlestep=True)
    sg.schemes.AncestralNoise(sg.DPMSolver(2), eta=1.0)
    sg.Heun(s_churn=1.0, s_tmin=1.0, s_tmax=1.0)
    sg.DDIM(eta=1.0)
    sg.EulerMaruyama(eta=1e6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sg.schemes.AncestralNoise(sg.DPMSolver(3)),
        lambda: sg.schemes.AncestralNoise(sg.DPMSolver(2, eta=1.0)),
        lambda: sg.schemes.AncestralNoise(sg.DDIM()),
        lambda: sg.Restart(3),  # type: ignore[arg-type]
        lambda: sg.Restart("dopri5"),
        lambda: sg.schemes.UniC(sg.DDIM()),
        lambda: sg.schemes.ExponentialAdams(3),  # type: ignore[call-arg, arg-type]
        lambda: sg.schemes.ExponentialRungeKutta(3),  # type: ignore[call-arg, arg-type]
        lambda: Exponential("data"),  # type: ignore[abstract, call-arg]
        lambda: sg.PredictorCorrector("dopri5", sg.Langevin()),
        lambda: sg.PredictorCorrector(sg.DDIM(), sg.DDIM()),  # type: ignore[arg-type]
    ],
    ids=case_id,
)
def test_what_does_not_go_together_is_refused(make: Callable[..., object]) -> None:
    """Solvers of a kind that cannot be wrapped, what is none, and options by position."""
    with pytest.raises(TypeError):
        make()


def adams(**options: Any) -> sg.schemes.ExponentialAdams:
    """The multistep solver of the options."""
    return sg.schemes.ExponentialAdams(**options)


def lowering(**options: Any) -> sg.schemes.ExponentialAdams:
    """The same, of lower order at the end of grids of few steps, as the literature's codes are."""
    return adams(lower_final=None, **options)


NOISE: dict[str, Any] = {"prediction": "noise"}


LEVEL: dict[str, Any] = {"prediction": "noise", "variable": "noise-level"}


CASES: list[tuple[sg.Solver, str, sg.Solver]] = [  # what a paper's name stands for, what it calls itself
    (sg.DPMSolverPP(), "dpm++2m", lowering(variant="midpoint")),
    (sg.DPMSolverPP(1), "dpm++1m", adams(nodes=1)),
    (sg.DPMSolverPP(3), "dpm++3m", lowering(nodes=3, start="warm")),
    (sg.DPMSolverPP(3, start="cold"), "dpm++3m-cold", lowering(nodes=3)),
    (sg.DPMSolverPP(2, start="cold"), "dpm++2m", lowering(variant="midpoint")),
    (sg.DPMSolverPP(3, eta=1.0), "sde-dpm++3m", lowering(nodes=3, eta=1.0)),
    (sg.DPMSolverPP(2, eta=abs), "sde-dpm++2m-eta-of-t", lowering(variant="midpoint", eta=abs)),
    (sg.DPMSolverPP(3, eta=abs), "sde-dpm++3m-eta-of-t", lowering(nodes=3, eta=abs)),
    (sg.DPMSolverPP(3, variant="published"), "dpm++3m-published", lowering(nodes=3, variant="published")),
    (sg.DPMSolverPP(4, variant="published"), "dpm++4m-published", lowering(nodes=4, variant="published", start="warm")),
    (sg.DPMSolverPP(2, singlestep=True), "dpm++2s", single(variant="midpoint")),
    (sg.DPMSolver(), "dpm2", single(**NOISE, variant="midpoint")),
    (sg.DPMSolver(3), "dpm3", single(**NOISE, stages=3)),
    (sg.DPMSolver(1, eta=1.0), "sde-dpm1-published", single(**NOISE, stages=1, eta=1.0)),
    (sg.DPMSolver(2, singlestep=False), "dpm2m", lowering(**NOISE, variant="midpoint")),
    (sg.DPMSolver(3, singlestep=False), "dpm3m", lowering(**NOISE, nodes=3, start="warm")),
    (sg.DEIS(), "deis3", lowering(**NOISE, variable="time", nodes=3, start="warm")),
    (sg.DEIS(2), "deis2", lowering(**NOISE, variable="time")),
    (sg.schemes.LMS(), "lms4", adams(**LEVEL, nodes=4, start="warm")),
    (sg.schemes.LMS(2), "lms2", adams(**LEVEL)),
    (sg.schemes.IPNDM(), "ipndm4", adams(**LEVEL, variant="fixed", nodes=4)),
    (sg.schemes.UniC(sg.DEIS(2)), "deis2-unic", lowering(**NOISE, variable="time", corrector=3)),
    (sg.schemes.UniC(sg.schemes.LMS(4), 2), "lms4-unic2", adams(**LEVEL, nodes=4, corrector=2)),
    (sg.schemes.UniC(sg.schemes.LMS(4)), "lms4-unic", adams(**LEVEL, nodes=4, corrector=5, start="warm")),
    (sg.UniPC(), "unipc3", lowering(variant="midpoint", nodes=3, corrector=4)),
    (sg.UniPC(2, variant="bh1", prediction="noise"), "unipc2-noise-bh1", lowering(**NOISE, variant="bh1", corrector=3)),
    (sg.UniPC(3, variant="exact", start="warm"), "unipc3-exact-warm", lowering(nodes=3, corrector=4, start="warm")),
    (sg.UniPC(2, corrector=False), "unip2", lowering(variant="midpoint")),
    (sg.SASolver(), "sa-solver", lowering(nodes=2, corrector=3, eta=1.0, window=(0.05, 1.0))),
    (sg.SASolver(3), "sa-solver3", lowering(nodes=3, corrector=4, eta=1.0, window=(0.05, 1.0))),
    (
        sg.SASolver(3, lower_final=False),
        "sa-solver3-unlowered",
        adams(nodes=3, corrector=4, eta=1.0, window=(0.05, 1.0)),
    ),
    (sg.UniPC(1), "unipc1", adams(variant="midpoint", nodes=1, corrector=2)),
    (sg.UniPC(lower_final=True), "unipc3-lowered", adams(variant="midpoint", nodes=3, corrector=4, lower_final=True)),
    (sg.DEIS(lower_final=False), "deis3-unlowered", adams(**NOISE, variable="time", nodes=3, start="warm")),
    (sg.DPMSolverPP(lower_final=False), "dpm++2m-unlowered", adams(variant="midpoint")),
    (sg.SASolver(2, corrector=0), "sa-solver-corrector0", lowering(nodes=2, eta=1.0, window=(0.05, 1.0))),
    (sg.schemes.SEEDS(), "seeds2", single(eta=1.0)),
    (sg.schemes.SEEDS(3), "seeds3", single(stages=3, eta=1.0)),
    (sg.schemes.SEEDS(prediction="noise"), "seeds2-published", single(**NOISE, variant="midpoint", eta=1.0)),
    (sg.schemes.SEEDS(3, prediction="noise"), "seeds3-published", single(**NOISE, stages=3, eta=1.0)),
    (sg.schemes.Rosenbrock(), "rosenbrock2", lowering(prediction="v", sigma_data=0.5)),
    (sg.schemes.Rosenbrock(3), "rosenbrock3", lowering(prediction="v", sigma_data=0.5, nodes=3, start="warm")),
    (
        sg.schemes.Rosenbrock(3, eta=1.0),
        "rosenbrock3-eta1.0",
        lowering(prediction="v", sigma_data=0.5, nodes=3, eta=1.0),
    ),
    (sg.schemes.RectifiedAdams(), "rectified2", lowering(prediction="rectified")),
    (sg.schemes.RectifiedAdams(3), "rectified3", lowering(prediction="rectified", nodes=3, start="warm")),
    (sg.schemes.RectifiedAdams(3, start="cold"), "rectified3-cold", lowering(prediction="rectified", nodes=3)),
    (sg.schemes.ERSDE(), "er-sde3", adams(variable="noise-level", noise_scale="er", nodes=3)),
]


@pytest.mark.parametrize(("solver", "name", "case"), CASES, ids=case_id)
def test_families_are_cases_of_the_exponential_integrators(solver: Any, name: Any, case: Any) -> None:
    """Each paper's solver is the exponential integrator with these options, and calls itself by its own name."""
    assert isinstance(case, sg.schemes.ExponentialAdams | sg.schemes.ExponentialRungeKutta)
    assert solver.name == name
    assert solver == dataclasses.replace(case, name=solver.name, source=solver.source)
    assert repr(solver) == repr(case)


LEAPING: list[sg.schemes.ExponentialAdams] = [
    adams(variant="midpoint"), adams(nodes=3, start="warm"), adams(nodes=3, corrector=4), adams(nodes=3, eta=1.0),
    adams(**NOISE, nodes=3), adams(nodes=2, corrector=3, eta=1.0, window=(0.05, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize("solver", LEAPING, ids=repr)
@pytest.mark.parametrize(
    ("sde", "grid", "lower"),
    [
        (sg.RectifiedFlowSDE(), sg.grids.Uniform(), True),
        (sg.RectifiedFlowSDE(), sg.grids.Shifted(3.0), True),
        (sg.VPSDE(), sg.grids.Uniform(), True),
        (sg.RectifiedFlowSDE(), sg.grids.LogSNR(), False),
        (sg.EDMSDE(), sg.grids.Karras(), False),
    ],
    ids=repr,
)
def test_the_order_falls_before_a_leap(
    solver: sg.schemes.ExponentialAdams, sde: sg.LinearSDE, grid: sg.grids.GridRule, lower: bool
) -> None:
    """Of 24 steps that end in a leap the last ones are of lower order, of others none is."""
    times = grid(sde, 24)

    as_given = dataclasses.replace(solver, lower_final=None).compile(sde, times)
    assert as_given == dataclasses.replace(solver, lower_final=lower).compile(sde, times)
    assert as_given != dataclasses.replace(solver, lower_final=not lower).compile(sde, times)


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++3m", "unipc2", "unipc3", "unipc4", "dpm++3m-published"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_twice_the_calls_err_less_on_the_times_of_flows(name: str, shift: float) -> None:
    """Three modes on rectified flow: 20 calls err at most .9 times as much as 10; `unipc3` erred 5 times as much."""
    sde = sg.RectifiedFlowSDE()
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.5]], dtype=torch.float64)
    score = sg.oracles.GaussianMixture(means, 0.2).score(sde)
    x_T = sde.prior_sample((16, 2), seed=0, dtype=torch.float64)
    exact = sg.sample(score, sde, x_T=x_T, solver="lms4", nfe=200, grid="log-snr").x

    def error(nfe: int) -> float:
        """Root mean square."""
        x = sg.sample(score, sde, x_T=x_T, solver=name, nfe=nfe, grid=sg.grids.Shifted(shift)).x
        return float((x - exact).square().mean().sqrt())

    assert error(20) < 0.9 * error(10)


def test_wrappers_take_solvers_by_name() -> None:
    """As `sample` does; a class in the place of a solver is told apart from its instances."""
    assert sg.Restart("dpmpp_2m") == sg.Restart(sg.DPMSolverPP(2))
    assert sg.schemes.UniC("deis2") == sg.schemes.UniC(sg.DEIS(2))
    assert sg.schemes.AncestralNoise("dpm2") == sg.schemes.AncestralNoise(sg.DPMSolver(2))
    assert sg.PredictorCorrector("ddim", sg.Langevin()) == sg.PredictorCorrector(sg.DDIM(), sg.Langevin())
    seen = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.zeros(2))
    assert sg.inverse.Replacement("ddim", seen) == sg.inverse.Replacement(sg.DDIM(), seen)
    with pytest.raises(ValueError, match=r"unknown solver 'dimm'.* did you mean"):
        sg.Restart("dimm")
    with pytest.raises(TypeError, match="predictor must be a name or a Solver, got the class DDIM: call it"):
        sg.PredictorCorrector(sg.DDIM, sg.Langevin())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"corrector must be a Corrector, .*, got the class Langevin: call it"):
        sg.PredictorCorrector("ddim", sg.Langevin)  # type: ignore[arg-type]


@pytest.mark.parametrize("process", ["vp", "edm"])
@pytest.mark.parametrize("nfe", [5, 20, *some_slow([8, 12])])
def test_data_far_from_zero_about_a_data_estimate(process: str, nfe: int) -> None:
    """Of N(20, 1) the default errs little more than of N(0, 1), at most a third of what it does about 0."""
    sde = LINEAR[process]
    setting = sg.defaults.default_setting(sde, nfe)
    about_zero = sg.Setting(replace(setting.solver, centred_below=None), setting.grid)
    x = sde.prior_sample((64, 1), seed=0, dtype=torch.float64)

    def error(mean: float, solver: sg.Setting) -> float:
        score = sg.oracles.Gaussian(torch.full((1,), mean, dtype=torch.float64), 1.0).score(sde)
        end = sg.sample(score, sde, x_T=x, nfe=nfe, solver=solver).x
        exact = sg.sample(score, sde, x_T=x, nfe=400).x
        return float((end - exact).square().mean().sqrt())

    assert error(20.0, setting) < error(20.0, about_zero) / 3
    assert error(20.0, setting) < 20 * error(0.0, setting) + 0.01
    assert error(0.0, setting) < 3 * error(0.0, about_zero)


@pytest.mark.parametrize("nfe", [5, 8, 12, 20])
def test_data_far_from_zero_on_rectified_flow(nfe: int) -> None:
    """Of N(5, 1) the default errs less than about 0 and than DPM-Solver++; a mean of 20 is too far for that."""
    sde = sg.RectifiedFlowSDE()
    setting = sg.defaults.default_setting(sde, nfe)
    about_zero = sg.Setting(replace(setting.solver, centred_below=None), setting.grid)
    score = sg.oracles.Gaussian(torch.full((1,), 5.0, dtype=torch.float64), 1.0).score(sde)
    x = sde.prior_sample((64, 1), seed=0, dtype=torch.float64)
    exact = sg.sample(score, sde, x_T=x, nfe=400).x

    def error(solver: sg.Setting | str) -> float:
        return float((sg.sample(score, sde, x_T=x, nfe=nfe, solver=solver).x - exact).square().mean().sqrt())

    assert error(setting) < 0.6 * error(about_zero)
    assert error(setting) < 0.6 * error("dpm++2m")


def test_names_of_dpm_solvers_are_their_own() -> None:
    """Each setting has one, and those of the registry are names of equal solvers."""
    known: dict[str, sg.Solver] = {}
    equal_to = {name: sg.schemes.resolve_any(name) for name in sg.solvers()}
    options = itertools.product(
        (sg.DPMSolver, sg.DPMSolverPP), (1, 2, 3, 4), ("exact", "midpoint", "published"), (None, "cold", "warm"),
        (0.0, 0.5, 1.0, abs), (True, False), (None, True, False),
    )  # fmt: skip
    for family, order, variant, start, eta, singlestep, lower_final in options:
        try:
            solver = family(
                order, variant=variant, start=start, eta=eta, singlestep=singlestep, lower_final=lower_final
            )
        except ValueError:
            continue
        assert known.setdefault(solver.name, solver) == solver
        assert equal_to.get(solver.name, solver) == solver
    named = {name for name in equal_to if re.fullmatch(r"(sde-)?dpm(\+\+)?\d.*", name) and "-ancestral" not in name}
    assert named - known.keys() == {"dpm5m-cold", "dpm++3m-restart"}


STARTED: dict[str, list[Any]] = {"order": [1, 2, 3, 4], "start": ["cold", "warm"], "lower_final": [None, True, False]}
FAMILIES: dict[str, tuple[Callable[..., sg.Solver], dict[str, list[Any]]]] = {
    "deis": (sg.DEIS, {**STARTED, "variable": ["time", "vp-time"]}),
    "rectified": (sg.schemes.RectifiedAdams, STARTED),
    "lms": (sg.schemes.LMS, {"order": [1, 2, 3, 4], "start": ["cold", "warm"]}),
    "unip": (
        sg.UniPC,
        {
            **STARTED, "prediction": ["data", "noise"], "variant": ["bh1", "bh2", "exact"], "corrector": [True, False],
        },
    ),
    "sa-solver": (
        sg.SASolver,
        {
            "order": [1, 2, 3], "corrector": [None, 0, 2], "eta": [0.5, 1.0, abs],
            "window": [(0.05, 1.0), (0.0, math.inf)], "lower_final": [None, True, False],
        },
    ),
    "rosenbrock": (
        sg.schemes.Rosenbrock,
        {
            **STARTED, "variable": ["angle", "log-snr", "log-signal"], "sigma_data": [0.5, 0.7, 1.0],
            "no_signal_above": [None, 7.0, 40.0], "linear_below": [None, 0.7, 5.0], "centred_below": [None, 5.0],
            "eta": [0.0, 0.5, 1.0, abs],
        },
    ),
    "unic": (
        lambda order, nodes: sg.schemes.UniC(sg.DEIS(order), nodes),
        {"order": [1, 2, 3, 4], "nodes": [None, 1, 2, 3, 4, 5]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_each_option_of_a_family_has_a_name(family: str) -> None:
    """Solvers of one name are equal, and those of the registry are among them."""
    make, options = FAMILIES[family]
    known: dict[str, sg.Solver] = {}
    for values in itertools.product(*options.values()):
        try:
            solver = make(**dict(zip(options, values, strict=True)))
        except ValueError:
            continue
        assert known.setdefault(solver.name, solver) == solver
    assert len(known) > 5
    named = {name: solver for name, solver in sg.solvers().fixed.items() if re.match(rf"{family}(c?\d|$)", name)}
    for name in named.keys() - {"unipc4"}:
        assert known[name] == named[name]


def test_exponential_integrators_show_what_is_not_default() -> None:
    """And the variable only where it is not the prediction's own."""
    assert repr(sg.schemes.ExponentialAdams()) == "ExponentialAdams()"
    assert repr(adams(variable="log-snr", name="x", source="y")) == "ExponentialAdams()"
    assert repr(adams(variable="time", nodes=4)) == "ExponentialAdams(variable='time', nodes=4)"
    assert repr(adams(prediction="v")) == "ExponentialAdams(prediction='v')"
    assert (adams().variable, adams(**NOISE).variable, adams(prediction="v").variable) == (
        "log-snr",
        "log-snr",
        "angle",
    )
    assert (adams().eta, adams().sigma_data, adams().window, adams().nodes) == (0.0, 1.0, (0.0, math.inf), 2)
    assert (adams().stochastic, adams(eta=0.1).stochastic, adams(eta=abs).stochastic) == (False, True, True)


def test_ipndm_with_variable_steps() -> None:
    """The published code's weights of three evaluations, by a loop in its symbols; those of two are exact."""
    times = (7.0, 4.0, 2.5, 1.0, 0.7)
    rows = table(sg.schemes.IPNDM(3, variable_steps=True), times)
    for i in (2, 3):
        h, h1, h2 = (times[j + 1] - times[j] for j in (i, i - 1, i - 2))
        temp = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
        c = ((2 + h / h1) / 2 + temp, -(h / h1) / 2 - (1 + h1 / h2) * temp, temp * h1 / h2)
        same([rows[i]], [{f"x{i}": 1, f"e{i - 2}": h * c[2], f"e{i - 1}": h * c[1], f"e{i}": h * c[0]}])
        assert sum(c) == pytest.approx(1)
    assert table(sg.schemes.IPNDM(2, variable_steps=True), times) == table(sg.schemes.LMS(2), times)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_s_weights_on_even_steps_are_those_of_lms(order: int) -> None:
    even = (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)

    same(table(sg.schemes.IPNDM(order, variable_steps=True), even), table(sg.schemes.LMS(order, start="cold"), even))


def test_pndm() -> None:
    """Three steps of four evaluations, averaged as Runge-Kutta's, then Adams-Bashforth's fixed weights."""
    rows = table(sg.schemes.PNDM(), (5.0, 4.0, 3.0, 2.0, 1.0))
    same(
        rows[:4],
        [
            {"x0": 1, "e0": -1 / 2},
            {"x0": 1, "e1": -1 / 2},
            {"x0": 1, "e2": -1},
            {"x0": 1, "e0": -1 / 6, "e1": -1 / 3, "e2": -1 / 3, "e3": -1 / 6},
        ],
    )
    same(rows[-1:], [{"x12": 1, "e0": 9 / 24, "e4": -37 / 24, "e8": 59 / 24, "e12": -55 / 24}])
    vp = sg.VPSDE()
    s, half, t = (node(u, vp) for u in (0.8, 0.6, 0.4))
    (first, *_) = table(sg.schemes.PNDM(), (0.8, 0.4), vp)
    change = half.alpha * (half.sigma / half.alpha - s.sigma / s.alpha)
    assert first == pytest.approx({"x0": half.alpha / s.alpha, "e0": change})
    assert t.alpha > half.alpha
    assert [sg.schemes.PNDM().nfe(n) for n in (0, 1, 2, 3, 4)] == [0, 4, 8, 12, 13]
    assert [sg.schemes.PNDM().steps(n) for n in (3, 4, 11, 12, 13, 20)] == [0, 1, 2, 3, 4, 11]


def test_plms() -> None:
    """Heun's method in the noise level, then Adams-Bashforth's fixed weights of two, three and four evaluations."""
    rows = table(sg.schemes.PNDM(runge_kutta=False), (6.0, 5.0, 4.0, 3.0, 2.0, 1.0))
    same(rows[:2], [{"x0": 1, "e0": -1}, {"x0": 1, "e0": -1 / 2, "e1": -1 / 2}])
    same(rows[2:3], [{"x2": 1, "e0": 1 / 2, "e2": -3 / 2}])
    same(rows[3:4], [{"x3": 1, "e0": -5 / 12, "e2": 16 / 12, "e3": -23 / 12}])
    same(rows[4:5], [{"x4": 1, "e0": 9 / 24, "e2": -37 / 24, "e3": 59 / 24, "e4": -55 / 24}])
    same(rows[5:], [{"x5": 1, "e2": 9 / 24, "e3": -37 / 24, "e4": 59 / 24, "e5": -55 / 24}])
    assert [sg.schemes.PNDM(runge_kutta=False).nfe(n) for n in (0, 1, 2, 10)] == [0, 2, 3, 11]
    assert [sg.schemes.PNDM(runge_kutta=False).steps(n) for n in (0, 1, 2, 10)] == [0, 0, 1, 9]
    assert (sg.schemes.PNDM().runge_kutta, sg.schemes.PNDM().name, sg.schemes.PNDM(runge_kutta=False).name) == (
        True,
        "pndm",
        "plms",
    )
    assert all(math.isclose(math.fsum(w), 1) for w in ADAMS.values())


def test_restarts() -> None:
    """At the first node at or below s_min: up to s_max with noise, and down in steps even in s^(1/7), twice."""
    solver = sg.Restart(sg.DPMSolverPP(1), s_min=0.6, s_max=3.0, rounds=2, n_steps=2)
    program = solver.compile(EDM, sg.Grid([4.0, 2.0, 0.5, 0.25]))
    m = ((3 ** (1 / 7) + 0.5 ** (1 / 7)) / 2) ** 7
    assert [stage.t for stage in program.stages] == pytest.approx([4, 2, 0.5, 3, m, 0.5, 3, m, 0.5, 0.5, 0.25])
    assert [stage.node for stage in program.stages] == [k in (0, 1, 9, 10) for k in range(11)]
    rows = table(solver, (4.0, 2.0, 0.5, 0.25))
    down = [{"x": m / 3, "e": 1 - m / 3}, {"x": 0.5 / m, "e": 1 - 0.5 / m}]
    for j in (0, 1):
        up, first, second = rows[2 + 3 * j : 5 + 3 * j]
        assert up == pytest.approx({f"x{2 + 3 * j}": 1, f"z{j}": math.sqrt(8.75)})
        assert list(first.values()) == pytest.approx(list(down[0].values()))
        assert list(second.values()) == pytest.approx(list(down[1].values()))
    assert program.nfe == solver.nfe(3) == 3 + 2 * 2
    assert (solver.name, solver.prediction, solver.nfe_per_step) == ("dpm++1m-restart", "data", 1)
    assert (solver.stochastic, solver.weak_order, solver.eta, solver.sigma_data) == (True, None, 0.0, 1.0)
    noisy = sg.Restart(sg.schemes.Rosenbrock(2, sigma_data=0.25, eta=0.5))
    assert (noisy.eta, noisy.sigma_data) == (0.5, 0.25)


def test_restarts_scale_with_alpha() -> None:
    """x alpha_max/alpha_min + alpha_max sqrt(s_max^2 - s_min^2) z, on a process with signal that fades."""
    vp = sg.VPSDE()
    low = node(0.2, vp)
    s_max = node(0.5, vp).noise_level
    rows = table(sg.Restart(sg.DDIM(), s_min=low.noise_level * 1.01, s_max=s_max, n_steps=1), (1.0, 0.2, 0.1), vp)
    alpha = node(0.5, vp).alpha
    up = {"x1": alpha / low.alpha, "z1": alpha * math.sqrt(s_max**2 - low.noise_level**2)}
    assert list(rows[1].values()) == pytest.approx(list(up.values()), rel=1e-9)


def test_restarts_need_a_grid_that_covers_them() -> None:
    """Ends included; the history of the last pass goes on."""
    edges = sg.Restart(sg.DDIM(), s_min=1.0, s_max=4.0, n_steps=1)
    assert edges.compile(EDM, sg.Grid([4.0, 1.0])).nfe == 2
    rows = table(sg.Restart(sg.schemes.LMS(2), s_min=1.0, s_max=3.0, n_steps=2), (4.0, 2.0, 1.0, 0.5))
    assert list(rows[-1]) == ["x6", "e4", "e6"]


@pytest.mark.parametrize("s_min, s_max", [(0.9, 4.0), (1.0, 4.1)])
def test_restarts_outside_the_grid_are_refused(s_min: float, s_max: float) -> None:
    with pytest.raises(ValueError, match=r"this one runs from 4 to 1"):
        sg.Restart(sg.DDIM(), s_min=s_min, s_max=s_max).compile(EDM, sg.Grid([4.0, 1.0]))


def test_ancestral_noise_names_itself() -> None:
    """What it is made of, and at most weak order 2."""
    solver = sg.schemes.AncestralNoise(sg.DPMSolver(2))
    assert (solver.name, solver.prediction, solver.eta, solver.stochastic) == ("dpm2-ancestral", "noise", 1.0, True)
