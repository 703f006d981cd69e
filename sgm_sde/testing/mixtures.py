"""Weak orders on a mixture, by quasi-random paths and control variates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer
from sgm_sde.engine.executor import PreDrawnNoise, execute
from sgm_sde.engine.matrix import number as engine_number
from sgm_sde.engine.node import Coefficient
from sgm_sde.engine.program import Program
from sgm_sde.grids import GridRule, LogSNR
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.schemes import Solver, resolve
from sgm_sde.schemes.base import called
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.oracles import GaussianMixture
from sgm_sde.testing.orders import OrderMeasurement
from sgm_sde.testing.problems import default_oracle, span


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
        scrambles: independent scramblings, whose differences give the standard errors; at least 2.
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
    solver = resolve(solver).strict()
    rule = rule or LogSNR()
    if not solver.stochastic:
        raise ValueError(f"{called(solver)} adds no noise: measure_order measures it")
    data = _one_dimensional(oracle)
    log2_points = check_integer("log2_points", log2_points, 0)
    if scrambles < 2:
        raise ValueError(f"a standard error takes at least 2 scramblings, got {scrambles}")

    t_start, t_end = span(sde, t_start, t_end, levels=(2.0, 0.4))
    (end,) = sde.nodes([t_end])
    exact = _expected_features(data, end.noise_level)

    measured = []
    for n in steps:
        program = solver.compile(sde, rule(sde, n, t_start, t_end))
        estimate = _ControlledMean(program, sde, data)
        paths = _sobol_paths(estimate.draws, log2_points, scrambles, seed)
        means = [estimate(z) for z in paths]
        measured.append(_error_of(np.stack(means), exact))

    errors, stderrs = zip(*measured, strict=True)
    return OrderMeasurement(tuple(steps), errors, stderrs)


def _one_dimensional(oracle: Any) -> Any:
    """A mixture in one dimension: the given one, or that of `default_oracle("scalar")`."""
    data = default_oracle("scalar") if oracle is None else oracle
    if data.event_shape != (1,):
        raise ValueError(f"the data must be one-dimensional, of shape (1,), got {tuple(data.event_shape)}")
    return data


def _error_of(means: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Norm of the error of means (n, 4) of n scramblings, and its standard error."""
    error = float(np.linalg.norm(means.mean(0) - exact))
    std = float(np.linalg.norm(means.std(0, ddof=1)))
    return error, std / math.sqrt(len(means))


def _features(y: np.ndarray) -> np.ndarray:
    """Observables (*, 4) of y (*)."""
    return np.stack([y, y**2, np.cos(2 * y), np.sin(2 * y)], -1)


def _expected_features(data: GaussianMixture, r: float) -> np.ndarray:
    """Their expectations (4,) under the marginal of y = x / alpha where sigma / alpha is r."""
    w = data.weights.numpy()
    m = data.means[:, 0].numpy()
    v = data.variances[:, 0].numpy() + r**2
    damping = np.exp(-2 * v)
    cosine = damping * np.cos(2 * m)
    sine = damping * np.sin(2 * m)
    return np.asarray([w @ m, w @ (m**2 + v), w @ cosine, w @ sine])


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


def _spline(y: np.ndarray, values: np.ndarray) -> Any:
    from scipy.interpolate import CubicSpline

    return CubicSpline(y, values)


