"""Whatever a network predicts, in whatever precision and data range, the samples are the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde import time_labels
from tests.conventions import case_id, some_slow
from tests.helpers import (
    ALL,
    DOUBLE,
    F64,
    FAMILIES,
    LINEAR,
    SOLVERS,
    Recorder,
    marginal_std,
    noise_of_any_start,
    sampler,
)

MEAN, STD = torch.linspace(-1, 1, 48, dtype=F64), 0.5
HALVES = [torch.bfloat16, torch.float16]


# --- one data distribution, five kinds of network --------------------------------------------------------------------


def derivatives(process: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """Time derivatives of alpha and sigma, by hand."""
    sde = LINEAR[process]
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    if process in ("vp", "sub-vp"):
        beta = 0.1 + 19.9 * t
        return -beta / 2 * alpha, beta * alpha**2 / ((2 * sigma) if process == "vp" else 1)
    slope = {"ve": math.log(5000) * sigma, "edm": torch.ones_like(t), "flow": torch.ones_like(t)}[process]
    return -torch.ones_like(t) if process == "flow" else torch.zeros_like(t), slope


def network(kind: str, process: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact network for N(MEAN, STD^2) that predicts data, noise, v, flow or score; rounded once, at its end."""
    sde = LINEAR[process]

    def net(x: Tensor, t: Tensor) -> Tensor:
        dtype, x, t = x.dtype, x.double(), t.double()[:, None]
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = (alpha * STD) ** 2 + sigma**2
        data = MEAN + alpha * STD**2 / variance * (x - alpha * MEAN)
        noise = sigma / variance * (x - alpha * MEAN)
        if kind == "flow":
            d_alpha, d_sigma = derivatives(process, t)
            return (d_alpha * data + d_sigma * noise).to(dtype)
        return {
            "data": data, "noise": noise, "v": alpha * noise - sigma * data, "score": -noise / sigma,
        }[kind].to(dtype)  # fmt: skip

    return net


