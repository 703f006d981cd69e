r"""Likelihoods of the probability flow: `log_prob`, `bits_per_dim`, and exact encoding.

In $y = x/\alpha$ and $\lambda = \log(\alpha/\sigma)$ the probability flow of every linear process is
$dy/d\lambda = D - y$ with the denoiser D, so that along it

$$ \log p_\epsilon(x_\epsilon) = \log p_T(x_T) + d\log\frac{\alpha_T}{\alpha_\epsilon}
   + \int_{\lambda_T}^{\lambda_\epsilon} \Big(d - \operatorname{tr}\frac{\partial D}{\partial y}\Big)\,d\lambda $$

The trajectory is solved by an exponential multistep method with corrector, the integral by the trapezoidal rule with
Gregory's end corrections, both on one fixed grid, dense where $\sigma/\alpha$ is the data's own scale and stretched
towards both ends, where nothing happens. Since the quadrature is fixed, the probes of the trace may be fresh at each
node, which averages their noise; inside an adaptive solver they would be part of the equation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sgm_sde.engine.executor import execute
from sgm_sde.engine.noise import Generators, NoiseStream, Seeds, resolve_seeds
from sgm_sde.engine.program import trace as trace_program
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.grids import GridRule
from sgm_sde.processes.base import SDE, require_sde
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.processes.predictions import convert
from sgm_sde.sampling import Status
from sgm_sde.scores.model import BoundModel
from sgm_sde.scores.score import Score, as_score
from sgm_sde.solvers import Rosenbrock, UniC
from sgm_sde.solvers.exponential import ExponentialAdams

GREGORY = (3 / 8, 7 / 6, 23 / 24)  # weights of a trapezoidal rule's ends, of order 4
TRACES = ("hutchinson", "exact")
PROBES = ("rademacher", "gaussian")
METHODS = ("exponential", "rk45-scipy")


@dataclass(frozen=True)
class Stretched(GridRule):
    r"""Steps of log-SNR that grow like a hyperbolic sine away from the data's own noise level.

    $$ \lambda(u) = c + b\,\sinh(a(u - u_0)), \qquad c = -\log\sigma_d $$

    Args:
        stretch: a; steps at an end that takes half of the grid are about cosh(a/2) times those in the middle.
        data_std: standard deviation of the data.

    Raises:
        ValueError: unless both are positive.

    Example:
        >>> import sgm_sde as sg
        >>> Stretched()(sg.EDMSDE(), 48).steps
        48
    """

    stretch: float = 5.0
    data_std: float = 0.5

    def __post_init__(self) -> None:
        if not (self.stretch > 0 and self.data_std > 0):
            raise ValueError(f"stretch and data_std must be positive, got {self.stretch} and {self.data_std}")

    def _map(self, sde: Any, start: float, end: float) -> tuple[float, float, float, float]:
        """c, b, u_0 and a, with u from 0 at the start."""
        first, last = (float(sde.log_snr(t)) / 2 for t in (start, end))
        if not (math.isfinite(first) and math.isfinite(last)):
            raise ValueError(f"log-SNR is {2 * first} at t={start} and {2 * last} at t={end}: both must be finite")
        c = min(max(-math.log(self.data_std), first), last)
        # sinh(a u_0) / sinh(a (1 - u_0)) is the ratio of the two ways from c to the ends.
        ratio, a = (c - first) / max(last - c, 1e-300), self.stretch
        u0 = math.atanh(ratio * math.sinh(a) / (1 + ratio * math.cosh(a))) / a if last > c else 1.0
        b = (c - first) / math.sinh(a * u0) if u0 > 0 else (last - c) / math.sinh(a)
        return c, b, u0, a

    def place(self, sde: Any, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        c, b, u0, a = self._map(sde, start, end)
        times: Tensor = sde.time(2 * (c + b * torch.sinh(a * (u - u0))))
        return times

    def slopes(self, sde: Any, steps: int, start: float, end: float) -> np.ndarray:
        """d lambda / du at the nodes."""
        _, b, u0, a = self._map(sde, start, end)
        slopes: np.ndarray = a * b * np.cosh(a * (np.linspace(0, 1, steps + 1) - u0))
        return slopes


@dataclass(frozen=True)
class LikelihoodProtocol:
    """How a likelihood was computed; prints as one sentence that can be quoted.

    Attributes:
        estimator: what the number is an estimate of.
        eps: the time at which the density is taken.
        method: how the flow was solved.
        trace: how its divergence was.
        prior: which density stands at T.
    """

    estimator: str
    eps: float
    method: str
    trace: str
    prior: str

    def __str__(self) -> str:
        return (
            f"{self.estimator} at eps = {self.eps:g} under the prior {self.prior}, probability flow by {self.method}, "
            f"divergence by {self.trace}"
        )


@dataclass(frozen=True)
class LogProbResult:
    """Log-likelihoods and how they came about.

    Attributes:
        value: log-density at eps in nats, one a sample (B,).
        stderr: standard error of `value` that the probes of the trace leave, (B,); 0 for an exact trace, NaN where one
            fixed probe says nothing about it.
        latent: where the flow ends at T, (B, *).
        prior: log-density of the latent under the prior, in nats (B,).
        divergence: what the flow's change of volume adds, in nats (B,).
        nfe: network calls, each on the whole batch.
        vjps: vector-Jacobian products, each on the whole batch.
        status: whether everything was finite.
        protocol: what to quote beside the number.
    """

    value: Tensor
    stderr: Tensor
    latent: Tensor = field(repr=False)
    prior: Tensor = field(repr=False)
    divergence: Tensor = field(repr=False)
    nfe: int
    vjps: int
    status: Status
    protocol: LikelihoodProtocol


class _TraceModel(BoundModel):
    """A model that keeps, at each evaluation, estimates of the trace of its output's Jacobian: (B, probes)."""

    def __init__(self, score: Score, sde: SDE, times: tuple[float, float], kwargs: Mapping[str, Any] | None) -> None:
        super().__init__(score, sde, times, kwargs)
        self.traces: list[Tensor] = []
        self.vjps = 0
        self.estimate: Callable[[Tensor, Tensor], Tensor] = lambda out, x: out.new_zeros(len(out), 1)
        self.create_graph = False

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at x (B, *) and t (B,)."""
        with torch.enable_grad():
            x = x if self.create_graph and x.requires_grad else x.detach().requires_grad_()
            out = self._call(x, t)
            self.traces.append(self.estimate(out, x))
        return out if self.create_graph else out.detach()

    def vjp(self, out: Tensor, x: Tensor, v: Tensor, *, batched: bool = False) -> Tensor:
        """Vector-Jacobian products with v, (B, *) or (n, B, *)."""
        self.vjps += len(v) if batched else 1
        (product,) = torch.autograd.grad(
            out, x, v.to(out.dtype), retain_graph=True, create_graph=self.create_graph, is_grads_batched=batched,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        return product

    def exact(self, chunk: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The trace itself, by `chunk` rows of the Jacobian at a time."""

        def estimate(out: Tensor, x: Tensor) -> Tensor:
            d, total = x[0].numel(), torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for i in range(0, d, chunk):
                rows = torch.arange(i, min(i + chunk, d), device=x.device)
                v = torch.zeros(len(rows), len(x), d, dtype=x.dtype, device=x.device)
                v[torch.arange(len(rows)), :, rows] = 1
                if chunk == 1:
                    products = self.vjp(out, x, v[0].view_as(out))[None]
                else:
                    products = self.vjp(out, x, v.view(len(rows), *out.shape), batched=True)
                products = products.reshape(len(rows), len(x), d)
                total = total + products[torch.arange(len(rows)), :, rows].sum(0)
            return total[:, None]

        return estimate

    def hutchinson(self, probes: Callable[[], Sequence[Tensor]]) -> Callable[[Tensor, Tensor], Tensor]:
        """Products z^T J z, one a probe."""

        def estimate(out: Tensor, x: Tensor) -> Tensor:
            return torch.stack([(self.vjp(out, x, z) * z).flatten(1).sum(1) for z in probes()], 1)

        return estimate


