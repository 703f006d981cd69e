"""Argument checks shared by all likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Integral

import torch
from torch import Tensor

from sgm_sde._utils.autograd import refuse_transformed
from sgm_sde._utils.checks import (
    check_integer,
    check_output,
    check_per_sample_scalar,
    described,
    has_numbers,
    not_finite,
)
from sgm_sde._utils.warn import warn
from sgm_sde.engine.adaptive import rms
from sgm_sde.engine.noise import NoiseStream, resolve_seeds
from sgm_sde.engine.times import at_ends
from sgm_sde.likelihood.grid import WIDE
from sgm_sde.likelihood.problem import Problem
from sgm_sde.likelihood.results import FlowResult, LogProbResult, Unresolved
from sgm_sde.processes.base import require_sde
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.scores.gradient import LOST, OF_LOST, lost_share

MOST_ERROR = 1.0  # nats/dim; beyond, the density of a sample is not known
SMALLEST = 1e-15  # noise that densities are taken at: states are numbers of order one in single or double precision

require_count = partial(check_integer, kind=Integral)  # as loops take it


def check_process(sde: LinearSDE, eps: float | None) -> float:
    """eps, or the process' own, for densities on it.

    Raises:
        TypeError: for a process without alpha and sigma.
        ValueError: for eps outside of (0, T), or without noise.
        RuntimeError: within a transformation of `torch.func`.
    """
    refuse_transformed(
        "densities and codes look at values", "for gradients take enable_grad=True and torch.autograd.grad"
    )
    require_sde(sde)
    if not has_scalar_marginal(sde):
        raise TypeError(f"likelihoods need a LinearSDE, got {described(sde)}")
    eps = end_of_data(sde, eps)
    if float(sde.sigma(eps)) < SMALLEST:
        raise ValueError(f"eps={eps:g} leaves noise of {float(sde.sigma(eps)):g}, less than numbers here resolve")
    return eps


def end_of_data(sde: LinearSDE | MatrixSDE, eps: float | None) -> float:
    """eps, or the process' own; 0 where there is noise at 0, as with VDM's log-SNR.

    Raises:
        ValueError: for eps outside of (0, T).
    """
    eps = sde.likelihood_eps if eps is None else at_ends(sde, eps, sde.likelihood_eps, option="eps")
    if eps == 0 and has_scalar_marginal(sde) and float(sde.sigma(0.0)) >= SMALLEST:
        return eps
    if not 0 < eps < sde.T:
        raise ValueError(f"eps must lie in (0, T) = (0, {sde.T}), got {eps}")
    return eps


def check_points(x: Tensor, name: str = "x") -> Tensor:
    """x (B, *), which the caller knows by a name, at least float32.

    Raises:
        TypeError: for anything that is no floating tensor.
        ValueError: for no samples, and values that are not finite.
    """
    if not has_numbers(x) or not x.is_floating_point() or x.ndim == 0:
        given = f"dtype {x.dtype}" if has_numbers(x) and x.ndim else described(x)
        integers = "; for images of integers use bits_per_dim" if name == "x" else ""
        raise TypeError(f"{name} must be a floating tensor (B, *), got {given}{integers}")
    if len(x) == 0:
        raise ValueError(f"{name} must hold at least one sample, got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"samples of {name} must hold at least one number, got shape {tuple(x.shape)}")
    for i in not_finite(x)[:1]:
        raise ValueError(f"{name} must be finite, sample {i} is not")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def given_log_prob(prior: Callable[[Tensor], Tensor], first: int, latent: Tensor) -> Tensor:
    """Log-densities (B,) of latents (B, *), the first of a number in the batch, under a prior given by the caller.

    Raises:
        ValueError: for anything but one finite number per sample, where the latents are finite.
    """
    value = prior(latent)
    check_per_sample_scalar("the prior", value, len(latent))
    for i in not_finite(value)[:1] if not not_finite(latent) else ():
        raise ValueError(f"the prior's log-density of sample {first + i} is {value[i].item()}")
    return value


class LikelihoodWarning(UserWarning):
    """The numerical error of some log-likelihoods or codes did not come down to the tolerance, or they are wrong since
    the network's gradient is not that of its output."""


