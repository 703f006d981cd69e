"""Runs of settings from held-out noises: which is taken, and what is stated of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde._utils.shapes import flat
from sgm_sde.calibration.choice import Comparison
from sgm_sde.calibration.exact import LONGER, Exact, mean_squares
from sgm_sde.calibration.flow import Flow, Samples
from sgm_sde.calibration.result import PILOT, HeldOut
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.options import Execution
from sgm_sde.sampling.sampler import sample
from sgm_sde.sampling.trials import Race, RunOptions

SURER = 4  # times as many calls for the exact samples that a stated error depends on most
RACE = 64  # noises of the race of what is off the shelf
FINALISTS = 3  # of it, compared on held-out noises
OUTSIDE = 1.5  # times the distance of the farthest exact sample from their mean: beyond, a fit has blown up


class Ranked(NamedTuple):
    """Outcome of a comparison.

    Attributes:
        settings: all of them, the one to take first.
        outside: fits that left the range of the samples.
        few: how many noises make half of the mean square of the one to take.
    """

    settings: list[HeldOut]
    outside: list[HeldOut]
    few: int


class HeldOutRuns:
    """Runs from the noises of a calibration.

    Args:
        flow: the network, with the noises that are fitted to first, those held out next, and those without exact
            samples last.
        exact: exact samples.
        dtype: of samples.

    Attributes:
        surely_known: the held-out noises (N,), as truth values, of which exact samples by more calls are there.
    """

    def __init__(self, flow: Flow, exact: Exact, dtype: torch.dtype) -> None:
        n = len(exact.of_fit)
        self.flow = flow
        self.exact = exact
        self.dtype = dtype
        self.noises = range(n)
        self.held = range(n, n + len(exact.of_held))
        self._surer_ends = torch.full_like(exact.held, math.nan)  # which budgets share
        self.surely_known = torch.zeros(len(exact.held), dtype=torch.bool)

    @property
    def comparison(self) -> Comparison:
        """One without settings."""
        return Comparison(self.exact.of_held, self.exact.distances / self.exact.variance)

    def off_the_shelf(self, n: int, held_out: Comparison) -> list[HeldOut]:
        """The best settings of the pilot's race, on held-out noises."""
        flow = self.flow
        few = min(RACE, self.exact.of_fit.at_random)
        kwargs = flow.conditions(torch.arange(few))
        seeds = flow.seeds[:few]
        ends = flow.unmeasured(self.exact.fit.end[:few])
        options: RunOptions = {
            "t_end": None,
            "final": "denoise",
            "execution": Execution(dtype=self.dtype, device=flow.device),
        }
        race = Race(flow.score, flow.sde, flow.event, seeds, ends, self.exact.doubt, options, kwargs, kwargs)
        result = race.race(race.candidates(n), n, 1000 * few)
        flow.network_evals += race.network_evals

        compared = []
        for setting, _ in result.errors[:FINALISTS]:
            compared.append(self.compared(held_out, PILOT, setting, n))
        return sorted(compared, key=lambda one: one.rmse)

    def compared(self, held_out: Comparison, name: str, setting: Setting, nfe: int) -> HeldOut:
        """A setting at a budget on held-out noises."""
        x = self.run(setting, self.held, nfe)
        return held_out.add(name, setting, mean_squares(x, self.exact.held) / self.exact.variance)

    def run(self, setting: Setting, samples: Samples, nfe: int) -> Tensor:
        """Samples (n, d) of a setting."""
        flow = self.flow
        found = []
        for of in torch.split(torch.as_tensor(samples), flow.batch_size):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = sample(
                    flow.score, flow.sde, (len(of), *flow.event), solver=setting, nfe=nfe,
                    seed=flow.seeds.select(of.numpy()), model_kwargs=flow.conditions(of),
                    execution=Execution(dtype=self.dtype, device=flow.device),
                )  # fmt: skip
            flow.network_evals += result.network_evals
            found.append(flow.measured(flat(result.x)))
        return torch.cat(found)

    def fitted_median(self, one: HeldOut, n: int) -> float:
        """The median error of a setting on the noises of the fit."""
        x = self.run(one.setting, self.noises, n)
        each = mean_squares(x, self.exact.fit.end).sqrt()
        return self.exact.of_fit.median(each) / math.sqrt(self.exact.variance)

    def ranked(self, held_out: Comparison, shelf: HeldOut, n: int) -> Ranked:
        """All settings in order, with what is stated of the one to take and of the best off the shelf."""
        stays = self.inside(shelf, n)
        taken, outside = held_out.best(stays)
        parts = held_out.by_part(stays)
        each = self.each(held_out, parts, n)
        first = held_out.measured(taken.name, taken.setting, each)

        others = [one for one in held_out.squares if one not in (taken, shelf) and math.isfinite(one.rmse)]
        if taken is not shelf:
            everywhere = torch.ones(len(each), dtype=torch.bool)
            of_shelf = self.each(held_out, [(shelf, everywhere)], n)
            others.append(held_out.measured(shelf.name, shelf.setting, of_shelf))
        others.sort(key=lambda one: one.rmse)
        return Ranked([first, *others], outside, held_out.of_few(each))

    def each(self, held_out: Comparison, parts: Sequence[tuple[HeldOut, Tensor]], n: int) -> Tensor:
        """Mean square errors (N,) by the settings of parts, by surer exact samples where it matters."""
        each = held_out.cross_fitted(parts)
        calls = min(SURER * self.exact.nfe, LONGER[-1])
        if calls <= self.exact.nfe:
            return each

        unsure = held_out.unsure(each, self.exact.doubt)
        for one, part in parts:
            here = unsure & part.to(unsure.device)
            if not bool(here.any()):
                continue
            found = self._surely(one.setting, here, calls, n)
            found = found / self.exact.variance
            each[here] = torch.where(found.isfinite(), found, each[here])
        return each

    def _surely(self, setting: Setting, here: Tensor, calls: int, n: int) -> Tensor:
        """Mean squares of a setting's errors on some of the held-out noises, by exact samples of so many calls."""
        (places,) = here.cpu().nonzero(as_tuple=True)
        exact_ends = self._surer(places, calls)
        x = self.run(setting, self.held.start + places, n)
        return mean_squares(x, exact_ends)

    def _surer(self, places: Tensor, calls: int) -> Tensor:
        """Ends (n, d) of exact trajectories by more calls, of held-out noises by their places (n,) among these."""
        new = places[~self.surely_known[places]]
        if len(new):
            ends = self.flow.trajectories(self.held.start + new, calls).end
            self._surer_ends[new.to(ends.device)] = ends
            self.surely_known[new] = True
        return self._surer_ends[places.to(self._surer_ends.device)]

    def inside(self, shelf: HeldOut, n: int) -> Callable[[HeldOut], bool]:
        """A test of a fit: that its samples from all held-out noises stay in the range of the exact ones, or of those
        off the shelf.
        """
        samples = range(self.held.start, len(self.flow.seeds))  # also those without exact samples
        center = self.exact.at_random.end.mean(0)
        limit = OUTSIDE * _reach([self.exact.fit.end, self.exact.held, self.run(shelf.setting, samples, n)], center)

        known: dict[int, bool] = {}

        def stays(one: HeldOut) -> bool:
            key = id(one.setting)
            if key not in known:
                known[key] = _farthest(self.run(one.setting, samples, n), center) <= limit  # false if no number
            return known[key]

        return stays


def _farthest(x: Tensor, center: Tensor) -> float:
    """The largest root mean square over coordinates of samples (N, d) around a center (d,)."""
    return float(mean_squares(x, center).sqrt().max())


def _reach(ends: Sequence[Tensor], center: Tensor) -> float:
    """The largest of several `_farthest`, of those that are numbers."""
    reached = (_farthest(x, center) for x in ends)
    return max((far for far in reached if not math.isnan(far)), default=math.nan)