def log_prob(
    score_fn: ScoreFn,
    sde: LinearSDE | MatrixSDE,
    x: Tensor,
    *,
    eps: float | None = None,
    steps: int = 48,
    method: str = "exponential",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    trace: str = "hutchinson",
    n_probes: int = 1,
    probe: str = "rademacher",
    chunk: int = 1,
    data_std: float = 0.5,
    prior: Callable[[Tensor], Tensor] | None = None,
    seed: Seeds = None,
    generator: Generators = None,
    model_kwargs: Mapping[str, Any] | None = None,
    enable_grad: bool = False,
) -> LogProbResult:
    """Log-likelihood of x under the probability flow, in nats per sample.

    The density is that of the process at time eps, not of the data: no correction is made for what lies below, as in
    the numbers that papers report. The flow runs from x at eps to the prior at T.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process; with a matrix, x is the joint state and `joint_log_prob` does the work.
        x: points (B, *), floating.
        eps: time at which the density is taken; `sde.likelihood_eps` if not given.
        steps: of the fixed grid, each one network call; one more in all.
        method: `"exponential"`, the fixed grid, or `"rk45-scipy"`, Song et al.'s protocol: SciPy's RK45 on the whole
            batch at once, with tolerances `rtol` and `atol` and probes that stay fixed.
        rtol: relative tolerance, for `"rk45-scipy"`.
        atol: absolute tolerance, for `"rk45-scipy"`.
        trace: `"hutchinson"`, estimated with random probes, or `"exact"`, as many vector-Jacobian products as
            dimensions at each evaluation.
        n_probes: probes a node and sample.
        probe: `"rademacher"`, of less variance, or `"gaussian"`.
        chunk: rows of the Jacobian at once for the exact trace; more takes more memory and a network that `vmap` can
            take.
        data_std: standard deviation of the data, about which the grid is dense; a matter of accuracy only.
        prior: log-density (B,) of states (B, *) at T; that of N(0, sigma(T)^2) if not given.
        seed: of the probes; one int for the batch, or one a sample.
        generator: instead of `seed`.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph, for gradients with respect to x and the network's parameters.

    Raises:
        ValueError: for options out of range, and x or scores that are not finite.
        TypeError: for x that is not floating, or a process without alpha and sigma.

    Source: Song et al., 2021, arXiv:2011.13456; Grathwohl et al., 2019, arXiv:1810.01367 (trace estimates).

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
        from sgm_sde.likelihood_joint import joint_log_prob

        if method != "exponential" or prior is not None or enable_grad:
            raise ValueError(f"log_prob on {sde!r} takes no method=, prior= or enable_grad=")
        return joint_log_prob(
            score_fn, sde, x, eps=eps, steps=steps, trace=trace, n_probes=n_probes, probe=probe, chunk=chunk,
            seed=seed, generator=generator, model_kwargs=model_kwargs,
        )  # fmt: skip
    score = as_score(score_fn, sde)
    eps = _check(sde, x, eps)
    for option, choice, known in (("trace", trace, TRACES), ("probe", probe, PROBES), ("method", method, METHODS)):
        if choice not in known:
            raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}, got {choice!r}")
    for option, count, least in (("n_probes", n_probes, 1), ("chunk", chunk, 1), ("steps", steps, 6)):
        _require_count(option, count, least)
    if method == "rk45-scipy" and enable_grad:
        raise ValueError("method='rk45-scipy' leaves torch: it has no gradients, use the default method")

    dtype = torch.promote_types(x.dtype, torch.float32)
    state = x.to(dtype) if enable_grad else x.detach().to(dtype)
    model = _TraceModel(score, sde, (eps, sde.T), model_kwargs)
    model.create_graph = enable_grad
    stream = NoiseStream(resolve_seeds(seed, generator, len(x)), "probe")

    def draw() -> list[Tensor]:
        z = [stream.normal(tuple(x.shape), dtype, x.device) for _ in range(n_probes)]
        return [torch.where(v >= 0, 1.0, -1.0).to(dtype) for v in z] if probe == "rademacher" else z

    if trace == "exact":
        model.estimate, name = model.exact(chunk), "its exact trace"
    else:
        fixed = draw() if method == "rk45-scipy" else None
        model.estimate = model.hutchinson(draw if fixed is None else lambda: fixed)
        kind = "fixed" if fixed else "fresh"
        name = f"Hutchinson's estimate with {n_probes} {probe} probe{'s' * (n_probes > 1)}, {kind} at each evaluation"
    if method == "exponential":
        latent, volume, stderr = _exponential(model, sde, state, eps, steps, data_std, enable_grad)
        how = f"an exponential multistep method of order 4 with {steps} fixed steps"
    else:
        columns = 1 if trace == "exact" else n_probes
        latent, volume, stderr = _scipy(model, sde, state, eps, rtol, atol, columns)
        how = f"SciPy's RK45 on the batch (rtol = {rtol:g}, atol = {atol:g})"
    if trace == "exact":
        stderr = torch.zeros_like(volume)
    at_T = (sde.prior_log_prob if prior is None else prior)(latent)
    value = at_T + volume
    bad = (~torch.isfinite(value)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the log-likelihood of sample {bad[0]} is {value[bad[0]].item()}: the score is not finite")
    protocol = LikelihoodProtocol(
        "point log p_eps", eps, how, name, f"N(0, {sde.prior_std:.4g}^2)" if prior is None else "given"
    )
    return LogProbResult(value, stderr, latent, at_T, volume, model.nfe, model.vjps, Status(), protocol)


def _require_count(option: str, count: int, least: int = 1) -> None:
    if isinstance(count, bool) or int(count) != count or count < least:
        raise ValueError(f"{option} must be a whole number of at least {least}, got {count}")


def _check(sde: LinearSDE, x: Tensor, eps: float | None) -> float:
    require_sde(sde)
    if not sde.is_linear:
        raise TypeError(f"likelihoods need a LinearSDE, got {sde!r}")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0:
        given = f"dtype {x.dtype}" if isinstance(x, Tensor) else repr(x)
        raise TypeError(f"x must be a floating tensor (B, *), got {given}; for images of integers use bits_per_dim")
    if not bool(torch.isfinite(x).all()):
        sample = int((~torch.isfinite(x)).reshape(len(x), -1).any(1).nonzero()[0])
        raise ValueError(f"x must be finite, sample {sample} is not")
    eps = sde.likelihood_eps if eps is None else eps
    if not 0 < eps < sde.T:
        raise ValueError(f"eps must lie in (0, T) = (0, {sde.T}), got {eps}")
    return eps


def _flow_solver(data_std: float) -> ExponentialAdams:
    """Exact for Gaussian data of that spread; order 3 from a cold start, its steps of order 4."""
    return UniC(Rosenbrock(3, sigma_data=data_std, start="cold"))


def _divergence(prediction: str, target: str, node: Any, traces: Tensor, d: int) -> Tensor:
    """Divergence of a prediction from traces (B, n) of the network's output."""
    c_x, c_r = convert(prediction, target, node)
    return c_x * d + c_r * traces


