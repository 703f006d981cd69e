r"""Log-likelihoods of the probability flow.

In $y = x/\alpha$ and $\lambda = \log(\alpha/\sigma)$ the probability flow of every linear process is
$dy/d\lambda = D - y$ with the denoiser D, so that along it

$$ \log p_\epsilon(x_\epsilon) = \log p_T(x_T) + d\log\frac{\alpha_T}{\alpha_\epsilon}
   + \int_{\lambda_T}^{\lambda_\epsilon} \Big(d - \operatorname{tr}\frac{\partial D}{\partial y}\Big)\,d\lambda $$

Trajectory and integral are computed on one fixed grid, by piecewise cubics through the slopes, after the part that is
exact for Gaussian data is split off. On a fixed grid the probes of the trace can be drawn anew at each node, which
averages their noise; an adaptive solver needs an integrand that does not change between evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from sgm_sde._utils.autograd import gradients, outside_inference_mode
from sgm_sde._utils.checks import described, keywords, known_arguments, one_of, require_function
from sgm_sde._utils.elsewhere import OF_DENSITIES, named_elsewhere
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.noise import Generators, NoiseStream, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.likelihood.checks import (
    check_finite,
    check_points,
    check_process,
    given_log_prob,
    require_count,
    warn_of_lost_gradient,
    warn_unresolved,
)
from sgm_sde.likelihood.decoders import GaussianDecoder, diffuse
from sgm_sde.likelihood.methods import (
    PILOT,
    FixedGrid,
    Hutchinson,
    Method,
    ProbeTrial,
    Trace,
    resolve_method,
    resolve_trace,
)
from sgm_sde.likelihood.problem import Problem
from sgm_sde.likelihood.results import LikelihoodProtocol, LogProbResult, joined
from sgm_sde.likelihood.trace import BASES, TraceScore
from sgm_sde.processes.kinds import has_matrix_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.scores.conditions import resolve, rows_at
from sgm_sde.scores.score import Score, as_density


@outside_inference_mode
@named_elsewhere(OF_DENSITIES)
def log_prob(
    score_fn: ScoreFn,
    sde: LinearSDE | MatrixSDE,
    x: Tensor,
    *,
    eps: float | None = None,
    method: str | Method = "exponential",
    trace: str | Trace | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    decoder: str | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    model_kwargs: Conditions | None = None,
    enable_grad: bool = False,
    batch_size: int | None = None,
) -> LogProbResult:
    r"""Log-likelihood of x under the probability flow, in nats per sample.

    The density is that of the process at time eps, not that of the data: as in published numbers, the interval below
    eps is not corrected for. The flow runs from x at eps to the prior at T.

    `decoder="gaussian"` takes x as data at time 0 and corrects for the interval: with the noise of the process,
    $x_\epsilon \sim q = N(\alpha x, \sigma^2)$, and the Gaussian of the denoiser's mean and the standard deviation
    $\sigma/\alpha$ back,

    $$ \log p(x) \ge E_q\left[\log p_\epsilon(x_\epsilon) + \log N(x; D(x_\epsilon), \sigma^2/\alpha^2)
       - \log q(x_\epsilon)\right] $$

    of which `value` is one draw.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process, or a process with a matrix, on which the density is that of the joint state.
        x: points (B, *), floating.
        eps: time at which the density is taken; `sde.likelihood_eps` if not given.
        method: `FixedGrid` (`"exponential"`), `AdaptiveFlow` (`"adaptive"`), `AdjointFlow` (`"dopri5-adjoint"`) or
            `ScipyRK45` (`"rk45-scipy"`), of `sgm_sde.likelihood`. The first is the default: on 49 network calls, and
            more for samples whose numerical error exceeds 1e-4 nats/dim.
        trace: of the divergence, `Exact` (`"exact"`) or `Hutchinson` (`"hutchinson"`); exact up to 16 dimensions and
            else estimated if not given.
        prior: log-density (B,) of states (B, *) at T; that of N(0, sigma(T)^2) if not given.
        decoder: `"gaussian"` for a bound on the density of x as data.
        seed: of the probes and of the decoder's noise; one int for the batch, or one per sample.
        generator: instead of `seed`.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph, for gradients with respect to x and the network's parameters.
        batch_size: samples that are run at once; all if not given. Values do not depend on it.

    Raises:
        ValueError: for options out of range, and x or scores that are not finite.
        TypeError: for x that is not floating, or a process without alpha and sigma.

    Warns:
        LikelihoodWarning: where the numerical error of some samples did not come down to the tolerance.

    Source: Song et al., 2021, arXiv:2011.13456; Grathwohl et al., 2019, arXiv:1810.01367 (trace estimates); Chen et
    al., 2018, arXiv:1806.07366 (adjoint); Song et al., 2021, arXiv:2101.09258 (decoder).

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> oracle = sg.oracles.Gaussian(torch.zeros(3), 0.25)
        >>> x = oracle.sample(4, sde, 1e-5, seed=0)
        >>> result = log_prob(oracle.score(sde), sde, x)
        >>> bool((result.value - oracle.log_prob(x, sde, 1e-5)).abs().max() < 1e-3)
        True
        >>> result.nfe, bool((result.stderr == 0).all())
        (49, True)
    """
    method = resolve_method(method)
    if has_matrix_marginal(sde):
        return _joint(score_fn, sde, x, eps, method, trace, prior, decoder, seed, generator, model_kwargs, enable_grad)

    score = as_density(score_fn, sde)
    eps = check_process(sde, eps)
    state = check_points(x)
    seeds = resolve_seeds(seed, generator, len(x))
    _require_possible(method, prior, decoder, enable_grad)

    how, pilot = chosen_trace(resolve_trace(trace, state), score, sde, state, eps, method, model_kwargs)
    asked = _Question(score, sde, eps, method, how, prior, decoder)
    parts = _parts(score, state, seeds, model_kwargs, batch_size)
    with gradients(enable_grad):
        results = [asked.solved(*part) for part in parts]

    result = with_pilot(joined(results), pilot)
    warn_unresolved(result, state)
    return result


def _require_possible(method: Method, prior: object, decoder: str | None, enable_grad: bool) -> None:
    """Raise ValueError for options that are unknown or do not go together."""
    one_of("decoder", decoder, (None, "gaussian"))
    require_function("prior", prior, "from latents (B, *) to log-densities (B,)", 1, optional=True)
    if enable_grad and not method.differentiable:
        raise ValueError(f"{method!r} has no gradients: use FixedGrid or AdjointFlow")


@dataclass(frozen=True)
class _Question:
    """Checked arguments of a likelihood, whatever the samples."""

    score: Score
    sde: LinearSDE
    eps: float
    method: Method
    trace: Trace
    prior: Callable[[Tensor], Tensor] | None
    decoder: str | None

    def solved(self, first: int, x: Tensor, seeds: SampleSeeds, model_kwargs: Conditions | None) -> LogProbResult:
        """The result for states x (B, *), the first of a number in the batch, and their arguments of the network."""
        sde = self.sde
        eps = self.eps
        estimate = self.trace.estimate(x, seeds, self.method.fresh)
        model = TraceScore(self.score, sde, (eps, sde.T), model_kwargs, len(x))
        state = x
        added = x.new_zeros(len(x))
        if self.decoder is not None:
            state, added = diffuse(model, GaussianDecoder(x), eps, NoiseStream(seeds, "dequantisation"))

        prior_std = sde.prior_std if self.prior is None else None
        prior = None if self.prior is None else partial(given_log_prob, self.prior, first)
        problem = Problem(model, state, eps, estimate, prior_std=prior_std, prior=prior, first=first)
        solution, how, unresolved = self.method.solve(problem)
        if first == 0:
            warn_of_lost_gradient(problem, state, self.method.data_std)
        latent = solution.latent
        at_T = problem.at_noise(latent)
        value = at_T + solution.volume + added
        check_finite(value, "the log-likelihood", partial(self.method.again, problem), first=first)
        return LogProbResult(
            value=value,
            stderr=solution.stderr,
            error=solution.stated,
            latent=latent,
            prior=at_T,
            divergence=solution.volume,
            decoder=added,
            defect=solution.defect,
            freedom=solution.freedom,
            unresolved=unresolved.samples,
            reasons=unresolved.reasons,
            method=self.method,
            nfe=model.nfe,
            vjps=model.vjps,
            protocol=self._protocol(how, str(estimate)),
        )

    def _protocol(self, method: str, trace: str) -> LikelihoodProtocol:
        """Protocol to quote, for a method and a trace in words."""
        bound = "Jensen bound by diffusion to eps and a Gaussian decoder back"
        estimator = "point log p_eps" if self.decoder is None else bound
        prior = f"N(0, {self.sde.prior_std:.4g}^2)" if self.prior is None else "given"
        return LikelihoodProtocol(estimator, self.eps, method, trace, prior)


def _parts(
    score: Score, x: Tensor, seeds: SampleSeeds, model_kwargs: Conditions | None, batch_size: int | None
) -> list[tuple[int, Tensor, SampleSeeds, Conditions | None]]:
    """Number of the first state, states, seeds and arguments of the network of each part of the batch.

    Raises:
        ValueError: for a size below 1, and arguments of which nothing says whether they have one row per sample.
    """
    if batch_size is None:
        return [(0, x, seeds, model_kwargs)]
    require_count("batch_size", batch_size)
    if batch_size >= len(x):
        return [(0, x, seeds, model_kwargs)]
    marked = resolve(model_kwargs or {}, len(x), score.conditions, called=batch_size)
    parts: list[tuple[int, Tensor, SampleSeeds, Conditions | None]] = []
    for first in range(0, len(x), batch_size):
        rows = slice(first, first + batch_size)
        parts.append((first, x[rows], seeds[rows], rows_at(marked, rows)))
    return parts


def with_pilot(result: LogProbResult, pilot: ProbeTrial | None) -> LogProbResult:
    """The result with what a pilot before it took, if there was one."""
    if pilot is None:
        return result
    trace = f"{result.protocol.trace}, the basis chosen by a pilot"
    protocol = replace(result.protocol, trace=trace)
    return replace(result, protocol=protocol, nfe=result.nfe + pilot.nfe, vjps=result.vjps + pilot.vjps)


def _joint(
    score_fn: ScoreFn,
    sde: MatrixSDE,
    x: Tensor,
    eps: float | None,
    method: Method,
    trace: str | Trace | None,
    prior: object,
    decoder: object,
    seed: Seeds,
    generator: Generators,
    model_kwargs: Conditions | None,
    enable_grad: bool,
) -> LogProbResult:
    from sgm_sde.likelihood.joint import joint_log_prob

    for option, given in {"prior": prior, "decoder": decoder, "enable_grad": enable_grad or None}.items():
        if given is not None:
            raise ValueError(f"log_prob on {sde!r} takes no {option}=, got {described(given)}")
    return joint_log_prob(
        score_fn, sde, x, eps=eps, method=method, trace=trace, seed=seed, generator=generator, model_kwargs=model_kwargs
    )


def chosen_trace(
    trace: Trace,
    score: Score,
    sde: LinearSDE,
    x: Tensor,
    eps: float,
    method: Method,
    model_kwargs: Conditions | None,
) -> tuple[Trace, ProbeTrial | None]:
    """The trace with a basis of its probes, and what a pilot found where it was asked for one now."""
    if not isinstance(trace, Hutchinson) or (isinstance(trace.basis, str) and trace.basis != PILOT):
        return trace, None
    if isinstance(trace.basis, ProbeTrial):
        return trace, None
    pilot = choose_probe_basis(
        score, sde, x, eps=eps, method=FixedGrid(16, method.data_std), probe=trace.probe, seed=SEED_OF_PILOTS,
        model_kwargs=model_kwargs,
    )  # fmt: skip
    return replace(trace, basis=pilot.basis), pilot


SEED_OF_PILOTS = 0  # so that the same batch always finds the same basis


def choose_probe_basis(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    *,
    method: str | Method = FixedGrid(16),  # noqa: B008
    probe: str = "rademacher",
    seed: Seeds = None,
    generator: Generators = None,
    **options: Any,
) -> ProbeTrial:
    """The basis in which probes leave the least variance, measured on one batch.

    Two probes per basis along a flow of few steps: 51 network calls and twice as many vector-Jacobian products by
    default. Pass the result as `probe_basis` to use one basis for a whole data set.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        x: images (B, C, H, W) at eps, floating.
        method: as `log_prob` takes it.
        probe: `"rademacher"` or `"gaussian"`.
        seed: of the probes; one int for the batch, or one per sample.
        generator: instead of `seed`.
        options: of `log_prob`.

    Raises:
        ValueError: for x that are no images, and as `log_prob`.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> C = 0.3 * torch.eye(4) + 0.2 * torch.ones(4, 4)  # brighter as a whole
        >>> oracle = sg.oracles.Gaussian(torch.zeros(1, 2, 2), C)
        >>> sde = sg.VPSDE()
        >>> choose_probe_basis(oracle.score(sde), sde, oracle.sample(8, seed=0), seed=0).basis
        'dct'
    """
    known_arguments("choose_probe_basis", options, (*keywords(log_prob), *keywords(choose_probe_basis)), OF_DENSITIES)
    fixed = {"trace", "enable_grad"} & options.keys()
    if fixed:
        raise ValueError(f"a pilot sets {', '.join(sorted(fixed))} itself")
    found = {}
    for basis in BASES:
        trace = Hutchinson(2, probe, basis)
        found[basis] = log_prob(score_fn, sde, x, method=method, trace=trace, seed=seed, generator=generator, **options)

    variances = {basis: 2 * float(res.stderr.square().mean()) for basis, res in found.items()}
    best = min(variances, key=lambda basis: variances[basis])
    results = found.values()
    nfe = sum(res.nfe for res in results)
    vjps = sum(res.vjps for res in results)
    return ProbeTrial(best, variances, nfe, vjps)
