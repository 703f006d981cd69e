r"""Comparison of a network with data: whether it predicts what it was taken for.

Of data $x_0$ with the means m and variances v of their coordinates, $x = \alpha x_0 + \sigma\epsilon$ at a few noise
levels about the size of the data. The best estimate that is linear in each coordinate is a Gaussian's,

$$ G(x) = m + \frac{\alpha v}{\alpha^2 v + \sigma^2}\,(x - \alpha m), \qquad
   \rho = \exp\operatorname{mean}_{\sigma/\alpha} \log \frac{|D - x_0|}{|G - x_0|}, $$

and a network knows at least as much: $\rho$ is 1 or less. Most of an error is what nobody can know of $x_0$, so that a
wrong reading may be as good as a Gaussian too. So the same network is read otherwise, as the prediction of something
else, with other labels of the time, scales of the state and schedules. A reading that is better is compared with the
given one datum by datum, on more noises: if the difference is more than chance, that is what the network is.

Near pure noise, at larger levels, D says little, but the flow of $y = x/\alpha$ is $dy = \hat\epsilon\,ds$ on levels
$s = \sigma/\alpha$: a noise estimate that is off by $\delta(s)$ more than the Gaussian's displaces y by up to
$\int \delta\,ds$, in standard deviations of its noise by $\int \delta\,d\log s$.

What errs by little at each level adds up on the way from noise. Samples of the network itself are compared with those
of a Gaussian by the same steps from the same noises, so that neither the solver nor the start is in their ratio; and
its errors with those of the best linear estimate, with the covariances of one half of the data at the other half.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde._utils.checks import (
    check_integer,
    check_output,
    described,
    instance_of,
    not_finite,
    reals,
    require_values,
    settle,
)
from sgm_sde._utils.elsewhere import OF_CHECKS, named_elsewhere
from sgm_sde._utils.shapes import column
from sgm_sde._utils.units import principal
from sgm_sde._utils.warn import warn
from sgm_sde.adapters.networks import is_changed, is_negated
from sgm_sde.engine import coordinates
from sgm_sde.engine.executor import PreDrawnNoise, execute
from sgm_sde.engine.noise import NoiseSource, NoiseStream, resolve_seeds
from sgm_sde.grids import Grid
from sgm_sde.processes import presets
from sgm_sde.processes.base import CheckError
from sgm_sde.processes.discrete import DiscreteVPSDE
from sgm_sde.processes.flow import RectifiedFlowSDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling.start import PriorWarning, words_if_data_off_prior
from sgm_sde.schemes.families import DPMSolverPP
from sgm_sde.scores import time_labels
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score, from_denoiser
from sgm_sde.scores.time_labels import TimeLabel

LEVELS = (0.2, 0.33, 0.6, 1.0, 1.7, 3.0, 5.0)  # sigma / alpha, in standard deviations of the data
FEWEST = 16  # data, for means and variances
WORSE = 1.5  # rho from which on a network cannot be what it was taken for
NEAR_NOISE = tuple(LEVELS[-1] * math.e**k for k in range(13))  # above them, a factor e apart
MOVED = 0.25  # standard deviations of the noise, from which on a displacement near pure noise is told
WORSE_AT_A_LEVEL = 1.25  # the same at one noise level, where it is told
ALMOST = 1.15  # rho up to which a reading says something of the data
# Shares of the given reading's error below which another one is the network's: where a network learnt little, others
# are a little better by chance. Flows may be of coupled pairs, whose errors mean less.
BY_PREDICTION = 0.9
BY_LABEL = 0.97
BY_SCALE = 0.993
NO_WORSE = 1.02  # times the given reading's error at any level, up to which another one is the network's
ALIKE = 1.03  # readings within this factor are the same
CERTAIN = 3.5  # standard errors over data, from which on a difference is more than chance among some 400 readings
ELSEWHERE = 1.0  # standard deviations of the data, from which on a network's own are elsewhere
OTHER_SCALE = 1.5  # or times their scale
LIKELY = 3.0  # the same of a single comparison
OWN_CALLS = 32  # for samples of its own
OWN_RUNS = 4  # for each datum at most, where data have few numbers
SPREAD = 0.1  # of the data's standard deviation: more or less of its own samples is told
REPEATED = 1e-3  # of the data's standard deviation, from which on a second call is another: half precision moves less
AT_LOW_NOISE = 1  # of the levels, where every prediction changes with the state
DIFFERENTIATED = 64  # data whose graph is kept, where all of them have more than `NUMBERS`
SMOOTHED = 0.05  # standard deviations of the noise there, over which a difference goes
LOST = 0.1  # share of the change with the state that is not in the gradient, from which it is told
OF_LOST = (
    "how it changes with x is not in it, as behind rounding, quantised layers or detach(). Samples are as they are, "
    "and likelihoods and posterior scores (DPS, MMPS), which differentiate it, are wrong"
)
UNTRAINED = 1.1  # times the error of the best linear estimate, from which on a network has learnt nothing
MOST_NOISES = 32  # for each datum, where data have few numbers
NUMBERS = 16384  # of states, which are enough at a noise level
TINY = 1e-12  # errors below count as this
FROM_NOISE = "-flow", "time_label=time_labels.flow_from_noise()"  # as it is published, of those that are alike
ADAPTERS = {  # what makes a reading on rectified flow
    ("flow", "time_label=None"): "from_flow_matching(net)",
    ("flow", "time_label=time_labels.flow(1000)"): "from_flow_matching(net, scale=1000)",
    FROM_NOISE: "from_flow_matching(net, from_noise=True)",
    ("-flow", "time_label=time_labels.flow_from_noise(1000)"): "from_flow_matching(net, from_noise=True, scale=1000)",
}
_PUBLISHED = "time_label=time_labels."  # how labels of published networks are written
_GIVEN = ""  # a label or a scale as the score has it

CONSTRUCTORS = {
    "noise": "from_noise(net, ...)",
    "data": "from_denoiser(net, ...)",
    "v": "from_v(net, ...)",
    "flow": "from_flow(net, ...)",
    "score": "from_score(net, ...)",
    "-noise": "from_noise(lambda x, t: -net(x, t), ...)",
    "-data": "from_denoiser(lambda x, t: -net(x, t), ...)",
    "-v": "from_v(lambda x, t: -net(x, t), ...)",
    "-flow": "from_flow(lambda x, t: -net(x, t), ...)",
    "-score": "from_score(lambda x, t: -net(x, t), ...)",
}


class ScoreCheckWarning(UserWarning):
    """A network that errs more than a Gaussian at some noise level, and less at most."""


@dataclass(frozen=True)
class ScoreCheck:
    """Errors of a network's data estimates, beside those of a Gaussian fitted to the data.

    Attributes:
        levels: noise levels, sigma / alpha.
        errors: of the network, root mean square over the standard deviation of the data.
        gaussian: of the Gaussian, the same.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for none, another number of errors than of levels, and negative ones.

    Examples:
        >>> ScoreCheck(levels=(0.5, 2.0), errors=(0.1, 0.4), gaussian=(0.2, 0.8)).ratio
        0.5
    """

    levels: tuple[float, ...]
    errors: tuple[float, ...]
    gaussian: tuple[float, ...]

    def __post_init__(self) -> None:
        given = {name: reals(name, value) for name, value in vars(self).items()}
        settle(self, **given)
        if not self.levels or len(set(map(len, given.values()))) > 1:
            lengths = ", ".join(f"{len(values)} in {name}" for name, values in given.items())
            raise ValueError(f"a ScoreCheck has as many errors as levels, at least one, got {lengths}")
        for name, values in given.items():
            negative = next((value for value in values if not value >= 0), None)
            if negative is not None:
                raise ValueError(f"{name} of a ScoreCheck are not negative, got {negative}")

    @property
    def ratio(self) -> float:
        """rho: the network's error over the Gaussian's, in the geometric mean over the levels."""
        return math.exp(math.fsum(map(math.log, self._ratios)) / len(self.levels))

    @property
    def _ratios(self) -> list[float]:
        """The network's error over the Gaussian's at each level."""
        pairs = zip(self.errors, self.gaussian, strict=True)
        return [max(error, TINY) / max(fitted, TINY) for error, fitted in pairs]

    def __str__(self) -> str:
        rows = zip(self.levels, self.errors, self.gaussian, strict=True)
        lines = ["sigma/alpha   network   a Gaussian   (error of the estimated data / their standard deviation)"]
        lines += [f"{level:11.3g}   {error:7.3g}   {fitted:10.3g}" for level, error, fitted in rows]
        return "\n".join([*lines, f"network / Gaussian {self.ratio:.2f} in the geometric mean"])


@named_elsewhere(OF_CHECKS)
def check_score(
    score: Score, data: Tensor, *, seed: int = 0, model_kwargs: Mapping[str, object] | None = None
) -> ScoreCheck:
    r"""The denoising error of a network on data, against the mistakes that are made in telling what it predicts.

    A network that is read with another time label, prediction, sign, schedule or input scale than it was trained with
    gives samples of an ordinary size and of a wrong law. With some data that shows: some fifty calls on all of the
    data for it as it is, 350 for other readings, and for data of few numbers some hundred more, with other noises.

    Named is a reading that errs less by .7 % (another scale), 3 % (another label or schedule) or a tenth (another
    prediction, and flows), and by three and a half standard errors over the data; another label, schedule or scale that
    errs more at no noise level. Not found are mistakes that change
    the estimates by less, as of a scale or schedule where estimates hardly depend on the network, and with few data
    those that change them by little. Nor are schedules that are not DDPM's, Stable Diffusion's or the cosine, and
    classes that were mixed up. Data of another place or scale than in training are distinguished from other readings by
    samples of the network, where it errs more on the data than a Gaussian at some level. Of a flow of coupled pairs
    only the readings are compared, since its states are not data with independent noise.

    Args:
        score: of a network; its process is the one it was trained on.
        data: x_0 (n, *), as the network was trained on it: n at least 16, some 64 tell enough.
        seed: of the noise.
        model_kwargs: the network's further arguments, for these n data.

    Returns:
        the errors at seven noise levels.

    Raises:
        CheckError: if the network is worse than a Gaussian fitted to the data by half, another reading is better than
            the given one, or it knows data of another place or scale; with the errors, and the best reading or the
            place and scale.
        TypeError: for a process without alpha(t) and sigma(t), a function in place of a score, data of integers, and
            arguments that are no mapping.
        ValueError: for fewer data, data that are not finite or all the same, a seed below 0, another number of rows
            than of data in `sg.PerSample`, and a network that returns what is not finite.

    Warns:
        ScoreCheckWarning: if a second call on the same states moves its estimates; if its gradient is not that of its
            output, as where it rounds or detaches some of it; if it errs a quarter more than the
            Gaussian at some noise level, or its estimate of the noise near pure noise displaces samples by a quarter of
            the noise's standard deviation or more; if it errs a tenth more than the best linear estimate; and if
            samples of its own spread a tenth more or less than the data, by three standard errors. Of guided scores the
            last two are not asked.
        PriorWarning: if at T the process leaves so much of these data that samples, which start from noise alone, are
            off by a quarter of the data's standard deviation.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> sde, law = sg.VPSDE(), sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1)
        >>> data = torch.cat([torch.full((32, 1), -1.0), torch.full((32, 1), 1.0)])
        >>> check_score(sg.from_score(law.score(sde), sde), data).ratio < 1
        True
    """
    instance_of("score", score, Score, "a score, as from_noise makes it")
    sde = score.sde
    if not has_scalar_marginal(sde):
        raise TypeError(f"check_score needs a LinearSDE, got {described(sde)}")
    require_values("data", data, "(n, *)")
    if data.ndim < 2 or len(data) < FEWEST or not data.numel():
        raise ValueError(f"data must be a tensor (n, *) of at least {FEWEST} data, got {described(data)}")
    for i in not_finite(data)[:1]:
        raise ValueError(f"data must be finite, sample {i} is not")

    model = BoundScore(score, sde, (sde.eps, sde.T), model_kwargs)
    require_rows(model.kwargs, len(data))
    seeds = resolve_seeds(check_integer("seed", seed, 0), None, len(data))
    x0 = data.detach().to(torch.promote_types(data.dtype, torch.float32))
    noises = _Noises(sde, x0, NoiseStream(seeds, "check"))
    noised = noises.first
    with torch.no_grad():
        estimates = [noised.estimate_of(model, k) for k in range(len(noised.nodes))]
        _compare_with_itself(noised, model, estimates)
        _compare_gradients(noised, model, NoiseStream(seeds, "probe"))
        found = noised.check([noised.error(estimate) for estimate in estimates])
        better = _better_reading(score, noises, model.kwargs, found) if type(score) is Score else None
        if not score.coupled and (better is not None or max(found._ratios) > WORSE_AT_A_LEVEL):
            _compare_with_own_data(noises, model, found, better)

    if better is not None:
        raise CheckError(f"the network is better read as {better.words}:\n{found}")
    if not score.coupled:
        _compare_with_gaussian(found)
        with torch.no_grad():
            _compare_near_noise(noises.near_pure_noise(), model)
        if not score.guided:
            _compare_with_linear(noised, estimates)
    if words := words_if_data_off_prior(x0, sde):
        warn(words, PriorWarning)
    elif not score.guided:
        with torch.no_grad():
            _compare_spread(noises, model)
    return found


def _compare_with_itself(noised: _Noised, model: BoundScore, estimates: Sequence[Tensor]) -> None:
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


def _compare_gradients(noised: _Noised, model: BoundScore, stream: NoiseStream) -> None:
    r"""Warn of a network whose gradient is not that of its output: it rounds or detaches some of it.

    Its Jacobian J in a direction z from the noise of the data, $z^\top Jz$, by autograd and by a difference, both in
    the mean over some data, of which the second smooths the network over a twentieth of the noise there. A network
    without any gradient is not asked, since what needs one refuses it.
    """
    x, t = noised.states[AT_LOW_NOISE]
    n = len(x) if x.numel() <= NUMBERS else min(len(x), DIFFERENTIATED)
    index = torch.arange(n, device=x.device)
    x = x[:n]
    t = t[:n]

    try:
        model.of_some(index, len(noised.x0))
    except ValueError:  # nothing says which arguments go with the data
        return

    z = stream.normal(tuple(noised.x0.shape), x.dtype, x.device)[:n].sign()
    h = SMOOTHED * noised.nodes[AT_LOW_NOISE].sigma

    with model.only(index, len(noised.x0)):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            output = model.evaluate(leaf, t)
            if not output.requires_grad:
                return
            (vjp,) = torch.autograd.grad(output, leaf, z.to(output), allow_unused=True)

        differences = model.evaluate(x + h * z, t) - model.evaluate(x - h * z, t)

    by_difference = (z * differences).double().flatten(1).sum(1) / (2 * h)
    by_autograd = torch.zeros_like(by_difference) if vjp is None else (z * vjp).double().flatten(1).sum(1)

    off = float((by_autograd - by_difference).sum().abs() / by_difference.abs().sum().clamp(min=TINY))
    if off > LOST:
        warn(f"the network's gradient is not that of its output: {off:.0%} of {OF_LOST}", ScoreCheckWarning)


def _compare_with_gaussian(found: ScoreCheck) -> None:
    """Raise CheckError for a network that is worse than a Gaussian, and warn of noise levels at which it is."""
    if found.ratio > WORSE:
        raise CheckError(f"the network says less of these data than a Gaussian fitted to them:\n{found}")
    ratio, level = max(zip(found._ratios, found.levels, strict=True), key=lambda pair: pair[0])
    if ratio > WORSE_AT_A_LEVEL:
        warn(
            f"at sigma/alpha = {level:.3g} the network errs {ratio:.2f} times as much as a Gaussian fitted to these "
            f"data: it has not learnt that level, or is not what it is taken for there",
            ScoreCheckWarning,
        )


def _compare_with_linear(noised: _Noised, estimates: Sequence[Tensor]) -> None:
    """Warn of a network that errs more than the best linear estimate, which knows how numbers go together."""
    logs = torch.zeros(len(noised.x0), dtype=torch.float64, device=noised.x0.device)
    by_chance = torch.zeros_like(logs)
    for estimate, linear in zip(estimates, noised.linear_estimates(), strict=True):
        off = noised.squared_errors(estimate)
        least = noised.squared_errors(linear)
        logs += (off.mean() / least.mean()).log() / 2
        by_chance += (off / off.mean() - least / least.mean()) / 2

    log_ratio = float(logs.mean()) / len(estimates)
    uncertain = _standard_error(by_chance) / len(estimates)
    if log_ratio <= math.log(UNTRAINED) or log_ratio <= LIKELY * uncertain:
        return
    warn(
        f"the network errs {math.exp(log_ratio):.2f} times as much as the best linear estimate, of a Gaussian with the "
        f"mean and covariance of these data: has it been trained, and are its weights loaded?",
        ScoreCheckWarning,
    )


def _compare_spread(noises: _Noises, model: BoundScore) -> None:
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
    by_noise = _standard_error(own / own.mean() - expected / expected.mean())
    by_data = _standard_error(of_data / of_data.mean())
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


def _standard_error(values: Tensor) -> float:
    """Of the mean of values (n,)."""
    return float(values.std()) / math.sqrt(len(values))


def _distances(x: Tensor) -> Tensor:
    """Squared distances (n,) of x (n, *) from their mean."""
    rows = x.double().flatten(1)
    return (rows - rows.mean(0)).square().mean(1)


def _compare_near_noise(noised: _Noised, model: BoundScore) -> None:
    """Warn of a noise estimate whose flow, on the levels above those of the data, displaces samples far."""
    levels = []
    off = []
    for k, (node, of_gaussian) in enumerate(zip(noised.nodes, noised._gaussian, strict=True)):
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


def _compare_with_own_data(noises: _Noises, model: BoundScore, found: ScoreCheck, better: _Better | None) -> None:
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


def _place_of_own(noises: _Noises, model: BoundScore) -> tuple[Tensor, float] | None:
    """Mean and standard deviation of a network's own samples; None where they are those of the data, or of noise."""
    noised = noises.first
    own = _own_samples(noises, [model])[0].double()
    mean = own.mean(0)
    std = math.sqrt(float(_distances(own).mean()))

    distance = float((mean - noised.mean).square().mean().sqrt())
    alike = distance < ELSEWHERE * noised.std and 1 / OTHER_SCALE < std / noised.std < OTHER_SCALE
    _, most = _range(noises.sde)
    return None if alike or not 0 < std < most / LEVELS[-1] else (mean, std)


