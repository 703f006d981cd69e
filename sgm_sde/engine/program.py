r"""A solver as a value: a table of float64 coefficients that one executor runs.

Every non-adaptive method has the form

$$ x_k = \sum_j A_{kj}\,x_j + \sum_j B_{kj}\,e_j + \sum_m C_{km}\,z_m, \qquad e_k = \text{model}(x_k, t_k) $$

with states $x$, evaluations $e$ and standard normal noises $z$; stage 0 is the initial state. The coefficients
depend on the process, the grid and the method, never on x. They are numbers; on a process whose state has k blocks
(B, k, *), such as position and velocity, they may be k x k matrices that act on axis 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from numbers import Real
from typing import NoReturn, Protocol

import torch

from sgm_sde._utils.checks import described
from sgm_sde._utils.files import JsonMapping, parse_json
from sgm_sde.engine.matrix import Matrix, finite
from sgm_sde.engine.node import Coefficient, Node, Process
from sgm_sde.identity import Value

__all__ = ["Form", "Formula", "Program", "Stage", "Step", "compile_program"]

Terms = tuple[tuple[int, Coefficient], ...]
PREDICTIONS = ("data", "noise", "score", "v", "flow", "rectified", "drift")  # of an evaluation
MATRIX_OUTPUTS = ("data", "data_x", "noise", "score", "noise_v", "score_v")  # of a network, on states of several blocks
MATRIX_PREDICTIONS = (*MATRIX_OUTPUTS, "drift", "gddim-noise")
OUTSIDE = 1e-9  # share of the first time by which a stage may lie outside of the grid: rounding
SAME_NODE = 1e-12  # relative difference of times of one node: start.t + 1.0 * h is end.t but for rounding
NOISES_A_STAGE = 8  # drawn by a solver's formula, at most; those with coefficient 0 leave gaps


@dataclass(frozen=True)
class Stage(Value):
    """One row of the table: a new state at time `t`.

    Attributes:
        t: the time at which the state lives, and is evaluated.
        states: pairs (j, A) of earlier states.
        evals: pairs (j, B) of evaluations at earlier states.
        noises: pairs (m, C) of noises.
        evaluate: whether the model is called at this state.
        node: whether the state is one of the grid's: callbacks, correctors and trajectories see it.

    Examples:
        >>> Stage(t=0.5, states=((0, 0.9),), evals=((0, 0.1),)).coefficients
        (0.9, 0.1)
    """

    t: float
    states: Terms = ()
    evals: Terms = ()
    noises: Terms = ()
    evaluate: bool = False
    node: bool = False

    @property
    def coefficients(self) -> tuple[Coefficient, ...]:
        """Coefficients of all terms."""
        return tuple(c for _, c in (*self.states, *self.evals, *self.noises))


@dataclass(frozen=True)
class Program(Value):
    """A compiled solver.

    Attributes:
        name: the solver's name.
        prediction: what an evaluation is, one of `PREDICTIONS`, or on a process with a matrix of `MATRIX_PREDICTIONS`.
        stages: the table.
        eta: stochasticity of the reverse process, for `prediction="drift"`.
        sigma_data: standard deviation of the data, for `prediction="v"`.

    Raises:
        ValueError: for a coefficient that is not finite, a reference to a later stage, or a program that does not
            start and end at a node.

    Examples:
        >>> import sgm_sde as sg
        >>> p = sg.DDIM().compile(sg.VPSDE(), sg.grids.Uniform()(sg.VPSDE(), 10))
        >>> p.nfe, p.steps, Program.from_json(p.to_json()) == p
        (10, 10, True)
    """

    name: str
    prediction: str
    stages: tuple[Stage, ...]
    eta: float = 0.0
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if not self.stages or self.stages[0].states or self.stages[0].evals:
            raise ValueError("a program starts with the initial state, a stage without terms")
        if not (self.stages[0].node and self.stages[-1].node):
            raise ValueError("a program starts and ends at a node")
        for k, stage in enumerate(self.stages):
            self._check("state", stage.states, k)
            self._check("eval", stage.evals, k)
            self._check("noise", stage.noises, k)
            for j, _ in stage.evals:
                if not self.stages[j].evaluate:
                    raise ValueError(f"stage {k} refers to eval {j}, which is not evaluated")

    def _check(self, kind: str, terms: Terms, k: int) -> None:
        """Raise ValueError for terms that stage k cannot have."""
        for j, coefficient in terms:
            if not finite(coefficient):
                t = self.stages[k].t
                way_out = "start below it (t_start=)" if t > 0 else "end above it (t_end=)"
                raise ValueError(
                    f"{self.name} has the coefficient {coefficient} on {kind} {j} in stage {k}, at t={t:.6g}: the "
                    f"process is singular there; {way_out} or use a solver that is not"
                )
            if kind != "noise" and not 0 <= j < k:
                raise ValueError(f"stage {k} refers to {kind} {j}, which does not exist yet")

    def __hash__(self) -> int:
        return hash((self.name, self.prediction, self.eta, self.sigma_data, len(self.stages), self.stages[-1]))

    @property
    def blocks(self) -> int:
        """Blocks of the state that coefficients act on: 1 where all of them are numbers."""
        matrices = (c for stage in self.stages for c in stage.coefficients if isinstance(c, Matrix))
        return max((len(matrix.rows) for matrix in matrices), default=1)

    @property
    def nfe(self) -> int:
        """Number of model calls."""
        return sum(stage.evaluate for stage in self.stages)

    @property
    def times(self) -> tuple[float, ...]:
        """The grid's times, decreasing."""
        return tuple(stage.t for stage in self.stages if stage.node)

    @property
    def asked_stages(self) -> tuple[int, ...]:
        """The stage where the network is first asked at or after each node, and the node's own where it is not."""
        asked: list[int] = []
        waits = False
        for k, stage in enumerate(self.stages):
            if stage.node:
                asked.append(k)
                waits = True
            if waits and stage.evaluate:
                asked[-1] = k
                waits = False
        return tuple(asked)

    @property
    def asked_times(self) -> tuple[float, ...]:
        """The times of those stages."""
        return tuple(self.stages[k].t for k in self.asked_stages)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.times) - 1

    @property
    def stochastic(self) -> bool:
        """True if any stage adds noise."""
        return any(stage.noises for stage in self.stages)

    def without_final_noise(self) -> Program:
        """The same program without the noise that its last stage draws: the last step's mean.

        Noise that an earlier stage has added stays, since later evaluations depend on it.
        """
        *head, last = self.stages
        earlier = {m for stage in head for m, _ in stage.noises}
        noises = tuple((m, c) for m, c in last.noises if m in earlier)
        return replace(self, stages=(*head, replace(last, noises=noises)))

    def to_json(self) -> str:
        """The program as JSON; floats survive to the last bit."""
        return json.dumps(asdict(self))

    @classmethod
    def _of_spec(cls, data: JsonMapping, read: Callable[[object, str], object]) -> Program:
        """The program of a spec, whose checks are those of `from_json`."""
        return Program.from_json(json.dumps(_without_classes(data, "engine.Stage", "engine.Program", "engine.Matrix")))

    @staticmethod
    def from_json(text: str) -> Program:
        """The program that `to_json` wrote.

        Raises:
            ValueError: unless the text is that of a program that runs.
        """
        try:
            return _program(parse_json(text))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"not the JSON of a program: {error}") from None

    def __str__(self) -> str:
        def combine(letter: str, terms: Terms) -> list[str]:
            return [f"{c:+.6g} {letter}{j}" for j, c in terms]

        lines = [f"{self.name}: {self.steps} steps, {self.nfe} evaluations of the {self.prediction}"]
        for k, stage in enumerate(self.stages):
            terms = combine("x", stage.states) + combine("e", stage.evals) + combine("z", stage.noises)
            formula = " ".join(terms) or "initial state"
            node = "*" if stage.node else " "
            evaluated = "e" if stage.evaluate else " "
            lines.append(f"{node}{evaluated} x{k} (t={stage.t:.6g}) = {formula}")
        return "\n".join(lines)


