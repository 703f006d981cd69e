"""Runs over many batches: the same results from any number of processes, whatever interrupts them."""

from __future__ import annotations

import importlib.util
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import sgm_sde as sg
from sgm_sde.cli import main
from sgm_sde.data.images import read_data
from sgm_sde.engine.noise import resolve_seeds
from sgm_sde.likelihood import FixedGrid
from sgm_sde.runs import distributed
from sgm_sde.runs.store import read_manifest, read_shard
from sgm_sde.runs.team import Place
from tests.conventions import case_id, some_slow
from tests.forks import ENV, PATIENCE, ROOT, Forks, mixture

MODEL = "tests.forks:mixture"
SMALL = ("sample", "--model", MODEL, "-n", 8, "--batch", 3, "--nfe", 4, "--solver", "sde-dpm++2m", "--quiet", "--out")
LARGE = ("sample", "--model", MODEL, "-n", 50, "--batch", 3, "--nfe", 6, "--solver", "seeds2", "--quiet", "--out")


Complete = dict[tuple[object, ...], dict[str, bytes]]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("torch.fx.experimental.symbolic_shapes") as running:  # autograd imports it at its first call: seconds
        yield running


@pytest.fixture(scope="module")
def complete(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[object, ...], dict[str, bytes]]:
    """What uninterrupted runs in one process leave, by command."""
    folders = {argv: tmp_path_factory.mktemp("complete") / "run" for argv in (SMALL, LARGE)}
    for argv, folder in folders.items():
        assert forks.run(*argv, folder).status == 0
    return {argv: contents(folder) for argv, folder in folders.items()}


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody else is given while this one is kept."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, lock and leftovers apart."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


# --- seeds by number -------------------------------------------------------------------------------------------------


