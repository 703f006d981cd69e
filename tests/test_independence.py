"""A sample depends on its own seed and on nothing else; a solver keeps no state."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import random
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.engine.noise import NoiseStream
from tests.conventions import some_slow
from tests.helpers import DOUBLE, F64, FAMILIES, LINEAR, SOLVERS, bind, elementwise_score, sampler, stream

# Four steps of a first-order method on VE end far out, and are told of: here they are only compared with one another.
pytestmark = pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")

SEEDS = [7, 2**40 + 1, 1, 0, 2**64 - 1, 2**32 - 1]  # some agree in half of their bits
PROCESSES = ["vp", "ve", "flow"]
CP = sg.PredictorCorrector(sg.DPMSolverPP(), sg.Langevin(n_steps=2), order="CP")
STOCHASTIC = [name for name in FAMILIES if SOLVERS[name].stochastic]


def draw(
    solver: sg.Solver | str,
    process: str = "vp",
    shape: Sequence[int] = (3,),
    seed: object = 0,
    steps: int = 4,
    n: int = 4,
    dtype: torch.dtype = F64,
) -> Tensor:
    """Samples of an event shape from an elementwise score; n of one seed, or as many as there are seeds."""
    sde = LINEAR[process]
    solver = sampler(solver, sde) if isinstance(solver, str) else solver
    batch = len(seed) if isinstance(seed, list) else n
    execution = sg.Execution(dtype=dtype)
    return sg.sample(
        elementwise_score(sde), sde, (batch, *shape), solver=solver, steps=steps, seed=seed, execution=execution
    ).x  # fmt: skip


def conv_net(seed: int = 0) -> nn.Module:
    """A small convolutional network of (x, t) with fixed random weights, which leaves the global generator alone."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
            generator = torch.Generator().manual_seed(seed)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.2, generator=generator)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x) + t[:, None, None, None]))

    with torch.random.fork_rng():
        return Net()


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", some_slow(PROCESSES, fast=("vp", "ve")))
@pytest.mark.parametrize("name", [*FAMILIES, "cp"])
@settings(max_examples=4)
@given(
    order=st.permutations(range(len(SEEDS))),
    cut=st.integers(1, len(SEEDS) - 1),
    shape=st.sampled_from([(), (1,), (3, 5), (17,), (2, 3, 4)]),
)
def test_batch_order_and_chunks_do_not_matter(
    name: str, process: str, order: list[int], cut: int, shape: tuple[int, ...]
) -> None:
    """Seeds one by one, all together, permuted and cut in two give the same samples, bit for bit."""
    solver = CP if name == "cp" else sampler(name, LINEAR[process])
    alone = torch.cat([draw(solver, process, shape, [seed]) for seed in SEEDS])
    assert alone.unique(dim=0).shape == alone.shape
    permuted = [SEEDS[i] for i in order]
    assert torch.equal(draw(solver, process, shape, permuted), alone[list(order)])
    chunks = torch.cat([draw(solver, process, shape, permuted[:cut]), draw(solver, process, shape, permuted[cut:])])
    assert torch.equal(chunks, alone[list(order)])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_batch_size_with_a_convolutional_network(name: str) -> None:
    """The same to 1e-5 with a network whose kernels round differently at another batch size."""
    sde = sg.VPSDE()
    score = sg.from_noise(conv_net(), sde)
    solver = sampler(name, sde)
    together = sg.sample(score, sde, (4, 2, 6, 6), solver=solver, steps=10, seed=[7, 8, 9, 10]).x
    alone = sg.sample(score, sde, (1, 2, 6, 6), solver=solver, steps=10, seed=[7]).x
    assert float((together[0] - alone[0]).norm() / alone.norm()) < 1e-5


