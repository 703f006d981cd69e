"""torchdiffeq, torchsde and SciPy behind the same call."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
import torchdiffeq
import torchsde
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.adaptive import Integration
from sgm_sde.engine.brownian import PathWithArea
from sgm_sde.engine.noise import resolve_seeds
from sgm_sde.schemes.backends import OutOfCalls, _Seen
from sgm_sde.schemes.base import Problem
from tests.conventions import case_id
from tests.helpers import DOUBLE, F64, LINEAR, MIXTURE, Recorder, bind, elementwise_score

FLOW = [f"torchdiffeq:{m}" for m in (*sg.schemes.TorchDiffEq.adaptive, *sg.schemes.TorchDiffEq.fixed)]
FLOW += [f"scipy:{m}" for m in sg.schemes.SciPy.adaptive]
EVEN = [f"torchsde:{m}" for m in sg.schemes.TorchSDE.fixed]
CHOSEN = ["torchsde:euler", "torchsde:srk", "torchsde:midpoint"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sg.schemes.BatchCoupledWarning)
        yield


def steps_for(name: str, steps: int) -> dict[str, int]:
    """The number of steps, where the method takes one."""
    library, method = name.split(":")
    fixed = {"torchdiffeq": sg.schemes.TorchDiffEq.fixed, "torchsde": sg.schemes.TorchSDE.fixed, "scipy": {}}[library]
    return {"steps": steps} if method in fixed else {}


@pytest.mark.parametrize("name", FLOW)
def test_backends_solve_the_flow(name: str) -> None:
    """The same samples as a tight run of our own."""
    sde = sg.VPSDE()
    known = sg.sample(
        MIXTURE.score(sde),
        sde,
        (3, 2),
        solver=sg.Adaptive(sg.tableaus.DOP853, 1e-9, 1e-9),
        seed=0,
        execution=DOUBLE,
    )
    res = sg.sample(MIXTURE.score(sde), sde, (3, 2), solver=name, seed=0, execution=DOUBLE, **steps_for(name, 40))
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
        make = {"torchdiffeq": sg.schemes.TorchDiffEq, "torchsde": sg.schemes.TorchSDE, "scipy": sg.schemes.SciPy}[
            library
        ]
        solver = make(method, rtol=0.3, atol=0.3)
        res = sg.sample(net, sde, (2, 1, 2), solver=solver, seed=0, execution=sg.Execution(dtype=dtype), **options)
        t = torch.cat(net.labels).double()
        assert sde.eps <= float(t.min())
        assert float(t.max()) <= sde.T
        assert res.nfe == len(net.states)
        assert res.network_evals == 2 * res.nfe
        assert all(x.shape == (2, 1, 2) for x in net.states)
        assert res.status.ok
        assert res.x.dtype == dtype


@pytest.mark.parametrize("name", ["torchdiffeq:dopri5", "scipy:RK45", "torchsde:srk"])
def test_a_coupled_batch_is_met_with_a_warning(name: str) -> None:
    """One step size for a batch of two or more warns; alone, one by one, or on even steps it does not."""
    sde = sg.VPSDE()
    library, method = name.split(":")
    make = {"torchdiffeq": sg.schemes.TorchDiffEq, "torchsde": sg.schemes.TorchSDE, "scipy": sg.schemes.SciPy}[library]
    x = sde.prior_sample((3, 2), seed=0, dtype=F64)
    tol = 0.5 if library == "torchsde" else 0.05

    def run(x: Tensor, seed: list[int], **options: object) -> Tensor:
        solver = make(method, rtol=tol, atol=tol, **options)
        return sg.sample(elementwise_score(sde), sde, x_T=x, solver=solver, seed=seed).x

    with pytest.warns(sg.schemes.BatchCoupledWarning, match=f"{name} takes one step size for the whole batch"):
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


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_torchsde_samples_the_data(method: str) -> None:
    """Mean and variance of Gaussian data, by its Itô and a Stratonovich method."""
    sde, shape, n = sg.VPSDE(), (20, 200), 4000
    score = sg.oracles.Gaussian(torch.full((200,), 0.5), 0.25).score(sde)
    res = sg.sample(score, sde, shape, solver=f"torchsde:{method}", steps=100, seed=0, final="none",
                    t_end=0.01, execution=DOUBLE)  # fmt: skip
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
    with pytest.warns(sg.sampling.UnfinishedWarning, match="out of steps"):
        res = sg.sample(net, sde, (2, 2), solver=name, seed=0, nfe=12, execution=DOUBLE, **options)
    assert len(net.states) == res.nfe <= 12
    assert res.control.times.tolist() == [1.0, 1.0]
    assert torch.equal(res.x, sde.prior_sample((2, 2), seed=0, dtype=F64))

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return elementwise_score(sde)(x, t).masked_fill((t < 0.5)[:, None], math.nan)

    with pytest.warns(sg.sampling.NonFiniteWarning, match="2 of 2 samples"):
        res = sg.sample(broken, sde, (2, 2), solver=name, seed=0, nfe=200, execution=DOUBLE, **options)
    assert not res.status.ok
    assert 0.2 < res.status.time < 0.5


@pytest.mark.parametrize("name", ["scipy:RK45", "scipy:RK23", "scipy:DOP853", "scipy:Radau", "scipy:BDF", "scipy:LSODA",
                                  "torchdiffeq:dopri5", "torchsde:euler", "torchdiffeq:rk4"])  # fmt: skip
def test_a_sample_that_is_not_finite_is_named(name: str) -> None:
    """With the time, apart from those whose batch was given up for it; and nothing goes on for ever."""
    sde = sg.VPSDE()

    def broken(x: Tensor, t: Tensor) -> Tensor:
        """One number of the second sample."""
        out = elementwise_score(sde)(x, t)
        if len(x) == 3:
            out[1, 0] = math.nan
        return out

    with pytest.warns(sg.sampling.NonFiniteWarning, match=r"\(sample 1: not finite at t=1"):
        res = sg.sample(broken, sde, (3, 2), solver=name, seed=0, execution=DOUBLE, **steps_for(name, 20))
    assert res.status.time == 1.0
    assert res.control.outcome[1] == "not finite"
    if steps_for(name, 20):  # even steps do not couple samples
        assert res.status.samples == (1,)
    elif name.startswith("scipy"):
        assert res.control.outcome[::2] == ("given up", "given up")


@pytest.mark.parametrize("name", ["scipy:RK45", "torchsde:heun", "torchdiffeq:rk4"])
def test_a_single_sample_that_is_not_finite(name: str) -> None:
    """A batch of one has a time as well."""
    with pytest.warns(sg.sampling.NonFiniteWarning, match=r"1 of 1 samples .* \(sample 0: not finite at t=1\)"):
        sg.sample(lambda x, t: x * math.nan, sg.VPSDE(), (1, 2), solver=name, seed=0, **steps_for(name, 20))


@pytest.mark.parametrize("name", ["torchdiffeq:dopri5", "scipy:RK45", "dopri5"])
def test_errors_of_the_network_are_its_own(name: str) -> None:
    """An exception in the network comes out as it is."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("out of coffee")

    with pytest.raises(AssertionError, match="out of coffee"):
        sg.sample(score, sg.VPSDE(), (2, 2), solver=name, seed=0)


