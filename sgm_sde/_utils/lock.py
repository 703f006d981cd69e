"""A lock on a file that ends with the process: shared or exclusive by `flock`, exclusive alone on Windows."""

from __future__ import annotations

import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

_FAR = 2**30  # Windows locks bytes, which nobody else can read then: one beyond what is written


class Lock:
    """An open lock file, which says who holds it.

    On Windows the first process of a run holds the lock for all of them.

    Args:
        path: the file; made if absent, never followed if it is a link.
        shared: whether others may hold it as well, if they share it.

    Raises:
        BlockingIOError: if another process holds it, with what that says of itself.
        OSError: if the file cannot be opened, or is a link.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        if path.is_symlink():
            raise OSError(f"{path} is a link, which a lock cannot be")
        self._path = path
        self._file = os.open(path, flags, 0o666)
        self._held = False
        try:
            self._take(shared)
            if not shared:
                self._write(f"process {os.getpid()} on {socket.gethostname()}")
        except BaseException:
            os.close(self._file)
            raise

    def share(self) -> None:
        """Make the lock shared; fails if another process took it in between."""
        self._take(shared=True)

    def is_in_place(self) -> bool:
        """True if the file is still the one that others would lock: not if it was deleted, or made anew since."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.lstat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock, and erase the name of its holder."""
        if self._held and fcntl is None:
            self._at(_FAR)
            msvcrt.locking(self._file, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        os.close(self._file)

    def forget(self) -> None:
        """Erase the name of the holder."""
        self._write("")

    def _take(self, shared: bool) -> None:
        try:
            if fcntl is not None:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            elif not shared:
                self._at(_FAR)
                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
                self._held = True
        except OSError as error:
            if fcntl is not None and not isinstance(error, BlockingIOError):
                raise  # a disk without locks
            self._at(0)
            holder = os.read(self._file, 200).decode(errors="replace") or "a process"
            raise BlockingIOError(holder) from None

    def _write(self, text: str) -> None:
        os.ftruncate(self._file, 0)
        self._at(0)
        os.write(self._file, text.encode())

    def _at(self, position: int) -> None:
        os.lseek(self._file, position, os.SEEK_SET)