def _program(data: object) -> Program:
    """The program in JSON values: each field of its type, times and coefficients finite, and a table that runs.

    Raises:
        ValueError: for anything else, with where it is.
    """
    given = _object("a program", data, _names(Program))
    name = given["name"]
    prediction = given["prediction"]
    if not isinstance(name, str):
        raise ValueError(f"name must be a text, got {described(name)}")
    if prediction not in (*PREDICTIONS, *MATRIX_PREDICTIONS):
        raise ValueError(f"unknown prediction {prediction!r}")

    eta = _real("eta", given["eta"])
    sigma_data = _real("sigma_data", given["sigma_data"])
    if eta < 0 or sigma_data <= 0:
        raise ValueError(f"need eta of at least 0 and sigma_data above 0, got {eta} and {sigma_data}")

    stages = [_stage(k, stage) for k, stage in enumerate(_list("stages", given["stages"]))]
    program = Program(name, prediction, tuple(stages), eta, sigma_data)
    _check_table(program)
    return program


def _check_table(program: Program) -> None:
    """Refuse a table that no solver writes: its nodes, the numbers of its noises and the sizes of its matrices."""
    stages = program.stages
    if stages[0].noises:
        raise ValueError("a program starts with the initial state, a stage without terms")
    for earlier, later in pairwise(program.times):
        if not later < earlier:
            raise ValueError(f"the nodes' times must strictly decrease, got {earlier} followed by {later}")

    noises = [m for stage in stages for m, _ in stage.noises]
    last = max(noises, default=0)
    if last >= NOISES_A_STAGE * len(stages):
        raise ValueError(
            f"noise {last} of {len(stages)} stages: noises are numbered in the order in which they are drawn"
        )

    sizes = {len(c.rows) for stage in stages for c in stage.coefficients if isinstance(c, Matrix)}
    if len(sizes) > 1 or (sizes and program.prediction not in MATRIX_PREDICTIONS):
        raise ValueError(f"a program of the {program.prediction} has matrices of sizes {sorted(sizes)}")


