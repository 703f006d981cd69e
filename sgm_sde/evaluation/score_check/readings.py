"""Readings of a network: as the prediction of something else, with other labels, scales and schedules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sgm_sde.adapters.networks import is_changed, is_negated
from sgm_sde.engine import coordinates
from sgm_sde.evaluation.score_check.result import TINY, ScoreCheck
from sgm_sde.evaluation.score_check.states import Noised, Noises, estimates_of, range_of_levels, standard_error
from sgm_sde.processes import presets
from sgm_sde.processes.discrete import DiscreteVPSDE
from sgm_sde.processes.flow import RectifiedFlowSDE
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores import time_labels
from sgm_sde.scores.score import Score
from sgm_sde.scores.time_labels import TimeLabel

# Shares of the given reading's error below which another one is the network's: where a network learnt little, others
# are a little better by chance. Flows may be of coupled pairs, whose errors mean less.
BY_PREDICTION = 0.9
BY_LABEL = 0.97
BY_SCALE = 0.993
NO_WORSE = 1.02  # times the given reading's error at any level, up to which another one is the network's
ALIKE = 1.03  # readings within this factor are the same
ALMOST = 1.15  # rho up to which a reading says something of the data
CERTAIN = 3.5  # standard errors over data, from which on a difference is more than chance among some 400 readings

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

    def outputs(self, reading: _Reading, noised: Noised) -> list[Tensor]:
        """The network's outputs at the noised data."""
        score = self.score
        label = self.labels[reading.label]
        scale = self.scales[reading.scale]
        read = Score(score.net, score.sde, score.prediction, time_label=label, input_scale=scale, dtype=score.dtype)
        return [read.output(x, t, **self.kwargs).to(x.dtype) for x, t in noised.states]

    def ratios(self, noised: Noised) -> dict[_Reading, float]:
        """rho of all readings that the network takes."""
        found = {}
        for label, scale in itertools.product(self.labels, self.scales):
            try:
                outputs = self.outputs(_Reading(self.given.name, label, scale), noised)
            except Exception:  # what the network does not take is not what it was trained with
                continue
            for name in CONSTRUCTORS:
                errors = [noised.error(estimate) for estimate in estimates_of(name, outputs, noised)]
                if errors and all(map(math.isfinite, errors)):
                    found[_Reading(name, label, scale)] = noised.check(errors).ratio
        return found

    def gain(self, reading: _Reading, over: _Reading, noises: Noises, empty: bool = False) -> _Gain:
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
        uncertain = max(standard_error(gain), 1e-300)
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


class Better(NamedTuple):
    """A reading that is better than the given one: in words, and its rho."""

    words: str
    ratio: float


def better_reading(score: Score, noises: Noises, kwargs: Mapping[str, object], found: ScoreCheck) -> Better | None:
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
            return Better(words + _as_well(best, ratios, readings, noises), ratios[best])
    return None


def _as_well(best: _Reading, ratios: Mapping[_Reading, float], readings: _Readings, noises: Noises) -> str:
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
    least, most = range_of_levels(table)

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
