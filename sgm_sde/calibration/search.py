"""`calibrate`: from a network to the table that suits it at a budget of calls."""

from __future__ import annotations

import itertools
import json
import math
import secrets
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import torch

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
from sgm_sde._utils.files import JsonObject, folder_to_write
from sgm_sde._utils.tree import Conditions
from sgm_sde.calibration.exact import LEVELS, References, arranged
from sgm_sde.calibration.fits import Fits
from sgm_sde.calibration.flow import Flow
from sgm_sde.calibration.held import HeldOutRuns
from sgm_sde.calibration.kept import Kept
from sgm_sde.calibration.network import network_of
from sgm_sde.calibration.remarks import remarks_on, warn_of_doubt
from sgm_sde.calibration.result import Calibration, Calibrations
from sgm_sde.calibration.strata import (
    FEW_DIMENSIONS,
    HELD,
    HELD_IN_FEW,
    MOST_IN_FEW,
    SCREENED,
    SCREENED_IN_FEW,
    Strata,
)
from sgm_sde.engine.noise import one_seed, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.identity import spec
from sgm_sde.processes.base import require_sde
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling.trials import budgets_of, device_with_numbers
from sgm_sde.scores.conditions import bare
from sgm_sde.scores.score import as_score

FITTED = "pilot(), which compares solvers: calibrate fits a table of its own"


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
    noises, held, *further = _ranges(n, held_out, *screened)
    protocol = _protocol(flow, n, held_out, seed)
    settings = {**protocol, "reference_nfe": reference_nfe, "screened": list(screened)}

    found = {}
    with Kept(checkpoint, settings) as kept, _Bar(progress, len(budgets)) as bar:
        references = References(flow, noises, held, further, reference_nfe, bar.set_description_str)
        search = _Search(references, kept, protocol, dtype, time_limit)
        for done, budget in enumerate(budgets):
            found[budget] = kept.calibration(budget, partial(search.budget, budget, len(budgets) - done))
            bar.update()

    for one in found.values():
        warn_of_doubt(one)
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


def _noises(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the noises to fit to."""
    given = sizes("shape", shape)
    if not given or given[0] < 2:
        raise ValueError(f"shape must be (B, *) with at least 2 noises to fit to, got {given}")
    return given


def _ranges(*counts: int) -> list[range]:
    """So many numbers one after another.

    Examples:
        >>> _ranges(2, 3)
        [range(0, 2), range(2, 5)]
    """
    ends = list(itertools.accumulate(counts, initial=0))
    return [range(first, end) for first, end in itertools.pairwise(ends)]


def _protocol(flow: Flow, n: int, held_out: int, seed: int) -> JsonObject:
    """The record of what a calibration is of."""
    network = network_of(flow.score)
    return {
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


def _screening(of_fit: Strata, of_held: Strata) -> dict[str, int]:
    """Hard noises beside those at random, and how many were screened for them, as parts of a protocol."""
    found = {}
    for name, strata in (("noises", of_fit), ("held_out", of_held)):
        found[f"hard_{name}"] = len(strata) - strata.at_random
        found[f"screened_{name}"] = strata.drawn - strata.at_random
    return found


class _Search:
    """The calibrations for budgets.

    Args:
        references: what makes exact trajectories.
        kept: what is finished.
        protocol: what they are of.
        dtype: of samples.
        time_limit: in seconds, for all.
    """

    def __init__(
        self,
        references: References,
        kept: Kept,
        protocol: JsonObject,
        dtype: torch.dtype,
        time_limit: float | None,
    ) -> None:
        self.references = references
        self.kept = kept
        self.protocol = protocol
        self.dtype = dtype
        self.end = math.inf if time_limit is None else time.monotonic() + time_limit

    @cached_property
    def runs(self) -> HeldOutRuns:
        """Runs of the network beside exact trajectories, which budgets share."""
        of = self.references
        exact = self.kept.exact(of.made, of.flow.device)
        return HeldOutRuns(*arranged(of.flow, exact, of.screened[1]), self.dtype)

    def budget(self, n: int, left: int) -> Calibration:
        """The calibration for n calls, while `left` budgets, this one included, share what time there is."""
        runs = self.runs
        exact = runs.exact
        flow = runs.flow
        tell = self.references.tell
        started = time.monotonic()
        self.kept.seconds = 0.0
        before = flow.network_evals
        share = started + max(0.0, self.end - started) / left

        def late() -> bool:
            return time.monotonic() > share

        held_out = runs.comparison
        tell(f"{n} calls: settings off the shelf")
        shelf = runs.off_the_shelf(n, held_out)
        fits = Fits(flow, exact, self.kept, tell).of(n, [one.setting for one in shelf], late)
        tell(f"{n} calls: held-out noises")
        for name, setting in fits:
            runs.compared(held_out, name, setting, n)
        ranked = runs.ranked(held_out, shelf[0], n)
        fitted_median = runs.fitted_median(ranked.settings[0], n)
        return Calibration(
            ranked.settings,
            n,
            reference_error=exact.doubt,
            network_evals=flow.network_evals - before,
            shared_evals=exact.network_evals,
            seconds=self.kept.seconds + time.monotonic() - started,
            protocol={**self.protocol, "reference_nfe": exact.nfe, **_screening(exact.of_fit, exact.of_held)},
            remarks=remarks_on(ranked, runs, fitted_median, is_late=late()),
        )


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