def _stage(k: int, data: object) -> Stage:
    what = f"stage {k}"
    given = _object(what, data, _names(Stage))
    t = _real(f"the time of {what}", given["t"])
    if t < 0:
        raise ValueError(f"the time of {what} is {t}, before 0")

    states, evals, noises = (_terms(f"{kind} of {what}", given[kind]) for kind in ("states", "evals", "noises"))
    evaluate = _flag(f"evaluate of {what}", given["evaluate"])
    node = _flag(f"node of {what}", given["node"])
    return Stage(t, states, evals, noises, evaluate, node)


def _flag(what: str, data: object) -> bool:
    if not isinstance(data, bool):
        raise ValueError(f"{what} must be true or false, got {described(data)}")
    return data


def _terms(what: str, data: object) -> Terms:
    terms = []
    for pair in _list(what, data):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{what} are pairs (index, coefficient), got {described(pair)}")
        index, coefficient = pair
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise ValueError(f"{what} have integers for indices, got {described(index)}")
        terms.append((index, _coefficient(what, coefficient)))
    if len({index for index, _ in terms}) < len(terms):
        raise ValueError(f"{what} name an index twice: {[index for index, _ in terms]}")
    return tuple(terms)


def _coefficient(what: str, data: object) -> Coefficient:
    if not isinstance(data, dict):
        return _real(f"a coefficient of {what}", data)

    what = f"a matrix of {what}"
    given = _object(what, data, _names(Matrix))
    rows = [_list(what, row) for row in _list(what, given["rows"])]
    lengths = [len(row) for row in rows]
    if len(rows) < 2 or any(length != len(rows) for length in lengths):
        raise ValueError(f"{what} must be square, of 2 rows or more, got rows of {lengths} numbers")
    return Matrix(tuple(tuple(_real(what, value) for value in row) for row in rows))


def _names(kind: type[Program | Stage | Matrix]) -> list[str]:
    return [field.name for field in fields(kind)]