class _ControlledMean:
    """Mean of the observables at a program's end, less the martingale of DDIM's chain with the same noises."""

    def __init__(self, program: Program, sde: LinearSDE, data: GaussianMixture) -> None:
        self.program = program
        self.sde = sde
        self.data = data
        self.fresh = _fresh(program)
        self.draws = sum(map(len, self.fresh))
        self.nodes = sde.nodes([stage.t for stage in program.stages])
        self.values = self._values()

    def _values(self) -> dict[int, tuple[Any, Any]]:
        """Of each stage with fresh noise: the value v of its state, and that of the state without the noise.

        By backward recursion; of the first stage, v and its expectation.
        """
        values: dict[int, tuple[Any, Any]] = {}
        value: Any = _features
        r = self.nodes[-1].noise_level  # of the next stage with fresh noise,
        std = 0.0  # and of that noise
        for k in reversed(self._noisy):
            after, y = self._before(k, value, r, std)
            r = self.nodes[k].noise_level
            std = self._fresh_std(k)
            value = _spline(y, _smoothed(after, y, std))
            values[k] = after, value

        first, y = self._before(0, value, r, std)
        return values | {0: (first, self._expected(first, y))}

    def _before(self, k: int, value: Any, r: float, std: float) -> tuple[Any, np.ndarray]:
        """The value of the state of stage k from that at the next stage with fresh noise, and the places it is from."""
        y = self._places(k)
        return _spline(y, value(self._ddim(k, y, r, std))), y

    @property
    def _noisy(self) -> list[int]:
        """The stages with fresh noise, but for the first."""
        return [k for k, fresh in enumerate(self.fresh) if fresh and k]

    def _fresh_std(self, k: int) -> float:
        """Standard deviation of the fresh noise of stage k, in y = x / alpha."""
        coefficients = [engine_number(c) for _, c in self.fresh[k]]
        return math.hypot(*coefficients) / self.nodes[k].alpha

    def _places(self, k: int) -> np.ndarray:
        """Places y = x / alpha (n,) that cover the marginal of stage k."""
        reach = float(self.data.means.abs().max())
        variance = float(self.data.variances.max()) + self.nodes[k].noise_level ** 2
        return np.linspace(-1, 1, 801) * (reach + 10 * math.sqrt(variance))

    def _ddim(self, k: int, y: np.ndarray, r: float, std: float) -> np.ndarray:
        """DDIM's step from y at stage k to the noise level r, less the noise of deviation std that is fresh there."""
        s = self.nodes[k].noise_level
        D = self._denoised(y, s)
        ratio = math.sqrt(max(r**2 - std**2, 0.0)) / s
        return D + ratio * (y - D)

    def _expected(self, value: Callable[[np.ndarray], np.ndarray], y: np.ndarray) -> np.ndarray:
        """Expectation of a function of y under the first stage's marginal, from places y."""
        start = self.nodes[0]
        x = start.alpha * torch.from_numpy(y)[:, None]
        density = self.data.log_prob(x, self.sde, start.t).exp().numpy()
        return np.asarray(density @ value(y) / density.sum())

    def _denoised(self, y: np.ndarray, r: float) -> np.ndarray:
        state = torch.from_numpy(y)
        D = self.data.denoised(state[:, None], torch.ones_like(state), torch.full_like(state, r))
        return np.asarray(D[:, 0].numpy())

    def _start(self, z: np.ndarray) -> np.ndarray:
        """The marginal's quantiles (B,) at the first time for standard normals (B,)."""
        w = self.data.weights.numpy()
        m = self.data.means[:, 0].numpy()
        v = self.data.variances[:, 0].numpy() + self.nodes[0].noise_level ** 2
        return _mixture_quantiles(z, w, m, np.sqrt(v))

    def _increment(self, k: int, x: Tensor, z: np.ndarray) -> np.ndarray | float:
        """Increment of the martingale (B, 4) with the noise of stage k."""
        if not self.fresh[k]:
            return 0.0
        after, before = self.values[k]
        alpha = self.nodes[k].alpha
        state = x[:, 0].numpy()
        noise = sum(c * z[:, 1 + draw] for draw, c in self.fresh[k])
        return after(state / alpha) - before((state - noise) / alpha)

    def __call__(self, z: np.ndarray) -> np.ndarray | float:
        """Means (4,) over the starts z[:, 0] and the noises z[:, 1:]."""
        y = self._start(z[:, 0])
        value, expected = self.values[0]
        increments = [value(y) - expected]
        called = iter([k for k, stage in enumerate(self.program.stages) if stage.evaluate])

        x = self._run(y, z, lambda x: increments.append(self._increment(next(called), x, z)))
        martingale = sum(increments) + self._increment(len(self.nodes) - 1, x, z)
        controlled = _features(x[:, 0].numpy() / self.nodes[-1].alpha) - martingale
        return np.asarray(controlled.mean(0))

    def _run(self, y: np.ndarray, z: np.ndarray, observe: Callable[[Tensor], None]) -> Tensor:
        """States (B, 1) at the end from y (B,) with the noises z[:, 1:]; each that is evaluated is shown on the way."""
        start = self.nodes[0]
        model = _Observed(self.data.score(self.sde), self.sde, (self.nodes[-1].t, start.t))
        model.observe = observe
        noise = PreDrawnNoise(list(torch.from_numpy(z.T[1:].copy())[..., None]))
        x = start.alpha * torch.from_numpy(y)[:, None]
        with torch.no_grad():
            return execute(self.program, x, model, noise).x


def _mixture_quantiles(z: np.ndarray, w: np.ndarray, m: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Quantiles (B,) of a mixture at the levels of standard normals z (B,), by bisection."""
    from scipy.special import ndtr

    p = ndtr(z)
    low = np.full_like(z, (m - 10 * std).min())
    high = np.full_like(z, (m + 10 * std).max())
    for _ in range(60):
        middle = (low + high) / 2
        below = ndtr((middle[:, None] - m) / std) @ w < p
        low = np.where(below, middle, low)
        high = np.where(below, high, middle)
    return (low + high) / 2


def _smoothed(value: Callable[[np.ndarray], np.ndarray], y: np.ndarray, std: float) -> np.ndarray:
    """Expectation of a function (*, 4) at y plus noise of a standard deviation, (n, 4) for y (n,)."""
    points, weights = np.polynomial.hermite_e.hermegauss(24)
    weights /= weights.sum()
    return np.einsum("ijf,j->if", value(y[:, None] + std * points), weights)


def _fresh(program: Program) -> list[list[tuple[int, Coefficient]]]:
    """Of each stage, the noises that are drawn there: the number of the draw, and its coefficient."""
    seen: set[int] = set()
    drawn = []
    for stage in program.stages:
        new = [(m, c) for m, c in stage.noises if m not in seen]
        drawn.append([(len(seen) + i, c) for i, (_, c) in enumerate(new)])
        seen.update(m for m, _ in new)
    return drawn
