r"""Losses whose minimiser is the score: denoising, implicit and sliced score matching.

A weighting is a weight on the squared error of one prediction. At a given state all predictions err together: by
the algebra of `sgm_sde.processes.predictions` an error $\delta r$ of the network's output is the error
$c_r\,\delta r$ of any other prediction. So every weighting serves every network, and

$$ L = w(t)\,c_r(t)^2\,\lVert r_\theta(x_t, t) - r \rVert^2, \qquad r = a_r x_0 + b_r \epsilon, \qquad
   x_t = \alpha x_0 + \sigma\epsilon. $$

| name              | error of | weight                       | known as                                   |
|-------------------|----------|------------------------------|--------------------------------------------|
| `"noise"`         | noise    | 1                            | DDPM's L_simple; also called `"simple"`    |
| `"sigma^2"`       | score    | $\sigma^2$                   | NCSN, score_sde: the same loss as "simple" |
| `"likelihood"`    | score    | $g^2$                        | ScoreFlow                                  |
| `"data"`          | data     | 1                            | DDPM's loss on x_0                         |
| `"flow"`          | flow     | 1                            | conditional flow matching                  |
| `"v"`      | v        | 1                            | v-prediction, SNR + 1 on the data          |
| `"score"`         | score    | 1                            | Fisher divergence                          |
| `EDM(s)`          | data     | $1/s^2 + \alpha^2/\sigma^2$  | EDM                                        |
| `MinSNR(5)`       | data     | $\min(\alpha^2/\sigma^2, 5)$ | Min-SNR-5                                  |
| `PosteriorMean()` | data     | $c^2/(2 v)$, see there       | DDPM's bound; its loss on the mean         |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sgm_sde._utils.checks import (
    FAR,
    arguments,
    check_integer,
    described,
    instance_of,
    is_dense,
    number,
    one_of,
    settle,
)
from sgm_sde._utils.elsewhere import OF_LOSSES, named_elsewhere
from sgm_sde._utils.ranges import refuse_unscaled
from sgm_sde._utils.shapes import as_time, dimension, expand, flat, require_times
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.times import ROUNDING
from sgm_sde.processes import LinearSDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.predictions import convert, weights
from sgm_sde.scores import Score
from sgm_sde.training.times import Times, Uniform

Reduction = Literal["mean", "sum", "none"]


@runtime_checkable
class Weighting(Protocol):
    """A weight on the squared error of one prediction."""

    @property
    def error_of(self) -> str:
        """The prediction whose error is weighted."""

    def weight(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """The weight at times t (B,)."""


@dataclass(frozen=True)
class Named:
    """A weighting that needs no numbers: an entry of `WEIGHTINGS`."""

    error_of: str
    of: Callable[[LinearSDE, Tensor], Tensor]

    def weight(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """The weight at times t (B,)."""
        return self.of(sde, t)


@dataclass(frozen=True)
class EDM:
    r"""EDM's weight on the error of the data: 1 / c_out^2, so that the preconditioned network's own error weighs 1.

    Args:
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: for a `sigma_data` that is not positive.

    Source: Karras et al., 2022, arXiv:2206.00364, table 1.

    Examples:
        >>> import sgm_sde as sg
        >>> EDM(0.5).weight(sg.EDMSDE(), torch.tensor(0.5))
        tensor(8.)
    """

    sigma_data: float
    error_of: ClassVar[str] = "data"

    def __post_init__(self) -> None:
        settle(self, sigma_data=number("sigma_data", self.sigma_data, least=1e-12, most=FAR))

    def weight(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """(sigma~^2 + s^2) / (sigma~ s)^2 with sigma~ = sigma / alpha."""
        return 1 / self.sigma_data**2 + sde.log_snr(t).exp()


@dataclass(frozen=True)
class MinSNR:
    r"""The signal-to-noise ratio, cut off at gamma, on the error of the data.

    Args:
        gamma: the largest weight.

    Raises:
        ValueError: for a gamma that is not positive.

    Source: Hang et al., 2023, arXiv:2303.09556.

    Examples:
        >>> import sgm_sde as sg
        >>> MinSNR().weight(sg.EDMSDE(), torch.tensor([0.1, 1.0]))
        tensor([5., 1.])
    """

    gamma: float = 5.0
    error_of: ClassVar[str] = "data"

    def __post_init__(self) -> None:
        settle(self, gamma=number("gamma", self.gamma, above=0))

    def weight(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """min(alpha^2 / sigma^2, gamma)."""
        return sde.log_snr(t).exp().clamp(max=self.gamma)


@dataclass(frozen=True)
class PosteriorMean:
    r"""The error of the mean of $x_s \mid x_t, x_0$, one step $1/N$ earlier, that a denoiser implies.

    With the transition's variance $b^2$ the mean is $c\,x_0 + \dots$, $c = \alpha_s b^2/\sigma_t^2$; the weight is
    $c^2/(2v)$, the Kullback-Leibler divergence in nats of Gaussians of variance $v$, or $c^2$ alone.

    Args:
        variance: `"beta"` for $v = b^2$; `"posterior"` for $v = b^2 \sigma_s^2/\sigma_t^2$, which is zero at the first
            entry and makes its weight infinite; `"none"` for $c^2$, the plain squared error of the mean.
        n: steps on [0, T]; the length of the process' table if not given.

    Raises:
        ValueError: for another variance, or without n on a process that has no table.

    Source: Ho et al., 2020, arXiv:2006.11239, equations 7 to 12.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.presets.ddpm()
        >>> round(float(PosteriorMean().weight(sde, torch.tensor(0.5).double())), 4)
        0.0005
    """

    variance: Literal["beta", "posterior", "none"] = "beta"
    n: int | None = None
    error_of: ClassVar[str] = "data"

    def __post_init__(self) -> None:
        one_of("variance", self.variance, ("beta", "posterior", "none"))
        settle(self, n=None if self.n is None else check_integer("n", self.n))

    def weight(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """c^2 / (2 v), or c^2.

        Raises:
            ValueError: without n on a process that has no table.
        """
        n = len(sde.table_times or ()) if self.n is None else self.n
        if n < 1:
            raise ValueError(f"{sde!r} has no table of times: give PosteriorMean(n=...)")
        s = t - sde.T / n
        s = torch.where(s < 0.5 * sde.T / n, 0.0, s)  # the step that ends at the data, whatever the rounding

        _, b = sde.transition(s, t)
        b2 = b**2
        sigma2 = sde.sigma(t) ** 2
        c = sde.alpha(s) * b2 / sigma2
        if self.variance == "none":
            return c**2
        variance = b2 if self.variance == "beta" else b2 * sde.sigma(s) ** 2 / sigma2
        return c**2 / (2 * variance)


_NETWORKS = ("noise", "data", "score", "v", "flow")
_ONE = {name: Named(name, lambda sde, t: torch.ones_like(t)) for name in _NETWORKS}
WEIGHTINGS: dict[str, Weighting] = {
    **_ONE,
    "simple": _ONE["noise"],
    "sigma^2": Named("score", lambda sde, t: sde.sigma(t) ** 2),
    "likelihood": Named("score", lambda sde, t: sde.g(t) ** 2),
}


@named_elsewhere(OF_LOSSES)
def denoising_score_matching(
    score: Score,
    x0: Tensor,
    *,
    generator: torch.Generator | None = None,
    weighting: str | Weighting = "simple",
    times: Times | None = None,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    reduction: Reduction = "mean",
    model_kwargs: Conditions | None = None,
) -> Tensor:
    r"""The weighted squared error of a network's prediction at noised data, one value for each sample.

    $$ L_i = w(t_i)\,c_r(t_i)^2\,\lVert r_\theta(x_{t_i}, t_i) - r_i \rVert^2 $$

    as above, times the weight of `times`. Its minimiser is the exact score for every weighting. NCSN's loss is half of
    the sum with `"sigma^2"` and `Table()` on `DiscreteVESDE`; DDPM's are `"noise"`, `"data"` and `PosteriorMean()` with
    `Table()` on `DiscreteVPSDE`; conditional flow matching is `"flow"`, with coupled `noise` if there is a coupling.

    Args:
        score: the network with what it predicts, from `from_noise` or its siblings, on the process to train on.
        x0: data (B, *).
        generator: of times and noise; without one, fresh entropy at each call, as `sample` without a seed. torch's
            global generator, and so `torch.manual_seed`, has no part in it.
        weighting: a name of the table above, or `EDM(s)`, `MinSNR(gamma)`, `PosteriorMean()` or one of your own.
        times: distribution of the times; `Uniform()` if not given.
        t: times (B,) instead of drawn ones.
        noise: noise (B, *) instead of drawn one.
        reduction: `"mean"` or `"sum"` over the data's dimensions; `"none"` for a loss of each number, to be masked.
        model_kwargs: passed on to the network, such as labels.

    Returns:
        losses (B,), or (B, *) without a reduction; take their mean for the gradient step.

    Raises:
        ValueError: for an unknown weighting or reduction, both `times` and `t`, or a `noise` of another shape.
        TypeError: for a score on a process without alpha(t) and sigma(t), or data other than a floating-point tensor.

    Source: Vincent, 2011, doi:10.1162/NECO_a_00142; Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> import sgm_sde as sg
        >>> score = sg.from_noise(lambda x, t: x, sg.VPSDE())
        >>> generator = torch.Generator().manual_seed(0)  # for losses that can be repeated
        >>> denoising_score_matching(score, torch.zeros(4, 2), generator=generator).shape
        torch.Size([4])
    """
    generator = _own(generator)
    sde, t, factor, x0 = _prepare(score, x0, times, t, generator)
    x, noise = _noised(sde, x0, t, noise, generator)
    a, b = weights(score.prediction, sde.values(t))
    predicted = score.output(x, _label(t, x), **arguments("model_kwargs", model_kwargs)).to(x.dtype)
    error = predicted - _on(a, x) * x0 - _on(b, x) * noise
    return _weighted(error.square(), factor, weighting, score.prediction, sde, t, reduction)


@named_elsewhere(OF_LOSSES)
def score_matching(
    score: Score,
    x0: Tensor,
    *,
    generator: torch.Generator | None = None,
    weighting: str | Weighting = "sigma^2",
    times: Times | None = None,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    trace: Literal["exact", "sliced"] = "exact",
    n_probes: int = 1,
    reduction: Reduction = "mean",
    model_kwargs: Conditions | None = None,
) -> Tensor:
    r"""Implicit score matching at noised data, one value for each sample.

    $$ L_i = w\,\bigl(\lVert s_\theta(x_t, t) \rVert^2 + 2\,\mathrm{tr}\,\nabla s_\theta(x_t, t)\bigr) $$

    with $w$ the weighting as a weight on the error of the score. In expectation it is the denoising loss minus a
    constant, and twice Hyvarinen's objective for $w = 1$; with `t` zero it is that of the data themselves.

    Args:
        score: as for `denoising_score_matching`, and twice differentiable.
        x0: data (B, *).
        generator: of times, noise and probes; without one, fresh entropy at each call.
        weighting: a name of the table above, or `EDM(s)`, `MinSNR(gamma)`, `PosteriorMean()` or one of your own.
        times: distribution of the times; `Uniform()` if not given.
        t: times (B,) instead of drawn ones.
        noise: noise (B, *) instead of drawn one.
        trace: `"exact"`, by one vector-Jacobian product for each dimension of a sample; `"sliced"`, estimated with
            random signs, which leaves the expectation as it is ("with variance reduction" in the source).
        n_probes: number of sign vectors, for `"sliced"`.
        reduction: `"mean"` or `"sum"` over the data's dimensions; `"none"` for a loss of each number, to be masked.
        model_kwargs: passed on to the network, such as labels.

    Returns:
        losses (B,), or (B, *) without a reduction.

    Raises:
        ValueError: as `denoising_score_matching`, and for an unknown trace or n_probes below 1.
        TypeError: for a score on a process without alpha(t) and sigma(t), or data other than a floating-point tensor.

    Source: Hyvarinen, 2005, JMLR 6:695-709; sliced: Song, Garg, Shi and Ermon, 2019, arXiv:1905.07088.

    Examples:
        >>> import sgm_sde as sg
        >>> score = sg.from_score(lambda x, t: -x, sg.VPSDE())
        >>> zero = torch.zeros(2, dtype=torch.float64)
        >>> x0, generator = torch.ones(2, 3), torch.Generator()
        >>> score_matching(score, x0, t=zero, weighting="score", generator=generator).tolist()
        [-1.0, -1.0]
    """
    one_of("trace", trace, ("exact", "sliced"))
    n_probes = check_integer("n_probes", n_probes)
    generator = _own(generator)
    sde, t, factor, x0 = _prepare(score, x0, times, t, generator)
    x, _ = _noised(sde, x0, t, noise, generator)

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        s = score(x, _label(t, x), **arguments("model_kwargs", model_kwargs))

        diagonal = _exact_diagonal(s, x) if trace == "exact" else _sliced_diagonal(s, x, n_probes, generator)
        return _weighted(s.square() + 2 * diagonal, factor, weighting, "score", sde, t, reduction)


def _exact_diagonal(s: Tensor, x: Tensor) -> Tensor:
    """Diagonal (B, *) of the Jacobian of s at x, by one product for each dimension of a sample."""
    d = dimension(x)
    basis = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, *x.shape[1:])
    return sum((_times_vjp(s, x, e) for e in basis), torch.zeros_like(x))


def _sliced_diagonal(s: Tensor, x: Tensor, n_probes: int, generator: torch.Generator) -> Tensor:
    """Estimate (B, *) of the same from random signs."""
    signs = (_random(x, generator, torch.rand).round() * 2 - 1 for _ in range(n_probes))
    return sum((_times_vjp(s, x, v) for v in signs), torch.zeros_like(x)) / n_probes


def _times_vjp(s: Tensor, x: Tensor, v: Tensor) -> Tensor:
    (vjp,) = torch.autograd.grad(s, x, v.expand_as(s), create_graph=True)
    return vjp * v


def _prepare(
    score: Score, x0: Tensor, times: Times | None, t: Tensor | None, generator: torch.Generator
) -> tuple[LinearSDE, Tensor, Tensor, Tensor]:
    """The process, times (B,) and the factors on them in float64 on the CPU, and the data in at least float32."""
    if not isinstance(score, Score):
        raise TypeError(
            f"the score must say what its network predicts: from_noise(net, sde) etc., got {described(score)}"
        )
    sde = score.sde
    if not has_scalar_marginal(sde):
        raise TypeError(f"this loss needs the kernel of a LinearSDE, got {described(sde)}")
    _require_data(x0)

    if times is not None:
        instance_of("times", times, Times, "a distribution of times, such as LogNormal()")
        if t is not None:
            raise ValueError("give times= or t=, not both")

    if t is None:
        t, factor = (Uniform() if times is None else times).draw(sde, len(x0), generator)
    else:
        t = _given_times(sde, t, x0)
        factor = torch.ones_like(t)
    return sde, t, factor, x0.to(torch.promote_types(x0.dtype, torch.float32))


def _require_data(x0: Tensor) -> None:
    """Raise for data that are not floating point, or not scaled as networks expect."""
    if not is_dense(x0) or not x0.is_floating_point() or x0.ndim == 0:
        given = f"dtype {x0.dtype}" if is_dense(x0) else described(x0)
        raise TypeError(f"data must be floating point (B, *), scaled as the network expects, got {given}")
    if x0.device.type == "cpu":  # elsewhere a look would wait for the device
        refuse_unscaled("x0", x0)


def _given_times(sde: LinearSDE, t: Tensor, x0: Tensor) -> Tensor:
    """The caller's times as (B,) in float64 on the CPU."""
    t = as_time(t).to(device="cpu", dtype=torch.float64)
    require_times(t, x0)
    t = t.expand(len(x0))
    outside = ~((t >= 0) & (t <= sde.T * (1 + ROUNDING)))  # not NaN either; float32 may round T up
    if outside.any():
        raise ValueError(f"t must lie in [0, T] = [0, {sde.T}], got {t[outside][0].item():.6g}")
    return t


