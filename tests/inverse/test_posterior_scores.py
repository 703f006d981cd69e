"""Posterior scores. Inverse problems: operators, posterior scores, methods at the nodes, against exact posteriors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde import inverse
from sgm_sde._utils.shapes import dot
from sgm_sde.likelihood import FixedGrid
from tests.conventions import some_slow
from tests.helpers import DOUBLE, F64, LINEAR
from tests.inverse.cases import (
    HALF,
    MODES,
    OPERATORS,
    SCORES,
    TILTED,
    VP,
    dense,
    normal,
    seen,
)


def problem(name: str, std: float = 0.3, seed: int = 0) -> tuple[sg.oracles.Gaussian, inverse.Measurement]:
    """Gaussian data with correlations, and a measurement of it."""
    operator, shape = OPERATORS[name]
    root = normal(math.prod(shape), math.prod(shape), seed=seed) / math.sqrt(math.prod(shape))
    data = sg.oracles.Gaussian(normal(*shape, seed=seed + 1), root @ root.T)
    return data, inverse.Measurement(operator, operator.apply(normal(1, *shape, seed=seed + 2))[0], std)


SHARED = [name for name in OPERATORS if name != "mask a sample"]


@pytest.mark.parametrize("linear_solver", ["gcr", "cg"])
@pytest.mark.parametrize("process", ["vp", "edm", *some_slow(["ve", "flow"])])
@pytest.mark.parametrize("name", ["mask", "mix of channels", "blocks of a line", "blur", "map"])
def test_mmps_is_exact_on_gaussian_data(name: str, process: str, linear_solver: str) -> None:
    """The denoiser of the posterior itself, on every process, operator and time."""
    sde = LINEAR[process]
    data, measurement = problem(name)
    exact = inverse.posterior(data, measurement)
    t = sde.time(torch.linspace(-4, 4, 7, dtype=F64)).clamp(sde.eps, sde.T)
    x = exact.sample(7, sde, t, seed=0, dtype=F64)
    score = inverse.MMPS(data.score(sde), measurement, 60, linear_solver)
    with torch.no_grad():
        torch.testing.assert_close(score.denoised(x, t), exact.score(sde).denoised(x, t), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(score(x, t), exact.score(sde)(x, t), rtol=1e-5, atol=1e-5)


def formula(name: str, D: Tensor, J: Tensor, m: inverse.Measurement, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean of each method for one sample, with dense matrices."""
    A, eye = dense(m.operator, (len(D),)), torch.eye(len(D), dtype=F64)
    with_jacobian = sigma**2 / alpha * J.T
    r2 = (sigma * 0.8) ** 2 / (sigma**2 + (alpha * 0.8) ** 2)
    outer, inner = {
        "mmps": (with_jacobian, with_jacobian),
        "mmps-cg": (with_jacobian, with_jacobian),
        "pigdm": (with_jacobian, r2 * eye),
        "diffpir": (sigma**2 / (2 * alpha**2) * eye,) * 2,
    }[name]
    noise = m.std**2 * torch.eye(len(A), dtype=F64)
    residual = m.y - A @ D
    p = torch.linalg.solve(A @ inner @ A.T + noise, residual)
    undone = (A @ outer @ A.T + noise) @ p  # the residual itself, unless inner and outer guess differ
    length = min(float(residual @ undone / (undone @ undone)), 1.0) if name == "pigdm" else 1.0
    return D + length * outer @ A.T @ p