def _exponential(
    model: _TraceModel, sde: LinearSDE, x: Tensor, eps: float, steps: int, data_std: float, grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, change of log-volume, and its standard error."""
    rule = Stretched(data_std=data_std)
    times = rule(sde, steps, t_end=eps).times[::-1]
    program = trace_program(_flow_solver(data_std), sde, times, close=True)
    with torch.set_grad_enabled(grad):
        latent = execute(program, x, model, _NoNoise(), grad=grad).x
    nodes, d = sde.nodes(times), x[0].numel()
    ends = np.ones(steps + 1)
    for i, w in enumerate(GREGORY):
        ends[i] = ends[-1 - i] = w
    weights = ends / steps * rule.slopes(sde, steps, sde.T, eps)[::-1]
    # d - tr dD/dy, with y = x / alpha
    terms = torch.stack(
        [
            w * (d - node.alpha * _divergence(model.score.prediction, "data", node, traces.to(x.dtype), d))
            for w, node, traces in zip(weights.tolist(), nodes, model.traces, strict=True)
        ]
    )  # (nodes, B, probes)
    volume = terms.mean(2).sum(0) + d * (math.log(nodes[-1].alpha) - math.log(nodes[0].alpha))
    return latent, volume, _probe_error(terms.detach(), weights)


def _probe_error(terms: Tensor, weights: np.ndarray) -> Tensor:
    """Standard error (B,) of the sum of (nodes, B, probes) of fresh probes: from the spread at each node, for one
    probe from second differences between nodes, which what is smooth hardly enters."""
    n = terms.shape[2]
    if n > 1:
        return (terms.var(2) / n).sum(0).sqrt()
    w = torch.as_tensor(weights, dtype=terms.dtype, device=terms.device)[:, None]
    values = terms[:, :, 0] / w
    noise = (values[2:] - 2 * values[1:-1] + values[:-2]).square() / 6
    # The probes' spread changes slowly from node to node: the mean over neighbours tells it better than one square.
    padded = torch.cat([noise[:1].expand(4, -1), noise, noise[-1:].expand(4, -1)])
    noise = padded.unfold(0, 7, 1).mean(2)
    return (w.square() * noise).sum(0).sqrt()


class _NoNoise:
    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any = None) -> Tensor:
        raise RuntimeError("the probability flow draws no noise")


def _scipy(
    model: _TraceModel, sde: LinearSDE, x: Tensor, eps: float, rtol: float, atol: float, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, change of log-volume, and its standard error, by one solve of the joint system in time."""
    from scipy.integrate import solve_ivp

    d, shape = x[0].numel(), x.shape

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y[: x.numel()]).to(x).view(shape)
        (node,) = sde.nodes([t])
        (time,) = model.times([t], state)
        out = model.evaluate(state, time).to(x.dtype)
        c_x, c_r = convert(model.score.prediction, "flow", node)
        traces = _divergence(model.score.prediction, "flow", node, model.traces.pop(), d)
        parts = [(c_x * state + c_r * out).reshape(-1), traces.reshape(-1)]
        return torch.cat([part.double().cpu() for part in parts]).numpy()

    y0 = np.concatenate([x.double().cpu().numpy().reshape(-1), np.zeros(len(x) * columns)])
    solution = solve_ivp(slope, (eps, sde.T), y0, method="RK45", rtol=rtol, atol=atol)
    if not solution.success:
        raise ValueError(f"SciPy's RK45 gave up: {solution.message}")
    end = torch.from_numpy(solution.y[:, -1]).to(x)
    latent, volumes = end[: x.numel()].view(shape), end[x.numel() :].view(len(x), columns)
    spread = volumes.std(1) / math.sqrt(columns) if columns > 1 else volumes.new_full((len(x),), math.nan)
    return latent, volumes.mean(1), spread


