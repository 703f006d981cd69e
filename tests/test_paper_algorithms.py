"""Published algorithms written out by hand, and the library's solvers against them to 1e-10 in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from tests.helpers import F64, MIXTURE, stream

SHAPE = (5, 2)
BETAS = [0.01 * 1.3**i for i in range(12)]
A_BAR = torch.tensor([1 - b for b in BETAS], dtype=F64).cumprod(0).tolist()
SIGMAS = [0.05 * 1.5**i for i in range(12)]


def draws(name: str, t_start: float = 1.0) -> Callable[[], Tensor]:
    """The next noise of a stream, as the library draws it in a run from a time."""
    source = stream(SHAPE[0], name, t_start)
    return lambda: source.normal(SHAPE, F64)


def start(scale: float) -> Tensor:
    return scale * torch.randn(SHAPE, dtype=F64, generator=torch.Generator().manual_seed(1))


def norm(x: Tensor) -> Tensor:
    return x.norm(dim=1, keepdim=True)


def check(
    by_hand: Tensor, solver: sg.Solver, sde: sg.DiscreteVPSDE | sg.DiscreteVESDE, x_T: Tensor, final: str = "none"
) -> None:
    steps = len(sde.times) - 1
    res = sg.sample(MIXTURE.score(sde), sde, x_T=x_T, solver=solver, grid="table", steps=steps, seed=0, final=final)
    assert res.times == sde.times[::-1]
    torch.testing.assert_close(res.x, by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::sgm_sde.schemes.LangevinNormWarning")
@pytest.mark.parametrize("final", ["none", "mean"])
@pytest.mark.parametrize("order", ["PC", "CP"])
@pytest.mark.parametrize("process", ["ve", "vp"])
def test_predictor_corrector(process: str, order: str, final: str) -> None:
    """Song et al. 2021, algorithms 2 (VE) and 3 (VP): a reverse-diffusion step, then Langevin steps; or the
    other way round, as in the paper's code. "mean" leaves out the noise added last."""
    snr, M, N = 0.16, 2, 12
    ladder = sg.DiscreteVESDE(SIGMAS) if process == "ve" else sg.DiscreteVPSDE(BETAS)
    sigma, beta, score = SIGMAS, BETAS, MIXTURE.score(ladder)
    x = x_T = start(SIGMAS[-1] if process == "ve" else 1.0)
    z, zc = draws("solver"), draws("corrector")

    def correct(x: Tensor, i: int) -> Tensor:
        for m in range(M):
            g, noise = score(x, ladder.times[i]), zc()
            a = 1.0 if process == "ve" else 1 - beta[i]
            eps = 2 * a * (snr * norm(noise) / norm(g)) ** 2
            x = x + eps * g
            if not (final == "mean" and i == 0 and m == M - 1):
                x = x + (2 * eps).sqrt() * noise
        return x

    for i in reversed(range(N - 1)):
        if order == "CP":
            x = correct(x, i + 1)
        g = score(x, ladder.times[i + 1])
        if process == "ve":
            x, std = x + (sigma[i + 1] ** 2 - sigma[i] ** 2) * g, math.sqrt(sigma[i + 1] ** 2 - sigma[i] ** 2)
        else:
            x, std = (2 - math.sqrt(1 - beta[i + 1])) * x + beta[i + 1] * g, math.sqrt(beta[i + 1])
        if not (final == "mean" and order == "CP" and i == 0):
            x = x + std * z()
        if order == "PC":
            x = correct(x, i)
    check(
        x,
        sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(snr, M, norm="sample"), order=order),
        ladder,
        x_T,
        final,
    )


def test_the_order_of_the_published_algorithms_is_the_default() -> None:
    """PredictorCorrector(...) without an order is "PC"."""
    default = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin())
    assert default == sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(), order="PC")
    assert default != sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin(), order="CP")


