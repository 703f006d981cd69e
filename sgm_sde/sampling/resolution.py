r"""Resolution of the data by the last network call of a run.

A denoiser at the noise level $s = \sigma/\alpha$ averages over all data that the noise may have come from: of data
N(0, S^2) the estimates vary by $S^2/\sqrt{S^2 + s^2}$ only. Where samples that are made of such estimates vary by less
than s/2, what is between them is lost. A single sample does not show that; many of them do. Images have pixels that
never change; so of samples of many numbers all must vary as little, of samples of few it is asked of each number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgm_sde._utils.shapes import flat
from sgm_sde._utils.units import FEW_NUMBERS

__all__ = ["UnresolvedWarning"]

ENOUGH = 16  # samples, for a standard deviation
FEW_CALLS = 3  # up to which networks are distilled for so few calls, and no denoisers
UNRESOLVED = 0.5  # of the noise level
BEYOND_END = 2.0  # times the noise level at eps, up to which a call is one at the process' end
THE_SAME = 1e-5  # of their size: samples that differ by rounding are data at a point


class UnresolvedWarning(UserWarning):
    """Samples vary by less than half the noise at the last network call, so that they are averages of the data."""


def words_if_unresolved(samples: Tensor, level: float) -> str:
    """Text of a warning if denoised samples (B, *) are averages of data, "" if not; of less than 16 nothing is known.

    Args:
        samples: the samples.
        level: sigma / alpha at the last network call.
    """
    if samples.is_meta or len(samples) < ENOUGH or not samples[0].numel():
        return ""
    averaged, of = _averaged(samples, UNRESOLVED * level)
    n = len(averaged)
    if not n or (n < of and of > FEW_NUMBERS):
        return ""
    which = "all numbers" if n == of else f"{n} of {of} numbers"
    return (
        f"{which} of the samples vary by less than half the noise at the last network call, by {min(averaged):.2g} "
        f"where sigma / alpha is {level:.2g}, so they are averages of data that lie closer: give more calls, what "
        f"`pilot` finds, or solver=sg.defaults.default_setting(sde, nfe, data_std=...); data should be of one scale"
    )


def _averaged(samples: Tensor, least: float) -> tuple[list[float], int]:
    """The standard deviations below a bound of the numbers of samples that are not all the same, and of how many."""
    rows = flat(samples.detach())
    dtype = torch.promote_types(rows.dtype, torch.float32)
    variance, mean = torch.var_mean(rows.to(dtype), 0)

    std = variance.sqrt()
    differ = std > THE_SAME * mean.abs()
    return std[differ & (std < least)].tolist(), len(std)