@dataclass(frozen=True)
class FlowResult:
    """States carried along the probability flow.

    Attributes:
        x: the states at the other end, (B, *).
        nfe: network calls, each on the whole batch.
        times: the grid, in the order in which it was run.
    """

    x: Tensor
    nfe: int
    times: tuple[float, ...] = field(repr=False)


def encode(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    *,
    eps: float | None = None,
    steps: int = 48,
    data_std: float = 0.5,
    model_kwargs: Mapping[str, Any] | None = None,
    enable_grad: bool = False,
) -> FlowResult:
    """Latents of x: the probability flow from eps to T. `decode` goes back over the same grid with the same method.

    The round trip's error is that of the method, of order 4 in the steps.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        x: states (B, *) at eps, floating.
        eps: time of x; `sde.likelihood_eps` if not given.
        steps: of the grid, one network call each and one more.
        data_std: standard deviation of the data, about which the grid is dense.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph.

    Raises:
        ValueError: for options out of range or states that are not finite.
        TypeError: for states that are not floating, or a process without alpha and sigma.

    Source: Song et al., 2021, arXiv:2011.13456.

    Example:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> oracle = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
        >>> x = oracle.sample(5, seed=0).double()
        >>> z = encode(oracle.score(sde), sde, x, steps=200).x
        >>> bool((decode(oracle.score(sde), sde, z, steps=200).x - x).abs().max() < 1e-4)
        True
    """
    return _carry(score_fn, sde, x, eps, steps, data_std, model_kwargs, enable_grad, to_noise=True)


