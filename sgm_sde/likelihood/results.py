"""Result types of likelihoods: numbers with their protocols."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import number
from sgm_sde.engine.noise import VERSION as NOISE
from sgm_sde.engine.status import Status

BY_NOISE = "noise"  # or roughness of the network's output, which shorter steps do not resolve
BY_JUMPS = "jumps"  # of the network's divergence, at more places than an adaptive solver can find
BY_CALLS = "calls"  # that the method may make
BY_ERROR = "error"  # of the last method that is tried


class Unresolved(NamedTuple):
    """Numbers of the samples whose error did not come down to the tolerance, and what kept each from it."""

    samples: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()

    @classmethod
    def by_error(cls, above: Tensor) -> Unresolved:
        """Those of a mask (B,), for which no further method is tried."""
        samples = tuple(above.nonzero().flatten().tolist())
        return cls(samples, (BY_ERROR,) * len(samples))


def unresolved_status(unresolved: Sequence[int], reasons: Sequence[str], n: int, method: object) -> Status:
    """Status of n finite results of a method, which names those whose error is above its tolerance, and says why."""
    if not unresolved:
        return Status()
    of_method = "" if method is None else f" of {method!r}"
    message = f"the numerical error of {len(unresolved)} of {n} samples did not come down to the tolerance{of_method}"
    why = {
        BY_NOISE: "the network's output is too rough, or not the same at each call, for shorter steps to be of use",
        BY_JUMPS: "the network's divergence jumps, as with ReLU, at more places than an adaptive solver can find: "
        "FixedGrid(steps=...) of twice the steps divides their error by about two",
        BY_CALLS: f"max_calls={getattr(method, 'max_calls', '')} network calls did not suffice",
    }
    for reason, said in why.items():
        if reason in reasons:
            message += f"; for {reasons.count(reason)} of them {said}"
    return Status(ok=False, message=message, samples=tuple(unresolved))


@dataclass(frozen=True)
class LikelihoodProtocol:
    """Protocol of a likelihood; prints as one sentence to quote.

    Attributes:
        estimator: what the number is an estimate of.
        eps: the time at which the density is taken.
        method: how the flow was solved.
        trace: how its divergence was.
        prior: which density stands at T.
        noise: version of the noise that probes and decoders draw: a seed's numbers are those of its version.

    Examples:
        >>> print(LikelihoodProtocol("log-density", 1e-5, "Heun's method", "its trace", "N(0, 1)"))
        log-density at eps = 1e-05 under the prior N(0, 1), probability flow by Heun's method, divergence by its trace
    """

    estimator: str
    eps: float
    method: str
    trace: str
    prior: str
    noise: str = NOISE

    def __str__(self) -> str:
        return (
            f"{self.estimator} at eps = {self.eps:g} under the prior {self.prior}, probability flow by {self.method}, "
            f"divergence by {self.trace}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class LogProbResult:
    """Log-likelihoods and how they came about.

    Attributes:
        value: log-density in nats, one per sample (B,): at eps, or with a decoder a lower bound on that of x itself.
        stderr: standard error of `value` that the probes of the trace leave, (B,); 0 for an exact trace, NaN where one
            fixed probe says nothing about it.
        error: numerical error of `value` in nats, (B,): of the trajectory and of the integral of the trace, estimated
            from the same network calls, and meant as a bound.
        latent: where the flow ends at T, (B, *).
        prior: log-density of the latent under the prior, in nats (B,).
        divergence: what the flow's change of volume adds, in nats (B,).
        decoder: what diffusion to eps and the decoder back add, in nats (B,); 0 without them.
        defect: what the states on a fixed grid lack of lying on one trajectory, in nats (B,), with which `divergence`
            is corrected. NaN for other methods.
        freedom: degrees of freedom of `stderr` (B,), infinite for an exact trace.
        unresolved: numbers of the samples whose `error` did not come down to the tolerance, which is 1 nat/dim where
            `sample` finds the density on the way.
        nfe: network calls; each on the whole batch, but for those that follow on some samples.
        vjps: vector-Jacobian products, on as many samples.
        protocol: what to quote beside the number.
        reasons: for each of `unresolved` what kept it from the tolerance: `"noise"` of the network's output, which
            shorter steps do not resolve, `"calls"` where `max_calls` did not suffice, or else `"error"`.
        method: whose tolerance it is; None where `sample` finds the density on the way.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sde)
        >>> lp = sg.log_prob(score, sde, torch.zeros(1, 2), trace="exact")
        >>> low, high = lp.interval()
        >>> bool(low <= lp.value) and bool(lp.value <= high), torch.allclose(lp.value, lp.prior + lp.divergence)
        (True, True)
    """

    value: Tensor
    stderr: Tensor
    error: Tensor
    latent: Tensor
    prior: Tensor
    divergence: Tensor
    decoder: Tensor
    defect: Tensor
    freedom: Tensor
    unresolved: tuple[int, ...]
    nfe: int
    vjps: int
    protocol: LikelihoodProtocol
    reasons: tuple[str, ...] = ()
    method: object = None

    @property
    def eps(self) -> float:
        """The time at which the density is taken, the protocol's."""
        return self.protocol.eps

    @property
    def status(self) -> Status:
        """Status of a finite likelihood, which names the samples whose error is above the tolerance; others raise."""
        return unresolved_status(self.unresolved, self.reasons, len(self.value), self.method)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper ends (B,) of an interval for the log-density at a level of confidence.

        Student's quantile times the standard error of the probes, and the numerical error, as the root of the sum of
        their squares.

        Raises:
            ValueError: for a level outside (0, 1).
        """
        number("level", level, above=0, below=1)
        freedom = self.freedom.detach().double().cpu().numpy()
        from scipy.stats import t as student  # here: it takes a while to import

        quantile = torch.from_numpy(np.asarray(student.ppf(0.5 + level / 2, freedom))).to(self.stderr)
        half = torch.hypot(torch.where(self.stderr > 0, quantile, 0.0) * self.stderr, self.error)
        return self.value - half, self.value + half

    def __str__(self) -> str:
        """The first values with their standard errors, the mean over the batch, and what to quote beside them."""
        pairs = zip(self.value[:4].tolist(), self.stderr[:4].tolist(), strict=True)
        shown = ", ".join(f"{value:.3f} +- {stderr:.2g}" for value, stderr in pairs)
        more = "" if len(self.value) <= 4 else f", ... for {len(self.value)} samples"
        d, (mean, spread) = self.latent[0].numel(), mean_and_error(self.value)
        over = f"; mean {mean:.3f} +- {spread:.2g}, {mean / d:.4f} nats/dim" if len(self.value) > 1 else ""
        known = self.error[~self.error.isnan()]
        worst = f"; numerical error up to {float(known.max()) / d:.1g} nats/dim" if len(known) else ""
        left = f", {len(self.unresolved)} above the tolerance" if self.unresolved else ""
        return f"{shown}{more} nats{over}{worst}{left} ({self.protocol}; {self.nfe} network calls)"

    __repr__ = __str__


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of (B,), and its standard error; NaN for a single one."""
    values = values.detach()
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


