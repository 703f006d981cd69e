"""Steps of log-SNR that are longer near the data and near pure noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import FAR, flag, levels_of, number, table_size
from sgm_sde._utils.shapes import cpu_float64
from sgm_sde.engine.coordinates import noise_level
from sgm_sde.grids.base import require_linear, time_of
from sgm_sde.grids.spaced import LogSNR
from sgm_sde.grids.times import Grid

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
        require_linear(self, sde)
        calls = steps + 1

        if t_start is None:
            level = max(self.least, self.first * calls**3)
            t_start = time_of(sde, self.data_std * min(level, _purest(sde, self.largest)))
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
        last = time_of(sde, NEXT_TO_EPS * at_eps) if at_eps > FAR_ABOVE * wanted else None
        times = super().__call__(sde, steps - 1, t_start, last).times
        return Grid([*times, sde.eps]) if times[-1] > sde.eps else super().__call__(sde, steps, t_start)

    def ends(self, sde: SDE, steps: int, t_start: float | None, t_end: float | None) -> tuple[float, float]:
        """First and last time of a grid of `steps` steps; a time given is kept."""
        require_linear(self, sde)
        if t_start is None:
            bounded = float(sde.log_snr(sde.T)) >= UNBOUNDED
            t_start = sde.T if bounded else time_of(sde, self.data_std * _purest(sde, self.largest))
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
    return time_of(sde, data_std * min(level * share, LAST_OF_FIRST * r))


def _purest(sde: SDE, largest: float) -> float:
    """A bound of the first noise level, in units of the data: a wider prior is there for wider data."""
    return largest * max(1.0, sde.prior_std)
