r"""The reverse process as a linear part, solved exactly, and a prediction, integrated against a kernel.

With stochasticity $\eta$ the reverse process of any linear SDE is

$$ x_t = L(t, s)\,x_s + \int_s^t K(t, u)\,p_u\,du + \text{std}(t, s)\,z $$

for each prediction $p$ that the score can be written in. An exponential integrator interpolates $p$ between known
values $p_j$ and integrates the interpolant exactly, so that all it needs are the kernel's moments. With
$h = \lambda_t - \lambda_s$, $\lambda = \log(\alpha/\sigma)$, $\rho^2 = \alpha^2\sigma_d^2 + \sigma^2$ and the angle
$\varphi = \arctan(\sigma/(\alpha\sigma_d))$:

| p | L | K du | std |
|---|---|---|---|
| data $D$ | $\tfrac{\sigma_t}{\sigma_s} e^{-\eta^2 h}$ | $\alpha_t\,d e^{-(1+\eta^2)(\lambda_t-\lambda)}$ | $\sigma_t\sqrt{1 - e^{-2\eta^2 h}}$ |
| noise $\epsilon$ | $\tfrac{\alpha_t}{\alpha_s}$ | $(1+\eta^2)\,\alpha_t\,d e^{-\lambda}$ | $\eta\sigma_t\sqrt{e^{2h} - 1}$ |
| $v/\rho$, $v = \alpha\sigma_d\epsilon - \sigma D/\sigma_d$ | $\tfrac{\rho_t}{\rho_s} (\tfrac{\cos\varphi_s}{\cos\varphi_t})^{\eta^2}$ | $(1+\eta^2)\,\rho_t (\tfrac{\cos\varphi}{\cos\varphi_t})^{\eta^2} d\varphi$ | $\rho_t\sqrt{1 - (\tfrac{\cos\varphi_s}{\cos\varphi_t})^{2\eta^2}}$ |
| $\epsilon - D$ | $\tfrac{\alpha_t + \sigma_t}{\alpha_s + \sigma_s}$ | $(\alpha_t + \sigma_t)\,dw$, $w = \tfrac{\sigma}{\alpha + \sigma}$ | none |

Source: Lu et al., 2022, arXiv:2211.01095 (data); Zhang & Chen, 2023, arXiv:2204.13902 (noise); Xue et al., 2023,
arXiv:2309.05019 (with stochasticity). The third splits off what Gaussian data of standard deviation $\sigma_d$ do.
"""  # noqa: E501

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from sgm_sde.engine.coordinates import COORDINATES, Coordinate, Values, angle, log_signal
from sgm_sde.engine.node import Node, Process
from sgm_sde.engine.phi import phi
from sgm_sde.engine.program import Form, Step
from sgm_sde.engine.quadrature import gauss_legendre, interpolatory_weights

Known = Sequence[tuple[Node, Form]]  # pairs (node, evaluation there), newest first
VARIABLES = ("log-snr", "time", "noise-level", "vp-time", "angle", "log-signal", "flow-time")  # `engine.coordinates`
VARIANTS = ("exact", "midpoint", "bh1", "published", "fixed", "ipndm-v")
LARGEST = 10.0  # sum of the sizes of a step's weights, relative to their sum
SLACK = 0.05  # by which steps taken for even may grow
CLOSE = 1e-3  # share of the step, below which no weights are worth solving for
SPARE = 8  # older evaluations to fall back on where newer ones lie too close together
POINTS, WEIGHTS = gauss_legendre(32)


