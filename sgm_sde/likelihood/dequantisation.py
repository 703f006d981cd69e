"""Bits per dimension of discrete data, by dequantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sgm_sde._utils.checks import described, flag, keywords, known_arguments, one_of, require_function
from sgm_sde._utils.elsewhere import OF_DENSITIES, named_elsewhere
from sgm_sde._utils.shapes import flat
from sgm_sde._utils.warn import warn
from sgm_sde.engine.noise import Generators, NoiseStream, SampleSeeds, Seeds, resolve_seeds
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.likelihood.checks import check_process, require_count
from sgm_sde.likelihood.decoders import Levels, diffuse, normal_log_prob
from sgm_sde.likelihood.flow import chosen_trace, log_prob
from sgm_sde.likelihood.joint import joint_log_prob, velocity_bound
from sgm_sde.likelihood.methods import Hutchinson, Trace, resolve_method
from sgm_sde.likelihood.results import BitsPerDimResult, LogProbResult
from sgm_sde.processes.kinds import has_matrix_marginal
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.processes.matrix import MatrixSDE
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score, as_density

DEQUANTISATIONS = {
    "uniform": "uniform dequantisation",
    "truncated-normal": "truncated-normal dequantisation",
    "diffusion": "diffusion to eps and a Gaussian decoder back",
}


LATENT_SIZE = 2.0  # times the prior's variance, or a part of it: right ranges give 0.9 to 1.1 on the shipped networks
BEYOND_ANY = 16.0  # bits/dim above those of a uniform guess, which no network gives data of its range


class BitsPerDimWarning(UserWarning):
    """More bits than a uniform guess takes: the network is hardly asked about the data it knows."""


class Dequantisation(Protocol):
    """Noise in [0, 1) for discrete images, and its log-density."""

    def __call__(self, images: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """(noise (B, *), log-density in nats (B,)) for the draw of that number."""


@named_elsewhere(OF_DENSITIES)
def bits_per_dim(
    score_fn: ScoreFn,
    sde: LinearSDE | MatrixSDE,
    images: Tensor,
    *,
    n_levels: int,
    data_range: tuple[float, float],
    repeats: int = 1,
    importance: bool = False,
    dequantize: str | Dequantisation = "uniform",
    seed: Seeds = None,
    generator: Generators = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> BitsPerDimResult:
    r"""Bits per dimension of discrete images, by dequantisation.

    Level k of n stands for the bin $[k, k + 1)/n$ of the range (lo, hi) that the network was trained on. With noise u
    from q in each bin,

    $$ -\log P(k) \le E_q\left[-\log p\Big(lo + (hi - lo)\tfrac{k + u}{n}\Big) - d\log\tfrac{hi - lo}{n}
       + \log q(u)\right] $$

    in nats, divided by d log 2. A uniform density on the range gives log2(n) exactly.

    With `dequantize="diffusion"` the noise is that of the process at eps, and the probability of a level is that of its
    bin under a Gaussian decoder with the mean of the denoiser and the standard deviation $\sigma/\alpha$:

    $$ -\log P(k) \le E_{q(x_\epsilon|x_0)}\left[-\log p_\epsilon(x_\epsilon) - \log P(k|x_\epsilon)
       + \log q(x_\epsilon|x_0)\right] $$

    with $x_0$ in the middle of the bin. The network need not have been trained on dequantised images.

    With `dequantize="truncated-normal"` that noise is truncated to the scaled bin: with
    $\tau = \alpha (hi - lo)/(2 n \sigma)$ and z from the standard normal on $(-\tau, \tau)$,

    $$ x_\epsilon = \alpha x_0 + \sigma z, \qquad
       -\log P(k) \le E_z\Big[-\log p_\epsilon(x_\epsilon) - \tfrac12|z|^2\Big]
       - d\log\big(\sqrt{2\pi}\,\sigma\,\mathrm{erf}(\tau/\sqrt2)\big) $$

    Args:
        score_fn: the score, as `sample` takes it.
        sde: a linear process.
        images: integers in [0, n_levels), (B, *), of an integer dtype.
        n_levels: number of levels, 256 for 8-bit images.
        data_range: (lo, hi), where the lower edge of level 0 and the upper edge of the last one lie for the network.
        repeats: dequantisation draws for each image.
        importance: combine the draws into the tighter importance-weighted bound, instead of their mean.
        dequantize: `"uniform"`, for networks that were trained on dequantised data; `"truncated-normal"` or
            `"diffusion"`, for those that were trained on the levels themselves; or a callable `(images, draw)` that
            returns noise in [0, 1) (B, *) and its log-density in nats (B,): variational dequantisation.
        seed: of the dequantisation and the probes; one int for the batch, or one an image.
        generator: instead of `seed`.
        dtype: of the states; torch's default if not given.
        options: of `log_prob`.

    Raises:
        TypeError: for images that are not of an integer dtype.
        ValueError: for levels outside of the range, options out of range, a number of bits that only a wrong
            `data_range` gives, less than none among them, and images that are 0 and 1 alone of many levels.

    Warns:
        BitsPerDimWarning: for more bits than the log2(n_levels) of a uniform guess, and for latents of another size
            than the prior's, as a wrong `data_range` that gives fewer bits leaves them.

    Source: Theis et al., 2016, arXiv:1511.01844; Ho et al., 2019, arXiv:1902.00275; Burda et al., 2016,
    arXiv:1509.00519 (importance weights); Song et al., 2021, arXiv:2101.09258 (diffusion to eps); Zheng et al., 2023,
    arXiv:2305.03935 (truncated normal).

    Examples:
        >>> import sgm_sde as sg
        >>> from sklearn.datasets import load_digits  # doctest: +SKIP
        >>> images = torch.tensor(load_digits().images[:8]).long()[:, None]  # doctest: +SKIP
        >>> sg.bits_per_dim(score, sde, images, n_levels=17, data_range=(-1, 1), seed=0)  # doctest: +SKIP
    """
    known = keywords(velocity_bound, joint_log_prob) if has_matrix_marginal(sde) else keywords(log_prob)
    known_arguments("bits_per_dim", options, (*known, *keywords(bits_per_dim)))
    levels = Levels.of(images, n_levels, data_range, dtype)
    repeats = require_count("repeats", repeats)
    importance = flag("importance", importance)
    _check_options(dequantize, sde, options)
    seeds = resolve_seeds(seed, generator, len(images))
    asked = _Question(as_density(score_fn, sde), sde, levels, dequantize, NoiseStream(seeds, "dequantisation"), options)

    nats = []
    for draw in range(repeats):
        result, log_prob_of_level = asked.draw(draw, seeds)
        nats.append(-log_prob_of_level)
    scale = images[0].numel() * math.log(2)
    draws = torch.stack(nats) / scale
    per_image = _bound(draws, images[0].numel()) if importance else draws.mean(0)

    value = float(per_image.mean())
    guess = math.log2(n_levels)
    _judge(value, n_levels, data_range, dequantize, options)
    _judge_negative(per_image, result, data_range)
    plain = not has_matrix_marginal(sde) and options.get("prior") is None
    if plain and value <= guess:
        _judge_latents(result.latent / sde.prior_std, data_range)

    estimator, how = _in_words(dequantize, repeats, importance)
    stderr = float(per_image.std()) / math.sqrt(len(per_image)) if len(per_image) > 1 else math.nan
    return BitsPerDimResult(
        value=value,
        stderr=stderr,
        per_image=per_image,
        repeats=draws,
        nfe=asked.nfe,
        estimator=estimator,
        protocol=f"{estimator} {how}, {n_levels} levels; {result.protocol}",
        guess=guess,
    )


def _check_options(dequantize: str | Dequantisation, sde: object, options: Mapping[str, object]) -> None:
    """Raise for a dequantisation that is none or not for the process, and for options of `log_prob` alone."""
    if isinstance(dequantize, str):
        one_of("dequantize, where it is a name,", dequantize, DEQUANTISATIONS)
    else:
        require_function("dequantize", dequantize, "of (images, draw), or a name", 2)
    for option in ("enable_grad", "decoder"):
        if options.get(option):
            raise ValueError(f"bits_per_dim has no {option}: use log_prob({option}=...)")
    if has_matrix_marginal(sde) and dequantize in ("diffusion", "truncated-normal"):
        raise ValueError(f"dequantize={dequantize!r} needs a LinearSDE, got {described(sde)}")


@dataclass(eq=False)
class _Question:
    """Checked arguments of a number of bits, of which each draw is one dequantisation.

    Attributes:
        nfe: network calls so far.
    """

    score: Score
    sde: LinearSDE | MatrixSDE
    levels: Levels
    dequantize: str | Dequantisation
    stream: NoiseStream
    options: dict[str, Any]

    def __post_init__(self) -> None:
        sde = self.sde
        self.density: Callable[..., LogProbResult] = velocity_bound if has_matrix_marginal(sde) else log_prob
        self.eps = _eps(sde, self.options.get("eps"))
        self.model = BoundScore(self.score, sde, (self.eps, sde.T), self.options.get("model_kwargs"))
        self._nfe = 0

    @property
    def nfe(self) -> int:
        """Network calls so far."""
        return self._nfe + self.model.nfe

    def draw(self, number: int, seeds: SampleSeeds) -> tuple[LogProbResult, Tensor]:
        """The result of one dequantisation, and the log-probabilities (B,) of the levels that it stands for."""
        x, correction = self._dequantised(number)
        options = self.options | {"eps": self.eps, "trace": self._trace(x)}
        result = self.density(self.score, self.sde, x, seed=seeds.repeated(number), **options)
        self._nfe += result.nfe
        return result, result.value.double() + correction

    def _dequantised(self, draw: int) -> tuple[Tensor, Tensor]:
        """States at eps, and what is added to their log-density, (B,)."""
        levels = self.levels
        if self.dequantize == "diffusion":
            with torch.no_grad():
                return diffuse(self.model, levels, self.eps, self.stream)
        if self.dequantize == "truncated-normal":
            assert not has_matrix_marginal(self.sde)
            return _truncated_normal(levels, self.sde, self.eps, self.stream)

        noise, log_q = _bin_noise(levels.images, draw, self.dequantize, self.stream)
        x = levels.low + levels.width * (levels.images + noise.double())
        d = levels.x[0].numel()
        return x.to(levels.x.dtype), d * math.log(levels.width) - log_q.double()

    def _trace(self, x: Tensor) -> str | Trace | None:
        """The trace, whose basis a pilot on the first draw chooses where that is asked for."""
        trace = self.options.get("trace")
        if not isinstance(trace, Hutchinson) or has_matrix_marginal(self.sde):
            return trace

        method = resolve_method(self.options.get("method", "exponential"))
        kwargs = self.options.get("model_kwargs")
        trace, pilot = chosen_trace(trace, self.score, self.sde, x, self.eps, method, kwargs)
        self.options["trace"] = trace
        self._nfe += 0 if pilot is None else pilot.nfe
        return trace


def _eps(sde: LinearSDE | MatrixSDE, eps: float | None) -> float:
    """The time of the density."""
    if has_matrix_marginal(sde):
        return sde.likelihood_eps if eps is None else eps
    return check_process(sde, eps)


def _bound(draws: Tensor, d: int) -> Tensor:
    """The importance-weighted bound (B,) of draws (K, B), in bits/dim of d dimensions."""
    nats = draws * d * math.log(2)
    log_mean = torch.logsumexp(-nats, 0) - math.log(len(draws))
    return -log_mean / (d * math.log(2))


def _in_words(dequantize: str | Dequantisation, repeats: int, importance: bool) -> tuple[str, str]:
    """The estimator, and of what."""
    what = DEQUANTISATIONS[dequantize] if isinstance(dequantize, str) else "variational dequantisation"
    draws = f"{repeats} draw{'s' * (repeats > 1)}"
    if importance:
        return f"importance-weighted bound of {draws}", f"of {what}"
    estimator = "truncated-normal bound" if dequantize == "truncated-normal" else "Jensen bound"
    return estimator, f"as the mean of {draws} of {what}"


def _judge(
    bits: float,
    n_levels: int,
    data_range: tuple[float, float],
    dequantize: str | Dequantisation,
    options: Mapping[str, object],
) -> None:
    """Warn of more bits than a uniform guess takes, with likely reasons; raise where only a wrong range gives them."""
    guess = math.log2(n_levels)
    if bits <= guess:
        return
    shown = f"{bits:.4g} bits/dim, and a uniform guess over {n_levels} levels takes {guess:.2f}"
    if bits > guess + BEYOND_ANY:
        raise ValueError(
            f"{shown}: data_range={data_range!r} is not where the network knows the edges of the lowest and highest "
            f"level, such as (-1, 1) for images scaled to that"
        )
    reasons = [f"data_range={data_range!r}"]
    if dequantize == "uniform":
        reasons.append("dequantize='diffusion' and an eps where it is good, for a network trained on the levels")
    if not options.get("model_kwargs"):
        reasons.append("labels in model_kwargs, if it takes some")
    warn(f"{shown}: look at {'; '.join(reasons)}", BitsPerDimWarning)


def _judge_negative(bits: Tensor, result: LogProbResult, data_range: tuple[float, float]) -> None:
    """Raise where bits/dim (B,), from a result in nats, are less than none: no probabilities of levels give that."""
    scale = result.latent[0].numel() * math.log(2)
    if len(bits) > 1:  # the spread of images has that of probes in it
        doubt = float(bits.std()) / math.sqrt(len(bits))
    else:
        doubt = float(result.stderr.double().nan_to_num()) / scale
    mean = float(bits.mean())
    error = float(result.error.double().mean()) / scale
    if mean < -0.01 - 3 * doubt:
        raise ValueError(
            f"{mean:.4g} bits/dim are less than none, with a numerical error of {error:.2g}: data_range={data_range!r} "
            f"is not where the network knows the edges of the lowest and highest level, or the method is too coarse"
        )


def _judge_latents(z: Tensor, data_range: tuple[float, float]) -> None:
    """Warn where the norm of the latents z (B, *) is not that of the prior: the flow was trained on other images.

    A `data_range` that is too narrow gives fewer bits/dim than the right one, and no other sign of the mistake.
    """
    size = float(z.double().square().mean())
    doubt = 6 * math.sqrt(2 / z.numel())
    if 1 / LATENT_SIZE - doubt < size < LATENT_SIZE + doubt:
        return
    warn(
        f"the flow carries the images to latents of {size:.3g} times the prior's variance, so that the network knows "
        f"other data than these: look at data_range={data_range!r}, at n_levels, and at eps, where it may not be good",
        BitsPerDimWarning,
    )


def _bin_noise(
    images: Tensor, draw: int, dequantize: str | Dequantisation, stream: NoiseStream
) -> tuple[Tensor, Tensor]:
    """Noise in [0, 1) and its log-density (B,)."""
    if isinstance(dequantize, str):
        z = stream.normal(tuple(images.shape), torch.float64, images.device)
        noise = torch.special.ndtr(z).clamp(0, 1 - 2.0**-24)
        return noise, torch.zeros(len(images), dtype=torch.float64, device=images.device)
    made = dequantize(images, draw)
    _check_made(made, images)
    noise, log_q = made
    return noise, log_q


def _check_made(made: object, images: Tensor) -> None:
    """Raise unless a dequantisation has returned noise (B, *) in [0, 1) and log-densities (B,)."""
    if not (isinstance(made, tuple | list) and len(made) == 2 and all(isinstance(part, Tensor) for part in made)):
        raise TypeError(f"dequantize must return a pair of tensors (noise, log-densities), got {described(made)}")
    noise, log_q = made
    if noise.shape != images.shape or log_q.shape != images.shape[:1]:
        raise ValueError(
            f"dequantize must return noise {tuple(images.shape)} and log-densities {tuple(images.shape[:1])}, "
            f"got {tuple(noise.shape)} and {tuple(log_q.shape)}"
        )
    if bool(((noise < 0) | (noise >= 1)).any()):
        raise ValueError("dequantize must return noise in [0, 1)")


def _truncated_normal(levels: Levels, sde: LinearSDE, eps: float, stream: NoiseStream) -> tuple[Tensor, Tensor]:
    """States at eps inside of the scaled bins, and minus their log-density (B,)."""
    (node,) = sde.nodes([eps])
    tau = torch.tensor(node.alpha * levels.width / (2 * node.sigma), dtype=torch.float64, device=levels.x.device)
    u = torch.special.ndtr(stream.normal(tuple(levels.x.shape), torch.float64, levels.x.device))
    mass = torch.erf(tau / math.sqrt(2))
    z = torch.special.ndtri(torch.special.ndtr(-tau) + u * mass).clamp(-tau, tau)
    log_q = normal_log_prob(z, node.sigma) - mass.log()
    return (node.alpha * levels.x.double() + node.sigma * z).to(levels.x.dtype), -flat(log_q).sum(1)
