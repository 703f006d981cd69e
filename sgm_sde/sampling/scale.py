r"""Scale of the data, as the samples of the default show it, beside the one that its grid is made for.

Where nobody names a solver, the default takes data for about the scale $S_0 = 1$. Of data of a scale S its longest
steps are where the modes part, and with N network calls it errs several times what the default for S does where

$$ N \le 10\,\log_2\frac{S}{6 S_0}, $$

as `python -m benchmarks.scales` measures on VP, DDPM's table, EDM and rectified flow. S is the standard deviation
of all numbers of the samples together, each around its mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgm_sde._utils.shapes import flat
from sgm_sde.processes.base import SDE
from sgm_sde.sampling.defaults import WIDEST, scale_of_data
from sgm_sde.sampling.resolution import ENOUGH, FEW_CALLS

__all__ = ["ScaleWarning"]

LARGE = 6.0  # times the scale that the default is made for
CALLS_AN_OCTAVE = 10.0


class ScaleWarning(UserWarning):
    """Samples vary by so much more than the default takes data for that it errs several times what it could."""


def words_if_wide(samples: Tensor, nfe: int, sde: SDE) -> str:
    """Text of a warning if samples (B, *) of the default are of a large scale for its calls, "" if not.

    Args:
        samples: the samples; of less than 16 nothing is known.
        nfe: number of network calls.
        sde: a process with alpha and sigma.
    """
    if samples.is_meta or len(samples) < ENOUGH:
        return ""
    if not samples[0].numel() or nfe <= FEW_CALLS:
        return ""

    rows = flat(samples.detach())
    at_least_single = torch.promote_types(rows.dtype, torch.float32)
    variances = rows.to(at_least_single).var(0)
    scale = float(variances.mean().sqrt())
    made_for = scale_of_data(sde)
    if not LARGE * made_for < scale < math.inf:
        return ""

    octaves = math.log2(scale / (LARGE * made_for))
    most = CALLS_AN_OCTAVE * octaves
    if nfe > most:
        return ""

    data_std = min(scale, WIDEST)
    return (
        f"the samples vary by {scale:.3g}, "
        f"and with {nfe} calls the default, "
        f"which takes data for the scale {made_for:g}, "
        f"errs several times more than it could: "
        f"give solver=sg.defaults.default_setting(sde, {nfe}, data_std={data_std:.2g}), "
        f"or what `pilot` finds"
    )
