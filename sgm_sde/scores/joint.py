"""Scores of a joint state (B, k, *) from networks that know a part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgm_sde._utils.checks import FAR, described, known_arguments, number
from sgm_sde._utils.elsewhere import OF_SCORES
from sgm_sde._utils.shapes import expand
from sgm_sde.processes.base import SDE
from sgm_sde.processes.kinds import has_matrix_marginal
from sgm_sde.processes.matrix import MatrixSDE, apply, double
from sgm_sde.scores.score import Network, Score
from sgm_sde.scores.time_labels import TimeLabel

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class JointOptions(TypedDict, total=False):
        """Options of the network of a part of the state; see `Score`."""

        time_label: TimeLabel | None
        dtype: torch.dtype | None


OPTIONS = ("time_label", "dtype")  # of `JointOptions`


class VelocityScore(Score):
    """A joint score from a network that sees the whole state and predicts the last block's noise or score.

    Made by `from_velocity_noise` and `from_velocity_score`. What the network leaves open follows from the kernel: of
    data, noises and state, two determine the third.
    """

    sde: MatrixSDE

    def __init__(
        self, net: Network, sde: SDE, prediction: str, mixed: float | None = None, **options: Unpack[JointOptions]
    ) -> None:
        if not has_matrix_marginal(sde):
            raise TypeError(
                f"the network of one block of the state needs a process such as CLD(), got {described(sde)}"
            )
        mixed = None if mixed is None else number("mixed", mixed, least=0, most=FAR)
        super().__init__(net, sde, prediction, **options)
        self.mixed = mixed

    def _with(self, net: Network, dtype: torch.dtype | None) -> Score:
        return VelocityScore(net, self.sde, self.prediction, mixed=self.mixed, time_label=self.time_label, dtype=dtype)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The network's output at x (B, k, *) and t (B,), zeros in the place of the other blocks."""
        out = super().output(self.sde.require_state(x), t, **kwargs).to(x.dtype)
        if self.mixed is not None:  # add the noise of Gaussian data
            mu, covariance = self.sde.kernel(double(t))
            variance = covariance[..., -1, -1] + self.mixed**2 * mu[..., -1].square()
            L = torch.linalg.cholesky(covariance)
            out = out + expand(L[..., -1, -1] / variance, out) * x[:, -1]

        zeros = torch.zeros_like(x[:, :-1])
        return torch.cat([zeros, out[:, None]], 1)

    def _shape(self, x: Tensor) -> torch.Size:
        return x[:, 0].shape


class DenoiserScore(Score):
    """A joint score from a denoiser of the data alone: of the state it needs `MatrixSDE.observation` only."""

    sde: MatrixSDE

    def __init__(self, net: Network, sde: SDE, **options: Unpack[JointOptions]) -> None:
        if not has_matrix_marginal(sde):
            raise TypeError(f"a denoiser of a part of the state needs a process such as CLD(), got {described(sde)}")
        super().__init__(net, sde, "data_x", **options)

    def _with(self, net: Network, dtype: torch.dtype | None) -> Score:
        return DenoiserScore(net, self.sde, time_label=self.time_label, dtype=dtype)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The data's estimate at x (B, k, *) and t (B,), zeros in the place of the other blocks."""
        weights, level = self.sde.observation(double(t))
        y = apply(weights[:, None], self.sde.require_state(x))[:, 0]
        out = super().output(y, level.to(t.dtype), **kwargs).to(x.dtype)
        return torch.cat([out[:, None], torch.zeros_like(x[:, 1:])], 1)


def from_velocity_noise(
    net: Network, sde: SDE, *, mixed: float | None = None, **options: Unpack[JointOptions]
) -> VelocityScore:
    r"""A joint score from a network that predicts the velocity's noise: $s_v = -\epsilon_v / L_{vv}$.

    $L_{vv} = \sqrt{\Sigma_{vv} - \Sigma_{xv}^2/\Sigma_{xx}}$ is the last entry of the kernel's Cholesky factor: what
    hybrid score matching trains (`hybrid_score_matching`).

    Args:
        net: `net(z, label, **kwargs)` with the joint state z (B, 2, *); returns (B, *).
        sde: the process it was trained on, such as `CLD()`.
        mixed: standard deviation of the data, for the mixed parametrisation: the network predicts the noise
            less that for Gaussian data, $L_{vv}\,v/\operatorname{var}(v)$. None for the noise itself.
        options: `time_label`, `dtype`; see `Score`.

    Raises:
        TypeError: for a process without a matrix.
        ValueError: at a call, if the output does not have the shape of one block.

    Source: Dockhorn et al., 2022, arXiv:2112.07068.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.CLD()
        >>> score = from_velocity_noise(lambda z, t: z[:, 1], sde)
        >>> score.prediction
        'noise_v'
    """
    known_arguments("from_velocity_noise", options, ("mixed", *OPTIONS), OF_SCORES)
    return VelocityScore(net, sde, "noise_v", mixed=mixed, **options)


def from_velocity_score(net: Network, sde: SDE, **options: Unpack[JointOptions]) -> VelocityScore:
    """A joint score from a network that predicts the score of the velocity, $s_v(x, v, t)$.

    Args:
        net: `net(z, label, **kwargs)` with the joint state z (B, 2, *); returns (B, *).
        sde: the process it was trained on, such as `CLD()`.
        options: `time_label`, `dtype`; see `Score`.

    Raises:
        TypeError: for a process without a matrix, such as VP.
        ValueError: at a call, for an output of the whole state's shape.

    Source: Dockhorn et al., 2022, arXiv:2112.07068.

    Examples:
        >>> import sgm_sde as sg
        >>> from_velocity_score(lambda z, t: -4 * z[:, 1], sg.CLD())(torch.ones(1, 2, 1), 1.0)[:, 1]
        tensor([[-4.]])
    """
    known_arguments("from_velocity_score", options, OPTIONS, OF_SCORES)
    return VelocityScore(net, sde, "score_v", **options)


def from_joint_denoiser(net: Network, sde: SDE, **options: Unpack[JointOptions]) -> DenoiserScore:
    r"""A joint score from an ordinary denoiser, trained on $y = x_0 + s z$: no velocity in it.

    All that a state says of the data is one noisy look at it, $y = w^\top z \sim N(x_0, s^2)$ with $w$ and s from
    `MatrixSDE.observation`. So $E[x_0 \mid z] = D(y, s)$, and the kernel turns that into the joint score: every
    network in EDM's coordinates runs on CLD as it is. In float32 that holds from about t = 1e-4 on: below, the
    velocity's score is a difference of nearly equal positions.

    Args:
        net: `net(y, label, **kwargs)` with y (B, *) and the label of the noise level s (B,); returns (B, *).
        sde: a process with a matrix.
        options: `time_label`, here from s to the label, and `dtype`; see `Score`.

    Raises:
        TypeError: for a process without a matrix.

    Source: this library; the noise level is that of Karras et al., 2022, arXiv:2206.00364.

    Examples:
        >>> import sgm_sde as sg
        >>> score = from_joint_denoiser(lambda y, s: y / (1 + s[:, None] ** 2), sg.CLD())
        >>> score(torch.ones(1, 2, 1), 1.0).shape
        torch.Size([1, 2, 1])
    """
    return DenoiserScore(net, sde, **options)
