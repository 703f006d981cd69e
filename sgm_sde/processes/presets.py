"""The literature's processes by name, each with its constants and their source.

Examples:
    >>> from sgm_sde import presets
    >>> presets.score_sde_ve_cifar10()
    VESDE(sigma_min=0.01, sigma_max=50.0, T=1.0, eps=1e-05)
"""

from __future__ import annotations

import math

from sgm_sde._utils.checks import table_size
from sgm_sde._utils.elsewhere import OF_TABLES, named_elsewhere
from sgm_sde.processes.discrete import DiscreteVESDE, DiscreteVPSDE
from sgm_sde.processes.edm import EDMSDE
from sgm_sde.processes.ve import VESDE
from sgm_sde.processes.vp import VPSDE, CosineVPSDE, SubVPSDE


@named_elsewhere(OF_TABLES)
def ddpm(n: int = 1000) -> DiscreteVPSDE:
    """DDPM: betas linear from 1e-4 to 0.02 (Ho et al., 2020, arXiv:2006.11239, section 4).

    Raises:
        ValueError: for less than two steps.

    Examples:
        >>> betas = ddpm().betas
        >>> len(betas), betas[0], round(betas[-1], 4)
        (1000, 0.0001, 0.02)
    """
    n = table_size("n", n, 2)
    first = 1e-4
    last = 0.02
    return DiscreteVPSDE([first + (last - first) * i / (n - 1) for i in range(n)])


@named_elsewhere(OF_TABLES)
def iddpm_cosine(n: int = 1000) -> DiscreteVPSDE:
    """Improved DDPM: cosine table with betas at most 0.999 (Nichol & Dhariwal, 2021, arXiv:2102.09672).

    Raises:
        ValueError: for less than one step.

    Examples:
        >>> betas = iddpm_cosine().betas
        >>> len(betas), betas[-1]
        (1000, 0.999)
    """
    n = table_size("n", n)

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [alpha_bar((i + 1) / n) / alpha_bar(i / n) for i in range(n)]
    return DiscreteVPSDE([min(1 - ratio, 0.999) for ratio in ratios])


def cosine() -> CosineVPSDE:
    """Cosine schedule in continuous time, T = 0.9946 (Lu et al., 2022, arXiv:2206.00927).

    Examples:
        >>> cosine().T
        0.9946
    """
    return CosineVPSDE(s=0.008, T=0.9946)


def score_sde_vp() -> VPSDE:
    """VP at CIFAR-10: beta from 0.1 to 20, sampling to 1e-3 (Song et al., 2021, arXiv:2011.13456).

    Examples:
        >>> score_sde_vp().beta_max, score_sde_vp().eps
        (20.0, 0.001)
    """
    return VPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=1e-3)


def score_sde_subvp() -> SubVPSDE:
    """Sub-VP at CIFAR-10: beta from 0.1 to 20, sampling to 1e-3 (Song et al., 2021, arXiv:2011.13456).

    Examples:
        >>> score_sde_subvp().beta_max, score_sde_subvp().eps
        (20.0, 0.001)
    """
    return SubVPSDE(beta_min=0.1, beta_max=20.0, T=1.0, eps=1e-3)


def score_sde_ve_cifar10() -> VESDE:
    """VE at CIFAR-10: sigma from 0.01 to 50, sampling to 1e-5 (Song et al., 2021, arXiv:2011.13456).

    Examples:
        >>> score_sde_ve_cifar10().sigma_max, score_sde_ve_cifar10().eps
        (50.0, 1e-05)
    """
    return VESDE(sigma_min=0.01, sigma_max=50.0, T=1.0, eps=1e-5)


def ncsn_cifar10() -> DiscreteVESDE:
    """NCSN: ten levels, geometric from 1 to 0.01 (Song & Ermon, 2019, arXiv:1907.05600, section 5).

    Examples:
        >>> sigmas = ncsn_cifar10().sigmas
        >>> len(sigmas), round(sigmas[0], 4), sigmas[-1]
        (10, 0.01, 1.0)
    """
    return DiscreteVESDE([10 ** (-2 * i / 9) for i in range(10)])


def edm() -> EDMSDE:
    """EDM: sigma from 80 to 0.002 (Karras et al., 2022, arXiv:2206.00364, table 1).

    Examples:
        >>> edm().T, edm().eps
        (80.0, 0.002)
    """
    return EDMSDE(sigma_min=0.002, sigma_max=80.0)
