"""Base classes of solvers, and the registry of named ones."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, TypeVar

from torch import Tensor

from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import FAR, described, instance_of, settle, stochasticity, unknown
from sgm_sde._utils.elsewhere import OF_METHODS
from sgm_sde.engine.adaptive import Integration, Pair
from sgm_sde.engine.executor import Hook
from sgm_sde.engine.noise import NoiseSource, SampleSeeds
from sgm_sde.engine.program import Form, Program, Step, compile_program
from sgm_sde.grids import ELSEWHERE, RULES, Grid, GridRule, rule
from sgm_sde.identity import Value
from sgm_sde.processes.base import SDE, Missing, require_sde
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.schemes.tableaus import Tableau
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score


class _Method(Value, ABC):
    """Facts that solvers on a grid and solvers that choose their steps declare alike."""

    _elsewhere = OF_METHODS

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def order(self) -> int: ...

    @property
    def source(self) -> str:
        """Authors, year and arXiv number; empty for a method that is not published."""
        return ""

    @property
    def allowance(self) -> float:
        """The error that a step may make however small the data, in their units; 0 where no tolerance limits it."""
        return 0.0

    def look_at(self, score: Score) -> None:
        """Warn of a network that the method was not made for; most are made for any."""


class TableauMethod(_Method):
    """Name, order and source of a method that are those of its tableau."""

    @property
    @abstractmethod
    def _facts(self) -> Tableau | Pair: ...

    @property
    def name(self) -> str:
        """The tableau's name."""
        return self._facts.name

    @property
    def order(self) -> int:
        """The tableau's order: of two methods, that of the one that is carried on."""
        return self._facts.order

    @property
    def source(self) -> str:
        """The tableau's source."""
        return self._facts.source


