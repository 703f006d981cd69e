"""Linear processes with a matrix: the state has several blocks, such as position and velocity."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import require_floating
from sgm_sde._utils.shapes import Time, as_time, cpu_float64, expand, flat
from sgm_sde.engine.matrix import Matrix
from sgm_sde.engine.node import Coefficient
from sgm_sde.engine.program import MATRIX_PREDICTIONS
from sgm_sde.engine.quadrature import gauss_legendre
from sgm_sde.engine.times import require_inside
from sgm_sde.processes.base import SDE, MarginalKind, ProcessNode
from sgm_sde.processes.linear import in_order, invert_log_snr
from sgm_sde.processes.vp import VPSDE

MatrixOfTime = Callable[[float], npt.ArrayLike]
EARLIEST = 1e-7  # of T: rotations of the noise are known from here on
RTOL = 1e-11  # of ODEs for coefficients: orders of solvers are measured down to errors of 1e-9
TAYLOR_TERMS = 20  # of exp(A) where |A| <= 1: the next is 1/21! = 2e-20


def apply(matrix: Tensor | Coefficient, z: Tensor) -> Tensor:
    """A matrix (k, k), or one per sample (B, k, k), times the blocks of z (B, k, *), in its dtype; or a number times z.

    Examples:
        >>> apply(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[[1.0], [2.0]]])).flatten()
        tensor([ 2., -1.])
    """
    if isinstance(matrix, float):
        return matrix * z
    if isinstance(matrix, Matrix):
        matrix = cpu_float64(matrix.array)
    if matrix.ndim > 3:
        raise ValueError(f"a process with matrices has one time for each sample, got times of {matrix.ndim - 2} axes")
    wide = matrix.to(z).reshape(*matrix.shape[-3:], *[1] * (z.ndim - 2))
    return (wide * z[:, None]).sum(2)  # elementwise: matrix products round under autocast and TF32


def double(t: Tensor) -> Tensor:
    """t in float64, where its device has it."""
    return t if t.device.type == "mps" else t.double()


def require_covariance(name: str, matrix: Matrix | npt.ArrayLike, *, definite: bool = True) -> Matrix:
    """`matrix` as a `Matrix`.

    Raises:
        ValueError: unless it is finite, symmetric and positive definite (or semi-definite).
    """
    array = np.asarray(matrix.array if isinstance(matrix, Matrix) else matrix, dtype=np.float64)
    square = array.ndim == 2 and array.shape[0] == array.shape[1]
    if not square or not np.isfinite(array).all():
        raise ValueError(f"the {name} must be a finite square matrix, got {array.tolist()}")
    if not np.allclose(array, array.T):
        raise ValueError(f"the {name} must be symmetric, got {array.tolist()}")

    least = float(np.linalg.eigvalsh(array).min())
    if least < 0 or (definite and least <= 0):
        kind = "positive definite" if definite else "positive semi-definite"
        raise ValueError(f"the {name} must be {kind}, got {array.tolist()} with the eigenvalue {least:.6g}")
    return Matrix.of(array)


class MatrixNode(ProcessNode):
    """A time of a linear process with blocks, and its matrices there, in double precision on the host.

    Attributes:
        F: drift matrix.
        g: diffusion matrix G.
        phi: transition matrix from 0.
        N: covariance of the noise added from 0.
        cov: covariance of the state given the data.
        L: its Cholesky factor.
        mu: factors (k,) on the data in the state's mean.
    """

    sde: MatrixSDE
    _g: Matrix
    advice = "its kernel is made of matrices. Use EulerMaruyama, RungeKutta, SSCS or GDDIM, which need no more."

    def __init__(self, sde: MatrixSDE, t: float, F: np.ndarray, G: np.ndarray, phi: np.ndarray, N: np.ndarray) -> None:
        super().__init__(sde, t, Matrix.of(G))
        self.F = F
        self.phi = phi
        self.N = N
        self.mu = phi[:, 0]
        self.cov = phi @ sde.initial_covariance.array @ phi.T + N

    @property
    def g(self) -> Matrix:
        """Diffusion matrix G."""
        return self._g

    @cached_property
    def L(self) -> np.ndarray:
        """Cholesky factor of the covariance."""
        return cholesky(self.cov, self.t)

    @cached_property
    def observation(self) -> np.ndarray:
        """Weights (k,) of the blocks in the sufficient statistic of the data, as in `MatrixSDE.observation`."""
        weights = np.linalg.solve(self.cov, self.mu)
        return np.asarray(weights / (self.mu @ weights))

    @property
    def observation_noise(self) -> float:
        """Standard deviation of the noise in it."""
        w = self.observation
        return math.sqrt(w @ self.cov @ w)

    @cached_property
    def R(self) -> np.ndarray:
        """The factor of the covariance that the probability flow of one data point carries along."""
        return np.asarray(self.sde.rotation([self.t])[0])

    def transport(self, to: float, pull: float = 0.0, noise: float = 0.0) -> tuple[Matrix, np.ndarray]:
        """`MatrixSDE.propagate` from here to another time."""
        phi, N = self.sde.propagate(self.t, to, pull, noise)
        return Matrix.of(phi), N

    def noise_until(self, to: float) -> Matrix:
        r"""The integral of $GG^\top$ between here and another time, positive."""
        points, weights = gauss_legendre(16)
        times = to + points * (self.t - to)
        G = self.sde.g(torch.from_numpy(times)).numpy()
        mean = np.tensordot(weights, G @ G.swapaxes(-1, -2), 1)
        return Matrix.of(abs(self.t - to) * mean)

    def convert(
        self, source: str, target: str, eta: float = 0.0, sigma_data: float = 1.0
    ) -> tuple[Coefficient, Coefficient]:
        r"""Coefficients $(c_x, c_r)$ with target prediction $= c_x z + c_r r$, for a network output r.

        Through the noise: $z = \mu D + L\epsilon$, score $-L^{-\top}\epsilon$. `"data"` is all of $E[z_0 \mid z]$,
        `"data_x"` an output of which block 0 alone counts, `"noise_v"` and `"score_v"` those of which the last does,
        and `"gddim-noise"` is $-R^\top s$.

        Raises:
            ValueError: for an unknown name.
        """
        self.sde.require_predictions(source, target)
        if source == target and target != "drift":
            return 0.0, 1.0
        c_x, c_r = self.converted(source, target, eta)
        return Matrix.of(c_x), Matrix.of(c_r)

    def converted(self, source: str, target: str, eta: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """`convert` as arrays (k, k), of two predictions that differ, or the drift."""
        e_x, e_r = self._noise_from(source)
        p_x, p_e = self._from_noise(target, eta)
        return p_x + p_e @ e_x, p_e @ e_r

    def _from_noise(self, target: str, eta: float) -> tuple[np.ndarray, np.ndarray]:
        """(p_x, p_e) with target = p_x z + p_e eps."""
        k = len(self.mu)
        zero = np.zeros((k, k))
        if target == "noise":
            return zero, np.eye(k)

        score = -np.linalg.inv(self.L).T
        if target == "score":
            return zero, score
        if target == "gddim-noise":
            return zero, -self.R.T @ score
        if target == "drift":
            G = self.g.array
            share = (1 + eta**2) / 2
            return self.F, -share * G @ G.T @ score
        if target == "data":
            back = np.linalg.inv(self.phi)
            return back, back @ self.N @ score
        raise ValueError(f"no solver needs the prediction {target!r} on {self.sde!r}")

    def _noise_from(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        """(e_x, e_r) with eps = e_x z + e_r r for an output r."""
        k = len(self.mu)
        zero = np.zeros((k, k))
        if source == "noise":
            return zero, np.eye(k)
        if source == "score":
            return zero, -self.L.T

        if source in ("data", "data_x"):
            inverse = np.linalg.inv(self.L)
            block_0 = np.eye(k)[0]
            return inverse, np.outer(-inverse @ self.mu, block_0)

        if source == "noise_v":
            return self._noise_from_last(1.0)
        if source == "score_v":
            return self._noise_from_last(-self.L[-1, -1])
        raise ValueError(f"a network cannot predict {source!r} on {self.sde!r}")

    def _noise_from_last(self, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """`_noise_from` an output whose last block is the last block's noise over `scale`."""
        k = len(self.mu)
        first = self.L[:, :-1]
        last = self.L[:, -1]
        e_x = np.zeros((k, k))
        e_r = np.zeros((k, k))

        # z = mu D + first eps_first + last eps_last are k equations for D and eps_first; D is not asked for.
        solution = np.linalg.inv(np.column_stack([self.mu, first]))
        e_x[:-1] = solution[1:]
        e_r[:-1, -1] = scale * (-solution @ last)[1:]
        e_r[-1, -1] = scale
        return e_x, e_r


