"""Checks to run on a process or a solver of your own: the ones this library runs on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde.engine.executor import execute
from sgm_sde.grids import Grid, GridRule, LogSNR
from sgm_sde.processes.base import SDE, require_sde
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.scores.model import BoundModel
from sgm_sde.scores.oracles import Gaussian, GaussianMixture, Oracle
from sgm_sde.solvers import Solver, resolve

F64 = torch.float64


class CheckError(AssertionError):
    """A process is not what it declares."""


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

    Example:
        >>> import sgm_sde as sg
        >>> len(check_sde(sg.VPSDE()))
        7
    """
    require_sde(sde)
    times = torch.linspace(sde.eps + 1e-3 * (sde.T - sde.eps), sde.T, 64, dtype=F64)
    checks: list[Callable[[], str]] = [lambda: _check_shapes(sde, times), lambda: _check_prior(sde, n, seed)]
    if isinstance(sde, LinearSDE):
        checks += [
            lambda: _check_drift(sde, times),
            lambda: _check_diffusion(sde, times),
            lambda: _check_semigroup(sde, times),
            lambda: _check_time(sde, times),
            lambda: _check_simulation(sde, n, seed),
        ]
    return tuple(check() for check in checks)


def _agree(what: str, got: Tensor, expected: Tensor, times: Tensor, rtol: float) -> None:
    off = ~torch.isclose(got, expected, rtol=rtol, atol=rtol * float(expected.abs().max()) * 1e-6)
    if bool(off.any()):
        i = int(off.nonzero()[0])
        raise CheckError(f"{what} at t={times[i].item():.6g}: declared {got[i].item()}, expected {expected[i].item()}")


