r"""Likelihoods on processes with a matrix: of the joint state, and a bound for the data alone.

Along the probability flow $\dot z = Fz - \tfrac12 GG^\top s$,

$$ \log p_\epsilon(z_\epsilon) = \log p_T(z_T) + \int_\epsilon^T \operatorname{div}\,\dot z\;dt $$

and since the data comes with a velocity of known law q,

$$ \log p(x) \ge E_{v\sim q}[\log p(x, v)] + H(q) $$
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.checks import described, instance_of, keywords, known_arguments
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.executor import execute
from sgm_sde.engine.lowering import Plan, lower
from sgm_sde.engine.noise import Generators, NoiseStream, Seeds, resolve_seeds
from sgm_sde.engine.program import Program, compile_program
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.engine.times import at_ends
from sgm_sde.grids import rule
from sgm_sde.likelihood.checks import OnOutput, check_finite, check_points, require_count
from sgm_sde.likelihood.errors import probe_error
from sgm_sde.likelihood.integrals import NodeByNode
from sgm_sde.likelihood.methods import FixedGrid, Hutchinson, Method, Trace, resolve_method, resolve_trace
from sgm_sde.likelihood.problem import NoNoise
from sgm_sde.likelihood.results import LikelihoodProtocol, LogProbResult
from sgm_sde.likelihood.trace import Estimate, TraceScore
from sgm_sde.processes.matrix import MatrixSDE, apply
from sgm_sde.schemes import RK4, RungeKutta
from sgm_sde.scores.model import checked_conversion
from sgm_sde.scores.score import as_density


class _JointFlow(NodeByNode):
    """The flow's drift with its divergence at each evaluation.

    Attributes:
        divergences: so far, each (B, columns).
    """

    def __init__(self, model: TraceScore, estimate: Estimate) -> None:
        super().__init__(model)
        self.estimate = estimate
        self.divergences: list[Tensor] = []

    def plan(self, program: Program) -> Plan:
        """The program made ready for the drift, which needs no conversion."""
        nodes = self.model.sde.nodes([stage.t for stage in program.stages if stage.evaluate])
        self.conversions = [checked_conversion(self.model.score.prediction, "drift", node) for node in nodes]
        return lower(program, [(0.0, 1.0)] * len(program.stages))

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift."""
        c_x, c_r = self.conversions[len(self.divergences)]

        def drift(x: Tensor, out: Tensor) -> Tensor:
            return apply(c_x, x) + apply(c_r, out.to(x.dtype))

        value, divergence = self.model.with_trace(x, t, self.estimate, of=drift)
        self.divergences.append(divergence)
        return value


