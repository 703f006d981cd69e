r"""Guidance: scores made of scores, for every solver, corrector and grid.

Each of these takes a `Score` and is one itself, in the prediction of the score it wraps, so they nest. At a given x
every prediction (noise, data, v, flow, score) is an affine function of the denoised data D, so a combination whose
weights sum to 1 is the same in all of them, and nothing is converted.

One convention for scales: `scale` multiplies the difference that guidance makes, 1 is plain conditional sampling, and 0
is none of it. Others in use:

| where                               | formula                                  | here                |
|-------------------------------------|------------------------------------------|---------------------|
| here, Imagen, EDM2, DPM-Solver      | $D_\emptyset + w (D_c - D_\emptyset)$    | `scale` = w         |
| Ho & Salimans, azula                | $(1 + \omega) D_c - \omega D_\emptyset$  | `scale` = 1 + omega |
| diffusers' Stable Diffusion         | as here, but w <= 1 turns guidance off   | `scale` = max(w, 1) |

A result's `nfe` counts calls of the guided score, its `rows` what the networks have seen in them.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.checks import (
    FAR,
    annotate,
    check_per_sample_scalar,
    described,
    ends_of,
    flag,
    instance_of,
    number,
    numbers,
    real,
    require_function,
)
from sgm_sde._utils.elsewhere import OF_GUIDANCE
from sgm_sde._utils.inputs import network_inputs
from sgm_sde._utils.shapes import expand, in_range
from sgm_sde._utils.tree import Arguments, Conditions, Path, each_leaf, map_leaves, shown
from sgm_sde.engine.times import ROUNDING
from sgm_sde.grids import Grid
from sgm_sde.processes.base import in_words_of_both
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores.calls import tell_call
from sgm_sde.scores.conditions import (
    ROWS,
    Numbers,
    PerSample,
    Rows,
    Shared,
    bare,
    count_of,
    each_rows,
    has_rows_of_samples,
    is_leaf,
    joined,
    map_rows,
    named_in,
    nullified,
    resolve,
    rows_for,
    with_marks_inside,
)
from sgm_sde.scores.score import Network, Score, require_score
from sgm_sde.scores.time_labels import TimeLabel, noise_level, require_label

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
        >>> guided = Auto(main, weak, 2.0)
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


def _require_named(negative: object) -> None:
    """Raise TypeError unless negative arguments are given by their names."""
    named = isinstance(negative, Mapping) and all(isinstance(key, str) for key in negative)
    if not named or not negative:
        raise TypeError(f"negative must map names of arguments to values, got {described(negative)}")


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
        >>> score = Auto(main, weak, 2.0)
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
        return _extrapolated(main.to(x.dtype), reference.to(x.dtype), w, x)

    def both(self, x: Tensor, t: Tensor, kwargs: Arguments) -> tuple[Tensor, Tensor, float | Tensor]:
        """The main and the reference prediction at x (B, *) and t (B,), and the scale there."""
        main, reference = self._predictions(x, t, kwargs, True, True)
        return main.to(x.dtype), reference.to(x.dtype), self._scale_at(t, Numbers.of(kwargs))


def _extrapolated(main: Tensor, reference: Tensor, w: float | Tensor, x: Tensor) -> Tensor:
    return torch.lerp(reference, main, expand(w, x) if isinstance(w, Tensor) else w)


class ClassifierFree(Extrapolation):
    r"""Classifier-free guidance: $D = D_\emptyset + w\,(D_c - D_\emptyset)$.

    Both branches go through the network as one batch of 2B rows. The condition c is what the call brings
    (`model_kwargs={"y": labels}`); the null branch gets the same arguments with those of `null` in their place. Other
    arguments of one row per sample are marked, `sg.PerSample(mask)`; one that has as many rows as there are samples and
    is the same for all is `sg.Shared(table)`.

    Nested conditions are named as they are nested: `null={"added_cond_kwargs": {"text_embeds": 0.0}}`; one number
    stands for all tensors of a sequence. Where None stands for no condition, the branches are two calls of B rows.

    A negative condition is a null condition that means something: `null={"y": unwanted}`. One of another length than
    the condition, such as a negative prompt, is `negative={"tokens": unwanted, "mask": its_mask}`; the branches are
    then two calls of B rows.

    Args:
        score: a score whose network takes a condition.
        scale: w; 1 is plain conditional sampling and 0 unconditional, B rows each.
        null: what stands for no condition, by the name of the argument, nested or not: a number, a tensor that expands
            to the condition's shape, `PerSample(unwanted)` with one row per sample, or None; a text, or a list of B,
            for a list of B texts. `{"y": net.NULL_LABEL}` if not given and the network has that attribute.
        negative: arguments of the other branch, in the place of those of the call, instead of `null`: tensors of B
            rows, or of one row that all samples share; what is in `Shared(...)`, and other values, as they are.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance; plain
            conditional sampling elsewhere. All if not given. The guided score then jumps in time, which named
            multistep solvers carry on; the default starts anew there.

    Raises:
        ValueError: for a network without a null label when `null` is not given or empty, and a score that is guided by
            the same condition already; at a call, if a condition of `null` is missing, no tensor, not of one row per
            sample, or of a shape that the null condition does not expand to, or if nothing says whether another
            argument goes with the samples.
        TypeError: for a `null` or `negative` that does not map names to conditions.

    Source: Ho & Salimans, 2022, arXiv:2207.12598; Kynkaanniemi et al., 2024, arXiv:2404.07724 (interval); Liu et al.,
    2022, arXiv:2206.01714 (negative conditions).

    Examples:
        >>> import sgm_sde as sg
        >>> net = lambda x, sigma, y: 0 * x + 0.1 * y[:, None]  # data at one point for each label
        >>> score = ClassifierFree(sg.from_denoiser(net, sg.EDMSDE()), scale=3.0, null={"y": 10})
        >>> y = torch.tensor([3, 7])
        >>> res = sg.sample(score, sg.EDMSDE(), (2, 1), nfe=4, seed=0, model_kwargs={"y": y})
        >>> res.nfe, res.network_evals
        (4, 16)
    """

    def __init__(
        self,
        score: Score,
        scale: Scale,
        null: Conditions | None = None,
        *,
        negative: Conditions | None = None,
        interval: Interval | None = None,
    ) -> None:
        super().__init__([score], scale, interval)
        if negative is not None:
            if null is not None:
                raise ValueError("give null= or negative=, not both")
            _require_named(negative)
        self.negative = None if negative is None else with_marks_inside(negative)

        if null is None and negative is None and score.null_label is not None:
            null = {"y": score.null_label}
        if null is not None and not isinstance(null, Mapping):
            raise TypeError(f"null must map names of conditions to what stands for none, got {described(null)}")

        self.null = with_marks_inside(null or {})
        self._named = named_in(self.null)
        if not self._named and negative is None:
            raise ValueError(
                f"{score!r} declares no null label (NULL_LABEL): give what stands for no condition, such as "
                f"null={{'y': 10}}, got null={null}; a network that was trained without one takes Classifier guidance"
            )
        if interval is None:
            _require_guided_once(score, self._named)
        self._absent = any(leaf is None for _, leaf in each_leaf(self.null))

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row per sample: those of `null`, and those that the score knows."""
        own = frozenset({(ROWS,)} if has_rows_of_samples([self.null, self.negative]) else ())
        return super().conditions | self._named | own

    def _predictions(self, x: Tensor, t: Tensor, kwargs: Arguments, main: bool, reference: bool) -> list[Tensor]:
        try:
            return self._branches(x, t, kwargs, main, reference)
        except (IndexError, TypeError) as error:
            if reference and self.negative is None:
                annotate(error, f"guidance gives the network null={self.null} for no condition, in rows of their own")
            raise

    def _branches(self, x: Tensor, t: Tensor, kwargs: Arguments, main: bool, reference: bool) -> list[Tensor]:
        score = self.parts[0]
        batch = len(x)
        numbers = Numbers.of(kwargs)
        if self.negative is None:
            without = nullified(kwargs, self.null, batch, numbers)
        else:
            without = self._with_negative(kwargs, batch, numbers)
        if not (main and reference):
            return [score.output(x, t, **(kwargs if main else without))]
        if self._absent or self.negative is not None:  # no row of a batch can be None
            with_condition = score.output(x, t, **kwargs)
            without_it = score.output(x, t, **without)
            return [with_condition, without_it]

        null = each_rows(bare(without))

        def in_both(path: Path, rows: Rows) -> Rows:
            return joined(rows, null.get(path, rows))

        resolved = resolve(kwargs, batch, self.conditions, called=2 * batch)
        both = map_rows(in_both, resolved)
        states = torch.cat([x, x])
        times = torch.cat([t, t])
        out = score.output(states, times, **both)
        return list(out.chunk(2))

    def _with_negative(self, kwargs: Arguments, batch: int, numbers: Numbers | None) -> Arguments:
        """The arguments with the negative ones in their place."""
        assert self.negative is not None
        missing = sorted(self.negative.keys() - kwargs.keys())
        if missing:
            raise ValueError(
                f"negative names {missing[0]!r}, which the call does not have: pass it in model_kwargs, "
                f"got {sorted(kwargs.keys() - {ROWS})}"
            )

        def rows(path: Path, leaf: object) -> object:
            return _negative_rows(path, leaf, batch, numbers)

        negative = map_leaves(rows, self.negative, is_leaf)
        return kwargs | negative