def separated(r: Sequence[float], n: int, moments: Callable[[int], Sequence[float]]) -> list[int]:
    """Indices of at most n evaluations at places r, newest first, for the polynomial of a step from 0 to 1.

    Where the step is much longer than those before it, or two evaluations lie close together, the weights of the
    extrapolation grow without bound, and with them the roughness of the network, the noise of the steps between, and
    whatever a corrector has changed. So an evaluation that lies too close to a newer one is passed over, for older ones
    as long as there are any, until the sum of the weights' sizes is at most `LARGEST` times that of order 1, or what
    it is after even steps: the order falls, stability never.

    Args:
        r: the places.
        n: how many evaluations are wanted.
        moments: of the kernel, as many as asked for.
    """

    def bounded(places: Sequence[float]) -> bool:
        if all(after - before >= 1 for after, before in pairwise(places)):
            return True
        m = moments(len(places))
        even = np.abs(interpolatory_weights([float(-j) for j in range(len(places))], m)).sum()
        return bool(np.abs(interpolatory_weights(places, m)).sum() <= max(LARGEST * abs(m[0]), (1 + SLACK) * even))

    left = list(range(len(r)))
    while len(kept := left[:n]) > 1:
        gaps = [r[i] - r[j] for i, j in pairwise(kept)]
        if min(gaps) > CLOSE and bounded([r[j] for j in kept]):
            break
        left.pop(1 + gaps.index(min(gaps)))
    return kept


