r"""Scores of the posterior given a measurement: one formula, three guesses at the covariance of the data.

Given $x_t$, let the data be Gaussian with the denoiser's mean $D$ and some covariance $V$. Then

$$ E[x_0 \mid x_t, y] = D + V A^T (A V A^T + \sigma_y^2 I)^{-1} (y - A D). $$

The truth is $V = \frac{\sigma^2}{\alpha} \frac{\partial D}{\partial x}$, a Jacobian. `MMPS` takes it in both places,
`PiGDM` in the first and a multiple of the identity in the second, `DiffPIR` a multiple of the identity in both.
Each is a `Score`, so that every solver, and the likelihood, works with it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode, require_gradient
from sgm_sde._utils.checks import FAR, check_integer, described, number, one_of
from sgm_sde._utils.shapes import dot, expand, flat
from sgm_sde._utils.tree import Path
from sgm_sde.inverse.linalg import HINT, Linearised, Products, conjugate_gradient, conjugate_residual, ratio
from sgm_sde.inverse.operators import Measurement
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.scores.conditions import ROWS, Numbers
from sgm_sde.scores.score import Score, require_score


def require_denoiser(score: object) -> None:
    """Raise TypeError unless `score` is a `Score` on a linear process, ValueError for a flow of coupled pairs."""
    if not isinstance(score, Score):
        raise TypeError(f"score must be a Score (from_noise, from_denoiser, from_score, ...), got {described(score)}")
    if not has_scalar_marginal(score.sde):
        raise TypeError(f"a posterior needs the denoiser, and so a LinearSDE, got {described(score.sde)}")
    require_score(score, "a posterior")


def require_measurement(measurement: object) -> None:
    """Raise TypeError unless `measurement` is a `Measurement`."""
    if not isinstance(measurement, Measurement):
        raise TypeError(f"measurement must be a Measurement, got {described(measurement)}")


class PosteriorScore(Score, ABC):
    """A score whose denoiser estimates the mean of the data given the state and a measurement.

    Args:
        score: a `Score` on a linear process.
        measurement: what was measured.

    Attributes:
        vjps: vector-Jacobian products through the network in a call, beside the call itself.

    Raises:
        TypeError: for a score on a process that is not linear, or anything but a `Measurement`.
        ValueError: for a flow of coupled pairs; at a call, if the measurement does not fit x, or the network gives no
            gradient where it is needed.

    Examples:
        >>> import sgm_sde as sg
        >>> from sgm_sde.inverse.operators import Mask, Measurement
        >>> score = sg.from_denoiser(lambda x, t: 0.5 * x, sg.VPSDE())
        >>> seen = Measurement(Mask(torch.tensor([True, False])), torch.tensor([1.0, 0.0]), 0.1)
        >>> isinstance(PiGDM(score, seen), PosteriorScore), PiGDM(score, seen).vjps
        (True, 1)
    """

    vjps: int = 0
    recordable = False

    def __init__(self, score: Score, measurement: Measurement) -> None:
        require_denoiser(score)
        require_measurement(measurement)
        super().__init__(score.net, score.sde, "data")
        self.score = score
        self.measurement = measurement
        self.operator = measurement.linear()
        self._as_it_is = False

    @property
    def parameter(self) -> Tensor | None:
        """The network's first floating-point parameter."""
        return self.score.parameter

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row per sample."""
        return self.score.conditions | {(ROWS,)}

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the network's input; None for no cast."""
        return self.score.dtype

    def cast_to(self, dtype: torch.dtype) -> Score:
        """The same score with x cast to `dtype` for the network's call."""
        return self._around(self.score.cast_to(dtype))

    def map_net(self, change: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Score:
        """The same score from what `change` makes of its network."""
        return self._around(self.score.map_net(change))

    @property
    def is_density(self) -> bool:
        """True if the score is meant as that of marginals; the likelihood is then that of the estimated posterior."""
        return self.score.is_density

    def network_evals(self, t: Tensor) -> int:
        """Samples that the network sees in a call at t (B,)."""
        return self.score.network_evals(t)

    def _around(self, score: Score) -> Score:
        other = copy.copy(self)
        other.score = score
        other.net = score.net
        return other

    def _of(self, rows: Tensor, x: Tensor) -> PosteriorScore:
        """The score of x (b, *), the samples of these numbers alone."""
        other = copy.copy(self)
        other.measurement = self.measurement.of_samples(rows, x)
        other.operator = other.measurement.linear()
        return other

    @outside_inference_mode
    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The posterior mean of the data at x (B, *) and t (B,)."""
        numbers = Numbers.of(kwargs)
        kwargs.pop(ROWS, None)
        if numbers is not None:
            return self._of(numbers.of_each, x).output(x, t, **kwargs)

        sde = self.score.sde
        assert has_scalar_marginal(sde)
        alpha = expand(sde.alpha(t), x)
        sigma = expand(sde.sigma(t), x)

        def denoiser(x: Tensor) -> Tensor:
            def network(x: Tensor) -> Tensor:
                return self.score.output(x, t, **kwargs)

            out = network(x)
            if x.requires_grad:  # what the conversion adds has a gradient in any case
                require_gradient(out, "the network", HINT, network, x)
            return self.score.convert("data", x, t, out)

        return self.posterior_mean(denoiser, x, alpha, sigma)

    def _V(self, D: Linearised, q: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """V q, by the denoiser's Jacobian."""
        return sigma**2 / alpha * D.vjp(q)

    def _covariances(self, D: Linearised, alpha: Tensor, sigma: Tensor) -> Products:
        """Products of the measurement's covariance with itself and with the data, V by the denoiser's Jacobian."""

        def covariances(p: Tensor) -> tuple[Tensor, Tensor]:
            VAp = self._V(D, self.operator.adjoint(p), alpha, sigma)
            return self.operator.apply(VAp) + self.measurement.std**2 * p, VAp

        return covariances

    @abstractmethod
    def posterior_mean(self, denoiser: Callable[[Tensor], Tensor], x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t = x, y] for x (B, *) and coefficients that multiply it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.score!r}, {self.measurement!r})"


