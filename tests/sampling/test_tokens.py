"""Times for each token, frame or pixel: coefficients, grids, and runs against the scalar ones of each token."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.engine.lowering import lower
from sgm_sde.engine.tokens import align
from sgm_sde.grids import Grid, TokenGrid
from sgm_sde.schemes.base import ADAPTIVE, REGISTRY
from tests.conventions import case_id, some_slow
from tests.helpers import DOUBLE, F64, LINEAR, sampler

X = torch.randn(3, 4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
CORRECTED = {"pc"}


def apart(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser that mixes no tokens, nonlinear in x and different at each time."""
    t = t.to(x.dtype)
    t = t if t.ndim == x.ndim else t.reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x * (1 + t))


def grid_of(sde: Any, steps: int = 5, start: float | None = None) -> Grid:
    """Times in the process' own way."""
    return sg.grids.rule(sde.default_grid)(sde, steps, start)


# ----------------------------------------------------------------------------------------------- processes and scores


def values_at(sde: Any, score: sg.Score, x: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Everything of a process and a score that takes times, by name, each with the shape of x."""
    return {
        "f": sde.f(x, t),
        "mean": sde.marginal(x, t)[0],
        "std": sde.marginal(x, t)[1].expand_as(x),
        "diffusion": sde.diffusion(x, t),
        "score": score(x, t),
        "noise": score.predict("noise", x, t),
        "drift": sde.reverse(score).f(x, t),
        "up": sde.transition(0.5 * t, t)[0].expand_as(x),
    }


@pytest.mark.parametrize("process", sorted(LINEAR))
def test_processes_at_times_of_tokens(process: str) -> None:
    """Everything that takes (B,) takes the rank of x, and gives each token what it gives at its own time."""
    sde = LINEAR[process]
    t = torch.tensor([0.9, 0.5, 0.2, 0.05], dtype=F64)
    rank = t.reshape(1, 4, 1)
    score = sg.from_denoiser(apart, sde)
    whole = values_at(sde, score, X, rank)
    for j, s in enumerate(t):
        alone = values_at(sde, score, X[:, j : j + 1], s)
        for name, value in alone.items():
            torch.testing.assert_close(whole[name][:, j : j + 1], value, rtol=1e-12, atol=1e-12, msg=name)


def test_times_are_never_guessed() -> None:
    """(B,) is one a sample, whatever else has that length."""
    sde, square = sg.VPSDE(), torch.ones(3, 3)
    t = torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(sde.f(square, t)[:, 0], sde.f(square, t[:, None])[:, 0])
    assert torch.equal(sde.f(square, t[None])[0], sde.f(square, t)[:, 0])


@pytest.mark.parametrize("shape", [(3, 1, 1), (4,), (2, 3), (3, 2)], ids=case_id)
def test_times_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    sde, square = sg.VPSDE(), torch.ones(3, 3)

    with pytest.raises(ValueError, match="or the rank of x with ones where times are shared,"):
        sde.f(square, torch.full(shape, 0.5))


def test_processes_with_matrices_take_one_time_a_sample() -> None:
    """And say so."""
    t = torch.full((1, 4, 1), 0.5, dtype=F64)
    with pytest.raises(ValueError, match="one time for each sample"):
        sg.CLD().f(X[:, :2], t[:, :2])


@pytest.mark.parametrize(
    "oracle",
    [sg.oracles.Gaussian(torch.zeros(4, 2), 0.5), sg.oracles.GaussianMixture(torch.randn(3, 4, 2), 0.5)],
    ids=case_id,
)
def test_densities_take_one_time_a_sample(oracle: sg.oracles.Oracle) -> None:
    """And say so."""
    t = torch.full((1, 4, 1), 0.5, dtype=F64)

    for function in (oracle.score(sg.VPSDE()), lambda x, t, o=oracle: o.log_prob(x, sg.VPSDE(), t)):
        with pytest.raises(ValueError, match=r"t has shape \((1|3), 4, 1\), expected \(\) or \(3,\) to go with x"):
            function(X, t)


@pytest.mark.parametrize("kind", ["plain", "interval", "function", "rescaled", "apg", "threshold"])
def test_guidance_of_tokens(kind: str) -> None:
    """Guided scores take times of tokens; those whose factor is a number give each token that of its own time."""
    sde = sg.VPSDE()
    score = sg.from_denoiser(lambda x, t, y: apart(x, t) * y.reshape(-1, 1, 1), sde)
    scale: Any = {"function": lambda level: 1 + 1 / (1 + level)}.get(kind, 2.0)
    guided: Any = sg.guidance.ClassifierFree(
        score, scale, null={"y": 0.5}, interval=(0.3, 3.0) if kind == "interval" else None
    )
    wrap: Any = {
        "rescaled": lambda s: sg.guidance.Rescaled(s, 0.7),
        "apg": sg.guidance.APG,
        "threshold": lambda s: sg.guidance.Thresholded(s, 0.9),
    }.get(kind, lambda s: s)
    guided = wrap(guided)
    y = torch.ones(3, dtype=F64)
    t = torch.tensor([0.9, 0.5, 0.2, 0.05], dtype=F64)
    whole = guided(X, t.reshape(1, 4, 1), y=y)
    equal = guided(X, torch.full((1, 4, 1), 0.5, dtype=F64), y=y)
    torch.testing.assert_close(equal, guided(X, torch.tensor(0.5, dtype=F64), y=y), rtol=1e-10, atol=1e-10)
    if kind in ("plain", "interval", "function"):
        for j, s in enumerate(t):
            torch.testing.assert_close(whole[:, j], guided(X, s, y=y)[:, j], rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")
@pytest.mark.parametrize("process", ["vp", "ddpm", *some_slow(["edm", "flow"])])
@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in CORRECTED])
def test_each_token_is_its_own_scalar_run(name: str, process: str) -> None:
    """Tokens of four different columns, one of them late and one that never moves, under a network that mixes none."""
    sde = LINEAR[process]
    solver = sampler(name, sde)
    n, table = 5, sg.grids.rule(sde.default_grid)
    columns = [
        table(sde, n).times,
        table(sde, n, sde.T, 2 * sde.eps if process != "ddpm" else None).times,
    ]
    late = [columns[0][0]] * 2 + list(columns[0])
    rows = len(late)
    still = [sde.T / 2] * rows
    padded = [list(c) + [c[-1]] * (rows - len(c)) for c in (*columns, late, still)]
    grid = TokenGrid(torch.tensor(padded, dtype=F64).T[:, :, None])
    score = sg.from_denoiser(apart, sde)
    x_T = sde.prior_std * X
    run = sg.sample(score, sde, x_T=x_T, grid=grid, solver=solver, seed=1)
    assert run.x.isfinite().all()
    for j, column in enumerate((*columns, columns[0])):
        alone = sg.sample(score, sde, x_T=x_T, grid=column, solver=solver, seed=1).x
        scale = 1 + float(alone.abs().max())
        assert float((run.x - alone)[:, j].abs().max()) < 1e-10 * scale, (j, name)
    assert torch.equal(run.x[:, 3], x_T[:, 3])


@pytest.mark.parametrize("final", ["denoise", "mean", "none"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++3m", "heun", "rk4", "euler-maruyama", "sde-dpm++2m", "edm-sde"])
def test_equal_columns_are_the_scalar_run(solver: str, final: str) -> None:
    """The program is that of the scalar run, whose network sees all tokens at one time."""
    sde = sg.VPSDE()
    grid = grid_of(sde, 6)
    score = sg.from_denoiser(lambda x, t: torch.tanh(x.mean(1, keepdim=True) + x), sde)
    options = {"x_T": X, "solver": solver, "seed": 2, "final": final}
    scalar = sg.sample(score, sde, grid=grid, **options)
    times = torch.tensor(grid.times, dtype=F64).reshape(-1, 1, 1)
    for run in (
        sg.sample(score, sde, grid=TokenGrid(times), **options),
        sg.sample(score, sde, grid=TokenGrid(times.expand(-1, 4, 1)), **options),
        sg.sample(score, sde, grid=TokenGrid.staggered(grid, torch.zeros(4, 1, dtype=torch.long)), **options),
    ):
        torch.testing.assert_close(run.x, scalar.x, rtol=1e-12, atol=1e-12)
        assert (run.nfe, run.network_evals) == (scalar.nfe, scalar.network_evals)


@pytest.mark.parametrize("solver", ["dpm++2m", "sde-dpm++2m"])
def test_samples_are_independent(solver: str) -> None:
    """Permuted, alone, beside an outlier."""
    sde = sg.VPSDE()
    score = sg.from_denoiser(lambda x, t: torch.tanh(x + x.mean(1, keepdim=True)), sde)
    grid = TokenGrid.staggered(grid_of(sde), torch.arange(4)[:, None])
    seeds = [(5, i) for i in range(3)]
    run = sg.sample(score, sde, x_T=X, grid=grid, solver=solver, seed=seeds)
    back = sg.sample(score, sde, x_T=X.flip(0), grid=grid, solver=solver, seed=seeds[::-1])
    alone = sg.sample(score, sde, x_T=X[1:2], grid=grid, solver=solver, seed=seeds[1:2])
    torch.testing.assert_close(back.x.flip(0), run.x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(alone.x, run.x[1:2], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("x_T", [X, None], ids=["states", "prior"])
def test_parts_of_a_batch_are_the_batch(x_T: Tensor | None, size: int) -> None:
    """`batch_size=` bounds the samples that the network sees at a time, and changes none; their conditions follow."""
    sde = sg.VPSDE()
    seen: list[int] = []

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return apart(x, t) * y.reshape(-1, 1, 1)

    score = sg.from_denoiser(net, sde)
    grid = TokenGrid.staggered(grid_of(sde), torch.arange(4)[:, None])
    start = {"shape": X.shape} if x_T is None else {"x_T": x_T}
    dtype = None if x_T is not None else F64

    def run(batch_size: int | None) -> sg.SampleResult:
        labels = {"y": sg.PerSample(torch.tensor([1.0, 0.5, 0.2], dtype=F64))}
        execution = sg.Execution(batch_size=batch_size, dtype=dtype)
        return sg.sample(
            score, sde, grid=grid, solver="ancestral", seed=3, model_kwargs=labels, execution=execution, **start
        )

    whole = run(None)
    seen.clear()
    got = run(size)
    torch.testing.assert_close(got.x, whole.x, rtol=1e-14, atol=1e-14)
    assert max(seen) == size
    assert (got.nfe, got.network_evals) == (whole.nfe, whole.network_evals)


@pytest.mark.parametrize(
    ("solver", "rule", "order"),
    [("ddim", "log-snr", 1), ("dpm++2m", "log-snr", 2), ("dpm++3m", "log-snr", 3), ("dpm++3s", "log-snr", 3),
     ("unipc3", "log-snr", 4), ("heun2", "uniform", 2), ("rk4", "uniform", 4)],
)  # fmt: skip
def test_orders(solver: str, rule: str, order: int) -> None:
    """Two tokens that move at different speeds, under a network that mixes them."""
    sde = sg.VPSDE()
    score = sg.from_denoiser(lambda x, t: torch.tanh(x.mean(1, keepdim=True) + 0.5 * x), sde)

    def end(n: int) -> Tensor:
        columns = [sg.grids.rule(rule)(sde, n, 0.9, t_end).times for t_end in (0.1, 0.4)]
        grid = TokenGrid(torch.tensor(columns, dtype=F64).T[:, :, None])
        return sg.sample(score, sde, x_T=X[:, :2], grid=grid, solver=solver, final="none").x

    exact = end(512)
    errors = [float((end(n) - exact).abs().max()) for n in (16, 32, 64)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert max(slopes) > order - 0.35, (errors, slopes)


def test_one_token_after_the_other() -> None:
    """A late token's network call sees what the earlier ones have become, and its own time."""
    sde = sg.VPSDE()
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return torch.tanh(x.cumsum(1))

    grid = TokenGrid.staggered([1.0, 0.5, 0.001], torch.tensor([[0], [2]]))
    run = sg.sample(sg.from_denoiser(net, sde), sde, (3, 2, 2), grid=grid, solver="ddim", seed=0, execution=DOUBLE)
    assert run.nfe == 5
    assert [t.shape for t in seen] == [(3, 2, 1)] * 5
    expected = [[1, 1], [0.5, 1], [1e-3, 1], [1e-3, 0.5], [1e-3, 1e-3]]
    torch.testing.assert_close(torch.stack(seen)[:, 0, :, 0], torch.tensor(expected, dtype=F64))

    # By hand: two DDIM steps of the first token, then two of the second given the first at its last time.
    z = sde.prior_sample((3, 2, 2), seed=0, dtype=F64)
    first, second = z[:, 0], z[:, 1]

    def step(x: Tensor, D: Tensor, s: float, t: float) -> Tensor:
        (a, b), (c, d) = ((float(sde.alpha(at)), float(sde.sigma(at))) for at in (s, t))
        return c * D + d * (x - a * D) / b

    for s, t in ((1.0, 0.5), (0.5, 0.001)):
        first = step(first, torch.tanh(first), s, t)
    for s, t in ((1.0, 0.5), (0.5, 0.001)):
        second = step(second, torch.tanh(first + second), s, t)
    end = torch.tanh(torch.stack([first, second], 1).cumsum(1))
    torch.testing.assert_close(run.x, end, rtol=1e-9, atol=1e-9)


def test_frames_given() -> None:
    """Tokens that never move are given data: at time 0 if need be, where nothing is converted."""
    sde = sg.VPSDE()
    times = torch.tensor(grid_of(sde).times, dtype=F64)
    grid = TokenGrid(torch.stack([torch.zeros_like(times), times], 1)[:, :, None])
    score = sg.from_noise(lambda x, t: torch.tanh(x - x[:, :1]), sde)
    x = X[:, :2].clone()
    run = sg.sample(score, sde, x_T=x, grid=grid, solver="dpm++2m", seed=0)
    assert torch.equal(run.x[:, 0], x[:, 0])
    assert bool(run.x.isfinite().all())


def test_pixels_and_labels() -> None:
    """A time for each pixel of an image with one channel; a time label maps it to what the network expects."""
    sde = sg.VPSDE()
    labels: list[Tensor] = []

    def net(x: Tensor, label: Tensor) -> Tensor:
        labels.append(label)
        return 0.1 * x

    score = sg.from_noise(net, sde, time_label=lambda t: 999 * t[:, 0])
    delays = torch.arange(2)[:, None] + torch.arange(3)
    grid = TokenGrid.staggered(grid_of(sde, 3), delays[None])
    run = sg.sample(score, sde, (2, 1, 2, 3), grid=grid, seed=0)
    assert run.x.shape == (2, 1, 2, 3)
    assert labels[0].shape == (2, 2, 3)
    assert run.nfe == 3 + 3 + 1
    assert len(run.times) == 7


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")
@pytest.mark.parametrize("kind", ["network", "apg", "threshold"])
@pytest.mark.parametrize("process", ["vp", "edm", "flow", "ddpm"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "heun", "euler-maruyama", "sde-dpm++2m"])
def test_a_token_that_stands_still_stays_whatever_is_said_of_it(solver: str, process: str, kind: str) -> None:
    """Data at time 0, where predictions are not numbers: they stay to the last bit, and the others are as alone."""
    sde = LINEAR[process]
    times = torch.tensor(grid_of(sde, 4).times, dtype=F64)
    grid = TokenGrid(torch.stack([torch.zeros_like(times), times], 1)[:, :, None])

    def net(x: Tensor, t: Tensor) -> Tensor:
        t = t if t.ndim == x.ndim else t.reshape(-1, 1, 1)
        return torch.tanh(x) + (0 / t if kind == "network" else 0)

    score: Any = sg.from_noise(net, sde)
    if kind == "threshold":
        score = sg.guidance.Thresholded(score)
    if kind == "apg":
        score = sg.guidance.APG(sg.guidance.Auto(score, sg.from_noise(lambda x, t: 0.5 * net(x, t), sde), 2.0), eta=1.0)
    x = sde.prior_std * X[:, :2]
    run = sg.sample(score, sde, x_T=x, grid=grid, solver=solver, seed=3)
    alone = sg.sample(score, sde, x_T=x, grid=times.tolist(), solver=solver, seed=3).x
    assert run.x.isfinite().all()
    assert torch.equal(run.x[:, 0], x[:, 0])
    torch.testing.assert_close(run.x[:, 1], alone[:, 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["euler-maruyama", "sde-dpm++2m", "seeds2", "heun-churn"])
def test_memory_does_not_grow_with_the_rows(solver: str) -> None:
    """However late a token is, no noise waits for it."""
    sde = sg.VPSDE()
    method = sampler(solver, sde)

    def slots(n: int) -> tuple[int, int]:
        times = torch.tensor(grid_of(sde, n).times, dtype=F64)
        grid = TokenGrid.staggered(times.tolist(), [0, 1, n // 2, n])
        aligned = align(grid.times.numpy(), lambda column: method.compile(sde, Grid(column)))
        plan = lower(aligned.program, [(0.0, 1.0)] * len(aligned.program.stages))
        assert len(aligned.draws) == len({m for stage in aligned.program.stages for m, _ in stage.noises})
        return plan.n_slots, plan.n_registers

    assert slots(8) == slots(32)
    assert max(slots(32)) <= 6


def test_a_grid_is_a_value() -> None:
    """Equal to its copies, of numbers of its own that nobody changes, and made again from its spec."""
    times = torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.5, 0.25]])
    kept = times.clone()
    grid = TokenGrid(times)
    times[0] = 0.0
    grid.times[0] = 0.0
    assert torch.equal(grid.times, kept.double())
    same = TokenGrid(kept.double())
    text = json.dumps(grid.spec())
    for other in (same, copy.deepcopy(grid), copy.copy(grid), pickle.loads(pickle.dumps(grid)), sg.from_spec(text)):
        assert other == grid
        assert hash(other) == hash(grid)
        assert torch.equal(other.times, grid.times)
    for another in (TokenGrid(0.5 * kept), TokenGrid(kept[:, :, None]), "grid"):
        assert another != grid
    assert TokenGrid(kept).spec() != TokenGrid(0.5 * kept).spec()
    for change in (lambda: setattr(grid, "times", kept), lambda: delattr(grid, "_shape")):
        with pytest.raises(FrozenInstanceError, match="not to be changed"):
            change()


# ------------------------------------------------------------------------------------------------------------ misuse


@pytest.mark.parametrize("name", [*ADAPTIVE, "pc"])
def test_refused_by_name(name: str) -> None:
    sde = sg.VPSDE()
    grid = TokenGrid.staggered(grid_of(sde), torch.arange(4)[:, None])
    with pytest.raises(ValueError, match=r"finds its own steps|moves states between steps"):
        sg.sample(sg.from_denoiser(apart, sde), sde, x_T=X, grid=grid, solver=name)


DOWN = torch.tensor([[1.0, 1.0], [0.5, 0.5]])


@pytest.mark.parametrize(
    "times, error, match",
    [
        ([1.0, 0.5], TypeError, "times must be"),
        (torch.ones(3), ValueError, "two rows or more"),
        (DOWN.flip(0), ValueError, "from row 0 to row 1"),
        (torch.cat([DOWN, DOWN[1:]]), ValueError, "none does from row 1 to the next"),
        (-DOWN, ValueError, "not negative"),
    ],
    ids=["list", "one row", "rising", "no step", "negative"],
)
def test_times_of_tokens_are_checked(times: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        TokenGrid(times)


def test_misuse() -> None:
    sde = sg.VPSDE()
    score = sg.from_denoiser(apart, sde)
    grid = TokenGrid.staggered(grid_of(sde), torch.arange(4)[:, None])
    with pytest.raises(ValueError, match="some tokens start below T=1"):
        sg.sample(score, sde, (3, 4, 2), grid=TokenGrid(0.5 * grid.times), solver="ddim")
    with pytest.raises(TypeError, match="need a LinearSDE"):
        sg.sample(lambda x, t: x, sg.CLD(), x_T=X[:, :2], grid=grid)
    with pytest.raises(ValueError, match="beyond T=1"):
        sg.sample(score, sde, x_T=X, grid=TokenGrid(2 * grid.times))
    with pytest.raises(ValueError, match="delays must be integers"):
        TokenGrid.staggered([1.0, 0.5], torch.tensor([0.5]))
    broken = sg.from_denoiser(lambda x, t: x / 0, sde)
    with pytest.warns(sg.sampling.NonFiniteWarning, match="3 of 3 samples"):
        assert not sg.sample(broken, sde, x_T=X, grid=grid, solver="ddim").status


@pytest.mark.parametrize(
    "options, match",
    [
        ({"x_T": X, "nfe": 5}, r"nfe=5 does not go with a TokenGrid"),
        ({"x_T": X, "noise": "path"}, r"noise='path' is not there on a TokenGrid"),
        ({"x_T": X, "execution": sg.Execution(parallel=4)}, r"parallel=4 does not go .* batch_size, dtype and device"),
        ({"x_T": X, "record": sg.Record(trajectory="all")}, "trajectory='all' does not go .* keep no record"),
        ({"x_T": X[:, :3]}, r"times \(n \+ 1, \*\) with a length of \(3, 2\) or 1 on each axis"),
        ({"x_T": X[:, 0]}, r"times \(n \+ 1, \*\)"),
        ({}, "give shape="),
    ],
    ids=case_id,
)
def test_options_that_do_not_go_with_times_of_tokens(options: dict[str, object], match: str) -> None:
    sde = sg.VPSDE()
    score = sg.from_denoiser(apart, sde)
    grid = TokenGrid.staggered(grid_of(sde), torch.arange(4)[:, None])

    with pytest.raises(ValueError, match=match):
        sg.sample(score, sde, grid=grid, **options)


def test_a_scale_per_sample_within_an_interval() -> None:
    """Each token asks for its own level and takes its sample's scale: a sample alone is the same."""
    sde = sg.VPSDE()

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(x) * (1 + y.reshape(-1, 1))

    columns = torch.tensor([[1.0, 0.7, 0.4, 0.1, 0.05, 0.01], [1.0, 1.0, 0.6, 0.4, 0.1, 0.02]], dtype=F64).T
    grid = TokenGrid(columns)
    x, scales, labels = X[:2, :2, 0], torch.tensor([2.0, 4.0], dtype=F64), torch.tensor([1.0, 2.0], dtype=F64)

    def run(rows: slice) -> Tensor:
        score = sg.guidance.ClassifierFree(
            sg.from_denoiser(net, sde), sg.PerSample(scales[rows]), null={"y": 0.0}, interval=(0.2, 2.0)
        )
        kwargs = {"y": sg.PerSample(labels[rows])}
        return sg.sample(score, sde, x_T=x[rows], solver="ddim", grid=grid, seed=[0, 1][rows], model_kwargs=kwargs).x

    alone = torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    torch.testing.assert_close(run(slice(0, 2)), alone, rtol=1e-12, atol=1e-12)


def test_a_network_that_writes_into_its_state_leaves_the_caller_s() -> None:
    """It is refused, and x_T stays as it was."""
    sde = sg.VPSDE()
    x = X[:, :2, 0].clone()
    before = x.clone()
    with pytest.raises(ValueError):
        sg.sample(
            sg.from_noise(lambda x, t: x.mul_(1.1), sde), sde, x_T=x, solver="ddim", seed=0,
            grid=TokenGrid(torch.tensor([[1.0, 1.0], [0.5, 0.7], [0.1, 0.1]], dtype=F64)),
        )  # fmt: skip
    assert torch.equal(x, before)


@pytest.mark.parametrize("delays", [[0, 1, 0, 1], [0, 0, 1, 1]], ids=case_id)
def test_no_samples(delays: Any) -> None:
    """A batch of none, also where tokens draw their noises at different times."""
    grid = TokenGrid.staggered([1.0, 0.5, 0.1], delays)
    score = sg.from_noise(lambda x, t: x, sg.VPSDE())
    res = sg.sample(score, sg.VPSDE(), x_T=torch.zeros(0, 4), grid=grid, solver="ancestral", seed=0)
    assert (res.x.shape, res.status.ok) == ((0, 4), True)
