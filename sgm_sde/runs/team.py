"""The processes of one run: their places, the work that each takes next, and whether the others are still alive.

They are started by `torchrun`, by Slurm's `srun`, or by anything that sets RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. They talk by a few short texts in torch's key-value store over TCP: who is there, who took which piece of
work, and what became of it. Work is taken when the last piece is done, so a slow process does less, and no other waits
for its share.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from types import TracebackType
from typing import Any

import torch
import torch.distributed

from sgm_sde._start import GONE, end, end_with_launcher
from sgm_sde._utils.checks import check_integer, described

ROLL_CALL = 120.0  # seconds in which all processes of a run have to be there
PATIENCE = 10.0  # seconds after which those that are missing are named
BEAT = 1.0  # seconds between the signs of life of a process
SILENCE = 30.0  # seconds without one, after which a process' work is done by the first
PARTING = 5.0  # seconds in which the others hear of an error

# Seconds between two looks: at what takes its time, and at what may be there at once, less and less often.
POLL = 0.02
SOON = 0.005
LATER = 0.2


@dataclass(frozen=True)
class Place:
    """A process' place in its run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local: its number on its machine.
        host: where the first one is.
        port: on which it listens.
        agent: whether a launcher that outlives all processes listens there, as torchrun's does.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    host: str = "127.0.0.1"
    port: int = 29500
    agent: bool = False

    @staticmethod
    def of(environ: Mapping[str, str]) -> Place:
        """The place by the environment variables of torchrun or Slurm; without them, that of the only process.

        Raises:
            ValueError: for variables that do not go together, with what they are.

        Examples:
            >>> Place.of({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "29400"}).host
            'node7'
            >>> Place.of({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "gpu[07-08]"}).host
            'gpu07'
        """
        if "RANK" in environ or "WORLD_SIZE" in environ:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            host = environ.get("MASTER_ADDR", "")
            job = 0
        elif "SLURM_PROCID" in environ and not _in_batch_script(environ):
            names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
            nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
            host = environ.get("MASTER_ADDR") or _first_host(nodes)
            job = _number(environ, "SLURM_JOB_ID", 0)
        else:
            return Place()

        name_of_rank, name_of_size, name_of_local = names
        rank, size = _rank_and_size(environ, name_of_rank, name_of_size)
        if size > 1 and not host:
            raise ValueError(
                f"{name_of_size}={size} is set in the environment, and no MASTER_ADDR where the first one is"
            )

        local = _number(environ, name_of_local, 0)
        port = _number(environ, "MASTER_PORT", 20000 + job % 20000)  # jobs on one machine listen at ports of their own
        agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Place(rank, size, local, host or "127.0.0.1", port, agent)


def _rank_and_size(environ: Mapping[str, str], name_of_rank: str, name_of_size: str) -> tuple[int, int]:
    """A process' number and how many there are, by the variables of these names.

    Raises:
        ValueError: if one of them is missing, or they do not go together.
    """
    for name, other in ((name_of_rank, name_of_size), (name_of_size, name_of_rank)):
        if name not in environ:
            raise ValueError(f"{other}={environ[other]} is set in the environment and {name} is not: set both, or none")

    rank = _number(environ, name_of_rank)
    size = _number(environ, name_of_size)
    if size < 1 or not 0 <= rank < size:
        raise ValueError(
            f"{name_of_rank}={rank} and {name_of_size}={size} in the environment are no place among processes 0 to "
            f"{name_of_size} - 1"
        )
    return rank, size


def _in_batch_script(environ: Mapping[str, str]) -> bool:
    """True if this is the script of a job itself, which has the variables of a task and is none."""
    return "SLURM_JOB_ID" in environ and not environ.keys() & {"SLURM_STEP_ID", "SLURM_STEPID"}