@pytest.mark.parametrize("name", STOCHASTIC)
def test_one_seed_for_a_batch(name: str) -> None:
    """An int seeds sample i by (seed, i): small batches are the start of large ones, `[seed]` the first sample."""
    four = draw(name, seed=7)
    assert torch.equal(four[:2], draw(name, seed=7, n=2))
    assert torch.equal(four[:1], draw(name, seed=[7]))
    assert not torch.equal(four, draw(name, seed=8))
    twins = draw(name, seed=[5, 5])
    assert torch.equal(twins[0], twins[1])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_every_draw_is_fresh(name: str) -> None:
    """Every noise of a sample, its start included, is another one: none is used twice."""
    drawn: list[Tensor] = []

    class Spy(sg.engine.noise.NoiseStream):
        def normal(self, *args: object) -> Tensor:
            drawn.append(super().normal(*args))
            return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        for module in (sg.sampling.job, sg.processes.base):
            patch.setattr(module, "NoiseStream", Spy)
        draw(name, shape=(64,), steps=5)
    z = torch.stack(drawn).double().flatten(0, 1)
    assert len(drawn) >= {"edm-sde": 3, "sa-solver": 3, "dpm++3m-restart": 2}.get(name, 6)
    correlation = torch.corrcoef(z) - torch.eye(len(z), dtype=F64)
    assert float(correlation.abs().max()) < 0.65  # 64 numbers: 5 standard errors
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / z.numel())


@pytest.mark.parametrize("name", STOCHASTIC)
def test_precision_does_not_change_the_noise(name: str) -> None:
    """float32 and float64 runs of a seed are the same sample up to rounding."""
    double, single = (draw(name, shape=(33,), seed=1, dtype=dtype) for dtype in (F64, torch.float32))
    assert single.dtype == torch.float32
    assert float((double - single).abs().max() / double.abs().max()) < 1e-4


@dataclasses.dataclass(frozen=True)
class Still(sg.Corrector):
    """Draws noise, and moves nothing."""

    n_steps: int = 3

    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        return x, 0 * z


def test_a_corrector_leaves_the_predictors_noise_alone() -> None:
    """A corrector that moves nothing changes nothing: prior, predictor and corrector draw from streams of their own."""
    predictor = sg.ReverseDiffusion()
    sde = LINEAR["vp"]

    def run(solver: sg.Solver) -> Tensor:
        return sg.sample(lambda x, t: 0 * x, sde, (4, 3), solver=solver, steps=5, seed=0, final="none").x

    assert torch.equal(run(predictor), run(sg.PredictorCorrector(predictor, Still())))


@pytest.mark.parametrize("seed", [0, [1, 2, 3, 4], None])
@pytest.mark.parametrize("name", ["pc", "edm-sde", "ddim"])
def test_the_global_random_state_is_left_alone(name: str, seed: object) -> None:
    """No run reads or advances the generators of torch, NumPy or Python."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    draw(name, seed=seed)
    sg.VPSDE().prior_sample((2, 3), seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()  # noqa: NPY002
    if seed is not None:
        first = draw(name, seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(123)
            assert torch.equal(first, draw(name, seed=seed))


def test_fresh_entropy_is_reported() -> None:
    """Without a seed two runs differ, and each can be drawn again from the seeds in its result."""
    sde = LINEAR["vp"]

    def run(seed: object) -> sg.SampleResult:
        return sg.sample(elementwise_score(sde), sde, (3, 2), solver="ancestral", steps=3, seed=seed)

    first, second = run(None), run(None)
    assert not torch.equal(first.x, second.x)
    assert [i for _, i in first.seeds] == [0, 1, 2]
    assert torch.equal(run(first.seeds[0][0]).x, first.x)


@pytest.mark.parametrize("name", ["pc", "edm-sde", "ddim"])
def test_generators(name: str) -> None:
    """One generator seeds the batch and moves on; one per sample makes each sample its generator's own."""
    sde = LINEAR["vp"]

    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def run(given: object, batch: int = 3) -> Tensor:
        solver = sampler(name, sde)
        return sg.sample(elementwise_score(sde), sde, (batch, 2), solver=solver, steps=3, generator=given).x

    shared = generator(1)
    first, second = run(shared), run(shared)
    assert torch.equal(first, run(generator(1)))
    assert not torch.equal(first, second)
    many = run([generator(s) for s in (4, 5, 6)])
    assert torch.equal(many[[2, 0]], run([generator(6), generator(4)], batch=2))


