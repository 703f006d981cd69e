"""Forward simulation of a process, by Euler-Maruyama."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, moments, require_floating
from sgm_sde.engine.noise import Generators, NoiseStream, Seeds, resolve_seeds
from sgm_sde.engine.reverse import forward_drift
from sgm_sde.engine.times import ROUNDING
from sgm_sde.processes.base import SDE, require_sde
from sgm_sde.processes.matrix import apply


def simulate(
    sde: SDE,
    x0: Tensor,
    times: Sequence[float] | Tensor,
    *,
    substeps: int = 100,
    seed: Seeds = None,
    generator: Generators = None,
) -> Tensor:
    r"""Paths of the forward process from data, for processes whose marginal is not known in closed form.

    Euler-Maruyama: with $h$ the length of a step and $z \sim N(0, I)$,

    $$ x_{t+h} = x_t + f(x_t, t)\,h + \sqrt{h}\,g(t)\,z $$

    of strong order 1 (the noise is additive) and weak order 1. Path i depends on its own seed alone.

    Args:
        sde: any process, nonlinear ones and those with a matrix too.
        x0: states (B, *) at the first of the times.
        times: increasing times in [0, T], at which the states are returned.
        substeps: equal steps between one time and the next.
        seed: one int, or one per sample; without seed and generator, fresh entropy.
        generator: one `torch.Generator`, or one per sample, from which the seeds are drawn.

    Returns:
        states (len(times), B, *), the first of them x0.

    Raises:
        ValueError: for times that do not increase or are outside of [0, T], and fewer than one substep.
        TypeError: for an `sde` that is no process, or states that are not a floating-point tensor.

    Source: Maruyama, 1955, doi:10.1007/BF02846028.

    Examples:
        >>> import sgm_sde as sg
        >>> paths = simulate(sg.VPSDE(), torch.ones(1000, 1), [0.0, 0.5, 1.0], seed=0)
        >>> paths.shape, bool((paths[-1].std() - 1).abs() < 0.1)
        (torch.Size([3, 1000, 1]), True)
    """
    require_sde(sde)
    require_floating("x0", x0)
    substeps = check_integer("substeps", substeps)
    visited = _increasing(sde, times)
    seeds = resolve_seeds(seed, generator, len(x0))
    noise = NoiseStream(seeds, "forward", visited[0])

    dtype = torch.promote_types(x0.dtype, torch.float32)
    x = x0.to(dtype)
    states = [x]

    for start, end in pairwise(visited):
        h = (end - start) / substeps
        for i in range(substeps):
            z = noise.normal(tuple(x.shape), dtype, x.device)
            x = _euler_maruyama(sde, x, start + i * h, h, z)
        states.append(x)
    return torch.stack(states)


def _euler_maruyama(sde: SDE, x: Tensor, t: float, h: float, z: Tensor) -> Tensor:
    """The state a step of length h later, with standard normal noise z."""
    at = torch.tensor(t, dtype=torch.float64).to(x)
    g = sde.g(at)
    gz = apply(g, z) if g.ndim else g * z  # a matrix over the blocks of the state, or a number
    return x + h * forward_drift(sde, x, at) + math.sqrt(h) * gz


def _increasing(sde: SDE, times: Sequence[float] | Tensor) -> list[float]:
    visited = moments("times", times)
    increase = all(s < t for s, t in pairwise(visited))  # False for NaN, too
    if not visited or not increase or not (visited[0] >= 0 and visited[-1] <= sde.T * (1 + ROUNDING)):
        raise ValueError(f"times must increase within [0, T] = [0, {sde.T}], got {described(times)}")
    return visited
