"""What the tests of matrix share."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.integrate import quad_vec

import sgm_sde as sg

CRITICAL = sg.CLD()
UNDER = sg.CLD(mass=1.0, friction=0.5, beta_min=6.0)
OVER = sg.CLD(beta_min=0.5, beta_max=8.0, friction=2.0)
QUADRATIC = sg.grids.Quadratic()


A, D = np.array([[-0.5, 0.8], [-1.2, -0.7]]), np.array([[0.6, 0.2], [0.1, 0.9]])


P, SIGMA_0 = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([[0.3, 0.1], [0.1, 0.2]])


COUPLED = sg.processes.MatrixSDE.from_rate(
    A, D, prior_covariance=P, initial_covariance=SIGMA_0, beta_min=0.5, beta_max=2.0, T=2.0, eps=0.01
)  # everything couples with everything: whatever is transposed or left out shows


def rate_between(s: float, t: float) -> float:
    """The integral of beta = 0.5 + 1.5 t from s to t."""
    return 0.5 * (t - s) + 0.75 * (t * t - s * s)


def moved(M: np.ndarray, Q: np.ndarray, B: float) -> tuple[np.ndarray, np.ndarray]:
    """Phi and the covariance of dz = M z du + (a root of Q) dw over u from 0 to B."""
    N = quad_vec(lambda u: scipy.linalg.expm(M * u) @ Q @ scipy.linalg.expm(M.T * u), 0, B, epsrel=1e-12)[0]
    return scipy.linalg.expm(M * B), N


def law(sde: sg.processes.MatrixSDE, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Factors on the data and covariance of the state of COUPLED given the data."""
    phi, N = moved(A, D @ D.T, rate_between(0, t))
    return phi[:, 0], phi @ SIGMA_0 @ phi.T + N
