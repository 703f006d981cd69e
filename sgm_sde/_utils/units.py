"""Units in which the numbers of a sample are compared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

FEW_NUMBERS = 16  # of a sample, up to which each may be of something else
UNLIKE = 4.0  # times the standard deviation of another number: beyond, each is measured in its own
CONSTANT = 1e-3  # of the largest: a standard deviation of a number that hardly varies


def units_of(x: Tensor, event: Sequence[int]) -> Tensor | None:
    """Factors (d,) that make the standard deviations of a few numbers (N, d) alike; None where they nearly are.

    Such numbers are of different things, and the small ones would not count. Those of images are of one.

    Examples:
        >>> import torch
        >>> units_of(torch.tensor([[-1.0, -40.0], [1.0, 40.0]]), (2,)).tolist()
        [6.32..., 0.158...]
        >>> units_of(torch.tensor([[-1.0, -2.0], [1.0, 2.0]]), (2,))
    """
    if len(event) != 1 or event[0] > FEW_NUMBERS:
        return None
    spread = x.double().std(0)
    if not float(spread.max()) > UNLIKE * float(spread.min()):
        return None
    spread = spread.clamp(min=CONSTANT * float(spread.max()))
    return (spread.log().mean().exp() / spread).to(x)
