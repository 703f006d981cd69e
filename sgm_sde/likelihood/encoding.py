"""Codes of the probability flow: there, back, and in between."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sgm_sde._utils.autograd import gradients, outside_inference_mode
from sgm_sde._utils.checks import described, flag, not_finite, number, require_floating
from sgm_sde._utils.elsewhere import OF_FLOWS, named_elsewhere
from sgm_sde._utils.shapes import flat
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.noise import Seeds, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.likelihood.checks import (
    check_finite,
    check_points,
    check_process,
    unknown_densities,
    warn_of_codes,
    warn_of_lost_gradient,
)
from sgm_sde.likelihood.integrals import on_grid
from sgm_sde.likelihood.methods import FixedGrid, Method, Trace, resolve_method, resolve_trace
from sgm_sde.likelihood.nodes import fixed_grid
from sgm_sde.likelihood.problem import Problem
from sgm_sde.likelihood.results import FlowResult
from sgm_sde.likelihood.trace import TraceScore
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores.score import as_density, as_score


@named_elsewhere(OF_FLOWS)
def encode(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    *,
    eps: float | None = None,
    method: str | Method = "exponential",
    model_kwargs: Conditions | None = None,
    enable_grad: bool = False,
) -> FlowResult:
    """Latents of x: the probability flow from eps to T. `decode` integrates back with the same method.

    The error of the round trip is that of the method: of order 5 in the steps on a fixed grid, and set by the
    tolerances for adaptive methods. `error` is what is off in each sample, root mean square over its numbers, in units
    of the state; the default takes more steps for samples in which it exceeds 1e-3 of the spread.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        x: states (B, *) at eps, floating.
        eps: time of x; `sde.likelihood_eps` if not given.
        method: `FixedGrid` (`"exponential"`), one network call per step and one more, or `AdaptiveFlow` (`"adaptive"`),
            whose tolerances are 1e-8 if not given.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph.

    Raises:
        ValueError: for options out of range or states that are not finite.
        TypeError: for states that are not floating, or a process without alpha and sigma.

    Warns:
        LikelihoodWarning: where the error of some samples did not come down to the tolerance.

    Source: Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
        >>> x = oracle.sample(5, seed=0).double()
        >>> z = encode(oracle.score(sde), sde, x, method=FixedGrid(200)).x
        >>> bool((decode(oracle.score(sde), sde, z, method=FixedGrid(200)).x - x).abs().max() < 1e-4)
        True
    """
    return _carry(score_fn, sde, x, eps, method, model_kwargs, enable_grad, True)


@named_elsewhere(OF_FLOWS)
def decode(
    score_fn: ScoreFn,
    sde: LinearSDE,
    z: Tensor,
    *,
    eps: float | None = None,
    method: str | Method = "exponential",
    model_kwargs: Conditions | None = None,
    enable_grad: bool = False,
    log_prob: bool = False,
    trace: str | Trace | None = None,
    seed: Seeds = None,
) -> FlowResult:
    """States at eps from latents at T: the way back of `encode`, with the same arguments.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        z: latents (B, *) at T, floating.
        eps: time of the states; `sde.likelihood_eps` if not given.
        method: as for `encode`.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph.
        log_prob: whether the log-density of the states is found in the same network calls, under N(0, sigma(T)^2) at T,
            on the one grid of a `FixedGrid`; samples whose error is above 1 nat/dim are `unresolved`.
        trace: for it, as `log_prob` takes it.
        seed: of its probes.

    Raises:
        ValueError: as `encode`, for options of a density without one, and for tolerances or `max_calls` with one, which
            are for going on to finer grids.

    Warns:
        LikelihoodWarning: as `encode`, and of samples whose density is not known.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
        >>> z = sde.prior_sample((5, 1), seed=0, dtype=torch.float64)
        >>> found = decode(oracle.score(sde), sde, z, log_prob=True)
        >>> bool((found.log_prob - oracle.log_prob(found.x, sde, 1e-5)).abs().max() < 1e-2)
        True
    """
    log_prob = flag("log_prob", log_prob)
    if not log_prob:
        for option, given in {"trace": trace, "seed": seed}.items():
            if given is not None:
                raise ValueError(f"{option}={given!r} is for log_prob=True: it would do nothing here")
        return _carry(score_fn, sde, z, eps, method, model_kwargs, enable_grad, False)
    return _with_density(score_fn, sde, z, eps, method, model_kwargs, enable_grad, trace, seed)


@outside_inference_mode
def _with_density(
    score_fn: ScoreFn,
    sde: LinearSDE,
    z: Tensor,
    eps: float | None,
    method: str | Method,
    model_kwargs: Conditions | None,
    grad: bool,
    trace: str | Trace | None,
    seed: Seeds,
) -> FlowResult:
    """States at eps with their log-density: the prior's, less what the flow's volume adds on the way."""
    score = as_density(score_fn, sde)
    method = resolve_method(method)
    eps = check_process(sde, eps)
    state = check_points(z, "z")
    if not isinstance(method, FixedGrid):
        raise ValueError(f"log_prob=True needs method=FixedGrid(...), got {described(method)}")
    for option in ("atol", "rtol", "max_calls"):
        if (given := getattr(method, option)) != getattr(FixedGrid, option):
            raise ValueError(
                f"log_prob=True runs one grid, on which {option}={given} would do nothing: leave it out, "
                f"or ask log_prob() of the states"
            )
    seeds = resolve_seeds(seed, None, len(z))
    estimate = resolve_trace(trace, state).estimate(state, seeds, True)
    model = TraceScore(score, sde, (eps, sde.T), model_kwargs, len(z))
    problem = Problem(model, state, eps, estimate, to_noise=False, prior_std=sde.prior_std)
    steps = method.steps_on(problem)
    with gradients(grad):
        found, _ = on_grid(problem, steps, method.data_std)
        value = sde.prior_log_prob(state) - found.volume
    check_finite(value, "the log-likelihood")
    check_finite(found.latent, "the other end")

    warn_of_lost_gradient(problem, found.latent, method.data_std)
    x = found.latent.to(z.dtype)
    times = fixed_grid(sde, eps, steps, method.data_std, False).times
    unresolved = unknown_densities(found.stated, problem.d)
    result = FlowResult(
        x,
        model.nfe,
        times,
        log_prob=value,
        stderr=found.stderr,
        error=found.stated,
        unresolved=unresolved.samples,
        reasons=unresolved.reasons,
    )
    warn_of_codes(result)
    return result


@outside_inference_mode
def _carry(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    eps: float | None,
    method: str | Method,
    model_kwargs: Conditions | None,
    grad: bool,
    to_noise: bool,
) -> FlowResult:
    score = as_score(score_fn, sde)
    method = resolve_method(method)
    eps = check_process(sde, eps)
    state = check_points(x, "x" if to_noise else "z")
    if grad and not (method.differentiable and isinstance(method, FixedGrid)):
        raise ValueError(f"{method!r} has no gradients: use FixedGrid")
    model = TraceScore(score, sde, (eps, sde.T), model_kwargs, len(x))
    problem = Problem(model, state, eps, to_noise=to_noise)

    with gradients(grad):
        found = method.carry(problem)
    check_finite(found.x, "the other end", partial(method.again, problem))
    cast = found.x.to(x.dtype)
    for i in not_finite(cast)[:1]:
        raise ValueError(f"the other end of sample {i} is beyond {x.dtype}: give x in float32")
    result = FlowResult(
        cast,
        model.nfe,
        found.times,
        error=found.error,
        unresolved=found.unresolved.samples,
        reasons=found.unresolved.reasons,
        method=method,
    )
    warn_of_codes(result)
    return result


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    r"""Spherical interpolation between latents (B, *), which preserves the norm of Gaussian noise.

    $$ \frac{\sin((1-w)\theta)}{\sin\theta}\,a + \frac{\sin(w\theta)}{\sin\theta}\,b $$

    with the angle theta between a and b of each sample; linear interpolation where they are parallel.

    Args:
        a: latents at weight 0.
        b: latents at weight 1.
        weight: w, a number or one per sample (B,).

    Raises:
        ValueError: for shapes that differ.

    Source: Shoemake, 1985, doi:10.1145/325334.325242.

    Examples:
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> slerp(a, b, 0.5)
        tensor([[1.4142, 1.4142]])
    """
    _check_latents(a, b)
    shape = (-1, *[1] * (a.ndim - 1))
    w = _weights(weight, a).reshape(shape)
    cosine = torch.nn.functional.cosine_similarity(flat(a), flat(b), dim=1)
    theta = torch.arccos(cosine.clamp(-1, 1)).reshape(shape)

    sine = theta.sin()
    parallel = sine < 1e-6
    safe = torch.where(parallel, 1.0, sine)
    linear = (1 - w) * a + w * b
    spherical = ((1 - w) * theta).sin() / safe * a + (w * theta).sin() / safe * b
    return torch.where(parallel, linear, spherical)


def _check_latents(a: Tensor, b: Tensor) -> None:
    """Raise unless these are floating tensors of one shape."""
    for name, value in (("a", a), ("b", b)):
        require_floating(name, value)
    if a.shape != b.shape:
        raise ValueError(f"latents must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def _weights(weight: float | Tensor, a: Tensor) -> Tensor:
    """Weights for latents a (B, *): a number or (B,).

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(weight, Tensor):
        weight = number("weight", weight)
    elif weight.shape not in ((), (len(a),)) or not weight.is_floating_point():
        raise ValueError(f"weight must be a number or ({len(a)},), got {described(weight)}")
    return torch.as_tensor(weight, dtype=a.dtype, device=a.device)
