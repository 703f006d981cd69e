"""Solvers of torchdiffeq, torchsde and SciPy behind the same call: `solver="torchdiffeq:dopri5"`."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import described, flag, not_finite, one_of, settle, table_size, unknown
from sgm_sde._utils.shapes import flat
from sgm_sde._utils.warn import warn
from sgm_sde.engine.adaptive import (
    COMPLETED,
    GIVEN_UP,
    NOT_FINITE,
    OUT_OF_STEPS,
    STEP_TOO_SMALL,
    Integration,
    check_tolerances,
)
from sgm_sde.engine.brownian import PathWithArea
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.schemes.adaptive import VARIABLES, Flow, default_variable, require_one_noise_level
from sgm_sde.schemes.base import AdaptiveSolver, Problem
from sgm_sde.scores.model import BoundScore

Slope = Callable[[float | Tensor, Tensor], Tensor]
ITO = ("euler", "milstein", "srk")  # methods of torchsde that solve the Ito equation
STEP_ROUNDING = 1e-9  # by which even steps are longer, so that rounding leaves no rest of the run for one more


class BatchCoupledWarning(UserWarning):
    """A backend takes one step size for the whole batch: a sample then depends on its batch-mates."""


class OutOfCalls(Exception):
    """The budget of network calls is spent."""


@dataclass(frozen=True)
class Backend(AdaptiveSolver):
    """A method of another library.

    Every evaluation is one network call on the batch, at a time of the run. Adaptive methods take one step size for the
    whole batch, which couples its samples, with a `BatchCoupledWarning`; `per_sample=True` runs the samples one by one
    instead. A run that the library gives up returns its initial states, with a status.

    Args:
        method: its name in the library.
        rtol: relative tolerance, of adaptive methods.
        atol: absolute tolerance, of adaptive methods.
        per_sample: run each sample by itself.

    Raises:
        ValueError: for a method that the library does not have; the message lists the near ones.
    """

    method: str
    rtol: float = 1e-3
    atol: float = 1e-3
    per_sample: bool = False
    library: ClassVar[str]
    adaptive: ClassVar[dict[str, int]]  # methods and their orders
    fixed: ClassVar[dict[str, int]]
    refused: ClassVar[dict[str, str]] = {}  # other methods of the library, and why they are refused
    stops_at_nan: ClassVar[bool] = False  # whether the run ends at the first value that is not finite

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, 1)
        settle(self, per_sample=flag("per_sample", self.per_sample))
        known = {**self.adaptive, **self.fixed}
        if not isinstance(self.method, str):
            raise TypeError(f"method must be a name, got {described(self.method)}")
        spelled = {name.lower(): name for name in known}
        settle(self, method=spelled.get(self.method.lower(), self.method))
        if self.method in self.refused:
            raise ValueError(self.refused[self.method])
        if self.method not in known:
            raise unknown(f"method of {self.library}", self.method, known)

    @property
    def name(self) -> str:
        """Library and method."""
        return f"{self.library}:{self.method}"

    @property
    def order(self) -> int:
        """Order that the library states."""
        return {**self.adaptive, **self.fixed}[self.method]

    @property
    def takes_steps(self) -> bool:  # type: ignore[override]
        """True if its number of steps can be given."""
        return self.method in self.fixed

    @property
    def allowance(self) -> float:
        """The absolute tolerance of an adaptive method of the flow: noise shortens the steps of others."""
        return 0.0 if self.takes_steps or self.stochastic else self.atol

    def _coupled(self, problem: Problem) -> bool:
        return self.method in self.adaptive

    def run(self, problem: Problem) -> Integration:
        """Carry the states from start to end."""
        self._require_settings(problem)
        n = len(problem.x)
        start_calls = problem.model.nfe
        ended = _Ended.of(problem)
        for group in torch.chunk(torch.arange(n, device="cpu"), n if self.per_sample else 1):
            self._run_group(problem, group, ended)
            if problem.on_leave is not None:
                problem.on_leave(len(group))

        uncounted = torch.full((n,), -1, dtype=torch.int64, device="cpu")  # accepted and rejected steps
        calls = problem.model.nfe - start_calls
        outcome = tuple(ended.outcome)
        return Integration((ended.x,), ended.t, outcome, uncounted, uncounted, ended.evaluations, calls, ended.lost)

    def _run_group(self, problem: Problem, group: Tensor, ended: _Ended) -> None:
        """Carry the samples of numbers `group` on together, and note how they ended."""
        model = problem.model
        before = model.nfe
        limit = math.inf if problem.calls is None else before + problem.calls
        seen = _Seen(limit, model, self.stops_at_nan)
        index = group.to(problem.x.device)

        try:
            x = self._solve(problem, index, seen)
        except (OutOfCalls, GaveUp, AssertionError) as error:  # torchdiffeq gives up by assertions
            reason = seen.reason(error)
            lost = set(seen.bad) if reason == NOT_FINITE else set()
        else:
            reason = COMPLETED
            lost = seen.bad.keys() & not_finite(x)
            ended.x = ended.x.index_copy(0, index, x.to(ended.x.dtype))
            ended.t[group] = problem.end

        ended.evaluations[group] = model.nfe - before
        ended.note(group.tolist(), reason, {j: seen.bad[j] for j in lost})

    def _require_settings(self, problem: Problem) -> None:
        """Raise or warn where steps, budget and batch do not go with the method."""
        if self.method not in self.adaptive and problem.steps is None:
            raise ValueError(f"{self.name} takes even steps: say how many with steps=")
        if problem.steps is not None:
            table_size("steps", problem.steps)
        if problem.calls is not None and self.per_sample:
            raise ValueError(f"nfe= is a budget of the whole run, and {self.name} runs sample by sample: leave it out")
        if len(problem.x) > 1 and self._coupled(problem) and not self.per_sample:
            warn(
                f"{self.name} takes one step size for the whole batch, so that a sample depends on its batch-mates; "
                f"per_sample=True runs them one by one, and solver='dopri5' gives each its own steps",
                BatchCoupledWarning,
            )

    @abstractmethod
    def _solve(self, problem: Problem, index: Tensor, seen: _Seen) -> Tensor:
        """The states of numbers `index` at the end."""


class GaveUp(Exception):
    """The backend reports that it did not reach the end."""


@dataclass
class _Ended:
    """States and times at which samples ended, network calls for each, how it ended, and when it was lost to NaN."""

    x: Tensor
    t: Tensor
    evaluations: Tensor
    outcome: list[str]
    lost: dict[int, float]

    @classmethod
    def of(cls, problem: Problem) -> _Ended:
        """All samples at the start."""
        n = len(problem.x)
        t = torch.full((n,), problem.start, dtype=torch.float64, device="cpu")
        evaluations = torch.zeros(n, dtype=torch.int64, device="cpu")
        return cls(problem.x.clone(), t, evaluations, [COMPLETED] * n, {})

    def note(self, group: list[int], reason: str, lost: Mapping[int, float]) -> None:
        """Note why a group's samples ended, or when they were lost, by the place of a sample in the group."""
        for j, i in enumerate(group):
            if j in lost:
                self.outcome[i] = NOT_FINITE
                self.lost[i] = lost[j]
            else:
                self.outcome[i] = GIVEN_UP if reason == NOT_FINITE else reason


