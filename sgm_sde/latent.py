r"""Score models in the latent space of an autoencoder: sampling, and the bound on log p(x) with its terms apart.

$$ \log p(x) \ge \underbrace{E_q[\log p(x \mid z)]}_{\text{reconstruction}}
   + \underbrace{H(q(z \mid x))}_{\text{entropy}}
   - \underbrace{E_q[-\log p(z)]}_{\text{cross-entropy}}, \qquad z \sim q(z \mid x) $$

Source: Vahdat, Kreis & Kautz, 2021, arXiv:2106.05931.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from sgm_sde._utils.checks import (
    check_integer,
    described,
    instance_of,
    keywords,
    known_arguments,
    number,
    one_of,
    require_function,
    sizes,
)
from sgm_sde._utils.elsewhere import OF_DENSITIES
from sgm_sde._utils.inputs import network_inputs
from sgm_sde._utils.shapes import dimension, expand, flat
from sgm_sde.engine.noise import Generators, NoiseStream, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.likelihood import BoundResult, LogProbResult, elbo, log_prob
from sgm_sde.likelihood.checks import check_points
from sgm_sde.likelihood.methods import Method
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.sampling.results import SampleResult
from sgm_sde.sampling.sampler import sample
from sgm_sde.scores.score import as_score
from sgm_sde.scores.time_labels import TimeLabel, require_label

METHODS = {"flow": "cross-entropy by the probability flow", "weighted": "cross-entropy by the weighted loss"}
N_TIMES = 64  # of the weighted loss
PriorDensity = Callable[..., LogProbResult | BoundResult]  # of latents z (B, *), called with a `seed`


@dataclass(frozen=True)
class LatentSamples:
    """Samples of a latent score model.

    Attributes:
        x: decoded samples (B, *): the decoder's mean.
        latent: the run that drew their latents.
        decoded: what the decoder returned, a distribution or a tensor.

    Examples:
        >>> import sgm_sde as sg
        >>> prior = sg.from_denoiser(lambda z, t: 0.5 * z, sg.VPSDE())
        >>> run = sg.sample(prior, prior.sde, (2, 3), nfe=3, seed=0)
        >>> LatentSamples(run.x.repeat(1, 2), run, run.x).x.shape
        torch.Size([2, 6])
    """

    x: Tensor
    latent: SampleResult
    decoded: Tensor | Distribution = field(repr=False)


@dataclass(frozen=True)
class LatentBound:
    """A lower bound on log p(x) with its terms, each in nats per sample, (B,).

    Attributes:
        value: reconstruction + entropy - cross_entropy.
        reconstruction: E_q[log p(x | z)].
        entropy: H(q(z | x)), in closed form.
        cross_entropy: E_q[-log p(z)] of the score prior.
        stderr: standard error of `value` over the draws (B,); NaN for one draw.
        nfe: network calls of the score prior, each on the whole batch.
        dimension: numbers in one sample of the data.
        method: how the cross-entropy was computed.

    Examples:
        >>> one = torch.ones(2)
        >>> bound = LatentBound(-one, 0 * one, 0 * one, one, 0 * one, nfe=1, dimension=4, method="")
        >>> bound.bits_per_dim
        tensor([0.3607, 0.3607])
    """

    value: Tensor
    reconstruction: Tensor
    entropy: Tensor
    cross_entropy: Tensor
    stderr: Tensor
    nfe: int
    dimension: int
    method: str

    @property
    def bits_per_dim(self) -> Tensor:
        """Upper bound in bits/dim (B,), for a decoder of discrete data; of a density it is that of the density."""
        return -self.value / (self.dimension * math.log(2))

    def __str__(self) -> str:
        terms = ("value", "reconstruction", "entropy", "cross_entropy")
        means = ", ".join(f"{name} {getattr(self, name).mean().item():.4f}" for name in terms)
        return f"{means} nats; {self.bits_per_dim.mean().item():.4f} bits/dim ({self.method})"

    __repr__ = __str__


class LatentScoreModel:
    r"""An encoder, a score prior on its latents, and a decoder.

    Args:
        encoder: from x (B, *) to the law of the latents: a `torch.distributions.Normal` (or an `Independent` one), or a
            pair (mean, log_std) of tensors (B, *).
        decoder: from latents to the law of x: any distribution with `log_prob` and `mean`, or a tensor, the mean; the
            bound needs a distribution.
        score_fn: the score of the latents, as `sample` takes it.
        sde: its process.

    Raises:
        TypeError: at a call, for an encoder that returns something else.

    Source: Vahdat, Kreis & Kautz, 2021, arXiv:2106.05931.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> prior = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sde)
        >>> model = LatentScoreModel(
        ...     lambda x: Normal(0.5 * x[:, :2], 0.7), lambda z: Normal(z.repeat(1, 2), 1.0), prior, sde)
        >>> model.sample((3, 2), nfe=10, seed=0).x.shape
        torch.Size([3, 4])
        >>> model.bound(torch.ones(5, 4), seed=0).value.shape
        torch.Size([5])
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Distribution | tuple[Tensor, Tensor]],
        decoder: Callable[[Tensor], Tensor | Distribution],
        score_fn: ScoreFn,
        sde: LinearSDE,
    ) -> None:
        require_function("the encoder", encoder, "of a tensor (B, *)", 1)
        require_function("the decoder", decoder, "of a tensor (B, *)", 1)
        if not has_scalar_marginal(sde):
            raise TypeError(f"the score prior needs a LinearSDE, got {described(sde)}")
        self.encoder = encoder
        self.decoder = decoder
        self.sde = sde
        self.score = as_score(score_fn, sde)

    @staticmethod
    def from_diffusers(
        autoencoder: Any, score_fn: ScoreFn, sde: LinearSDE, *, decoder_std: float | None = None
    ) -> LatentScoreModel:
        """A model around an autoencoder of diffusers (`AutoencoderKL` and its like).

        Latents are scaled and shifted as its configuration says (`scaling_factor`, `shift_factor`).

        Args:
            autoencoder: with `encode(x).latent_dist`, `decode(z).sample` and `config`.
            score_fn: the score of the scaled latents.
            sde: its process.
            decoder_std: standard deviation of a Gaussian around the decoded image, which the bound needs.

        Raises:
            TypeError: for an object without `encode`, `decode` or `config`.
            ValueError: for a `decoder_std` that is not positive.
        """
        needed = ("encode", "decode", "config")
        if not all(hasattr(autoencoder, name) for name in needed):
            raise TypeError(f"an autoencoder has encode, decode and config, got {type(autoencoder).__name__}")
        if decoder_std is not None:
            decoder_std = number("decoder_std", decoder_std, above=0)
        scale, shift = _scale_and_shift(autoencoder.config)

        def encoder(x: Tensor) -> Normal:
            law = autoencoder.encode(x).latent_dist
            mean = (law.mean - shift) * scale
            return Normal(mean, law.std * scale)

        def decoder(z: Tensor) -> Tensor | Normal:
            unscaled = z / scale + shift
            mean = autoencoder.decode(unscaled).sample
            if decoder_std is None:
                return mean
            return Normal(mean, decoder_std)

        return LatentScoreModel(encoder, decoder, score_fn, sde)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, *) of the latents of x (B, *).

        Raises:
            TypeError: for an encoder that returns no Gaussian.
            ValueError: for a standard deviation that is not positive.
        """
        mean, std = torch.broadcast_tensors(*_moments(self.encoder(x)))  # type: ignore[no-untyped-call]
        if len(mean) != len(x):
            raise ValueError(f"the encoder returned latents {tuple(mean.shape)} for {len(x)} samples")
        if not bool((std > 0).all()):
            raise ValueError(f"the encoder's standard deviation must be positive, got {std.min().item()}")
        return mean, std

    def sample(self, shape: tuple[int, ...], **options: Any) -> LatentSamples:
        """Latents from the score prior by any solver, then decoded.

        Args:
            shape: (B, *) of the latents.
            options: of `sample`.
        """
        latent = sample(self.score, self.sde, shape, **options)
        with torch.no_grad():
            decoded = self.decoder(latent.x)
        return LatentSamples(decoded if isinstance(decoded, Tensor) else decoded.mean, latent, decoded)

    def bound(
        self,
        x: Tensor,
        *,
        method: str | Method = "flow",
        n_draws: int = 1,
        n_times: int | None = None,
        eps: float | None = None,
        seed: Seeds = None,
        generator: Generators = None,
        **options: Any,
    ) -> LatentBound:
        r"""The bound on log p(x) in nats per sample, with its terms.

        The cross-entropy to the score prior is $-\log p_\epsilon(z)$ of the probability flow (`"flow"`), or that of the
        reverse SDE by the likelihood-weighted loss (`"weighted"`), minus `elbo` of the latents: on average the
        cross-entropy for an exact score, and an upper bound of it for any other.

        Args:
            x: data (B, *).
            method: `"flow"` or `"weighted"`; or how the flow is solved, such as `FixedGrid(96)`.
            n_draws: latents per sample, averaged.
            n_times: times of the weighted loss, 64 if not given, one network call each; its end takes four more.
            eps: time at which the prior's density is taken; `sde.likelihood_eps` if not given.
            seed: of latents, noises and probes; one int, or one per sample.
            generator: instead of `seed`.
            options: of `log_prob`, for `"flow"`.

        Raises:
            ValueError: for options out of range.
            TypeError: for a decoder that returns no distribution.

        Source: Vahdat, Kreis & Kautz, 2021, arXiv:2106.05931, theorem 1.
        """
        known_arguments("bound", options, (*keywords(log_prob), *keywords(LatentScoreModel.bound)), OF_DENSITIES)
        if isinstance(method, Method):
            options = {"method": method, **options}
            method = "flow"
        one_of("method", method, METHODS)
        n_draws = check_integer("n_draws", n_draws)
        eps = self.sde.likelihood_eps if eps is None else eps
        density = self._prior_density(method, n_times, eps, options)

        x = check_points(x)
        seeds = resolve_seeds(seed, generator, len(x))
        with torch.no_grad():
            return self._bound(x, n_draws, seeds, METHODS[method], density)

    def _prior_density(self, method: str, n_times: int | None, eps: float, options: Mapping[str, Any]) -> PriorDensity:
        """The log-density of latents under the prior, by a method with its own options."""
        if method == "flow":
            if n_times is not None:
                raise ValueError(f"n_times={n_times!r} is of method='weighted': the flow has method=FixedGrid(steps)")
            return partial(log_prob, self.score, self.sde, eps=eps, **options)

        if options:
            raise ValueError(f"{', '.join(options)} are options of method='flow'")
        n_times = check_integer("n_times", N_TIMES if n_times is None else n_times)
        return partial(elbo, self.score, self.sde, eps=eps, n_times=n_times)

    def _bound(self, x: Tensor, n_draws: int, seeds: SampleSeeds, how: str, density: PriorDensity) -> LatentBound:
        """The bound from the prior's density of latents."""
        mean, std = self.posterior(x)
        entropy = _gaussian_entropy(std)

        stream = NoiseStream(seeds, "dequantisation")
        reconstructions = []
        cross_entropies = []
        nfe = 0
        for k in range(n_draws):
            z = mean + std * stream.normal(tuple(mean.shape), mean.dtype, mean.device)
            reconstructions.append(self._reconstruction(x, z))
            prior = density(z, seed=seeds.repeated(k))
            cross_entropies.append(-prior.value)
            nfe += prior.nfe

        reconstruction = torch.stack(reconstructions)
        cross_entropy = torch.stack(cross_entropies)
        difference = reconstruction - cross_entropy
        return LatentBound(
            value=difference.mean(0) + entropy,
            reconstruction=reconstruction.mean(0),
            entropy=entropy,
            cross_entropy=cross_entropy.mean(0),
            stderr=_standard_error(difference),
            nfe=nfe,
            dimension=dimension(x),
            method=f"{how}, {n_draws} draw{'s' * (n_draws > 1)}",
        )

    def _reconstruction(self, x: Tensor, z: Tensor) -> Tensor:
        law = self.decoder(z)
        if isinstance(law, Tensor) or not hasattr(law, "log_prob"):
            raise TypeError(f"the bound needs a decoder that returns a distribution, got {type(law).__name__}")
        log_p: Tensor = law.log_prob(x)
        return flat(log_p).sum(1)


