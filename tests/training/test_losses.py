"""Training losses against closed forms on Gaussian data, published formulas, and what the parts promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.processes.predictions import MarginalValues, convert, weights
from sgm_sde.training import (
    EDM,
    EMA,
    WEIGHTINGS,
    Importance,
    LogNormal,
    MinSNR,
    PosteriorMean,
    Table,
    Times,
    Uniform,
    Weighting,
    denoising_score_matching,
    score_matching,
)
from tests.conventions import case_id, some_slow
from tests.helpers import F64, LINEAR

NETWORKS = ("noise", "data", "v", "flow", "score")
MEAN, STD = 0.4, 0.7
ALL_WEIGHTINGS: dict[str, str | Weighting] = {
    **{name: name for name in WEIGHTINGS},
    "edm": EDM(0.6),
    "min-snr": MinSNR(5.0),
    "posterior mean": PosteriorMean(n=50),
    "posterior mean, plain": PosteriorMean("none", n=50),
}
TABLES: dict[str, sg.LinearSDE] = {"ddpm": LINEAR["ddpm"], "ncsn": LINEAR["ncsn"]}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernel(sde: sg.LinearSDE, t: Tensor) -> MarginalValues:
    return sde.values(t)


def gauss_hermite() -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of standard normals with weights that integrate polynomials of degree 5 in each exactly."""
    nodes, w = np.polynomial.hermite_e.hermegauss(3)
    z, w = torch.from_numpy(nodes), torch.from_numpy(w / w.sum())
    return z.repeat_interleave(3)[:, None], z.repeat(3)[:, None], (w[:, None] * w).reshape(-1)


def exact_score(x: Tensor, sde: sg.LinearSDE, t: Tensor) -> Tensor:
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    return -(x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)


class Perturbed:
    """The exact prediction p of the Gaussian's score, made (1 + theta_0) p + theta_1."""

    def __init__(self, sde: sg.LinearSDE, prediction: str, theta: Tensor) -> None:
        self.sde, self.prediction, self.theta = sde, prediction, theta

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        c_x, c_r = (torch.as_tensor(c, dtype=F64) for c in convert("score", self.prediction, kernel(self.sde, t)))
        c_x, c_r = (c[:, None] if c.ndim else c for c in (c_x, c_r))
        return (1 + self.theta[0]) * (c_x * x + c_r * exact_score(x, self.sde, t)) + self.theta[1]

    def score(self) -> sg.Score:
        return sg.Score(self, self.sde, self.prediction)


def expected(loss: Callable[..., Tensor], perturbed: Perturbed, t: float, **options: object) -> Tensor:
    """The expectation of a loss over data and noise at one time, exact to rounding."""
    z0, noise, w = gauss_hermite()
    times = torch.full((len(w),), t, dtype=F64)
    options |= {"t": times, "noise": noise, "generator": generator()}
    return (w * loss(perturbed.score(), MEAN + STD * z0, **options)).sum()


def gradient(loss: Callable[..., Tensor], sde: sg.LinearSDE, prediction: str, t: float, **options: object) -> Tensor:
    theta = torch.zeros(2, dtype=F64, requires_grad=True)
    value = expected(loss, Perturbed(sde, prediction, theta), t, **options)
    (slope,) = torch.autograd.grad(value, theta)
    return slope / value.abs()


@pytest.mark.parametrize(("name", "sde"), LINEAR.items(), ids=case_id)
@pytest.mark.parametrize("prediction", NETWORKS)
@pytest.mark.parametrize("weighting", ALL_WEIGHTINGS)
@pytest.mark.parametrize("share", [0.02, *some_slow([0.6])])
def test_the_exact_score_is_stationary_for_every_process(
    weighting: str, prediction: str, name: str, sde: Any, share: float
) -> None:
    """The gradient's expectation at the exact score is 0 to rounding, at an early and a late time."""
    t = sde.eps + share * (sde.T - sde.eps)
    slope = gradient(denoising_score_matching, sde, prediction, t, weighting=ALL_WEIGHTINGS[weighting])
    assert slope.abs().max() < 1e-9, (name, share)


