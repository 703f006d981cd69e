"""Time grids as values: decreasing times from noise to data, and the rules that place them.

Examples:
    >>> import sgm_sde as sg
    >>> sg.grids.Uniform()(sg.VPSDE(), 4, t_end=0.2)
    Grid(1, 0.8, 0.6, 0.4, 0.2)
    >>> sg.grids.Karras(rho=7.0)(sg.EDMSDE(), 3).steps
    3
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import (
    FAR,
    described,
    flag,
    has_numbers,
    instance_of,
    levels_of,
    moment,
    moments,
    number,
    reals,
    require_values,
    settle,
    table_size,
    unknown,
)
from sgm_sde._utils.elsewhere import OF_PLACES, OF_TIMES
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.coordinates import noise_level
from sgm_sde.engine.times import CLOSEST, ROUNDING, at_ends, in_words_of_table, same_time
from sgm_sde.identity import Value
from sgm_sde.processes.base import has_scalar_marginal, require_sde

if TYPE_CHECKING:
    from sgm_sde.processes import SDE

LAST_OF_FIRST = 0.75  # the largest share of its first level that the last of a grid has
FAR_ABOVE = 2.0  # times the level where the last call is wanted: beyond, data estimates still change at eps
STEPS_AN_ENTRY = 3  # of a table, from which on a grid is fine enough to follow a network between its entries
NEXT_TO_EPS = 1.02  # times the noise level at eps, where the last call is then
STANDING = 0.01  # of T, by which the time moves while log-SNR changes by one, below which it nearly stands still
LEVELS = 200  # on which that is looked for
PUREST = -20.0  # log-SNR where a process starts that has no bound, for a prior of unit scale
UNBOUNDED = -30.0  # log-SNR at T, below which it has no bound but that of rounding, and times no longer tell levels
HALVINGS = 55  # of an interval, down to rounding
MOST_ROWS = 100_000  # that a token waits


@dataclass(frozen=True)
class Grid(Value):
    """Strictly decreasing times, the first where sampling starts and the last where it ends.

    Neighbours that differ by at most eight units in the last place of float32 are merged, such as the common end of two
    pieces computed separately: no solver can use the step between them.

    Args:
        times: any sequence of numbers; a single time is a grid of no steps.

    Raises:
        TypeError: for what is no sequence.
        ValueError: if the times do not strictly decrease, or one is negative or not finite.

    Examples:
        >>> Grid([1.0, 0.5, 0.1]).steps
        2
    """

    _elsewhere = OF_TIMES

    times: tuple[float, ...]

    def __init__(self, times: Sequence[float] | Tensor) -> None:
        object.__setattr__(self, "times", _distinct("times", times))

    @staticmethod
    def of(given: Grid | Sequence[float], option: str = "grid") -> Grid:
        """The grid as it is, or that of times that are given as an option.

        Raises:
            TypeError, ValueError: as the class does, by the name of the option.

        Examples:
            >>> Grid.of([1.0, 2.0])
            Traceback (most recent call last):
            ...
            ValueError: grid must strictly decrease, got grid[0] = 1.0 followed by grid[1] = 2.0
        """
        return given if isinstance(given, Grid) else Grid(_distinct(option, given))

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.times) - 1

    def on(self, sde: SDE, *, denoised: bool = False) -> Grid:
        """The grid on a process: ends that are T or eps up to rounding become T and eps.

        With `denoised`, for a run that ends in a denoising call, a final 0 is left out on a process whose time is the
        noise level: that call takes its place.

        Raises:
            ValueError: if the grid starts beyond `sde.T`.

        Examples:
            >>> import sgm_sde as sg
            >>> sigmas = torch.tensor([14.6146, 3.0, 0.0292, 0.0])  # float32, as k-diffusion has them
            >>> Grid(sigmas).on(sg.EDMSDE(0.0292, 14.6146), denoised=True)
            Grid(14.6146, 3, 0.0292)
        """
        times = list(self.times)
        if denoised and len(times) > 2 and times[-1] == 0 and sde.time_is_noise_level:
            times.pop()
        times = [at_ends(sde, t) if i in (0, len(times) - 1) else t for i, t in enumerate(times)]
        if times[0] > sde.T:
            words = in_words_of_table(sde, times[0])
            raise ValueError(f"the grid starts at t={times[0]}, beyond T={sde.T}{words}")
        return self if tuple(times) == self.times else Grid(times)

    def __repr__(self) -> str:
        shown = [f"{t:.6g}" for t in self.times]
        if len(shown) > 9:
            shown = [*shown[:4], "...", *shown[-4:]]
        return f"Grid({', '.join(shown)})"


def _distinct(option: str, times: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The times of a grid, which are given as an option, without those that differ from the one before by rounding."""
    given = moments(option, times)
    if not given:
        raise ValueError(f"{option} must have at least one time, got none")
    for i, t in enumerate(given):
        if not (math.isfinite(t) and t >= 0):
            raise ValueError(f"{option} must be finite and not negative, got {option}[{i}] = {t}")

    distinct = [given[0]]
    last = len(given) - 1
    for i, (before, t) in enumerate(pairwise(given), start=1):
        same = t != before and same_time(t, distinct[-1], CLOSEST)
        if (t >= before and not same) or (same and i == last and len(distinct) == 1):
            raise ValueError(
                f"{option} must strictly decrease, got {option}[{i - 1}] = {before} followed by {option}[{i}] = {t}"
            )

        # Of times that differ by rounding one stays: the first, but for the grid's end.
        if same and i == last:
            distinct[-1] = t
        elif not same:
            distinct.append(t)
    return tuple(distinct)


