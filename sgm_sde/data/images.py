"""Images from idx files, files of arrays, or a folder of pictures, and from samples."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import instance_of, range_of, require_values
from sgm_sde._utils.files import gunzip, load_arrays, load_npz, readable, reading
from sgm_sde._utils.ranges import DARK, ENOUGH, refuse_other_range
from sgm_sde._utils.shapes import flat

if TYPE_CHECKING:
    from PIL.Image import Image

_IDX_NAMES = {"train": "train", "test": "t10k"}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}

# Pillow's modes of at most 8 bits a channel.
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA")


class Images(NamedTuple):
    """Images (N, C, H, W) as uint8 and their labels (N,) as int64, or None.

    Examples:
        >>> images = Images(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2), None)
        >>> images.scaled().flatten().tolist()
        [-1.0, 1.0]
    """

    pixels: Tensor
    labels: Tensor | None

    def scaled(self) -> Tensor:
        """The images in [-1, 1]: v / 127.5 - 1."""
        return self.pixels.float() / 127.5 - 1


def to_uint8(x: Tensor, data_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Samples as 8-bit images: `data_range` becomes 0..255, rounded, and what lies beyond is clipped.

    The one way from samples to images here, EDM's `(x * 127.5 + 128).clip(0, 255)` on [-1, 1]; never an image's own
    minimum and maximum.

    Args:
        x: samples (n, *).
        data_range: the values of black and white, 0 and 255.

    Raises:
        TypeError: for x that is not floating-point.
        ValueError: for an empty range, NaN in x, and 8-bit images of another range, which their values show.

    Examples:
        >>> to_uint8(torch.tensor([[-1.0, 0.0, 1.0, 3.0]])).tolist()
        [[0, 128, 255, 255]]
    """
    lo, hi = range_of("data_range", data_range)
    require_values("samples", x, "(n, *)")
    bad = flat(x.isnan()).any(1)
    if bool(bad.any()):
        raise ValueError(f"samples must not be NaN, got some in {int(bad.sum())} of {len(x)} samples")
    refuse_other_range("samples", x, (lo, hi))
    return ((x - lo) * (255 / (hi - lo)) + 0.5).clamp(0, 255).to(torch.uint8)


def read_idx(path: Path) -> Tensor:
    """Read a file in MNIST's idx format, compressed or not, as a uint8 tensor.

    Raises:
        ValueError: for a file that is not idx of unsigned bytes, or is shorter than its header says.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "idx"
        >>> count = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))  # bytes, of rank 1, 3 of them
        >>> read_idx(path)
        tensor([7, 8, 9], dtype=torch.uint8)
    """
    with reading(path, "idx data"):
        raw = gunzip(path) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes: it begins with {raw[:4]!r}")

    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    values = raw[4 + 4 * rank :]
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} promises {shape} values and holds {len(values)}")
    if not values:
        return torch.empty(shape).byte()
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).reshape(shape)


def load_images(path: str | Path, split: Literal["train", "test"] = "train") -> Images:
    """Read images from a folder of idx files, an npz file, or a folder of pictures.

    - A folder with `train-images-idx3-ubyte` and `train-labels-idx1-ubyte` (test: `t10k-...`), `.gz` or not.
    - An npz file with arrays `x_train`, `y_train` (test: `x_test`, `y_test`) or, for either split, `images` and
      `labels`; uint8 of shape (N, H, W) or (N, H, W, C); labels may be absent.
    - A folder of pictures of one size, or a folder of such folders, one for each class, in alphabetical order; where
      it has the folders `train` and `test`, the split is looked for there. Needs Pillow.

    Raises:
        FileNotFoundError: where nothing of the kind is found.
        ValueError: for arrays of another type or shape, images of 0 and 1 or a few levels more alone, labels that are
            not one a image, pictures of several sizes, of more than 8 bits a channel or not opaque, and files that are
            damaged.
        ImportError: for pictures without Pillow.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.npz"
        >>> np.savez(path, images=np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4), labels=np.array([3, 1]))
        >>> images = load_images(path)
        >>> images.pixels.shape, images.labels
        (torch.Size([2, 1, 4, 4]), tensor([3, 1]))
    """
    instance_of("path", path, str | Path, "a path")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.suffix == ".npz":
        return _from_npz(path, split)

    stem = _IDX_NAMES[split]
    for suffix in ("", ".gz"):
        images = path / f"{stem}-images-idx3-ubyte{suffix}"
        if images.exists():
            return _from_idx(images, path / f"{stem}-labels-idx1-ubyte{suffix}")
    of_split = path / split
    return _from_pictures(of_split if of_split.is_dir() else path)


def _from_idx(images: Path, labels: Path) -> Images:
    pixels = read_idx(images)
    if pixels.ndim != 3:
        raise ValueError(f"{images} holds an array of shape {tuple(pixels.shape)}, not images (N, H, W)")
    return _labelled(pixels[:, None], read_idx(labels) if labels.exists() else None, images)