@pytest.mark.parametrize("variance", ["posterior", "transition"])
def test_ancestral_sampling_on_ddpm_s_table(variance: str) -> None:
    """Ho et al. 2020, algorithm 2, with both of its variances."""
    sde, a_bar = sg.DiscreteVPSDE(BETAS), A_BAR
    x = x_T = start(1.0)
    z = draws("solver")
    for i in reversed(range(1, len(BETAS))):
        eps = -math.sqrt(1 - a_bar[i]) * MIXTURE.score(sde)(x, sde.times[i])
        mean = (x - BETAS[i] / math.sqrt(1 - a_bar[i]) * eps) / math.sqrt(1 - BETAS[i])
        beta_tilde = (1 - a_bar[i - 1]) / (1 - a_bar[i]) * BETAS[i]
        x = mean + math.sqrt(beta_tilde if variance == "posterior" else BETAS[i]) * z()
    check(x, sg.Ancestral(variance=variance), sde, x_T)


def test_ddpm_ends_in_the_noise_free_mean() -> None:
    """DDPM's step from t = 1 to 0 is noise-free and lands on the denoised data: final="denoise"."""
    sde = sg.DiscreteVPSDE(BETAS)
    x = start(1.0)
    eps = -math.sqrt(BETAS[0]) * MIXTURE.score(sde)(x, sde.times[0])
    by_hand = (x - BETAS[0] / math.sqrt(BETAS[0]) * eps) / math.sqrt(1 - BETAS[0])
    res = sg.sample(MIXTURE.score(sde), sde, x_T=x, grid=[sde.times[0]], seed=0)
    torch.testing.assert_close(res.x, by_hand, rtol=1e-10, atol=1e-10)


def test_ancestral_sampling_on_the_ve_ladder() -> None:
    """Song et al. 2021, appendix F: ancestral sampling for SMLD."""
    sde = sg.DiscreteVESDE(SIGMAS)
    x = x_T = start(SIGMAS[-1])
    z = draws("solver")
    for i in reversed(range(1, len(SIGMAS))):
        high, low = SIGMAS[i] ** 2, SIGMAS[i - 1] ** 2
        x = x + (high - low) * MIXTURE.score(sde)(x, sde.times[i]) + math.sqrt(low * (high - low) / high) * z()
    check(x, sg.Ancestral(), sde, x_T)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(eta: float) -> None:
    """Song, Meng & Ermon 2021, equations 12 and 16."""
    sde, a_bar = sg.DiscreteVPSDE(BETAS), A_BAR
    x = x_T = start(1.0)
    z = draws("solver")
    for i in reversed(range(1, len(BETAS))):
        now, before = a_bar[i], a_bar[i - 1]
        eps = -math.sqrt(1 - now) * MIXTURE.score(sde)(x, sde.times[i])
        std = eta * math.sqrt((1 - before) / (1 - now)) * math.sqrt(1 - now / before)
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(before) * x0 + math.sqrt(1 - before - std**2) * eps + (std * z() if eta else 0)
    check(x, sg.DDIM(eta=eta), sde, x_T)


def test_annealed_langevin() -> None:
    """Song & Ermon 2019, algorithm 1: every level is visited, the last one included."""
    sde, epsilon, T = sg.DiscreteVESDE(SIGMAS), 1e-3, 3
    x = x_T = start(SIGMAS[-1])
    z = draws("solver")
    for i in reversed(range(len(SIGMAS))):
        alpha = epsilon * SIGMAS[i] ** 2 / SIGMAS[0] ** 2
        for _ in range(T):
            x = x + alpha / 2 * MIXTURE.score(sde)(x, sde.times[i]) + math.sqrt(alpha) * z()
    solver = sg.schemes.AnnealedLangevin(epsilon / SIGMAS[0] ** 2, n_steps=T)
    check(x, solver, sde, x_T)
    grid = sg.grids.Table()(sde, len(SIGMAS) - 1)
    assert solver.compile(sde, grid).nfe == solver.nfe(grid.steps) == T * len(SIGMAS)