def _gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy in nats (B,) of normal laws of standard deviations (B, *)."""
    return flat(std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(1)


def _standard_error(values: Tensor) -> Tensor:
    """Standard error (B,) of the mean over draws (n, B); NaN for one draw."""
    n = len(values)
    return values.std(0) / math.sqrt(n) if n > 1 else torch.full_like(values[0], math.nan)


def _scale_and_shift(config: Any) -> tuple[float, float]:
    """Those of an autoencoder's latents; 1 and 0 where its configuration has none."""
    scale = getattr(config, "scaling_factor", None) or 1.0
    shift = getattr(config, "shift_factor", None) or 0.0
    return float(scale), float(shift)


def _moments(law: Distribution | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what an encoder returns."""
    if isinstance(law, tuple) and len(law) == 2 and all(isinstance(v, Tensor) for v in law):
        mean, log_std = law
        return mean, log_std.exp()

    base = law.base_dist if isinstance(law, Independent) else law
    if not isinstance(base, Normal):
        raise TypeError(
            f"the encoder must return a Normal or a pair (mean, log_std) of tensors, got {type(law).__name__}"
        )
    return base.loc, base.scale


class MixedNoise(nn.Module):
    r"""The mixed score parametrisation: the noise of a standard normal law, and a network's for what differs from it.

    $$ \hat\epsilon = (1 - m)\,\frac{\sigma_t}{\alpha_t^2 + \sigma_t^2}\,z_t + m\,\epsilon_\theta(z_t, t), \qquad
       m = \mathrm{sigmoid}(\text{logit}) $$

    The score is then that of a geometric mixture of $N(0, I)$ with the network's law. Make a score of it with
    `from_noise(MixedNoise(...), sde)`.

    Args:
        net: `net(z, label, **kwargs)`, the noise.
        sde: the process.
        shape: of the mixing logits, broadcast with the latents' shape (such as (C, 1, 1)); learnable.
        initial: the mixing share m at first.
        time_label: from t to what the network expects.

    Raises:
        ValueError: for an initial share outside (0, 1).

    Source: Vahdat, Kreis & Kautz, 2021, arXiv:2106.05931, section 3.2.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.VPSDE()
        >>> mixed = MixedNoise(lambda z, t: 0 * z, sde, (1,), initial=0.25)
        >>> round(mixed(torch.ones(1, 1), torch.ones(1)).item(), 3)
        0.75
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: LinearSDE,
        shape: tuple[int, ...] = (),
        *,
        initial: float = 0.5,
        time_label: TimeLabel | None = None,
    ) -> None:
        super().__init__()
        require_function("net", net, "of (z, label)")
        instance_of("sde", sde, LinearSDE, "a LinearSDE")
        require_label(time_label)
        initial = number("initial", initial, above=0, below=1)
        logit = math.log(initial / (1 - initial))

        self.net = net
        self.sde = sde
        self.time_label = time_label
        self.logit = nn.Parameter(torch.full(sizes("shape", shape), logit))

    def forward(self, z: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The noise at latents z (B, *) and times t (B,)."""
        alpha = self.sde.alpha(t)
        sigma = self.sde.sigma(t)
        gaussian = expand(sigma / (alpha**2 + sigma**2), z) * z

        m = torch.sigmoid(self.logit).to(z.dtype)
        return (1 - m) * gaussian + m * self.net(*network_inputs(z, t, self.time_label), **kwargs)
