"""Forward simulation against the marginals of linear processes, and on a drift that has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.processes import simulate
from tests.helpers import F64, LINEAR

TIMES = {name: [0.2 * sde.T, 0.5 * sde.T] for name, sde in LINEAR.items() if name not in ("ddpm", "ncsn")}


@pytest.mark.parametrize("name", TIMES)
def test_the_marginals_of_linear_processes(name: str) -> None:
    """Mean and standard deviation from one time to a later one are those of the transition."""
    sde = LINEAR[name]
    start, end = TIMES[name]
    x0 = torch.full((4000, 1), 1.5, dtype=F64)
    states = simulate(sde, x0, [start, end], substeps=200, seed=0)
    scale, std = (float(value) for value in sde.transition(start, end))
    assert states.shape == (2, 4000, 1)
    assert torch.equal(states[0], x0)
    assert abs(float(states[1].mean()) - scale * 1.5) < 4 * std / 4000**0.5 + 0.01 * scale
    assert float(states[1].std()) == pytest.approx(std, rel=0.06)


def test_the_mean_converges_with_order_one() -> None:
    """Without noise in the mean of a linear drift: halved steps halve the error."""
    sde = sg.VPSDE()
    x0 = torch.ones(2, 1, dtype=F64)
    exact = float(sde.alpha(torch.tensor(0.5, dtype=F64)))
    errors = []
    for substeps in (50, 100):
        moved, still = (simulate(sde, x, [0.0, 0.5], substeps=substeps, seed=0)[-1] for x in (x0, 0 * x0))
        errors.append(float((moved - still)[0]) - exact)  # the noise is additive, so the difference has none
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_a_process_with_a_matrix() -> None:
    """CLD's covariance at a time, from a point and random velocities."""
    sde = sg.CLD()
    _, at_start = sde.kernel(torch.tensor(0.0, dtype=F64))
    x0 = torch.zeros(4000, 2, 1, dtype=F64)
    x0[:, 1, 0] = at_start[1, 1].sqrt() * torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=F64)
    end = simulate(sde, x0, [0.0, 0.5], substeps=200, seed=0)[-1, :, :, 0]
    _, expected = sde.kernel(torch.tensor(0.5, dtype=F64))
    assert torch.allclose(end.T.cov(), expected, atol=0.06 * float(expected.diagonal().max()))


class DoubleWell(sg.SDE):
    """A drift that is not linear."""

    T, eps, prior_std = 8.0, 1e-3, 1.0

    def f(self, x: Tensor, t: Tensor) -> Tensor:
        return 4 * x - 4 * x**3

    def g(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 0.5)


def test_a_drift_that_is_not_linear() -> None:
    """Paths settle in both wells; each depends on its own seed alone; the global state is left alone."""
    sde, state = DoubleWell(), torch.get_rng_state()
    x0 = torch.zeros(200, 1)
    paths = simulate(sde, x0, [0.0, 4.0, 8.0], seed=0)
    assert 0.6 < float(paths[-1].abs().mean()) < 1.1
    assert 0.3 < float((paths[-1] > 0).float().mean()) < 0.7
    assert torch.equal(simulate(sde, x0[:5], [0.0, 4.0, 8.0], seed=0), paths[:, :5])
    assert not torch.equal(simulate(sde, x0, [0.0, 4.0, 8.0]), paths)
    assert torch.equal(torch.get_rng_state(), state)
    assert simulate(sde, x0.to(torch.bfloat16), [0.0, 0.1]).dtype == torch.float32


@pytest.mark.parametrize("times", [[], [0.5, 0.2], [0.5, 0.5], [-0.1, 0.5], [0.0, 1.2], [0.0, float("nan")]])
def test_times_that_are_none(times: list[float]) -> None:
    """They increase within [0, T]."""
    with pytest.raises(ValueError, match="times must increase within"):
        simulate(sg.VPSDE(), torch.zeros(2, 1), times)
