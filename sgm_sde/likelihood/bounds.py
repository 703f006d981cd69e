r"""Variational bounds on the likelihood of the reverse process, in continuous time and for DDPM's steps.

Both are the Kullback-Leibler divergence of the forward path from the reverse one, estimated by the squared error of
the noise prediction. Most of that estimate's variance is that of $|\epsilon|^2$, which a control variate removes.
Gaussian data of standard deviation s have, with $g = \alpha^2 s^2/(\alpha^2 s^2 + \sigma^2)$, the error $g\epsilon$ and
a part that does not depend on $\epsilon$. So

$$ |\epsilon - \hat\epsilon|^2 - g^2\,(|\epsilon|^2 - d) $$

has the same mean, and a small fraction of the variance where the noise is small beside the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
from torch import Tensor, nn

from sgm_sde._utils.autograd import gradients
from sgm_sde._utils.checks import FAR, described, number, one_of, range_of, table_size
from sgm_sde._utils.elsewhere import OF_BOUNDS, named_elsewhere
from sgm_sde._utils.shapes import expand, flat
from sgm_sde._utils.tree import Conditions
from sgm_sde.engine.noise import Generators, NoiseStream, Seeds, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.likelihood.checks import check_finite, check_process, require_count
from sgm_sde.likelihood.decoders import Decoder, GaussianDecoder, decoder_of
from sgm_sde.likelihood.errors import probe_error
from sgm_sde.likelihood.results import BoundResult
from sgm_sde.processes.discrete import DiscreteVPSDE
from sgm_sde.processes.linear import LinearNode, LinearSDE
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score, as_density, require_score

TIMES = ("log-snr", "time")
VARIANCES = ("fixed-small", "fixed-large", "learned")


@named_elsewhere(OF_BOUNDS)
def elbo(
    score_fn: ScoreFn,
    sde: LinearSDE,
    x: Tensor,
    *,
    n_levels: int | None = None,
    data_range: tuple[float, float] | None = None,
    eps: float | None = None,
    n_times: int = 64,
    times: str = "log-snr",
    stratified: bool = True,
    n_decodings: int = 4,
    control_variate: bool = True,
    data_std: float = 0.5,
    seed: Seeds = None,
    generator: Generators = None,
    dtype: torch.dtype | None = None,
    model_kwargs: Conditions | None = None,
    enable_grad: bool = False,
) -> BoundResult:
    r"""Variational lower bound on the log-likelihood of data under the reverse SDE, in nats per sample.

    With $x_t = \alpha x + \sigma\epsilon$ and $\lambda = \log(\alpha/\sigma)$,

    $$ -\log p(x) \le \underbrace{KL\big(q(x_T|x)\,\|\,N(0, \sigma_T^2)\big)}_{\text{prior}}
       + \underbrace{\int_{\lambda_T}^{\lambda_\epsilon} E|\epsilon - \hat\epsilon|^2\,d\lambda}_{\text{diffusion}}
       + \underbrace{E[-\log p(x|x_\epsilon)]}_{\text{reconstruction}} $$

    In time the integrand is the squared error of the score with weight $g^2/2$, the likelihood-weighted loss of score
    matching; uniform draws of log-SNR are importance sampling of it. The decoder $p(x|x_\epsilon)$ is the
    Gaussian of the denoiser's mean and the standard deviation $\sigma/\alpha$ at eps; of integers its mass in
    their bins.

    With an exact score the diffusion term is exact. The remaining gap is that of the prior, $KL(q_T\|N(0, \sigma_T^2))$
    along the reverse path, and that of the decoder, which vanishes with eps for a smooth density. The bound is that of
    the SDE: the flow of the same score has another likelihood unless the score is exact.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        x: data (B, *), floating for a bound on the density, or integers in [0, n_levels) for one on their
            probability.
        n_levels: number of levels, for integers.
        data_range: (lo, hi), the outer edges of the outermost bins as the network knows them, for integers.
        eps: where the decoder takes over; `sde.likelihood_eps` if not given.
        n_times: times for each sample, one network call each on the batch.
        times: uniform in `"log-snr"`, or in `"time"`, where the weights near eps are so large and rare that `stderr` of
            few times is far too small.
        stratified: one time in each of `n_times` parts of even probability, or all independent.
        n_decodings: draws for the reconstruction, one network call each.
        control_variate: take out the noise that Gaussian data would have; the mean stays.
        data_std: their standard deviation; a matter of variance only.
        seed: of times and noises; one int for the batch, or one per sample.
        generator: instead of `seed`.
        dtype: of the states; that of x, or torch's default for integers.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph.

    Raises:
        ValueError: for options out of range, and x or scores that are not finite.
        TypeError: for x that is no tensor of numbers, or a process without alpha and sigma.

    Source: Song et al., 2021, arXiv:2101.09258; Kingma et al., 2021, arXiv:2107.00630.

    Examples:
        >>> import sgm_sde as sg
        >>> sde, oracle = sg.VPSDE(), sg.oracles.Gaussian(torch.zeros(3), 0.25)
        >>> x = oracle.sample(4, seed=0)
        >>> bound = elbo(oracle.score(sde), sde, x, seed=0)
        >>> bool(((bound.value - oracle.log_prob(x)).abs() < 5 * bound.stderr + 1e-2).all()), bound.nfe
        (True, 68)
    """
    score = as_density(score_fn, sde)
    require_score(score, "elbo")
    eps = check_process(sde, eps)
    one_of("times", times, TIMES)
    n_times = table_size("n_times", n_times, kind=Integral)
    n_decodings = require_count("n_decodings", n_decodings)
    decoder = decoder_of(x, n_levels, data_range, dtype)
    control = data_std if control_variate else None
    draws = _Draws(decoder, resolve_seeds(seed, generator, len(x)), control)
    model = BoundScore(score, sde, (eps, sde.T), model_kwargs)
    require_rows(model.kwargs, len(x))
    start, end = sde.nodes([sde.T, eps])

    errors = []
    terms = []
    with gradients(enable_grad):
        for i in range(n_times):
            u = draws.uniform()
            if stratified:
                u = (i + u) / n_times
            t, weight = _time_with_weight(sde, u, times, start, end)
            error, without_noise = draws.squared_error(model, sde, t)
            errors.append(error.detach())
            terms.append(weight.to(error) / n_times * without_noise)

        stacked = torch.stack(terms)
        reconstruction, variance = draws.decode(model, end, lambda: end.sigma / end.alpha, n_decodings)
        prior = _divergence_from_prior(start, decoder.x, sde.prior_std)
        value = -(prior + stacked.sum(0) + reconstruction)
    check_finite(value, "the bound")

    kind = "stratified" if stratified else "independent"
    protocol = (
        f"continuous-time variational bound under the prior N(0, {sde.prior_std:.4g}^2) with {n_times} {kind} times, "
        f"uniform in {times}, and {draws.decoder_words} at eps = {eps:g}"
    )
    variance = variance + _variance_over_times(stacked, stratified)
    return draws.result(value, variance, prior, stacked, reconstruction, errors, model.nfe, protocol)


def _time_with_weight(
    sde: LinearSDE, u: Tensor, times: str, start: LinearNode, end: LinearNode
) -> tuple[Tensor, Tensor]:
    """Times (B,) at fractions u from the start to the end, and the weights of the squared error there."""
    if times == "log-snr":
        length = end.lam - start.lam
        t = sde.time(2 * (start.lam + u * length)).clamp(end.t, sde.T)
        return t, torch.full_like(u, length)

    length = end.t - sde.T
    t = sde.T + u * length
    slope = sde.d_sigma(t) / sde.sigma(t) - sde.rate(t)  # -dlambda/dt
    return t, slope * -length


def _variance_over_times(terms: Tensor, stratified: bool) -> Tensor:
    """Variance of the sum of terms (times, B) of drawn times, NaN where too few were drawn to tell."""
    n = len(terms)
    if not stratified:
        return _variance_of_mean(n * terms.T)
    if n < 3:
        return torch.full_like(terms[0].detach(), math.nan)
    stderr, _ = probe_error(terms.detach()[:, :, None], torch.ones(n))
    return stderr.square()


class LearnedVariance(nn.Module):
    r"""A network of twice the channels as a prediction with a variance, as improved DDPMs are.

    Its first half is the prediction, the second, o in [-1, 1], lies between the two fixed variances of a reverse step:
    $\log\Sigma = v\log\beta + (1 - v)\log\tilde\beta$ with $v = (o + 1)/2$. Wrap the network in it, and the result in
    `from_noise` or its siblings.

    Args:
        net: `net(x, label, **kwargs)` that returns (B, 2 C, *) for x (B, C, *).

    Raises:
        ValueError: at a call, for an output of another shape.

    Source: Nichol & Dhariwal, 2021, arXiv:2102.09672.

    Examples:
        >>> net = LearnedVariance(lambda x, i: torch.cat([0.1 * x, 0 * x], 1))
        >>> net(torch.ones(1, 2), torch.zeros(1)), net.fraction
        (tensor([[0.1000, 0.1000]]), tensor([[0.5000, 0.5000]]))
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self.fraction: Tensor | None = None

    def forward(self, x: Tensor, label: Tensor, /, **kwargs: object) -> Tensor:
        """The prediction (B, C, *); v is kept in `fraction` until the next call."""
        out = self.net(x, label, **kwargs)
        if out.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(f"a learned variance takes twice the channels of {tuple(x.shape)}, got {tuple(out.shape)}")
        prediction, raw = out.chunk(2, 1)
        self.fraction = (raw + 1) / 2
        return prediction


