"""A denoiser and a classifier of Fashion-MNIST's 28x28 pictures of clothes, with their weights.

Images are float tensors of shape (B, 1, 28, 28) in [-1, 1]: a pixel v in 0..255 becomes v/127.5 - 1.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm_sde._utils.checks import one_of
from sgm_sde.nn._weights import read_asset, with_weights
from sgm_sde.nn.unet import EDMPreconditioned, UNet

CLASSES: Final = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
FEATURES: Final = "fashion-classifier-64"  # the name that goes with every number made of the classifier's features


class FashionClassifier(nn.Module):
    """Convolutional classifier of 28x28 clothes; its 64 penultimate activations are the Frechet features.

    Examples:
        >>> net = FashionClassifier()
        >>> x = torch.zeros(2, 1, 28, 28)
        >>> net(x).shape, net.features(x).shape
        (torch.Size([2, 10]), torch.Size([2, 64]))
    """

    def __init__(self, channels: int = 32, dim: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(2 * channels * 49, dim)
        self.head = nn.Linear(dim, len(CLASSES))

    def features(self, x: Tensor) -> Tensor:
        """The penultimate activations (B, 64) of images x (B, 1, 28, 28)."""
        h = F.silu(self.conv2(F.silu(self.conv1(x))))
        h = F.silu(self.conv3(h))
        return F.silu(self.hidden(self.dropout(h.flatten(-3))))

    def forward(self, x: Tensor) -> Tensor:
        """The class logits (B, 10) of images x (B, 1, 28, 28)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def fashion_unet(classes: int | None = len(CLASSES), in_channels: int = 1) -> UNet:
    """The architecture of the shipped denoiser, without weights."""
    return UNet(in_channels, channels=(32, 64), blocks=1, attention=(1,), classes=classes, heads=2)


def load_fashion_denoiser() -> EDMPreconditioned:
    """The trained denoiser D(x, sigma, y), in eval mode and frozen; the global random state is left alone.

    Labels y (B,) are indices into `CLASSES`, or 10 where none is given; y=None means that none is given throughout.

    Examples:
        >>> load_fashion_denoiser()(torch.zeros(1, 1, 28, 28), torch.ones(1)).shape
        torch.Size([1, 1, 28, 28])
    """
    net = with_weights(lambda: EDMPreconditioned(fashion_unet(), sigma_data=1.0), "fashion_denoiser.safetensors")
    # Convolutions on a CPU are fastest with the channels last, and pass the layout on.
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_fashion_classifier() -> FashionClassifier:
    """The trained classifier, in eval mode and frozen; the global random state is left alone.

    Examples:
        >>> load_fashion_classifier()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    return with_weights(FashionClassifier, "fashion_classifier.safetensors")


class FeatureStatistics(NamedTuple):
    """Mean (d,) and unbiased covariance (d, d) of n feature vectors, float64.

    Examples:
        >>> FeatureStatistics(torch.zeros(2), torch.eye(2), n=100).n
        100
    """

    mean: Tensor
    cov: Tensor
    n: int


def load_fashion_statistics(split: Literal["train", "test"]) -> FeatureStatistics:
    """Statistics of the classifier's features of the real images: 60 000 for training, 10 000 for testing.

    With `sgm_sde.evaluation.metrics.frechet.gaussian_frechet` they give the Frechet distance of samples to the data
    without the data.

    Raises:
        ValueError: for another split.

    Examples:
        >>> statistics = load_fashion_statistics("test")
        >>> statistics.mean.shape, statistics.cov.shape, statistics.n
        (torch.Size([64]), torch.Size([64, 64]), 10000)
    """
    one_of("split", split, ("train", "test"))
    stored = read_asset("fashion_statistics.safetensors")
    return FeatureStatistics(stored[f"{split}.mean"], stored[f"{split}.cov"], int(stored[f"{split}.n"]))
