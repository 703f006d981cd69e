r"""Traces of Jacobians: exactly, or by Hutchinson's estimate with probes in a basis that suits the data.

For probes z of independent entries of mean 0 and variance 1, $E[z^\top J z] = \operatorname{tr} J$, with a variance
that for Rademacher probes (entries +-1) comes from what lies off the diagonal alone. An orthonormal transform of
the probes keeps the mean; one in which J is more nearly diagonal, such as a cosine transform for natural images,
leaves less variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.autograd import OF_CONSTANTS, repeating, require_gradient, require_repeatable
from sgm_sde._utils.checks import one_of
from sgm_sde._utils.shapes import dot, flat
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.noise import NoiseStream, SampleSeeds
from sgm_sde.processes.base import SDE
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.gradient import Cuts, is_compiled
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score

PROBES = ("rademacher", "gaussian")
BASES = ("pixel", "colour", "dct")
BLOCK = 16  # rows and columns of the Jacobian in which an exact trace looks at its symmetry
CLOSE = 4  # numbers of a sample whose neighbours are near enough in memory to be taken from where they are
HELD = 2**18  # numbers of the unit vectors of all rows, up to which these are made once
DRAWS = 2**24  # that a run has to itself
FEW_DIMENSIONS = 16  # up to which the exact trace is the default: its products cost less than the noise of probes
NO_RULE = "batching rule not implemented"  # torch's words where vmap does not know what a network calls
FIXED_PROBES = 4  # of samples that leave a grid, at least, where probes cannot be fresh


class Estimate(Protocol):
    """An estimator of the trace of a network's Jacobian J.

    Its last three columns are the variance of one estimate, NaN where it is not known, and the asymmetry of J, which
    vanishes for the Jacobian of a gradient: estimates of |J - J^T|^2 and |J + J^T|^2 in the Frobenius norm, or zeros
    where there is no estimate.

    Attributes:
        columns: estimates at each evaluation.
        companion: whether a further column is that of a probe which is the same at every evaluation and not averaged.
        fixed: whether its randomness is the same at each evaluation; None where there is none.
    """

    columns: int
    companion: bool
    fixed: bool | None

    def run(self, number: int) -> Estimate:
        """One for the run of this number, whose randomness does not depend on other runs."""

    def constant(self) -> Estimate:
        """One with the same randomness at each evaluation, for methods that find their own steps."""

    def products(self, d: int) -> int:
        """Vector-Jacobian products of an evaluation in d dimensions."""

    def __call__(self, out: Tensor, x: Tensor, rows: Tensor | None, keep: bool, seen: Tensor | None = None) -> Tensor:
        """Estimates (b, columns), the companion's if there is one, their variance, and the asymmetry's (b, 2).

        For the output at x, both (B, *), on the tape.

        `rows` are the numbers of the samples in the batch, where some have left it; `keep` is whether the estimates are
        differentiable themselves; `seen` are the rows of x to whose estimates one looks, all if not given.
        """


class TraceScore(BoundScore):
    """A model whose evaluations come with estimates of the trace of their Jacobian.

    With gradients enabled around the run, network and trace are differentiable.

    Args:
        score: the score.
        sde: its process.
        times: (end, start) of the run.
        kwargs: passed on to the network at each call.
        batch: number of samples that these are for.

    Attributes:
        vjps: number of vector-Jacobian products so far.
        cuts: whether something in the network has lost a gradient, be it rightly; None before the first estimate, and
            of a compiled network, which another mode would have compiled anew.
    """

    def __init__(
        self, score: Score, sde: SDE, times: tuple[float, float], kwargs: Conditions | None, batch: int
    ) -> None:
        super().__init__(score, sde, times, kwargs)
        require_rows(self.kwargs, batch)
        self.batch = batch
        self.vjps = 0
        self.cuts: bool | None = None
        self._looked = False
        self._repeats = False  # the call for each product, of a compiled network whose graphs give a single one

    def output(self, x: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """The network's output at x (B, *) and t (B,), of all samples or of those of the numbers `rows`."""
        return self._call(x, t, None if rows is None else self.of_some(rows, self.batch))

    def _uncounted(self, t: Tensor, rows: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The network's output at t (B,) as a function of the state."""
        given = self.kwargs if rows is None else self.of_some(rows, self.batch)
        return lambda x: self.score.output(x, t, **given)

    def _first_output(self, x: Tensor, t: Tensor, rows: Tensor | None) -> Tensor:
        """The network's output, and whether something in it loses its gradient."""
        self._looked = True
        if is_compiled(self.score.net):
            return self.output(x, t, rows)
        with Cuts() as cuts:
            output = self.output(x, t, rows)
        self.cuts = cuts.seen
        return output

    def with_trace(
        self,
        x: Tensor,
        t: Tensor,
        estimate: Estimate,
        rows: Tensor | None = None,
        seen: Tensor | None = None,
        of: Callable[[Tensor, Tensor], Tensor] = lambda _, out: out,
    ) -> tuple[Tensor, Tensor]:
        """The network's output at x (B, *) and t (B,), and estimates of the trace of its Jacobian in x, (b, columns).

        Args:
            x: the states.
            t: their times.
            estimate: of the trace.
            rows: their numbers in the batch, where some have left it.
            seen: the rows of x whose traces are wanted; all if not given.
            of: what is returned, and whose trace is taken, from the state and the network's output.
        """
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            output = self._first_output(x, t, rows) if not self._looked else self.output(x, t, rows)
            # What is made of it has a gradient in any case.
            call = partial(self.output, t=t, rows=rows)
            first = self.nfe == 1  # the graph is not looked through at each call
            require_gradient(output, "the network", OF_CONSTANTS, self._uncounted(t, rows) if first else None, x)
            if self._repeats:
                output = repeating(call, x, output)
            out = of(x, output)
            try:
                trace = estimate(out, x, rows, keep, seen)
            except RuntimeError as error:
                require_repeatable(error, keep)
                self._repeats = True
                output = repeating(call, x, output)
                out = of(x, output)
                trace = estimate(out, x, rows, keep, seen)
        self.vjps += estimate.products(x[0].numel())
        return (out, trace) if keep else (out.detach(), trace.detach())


class ExactTrace:
    """The trace itself, by `chunk` rows of the Jacobian at a time; see `Estimate`."""

    columns = 1
    companion = False
    fixed: bool | None = None

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._of: tuple[object, ...] = ()  # what outputs the units are like
        self._units: dict[int, Tensor] = {}

    def run(self, number: int) -> ExactTrace:
        """Itself: nothing is drawn."""
        return self

    def constant(self) -> ExactTrace:
        """Itself."""
        return self

    def products(self, d: int) -> int:
        """One per dimension."""
        return d

    def __call__(self, out: Tensor, x: Tensor, rows: Tensor | None, keep: bool, seen: Tensor | None = None) -> Tensor:
        d = x[0].numel()
        terms: list[Tensor] = []
        J: list[Sequence[Tensor]] = []  # columns (b,) of the first rows
        for i in range(0, d, self.chunk):
            for product in self._rows(out, x, range(i, min(i + self.chunk, d)), keep, seen):
                k = len(terms)
                terms.append(product[:, k])
                if k < BLOCK:
                    columns = product.detach()[:, :BLOCK].mT
                    J.append((columns if d <= CLOSE else columns.contiguous()).unbind())

        total = sum(terms[1:], terms[0])
        return torch.stack([total, torch.zeros_like(total), *_skew_and_symmetric(J)]).mT

    def _rows(self, out: Tensor, x: Tensor, at: range, keep: bool, seen: Tensor | None) -> Tensor:
        """Some rows (n,) of the Jacobians of the samples `seen`, (n, b, d)."""
        d = x[0].numel()
        v = torch.stack([self._unit(k, out, d) for k in at]) if self.chunk > 1 else self._unit(at[0], out, d)
        products = self._products(out, x, v, keep)
        of_all = products.reshape(len(at), len(x), d)
        return of_all if seen is None else of_all.index_select(1, seen)

    def _products(self, out: Tensor, x: Tensor, v: Tensor, keep: bool) -> Tensor:
        batched = self.chunk > 1
        try:
            return _vjp(out, x, v, keep, batched=batched)
        except RuntimeError as error:
            if not batched or NO_RULE not in str(error).lower():
                raise
            raise ValueError(
                f"trace=Exact(chunk={self.chunk}) takes several rows at once by vmap, which this network does not "
                f"allow, as one under torch.compile: take Exact()"
            ) from None

    def _unit(self, k: int, out: Tensor, d: int) -> Tensor:
        """A state of zeros but for number k of each sample, of the shape of the output."""
        if self._of != (out.shape, out.dtype, out.device):
            self._of = out.shape, out.dtype, out.device
            self._units.clear()
        if k in self._units:
            return self._units[k]

        unit = torch.zeros(len(out), d, dtype=out.dtype, device=out.device)
        unit[:, k] = 1
        unit = unit.view(out.shape)
        if d * unit.numel() <= HELD:
            self._units[k] = unit
        return unit

    def __str__(self) -> str:
        return "its exact trace"


class RandomTrace:
    """Products z^T J z, one a probe; see `Estimate`. Where probes are fresh a companion goes with them.

    Args:
        seeds: of the samples.
        shape: of the states, (B, *).
        n_probes: a sample.
        probe: `"rademacher"` or `"gaussian"`.
        basis: in which their entries are independent.
        fixed: whether they are the same at each evaluation.
        number: of the run.
    """

    def __init__(
        self,
        seeds: SampleSeeds,
        shape: tuple[int, ...],
        n_probes: int,
        probe: str,
        basis: str,
        fixed: bool,
        number: int = 0,
    ) -> None:
        self._made_of = seeds, shape, n_probes, probe, basis
        self.shape = shape
        self.columns = n_probes
        self.probe = probe
        self.basis = basis
        self.fixed: bool | None = fixed
        self.companion = not fixed
        self.number = number
        self.transform, self.back = (probe_transform(basis, shape[1:], inverse) for inverse in (False, True))
        # The companion is the first draw of all, in every run.
        self._first = NoiseStream(seeds, "probe")
        self._stream = NoiseStream(seeds, "probe", draw=max(number * DRAWS, int(self.companion)))
        self._kept: list[Tensor] = []  # in the basis in which their entries are independent
        self._probes: list[Tensor] = []
        self._unused = False  # probes, since the estimate that they were drawn for has failed

    def run(self, number: int) -> RandomTrace:
        """One with draws of its own, but for the companion."""
        return RandomTrace(*self._made_of, not self.companion, number)

    def constant(self) -> Estimate:
        """The exact trace in few dimensions; else probes that stay, enough of them that their spread tells their error.

        In few dimensions the few products of such probes are often equal, and their spread says nothing.
        """
        seeds, shape, columns, probe, basis = self._made_of
        if math.prod(shape[1:]) <= FEW_DIMENSIONS:
            return ExactTrace(1)
        return RandomTrace(seeds, shape, max(columns, FIXED_PROBES), probe, basis, True, self.number)

    def products(self, d: int) -> int:
        """One a probe."""
        return self.columns + self.companion

    def _draw(self, stream: NoiseStream, x: Tensor) -> Tensor:
        z = stream.normal(self.shape, x.dtype, x.device)
        return z.new_ones(()).copysign(z) if self.probe == "rademacher" else z

    def __call__(self, out: Tensor, x: Tensor, rows: Tensor | None, keep: bool, seen: Tensor | None = None) -> Tensor:
        if self.companion and not self._kept:
            self._kept = [self._draw(self._first, x)]
        if not (self._unused or (self.fixed and self._probes)):
            self._probes = [self._draw(self._stream, x) for _ in range(self.columns)]
        self._unused = True
        entries = [z if rows is None else z[rows] for z in (*self._probes, *self._kept)]
        probes = [self.transform(z) for z in entries]
        products = [_vjp(out, x, z, keep) for z in probes]
        self._unused = False
        entries, probes, products = ([some_of(v, seen) for v in of_all] for of_all in (entries, probes, products))
        estimates = [dot(v, z) for v, z in zip(products, probes, strict=True)]
        known = self._known(entries, probes, [v.detach() for v in products])
        return torch.stack([*estimates, *known]).mT

    def _known(self, entries: list[Tensor], z: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        """The variance and the asymmetry, from probes z, their entries and their products v with the Jacobian."""
        nothing = torch.zeros_like(dot(v[0], z[0]))
        unknown = torch.full_like(nothing, math.nan)
        if len(z) == 1:
            return [unknown, nothing, nothing]

        skew, symmetric = _asymmetry(z[0], z[-1], v[0], v[-1])
        if self.probe != "rademacher":
            return [unknown, skew, symmetric]

        terms = [entry * self.back(product) for entry, product in zip(entries, v, strict=True)]
        return [_variance(terms) - skew / 2, skew, symmetric]

    def __str__(self) -> str:
        basis = "" if self.basis == "pixel" else f" in the {self.basis} basis"
        count = f"{self.columns} {self.probe} probe{'s' * (self.columns > 1)}{basis}"
        return f"Hutchinson's estimate with {count}, {'fixed' if self.fixed else 'fresh'} at each evaluation"


def _asymmetry(z: Tensor, y: Tensor, z_J: Tensor, y_J: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates (B,) of |J - J^T|^2 and |J + J^T|^2 from two probes and their products with J: the mean of
    (z J y - y J z)^2 is the first, and that of |z J|^2 a quarter of both."""
    skew = (dot(z_J, y) - dot(y_J, z)).square()
    both = 2 * (dot(z_J, z_J) + dot(y_J, y_J))
    return skew, both - skew


def _skew_and_symmetric(J: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """|J - J^T|^2 and |J + J^T|^2 (B,) of matrices from their numbers (B,); each pair off the diagonal counts twice."""
    skew = torch.zeros_like(J[0][0])
    symmetric = torch.zeros_like(skew)
    for i, row in enumerate(J):
        symmetric.addcmul_(row[i], row[i], value=4)
        for j in range(i):
            difference = row[j] - J[j][i]
            both = row[j] + J[j][i]
            skew.addcmul_(difference, difference, value=2)
            symmetric.addcmul_(both, both, value=2)
    return skew, symmetric


def _variance(terms: list[Tensor]) -> Tensor:
    r"""Twice the variance (B,) of the terms $z_i (Jz)_i$ of Rademacher probes z, (B, *) each, added up over i.

    Each term is $J_{ii} + \sum_{j\ne i} J_{ij} z_i z_j$, of variance $\sum_{j\ne i} J_{ij}^2$. For a symmetric J twice
    the sum of these is the variance of $z^\top J z$; for another it is more, by $|J - J^\top|^2/2$.
    """
    return 2 * flat(torch.stack(terms).var(0)).sum(1)


def _vjp(out: Tensor, x: Tensor, v: Tensor, keep: bool, *, batched: bool = False) -> Tensor:
    """Vector-Jacobian products with v, (B, *) or (n, B, *)."""
    (product,) = torch.autograd.grad(
        out, x, v.to(out.dtype), retain_graph=True, create_graph=keep, is_grads_batched=batched, allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    return product


def some_of(values: Tensor, seen: Tensor | None) -> Tensor:
    """The rows (b, *) of some samples; all where none are named."""
    return values if seen is None else values.index_select(0, seen)


@lru_cache(maxsize=64)
def _cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II), (n, n), a row for each frequency."""
    k = np.arange(n)[:, None]
    j = np.arange(n)
    matrix = math.sqrt(2 / n) * np.cos(math.pi * k * (2 * j + 1) / (2 * n))
    matrix[0] /= math.sqrt(2)
    return torch.from_numpy(matrix)


def probe_transform(basis: str, shape: tuple[int, ...], inverse: bool = False) -> Callable[[Tensor], Tensor]:
    r"""The orthonormal transform from coordinates of a basis to those of x.

    `"colour"` transforms the channels by the orthonormal cosine transform, which for three is about brightness and two
    differences of colour; `"dct"` the channels, rows and columns.

    Args:
        basis: `"pixel"`, `"colour"` or `"dct"`.
        shape: of one sample; (C, H, W) unless the basis is that of pixels.
        inverse: the way back, from coordinates of x.

    Raises:
        ValueError: for an unknown basis, or a shape that is not that of an image.

    Examples:
        >>> z = torch.randn(5, 3, 8, 8, dtype=torch.float64)
        >>> bool(torch.allclose(probe_transform("dct", (3, 8, 8))(z).square().sum(), z.square().sum()))
        True
    """
    one_of("probe_basis", basis, BASES)
    if basis == "pixel":
        return lambda z: z
    if len(shape) != 3:
        raise ValueError(
            f"probe_basis={basis!r} is for images (B, C, H, W), got x of shape (B, {', '.join(map(str, shape))})"
        )

    def transform(z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):  # rounded, the transform would not be orthonormal
            for axis in (1,) if basis == "colour" else (1, 2, 3):
                matrix = _cosines(z.shape[axis]).to(z)
                z = (z.movedim(axis, -1) @ (matrix.T if inverse else matrix)).movedim(-1, axis)
        return z

    return transform