def decode(
    score_fn: ScoreFn,
    sde: LinearSDE,
    z: Tensor,
    *,
    eps: float | None = None,
    steps: int = 48,
    data_std: float = 0.5,
    model_kwargs: Mapping[str, Any] | None = None,
    enable_grad: bool = False,
) -> FlowResult:
    """States at eps from latents at T: the way back of `encode`, with the same arguments."""
    return _carry(score_fn, sde, z, eps, steps, data_std, model_kwargs, enable_grad, to_noise=False)


def _carry(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    eps: float | None,
    steps: int,
    data_std: float,
    model_kwargs: Mapping[str, Any] | None,
    grad: bool,
    *,
    to_noise: bool,
) -> FlowResult:
    score = as_score(score_fn, sde)
    eps = _check(sde, x, eps)
    _require_count("steps", steps)
    times = Stretched(data_std=data_std)(sde, steps, t_end=eps).times
    times = times[::-1] if to_noise else times
    program = trace_program(_flow_solver(data_std), sde, times, close=True)
    model = BoundModel(score, sde, (eps, sde.T), model_kwargs)
    state = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.set_grad_enabled(grad):
        end = execute(program, state, model, _NoNoise(), grad=grad).x
    if not bool(torch.isfinite(end).all()):
        raise ValueError("the flow ended in a state that is not finite: the score is not")
    return FlowResult(end.to(x.dtype), model.nfe, times)


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    r"""Spherical interpolation between latents (B, *), which keeps the norm that noise has.

    $$ \frac{\sin((1-w)\theta)}{\sin\theta}\,a + \frac{\sin(w\theta)}{\sin\theta}\,b $$

    with the angle theta between a and b, sample by sample; linear where they point the same way.

    Args:
        a: latents at weight 0.
        b: latents at weight 1.
        weight: w, a number or one a sample (B,).

    Raises:
        ValueError: for shapes that differ.

    Source: Shoemake, 1985, doi:10.1145/325334.325242.

    Example:
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> slerp(a, b, 0.5)
        tensor([[1.4142, 1.4142]])
    """
    if a.shape != b.shape:
        raise ValueError(f"latents must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    w = torch.as_tensor(weight, dtype=a.dtype, device=a.device).reshape(-1, *[1] * (a.ndim - 1))
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)
    theta = torch.arccos(cosine).reshape(-1, *[1] * (a.ndim - 1))
    sine = theta.sin()
    straight = sine < 1e-6
    safe = torch.where(straight, 1.0, sine)
    return torch.where(straight, (1 - w) * a + w * b, ((1 - w) * theta).sin() / safe * a + (w * theta).sin() / safe * b)