@outside_inference_mode
def joint_log_prob(
    score_fn: ScoreFn,
    sde: MatrixSDE,
    z: Tensor,
    *,
    eps: float | None = None,
    method: str | Method = "exponential",
    trace: str | Trace | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    model_kwargs: Conditions | None = None,
) -> LogProbResult:
    """Log-density of joint states under the probability flow, in nats per sample; `log_prob` on CLD.

    The flow and its divergence are integrated by the same Runge-Kutta method, of order 4, on the process' default grid.

    Args:
        score_fn: the joint score, as `sample` takes it.
        sde: a process with a matrix.
        z: states (B, k, *), floating.
        eps: time at which the density is taken; `sde.likelihood_eps` if not given.
        method: a `FixedGrid`, four network calls per step; no other.
        trace: as `log_prob` takes it.
        seed: of the probes.
        generator: instead of `seed`.
        model_kwargs: passed on to the network.

    Raises:
        TypeError: for a state that is not floating.
        ValueError: for options out of range, a state of the wrong shape, and states or scores that are not finite.

    Source: Dockhorn et al., 2022, arXiv:2112.07068; Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> import sgm_sde as sg
        >>> sde, oracle = sg.CLD(), sg.oracles.Gaussian(torch.zeros(1), 0.25)
        >>> z = oracle.sample(3, sde, 1e-5, seed=0, dtype=torch.float64)
        >>> result = joint_log_prob(oracle.score(sde), sde, z, trace="exact")
        >>> bool((result.value - oracle.log_prob(z, sde, 1e-5)).abs().max() < 1e-3)
        True
    """
    instance_of("sde", sde, MatrixSDE, "a process with a matrix, such as CLD()")
    score = as_density(score_fn, sde)
    steps = _steps(method, sde)
    state = check_points(z).detach()
    if z.ndim < 2 or z.shape[1] != sde.blocks:
        raise ValueError(f"need states (B, {sde.blocks}, *), got {tuple(z.shape)}")
    eps = sde.likelihood_eps if eps is None else at_ends(sde, eps, sde.likelihood_eps)
    if not 0 < eps < sde.T:
        raise ValueError(f"eps must lie in (0, T) = (0, {sde.T}), got {eps}")
    trace = resolve_trace(trace, state)
    if isinstance(trace, Hutchinson) and trace.basis != "pixel":
        raise ValueError(f"likelihoods on {sde!r} take probes in the basis 'pixel', got {described(trace.basis)}")

    estimate = trace.estimate(state, resolve_seeds(seed, generator, len(z)), True)
    model = TraceScore(score, sde, (eps, sde.T), model_kwargs, len(z))
    times = rule(sde.default_grid)(sde, steps, t_end=eps).times[::-1]
    run = _Run(model, estimate, times)
    latent = run.carry(state)
    volume, stderr, freedom = run.integral(latent)

    prior = sde.prior_log_prob(latent)
    value = prior + volume
    check_finite(value, "the log-likelihood", partial(run.again, state))
    unknown = torch.full_like(value, math.nan)
    protocol = LikelihoodProtocol(
        estimator="point log p_eps of the joint state",
        eps=eps,
        method=f"RK4 with {steps} steps",
        trace=str(estimate),
        prior=f"N(0, {sde.prior_covariance:.4g})",
    )
    return LogProbResult(
        value=value,
        stderr=stderr,
        error=unknown,
        latent=latent,
        prior=prior,
        divergence=volume,
        decoder=torch.zeros_like(value),
        defect=unknown,
        freedom=freedom,
        unresolved=(),
        nfe=model.nfe,
        vjps=model.vjps,
        protocol=protocol,
    )


def _steps(method: str | Method, sde: MatrixSDE) -> int:
    """Steps of the grid that a method stands for.

    Raises:
        ValueError: for any other than a `FixedGrid`.
    """
    method = resolve_method(method)
    if not isinstance(method, FixedGrid) or method != FixedGrid(method.steps):
        raise ValueError(
            f"likelihoods on {sde!r} take method=FixedGrid(steps) with nothing else, got {described(method)}"
        )
    return method.n_steps


