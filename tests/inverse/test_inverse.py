"""What the methods promise together: counts of calls and gradients, independent samples, any scaling of the state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde.scores import Score
from tests.helpers import DOUBLE, F64, LINEAR, Recorder, elementwise_score
from tests.inverse.cases import (
    MODES,
    SCORES,
    TILTED,
    VP,
    normal,
    seen,
)


class Counted(torch.autograd.Function):
    """The identity, which counts its backward passes."""

    backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        Counted.backwards += 1
        return grad


def small_net(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser that is not linear."""
    return torch.tanh(Counted.apply(x)) * 0.9


@pytest.mark.parametrize(
    ("make", "vjps"),
    [
        (lambda s, m: inverse.MMPS(s, m, 4), 5),
        (lambda s, m: inverse.MMPS(s, m, 4, "cg"), 4),
        (inverse.PiGDM, 1),
        (inverse.DiffPIR, 0),
    ],
)
def test_counts_of_scores(make: Callable[..., inverse.PosteriorScore], vjps: int) -> None:
    """Calls, rows and vector-Jacobian products are what they are said to be."""
    net = Recorder(small_net)
    score = make(sg.from_denoiser(net, VP), seen(0.3))
    assert score.vjps == vjps
    Counted.backwards = 0
    res = sg.sample(score, VP, (3, 2), solver="dpm++2m", nfe=7, seed=0)
    assert (res.nfe, res.network_evals, len(net.states)) == (7, 21, 7)
    assert Counted.backwards == 7 * vjps


def test_counts_of_dps() -> None:
    """One product for each evaluation but the final one."""
    net = Recorder(small_net)
    Counted.backwards = 0
    res = sg.sample(sg.from_denoiser(net, VP), VP, (3, 2), solver=inverse.DPS(sg.Ancestral(), seen()), nfe=7, seed=0)
    assert (res.nfe, len(net.states), Counted.backwards) == (7, 7, 6)


def test_nothing_is_left_behind() -> None:
    """No graph, no gradients, no change to anyone's requires_grad; inference mode works."""
    net = nn.Linear(2, 2, dtype=F64)
    score = sg.from_denoiser(lambda x, t: net(x), VP)
    x = normal(3, 2)
    for guided, solver in (
        *((make(score, seen(0.3)), sg.DDIM()) for make in SCORES.values()),
        (score, inverse.DPS(sg.DDIM(), seen())),
        (score, inverse.RePaint(sg.DDIM(), seen(), resamples=2, jump=1)),
    ):
        res = sg.sample(guided, VP, x_T=x, solver=solver, steps=4, seed=0)
        with torch.inference_mode():
            again = sg.sample(guided, VP, x_T=x, solver=solver, steps=4, seed=0)
        assert torch.equal(res.x, again.x)
        assert not res.x.requires_grad and not x.requires_grad
        assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("prediction", ["noise", "data", "v", "flow", "score"])
@pytest.mark.parametrize("method", [inverse.MMPS, inverse.PiGDM])
def test_a_network_without_gradient_is_refused(method: Any, prediction: str) -> None:
    """Whatever it predicts: what the conversion to data adds has a gradient in any case."""
    exact = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(VP)
    score = Score(torch.no_grad()(lambda x, t: exact.predict(prediction, x, t)), VP, prediction)
    with pytest.raises(ValueError, match="the network gives no gradient with respect to x"):
        sg.sample(method(score, seen(0.3)), VP, (3, 2), steps=4, seed=0, execution=DOUBLE)
    free = inverse.DiffPIR(score, seen(0.3))
    assert sg.sample(free, VP, (3, 2), steps=4, seed=0, execution=DOUBLE).status.ok


def runs(score: sg.Score) -> dict[str, tuple[sg.Score, sg.Solver]]:
    """Every method on a score."""
    return {
        **{name: (make(score, seen(0.3)), sg.DPMSolverPP(2)) for name, make in SCORES.items()},
        "dps": (score, inverse.DPS(sg.Ancestral(), seen())),
        "replacement": (score, inverse.Replacement(sg.Ancestral(), seen())),
        "fixed replacement": (score, inverse.Replacement(sg.DPMSolverPP(2), seen(), "fixed")),
        "repaint": (score, inverse.RePaint(sg.Ancestral(), seen(), resamples=2, jump=2)),
    }


RUNS = list(runs(TILTED.score(VP)))


@pytest.mark.parametrize("name", RUNS)
def test_gradients_through_sampling(name: str) -> None:
    """`enable_grad=True`: the derivative with respect to the start is the difference quotient."""
    score, solver = runs(MODES.score(VP))[name]

    def run(x: Tensor, grad: bool) -> Tensor:
        res = sg.sample(
            score,
            VP,
            x_T=x,
            solver=solver,
            steps=5,
            t_start=0.5,
            t_end=0.1,
            seed=0,
            execution=sg.Execution(enable_grad=grad),
        )
        return res.x.square().sum()

    x, v = normal(2, 2).requires_grad_(), normal(2, 2, seed=1)
    (slope,) = torch.autograd.grad(run(x, True), x)
    h = 1e-5
    difference = (run(x.detach() + h * v, False) - run(x.detach() - h * v, False)) / (2 * h)
    assert float((slope * v).sum()) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
