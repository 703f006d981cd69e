"""Another network, process or solver never goes on in a folder; the same one, made anew, does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde import distributed
from sgm_sde.calibration.result import HeldOut
from sgm_sde.calibration.table import FittedLevels, Table
from sgm_sde.engine.adaptive import Controller
from sgm_sde.engine.matrix import Matrix
from sgm_sde.evaluation.bench import RunOptions, bench
from sgm_sde.identity import Value, class_name, disagreement, from_spec, measured, portable, spec, weights
from sgm_sde.likelihood.grid import Stretched
from sgm_sde.scores.outputs import outputs
from sgm_sde.zoo.models import Model
from tests.conventions import case_id
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
    "from_noise made from_v": (lambda: of(Net(0)), lambda: of(Net(0), make=sg.from_v)),
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
        "metrics": ["sw"], "run": RunOptions(device="cpu"),
    }  # fmt: skip
    one = bench(lambda_of(0), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert bench(lambda_of(0), tmp_path / "out", **options).rows == one.rows  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="was made with other settings"):
        bench(lambda_of(1), tmp_path / "out", **options)  # type: ignore[arg-type]


def of_power(power: float) -> Model:
    """A model on a schedule from functions."""
    return of(Net(0), sg.LinearSDE.from_schedule(lambda t: 1 - t**power, lambda t: t**power, T=0.9))


def of_table(bend: float) -> Model:
    """A model on a table with the ends of DDPM's."""
    betas = torch.linspace(1e-4**bend, 0.02**bend, 100, dtype=torch.float64) ** (1 / bend)
    betas[0], betas[-1] = 1e-4, 0.02
    return of(Net(0), sg.DiscreteVPSDE(betas.tolist()))


@pytest.mark.parametrize("make, values", [(of_power, (1.0, 1.1)), (of_table, (1.0, 0.5))], ids=["schedule", "table"])
def test_processes_from_functions_and_tables(
    tmp_path: Path, make: Callable[[float], Model], values: tuple[float, float]
) -> None:
    """A schedule from functions goes on, another of the same ends does not; nor does another table with equal ends."""
    one, other = map(make, values)
    assert repr(one.sde) == repr(other.sde) or make is of_power
    reports = [distributed.sample(make(values[0]), 4, tmp_path / "run", nfe=3, device="cpu") for _ in range(2)]
    assert [report.found for report in reports] == [0, 1]
    with pytest.raises(ValueError, match=r"sde\.(coefficients differ|betas)"):
        distributed.sample(other, 4, tmp_path / "run", nfe=3, device="cpu")


def test_solvers_with_functions(tmp_path: Path) -> None:
    """A noise level that is a function has a name and no address; what it does is in the table."""

    def drawn(eta: float) -> distributed.Report:
        solver = sg.SASolver(eta=lambda t: eta)  # type: ignore[arg-type]
        return distributed.sample(of(Net(0)), 4, tmp_path / "run", solver=solver, steps=3, device="cpu")

    assert [drawn(0.5).found for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="program = "):
        drawn(0.6)


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
    solvers = {spec_text(solver): solver for solver in sg.solvers().values()}
    grids = [sg.grids.Uniform(), sg.grids.Karras(), sg.grids.Karras(rho=5.0), sg.grids.Grid([1.0, 0.5])]
    tensors = [torch.zeros(2), torch.zeros(3), torch.zeros(2, dtype=torch.float64), Net(0), Net(1)]
    return [*processes, *solvers.values(), *grids, *tensors]


def spec_text(value: object) -> str:
    return json.dumps(spec(value), sort_keys=True)


def test_measurements_agree_within_their_tolerance() -> None:
    """Row by row, of the largest number there; NaN agrees with NaN."""
    base = measured([[1.0, -2.0], [1e-6, 0.0]], 1e-3)
    assert disagreement(base, measured([[1.001, -2.0], [1e-6, 1e-10]], 1e-3)) == 0
    assert disagreement(base, measured([[1.0, -2.0], [1e-6, 1e-8]], 1e-3)) == pytest.approx(1e-2)
    assert disagreement(base, measured([[float("nan"), -2.0], [1e-6, 0.0]], 1e-3)) == float("inf")
    assert disagreement(*[measured([[float("nan"), float("inf"), 1.0]], 1e-3)] * 2) == 0


