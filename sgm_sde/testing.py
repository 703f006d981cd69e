"""Checks to run on a process or a solver of your own: the ones this library runs on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, instance_of, number, one_of, reals, sizes
from sgm_sde._utils.shapes import flat
from sgm_sde.engine.executor import PreDrawnNoise, execute
from sgm_sde.engine.matrix import number as engine_number
from sgm_sde.engine.node import Coefficient
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Program
from sgm_sde.grids import Grid, GridRule, LogSNR
from sgm_sde.processes.base import SDE, has_matrix_marginal, has_scalar_marginal, require_sde
from sgm_sde.processes.base import CheckError as CheckError
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.schemes import Solver, resolve
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.oracles import Gaussian, GaussianMixture, Oracle
from sgm_sde.scores.score import Score

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
    n, seed = check_integer("n", n, 2), check_integer("seed", seed, 0)
    times = torch.linspace(sde.eps + 1e-3 * (sde.T - sde.eps), sde.T, 64, dtype=F64)
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
        diffusion = sde.g(batch)
        if together.shape != x.shape or diffusion.shape != batch.shape:
            raise CheckError(
                f"for x of shape {shape} and t of shape (5,): f has shape {tuple(together.shape)}, "
                f"g has shape {tuple(diffusion.shape)}"
            )

        # One sample at a time at its own time: a drift that mixes the times of a batch differs.
        apart = torch.stack([sde.f(x[i : i + 1], t)[0] for i, t in enumerate(batch)])
        _agree("f with t of shape (B,)", flat(together).sum(1), flat(apart).sum(1), batch, 1e-9)

    at_one = torch.ones(len(times), 1, dtype=F64)
    for name, value in (("f", sde.f(at_one, times)[:, 0]), ("g", sde.g(times))):
        bad = ~torch.isfinite(value)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
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

    def draw() -> Tensor:
        return torch.randn(n, 1, dtype=F64, generator=generator)

    x0 = 1.5
    x = sde.alpha(start) * x0 + sde.sigma(start) * draw()
    for i, (s, t) in enumerate(pairwise(grid), start=1):
        h = t - s
        before = torch.tensor(s, dtype=F64)
        middle = torch.tensor((s + t) / 2, dtype=F64)
        half = x + h / 2 * sde.f(x, before)
        x = x + h * sde.f(half, middle) + sde.g(middle) * math.sqrt(h) * draw()

        if i % 200 == 0:
            alpha = float(sde.alpha(t))
            sigma = float(sde.sigma(t))
            z_mean = float((x.mean() - alpha * x0) / (sigma / math.sqrt(n)))
            z_variance = float((x.var() / sigma**2 - 1) / math.sqrt(2 / n))
            if not (abs(z_mean) < 4 and abs(z_variance) < 4):
                raise CheckError(
                    f"simulated forward to t={t:.6g}: mean {x.mean().item():.6g}, std {x.std().item():.6g}; declared "
                    f"{alpha * x0:.6g} and {sigma:.6g} ({z_mean:.1f} and {z_variance:.1f} standard errors off)"
                )
    return "the simulated forward process has the declared moments at five times"


@dataclass(frozen=True, repr=False)
class OrderMeasurement:
    """Errors at rising numbers of steps.

    Attributes:
        steps: numbers of steps.
        errors: the error at each.
        stderrs: the standard error of each, where errors are estimated; empty where they are exact.
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    stderrs: tuple[float, ...] = ()

    @property
    def slopes(self) -> tuple[float, ...]:
        """Order of convergence between successive numbers of steps."""
        return tuple(
            math.log(e1 / e2) / math.log(n2 / n1)
            for (n1, e1), (n2, e2) in pairwise(zip(self.steps, self.errors, strict=True))
        )

    @property
    def order(self) -> float:
        """Slope over the last two refinements whose errors are above rounding and 5 standard errors."""
        ends = self._ends
        return math.nan if ends is None else math.log(ends[0][1] / ends[1][1]) / math.log(ends[1][0] / ends[0][0])

    @property
    def order_stderr(self) -> float:
        """Standard error of `order`."""
        ends = self._ends
        if ends is None:
            return math.nan
        (n1, e1, s1), (n2, e2, s2) = ends
        return math.hypot(s1 / e1, s2 / e2) / math.log(n2 / n1)

    def __str__(self) -> str:
        """Steps, error and order between neighbours, a line each."""
        orders = ["", *(f"{slope:.2f}" for slope in self.slopes)]
        errors = [f"{error:.2e}" for error in self.errors]
        if self.stderrs:
            errors = [f"{error} +- {stderr:.0e}" for error, stderr in zip(errors, self.stderrs, strict=True)]
        width = max(map(len, [*errors, "error"]))
        lines = [f"{'steps':>6}  {'error':>{width}}  order"]
        lines += [f"{n:6d}  {e:>{width}}  {o:>5}" for n, e, o in zip(self.steps, errors, orders, strict=True)]
        spread = f" +- {self.order_stderr:.2f}" if self.stderrs else ""
        return "\n".join([*map(str.rstrip, lines), f"order {self.order:.2f}{spread}"])

    __repr__ = __str__

    @property
    def _ends(self) -> tuple[tuple[int, float, float], tuple[int, float, float]] | None:
        rows = zip(self.steps, self.errors, self.stderrs or [0.0] * len(self.steps), strict=True)
        clean = [row for row in rows if row[1] > max(1e-12, 5 * row[2])][-3:]
        return (clean[0], clean[-1]) if len(clean) > 1 else None