@pytest.mark.parametrize("operator", ["mix of features", "map"])
@pytest.mark.parametrize("name", SCORES)
def test_posterior_means_against_dense_matrices(name: str, operator: str) -> None:
    """On a mixture, whose denoiser is not linear, with its Jacobian by autograd: each method's formula."""
    A, shape = OPERATORS[operator]
    data = sg.oracles.GaussianMixture(normal(3, *shape), normal(3, *shape, seed=1).abs() + 0.2)
    m = inverse.Measurement(A, A.apply(normal(1, *shape, seed=2))[0], 0.4)
    score = data.score(VP)
    x, t = normal(4, *shape, seed=3), torch.tensor([0.05, 0.3, 0.5, 0.8], dtype=F64)
    got = SCORES[name](score, m).denoised(x, t)
    for i in range(4):
        D = score.denoised(x[i : i + 1], t[i : i + 1])[0]
        J: Any = torch.autograd.functional.jacobian(lambda z, i=i: score.denoised(z[None], t[i : i + 1])[0], x[i])
        expected = formula(name, D, J, m, VP.alpha(t[i]), VP.sigma(t[i]))
        torch.testing.assert_close(got[i], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("operator", ["mask", "grey", "blocks", "gaussian blur"])
def test_pigdm_is_exact_on_independent_data(operator: str) -> None:
    """Data of one standard deviation, independent: the isotropic guess is the truth."""
    A, shape = OPERATORS[operator]
    data = sg.oracles.Gaussian(normal(*shape), 0.8**2)
    m = inverse.Measurement(A, A.apply(normal(1, *shape, seed=2))[0], 0.3)
    x, t = normal(3, *shape, seed=3), torch.tensor([0.1, 0.4, 0.9], dtype=F64)
    exact = inverse.posterior(data, m).score(VP)
    torch.testing.assert_close(inverse.PiGDM(data.score(VP), m, data_std=0.8)(x, t), exact(x, t))


@pytest.mark.parametrize("solver", [None, "ancestral", *some_slow(["ddim", "dpm++2m"])])
@pytest.mark.parametrize("process", ["vp", "ve", "flow", *some_slow(["sub-vp", "cosine", "edm", "ddpm"])])
@pytest.mark.parametrize("method", ["pigdm", "mmps"])
def test_one_product_on_networks_that_are_wrong_near_pure_noise(method: str, process: str, solver: str | None) -> None:
    r"""Noise that errs by one percent: $\sigma^2/\alpha^2$ times its Jacobian's error must not go into the samples."""
    sde = LINEAR[process]
    d = 64
    data = sg.oracles.Gaussian(torch.zeros(d), 0.5**2)
    exact = data.score(sde)
    turned = torch.linalg.qr(normal(d, d)).Q.float()

    def net(x: Tensor, t: Tensor) -> Tensor:
        scale = (sde.alpha(t).square() / 4 + sde.sigma(t).square()).sqrt()[:, None].to(x)
        return exact.predict("noise", x, t) + 0.01 * torch.sin(x / scale @ turned)

    mask = inverse.Mask(torch.arange(d) % 2 == 0)
    truth = data.sample(16, seed=3)
    seen = inverse.Measurement.simulate(mask, truth, 0.05, seed=0)
    prior = sg.from_noise(net, sde)
    score = inverse.PiGDM(prior, seen, data_std=0.5) if method == "pigdm" else inverse.MMPS(prior, seen, 1)
    plain, x = (sg.sample(each, sde, (16, d), solver=solver, nfe=30, seed=0).x for each in (prior, score))
    misfit = float(seen.residual(x)[:, ::2].square().mean().sqrt())
    assert misfit < 1.5 * seen.std
    assert float(x.std()) < 1.3 * float(plain.std())


@pytest.mark.parametrize("std", [0.3, 0.0])
@pytest.mark.parametrize("process", ["vp", "ve", "edm", "flow"])
def test_mmps_on_a_network_whose_jacobian_is_no_covariance(process: str, std: float) -> None:
    r"""Noise that errs by one percent makes variances that pass $-\sigma_y^2$: the law is that of the exact score."""
    sde = LINEAR[process]
    data = sg.oracles.GaussianMixture(
        torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]]), [0.4, 0.5, 0.3], [0.5, 0.3, 0.2]
    )
    exact = data.score(sde)
    turned = torch.tensor([[0.3, -1.0], [1.0, 0.3]])

    def net(x: Tensor, t: Tensor) -> Tensor:
        scale = (sde.alpha(t).square() + sde.sigma(t).square()).sqrt()[:, None].to(x)
        return exact.predict("noise", x, t) + 0.01 * torch.sin(2 * x / scale @ turned)

    m = inverse.Measurement(HALF, torch.tensor([0.8, 0.0]), std)
    x, right = (
        sg.sample(inverse.MMPS(prior, m, 1), sde, (1000, 2), nfe=20, seed=0).x
        for prior in (sg.from_noise(net, sde), exact)
    )
    spread = right[:, 1].std()
    assert float((x[:, 1].mean() - right[:, 1].mean()).abs()) < 0.03 * float(spread)
    assert abs(float(x[:, 1].std() / spread) - 1) < 0.03
    assert float(x.abs().max()) < 1.1 * float(right.abs().max())
    assert (
        float((m.consistent(x) - x).square().mean().sqrt() - (m.consistent(right) - right).square().mean().sqrt())
        < 0.01
    )


