"""Base class of forward processes: drift, diffusion, prior and time span."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from sgm_sde._utils.checks import (
    described,
    float_dtype,
    real,
    require_floating,
    settle,
    shape_of_samples,
    usable_device,
)
from sgm_sde._utils.elsewhere import OF_PROCESSES
from sgm_sde._utils.shapes import Time, cpu_float64, expand, flat
from sgm_sde.engine.noise import NoiseStream, resolve_seeds
from sgm_sde.engine.reverse import ReverseSDE, ScoreFn, reverse_drift
from sgm_sde.engine.times import same_time
from sgm_sde.identity import Value, is_function, measured, portable

if TYPE_CHECKING:
    from sgm_sde.engine.node import Coefficient
    from sgm_sde.engine.noise import Generators, Seeds

MarginalKind = Literal["scalar", "matrix", "unknown"]
COEFFICIENTS = 1e-9  # within which the coefficients of a process agree, of their largest


class CheckError(AssertionError):
    """A contradiction between what a process or an operator declares and what it computes."""


def require_sde(sde: object) -> None:
    """Raise TypeError unless `sde` is a forward process."""
    if not isinstance(sde, SDE):
        raise TypeError(f"sde must be a forward process such as VPSDE(), got {described(sde)}")
    for name in ("T", "eps"):
        if not hasattr(sde, name):
            raise TypeError(f"{type(sde).__name__} has no {name}: give T, its end, and eps, where sampling ends")


def in_words_of_both(first: SDE, second: SDE) -> str:
    """Two processes that are not one, for an error message, and what to do where they differ as objects alone."""
    if portable(first.spec()) != portable(second.spec()):
        return f"{first!r} and {second!r}: give the one that the network was trained on to both"
    return (
        f"two processes {type(first).__name__} that were made apart, of functions that are equal and not the same: "
        f"make the process once, and give that object to both"
    )


class Missing(TypeError):
    """A formula asks for a coefficient that the process does not have; whoever knows the formula names it."""

    def __init__(self, needs: str, what: str = "this") -> None:
        super().__init__(needs, what)
        self.needs = needs
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} needs {self.needs}"

    def of(self, what: str) -> Missing:
        """The same error of a formula that is known by a name."""
        return Missing(self.needs, what)


class ProcessNode:
    """A time of a process of which nothing but drift and diffusion is known; the base of nodes that know more."""

    advice = (
        "it declares a drift f(x, t) and a diffusion g(t) only. Use a solver of the reverse drift (EulerMaruyama, "
        "RungeKutta), or derive the process from LinearSDE."
    )

    def __init__(self, sde: SDE, t: float, g: Coefficient) -> None:
        self.sde = sde
        self.t = t
        self._g = g

    @property
    def g(self) -> Coefficient:
        """Diffusion coefficient."""
        return self._g

    def convert(
        self, source: str, target: str, eta: float = 0.0, sigma_data: float = 1.0
    ) -> tuple[Coefficient, Coefficient]:
        """Coefficients (c_x, c_r) with target prediction = c_x x + c_r r: here for a network's own prediction only."""
        if source != target:
            self.sde.refuse_conversion(target)
        return 0.0, 1.0

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        self.refuse(name)

    def refuse(self, name: str) -> NoReturn:
        """Raise `Missing`."""
        raise Missing(f"{name}(t), which {type(self.sde).__name__} does not have: {self.advice}")


