r"""Noises that stand for all: some at random, and the hardest of many more.

Where single noises make the error, such as those that a network sends far out of its data, one of two thousand may have
most of it, and 128 at random know nothing of it. But which noises are hard is no secret: those whose ends by a few and
by twice as many calls lie far apart. So many are screened, the hardest are kept, and each noise counts for as many as
it stands for,

$$ \frac1M \sum_{i \text{ hard}} e_i^2 + \Bigl(1 - \frac{m}{M}\Bigr) \frac{1}{n'} \sum_{i \text{ not}} e_i^2 $$

with m hard noises, those that were drawn at random among them, of the M that were looked at, and n' others: an estimate
of the mean over all noises, with a smaller standard error where the error has a tail.

Source: post-stratification, Cochran, 1977 (Sampling Techniques, chapter 5A).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HARD = 4  # noises at random for a hard one
SCREENED = 8  # noises that are screened for one at random
SCREENED_IN_FEW = 32  # in few dimensions, where a noise gives few equations and costs least
MOST_IN_FEW = 4096  # noises at random, of which more were no better
HELD = 4  # further ones that are held out for one at random, with exact samples but for rough networks
HELD_IN_FEW = 16
FEW_DIMENSIONS = 16


@dataclass(frozen=True)
class Strata:
    """Noises with how much each counts.

    Attributes:
        numbers: of the noises (N,), the ones at random first.
        hard: which of them are among the hardest (N,).
        at_random: how many are at random.
        drawn: how many were looked at.
    """

    numbers: Tensor
    hard: Tensor
    at_random: int
    drawn: int

    @staticmethod
    def even(numbers: range, screened: int = 0) -> Strata:
        """Noises at random alone, beside so many that were looked at."""
        n = len(numbers)
        none = torch.zeros(n, dtype=torch.bool)
        return Strata(torch.arange(numbers.start, numbers.stop), none, n, n + screened)

    def __len__(self) -> int:
        return len(self.numbers)

    def extended(self, numbers: Tensor, as_hard: Tensor) -> Strata:
        """With hard ones more of the noises that were looked at, and which of these are as hard in their sense."""
        hard = torch.cat([self.hard | as_hard, torch.ones(len(numbers), dtype=torch.bool)])
        return Strata(torch.cat([self.numbers, numbers]), hard, self.at_random, self.drawn)

    def only(self, part: Tensor) -> Strata:
        """Those in a part (N,) of them, which stands for all; hard ones stay as rare as they are."""
        share = int(part.sum()) / len(self)
        at_random = int(part[: self.at_random].sum())
        return Strata(self.numbers[part], self.hard[part], at_random, round(share * self.drawn))

    @property
    def _parts(self) -> list[tuple[Tensor, float]]:
        """The hard ones and the others, each with its share of all noises; what is empty is left out."""
        m = int(self.hard.sum())
        share = m / self.drawn if m < len(self) else 1.0
        return [(part, of) for part, of in ((self.hard, share), (~self.hard, 1 - share)) if bool(part.any())]

    @property
    def weights(self) -> Tensor:
        """The weight of each noise (N,), 1 on average."""
        w = torch.ones(len(self), dtype=torch.float64)
        for part, share in self._parts:
            w[part] = share * len(self) / int(part.sum())
        return w

    def mean(self, values: Tensor) -> float:
        """The mean over all noises of values (N,)."""
        return float((self.weights.to(values) * values).mean())

    def stderr(self, values: Tensor) -> float:
        """The standard error of the mean, with that of the shares."""
        mean = self.mean(values)
        total = 0.0
        for part, share in self._parts:
            here = values[part.to(values.device)]
            spread = float(here.var()) if len(here) > 1 else 0.0
            total += share**2 * spread / len(here) + share * (float(here.mean()) - mean) ** 2 / self.drawn
        return math.sqrt(total)

    def median(self, values: Tensor) -> float:
        """The median over all noises of values (N,)."""
        return float(weighted_median(values, self.weights))


def weighted_median(values: Tensor, w: Tensor) -> Tensor:
    """The least of values (..., N) that, with those below it, has half of the weights (N,).

    Examples:
        >>> weighted_median(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 5.0]))
        tensor(2.)
    """
    ordered, index = values.sort(-1)
    sums = w.to(values.device)[index].cumsum(-1)
    reached = (sums >= sums[..., -1:] / 2).int().argmax(-1, keepdim=True)
    return ordered.gather(-1, reached).squeeze(-1)


def hardest(at_random: Tensor, screened: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The places of the hardest of the screened noises, and which of those at random are as hard.

    Examples:
        >>> hardest(torch.tensor([0.1, 5.0]), torch.tensor([0.0, 4.0, 0.2, 9.0]), 2)
        (tensor([1, 3]), tensor([False,  True]))
    """
    chosen = screened.topk(min(count, len(screened))).indices.sort().values
    return chosen, at_random >= screened[chosen].min()
