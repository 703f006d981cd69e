r"""Scale of the data, as the samples of the default show it, beside the one that its grid is made for.

Where nobody names a solver, the default takes data for about the scale $S_0 = 1$. Of data of a scale S its longest
steps are where modes part, and with N network calls it errs several times what the default for S does where

$$ N \le 10\,\log_2\frac{S}{6 S_0}, $$

as `python -m benchmarks.scales` measures on VP, DDPM's table, EDM and rectified flow, on three modes, which chose it,
and on data that did not. S is the standard deviation of all numbers of the samples together, each around its mean.
"""

from __future__ import annotations

import math

from torch import Tensor

from sgm_sde.processes.base import SDE
from sgm_sde.sampling.defaults import WIDEST, scale_of_data
from sgm_sde.sampling.resolution import FEW_CALLS, rows_that_tell

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
    rows = rows_that_tell(samples)
    if rows is None or nfe <= FEW_CALLS:
        return ""

    scale = float(rows.var(0).mean().sqrt())
    made_for = scale_of_data(sde)
    large = LARGE * made_for
    if not large < scale < math.inf:
        return ""

    octaves = math.log2(scale / large)
    if nfe > CALLS_AN_OCTAVE * octaves:
        return ""

    data_std = min(scale, WIDEST)
    return (
        f"the samples vary by {scale:.3g}, and with {nfe} calls the default, which takes data for the scale "
        f"{made_for:g}, errs several times more than it could: give "
        f"solver=sg.defaults.default_setting(sde, {nfe}, data_std={data_std:.2g}), or what `pilot` finds"
    )