class DiffPIR(PosteriorScore):
    r"""DiffPIR, and without noise DDNM: the measurement pulls at the denoised data, no gradient needed.

    $$ V = \frac{\sigma^2}{\lambda\alpha^2} I, \qquad \text{that is} \qquad \arg\min_{x_0}
       \frac{\lVert y - A x_0\rVert^2}{\sigma_y^2} + \frac{\lambda\alpha^2}{\sigma^2} \lVert x_0 - D\rVert^2 $$

    With $\sigma_y = 0$ it is $D + A^+(y - AD)$ whatever $\lambda$, DDNM. What was not measured is left as it was
    denoised, and feels the measurement through later network calls only. One network call; no vector-Jacobian products.

    Args:
        score: a `Score` on a linear process.
        measurement: what was measured.
        strength: $\lambda$, how much the denoiser counts; the paper takes 1 to 25.

    Raises:
        TypeError: for a score on a process that is not linear, or anything but a `Measurement`.
        ValueError: for a strength that is not positive.

    Source: Zhu et al., 2023, arXiv:2305.08995; Wang, Yu & Zhang, 2023, arXiv:2212.00490 (DDNM).

    Examples:
        >>> import sgm_sde as sg
        >>> half = sg.inverse.Mask(torch.tensor([True, False]))
        >>> seen = sg.inverse.Measurement(half, torch.tensor([1.0, 0.0]))
        >>> score = sg.inverse.DiffPIR(sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sg.EDMSDE()), seen)
        >>> score.denoised(torch.tensor([[3.0, 3.0]]), 1.0)
        tensor([[1.0000, 1.5000]])
    """

    def __init__(self, score: Score, measurement: Measurement, strength: float = 1.0) -> None:
        super().__init__(score, measurement)
        self.strength = number("strength", strength, above=0, most=FAR)

    def posterior_mean(self, denoiser: Callable[[Tensor], Tensor], x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The denoised data, pulled towards the measurement."""
        D = denoiser(x)
        shift = self.measurement.std**2 * self.strength * (alpha / sigma) ** 2
        solved = self.operator.solve(self.measurement.residual(D), shift)
        return D + self.operator.adjoint(solved)


class PiGDM(PosteriorScore):
    r"""Pseudoinverse-guided diffusion: the likelihood of the measurement under an isotropic guess at the data.

    $$ D + a\, V A^T p, \qquad p = (r^2 A A^T + \sigma_y^2 I)^{-1} (y - A D), \qquad
       V = \frac{\sigma^2}{\alpha} \left(\frac{\partial D}{\partial x}\right)^T, \qquad
       r^2 = \frac{\sigma^2 s^2}{\sigma^2 + \alpha^2 s^2} $$

    with $s$ the standard deviation of the data: exact for independent data of that deviation. The score of the
    published likelihood has $a = 1$. Here $a \le 1$ is the length, of each sample, that brings
    $a\,(A V A^T + \sigma_y^2 I)\,p$ nearest to the residual $y - AD$, and 0 if none does: where V is larger than the
    guess $r^2$ the whole step misses the measurement on the other side. Near pure noise $\sigma^2/\alpha$ multiplies
    the error of a network's Jacobian without bound; the paper's algorithm has weights of its own on the steps of DDIM,
    $\alpha r^2$ for the gradient, which fade there. One network call and one vector-Jacobian product.

    Args:
        score: a `Score` on a linear process.
        measurement: what was measured.
        data_std: s; the paper takes 1.

    Raises:
        TypeError: for a score on a process that is not linear, or anything but a `Measurement`.
        ValueError: for a `data_std` that is not positive; at a call, for a network without gradient.

    Source: Song, Vahdat, Mardani & Kautz, 2023, openreview.net/forum?id=9_gsMA8MRKQ.

    Examples:
        >>> import sgm_sde as sg
        >>> half = sg.inverse.Mask(torch.tensor([True, False]))
        >>> seen = sg.inverse.Measurement(half, torch.tensor([1.0, 0.0]))
        >>> score = sg.inverse.PiGDM(sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sg.EDMSDE()), seen)
        >>> with torch.no_grad():
        ...     score.denoised(torch.tensor([[3.0, 3.0]]), 1.0)
        tensor([[1.0000, 1.5000]])
    """

    vjps = 1

    def __init__(self, score: Score, measurement: Measurement, data_std: float = 1.0) -> None:
        super().__init__(score, measurement)
        self.data_std = number("data_std", data_std, least=1 / FAR, most=FAR)

    def posterior_mean(self, denoiser: Callable[[Tensor], Tensor], x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The denoised data, and the likelihood's gradient."""
        D = Linearised(denoiser, x)
        r2 = (sigma * self.data_std) ** 2 / (sigma**2 + (alpha * self.data_std) ** 2)
        shift = self.measurement.std**2 / r2
        residual = self.measurement.residual(D.value)
        p = self.operator.solve(residual, shift) / r2

        Mp, VAp = self._covariances(D, alpha, sigma)(p)
        a = ratio(dot(residual, Mp), dot(Mp, Mp)).clamp(0, 1)
        return D.value + expand(a, VAp) * VAp