def _check_shapes(sde: SDE, times: Tensor) -> str:
    for shape in ((5,), (5, 3), (5, 2, 4, 4)):
        x = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape)
        batch = times[:: len(times) // 5][:5]
        together = sde.f(x, batch)
        if together.shape != x.shape or sde.g(batch).shape != batch.shape:
            raise CheckError(
                f"for x of shape {shape} and t of shape (5,): f has shape {tuple(together.shape)}, "
                f"g has shape {tuple(sde.g(batch).shape)}"
            )
        apart = torch.stack([sde.f(x[i : i + 1], t)[0] for i, t in enumerate(batch)])
        _agree("f with t of shape (B,)", together.flatten(1).sum(1) if x.ndim > 1 else together,
               apart.flatten(1).sum(1) if x.ndim > 1 else apart, batch, 1e-9)  # fmt: skip
    for name, value in (("f", sde.f(torch.ones(len(times), 1, dtype=F64), times)[:, 0]), ("g", sde.g(times))):
        if not bool(torch.isfinite(value).all()):
            i = int((~torch.isfinite(value)).nonzero()[0])
            raise CheckError(f"{name} is {value[i].item()} at t={times[i].item():.6g}")
    return "f and g keep the shapes of x and t and are finite on (eps, T]"


def _check_prior(sde: SDE, n: int, seed: int) -> str:
    x = sde.prior_sample((n, 3), seed=seed, dtype=F64)
    log_p = sde.prior_log_prob(x)
    if log_p.shape != (n,):
        raise CheckError(f"prior_log_prob of {n} samples has shape {tuple(log_p.shape)}")
    # E[d log p(c x)/dc at c = 1] = -d for any density: the samples have the density's scale.
    c = torch.ones(n, dtype=F64, requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(sde.prior_log_prob(c[:, None] * x).sum(), c)
    z = float((slope.mean() + 3) / (slope.std() / math.sqrt(n)))
    if not abs(z) < 4.5:
        raise CheckError(f"prior samples do not have the scale of prior_log_prob: {z:.1f} standard errors off")
    return "prior samples have the scale of the prior's density"


def _gradient(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = fn(t)
        return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


def _check_drift(sde: LinearSDE, times: Tensor) -> str:
    expected = _gradient(lambda t: sde.alpha(t).log(), times)
    _agree("f(x, t) / x", sde.f(torch.ones(len(times), 1, dtype=F64), times)[:, 0], expected, times, 1e-6)
    _agree("d_alpha", sde.d_alpha(times), _gradient(sde.alpha, times), times, 1e-6)
    return "f is the derivative of log(alpha)"


def _check_diffusion(sde: LinearSDE, times: Tensor) -> str:
    rate = _gradient(lambda t: sde.alpha(t).log(), times)
    expected = _gradient(lambda t: sde.sigma(t) ** 2, times) - 2 * rate * sde.sigma(times) ** 2
    _agree("g^2", sde.g(times) ** 2, expected, times, 1e-6)
    _agree("d_sigma", sde.d_sigma(times), _gradient(sde.sigma, times), times, 1e-6)
    return "g^2 is d(sigma^2)/dt - 2 f sigma^2"


def _check_semigroup(sde: LinearSDE, times: Tensor) -> str:
    r, s, t = times[:-2], times[1:-1], times[2:]
    (a1, b1), (a2, b2), (a, b) = sde.transition(r, s), sde.transition(s, t), sde.transition(r, t)
    _agree("scale of r to t", a, a2 * a1, t, 1e-7)
    _agree("variance of r to t", b**2, (a2 * b1) ** 2 + b2**2, t, 1e-7)
    a, b = sde.transition(s, t)
    _agree("alpha", sde.alpha(t), a * sde.alpha(s), t, 1e-7)
    _agree("sigma^2", sde.sigma(t) ** 2, (a * sde.sigma(s)) ** 2 + b**2, t, 1e-7)
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
    start = sde.eps + 1e-3 * (sde.T - sde.eps)
    grid = LogSNR()(sde, 1000, t_end=start).times[::-1]
    generator = torch.Generator().manual_seed(seed)
    x0 = 1.5
    x = sde.alpha(start) * x0 + sde.sigma(start) * torch.randn(n, 1, dtype=F64, generator=generator)
    for i, (s, t) in enumerate(pairwise(grid), start=1):
        h, middle = t - s, torch.tensor((s + t) / 2, dtype=F64)
        half = x + h / 2 * sde.f(x, torch.tensor(s, dtype=F64))
        noise = torch.randn(n, 1, dtype=F64, generator=generator)
        x = x + h * sde.f(half, middle) + sde.g(middle) * math.sqrt(h) * noise
        if i % 200 == 0:
            alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
            z_mean = float((x.mean() - alpha * x0) / (sigma / math.sqrt(n)))
            z_variance = float((x.var() / sigma**2 - 1) / math.sqrt(2 / n))
            if not (abs(z_mean) < 4 and abs(z_variance) < 4):
                raise CheckError(
                    f"simulated forward to t={t:.6g}: mean {x.mean().item():.6g}, std {x.std().item():.6g}; declared "
                    f"{alpha * x0:.6g} and {sigma:.6g} ({z_mean:.1f} and {z_variance:.1f} standard errors off)"
                )
    return "the simulated forward process has the declared moments at five times"


@dataclass(frozen=True)
class OrderMeasurement:
    """Errors at rising numbers of steps.

    Attributes:
        steps: numbers of steps.
        errors: the error at each.
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def slopes(self) -> tuple[float, ...]:
        """Order of convergence between successive numbers of steps."""
        return tuple(
            math.log(e1 / e2) / math.log(n2 / n1)
            for (n1, e1), (n2, e2) in pairwise(zip(self.steps, self.errors, strict=True))
        )

    @property
    def order(self) -> float:
        """Slope over the last two refinements whose errors are above rounding."""
        clean = [(n, error) for n, error in zip(self.steps, self.errors, strict=True) if error > 1e-12][-3:]
        if len(clean) < 2:
            return math.nan
        (n1, e1), (n2, e2) = clean[0], clean[-1]
        return math.log(e1 / e2) / math.log(n2 / n1)


@lru_cache
def default_oracle(kind: str = "gaussian") -> Oracle:
    """The two-dimensional data that orders are measured on: `"gaussian"` or a three-mode `"mixture"`."""
    if kind == "gaussian":
        return Gaussian(torch.tensor([0.3, -0.7]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    means = torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]])
    return GaussianMixture(means, [0.4, 0.5, 0.3], [0.5, 0.3, 0.2])


def warped(rule: GridRule | None = None, warp: Sequence[float] = (0.4, -0.3, 0.2)) -> GridRule:
    r"""A smooth but strongly uneven version of a grid rule: equal steps of $u + \sum_k w_k \sin(\pi k u)/(\pi k)$.

    Raises:
        ValueError: if the weights' absolute values add up to 1 or more, where the grid would turn back.
    """
    if sum(map(abs, warp)) >= 1:
        raise ValueError(f"the absolute weights must add up to less than 1, got {list(warp)}")
    return _Warped(rule or LogSNR(), tuple(warp))


@dataclass(frozen=True)
class _Warped(GridRule):
    rule: GridRule
    warp: tuple[float, ...]

    def place(self, sde: Any, u: Tensor, start: float, end: float) -> Tensor:
        v = u + sum(w * torch.sin(math.pi * k * u) / (math.pi * k) for k, w in enumerate(self.warp, start=1))
        return self.rule.place(sde, v, start, end)


def rough(rule: GridRule | None = None, jitter: float = 0.4, seed: int = 0) -> GridRule:
    """A grid rule whose nodes are moved at random, each by at most `jitter` of half the distance to its neighbours.

    No refinement makes such a grid smooth: methods that take even steps for granted lose their order on it.

    Raises:
        ValueError: for a jitter outside [0, 1).
    """
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter must lie in [0, 1), got {jitter}")
    return _Rough(rule or LogSNR(), jitter, seed)


@dataclass(frozen=True)
class _Rough(GridRule):
    rule: GridRule
    jitter: float
    seed: int

    def place(self, sde: Any, u: Tensor, start: float, end: float) -> Tensor:
        # A random pattern that repeats: errors then fall without the scatter of fresh draws.
        pattern = np.random.default_rng(self.seed).uniform(-0.5, 0.5, 16) * self.jitter
        moved = u + torch.from_numpy(np.resize(pattern, len(u))) / (len(u) - 1)
        moved[0], moved[-1] = 0.0, 1.0
        return self.rule.place(sde, moved, start, end)


def flow_reference(
    oracle: Oracle, sde: LinearSDE | MatrixSDE, x: Tensor, t_end: float, t_start: float | None = None
) -> Tensor:
    """The probability flow from `t_start` (default T) to `t_end`.

    In closed form for a Gaussian on a scalar process, else by SciPy's DOP853 at 1e-12.
    """
    t_start = sde.T if t_start is None else t_start
    if isinstance(sde, MatrixSDE):
        return _joint_flow(oracle, sde, x, t_end, t_start)
    if isinstance(oracle, Gaussian):
        return oracle.flow(x, sde, t_start, t_end)
    from scipy.integrate import solve_ivp

    score = oracle.score(sde)

    def slope(lam: float, y: np.ndarray) -> np.ndarray:
        # In y = x / alpha and lam = log(alpha / sigma) the flow is dy/dlam = D - y on every process.
        t = sde.time(torch.tensor(2 * lam, dtype=F64)).clamp(t_end, t_start)
        state = torch.from_numpy(y).reshape(x.shape)
        return np.asarray((score.denoised(sde.alpha(t) * state, t) - state).flatten())

    lams = [float(sde.log_snr(t)) / 2 for t in (t_start, t_end)]
    y0 = (x / sde.alpha(t_start)).flatten().numpy()
    solution = solve_ivp(slope, lams, y0, method="DOP853", rtol=1e-12, atol=1e-12)
    return sde.alpha(t_end) * torch.from_numpy(solution.y[:, -1]).reshape(x.shape)


def _joint_flow(oracle: Oracle, sde: MatrixSDE, z: Tensor, t_end: float, t_start: float) -> Tensor:
    from scipy.integrate import solve_ivp

    flow = sde.reverse(oracle.score(sde), eta=0.0)

    def slope(log_t: float, y: np.ndarray) -> np.ndarray:
        t = math.exp(log_t)  # fields change as fast at small times as their logarithm does
        return np.asarray(t * flow.f(torch.from_numpy(y).reshape(z.shape), min(t, sde.T)).flatten())

    span, y0 = (math.log(t_start), math.log(t_end)), z.flatten().numpy()
    solution = solve_ivp(slope, span, y0, method="DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1]).reshape(z.shape)


def measure_order(
    solver: Solver | str,
    sde: LinearSDE | MatrixSDE,
    *,
    oracle: Oracle | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    rule: GridRule | None = None,
    steps: Sequence[int] = (80, 160, 320, 640),
) -> OrderMeasurement:
    """Errors of a deterministic solver against the exact probability flow, in float64.

    Args:
        solver: a solver or its name.
        sde: a linear process, with numbers or with a matrix.
        oracle: data with an exact score; two-dimensional Gaussian data if not given.
        t_start: where to start; the default is where sigma / alpha is 3, since at T, where the denoiser hardly
            moves, a first step of low order does not show.
        t_end: where to stop; the default leaves the fields smooth.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.

    Example:
        >>> import sgm_sde as sg
        >>> round(measure_order("ddim", sg.VPSDE()).order, 1)
        1.0
    """
    solver, oracle, rule = resolve(solver), oracle or default_oracle(), rule or LogSNR()
    t_start = active_start(sde) if t_start is None else t_start
    t_end = smooth_end(sde) if t_end is None else t_end
    problem = _problem if isinstance(sde, Hashable) else _problem.__wrapped__
    x, exact = problem(oracle, sde, t_start, t_end)
    score = oracle.score(sde)
    errors = []
    for n in steps:
        grid = rule(sde, n, t_start, t_end)
        errors.append(float((_run(solver, sde, score, x, grid, _Silence()) - exact).norm()))
    return OrderMeasurement(tuple(steps), tuple(errors))


@lru_cache(maxsize=64)
def _problem(oracle: Oracle, sde: LinearSDE | MatrixSDE, t_start: float, t_end: float) -> tuple[Tensor, Tensor]:
    """Initial states and where the probability flow takes them: the same for every solver, and dear to compute."""
    blocks = (sde.blocks,) if isinstance(sde, MatrixSDE) else ()
    x = sde.prior_sample((16, *blocks, *oracle.event_shape), t=t_start, seed=1, dtype=F64)
    return x, flow_reference(oracle, sde, x, t_end, t_start)


def measure_weak_order(
    solver: Solver | str,
    sde: LinearSDE | MatrixSDE,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    rule: GridRule | None = None,
    steps: Sequence[int] = (80, 160, 320, 640),
) -> OrderMeasurement:
    r"""Errors of a stochastic solver's output law on Gaussian data, without Monte Carlo: by impulse response.

    With a linear score a sampler is an affine map of its initial state and its noises. A batch in which sample
    j has a one-hot noise at draw j gives the map's columns; the sum of their squares is the exact output
    variance, and a run without noise from the marginal's mean gives the output mean.

    Args:
        solver: a solver or its name, without correctors.
        sde: a linear process, with numbers or with a matrix.
        t_start: where to start; the default is where sigma / alpha is 3.
        t_end: where to stop; the default leaves the fields smooth.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.

    Returns:
        relative error of mean and standard deviation over four data sets, root of the sum of squares; on a process
        with a matrix, of the whitened mean and covariance of the joint state.

    Example:
        >>> import sgm_sde as sg
        >>> round(measure_weak_order("ancestral", sg.VPSDE()).order, 1)
        1.0
    """
    solver, rule = resolve(solver), rule or LogSNR()
    t_start = active_start(sde) if t_start is None else t_start
    t_end = smooth_end(sde) if t_end is None else t_end
    # Several data sets, side by side as coordinates: an error that changes its sign on one of them is seen on another.
    mean, std = torch.tensor([0.7, -1.2, 0.4, 0.9], dtype=F64), torch.tensor([0.6, 0.2, 1.5, 0.4], dtype=F64)
    score = Gaussian(mean, std.square().diag()).score(sde)

    def law(t: float) -> tuple[Tensor, Tensor]:
        """Mean (k, 4) of the blocks and a root (k, k, 4) of their covariance."""
        if isinstance(sde, MatrixSDE):
            mu, covariance = sde.kernel(torch.tensor(t, dtype=F64))
            spread = torch.outer(mu, mu) * std.square()[:, None, None] + covariance
            return mu[:, None] * mean, torch.linalg.cholesky(spread).movedim(0, -1)
        return (sde.alpha(t) * mean)[None], torch.hypot(sde.alpha(t) * std, sde.sigma(t))[None, None]

    errors = []
    for n in steps:
        grid = rule(sde, n, t_start, t_end)
        draws = len({m for stage in solver.compile(sde, grid).stages for m, _ in stage.noises})
        (mean_0, root_0), (exact_mean, exact_root) = law(t_start), law(t_end)
        k = len(mean_0)
        # Rows: one per draw and block, one per block of the start's own impulse, one without any.
        x = mean_0.expand(k * (draws + 1) + 1, k, -1).clone()
        x[-k - 1 : -1] += root_0.movedim(1, 0)
        y = _run(solver, sde, score, x if isinstance(sde, MatrixSDE) else x[:, 0], grid, _OneHot(k)).view_as(x)
        got_mean = y[-1]
        impulses = y[:-1] - got_mean
        inverse = torch.linalg.inv(exact_root.movedim(-1, 0))
        off_mean = torch.einsum("dij,jd->id", inverse, got_mean - exact_mean)
        white = torch.einsum("dij,njd->nid", inverse, impulses)
        got = torch.einsum("nid,njd->dij", white, white)
        off = got.sqrt()[:, 0, 0, None] - 1 if k == 1 else (got - torch.eye(k)).flatten(1) / 2
        errors.append(float(torch.cat([off_mean.flatten(), off.flatten()]).norm()))
    return OrderMeasurement(tuple(steps), tuple(errors))


def smooth_end(sde: LinearSDE | MatrixSDE) -> float:
    """The time where sigma / alpha is 0.2, or `sde.eps` if that is later: fields are still smooth there."""
    return max(float(sde.time(-2 * math.log(0.2))), sde.eps)


def active_start(sde: LinearSDE | MatrixSDE) -> float:
    """The time where sigma / alpha is 3, or `sde.T` if that is earlier: the denoiser depends on the state there."""
    return min(float(sde.time(-2 * math.log(3.0))), sde.T) if float(sde.log_snr(sde.T)) < -2 * math.log(3.0) else sde.T


def _run(solver: Solver, sde: SDE, score: Any, x: Tensor, grid: Grid, noise: Any) -> Tensor:
    model = BoundModel(score, sde, (grid.times[-1], grid.times[0]))
    with torch.no_grad():
        return execute(solver.compile(sde, grid), x, model, noise).x


class _Silence:
    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any = None) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)


class _OneHot:
    """Block b of draw j is 1 in sample j k + b, of k blocks, and 0 elsewhere."""

    def __init__(self, blocks: int = 1) -> None:
        self.draw, self.blocks = 0, blocks

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any = None) -> Tensor:
        z = torch.zeros(shape, dtype=dtype, device=device)
        view = z.view(len(z), self.blocks, -1)
        for b in range(self.blocks):
            view[self.draw * self.blocks + b, b] = 1
        self.draw += 1
        return z
