"""The solvers of the literature by their names: cases of the exponential integrators, and wrappers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sgm_sde._utils.checks import check_integer, described, ends_of, flag, number, one_of, real, settle, stochasticity
from sgm_sde._utils.elsewhere import OF_METHODS, named_elsewhere
from sgm_sde.engine.node import Node
from sgm_sde.engine.program import Form, Step
from sgm_sde.processes.base import SDE
from sgm_sde.schemes.base import Solver, WrappedSolver, resolve
from sgm_sde.schemes.exponential import STARTS, Eta, ExponentialAdams, ExponentialRungeKutta
from sgm_sde.schemes.linear_part import VARIANTS

LU_PP = "Lu et al., 2022, arXiv:2211.01095"
LU = "Lu et al., 2022, arXiv:2206.00927"


def _warm_if(order: int, start: str | None, eta: Eta, least: int = 3) -> str:
    """The start that the order needs, if none is given."""
    if start is not None:
        one_of("start", start, STARTS)
        return start
    return "warm" if order >= least and not callable(eta) and eta == 0 else "cold"


def _lower(order: int, lower_final: bool | None) -> bool | None:
    """The option `lower_final`, False for a method of one evaluation, which has none to leave out."""
    if order == 1 and lower_final:
        raise ValueError(f"order 1 has no lower one to end with, got lower_final={lower_final!r}")
    return lower_final if order > 1 else False


def _named(name: str, *parts: str | None) -> str:
    """A solver's name, with what differs from the solver that has it alone."""
    return "-".join([name, *(part for part in parts if part)])


def _starting(start: str, usual: str) -> str | None:
    """Part of a name for a start that is not the usual one."""
    return None if start == usual else start


def _lowered(order: int, lower_final: bool | None) -> str | None:
    """Part of a name for the option `lower_final`, where it is given and does something."""
    return None if lower_final is None or order == 1 else "lowered" if lower_final else "unlowered"


def _noisy(eta: Eta, usual: tuple[float, ...]) -> str | None:
    """Part of a name for a stochasticity that is none of the usual ones; functions of time share one."""
    return "eta-of-t" if callable(eta) else None if eta in usual else f"eta{eta!r}"