@pytest.mark.parametrize(
    ("options", "error", "shown"),
    [
        ({"seed": [1, 2]}, ValueError, "2 seeds for 4 samples"),
        ({"seed": -1}, ValueError, "-1"),
        ({"seed": 2**64}, ValueError, str(2**64)),
        ({"seed": 1.5}, TypeError, "1.5"),
        ({"seed": True}, TypeError, "True"),
        ({"seed": [1, 2, 3, "4"]}, TypeError, "'4'"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "not both"),
        ({"generator": [torch.Generator()]}, ValueError, "1 generators for 4 samples"),
        ({"generator": [1, 2, 3, 4]}, TypeError, "int"),
    ],
)
def test_bad_seeds_are_errors(options: dict[str, object], error: type[Exception], shown: str) -> None:
    """A seed that cannot be one per sample is refused, with its value."""
    with pytest.raises(error, match=shown):
        sg.sample(elementwise_score(LINEAR["vp"]), LINEAR["vp"], (4, 2), steps=2, **options)


# --- batch-mates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outlier", [1e6, math.nan])
@pytest.mark.parametrize("name", [*FAMILIES, "cp"])
def test_an_outlier_disturbs_nobody(name: str, outlier: float) -> None:
    """A far-off or broken batch-mate leaves the other samples bit for bit as they were, and is the one reported."""
    sde = LINEAR["vp"]
    solver = CP if name == "cp" else sampler(name, sde)
    x = sde.prior_sample((5, 4), seed=3, dtype=F64)
    spoilt = x.clone()
    spoilt[2] = outlier

    def run(x_T: Tensor) -> sg.SampleResult:
        return sg.sample(elementwise_score(sde), sde, x_T=x_T, solver=solver, steps=9, seed=[1, 2, 3, 4, 5])

    clean = run(x)
    assert clean.status.ok
    if math.isnan(outlier):
        with pytest.warns(sg.sampling.NonFiniteWarning, match="1 of 5 samples"):
            res = run(spoilt)
        assert res.status.samples == (2,)
        assert res.status.time == sde.T
    else:
        res = run(spoilt)
        assert res.status.samples in ((), (2,))  # a start of 1e6 is of no law that the run knows
    others = [0, 1, 3, 4]
    assert torch.equal(res.x[others], clean.x[others])
    assert not torch.equal(res.x[2], clean.x[2])


# --- Langevin correctors ---------------------------------------------------------------------------------------------

FEW = pytest.mark.filterwarnings(
    "ignore::sgm_sde.schemes.LangevinNormWarning"
)  # small states, where the law does not matter


def correct(corrector: sg.Langevin, sde: sg.LinearSDE, score: object, x: Tensor, t: float, times: int = 1) -> Tensor:
    """The corrector alone, again and again at one time."""
    grid = sg.Grid([t])
    model = bind(sg.from_score(score, sde), sde, grid.times)
    move = corrector.corrector(sde, grid, model, stream(len(x), "corrector"), mean=False)
    with torch.no_grad():
        for _ in range(times):
            x = move(x, 0)
    return x