@pytest.mark.parametrize(
    "other", [measured([[1.0, -2.0]], 1e-3), measured([[1.0, -2.0], [1e-6, 0.0]], 1e-2), None, {}, 3], ids=case_id
)
def test_measurements_of_other_kinds_do_not_compare(other: object) -> None:
    base = measured([[1.0, -2.0], [1e-6, 0.0]], 1e-3)

    assert disagreement(base, other) is None


def test_measuring_leaves_no_trace() -> None:
    """The random state, the mode and the gradients are as before; a network that draws is measured alike."""
    net = nn.Sequential(Net(0).first, nn.Dropout(0.5), Net(0).last)
    score = sg.from_noise(lambda x, t: net(x), SDE)
    state = torch.random.get_rng_state()
    one, two = (outputs(score, (3,)) for _ in range(2))
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


# --- specs -----------------------------------------------------------------------------------------------------------

MASK = sg.inverse.Mask(torch.tensor([True, False, True]))
SEEN = sg.inverse.Measurement(MASK, torch.tensor([0.5, 0.0, 0.1]))
RATE = sg.processes.MatrixSDE.from_rate(
    A=[[0, 4], [-1, -4]], D=[[0, 0], [0, 8**0.5]], prior_covariance=[[1, 0], [0, 0.25]],
    initial_covariance=[[0, 0], [0, 0.01]],
)  # fmt: skip
CALIBRATED = sg.calibration.Calibrated(Table((10.0, 1.0), (10.0, 1.0, 0.0), ((0.9,), (0.0, 1.0))), "{}")
CALIBRATION = sg.Calibration(
    [HeldOut("off the shelf", sg.Setting(CALIBRATED), 0.1, 0.2, 0.3, 0.4)], 2, protocol={"class": 1}
)
VALUES: list[Any] = [
    CALIBRATED, CALIBRATION, FittedLevels((10.0, 1.0)),
    sg.VPSDE(), sg.SubVPSDE(), sg.CosineVPSDE(), sg.VESDE(), sg.EDMSDE(), sg.RectifiedFlowSDE(), sg.CLD(), RATE,
    sg.DiscreteVPSDE([1e-4, 1e-3, 0.02]), sg.DiscreteVESDE([10.0, 1.0, 0.1]),
    *sg.solvers().values(),
    sg.schemes.SSCS(), sg.schemes.GDDIM(), sg.Adaptive(sg.tableaus.DOPRI5, controller=Controller(safety=0.8)),
    sg.schemes.SciPy("RK45"), sg.schemes.TorchDiffEq("dopri5"), sg.schemes.TorchSDE("euler"),
    sg.Langevin(), sg.schemes.VelocityLangevin(), sg.PredictorCorrector(sg.DDIM(), sg.Langevin(), "CP"),
    sg.inverse.Replacement(sg.DDIM(), SEEN), sg.inverse.RePaint(sg.DDIM(), SEEN), sg.inverse.DPS(sg.DDIM(), SEEN),
    MASK, SEEN, sg.inverse.BlockAverage(2), sg.inverse.Blur(torch.ones(3, 3) / 9),
    sg.inverse.ChannelMix(torch.tensor([[0.5, 0.5]])),
    *sg.grids.RULES.values(), sg.schemes.Consistency(), sg.schemes.TCD(), sg.grids.Table((0.1, 0.2)),
    sg.grids.Shifted(3.0, sg.grids.Karras()),
    sg.grids.FromLevels([2.0, 1.0, 0.1]), sg.grids.TokenGrid.staggered([1.0, 0.5, 0.1], [0, 1]),
    sg.grids.Grid([1.0, 0.5]), Stretched(),
    sg.tableaus.HEUN2, sg.tableaus.DOP853,
    sg.Setting("ddim", "karras"), sg.Setting("ddim"), sg.defaults.default_setting(sg.VPSDE()),
    sg.trials.PilotResult([(sg.Setting("ddim"), 0.1), (sg.Setting("heun", "karras"), 0.2)], 1e-3, 10, ["short"]),
    sg.DDIM(eta=1.0).compile(SDE, sg.grids.Grid([1.0, 0.5, 0.1])),
    sg.schemes.SSCS().compile(sg.CLD(), sg.grids.Grid([1.0, 0.5])), Matrix(((1.0, 0.0), (0.0, 2.0))), Controller(),
]  # fmt: skip


