"""The solver, the grid and the table of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from sgm_sde import grids
from sgm_sde._utils.checks import MOST_STEPS, check_integer, described, moment, one_of, table_size
from sgm_sde.engine.program import Program
from sgm_sde.grids import Grid, GridRule
from sgm_sde.processes.base import SDE, Missing, require_sde
from sgm_sde.sampling.defaults import Setting, default_final, default_setting
from sgm_sde.schemes import AdaptiveSolver, Solver, resolve_any
from sgm_sde.schemes.base import called
from sgm_sde.scores.score import Score, Traits, require_score

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_NFE = 50
FINALS = ("denoise", "mean", "none")

Given = TypeVar("Given")


@dataclass(frozen=True)
class StepArguments:
    """Arguments of `sample` that settle the steps of a run, as they were given.

    Attributes:
        solver: see `sample`; so are the others.
        nfe: the budget; that of a setting, if it was chosen for one and the caller says nothing else.
        steps: number of steps.
        grid: rule or times.
        t_start: where to start.
        t_end: where to end.
        final: what to return at the end.
        traits: of the score, as `default_setting` takes them.
    """

    solver: Solver | AdaptiveSolver | Setting | str | None = None
    nfe: int | None = None
    steps: int | None = None
    grid: Grid | GridRule | str | Sequence[float] | None = None
    t_start: float | None = None
    t_end: float | None = None
    final: str | None = None
    traits: Traits = field(default_factory=Traits)

    def __post_init__(self) -> None:
        if isinstance(self.solver, Setting) and self.nfe is None and self.steps is None:
            object.__setattr__(self, "nfe", self.solver.budget)

    @property
    def by_rule(self) -> bool:
        """True if a rule places the steps, and not the caller."""
        return self.grid is None or isinstance(self.grid, GridRule | str)

    def plan(self, sde: SDE) -> tuple[Solver | AdaptiveSolver, Grid, Program | None]:
        """The solver, the grid and the table, None for a solver that finds its own steps."""
        final = final_update(sde, self.final)
        t_start = None if self.t_start is None else moment("t_start", self.t_start)
        t_end = None if self.t_end is None else moment("t_end", self.t_end)
        # Where states are asked for, or so many steps to one, the last call is at the last of them.
        to = sde.eps if t_end is None and (final != "denoise" or self.steps is not None) else t_end
        solver, grid = self._solver(sde, t_start, to)

        if isinstance(solver, AdaptiveSolver):
            steps = None if solver.takes_steps else self.steps
            require_unused(solver, self.solver, {"grid": grid, "steps": steps})
            if self.nfe is not None:
                self._require_first_step(solver, final == "denoise")
            ends = grids.Uniform()(sde, 1, t_start, t_end)
            return solver, ends, None

        denoise = final == "denoise" and not solver.ends_in_data
        if isinstance(grid, str):
            grid = grids.rule(grid)
        if isinstance(grid, GridRule | None):
            solver, placed = self._placed(sde, solver, grid, denoise, t_start, t_end)
        else:
            placed = self._given(sde, grid, denoise)

        program = table_of(solver, sde, placed, final, self.solver)
        _require_declared(solver, program)
        return solver, placed, program

    def _solver(
        self, sde: SDE, t_start: float | None, t_end: float | None
    ) -> tuple[Solver | AdaptiveSolver, Grid | GridRule | str | Sequence[float] | None]:
        """The solver, and the grid as it was given, or as a setting brings it along."""
        solver = self.solver
        if isinstance(solver, Setting) and self.grid is not None:
            raise ValueError(
                f"the setting {solver.plain} brings its own grid: give no grid= besides, or its solver alone"
            )

        if solver is None:
            budget = self.nfe if self.steps is None else table_size("steps", self.steps) + 1
            solver = default_setting(sde, budget, t_start, t_end, **self.traits)
        if isinstance(solver, Setting):
            return solver.solver, solver.grid if self.grid is None else self.grid
        return resolve_any(solver), self.grid

    def _require_first_step(self, solver: AdaptiveSolver, denoise: bool) -> None:
        """Raise ValueError for a budget that ends before the first step of a solver that finds its own."""
        budget = check_integer("nfe", self.nfe)
        if budget - denoise < solver.least_calls:
            what = f"the first step of {called(solver, self.solver)}"
            raise too_small(budget, what, solver.least_calls, denoise)

    def _given(self, sde: SDE, times: Grid | Sequence[float], denoise: bool) -> Grid:
        """The grid of the times given."""
        if callable(times):
            raise TypeError(
                f"grid must be a rule's name, a rule or times, got {described(times)}: a rule of your own derives from "
                f"grids.GridRule"
            )
        grid = Grid.of(times)
        others = {"nfe": self.nfe, "steps": self.steps, "t_start": self.t_start, "t_end": self.t_end}
        for name, value in others.items():
            if value is not None:
                raise ValueError(
                    f"{name}={value} does not go with a grid of given times, which say it: leave {name}= out, or give "
                    f"a grid rule"
                )
        return grid.on(sde, denoised=denoise)

    def _placed(
        self,
        sde: SDE,
        solver: Solver,
        rule: GridRule | None,
        denoise: bool,
        t_start: float | None,
        t_end: float | None,
    ) -> tuple[Solver, Grid]:
        """The solver as it fits the budget, and the grid that a rule places, by default the solver's."""
        if self.nfe is not None and self.steps is not None:
            raise ValueError(f"give nfe= or steps=, not both (got {self.nfe} and {self.steps})")
        if t_end is None and not denoise and not solver.ends_in_data:
            t_end = sde.eps  # the state there is what is asked for

        if self.steps is None:
            solver, steps = self._fit(solver, denoise)
        else:
            steps = table_size("steps", self.steps)
            if (calls := solver.nfe(steps)) > MOST_STEPS:
                raise ValueError(
                    f"{called(solver, self.solver)} takes {calls} network calls in steps={steps}, above {MOST_STEPS}"
                )
        if rule is None:
            rule = solver.default_grid(sde, steps, t_start, t_end)
        return solver, rule(sde, steps, t_start, t_end)

    def _fit(self, solver: Solver, denoise: bool) -> tuple[Solver, int]:
        """The solver as it fits the budget of network calls, and the number of its steps.

        Raises:
            ValueError: for a budget of less than a step.
        """
        default = solver.budget or DEFAULT_NFE
        budget = table_size("nfe", default if self.nfe is None else self.nfe)
        solver, steps = solver.fit(budget - denoise)
        only_denoises = denoise and budget == 1
        if steps < 1 and not only_denoises:
            calls = solver.nfe(1)
            a_step = solver.nfe_per_step
            once = f" ({a_step} a step, {calls - a_step} once a run)" if calls > a_step else ""
            raise too_small(budget, f"one step of {called(solver, self.solver)}", calls, denoise, once)
        return solver, steps


