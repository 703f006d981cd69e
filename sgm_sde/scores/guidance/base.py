"""A score beside a reference, and how far it is carried beyond it."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import FAR, described, ends_of, number, numbers, real, require_function
from sgm_sde._utils.elsewhere import OF_GUIDANCE
from sgm_sde._utils.shapes import expand
from sgm_sde._utils.tree import Arguments, Path
from sgm_sde.engine.times import ROUNDING
from sgm_sde.processes.base import in_words_of_both
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.scores.conditions import ROWS, Numbers, PerSample, rows_for
from sgm_sde.scores.score import Network, Score
from sgm_sde.scores.time_labels import noise_level

Interval = tuple[float, float]
Scale = float | PerSample | Callable[[Tensor], Tensor | float]


class GuidedScore(Score):
    """A score made of others, in the prediction of the first.

    Args:
        parts: the scores; all on one process.
        scale: strength of the guidance: a number, `PerSample(w)` with one per sample (B,), or a function from the noise
            levels sigma / alpha (B,) to it.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance.
        neutral: the scale at which there is none.

    Raises:
        TypeError: for a part that is no `Score`, or an interval on a process without alpha and sigma.
        ValueError: for parts on different processes, a scale that is not finite, an invalid interval.

    Examples:
        >>> import sgm_sde as sg
        >>> main, weak = (sg.from_noise(lambda x, t, c=c: c * x, sg.VPSDE()) for c in (1.0, 0.8))
        >>> guided = sg.guidance.Auto(main, weak, 2.0)
        >>> isinstance(guided, GuidedScore), guided.branches, len(guided.parts)
        (True, 2, 2)
    """

    _elsewhere = OF_GUIDANCE

    recordable = False

    def __init__(self, parts: Sequence[Score], scale: Scale, interval: Interval | None, neutral: float) -> None:
        first = parts[0]
        for part in parts:
            if not isinstance(part, Score):
                raise TypeError(
                    f"guidance wraps what from_denoiser and its siblings make, got {described(part)}: use from_score"
                )
            if part.sde != first.sde:
                raise ValueError(f"the scores are on different processes: {in_words_of_both(first.sde, part.sde)}")

        super().__init__(first.net, first.sde, first.prediction)
        self.parts = tuple(parts)
        self.scale = _checked_scale(scale, first)
        self.interval = interval
        self._neutral = neutral
        if interval is not None:
            _require_interval(interval, first)

    @property
    def parameter(self) -> Tensor | None:
        """The first floating-point parameter of the first score's network."""
        return self.parts[0].parameter

    @property
    def _changes(self) -> bool:
        """True unless the scale is everywhere that of no guidance."""
        return self.scale != self._neutral

    @property
    def guided(self) -> bool:
        """True if the scale is another than that of no guidance, here or in a part."""
        return self._changes or super().guided

    @property
    def jumps(self) -> tuple[float, ...]:
        """Noise levels sigma / alpha at which it is known to jump: the ends of intervals of guidance, falling."""
        ends = self.interval if self.interval is not None and self._changes else ()
        own = {end for end in ends if 0 < end <= FAR}
        return tuple(sorted(own.union(super().jumps), reverse=True))

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the first score's network input."""
        return self.parts[0].dtype

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row per sample: those that any part knows."""
        own = frozenset({(ROWS,)} if isinstance(self.scale, PerSample) else ())
        return own.union(*(part.conditions for part in self.parts))

    def cast_to(self, dtype: torch.dtype) -> Score:
        """The same with x cast to `dtype` for each network's call."""
        return self._of([part.cast_to(dtype) for part in self.parts])

    def map_net(self, change: Callable[[Network], Network]) -> Score:
        """The same with each network replaced by what `change` makes of it."""
        return self._of([part.map_net(change) for part in self.parts])

    def _of(self, parts: Sequence[Score]) -> Score:
        other = copy.copy(self)
        other.parts = tuple(parts)
        other.net = parts[0].net
        return other

    def _scale_at(self, t: Tensor, numbers: Numbers | None) -> float | Tensor:
        """The scale at t (B,) of the samples of some numbers, None for all: one number, or one per sample (B,)."""
        given = self.scale
        if not callable(given) and self.interval is None:
            return _given_scale(given, t, numbers)

        assert has_scalar_marginal(self.sde)
        level = noise_level(self.sde)(t)
        scale = _of_level(given, level) if callable(given) else _given_scale(given, t, numbers)
        return scale if self.interval is None else self._within(self.interval, scale, level)

    def _anyone(self, t: Tensor) -> Numbers | None:
        """Numbers for t (B,) where it does not matter which samples these are: all have a scale, or none."""
        if not isinstance(self.scale, PerSample):
            return None
        assert isinstance(self.scale.value, Tensor)
        return Numbers(torch.zeros(len(t), dtype=torch.int64, device="cpu"), len(self.scale.value))

    def _within(self, interval: Interval, scale: float | Tensor, level: Tensor) -> float | Tensor:
        """The scale at noise levels (B,) inside of the interval, the neutral one outside."""
        low = interval[0] * (1 + ROUNDING)  # levels come from times in single precision
        high = interval[1] * (1 + ROUNDING)
        inside = (level > low) & (level <= high)
        guided = int(inside.sum())  # decides which networks are called: the one wait for a GPU in a call
        if 0 < guided < inside.numel():
            scales = scale if isinstance(scale, Tensor) else torch.full_like(level, scale)
            if scales.ndim < level.ndim:  # a scale for each sample, a level for each of its tokens
                scales = expand(scales, level)
            return torch.where(inside, scales, self._neutral)
        return scale if guided else self._neutral

    def __repr__(self) -> str:
        shown = f"{self.scale:g}" if isinstance(self.scale, float) else described(self.scale)
        options = f"scale={shown}" + ("" if self.interval is None else f", interval={self.interval}")
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))}, {options})"


