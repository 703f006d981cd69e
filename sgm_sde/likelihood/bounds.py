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

import torch
from torch import Tensor, nn

from sgm_sde._utils.checks import FAR, number, one_of, range_of
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
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import as_density

TIMES = ("log-snr", "time")
VARIANCES = ("fixed-small", "fixed-large", "learned")


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
    eps = check_process(sde, eps)
    one_of("times", times, TIMES)
    n_times, n_decodings = require_count("n_times", n_times), require_count("n_decodings", n_decodings)
    decoder = decoder_of(x, n_levels, data_range, dtype)
    draws = _Draws(decoder, resolve_seeds(seed, generator, len(x)), data_std if control_variate else None)
    model = BoundScore(score, sde, (eps, sde.T), model_kwargs)
    start, end = sde.nodes([sde.T, eps])
    errors, terms = [], []
    with torch.set_grad_enabled(enable_grad):
        for i in range(n_times):
            u = draws.uniform()
            u = (i + u) / n_times if stratified else u
            if times == "log-snr":
                t = sde.time(2 * (start.lam + u * (end.lam - start.lam))).clamp(eps, sde.T)
                weight = torch.full_like(u, end.lam - start.lam)
            else:
                t = sde.T + u * (eps - sde.T)
                weight = (sde.d_sigma(t) / sde.sigma(t) - sde.rate(t)) * (sde.T - eps)  # -dlambda/dt of the whole
            alpha, sigma = (c.to(decoder.x) for c in (sde.alpha(t), sde.sigma(t)))
            noise, x_t = draws.noised(expand(alpha, decoder.x), expand(sigma, decoder.x))
            error = flat((noise - model.predict_at("noise", x_t, t)).square()).sum(1)
            errors.append(error.detach())
            terms.append(weight.to(error) / n_times * (error - draws.excess(noise, alpha, sigma)))
        stacked = torch.stack(terms)
        reconstruction, variance = draws.decode(model, end, lambda: end.sigma / end.alpha, n_decodings)
        prior = _divergence_from_prior(start, decoder.x, sde.prior_std)
        value = -(prior + stacked.sum(0) + reconstruction)
    check_finite(value, "the bound")
    if not stratified:
        variance = variance + _variance_of_mean(n_times * stacked.T)
    elif n_times < 3:
        variance = torch.full_like(variance, math.nan)
    else:
        variance = variance + probe_error(stacked.detach()[:, :, None], torch.ones(n_times))[0].square()
    kind = "stratified" if stratified else "independent"
    protocol = (
        f"continuous-time variational bound under the prior N(0, {sde.prior_std:.4g}^2) with {n_times} {kind} times, "
        f"uniform in {times}, and {draws.decoder_words} at eps = {eps:g}"
    )
    return draws.result(value, variance, prior, stacked, reconstruction, errors, model.nfe, protocol)


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

    def forward(self, x: Tensor, label: Tensor, **kwargs: object) -> Tensor:
        """The prediction (B, C, *); v is kept in `fraction` until the next call."""
        out = self.net(x, label, **kwargs)
        if out.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(f"a learned variance takes twice the channels of {tuple(x.shape)}, got {tuple(out.shape)}")
        prediction, raw = out.chunk(2, 1)
        self.fraction = (raw + 1) / 2
        return prediction


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
        raise TypeError(f"DDPM's bound needs a DiscreteVPSDE, got {sde!r}: elbo is for any linear process")
    one_of("variance", variance, VARIANCES)
    repeats, n_decodings = require_count("repeats", repeats), require_count("n_decodings", n_decodings)
    clip = None if clip is None else range_of("clip", clip)
    learned = score.net if isinstance(score.net, LearnedVariance) else None
    if variance == "learned" and learned is None:
        raise TypeError(f"variance='learned' needs a network wrapped in LearnedVariance, got {score!r}")
    decoder = decoder_of(x, n_levels, data_range, dtype)
    plain = variance != "learned" and clip is None
    draws = _Draws(decoder, resolve_seeds(seed, generator, len(x)), data_std if control_variate and plain else None)
    betas, nodes = sde.betas, sde.nodes(sde.times)
    model = BoundScore(score, sde, (nodes[0].t, sde.T), model_kwargs)
    small = [b * (s.sigma / t.sigma) ** 2 for b, s, t in zip(betas[1:], nodes[:-1], nodes[1:], strict=True)]
    small = [small[0], *small]

    def step_variance(i: int) -> Tensor | float:
        """Of the step to node i - 1, a number or (B, *)."""
        if variance == "learned":
            assert learned is not None and learned.fraction is not None
            return small[i] * (betas[i] / small[i]) ** learned.fraction.to(decoder.x.dtype)
        return betas[i] if variance == "fixed-large" and i else small[i]

    def step(i: int) -> tuple[Tensor, Tensor]:
        """A draw of the term of the step to node i - 1, and of the squared error of its noise, (B,)."""
        s, t = nodes[i - 1], nodes[i]
        noise, x_t = draws.noised(t.alpha, t.sigma)
        D = model.predict("data", x_t, t.t)
        error = flat((D - decoder.x).square()).sum(1) * (t.alpha / t.sigma) ** 2
        v, per_data = step_variance(i), s.alpha * betas[i] / t.sigma**2
        off = per_data * (decoder.x - (D if clip is None else D.clamp(*clip)))
        log_ratio = (v / small[i]).log() if isinstance(v, Tensor) else math.log(v / small[i])
        term = flat(0.5 * (log_ratio + small[i] / v - 1) + off.square() / (2 * v)).sum(1)
        if plain:  # x - D is -sigma/alpha times the error of the noise
            term = term - (per_data * t.sigma / t.alpha) ** 2 / (2 * v) * draws.excess(noise, t.alpha, t.sigma)
        return term, error.detach()

    with torch.set_grad_enabled(enable_grad):
        steps = [[step(i) for _ in range(repeats)] for i in range(len(nodes) - 1, 0, -1)]
        all_terms = torch.stack([torch.stack([term for term, _ in drawn], 1) for drawn in steps])  # (steps, B, repeats)
        stacked = all_terms.mean(2)
        reconstruction, spread = draws.decode(model, nodes[0], lambda: step_variance(0) ** 0.5, n_decodings, clip)
        prior = _divergence_from_prior(nodes[-1], decoder.x, 1.0)
        value = -(prior + stacked.sum(0) + reconstruction)
    check_finite(value, "the bound")
    spread = spread + _variance_of_mean(all_terms).sum(0)
    errors = [error for drawn in steps for _, error in drawn]
    how = {"learned": "learned variance", "fixed-small": "variance beta-tilde", "fixed-large": "variance beta"}
    clipped = "" if clip is None else f", data clipped to ({clip[0]:g}, {clip[1]:g})"
    protocol = (
        f"DDPM's variational bound over {len(nodes)} steps with {how[variance]} under the prior N(0, 1){clipped}, and "
        f"{draws.decoder_words}"
    )
    return draws.result(value, spread, prior, stacked, reconstruction, errors, model.nfe, protocol)


def _divergence_from_prior(node: LinearNode, x: Tensor, std: float) -> Tensor:
    """KL(N(alpha x, sigma^2) || N(0, std^2)), (B,)."""
    d, ratio = x[0].numel(), (node.sigma / std) ** 2
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
        self.decoder, self.x, self.s = decoder, decoder.x, data_std
        self.shape, self.d = tuple(decoder.x.shape), decoder.x[0].numel()
        self.noises, self.decodings = NoiseStream(seeds, "probe"), NoiseStream(seeds, "dequantisation")
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
            value = -self.decoder(D if clip is None else D.clamp(*clip), s)
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
        simple = torch.stack(tuple(errors)).mean(0) / self.d
        return BoundResult(
            value, variance.sqrt(), prior, terms.sum(0), reconstruction, terms, simple, nfe, self.d, protocol,
            not self.points,
        )  # fmt: skip