def _first_host(nodes: str) -> str:
    """The first of a list of hosts as Slurm writes it, such as gpu[07-09,12],node3."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes)
    return "" if found is None else "".join(part or "" for part in found.groups())


def _number(environ: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    value = environ.get(name)
    if value is None and otherwise is not None:
        return otherwise
    try:
        return int(value or "")
    except ValueError:
        raise ValueError(f"{name} in the environment must be an integer, got {described(value)}") from None


class Team:
    """The processes of one run, or this one alone.

    Args:
        device: "cpu", "cuda", "mps", or None for CUDA where there is one; each process takes its own GPU.
        threads: of each process on a CPU.

    Attributes:
        rank: this process' number; 0 opens the folder and shows the progress.
        size: number of processes.
        device: where this process computes.

    Raises:
        ValueError: for a device that is not there, a number of threads that is not positive, or variables of the
            environment that do not go together.
        ConnectionError: on entering, if the others do not come; later, if the first of them has ended.
    """

    def __init__(self, device: str | None = None, threads: int = 1) -> None:
        self.place = Place.of(os.environ)
        self.rank = self.place.rank
        self.size = self.place.size
        self.device = _device(device)
        self.threads = check_integer("threads", threads, kind=Integral)
        self._threads_before = torch.get_num_threads()
        self._wire: Wire | None = None
        self._local: dict[int, str] = {}
        self._counts: dict[str, int] = {}

    def __enter__(self) -> Team:
        if self.device.type == "cuda":
            self.device = torch.device("cuda", self.place.local % torch.cuda.device_count())
        torch.set_num_threads(self.threads)
        if self.size > 1:
            self._wire = Wire(self.place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads_before)
        if self._wire is not None:
            self._wire.leave(error)

    def tell(self, name: str, text: str) -> None:
        """Publish a text for all processes."""
        if self._wire is not None:
            self._wire.set(name, text)

    def hear(self, name: str) -> str:
        """The text that the first process publishes, waited for while it is alive; "" in a run of one process."""
        return "" if self._wire is None else self._wire.wait(name)

    def count(self, name: str, more: int = 0) -> int:
        """Add to a sum over all processes; returns the sum."""
        if self._wire is not None:
            return self._wire.add(name, more)
        self._counts[name] = self._counts.get(name, 0) + more
        return self._counts[name]

    def take(self, n: int) -> Iterator[int]:
        """Pieces of work, of the numbers 0 to n - 1, each to one process; the next when it asks."""
        if self._wire is None:
            yield from range(n)
            return
        while (k := self._wire.take()) < n:
            yield k

    def report(self, k: int, text: str) -> None:
        """Publish the outcome of a piece."""
        if self._wire is None or self.rank == 0:
            self._local[k] = text
        if self._wire is not None:
            self._wire.set(f"done/{k}", text)

    def left_over(self, n: int, update: Callable[[], object] = lambda: None) -> Iterator[int]:
        """In the first process: pieces of those that have ended or fallen silent, until all n are reported."""
        if self._wire is None or self.rank:
            return
        for k in range(n):
            while k not in self._local:
                text = self._wire.look(f"done/{k}")
                if text is not None:
                    self._local[k] = text
                elif self._wire.abandoned(k):
                    yield k
                else:
                    update()
                    time.sleep(POLL)

    def reports(self, n: int) -> list[str]:
        """In the first process, after `left_over`: the outcome of each piece."""
        return [self._local[k] for k in range(n)]


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name not in there:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'mps', got {described(name)}")
    if not there[name]:
        raise ValueError(f"device={name!r} was asked for, and there is no {name.upper()} device")
    return torch.device(name)


_connections: dict[Place, Any] = {}  # one for the life of a process: the first process serves it
_runs = itertools.count()


class Wire:
    """Messages between processes in torch's key-value store.

    Raises:
        ConnectionError: if the store cannot be reached, or not all processes come.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix = f"sgm_sde/{attempt}/{next(_runs)}"
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_launcher()
        self._store = _connections.get(place) or _connect(place)
        _connections[place] = self._store
        self._seen: dict[int, tuple[int, float]] = {}
        self._over = threading.Event()
        self._roll_call()
        threading.Thread(target=self._beat, daemon=True).start()

    def set(self, name: str, text: str) -> None:
        """Leave a text."""
        with self._connected():
            self._store.set(f"{self._prefix}/{name}", text)

    def look(self, name: str) -> str | None:
        """A text, if it is there."""
        key = f"{self._prefix}/{name}"
        with self._connected():
            found: str | None = self._store.get(key).decode() if self._store.check([key]) else None
        return found

    def add(self, name: str, more: int) -> int:
        """Add to a number; returns the sum."""
        with self._connected():
            return int(self._store.add(f"{self._prefix}/{name}", more))

    def wait(self, name: str) -> str:
        """A text, waited for while the first process is alive."""
        pause = SOON
        while (text := self.look(name)) is None:
            if self.silent(0):
                raise ConnectionError(f"the first process of this run {_SILENT}")
            self._stop_if_told()
            time.sleep(pause)
            pause = min(LATER, 1.5 * pause)
        return text

    def take(self) -> int:
        """The number of the next piece of work."""
        self._stop_if_told()
        k = self.add("next", 1) - 1
        self.set(f"taken/{k}", str(self.place.rank))
        return k

    def abandoned(self, k: int) -> bool:
        """True if the process that took a piece has ended or fallen silent."""
        taker = self.look(f"taken/{k}")
        if taker is None:  # it may have ended before it said so
            return self._stands(-1 - k, 0)
        rank = int(taker)
        if rank == self.place.rank:
            return True
        if self.look(f"left/{rank}") is not None or self.silent(rank):
            sys.stderr.write(f"process {rank} of this run has ended or does not answer: its batch {k} is done here\n")
            return True
        return False

    def silent(self, rank: int) -> bool:
        """True if a process has given no sign of life for `SILENCE` seconds."""
        return self._stands(rank, self.add(f"beat/{rank}", 0))

    def _stands(self, rank: int, value: int) -> bool:
        before, since = self._seen.get(rank, (-1, 0.0))
        if value != before:
            self._seen[rank] = (value, time.monotonic())
            return False
        return time.monotonic() - since > SILENCE

    def _stop_if_told(self) -> None:
        if self.place.rank and self.look("left/0"):
            raise ConnectionError(f"the first process of this run {_SILENT}")

    def leave(self, error: BaseException | None) -> None:
        """Say that this process is done; the first one waits until the others have heard what they need."""
        with contextlib.suppress(ConnectionError):
            outcome = "" if error is None else f"{type(error).__name__}: {error}"
            self.set(f"left/{self.place.rank}", outcome)
            if self.place.rank == 0:
                self._wait_for_others(SILENCE if error is None else PARTING)
        self._over.set()

    def _wait_for_others(self, seconds: float) -> None:
        """Wait until all other processes have left or fallen silent, at most so long."""
        until = time.monotonic() + seconds
        waiting = set(range(1, self.place.size))
        while waiting and time.monotonic() < until:
            waiting = {rank for rank in waiting if self.look(f"left/{rank}") is None and not self.silent(rank)}
            time.sleep(SOON)

    def _roll_call(self) -> None:
        """Wait for all processes."""
        rank = self.place.rank
        size = self.place.size
        self.set(f"here/{rank}", "")
        started = time.monotonic()
        announced = False

        while missing := [other for other in range(size) if self.look(f"here/{other}") is None]:
            waited = time.monotonic() - started
            names = _first_of(missing)
            if waited > ROLL_CALL:
                raise ConnectionError(
                    f"{size - len(missing)} of the {size} processes of this run are here after {waited:.0f} s, without "
                    f"{names}: start all of them, or unset RANK and WORLD_SIZE (of Slurm: start them with srun)"
                )

            present = set(range(size)) - set(missing)
            if waited > PATIENCE and not announced and rank == min(present):  # one of them says it for all
                sys.stderr.write(f"waiting for process {names} of {size}\n")
                announced = True
            time.sleep(POLL)

    def _beat(self) -> None:
        with contextlib.suppress(ConnectionError):
            while not self._over.wait(BEAT):
                self.add(f"beat/{self.place.rank}", 1)
            return
        if self.place.agent:  # whoever started this process is gone
            end(GONE)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(f"the first process of this run {_SILENT}") from error