@named_elsewhere(OF_BOUNDS)
def ddpm_bound(
    score_fn: ScoreFn,
    sde: DiscreteVPSDE,
    x: Tensor,
    *,
    n_levels: int | None = None,
    data_range: tuple[float, float] | None = None,
    variance: str = "fixed-small",
    clip: tuple[float, float] | None = None,
    repeats: int = 1,
    n_decodings: int = 4,
    control_variate: bool = True,
    data_std: float = 0.5,
    seed: Seeds = None,
    generator: Generators = None,
    dtype: torch.dtype | None = None,
    model_kwargs: Conditions | None = None,
    enable_grad: bool = False,
) -> BoundResult:
    r"""DDPM's variational lower bound on the log-likelihood of data, in nats per sample.

    $$ -\log p(x_0) \le \underbrace{KL(q(x_N|x_0)\,\|\,N(0, I))}_{L_T}
       + \sum_{t=2}^N \underbrace{KL(q(x_{t-1}|x_t, x_0)\,\|\,p(x_{t-1}|x_t))}_{L_{t-1}}
       + \underbrace{E[-\log p(x_0|x_1)]}_{L_0} $$

    The mean of the reverse step p is that of the posterior with the denoised data in place of $x_0$; its variance is
    $\tilde\beta_t = \beta_t\,\sigma_{t-1}^2/\sigma_t^2$ (`"fixed-small"`), $\beta_t$ (`"fixed-large"`) or what the
    network says in between (`"learned"`, see `LearnedVariance`). $\tilde\beta_1$ is 0: the last step takes
    $\tilde\beta_2$ in its place, with both fixed variances, as DDPM's code does. All N steps are summed;
    `terms` holds them, and `simple` the unweighted loss of the same draws.

    With the exact score of a smooth density and $\beta_t$ at every step, the first one too, the gap vanishes as steps
    get finer. The fixed variances leave one in the first steps, where the posterior's variance is far from
    $\tilde\beta_t$, and in $L_0$.

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a ladder of noise levels.
        x: data (B, *), floating for a bound on the density, or integers in [0, n_levels) for one on their
            probability.
        n_levels: number of levels, for integers.
        data_range: (lo, hi), the outer edges of the outermost bins as the network knows them, for integers; those
            of `2 k / 255 - 1` are -1 - 1/255 and 1 + 1/255.
        variance: of the reverse steps.
        clip: range to which the denoised data are clipped, as DDPM's code does with (-1, 1); not at all if not given.
        repeats: draws for each step, one network call each; one leaves no standard error of a single sample.
        n_decodings: draws for L_0, one network call each.
        control_variate: take out the noise that Gaussian data would have; the mean stays. Not with a learned variance
            or clipping, of which it is not known.
        data_std: their standard deviation; a matter of variance only.
        seed: of the noises; one int for the batch, or one per sample.
        generator: instead of `seed`.
        dtype: of the states; that of x, or torch's default for integers.
        model_kwargs: passed on to the network.
        enable_grad: keep the graph.

    Raises:
        ValueError: for options out of range, and x or scores that are not finite.
        TypeError: for a process that is no `DiscreteVPSDE`, or a network without the variance asked for.

    Source: Ho et al., 2020, arXiv:2006.11239; Nichol & Dhariwal, 2021, arXiv:2102.09672.

    Examples:
        >>> import sgm_sde as sg
        >>> sde, oracle = sg.presets.ddpm(), sg.oracles.Gaussian(torch.zeros(2), 0.25)
        >>> images, levels = torch.tensor([[100, 120], [130, 140]]), {"n_levels": 256, "data_range": (-1, 1)}
        >>> bound = ddpm_bound(oracle.score(sde), sde, images, variance="fixed-large", seed=0, **levels)
        >>> bound.terms.shape, bound.nfe, bool((bound.bits_per_dim < 8).all())
        (torch.Size([999, 2]), 1003, True)
    """
    score = as_density(score_fn, sde)
    if not isinstance(sde, DiscreteVPSDE):
        raise TypeError(f"DDPM's bound needs a DiscreteVPSDE, got {described(sde)}: elbo is for any linear process")
    require_score(score, "DDPM's bound")
    one_of("variance", variance, VARIANCES)
    repeats = require_count("repeats", repeats)
    n_decodings = require_count("n_decodings", n_decodings)
    clip = None if clip is None else range_of("clip", clip)
    plain = variance != "learned" and clip is None
    decoder = decoder_of(x, n_levels, data_range, dtype)
    seeds = resolve_seeds(seed, generator, len(x))
    std_of_control = data_std if control_variate and plain else None
    draws = _Draws(decoder, seeds, std_of_control)
    first, *_ = sde.nodes(sde.times)
    span = (first.t, sde.T)
    model = BoundScore(score, sde, span, model_kwargs)
    require_rows(model.kwargs, len(x))
    learned = _learned(score, variance)
    ladder = _Ladder(sde, model, draws, variance, learned, clip)

    with gradients(enable_grad):
        drawn = ladder.terms(repeats)
        stacked = drawn.mean(2)
        std_of_last = partial(ladder.std, 0)
        reconstruction, spread = draws.decode(model, ladder.nodes[0], std_of_last, n_decodings, clip)
        prior = _divergence_from_prior(ladder.nodes[-1], decoder.x, 1.0)
        loss = prior + stacked.sum(0) + reconstruction
        value = -loss
    check_finite(value, "the bound")

    of_terms = _variance_of_mean(drawn)
    spread = spread + of_terms.sum(0)
    protocol = f"DDPM's variational bound over {ladder}, and {draws.decoder_words}"
    return draws.result(value, spread, prior, stacked, reconstruction, ladder.errors, model.nfe, protocol)


