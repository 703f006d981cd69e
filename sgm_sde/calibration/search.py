"""`calibrate`: from a network to the table that suits it at a budget of calls."""

from __future__ import annotations

import functools
import json
import math
import secrets
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.checks import (
    arguments,
    check_integer,
    described,
    flag,
    float_dtype,
    instance_of,
    number,
    sizes,
    table_size,
)
from sgm_sde._utils.elsewhere import OF_TRIALS, SOLVERS, instead_of, named_elsewhere
from sgm_sde._utils.files import folder_to_write
from sgm_sde._utils.shapes import flat
from sgm_sde._utils.tree import Conditions
from sgm_sde._utils.units import in_units, spread_of
from sgm_sde._utils.warn import warn
from sgm_sde.calibration import closed
from sgm_sde.calibration.choice import FEW_NOISES, Comparison
from sgm_sde.calibration.flow import Flow, Samples, Trajectories
from sgm_sde.calibration.network import CalibrationWarning, network_of, process_of
from sgm_sde.calibration.refine import Refinement
from sgm_sde.calibration.result import PILOT, Calibration, Calibrations, HeldOut, from_json, to_json
from sgm_sde.calibration.rough import searched
from sgm_sde.calibration.rows import Rows
from sgm_sde.calibration.strata import (
    FEW_DIMENSIONS,
    HARD,
    HELD,
    HELD_IN_FEW,
    MOST_IN_FEW,
    SCREENED,
    SCREENED_IN_FEW,
    Strata,
    hardest,
)
from sgm_sde.calibration.table import Calibrated
from sgm_sde.engine.noise import one_seed, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.identity import spec
from sgm_sde.processes.base import require_sde
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.runs.store import Store
from sgm_sde.sampling.defaults import Setting
from sgm_sde.sampling.options import Execution
from sgm_sde.sampling.planning import plan
from sgm_sde.sampling.sampler import sample
from sgm_sde.sampling.trials import (
    NOT_EXACT,
    Race,
    RunOptions,
    budgets_of,
    device_with_numbers,
)
from sgm_sde.scores.conditions import bare
from sgm_sde.scores.score import as_score

FITTED = "pilot(), which compares solvers: calibrate fits a table of its own"
REFERENCES = (64, 128, 256)  # network calls of exact trajectories, as many as are needed
KNOWN = 3e-4  # of the standard deviation: how well exact samples should be known
LONGER = (512, 1024)  # for rough networks, such as those with an entry of its own for each of 1000 times
ROUGH = 5e-3  # of the standard deviation: a network is rough where half of the samples are not known to that by 256
SURER = 4  # times as many calls for the exact samples that a stated error depends on most
LEVELS = 48  # of exact states, among which those of the first fit are chosen: no budget can be larger
RACE = 64  # noises of the race of what is off the shelf
FINALISTS = 3  # of it, compared on held-out noises
METHOD = 3  # of which noises are which: what another has begun is not continued
FEW_CALLS = (6, 12)  # of the runs whose distance tells how hard a noise is
OUTSIDE = 1.5  # times the distance of the farthest exact sample from their mean: beyond, a fit has blown up
DOUBT = "exact samples"  # what a remark on them begins with
IN_OWN_UNITS = "the numbers of a sample are of unlike scale: each is measured by its own standard deviation"
FEW = 2.0  # times the median error on the noises of the fit: beyond, there were too few of them
EQUATIONS = 1024  # noises times dimensions below which there are few
EXACT = "exact-trajectories"  # in a checkpoint
MEASURED = ("nfe", "doubt", "median", "network_evals")  # of them
STRATA = ("fit", "held")  # what noises are for


@dataclass(frozen=True)
class _Fit:
    """Kind of a refinement, with what results call it; see `Refinement` for the flags."""

    words: str
    consistent: bool = False
    robust: bool = True
    bounded: bool = False
    held: bool = False