@settings(max_examples=3)
@given(order=st.permutations(range(4)), cut=st.integers(1, 3))
def test_samples_do_not_depend_on_one_another(name: str, order: list[int], cut: int) -> None:
    """Seeds alone, permuted and in two chunks."""
    sde, seeds = VP, [7, 2**40 + 1, 0, 3]
    score, solver = runs(sg.from_score(elementwise_score(sde), sde))[name]

    def draw(seeds: list[int]) -> Tensor:
        return sg.sample(score, sde, (len(seeds), 2), solver=solver, steps=5, seed=seeds, execution=DOUBLE).x

    alone = torch.cat([draw([s]) for s in seeds])
    permuted = [seeds[i] for i in order]
    together = torch.cat([draw(permuted[:cut]), draw(permuted[cut:])])
    torch.testing.assert_close(together, alone[list(order)], rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # of the outlier
@pytest.mark.parametrize("name", RUNS)
def test_an_outlier_changes_no_other_sample(name: str) -> None:
    """A start far out, and one that is not finite, beside others."""
    score, solver = runs(MODES.score(VP))[name]
    x = normal(3, 2)
    options: dict[str, Any] = {"solver": solver, "steps": 5, "seed": [1, 2, 3]}
    plain = sg.sample(score, VP, x_T=x, **options).x
    far = sg.sample(score, VP, x_T=torch.cat([x[:2], 1e6 * x[2:]]), **options).x
    torch.testing.assert_close(far[:2], plain[:2], rtol=1e-12, atol=1e-12)
    with pytest.warns(sg.sampling.NonFiniteWarning, match=r"\(2\)"):
        broken = sg.sample(score, VP, x_T=torch.cat([x[:2], math.nan * x[2:]]), **options).x
    torch.testing.assert_close(broken[:2], plain[:2], rtol=1e-12, atol=1e-12)


def test_networks_without_gradient() -> None:
    """An error that says which methods need none."""
    blind = sg.from_denoiser(lambda x, t: 0.5 * x.detach(), VP)
    for score, solver in (
        (inverse.MMPS(blind, seen(0.3)), sg.DDIM()),
        (inverse.PiGDM(blind, seen(0.3)), sg.DDIM()),
        (blind, inverse.DPS(sg.DDIM(), seen())),
    ):
        with pytest.raises(ValueError, match="DiffPIR"):
            sg.sample(score, VP, (2, 2), solver=solver, steps=3, seed=0)
    assert sg.sample(inverse.DiffPIR(blind, seen(0.3)), VP, (2, 2), nfe=5, seed=0).status


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # networks of no data
@pytest.mark.parametrize("name", SCORES)
def test_precision_arguments_and_branches(name: str) -> None:
    """Half-precision networks and states, keyword arguments, other networks, guided bases."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.bfloat16))

        def forward(self, x: Tensor, t: Tensor, shift: float = 0.0) -> Tensor:
            assert x.dtype == torch.bfloat16
            return self.scale * x + shift

    base = sg.from_denoiser(Net(), VP)
    score = SCORES[name](base, seen(0.3))
    assert score.parameter is base.parameter and score.dtype == torch.bfloat16
    assert score.cast_to(torch.float32).dtype == torch.float32
    shifted = sg.sample(score, VP, (2, 2), nfe=4, seed=0, model_kwargs={"shift": 1.0}).x
    assert not torch.equal(shifted, sg.sample(score, VP, (2, 2), nfe=4, seed=0).x)
    plain = SCORES[name](sg.from_denoiser(lambda x, t: x, VP), seen(0.3))
    other = plain.map_net(lambda net: lambda x, t: 0 * x)
    assert float(other.denoised(torch.ones(1, 2), 0.5).detach()[0, 1]) == 0
    assert (
        sg.sample(plain, VP, (2, 2), nfe=4, seed=0, execution=sg.Execution(dtype=torch.bfloat16)).x.dtype
        == torch.bfloat16
    )
    base.branches = 2
    assert sg.sample(SCORES[name](base, seen(0.3)), VP, (3, 2), nfe=4, seed=0).network_evals == 24
    assert name[:4] in repr(score).lower() and "Mask" in repr(score)


RESCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "to alpha = 1": lambda t: LINEAR["vp"].alpha(t),
    "growing": lambda t: torch.exp(-0.7 * t),
    "shrinking": lambda t: 0.5 * torch.exp(0.4 * t),
}


METHODS: dict[str, Callable[[sg.Score, inverse.Measurement], tuple[sg.Score, sg.Solver]]] = {
    "langevin": lambda score, seen: (score, sg.PredictorCorrector(sg.DDIM(), sg.Langevin(0.3))),
    "langevin, spread": lambda score, seen: (
        score,
        sg.PredictorCorrector(sg.DDIM(), sg.Langevin(0.3, 2, data_std=0.4), "CP"),
    ),
    "annealed langevin": lambda score, seen: (score, sg.schemes.AnnealedLangevin(0.2, 3)),
    "langevin and diffpir": lambda score, seen: (
        sg.inverse.DiffPIR(score, seen, 2.0),
        sg.PredictorCorrector(sg.DPMSolverPP(2), sg.Langevin(0.2)),
    ),
    "dps": lambda score, seen: (score, sg.inverse.DPS(sg.Ancestral(), seen)),
    "dps, ddim": lambda score, seen: (score, sg.inverse.DPS(sg.DDIM(eta=0.5), seen, zeta=0.3)),
    "replacement": lambda score, seen: (score, sg.inverse.Replacement(sg.Ancestral(), seen)),
    "replacement, fixed": lambda score, seen: (score, sg.inverse.Replacement(sg.DPMSolverPP(2), seen, "fixed")),
    "repaint": lambda score, seen: (score, sg.inverse.RePaint(sg.Ancestral(), seen, resamples=2, jump=3)),
    "diffpir": lambda score, seen: (sg.inverse.DiffPIR(score, seen, 2.0), sg.DPMSolverPP(2)),
    "pigdm": lambda score, seen: (sg.inverse.PiGDM(score, seen), sg.DPMSolverPP(2)),
    "mmps": lambda score, seen: (sg.inverse.MMPS(score, seen), sg.DPMSolverPP(2, eta=1.0)),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scaling", RESCALED)
def test_methods_do_not_depend_on_the_scaling_of_the_state(name: str, scaling: str) -> None:
    """With x / c(t) in the place of x and the same denoiser, noise and times, samples are the same."""
    vp, c = LINEAR["vp"], RESCALED[scaling]
    other = sg.LinearSDE.from_schedule(lambda t: vp.alpha(t) / c(t), lambda t: vp.sigma(t) / c(t), eps=vp.eps)
    data = sg.oracles.GaussianMixture(torch.tensor([[1.0, -0.5, 0.2], [-0.6, 0.4, 0.9]], dtype=F64), 0.4)
    denoiser = data.score(vp).denoised
    operator = sg.inverse.Mask(torch.tensor([True, False, True]))
    std = 0.0 if name.startswith("rep") else 0.2
    seen = inverse.Measurement(operator, torch.tensor([0.8, 0.0, -0.1], dtype=F64), std)
    x_T = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    grid = sg.grids.LogSNR()(vp, 12)

    def run(sde: sg.LinearSDE, score: sg.Score, x_T: Tensor) -> Tensor:
        score, solver = METHODS[name](score, seen)
        return sg.sample(score, sde, x_T=x_T, solver=solver, grid=grid, seed=3).x

    mine = run(vp, sg.from_denoiser(denoiser, vp), x_T)
    rescaled = sg.from_denoiser(denoiser, other, input_scale=c)
    theirs = run(other, rescaled, x_T / float(c(torch.tensor(1.0, dtype=F64))))
    torch.testing.assert_close(theirs, mine, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("norm", ["sample", "batch", "expected"])
def test_langevins_published_norms_depend_on_a_scaling_that_changes(norm: str) -> None:
    """Their factor (alpha_i / alpha_{i+1})^2 does: the same samples in a constant scaling, others in one that grows."""
    vp, denoiser = LINEAR["vp"], sg.oracles.Gaussian(torch.zeros(300, dtype=F64), 0.3).score(LINEAR["vp"]).denoised
    x_T, grid = torch.randn(2, 300, dtype=F64, generator=torch.Generator().manual_seed(0)), sg.grids.LogSNR()(vp, 8)
    corrector = sg.PredictorCorrector(sg.DDIM(), sg.Langevin(0.3, norm=norm))

    def run(c: Callable[[Tensor], Tensor]) -> Tensor:
        sde = sg.LinearSDE.from_schedule(lambda t: vp.alpha(t) / c(t), lambda t: vp.sigma(t) / c(t), eps=vp.eps)
        score, start = sg.from_denoiser(denoiser, sde, input_scale=c), x_T / float(c(torch.tensor(1.0, dtype=F64)))
        return sg.sample(score, sde, x_T=start, solver=corrector, grid=grid, seed=3).x

    as_it_is, halved, growing = run(torch.ones_like), run(lambda t: torch.full_like(t, 2.0)), run(RESCALED["growing"])
    torch.testing.assert_close(halved, as_it_is, rtol=1e-7, atol=1e-7)
    apart = float((growing - as_it_is).abs().max())
    assert (apart < 1e-7) == (norm == "expected"), apart
