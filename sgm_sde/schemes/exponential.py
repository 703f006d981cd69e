"""Exponential integrators: multistep (Adams) and single-step (Runge-Kutta), in any prediction, for ODE and SDE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from sgm_sde._utils.checks import (
    FAR,
    check_integer,
    ends_of,
    levels_of,
    number,
    one_of,
    real,
    require_function,
    settle,
    stochasticity,
)
from sgm_sde.engine.coordinates import Values
from sgm_sde.engine.matrix import number as engine_number
from sgm_sde.engine.node import Node
from sgm_sde.engine.phi import phi
from sgm_sde.engine.program import Form, Step
from sgm_sde.engine.quadrature import interpolatory_weights
from sgm_sde.engine.times import ROUNDING
from sgm_sde.processes.base import SDE
from sgm_sde.schemes.base import Solver
from sgm_sde.schemes.linear_part import PARTS, SPARE, VARIABLES, VARIANTS, DataPart, Known, LinearPart, separated

Eta = float | Callable[[float], float]
STARTS = ("cold", "warm")
EVERYWHERE = (0.0, math.inf)  # all noise levels
FEW_STEPS = 15  # below them the literature's codes lower the order of the last steps
LEAP = 2.0  # a last step that is longer than so many of the one before has nothing to rest a polynomial on
NATIVE = {"data": "log-snr", "noise": "log-snr", "v": "angle", "rectified": "flow-time"}


@dataclass(frozen=True, kw_only=True, repr=False)
class Exponential(Solver):
    """Exponential integrator: exact linear part, prediction, and stochasticity eta.

    Attributes:
        prediction: `"data"`, `"noise"`, `"v"` or `"rectified"`: what is interpolated.
        variable: what it is a polynomial in: `"log-snr"`, `"time"`, `"noise-level"` or `"vp-time"`, the time at which
            the VP process of betas 0.1 to 20 has the noise level; v-prediction in the `"angle"`, in `"log-snr"` or in
            `"log-signal"`, see `Rosenbrock`; rectified flow in the `"flow-time"`.
        variant: `"exact"`, or a published simplification; see `LinearPart.weights`.
        eta: stochasticity, a number or a function of the time at which a step starts; it stays constant on the
            step, which is a stochasticity like any other and costs no accuracy.
        noise_scale: `"er"` for ER-SDE's noise scale, a function of sigma / alpha, instead of `eta`.
        window: noise levels sigma / alpha, low and high, outside of which `eta` is 0.
        sigma_data: standard deviation of the data, for v-prediction.
        no_signal_above: noise level sigma / alpha from which on v is interpolated in units of it, so that what a
            network is off by near pure noise is not multiplied by long steps; see `linear_part.VPart`.
        linear_below: noise level c of log-signal, log(1 + sigma / (alpha c)): below it about the noise level, above
            it about its logarithm; None for `sigma_data`.
        name: what to call it.
        source: where it is from.
    """

    prediction: str = "data"
    variable: str | None = None
    variant: str = "exact"
    eta: Eta = 0.0  # type: ignore[assignment]
    noise_scale: str | None = None
    window: tuple[float, float] = EVERYWHERE
    sigma_data: float = 1.0
    no_signal_above: float | None = None
    linear_below: float | None = None
    name: str = "exponential"
    source: str = ""

    def __post_init__(self) -> None:
        self._settle_interpolation()
        self._settle_stochasticity()
        self._settle_v()

    def _settle_interpolation(self) -> None:
        """Prediction, variable and variant: allowed, and made for one another."""
        one_of("prediction", self.prediction, PARTS)
        native = NATIVE[self.prediction]
        variable = native if self.variable is None else self.variable
        settle(self, variable=variable)

        allowed = {"v": (native, "log-signal", "log-snr"), "rectified": (native,)}
        one_of(f"variable of {self.prediction}", variable, allowed.get(self.prediction, VARIABLES[:4]))
        one_of("variant", self.variant, VARIANTS)

        given = f"{self.prediction} in {variable}"
        if self.variant == "bh1" and variable != "log-snr":
            raise ValueError(f"variant='bh1' is made for data or noise in log-SNR, got {given}")
        if self.variant in ("fixed", "ipndm-v") and (self.prediction, variable) != ("noise", "noise-level"):
            raise ValueError(f"variant={self.variant!r} is made for noise in the noise level, got {given}")

    def _settle_stochasticity(self) -> None:
        """`eta`, `noise_scale` and `window`: in range, and none that acts on nothing."""
        if callable(self.eta):
            require_function("eta", self.eta, "of t, or a number", 1)
        else:
            settle(self, eta=stochasticity(self.eta))
        if self.prediction == "rectified" and self.stochastic:
            raise ValueError(f"prediction='rectified' is for the flow, got eta={self.eta!r}")

        everywhere = self.window == EVERYWHERE
        scale = self.noise_scale
        if scale is not None:
            one_of("noise_scale", scale, LOG_SCALES)
            if self.prediction != "data" or callable(self.eta) or self.eta or not everywhere:
                raise ValueError(f"noise_scale goes with data prediction and without eta, got noise_scale={scale!r}")

        low, high = ends_of("window", self.window)
        if not 0 <= low <= high:
            raise ValueError(f"window must be (low, high) with 0 <= low <= high, got {self.window}")
        if not everywhere and not self.stochastic:
            raise ValueError(f"window acts on eta, which is 0: got window={self.window}")
        settle(self, window=(low, high))

    def _settle_v(self) -> None:
        """Options of v-prediction."""
        settle(self, sigma_data=number("sigma_data", self.sigma_data, above=0, most=FAR))
        if self.sigma_data != 1 and self.prediction != "v":
            raise ValueError(f"sigma_data acts on v-prediction, got it with {self.prediction}")
        if self.linear_below is not None:
            settle(self, linear_below=number("linear_below", self.linear_below, above=0, most=FAR))
            if self.variable != "log-signal":
                raise ValueError(f"linear_below acts on the variable log-signal, got it with {self.variable}")
        if self.no_signal_above is None:
            return

        settle(self, no_signal_above=number("no_signal_above", self.no_signal_above, above=0, most=FAR))
        if self.prediction != "v" or self.variable == "angle":
            given = f"{self.prediction} in {self.variable}"
            raise ValueError(f"no_signal_above acts on v in log-SNR or log-signal, got it with {given}")

    def __repr__(self) -> str:
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default and f.name not in ("name", "source")]
        native = self.variable == NATIVE.get(self.prediction)
        shown = [f"{f.name}={getattr(self, f.name)!r}" for f in changed if not (native and f.name == "variable")]
        return f"{type(self).__name__}({', '.join(shown)})"

    def brownian_time(self, sde: SDE, t: float) -> float:
        """The square of sigma / alpha for noise prediction, (alpha / sigma)^(2 eta^2) for the others."""
        if self.prediction == "noise":
            return math.exp(-float(sde.log_snr(t)))
        level = 1.0 if callable(self.eta) or self.noise_scale is not None else self.eta
        return math.exp(level**2 * float(sde.log_snr(t)))

    @property
    def grids(self) -> tuple[str, ...]:
        """Log-SNR, or EDM's own grid; for polynomials in the angle and in the flow's time, the process' own."""
        return () if self.variable in ("angle", "flow-time") else ("own", "log-snr")

    @property
    def stochastic(self) -> bool:
        """True if the solver adds noise."""
        return callable(self.eta) or self.eta > 0 or self.noise_scale is not None

    def eta_on(self, s: Node, t: Node) -> float:
        """Stochasticity of the step from s to t; its square in proportion where a part of the step is in the window."""
        eta = stochasticity(self.eta(s.t), s.t) if callable(self.eta) else self.eta
        low, high = self.window
        if not eta or (low <= t.noise_level and s.noise_level <= high):
            return eta
        if t.noise_level >= high or s.noise_level <= low:
            return 0.0
        inside = math.log(min(s.noise_level, high) / max(t.noise_level, low)) / (t.lam - s.lam)
        return eta * math.sqrt(max(inside, 0.0))

    def part(self, s: Node, t: Node) -> LinearPart:
        """The linear part of the step from s to t."""
        assert self.variable is not None
        if self.noise_scale is not None:
            return DataPart(self.variable, 0.0, self.variant, log_scale=LOG_SCALES[self.noise_scale])
        no_signal_above = math.inf if self.no_signal_above is None else self.no_signal_above
        return PARTS[self.prediction](
            self.variable, self.eta_on(s, t), self.variant, self.sigma_data, no_signal_above, self.linear_below
        )


