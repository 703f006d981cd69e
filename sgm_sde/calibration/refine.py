r"""All levels, scales and weights of a table together: Levenberg-Marquardt on the error of its samples.

Unknowns are $t_k = \log s_k$, $g_k = \log(c_k / s_k)$, $c_n$ and the weights $b_{kj}$; the loss is

$$ \frac1N \sum_i w_i\,\frac{|y_n^i - x^i|^2}{c^2} + \lambda \sum_{kj} b_{kj}^2 $$

with the exact samples $x^i$ and their standard deviation c. A noise that lies between two modes has an error that no
table removes, and a sample that changes abruptly, so that its derivatives are large and good for tiny steps only. Two
kinds of weights keep such noises from deciding: Huber's, $w_i = \min(1, 2\,\mathrm{median}/e_i)$ of the errors $e_i$,
and those of bounded influence, $\min(1, 2 / h_i)$ with the mean square $h_i$ of a noise's derivatives, each relative to
its median over noises. The penalty, which keeps the weights from cancelling one another, is a hundredth of the error
and falls with it.

The Jacobian comes from forward differences through the run; a change of row k needs only the rows after it, and all
changes of a row are evaluated together. Between Jacobians it is kept up to date by Broyden's formula.

Source: Huber, 1964 (Annals of Mathematical Statistics 35); Krasker and Welsch, 1982 (JASA 77) for bounded influence;
Broyden, 1965 (Mathematics of Computation 19).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_autocast, weighted_sum
from sgm_sde.calibration.flow import Flow
from sgm_sde.calibration.rows import Rows, added, combined
from sgm_sde.calibration.strata import weighted_median

CHANGE = 0.01  # of a difference: of the state's size, and of log s
ROUNDINGS = 13  # a difference is at least that many, of a network in reduced precision
GAP = 0.02  # between neighbouring log s
SCALED = 2.0  # of log(c / s), at most
PENALTY = 0.01  # of the error
OUTLYING = 2.0  # times the median: errors and squares of derivatives beyond weigh less
JACOBIANS = 8
UPDATES = 4  # between Jacobians
GAIN = 0.01  # of the loss, below which a fit ends


@dataclass(frozen=True)
class Unknowns:
    """Fitted parameters as one vector.

    Args:
        n: number of calls.
        consistent: whether rows are exact for a constant estimate: $\\sum_j b_{kj} = 1 - c_k / s_T$.
        inverse: $1 / s_T$.
    """

    n: int
    consistent: bool
    inverse: float

    @cached_property
    def entries(self) -> list[tuple[str, int, int]]:
        """Kind, row and column of each: levels first, then scales, then weights row by row."""
        n = self.n
        levels = [("t", k, 0) for k in range(n)]
        scales = [("g", k, 0) for k in range(1, n)] + [("c", n, 0)]
        free = 1 if self.consistent else 0
        return levels + scales + [("b", k, j) for k in range(1, n + 1) for j in range(k - free)]

    def of(self, rows: Rows) -> Tensor:
        """The vector of a table."""
        values = {"t": lambda k, j: rows.t[k], "g": lambda k, j: rows.c[k].log() - rows.t[k]}
        values |= {"c": lambda k, j: rows.c[k], "b": lambda k, j: rows.B[k, j]}
        return torch.stack([values[kind](k, j) for kind, k, j in self.entries])

    def rows(self, theta: Tensor) -> Rows:
        """The table of a vector; of several (*, P), numbers of tables with these dimensions first."""
        n = self.n
        t, g, c_n, b = torch.split(theta, [n, n - 1, 1, theta.shape[-1] - 2 * n], -1)
        first = t[..., :1].exp()
        others = (t[..., 1:] + g).exp()
        c = torch.cat([first, others, c_n], -1)

        B = theta.new_zeros(*theta.shape[:-1], n + 1, n)
        k, j = self._places
        B[..., k, j] = b
        if self.consistent:
            rest = 1 - self.inverse * c[..., 1:] - B[..., 1:, :].sum(-1)
            B[..., 1:, :].diagonal(dim1=-2, dim2=-1).copy_(rest)
        return Rows(t, c, B)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the weights among the unknowns."""
        found = [(k, j) for kind, k, j in self.entries if kind == "b"]
        k, j = torch.tensor(found, dtype=torch.long).view(-1, 2).unbind(1)
        return k, j

    @cached_property
    def all_places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of all weights, those that follow from others too."""
        k, j = torch.tril_indices(self.n, self.n)
        return k + 1, j

    def weights_of(self, theta: Tensor) -> Tensor:
        """All weights as a vector (W,)."""
        return self.rows(theta).B[self.all_places]

    def slopes_of(self, theta: Tensor) -> Tensor:
        """Derivatives (W, P) of all weights with respect to the unknowns."""
        n = self.n
        P = len(theta)
        S = torch.zeros(n + 1, n, P, dtype=theta.dtype)
        k, j = self._places
        b = torch.arange(2 * n, P)
        S[k, j, b] = 1.0
        if self.consistent:
            S[k, k - 1, b] = -1.0
            self._add_slopes_of_scales(S, theta)

        return S[self.all_places]

    def _add_slopes_of_scales(self, S: Tensor, theta: Tensor) -> None:
        """Derivatives of the last weight of a consistent row, 1 - c_k / s_T - sum_j b_kj, by its scale."""
        n = self.n
        k = torch.arange(1, n)
        slope = -self.inverse * self.rows(theta).c[k]  # of c_k = exp(t_k + g_k)
        t = k
        g = n + k - 1
        S[k, k - 1, t] = slope
        S[k, k - 1, g] = slope
        S[n, n - 1, 2 * n - 1] = -self.inverse


Products = tuple[Tensor, Tensor]  # matrix (P, P) and vector (P,)


class _Point(NamedTuple):
    """A table in the course of a fit, with what it makes of the noises.

    Attributes:
        theta: its unknowns (P,).
        y: samples (N, d).
        D: estimates (n, N, d) on the way.
        each: mean square errors (N,).
        b: all weights (W,).
    """

    theta: Tensor
    y: Tensor
    D: Tensor
    each: Tensor
    b: Tensor


class _Trial(NamedTuple):
    """Point of a fit, the loss there, and the damping that led to it."""

    point: _Point
    loss: float
    damping: float


@dataclass(eq=False)
class Refinement:
    """A fit on some noises.

    Args:
        flow: the network.
        z: noises (N, d).
        exact: their samples (N, d).
        scale: standard deviation c of the samples.
        samples: numbers of the noises.
        consistent: whether rows are exact for a constant estimate.
        late: whether there is no time left.
        robust: whether noises of large errors weigh less.
        bounded: whether noises of large derivatives weigh less.
        held: whether levels stay where they are.
        weights: sampling weight of each noise (N,), 1 on average; 1 for all if not given.
    """

    flow: Flow
    z: Tensor
    exact: Tensor
    scale: float
    samples: range
    consistent: bool
    late: Callable[[], bool] = lambda: False
    robust: bool = True
    bounded: bool = False
    held: bool = False
    weights: Tensor | None = None

    @cached_property
    def sampling_weights(self) -> Tensor:
        """The weight of each noise before any is lowered (N,), float64."""
        if self.weights is None:
            return torch.ones(len(self.z), dtype=torch.float64, device=self.z.device)
        return self.weights.to(self.z.device)

    @cached_property
    def change(self) -> float:
        """The size of a difference, relative to that of a state, and of log s."""
        return max(CHANGE, ROUNDINGS * self.flow.rounding)

    def errors(self, y: Tensor) -> Tensor:
        """Mean square error of each noise (N,), in units of c^2, float64; inf where it is not finite."""
        each = (y - self.exact).double().square().mean(1) / self.scale**2
        return each.nan_to_num(nan=math.inf)

    def fit(self, start: Rows) -> Rows:
        """The table that a start leads to; the start itself where nothing is better."""
        unknowns = Unknowns(start.n, self.consistent, self.flow.inverse)
        theta = self._apart(unknowns.of(start), unknowns.n)
        at = self._point(unknowns, theta)
        if not bool(at.each.isfinite().all()):
            return start

        penalty = math.inf
        damping = 0.01
        for _ in range(JACOBIANS):
            if self.late():
                break
            J = self._jacobian(unknowns, at)
            w = self._weights(at.each, J)
            penalty = min(penalty, self._penalty(at, w))
            before = self._loss(at, w, penalty)
            at, loss, damping = self._descend(unknowns, at, J, w, penalty, damping)
            if loss > (1 - GAIN) * before:
                break

        theta = at.theta.clone()
        theta[0] = self.flow.snapped(float(theta[0]))
        return unknowns.rows(theta)

    def _descend(self, unknowns: Unknowns, at: _Point, J: Tensor, w: Tensor, penalty: float, damping: float) -> _Trial:
        """The end of several steps with one Jacobian, which each of them corrects."""
        loss_of = partial(self._loss, w=w, penalty=penalty)
        best = _Trial(at, loss_of(at), damping)
        products = self._products(J, at.y - self.exact, w)
        for _ in range(1 + UPDATES):
            A, g = self._normal(unknowns, best.point, products, penalty)
            found = self._step(unknowns, best, A, g, loss_of)
            if found is None:
                break

            products = self._updated(J, products, A.diagonal(), best.point, found.point, w)
            gain = 1 - found.loss / best.loss
            best = found
            if gain < GAIN or self.late():
                break
        return best

    def _point(self, unknowns: Unknowns, theta: Tensor) -> _Point:
        rows = unknowns.rows(theta)
        y, D = rows.run(self.flow, self.z, self.samples)
        return _Point(theta, y, D, self.errors(y), rows.B[unknowns.all_places])

    def _weights(self, each: Tensor, J: Tensor) -> Tensor:
        """Weights (N,) of noises with mean square errors (N,) and derivatives (P, N, d)."""
        w = self.sampling_weights
        if self.robust:
            w = w * huber_weights(each, self.limit(each))
        if self.bounded:
            squares = torch.stack([of_one.double().square().mean(1) for of_one in J])
            h = (squares / weighted_median(squares, self.sampling_weights)[:, None].clamp(min=1e-300)).mean(0)
            w = w * (OUTLYING / h.clamp(min=1e-300)).clamp(max=1)
        return w

    def limit(self, each: Tensor) -> float:
        """The root of a mean square error (N,) from which on a noise weighs less."""
        return OUTLYING * float(weighted_median(each.sqrt(), self.sampling_weights))

    @staticmethod
    def _penalty(at: _Point, w: Tensor) -> float:
        """The factor with which the penalty is its part of the error."""
        return PENALTY * float((w * at.each).mean()) / max(float(at.b.square().sum()), 1e-300)

    @staticmethod
    def _loss(at: _Point, w: Tensor, penalty: float) -> float:
        return float((w * at.each).mean()) + penalty * float(at.b.square().sum())

    # --- derivatives -------------------------------------------------------------------------------------------------

    def _jacobian(self, unknowns: Unknowns, at: _Point) -> Tensor:
        """Derivatives of the samples (P, N, d) with respect to each unknown, by forward differences."""
        J = at.y.new_zeros((len(at.theta), *at.y.shape))
        base = unknowns.rows(at.theta)
        sizes = self._sizes(unknowns, at.D)
        for row in range(unknowns.n + 1):
            here = [p for p, (kind, k, _) in enumerate(unknowns.entries) if k == row and self._moves(kind)]
            if here:
                changes = [self._change(unknowns, base, unknowns.entries[p], sizes) for p in here]
                J[here] = self._differences(unknowns, at, row, here, changes)
        return J

    def _differences(
        self, unknowns: Unknowns, at: _Point, row: int, here: Sequence[int], changes: Sequence[float]
    ) -> Tensor:
        """Changes of the samples (P, N, d) over those of some of the unknowns, all of one row."""
        h = torch.tensor(changes, dtype=torch.float64)
        theta = at.theta.repeat(len(here), 1)
        theta[range(len(here)), here] += h

        base = unknowns.rows(at.theta)
        changed = unknowns.rows(theta)
        moved = self._ends(base, row, changed, at.D) - at.y
        return moved / h.to(moved)[:, None, None]

    def _moves(self, kind: str) -> bool:
        """True if unknowns of a kind are fitted."""
        return not (self.held and kind == "t")

    @staticmethod
    def _sizes(unknowns: Unknowns, D: Tensor) -> list[list[float]]:
        """Sizes of what a weight b_kj multiplies, by k and j: of D_j, less D_{k-1} in consistent tables."""
        flat = D.flatten(1).double()
        G = flat @ flat.T / flat.shape[1]
        own = G.diagonal()
        squares = own.expand(unknowns.n + 1, -1)
        if unknowns.consistent:
            differences = own + own[:, None] - 2 * G
            squares = torch.cat([own[None], differences])

        sizes = squares.clamp(min=0).sqrt()
        found: list[list[float]] = sizes.tolist()
        return found

    def _ends(self, base: Rows, row: int, changed: Rows, D: Tensor) -> Tensor:
        """The samples (P, N, d) of P tables that differ from one, with estimates D, in a row alone."""
        c = changed.c[:, row].to(D)
        state = c[:, None, None] * self.z
        if row:
            state = state + weighted_sum(changed.B[:, row, :row].to(D), D[:row])
        if row == base.n:
            return state
        return self._go_on(base, row, state, changed.t[:, row].tolist(), D)

    def _change(
        self, unknowns: Unknowns, rows: Rows, entry: tuple[str, int, int], sizes: Sequence[Sequence[float]]
    ) -> float:
        """The step of a difference."""
        kind, k, j = entry
        if kind == "t":
            return self.change if float(rows.t[k]) + self.change <= self.flow.high else -self.change
        level = float(rows.t[k].exp()) if k < unknowns.n else 0.0
        state = self.change * math.hypot(self.scale, level)
        if kind == "g":
            return min(state / float(rows.c[k]), 0.1)
        if kind == "c":
            return state
        return min(state / max(sizes[k][j], 1e-12), 0.1)

    def _go_on(self, rows: Rows, row: int, state: Tensor, levels: list[float], D: Tensor) -> Tensor:
        """The samples (P, N, d) of states (P, N, d) in the place of one row's."""
        later = state.new_empty((rows.n - row, *state.shape))  # one buffer: each state is one product with it
        self.flow.data(state, levels, self.samples, out=later[0])
        for m in range(row + 1, rows.n + 1):
            same = combined(rows.c[m], rows.B[m, :row], self.z, D[:row])
            known = later[: m - row]
            state = added(same.expand_as(state).contiguous(), rows.B[m, row:m], known)
            if m < rows.n:
                self.flow.data(state, [float(rows.t[m])] * len(state), self.samples, out=later[m - row])
        return state

    # --- steps -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _normal(unknowns: Unknowns, at: _Point, products: Products, penalty: float) -> Products:
        """Matrix (P, P) and vector (P,) of the normal equations of the loss, in double precision."""
        A, g = products
        S = unknowns.slopes_of(at.theta)
        return A + penalty * S.T @ S, g + penalty * S.T @ at.b

    @outside_autocast
    def _products(self, J: Tensor, r: Tensor, w: Tensor) -> Products:
        """J'WJ (P, P) and J'Wr (P,) in units of c^2, a part of the noises at a time."""
        P = len(J)
        A = torch.zeros(P, P, dtype=torch.float64)
        g = torch.zeros(P, dtype=torch.float64)
        root = w.sqrt().to(J)[:, None]
        for some in self._parts(J):
            J_w = (J[:, some] * root[some]).flatten(1)
            r_w = (r[some] * root[some]).flatten()
            A += (J_w @ J_w.T).double().cpu()
            g += (J_w @ r_w).double().cpu()
        size = r.numel() * self.scale**2
        return A / size, g / size

    @outside_autocast
    def _updated(self, J: Tensor, products: Products, W: Tensor, before: _Point, after: _Point, w: Tensor) -> Products:
        """Broyden's formula J + v u', with v = change - J d and u = W d / d'W d, put into J and into its products.

        That the change has rank one spares the product of J with itself.
        """
        A, _ = products
        d = after.theta - before.theta
        Wd = W * d
        u = Wd / (d @ Wd)
        v = after.y - before.y - weighted_sum(d.to(J), J)
        columns = torch.stack([v, after.y - self.exact])

        rows = J.flatten(1)
        c_w = (columns * w.to(J)[:, None]).flatten(1)
        size = v.numel() * self.scale**2
        Jv, Jr = (rows @ c_w.T).double().cpu().unbind(1)
        vv, vr = (c_w @ v.flatten()).double().cpu().unbind()

        rows.addr_(u.to(J), v.flatten())
        A = A + (torch.outer(Jv, u) + torch.outer(u, Jv) + vv * torch.outer(u, u)) / size
        return A, (Jr + vr * u) / size

    @staticmethod
    def _parts(J: Tensor) -> tuple[Tensor, ...]:
        """The numbers of the noises in parts, for which the derivatives (P, N, d) fit into memory twice."""
        P, N, d = J.shape
        return torch.split(torch.arange(N), max(1, 2**22 // (d * P)))

    def _step(
        self, unknowns: Unknowns, best: _Trial, A: Tensor, g: Tensor, loss_of: Callable[[_Point], float]
    ) -> _Trial | None:
        """The best step found by varying the damping; None if none lowers the loss."""
        here, loss, damping = best

        def attempt(damping: float) -> _Trial | None:
            theta = self._solve(unknowns, here.theta, A, g, damping)
            if not bool(theta.isfinite().all()):
                return None
            new = self._point(unknowns, theta)
            trial = _Trial(new, loss_of(new), damping)
            return trial if trial.loss < loss else None

        found = attempt(damping)
        return _more_damped(attempt, damping) if found is None else _less_damped(attempt, found)

    def _solve(self, unknowns: Unknowns, theta: Tensor, A: Tensor, g: Tensor, damping: float) -> Tensor:
        """theta + d with (A + damping diag A) d = -g; levels that would leave their bounds are held there."""
        damped = A + torch.diag(damping * A.diagonal() + 1e-14 * A.diagonal().max())
        moves = torch.tensor([self._moves(kind) for kind, _, _ in unknowns.entries])
        d = torch.zeros_like(theta)
        d[moves] = -_solved(damped[moves][:, moves], g[moves])
        moved = self._apart(theta + d, unknowns.n)

        held = (moved - theta - d).abs() > 1e-12
        if not held.any():
            return moved
        d = _step_beside(moved - theta, held, moves, damped, A, g)
        return self._apart(theta + d, unknowns.n)

    def _apart(self, theta: Tensor, n: int) -> Tensor:
        """The unknowns with levels inside of the process, a gap between neighbours, and scales near their levels."""
        theta = theta.clone()
        gap = min(GAP, (self.flow.high - self.flow.low) / n)
        t = theta[:n].tolist()
        for k in range(n):
            before = t[k - 1] if k else math.inf
            t[k] = min(t[k], self.flow.high - k * gap, before - gap)
        for k in reversed(range(n)):
            after = t[k + 1] if k < n - 1 else -math.inf
            t[k] = max(t[k], self.flow.low + (n - 1 - k) * gap, after + gap)

        theta[:n] = torch.tensor(t, dtype=theta.dtype)
        theta[n : 2 * n - 1] = theta[n : 2 * n - 1].clamp(-SCALED, SCALED)
        return theta


def huber_weights(each: Tensor, limit: float) -> Tensor:
    """Huber's weights (N,) of noises with mean square errors (N,), whose roots count up to a limit."""
    return (limit / each.sqrt().clamp(min=1e-300)).clamp(max=1)


Attempt = Callable[[float], _Trial | None]  # with a damping


def _more_damped(attempt: Attempt, damping: float) -> _Trial | None:
    """The first step down with more damping."""
    for _ in range(5):
        damping *= 8
        found = attempt(damping)
        if found is not None:
            return found
    return None


def _less_damped(attempt: Attempt, best: _Trial) -> _Trial:
    """The best step as long as less damping helps."""
    damping = best.damping
    while damping > 1e-8:
        damping /= 8
        found = attempt(damping)
        if found is None or found.loss > best.loss:
            return best
        if found.loss > best.loss * (1 - GAIN):
            return found
        best = found
    return best


def _step_beside(fixed: Tensor, held: Tensor, moves: Tensor, damped: Tensor, A: Tensor, g: Tensor) -> Tensor:
    """The step (P,) whose entries `held` are those of `fixed`, in which the others among `moves` are best."""
    free = ~held & moves
    d = torch.zeros_like(fixed)
    d[held] = fixed[held]
    d[free] = -_solved(damped[free][:, free], g[free] + A[free][:, held] @ fixed[held])
    return d


def _solved(A: Tensor, g: Tensor) -> Tensor:
    """A solution by the scaled matrix, whose diagonal is 1."""
    scale = A.diagonal().clamp(min=1e-300).rsqrt()
    scaled = A * scale[:, None] * scale
    found: Tensor
    found, failed = torch.linalg.solve_ex(scaled, g * scale)
    if failed:  # a singular one
        found = torch.linalg.lstsq(scaled, (g * scale)[:, None]).solution[:, 0]
    return found * scale