def _level(what: str, level: float | None, usual: float | None = None) -> str | None:
    """Part of a name for a level of noise or a scale that is not the usual one."""
    return None if level is None or level == usual else f"{what}{level:g}"


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
    start_usual = _warm_if(order, None, eta, least)
    start = _warm_if(order, start, eta, least)
    lower_final = _lower(order, lower_final)
    parts += [_starting(start, start_usual), _lowered(order, lower_final)]
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
    return _named(f"{sde}{family}{order}{kind}", *parts, _noisy(eta, (0, 1)))


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
    usual = _warm_if(order, None, 0.0)
    start = _warm_if(order, start, 0.0)
    time = "vp" if variable == "vp-time" else None
    return ExponentialAdams(
        nodes=order,
        prediction="noise",
        variable=variable,
        start=start,
        lower_final=_lower(order, lower_final),
        name=_named(f"deis{order}", time, _starting(start, usual), _lowered(order, lower_final)),
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
    usual = _warm_if(order, None, 0.0)
    start = _warm_if(order, start, 0.0)
    return ExponentialAdams(
        nodes=order,
        prediction="noise",
        variable="noise-level",
        start=start,
        name=_named(f"lms{order}", _starting(start, usual)),
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
        >>> UniC(DEIS(2)).order
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
    name = _named(predictor.name, "unic" if nodes == usual else f"unic{nodes}")
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
        _starting(start, "cold" if corrected else _warm_if(order, None, 0.0)),
        _lowered(order, lower_final),
    ]
    return ExponentialAdams(
        nodes=order,
        corrector=order + 1 if corrected else 0,
        prediction=prediction,
        variant=variants[variant],
        start=start,
        lower_final=_lower(order, lower_final),
        name=_named(f"uni{'pc' if corrected else 'p'}{order}", *parts),
        source="Zhao et al., 2023, arXiv:2302.04867",
    )


@named_elsewhere(OF_METHODS)
def SASolver(
    order: int = 2,
    *,
    corrector: int | None = None,
    eta: Eta = 1.0,
    window: tuple[float, float] = (0.05, 1.0),
    lower_final: bool | None = None,
) -> ExponentialAdams:
    r"""SA-Solver: stochastic Adams predictor and corrector, with noise inside a window of noise levels.

    A polynomial through evaluations of noisy states extrapolates their noise, too, the more the higher its degree and
    the longer the step in log-SNR: data of standard deviation 0.3 come out with 0.33 at order 2 and 0.40 at order 3
    in ten even steps of it, and with 2.1 at order 3 in ten even steps of VP's time.

    Args:
        order: number of evaluations of the predictor.
        corrector: number of evaluations of the corrector, 0 for none; one more than the predictor by default.
        eta: stochasticity (tau in the paper), a number or a function of time.
        window: noise levels sigma / alpha within which there is noise; the paper's choice for EDM networks.
        lower_final: whether the last steps use ever fewer evaluations; None: on grids of less than 15 steps and on
            those with a last step that is far longer than the one before, see `ExponentialAdams`.

    Raises:
        ValueError: for options out of range.

    Source: Xue et al., 2023, arXiv:2309.05019.

    Examples:
        >>> SASolver().weak_order
        2
    """
    order = check_integer("order", order)
    eta = eta if callable(eta) else stochasticity(eta)
    corrector = order + 1 if corrector is None else check_integer("corrector", corrector, 0)
    low, high = ends_of("window", window)
    parts = [
        None if corrector == order + 1 else f"corrector{corrector}",
        _noisy(eta, (1,)),
        None if (low, high) == (0.05, 1.0) else f"window{low:g}to{high:g}",
        _lowered(order, lower_final),
    ]
    return ExponentialAdams(
        nodes=order,
        corrector=corrector,
        eta=eta,
        window=window,
        lower_final=_lower(order, lower_final),
        name=_named("sa-solver" if order == 2 else f"sa-solver{order}", *parts),
        source="Xue et al., 2023, arXiv:2309.05019",
    )


@named_elsewhere(OF_METHODS)
def SEEDS(order: int = 2, *, prediction: str = "data") -> ExponentialRungeKutta:
    r"""SEEDS: exponential Runge-Kutta methods on the reverse SDE, one Brownian path per step.

    The paper predicts the noise. A step of length $h$ in half the log-SNR then multiplies what the evaluations err by,
    the noise of inner stages included, by $2(e^h - 1)$, where data prediction has $1 - e^{-2h}$: below about 40 steps
    on rectified flow and 20 on VP the published form diverges, the other does not.

    Args:
        order: number of stages, 1, 2 or 3.
        prediction: `"data"`, or `"noise"` as published.

    Raises:
        ValueError: for another order or prediction.

    Source: Gonzalez et al., 2023, arXiv:2305.14267.

    Examples:
        >>> SEEDS(3).nfe_per_step, SEEDS(3, prediction="noise").name
        (3, 'seeds3-published')
    """
    order = check_integer("order", order)
    one_of("prediction", prediction, ("data", "noise"))
    return ExponentialRungeKutta(
        stages=order,
        prediction=prediction,
        variant="midpoint" if order == 2 and prediction == "noise" else "exact",
        eta=1.0,
        name=f"seeds{order}{'-published' if prediction == 'noise' else ''}",
        source="Gonzalez et al., 2023, arXiv:2305.14267",
    )


@named_elsewhere(OF_METHODS)
def Rosenbrock(
    order: int = 2,
    *,
    sigma_data: float = 0.5,
    variable: str = "angle",
    no_signal_above: float | None = None,
    linear_below: float | None = None,
    centred_below: float | None = None,
    eta: Eta = 0.0,
    start: str | None = None,
    lower_final: bool | None = None,
) -> Solver:
    r"""Exponential Adams with the linear part of Gaussian data: a Rosenbrock-type multistep method.

    The denoiser of data with the standard deviation $\sigma_d$ is, to first order, a per-time multiple of the state;
    taking it into the linear part leaves the rest, which is $v/\rho$ with $v = \alpha\sigma_d\epsilon -
    \sigma D/\sigma_d$ and $\rho^2 = \alpha^2\sigma_d^2 + \sigma^2$, to be interpolated in the angle
    $\varphi = \arctan(\sigma/(\alpha\sigma_d))$:

    $$ \frac{x_t}{\rho_t} = \frac{x_s}{\rho_s} + \int_{\varphi_s}^{\varphi_t} \frac{v}{\rho}\,d\varphi $$

    Exact in one step for Gaussian data of that standard deviation around 0. It is regular at $\alpha = 0$ too, where
    flow matching starts.

    In log-SNR, `variable="log-snr"`, the same flow lies between DPM-Solver (noise, for data of large scale) and
    DPM-Solver++ (data, for data of small scale). With `no_signal_above` $s_0$ the polynomial goes through
    $v/(\rho g)$, $g^2 = 1 + (\sigma/(\alpha s_0))^2$: what a network's noise estimate is off by near pure noise is then
    integrated over log-SNR, where other forms multiply it by the ratio of the noise levels at the ends of a step.

    Where modes are narrower than the noise, a corrector (`UniC`) in log-SNR amplifies errors on steps longer than 0.47
    of half the log-SNR with three evaluations, with four on steps longer than 0.25. `variable="log-signal"`,
    $u = \log(1 + \sigma/(\alpha c))$, is log-SNR near pure noise and the noise level near the data. There steps
    shorten in it, so that one extrapolates over less than it rests on, and errors decay on steps up to 0.9.

    What is left grows with the mean of the data, if that is not 0. With `centred_below` it is taken about the network's
    first data estimate at that noise level and below, and moving the data by a constant moves the samples by it.

    From $\alpha = 0$ on, the first steps of a grid that is even in time do not shrink in these two, however many there
    are: there the angle keeps its order, they are of order 2 and with `no_signal_above` of order 1.

    Args:
        order: number of evaluations used.
        sigma_data: standard deviation of the data; 0.5 for images in [-1, 1].
        variable: what v is a polynomial in: the `"angle"`, `"log-snr"` or `"log-signal"`.
        no_signal_above: noise level sigma / alpha from which on the network sees next to no signal; None for nowhere.
        linear_below: the noise level c of log-signal; None for `sigma_data`.
        centred_below: noise level sigma / alpha from which on v is taken about a data estimate; None for never.
        eta: stochasticity, a number or a function of time.
        start: `"cold"` or `"warm"`, the default from order 3 without noise.
        lower_final: whether the last steps use ever fewer evaluations; None: on grids of less than 15 steps and on
            those with a last step that is far longer than the one before, see `ExponentialAdams`.

    Raises:
        ValueError: for another variable, or `no_signal_above` in the angle.

    Source: Zheng et al., 2023, arXiv:2310.13268; Karras et al., 2022, arXiv:2206.00364 (the split).

    Examples:
        >>> Rosenbrock(3).order
        3
    """
    order = check_integer("order", order)
    usual = _warm_if(order, None, eta)
    solver = ExponentialAdams(
        nodes=order,
        prediction="v",
        variable=variable,
        sigma_data=sigma_data,
        no_signal_above=no_signal_above,
        linear_below=linear_below,
        centred_below=centred_below,
        eta=eta,
        start=_warm_if(order, start, eta),
        lower_final=_lower(order, lower_final),
        source="Zheng et al., 2023, arXiv:2310.13268",
    )
    parts = (
        None if variable == "angle" else variable,
        _level("sigma", solver.sigma_data, 0.5),
        _level("above", solver.no_signal_above),
        _level("below", solver.linear_below),
        _level("centred", solver.centred_below),
        _noisy(eta, (0,)),
        _starting(solver.start, usual),
        _lowered(order, lower_final),
    )
    return replace(solver, name=_named(f"rosenbrock{order}", *parts))


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
    usual = _warm_if(order, None, 0.0)
    start = _warm_if(order, start, 0.0)
    return ExponentialAdams(
        nodes=order,
        prediction="rectified",
        start=start,
        lower_final=_lower(order, lower_final),
        name=_named(f"rectified{order}", _starting(start, usual), _lowered(order, lower_final)),
        source="Liu et al., 2023, arXiv:2209.03003",
    )


@named_elsewhere(OF_METHODS)
def ERSDE(order: int = 3) -> ExponentialAdams:
    r"""ER-SDE: data prediction with a noise scale $\phi(s)$ of the noise level $s = \sigma/\alpha$, repaired.

    $$ \frac{x_t}{\alpha_t} = r\,\frac{x_s}{\alpha_s} + \sum_j D_j \int_s^t l_j(u)\,d\frac{\phi(t)}{\phi(u)}
       + \sqrt{t^2 - s^2 r^2}\,z, \qquad r = \frac{\phi(t)}{\phi(s)}, \qquad \phi(s) = s(e^{s^{0.3}} + 10) $$

    here with s, t, u for noise levels. As published, the third-order solver takes a divided difference for the first
    derivative and is of order 2; here the polynomial through the last `order` evaluations is integrated. The scale
    is made for data of unit size. Scales $s^{1 + \eta^2}$ are what `eta` does in the other solvers.

    Args:
        order: number of evaluations used.

    Raises:
        ValueError: for an order below 1.

    Source: Cui et al., 2023, arXiv:2309.06169.

    Examples:
        >>> ERSDE(3).weak_order
        2
    """
    order = check_integer("order", order)
    return ExponentialAdams(
        nodes=order,
        variable="noise-level",
        noise_scale="er",
        name=f"er-sde{order}",
        source="Cui et al., 2023, arXiv:2309.06169",
    )


@dataclass(frozen=True)
class PNDM(Solver):
    r"""PNDM: three pseudo-Runge-Kutta steps, then the four-step Adams-Bashforth method of even steps.

    $$ x_t = \frac{\alpha_t}{\alpha_s} x_s + \alpha_t\Big(\frac{\sigma_t}{\alpha_t} -
       \frac{\sigma_s}{\alpha_s}\Big)\,\epsilon', \qquad
       \epsilon' = \tfrac1{24}\left(55\epsilon_0 - 59\epsilon_1 + 37\epsilon_2 - 9\epsilon_3\right) $$

    The first three steps average four evaluations as the classical Runge-Kutta method does, the two in the middle at
    the middle of the step in time. Without that (`runge_kutta=False`, known as PLMS) the first step averages the
    evaluations at its ends and the next ones have two and three evaluations. Order 1 on rough grids, 2 on smooth ones;
    one network call per step, four in each of the first three, or one more in all.

    Args:
        runge_kutta: whether to start with three Runge-Kutta steps, as published.

    Raises:
        TypeError: for a `runge_kutta` that is no bool.

    Source: Liu et al., 2022, arXiv:2202.09778.

    Examples:
        >>> PNDM().nfe(10), PNDM(runge_kutta=False).nfe(10)
        (19, 11)
    """

    runge_kutta: bool = True

    def __post_init__(self) -> None:
        settle(self, runge_kutta=flag("runge_kutta", self.runge_kutta))

    order = 1
    prediction = "noise"
    grids = ("table",)
    source = "Liu et al., 2022, arXiv:2202.09778"

    @property
    def name(self) -> str:
        """`pndm` or `plms`."""
        return "pndm" if self.runge_kutta else "plms"

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps."""
        return steps + (3 * min(steps, 3) if self.runge_kutta else min(steps, 1))

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        e1 = k.evaluate(k.x, k.start)
        known = [eps for _, eps in k.known(4)]
        if len(known) == 4 or (len(known) > 1 and not self.runge_kutta):
            return _transfer(k, k.end, Form.combine(ADAMS[len(known)], known))

        if self.runge_kutta:
            return self._runge_kutta(k, e1)

        e2 = k.evaluate(_transfer(k, k.end, e1), k.end)
        return _transfer(k, k.end, (e1 + e2) / 2)

    def _runge_kutta(self, k: Step, e1: Form) -> Form:
        """A step of four evaluations, the first of which is made."""
        half = k.at((k.start.t + k.end.t) / 2)
        e2 = k.evaluate(_transfer(k, half, e1), half)
        e3 = k.evaluate(_transfer(k, half, e2), half)
        e4 = k.evaluate(_transfer(k, k.end, e3), k.end)
        return _transfer(k, k.end, (e1 + 2 * e2 + 2 * e3 + e4) / 6)


def _transfer(k: Step, to: Node, eps: Form) -> Form:
    """DDIM's update from the step's start to a node with a noise estimate."""
    s = k.start
    return to.alpha / s.alpha * k.x + to.alpha * (to.noise_level - s.noise_level) * eps


# Adams-Bashforth weights for even steps, newest first.
ADAMS = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


@dataclass(frozen=True)
class AncestralNoise(WrappedSolver):
    r"""Turns a single-step ODE solver into an ancestral one: a step too far down, and noise back up.

    $$ x_t = \alpha_t\left[\text{ODE}(x_s/\alpha_s; s \to s_d) + s_{up}\,z\right], \qquad
       s_{up} = \eta\,\frac{s_t}{s_s}\sqrt{s_s^2 - s_t^2}, \qquad s_d^2 = s_t^2 - s_{up}^2 $$

    with noise levels $s = \sigma/\alpha$. Of `DDIM()` it makes `DDIM(eta)`, of two-stage solvers the "ancestral" ones.
    Order that of the solver, weak order too, up to 2; as many network calls per step.

    Args:
        solver: a deterministic solver of one step or its name, whose inner nodes lie within the step.
        eta: stochasticity in (0, 1].

    Raises:
        TypeError: for a solver of another kind.
        ValueError: for `eta` out of range.

    Source: Katherine Crowson, 2022, k-diffusion (`dpm_2_ancestral`, `dpmpp_2s_ancestral`).

    Examples:
        >>> AncestralNoise(DPMSolver(2)).weak_order
        2
    """

    solver: Solver
    eta: float = 1.0

    def __init__(self, solver: Solver | str, eta: float = 1.0) -> None:
        if isinstance(solver, str):
            solver = resolve(solver)
        if not isinstance(solver, ExponentialRungeKutta) or solver.stochastic or solver.stages > 2:
            raise TypeError(
                f"solver must be a deterministic ExponentialRungeKutta of 1 or 2 stages, got {described(solver)}"
            )
        settle(self, solver=solver, eta=number("eta", eta, above=0, most=1))

    @property
    def name(self) -> str:
        """The solver's, and what was done to it."""
        return f"{self.solver.name}-ancestral"

    @property
    def weak_order(self) -> int | None:
        """The solver's order, at most 2."""
        return min(self.solver.order, 2)

    def brownian_time(self, sde: SDE, t: float) -> float:
        """Time change of ancestral steps, whatever that of the solver inside."""
        return Solver.brownian_time(self, sde, t)

    source = "Crowson, 2022, github.com/crowsonkb/k-diffusion"

    def step(self, k: Step) -> Form:
        """The state at the step's end, by the formula above."""
        t = k.end.noise_level
        kept = math.exp(2 * (k.start.lam - k.end.lam))
        up = self.eta * t * math.sqrt(1 - kept)
        down = k.end.at_reduced_noise(t * math.sqrt(1 - self.eta**2 + self.eta**2 * kept))
        return self.solver.step(k.with_end(down)) + k.end.alpha * up * k.noise()


@dataclass(frozen=True)
class Restart(WrappedSolver):
    r"""Restart sampling: goes back up a stretch of noise levels with fresh noise, and down again, K times.

    When a step has first reached $s_{min}$, `rounds` times:

    $$ x \leftarrow x\,\frac{\alpha_{max}}{\alpha_{min}} + \alpha_{max}\sqrt{s_{max}^2 - s_{min}^2}\,z, \qquad
       \text{then the solver from } s_{max} \text{ to } s_{min} \text{ in } \texttt{n\_steps} \text{ steps} $$

    with noise levels $s = \sigma/\alpha$ and the steps even in $s^{1/7}$. $s_{min}$ is the level of the first node at
    or below the one asked for. Each pass starts without a history; the last one's is what the main run goes on
    with. What the network's errors have added up to by $s_{min}$ is washed out by the noise.

    Order that of the solver; network calls: the solver's, and those of `rounds` passes.

    Args:
        solver: any solver or its name, multistep too.
        s_min: lower end of the stretch.
        s_max: upper end.
        rounds: how often, K.
        n_steps: steps of a pass.

    Raises:
        TypeError: for something that is no solver, or one with hooks at the nodes, such as a corrector.
        ValueError: for options out of range.

    Source: Xu et al., 2023, arXiv:2306.14878.

    Examples:
        >>> Restart(ExponentialAdams(nodes=2), s_min=0.14, s_max=0.3, rounds=2, n_steps=3).nfe(18)
        24
    """

    solver: Solver
    s_min: float = 0.14
    s_max: float = 0.3
    rounds: int = 1
    n_steps: int = 3

    def __init__(
        self, solver: Solver | str, s_min: float = 0.14, s_max: float = 0.3, rounds: int = 1, n_steps: int = 3
    ) -> None:
        solver = resolve(solver)
        if solver.has_hooks:
            raise TypeError(f"{solver!r} works at the grid's nodes, which restarts leave: wrap it outside of Restart")
        if not 0 < real("s_min", s_min) < real("s_max", s_max) < math.inf:
            raise ValueError(f"need 0 < s_min < s_max, got {s_min} and {s_max}")
        settle(
            self,
            solver=solver,
            s_min=s_min,
            s_max=s_max,
            rounds=check_integer("rounds", rounds),
            n_steps=check_integer("n_steps", n_steps),
        )

    stochastic = True
    source = "Xu et al., 2023, arXiv:2306.14878"

    @property
    def name(self) -> str:
        """The solver's, and that it restarts."""
        return f"{self.solver.name}-restart"

    def nfe(self, steps: int) -> int:
        """Network calls for a number of steps of the main run."""
        return self.solver.nfe(steps) + self.rounds * self.solver.nfe(self.n_steps)

    def step(self, k: Step) -> Form:
        """One step, and the passes if it is the one that reaches s_min."""
        x = self.solver.step(k)
        if k.i == 0 and not k.last.noise_level <= self.s_min < self.s_max <= k.start.noise_level:
            raise ValueError(
                f"a restart between the noise levels {self.s_min:g} and {self.s_max:g} needs a grid that covers them; "
                f"this one runs from {k.start.noise_level:.4g} to {k.last.noise_level:.4g}"
            )
        reached = k.end.noise_level <= self.s_min < k.start.noise_level
        return self._passes(k, x) if reached else x

    def _passes(self, k: Step, x: Form) -> Form:
        """The state at the step's end after all passes from there up to s_max and down again."""
        low = k.end
        # Karras' levels of a pass down, which begins with noise that goes up to s_max.
        levels = np.linspace(self.s_max ** (1 / 7), low.noise_level ** (1 / 7), self.n_steps + 1) ** 7
        high = k.at_noise_level(self.s_max)
        inside = [k.at_noise_level(float(level)).t for level in levels[1:-1]]
        added = math.sqrt(high.noise_level**2 - low.noise_level**2)
        for _ in range(self.rounds):
            x = k.keep(x, low)
            x = high.alpha * (x / low.alpha + added * k.noise())
            x = k.subrun(self.solver.strict(), x, [high.t, *inside, low.t])
        return x