def test_a_pair_is_a_sample_of_a_batch() -> None:
    """`seed=[(s, i)]` draws sample i of `seed=s`, with every noise; a result's own seeds draw it again."""
    model = mixture()
    options = {"solver": "seeds2", "nfe": 6}
    batch = sg.sample(model.score, model.sde, (5, 3), seed=7, **options)
    some = sg.sample(model.score, model.sde, (3, 3), seed=[(7, 4), (7, 0), 7], **options)
    assert torch.equal(some.x, batch.x[[4, 0, 0]])
    assert torch.equal(sg.sample(model.score, model.sde, (2, 3), seed=batch.seeds[1:3], **options).x, batch.x[1:3])
    with pytest.raises(TypeError, match="must be an int"):
        resolve_seeds([(1, 0.5)], None, 1)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "bad, text",
    [
        ((1, 2, 3), "a pair"),
        ((1, -1), "the index of a seed"),
        ((1, 2**32), "the index"),
        ((-1, 0), "-1"),
    ],
    ids=case_id,
)
def test_what_is_no_pair_is_refused(bad: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        resolve_seeds([bad], None, 1)


# --- many processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, batches", [(1, 10), (4, 3), (10, 1), (64, 1)])
def test_a_folder_is_what_sample_returns(tmp_path: Path, batch: int, batches: int) -> None:
    """Exactly n samples, in order, equal to one call of `sample` bit for bit for an elementwise score."""
    model = mixture()
    report = distributed.sample(model, 10, tmp_path, batch=batch, solver="seeds2", nfe=6, seed=5, device="cpu")
    assert (report.n, report.batches, report.found) == (10, batches, 0)
    expected = sg.sample(model.score, model.sde, (10, 3), solver="seeds2", nfe=6, seed=5).x
    assert torch.equal(distributed.load(tmp_path)["x"], expected)


def test_batch_sizes_with_a_network(tmp_path: Path) -> None:
    """A network's kernels round differently in another batch: the same labels, the same samples to 1e-4."""
    sets = []
    for batch in (5, 12):
        distributed.sample("digits", 12, tmp_path / str(batch), batch=batch, nfe=10, seed=3, device="cpu")
        sets.append(distributed.load(tmp_path / str(batch)))
    assert torch.equal(sets[0]["y"], torch.arange(12) % 10)
    assert torch.equal(sets[0]["y"], sets[1]["y"])
    assert (sets[0]["x"] - sets[1]["x"]).abs().max() < 1e-4


@pytest.mark.parametrize("size", [2, 3])
def test_processes_do_not_matter(size: int, forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """Two and three processes leave the files of one, to the last bit, and the manifest is one of them."""
    ended = forks.together((*SMALL, tmp_path / "run"), size)
    assert [done.status for done in ended] == [0] * size
    assert "8 in 3 batches" in ended[0].out
    assert not any(done.out for done in ended[1:])
    assert contents(tmp_path / "run") == complete[SMALL]


def test_more_processes_than_batches(forks: Forks, tmp_path: Path) -> None:
    """Those that have nothing to do wait for the others."""
    argv = ("sample", "--model", MODEL, "-n", 2, "--batch", 2, "--nfe", 4, "--quiet", "--out", tmp_path / "run")
    assert [done.status for done in forks.together(argv, 3)] == [0, 0, 0]
    assert distributed.load(tmp_path / "run")["x"].shape == (2, 3)


def test_the_manifest_tells_how(forks: Forks, tmp_path: Path) -> None:
    """Settings, seeds, versions and the program, which reads back as the table that was run."""
    assert forks.run(*SMALL, tmp_path / "run").status == 0
    manifest = read_manifest(tmp_path / "run")
    settings, result = manifest["settings"], manifest["result"]
    assert (settings["model"], settings["n"], settings["seed"], settings["nfe"]) == (MODEL, 8, 0, 4)
    program = sg.Program.from_json(result["program"])
    assert program == sg.sampling.planning.plan(sg.VPSDE(), "sde-dpm++2m", nfe=4)[2]
    assert (result["nfe"], result["rows"], result["failed"]) == (4, 32, [])
    assert list(manifest["shards"]) == [f"0000{k}.safetensors" for k in range(3)]
    with safetensors.safe_open(tmp_path / "run" / "00002.safetensors", "pt") as shard:
        assert shard.get_slice("x").get_shape() == [2, 3]


@pytest.mark.slow
def test_a_dead_process_ends_the_others(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """Under torchrun, with one of two processes killed: an error within seconds, nobody left behind, nothing lost."""
    command = ("sample", "--model", "tests.forks:dying", "-n", "30", "--batch", "3", "--nfe", "4", "--quiet")
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sgm_sde"]
    ended = subprocess.run(
        [*launched, *command, "--out", "run"], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode != 0
    for rank in "01":
        assert_gone(int((tmp_path / f"pid-{rank}").read_text()))
    kept = contents(tmp_path / "run")
    assert 0 < len(kept) - 1 < 10
    resumed = forks.run(*command, "--out", tmp_path / "run", cwd=tmp_path)
    assert resumed.status == 0, resumed.err
    assert f"{len(kept) - 1} of them there before" in resumed.out
    assert forks.run(*command, "--out", tmp_path / "whole", cwd=tmp_path).status == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_the_work_of_a_dead_process_is_done_by_the_first(forks: Forks, tmp_path: Path) -> None:
    """Without torchrun, which would end all of them: the first one notices the silence, and the run is complete."""
    argv = ("sample", "--model", "tests.forks:dying", "-n", 30, "--batch", 3, "--nfe", 4, "--quiet", "--out")
    first, second = forks.together((*argv, "run"), 2, tmp_path, silence=2.0)
    assert second.status == -signal.SIGKILL
    assert first.status == 0, first.err
    assert "process 1 of this run has ended or does not answer: its batch" in first.err
    assert forks.run(*argv, "alone", cwd=tmp_path).status == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")


def test_the_others_end_with_the_first_process(forks: Forks, tmp_path: Path) -> None:
    """It serves what they say to one another: they stop with one line, and the run continues with three."""
    argv = ("sample", "--model", "tests.forks:dying", "-n", 30, "--batch", 3, "--nfe", 4, "--quiet", "--out", "run")
    first, second = forks.together(argv, 2, tmp_path, more={"DYING": "0"})
    assert (first.status, second.status) == (-signal.SIGKILL, 2)
    said = "sgm-sde: the first process of this run has ended or does not answer; the same command goes on from here\n"
    assert second.err.endswith(said)  # after what torch says of a connection that breaks
    found = len(contents(tmp_path / "run")) - 1
    third = forks.together(argv, 3, tmp_path, more={"SURVIVE": ""})
    assert [done.status for done in third] == [0, 0, 0]
    assert f"{found} of them there before" in third[0].out


def test_a_slow_process_does_less(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """Shards are taken as they are done: the one that needs ten times as long holds nobody up."""
    argv = ("sample", "--model", "tests.forks:slow", "-n", 40, "--batch", 2, "--nfe", 4, "--quiet", "--out", "run")
    first, second = forks.together(argv, 2, tmp_path)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    calls = [int((tmp_path / f"calls-{rank}").read_text()) for rank in range(2)]
    assert sum(calls) == 20 * 4 + 2 * 5  # and five each to tell the network
    assert calls[1] < calls[0] / 2


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"RANK": "1"}, "RANK=1 is set in the environment and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set in the environment and RANK is not"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 and WORLD_SIZE=0 in the environment are no place"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 in the environment are no place"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK in the environment must be an integer, got 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR"),
        ({"SLURM_PROCID": "0"}, "SLURM_PROCID=0 is set in the environment and SLURM_NTASKS is not"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
            "1 of the 2 processes of this run are here after",
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "nobody listens at 127.0.0.1"),
    ],
)
def test_half_a_team_ends_with_one_line(
    environ: dict[str, str], text: str, forks: Forks, free_port: int, tmp_path: Path
) -> None:
    """Variables that do not go together, and processes that do not come."""
    environ = environ | {"MASTER_PORT": str(free_port)}
    ended = forks.run(*SMALL, tmp_path / "run", more=environ, roll_call=1.0)
    assert (ended.status, ended.out) == (2, "")
    assert text in ended.err
    assert ended.err.count("\n") == 1


def test_slurms_variables(forks: Forks, complete: Complete, free_port: int, tmp_path: Path) -> None:
    """Tasks of srun find one another; the script of a job, which has the variables of a task, is alone."""
    task = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port)}
    ended = forks.each((*SMALL, tmp_path / "run"), [task | {"SLURM_PROCID": str(rank)} for rank in range(2)])
    assert [done.status for done in ended] == [0, 0], ended[0].err
    assert contents(tmp_path / "run") == complete[SMALL]
    alone = forks.run(*SMALL, tmp_path / "alone", more=task | {"SLURM_PROCID": "0", "SLURM_JOB_ID": "7"})
    assert alone.status == 0
    assert contents(tmp_path / "alone") == complete[SMALL]