KINDS = {
    "data": sg.from_denoiser,
    "noise": sg.from_noise,
    "v": sg.from_v,
    "flow": sg.from_flow,
    "score": sg.from_score,
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("process", ["vp", "edm", "flow", *some_slow(["sub-vp", "ve"])])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_network_predicts_does_not_matter(
    name: str, process: str, dtype: torch.dtype, tolerance: float
) -> None:
    """The same exact network given as data, noise, v, flow or score: samples agree to 1e-10, in float32 to 1e-5."""
    sde = LINEAR[process]
    # The score (alpha D - x) / sigma^2 of a denoiser loses the digits of D that sigma^2 lies below, whoever computes
    # it: end at a noise level where float32 has some left.
    options = {
        "solver": sampler(name, sde),
        "steps": 40 if name in ("deis3", "rosenbrock3") else 10,  # long steps amplify the rounding
        "grid": "log-snr",
        "t_end": float(sde.time(-2 * math.log(0.02))),
    }
    x = sde.prior_sample((8, 48), seed=0, dtype=dtype)
    runs = {
        kind: sg.sample(make(network(kind, process), sde), sde, x_T=x, seed=0, **options).x
        for kind, make in KINDS.items()
    }
    scale = float(runs["data"].abs().max())
    for kind, got in runs.items():
        assert float((got - runs["data"]).abs().max()) / scale < tolerance, (kind, dtype)


@pytest.mark.parametrize("process", ["vp", "sub-vp", "ve", "edm", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_from_every_network(kind: str, process: str) -> None:
    """A score hands out data, noise, v, flow and score of whatever its network predicts, at a time per sample."""
    sde = LINEAR[process]
    t = torch.tensor([sde.eps, 0.03 * sde.T, 0.5 * sde.T, sde.T], dtype=F64)
    x = torch.linspace(-2, 2, 4 * 48, dtype=F64).reshape(4, 48)
    score = KINDS[kind](network(kind, process), sde)
    got = {target: score.predict(target, x, t) for target in KINDS} | {
        "score": score(x, t),
        "data": score.denoised(x, t),
    }
    rounding = 1e-14 / float(sde.sigma(sde.eps)) ** 2  # of the score from the data, where it is largest
    for target, value in got.items():
        torch.testing.assert_close(value, network(target, process)(x, t), rtol=1e-9, atol=max(rounding, 1e-9))


def test_a_network_trained_in_other_coordinates() -> None:
    """EDM's denoiser, a function of x / alpha and sigma / alpha, runs on VP: x is scaled before the call."""
    sde = LINEAR["vp"]

    def edm_net(y: Tensor, level: Tensor) -> Tensor:
        return MEAN + STD**2 / (STD**2 + level[:, None] ** 2) * (y - MEAN)

    adapted = sg.from_denoiser(
        edm_net, sde, time_label=time_labels.noise_level(sde), input_scale=lambda t: 1 / sde.alpha(t)
    )
    x = sde.prior_sample((8, 48), seed=0, dtype=F64)
    options = {"x_T": x, "solver": "dpm++2m", "steps": 10, "seed": 0}
    got = sg.sample(adapted, sde, **options).x
    expected = sg.sample(sg.from_denoiser(network("data", "vp"), sde), sde, **options).x
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


# --- what the network is told about time -----------------------------------------------------------------------------

ddpm_1000, ddpm_250 = sg.presets.ddpm(1000), sg.presets.ddpm(250)
ve, vp, edm, rf = sg.presets.score_sde_ve_cifar10(), sg.presets.score_sde_vp(), sg.presets.edm(), sg.RectifiedFlowSDE()
VP_MID = 0.5 * (0.1 + 19.9 / 4)  # integrated beta at t = 0.5

# name: process, label, (value at eps, at 0.5 (EDM: at 1.0), at T) written down from the papers' code
LABELS: dict[str, tuple[sg.LinearSDE, time_labels.TimeLabel | None, tuple[float, float, float]]] = {
    "ddpm 1000": (ddpm_1000, time_labels.ddpm(1000), (0, 499, 999)),
    "ddpm 1000, integer": (ddpm_1000, time_labels.ddpm(1000, integer=True), (0, 499, 999)),
    "ddpm 250, integer": (ddpm_250, time_labels.ddpm(250, integer=True), (0, 124, 249)),
    "improved ddpm": (sg.presets.iddpm_cosine(), time_labels.ddpm(integer=True), (0, 499, 999)),
    "score_sde vp": (vp, time_labels.score_sde_vp(), (0.999, 499.5, 999)),
    "score_sde sub-vp": (sg.presets.score_sde_subvp(), time_labels.score_sde_vp(), (0.999, 499.5, 999)),
    "score_sde ve": (ve, time_labels.score_sde_ve(ve), (0.0100008518, math.sqrt(0.5), 50.0)),
    "score_sde ve, discrete": (ve, time_labels.score_sde_ve_discrete(ve, 1001), (1000, 500, 0)),
    "edm, preconditioned": (edm, time_labels.noise_level(edm), (0.002, 1.0, 80.0)),
    "edm, bare": (edm, time_labels.edm_c_noise(edm), (math.log(0.002) / 4, 0.0, math.log(80) / 4)),
    "edm on vp": (
        vp,
        time_labels.noise_level(vp),
        (
            math.sqrt(math.expm1(1e-4 + 9.95e-6)),
            math.sqrt(math.expm1(0.5 * 0.1 + 19.9 / 8)),
            math.sqrt(math.expm1(10.05)),
        ),
    ),
    "rectified flow": (rf, time_labels.flow(), (1e-3, 0.5, 0.999)),
    "flow, times a thousand": (rf, time_labels.flow(1000), (1, 500, 999)),
    "flow from noise": (rf, time_labels.flow_from_noise(), (0.999, 0.5, 0.001)),
    "no label": (vp, None, (1e-3, 0.5, 1.0)),
}


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # a network of no data
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("case", LABELS)
def test_time_labels(case: str, dtype: torch.dtype) -> None:
    """What arrives at the network at the end, in the middle and at the start of sampling equals a written table."""
    sde, label, expected = LABELS[case]
    net = Recorder(lambda x, t: torch.zeros_like(x))
    middle = 1.0 if sde == edm else 0.5
    score = sg.from_noise(net, sde, time_label=label)
    sg.sample(
        score, sde, (2, 3), solver="ddim", grid=[sde.T, middle, sde.eps], seed=0, execution=sg.Execution(dtype=dtype)
    )
    assert net.times == pytest.approx(expected[::-1], rel=1e-5, abs=1e-4 if dtype == torch.float32 else 1e-9)
    integer = all(isinstance(value, int) for value in net.times)
    assert integer == ("integer" in case or "discrete" in case or case == "improved ddpm")
    assert {label.dtype for label in net.labels} == {torch.int64 if integer else dtype}


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("process", "label", "n"),
    [
        (ddpm_1000, time_labels.ddpm(1000, integer=True), 1000),
        (ddpm_250, time_labels.ddpm(250, integer=True), 250),
        (sg.presets.ncsn_cifar10(), time_labels.ddpm(10, integer=True), 10),
    ],
)
def test_a_full_table_is_visited_once(
    process: sg.LinearSDE, label: time_labels.TimeLabel, n: int, dtype: torch.dtype
) -> None:
    """As many calls as a network's table has entries call each index exactly once, from the last to the first."""
    net = Recorder(lambda x, t: torch.zeros_like(x))
    score = sg.from_noise(net, process, time_label=label)
    sg.sample(score, process, (1, 2), solver="ddim", nfe=n, grid="table", seed=0, execution=sg.Execution(dtype=dtype))
    assert net.times == list(range(n - 1, -1, -1))


def test_the_discrete_ladder_of_score_sde_is_visited_once() -> None:
    """score_sde's VE ladder counts from the noise: a thousand even steps from T to 0 meet 0, 1, ..., 999."""
    sde = sg.VESDE(eps=0.0)
    net = Recorder(lambda x, t: torch.zeros_like(x))
    score = sg.from_score(net, sde, time_label=time_labels.score_sde_ve_discrete(sde))
    sg.sample(score, sde, (1, 2), solver="ddim", steps=999, grid="uniform", seed=0)
    assert net.times == list(range(1000))


# --- prior -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.start.PriorWarning")  # a network of no data
@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("fraction", [0.3, 0.7, 1.0])
def test_initial_noise_has_the_scale_of_its_time(process: str, fraction: float) -> None:
    """Where sampling starts, at T or earlier, pure noise has the standard deviation sigma of that time."""
    sde = LINEAR[process]
    t = fraction * sde.T
    x = sde.prior_sample((64, 1000), t=t, seed=0, dtype=F64)
    assert float(x.std()) == pytest.approx(float(sde.sigma(t)), rel=5 / math.sqrt(2 * x.numel()))
    assert abs(float(x.mean())) < 5 * float(sde.sigma(t)) / math.sqrt(x.numel())
    net = Recorder(lambda x, t: torch.zeros_like(x))
    options = {"shape": (64, 1000), "steps": 1, "solver": "ddim", "seed": 0, "execution": DOUBLE}
    if fraction == 1:
        sg.sample(sg.from_noise(net, sde), sde, **options)
    else:
        with pytest.warns(UserWarning, match="from pure noise"):
            sg.sample(sg.from_noise(net, sde), sde, t_start=t, **options)
    assert torch.equal(net.states[0], x)
    assert net.times[0] == t


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 4, 4), (5, 1, 2, 3, 4)])
@pytest.mark.parametrize("process", LINEAR)
def test_prior_density(process: str, shape: tuple[int, ...]) -> None:
    """The prior's density is that of independent normals of standard deviation sigma(T), one value per sample."""
    sde = LINEAR[process]
    x = sde.prior_sample(shape, seed=0, dtype=F64)
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=F64), float(sde.sigma(sde.T)))
    expected = normal.log_prob(x).reshape(5, -1).sum(1)
    got = sde.prior_log_prob(x)
    assert got.shape == (5,)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("process", ["vp", "sub-vp", "cosine", "ve", "edm", "flow", "ddpm"])