@pytest.mark.parametrize(("name", "weighting"), ALL_WEIGHTINGS.items(), ids=case_id)
@pytest.mark.parametrize("prediction", NETWORKS)
def test_other_scores_cost_what_the_weighting_says(prediction: str, name: str, weighting: Any) -> None:
    """The excess of a perturbed network is the weight times its squared error, for every weighting."""
    sde, t = sg.VPSDE(), 0.3
    time = torch.tensor([t], dtype=F64)
    theta = torch.tensor([0.2, -0.1], dtype=F64)
    z0, noise, w = gauss_hermite()
    x = sde.alpha(time) * (MEAN + STD * z0) + sde.sigma(time) * noise
    times = time.expand(len(x))
    exact, other = (Perturbed(sde, prediction, v) for v in (torch.zeros(2, dtype=F64), theta))
    values = [expected(denoising_score_matching, net, t, weighting=weighting) for net in (exact, other)]
    rule = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    _, c_r = convert(prediction, rule.error_of, kernel(sde, time))
    error = c_r * (other(x, times) - exact(x, times))[:, 0]
    excess = (w * rule.weight(sde, times) * error**2).sum()
    assert torch.allclose(values[1] - values[0], excess, rtol=1e-9), name
    assert excess > 0


@pytest.mark.parametrize(("name", "sde"), LINEAR.items(), ids=case_id)
@pytest.mark.parametrize("trace", ["exact", "sliced"])
@pytest.mark.parametrize("prediction", NETWORKS)
def test_implicit_score_matching_is_denoising_minus_a_constant(
    prediction: str, trace: str, name: str, sde: Any
) -> None:
    """Over data and noise the two losses differ by the same number whatever the network, and share the minimum."""
    t = sde.eps + 0.4 * (sde.T - sde.eps)
    assert gradient(score_matching, sde, prediction, t, trace=trace).abs().max() < 1e-9, name
    offsets = []
    for theta in ((0.0, 0.0), (0.3, 0.0), (-0.2, 0.5)):
        net = Perturbed(sde, prediction, torch.tensor(theta, dtype=F64))
        denoising = expected(denoising_score_matching, net, t, weighting="sigma^2")
        offsets.append(denoising - expected(score_matching, net, t, trace=trace))
    assert torch.allclose(torch.stack(offsets), torch.ones(3, dtype=F64), atol=1e-9), name  # E|noise|^2 = 1


def test_hyvarinen_s_objective_on_the_data_themselves() -> None:
    """At t = 0 the loss is twice J = |s|^2 / 2 + tr grad s, by hand for a correlated linear score."""
    A = torch.tensor([[-1.0, 0.3], [0.2, -2.0]], dtype=F64)
    score = sg.from_score(lambda x, t: x @ A.T, sg.VPSDE())
    x = torch.randn(50, 2, dtype=F64, generator=generator())
    options = {"t": torch.zeros(50, dtype=F64), "weighting": "score", "reduction": "sum", "generator": generator()}
    J = 0.5 * (x @ A.T).square().sum(1) + A.trace()
    assert torch.allclose(score_matching(score, x, **options), 2 * J)
    # v^T A v = tr A + 0.5 v_0 v_1: sliced values lie 2 * 0.5 above or below, half of them each.
    sliced = score_matching(score, x.repeat(200, 1), trace="sliced", **(options | {"t": torch.zeros(10000, dtype=F64)}))
    off = sliced - 2 * J.repeat(200)
    assert torch.allclose(off.abs(), torch.ones_like(off))
    assert off.mean().abs() < 4 / math.sqrt(len(off))
    averaged = score_matching(
        score, x.repeat(200, 1), trace="sliced", n_probes=16, **(options | {"t": torch.zeros(10000, dtype=F64)})
    )
    mean_square = float((averaged - 2 * J.repeat(200)).square().mean().detach())
    assert mean_square == pytest.approx(1 / 16, rel=4 * math.sqrt(2 / 10000))


@pytest.mark.parametrize("trace", ["exact", "sliced"])
def test_implicit_losses_train_the_network(trace: str) -> None:
    """Gradients reach the parameters of a module, in the caller's grad mode and dtype."""
    net = nn.Linear(2, 2)
    score = sg.from_score(lambda x, t: net(x), sg.VPSDE())
    x = torch.randn(2000, 2, generator=generator())
    loss = score_matching(score, x, trace=trace, generator=generator(1))  # type: ignore[arg-type]
    assert (loss.shape, loss.dtype) == ((2000,), torch.float32)
    net.zero_grad()
    loss.mean().backward()
    assert net.weight.grad is not None
    assert net.weight.grad.abs().min() > 0