def default_oracle(kind: str = "gaussian") -> Oracle:
    """The data that orders are measured on, two-dimensional, `"gaussian"` or a three-mode `"mixture"`, or a `"scalar"`
    mixture of two modes.
    """
    one_of("kind", kind, ("gaussian", "mixture", "scalar"))
    return _oracle(kind)


@lru_cache
def _oracle(kind: str) -> Oracle:
    if kind == "scalar":
        return GaussianMixture(torch.tensor([[-1.2], [0.6]]), [0.4, 0.6], [0.25, 0.75])
    if kind == "gaussian":
        return Gaussian(torch.tensor([0.3, -0.7]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    means = torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.4, 1.1]])
    return GaussianMixture(means, [0.4, 0.5, 0.3], [0.5, 0.3, 0.2])


def _require_rule(rule: GridRule | None) -> None:
    if rule is not None:
        instance_of("rule", rule, GridRule, "a grid rule, such as LogSNR()")


def warped(rule: GridRule | None = None, warp: Sequence[float] = (0.4, -0.3, 0.2)) -> GridRule:
    r"""A smooth but strongly uneven version of a grid rule: equal steps of $u + \sum_k w_k \sin(\pi k u)/(\pi k)$.

    Raises:
        ValueError: if the weights' absolute values add up to 1 or more, where the grid would turn back.
    """
    warp = reals("warp", warp)
    _require_rule(rule)
    if not sum(map(abs, warp)) < 1:
        raise ValueError(f"the absolute weights must add up to less than 1, got {list(warp)}")
    return _Warped(rule or LogSNR(), tuple(warp))


@dataclass(frozen=True)
class _Warped(GridRule):
    rule: GridRule
    warp: tuple[float, ...]

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        v = u + sum(w * torch.sin(math.pi * k * u) / (math.pi * k) for k, w in enumerate(self.warp, start=1))
        return self.rule.place(sde, v, start, end)


def rough(rule: GridRule | None = None, jitter: float = 0.4, seed: int = 0, period: int = 16) -> GridRule:
    """A grid rule whose nodes are moved at random, each by at most `jitter` of half the distance to its neighbours.

    No refinement makes such a grid smooth: methods that take even steps for granted lose their order on it. The random
    pattern repeats after `period` nodes; whole periods compare best.

    Raises:
        ValueError: for a jitter outside [0, 1), or a period that is not an integer of at least 2.
    """
    _require_rule(rule)
    jitter, seed = number("jitter", jitter, least=0, below=1), check_integer("seed", seed, 0)
    period = check_integer("period", period, 2)
    return _Rough(rule or LogSNR(), jitter, seed, period)


