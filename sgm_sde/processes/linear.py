"""Scalar linear processes, defined by two functions alpha(t) and sigma(t)."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from inspect import isfunction
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import annotate, described, require_function
from sgm_sde._utils.elsewhere import OF_PROCESSES, named_elsewhere
from sgm_sde._utils.shapes import Time, as_time, cpu_float64, expand
from sgm_sde.engine.times import at_ends, require_inside
from sgm_sde.processes.base import SDE, MarginalKind, ProcessNode
from sgm_sde.processes.predictions import convert

NO_SIGNAL = 1e-15  # alpha / sigma up to which alpha is the rounding of 0, as cos(pi/2) = 6e-17 is
CUTS = 64  # parts into which a section cuts its interval
# Functions of time, or of log-SNR, that a process defines.
OF_TIME = {"alpha", "sigma", "d_alpha", "d_sigma", "log_snr", "time", "rate", "g"}


class LinearNode(ProcessNode):
    """A time of a scalar linear process with its coefficients there, Python floats in double precision."""

    sde: LinearSDE

    advice = (
        "its kernel is made of numbers: t, alpha, sigma, d_alpha, d_sigma, lam, log_snr, rate, g and noise_level at a "
        "node. SSCS, GDDIM and their like are for matrices; see `solvers()`."
    )

    def __init__(
        self, sde: LinearSDE, t: float, alpha: float, sigma: float, d_alpha: float, d_sigma: float, log_snr: float
    ) -> None:
        self.sde = sde
        self.t = t

        has_signal = alpha > NO_SIGNAL * sigma
        self.alpha = alpha if has_signal else 0.0
        self.lam = log_snr / 2 if has_signal else -math.inf

        self.sigma = sigma
        self.d_alpha = d_alpha
        self.d_sigma = d_sigma

    def at_reduced_noise(self, noise_level: float) -> LinearNode:
        """A node of the same alpha and a smaller noise level: at no time of the process, but a step may end there.

        Raises:
            ZeroDivisionError: for a level that is not positive and finite, as where alpha or sigma vanishes.
        """
        if not 0 < noise_level < math.inf:
            raise ZeroDivisionError(f"a node of the noise level {noise_level} has no log-SNR")
        sigma = self.alpha * noise_level
        return LinearNode(self.sde, math.nan, self.alpha, sigma, math.nan, math.nan, -2 * math.log(noise_level))

    def convert(self, source: str, target: str, eta: float = 0.0, sigma_data: float = 1.0) -> tuple[float, float]:
        """Conversion between predictions at this node; see `sgm_sde.processes.predictions.convert`."""
        return convert(source, target, self, eta, sigma_data)

    @property
    def log_snr(self) -> float:
        """Log signal-to-noise ratio, twice `lam`."""
        return 2 * self.lam

    @property
    def rate(self) -> float:
        """f(x, t) / x = d log(alpha) / dt."""
        return self.d_alpha / self.alpha if self.alpha else -math.inf

    @property
    def g(self) -> float:
        """Diffusion, from g^2 = d(sigma^2)/dt - 2 f sigma^2."""
        return math.sqrt(max(2 * self.sigma * (self.d_sigma - self.rate * self.sigma), 0.0))

    @property
    def noise_level(self) -> float:
        """sigma / alpha: the noise level in the coordinates y = x / alpha."""
        return self.sigma / self.alpha if self.alpha else math.inf


class MarginalAt:
    """The coefficients of a linear process at times t, each computed once, and only if it is asked for.

    Most conversions need no derivatives, which cost more than the rest.

    Attributes:
        t: the times.
        alpha: signal scale.
        sigma: noise scale.
        d_alpha: time derivative of alpha.
        d_sigma: time derivative of sigma.
    """

    def __init__(self, sde: LinearSDE, t: Time) -> None:
        self.sde = sde
        self.t = as_time(t)

    alpha: cached_property[Tensor] = cached_property(lambda at: at.sde.alpha(at.t))
    sigma: cached_property[Tensor] = cached_property(lambda at: at.sde.sigma(at.t))
    d_alpha: cached_property[Tensor] = cached_property(lambda at: at.sde.d_alpha(at.t))
    d_sigma: cached_property[Tensor] = cached_property(lambda at: at.sde.d_sigma(at.t))


def converted(source: str, target: str, k: MarginalAt, x: Tensor, out: Tensor, eta: float = 0.0) -> Tensor:
    """A prediction at x (B, *) from a network's output there, with the coefficients at its times (B,)."""
    if source == target and target != "drift":
        return out
    coefficients = convert(source, target, k, eta)
    c_x, c_r = [expand(as_time(c).to(device=x.device), x) for c in coefficients]
    return c_x * x + c_r * out


