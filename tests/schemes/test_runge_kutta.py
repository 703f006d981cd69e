"""Runge-Kutta and Heun."""

from __future__ import annotations

import math

import pytest

import sgm_sde as sg
from sgm_sde.schemes.tableaus import order_of
from tests.by_hand import EDM, node, same, table
from tests.conventions import case_id


def test_tableaus_of_the_literature() -> None:
    """Nodes, weights and orders as printed."""
    known = {
        sg.tableaus.EULER: ((0,), (1,), 1),
        sg.tableaus.MIDPOINT: ((0, 1 / 2), (0, 1), 2),
        sg.tableaus.HEUN2: ((0, 1), (1 / 2, 1 / 2), 2),
        sg.tableaus.RALSTON: ((0, 2 / 3), (1 / 4, 3 / 4), 2),
        sg.tableaus.RK3: ((0, 1 / 2, 1), (1 / 6, 2 / 3, 1 / 6), 3),
        sg.tableaus.RK4: ((0, 1 / 2, 1 / 2, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
    }
    for tableau, (c, b, order) in known.items():
        assert (tableau.c, tableau.b, tableau.order) == (c, b, order)
    assert sg.tableaus.RK3.a == ((), (1 / 2,), (-1, 2))
    assert sg.tableaus.RK4.a == ((), (1 / 2,), (0, 1 / 2), (0, 0, 1))
    assert sg.RungeKutta().tableau == sg.tableaus.RK4
    assert repr(sg.tableaus.RK4) == "Tableau('rk4', 4 stages)"
    assert (sg.Tableau([[]], [1]).name, sg.Tableau([[]], [1]).source) == ("tableau", "user")


ORDERS: list[tuple[list[list[float]], list[float], int]] = [  # each fails one condition of the next order
    ([[], [1 / 2]], [1 / 2, 1 / 2], 1),  # b c = 1/4
    ([[], [1 / 2], [1 / 4, 1 / 4]], [0, 0.5, 0.5], 2),  # b c^2 = 1/4
    ([[], [1 / 3], [0, 2 / 3]], [1 / 4, 0, 3 / 4], 3),  # Heun's third-order method
    ([[], [1 / 2], [3 / 4 - 1e-3, 1e-3]], [2 / 9, 1 / 3, 4 / 9], 2),  # b A c
    ([[], [1 / 2], [0, 3 / 4]], [2 / 9, 1 / 3, 4 / 9], 3),  # Ralston's third-order method
    ([[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8], 4),  # Kutta's 3/8 rule
]


@pytest.mark.parametrize("a, b, order", ORDERS)
def test_orders_of_tableaus(a: list[list[float]], b: list[float], order: int) -> None:
    """From Butcher's conditions, and no more than they say."""
    assert sg.Tableau(a, b).order == order


@pytest.mark.parametrize(("error", "order"), [(0.5e-10, 4), (1.5e-10, 3)])
def test_order_conditions_have_a_tolerance(error: float, order: int) -> None:
    """RK4 with b A A c = 1/24 off by half of 1e-10 is of order 4, by one and a half times of order 3."""
    change = 24 * error  # which leaves the other conditions as they are, since c2 = c3
    assert sg.Tableau([[], [1 / 2], [0, 1 / 2], [0, -change, 1 + change]], sg.tableaus.RK4.b).order == order


def test_orders_from_0_to_8() -> None:
    """Weights that do not sum to 1, errors as large as the tolerance, and no tree of more than 8 nodes."""
    assert order_of(((),), (0.5,)) == 0
    assert order_of(((),), (1.0,)) == 1
    assert order_of(((),), (1.0,), tolerance=0.5) == 8  # b c misses 1/2 by 1/2, and no condition is missed by more


def test_rounding_of_nodes_is_removed() -> None:
    """Near 0 and 1, and no more than rounding."""
    assert sg.Tableau([[], [1 + 0.5e-12]], [0, 1]).c == (0.0, 1.0)
    assert sg.Tableau([[], [1 - 1.5e-12]], [0, 1]).c == (0.0, 1 - 1.5e-12)
    assert sg.Tableau([[], [0.75]], [0, 1]).c == (0.0, 0.75)
    assert sg.Tableau([[], [1e-12]], [0, 1]).c == (0.0, 1e-12)
    with pytest.raises(ValueError, match="must sum to 1"):
        sg.Tableau([[], [0.5]], [0, 1 + 2e-9])


@pytest.mark.parametrize(
    "a, b, text",
    [
        ([[], [1, 2]], [0, 1], r"rows of lengths 0..1, got \[0, 2\]"),
        ([[]], [0.9], "must sum to 1, got 0.9"),
        ([[]], [1 + 1e-8], "must sum to 1"),
        ([[], [1.5]], [0, 1], r"must lie in \[0, 1\], got \(0.0, 1.5\)"),
        ([[], [-0.5]], [0, 1], r"must lie in \[0, 1\]"),
        ([[], [1 + 1.5e-12]], [0, 1], r"must lie in \[0, 1\]"),
    ],
    ids=case_id,
)
def test_what_is_no_tableau_is_refused(
    a: list[object] | list[list[object]], b: list[int] | list[float], text: str
) -> None:
    """Rows, weights and nodes."""
    with pytest.raises(ValueError, match=text):
        sg.Tableau(a, b)  # type: ignore[arg-type]


def test_runge_kutta_s_steps() -> None:
    """Stages at t + c h with the tableau's coefficients times h."""
    rows = table(sg.RungeKutta(sg.tableaus.RK3), (4.0, 2.0))
    same(
        rows,
        [{"x0": 1, "e0": -1}, {"x0": 1, "e0": 2, "e1": -4}, {"x0": 1, "e0": -1 / 3, "e1": -4 / 3, "e2": -1 / 3}],
    )
    program = sg.RungeKutta(sg.tableaus.RK3).compile(EDM, sg.Grid([4.0, 2.0]))
    assert [stage.t for stage in program.stages] == [4, 3, 2, 2]
    assert program.prediction == "drift"


def churned(solver: sg.Heun, *times: float) -> list[float]:
    """Coefficients of a step's noise at its raised state, 0 for a step without; for the steps of a grid."""
    program = solver.compile(EDM, sg.Grid(times))
    starts = [k for k, stage in enumerate(program.stages) if stage.node]
    return [dict(program.stages[k + 1].noises).get(j, 0.0) for j, k in enumerate(starts[:-1])]


def test_churn() -> None:
    """gamma = min(S_churn / N, sqrt(2) - 1) with N noise levels: s_hat = (1 + gamma) s, noise sqrt(s_hat^2 - s^2)."""
    assert churned(sg.Heun(s_churn=0.75), 4.0, 2.0, 1.0) == pytest.approx([3.0, 1.5])
    assert churned(sg.Heun(s_churn=3.0), 4.0, 2.0, 1.0) == pytest.approx([4.0, 2.0])  # gamma at its limit
    assert churned(sg.Heun(s_churn=0.75, s_noise=1.5), 4.0, 2.0) == pytest.approx([1.5 * 4 * math.sqrt(1.375**2 - 1)])
    program = sg.Heun(s_churn=0.75).compile(EDM, sg.Grid([4.0, 2.0, 1.0]))
    assert [stage.t for stage in program.stages] == pytest.approx([4, 5, 2, 2, 2.5, 1, 1])
    same(
        table(sg.Heun(s_churn=0.75))[:3],
        [{"x0": 1, "z0": 3}, {"x0": 1, "e1": -3, "z0": 3}, {"x0": 1, "e1": -3 / 2, "e2": -3 / 2, "z0": 3}],
    )


def test_churn_within_its_limits() -> None:
    """S_tmin and S_tmax belong to the stretch with churn; the level of T is never exceeded."""

    def noisy(**options: float) -> list[bool]:
        program = sg.Heun(s_churn=0.75, **options).compile(EDM, sg.Grid([8.0, 4.0, 2.0, 1.0]))
        starts = [k for k, stage in enumerate(program.stages) if stage.node]
        return [not math.isclose(program.stages[k + 1].t, program.stages[k].t / 2) for k in starts[:-1]]

    assert noisy() == [True, True, True]
    assert noisy(s_tmin=4.0) == [True, True, False]
    assert noisy(s_tmax=4.0) == [False, True, True]
    assert noisy(s_tmin=4.0, s_tmax=4.0) == [False, True, False]
    top = sg.Heun(s_churn=0.75).compile(sg.EDMSDE(1.0, 4.0), sg.Grid([4.0, 3.5, 1.0]))
    assert max(stage.t for stage in top.stages) == 4.0
    vp = sg.VPSDE()
    s, t = node(0.5, vp), node(0.3, vp)
    up, euler, end = table(sg.Heun(s_churn=0.5), (0.5, 0.3), vp)
    hat = 1.25 * s.noise_level
    alpha, h = 1 / math.sqrt(1 + hat**2), t.alpha * (t.noise_level - hat)
    raised = {"x0": 1 / s.alpha, "z0": 0.75 * s.noise_level}  # in x / alpha
    assert up == pytest.approx({key: alpha * c for key, c in raised.items()}, rel=1e-9)
    level = {key: t.alpha * c for key, c in raised.items()}
    assert euler == pytest.approx({**level, "e1": h}, rel=1e-9)
    assert end == pytest.approx({**level, "e1": h / 2, "e2": h / 2}, rel=1e-9)
    assert t.lam > s.lam
    assert (sg.Heun(s_churn=0.5).stochastic, sg.Heun().stochastic) == (True, False)
