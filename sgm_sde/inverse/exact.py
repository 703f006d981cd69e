"""The posterior of an oracle given a measurement, in closed form: the answer to compare with."""

from __future__ import annotations

import torch

from sgm_sde._utils.checks import instance_of
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
        raise TypeError(f"the posterior is known for Gaussians and their mixtures, got {oracle!r}")
    instance_of("measurement", measurement, Measurement, "a Measurement")
    measurement.linear()
    shape, d = oracle.event_shape, oracle.event_shape.numel()
    predicted, y = measurement.of(torch.eye(d, dtype=torch.float64).reshape(d, *shape))
    if y.shape != predicted.shape[1:]:
        raise ValueError(f"y must be one measurement of shape {tuple(predicted.shape[1:])}, got {tuple(y.shape)}")
    A, y = predicted.flatten(1).T, y.flatten()
    measured = A.abs().amax(1) > 0  # a mask's other rows say nothing
    A, y = A[measured], y[measured]
    conditioned, log_weights = [], []
    for component in oracle.components:
        mean, C = component.mean.flatten(), component.covariance
        S = A @ C @ A.T + measurement.std**2 * torch.eye(len(A), dtype=torch.float64)
        root, info = torch.linalg.cholesky_ex(S)
        if int(info):
            raise ValueError(
                f"the data determine a part of the measurement, which std={measurement.std:g} does not allow for"
            )
        gain = torch.cholesky_solve(A @ C, root).T
        left = C - gain @ A @ C
        r = y - A @ mean
        conditioned.append(Gaussian((mean + gain @ r).reshape(shape), (left + left.T) / 2))
        white = torch.linalg.solve_triangular(root, r[:, None], upper=False)
        log_weights.append(-0.5 * white.square().sum() - root.diagonal().log().sum())
    return Mixture(conditioned, (oracle.weights.log() + torch.stack(log_weights)).softmax(0))