class Solver(_Method):
    """A method as a value: options, declared facts, and a formula for one step.

    A solver of your own is a frozen dataclass with `name`, `order`, `prediction` and `step`. The formula in
    `step` is written in the symbols of the paper; compiling runs it once over the grid and writes down the
    coefficients.

    Attributes:
        name: what the registry and error messages call it.
        order: order of the global error in the step size on the probability-flow ODE; for stochastic solvers,
            with their noise turned off.
        weak_order: order of the error of the law of the samples, None for deterministic solvers.
        prediction: what `evaluate` returns: `"data"`, `"noise"`, `"score"` or `"drift"`.
        nfe_per_step: network calls per step.
        guided: whether something besides network and noise, such as a measurement, moves the states.
        lags: whether states may be far from the marginal of their time, as under few Langevin updates per level, and of
            tables that were fitted to a network.
        ends_in_data: whether the last state is the sample itself, so that nothing is left to denoise.
        budget: the one number of network calls that it is made for, None for any.
        source: authors, year, arXiv number.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> @dataclass(frozen=True)
        ... class ForwardEuler(sg.Solver):
        ...     name, order, prediction, source = "forward-euler", 1, "drift", "Euler, 1768"
        ...     def step(self, k):
        ...         return k.x + (k.end.t - k.start.t) * k.evaluate(k.x, k.start)
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sg.VPSDE())
        >>> sg.sample(score, sg.VPSDE(), (4, 2), solver=ForwardEuler(), nfe=20, seed=0).nfe
        20
    """

    guided: ClassVar[bool] = False
    lags: ClassVar[bool] = False

    @property
    def ends_in_data(self) -> bool:
        """True if the last state is the sample itself, so that nothing is left to denoise."""
        return False

    def ending_in_a_state(self) -> Solver:
        """The solver where a time to end at is given; the same for those whose last state is no choice of theirs."""
        return self

    @property
    def budget(self) -> int | None:
        """The one number of network calls that it is made for; None for any."""
        return None

    @property
    @abstractmethod
    def prediction(self) -> str: ...

    @property
    def weak_order(self) -> int | None:
        """Order of the error of the law of the samples; None where there is none to claim."""
        return None

    @property
    def nfe_per_step(self) -> int:
        """Network calls per step."""
        return 1

    @property
    def eta(self) -> float:
        """Stochasticity of the reverse process whose drift is asked for."""
        return 0.0

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data for which v is defined."""
        return 1.0

    @property
    def stochastic(self) -> bool:
        """True if the solver adds noise."""
        return self.weak_order is not None

    @property
    def grids(self) -> tuple[str, ...]:
        """Names of the grid rules that the method is run on in the literature, the first choice first.

        "own" stands for the process' `default_grid` where that is one of noise levels, as EDM's is.
        """
        return ()

    def default_grid(
        self, sde: SDE, steps: int | None = None, t_start: float | None = None, t_end: float | None = None
    ) -> GridRule:
        """The rule that places the steps where the caller gives none.

        It is the first of `grids` that the process has between the two ends: log-SNR has to be finite there, and a
        table to hold as many times. Where none is, it is the process' `default_grid`.

        Args:
            sde: the process.
            steps: how many are to be placed, if known.
            t_start: where sampling starts, `sde.T` if not given.
            t_end: where it ends, `sde.eps` if not given.

        Examples:
            >>> import sgm_sde as sg
            >>> [sg.DPMSolverPP(2).default_grid(sde) for sde in (sg.VPSDE(), sg.EDMSDE())]
            [LogSNR(), Karras(rho=7.0)]
            >>> sg.EulerMaruyama().default_grid(sg.VPSDE())
            Uniform()
        """
        start = sde.T if t_start is None else t_start
        end = sde.eps if t_end is None else t_end
        own = rule(sde.default_grid)
        for name in self.grids:
            choice = own if name == "own" else rule(name)
            if choice.fits(sde, steps, start, end) and (name != "own" or own.of_noise_levels):
                return choice
        return own

    def strict(self) -> Solver:
        """The method of many steps, whose order is claimed, for a solver that is another one at few steps."""
        return self

    @abstractmethod
    def step(self, k: Step) -> Form:
        """The state at `k.end`, as a linear form in the state at `k.start`, evaluations and noises."""

    def compile(self, sde: SDE, grid: Grid) -> Program:
        """The table of coefficients on a process and a grid: a pure function, without a network.

        Raises:
            TypeError: for a process without the coefficients that the formula has, and what is no process or no grid.
        """
        require_sde(sde)
        instance_of("grid", grid, Grid, "a Grid, such as Grid([1.0, 0.5, 0.1])")
        try:
            return _cached(self, sde, grid)
        except Missing as error:
            raise error.of(called(self)) from None
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return compile_program(self, sde, grid.times)

    def hooks(self, sde: SDE, grid: Grid, model: BoundScore, noise: NoiseSource, *, mean: bool) -> tuple[Hook, ...]:
        """State-dependent callbacks at the grid's nodes; none for most solvers.

        With `mean`, the last update of the run adds no noise; if that update is the table's, `end_in_mean` sees
        to it.
        """
        return ()

    def reach(self, sde: LinearSDE, grid: Grid) -> float:
        """The norm in units of the data by which a guided solver moves samples of a sound network at most, if known."""
        return math.inf

    @property
    def has_hooks(self) -> bool:
        """True if something runs at the grid's nodes beside the table."""
        return type(self).hooks is not Solver.hooks

    def end_in_mean(self, program: Program) -> Program:
        """The program whose last update adds no noise, if that update is the table's."""
        return program.without_final_noise()

    def brownian_time(self, sde: SDE, t: float) -> float:
        """Time change of the Brownian path whose increments are the noises of the steps.

        The law is the same for any; with that of the method, the noises of two short steps add up to that of the long
        one. Here it is the signal-to-noise ratio: ancestral steps, and data prediction with `eta` 1.
        """
        return math.exp(float(sde.log_snr(t))) if has_scalar_marginal(sde) else t

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps."""
        return steps * self.nfe_per_step

    def steps(self, nfe: int) -> int:
        """The most steps whose cost, `nfe(steps)`, a budget of network calls covers; 0 if it covers none.

        A step takes a call or more, so that the cost grows with their number: no solver needs to say more about it than
        `nfe`, and the two cannot disagree.
        """
        few = 0
        many = max(nfe, 0) + 1
        while many - few > 1:
            middle = (few + many) // 2
            if self.nfe(middle) <= nfe:
                few = middle
            else:
                many = middle
        return few

    def fit(self, nfe: int) -> tuple[Solver, int]:
        """The solver made for a budget of network calls, and its number of steps; most solvers stay as they are."""
        return self, self.steps(nfe)


class WrappedSolver(Solver):
    """A solver around another, whose facts it has but for those that it states itself.

    The weak order is not among them: what a wrapper adds may change the law, so it states its own, or none.

    Attributes:
        solver: the one inside.
    """

    solver: Solver

    @property
    def order(self) -> int:
        """Order of the solver inside."""
        return self.solver.order

    @property
    def prediction(self) -> str:
        """Prediction of the solver inside."""
        return self.solver.prediction

    @property
    def eta(self) -> float:
        """Stochasticity of the solver inside."""
        return self.solver.eta

    @property
    def sigma_data(self) -> float:
        """Data scale of the solver inside."""
        return self.solver.sigma_data

    @property
    def nfe_per_step(self) -> int:
        """Network calls per step of the solver inside."""
        return self.solver.nfe_per_step

    @property
    def ends_in_data(self) -> bool:
        """True if the last state of the solver inside is the sample itself."""
        return self.solver.ends_in_data

    @property
    def budget(self) -> int | None:
        """Network calls, with those of the wrapper, of the steps that the solver inside is made for; None for any."""
        inside = self.solver.budget
        return None if inside is None else self.nfe(self.solver.fit(inside)[1])

    @property
    def grids(self) -> tuple[str, ...]:
        """Default grids of the solver inside."""
        return self.solver.grids

    def default_grid(
        self, sde: SDE, steps: int | None = None, t_start: float | None = None, t_end: float | None = None
    ) -> GridRule:
        """Default grid of the solver inside."""
        return self.solver.default_grid(sde, steps, t_start, t_end)

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps: the solver's."""
        return self.solver.nfe(steps)

    def step(self, k: Step) -> Form:
        """Step formula of the solver inside."""
        return self.solver.step(k)

    def hooks(self, sde: SDE, grid: Grid, model: BoundScore, noise: NoiseSource, *, mean: bool) -> tuple[Hook, ...]:
        """Callbacks at the nodes of the solver inside."""
        return self.solver.hooks(sde, grid, model, noise, mean=mean)

    def look_at(self, score: Score) -> None:
        """Warn of a network that the solver inside was not made for."""
        self.solver.look_at(score)

    @property
    def has_hooks(self) -> bool:
        """True if something runs at the grid's nodes, in here or inside."""
        return type(self).hooks is not WrappedSolver.hooks or self.solver.has_hooks

    def end_in_mean(self, program: Program) -> Program:
        """The program as the solver inside ends it, without noise in the last update."""
        return self.solver.end_in_mean(program)

    def brownian_time(self, sde: SDE, t: float) -> float:
        """Brownian time of the solver inside."""
        return self.solver.brownian_time(sde, t)


