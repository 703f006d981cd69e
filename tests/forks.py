"""A process that has imported everything and forks others, which start in milliseconds and may be killed.

`Forks` starts it and runs commands of `sgm-sde` in its children; the factories below are models for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sgm_sde as sg
import sgm_sde.runs.distributed  # once, and not in every child
from sgm_sde.cli import main

ROOT = Path(__file__).parent.parent
PATHS = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # of a process in any folder
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
PATIENCE = 600  # seconds after which a process hangs: far from what any takes, and from the half hour of `distributed`


def mixture() -> sg.models.Model:
    """Three dimensions, 8 levels; elementwise, so that rows do not round differently in another batch."""
    sde = sg.VPSDE()

    def score(x: Tensor, t: Tensor) -> Tensor:
        a, s = (c.to(x.dtype)[:, None] for c in (sde.alpha(t), sde.sigma(t)))
        variance = s**2 + 0.04 * a**2
        return (a * torch.tanh(a * x / variance) - x) / variance

    return sg.models.Model("mixture", sg.from_score(score, sde), sde, (3,), data_range=(-2.0, 2.0), n_levels=8)


def dying() -> tuple[sg.Score, sg.SDE, tuple[int, ...]]:
    """The mixture in a process that notes its number, and if it is of rank 1, or DYING, soon kills itself."""
    model, calls = mixture(), [0]
    rank = os.environ.get("RANK")
    Path(f"pid-{rank}").write_text(str(os.getpid()))

    def score(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        time.sleep(0.01)
        if calls[0] == 12 and rank == os.environ.get("DYING", "1") and "SURVIVE" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        return model.score(x, t)

    return sg.from_score(score, model.sde), model.sde, model.shape


def slow() -> tuple[sg.Score, sg.SDE, tuple[int, ...]]:
    """The mixture, counting its calls, in a process that is slow if it is of rank 1."""
    model, calls = mixture(), [0]
    rank = os.environ.get("RANK")

    def score(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        Path(f"calls-{rank}").write_text(str(calls[0]))
        time.sleep(0.1 if rank == "1" else 0.01)
        return model.score(x, t)

    return sg.from_score(score, model.sde), model.sde, model.shape


def nan_above_one() -> tuple[sg.Score, sg.SDE, tuple[int, ...]]:
    """A score that is not finite for samples that start far to the right."""
    sde = sg.VPSDE()
    return sg.from_score(lambda x, t: torch.where(x > 1.5, torch.nan, -x), sde), sde, (1,)


@dataclass
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


class Forks:
    """The parent of the forks; it imports the modules named, which the children then need not."""

    def __init__(self, *modules: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", *modules], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=ENV,
        )  # fmt: skip

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def run(self, *argv: object, cwd: Path = ROOT, kill_after: float | None = None, **job: Any) -> Done:
        """One command in one process; `die_at` kills it at that point of its writing (0 counts the points)."""
        return self.together(argv, 1, cwd, kill_after, **job)[0]

    def together(
        self,
        argv: Sequence[object],
        size: int,
        cwd: Path = ROOT,
        kill_after: float | None = None,
        more: dict[str, str] | None = None,
        **job: Any,
    ) -> list[Done]:
        """One command in several processes that work together; with `apart`, that know nothing of one another."""
        env: dict[str, str] = {}
        with socket.socket() as port:
            if size > 1 and not job.get("apart"):
                # Held until the run has ended, so that no other program is given it; who asks for it by number shares.
                port.bind(("127.0.0.1", 0))
                port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1]), "WORLD_SIZE": str(size)}
            ranks = [{"RANK": str(rank)} if "WORLD_SIZE" in env else {} for rank in range(size)]
            return self.each(argv, [env | rank | (more or {}) for rank in ranks], cwd, kill_after, **job)

    def each(
        self,
        argv: Sequence[object],
        environs: Sequence[dict[str, str]],
        cwd: Path = ROOT,
        kill_after: float | None = None,
        **job: Any,
    ) -> list[Done]:
        """One command in a process for each of these additions to the environment."""
        words = [str(word) for word in argv]
        jobs = [{"argv": words, "cwd": str(cwd), "env": env, **job} for env in environs]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"jobs": jobs, "kill_after": kill_after}) + "\n")
        self.process.stdin.flush()
        return [Done(**done) for done in json.loads(self.process.stdout.readline())]


def _die(fd: int | None = None) -> None:
    if fd is not None:  # in the middle of the writing
        with contextlib.suppress(OSError):
            os.ftruncate(fd, os.fstat(fd).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _count_points(die_at: int) -> list[int]:
    """Kill this process at a point of its writing: before and after each flush and rename."""
    passed, fsync, replace = [0], os.fsync, Path.replace

    def point(fd: int | None = None) -> None:
        passed[0] += 1
        if passed[0] == die_at:
            _die(fd)

    def counted_fsync(fd: int) -> None:
        point(fd)
        fsync(fd)
        point()

    def counted_replace(path: Path, target: Path) -> Path:
        point()
        replaced = replace(path, target)
        point()
        return replaced

    os.fsync = counted_fsync
    Path.replace = counted_replace  # type: ignore[method-assign, assignment]  # which asks os.replace from 3.11 on
    return passed


def _obey_permissions() -> None:
    """Let this process write only where the permission bits say so, root or not.

    It remains the same user and may read everything, so that it finds the package wherever that lies.
    """
    libc, overrule = ctypes.CDLL(None, use_errno=True), 1  # CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, of this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0] &= ~(1 << overrule)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _child(job: dict[str, Any], out: int, err: int) -> int:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    passed = _count_points(job["die_at"]) if "die_at" in job else None
    sgm_sde.runs.team.SILENCE = job.get("silence", sgm_sde.runs.team.SILENCE)
    sgm_sde.runs.team.ROLL_CALL = job.get("roll_call", sgm_sde.runs.team.ROLL_CALL)
    if "file_limit" in job:  # a file that outgrows it fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], resource.RLIM_INFINITY))
    if job.get("unprivileged") and os.getuid() == 0:
        _obey_permissions()
    try:
        status = main(job["argv"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    if passed is not None:
        print(f"points={passed[0]}")
    return status


def _serve(request: dict[str, Any]) -> list[dict[str, Any]]:
    running = []
    for job in request["jobs"]:
        files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                status = _child(job, *(file.fileno() for file in files))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        running.append((pid, files))
    if request["kill_after"] is not None:
        time.sleep(request["kill_after"])
    answers = []
    deadline = time.monotonic() + (0 if request["kill_after"] is not None else PATIENCE)
    for pid, files in running:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)
        texts = []
        for file in files:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        answers.append({"status": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]})
    return answers


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)
