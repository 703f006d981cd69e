"""First steps of a command of sgm-sde, before all else is imported: where modules come from, and who started it.

`python -m sgm_sde` has the current folder before all others in `sys.path`, where any file that happens to lie there
would take a library's place; here it becomes the last. A command that torchrun started ends with it from now on, also
while it imports, which takes many seconds on a busy machine; a program of one's own does so from its first run on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

POLL = 0.2  # seconds between looks at the parent
LAUNCHERS = ("torchrun", "torch.distributed", "torchelastic", "accelerate")  # in the command line of one
REAPERS = ("systemd", "init", "tini", "containerd-shim")  # take processes whose parent has ended
GONE = "torchrun, which started this process, has ended"

_watching: set[int] = set()  # processes with a thread that watches: a fork has none


def end(why: str) -> NoReturn:
    """End this process at once, whatever it does."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"sgm-sde: {why}\n")
        sys.stderr.flush()
    os._exit(1)


def end_with_launcher() -> None:
    """From now on, end this process when the launcher that is its parent ends; at once, if it was left an orphan by it.

    Where the parent is something else, such as a shell in a worker, there is nothing to watch.
    """
    if os.getpid() in _watching:
        return
    _watching.add(os.getpid())
    parent = os.getppid()
    words = _words_of(parent)
    launched = words is None or any(name in words for name in LAUNCHERS)
    adopted = words is not None and (parent == 1 or any(name in words for name in REAPERS))
    if not launched and not adopted:
        return

    def watch() -> None:
        if not launched:  # the launcher was killed before this process could see it
            if _nobody_listens():
                end(GONE)
            return
        while os.getppid() == parent:
            time.sleep(POLL)
        end(GONE)

    threading.Thread(target=watch, daemon=True, name="sgm-sde launcher").start()


def _is_command(words: list[str]) -> bool:
    """True for the words of `python -m sgm_sde`, or of the script `sgm-sde`.

    Examples:
        >>> _is_command(["python", "-u", "-m", "sgm_sde", "sample"])
        True
        >>> _is_command(["python", "-W", "ignore", "-msgm_sde"]), _is_command(["python", "/opt/bin/sgm-sde", "demo"])
        (True, True)
        >>> _is_command(["python", "-u", "train.py", "-m", "sgm_sde"])
        False
    """
    at = 1
    while at < len(words) and words[at].startswith("-") and not words[at].startswith("-m"):
        has_value = words[at] in ("-W", "-X")
        at += 2 if has_value else 1

    asked = words[at : at + 2]
    if asked == ["-m", "sgm_sde"] or asked[:1] == ["-msgm_sde"]:
        return True
    return bool(asked) and Path(asked[0]).name in ("sgm-sde", "sgm-sde.exe")


def _nobody_listens() -> bool:
    """True if the store that torchrun serves, from before it starts a process until it ends, refuses connections."""
    host = os.environ.get("MASTER_ADDR", "")
    port = os.environ.get("MASTER_PORT", "")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not host or not port.isdecimal():
        return False
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # whether it is there shows later
        return False
    return False


def _words_of(process: int) -> str | None:
    """The command line of a process; None where that cannot be known."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None


if _is_command(sys.orig_argv):
    if sys.path[0] == os.getcwd() and not getattr(sys.flags, "safe_path", False):  # noqa: PTH109
        sys.path.append(sys.path.pop(0))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()