@pytest.mark.parametrize(
    "nodes, host", [("gpu[07-09,12],node3", "gpu07"), ("a,b", "a"), ("n[3,5]-ib", "n3-ib"), ("one", "one")]
)
def test_the_host_of_slurms_tasks(nodes: str, host: str) -> None:
    """The first of the list, in whatever form that is."""
    job = {"SLURM_JOB_NODELIST": nodes, "SLURM_JOB_ID": "20003", "SLURM_STEP_ID": "0"}
    place = Place.of({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", **job})
    assert (place.host, place.port, place.rank, place.size) == (host, 20003, 1, 2)


def assert_gone(pid: int) -> None:
    """No such process, or only what its parent has not looked at yet."""
    for _ in range(10 * PATIENCE):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")


@pytest.mark.slow
def test_torchrun_leaves_the_files_of_one_process(complete: Complete, tmp_path: Path) -> None:
    """The launcher that users take, with three processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "sgm_sde"]
    subprocess.run([*command, *map(str, SMALL), tmp_path / "run"], cwd=ROOT, env=ENV, check=True, timeout=PATIENCE)
    assert contents(tmp_path / "run") == complete[SMALL]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_other_engines_leave_the_files_of_torchrun(engine: str, tmp_path: Path) -> None:
    """The recipe of docs/runs.md on a cluster of two workers, beside two processes of torchrun, to the last byte."""
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    script = ROOT / "benchmarks" / "mapped.py"
    recipe = [sys.executable, script, "--engine", engine, "-n", "20", "--parts", "3", "--out", tmp_path / "mapped"]
    ended = subprocess.run(recipe, cwd=tmp_path, env=ENV, check=True, timeout=PATIENCE, capture_output=True, text=True)
    assert "20 samples by 3 tasks" in ended.stdout
    assert "all the same as those of one process" in ended.stdout
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sgm_sde"]
    command += ["sample", "--model", "digits", "-n", "20", "--batch", "8", "--nfe", "10", "--device", "cpu", "--quiet"]
    subprocess.run([*command, "--out", tmp_path / "run"], cwd=ROOT, env=ENV, check=True, timeout=PATIENCE)
    shards = {name: data for name, data in contents(tmp_path / "run").items() if name != "samples.png"}
    assert contents(tmp_path / "mapped") == shards


@pytest.mark.slow
def test_workers_end_with_their_launcher(tmp_path: Path) -> None:
    """torchrun killed with SIGKILL, which leaves it no time for its children: they end by themselves."""
    env = {**ENV, "SURVIVE": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sgm_sde"]
    command += ["sample", "--model", "tests.forks:dying", "-n", "3000", "--batch", "3", "--nfe", "9", "--quiet"]
    launcher = subprocess.Popen([*command, "--out", "run"], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / "00001.safetensors").exists():
        assert launcher.poll() is None
        time.sleep(0.1)
    launcher.kill()
    launcher.wait()
    for rank in "01":
        assert_gone(int((tmp_path / f"pid-{rank}").read_text()))


def test_a_process_that_still_imports_ends_with_its_launcher(tmp_path: Path) -> None:
    """Killed before its children have imported torch, which here takes for ever, a launcher leaves nobody behind."""
    (tmp_path / "torch.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(10**6)\n"
    )
    started = "import subprocess, sys; subprocess.Popen([sys.executable, '-m', 'sgm_sde', 'solvers']).wait()"
    env = {**ENV, "TORCHELASTIC_RUN_ID": "none", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ENV['PYTHONPATH']}"}
    words = [sys.executable, "-c", started, "torchrun"]  # a launcher is told by its command line
    launcher = subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    assert_gone(int((tmp_path / "pid").read_text()))


def test_a_shell_s_end_ends_no_command(tmp_path: Path) -> None:
    """In a worker's environment, too: what a shell leaves in the background goes on, whoever listens at the port."""
    env = {**ENV, "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = f"({sys.executable} -m sgm_sde solvers > out; echo done >> out) &"
    subprocess.run(["bash", "-c", f"{command} sleep 0.2"], cwd=tmp_path, env=env, check=True)
    until = time.monotonic() + PATIENCE
    while "done" not in ((tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert "dpm++2m" in (tmp_path / "out").read_text()


# --- interruptions ---------------------------------------------------------------------------------------------------


def assert_whole(folder: Path) -> None:
    """Every shard that is there is whole."""
    for path in folder.glob("*.safetensors"):
        read_shard(path)


@pytest.mark.parametrize("stride", [3, *some_slow([1])])
def test_killed_at_every_point_of_its_writing(stride: int, forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """SIGKILL in the middle of each write, after it, and before and after each renaming; then the same command.

    By strides of three all of these four are met, in one file or another.
    """
    counted = forks.run(*SMALL, tmp_path / "counted", die_at=0)
    points = int(counted.out.rsplit("points=", 1)[1])
    assert points == 4 * (2 + 3)  # two manifests, three shards
    for point in range(1, points + 1, stride):
        folder = tmp_path / str(point)
        assert forks.run(*SMALL, folder, die_at=point).status == -signal.SIGKILL
        assert_whole(folder)
        resumed = forks.run(*SMALL, folder)
        assert resumed.status == 0, resumed.err
        assert contents(folder) == complete[SMALL], point
        assert not list(folder.glob(".*.tmp"))


@pytest.mark.slow
def test_killed_at_random_times(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """SIGKILL at random times, again and again until the run is complete, in one process and in two."""
    choose = random.Random(0)
    started = time.perf_counter()
    assert forks.run(*LARGE, tmp_path / "timed").status == 0
    longest = time.perf_counter() - started
    kills, runs = 0, 0
    while kills < 24:
        folder = tmp_path / str(runs)
        for _ in range(20):
            ended = forks.together((*LARGE, folder), 1 + runs % 2, kill_after=choose.uniform(0, longest))
            kills += sum(done.status == -signal.SIGKILL for done in ended)
            assert_whole(folder)
            if all(done.status == 0 for done in ended):
                break
        assert forks.run(*LARGE, folder).status == 0
        assert contents(folder) == complete[LARGE]
        runs += 1
    assert runs > 1


def test_damage_is_redone(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """A truncated shard, a flipped byte, a missing shard and a damaged manifest, of a run that was complete."""
    folder = tmp_path / "run"
    assert forks.run(*LARGE, folder).status == 0
    data = bytearray(complete[LARGE]["00004.safetensors"])
    data[-7] ^= 16
    (folder / "00004.safetensors").write_bytes(data)
    os.truncate(folder / "00007.safetensors", 100)
    (folder / "00011.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00004.safetensors is damaged"):
        distributed.load(folder)
    again = forks.run(*LARGE, folder)
    assert again.status == 0
    assert "50 in 17 batches, 14 of them there before" in again.out
    assert contents(folder) == complete[LARGE]
    (folder / "manifest.json").write_bytes(complete[LARGE]["manifest.json"].replace(b'"seed": 0', b'"seed": 1'))
    assert "17 of them there before" in forks.run(*LARGE, folder).out
    assert contents(folder) == complete[LARGE]


@pytest.mark.parametrize("size", [1, 2])
def test_another_setting_is_refused(forks: Forks, complete: Complete, tmp_path: Path, size: int) -> None:
    """With the difference, by all processes, and nothing is mixed in."""
    folder = tmp_path / "run"
    assert forks.run(*SMALL, folder).status == 0
    ended = forks.together((*SMALL, folder, "--seed", 1, "--final", "none"), size)
    assert [done.status for done in ended] == [2] * size
    assert "was made with other settings" in ended[0].err
    assert "seed = 0 there, 1 now" in ended[0].err
    assert 'final = null there, "none" now' in ended[0].err
    assert ended[0].err.count("\n") == 1
    assert contents(folder) == complete[SMALL]


def test_a_run_can_be_extended(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """More samples later, also after an interruption: the folder of one run; fewer are refused."""
    folder = tmp_path / "run"
    shorter = tuple(25 if word == 50 else word for word in LARGE)
    assert forks.run(*shorter, folder).status == 0
    assert len(distributed.load(folder)["x"]) == 25
    more = forks.run(*LARGE, folder, die_at=13)
    assert more.status == -signal.SIGKILL
    with pytest.raises(ValueError, match="is not complete"):
        distributed.load(folder)
    more = forks.run(*LARGE, folder)
    assert more.status == 0, more.err
    assert contents(folder) == complete[LARGE]
    fewer = forks.run(*shorter, folder)
    assert fewer.status == 2
    assert "is complete with n = 50, which may grow, and n = 25 was asked for" in fewer.err


def test_parts_of_a_run(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """Parts in one folder at the same time, or in folders of their own and merged: the files of one run."""
    parts = [f"{k}/3" for k in range(3)]
    for part in parts:
        assert forks.run(*LARGE, tmp_path / "shared", "--part", part).status == 0
    assert "17 of them there before" in forks.run(*LARGE, tmp_path / "shared").out
    assert contents(tmp_path / "shared") == complete[LARGE]
    folders = [tmp_path / part.replace("/", "-") for part in parts]
    for part, folder in zip(parts, folders, strict=True):
        assert forks.run(*LARGE, folder, "--part", part).status == 0
    some = forks.run("merge", *folders[:2], "--out", tmp_path / "merged")
    assert some.status == 1
    assert "is not complete" in some.out
    rest = forks.run("merge", *folders, "--out", tmp_path / "merged")
    assert rest.status == 0, rest.err
    assert contents(tmp_path / "merged") == complete[LARGE]
    assert forks.run(*SMALL, tmp_path / "small").status == 0
    other = forks.run("merge", folders[0], tmp_path / "small", "--out", tmp_path / "mixed")
    assert other.status == 2
    assert "was made with other settings" in other.err


def test_a_full_disk(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """A write that the system cuts short: one line, nothing half-done; with room again the run goes on."""
    sizes = {name: len(data) for name, data in complete[SMALL].items()}
    for limit in (200, sizes["00000.safetensors"] - 1, sizes["manifest.json"] - 1):  # settings, shards, the end
        folder = tmp_path / str(limit)
        full = forks.run(*SMALL, folder, file_limit=limit)
        assert full.status == 2
        assert "file too large; what was complete before stays, and the same command goes on" in full.err
        assert full.err.count("\n") == 1
        assert not list(folder.glob(".*.tmp"))
        assert_whole(folder)
        assert forks.run(*SMALL, folder).status == 0
        assert contents(folder) == complete[SMALL]


def test_a_read_only_folder(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """Refused in one line to who may not write; what is there stays, and can be read."""
    folder = tmp_path / "run"
    assert forks.run(*SMALL, folder).status == 0
    mode = folder.stat().st_mode
    try:
        folder.chmod(0o555)
        refused = forks.run(*SMALL, folder, unprivileged=True)
    finally:
        folder.chmod(mode)
    assert refused.status == 2
    assert f"sgm-sde: cannot write {folder / 'manifest.json'}: permission denied" in refused.err
    assert refused.err.count("\n") == 1
    assert contents(folder) == complete[SMALL]


def test_two_runs_on_one_folder(forks: Forks, complete: Complete, tmp_path: Path) -> None:
    """Started at once, one of them works; the others are refused, or come late and find it done: one run's folder."""
    ended = forks.together((*LARGE, tmp_path / "run"), 3, apart=True)
    statuses = {done.status for done in ended}
    assert 0 in statuses <= {0, 2}
    for done in ended:
        assert done.status == 0 or "another run is writing to" in done.err
    assert contents(tmp_path / "run") == complete[LARGE]


# --- likelihoods -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(8, (10, 3), generator=torch.Generator().manual_seed(0))


def likelihood_argv(data: Path, out: Path) -> tuple[object, ...]:
    return (
        "likelihood", "--model", MODEL, "--data", data, "--batch", 4, "--repeats", 2, "--steps", 16, "--trace", "exact",
        "--seed", 3, "--quiet", "--out", out,
    )  # fmt: skip


def test_likelihoods_are_those_of_one_call(forks: Forks, images: torch.Tensor, tmp_path: Path) -> None:
    """In one process, in two, and killed and resumed: the same files, with the figures of bits_per_dim."""
    np.save(tmp_path / "data.npy", images.numpy().astype(np.uint8))
    folders = [tmp_path / name for name in ("one", "two", "killed")]
    one = forks.run(*likelihood_argv(tmp_path / "data.npy", folders[0]))
    two = forks.together(likelihood_argv(tmp_path / "data.npy", folders[1]), 2)
    assert forks.run(*likelihood_argv(tmp_path / "data.npy", folders[2]), die_at=7).status == -signal.SIGKILL
    assert forks.run(*likelihood_argv(tmp_path / "data.npy", folders[2])).status == 0
    assert [one.status, two[0].status, two[1].status] == [0, 0, 0]
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])
    model = mixture()
    options = {"repeats": 2, "seed": 3, "method": FixedGrid(16), "trace": "exact"}
    with pytest.warns(UserWarning, match="a uniform guess over 8 levels"):  # these images are not the mixture's
        expected = sg.bits_per_dim(model.score, model.sde, images, n_levels=8, data_range=(-2.0, 2.0), **options)
    result = read_manifest(folders[0])["result"]
    values = distributed.load(folders[0])
    # single precision: a batch of another size may sum in another order
    assert torch.allclose(values["bits_per_dim"], expected.per_image, rtol=0, atol=1e-5)
    assert torch.allclose(values["draws"], expected.repeats.T, rtol=0, atol=1e-5)
    assert result["bits_per_dim"] == pytest.approx(expected.value, abs=1e-5)
    assert result["stderr"] == pytest.approx(expected.stderr, abs=1e-5)
    assert (result["protocol"], result["nfe"]) == (expected.protocol, expected.nfe)
    assert f"{expected.value:.4f} +- {expected.stderr:.4f} bits/dim (Jensen bound" in one.out


def test_labels_condition_the_likelihood(tmp_path: Path) -> None:
    """The digits network with the labels of the file: better than without, on what it draws itself."""
    distributed.sample("digits", 10, tmp_path / "run", nfe=10, device="cpu")
    drawn = distributed.load(tmp_path / "run")
    levels = ((drawn["x"] + 1) * 8).round().clamp(0, 16).to(torch.uint8)
    safetensors.torch.save_file({"x": levels, "y": drawn["y"]}, tmp_path / "data.safetensors")
    images, labels = read_data(tmp_path / "data.safetensors")
    options = {"dequantize": "diffusion", "eps": 0.1, "method": FixedGrid(12), "device": "cpu"}
    bits = [
        distributed.likelihood("digits", images, tmp_path / str(y is None), labels=y, **options).result["bits_per_dim"]
        for y in (labels, None)
    ]
    assert bits[0] < bits[1]


@pytest.fixture
def data_files(images: torch.Tensor, tmp_path: Path) -> Path:
    """Data of each kind, and what is none."""
    x, y = images.numpy(), np.arange(10)
    np.save(tmp_path / "a.npy", x.astype(np.uint16))
    np.savez(tmp_path / "b.npz", x=x.astype(np.uint8), y=y)
    np.savez(tmp_path / "c.npz", pictures=x)
    np.savez(tmp_path / "d.npz", pictures=x, labels=y)
    np.save(tmp_path / "e.npy", np.array(["a"]))
    np.save(tmp_path / "f.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "g.npy").write_text("no array")
    (tmp_path / "h.safetensors").write_text("no tensors")
    (tmp_path / "i.png").write_text("")
    return tmp_path


@pytest.mark.parametrize("name, labels", [("a.npy", None), ("b.npz", list(range(10))), ("c.npz", None)], ids=case_id)
def test_data_files(images: torch.Tensor, data_files: Path, name: str, labels: list[int] | None) -> None:
    """The three kinds of file, with labels and without."""
    found, classes = read_data(data_files / name)
    assert torch.equal(found.long(), images)
    assert (None if classes is None else classes.tolist()) == labels


@pytest.mark.parametrize(
    "name, text",
    [
        ("d.npz", "no array 'x' for the images, but 'labels', 'pictures'"),
        ("e.npy", "must hold numbers"),
        ("f.npy", "holds no images"),
        ("g.npy", "holds no images"),
        ("h.safetensors", "holds no images"),
        ("i.png", "must end in .npy, .npz or .safetensors"),
    ],
)
def test_what_data_files_do_not_hold_is_said(data_files: Path, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_data(data_files / name)


def test_a_data_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot read .*: no such file"):
        read_data(tmp_path / "j.npy")


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mps` is a device of the commands, and a machine without one says so in one line."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for command in (["sample", "--out", str(tmp_path / "run"), "-n", "2"], ["bench", "--out", str(tmp_path / "bench")]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--model", "digits", "--device", "mps"])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert "MPS" in error.upper() and error.count("\n") == 1
    with pytest.raises(ValueError, match="device 'mps' is not on this machine, where torch finds 0 of its kind"):
        sg.VPSDE().prior_sample((2, 2), device="mps")


DIGITS = ("sample", "--model", "digits", "--n", 5)


def refused(argv: Sequence[object], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with exit status 2, and leaves nothing."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, argv), "--quiet", "--out", str(folder)])
    assert stop.value.code == 2
    assert not folder.exists() or not contents(folder)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, text",
    [
        (("sample", "--model", "digit", "--n", 5), "did you mean 'digits'"),
        (("sample", "--model", "nowhere:make", "--n", 5), "no module 'nowhere'"),
        (("sample", "--model", "digits", "--n", 0), "n must be an integer of at least 1, got 0"),
        ((*DIGITS, "--batch", 0), "batch must be an integer of at least 1, got 0"),
        ((*DIGITS, "--solver", "dpm+2m"), "did you mean 'dpm++2m'"),
        ((*DIGITS, "--nfe", 0), "got 0"),
        ((*DIGITS, "--nfe", 9, "--steps", 9), "not both"),
        ((*DIGITS, "--grid", "karas"), "did you mean 'karras'"),
        ((*DIGITS, "--labels", "10"), "classes 0 to 9, got label 10"),
        ((*DIGITS, "--labels", "a"), "got 'a'"),
        ((*DIGITS, "--seed", -1), "-1"),
        ((*DIGITS, "--threads", 0), "threads must be an integer of at least 1, got 0"),
        (("sample", "--model", MODEL, "--n", 5, "--labels", "0"), "has no classes"),
        (("likelihood", "--model", MODEL, "--data", "none.npy"), "no such file"),
        (("likelihood", "--model", MODEL, "--data", "float.npy"), "integer dtype, got dtype torch.float64"),
        (("likelihood", "--model", MODEL, "--data", "shape.npy"), "(n, 3), got (4, 2)"),
        (("likelihood", "--model", MODEL, "--data", "high.npy"), "[0, 8) for --n-levels=8, got 8 to 8"),
        (("likelihood", "--model", MODEL, "--data", "good.npy", "--with-labels"), "no array y"),
        (("likelihood", "--model", MODEL, "--data", "good.npy", "--data-range", 1, -1), "low < high"),
        (("likelihood", "--model", MODEL, "--data", "good.npy", "--trace", "exat"), "got 'exat'"),
        (("likelihood", "--model", MODEL, "--data", "good.npy", "--repeats", 0), "repeats"),
    ],
    ids=case_id,
)
def test_bad_arguments_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[object, ...],
    text: str,
) -> None:
    """Exit status 2, the offending value, and nothing left that would stand in a better command's way."""
    monkeypatch.chdir(tmp_path)
    np.save("float.npy", np.zeros((4, 3)))
    np.save("shape.npy", np.zeros((4, 2), dtype=int))
    np.save("high.npy", np.full((4, 3), 8))
    np.save("good.npy", np.zeros((4, 3), dtype=int))
    error = refused(argv, tmp_path / "run", capsys)
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "argv", [DIGITS[:-2], (*DIGITS, "--nef", 5), (*DIGITS, "--see", 5), (*DIGITS, "--device", "tpu")], ids=case_id
)
def test_what_is_no_option_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[object, ...]
) -> None:
    refused(argv, tmp_path / "run", capsys)


def test_samples_that_fail_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their numbers, exit status 1, and the others are there."""
    argv = ["sample", "--model", "tests.forks:nan_above_one", "-n", "40", "--batch", "16", "--solver", "ddim"]
    assert main([*argv, "--nfe", "5", "--quiet", "--out", str(tmp_path / "run")]) == 1
    x = distributed.load(tmp_path / "run")["x"].flatten()
    failed = (~x.isfinite()).nonzero().flatten().tolist()
    assert 0 < len(failed) < 20
    told = f"{len(failed)} of them are not finite, did not reach the end or cannot be right: {failed[0]}"
    assert told in capsys.readouterr().out
    assert read_manifest(tmp_path / "run")["result"]["failed"] == failed


def test_a_progress_bar_counts_samples(forks: Forks, tmp_path: Path) -> None:
    """All processes' samples, those that were there before from the start, with rate and time left."""
    argv = tuple(word for word in LARGE if word != "--quiet")
    assert forks.run(*LARGE, tmp_path / "run").status == 0
    for k in range(5, 17):
        (tmp_path / "run" / f"{k:05d}.safetensors").unlink()
    assert "15/50" in forks.run(*argv, tmp_path / "run").err
    for k in range(5, 17):
        (tmp_path / "run" / f"{k:05d}.safetensors").unlink()
    ended = forks.together((*argv, tmp_path / "run"), 2)
    bar = ended[0].err
    assert "50/50" in bar
    assert "sample/s" in bar
    assert ended[1].err == ""


def test_the_callers_state_is_left_alone(tmp_path: Path) -> None:
    """Threads and random state are as they were."""
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(2)
    try:
        distributed.sample(mixture(), 4, tmp_path / "run", nfe=4, device="cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("solver", ["euler-maruyama", "sde-dpm++2m", "ancestral", "pc"])
@pytest.mark.parametrize("noise", ["independent", "path"])
def test_calls_that_continue_one_another_with_one_seed(solver: str, noise: str) -> None:
    """The second starts at another time, and so has noise of its own: data of variance 1 keep it."""
    sde = sg.VPSDE()
    score = sg.oracles.Gaussian(torch.zeros(4), 1.0).score(sde)
    options: dict[str, Any] = {"solver": solver, "steps": 60, "seed": 0, "noise": noise, "final": "none"}
    first = sg.sample(score, sde, (1500, 4), t_end=0.5, **options)
    x = sg.sample(score, sde, x_T=first.x, t_start=0.5, **options).x
    other = sg.sample(score, sde, x_T=first.x, t_start=0.5, **options | {"seed": 1}).x
    assert float(x.std()) == pytest.approx(float(other.std()), abs=5 * math.sqrt(1 / x.numel()))
    assert abs(float((first.x * x).mean()) - float((first.x * other).mean())) < 6 / math.sqrt(x.numel())


WRONG: dict[str, tuple[list[str], str]] = {
    "a scale that is no number": (["sample", "-n", "2", "--guidance", "nan"], "guidance must be finite, .* got nan"),
    "guidance without classes": (
        ["sample", "-n", "2", "--guidance", "2", "--labels", "none"],
        "--guidance=2 is towards classes, and --labels=none names none of the model 'digits'",
    ),
    "no classes": (["sample", "-n", "2", "--labels", ","], "--labels must be all, none, or classes .* got ','"),
    "no solvers": (["bench", "--solvers", ","], "argument --solvers: names with commas between, got ','"),
    "no grids": (["bench", "--grids", " , "], "argument --grids: names with commas between, got ' , '"),
    "no budgets": (["bench", "--nfe", ","], "argument --nfe: integers such as 5,10,20, got ','"),
    "a result of another kind": (["bench", "--beside", "LIST"], "LIST holds no result .* have another form"),
    "a result without a format": (["bench", "--beside", "OBJECT"], "OBJECT holds no result .* it has no 'format'"),
    "edges that are no numbers": (
        ["likelihood", "--data", "IMAGES.npy", "--data-range", "nan", "1"], "--data-range must be .* got .nan, 1.0."
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_options_are_told_in_their_own_words(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the value, exit status 2, and no folder made."""
    monkeypatch.chdir(tmp_path)
    Path("LIST").write_text("[1, 2]")
    Path("OBJECT").write_text("{}")
    np.save("IMAGES.npy", np.zeros((2, 1, 8, 8), dtype=np.uint8))
    argv, shown = WRONG[wrong]
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--model", "digits", "--out", "run", "--quiet"])
    assert ended.value.code == 2
    assert re.search(shown, capsys.readouterr().err)
    assert not Path("run").exists()


COMMANDS_WITH_FOLDERS: dict[str, list[str]] = {
    "sample": ["--model", "digits", "-n", "2"],
    "likelihood": ["--model", "digits", "--data", "images.npy"],
    "bench": ["--model", "digits"],
    "merge": ["there"],
    "demo": [],
}


@pytest.mark.parametrize("inside", ["", "/run"])
@pytest.mark.parametrize("command", COMMANDS_WITH_FOLDERS)
def test_a_file_is_no_folder_for_results(
    command: str, inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main([command, *COMMANDS_WITH_FOLDERS[command], "--out", f"{tmp_path}/notes{inside}"])
    assert ended.value.code == 2
    assert re.search(rf"notes{inside} is to be a folder, and .* is a file", capsys.readouterr().err)
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.filterwarnings("always")
def test_the_command_says_why_all_samples_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, with the number of all, and again where the run is there already."""
    argv = ["sample", "--model", "digits", "-n", "6", "--batch", "4", "--solver", "heun", "--nfe", "5", "--quiet"]
    for _ in range(2):
        assert main([*argv, "--out", str(tmp_path / "run")]) == 1
        told = capsys.readouterr().err
        assert told.count("all 6 samples: in so few calls on this grid heun ends at least twice as large") == 1
        assert told.count("warning") == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(("factory", "told"), [("make", True), ("other", False)])
def test_a_network_that_lacks_its_condition(
    factory: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says how conditions get there, and only of networks."""
    text = "import sgm_sde as sg\nsde = sg.VPSDE()\n"
    text += "def make(): return sg.from_noise(lambda x, t, y: x, sde), sde, (3,)\ndef other(size): return size\n"
    (tmp_path / "lacking_condition.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    command = ["sample", "--model", f"lacking_condition:{factory}", "--out", "run", "-n", "2", "--nfe", "2"]
    with pytest.raises(SystemExit):
        main([*command, "--quiet"])
    said = capsys.readouterr().err
    assert "missing 1 required positional argument" in said
    assert ("models.Model(..., n_classes=...)" in said) is told