def cholesky(covariance: np.ndarray, t: float) -> np.ndarray:
    """Cholesky factor.

    Raises:
        ValueError: for a covariance that is not positive definite, with the time.
    """
    try:
        factor: np.ndarray = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the covariance at t={t:.6g} is not positive definite: {covariance.tolist()}; start above it"
        ) from None
    return factor


class MatrixSDE(SDE):
    r"""A process linear in a state of k blocks, $dz = F(t)\,z\,dt + G(t)\,dw$, with matrices for coefficients.

    States are tensors (B, k, *): data is block 0, `position(z)`, and what is added to it the others. The matrices act
    on axis 1. With $z_0 = (x_0, 0, \dots) + N(0, \Sigma_0)$,

    $$ z_t \mid x_0 \sim N(\mu_t x_0,\ \Sigma_t), \qquad \Phi' = F\Phi, \qquad \mu_t = \Phi e_0, \qquad
       \Sigma' = F\Sigma + \Sigma F^\top + GG^\top $$

    A process of your own gives `drift_matrix`, `g`, `prior_covariance`, `initial_covariance`, T and eps, or comes from
    `from_functions` (Phi and Sigma are integrated by SciPy) or `from_rate` (by matrix exponentials).

    Attributes:
        prior_covariance: (k, k) of the prior at T.
        initial_covariance: (k, k) of the state at t = 0 given the data.

    Raises:
        ValueError: unless 0 <= eps < T, and for covariances that are none.

    Source: Dockhorn et al., 2022, arXiv:2112.07068; Zhang et al., 2022, arXiv:2206.05564.

    Examples:
        >>> sde = MatrixSDE.from_functions(
        ...     lambda t: [[0, 4], [-4, -8]], lambda t: [[0, 0], [0, 4**0.5]],
        ...     prior_covariance=np.diag([1, 0.25]), initial_covariance=np.diag([0, 0.01]))
        >>> mean, covariance = sde.marginal(torch.ones(3, 5), 0.5)
        >>> mean.shape, covariance.shape
        (torch.Size([3, 2, 5]), torch.Size([2, 2]))
    """

    marginal_kind: ClassVar[MarginalKind] = "matrix"
    default_grid: ClassVar[str] = "quadratic"
    prior_covariance: Matrix
    initial_covariance: Matrix

    @staticmethod
    def from_functions(
        F: MatrixOfTime,
        G: MatrixOfTime,
        *,
        prior_covariance: Matrix | npt.ArrayLike,
        initial_covariance: Matrix | npt.ArrayLike,
        T: float = 1.0,
        eps: float = 1e-3,
    ) -> MatrixSDE:
        """A process from any F(t) and G(t), functions of a number that return (k, k) arrays.

        Phi and Sigma are integrated by SciPy's DOP853 in float64, pair of times by pair.

        Args:
            F: drift matrix.
            G: diffusion matrix.
            prior_covariance: (k, k) of the prior at T.
            initial_covariance: (k, k) of what surrounds the data at t = 0, zero in its first row and column.
            T: end of the forward time.
            eps: default end of sampling.

        Raises:
            ValueError: for matrices of the wrong shape, or covariances that are not positive (semi-)definite.

        Examples:
            >>> sde = MatrixSDE.from_functions(
            ...     lambda t: [[0, 4], [-4, -8]], lambda t: [[0, 0], [0, 4**0.5]],
            ...     prior_covariance=np.diag([1, 0.25]), initial_covariance=np.diag([0, 0.01]))
            >>> sde.transition(0.0, 0.5)[0].shape
            torch.Size([2, 2])
        """
        prior = require_covariance("prior covariance", prior_covariance)
        initial = require_covariance("initial covariance", initial_covariance, definite=False)
        return _IntegratedSDE(F, G, prior, initial, T, eps)

    @staticmethod
    def from_rate(
        A: npt.ArrayLike,
        D: npt.ArrayLike,
        *,
        prior_covariance: Matrix | npt.ArrayLike,
        initial_covariance: Matrix | npt.ArrayLike,
        beta_min: float = 1.0,
        beta_max: float | None = None,
        T: float = 1.0,
        eps: float = 1e-3,
    ) -> MatrixSDE:
        r"""A process with $F = \beta(t) A$ and $GG^\top = \beta(t) DD^\top$, beta linear in time.

        Args:
            A: drift matrix (k, k) at rate 1.
            D: diffusion matrix (k, k) at rate 1.
            prior_covariance: (k, k) of the prior at T.
            initial_covariance: (k, k) of what surrounds the data at t = 0.
            beta_min: rate at t = 0.
            beta_max: rate at t = 1; that at 0 if not given.
            T: end of the forward time.
            eps: default end of sampling.

        Raises:
            ValueError: as `from_functions`.

        Examples:
            >>> third = MatrixSDE.from_rate(
            ...     [[0, 1, 0], [-1, 0, 2], [0, -2, -3]], np.diag([0, 0, 6**0.5]),
            ...     prior_covariance=np.eye(3), initial_covariance=np.diag([0, 0.04, 0.04]), beta_min=5)
            >>> third.prior_sample((2, 3, 8, 8), seed=0).shape
            torch.Size([2, 3, 8, 8])
        """
        prior = require_covariance("prior covariance", prior_covariance)
        initial = require_covariance("initial covariance", initial_covariance, definite=False)
        rate = VPSDE(beta_min, beta_min if beta_max is None else beta_max, T, eps)
        return _RateSDE(Matrix.of(A), Matrix.of(D), prior, initial, rate, T, eps)

    def __post_init__(self) -> None:
        super().__post_init__()
        k = self.blocks
        t = cpu_float64(self.eps)
        shapes = {
            "drift matrix": tuple(self.drift_matrix(t).shape),
            "diffusion matrix": tuple(self.g(t).shape),
            "initial covariance": self.initial_covariance.array.shape,
        }
        for name, shape in shapes.items():
            if shape != (k, k):
                raise ValueError(f"the {name} has the shape {shape}, the prior covariance ({k}, {k})")

    @abstractmethod
    def drift_matrix(self, t: Time) -> Tensor:
        """F(t): of shape (k, k) for t (), (B, k, k) for t (B,)."""

    @abstractmethod
    def g(self, t: Time) -> Tensor:
        """Diffusion matrix G(t): of shape (k, k) for t (), (B, k, k) for t (B,)."""

    @property
    def blocks(self) -> int:
        """Number k of blocks."""
        return len(self.prior_covariance.rows)

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior's block 0."""
        return math.sqrt(self.prior_covariance.rows[0][0])

    def position(self, z: Tensor) -> Tensor:
        """Block 0 of a state z (B, k, *): the data's, (B, *)."""
        return self.require_state(z)[:, 0]

    def require_state(self, z: Tensor) -> Tensor:
        """z itself, if it is a state (B, k, *).

        Raises:
            TypeError: for anything but a floating tensor.
            ValueError: for another number of blocks.
        """
        require_floating("the state", z, f"(B, {self.blocks}, *)")
        k = self.blocks
        if z.ndim < 2 or z.shape[1] != k:
            raise ValueError(f"a state of {self!r} has {k} blocks on axis 1, (B, {k}, *): got {tuple(z.shape)}")
        return z

    def f(self, x: Tensor, t: Time) -> Tensor:
        """Drift at state `x` (B, k, *) and time `t`, () or (B,); returns (B, k, *)."""
        return apply(self.drift_matrix(t), self.require_state(x))

    def diffusion(self, v: Tensor, t: Time) -> Tensor:
        r"""$GG^\top$ times v (B, k, *)."""
        G = self.g(t)
        return apply(G @ G.mT, self.require_state(v))

    def propagate(self, s: float, t: float, pull: float = 0.0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        r"""Phi and covariance of $dz = (F + c\,GG^\top P^{-1})\,z\,dt + \eta\,G\,dw$ from s to t, either way in time.

        P is the prior's covariance, c `pull`, eta `noise`. By SciPy's DOP853 at 1e-11, unless a process knows better.
        """
        return _integrated(self, s, t, pull, noise)

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        r"""Phi and covariance (\*, k, k) of the kernel $z_t \mid z_s \sim N(\Phi z_s, \Sigma)$ for $s \le t$.

        Raises:
            ValueError: if `s` is after `t` anywhere.
        """
        s, t = in_order(s, t)
        s = s + 0 * t  # each in the shape and dtype of both
        t = t + 0 * s
        pairs = zip(s.reshape(-1).tolist(), t.reshape(-1).tolist(), strict=True)
        transitions = [np.stack(self.propagate(a, b)) for a, b in pairs]

        k = self.blocks
        both = torch.from_numpy(np.stack(transitions, 1)).to(t)
        phi, N = both.reshape(2, *t.shape, k, k)
        return phi, N

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean (B, k, *) and covariance (k, k) or (B, k, k) of the state given the data x0 (B, *).

        Raises:
            TypeError: for data that are no floating-point tensor.
            ValueError: for times outside [0, T], where they are on the CPU.
        """
        require_floating("x0", x0)
        require_inside(self, t)
        mu, covariance = self.kernel(t)
        mean = torch.stack([expand(m, x0) * x0 for m in mu.unbind(-1)], 1)
        return mean, covariance

    def kernel(self, t: Time) -> tuple[Tensor, Tensor]:
        """Factors mu (*, k) on the data and covariance (*, k, k) of the state given the data."""
        t = as_time(t)
        phi, N = self.transition(torch.zeros_like(t), t)
        mu = phi[..., 0]
        covariance = phi @ self.initial_covariance_like(phi) @ phi.mT + N
        return mu, covariance

    def initial_covariance_like(self, x: Tensor) -> Tensor:
        """`initial_covariance` on the device and in the dtype of x."""
        return torch.tensor(self.initial_covariance.rows, dtype=x.dtype, device=x.device)

    def perturb(self, x0: Tensor, t: Time, z: Tensor) -> Tensor:
        """The state (B, k, *) at t for data x0 (B, *) and standard normal noise z (B, k, *).

        Raises:
            ValueError: for noise of another shape than the state's.
        """
        mean, covariance = self.marginal(x0, t)
        if self.require_state(z).shape != mean.shape:
            raise ValueError(f"noise must have the shape {tuple(mean.shape)} of the state, got {tuple(z.shape)}")
        return mean + apply(torch.linalg.cholesky(covariance), z)

    def observation(self, t: Time) -> tuple[Tensor, Tensor]:
        r"""The sufficient statistic of the data in a state: its weights w (\*, k) and noise level s (\*).

        It is $y = w^\top z \sim N(x_0, s^2)$ with $w = s^2\,\Sigma^{-1}\mu$, $s^{-2} = \mu^\top\Sigma^{-1}\mu$.
        """
        mu, covariance = self.kernel(t)
        w = torch.linalg.solve(covariance, mu)
        precision = (mu * w).sum(-1)
        return w / precision[..., None], precision.rsqrt()

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio of `observation`, -2 log s; decreases with t."""
        t = as_time(t)
        known = t > 0  # at 0 the data is seen without noise
        _, noise_level = self.observation(double(torch.where(known, t, self.T)))
        log_snr = -2 * noise_level.log()
        return torch.where(known, log_snr.to(t.dtype), math.inf)

    def time(self, log_snr: Time) -> Tensor:
        """The time at which the log-SNR is the given one, by bisection; NaN outside of its range."""
        return invert_log_snr(self, as_time(log_snr))

    def prior_transform(self, z: Tensor, t: float | None = None) -> Tensor:
        """Turn standard normal noise (B, k, *) into prior samples; at an earlier t, into what surrounds data at 0."""
        if t is None or t == self.T:
            covariance = self.prior_covariance.array
        else:
            (node,) = self.nodes([t])
            covariance = node.cov
        L = np.linalg.cholesky(covariance)
        return apply(torch.from_numpy(L), self.require_state(z))

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the prior in nats per sample: (B, k, *) to (B,)."""
        L = np.linalg.cholesky(self.prior_covariance.array)
        inverse = torch.from_numpy(np.linalg.inv(L))
        y = flat(apply(inverse, self.require_state(x)))
        log_det = float(np.log(np.diag(L)).sum()) / self.blocks  # of L, per entry of the state
        log_density = -0.5 * y.square() - 0.5 * math.log(2 * math.pi) - log_det
        return log_density.sum(1)

    def rotation(self, times: npt.ArrayLike) -> np.ndarray:
        r"""R at times (n,), an array (n, k, k), with $RR^\top = \Sigma$ and $R' = (F + \tfrac12 GG^\top\Sigma^{-1})R$.

        The probability flow carries $\mu x_0 + R\epsilon$ along with epsilon constant.

        Raises:
            ValueError: for times below 1e-7 T.

        Source: Zhang et al., 2022, arXiv:2206.05564.
        """
        t = np.asarray(times, dtype=np.float64)
        if not (t.min() >= EARLIEST * self.T and t.max() <= self.T * (1 + 1e-9)):
            raise ValueError(
                f"the noise's rotation is known from {EARLIEST * self.T:g} to T={self.T}, not on [{t.min()}, {t.max()}]"
            )

        k = self.blocks
        R = _rotations(self, self._earlier(float(t.min())))(np.log(t)).T.reshape(-1, k, k)
        _, covariance = self.kernel(torch.from_numpy(t))
        L = np.linalg.cholesky(covariance.numpy())

        # Rounding has moved R off the roots of Sigma, which are L times orthogonal matrices: the nearest of these.
        u, _, v = np.linalg.svd(np.linalg.solve(L, R))
        return np.asarray(L @ u @ v)

    def _earlier(self, t: float) -> float:
        """A time not later than t: eps, or at earlier ones that over a power of two, down to the earliest.

        The covariance may be so near to singular at earlier times that its inverse is known to few digits.
        """
        earliest = EARLIEST * self.T
        eps = max(self.eps, earliest)
        halvings = max(0, math.ceil(math.log2(eps / t)))
        return max(eps * 2.0**-halvings, earliest)

    def carried(self, times: npt.ArrayLike, t: float) -> np.ndarray:
        """Phi(t, u) R(u) at times u from t on, (n, k, k)."""
        u = torch.from_numpy(np.asarray(times, dtype=np.float64))
        phi, _ = self.transition(cpu_float64(t), u)
        return np.asarray(np.linalg.solve(phi.numpy(), self.rotation(times)))

    def nodes(self, times: Sequence[float]) -> Sequence[MatrixNode]:
        """The host-side coefficients at each of the given times."""
        t = cpu_float64(times)
        F = self.drift_matrix(t)
        G = self.g(t)
        phi, N = self.transition(torch.zeros_like(t), t)
        arrays = [values.numpy() for values in (F, G, phi, N)]
        return [MatrixNode(self, *row) for row in zip(times, *arrays, strict=True)]

    def _coefficients(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Matrices of the drift, and the diffusion."""
        return [self.drift_matrix, self.g]

    def convert(self, source: str, target: str, x: Tensor, t: Tensor, out: Tensor, eta: float = 0.0) -> Tensor:
        """A prediction at x (B, k, *) and t (B,) from a network's output there; see `SDE.convert`."""
        self.require_predictions(source, target)
        if source == target and target != "drift":
            return out

        times, index = torch.unique(t, return_inverse=True)
        nodes = self.nodes(times.tolist())
        pairs = np.stack([node.converted(source, target, eta) for node in nodes], 1)
        c_x, c_r = torch.from_numpy(pairs).to(x)[:, index]
        return apply(c_x, x) + apply(c_r, out)

    def require_predictions(self, *names: str) -> None:
        """Raise ValueError for a name that is no prediction on a process with blocks.

        Raises:
            ValueError: for such a name.
        """
        for name in names:
            if name not in MATRIX_PREDICTIONS:
                raise ValueError(f"{name!r} is no prediction on {self!r}: {', '.join(MATRIX_PREDICTIONS)} are")

    def evaluated(self, source: str, target: str) -> str:
        """The network's own prediction: what it is converted to is a part of the table's coefficients."""
        return source


class RateMatrixSDE(MatrixSDE):
    r"""Processes with $F = \beta(t) A$ and $GG^\top = \beta(t) DD^\top$: functions of $B(t) = \int_0^t\beta$.

    Attributes:
        A: drift matrix at rate 1.
        D: diffusion matrix at rate 1.
    """

    A: Matrix
    D: Matrix

    @abstractmethod
    def beta(self, t: Time) -> Tensor:
        """Rate beta(t); returns the shape of `t`."""

    @abstractmethod
    def integrated_beta(self, t: Time) -> Tensor:
        """B(t), the integral of beta from 0 to t."""

    def _times(self, rate: Tensor, matrix: Matrix) -> Tensor:
        return rate[..., None, None] * torch.tensor(matrix.rows, dtype=rate.dtype, device=rate.device)

    def drift_matrix(self, t: Time) -> Tensor:
        """F(t) = beta(t) A."""
        return self._times(self.beta(t), self.A)

    def g(self, t: Time) -> Tensor:
        """G(t) = sqrt(beta(t)) D."""
        return self._times(self.beta(t).sqrt(), self.D)

    def propagate(self, s: float, t: float, pull: float = 0.0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """`MatrixSDE.propagate` in closed form, by matrix exponentials."""
        D = self.D.array
        Q = D @ D.T
        A = self.A.array + pull * Q @ np.linalg.inv(self.prior_covariance.array)
        dB = float(self.integrated_beta(t) - self.integrated_beta(s))

        forward = math.copysign(1, dB) * A  # back in time along A is forward along -A; noise is added either way
        phi, N = van_loan(torch.from_numpy(forward), torch.from_numpy(noise**2 * Q), cpu_float64(abs(dB)))
        return phi.numpy(), N.numpy()

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        r"""Phi and covariance (\*, k, k) of the kernel $z_t \mid z_s \sim N(\Phi z_s, \Sigma)$ for $s \le t$."""
        s, t = in_order(s, t)
        dB = double(self.integrated_beta(t)) - double(self.integrated_beta(s))
        phi, N = self.transition_of_rate(dB)
        return phi.to(t.dtype), N.to(t.dtype)

    def transition_of_rate(self, dB: Tensor) -> tuple[Tensor, Tensor]:
        """Phi and covariance (*, k, k) over an integrated rate dB (*)."""
        A = torch.tensor(self.A.rows, dtype=dB.dtype, device=dB.device)
        D = torch.tensor(self.D.rows, dtype=dB.dtype, device=dB.device)
        return van_loan(A, D @ D.mT, dB)


def van_loan(A: Tensor, Q: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    r"""$e^{AB}$ and $\int_0^B e^{Au} Q e^{A^\top u}\,du$ of shape (\*, k, k) for B (\*) of at least 0.

    By the exponential of one block matrix over a short B, doubled as often as it takes, which adds positive terms only.
    Its Taylor series keeps the relative precision of every entry, however small; torch's own does not.

    Source: Van Loan, 1978, doi:10.1109/TAC.1978.1101743.

    Examples:
        >>> phi, N = van_loan(torch.tensor([[-1.0]]), torch.tensor([[2.0]]), torch.tensor(3.0))
        >>> round(float(phi), 6), round(float(N), 6)
        (0.049787, 0.997521)
    """
    k = len(A)
    doublings = _doublings(A, B)
    short = B * 2.0**-doublings
    V = _taylor_exponential(_block_matrix(A, Q) * short[..., None, None])
    phi = V[..., :k, :k]
    N = V[..., :k, k:] @ phi.mT

    # Over twice the span, the noise of the first half is carried on by phi and that of the second is added.
    for _ in range(doublings):
        N = N + phi @ N @ phi.mT
        phi = phi @ phi
    return phi, (N + N.mT) / 2


def _block_matrix(A: Tensor, Q: Tensor) -> Tensor:
    top = torch.cat([A, Q], 1)
    bottom = torch.cat([torch.zeros_like(A), -A.mT], 1)
    return torch.cat([top, bottom])


def _doublings(A: Tensor, B: Tensor) -> int:
    """Number of halvings after which no row of A B sums to more than 1."""
    reach = float(B.abs().max()) * float(A.abs().sum(1).max()) if B.numel() else 0.0
    return max(0, math.ceil(math.log2(reach))) if reach > 0 else 0


def _taylor_exponential(M: Tensor) -> Tensor:
    """exp(M) for M (*, k, k) with row sums up to 1, by Horner's rule."""
    V = eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    for j in range(TAYLOR_TERMS, 0, -1):
        V = eye + M @ V / j
    return V


@dataclass(frozen=True)
class _RateSDE(RateMatrixSDE):
    """The process made by `from_rate`."""

    A: Matrix
    D: Matrix
    prior_covariance: Matrix
    initial_covariance: Matrix
    rate: VPSDE
    T: float
    eps: float

    def beta(self, t: Time) -> Tensor:
        """Rate beta(t); returns the shape of `t`."""
        return self.rate.beta(t)

    def integrated_beta(self, t: Time) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        return self.rate.integrated_beta(t)


@dataclass(frozen=True)
class _IntegratedSDE(MatrixSDE):
    """The process made by `from_functions`."""

    F: MatrixOfTime
    G: MatrixOfTime
    prior_covariance: Matrix
    initial_covariance: Matrix
    T: float
    eps: float

    @staticmethod
    def _at(fn: MatrixOfTime, t: Time) -> Tensor:
        t = as_time(t)
        matrices = [np.asarray(fn(s), dtype=np.float64) for s in t.reshape(-1).tolist()]
        values = torch.from_numpy(np.stack(matrices)).to(t)
        return values.reshape(*t.shape, *values.shape[1:])

    def drift_matrix(self, t: Time) -> Tensor:
        """Drift matrix F(t)."""
        return self._at(self.F, t)

    def g(self, t: Time) -> Tensor:
        """Diffusion matrix G(t)."""
        return self._at(self.G, t)


@cached(maxsize=4096)
def _integrated(sde: MatrixSDE, s: float, t: float, pull: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.integrate import solve_ivp

    k = sde.blocks
    slope = _moment_equations(sde, pull, math.copysign(noise**2, t - s))  # noise is added, either way in time
    start = np.stack([np.eye(k), np.zeros((k, k))])
    solution = solve_ivp(slope, (s, t), start.reshape(-1), method="DOP853", rtol=RTOL, atol=1e-15)
    end = solution.y[:, -1]
    phi, N = end.reshape(2, k, k)
    return phi, (N + N.T) / 2


def _moment_equations(
    sde: MatrixSDE, pull: float, noise_rate: float
) -> Callable[[float, npt.NDArray[np.float64]], np.ndarray]:
    r"""Time derivative of (Phi, N), flattened, with $F + c\,GG^\top P^{-1}$ for a drift and so many times $GG^\top$."""
    k = sde.blocks
    toward = pull * np.linalg.inv(sde.prior_covariance.array)

    def slope(u: float, y: npt.NDArray[np.float64]) -> np.ndarray:
        phi, N = y.reshape(2, k, k)
        F = sde.drift_matrix(u).numpy()
        G = sde.g(u).numpy()
        M = F + G @ G.T @ toward
        d_phi = M @ phi
        d_N = M @ N + N @ M.T + noise_rate * G @ G.T
        return np.stack([d_phi, d_N]).reshape(-1)

    return slope


@cached(maxsize=16)
def _rotations(sde: MatrixSDE, earliest: float) -> Callable[[npt.NDArray[np.float64]], np.ndarray]:
    """R as a function of log t, from the Cholesky factor at T back to the earliest time."""
    from scipy.integrate import solve_ivp

    slope = _rotation_equation(sde)
    span = (math.log(sde.T), math.log(earliest))
    (end,) = sde.nodes([sde.T])
    solution = solve_ivp(slope, span, end.L.reshape(-1), method="DOP853", rtol=RTOL, atol=1e-16, dense_output=True)
    function: Callable[[npt.NDArray[np.float64]], np.ndarray] = solution.sol
    return function


def _rotation_equation(sde: MatrixSDE) -> Callable[[float, npt.NDArray[np.float64]], np.ndarray]:
    """Derivative of R, flattened, by log t."""

    def slope(log_t: float, y: npt.NDArray[np.float64]) -> np.ndarray:
        t = math.exp(log_t)
        (node,) = sde.nodes([min(t, sde.T)])
        G = node.g.array
        M = node.F + 0.5 * G @ np.linalg.solve(node.cov, G).T
        R = y.reshape(sde.blocks, -1)
        return t * (M @ R).reshape(-1)

    return slope
