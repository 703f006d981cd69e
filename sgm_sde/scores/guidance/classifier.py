"""Guidance by the gradient of a classifier or of any other function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm_sde._utils.autograd import outside_inference_mode
from sgm_sde._utils.checks import check_per_sample_scalar, described, flag, require_function
from sgm_sde._utils.inputs import network_inputs
from sgm_sde._utils.shapes import expand
from sgm_sde._utils.tree import Arguments, Conditions, Path
from sgm_sde.scores.calls import tell_call
from sgm_sde.scores.conditions import ROWS, Numbers, bare
from sgm_sde.scores.guidance.base import GuidedScore, Interval, Scale
from sgm_sde.scores.score import Network, Score, require_score
from sgm_sde.scores.time_labels import TimeLabel, require_label


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
