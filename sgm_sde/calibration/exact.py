"""Exact trajectories that budgets of a calibration share: of noises at random and of the hardest of further ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sgm_sde._utils.units import in_units, spread_of
from sgm_sde.calibration.flow import Flow, Trajectories
from sgm_sde.calibration.strata import HARD, Strata, hardest
from sgm_sde.sampling.trials import NOT_EXACT

REFERENCES = (64, 128, 256)  # network calls of exact trajectories, as many as are needed
KNOWN = 3e-4  # of the standard deviation: how well exact samples should be known
LONGER = (512, 1024)  # for rough networks, such as those with an entry of its own for each of 1000 times
ROUGH = 5e-3  # of the standard deviation: a network is rough where half of the samples are not known to that by 256
LEVELS = 48  # of exact states, among which those of the first fit are chosen: no budget can be larger
FEW_CALLS = (6, 12)  # of the runs whose distance tells how hard a noise is


@dataclass(frozen=True)
class Exact:
    """Data shared by all budgets.

    Attributes:
        fit: trajectories of the noises to fit to, the hardest of those screened after those at random.
        held: exact samples (H, d) of held-out noises, likewise.
        of_fit, of_held: their noises, with sampling weights.
        nfe: calls of a trajectory.
        doubt: how well they are known, in units of their standard deviation.
        median: how far half of the samples are at most from those by twice as many calls, at 256 calls or at fewer that
            are enough; in the same units.
        network_evals: samples that the network saw for them.
        units: in which they are, where numbers are of unlike scale.
    """

    fit: Trajectories
    held: Tensor
    of_fit: Strata
    of_held: Strata
    nfe: int
    doubt: float
    median: float
    network_evals: int
    units: Tensor | None = None

    @property
    def rough(self) -> bool:
        """True where so many calls leave such a distance that the network must change abruptly with time."""
        return self.median >= ROUGH

    @property
    def scale(self) -> float:
        """Standard deviation of the samples' numbers."""
        return spread_of(self.at_random.end, self.units)

    @cached_property
    def at_random(self) -> Trajectories:
        """Trajectories of the noises at random."""
        return self.fit[: self.of_fit.at_random]

    @cached_property
    def distances(self) -> Tensor:
        """Mean square distance (H,) of each held-out sample from their mean."""
        x = self.held.double()
        w = self.of_held.weights.to(x)
        center = (w[:, None] * x).mean(0)
        if self.units is None:
            center = center.mean()
        off = x - center
        return off.square().mean(1)

    @cached_property
    def variance(self) -> float:
        """Variance of all numbers of the held-out samples, which errors are in units of; 1 if they are all the same."""
        return self.of_held.mean(self.distances) or 1.0