def test_the_prior_is_close_to_the_marginal(process: str) -> None:
    """The divergence of the prior from the marginal of data of mean 0 and std 0.5 is negligible on every process."""
    sde = LINEAR[process]
    marginal = torch.distributions.Normal(0.0, marginal_std(sde, 0.5, sde.T))
    prior = torch.distributions.Normal(0.0, sde.prior_std)
    assert float(torch.distributions.kl_divergence(marginal, prior)) < 1e-4


# --- half precision --------------------------------------------------------------------------------------------------


class RoundingNet(nn.Module):
    """The exact network in a precision of its own: x and output are rounded to its parameter's dtype."""

    def __init__(self, kind: str, process: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))
        self.exact, self.inputs, self.labels = network(kind, process), set(), []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.inputs.add(x.dtype)
        self.labels.append(t)
        return self.weight * self.exact(x.double(), t).to(self.weight.dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *product(["ddim", "dpm++2m", "heun", "rk4", "ancestral"], ["data", "noise", "v"]),
        ("pc", "noise"),  # a denoiser's rounding errors count 1 / sigma^2 times as much in a corrector
        ("pc", "v"),
    ],
)
def test_a_half_precision_network_costs_its_own_rounding_only(name: str, kind: str, dtype: torch.dtype) -> None:
    """Against the same network in float32 the samples move by a few of the network's rounding errors."""
    sde = LINEAR["vp"]
    x = sde.prior_sample((16, 48), seed=0)

    def run(net_dtype: torch.dtype) -> tuple[Tensor, RoundingNet]:
        net = RoundingNet(kind, "vp", net_dtype)
        score = KINDS[kind](net, sde)
        res = sg.sample(score, sde, x_T=x, solver=SOLVERS[name], steps=30, grid="log-snr", seed=0)
        assert res.x.dtype == torch.float32
        return res.x, net

    (exact, full), (rounded, half) = run(torch.float32), run(dtype)
    assert full.inputs == {torch.float32}
    assert half.inputs == {dtype}
    for label in half.labels:
        assert label.dtype == torch.float32
    error = float((rounded - exact).abs().max() / exact.abs().max())
    assert 0 < error < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "rk4", "pc", "edm-sde"])