class _Seen:
    """Keeps an eye on what a backend evaluates, and on the budget: `bad` has the samples whose values were not finite
    and the time of the first of each."""

    def __init__(self, limit: float, model: BoundScore, stops_at_nan: bool = False) -> None:
        self.limit = limit
        self.model = model
        self.stops_at_nan = stops_at_nan
        self.failed = False
        self.bad: dict[int, float] = {}

    def __call__(self, evaluate: Callable[[], Tensor], time: Callable[[], float]) -> Tensor:
        if self.model.nfe >= self.limit:
            raise OutOfCalls
        try:
            value = evaluate()
        except Exception:
            self.failed = True
            raise

        bad = not_finite(value)
        self.bad |= {j: time() for j in bad if j not in self.bad}
        if bad and self.stops_at_nan:
            raise GaveUp("a value is not finite")
        return value

    def reason(self, error: Exception) -> str:
        """Why the backend gave up; an error of the network's is no giving up and goes on."""
        if self.failed:
            raise error
        if isinstance(error, OutOfCalls):
            return OUT_OF_STEPS
        return NOT_FINITE if self.bad else STEP_TOO_SMALL


@dataclass(frozen=True)
class FlowBackend(Backend):
    """A method of another library on the probability flow, on s in [0, 1] from the start to the end of the variable.

    Args:
        variable: in what the flow is solved; see `Adaptive`.
    """

    variable: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("variable", self.variable, (None, *VARIABLES))

    def _solve(self, problem: Problem, index: Tensor, seen: _Seen) -> Tensor:
        n = len(index)
        variable = self.variable or default_variable(problem.sde)
        flow = Flow(problem.model, variable, (problem.start, problem.end), len(problem.x))

        def slope(s: float | Tensor, z: Tensor) -> Tensor:
            u = flow.at_share(float(s.detach()) if isinstance(s, Tensor) else s, n)
            dz_du = seen(lambda: flow.slope(u, z, index), lambda: float(flow.time(u)[0]))
            return (flow.end - flow.start) * dz_du

        z = self._odeint(slope, flow.enter(problem.x[index]), problem.steps)
        x, _ = flow.leave(z, flow.at_share(1.0, n))
        return x

    @abstractmethod
    def _odeint(self, slope: Slope, z: Tensor, steps: int | None) -> Tensor:
        """The solution at s = 1."""


