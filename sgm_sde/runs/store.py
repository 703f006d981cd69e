"""A folder of results that can be interrupted at any moment and resumed.

    FOLDER/manifest.json        the settings, the versions and, once all is there, the SHA-256 of every shard
    FOLDER/NAME.safetensors     one shard: tensors, and in its header its name, its run, and its own checksum

Every file appears whole or not at all: it is written beside its place, flushed to the disk and renamed. A shard's
header holds the SHA-256 of the file (taken with zeros in the place of the checksum), the shard's name, and the digest
of the settings and versions it was made with. So a shard can be trusted without any other file, and is refused in
another's place or another run's folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import safetensors.torch
import torch
from torch import Tensor

from sgm_sde._utils.checks import LONGEST, described
from sgm_sde._utils.files import JsonMapping, JsonObject, folder_to_write, readable
from sgm_sde._utils.lock import Lock
from sgm_sde._version import __version__
from sgm_sde.engine.noise import VERSION as NOISE
from sgm_sde.identity import checksum, disagreement

__all__ = ["Entry", "Store", "read_manifest", "read_run", "read_shard"]

MANIFEST = "manifest.json"
LOCK = ".lock"
SUFFIX = ".safetensors"
MADE_OF = ("samples.png", "samples.npz", "png")  # what is made of the shards, in the same folder
FORMAT = "sgm_sde results 2"
_UNSEALED = "0" * 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_TEMPORARY = re.compile(rf"\.(manifest\.json|{_NAME.pattern}\.safetensors)\.[0-9a-f]{{8}}\.tmp")


@dataclass(frozen=True)
class Entry:
    """Metadata of a complete shard of this run.

    Attributes:
        sha256: of its file.
        bytes: size of its file.
        info: what else was saved with it.

    Examples:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp(), {"seed": 0}) as store:
        ...     entry = store.save("a", {"x": torch.zeros(2)}, {"nfe": 5})
        >>> len(entry.sha256), entry.info
        (64, {'nfe': 5})
    """

    sha256: str
    bytes: int
    info: JsonObject


class Store:
    """A folder of results under one set of settings, open for writing.

    The folder is made if absent. If it was made before with the same settings and versions, what is there counts; with
    others it is refused. Settings that were measured (`identity.measured`) may differ within their tolerance. While it
    is open, no other run may write to it; reading is always allowed (`read_manifest`, `read_shard`). Several processes
    of one run share the folder: one opens it with `shared=True`, the others `join`.

    Args:
        folder: where.
        settings: what the results depend on, as JSON values.
        growing: names of settings that may be more than before, such as a number of samples: shards stay valid.
        notes: what else the manifest says from the start, as JSON values; no part of the settings.
        shared: let other processes of this run join.
        apart: open it for one of several processes that know nothing of one another, each with shards of its own.

    Raises:
        ValueError: for other settings than the folder's, with the difference; a folder with other things in it; or
            settings that are no JSON.
        BlockingIOError: while another run writes to the folder.
        OSError: if the folder cannot be made or written to.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Store(folder, {"seed": 0}) as store:
        ...     if not store.has("a"):
        ...         entry = store.save("a", {"x": torch.zeros(2)}, {"nfe": 5})
        ...     store.load("a"), store.info("a")
        ({'x': tensor([0., 0.])}, {'nfe': 5})
        >>> Store(folder, {"seed": 1})
        Traceback (most recent call last):
        ...
        ValueError: ... was made with other settings: seed = 0 there, 1 now. Give another folder, or delete that one
    """

    def __init__(
        self,
        folder: Path | str,
        settings: JsonMapping,
        *,
        growing: Sequence[str] = (),
        notes: JsonMapping | None = None,
        shared: bool = False,
        apart: bool = False,
    ) -> None:
        self._describe(folder, settings, growing, notes)
        missing = _missing(self.folder)
        folder_to_write(self.folder)
        with _in_words(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder, shared=apart)
        self._owner = not apart
        self._made = () if shared or apart else missing
        try:
            self._open()
            if shared:
                with _in_words(self.folder):
                    self._lock.share()
        except BaseException:
            self._close(refused=True)
            raise

    @classmethod
    def join(cls, folder: Path | str, settings: JsonMapping, *, growing: Sequence[str] = ()) -> Store:
        """The store that another process of this run has opened with `shared=True` and the same settings."""
        store = cls.__new__(cls)
        store._describe(folder, settings, growing, None)
        store._adopt(read_manifest(store.folder))
        store._lock = _locked(store.folder, shared=True)
        store._owner = False
        return store

    def _describe(
        self,
        folder: Path | str,
        settings: JsonMapping,
        growing: Sequence[str],
        notes: JsonMapping | None,
    ) -> None:
        self.folder = readable(folder)
        self._growing = tuple(growing)
        self._contents: JsonObject = {"format": FORMAT, "settings": _plain(settings), "versions": versions()}
        if notes is not None:
            self._contents["notes"] = _plain(notes)
        if growing:
            self._contents["growing"] = list(growing)
        self._run = _run_digest(self._contents)
        self._listed: dict[str, str] = {}  # checksums of a manifest that is complete

    def _open(self) -> None:
        found = _manifest(self.folder / MANIFEST)
        if found is not None:
            same = self._adopt(found)
        else:
            self._refuse_strangers()
            same = False
        if self._owner:
            for path in self.folder.glob(".*.tmp"):  # left by a run that was killed
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        if not same:
            self._write(MANIFEST, _pretty(self._contents))

    def _adopt(self, found: JsonObject) -> bool:
        """Take over the folder's settings and measurements; returns True if its manifest stays as it is."""
        _refuse_others(self.folder, found, self._contents, self._growing)
        settings = self._contents["settings"]
        grown = {name: settings[name] for name in self._growing}
        same = all(found["settings"].get(name) == value for name, value in grown.items())
        if not same and "shards" in found:
            self._refuse_fewer(found["settings"], grown)

        self._contents["settings"] = {**found["settings"], **grown}
        self._run = _run_digest(self._contents)
        if same:
            self._listed = {name: entry["sha256"] for name, entry in found.get("shards", {}).items()}
        return same

    def _refuse_fewer(self, found: JsonMapping, wanted: JsonMapping) -> None:
        """Refuse to make a complete run smaller."""
        for name, value in wanted.items():
            before = found.get(name, value)
            if not value >= before:
                raise ValueError(
                    f"{self.folder} is complete with {name} = {before}, which may grow, and {name} = {value} was asked "
                    f"for: give another folder, or delete that one"
                )

    def _refuse_strangers(self) -> None:
        for path in self.folder.iterdir():
            if path.name in (LOCK, MANIFEST, *MADE_OF) or _TEMPORARY.fullmatch(path.name):
                continue
            own = path.suffix == SUFFIX and (_verified(path) is None or _verified(path, self._run) is not None)
            if not own:
                raise ValueError(
                    f"{self.folder} holds {path.name}, which is not of this run: give another folder, or delete it"
                )

    @property
    def notes(self) -> JsonObject:
        """Notes in the manifest, beside the settings."""
        notes: JsonObject = self._contents.get("notes", {})
        return notes

    def require_same(self, folder: Path | str, manifest: JsonMapping) -> None:
        """Raise ValueError, with the difference, unless another folder's manifest is of the same run.

        Raises:
            ValueError: for another run, with the difference.
        """
        _refuse_others(readable(folder), manifest, self._contents, self._growing)

    def take_over(self, folder: Path | str, manifest: JsonMapping, name: str) -> Entry | None:
        """A shard from another folder of the same run, copied here; None where it is not there, or damaged.

        Raises:
            OSError: for a file that is there and cannot be read.
        """
        path = readable(folder) / self.path(name).name
        if _verified(path, _run_digest(manifest)) is None:
            return None
        return self.save(name, *read_shard(path))

    def path(self, name: str) -> Path:
        """The file of a shard, there or not.

        Raises:
            ValueError: for a name that is no file name.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"a shard's name is made of letters, digits and . _ + -, got {described(name)}")
        return self.folder / f"{name}{SUFFIX}"

    def find(self, name: str) -> Entry | None:
        """Metadata of a shard; None unless it is there, complete, undamaged, under its own name and of this run.

        Raises:
            OSError: for a file that is there and cannot be read.
        """
        verified = _verified(self.path(name), self._run)
        if verified is None:
            return None
        data, header = verified
        sha256 = hashlib.sha256(data).hexdigest()
        if self._listed.get(self.path(name).name, sha256) != sha256:
            return None  # a manifest that is complete was written for another
        return Entry(sha256, len(data), header["info"])

    def has(self, name: str) -> bool:
        """True if a shard is there, whole, undamaged, under its own name and of this run."""
        return self.find(name) is not None

    def save(self, name: str, tensors: Mapping[str, Tensor], info: JsonMapping | None = None) -> Entry:
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
        plain = _plain({} if info is None else info)
        header = {"sha256": _UNSEALED, "run": self._run, "name": name, "info": plain}
        cpu_float64 = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        data: bytes = safetensors.torch.save(cpu_float64, {"sgm_sde": json.dumps(header)})
        seal = hashlib.sha256(data).hexdigest()
        data = data.replace(_UNSEALED.encode(), seal.encode(), 1)
        self._write(path.name, data)
        self._listed.pop(path.name, None)
        return Entry(hashlib.sha256(data).hexdigest(), len(data), plain)

    def remove(self, name: str) -> None:
        """Remove a shard, if it is there."""
        with _in_words(path := self.path(name)):
            path.unlink(missing_ok=True)

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of a shard.

        Raises:
            ValueError: if it is not there, damaged, or another run's or shard's.
        """
        return read_shard(self.path(name), self._run)[0]

    def info(self, name: str) -> JsonObject:
        """Further metadata of a shard.

        Raises:
            ValueError: if it is not there, damaged, or another run's or shard's.
        """
        return read_shard(self.path(name), self._run)[1]

    def names(self) -> Iterator[str]:
        """The shards' names, in the order of their numbers, damaged ones included."""
        found = (path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"*{SUFFIX}"))
        return iter(sorted(found, key=in_order))

    def finish(self, names: Iterable[str] | Mapping[str, Entry], result: JsonMapping | None = None) -> None:
        """Write the manifest of a folder that is complete: the checksums of the shards named, and what came of them.

        Args:
            names: of the shards; with what `find` or `save` returned for each, they are not read again.
            result: what came of them, as JSON values.

        Raises:
            ValueError: if a shard is missing or damaged.
            OSError: if it cannot be written.
        """
        shards = {}
        for name in names:
            path = self.path(name)
            entry = names[name] if isinstance(names, Mapping) else self.find(name)
            if entry is None or not path.is_file() or path.stat().st_size != entry.bytes:
                raise ValueError(f"{path} is missing or damaged: run the same command again")
            shards[path.name] = {"sha256": entry.sha256, "bytes": entry.bytes}

        contents = {key: value for key, value in self._contents.items() if key != "notes"}
        contents["shards"] = shards
        if result is not None:
            contents["result"] = _plain(result)
        self._write(MANIFEST, _pretty(contents))

    def close(self) -> None:
        """Let other runs write to the folder; settings under which nothing was saved are forgotten."""
        self._close(refused=False)

    def _close(self, *, refused: bool) -> None:
        if self._lock is not None:
            if self._owner:
                nothing = not any(self.folder.glob(f"*{SUFFIX}"))
                if nothing:
                    (self.folder / MANIFEST).unlink(missing_ok=True)
                self._lock.forget()
                if nothing or refused:
                    self._remove()
            self._lock.release()
            self._lock = None

    _lock: Lock | None = None
    _made: tuple[Path, ...] = ()

    def _remove(self) -> None:
        """Remove lock and folders that were made for this run, as far as these hold nothing else."""
        with contextlib.suppress(OSError):
            for path in self._made:
                remove = Path.unlink if path.name == LOCK else Path.rmdir
                remove(path)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, name: str, data: bytes) -> None:
        if self._lock is None:
            raise ValueError(f"the store of {self.folder} is closed")
        if self.folder.is_dir() and not self._lock.is_in_place():
            raise OSError(
                f"{self.folder / LOCK} was deleted while this run was writing, so that another one may write there: "
                f"what was complete before stays, and the same command goes on from there"
            )
        path = self.folder / name
        with _in_words(path):
            write_atomically(path, data)