@dataclass(frozen=True)
class Problem:
    """Input of an adaptive solver.

    Attributes:
        model: the score, bound to the run's times.
        sde: its process.
        x: the states (B, *) to start from.
        start: time of these states.
        end: where to end.
        seeds: the (seed, index) pair of each sample.
        calls: the most network calls, None for no limit.
        steps: number of steps, for methods of even steps.
        on_leave: to be called with the number of samples that have just arrived or given up.
    """

    model: BoundScore
    sde: SDE
    x: Tensor
    start: float
    end: float
    seeds: SampleSeeds
    calls: int | None = None
    steps: int | None = None
    on_leave: Callable[[int], None] | None = None


class AdaptiveSolver(_Method):
    """A method that finds its own steps, and so has no program.

    Attributes:
        name: what the registry and error messages call it.
        order: order of the error in the size of its steps.
        stochastic: whether it adds noise.
        takes_steps: whether its number of steps can be given.
        least_calls: network calls up to the end of the first step.
        source: authors, year, arXiv number.

    Examples:
        >>> import sgm_sde as sg
        >>> solver = sg.Adaptive()
        >>> isinstance(solver, AdaptiveSolver), solver.stochastic, solver.takes_steps
        (True, False, False)
    """

    stochastic: bool = False
    ends_in_data: bool = False
    takes_steps: bool = False
    least_calls: int = 1

    @abstractmethod
    def run(self, problem: Problem) -> Integration:
        """Carry the states from start to end; their times are those of the process."""


