"""Kinds of processes by their marginal, for those who need alpha(t) and sigma(t), or matrices in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgm_sde.processes.base import SDE

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from sgm_sde.processes.linear import LinearSDE
    from sgm_sde.processes.matrix import MatrixSDE


def has_scalar_marginal(sde: object) -> TypeIs[LinearSDE]:
    r"""True for a process with $x_t \mid x_0 \sim N(\alpha_t x_0, \sigma_t^2 I)$, numbers alpha(t) and sigma(t)."""
    return isinstance(sde, SDE) and sde.marginal_kind == "scalar"


def has_matrix_marginal(sde: object) -> TypeIs[MatrixSDE]:
    r"""True for a process with $z_t \mid x_0 \sim N(\mu_t x_0, \Sigma_t)$, a matrix over the state's blocks."""
    return isinstance(sde, SDE) and sde.marginal_kind == "matrix"