def _checked_scale(scale: object, score: Score) -> Scale:
    """A scale as a float, finite numbers of single samples, or a function.

    Raises:
        TypeError: for anything else, and a function on a process without noise levels.
        ValueError: for numbers that are not finite.
    """
    if isinstance(scale, PerSample):
        value = numbers("scale", scale.value)
        if value.ndim != 1:
            raise ValueError(f"scale must have one number per sample, (B,), got shape {tuple(value.shape)}")
        return PerSample(value)
    if callable(scale):
        require_function("scale", scale, "of the noise level, or a number", 1)
        if not has_scalar_marginal(score.sde):
            raise TypeError(f"a scale of the noise level needs a LinearSDE, got {described(score.sde)}")
        return scale
    if isinstance(scale, Tensor | list | tuple | np.ndarray):
        raise TypeError(f"scale must be one number, got {described(scale)}: PerSample(w) has one for each sample")
    return number("scale", scale, least=-FAR, most=FAR)


def _given_scale(scale: float | PerSample, t: Tensor, numbers: Numbers | None) -> float | Tensor:
    """A scale that does not depend on the noise level, at t (B,) of the samples of some numbers."""
    if not isinstance(scale, PerSample):
        return float(scale)

    assert isinstance(scale.value, Tensor)
    return rows_for("the scale", scale.value, numbers, len(t)).to(t)


def _require_interval(interval: Interval, score: Score) -> None:
    """Raise unless it is one of noise levels, of which the score's process has any."""
    if not has_scalar_marginal(score.sde):
        raise TypeError(f"an interval of noise levels needs a LinearSDE, got {described(score.sde)}")
    low, high = ends_of("interval", interval)
    if not 0 <= low < high:
        raise ValueError(f"interval must be (low, high) with 0 <= low < high, got {interval}")


def _of_level(scale: Callable[[Tensor], Tensor | float], level: Tensor) -> Tensor:
    """The values (B,) of a scale that is a function of the noise levels (B,)."""
    value = scale(level)
    value = value.to(level) if isinstance(value, Tensor) else level.new_tensor(real("scale(level)", value))
    if value.shape not in (level.shape, torch.Size()):
        raise ValueError(f"scale(level) must return {tuple(level.shape)} numbers, got shape {tuple(value.shape)}")
    return value.expand(level.shape)


class Extrapolation(GuidedScore):
    r"""$D = D_r + w\,(D_m - D_r)$: away from a reference, beyond the main prediction for w > 1.

    Only what is needed is called: the main prediction alone at w = 1 and out of the interval, the reference alone at
    w = 0.

    Examples:
        >>> import sgm_sde as sg
        >>> main, weak = (sg.from_noise(lambda x, t, c=c: c * x, sg.VPSDE()) for c in (1.0, 0.8))
        >>> score = sg.guidance.Auto(main, weak, 2.0)
        >>> isinstance(score, Extrapolation), score.output(torch.ones(1, 1), torch.ones(1))  # 0.8 + 2 (1 - 0.8)
        (True, tensor([[1.2000]]))
    """

    def __init__(self, parts: Sequence[Score], scale: Scale, interval: Interval | None) -> None:
        super().__init__(parts, scale, interval, neutral=1.0)
        self.branches = (self.scale != 0) * parts[0].branches + (self.scale != 1) * parts[-1].branches

    @property
    def is_density(self) -> bool:
        """True if it is the score of the process' marginals: for plain conditional or unconditional sampling."""
        if self.scale == 0 and self.interval is None:
            return self.parts[-1].is_density
        return self.scale == 1 and self.parts[0].is_density

    def _wanted(self, t: Tensor, numbers: Numbers | None) -> tuple[float | Tensor, bool, bool]:
        """The scale at t (B,), and whether it takes the main and the reference prediction."""
        w = self._scale_at(t, numbers)
        mixed = isinstance(w, Tensor)
        return w, bool(mixed or w != 0), bool(mixed or w != 1)

    def network_evals(self, t: Tensor) -> int:
        """Samples that the networks see in a call at t (B,)."""
        _, main, reference = self._wanted(t, self._anyone(t))
        return main * self.parts[0].network_evals(t) + reference * self.parts[-1].network_evals(t)

    @abstractmethod
    def _predictions(self, x: Tensor, t: Tensor, kwargs: Arguments, main: bool, reference: bool) -> list[Tensor]:
        """The requested ones of main and reference prediction, in this order."""

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The guided prediction at x (B, *) and t (B,)."""
        w, *asked = self._wanted(t, Numbers.of(kwargs))
        wanted = self._predictions(x, t, kwargs, *asked)
        if len(wanted) == 1:
            return wanted[0]
        main, reference = wanted
        return extrapolated(main.to(x.dtype), reference.to(x.dtype), w, x)

    def both(self, x: Tensor, t: Tensor, kwargs: Arguments) -> tuple[Tensor, Tensor, float | Tensor]:
        """The main and the reference prediction at x (B, *) and t (B,), and the scale there."""
        main, reference = self._predictions(x, t, kwargs, True, True)
        return main.to(x.dtype), reference.to(x.dtype), self._scale_at(t, Numbers.of(kwargs))


def extrapolated(main: Tensor, reference: Tensor, w: float | Tensor, x: Tensor) -> Tensor:
    return torch.lerp(reference, main, expand(w, x) if isinstance(w, Tensor) else w)