class TokenGrid(Value):
    """Times for each token, frame or pixel, along common rows: none increases, and in every row some decrease.

    Where a token's time stands still it waits, as noise, as given data, or as what it has become; its steps are those
    of its column without the pauses. A grid is a value: equal to its copies, and not to be changed.

    Args:
        times: (n + 1, *), of the rank of states (B, *), with ones where times are shared: (n + 1, frames, 1, 1, 1) for
            videos (B, frames, channels, height, width).

    Raises:
        TypeError: for what is no tensor of floating-point numbers.
        ValueError: for fewer than two rows, times that increase, are negative or not finite, and rows in which none
            moves.

    Source: Chen et al., 2024, arXiv:2407.01392 (diffusion forcing).

    Examples:
        >>> TokenGrid(torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.5, 0.5]])).steps  # the second token waits for the first
        2
    """

    _shape: tuple[int, ...]
    _numbers: bytes

    def __init__(self, times: Tensor) -> None:
        require_values("times", times, "(n + 1, *)")
        if times.ndim < 2 or len(times) < 2:
            raise ValueError(f"times must have two rows or more, (n + 1, *), got the shape {tuple(times.shape)}")
        t = times.detach().to(device="cpu", dtype=torch.float64) + 0.0  # one zero, not two
        _check_tokens(t)
        settle(self, _shape=tuple(t.shape), _numbers=t.numpy().tobytes())

    @property
    def times(self) -> Tensor:
        """The times (n + 1, *), in float64 on the CPU: a copy."""
        return torch.frombuffer(bytearray(self._numbers), dtype=torch.float64).reshape(self._shape)

    @property
    def steps(self) -> int:
        """Number of rows after the first."""
        return self._shape[0] - 1

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"a TokenGrid is not to be changed: make another one, got {name}={value!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"a TokenGrid is not to be changed: {name} stays")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenGrid) and (self._shape, self._numbers) == (other._shape, other._numbers)

    def __hash__(self) -> int:
        return hash((self._shape, self._numbers))

    def _held(self) -> dict[str, object]:
        return {"times": self.times}

    @staticmethod
    def staggered(grid: Grid | Sequence[float], delays: Tensor | Sequence[int]) -> TokenGrid:
        """The same times for all, each token so many rows after the first: the pyramid of diffusion forcing.

        Args:
            grid: the times of one token.
            delays: rows that each token waits, in integers of the rank of a sample (*), with ones where they are
                shared. As large as the number of steps between neighbours, it is one token after the other.

        Examples:
            >>> TokenGrid.staggered([1.0, 0.5, 0.1], [0, 1]).times.T
            tensor([[1.0000, 0.5000, 0.1000, 0.1000],
                    [1.0000, 1.0000, 0.5000, 0.1000]], dtype=torch.float64)
        """
        times = torch.tensor(Grid.of(grid).times, dtype=torch.float64)
        if len(times) < 2:
            raise ValueError(f"a token moves along two times or more, got {times.tolist()}")

        late = _delays(delays)
        _require_motion(late, len(times) - 1)
        rows = torch.arange(len(times) + int(late.max())).reshape(-1, *[1] * late.ndim)
        return TokenGrid(times[(rows - late).clamp(0, len(times) - 1)])

    def __repr__(self) -> str:
        return f"TokenGrid({self.steps} rows of {self._shape[1:]})"


def _not_in_order(sde: SDE, ends: Sequence[tuple[str, float | None, float]]) -> ValueError:
    """The error for a start and an end, named, given and placed, that are not in this order within a process."""
    (_, _, start), _ = ends
    words = in_words_of_table(sde, start) if start > sde.T else ""
    return ValueError(f"need 0 <= t_end < t_start <= T = {sde.T}, got {_of_ends(ends)}{words}")


def _of_ends(ends: Iterable[tuple[str, float | None, float]]) -> str:
    """Words for ends of a grid: name, what was given, and where it is placed."""
    ends = list(ends)
    got = [f"{name}={asked}" for name, asked, _ in ends if asked is not None]
    own = [f"; {name} is {placed} if not given" for name, asked, placed in ends if asked is None]
    return f"{' and '.join(got) or 'neither'}{''.join(own)}"


def _check_tokens(t: Tensor) -> None:
    """Raise ValueError unless times (n + 1, *) are finite, none rises, and some token moves on in every row."""
    wrong = t[~(t.isfinite() & (t >= 0))]
    if len(wrong):
        raise ValueError(f"times must be finite and not negative, got {float(wrong[0])}")

    steps = t.diff(dim=0).flatten(1)
    rises = (steps > 0).any(1).tolist()
    if any(rises):
        m = rises.index(True)
        raise ValueError(f"times must not increase, and some do from row {m} to row {m + 1}")

    moves = (steps < 0).any(1).tolist()
    if not all(moves):
        raise ValueError(
            f"some token must move on in every row, and none does from row {moves.index(False)} to the next"
        )


def _delays(delays: object) -> Tensor:
    """Delays of tokens (*), of which the least is 0.

    Raises:
        ValueError: for anything but integers of which none is negative or too large.
    """
    if isinstance(delays, Tensor | list | tuple) and _whole(delays):
        late = torch.as_tensor(delays).cpu()
        if late.ndim and late.numel() and int(late.min()) >= 0 and int(late.max()) <= MOST_ROWS:
            return late - late.min()
    raise ValueError(f"delays must be integers from 0 to {MOST_ROWS}, one a token, got {described(delays)}")


def _require_motion(late: Tensor, steps: int) -> None:
    """Raise ValueError for delays between which no token moves."""
    for one, other in pairwise(sorted(set(late.flatten().tolist()))):
        if other - one > steps:
            raise ValueError(
                f"between a delay of {one} and the next, of {other}, no token would move: each moves for {steps} rows"
            )


