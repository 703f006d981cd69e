"""Images from idx files, npz files or a folder."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

_IDX_NAMES = {"train": "train", "test": "t10k"}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


class Images(NamedTuple):
    """Images (N, C, H, W) as uint8 and their labels (N,) as int64, or None."""

    pixels: Tensor
    labels: Tensor | None

    def scaled(self) -> Tensor:
        """The images in [-1, 1]: v / 127.5 - 1."""
        return self.pixels.float() / 127.5 - 1


def read_idx(path: Path) -> Tensor:
    """Read a file in MNIST's idx format, compressed or not, as a uint8 tensor.

    Raises:
        ValueError: for a file that is not idx of unsigned bytes, or is shorter than its header says.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes: it begins with {raw[:4]!r}")
    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    values = torch.frombuffer(bytearray(raw[4 + 4 * rank :]), dtype=torch.uint8)
    if values.numel() != torch.Size(shape).numel():
        raise ValueError(f"{path} promises {shape} values and holds {values.numel()}")
    return values.reshape(shape)


def load_images(path: str | Path, split: Literal["train", "test"] = "train") -> Images:
    """Read images from a folder of idx files, an npz file, or a folder of pictures.

    - A folder with `train-images-idx3-ubyte` and `train-labels-idx1-ubyte` (test: `t10k-...`), `.gz` or not.
    - An npz file with arrays `x_train`, `y_train` (test: `x_test`, `y_test`) or, for either split, `images` and
      `labels`; uint8 of shape (N, H, W) or (N, H, W, C); labels may be absent.
    - A folder of pictures of one size, or a folder of such folders, one for each class, in alphabetical order; where
      it has the folders `train` and `test`, the split is looked for there. Needs Pillow.

    Raises:
        FileNotFoundError: where nothing of the kind is found.
        ValueError: for arrays of another type or shape, or pictures of several sizes.
        ImportError: for pictures without Pillow.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.suffix == ".npz":
        return _from_npz(path, split)
    stem = _IDX_NAMES[split]
    for suffix in ("", ".gz"):
        images = path / f"{stem}-images-idx3-ubyte{suffix}"
        if images.exists():
            labels = path / f"{stem}-labels-idx1-ubyte{suffix}"
            return Images(read_idx(images)[:, None], read_idx(labels).long() if labels.exists() else None)
    return _from_pictures(path / split if (path / split).is_dir() else path)


def _from_npz(path: Path, split: str) -> Images:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        names = ("images", "labels") if "images" in file.files else (f"x_{split}", f"y_{split}")
        if names[0] not in file.files:
            raise FileNotFoundError(f"{path} has neither 'images' nor {names[0]!r}, only {sorted(file.files)}")
        array = file[names[0]]
        labels = torch.from_numpy(file[names[1]]).long() if names[1] in file.files else None
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(f"{names[0]!r} must be uint8 (N, H, W) or (N, H, W, C), got {array.dtype} {array.shape}")
    pixels = torch.from_numpy(array)
    return Images(pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous(), labels)


def _from_pictures(folder: Path) -> Images:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install pillow") from error
    import numpy as np

    def pictures(where: Path) -> list[Path]:
        return sorted(file for file in where.iterdir() if file.suffix.lower() in _SUFFIXES)

    classes = sorted(sub for sub in folder.iterdir() if sub.is_dir())
    files = [(file, i) for i, sub in enumerate(classes) for file in pictures(sub)] or [
        (file, -1) for file in pictures(folder)
    ]
    if not files:
        raise FileNotFoundError(f"{folder} holds neither idx files nor pictures ({', '.join(sorted(_SUFFIXES))})")
    arrays: list[np.ndarray] = []
    for file, _ in files:
        with Image.open(file) as picture:
            array = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
        if arrays and array.shape != arrays[0].shape:
            raise ValueError(
                f"pictures differ in size or colour: {files[0][0]} {arrays[0].shape}, {file} {array.shape}"
            )
        arrays.append(array)
    pixels = torch.from_numpy(np.stack(arrays))
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.tensor([label for _, label in files]) if files[0][1] >= 0 else None)
