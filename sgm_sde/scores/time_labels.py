r"""Time labels of published networks, as functions of t.

| network                                 | label                           | here                           |
|-----------------------------------------|---------------------------------|--------------------------------|
| DDPM with N steps (Ho et al., diffusers)| index 0..N-1 at t = (i + 1)/N   | `ddpm(n)`                      |
| the same, looked up in an `nn.Embedding`| the nearest index, int64        | `ddpm(n, integer=True)`        |
| score_sde, VP and sub-VP                | 999 t                           | `score_sde_vp()`               |
| score_sde, VE, continuous               | sigma(t)                        | `score_sde_ve(sde)`            |
| score_sde, VE, discrete, N levels       | index of sigma from the noise   | `score_sde_ve_discrete(sde)`   |
| EDM, with its preconditioning           | sigma / alpha                   | `noise_level(sde)`             |
| EDM, the bare network                   | log(sigma / alpha) / 4          | `edm_c_noise(sde)`             |
| rectified flow, flow matching           | t (or scale * t)                | `flow(scale)`                  |

Each function here returns the label function to hand to `from_noise` and its siblings.

Examples:
    >>> import torch
    >>> ddpm(1000)(torch.tensor([0.001, 1.0]))
    tensor([  0., 999.])
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, flag, number, require_function
from sgm_sde.engine import coordinates
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import no_ladder

if TYPE_CHECKING:
    from sgm_sde.processes import DiscreteVPSDE, LinearSDE

TimeLabel = Callable[[Tensor], Tensor]


def _require_linear(sde: object) -> None:
    if not has_scalar_marginal(sde):
        raise TypeError(f"the label is a noise level of a LinearSDE, got {described(sde)}")


def ddpm(n: int | DiscreteVPSDE = 1000, *, integer: bool = False) -> TimeLabel:
    """DDPM's index N t - 1 (Ho et al., 2020, arXiv:2006.11239).

    Args:
        n: size of the table, or the process that has it.
        integer: the nearest entry of the table as int64, for networks that look their time up in an `nn.Embedding`.

    Raises:
        ValueError: for a size that is not an integer of at least 1.

    Examples:
        >>> import torch
        >>> ddpm(1000, integer=True)(torch.tensor([1e-5, 0.0106, 1.0]))
        tensor([  0,  10, 999])
    """
    size = check_integer("n", len(n.table_times or ()) if has_scalar_marginal(n) else n)
    integer = flag("integer", integer)
    return partial(_index, size=size, integer=integer)


def score_sde_vp() -> TimeLabel:
    """999 t (Song et al., 2021, arXiv:2011.13456; VP and sub-VP).

    Examples:
        >>> score_sde_vp()(0.5)
        499.5
    """
    return partial(_scaled, scale=999)


def score_sde_ve(sde: LinearSDE) -> TimeLabel:
    """sigma(t), of which the network takes the logarithm (Song et al., 2021, arXiv:2011.13456).

    Raises:
        TypeError: for a process without alpha(t) and sigma(t).

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> score_sde_ve(sg.EDMSDE())(torch.tensor([0.5, 2.0]))
        tensor([0.5000, 2.0000])
    """
    _require_linear(sde)
    return sde.sigma


def score_sde_ve_discrete(sde: LinearSDE, levels: int | None = None) -> TimeLabel:
    r"""Index of the noise level counted from the largest, int64 (Song et al., 2021, arXiv:2011.13456).

    It is looked up in sigma, nearest in its logarithm: a ladder has its times at $(i + 1)/N$, the continuous process
    passes the same levels at $i/(N - 1)$.

    Args:
        sde: the process: `DiscreteVESDE`, whose table of sigmas is the ladder, or another one.
        levels: number of levels, even in log sigma from the process' smallest to its largest one, for a process without
            a table; 1000 if not given.

    Raises:
        TypeError: for a process without sigmas, and a number in its place.
        ValueError: for `levels` of a process that has a table.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> sde = sg.DiscreteVESDE([10.0, 1.0, 0.1, 0.01])
        >>> score_sde_ve_discrete(sde)(torch.tensor(sde.times))
        tensor([3, 2, 1, 0])
    """
    if not has_scalar_marginal(sde):
        raise no_ladder(sde)
    table = sde.ladder(levels).log()

    def label(t: Tensor) -> Tensor:
        log_sigma = sde.sigma(t).double().log()
        distance = (log_sigma[..., None] - table.to(log_sigma.device)).abs()
        return distance.argmin(-1)

    return label


def noise_level(sde: LinearSDE) -> TimeLabel:
    """sigma / alpha, which EDM's preconditioned networks take (Karras et al., 2022, arXiv:2206.00364).

    Raises:
        TypeError: for a process without alpha(t) and sigma(t).

    Examples:
        >>> import sgm_sde as sg, torch
        >>> round(float(noise_level(sg.VPSDE())(torch.tensor(1.0))), 1)
        152.2
    """
    _require_linear(sde)
    return partial(_level, sde=sde)


def edm_c_noise(sde: LinearSDE) -> TimeLabel:
    """log(sigma / alpha) / 4, what the network inside EDM's preconditioning sees.

    Raises:
        TypeError: for a process without alpha(t) and sigma(t).

    Examples:
        >>> import sgm_sde as sg, torch
        >>> edm_c_noise(sg.EDMSDE())(torch.tensor(1.0))
        tensor(0.)
    """
    _require_linear(sde)
    return partial(_c_noise, sde=sde)


def flow(scale: float = 1.0) -> TimeLabel:
    """scale * t, with t = 0 the data (Liu et al., 2022, arXiv:2209.03003).

    Raises:
        TypeError, ValueError: for a scale that is no positive number.

    Examples:
        >>> flow(1000)(0.25)
        250.0
    """
    scale = number("scale", scale, above=0)
    return partial(_scaled, scale=scale)


def flow_from_noise(scale: float = 1.0) -> TimeLabel:
    """scale * (1 - t), for networks whose time runs from noise to data (Lipman et al., 2022, arXiv:2210.02747).

    Such a network predicts the flow towards the data, the negative of what `from_flow` takes:
    `from_flow(lambda x, t: -net(x, t), sde, time_label=flow_from_noise())`, which is
    `adapters.from_flow_matching(net, from_noise=True)`.

    Raises:
        TypeError, ValueError: for a scale that is no positive number.

    Examples:
        >>> flow_from_noise()(0.25)
        0.75
    """
    scale = number("scale", scale, above=0)
    return partial(_scaled_from_noise, scale=scale)


# What makes a label, and how it is called.
MAKERS: dict[Callable[..., TimeLabel], str] = {
    ddpm: "ddpm(1000)",
    score_sde_vp: "score_sde_vp()",
    score_sde_ve: "score_sde_ve(sde)",
    score_sde_ve_discrete: "score_sde_ve_discrete(sde)",
    noise_level: "noise_level(sde)",
    edm_c_noise: "edm_c_noise(sde)",
    flow: "flow()",
    flow_from_noise: "flow_from_noise()",
}


def require_label(time_label: object) -> None:
    """Check that a time label is a function of t, or None.

    Raises:
        TypeError: for anything else, and for what makes a label and has yet to be called.

    Examples:
        >>> require_label(ddpm)
        Traceback (most recent call last):
        ...
        TypeError: time_label=ddpm is the function that makes a label: give time_labels.ddpm(1000)
    """
    for maker, call in MAKERS.items():
        if time_label is maker:
            name = maker.__name__
            raise TypeError(f"time_label={name} is the function that makes a label: give time_labels.{call}")
    require_function("time_label", time_label, "of t", 1, optional=True)


# Functions of the module, which can be pickled, as closures cannot.


def _index(t: Tensor, size: int, integer: bool) -> Tensor:
    index = size * t - 1
    return index.round().clamp(0, size - 1).long() if integer else index


def _scaled(t: Tensor, scale: float) -> Tensor:
    return scale * t


def _scaled_from_noise(t: Tensor, scale: float) -> Tensor:
    return scale * (1 - t)


def _level(t: Tensor, sde: LinearSDE) -> Tensor:
    return coordinates.noise_level(sde, t)


def _c_noise(t: Tensor, sde: LinearSDE) -> Tensor:
    return -sde.log_snr(t) / 8