@dataclass(frozen=True)
class _Rough(GridRule):
    rule: GridRule
    jitter: float
    seed: int
    period: int = 16

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        # A random pattern that repeats: errors then fall without the scatter of fresh draws.
        pattern = np.random.default_rng(self.seed).uniform(-0.5, 0.5, self.period) * self.jitter
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
    if has_matrix_marginal(sde):
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
        solver: a solver or its name; one that is another at few steps is measured as it is at many (`Solver.strict`).
        sde: a linear process, with numbers or with a matrix.
        oracle: data with an exact score; two-dimensional Gaussian data if not given.
        t_start: where to start; the default is where sigma / alpha is 3, since at T, where the denoiser hardly
            moves, a first step of low order does not show.
        t_end: where to stop; the default leaves the fields smooth.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.

    Examples:
        >>> import sgm_sde as sg
        >>> round(measure_order("ddim", sg.VPSDE()).order, 1)
        1.0
    """
    require_sde(sde)
    _require_rule(rule)
    if oracle is not None:
        instance_of("oracle", oracle, Oracle, "an oracle, such as oracles.Gaussian")
    steps = sizes("steps", steps)
    solver, oracle, rule = resolve(solver).strict(), oracle or default_oracle(), rule or LogSNR()
    t_start = active_start(sde) if t_start is None else t_start
    t_end = smooth_end(sde) if t_end is None else t_end
    problem = _problem if isinstance(sde, Hashable) else _problem.__wrapped__
    x, exact = problem(oracle, sde, t_start, t_end)
    score = oracle.score(sde)
    errors = []
    for n in steps:
        grid = rule(sde, n, t_start, t_end)
        errors.append(float((_run(solver, sde, score, x, _Silence(), grid=grid) - exact).norm()))
    return OrderMeasurement(tuple(steps), tuple(errors))


@lru_cache(maxsize=64)
def _problem(oracle: Oracle, sde: LinearSDE | MatrixSDE, t_start: float, t_end: float) -> tuple[Tensor, Tensor]:
    """Initial states and their images under the probability flow, cached for all solvers."""
    blocks = (sde.blocks,) if has_matrix_marginal(sde) else ()
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

    Examples:
        >>> import sgm_sde as sg
        >>> round(measure_weak_order("ancestral", sg.VPSDE()).order, 1)
        1.0
    """
    solver, rule = resolve(solver).strict(), rule or LogSNR()
    t_start = active_start(sde) if t_start is None else t_start
    t_end = smooth_end(sde) if t_end is None else t_end

    # Several data sets, side by side as coordinates: an error that changes its sign on one of them is seen on another.
    mean = torch.tensor([0.7, -1.2, 0.4, 0.9], dtype=F64)
    std = torch.tensor([0.6, 0.2, 1.5, 0.4], dtype=F64)
    score = Gaussian(mean, std.square().diag()).score(sde)
    errors = []
    for n in steps:
        grid = rule(sde, n, t_start, t_end)
        exact_mean, exact_root = _marginal(sde, mean, std, t_end)
        got_mean, impulses = _affine_map(partial(_run, solver, sde, score, grid=grid), sde, mean, std, t_start)
        inverse = torch.linalg.inv(exact_root.movedim(-1, 0))
        off_mean = torch.einsum("dij,jd->id", inverse, got_mean - exact_mean)
        white = torch.einsum("dij,njd->nid", inverse, impulses)
        got = torch.einsum("nid,njd->dij", white, white)
        k = len(got_mean)
        off = got.sqrt()[:, 0, 0, None] - 1 if k == 1 else (got - torch.eye(k)).flatten(1) / 2
        errors.append(float(torch.cat([off_mean.flatten(), off.flatten()]).norm()))
    return OrderMeasurement(tuple(steps), tuple(errors))


