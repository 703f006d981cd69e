"""UniPC: a corrector of one order more, which needs no evaluation of its own."""

from __future__ import annotations

from dataclasses import replace

from sgm_sde._utils.checks import check_integer, described, flag, one_of
from sgm_sde._utils.elsewhere import OF_METHODS, named_elsewhere
from sgm_sde.schemes.base import Solver, resolve
from sgm_sde.schemes.exponential import STARTS, ExponentialAdams
from sgm_sde.schemes.families.naming import lower, lowered_part, named, start_part, warm_if


@named_elsewhere(OF_METHODS)
def UniC(predictor: Solver | str, nodes: int | None = None) -> ExponentialAdams:
    """UniC: corrects each step of a multistep predictor with the network call that the next step makes anyway.

    Args:
        predictor: any `ExponentialAdams` or its name: DPM-Solver(++) multistep, DEIS, LMS, iPNDM, with noise or
            without.
        nodes: evaluations the corrector uses, that at the step's end included; one more than the predictor
            by default.

    Raises:
        TypeError: for a predictor of another kind.
        ValueError: for more evaluations than the predictor's and one.

    Source: Zhao et al., 2023, arXiv:2302.04867.

    Examples:
        >>> import sgm_sde as sg
        >>> UniC(sg.schemes.DEIS(2)).order
        3
    """
    if isinstance(predictor, str):
        predictor = resolve(predictor)
    if not isinstance(predictor, ExponentialAdams):
        raise TypeError(f"UniC corrects multistep solvers (ExponentialAdams), got {described(predictor)}")
    usual = predictor.nodes + 1
    nodes = usual if nodes is None else check_integer("nodes", nodes)
    if nodes > usual:
        raise ValueError(f"nodes of UniC on {predictor.name} must lie between 1 and {usual}, got {nodes}")
    name = named(predictor.name, "unic" if nodes == usual else f"unic{nodes}")
    corrected = replace(predictor, corrector=nodes, start="cold", name=name)
    warm = predictor.start == "warm" and bool(corrected._inner)
    return replace(corrected, start="warm") if warm else corrected


@named_elsewhere(OF_METHODS)
def UniPC(
    order: int = 3,
    *,
    prediction: str = "data",
    variant: str = "bh2",
    start: str = "cold",
    corrector: bool = True,
    lower_final: bool | None = None,
) -> ExponentialAdams:
    r"""UniPC: exponential Adams predictor of `order` evaluations, and the corrector with one more.

    From a cold start it is of order 3 (order 2 at `order=1`), from a warm one of order `order + 1`.

    Args:
        order: number of evaluations of the predictor.
        prediction: `"data"` or `"noise"`.
        variant: `"bh2"` or `"bh1"`, the paper's two simplifications where two evaluations are used, or `"exact"`.
        start: `"cold"` as published, or `"warm"` for the last order.
        corrector: without it, UniP.
        lower_final: whether the last steps use ever fewer evaluations; None: on grids of less than 15 steps and on
            those with a last step that is far longer than the one before, see `ExponentialAdams`.

    Raises:
        ValueError: for options out of range.

    Source: Zhao et al., 2023, arXiv:2302.04867.

    Examples:
        >>> UniPC(3).order, UniPC(3, start="warm").order, UniPC(2, corrector=False).order
        (3, 4, 2)
    """
    order = check_integer("order", order)
    variants = {"bh1": "bh1", "bh2": "midpoint", "exact": "exact"}
    one_of("variant", variant, variants)
    one_of("prediction", prediction, ("data", "noise"))
    one_of("start", start, STARTS)
    corrected = flag("corrector", corrector)
    parts = [
        None if prediction == "data" else prediction,
        None if variant == "bh2" else variant,
        start_part(start, "cold" if corrected else warm_if(order, None, 0.0)),
        lowered_part(order, lower_final),
    ]
    return ExponentialAdams(
        nodes=order,
        corrector=order + 1 if corrected else 0,
        prediction=prediction,
        variant=variants[variant],
        start=start,
        lower_final=lower(order, lower_final),
        name=named(f"uni{'pc' if corrected else 'p'}{order}", *parts),
        source="Zhao et al., 2023, arXiv:2302.04867",
    )
