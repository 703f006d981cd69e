"""A small U-Net for images, and EDM's preconditioning around any network.

Images are float tensors (B, C, H, W). The U-Net's time feature is any real number per sample; `EDMPreconditioned`
feeds it ln(sigma) / 4.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm_sde._utils.checks import FAR, check_integer, described, flag, instance_of, is_dense, number, one_of, sizes


class Preconditioning(NamedTuple):
    """EDM's four functions of the noise level; see `edm_preconditioning`."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_preconditioning(sigma: Tensor, sigma_data: Tensor | float) -> Preconditioning:
    r"""The functions of D = c_skip x + c_out F(c_in x, c_noise) at noise levels sigma, each of sigma's shape.

    With s = sigma_data,

        c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / sqrt(sigma^2 + s^2),
        c_in = 1 / sqrt(sigma^2 + s^2),  c_noise = ln(sigma) / 4.

    Args:
        sigma: noise levels, a floating tensor.
        sigma_data: standard deviation of the data, a number or a tensor of sigma's shape.

    Raises:
        TypeError: for a sigma that is not floating.
        ValueError: for a `sigma_data` of another shape.

    Source: Karras, Aittala, Aila, Laine (2022), "Elucidating the design space of diffusion-based generative
    models", arXiv:2206.00364, table 1.

    Examples:
        >>> [round(float(c), 3) for c in edm_preconditioning(torch.tensor(0.75), 1.0)]
        [0.64, 0.6, 0.8, -0.072]
    """
    if not is_dense(sigma) or not sigma.is_floating_point():
        raise TypeError(f"sigma must be a floating tensor, got {described(sigma)}")
    if isinstance(sigma_data, Tensor):
        if sigma_data.ndim and sigma_data.shape != sigma.shape:
            raise ValueError(
                f"sigma_data must be one number or as sigma, {tuple(sigma.shape)}, got {described(sigma_data)}"
            )
    else:
        sigma_data = number("sigma_data", sigma_data, above=0, most=FAR)
    total = sigma**2 + sigma_data**2
    # The floor keeps D(x, 0) = x instead of ln(0) * 0 = nan.
    c_noise = sigma.clamp(min=1e-6).log() / 4
    return Preconditioning(sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt(), c_noise)


class _ResidualBlock(nn.Module):
    """h + conv(silu((1 + scale) norm(conv(silu(norm(h)))) + shift)); scale and shift come from the embedding.

    `weight` multiplies the sum.
    """

    def __init__(self, channels: int, out_channels: int, embed: int, groups: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.film = nn.Linear(embed, 2 * out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, affine=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.film.weight)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(emb)[..., None, None].chunk(2, dim=-3)
        update = self.conv1(F.silu(self.norm1(h)))
        update = self.conv2(F.silu((1 + scale) * self.norm2(update) + shift))
        shortcut: Tensor = self.shortcut(h)
        return self.weight * (shortcut + update)


class _SelfAttention(nn.Module):
    """h + attention over the pixels of norm(h), times `weight`."""

    def __init__(self, channels: int, heads: int, groups: int, weight: float) -> None:
        super().__init__()
        self.heads = heads
        self.weight = weight
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(-2).transpose(-1, -2)  # (B, H W, C)
        q, k, v = [self._heads(part) for part in self.qkv(tokens).chunk(3, dim=-1)]

        # Written out: the fused kernels have no forward mode and no second derivative on the CPU.
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        mixed = self.out((attention @ v).transpose(-2, -3).flatten(-2))
        return self.weight * (h + mixed.transpose(-1, -2).unflatten(-1, h.shape[-2:]))

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B, heads, H W, C / heads) of (B, H W, C)."""
        split: Tensor = tokens.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return split.transpose(-2, -3)


class _Stage(nn.ModuleList):
    """A residual block, then attention or nothing."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        block, attention = self
        mixed: Tensor = attention(block(h, emb))
        return mixed


class _Middle(nn.ModuleList):
    """A residual block, attention, and another residual block."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        first, attention, second = self
        mixed: Tensor = second(attention(first(h, emb)), emb)
        return mixed


class _Parts(NamedTuple):
    """Maker of a U-Net's stages, which share the width of the embedding, groups, heads and weight."""

    embed: int
    groups: int
    heads: int
    weight: float

    def stage(self, width: int, out: int, attends: bool) -> _Stage:
        attention = self._attention(out) if attends else nn.Identity()
        return _Stage([self._block(width, out), attention])

    def middle(self, width: int) -> _Middle:
        first = self._block(width, width)
        second = self._block(width, width)
        return _Middle([first, self._attention(width), second])

    def _block(self, width: int, out: int) -> _ResidualBlock:
        return _ResidualBlock(width, out, self.embed, self.groups, self.weight)

    def _attention(self, width: int) -> _SelfAttention:
        return _SelfAttention(width, self.heads, self.groups, self.weight)