@dataclass(frozen=True)
class EtaSolver(Solver):
    """A solver with a stochasticity `eta` that it may turn off; weak order 1 unless it does.

    Raises:
        ValueError: for an `eta` that is not finite, negative, or above `largest_eta`.
    """

    eta: float = 1.0
    largest_eta: ClassVar[float] = FAR

    def __post_init__(self) -> None:
        settle(self, eta=stochasticity(self.eta, most=self.largest_eta))

    @property
    def weak_order(self) -> int | None:
        """1; None without noise."""
        return 1 if self.eta else None


@cached(maxsize=64, holders=(0, 1))
def _cached(solver: Solver, sde: SDE, grid: Grid) -> Program:
    return compile_program(solver, sde, grid.times)


REGISTRY: dict[str, Callable[[], Solver]] = {}
OF_BLOCKS = {"gddim": "sg.schemes.GDDIM()", "sscs": "sg.schemes.SSCS()"}
ADAPTIVE: dict[str, Callable[[], AdaptiveSolver]] = {}
FEW_STEPS: dict[str, Callable[[], Solver]] = {}  # for networks whose output is a sample; no part of `solvers()`
BACKENDS: dict[str, Callable[[str], AdaptiveSolver]] = {}  # by library, from the name of one of its methods


# What other libraries call a method, where spelling alone does not lead there.
ALIASES = {
    "dpm++": "dpm++2m",  # what its code runs by default
    "dpm++-sde": "sde-dpm++2s",
    "em": "euler-maruyama",
    "er-sde": "er-sde3",
    "ipndm": "ipndm4",
    "ipndm-v": "ipndm-v4",
    "lms": "lms4",
    "deis": "deis3",
    "rk23": "bosh3",
    "rk45": "dopri5",
    "sde-dpm1": "sde-dpm++1m",  # the form that does not diverge in few steps
    "sde-dpm2m": "sde-dpm++2m",
    "sde-dpm3m": "sde-dpm++3m",
    "uni-pc": "unipc3",
    "unipc": "unipc3",
}


