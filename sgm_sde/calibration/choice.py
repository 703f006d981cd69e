"""Choice among settings by their errors on noises that nothing was fitted to.

Which of several fits sends a noise into the wrong mode is chance, and one of a thousand can have most of the error, so
that the least error on a hundred noises is the luckiest fit's. Hence many noises are held out, with exact samples, and
where these are dear those that are hard (`Strata`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sgm_sde.calibration.result import HeldOut
from sgm_sde.calibration.strata import Strata
from sgm_sde.sampling.defaults import Setting

ENOUGH = 0.9  # of the error off the shelf; above, no fit is worth its trouble


@dataclass(frozen=True)
class Comparison:
    """Errors of settings on the same noises.

    Attributes:
        strata: of the noises.
        squares: mean square error (N,) of each noise in units of the samples' variance, by setting.
    """

    strata: Strata
    squares: dict[HeldOut, Tensor] = field(default_factory=dict)

    def add(self, name: str, setting: Setting, squares: Tensor) -> HeldOut:
        """A setting with what it makes of the noises; what is not finite is an infinite error."""
        each = squares.nan_to_num(nan=math.inf)
        mse = self.strata.mean(each)
        rmse = math.sqrt(mse)
        spread = self.strata.stderr(each) if math.isfinite(mse) else math.inf
        stderr = spread / (2 * rmse) if rmse and math.isfinite(rmse) else 0.0
        root = each.sqrt()
        found = HeldOut(name, setting, rmse, stderr, self.strata.median(root), float(root.max()))
        self.squares[found] = each
        return found

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
