"""A process against what it declares."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer
from sgm_sde._utils.shapes import flat
from sgm_sde.grids import LogSNR
from sgm_sde.processes.base import SDE, CheckError, require_sde
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE, in_words_of_no_signal

F64 = torch.float64


def check_sde(sde: SDE, *, n: int = 4000, seed: int = 0) -> tuple[str, ...]:
    r"""Check a process against its own declarations; raise at the first contradiction.

    For every process: shapes of f and g for t of shape () and (B,), finite coefficients on [eps, T], and the
    prior's samples against its density. For a `LinearSDE` also: f and g against autograd of alpha and sigma;
    the semigroup of transitions; log-SNR decreasing and `time` its inverse; and the forward process simulated
    step by step against alpha and sigma at five times.

    Args:
        sde: the process.
        n: number of simulated paths.
        seed: of the simulation.

    Returns:
        the checks that were made, in words.

    Raises:
        CheckError: with the time and the two values that contradict one another.

    Examples:
        >>> import sgm_sde as sg
        >>> len(check_sde(sg.VPSDE()))
        7
    """
    require_sde(sde)
    n = check_integer("n", n, 2)
    seed = check_integer("seed", seed, 0)
    times = torch.linspace(_after_eps(sde), sde.T, 64, dtype=F64)
    checks: list[Callable[[], str]] = [lambda: _check_shapes(sde, times), lambda: _check_prior(sde, n, seed)]
    if has_scalar_marginal(sde):
        checks += [
            lambda: _check_drift(sde, times),
            lambda: _check_diffusion(sde, times),
            lambda: _check_semigroup(sde, times),
            lambda: _check_time(sde, times),
            lambda: _check_simulation(sde, n, seed),
        ]
    return tuple(check() for check in checks)


def _after_eps(sde: SDE) -> float:
    """A time near eps, where coefficients that are infinite at 0 are finite though eps be 0."""
    return sde.eps + 1e-3 * (sde.T - sde.eps)


def _agree(values: str, got: Tensor, expected: Tensor, times: Tensor, rtol: float) -> None:
    atol = rtol * float(expected.abs().max()) * 1e-6
    differ = ~torch.isclose(got, expected, rtol=rtol, atol=atol)
    if bool(differ.any()):
        i = int(differ.nonzero()[0])
        declared = got[i].item()
        raise CheckError(f"{values} at t={times[i].item():.6g}: declared {declared}, expected {expected[i].item()}")


def _check_shapes(sde: SDE, times: Tensor) -> str:
    for shape in ((5,), (5, 3), (5, 2, 4, 4)):
        x = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape)
        _check_batch(sde, x, times[:: len(times) // 5][:5])

    at_one = torch.ones(len(times), 1, dtype=F64)
    nothing_left = has_scalar_marginal(sde) and float(sde.alpha(sde.T)) == 0
    words = in_words_of_no_signal(sde.T) if nothing_left else ""
    _require_finite("f", sde.f(at_one, times)[:, 0], times, words)
    _require_finite("g", sde.g(times), times)
    return "f and g keep the shapes of x and t and are finite on (eps, T]"


def _check_batch(sde: SDE, x: Tensor, t: Tensor) -> None:
    """Raise where f and g of a batch have other shapes than x and t, or f mixes the times of samples."""
    f = sde.f(x, t)
    g = sde.g(t)
    if f.shape != x.shape or g.shape != t.shape:
        raise CheckError(
            f"for x of shape {tuple(x.shape)} and t of shape (5,): f has shape {tuple(f.shape)}, "
            f"g has shape {tuple(g.shape)}"
        )
    apart = torch.stack([sde.f(x[i : i + 1], t_i)[0] for i, t_i in enumerate(t)])
    _agree("f with t of shape (B,)", flat(f).sum(1), flat(apart).sum(1), t, 1e-9)


def _require_finite(name: str, value: Tensor, times: Tensor, words: str = "") -> None:
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise CheckError(f"{name} is {value[i].item()} at t={times[i].item():.6g}{words}")


def _check_prior(sde: SDE, n: int, seed: int) -> str:
    x = sde.prior_sample((n, 3), seed=seed, dtype=F64)
    log_p = sde.prior_log_prob(x)
    if log_p.shape != (n,):
        raise CheckError(f"prior_log_prob of {n} samples has shape {tuple(log_p.shape)}")

    # E[d log p(c x)/dc at c = 1] = -d for any density: the samples have the density's scale.
    c = torch.ones(n, dtype=F64, requires_grad=True)
    with torch.enable_grad():
        total = sde.prior_log_prob(c[:, None] * x).sum()
        (slope,) = torch.autograd.grad(total, c)
    z = float((slope.mean() + 3) / (slope.std() / math.sqrt(n)))
    if not abs(z) < 4.5:
        raise CheckError(f"prior samples do not have the scale of prior_log_prob: {z:.1f} standard errors off")
    return "prior samples have the scale of the prior's density"


def _gradient(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = fn(t)
        if not value.requires_grad:  # constant
            return torch.zeros_like(t)
        (gradient,) = torch.autograd.grad(value.sum(), t)
        return gradient


def _check_drift(sde: LinearSDE, times: Tensor) -> str:
    expected = _gradient(lambda t: sde.alpha(t).log(), times)
    one = torch.ones(len(times), 1, dtype=F64)
    _agree("f(x, t) / x", sde.f(one, times)[:, 0], expected, times, 1e-6)
    _agree("d_alpha", sde.d_alpha(times), _gradient(sde.alpha, times), times, 1e-6)
    return "f is the derivative of log(alpha)"


def _check_diffusion(sde: LinearSDE, times: Tensor) -> str:
    rate = _gradient(lambda t: sde.alpha(t).log(), times)
    expected = _gradient(lambda t: sde.sigma(t) ** 2, times) - 2 * rate * sde.sigma(times) ** 2
    _agree("g^2", sde.g(times) ** 2, expected, times, 1e-6)
    _agree("d_sigma", sde.d_sigma(times), _gradient(sde.sigma, times), times, 1e-6)
    return "g^2 is d(sigma^2)/dt - 2 f sigma^2"


def _check_semigroup(sde: LinearSDE, times: Tensor) -> str:
    r = times[:-2]
    s = times[1:-1]
    t = times[2:]
    a_sr, b_sr = sde.transition(r, s)
    a_ts, b_ts = sde.transition(s, t)
    a_tr, b_tr = sde.transition(r, t)
    _agree("scale of r to t", a_tr, a_ts * a_sr, t, 1e-7)
    _agree("variance of r to t", b_tr**2, (a_ts * b_sr) ** 2 + b_ts**2, t, 1e-7)
    _agree("alpha", sde.alpha(t), a_ts * sde.alpha(s), t, 1e-7)
    _agree("sigma^2", sde.sigma(t) ** 2, (a_ts * sde.sigma(s)) ** 2 + b_ts**2, t, 1e-7)
    return "transitions compose, and carry the marginal along"


def _check_time(sde: LinearSDE, times: Tensor) -> str:
    log_snr = sde.log_snr(times)
    _agree("log_snr", log_snr, 2 * (sde.alpha(times) / sde.sigma(times)).log(), times, 1e-6)
    if not bool((log_snr.diff() < 0).all()):
        raise CheckError("log_snr does not decrease with t")
    _agree("time(log_snr(t))", sde.time(log_snr), times, times, 1e-6)
    return "time is the inverse of log_snr, which decreases"


def _check_simulation(sde: LinearSDE, n: int, seed: int) -> str:
    # Midpoint steps, equal in log-SNR: the bias is far below the statistical error.
    start = _after_eps(sde)
    grid = LogSNR()(sde, 1000, t_end=start).times[::-1]
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(n, 1, dtype=F64, generator=generator)

    x0 = 1.5
    x = sde.alpha(start) * x0 + sde.sigma(start) * draw()
    for i, (s, t) in enumerate(pairwise(grid), start=1):
        x = _midpoint_step(sde, x, s, t, draw())
        if i % 200 == 0:
            _require_moments(x, t, float(sde.alpha(t)) * x0, float(sde.sigma(t)))
    return "the simulated forward process has the declared moments at five times"


def _midpoint_step(sde: SDE, x: Tensor, s: float, t: float, z: Tensor) -> Tensor:
    h = t - s
    start = torch.tensor(s, dtype=F64)
    middle = torch.tensor((s + t) / 2, dtype=F64)
    x_middle = x + h / 2 * sde.f(x, start)
    return x + h * sde.f(x_middle, middle) + sde.g(middle) * math.sqrt(h) * z


def _require_moments(x: Tensor, t: float, mean: float, std: float) -> None:
    """Raise where samples (n, 1) have other moments than declared, by 4 standard errors."""
    n = len(x)
    z_mean = float((x.mean() - mean) / (std / math.sqrt(n)))
    z_variance = float((x.var() / std**2 - 1) / math.sqrt(2 / n))
    if not (abs(z_mean) < 4 and abs(z_variance) < 4):
        raise CheckError(
            f"simulated forward to t={t:.6g}: mean {x.mean().item():.6g}, std {x.std().item():.6g}; declared "
            f"{mean:.6g} and {std:.6g} ({z_mean:.1f} and {z_variance:.1f} standard errors off)"
        )
