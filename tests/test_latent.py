"""Latent score models: every term against a linear-Gaussian autoencoder in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Laplace, Normal

import sgm_sde as sg
from sgm_sde.likelihood import FixedGrid
from tests.helpers import F64

SDE = sg.VPSDE()
W = torch.tensor([[0.8, -0.3], [0.2, 0.9], [-0.5, 0.4]], dtype=F64)
A = torch.tensor([[0.5, 0.1, -0.2], [-0.1, 0.6, 0.3]], dtype=F64)
STD, TAU = torch.tensor([0.6, 0.4], dtype=F64), 0.7
MEAN, C = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[0.9, 0.2], [0.2, 0.6]], dtype=F64)
PRIOR = sg.oracles.Gaussian(MEAN, C)
X = torch.randn(400, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


def linear(encoder: Any = lambda x: Normal(x @ A.T, STD), decoder: Any = lambda z: Normal(z @ W.T, TAU)) -> Any:
    """A linear-Gaussian autoencoder with a Gaussian prior."""
    return sg.latent.LatentScoreModel(encoder, decoder, PRIOR.score(SDE), SDE)


def closed_form(x: Tensor) -> dict[str, Tensor]:
    """The three terms of the bound, in nats a sample."""
    m = x @ A.T
    square = (x - m @ W.T).square().sum(1) + (W.square() * STD.square()).sum()
    centred = m - MEAN
    spread = (centred * torch.linalg.solve(C, centred.T).T).sum(1) + torch.linalg.solve(C, STD.square().diag()).trace()
    return {
        "reconstruction": -0.5 * square / TAU**2 - 1.5 * math.log(2 * math.pi * TAU**2),
        "entropy": (STD.log() + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(x)),
        "cross_entropy": 0.5 * (spread + torch.linalg.slogdet(2 * math.pi * C).logabsdet),
    }


@pytest.mark.parametrize("method", ["flow", "weighted"])
def test_every_term_is_the_closed_form(method: str) -> None:
    """The mean over samples of estimate minus closed form is 0 within 4 standard errors; the entropy is exact."""
    options = {"trace": "exact"} if method == "flow" else {"n_times": 32}
    bound = linear().bound(X, method=method, seed=0, **options)
    off_by = {name: getattr(bound, name) - exact for name, exact in closed_form(X).items()}
    for name, off in off_by.items():
        assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(len(X)) + 3e-3, name
    torch.testing.assert_close(bound.entropy, closed_form(X)["entropy"])
    torch.testing.assert_close(bound.value, bound.reconstruction + bound.entropy - bound.cross_entropy)
    torch.testing.assert_close(bound.bits_per_dim, -bound.value / (3 * math.log(2)))
    assert (bound.nfe >= 49 if method == "flow" else bound.nfe == 32 + 4) and "bits/dim" in str(bound)


def test_the_bound_is_below_the_density_and_tight_for_the_posterior() -> None:
    """With the exact posterior as encoder the bound is log p(x) itself, on average over draws."""
    marginal = torch.distributions.MultivariateNormal(W @ MEAN, W @ C @ W.T + TAU**2 * torch.eye(3, dtype=F64))
    log_p = marginal.log_prob(X)
    terms = closed_form(X)
    assert bool((terms["reconstruction"] + terms["entropy"] - terms["cross_entropy"] <= log_p).all())
    w = W[:, :1]  # one latent, whose posterior is a diagonal Gaussian
    prior = sg.oracles.Gaussian(torch.zeros(1, dtype=F64), 1.0)
    variance = 1 / (1 + float((w**2).sum()) / TAU**2)
    model = sg.latent.LatentScoreModel(
        lambda x: (variance / TAU**2 * x @ w, torch.full((len(x), 1), 0.5 * math.log(variance), dtype=F64)),
        lambda z: Independent(Normal(z @ w.T, TAU), 1),
        prior.score(SDE),
        SDE,
    )
    exact = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), w @ w.T + TAU**2 * torch.eye(3))
    off = model.bound(X, seed=0, trace="exact").value - exact.log_prob(X)
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(len(X)) + 1e-3


def test_draws_have_an_error_and_seeds_their_samples() -> None:
    """More draws, less error; a sample's bound does not depend on its batch."""
    one, many = linear().bound(X[:8], seed=0), linear().bound(X[:8], n_draws=4, seed=0)
    assert bool(one.stderr.isnan().all()) and bool((many.stderr > 0).all()) and many.nfe == 4 * one.nfe
    alone = linear().bound(X[:3], n_draws=4, seed=0)
    torch.testing.assert_close(alone.value, many.value[:3], rtol=1e-12, atol=1e-12)


def test_samples_have_the_law_of_the_model() -> None:
    """Decoded means of latents from the prior, by any solver."""
    samples = linear().sample(
        (2000, 2), solver="dpm++2m", grid="log-snr", nfe=20, seed=0, execution=sg.Execution(dtype=F64)
    )
    assert samples.latent.nfe == 20 and isinstance(samples.decoded, Normal)
    assert float((samples.x.mean(0) - W @ MEAN).abs().max()) < 4 / math.sqrt(2000)
    assert float((torch.cov(samples.x.T) - W @ C @ W.T).abs().max()) < 0.1