def joined(results: Sequence[LogProbResult]) -> LogProbResult:
    """One result of those of the parts of a batch."""
    if len(results) == 1:
        return results[0]
    tensors: dict[str, Any] = {  # fields by name
        f.name: torch.cat([getattr(r, f.name) for r in results])
        for f in fields(LogProbResult)
        if isinstance(getattr(results[0], f.name), Tensor)
    }
    starts = itertools.accumulate((len(r.value) for r in results), initial=0)
    unresolved = tuple(start + i for start, r in zip(starts, results, strict=False) for i in r.unresolved)
    nfe, vjps = (sum(getattr(r, name) for r in results) for name in ("nfe", "vjps"))
    reasons = tuple(reason for r in results for reason in r.reasons)
    return replace(results[0], **tensors, unresolved=unresolved, reasons=reasons, nfe=nfe, vjps=vjps)


@dataclass(frozen=True, eq=False, repr=False)
class FlowResult:
    """States carried along the probability flow.

    Attributes:
        x: the states at the other end, (B, *).
        nfe: network calls; each on the whole batch, but for those that follow on some samples.
        times: the grid, in the order in which it was run; the two ends alone where every sample has a grid of its own.
        log_prob: where it was asked for, the log-density of the data's end in nats (B,).
        stderr: its standard error by the probes of the trace, (B,).
        error: the numerical error (B,), meant as a bound: of `log_prob` in nats where that was asked for, else of `x`,
            root mean square over the numbers of a sample, in units of the state.
        unresolved: numbers of the samples whose `error` did not come down to the tolerance.
        reasons: for each of these what kept it from that, as in `LogProbResult`.
        method: whose tolerance it is.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sde)
        >>> z = sg.encode(score, sde, torch.ones(1, 2))
        >>> z
        FlowResult(x=(1, 2) torch.float32, nfe=49)
        >>> z.log_prob is None
        True
    """

    x: Tensor
    nfe: int
    times: tuple[float, ...]
    log_prob: Tensor | None = None
    stderr: Tensor | None = None
    error: Tensor | None = None
    unresolved: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    method: object = None

    @property
    def status(self) -> Status:
        """Status of finite states, which names the samples whose error is above the tolerance; others raise."""
        return unresolved_status(self.unresolved, self.reasons, len(self.x), self.method)

    def __repr__(self) -> str:
        """The states' shape, and the mean of their log-densities over the batch with the largest numerical error."""
        known = f", {len(self.unresolved)} above the tolerance" if self.unresolved else ""
        if self.log_prob is not None and self.error is not None:
            mean, spread = mean_and_error(self.log_prob)
            worst = float(self.error.detach().max()) / self.x[0].numel()
            known = f", log_prob: mean {mean:.3f} +- {spread:.2g} nats, numerical error up to {worst:.1g} nats/dim"
        return f"FlowResult(x={tuple(self.x.shape)} {self.x.dtype}, nfe={self.nfe}{known})"