def _whole(values: object) -> bool:
    """True for integers, in a tensor or nested lists of one depth."""
    if isinstance(values, Tensor):
        return values.dtype in (torch.int64, torch.int32, torch.int16, torch.int8) and has_numbers(values)
    if not isinstance(values, list | tuple):
        return isinstance(values, int) and not isinstance(values, bool) and abs(values) <= MOST_ROWS
    return all(map(_whole, values)) and len({_depths(value) for value in values}) < 2


def _depths(values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple):
        return ()
    return (len(values), *(_depths(values[0]) if values else ()))


class GridRule(Value, ABC):
    """A way to place `steps + 1` times between the start and the end of sampling.

    Attributes:
        of_noise_levels: whether the noise levels sigma / alpha that it visits are the same on every linear process.

    Examples:
        >>> import sgm_sde as sg
        >>> class Late(GridRule):
        ...     def place(self, sde, u, start, end): return start + u**2 * (end - start)
        >>> [round(t, 3) for t in Late()(sg.VPSDE(), 3).times]
        [1.0, 0.889, 0.556, 0.001]
    """

    _elsewhere = OF_PLACES

    of_noise_levels: ClassVar[bool] = False

    def __call__(self, sde: SDE, steps: int, t_start: float | None = None, t_end: float | None = None) -> Grid:
        """The grid of `steps` steps from `t_start` (default `sde.T`) to `t_end` (default `sde.eps`).

        Ends that are rounded images of T and eps, as float32 has them, are T and eps.

        Raises:
            ValueError: for a negative number of steps or times outside [0, T].
        """
        require_sde(sde)
        steps = table_size("the number of steps", steps, 0)
        t_start = None if t_start is None else moment("t_start", t_start)
        t_end = None if t_end is None else moment("t_end", t_end)
        if t_start is not None and not 0 < t_start < math.inf:
            raise ValueError(f"t_start must be positive and finite, got {t_start}")
        start, end = self.ends(sde, steps, t_start, t_end)
        if not 0 <= end < start <= sde.T:
            raise _not_in_order(sde, [("t_start", t_start, start), ("t_end", t_end, end)])
        if steps == 0:
            return Grid([start])

        inner = self._placed(sde, steps, start, end)
        return Grid([start, *inner[1:-1].tolist(), end])  # the ends to the last bit

    def _placed(self, sde: SDE, steps: int, start: float, end: float) -> Tensor:
        """The times (steps + 1,), of which the ends may be rounded."""
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
        times = self.place(sde, u, start, end)
        if not isinstance(times, Tensor) or times.shape != u.shape:
            raise ValueError(f"place of {self!r} must return a tensor of {len(u)} times, got {described(times)}")
        return times

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """First and last time of a grid of `steps` steps: those given, else `sde.T` and `sde.eps`."""
        start = sde.T if t_start is None else at_ends(sde, t_start, option="t_start")
        end = sde.eps if t_end is None else at_ends(sde, t_end, option="t_end")
        return start, end

    @abstractmethod
    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u in [0, 1] of the way from start to end."""

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if the process has what the rule needs between the ends, and room for that many steps, if given."""
        return True


def _power(u: Tensor, start: float, end: float, rho: float) -> Tensor:
    return (start ** (1 / rho) + u * (end ** (1 / rho) - start ** (1 / rho))) ** rho


@dataclass(frozen=True)
class Uniform(GridRule):
    """Equal steps of time (Song et al., 2021, arXiv:2011.13456).

    Examples:
        >>> import sgm_sde as sg
        >>> [round(t, 3) for t in Uniform()(sg.VPSDE(), 3).times]
        [1.0, 0.667, 0.334, 0.001]
    """

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        return start + u * (end - start)


@dataclass(frozen=True)
class Quadratic(GridRule):
    """Equal steps of the square root of time (Song, Meng & Ermon, 2021, arXiv:2010.02502).

    Examples:
        >>> import sgm_sde as sg
        >>> [round(t, 3) for t in Quadratic()(sg.VPSDE(), 3).times]
        [1.0, 0.459, 0.126, 0.001]
    """

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        return _power(u, start, end, 2.0)


@dataclass(frozen=True)
class Exponential(GridRule):
    """Equal steps of the logarithm of time; needs an end above 0.

    Examples:
        >>> import sgm_sde as sg
        >>> [round(t, 3) for t in Exponential()(sg.VPSDE(), 3).times]
        [1.0, 0.1, 0.01, 0.001]
    """

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        if end <= 0:
            raise ValueError(f"an exponential grid cannot end at t={end}: give t_end > 0")
        return start * (u * math.log(end / start)).exp()

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if the end is above 0."""
        return end > 0


@dataclass(frozen=True)
class LogSNR(GridRule):
    """Equal steps of log-SNR (Lu et al., 2022, arXiv:2206.00927).

    Examples:
        >>> import sgm_sde as sg
        >>> times = LogSNR()(sg.VPSDE(), 3).times
        >>> [round(float(sg.VPSDE().log_snr(t)), 2) for t in times]
        [-10.05, -3.66, 2.73, 9.12]
    """

    of_noise_levels: ClassVar[bool] = True

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        first, last = self.levels(sde, start, end)
        times: Tensor = sde.time(first + u * (last - first))
        return times

    @cached(maxsize=64, holders=(0, 1))
    def _placed(self, sde: SDE, steps: int, start: float, end: float) -> Tensor:
        """The times (steps + 1,), kept for the next run: to find them takes as long as some network calls."""
        return super()._placed(sde, steps, start, end)

    def levels(self, sde: SDE, start: float, end: float) -> tuple[float, float]:
        """Log-SNR at the ends.

        Raises:
            ValueError: where it is not finite.
        """
        _require_linear(self, sde)
        first, last = (float(sde.log_snr(t)) for t in (start, end))
        if not (math.isfinite(first) and math.isfinite(last)):
            raise ValueError(f"log-SNR is {first} at t={start} and {last} at t={end}: a log-SNR grid needs finite ends")
        return first, last

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if log-SNR is finite at both ends."""
        return has_scalar_marginal(sde) and all(math.isfinite(node.lam) for node in sde.nodes([start, end]))