def alike(a: Any, b: Any) -> bool:
    """Equal in all that the values are made of."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if type(a) is not type(b) or not isinstance(a, Value):
        return bool(a == b)
    names = [f.name for f in fields(a)] if is_dataclass(a) else [n for n in vars(a) if n[0] != "_"]
    held = (tuple(value._held().values()) for value in (a, b))
    return all(alike(getattr(a, n), getattr(b, n)) for n in names) and alike(*held)


def text(value: object) -> str:
    return json.dumps(spec(value), sort_keys=True, allow_nan=False)


def test_every_class_is_tried() -> None:
    """All processes, solvers, correctors, grids and operators of this package, those apart that are functions."""
    seen = {part for value in VALUES for part in type(value).__mro__}
    waiting: list[type] = [sg.SDE, sg.Solver, sg.AdaptiveSolver, sg.Corrector, sg.grids.GridRule, sg.inverse.Operator]
    missing = []
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        final = not (getattr(kind, "__abstractmethods__", None) or kind.__subclasses__())
        if kind.__module__.startswith("sgm_sde.") and final and kind not in seen:
            missing.append(class_name(kind))
    assert sorted({name for name in missing if "._" not in name}) == [
        "inverse.LinearMap", "inverse.NonlinearMap", "processes.ScheduleSDE",
    ]  # fmt: skip


def test_specs_round_trip_through_json() -> None:
    """The same value from its text, and the same text from that; no two values have one."""
    texts = [text(value) for value in VALUES]
    for value, written in zip(VALUES, texts, strict=True):
        again = from_spec(written)
        assert alike(again, value), value
        assert text(again) == written
        assert from_spec(value.spec()).spec() == value.spec()
    assert len(set(texts)) == len(texts)


def changed(value: Any, draw: Any) -> Any:
    """A value with one number or text in it changed; None where its class refuses that."""
    data = json.loads(text(value))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in range(len(node)) if isinstance(node, list) else list(node):
            if key in ("class", "source", "float", "shape", "dtype"):
                continue
            item = node[key]
            if isinstance(item, dict | list):
                walk(item)
            elif item is not None:
                places.append((node, key))

    walk(data)
    if not places:
        return None
    node, key = draw(st.sampled_from(places))
    item = node[key]
    if isinstance(item, bool):
        node[key] = not item
    elif isinstance(item, int):
        node[key] = item + draw(st.integers(-2, 2))
    elif isinstance(item, float):
        node[key] = draw(st.sampled_from([np.nextafter(item, 2 * item + 1).item(), item * 1.01, item / 2, item + 1.0]))
    else:
        node[key] = draw(st.sampled_from([item + "x", "noise", "data", "exact", "warm", "cold", "CP", "fixed"]))
    try:
        return from_spec(data)
    except ValueError:
        return None


@given(st.sampled_from(VALUES), st.data())
@settings(max_examples=400, deadline=None)
def test_values_share_a_spec_exactly_if_they_are_equal(value: Any, data: st.DataObject) -> None:
    """One field changed, down to the last bit, is another spec."""
    other = changed(value, data.draw)
    if other is not None:
        assert (text(other) == text(value)) == alike(other, value)
        assert alike(from_spec(text(other)), other)


@given(st.sampled_from(VALUES), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_no_spec_is_refused(value: Any, data: st.DataObject) -> None:
    """Keys that are missing, odd, or hold something else: a value or a ValueError, and nothing else."""
    known = json.loads(text(value))
    key = data.draw(st.sampled_from(sorted(known)))
    odd = data.draw(st.sampled_from(["gone", None, [], {}, "x", -1, {"float": "x"}, {"class": "os.system"}, 1e400]))
    if odd == "gone":
        known.pop(key)
    else:
        known[key] = odd
    try:
        made = from_spec(known)
    except ValueError:
        return
    assert made.spec() == known or key == "code"


@pytest.mark.parametrize("odd", ["", "[]", "3", "{}", '{"class": "os.system"}', '{"class": "_lock.Lock"}', None, 3, []])
def test_other_things_are_no_specs(odd: object) -> None:
    """Text that is no JSON, other JSON, and classes that are no values."""
    with pytest.raises(ValueError, match=r"the spec of a value is|not known here"):
        from_spec(odd)


def test_tables_with_equal_ends_and_schedules() -> None:
    """The two DDPM tables, and schedules from functions: by their values, and made anew the same."""
    linear = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scaled = torch.linspace(1e-4**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    scaled[0], scaled[-1] = linear[0], linear[-1]
    tables = [sg.DiscreteVPSDE(b.tolist()) for b in (linear, scaled)]
    assert repr(tables[0]) == repr(tables[1])
    assert text(tables[0]) != text(tables[1])
    assert portable(spec(tables[0])) != portable(spec(tables[1]))

    def schedule(power: float) -> sg.LinearSDE:
        return sg.LinearSDE.from_schedule(lambda t: 1 - t**power, lambda t: t**power, T=0.9)

    assert text(schedule(1.0)) == text(schedule(1.0)) != text(schedule(1.5))
    assert portable(spec(schedule(1.0))) != portable(spec(schedule(1.5)))
    with pytest.raises(ValueError, match="not the spec of a value"):
        from_spec(schedule(1.0).spec())


SCALE = 0.5


def test_functions_differ_by_what_they_do() -> None:
    """Numbers in the code, in closures, defaults and module names; the operation; the method of a class."""

    def scaled(s: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: s * x

    class Up:
        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return x + 1

    class Down:
        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return x - 1

    class Dropped(nn.Dropout):
        def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
            return super().forward(x)

    Down.__qualname__ = Up.__qualname__
    functions: list[Callable[..., Tensor]] = [
        lambda x, t: 0.5 * x, lambda x, t: 0.6 * x, lambda x, t: x + 0.5, lambda x, t: x - 0.5, scaled(1.0),
        scaled(2.0),
        lambda x, t, s=0.5: s * x, lambda x, t, s=0.6: s * x, lambda x, t: SCALE * x, partial(torch.mul, 2.0),
        partial(torch.mul, 3.0), Net(0), Net(1), Sine(0), Net(0).forward, Holder(Net(0)), Holder(Net(1)), Up(), Down(),
        Dropped(0.1), Dropped(0.2), torch.relu, torch.tanh,
    ]  # fmt: skip
    scores = [sg.from_score(function, SDE) for function in functions]
    assert len({text(score) for score in scores}) == len(scores)
    assert text(sg.from_score(scaled(1.0), SDE)) == text(sg.from_score(scaled(1.0), SDE))


def test_scores_differ_by_every_option() -> None:
    """Prediction, process, time label, input scale, dtype; guidance with its options; posteriors with theirs."""
    net, of = Net(0), sg.from_denoiser
    plain = of(net, SDE)
    other = of(Net(1), SDE)
    Free, Auto = sg.guidance.ClassifierFree, sg.guidance.Auto
    scores = [
        plain, other, sg.from_noise(net, SDE), of(net, sg.VPSDE(beta_max=15.0)), of(net, SDE, dtype=torch.float64),
        of(net, SDE, time_label=lambda t: 999 * t), of(net, SDE, time_label=lambda t: 1000 * t),
        of(net, SDE, input_scale=lambda t: 1 + t), Free(plain, 2.0, {"y": 1}), Free(plain, 3.0, {"y": 1}),
        Free(plain, 2.0, {"y": 2}), Free(plain, 2.0, {"y": 1}, interval=(0.1, 1.0)), Auto(plain, other, 2.0),
        Auto(other, plain, 2.0), sg.guidance.Classifier(plain, lambda x, t, y: x.sum(1)),
        sg.guidance.Classifier(plain, lambda x, t, y: -x.sum(1)),
        sg.guidance.Classifier(plain, lambda x, t, z: x.sum(1), condition=("z",)),
        sg.inverse.DiffPIR(plain, SEEN), sg.inverse.PiGDM(plain, SEEN), sg.inverse.MMPS(plain, SEEN),
        sg.inverse.MMPS(plain, SEEN, iterations=3),
        *(oracle.score(SDE) for oracle in (
            sg.oracles.Gaussian(torch.zeros(3), 1.0), sg.oracles.Gaussian(torch.zeros(3), 2.0),
            sg.oracles.GaussianMixture(torch.eye(3), 0.1), sg.oracles.GaussianMixture(torch.eye(3), 0.2),
            sg.oracles.Empirical(torch.eye(3), 0.1),
        )),
        sg.scores.from_joint_denoiser(net, sg.CLD()), sg.scores.from_velocity_noise(net, sg.CLD()),
        sg.scores.from_velocity_noise(net, sg.CLD(), mixed=0.5),
    ]  # fmt: skip
    assert len({text(score) for score in scores}) == len(scores)
    assert text(sg.from_denoiser(Net(0), sg.VPSDE())) == text(plain)


def test_two_names_one_text_is_not_one_value() -> None:
    """Values of different kinds that print alike, and kinds that have neither fields nor numbers."""
    values = [
        float("inf"), "inf", torch.float32, "torch.float32", Path("a"), "a", {1: 2}, {"1": 2}, {"class": "x"}, {}, [],
        1j, "1j", True, 1.5, None, "None", torch.device("cpu"), "cpu", {1, 2}, [1, 2], b"a", torch.tensor(1.5),
        np.array(["a"]), np.array(["b"]), np.array([1.5]), np.array([{1: 2}], dtype=object), torch.zeros(2),
        torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), np.datetime64("2020-01-01"),
        np.datetime64("2020-01-02"), Fraction(1, 3), Fraction(1, 4), range(3), range(4),
    ]  # fmt: skip
    assert len({text(value) for value in values}) == len(values)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (sg.DDIM(eta=1), sg.DDIM(eta=1.0)),
        (sg.grids.Karras(7), sg.grids.Karras()),
        (sg.VESDE(1, 50), sg.VESDE(1.0)),
    ],
    ids=case_id,
)
def test_whole_numbers_in_the_place_of_floats(a: Any, b: Any) -> None:
    """Equal values have one spec, however their numbers were written."""
    assert a == b
    assert text(a) == text(b)


class Mine(sg.Solver):
    """A solver of someone else's."""

    name, order, prediction, source = "mine", 1, "drift", "here"

    def step(self, k: Any) -> Any:
        return k.x + (k.end.t - k.start.t) * k.evaluate(k.x, k.start)


