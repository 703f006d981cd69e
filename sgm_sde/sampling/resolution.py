r"""Resolution of the data by the last network call of a run.

A denoiser at the noise level $s = \sigma/\alpha$ averages over all data that the noise may have come from: of data
N(0, S^2) the estimates vary by $\hat S = S^2/\sqrt{S^2 + s^2}$ only. So samples that are made of such estimates tell
what they have lost, $S^2 = \hat S^2/2 + \sqrt{\hat S^4/4 + \hat S^2 s^2}$: more than three eighths of S where they vary
by less than s/2. A single sample does not show that; many of them do.

Images have pixels that never change; so of samples of many numbers all must vary by less than s/2. Of samples of few
numbers it is asked of each. A number that follows from others is known as well as they are, however little it varies;
so S is that of the principal components, and a number is averaged where it has lost three eighths in those together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgm_sde._utils.shapes import flat
from sgm_sde._utils.units import FEW_NUMBERS
from sgm_sde.processes.base import SDE

__all__ = ["UnresolvedWarning"]

ENOUGH = 16  # samples, for a standard deviation
FEW_CALLS = 3  # up to which networks are distilled for so few calls, and no denoisers
UNRESOLVED = 0.5  # of the noise level
LOST = 0.375  # of the standard deviation of data whose samples vary by less
BEYOND_END = 2.0  # times the noise level at eps, up to which a call is one at the process' end
THE_SAME = 1e-5  # of their size, or
ROUNDING = 1e-6  # of the noise level: samples that differ by no more are data at a point


class UnresolvedWarning(UserWarning):
    """Samples vary by less than half the noise at the last network call, so that they are averages of the data."""


def words_if_unresolved(samples: Tensor, level: float, sde: SDE) -> str:
    """Text of a warning if denoised samples (B, *) are averages of data, "" if not; of less than 16 nothing is known.

    Args:
        samples: the samples.
        level: sigma / alpha at the last network call.
        sde: the process, whose end may be that call's.
    """
    rows = rows_that_tell(samples)
    if rows is None:
        return ""
    variance, mean = torch.var_mean(rows, 0)
    std = variance.sqrt()
    differ = (std > THE_SAME * mean.abs()) & (std > ROUNDING * level)
    averaged = differ & (std < UNRESOLVED * level)

    of = len(std)
    if of <= FEW_NUMBERS and bool(averaged.any()):
        averaged &= _lost(rows - mean, level) > LOST

    n = int(averaged.sum())
    if not n or (n < of and of > FEW_NUMBERS):
        return ""
    which = "all numbers" if n == of else f"{n} of {of} numbers"
    if level > BEYOND_END * sde.nodes((sde.eps,))[0].noise_level:
        cure = (
            "give more calls, what `pilot` finds, or, with nfe= as before, "
            "solver=sg.defaults.default_setting(sde, nfe, data_std=...); data should be of one scale"
        )
    else:
        cure = (
            f"at eps={sde.eps:g} the process ends in more noise than they vary by, whatever the solver: bring them to "
            f"about unit scale, or take a process with a smaller eps that the network was trained for"
        )
    return (
        f"{which} of the samples vary by less than half the noise at the last network call, by "
        f"{float(std[averaged].min()):.2g} where sigma / alpha is {level:.2g}, so unless they hardly vary in the data "
        f"they are averages of it: {cure}"
    )


def rows_that_tell(samples: Tensor) -> Tensor | None:
    """Samples (B, *) as rows (B, d), in single precision or better; None where these are too few to tell a spread."""
    if samples.is_meta or len(samples) < ENOUGH or not samples[0].numel():
        return None
    rows = flat(samples.detach())
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _lost(rows: Tensor, level: float) -> Tensor:
    """The share (d,) of their standard deviation that the numbers of centred samples (N, d) have lost at a level."""
    rows = rows.double()
    estimated, axes = torch.linalg.eigh(rows.T @ rows / (len(rows) - 1))
    estimated = estimated.clamp(min=0)
    S2 = estimated / 2 + (estimated**2 / 4 + estimated * level**2).sqrt()

    lost = axes**2 @ (S2.sqrt() - estimated.sqrt()) ** 2
    return (lost / (axes**2 @ S2)).sqrt()
