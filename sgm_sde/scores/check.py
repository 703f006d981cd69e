r"""Comparison of a network with data: whether it predicts what it was taken for.

Of data $x_0$ with the means m and variances v of their coordinates, $x = \alpha x_0 + \sigma\epsilon$ at a few noise
levels about the size of the data. The best estimate that is linear in each coordinate is a Gaussian's,

$$ G(x) = m + \frac{\alpha v}{\alpha^2 v + \sigma^2}\,(x - \alpha m), \qquad
   \rho = \exp\operatorname{mean}_{\sigma/\alpha} \log \frac{|D - x_0|}{|G - x_0|}, $$

and a network knows at least as much: $\rho$ is 1 or less. Where it is not, the same network is read otherwise, as the
prediction of something else and with other labels of the time. If one of these readings is much better, that is what
the network is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
from sgm_sde.processes.base import CheckError, has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores import time_labels
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score
from sgm_sde.scores.time_labels import TimeLabel

LEVELS = (0.2, 0.33, 0.6, 1.0, 1.7, 3.0, 5.0)  # sigma / alpha, in standard deviations of the data
FEWEST = 16  # data, for means and variances
WORSE = 1.5  # rho from which on a network cannot be what it was taken for
BETTER = 0.8  # of rho, by another reading
ALIKE = 1.03  # readings within this factor are the same
_GIVEN = ""  # a label or a scale as the score has it

CONSTRUCTORS = {
    "noise": "from_noise(net, ...)",
    "data": "from_denoiser(net, ...)",
    "v": "from_v(net, ...)",
    "flow": "from_flow(net, ...)",
    "score": "from_score(net, ...)",
    "-noise": "from_noise(lambda x, t: -net(x, t), ...)",
    "-flow": "from_flow(lambda x, t: -net(x, t), ...)",
    "-score": "from_score(lambda x, t: -net(x, t), ...)",
}


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
        logs = [math.log(max(a, 1e-12) / max(b, 1e-12)) for a, b in zip(self.errors, self.gaussian, strict=True)]
        return math.exp(math.fsum(logs) / len(logs))

    def __str__(self) -> str:
        rows = zip(self.levels, self.errors, self.gaussian, strict=True)
        lines = ["sigma/alpha   network   a Gaussian   (error of the estimated data / their standard deviation)"]
        lines += [f"{level:11.3g}   {error:7.3g}   {fitted:10.3g}" for level, error, fitted in rows]
        return "\n".join([*lines, f"network / Gaussian {self.ratio:.2f} in the geometric mean"])


def check_score(
    score: Score, data: Tensor, *, seed: int = 0, model_kwargs: Mapping[str, object] | None = None
) -> ScoreCheck:
    r"""The denoising error of a network on data, against the mistakes that are made in telling what it predicts.

    A network that is read with another time label, prediction, sign or input scale than it was trained with gives
    samples of an ordinary size and of a wrong law. With some data that shows at once: seven calls on all
    of the data for it as it is, and some 200 for other readings of it.

    Args:
        score: of a network; its process is the one it was trained on.
        data: x_0 (n, *), as the network was trained on it: n at least 16, some 64 tell enough.
        seed: of the noise.
        model_kwargs: the network's further arguments, for these n data.

    Returns:
        the errors at seven noise levels.

    Raises:
        CheckError: if the network is worse than a Gaussian fitted to the data by half, or another reading is better
            than the given one by a fifth; with the errors and the best reading.
        TypeError: for a process without alpha(t) and sigma(t), a function in place of a score, data of integers, and
            arguments that are no mapping.
        ValueError: for fewer data, data that are not finite or all the same, a seed below 0, another number of rows
            than of data in `sg.PerSample`, and a network that returns what is not finite.

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
    generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    x0 = data.detach().to(torch.promote_types(data.dtype, torch.float32))
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
    noised = _Noised(sde, x0, noise)
    with torch.no_grad():
        found = noised.check([noised.error_of(model, k) for k in range(len(noised.nodes))])
        better = _best_reading(score, noised, model.kwargs, found) if type(score) is Score else None

    if better is not None and better[1] < min(BETTER * found.ratio, 1.0):
        raise CheckError(f"the network is better read as {better[0]}, with {better[1]:.2f} of a Gaussian's:\n{found}")
    if found.ratio > WORSE:
        raise CheckError(f"the network says less of these data than a Gaussian fitted to them:\n{found}")
    return found