class _Predicted(NamedTuple):
    """A step as the predictor took it, for its corrector: the linear part, the start, the evaluations used about a
    centre, the integral through them, and the centre."""

    part: LinearPart
    start: Node
    known: Known
    integral: Form
    centre: Form


def _er_log_scale(s: Values) -> Values:
    return np.log(s) + np.logaddexp(s**0.3, math.log(10))


LOG_SCALES: dict[str, Callable[[Values], Values]] = {"er": _er_log_scale}


def runge_kutta_step(part: LinearPart, k: Step, c: tuple[float, ...]) -> Form:
    """One exponential Runge-Kutta step with none, one or two inner nodes, at the fractions c.

    Each stage interpolates the evaluation before it and the one at the start. Noise runs through the inner
    nodes: what a stage has drawn, the later ones have as well.
    """
    s = k.start
    t = k.end
    start = newest = (s, k.evaluate(k.x, s))
    drawn = Form()  # noise of the step, as it is at the node `noisy`
    noisy = s

    def advance(to: Node) -> Form:
        nonlocal noisy, drawn
        known: Known = [start] if newest is start else [newest, start]
        x = part.update(s, to, k.x, known)
        std = part.std(noisy, to)
        if std:
            drawn = part.factor(noisy, to) * drawn + std * k.noise()
            noisy = to
        return x + drawn

    finite = math.isfinite(part.coordinate(s)) and math.isfinite(part.coordinate(t))
    for fraction in c if finite else ():
        node = part.between(k, s, t, fraction)
        newest = (node, k.evaluate(advance(node), node))
    if len(c) == 2 and newest is not start:  # accurate enough for the steps to come
        k.remember(*newest)
    return advance(t)