def test_half_precision_samples_are_integrated_in_single(name: str, dtype: torch.dtype) -> None:
    """A bfloat16 x_T comes back in bfloat16, and is what a float32 run of it rounds to."""
    sde = LINEAR["vp"]
    x = sde.prior_sample((8, 48), seed=0, dtype=dtype)
    score = sg.from_denoiser(network("data", "vp"), sde, dtype=torch.float32)
    half = sg.sample(score, sde, x_T=x, solver=name, steps=200, seed=0, record=sg.Record(trajectory="all"))
    single = sg.sample(score, sde, x_T=x.float(), solver=name, steps=200, seed=0)
    assert half.x.dtype == half.trajectory.dtype == dtype
    assert torch.equal(half.x, single.x.to(dtype))
    drawn = sg.sample(score, sde, (4, 48), solver=name, steps=5, seed=0, execution=sg.Execution(dtype=dtype))
    assert drawn.x.dtype == dtype


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, F64], ids=case_id)
def test_the_network_gets_the_samples_dtype(dtype: Any) -> None:
    """A plain function gets x in the dtype of x_T, the time in float32 at least."""
    sde = LINEAR["vp"]
    net = Recorder(network("noise", "vp"))
    sg.sample(sg.from_noise(net, sde), sde, x_T=torch.ones(2, 48, dtype=dtype), solver="pc", steps=3, seed=0)
    assert {x.dtype for x in net.states} == {dtype}
    assert {t.dtype for t in net.labels} == {torch.promote_types(dtype, torch.float32)}