def test_mixed_parametrisation() -> None:
    """Its two ends are the standard normal law and the network; the share learns."""
    exact = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(SDE)
    t, z = torch.tensor([0.2, 0.7]), torch.tensor([[0.5, -1.0], [2.0, 0.1]])
    mixed = sg.latent.MixedNoise(lambda z, t: 3 * z, SDE, (2,), initial=0.25)
    expected = 0.75 * exact.predict("noise", z, t) + 0.25 * 3 * z
    torch.testing.assert_close(mixed(z, t), expected)
    (gradient,) = torch.autograd.grad(mixed(z, t).sum(), mixed.logit)
    assert bool((gradient != 0).all())
    assert sg.sample(sg.from_noise(mixed, SDE), SDE, (2, 2), nfe=4, seed=0).nfe == 4
    with pytest.raises(ValueError, match=r"initial must be finite, above 0 and below 1, got 1.0"):
        sg.latent.MixedNoise(lambda z, t: z, SDE, initial=1.0)


def test_a_decoder_of_whole_numbers_has_bits() -> None:
    """A Bernoulli decoder at chance costs one bit a pixel, plus what the latents cost."""
    encoder = lambda x: Normal(0 * x[:, :2] + MEAN, C.diagonal().sqrt())  # noqa: E731
    model = linear(encoder, lambda z: Bernoulli(logits=0 * z.repeat(1, 2)))
    bits = model.bound(torch.ones(50, 4, dtype=F64), seed=0, trace="exact")
    assert torch.allclose(bits.reconstruction, torch.full((50,), -4 * math.log(2), dtype=F64))
    law = torch.distributions.MultivariateNormal
    latents = torch.distributions.kl_divergence(law(MEAN, C.diagonal().diag()), law(MEAN, C))
    off = bits.bits_per_dim - (1 + float(latents) / (4 * math.log(2)))
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(50)


def of_autoencoder(std: Any) -> sg.latent.LatentScoreModel:
    """A model around an autoencoder that is not called."""
    autoencoder = SimpleNamespace(encode=None, decode=None, config=None)
    return sg.latent.LatentScoreModel.from_diffusers(autoencoder, PRIOR.score(SDE), SDE, decoder_std=std)


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: linear(lambda x: Laplace(x, 1.0)).bound(X), TypeError, "must return a Normal or a pair.*got Laplace"),
    (lambda: linear(lambda x: Normal(x[:2, :2], 1.0)).bound(X), ValueError, r"latents \(2, 2\) for 400 samples"),
    (lambda: linear(decoder=lambda z: z).bound(X[:2]), TypeError, "a decoder that returns a distribution, got Tensor"),
    (lambda: linear().bound(X, method="elbo"), ValueError, "method must be one of 'flow', 'weighted', got 'elbo'"),
    (lambda: linear().bound(X, n_draws=0), ValueError, "n_draws must be an integer of at least 1, got 0"),
    (lambda: linear().bound(X, method="weighted", prior=9), ValueError, "prior are options of method='flow'"),
    (lambda: sg.latent.LatentScoreModel(1, 2, PRIOR.score(SDE), SDE), TypeError, "encoder must be a function"),  # type: ignore[arg-type]
    (lambda: sg.latent.LatentScoreModel(abs, abs, PRIOR.score(sg.CLD()), sg.CLD()), TypeError, "needs a LinearSDE"),  # type: ignore[arg-type]
    (
        lambda: sg.latent.LatentScoreModel.from_diffusers(nn.Identity(), PRIOR.score(SDE), SDE),
        TypeError,
        "encode, decode and config, got Identity",
    ),
    (lambda: linear().bound(X, n_times=4), ValueError, r"of method='weighted': the flow has method=FixedGrid\(steps\)"),
    (lambda: linear().bound(X, steps=4), TypeError, r"no argument 'steps': give method=, such as .*FixedGrid\(100\)"),
    (lambda: of_autoencoder("a"), TypeError, "decoder_std must be one number, got 'a'"),
    (lambda: of_autoencoder(0.0), ValueError, "decoder_std must be positive and finite, got 0.0"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(call: Any, kind: type[Exception], message: str) -> None:
    """Errors say what was wrong, with the value."""
    with pytest.raises(kind, match=message):
        call()


def test_an_autoencoder_of_diffusers() -> None:
    """Scaled as its configuration says, there and back."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=2,
        sample_size=8, scaling_factor=0.5, shift_factor=0.25,
    ).eval()  # fmt: skip
    score = sg.oracles.Gaussian(torch.zeros(2, 8, 8), 1.0).score(SDE)
    model = sg.latent.LatentScoreModel.from_diffusers(autoencoder, score, SDE, decoder_std=0.5)
    x = torch.randn(2, 1, 8, 8)
    mean, std = model.posterior(x)
    law = autoencoder.encode(x).latent_dist
    torch.testing.assert_close(mean, 0.5 * (law.mean - 0.25))
    torch.testing.assert_close(std, 0.5 * law.std)
    samples = model.sample((2, *mean.shape[1:]), nfe=4, seed=0)
    torch.testing.assert_close(samples.x, autoencoder.decode(samples.latent.x / 0.5 + 0.25).sample)
    assert model.bound(x, seed=0, method=FixedGrid(8)).value.shape == (2,)