def _own_samples(noises: _Noises, models: Sequence[BoundScore], runs: int = 1) -> list[Tensor]:
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
    least, most = _range(sde)
    most = min(most, NEAR_NOISE[-1] * std)
    ends = torch.tensor([0.99 * most, 1.01 * least], dtype=torch.float64)
    first, last = ends.log().tolist()
    levels = torch.linspace(first, last, OWN_CALLS, dtype=torch.float64).exp()
    return Grid(sde.time_of_noise_level(levels).tolist())


class _Noised:
    """Data with one noise at several levels, and how far estimates of them are off.

    Args:
        sde: the process.
        x0: data (n, *).
        noise: standard normal numbers (n, *).
        levels: noise levels, in standard deviations of the data.

    Attributes:
        std: of the data, root mean square over their coordinates.
        nodes: the process at the levels.
        states: a state (n, *) and times (n,) for each node.
    """

    def __init__(self, sde: LinearSDE, x0: Tensor, noise: Tensor, levels: Sequence[float] = LEVELS) -> None:
        self.sde = sde
        self.x0 = x0
        self.mean = x0.double().mean(0)
        self.variance = (x0 - self.mean).square().mean(0)
        self.std = float(self.variance.mean().sqrt())
        if not self.std > 0:
            raise ValueError(f"data must differ from one another, got a standard deviation of {self.std:g}")

        within = torch.tensor(_levels(sde, self.std, levels), dtype=torch.float64)
        times = sde.time_of_noise_level(within).tolist()
        self.nodes = sde.nodes(times)
        self.states = [
            (node.alpha * x0 + node.sigma * noise, torch.full((len(x0),), t, dtype=x0.dtype, device=x0.device))
            for node, t in zip(self.nodes, times, strict=True)
        ]

    def error(self, estimate: Tensor) -> float:
        """The root mean square of what an estimate (n, *) of the data is off by, in standard deviations of the data."""
        return float((estimate - self.x0).double().square().mean().sqrt()) / self.std

    def brought(self, mean: Tensor, std: float) -> Tensor:
        """The data (n, *) moved to a mean and scaled to a standard deviation."""
        centred = self.x0 - self.mean
        return (centred * (std / self.std) + mean).to(self.x0.dtype)

    def squared_errors(self, estimate: Tensor) -> Tensor:
        """The mean square (n,) of what an estimate (n, *) of each datum is off by."""
        off = (estimate - self.x0).double().flatten(1)
        return off.square().mean(1).clamp(min=TINY**2)

    def estimate_of(self, model: BoundScore, k: int) -> Tensor:
        """The data that a score finds in the k-th state, which must be finite."""
        x, _ = self.states[k]
        estimate = model.predict("data", x, self.nodes[k].t)
        check_output(x, estimate, self.nodes[k].t)
        return estimate

    def error_of(self, model: BoundScore, k: int) -> float:
        """The error of the data that a score finds in the k-th state."""
        return self.error(self.estimate_of(model, k))

    def gaussian(self, x: Tensor, t: Tensor) -> Tensor:
        """G(x), the estimate of a Gaussian with the means and variances of the data."""
        alpha = column(self.sde.alpha(t.double()), x)
        sigma = column(self.sde.sigma(t.double()), x)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return (self.mean + gain * (x - alpha * self.mean)).to(x.dtype)

    def linear_estimates(self) -> list[Tensor]:
        """The estimates (n, *) of Gaussians with the means and covariances of the other half of the data, by level."""
        rows = self.x0.double().flatten(1)
        first = torch.arange(len(rows), device=rows.device) % 2 == 0
        halves = [(first, principal(rows[~first])), (~first, principal(rows[first]))]

        estimates = []
        for node, (x, _) in zip(self.nodes, self.states, strict=True):
            y = x.double().flatten(1) / node.alpha
            estimate = torch.empty_like(y)
            for half, fitted in halves:
                estimate[half] = _linear(y[half], node.noise_level, *fitted)
            estimates.append(estimate.reshape(x.shape))
        return estimates

    def losses(self, name: str, outputs: Sequence[Tensor]) -> Tensor:
        """Squared errors (levels, n) of outputs that are taken for a prediction, in those of the Gaussian."""
        estimates = _estimates(name, outputs, self)
        off = [self.squared_errors(estimate) for estimate in estimates]
        of_gaussian = [(self.std * max(error, TINY)) ** 2 for error in self._gaussian]
        return torch.stack([one / fitted for one, fitted in zip(off, of_gaussian, strict=True)])

    def check(self, errors: Sequence[float]) -> ScoreCheck:
        """Errors at the nodes beside those of the Gaussian."""
        levels = tuple(node.noise_level for node in self.nodes)
        return ScoreCheck(levels, tuple(errors), self._gaussian)

    @cached_property
    def _gaussian(self) -> tuple[float, ...]:
        errors = []
        for node, (x, _) in zip(self.nodes, self.states, strict=True):
            gain = node.alpha * self.variance / (node.alpha**2 * self.variance + node.sigma**2)
            errors.append(self.error(self.mean + gain * (x - node.alpha * self.mean)))
        return tuple(errors)