@dataclass(frozen=True)
class References:
    """The making of exact trajectories, of noises at random and of the hardest of further ones.

    Args:
        flow: the network with all noises.
        noises: those to fit to.
        held: those to compare on.
        screened: further ones, of which the hardest are fitted to, and compared on; there may be none.
        reference_nfe: calls of a trajectory, if given.
        tell: what is done with words on what is done now.
    """

    flow: Flow
    noises: range
    held: range
    screened: Sequence[range]
    reference_nfe: int | None = None
    tell: Callable[[str], object] = lambda words: None

    def made(self) -> Exact:
        """Exact trajectories, by as many calls as they need."""
        flow = self.flow
        before = flow.network_evals
        self.tell("exact samples")
        few = range(min(16, len(self.noises)))
        calls, doubt, median = self.calls(few)
        fit, of_fit = self._with_hardest(self.noises, self.screened[0], 0, calls, LEVELS)
        affordable = len(self.screened[1]) * REFERENCES[-1] // calls
        held, of_held = self._with_hardest(self.held, self.screened[1], affordable, calls)
        return Exact(fit, held.end, of_fit, of_held, calls, doubt, median, flow.network_evals - before)

    def _with_hardest(
        self, noises: range, screened: range, least: int, calls: int, keep: int = 0
    ) -> tuple[Trajectories, Strata]:
        """Exact trajectories of noises at random, and of the hardest of further ones, at least so many, whose
        trajectories are finite.
        """
        flow = self.flow
        exact = flow.trajectories(noises, calls, keep)
        _require_finite(exact, calls)
        if not screened:
            return exact, Strata.even(noises)

        self.tell("the hardest of further noises")
        wanted = max(least, -(-len(noises) // HARD))
        places, as_hard = self._hardest(noises, screened, wanted, flow.units_of(exact.end))
        further = flow.trajectories(places, calls, keep)
        known = further.finite
        strata = Strata.even(noises, len(screened)).extended(places[known.cpu()], as_hard)
        return exact.joined(further[known]), strata

    def _hardest(self, noises: range, screened: range, wanted: int, units: Tensor | None) -> tuple[Tensor, Tensor]:
        """The hardest of those screened, and which of those at random are as hard; all, if so many are wanted."""
        if wanted >= len(screened):
            return torch.arange(screened.start, screened.stop), torch.ones(len(noises), dtype=torch.bool)
        at_random, further = (self._hardness(those, units) for those in (noises, screened))
        chosen, as_hard = hardest(at_random, further, wanted)
        return screened.start + chosen, as_hard

    def _hardness(self, noises: range, units: Tensor | None) -> Tensor:
        """The distances of the ends by a few calls from those by twice as many (n,), in units of their own."""
        few, more = (in_units(self.flow.trajectories(noises, calls).end, units) for calls in FEW_CALLS)
        return mean_squares(few, more).nan_to_num(nan=math.inf).cpu()

    def calls(self, few: range) -> tuple[int, float, float]:
        """Calls of a trajectory, how far samples of a few noises are from those by twice as many, and what tells rough.

        That is half of the samples' distance at 256 calls, or at fewer that are enough, whatever the caller takes.
        """

        @functools.cache
        def end(calls: int) -> Tensor:
            return self.flow.trajectories(few, calls).end.double()

        def distances(calls: int) -> tuple[float, float]:
            exact = end(2 * calls)
            return _distances(end(calls), exact, self.flow.units_of(exact))

        if self.reference_nfe is not None:
            calls = self.reference_nfe
            doubt, median = distances(calls)
            enough = doubt < KNOWN and calls <= REFERENCES[-1]
            return calls, doubt, median if enough else distances(REFERENCES[-1])[1]

        for calls in REFERENCES:
            doubt, median = distances(calls)
            if doubt < KNOWN:
                return calls, doubt, median

        for calls in LONGER if median >= ROUGH else ():
            doubt, _ = distances(calls)
            if doubt < KNOWN:
                break
        return calls, doubt, median


def arranged(flow: Flow, exact: Exact, screened: Sequence[int]) -> tuple[Flow, Exact]:
    """A network with the noises that are fitted to first, then those to compare on, and those of the ones that were
    screened that have no exact samples; numbers of unlike scale in units of their own.
    """
    further = torch.tensor(screened, dtype=torch.long)
    further = further[~torch.isin(further, exact.of_held.numbers)]
    flow = flow.arranged(torch.cat([exact.of_fit.numbers, exact.of_held.numbers, further]))

    units = flow.units_of(exact.at_random.end)
    if units is None:
        return flow, exact
    flow.units = units
    return flow, replace(exact, fit=exact.fit.times(units), held=exact.held * units, units=units)


def _require_finite(exact: Trajectories, calls: int) -> None:
    """Raise if trajectories by so many network calls are not finite."""
    failed = int((~exact.finite).sum())
    if failed:
        of = f"{failed} of {len(exact.end)} exact trajectories by {calls} network calls"
        raise ValueError(f"{of} are not finite; {NOT_EXACT}")


def mean_squares(x: Tensor, y: Tensor) -> Tensor:
    """Mean square over coordinates of the differences of samples (N, d), in double precision (N,)."""
    return (x - y).double().square().mean(1)


def _distances(x: Tensor, y: Tensor, units: Tensor | None) -> tuple[float, float]:
    """Root mean square and median of the distances of samples (N, d), in units of the standard deviation of y."""
    x = in_units(x, units)
    y = in_units(y, units)
    each = (x - y).square().mean(1).sqrt() / spread_of(y, units)
    return float(each.square().mean().sqrt()), float(each.median())