_SILENT = "has ended or does not answer; the same command goes on from here"


def _first_of(ranks: Sequence[int]) -> str:
    """The first of some processes, in words."""
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")


def _connect(place: Place) -> Any:
    """torch's key-value store: served by the launcher, or by the first process."""
    if not torch.distributed.is_available():
        raise ConnectionError("this build of torch cannot connect several processes: start one")
    serves = place.rank == 0 and not place.agent
    if not serves:
        _wait_for_server(place)

    try:
        distributed: Any = torch.distributed
        return distributed.TCPStore(
            place.host,
            place.port,
            None,
            serves,
            timeout=datetime.timedelta(seconds=ROLL_CALL),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        doing = "listen" if serves else "connect"
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"cannot {doing} at {place.host}:{place.port}: {reason}") from None


def _wait_for_server(place: Place) -> None:
    """Wait until the store's server listens.

    Raises:
        ConnectionError: if it does not within `ROLL_CALL` seconds, or was there and is gone.
    """
    deadline = time.monotonic() + ROLL_CALL
    while True:
        try:
            socket.create_connection((place.host, place.port), timeout=5).close()
            return
        except OSError as error:
            # A launcher's server was there before this process: if it refuses, it has ended.
            if place.agent and isinstance(error, ConnectionRefusedError):
                raise ConnectionError(GONE) from None
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"nobody listens at {place.host}:{place.port} after {ROLL_CALL:.0f} s, where process 0 of "
                    f"{place.size} should be: {error}"
                ) from None
        time.sleep(0.1)