def _require_guided_once(score: Score, named: frozenset[Path]) -> None:
    """Raise ValueError for a score that these conditions guide at all levels already, itself or in its main part."""
    if isinstance(score, ClassifierFree) and score.interval is None and (twice := score._named & named):
        raise ValueError(
            f"the score is guided by {shown(min(twice))!r} already, at scale {described(score.scale)}: guide the score "
            f"inside once, at the scale wanted"
        )
    for part in score.parts[:1]:
        _require_guided_once(part, named)


def _has_row_of_each(value: object, numbers: Numbers | None, batch: int) -> bool:
    """True for a list, not marked, with an entry for each of the run's samples."""
    total = batch if numbers is None else numbers.total
    return isinstance(value, list) and count_of(value) == total


def _negative_rows(path: Path, value: object, batch: int, numbers: Numbers | None) -> object:
    """A negative argument for a batch: its one row for all, or those of the samples of some numbers."""
    tensor = bare(value)
    name = f"the negative {shown(path)!r}"
    if isinstance(tensor, list) and (isinstance(value, PerSample) or _has_row_of_each(value, numbers, batch)):
        return rows_for(name, tensor, numbers, batch)
    if isinstance(value, Shared) or not isinstance(tensor, Tensor) or tensor.ndim == 0:
        return tensor
    if len(tensor) == 1 and not isinstance(value, PerSample):
        return tensor.expand(batch, *tensor.shape[1:])
    return rows_for(name, tensor, numbers, batch)


