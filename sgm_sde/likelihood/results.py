"""What likelihoods come back as: the numbers, and how they were obtained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from sgm_sde.results import Status


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


@dataclass(frozen=True, repr=False)
class LogProbResult:
    """Log-likelihoods and how they came about.

    Attributes:
        value: log-density in nats, one a sample (B,): at eps, or with a decoder a lower bound on that of x itself.
        stderr: standard error of `value` that the probes of the trace leave, (B,); 0 for an exact trace, NaN where one
            fixed probe says nothing about it.
        latent: where the flow ends at T, (B, *).
        prior: log-density of the latent under the prior, in nats (B,).
        divergence: what the flow's change of volume adds, in nats (B,).
        decoder: what diffusion to eps and the decoder back add, in nats (B,); 0 without them.
        defect: what the states on a fixed grid lack of lying on one trajectory, in nats (B,), with which `divergence`
            is corrected; where it is large the grid is too coarse. NaN for other methods.
        nfe: network calls; each on the whole batch, but for those on the finer grids of some samples.
        vjps: vector-Jacobian products, on as many samples.
        status: whether everything was finite.
        protocol: what to quote beside the number.
    """

    value: Tensor
    stderr: Tensor
    latent: Tensor = field(repr=False)
    prior: Tensor = field(repr=False)
    divergence: Tensor = field(repr=False)
    decoder: Tensor = field(repr=False)
    defect: Tensor = field(repr=False)
    nfe: int
    vjps: int
    status: Status
    protocol: LikelihoodProtocol

    def __str__(self) -> str:
        """The first values with their standard errors, in nats, and what to quote beside them."""
        pairs = zip(self.value[:4].tolist(), self.stderr[:4].tolist(), strict=True)
        shown = ", ".join(f"{value:.3f} +- {stderr:.2g}" for value, stderr in pairs)
        more = "" if len(self.value) <= 4 else f", ... for {len(self.value)} samples"
        return f"{shown}{more} nats ({self.protocol}; {self.nfe} network calls)"

    __repr__ = __str__


@dataclass(frozen=True)
class FlowResult:
    """States carried along the probability flow.

    Attributes:
        x: the states at the other end, (B, *).
        nfe: network calls, each on the whole batch.
        times: the grid, in the order in which it was run; the two ends alone where every sample has a grid of its own.
    """

    x: Tensor
    nfe: int
    times: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
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
    """

    value: float
    stderr: float
    per_image: Tensor = field(repr=False)
    repeats: Tensor = field(repr=False)
    nfe: int
    estimator: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.stderr:.4f} bits/dim ({self.protocol})"


@dataclass(frozen=True)
class BoundResult:
    """A lower bound on log-likelihoods, in its parts.

    Attributes:
        value: the bound in nats, one a sample (B,): of the density of floating x, of the probability of whole numbers.
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
        discrete: whether x were whole numbers, of which alone there are bits/dim: printed are those, else nats.
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
        """-value / (d log 2), (B,): bits/dim of whole numbers; for floating x it depends on their units."""
        return -self.value / (self.dim * math.log(2))

    def __str__(self) -> str:
        each, unit = (self.bits_per_dim, "bits/dim") if self.discrete else (self.value, "nats")
        error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        return f"{float(each.mean()):.4f} +- {error:.4f} {unit} ({self.protocol})"
