"""Times and coefficients at the places of an adaptive solver's stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sgm_sde._utils.shapes import as_time, column

Kept = TypeVar("Kept")
AT_A_TIME = 2**15  # places, at most: their values stay in a core's cache, and starting an operation takes little of it


class AtPlaces(Generic[Kept]):
    """Times and coefficients at places of a run, kept for the next evaluation, which may be at the same ones.

    Where samples have few numbers, most of the time of an operation is that of starting it: the places of all stages of
    a step can be made ready together.

    Args:
        kind: makes what is kept of times (b,) and of coefficients, shaped to multiply states (b, *).
        values: the times, as the network is given them, and the coefficients at places (k, b) in float64 on the host;
            with a tensor of the states' dtype.

    Attributes:
        like: the states, none of them, once they are known.
    """

    def __init__(
        self,
        kind: Callable[..., Kept],
        values: Callable[[Tensor, Tensor], Iterable[Tensor | float]],
    ) -> None:
        self.like: Tensor | None = None
        self._kind = kind
        self._values = values
        self._known: dict[int, Kept] = {}  # by where the places lie in memory
        self._places: Tensor | None = None  # those of `_known`, which stay where they are as long as they are held

    def at(self, u: Tensor, like: Tensor) -> Kept:
        """Those at the places u (b,), for states of a kind."""
        if self.like is None:
            self.like = like.detach()[:0]
        if u.data_ptr() not in self._known:
            self._keep(u[None], self.like)
        return self._known[u.data_ptr()]

    def prepare(self, places: Tensor) -> None:
        """Compute those at the rows of a table of places u (n, b) together, before they are asked for."""
        if self.like is not None:
            self._keep(places, self.like)

    def _keep(self, places: Tensor, like: Tensor) -> None:
        rows = self._computed(places, like)
        self._known = {u.data_ptr(): at for u, at in zip(places.unbind(0), rows, strict=True)}
        self._places = places

    def _computed(self, places: Tensor, like: Tensor) -> list[Kept]:
        """The values that are kept, of each row of places u (n, b), computed for some rows at a time."""
        rows = max(1, AT_A_TIME // max(1, places.shape[1]))
        values = (self._shaped(some, like) for some in torch.split(places, rows))
        return [self._kind(*row) for of_some in values for row in zip(*of_some, strict=True)]

    def _shaped(self, u: Tensor, like: Tensor) -> list[tuple[Tensor, ...]]:
        """Times, and coefficients shaped to multiply states, at places u (k, b), each by rows."""
        t, *coefficients = (as_time(value).expand(u.shape) for value in self._values(u, like))
        return [t.to(like).unbind(0), *(column(value, like).unbind(0) for value in coefficients)]
