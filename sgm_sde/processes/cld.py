"""Critically damped Langevin diffusion: data coupled to a velocity, and noise in the velocity alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.checks import (
    FAR,
    described,
    instance_of,
    number,
    require_floating,
    require_function,
    settle,
)
from sgm_sde._utils.shapes import Time, as_time, flat
from sgm_sde.engine.matrix import Matrix
from sgm_sde.engine.quadrature import gauss_legendre
from sgm_sde.processes.kinds import has_matrix_marginal
from sgm_sde.processes.matrix import EARLIEST, MatrixSDE, RateMatrixSDE, double
from sgm_sde.processes.vp import VPSDE

REACH = 16.0  # up to so many e-foldings of the fastest mode, quadrature with 16 Gauss points is exact to 1e-15
POINTS, WEIGHTS = gauss_legendre(16)  # on [0, 1]


@dataclass(frozen=True)
class CLD(RateMatrixSDE):
    r"""Critically damped Langevin diffusion, and its over- and underdamped kin.

    $$ dx = \beta M^{-1} v\,dt, \qquad dv = -\beta x\,dt - \beta\Gamma M^{-1} v\,dt + \sqrt{2\Gamma\beta}\,dw $$

    on states z = (x, v) of shape (B, 2, *): `position(z)` is the data's block, `velocity(z)` the other. The velocity
    starts from $N(0, \gamma M)$, the prior is $N(0, 1) \times N(0, M)$. A network need only know the score of v.

    With $m = 1/M$, $a = \Gamma m/2$, $w^2 = a^2 - m$ and $S(B) = e^{-aB}\sinh(wB)/w$, the kernel over the integrated
    rate B has, in a form that keeps its digits however short the time,

    $$ \Phi = \begin{pmatrix} C + aS & mS \\ -S & C - aS \end{pmatrix}, \quad C = e^{-aB}\cosh wB, \qquad
       N_{xx} = 2\Gamma m^2\!\int_0^B\! S^2, \quad N_{xv} = \Gamma m S^2, \quad
       N_{vv} = M(1 - \Phi_{vv}^2) - S^2 $$

    Args:
        mass: M.
        friction: Gamma; the critical one, 2 sqrt(M), if not given. More is overdamped, less underdamped.
        beta_min: rate at t = 0.
        beta_max: rate at t = 1; that at t = 0 if not given.
        gamma: variance of the initial velocity in units of M.
        T: end of the forward time.
        eps: default end of sampling.

    Raises:
        ValueError: unless mass, friction, rates and gamma are positive, and 0 <= eps < T.

    Source: Dockhorn et al., 2022, arXiv:2112.07068.

    Examples:
        >>> sde = CLD()
        >>> sde.friction, sde.damping
        (1.0, 'critical')
        >>> mean, covariance = sde.marginal(torch.ones(1, 3), 1e-3)
        >>> mean.shape, covariance.shape
        (torch.Size([1, 2, 3]), torch.Size([2, 2]))
    """

    mass: float = 0.25
    friction: float = None  # type: ignore[assignment]  # a float once constructed
    beta_min: float = 4.0
    beta_max: float = None  # type: ignore[assignment]
    gamma: float = 0.04
    T: float = 1.0
    eps: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("mass", "gamma"):
            settle(self, **{name: number(name, getattr(self, name), least=1 / FAR, most=FAR)})
        if self.friction is None:
            object.__setattr__(self, "friction", 2 * math.sqrt(self.mass))
        if self.beta_max is None:
            object.__setattr__(self, "beta_max", self.beta_min)
        settle(self, friction=number("friction", self.friction, least=1e-12, most=FAR))
        super().__post_init__()

    @property
    def _rate(self) -> VPSDE:
        return VPSDE(self.beta_min, self.beta_max, self.T, self.eps)

    @property
    def damping(self) -> str:
        """ "critical", "over" or "under"."""
        ratio = self.friction / (2 * math.sqrt(self.mass))
        return "critical" if math.isclose(ratio, 1, rel_tol=1e-12) else "over" if ratio > 1 else "under"

    @property
    def A(self) -> Matrix:  # type: ignore[override]
        """Drift matrix at rate 1."""
        return Matrix(((0.0, 1 / self.mass), (-1.0, -self.friction / self.mass)))

    @property
    def D(self) -> Matrix:  # type: ignore[override]
        """Diffusion matrix at rate 1."""
        return Matrix(((0.0, 0.0), (0.0, math.sqrt(2 * self.friction))))

    @property
    def prior_covariance(self) -> Matrix:  # type: ignore[override]
        """diag(1, M)."""
        return Matrix(((1.0, 0.0), (0.0, self.mass)))

    @property
    def initial_covariance(self) -> Matrix:  # type: ignore[override]
        """diag(0, gamma M)."""
        return Matrix(((0.0, 0.0), (0.0, self.gamma * self.mass)))

    def beta(self, t: Time) -> Tensor:
        """Rate beta(t); returns the shape of `t`."""
        return self._rate.beta(t)

    def integrated_beta(self, t: Time) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        return self._rate.integrated_beta(t)

    def velocity(self, z: Tensor) -> Tensor:
        """Block 1 of a state z (B, 2, *): (B, *)."""
        return self.require_state(z)[:, 1]

    @property
    def _m(self) -> float:
        return 1 / self.mass

    @property
    def _a(self) -> float:
        return self.friction * self._m / 2

    def _modes(self, B: Tensor) -> tuple[Tensor, Tensor]:
        """(C, S): e^{-aB} cosh(wB) and e^{-aB} sinh(wB) / w."""
        m = self._m
        a = self._a
        w = math.sqrt(abs(a * a - m)) if self.damping != "critical" else 0.0
        if w == 0:
            decay = (-a * B).exp()
            return decay, decay * B
        if self.damping == "under":
            decay = (-a * B).exp()
            return decay * (w * B).cos(), decay * (w * B).sin() / w

        # e^{-(a - w)B} (1 +- e^{-2wB}) / 2, where a - w = m / (a + w) does not cancel
        slow = (-m / (a + w) * B).exp()
        lost = torch.expm1(-2 * w * B)
        return slow * (1 + lost / 2), slow * -lost / (2 * w)

    def transition_of_rate(self, dB: Tensor) -> tuple[Tensor, Tensor]:
        """Phi and covariance (*, 2, 2) over an integrated rate dB (*)."""
        m = self._m
        a = self._a
        B = double(dB)
        C, S = self._modes(B)

        phi_xx = C + a * S
        phi_vv = C - a * S
        phi = _matrices(phi_xx, m * S, -S, phi_vv)

        N_xx = self._position_variance(B, C, S)
        N_xv = self.friction * m * S.square()
        N_vv = self._velocity_variance(B, C, S)
        N = _matrices(N_xx, N_xv, N_xv, N_vv)
        return phi.to(dB.dtype), N.to(dB.dtype)

    def _velocity_variance(self, B: Tensor, C: Tensor, S: Tensor) -> Tensor:
        """N_vv, from 1 - phi_vv as the sum of 1 - e^{-aB} and a rest, neither of which cancels."""
        a = self._a
        decay = (-a * B).exp()
        lost = -torch.expm1(-a * B) - ((C - decay) - a * S)
        phi_vv = C - a * S
        return self.mass * lost * (1 + phi_vv) - S.square()

    def _position_variance(self, B: Tensor, C: Tensor, S: Tensor) -> Tensor:
        """N_xx: its integral by quadrature as long as the closed form cancels, then that."""
        m = self._m
        a = self._a
        phi_xx = C + a * S
        points = torch.tensor(POINTS, dtype=B.dtype, device=B.device)
        weights = torch.tensor(WEIGHTS, dtype=B.dtype, device=B.device)

        _, inner = self._modes(B[..., None] * points)
        mean_square = (inner.square() * weights).sum(-1)  # of S on [0, B]
        integrated = 2 * self.friction * m**2 * B * mean_square
        closed = 1 - phi_xx.square() - m * S.square()

        fastest = a + math.sqrt(max(a * a - m, 0.0)) if self.damping != "under" else math.sqrt(m)
        return torch.where(2 * fastest * B < REACH, integrated, closed)


def _matrices(xx: Tensor, xv: Tensor, vx: Tensor, vv: Tensor) -> Tensor:
    """Matrices (*, 2, 2) of entries (*)."""
    return torch.stack([xx, xv, vx, vv], -1).reshape(*xx.shape, 2, 2)


def hybrid_score_matching(
    predict: Callable[..., Tensor], sde: MatrixSDE, x0: Tensor, t: Tensor, noise: Tensor, **kwargs: object
) -> Tensor:
    r"""The hybrid score matching loss of each sample, (B,): mean square error of the last block's noise.

    $$ \ell = \tfrac1d\,\lVert \epsilon_v - \hat\epsilon_v(\mu_t x_0 + L_t\epsilon,\ t) \rVert^2 $$

    The initial velocity is integrated out: the target is the noise of the kernel given the data alone, whose weight
    $L_{vv}^{-2}$ in the score stays finite where that given (x_0, v_0) does not.

    Args:
        predict: `predict(z, t, **kwargs)` with z (B, k, *) and t (B,); the noise of the last block (B, *), such as
            the network itself, or `lambda z, t: score.output(z, t)[:, -1]` for `from_velocity_noise(net, mixed=...)`.
        sde: the process.
        x0: data (B, *).
        t: times (B,), in (0, T].
        noise: standard normal (B, k, *).
        kwargs: passed on.

    Raises:
        TypeError: for a process without a matrix.
        ValueError: for a prediction that does not have the shape of the data.

    Source: Dockhorn et al., 2022, arXiv:2112.07068.

    Examples:
        >>> x0, noise = torch.zeros(3, 4), torch.ones(3, 2, 4)
        >>> hybrid_score_matching(lambda z, t: 0 * z[:, 1], CLD(), x0, torch.full((3,), 0.5), noise)
        tensor([1., 1., 1.])
    """
    if not has_matrix_marginal(sde):
        raise TypeError(f"this loss is for a process with a matrix, such as CLD(), got {described(sde)}")
    require_function("predict", predict, "of (z, t)")
    require_floating("x0", x0)
    earliest = EARLIEST * sde.T
    if not bool((as_time(t) >= earliest).all()):
        raise ValueError(f"t must lie in (0, T], at {earliest:g} or later, got {t}")

    z = sde.perturb(x0, t, noise)
    predicted = predict(z, t, **kwargs)
    instance_of("the prediction", predicted, Tensor, "a tensor")
    if predicted.shape != x0.shape:
        raise ValueError(f"the prediction has shape {tuple(predicted.shape)} for data of shape {tuple(x0.shape)}")
    return flat((predicted - noise[:, -1]).square()).mean(1)
