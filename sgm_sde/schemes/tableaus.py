"""Butcher tableaus: explicit Runge-Kutta methods as tables, with and without embedded methods.

`RungeKutta(tableau)` runs any of them at fixed steps, `Adaptive(tableau)` those with an embedded method; `Tableau` and
`EmbeddedTableau` make others.

Examples:
    >>> import sgm_sde as sg
    >>> sg.tableaus.RK4.order, sg.tableaus.DOPRI5.embedded_order
    (4, 4)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import instance_of, reals, rows_of, settle
from sgm_sde.identity import Value
from sgm_sde.schemes import dop853

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


@dataclass(frozen=True)
class Tableau(Value):
    r"""Butcher tableau of an explicit method: slopes $k_i = v(x + h \sum_{j<i} a_{ij} k_j, t + c_i h)$, step
    $x + h \sum_i b_i k_i$.

    Args:
        a: rows of coefficients, row i with i entries (the first row empty).
        b: weights of the slopes.
        name: what to call it.
        source: where it is from.

    Raises:
        ValueError: if the rows have the wrong lengths, the weights do not sum to 1, or a node
            $c_i = \sum_j a_{ij}$ lies outside [0, 1] (the score is known inside the step only).

    Source: Butcher, 2016, Numerical Methods for Ordinary Differential Equations.

    Examples:
        >>> Tableau(a=[[], [0.5]], b=[0, 1], name="midpoint").order
        2
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    name: str
    source: str

    def __init__(
        self, a: Sequence[Sequence[float]], b: Sequence[float], name: str = "tableau", source: str = "user"
    ) -> None:
        rows = rows_of("a", a)
        for option, text in (("name", name), ("source", source)):
            instance_of(option, text, str, "a text")
        settle(self, a=rows, b=reals("b", b), name=name, source=source)
        if [len(row) for row in rows] != list(range(len(self.b))):
            raise ValueError(
                f"an explicit tableau with {len(self.b)} weights has rows of lengths 0..{len(self.b) - 1}, "
                f"got {[len(row) for row in rows]}"
            )
        if not math.isclose(math.fsum(self.b), 1.0, abs_tol=1e-12):
            raise ValueError(f"the weights b must sum to 1, got {math.fsum(self.b)}")
        if not all(0 <= c <= 1 for c in self.c):
            raise ValueError(f"the nodes c must lie in [0, 1], got {self.c}")

    def __repr__(self) -> str:
        return f"Tableau({self.name!r}, {len(self.b)} stages)"

    @property
    def c(self) -> tuple[float, ...]:
        """Nodes: the row sums, with rounding near 0 and 1 removed."""
        sums = (math.fsum(row) for row in self.a)
        return tuple(float(round(c)) if abs(c - round(c)) < 1e-12 else c for c in sums)

    @property
    def order(self) -> int:
        """Order from Butcher's order conditions, checked up to 8."""
        return order_of(self.a, self.b)


@lru_cache(maxsize=64)
def order_of(a: tuple[tuple[float, ...], ...], b: tuple[float, ...], tolerance: float = 1e-10) -> int:
    r"""Order of the weights b on the rows a, from the order conditions: $b \cdot \Phi(\tau) = 1/\gamma(\tau)$ for every
    rooted tree with as many nodes, 8 at most.

    Source: Butcher, 2016; Hairer, Norsett & Wanner, 1993, section II.2.
    """
    A = np.zeros((len(b), len(b)))
    for i, row in enumerate(a):
        A[i, : len(row)] = row
    # Trees by number of nodes, each as (Phi over the stages, gamma); a tree is a multiset of subtrees on a root.
    trees: list[list[tuple[np.ndarray, float]]] = [[], [(np.ones(len(b)), 1.0)]]
    for n in range(1, 9):
        if n > 1:
            trees.append([(phi, n * gamma) for phi, gamma in _forests(trees, n - 1, A)])
        if any(abs(np.dot(b, phi) - 1 / gamma) > tolerance for phi, gamma in trees[n]):
            return n - 1
    return 8