def _object(what: str, data: object, names: Sequence[str]) -> dict[str, object]:
    if not isinstance(data, dict) or data.keys() != set(names):
        got = ", ".join(map(repr, data)) if isinstance(data, dict) else repr(data)
        raise ValueError(f"{what} has {', '.join(names)}, got {got[:200]}")
    return data


def _list(what: str, data: object) -> list[object]:
    if not isinstance(data, list):
        raise ValueError(f"{what} must be a list, got {described(data)}")
    return data


def _real(what: str, data: object) -> float:
    if not isinstance(data, float | int) or isinstance(data, bool) or not math.isfinite(data):
        raise ValueError(f"{what} must be a finite number, got {described(data)}")
    return float(data)


_LINEAR = "what a solver's step computes with is a linear form in states, evaluations and noises"


class Form:
    """A linear form in states, evaluations and noises: what a solver's formula computes with.

    Examples:
        >>> x, e = Form({("states", 0): 1.0}), Form({("evals", 0): 1.0})
        >>> (2 * x - 0.5 * (e - x)).terms
        {('states', 0): 2.5, ('evals', 0): -0.5}
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[tuple[str, int], Coefficient] | None = None) -> None:
        self.terms = dict(terms or {})

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{_LINEAR}: it has no {name!r}")

    def __add__(self, other: Form) -> Form:
        if not isinstance(other, Form):
            raise TypeError(f"{_LINEAR}: {other!r} cannot be added to one")
        total = dict(self.terms)
        for key, c in other.terms.items():
            total[key] = total.get(key, 0.0) + c
        return Form(total)

    def __mul__(self, c: Coefficient) -> Form:
        if isinstance(c, Form):
            raise TypeError(f"{_LINEAR}: two of them have no product")
        if isinstance(c, torch.Tensor):
            raise TypeError(f"{_LINEAR}: its coefficients are Python numbers, such as float(c), got {described(c)}")
        return Form({key: c * v for key, v in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, c: float) -> Form:
        return self * (1 / c)

    def __neg__(self) -> Form:
        return self * -1.0

    def __sub__(self, other: Form) -> Form:
        return self + -other

    @staticmethod
    def combine(coefficients: Sequence[Coefficient], forms: Sequence[Form]) -> Form:
        """The sum of coefficient times form, over as many as there are of the shorter."""
        return sum((c * form for c, form in zip(coefficients, forms, strict=False)), Form())

    def of(self, kind: str) -> Terms:
        """The terms of one kind, those with coefficient 0 left out."""
        return tuple((j, c) for (k, j), c in sorted(self.terms.items()) if k == kind and c)


class Formula(Protocol):
    """A solver, as far as compiling it goes."""

    @property
    def name(self) -> str: ...
    @property
    def prediction(self) -> str: ...
    @property
    def eta(self) -> float | Callable[[float], float]: ...
    @property
    def sigma_data(self) -> float: ...

    def step(self, k: Step, /) -> Form:
        """The state at the step's end."""