class Auto(Extrapolation):
    r"""Autoguidance: $D = D_w + w\,(D - D_w)$, away from a weaker network of the same task.

    Args:
        score: the score.
        weak: that of a smaller or less trained network, on the same process; of any prediction. It gets the same
            arguments, and its rows count like the other's.
        scale: w; 1 is the score alone, 0 the weak one.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance.

    Raises:
        ValueError: for scores on different processes, or options out of range.

    Source: Karras et al., 2024, arXiv:2406.02507.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.EDMSDE()
        >>> good, weak = (sg.oracles.Gaussian(torch.zeros(1), v).score(sde) for v in (1.0, 2.0))
        >>> Auto(good, weak, scale=2.0).denoised(torch.ones(1, 1), 1.0)
        tensor([[0.3333]])
    """

    def __init__(self, score: Score, weak: Score, scale: Scale, *, interval: Interval | None = None) -> None:
        super().__init__([score, weak], scale, interval)

    def _predictions(self, x: Tensor, t: Tensor, kwargs: Arguments, main: bool, reference: bool) -> list[Tensor]:
        wanted = [part for part, asked in zip(self.parts, (main, reference), strict=True) if asked]
        return [part.predict(self.prediction, x, t, **kwargs) for part in wanted]


class Classifier(GuidedScore):
    r"""Classifier guidance: $s(x, t) + w\,\nabla_x \log p(y \mid x, t)$.

    With the exact posterior and w = 1 it is the score of the data given y, and likelihoods of it are conditional ones.
    The gradient is autograd's, whether or not gradients are on outside, and leaves no trace on parameters.

    Args:
        score: the score.
        log_likelihood: `log_likelihood(x, t, **condition)` with x (B, *), t (B,): log p(y | x, t) of each sample (B,);
            what `from_classifier` makes is known to fall with the signal, and the default errs less on it than on
            any function, such as a reward.
        scale: w.
        condition: names of the arguments of a call that go to the log-likelihood.
        shared: whether they go to the network, too, as they do for a class-conditional one.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance.

    Raises:
        ValueError: for options out of range; at a call, for a condition that is missing, and a log-likelihood that has
            another shape than (B,) or does not depend on x by autograd.

    Source: Dhariwal & Nichol, 2021, arXiv:2105.05233; Song et al., 2021, arXiv:2011.13456, section 5.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.EDMSDE()
        >>> mixture = sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
        >>> posterior = lambda x, t, y: mixture.responsibilities(x, sde, t).log().gather(1, y[:, None])[:, 0]
        >>> score = Classifier(mixture.score(sde), posterior)
        >>> x = sg.sample(score, sde, (64, 1), nfe=20, seed=0, model_kwargs={"y": torch.ones(64, dtype=torch.long)}).x
        >>> bool((x > 0).all())
        True
    """

    def __init__(
        self,
        score: Score,
        log_likelihood: Callable[..., Tensor],
        scale: Scale = 1.0,
        *,
        condition: Sequence[str] = ("y",),
        shared: bool = False,
        interval: Interval | None = None,
    ) -> None:
        super().__init__([score], scale, interval, neutral=0.0)
        require_score(score, "guidance by a classifier")
        if isinstance(condition, str):
            raise TypeError(
                f"condition must be a sequence of names, such as ({condition!r},), got {described(condition)}"
            )
        if not isinstance(condition, Sequence) or not all(isinstance(name, str) for name in condition):
            raise TypeError(f"condition must be a sequence of names, got {described(condition)}")
        arguments = f"of (x, t, {', '.join(condition)})"
        if callable(log_likelihood):
            arguments += ", or of (x, t) with condition=()"
        require_function("the log-likelihood", log_likelihood, arguments, 2, named=condition)
        self.log_likelihood = log_likelihood
        self.condition = tuple(condition)
        self.shared = flag("shared", shared)
        self.branches = score.branches

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row per sample: the classifier's, and those that the score knows."""
        return super().conditions | {(name,) for name in self.condition}

    @property
    def is_density(self) -> bool:
        """True if it is the score of the process' marginals: at scale 1, that of the data given the condition."""
        everywhere = self.scale == 1 and self.interval is None
        return (everywhere or self.scale == 0) and self.parts[0].is_density

    @property
    def tilted(self) -> bool:
        """True if a gradient is added, here or in a part, and not a classifier's, which falls with the signal."""
        added = self._changes and not isinstance(self.log_likelihood, LabelLikelihood)
        return added or super().tilted

    def network_evals(self, t: Tensor) -> int:
        """Samples that the score's network sees in a call at t (B,); those of the classifier are not counted."""
        return self.parts[0].network_evals(t)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The guided prediction at x (B, *) and t (B,)."""
        given = {name: bare(_condition(name, kwargs)) for name in self.condition}
        own = kwargs if self.shared else {name: value for name, value in kwargs.items() if name not in given}
        out = self.parts[0].output(x, t, **own)
        w = self._scale_at(t, Numbers.of(kwargs))
        if not isinstance(w, Tensor) and w == 0:
            return out
        change = expand(w, x) if isinstance(w, Tensor) else w
        change = change * self._gradient(x, t, given)  # of the score, and in the network's prediction, at fixed x:
        return out.to(x.dtype) + self.sde.convert("score", self.prediction, torch.zeros_like(x), t, change)

    @outside_inference_mode
    def _gradient(self, x: Tensor, t: Tensor, condition: Arguments) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if keep and x.requires_grad else x.detach().requires_grad_()
            log_p = self.log_likelihood(leaf, t, **condition)
            check_per_sample_scalar("the log-likelihood", log_p, len(x))
            gradient = None
            if log_p.requires_grad:
                (gradient,) = torch.autograd.grad(log_p.sum(), leaf, create_graph=keep, allow_unused=True)
        if gradient is None:
            raise ValueError(f"the log-likelihood {self.log_likelihood!r} does not depend on x by autograd")
        return gradient


class _Around(GuidedScore):
    """A score made of another one's predictions: the base of what changes a guided prediction."""

    def __init__(self, score: Score, *more: Score) -> None:
        super().__init__([score, *more], 1.0, None, neutral=1.0)
        self.branches = sum(part.branches for part in self.parts)

    @property
    def is_density(self) -> bool:
        """Never: what is changed is the score of nothing."""
        return False

    def network_evals(self, t: Tensor) -> int:
        """Samples that the networks see in a call at t (B,)."""
        return sum(part.network_evals(t) for part in self.parts)

    def _back(self, D: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Data in the score's own prediction."""
        out = self.sde.convert("data", self.prediction, x, t, D)
        return out if out is D else out.to(x.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"


class _AroundGuidance(_Around):
    """A change of what guidance makes of its two predictions."""

    def __init__(self, guided: Extrapolation, *more: Score) -> None:
        if not isinstance(guided, Extrapolation):
            raise TypeError(f"this changes what ClassifierFree or Auto guidance makes, got {described(guided)}")
        super().__init__(guided, *more)

    def network_evals(self, t: Tensor) -> int:
        """Samples that the networks see in a call at t (B,): both branches are wanted at any scale."""
        guided = self.parts[0]
        assert isinstance(guided, Extrapolation)
        return sum(part.network_evals(t) for part in (guided.parts[0], guided.parts[-1], *self.parts[1:]))

    def _both(self, x: Tensor, t: Tensor, kwargs: Arguments) -> tuple[Tensor, Tensor, float | Tensor]:
        guided = self.parts[0]
        assert isinstance(guided, Extrapolation)
        return guided.both(x, t, kwargs)


class Rescaled(_AroundGuidance):
    r"""Guidance whose prediction has the standard deviation of the conditional one, against over-exposure.

    $$ \hat v = v_\emptyset + w\,(v_c - v_\emptyset), \qquad
       v = \phi\,\frac{\text{std}(v_c)}{\text{std}(\hat v)}\,\hat v + (1 - \phi)\,\hat v $$

    with standard deviations over each sample, in the network's own prediction, as published.

    Args:
        guided: `ClassifierFree` or `Auto` guidance.
        strength: phi in [0, 1]; 0 is the guidance alone.

    Raises:
        TypeError: for another score.
        ValueError: for a strength out of range.

    Source: Lin et al., 2023, arXiv:2305.08891, section 3.4.

    Examples:
        >>> import sgm_sde as sg
        >>> net = lambda x, sigma, y: x * (1 + 0.1 * y[:, None]) / (1 + sigma[:, None] ** 2)
        >>> guided = ClassifierFree(sg.from_denoiser(net, sg.EDMSDE()), scale=5.0, null={"y": 0})
        >>> Rescaled(guided, 1.0).output(torch.tensor([[1.0, 3.0]]), torch.ones(1), y=torch.ones(1)).std()
        tensor(0.7778)
    """

    def __init__(self, guided: Extrapolation, strength: float = 0.7) -> None:
        super().__init__(guided)
        self.strength = number("strength", strength, least=0, most=1)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The rescaled prediction at x (B, *) and t (B,)."""
        main, reference, w = self._both(x, t, kwargs)
        out = _extrapolated(main, reference, w, x)
        std_c = main.flatten(1).std(1)
        std = out.flatten(1).std(1)
        factor = torch.where(std > 0, std_c / std, 1.0)  # a constant prediction is left as it is
        return expand(1 + self.strength * (factor - 1), x) * out


class APG(_AroundGuidance):
    r"""Adaptive projected guidance: what guidance adds along the conditional data estimate is left out, or weakened.

    $$ D = D_c + (w - 1)\,(\Delta_\perp + \eta\,\Delta_\parallel), \qquad
       \Delta = \min\Bigl(1, \frac{r}{\|D_c - D_\emptyset\|}\Bigr)\,(D_c - D_\emptyset) $$

    where $\Delta_\parallel$ is the part of $\Delta$ along $D_c$. The paper's momentum, an average over earlier calls,
    is left out: a score is a function of x and t.

    Args:
        guided: `ClassifierFree` or `Auto` guidance.
        eta: weight of the parallel part; 1 is the guidance alone, but for the bound.
        norm: bound r of the difference's norm; none if not given.

    Raises:
        TypeError: for another score.
        ValueError: for options out of range.

    Source: Sadat et al., 2024, arXiv:2410.02416.

    Examples:
        >>> import sgm_sde as sg
        >>> net = lambda x, sigma, y: y[:, None] * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, 1.0])
        >>> guided = ClassifierFree(sg.from_denoiser(net, sg.EDMSDE()), scale=3.0, null={"y": 0.0})
        >>> APG(guided, eta=1.0).denoised(torch.zeros(1, 2), 1.0, y=torch.ones(1))
        tensor([[3., 1.]])
    """

    def __init__(self, guided: Extrapolation, eta: float = 0.0, norm: float | None = None) -> None:
        super().__init__(guided)
        self.eta = number("eta", eta, least=0, most=1)
        self.norm = None if norm is None else number("norm", norm, above=0)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The guided prediction at x (B, *) and t (B,)."""
        main, reference, w = self._both(x, t, kwargs)
        D_c = self.convert("data", x, t, main)
        delta = D_c - self.convert("data", x, t, reference)
        if self.norm is not None:
            length = delta.flatten(1).double().norm(dim=1).clamp(min=self.norm)
            delta = expand((self.norm / length).to(delta.dtype), x) * delta

        unit = torch.nn.functional.normalize(D_c.flatten(1).double(), dim=1)
        along = (delta.flatten(1).double() * unit).sum(1, keepdim=True) * unit
        parallel = along.reshape(x.shape).to(x.dtype)
        weight = expand(w - 1, x) if isinstance(w, Tensor) else w - 1
        return self._back(D_c + weight * (delta - parallel + self.eta * parallel), x, t)