# Solvers that other libraries have, as spelled by `canonical`, in words for what there is here.
NEAREST = {
    "abm": "'lms4', or with steps of its own 'torchdiffeq:explicit_adams'",
    "adaptive": "'dopri5', or sg.Adaptive(rtol=...)",
    "ald": "'annealed-langevin'",
    "dps": "sg.inverse.DPS('ddim', measurement), around a solver",
    "dpm-adaptive": "'exp-rk32', of the same orders with steps of each sample's own",
    "dpm-fast": "'dpm3' with nfe=, which its last steps are shortened to fit",
    "edm": "'heun', or with noise 'edm-sde'",
    "dpm++2m-cfg-++": "'dpm++2m', and CFG++ by sg.guidance.cfg_plus_plus in the steps of 'ddim'",
    "euler-ancestral-cfg-++": "'euler-ancestral', and CFG++ by sg.guidance.cfg_plus_plus in the steps of 'ddim'",
    "euler-cfg-++": "'ddim', with CFG++ as the scale of a guided score: sg.guidance.cfg_plus_plus",
    "flow-match-euler": "'euler' on RectifiedFlowSDE",
    "heun++2": "'heun'",
    "ncsn": "'annealed-langevin'",
    "ode": "'dopri5', which finds its own steps, or the default",
    "odeint": "'dopri5', or 'torchdiffeq:dopri5'",
    "probability-flow": "'dopri5', which finds its own steps, or the default",
    "repaint": "sg.inverse.RePaint('ancestral', measurement), around a solver",
    "res-multistep": "'dpm++2m'",
    "reversible-heun": "'torchsde:heun'",
    "milstein": "'torchsde:milstein'; noise here does not depend on the state, for which it is 'euler-maruyama'",
    "sde": "'euler-maruyama'",
    "srk": "'torchsde:srk'",
    "torchdiffeq": "'torchdiffeq:dopri5'",
    "torchsde": "'torchsde:euler'",
    "scipy": "'scipy:RK45'",
    "uni-pc-bh2": "'unipc3'",
    # classes of diffusers
    "ddimscheduler": "'ddim'",
    "ddpmscheduler": "'ddpm'",
    "deismultistepscheduler": "'deis2'",
    "dpmmultistepscheduler": "'dpm++2m'",
    "dpmsinglestepscheduler": "'dpm++2s'",
    "dpmsdescheduler": "'sde-dpm++2s'",
    "edmdpmmultistepscheduler": "'dpm++2m'",
    "edmeulerscheduler": "'ddim'",
    "eulerancestraldiscretescheduler": "'euler-ancestral'",
    "eulerdiscretescheduler": "'ddim', which is Euler's method in the noise level",
    "flowmatcheulerdiscretescheduler": "'euler' on RectifiedFlowSDE",
    "flowmatchheundiscretescheduler": "'heun2' on RectifiedFlowSDE",
    "heundiscretescheduler": "'heun'",
    "ipndmscheduler": "'ipndm4'",
    "kdpm2ancestraldiscretescheduler": "'dpm2-ancestral'",
    "kdpm2discretescheduler": "'dpm2'",
    "lcmscheduler": "'lcm'",
    "lmsdiscretescheduler": "'lms4'",
    "pndmscheduler": "'pndm'",
    "sasolverscheduler": "'sa-solver'",
    "scoresdevescheduler": "'pc'",
    "tcdscheduler": "'tcd'",
    "unipcmultistepscheduler": "'unipc2'",
}


def called(solver: Solver | AdaptiveSolver, given: object = None) -> str:
    """The name that people know a solver by: what they gave, the registry's of one that is the same, else its own.

    Examples:
        >>> import sgm_sde as sg
        >>> called(sg.schemes.resolve("edm-sde")), called(sg.Heun(s_churn=5))
        ('edm-sde', 'heun')
        >>> called(sg.DDIM(eta=1.0), given=sg.DDIM(eta=1.0)), called(sg.DDIM(), given=sg.DDIM())
        ('DDIM(eta=1.0)', 'ddim')
    """
    if isinstance(given, str):
        return given
    same = [name for name, make in REGISTRY.items() if make() == solver]
    if solver.name in same or isinstance(solver, AdaptiveSolver):  # whose options change how far it errs alone
        return solver.name
    return described(solver) if given == solver else next(iter(same), solver.name)


@lru_cache(maxsize=256)
def canonical(name: str) -> str:
    """A name as the registry spells it: `dpmpp_2m_sde` is `sde-dpm++2m`, `euler_a` is `euler-ancestral`."""
    name = name.strip().lower().replace("_", "-").replace(" ", "-").replace("pp", "++")
    name = re.sub(r"^(?:sample|k)-|-gpu$|[()]", "", name)
    name = re.sub(r"dpm-?solver-?", "dpm", name)
    name = re.sub(r"^(dpm(?:\+\+)?|seeds)-(?=\d)", r"\1", name)
    name = re.sub(r"^(dpm\+\+\d[ms])-sde$", r"sde-\1", name)
    name = re.sub(r"-a$", "-ancestral", name)
    return ALIASES.get(name, name)


