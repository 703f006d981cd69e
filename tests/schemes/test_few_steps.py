"""Consistency models and their kin: steps against the published algorithms, and what they do on a perfect network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

import sgm_sde as sg
from sgm_sde.engine.noise import NoiseStream, resolve_seeds
from tests.conventions import case_id
from tests.helpers import DOUBLE, F64, LINEAR

X = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "ddpm"])
def test_consistency_is_the_published_algorithm(process: str) -> None:
    """Song et al.'s algorithm 1: the data, and all of the noise anew; the last call's data are the sample."""
    sde = LINEAR[process]
    times = sg.grids.rule("log-snr")(sde, 3).times
    res = sg.sample(sg.from_denoiser(net, sde), sde, x_T=X, grid=times, solver=sg.schemes.Consistency(), seed=1)
    noise = NoiseStream(resolve_seeds(1, None, 4), "solver", times[0])
    x = X
    for t in times[1:]:
        D = net(x, x)
        x = float(sde.alpha(t)) * D + float(sde.sigma(t)) * noise.normal((4, 3), F64)
    torch.testing.assert_close(res.x, net(x, x), rtol=1e-10, atol=1e-10)
    assert res.nfe == 4


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_is_the_published_algorithm(gamma: float) -> None:
    """Zheng et al.'s strategic stochastic sampling: by DDIM to s below t', and noise from s to t'."""
    sde = sg.VPSDE()
    times = [1.0, 0.6, 0.3, 0.1]
    res = sg.sample(
        sg.from_denoiser(net, sde), sde, x_T=X, grid=times, solver=sg.schemes.TCD(gamma), seed=1, final="none"
    )
    noise = NoiseStream(resolve_seeds(1, None, 4), "solver", times[0])
    x = X
    for before, t in pairwise(times):
        D = net(x, x)
        eps = (x - float(sde.alpha(before)) * D) / float(sde.sigma(before))
        s = (1 - gamma) * t
        a, b = (float(f(s)) for f in (sde.alpha, sde.sigma))
        ratio = float(sde.alpha(t)) / a
        x = ratio * (a * D + b * eps)
        if gamma:
            x = x + (float(sde.sigma(t)) ** 2 - (ratio * b) ** 2) ** 0.5 * noise.normal((4, 3), F64)
    torch.testing.assert_close(res.x, x, rtol=1e-10, atol=1e-10)


def test_the_ends_of_the_family() -> None:
    """eta = 0 and gamma = 0 are DDIM, gamma = 1 is consistency."""
    sde = sg.VPSDE()
    score = sg.from_denoiser(net, sde)
    results = [
        sg.sample(score, sde, x_T=X, nfe=5, grid="log-snr", solver=solver, seed=1).x
        for solver in (
            sg.DDIM(),
            sg.schemes.Consistency(eta=0.0),
            sg.schemes.TCD(0.0),
            sg.schemes.Consistency(),
            sg.schemes.TCD(1.0),
        )
    ]
    for a, b in ((0, 1), (0, 2), (3, 4)):
        torch.testing.assert_close(results[a], results[b], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_a_perfect_consistency_function_samples_the_data(nfe: int) -> None:
    """With the map of the flow itself, of normal data, any number of steps gives the data's law."""
    sde, std = sg.EDMSDE(), 0.5
    score = sg.from_denoiser(lambda x, t: x * std / (std**2 + t[:, None] ** 2).sqrt(), sde)
    x = sg.sample(
        score,
        sde,
        (20000, 1),
        nfe=nfe,
        grid="karras",
        solver=sg.schemes.Consistency(),
        seed=0,
        execution=DOUBLE,
    ).x
    assert float(x.std()) == pytest.approx(std, rel=0.02)


def test_names() -> None:
    """As other libraries spell them; not among the solvers of diffusion models."""
    assert sg.schemes.resolve("lcm") == sg.schemes.resolve("Consistency") == sg.schemes.Consistency()
    assert sg.schemes.resolve_any("TCD") == sg.schemes.TCD()
    assert not {"lcm", "tcd", "consistency"} & set(sg.solvers())
    score = sg.from_denoiser(net, sg.VPSDE())
    named, given = (
        sg.sample(score, sg.VPSDE(), x_T=X, nfe=4, seed=0, solver=solver).x
        for solver in ("lcm", sg.schemes.Consistency())
    )
    assert torch.equal(named, given)


TABLE = sg.DiscreteVPSDE(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64).square().tolist())