FITS = {  # by what is stored of a budget
    "robust": _Fit("refined, consistent", consistent=True),
    "bounded": _Fit("refined, consistent, of bounded influence", consistent=True, bounded=True),
    "further": _Fit("refined, consistent, from bounded influence", consistent=True),
    "free": _Fit("refined, from consistent", robust=False),
    "direct": _Fit("refined", robust=False),
    "shelf": _Fit("refined, consistent, from levels off the shelf", consistent=True),
    "free-shelf": _Fit("refined, from consistent from levels off the shelf", robust=False),
    "direct-shelf": _Fit("refined, robust, from levels off the shelf"),
    "searched": _Fit("levels searched", held=True),
    "searched-further": _Fit("levels searched, from refined", held=True),
}


@overload
def calibrate(
    score_fn: ScoreFn, sde: LinearSDE, shape: Sequence[int], *, nfe: int, held_out: int = ..., seed: int | None = ...,
    model_kwargs: Conditions | None = ..., batch_size: int = ..., reference_nfe: int | None = ...,
    time_limit: float | None = ..., checkpoint: Path | str | None = ..., progress: bool = ...,
    dtype: torch.dtype | None = ..., device: torch.device | str | None = ...,
) -> Calibration: ...  # fmt: skip


@overload
def calibrate(
    score_fn: ScoreFn, sde: LinearSDE, shape: Sequence[int], *, nfe: Sequence[int], held_out: int = ...,
    seed: int | None = ..., model_kwargs: Conditions | None = ..., batch_size: int = ...,
    reference_nfe: int | None = ..., time_limit: float | None = ..., checkpoint: Path | str | None = ...,
    progress: bool = ..., dtype: torch.dtype | None = ..., device: torch.device | str | None = ...,
) -> Calibrations: ...  # fmt: skip


