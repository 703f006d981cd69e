"""Solvers for linear processes with a matrix, such as CLD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, one_of, settle
from sgm_sde.engine.matrix import Matrix
from sgm_sde.engine.node import Node
from sgm_sde.engine.program import Form, Step
from sgm_sde.engine.quadrature import interpolatory_weights
from sgm_sde.grids import Grid
from sgm_sde.processes.base import SDE, ProcessNode
from sgm_sde.processes.matrix import MatrixNode, cholesky
from sgm_sde.schemes.base import EtaSolver, Solver
from sgm_sde.schemes.correctors import Langevin
from sgm_sde.schemes.linear_part import POINTS, SPARE, WEIGHTS, separated


@dataclass(frozen=True)
class SSCS(EtaSolver):
    r"""The symmetric splitting sampler of CLD: the prior's own dynamics exactly, the score's deviation as a kick.

    With P the prior's covariance and $c = (1+\eta^2)/2$ the reverse process is, with time running down,

    $$ dz = \underbrace{-(F + c\,GG^\top P^{-1})\,z\,d\tau + \eta\,G\,dw}_{\text{A, exact}}
       + \underbrace{c\,GG^\top(s + P^{-1}z)\,d\tau}_{\text{S}} $$

    and a step is A over the first half, S by Euler with the score in the middle, A over the second half. Each half has
    its own exact kernel, so that a rate that depends on time is integrated over the half that it belongs to; S takes
    the integral of $GG^\top$ over the step.

    Order 1, weak order 1 (Euler in S); one network call per step.

    Args:
        eta: stochasticity; 1 is the published sampler, 0 a splitting of the probability flow.

    Raises:
        ValueError: for a negative `eta`.
        TypeError: on compiling, for a process without a matrix.

    Source: Dockhorn et al., 2022, arXiv:2112.07068.

    Examples:
        >>> SSCS().nfe(20), SSCS().weak_order
        (20, 1)
    """

    name = "sscs"
    order = 1
    prediction = "score"
    source = "Dockhorn et al., 2022, arXiv:2112.07068"

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        start = matrix_node(k.start)
        end = matrix_node(k.end)
        middle = matrix_node(k.at((start.t + end.t) / 2))
        z = k.keep(self._exact(k, k.x, start, middle), middle)

        score = k.evaluate(z, middle)
        kick = self._c * start.noise_until(end.t)
        z = z + kick * score + kick * start.sde.prior_covariance.inverse * z
        return self._exact(k, z, middle, end)

    @property
    def _c(self) -> float:
        return (1 + self.eta**2) / 2

    def _exact(self, k: Step, z: Form, s: MatrixNode, t: MatrixNode) -> Form:
        """A from s to t, with its noise."""
        phi, N = s.transport(t.t, pull=self._c, noise=self.eta)
        noise = root(N) * k.noise() if self.eta else Form()
        return phi * z + noise


def matrix_node(node: Node, needed: str = "Phi") -> MatrixNode:
    """The node of a process whose state has blocks, of which a formula needs a coefficient of this name.

    Raises:
        TypeError: for one of any other process.
    """
    if not isinstance(node, MatrixNode):
        assert isinstance(node, ProcessNode)
        node.refuse(needed)
    return node


def root(covariance: np.ndarray) -> Matrix:
    """A square root of a positive semi-definite matrix: its Cholesky factor where there is one."""
    try:
        return Matrix.of(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return Matrix.of(vectors * np.sqrt(np.clip(values, 0, None)))


@dataclass(frozen=True)
class GDDIM(Solver):
    r"""Exponential multistep on the probability flow in rotated noise: gDDIM.

    With R the factor of the covariance that the flow carries along, $R' = (F + \tfrac12 GG^\top\Sigma^{-1})R$, and
    $\epsilon = -R^\top s$,

    $$ z_t = \Phi z_s + \sum_{j<n} C_j\,\epsilon_j, \qquad C_j = \int_s^t W'(u)\,l_j(u)\,du, \qquad
       W(u) = \Phi(t, u) R_u - \Phi(t, s) R_s $$

    with the polynomials $l_j$ in log t through the last n evaluations. Exact for data on one point, on any grid.
    Moments are integrated by parts with 32 Gauss points. A step's Phi blows up what rounding has left of the state:
    keep a float32 run's first step short on a process that forgets much faster than CLD's default.

    Order min(n, 2), from a cold start; one network call per step.

    Args:
        nodes: the number n of evaluations per step uses, 1 to 4.

    Raises:
        ValueError: for another number of nodes.
        TypeError: on compiling, for a process without a matrix.

    Source: Zhang et al., 2022, arXiv:2206.05564.

    Examples:
        >>> GDDIM(nodes=1).order, GDDIM(nodes=3).order
        (1, 2)
    """

    nodes: int = 2
    name = "gddim"
    prediction = "gddim-noise"
    source = "Zhang et al., 2022, arXiv:2206.05564"

    def __post_init__(self) -> None:
        settle(self, nodes=check_integer("nodes", self.nodes))
        one_of("nodes", self.nodes, (1, 2, 3, 4))

    @property
    def order(self) -> int:
        """At most 2: the first step is of order 1."""
        return min(self.nodes, 2)

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        s = matrix_node(k.start)
        t = matrix_node(k.end)
        k.evaluate(k.x, s)
        phi, _ = s.transport(t.t)
        known = k.known(self.nodes + SPARE)

        a = np.log(s.t)
        h = np.log(t.t) - a
        r = [(np.log(node.t) - a) / h for node, _ in known]
        used = separated(r, self.nodes, lambda n: [1 / (j + 1) for j in range(n)])
        C = interpolatory_weights([r[j] for j in used], _moments(s, t, phi.array, len(used)))

        evaluations = [known[j][1] for j in used]
        return Form.combine([phi, *map(Matrix.of, C)], [k.x, *evaluations])


def _moments(s: MatrixNode, t: MatrixNode, phi: np.ndarray, n: int) -> np.ndarray:
    """Integrals of W' r^j for j < n, by parts, with r from 0 at s to 1 at t in log t: (n, k, k)."""
    moments = [t.R - phi @ s.R]
    if n > 1:
        a = np.log(s.t)
        h = np.log(t.t) - a
        W = s.sde.carried(np.exp(a + POINTS * h), t.t) - phi @ s.R
        moments += [moments[0] - j * np.tensordot(WEIGHTS * POINTS ** (j - 1), W, 1) for j in range(1, n)]
    return np.stack(moments)