@dataclass(frozen=True, repr=False)
class Widening(LogSNR):
    r"""Equal steps of log-SNR between noise levels that move apart as the number of steps grows.

    With $n$ steps and the data's scale $s$, the first and the last noise level are

    $$ \frac\sigma\alpha = s \max\bigl(8,\ a\,(n+1)^3\bigr) \quad\text{and}\quad
       \frac\sigma\alpha = \frac{s\,b}{(n+1)^2}\,\frac{r}{1 + r}, $$

    inside of the process' own [eps, T] and below `largest`, the last at most three quarters of the first, where $r$ is
    the first level in units of $s$. So a small budget is spent where a sample takes shape. A run of `sample` goes from
    T to the first level by the linear part of the flow, without a network call: the data estimate there is taken for
    0, which moves a sample by about the distance of the data's mean from 0 over the first level, in units of the data's
    standard deviation. Where `largest` lies inside the process, that much remains at any number of steps, and so does
    what a network with a bias near pure noise adds above it.

    Args:
        data_std: the scale s, about the standard deviation of the data.
        first: the factor a of the first level.
        last: the factor b of the last level.
        largest: a bound of the first level in units of s, for a prior of unit scale, larger by as much as the prior is;
            its default is the log-SNR -12.

    Raises:
        ValueError: for a number that is not positive and finite.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.EDMSDE()
        >>> [round(Widening()(sde, n).times[0], 6) for n in (4, 9, 19)]
        [8.0, 50.0, 80.0]
    """

    data_std: float = 1.0
    first: float = 0.05
    last: float = 5.0
    largest: float = math.exp(6.0)

    least: ClassVar[float] = 8.0  # with fewer calls the first of them would still see data in the noise

    def __repr__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        shown = [f"{name}={f'{value:.6g}' if isinstance(value, float) else value}" for name, value in changed.items()]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_std", number("data_std", self.data_std, least=1 / FAR, most=FAR))
        for name in ("first", "last", "largest"):
            object.__setattr__(self, name, number(name, getattr(self, name), above=0))

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """First and last time of a grid of `steps` steps; a time given is kept."""
        _require_linear(self, sde)
        calls = steps + 1

        if t_start is None:
            level = max(self.least, self.first * calls**3)
            t_start = _time_of(sde, self.data_std * min(level, _purest(sde, self.largest)))
        if t_end is None:
            t_end = _last_time(sde, t_start, self.data_std, self.last / calls**2)
        return t_start, t_end