@FEW
@pytest.mark.parametrize("norm", ["sample", "batch", "expected"])
@pytest.mark.parametrize(("process", "t"), [("ve", 0.5), ("vp", 0.2)])
def test_langevin_update_is_the_papers(process: str, t: float, norm: str) -> None:
    """x + eps s + sqrt(2 eps) z with eps = 2 a (r |z|/|s|)^2, a = (alpha at the node / alpha at the next cleaner)^2;
    |z|/|s| is sigma in expectation, where the score is that of the noise alone, and a is left out there."""
    sde, r, s = LINEAR[process], 0.3, torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    x = torch.arange(12, dtype=F64).reshape(4, 3)
    score = torch.arange(1, 5, dtype=F64)[:, None] * s
    z = stream(4, "corrector").normal((4, 3), F64)
    a = float(sde.alpha(t) / sde.alpha(0.0)) ** 2
    noise_norm, score_norm = z.square().sum(1).sqrt(), score.square().sum(1).sqrt()
    if norm == "batch":
        noise_norm, score_norm = noise_norm.mean().expand(4), score_norm.mean().expand(4)
    if norm == "expected":
        noise_norm, score_norm = torch.full((4,), float(sde.sigma(t)), dtype=F64), torch.ones(4, dtype=F64)
        a = 1.0
    eps = (2 * a * (r * noise_norm / score_norm) ** 2)[:, None]
    got = correct(sg.Langevin(snr=r, norm=norm), sde, lambda x, t: score, x, t)
    torch.testing.assert_close(got, x + eps * score + (2 * eps).sqrt() * z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("i, noisy, clean", [(0, 0.9, 0.6), (1, 0.6, 0.1), (2, 0.1, 0.0)])
def test_langevin_scale_between_two_nodes(i: int, noisy: float, clean: float) -> None:
    """With norms of the state the factor a compares the node with the next cleaner one; the own step has none."""
    sde, grid = LINEAR["vp"], sg.Grid([0.9, 0.6, 0.1])
    model = bind(sg.from_score(lambda x, t: torch.ones_like(x), sde), sde, grid.times)
    x, z = torch.zeros(1, 64, dtype=F64), stream(1, "corrector").normal((1, 64), F64)
    a = float(sde.alpha(noisy) / sde.alpha(clean)) ** 2
    of_state = 2 * a * (0.2 * float(z.norm()) / 8) ** 2
    own = 2 * (0.2 * float(sde.sigma(noisy))) ** 2
    for norm, eps in (("sample", of_state), ("expected", own)):
        corrector = sg.Langevin(snr=0.2, norm=norm)
        move = corrector.corrector(sde, grid, model, stream(1, "corrector"), mean=False)
        torch.testing.assert_close(move(x, i), eps + math.sqrt(2 * eps) * z, rtol=1e-12, atol=1e-14)


# As many updates as forget three quarters of any other variance.
@pytest.mark.parametrize(("r", "updates"), [(0.1, 50), (0.4, 10)])
@pytest.mark.parametrize("norm", ["sample", "expected", "batch"])
@pytest.mark.parametrize(("process", "t"), [("ve", 0.5), ("vp", 0.2)])
def test_langevin_is_stationary_at_the_marginal(process: str, t: float, norm: str, r: float, updates: int) -> None:
    """On N(0, v) the corrector's own variance is v / (1 - r^2), with published norms v (1 + a r^2)."""
    sde = LINEAR[process]
    v = float(sde.alpha(t) * 0.5) ** 2 + float(sde.sigma(t)) ** 2
    a = float(sde.alpha(t) / sde.alpha(0.0)) ** 2
    x = math.sqrt(v) * stream(64, "prior").normal((64, 2048), F64)
    data_std = 0.5 if norm == "expected" else 0.0
    updates = math.ceil(updates / a)
    got = correct(sg.Langevin(snr=r, norm=norm, data_std=data_std), sde, lambda x, t: -x / v, x, t, updates)
    known = 1 / (1 - r**2) if norm == "expected" else 1 + a * r**2
    assert float(got.var()) / v == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize("component", [0, 1])
def test_langevin_is_stationary_on_unequal_scales(component: int) -> None:
    """One step size for two scales: each variance v becomes v / (1 - eps / 2v), with eps of the shared norm."""
    sde, r = LINEAR["ve"], 0.1
    v = torch.tensor([1.0, 4.0], dtype=F64)
    known = v
    for _ in range(5):
        eps = 2 * r**2 / (known / v**2).mean()
        known = v / (1 - eps / (2 * v))
    x = v.sqrt().repeat(1024) * stream(64, "prior").normal((64, 2048), F64)
    got = correct(sg.Langevin(snr=r, norm="sample"), sde, lambda x, t: -x / v.repeat(1024), x, 0.5, 150)

    assert float(got[:, component::2].var() / known[component]) == pytest.approx(1, rel=0.02)


@FEW
@pytest.mark.parametrize("norm", ["sample", "expected", "batch"])
def test_only_the_batch_norm_couples_samples(norm: str) -> None:
    """A batch-mate with four times the score moves the others under norm="batch", and only there."""
    x = sg.VESDE().prior_sample((4, 6), seed=0, dtype=F64)
    factor = torch.ones(4, 1, dtype=F64)
    factor[3] = 4
    corrector, sde = sg.Langevin(norm=norm), LINEAR["ve"]
    same = correct(corrector, sde, lambda x, t: -x, x, 0.5)
    mixed = correct(corrector, sde, lambda x, t: -x * factor, x, 0.5)
    assert torch.equal(same[:3], mixed[:3]) == (norm != "batch")
    assert not torch.equal(same[3], mixed[3])


@FEW
@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_a_vanishing_score_is_no_division_by_zero(norm: str) -> None:
    """Where the score is zero a step sized by norms does not move, and its batch-mates do."""
    x = torch.ones(3, 4)
    corrector, sde = sg.Langevin(norm=norm), LINEAR["vp"]
    assert torch.equal(correct(corrector, sde, lambda x, t: 0 * x, x, 0.5), x)
    live = torch.tensor([[1.0], [0.0], [1.0]])
    got = correct(corrector, sde, lambda x, t: -x * live, x, 0.5)
    assert bool(torch.isfinite(got).all())
    assert bool((got[[0, 2]] != x[[0, 2]]).all())
    assert torch.equal(got[1], x[1]) or norm == "batch"


@pytest.mark.parametrize(
    ("norm", "shape", "warns"),
    [
        ("expected", (1, 1), False),
        ("sample", (100, 40), True),
        ("sample", (1, 41), False),
        ("batch", (4, 10), True),
        ("batch", (1, 40), True),
        ("batch", (4, 11), False),
    ],
)
@pytest.mark.parametrize("velocity", [False, True])
def test_norms_of_few_numbers_warn(norm: str, shape: tuple[int, int], warns: bool, velocity: bool) -> None:
    """Once a run, where (1 + 2 / n)^2 is above 1.1: n numbers of a sample or of the batch; of CLD the velocity's."""
    n, d = shape
    sde: sg.SDE = sg.CLD() if velocity else sg.VPSDE()
    score = sg.oracles.Gaussian(torch.zeros(d), 0.25).score(sde)  # type: ignore[arg-type]
    corrector = sg.schemes.VelocityLangevin(norm=norm) if velocity else sg.Langevin(norm=norm)
    solver = sg.PredictorCorrector(sg.EulerMaruyama(), corrector)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sg.sample(score, sde, (n, 2, d) if velocity else shape, solver=solver, steps=20, seed=0)
    assert [w.category for w in caught] == [sg.schemes.LangevinNormWarning] * warns
    assert not warns or f"has {d if norm == 'sample' else n * d} numbers only" in str(caught[0].message)


# --- a solver is a value ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FAMILIES, "cp"])
def test_a_solver_can_be_used_again(name: str) -> None:
    """The same object gives the same samples after runs on other grids, processes and batch sizes."""
    solver = CP if name == "cp" else sampler(name, LINEAR["vp"])
    first = draw(solver, "vp", seed=[1, 2])
    draw(solver, "ve", seed=[1, 2, 3], steps=7)
    draw(solver, "vp", shape=(5,), seed=[9], steps=2)
    assert torch.equal(first, draw(solver, "vp", seed=[1, 2])), name


def test_a_solver_can_be_shared_by_threads() -> None:
    """Eight threads on one solver object get what one thread gets, bit for bit."""
    jobs = [(name, "vp", steps) for steps in (3, 6) for name in FAMILIES]

    def run(job: tuple[str, str, int]) -> Tensor:
        name, process, steps = job
        return draw(sampler(name, LINEAR[process]), process, seed=[steps, 1, 2], steps=steps)

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, jobs * 2))
    for job, x, y in zip(jobs * 2, alone * 2, together, strict=True):
        assert torch.equal(x, y), job


