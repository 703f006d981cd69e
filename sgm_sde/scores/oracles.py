"""Data distributions whose score is known exactly at every time, on every linear process.

Use them to debug a network, a schedule or a solver: `oracle.score(sde)` stands in for a perfectly trained
network, and `oracle.log_prob`, `oracle.sample` and `Gaussian.flow` are the answers to compare with.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_autocast
from sgm_sde._utils.checks import check_integer, described, is_dense, numbers, require_floating
from sgm_sde._utils.elsewhere import OF_ORACLES, Constructed
from sgm_sde._utils.shapes import Time, batch_time, expand, flat, require_times
from sgm_sde.engine.noise import NoiseStream, Seeds, resolve_seeds
from sgm_sde.processes.kinds import has_matrix_marginal, has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE, apply, double
from sgm_sde.scores.joint import DenoiserScore
from sgm_sde.scores.score import Score

__all__ = ["Empirical", "Gaussian", "GaussianMixture", "Mixture", "Oracle"]

ROUNDING = 1e-10  # of a covariance, relative to its largest entry


def require_data(option: str, value: Tensor) -> None:
    """Raise unless the value is a tensor of finite numbers."""
    if not is_dense(value) or value.is_complex() or not value.numel():
        raise TypeError(f"{option} must be a tensor of real numbers, got {described(value)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{option} must be finite, got {int((~torch.isfinite(value)).sum())} values that are not")


def require_kernel(sde: object) -> None:
    """Raise TypeError unless `sde` is a process with a kernel, or None."""
    if sde is not None and not (has_scalar_marginal(sde) or has_matrix_marginal(sde)):
        raise TypeError(f"sde must be a LinearSDE or a MatrixSDE, got {described(sde)}")


def _require_none(kwargs: Mapping[str, object]) -> None:
    if kwargs:
        raise TypeError(f"an oracle takes x and t alone, got the arguments {', '.join(kwargs)} in model_kwargs")


class Oracle(Constructed, ABC):
    """A data distribution over tensors of shape `event_shape` with closed-form marginals under any linear process.

    Examples:
        >>> import sgm_sde as sg
        >>> oracle = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1)
        >>> x = oracle.sample(4, sg.VPSDE(), 0.5, seed=0)
        >>> x.shape, oracle.log_prob(x, sg.VPSDE(), 0.5).shape, oracle.score(sg.VPSDE())(x, 0.5).shape
        (torch.Size([4, 1]), torch.Size([4]), torch.Size([4, 1]))
    """

    _elsewhere = OF_ORACLES

    event_shape: torch.Size
    device: torch.device
    variances: Tensor

    @abstractmethod
    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t = x] for x (B, *) and kernel coefficients of shape (B,)."""

    @abstractmethod
    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...

    @abstractmethod
    def _draw(self, z: Tensor) -> Tensor:
        """Data samples from standard normal noise z of shape (n, 1 + event size)."""

    def _size(self) -> str:
        """Number of components, in words."""
        return "one component"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._size()} of shape {tuple(self.event_shape)})"

    def score(self, sde: LinearSDE | MatrixSDE) -> Score:
        """The exact score on `sde`, as if from a perfect network; of the joint state on a process with a matrix.

        Raises:
            TypeError: at a call, for arguments of the network, which an oracle does not have.
            ValueError: at a call, for x of another shape than the data's.
        """
        if has_matrix_marginal(sde):
            return DenoiserScore(_OfObservation(self), sde)
        return Score(_Denoiser(self, sde), sde, "data", bare=False)

    def _require_event(self, x: Tensor) -> None:
        require_floating("x", x)
        if x.shape[1:] != self.event_shape:
            shape = tuple(self.event_shape)
            given = tuple(x.shape)
            raise ValueError(f"the oracle's data have the shape {shape}: x must be (B, *) with that, got {given}")

    @outside_autocast
    def log_prob(self, x: Tensor, sde: LinearSDE | MatrixSDE | None = None, t: Time = 0.0) -> Tensor:
        """Log-density in nats of x (B, *) under the marginal at time t of `sde`; that of the data without one.

        On a process with a matrix x is the joint state (B, k, *).

        Returns:
            tensor of shape (B,).

        Raises:
            ValueError: for points of another shape than the data's; without noise for data that have a direction of
                variance 0, or of one that the dtype of x has no room for.
        """
        require_kernel(sde)
        if has_matrix_marginal(sde):
            return self._joint_log_prob(x, sde, batch_time(t, x))

        self._require_event(x)
        alpha, sigma = self._kernel(x, sde, t)
        least = self.least_variance
        if least < torch.finfo(x.dtype).tiny and not x.is_meta and bool((sigma == 0).any()):
            if not least:
                raise ValueError(f"{type(self).__name__} with a direction of variance 0 has no density without noise")
            raise ValueError(f"a direction of variance {least:.3g} is too narrow for {x.dtype}: give x in float64")
        return self._log_prob(x, alpha, sigma)

    @property
    def least_variance(self) -> float:
        """The least variance of the data in any direction."""
        return float(self.variances.min())

    @property
    def is_singular(self) -> bool:
        """True if some direction has variance 0."""
        return self.least_variance == 0

    @staticmethod
    def _kernel(x: Tensor, sde: LinearSDE | None, t: Time) -> tuple[Tensor, Tensor]:
        """alpha and sigma, (B,), at time t of `sde`; those of the data without one."""
        times = batch_time(t, x)
        if sde is None:
            return torch.ones_like(times), torch.zeros_like(times)
        return sde.alpha(times).to(x.dtype), sde.sigma(times).to(x.dtype)

    def _joint_log_prob(self, z: Tensor, sde: MatrixSDE, t: Tensor) -> Tensor:
        # N(z; mu x_0, Sigma) is N(y; x_0, s^2) times a density of z - mu y, which does not depend on x_0.
        w, s = sde.observation(double(t))
        y = apply(w[:, None], z)[:, 0]
        self._require_event(y)
        log_p = self._log_prob(y, torch.ones_like(t).to(y.dtype), s.to(y.dtype))

        mu, covariance = sde.kernel(double(t))
        L = torch.linalg.cholesky(covariance)
        white = apply(torch.linalg.inv(L), z - apply(mu[..., None], y[:, None]))
        log_det = torch.log(torch.diagonal(L, dim1=-2, dim2=-1)).sum(-1) - s.log()
        constant = y[0].numel() * (log_det + 0.5 * (sde.blocks - 1) * math.log(2 * math.pi))
        square = white.flatten(1).square().sum(1)
        return log_p - (0.5 * square + constant.to(y.dtype))

    @outside_autocast
    def sample(
        self,
        n: int,
        sde: LinearSDE | MatrixSDE | None = None,
        t: Time = 0.0,
        *,
        seed: Seeds = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw n samples of shape (n, *event) of the marginal at time t of `sde`; of the data without one.

        Args:
            n: number of samples.
            sde: the process.
            t: time, () or (n,).
            seed: one int, or one per sample; without it, fresh entropy.
            dtype: of the result.

        Raises:
            TypeError: for an n that is no integer, or a process without a marginal.
            ValueError: for an n below 1.
        """
        n = check_integer("n", n)
        require_kernel(sde)
        dtype = dtype or torch.get_default_dtype()
        stream = NoiseStream(resolve_seeds(seed, None, n), "prior")

        z = stream.normal((n, 1 + self.event_shape.numel()), torch.float64)
        x = self._draw(z).to(dtype)
        x = x.reshape(n, *self.event_shape).to(self.device)
        if sde is None:
            return x
        if has_matrix_marginal(sde):
            return sde.perturb(x, t, stream.normal((n, sde.blocks, *x.shape[1:]), dtype, self.device))
        mean, std = sde.marginal(x, t)
        return mean + std * stream.normal(tuple(x.shape), dtype, self.device)


@dataclass(frozen=True, eq=False)
class _OfObservation:
    """The denoiser of an oracle's data in noise of the standard deviation s, which other processes can be sent."""

    oracle: Oracle

    @outside_autocast
    def __call__(self, y: Tensor, s: Tensor, /, **kwargs: object) -> Tensor:
        _require_none(kwargs)
        self.oracle._require_event(y)
        return self.oracle.denoised(y, torch.ones_like(s), s)


@dataclass(frozen=True, eq=False)
class _Denoiser:
    """The denoiser of an oracle's data on a linear process."""

    oracle: Oracle
    sde: LinearSDE

    @outside_autocast
    def __call__(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        _require_none(kwargs)
        self.oracle._require_event(x)
        require_times(t, x)

        alpha = self.sde.alpha(t).to(x.dtype)
        sigma = self.sde.sigma(t).to(x.dtype)
        return self.oracle.denoised(x, alpha, sigma)


class Gaussian(Oracle):
    r"""Gaussian data $N(m, C)$ with any covariance: score, density, samples and the probability flow itself.

    $$ s(x, t) = -(\alpha^2 C + \sigma^2 I)^{-1}(x - \alpha m) $$

    Args:
        mean: tensor of shape `event`.
        covariance: a number (variance), or a positive semi-definite matrix over the flattened event.

    Raises:
        ValueError: for a covariance of the wrong shape, not symmetric, or with a negative eigenvalue.

    Examples:
        >>> import sgm_sde as sg
        >>> oracle = Gaussian(torch.zeros(2), 0.25)
        >>> x = oracle.sample(4, sg.VPSDE(), 1.0, seed=0)
        >>> sg.sample(oracle.score(sg.VPSDE()), sg.VPSDE(), x_T=x, solver="rk4", steps=50).x.shape
        torch.Size([4, 2])
    """

    def __init__(self, mean: Tensor, covariance: Tensor | float) -> None:
        require_data("mean", mean)
        self.mean = mean.detach().cpu().double()
        self.device = mean.device
        self.event_shape = mean.shape

        matrix = _symmetric(covariance, mean.numel())
        variances, self.basis = torch.linalg.eigh(matrix)
        least = float(variances.min())
        if least < -ROUNDING * float(matrix.abs().max()):
            raise ValueError(f"covariance has the negative eigenvalue {least}")
        self.variances = variances.clamp(min=0)

    @property
    def covariance(self) -> Tensor:
        """The covariance matrix (d, d) over the flattened event, float64."""
        return (self.basis * self.variances) @ self.basis.T

    def _spectral(self, x: Tensor, factor: Tensor) -> Tensor:
        """Multiply the eigencomponents of x (B, *) by a factor (B, d)."""
        basis = self.basis.to(x)
        return ((flat(x) @ basis * factor.to(x.dtype)) @ basis.T).reshape(x.shape)

    def _centred(self, x: Tensor, alpha: Tensor) -> Tensor:
        return x - expand(alpha, x) * self.mean.to(x)

    def _marginal_variances(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha**2)[:, None] * self.variances.to(alpha) + (sigma**2)[:, None]

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t = x] for x (B, *) and kernel coefficients of shape (B,)."""
        gain = alpha[:, None] * self.variances.to(alpha) / self._marginal_variances(alpha, sigma)
        return self.mean.to(x) + self._spectral(self._centred(x, alpha), gain)

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = self._marginal_variances(alpha, sigma).to(x.dtype)
        y = flat(self._centred(x, alpha)) @ self.basis.to(x)
        return -0.5 * (y**2 / variance + variance.log() + math.log(2 * math.pi)).sum(1)

    def _draw(self, z: Tensor) -> Tensor:
        return self.mean.flatten() + (z[:, 1:] * self.variances.sqrt()) @ self.basis.T

    @outside_autocast
    def flow(self, x: Tensor, sde: LinearSDE, t: Time, s: Time) -> Tensor:
        r"""The probability-flow ODE solved exactly from time t to time s.

        $$ x_s = \alpha_s m + \left(\frac{\alpha_s^2 C + \sigma_s^2 I}{\alpha_t^2 C + \sigma_t^2 I}\right)^{1/2}
           (x_t - \alpha_t m) $$
        """
        t = batch_time(t, x)
        s = batch_time(s, x)
        alpha_t = sde.alpha(t)
        alpha_s = sde.alpha(s)
        variances_t = self._marginal_variances(alpha_t, sde.sigma(t))
        variances_s = self._marginal_variances(alpha_s, sde.sigma(s))

        centred = self._spectral(self._centred(x, alpha_t), (variances_s / variances_t).sqrt())
        return centred + expand(alpha_s, x) * self.mean.to(x)


def _symmetric(covariance: Tensor | float, d: int) -> Tensor:
    """A covariance (d, d) in float64, from a variance or a matrix that is symmetric up to rounding."""
    matrix = numbers("covariance", covariance)
    if matrix.ndim == 0:
        matrix = matrix * torch.eye(d).to(matrix)
    if matrix.shape != (d, d):
        raise ValueError(f"covariance must be a number or a symmetric ({d}, {d}) matrix, got {tuple(matrix.shape)}")

    difference = float((matrix - matrix.T).abs().max())
    if difference > ROUNDING * float(matrix.abs().max()):
        raise ValueError(
            f"covariance must be a number or a symmetric ({d}, {d}) matrix, got entries that differ by "
            f"{difference:.3g} from those across the diagonal"
        )
    return (matrix + matrix.T) / 2


class GaussianMixture(Oracle):
    r"""A mixture of Gaussians $\sum_k w_k N(m_k, \mathrm{diag}(s_k^2))$.

    Args:
        means: tensor of shape (K, *event).
        stds: a number, (K,), or (K, *event); 0 is allowed and puts the mass on the mean.
        weights: (K,), positive; normalised to sum 1. Equal if not given.

    Raises:
        ValueError: for shapes that do not match, negative stds or weights that are not positive.

    Examples:
        >>> oracle = GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.5, [0.25, 0.75])
        >>> round(float(oracle.log_prob(torch.tensor([[2.0]]), None)), 4)
        -0.5135
    """

    def __init__(
        self,
        means: Tensor,
        stds: Tensor | float | Sequence[float],
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        require_data("means", means)
        if means.ndim < 2:
            raise ValueError(f"means must have the shape (K, *event), got {tuple(means.shape)}")
        n = len(means)
        self.event_shape = means.shape[1:]
        self.device = means.device
        self.means = means.detach().cpu().double().flatten(1)
        self.variances = _component_stds(stds, means.shape) ** 2

        w = numbers("weights", [1.0] * n if weights is None else weights)
        if w.shape != (n,) or not bool((w > 0).all()):
            raise ValueError(f"weights must be {n} positive numbers, got {w.tolist()}")
        self.weights = w / w.sum()

    def _size(self) -> str:
        return f"{len(self.weights)} components"

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-densities (B, K) of the components at x, times their weights; residuals; marginal variances."""
        # Logarithms before the cast: a weight of 1e-60 is 0 in float32, its logarithm is not.
        log_weights = self.weights.log().to(x)
        means = self.means.to(x)
        marginal = (alpha**2)[:, None, None] * self.variances.to(x) + (sigma**2)[:, None, None]
        residual = x.flatten(1)[:, None] - alpha[:, None, None] * means

        d = means.shape[1]
        log_variance = marginal.log()
        log_det = log_variance.sum(2) if marginal.shape[2] == d else d * log_variance[..., 0]
        square = (residual**2 / marginal).sum(2)
        log_density = -0.5 * (square + log_det + d * math.log(2 * math.pi))
        return log_weights + log_density, residual, marginal

    @outside_autocast
    def responsibilities(self, x: Tensor, sde: LinearSDE | None = None, t: Time = 0.0) -> Tensor:
        """Posterior probability (B, K) of each component given x (B, *) at time t."""
        return self._components(x, *self._kernel(x, sde, t))[0].softmax(1)

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t = x] for x (B, *) and kernel coefficients of shape (B,)."""
        log_p, residual, marginal = self._components(x, alpha, sigma)
        gain = alpha[:, None, None] * self.variances.to(x) / marginal
        posterior = self.means.to(x) + gain * residual
        return (log_p.softmax(1)[..., None] * posterior).sum(1).reshape(x.shape)

    def as_mixture(self) -> Mixture:
        """The same law as a `Mixture`."""
        means = self.means.reshape(-1, *self.event_shape).to(self.device)
        variances = self.variances.expand_as(self.means)
        gaussians = [Gaussian(m, v.diag()) for m, v in zip(means, variances, strict=True)]
        return Mixture(gaussians, self.weights)

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._components(x, alpha, sigma)[0].logsumexp(1)

    def _draw(self, z: Tensor) -> Tensor:
        uniform = torch.special.ndtr(z[:, :1])
        k = (uniform > self.weights.cumsum(0)[:-1]).sum(1)
        return self.means[k] + self.variances.sqrt()[k] * z[:, 1:]


def _component_stds(stds: Tensor | float | Sequence[float], shape: torch.Size) -> Tensor:
    """Standard deviations of the components of means (K, *event): (K, 1) where they are isotropic, else (K, d)."""
    n = shape[0]
    std = numbers("stds", stds)
    if std.ndim and std.shape not in (torch.Size([n]), shape):
        raise ValueError(f"stds must be a number, ({n},) or {tuple(shape)}, got {tuple(std.shape)}")
    if not bool((std >= 0).all()):
        raise ValueError(f"stds must not be negative, got {std.min().item()}")
    return std.flatten(1) if std.ndim > 1 else std.expand(n)[:, None]


class Mixture(Oracle):
    r"""A mixture $\sum_k w_k N(m_k, C_k)$ of Gaussians with any covariances.

    Args:
        components: `Gaussian` oracles of one event shape.
        weights: (K,), not negative; normalised to sum 1.

    Raises:
        TypeError: for components that are not `Gaussian`.
        ValueError: for no components, components of several event shapes, or weights that are not K non-negative
            numbers of positive sum.

    Examples:
        >>> tilted = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
        >>> Mixture([tilted, Gaussian(torch.zeros(2), 0.01)], [0.5, 0.5]).covariance
        tensor([[0.5050, 0.4500],
                [0.4500, 0.5050]], dtype=torch.float64)
    """

    def __init__(self, components: Sequence[Gaussian], weights: Tensor | Sequence[float]) -> None:
        self.event_shape = _shared_shape(components)
        self.components = tuple(components)
        self.device = components[0].device

        n = len(components)
        w = numbers("weights", weights)
        if w.shape != (n,) or not bool((w >= 0).all()) or not float(w.sum()) > 0:
            raise ValueError(f"weights must be {n} numbers that add up to more than 0, got {w.tolist()}")
        self.weights = w / w.sum()

    @property
    def least_variance(self) -> float:
        """The least variance of a component in any direction."""
        return min(component.least_variance for component in self.components)

    @property
    def mean(self) -> Tensor:
        """The mean, of the event's shape, float64."""
        return torch.stack([w * c.mean for w, c in zip(self.weights, self.components, strict=True)]).sum(0)

    @property
    def covariance(self) -> Tensor:
        """The covariance matrix (d, d) over the flattened event, float64."""
        mean = self.mean
        d = self.event_shape.numel()
        total = torch.zeros(d, d, dtype=torch.float64)
        for w, c in zip(self.weights, self.components, strict=True):
            offset = (c.mean - mean).flatten()
            total += w * (c.covariance + offset[:, None] * offset)
        return total

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log-densities (B, K) of the components at x, times their weights."""
        log_densities = [c._log_prob(x, alpha, sigma) for c in self.components]
        return self.weights.log().to(x) + torch.stack(log_densities, 1)

    @outside_autocast
    def responsibilities(self, x: Tensor, sde: LinearSDE | None = None, t: Time = 0.0) -> Tensor:
        """Posterior probability (B, K) of each component given x (B, *) at time t."""
        return self._joint(x, *self._kernel(x, sde, t)).softmax(1)

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t = x] for x (B, *) and kernel coefficients of shape (B,)."""
        denoised = [flat(c.denoised(x, alpha, sigma)) for c in self.components]
        responsibilities = self._joint(x, alpha, sigma).softmax(1)
        mean = (responsibilities[..., None] * torch.stack(denoised, 1)).sum(1)
        return mean.reshape(x.shape)

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._joint(x, alpha, sigma).logsumexp(1)

    def _draw(self, z: Tensor) -> Tensor:
        uniform = torch.special.ndtr(z[:, 0])
        k = torch.searchsorted(self.weights.cumsum(0)[:-1].contiguous(), uniform)
        drawn = torch.stack([c._draw(z) for c in self.components], 1)
        return drawn[torch.arange(len(z)), k]