@pytest.mark.parametrize("times", [Uniform(), Uniform(stratified=False), Importance(), LogNormal()], ids=case_id)
@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.RectifiedFlowSDE()], ids=case_id)
@pytest.mark.parametrize("theta_0, stationary", [(0.0, True), (0.3, False)])
def test_sampled_gradients_agree_with_their_standard_errors(
    times: Any, sde: sg.SDE, theta_0: float, stationary: bool
) -> None:
    """With drawn times and noise the exact score's gradient is 0 within its standard error, another's is not."""
    n = 4000
    theta = torch.tensor([theta_0, 0.0], dtype=F64).expand(n, 2).clone().requires_grad_()
    net = Perturbed(sde, "noise", theta.T[..., None])
    x0 = MEAN + STD * torch.randn(n, 1, dtype=F64, generator=generator(1))
    options = {"times": times, "weighting": "noise", "generator": generator(2)}
    (slopes,) = torch.autograd.grad(denoising_score_matching(net.score(), x0, **options).sum(), theta)
    z = slopes[:, 0].mean() / (slopes[:, 0].std() / math.sqrt(n))
    assert (abs(z) < 4) == stationary, (times, sde, float(z))


# Published losses, written as their papers print them.


def published(name: str, x0: Tensor, net: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor) -> Tensor:
    """Per-sample losses by hand; data (B, 2)."""
    if name.startswith("ddpm"):
        betas = torch.tensor(sg.presets.ddpm().betas, dtype=F64)
        bars = (1 - betas).cumprod(0)
        i = (t * len(betas)).round().long() - 1
        beta, bar = betas[i][:, None], bars[i][:, None]
        before = torch.where(i > 0, bars[(i - 1).clamp(min=0)], 1.0)[:, None]
        x = bar.sqrt() * x0 + (1 - bar).sqrt() * z
        out = net(x, t)
        if name == "ddpm epsilon":
            return (z - out).square().mean(1)
        if name == "ddpm x0":
            return (x0 - out).square().mean(1)

        def mean(data: Tensor) -> Tensor:
            return (before.sqrt() * beta * data + (1 - beta).sqrt() * (1 - before) * x) / (1 - bar)

        implied = (x - (1 - bar).sqrt() * out) / bar.sqrt()  # from the predicted noise
        squares = (mean(x0) - mean(implied)).square().sum(1)
        if name == "ddpm mean":
            return squares
        variance = beta if name == "ddpm bound, beta" else beta * (1 - before) / (1 - bar)
        return squares / (2 * variance[:, 0])
    if name == "ncsn":
        sigma = sg.presets.ncsn_cifar10().sigma(t)[:, None]
        return 0.5 * sigma[:, 0] ** 2 * (net(x0 + sigma * z, t) + z / sigma).square().sum(1)
    if name == "edm":
        sigma = t[:, None]
        weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
        return (weight * (net(x0 + sigma * z, t) - x0) ** 2).mean(1)
    if name == "flow matching":
        x = (1 - t[:, None]) * x0 + t[:, None] * z
        return (net(x, t) - (z - x0)).square().mean(1)
    beta_min, beta_max = 0.1, 20.0
    log_alpha = -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min
    alpha, sigma = log_alpha.exp()[:, None], (1 - (2 * log_alpha).exp()).sqrt()[:, None]
    snr = (alpha / sigma)[:, 0] ** 2
    out = net(alpha * x0 + sigma * z, t)
    if name == "score_sde likelihood":
        g2 = beta_min + t * (beta_max - beta_min)
        return 0.5 * g2 * (out + z / sigma).square().sum(1)
    if name == "min-snr, noise":
        return snr.clamp(max=5) / snr * (out - z).square().mean(1)
    assert name == "min-snr, velocity"
    return snr.clamp(max=5) / (snr + 1) * (out - (alpha * z - sigma * x0)).square().mean(1)


