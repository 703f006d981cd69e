r"""Traces of Jacobians: exactly, or by Hutchinson's estimate with probes in a basis that suits the data.

For probes z of independent entries of mean 0 and variance 1, $E[z^\top J z] = \operatorname{tr} J$, with a variance
that for Rademacher probes (entries +-1) comes from what lies off the diagonal alone. An orthonormal transform of
the probes keeps the mean; one in which J is more nearly diagonal, such as a cosine transform for natural images,
leaves less variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sgm_sde._autograd import require_gradient
from sgm_sde._checks import one_of
from sgm_sde._shapes import dot
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.processes.base import SDE
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score

PROBES = ("rademacher", "gaussian")
BASES = ("pixel", "colour", "dct")
BLOCK = 16  # rows and columns of the Jacobian in which an exact trace looks at its symmetry
DRAWS = 2**24  # that a run has to itself
FIXED_PROBES = 4  # of samples that leave a grid, where probes cannot be fresh


class Estimate(Protocol):
    """An estimator of the trace of a network's Jacobian J.

    The last two columns of what it returns tell how far J is from symmetric, as the Jacobian of a gradient is:
    estimates of |J - J^T|^2 and |J + J^T|^2 in Frobenius' norm, or zeros where nothing tells them.

    Attributes:
        columns: estimates at each evaluation.
        companion: whether one more follows, of the same probe at every evaluation, which the value does not use.
        vjps: vector-Jacobian products so far.
        fixed: whether its randomness is the same at each evaluation; None where there is none.
    """

    columns: int
    companion: bool
    vjps: int
    fixed: bool | None

    def run(self, number: int) -> None:
        """Told that a run of this number begins, whose randomness does not depend on the runs before."""

    def constant(self) -> Estimate:
        """One with the same randomness at each evaluation, for methods that find their own steps."""

    def __call__(self, out: Tensor, x: Tensor, rows: Tensor | None, keep: bool) -> Tensor:
        """Estimates (B, columns), the companion's if there is one, and those of the asymmetry (B, 2).

        For the output at x, both (B, *), on the tape.

        `rows` are the numbers of the samples in the batch, where some have left it; `keep` is whether the estimates are
        differentiable themselves.
        """


class OutputDependsOnBatch(ValueError):
    """The network says something else of some samples alone than of them in their batch."""


class TraceScore(BoundScore):
    """A model that keeps, at each evaluation, estimates of the trace of its output's Jacobian: (B, columns).

    With gradients enabled around the run, network and trace are differentiable.
    """

    def __init__(
        self, score: Score, sde: SDE, times: tuple[float, float], kwargs: Mapping[str, Any] | None, estimate: Estimate
    ) -> None:
        super().__init__(score, sde, times, kwargs)
        self.estimate = estimate
        self.traces: list[Tensor] = []
        self._index: Tensor | None = None
        self._expected: Tensor | None = None

    @contextmanager
    def only(self, index: Tensor, batch: int) -> Iterator[None]:
        """The model restricted to some samples, with their probes."""
        self._index = index
        try:
            with super().only(index, batch):
                yield
        finally:
            self._index = None

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        out = super()._call(x, t)
        if x.requires_grad:  # what a conversion adds would have a gradient in any case
            require_gradient(out, "the network", "One whose output is constant may add 0 * x")
        return out

    @contextmanager
    def expecting(self, output: Tensor) -> Iterator[None]:
        """While the first evaluation has to give this output (B, *) but for rounding, be it that of bfloat16.

        Raises:
            OutputDependsOnBatch: where it does not, before anything is drawn.
        """
        self._expected = output
        try:
            yield
        finally:
            self._expected = None

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at x (B, *) and t (B,)."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            out = self._call(x, t)
            if self._expected is not None:
                expected, self._expected = self._expected, None
                off, size = (dot(v, v) for v in ((out - expected).detach().double(), expected.double()))
                if bool((off > 0.05**2 * size).any()):
                    raise OutputDependsOnBatch(
                        "for some samples the network's output is not what it was in their batch"
                    )
            trace = self.estimate(out, x, self._index, keep)
        self.traces.append(trace if keep else trace.detach())
        return out if keep else out.detach()


class ExactTrace:
    """The trace itself, by `chunk` rows of the Jacobian at a time; see `Estimate`."""

    columns = 1
    companion = False
    fixed: bool | None = None

    def __init__(self, chunk: int) -> None:
        self.chunk, self.vjps = chunk, 0

    def run(self, number: int) -> None:
        """Nothing is drawn."""

    def constant(self) -> ExactTrace:
        """Itself."""
        return self

    def __call__(self, out: Tensor, x: Tensor, rows: Tensor | None, keep: bool) -> Tensor:
        d, total = x[0].numel(), torch.zeros(len(x), dtype=x.dtype, device=x.device)
        seen: list[Tensor] = []  # of the first rows, (rows, B, columns)
        for i in range(0, d, self.chunk):
            at = torch.arange(i, min(i + self.chunk, d), device=x.device)
            v = torch.zeros(len(at), len(x), d, dtype=x.dtype, device=x.device)
            v[torch.arange(len(at), device=x.device), :, at] = 1
            self.vjps += len(at)
            if self.chunk == 1:
                products = _vjp(out, x, v[0].view_as(out), keep)[None]
            else:
                products = _vjp(out, x, v.view(len(at), *out.shape), keep, batched=True)
            products = products.reshape(len(at), len(x), d)
            total = total + products[torch.arange(len(at), device=x.device), :, at].sum(0)
            if i < BLOCK:
                seen.append(products[: BLOCK - i, :, :BLOCK].detach())
        block = torch.cat(seen).transpose(0, 1)
        sizes = [(block + sign * block.mT).flatten(1).square().sum(1) for sign in (-1, 1)]
        return torch.stack([total, *sizes], 1)

    def __str__(self) -> str:
        return "its exact trace"


class RandomTrace:
    """Products z^T J z, one a probe; see `Estimate`. Where probes are fresh a companion goes with them."""

    def __init__(
        self, stream: NoiseStream, shape: tuple[int, ...], n_probes: int, probe: str, basis: str, fixed: bool
    ) -> None:
        self.stream, self.shape, self.columns, self.probe, self.basis = stream, shape, n_probes, probe, basis
        self.fixed: bool | None = fixed
        self.companion = not fixed
        self.transform = probe_transform(basis, shape[1:])
        self.probes: list[Tensor] = []
        self._kept: list[Tensor] = []
        self.vjps = 0

    def run(self, number: int) -> None:
        """Told that a run of this number begins: probes are those of its own draws, the companion stays."""
        self.stream.draw, self.probes = number * DRAWS, []

    def constant(self) -> RandomTrace:
        """With probes that stay: enough of them that their spread tells their error."""
        columns = max(self.columns, FIXED_PROBES)
        return RandomTrace(self.stream, self.shape, columns, self.probe, self.basis, fixed=True)

    def _draw(self, x: Tensor) -> Tensor:
        z = self.stream.normal(self.shape, x.dtype, x.device)
        return self.transform(z.new_ones(()).copysign(z) if self.probe == "rademacher" else z)

    def __call__(self, out: Tensor, x: Tensor, rows: Tensor | None, keep: bool) -> Tensor:
        if self.companion and not self._kept:
            self._kept = [self._draw(x)]
        if not (self.fixed and self.probes):
            self.probes = [self._draw(x) for _ in range(self.columns)]
        probes = [z if rows is None else z[rows] for z in (*self.probes, *self._kept)]
        self.vjps += len(probes)
        products = [_vjp(out, x, z, keep) for z in probes]
        estimates = [dot(product, z) for product, z in zip(products, probes, strict=True)]
        if len(probes) == 1:
            return torch.stack([*estimates, *2 * [torch.zeros_like(estimates[0])]], 1)
        # For two probes z and y the mean of (y J z - z J y)^2 is the norm of J - J^T.
        one, other = (dot(products[i].detach(), probes[j]) for i, j in ((0, -1), (-1, 0)))
        return torch.stack([*estimates, (one - other).square(), (one + other).square()], 1)

    def __str__(self) -> str:
        basis = "" if self.basis == "pixel" else f" in the {self.basis} basis"
        count = f"{self.columns} {self.probe} probe{'s' * (self.columns > 1)}{basis}"
        return f"Hutchinson's estimate with {count}, {'fixed' if self.fixed else 'fresh'} at each evaluation"


def _vjp(out: Tensor, x: Tensor, v: Tensor, keep: bool, *, batched: bool = False) -> Tensor:
    """Vector-Jacobian products with v, (B, *) or (n, B, *)."""
    (product,) = torch.autograd.grad(
        out, x, v.to(out.dtype), retain_graph=True, create_graph=keep, is_grads_batched=batched, allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    return product


@lru_cache(maxsize=64)
def _cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II), (n, n), a row for each frequency."""
    k, j = np.arange(n)[:, None], np.arange(n)
    matrix = math.sqrt(2 / n) * np.cos(math.pi * k * (2 * j + 1) / (2 * n))
    matrix[0] /= math.sqrt(2)
    return torch.from_numpy(matrix)


def probe_transform(basis: str, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    r"""The orthonormal transform from coordinates of a basis to those of x.

    `"colour"` transforms the channels by the orthonormal cosine transform, which for three is about brightness and two
    differences of colour; `"dct"` the channels, rows and columns.

    Args:
        basis: `"pixel"`, `"colour"` or `"dct"`.
        shape: of one sample; (C, H, W) unless the basis is that of pixels.

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
                z = (z.movedim(axis, -1) @ _cosines(z.shape[axis]).to(z)).movedim(-1, axis)
        return z

    return transform
