"""Time grids as values: decreasing times from noise to data, and the rules that place them.

Examples:
    >>> import sgm_sde as sg
    >>> sg.grids.Uniform()(sg.VPSDE(), 4, t_end=0.2)
    Grid(1, 0.8, 0.6, 0.4, 0.2)
    >>> sg.grids.Karras(rho=7.0)(sg.EDMSDE(), 3).steps
    3
"""

from sgm_sde.grids.base import GridRule
from sgm_sde.grids.names import ELSEWHERE, RULES, rule, rule_name
from sgm_sde.grids.spaced import Exponential, Karras, LogSNR, Quadratic, Shifted, Uniform
from sgm_sde.grids.tables import Distilled, FromLevels, Table
from sgm_sde.grids.thinned import PUREST, UNBOUNDED, Thinned, Widening
from sgm_sde.grids.times import Grid, TokenGrid

__all__ = [
    "ELSEWHERE",
    "PUREST",
    "RULES",
    "UNBOUNDED",
    "Distilled",
    "Exponential",
    "FromLevels",
    "Grid",
    "GridRule",
    "Karras",
    "LogSNR",
    "Quadratic",
    "Shifted",
    "Table",
    "Thinned",
    "TokenGrid",
    "Uniform",
    "Widening",
    "rule",
    "rule_name",
]