def test_gradients_through_torchdiffeq() -> None:
    """torchdiffeq keeps the graph; SciPy cannot and says so."""
    sde = sg.VPSDE()
    x = sde.prior_sample((1, 2), seed=0, dtype=F64).requires_grad_()
    score = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sde)
    solver = sg.schemes.TorchDiffEq("dopri5", 1e-7, 1e-7)
    res = sg.sample(score, sde, x_T=x, solver=solver, execution=sg.Execution(enable_grad=True), final="none")
    (slope,) = torch.autograd.grad(res.x.sum(), x)
    std = [math.hypot(float(sde.alpha(t)) * 0.5, float(sde.sigma(t))) for t in (sde.T, sde.eps)]
    torch.testing.assert_close(slope, torch.full_like(slope, std[1] / std[0]), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="has no gradients"):
        sg.sample(score, sde, x_T=x, solver="scipy:RK45", execution=sg.Execution(enable_grad=True))


@pytest.mark.parametrize(
    ("solver", "options", "shown"),
    [
        ("torchdiffeq:dopri7", {}, "unknown method of torchdiffeq 'dopri7'; did you mean 'dopri"),
        ("torchsde:srrk", {"steps": 3}, "did you mean 'srk'"),
        ("scipy:rk54", {}, "did you mean 'RK45'"),
        ("torchdyn:dopri5", {}, "unknown library 'torchdyn' .* torchdiffeq, torchsde, scipy"),
        ("torchdiffeq:rk4", {}, "torchdiffeq:rk4 takes even steps: say how many with steps="),
        ("torchdiffeq:rk4", {"steps": 0}, "steps must be an integer of at least 1, got 0"),
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
        sg.sample(lambda x, t: -x, sg.VPSDE(), (2, 2), solver=sg.schemes.SciPy("RK45", per_sample=True), nfe=50, seed=0)


# --- Against the libraries themselves --------------------------------------------------------------------------------

VP = sg.VPSDE()
SHAPE = (3, 2, 2)
SEEDS = resolve_seeds([(5, 0), (6, 0), (7, 3)], None, 3)


def run_alone(solver: Any, *, score: Any = None, sde: sg.SDE = VP, n: int = 3, **options: Any) -> Integration:
    """A run of the solver alone on the first of three samples, without what `sample` does around it."""
    net = sg.from_score(score or elementwise_score(sde), sde)
    x = sde.prior_sample(SHAPE, seed=0, dtype=F64)[:n]
    model = bind(net, sde, (sde.T, sde.eps))
    model.nfe = 7  # calls that were made before are not the run's
    with torch.no_grad():
        end: Integration = solver.run(Problem(model, sde, x, sde.T, sde.eps, SEEDS[:n], **options))
    assert end.calls == model.nfe - 7
    return end


def share(t: float) -> float:
    """sigma / (alpha + sigma)."""
    return float(VP.sigma(t) / (VP.alpha(t) + VP.sigma(t)))


def by_hand(u: float, z: Tensor) -> Tensor:
    """dz/du = eps - D of the flow in the share of the noise, where z = x / (alpha + sigma)."""
    ratio = (1 - u) / u  # alpha / sigma
    t = VP.time(torch.tensor(2 * math.log(ratio), dtype=F64))
    alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
    x = (alpha + sigma) * z
    noise = -sigma * elementwise_score(VP)(x, t.expand(len(x)))
    return noise - (x - sigma * noise) / alpha


def starts() -> tuple[Tensor, float, float, float]:
    """z, u at the start and the end, and x / z at the end."""
    x = VP.prior_sample(SHAPE, seed=0, dtype=F64)
    end = float(VP.alpha(VP.eps) + VP.sigma(VP.eps))
    return x / float(VP.alpha(VP.T) + VP.sigma(VP.T)), share(VP.T), share(VP.eps), end


@pytest.mark.parametrize("steps", [1, 4])
def test_even_steps_by_hand(steps: int) -> None:
    """Euler's method with even steps in the share of the noise, each evaluated where it starts."""
    z, first, last, scale = starts()
    places = np.linspace(first, last, steps + 1).tolist()
    for u, u_next in pairwise(places):
        z = z + (u_next - u) * by_hand(u, z)
    end = run_alone(sg.schemes.TorchDiffEq("euler"), steps=steps)
    torch.testing.assert_close(end.y[0], z * scale, rtol=1e-9, atol=1e-9)
    assert end.t.tolist() == [VP.eps] * 3
    assert end.evaluations.tolist() == [steps] * 3
    assert (end.accepted.tolist(), end.rejected.tolist()) == ([-1] * 3, [-1] * 3)  # not known
    other = run_alone(sg.schemes.TorchDiffEq("euler", variable="time"), steps=1)
    x = VP.prior_sample(SHAPE, seed=0, dtype=F64)
    drift = VP.reverse(elementwise_score(VP), eta=0.0).f(x, torch.full((3,), VP.T, dtype=F64))
    torch.testing.assert_close(other.y[0], x - (VP.T - VP.eps) * drift, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_torchdiffeq_is_torchdiffeq(method: str) -> None:
    """The library's own answer with the same tolerances, stepping onto the end."""
    z, first, last, scale = starts()

    def slope(s: Tensor, z: Tensor) -> Tensor:
        return (last - first) * by_hand(min(first, max(last, first + float(s) * (last - first))), z)

    s = torch.tensor([0.0, 1.0], dtype=F64)
    known = torchdiffeq.odeint(slope, z, s, rtol=1e-2, atol=3e-3, method=method, options={"step_t": s[1:]})[1]
    end = run_alone(sg.schemes.TorchDiffEq(method, rtol=1e-2, atol=3e-3))
    torch.testing.assert_close(end.y[0], known * scale, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["RK23", "BDF"])
def test_scipy_is_scipy(method: str) -> None:
    """The library's own answer with the same tolerances, the batch as one vector."""
    z, first, last, scale = starts()

    calls: list[float] = []

    def slope(s: float, flat: np.ndarray) -> np.ndarray:
        calls.append(s)
        return (last - first) * by_hand(first + s * (last - first), torch.from_numpy(flat).reshape(SHAPE)).flatten()

    known = scipy.integrate.solve_ivp(slope, (0, 1), z.flatten().numpy(), method=method, rtol=1e-2, atol=3e-3)
    end = run_alone(sg.schemes.SciPy(method, rtol=1e-2, atol=3e-3))
    torch.testing.assert_close(end.y[0].flatten(), torch.from_numpy(known.y[:, -1]) * scale, rtol=1e-6, atol=1e-6)
    assert end.calls == len(calls)


def paths(n: int, length: float = VP.T - VP.eps, *, with_area: bool = False) -> PathWithArea:
    """The paths of the first n samples, that of each from its seed alone."""
    return PathWithArea(SEEDS[:n], (n, 4), length, VP.T, F64, with_area=with_area)


class Brownian(torchsde.BaseBrownian):  # type: ignore[misc]
    """Those of one sample as the library takes them."""

    dtype, device, shape = F64, torch.device("cpu"), torch.Size((1, 4))
    levy_area_approximation = "none"

    def __init__(self, levy: str) -> None:
        super().__init__()
        self.levy_area_approximation = levy
        self.paths = paths(1, with_area=levy != "none")

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False) -> Any:
        """The increment, and the area."""
        found = self.paths.between(float(ta), float(tb))
        return found if return_U else found[0]

    def __repr__(self) -> str:
        return "Brownian()"


def flow_time(t: Tensor) -> Tensor:
    """sigma / (alpha + sigma)."""
    return VP.sigma(t) / (VP.alpha(t) + VP.sigma(t))


@pytest.mark.parametrize("variable", ["time", "flow-time"])
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_sde_steps_by_hand(method: str, variable: str) -> None:
    """Euler-Maruyama and Heun's method on the reverse SDE with even steps, each sample on a path of its own."""
    steps, x = 3, VP.prior_sample(SHAPE, seed=0, dtype=F64)
    rev = VP.reverse(elementwise_score(VP), eta=1.0)
    ends = torch.tensor([VP.T, VP.eps], dtype=F64)
    start, end = (ends if variable == "time" else flow_time(ends)).tolist()

    def at(u: float) -> tuple[Tensor, float]:
        """The time, and its derivative."""
        if variable == "time":
            return torch.full((3,), u, dtype=F64), 1.0
        t = VP.time(torch.full((3,), 2 * math.log((1 - u) / u), dtype=F64))
        slope = torch.func.grad(lambda t: flow_time(t).sum())(t)
        return t, 1 / float(slope[0])

    dt = (start - end) / steps * (1 + 1e-9)
    path = paths(3, start - end)
    for k in range(steps):
        s, s_next = k * dt, min((k + 1) * dt, start - end)
        (t, rate), (t_next, rate_next) = at(start - s), at(start - s_next)
        dW = path.between(s, s_next)[0].reshape(SHAPE)
        slope, g = -rate * rev.f(x, t), rate**0.5 * float(rev.g(t[:1]))
        there = x + slope * (s_next - s) + g * dW
        if method == "euler":
            x = there
        else:
            mean = (slope - rate_next * rev.f(there, t_next)) / 2
            x = x + mean * (s_next - s) + (g + rate_next**0.5 * float(rev.g(t_next[:1]))) / 2 * dW
    end_of_run = run_alone(sg.schemes.TorchSDE(method, variable=variable), steps=steps)
    torch.testing.assert_close(end_of_run.y[0], x, rtol=1e-9, atol=1e-9)
    # and one evaluation by which the library learns the shapes
    assert end_of_run.evaluations.tolist() == [1 + steps * (1 if method == "euler" else 2)] * 3


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "edm", "flow", "schedule"])
def test_even_steps_of_the_sde_reach_the_data(name: str) -> None:
    """In time the last of 50 steps on EDM would go from a noise of 1.6 to the data, and the variance is 15 times it."""
    sde = LINEAR[name]
    score = sg.oracles.Gaussian(torch.full((50,), 0.5), 0.25).score(sde)
    res = sg.sample(score, sde, (200, 50), solver="torchsde:euler", steps=50, seed=0)
    assert res.nfe == 52
    assert abs(float(res.x.mean()) - 0.5) < 0.03
    assert float(res.x.var()) == pytest.approx(0.25, rel=0.1)


