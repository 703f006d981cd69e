"""Solvers that find their own steps, sample by sample: embedded pairs on the flow, and an SDE solver on one path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, number, one_of, settle
from sgm_sde._utils.shapes import column, dimension, flat
from sgm_sde.engine.adaptive import (
    Active,
    Attempt,
    Controller,
    Counting,
    Integration,
    Pair,
    State,
    check_tolerances,
    integrate,
    integrate_adaptive,
    rms,
)  # fmt: skip
from sgm_sde.engine.brownian import BrownianTree
from sgm_sde.engine.coordinates import COORDINATES
from sgm_sde.engine.phi import phi_values
from sgm_sde.engine.places import AtPlaces
from sgm_sde.identity import Value
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_matrix_marginal, has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE, MarginalAt
from sgm_sde.processes.predictions import convert
from sgm_sde.schemes.base import AdaptiveSolver, Problem, TableauMethod
from sgm_sde.schemes.tableaus import DOPRI5
from sgm_sde.scores.model import BoundScore

PI = Controller()
DIGITS = 3  # of the steps of an SDE, binary
LONGEST = 1.0  # step of an exponential pair in half the log-SNR
VARIABLES = tuple(name for name, coordinate in COORDINATES.items() if coordinate.slope)


@dataclass(frozen=True)
class ExponentialPair(Value):
    r"""Embedded exponential Runge-Kutta methods on $dy/d\lambda = D - y$, the linear part solved exactly.

    With $h$ the step of $\lambda$, $\phi_{k,i} = \phi_k(-c_i h)$ and $\phi_k = \phi_k(-h)$: orders 2 and 1,

    $$ y_2 = e^{-h/2}y + \tfrac h2\phi_{1,2} D_1, \qquad
       y' = e^{-h}y + h\left[(\phi_1 - 2\phi_2) D_1 + 2\phi_2 D_2\right], \qquad E = 2h\phi_2\,(D_2 - D_1) $$

    and orders 3 and 2, with $c_2 = \tfrac13, c_3 = \tfrac23$,

    $$ y_3 = e^{-2h/3}y + h\left[(\tfrac23\phi_{1,3} - \tfrac43\phi_{2,3}) D_1 + \tfrac43\phi_{2,3} D_2\right], \qquad
       y' = e^{-h}y + h\left[(\phi_1 - \tfrac32\phi_2) D_1 + \tfrac32\phi_2 D_3\right] $$

    compared with $y$ of order 2 from $D_1$ and $D_2$, $e^{-h}y + h[(\phi_1 - 3\phi_2) D_1 + 3\phi_2 D_2]$.

    Args:
        order: 2 or 3, as many network calls per step.

    Raises:
        ValueError: for another order.

    Source: Hochbruck & Ostermann, 2010, doi:10.1017/S0962492910000048, section 2.

    Examples:
        >>> ExponentialPair(3).error_order
        3
    """

    order: int = 3

    def __post_init__(self) -> None:
        settle(self, order=check_integer("order", self.order))
        one_of("order", self.order, (2, 3))

    @property
    def name(self) -> str:
        """Its name with both orders."""
        return f"exp-rk{self.order}{self.order - 1}"

    @property
    def source(self) -> str:
        """Source of the method."""
        return "Hochbruck & Ostermann, 2010, doi:10.1017/S0962492910000048"

    @property
    def error_order(self) -> int:
        """Power of the step with which the error estimate vanishes."""
        return self.order

    @property
    def linear(self) -> float:
        """Coefficient of the linear part: -1."""
        return -1.0

    @property
    def c(self) -> tuple[float, ...]:
        """The stages' places."""
        return (0.0, 1 / 2) if self.order == 2 else (0.0, 1 / 3, 2 / 3)

    @property
    def fsal(self) -> bool:
        """No stage lies at the end."""
        return False

    @property
    def longest(self) -> float:
        """A step of log-SNR in which data of a small scale hardly take shape.

        Above and below their scale estimates are the same at all stages, and the difference says that any step will do.
        """
        return LONGEST

    def weights(self, h: Tensor) -> Tensor:
        """The table for steps h (b,): (stages + 2, 1 + stages, b)."""
        zero = torch.zeros_like(h)
        c2 = self.c[1]
        first = [zero + 1]
        second = [(-c2 * h).exp(), c2 * h * phi_values(1, -c2 * h)]
        end = self._end_of_two(h, zero) if self.order == 2 else self._end_of_three(h, zero)
        rows = [first, second, *end]

        padded = [row + [zero] * (self.order + 1 - len(row)) for row in rows]
        return torch.stack([torch.stack(row) for row in padded])

    def _end_of_two(self, h: Tensor, zero: Tensor) -> list[list[Tensor]]:
        """Rows of the new state and of the error estimate, for order 2."""
        w1 = h * phi_values(1, -h)
        w2 = h * phi_values(2, -h) / self.c[1]
        end = [(-h).exp(), w1 - w2, w2]
        error = [zero, -w2, w2]
        return [end, error]

    def _end_of_three(self, h: Tensor, zero: Tensor) -> list[list[Tensor]]:
        """Rows of the third stage, of the new state and of the error estimate, for order 3."""
        _, c2, c3 = self.c
        inner = c3 * h * phi_values(2, -c3 * h) * (c3 / c2)
        third = [(-c3 * h).exp(), c3 * h * phi_values(1, -c3 * h) - inner, inner]

        w1 = h * phi_values(1, -h)
        w2 = h * phi_values(2, -h)
        end = [(-h).exp(), w1 - w2 / c3, zero, w2 / c3]
        error = [zero, w2 / c2 - w2 / c3, -w2 / c2, w2 / c3]
        return [third, end, error]

    def error(self, norms: Sequence[Tensor]) -> Tensor:
        """The error (b,) from the norm of the estimate."""
        return norms[0]


