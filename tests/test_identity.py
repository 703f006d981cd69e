"""Another network, process or solver never goes on in a folder; the same one, made anew, does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde import distributed, identity
from sgm_sde.bench import bench
from sgm_sde.identity import disagreement, measured, spec, weights
from sgm_sde.models import Model
from tests.forks import ENV, ROOT

SDE = sg.VPSDE()
Make = Callable[[], Model]


class Net(nn.Module):
    """Two layers; its weights follow from a seed."""

    activation = staticmethod(torch.tanh)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x) + t[:, None]))


class Sine(Net):
    activation = staticmethod(torch.sin)


Sine.__qualname__ = "Net"  # what a class of another forward, or an edited one, looks like


class Holder:
    """A callable object that holds a network."""

    def __init__(self, net: Net) -> None:
        self.net = net

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)


def model(score: sg.Score) -> Model:
    return Model("mine", score, score.sde, (3,))


def of(
    net: Callable[..., Tensor], sde: sg.SDE = SDE, make: Callable[..., sg.Score] = sg.from_noise, **o: object
) -> Model:
    return model(make(net, sde, **o))


def lambda_of(seed: int) -> Model:
    net = Net(seed)
    return of(lambda x, t: net(x, t))


def guided(scale: float) -> Model:
    return model(sg.guidance.Auto(sg.from_noise(Net(0), SDE), sg.from_noise(Net(1), SDE), scale))


def weak(seed: int) -> Model:
    return model(sg.guidance.Auto(sg.from_noise(Net(0), SDE), sg.from_noise(Net(seed), SDE), 2.0))


CHANGES: dict[str, tuple[Make, Make]] = {
    "weights of a module": (lambda: of(Net(0)), lambda: of(Net(1))),
    "weights behind a lambda": (lambda: lambda_of(0), lambda: lambda_of(1)),
    "weights in a callable object": (lambda: of(Holder(Net(0))), lambda: of(Holder(Net(1)))),
    "weights behind net.forward": (lambda: of(Net(0).forward), lambda: of(Net(1).forward)),
    "numbers in a function": (lambda: of(lambda x, t: 0.5 * x), lambda: of(lambda x, t: 0.6 * x)),
    "from_noise made from_velocity": (lambda: of(Net(0)), lambda: of(Net(0), make=sg.from_velocity)),
    "an input scale": (lambda: of(Net(0)), lambda: of(Net(0), input_scale=lambda t: 1 / SDE.alpha(t))),
    "a time label": (lambda: of(Net(0)), lambda: of(Net(0), time_label=lambda t: 999 * t)),
    "scale of guidance": (lambda: guided(1.5), lambda: guided(3.0)),
    "weak network of autoguidance": (lambda: weak(1), lambda: weak(2)),
    "forward of the class": (lambda: of(Net(0)), lambda: of(Sine(0))),
    "the process": (lambda: of(Net(0)), lambda: of(Net(0), sg.VPSDE(beta_max=15.0))),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_and_the_same_goes_on(change: str, tmp_path: Path) -> None:
    """Each of the twelve changes the samples; the first model, made anew, finds all it has done."""
    before, after = CHANGES[change]
    options = {"batch": 4, "nfe": 3, "device": "cpu"}
    assert distributed.sample(before(), 8, tmp_path / "run", **options).found == 0
    assert distributed.sample(before(), 8, tmp_path / "run", **options).found == 2
    x = distributed.load(tmp_path / "run")["x"]
    with pytest.raises(ValueError, match="was made with other settings"):
        distributed.sample(after(), 8, tmp_path / "run", **options)
    distributed.sample(after(), 8, tmp_path / "other", **options)
    assert not torch.equal(distributed.load(tmp_path / "other")["x"], x)
    assert torch.equal(distributed.load(tmp_path / "run")["x"], x)


def test_a_benchmark_of_another_network_is_refused(tmp_path: Path) -> None:
    """Cells of a network behind a function are not shown as another's."""
    np.save(tmp_path / "real.npy", torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).numpy())
    options = {
        "solvers": ["ddim"], "nfe": [3], "n": 8, "features": "raw", "reference": tmp_path / "real.npy",
        "metrics": ["sw"], "device": "cpu",
    }  # fmt: skip
    one = bench(lambda_of(0), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert bench(lambda_of(0), tmp_path / "out", **options).rows == one.rows  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="was made with other settings"):
        bench(lambda_of(1), tmp_path / "out", **options)  # type: ignore[arg-type]


def test_processes_from_functions_and_tables(tmp_path: Path) -> None:
    """A schedule from functions goes on, another of the same ends does not; nor does another table with equal ends."""

    def schedule(power: float) -> Model:
        sde = sg.LinearSDE.from_schedule(lambda t: 1 - t**power, lambda t: t**power, T=0.9)
        return of(Net(0), sde)

    def table(bend: float) -> Model:
        betas = torch.linspace(1e-4**bend, 0.02**bend, 100, dtype=torch.float64) ** (1 / bend)
        betas[0], betas[-1] = 1e-4, 0.02
        return of(Net(0), sg.DiscreteVPSDE(betas.tolist()))

    for name, make, values in (("schedule", schedule, (1.0, 1.1)), ("table", table, (1.0, 0.5))):
        assert repr(make(values[0]).sde) == repr(make(values[1]).sde) or name == "schedule"
        for found in (0, 1):
            report = distributed.sample(make(values[0]), 4, tmp_path / name, nfe=3, device="cpu")
            assert report.found == found
        with pytest.raises(ValueError, match=r"sde\.(coefficients differ|betas)"):
            distributed.sample(make(values[1]), 4, tmp_path / name, nfe=3, device="cpu")


