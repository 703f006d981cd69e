"""torchdiffeq, torchsde and SciPy behind the same call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from tests.helpers import F64, LINEAR, MIXTURE, Recorder, elementwise_score

FLOW = [f"torchdiffeq:{m}" for m in (*sg.TorchDiffEq.adaptive, *sg.TorchDiffEq.fixed)]
FLOW += [f"scipy:{m}" for m in sg.SciPy.adaptive]
EVEN = [f"torchsde:{m}" for m in sg.TorchSDE.fixed]
CHOSEN = ["torchsde:euler", "torchsde:srk", "torchsde:midpoint"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.BatchCoupledWarning)
        yield


def steps_for(name: str, steps: int) -> dict[str, int]:
    """The number of steps, where the method takes one."""
    library, method = name.split(":")
    fixed = {"torchdiffeq": sg.TorchDiffEq.fixed, "torchsde": sg.TorchSDE.fixed, "scipy": {}}[library]
    return {"steps": steps} if method in fixed else {}


@pytest.mark.parametrize("name", FLOW)
def test_backends_solve_the_flow(name: str) -> None:
    """The same samples as a tight run of our own."""
    sde = sg.VPSDE()
    known = sg.sample(MIXTURE.score(sde), sde, (3, 2), solver=sg.Adaptive(sg.DOP853, 1e-9, 1e-9), seed=0, dtype=F64)
    res = sg.sample(MIXTURE.score(sde), sde, (3, 2), solver=name, seed=0, dtype=F64, **steps_for(name, 40))
    assert res.status.ok
    low = res.control.evaluations.tolist()
    assert low == [res.nfe - 1] * 3
    assert float((res.x - known.x).abs().max()) < (0.1 if name.endswith(("euler", "fehlberg2")) else 0.03)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", [*FLOW, *EVEN, *(f"{n}!" for n in CHOSEN)])
def test_no_call_outside_of_the_run_and_every_call_counted(name: str, dtype: torch.dtype) -> None:
    """Times lie in [eps, T] for every method, and nfe is the number of calls, rows of rank 3 kept in shape."""
    name, adaptive = name.rstrip("!"), name.endswith("!")
    for sde in (LINEAR["vp"], LINEAR["edm"])[: 1 if name in EVEN else 2]:
        net = Recorder(elementwise_score(sde))
        options = {} if adaptive else steps_for(name, 6)
        library, method = name.split(":")
        make = {"torchdiffeq": sg.TorchDiffEq, "torchsde": sg.TorchSDE, "scipy": sg.SciPy}[library]
        solver = make(method, rtol=0.3, atol=0.3)
        res = sg.sample(net, sde, (2, 1, 2), solver=solver, seed=0, dtype=dtype, **options)
        t = torch.cat(net.labels).double()
        assert sde.eps <= float(t.min())
        assert float(t.max()) <= sde.T
        assert res.nfe == len(net.states)
        assert res.rows == 2 * res.nfe
        assert all(x.shape == (2, 1, 2) for x in net.states)
        assert res.status.ok
        assert res.x.dtype == dtype


@pytest.mark.parametrize("name", ["torchdiffeq:dopri5", "scipy:RK45", "torchsde:srk"])
def test_a_coupled_batch_is_met_with_a_warning(name: str) -> None:
    """One step size for a batch of two or more warns; alone, one by one, or on even steps it does not."""
    sde = sg.VPSDE()
    library, method = name.split(":")
    make = {"torchdiffeq": sg.TorchDiffEq, "torchsde": sg.TorchSDE, "scipy": sg.SciPy}[library]
    x = sde.prior_sample((3, 2), seed=0, dtype=F64)
    tol = 0.5 if library == "torchsde" else 0.05

    def run(x: Tensor, seed: list[int], **options: object) -> Tensor:
        solver = make(method, rtol=tol, atol=tol, **options)
        return sg.sample(elementwise_score(sde), sde, x_T=x, solver=solver, seed=seed).x

    with pytest.warns(sg.BatchCoupledWarning, match=f"{name} takes one step size for the whole batch"):
        coupled = run(x, [1, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = run(x[1:2], [2])
        each = run(x, [1, 2, 3], per_sample=True)
        if name == "torchsde:srk":
            sg.sample(elementwise_score(sde), sde, x_T=x, solver=name, steps=3, seed=0)
    assert torch.equal(each[1], alone[0])
    assert not torch.equal(coupled[1], alone[0])


def test_torchsde_draws_each_samples_own_noise() -> None:
    """On even steps a sample is what it is alone; another seed is another sample."""
    sde = sg.VPSDE()

    def run(seed: list[int]) -> Tensor:
        x = sde.prior_sample((len(seed), 2, 2), seed=seed, dtype=F64)
        return sg.sample(elementwise_score(sde), sde, x_T=x, solver="torchsde:srk", steps=8, seed=seed).x

    together = run([4, 5, 6])
    torch.testing.assert_close(run([5])[0], together[1], rtol=0.0, atol=1e-12)
    torch.testing.assert_close(run([6, 4]), together[[2, 0]], rtol=0.0, atol=1e-12)
    assert not torch.equal(run([5]), run([7]))


def test_torchsde_samples_the_data() -> None:
    """Mean and variance of Gaussian data, by its Itô and a Stratonovich method."""
    sde, n = sg.VPSDE(), 400
    score = sg.oracles.Gaussian(torch.full((1,), 0.5), 0.25).score(sde)
    for method in ("euler", "heun"):
        res = sg.sample(score, sde, (n, 1), solver=f"torchsde:{method}", steps=100, seed=0, final="none",
                        t_end=0.01, dtype=F64)  # fmt: skip
        alpha, sigma = float(sde.alpha(0.01)), float(sde.sigma(0.01))
        variance = (0.5 * alpha) ** 2 + sigma**2
        assert abs(float(res.x.mean()) - 0.5 * alpha) < 5 * math.sqrt(variance / n)
        assert abs(float(res.x.var()) / variance - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("name", ["torchdiffeq:dopri5", "scipy:RK45", "torchdiffeq:rk4"])
def test_giving_up(name: str) -> None:
    """A budget, or a score that is not finite, ends the run with a status and the states it started from."""
    sde = sg.VPSDE()
    options = steps_for(name, 20)
    net = Recorder(elementwise_score(sde))
    with pytest.warns(sg.UnfinishedWarning, match="out of steps"):
        res = sg.sample(net, sde, (2, 2), solver=name, seed=0, nfe=12, dtype=F64, **options)
    assert len(net.states) == res.nfe <= 12
    assert res.control.times.tolist() == [1.0, 1.0]
    assert torch.equal(res.x, sde.prior_sample((2, 2), seed=0, dtype=F64))

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return elementwise_score(sde)(x, t).masked_fill((t < 0.5)[:, None], math.nan)

    if name != "scipy:RK45":
        with pytest.warns(sg.NonFiniteWarning, match="2 of 2 samples"):
            res = sg.sample(broken, sde, (2, 2), solver=name, seed=0, nfe=200, dtype=F64, **options)
        assert not res.status.ok


def test_errors_of_the_network_are_its_own() -> None:
    """An exception in the network comes out as it is."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("out of coffee")

    for name in ("torchdiffeq:dopri5", "scipy:RK45", "dopri5"):
        with pytest.raises(AssertionError, match="out of coffee"):
            sg.sample(score, sg.VPSDE(), (2, 2), solver=name, seed=0)