@dataclass(frozen=True)
class LinearPart(ABC):
    """Splitting of the reverse process into an exact linear part and an integrated prediction.

    Attributes:
        variable: what the prediction is a polynomial in.
        eta: stochasticity, constant on a step.
        variant: how the moments are simplified; `weights` says how.
        sigma_data: standard deviation of the data, for v-prediction.
        no_signal_above: noise level from which on v is interpolated in units of it; see `VPart`.
        linear_below: noise level below which log-signal is even in it; None for `sigma_data`.
    """

    variable: str
    eta: float
    variant: str = "exact"
    sigma_data: float = 1.0
    no_signal_above: float = math.inf
    linear_below: float | None = None

    @abstractmethod
    def factor(self, s: Node, t: Node) -> float:
        """Linear factor L(t, s)."""

    @abstractmethod
    def std(self, s: Node, t: Node) -> float:
        """Standard deviation of the noise between s and t."""

    @abstractmethod
    def accumulated(self, s: Node, t: Node, lam: Values) -> Values:
        """The kernel's integral from s to where the half log-SNR is lam."""

    def scale(self, node: Node) -> float:
        """Factor on a prediction before it is interpolated."""
        return 1.0

    def coordinate(self, node: Node) -> float:
        """The node's place in `variable`."""
        return self._along.of(node)

    @property
    def _along(self) -> Coordinate:
        if self.variable == "angle":
            return angle(self.sigma_data)
        if self.variable == "log-signal":
            return log_signal(self._linear_below)
        return COORDINATES[self.variable]

    @property
    def _linear_below(self) -> float:
        """The level c of log-signal, log(1 + sigma / (alpha c))."""
        return self.sigma_data if self.linear_below is None else self.linear_below

    def lam(self, sde: Process, coordinate: Values) -> Values:
        """Half the log-SNR where `variable` has the given values."""
        return self._along.half_log_snr(sde, coordinate)

    def between(self, k: Step, s: Node, t: Node, fraction: float) -> Node:
        """The node at a fraction of the way from s to t in `variable`.

        Raises:
            ZeroDivisionError: where there is no signal at either, which one time is as good as another for.
        """
        if not (s.alpha or t.alpha):
            raise ZeroDivisionError("alpha is 0 at both ends of the step")
        a = self.coordinate(s)
        b = self.coordinate(t)
        return k.at(self._along.time(s.sde, a + fraction * (b - a)))

    def moments(self, s: Node, t: Node, n: int) -> list[float]:
        r"""Integrals of K r^k for k < n, where r runs from 0 at s to 1 at t in `variable`.

        By parts, $W_t - k \int_0^1 r^{k-1} W\,dr$ with W the kernel accumulated from s: nothing cancels.
        """
        whole = float(self.accumulated(s, t, t.lam))
        if n == 1:
            return [whole]

        a = self.coordinate(s)
        b = self.coordinate(t)
        W = self.accumulated(s, t, self.lam(s.sde, a + POINTS * (b - a)))
        less = [k * float(np.sum(WEIGHTS * POINTS ** (k - 1) * W)) for k in range(1, n)]
        return [whole, *(whole - part for part in less)]

    def weights(self, s: Node, t: Node, nodes: Sequence[Node]) -> list[float]:
        r"""Weights of the evaluations at `nodes`: those that integrate polynomials exactly.

        They solve $\sum_j w_j r_j^k = m_k$ with the moments $m_k$, which a variant simplifies:

        - `"midpoint"`: $m_1 = m_0/2$ for two nodes (DPM-Solver++(2M), UniPC's B2);
        - `"bh1"`: $m_1 = \alpha_t h/2$ for two nodes (UniPC's B1);
        - `"published"`: as midpoint, and $m_2$ halved for three nodes (DPM-Solver++(3M) as printed, of order 2);
        - `"fixed"`: as if the nodes were evenly spaced (iPNDM);
        - `"ipndm-v"`: $m_2 = \tfrac{m_0}{2}(r_1 r_2 + r_1 - \tfrac13)$ from three nodes on, with the third divided
          difference exact (`IPNDM` says why).
        """
        a = self.coordinate(s)
        b = self.coordinate(t)
        n = len(nodes)
        r = [(self.coordinate(node) - a) / (b - a) for node in nodes] if n > 1 else [0.0]
        if self.variant == "fixed":
            r = [1.0 - j for j in range(n)] if nodes[0].t == t.t else [float(-j) for j in range(n)]
        w = interpolatory_weights(r, self._simplified(s, t, r))
        return [float(v) * self.scale(node) for v, node in zip(w, nodes, strict=True)]

    def _simplified(self, s: Node, t: Node, r: Sequence[float]) -> list[float]:
        """The moments for nodes at r, as the variant has them."""
        n = len(r)
        m = self.moments(s, t, n)
        if n == 2 and self.variant in ("midpoint", "published"):
            m[1] = m[0] / 2
        elif n == 2 and self.variant == "bh1":
            m[1] = m[0] / 2 * self._bh1(s, t)
        elif n == 3 and self.variant == "published":
            m[2] /= 2
        elif n > 2 and self.variant == "ipndm-v" and r[0] == 0:
            change = m[0] / 2 * (r[1] * r[2] + r[1] - 1 / 3) - m[2]
            m[2] += change
            m[3:] = [moment + change * (r[1] + r[2]) for moment in m[3:]]
        return m

    def _bh1(self, s: Node, t: Node) -> float:
        """h / (e^h - 1) or its like: UniPC's B1 over its B2."""
        raise ValueError(f"the variant 'bh1' is one of data and noise prediction, not of {type(self).__name__}")

    def usable(self, s: Node, t: Node, known: Known, n: int | None = None) -> Known:
        """The newest n evaluations that the polynomial of a step can go through; all, if n is not given.

        Before infinity that is s alone; elsewhere those that `separated` keeps. Fixed weights do not depend on places.
        """
        n = len(known) if n is None else n
        newest = known[:1]
        finite = [pair for pair in known if math.isfinite(self.coordinate(pair[0]))]
        if finite[:1] != newest or not math.isfinite(self.coordinate(t)):
            return newest
        if self.variant == "fixed":
            return finite[:n]

        a = self.coordinate(s)
        h = self.coordinate(t) - a
        places = [(self.coordinate(node) - a) / h for node, _ in finite]
        return [finite[j] for j in separated(places, n, lambda m: self._simplified(s, t, places[:m]))]

    def integral(self, s: Node, t: Node, known: Known) -> Form:
        """The integral of K times the interpolant."""
        return Form.combine(self.weights(s, t, [node for node, _ in known]), [e for _, e in known])

    def update(self, s: Node, t: Node, x: Form, known: Known) -> Form:
        """The step without its noise."""
        return self.factor(s, t) * x + self.integral(s, t, known)


