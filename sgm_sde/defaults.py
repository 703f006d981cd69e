"""A solver with the grid it goes with, and which one `sample` takes when nobody names one."""

from __future__ import annotations

from dataclasses import dataclass

from sgm_sde.grids import Grid, GridRule, rule
from sgm_sde.processes.base import SDE
from sgm_sde.solvers import Solver, resolve


@dataclass(frozen=True)
class Setting:
    """A solver and the grid rule it goes with, which `sample(solver=...)` takes in a solver's place.

    Args:
        solver: a solver or its name.
        grid: a grid rule or its name; None for the process' own.

    Raises:
        ValueError: for unknown names.
        TypeError: for a grid of given times, or anything else that is no solver or rule.

    Example:
        >>> Setting("dpm++3m", "log-snr").solver.order
        3
    """

    solver: Solver
    grid: GridRule | None = None

    def __init__(self, solver: Solver | str, grid: GridRule | str | None = None) -> None:
        if isinstance(grid, Grid) or not (grid is None or isinstance(grid, GridRule | str)):
            raise TypeError(f"the grid of a setting must be a rule or its name, got {grid!r}")
        object.__setattr__(self, "solver", resolve(solver))
        object.__setattr__(self, "grid", rule(grid) if isinstance(grid, str) else grid)

    def __str__(self) -> str:
        return f"{self.solver.name} on {'the natural grid' if self.grid is None else repr(self.grid)}"


def default_setting(sde: SDE, nfe: int | None = None) -> Setting:
    """What `sample` takes when no solver is named: by process and budget of network calls (50 if not given).

    Example:
        >>> import sgm_sde as sg
        >>> default_setting(sg.VPSDE(), 20).solver.name
        'dpm++2m'
    """
    if not sde.is_linear:
        return Setting("heun2")
    return Setting("dpm++2m")