@dataclass(frozen=True, eq=False)
class BitsPerDimResult:
    """Bits per dimension of discrete data.

    Attributes:
        value: mean over images, in bits/dim.
        stderr: its standard error over images, which contains that of dequantisation and probes.
        per_image: (B,), each the mean (or the importance-weighted bound) over its draws.
        repeats: (draws, B), one value a dequantisation.
        nfe: network calls, each on the whole batch.
        estimator: what the number is an estimate of.
        protocol: what to quote beside the number.
        guess: bits/dim of a uniform guess, the logarithm of the number of levels.

    Examples:
        >>> one = torch.ones(1)
        >>> print(BitsPerDimResult(3.0, 0.1, 3 * one, 3 * one[None], 40, estimator="", protocol="quoted", guess=8.0))
        3.0000 +- 0.1000 bits/dim (quoted); a uniform guess has 8.00
    """

    value: float
    stderr: float
    per_image: Tensor = field(repr=False)
    repeats: Tensor = field(repr=False)
    nfe: int
    estimator: str
    protocol: str
    guess: float

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.stderr:.4f} bits/dim ({self.protocol}); a uniform guess has {self.guess:.2f}"


@dataclass(frozen=True, eq=False)
class BoundResult:
    """A lower bound on log-likelihoods, in its parts.

    Attributes:
        value: the bound in nats, one per sample (B,): of the density of floating x, of the probability of integers.
        stderr: standard error of `value` that times and noises leave, (B,); NaN where too few were drawn to tell.
        prior: divergence of x_T from the prior, in nats (B,).
        diffusion: what the times in between cost, in nats (B,).
        reconstruction: what the last step, back to x, costs, in nats (B,).
        terms: `diffusion` time by time, (steps, B): in DDPM's bound L_{t-1} for t = 2 ... N, in the continuous one the
            contribution of each stratum.
        simple: mean squared error of the noise prediction over the same draws, (B,): DDPM's L_simple.
        nfe: network calls, each on the whole batch.
        dim: number of dimensions.
        protocol: what to quote beside the number.
        discrete: whether x were integers, of which alone there are bits/dim: printed are those, else nats.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sde)
        >>> bound = sg.elbo(score, sde, torch.zeros(4, 2), seed=0)
        >>> bound.value.shape, torch.allclose(bound.value, -(bound.prior + bound.diffusion + bound.reconstruction))
        (torch.Size([4]), True)
    """

    value: Tensor
    stderr: Tensor
    prior: Tensor = field(repr=False)
    diffusion: Tensor = field(repr=False)
    reconstruction: Tensor = field(repr=False)
    terms: Tensor = field(repr=False)
    simple: Tensor = field(repr=False)
    nfe: int
    dim: int
    protocol: str
    discrete: bool = True

    @property
    def bits_per_dim(self) -> Tensor:
        """-value / (d log 2), (B,): bits/dim of discrete data; for floating x it depends on their units."""
        return -self.value / (self.dim * math.log(2))

    def __str__(self) -> str:
        each, unit = (self.bits_per_dim, "bits/dim") if self.discrete else (self.value, "nats")
        error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        return f"{float(each.mean()):.4f} +- {error:.4f} {unit} ({self.protocol})"
