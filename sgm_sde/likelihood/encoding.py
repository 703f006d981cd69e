"""Codes of the probability flow: there, back, and in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sgm_sde._autograd import outside_inference_mode
from sgm_sde._checks import FAR, described, not_finite, number, one_of, require_floating
from sgm_sde._shapes import flat
from sgm_sde.engine.adaptive import check_tolerances
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.likelihood import solve
from sgm_sde.likelihood.checks import (
    OnOutput,
    check_finite,
    check_points,
    check_process,
    require_count,
    value_or,
)
from sgm_sde.likelihood.results import FlowResult
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores.model import BoundModel
from sgm_sde.scores.score import as_score

METHODS = ("exponential", "adaptive")


def encode(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    *,
    eps: float | None = None,
    steps: int | None = None,
    method: str = "exponential",
    rtol: float | None = None,
    atol: float | None = None,
    data_std: float = 0.5,
    model_kwargs: Mapping[str, Any] | None = None,
    enable_grad: bool = False,
) -> FlowResult:
    """Latents of x: the probability flow from eps to T. `decode` goes back with the same method.

    The round trip's error is that of the method: on one fixed grid of order 4 in the steps, with steps of each
    sample's own by the tolerances.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        x: states (B, *) at eps, floating.
        eps: time of x; `sde.likelihood_eps` if not given.
        steps: of the grid, 48 if not given, one network call each and one more.
        method: `"exponential"`, the fixed grid, or `"adaptive"`, Dormand and Prince's pair with steps of each sample's
            own.
        rtol: relative tolerance, for `"adaptive"`; 1e-8 if not given.
        atol: absolute tolerance, for `"adaptive"`, in units of the data's spread at a time; 1e-8 if not given.
        data_std: standard deviation of the data, about which the grid is dense.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph.

    Raises:
        ValueError: for options out of range or states that are not finite.
        TypeError: for states that are not floating, or a process without alpha and sigma.

    Source: Song et al., 2021, arXiv:2011.13456.

    Example:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
        >>> x = oracle.sample(5, seed=0).double()
        >>> z = encode(oracle.score(sde), sde, x, steps=200).x
        >>> bool((decode(oracle.score(sde), sde, z, steps=200).x - x).abs().max() < 1e-4)
        True
    """
    return _carry(score_fn, sde, x, eps, steps, method, rtol, atol, data_std, model_kwargs, enable_grad, True)


def decode(
    score_fn: ScoreFn,
    sde: LinearSDE,
    z: Tensor,
    *,
    eps: float | None = None,
    steps: int | None = None,
    method: str = "exponential",
    rtol: float | None = None,
    atol: float | None = None,
    data_std: float = 0.5,
    model_kwargs: Mapping[str, Any] | None = None,
    enable_grad: bool = False,
) -> FlowResult:
    """States at eps from latents at T: the way back of `encode`, with the same arguments."""
    return _carry(score_fn, sde, z, eps, steps, method, rtol, atol, data_std, model_kwargs, enable_grad, False)


@outside_inference_mode
def _carry(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    eps: float | None,
    steps: int | None,
    method: str,
    rtol: float | None,
    atol: float | None,
    data_std: float,
    model_kwargs: Mapping[str, Any] | None,
    grad: bool,
    to_noise: bool,
) -> FlowResult:
    score = as_score(score_fn, sde)
    eps, state = check_process(sde, eps), check_points(x)
    one_of("method", method, METHODS)
    on_grid = method == "exponential"
    steps = value_or("steps", steps, 48, on_grid, "method='exponential'")
    rtol = value_or("rtol", rtol, 1e-8, not on_grid, "method='adaptive'")
    atol = value_or("atol", atol, 1e-8, not on_grid, "method='adaptive'")
    data_std = number("data_std", data_std, above=0, most=FAR)
    steps = require_count("steps", steps)
    check_tolerances(rtol, atol, 1)
    if grad and method == "adaptive":
        raise ValueError("method='adaptive' has no gradients: use 'exponential'")
    model = BoundModel(score, sde, (eps, sde.T), model_kwargs)
    carry: Callable[[OnOutput], Tensor] | None = None
    times: tuple[float, ...] = (eps, sde.T) if to_noise else (sde.T, eps)
    with torch.set_grad_enabled(grad):
        if method == "exponential":
            grid = solve.fixed_grid(sde, eps, steps, data_std, to_noise)
            carry = partial(grid.carry, model, state)
            end, times = grid.carry(model, state), grid.times
        else:
            flow = solve.NormalisedFlow(model, sde, state, eps, data_std)
            (end,) = solve.adaptive(flow, state, rtol, atol, to_noise=to_noise)
    check_finite(end, "the other end", carry)
    cast = end.to(x.dtype)
    for i in not_finite(cast)[:1]:
        raise ValueError(f"the other end of sample {i} is beyond {x.dtype}: give x in float32")
    return FlowResult(cast, model.nfe, times)


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    r"""Spherical interpolation between latents (B, *), which keeps the norm that noise has.

    $$ \frac{\sin((1-w)\theta)}{\sin\theta}\,a + \frac{\sin(w\theta)}{\sin\theta}\,b $$

    with the angle theta between a and b, sample by sample; linear where they point the same way.

    Args:
        a: latents at weight 0.
        b: latents at weight 1.
        weight: w, a number or one a sample (B,).

    Raises:
        ValueError: for shapes that differ.

    Source: Shoemake, 1985, doi:10.1145/325334.325242.

    Example:
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> slerp(a, b, 0.5)
        tensor([[1.4142, 1.4142]])
    """
    for name, value in (("a", a), ("b", b)):
        require_floating(name, value)
    if a.shape != b.shape:
        raise ValueError(f"latents must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not isinstance(weight, Tensor):
        weight = number("weight", weight)
    elif weight.shape not in ((), (len(a),)) or not weight.is_floating_point():
        raise ValueError(f"weight must be a number or ({len(a)},), got {described(weight)}")
    w = torch.as_tensor(weight, dtype=a.dtype, device=a.device).reshape(-1, *[1] * (a.ndim - 1))
    cosine = torch.nn.functional.cosine_similarity(flat(a), flat(b), dim=1).clamp(-1, 1)
    theta = torch.arccos(cosine).reshape(-1, *[1] * (a.ndim - 1))
    sine = theta.sin()
    straight = sine < 1e-6
    safe = torch.where(straight, 1.0, sine)
    return torch.where(straight, (1 - w) * a + w * b, ((1 - w) * theta).sin() / safe * a + (w * theta).sin() / safe * b)
