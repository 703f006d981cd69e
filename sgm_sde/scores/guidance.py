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
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sgm_sde._autograd import outside_inference_mode
from sgm_sde._checks import FAR, described, ends_of, flag, number, require_function, require_one_a_sample
from sgm_sde._shapes import expand
from sgm_sde._times import ROUNDING
from sgm_sde._tree import Path, each_leaf
from sgm_sde.scores.conditions import bare, map_rows, named_in, nullified, resolve
from sgm_sde.scores.score import Score
from sgm_sde.scores.time_labels import TimeLabel, noise_level

Interval = tuple[float, float]


class GuidedScore(Score):
    """A score made of others, in the prediction of the first.

    Args:
        parts: the scores; all on one process.
        scale: strength of the guidance.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance.
        neutral: the scale at which there is none.

    Raises:
        TypeError: for a part that is no `Score`, or an interval on a process without alpha and sigma.
        ValueError: for parts on different processes, a scale that is not finite, an interval that is none.
    """

    recordable = False

    def __init__(self, parts: Sequence[Score], scale: float, interval: Interval | None, neutral: float) -> None:
        first = parts[0]
        for part in parts:
            if not isinstance(part, Score):
                raise TypeError(
                    f"guidance wraps what from_denoiser and its siblings make, got {part!r}: use from_score"
                )
            if part.sde != first.sde:
                raise ValueError(f"the scores are on different processes: {first.sde!r} and {part.sde!r}")
        super().__init__(first.net, first.sde, first.prediction)
        scale = number("scale", scale, least=-FAR, most=FAR)
        if interval is not None:
            if not first.sde.is_linear:
                raise TypeError(f"an interval of noise levels needs a LinearSDE, got {first.sde!r}")
            low, high = ends_of("interval", interval)
            if not 0 <= low < high:
                raise ValueError(f"interval must be (low, high) with 0 <= low < high, got {interval}")
        self.parts, self.scale, self.interval, self._neutral = tuple(parts), scale, interval, neutral

    @property
    def parameter(self) -> Tensor | None:
        """The first floating-point parameter of the first score's network."""
        return self.parts[0].parameter

    @property
    def dtype(self) -> torch.dtype | None:
        """What the first score casts x to."""
        return self.parts[0].dtype

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row a sample: those that any part knows."""
        return frozenset().union(*(part.conditions for part in self.parts))

    def cast_to(self, dtype: torch.dtype) -> Score:
        """The same with x cast to `dtype` for each network's call."""
        return self._of([part.cast_to(dtype) for part in self.parts])

    def map_net(self, change: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Score:
        """The same with each network replaced by what `change` makes of it."""
        return self._of([part.map_net(change) for part in self.parts])

    def _of(self, parts: Sequence[Score]) -> Score:
        other = copy.copy(self)
        other.parts, other.net = tuple(parts), parts[0].net
        return other

    def _scale_at(self, t: Tensor) -> float | Tensor:
        """The scale at t (B,): one number, or (B,) where some of the samples are in the interval and some are not."""
        if self.interval is None:
            return self.scale
        level = noise_level(self.sde)(t)  # type: ignore[arg-type]
        low, high = (end * (1 + ROUNDING) for end in self.interval)  # levels come from times in single precision
        inside = (level > low) & (level <= high)
        guided = int(inside.sum())  # which networks are called hangs on it: on a GPU the one wait of a call
        if 0 < guided < len(t):
            return torch.where(inside, torch.full_like(level, self.scale), self._neutral)
        return self.scale if guided else self._neutral

    def __repr__(self) -> str:
        options = f"scale={self.scale:g}" + ("" if self.interval is None else f", interval={self.interval}")
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))}, {options})"