def _from_npz(path: Path, split: str) -> Images:
    with reading(path, "arrays"):
        arrays = load_npz(path)
    plain = "images" in arrays
    image_name = "images" if plain else f"x_{split}"
    label_name = "labels" if plain else f"y_{split}"
    if image_name not in arrays:
        raise FileNotFoundError(f"{path} has neither 'images' nor {image_name!r}, only {sorted(arrays)}")

    images = arrays[image_name]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"{image_name!r} must be uint8 (N, H, W) or (N, H, W, C), got {images.dtype} {images.shape}")
    labels = _integers(arrays[label_name], label_name) if label_name in arrays else None
    return _labelled(_channels_first(images), labels, path)


def _integers(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name!r} must be integers, got {array.dtype} {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def _channels_first(array: np.ndarray) -> Tensor:
    """Images (N, C, H, W) from (N, H, W) or (N, H, W, C)."""
    pixels = torch.from_numpy(array)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _labelled(pixels: Tensor, labels: Tensor | None, path: Path) -> Images:
    """Images with a label each."""
    if labels is not None and labels.shape != pixels.shape[:1]:
        raise ValueError(f"{path}: {len(pixels)} images need as many labels, got the shape {tuple(labels.shape)}")
    return _images(pixels, None if labels is None else labels.long(), path)


def _images(pixels: Tensor, labels: Tensor | None, path: Path) -> Images:
    """Images that use their eight bits."""
    most = int(pixels.max()) if len(pixels) else 0
    if 0 < most < DARK and pixels.numel() >= ENOUGH:
        raise ValueError(
            f"{path}: the images are 0 to {most} alone, and 8-bit ones go to 255: multiply them, so that white is 255"
        )
    return Images(pixels, labels)


def _eight_bits(picture: Image) -> Image:
    """A picture as grey or RGB, where that loses nothing."""
    if picture.mode not in _GREY + _COLOUR:
        raise ValueError(f"its mode is {picture.mode!r}; images are 8-bit grey or RGB: convert it as you mean it")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("LA" if picture.mode in _GREY else "RGBA")
        if np.asarray(picture.getchannel("A")).min(initial=255) < 255:
            raise ValueError("it is not opaque: put it on a background first")
    return picture.convert("L" if picture.mode in _GREY else "RGB")


def _from_pictures(folder: Path) -> Images:
    files, labels = _by_class(folder)
    files = files or _pictures(folder)
    if not files:
        raise FileNotFoundError(f"{folder} holds neither idx files nor pictures ({', '.join(sorted(_SUFFIXES))})")

    arrays: list[np.ndarray] = []
    for file in files:
        array = _read_picture(file)
        if arrays and array.shape != arrays[0].shape:
            raise ValueError(f"pictures differ in size or colour: {files[0]} {arrays[0].shape}, {file} {array.shape}")
        arrays.append(array)
    pixels = _channels_first(np.stack(arrays))
    return _images(pixels, torch.tensor(labels) if labels else None, folder)


def _by_class(folder: Path) -> tuple[list[Path], list[int]]:
    """Pictures in the folders of a folder, one for each class, and their labels."""
    files: list[Path] = []
    labels: list[int] = []
    classes = sorted(sub for sub in folder.iterdir() if sub.is_dir())
    for i, sub in enumerate(classes):
        of_class = _pictures(sub)
        files += of_class
        labels += [i] * len(of_class)
    return files, labels


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)


def _read_picture(file: Path) -> np.ndarray:
    """A picture as an array (H, W) or (H, W, 3) of uint8."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install pillow") from error

    with reading(file, "picture"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as picture:
            return np.asarray(_eight_bits(picture))


def read_data(path: Path | str) -> tuple[Tensor, Tensor | None]:
    """Images, and their labels where the file has any, from a .npy, .npz or .safetensors file.

    A file of several arrays has the images as "x" and the labels as "y"; an .npy file, and one of a single array, has
    images only.

    Raises:
        ValueError: for a file of another kind, or without images.
        OSError: if it cannot be read.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.npz"
        >>> np.savez(path, x=np.zeros((2, 1, 4, 4), dtype=np.uint8), y=np.array([3, 1]))
        >>> x, y = read_data(path)
        >>> x.shape, y
        (torch.Size([2, 1, 4, 4]), tensor([3, 1]))
    """
    path = readable(path)
    arrays = load_arrays(path)
    if len(arrays) == 1:
        arrays = {"x": next(iter(arrays.values()))}
    if "x" not in arrays:
        raise ValueError(f"{path} has no array 'x' for the images, but {', '.join(map(repr, sorted(arrays)))}")

    images = _tensor(arrays["x"], f"'x' of {path}")
    labels = _tensor(arrays["y"], f"'y' of {path}") if "y" in arrays else None
    return images, labels


def _tensor(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.int64)  # torch does little with other unsigned numbers
    return torch.from_numpy(np.ascontiguousarray(array))
