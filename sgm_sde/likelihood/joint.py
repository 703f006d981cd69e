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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.checks import described, instance_of, keywords, known_arguments
from sgm_sde._utils.elsewhere import OF_JOINT_TRACES, named_elsewhere
from sgm_sde._utils.shapes import cpu_float64, dot
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.executor import execute
from sgm_sde.engine.lowering import Plan, lower
from sgm_sde.engine.noise import Generators, NoiseStream, Seeds, resolve_seeds
from sgm_sde.engine.program import Program, compile_program
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.grids import rule
from sgm_sde.likelihood.checks import OnOutput, check_finite, check_points, end_of_data, require_count, warn_unresolved
from sgm_sde.likelihood.errors import probe_error, sensitivity
from sgm_sde.likelihood.methods import FixedGrid, Hutchinson, Method, Trace, resolve_method, resolve_trace
from sgm_sde.likelihood.nodes import NodeByNode
from sgm_sde.likelihood.problem import NoNoise, among, replaced
from sgm_sde.likelihood.results import LikelihoodProtocol, LogProbResult, Unresolved
from sgm_sde.likelihood.trace import Estimate, TraceScore
from sgm_sde.processes.kinds import has_matrix_marginal
from sgm_sde.processes.matrix import MatrixSDE, apply
from sgm_sde.schemes import RK4, RungeKutta
from sgm_sde.scores.model import checked_conversion
from sgm_sde.scores.score import as_density

FINER = (2, 4)  # times the steps, for samples whose error exceeds the tolerance
FINEST = FINER[-1]
FALL = 4.0  # the least factor that the error of order 4 is taken to fall by on twice the steps, where 16 is expected
ROUNDED = 4.0  # units in the last place by which a state and what a score makes of it are off