@dataclass(frozen=True, kw_only=True, repr=False)
class ExponentialAdams(Exponential):
    r"""Exponential Adams methods: the one formula of which the field's multistep solvers are cases.

    $$ x_t = L\,x_s + \sum_{j<n} w_j\,p_j + \text{std}\,z $$

    where the weights integrate the polynomial through the last n evaluations $p_j$ of the prediction exactly
    against the kernel; `sgm_sde.schemes.linear_part` has L, the kernel and std for each prediction and stochasticity.

    `corrector=m` does each step a second time once the network has been called at its end, with the polynomial
    through m evaluations, that one included, and the same noise: no further call, one order more (UniC). The
    last step has no evaluation at its end and stays as predicted.

    A cold start has a first step of order 1, which limits the global order to 2, with a corrector to 3, whatever n.
    `start="warm"` makes the first step a single-step one of the order needed, for one or two network calls more in
    all, and reaches order n (n + 1 with a corrector) up to 4.

    `final_nodes=m` ends in the sample, without a call for it: it is the value at the last step's end of the polynomial
    through the last m data estimates, in the square of the noise level $s = \sigma/\alpha$. Along the flow
    $y(s) = x/\alpha$ the estimate $D = y - s\,y'$ has no term linear in s. Estimates that are all the same are met
    exactly; with m = 1 it is the estimate at the step's start.

    Where the score jumps at known noise levels, as guidance in an interval does, no polynomial goes across: `jumps`
    are levels at which the method starts cold once more, without what it has evaluated above them.

    One network call per step.

    Args:
        nodes: the number n of evaluations per step uses.
        corrector: evaluations the corrector uses; 0 for none.
        start: `"cold"` or `"warm"`.
        lower_final: whether the last steps use ever fewer evaluations, the very last one its own only, which limits the
            order to 2; None: on grids of less than 15 steps, as the literature's codes do, since there a network's
            roughness costs more than the order gains, and on those whose last step is more than twice as long as the
            one before in the variable of interpolation, since polynomials are carried too far there.
        final_nodes: evaluations that the sample is made from at the end; 0 to end in a state.
        centred_below: noise level sigma / alpha from which on v is interpolated about a data estimate; None for never.
        jumps: noise levels sigma / alpha at which the score jumps; an evaluation at one of them is of the levels below.

    Raises:
        ValueError: for options out of range, a warm start where it changes nothing or where there is noise, or jumps
            with a warm start.

    Source: Zhang & Chen, 2023, arXiv:2204.13902; Lu et al., 2022, arXiv:2211.01095; Zhao et al., 2023,
    arXiv:2302.04867; Xue et al., 2023, arXiv:2309.05019.

    Examples:
        >>> ExponentialAdams(nodes=3, start="warm").order, ExponentialAdams(nodes=3).order
        (3, 2)
        >>> ExponentialAdams(nodes=2, corrector=3).order
        3
    """

    nodes: int = 2
    corrector: int = 0
    start: str = "cold"
    lower_final: bool | None = False
    final_nodes: int = 0
    centred_below: float | None = None
    jumps: tuple[float, ...] = ()
    name: str = "exponential-adams"
    source: str = "Zhang & Chen, 2023, arXiv:2204.13902"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, nodes=check_integer("nodes", self.nodes), corrector=check_integer("corrector", self.corrector, 0))
        if self.corrector > self.nodes + 1:
            raise ValueError(f"corrector must lie between 0 and nodes + 1 = {self.nodes + 1}, got {self.corrector}")
        settle(self, final_nodes=check_integer("final_nodes", self.final_nodes, 0))
        one_of("lower_final", self.lower_final, (True, False, None))
        one_of("start", self.start, STARTS)
        if self.final_nodes and (self.stochastic or self.variant != "exact"):
            raise ValueError(
                f"final_nodes={self.final_nodes} is for deterministic solvers of the variant 'exact', "
                f"got eta={self.eta!r} and variant={self.variant!r}"
            )
        self._settle_levels()
        self._check_start()

    def _settle_levels(self) -> None:
        """Noise levels: in range, and none that acts on nothing."""
        settle(self, jumps=levels_of("jumps", self.jumps))
        if self.centred_below is None:
            return
        settle(self, centred_below=number("centred_below", self.centred_below, above=0, most=FAR))
        if self.prediction != "v":
            raise ValueError(f"centred_below acts on v-prediction, got it with {self.prediction}")

    def _check_start(self) -> None:
        """Raise ValueError for a warm start that is not possible or changes nothing."""
        if self.start == "warm" and self.stochastic:
            raise ValueError("start='warm' is for deterministic solvers")
        if self.start == "warm" and self.jumps:
            raise ValueError(f"jumps={self.jumps} go with start='cold': after each the method starts once more")
        if self.start == "warm" and not self._inner:
            raise ValueError(f"start='warm' changes nothing at order {self._potential}")

    @property
    def _potential(self) -> int:
        """Order of the steps that have the history they ask for."""
        if self.variant == "fixed":
            return 1
        if self.variant == "ipndm-v" and self.nodes > 2:
            return 2
        exact = self.nodes - (self.variant == "published" and self.nodes == 3)
        return min(self.corrector, exact + 1) if self.corrector else exact

    @property
    def _inner(self) -> tuple[float, ...]:
        """Inner nodes of the warm first step: its order is one less than the potential, 3 at most."""
        cold = 3 if self.corrector else 2
        return () if self._potential <= cold else (1 / 2,) if self._potential == 3 else (1 / 3, 2 / 3)

    @property
    def order(self) -> int:
        """Order of the global error without noise, cold or warm start taken into account."""
        limit = 2 if self.lower_final else 4 if self.start == "warm" else 3 if self.corrector else 2
        return min(self._potential, limit, self.final_nodes or limit)

    @property
    def ends_in_data(self) -> bool:
        """True if the last step makes the sample."""
        return self.final_nodes > 0

    def ending_in_a_state(self) -> Solver:
        """Without `final_nodes`, in the name neither."""
        return replace(self, final_nodes=0, name=self.name.replace(f"-final{self.final_nodes}", ""))

    def with_jumps(self, jumps: Sequence[float]) -> ExponentialAdams:
        """Starting anew at these noise levels, which its name then has too."""
        settled = replace(self, jumps=tuple(jumps))
        name = "-".join([self.name, "jumps", *(f"{jump:g}" for jump in settled.jumps)])
        return replace(settled, name=name)

    @property
    def weak_order(self) -> int | None:
        """At most 2."""
        return min(self.order, 2) if self.stochastic else None

    @property
    def grids(self) -> tuple[str, ...]:
        """Grids of multistep methods: log-SNR on EDM for polynomials of degree 2 and more.

        Its own steps change their length in log-SNR, and these polynomials are carried far beyond what they rest on;
        their papers run EDM's networks on even steps of it, too.
        """
        far = (self.prediction, self.variable) == ("data", "log-snr") and max(self.nodes, self.corrector) > 2
        return ("log-snr",) if far else super().grids

    def strict(self) -> Solver:
        """Without lower orders at the end, unless they are asked for at any number of steps."""
        return self if self.lower_final else replace(self, lower_final=False)

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps: those of a warm start come on top."""
        return steps + (len(self._inner) if self.start == "warm" else 0)

    def corrected(self, k: Step) -> Form:
        """The state at the step's start, the step before done again with the evaluation there."""
        newest = k.evaluate(k.x, k.start)
        predicted = k.memory.pop("predicted", None)
        if not isinstance(predicted, _Predicted):
            return k.x
        part, before, used, integral, centre = predicted
        nodes: Known = [*self._about(centre, [(k.start, newest)]), *used][: self.corrector]
        return k.x + part.integral(before, k.start, nodes) - integral

    def _beyond_a_jump(self, k: Step) -> bool:
        """True if a jump lies between the evaluation before this step and the one at its start."""
        return any(
            k.start.noise_level <= jump * (1 + ROUNDING) < node.noise_level
            for jump in self.jumps
            for node, _ in k.known(1)
        )

    def _nodes_at(self, k: Step) -> int:
        """Number of evaluations that a step uses."""
        n = k.n - self.ends_in_data
        lower = n < FEW_STEPS or self._leaps(k, n) if self.lower_final is None else self.lower_final
        return min(self.nodes, n - k.i) if lower else self.nodes

    def _leaps(self, k: Step, n: int) -> bool:
        """True if the last of n steps is much longer than the one before, as times even down to the data make it."""
        part = self.part(k.start, k.end)
        a, b, c = (part.coordinate(node) for node in k.nodes[n - 2 : n + 1])
        return math.isfinite(c) and abs(c - b) > LEAP * abs(b - a)

    def _sample(self, k: Step) -> Form:
        """The polynomial through the last data estimates at the last step's end, without a call there."""
        estimates = self._estimates(k)
        squares = [node.noise_level**2 for node, _ in estimates]
        if not math.isfinite(squares[0]):
            return estimates[0][1]

        h = k.end.noise_level**2 - squares[0]
        finite = [u for u in squares if math.isfinite(u)]
        places = [(u - squares[0]) / h for u in finite]
        kept = separated(places, self.final_nodes, lambda m: [1.0] * m)
        weights = interpolatory_weights([places[j] for j in kept], [1.0] * len(kept))
        return Form.combine([float(w) for w in weights], [estimates[j][1] for j in kept])

    def _estimates(self, k: Step) -> list[tuple[Node, Form]]:
        """The last steps' data estimates with their nodes, newest first, from the states that the network was given."""
        before = k.memory.pop("estimates", [])
        assert isinstance(before, list)
        return [(k.start, self._data(k)), *before][: self.final_nodes]

    def _data(self, k: Step) -> Form:
        """The data estimate at the step's start."""
        c_x, c_r = self._of_data(k.start)
        return (k.evaluate(k.x, k.start) - c_x * k.x) / c_r

    def _of_data(self, node: Node) -> tuple[float, float]:
        """The coefficients of the state and of the data estimate in an evaluation."""
        c_x, c_r = map(engine_number, node.convert("data", self.prediction, sigma_data=self.sigma_data))
        return c_x, c_r

    def _centre(self, k: Step) -> Form:
        """The first data estimate at a noise level of `centred_below` and less; nothing above."""
        if self.centred_below is None or k.start.noise_level > self.centred_below:
            return Form()
        centre = k.memory.setdefault("centre", self._data(k))
        assert isinstance(centre, Form)
        return centre

    def _about(self, centre: Form, known: Known) -> Known:
        """Evaluations of the state without alpha times a centre: without those of data there."""
        if not centre.terms:
            return known

        def moved(node: Node, value: Form) -> tuple[Node, Form]:
            c_x, c_r = self._of_data(node)
            return node, value - (c_x * node.alpha + c_r) * centre

        return [moved(node, value) for node, value in known]

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        if self._beyond_a_jump(k):
            k.forget()
        if self.ends_in_data and k.i == k.n - 1:
            return self._sample(k)
        if k.i >= k.n - self.final_nodes:
            k.memory["estimates"] = self._estimates(k)

        s = k.start
        t = k.end
        part = self.part(s, t)
        finite = math.isfinite(part.coordinate(s))
        x = self.corrected(k)
        first = finite and "warm" not in k.memory
        if self.start == "warm" and first:
            k.memory["warm"] = True
            exact = replace(part, variant="exact")
            return runge_kutta_step(exact, k, self._inner)

        nodes = self._nodes_at(k)
        centre = self._centre(k)
        usable = part.usable(s, t, k.known(nodes + SPARE), nodes)
        known = self._about(centre, usable)
        integral = part.integral(s, t, known)
        if self.corrector and finite:
            k.memory["predicted"] = _Predicted(part, s, known, integral, centre)

        std = part.std(s, t)
        noise = std * k.noise() if std else Form()
        return part.factor(s, t) * (x - s.alpha * centre) + integral + t.alpha * centre + noise


