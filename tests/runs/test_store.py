"""Models by name, and the folder of results: what it holds is whole, its own, and nobody else's."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sgm_sde as sg
from sgm_sde._utils import lock as lock_module
from sgm_sde.identity import measured
from sgm_sde.runs import store as module
from sgm_sde.runs.store import Store, read_manifest, read_run, read_shard, write_atomically
from tests.conventions import case_id
from tests.forks import ENV

SETTINGS = {"solver": "heun", "grid": {"name": "karras", "rho": 7.0}, "shape": (3, 8), "nfe": 20}
X = {"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor([1, 2])}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "run", SETTINGS) as opened:
        yield opened


# --- what is there ---------------------------------------------------------------------------------------------------


def test_shards_come_back_as_they_were(store: Store) -> None:
    """Tensors of any dtype and what is known of them; a shard is replaced as a whole and removed."""
    tensors = X | {"half": torch.ones(2, dtype=torch.bfloat16), "none": torch.empty(0, 4), "view": X["x"].T[:2]}
    info = {"nfe": 5, "failed": [1, 2], "text": "0" * 64}
    assert not store.has("00001")
    store.save("00001", tensors, info)
    assert store.has("00001")
    loaded = store.load("00001")
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value)
    assert store.info("00001") == info
    store.save("00001", X)
    assert store.load("00001").keys() == X.keys()
    assert store.info("00001") == {}
    assert list(store.names()) == ["00001"]
    store.remove("00001")
    assert not store.has("00001")
    with pytest.raises(ValueError, match=r"00001.safetensors is not there"):
        store.load("00001")
    with pytest.raises(ValueError, match="letters, digits"):
        store.save("a/b", X)


def test_the_same_bytes_for_the_same_contents(store: Store) -> None:
    """The order in which tensors are given does not matter to the file."""
    store.save("a", X, {"nfe": 5})
    data = store.path("a").read_bytes()
    store.save("a", dict(reversed(X.items())), {"nfe": 5})
    assert store.path("a").read_bytes() == data


def test_every_damage_is_seen(store: Store) -> None:
    """A flipped bit anywhere, a cut anywhere, and bytes too many: the shard counts as missing."""
    store.save("a", X, {"nfe": 5})
    path = store.folder / "a.safetensors"
    data = path.read_bytes()
    damaged = [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]
    damaged += [data[:i] for i in range(len(data))] + [data + b" ", data + data]
    for wrong in damaged:
        path.write_bytes(wrong)
        assert not store.has("a")
        with pytest.raises(ValueError, match="damaged"):
            read_shard(path)
    path.write_bytes(data)
    assert store.has("a")


def test_a_manifest_lists_what_is_complete(store: Store) -> None:
    """Checksums that `sha256sum` agrees with, the settings, the versions and the result."""
    store.save("a", X)
    store.save("b", X)
    assert "shards" not in read_manifest(store.folder)
    store.finish(["a", "b"], {"mean": 1.5})
    manifest = read_manifest(store.folder)
    for name, entry in manifest["shards"].items():
        data = (store.folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert sorted(manifest["shards"]) == ["a.safetensors", "b.safetensors"]
    assert manifest["settings"] == json.loads(json.dumps(SETTINGS))
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["noise"] == "philox-4x64-10, squares-64"
    assert manifest["result"] == {"mean": 1.5}
    store.remove("b")
    with pytest.raises(ValueError, match=r"b.safetensors is missing or damaged"):
        store.finish(["a", "b"])


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_with_the_difference(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changed, what came and what went, nested ones by their path; the folder stays as it was."""
    store.save("a", X)
    store.close()
    before = {p.name: p.read_bytes() for p in store.folder.iterdir()}
    other = {"solver": "heun", "grid": {"name": "karras", "rho": 5.0}, "nfe": 20, "seed": 0}
    with pytest.raises(ValueError, match="was made with other settings") as refused:
        Store(store.folder, other)
    assert "grid.rho = 7.0 there, 5.0 now" in str(refused.value)
    assert "seed = absent there, 0 now" in str(refused.value)
    assert "shape = [3, 8] there, absent now" in str(refused.value)
    assert "solver" not in str(refused.value)
    monkeypatch.setattr(module, "__version__", "99")
    with pytest.raises(ValueError, match=r'version of sgm_sde = ".*" there, "99" now'):
        Store(store.folder, SETTINGS)
    monkeypatch.undo()
    assert before == {p.name: p.read_bytes() for p in store.folder.iterdir()}
    with Store(store.folder, SETTINGS) as again:
        assert again.has("a")