@dataclass(frozen=True)
class BitsPerDimResult:
    """Bits per dimension of discrete data.

    Attributes:
        value: mean over images, in bits/dim.
        stderr: its standard error over images, which contains that of dequantisation and probes.
        per_image: (B,), each the mean (or the importance-weighted bound) over its draws.
        repeats: (draws, B), one value a dequantisation.
        nfe: network calls, each on the whole batch.
        protocol: what to quote beside the number.
    """

    value: float
    stderr: float
    per_image: Tensor = field(repr=False)
    repeats: Tensor = field(repr=False)
    nfe: int
    protocol: str

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.stderr:.4f} bits/dim ({self.protocol})"


class Dequantisation(Protocol):
    """Noise in [0, 1) for images of whole numbers, and its log-density."""

    def __call__(self, images: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """(noise (B, *), log-density in nats (B,)) for the draw of that number."""


def bits_per_dim(
    score_fn: ScoreFn,
    sde: LinearSDE | MatrixSDE,
    images: Tensor,
    *,
    n_levels: int,
    data_range: tuple[float, float],
    repeats: int = 1,
    importance: bool = False,
    dequantize: str | Dequantisation = "uniform",
    seed: Seeds = None,
    generator: Generators = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> BitsPerDimResult:
    r"""Bits per dimension of images of whole numbers, by dequantisation.

    Level k of n stands for the bin $[k, k + 1)/n$ of the range (lo, hi) that the network was trained on. With noise u
    from q in each bin,

    $$ -\log P(k) \le E_q\left[-\log p\Big(lo + (hi - lo)\tfrac{k + u}{n}\Big) - d\log\tfrac{hi - lo}{n}
       + \log q(u)\right] $$

    in nats, divided by d log 2. A uniform density on the range gives log2(n) exactly.

    `dequantize="diffusion"` has the process' own noise at eps in the place of q, and a Gaussian decoder with the mean
    of the denoiser and the standard deviation $\sigma/\alpha$, integrated over the bins, in the place of the bins:

    $$ -\log P(k) \le E_{q(x_\epsilon|x_0)}\left[-\log p_\epsilon(x_\epsilon) - \log P(k|x_\epsilon)
       + \log q(x_\epsilon|x_0)\right] $$

    with $x_0$ in the middle of the bin. It needs no network that knows of values between the levels.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process; with a matrix, the bound is that of `velocity_bound`.
        images: whole numbers in [0, n_levels), (B, *), of an integer dtype.
        n_levels: number of levels, 256 for 8-bit images.
        data_range: (lo, hi), where the lower edge of level 0 and the upper edge of the last one lie for the network.
        repeats: dequantisation draws for each image.
        importance: combine the draws into the tighter importance-weighted bound, instead of their mean.
        dequantize: `"uniform"`, for networks that were trained on dequantised data; `"diffusion"`, for those that were
            trained on the levels themselves; or a callable `(images, draw)` that returns noise in [0, 1) (B, *) and its
            log-density in nats (B,): variational dequantisation.
        seed: of the dequantisation and the probes; one int for the batch, or one an image.
        generator: instead of `seed`.
        dtype: of the states; torch's default if not given.
        options: of `log_prob`.

    Raises:
        TypeError: for images that are not of an integer dtype.
        ValueError: for levels outside of the range, or options out of range.

    Source: Theis et al., 2016, arXiv:1511.01844; Ho et al., 2019, arXiv:1902.00275; Burda et al., 2016,
    arXiv:1509.00519 (importance weights); Song et al., 2021, arXiv:2101.09258 (diffusion to eps).

    Example:
        >>> import sgm_sde as sg
        >>> from sklearn.datasets import load_digits  # doctest: +SKIP
        >>> images = torch.tensor(load_digits().images[:8]).long()[:, None]  # doctest: +SKIP
        >>> sg.bits_per_dim(score, sde, images, n_levels=17, data_range=(-1, 1), seed=0)  # doctest: +SKIP
    """
    if (
        not isinstance(images, Tensor)
        or images.is_floating_point()
        or images.is_complex()
        or images.dtype == torch.bool
    ):
        given = f"dtype {images.dtype}" if isinstance(images, Tensor) else repr(images)
        raise TypeError(f"images must be whole numbers of an integer dtype, got {given}: for points use log_prob")
    _require_count("n_levels", n_levels, 2)
    lo, hi = data_range
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"data_range must be (lo, hi) with lo < hi, got {data_range}")
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(f"images must have the shape (B, *), got {tuple(images.shape)}")
    least, most = int(images.min()), int(images.max())
    if least < 0 or most >= n_levels:
        raise ValueError(f"images must lie in [0, {n_levels}) for n_levels={n_levels}, got {least} to {most}")
    _require_count("repeats", repeats)
    if isinstance(dequantize, str) and dequantize not in ("uniform", "diffusion"):
        raise ValueError(f"dequantize must be 'uniform', 'diffusion' or a callable, got {dequantize!r}")
    if options.get("enable_grad"):
        raise ValueError("bits_per_dim has no gradients: use log_prob(enable_grad=True)")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    seeds = resolve_seeds(seed, generator, len(images))
    stream = NoiseStream(seeds, "dequantisation")
    d, values, nfe = images[0].numel(), [], 0
    score = as_score(score_fn, sde)
    density: Callable[..., LogProbResult] = log_prob
    if isinstance(sde, MatrixSDE):
        from sgm_sde.likelihood_joint import velocity_bound as density

        if dequantize == "diffusion":
            raise ValueError(f"dequantize='diffusion' needs a LinearSDE, got {sde!r}")
    width = (hi - lo) / n_levels
    result: LogProbResult | None = None
    for draw in range(repeats):
        if dequantize == "diffusion":
            x, correction, calls = _diffused(score, sde, images, lo, width, n_levels, stream, dtype, options)
            nfe += calls
        else:
            noise, log_q = _bin_noise(images, draw, dequantize, stream)
            x = (lo + width * (images + noise.double())).to(dtype)
            correction = d * math.log(width) - log_q.double()
        probe_seeds = [(s + 0x9E3779B97F4A7C15 * (draw * 2**20 + i)) % 2**64 for s, i in seeds]
        result = density(score, sde, x, seed=probe_seeds, **options)
        nfe += result.nfe
        values.append(-(result.value.double() + correction) / (d * math.log(2)))
    assert result is not None
    draws = torch.stack(values)
    if importance:
        nats = draws * d * math.log(2)
        per_image = (math.log(repeats) - torch.logsumexp(-nats, 0)) / (d * math.log(2))
    else:
        per_image = draws.mean(0)
    stderr = float(per_image.std()) / math.sqrt(len(per_image)) if len(per_image) > 1 else math.nan
    how = {"uniform": "uniform dequantisation", "diffusion": "diffusion to eps and a Gaussian decoder back"}
    what = how[dequantize] if isinstance(dequantize, str) else "variational dequantisation"
    bound = f"importance-weighted bound of {repeats}" if importance else f"Jensen bound, mean of {repeats}"
    protocol = f"{bound} draw{'s' * (repeats > 1)} of {what}, {n_levels} levels; {result.protocol}"
    return BitsPerDimResult(float(per_image.mean()), stderr, per_image, draws, nfe, protocol)


def _bin_noise(
    images: Tensor, draw: int, dequantize: str | Dequantisation, stream: NoiseStream
) -> tuple[Tensor, Tensor]:
    """Noise in [0, 1) and its log-density (B,)."""
    if isinstance(dequantize, str):
        z = stream.normal(tuple(images.shape), torch.float64, images.device)
        noise = torch.special.ndtr(z).clamp(0, 1 - 2.0**-24)
        return noise, torch.zeros(len(images), dtype=torch.float64, device=images.device)
    noise, log_q = dequantize(images, draw)
    if noise.shape != images.shape or log_q.shape != images.shape[:1]:
        raise ValueError(
            f"dequantize must return noise {tuple(images.shape)} and log-densities {tuple(images.shape[:1])}, "
            f"got {tuple(noise.shape)} and {tuple(log_q.shape)}"
        )
    if bool(((noise < 0) | (noise >= 1)).any()):
        raise ValueError("dequantize must return noise in [0, 1)")
    return noise, log_q


def _diffused(
    score: Score,
    sde: SDE,
    images: Tensor,
    lo: float,
    width: float,
    n_levels: int,
    stream: NoiseStream,
    dtype: torch.dtype,
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor, int]:
    """States at eps, log P(k | x) - log q(x | x_0) (B,), and the network calls made."""
    eps = options.get("eps") or sde.likelihood_eps
    (node,) = sde.nodes([eps])
    z = stream.normal(tuple(images.shape), dtype, images.device)
    x = node.alpha * (lo + width * (images + 0.5)).to(dtype) + node.sigma * z
    model = BoundModel(score, sde, (eps, sde.T), options.get("model_kwargs"))
    with torch.no_grad():
        D = model.predict("data", x, eps).double()
    std = node.sigma / node.alpha
    # Log of a Gaussian's mass between the edges, from the tail in which both lie; the outermost bins go on for ever.
    lower = (lo + width * images.double() - D) / std
    upper = torch.where(images == n_levels - 1, math.inf, lower + width / std)
    lower = torch.where(images == 0, -math.inf, lower)
    flip = lower > 0
    low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    log_mass = log_high + torch.log1p(-(log_low - log_high).exp())
    log_q = -0.5 * z.double().square() - 0.5 * math.log(2 * math.pi) - math.log(node.sigma)
    return x, (log_mass - log_q).flatten(1).sum(1), model.nfe