def _forests(trees: list[list[tuple[np.ndarray, float]]], n: int, A: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """All multisets of trees of n nodes together, as products of (A Phi, gamma)."""
    known = [(size, A @ phi, gamma) for size in range(1, n + 1) for phi, gamma in trees[size]]

    def grow(n: int, first: int) -> list[tuple[np.ndarray, float]]:
        if n == 0:
            return [(np.ones(len(A)), 1.0)]
        return [
            (phi * rest, gamma * rest_gamma)
            for k, (size, phi, gamma) in enumerate(known[first:], first)
            if size <= n
            for rest, rest_gamma in grow(n - size, k)
        ]

    return grow(n, 0)


@dataclass(frozen=True, repr=False)
class EmbeddedTableau(Tableau):
    r"""A tableau with error estimates from the same slopes: $h \sum_i e_i k_i$, the difference of two methods.

    With two estimates, of orders 5 and 3, the error is that of DOP853, $\|e_5\|^2 / \sqrt{\|e_5\|^2 + \|e_3\|^2/100}$.

    Args:
        a: rows of coefficients, row i with i entries.
        b: weights of the slopes.
        e: weights of the error estimate, or two of such.
        name: what to call it.
        source: where it is from.

    Raises:
        ValueError: as for `Tableau`, or if the weights of an estimate do not sum to 0.

    Source: Hairer, Norsett & Wanner, 1993, section II.4.

    Examples:
        >>> DOPRI5.order, DOPRI5.error_order, DOPRI5.fsal, DOPRI5.nfe_per_step
        (5, 5, True, 6)
    """

    e: tuple[tuple[float, ...], ...]

    def __init__(
        self,
        a: Sequence[Sequence[float]],
        b: Sequence[float],
        e: Sequence[Sequence[float]] | np.ndarray,
        name: str = "tableau",
        source: str = "user",
    ) -> None:
        super().__init__(a, b, name, source)
        settle(self, e=rows_of("e", e))
        for estimate in self.e:
            if len(estimate) != len(self.b) or not math.isclose(math.fsum(estimate), 0.0, abs_tol=1e-12):
                raise ValueError(f"an error estimate needs {len(self.b)} weights that sum to 0, got {estimate}")
        if len(self.e) not in (1, 2):
            raise ValueError(f"give one error estimate, or two, got {len(self.e)}")

    @property
    def fsal(self) -> bool:
        """True if the last slope is that of the next step's start ("first same as last")."""
        return self.a[-1] == self.b[:-1] and self.b[-1] == 0

    @property
    def nfe_per_step(self) -> int:
        """Slopes an accepted step takes."""
        return len(self.b) - self.fsal

    @property
    def embedded_order(self) -> int:
        """Order of the method that the result is compared with, the higher one where there are two."""
        return max(order_of(self.a, tuple(b + e for b, e in zip(self.b, estimate, strict=True))) for estimate in self.e)

    @property
    def error_order(self) -> int:
        """Power of the step with which the error estimate vanishes."""
        return self.order if len(self.e) == 2 else min(self.order, self.embedded_order) + 1

    @property
    def linear(self) -> float:
        """Coefficient of the linear part that is integrated exactly: none."""
        return 0.0

    @property
    def longest(self) -> float:
        """The longest step: any that the error allows."""
        return math.inf

    def weights(self, h: Tensor) -> Tensor:
        """The table for steps h (b,): (stages + 1 + estimates, 1 + stages, b)."""
        table = h.new_zeros(len(self.b) + 1 + len(self.e), 1 + len(self.b))
        table[: len(self.b) + 1, 0] = 1
        for i, row in enumerate((*self.a, self.b, *self.e)):
            table[i, 1 : len(row) + 1] = torch.tensor(row, dtype=h.dtype, device=h.device)
        return torch.cat([table[:, :1, None].expand(-1, -1, len(h)), table[:, 1:, None] * h], 1)

    def error(self, norms: Sequence[Tensor]) -> Tensor:
        """The error (b,) from the norms of the estimates."""
        if len(norms) == 1:
            return norms[0]
        e5, e3 = norms
        both = (e5.square() + 0.01 * e3.square()).sqrt()
        return torch.where(both > 0, e5.square() / both, both)


EULER = Tableau([[]], [1], "euler", "Euler, 1768")
MIDPOINT = Tableau([[], [1 / 2]], [0, 1], "midpoint", "Runge, 1895")
HEUN2 = Tableau([[], [1]], [1 / 2, 1 / 2], "heun2", "Heun, 1900")
RALSTON = Tableau([[], [2 / 3]], [1 / 4, 3 / 4], "ralston", "Ralston, 1962")
RK3 = Tableau([[], [1 / 2], [-1, 2]], [1 / 6, 2 / 3, 1 / 6], "rk3", "Kutta, 1901")
RK4 = Tableau([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], "rk4", "Kutta, 1901")

_BOSH3_B = [2 / 9, 1 / 3, 4 / 9]
BOSH3 = EmbeddedTableau(
    a=[[], [1 / 2], [0, 3 / 4], _BOSH3_B],
    b=[*_BOSH3_B, 0],
    e=[[5 / 72, -1 / 12, -1 / 9, 1 / 8]],
    name="bosh3",
    source="Bogacki & Shampine, 1989",
)
_DOPRI5_B = [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]
DOPRI5 = EmbeddedTableau(
    a=[
        [],
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        _DOPRI5_B,
    ],
    b=[*_DOPRI5_B, 0],
    e=[[-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40]],
    name="dopri5",
    source="Dormand & Prince, 1980",
)
DOP853 = EmbeddedTableau(
    dop853.A, dop853.B, [dop853.E5, dop853.E3], name="dop853", source="Hairer, Norsett & Wanner, 1993"
)
_TSIT5_B = [
    0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774
]  # fmt: skip
TSIT5 = EmbeddedTableau(
    a=[
        [],
        [0.161],
        [-0.008480655492356989, 0.335480655492357],
        [2.8971530571054935, -6.359448489975075, 4.3622954328695815],
        [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
        [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
        _TSIT5_B,
    ],
    b=[*_TSIT5_B, 0.0],
    e=[[
        -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
        0.5823571654525552, -0.45808210592918697, 0.015151515151515152,
    ]],
    name="tsit5",
    source="Tsitouras, 2011, doi:10.1016/j.camwa.2011.06.002",
)  # fmt: skip
