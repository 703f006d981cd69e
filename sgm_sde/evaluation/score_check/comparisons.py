"""Comparisons of a network with itself, a Gaussian, the best linear estimate, and its own samples with the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sgm_sde._utils.shapes import flat
from sgm_sde._utils.warn import warn
from sgm_sde.engine.executor import PreDrawnNoise, execute
from sgm_sde.engine.noise import NoiseStream
from sgm_sde.evaluation.score_check.readings import ALIKE, ALMOST, BY_PREDICTION, Better
from sgm_sde.evaluation.score_check.result import ScoreCheck, ScoreCheckWarning
from sgm_sde.evaluation.score_check.states import (
    LEVELS,
    NEAR_NOISE,
    NUMBERS,
    Noised,
    Noises,
    range_of_levels,
    standard_error,
)
from sgm_sde.grids import Grid
from sgm_sde.processes.base import CheckError
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.schemes.families import DPMSolverPP
from sgm_sde.scores.gradient import LOST, OF_LOST, lost_share
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import from_denoiser

WORSE = 1.5  # rho from which on a network cannot be what it was taken for
WORSE_AT_A_LEVEL = 1.25  # the same at one noise level, where it is told
MOVED = 0.25  # standard deviations of the noise, from which on a displacement near pure noise is told
UNTRAINED = 1.1  # times the error of the best linear estimate, from which on a network has learnt nothing
ELSEWHERE = 1.0  # standard deviations of the data, from which on a network's own are elsewhere
OTHER_SCALE = 1.5  # or times their scale
LIKELY = 3.0  # standard errors, from which on a difference is more than chance in a single comparison
OWN_CALLS = 32  # for samples of its own
OWN_RUNS = 4  # for each datum at most, where data have few numbers
SPREAD = 0.1  # of the data's standard deviation: more or less of its own samples is told
REPEATED = 1e-3  # of the data's standard deviation, from which on a second call is another: half precision moves less
AT_LOW_NOISE = 1  # of the levels, where every prediction changes with the state
DIFFERENTIATED = 64  # data whose graph is kept, where all of them have more than `NUMBERS`


def compare_with_itself(noised: Noised, model: BoundScore, estimates: Sequence[Tensor]) -> None:
    """Warn of a network that returns something else where it is asked again."""
    k = len(estimates) // 2
    again = noised.estimate_of(model, k)
    moved = float((again - estimates[k]).double().square().mean().sqrt()) / noised.std
    if moved > REPEATED:
        warn(
            f"asked again for the same states, the network moves its estimates by {moved:.2g} of the data's standard "
            f"deviation: it keeps something from call to call, or draws noise of its own, so that samples depend on "
            f"more than their seeds",
            ScoreCheckWarning,
        )


def compare_gradients(noised: Noised, model: BoundScore, stream: NoiseStream) -> None:
    """Warn of a network whose gradient is not that of its output, at some of the data; see `lost_share`."""
    x, t = noised.states[AT_LOW_NOISE]
    n = len(x) if x.numel() <= NUMBERS else min(len(x), DIFFERENTIATED)
    index = torch.arange(n, device=x.device)

    try:
        model.of_some(index, len(noised.x0))
    except ValueError:  # nothing says which arguments go with the data
        return

    z = stream.normal(tuple(noised.x0.shape), x.dtype, x.device)[:n].sign()
    with model.only(index, len(noised.x0)):
        lost = lost_share(lambda x: model.evaluate(x, t[:n]), x[:n], z, noised.nodes[AT_LOW_NOISE].sigma)
    if lost > LOST:
        warn(
            f"the network's gradient is not that of its output: {lost:.0%} of {OF_LOST}. Samples are as they are, and "
            f"likelihoods and posterior scores (DPS, MMPS), which differentiate it, are wrong",
            ScoreCheckWarning,
        )


def compare_with_gaussian(found: ScoreCheck) -> None:
    """Raise CheckError for a network that is worse than a Gaussian, and warn of noise levels at which it is."""
    if found.ratio > WORSE:
        raise CheckError(f"the network says less of these data than a Gaussian fitted to them:\n{found}")
    ratio, level = max(zip(found.ratios, found.levels, strict=True), key=lambda pair: pair[0])
    if ratio > WORSE_AT_A_LEVEL:
        warn(
            f"at sigma/alpha = {level:.3g} the network errs {ratio:.2f} times as much as a Gaussian fitted to these "
            f"data: it has not learnt that level, or is not what it is taken for there",
            ScoreCheckWarning,
        )


def compare_with_linear(noised: Noised, estimates: Sequence[Tensor]) -> None:
    """Warn of a network that errs more than the best linear estimate, which knows how numbers go together."""
    logs = torch.zeros(len(noised.x0), dtype=torch.float64, device=noised.x0.device)
    by_chance = torch.zeros_like(logs)
    for estimate, linear in zip(estimates, noised.linear_estimates(), strict=True):
        off = noised.squared_errors(estimate)
        least = noised.squared_errors(linear)
        logs += (off.mean() / least.mean()).log() / 2
        by_chance += (off / off.mean() - least / least.mean()) / 2

    log_ratio = float(logs.mean()) / len(estimates)
    uncertain = standard_error(by_chance) / len(estimates)
    if log_ratio <= math.log(UNTRAINED) or log_ratio <= LIKELY * uncertain:
        return
    warn(
        f"the network errs {math.exp(log_ratio):.2f} times as much as the best linear estimate, of a Gaussian with the "
        f"mean and covariance of these data: has it been trained, and are its weights loaded?",
        ScoreCheckWarning,
    )


def compare_spread(noises: Noises, model: BoundScore) -> None:
    """Warn of samples of the network that spread otherwise than the data, where those of a Gaussian do not.

    The Gaussian's are of the same noises by the same steps, so that what the solver errs, and what the data leave at
    T, is in both.
    """
    noised = noises.first
    runs = min(OWN_RUNS, max(1, NUMBERS // noised.x0.numel()))
    sde = noises.sde
    fitted = from_denoiser(noised.gaussian, sde)
    gaussian = BoundScore(fitted, sde, (sde.eps, sde.T), None)

    samples = _own_samples(noises, [model, gaussian], runs)
    own, expected = map(_distances, samples)
    of_data = _distances(noised.x0)

    ratio = math.sqrt(float(own.mean() / expected.mean()))
    by_noise = standard_error(own / own.mean() - expected / expected.mean())
    by_data = standard_error(of_data / of_data.mean())
    uncertain = math.hypot(by_noise, by_data)

    if not math.isfinite(ratio):
        return
    off = abs(ratio - 1)
    if off <= SPREAD or off <= LIKELY * ratio * uncertain / 2:
        return
    warn(
        f"samples of the network itself spread {ratio:.2f} times as far as these data: what it errs at single noise "
        f"levels adds up on the way from noise. Look at the scale that it was preconditioned for (sigma_data), at a "
        f"factor on its output, and at its training at large noise",
        ScoreCheckWarning,
    )


def _distances(x: Tensor) -> Tensor:
    """Squared distances (n,) of x (n, *) from their mean."""
    rows = flat(x).double()
    return (rows - rows.mean(0)).square().mean(1)


def compare_near_noise(noised: Noised, model: BoundScore) -> None:
    """Warn of a noise estimate whose flow, on the levels above those of the data, displaces samples far."""
    levels = []
    off = []
    for k, (node, of_gaussian) in enumerate(zip(noised.nodes, noised.gaussian_errors, strict=True)):
        level = node.noise_level / noised.std
        error = noised.error_of(model, k)
        excess = max(error**2 - of_gaussian**2, 0)
        levels.append(level)
        off.append(math.sqrt(excess) / level)

    moved = [0.0]
    for step, ends in zip(pairwise(levels), pairwise(off), strict=True):
        least, most = step
        mean = sum(ends) / 2
        moved.append(moved[-1] + mean * math.log(most / least))
    if moved[-1] <= MOVED:
        return

    # A later start keeps what is left of it, and begins from noise that lacks the data's part.
    lost = [before + 1 / level for before, level in zip(moved, levels, strict=True)]
    start = noised.nodes[lost.index(min(lost))]
    first, *_, last = (node.noise_level for node in noised.nodes)
    warn(
        f"near pure noise, at sigma/alpha = {first:.3g} to {last:.3g}, the network's estimate of the noise is off by "
        f"{max(off):.2g} of the noise's standard deviation, which moves samples by up to {moved[-1]:.2g} of it before "
        f"the data show: start at t_start={start.t:.3g}, or keep estimates in the range of the data by "
        f"sg.guidance.Thresholded(score, limit)",
        ScoreCheckWarning,
    )


def compare_with_own_data(noises: Noises, model: BoundScore, found: ScoreCheck, better: Better | None) -> None:
    """Raise CheckError where the network as it is given knows data like these, of another place or scale.

    That is, where it errs no more of data that are brought to the mean and the standard deviation of its own samples
    than another reading of it errs of the data as they are, if there is one; where it errs no less, both are named.
    """
    ratio = BY_PREDICTION * found.ratio if better is None else better.ratio
    place = _place_of_own(noises, model)
    if place is None:
        return

    mean, std = place
    noised = noises.first
    there = noises.of(noised.brought(mean, std))
    errors = [there.error_of(model, k) for k in range(len(there.nodes))]
    known = there.check(errors)
    if known.ratio < min(ALIKE * ratio, ALMOST):
        reads = better is not None and better.ratio < ALIKE * known.ratio
        as_well = f"; or, with these data, read it as {better.words}" if better is not None and reads else ""
        raise CheckError(
            f"the network, read as it is given, knows data around {float(mean.mean()):.3g} of standard deviation "
            f"{std:.3g}, and these are around {float(noised.mean.mean()):.3g} of {noised.std:.3g}: give data of the "
            f"place and scale that it was trained on{as_well}:\n{found}"
        )


def _place_of_own(noises: Noises, model: BoundScore) -> tuple[Tensor, float] | None:
    """Mean and standard deviation of a network's own samples; None where they are those of the data, or of noise."""
    noised = noises.first
    own = _own_samples(noises, [model])[0].double()
    mean = own.mean(0)
    std = math.sqrt(float(_distances(own).mean()))

    distance = float((mean - noised.mean).square().mean().sqrt())
    alike = distance < ELSEWHERE * noised.std and 1 / OTHER_SCALE < std / noised.std < OTHER_SCALE
    _, most = range_of_levels(noises.sde)
    return None if alike or not 0 < std < most / LEVELS[-1] else (mean, std)


def _own_samples(noises: Noises, models: Sequence[BoundScore], runs: int = 1) -> list[Tensor]:
    """Samples (n runs, *) of each network, from the same noises in even steps of log-SNR."""
    sde = noises.sde
    grid = _own_grid(sde, noises.first.std)
    first, *_, last = sde.nodes(grid.times)

    program = DPMSolverPP(2).compile(sde, grid)
    starts = [first.sigma * noises.draw() for _ in range(runs)]

    samples = []
    for model in models:
        samples_of = [execute(program, x, model, PreDrawnNoise(())).x for x in starts]
        samples.append(torch.cat(samples_of) / last.alpha)
    return samples


def _own_grid(sde: LinearSDE, std: float) -> Grid:
    """Even steps of log-SNR, from noise levels that hide data of a standard deviation."""
    least, most = range_of_levels(sde)
    most = min(most, NEAR_NOISE[-1] * std)
    ends = torch.tensor([0.99 * most, 1.01 * least], dtype=torch.float64)
    first, last = ends.log().tolist()
    levels = torch.linspace(first, last, OWN_CALLS, dtype=torch.float64).exp()
    return Grid(sde.time_of_noise_level(levels).tolist())