@dataclass(frozen=True)
class VelocityLangevin(Langevin):
    r"""The Langevin corrector on the last block of the state alone, the velocity: the others stay.

    $$ v \leftarrow v + \epsilon\,s_v + \sqrt{2\epsilon}\,z, \qquad \epsilon = 2\,r^2\,L_{vv}^2, \qquad
       L L^\top = \Sigma_t + s_{data}^2\,\mu_t\mu_t^\top $$

    $L_{vv}^2$, from the last entry of the Cholesky factor, is the velocity's variance given the rest of the state. It
    leaves the joint law alone, and uses nothing but what a network of the velocity's score knows.

    Args:
        snr: the ratio r.
        n_steps: updates at each node, one network call each.
        norm: as in `Langevin`; published norms are those of the velocity.
        data_std: as in `Langevin`.

    Raises:
        ValueError: for options out of range.
        TypeError: on sampling with `norm="expected"`, for a process without a matrix.

    Warns:
        LangevinNormWarning: as `Langevin`.

    Source: Dockhorn et al., 2022, arXiv:2112.07068; Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> VelocityLangevin(snr=0.1).n_steps
        1
    """

    def _variances(self, sde: SDE, grid: Grid) -> Sequence[float]:
        """The variance of the velocity given the rest, at each node."""
        nodes = [matrix_node(node, "cov") for node in sde.nodes(grid.times)]
        return [self._variance(node) for node in nodes]

    def _variance(self, node: MatrixNode) -> float:
        covariance = node.cov + self.data_std**2 * np.outer(node.mu, node.mu)
        L = cholesky(covariance, node.t)
        return float(L[-1, -1]) ** 2

    def _moved(self, x: Tensor) -> Tensor:
        """The velocity block."""
        return x[:, -1]

    def update(self, x: Tensor, score: Tensor, z: Tensor, constant: float) -> tuple[Tensor, Tensor]:
        """One update: its mean, and what noise adds."""
        mean, added = super().update(x[:, -1], score[:, -1], z[:, -1], constant)
        others = x[:, :-1]
        moved = torch.cat([others, mean[:, None]], 1)
        noise = torch.cat([torch.zeros_like(others), added[:, None]], 1)
        return moved, noise