def _marginal(sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Mean (k, d) of the state's k blocks on d Gaussian data sets, and a root (k, k, d) of their covariance."""
    if has_matrix_marginal(sde):
        mu, covariance = sde.kernel(torch.tensor(t, dtype=F64))
        spread = torch.outer(mu, mu) * std.square()[:, None, None] + covariance
        return mu[:, None] * mean, torch.linalg.cholesky(spread).movedim(0, -1)
    return (sde.alpha(t) * mean)[None], torch.hypot(sde.alpha(t) * std, sde.sigma(t))[None, None]


def _affine_map(
    run: Callable[[Tensor, NoiseSource], Tensor], sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, t_start: float
) -> tuple[Tensor, Tensor]:
    """Output mean (k, d) of a run from the marginal at t_start, and its responses (n, k, d) to n unit impulses."""
    mean_0, root_0 = _marginal(sde, mean, std, t_start)
    k = len(mean_0)

    def end(x: Tensor, noise: NoiseSource) -> Tensor:
        return run(x if has_matrix_marginal(sde) else x[:, 0], noise).view_as(x)

    silence = _Silence()
    middle = end(mean_0[None], silence)[0]
    # Rows: one per draw and block, one per block of the start's own impulse.
    x = mean_0.repeat(k * (silence.draws + 1), 1, 1)
    x[-k:] += root_0.movedim(1, 0)
    return middle, end(x, _OneHot(k)) - middle


def output_law(
    solver: Solver | str, sde: LinearSDE | MatrixSDE, mean: Tensor, std: Tensor, grid: Grid, *, final: str = "none"
) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of a sampler's output on Gaussian data, exactly: by impulse response.

    With a linear score a sampler is an affine map of its initial state and its noises, correctors included whose step
    does not depend on the state. A batch in which sample j has a one-hot noise at draw j gives the map's columns; the
    sum of their squares is the output's variance. The start is the exact marginal at the grid's first time.

    Args:
        solver: a solver or its name; a corrector's step must be known before the state, as `Langevin`'s is.
        sde: a linear process, with numbers or with a matrix.
        mean: of the data, (k,): k data sets side by side.
        std: of the data, (k,).
        grid: the times.
        final: `"none"`, `"mean"` or `"denoise"`, as in `sample`.

    Returns:
        mean and standard deviation, (k,) each, in float64; of every block of the state, (blocks, k) each, on a process
        with a matrix.

    Raises:
        ValueError: for shapes that differ, another `final`, or `"denoise"` on a process with a matrix.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> grid = sg.grids.LogSNR()(sde, 200)
        >>> mean, std = output_law("ancestral", sde, torch.tensor([0.3]), torch.tensor([0.5]), grid)
        >>> round(float(mean), 2), round(float(std), 2)
        (0.3, 0.49)
    """
    if mean.shape != std.shape or mean.ndim != 1:
        raise ValueError(f"mean and std must have one shape (k,), got {tuple(mean.shape)} and {tuple(std.shape)}")
    if final not in ("none", "mean", "denoise"):
        raise ValueError(f"final must be 'none', 'mean' or 'denoise', got {final!r}")
    if final == "denoise" and has_matrix_marginal(sde):
        raise ValueError(f"final='denoise' needs a LinearSDE, got {sde!r}; use 'mean' or 'none'")

    solver = resolve(solver)
    mean, std = mean.to(F64), std.to(F64)
    start, end = grid.times[0], grid.times[-1]
    score = Gaussian(mean, std.square().diag()).score(sde)
    program = solver.compile(sde, grid)
    program = solver.end_in_mean(program) if final == "mean" else program

    def run(x: Tensor, noise: NoiseSource) -> Tensor:
        model = BoundScore(score, sde, (end, start))
        hooks = solver.hooks(sde, grid, model, noise, mean=final == "mean")
        with torch.no_grad():
            x = execute(program, x, model, noise, hooks=hooks).x
            return model.predict("data", x, end) if final == "denoise" else x

    middle, impulses = _affine_map(run, sde, mean, std, start)
    spread = impulses.square().sum(0).sqrt()
    return (middle, spread) if has_matrix_marginal(sde) else (middle[0], spread[0])


def measure_weak_order_on_mixture(
    solver: Solver | str,
    sde: LinearSDE,
    *,
    oracle: GaussianMixture | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    rule: GridRule | None = None,
    steps: Sequence[int] = (8, 16, 32),
    log2_points: int = 13,
    scrambles: int = 4,
    seed: int = 0,
) -> OrderMeasurement:
    r"""Errors of a stochastic solver's output law on a mixture, whose score is not linear, with standard errors.

    The error is that of $E\,f(y)$, $y = x/\alpha$, for $f = (y, y^2, \cos 2y, \sin 2y)$, from exact samples of the
    marginal at `t_start`. The solver runs on scrambled Sobol points, noises in the order of the slow cosines along the
    path. What is averaged is $f$ less a martingale that starts at 0: with $v_k$ the expectation of $f$ at the end,
    given the state, on DDIM's chain with the solver's own noises,

    $$ f(y_N) - \big[v_0(y_0) - E\,v_0(y_0)\big] - \sum_k \big[v_k(y_k) - E(v_k(y_k) \mid y_k\text{ without its fresh
       noise})\big] $$

    which has the same mean whatever the solver, and no variance left for DDIM itself.

    Args:
        solver: a solver or its name, without correctors.
        sde: a linear process.
        oracle: a one-dimensional mixture; two unequal modes if not given.
        t_start: where to start; the default is where sigma / alpha is 2.
        t_end: where to stop; the default is where sigma / alpha is 0.4.
        rule: grid rule, log-SNR if not given.
        steps: numbers of steps.
        log2_points: logarithm of the number of points of a scrambling.
        scrambles: independent scramblings, whose spread gives the standard errors; at least 2.
        seed: of the scramblings.

    Returns:
        the norm of the four errors, and its standard error.

    Raises:
        ValueError: for a solver that adds no noise, data that are not one-dimensional, a negative `log2_points`, or
            fewer than two scramblings.

    Source: Owen, 1997, Annals of Statistics 25 (scrambled nets); Belomestny et al., 2017, arXiv:1701.00273, after
    Newton, 1994 (martingales as control variates).

    Examples:
        >>> import sgm_sde as sg
        >>> round(measure_weak_order_on_mixture("ancestral", sg.VPSDE(), log2_points=8).order, 1)
        1.0
    """
    solver, rule = resolve(solver).strict(), rule or LogSNR()
    if not solver.stochastic:
        raise ValueError(f"{solver.name} adds no noise: measure_order measures it")
    data: Any = default_oracle("scalar") if oracle is None else oracle
    if data.event_shape != (1,):
        raise ValueError(f"the data must be one-dimensional, of shape (1,), got {tuple(data.event_shape)}")
    check_integer("log2_points", log2_points, 0)
    if scrambles < 2:
        raise ValueError(f"a standard error takes at least 2 scramblings, got {scrambles}")

    t_start = active_start(sde, 2.0) if t_start is None else t_start
    t_end = smooth_end(sde, 0.4) if t_end is None else t_end
    exact = _expected_features(data, sde.nodes([t_end])[0].noise_level)
    errors, stderrs = [], []
    for n in steps:
        program = solver.compile(sde, rule(sde, n, t_start, t_end))
        estimate = _ControlledMean(program, sde, data)
        paths = _sobol_paths(estimate.draws, log2_points, scrambles, seed)
        means = np.stack([estimate(z) for z in paths])
        errors.append(float(np.linalg.norm(means.mean(0) - exact)))
        stderrs.append(float(np.linalg.norm(means.std(0, ddof=1))) / math.sqrt(scrambles))
    return OrderMeasurement(tuple(steps), tuple(errors), tuple(stderrs))


def _features(y: np.ndarray) -> np.ndarray:
    """Observables (*, 4) of y (*)."""
    return np.stack([y, y**2, np.cos(2 * y), np.sin(2 * y)], -1)


def _expected_features(data: GaussianMixture, r: float) -> np.ndarray:
    """Their expectations (4,) under the marginal of y = x / alpha where sigma / alpha is r."""
    w = data.weights.numpy()
    m = data.means[:, 0].numpy()
    v = data.variances[:, 0].numpy() + r**2
    damped = np.exp(-2 * v)
    return np.asarray([w @ m, w @ (m**2 + v), w @ (damped * np.cos(2 * m)), w @ (damped * np.sin(2 * m))])


def _sobol_paths(draws: int, log2_points: int, scrambles: int, seed: int) -> Iterator[np.ndarray]:
    """Standard normals (B, 1 + draws) of each scrambling, the start's first."""
    from scipy.fft import idct
    from scipy.stats import qmc

    for i in range(scrambles):
        engine = qmc.Sobol(1 + draws, seed=np.random.default_rng([seed, i]))
        z = qmc.MultivariateNormalQMC(np.zeros(1 + draws), engine=engine).random(2**log2_points)
        yield np.concatenate([z[:, :1], idct(z[:, 1:], norm="ortho")], 1)


class _Observed(BoundScore):
    """A model that shows each state to `observe` before it is evaluated."""

    observe: Callable[[Tensor], None]

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at x (B, *) and time t (B,)."""
        self.observe(x)
        return super().evaluate(x, t)


class _ControlledMean:
    """Mean of the observables at a program's end, less the martingale of DDIM's chain with the same noises."""

    def __init__(self, program: Program, sde: LinearSDE, data: GaussianMixture) -> None:
        from scipy.interpolate import CubicSpline

        self.program, self.sde, self.data, self.fresh = program, sde, data, _fresh(program)
        self.draws = sum(map(len, self.fresh))
        self.nodes = sde.nodes([stage.t for stage in program.stages])
        points, weights = np.polynomial.hermite_e.hermegauss(24)  # expectations over the fresh noise
        weights /= weights.sum()
        reach = float(data.means.abs().max())
        width = float(data.variances.max())

        # Of each stage with fresh noise: the value of its state, and that of the state without the noise.
        self.values: dict[int, tuple[Any, Any]] = {}
        value: Any = _features
        r, std = self.nodes[-1].noise_level, 0.0  # of the next such stage
        noisy = [k for k in range(len(self.nodes)) if self.fresh[k] or k == 0]

        for k in reversed(noisy):
            # DDIM's step from here to the next such stage, without the noise that is fresh there.
            s = self.nodes[k].noise_level
            y = np.linspace(-1, 1, 801) * (reach + 10 * math.sqrt(width + s**2))
            D = self._denoised(y, s)
            kept = math.sqrt(max(r**2 - std**2, 0.0)) / s
            after = CubicSpline(y, value(D + kept * (y - D)))

            if k == 0:
                x = self.nodes[0].alpha * torch.from_numpy(y)[:, None]
                density = data.log_prob(x, sde, self.nodes[0].t).exp().numpy()
                self.values[0] = after, density @ after(y) / density.sum()
                break

            r = s
            std = math.hypot(*(engine_number(c) for _, c in self.fresh[k])) / self.nodes[k].alpha
            noised = after(y[:, None] + std * points)
            value = CubicSpline(y, np.einsum("ijf,j->if", noised, weights))
            self.values[k] = after, value

    def _denoised(self, y: np.ndarray, r: float) -> np.ndarray:
        state = torch.from_numpy(y)
        D = self.data.denoised(state[:, None], torch.ones_like(state), torch.full_like(state, r))
        return np.asarray(D[:, 0].numpy())

    def _start(self, z: np.ndarray) -> np.ndarray | float:
        """The marginal's quantiles (B,) at the first time for standard normals (B,), by bisection."""
        from scipy.special import ndtr

        p = ndtr(z)
        w, m = self.data.weights.numpy(), self.data.means[:, 0].numpy()
        spread = np.sqrt(self.data.variances[:, 0].numpy() + self.nodes[0].noise_level ** 2)
        low, high = (np.full_like(z, end) for end in ((m - 10 * spread).min(), (m + 10 * spread).max()))
        for _ in range(60):
            middle = (low + high) / 2
            below = ndtr((middle[:, None] - m) / spread) @ w < p
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def _increment(self, k: int, x: Tensor, z: np.ndarray) -> np.ndarray | float:
        """Increment of the martingale (B, 4) with the noise of stage k."""
        if not self.fresh[k]:
            return 0.0
        after, before = self.values[k]
        noise = sum(c * z[:, 1 + draw] for draw, c in self.fresh[k])
        return after(x[:, 0].numpy() / self.nodes[k].alpha) - before((x[:, 0].numpy() - noise) / self.nodes[k].alpha)

    def __call__(self, z: np.ndarray) -> np.ndarray | float:
        """Means (4,) over the starts z[:, 0] and the noises z[:, 1:]."""
        y = self._start(z[:, 0])
        value, expected = self.values[0]
        x = self.nodes[0].alpha * torch.from_numpy(y)[:, None]
        noise = PreDrawnNoise(list(torch.from_numpy(z.T[1:].copy())[..., None]))
        called = iter([k for k, stage in enumerate(self.program.stages) if stage.evaluate])
        gains = [value(y) - expected]
        model = _Observed(self.data.score(self.sde), self.sde, (self.nodes[-1].t, self.nodes[0].t))
        model.observe = lambda x: gains.append(self._increment(next(called), x, z))
        with torch.no_grad():
            x = execute(self.program, x, model, noise).x
        martingale = sum(gains) + self._increment(len(self.nodes) - 1, x, z)
        return np.asarray((_features(x[:, 0].numpy() / self.nodes[-1].alpha) - martingale).mean(0))


def _fresh(program: Program) -> list[list[tuple[int, Coefficient]]]:
    """Of each stage, the noises that are drawn there: the number of the draw, and its coefficient."""
    seen: set[int] = set()
    drawn = []
    for stage in program.stages:
        new = [(m, c) for m, c in stage.noises if m not in seen]
        drawn.append([(len(seen) + i, c) for i, (_, c) in enumerate(new)])
        seen.update(m for m, _ in new)
    return drawn


def smooth_end(sde: LinearSDE | MatrixSDE, level: float = 0.2) -> float:
    """The time where sigma / alpha is `level`, or `sde.eps` if that is later: fields are still smooth there."""
    return max(float(sde.time(-2 * math.log(level))), sde.eps)


def active_start(sde: LinearSDE | MatrixSDE, level: float = 3.0) -> float:
    """The time where sigma / alpha is `level`, or `sde.T` if that is earlier: the denoiser depends on x there."""
    log_snr = -2 * math.log(level)
    return min(float(sde.time(log_snr)), sde.T) if float(sde.log_snr(sde.T)) < log_snr else sde.T


def _run(solver: Solver, sde: SDE, score: Score, x: Tensor, noise: NoiseSource, *, grid: Grid) -> Tensor:
    model = BoundScore(score, sde, (grid.times[-1], grid.times[0]))
    with torch.no_grad():
        return execute(solver.compile(sde, grid), x, model, noise).x


class _Silence:
    """No noise, and how often it was asked for."""

    def __init__(self) -> None:
        self.draws = 0

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        self.draws += 1
        return torch.zeros(shape, dtype=dtype, device=device)


class _OneHot:
    """Block b of draw j is 1 in sample j k + b, of k blocks, and 0 elsewhere."""

    def __init__(self, blocks: int = 1) -> None:
        self.draw, self.blocks = 0, blocks

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        z = torch.zeros(shape, dtype=dtype, device=device)
        view = z.view(len(z), self.blocks, -1)
        for b in range(self.blocks):
            view[self.draw * self.blocks + b, b] = 1
        self.draw += 1
        return z