def _learned(score: Score, variance: str) -> LearnedVariance | None:
    """The network that has the variance of the steps, if it has one.

    Raises:
        TypeError: where one is asked for and there is none.
    """
    learned = score.net if isinstance(score.net, LearnedVariance) else None
    if variance == "learned" and learned is None:
        raise TypeError(f"variance='learned' needs a network wrapped in LearnedVariance, got {described(score)}")
    return learned


@dataclass(eq=False)
class _Ladder:
    """DDPM's reverse steps, and the terms of its bound.

    Args:
        sde: the ladder of noise levels.
        model: the network.
        draws: of noises.
        kind: of the steps' variance, as `ddpm_bound` takes it.
        learned: the network that has it, for `"learned"`.
        clip: range to which the denoised data are clipped, if any.

    Attributes:
        errors: squared errors of the noise so far, each (B,).
    """

    sde: DiscreteVPSDE
    model: BoundScore
    draws: _Draws
    kind: str
    learned: LearnedVariance | None
    clip: tuple[float, float] | None

    def __post_init__(self) -> None:
        self.betas = self.sde.betas
        self.nodes = self.sde.nodes(self.sde.times)
        self.errors: list[Tensor] = []

        # beta-tilde, of which the first would be 0.
        pairs = zip(self.betas[1:], self.nodes[:-1], self.nodes[1:], strict=True)
        small = [beta * (s.sigma / t.sigma) ** 2 for beta, s, t in pairs]
        self.small = [small[0], *small]

    def variance(self, i: int) -> Tensor | float:
        """Of the step to node i - 1, a number or (B, *)."""
        if self.kind == "learned":
            assert self.learned is not None and self.learned.fraction is not None
            v = self.learned.fraction.to(self.draws.x.dtype)
            return self.small[i] * (self.betas[i] / self.small[i]) ** v
        return self.betas[i] if self.kind == "fixed-large" and i else self.small[i]

    def std(self, i: int) -> Tensor | float:
        """Its root."""
        return self.variance(i) ** 0.5

    def terms(self, repeats: int) -> Tensor:
        """Draws of all terms, from the noise's end, (steps, B, repeats)."""
        steps = range(len(self.nodes) - 1, 0, -1)
        return torch.stack([torch.stack([self.term(i) for _ in range(repeats)], 1) for i in steps])

    def term(self, i: int) -> Tensor:
        """A draw of the term of the step to node i - 1, (B,)."""
        t = self.nodes[i]
        x = self.draws.x
        noise, x_t = self.draws.noised(t.alpha, t.sigma)
        D = self.model.predict("data", x_t, t.t)
        error = flat((D - x).square()).sum(1) * (t.alpha / t.sigma) ** 2
        self.errors.append(error.detach())

        # The two means differ by `per_data` times what the denoiser is off.
        v = self.variance(i)
        per_data = self.nodes[i - 1].alpha * self.betas[i] / t.sigma**2
        off = per_data * (x - _clipped(D, self.clip))
        of_mean = off.square() / (2 * v)
        term = flat(self._of_variance(i, v) + of_mean).sum(1)
        return term - self._excess(i, noise, per_data, v)

    def _excess(self, i: int, noise: Tensor, per_data: float, v: Tensor | float) -> Tensor | float:
        """The control variate of the term, where its mean is known to be 0."""
        if self.kind == "learned" or self.clip is not None:
            return 0.0
        t = self.nodes[i]
        per_noise = per_data * t.sigma / t.alpha  # x - D is -sigma/alpha times the error of the noise
        share = per_noise**2 / (2 * v)
        return share * self.draws.excess(noise, t.alpha, t.sigma)

    def _of_variance(self, i: int, v: Tensor | float) -> Tensor | float:
        """Cost of the step to node i - 1, entry by entry, for a variance other than beta-tilde."""
        ratio = v / self.small[i]
        log_ratio = ratio.log() if isinstance(ratio, Tensor) else math.log(ratio)
        return 0.5 * (log_ratio + self.small[i] / v - 1)

    def __str__(self) -> str:
        kinds = {"learned": "learned variance", "fixed-small": "variance beta-tilde", "fixed-large": "variance beta"}
        clipped = "" if self.clip is None else f", data clipped to ({self.clip[0]:g}, {self.clip[1]:g})"
        return f"{len(self.nodes)} steps with {kinds[self.kind]} under the prior N(0, 1){clipped}"