@pytest.mark.parametrize("label", [None, time_labels.ddpm(1000), time_labels.score_sde_vp()])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_a_thousand_times_stay_a_thousand(dtype: torch.dtype, label: time_labels.TimeLabel | None) -> None:
    """No two of a thousand steps look the same to a network of any precision."""
    net = RoundingNet("noise", "ddpm" if label is None else "vp", dtype)
    net.exact = lambda x, t: torch.zeros_like(x)
    score = sg.from_noise(net, ddpm_1000, time_label=label)
    sg.sample(
        score, ddpm_1000, (1, 2), solver="ddim", nfe=1000, grid="table", seed=0, execution=sg.Execution(dtype=dtype)
    )
    times = [float(t[0]) for t in net.labels]
    assert len(set(times)) == 1000
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "ddpm"])
def test_the_schedule_does_not_depend_on_the_dtype(process: str) -> None:
    """Grid and labels of bfloat16, float16 and float32 runs are equal, those of float64 to a rounding error."""
    sde = LINEAR[process]
    labels, grids = {}, set()
    for dtype in (*HALVES, torch.float32, F64):
        net = Recorder(lambda x, t: torch.zeros_like(x))
        score = sg.from_noise(net, sde, time_label=time_labels.noise_level(sde))
        grids.add(
            sg.sample(score, sde, (1, 2), solver="heun", steps=20, seed=0, execution=sg.Execution(dtype=dtype)).times
        )
        labels[dtype] = net.times
    assert len(grids) == 1
    assert labels[torch.bfloat16] == labels[torch.float16] == labels[torch.float32]
    assert labels[torch.float32] == pytest.approx(labels[F64], rel=1e-4)


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.ImplausibleWarning")  # a network of no data
@pytest.mark.parametrize("enable_grad", [False, True])
@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "rk4", "pc", "heun-churn"])
def test_autocast_reaches_the_network_alone(name: str, enable_grad: bool) -> None:
    """Under autocast the network computes in bfloat16 and the solver's arithmetic stays as it is."""
    sde = LINEAR["vp"]
    linear = nn.Linear(3, 3, bias=False)
    linear.weight.data = torch.tensor([[0.5, 0.25, 0.0], [0.0, 0.5, -0.25], [0.125, 0.0, 1.0]])
    outputs = []

    def automatic(x: Tensor, t: Tensor) -> Tensor:
        outputs.append(linear(x))
        return outputs[-1]

    def by_hand(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return (x.bfloat16() @ linear.weight.T.bfloat16()).float()

    def run(net: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        options = {"solver": ALL[name], "steps": 10, "seed": 0, "execution": sg.Execution(enable_grad=enable_grad)}
        return sg.sample(sg.from_noise(net, sde), sde, (4, 3), **options).x

    expected = run(by_hand)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(automatic)
    assert {out.dtype for out in outputs} == {torch.bfloat16}
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# --- data range ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_clipped(name: str, process: str) -> None:
    """Data in [-37, 12] come back in full from every solver: nothing clamps or rescales towards [-1, 1]."""
    sde = LINEAR[process]
    points = torch.tensor([[-37.0, 12.0], [12.0, -37.0]], dtype=F64)
    oracle = sg.oracles.Empirical(points)
    x_T = sde.alpha(sde.T) * points.repeat(8, 1) + sde.prior_sample((16, 2), seed=0, dtype=F64)
    res = sg.sample(oracle.score(sde), sde, x_T=x_T, solver=sampler(name, sde), steps=20, grid="log-snr", seed=0)
    distances = (res.x[:, None] - points).abs().amax(2)
    assert bool((distances.min(1).values < 1e-6).all())
    assert set(distances.argmin(1).tolist()) == {0, 1}


def scaled(name: str, sde: sg.EDMSDE, a: float) -> sg.Solver:
    """The solver whose options with a unit are those of data a times as large."""
    with_a_unit = {
        "edm-sde": sg.Heun(s_churn=40, s_tmin=0.05 * a, s_tmax=50 * a, s_noise=1.003),
        "rosenbrock3": sg.schemes.Rosenbrock(3, sigma_data=0.5 * a),
        "sa-solver": sg.SASolver(window=(0.05 * a, a)),
        "dpm++3m-restart": sg.Restart(sg.DPMSolverPP(3), s_min=0.14 * a, s_max=0.3 * a),
    }
    return with_a_unit[name] if name in with_a_unit else sampler(name, sde)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "er-sde3"])  # its noise scale has a unit
