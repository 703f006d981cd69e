"""Exponential Rosenbrock methods."""

from __future__ import annotations

from dataclasses import replace

from sgm_sde._utils.checks import check_integer
from sgm_sde._utils.elsewhere import OF_METHODS, named_elsewhere
from sgm_sde.schemes.base import Solver
from sgm_sde.schemes.exponential import Eta, ExponentialAdams
from sgm_sde.schemes.families.naming import level_part, lower, lowered_part, named, noise_part, start_part, warm_if


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
    usual = warm_if(order, None, eta)
    solver = ExponentialAdams(
        nodes=order,
        prediction="v",
        variable=variable,
        sigma_data=sigma_data,
        no_signal_above=no_signal_above,
        linear_below=linear_below,
        centred_below=centred_below,
        eta=eta,
        start=warm_if(order, start, eta),
        lower_final=lower(order, lower_final),
        source="Zheng et al., 2023, arXiv:2310.13268",
    )
    parts = (
        None if variable == "angle" else variable,
        level_part("sigma", solver.sigma_data, 0.5),
        level_part("above", solver.no_signal_above),
        level_part("below", solver.linear_below),
        level_part("centred", solver.centred_below),
        noise_part(eta, (0,)),
        start_part(solver.start, usual),
        lowered_part(order, lower_final),
    )
    return replace(solver, name=named(f"rosenbrock{order}", *parts))