def _clipped(D: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """Denoised data in a range, if there is one."""
    return D if clip is None else D.clamp(*clip)


def _divergence_from_prior(node: LinearNode, x: Tensor, std: float) -> Tensor:
    """KL(N(alpha x, sigma^2) || N(0, std^2)), (B,)."""
    d = x[0].numel()
    ratio = (node.sigma / std) ** 2
    return 0.5 * (node.alpha / std) ** 2 * flat(x.square()).sum(1) + 0.5 * d * (ratio - 1 - math.log(ratio))


def _variance_of_mean(values: Tensor) -> Tensor:
    """Of the mean over draws of values (..., draws); NaN for one draw."""
    n = values.shape[-1]
    return values.detach().var(-1) / n if n > 1 else torch.full_like(values[..., 0].detach(), math.nan)


class _Draws:
    """Times and noises of a bound, each sample's from its own seed.

    Args:
        decoder: of the data.
        seeds: of each sample.
        data_std: of the Gaussian data whose noise is taken out; None for none.
    """

    def __init__(self, decoder: Decoder, seeds: Sequence[tuple[int, int]], data_std: float | None) -> None:
        if data_std is not None:
            data_std = number("data_std", data_std, least=1 / FAR, most=FAR)
        self.decoder = decoder
        self.x = decoder.x
        self.s = data_std
        self.shape = tuple(decoder.x.shape)
        self.d = decoder.x[0].numel()
        self.noises = NoiseStream(seeds, "probe")
        self.decodings = NoiseStream(seeds, "dequantisation")
        self.points = isinstance(decoder, GaussianDecoder)
        self.decoder_words = "a Gaussian decoder" if self.points else "a Gaussian decoder over the levels' bins"

    def uniform(self) -> Tensor:
        """Numbers (B,) in [0, 1], float64 on the host."""
        return torch.special.ndtr(self.noises.normal(self.shape[:1], torch.float64, "cpu"))

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Noise, and the data with it, (B, *)."""
        noise = self.noises.normal(self.shape, self.x.dtype, self.x.device)
        return noise, alpha * self.x + sigma * noise

    def excess(self, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor | float:
        """g^2 (|noise|^2 - d), of mean 0, (B,)."""
        if self.s is None:
            return 0.0
        g = 1 / (1 + (sigma / (alpha * self.s)) ** 2)
        return g**2 * (flat(noise.square()).sum(1) - self.d)

    def squared_error(self, model: BoundScore, sde: LinearSDE, t: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors of the noise at times (B,), (B,), and the same without what Gaussian data would leave."""
        alpha = sde.alpha(t).to(self.x)
        sigma = sde.sigma(t).to(self.x)
        noise, x_t = self.noised(expand(alpha, self.x), expand(sigma, self.x))
        error = flat((noise - model.predict_at("noise", x_t, t)).square()).sum(1)
        return error, error - self.excess(noise, alpha, sigma)

    def decode(
        self,
        model: BoundScore,
        node: LinearNode,
        std: Callable[[], Tensor | float],
        n: int,
        clip: tuple[float, float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """-log p(x | x_t) at the first node in the mean over n draws, and its variance (B,), NaN for one."""
        values = []
        for _ in range(n):
            z = self.decodings.normal(self.shape, self.x.dtype, self.x.device)
            D = model.predict("data", node.alpha * self.x + node.sigma * z, node.t)
            s = std()
            value = -self.decoder(_clipped(D, clip), s)
            if self.points and not isinstance(s, Tensor):
                value = value - 0.5 * (node.sigma / (node.alpha * s)) ** 2 * self.excess(z, node.alpha, node.sigma)
            values.append(value)
        stacked = torch.stack(values, 1)
        return stacked.mean(1), _variance_of_mean(stacked)

    def result(
        self,
        value: Tensor,
        variance: Tensor,
        prior: Tensor,
        terms: Tensor,
        reconstruction: Tensor,
        errors: Sequence[Tensor],
        nfe: int,
        protocol: str,
    ) -> BoundResult:
        """The bound with its parts."""
        return BoundResult(
            value=value,
            stderr=variance.sqrt(),
            prior=prior,
            diffusion=terms.sum(0),
            reconstruction=reconstruction,
            terms=terms,
            simple=torch.stack(tuple(errors)).mean(0) / self.d,
            nfe=nfe,
            dim=self.d,
            protocol=protocol,
            discrete=not self.points,
        )
