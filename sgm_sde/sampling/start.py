r"""The noise that a run starts from, beside the noised data that the network was trained on.

A run without states of its own starts from $N(0, \sigma_T^2)$, and the data at T are $\alpha_T x_0 + \sigma_T\epsilon$.
Of data $N(m, S^2)$ the flow makes of the one, with $u = \alpha_T S/\sigma_T$, samples whose mean is off by
$\alpha_T m/(\sigma_T\sqrt{1 + u^2})$ standard deviations of the data, and whose own is $S/\sqrt{1 + u^2}$. So of
samples with the mean m' and the standard deviation S', $u' = \alpha_T S'/\sigma_T$, it is told where

$$ \Big(\frac{\alpha_T m'}{\sigma_T}\Big)^2 + \Big(1 - \sqrt{1 - \min(1, u')^2}\Big)^2 > \tfrac1{16} $$

which no solver and no budget changes. Of samples of few numbers it is asked of each that varies; of many it is their
mean, each with its variance. Of less than 16 samples the sizes of all numbers are taken for S', whatever their mean.

Where there are data, m and S are known, of each of few numbers and along the principal directions v of any, with the
variances $\lambda_k$: in all, samples are off by more than a quarter of the data's standard deviation where

$$ \sum_k \lambda_k\Big[\frac{(\alpha_T v_k^\top m)^2}{\sigma_T^2(1 + u_k^2)} +
   \Big(1 - \frac1{\sqrt{1 + u_k^2}}\Big)^2\Big] > \tfrac1{16}\sum_k \lambda_k, \qquad
   u_k^2 = \frac{\alpha_T^2\lambda_k}{\sigma_T^2} . $$

On a matrix process $\mu^\top C^{-1}\mu$, of the kernel $N(\mu x_0, C)$ at T, takes the place of
$\alpha_T^2/\sigma_T^2$: what is left of the data may lie in the velocities alone. By the reverse SDE the mean is off by
just that, over $\sqrt{1 + u^2}$; by the flow it may be off by less.

Data all of whose noised modes but one lie beyond the noise that a run starts from lose the others, and their samples
tell nothing of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgm_sde._utils.shapes import flat
from sgm_sde._utils.units import FEW_NUMBERS, principal
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_matrix_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling.diagnosis import ImplausibleWarning, scales_at_T
from sgm_sde.sampling.resolution import ENOUGH, THE_SAME

__all__ = ["PriorWarning"]

OFF = 0.25  # standard deviations of the data


class PriorWarning(ImplausibleWarning):
    """Data are of such a place or scale that the noise at T, where the run starts, is not what they look like there."""


def words_if_off_prior(samples: Tensor, sde: SDE) -> str:
    """Text of a warning if samples (B, *) of a run from the prior are off by what data leave at T, "" if not."""
    share = share_at_T(sde)
    if has_matrix_marginal(sde):
        samples = samples[:, 0]
    if samples.is_meta or not samples.numel() or not 0 < share < math.inf:
        return ""
    rows = flat(samples.detach())
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))

    n, d = rows.shape
    few = d <= FEW_NUMBERS
    norm = float(torch.linalg.vector_norm(rows))
    size = share * norm / math.sqrt(n * d)
    if size * math.sqrt(d) <= OFF:  # as much as all of it in one number is
        return ""

    off = _shrunk(torch.tensor(size)) if n < ENOUGH else _off(rows, share, few)
    if not float(off) > OFF:
        return ""
    return (
        f"data like these samples {_left(sde)}, and the run started from noise alone, so that samples are off by some "
        f"{float(off):.2g} of the data's standard deviation, whatever the solver: bring data to about unit scale "
        f"around 0, take a process with more noise at T, or give noised data as x_T=; if the data are not of "
        f"that place and scale, samples were thrown out on the way: give more calls"
    )


def words_if_data_off_prior(x0: Tensor, sde: LinearSDE) -> str:
    """Text of a warning if runs from the prior miss data (n, *) by what the data leave at T, "" if not."""
    off = _off_of_data(flat(x0.detach()).double(), share_at_T(sde))
    if not off > OFF:
        return ""
    missed = f"these data {_left(sde)}; runs start from noise alone, so that their samples are off by some {off:.2g}"
    cure = (
        "start from noised data, x_T=sde.alpha(sde.T) * x0 + sde.sigma(sde.T) * noise, or train on data of about unit "
        "scale around 0, or on a process with more noise at T"
    )
    return f"{missed} of the data's standard deviation, whatever the solver: {cure}"


def share_at_T(sde: SDE) -> float:
    """Size of a unit of the data at T, in standard deviations of the noise there: alpha / sigma, or of a matrix process
    the square root of mu^T C^-1 mu of its kernel."""
    if has_matrix_marginal(sde):
        mu, covariance = sde.kernel(sde.T)
        return math.sqrt(max(float(mu @ torch.linalg.solve(covariance, mu)), 0.0))
    signal, prior_std = scales_at_T(sde)
    return signal / prior_std


def _left(sde: SDE) -> str:
    """Words for what there is at T beside noise."""
    if has_matrix_marginal(sde):
        return (
            f"are not only noise at T: a unit of them is {share_at_T(sde):.2g} standard deviations of the noise there"
        )
    signal, prior_std = scales_at_T(sde)
    return (
        f"are not only noise at T: alpha = {signal:.2g} of them is left there, beside noise of standard deviation "
        f"{prior_std:.3g}"
    )


def _off_of_data(rows: Tensor, share: float) -> float:
    """The error of a run's samples for data (n, d), in standard deviations of the data; of few numbers the worst."""
    mean, stds, directions = principal(rows)
    along = _missed(directions @ mean, stds, share)
    off = float(torch.linalg.vector_norm(stds * along) / torch.linalg.vector_norm(stds))
    if rows.shape[1] > FEW_NUMBERS:
        return off

    std = rows.std(0, correction=0)
    each = _missed(mean, std, share).where(std > THE_SAME * mean.abs(), 0.0)
    return max(off, float(each.amax()))


def _missed(mean: Tensor, std: Tensor, share: float) -> Tensor:
    """By how many standard deviations samples of N(mean, std^2) are off."""
    kept = (1 + (share * std).square()).rsqrt()
    return torch.hypot(share * mean * kept, 1 - kept)


def _off(rows: Tensor, share: float, few: bool) -> Tensor:
    """The error of samples (N, d) in standard deviations: of few numbers the worst, of many their mean."""
    variance, mean = torch.var_mean(rows, 0)
    std = variance.sqrt()
    off = torch.hypot(share * mean, _shrunk(share * std))
    if few:
        return off.where(std > THE_SAME * mean.abs(), 0.0).amax()
    return ((variance * off.square()).sum() / variance.sum().clamp(min=1e-30)).sqrt()


def _shrunk(u: Tensor) -> Tensor:
    """The share of the data's standard deviation that is lost."""
    return 1 - (1 - u.clamp(max=1.0).square()).sqrt()