def _noised(
    sde: LinearSDE, x0: Tensor, t: Tensor, noise: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    if noise is None:
        noise = _random(x0, generator, torch.randn)
    elif not is_dense(noise) or not noise.is_floating_point():
        raise TypeError(f"noise must be a floating tensor of the shape of the data, got {described(noise)}")
    elif noise.shape != x0.shape:
        raise ValueError(f"noise must have the shape {tuple(x0.shape)} of the data, got {tuple(noise.shape)}")

    alpha = _on(sde.alpha(t), x0)
    sigma = _on(sde.sigma(t), x0)
    return alpha * x0 + sigma * noise, noise


def _random(x: Tensor, generator: torch.Generator, draw: Callable[..., Tensor]) -> Tensor:
    return draw(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)


def _own(generator: torch.Generator | None) -> torch.Generator:
    """The caller's generator, or one of fresh entropy."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    instance_of("generator", generator, torch.Generator, "a torch.Generator")
    return generator


def _weighted(
    squares: Tensor,
    factor: Tensor,
    weighting: str | Weighting,
    prediction: str,
    sde: LinearSDE,
    t: Tensor,
    reduction: Reduction,
) -> Tensor:
    """Squares (B, *) of errors of a prediction, weighted, and reduced to (B,) if they are to be."""
    if isinstance(weighting, str):
        if weighting not in WEIGHTINGS:
            known = ", ".join(map(repr, WEIGHTINGS))
            raise ValueError(f"weighting must be one of {known}, or EDM(s), MinSNR(gamma) and such, got {weighting!r}")
        weighting = WEIGHTINGS[weighting]
    elif not isinstance(weighting, Weighting) or isinstance(weighting, type):
        raise TypeError(f"weighting must be a name or a Weighting, such as MinSNR(), got {described(weighting)}")
    one_of("reduction", reduction, ("mean", "sum", "none"))
    _, c_r = convert(prediction, weighting.error_of, sde.values(t))
    weight = (factor * weighting.weight(sde, t) * c_r**2).to(dtype=squares.dtype).to(squares.device)
    if reduction == "none":
        return expand(weight, squares) * squares
    reduced = flat(squares).mean(1) if reduction == "mean" else flat(squares).sum(1)
    return weight * reduced


def _label(t: Tensor, x: Tensor) -> Tensor:
    return t.to(dtype=x.dtype).to(x.device)


def _on(coefficient: Tensor | float, x: Tensor) -> Tensor:
    return expand(as_time(coefficient), x).to(x.device)