class MineToo(Mine):
    def step(self, k: Any) -> Any:
        return k.x + 0.5 * (k.end.t - k.start.t) * k.evaluate(k.x, k.start)


MineToo.__qualname__ = "Mine"  # what an edited class looks like


def test_classes_of_ones_own() -> None:
    """Their code has a fingerprint, which stores leave out: programs are compared there."""
    assert text(Mine()) != text(MineToo())
    assert portable(spec(Mine())) == portable(spec(MineToo())) == {"class": "tests.test_identity:Mine"}


def test_scores_around_scores_are_written() -> None:
    """A network that is a score itself, as an oracle's is."""
    law = sg.oracles.Gaussian(torch.zeros(2), 1.0)
    outer = sg.from_score(law.score(sg.VPSDE()), sg.VPSDE())
    written = sg.identity.spec(outer)
    assert written["net"]["class"] == sg.identity.spec(law.score(sg.VPSDE()))["class"]
    assert sg.calibrate(outer, sg.VPSDE(), (16, 2), nfe=2, held_out=16, seed=0).error < 0.1


OF_NO_MODULE = """
class Net:
    def __call__(self, x, t):
        return self.scaled(x)

    def scaled(self, x):
        return 0.9 * x
"""


def test_networks_of_no_module() -> None:
    """What is run by `exec`, as consoles and servers do, has none."""
    names: dict[str, Any] = {}
    exec(OF_NO_MODULE, names)
    net = names["Net"]()
    assert type(net).__call__.__module__ is None

    score = sg.from_noise(net, SDE)
    assert sg.sample(score, SDE, (4, 2), nfe=5, seed=0).status.ok
    assert text(score) == text(sg.from_noise(names["Net"](), SDE))