class _Noised:
    """Data with one noise at several levels, and how far estimates of them are off.

    Args:
        sde: the process.
        x0: data (n, *).
        noise: standard normal numbers (n, *).

    Attributes:
        std: of the data, root mean square over their coordinates.
        nodes: the process at the levels.
        states: a state (n, *) and times (n,) for each node.
    """

    def __init__(self, sde: LinearSDE, x0: Tensor, noise: Tensor) -> None:
        self.x0 = x0
        self.mean = x0.double().mean(0)
        self.variance = (x0 - self.mean).square().mean(0)
        self.std = float(self.variance.mean().sqrt())
        if not self.std > 0:
            raise ValueError(f"data must differ from one another, got a standard deviation of {self.std:g}")

        levels = torch.tensor(_levels(sde, self.std), dtype=torch.float64)
        times = sde.time_of_noise_level(levels).tolist()
        self.nodes = sde.nodes(times)
        self.states = [
            (node.alpha * x0 + node.sigma * noise, torch.full((len(x0),), t, dtype=x0.dtype, device=x0.device))
            for node, t in zip(self.nodes, times, strict=True)
        ]

    def error(self, estimate: Tensor) -> float:
        """The root mean square of what an estimate (n, *) of the data is off by, in standard deviations of the data."""
        return float((estimate - self.x0).double().square().mean().sqrt()) / self.std

    def error_of(self, model: BoundScore, k: int) -> float:
        """The error of the data that a score finds in the k-th state, which must be finite."""
        x, _ = self.states[k]
        estimate = model.predict("data", x, self.nodes[k].t)
        check_output(x, estimate, self.nodes[k].t)
        return self.error(estimate)

    def check(self, errors: Sequence[float]) -> ScoreCheck:
        """Errors at the nodes beside those of the Gaussian."""
        levels = tuple(node.sigma / node.alpha for node in self.nodes)
        return ScoreCheck(levels, tuple(errors), self._gaussian)

    @cached_property
    def _gaussian(self) -> tuple[float, ...]:
        errors = []
        for node, (x, _) in zip(self.nodes, self.states, strict=True):
            gain = node.alpha * self.variance / (node.alpha**2 * self.variance + node.sigma**2)
            errors.append(self.error(self.mean + gain * (x - node.alpha * self.mean)))
        return tuple(errors)


def _levels(sde: LinearSDE, std: float) -> list[float]:
    """Noise levels about the size of the data, of those that the process passes through."""
    least, most = (-sde.log_snr(torch.tensor([sde.eps, sde.T]).double()) / 2).exp().tolist()
    return sorted({min(max(level * std, 1.01 * least), 0.99 * most) for level in LEVELS})


def _best_reading(
    score: Score, noised: _Noised, kwargs: Mapping[str, object], found: ScoreCheck
) -> tuple[str, float] | None:
    """The reading of a network with the least error, in the user's words, and its rho; None if it is the given one."""
    given = (score.prediction, _GIVEN, _GIVEN)
    ratios = {given: found.ratio}
    for (label, of_time), (scale, of_x) in itertools.product(_labels(score).items(), _scales(score).items()):
        read = Score(score.net, score.sde, score.prediction, time_label=of_time, input_scale=of_x, dtype=score.dtype)
        try:
            outputs = [read.output(x, t, **kwargs).to(x.dtype) for x, t in noised.states]
        except Exception:  # what the network does not take is not what it was trained with
            continue
        for name in CONSTRUCTORS:
            errors = _errors_as(name, outputs, noised)
            if errors and all(map(math.isfinite, errors)):
                ratios[name, label, scale] = noised.check(errors).ratio

    least = min(ratios.values())
    best = next(reading for reading in (given, *ratios) if ratios[reading] <= ALIKE * least)
    return None if best == given else (_written(best, score), ratios[best])


def _errors_as(name: str, outputs: Sequence[Tensor], noised: _Noised) -> list[float]:
    """The errors of outputs that are taken for a prediction, of `CONSTRUCTORS`; none if it gives no data."""
    sign = -1.0 if name.startswith("-") else 1.0
    try:
        known = [node.convert(name.removeprefix("-"), "data") for node in noised.nodes]
    except ZeroDivisionError:
        return []
    of_nodes = zip(known, noised.states, outputs, strict=True)
    return [noised.error(c_x * x + sign * c_r * output) for (c_x, c_r), (x, _), output in of_nodes]


def _written(reading: tuple[str, str, str], score: Score) -> str:
    """A reading as it is written, options of the score that stay by dots."""
    name, label, scale = reading
    options = [option for option in (label, scale) if option != _GIVEN]
    if label == _GIVEN and score.time_label is not None:
        options.append("time_label=...")
    if scale == _GIVEN and score.input_scale is not None:
        options.append("input_scale=...")
    return CONSTRUCTORS[name].replace("...", ", ".join(["sde", *options]), 1)


def _labels(score: Score) -> dict[str, TimeLabel | None]:
    """Time labels of published networks, by what is written to have them; first the given one."""
    sde = score.sde
    assert has_scalar_marginal(sde)
    n = len(sde.table_times or ()) or 1000
    return {
        _GIVEN: score.time_label,
        "time_label=None": None,
        f"time_label=time_labels.ddpm({n})": time_labels.ddpm(n),
        f"time_label=time_labels.ddpm({n}, integer=True)": time_labels.ddpm(n, integer=True),
        "time_label=time_labels.noise_level(sde)": time_labels.noise_level(sde),
        "time_label=time_labels.edm_c_noise(sde)": time_labels.edm_c_noise(sde),
        "time_label=time_labels.flow(1000)": time_labels.flow(1000.0),
        "time_label=time_labels.flow_from_noise()": time_labels.flow_from_noise(),
    }


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