def versions() -> dict[str, str]:
    """Versions of the software that results depend on."""
    return {"sgm_sde": __version__, "torch": torch.__version__, "noise": NOISE}


def read_manifest(folder: Path | str) -> JsonObject:
    """The manifest of a folder: its settings and versions; with `shards` and `result` once it is complete.

    Raises:
        ValueError: if there is none, it is damaged, or of another version of the format.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Store(folder, {"seed": 0}) as store:
        ...     entry = store.save("a", {"x": torch.zeros(2)})
        ...     store.finish({"a": entry}, {"mean": 0.0})
        >>> manifest = read_manifest(folder)
        >>> manifest["settings"], manifest["result"], list(manifest["shards"])
        ({'seed': 0}, {'mean': 0.0}, ['a.safetensors'])
    """
    folder = readable(folder)
    found = _manifest(folder / MANIFEST)
    if found is None:
        raise ValueError(f"{folder} holds no readable {MANIFEST}")
    _require_format(folder, found)
    return found


def read_shard(path: Path | str, run: str | None = None) -> tuple[dict[str, Tensor], JsonObject]:
    """The tensors of a shard, and what else is known of it.

    Args:
        path: its file.
        run: the digest of the run that it has to be of; any if not given.

    Raises:
        ValueError: if it is not there, does not agree with its checksum, or was made under another name or in another
            run.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Store(folder, {"seed": 0}) as store:
        ...     entry = store.save("a", {"x": torch.zeros(2)}, {"nfe": 5})
        >>> read_shard(Path(folder) / "a.safetensors")
        ({'x': tensor([0., 0.])}, {'nfe': 5})
    """
    tensors, info, _ = _read(readable(path), run)
    return tensors, info