class _Noises:
    """Data with several noises, as many as tell enough of data of few numbers.

    Attributes:
        sde: the process.
        first: the data with the first noise.
    """

    def __init__(self, sde: LinearSDE, x0: Tensor, stream: NoiseSource) -> None:
        self.sde = sde
        self._x0 = x0
        self._stream = stream
        self.first = self._make()

    @cached_property
    def all(self) -> list[_Noised]:
        """The data with all noises."""
        n = min(MOST_NOISES, NUMBERS // self._x0.numel())
        return [self.first, *(self._make() for _ in range(n - 1))]

    def near_pure_noise(self) -> _Noised:
        """The data with another noise, at the levels above those of the data."""
        return self._make(NEAR_NOISE)

    def of(self, x0: Tensor) -> _Noised:
        """Other data with another noise."""
        return _Noised(self.sde, x0, self.draw())

    def draw(self) -> Tensor:
        """Another noise (n, *)."""
        x0 = self._x0
        return self._stream.normal(tuple(x0.shape), x0.dtype, x0.device)

    def _make(self, levels: Sequence[float] = LEVELS) -> _Noised:
        return _Noised(self.sde, self._x0, self.draw(), levels)


def _linear(y: Tensor, noise_level: float, mean: Tensor, std: Tensor, directions: Tensor) -> Tensor:
    """The data (n, d) that a Gaussian with standard deviations along directions has at y, its samples with noise."""
    gain = std**2 / (std**2 + noise_level**2)
    along = (y - mean) @ directions.T
    return mean + (gain * along) @ directions


def _levels(sde: LinearSDE, std: float, levels: Sequence[float]) -> list[float]:
    """Noise levels in standard deviations of the data, of those that the process passes through."""
    least, most = _range(sde)
    return sorted({min(max(level * std, 1.01 * least), 0.99 * most) for level in levels})


def _range(sde: LinearSDE) -> tuple[float, float]:
    """The least and the largest noise level of a process."""
    least, most = coordinates.noise_level(sde, torch.tensor([sde.eps, sde.T]).double()).tolist()
    return least, most


@dataclass(frozen=True)
class _Reading:
    """A score's network with a prediction, a time label and an input scale, by what is written to have them."""

    name: str
    label: str = _GIVEN
    scale: str = _GIVEN


class _Gain(NamedTuple):
    """A reading's error beside that of another.

    Attributes:
        share: the one over the other.
        worst: the same at the noise level where it is largest.
        standard_errors: by how many, over data, it is less.
    """

    share: float
    worst: float
    standard_errors: float


class _Readings:
    """The ways to read a score's network.

    Args:
        score: as it is given.
        kwargs: the network's further arguments.
    """

    def __init__(self, score: Score, kwargs: Mapping[str, object]) -> None:
        self.score = score
        self.given = _Reading(score.prediction)
        self.labels = _labels(score)
        self.scales = _scales(score)
        self.kwargs = kwargs

    def outputs(self, reading: _Reading, noised: _Noised) -> list[Tensor]:
        """The network's outputs at the noised data."""
        score = self.score
        label = self.labels[reading.label]
        scale = self.scales[reading.scale]
        read = Score(score.net, score.sde, score.prediction, time_label=label, input_scale=scale, dtype=score.dtype)
        return [read.output(x, t, **self.kwargs).to(x.dtype) for x, t in noised.states]

    def ratios(self, noised: _Noised) -> dict[_Reading, float]:
        """rho of all readings that the network takes."""
        found = {}
        for label, scale in itertools.product(self.labels, self.scales):
            try:
                outputs = self.outputs(_Reading(self.given.name, label, scale), noised)
            except Exception:  # what the network does not take is not what it was trained with
                continue
            for name in CONSTRUCTORS:
                errors = [noised.error(estimate) for estimate in _estimates(name, outputs, noised)]
                if errors and all(map(math.isfinite, errors)):
                    found[_Reading(name, label, scale)] = noised.check(errors).ratio
        return found

    def gain(self, reading: _Reading, over: _Reading, noises: _Noises, empty: bool = False) -> _Gain:
        """A reading's error beside that of another.

        With `empty`, over the other reading of a network that returns 0.
        """
        losses = []
        for noised in noises.all:
            now = self.outputs(reading, noised)
            then = [torch.zeros_like(output) for output in now] if empty else self.outputs(over, noised)
            losses.append(torch.stack([noised.losses(reading.name, now), noised.losses(over.name, then)]))

        less, more = torch.stack(losses).mean(0)
        shares = (less.mean(1) / more.mean(1).clamp(min=TINY)).sqrt()
        gain = (more - less).mean(0)
        uncertain = max(_standard_error(gain), 1e-300)
        share = math.sqrt(float(less.mean() / more.mean()))
        return _Gain(share, float(shares.max()), float(gain.mean()) / uncertain)

    def is_better(self, reading: _Reading, gain: _Gain) -> bool:
        """True if it is less than the given reading's error by more than chance, and at no level more.

        What the network was made for is best everywhere; where it has not learnt a level, others are better there.
        """
        if reading.name == self.given.name and gain.worst > NO_WORSE:
            return False
        if reading.name != self.given.name or reading.name == "flow":
            least = BY_PREDICTION
        elif reading.label != self.given.label:
            least = BY_LABEL
        else:
            least = BY_SCALE
        return gain.share < least and gain.standard_errors > CERTAIN


class _Better(NamedTuple):
    """A reading that is better than the given one: in words, and its rho."""

    words: str
    ratio: float


def _better_reading(score: Score, noises: _Noises, kwargs: Mapping[str, object], found: ScoreCheck) -> _Better | None:
    """A reading of a network that is better than the given one by more than chance; None without one."""
    readings = _Readings(score, kwargs)
    given = readings.given
    ratios = readings.ratios(noises.first) | {given: found.ratio}
    same = {one: ratio for one, ratio in ratios.items() if one.name == given.name}

    for best in (_least(ratios, ALIKE, given), _least(same, 1.0, given)):
        if best == given or ratios[best] > ALMOST:
            continue
        gain = readings.gain(best, given, noises)
        over_nothing = readings.gain(best, best, noises, empty=True)
        if readings.is_better(best, gain) and over_nothing.standard_errors > CERTAIN:
            words = f"{_written(best, score)}, with {gain.share:.2f} of the error as given"
            return _Better(words + _as_well(best, ratios, readings, noises), ratios[best])
    return None


def _as_well(best: _Reading, ratios: Mapping[_Reading, float], readings: _Readings, noises: _Noises) -> str:
    """Words for the other labels of the time that a reading may have as well, by its data; empty without any."""
    if not best.label.startswith(_PUBLISHED):
        return ""
    others = [
        one.label
        for one, ratio in ratios.items()
        if one == replace(best, label=one.label)
        and one.label != best.label
        and one.label.startswith(_PUBLISHED)
        and max(ratio, ratios[best]) <= ALIKE * min(ratio, ratios[best])
        and abs(readings.gain(one, best, noises).standard_errors) <= CERTAIN
    ]
    return f"; these data do not distinguish that label from {', '.join(others)}" if others else ""


def _least(ratios: Mapping[_Reading, float], alike: float, given: _Reading) -> _Reading:
    """The given or a published one of the readings whose rho is the least but for a factor, or the first of them."""
    least = min(ratios.values())
    found = [one for one, ratio in ratios.items() if ratio <= alike * least]
    return min(found, key=lambda one: one != given and (one.name, one.label) != FROM_NOISE)


def _estimates(name: str, outputs: Sequence[Tensor], noised: _Noised) -> list[Tensor]:
    """Data by outputs that are taken for a prediction, of `CONSTRUCTORS`; none if it gives no data."""
    sign = -1.0 if name.startswith("-") else 1.0
    try:
        known = [node.convert(name.removeprefix("-"), "data") for node in noised.nodes]
    except ZeroDivisionError:
        return []
    of_nodes = zip(known, noised.states, outputs, strict=True)
    return [c_x * x + sign * c_r * output for (c_x, c_r), (x, _), output in of_nodes]


def _written(reading: _Reading, score: Score) -> str:
    """A reading as it is written, options of the score that stay by dots."""
    options = [option for option in (reading.label, reading.scale) if option != _GIVEN]
    if reading.label == _GIVEN and score.time_label is not None:
        options.append("time_label=...")
    if reading.scale == _GIVEN and score.input_scale is not None:
        options.append("input_scale=...")
    sde = [] if reading.label.startswith("sde=") else ["sde"]
    name = _negated(reading.name) if is_negated(score.net) else reading.name
    written = CONSTRUCTORS[name].replace("...", ", ".join([*sde, *options]), 1)

    if (adapter := ADAPTERS.get((name, reading.label))) and isinstance(score.sde, RectifiedFlowSDE):
        return f"{written}, as adapters.{adapter} makes it"
    if is_changed(score.net) and not is_negated(score.net):
        return f"{written}, where net is score.net, in which the adapter holds the network"
    return written


def _negated(name: str) -> str:
    """The name of a prediction of the other sign."""
    return name.removeprefix("-") if name.startswith("-") else f"-{name}"


def _labels(score: Score) -> dict[str, TimeLabel | None]:
    """Time labels of published networks, by what is written to have them; first the given one."""
    sde = score.sde
    assert has_scalar_marginal(sde)
    n = len(sde.table_times or ()) or 1000
    return {
        _GIVEN: score.time_label,
        "time_label=None": None,
        "time_label=time_labels.flow_from_noise()": time_labels.flow_from_noise(),
        **({} if sde.table_times else {"time_label=time_labels.flow(1000)": time_labels.flow(1000.0)}),
        f"time_label=time_labels.ddpm({n})": time_labels.ddpm(n),
        f"time_label=time_labels.ddpm({n}, integer=True)": time_labels.ddpm(n, integer=True),
        "time_label=time_labels.noise_level(sde)": time_labels.noise_level(sde),
        "time_label=time_labels.edm_c_noise(sde)": time_labels.edm_c_noise(sde),
        "time_label=time_labels.flow(1000)": time_labels.flow(1000.0),
        "time_label=time_labels.flow_from_noise(1000)": time_labels.flow_from_noise(1000.0),
        **{f"sde={text}, time_label=time_labels.ddpm({n})": _index(sde, table) for text, table in _tables(n).items()},
        **_reversed(score),
    }


def _reversed(score: Score) -> dict[str, TimeLabel]:
    """The label of a score in the other direction of time, of tables from the last entry to the first."""
    sde = score.sde
    assert has_scalar_marginal(sde)
    label = score.time_label
    both = sde.T + sde.table_times[0] if sde.table_times else sde.T
    if label is None:
        return {f"time_label=lambda t: {both:g} - t": lambda t: both - t}
    return {f"time_label=lambda t: label({both:g} - t), with the label as given": lambda t: label(both - t)}


def _tables(n: int) -> dict[str, DiscreteVPSDE]:
    """Published tables of n entries, by what is written to have them."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, n, dtype=torch.float64)
    return {
        f"sg.presets.ddpm({n})": presets.ddpm(n),
        f"sg.presets.iddpm_cosine({n})": presets.iddpm_cosine(n),
        f"sg.DiscreteVPSDE(torch.linspace(0.00085**0.5, 0.012**0.5, {n}) ** 2)": DiscreteVPSDE(roots.square().tolist()),
    }


def _index(sde: LinearSDE, table: DiscreteVPSDE) -> TimeLabel:
    """The index in a table of the noise level that the process has at a time."""
    index_at = time_labels.ddpm(table)
    least, most = _range(table)

    def index(t: Tensor) -> Tensor:
        level = coordinates.noise_level(sde, t.double()).clamp(least, most)
        return index_at(table.time_of_noise_level(level).clamp(table.eps, table.T)).to(t.dtype)

    return index


def _scales(score: Score) -> dict[str, Callable[[Tensor], Tensor] | None]:
    """Factors on the state that networks expect, by what is written to have them; first the given one."""
    sde = score.sde
    assert has_scalar_marginal(sde)
    return {
        _GIVEN: score.input_scale,
        "input_scale=None": None,
        "input_scale=lambda t: 1 / sde.alpha(t)": lambda t: 1 / sde.alpha(t),
        "input_scale=lambda t: (sde.alpha(t)**2 + sde.sigma(t)**2) ** -0.5": lambda t: (
            sde.alpha(t).square() + sde.sigma(t).square()
        ).rsqrt(),
    }