class _JointFlow(NodeByNode):
    """The flow's drift with its divergence at each evaluation.

    Args:
        model: the network.
        estimate: of the divergence.
        rows: numbers of the samples in the batch, all if not given.

    Attributes:
        divergences: so far, each (B, columns).
        sensitivity: sum of squares (B,) of what a relative change by 1 of each number of the states does to log p.
    """

    def __init__(self, model: TraceScore, estimate: Estimate, rows: Tensor | None = None) -> None:
        super().__init__(model)
        self.estimate = estimate
        self.rows = rows
        self.divergences: list[Tensor] = []
        self.sensitivity: Tensor | float = 0.0

    def plan(self, program: Program) -> Plan:
        """The program made ready for the drift, which needs no conversion."""
        nodes = self.model.sde.nodes([stage.t for stage in program.stages if stage.evaluate])
        self.conversions = [checked_conversion(self.model.score.prediction, "drift", node) for node in nodes]
        self.to_score = [checked_conversion(self.model.score.prediction, "score", node) for node in nodes]
        return lower(program, [(0.0, 1.0)] * len(program.stages))

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift."""
        k = len(self.divergences)
        c_x, c_r = self.conversions[k]
        s_x, s_r = self.to_score[k]

        def drift(x: Tensor, out: Tensor) -> Tensor:
            score = apply(s_x, x.detach()) + apply(s_r, out.detach().to(x.dtype))
            self.sensitivity = self.sensitivity + sensitivity(x.detach(), score)
            return apply(c_x, x) + apply(c_r, out.to(x.dtype))

        value, divergence = self.model.with_trace(x, t, self.estimate, self.rows, of=drift)
        self.divergences.append(divergence)
        return value


@outside_inference_mode
@named_elsewhere(OF_JOINT_TRACES)
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
    r"""Log-density of joint states under the probability flow, in nats per sample; `log_prob` on CLD.

    The flow and its divergence are integrated by the same Runge-Kutta method, of order 4, on the process' default grid,
    and once more on half the steps, Q and $Q_2$. The numerical error is taken for a quarter of their difference, where
    order 4 leaves a fifteenth. By default, samples whose numerical error exceeds the tolerance of the method go on to
    twice and four times the steps, and are `unresolved` where that is not enough. What the score itself is off by
    passes as it is: in float32 on a process of third order, rounding of the score may leave 1e-2 near the data.

    The law at T is further from the prior than on VP: of the data as much as 9 % is left there on `CLD()`. What that
    does to the density is part of `error`. With $r = s + P^{-1}z$, by which the score at T differs from that of the
    prior $N(0, P)$, and up to second order in z the logarithm of the ratio of the two densities is

    $$ \varphi(z) = b^\top z + \tfrac12\big(z^\top A z - \operatorname{tr} PA\big) - \tfrac12 b^\top P b, \qquad
       r = b + Az $$

    of which r at z and -z tells all terms. Twice the sum of their sizes is taken, whatever their signs, for what is
    beyond second order.

    Args:
        score_fn: the joint score, as `sample` takes it.
        sde: a process with a matrix.
        z: states (B, k, *), floating.
        eps: time at which the density is taken; `sde.likelihood_eps` if not given.
        method: a `FixedGrid`, six network calls per step and two more; no other.
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
        >>> bool(((result.value - oracle.log_prob(z, sde, 1e-5)).abs() < result.error).all())
        True
    """
    instance_of("sde", sde, MatrixSDE, "a process with a matrix, such as CLD()")
    score = as_density(score_fn, sde)
    grid = _grid(method, sde)
    state = check_points(z).detach()
    if z.ndim < 2 or z.shape[1] != sde.blocks:
        raise ValueError(f"need states (B, {sde.blocks}, *), got {tuple(z.shape)}")
    eps = end_of_data(sde, eps)
    trace = resolve_trace(trace, state)
    if isinstance(trace, Hutchinson) and trace.basis != "pixel":
        raise ValueError(f"likelihoods on {sde!r} take probes in the basis 'pixel', got {described(trace.basis)}")

    estimate = trace.estimate(state, resolve_seeds(seed, generator, len(z)), True)
    model = TraceScore(score, sde, (eps, sde.T), model_kwargs, len(z))
    ladder = _Ladder(model, estimate, eps, state)
    found, unresolved = ladder.climbed(grid)
    error = found.error + _distance_from_prior(model, estimate.run(ladder.runs), found.latent)
    steps = f"{grid.n_steps} steps" + (f", up to {FINEST * grid.n_steps} where needed" if grid.steps is None else "")
    protocol = LikelihoodProtocol(
        estimator="point log p_eps of the joint state",
        eps=eps,
        method=f"RK4 with {steps}",
        trace=str(estimate),
        prior=f"N(0, {sde.prior_covariance:.4g})",
    )
    result = LogProbResult(
        value=found.value,
        stderr=found.stderr,
        error=error,
        latent=found.latent,
        prior=found.prior,
        divergence=found.volume,
        decoder=torch.zeros_like(found.value),
        defect=torch.full_like(found.value, math.nan),
        freedom=found.freedom,
        unresolved=unresolved.samples,
        reasons=unresolved.reasons,
        nfe=model.nfe,
        vjps=model.vjps,
        protocol=protocol,
        method=grid,
    )
    warn_unresolved(result)
    return result


def _grid(method: str | Method, sde: MatrixSDE) -> FixedGrid:
    """The grid that a method stands for.

    Raises:
        ValueError: for any other than a `FixedGrid`, or one for data of a scale.
    """
    method = resolve_method(method)
    if not isinstance(method, FixedGrid) or method.data_std != FixedGrid.data_std:
        raise ValueError(
            f"likelihoods on {sde!r} take method=FixedGrid(steps, atol=, rtol=) with nothing else, "
            f"got {described(method)}"
        )
    return method


def _distance_from_prior(model: TraceScore, estimate: Estimate, latent: Tensor) -> Tensor:
    """Twice the sum (B,) of the sizes of the terms of log p_T - log N(0, P) at latents (B, k, *) to second order."""
    sde = model.sde
    assert has_matrix_marginal(sde)
    (node,) = sde.nodes([sde.T])
    c_x, c_r = checked_conversion(model.score.prediction, "score", node)
    P = sde.prior_covariance
    batch = (len(latent),)
    t = torch.full(batch, sde.T, dtype=torch.float64, device=latent.device)

    def times_P(z: Tensor, out: Tensor) -> Tensor:
        r = out.to(z.dtype)
        score = apply(c_x, z) + apply(c_r, r)
        return apply(P, score) + z

    with torch.no_grad():
        P_r, traces = model.with_trace(latent, t, estimate, of=times_P)
        P_r_opposite, _ = model.with_trace(-latent, t, estimate, of=times_P)
    P_b = (P_r + P_r_opposite) / 2
    P_A_z = (P_r - P_r_opposite) / 2
    probes = traces[:, : estimate.columns]
    trace = probes.mean(1)

    y = apply(P.inverse, latent)
    b = apply(P.inverse, P_b)
    linear = dot(P_b, y)
    quadratic = dot(P_A_z, y) - trace.to(latent.dtype)
    constant = dot(P_b, b)
    return 2 * linear.abs() + quadratic.abs() + constant


class _Found(NamedTuple):
    """The end (B, k, *) of the flow, and of the log-density (B,) each.

    Attributes:
        latent: the state at T.
        prior: its log-density.
        volume: the integral of the divergence.
        stderr: standard error of that by the probes.
        freedom: degrees of freedom of `stderr`.
        told: log-density without the noise of fresh probes, which runs can be compared by.
        rounding: what rounding of states and sums may add up to.
        off: the error of the method.
    """

    latent: Tensor
    prior: Tensor
    volume: Tensor
    stderr: Tensor
    freedom: Tensor
    told: Tensor
    rounding: Tensor
    off: Tensor

    @property
    def error(self) -> Tensor:
        """The numerical error."""
        return self.off + self.rounding

    @property
    def value(self) -> Tensor:
        """The log-density."""
        return self.prior + self.volume

    def against(self, coarse: _Found) -> _Found:
        """The same with the error that the solution on half the steps tells of.

        Where both are the same by chance, it is still taken to have fallen from that one's by no more than order 4 has
        it.
        """
        off = (self.told - coarse.told).abs() / FALL
        known = off.nan_to_num(nan=math.inf, posinf=math.inf)
        fallen = torch.where(coarse.off.isfinite(), coarse.off / FALL**2, 0.0)
        return self._replace(off=torch.maximum(known, fallen))

    def among(self, rows: Tensor) -> _Found:
        """Those of some rows."""
        return _Found(*among(self, rows))

    def replaced(self, rows: Tensor, by: _Found) -> _Found:
        """The same with other values at some rows."""
        return _Found(*replaced(self, rows, by))


class _Ladder:
    """Runs of RK4 along the joint flow from the data's end, each on twice the steps of the one before.

    Args:
        model: the network.
        estimate: of the divergence.
        eps: time of the states.
        state: (B, k, *).

    Attributes:
        runs: number of runs so far, each with probes of its own; those of the first are the estimate's.
    """

    def __init__(self, model: TraceScore, estimate: Estimate, eps: float, state: Tensor) -> None:
        self.model = model
        self.estimate = estimate
        self.eps = eps
        self.state = state
        self.runs = 0

    def climbed(self, grid: FixedGrid) -> tuple[_Found, Unresolved]:
        """The solution, and the samples whose numerical error did not come down to the tolerance."""
        steps = grid.n_steps
        n = len(self.state)
        run, found = self._run(steps)
        check_finite(found.value, "the log-likelihood", partial(run.again, self.state))
        _, coarse = self._run(steps // 2)
        found = found.against(coarse)
        if grid.steps is not None:
            return found, Unresolved()

        atol = grid.atol * self.state[0].numel()
        alone = self.model.takes_some(n)
        allowed = atol + grid.rtol * found.volume.abs()
        going = found.error > allowed
        for finer in FINER:
            rows = going.nonzero().flatten()
            if not len(rows):
                break
            _, other = self._run(finer * steps, rows if alone else None)
            if not alone:
                other = other.among(rows)

            coarse = found.among(rows)
            other = other.against(coarse)
            sound = other.value.isfinite()
            found = found.replaced(rows[sound], other.among(sound))
            allowed = atol + grid.rtol * found.volume.abs()
            going = found.error > allowed
        return found, Unresolved.by_error(going)

    def _run(self, steps: int, rows: Tensor | None = None) -> tuple[_Run, _Found]:
        """A run over so many steps, of all samples or of those of the numbers `rows`, and what it finds."""
        sde = self.model.sde
        times = rule(sde.default_grid)(sde, steps, t_end=self.eps).times[::-1]
        run = _Run(self.model, self.estimate.run(self.runs), times, rows)
        self.runs += 1
        return run, run.found(self.state if rows is None else self.state[rows])


class _Run:
    """A run of RK4 along the joint flow from the data's end.

    Args:
        model: the network.
        estimate: of the divergence.
        times: of the grid.
        rows: numbers of the samples in the batch, all if not given.
    """

    def __init__(
        self, model: TraceScore, estimate: Estimate, times: tuple[float, ...], rows: Tensor | None = None
    ) -> None:
        self.estimate = estimate
        self.flow = _JointFlow(model, estimate, rows)
        scheme = RungeKutta(RK4)
        self.program = compile_program(scheme, model.sde, times)
        self.weights = np.outer(np.diff(times), scheme.tableau.b).reshape(-1)

    def found(self, state: Tensor) -> _Found:
        """The other end of the flow from a state, and the log-density there, whose numerical error is not known yet."""
        sde = self.flow.model.sde
        assert has_matrix_marginal(sde)
        with torch.no_grad():
            run = execute(self.program, state, self.flow, NoNoise())
        latent = run.x
        prior = sde.prior_log_prob(latent)

        columns = self.estimate.columns
        divergences = [divergence.to(latent.dtype) for divergence in self.flow.divergences]
        weighted = [w * divergence for w, divergence in zip(self.weights.tolist(), divergences, strict=True)]
        terms = torch.stack(weighted)
        probes = terms[:, :, :columns]
        means = probes.mean(2)
        volume = means.sum(0)
        stderr = torch.zeros_like(volume)
        freedom = torch.full_like(volume, math.inf)
        told = volume
        if self.estimate.fixed is not None:
            weights = torch.from_numpy(self.weights)
            companion = terms[:, :, columns] if self.estimate.companion else None
            stderr, freedom = probe_error(probes, weights, companion)
            told = volume if companion is None else companion.sum(0)

        moved = torch.as_tensor(self.flow.sensitivity).to(latent).sqrt()
        eps = torch.finfo(latent.dtype).eps
        sizes = means.abs().sum(0) + prior.abs() + ROUNDED * moved
        return _Found(
            latent=latent,
            prior=prior,
            volume=volume,
            stderr=stderr,
            freedom=freedom,
            told=prior + told,
            rounding=eps * sizes,
            off=torch.full_like(volume, math.inf),
        )

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
    known_arguments("velocity_bound", options, (*keywords(joint_log_prob), "n_draws"), OF_JOINT_TRACES)
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
