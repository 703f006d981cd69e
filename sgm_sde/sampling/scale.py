r"""Scale and place of the data, as the samples of the default show them, beside those that it is made for.

Where nobody names a solver, the default takes data for about the scale $S_0 = 1$. Of data of a scale S its longest
steps are where modes part, and with N network calls it errs several times what the default for S does where

$$ N \le 10\,\log_2\frac{S}{6 S_0}, $$

as `python -m benchmarks.scales` measures on VP, DDPM's table, EDM and rectified flow, on three modes, which chose it,
and on data that did not. S is the standard deviation of all numbers of the samples together, each around its mean.

The place is 0. Of data around m far from it, polynomials in the logarithm of the noise level miss what the estimates of
the mean add to the states, $m / s$ at the noise level s, in the long steps where s is far above the scale. How far a
run ends from where the flow goes is known of Gaussian data of that mean and scale, whatever the network.

An adaptive solver errs in each step by up to its absolute tolerance, in units of the data. Of data whose scale is below
50 times that, samples may be off by some tenths of their scale.
"""

from __future__ import annotations

import math

from torch import Tensor

from sgm_sde.engine.program import Program
from sgm_sde.processes.base import SDE
from sgm_sde.sampling.defaults import WIDEST, scale_of_data
from sgm_sde.sampling.on_gaussians import mean_off
from sgm_sde.sampling.resolution import FEW_CALLS, ROUNDING, THE_SAME, rows_that_tell

__all__ = ["ScaleWarning"]

LARGE = 6.0  # times the scale that the default is made for
CALLS_AN_OCTAVE = 10.0
AWAY = 5.0  # times their scale, above which samples are around another place than 0
OFF = 0.15  # of the scale, by which the mean is off
TOLERANCES = 50.0  # absolute tolerances of a step, below which a scale is small


class ScaleWarning(UserWarning):
    """Samples vary by so much more than the default takes data for, or lie so far from 0, that it errs more than it
    could, or vary by little more than the absolute tolerance of an adaptive solver."""


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

    _, scale = _place_and_scale(rows)
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


def words_if_away(samples: Tensor, program: Program, sde: SDE) -> str:
    """Text of a warning if samples (B, *) of the default are so far from 0 that their mean is off, "" if not.

    Args:
        samples: the samples; of less than 16 nothing is known.
        program: the table that made them.
        sde: a process with alpha and sigma.
    """
    rows = rows_that_tell(samples)
    if rows is None or program.nfe <= FEW_CALLS:
        return ""

    mean, scale = _place_and_scale(rows)
    if not 0 < AWAY * scale < mean < math.inf:
        return ""

    off = mean_off(program, sde, scale) * mean / scale
    if off < OFF:
        return ""
    return (
        f"the samples lie around {mean:.3g} and vary by {scale:.3g}, and with {program.nfe} calls the default, which "
        f"takes data to be around 0, ends {off:.2g} standard deviations from Gaussian data like that: give more calls, "
        f"or what `pilot` finds, or train on data with their mean taken off"
    )


def words_if_coarse(samples: Tensor, level: float, atol: float) -> str:
    """Text of a warning if samples (B, *) vary by little more than the absolute tolerance that made them, "" if not.

    Args:
        samples: the samples; of less than 16 nothing is known.
        level: sigma / alpha at the last network call.
        atol: absolute tolerance of a step; 0 for none.
    """
    rows = rows_that_tell(samples) if atol else None
    if rows is None:
        return ""

    mean, scale = _place_and_scale(rows)
    if not max(THE_SAME * mean, ROUNDING * level) < scale < TOLERANCES * atol:
        return ""
    return (
        f"the samples vary by {scale:.3g}, and the absolute tolerance lets each step err by {atol:g}: give "
        f"atol={scale / 1000:.1g}, or bring data to about unit scale"
    )


def _place_and_scale(rows: Tensor) -> tuple[float, float]:
    """The distance of rows (n, d) from 0, and their standard deviation, each over all numbers together."""
    mean = rows.mean(0).square().mean().sqrt()
    scale = rows.var(0).mean().sqrt()
    return float(mean), float(scale)