class Path:
    """A sequence of steps that share a history: the nodes it visits, and what multistep formulas build on.

    Attributes:
        nodes: the grid's coefficients, in the order of the steps.
        history: pairs (node, evaluation there), newest last.
        memory: what else a formula leaves for its next step.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self.history: list[tuple[Node, Form]] = []
        self.memory: dict[str, object] = {}


class ProgramBuilder:
    """A recorder of the stages that a solver's formula asks for, step after step.

    Args:
        sde: the process, for coefficients at times inside a step.
        times: the grid, decreasing.
    """

    def __init__(self, sde: Process, times: tuple[float, ...]) -> None:
        self.sde = sde
        self.path = Path(sde.nodes(times))
        self._known = {node.t: node for node in self.path.nodes}
        self.stages: list[Stage] = []
        self.n_noises = 0
        self.add(Form(), times[0], node=True)

    def node(self, t: float) -> Node:
        """The coefficients at any time, computed once."""
        if t not in self._known:
            self._known[t] = self.sde.nodes([t])[0]
        return self._known[t]

    def add(self, form: Form, t: float, node: bool = False) -> int:
        """Append the stage that computes `form`; returns its index."""
        self.stages.append(Stage(t, form.of("states"), form.of("evals"), form.of("noises"), node=node))
        return len(self.stages) - 1

    def program(self, solver: Formula) -> Program:
        """The table as a value."""
        eta = 0.0 if callable(solver.eta) or solver.prediction != "drift" else solver.eta
        sigma_data = solver.sigma_data if solver.prediction == "v" else 1.0
        return Program(solver.name, solver.prediction, tuple(self.stages), eta, sigma_data)


class Step:
    """View of one step for a solver's formula: its two nodes, its state, evaluations and noises.

    Attributes:
        i: number of the step on its path, from 0.
        n: number of the path's steps.
        start: the node the step leaves, with `t`, `alpha`, `sigma`, `d_alpha`, `d_sigma`, `lam`, `g`.
        end: the node it reaches.
        x: the state at `start`.
        memory: what the formula leaves for its next step on the same path.

    Examples:
        >>> import sgm_sde as sg
        >>> class Euler(sg.Solver):
        ...     name, order, prediction, source = "my-euler", 1, "drift", ""
        ...     def step(self, k: Step) -> Form:
        ...         return k.x + (k.end.t - k.start.t) * k.evaluate(k.x, k.start)
        >>> stage = Euler().compile(sg.VPSDE(), sg.Grid([1.0, 0.75])).stages[-1]
        >>> stage.states, stage.evals
        (((0, 1.0),), ((0, -0.25),))
    """

    def __init__(self, builder: ProgramBuilder, path: Path, i: int, end: Node | None = None) -> None:
        self._builder = builder
        self._path = path
        self.i = i
        self.n = len(path.nodes) - 1
        self.start = path.nodes[i]
        self.end = path.nodes[i + 1] if end is None else end
        self._x = len(builder.stages) - 1
        self.x = Form({("states", self._x): 1.0})

    @property
    def memory(self) -> dict[str, object]:
        """Values that a formula stores for its next step on the same path."""
        return self._path.memory

    def evaluate(self, x: Form, node: Node) -> Form:
        """The model's prediction at state `x` and `node`'s time; asking again for the same costs nothing.

        Raises:
            TypeError: for a time in the place of a node.
        """
        if isinstance(node, Real):
            raise TypeError(f"evaluate takes a node, such as k.start, k.end or k.at(t), got the time {node}")
        builder = self._builder
        stage = self._state(x, node)
        form = Form({("evals", stage): 1.0})
        if stage == self._x and not builder.stages[stage].evaluate:
            self.remember(node, form)
        builder.stages[stage] = replace(builder.stages[stage], evaluate=True)
        return form

    def remember(self, node: Node, evaluation: Form) -> None:
        """Add an evaluation inside the step to the history; the one at its start is there already."""
        self._path.history.append((node, evaluation))

    def forget(self) -> None:
        """Start anew at this step: nothing that steps before it have left is there any more."""
        self._path.history.clear()
        self._path.memory.clear()

    def known(self, n: int) -> list[tuple[Node, Form]]:
        """The last n pairs (node, evaluation) of the history, newest first; fewer where there are fewer."""
        return self._path.history[: -n - 1 : -1]

    def previous(self, j: int) -> tuple[Node, Form]:
        """The node j evaluations back and the evaluation there; `previous(0)` is this step's own.

        Raises:
            ValueError: where there are not so many.
        """
        history = self._path.history
        if not 0 <= j < len(history):
            raise ValueError(f"previous({j}) is of no evaluation in step {self.i}, which knows {len(history)} so far")
        return history[-1 - j]

    def keep(self, x: Form, node: Node) -> Form:
        """A state of its own for a form that the rest of the step builds on, at `node`'s time."""
        return Form({("states", self._state(x, node)): 1.0})

    def _state(self, x: Form, node: Node) -> int:
        stages = self._builder.stages
        if len(x.terms) == 1:
            (((kind, j), c),) = x.terms.items()
            if kind == "states" and c == 1.0 and stages[j].t == node.t:
                return j
        return self._builder.add(x, node.t)

    def noise(self) -> Form:
        """A fresh standard normal noise."""
        self._builder.n_noises += 1
        return Form({("noises", self._builder.n_noises - 1): 1.0})

    def below(self, t: float) -> Node:
        """The node at a time below the step's end, of which no state is asked; that of `eps` at the least."""
        return self._builder.node(max(t, min(self._builder.sde.eps, self.end.t)))

    def with_end(self, end: Node) -> Step:
        """The same step with another end, which need not be a time of the process."""
        return Step(self._builder, self._path, self.i, end)

    def subrun(self, solver: Formula, x: Form, times: Sequence[float]) -> Form:
        """The end of a run of another solver from `x` over other times.

        It starts with an empty history, and leaves its own to the next step.
        """
        builder = self._builder
        path = Path([self.at(t) for t in times])
        x = self.keep(x, path.nodes[0])
        for i in range(len(times) - 1):
            x = self.keep(solver.step(Step(builder, path, i)), path.nodes[i + 1])
        self._path.history = path.history
        self._path.memory = path.memory
        return x

    @property
    def nodes(self) -> Sequence[Node]:
        """The path's nodes, the first one first."""
        return self._path.nodes

    @property
    def last(self) -> Node:
        """The path's last node."""
        return self._path.nodes[-1]

    def at_noise_level(self, s: float) -> Node:
        """The node where sigma / alpha is `s`; that of `T` where `s` lies beyond it."""
        sde = self._builder.sde
        log_snr = -2 * math.log(s)
        beyond = log_snr <= float(sde.log_snr(sde.T))
        return self.at(sde.T if beyond else float(sde.time(log_snr)))

    def at(self, t: float) -> Node:
        """The node at a time between `T` and the end of the grid.

        Raises:
            ValueError: for a time outside these.
        """
        nodes = self._builder.path.nodes
        low = min(nodes[0].t, nodes[-1].t)
        high = max(nodes[0].t, self._builder.sde.T)
        rounding = OUTSIDE * high
        if not low - rounding <= t <= high + rounding:
            raise ValueError(f"a stage at t={t} lies outside [{low}, {high}]")
        for node in self._path.nodes[self.i : self.i + 2]:
            if math.isclose(t, node.t, rel_tol=SAME_NODE):
                return node
        return self._builder.node(min(max(t, low), high))