@pytest.mark.parametrize(
    ("J", "gain"),
    [
        # c = 1 and v = 1/2 allow V22 = 1: a covariance.
        ([[1.0, 0.5], [0.5, 1.0]], [2.0 * 1 / 1.5, 2.0 * 0.5 / 1.5]),
        # c = 1/8 is half of c_0 by v = 1/2 and V22 = 1/2: it becomes 1/2.
        ([[0.125, 0.5], [0.5, 0.5]], [2.0 * 0.5 / 1.0, 2.0 * 0.5 / 1.0]),
        # No variance along what was measured, and none across: that of the noise, 4.
        ([[-0.5, 1.0], [1.0, 1.0]], [2.0 * 4 / 4.5, 2.0 * 1 / 4.5]),
        ([[1.0, 1.0], [1.0, -1.0]], [2.0 * 4 / 4.5, 2.0 * 1 / 4.5]),
    ],
    ids=["a covariance", "too little variance", "negative variance", "negative across"],
)
def test_gain_of_a_jacobian(J: list[list[float]], gain: list[float]) -> None:
    """V = 4 J / 4 at sigma 2, a residual of 2 and the noise's variance of 1/2: the gain by hand."""
    sde, V = sg.EDMSDE(), torch.tensor(J, dtype=F64)
    score = sg.from_denoiser(lambda x, t: x @ V / 4, sde)
    m = inverse.Measurement(HALF, torch.tensor([2.0, 0.0], dtype=F64), math.sqrt(0.5))
    x = torch.zeros(1, 2, dtype=F64)
    got = inverse.MMPS(score, m, 1).denoised(x, torch.tensor(2.0, dtype=F64))
    torch.testing.assert_close(got, torch.tensor([gain], dtype=F64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("linear_solver", ["gcr", "cg"])
def test_measurements_of_another_rank_than_the_data(linear_solver: str) -> None:
    """Pictures measured as vectors, of as many samples as anything else has: exact on Gaussian data."""
    data = sg.oracles.Gaussian(normal(1, 2, 2), 0.5)
    m = inverse.Measurement(inverse.LinearMap(lambda x: x.flatten(1)[:, :2], (1, 2, 2)), normal(2, seed=1), 0.3)
    x, t = normal(2, 1, 2, 2, seed=2), torch.tensor([0.2, 0.6], dtype=F64)
    exact = inverse.posterior(data, m).score(VP).denoised(x, t)
    torch.testing.assert_close(inverse.MMPS(data.score(VP), m, 2, linear_solver).denoised(x, t), exact)


def test_diffpir_minimises_its_objective() -> None:
    """The gradient of the objective vanishes; without noise the measurement is met exactly, whatever the strength."""
    A, shape = OPERATORS["gaussian blur"]
    score = sg.oracles.Gaussian(normal(*shape), 0.5).score(VP)
    m = inverse.Measurement(A, A.apply(normal(1, *shape, seed=2))[0], 0.3)
    x, t = normal(3, *shape, seed=3), torch.tensor([0.1, 0.4, 0.9], dtype=F64)
    best = inverse.DiffPIR(score, m, strength=3.0).denoised(x, t).detach().requires_grad_()
    ratio = 3.0 * (VP.alpha(t) / VP.sigma(t)) ** 2
    objective = dot(m.residual(best), m.residual(best)) / 0.3**2 + ratio * dot(
        best - score.denoised(x, t), best - score.denoised(x, t)
    )
    (slope,) = torch.autograd.grad(objective.sum(), best)
    assert float(slope.abs().max()) < 1e-9 * float(ratio.max())
    blocks, shape = OPERATORS["blocks"]
    exact = inverse.Measurement(blocks, blocks.apply(normal(3, *shape, seed=4)))
    data = sg.oracles.Gaussian(torch.zeros(shape, dtype=F64), 0.5).score(VP)
    z = normal(3, *shape)
    met = inverse.DiffPIR(data, exact, strength=7.0).denoised(z, t)
    torch.testing.assert_close(met, exact.consistent(data.denoised(z, t)))
    torch.testing.assert_close(blocks.apply(met), exact.y)


def law(score: sg.Score, sde: sg.LinearSDE, mean: Tensor, cov: Tensor, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of a flow's last state, linear in its start N(mean, cov), by its basis vectors."""
    d = len(mean)
    starts = torch.cat([mean[None], mean + torch.eye(d, dtype=F64)])
    out = sg.sample(
        score, sde, x_T=starts, solver="lms4", steps=steps, grid="log-snr", t_start=0.9, t_end=0.02, final="none"
    ).x
    J = (out[1:] - out[0]).T
    return out[0], J @ cov @ J.T


def test_biases_on_gaussian_data() -> None:
    """Output laws without Monte Carlo: MMPS has the posterior's, PiGDM is off by less than DiffPIR."""
    m = seen(0.3)
    exact = inverse.posterior(TILTED, m)

    def at(t: float) -> tuple[Tensor, Tensor]:
        a, s = float(VP.alpha(t)), float(VP.sigma(t))
        return a * exact.mean, a**2 * exact.covariance + s**2 * torch.eye(2, dtype=F64)

    (start_mean, start_cov), (end_mean, end_cov) = at(0.9), at(0.02)
    errors = {}
    own_mean, own_cov = law(exact.score(VP), VP, start_mean, start_cov)
    for name, make in SCORES.items():
        mean, cov = law(make(TILTED.score(VP), m), VP, start_mean, start_cov)
        errors[name] = float((mean - end_mean).norm() + (cov - end_cov).norm())
        if name[:4] == "mmps":
            torch.testing.assert_close(mean, own_mean, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(cov, own_cov, rtol=1e-10, atol=1e-12)
    assert errors["mmps"] < 1e-3 < errors["pigdm"] < errors["diffpir"]  # MMPS' is the solver's


def test_likelihood_of_a_posterior_score() -> None:
    """log p(x | y) by `log_prob` through MMPS: that of the posterior's own score, and the closed form."""
    m = seen(0.3)
    exact = inverse.posterior(TILTED, m)
    x = exact.sample(4, VP, 1e-2, seed=0, dtype=F64)
    options: dict[str, Any] = {"trace": "exact", "eps": 1e-2, "method": FixedGrid(60)}
    got = sg.log_prob(inverse.MMPS(TILTED.score(VP), m), VP, x, **options)
    own = sg.log_prob(exact.score(VP), VP, x, **options)
    torch.testing.assert_close(got.value, own.value, rtol=0, atol=1e-9)
    torch.testing.assert_close(got.value, exact.log_prob(x, VP, 1e-2), rtol=0, atol=0.02)  # the prior at T


@pytest.mark.parametrize(("y", "std"), [(-0.2, 2.0), (0.5, 0.5)])
def test_mode_weights(y: float, std: float) -> None:
    """Two far modes told apart by a measurement: right from the exact score, and off from MMPS, as documented."""
    data = sg.oracles.GaussianMixture(torch.tensor([[-2.0, -3.0], [2.0, 3.0]], dtype=F64), 0.3, [0.3, 0.7])
    m = inverse.Measurement(HALF, torch.tensor([y, 0.0], dtype=F64), std)
    exact, n = inverse.posterior(data, m), 1000
    weight = float(exact.weights[0])
    score, off = data.score(VP), {}
    scores = {"exact": exact.score(VP), "mmps": inverse.MMPS(score, m, 1), "pigdm": inverse.PiGDM(score, m)}
    for name, score in scores.items():
        x = sg.sample(score, VP, (n, 2), solver="dpm++2m", steps=40, grid="log-snr", seed=1, execution=DOUBLE).x
        off[name] = float((exact.responsibilities(x)[:, 0].mean() - weight) / math.sqrt(weight * (1 - weight) / n))
    assert abs(off["exact"]) < 4  # standard errors
    if std == 2.0:
        assert max(abs(off["mmps"]), abs(off["pigdm"])) < 4
    else:
        assert off["mmps"] > 50


@pytest.mark.parametrize("name", ["cg", "gcr", "diffpir"])
def test_beside_azula(name: str) -> None:
    """The same posterior means as azula's, on a mixture."""
    guidance = pytest.importorskip("azula.guidance")
    denoise, noise = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.noise")
    score = MODES.score(sg.EDMSDE())

    class Theirs(denoise.Denoiser):  # type: ignore[misc, name-defined]
        schedule = noise.VESchedule()

        def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Any:
            sigma = self.schedule(t)[1].expand(len(x))
            return denoise.DiracPosterior(mean=score.denoised(x, sigma))

    A = torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=F64)
    y, x = torch.tensor([0.7, 0.1], dtype=F64), normal(3, 2)
    m = inverse.Measurement(inverse.ChannelMix(A), y, 0.3)
    t = torch.tensor(0.4, dtype=F64)
    sigma = float(Theirs.schedule(t)[1])

    def apply(v: Tensor) -> Tensor:
        return v @ A.T

    if name != "diffpir":
        cov = pytest.importorskip("azula.linalg.covariance").IsotropicCovariance(torch.tensor(0.09, dtype=F64))
        theirs = guidance.MMPSDenoiser(Theirs(), y, apply, cov, solver={"gcr": "gmres"}.get(name, name), iterations=1)
        ours: sg.Score = inverse.MMPS(score, m, 1, name)
    else:
        theirs = guidance.DiffPIRDenoiser(Theirs(), y, apply, 0.09, lmbda=4.0, solver="cg", iterations=4)
        ours = inverse.DiffPIR(score, m, strength=4.0)
    torch.testing.assert_close(ours.denoised(x, sigma).detach(), theirs(x, t).mean.detach(), rtol=1e-6, atol=1e-8)


# --- Measurements of each sample's own --------------------------------------------------------------------------------

OWN = normal(9, 2, seed=5)
MASKS = torch.tensor([[True, False], [False, True], [True, True]]).repeat(3, 1)
METHODS = {"DiffPIR": inverse.DiffPIR, "PiGDM": inverse.PiGDM, "MMPS": inverse.MMPS}
WHOLE, PARTS = sg.Execution(dtype=F64), sg.Execution(dtype=F64, batch_size=4)
RUNS: dict[str, dict[str, Any]] = {
    "leaving the batch": {"solver": "bosh3", "execution": WHOLE},
    "on one path": {"solver": "ggf", "execution": WHOLE},
    "in parts": {"solver": "ddim", "nfe": 6, "execution": PARTS},
    "in parts that samples leave": {"solver": "bosh3", "execution": PARTS},
}


@pytest.mark.parametrize("run", some_slow(RUNS, fast=[run for run in RUNS if run != "on one path"]))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mask", [HALF.mask, MASKS], ids=["one mask", "a mask a sample"])
def test_a_measurement_goes_with_its_sample(mask: Tensor, method: str, run: str) -> None:
    """A sample is the same alone and among others with measurements of their own, whichever of them are evaluated."""
    score = MODES.score(VP)
    together = METHODS[method](score, inverse.Measurement(inverse.Mask(mask), OWN, 0.3))
    x = sg.sample(together, VP, (9, 2), seed=0, **RUNS[run]).x

    last = inverse.Mask(mask if mask.ndim == 1 else mask[8])
    alone = METHODS[method](score, inverse.Measurement(last, OWN[8], 0.3))
    one = sg.sample(alone, VP, (1, 2), seed=[(0, 8)], **RUNS[run]).x
    torch.testing.assert_close(x[8:], one, rtol=1e-9, atol=1e-9)


def test_guidance_around_measurements_of_each_samples_own() -> None:
    """Its reference rows have their sample's measurement, and a network beside the posterior's hears nothing of it."""

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x / (2 + y[:, None])

    score = sg.from_denoiser(net, VP)
    posterior = inverse.DiffPIR(score, inverse.Measurement(HALF, OWN, 0.3))
    y = torch.arange(9.0, dtype=F64)
    x, t = normal(9, 2, seed=6), torch.full((9,), 0.4, dtype=F64)

    guided = sg.guidance.ClassifierFree(posterior, scale=3.0, null={"y": 0.0})
    with_label, without = (posterior.output(x, t, y=label) for label in (y, 0 * y))
    expected = without + 3 * (with_label - without)
    torch.testing.assert_close(guided.output(x, t, y=y), expected)

    auto = sg.guidance.Auto(posterior, score, scale=3.0)
    options: dict[str, Any] = {"seed": 0, "model_kwargs": {"y": sg.PerSample(y)}}
    whole, parts = (sg.sample(auto, VP, (9, 2), nfe=6, execution=how, **options).x for how in (WHOLE, PARTS))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operator", [HALF, inverse.Mask(MASKS[:5])], ids=["y", "mask"])
def test_a_sample_without_a_measurement(operator: inverse.Mask) -> None:
    score = inverse.DiffPIR(MODES.score(VP), inverse.Measurement(operator, OWN[:5], 0.3))
    with pytest.raises(ValueError, match=r"(y|the mask) has 5 rows, and none for the sample of number \d"):
        sg.sample(score, VP, (9, 2), nfe=6, seed=0, execution=sg.Execution(batch_size=4))


# --- derivatives, and densities by them

IN_SPACE = sg.oracles.Gaussian(
    torch.tensor([0.5, -1.0, 0.2], dtype=F64),
    torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.8, 0.0], [0.2, 0.0, 0.5]], dtype=F64),
)
TWO_SEEN = inverse.Measurement(inverse.Mask(torch.tensor([True, True, False])), torch.tensor([1.0, 0.0, 0.0]), std=0.3)
POSTERIOR = inverse.posterior(IN_SPACE, TWO_SEEN)
ROUNDING = {torch.float32: 1e-4, F64: 1e-11}


