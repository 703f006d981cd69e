"""A denoiser and a classifier of 8x8 handwritten digits, with their weights and their data.

Images are float tensors of shape (B, 1, 8, 8) in [-1, 1]: scikit-learn's pixel v in 0..16 becomes v/8 - 1.
"""

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm_sde._utils.checks import one_of
from sgm_sde.nn._weights import with_weights
from sgm_sde.nn.unet import edm_preconditioning
from sgm_sde.processes.cld import CLD

_CLASSES = 10
_PIXELS = 64


class _Block(nn.Module):
    """Residual layer h + W silu((1 + scale) * norm(h) + shift); scale and shift come from the embedding."""

    def __init__(self, hidden: int, embed: int, dropout: float) -> None:
        super().__init__()
        self.film = nn.Linear(embed, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.film(emb).chunk(2, dim=-1)
        normed = F.layer_norm(h, h.shape[-1:])
        update: Tensor = self.linear(self.dropout(F.silu((1 + scale) * normed + shift)))
        return h + update


class _DigitsMLP(nn.Module):
    """Residual MLP of 64 outputs on pixel values, with embeddings of the noise and of class labels."""

    NULL_LABEL: Final = 10  # "no class given": one more row of the label embedding

    sigma_data: Tensor
    frequencies: Tensor

    def __init__(self, sigma_data: float, inputs: int, hidden: int, depth: int, embed: int, dropout: float) -> None:
        super().__init__()
        # Buffers, so that the weights file alone fixes the function.
        self.register_buffer("sigma_data", torch.tensor(sigma_data))
        self.register_buffer("frequencies", 2.0 ** torch.linspace(-1, 3, embed // 2))
        self.label = nn.Embedding(_CLASSES + 1, embed)
        self.noise = nn.Linear(embed, embed)
        self.mix = nn.Linear(embed, embed)
        self.first = nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, embed, dropout) for _ in range(depth))
        self.last = nn.Linear(hidden, _PIXELS)

    def _run(self, pixels: Tensor, c_noise: Tensor, y: Tensor | None) -> Tensor:
        """Outputs (B, 64) for scaled inputs (B, inputs), noise labels (B,) and class labels."""
        angle = c_noise.to(self.frequencies.dtype)[..., None] * self.frequencies
        label = self.label.weight[self.NULL_LABEL] if y is None else self.label(y)
        emb = self.noise(torch.cat([angle.sin(), angle.cos()], dim=-1)) + label
        emb = F.silu(self.mix(F.silu(emb)))
        h = self.first(pixels.to(self.first.weight.dtype))
        for block in self.blocks:
            h = block(h, emb)
        outputs: Tensor = self.last(F.silu(h))
        return outputs


class DigitsDenoiser(_DigitsMLP):
    r"""Class-conditional denoiser of 8x8 digits, D(x, sigma, y) ~ E[x_0 | x_0 + sigma * z = x, y].

    D = c_skip x + c_out F(c_in x, c_noise, y) with `edm_preconditioning`, where F is a residual MLP on the 64 pixels.
    The score is (D - x) / sigma^2.

    Source: Karras, Aittala, Aila, Laine (2022), "Elucidating the design space of diffusion-based generative
    models", arXiv:2206.00364, table 1.

    Examples:
        >>> net = DigitsDenoiser()
        >>> net(torch.zeros(2, 1, 8, 8), torch.ones(2), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        sigma_data: float = 1.0,
        hidden: int = 320,
        depth: int = 3,
        embed: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(sigma_data, _PIXELS, hidden, depth, embed, dropout)

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """The denoised images (B, 1, 8, 8) of x (B, 1, 8, 8) at noise levels sigma (B,).

        y (B,) holds class labels 0..9 (int64), or NULL_LABEL where the image is to be denoised without a
        class; None means NULL_LABEL throughout. The network itself runs in the precision of its weights,
        the preconditioning and the result in that of x.
        """
        c = edm_preconditioning(sigma.to(x.dtype), self.sigma_data)
        output = self._run(c.c_in[..., None] * x.flatten(-3), c.c_noise, y)
        residual = output.to(x.dtype).reshape(x.shape)
        c_skip = c.c_skip[..., None, None, None]
        c_out = c.c_out[..., None, None, None]
        return c_skip * x + c_out * residual


class DigitsVelocity(_DigitsMLP):
    r"""Class-conditional network of CLD on 8x8 digits: the velocity's noise less that for Gaussian data.

    c F(x / std(x_t), v / std(v_t), ln(s) / 4, y) with a residual MLP F on 128 numbers; the standard deviations are
    those of the state for data of the deviation `sigma_data`, s is the noise level of `CLD.observation`, and
    c^2 = 1 - L_vv^2 / var(v_t) the variance of the difference (mixed score parametrisation). A score is made of it by
    `from_velocity_noise(net, CLD(), mixed=float(net.sigma_data))`.

    Source: Dockhorn, Vahdat, Kreis (2022), "Score-based generative modeling with critically-damped Langevin
    diffusion", arXiv:2112.07068.

    Examples:
        >>> net = DigitsVelocity()
        >>> net(torch.zeros(2, 2, 1, 8, 8), torch.full((2,), 0.5)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self, sigma_data: float = 1.0, hidden: int = 320, depth: int = 3, embed: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__(sigma_data, 2 * _PIXELS, hidden, depth, embed, dropout)
        self.sde = CLD()

    def forward(self, z: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The difference of noises (B, 1, 8, 8) at states z (B, 2, 1, 8, 8), times t (B,) and labels y."""
        variance, c = self.scales(t)
        c_noise = -self.sde.log_snr(t.double()) / 8
        pixels = z.flatten(2) * variance.rsqrt().to(z.dtype)[..., None]
        output = self._run(pixels.flatten(1), c_noise, y).reshape(z[:, 0].shape)
        return c.to(z.dtype)[:, None, None, None] * output

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The variances (B, 2) of position and velocity at times t (B,), and c (B,), in double precision."""
        mu, covariance = self.sde.kernel(t.double())
        variance = torch.diagonal(covariance, dim1=-2, dim2=-1) + self.sigma_data.double() ** 2 * mu**2
        L = torch.linalg.cholesky(covariance)
        c = (1 - L[:, 1, 1] ** 2 / variance[:, 1]).sqrt()
        return variance, c


class DigitsClassifier(nn.Module):
    """Convolutional classifier of 8x8 digits; its 32 penultimate activations are the Frechet features.

    Examples:
        >>> net = DigitsClassifier()
        >>> x = torch.zeros(2, 1, 8, 8)
        >>> net(x).shape, net.features(x).shape
        (torch.Size([2, 10]), torch.Size([2, 32]))
    """

    def __init__(self, channels: int = 24, dim: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(2 * channels * 16, dim)
        self.head = nn.Linear(dim, _CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate activations (B, 32) of images x (B, 1, 8, 8)."""
        h = F.silu(self.conv2(F.silu(self.conv1(x))))
        return F.silu(self.hidden(self.dropout(h.flatten(-3))))

    def forward(self, x: Tensor) -> Tensor:
        """The class logits (B, 10) of images x (B, 1, 8, 8)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def load_digits_denoiser() -> DigitsDenoiser:
    """The trained denoiser, in eval mode and frozen; the global random state is left alone.

    Examples:
        >>> load_digits_denoiser()(torch.zeros(2, 1, 8, 8), torch.ones(2)).shape
        torch.Size([2, 1, 8, 8])
    """
    return with_weights(DigitsDenoiser, "digits_denoiser.safetensors")


def load_digits_velocity() -> DigitsVelocity:
    """The trained network of `CLD()`, in eval mode and frozen; the global random state is left alone.

    Examples:
        >>> load_digits_velocity()(torch.zeros(3, 2, 1, 8, 8), torch.ones(3), torch.arange(3)).shape
        torch.Size([3, 1, 8, 8])
    """
    return with_weights(DigitsVelocity, "digits_velocity.safetensors")


def load_digits_classifier() -> DigitsClassifier:
    """The trained classifier, in eval mode and frozen; the global random state is left alone.

    Examples:
        >>> load_digits_classifier()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return with_weights(DigitsClassifier, "digits_classifier.safetensors")


def digits_data(split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
    """The images (N, 1, 8, 8) in [-1, 1] and the labels (N,) of one part of scikit-learn's digits.

    Every fifth image of each class is held out: a fixed, stratified split of about 80 to 20.

    Args:
        split: `"train"` or `"held_out"`.

    Raises:
        ValueError: for another part.
        ImportError: without scikit-learn.

    Source: Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, doi:10.24432/C50P49.

    Examples:
        >>> images, labels = digits_data("held_out")
        >>> images.shape, len(labels)
        (torch.Size([355, 1, 8, 8]), 355)
    """
    one_of("split", split, ("train", "held_out"))
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('pip install "sgm_sde[bench]"') from error
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(digits, dtype=torch.int64)
    one_hot = F.one_hot(labels, _CLASSES)
    rank_in_class = one_hot.cumsum(0)[torch.arange(len(labels)), labels]
    held_out = rank_in_class % 5 == 0
    chosen = held_out if split == "held_out" else ~held_out
    return images[chosen], labels[chosen]