class SDE(Value, ABC):
    r"""A forward process $dx = f(x, t)\,dt + g(t)\,dw$ from data at $t = 0$ to noise at $t = T$.

    Derive from this class for a drift of your own, nonlinear ones too: give `f`, `g`, the times `T` and `eps`,
    and `prior_std` (or `prior_transform` and `prior_log_prob` for a prior that is not $N(0, s^2 I)$). Solvers
    of the reverse drift then work; those that need a marginal kernel ask for a `LinearSDE`.

    Attributes:
        T: end of the forward time, where sampling starts.
        eps: time at which sampling ends by default.
        marginal_kind: kind of the marginal of x_t given x_0: "scalar" for numbers alpha(t) and sigma(t) (`LinearSDE`),
            "matrix" for matrices over blocks of the state (`MatrixSDE`), "unknown" for any other drift.
        default_grid: name of the grid rule that goes with the process' time.
        time_is_noise_level: whether t is sigma / alpha, so that t = 0 is clean data, where no network is trained.

    Raises:
        ValueError: unless 0 <= eps < T.

    Source: Song et al., 2021, arXiv:2011.13456.

    Examples:
        >>> class DoubleWell(SDE):
        ...     T, eps, prior_std = 1.0, 1e-3, 1.0
        ...     def f(self, x, t): return x - x**3
        ...     def g(self, t): return torch.ones_like(t)
        >>> DoubleWell().f(torch.tensor([2.0]), torch.tensor(0.5))
        tensor([-6.])
    """

    T: float
    eps: float
    _elsewhere = OF_PROCESSES

    marginal_kind: ClassVar[MarginalKind] = "unknown"
    default_grid: ClassVar[str] = "uniform"
    time_is_noise_level: ClassVar[bool] = False

    def __post_init__(self) -> None:
        eps = real("eps", self.eps)
        T = real("T", self.T)
        fields = {"eps": eps, "T": T}
        settle(self, **{name: value for name, value in fields.items() if name in vars(self)})
        if not (math.isfinite(T) and math.isfinite(eps) and 0 <= eps < T):
            raise ValueError(f"need 0 <= eps < T, got eps={self.eps} and T={self.T}")

    @abstractmethod
    def f(self, x: Tensor, t: Time) -> Tensor:
        """Drift at state `x` (B, *) and time `t`, () or (B,); returns (B, *)."""

    @abstractmethod
    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient at time `t`; returns the shape of `t`."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the prior at `T`."""

    @property
    def likelihood_eps(self) -> float:
        """Default end of likelihoods: 1e-5 as in the literature, or `eps` if that is smaller."""
        return min(self.eps, 1e-5)

    @property
    def table_times(self) -> tuple[float, ...] | None:
        """Times of the table that networks on the process are trained at, increasing; None where time is continuous."""
        return None

    def diffusion(self, v: Tensor, t: Time) -> Tensor:
        """g(t)^2 times v (B, *): what the reverse process does to a score."""
        return expand(self.g(t) ** 2, v) * v

    def convert(self, source: str, target: str, x: Tensor, t: Tensor, out: Tensor, eta: float = 0.0) -> Tensor:
        """A prediction at x (B, *) and t (B,) from a network's output there: any for a process with a marginal.

        Args:
            source: what the network predicts; see `sgm_sde.processes.predictions`.
            target: the prediction wanted; without a marginal only the drift of the reverse process, from the score.
            x: states (B, *).
            t: times (B,).
            out: the network's output (B, *), in the dtype of x.
            eta: stochasticity of the reverse process, for `"drift"`.

        Raises:
            TypeError: for a prediction that the process does not determine.
        """
        if source == target:
            return out
        if (source, target) != ("score", "drift"):
            self.refuse_conversion(target)
        return reverse_drift(self, x, t.to(x), out, eta)

    def evaluated(self, source: str, target: str) -> str:
        """The prediction that stages of a run hold where a solver integrates `target` and a network predicts `source`.

        With a marginal the network's own: converting it is a part of the table's coefficients. Else the target.
        """
        if target != source and (source, target) != ("score", "drift"):
            self.refuse_conversion(target)
        return target

    def refuse_conversion(self, target: str) -> NoReturn:
        """Raise TypeError: `target` takes a marginal, which this process does not have.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"the {target} cannot be computed on {self!r}: it needs a process with alpha(t) and sigma(t)")

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio.

        Raises:
            TypeError: for a process without a marginal.
        """
        self.refuse_conversion("log-SNR")

    def time(self, log_snr: Time) -> Tensor:
        """The time at which the log-SNR is the given one.

        Raises:
            TypeError: for a process without a marginal.
        """
        self.refuse_conversion("log-SNR")

    def prior_transform(self, z: Tensor, t: float | None = None) -> Tensor:
        """Turn standard normal noise (B, *) into prior samples (B, *); at an earlier time `t`, where it can.

        Raises:
            ValueError: for another time than T, where there is no marginal.
        """
        if t is not None and not same_time(t, self.T):
            raise ValueError(f"{self!r} has a prior at T={self.T} only, not at t={t}: start from x_T")
        return self.prior_std * z

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        t: float | None = None,
        seed: Seeds = None,
        generator: Generators = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw prior samples of shape (B, *), row i from its own seed.

        Args:
            shape: (B, *).
            t: noise of the marginal at an earlier time, N(0, sigma(t)^2), for linear processes.
            seed: one int, or one per sample; without seed and generator, fresh entropy.
            generator: one `torch.Generator`, or one per sample, from which the seeds are drawn.
            dtype: of the result; torch's default if not given.
            device: of the result.

        Raises:
            ValueError: for a shape, time, dtype or device that cannot be, and seeds that are not one per sample.

        Examples:
            >>> from sgm_sde import VESDE
            >>> a = VESDE().prior_sample((4, 2), seed=0)
            >>> bool((a[:2] == VESDE().prior_sample((2, 2), seed=0)).all())
            True
        """
        shape = shape_of_samples("shape", shape)
        dtype = torch.get_default_dtype() if dtype is None else float_dtype("dtype", dtype)
        device = None if device is None else usable_device("device", device)
        seeds = resolve_seeds(seed, generator, shape[0])
        z = NoiseStream(seeds, "prior").normal(shape, dtype, device)
        return self.prior_transform(z, t)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the prior in nats per sample: (B, *) to (B,).

        Raises:
            TypeError: for x that is no floating-point tensor.
        """
        require_floating("x", x)
        square = flat(x / self.prior_std).square()
        log_density = -0.5 * square - 0.5 * math.log(2 * math.pi) - math.log(self.prior_std)
        return log_density.sum(1)

    def reverse(self, score_fn: ScoreFn, eta: float = 1.0) -> ReverseSDE:
        r"""The reverse process with stochasticity `eta`; see `ReverseSDE`."""
        return ReverseSDE(self, score_fn, eta)

    def _coefficients(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Functions of time that tell the process: the diffusion, of a drift that may be anything."""
        return [self.g]

    def _is_computed(self, part: object) -> bool:
        """True for a function: its values are in the coefficients."""
        return is_function(part)

    def _computed(self) -> dict[str, object]:
        """The coefficients at nine times."""
        t = cpu_float64(measuring_times(self, 9))
        values = [function(t).detach().reshape(-1).tolist() for function in self._coefficients()]
        return {"coefficients": measured(values, COEFFICIENTS)}

    def nodes(self, times: Sequence[float]) -> Sequence[ProcessNode]:
        """The host-side coefficients at each of the given times.

        Raises:
            ValueError: for a g(t) that is no tensor of the shape of t.
        """
        g = self.g(cpu_float64(times))
        if not isinstance(g, Tensor) or g.shape != (len(times),):
            raise ValueError(f"g(t) must return a tensor of the shape ({len(times)},) of t, got {described(g)}")
        return [ProcessNode(self, t, g_t) for t, g_t in zip(times, g.tolist(), strict=True)]


def measuring_times(sde: SDE, n: int) -> list[float]:
    """Times of a process at which it and its scores are measured: n of them, in equal ratios, from T down."""
    first = max(sde.eps, 1e-4 * sde.T)
    ratio = first / sde.T
    return [sde.T * ratio ** (k / (n - 1)) for k in range(n - 1)] + [first]