def _read(path: Path, run: str | None) -> tuple[dict[str, Tensor], JsonObject, str]:
    verified = _verified(path)
    if verified is None:
        raise ValueError(f"{path} is {'damaged' if path.exists() else 'not there'}")
    data, header = verified
    if header["name"] != path.name.removesuffix(SUFFIX):
        raise ValueError(f"{path} is the shard {header['name']!r} under another name")
    if run not in (None, header["run"]):
        raise ValueError(f"{path} is a shard of another run")
    return safetensors.torch.load(data), header["info"], hashlib.sha256(data).hexdigest()


def read_run(folder: Path | str) -> tuple[JsonObject, Iterator[tuple[dict[str, Tensor], JsonObject]]]:
    """The manifest of a complete run, and its shards in the order of their numbers, each checked against the manifest.

    Raises:
        ValueError: if the run is not complete; while reading, for a shard that is missing, damaged, another's, or not
            what the manifest says.

    Examples:
        >>> import tempfile
        >>> from sgm_sde.runs.distributed import sample
        >>> report = sample("digits", 3, tempfile.mkdtemp(), batch=2, nfe=3, device="cpu")
        >>> manifest, shards = read_run(report.folder)
        >>> [tensors["x"].shape[0] for tensors, info in shards]
        [2, 1]
    """
    folder = readable(folder)
    manifest = read_manifest(folder)
    shards = manifest.get("shards")
    if shards is None:
        raise ValueError(f"the run of {folder} is not complete: start it again with the same command")
    for name in shards:
        if not (name.endswith(SUFFIX) and _NAME.fullmatch(name)):
            raise ValueError(f"the manifest of {folder} names {name!r}, which is no shard in it")

    run = _run_digest(manifest)

    def read() -> Iterator[tuple[dict[str, Tensor], JsonObject]]:
        for name in sorted(shards, key=in_order):
            path = folder / name
            tensors, info, sha256 = _read(path, run)
            if sha256 != shards[name]["sha256"]:
                raise ValueError(f"{path} is not the shard that the manifest was written for")
            yield tensors, info

    return manifest, read()


