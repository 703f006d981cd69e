"""Samples with their log-density, in one solve of any deterministic solver on a grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.calibration import Calibrated, Table
from sgm_sde.likelihood import Hutchinson
from sgm_sde.likelihood.checks import LikelihoodWarning
from sgm_sde.sampling.diagnosis import ImplausibleWarning, StartWarning
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


@pytest.mark.filterwarnings("ignore::sgm_sde.likelihood.checks.LikelihoodWarning")
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


def test_a_density_that_is_not_known_is_told() -> None:
    """Above one nat a dimension the status names the samples, as that of `log_prob` does."""
    sde = LINEAR["vp"]
    with pytest.warns(LikelihoodWarning, match="samples did not come down to the tolerance of 1 nat a dimension"):
        found = sg.sample(MIXTURE.score(sde), sde, (32, 2), solver="ddim", nfe=24, seed=0, log_prob=True)
    assert found.log_prob is not None
    unknown = tuple((found.log_prob.error > 2.0).nonzero().flatten().tolist())
    assert 0 < len(unknown) < 32
    assert found.status.samples == found.log_prob.unresolved == unknown
    assert found.log_prob.reasons == ("error",) * len(unknown)


def test_samples_that_cannot_be_right_are_told() -> None:
    """The noise taken for the score, and states of another scale than the prior's, as without their density."""
    sde = LINEAR["vp"]

    def noise(x: Tensor, t: Tensor) -> Tensor:
        return -sde.sigma(t).to(x)[:, None] * MIXTURE.score(sde)(x, t)

    with pytest.warns(ImplausibleWarning, match="nothing in their run accounts for"):
        found = sg.sample(noise, sde, (4, 2), nfe=20, seed=0, log_prob=True)
    assert found.status.samples == (0, 1, 2, 3)

    x_T = 80 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    exact = sg.oracles.Gaussian(torch.zeros(16), 0.25).score(sde)
    with pytest.warns(StartWarning, match="write x_T = sde.prior_std"):
        assert not sg.sample(exact, sde, x_T=x_T, nfe=20, log_prob=True).status


@pytest.mark.parametrize("nfe", [1, 2, 6])
def test_budgets_of_too_few_steps_are_told_as_they_were_given(nfe: int) -> None:
    with pytest.raises(ValueError, match=f"after at least 6 steps, nfe=7 or more, got nfe={nfe}"):
        sg.sample(SCORE, VP, (2, 2), nfe=nfe, log_prob=True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_fitted_solver_has_no_states_of_the_flow(wrapped: bool) -> None:
    table = Calibrated(Table((10.0, 1.0), (10.0, 500.0, 0.0), ((0.0,), (0.0, 1.0))))
    solver = sg.Setting(table) if wrapped else table
    with pytest.raises(ValueError, match="those of calibrated2 are elsewhere"):
        sg.sample(SCORE, VP, (2, 2), solver=solver, log_prob=True)


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
        ({"solver": "euler-maruyama"}, "needs a deterministic solver .* and euler-maruyama is none"),
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
