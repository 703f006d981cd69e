"""Measurements and their operators, linear or not."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_autocast
from sgm_sde._utils.checks import (
    check_integer,
    described,
    flag,
    function_name,
    instance_of,
    is_dense,
    number,
    require_floating,
    require_function,
    settle,
    sizes,
)
from sgm_sde._utils.elsewhere import instead_of
from sgm_sde._utils.shapes import dot
from sgm_sde.engine.noise import NoiseStream, Seeds, resolve_seeds
from sgm_sde.identity import Value
from sgm_sde.inverse.linalg import Linearised, conjugate_gradient
from sgm_sde.processes.base import CheckError

LINEAR = 1e-4  # of the largest value: what a linear function in single precision may be off by
AGREEMENT = 1e-6  # the same of an operator's identities, in double precision and by iterative solvers


class Operator(Value, ABC):
    """A map from data x (B, *) to measurements y (B, *), which takes each sample by itself.

    Examples:
        >>> import torch
        >>> class Square(Operator):
        ...     def apply(self, x): return x**2
        ...     def vjp(self, x, v): return 2 * x * v
        >>> Square().vjp(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
        tensor([[6.]])
    """

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Operator A(x)."""

    @abstractmethod
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """The product of v, like a measurement, with the Jacobian at x."""

    def restrict(self, y: Tensor) -> Tensor:
        """A measurement (B, *) without what was not measured: itself, but for masks."""
        return y

    def of_samples(self, rows: Tensor, x: Tensor) -> Operator:
        """The operator of x (b, *), the samples of numbers `rows` (b,) alone: itself where it is the same for all."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LinearOperator(Operator):
    r"""A linear map $A$ from data x (B, *) to measurements y (B, *), which takes each sample by itself.

    An operator of your own gives `apply` and `adjoint`, and `solve` where $AA^T$ has a closed form; `LinearMap` makes
    one of a function. Run `check_operator` on it.

    Attributes:
        full_rank: whether $AA^T$ is known to be invertible, which measurements without noise need.
        iterations: steps of conjugate gradients that `solve` takes where no closed form is given.

    Examples:
        >>> import torch
        >>> class Sum(LinearOperator):
        ...     full_rank = True
        ...     def apply(self, x): return x.sum(1, keepdim=True)
        ...     def adjoint(self, y): return y.expand(-1, 2)
        >>> Sum().pseudo_inverse(torch.tensor([[3.0]]))
        tensor([[1.5000, 1.5000]])
    """

    full_rank: bool = False
    iterations: int = 50

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        r"""Adjoint $A^T y$."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        r"""$A^T v$, wherever x is."""
        return self.adjoint(v)

    def solve(self, v: Tensor, shift: Tensor | float) -> Tensor:
        r"""$(AA^T + \text{shift}\,I)^{-1} v$ for v like a measurement and a shift that multiplies it, per sample."""
        return conjugate_gradient(lambda p: (self.apply(self.adjoint(p)) + shift * p, p), v, self.iterations)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        r"""$A^+ y = A^T (AA^T)^{-1} y$, the smallest x that was measured as y.

        Raises:
            ValueError: for an operator whose $AA^T$ is not known to be invertible.
        """
        if not self.full_rank:
            raise ValueError(f"{self!r} has no pseudo-inverse: A A^T is not known to be invertible")
        return self.adjoint(self.solve(y, 0.0))


class Mask(LinearOperator):
    """Inpainting: the data where the mask is true, and 0 elsewhere.

    Measurements have the shape of the data; what they hold where the mask is false is ignored.

    Args:
        mask: boolean, true where observed; of the shape of one sample, or (B, *) with a mask a sample. A size of 1 is
            for all, such as (1, H, W) for all channels.

    Raises:
        TypeError: for a mask that is not boolean.
        ValueError: for a mask that observes nothing; at a call, for x that the mask does not fit.

    Examples:
        >>> Mask(torch.tensor([True, False])).apply(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 0.]])
    """

    full_rank = True

    def __init__(self, mask: Tensor) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else described(mask)
            raise TypeError(f"the mask must be a boolean tensor, true where observed, got {given}")
        if not bool(mask.any()):
            raise ValueError(f"the mask of shape {tuple(mask.shape)} observes nothing")
        self.mask = mask

    def apply(self, x: Tensor) -> Tensor:
        """The observed part, 0 elsewhere."""
        if not (_fits(self.mask, x.shape[1:]) or _fits(self.mask, x.shape)):
            raise ValueError(
                f"the mask has shape {tuple(self.mask.shape)}, which fits neither x of shape {tuple(x.shape)} "
                f"nor one of its samples, {tuple(x.shape[1:])}"
            )
        return torch.where(self.mask.to(x.device), x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        """The same map."""
        return self.apply(y)

    def solve(self, v: Tensor, shift: Tensor | float) -> Tensor:
        """In closed form: A A^T is the identity on what is observed."""
        return v / (1 + shift)

    def restrict(self, y: Tensor) -> Tensor:
        """Zeros where nothing is observed."""
        if _fits(self.mask, y.shape):  # perhaps one measurement of all samples
            return torch.where(self.mask.to(y.device), y, 0)
        if not _fits(self.mask, y.shape[1:]):
            raise ValueError(
                f"y has shape {tuple(y.shape)}, which does not go with the mask's, {tuple(self.mask.shape)}"
            )
        return self.apply(y)

    def of_samples(self, rows: Tensor, x: Tensor) -> Mask:
        """The operator with the masks of x (b, *), the samples of numbers `rows` (b,) alone, if each has its own.

        Raises:
            ValueError: for a sample that has none.
        """
        if self.mask.ndim != x.ndim or len(self.mask) == 1:
            return self
        some = copy.copy(self)
        some.mask = _of_samples("the mask", self.mask, rows)
        return some

    def __repr__(self) -> str:
        return f"Mask({int(self.mask.sum())} of {self.mask.numel()} observed)"


def _fits(mask: Tensor, shape: Sequence[int]) -> bool:
    """True for a mask of this shape, but for sizes of 1."""
    return mask.ndim == len(shape) and all(m in (1, n) for m, n in zip(mask.shape, shape, strict=True))


class ChannelMix(LinearOperator):
    r"""Colourisation and the like: the same mixture of channels at each pixel, $y_m = \sum_c M_{mc}\,x_c$.

    $A^+A$ is the projection on the mixtures: an orthogonal decoupling of what is known from what is not.

    Args:
        matrix: (m, C) with independent rows, m mixtures of C channels. `ChannelMix.grey(3)` is the mean of three.

    Raises:
        ValueError: for a matrix of another rank; at a call, for x (B, C, *) of another number of channels.

    Source: Song et al., 2021, arXiv:2011.13456, appendix I.

    Examples:
        >>> ChannelMix.grey(3).apply(torch.tensor([[[0.0], [1.0], [5.0]]]))
        tensor([[[2.]]])
    """

    full_rank = True

    def __init__(self, matrix: Tensor) -> None:
        require_floating("matrix", matrix, "(m, C)")
        if matrix.ndim != 2:
            raise ValueError(f"matrix must have the shape (m, C), got {tuple(matrix.shape)}")
        if not matrix.isfinite().all():
            raise ValueError(f"the entries of the matrix must be finite, got {described(matrix)}")
        rank = int(torch.linalg.matrix_rank(matrix.double()))
        if rank < len(matrix):
            raise ValueError(f"the {len(matrix)} rows of the matrix must be independent, its rank is {rank}")

        self.matrix = matrix
        M = matrix.double()
        self._values, self._basis = torch.linalg.eigh(M @ M.T)

    @staticmethod
    def grey(channels: int) -> ChannelMix:
        """The mean of the channels."""
        return ChannelMix(torch.full((1, channels), 1 / channels, dtype=torch.float64))

    @outside_autocast
    def _mix(self, matrix: Tensor, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != matrix.shape[1]:
            raise ValueError(
                f"the channels are mixed by a matrix of shape {tuple(self.matrix.shape)}, got a tensor of shape "
                f"{tuple(x.shape)} where (B, {matrix.shape[1]}, *) was expected"
            )
        return torch.einsum("mc,bc...->bm...", matrix.to(x), x)

    def apply(self, x: Tensor) -> Tensor:
        """The mixtures (B, m, *) of x (B, C, *)."""
        return self._mix(self.matrix, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The transposed matrix."""
        return self._mix(self.matrix.T, y)

    def solve(self, v: Tensor, shift: Tensor | float) -> Tensor:
        """In closed form, in the eigenvectors of M M^T."""
        values = self._values.to(v).reshape(-1, *[1] * (v.ndim - 2))
        return self._mix(self._basis, self._mix(self._basis.T, v) / (values + shift))

    def __repr__(self) -> str:
        return f"ChannelMix({self.matrix.tolist()})"


