"""Steps and budgets beyond what a table holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import sgm_sde as sg
from sgm_sde.sampling import plan

VP = sg.VPSDE()
N = 10**9


def drawn(**options: object) -> object:
    return sg.sample(lambda x, t: -x, VP, (2, 2), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "said"),
    {
        "nfe": (lambda: drawn(nfe=N), "nfe must be at most 1000000, got 1000000000"),
        "steps": (lambda: drawn(steps=N), "steps must be at most 1000000, got 1000000000"),
        "nfe of a solver": (lambda: drawn(nfe=N, solver="ddim"), "nfe must be at most 1000000, got 1000000000"),
        "steps of a solver": (lambda: drawn(steps=N, solver="ddim"), "steps must be at most 1000000, got 1000000000"),
        "calls of steps": (
            lambda: drawn(steps=300_000, solver="rk4"), "rk4 takes 1200000 network calls in steps=300000, above 1000000"
        ),
        "calls of a corrector": (
            lambda: drawn(steps=2, solver=sg.PredictorCorrector(sg.Ancestral(), sg.Langevin(n_steps=N))),
            "takes 2000000002 network calls in steps=2, above 1000000",
        ),
        "steps of a library": (lambda: drawn(steps=N, solver="torchdiffeq:euler"), "steps must be at most 1000000"),
        "a rule": (lambda: sg.grids.Uniform()(VP, N), "number of steps must be at most 1000000, got 1000000000"),
        "a pilot": (lambda: sg.pilot(lambda x, t: -x, VP, (4, 2), nfe=N), "nfe must be at most 1000000"),
        "its reference": (
            lambda: sg.pilot(lambda x, t: -x, VP, (4, 2), nfe=8, reference_nfe=N), "reference_nfe must be at most"
        ),
        "a density": (lambda: sg.likelihood.FixedGrid(N), "steps must be at most 1000000, got 1000000000"),
        "a bound": (
            lambda: sg.elbo(lambda x, t: -x, VP, torch.zeros(2, 2), n_times=N), "n_times must be at most 1000000"
        ),
        "a table": (lambda: sg.presets.ddpm(N), "n must be at most 1000000, got 1000000000"),
        "a ladder": (lambda: sg.VESDE(0.1, 10.0).ladder(N), "levels must be at most 1000000, got 1000000000"),
    }.values(),
)  # fmt: skip
def test_numbers_beyond_a_table_are_refused_at_the_call(call: Callable[[], object], said: str) -> None:
    """Before anything is planned, or takes memory."""
    with pytest.raises(ValueError, match=said):
        call()


def test_the_largest_number_is_one_that_is_taken() -> None:
    assert sg.grids.Uniform()(VP, 1_000_000).steps == 1_000_000
    with pytest.raises(ValueError, match="got 1000001"):
        sg.grids.Uniform()(VP, 1_000_001)


def test_a_table_is_planned_in_proportion_to_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the integrals that are formed: twice as many for twice the steps, two a step with a corrector."""
    from sgm_sde.schemes.linear_part import LinearPart

    n = 0
    integral = LinearPart.integral

    def counted(self: LinearPart, *args: object) -> object:
        nonlocal n
        n += 1
        return integral(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LinearPart, "integral", counted)
    plan(VP, sg.UniPC(2), steps=103)
    few, n = n, 0
    plan(VP, sg.UniPC(2), steps=203)
    assert n - few == 200