@named_elsewhere(OF_TRIALS | instead_of((*SOLVERS, "solver"), FITTED))
@outside_inference_mode
@torch.no_grad()
def calibrate(
    score_fn: ScoreFn,
    sde: LinearSDE,
    shape: Sequence[int],
    *,
    nfe: int | Sequence[int],
    held_out: int = 128,
    seed: int | None = None,
    model_kwargs: Conditions | None = None,
    batch_size: int = 512,
    reference_nfe: int | None = None,
    time_limit: float | None = None,
    checkpoint: Path | str | None = None,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Calibration | Calibrations:
    r"""Solver fitted to a network for a budget of calls: the table with the least error of its samples.

    A solver is a table of numbers, so the best one for a network is a table with fitted numbers. All noise levels and
    all weights of `Table` are fitted to the ends of exact trajectories, by forward calls of the network alone: levels
    by dynamic programming, rows by least squares, then everything together by Levenberg-Marquardt on

    $$ \frac1N\sum_i \Bigl|\frac{y_n^i - x^i}{c}\Bigr|^2 $$

    with the samples $y_n$, the exact samples x from the same noises, and their standard deviation c. For a rough
    network, where half of the samples by 256 calls are off those by 512 by more than 5e-3 of the standard deviation,
    derivatives with respect to levels say nothing, and levels are also searched at random. On noises that nothing was
    fitted to, what came out is compared with the best setting off the shelf, which is returned where a fit is not at
    least 10 % better. Where single noises make the error, 128 at random know little of it: so many more are screened by
    18 calls each, of which the hardest are fitted to, for as many as they are, and many more are held out, so that the
    luckiest fit is not taken for the best. Up to 16 numbers in a row whose standard deviations differ more than four
    times are each measured by their own.

    Args:
        score_fn: the score, as `sample` takes it; a guided score at the scale that it is for.
        sde: a linear process.
        shape: (B, *): B noises to fit to. 128 are good, 64 are enough for up to 6 calls; in few dimensions take more,
            512 in two. In up to 16 dimensions beyond 4096 no error becomes smaller: these are fitted to, and the others
            are among those that are screened.
        nfe: the budget of network calls, 48 at most, or several, which share the exact trajectories.
        held_out: further noises, on which the error is measured, and 4 times as many more, 16 times in up to 16
            dimensions; of these the hardest for rough networks. To the noises of the fit a quarter as many are added,
            the hardest of 8 times as many, of 32 times in up to 16 dimensions.
        seed: of all noises; drawn anew if not given.
        model_kwargs: passed on to the network. Arguments of one row per sample (`sg.PerSample`) have B rows, and other
            noises take them in turn.
        batch_size: samples in a network call, at most.
        reference_nfe: network calls of an exact trajectory; by default 64, 128 or 256, the first that is known to 3e-4
            of the standard deviation, and for rough networks up to 1024.
        time_limit: in seconds; when it is over a fit ends where it is.
        checkpoint: a folder, made in one that is there, in which exact trajectories and finished fits are kept: an
            interrupted call resumes with them.
        progress: show a progress bar.
        dtype: of the samples; torch's default if not given.
        device: of the samples; the network's if it has parameters.

    Returns:
        the calibration, which `sample(solver=...)` takes; for several budgets a mapping of them.

    Raises:
        ValueError: for arguments out of range, exact trajectories that are not finite, or a checkpoint of another call.
        TypeError: for a process without alpha and sigma.
        OSError: for a checkpoint in a folder that is not there, or where there is a file.

    Warns:
        CalibrationWarning: if exact samples are not known well enough for what was found.

    Source: the family of tables is that of Shaul et al., 2024, arXiv:2403.01329; dynamic programming on trajectories
    as in Chen et al., 2024, arXiv:2405.11326, with another cost.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> score = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3).score(sde)
        >>> solver = sg.calibrate(score, sde, (16, 1), nfe=3, held_out=16, seed=0)
        >>> sg.sample(score, sde, (4, 1), solver=solver, seed=1).nfe
        3
    """
    budgets = _budgets(sde, nfe)
    given = _noises(shape)
    held_out = check_integer("held_out", held_out, 2)
    batch_size = check_integer("batch_size", batch_size)
    kwargs = arguments("model_kwargs", model_kwargs)
    if time_limit is not None:
        time_limit = number("time_limit", time_limit, above=0)
    if reference_nfe is not None:
        reference_nfe = table_size("reference_nfe", reference_nfe, 8)
    progress = flag("progress", progress)
    if checkpoint is not None:
        instance_of("checkpoint", checkpoint, str | Path, "the path of a folder")
        if not folder_to_write(checkpoint).absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {Path(checkpoint).parent} to make the checkpoint in")
    if dtype is not None:
        float_dtype("dtype", dtype)
    seed = secrets.randbits(63) if seed is None else one_seed(seed)

    of_caller, *event = given
    few = math.prod(event) <= FEW_DIMENSIONS
    n = min(of_caller, MOST_IN_FEW) if few else of_caller
    for_fit = max(n * (SCREENED_IN_FEW if few else SCREENED), of_caller - n)
    screened = for_fit, held_out * (HELD_IN_FEW if few else HELD)
    total = n + held_out + sum(screened)
    seeds = resolve_seeds(seed, None, total)
    score = as_score(score_fn, sde)
    place = device_with_numbers(score, device)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    flow = Flow(score, sde, event, seeds, of_caller, kwargs, batch_size, dtype, place)
    search = _Search(flow, n, held_out, seed, dtype, reference_nfe, time_limit, screened)

    found = {}
    with _Kept(checkpoint, search) as kept, _Bar(progress, len(budgets)) as bar:
        search.tell = bar.set_description_str
        for done, budget in enumerate(budgets):
            found[budget] = kept.budget(budget, len(budgets) - done)
            bar.update()

    for one in found.values():
        _warn_of_doubt(one)
    return Calibrations(found) if isinstance(nfe, Sequence) else found[budgets[0]]


def _budgets(sde: LinearSDE, nfe: int | Sequence[int]) -> list[int]:
    """The budgets, of a process that there are tables for."""
    require_sde(sde)
    if not has_scalar_marginal(sde):
        raise TypeError(f"calibration needs a LinearSDE, got {described(sde)}")
    budgets = budgets_of(nfe)
    if max(budgets) > LEVELS:
        raise ValueError(
            f"nfe must be {LEVELS} at most, the levels among which those of calls are chosen, got {max(budgets)}"
        )
    return budgets


def _warn_of_doubt(found: Calibration) -> None:
    """Warn of exact samples that are not known as well as they should be; what is below that, a remark says."""
    for remark in found.remarks if found.reference_error >= KNOWN else ():
        if remark.startswith(DOUBT):
            warn(f"calibration at {found.nfe} calls: {remark}", CalibrationWarning)


def _noises(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the noises to fit to."""
    given = sizes("shape", shape)
    if not given or given[0] < 2:
        raise ValueError(f"shape must be (B, *) with at least 2 noises to fit to, got {given}")
    return given


@dataclass(frozen=True)
class _Exact:
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


class _Ranked(NamedTuple):
    """Outcome of a comparison.

    Attributes:
        settings: all of them, the one to take first.
        outside: fits that left the range of the samples.
        few: how many noises make half of the mean square of the one to take.
    """

    settings: list[HeldOut]
    outside: list[HeldOut]
    few: int


def _screening(of_fit: Strata, of_held: Strata) -> dict[str, int]:
    """Hard noises beside those at random, and how many were screened for them, as parts of a protocol."""
    found = {}
    for name, strata in (("noises", of_fit), ("held_out", of_held)):
        found[f"hard_{name}"] = len(strata) - strata.at_random
        found[f"screened_{name}"] = strata.drawn - strata.at_random
    return found


class _Search:
    """The fits for budgets, on noises 0 to B - 1, compared on the next ones.

    Args:
        flow: the network with all noises.
        n: noises to fit to.
        held_out: noises to compare on.
        seed: of all of them.
        dtype: of samples.
        reference_nfe: calls of an exact trajectory, if given.
        time_limit: in seconds, for all.
        screened: further noises, of which the hardest are fitted to and compared on.
    """

    def __init__(
        self,
        flow: Flow,
        n: int,
        held_out: int,
        seed: int,
        dtype: torch.dtype,
        reference_nfe: int | None,
        time_limit: float | None,
        screened: tuple[int, int] = (0, 0),
    ) -> None:
        self.flow = flow
        self.n = n
        self.dtype = dtype
        self.reference_nfe = reference_nfe
        self.noises = range(n)
        self.held = range(n, n + held_out)
        self.screened: list[range] = []
        end = self.held.stop
        for count in screened:
            self.screened.append(range(end, end + count))
            end += count
        self.store: Store | None = None  # where finished parts of a budget are kept
        self.surer: dict[int, Tensor] = {}  # ends of exact trajectories by more calls, by place
        self.seconds_before = 0.0  # of the parts of a budget that an earlier call had finished
        self.tell: Callable[[str], object] = lambda words: None  # what is done now
        self.end = math.inf if time_limit is None else time.monotonic() + time_limit
        network = network_of(flow.score)
        self.protocol = {
            "noises": n,
            "held_out": held_out,
            "seed": seed,
            "shape": list(flow.event),
            "dtype": str(flow.dtype),
            "process": spec(flow.sde),
            "network": json.loads(network or "null"),
            "final": "denoise",
            "model_kwargs": spec(bare(flow.resolved)),
        }

    def exact(self) -> _Exact:
        """Exact trajectories, by as many calls as they need."""
        flow = self.flow
        before = flow.network_evals
        self.tell("exact samples")
        few = range(min(16, self.n))
        calls, doubt, median = self._calls(few)
        fit, of_fit = self._with_hardest(self.noises, self.screened[0], 0, calls, LEVELS)
        affordable = len(self.screened[1]) * REFERENCES[-1] // calls
        held, of_held = self._with_hardest(self.held, self.screened[1], affordable, calls)
        return _Exact(fit, held.end, of_fit, of_held, calls, doubt, median, flow.network_evals - before)

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
        return _mean_squares(few, more).nan_to_num(nan=math.inf).cpu()

    def arrange(self, exact: _Exact) -> _Exact:
        """Put the noises that are fitted to first, then those to compare on, and those without exact samples; and
        measure numbers of unlike scale in units of their own.
        """
        further = torch.tensor(self.screened[1], dtype=torch.long)
        further = further[~torch.isin(further, exact.of_held.numbers)]
        self.flow = self.flow.arranged(torch.cat([exact.of_fit.numbers, exact.of_held.numbers, further]))
        n = len(exact.of_fit)
        self.noises = range(n)
        self.held = range(n, n + len(exact.of_held))

        units = self.flow.units_of(exact.at_random.end)
        if units is None:
            return exact
        self.flow.units = units
        return replace(exact, fit=exact.fit.times(units), held=exact.held * units, units=units)

    def _calls(self, few: range) -> tuple[int, float, float]:
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

    def budget(self, n: int, exact: _Exact, left: int) -> Calibration:
        """The calibration for n calls, while `left` budgets, this one included, share what time there is."""
        started = time.monotonic()
        self.seconds_before = 0.0
        before = self.flow.network_evals
        share = started + max(0.0, self.end - started) / left

        def late() -> bool:
            return time.monotonic() > share

        held_out = Comparison(exact.of_held, exact.distances / exact.variance)
        self.tell(f"{n} calls: settings off the shelf")
        shelf = self._off_the_shelf(n, exact, held_out)
        fitted = self._fits(n, exact, [one.setting for one in shelf], late)
        self.tell(f"{n} calls: held-out noises")
        for name, setting in fitted:
            self._compared(held_out, name, setting, exact, n)
        ranked = self._ranked(held_out, shelf[0], exact, n)
        fitted_median = self._fitted_median(ranked.settings[0], exact, n)
        return Calibration(
            ranked.settings,
            n,
            reference_error=exact.doubt,
            network_evals=self.flow.network_evals - before,
            shared_evals=exact.network_evals,
            seconds=self.seconds_before + time.monotonic() - started,
            protocol={**self.protocol, "reference_nfe": exact.nfe, **_screening(exact.of_fit, exact.of_held)},
            remarks=self._remarks(ranked, exact, fitted_median, is_late=late()),
        )

    def _ranked(self, held_out: Comparison, shelf: HeldOut, exact: _Exact, n: int) -> _Ranked:
        """All settings in order, with what is stated of the one to take and of the best off the shelf."""
        stays = self._inside(shelf, exact, n)
        taken, outside = held_out.best(stays)
        parts = held_out.by_part(stays)
        each = self._each(held_out, parts, exact, n)
        first = held_out.measured(taken.name, taken.setting, each)

        others = [one for one in held_out.squares if one not in (taken, shelf) and math.isfinite(one.rmse)]
        if taken is not shelf:
            everywhere = torch.ones(len(each), dtype=torch.bool)
            of_shelf = self._each(held_out, [(shelf, everywhere)], exact, n)
            others.append(held_out.measured(shelf.name, shelf.setting, of_shelf))
        others.sort(key=lambda one: one.rmse)
        return _Ranked([first, *others], outside, held_out.of_few(each))

    def _each(self, held_out: Comparison, parts: Sequence[tuple[HeldOut, Tensor]], exact: _Exact, n: int) -> Tensor:
        """Mean square errors (N,) by the settings of parts, by surer exact samples where it matters."""
        each = held_out.cross_fitted(parts)
        calls = min(SURER * exact.nfe, LONGER[-1])
        if calls <= exact.nfe:
            return each

        unsure = held_out.unsure(each, exact.doubt)
        for one, part in parts:
            here = unsure & part.to(unsure.device)
            if not bool(here.any()):
                continue
            found = self._surely(one.setting, here, calls, n)
            found = found / exact.variance
            each[here] = torch.where(found.isfinite(), found, each[here])
        return each

    def _surely(self, setting: Setting, here: Tensor, calls: int, n: int) -> Tensor:
        """Mean squares of a setting's errors on some of the held-out noises, by exact samples of so many calls."""
        (places,) = here.cpu().nonzero(as_tuple=True)
        noises = self.held.start + places
        exact_ends = self._surer(noises.tolist(), calls)
        x = self._run(setting, noises, n)
        return _mean_squares(x, exact_ends)

    def _surer(self, places: list[int], calls: int) -> Tensor:
        """Ends (n, d) of exact trajectories by more calls, which are kept for other budgets."""
        new = [place for place in places if place not in self.surer]
        if new:
            ends = self.flow.trajectories(torch.tensor(new), calls).end
            self.surer.update(zip(new, ends, strict=True))
        return torch.stack([self.surer[place] for place in places])

    def _inside(self, shelf: HeldOut, exact: _Exact, n: int) -> Callable[[HeldOut], bool]:
        """A test of a fit: that its samples from all held-out noises stay in the range of the exact ones, or of those
        off the shelf.
        """
        samples = range(self.held.start, len(self.flow.seeds))  # also those without exact samples
        center = exact.at_random.end.mean(0)
        limit = OUTSIDE * _reach([exact.fit.end, exact.held, self._run(shelf.setting, samples, n)], center)

        known: dict[int, bool] = {}

        def stays(one: HeldOut) -> bool:
            key = id(one.setting)
            if key not in known:
                known[key] = _farthest(self._run(one.setting, samples, n), center) <= limit  # false if no number
            return known[key]

        return stays

    def _remarks(self, ranked: _Ranked, exact: _Exact, fitted_median: float, is_late: bool) -> list[str]:
        """Sentences on what to know about a budget."""
        remarks = []
        taken = ranked.settings[0]
        if self.flow.units is not None:
            remarks.append(IN_OWN_UNITS)
        remarks += _of_few_noises(self.n, math.prod(self.flow.event))
        if self.flow.given > self.n:
            remarks.append(f"{self.n} of {self.flow.given} noises were fitted to, and the hardest of the others")
        if ranked.outside:
            names = ", ".join(one.name for one in ranked.outside)
            remarks.append(f"some of the noises left the range of the exact samples with: {names}")
        if taken.name.startswith(PILOT):
            remarks.append("no fit is 10 % better than what is off the shelf, which is taken")
        elif taken.median > FEW * fitted_median:  # of medians: single noises make errors, and say nothing of the fit
            remarks.append(f"on the noises of the fit the median is {fitted_median:.1e}: more of them would help")
        if ranked.few <= FEW_NOISES:
            of = "one noise" if ranked.few == 1 else f"{ranked.few} noises"
            half = f"half of the mean square error is that of {of}"
            remarks.append(f"{half}: on others it may be far from what is stated")
        if not exact.doubt < taken.rmse / 3:
            known = f"{DOUBT} are known to {exact.doubt:.1e} only, beside an error of {taken.rmse:.1e}"
            remarks.append(f"{known}: a larger reference_nfe= makes a better fit, and tells its error better")
        if is_late:
            remarks.append("the time limit ended the fit before it had settled")
        return remarks

    def _fits(
        self, n: int, exact: _Exact, shelf: Sequence[Setting], late: Callable[[], bool]
    ) -> list[tuple[str, Setting]]:
        """All fits, by name; some start from the levels of settings off the shelf."""
        flow = self.flow
        samples = self.noises
        z = flow.noise(samples)
        at_random = exact.at_random
        some = slice(exact.of_fit.at_random)
        closed_form = partial(closed.fit_rows, flow, at_random, z[some], exact.scale, samples=samples[some])
        log_levels = at_random.log_levels
        chosen = closed.levels(closed.weighted_grams(at_random, z[some], exact.scale, exact.units), n)
        plain = closed_form(chosen, consistent=False)
        consistent = closed_form(chosen, consistent=True)
        found = {"least squares": plain, "least squares, consistent": consistent}

        def refined(name: str, start: Rows) -> Rows:
            kind = FITS[name]
            self.tell(f"{n} calls: {kind.words}")
            fit = Refinement(
                flow, z, exact.fit.end, exact.scale, samples, kind.consistent, late, kind.robust, kind.bounded,
                kind.held, exact.of_fit.weights,
            )  # fmt: skip

            def make() -> Rows:
                return fit.fit(searched(fit, start) if kind.held else start)

            found[kind.words] = self._once(f"budget-{n}-{name}", make, late)
            return found[kind.words]

        def error(rows: Rows) -> float:
            return self._error(rows, z, exact)

        # All noises at once; and what most of them say first, then all.
        robust = refined("robust", consistent)
        bounded = refined("bounded", consistent)
        further = refined("further", bounded)

        # Rows that need not be consistent, from the best of these and from the closed form.
        refined("free", min(robust, bounded, further, key=error))
        refined("direct", plain)

        # From the levels of what is off the shelf: dynamic programming looks at single steps.
        others = [levels for levels in self._levels_of(shelf, n, log_levels) if levels != chosen]
        if others:
            starts = [closed_form(levels, consistent=False) for levels in others]
            levels, start = min(zip(others, starts, strict=True), key=lambda pair: error(pair[1]))
            placed = refined("shelf", closed_form(levels, consistent=True))
            refined("free-shelf", placed)
            refined("direct-shelf", start)

        # Derivatives with respect to levels say nothing of a rough network.
        if exact.rough:
            refined("searched", plain)
            refined("searched-further", min(found.values(), key=error))

        return [(name, self._setting(rows)) for name, rows in found.items()]

    def _levels_of(self, settings: Sequence[Setting], n: int, log_levels: Tensor) -> list[list[int]]:
        """The levels nearest to those of the n calls of settings, as indices; of settings with fewer levels none."""
        sde = self.flow.sde
        found = []
        for setting in settings:
            _, grid, program = plan(sde, setting, nfe=n)
            times = [] if program is None else [stage.t for stage in program.stages if stage.evaluate]
            times = sorted({*times, grid.times[-1]}, reverse=True)[:n]
            wanted = [math.log(node.noise_level) for node in sde.nodes(times) if node.noise_level > 0]
            levels = closed.nearest(log_levels, wanted)
            if levels is not None and len(levels) == n:
                found.append(levels)
        return found

    def _setting(self, rows: Rows) -> Setting:
        process = process_of(self.flow.sde)
        network = network_of(self.flow.score)
        return Setting(Calibrated(rows.table(), process, network))

    def _once(self, name: str, make: Callable[[], Rows], late: Callable[[], bool]) -> Rows:
        """A fit, or what is stored of it; stored, unless it had no time to settle."""
        if self.store is not None and self.store.has(name):
            info = self.store.info(name)
            self.flow.network_evals += int(info["network_evals"])
            self.seconds_before += float(info["seconds"])
            return Rows(**self.store.load(name))

        before = self.flow.network_evals
        started = time.monotonic()
        rows = make()
        if self.store is not None and not late():
            spent = {"network_evals": self.flow.network_evals - before, "seconds": time.monotonic() - started}
            self.store.save(name, vars(rows), spent)
        return rows

    def _error(self, rows: Rows, z: Tensor, exact: _Exact) -> float:
        each = _mean_squares(rows.run(self.flow, z, self.noises)[0], exact.fit.end)
        error = exact.of_fit.mean(each)
        return error if math.isfinite(error) else math.inf

    def _off_the_shelf(self, n: int, exact: _Exact, held_out: Comparison) -> list[HeldOut]:
        """The best settings of the pilot's race, on held-out noises."""
        flow = self.flow
        few = min(RACE, self.n)
        kwargs = flow.conditions(torch.arange(few))
        seeds = flow.seeds[:few]
        ends = flow.unmeasured(exact.fit.end[:few])
        options: RunOptions = {
            "t_end": None,
            "final": "denoise",
            "execution": Execution(dtype=self.dtype, device=flow.device),
        }
        race = Race(flow.score, flow.sde, flow.event, seeds, ends, exact.doubt, options, kwargs, kwargs)
        result = race.race(race.candidates(n), n, 1000 * few)
        flow.network_evals += race.network_evals

        compared = []
        for setting, _ in result.errors[:FINALISTS]:
            compared.append(self._compared(held_out, PILOT, setting, exact, n))
        return sorted(compared, key=lambda one: one.rmse)

    def _compared(self, held_out: Comparison, name: str, setting: Setting, exact: _Exact, nfe: int) -> HeldOut:
        """A setting at a budget on held-out noises."""
        x = self._run(setting, self.held, nfe)
        return held_out.add(name, setting, _mean_squares(x, exact.held) / exact.variance)

    def _run(self, setting: Setting, samples: Samples, nfe: int) -> Tensor:
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

    def _fitted_median(self, one: HeldOut, exact: _Exact, n: int) -> float:
        """The median error of a setting on the noises of the fit."""
        x = self._run(one.setting, self.noises, n)
        each = _mean_squares(x, exact.fit.end).sqrt()
        return exact.of_fit.median(each) / math.sqrt(exact.variance)


def _of_few_noises(n: int, d: int) -> list[str]:
    """Remark on n noises of d numbers where they are few, so that hardly any is one that ends in another mode.

    Examples:
        >>> _of_few_noises(128, 1)[0]
        '128 noises of 1 number are few: errors on others may be several times what is stated, take 1024'
    """
    enough = EQUATIONS // d
    if n >= enough:
        return []

    numbers = "1 number" if d == 1 else f"{d} numbers"
    return [f"{n} noises of {numbers} are few: errors on others may be several times what is stated, take {enough}"]


def _require_finite(exact: Trajectories, calls: int) -> None:
    """Raise if trajectories by so many network calls are not finite."""
    failed = int((~exact.finite).sum())
    if failed:
        of = f"{failed} of {len(exact.end)} exact trajectories by {calls} network calls"
        raise ValueError(f"{of} are not finite; {NOT_EXACT}")


def _mean_squares(x: Tensor, y: Tensor) -> Tensor:
    """Mean square over coordinates of the differences of samples (N, d), in double precision (N,)."""
    return (x - y).double().square().mean(1)


def _farthest(x: Tensor, center: Tensor) -> float:
    """The largest root mean square over coordinates of samples (N, d) around a center (d,)."""
    return float(_mean_squares(x, center).sqrt().max())


def _reach(ends: Sequence[Tensor], center: Tensor) -> float:
    """The largest of several `_farthest`; what comes after the first may be no number, and does not count then."""
    return max(_farthest(x, center) for x in ends)


def _distances(x: Tensor, y: Tensor, units: Tensor | None) -> tuple[float, float]:
    """Root mean square and median of the distances of samples (N, d), in units of the standard deviation of y."""
    x = in_units(x, units)
    y = in_units(y, units)
    each = (x - y).square().mean(1).sqrt() / spread_of(y, units)
    return float(each.square().mean().sqrt()), float(each.median())


class _Kept:
    """Stored results in a folder, if there is one, from which an interrupted call is resumed."""

    def __init__(self, folder: Path | str | None, search: _Search) -> None:
        self.search = search
        screened = [len(noises) for noises in search.screened]
        settings = {
            **search.protocol,
            "reference_nfe": search.reference_nfe,
            "screened": screened,
            "method": METHOD,
        }
        self.store = None if folder is None else Store(folder, settings)
        search.store = self.store
        self._exact: _Exact | None = None

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        if self.store is not None:
            self.store.close()

    def budget(self, n: int, left: int) -> Calibration:
        """The calibration for n calls."""
        name = f"budget-{n}"
        if self.store is not None and self.store.has(name):
            return from_json(self.store.info(name)["calibration"])
        found = self.search.budget(n, self.exact(), left)
        if self.store is not None:
            self.store.save(name, {}, {"calibration": to_json(found)})
        return found

    def exact(self) -> _Exact:
        """Data shared by all budgets."""
        if self._exact is None:
            if self.store is not None and self.store.has(EXACT):
                self._exact = self._loaded(self.store)
            else:
                self._exact = self.search.exact()
                if self.store is not None:
                    self._save(self.store, self._exact)
            self._exact = self.search.arrange(self._exact)
        return self._exact

    @staticmethod
    def _save(store: Store, exact: _Exact) -> None:
        tensors = {"held": exact.held, **vars(exact.fit)}
        info: dict[str, object] = {key: getattr(exact, key) for key in MEASURED}
        for name, strata in zip(STRATA, (exact.of_fit, exact.of_held), strict=True):
            tensors |= {f"numbers_{name}": strata.numbers, f"hard_{name}": strata.hard}
            info[name] = [strata.at_random, strata.drawn]
        store.save(EXACT, tensors, info)

    def _loaded(self, store: Store) -> _Exact:
        tensors = store.load(EXACT)
        info = store.info(EXACT)
        held, *parts = (tensors[name].to(self.search.flow.device) for name in ("held", "y", "D", "end"))
        of_fit, of_held = (
            Strata(tensors[f"numbers_{name}"], tensors[f"hard_{name}"], *info.pop(name)) for name in STRATA
        )
        return _Exact(Trajectories(tensors["log_levels"], *parts), held, of_fit, of_held, **info)


class _Bar:
    """A progress bar over budgets, if it is asked for."""

    def __init__(self, shown: bool, total: int) -> None:
        self._shown = shown
        self._total = total

    def __enter__(self) -> Any:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=self._total, desc="calibrate", unit="budget", disable=not self._shown)
        return self._bar

    def __exit__(self, *_: object) -> None:
        self._bar.close()