def test_long_settings_are_shortened_where_they_differ(tmp_path: Path) -> None:
    """A refusal holds the beginning of a long table, and its length."""
    table = [0.001 * i for i in range(1000)]
    with Store(tmp_path / "run", {"betas": table}) as made:
        made.save("a", X)
    with pytest.raises(ValueError, match=r"betas = \[0.0, 0.001, .*\.\.\. \(\d+ characters\) there") as refused:
        Store(tmp_path / "run", {"betas": table[::-1]})
    assert len(str(refused.value)) < 800 + len(str(tmp_path))


def test_one_run_at_a_time(store: Store) -> None:
    """A second run is refused while the first has the folder open, and reading is not."""
    store.save("a", X)
    with pytest.raises(BlockingIOError, match=f"another run is writing to .*process {os.getpid()} on "):
        Store(store.folder, SETTINGS)
    assert torch.equal(read_shard(store.folder / "a.safetensors")[0]["x"], X["x"])
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.save("a", X)
    Store(store.folder, SETTINGS).close()


def test_processes_of_one_run_share_a_folder(tmp_path: Path) -> None:
    """Those that join hold the folder too: another run waits until the last of them has let go."""
    with pytest.raises(ValueError, match=r"holds no readable manifest"):
        Store.join(tmp_path, SETTINGS)
    first = Store(tmp_path, SETTINGS, shared=True)
    with pytest.raises(ValueError, match=r"nfe = 20 there, 10 now"):
        Store.join(tmp_path, SETTINGS | {"nfe": 10})
    with Store.join(tmp_path, SETTINGS) as second:
        second.save("a", X)
        assert first.has("a")
        first.close()
        with pytest.raises(BlockingIOError):
            Store(tmp_path, SETTINGS)
    Store(tmp_path, SETTINGS).close()


def test_leftovers_go_and_strangers_stay(tmp_path: Path) -> None:
    """What a killed run left half-written is removed; a folder with other things in it is refused and left alone."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".a.safetensors.12345678.tmp").write_bytes(b"half")
    with Store(tmp_path / "run", SETTINGS) as store:
        assert sorted(p.name for p in store.folder.iterdir()) == [".lock", "manifest.json"]
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds .*, which is not of this run"):
        Store(tmp_path, SETTINGS)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-5], lambda data: data.replace(b"20", b"10")])
def test_a_damaged_manifest_is_written_anew(store: Store, damage: object) -> None:
    """The shards know their settings: those of this run count, and a folder with others' is refused."""
    store.save("a", X)
    store.close()
    path = store.folder / "manifest.json"
    data = path.read_bytes()
    path.write_bytes(damage(data))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"a.safetensors, which is not of this run"):
        Store(store.folder, SETTINGS | {"nfe": 10})
    with Store(store.folder, SETTINGS) as again:
        assert again.has("a")
    assert path.read_bytes() == data


@pytest.mark.parametrize("bad", [{"x": torch.zeros(1)}, {"eps": float("nan")}], ids=case_id)
def test_settings_are_json(tmp_path: Path, bad: dict[str, object]) -> None:
    """Anything else is refused before the folder is made."""
    with pytest.raises(ValueError, match="JSON"):
        Store(tmp_path / "run", bad)
    assert not (tmp_path / "run").exists()


def test_what_is_refused_or_saves_nothing_leaves_nothing(tmp_path: Path) -> None:
    """Neither lock nor folders; what was there before stays."""
    with Store(tmp_path / "a" / "b", SETTINGS):
        pass
    assert not list(tmp_path.iterdir())

    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.txt"):
        Store(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    """A file in the way is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"{tmp_path / name} is to be a folder, and .* is a file"):
        Store(tmp_path / name, SETTINGS)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A complete folder of three shards, with another run's beside it."""
    for name, seed in (("run", 0), ("other", 1)):
        with Store(tmp_path / name, SETTINGS | {"seed": seed}) as store:
            for k in range(3):
                store.save(f"0000{k}", {"x": torch.full((2,), 10.0 * seed + k)}, {"k": k})
            store.finish([f"0000{k}" for k in range(3)])
    return tmp_path / "run"


def exchanged(run: Path, other: Path) -> None:
    a, b = (run / f"0000{k}.safetensors" for k in (0, 1))
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)


