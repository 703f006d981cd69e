r"""The multistep method and the quadrature of the fixed grid.

In the angle $\theta = \arctan(\sigma/(\alpha s))$ the flow of $z = x/\rho$ is $dz/d\theta = v/\rho$ (see
`sgm_sde.likelihood.problem`). Over each interval between nodes the slope is the quartic $P_i$ through the five nearest
nodes, in the variable u in which the grid is uniform, and its integral in theta is exact:

$$ z_k = z_0 + \sum_{i<k} \int_{\theta_i}^{\theta_{i+1}} P_i\,d\theta $$

At every node all intervals are integrated again: those that were first integrated by extrapolation, such as the initial
ones, are interpolated from both sides once there are nodes on both sides. A step changes the last few intervals only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sgm_sde.engine.program import Program, Stage
from sgm_sde.engine.quadrature import interpolatory_weights
from sgm_sde.likelihood.grid import Curve
from sgm_sde.processes.linear import LinearNode
from sgm_sde.processes.predictions import Marginal, Scalars
from sgm_sde.schemes.linear_part import POINTS, WEIGHTS

SLOPES = 5  # that a polynomial of a step goes through
RULES = 6, 8, 10, 12  # slopes of integrals where all are known; of what tells their error; and of what tells its own
JUMPS = 6, 4  # nodes whose scores, and the jumps between them, a polynomial goes through; and for the error of that
RULES_OF_OTHERS = 4, 5, 6  # on the grids of other solvers, where polynomials of a higher degree oscillate
JUMPS_OF_OTHERS = 4, 2  # of solvers whose jumps are less smooth
DAMPED_BELOW = 0.2  # noise, as a fraction of the data


Weights = tuple[tuple[int, float], ...]  # pairs (node, weight)


@dataclass(frozen=True)
class Quadrature:
    """Weights of what is known at all nodes.

    Attributes:
        integrals: for each interval pairs (j, w): the integral in theta over it is the sum of w times slope j.
        corrections: the same for what a rule of more slopes adds to it, one of still more to that, and so on.
        shares: for each node pairs (i, w): of jump i, that from interval i to the next state, w goes with what is known
            at this node.
        coarse_shares: the same by polynomials of lower degree.
        weights: of the integral over the whole grid, (n + 1,).
        remainders: of what each rule of more slopes adds to each interval, (rules, n, n + 1).
        halves: of the integral by every other node, with two choices of these, (2, n + 1).
        quarters: by every fourth, with four, (4, n + 1); number k lies within number k mod 2 of the halves.
    """

    integrals: tuple[Weights, ...]
    corrections: tuple[tuple[Weights, ...], ...]
    shares: tuple[Weights, ...]
    coarse_shares: tuple[Weights, ...]
    weights: np.ndarray
    remainders: np.ndarray
    halves: np.ndarray
    quarters: np.ndarray


@dataclass(frozen=True)
class Tables(Quadrature):
    """The same with the weights of a method's slopes.

    Attributes:
        steps: row k takes z_{k-1} to z_k, (n + 1, n + 1).
        correction: takes the last z to that of all intervals with the last slope known, (n + 1,).
    """

    steps: np.ndarray
    correction: np.ndarray


def spread(k: Marginal[Scalars], s: float) -> Scalars:
    """Scale rho of the v-prediction."""
    return (k.alpha**2 * s**2 + k.sigma**2) ** 0.5


def trust(k: Marginal[Scalars], s: float) -> Scalars:
    """Share of a score that is taken for right: networks know it badly where the noise is small beside the data."""
    return 1 / (1 + (DAMPED_BELOW * k.alpha * s / k.sigma) ** 2)


def _nearest(i: int, points: int, newest: int) -> np.ndarray:
    """Window of nodes around node i, of the size allowed by the newest one."""
    first = max(min(i - (points - 1) // 2, newest + 1 - points), 0)
    return np.arange(first, min(first + points, newest + 1))


Slope = Callable[[np.ndarray], np.ndarray]


def _integral(at: np.ndarray, slope: Slope, i: int, newest: int, points: int = SLOPES) -> np.ndarray:
    """Weights (n + 1,) of the slopes over interval i between nodes at some coordinates, when that of the newest is
    known; `slope` is d theta / d coordinate."""
    near = _nearest(i, points, newest)
    h = at[i + 1] - at[i]
    moments = h * WEIGHTS * slope(at[i] + h * POINTS) @ np.vander(POINTS, len(near), increasing=True)
    weights = np.zeros(len(at))
    weights[near] = interpolatory_weights((at[near] - at[i]) / h, moments)
    return weights


def quadrature(
    at: np.ndarray, slope: Slope, rules: tuple[int, ...] = RULES, jumps: tuple[int, int] = JUMPS
) -> Quadrature:
    """Weights for nodes at increasing coordinates (n + 1,), with `slope` d theta / d coordinate, and for `rules` and
    `jumps` as many nodes as polynomials go through."""
    n = len(at) - 1
    fine, coarse = jumps
    known, *better = (np.array([_integral(at, slope, i, n, rule) for i in range(n)]) for rule in rules)
    remainders = np.diff([known, *better], axis=0)
    return Quadrature(
        integrals=terms(known),
        corrections=tuple(terms(rule) for rule in remainders),
        shares=terms(_shares(at, fine)),
        coarse_shares=terms(_shares(at, coarse)),
        weights=known.sum(0),
        remainders=remainders,
        halves=np.array([_every(at, slope, rules[0], 2, k) for k in range(2)]),
        quarters=np.array([_every(at, slope, rules[0], 4, k) for k in range(4)]),
    )


def _every(at: np.ndarray, slope: Slope, points: int, stride: int, offset: int) -> np.ndarray:
    """Weights (n + 1,) of the integral over the whole grid from some of its nodes and both ends, by so many slopes."""
    n = len(at) - 1
    chosen = np.unique(np.concatenate([[0], np.arange(offset, n, stride), [n]]))
    last = len(chosen) - 1
    weights = np.zeros(n + 1)
    for i in range(last):
        weights[chosen] += _integral(at[chosen], slope, i, last, points)
    return weights


def _shares(at: np.ndarray, points: int) -> np.ndarray:
    r"""Weights (n + 1, n) of the score at a node and the jump of an interval in the integral of one along the other.

    The path of the slopes is left by the sum of the jumps so far, which goes through the nodes as a polynomial. With
    the basis $L_k$ of Lagrange it is $c = \sum_l c_l L_l$, $c_l = \sum_{i<l} J_i$, so that

    $$ \int s\cdot dc = \sum_k s_k \cdot \sum_i J_i \sum_{l>i} \int L_k L_l' $$
    """
    n = len(at) - 1
    weights = np.zeros((n + 1, n))
    for i in range(n):
        near = _nearest(i, points, n)
        powers = np.arange(len(near))
        basis = np.linalg.inv(np.vander((at[near] - at[i]) / (at[i + 1] - at[i]), increasing=True))

        values = np.power.outer(POINTS, powers) @ basis
        slopes = (powers[1:] * np.power.outer(POINTS, powers[:-1])) @ basis[1:]
        products = (WEIGHTS[:, None] * values).T @ slopes
        later = np.cumsum(products[:, ::-1], axis=1)[:, ::-1]
        weights[np.ix_(near, near[:-1])] += later[:, 1:]
    return weights


def tables(curve: Curve, s: float, n: int, to_noise: bool) -> Tables:
    """The tables of n steps on the curve of a `Stretched` grid, with the data's standard deviation s."""
    direction = -1 if to_noise else 1

    def slope(k: np.ndarray) -> np.ndarray:
        """d theta / du, where u is the number of the node."""
        u = (n - k if to_noise else k) / n
        lam, d_lam = curve(u)
        return -0.5 / np.cosh(lam + math.log(s)) * d_lam * direction / n

    at = np.arange(n + 1.0)
    steps = np.zeros((n + 1, n + 1))
    for k in range(1, n + 1):
        steps[k] = _change(at, slope, k, k - 2, k - 1)
    correction = _change(at, slope, n, n - 1, n)
    return Tables(**vars(quadrature(at, slope)), steps=steps, correction=correction)