class BlockAverage(LinearOperator):
    """Super-resolution: the mean of each block of pixels.

    Args:
        factor: side of a block.
        dims: how many of the last dimensions it has.

    Raises:
        ValueError: for options out of range; at a call, for sizes that the factor does not divide.

    Examples:
        >>> BlockAverage(2, dims=1).apply(torch.tensor([[1.0, 3.0, 5.0, 7.0]]))
        tensor([[2., 6.]])
    """

    full_rank = True

    def __init__(self, factor: int, dims: int = 2) -> None:
        self.factor = check_integer("factor", factor)
        self.dims = check_integer("dims", dims)

    def apply(self, x: Tensor) -> Tensor:
        """The blocks' means."""
        sizes = x.shape[1:][-self.dims :]
        if len(sizes) < self.dims or any(n % self.factor for n in sizes):
            raise ValueError(
                f"blocks of side {self.factor} in the last {self.dims} dimensions do not tile x of shape "
                f"{tuple(x.shape)}"
            )
        for d in range(x.ndim - self.dims, x.ndim):
            x = x.reshape(*x.shape[:d], -1, self.factor, *x.shape[d + 1 :]).mean(d + 1)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Each mean in all of its block, over the number of pixels there."""
        for d in range(y.ndim - self.dims, y.ndim):
            y = y.repeat_interleave(self.factor, d)
        return y / self.factor**self.dims

    def solve(self, v: Tensor, shift: Tensor | float) -> Tensor:
        """In closed form: A A^T is a multiple of the identity."""
        return v / (self.factor**-self.dims + shift)

    def __repr__(self) -> str:
        return f"BlockAverage({self.factor}, dims={self.dims})"


class Blur(LinearOperator):
    r"""Circular convolution with a kernel, diagonal in Fourier space.

    Args:
        kernel: real, over as many of the last dimensions as it has; its centre is the entry `size // 2` of each. A
            Gaussian one: `Blur.gaussian(1.5, size=7)`.

    Raises:
        ValueError: for a kernel that is not finite or empty; at a call, for x smaller than the kernel.

    Examples:
        >>> Blur(torch.tensor([0.25, 0.5, 0.25])).apply(torch.tensor([[0.0, 4.0, 0.0, 0.0]]))
        tensor([[1., 2., 1., 0.]])
    """

    def __init__(self, kernel: Tensor) -> None:
        require_floating("kernel", kernel, "of at least one dimension")
        if not kernel.numel() or not bool(torch.isfinite(kernel).all()):
            raise ValueError(f"kernel must be finite and not empty, got {kernel.tolist()}")
        self.kernel = kernel

    @staticmethod
    def gaussian(std: float, size: int, dims: int = 2) -> Blur:
        """A Gaussian kernel of that standard deviation in pixels, of sum 1."""
        std = number("std", std, above=0)
        size = check_integer("size", size)
        dims = check_integer("dims", dims)
        offsets = torch.arange(size, dtype=torch.float64) - size // 2
        line = torch.exp(-0.5 * (offsets / std) ** 2)
        kernel = line / line.sum()
        for _ in range(dims - 1):
            kernel = kernel[..., None] * line / line.sum()
        return Blur(kernel)

    def _response(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The kernel's Fourier transform over the last dimensions of x, and those dimensions."""
        extent = self.kernel.shape
        sizes = x.shape[1:][-len(extent) :]
        if len(sizes) < len(extent) or any(n < k for n, k in zip(sizes, extent, strict=True)):
            raise ValueError(
                f"the kernel of shape {tuple(extent)} is larger than the last dimensions of x, "
                f"of shape {tuple(x.shape)}"
            )

        dims = tuple(range(-len(extent), 0))
        padded = torch.zeros(sizes, dtype=torch.float64, device=x.device)
        padded[tuple(slice(k) for k in extent)] = self.kernel.to(padded)
        centred = padded.roll([-(k // 2) for k in extent], dims)
        response = torch.fft.fftn(centred, dim=dims)
        return response.to(torch.promote_types(x.dtype, torch.complex64)), dims

    def _multiply(self, x: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
        response, dims = self._response(x)
        spectrum = torch.fft.fftn(x, dim=dims)
        return torch.fft.ifftn(factor(response) * spectrum, dim=dims).real

    def apply(self, x: Tensor) -> Tensor:
        """The convolution."""
        return self._multiply(x, lambda h: h)

    def adjoint(self, y: Tensor) -> Tensor:
        """The correlation with the kernel."""
        return self._multiply(y, lambda h: h.conj())

    def solve(self, v: Tensor, shift: Tensor | float) -> Tensor:
        """In closed form, in Fourier space."""
        return self._multiply(v, lambda h: 1 / (h.abs() ** 2 + shift))

    def __repr__(self) -> str:
        return f"Blur(kernel of shape {tuple(self.kernel.shape)})"


class _Function(Operator):
    """An operator from a function of samples of one shape."""

    _adjoint: Callable[[Tensor], Tensor] | None = None

    def __init__(self, apply: Callable[[Tensor], Tensor], shape: Sequence[int]) -> None:
        require_function("apply", apply, "from x (B, *) to measurements (B, *)", 1)
        self._apply = apply
        self.shape = sizes("shape", shape)

    def apply(self, x: Tensor) -> Tensor:
        """The function's value."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"the operator takes samples of shape {self.shape}, got x of shape {tuple(x.shape)}")
        y = self._apply(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"the operator must return a tensor, got {type(y).__name__}")
        _require_real("what the operator returned", y)
        if y.ndim == 0 or len(y) != len(x):
            raise ValueError(f"the operator returned shape {tuple(y.shape)} for x of shape {tuple(x.shape)}")
        return y

    def _held(self) -> dict[str, object]:
        return {"apply": self._apply, "adjoint": self._adjoint}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({function_name(self._apply)}, shape={self.shape})"


class NonlinearMap(_Function):
    """A measurement by any differentiable function: phase retrieval, saturation, a network.

    `DPS` takes it, which differentiates it where it stands. What the other methods solve has no meaning for it.

    Args:
        apply: from x (B, *) to (B, *), a sample by itself; differentiable in torch.
        shape: of one sample of x.

    Raises:
        TypeError: for an `apply` that is not a function or does not return a tensor of real numbers.
        ValueError: for an invalid shape; at a call, for x, or what the function returns, of another shape, and a
            function without gradient.

    Examples:
        >>> magnitude = NonlinearMap(lambda x: torch.fft.fft(x).abs(), shape=(2,))
        >>> magnitude.apply(torch.tensor([[1.0, -3.0]]))
        tensor([[2., 4.]])
    """

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """The product of v with the function's Jacobian at x."""
        return Linearised(self.apply, x).vjp(v)


class LinearMap(_Function, LinearOperator):
    """An operator from a linear function; its adjoint by autograd, if none is given.

    Linearity is checked once, on random numbers: at construction, or at the first call where the function does not take
    float32 or float64 on the CPU. An affine function is made linear by taking A(0) from it and from y.

    Args:
        apply: linear, from x (B, *) to (B, *), a sample by itself; differentiable in torch if no adjoint is given.
        shape: of one sample of x.
        adjoint: from y (B, *) to (B, *).
        iterations: steps of conjugate gradients where (A A^T + shift)^-1 is needed.
        full_rank: declares A A^T invertible, so that measurements without noise are allowed.

    Raises:
        TypeError: for an `apply` that is not a function or does not return a tensor of real numbers.
        ValueError: for a function that is not linear, and options out of range; at a call, for x, or what a function
            returns, of another shape.

    Examples:
        >>> difference = LinearMap(lambda x: x[:, 1:] - x[:, :-1], shape=(3,))
        >>> difference.adjoint(torch.tensor([[1.0, 10.0]]))
        tensor([[-1., -9., 10.]])
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        adjoint: Callable[[Tensor], Tensor] | None = None,
        iterations: int = 50,
        full_rank: bool = False,
    ) -> None:
        super().__init__(apply, shape)
        require_function("adjoint", adjoint, "from y (B, *) to x (B, *)", 1, optional=True)
        self._adjoint = adjoint
        self.iterations = check_integer("iterations", iterations)
        self.full_rank = flag("full_rank", full_rank)

        self._tried = False
        for dtype in (torch.float64, torch.float32):
            with suppress(RuntimeError):  # tensors of another dtype or device in the function: tried at its first call
                self._try(torch.empty(2, *self.shape, dtype=dtype, device="cpu"))
                break

    def _try(self, like: Tensor) -> None:
        """Raise ValueError unless the function is linear on random numbers like these."""
        apply = super().apply
        x, z = self._random_pair(like)
        Ax = apply(x).detach()
        Az = apply(z).detach()
        size = max(float(Ax.abs().max()), float(Az.abs().max())) if Ax.numel() else 0.0
        tolerance = max(LINEAR, 8 * torch.finfo(Ax.dtype).eps) * size

        zero = apply(0 * x).detach()
        self._require_equal("A(0) and 0", zero, 0 * zero, tolerance)
        combined = apply(2 * x - 3 * z).detach()
        self._require_equal("A(2x - 3z) and 2Ax - 3Az", combined, 2 * Ax - 3 * Az, tolerance)
        self._tried = True

    def _random_pair(self, like: Tensor) -> tuple[Tensor, Tensor]:
        n = len(like)
        stream = NoiseStream([(0, i) for i in range(2 * n)], "probe")
        x, z = stream.normal((2 * n, *self.shape), torch.float64).to(like).chunk(2)
        return x, z

    def _require_equal(self, values: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
        difference = (got - expected).abs().flatten()
        if not difference.numel() or bool((difference <= tolerance).all()):
            return

        i = int(difference.nan_to_num(math.inf).argmax())
        raise ValueError(
            f"the function {function_name(self._apply)!r} is not linear: {values} differ, "
            f"{got.flatten()[i].item():.6g} and {expected.flatten()[i].item():.6g}. Take A(0) from an affine one "
            f"and from y; NonlinearMap with DPS takes any differentiable function"
        )

    def apply(self, x: Tensor) -> Tensor:
        """The function's value."""
        if not self._tried and x.shape[1:] == self.shape:
            with torch.no_grad():
                self._try(x.detach())
        return super().apply(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The given adjoint, or the function's vector-Jacobian product."""
        if self._adjoint is None:
            at = torch.zeros(len(y), *self.shape, dtype=y.dtype, device=y.device)
            x = Linearised(self.apply, at).vjp(y)
        else:
            x = self._adjoint(y)
        if x.shape != (len(y), *self.shape):
            raise ValueError(
                f"the adjoint returned shape {tuple(x.shape)} for y of shape {tuple(y.shape)}, "
                f"expected {(len(y), *self.shape)}"
            )
        return x


@dataclass(frozen=True, eq=False)
class Measurement(Value):
    r"""Measurement $y = A(x_0) + \sigma_y n$ with standard normal $n$.

    Args:
        operator: A, linear but for `DPS`.
        y: the measurements, (B, *) with one per sample, or with B = 1 or without it if all samples have the same.
        std: $\sigma_y$; 0 where y is exact, which takes an operator of full rank.

    Raises:
        TypeError: unless the operator is an `Operator` and y a floating-point tensor.
        ValueError: for a negative std, std 0 with an operator of unknown rank, a y that is not finite where it was
            measured; at a call, if y does not have the shape of A x.

    Examples:
        >>> Measurement(Mask(torch.tensor([True, False])), torch.tensor([1.0, 0.0]), std=0.1)
        Measurement(Mask(1 of 2 observed), y=(2,), std=0.1)
    """

    _elsewhere = instead_of(("sigma", "sigma_y", "sigma_noise", "noise", "noise_std", "noise_level"), "std=")

    operator: Operator
    y: Tensor
    std: float = 0.0

    def __post_init__(self) -> None:
        operator = self.operator
        instance_of("operator", operator, Operator, "a LinearOperator, such as Mask or LinearMap, or a NonlinearMap")
        _require_real("y", self.y)
        if not is_dense(self.y) or not self.y.is_floating_point():
            raise TypeError(f"y must be a floating-point tensor, got {described(self.y)}")

        settle(self, std=number("std", self.std, least=0))
        if self.std == 0 and isinstance(operator, LinearOperator) and not operator.full_rank:
            raise ValueError(f"std=0 takes an operator of full rank, which {operator!r} is not known to be")

        y = operator.restrict(self.y)
        bad = ~torch.isfinite(y)
        if bool(bad.any()):
            raise ValueError(f"y has {int(bad.sum())} measured values that are not finite")
        settle(self, y=y)

    def linear(self) -> LinearOperator:
        """The operator, where it is linear.

        Raises:
            TypeError: where it is not.
        """
        if not isinstance(self.operator, LinearOperator):
            raise TypeError(
                f"a linear operator is needed, got {described(self.operator)}: DPS takes any differentiable one"
            )
        return self.operator

    @staticmethod
    def simulate(operator: Operator, x: Tensor, std: float = 0.0, *, seed: Seeds = None) -> Measurement:
        """The measurement of known data x (B, *), with noise from a seed of its own for each sample.

        Raises:
            TypeError: for anything but an `Operator`, and data that are no floating-point tensor.

        Examples:
            >>> Measurement.simulate(BlockAverage(2), torch.ones(4, 1, 8, 8), std=0.05, seed=0).y.shape
            torch.Size([4, 1, 4, 4])
        """
        instance_of("operator", operator, Operator, "a LinearOperator, such as Mask or LinearMap, or a NonlinearMap")
        require_floating("x", x)
        y = operator.apply(x)
        _require_real("what the operator returned", y)
        stream = NoiseStream(resolve_seeds(seed, None, len(y)), "measurement")
        n = stream.normal(tuple(y.shape), y.dtype, y.device)
        return Measurement(operator, y + std * n, std)

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A x for x (B, *), and y in its dtype, on its device.

        Raises:
            ValueError: if y does not have the shape of A x.
        """
        predicted = self.operator.apply(x)
        _require_real("what the operator returned", predicted)
        of_each = predicted.shape[1:]
        if self.y.shape not in (predicted.shape, of_each, (1, *of_each)):
            raise ValueError(
                f"y has shape {tuple(self.y.shape)}, but x of shape {tuple(x.shape)} is measured as "
                f"{tuple(predicted.shape)}"
            )
        return predicted, self.y.to(predicted)

    def of_samples(self, rows: Tensor, x: Tensor) -> Measurement:
        """The measurement of x (b, *), the samples of numbers `rows` (b,) alone.

        Raises:
            ValueError: for a sample that has none.

        Examples:
            >>> seen = Measurement(Mask(torch.tensor([True, False])), torch.rand(4, 2))
            >>> seen.of_samples(torch.tensor([3, 1]), torch.zeros(2, 2)).y.shape
            torch.Size([2, 2])
        """
        some = copy.copy(self)
        settle(some, operator=self.operator.of_samples(rows, x))
        if self.y.ndim == some.operator.apply(x).ndim and len(self.y) > 1:
            settle(some, y=_of_samples("y", self.y, rows))
        return some

    def residual(self, x: Tensor) -> Tensor:
        """y - A x for x (B, *)."""
        predicted, y = self.of(x)
        return y - predicted

    def consistent(self, x: Tensor) -> Tensor:
        r"""The nearest to x (B, *) that is measured as y exactly: $x + A^+(y - Ax)$.

        Raises:
            ValueError: for an operator whose rank is not known.
        """
        return x + self.linear().pseudo_inverse(self.residual(x))

    def __repr__(self) -> str:
        return f"Measurement({self.operator!r}, y={tuple(self.y.shape)}, std={self.std:g})"


def _require_real(what: str, y: object) -> None:
    """Raise TypeError for complex numbers."""
    if isinstance(y, Tensor) and y.is_complex():
        raise TypeError(
            f"{what} is complex, of {y.dtype}, and measurements are real numbers: take the real and imaginary parts, "
            f"torch.view_as_real(A(x)) for the operator, torch.view_as_real(y) for y"
        )


def _of_samples(name: str, values: Tensor, rows: Tensor) -> Tensor:
    """The rows (b, *) of values (B, *) of samples of these numbers (b,)."""
    last = int(rows.max()) if len(rows) else 0
    if len(values) <= last:
        raise ValueError(f"{name} has {len(values)} rows, and none for the sample of number {last}")
    return values[rows.to(values.device)]


def check_operator(operator: LinearOperator, shape: Sequence[int], *, seed: int = 0) -> tuple[str, ...]:
    r"""Check an operator against what it declares, in float64; raise at the first contradiction.

    $A(ax + by) = aAx + bAy$; $\langle Ax, y\rangle = \langle x, A^T y\rangle$; a sample's measurement is independent of
    the others; `solve` is the inverse of $AA^T + \text{shift}$; and for an operator of full rank $A A^+ y = y$.

    Args:
        operator: the operator.
        shape: of one sample.
        seed: of the tensors it is tried on.

    Returns:
        the checks that were made, in words.

    Raises:
        CheckError: with the two values that contradict one another.

    Examples:
        >>> len(check_operator(BlockAverage(2), (1, 4, 4)))
        5
    """
    instance_of("operator", operator, LinearOperator, "a LinearOperator, such as Mask or LinearMap")
    shape = sizes("shape", shape)
    stream = NoiseStream(resolve_seeds(seed, None, 4), "probe")
    draw = partial(stream.normal, dtype=torch.float64)

    x = draw((4, *shape))
    z = draw((4, *shape))
    done = [_check_linear(operator, x, z), _check_one_by_one(operator, x, z)]

    y = operator.restrict(draw(tuple(operator.apply(x).shape)))
    done += [_check_adjoint(operator, x, y), _check_solve(operator, y)]
    if operator.full_rank:
        done.append(_check_pseudo_inverse(operator, y))
    return tuple(done)


def _check_linear(operator: LinearOperator, x: Tensor, z: Tensor) -> str:
    combined = operator.apply(2 * x - 3 * z)
    _require_agreement("A(2x - 3z) and 2Ax - 3Az", combined, 2 * operator.apply(x) - 3 * operator.apply(z))
    return "A is linear"


def _check_one_by_one(operator: LinearOperator, x: Tensor, z: Tensor) -> str:
    among_others = operator.apply(torch.cat([x[:1], z[1:]]))
    _require_agreement("a sample among others", among_others[:1], operator.apply(x)[:1])
    return "samples are measured one by one"


def _check_adjoint(operator: LinearOperator, x: Tensor, y: Tensor) -> str:
    _require_agreement("<Ax, y> and <x, A^T y>", dot(operator.apply(x), y), dot(x, operator.adjoint(y)))
    return "the adjoint is that of A"


def _check_solve(operator: LinearOperator, y: Tensor, shift: float = 0.5) -> str:
    u = operator.solve(y, shift)
    product = operator.apply(operator.adjoint(u)) + shift * u
    _require_agreement("(A A^T + shift) of the solution and v", product, y)
    return "solve is the inverse of A A^T + shift"


def _check_pseudo_inverse(operator: LinearOperator, y: Tensor) -> str:
    _require_agreement("A A^+ y and y", operator.apply(operator.pseudo_inverse(y)), y)
    return "A of the pseudo-inverse of y is y"


def _require_agreement(values: str, got: Tensor, expected: Tensor) -> None:
    if got.shape != expected.shape:
        raise CheckError(f"{values}: shapes {tuple(got.shape)} and {tuple(expected.shape)}")

    difference = (got - expected).abs()
    if not float(difference.max()) <= AGREEMENT * float(expected.abs().max()):
        i = int(difference.flatten().argmax())
        raise CheckError(f"{values}: {got.flatten()[i].item()} and {expected.flatten()[i].item()}")