def warn_of_lost_gradient(problem: Problem, x: Tensor, data_std: float) -> None:
    """Warn of a network that loses some of its gradient, by three calls at the states x (B, *) of the data's end with
    noise, a third of the data's standard deviation; without any call where nothing in it can lose one."""
    model = problem.model
    if not model.cuts:
        return

    sde = problem.sde
    level = torch.tensor(data_std / 3, dtype=torch.float64)
    t = float(sde.time_of_noise_level(level).clamp(problem.eps, sde.T))
    (node,) = sde.nodes([t])
    stream = NoiseStream(resolve_seeds(0, None, len(x)), "probe")
    shape = tuple(x.shape)
    noise = stream.normal(shape, x.dtype, x.device)
    z = stream.normal(shape, x.dtype, x.device).sign()
    noised = node.alpha * x.detach() + node.sigma * noise
    times = model.times([t], noised)[0]

    lost = lost_share(lambda x: model.output(x, times), noised, z, node.sigma)
    model.vjps += 1
    if lost > LOST:
        warn(
            f"the log-likelihoods are wrong: the network's gradient is not that of its output, {lost:.0%} of {OF_LOST}",
            LikelihoodWarning,
        )


def unknown_densities(error: Tensor, d: int) -> Unresolved:
    """The samples whose error (B,) on a single grid leaves nothing known of their density."""
    known = error.detach() <= MOST_ERROR * d
    return Unresolved.by_error(~known)


def warn_unresolved(result: LogProbResult, x: Tensor | None = None) -> None:
    """Warn of the samples whose error did not come down to the tolerance, if there are any, and of what may help where
    the points x (B, *) lie far out."""
    d = result.latent[0].numel()
    hint = "" if x is None else _of_far_points(result, x)
    _warn_of_first(result, result.error / d, "nats/dim", getattr(result.method, "atol", None), hint)


def _of_far_points(result: LogProbResult, x: Tensor) -> str:
    """Words on the scale that steps are placed for, if the first of the unresolved lies beyond."""
    spread = getattr(result.method, "data_std", None)
    if spread is None or not result.unresolved:
        return ""

    distance = float(rms(x[result.unresolved[0]][None].detach())[0])
    if distance <= WIDE * spread:
        return ""
    name = type(result.method).__name__
    rounded = float(f"{distance:.1g}")
    return (
        f"; its numbers are around {rounded:g}, and steps are placed for data around 0 of standard deviation "
        f"{spread:g}: if data lie there, give method={name}(data_std={rounded:g})"
    )


def warn_of_codes(result: FlowResult) -> None:
    """Warn of the states whose error did not come down to the tolerance, if there are any."""
    assert result.error is not None
    if result.log_prob is None:
        _warn_of_first(result, result.error, "in units of the state")
    else:
        _warn_of_first(result, result.error / result.x[0].numel(), "nats/dim", MOST_ERROR)


def _warn_of_first(
    result: LogProbResult | FlowResult, error: Tensor, unit: str, tolerance: float | None = None, hint: str = ""
) -> None:
    """Warn of the samples whose error (B,) in a unit did not come down to the tolerance, with that of the first."""
    for i in result.unresolved[:1]:
        said = apart(float(error[i]), tolerance)
        warn(
            f"{result.status}; the error of sample {i} is {said} {unit}, result.unresolved names them{hint}",
            LikelihoodWarning,
        )


def apart(value: float, other: float | None) -> str:
    """A number in the fewest digits, two at least, that tell it from another one, if there is one.

    Examples:
        >>> apart(0.012345, 1e-4), apart(1.0042e-4, 1e-4)
        ('0.012', '0.0001004')
    """
    written = [f"{value:.{digits}g}" for digits in range(2, 18)]
    return next((each for each in written if float(each) != other), written[0])


OnOutput = Callable[..., None]


def check_finite(value: Tensor, what: str, run: Callable[[OnOutput], object] | None = None, *, first: int = 0) -> None:
    """Raise ValueError, naming the sample, unless all values (B, *) are finite.

    `run` repeats the integration with a callback on each state, output, time and trace, to find the time at which
    values cease to be finite. `first` is the number of the first sample in the caller's batch.
    """
    bad = not_finite(value)
    if not bad:
        return
    if run is not None:
        with torch.no_grad():
            run(partial(check_output, among=bad, first=first))
    shown = f"{what} of sample {first + bad[0]} is {value[bad[0]].item() if value.ndim == 1 else 'not finite'}"
    raise ValueError(f"{shown}: the score is not finite")