@dataclass(frozen=True, kw_only=True, repr=False)
class ExponentialRungeKutta(Exponential):
    r"""Exponential Runge-Kutta methods: the single-step solvers of the DPM-Solver family, for ODE and SDE.

    With one inner node at the fraction $c_2$ of the step, in the variable of interpolation:

    $$ u = L\,x_s + w\,p_s + \text{noise}, \qquad x_t = L\,x_s + w_0\,p_s + w_1\,p_u + \text{noise} $$

    with weights exact for lines; with two inner nodes $c_2 < c_3 = \tfrac23$, the second from $p_s$ and the first,
    and the end from $p_s$ and the second, which is of order 3 because $c_3 = \tfrac23$. The noises of a step are
    those of one Brownian path.

    Order as many as stages; so many network calls per step. Where a budget of calls is not a multiple of them,
    `fit` lets the last steps do with a stage less, which costs no order.

    Args:
        stages: 1, 2 or 3.
        c2: the first inner node.
        reduced: number of last steps with one stage less.

    Raises:
        ValueError: for options out of range.

    Source: Lu et al., 2022, arXiv:2206.00927; Gonzalez et al., 2023, arXiv:2305.14267 (with noise).

    Examples:
        >>> solver, steps = ExponentialRungeKutta(stages=3).fit(20)
        >>> solver.reduced, steps, solver.nfe(steps)
        (1, 7, 20)
    """

    stages: int = 2
    c2: float | None = None
    reduced: int = 0
    name: str = "exponential-runge-kutta"
    source: str = "Lu et al., 2022, arXiv:2206.00927"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, stages=check_integer("stages", self.stages))
        settle(self, reduced=check_integer("reduced", self.reduced, 0))
        one_of("stages", self.stages, (1, 2, 3))
        one_of("variant of a single-step method", self.variant, ("exact", "midpoint"))
        if self.variant == "midpoint" and self.stages != 2:
            raise ValueError(f"variant='midpoint' is one of two stages, got stages={self.stages}")
        largest = 1 if self.stages == 2 else 2 / 3
        if self.c2 is not None and (self.stages == 1 or not 1e-6 < real("c2", self.c2) < largest):
            raise ValueError(f"c2 must lie inside the step, for three stages below 2/3, got {self.c2}")
        if self.reduced and self.stages == 1:
            raise ValueError(f"reduced must be 0 for one stage, got {self.reduced}")

    @property
    def order(self) -> int:
        """The number of stages."""
        return self.stages

    @property
    def weak_order(self) -> int | None:
        """At most 2."""
        return min(self.order, 2) if self.stochastic else None

    @property
    def nfe_per_step(self) -> int:
        """The number of stages."""
        return self.stages

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps, the reduced ones counted as what they are."""
        return steps * self.stages - min(self.reduced, steps)

    def fit(self, nfe: int) -> tuple[Solver, int]:
        """The solver with as many reduced steps as use the budget in full, and its number of steps."""
        steps = -(-nfe // self.stages)
        reduced = steps * self.stages - nfe
        if reduced <= steps:
            return replace(self, reduced=reduced), steps
        return replace(self, stages=self.stages - 1, c2=None, variant="exact", reduced=0).fit(nfe)

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        stages = self.stages - (k.i >= k.n - self.reduced)
        c2 = 1 / stages if self.c2 is None else self.c2
        return runge_kutta_step(self.part(k.start, k.end), k, ((), (c2,), (c2, 2 / 3))[stages - 1])


@dataclass(frozen=True)
class RES(Solver):
    r"""Refined exponential solver of three stages, which meets the stiff order conditions.

    In $y = x/\alpha$, whose probability flow is $dy/d\lambda = D - y$, with $c_2 = \tfrac12, c_3 = 1$,
    $\gamma = 4$, $h = \lambda_t - \lambda_s$ and $\phi_{k,i} = \phi_k(-c_i h)$:

    $$ y_2 = e^{-h/2}y + \tfrac h2\phi_{1,2} D_1, \quad
       y_3 = e^{-h}y + h\left[(\phi_{1,3} - a) D_1 + a D_2\right], \quad a = \tfrac\gamma2\phi_{2,2} + 2\phi_{2,3} $$
    $$ y_t = e^{-h}y + h\left[(\phi_1 - \tfrac53\phi_2) D_1 + \tfrac43\phi_2 D_2 + \tfrac13\phi_2 D_3\right] $$

    Order 3; three network calls per step. The two-stage solver is `ExponentialRungeKutta(stages=2)`, the multistep one
    `ExponentialAdams`.

    Source: Zhang et al., 2023, arXiv:2308.02157; Hochbruck & Ostermann, 2005, doi:10.1137/040611434.

    Examples:
        >>> RES().order, RES().nfe_per_step
        (3, 3)
    """

    name = "res3"
    order = 3
    nfe_per_step = 3
    prediction = "data"
    grids = ("own", "log-snr")
    source = "Zhang et al., 2023, arXiv:2308.02157"

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        s = k.start
        t = k.end
        h = t.lam - s.lam
        D1 = k.evaluate(k.x, s)
        if not math.isfinite(h):
            return t.sigma / s.sigma * k.x + t.alpha * D1

        y = k.x / s.alpha
        middle = k.at(float(s.sde.time(s.lam + t.lam)))
        D2 = k.evaluate(middle.alpha * self._y2(y, h, D1), middle)
        D3 = k.evaluate(t.alpha * self._y3(y, h, D1, D2), t)
        return t.alpha * self._y(y, h, D1, D2, D3)

    @staticmethod
    def _y2(y: Form, h: float, D1: Form) -> Form:
        return math.exp(-h / 2) * y + h / 2 * phi(1, -h / 2) * D1

    @staticmethod
    def _y3(y: Form, h: float, D1: Form, D2: Form) -> Form:
        a = 2 * phi(2, -h / 2) + 2 * phi(2, -h)
        return math.exp(-h) * y + h * ((phi(1, -h) - a) * D1 + a * D2)

    @staticmethod
    def _y(y: Form, h: float, D1: Form, D2: Form, D3: Form) -> Form:
        b = phi(2, -h) / 3
        slope = (phi(1, -h) - 5 * b) * D1 + 4 * b * D2 + b * D3
        return math.exp(-h) * y + h * slope