class _Run:
    """A run of RK4 along the joint flow from the data's end.

    Args:
        model: the network.
        estimate: of the divergence.
        times: of the grid.
    """

    def __init__(self, model: TraceScore, estimate: Estimate, times: tuple[float, ...]) -> None:
        self.estimate = estimate
        self.flow = _JointFlow(model, estimate)
        scheme = RungeKutta(RK4)
        self.program = compile_program(scheme, model.sde, times)
        self.weights = np.outer(np.diff(times), scheme.tableau.b).reshape(-1)

    def carry(self, state: Tensor) -> Tensor:
        """The state at the other end."""
        with torch.no_grad():
            return execute(self.program, state, self.flow, NoNoise()).x

    def integral(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The integral (B,) of the divergence, its standard error by the probes, and the degrees of freedom of that."""
        columns = self.estimate.columns
        pairs = zip(self.weights.tolist(), self.flow.divergences, strict=True)
        terms = torch.stack([w * divergence.to(latent.dtype) for w, divergence in pairs])
        probes = terms[:, :, :columns]
        volume = probes.mean(2).sum(0)
        if self.estimate.fixed is None:
            return volume, torch.zeros_like(volume), torch.full_like(volume, math.inf)

        companion = terms[:, :, columns] if self.estimate.companion else None
        stderr, freedom = probe_error(probes, torch.from_numpy(self.weights), companion)
        return volume, stderr, freedom

    def again(self, state: Tensor, on_output: OnOutput) -> None:
        """Visit the nodes once more."""
        flow = _JointFlow(self.flow.model, self.estimate)

        def at_node(x: Tensor, out: Tensor, t: float) -> None:
            on_output(x, out, t, flow.divergences[-1])

        execute(self.program, state, flow, NoNoise(), on_output=at_node)


def velocity_bound(
    score_fn: ScoreFn, sde: MatrixSDE, x: Tensor, *, n_draws: int = 1, seed: Seeds = None, **options: Any
) -> LogProbResult:
    r"""A lower bound on the log-density of data x (B, *) in nats: joint log-density plus the velocity's entropy.

    $$ \log p(x) \ge \tfrac1K\sum_{k} \log p(x, v_k) + \tfrac d2\log(2\pi e\,\gamma M), \qquad
       v_k \sim N(0, \gamma M I) $$

    In general $\gamma M$ is the covariance matrix of the other blocks. `bits_per_dim` uses this bound on CLD.

    Args:
        score_fn: the joint score, as `sample` takes it.
        sde: a process with a matrix.
        x: data (B, *), floating.
        n_draws: number K of velocities per sample.
        seed: of velocities and probes; one int, or one per sample.
        options: of `joint_log_prob`.

    Returns:
        a `LogProbResult` whose value is the bound, its standard error that of probes and draws together (of the probes
        alone for one draw), and its latent and its terms those of the last draw.

    Raises:
        ValueError: for `n_draws` below 1, or an initial covariance that leaves the other blocks without a density.

    Source: Dockhorn et al., 2022, arXiv:2112.07068, appendix B.

    Examples:
        >>> import sgm_sde as sg
        >>> sde, oracle = sg.CLD(), sg.oracles.Gaussian(torch.zeros(1), 0.25)
        >>> x = oracle.sample(3, seed=0)
        >>> bound = velocity_bound(oracle.score(sde), sde, x, seed=0, trace="exact", eps=1e-4)
        >>> bound.value.shape
        torch.Size([3])
    """
    known_arguments("velocity_bound", options, (*keywords(joint_log_prob), "n_draws"))
    n_draws = require_count("n_draws", n_draws)
    instance_of("sde", sde, MatrixSDE, "a process with a matrix, such as CLD()")
    x = check_points(x)
    others = sde.initial_covariance.array[1:, 1:]
    sign, log_det = np.linalg.slogdet(2 * math.pi * math.e * others)
    if sign <= 0:
        raise ValueError(f"the other blocks have no density at t = 0: their covariance is {others.tolist()}")
    entropy = 0.5 * x[0].numel() * float(log_det)

    seeds = resolve_seeds(seed, options.pop("generator", None), len(x))
    stream = NoiseStream(seeds, "dequantisation")
    results = []
    for k in range(n_draws):
        state = _with_velocities(sde, x, stream)
        own = seeds.repeated(k)
        results.append(joint_log_prob(score_fn, sde, state, seed=own, **options))

    last = results[-1]
    stderr = last.stderr
    freedom = last.freedom
    values = torch.stack([result.value for result in results]) + entropy
    if n_draws > 1:
        stderr = values.std(0) / math.sqrt(n_draws)
        freedom = torch.full_like(stderr, n_draws - 1)
    protocol = replace(last.protocol, estimator=f"lower bound with {n_draws} velocity draw{'s' * (n_draws > 1)}")
    return replace(
        last,
        value=values.mean(0),
        stderr=stderr,
        freedom=freedom,
        protocol=protocol,
        nfe=sum(result.nfe for result in results),
        vjps=sum(result.vjps for result in results),
    )


def _with_velocities(sde: MatrixSDE, x: Tensor, stream: NoiseStream) -> Tensor:
    """Joint states (B, k, *) of data (B, *) with the other blocks drawn from their law at t = 0."""
    others = sde.initial_covariance.array[1:, 1:]
    root = torch.zeros(sde.blocks, sde.blocks, dtype=torch.float64)
    root[1:, 1:] = cpu_float64(np.linalg.cholesky(others).tolist())
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = (len(x), sde.blocks, *x.shape[1:])
    noise = apply(root, stream.normal(shape, dtype, x.device))
    return torch.cat([x[:, None].to(dtype), noise[:, 1:]], 1)
