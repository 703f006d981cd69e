"""Scores composed of scores for independent observations, as in simulation-based inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sgm_sde._utils.checks import require_floating, require_function
from sgm_sde._utils.shapes import expand
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores.conditions import PerSample
from sgm_sde.scores.score import Score, as_density, from_score, require_score


def compose_posteriors(
    score_fn: ScoreFn,
    sde: LinearSDE,
    observations: Tensor,
    prior_score: Callable[[Tensor], Tensor],
    *,
    argument: str = "y",
) -> Score:
    r"""Score of the bridging densities of a posterior given several independent observations.

    A network that knows the posterior of parameters given one observation, $\nabla\log p_t(\theta\mid y)$, is asked
    about each of n, and the score of the prior, which all of them contain, is taken out n - 1 times:

    $$ s_t(\theta) = \sum_{j=1}^n \nabla\log p_t(\theta\mid y_j) + (1 - n)\,w_t\,\nabla\log p(\theta),
       \qquad w_t = \frac{\alpha_t^2}{\alpha_t^2 + \sigma_t^2} $$

    It is the score of $\prod_j p_t(\theta\mid y_j)\;p(\theta)^{(1-n)w_t}$, normalised: with the prior's own density,
    not diffused, at the state as it is. At t = 0 that is the posterior $p(\theta\mid y_1, \dots, y_n)$, at T about
    $N(0, \sigma_T^2/n)$. The paper has $w_t = 1 - t/T$, on VP; by the noise level, the density exists on every linear
    process where the prior's standard deviations are 1 or more: standardise the parameters. In between it is *not* the
    posterior diffused to t, so that solvers of the reverse SDE or of the flow do not end in the posterior, nor is
    `log_prob` of it the posterior's density. Sample with
    `AnnealedLangevin`, a step ratio of 1/n or less, from `x_T` of standard deviation $\sigma_T/\sqrt n$; for densities
    there is `sgm_sde.likelihood.log_posterior`.

    Args:
        score_fn: score of the posterior given one observation, `score_fn(theta, t, y=...)`.
        sde: a linear process.
        observations: y_1 to y_n, (n, *).
        prior_score: the prior's score, from parameters (B, *) to (B, *).
        argument: the network's name for the observation.

    Raises:
        ValueError: for no observations, or a prior's score of another shape.
        TypeError: for observations that are not floating.

    Source: Geffner et al., 2023, arXiv:2209.14249, equation 6.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VESDE(sigma_max=5.0)
        >>> def posterior(x, t, y):  # prior N(0, 1), observed with noise of variance 1: N(y / 2, 1 / 2)
        ...     return -(x - y / 2) / (0.5 + sde.sigma(t)[:, None] ** 2)
        >>> score = compose_posteriors(posterior, sde, torch.tensor([[1.0], [2.0]]), lambda x: -x)
        >>> round(float(score(torch.zeros(1, 1), torch.tensor([1e-5]))), 2)  # of N(1, 1 / 3) at 0
        3.0
    """
    n = number_of(observations)
    require_function("prior_score", prior_score, "from parameters (B, *) to scores (B, *)", 1)
    single = require_score(as_density(score_fn, sde), "compose_posteriors")

    def score(x: Tensor, t: Tensor) -> Tensor:
        theta, y = paired(x, observations)
        posteriors = single(theta, t.repeat_interleave(n), **{argument: PerSample(y)})
        posteriors = posteriors.view(len(x), n, *x.shape[1:])
        prior = prior_score(x)
        if prior.shape != x.shape:
            raise ValueError(f"prior_score must return {tuple(x.shape)}, got {tuple(prior.shape)}")
        return posteriors.sum(1) + expand(_prior_weight(sde, t, n), x) * prior

    return from_score(score, sde)


def number_of(observations: Tensor) -> int:
    """The number of observations (n, *), at least one.

    Raises:
        TypeError: for what is not floating.
        ValueError: for none.
    """
    require_floating("observations", observations)
    n = len(observations) if observations.ndim else 0
    if n == 0:
        raise ValueError(f"observations must be (n, *) with n of at least 1, got shape {tuple(observations.shape)}")
    return n


def _prior_weight(sde: LinearSDE, t: Tensor, n: int) -> Tensor:
    """(1 - n) w_t."""
    signal = sde.alpha(t).square()
    noise = sde.sigma(t).square()
    return (1 - n) * signal / (signal + noise)


def paired(x: Tensor, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample of (B, *) with each of n observations, the observations of a sample one after the other."""
    y = observations.to(x.device).repeat(len(x), *[1] * (observations.ndim - 1))
    return torch.repeat_interleave(x, len(observations), 0), y
