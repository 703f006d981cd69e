"""A folder of results that may be interrupted at any moment and gone on with.

    FOLDER/manifest.json        the settings, the versions and, once all is there, the SHA-256 of every shard
    FOLDER/NAME.safetensors     one shard: tensors, and in its header what else is known of it and its own checksum

Every file appears whole or not at all: it is written beside its place, flushed to the disk and renamed. A shard's
header holds the SHA-256 of the file (taken with zeros in the place of the checksum) and that of the settings it was
made with, so that a shard can be trusted without any other file. Needs a system with `flock`: Linux, macOS.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sgm_sde._version import __version__

MANIFEST = "manifest.json"
LOCK = ".lock"
SUFFIX = ".safetensors"
FORMAT = "sgm_sde results 1"
_UNSEALED = "0" * 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


class Store:
    """A folder of results under one set of settings, open for writing.

    The folder is made if absent. If it was made before with the same settings and versions, what is there counts; with
    others it is refused. While it is open, no other run may write to it; reading is always allowed (`read_manifest`,
    `read_shard`). Several processes of one run share the folder: one opens it with `shared=True`, the others `join`.

    Args:
        folder: where.
        settings: what the results depend on, as JSON values.
        shared: let other processes of this run join.

    Raises:
        ValueError: for other settings than the folder's, with the difference; a folder with other things in it; or
            settings that are no JSON.
        BlockingIOError: while another run writes to the folder.
        OSError: if the folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Store(folder, {"seed": 0}) as store:
        ...     if not store.has("a"):
        ...         store.save("a", {"x": torch.zeros(2)}, {"nfe": 5})
        ...     store.load("a"), store.info("a")
        ({'x': tensor([0., 0.])}, {'nfe': 5})
        >>> Store(folder, {"seed": 1})
        Traceback (most recent call last):
        ...
        ValueError: ... was made with other settings: seed = 0 there, 1 now. Give another folder, or delete that one
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, Any], *, shared: bool = False) -> None:
        self._describe(folder, settings)
        with _in_words(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock, self._owner = _lock(self.folder, fcntl.LOCK_EX), True
        try:
            self._open()
            if shared:  # flock may let go in between, and then fails if another run took it
                _flock(self._lock, self.folder, fcntl.LOCK_SH)
        except BaseException:
            self.close()
            raise

    @classmethod
    def join(cls, folder: Path | str, settings: Mapping[str, Any]) -> Store:
        """The store that another process of this run has opened with `shared=True` and the same settings."""
        store = cls.__new__(cls)
        store._describe(folder, settings)
        _refuse_others(store.folder, read_manifest(store.folder), store._contents)
        store._lock, store._owner = _lock(store.folder, fcntl.LOCK_SH), False
        return store

    def _describe(self, folder: Path | str, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._contents = {"format": FORMAT, "settings": _plain(settings), "versions": versions()}
        self._digest = _checksum(self._contents)

    def _open(self) -> None:
        for path in self.folder.glob(".*.tmp"):  # left by a run that was killed
            path.unlink(missing_ok=True)
        found = _manifest(self.folder / MANIFEST)
        if found is not None:
            _refuse_others(self.folder, found, self._contents)
            return
        for path in self.folder.iterdir():
            if path.name in (LOCK, MANIFEST):
                continue
            header = _header(path) if path.suffix == SUFFIX else None
            if path.suffix != SUFFIX or (header is not None and header["settings"] != self._digest):
                raise ValueError(
                    f"{self.folder} holds {path.name}, which is not of this run: give another folder, or delete it"
                )
        self._write(MANIFEST, _pretty(self._contents))

    def path(self, name: str) -> Path:
        """The file of a shard, there or not.

        Raises:
            ValueError: for a name that is no file name.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"a shard's name is made of letters, digits and . _ + -, got {name!r}")
        return self.folder / f"{name}{SUFFIX}"

    def has(self, name: str) -> bool:
        """Whether a shard is there, whole, undamaged and made with these settings."""
        return _verified(self.path(name), self._digest) is not None

    def save(self, name: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> None:
        """Write a shard, whole or not at all; one that is there is replaced.

        Args:
            name: letters, digits and `. _ + -`.
            tensors: what to keep.
            info: what else is known of it, as JSON values.

        Raises:
            OSError: if it cannot be written, as when the disk is full; nothing is left of it then.
            ValueError: for a name that is no file name, or info that is no JSON.
        """
        path = self.path(name)
        header = {"sha256": _UNSEALED, "settings": self._digest, "info": _plain({} if info is None else info)}
        on_host = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        data: bytes = safetensors.torch.save(on_host, {"sgm_sde": json.dumps(header)})
        seal = hashlib.sha256(data).hexdigest()
        self._write(path.name, data.replace(_UNSEALED.encode(), seal.encode(), 1))

    def remove(self, name: str) -> None:
        """Remove a shard, if it is there."""
        with _in_words(path := self.path(name)):
            path.unlink(missing_ok=True)

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of a shard.

        Raises:
            ValueError: if it is not there or damaged.
        """
        return read_shard(self.path(name))[0]

    def info(self, name: str) -> dict[str, Any]:
        """What else is known of a shard.

        Raises:
            ValueError: if it is not there or damaged.
        """
        return read_shard(self.path(name))[1]

    def names(self) -> Iterator[str]:
        """The shards' names, in alphabetical order, damaged ones included."""
        return (path.name.removesuffix(SUFFIX) for path in sorted(self.folder.glob(f"*{SUFFIX}")))

    def finish(self, names: Iterable[str], result: Mapping[str, Any] | None = None) -> None:
        """Write the manifest of a folder that is complete: the checksums of the shards named, and what came of them.

        Raises:
            ValueError: if a shard is missing or damaged.
            OSError: if it cannot be written.
        """
        shards = {}
        for name in names:
            path = self.path(name)
            data = _verified(path, self._digest)
            if data is None:
                raise ValueError(f"{path} is missing or damaged: run the same command again")
            shards[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        contents = {**self._contents, "shards": shards}
        self._write(MANIFEST, _pretty(contents if result is None else {**contents, "result": _plain(result)}))

    def close(self) -> None:
        """Let other runs write to the folder; settings under which nothing was saved are forgotten."""
        if self._lock >= 0:
            if self._owner:
                if next(self.names(), None) is None:
                    (self.folder / MANIFEST).unlink(missing_ok=True)
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, name: str, data: bytes) -> None:
        if self._lock < 0:
            raise ValueError(f"the store of {self.folder} is closed")
        path = self.folder / name
        with _in_words(path):
            write_atomically(path, data)


def versions() -> dict[str, str]:
    """What numbers depend on beside the settings."""
    return {"sgm_sde": __version__, "torch": torch.__version__}


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a folder: its settings and versions; with `shards` and `result` once it is complete.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    found = _manifest(Path(folder) / MANIFEST)
    if found is None:
        raise ValueError(f"{folder} holds no readable {MANIFEST}")
    return found


def read_shard(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a shard, and what else is known of it.

    Raises:
        ValueError: if it is not there, or does not agree with its checksum.
    """
    path = Path(path)
    data = _verified(path)
    if data is None:
        raise ValueError(f"{path} is {'damaged' if path.exists() else 'not there'}")
    return safetensors.torch.load(data), _parse(data)["info"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment it is there whole or not at all, also after the machine went down."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _in_words:
    """Turns what the system says on writing into what it means."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise OSError(
                f"cannot write {self.path}: {(error.strerror or str(error)).lower()}; what was complete before stays, "
                f"and the same command goes on from there"
            ) from error


def _lock(folder: Path, kind: int) -> int:
    with _in_words(folder):
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _flock(lock, folder, kind)
    except BaseException:
        os.close(lock)
        raise
    if kind == fcntl.LOCK_EX:  # for the message that another run gets
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return lock


def _flock(lock: int, folder: Path, kind: int) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 200, 0).decode(errors="replace") or "a process"
        raise BlockingIOError(
            f"another run is writing to {folder} ({holder}): wait for it, or give another folder"
        ) from None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON."""
    try:
        plain: dict[str, Any] = json.loads(_dump(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings and info must be JSON values: {error}, in {values!r}") from None
    return plain


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, allow_nan=False)


def _checksum(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dump(contents).encode()).hexdigest()


def _pretty(contents: Mapping[str, Any]) -> bytes:
    body = {**contents, "sha256": _checksum(contents)}
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _manifest(path: Path) -> dict[str, Any] | None:
    """The contents of a manifest; None if it is missing or does not agree with its checksum."""
    try:
        contents: dict[str, Any] = json.loads(path.read_bytes())
        seal = contents.pop("sha256")
        return contents if seal == _checksum(contents) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _refuse_others(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    there, now = ({**_flat(c["settings"]), **_flat(c["versions"], "version of ")} for c in (found, wanted))
    differences = [
        f"{key} = {json.dumps(there[key]) if key in there else 'absent'} there, "
        f"{json.dumps(now[key]) if key in now else 'absent'} now"
        for key in sorted(there.keys() | now.keys())
        if key not in there or key not in now or there[key] != now[key]
    ]
    if found["format"] != wanted["format"]:
        differences.append(f"format = {found['format']!r} there, {wanted['format']!r} now")
    if differences:
        raise ValueError(
            f"{folder} was made with other settings: {'; '.join(differences)}. Give another folder, or delete that one"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return flat


def _parse(data: bytes) -> dict[str, Any]:
    """What a shard's header says beside its tensors.

    Raises:
        ValueError: for bytes that are no shard's.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["sgm_sde"])
        if not {"sha256", "settings", "info"} <= header.keys():
            raise KeyError("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a shard: {error}") from None
    return header


def _header(path: Path) -> dict[str, Any] | None:
    data = _verified(path)
    return None if data is None else _parse(data)


def _verified(path: Path, settings: str | None = None) -> bytes | None:
    """A shard's bytes if they agree with their checksum, and with the digest of the settings if one is given."""
    try:
        data = path.read_bytes()
        header = _parse(data)
        seal = str(header["sha256"])
        whole = hashlib.sha256(data.replace(seal.encode(), _UNSEALED.encode(), 1)).hexdigest() == seal
    except (OSError, ValueError):
        return None
    return data if whole and settings in (None, header["settings"]) else None
