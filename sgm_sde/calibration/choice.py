r"""Choice among settings by their errors on noises that nothing was fitted to.

Which of several fits sends a noise into the wrong mode is chance, and one of a thousand can have most of the error, so
that the least error on a hundred noises is the luckiest fit's. Hence many noises are held out, with exact samples, and
where these are dear those that are hard (`Strata`).

The least of several errors is too low also on many noises. So what is stated of the choice is cross-fitted: the choice
is made anew without a part of the noises and measured on that part, for each part in turn,

$$ \frac1N \sum_k \sum_{i \in P_k} e_i^2(c_k), \qquad c_k = \mathrm{choice}\bigl(\{e_i : i \notin P_k\}\bigr) . $$

Source: Stone, 1974 (Journal of the Royal Statistical Society B 36) for the cross-validation of a choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde.calibration.result import PILOT, HeldOut
from sgm_sde.calibration.strata import Strata
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.trials import of_half

ENOUGH = 0.9  # of the error off the shelf; above, no fit is worth its trouble
PARTS = 8  # of the noises, each measured with the choice made on the others
SURE = 100.0  # times what exact samples are known to: larger errors are stated with them as they are
UNSURE = 5.0  # times that: smaller errors are those of the exact samples, on all noises
MOST_WRONG = 8  # noises for one of those of which surer samples are made between the two
FEW_NOISES = 8  # that make half of the mean square: its standard error is then itself chance


Stays = Callable[[HeldOut], bool]  # whether a fit stays in the range of the samples


class Choice(NamedTuple):
    """Outcome of a comparison.

    Attributes:
        taken: the setting to take.
        outside: fits before it that left the range of the samples.
    """

    taken: HeldOut
    outside: list[HeldOut]


@dataclass(frozen=True)
class Comparison:
    """Errors of settings on the same noises.

    Attributes:
        strata: of the noises.
        spread: mean square distance (N,) of each exact sample from their mean, over that of all; 1 if not given.
        squares: mean square error (N,) of each noise in units of the samples' variance, by setting.
    """

    strata: Strata
    spread: Tensor | None = None
    squares: dict[HeldOut, Tensor] = field(default_factory=dict)

    def add(self, name: str, setting: Setting, squares: Tensor) -> HeldOut:
        """A setting with what it makes of the noises; what is not finite is an infinite error."""
        each = squares.nan_to_num(nan=math.inf)
        found = self.measured(name, setting, each)
        self.squares[found] = each
        return found

    def measured(self, name: str, setting: Setting, each: Tensor) -> HeldOut:
        """A setting with what is stated of its mean square errors (N,)."""
        rmse = math.sqrt(self.strata.mean(each))
        stderr = self._stderr(each, rmse)
        root = each.sqrt()
        median = self.strata.median(root)
        return HeldOut(name, setting, rmse, stderr, median, float(root.max()))

    def _stderr(self, each: Tensor, rmse: float) -> float:
        r"""Standard error of a root mean square r in units of a variance, with that of the variance.

        To first order it is $\frac r2$ times the standard error of the mean of $e^2 / r^2 - v$, v as in `spread`.
        """
        if not (rmse and math.isfinite(rmse)):
            return 0.0
        relative = each / rmse**2
        if self.spread is not None:
            relative = relative - self.spread.to(each)
        return rmse / 2 * self.strata.stderr(relative)

    def without(self, part: Tensor) -> Comparison:
        """The comparison on the noises that are not in a part (N,) of them."""
        rest = ~part
        spread = None if self.spread is None else self.spread[rest.to(self.spread.device)]
        found = Comparison(self.strata.only(rest), spread)
        for one, each in self.squares.items():
            found.add(one.name, one.setting, each[rest.to(each.device)])
        return found

    def by_part(self, stays: Stays) -> list[tuple[HeldOut, Tensor]]:
        """Parts of the noises as truth values (N,), each with the setting that is chosen on the other noises."""
        by_setting = {id(one.setting): one for one in self.squares}
        part = torch.arange(len(self.strata)) % PARTS
        found = []
        for k in range(min(PARTS, len(self.strata))):
            here = part == k
            taken = self.without(here).best(stays).taken
            found.append((by_setting[id(taken.setting)], here))
        return found

    def cross_fitted(self, parts: Sequence[tuple[HeldOut, Tensor]]) -> Tensor:
        """The mean square error (N,) of each noise by the setting of its part."""
        found = torch.empty_like(next(iter(self.squares.values())))
        for one, here in parts:
            on = here.to(found.device)
            found[on] = self.squares[one][on]
        return found

    def unsure(self, each: Tensor, doubt: float) -> Tensor:
        """Mean square errors (N,) that depend on exact samples of a doubt, as truth values: all, the largest, or none.

        A fit has what is wrong in the exact samples of few calls for right, most of all where both err most.
        """
        error = math.sqrt(self.strata.mean(each))
        if error > SURE * doubt:
            return torch.zeros_like(each, dtype=torch.bool)
        if error < UNSURE * doubt:
            return torch.ones_like(each, dtype=torch.bool)
        return each >= each.topk(max(1, len(each) // MOST_WRONG)).values[-1]

    def of_few(self, each: Tensor) -> int:
        """The number of noises that make half of the mean square, the largest first."""
        return of_half(self.strata.weights.to(each) * each)

    def best(self, stays: Stays) -> Choice:
        """The first fit that stays in the range of the samples; the best off the shelf where that is about as good."""
        shelf = [one for one in self.squares if one.name.startswith(PILOT)]
        fits = [one for one in self.squares if one not in shelf and math.isfinite(one.rmse)]
        order = self.in_order(fits)
        first = next((k for k, one in enumerate(order) if stays(one)), len(order))
        return Choice(self.choice(order[first : first + 1], shelf), order[:first])

    def in_order(self, compared: Sequence[HeldOut]) -> list[HeldOut]:
        """Fits, the one to take first.

        Where single noises end in another mode, they make the root mean square, and which fit has them is chance. So
        among the fits whose mean square is within a standard error of the least, the one with the least product of
        root mean square and median is taken.
        """
        if not compared:
            return []
        best = min(compared, key=lambda one: one.rmse)
        able = [one for one in compared if self.within_an_error(one, best)]
        first = min(able, key=lambda one: one.rmse * one.median)
        rest = [one for one in compared if one is not first]
        return [first, *sorted(rest, key=lambda one: one.rmse)]

    def choice(self, fits: Sequence[HeldOut], shelf: Sequence[HeldOut]) -> HeldOut:
        """The best fit, or the best off the shelf where that is about as good."""
        best = min(shelf, key=lambda one: one.rmse)
        order = self.in_order(fits)
        return order[0] if order and self.is_better(order[0], best) else best

    def is_better(self, one: HeldOut, shelf: HeldOut) -> bool:
        """True if a fit is worth its trouble: by its root mean square, or its median where that is within chance."""
        if one.rmse <= ENOUGH * shelf.rmse:
            return True
        return self.within_an_error(one, shelf) and one.median <= ENOUGH * shelf.median

    def within_an_error(self, one: HeldOut, other: HeldOut) -> bool:
        """True if the mean square is larger by no more than a standard error of the difference, noise by noise."""
        difference = self.squares[one] - self.squares[other]
        if not bool(difference.isfinite().all()):
            return False
        return self.strata.mean(difference) <= self.strata.stderr(difference)
