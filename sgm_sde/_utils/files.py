"""Reading of untrusted files: their contents or one clear error, within a limit of memory."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import safetensors.numpy

from sgm_sde._utils.checks import described

LARGEST = 2**28  # bytes that a compressed file may expand to,
RATIO = 200  # or this many times its size, if that is more

# What JSON holds is known when it is read, and checked where it is used.
JsonObject: TypeAlias = dict[str, Any]
JsonMapping: TypeAlias = Mapping[str, Any]


@contextlib.contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Turn any error of a parser into a ValueError that names the file.

    Parsers of damaged files raise nearly anything: zip's BadZipFile, zlib's error, NotImplementedError for a flag,
    TokenError for a header of numpy, SyntaxError for a picture, RecursionError for nested JSON, MemoryError for a size
    that cannot be. All of them mean that the file is damaged.

    Raises:
        OSError: if the file cannot be opened or read, with its name.
        ValueError: for anything else.
    """
    readable(path)
    try:
        yield
    except OSError as error:
        if error.errno is None:  # what Pillow, gzip and zip say of contents
            raise ValueError(f"{path} holds no {what}: {_first_line(error)}") from None
        raise OSError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except (LookupError, TypeError, AttributeError) as error:
        lacks = f"it has no {error}" if isinstance(error, KeyError) else "its contents have another form"
        raise ValueError(f"{path} holds no {what}: {lacks}") from None
    except Exception as error:
        raise ValueError(f"{path} holds no {what}: {_first_line(error)}") from None


def folder_to_write(given: Path | str) -> Path:
    """A path that is a folder, or can become one.

    Raises:
        OSError: where it, or what it is to lie in, is a file, and for an empty text.
    """
    if given == "":
        raise NotADirectoryError("'' names no folder: give '.' for the one that this runs in")
    path = Path(given)
    there = next((place for place in (path, *path.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        raise NotADirectoryError(f"{path} is to be a folder, and {there if there != path else 'that'} is a file")
    return path


def file_to_write(given: Path | str) -> Path:
    """A path of a file that is there, or can be made.

    Raises:
        TypeError: for what is no path.
        OSError: where it is a folder, or is to lie in none.
    """
    path = readable(given)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    return path


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def most(path: Path) -> int:
    """Largest size in bytes that a compressed file may expand to."""
    return max(LARGEST, RATIO * path.stat().st_size)


def gunzip(path: Path) -> bytes:
    """The contents of a gzip file.

    Raises:
        ValueError: if they are more than a file of its size may hold.
    """
    limit = most(path)
    with gzip.open(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it expands to more than {limit} bytes")
    return data


def load_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of an npy file, whose header is checked against its size before memory is allocated.

    Raises:
        ValueError: for a header that promises more or fewer bytes than there are, or Python objects.
    """
    file = io.BytesIO(data)
    shape, fortran, dtype = _npy_header(file)
    count = math.prod(shape)
    start = file.tell()
    size = len(data) - start
    if count * dtype.itemsize != size:
        raise ValueError(f"its header promises {count} values of {dtype.itemsize} bytes, and there are {size} bytes")

    flat = np.frombuffer(data, dtype, count, start) if size else np.empty(0, dtype)
    return np.array(flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape))


def _npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first index runs fastest, and dtype."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"its npy version is {version}, not (1, 0) or (2, 0)")

    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    if any(n < 0 for n in shape):
        raise ValueError(f"its header promises the shape {shape}")
    return shape, fortran, dtype


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, by name.

    Raises:
        ValueError: for arrays that expand to more than a file of its size may hold, or are none.
    """
    limit = most(path)
    left = limit
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                data = member.read(left + 1)
            left -= len(data)
            if left < 0:
                raise ValueError(f"it expands to more than {limit} bytes")
            arrays[entry.filename.removesuffix(".npy")] = load_npy(data)
    return arrays


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npy, .npz or .safetensors file, by name; of an .npy file, under the name "x".

    Raises:
        ValueError: for a file of another kind, or one that is damaged.
        OSError: if it cannot be read.
    """
    with reading(path, "images"):
        if path.suffix == ".npy":
            return {"x": load_npy(path.read_bytes())}
        if path.suffix == ".npz":
            return load_npz(path)
        if path.suffix == ".safetensors":
            return dict(safetensors.numpy.load(path.read_bytes()))
        raise ValueError("its name must end in .npy, .npz or .safetensors")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, without NaN and infinities.

    Raises:
        ValueError: for a text that is none, or nested too deeply.
    """

    if not isinstance(text, str | bytes):
        raise ValueError(f"JSON is a text, got {described(text)}")

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def readable(path: Path | str) -> Path:
    """A file name as a `Path`; TypeError for what is none, ValueError for one that no file can have."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"the path of a file or folder is needed, got {described(path)}")
    if "\0" in str(path):
        raise ValueError(f"no file or folder has a NUL character in its name, got {str(path)!r}")
    return Path(path)