@dataclass(frozen=True, repr=False)
class Thinned(LogSNR):
    r"""Steps of log-SNR that are longer where next to no signal or next to no noise is left.

    With $n$ steps and the data's scale $s$, times lie in log-SNR $\ell$ with a density in proportion to

    $$ w(\ell) = 1 - (1 - a) \operatorname{sigmoid}\frac{\ell_0 - \ell - 2\log s}{1.5}
                 - (a - b) \operatorname{sigmoid}\frac{\ell_d - \ell}{1.5}
                 - c \operatorname{sigmoid}\frac{\ell - \ell_1 + 2\log s}{1.5}, \qquad
       a = \min\Bigl(1, \frac{n+1}{m}\Bigr), \quad b = \min\Bigl(a, \frac{n+1}{d}\Bigr) $$

    from T to the last level of `Widening`, so that the network is evaluated near pure noise as well; where log-SNR is
    unbounded, or below -30 at T, the grid starts at `largest`. $\ell_d$ is the higher of $-13 - 2\log s$ and of the
    log-SNR below which the time of the process moves by less than a hundredth of T while log-SNR changes by one, so
    that what a network makes of its time hardly changes: -7.8 for rectified flow and -7 for cosine schedules, for
    narrow data by $-2\log s$ more. VP, EDM and VE have none.

    Args:
        data_std: the scale s, about the standard deviation of the data.
        even: the number m of network calls from which on steps near pure noise are as long as others.
        even_deep: the number d from which on steps below $\ell_d$ are; with its default, as with any up to m, they are
            as long as others near pure noise.
        last: the factor of the last level, as in `Widening`.
        largest: the first level where log-SNR is below -30 at T, in units of s, for a prior of unit scale, larger by as
            much as the prior is; its default is the log-SNR -20.
        near_noise: the log-SNR $\ell_0$ below which steps are longer.
        near_data: the log-SNR $\ell_1$ above which they are, not below the other.
        clean: the share c of the density that is left out there, below 1.
        to_data: whether the last step leads from the last level to eps, for solvers that end in the data, which need no
            call there; not where the end is given. Where eps is more than twice that level, the step before leads next
            to eps.
        jumps: noise levels sigma / alpha at which the score jumps. The nearest node is moved to each, if it is no
            end, and the steps to either side are stretched evenly in w.
        on_table: whether times between the ends are moved to the nearest in log-SNR of those that the network is
            trained at, each taken once, as long as there are less than three steps for each of these. A network that
            looks its noise level up takes any other state for a state of another scale. With `jumps` nodes stay.

    Raises:
        ValueError: for a number that is not finite or out of range; on a process, for more jumps than there are nodes
            between the ends.
        TypeError: for a `to_data` that is not True or False.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> [round(float(sde.log_snr(t)), 2) for t in Thinned()(sde, 15).times[::5]]
        [-10.05, -3.08, 1.32, 6.94]
    """

    data_std: float = 1.0
    even: float = 45.0
    even_deep: float = 1.0
    last: float = 8.0
    largest: float = math.exp(-PUREST / 2)
    near_noise: float = -5.0
    near_data: float = 2.0
    clean: float = 0.4
    to_data: bool = False
    jumps: tuple[float, ...] = ()
    on_table: bool = False

    deep: ClassVar[float] = -13.0  # log-SNR, below which networks see nothing but noise; VP starts at -10
    width: ClassVar[float] = 1.5  # of the changes, over which steps stay close to their neighbours in length

    __repr__ = Widening.__repr__

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_std", number("data_std", self.data_std, least=1 / FAR, most=FAR))
        for name in ("even", "even_deep", "last", "largest"):
            object.__setattr__(self, name, number(name, getattr(self, name), above=0))
        object.__setattr__(self, "near_noise", number("near_noise", self.near_noise, least=-FAR, most=FAR))
        object.__setattr__(self, "near_data", number("near_data", self.near_data, least=self.near_noise, most=FAR))
        object.__setattr__(self, "clean", number("clean", self.clean, least=0, below=1))
        object.__setattr__(self, "to_data", flag("to_data", self.to_data))
        object.__setattr__(self, "jumps", levels_of("jumps", self.jumps))
        object.__setattr__(self, "on_table", flag("on_table", self.on_table))

    def __call__(self, sde: SDE, steps: int, t_start: float | None = None, t_end: float | None = None) -> Grid:
        """The grid; see `GridRule`."""
        grid = self._free(sde, steps, t_start, t_end)
        return _on_table(grid, sde) if self.on_table and not self.jumps else grid

    def _free(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> Grid:
        """The grid, whatever times a network is trained at."""
        if not self.to_data or t_end is not None or table_size("the number of steps", steps, 0) == 0:
            return super().__call__(sde, steps, t_start, t_end)

        at_eps = float(noise_level(sde, sde.eps))
        wanted = self.data_std * self.last / steps**2
        last = _time_of(sde, NEXT_TO_EPS * at_eps) if at_eps > FAR_ABOVE * wanted else None
        times = super().__call__(sde, steps - 1, t_start, last).times
        return Grid([*times, sde.eps]) if times[-1] > sde.eps else super().__call__(sde, steps, t_start)

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """First and last time of a grid of `steps` steps; a time given is kept."""
        _require_linear(self, sde)
        if t_start is None:
            bounded = float(sde.log_snr(sde.T)) >= UNBOUNDED
            t_start = sde.T if bounded else _time_of(sde, self.data_std * _purest(sde, self.largest))
        if t_end is None:
            t_end = _last_time(sde, t_start, self.data_std, self.last / (steps + 1) ** 2)
        return t_start, t_end

    def _count(self, log_snr: Tensor, calls: int, still: float) -> Tensor:
        """The integral of the density w for a number of network calls and a level below which time stands still."""
        a = min(1.0, calls / self.even)
        b = min(a, calls / self.even_deep)
        scale = 2 * math.log(self.data_std)
        noisy = softplus((self.near_noise - scale - log_snr) / self.width)
        level = max(still - min(scale, 0.0), self.deep - scale)
        deep = softplus((level - log_snr) / self.width)
        clean = softplus((log_snr - self.near_data + scale) / self.width)
        return log_snr + self.width * ((1 - a) * noisy + (a - b) * deep - self.clean * clean)

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        still = _standstill(sde)

        def count(log_snr: Tensor) -> Tensor:
            return self._count(log_snr, len(u), still)

        first, last = torch.tensor(self.levels(sde, start, end), dtype=u.dtype, device=u.device)
        whole = count(last) - count(first)
        jumps = -2 * cpu_float64(self.jumps).log()
        places = (count(jumps) - count(first)) / whole
        aim = count(first) + self._through(places.tolist(), u) * whole
        times: Tensor = sde.time(_inverse(count, aim, first, last))
        return times

    def _through(self, places: Iterable[float], u: Tensor) -> Tensor:
        """Fractions u in [0, 1] stretched so that the nearest ones lie at given places; the ends stay where they are.

        Raises:
            ValueError: for more places than fractions between the ends.
        """
        n = len(u) - 1
        met = [place for place in sorted(places) if 0 < round(place * n) < n]
        if len(met) >= n:
            raise ValueError(
                f"jumps={self.jumps} need {len(met)} nodes between the ends, and {n} steps have {n - 1}: take more "
                f"steps, or fewer jumps"
            )

        nodes = [0]
        for i, place in enumerate(met):
            free = n - len(met) + i  # the last node that leaves one to each of those after it
            nodes.append(min(max(round(place * n), nodes[-1] + 1), free))
        return torch.as_tensor(np.interp(range(n + 1), [*nodes, n], [0.0, *met, 1.0])).to(u)


def _inverse(increasing: Callable[[Tensor], Tensor], aim: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The places between two at which an increasing function has the values `aim`, by bisection."""
    low = low.expand_as(aim)
    high = high.expand_as(aim)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = increasing(middle) < aim
        low = torch.where(below, middle, low)
        high = torch.where(below, high, middle)
    return (low + high) / 2


@cached(maxsize=64)
def _standstill(sde: SDE) -> float:
    """Log-SNR below which the time of a process moves by less than 0.01 T per unit; minus infinity without one."""
    first = max(float(sde.log_snr(sde.T)), PUREST)
    last = min(float(sde.log_snr(sde.eps)), 0.0)
    if first >= last:
        return -math.inf

    levels = torch.linspace(first, last, LEVELS, dtype=torch.float64, device="cpu")
    levels = levels[1:-1]  # T's own may round beyond
    step = levels[1] - levels[0]
    times = sde.time(levels)
    speed = times.diff().abs() / step
    moving = (speed >= STANDING * sde.T).nonzero()
    if not len(moving) or moving[0] == 0:
        return -math.inf
    return float(levels[moving[0]])


def _on_table(grid: Grid, sde: SDE) -> Grid:
    """A grid with the times between its ends moved to the nearest of a process' table, each taken once."""
    table = sde.table_times
    if table is None or grid.steps < 2:
        return grid

    start, *between, end = grid.times
    known = cpu_float64(sorted((t for t in table if end < t < start), reverse=True))
    if grid.steps >= STEPS_AN_ENTRY * (len(known) + 2):
        return grid
    if not len(known):
        return Grid([start, end])
    away = (sde.log_snr(cpu_float64(between))[:, None] - sde.log_snr(known)).abs()
    nearest = _apart(away.argmin(dim=1).numpy(), len(known))
    return Grid([start, *known[nearest].tolist(), end])


def _apart(places: np.ndarray, n: int) -> np.ndarray:
    """Places (k,) among 0 ... n - 1 that do not decrease, moved so that none is taken twice; all if these are less."""
    order = np.arange(min(len(places), n))
    if len(places) >= n:
        return order
    later = np.maximum.accumulate(places - order) + order
    return np.minimum(later, n - len(places) + order)


def _last_time(sde: SDE, start: float, data_std: float, level: float) -> float:
    """End of a grid: sigma / alpha = `level` in units of the data's scale, less where the start is not far above it."""
    r = float(noise_level(sde, start)) / data_std
    share = 1.0 if math.isinf(r) else r / (1 + r)
    return _time_of(sde, data_std * min(level * share, LAST_OF_FIRST * r))


def _purest(sde: SDE, largest: float) -> float:
    """A bound of the first noise level, in units of the data: a wider prior is there for wider data."""
    return largest * max(1.0, sde.prior_std)


def _time_of(sde: SDE, level: float) -> float:
    """The time at which sigma / alpha is `level`, or that of eps and T which is nearer."""
    log_snr = -2 * math.log(level)
    if log_snr <= float(sde.log_snr(sde.T)):
        return float(sde.T)
    if log_snr >= float(sde.log_snr(sde.eps)):
        return float(sde.eps)
    return float(sde.time(torch.tensor(log_snr, dtype=torch.float64, device="cpu")))


@dataclass(frozen=True)
class Karras(GridRule):
    r"""Equal steps of $(\sigma/\alpha)^{1/\rho}$ (Karras et al., 2022, arXiv:2206.00364).

    Args:
        rho: how strongly steps shorten towards the data.

    Raises:
        ValueError: for a rho that is not at least 0.01.

    Examples:
        >>> import sgm_sde as sg
        >>> [round(t, 3) for t in Karras()(sg.EDMSDE(), 3).times]
        [80.0, 9.723, 0.47, 0.002]
    """

    rho: float = 7.0
    of_noise_levels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", number("rho", self.rho, least=1e-2, most=FAR))

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        _require_linear(self, sde)
        first, last = (float(noise_level(sde, t)) for t in (start, end))
        if not math.isfinite(first):
            raise ValueError(f"sigma / alpha is infinite at t={start}: a Karras grid needs a finite start")
        return sde.time(-2 * _power(u, first, last, self.rho).log())

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if sigma / alpha is finite at the start."""
        return has_scalar_marginal(sde) and math.isfinite(sde.nodes([start])[0].noise_level)


@dataclass(frozen=True)
class Table(GridRule):
    """Times of a network's own table, evenly spaced in its indices up to rounding to integers.

    Args:
        times: the table; by default that of the process (`DiscreteVPSDE`, `DiscreteVESDE`).

    Raises:
        ValueError: for a table that is not one of numbers.

    Examples:
        >>> import sgm_sde as sg
        >>> Table()(sg.presets.ddpm(), 3).times
        (1.0, 0.667, 0.334, 0.001)
    """

    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", None if self.times is None else reals("times", self.times))

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        inside = self._inside(sde, start, end)
        if inside is None:
            raise ValueError(f"{sde!r} has no table of times: give one, Table(times=...)")
        if len(u) > len(inside):
            raise ValueError(f"{len(u) - 1} steps visit {len(u)} times, and the table has {len(inside)} there")
        return cpu_float64(inside)[(u * (len(inside) - 1)).round().long()]

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if there is a table with a time for each step."""
        inside = self._inside(sde, start, end)
        return inside is not None and (steps is None or steps < len(inside))

    def _inside(self, sde: SDE, start: float, end: float) -> list[float] | None:
        """The table's times between the ends, decreasing; None without a table."""
        table = sde.table_times if self.times is None else self.times
        low = end * (1 - ROUNDING)
        high = start * (1 + ROUNDING)
        return None if table is None else sorted((float(t) for t in table if low <= t <= high), reverse=True)


@dataclass(frozen=True)
class Distilled(GridRule):
    r"""Timesteps that a latent consistency model was distilled on, taken at even steps of their numbers.

    Of a network's table of N entries, distillation to m timesteps has seen those numbered $ik - 1$ with
    $k = \lfloor N/m \rfloor$ and $i = 1, \dots, m$, from 0. Counted from noise to data, n network calls are made at
    those numbered $\lfloor jm/n \rfloor$, $j = 0, \dots, n - 1$, and the last of them is where the grid ends. With an
    end of its own (`t_end=`, or that of `final="none"`), every step starts at one of these, and the grid ends at that
    end.

    A start below T leaves out the timesteps above it, as image-to-image pipelines do.

    Args:
        original_steps: the number m of timesteps of the distillation; `original_inference_steps` in the configurations
            of diffusers' LCMScheduler and TCDScheduler.

    Raises:
        ValueError: for a number below 1; on a process, without a table or with fewer timesteps than network calls.

    Source: Luo et al., 2023, arXiv:2310.04378, section 4.3 (skipping steps).

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.DiscreteVPSDE([1e-4 + 2e-5 * i for i in range(1000)])
        >>> Distilled(50)(sde, 3)  # four calls: timesteps 999, 759, 499 and 259
        Grid(1, 0.76, 0.5, 0.26)
        >>> Distilled(50)(sde, 4, t_end=sde.eps)
        Grid(1, 0.76, 0.5, 0.26, 0.001)
    """

    original_steps: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "original_steps", table_size("original_steps", self.original_steps))

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """First and last time of a grid of `steps` steps; a time given is kept."""
        known = self._known(sde, sde.T if t_start is None else at_ends(sde, t_start, option="t_start"))
        start = known[0] if t_start is None else at_ends(sde, t_start, option="t_start")
        if t_end is not None:
            return start, at_ends(sde, t_end, option="t_end")
        return start, self._spread(known, steps + 1)[-1] if steps else min(sde.eps, start / 2)

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        known = self._known(sde, start)
        calls = len(u)
        ends_with_call = calls <= len(known) and same_time(self._spread(known, calls)[-1], end)
        times = self._spread(known, calls) if ends_with_call else [*self._spread(known, calls - 1), end]
        if times[-2] <= end:
            raise ValueError(
                f"{calls - 1} steps, each from a timestep of a distillation, have their last at t={times[-2]}, "
                f"not above t_end={end}"
            )
        return cpu_float64(times)

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if the table has the timesteps, one for each step and one to end with."""
        table = sde.table_times
        if table is None or len(table) < self.original_steps:
            return False
        known = self._known(sde, start)
        return len(known) > 0 if steps is None else len(known) > steps and self._spread(known, steps + 1)[-1] >= end

    def _known(self, sde: SDE, start: float) -> list[float]:
        """The timesteps of the distillation from a start on, decreasing."""
        table = sde.table_times
        if table is None:
            raise ValueError(f"{sde!r} has no table of times, and timesteps of a distillation are some of a table")
        if len(table) < self.original_steps:
            raise ValueError(
                f"original_steps={self.original_steps} timesteps of a distillation from a table that has {len(table)}"
            )
        k = len(table) // self.original_steps
        seen = [float(table[i * k - 1]) for i in range(1, self.original_steps + 1)]
        known = [t for t in reversed(seen) if t <= start * (1 + ROUNDING)]
        if not known:
            raise ValueError(f"no timestep of the distillation lies below t={start}: they begin at t={seen[0]}")
        return known

    def _spread(self, known: list[float], calls: int) -> list[float]:
        """So many of the timesteps."""
        if calls > len(known):
            raise ValueError(
                f"{calls} network calls asked of {len(known)} timesteps of a distillation: take fewer, or another grid"
            )
        skip = len(known) / calls  # its multiples are rounded as in the published code
        return [known[math.floor(j * skip)] for j in range(calls)]


RULES: dict[str, GridRule] = {
    "uniform": Uniform(),
    "quadratic": Quadratic(),
    "exponential": Exponential(),
    "log-snr": LogSNR(),
    "widening": Widening(),
    "thinned": Thinned(),
    "karras": Karras(),
    "table": Table(),
    "distilled": Distilled(),
}


# Grids that other libraries have, in words for what there is here.
_EVEN = (
    "steps of equal time are 'uniform', those of a table's indices 'table', both from T to eps unless t_start says less"
)
ELSEWHERE = {
    **dict.fromkeys(("linear", "linspace", "time-uniform", "trailing", "leading", "simple", "normal"), _EVEN),
    **dict.fromkeys(("sgm-uniform", "ddim-uniform"), _EVEN),
    **dict.fromkeys(("logsnr", "lu", "lambdas", "polyexponential"), "equal steps of log-SNR are 'log-snr'"),
    **dict.fromkeys(("quad", "time-quadratic"), "equal steps of the root of time are 'quadratic'"),
    **dict.fromkeys(("flow", "shift", "shifted"), "times shifted by resolution are grids.Shifted(shift)"),
    **dict.fromkeys(("ays", "align-your-steps", "gits"), "noise levels of your own are grids.FromLevels(levels)"),
    "edm": "EDM's noise levels are 'karras'",
}


def _require_linear(rule: GridRule, sde: SDE) -> None:
    if not has_scalar_marginal(sde):
        raise TypeError(f"{rule!r} needs a process with alpha(t) and sigma(t), got {described(sde)}")


def rule(name: str) -> GridRule:
    """The rule of that name.

    Raises:
        ValueError: for an unknown name; the message lists the near ones.

    Examples:
        >>> rule("karras")
        Karras(rho=7.0)
    """
    if not isinstance(name, str):
        raise TypeError(f"a grid's rule has a name, got {described(name)}")
    if name in RULES:
        return RULES[name]
    if words := ELSEWHERE.get(name.lower().replace("_", "-")):
        raise ValueError(f"unknown grid {name!r}: {words}")
    raise unknown("grid", name, RULES)


def rule_name(rule: GridRule) -> str:
    """The name of a rule, or how it is made where it has none.

    Raises:
        TypeError: for anything but a rule.

    Examples:
        >>> rule_name(LogSNR()), rule_name(Karras(rho=5.0))
        ('log-snr', 'Karras(rho=5.0)')
    """
    instance_of("rule", rule, GridRule, "a grid rule, such as LogSNR()")
    return next((name for name, known in RULES.items() if known == rule), repr(rule))


@dataclass(frozen=True)
class Shifted(GridRule):
    r"""The grid of another rule with each noise level $\sigma/\alpha$ multiplied by a shift.

    On rectified flow that is $t \mapsto s\,t / (1 + (s - 1)\,t)$, the shift of timesteps by resolution: it puts more
    steps at large noise the larger the images are. The ends stay: the base is placed between the times that the shift
    maps to them.

    Args:
        shift: the factor s; 1 is the base itself. For a resolution given by $\mu$, as Flux has it, it is $e^\mu$:
            `Shifted.of_resolution(mu)`.
        base: the rule that is shifted.

    Raises:
        ValueError: for a shift that is not positive and finite.

    Source: Esser et al., 2024, arXiv:2403.03206, section 5.3.2.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.RectifiedFlowSDE(T=1.0, eps=0.0)
        >>> Shifted(3.0)(sde, 4)
        Grid(1, 0.9, 0.75, 0.5, 0)
    """

    shift: float = 3.0
    base: GridRule = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", number("shift", self.shift, above=0))
        if not isinstance(self.base, GridRule):
            raise TypeError(f"base must be a grid rule, such as Uniform(), got {described(self.base)}")

    @classmethod
    def of_resolution(cls, mu: float, base: GridRule | None = None) -> Shifted:
        r"""The shift $e^\mu$, with $\mu$ linear in the number of an image's tokens."""
        return cls(math.exp(number("mu", mu)), Uniform() if base is None else base)

    @property
    def of_noise_levels(self) -> bool:  # type: ignore[override]
        """True if the base is one of noise levels."""
        return self.base.of_noise_levels

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        _require_linear(self, sde)
        first, last = (float(self._moved(sde, cpu_float64([t]), 1 / self.shift)[0]) for t in (start, end))
        # What the process does not have is left out; a shift below 1 comes from beyond its end.
        first, last = (sde.T if not first <= sde.T else first), max(last, 0.0)
        return self._moved(sde, self.base.place(sde, u, first, last), self.shift)

    @staticmethod
    def _moved(sde: SDE, times: Tensor, factor: float) -> Tensor:
        """The times whose noise levels are those of `times` times a factor."""
        log_snr = sde.log_snr(times)
        moved: Tensor = sde.time(log_snr - 2 * math.log(factor))
        return torch.where(log_snr.isfinite(), moved, times)

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if the process has noise levels, and the base fits."""
        return has_scalar_marginal(sde) and self.base.fits(sde, steps, start, end)


@dataclass(frozen=True)
class FromLevels(GridRule):
    r"""A table of noise levels $\sigma/\alpha$ on any process, log-linear between its entries.

    For published tables of optimised levels, such as those of Align Your Steps, at any number of steps.

    Args:
        levels: noise levels, decreasing; a final 0, which stands for the denoised data, is left out.

    Raises:
        TypeError: for what is no sequence of numbers.
        ValueError: for fewer than two levels, or levels that do not decrease to something above 0.

    Source: Sabour et al., 2024, arXiv:2404.14507.

    Examples:
        >>> import sgm_sde as sg
        >>> ten = FromLevels([14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0])
        >>> [round(t, 6) for t in ten(sg.EDMSDE(0.02, 20.0), 9).times[:3]]
        [14.615, 6.475, 3.861]
    """

    levels: tuple[float, ...]
    of_noise_levels: ClassVar[bool] = True

    def __init__(self, levels: Sequence[float] | Tensor) -> None:
        given = moments("levels", levels)
        if len(given) > 2 and given[-1] == 0:
            given.pop()
        if len(given) < 2:
            raise ValueError(f"a table needs two noise levels or more, got {len(given)}")
        for i, (level, lower) in enumerate(pairwise(given)):
            if not (math.isfinite(level) and 0 < lower < level):
                raise ValueError(
                    f"levels must decrease to something above 0, got levels[{i}] = {level} followed by {lower}"
                )
        object.__setattr__(self, "levels", tuple(given))

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """The times of the first and the last level; a time given is kept."""
        _require_linear(self, sde)
        start = _time_of(sde, self.levels[0]) if t_start is None else at_ends(sde, t_start, option="t_start")
        end = _time_of(sde, self.levels[-1]) if t_end is None else at_ends(sde, t_end, option="t_end")
        return start, end

    def place(self, sde: SDE, u: Tensor, start: float, end: float) -> Tensor:
        """Times at the fractions u."""
        logs = [math.log(level) for level in self.levels]
        # Where the ends lie in the table, in entries; beyond it, on the line through its last two.
        first, last = (self._place(logs, math.log(float(noise_level(sde, t)))) for t in (start, end))
        at = (first + (last - first) * u).tolist()
        log_levels = [self._at(logs, place) for place in at]
        times: Tensor = sde.time(-2 * cpu_float64(log_levels))
        return times

    @staticmethod
    def _place(logs: Sequence[float], log_level: float) -> float:
        i = next((i for i in range(len(logs) - 1) if logs[i + 1] <= log_level), len(logs) - 2)
        return i + (log_level - logs[i]) / (logs[i + 1] - logs[i])

    @staticmethod
    def _at(logs: Sequence[float], place: float) -> float:
        i = min(max(math.floor(place), 0), len(logs) - 2)
        return logs[i] + (place - i) * (logs[i + 1] - logs[i])

    def fits(self, sde: SDE, steps: int | None, start: float, end: float) -> bool:
        """True if log-SNR is finite at both ends."""
        return has_scalar_marginal(sde) and all(math.isfinite(node.lam) for node in sde.nodes([start, end]))
