"""Every solver has the order it claims: deterministic and weak, on every linear process, on even and uneven grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import sgm_sde as sg
from benchmarks.orders import MORE_STEPS, STEPS
from sgm_sde.engine.program import Form, Step
from sgm_sde.grids import LogSNR
from sgm_sde.schemes.linear_part import DataPart
from sgm_sde.testing import (
    OrderMeasurement,
    default_oracle,
    measure_order,
    measure_weak_order,
    measure_weak_order_on_mixture,
    rough,
    warped,
)
from tests.helpers import ALL, DETERMINISTIC, FAMILIES, LINEAR, MIXTURE, WEAK

FEWER_STEPS = (80, 160)  # where orders 1 and 2 show as well; what differs between processes does
RULES = {"log-snr": LogSNR(), "warped": warped(), "rough": rough()}
SHORT = {"log-snr": LogSNR(), "rough": rough(period=4)}  # for few steps, where weak errors stand out of their noise
# Errors of the first three are soon too small to be seen; 10 / N is what churn is capped below, at 0.41.
# SA-Solver is not among them: its slope on VP is 1.55 from 4 to 8 steps, 2.78 from 8 to 16, 2.46 from 16 to 32.
FEW_STEPS = {"seeds2": (4, 8), "seeds2-published": (4, 8), "sde-dpm++3m": (4, 8), "heun-churn": (32, 64)}
# Where 2^13 points leave errors at 16 steps below five of their standard errors.
MORE_POINTS = {"seeds3": 15, "sa-solver-published": 14}


# Every process meets these, a method of several steps and one of several stages; the other structures meet two more.
ON_EVERY_PROCESS = ("dpm++3m", "heun", "ancestral", "sde-dpm++2m")
UNLIKE_VP = ("edm", "flow")


def cases(names: Sequence[str], rule_on_vp: str) -> list[Any]:
    """Every solver on VP, one of each structure on the other processes; slow are the other grid and most pairs."""
    everywhere = [
        pytest.param(name, "vp", rule, marks=[] if rule == rule_on_vp else pytest.mark.slow)
        for name in names
        for rule in ("log-snr", "rough")
    ]
    elsewhere = [name for name in names if name in FAMILIES]
    return everywhere + [
        pytest.param(
            name,
            process,
            "warped" if process == "edm" else "rough",
            marks=[] if name in ON_EVERY_PROCESS or process in UNLIKE_VP else pytest.mark.slow,
        )
        for name in elsewhere
        for process in LINEAR
        if process != "vp"
    ]


@pytest.mark.parametrize(("name", "process", "rule"), cases(DETERMINISTIC, "log-snr"))
def test_order_on_a_gaussian(name: str, process: str, rule: str) -> None:
    """Error against the closed form of the probability flow."""
    usual = STEPS if process == "vp" or ALL[name].order > 2 else FEWER_STEPS
    measured = measure_order(ALL[name], LINEAR[process], rule=RULES[rule], steps=MORE_STEPS.get(name, usual))
    assert measured.order > ALL[name].order - 0.15, measured


@pytest.mark.parametrize("process", ["edm", "ve", "flow", "cosine"])
def test_order_of_deis_in_vp_time(process: str) -> None:
    """Polynomials in another process' time keep the order, on processes that have their own."""
    deis = sg.DEIS(3, variable="vp-time")
    measured = measure_order(deis, LINEAR[process], oracle=MIXTURE, rule=rough(), steps=STEPS)
    assert measured.order > 3 - 0.15, measured


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("corrected", [False, True])
def test_order_about_a_data_estimate(process: str, corrected: bool) -> None:
    """That another centre is taken once on the way costs no order, with a corrector or without."""
    solver = sg.schemes.Rosenbrock(3, variable="log-signal", centred_below=1.0, lower_final=False)
    solver = sg.schemes.UniC(solver, 3) if corrected else solver
    measured = measure_order(solver, LINEAR[process], oracle=MIXTURE, rule=LogSNR(), steps=STEPS)
    assert measured.order > solver.order - 0.15, measured


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_a_mixture(name: str) -> None:
    """Error against a tight reference by another code, in other coordinates: the order claimed, and not one more.

    On an uneven grid, where nothing cancels by chance. Above one order the claim is not modest.
    """
    claimed = ALL[name].order
    measured = measure_order(
        ALL[name], LINEAR["vp"], oracle=MIXTURE, rule=RULES["rough"], steps=MORE_STEPS.get(name, STEPS)
    )
    assert measured.order > claimed - 0.15, measured
    assert claimed == 1 or measured.order < claimed + 0.5, measured


