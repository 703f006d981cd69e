"""Times from noise to data as values: of a sample, and of each of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, has_numbers, moments, require_values, settle
from sgm_sde._utils.elsewhere import OF_TIMES
from sgm_sde.engine.times import CLOSEST, at_ends, in_words_of_table, same_time
from sgm_sde.identity import Value

if TYPE_CHECKING:
    from sgm_sde.processes import SDE

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