def duplicated(run: Path, other: Path) -> None:
    (run / "00001.safetensors").write_bytes((run / "00000.safetensors").read_bytes())


def of_another_run(run: Path, other: Path) -> None:
    (run / "00001.safetensors").write_bytes((other / "00001.safetensors").read_bytes())


def manifest_of_another_run(run: Path, other: Path) -> None:
    (run / "manifest.json").write_bytes((other / "manifest.json").read_bytes())


def outside(run: Path, other: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["shards"]["../other/00001.safetensors"] = manifest["shards"].pop("00001.safetensors")
    (run / "manifest.json").write_bytes(module._pretty(manifest))


def another_format(run: Path, other: Path) -> None:
    (run / "manifest.json").write_bytes(module._pretty({"format": "sgm_sde results 99", "new": 1}))


def replaced(run: Path, other: Path) -> None:
    """A shard of this run and name, but not the one that the manifest was written for."""
    manifest = json.loads((run / "manifest.json").read_bytes())
    with Store(run, SETTINGS | {"seed": 0}) as store:
        store.save("00001", {"x": torch.full((2,), 7.0)}, {"k": 1})
    assert json.loads((run / "manifest.json").read_bytes()) == manifest


@pytest.mark.parametrize(
    ("attack", "text", "again"),
    [
        (exchanged, "00000.safetensors is the shard '00001' under another name", 1),
        (duplicated, "00001.safetensors is the shard '00000' under another name", 2),
        (of_another_run, "00001.safetensors is a shard of another run", 2),
        (manifest_of_another_run, "00000.safetensors is a shard of another run", "was made with other settings"),
        (outside, "names '../other/00001.safetensors', which is no shard in it", 3),
        (another_format, "its format is 'sgm_sde results 99'", "another version of sgm_sde"),
        (replaced, "00001.safetensors is not the shard that the manifest was written for", 2),
    ],
)
def test_what_is_not_of_the_run_is_not_read(
    finished: Path, attack: Callable[[Path, Path], None], text: str, again: int | str
) -> None:
    """Reading says which file is wrong; a run counts as there only what is its own."""
    attack(finished, finished.parent / "other")
    with pytest.raises(ValueError, match=re.escape(text)):
        _, shards = read_run(finished)
        list(shards)
    if isinstance(again, str):
        with pytest.raises(ValueError, match=again):
            Store(finished, SETTINGS | {"seed": 0})
    else:
        with Store(finished, SETTINGS | {"seed": 0}) as store:
            assert sum(store.has(f"0000{k}") for k in range(3)) == again


def test_a_setting_may_grow(tmp_path: Path) -> None:
    """What is there stays valid for more; for less than a complete run has, it is refused."""
    with Store(tmp_path, SETTINGS | {"n": 4}, growing=["n"]) as store:
        store.save("00000", X)
        store.finish(["00000"])
    data = (tmp_path / "00000.safetensors").read_bytes()
    with Store(tmp_path, SETTINGS | {"n": 8}, growing=["n"]) as store:
        assert store.has("00000")
        assert "shards" not in read_manifest(tmp_path)
        assert read_manifest(tmp_path)["settings"]["n"] == 8
        store.save("00001", X)
        store.finish(["00000", "00001"])
    assert (tmp_path / "00000.safetensors").read_bytes() == data
    with pytest.raises(ValueError, match="complete with n = 8, which may grow, and n = 4 was asked for"):
        Store(tmp_path, SETTINGS | {"n": 4}, growing=["n"])
    with pytest.raises(ValueError, match=r"nfe = 20 there, 10 now"):
        Store(tmp_path, SETTINGS | {"n": 9, "nfe": 10}, growing=["n"])
    with pytest.raises(ValueError, match=r"growing = \['n'\] there"):
        Store(tmp_path, SETTINGS | {"n": 8})


def test_measured_settings_agree_within_their_tolerance(tmp_path: Path) -> None:
    """The first run's stay, so that shards are the same whoever goes on; others are refused."""
    settings = [SETTINGS | {"outputs": measured([[1.0, 2.0 + change]], 1e-3)} for change in (0.0, 1e-4, 0.1)]
    with Store(tmp_path, settings[0]) as store:
        store.save("a", X)
        data = store.path("a").read_bytes()
    with Store(tmp_path, settings[1]) as store:
        assert store.has("a")
        store.save("a", X)
        assert store.path("a").read_bytes() == data
    with pytest.raises(ValueError, match=r"outputs differ by 0\.04\d* of their size"):
        Store(tmp_path, settings[2])


def test_other_peoples_files_stay(store: Store, tmp_path: Path) -> None:
    """Temporary files that look like others', a lock that is a link, a name that is none."""
    store.save("a", X)
    store.close()
    own, foreign = store.folder / ".a.safetensors.0123abcd.tmp", store.folder / ".mine.tmp"
    for path in (own, foreign):
        path.write_bytes(b"half")
    with pytest.raises(ValueError, match="other settings"):
        Store(store.folder, SETTINGS | {"nfe": 10})
    assert own.exists()
    Store(store.folder, SETTINGS).close()
    assert not own.exists()
    assert foreign.exists()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (store.folder / ".lock").unlink()
    (store.folder / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="is a link, which a lock cannot be"):
        Store(store.folder, SETTINGS)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("call", [lambda path: Store(path, SETTINGS), read_manifest, read_shard], ids=case_id)
def test_names_with_a_nul_character_are_refused(tmp_path: Path, call: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="no file or folder has a NUL character"):
        call(f"{tmp_path}/a\0b")


def test_a_folder_that_is_deleted(store: Store) -> None:
    """The next write says so."""
    shutil.rmtree(store.folder)
    with pytest.raises(OSError, match="no such file or directory; what was complete before stays"):
        store.save("a", X)


def test_a_lock_that_is_deleted_lets_nobody_write_beside(tmp_path: Path) -> None:
    """The run that held it ends at its next write with one line, whether another one has begun or not."""
    with Store(tmp_path / "run", {"n": 1}) as store:
        (store.folder / ".lock").unlink()
        with pytest.raises(OSError, match=r"\.lock was deleted while this run was writing"):
            store._write("a.json", b"{}")
        with Store(tmp_path / "run", {"n": 1}) as other:
            with pytest.raises(OSError, match=r"\.lock was deleted while this run was writing"):
                store._write("a.json", b"{}")
            other._write("a.json", b"{}")


def test_the_lock_without_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows one process holds a byte of the file, and a second is refused with the first one's name."""
    held: set[int] = set()

    def locking(file: int, mode: int, n: int) -> None:
        inode = os.fstat(file).st_ino
        assert (os.lseek(file, 0, os.SEEK_CUR), n) == (2**30, 1)
        if mode == 0:
            held.discard(inode)
        elif inode in held:
            raise OSError(13, "permission denied")
        else:
            held.add(inode)

    monkeypatch.setattr(lock_module, "fcntl", None)
    monkeypatch.setattr(lock_module, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0), raising=False)
    with Store(tmp_path, SETTINGS, shared=True) as store:
        store.save("a", X)
        with pytest.raises(BlockingIOError, match=f"another run is writing to .*process {os.getpid()} on "):
            Store(tmp_path, SETTINGS)
        with Store.join(tmp_path, SETTINGS) as second:
            assert second.has("a")
    Store(tmp_path, SETTINGS).close()


