"""The stated error on a small network that is trained here, as people train them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from benchmarks.bed_networks import moons
from sgm_sde.likelihood import AdaptiveFlow, FixedGrid, ScipyRK45
from sgm_sde.processes.linear import LinearSDE
from tests.helpers import DOUBLE

SDE = sg.CosineVPSDE()


def points(n: int, seed: int) -> Tensor:
    """Two moons (n, 2)."""
    return moons(n, torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """v from x and sines and cosines of t."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.tensor([2.0, 5.0, 11.0], dtype=x.dtype)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))


@lru_cache(maxsize=1)
def score() -> sg.Score:
    """That of a network after 800 iterations."""
    data = points(4000, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(800):
        x0 = data[torch.randint(len(data), (256,), generator=generator)]
        t = SDE.eps + (SDE.T - SDE.eps) * torch.rand(256, generator=generator)
        noise = torch.randn(256, 2, generator=generator)
        alpha, sigma = (k(t)[:, None] for k in (SDE.alpha, SDE.sigma))
        loss = (net(alpha * x0 + sigma * noise, t) - (alpha * noise - sigma * x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sg.from_v(net.double(), SDE)


@lru_cache(maxsize=1)
def known() -> tuple[Tensor, Tensor]:
    """Points, and their log-density by RK45 at a tight tolerance."""
    x = points(64, seed=2).double()
    return x, sg.log_prob(score(), SDE, x, method=ScipyRK45(1e-9, 1e-9)).value


@pytest.mark.parametrize("method", ["exponential", "adaptive", "rk45-scipy"])
def test_the_error_against_rk45_at_a_tight_tolerance(method: str) -> None:
    """Bounded in nearly all points, and within the tolerance; the methods that find their own steps say theirs."""
    x, value = known()
    found = sg.log_prob(score(), SDE, x, method=method)
    off = (found.value - value).abs() / 2
    assert float((off <= found.error / 2 + 1e-6).double().mean()) > 0.9
    assert found.status.ok
    if method == "exponential":
        assert float(off.quantile(0.95)) < 1e-4


@pytest.mark.parametrize(("solver", "nfe"), [("dpm++3m", 24), ("dpm++3m", 48), ("heun", 48), ("ddim", 24)])
def test_the_error_along_a_solver(solver: str, nfe: int) -> None:
    """A network's score is not that of its own flow's density, which a solver's jumps are accounted for with."""
    options: dict[str, Any] = {"solver": solver, "nfe": nfe, "seed": 0, "execution": DOUBLE}
    found = sg.sample(score(), SDE, (64, 2), log_prob=True, **options)
    assert found.log_prob is not None
    known = sg.log_prob(score(), SDE, found.x, eps=found.times[-1], method=AdaptiveFlow(1e-8, 1e-8)).value
    off = (found.log_prob.value - known).abs()
    assert float((off <= found.log_prob.error).double().mean()) > 0.9


def test_decoded_states_and_their_density() -> None:
    """In one solve: those that were encoded, with the density that they have; printed in a line."""
    x = points(32, seed=3).double()
    found = sg.decode(score(), SDE, sg.encode(score(), SDE, x).x, log_prob=True)
    assert float((found.x - x).abs().max()) < 5e-3
    assert found.log_prob is not None and found.error is not None
    known = sg.log_prob(score(), SDE, found.x, method=AdaptiveFlow(1e-8, 1e-8)).value
    assert float(((found.log_prob - known).abs() <= found.error).double().mean()) > 0.9
    assert str(found).startswith("FlowResult(x=(32, 2) torch.float64, nfe=50, log_prob: mean -")
    assert "nats, numerical error up to" in str(found) and "tensor" not in str(found)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.RectifiedFlowSDE()], ids=["vp", "flow"])
def test_the_error_in_one_dimension_where_every_function_is_a_gradient(sde: LinearSDE) -> None:
    """A noise estimate that is off by up to a fifth, but not in pure noise, is told by the size of its score by the
    data: as small networks have it whose input is t beside x."""
    means = torch.tensor([[-1.0], [0.8]], dtype=torch.float64)
    modes = sg.oracles.GaussianMixture(means, torch.tensor([[0.04], [0.25]], dtype=torch.float64))

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (k(t)[:, None] for k in (sde.alpha, sde.sigma))
        exact = (x - alpha * modes.denoised(x, alpha[:, 0], sigma[:, 0])) / sigma
        fades = (1 - t[:, None] / sde.T) ** 2
        return exact + 0.2 * fades * (3 * x / (0.5 * alpha + sigma) + 1).sin()

    score = sg.from_noise(noise, sde)
    x = modes.sample(48, sde, sde.likelihood_eps, seed=0, dtype=torch.float64)
    found = sg.log_prob(score, sde, x, method=FixedGrid(96))
    off = (found.value - sg.log_prob(score, sde, x, method=FixedGrid(384)).value).abs()
    assert float((off <= found.error + 1e-9).double().mean()) >= 0.95


def vp_in_units(unit: float) -> LinearSDE:
    """VP with its time in units of 1 / unit, which ends at 0.001 of T."""
    vp = sg.VPSDE()
    return LinearSDE.from_schedule(
        lambda t: vp.alpha(t / unit), lambda t: vp.sigma(t / unit), T=unit * vp.T, eps=unit * vp.eps
    )


@pytest.mark.parametrize("unit", [1000.0, 0.001])
def test_densities_do_not_depend_on_the_unit_of_time(unit: float) -> None:
    """Of a schedule in steps of a table the density is that of VP at the same noise, and no network is called below."""
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.3)
    sde = vp_in_units(unit)
    seen: list[float] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t.min()))
        return oracle.score(sde)(x, t)

    x = oracle.sample(6, sg.VPSDE(), 1e-3, seed=0, dtype=torch.float64)
    found = sg.log_prob(score, sde, x).value
    expected = sg.log_prob(oracle.score(sg.VPSDE()), sg.VPSDE(), x, eps=1e-3).value
    assert torch.allclose(found, expected, atol=1e-6)
    assert min(seen) == pytest.approx(sde.eps)


def test_densities_at_time_zero_where_there_is_noise() -> None:
    """On VDM's log-SNR from 13.3 to -5 the process begins at 0, and so does the density; on VP nothing is there."""
    sde = LinearSDE.from_schedule(
        lambda t: torch.sigmoid(13.3 - 18.3 * t).sqrt(), lambda t: torch.sigmoid(18.3 * t - 13.3).sqrt(), eps=0.0
    )
    oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.3)
    score = oracle.score(sde)
    x = oracle.sample(6, sde, 0.0, seed=0, dtype=torch.float64)

    found = sg.log_prob(score, sde, x, prior=lambda z: oracle.log_prob(z, sde, sde.T))
    assert torch.allclose(found.value, oracle.log_prob(x, sde, 0.0), atol=1e-3)
    assert torch.allclose(sg.decode(score, sde, sg.encode(score, sde, x).x).x, x, atol=1e-3)
    with pytest.raises(ValueError, match=r"eps must lie in \(0, T\) = \(0, 1.0\), got 0.0"):
        sg.log_prob(oracle.score(sg.VPSDE()), sg.VPSDE(), x, eps=0.0)
