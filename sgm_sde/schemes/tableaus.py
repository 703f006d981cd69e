"""Butcher tableaus: explicit Runge-Kutta methods as tables, with and without embedded methods.

`RungeKutta(tableau)` runs any of them at fixed steps, `Adaptive(tableau)` those with an embedded method; `Tableau` and
`EmbeddedTableau` make others.

Examples:
    >>> import sgm_sde as sg
    >>> sg.tableaus.RK4.order, sg.tableaus.DOPRI5.embedded_order
    (4, 4)
"""

from sgm_sde.schemes.runge_kutta import (
    BOSH3,
    DOP853,
    DOPRI5,
    EULER,
    HEUN2,
    MIDPOINT,
    RALSTON,
    RK3,
    RK4,
    TSIT5,
    EmbeddedTableau,
    Tableau,
)

__all__ = [
    "BOSH3",
    "DOP853",
    "DOPRI5",
    "EULER",
    "HEUN2",
    "MIDPOINT",
    "RALSTON",
    "RK3",
    "RK4",
    "TSIT5",
    "EmbeddedTableau",
    "Tableau",
]