class Extrapolation(GuidedScore):
    r"""$D = D_r + w\,(D_m - D_r)$: away from a reference, beyond the main prediction for w > 1.

    Only what is needed is called: the main prediction alone at w = 1 and out of the interval, the reference alone at
    w = 0.
    """

    def __init__(self, parts: Sequence[Score], scale: float, interval: Interval | None) -> None:
        super().__init__(parts, scale, interval, neutral=1.0)
        self.branches = (self.scale != 0) * parts[0].branches + (self.scale != 1) * parts[-1].branches

    @property
    def is_density(self) -> bool:
        """Whether it is the score of the process' marginals: for plain conditional or unconditional sampling."""
        if self.scale == 0 and self.interval is None:
            return self.parts[-1].is_density
        return self.scale == 1 and self.parts[0].is_density

    def _wanted(self, t: Tensor) -> tuple[float | Tensor, bool, bool]:
        """The scale at t (B,), and whether it takes the main and the reference prediction."""
        w = self._scale_at(t)
        mixed = isinstance(w, Tensor)
        return w, bool(mixed or w != 0), bool(mixed or w != 1)

    def rows(self, t: Tensor) -> int:
        """Samples that the networks see in a call at t (B,)."""
        _, main, reference = self._wanted(t)
        return main * self.parts[0].rows(t) + reference * self.parts[-1].rows(t)

    @abstractmethod
    def _predictions(self, x: Tensor, t: Tensor, kwargs: dict[str, Any], main: bool, reference: bool) -> list[Tensor]:
        """What is asked for, of the main and the reference prediction, in this order."""

    def output(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The guided prediction at x (B, *) and t (B,)."""
        w, *asked = self._wanted(t)
        wanted = self._predictions(x, t, kwargs, *asked)
        if len(wanted) == 1:
            return wanted[0]
        main, reference = (value.to(x.dtype) for value in wanted)
        return torch.lerp(reference, main, expand(w, x) if isinstance(w, Tensor) else w)


class ClassifierFree(Extrapolation):
    r"""Classifier-free guidance: $D = D_\emptyset + w\,(D_c - D_\emptyset)$.

    Both branches go through the network as one batch of 2B rows. The condition c is what the call brings
    (`model_kwargs={"y": labels}`); the null branch gets the same arguments with those of `null` in their place. Other
    arguments of one row a sample are marked, `sg.PerSample(mask)`; one that has as many rows as there are samples and
    is the same for all is `sg.Shared(table)`.

    Nested conditions are named as they are nested: `null={"added_cond_kwargs": {"text_embeds": 0.0}}`; one number
    stands for all tensors of a sequence. Where None stands for no condition, the branches are two calls of B rows.

    A negative condition is a null condition that means something: `null={"y": unwanted}`.

    Args:
        score: a score whose network takes a condition.
        scale: w; 1 is plain conditional sampling and 0 unconditional, B rows each.
        null: what stands for no condition, by the name of the argument, nested or not: a number, a tensor that expands
            to the condition's shape, or None. `{"y": net.NULL_LABEL}` if not given and the network has that attribute.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance; plain
            conditional sampling elsewhere. All if not given. The guided score then jumps in time, which multistep
            solvers of high order carry on.

    Raises:
        ValueError: for a network without a null label when `null` is not given or empty; at a call, if a condition of
            `null` is missing, no tensor, not of one row a sample, or of a shape that the null condition does not
            expand to, or if nothing says whether another argument goes with the samples.
        TypeError: for null conditions that are none.

    Source: Ho & Salimans, 2022, arXiv:2207.12598; Kynkaanniemi et al., 2024, arXiv:2404.07724 (interval); Liu et al.,
    2022, arXiv:2206.01714 (negative conditions).

    Example:
        >>> import sgm_sde as sg
        >>> net = lambda x, sigma, y: 0 * x + 0.1 * y[:, None]  # data at one point for each label
        >>> score = ClassifierFree(sg.from_denoiser(net, sg.EDMSDE()), scale=3.0, null={"y": 10})
        >>> y = torch.tensor([3, 7])
        >>> res = sg.sample(score, sg.EDMSDE(), (2, 1), nfe=4, seed=0, model_kwargs={"y": y})
        >>> res.nfe, res.rows
        (4, 16)
    """

    def __init__(
        self,
        score: Score,
        scale: float,
        null: Mapping[str, Any] | None = None,
        *,
        interval: Interval | None = None,
    ) -> None:
        super().__init__([score], scale, interval)
        if null is None and (label := getattr(score.net, "NULL_LABEL", None)) is not None:
            null = {"y": label}
        if null is not None and not isinstance(null, Mapping):
            raise TypeError(f"null must map names of conditions to what stands for none, got {described(null)}")
        self._named = named_in(null or {})
        if not self._named:
            raise ValueError(
                f"{score!r} declares no null label (NULL_LABEL): give what stands for no condition, such as "
                f"null={{'y': 10}}, got null={null}; a network that was trained without one takes Classifier guidance"
            )
        self.null = dict(null or {})
        self._absent = any(leaf is None for _, leaf in each_leaf(self.null))

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row a sample: those of `null`, and those that the score knows."""
        return super().conditions | self._named

    def _predictions(self, x: Tensor, t: Tensor, kwargs: dict[str, Any], main: bool, reference: bool) -> list[Tensor]:
        score, batch = self.parts[0], len(x)
        without = nullified(kwargs, self.null, batch)
        if not (main and reference):
            return [score.output(x, t, **(kwargs if main else without))]
        if self._absent:  # no row of a batch can be None
            return [score.output(x, t, **kwargs), score.output(x, t, **without)]

        null = dict(each_leaf(bare(without)))
        both = map_rows(lambda path, rows: torch.cat([rows, null[path]]), resolve(kwargs, batch, self.conditions))
        return list(score.output(torch.cat([x, x]), torch.cat([t, t]), **both).chunk(2))


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

    Example:
        >>> import sgm_sde as sg
        >>> sde = sg.EDMSDE()
        >>> good, weak = (sg.oracles.Gaussian(torch.zeros(1), v).score(sde) for v in (1.0, 2.0))
        >>> Auto(good, weak, scale=2.0).denoised(torch.ones(1, 1), 1.0)
        tensor([[0.3333]])
    """

    def __init__(self, score: Score, weak: Score, scale: float, *, interval: Interval | None = None) -> None:
        super().__init__([score, weak], scale, interval)

    def _predictions(self, x: Tensor, t: Tensor, kwargs: dict[str, Any], main: bool, reference: bool) -> list[Tensor]:
        wanted = [part for part, asked in zip(self.parts, (main, reference), strict=True) if asked]
        return [part.predict(self.prediction, x, t, **kwargs) for part in wanted]


class Classifier(GuidedScore):
    r"""Classifier guidance: $s(x, t) + w\,\nabla_x \log p(y \mid x, t)$.

    With the exact posterior and w = 1 it is the score of the data given y, and likelihoods of it are conditional ones.
    The gradient is autograd's, whether or not gradients are on outside, and leaves no trace on parameters.

    Args:
        score: the score.
        log_likelihood: `log_likelihood(x, t, **condition)` with x (B, *), t (B,): log p(y | x, t) of each sample (B,);
            see `from_classifier`.
        scale: w.
        condition: names of the arguments of a call that go to the log-likelihood.
        shared: whether they go to the network, too, as they do for a class-conditional one.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance.

    Raises:
        ValueError: for options out of range; at a call, for a condition that is missing, and a log-likelihood that has
            another shape than (B,) or does not depend on x by autograd.

    Source: Dhariwal & Nichol, 2021, arXiv:2105.05233; Song et al., 2021, arXiv:2011.13456, section 5.

    Example:
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
        scale: float = 1.0,
        *,
        condition: Sequence[str] = ("y",),
        shared: bool = False,
        interval: Interval | None = None,
    ) -> None:
        super().__init__([score], scale, interval, neutral=0.0)
        if isinstance(condition, str):
            raise TypeError(f"condition must be a sequence of names, such as ({condition!r},), got {condition!r}")
        if not isinstance(condition, Sequence) or not all(isinstance(name, str) for name in condition):
            raise TypeError(f"condition must be a sequence of names, got {described(condition)}")
        arguments = f"of (x, t, {', '.join(condition)})"
        require_function("the log-likelihood", log_likelihood, arguments, 2, named=condition)
        self.log_likelihood, self.condition = log_likelihood, tuple(condition)
        self.shared = flag("shared", shared)
        self.branches = score.branches

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row a sample: the classifier's, and those that the score knows."""
        return super().conditions | {(name,) for name in self.condition}

    @property
    def is_density(self) -> bool:
        """Whether it is the score of the process' marginals: at scale 1, that of the data given the condition."""
        everywhere = self.scale == 1 and self.interval is None
        return (everywhere or self.scale == 0) and self.parts[0].is_density

    def rows(self, t: Tensor) -> int:
        """Samples that the score's network sees in a call at t (B,); those of the classifier are not counted."""
        return self.parts[0].rows(t)

    def output(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The guided prediction at x (B, *) and t (B,)."""
        given = {name: bare(_condition(name, kwargs)) for name in self.condition}
        own = kwargs if self.shared else {name: value for name, value in kwargs.items() if name not in given}
        out = self.parts[0].output(x, t, **own)
        w = self._scale_at(t)
        if not isinstance(w, Tensor) and w == 0:
            return out
        # dp/ds of the prediction p that the network makes, at fixed x
        _, slope = self._conversion("score", self.prediction, t, x)
        return out.to(x.dtype) + expand(slope * w, x) * self._gradient(x, t, given)

    @outside_inference_mode
    def _gradient(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Tensor:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if keep and x.requires_grad else x.detach().requires_grad_()
            log_p = self.log_likelihood(leaf, t, **condition)
            require_one_a_sample("the log-likelihood", log_p, len(x))
            gradient = None
            if log_p.requires_grad:
                (gradient,) = torch.autograd.grad(log_p.sum(), leaf, create_graph=keep, allow_unused=True)
        if gradient is None:
            raise ValueError(f"the log-likelihood {self.log_likelihood!r} does not depend on x by autograd")
        return gradient


def _condition(name: str, kwargs: Mapping[str, Any]) -> Any:
    if name not in kwargs:
        raise ValueError(
            f"guidance asks for the condition {name!r}: pass model_kwargs={{{name!r}: ...}}, got {sorted(kwargs)}"
        )
    return kwargs[name]


def from_classifier(
    net: Callable[..., Tensor],
    *,
    time_label: TimeLabel | None = None,
    input_scale: Callable[[Tensor], Tensor] | None = None,
) -> Callable[..., Tensor]:
    r"""The log-likelihood $\log p(y \mid x, t)$ of a classifier of noisy data.

    Args:
        net: `net(x, label)`, logits (B, K).
        time_label: from t (B,) to what the classifier expects; t itself if not given.
        input_scale: from t (B,) to the factor on x that it expects.

    Raises:
        ValueError: at a call, for labels `y` that are not B whole numbers from 0 to K - 1.

    Example:
        >>> log_p = from_classifier(lambda x, t: torch.cat([-x, x], 1))
        >>> log_p(torch.zeros(1, 1), torch.ones(1), y=torch.tensor([1]))
        tensor([-0.6931])
    """

    require_function("the classifier", net, "of (x, label)")
    require_function("time_label", time_label, "of t", 1, optional=True)
    require_function("input_scale", input_scale, "of t", 1, optional=True)

    def log_likelihood(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        label = t if time_label is None else time_label(t)
        logits = net(x if input_scale is None else expand(input_scale(t), x) * x, label)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(f"a classifier returns logits ({len(x)}, K), got {tuple(logits.shape)}")
        whole = isinstance(y, Tensor) and not y.is_floating_point()
        if not whole or y.shape != (len(x),):
            raise ValueError(f"labels must be ({len(x)},) whole numbers, got {y!r}")
        if y.device.type == "cpu" and bool(((y < 0) | (y >= logits.shape[1])).any()):
            raise ValueError(f"labels must lie in [0, {logits.shape[1]}), got {y.tolist()}")
        return logits.log_softmax(1).gather(1, y.long()[:, None])[:, 0]

    return log_likelihood