@dataclass(frozen=True)
class DataPart(LinearPart):
    """Data prediction, for which anything that grows with the noise level can set the noise.

    Attributes:
        log_scale: logarithm of a noise scale as a function of sigma / alpha, instead of `eta`, which stands for
            (1 + eta^2) log(sigma / alpha).
    """

    log_scale: Callable[[Values], Values] | None = None

    def _added(self, lam_s: float, lam_t: Values) -> Values:
        """Integral of eta^2 over half the log-SNR."""
        if self.log_scale is not None:
            return self.log_scale(np.exp(-lam_s)) - self.log_scale(np.exp(-lam_t)) - (lam_t - lam_s)
        return self.eta**2 * (lam_t - lam_s) if self.eta else 0.0

    def factor(self, s: Node, t: Node) -> float:
        """Linear factor L(t, s)."""
        return float(t.sigma / s.sigma * math.exp(-self._added(s.lam, t.lam)))

    def std(self, s: Node, t: Node) -> float:
        """Standard deviation of the noise between s and t."""
        return float(t.sigma * math.sqrt(-math.expm1(-2 * self._added(s.lam, t.lam))))

    def accumulated(self, s: Node, t: Node, lam: Values) -> Values:
        """The kernel's integral from s to lam."""
        if not math.isfinite(t.lam - s.lam):
            return t.alpha
        whole = t.lam - s.lam + self._added(s.lam, t.lam)
        part = lam - s.lam + self._added(s.lam, lam)
        return -t.alpha * np.exp(part - whole) * np.expm1(-part)

    def moments(self, s: Node, t: Node, n: int) -> list[float]:
        """In closed form where there is one."""
        if self.variable != "log-snr" or self.log_scale is not None or not math.isfinite(t.lam - s.lam):
            return super().moments(s, t, n)
        c = (1 + self.eta**2) * (t.lam - s.lam)
        return [t.alpha * c * math.factorial(k) * phi(k + 1, -c) for k in range(n)]

    def _bh1(self, s: Node, t: Node) -> float:
        c = (1 + self.eta**2) * (t.lam - s.lam)
        return 1 / phi(1, -c)


@dataclass(frozen=True)
class NoisePart(LinearPart):
    """Noise prediction."""

    def factor(self, s: Node, t: Node) -> float:
        """Linear factor L(t, s)."""
        return float(t.alpha / s.alpha)

    def std(self, s: Node, t: Node) -> float:
        """Standard deviation of the noise between s and t."""
        if not self.eta:  # the flow may run towards the noise, too
            return 0.0
        return float(self.eta * t.alpha * s.noise_level * math.sqrt(-math.expm1(2 * (s.lam - t.lam))))

    def accumulated(self, s: Node, t: Node, lam: Values) -> Values:
        """The kernel's integral from s to lam."""
        return (1 + self.eta**2) * t.alpha * s.noise_level * np.expm1(s.lam - lam)

    def moments(self, s: Node, t: Node, n: int) -> list[float]:
        """In closed form where there is one."""
        h = t.lam - s.lam
        if self.variable == "noise-level":
            return [float(self.accumulated(s, t, t.lam)) / (k + 1) for k in range(n)]
        if self.variable != "log-snr" or not math.isfinite(h):
            return super().moments(s, t, n)
        return [-(1 + self.eta**2) * t.sigma * h * math.factorial(k) * phi(k + 1, h) for k in range(n)]

    def _bh1(self, s: Node, t: Node) -> float:
        return 1 / phi(1, t.lam - s.lam)