def no_ladder(sde: object) -> TypeError:
    """The error for what has no smallest and largest noise level."""
    return TypeError(
        f"the label is looked up in the noise levels of DiscreteVESDE or VESDE, got {described(sde)}: "
        f"score_sde_ve_discrete(sde, levels=...)"
    )


def in_words_of_no_signal(T: float) -> str:
    """Words for the end of an error: how to mend a process that ends in pure noise."""
    return f": nothing is left of the data there, end earlier, as at T={0.999 * T:g}"


def _on_tensors(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method whose arguments, times or log-SNRs, become tensors, as torch's functions in its body need them."""

    @wraps(method)
    def call(sde: LinearSDE, *times: Time, **named: Time) -> Tensor:
        return method(sde, *map(as_time, times), **{name: as_time(t) for name, t in named.items()})

    return call


class LinearSDE(SDE):
    r"""A process with a drift linear in the state, $dx = f(t)\,x\,dt + g(t)\,dw$.

    $$ x_t \mid x_0 \sim N(\alpha_t x_0, \sigma_t^2 I), \qquad f = \frac{d\log\alpha}{dt}, \qquad
       g^2 = \frac{d\sigma^2}{dt} - 2 f \sigma^2, \qquad \text{log-SNR} = 2\log(\alpha/\sigma) $$

    A process of your own derives from this class and gives `alpha` and `sigma` on tensors of times; derivatives
    come from autograd and `time` from bisection unless you give closed forms. Run
    `sgm_sde.testing.check_sde` on it.

    Source: Song et al., 2021, arXiv:2011.13456; Kingma et al., 2021, arXiv:2107.00630 (log-SNR).

    Examples:
        >>> sde = LinearSDE.from_schedule(lambda t: 1 - t, lambda t: t, T=0.99, eps=1e-2)
        >>> t = torch.tensor([0.25, 0.5], dtype=torch.float64)
        >>> sde.f(torch.ones(2, 3, dtype=torch.float64), t)[:, 0]
        tensor([-1.3333, -2.0000], dtype=torch.float64)
        >>> bool(torch.allclose(sde.time(sde.log_snr(t)), t))
        True
    """

    marginal_kind: ClassVar[MarginalKind] = "scalar"
    keeps_float32: ClassVar[bool] = False  # whether time, alpha and sigma of noise levels in float32 are as accurate

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass, whose functions of time get tensors, and are called with numbers as well.

        Raises:
            TypeError: for an attribute of another kind by the name of such a function.
        """
        super().__init_subclass__(**kwargs)
        for name in OF_TIME & vars(cls).keys():
            own = vars(cls)[name]
            if isfunction(own):
                setattr(cls, name, _on_tensors(own))
            elif not hasattr(own, "__get__"):
                raise TypeError(f"{cls.__name__}.{name} is {own!r}, and {name} a function of time: call it otherwise")

    @staticmethod
    @named_elsewhere(OF_PROCESSES)
    def from_schedule(
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        *,
        T: float = 1.0,
        eps: float = 1e-3,
    ) -> LinearSDE:
        """A process from any schedule: `alpha(t)`, `sigma(t)` differentiable torch functions of a tensor of times.

        Args:
            alpha: signal scale, positive and with alpha / sigma decreasing in t.
            sigma: noise scale, positive on [eps, T].
            T: end of the forward time.
            eps: default end of sampling.

        Raises:
            ValueError: if the functions are not finite, positive and of decreasing signal-to-noise ratio on
                a grid of [eps, T]; the message gives the time.
            TypeError: for functions that autograd does not see through, as NumPy's.
        """
        return ScheduleSDE(alpha, sigma, T, eps)

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Signal scale; returns the shape of `t`."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Noise scale; returns the shape of `t`."""

    def d_alpha(self, t: Time) -> Tensor:
        """Time derivative of `alpha`."""
        return _derivative(self.alpha, as_time(t))

    def d_sigma(self, t: Time) -> Tensor:
        """Time derivative of `sigma`."""
        return _derivative(self.sigma, as_time(t))

    def log_snr(self, t: Time) -> Tensor:
        """Log signal-to-noise ratio 2 log(alpha / sigma); decreases with t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time(self, log_snr: Time) -> Tensor:
        """The time at which the log-SNR is the given one: inverse of `log_snr`.

        NaN outside the range of log-SNR on [0, T] for schedules without a closed form.
        """
        return invert_log_snr(self, as_time(log_snr))

    def time_of_noise_level(self, noise_level: Tensor) -> Tensor:
        """The time at which sigma / alpha is the given one."""
        return self.time(-2 * noise_level.log())

    def rate(self, t: Time) -> Tensor:
        """The linear drift's coefficient f(x, t) / x = d log(alpha) / dt."""
        return self.d_alpha(t) / self.alpha(t)

    def f(self, x: Tensor, t: Time) -> Tensor:
        """Drift at state `x` (B, *) and time `t`, () or (B,); returns (B, *)."""
        return expand(self.rate(as_time(t)), x) * x

    def g(self, t: Time) -> Tensor:
        """Diffusion coefficient at time `t`; returns the shape of `t`."""
        sigma = self.sigma(t)
        return (2 * sigma * (self.d_sigma(t) - self.rate(t) * sigma)).sqrt()

    def values(self, t: Time) -> MarginalAt:
        """alpha, sigma and their time derivatives at `t`, each of its shape, computed when they are asked for."""
        return MarginalAt(self, t)

    def at_noise_level(self, noise_level: Tensor) -> MarginalAt:
        """The same where sigma / alpha is the given one."""
        return self.values(self.time_of_noise_level(noise_level))

    def ladder(self, levels: int | None = None) -> Tensor:
        """Noise levels of NCSN's ladder (levels,), the largest first, in float64.

        Args:
            levels: how many, 1000 if not given, for a process without a ladder of its own.

        Raises:
            TypeError: for a process without a smallest and a largest level.
            ValueError: for `levels` of a process that has its own.
        """
        raise no_ladder(self)

    def _coefficients(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Scale and standard deviation of the marginal."""
        return [self.alpha, self.sigma]

    def convert(self, source: str, target: str, x: Tensor, t: Tensor, out: Tensor, eta: float = 0.0) -> Tensor:
        """A prediction at x (B, *) and t (B,) from a network's output there; see `SDE.convert`."""
        return converted(source, target, self.values(t), x, out, eta)

    def evaluated(self, source: str, target: str) -> str:
        """The network's own prediction: what it is converted to is a part of the table's coefficients."""
        return source

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t given x_0.

        Returns:
            mean (B, *), and std of a shape that multiplies it: () or (B, 1, ..., 1).

        Raises:
            ValueError: for times outside [0, T], where they are on the CPU.
        """
        t = as_time(t)
        require_inside(self, t)
        return expand(self.alpha(t), x0) * x0, expand(self.sigma(t), x0)

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        r"""Scale and standard deviation of the kernel $x_t \mid x_s \sim N(a x_s, b^2 I)$ for $s \le t$.

        $a = \alpha_t/\alpha_s$ and $b^2 = \sigma_t^2 - a^2\sigma_s^2$, computed without cancellation as
        $-\sigma_t^2\,\mathrm{expm1}(\text{log-SNR}_t - \text{log-SNR}_s)$.

        Raises:
            ValueError: if `s` is after `t` anywhere.
        """
        s, t = in_order(s, t)
        scale = self.alpha(t) / self.alpha(s)
        change = self.log_snr(t) - self.log_snr(s)
        std = self.sigma(t) * (-torch.expm1(change)).sqrt()
        return scale, std

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, sigma(T)^2 I)."""
        return float(self.sigma(self.T))

    def prior_transform(self, z: Tensor, t: float | None = None) -> Tensor:
        """Turn standard normal noise (B, *) into samples of N(0, sigma(t)^2 I), t = T if not given."""
        end = self.T if t is None else at_ends(self, t)
        return self.nodes((end,))[0].sigma * z

    @cached(maxsize=64)
    def nodes(self, times: Sequence[float]) -> Sequence[LinearNode]:
        """The host-side coefficients at each of the given times."""
        t = cpu_float64(times)
        columns = (f(t).tolist() for f in (self.alpha, self.sigma, self.d_alpha, self.d_sigma, self.log_snr))
        return [LinearNode(self, *row) for row in zip(times, *columns, strict=True)]


BY_NUMPY = r"numpy\(\) on Tensor that requires grad|cannot be converted to Scalar|only one element tensors"


@dataclass(frozen=True)
class ScheduleSDE(LinearSDE):
    """A linear process from two functions of time; made by `LinearSDE.from_schedule`."""

    alpha_fn: Callable[[Tensor], Tensor]
    sigma_fn: Callable[[Tensor], Tensor]
    T: float = 1.0
    eps: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_function("alpha", self.alpha_fn, "of t", 1)
        require_function("sigma", self.sigma_fn, "of t", 1)

        t = torch.linspace(self.eps, self.T, 257, dtype=torch.float64, device="cpu")
        alpha = _by_autograd("alpha", self.alpha_fn, t)
        sigma = _by_autograd("sigma", self.sigma_fn, t)

        self._require_positive("alpha", t, self.alpha(t))
        self._require_positive("sigma", t, self.sigma(t))
        _require_slope("alpha", alpha)
        _require_slope("sigma", sigma)

        rising = self.log_snr(t).diff() >= 0
        if rising.any():
            raise ValueError(f"alpha(t) / sigma(t) must decrease with t, it does not at t={t[1:][rising][0]:.6g}")

    def _require_positive(self, name: str, t: Tensor, value: Tensor) -> None:
        bad = ~(torch.isfinite(value) & (value > 0))
        if bad.any():
            first = t[bad][0].item()
            gone = name == "alpha" and first == self.T and value[-1] == 0
            words = in_words_of_no_signal(self.T) if gone else ""
            raise ValueError(
                f"{name}(t) must be finite and positive on [eps, T] = [{self.eps}, {self.T}], "
                f"got {value[bad][0].item()} at t={first:.6g}{words}"
            )

    @property
    def likelihood_eps(self) -> float:
        """`eps`: the schedule need not say anything below."""
        return self.eps

    def alpha(self, t: Time) -> Tensor:
        """Signal scale; returns the shape of `t`."""
        return self._evaluate(self.alpha_fn, "alpha", as_time(t))

    def sigma(self, t: Time) -> Tensor:
        """Noise scale; returns the shape of `t`."""
        return self._evaluate(self.sigma_fn, "sigma", as_time(t))

    @staticmethod
    def _evaluate(fn: Callable[[Tensor], Tensor], name: str, t: Tensor) -> Tensor:
        value = fn(t)
        if not isinstance(value, Tensor) or value.shape not in (t.shape, torch.Size()):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}(t) must return a tensor of the shape {tuple(t.shape)} of t, got {shape}")
        return value.expand(t.shape)


@outside_inference_mode
def _by_autograd(name: str, fn: Callable[[Tensor], Tensor], t: Tensor) -> object:
    """Values of a schedule at times (n,) that ask for a derivative, which NumPy's functions refuse."""
    with torch.enable_grad():
        try:
            value = fn(t.detach().requires_grad_())
        except Exception as error:
            if re.search(BY_NUMPY, str(error)):
                raise _without_derivative(name) from None
            annotate(error, f"{name} was called with a tensor of times of shape {tuple(t.shape)}")
            raise
    if isinstance(value, np.ndarray):
        raise _without_derivative(name)
    return value


def _require_slope(name: str, value: object) -> None:
    """Raise TypeError for values of a schedule that change with time and have no derivative."""
    constant = not isinstance(value, Tensor) or value.requires_grad or value.ndim == 0
    if isinstance(value, Tensor) and not constant and bool((value != value[0]).any()):
        raise _without_derivative(name)


def _without_derivative(name: str) -> TypeError:
    """The error for a schedule that torch cannot take the derivative of."""
    return TypeError(
        f"{name}(t) must be made of torch's functions, as torch.cos and not np.cos or math.cos: the drift is its "
        f"derivative by autograd"
    )


class _LogSNR(Protocol):
    """A process whose log-SNR decreases with time."""

    T: float

    def log_snr(self, t: Time) -> Tensor: ...


def invert_log_snr(sde: _LogSNR, target: Tensor) -> Tensor:
    """The times at which `sde.log_snr` takes the given values, by section; NaN outside of its range on [0, T]."""
    low = torch.zeros_like(target)
    high = torch.full_like(target, sde.T)
    outside = (target > sde.log_snr(low)) | (target < sde.log_snr(high))

    # 64^-20 = 2^-120 of [0, T] is left in float64, which keeps the relative precision of very small times.
    rounds = 20 if target.dtype == torch.float64 else 10
    fractions = torch.arange(CUTS + 1, dtype=target.dtype, device=target.device) / CUTS
    for _ in range(rounds):
        edges = torch.lerp(low[..., None], high[..., None], fractions)
        inner = edges[..., 1:-1]
        k = (sde.log_snr(inner) > target[..., None]).sum(-1, keepdim=True)
        low = edges.gather(-1, k)[..., 0]
        high = edges.gather(-1, k + 1)[..., 0]
    return torch.where(outside, torch.nan, (low + high) / 2)


@outside_inference_mode
def _derivative(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    keep = torch.is_grad_enabled() and t.requires_grad
    with torch.enable_grad():
        t = t if keep else t.detach().requires_grad_()
        value = fn(t)
        if not value.requires_grad:  # a constant schedule, such as alpha = 1
            return torch.zeros_like(t)
        (slope,) = torch.autograd.grad(value.sum(), t, create_graph=keep)
    return slope


def in_order(s: Time, t: Time) -> tuple[Tensor, Tensor]:
    """The ends of a transition from s to t as tensors.

    Raises:
        ValueError: unless 0 <= s <= t, and for shapes that do not go together.
    """
    s = as_time(s)
    t = as_time(t)
    if s.ndim and t.ndim and s.shape != t.shape:
        raise ValueError(f"s and t must have one shape, or one of them none, got {tuple(s.shape)} and {tuple(t.shape)}")
    if not (s.is_meta or t.is_meta) and bool(((s > t) | (s < 0)).any()):
        raise ValueError(f"a transition runs forward in time: need 0 <= s <= t, got s={s.tolist()} and t={t.tolist()}")
    return s, t
