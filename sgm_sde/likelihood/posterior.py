"""Posterior densities for independent observations, and where a density is largest, for simulation-based inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.checks import (
    check_integer,
    check_per_sample_scalar,
    instance_of,
    keywords,
    known_arguments,
    not_finite,
    number,
    require_function,
)
from sgm_sde._utils.elsewhere import OF_DENSITIES
from sgm_sde._utils.shapes import flat
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.likelihood.checks import check_points
from sgm_sde.likelihood.flow import log_prob
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores.composition import number_of, paired
from sgm_sde.scores.conditions import PerSample


@dataclass(frozen=True, eq=False)
class PosteriorResult:
    """Log-densities of a posterior given several observations, up to a constant.

    Attributes:
        value: (B,), in nats, up to a constant that all parameters have in common.
        stderr: standard error of `value` that the probes of the traces leave, (B,).
        error: bound on its numerical error, (B,): the sum over observations.
        each: log-density given each observation alone, (B, n).
        nfe: network calls, each on B times n samples.

    Examples:
        >>> one = torch.ones(2)
        >>> result = PosteriorResult(one, 0 * one, 0 * one, torch.ones(2, 3), nfe=40)
        >>> result.value.shape, result.each.shape
        (torch.Size([2]), torch.Size([2, 3]))
    """

    value: Tensor
    stderr: Tensor
    error: Tensor
    each: Tensor = field(repr=False)
    nfe: int


def log_posterior(
    score_fn: ScoreFn,
    sde: LinearSDE,
    theta: Tensor,
    observations: Tensor,
    log_prior: Callable[[Tensor], Tensor],
    *,
    argument: str = "y",
    **options: Any,
) -> PosteriorResult:
    r"""Log-density of a posterior given independent observations, each under its own flow.

    $$ \log p(\theta\mid y_1, \dots, y_n) = \sum_{j=1}^n \log p(\theta\mid y_j) + (1 - n)\log p(\theta)
       + \text{const} $$

    Exact for exact scores, unlike what the flow of `compose_posteriors` has. The constant is 0 for one observation.

    Args:
        score_fn: score of the posterior given one observation, `score_fn(theta, t, y=...)`.
        sde: a linear process.
        theta: parameters (B, *), floating.
        observations: y_1 to y_n, (n, *).
        log_prior: the prior's log-density, from parameters (B, *) to (B,).
        argument: the network's name for the observation.
        options: of `log_prob`, without `model_kwargs`.

    Raises:
        ValueError: for no observations, and as `log_prob`.

    Source: Geffner et al., 2023, arXiv:2209.14249, equation 3.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VESDE()
        >>> def posterior(x, t, y):  # prior N(0, 1), observed with noise of variance 1: N(y / 2, 1 / 2)
        ...     return -(x - y / 2) / (0.5 + sde.sigma(t)[:, None] ** 2)
        >>> prior = torch.distributions.Normal(0.0, 1.0)
        >>> theta = torch.tensor([[1.0], [0.0]])
        >>> y = torch.tensor([[1.0], [2.0]])
        >>> found = log_posterior(posterior, sde, theta, y, lambda x: prior.log_prob(x)[:, 0])
        >>> round(float(found.value[0] - found.value[1]), 1)  # of N(1, 1 / 3), but for what the flow's prior forgets
        1.5
    """
    theta = check_points(theta, "theta")
    n = number_of(observations)
    require_function("log_prior", log_prior, "from parameters (B, *) to log-densities (B,)", 1)
    instance_of("argument", argument, str, "a text")
    prior = log_prior(theta)
    check_per_sample_scalar("log_prior", prior, len(theta))

    many, y = paired(theta, observations)
    known_arguments("log_posterior", options, (*keywords(log_prob), "argument"), OF_DENSITIES)
    found = log_prob(score_fn, sde, many, model_kwargs={argument: PerSample(y)}, **options)
    each = found.value.view(len(theta), n)
    stderr = found.stderr.view(len(theta), n)
    error = found.error.view(len(theta), n)
    return PosteriorResult(
        value=each.sum(1) + (1 - n) * prior,
        stderr=stderr.square().sum(1).sqrt(),
        error=error.sum(1),
        each=each,
        nfe=found.nfe,
    )


@dataclass(frozen=True, eq=False)
class ModeResult:
    """Maxima of a log-density.

    Attributes:
        x: where they lie, (B, *).
        value: log-densities there, (B,).
        gradient: largest entry of the gradient there, (B,).
        converged: whether each gradient is below the tolerance, (B,).
        evaluations: of the density, each on all samples.

    Examples:
        >>> found = find_modes(lambda x: -(x - 1).square().sum(1), torch.zeros(1, 2))
        >>> found.x.round(decimals=3), found.converged
        (tensor([[1., 1.]]), tensor([True]))
    """

    x: Tensor
    value: Tensor
    gradient: Tensor
    converged: Tensor
    evaluations: int


@outside_inference_mode
def find_modes(
    log_density: Callable[[Tensor], Tensor], x: Tensor, *, gtol: float = 1e-4, max_iterations: int = 200
) -> ModeResult:
    r"""Local maxima of a log-density, such as maximum a posteriori (MAP) estimates, by gradient ascent from points.

    SciPy's L-BFGS-B on the sum over the batch, whose terms do not depend on one another. For a network's posterior the
    density is `lambda x: sg.log_prob(score, sde, x, enable_grad=True, ...).value`, on a grid of its own
    (`method=FixedGrid(96)`), so that it is one smooth function; with random traces give a seed. Start from samples:
    far from the modes a grid's error may have maxima of its own, of which `error` there tells. A start without a
    gradient, midway between two modes, stays where it is.

    Args:
        log_density: from points (B, *) to log-densities (B,), differentiable.
        x: where to start, (B, *), floating.
        gtol: the largest entry of a gradient at which a maximum is found.
        max_iterations: of L-BFGS.

    Raises:
        ValueError: for options out of range, and densities or gradients that are not finite.
        TypeError: for points that are not floating, and a density without a gradient.

    Source: Byrd et al., 1995, doi:10.1137/0916069 (L-BFGS-B).

    Examples:
        >>> import sgm_sde as sg
        >>> from sgm_sde.likelihood import FixedGrid
        >>> sde, oracle = sg.VPSDE(), sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
        >>> options = {"method": FixedGrid(48), "enable_grad": True}
        >>> def log_density(x):
        ...     return sg.log_prob(oracle.score(sde), sde, x, **options).value
        >>> found = find_modes(log_density, torch.tensor([[0.7], [-0.6]], dtype=torch.float64))
        >>> [round(x, 3) for x in found.x[:, 0].tolist()], found.converged.tolist()
        ([1.0, -1.0], [True, True])
    """
    from scipy.optimize import minimize

    require_function("log_density", log_density, "from points (B, *) to log-densities (B,)", 1)
    gtol = number("gtol", gtol, above=0)
    options = {"gtol": gtol, "ftol": 0.0, "maxiter": check_integer("max_iterations", max_iterations)}
    start = check_points(x)

    negative = partial(_negative, log_density, start)
    found = minimize(negative, _entries(start), jac=True, method="L-BFGS-B", options=options)
    best = torch.from_numpy(found.x).to(start).view(start.shape)
    value, gradient = _with_gradient(log_density, best)
    steepest = flat(gradient).abs().amax(1)
    return ModeResult(best.to(x.dtype), value, steepest, steepest <= gtol, int(found.nfev) + 1)


def _entries(points: Tensor) -> np.ndarray:
    """Points as one vector of float64, as SciPy takes them."""
    entries: np.ndarray = points.detach().double().cpu().numpy().reshape(-1)
    return entries


def _negative(log_density: Callable[[Tensor], Tensor], start: Tensor, entries: np.ndarray) -> tuple[float, np.ndarray]:
    """Minus the sum of log-densities at points like `start`, and its gradient, as SciPy takes them."""
    points = torch.from_numpy(entries).to(start).view(start.shape)
    value, gradient = _with_gradient(log_density, points)
    return -float(value.double().sum()), -_entries(gradient)


def _with_gradient(log_density: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    """Log-densities (B,) at points (B, *), and their gradients.

    Raises:
        TypeError: for a density without a gradient.
        ValueError: where one of the two is not finite.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        value = log_density(points)
        check_per_sample_scalar("the log-density", value, len(points))
        if not value.requires_grad:
            raise TypeError("the log-density has no gradient: give log_prob enable_grad=True")
        (gradient,) = torch.autograd.grad(value.sum(), points)

    for what, part in (("log-density", value), ("gradient", flat(gradient).sum(1))):
        for i in not_finite(part)[:1]:
            raise ValueError(f"the {what} of sample {i} is {part[i].item()}")
    return value.detach(), gradient