def test_gradients_through_torchdiffeq() -> None:
    """torchdiffeq keeps the graph; SciPy cannot and says so."""
    sde = sg.VPSDE()
    x = sde.prior_sample((1, 2), seed=0, dtype=F64).requires_grad_()
    score = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sde)
    solver = sg.TorchDiffEq("dopri5", 1e-7, 1e-7)
    res = sg.sample(score, sde, x_T=x, solver=solver, enable_grad=True, final="none")
    (slope,) = torch.autograd.grad(res.x.sum(), x)
    std = [math.hypot(float(sde.alpha(t)) * 0.5, float(sde.sigma(t))) for t in (sde.T, sde.eps)]
    torch.testing.assert_close(slope, torch.full_like(slope, std[1] / std[0]), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="has no gradients"):
        sg.sample(score, sde, x_T=x, solver="scipy:RK45", enable_grad=True)


@pytest.mark.parametrize(
    ("solver", "options", "shown"),
    [
        ("torchdiffeq:dopri7", {}, "torchdiffeq has no method 'dopri7'; did you mean 'torchdiffeq:dopri"),
        ("torchsde:srrk", {"steps": 3}, "'torchsde:srk'"),
        ("scipy:rk45", {}, "'scipy:RK45'"),
        ("torchdyn:dopri5", {}, "unknown library 'torchdyn' .* torchdiffeq, torchsde, scipy"),
        ("torchdiffeq:rk4", {}, "torchdiffeq:rk4 takes even steps: say how many with steps="),
        ("torchdiffeq:rk4", {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ("torchdiffeq:dopri5", {"steps": 5}, "steps= needs a solver on a grid"),
        ("scipy:RK45", {"grid": "log-snr"}, "grid= needs a solver on a grid"),
    ],
)
def test_bad_requests(solver: str, options: dict[str, object], shown: str) -> None:
    """Unknown methods list the near ones; options that do not apply are refused."""
    with pytest.raises(ValueError, match=shown):
        sg.sample(elementwise_score(LINEAR["vp"]), LINEAR["vp"], (2, 2), solver=solver, seed=0, **options)


def test_a_budget_sample_by_sample_is_refused() -> None:
    """nfe= is one budget for the run."""
    with pytest.raises(ValueError, match="runs sample by sample"):
        sg.sample(lambda x, t: -x, sg.VPSDE(), (2, 2), solver=sg.SciPy("RK45", per_sample=True), nfe=50, seed=0)
