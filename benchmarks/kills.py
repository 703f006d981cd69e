"""Kills of runs at random times, start-up included: what is left behind, and what the same command makes of it.

    python -m benchmarks.kills --kills 24 --out out/bench
    python -m benchmarks.kills --kills 8 --ways "one of two" --seed 3 --out out/bench     # 8 more of one kind

Each run is started, killed with SIGKILL and started again until it is complete, in three ways: one process; two under
torchrun of which one is killed; the launcher of two, which leaves it no time to end them. After each kill every shard
that is there has to be whole, and all processes have to end; at the end the folder has to be that of a run that was
left alone, to the last byte. Kills are added to those that OUT has already.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from sgm_sde.runs.store import read_shard

ROOT = Path(__file__).parent.parent
RUN = ["sample", "--model", "digits", "-n", "600", "--batch", "20", "--nfe", "40", "--quiet"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAYS = ("one process", "one of two", "the launcher of two")
PATIENCE = 90.0  # seconds after which a process that is left counts as one for ever


@dataclass
class Kill:
    """One kill.

    Attributes:
        way: which process was killed, of how many.
        after: seconds from the start to the end of all processes.
        shards: how many this start had added.
        damaged: how many of them were not whole.
        gone: seconds until all processes had ended; None if one was left.
    """

    way: str
    after: float
    shards: int
    damaged: int
    gone: float | None


def environment(mark: str) -> dict[str, str]:
    """With a mark by which the processes of a run are found."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SGM_SDE_KILLS": mark}


def processes(mark: str) -> dict[int, list[str]]:
    """The processes of a run, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or f"SGM_SDE_KILLS={mark}".encode() not in (entry / "environ").read_bytes():
                continue
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(words):  # one that has ended and is not looked at has none
            found[int(entry.name)] = words
    return found


def start(folder: Path, mark: str, launcher: bool) -> subprocess.Popen[bytes]:
    """Start a run."""
    words = [sys.executable, *(TORCHRUN if launcher else []), "-m", "sgm_sde", *RUN, "--out", str(folder)]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment(mark), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill(way: str, run: subprocess.Popen[bytes], mark: str, choose: random.Random) -> None:
    """Kill what is to be killed of a run."""
    workers = [pid for pid, words in processes(mark).items() if "torch.distributed.run" not in words]
    target = run.pid if way != "one of two" or not workers else choose.choice(workers)
    try:
        os.kill(target, signal.SIGKILL)
    except ProcessLookupError:
        return


def watch(run: subprocess.Popen[bytes], mark: str) -> float | None:
    """Seconds until nothing of a run is left; what is left after `PATIENCE` is killed."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE:
        run.poll()
        if not processes(mark):
            return time.monotonic() - started
        time.sleep(0.1)
    for pid in processes(mark):
        os.kill(pid, signal.SIGKILL)
    return None


def damaged(folder: Path) -> tuple[int, int]:
    """How many shards are there, and how many of them are not whole."""
    there, bad = 0, 0
    for path in folder.glob("*.safetensors"):
        there += 1
        try:
            read_shard(path)
        except ValueError:
            bad += 1
    return there, bad


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, hidden ones apart."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def attack(way: str, n: int, place: Path, whole: dict[str, bytes], longest: float, choose: random.Random) -> list[Kill]:
    """Kill runs until there have been n kills; raises where a folder ends up different."""
    kills: list[Kill] = []
    folders = 0
    while len(kills) < n:
        folder = place / f"{way.replace(' ', '-')}-{folders}"
        folders += 1
        while True:
            mark = uuid.uuid4().hex
            run = start(folder, mark, launcher=way != "one process")
            # Every other kill comes while the processes import, before there is anything to lose.
            before, early = damaged(folder)[0] if folder.exists() else 0, choose.random() < 0.5
            started = time.monotonic()
            while not early and run.poll() is None and damaged(folder)[0] <= before:
                time.sleep(0.2)
            after = choose.uniform(0, longest / 2)
            try:
                run.wait(timeout=after)
            except subprocess.TimeoutExpired:
                kill(way, run, mark, choose)
                gone = watch(run, mark)
                there, bad = damaged(folder) if folder.exists() else (0, 0)
                kills.append(Kill(way, time.monotonic() - started, there - before, bad, gone))
            else:
                if run.returncode == 0:
                    break
            if len(kills) >= n:  # the last one is left to end
                if start(folder, mark, launcher=False).wait() != 0:
                    raise AssertionError(f"{folder} cannot be resumed")
                break
        if contents(folder) != whole:
            raise AssertionError(f"{folder} is not what an undisturbed run leaves")
        print(f"{way}: {len(kills)} kills, {folders} folders, all the same", flush=True)
    return kills


def table(kills: list[Kill]) -> str:
    """The table of docs/runs.md."""
    lines = [
        "| killed | kills | during start-up | damaged shards | processes left | slowest end | wrong folders |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way in dict.fromkeys(one.way for one in kills):
        own = [one for one in kills if one.way == way]
        left = sum(one.gone is None for one in own)
        slowest = max((one.gone for one in own if one.gone is not None), default=0.0)
        early, bad = sum(one.shards == 0 for one in own), sum(one.damaged for one in own)
        lines.append(f"| {way} | {len(own)} | {early} | {bad} | {left} | {slowest:.1f} s | 0 |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=24, help="in each of the ways (%(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="which processes to kill (all three)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)
    choose = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        longest = {}
        for way, launcher in (("one process", False), ("one of two", True)):
            started = time.monotonic()
            if start(place / way, uuid.uuid4().hex, launcher).wait() != 0:
                raise AssertionError("an undisturbed run failed")
            longest[way] = time.monotonic() - started
        longest["the launcher of two"] = longest["one of two"]
        whole = contents(place / "one process")
        if contents(place / "one of two") != whole:
            raise AssertionError("two processes leave other files than one")
        kills = [kill for way in args.ways for kill in attack(way, args.kills, place, whole, longest[way], choose)]
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "kills.json"
    if file.exists():
        kills = [Kill(**one) for one in json.loads(file.read_text())] + kills
    file.write_text(json.dumps([asdict(one) for one in kills], indent=1) + "\n")
    print(table(kills))


if __name__ == "__main__":
    main()