# --- models ----------------------------------------------------------------------------------------------------------

SOURCE = """
import torch, sgm_sde as sg
def score(x, t): return -x
def triple(): return sg.from_score(score, sg.VPSDE()), sg.VPSDE(), (3,)
def model():
    score = sg.from_noise(lambda x, t: x, sg.VPSDE())
    return sg.models.Model("mine", score, sg.VPSDE(), (3,), n_classes=4)
def number(): return 3
constant = 4
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    monkeypatch.chdir(tmp_path)
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_models_of_ones_own(mine: str, tmp_path: Path) -> None:
    """A factory in the current directory gives a tuple or a Model."""
    triple = sg.load_model(f"{mine}:triple")
    assert (triple.name, triple.shape, triple.sde, triple.n_classes) == (f"{mine}:triple", (3,), sg.VPSDE(), None)
    assert triple.weights == ""
    assert sg.load_model(f"{mine}:model").n_classes == 4


@pytest.mark.parametrize(
    "name, kind, text",
    [
        ("digit", ValueError, "unknown model 'digit'; did you mean 'digits'"),
        ("{mine}:tripel", ValueError, "has no function 'tripel'; did you mean 'triple'"),
        ("{mine}:constant", ValueError, "has no function 'constant'"),
        ("{mine}:number", ValueError, "must return a Model or \\(score, sde, shape\\), got int"),
        ("{mine}s:triple", ImportError, "no module '{mine}s'.*did you mean '{mine}'"),
        (":triple", ValueError, "no name of a module"),
    ],
    ids=case_id,
)
def test_names_that_are_none(mine: str, name: str, kind: type[Exception], text: str) -> None:
    """Errors say what was meant, with near names."""
    with pytest.raises(kind, match=text.format(mine=mine)):
        sg.load_model(name.format(mine=mine))


def test_files_of_the_current_folder_take_no_librarys_place(tmp_path: Path) -> None:
    """A model may lie among files named like libraries: its own imports find them, those of a command do not."""
    for library in ("numpy", "torch", "tqdm", "PIL", "safetensors"):
        (tmp_path / f"{library}.py").write_text("raise RuntimeError('a foreign file')\n")
    (tmp_path / "helper.py").write_text("import sgm_sde as sg\ndef score(x, t): return -x\n")
    (tmp_path / "mine.py").write_text(
        "import sgm_sde as sg\ndef make():\n    from helper import score\n    return score, sg.VPSDE(), (1, 4, 4)\n"
    )
    command = ["-m", "sgm_sde", "sample", "--model", "mine:make", "-n", "2", "--nfe", "2", "--out", "run"]
    ended = subprocess.run([sys.executable, *command], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "2 in 1 batches" in ended.stdout


def test_the_current_folder_is_the_last_to_look_in(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first while a model is made; the caller's own order stays."""
    before = [path for path in sys.path if path != str(tmp_path)]
    monkeypatch.setattr(sys, "path", list(before))
    sg.load_model(f"{mine}:triple")
    assert sys.path == [*before, str(tmp_path)]
    sg.load_model(f"{mine}:model")
    assert sys.path == [*before, str(tmp_path)]