@pytest.mark.slow
@pytest.mark.parametrize(("process", "rule"), [("vp", "log-snr"), ("edm", "warped"), ("flow", "rough")])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_a_mixture_elsewhere(name: str, process: str, rule: str) -> None:
    """The same on other grids and processes."""
    steps = MORE_STEPS.get(name, STEPS)
    measured = measure_order(ALL[name], LINEAR[process], oracle=MIXTURE, rule=RULES[rule], steps=steps)
    assert measured.order > ALL[name].order - 0.15, measured


@pytest.mark.parametrize(("name", "process", "rule"), cases(WEAK, "rough"))
def test_weak_order_by_impulse_response(name: str, process: str, rule: str) -> None:
    """Exact output mean and variance on Gaussian data, without Monte Carlo."""
    steps = (64, 128, 256) if rule == "log-snr" else (64, 128)
    measured = measure_weak_order(ALL[name], LINEAR[process], rule=RULES[rule], steps=steps)
    weak_order = ALL[name].weak_order
    assert weak_order is not None
    assert measured.order > weak_order - 0.15, measured


def assert_weak_order(name: str, measured: OrderMeasurement) -> None:
    """The claim is reached within two standard errors, and an order less would not be."""
    weak_order = ALL[name].weak_order
    assert weak_order is not None
    assert measured.order_stderr < 0.25, measured
    assert measured.order > weak_order - 0.15 - 2 * measured.order_stderr, measured


def weak_cases() -> list[Any]:
    """One solver of each structure on VP; slow are the others, and the flow."""
    return [
        pytest.param(
            name,
            process,
            rule,
            marks=[] if process == "vp" and name in (*FAMILIES, *FEW_STEPS) else pytest.mark.slow,
        )
        for name in WEAK
        for process, rule in (("vp", "log-snr"), ("flow", "rough"))
    ]


@pytest.mark.parametrize(("name", "process", "rule"), weak_cases())
def test_weak_order_on_a_mixture(name: str, process: str, rule: str) -> None:
    """Expectations of moments and waves where the score is not linear."""
    points = MORE_POINTS.get(name, 13 if ALL[name].weak_order == 2 else 10)
    steps = FEW_STEPS.get(name, (8, 16))
    measured = measure_weak_order_on_mixture(
        ALL[name], LINEAR[process], rule=SHORT[rule], steps=steps, log2_points=points
    )
    assert_weak_order(name, measured)


@pytest.mark.slow
@pytest.mark.parametrize(("process", "rule"), [("vp", "log-snr"), ("edm", "rough"), ("flow", "rough")])
@pytest.mark.parametrize("name", WEAK)
def test_weak_order_on_a_mixture_at_full_resolution(name: str, process: str, rule: str) -> None:
    """The same with more steps and more points."""
    steps = (32, 64, 128) if name == "heun-churn" else (8, 16, 32)
    measured = measure_weak_order_on_mixture(
        ALL[name], LINEAR[process], rule=LogSNR() if rule == "log-snr" else rough(period=8), steps=steps, log2_points=15
    )
    assert_weak_order(name, measured)


@dataclass(frozen=True)
class ShrunkNoise(sg.Solver):
    """SEEDS-2 with the noise of its inner stage replaced by its regression on the step's noise, of less variance.

    All second moments with the step's noise are right, so that nothing shows under a linear score.
    """

    name = "shrunk-noise"
    order = 2
    weak_order = 2
    prediction = "data"
    source = "made up"

    def step(self, k: Step) -> Form:
        """One step."""
        part, s, t, z = DataPart("log-snr", 1.0), k.start, k.end, k.noise()
        middle = part.between(k, s, t, 0.5)
        at_start = (s, k.evaluate(k.x, s))
        shrunk = part.factor(middle, t) * part.std(s, middle) ** 2 / part.std(s, t) * z
        inner = part.update(s, middle, k.x, [at_start]) + shrunk
        return part.update(s, t, k.x, [(middle, k.evaluate(inner, middle)), at_start]) + part.std(s, t) * z