@dataclass(frozen=True)
class TorchDiffEq(FlowBackend):
    """torchdiffeq on the probability flow: `"torchdiffeq:dopri5"`.

    Its adaptive methods step over the end and interpolate back, which calls the network at times that it does not know;
    here their last step is made to end at the end. Methods of even steps take `steps=`.

    Source: Chen, 2018, github.com/rtqichen/torchdiffeq.

    Examples:
        >>> TorchDiffEq("dopri5").order
        5
    """

    library = "torchdiffeq"
    source = "Chen, 2018, github.com/rtqichen/torchdiffeq"
    adaptive: ClassVar[dict[str, int]] = {"dopri8": 8, "dopri5": 5, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
    fixed: ClassVar[dict[str, int]] = {
        "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 4,
    }  # fmt: skip

    def _odeint(self, slope: Slope, z: Tensor, steps: int | None) -> Tensor:
        from torchdiffeq import odeint

        s = torch.linspace(0, 1, (steps or 1) + 1, dtype=torch.float64, device=z.device)
        options: dict[str, object] = {}
        if self.method in self.adaptive:
            # The first step's size follows from the norm, and its gradient would need those of all times beside it.
            options = {"step_t": s[1:], "norm": lambda v: v.detach().square().mean().sqrt()}
        solution: Tensor = odeint(
            slope, z, s, rtol=self.rtol, atol=self.atol, method=self.method, options=options
        )  # fmt: skip
        return solution[-1]


@dataclass(frozen=True)
class SciPy(FlowBackend):
    """`scipy.integrate.solve_ivp` on the probability flow, in float64 on the host: `"scipy:RK45"`.

    The implicit methods find their Jacobian by differences: many calls, in few dimensions only.

    Source: Virtanen et al., 2020, doi:10.1038/s41592-019-0686-2.

    Examples:
        >>> SciPy("DOP853").order
        8
    """

    library = "scipy"
    stops_at_nan = True  # with a first step of NaN the explicit methods try for ever
    source = "Virtanen et al., 2020, doi:10.1038/s41592-019-0686-2"
    adaptive: ClassVar[dict[str, int]] = {"RK45": 5, "RK23": 3, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 5}
    fixed: ClassVar[dict[str, int]] = {}

    def _odeint(self, slope: Slope, z: Tensor, steps: int | None) -> Tensor:
        from scipy.integrate import solve_ivp

        if torch.is_grad_enabled():
            raise ValueError(f"{self.name} leaves torch and has no gradients: leave out enable_grad=True")

        def to_numpy(value: Tensor) -> np.ndarray:
            return value.double().cpu().numpy().ravel()

        def to_torch(value: np.ndarray) -> Tensor:
            return torch.from_numpy(value).to(z).view_as(z)

        def fun(s: float, y: np.ndarray) -> np.ndarray:
            return to_numpy(slope(s, to_torch(y)))

        solution = solve_ivp(fun, (0.0, 1.0), to_numpy(z), method=self.method, rtol=self.rtol, atol=self.atol)
        if not solution.success:
            raise GaveUp(solution.message)
        return to_torch(solution.y[:, -1])


@dataclass(frozen=True)
class TorchSDE(Backend):
    r"""torchsde on the reverse SDE, its time turned round and its states flattened for it: `"torchsde:srk"`.

    Each sample has a Brownian path of its own, from the sample's seed, in the place of one for the batch. With
    `steps=` the steps are even and samples are independent; without, the library chooses them for the whole batch.
    Since the noise does not depend on the state, Itô and Stratonovich methods solve the same equation. The library's
    `reversible_heun` is stable for oscillations alone, and refused.

    Steps are even in $u = \sigma/(\alpha+\sigma)$, the time of rectified flow, for which the SDE is changed in time:

    $$ dx = F\,\frac{dt}{du}\,du + g\,\Big(\frac{dt}{du}\Big)^{1/2} dw, \qquad
       \frac{dt}{du} = \frac{2\sigma^2}{g^2\,u\,(1-u)} $$

    In time, which is the noise level itself on `EDMSDE`, the last of 50 steps would go from 1.6 to the end.

    Args:
        variable: in what steps are even, `"flow-time"` or `"time"`; the first if not given, where the process has
            alpha and sigma.

    Raises:
        ValueError: as `Backend`, and for `reversible_heun`.

    Source: Li et al., 2020, arXiv:2001.01328.

    Examples:
        >>> TorchSDE("srk").stochastic
        True
    """

    stochastic = True
    library = "torchsde"
    source = "Li et al., 2020, arXiv:2001.01328"
    adaptive: ClassVar[dict[str, int]] = {
        "euler": 1, "milstein": 1, "srk": 1, "midpoint": 1, "heun": 1, "euler_heun": 1,
    }  # fmt: skip
    fixed: ClassVar[dict[str, int]] = adaptive
    refused: ClassVar[dict[str, str]] = {
        "reversible_heun": (
            "torchsde's reversible_heun is stable for oscillations alone, and the reverse SDE contracts, so that "
            "samples of several modes are wrong after thousands of steps, too: take torchsde:heun"
        )
    }
    variable: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("variable", self.variable, (None, "flow-time", "time"))

    def _coupled(self, problem: Problem) -> bool:
        return problem.steps is None

    def _solve(self, problem: Problem, index: Tensor, seen: _Seen) -> Tensor:
        import torchsde

        require_one_noise_level(self.name, problem.sde)
        calculus = "ito" if self.method in ITO else "stratonovich"
        reverse = _Reverse(problem, index, seen, calculus, self.variable or default_variable(problem.sde))
        x = problem.x[index]
        y = flat(x)
        span = reverse.span
        ts = torch.tensor([0.0, span], dtype=torch.float64, device="cpu")

        seeds = problem.seeds.select(index.numpy(force=True))
        with_area = self.method == "srk"
        paths = PathWithArea(seeds, tuple(y.shape), float(ts[1]), problem.start, y.dtype, y.device, with_area=with_area)
        bm = _brownian(paths, y, "space-time" if with_area else "none")
        adaptive = problem.steps is None
        dt = span / 100
        if problem.steps is not None:
            dt = span / problem.steps * (1 + STEP_ROUNDING)
        with warnings.catch_warnings():  # of noise that depends on the state, which this one does not
            warnings.filterwarnings("ignore", "Numerical solution is not guaranteed")
            _, y_end = torchsde.sdeint(
                reverse, y, ts, bm=bm, method=self.method, dt=dt, adaptive=adaptive, rtol=self.rtol, atol=self.atol
            )  # fmt: skip
        return y_end.view_as(x)


class _Reverse:
    """The reverse SDE as torchsde takes it: s runs upwards from 0, u downwards from the start, and states are flat,
    (b, D).

    Attributes:
        span: the length of the run in u.
    """

    noise_type = "diagonal"

    def __init__(self, problem: Problem, index: Tensor, seen: _Seen, sde_type: str, variable: str) -> None:
        self.problem = problem
        self.index = index
        self.seen = seen
        self.sde_type = sde_type
        self.places = Flow(problem.model, variable, (problem.start, problem.end), len(problem.x))
        self.span = self.places.start - self.places.end

    def _at(self, s: Tensor | float) -> tuple[Tensor, float]:
        """t (1,) and dt/du."""
        places = self.places
        place = min(max(places.start - float(s), places.end), places.start)
        u = torch.full((1,), place, dtype=torch.float64, device="cpu")
        t = places.time(u)
        sde = places.sde
        if places.variable == "time" or not has_scalar_marginal(sde):
            return t, 1.0

        variance = sde.sigma(t) ** 2
        return t, float(2 * variance / (sde.g(t) ** 2 * u * (1 - u)))

    def f(self, s: Tensor | float, y: Tensor) -> Tensor:
        """Drift."""
        model = self.problem.model
        x = y.view(len(y), *self.problem.x.shape[1:])
        t, rate = self._at(s)
        times = t.expand(len(self.index))
        with model.only(self.index, len(self.problem.x)):
            drift = self.seen(lambda: model.predict_at("drift", x, times, 1.0), lambda: float(t))
        return -rate * drift.reshape(y.shape)

    def g(self, s: Tensor | float, y: Tensor) -> Tensor:
        """Diffusion."""
        t, rate = self._at(s)
        return torch.full_like(y, math.sqrt(rate) * float(self.problem.sde.g(t)))


def _brownian(paths: PathWithArea, y: Tensor, levy: str) -> Any:
    """Paths of a batch like y (b, D) as torchsde takes them."""
    import torchsde

    class Paths(torchsde.BaseBrownian):  # type: ignore[misc]
        def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:
            increment, area = paths.between(float(ta), float(tb))
            return (increment, area) if return_U else increment

        def __repr__(self) -> str:
            return f"Paths({len(y)})"

        dtype = property(lambda self: y.dtype)
        device = property(lambda self: y.device)
        shape = property(lambda self: y.shape)
        levy_area_approximation = property(lambda self: levy)

    return Paths()