class Weakened(_Around):
    r"""Guidance away from a weaker branch of the same network, on top of any other guidance.

    $$ D = D_{\text{guided}} + s\,(D_c - D_{\text{weak}}) $$

    Perturbed-attention guidance has the network with some of its attention maps replaced by the identity for the weak
    branch, skip-layer guidance the one without some of its layers: which these are is a matter of the network, so the
    branch is given.

    Args:
        score: a score, or `ClassifierFree` or `Auto` guidance, whose main prediction is $D_c$.
        weak: that of the weak branch, on the same process; of any prediction. It gets the same arguments.
        scale: s; 0 is the score alone. A number, `PerSample(s)`, or a function of the noise level.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is this guidance.

    Raises:
        ValueError: for scores on different processes, or options out of range.

    Source: Ahn et al., 2024, arXiv:2403.17377 (perturbed attention); Hyung et al., 2024, arXiv:2411.18664 (skipped
    layers).

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.EDMSDE()
        >>> score = sg.oracles.Gaussian(torch.zeros(1), 1.0).score(sde)
        >>> weak = sg.oracles.Gaussian(torch.zeros(1), 2.0).score(sde)
        >>> guided = Weakened(score, weak, scale=lambda noise_level: 1.0 if noise_level > 0.5 else 0.0)
        >>> guided.denoised(torch.ones(1, 1), 1.0)
        tensor([[0.3333]])
    """

    def __init__(self, score: Score, weak: Score, scale: Scale, *, interval: Interval | None = None) -> None:
        super().__init__(score, weak)
        GuidedScore.__init__(self, [score, weak], scale, interval, neutral=0.0)
        both = score.parts[0].branches + score.parts[-1].branches if isinstance(score, Extrapolation) else 0
        self.branches = max(score.branches, both) + weak.branches

    def _wanted(self, t: Tensor, numbers: Numbers | None) -> tuple[float | Tensor, bool]:
        s = self._scale_at(t, numbers)
        return s, isinstance(s, Tensor) or s != 0

    def network_evals(self, t: Tensor) -> int:
        """Samples that the networks see in a call at t (B,)."""
        score, weak = self.parts
        if not self._wanted(t, self._anyone(t))[1]:
            return score.network_evals(t)
        if isinstance(score, Extrapolation):
            return score.parts[0].network_evals(t) + score.parts[-1].network_evals(t) + weak.network_evals(t)
        return score.network_evals(t) + weak.network_evals(t)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The guided prediction at x (B, *) and t (B,)."""
        score, weak = self.parts
        s, wanted = self._wanted(t, Numbers.of(kwargs))
        if not wanted:
            return score.output(x, t, **kwargs)
        if isinstance(score, Extrapolation):
            main, reference, w = score.both(x, t, kwargs)
            out = _extrapolated(main, reference, w, x)
        else:
            out = main = score.output(x, t, **kwargs).to(x.dtype)
        away = main - weak.predict(self.prediction, x, t, **kwargs)
        return out + (expand(s, x) if isinstance(s, Tensor) else s) * away


class Thresholded(_Around):
    r"""A score whose data estimate is kept within the range of the data: for large scales of guidance, and opt-in.

    Static: $D$ is clipped to $[-c, c]$. Dynamic, with a `percentile` p: to $[-s, s]$ and divided by $s/c$, where s is
    the p-quantile of a sample's $|D|$, and c at least. No other score or solver of this library clips.

    Args:
        score: any score on a linear process.
        limit: c, the largest value of the data.
        percentile: p in (0, 1), 0.995 in the paper; static if not given.
        most: of s, in whose excess D is then only clipped; not bounded if not given.

    Raises:
        TypeError: for a process without a data estimate.
        ValueError: for options out of range.

    Source: Saharia et al., 2022, arXiv:2205.11487, section 2.3.

    Examples:
        >>> import sgm_sde as sg
        >>> score = sg.from_denoiser(lambda x, sigma: 4 * x, sg.EDMSDE())
        >>> Thresholded(score).denoised(torch.tensor([[1.0, -0.1]]), 1.0)
        tensor([[ 1.0000, -0.4000]])
        >>> Thresholded(score, percentile=0.999).denoised(torch.tensor([[1.0, -0.1]]), 1.0)
        tensor([[ 1.0000, -0.1001]])
    """

    def __init__(
        self, score: Score, limit: float = 1.0, percentile: float | None = None, most: float | None = None
    ) -> None:
        super().__init__(score)
        if not has_scalar_marginal(score.sde):
            raise TypeError(f"the data estimate that is clipped needs a LinearSDE, got {described(score.sde)}")
        self.limit = number("limit", limit, above=0, most=FAR)
        self.percentile = None if percentile is None else number("percentile", percentile, above=0, below=1)
        if percentile is None and most is not None:
            raise ValueError(f"most={most} bounds a dynamic threshold: give a percentile")
        self.most = None if most is None else number("most", most, least=self.limit, most=FAR)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The prediction of the clipped data estimate at x (B, *) and t (B,)."""
        D = self.parts[0].predict("data", x, t, **kwargs)
        return self._back(in_range(D, self.limit, self.percentile, self.most), x, t)