@settings(max_examples=5)
@given(a=st.floats(0.01, 1000))
def test_scaled_data_give_scaled_samples(name: str, a: float) -> None:
    """Data and noise levels a times as large give, seed by seed, samples a times as large."""

    def run(a: float) -> Tensor:
        sde = sg.EDMSDE(0.01 * a, 20 * a)
        oracle = sg.oracles.GaussianMixture(a * torch.tensor([[-1.0, 0.5], [2.0, 0.0]], dtype=F64), [0.2 * a, 0.4 * a])
        solver = scaled(name, sde, a)
        return sg.sample(oracle.score(sde), sde, (8, 2), solver=solver, steps=8, seed=0, execution=DOUBLE).x

    with noise_of_any_start():  # EDM's start is the largest noise level, which is a times as large
        torch.testing.assert_close(run(a) / a, run(1.0), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "ancestral", "pc"])
def test_shifted_data_give_shifted_samples(name: str) -> None:
    """Where the signal's scale is 1, data moved by c give samples moved by c: no range is preferred."""
    sde, c = LINEAR["ve"], 100.0

    def run(c: float) -> Tensor:
        oracle = sg.oracles.GaussianMixture(c + torch.tensor([[-1.0], [1.0]]), 0.2)
        x = c + sde.prior_sample((8, 1), seed=0, dtype=F64)
        return sg.sample(oracle.score(sde), sde, x_T=x, solver=name, steps=20, seed=0).x

    torch.testing.assert_close(run(c) - c, run(0.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [sg.from_noise, sg.from_denoiser, sg.from_v, sg.from_flow])
def test_a_score_is_no_network(make: Any) -> None:
    """What is a score already is not taken for a network's noise or data."""
    score = sg.from_denoiser(lambda x, t: 0 * x, sg.VPSDE())
    with pytest.raises(TypeError, match="is needed, got the score"):
        make(score, sg.VPSDE())
    assert torch.equal(sg.from_score(score, sg.VPSDE())(torch.ones(2, 1), 0.5), score(torch.ones(2, 1), 0.5))


@pytest.mark.parametrize("name", ["x0", "epsilon", "noise_v"])
def test_a_prediction_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"prediction must be one of 'data', 'noise', .*, got '{name}'"):
        sg.Score(lambda x, t: x, LINEAR["vp"], name)


def gradient(x: Tensor) -> Tensor:
    """Of an energy, where gradients are on."""
    return torch.autograd.grad(x.square().sum(), x)[0]


def test_an_energy_s_gradient_is_a_network_where_gradients_are_on() -> None:
    """As the advice says, and in likelihoods by a graph."""
    sde = sg.VPSDE()

    def net(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            return gradient(x.detach().requires_grad_())

    energy, plain = sg.from_noise(net, sde), sg.from_noise(lambda x, t: 2 * x, sde)
    a, b = (sg.sample(score, sde, x_T=torch.full((2, 2), 0.1), nfe=4).x for score in (energy, plain))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="takes a gradient itself without create_graph=True"):
        sg.log_prob(energy, sde, torch.zeros(2, 2))
