"""Samples as pictures: a grid to look at, and the files that other programs measure."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, instance_of, one_of, range_of, require_values
from sgm_sde._utils.files import readable
from sgm_sde.data.images import to_uint8
from sgm_sde.runs.store import read_run, write_atomically

__all__ = ["export", "save_grid", "write_grid"]

FORMATS = ("png", "npz")
SHOWN = 64  # samples in a grid


def write_grid(folder: Path | str, black_white: tuple[float, float], columns: int = 8) -> Path:
    """Write the first samples of a complete run as one picture, `samples.png` beside the shards.

    Args:
        folder: of the run.
        black_white: the values of black and white in samples.
        columns: of the picture.

    Raises:
        ValueError: for samples that are not images of one or three channels, and a run that is not complete.
        ImportError: without Pillow.

    Examples:
        >>> import tempfile
        >>> from sgm_sde.runs.distributed import sample
        >>> report = sample("digits", 3, tempfile.mkdtemp(), batch=3, nfe=3, device="cpu")
        >>> write_grid(report.folder, (-1.0, 1.0)).name
        'samples.png'
    """
    pillow = _pillow()
    rows: list[np.ndarray] = []
    for images in _images(folder, black_white):
        rows += list(images)
        if len(rows) >= SHOWN:
            break

    path = Path(folder) / "samples.png"
    write_atomically(path, _png(pillow, _sheet(rows[:SHOWN], columns)))
    return path


def save_grid(x: Tensor, path: Path | str, data_range: tuple[float, float] = (-1.0, 1.0), columns: int = 8) -> Path:
    """Write samples as one picture, row by row, with lines of one pixel between them.

    Args:
        x: images (B, C, H, W) of one or three channels; what is not finite is black.
        path: of the picture, a PNG file.
        data_range: the values of black and white.
        columns: of the picture.

    Raises:
        ValueError: for samples that are not images of one or three channels, an invalid range or number of columns, and
            a name that does not end in .png.
        OSError: if it cannot be written, FileNotFoundError where there is no such folder.
        ImportError: without Pillow.

    Examples:
        >>> import tempfile
        >>> save_grid(torch.zeros(6, 1, 8, 8), Path(tempfile.mkdtemp()) / "grey.png", columns=3).name
        'grey.png'
    """
    pillow = _pillow()
    require_values("x", x, "(B, C, H, W)")
    path = _new_picture(path)
    data_range = range_of("data_range", data_range)
    columns = check_integer("columns", columns)
    if not are_images(tuple(x.shape[1:])) or not x.numel():
        raise ValueError(f"x must be images (B, C, H, W) of one or three channels, got {tuple(x.shape)}")

    images = list(_eight_bits(x.detach().cpu(), data_range))
    write_atomically(path, _png(pillow, _sheet(images, columns)))
    return path


def _new_picture(path: Path | str) -> Path:
    """The path of a PNG file in a folder that exists."""
    instance_of("path", path, str | Path, "the path of a picture")
    path = readable(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    return path


def _sheet(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Images (H, W, C) in rows, with white lines between them."""
    height, width, channels = images[0].shape
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + 1) - 1, columns * (width + 1) - 1, channels)
    sheet = np.full(shape, 255, np.uint8)
    for i, image in enumerate(images):
        top = i // columns * (height + 1)
        left = i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet


def export(folder: Path | str, kind: str, black_white: tuple[float, float]) -> Path:
    """Write all samples of a complete run as 8-bit images, for programs that measure them.

    - `"png"`: `png/000000.png` and so on, as torch-fidelity and clean-fid read a folder of pictures.
    - `"npz"`: `samples.npz` with `arr_0` (n, H, W, C) and, if there are any, labels as `arr_1`, as ADM's evaluation.

    Args:
        folder: of the run; the files are written into it.
        kind: `"png"` or `"npz"`.
        black_white: the values of black and white in samples.

    Raises:
        ValueError: for an unknown kind, samples that are not images of one or three channels, and a run that is not
            complete.
        ImportError: for pictures, without Pillow.

    Examples:
        >>> import tempfile
        >>> from sgm_sde.runs.distributed import sample
        >>> report = sample("digits", 3, tempfile.mkdtemp(), batch=3, nfe=3, device="cpu")
        >>> path = export(report.folder, "npz", (-1.0, 1.0))
        >>> path.name, np.load(path)["arr_0"].shape
        ('samples.npz', (3, 8, 8, 1))
    """
    folder = Path(folder)
    one_of("format", kind, FORMATS)
    return _export_npz(folder, black_white) if kind == "npz" else _export_png(folder, black_white)


def _export_npz(folder: Path, black_white: tuple[float, float]) -> Path:
    arrays = {"arr_0": np.concatenate(list(_images(folder, black_white)))}
    _, shards = read_run(folder)
    labels = [shard["y"].numpy() for shard, _ in shards if "y" in shard]
    if labels:
        arrays["arr_1"] = np.concatenate(labels)

    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type,unused-ignore]
    path = folder / "samples.npz"
    write_atomically(path, packed.getvalue())
    return path


def _export_png(folder: Path, black_white: tuple[float, float]) -> Path:
    pillow = _pillow()
    pictures = folder / "png"
    pictures.mkdir(exist_ok=True)
    number = 0
    for images in _images(folder, black_white):
        for image in images:
            (pictures / f"{number:06d}.png").write_bytes(_png(pillow, image))
            number += 1
    return pictures


def are_images(shape: tuple[int, ...]) -> bool:
    """True if samples of a shape (C, H, W) are images of one or three channels."""
    return len(shape) == 3 and shape[0] in (1, 3)


def _images(folder: Path | str, black_white: tuple[float, float]) -> Iterator[np.ndarray]:
    """The samples of a run shard by shard, (n, H, W, C), uint8."""
    for shard, _ in read_run(folder)[1]:
        x = shard["x"]
        if not are_images(tuple(x.shape[1:])):
            raise ValueError(f"samples of shape {tuple(x.shape[1:])} are no images of one or three channels")
        yield _eight_bits(x, black_white)


def _eight_bits(x: Tensor, black_white: tuple[float, float]) -> np.ndarray:
    finite = torch.where(x.isfinite(), x, torch.full_like(x, black_white[0]))  # a sample that failed is black there
    return to_uint8(finite, black_white).permute(0, 2, 3, 1).numpy()


def _png(pillow: Any, image: np.ndarray) -> bytes:
    packed = io.BytesIO()
    if image.shape[2] == 1:
        image = image[:, :, 0]
    pillow.fromarray(image).save(packed, "PNG")
    return packed.getvalue()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures are written with Pillow: pip install pillow") from error
    return Image