PUBLISHED = {
    "ddpm epsilon": (sg.presets.ddpm(), "noise", "simple", Table(), 1.0),
    "ddpm x0": (sg.presets.ddpm(), "data", "data", Table(), 1.0),
    "ddpm mean": (sg.presets.ddpm(), "noise", PosteriorMean("none"), Table(), 1.0),
    "ddpm bound, beta": (sg.presets.ddpm(), "noise", PosteriorMean(), Table(), 1.0),
    "ddpm bound, posterior": (
        *(sg.presets.ddpm(), "noise", PosteriorMean("posterior")),
        *(Table(times=sg.presets.ddpm().times[1:]), 1.0),
    ),
    "ncsn": (sg.presets.ncsn_cifar10(), "score", "sigma^2", Table(), 0.5),
    "edm": (sg.EDMSDE(), "data", EDM(0.5), LogNormal(), 1.0),
    "flow matching": (sg.RectifiedFlowSDE(), "flow", "flow", Uniform(), 1.0),
    "score_sde likelihood": (sg.VPSDE(), "score", "likelihood", Uniform(), 0.5),
    "min-snr, noise": (sg.VPSDE(), "noise", MinSNR(5), Uniform(), 1.0),
    "min-snr, velocity": (sg.VPSDE(), "v", MinSNR(5), Uniform(), 1.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses_are_cases_of_the_one(name: str) -> None:
    sde, prediction, weighting, times, factor = PUBLISHED[name]

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) + t[:, None] * x.flip(1)

    x0, z = (torch.randn(500, 2, dtype=F64, generator=generator(seed)) for seed in (1, 2))
    t, _ = times.draw(sde, 500, generator(3))
    summed = name == "ncsn" or name.startswith(("ddpm mean", "ddpm bound", "score_sde"))
    options = {"weighting": weighting, "t": t, "noise": z, "reduction": "sum" if summed else "mean"}
    ours = factor * denoising_score_matching(sg.Score(net, sde, prediction), x0, generator=generator(), **options)
    assert torch.allclose(ours, published(name, x0, net, t, z), rtol=1e-8)


def test_simple_and_sigma_squared_are_one_loss() -> None:
    score = sg.from_noise(lambda x, t: torch.tanh(x), sg.VPSDE())
    x0 = torch.randn(64, 3, 2, dtype=F64, generator=generator())
    a, b = (
        denoising_score_matching(score, x0, weighting=name, generator=generator(1)) for name in ("simple", "sigma^2")
    )
    assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("loss", [denoising_score_matching, score_matching])
@pytest.mark.parametrize("shape", [(6, 3, 2), (6,)])
def test_losses_of_each_number(shape: tuple[int, ...], loss: Callable[..., Tensor]) -> None:
    """Their mean is the loss of a sample; a mask leaves out what is padding."""
    score = sg.from_score(lambda x, t: -x.tanh(), sg.VPSDE())
    x0 = torch.randn(shape, dtype=F64, generator=generator())
    each = loss(score, x0, weighting="sigma^2", reduction="none", generator=generator(1))
    means = loss(score, x0, weighting="sigma^2", generator=generator(1))
    assert each.shape == shape
    torch.testing.assert_close(each.reshape(6, -1).mean(1), means)


# Times.

TIMES: dict[str, Times] = {"uniform": Uniform(), "importance": Importance(), "log-normal": LogNormal()}


@pytest.mark.parametrize("name", [*TIMES, "table"])
def test_times_follow_their_quantiles(name: str) -> None:
    """Draws lie in [eps, T]; stratified ones hit each of n equal shares of the distribution once; shuffled."""
    for sde in TABLES.values() if name == "table" else LINEAR.values():
        times = TIMES.get(name, Table())
        t, w = times.draw(sde, 512, generator())
        assert (t.dtype, w.dtype, t.shape, w.shape) == (F64, F64, (512,), (512,))
        slack = 1e-9 * sde.T
        assert t.min() >= sde.eps - slack
        assert t.max() <= sde.T + slack
        edges = times.quantile(sde, torch.linspace(0, 1, 513, dtype=F64)[:-1].clamp(1e-12, 1 - 1e-12))
        ordered = t.sort().values
        assert (ordered >= edges - slack).all()
        assert (ordered[:-1] <= edges[1:] + slack).all()
        assert (t.diff() < 0).any()


@pytest.mark.parametrize("name", ["vp", "sub-vp", "cosine", "edm", "flow", "ddpm"])
def test_importance_weights_keep_the_uniform_average(name: str) -> None:
    """Averages of w h over the quantiles are those of h over uniform times, and the likelihood's weight is constant."""
    sde = LINEAR[name]
    u = (torch.arange(40000, dtype=F64) + 0.5) / 40000
    uniform, t = Uniform().quantile(sde, u), Importance().quantile(sde, u)
    w = Importance().weight(sde, t)
    for h in (lambda t: torch.ones_like(t), lambda t: t / sde.T, lambda t: (sde.log_snr(t) / 4).sigmoid()):
        assert float((w * h(t)).mean()) == pytest.approx(float(h(uniform).mean()), rel=2e-3)
    likelihood = w * sde.g(t) ** 2 / sde.sigma(t) ** 2  # on the squared error of the noise
    assert torch.allclose(likelihood, likelihood[0].expand_as(likelihood), rtol=1e-6)


@pytest.mark.parametrize("sde", [sg.EDMSDE(), sg.VPSDE(eps=1e-5), sg.RectifiedFlowSDE(T=0.9999, eps=1e-4)], ids=case_id)
def test_the_log_normal_s_moments(sde: Any) -> None:
    """ln(sigma / alpha) has the normal's mean and deviation on every process whose range is wide."""
    t, _ = LogNormal(mean=-1.0, std=0.8).draw(sde, 20000, generator())
    log_level = -sde.log_snr(t) / 2
    assert float(log_level.mean()) == pytest.approx(-1.0, abs=2e-3)
    assert float(log_level.std()) == pytest.approx(0.8, abs=2e-3)


def test_tables_are_uniform() -> None:
    t, _ = Table(times=(0.1, 0.5, 0.9)).draw(sg.VPSDE(), 300, generator())
    assert t.unique(return_counts=True)[1].tolist() == [100, 100, 100]


# What callers rely on.


@pytest.mark.parametrize("loss", [denoising_score_matching, score_matching])
def test_losses_depend_on_their_generator_alone(loss: Callable[..., Tensor]) -> None:
    """The same generator state gives the same bits; the global random state and grad modes are left alone."""
    net = nn.Linear(2, 2)
    score = sg.from_noise(lambda x, t: net(x), sg.VPSDE())
    x0 = torch.randn(8, 2, generator=generator())
    state = torch.get_rng_state()
    first, second = (loss(score, x0, generator=generator(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, loss(score, x0, generator=generator(6)))
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_dtypes_and_time_labels_reach_the_network() -> None:
    seen: dict[str, Tensor] = {}

    def net(x: Tensor, label: Tensor, y: Tensor) -> Tensor:
        seen.update(x=x, label=label, y=y)
        return 0 * x

    score = sg.from_noise(net, sg.VPSDE(), time_label=sg.time_labels.score_sde_vp())
    y, t = torch.tensor([1, 2, 3]), torch.tensor([0.1, 0.2, 0.3])
    options = {"t": t, "model_kwargs": {"y": y}}
    loss = denoising_score_matching(score, torch.zeros(3, 1, 4, 4), generator=generator(), **options)
    assert (loss.shape, loss.dtype, seen["x"].shape) == ((3,), torch.float32, (3, 1, 4, 4))
    assert torch.equal(seen["y"], y)
    assert torch.allclose(seen["label"], 999 * t)
    coupled = torch.ones(3, 1, 4, 4)
    loss = denoising_score_matching(score, torch.zeros(3, 1, 4, 4, dtype=torch.bfloat16), noise=coupled, **options)
    assert (loss.dtype, seen["x"].dtype) == (torch.float32, torch.float32)
    assert torch.allclose(seen["x"], sg.VPSDE().sigma(t)[:, None, None, None] * coupled)


@pytest.mark.parametrize("loss", [denoising_score_matching, score_matching])
def test_without_a_generator_each_call_has_noise_of_its_own(loss: Callable[..., Tensor]) -> None:
    """Fresh entropy, which torch.manual_seed does not change; the global state is left alone."""
    score, x0 = sg.from_noise(lambda x, t: 0.1 * x, sg.VPSDE()), torch.ones(4, 2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = loss(score, x0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(loss(score, x0), first)
    assert torch.equal(*(loss(score, x0, generator=torch.Generator().manual_seed(3)) for _ in range(2)))


SOME_SCORE = sg.from_noise(lambda x, t: x, sg.VPSDE())
SOME_DATA = torch.zeros(4, 2)
OUTSIDE = r"t must lie in \[0, T\] = \[0, 1.0\], got"


@pytest.mark.parametrize("loss", [denoising_score_matching, score_matching])
@pytest.mark.parametrize(
    "options, text",
    [
        ({"weighting": "snr"}, "weighting must be one of .* got 'snr'"),
        ({"reduction": "median"}, "'median'"),
        ({"times": Uniform(), "t": torch.ones(4)}, "times= or t="),
        ({"t": 500.0}, f"{OUTSIDE} 500"),
        ({"t": -1.0}, f"{OUTSIDE} -1"),
        ({"t": torch.tensor([0.5, 2.0, 1, 1])}, f"{OUTSIDE} 2"),
        ({"t": math.nan}, "a time must be finite, got nan"),
        ({"t": torch.ones(3)}, r"t has shape \(3,\), expected \(\) or \(4,\)"),
        ({"noise": torch.zeros(4, 3)}, r"\(4, 2\) of the data, got \(4, 3\)"),
        ({"times": Table()}, "no table of times"),
        ({"weighting": PosteriorMean()}, "no table of times"),
        ({"times": Uniform(low=0.9, high=0.5)}, "low=0.9 and high=0.5"),
    ],
    ids=case_id,
)
def test_wrong_options_are_named(loss: Callable[..., Tensor], options: dict[str, object], text: str) -> None:
    """Those of both losses."""
    with pytest.raises(ValueError, match=text):
        loss(SOME_SCORE, SOME_DATA, **{"generator": generator(), **options})


@pytest.mark.parametrize(
    "error, text, call",
    [
        (ValueError, "'traced'", lambda: score_matching(SOME_SCORE, SOME_DATA, trace="traced", generator=generator())),  # type: ignore[arg-type]
        (ValueError, "got 0", lambda: score_matching(SOME_SCORE, SOME_DATA, n_probes=0, generator=generator())),
        (TypeError, "from_noise", lambda: denoising_score_matching(lambda x, t: x, SOME_DATA, generator=generator())),  # type: ignore[arg-type]
        (TypeError, "int64", lambda: denoising_score_matching(SOME_SCORE, SOME_DATA.long(), generator=generator())),
        (ValueError, "'gamma'", lambda: PosteriorMean("gamma")),  # type: ignore[arg-type]
        (ValueError, "got 0", lambda: LogNormal(std=0)),
        (ValueError, "got 1.0", lambda: EMA(nn.Linear(1, 1), decay=1.0)),
    ],
    ids=["trace", "n_probes", "score", "dtype", "posterior mean", "log-normal", "average"],
)
def test_wrong_arguments_are_named(error: type[Exception], text: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=text):
        call()


# The moving average.


def test_the_average_is_the_recursion() -> None:
    """Against the recursion by hand, with the warm-up min(decay, (1 + n) / (10 + n)); buffers are copied."""
    net = nn.BatchNorm1d(1).double()
    ema = EMA(net, decay=0.6)
    expected_value, values = 1.0, [3.0, -1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0, 5.0]
    for n, value in enumerate(values):
        with torch.no_grad():
            net.weight.fill_(value)
        assert net.running_mean is not None
        net.running_mean.fill_(value)
        ema.update(net)
        d = min(0.6, (1 + n) / (10 + n))
        expected_value = d * expected_value + (1 - d) * value
    assert d == 0.55 or d == 0.6
    other = nn.BatchNorm1d(1).double()
    ema.copy_to(other)
    assert other.weight.item() == pytest.approx(expected_value, rel=1e-12)
    assert other.running_mean is not None
    assert other.running_mean.item() == values[-1]
    assert net.weight.item() == values[-1]


def test_the_average_s_state_goes_on_where_it_stopped() -> None:
    net = nn.Linear(2, 1)
    one, two = EMA(net, 0.9), EMA(net, 0.9)
    for _ in range(5):
        one.update(net)
        with torch.no_grad():
            net.weight.add_(1)
    two.load_state_dict(one.state_dict())
    for ema in (one, two):
        ema.update(net)
    assert torch.equal(one.average["weight"], two.average["weight"])
    assert not torch.equal(one.average["weight"], net.weight)
    with pytest.raises(ValueError, match="bias"):
        two.load_state_dict({"weight": net.weight.detach(), "updates": torch.tensor(1)})


def test_weights_of_a_weighting_by_hand() -> None:
    """The algebra of the table: min-SNR on v is min(SNR, gamma) / (SNR + 1), and so on."""
    sde, t = sg.VPSDE(), torch.tensor([0.05, 0.3, 0.8], dtype=F64)
    snr = sde.log_snr(t).exp()
    for prediction, by_hand in (("data", 1.0), ("noise", 1 / snr), ("v", 1 / (snr + 1))):
        _, c_r = convert(prediction, "data", kernel(sde, t))
        assert torch.allclose(
            torch.as_tensor(c_r, dtype=F64) ** 2 * torch.ones(3, dtype=F64), by_hand * torch.ones(3, dtype=F64)
        )
    assert torch.allclose(EDM(0.5).weight(sde, t), (1 / snr + 0.25) / (0.25 / snr))
    assert weights("noise", kernel(sde, t)) == (0.0, 1.0)