class Chain(nn.Sequential):
    """Layers that take no notice of time."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def test_weights_tell_networks_apart() -> None:
    """The fingerprint depends on names and values of parameters and buffers, and on nothing else."""
    sde = sg.VPSDE()

    def weights(net: nn.Module) -> str:
        return sg.models.Model("m", sg.from_noise(net, sde), sde, (2,)).weights

    with torch.random.fork_rng():
        net = Chain(nn.Linear(2, 2), nn.BatchNorm1d(2))
    first = weights(net)
    assert first == weights(net.train()) == weights(net.eval().requires_grad_(False))
    net[1].running_mean[0] += 1e-6
    assert weights(net) != first
    assert weights(Chain(net[0])) != weights(net)
    assert sg.models.Model("m", sg.from_score(lambda x, t: -x, sde), sde, (2,)).weights == ""


class OfTwo(nn.Module):
    """A network without weights."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x


def test_a_network_of_several_processes_is_refused() -> None:
    """Its module is what makes a model."""
    sde = sg.VPSDE()
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = OfTwo()
    with pytest.raises(ValueError, match=r"pass net.module"):
        sg.models.Model("m", sg.from_noise(wrapped, sde), sde, (3,))


@pytest.mark.parametrize(
    "options, text",
    [
        ({"shape": (3, 0)}, r"shape\[1\] must be an integer of at least 1, got 0"),
        ({"n_classes": 0}, "n_classes .* got 0"),
        ({"n_levels": 1}, "n_levels .* got 1"),
        ({"data_range": (1.0, -1.0)}, "low < high"),
        ({"sde": sg.VESDE()}, "the score was made for another process than the call is on"),
    ],
    ids=case_id,
)
def test_a_model_is_checked(options: dict[str, object], text: str) -> None:
    """Wrong shapes, counts and ranges are refused."""
    sde = sg.VPSDE()
    score = sg.from_score(lambda x, t: -x, sde)

    with pytest.raises(ValueError, match=text):
        sg.models.Model(**({"name": "m", "score": score, "sde": sde, "shape": (3,)} | options))  # type: ignore[arg-type]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the system does not name, and nothing is left of it."""

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/found\.json'"):
        write_atomically(tmp_path / "found.json", b"{}")
    assert not list(tmp_path.iterdir())
