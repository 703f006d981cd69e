"""The posterior of an oracle given a measurement, in closed form: the answer to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, instance_of
from sgm_sde.inverse.operators import Measurement
from sgm_sde.scores.oracles import Gaussian, GaussianMixture, Mixture, Oracle


def posterior(oracle: Oracle, measurement: Measurement) -> Mixture:
    r"""The law of the data given a measurement, exactly: an oracle again, with score, density and samples.

    For components $N(m_k, C_k)$ of weight $w_k$:

    $$ K_k = C_k A^T (A C_k A^T + \sigma_y^2 I)^{-1}, \qquad N(m_k + K_k(y - A m_k),\ C_k - K_k A C_k), \qquad
       w_k \leftarrow w_k\,N(y; A m_k, A C_k A^T + \sigma_y^2 I) $$

    Args:
        oracle: `Gaussian`, `GaussianMixture` or a `Mixture` of Gaussians.
        measurement: one for all samples, without the B.

    Returns:
        a `Mixture` of Gaussians with the attributes `mean` and `covariance`.

    Raises:
        TypeError: for another oracle.
        ValueError: for a measurement of another shape, or one without noise of data that determine a part of it.

    Examples:
        >>> import sgm_sde as sg
        >>> data = sg.oracles.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
        >>> seen = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.tensor([1.0, 0.0]))
        >>> posterior(data, seen).mean
        tensor([1.0000, 0.8000], dtype=torch.float64)
    """
    if isinstance(oracle, Gaussian):
        oracle = Mixture([oracle], [1.0])
    elif isinstance(oracle, GaussianMixture):
        oracle = oracle.as_mixture()
    elif not isinstance(oracle, Mixture):
        raise TypeError(f"the posterior is known for Gaussians and their mixtures, got {described(oracle)}")
    instance_of("measurement", measurement, Measurement, "a Measurement")

    A, y = _matrix(measurement, oracle.event_shape)
    conditioned = []
    log_evidence = []
    for component in oracle.components:
        gaussian, log_p = _condition(component, A, y, measurement.std)
        conditioned.append(gaussian)
        log_evidence.append(log_p)
    log_weights = oracle.weights.log() + torch.stack(log_evidence)
    return Mixture(conditioned, log_weights.softmax(0))


def _matrix(measurement: Measurement, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The operator as a matrix (m, d) over data of a shape, and y (m,)."""
    measurement.linear()
    d = shape.numel()
    columns, y = measurement.of(torch.eye(d, dtype=torch.float64).reshape(d, *shape))
    if y.shape != columns.shape[1:]:
        raise ValueError(f"y must be one measurement of shape {tuple(columns.shape[1:])}, got {tuple(y.shape)}")

    A = columns.flatten(1).T
    measured = A.abs().amax(1) > 0  # a mask's other rows say nothing
    return A[measured], y.flatten()[measured]


def _condition(component: Gaussian, A: Tensor, y: Tensor, std: float) -> tuple[Gaussian, Tensor]:
    """A component given y = A x + std n, and the log-density of y under it but for a constant."""
    m = component.mean.flatten()
    C = component.covariance
    S = A @ C @ A.T + std**2 * torch.eye(len(A), dtype=torch.float64)
    L, info = torch.linalg.cholesky_ex(S)
    if int(info):
        raise ValueError(f"the data determine a part of the measurement, which std={std:g} does not allow for")

    K = torch.cholesky_solve(A @ C, L).T
    r = y - A @ m
    mean = (m + K @ r).reshape(component.mean.shape)
    covariance = C - K @ A @ C
    return Gaussian(mean, (covariance + covariance.T) / 2), _log_density(L, r)


def _log_density(L: Tensor, r: Tensor) -> Tensor:
    """log N(r; 0, L L^T) but for a constant."""
    white = torch.linalg.solve_triangular(L, r[:, None], upper=False)
    return -0.5 * white.square().sum() - L.diagonal().log().sum()