def _octaves(n: int) -> Tensor:
    """Frequencies of half a period to 16 periods in a unit of the feature."""
    return 2.0 ** torch.linspace(-1, 4, n)


def _random_frequencies(n: int) -> Tensor:
    """N(0, 16^2), always the same ones: weights fix the function, and torch's generator is left alone."""
    return 16 * torch.randn(n, generator=torch.Generator().manual_seed(0))


def _of_positions(n: int) -> Tensor:
    """Angular frequencies from 1 down to 1 / 10000, for features of some hundreds, over 2 pi."""
    return 1e4 ** -torch.linspace(0, 1, n) / (2 * math.pi)


MIDDLES = ("block", "attention")
EMBEDDINGS = {"octaves": _octaves, "fourier": _random_frequencies, "positional": _of_positions}


class UNet(nn.Module):
    """U-Net of residual blocks with self-attention, sinusoidal time features and an optional class label.

    Args:
        in_channels: channels of the image, and of the output.
        channels: width at each resolution; every entry after the first halves the resolution.
        blocks: residual blocks at each resolution, on the way down and again on the way up.
        attention: indices into `channels` where self-attention follows each block.
        classes: number of classes; label `classes` means that none is given. None for a network without labels.
        patch: the image is cut into patch x patch pixels that become channels (space to depth), and back at the end.
        embed: width of the embedding of time and label.
        groups: groups of the normalisation; must divide every entry of `channels`.
        heads: attention heads; must divide the width where attention is used.
        time: frequencies of the sines and cosines of the time feature: `"octaves"`, for features of size 1;
            `"fourier"`, random ones N(0, 16^2) as Song et al., for features such as ln(sigma) / 4; `"positional"`, as
            DDPM, for the index of a table.
        middle: `"block"`, or `"attention"` for a block, attention and a block at the lowest resolution, as DDPM has.
        rescale: 1 / sqrt(2) after every sum with a skip connection, as Song et al.: the variance stays as it is.

    Raises:
        ValueError: for an unknown time or middle, widths that groups or heads do not divide, or attention at a level
            that there is not.

    Source: Ronneberger et al., 2015, arXiv:1505.04597; Ho et al., 2020, arXiv:2006.11239; adaptive group
    normalisation: Dhariwal and Nichol, 2021, arXiv:2105.05233; random Fourier features and rescaling: Song et al.,
    2021, arXiv:2011.13456.

    Examples:
        >>> net = UNet(channels=(16, 32), classes=10)
        >>> net(torch.zeros(2, 1, 28, 28), torch.tensor([0.1, 0.5]), torch.tensor([3, 10])).shape
        torch.Size([2, 1, 28, 28])
    """

    frequencies: Tensor

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        classes: int | None = None,
        patch: int = 2,
        embed: int = 128,
        groups: int = 8,
        heads: int = 4,
        time: str = "octaves",
        middle: str = "block",
        rescale: bool = False,
    ) -> None:
        super().__init__()
        one_of("time", time, EMBEDDINGS)
        one_of("middle", middle, MIDDLES)
        scale = math.sqrt(0.5) if flag("rescale", rescale) else 1.0
        channels = sizes("channels", channels)
        attention = sizes("attention", attention, least=0)
        if not channels:
            raise ValueError(f"channels must have a width for each level, got {channels}")

        in_channels = check_integer("in_channels", in_channels)
        blocks = check_integer("blocks", blocks)
        patch = check_integer("patch", patch)
        groups = check_integer("groups", groups)
        heads = check_integer("heads", heads)
        embed = check_integer("embed", embed, 2)
        classes = None if classes is None else check_integer("classes", classes)

        lowest = len(channels) - 1
        attending = {*attention, lowest} if middle == "attention" else set(attention)
        _require_divisible(channels, attending, groups, heads)
        _require_levels(attention, channels)

        self.patch = patch
        self.classes = classes
        self.blocks = blocks
        self.reduction = patch * 2**lowest
        frequencies = EMBEDDINGS[time](embed // 2)
        self.register_buffer("frequencies", frequencies)
        self.time = nn.Linear(embed, embed)
        self.mix = nn.Linear(embed, embed)
        self.label = None if classes is None else nn.Embedding(classes + 1, embed)

        cut_channels = in_channels * patch**2
        self.first = nn.Conv2d(cut_channels, channels[0], 3, padding=1)
        parts = _Parts(embed, groups, heads, scale)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        width = channels[0]
        skips: list[int] = []
        for level, out in enumerate(channels):
            attends = level in attention
            for _ in range(blocks):
                self.down.append(parts.stage(width, out, attends))
                width = out
                skips.append(width)

        self.middle = parts.middle(width) if middle == "attention" else parts.stage(width, width, lowest in attention)
        for level, out in reversed(list(enumerate(channels))):
            attends = level in attention
            for _ in range(blocks):
                width += skips.pop()
                self.up.append(parts.stage(width, out, attends))
                width = out

        self.norm = nn.GroupNorm(groups, channels[0])
        self.last = nn.Conv2d(channels[0], cut_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    @property
    def NULL_LABEL(self) -> int:
        """The label that stands for none, if there are labels."""
        if self.classes is None:
            raise AttributeError("a network without classes has no NULL_LABEL")
        return self.classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """An image (B, C, H, W) for images x (B, C, H, W), time features t (B,) and labels y (B,).

        Labels are int64 in 0..classes, where `classes` means "none given"; None means none for the whole batch.

        Raises:
            ValueError: for labels without classes, or an image whose sides the network's reduction does not divide.
        """
        if any(side % self.reduction for side in x.shape[-2:]):
            raise ValueError(f"image sides must be multiples of {self.reduction}, got {tuple(x.shape)}")

        emb = self._embedding(t, y)
        cut = F.pixel_unshuffle(x, self.patch)
        h = self.first(cut)

        skips = []
        for i, stage in enumerate(self.down):
            if self._starts_level(i):
                h = F.avg_pool2d(h, 2)
            h = stage(h, emb)
            skips.append(h)

        h = self.middle(h, emb)

        for i, stage in enumerate(self.up):
            if self._starts_level(i):
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = torch.cat([h, skips.pop()], dim=-3)
            h = stage(h, emb)

        h = F.silu(self.norm(h))
        return F.pixel_shuffle(self.last(h), self.patch)

    def _starts_level(self, i: int) -> bool:
        """True if a stage on the way down or up is the first of another resolution."""
        return i > 0 and i % self.blocks == 0

    def _embedding(self, t: Tensor, y: Tensor | None) -> Tensor:
        angle = 2 * math.pi * t.to(self.frequencies.dtype)[..., None] * self.frequencies
        emb = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        if self.label is not None:
            emb = emb + (self.label.weight[self.classes] if y is None else self.label(y))
        elif y is not None:
            raise ValueError("labels were given to a network without classes")
        return F.silu(self.mix(F.silu(emb)))


def _require_divisible(channels: Sequence[int], attending: Collection[int], groups: int, heads: int) -> None:
    """Raise unless the groups divide the width of each level, and the heads that of each with attention."""
    for level, width in enumerate(channels):
        if width % groups or (level in attending and width % heads):
            raise ValueError(f"groups={groups} and heads={heads} must divide the channels, got {tuple(channels)}")


def _require_levels(attention: Sequence[int], channels: Sequence[int]) -> None:
    """Raise for attention at a level that there is not."""
    if not set(attention) <= set(range(len(channels))):
        raise ValueError(f"attention={tuple(attention)} must be indices into channels={tuple(channels)}")


class EDMPreconditioned(nn.Module):
    r"""Denoiser D(x, sigma, ...) = c_skip x + c_out F(c_in x, c_noise, ...) around a network F.

    The four functions are those of `edm_preconditioning`; the score is (D - x) / sigma^2. F runs in the precision of
    its weights, the preconditioning and the result in that of x.

    Args:
        net: F, called with (B, *), (B,) and whatever else the denoiser is called with.
        sigma_data: standard deviation s of the data.

    Raises:
        ValueError: for sigma_data that is not positive.

    Source: Karras et al., 2022, arXiv:2206.00364.

    Examples:
        >>> D = EDMPreconditioned(UNet(channels=(16, 32)), sigma_data=0.5)
        >>> x = torch.ones(2, 1, 28, 28)
        >>> bool((D(x, torch.tensor([0.0, 0.1]))[0] == x[0]).all())
        True
    """

    sigma_data: Tensor

    def __init__(self, net: nn.Module, sigma_data: float) -> None:
        super().__init__()
        instance_of("net", net, nn.Module, "an nn.Module")
        sigma_data = number("sigma_data", sigma_data, above=0, most=FAR)
        self.net = net
        # A buffer, so that the weights file alone fixes the function.
        self.register_buffer("sigma_data", torch.tensor(sigma_data))

    @property
    def NULL_LABEL(self) -> int:
        """The label that stands for none, if the network has labels."""
        null: int = self.net.NULL_LABEL  # type: ignore[assignment]
        return null

    def forward(self, x: Tensor, sigma: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """The denoised data (B, *) of x (B, *) at noise levels sigma (B,)."""
        c = edm_preconditioning(sigma.to(x.dtype), self.sigma_data.to(x.dtype))
        c_skip, c_out, c_in = [value.reshape(value.shape + (1,) * (x.ndim - value.ndim)) for value in c[:3]]
        dtype = next(self.net.parameters()).dtype
        output: Tensor = self.net((c_in * x).to(dtype), c.c_noise, *args, **kwargs)
        return c_skip * x + c_out * output.to(x.dtype)
