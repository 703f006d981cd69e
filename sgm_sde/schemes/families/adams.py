"""Adams' methods in several variables: DEIS, LMS, iPNDM, and in the coordinates of rectified flow."""

from __future__ import annotations

from sgm_sde._utils.checks import check_integer, flag, one_of
from sgm_sde._utils.elsewhere import OF_METHODS, named_elsewhere
from sgm_sde.schemes.exponential import ExponentialAdams
from sgm_sde.schemes.families.naming import lower, lowered_part, named, start_part, warm_if


@named_elsewhere(OF_METHODS)
def DEIS(
    order: int = 3, *, variable: str = "time", start: str | None = None, lower_final: bool | None = None
) -> ExponentialAdams:
    r"""DEIS-tAB: noise prediction, polynomials in time, integrated exactly against the exponential kernel.

    $$ x_t = \frac{\alpha_t}{\alpha_s} x_s + \alpha_t \sum_j \epsilon_j
             \int_s^t l_j(u)\,d\Big(\frac{\sigma_u}{\alpha_u}\Big) $$

    with Lagrange's polynomials $l_j$ through the last `order` times (tAB2 of the paper is order 3 here). On `EDMSDE`
    the process' time is the noise level, and the polynomial that of `LMS`; the code of the paper maps EDM's levels to
    VP's time first, which is `variable="vp-time"`.

    Args:
        order: number of evaluations used.
        variable: `"time"`, the process' own, or `"vp-time"`, the time at which `VPSDE()` has the same noise level.
        start: `"cold"` as published or `"warm"`, the default from order 3.
        lower_final: whether the last steps use ever fewer evaluations; None: on grids of less than 15 steps and on
            those with a last step that is far longer than the one before, see `ExponentialAdams`.

    Raises:
        ValueError: for another variable.

    Source: Zhang & Chen, 2023, arXiv:2204.13902.

    Examples:
        >>> DEIS(3).order, DEIS(3, start="cold").order
        (3, 2)
        >>> DEIS(2, variable="vp-time").name
        'deis2-vp'
    """
    order = check_integer("order", order)
    one_of("variable", variable, ("time", "vp-time"))
    usual = warm_if(order, None, 0.0)
    start = warm_if(order, start, 0.0)
    time = "vp" if variable == "vp-time" else None
    return ExponentialAdams(
        nodes=order,
        prediction="noise",
        variable=variable,
        start=start,
        lower_final=lower(order, lower_final),
        name=named(f"deis{order}", time, start_part(start, usual), lowered_part(order, lower_final)),
        source="Zhang & Chen, 2023, arXiv:2204.13902",
    )


@named_elsewhere(OF_METHODS)
def LMS(order: int = 4, *, start: str | None = None) -> ExponentialAdams:
    r"""Linear multistep in the noise level: variable-step Adams-Bashforth on $dy/ds = \epsilon$.

    In $y = x/\alpha$, $s = \sigma/\alpha$. With a cold start it is the variable-step form of iPNDM and DEIS-rhoAB.

    Args:
        order: number of evaluations used.
        start: `"cold"` as in the literature or `"warm"`, the default from order 3.

    Raises:
        ValueError: for an order below 1, or a start of another name.

    Source: Katherine Crowson, 2022, k-diffusion; Zhang & Chen, 2023, arXiv:2204.13902.

    Examples:
        >>> LMS(4).order
        4
    """
    order = check_integer("order", order)
    usual = warm_if(order, None, 0.0)
    start = warm_if(order, start, 0.0)
    return ExponentialAdams(
        nodes=order,
        prediction="noise",
        variable="noise-level",
        start=start,
        name=named(f"lms{order}", start_part(start, usual)),
        source="Zhang & Chen, 2023, arXiv:2204.13902",
    )


@named_elsewhere(OF_METHODS)
def IPNDM(order: int = 4, *, variable_steps: bool = False) -> ExponentialAdams:
    r"""iPNDM: Adams-Bashforth on $dy/ds = \epsilon$ with the weights of even steps, whatever the grid.

    The fixed weights damp, which helps some networks at few calls, and make the method one of order 1 on a grid with
    rough steps; on grids that are smooth functions of the step's number it is of order 2.

    iPNDM_v is meant to be its variable-step form, which is `LMS` with a cold start. What its authors' code runs, and
    their results are of, has $1 - ab$ for $(1 - a)b$ in the second divided difference: the exact weight on even steps,
    a larger one where steps shrink, which damps as iPNDM's do. That is kept here: the order is 2 on any grid. At four
    evaluations the code has two slips more, in the third difference, by which its weights do not add up to 1 on
    uneven steps; these are repaired.

    Args:
        order: number of evaluations used.
        variable_steps: iPNDM_v's weights.

    Raises:
        TypeError: for a `variable_steps` that is no bool.
        ValueError: for an order below 1.

    Source: Liu et al., 2022, arXiv:2202.09778; Zhang & Chen, 2023, arXiv:2204.13902; Zhou et al., 2024,
    arXiv:2312.00094 (iPNDM_v, in its code).

    Examples:
        >>> IPNDM(4).nodes, IPNDM(4).order, IPNDM(4, variable_steps=True).order
        (4, 1, 2)
    """
    order = check_integer("order", order)
    return ExponentialAdams(
        nodes=order,
        prediction="noise",
        variable="noise-level",
        variant="ipndm-v" if flag("variable_steps", variable_steps) else "fixed",
        name=f"ipndm{'-v' if variable_steps else ''}{order}",
        source="Zhou et al., 2024, arXiv:2312.00094" if variable_steps else "Liu et al., 2022, arXiv:2202.09778",
    )


@named_elsewhere(OF_METHODS)
def RectifiedAdams(order: int = 2, *, start: str | None = None, lower_final: bool | None = None) -> ExponentialAdams:
    r"""Adams-Bashforth in the coordinates of rectified flow, on any process.

    With the noise's share $w = \sigma/(\alpha + \sigma)$ the scaled state is on the straight path of rectified flow:

    $$ \frac{d}{dw}\,\frac{x}{\alpha + \sigma} = \epsilon - D $$

    Regular at both ends, $\alpha = 0$ and $\sigma = 0$.

    Args:
        order: number of evaluations used.
        start: `"cold"` or `"warm"`, the default from order 3.
        lower_final: whether the last steps use ever fewer evaluations; None: on grids of less than 15 steps and on
            those with a last step that is far longer than the one before, see `ExponentialAdams`.

    Raises:
        ValueError: for an order below 1, or a start of another name.

    Source: Lipman et al., 2023, arXiv:2210.02747 (the path); Liu et al., 2023, arXiv:2209.03003.

    Examples:
        >>> RectifiedAdams(2).order
        2
    """
    order = check_integer("order", order)
    usual = warm_if(order, None, 0.0)
    start = warm_if(order, start, 0.0)
    return ExponentialAdams(
        nodes=order,
        prediction="rectified",
        start=start,
        lower_final=lower(order, lower_final),
        name=named(f"rectified{order}", start_part(start, usual), lowered_part(order, lower_final)),
        source="Liu et al., 2023, arXiv:2209.03003",
    )
