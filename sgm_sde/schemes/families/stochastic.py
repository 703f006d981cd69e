"""Methods of the reverse SDE: SA-Solver, SEEDS, ER-SDE-Solver."""

from __future__ import annotations

from sgm_sde._utils.checks import check_integer, ends_of, one_of, stochasticity
from sgm_sde._utils.elsewhere import OF_METHODS, named_elsewhere
from sgm_sde.schemes.exponential import Eta, ExponentialAdams, ExponentialRungeKutta
from sgm_sde.schemes.families.naming import lower, lowered_part, named, noise_part


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
        noise_part(eta, (1,)),
        None if (low, high) == (0.05, 1.0) else f"window{low:g}to{high:g}",
        lowered_part(order, lower_final),
    ]
    return ExponentialAdams(
        nodes=order,
        corrector=corrector,
        eta=eta,
        window=window,
        lower_final=lower(order, lower_final),
        name=named("sa-solver" if order == 2 else f"sa-solver{order}", *parts),
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