TIMESTEPS: list[tuple[int, int, list[int]]] = [  # of a distillation to m, for n network calls: Luo et al.'s by hand
    (50, 1, [999]),
    (50, 2, [999, 499]),
    (50, 3, [999, 679, 339]),
    (50, 4, [999, 759, 499, 259]),
    (50, 8, [999, 879, 759, 639, 499, 379, 259, 139]),
    (4, 4, [999, 749, 499, 249]),
    (30, 4, [989, 758, 494, 263]),  # every 33rd entry, which leaves out the last ten
]


@pytest.mark.parametrize(("m", "n", "expected"), TIMESTEPS)
def test_timesteps_of_the_distillation(m: int, n: int, expected: list[int]) -> None:
    """A run calls the network there; with an end of its own, it has one step more to that."""
    seen: list[float] = []

    def noise(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.append(round(float(label[0]), 6))
        return 0.1 * x

    score = sg.from_noise(noise, TABLE, time_label=sg.time_labels.ddpm(1000))
    rule = sg.grids.Distilled(m)
    sg.sample(score, TABLE, x_T=X, nfe=n, grid=rule, solver="lcm", seed=0)
    assert seen == expected
    seen.clear()
    res = sg.sample(score, TABLE, x_T=X, nfe=n, grid=rule, solver="tcd", seed=0, final="none")
    assert seen == expected
    assert res.times[-1] == TABLE.eps
    if m == 50:
        seen.clear()
        sg.sample(score, TABLE, x_T=X, nfe=n, solver="lcm", seed=0)
        assert seen == expected


def test_a_start_below_leaves_out_the_timesteps_above() -> None:
    """Six tenths of fifty timesteps, three calls: those numbered 0, 10 and 20 of thirty."""
    grid = sg.grids.Distilled(50)(TABLE, 2, t_start=0.6)
    assert [round(1000 * t) - 1 for t in grid.times] == [599, 399, 199]
    assert sg.grids.Distilled(50)(TABLE, 50, t_end=0.0).times[-2:] == (0.02, 0.0)


def test_few_timesteps_and_no_table() -> None:
    """More calls than the distillation knows go to the whole table; other processes have their own grids."""
    solver = sg.schemes.Consistency()
    assert solver.default_grid(TABLE, 49) == sg.grids.Distilled(50)
    assert solver.default_grid(TABLE, 50) == sg.grids.Table()
    assert solver.default_grid(sg.VPSDE(), 4) == sg.grids.Uniform()
    assert solver.default_grid(TABLE, 3, 1.0, 0.3) == sg.grids.Table()


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: sg.grids.Distilled(50)(TABLE, 50), "51 network calls asked of 50 timesteps"),
        (lambda: sg.grids.Distilled(50)(sg.VPSDE(), 4), "has no table of times"),
        (
            lambda: sg.grids.Distilled(1001)(TABLE, 4),
            r"=1001 timesteps of a distillation from a table that has 1000",
        ),
        (lambda: sg.grids.Distilled(50)(TABLE, 3, t_end=0.5), "not above t_end=0.5"),
        (lambda: sg.grids.Distilled(50)(TABLE, 51, t_end=0.0), "51 network calls asked of 50 timesteps"),
        (lambda: sg.grids.Distilled(50)(TABLE, 1, t_start=0.01), r"they begin at t=0.02"),
        (lambda: sg.grids.Distilled(0), "original_steps must be an integer of at least 1"),
    ],
    ids=case_id,
)
def test_what_a_distillation_does_not_know(call: Callable[..., object], match: str) -> None:
    """By the call, with what was asked for and what is there."""
    with pytest.raises(ValueError, match=match):
        call()


def test_tcd_goes_below_to_an_entry_of_the_table() -> None:
    """Number 0.7 i rounded down for i = 759, 499, 259, and below the first entry to the end itself."""
    times = [1.0, 0.76, 0.5, 0.26, 0.001, 0.0005]
    program = sg.schemes.TCD(0.3).compile(TABLE, sg.Grid(times))
    for stage, (entry, end) in zip(program.stages[1:], [(531, 759), (349, 499), (181, 259), (0, 0)], strict=False):
        below, at = (TABLE.nodes([(number + 1) / 1000])[0].noise_level for number in (entry, end))
        sigma = float(TABLE.sigma((end + 1) / 1000))
        drawn = sum(float(c) for _, c in stage.noises)
        assert drawn == pytest.approx(sigma * (1 - (below / at) ** 2) ** 0.5, rel=1e-9, abs=1e-12)
    assert not program.stages[-1].noises or abs(program.stages[-1].noises[0][1]) < 1e-12


def test_misuse() -> None:
    with pytest.raises(ValueError, match="eta must be"):
        sg.schemes.Consistency(eta=2.0)
    with pytest.raises(ValueError, match="gamma must be"):
        sg.schemes.TCD(-0.1)