def cfg_plus_plus(scale: float, sde: LinearSDE, grid: Grid | Sequence[float]) -> Callable[[Tensor], Tensor]:
    r"""The scale with which classifier-free guidance is CFG++ in the steps of DDIM on a grid.

    CFG++ interpolates the data estimates with a $\lambda$ in [0, 1] and renoises with the unconditional noise,

    $$ x' = \alpha' D_\lambda + \sigma' \epsilon_\emptyset, \qquad
       D_\lambda = D_\emptyset + \lambda\,(D_c - D_\emptyset), \qquad
       \epsilon_\emptyset = (x - \alpha D_\emptyset)/\sigma $$

    With noise levels $s = \sigma/\alpha$, that is a DDIM step from s to s' of guidance at the scale
    $w = \lambda / (1 - s'/s)$, and $\lambda$ in the last, denoising call. Between the grid's levels w is that of the
    level above.

    Args:
        scale: $\lambda$.
        sde: the process.
        grid: the grid of the run, `Grid` or times, whose last is the denoising call's.

    Returns:
        a function of the noise level, for `ClassifierFree(score, scale=...)` and `solver="ddim"`.

    Raises:
        ValueError: for a scale outside [0, 1].

    Source: Chung et al., 2024, arXiv:2406.08070.

    Examples:
        >>> import sgm_sde as sg
        >>> cfg_plus_plus(0.6, sg.EDMSDE(), [8.0, 4.0, 1.0])(torch.tensor([8.0, 4.0, 1.0]))
        tensor([1.2000, 0.8000, 0.6000])
    """
    scale = number("scale", scale, least=0, most=1)
    instance_of("sde", sde, LinearSDE, "a LinearSDE")
    times = Grid.of(grid).times
    levels = [math.exp(-node.lam) for node in sde.nodes(times)]
    values = [scale / (1 - after / before) for before, after in pairwise(levels)] + [scale]
    # Levels of a run are rounded in its precision: boundaries lie half-way between two.
    edges = [math.sqrt(before * after) for before, after in pairwise(levels)]

    def scale_at(level: Tensor) -> Tensor:
        rising = torch.tensor(edges[::-1], dtype=torch.float64, device=level.device)
        table = torch.tensor(values[::-1], dtype=torch.float64, device=level.device)
        return table[torch.searchsorted(rising, level.double())].to(level.dtype)

    return scale_at