@dataclass(frozen=True)
class VPart(LinearPart):
    r"""v-prediction of data with the standard deviation `sigma_data`, in the angle, the signal's share or log-SNR.

    Near pure noise v is $-\sigma D/\sigma_d$, and where a network's estimate of the noise is off by $\delta$, that of
    the data is off by $\delta\,\sigma/\alpha$, without bound. So with `no_signal_above` $s_0$ what is interpolated is
    $v/(\rho g)$, $g^2 = 1 + (\sigma/(\alpha s_0))^2$, and g goes into the kernel: above $s_0$ that integrates $\delta$
    over the logarithm of the noise level, and no step multiplies it by more than its length there.
    """

    def _growth(self, lam: Values) -> Values:
        """The factor g where half the log-SNR is lam; 1 at infinity, where there is no other value to go with."""
        if math.isinf(self.no_signal_above):
            return np.ones_like(lam)
        return np.where(np.isneginf(lam), 1.0, np.hypot(1.0, np.exp(-lam) / self.no_signal_above))

    def _cosine(self, node: Node) -> float:
        return math.cos(angle(self.sigma_data).of(node))

    def _cosines(self, s: Node, t: Node) -> float:
        return self._cosine(s) / self._cosine(t)

    def _rho(self, node: Node) -> float:
        return math.hypot(node.alpha * self.sigma_data, node.sigma)

    def factor(self, s: Node, t: Node) -> float:
        """Linear factor L(t, s)."""
        return self._rho(t) / self._rho(s) * self._cosines(s, t) ** self.eta**2

    def std(self, s: Node, t: Node) -> float:
        """Standard deviation of the noise between s and t."""
        return self._rho(t) * math.sqrt(max(1 - self._cosines(s, t) ** (2 * self.eta**2), 0.0))

    def scale(self, node: Node) -> float:
        """v / rho, the slope in the angle, in units of its growth."""
        return 1 / (self._rho(node) * float(self._growth(np.float64(node.lam))))

    def moments(self, s: Node, t: Node, n: int) -> list[float]:
        """By quadrature in the variable itself; from or to infinity, in the angle."""
        a = self.coordinate(s)
        b = self.coordinate(t)
        if not math.isfinite(b - a):
            growth = float(self._growth(np.float64(s.lam)))
            return [growth * m for m in replace(self, variable="angle").moments(s, t, n)]

        angles, slope = self._angles(a + POINTS * (b - a))
        cosines = np.cos(angles) / self._cosine(t)
        K = (1 + self.eta**2) * slope * cosines**self.eta**2
        return [self._rho(t) * (b - a) * float(np.sum(WEIGHTS * POINTS**k * K)) for k in range(n)]

    def _angles(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Angles at places in `variable`, and their derivative by it times the growth g."""
        if self.variable == "angle":
            return place, np.ones_like(place)
        if self.variable == "log-snr":
            angles = np.arctan(np.exp(-place) / self.sigma_data)
            return angles, -np.sin(2 * angles) / 2 * self._growth(place)

        level = self._linear_below * np.expm1(place)  # sigma / alpha
        slope = self.sigma_data * (self._linear_below + level) / (self.sigma_data**2 + level**2)
        return np.arctan(level / self.sigma_data), slope * self._growth(-np.log(level))

    def accumulated(self, s: Node, t: Node, lam: Values) -> Values:
        """Not needed: the moments are in closed form."""
        raise NotImplementedError


@dataclass(frozen=True)
class RectifiedPart(LinearPart):
    r"""The flow of the straight path $x/(\alpha + \sigma) = (1-w)D + w\epsilon$, without noise."""

    def factor(self, s: Node, t: Node) -> float:
        """Linear factor L(t, s)."""
        return float((t.alpha + t.sigma) / (s.alpha + s.sigma))

    def std(self, s: Node, t: Node) -> float:
        """Zero: no noise."""
        return 0.0

    def moments(self, s: Node, t: Node, n: int) -> list[float]:
        """In closed form: the kernel is constant in w."""
        whole = (t.alpha + t.sigma) * (self.coordinate(t) - self.coordinate(s))
        return [whole / (k + 1) for k in range(n)]

    def accumulated(self, s: Node, t: Node, lam: Values) -> Values:
        """Not needed: the moments are in closed form."""
        raise NotImplementedError


PARTS: dict[str, type[LinearPart]] = {
    "data": DataPart,
    "noise": NoisePart,
    "v": VPart,
    "rectified": RectifiedPart,
}