def _require_declared(solver: Solver, program: Program) -> None:
    """Raise ValueError for a solver whose table makes more network calls than it declares, and so than a budget has."""
    declared = solver.nfe(program.steps)
    if program.nfe > declared:
        raise ValueError(
            f"{solver.name} makes {program.nfe} network calls in {program.steps} steps and declares {declared}: its "
            f"nfe_per_step is to be the number of evaluations of a step"
        )


def solver_of(given: Setting | Given) -> Solver | Given:
    """The solver of a setting; what else was given as a solver, as it is."""
    return given.solver if isinstance(given, Setting) else given


def require_flow(score: Score, solver: Solver | AdaptiveSolver | Setting | str, program: Program | None = None) -> None:
    """Raise ValueError for a flow of coupled pairs and a solver that does more than follow it.

    Args:
        score: the network.
        solver: as it was given.
        program: its table, if that is known.
    """
    if not score.coupled:
        return
    method = resolve_any(solver_of(solver))
    if not follows_a_flow(method, program):
        require_score(score, f"{called(method, solver)}, which adds noise or corrects by the score,")


def follows_a_flow(method: Solver | AdaptiveSolver, program: Program | None = None) -> bool:
    """True if a method, with its table if that is known, does no more than follow the flow of a network."""
    hooks = isinstance(method, Solver) and method.has_hooks
    return not (hooks or method.stochastic or (program is not None and program.stochastic))


def require_unused(solver: AdaptiveSolver, given: object, options: Mapping[str, object]) -> None:
    """Raise ValueError for an option that a solver without a grid, as it was given, would not use."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option}= needs a solver on a grid, and {called(solver, given)} finds its own steps")


def plan(
    sde: SDE,
    solver: Solver | AdaptiveSolver | Setting | str | None = None,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    grid: Grid | GridRule | str | Sequence[float] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    final: str | None = None,
    **traits: Unpack[Traits],
) -> tuple[Solver | AdaptiveSolver, Grid, Program | None]:
    """The solver, the grid and the table that `sample` runs for the same arguments.

    A solver that finds its own steps has no table, and its grid is the two ends. The default also depends
    on `score.traits`, where there are any.

    Raises:
        ValueError: for arguments out of range or unknown names.
        TypeError: for arguments of the wrong type, or a solver that the process does not allow.

    Examples:
        >>> import sgm_sde as sg
        >>> solver, grid, program = plan(sg.VPSDE(), "heun", nfe=20)
        >>> solver.name, grid.steps, program.nfe
        ('heun', 9, 18)
    """
    return StepArguments(solver, nfe, steps, grid, t_start, t_end, final, traits).plan(sde)


def final_update(sde: SDE, final: str | None) -> str:
    """Final update of a run: the given one, or the process' default."""
    require_sde(sde)
    if final is None:
        return default_final(sde)

    one_of("final", final, FINALS)
    if final == "denoise" and sde.marginal_kind == "unknown":
        raise ValueError(f"final='denoise' needs a LinearSDE, got {described(sde)}; use 'mean' or 'none'")
    return final


def table_of(solver: Solver, sde: SDE, grid: Grid, final: str, given: object = None) -> Program:
    """The table of a solver, which was given like that, without noise in its last update if that is to be the mean."""
    try:
        program = solver.compile(sde, grid)
    except Missing as error:
        raise TypeError(str(error.of(called(solver, given)))) from None
    return solver.end_in_mean(program) if final == "mean" else program


def too_small(nfe: int | None, what: str, calls: int, denoise: bool, of_which: str = "") -> ValueError:
    """The error of a budget that is too small for something that takes so many calls, and what they are for."""
    more = " and final='denoise' one more" if denoise else ""
    return ValueError(f"nfe={nfe} is too small: {what} takes {calls} network calls{of_which}{more}")