def jacobian(score: sg.Score, x: Tensor, t: float) -> Tensor:
    """The derivative (B, d, d) of the denoised data."""
    return torch.stack([torch.autograd.functional.jacobian(lambda row: score.denoised(row[None], t)[0], r) for r in x])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("linear_solver", ["gcr", "cg"])
@pytest.mark.parametrize("iterations", [2, 3, 12])
@pytest.mark.parametrize("level", [0.01, 0.13, 2.0, 70.0])
def test_steps_after_the_last_one_have_no_derivative(
    iterations: int, linear_solver: str, level: float, dtype: torch.dtype
) -> None:
    """Two measured numbers take two steps; what further ones would be is rounding, whose derivative has no bound."""
    score = inverse.MMPS(IN_SPACE.score(sg.EDMSDE()), TWO_SEEN, iterations, linear_solver)
    x = POSTERIOR.sample(3, sg.EDMSDE(), level, seed=0).to(dtype)
    found = jacobian(score, x, level)
    torch.testing.assert_close(
        found.double(), jacobian(POSTERIOR.score(sg.EDMSDE()), x.double(), level), rtol=0, atol=ROUNDING[dtype]
    )


@pytest.mark.parametrize("method", [inverse.MMPS, inverse.PiGDM])
def test_independent_data_have_derivatives(method: type[inverse.PosteriorScore]) -> None:
    """Their covariance leaves no part across the measurement, whose length is 0."""
    data = sg.oracles.Gaussian(torch.zeros(3, dtype=F64), 1.0)
    found = jacobian(method(data.score(sg.EDMSDE()), TWO_SEEN), normal(3, 3), 0.5)
    exact = jacobian(inverse.posterior(data, TWO_SEEN).score(sg.EDMSDE()), normal(3, 3), 0.5)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("sde", [VP, sg.EDMSDE()], ids=["vp", "edm"])
def test_densities_are_those_of_the_posterior(sde: sg.LinearSDE, dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 0.0, 0.3], [0.5, 0.4, -0.6]], dtype=dtype)
    eps = float(sde.time_of_noise_level(torch.tensor(0.1, dtype=F64)))
    options = {"trace": "exact", "eps": eps, "method": FixedGrid(16)}
    found = sg.log_prob(inverse.MMPS(IN_SPACE.score(sde), TWO_SEEN), sde, x, **options).value
    torch.testing.assert_close(
        found.double(), sg.log_prob(POSTERIOR.score(sde), sde, x.double(), **options).value, rtol=0, atol=1e-3
    )
    torch.testing.assert_close(found.double(), POSTERIOR.log_prob(x.double(), sde, eps), rtol=0, atol=0.2)