def _condition(name: str, kwargs: Conditions) -> object:
    if name not in kwargs:
        raise ValueError(
            f"guidance asks for the condition {name!r}: pass model_kwargs={{{name!r}: ...}}, "
            f"got {sorted(kwargs.keys() - {ROWS})}"
        )
    return kwargs[name]


def from_classifier(
    net: Network,
    *,
    time_label: TimeLabel | None = None,
    input_scale: Callable[[Tensor], Tensor] | None = None,
) -> LabelLikelihood:
    r"""The log-likelihood $\log p(y \mid x, t)$ of a classifier of noisy data.

    Args:
        net: `net(x, label)`, logits (B, K).
        time_label: from t (B,) to what the classifier expects; t itself if not given.
        input_scale: from t (B,) to the factor on x that it expects.

    Raises:
        ValueError: at a call, for labels `y` that are not B integers from 0 to K - 1.

    Examples:
        >>> log_p = from_classifier(lambda x, t: torch.cat([-x, x], 1))
        >>> log_p(torch.zeros(1, 1), torch.ones(1), y=torch.tensor([1]))
        tensor([-0.6931])
    """
    return LabelLikelihood(net, time_label, input_scale)


@dataclass(frozen=True)
class LabelLikelihood:
    r"""The log-likelihood of labels by a classifier of noisy data, as `from_classifier` makes it.

    Near pure noise a classifier knows nothing of the label, and its gradient falls with the signal.

    Args:
        net: logits (B, K).
        time_label: from t (B,) to what the classifier expects.
        input_scale: from t (B,) to the factor on x that it expects.

    Raises:
        TypeError: for what is no function of (x, label), or of t.

    Examples:
        >>> log_p = LabelLikelihood(lambda x, t: torch.cat([-x, x], 1))
        >>> log_p(torch.zeros(1, 1), torch.ones(1), y=torch.tensor([1]))
        tensor([-0.6931])
    """

    net: Network
    time_label: TimeLabel | None = None
    input_scale: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        require_function("the classifier", self.net, "of (x, label)")
        require_label(self.time_label)
        require_function("input_scale", self.input_scale, "of t", 1, optional=True)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Log-likelihoods (B,) of labels y (B,).

        Raises:
            ValueError: for logits of another shape than (B, K), and labels that are not integers below K.
        """
        inputs = network_inputs(x, t, self.time_label, self.input_scale)
        try:
            logits = self.net(*inputs)
        except Exception as error:
            tell_call(error, *inputs, {})
            raise
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(f"a classifier returns logits ({len(x)}, K), got {tuple(logits.shape)}")
        return _log_probability(logits, y)


def _log_probability(logits: Tensor, y: Tensor) -> Tensor:
    """Log-probabilities (B,) of labels y (B,) from logits (B, K)."""
    _require_labels(y, *logits.shape)
    chosen = logits.log_softmax(1).gather(1, y.long()[:, None])
    return chosen[:, 0]


def _require_labels(y: Tensor, batch: int, classes: int) -> None:
    """Raise ValueError unless y holds integers (B,) from 0 to K - 1."""
    integers = isinstance(y, Tensor) and not y.is_floating_point()
    if not integers or y.shape != (batch,):
        dtype = f" and dtype {y.dtype}" if isinstance(y, Tensor) else ""
        raise ValueError(f"labels must be ({batch},) integers, got {described(y)}{dtype}")
    if y.device.type == "cpu" and bool(((y < 0) | (y >= classes)).any()):  # elsewhere a look would wait for the device
        raise ValueError(f"labels must lie in [0, {classes}), got {y.tolist()}")