def unpickled(value: Any) -> Any:
    """The value, written and read."""
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("name", [*FAMILIES, "cp"])
@pytest.mark.parametrize("copied", [copy.deepcopy, dataclasses.replace, unpickled])
def test_solvers_are_values(name: str, copied: Callable[..., Any]) -> None:
    """A copied, replaced or unpickled solver equals the original, compiles to its program and samples the same."""
    solver = CP if name == "cp" else sampler(name, LINEAR["vp"])
    grid = sg.grids.LogSNR()(LINEAR["vp"], 3)
    twin = copied(solver)
    assert twin == solver
    assert hash(twin) == hash(solver)
    assert twin.compile(LINEAR["vp"], grid) == solver.compile(LINEAR["vp"], grid)
    assert torch.equal(draw(twin, seed=[1]), draw(solver, seed=[1]))


@pytest.mark.parametrize("name", [*FAMILIES, "cp"])
def test_programs_are_values(name: str) -> None:
    """Pickled, and as JSON."""
    solver = CP if name == "cp" else sampler(name, LINEAR["vp"])
    program = solver.compile(LINEAR["vp"], sg.grids.LogSNR()(LINEAR["vp"], 3))
    assert unpickled(program) == program
    assert sg.Program.from_json(program.to_json()) == program


@pytest.mark.parametrize("process", [name for name in LINEAR if name != "schedule"])
@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled])
def test_processes_and_grids_are_values(process: str, copied: Callable[..., Any]) -> None:
    """A process and a grid survive copy and pickle, also after use has filled the process' tables."""
    sde = LINEAR[process]
    grid = sg.grids.LogSNR()(sde, 3)
    twin = copied((sde, grid))
    assert twin == (sde, grid)
    assert float(twin[0].sigma(0.3)) == float(sde.sigma(0.3))


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_noise_is_the_same_on_every_device(device: str) -> None:
    """To the last bit, whatever torch's default device is: numbers are drawn on the CPU, and moved."""
    known = NoiseStream([(3, 0), (3, 1)], "solver").normal((2, 5), torch.float32, "cpu")
    with torch.device("meta"):
        moved = NoiseStream([(3, 0), (3, 1)], "solver").normal((2, 5), torch.float32, device)
    assert moved.device.type == device
    assert torch.equal(moved.cpu(), known)
    assert torch.equal(
        NoiseStream([(3, 0), (3, 1)], "solver").normal((2, 5), torch.float64, device).cpu(), known.double()
    )