def test_solvers_with_functions(tmp_path: Path) -> None:
    """A noise level that is a function has a name and no address; what it does is in the table."""
    for found in (0, 1):
        solver = sg.SASolver(eta=lambda t: 0.5)  # type: ignore[arg-type]
        report = distributed.sample(of(Net(0)), 4, tmp_path / "run", solver=solver, steps=3, device="cpu")
        assert report.found == found
    with pytest.raises(ValueError, match="program = "):
        solver = sg.SASolver(eta=lambda t: 0.6)  # type: ignore[arg-type]
        distributed.sample(of(Net(0)), 4, tmp_path / "run", solver=solver, steps=3, device="cpu")


def test_specs_survive_a_new_process() -> None:
    """Every process, solver and grid of the package: JSON, the same in a new process, and no two alike."""
    program = (
        "import json, sgm_sde as sg; from sgm_sde.identity import spec; from tests.test_identity import values; "
        "print(json.dumps([spec(v) for v in values()]))"
    )
    again = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=ENV, capture_output=True, text=True, check=True
    )
    here = [spec(value) for value in values()]
    assert json.loads(again.stdout) == here
    assert len({json.dumps(one, sort_keys=True) for one in here}) == len(here)


def values() -> list[object]:
    """Values of many kinds, each different."""
    processes = [
        sg.VPSDE(), sg.VPSDE(beta_max=10.0), sg.SubVPSDE(), sg.CosineVPSDE(), sg.VESDE(), sg.EDMSDE(), sg.EDMSDE(0.01),
        sg.RectifiedFlowSDE(), sg.presets.ddpm(), sg.presets.iddpm_cosine(), sg.DiscreteVESDE([1.0, 0.1]), sg.CLD(),
        sg.CLD(beta_min=5.0), sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t, T=0.9),
        sg.LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t**2, T=0.9),
    ]  # fmt: skip
    solvers = {spec_text(solver): solver for _, solver in sg.solvers()}
    grids = [sg.grids.Uniform(), sg.grids.Karras(), sg.grids.Karras(rho=5.0), sg.grids.Grid([1.0, 0.5])]
    tensors = [torch.zeros(2), torch.zeros(3), torch.zeros(2, dtype=torch.float64), Net(0), Net(1)]
    return [*processes, *solvers.values(), *grids, *tensors]


def spec_text(value: object) -> str:
    return json.dumps(spec(value), sort_keys=True)


def test_measurements_agree_within_their_tolerance() -> None:
    """Row by row, of the largest number there; NaN agrees with NaN, and measurements of other kinds with nothing."""
    base = measured([[1.0, -2.0], [1e-6, 0.0]], 1e-3)
    assert disagreement(base, measured([[1.001, -2.0], [1e-6, 1e-10]], 1e-3)) == 0
    assert disagreement(base, measured([[1.0, -2.0], [1e-6, 1e-8]], 1e-3)) == pytest.approx(1e-2)
    assert disagreement(base, measured([[float("nan"), -2.0], [1e-6, 0.0]], 1e-3)) == float("inf")
    assert disagreement(*[measured([[float("nan"), float("inf"), 1.0]], 1e-3)] * 2) == 0
    for other in (measured([[1.0, -2.0]], 1e-3), measured([[1.0, -2.0], [1e-6, 0.0]], 1e-2), None, {}, 3):
        assert disagreement(base, other) is None


def test_measuring_leaves_no_trace() -> None:
    """The random state, the mode and the gradients are as before; a network that draws is measured alike."""
    net = nn.Sequential(Net(0).first, nn.Dropout(0.5), Net(0).last)
    score = sg.from_noise(lambda x, t: net(x), SDE)
    state = torch.random.get_rng_state()
    one, two = (identity.outputs(score, (3,)) for _ in range(2))
    assert one == two
    assert torch.equal(torch.random.get_rng_state(), state)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_weights_are_found_wherever_they_are() -> None:
    """In closures, defaults, partial functions, containers, attributes and module names; a network counts once."""
    net = Net(0)
    plain = weights(net)
    nested = {"all": [(net,)]}
    for function in (
        lambda x, t: net(x, t),
        lambda x, t, n=net: n(x, t),
        partial(lambda n, x, t: n(x, t), net),
        lambda x, t: nested["all"][0][0](x, t),
        Holder(net),
        net.forward,
        lambda x, t: GLOBAL(x, t),
    ):
        assert weights(sg.from_noise(function, SDE)) == plain
    assert weights(sg.guidance.Auto(sg.from_noise(net, SDE), sg.from_noise(Net(1), SDE), 2.0)) != plain
    assert weights(lambda x, t: x) == ""
    matrix = torch.ones(3, 3)
    assert weights(lambda x, t: x @ matrix) != ""


GLOBAL = Net(0)
