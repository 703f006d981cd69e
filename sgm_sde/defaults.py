"""A solver with the grid it goes with, and which one `sample` takes when nobody names one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sgm_sde.grids import Grid, GridRule, rule
from sgm_sde.processes.base import SDE
from sgm_sde.solvers import Solver, resolve

FEW = 8  # network calls


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


def default_setting(
    sde: SDE, nfe: int | None = None, t_start: float | None = None, t_end: float | None = None
) -> Setting:
    """What `sample` takes when no solver is named: by process and budget of network calls (50 if not given).

    `python benchmarks/accuracy.py` prints the table behind it: five-step Adams on the noise in log-SNR errs, over its
    test beds and budgets, by 1.3 times the least error of all solvers and grids in the geometric mean and by 4.6 times
    at worst; with 8 calls and less, iPNDM of three evaluations does a little better. Where log-SNR has no bound, at
    alpha = 0 or sigma = 0, the default is Adams in the coordinates of rectified flow on the process' own grid; for a
    nonlinear process it is Heun's method in time.

    Args:
        sde: the process.
        nfe: the budget.
        t_start: where sampling starts, `sde.T` if not given.
        t_end: where it ends, `sde.eps` if not given.

    Example:
        >>> import sgm_sde as sg
        >>> print(default_setting(sg.VPSDE(), 20))
        dpm5m-cold on LogSNR()
    """
    if not sde.is_linear:
        return Setting("heun2")
    linear: Any = sde
    ends = (sde.T if t_start is None else t_start, sde.eps if t_end is None else t_end)
    if not all(math.isfinite(float(linear.log_snr(t))) for t in ends if 0 <= t <= sde.T):
        return Setting("rectified2")
    return Setting("ipndm3" if nfe is not None and nfe <= FEW else "dpm5m-cold", "log-snr")