def test_annealed_langevin_as_a_corrector() -> None:
    """The same update at the nodes that a predictor reaches."""
    sde, epsilon, T = sg.DiscreteVESDE(SIGMAS), 1e-3, 2
    x = x_T = start(SIGMAS[-1])
    zc = draws("corrector")
    for i in reversed(range(1, len(SIGMAS))):
        x = SIGMAS[i - 1] / SIGMAS[i] * x + (1 - SIGMAS[i - 1] / SIGMAS[i]) * MIXTURE.score(sde).denoised(
            x, sde.times[i]
        )
        for _ in range(T):
            alpha = epsilon * SIGMAS[i - 1] ** 2 / SIGMAS[0] ** 2
            x = x + alpha / 2 * MIXTURE.score(sde)(x, sde.times[i - 1]) + math.sqrt(alpha) * zc()
    check(
        x, sg.PredictorCorrector(sg.DDIM(), sg.schemes.AnnealedLangevin(epsilon / SIGMAS[0] ** 2, n_steps=T)), sde, x_T
    )


def test_edm_sampler() -> None:
    """Karras et al. 2022, algorithm 2: churn, Euler step, correction, Euler's step to 0 at the end."""
    churn, low, high, inflate = 3.0, 0.1, 8.0, 1.007
    levels = [10.0, 7.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.08]
    sde = sg.EDMSDE(sigma_min=0.08, sigma_max=10.0)
    x = x_T = start(10.0)
    z = draws("solver", levels[0])
    D = MIXTURE.score(sde).denoised
    for t, t_next in zip(levels, [*levels[1:], 0.0], strict=True):
        gamma = min(churn / len(levels), math.sqrt(2) - 1) if low <= t <= high and t_next else 0.0
        t_hat = t + gamma * t
        x_hat = x + (math.sqrt(t_hat**2 - t**2) * inflate * z() if gamma else 0)
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next:
            x = x_hat + (t_next - t_hat) * (d + (x - D(x, t_next)) / t_next) / 2
    solver = sg.Heun(s_churn=churn, s_tmin=low, s_tmax=high, s_noise=inflate)
    res = sg.sample(MIXTURE.score(sde), sde, x_T=x_T, solver=solver, grid=levels, seed=0)
    assert res.nfe == 2 * len(levels) - 1
    torch.testing.assert_close(res.x, x, rtol=1e-10, atol=1e-10)


def test_dpm_solver_pp_2m() -> None:
    """Lu et al. 2022, algorithm 2, on the log-SNR of the linear VP process."""
    sde = sg.VPSDE()
    times = [1.0, 0.9, 0.65, 0.4, 0.3, 0.1, 0.02]
    alpha = [float(sde.alpha(t)) for t in times]
    sigma = [math.sqrt(1 - a**2) for a in alpha]
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    x = x_T = start(1.0)
    D_old = None
    for i in range(1, len(times)):
        h = lam[i] - lam[i - 1]
        D = MIXTURE.score(sde).denoised(x, times[i - 1])
        r = (lam[i - 1] - lam[i - 2]) / h if i > 1 else 1.0
        D_mixed = D if D_old is None else (1 + 1 / (2 * r)) * D - 1 / (2 * r) * D_old
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (math.exp(-h) - 1) * D_mixed
        D_old = D
    strict = sg.DPMSolverPP(2, lower_final=False)
    res = sg.sample(MIXTURE.score(sde), sde, x_T=x_T, solver=strict, grid=times, final="none", seed=0)
    torch.testing.assert_close(res.x, x, rtol=1e-10, atol=1e-10)


def test_euler_maruyama() -> None:
    """Song et al. 2021, equation 6, discretised on the grid's own steps."""
    sde, eta = sg.SubVPSDE(), 0.7
    times = [1.0, 0.8, 0.7, 0.3, 0.2, 0.01]
    x = x_T = start(1.0)
    z = draws("solver")
    for t, t_next in itertools.pairwise(times):
        rev = sde.reverse(MIXTURE.score(sde), eta=eta)
        x = x - rev.f(x, torch.tensor(t, dtype=F64)) * (t - t_next) + float(rev.g(t)) * math.sqrt(t - t_next) * z()
    res = sg.sample(
        MIXTURE.score(sde), sde, x_T=x_T, solver=sg.EulerMaruyama(eta=eta), grid=times, final="none", seed=0
    )
    torch.testing.assert_close(res.x, x, rtol=1e-10, atol=1e-10)
