"""Samples with their log-density, in one solve of any deterministic solver on a grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sgm_sde as sg
from sgm_sde.likelihood import Hutchinson
from tests.helpers import DOUBLE, F64, LINEAR, MIXTURE

VP = LINEAR["vp"]
SCORE = MIXTURE.score(VP)
BELOW = [0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.01]


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "ddpm"])
@pytest.mark.parametrize("solver", [None, "heun", "dpm++3m", "unipc3"])
def test_samples_come_with_their_density(solver: str | None, process: str) -> None:
    """The closed form within the stated error, at the samples that are drawn without it too, within the budget."""
    sde = LINEAR[process]
    options: dict[str, Any] = {"solver": solver, "seed": 0, "execution": DOUBLE}
    found = sg.sample(MIXTURE.score(sde), sde, (16, 2), nfe=50, log_prob=True, **options)
    alone = sg.sample(MIXTURE.score(sde), sde, (16, 2), grid=found.times, final="none", **options)
    torch.testing.assert_close(found.x, alone.x, rtol=1e-12, atol=1e-12)
    assert found.nfe == alone.nfe + 1 <= 50 and found.status.ok
    lp = found.log_prob
    assert lp is not None and lp.nfe == found.nfe and alone.log_prob is None
    gap = MIXTURE.log_prob(lp.latent, sde, sde.T) - sde.prior_log_prob(lp.latent)
    off = (lp.value + gap - MIXTURE.log_prob(found.x, sde, found.times[-1])).abs()
    assert bool((off <= lp.error + 2e-6).all()) and float(off.median()) < 0.05
    torch.testing.assert_close(lp.prior + lp.divergence, lp.value)


def test_the_density_is_log_prob_s() -> None:
    """What `log_prob` says of the same points, from other nodes; probes scatter about it as they say."""
    found = sg.sample(SCORE, VP, (16, 2), nfe=80, seed=0, execution=DOUBLE, log_prob="exact")
    assert found.log_prob is not None
    again = sg.log_prob(SCORE, VP, found.x, eps=found.times[-1], trace="exact")
    off = (found.log_prob.value - again.value).abs()
    assert bool((off <= found.log_prob.error + again.error).all()) and float(off.max()) < 2e-3
    drawn = sg.sample(SCORE, VP, (16, 2), nfe=80, seed=0, execution=DOUBLE, log_prob=Hutchinson(4)).log_prob
    assert drawn is not None and "4 rademacher probes" in str(drawn.protocol)
    assert bool(((drawn.value - found.log_prob.value).abs() < 6 * drawn.stderr).all())


@pytest.mark.parametrize("process", ["vp", "flow"])
def test_uneven_steps(process: str) -> None:
    """Those of DDIM's grid are long in log-SNR at its ends, where polynomials through many slopes oscillate."""
    sde = LINEAR[process]
    found = sg.sample(MIXTURE.score(sde), sde, (32, 2), solver="ddim", nfe=24, seed=0, execution=DOUBLE, log_prob=True)
    lp = found.log_prob
    assert lp is not None
    gap = MIXTURE.log_prob(lp.latent, sde, sde.T) - sde.prior_log_prob(lp.latent)
    off = (lp.value + gap - MIXTURE.log_prob(found.x, sde, found.times[-1])).abs()
    assert float((off <= lp.error).double().mean()) > 0.9
    assert float(off.median()) < 0.3 and float((lp.error / off).median()) < 50


def test_a_grid_whose_rule_begins_below_the_noise() -> None:
    """The prior is that of the samples there."""
    solver = sg.DPMSolver(4, singlestep=False, start="cold", lower_final=False)
    options: dict[str, Any] = {"nfe": 14, "solver": solver, "grid": sg.grids.Widening(), "seed": 0, "execution": DOUBLE}
    found = sg.sample(SCORE, VP, (16, 2), **options, log_prob=True)
    lp = found.log_prob
    assert lp is not None and found.times[0] < VP.T
    start = found.times[0]
    torch.testing.assert_close(
        lp.prior, torch.distributions.Normal(0.0, float(VP.sigma(start))).log_prob(lp.latent).sum(1)
    )
    gap = MIXTURE.log_prob(lp.latent, VP, start) - lp.prior
    off = (lp.value + gap - MIXTURE.log_prob(found.x, VP, found.times[-1])).abs()
    assert bool((off <= lp.error + 2e-6).all())


def test_gradients_pass_through_samples_and_density() -> None:
    """As of a run without it."""
    z = VP.prior_sample((3, 2), seed=0, dtype=F64).requires_grad_()
    found = sg.sample(SCORE, VP, x_T=z, steps=12, log_prob=True, execution=sg.Execution(enable_grad=True))
    assert found.log_prob is not None
    (grad,) = torch.autograd.grad(found.log_prob.value.sum(), z)
    assert bool(grad.isfinite().all()) and float(grad.abs().max()) > 0.1


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"solver": "euler-maruyama"}, "needs a deterministic solver .* and EulerMaruyama.* is none"),
        ({"solver": "pc"}, "needs a deterministic solver"),
        ({"solver": "dopri5"}, "dopri5 finds its own steps"),
        ({"final": "denoise"}, "ends with the flow, final='none', got final='denoise'"),
        ({"record": sg.Record(progress=True)}, "takes no record="),
        ({"execution": sg.Execution(batch_size=2)}, "takes no batch_size=, got 2"),
        ({"noise": "path"}, "takes no noise="),
        ({"x_T": torch.zeros(2, 2), "shape": None, "t_start": 0.5}, "takes no t_start=, got 0.5"),
        (
            {"x_T": torch.zeros(2, 2), "shape": None, "grid": [0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.01]},
            "from the prior at T = 1, got a grid from t = 0.9",
        ),
        ({"steps": 3}, "at least 6 steps, got 3"),
        ({"log_prob": "trace"}, "log_prob must be one of"),
    ],
)
def test_runs_that_have_no_density_along_the_way(options: dict[str, Any], shown: str) -> None:
    """They are refused in words."""
    arguments = {"shape": (2, 2), "log_prob": True} | options
    with pytest.raises(ValueError, match=shown):
        sg.sample(SCORE, VP, **arguments)


def test_processes_without_a_flow_of_their_own_log_snr() -> None:
    cld = LINEAR.get("cld") or sg.CLD()
    score = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(cld)
    with pytest.raises(TypeError, match="log_prob=True needs a LinearSDE"):
        sg.sample(score, cld, (2, 2), log_prob=True)