def _change(at: np.ndarray, slope: Slope, k: int, before: int, now: int) -> np.ndarray:
    """Weights of what the intervals up to node k add when the newest slope is not `before` but `now`."""
    weights = np.zeros(len(at))
    for i in range(max(k - SLOPES, 0), k):
        extrapolated = _integral(at, slope, i, before) if i <= before else 0
        weights += _integral(at, slope, i, now) - extrapolated
    return weights


def quadrature_on(lam: np.ndarray, s: float) -> Quadrature:
    """The quadrature of nodes at any increasing lambda (n + 1,), by polynomials in it."""
    return quadrature(lam, lambda x: -0.5 / np.cosh(x + math.log(s)), RULES_OF_OTHERS, JUMPS_OF_OTHERS)


def terms(rows: np.ndarray) -> tuple[Weights, ...]:
    """Each row as pairs of its columns and what stands there."""
    return tuple(tuple((int(j), float(row[j])) for j in np.flatnonzero(row)) for row in rows)


def program(nodes: Sequence[LinearNode], table: Tables, s: float) -> Program:
    """The flow over the grid's nodes, one network call each."""
    rho = [spread(node, s) for node in nodes]

    def evals(row: np.ndarray, k: int) -> Weights:
        return tuple((int(j), float(row[j]) * rho[k] / rho[j]) for j in np.flatnonzero(row))

    stages = [Stage(nodes[0].t, evaluate=True, node=True)]
    for k in range(1, len(nodes)):
        carried = ((k - 1, rho[k] / rho[k - 1]),)
        stages.append(Stage(nodes[k].t, carried, evals(table.steps[k], k), evaluate=True, node=True))
    k = len(nodes) - 1
    stages.append(Stage(nodes[k].t, ((k, 1.0),), evals(table.correction, k), node=True))
    return Program("reintegrated-multistep", "v", tuple(stages), sigma_data=s)