def in_order(name: str) -> tuple[int, str]:
    """Key that sorts names that are numbers of at least five digits by number."""
    return len(name), name


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash, too, it is complete or absent."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)  # which a full disk does not name, and others as the temporary one
        raise


class _in_words:
    """Errors of the file system in the user's words: which folder, and what to do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BlockingIOError):
            raise BlockingIOError(
                f"another run is writing to {self.path} ({error}): wait for it, or give another folder"
            ) from None
        if isinstance(error, OSError):
            raise OSError(
                f"cannot write {self.path}: {(error.strerror or str(error)).lower()}; what was complete before stays, "
                f"and the same command goes on from there"
            ) from None


def _missing(folder: Path) -> tuple[Path, ...]:
    """The lock of a folder, the folder, and those around it, as far as they are not there."""
    return tuple(path for path in (folder / LOCK, folder, *folder.parents) if not path.exists())


def _locked(folder: Path, *, shared: bool) -> Lock:
    with _in_words(folder):
        return Lock(folder / LOCK, shared=shared)


def _run_digest(contents: JsonMapping) -> str:
    """Digest of a run's settings and versions, without those that may grow."""
    growing = contents.get("growing", ())
    settings = {name: value for name, value in contents["settings"].items() if name not in growing}
    return checksum({"format": contents["format"], "settings": settings, "versions": contents["versions"]})


