"""DPM-Solver and DPM-Solver++, of one step or several, with noise or without."""

from __future__ import annotations

from collections.abc import Sequence

from sgm_sde._utils.checks import check_integer, flag, one_of, stochasticity
from sgm_sde._utils.elsewhere import OF_METHODS, named_elsewhere
from sgm_sde.schemes.base import Solver
from sgm_sde.schemes.exponential import Eta, ExponentialAdams, ExponentialRungeKutta
from sgm_sde.schemes.families.naming import lower, lowered_part, named, noise_part, start_part, warm_if
from sgm_sde.schemes.linear_part import VARIANTS

LU_PP = "Lu et al., 2022, arXiv:2211.01095"
LU = "Lu et al., 2022, arXiv:2206.00927"


@named_elsewhere(OF_METHODS)
def DPMSolverPP(
    order: int = 2,
    *,
    variant: str | None = None,
    start: str | None = None,
    eta: Eta = 0.0,
    singlestep: bool = False,
    lower_final: bool | None = None,
) -> Solver:
    r"""DPM-Solver++ and SDE-DPM-Solver++: data prediction, polynomials in half the log-SNR.

    $$ x_t = \frac{\sigma_t}{\sigma_s} e^{-\eta^2 h}\,x_s + \alpha_t \sum_j w_j D_j
             + \sigma_t\sqrt{1 - e^{-2\eta^2 h}}\,z, \qquad h = \lambda_t - \lambda_s $$

    The published third-order multistep solver is of order 2, since it gives half the weight to the second
    derivative; this one is of order 3, and `variant="published"` is the other.

    Args:
        order: 1, 2 or 3; multistep also more.
        variant: `"midpoint"` (the default at order 2, as published) or `"exact"`; multistep also `"published"`.
        start: `"cold"` or `"warm"`, see `ExponentialAdams`; warm by default from order 3 without noise.
        eta: stochasticity, 1 for the reverse SDE; a number or a function of time.
        singlestep: `order` network calls per step ("2S", "3S") instead of one ("2M", "3M").
        lower_final: whether the last steps use ever fewer evaluations; None: on grids of less than 15 steps and on
            those with a last step that is far longer than the one before, see `ExponentialAdams`.

    Raises:
        ValueError: for options out of range.

    Source: Lu et al., 2022, arXiv:2211.01095.

    Examples:
        >>> DPMSolverPP(3).order, DPMSolverPP(3, variant="published").order
        (3, 2)
    """
    order = check_integer("order", order)
    variant = ("midpoint" if order == 2 else "exact") if variant is None else variant
    return _dpm_solver("dpm++", LU_PP, "data", order, variant, start, eta, singlestep, lower_final)


@named_elsewhere(OF_METHODS)
def DPMSolver(
    order: int = 2,
    *,
    variant: str | None = None,
    start: str | None = None,
    eta: Eta = 0.0,
    singlestep: bool = True,
    lower_final: bool | None = None,
) -> Solver:
    r"""DPM-Solver and SDE-DPM-Solver: noise prediction, polynomials in half the log-SNR.

    $$ x_t = \frac{\alpha_t}{\alpha_s}\,x_s - \sigma_t \sum_j w_j \epsilon_j
             + \eta\,\sigma_t\sqrt{e^{2h} - 1}\,z, \qquad h = \lambda_t - \lambda_s $$

    With noise, a step multiplies what the evaluations err by up to $2(e^h - 1)$ times, and more at higher orders, as
    that of `SEEDS` does: below 15 to 40 steps these forms diverge. They are named as published, `sde-dpm2m-published`;
    the stable form is data prediction, `DPMSolverPP`.

    Args:
        order: 1, 2 or 3; multistep also more.
        variant: `"midpoint"` (the default at order 2, as published) or `"exact"`; multistep also `"published"`.
        start: `"cold"` or `"warm"`, see `ExponentialAdams`; warm by default from order 3 without noise.
        eta: stochasticity, 1 for the reverse SDE; a number or a function of time.
        singlestep: `order` network calls per step, as in the first paper, instead of one.
        lower_final: whether the last steps use ever fewer evaluations; None: on grids of less than 15 steps and on
            those with a last step that is far longer than the one before, see `ExponentialAdams`.

    Raises:
        ValueError: for options out of range.

    Source: Lu et al., 2022, arXiv:2206.00927.

    Examples:
        >>> DPMSolver(3).nfe_per_step
        3
    """
    order = check_integer("order", order)
    variant = ("midpoint" if order == 2 else "exact") if variant is None else variant
    return _dpm_solver("dpm", LU, "noise", order, variant, start, eta, singlestep, lower_final)


def _dpm_solver(
    family: str,
    source: str,
    prediction: str,
    order: int,
    variant: str,
    start: str | None,
    eta: Eta,
    singlestep: bool,
    lower_final: bool | None,
) -> Solver:
    eta = eta if callable(eta) else stochasticity(eta)
    one_of("variant", variant, VARIANTS)
    if flag("singlestep", singlestep) and order > 3:
        raise ValueError(f"order must be 1, 2 or 3, multistep also more, got {order}")
    noisy = callable(eta) or eta != 0
    diverging = noisy and prediction == "noise"  # in few steps
    usual = "midpoint" if order == 2 else "exact"
    parts = [
        "published" if diverging else None,
        None if variant == usual else "published-weights" if diverging and variant == "published" else variant,
    ]
    if singlestep:
        if start is not None:
            raise ValueError(f"a single-step solver needs no start, got start={start!r}")
        if lower_final is not None:
            raise ValueError(f"a single-step solver has no history to leave out, got lower_final={lower_final!r}")
        kind = "s" if family == "dpm++" else ""  # the first paper's solvers are single-step, and go without
        return ExponentialRungeKutta(
            stages=order, name=_dpm_name(family, order, kind, parts, eta), prediction=prediction, variant=variant,
            eta=eta, source=source,
        )  # fmt: skip
    if order == 1 and variant != "exact":
        raise ValueError(f"order 1 has no variants, got variant={variant!r}")
    least = 4 if variant == "published" else 3
    start_usual = warm_if(order, None, eta, least)
    start = warm_if(order, start, eta, least)
    lower_final = lower(order, lower_final)
    parts += [start_part(start, start_usual), lowered_part(order, lower_final)]
    return ExponentialAdams(
        nodes=order, start=start, lower_final=lower_final, name=_dpm_name(family, order, "m", parts, eta),
        prediction=prediction, variant=variant, eta=eta, source=source,
    )  # fmt: skip


def _dpm_name(family: str, order: int, kind: str, parts: Sequence[str | None], eta: Eta) -> str:
    """The registry's name, or with what differs from the solver there; functions eta of time share one.

    Examples:
        >>> DPMSolver(2, eta=1.0, singlestep=False).name, DPMSolverPP(2, eta=0.5, variant="exact").name
        ('sde-dpm2m-published', 'sde-dpm++2m-exact-eta0.5')
    """
    sde = "sde-" if callable(eta) or eta else ""
    return named(f"{sde}{family}{order}{kind}", *parts, noise_part(eta, (0, 1)))