def _form_of_step(solver: Formula, k: Step) -> Form:
    """The form that a solver's step returns."""
    form = solver.step(k)
    if not isinstance(form, Form):
        raise TypeError(f"the step of {solver.name} must return a form, such as k.x, got {described(form)}")
    return form


def compile_program(solver: Formula, sde: Process, times: tuple[float, ...]) -> Program:
    """Compile a solver: run its formula over the steps of a grid and write down what it computes.

    Raises:
        ValueError: where the formula divides by zero, with the step; a table that does not run.
        TypeError: for a step that returns no form.

    Examples:
        >>> import sgm_sde as sg
        >>> program = compile_program(sg.DDIM(), sg.EDMSDE(), (80.0, 1.0, 0.002))
        >>> len(program.stages), program.nfe
        (3, 2)
    """
    builder = ProgramBuilder(sde, times)
    for i in range(len(times) - 1):
        try:
            builder.add(_form_of_step(solver, Step(builder, builder.path, i)), times[i + 1], node=True)
        except ZeroDivisionError:
            raise ValueError(
                f"{solver.name} divides by zero in the step from t={times[i]} to t={times[i + 1]}: alpha or sigma "
                f"vanishes there; start below it (t_start=), end above it (t_end=), or use a solver that allows it"
            ) from None
    return builder.program(solver)


def _without_classes(data: object, *names: str) -> object:
    if isinstance(data, list):
        return [_without_classes(item, *names) for item in data]
    if not isinstance(data, dict):
        return data
    return {k: _without_classes(v, *names) for k, v in data.items() if not (k == "class" and v in names)}
