"""Runs on a device that is not the CPU: nothing of theirs is left behind on it, and its samples are the CPU's.

The device is one of `tests.far_device`, which refuses tensors of two devices in an operation as CUDA does, and counts
what waits for it; GPUs themselves are for the tests that need one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse, likelihood
from sgm_sde.testing import check_score
from tests.conventions import some_slow
from tests.far_device import FarDevice, FarTensor, far, near

VP, CLD = sg.VPSDE(), sg.CLD()
W = torch.tensor([[0.6, -0.2], [0.3, 0.5]])
LABELS = torch.tensor([[0.0, 0.1], [0.4, -0.3], [0.0, 0.0]])
MODES = torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]])
SEEN = torch.tensor([1.0, 0.0])
FIRST = torch.tensor([True, False])


@pytest.fixture(autouse=True)
def _without_warnings() -> Iterator[None]:
    """Networks here have learnt nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def score_of(device: str, sde: Any = VP, labels: bool = False) -> sg.Score:
    """A network whose weights lie on the device."""
    placed = far if device == "cuda" else torch.clone
    w, table = placed(W), placed(LABELS)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ w) / 2 + x / 2

    def conditional(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return net(x, t) + table[y]

    return sg.from_noise(conditional if labels else net, sde)


def on(device: str, x: Tensor) -> Tensor:
    return far(x) if device == "cuda" else x


def on_both(run: Callable[[str], Tensor]) -> tuple[Tensor, Tensor]:
    """What a run returns on the CPU, and on the device."""
    expected = run("cpu")
    with FarDevice():
        found = run("cuda")
    assert isinstance(found, FarTensor)
    return near(found), expected


def points(n: int, *shape: int) -> Tensor:
    """Points (n, *) about the data."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


ON_A_GRID = [name for name, solver in sg.solvers().items() if not isinstance(solver, sg.schemes.AdaptiveSolver)]


@pytest.mark.parametrize("name", list(sg.solvers()))
def test_solvers(name: str) -> None:
    """The samples of the CPU, to the last bit."""
    budget = {"steps": 2} if name in ON_A_GRID else {}

    def run(device: str) -> Tensor:
        execution = sg.Execution(device=device)
        return sg.sample(score_of(device), VP, (4, 2), solver=name, seed=0, execution=execution, **budget).x

    found, expected = on_both(run)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ddim", "unipc3", "heun", "ancestral", "pc", None])
def test_a_run_on_a_grid_waits_for_nothing(name: str | None) -> None:
    """As often in many steps as in few, at its end; noise goes to the device, and nothing comes back."""
    waits = []
    for steps in (20, 40):
        with FarDevice() as device:
            sg.sample(score_of("cuda"), VP, (4, 2), solver=name, nfe=steps, execution=sg.Execution(device="cuda"))
        waits.append(device.waits.total())
    assert waits[0] == waits[1] <= 3


def sampled(score: Callable[[str], Any], sde: Any = VP, shape: tuple[int, ...] = (4, 2), **options: Any) -> Any:
    """A run of a score on a device."""

    def run(device: str) -> Tensor:
        execution = sg.Execution(device=device, **options.get("execution", {}))
        given = {name: on(device, value) if isinstance(value, dict) else value for name, value in options.items()}
        return sg.sample(score(device), sde, shape, **{"nfe": 6, "seed": 0, **given, "execution": execution}).x

    return run


def posterior(kind: Callable[..., Any], std: float) -> Callable[[str], Any]:
    """A score given a measurement, which lies where it was made, on the CPU."""
    seen = inverse.Measurement(inverse.Mask(FIRST), SEEN, std=std)
    return lambda device: kind(score_of(device), seen)


def guided(device: str) -> Any:
    null = {"y": on(device, torch.full((4,), 2))}
    return sg.guidance.ClassifierFree(score_of(device, labels=True), 3.0, null=null)


def plain(device: str) -> Callable[..., Tensor]:
    return lambda u, t: -u


EXACT = inverse.Measurement(inverse.Mask(FIRST), SEEN)
LABELLED = {"y": torch.tensor([0, 1, 0, 1])}
RUNS: dict[str, Any] = {
    "labels": sampled(lambda device: score_of(device, labels=True), model_kwargs=LABELLED),
    "guidance": sampled(guided, model_kwargs=LABELLED),
    "seeds": sampled(score_of, seed=[5, 7, 5, 1]),
    "parts": sampled(score_of, solver="ancestral", execution={"batch_size": 3}),
    "a path": sampled(score_of, solver="euler-maruyama", noise="path"),
    "in parallel": sampled(score_of, solver="ddim", execution={"parallel": 4}),
    "images": sampled(lambda device: sg.from_noise(lambda x, t: x / 2, VP), shape=(2, 3, 32, 32), solver="ancestral"),
    "MMPS": sampled(posterior(inverse.MMPS, 0.3)),
    "PiGDM": sampled(posterior(inverse.PiGDM, 0.3)),
    "DiffPIR": sampled(posterior(inverse.DiffPIR, 0.3)),
    "DPS": sampled(score_of, solver=inverse.DPS(sg.DDIM(), EXACT)),
    "RePaint": sampled(score_of, solver=inverse.RePaint(sg.Ancestral(), EXACT, resamples=2, jump=2), nfe=20),
    "a mixture": sampled(lambda device: sg.oracles.GaussianMixture(on(device, MODES), 0.3).score(VP)),
    "CLD": sampled(plain, CLD, (4, 2, 2)),
    "SSCS": sampled(plain, CLD, (4, 2, 2), solver=sg.schemes.SSCS()),
    "torchdiffeq": sampled(score_of, solver="torchdiffeq:dopri5", nfe=None),
    "scipy": sampled(score_of, solver="scipy:RK45", nfe=None),
    "torchsde": sampled(score_of, solver="torchsde:srk", nfe=None, steps=4),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    """What is made for a run lies where its states lie."""
    found, expected = on_both(RUNS[name])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


PROCESSES = [
    VP, sg.SubVPSDE(), sg.CosineVPSDE(), sg.VESDE(0.01, 50.0), sg.EDMSDE(), sg.RectifiedFlowSDE(), sg.presets.ddpm(50),
]  # fmt: skip


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
def test_processes(sde: sg.LinearSDE) -> None:
    """Coefficients, marginals, transitions and the prior, at times on the device."""

    def values(device: str) -> Tensor:
        x, t, s = on(device, points(6, 2)), on(device, torch.full((6,), 0.5 * sde.T)), on(device, torch.full((6,), 0.2))
        parts = [
            *sde.marginal(x, t),
            *sde.transition(s, t),
            sde.f(x, t),
            sde.g(t),
            sde.log_snr(t),
            sde.prior_log_prob(x),
        ]
        return torch.cat([part.reshape(-1) for part in parts])

    found, expected = on_both(values)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


DENSITIES: dict[str, Callable[[sg.Score, Tensor], Any]] = {
    "exact trace": lambda score, x: sg.log_prob(score, VP, x, trace="exact").value,
    "probes": lambda score, x: sg.log_prob(score, VP, x, trace="hutchinson", seed=0).value,
    "own steps": lambda score, x: sg.log_prob(score, VP, x, method="adaptive").value,
    "rk45-scipy": lambda score, x: sg.log_prob(score, VP, x, method="rk45-scipy").value,
    "elbo": lambda score, x: likelihood.elbo(score, VP, x, seed=0).value,
    "encode": lambda score, x: sg.encode(score, VP, x).x,
    "decode": lambda score, x: sg.decode(score, VP, x).x,
    "modes": lambda score, x: likelihood.find_modes(lambda y: -(y - 1).square().sum(1), x).x,
}


@pytest.mark.parametrize("name", DENSITIES)
def test_densities(name: str) -> None:
    found, expected = on_both(lambda device: DENSITIES[name](score_of(device), on(device, points(6, 2))))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


CHOICES: dict[str, Callable[[str], Any]] = {
    "pilot": lambda device: sg.pilot(score_of(device), VP, (16, 2), nfe=5, seed=0, device=device),
    "calibrate": lambda device: sg.calibrate(score_of(device), VP, (16, 2), nfe=4, seed=0, held_out=32, device=device),
}


@pytest.mark.parametrize("name", some_slow(CHOICES, fast=("pilot",)))
def test_settings_fitted_on_the_device(name: str) -> None:
    """They are found there, and run there."""
    with FarDevice():
        setting = CHOICES[name]("cuda")
        execution = sg.Execution(device="cuda")
        x = sg.sample(score_of("cuda"), VP, (4, 2), solver=setting, seed=0, execution=execution).x
    expected = sg.sample(score_of("cpu"), VP, (4, 2), solver=CHOICES[name]("cpu"), seed=0).x
    torch.testing.assert_close(near(x), expected, rtol=1e-4, atol=1e-4)


def test_a_check_on_the_device() -> None:
    """The errors of the CPU's."""

    def fitted(x: Tensor, t: Tensor) -> Tensor:
        return x * VP.sigma(t)[:, None]

    data = points(64, 2)
    expected = check_score(sg.from_noise(fitted, VP), data)
    with FarDevice():
        found = check_score(sg.from_noise(fitted, VP), far(data))
    assert found.errors == pytest.approx(expected.errors, rel=1e-5)


def test_two_devices_are_refused() -> None:
    """The device of these tests refuses what CUDA refuses, and counts what waits for it."""
    with FarDevice() as device:
        x = torch.zeros(3, 2, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3, 2)
        with pytest.raises(RuntimeError, match="on the CPU by one on the device"):
            torch.ones(3)[torch.zeros(2, dtype=torch.long, device="cuda")]

        assert isinstance(x + torch.tensor(1.0), FarTensor)
        assert not device.waits
        assert float(x.sum()) == 0
        assert type(x.to("cpu")) is Tensor
    assert device.waits.total() == 2


def test_a_network_on_another_device_is_told() -> None:
    """Where x lies, and what torch says of the weights."""
    with FarDevice(), pytest.raises(RuntimeError, match="network, state and conditions go on one device"):
        sg.sample(score_of("cuda"), VP, (4, 2), nfe=5)
