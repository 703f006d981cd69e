"""Measured outputs of a score, by which runs tell whether a network is another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sgm_sde._utils.checks import sizes
from sgm_sde.identity import measured
from sgm_sde.processes.base import SDE, measuring_times
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.scores.score import Score

TIMES = 5  # at which a score is measured
ROWS = 4  # states at each of them
OUTPUTS = {torch.float64: 1e-3, torch.float32: 1e-3}  # within which outputs agree, by the network's dtype
HALF = 3e-2  # the same for float16 and bfloat16


@torch.no_grad()
def outputs(
    score: Score,
    shape: Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, object]:
    """Measured outputs of a score: projections of network output and score at fixed states and times.

    States are those of data N(0, 1/4), four at each of five times. The global random state stays as it is.

    Args:
        score: the score.
        shape: of one sample.
        labels: classes that samples take in turn, passed on as `y`.
        device: where the network is.
    """
    shape = sizes("shape", shape)
    generator = torch.Generator("cpu").manual_seed(0)
    rows: list[list[float]] = []
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)  # for networks that draw on it
        for k, t in enumerate(measuring_times(score.sde, TIMES)):
            normals = torch.randn((5, ROWS, *shape), generator=generator)
            kwargs = {} if labels is None else {"y": _labels(labels, k, device)}
            rows += _outputs_at(score, t, normals, device, kwargs)
    return measured(rows, OUTPUTS.get(score.dtype or torch.float32, HALF))


def _outputs_at(
    score: Score, t: float, normals: Tensor, device: torch.device | str, kwargs: Mapping[str, Tensor]
) -> list[list[float]]:
    """Projections of the network's output on two random directions, and of the score on a third, at a time."""
    data, noise, first, second, third = normals.unbind(0)
    x = _state(score.sde, data / 2, noise, t).to(device=device, dtype=torch.get_default_dtype())
    times = torch.full((ROWS,), t, dtype=x.dtype, device=x.device)
    out = score.output(x, times, **kwargs)
    predicted = score.convert("score", x, times, out)
    return [[*_projections(out, first), *_projections(out, second)], _projections(predicted, third)]


def _labels(labels: Sequence[int], k: int, device: torch.device | str) -> Tensor:
    """Labels (ROWS,) of the states at the k-th time: all classes in turn."""
    of_states = [labels[(ROWS * k + i) % len(labels)] for i in range(ROWS)]
    return torch.tensor(of_states, device=device)


def _state(sde: SDE, data: Tensor, noise: Tensor, t: float) -> Tensor:
    if has_scalar_marginal(sde):
        state: Tensor = float(sde.alpha(t)) * data + float(sde.sigma(t)) * noise
    else:
        state = sde.prior_transform(noise)
    return state


def _projections(value: Tensor, direction: Tensor) -> list[float]:
    """One number a row: its share along a random direction."""
    along = (value.detach().cpu().double() * direction.double()).reshape(ROWS, -1).sum(1)
    projections: list[float] = (along / direction[0].numel() ** 0.5).tolist()
    return projections