def _plain(values: JsonMapping) -> JsonObject:
    """The values as they come back from JSON."""
    try:
        plain: JsonObject = json.loads(json.dumps(values, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings and info must be JSON values: {error}, in {values!r}") from None
    return plain


def _pretty(contents: JsonMapping) -> bytes:
    body = {**contents, "sha256": checksum(contents)}
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _manifest(path: Path) -> JsonObject | None:
    """The contents of a manifest; None if it is missing, does not agree with its checksum, or is no manifest."""
    try:
        contents: JsonObject = json.loads(path.read_bytes())
        seal = contents.pop("sha256")
        intact = seal == checksum(contents) and isinstance(contents["format"], str)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return contents if intact else None


def _require_format(folder: Path, found: JsonMapping) -> None:
    """Refuse a manifest of another layout, whatever else it holds."""
    if found["format"] != FORMAT:
        raise ValueError(
            f"{folder} was written by another version of sgm_sde: its format is {found['format']!r}, here it is "
            f"{FORMAT!r}. Give another folder, or delete that one"
        )

    kinds = {"settings": dict, "versions": dict, "shards": dict, "result": dict, "notes": dict, "growing": list}
    missing = [name for name in ("settings", "versions") if name not in found]
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name, kind()), kind)]
    if not missing and not wrong and not all(map(_is_listed, found.get("shards", {}).values())):
        wrong = ["shards"]
    if missing or wrong:
        raise ValueError(f"the manifest of {folder} lacks its {', '.join(missing or wrong)}")


def _is_listed(entry: object) -> bool:
    """True for a shard's entry in a manifest."""
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str)


def _refuse_others(folder: Path, found: JsonMapping, wanted: JsonMapping, growing: Sequence[str]) -> None:
    _require_format(folder, found)
    before = _identity(found)
    now = _identity(wanted)
    names = sorted((before.keys() | now.keys()) - set(growing))
    differences = [text for name in names if (text := _difference(name, before, now))]

    grew = list(found.get("growing", []))
    if grew != list(growing):
        differences.append(f"growing = {grew} there, {list(growing)} now")
    if differences:
        raise ValueError(
            f"{folder} was made with other settings: {'; '.join(differences)}. Give another folder, or delete that one"
        )


def _identity(contents: JsonMapping) -> JsonObject:
    """Settings and versions of a manifest by their path."""
    return {**_flat(contents["settings"]), **_flat(contents["versions"], "version of ")}


def _difference(name: str, before: JsonMapping, now: JsonMapping) -> str:
    """The difference between two values by name, in words; nothing where they agree, measurements to rounding."""
    if name in before and name in now and before[name] == now[name]:
        return ""

    distance = disagreement(before.get(name), now.get(name))
    if distance is None:  # these are no measurements
        there, here = (_shown(values[name]) if name in values else "absent" for values in (before, now))
        return f"{name} = {there} there, {here} now"
    return f"{name} differ by {distance:.2g} of their size" if distance else ""


def _shown(value: object) -> str:
    """The JSON of a value, of a long one its beginning."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def _flat(values: JsonMapping, prefix: str = "") -> JsonObject:
    """The values by their path; measurements stay whole."""
    flat: JsonObject = {}
    for key, value in values.items():
        branch = isinstance(value, dict) and value and value.keys() != {"values", "within"} and prefix.count(".") < 9
        flat.update(_flat(value, f"{prefix}{key}.") if branch else {f"{prefix}{key}": value})
    return flat


def _parse(data: bytes) -> tuple[JsonObject, int]:
    """Metadata in a shard's header, and the offset of its end.

    Raises:
        ValueError: for bytes that are no shard's.
    """
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        header: JsonObject = json.loads(json.loads(data[8:end])["__metadata__"]["sgm_sde"])
        kinds = {"sha256": str, "run": str, "name": str, "info": dict}
        if not all(isinstance(header[key], kind) for key, kind in kinds.items()):
            raise KeyError("sha256")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a shard: {error}") from None
    return header, end


def _verified(path: Path, run: str | None = None) -> tuple[bytes, JsonObject] | None:
    """A shard's bytes and header if they agree with their checksum, and with the file's name and the run if one is
    given."""
    try:
        data = path.read_bytes()
        header, end = _parse(data)
    except (OSError, ValueError):
        return None
    digest = hashlib.sha256(data[:end].replace(header["sha256"].encode(), _UNSEALED.encode(), 1))
    digest.update(memoryview(data)[end:])
    if digest.hexdigest() != header["sha256"]:
        return None
    if run is not None and (header["run"] != run or header["name"] != path.name.removesuffix(SUFFIX)):
        return None
    return data, header