class Flow:
    r"""The probability flow in the variable u, in which a scaled state z has a prediction for its slope.

    | variable | u | z | dz/du |
    |---|---|---|---|
    | `log-snr` | $\lambda = \log(\alpha/\sigma)$ | $x/\alpha$ | $D - z$ |
    | `noise-level` | $\sigma/\alpha$ | $x/\alpha$ | $\epsilon$ |
    | `flow-time` | $\sigma/(\alpha+\sigma)$ | $x/(\alpha+\sigma)$ | $\epsilon - D$ |
    | `time` | $t$ | $x$ | $f - \tfrac12 g^2 s$ |

    Args:
        model: the score, bound to the run.
        variable: u.
        ends: the run's start and end, times.
        batch: number of samples.
        linear: whether the linear part $-z$ is left to the method, for `log-snr`.
    """

    def __init__(
        self, model: BoundScore, variable: str, ends: tuple[float, float], batch: int, *, linear: bool = False
    ) -> None:
        one_of("variable", variable, VARIABLES)
        if variable != "time" and not has_scalar_marginal(model.sde):
            raise TypeError(
                f"variable={variable!r} needs a process with alpha(t) and sigma(t), got {described(model.sde)}"
            )

        self.model = model
        self.sde = model.sde
        self.variable = variable
        self.ends = ends
        self.batch = batch
        self.linear = linear
        self.coordinate = COORDINATES[variable]
        assert self.coordinate.slope is not None
        self.target = self.coordinate.slope

        self._ends = _as_rounded(ends, model)
        start, end = self.sde.nodes(ends)
        self.start = self.coordinate.of(start)
        self.end = self.coordinate.of(end)
        self._coefficients = AtPlaces(_Coefficients, self._values)
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(
                f"{variable} is {self.start} at t={ends[0]} and {self.end} at t={ends[1]}: both must be finite; "
                f"take variable='flow-time' or 'time'"
            )

    def time(self, u: Tensor) -> Tensor:
        """t at the places u, in float64 on the host: that of the run's ends exactly, and none outside of them."""
        sde = self.sde
        if self.variable == "time" or not has_scalar_marginal(sde):
            return u.clamp(min(self.ends), max(self.ends))
        k, _ = self._marginal(u, sde)
        return k.t

    def _of_run(self, t: Tensor, u: Tensor) -> Tensor:
        """Times t at the places u between those of the run's ends, as rounded into it; at these exactly."""
        start, end = self._ends[t.dtype]
        t = t.clamp(min(start, end), max(start, end))
        places = u.numpy()  # whose comparisons take a fifth of torch's time
        times = t.numpy()
        for place, time in ((self.start, start), (self.end, end)):
            times[np.nonzero(places == place)] = time

        if math.isnan(float(t.sum())):  # beyond the range of a schedule without a closed form
            nearest = torch.where((u - self.start).abs() < (u - self.end).abs(), start, end)
            return torch.where(torch.isnan(t), nearest, t)
        return t

    def at_share(self, s: float, n: int) -> Tensor:
        """u at a share of the way from start to end, for n samples (n,)."""
        u = self.end if s >= 1 else self.start + s * (self.end - self.start)
        return torch.full((n,), u, dtype=torch.float64, device="cpu")

    def scale(self, u: Tensor) -> Tensor:
        """x / z at the places u (b,)."""
        sde = self.sde
        if self.variable == "time" or not has_scalar_marginal(sde):
            return torch.ones_like(u)
        k, _ = self._marginal(u, sde)
        return self._scale(k)

    def _marginal(
        self, u: Tensor, sde: LinearSDE, dtype: torch.dtype = torch.float64
    ) -> tuple[MarginalAt, tuple[Tensor, Tensor]]:
        """The process' times and coefficients, and alpha and sigma of the scaled state at the places u; in a dtype
        where the process keeps it."""
        assert self.coordinate.state is not None
        alpha, sigma = self.coordinate.state(u)
        if sde.keeps_float32:
            alpha = alpha.to(dtype)
            sigma = sigma.to(dtype)
        k = sde.at_noise_level(sigma / alpha)
        k.t = self._of_run(k.t.to(sigma.dtype), u)
        return k, (alpha, sigma)

    def _scale(self, k: MarginalAt) -> Tensor:
        return k.alpha + k.sigma if self.variable == "flow-time" else k.alpha

    def prepare(self, places: Tensor) -> None:
        """Compute the coefficients at the rows of a table of places u (n, b) together, before they are asked for."""
        if self.variable != "time" and has_scalar_marginal(self.sde):
            self._coefficients.prepare(places)

    def _values(self, u: Tensor, like: Tensor) -> tuple[Tensor | float, ...]:
        """The fields of `_Coefficients` at the places u (k, b)."""
        assert has_scalar_marginal(self.sde)
        k, state = self._marginal(u, self.sde, torch.promote_types(like.dtype, torch.float32))
        coefficients = convert(self.model.score.prediction, self.target, k, state=state)
        t = k.t if k.t.dtype == like.dtype else self.model.round_times(k.t.numpy(), like)
        return t, self._scale(k), *coefficients

    def enter(self, x: Tensor) -> Tensor:
        """z at the start."""
        z = x / float(self.scale(self.at_share(0.0, 1))[0])
        self._coefficients.like = z[:0]
        return z

    def leave(self, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """States x (B, *) and times (B,) at the places u (B,)."""
        sde = self.sde
        if self.variable == "time" or not has_scalar_marginal(sde):
            return z, self.time(u)
        k, _ = self._marginal(u, sde)
        return column(self._scale(k), z) * z, k.t

    def slope(self, u: Tensor, z: Tensor, index: Tensor) -> Tensor:
        """dz/du, or its part besides -z, for the samples of numbers `index`."""
        sde = self.sde
        with self.model.only(index, self.batch):
            if self.variable == "time" or not has_scalar_marginal(sde):
                return self.model.predict_at(self.target, z, self.time(u))

            at = self._coefficients.at(u, z)
            output = self.model.evaluate(at.scale * z, at.t).to(z.dtype)

        value = output
        if self.model.score.prediction != self.target:
            value = (at.c_z * z).addcmul_(at.c_r, output)
        return value - z if self.variable == "log-snr" and not self.linear else value


def _as_rounded(ends: tuple[float, float], model: BoundScore) -> dict[torch.dtype, list[float]]:
    """The two ends of a run in single and double precision, rounded into it."""
    rounded = {}
    for dtype in (torch.float32, torch.float64):
        like = torch.empty(0, dtype=dtype, device="cpu")
        rounded[dtype] = model.round_times(ends, like).tolist()
    return rounded


class _Coefficients(NamedTuple):
    """Time, and coefficients of state and output, at some places.

    Attributes:
        t: times, as the network is given them.
        scale: x / z.
        c_z: coefficient of the scaled state in the slope's prediction.
        c_r: that of the network's output.
    """

    t: Tensor
    scale: Tensor
    c_z: Tensor
    c_r: Tensor


@dataclass(frozen=True)
class Adaptive(TableauMethod, AdaptiveSolver):
    r"""An embedded pair on the probability-flow ODE, with steps of their own for every sample.

    Step size, error norm, acceptance and end are a sample's own, so it is what it is alone. Samples that have
    arrived leave the batch: the network sees the sum over samples, and not the batch times the slowest. One number a
    sample is read back from the device at each attempted step.

    Args:
        pair: `BOSH3`, `DOPRI5`, `TSIT5`, `DOP853`, an `EmbeddedTableau` of your own, or an `ExponentialPair`.
        rtol: relative tolerance of a step, on z (see `variable`).
        atol: absolute tolerance, in units of the data but for `variable="flow-time"` or `"time"`.
        max_steps: attempts for each sample; the status tells of those that ran out of them.
        variable: in what the flow is solved, one of those of `Flow`; `default_variable` if not given.
        controller: of the step size.
        first_step: its size in the variable; from the slope if not given, which takes a call more.
        batch_coupled: one step for all samples, from the root mean square of their errors: batch-mates then matter.

    Raises:
        ValueError: for options out of range.
        TypeError: where an exponential pair meets a process without alpha and sigma, or another variable.

    Source: Hairer, Norsett & Wanner, 1993, section II.4; Lienen & Günnemann, 2022, arXiv:2210.12375 (a step for each
    sample).

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sde)
        >>> res = sg.sample(score, sde, (4, 2), solver=Adaptive(rtol=1e-6, atol=1e-6), seed=0)
        >>> res.status.ok, bool((res.control.accepted > 5).all())
        (True, True)
    """

    pair: Pair = DOPRI5
    rtol: float = 1e-3
    atol: float = 1e-3
    max_steps: int = 10_000
    variable: str | None = None
    controller: Controller = PI
    first_step: float | None = None
    batch_coupled: bool = False

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.max_steps)
        if not isinstance(self.pair, Pair):
            raise TypeError(
                f"pair must be an embedded pair, such as sgm_sde.schemes.DOPRI5, got {described(self.pair)}"
            )
        if self.first_step is not None:
            settle(self, first_step=number("first_step", self.first_step, above=0))
        one_of("variable", self.variable, (None, *VARIABLES))
        if self.pair.linear and self.variable not in (None, "log-snr"):
            raise ValueError(f"{self.pair.name} is a method in log-snr, got variable={self.variable!r}")

    @property
    def _facts(self) -> Pair:
        return self.pair

    @property
    def least_calls(self) -> int:  # type: ignore[override]
        """One a stage, and one to find the size of the first step."""
        return len(self.pair.c) + (self.first_step is None)

    def run(self, problem: Problem) -> Integration:
        """Carry the states from start to end."""
        variable = self.variable or ("log-snr" if self.pair.linear else default_variable(problem.sde))
        ends = (problem.start, problem.end)
        flow = Flow(problem.model, variable, ends, len(problem.x), linear=bool(self.pair.linear))
        end = integrate(
            flow.slope, flow.enter(problem.x), flow.start, flow.end, self.pair,
            rtol=self.rtol, atol=self.atol, max_steps=self._attempts(problem.calls), controller=self.controller,
            first_step=self.first_step, batch_coupled=self.batch_coupled, on_leave=problem.on_leave,
            on_places=flow.prepare,
        )  # fmt: skip
        x, t = flow.leave(end.y[0], end.t)
        return replace(end, y=(x,), t=t)

    @property
    def allowance(self) -> float:
        """The absolute tolerance, where a pair has no longest step."""
        return self.atol if math.isinf(self.pair.longest) else 0.0

    def _attempts(self, calls: int | None) -> int:
        """The most attempts at steps that a budget of network calls covers."""
        if calls is None:
            return self.max_steps
        reused = int(self.pair.fsal)
        of_steps = calls - reused - (self.first_step is None)
        return min(self.max_steps, of_steps // (len(self.pair.c) - reused))


def require_one_noise_level(name: str, sde: SDE) -> None:
    """Raise TypeError for a process whose noise is a matrix."""
    if has_matrix_marginal(sde):
        raise TypeError(
            f"{name} needs one diffusion coefficient for the whole state, got {described(sde)}: take SSCS()"
        )


def default_variable(sde: SDE) -> str:
    """Default variable of integration: flow time, or time for a nonlinear process."""
    return "flow-time" if has_scalar_marginal(sde) else "time"


@dataclass(frozen=True)
class GGF(AdaptiveSolver):
    r"""The adaptive solver of the reverse SDE of Jolicoeur-Martineau et al. ("Gotta Go Fast").

    Euler-Maruyama, and its correction by the slope at the other end, both on the same increment of the path:

    $$ x' = x - h F(x, t) + g_t\,\Delta W, \qquad \tilde x = x - h F(x', t - h) + g_{t-h}\,\Delta W, \qquad
       x'' = \tfrac12(x' + \tilde x) $$

    $$ E = c\,\Big\| \frac{x'' - x'}{\max(a, r\max(|x'|, |x'_{\text{prev}}|))} \Big\|_{\text{rms}}, \qquad
       h' = \min(t - \epsilon,\ \gamma\,h,\ \theta\,h\,E^{-0.9}) $$

    with $F = f - g^2 s$ and the tolerances a and r; x'' is accepted where $E \le 1$. Each sample has its own step. The
    paper has c = 1. In few dimensions a move x' - x that is short by chance makes the error small by chance, whatever
    h, and runs leapt; so $c = \max(1, \ell / \|x' - x\|)$ with the move's expected length,
    $\ell^2 = \|hF\|^2 + h g_t^2$ (rms over components), which is 1 to a few percent in hundreds of dimensions.

    A rejected step is tried again on the same Brownian path, by a bridge: drawing it anew would keep those increments
    that happen to be small, and bias the law. Two network calls per step, one where it is tried again. Steps are
    rounded down to three binary digits: a path is so rough that the rounding of a network would be seen in the sample.

    Args:
        rtol: relative tolerance; the paper's 0.01 to 0.5.
        atol: absolute tolerance: the paper's 1/128 is half a level of 8-bit images in [-1, 1].
        first_step: the first h.
        safety: theta.
        exponent: that of E, in size.
        growth: gamma, the most that a step may be longer than the last; the paper has no such limit (`math.inf`).
        max_steps: attempts for each sample.

    Raises:
        ValueError: for options out of range.

    Source: Jolicoeur-Martineau et al., 2021, arXiv:2105.14080; Rackauckas & Nie, 2017, arXiv:1804.04344 (rejection).

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.25).score(sde)
        >>> sg.sample(score, sde, (4, 2), solver=GGF(), seed=0).status.ok
        True
    """

    rtol: float = 0.02
    atol: float = 1 / 128
    first_step: float = 0.01
    safety: float = 0.9
    exponent: float = 0.9
    growth: float = 5.0
    max_steps: int = 10_000
    name = "ggf"
    order = 1
    least_calls = 2
    stochastic = True
    source = "Jolicoeur-Martineau et al., 2021, arXiv:2105.14080"

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.max_steps)
        for option, above in {"first_step": 0, "safety": 0, "exponent": 0, "growth": 1}.items():
            settle(self, **{option: number(option, getattr(self, option), above=above)})

    def run(self, problem: Problem) -> Integration:
        """Carry the states from start to end."""
        require_one_noise_level(self.name, problem.sde)
        max_steps = self.max_steps
        if problem.calls is not None:
            max_steps = min(max_steps, problem.calls // 2)
        return integrate_adaptive(
            _PathStepper(self, problem), (problem.x,), problem.start, problem.end, max_steps=max_steps,
            controller=Controller(self.safety, 1.0, 0.0, smallest=1e-3, largest=self.growth, digits=DIGITS),
            first_step=self.first_step, on_leave=problem.on_leave,
        )  # fmt: skip


class _PathStepper(Counting):
    """Steps of `GGF`; what is carried is the slope at the start and x' of the step before.

    Places on the paths are exact binary fractions of the run, since steps are: they are kept apart from times.
    """

    tree = BrownianTree

    def __init__(self, solver: GGF, problem: Problem) -> None:
        n = len(problem.x)
        super().__init__(n)
        self.solver = solver
        self.problem = problem
        self.order = 1 / solver.exponent
        self.paths = self.tree(problem.seeds, problem.x.shape[1:], problem.start)

        self.place = np.zeros(n)  # where each sample is, and its path there
        self.path = np.zeros((n, dimension(problem.x)))
        self._next = self.place, self.path  # after the step that is attempted

    def rhs(self, t: Tensor, y: State, index: Tensor) -> State:
        """The reverse drift."""
        with self.problem.model.only(index, len(self.problem.x)):
            return (self.problem.model.predict_at("drift", y[0], t, 1.0),)

    def first_step(self, active: Active, end: float) -> np.ndarray:
        """First step size of the paper."""
        return np.full(len(active.samples), self.solver.first_step)

    def attempt(self, active: Active) -> Attempt:
        """One step of each active sample."""
        (x,) = active.y
        (slope,) = self.first(active, active.carry[:1], active.last_accepted)
        h = column(torch.from_numpy(active.h), x)
        g = column(self._g(active.u), x)
        g_end = column(self._g(active.u_next), x)
        dW = self._increment(active, x)

        euler = x + h * slope + g * dW
        (end_slope,) = self.evaluate(active, (euler,), active.u_next)
        end = (euler + x + h * end_slope + g_end * dW) / 2

        before = active.carry[1] if active.carry else x
        error = self._scaled(end - euler, euler, before) * self._shortness(euler - x, h * slope, h.abs() * g**2)
        return Attempt((end,), error, (slope, euler), (slope, before))

    def _scaled(self, difference: Tensor, euler: Tensor, before: Tensor) -> Tensor:
        """Norm of a difference in units of the tolerances, for x' of this step and the step before."""
        size = torch.maximum(euler.abs(), before.abs())
        scale = (self.solver.rtol * size).clamp_min(self.solver.atol)
        return rms(difference / scale)

    def _shortness(self, move: Tensor, drift: Tensor, variance: Tensor) -> Tensor:
        """The expected length of the move x' - x over its own, at least 1."""
        expected = (rms(drift).square() + flat(variance)[:, 0]).sqrt()
        length = rms(move)
        return torch.where(length > 0, expected / length, 1).clamp_min(1)

    def _increment(self, active: Active, x: Tensor) -> Tensor:
        """Increment of the Brownian paths over the step, like the states x."""
        length = self.problem.end - self.problem.start
        share, exponent = np.frexp(active.h / length)
        digits = 2.0**DIGITS
        step = np.ldexp(np.rint(share * digits) / digits, exponent)
        place = self.place[active.samples] + step
        place = np.where(active.u_next == self.problem.end, 1.0, np.minimum(place, 1.0))

        path = self.paths.at(place, active.samples)
        self._next = place, path
        increment = (path - self.path[active.samples]) * math.sqrt(abs(length))
        return torch.from_numpy(increment).view(x.shape).to(device=x.device, dtype=x.dtype)

    def _g(self, t: np.ndarray) -> Tensor:
        return self.problem.sde.g(torch.from_numpy(t))

    def advance(self, samples: np.ndarray, u: np.ndarray, ok: np.ndarray) -> None:
        """Those that went on are where the step led."""
        for now, after in zip((self.place, self.path), self._next, strict=True):
            now[samples[ok]] = after[ok]