@pytest.mark.parametrize("name", ["euler-maruyama", "dpm++2m", "heun"])
def test_the_step_that_spoils_a_sample_is_found(name: str) -> None:
    """A network that fails for one sample below a time: the status names the first node beyond, noise and corrector
    being drawn again as they were; one that fails once only is reported at the end, without a step."""
    sde = LINEAR["vp"]
    solver = sg.PredictorCorrector(sampler(name, sde), sg.Langevin(0.1))
    grid = sg.grids.Uniform()(sde, 8)
    good = elementwise_score(sde)
    failing, repeats = [True], [True]

    def net(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = good(x, t)
        if failing[0] and float(t[0]) < 0.5 * (grid.times[4] + grid.times[3]):
            out = out.clone()
            out[2] = math.nan
            failing[0] = repeats[0]
        return out

    def run() -> sg.SampleResult:
        score = sg.from_score(net, sde)
        return sg.sample(score, sde, (4, 3), solver=solver, grid=grid, seed=5, final="none", execution=DOUBLE)

    with pytest.warns(sg.sampling.NonFiniteWarning, match="1 of 4 samples"):
        res = run()
    assert res.status.samples == (2,)
    assert res.status.time == grid.times[4]
    assert "after the step from" in res.status.message
    repeats[0] = False
    with pytest.warns(sg.sampling.NonFiniteWarning, match="does not repeat itself"):
        res = run()
    assert (res.status.time, res.status.samples) == (grid.times[-1], (2,))