def _shared_shape(components: Sequence[Gaussian]) -> torch.Size:
    """The one event shape of a mixture's components."""
    if not isinstance(components, Sequence):
        raise TypeError(f"components must be a sequence of Gaussian oracles, got {described(components)}")
    for component in components:
        if not isinstance(component, Gaussian):
            raise TypeError(f"components must be Gaussian oracles, got {described(component)}")

    shapes = {component.event_shape for component in components}
    if len(shapes) != 1:
        raise ValueError(f"components must have one event shape, got {[tuple(shape) for shape in shapes]}")
    return shapes.pop()


class Empirical(GaussianMixture):
    r"""A data set as a distribution: equal Gaussians of one bandwidth on its points.

    With bandwidth 0 the score is that of the perfect memoriser.

    Args:
        data: tensor of shape (N, *event).
        bandwidth: standard deviation around each point.

    Raises:
        ValueError: as `GaussianMixture`.

    Examples:
        >>> import sgm_sde as sg
        >>> oracle = Empirical(torch.tensor([[-1.0], [1.0]]), bandwidth=0.0)
        >>> oracle.score(sg.EDMSDE()).denoised(torch.tensor([[0.9]]), 0.1)
        tensor([[1.]])
    """

    def __init__(self, data: Tensor, bandwidth: float = 0.0) -> None:
        super().__init__(data, bandwidth)
        self.bandwidth = bandwidth

    def __repr__(self) -> str:
        return f"Empirical({len(self.means)} points of shape {tuple(self.event_shape)}, bandwidth {self.bandwidth:g})"