class MMPS(PosteriorScore):
    r"""Moment matching posterior sampling: the covariance that the denoiser itself has.

    $$ V = \frac{\sigma^2}{\alpha} \left(\frac{\partial D}{\partial x}\right)^T = \mathrm{Cov}[x_0 \mid x_t] $$

    and $p = (A V A^T + \sigma_y^2 I)^{-1} (y - A D)$ by a few steps of a Krylov method, each sample by itself. Exact
    for Gaussian data, if the iterations are as many as the measurement has numbers; few do in practice.

    The paper's conjugate gradients, `linear_solver="cg"`, suppose that V is symmetric and positive. A network's
    Jacobian is neither, most of all at high noise, where it is multiplied by $\sigma^2/\alpha$; a step where the
    curvature is small then goes astray, and samples explode. Generalised conjugate residuals, `"gcr"`, a form of
    GMRES, shrink the residual whatever V is; they are the default.

    What was measured may then be met by throwing out what was not: where the variance along $u = A^T p / |A^T p|$ is
    next to $-\sigma_y^2$, the inverse has no bound. With $Vu = cu + v$, $v \perp u$, a covariance of any data has

    $$ c \ge 2 c_0, \qquad c_0 = \frac{|v|^4}{2 v^T V v} $$

    by Cauchy and Schwarz. Where V has less than $c_0$, half of that for what networks are off by, it becomes
    $V + (c' - c) uu^T$ with $c' = \min(c_0^2/c, \sigma^2/\alpha^2)$: above $c_0$ by the factor by which c is below it,
    and at most the variance that $x_t$ alone leaves, which it is where c or $v^T V v$ is not positive. The length of
    p is then that of the least residual. An exact score's V stays what it is. One network call and `iterations` + 1
    vector-Jacobian products; by conjugate gradients, which are left as published, `iterations`.

    Args:
        score: a `Score` on a linear process.
        measurement: what was measured.
        iterations: Krylov steps, the same for all samples.
        linear_solver: `"gcr"` or `"cg"`.

    Raises:
        TypeError: for a score on a process that is not linear, or anything but a `Measurement`.
        ValueError: for `iterations` below 1 or another `linear_solver`; at a call, for a network without gradient.

    Source: Rozet et al., 2024, arXiv:2405.13712.

    Examples:
        >>> import sgm_sde as sg
        >>> half = sg.inverse.Mask(torch.tensor([True, False]))
        >>> seen = sg.inverse.Measurement(half, torch.tensor([1.0, 0.0]), std=0.5)
        >>> oracle = sg.oracles.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
        >>> score = sg.inverse.MMPS(oracle.score(sg.EDMSDE()), seen)
        >>> sg.sample(score, sg.EDMSDE(), (4, 2), solver="dpm++2m", nfe=20, seed=0).nfe
        20
    """

    def __init__(self, score: Score, measurement: Measurement, iterations: int = 5, linear_solver: str = "gcr") -> None:
        super().__init__(score, measurement)
        iterations = check_integer("iterations", iterations)
        one_of("linear_solver", linear_solver, ("gcr", "cg"))
        self.iterations = iterations
        self.vjps = iterations + (linear_solver == "gcr")
        self.linear_solver = linear_solver

    def posterior_mean(self, denoiser: Callable[[Tensor], Tensor], x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The denoised data, and the gain of the measurement."""
        D = Linearised(denoiser, x)
        residual = self.measurement.residual(D.value)
        covariances = self._covariances(D, alpha, sigma)
        if self.linear_solver == "cg":
            return D.value + conjugate_gradient(covariances, residual, self.iterations)

        def with_p(p: Tensor) -> tuple[Tensor, Tensor]:
            Mp, VAp = covariances(p)
            return Mp, torch.cat([flat(VAp), flat(p)], 1)

        solved = conjugate_residual(with_p, residual, self.iterations)
        d = x[0].numel()
        VAp = solved[:, :d].view_as(x)
        p = solved[:, d:].view_as(residual)
        return D.value + self._gain(D, residual, p, VAp, alpha, sigma)

    def _gain(self, D: Linearised, residual: Tensor, p: Tensor, VAp: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """V A^T p, with the variance that a covariance has at least along A^T p."""
        Ap = self.operator.adjoint(p)
        square = dot(Ap, Ap)
        c = ratio(dot(Ap, VAp), square)

        v = VAp - expand(c, Ap) * Ap
        v_square = dot(v, v)
        has_length = v_square > 0
        square_or_one = torch.where(has_length, v_square, 1)
        length = square_or_one.sqrt()  # which has a derivative
        unit = v / expand(length, v)

        # V is a difference of numbers of the noise's size: its rounding is no sign of anything.
        most = (sigma / alpha).square().reshape(-1).to(c)
        eps = torch.finfo(c.dtype).eps
        rounding = 8 * eps * (most + c.abs())
        Vu = self._V(D, unit, alpha, sigma)
        across = dot(unit, Vu) + rounding

        half_bound = ratio(ratio(v_square, square), 2 * across)
        least = torch.where(across > 0, half_bound, most)
        lacking = _lacking(c, least, most)
        gain = VAp + expand(lacking, Ap) * Ap

        Mp = self.operator.apply(gain) + self.measurement.std**2 * p
        along = dot(residual, Mp)
        Mp_square = dot(Mp, Mp)
        of_least_residual = ratio(along, Mp_square)
        a = torch.where(lacking > 0, of_least_residual, 1)
        return expand(a, gain) * gain


def _lacking(c: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Difference (B,) of variances c to min(c_0^2 / c, most), where they are below the least, c_0."""
    raised = torch.minimum(ratio(least.square(), c), most)
    enough = torch.where(c > 0, raised, most)
    missing = (enough - c).clamp(min=0)
    return torch.where(c < least, missing, 0)