def test_a_mixture_shows_what_gaussian_data_hide() -> None:
    """A stage with too little noise: of weak order 2 under a linear score, 1 under another."""
    on_gaussian = measure_weak_order(ShrunkNoise(), LINEAR["vp"], steps=(64, 128, 256))
    on_mixture = measure_weak_order_on_mixture(ShrunkNoise(), LINEAR["vp"], steps=(8, 16), log2_points=14)
    assert on_gaussian.order > 1.85, on_gaussian
    assert on_mixture.order < 1.3, on_mixture


def test_weak_error_of_one_step_by_quadrature() -> None:
    """Euler-Maruyama's law after one step, from the density of its start and the normal's."""
    sde, data = sg.EDMSDE(), default_oracle("scalar")
    assert isinstance(data, sg.oracles.GaussianMixture)
    x = torch.linspace(-16, 16, 801, dtype=torch.float64)[:, None]
    z = torch.linspace(-9, 9, 401, dtype=torch.float64)
    reverse = sde.reverse(data.score(sde), eta=1.0)
    moved = x - reverse.f(x, torch.tensor(2.0)) + reverse.g(torch.tensor(2.0)) * z
    weight = data.log_prob(x, sde, 2.0).exp()[:, None] * torch.exp(-(z**2) / 2)

    def expectations(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        features = torch.stack([y, y**2, torch.cos(2 * y), torch.sin(2 * y)])
        return (features * weight).sum((1, 2)) / weight.sum()

    exact = expectations(x, data.log_prob(x, sde, 1.0).exp()[:, None])
    error = float((expectations(moved, weight) - exact).norm())
    measured = measure_weak_order_on_mixture(
        "euler-maruyama", sde, t_start=2.0, t_end=1.0, steps=(1,), log2_points=12, scrambles=8
    )
    assert measured.stderrs[0] < 2e-3 * error
    assert abs(measured.errors[0] - error) < 4 * measured.stderrs[0]


def test_order_of_noisy_errors() -> None:
    """Errors below five standard errors are left out; the rest propagate theirs."""
    measured = OrderMeasurement((4, 8, 16), (0.16, 0.04, 0.01), (0.016, 0.004, 0.003))
    assert math.isclose(measured.order, 2.0)
    assert math.isclose(measured.order_stderr, 0.1 * math.sqrt(2) / math.log(2))
    noise = OrderMeasurement((4, 8), (0.16, 0.04), (0.016, 0.01))
    assert math.isnan(noise.order)
    assert math.isnan(noise.order_stderr)


def test_options_of_the_measurements() -> None:
    """Bad input is named."""
    with pytest.raises(ValueError, match="period must be an integer of at least 2, got 1"):
        rough(period=1)
    with pytest.raises(ValueError, match=r"one-dimensional, of shape \(1,\), got \(2,\)"):
        measure_weak_order_on_mixture("ancestral", LINEAR["vp"], oracle=MIXTURE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="heun adds no noise"):
        measure_weak_order_on_mixture("heun", LINEAR["vp"])
    with pytest.raises(ValueError, match="log2_points must be an integer of at least 0, got -1"):
        measure_weak_order_on_mixture("ancestral", LINEAR["vp"], log2_points=-1)
    with pytest.raises(ValueError, match="at least 2 scramblings, got 1"):
        measure_weak_order_on_mixture("ancestral", LINEAR["vp"], scrambles=1)
    times = LogSNR()(LINEAR["vp"], 8), rough(period=4)(LINEAR["vp"], 8)
    moved = np.subtract(*([float(LINEAR["vp"].log_snr(t)) for t in grid.times] for grid in times))
    assert np.allclose(moved[1:4], moved[5:8])
