r"""What published networks expect as their time input, as functions of t.

| network                                 | label                           | here                           |
|-----------------------------------------|---------------------------------|--------------------------------|
| DDPM with N steps (Ho et al., diffusers)| index 0..N-1 at t = (i + 1)/N   | `ddpm(n)`                      |
| score_sde, VP and sub-VP                | 999 t                           | `score_sde_vp()`               |
| score_sde, VE, continuous               | sigma(t)                        | `score_sde_ve(sde)`            |
| score_sde, VE, discrete, N levels       | index from the noise, (N-1)(1-t)| `score_sde_ve_discrete(n)`     |
| EDM, with its preconditioning           | sigma / alpha                   | `noise_level(sde)`             |
| EDM, the bare network                   | log(sigma / alpha) / 4          | `edm_c_noise(sde)`             |
| rectified flow, flow matching           | t (or scale * t)                | `flow(scale)`                  |

Each function here returns the label function to hand to `from_noise` and its siblings.

Example:
    >>> import torch
    >>> ddpm(1000)(torch.tensor([0.001, 1.0]))
    tensor([  0., 999.])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sgm_sde.processes import LinearSDE

TimeLabel = Callable[[Tensor], Tensor]


def ddpm(n: int = 1000, *, integer: bool = False) -> TimeLabel:
    """DDPM's index N t - 1 (Ho et al., 2020, arXiv:2006.11239).

    Args:
        n: size of the table.
        integer: round to int64, for networks that look their time up in a table.
    """
    return lambda t: (n * t - 1).round().long() if integer else n * t - 1


def score_sde_vp() -> TimeLabel:
    """999 t (Song et al., 2021, arXiv:2011.13456; VP and sub-VP)."""
    return lambda t: 999 * t


def score_sde_ve(sde: LinearSDE) -> TimeLabel:
    """sigma(t), of which the network takes the logarithm (Song et al., 2021, arXiv:2011.13456)."""
    return sde.sigma


def score_sde_ve_discrete(n: int = 1000) -> TimeLabel:
    """Index of the noise level counted from the largest (Song et al., 2021, arXiv:2011.13456)."""
    return lambda t: ((n - 1) * (1 - t)).round().long()


def noise_level(sde: LinearSDE) -> TimeLabel:
    """sigma / alpha, which EDM's preconditioned networks take (Karras et al., 2022, arXiv:2206.00364)."""
    return lambda t: (-sde.log_snr(t) / 2).exp()


def edm_c_noise(sde: LinearSDE) -> TimeLabel:
    """log(sigma / alpha) / 4, what the network inside EDM's preconditioning sees."""
    return lambda t: -sde.log_snr(t) / 8


def flow(scale: float = 1.0) -> TimeLabel:
    """scale * t, with t = 0 the data (Liu et al., 2022, arXiv:2209.03003)."""
    return lambda t: scale * t


def flow_from_noise(scale: float = 1.0) -> TimeLabel:
    """scale * (1 - t), for networks whose time runs from noise to data (Lipman et al., 2022, arXiv:2210.02747)."""
    return lambda t: scale * (1 - t)


def integer_table(times: Tensor) -> TimeLabel:
    """Index of the nearest entry of a table of times, int64."""
    return lambda t: (t[..., None] - times.to(t)).abs().argmin(-1).to(torch.int64)
