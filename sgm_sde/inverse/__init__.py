"""Inverse problems: samples of the data given a measurement of it.

Examples:
    >>> import sgm_sde as sg, torch
    >>> sde, data = sg.VPSDE(), sg.oracles.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    >>> seen = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.tensor([1.0, 0.0]), std=0.1)
    >>> x = sg.sample(sg.inverse.MMPS(data.score(sde), seen), sde, shape=(64, 2), nfe=20, seed=0).x
    >>> bool((x.mean(0) - sg.inverse.posterior(data, seen).mean).abs().max() < 0.2)
    True
"""

from sgm_sde.inverse.exact import posterior
from sgm_sde.inverse.nodes import DPS, RePaint, Replacement
from sgm_sde.inverse.operators import (
    BlockAverage,
    Blur,
    ChannelMix,
    LinearMap,
    LinearOperator,
    Mask,
    Measurement,
    NonlinearMap,
    Operator,
    check_operator,
)
from sgm_sde.inverse.posterior_scores import MMPS, DiffPIR, PiGDM, PosteriorScore

__all__ = [
    "DPS",
    "MMPS",
    "BlockAverage",
    "Blur",
    "ChannelMix",
    "DiffPIR",
    "LinearMap",
    "LinearOperator",
    "Mask",
    "Measurement",
    "NonlinearMap",
    "Operator",
    "PiGDM",
    "PosteriorScore",
    "RePaint",
    "Replacement",
    "check_operator",
    "posterior",
]
