r"""Log-likelihoods of the probability flow.

In $y = x/\alpha$ and $\lambda = \log(\alpha/\sigma)$ the probability flow of every linear process is
$dy/d\lambda = D - y$ with the denoiser D, so that along it

$$ \log p_\epsilon(x_\epsilon) = \log p_T(x_T) + d\log\frac{\alpha_T}{\alpha_\epsilon}
   + \int_{\lambda_T}^{\lambda_\epsilon} \Big(d - \operatorname{tr}\frac{\partial D}{\partial y}\Big)\,d\lambda $$

Trajectory and integral are solved on one fixed grid, by cubics through the slopes and with the part taken out that
Gaussian data have. Since the quadrature is fixed, the probes of the trace may be fresh at each node, which averages
their noise; inside an adaptive solver they would be part of the equation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sgm_sde._autograd import outside_inference_mode
from sgm_sde._checks import FAR, number, one_of, require_function
from sgm_sde.engine.adaptive import check_tolerances
from sgm_sde.engine.noise import Generators, NoiseStream, Seeds, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.likelihood import solve
from sgm_sde.likelihood.checks import (
    check_finite,
    check_points,
    check_process,
    given_log_prob,
    require_count,
    value_or,
)
from sgm_sde.likelihood.decoders import GaussianDecoder, diffuse
from sgm_sde.likelihood.results import LikelihoodProtocol, LogProbResult
from sgm_sde.likelihood.trace import BASES, PROBES, TRACES, Estimate, Exact, Hutchinson, TraceModel
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.results import Status
from sgm_sde.scores.score import Score, as_density

STEPS = 48  # of the fixed grid by default

METHODS = ("exponential", "adaptive", "dopri5-adjoint", "rk45-scipy")
PILOT = "pilot"


@outside_inference_mode
def log_prob(
    score_fn: ScoreFn,
    sde: LinearSDE | MatrixSDE,
    x: Tensor,
    *,
    eps: float | None = None,
    steps: int | None = None,
    method: str = "exponential",
    rtol: float | None = None,
    atol: float | None = None,
    trace: str = "hutchinson",
    n_probes: int | None = None,
    probe: str | None = None,
    probe_basis: str | ProbePilot | None = None,
    chunk: int | None = None,
    data_std: float | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    decoder: str | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    model_kwargs: Mapping[str, Any] | None = None,
    enable_grad: bool = False,
    parameters: Sequence[Tensor] | None = None,
) -> LogProbResult:
    r"""Log-likelihood of x under the probability flow, in nats per sample.

    The density is that of the process at time eps, not of the data: no correction is made for what lies below, as in
    the numbers that papers report. The flow runs from x at eps to the prior at T.

    `decoder="gaussian"` takes x for data instead and corrects for it: with the process' own noise,
    $x_\epsilon \sim q = N(\alpha x, \sigma^2)$, and the Gaussian of the denoiser's mean and the standard deviation
    $\sigma/\alpha$ back,

    $$ \log p(x) \ge E_q\left[\log p_\epsilon(x_\epsilon) + \log N(x; D(x_\epsilon), \sigma^2/\alpha^2)
       - \log q(x_\epsilon)\right] $$

    of which `value` is one draw.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        x: points (B, *), floating.
        eps: time at which the density is taken; `sde.likelihood_eps` if not given.
        steps: of the fixed grid, each one network call; one more in all. If not given 48, and for samples that these do
            not resolve 96 and 192, at as many calls: on these samples alone where the network is a module or gets
            conditions that are marked (`sg.PerSample`), else on all.
        method: `"exponential"`, the fixed grid; `"adaptive"`, Dormand and Prince's pair with steps of each sample's
            own; `"dopri5-adjoint"`, torchdiffeq's on the whole batch at once, with gradients by the adjoint equation,
            whose memory does not grow with the steps; or `"rk45-scipy"`, Song et al.'s protocol: SciPy's RK45 on the
            whole batch at once. All but the first have tolerances, `rtol` and `atol`, and probes that stay fixed.
        rtol: relative tolerance of the methods that have one, 1e-5 by default.
        atol: absolute tolerance of the methods that have one, 1e-5 by default.
        trace: `"hutchinson"`, estimated with random probes, or `"exact"`, as many vector-Jacobian products as
            dimensions at each evaluation.
        n_probes: probes a node and sample, 1 by default.
        probe: `"rademacher"`, of less variance and the default, or `"gaussian"`.
        probe_basis: where the probes' entries are independent: `"pixel"`, the default; for images (B, C, H, W) also
            `"colour"`, a rotation of the channels, or `"dct"`, the cosine transform; or `"pilot"`, what
            `pilot_probe_basis` finds on x; or what it has found before. Estimates stay unbiased in any.
        chunk: rows of the Jacobian at once for the exact trace, 1 by default; more takes more memory and a network that
            `vmap` can take.
        data_std: standard deviation of the data, about which the grid is dense and in whose units tolerances are, 0.5
            if not given; a matter of accuracy only. Not for `"rk45-scipy"`.
        prior: log-density (B,) of states (B, *) at T; that of N(0, sigma(T)^2) if not given.
        decoder: `"gaussian"` for a bound on the density of x as data.
        seed: of the probes and of the decoder's noise; one int for the batch, or one a sample.
        generator: instead of `seed`.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph, for gradients with respect to x and the network's parameters.
        parameters: what `"dopri5-adjoint"` differentiates with respect to besides x; those of the network if not given,
            and none where that is no `nn.Module`, whose parameters cannot be found.

    Raises:
        ValueError: for options out of range or of another method or trace, and x or scores that are not finite.
        TypeError: for x that is not floating, or a process without alpha and sigma.

    Source: Song et al., 2021, arXiv:2011.13456; Grathwohl et al., 2019, arXiv:1810.01367 (trace estimates); Chen et
    al., 2018, arXiv:1806.07366 (adjoint); Song et al., 2021, arXiv:2101.09258 (decoder).

    Example:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> oracle = sg.oracles.Gaussian(torch.zeros(3), 0.25)
        >>> x = oracle.sample(4, sde, 1e-5, seed=0)
        >>> result = log_prob(oracle.score(sde), sde, x, trace="exact")
        >>> bool((result.value - oracle.log_prob(x, sde, 1e-5)).abs().max() < 1e-3)
        True
        >>> result.nfe
        49
    """
    if isinstance(sde, MatrixSDE):
        from sgm_sde.likelihood.joint import joint_log_prob

        refused: dict[str, Any] = {
            "method": None if method == "exponential" else method, "rtol": rtol, "atol": atol, "prior": prior,
            "probe_basis": probe_basis, "decoder": decoder, "enable_grad": enable_grad or None,
            "parameters": parameters, "data_std": data_std,
        }  # fmt: skip
        for option, given in refused.items():
            if given is not None:
                raise ValueError(f"log_prob on {sde!r} takes no {option}=, got {given!r}")
        passed_on: dict[str, Any] = {
            "steps": steps, "trace": trace, "n_probes": n_probes, "probe": probe, "chunk": chunk,
        }  # fmt: skip
        return joint_log_prob(
            score_fn, sde, x, eps=eps, seed=seed, generator=generator, model_kwargs=model_kwargs,
            **{option: value for option, value in passed_on.items() if value is not None},
        )  # fmt: skip
    score = as_density(score_fn, sde)
    eps = check_process(sde, eps)
    state = check_points(x)
    one_of("trace", trace, TRACES)
    one_of("method", method, METHODS)
    on_grid = method == "exponential"
    refine = on_grid and steps is None
    steps = value_or("steps", steps, STEPS, on_grid, "method='exponential'")
    rtol = value_or("rtol", rtol, 1e-5, not on_grid, "a method with tolerances")
    atol = value_or("atol", atol, 1e-5, not on_grid, "a method with tolerances")
    data_std = value_or("data_std", data_std, 0.5, method != "rk45-scipy", "another method")
    data_std = number("data_std", data_std, above=0, most=FAR)
    n_probes = value_or("n_probes", n_probes, 1, trace != "exact", "trace='hutchinson'")
    probe = value_or("probe", probe, "rademacher", trace != "exact", "trace='hutchinson'")
    pixel: str | ProbePilot = "pixel"
    basis = value_or("probe_basis", probe_basis, pixel, trace != "exact", "trace='hutchinson'")
    chunk = value_or("chunk", chunk, 1, trace == "exact", "trace='exact'")
    one_of("probe", probe, PROBES)
    one_of("probe_basis", getattr(basis, "basis", basis), (*BASES, PILOT))
    one_of("decoder", decoder, (None, "gaussian"))
    require_function("prior", prior, "from latents (B, *) to log-densities (B,)", 1, optional=True)
    n_probes, chunk = require_count("n_probes", n_probes), require_count("chunk", chunk)
    steps = require_count("steps", steps, 6)
    check_tolerances(rtol, atol, 1)
    if enable_grad and method in ("rk45-scipy", "adaptive"):
        raise ValueError(f"method={method!r} has no gradients: use 'exponential' or 'dopri5-adjoint'")
    if parameters is not None and method != "dopri5-adjoint":
        raise ValueError(f"parameters are for method='dopri5-adjoint', got them with {method!r}")

    seeds = resolve_seeds(seed, generator, len(x))
    spent, chosen = (0, 0), ""
    estimate: Estimate
    if trace == "exact":
        estimate = Exact(chunk)
    else:
        if basis == PILOT:
            basis = pilot_probe_basis(
                score, sde, x, probe=probe, eps=eps, data_std=data_std, seed=SEED_OF_PILOTS, model_kwargs=model_kwargs
            )
            spent = basis.nfe, basis.vjps
        if isinstance(basis, ProbePilot):
            basis, chosen = basis.basis, ", the basis chosen by a pilot"
        stream, fixed = NoiseStream(seeds, "probe"), method != "exponential"
        estimate = Hutchinson(stream, tuple(x.shape), n_probes, probe, basis, fixed)
    model = TraceModel(score, sde, (eps, sde.T), model_kwargs, estimate)
    with torch.set_grad_enabled(enable_grad):
        added = state.new_zeros(len(x))
        if decoder is not None:
            state, added = diffuse(model, GaussianDecoder(state), eps, NoiseStream(seeds, "dequantisation"))
        (latent, volume, stderr, defect), how = _solve(
            model, sde, state, eps, method, steps, refine, rtol, atol, data_std, _parameters(score, parameters)
        )
        at_T = sde.prior_log_prob(latent) if prior is None else given_log_prob(prior, latent)
        value = at_T + volume + added
    again = partial(solve.revisit, model, sde, state, eps, steps, data_std, refine) if on_grid else None
    check_finite(value, "the log-likelihood", again)
    if trace == "exact":
        stderr = torch.zeros_like(stderr)
    nfe, vjps = model.nfe + spent[0], estimate.vjps + spent[1]
    protocol = LikelihoodProtocol(
        "point log p_eps" if decoder is None else "Jensen bound by diffusion to eps and a Gaussian decoder back",
        eps,
        how,
        f"{estimate}{chosen}",
        f"N(0, {sde.prior_std:.4g}^2)" if prior is None else "given",
    )
    return LogProbResult(value, stderr, latent, at_T, volume, added, defect, nfe, vjps, Status(), protocol)


def _solve(
    model: TraceModel,
    sde: LinearSDE,
    x: Tensor,
    eps: float,
    method: str,
    steps: int,
    refine: bool,
    rtol: float,
    atol: float,
    data_std: float,
    parameters: Sequence[Tensor],
) -> tuple[solve.Solution, str]:
    """The solution, and how it was found in words."""
    tolerances = f"(rtol = {rtol:g}, atol = {atol:g})"
    if method == "exponential":
        how = f"a multistep method of order 4 with {steps} fixed steps"
        if refine:
            how += f", up to {solve.REFINEMENTS[-1] * steps} for samples that they do not resolve"
        return solve.exponential(model, sde, x, eps, steps, data_std, refine=refine), how
    if method == "rk45-scipy":
        return solve.scipy_rk45(model, sde, x, eps, rtol, atol), f"SciPy's RK45 on the batch {tolerances}"
    flow = solve.NormalisedFlow(model, sde, x, eps, data_std)
    if method == "adaptive":
        how = f"Dormand and Prince's method with steps of each sample's own {tolerances}"
        return solve.joint(flow, *solve.adaptive(flow, x, rtol, atol)), how
    return solve.joint(
        flow, *solve.adjoint(flow, x, rtol, atol, parameters)
    ), f"torchdiffeq's dopri5 on the batch {tolerances}"


def _parameters(score: Score, given: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    if given is not None:
        return tuple(given)
    return tuple(score.net.parameters()) if isinstance(score.net, nn.Module) else ()


SEED_OF_PILOTS = 0  # so that the same batch always finds the same basis


@dataclass(frozen=True)
class ProbePilot:
    """What a pilot found about the bases of probes.

    Attributes:
        basis: the one of least variance.
        variances: mean over the batch of the variance that one probe leaves in the log-likelihood, in nats^2.
        nfe: network calls that it took.
        vjps: vector-Jacobian products that it took.
    """

    basis: str
    variances: dict[str, float]
    nfe: int
    vjps: int


def pilot_probe_basis(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    *,
    steps: int = 16,
    seed: Seeds = None,
    generator: Generators = None,
    **options: Any,
) -> ProbePilot:
    """The basis in which probes leave the least variance, measured on one batch.

    Two probes in each basis along a flow of few steps: 51 network calls and twice as many vector-Jacobian products by
    default. Give what it finds as `probe_basis` to have one basis for a whole data set.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        x: images (B, C, H, W) at eps, floating.
        steps: of the fixed grid.
        seed: of the probes; one int for the batch, or one a sample.
        generator: instead of `seed`.
        options: of `log_prob`.

    Raises:
        ValueError: for x that are no images, and as `log_prob`.

    Example:
        >>> import sgm_sde as sg
        >>> C = 0.3 * torch.eye(4) + 0.2 * torch.ones(4, 4)  # brighter as a whole
        >>> oracle = sg.oracles.Gaussian(torch.zeros(1, 2, 2), C)
        >>> sde = sg.VPSDE()
        >>> pilot_probe_basis(oracle.score(sde), sde, oracle.sample(8, seed=0), seed=0).basis
        'dct'
    """
    fixed = {"probe_basis", "n_probes", "trace", "method", "enable_grad"} & options.keys()
    if fixed:
        raise ValueError(f"a pilot sets {', '.join(sorted(fixed))} itself")
    found = {
        basis: log_prob(
            score_fn, sde, x, steps=steps, n_probes=2, probe_basis=basis, seed=seed, generator=generator, **options
        )
        for basis in BASES
    }
    variances = {basis: 2 * float(res.stderr.square().mean()) for basis, res in found.items()}
    return ProbePilot(
        min(variances, key=lambda basis: variances[basis]),
        variances,
        sum(res.nfe for res in found.values()),
        sum(res.vjps for res in found.values()),
    )