def resolve(solver: Solver | str, option: str = "solver") -> Solver:
    """A solver on a grid from its name, given as an option.

    Raises:
        ValueError: for an unknown name; the message lists the near ones.
        TypeError: for anything that is neither a name nor such a solver.

    Examples:
        >>> resolve("ddim")
        DDIM(eta=0.0)
    """
    if isinstance(solver, AdaptiveSolver) or (
        isinstance(solver, str) and (canonical(solver) in ADAPTIVE or ":" in solver)
    ):
        raise TypeError(f"{solver!r} finds its own steps, and a solver on a grid is needed here")
    found: Solver = _resolve(solver, {**REGISTRY, **FEW_STEPS}, option)
    return found


def resolve_any(solver: Solver | AdaptiveSolver | str) -> Solver | AdaptiveSolver:
    """A solver from its name, adaptive ones and `"library:method"` of the backends too.

    Raises:
        ValueError: for an unknown name; the message lists the near ones.
        TypeError: for anything that is neither a name nor a solver.

    Examples:
        >>> resolve_any("dopri5").name, resolve_any("ddim").name
        ('dopri5', 'ddim')
    """
    if isinstance(solver, AdaptiveSolver):
        return solver
    if isinstance(solver, str) and ":" in solver:
        library, method = solver.split(":", 1)
        if library not in BACKENDS:
            raise ValueError(f"unknown library {library!r} in {solver!r}; known: {', '.join(BACKENDS)}")
        return BACKENDS[library](method)
    return _resolve(solver, {**REGISTRY, **ADAPTIVE, **FEW_STEPS})


Found = TypeVar("Found")


def _no_solver(given: object) -> str:
    """Words for what was given as a solver and is none, with what to give in its place."""
    if isinstance(given, Score | BoundScore):
        return f"{described(given)}: a score, posterior or guided ones too, goes first in sample()"
    if isinstance(given, Mapping) and given:
        first = next(iter(given))
        return f"a {type(given).__name__} of {', '.join(map(str, given))}: give one of them, such as found[{first!r}]"
    if isinstance(getattr(given, "solver", None), Solver | AdaptiveSolver):
        return f"a {type(given).__name__}: give its solver, found.solver, and its grid where the times are given"
    return described(given)


GRIDS_IN_NAMES = {"karras": "karras", "exponential": "log-snr"}  # of ComfyUI and the web UI, after a solver's name


def _require_no_grid(given: str, known: Iterable[str]) -> None:
    """Raise ValueError for a name that is that of a solver with a grid, by which the two are given apart."""
    name, _, last = given.strip().lower().replace("_", " ").replace("-", " ").rpartition(" ")
    if last in GRIDS_IN_NAMES and canonical(name) in known:
        grid = GRIDS_IN_NAMES[last]
        raise ValueError(f"{given!r} is a solver and a grid: give solver={canonical(name)!r}, grid={grid!r}")


def _words_of_grid(name: str) -> str | None:
    """Words for what there is of a grid that other libraries have; empty for one of our own, None for no grid."""
    there = ELSEWHERE.get(name.lower().replace("_", "-"))
    return "" if name in RULES else f": {there}" if there else None


def _resolve(solver: object, known: Mapping[str, Callable[[], Found]], option: str = "solver") -> Solver | Found:
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise TypeError(f"{option} must be a name or a Solver, got {_no_solver(solver)}")
    name = canonical(solver)
    if name in OF_BLOCKS:
        raise ValueError(
            f"{option}={solver!r} is no name: {OF_BLOCKS[name]} is for a process with a matrix, such as CLD()"
        )
    if name == "default" and option == "solver":
        raise ValueError(f"solver={solver!r} is no name: the default is what runs where solver= is left out")
    if name not in known:
        _require_no_grid(solver, known)
        if name in NEAREST:
            raise ValueError(f"unknown {option} {solver!r}: what comes nearest is {NEAREST[name]}")
        if (words := _words_of_grid(solver)) is not None:
            raise ValueError(f"{solver!r} is no solver but a grid, which grid= takes{words}")
        raise unknown("solver", solver, known, " solvers() has all of them", spelled=name)
    return known[name]()
