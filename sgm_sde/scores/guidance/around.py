"""Scores around another, with its guidance rescaled or projected, its layers weakened, its estimates bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from sgm_sde._utils.checks import FAR, described, number
from sgm_sde._utils.shapes import expand, flat, in_range
from sgm_sde._utils.tree import Arguments
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.scores.conditions import Numbers
from sgm_sde.scores.guidance.base import Extrapolation, GuidedScore, Interval, Scale, extrapolated
from sgm_sde.scores.score import Score


class Around(GuidedScore):
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


class AroundGuidance(Around):
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


class Rescaled(AroundGuidance):
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
        >>> guided = sg.guidance.ClassifierFree(sg.from_denoiser(net, sg.EDMSDE()), scale=5.0, null={"y": 0})
        >>> Rescaled(guided, 1.0).output(torch.tensor([[1.0, 3.0]]), torch.ones(1), y=torch.ones(1)).std()
        tensor(0.7778)
    """

    def __init__(self, guided: Extrapolation, strength: float = 0.7) -> None:
        super().__init__(guided)
        self.strength = number("strength", strength, least=0, most=1)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The rescaled prediction at x (B, *) and t (B,)."""
        main, reference, w = self._both(x, t, kwargs)
        out = extrapolated(main, reference, w, x)
        if x.numel() <= len(x):  # one number has no standard deviation
            return out
        std_c = flat(main).std(1)
        std = flat(out).std(1)
        factor = torch.where(std > 0, std_c / std, 1.0)  # a constant prediction is left as it is
        return expand(1 + self.strength * (factor - 1), x) * out


class ZeroStar(AroundGuidance):
    r"""Guidance away from the multiple of the reference that is nearest to the conditional prediction: CFG-Zero*.

    $$ v = s\,v_\emptyset + w\,(v_c - s\,v_\emptyset), \qquad
       s = \frac{\langle v_c, v_\emptyset\rangle}{\|v_\emptyset\|^2} $$

    for each sample, in the network's own prediction, as published for flow matching. The paper's first steps, in which
    the state is left as it is, are no part of a score: they are a later start from the same noise.

    Args:
        guided: `ClassifierFree` or `Auto` guidance.

    Raises:
        TypeError: for another score.

    Source: Fan et al., 2025, arXiv:2503.18886.

    Examples:
        >>> import sgm_sde as sg
        >>> net = lambda x, t, y: torch.stack([1 + y, 1 - y], 1) + 0 * x
        >>> sde = sg.RectifiedFlowSDE()
        >>> guided = sg.guidance.ClassifierFree(sg.from_flow(net, sde), scale=3.0, null={"y": 0.0})
        >>> ZeroStar(guided).output(torch.zeros(1, 2), torch.ones(1), y=torch.ones(1))
        tensor([[ 4., -2.]])
    """

    def __init__(self, guided: Extrapolation) -> None:
        super().__init__(guided)

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The guided prediction at x (B, *) and t (B,)."""
        main, reference, w = self._both(x, t, kwargs)
        v_c = flat(main).double()
        v_0 = flat(reference).double()
        square = v_0.square().sum(1)
        s = torch.where(square > 0, (v_c * v_0).sum(1) / square, 0.0)
        return extrapolated(main, expand(s, x).to(reference.dtype) * reference, w, x)


class APG(AroundGuidance):
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
        >>> guided = sg.guidance.ClassifierFree(sg.from_denoiser(net, sg.EDMSDE()), scale=3.0, null={"y": 0.0})
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
            length = flat(delta).double().norm(dim=1).clamp(min=self.norm)
            delta = expand((self.norm / length).to(delta.dtype), x) * delta

        unit = torch.nn.functional.normalize(flat(D_c).double(), dim=1)
        along = (flat(delta).double() * unit).sum(1, keepdim=True) * unit
        parallel = along.reshape(x.shape).to(x.dtype)
        weight = expand(w - 1, x) if isinstance(w, Tensor) else w - 1
        return self._back(D_c + weight * (delta - parallel + self.eta * parallel), x, t)


class Weakened(Around):
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
            out = extrapolated(main, reference, w, x)
        else:
            out = main = score.output(x, t, **kwargs).to(x.dtype)
        away = main - weak.predict(self.prediction, x, t, **kwargs)
        return out + (expand(s, x) if isinstance(s, Tensor) else s) * away


class Thresholded(Around):
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
