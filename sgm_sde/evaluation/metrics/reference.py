"""Reference statistics: features of real data, or their mean and covariance alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from sgm_sde._utils.checks import unknown
from sgm_sde._utils.files import JsonMapping, JsonObject, parse_json, reading
from sgm_sde.data.images import read_data, to_uint8
from sgm_sde.evaluation.metrics.features import Extractor
from sgm_sde.evaluation.metrics.frechet import moments
from sgm_sde.identity import fingerprint
from sgm_sde.nn.digits import digits_data
from sgm_sde.nn.fashion import FEATURES as FASHION
from sgm_sde.nn.fashion import load_fashion_statistics


@dataclass(frozen=True)
class Reference:
    """Features of real data under one extractor.

    Attributes:
        name: what results call it.
        hash: SHA-256 of the data, their dtype and shape; of a file of statistics, of the file.
        n: number of images.
        extractor: name and hash of the extractor.
        mean: of the features, (d,), float64.
        cov: their unbiased covariance, (d, d).
        features: (n, d), or None where only the statistics are known.
    """

    name: str
    hash: str
    n: int
    extractor: tuple[str, str]
    mean: Tensor = field(repr=False, compare=False)
    cov: Tensor = field(repr=False, compare=False)
    features: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def rows(self) -> Tensor:
        """The features.

        Raises:
            ValueError: where only the statistics are known.
        """
        if self.features is None:
            raise ValueError(f"{self.name} holds statistics only: give the data")
        return self.features

    def save(self, path: Path | str) -> None:
        """Write the mean and the covariance to a safetensors file, which `load_reference` reads.

        Distances that need no more can then be taken without the data.
        """
        known = {"hash": self.hash, "n": self.n, "extractor": self.extractor}
        tensors = {"mean": self.mean, "cov": self.cov}
        safetensors.torch.save_file(tensors, str(path), {"reference": json.dumps(known, sort_keys=True)})


def load_reference(
    name: str | Path,
    extractor: Extractor,
    shape: tuple[int, ...],
    data_range: tuple[float, float] | None = None,
) -> Reference:
    """A reference by name or from a file.

    - `digits-held-out`, `digits-train`: the two parts of scikit-learn's digits.
    - a `.npy` or `.npz` file of 8-bit images, alone or called "x": (n, C, H, W), (n, H, W, C) or, of one channel,
      (n, H, W); for the features `raw`, of samples (n, *) as the network knows them.
    - a `.safetensors` file of statistics, as `Reference.save` writes it.

    Args:
        name: one of these.
        extractor: what makes the features.
        shape: of one sample.
        data_range: the values of black and white in samples, as for `to_uint8`.

    Raises:
        ValueError: for an unknown name, a file with other things in it, or statistics of another extractor.
        FileNotFoundError: for a file that is not there.
        ImportError: for the digits, without scikit-learn.

    Examples:
        >>> import numpy, tempfile
        >>> from sgm_sde.evaluation.metrics.features import load_extractor
        >>> file = tempfile.mkdtemp() + "/data.npy"
        >>> numpy.save(file, numpy.arange(12.0).reshape(6, 2))
        >>> load_reference(file, load_extractor("raw", (2,)), (2,)).n
        6
    """
    path = Path(name)
    if str(name) in SHIPPED:
        return _shipped(str(name), extractor, shape, data_range)
    if str(name) in STATISTICS:
        return _shipped_statistics(str(name), extractor)

    if path.suffix not in (".npy", ".npz", ".safetensors"):
        more = " Data of your own are a file .npy or .npz, statistics a file .safetensors"
        raise unknown("reference", str(name), [*SHIPPED, *STATISTICS], more)
    if not path.is_file():
        raise FileNotFoundError(f"no reference at {path}")

    if path.suffix == ".safetensors":
        return _statistics(path, extractor)
    return measure(path.name, _data(path, extractor, shape), extractor)


def _shipped(
    name: str, extractor: Extractor, shape: tuple[int, ...], data_range: tuple[float, float] | None
) -> Reference:
    """The features of shipped data."""
    samples = SHIPPED[name]()
    found = tuple(samples.shape[1:])
    if found != shape:
        raise ValueError(f"{name} holds images of shape {found}, the samples have {shape}")
    data = to_uint8(samples, data_range or (-1.0, 1.0)) if extractor.images else samples
    return measure(name, data, extractor)


def _shipped_statistics(name: str, extractor: Extractor) -> Reference:
    """The shipped mean and covariance of features."""
    owner, load = STATISTICS[name]
    if owner != extractor.name:
        raise ValueError(f"{name} holds statistics of {owner}, the features are {extractor.name}")
    mean, cov, n = load()
    identity = (extractor.name, extractor.hash)
    return Reference(name, fingerprint({"mean": mean, "cov": cov}), n, identity, mean, cov)


def measure(name: str, data: Tensor, extractor: Extractor) -> Reference:
    """The reference that data make: 8-bit images (n, C, H, W), or what else the extractor takes.

    Args:
        name: of the reference, for reports.
        data: the images, at least two.
        extractor: of their features.

    Raises:
        ValueError: for fewer than two.

    Examples:
        >>> from sgm_sde.evaluation.metrics.features import load_extractor
        >>> images = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
        >>> measure("two", images, load_extractor("pixels", (1, 2, 2))).mean.mul(255).round().tolist()
        [2.0, 3.0, 4.0, 5.0]
    """
    if len(data) < 2:
        raise ValueError(f"a reference needs at least 2 samples, {name} has {len(data)}")
    features = extractor(data)
    mean, cov = moments(features.double())
    identity = (extractor.name, extractor.hash)
    return Reference(name, fingerprint({"data": data}), len(data), identity, mean, cov, features)


def _statistics(path: Path, extractor: Extractor) -> Reference:
    reference = _read_statistics(path)
    name, digest = reference.extractor
    if (name, digest) != (extractor.name, extractor.hash):
        raise ValueError(
            f"{path} holds statistics of {name} ({digest[:12]}), the features are {extractor.name} "
            f"({extractor.hash[:12]})"
        )

    shapes = tuple(reference.mean.shape), tuple(reference.cov.shape)
    if shapes != ((extractor.dim,), (extractor.dim, extractor.dim)):
        raise ValueError(f"{path} holds statistics of shapes {shapes[0]} and {shapes[1]}")
    return reference


def _read_statistics(path: Path) -> Reference:
    """The reference in a file that `Reference.save` wrote, of whatever extractor it is."""
    with reading(path, "statistics of a reference"):
        contents = path.read_bytes()
        tensors = safetensors.torch.load(contents)
        mean = tensors["mean"].double()
        cov = tensors["cov"].double()

        header = _safetensors_header(contents)
        known: JsonObject = parse_json(header["__metadata__"]["reference"])
        name, digest = map(str, known["extractor"][:2])
        n = int(known["n"])
    return Reference(path.name, hashlib.sha256(contents).hexdigest(), n, (name, digest), mean, cov)


def _safetensors_header(contents: bytes) -> JsonMapping:
    """The JSON at the start of a safetensors file, after 8 bytes with its length."""
    length = int.from_bytes(contents[:8], "little")
    header: JsonMapping = parse_json(contents[8 : 8 + length])
    return header


def _data(path: Path, extractor: Extractor, shape: tuple[int, ...]) -> Tensor:
    data, _ = read_data(path)
    if extractor.images != (data.dtype == torch.uint8):
        wanted = "8-bit images (uint8)" if extractor.images else "floating-point samples"
        raise ValueError(f"{path} must hold {wanted} for the features {extractor.name}, got {data.dtype}")

    if extractor.images and len(shape) == 3:
        data = _channels_first(data, shape)
    if data.shape[1:] != shape:
        raise ValueError(f"{path} holds samples of shape {tuple(data.shape[1:])}, the model's have {shape}")
    return data


def _channels_first(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (n, H, W, C) or, of one channel, (n, H, W) as (n, C, H, W); others as they are."""
    channels, height, width = shape
    found = images.shape[1:]
    if found == shape:
        return images
    if channels == 1 and found in ((height, width), (height, width, 1)):
        return images.reshape(-1, *shape)
    if found == (height, width, channels):
        return images.permute(0, 3, 1, 2).contiguous()
    return images


# Data by name, in [-1, 1], and statistics by name, with the name of their extractor.
SHIPPED: dict[str, Callable[[], Tensor]] = {
    "digits-held-out": lambda: digits_data("held_out")[0],
    "digits-train": lambda: digits_data("train")[0],
}
STATISTICS: dict[str, tuple[str, Callable[[], tuple[Tensor, Tensor, int]]]] = {
    "fashion-test": (FASHION, lambda: load_fashion_statistics("test")),
    "fashion-train": (FASHION, lambda: load_fashion_statistics("train")),
}
