"""What the tests of likelihood share."""

from __future__ import annotations

import torch
from torch import Tensor

import sgm_sde as sg
from tests.helpers import F64, LINEAR, MIXTURE

PROCESSES = [name for name in LINEAR if name != "schedule"]  # which has a marginal at T far from its prior


def points(oracle: sg.oracles.Oracle, process: str, n: int = 32) -> Tensor:
    """Samples of the marginal at the end of the likelihood's flow."""
    sde = LINEAR[process]
    return oracle.sample(n, sde, sde.likelihood_eps, seed=0, dtype=F64)


def exact(oracle: sg.oracles.Oracle, process: str, x: Tensor) -> Tensor:
    """The closed form."""
    return oracle.log_prob(x, LINEAR[process], LINEAR[process].likelihood_eps)


def with_wave(process: str, size: float, frequency: float) -> sg.Score:
    """The score of the mixture, with a wave in log-SNR and in the state on its noise estimate."""
    sde = LINEAR[process]

    def noise(x: Tensor, t: Tensor) -> Tensor:
        wave = (frequency * sde.log_snr(t)).sin()[:, None] * (3 * x).sin()
        return MIXTURE.score(sde).predict("noise", x, t) + size * wave

    return sg.from_noise(noise, sde)


RIDGE = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 0.2)


COUPLED_2D = sg.oracles.Gaussian(torch.zeros(2), 0.3 * torch.eye(2) + 0.2 * torch.ones(2, 2))


VP = LINEAR["vp"]