def test_an_unstable_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reversible_heun is stable for oscillations alone.*take torchsde:heun"):
        sg.schemes.TorchSDE("reversible_heun")


@pytest.mark.parametrize("kind", [sg.schemes.SciPy, sg.schemes.TorchDiffEq, sg.schemes.TorchSDE])
def test_a_method_is_a_name(kind: Any) -> None:
    """Told of arrays as well, whose comparison with a name has no truth value."""
    with pytest.raises(TypeError, match=r"method must be a name, got"):
        kind(np.array([0.5, 0.25]))


@pytest.mark.parametrize("method", ["euler", "srk"])
@pytest.mark.parametrize("steps", [None, 7])
def test_torchsde_is_torchsde(method: str, steps: int | None) -> None:
    """The library's own answer for one sample: even steps, or its own, of which the first is a hundredth of the run."""
    rev, span = VP.reverse(elementwise_score(VP), eta=1.0), VP.T - VP.eps
    times: list[float] = []

    class Sde:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, s: Tensor, y: Tensor) -> Tensor:
            times.append(VP.T - float(s))
            t = torch.tensor([max(times[-1], VP.eps)], dtype=F64)
            return -rev.f(y.reshape(1, 2, 2), t).reshape(1, 4)

        def g(self, s: Tensor, y: Tensor) -> Tensor:
            return rev.g(torch.tensor([VP.T - float(s)], dtype=F64)).expand(1, 4)

    ts, y = torch.tensor([0.0, span], dtype=F64), VP.prior_sample(SHAPE, seed=0, dtype=F64)[:1].reshape(1, 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numerical solution is not guaranteed")
        known = torchsde.sdeint(
            Sde(), y, ts, bm=Brownian("space-time" if method == "srk" else "none"), method=method,
            dt=span / 100 if steps is None else span / steps * (1 + 1e-9), adaptive=steps is None, rtol=0.3, atol=0.2,
        )[-1]  # fmt: skip
    net = Recorder(elementwise_score(VP))
    solver = sg.schemes.TorchSDE(method, rtol=0.3, atol=0.2, variable="time")
    end = run_alone(solver, score=net, n=1, steps=steps)
    torch.testing.assert_close(end.y[0].reshape(1, 4), known, rtol=1e-8, atol=1e-8)
    assert net.times == pytest.approx([max(t, VP.eps) for t in times], abs=1e-12)
    if method == "euler" and steps is not None:
        even = [VP.T - span * k / steps for k in range(steps)]
        assert max(abs(t - known) for t, known in zip(net.times[1:], even, strict=True)) <= 1e-9 * span


def test_orders_are_those_that_the_libraries_state() -> None:
    """torchdiffeq and SciPy say them in their classes; of a method of several orders it is the highest one's."""
    theirs = import_module("torchdiffeq._impl.odeint").SOLVERS
    known = {**sg.schemes.TorchDiffEq.adaptive, **sg.schemes.TorchDiffEq.fixed}
    assert known == {name: theirs[name].order for name in known}
    assert sg.schemes.SciPy("Radau").order == 2 * len(import_module("scipy.integrate._ivp.radau").C) - 1
    assert (
        sg.schemes.SciPy("BDF").order
        == sg.schemes.SciPy("LSODA").order
        == import_module("scipy.integrate._ivp.bdf").MAX_ORDER
    )
    assert (sg.schemes.TorchSDE("srk").stochastic, sg.schemes.SciPy("RK45").stochastic) == (True, False)


@pytest.mark.parametrize("name", ["RK23", "RK45", "DOP853"])
def test_orders_of_scipy_s_runge_kutta_methods(name: str) -> None:
    assert sg.schemes.SciPy(name).order == getattr(scipy.integrate, name).order


@pytest.mark.parametrize("name", sg.schemes.TorchSDE.fixed, ids=case_id)
def test_orders_of_torchsde(name: str) -> None:
    """The weak one, rounded down."""
    select = import_module("torchsde._core.methods").select

    kind = "ito" if name in ("euler", "milstein", "srk") else "stratonovich"
    assert sg.schemes.TorchSDE(name).order == int(select(name, kind).weak_order)


def test_near_names() -> None:
    """Up to four names that are alike; all of them where none is."""

    def shown(make: Any, method: str, words: str) -> list[str]:
        with pytest.raises(ValueError, match=words) as error:
            make(method)
        return re.findall("'([^']+)'", str(error.value).split(words)[1])

    assert shown(sg.schemes.TorchDiffEq, "midpont", "did you mean") == ["midpoint"]
    assert shown(sg.schemes.TorchDiffEq, "explicit", "did you mean") == ["explicit_adams"]
    assert sorted(shown(sg.schemes.SciPy, "??", "known are")) == sorted(sg.schemes.SciPy.adaptive)


# --- What is counted, and what is refused ----------------------------------------------------------------------------


def test_who_arrives() -> None:
    """All at once, or one by one: how many have left, and what each has evaluated."""
    for per_sample, groups in ((False, [3]), (True, [1, 1, 1])):
        left: list[int] = []
        solver = sg.schemes.TorchDiffEq("rk4", per_sample=per_sample)
        end = run_alone(solver, steps=2, on_leave=left.append)
        assert (left, end.evaluations.tolist(), end.calls) == (groups, [8] * 3, 8 * len(groups))
        assert end.outcome == ("completed",) * 3
    run_alone(solver, steps=2)  # without anyone to tell


@pytest.mark.parametrize("name", ["dopri5", "adaptive_heun"])
def test_a_sample_that_fails_alone_ends_where_it_failed(name: str) -> None:
    x = VP.prior_sample(SHAPE, seed=0, dtype=F64)

    def broken(x: Tensor, t: Tensor) -> Tensor:
        """Where the second sample starts there is no score."""
        here = bool((x == start).all())
        return elementwise_score(VP)(x, t) * (math.nan if here else 1.0)

    start = x[1]

    end = run_alone(sg.schemes.TorchDiffEq(name, per_sample=True), score=broken)
    assert end.outcome == ("completed", "not finite", "completed")
    assert end.t.tolist() == [VP.eps, VP.T, VP.eps]
    assert torch.equal(end.y[0][1], start)


def test_why_a_backend_gave_up() -> None:
    """The budget, a value that is not finite, or else the step; the network's own errors go on."""

    class Model:
        nfe = 0

    model = Model()

    def network(value: float) -> Tensor:
        model.nfe += 1
        return torch.tensor([1.0, value])

    seen = _Seen(2, model)
    error = AssertionError("underflow")
    assert float(seen(lambda: network(3.0), lambda: 0.5)[1]) == 3.0
    assert seen.reason(error) == "step too small"
    seen(lambda: network(math.nan), lambda: 0.25)
    assert (seen.reason(error), seen.bad) == ("not finite", {1: 0.25})
    with pytest.raises(OutOfCalls):
        seen(lambda: network(1.0), lambda: 0.5)
    assert seen.reason(OutOfCalls()) == "out of steps"
    model.nfe = 0
    seen(lambda: network(1.0), lambda: 0.125)
    seen(lambda: network(math.inf), lambda: 0.125)
    assert (seen.reason(error), seen.bad) == ("not finite", {1: 0.25})  # once is enough, and the first counts

    def fails() -> Tensor:
        raise ZeroDivisionError

    other = _Seen(math.inf, model)
    with pytest.raises(ZeroDivisionError):
        other(fails, lambda: 0.5)
    with pytest.raises(AssertionError, match="underflow"):
        other.reason(error)


@pytest.mark.parametrize("solver", [sg.schemes.SciPy("RK45"), sg.schemes.TorchDiffEq("bosh3")], ids=case_id)
def test_a_step_too_small(solver: Any) -> None:
    """A score that is drawn anew at each call, and huge, no step can follow: SciPy and torchdiffeq report it."""
    draws = torch.Generator().manual_seed(0)

    def jumps(x: Tensor, t: Tensor) -> Tensor:
        size = torch.where(t < 0.5, 1e30, 0.0)[:, None, None]
        return elementwise_score(VP)(x, t) + size * torch.randn(x.shape, generator=draws, dtype=F64)

    end = run_alone(solver, score=jumps, n=1)
    assert (end.outcome, end.t.tolist()) == (("step too small",), [VP.T])


def test_budgets_and_numbers_of_steps() -> None:
    """A budget is met to the call; steps are needed for even steps only."""
    solver = sg.schemes.TorchDiffEq("rk4")
    assert run_alone(solver, steps=2, calls=8).outcome == ("completed",) * 3
    end = run_alone(solver, steps=2, calls=7)
    assert (end.outcome, end.calls, end.evaluations.tolist()) == (("out of steps",) * 3, 7, [7] * 3)
    with pytest.raises(ValueError, match="torchdiffeq:rk4 takes even steps: say how many with steps="):
        run_alone(solver)
    with pytest.raises(ValueError, match="runs sample by sample: leave it out"):
        run_alone(sg.schemes.TorchDiffEq("rk4", per_sample=True), steps=2, calls=99)
    assert sg.schemes.TorchSDE("srk").takes_steps


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_numbers_of_steps_are_integers_of_at_least_one(steps: float) -> None:
    solver = sg.schemes.TorchDiffEq("rk4")

    with pytest.raises(ValueError, match=f"steps must be an integer of at least 1, got {steps}"):
        run_alone(solver, steps=steps)


@pytest.mark.parametrize("method, takes", [("rk4", True), ("dopri5", False)])
def test_fixed_methods_take_steps(method: str, takes: bool) -> None:
    assert sg.schemes.TorchDiffEq(method).takes_steps is takes


@pytest.mark.parametrize("options", [{"rtol": -1.0}, {"rtol": 0.0, "atol": 0.0}], ids=case_id)
def test_tolerances_are_not_negative_nor_both_zero(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="rtol"):
        sg.schemes.SciPy("RK45", **options)


def test_two_samples_are_a_batch() -> None:
    """The warning is for two samples on a step of their own choice, and for nothing less."""
    coarse: Any = {"rtol": 0.5, "atol": 0.5}
    with pytest.warns(sg.schemes.BatchCoupledWarning, match="takes one step size for the whole batch"):
        run_alone(sg.schemes.SciPy("RK23", **coarse), n=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_alone(sg.schemes.SciPy("RK23", **coarse), n=1)
        run_alone(sg.schemes.SciPy("RK23", per_sample=True, **coarse), n=2)
        run_alone(sg.schemes.TorchDiffEq("euler"), n=2, steps=1)


@pytest.mark.parametrize("process", LINEAR)
def test_the_end_is_met_exactly(process: str) -> None:
    """The last slope is asked for at the end of the run, not beside it."""
    sde = LINEAR[process]
    net = Recorder(elementwise_score(sde))
    run_alone(sg.schemes.TorchDiffEq("heun2"), score=net, sde=sde, n=1, steps=3)
    assert (net.times[0], net.times[-1]) == (sde.T, sde.eps)
