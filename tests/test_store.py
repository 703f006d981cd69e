"""Models by name, and the folder of results: what it holds is whole, its own, and nobody else's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import sgm_sde as sg
from sgm_sde import store as module
from sgm_sde.store import Store, read_manifest, read_shard

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
    store.save("b", dict(reversed(X.items())), {"nfe": 5})
    a, b = ((store.folder / f"{name}.safetensors").read_bytes() for name in "ab")
    assert a == b


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
    for part in ("grid.rho = 7.0 there, 5.0 now", "seed = absent there, 0 now", "shape = [3, 8] there, absent now"):
        assert part in str(refused.value)
    assert "solver" not in str(refused.value)
    monkeypatch.setattr(module, "__version__", "99")
    with pytest.raises(ValueError, match=r'version of sgm_sde = ".*" there, "99" now'):
        Store(store.folder, SETTINGS)
    monkeypatch.undo()
    assert before == {p.name: p.read_bytes() for p in store.folder.iterdir()}
    with Store(store.folder, SETTINGS) as again:
        assert again.has("a")


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


def test_settings_are_json(tmp_path: Path) -> None:
    """Anything else is refused before the folder is made."""
    for bad in ({"x": torch.zeros(1)}, {"eps": float("nan")}):
        with pytest.raises(ValueError, match="JSON"):
            Store(tmp_path / "run", bad)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the way is named."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=f"cannot write {path}: (file exists|not a directory)"):
            Store(path, SETTINGS)


# --- models ----------------------------------------------------------------------------------------------------------

SOURCE = """
import torch, sgm_sde as sg
def score(x, t): return -x
def triple(): return sg.from_score(score, sg.VPSDE()), sg.VPSDE(), (3,)
def model(): return sg.Model("mine", sg.from_noise(torch.nn.Identity(), sg.VPSDE()), sg.VPSDE(), (3,), n_classes=4)
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
    """A factory in the current directory gives a tuple or a Model; without weights its file stands for them."""
    triple = sg.load_model(f"{mine}:triple")
    assert (triple.name, triple.shape, triple.sde, triple.n_classes) == (f"{mine}:triple", (3,), sg.VPSDE(), None)
    assert triple.weights == hashlib.sha256((tmp_path / f"{mine}.py").read_bytes()).hexdigest()
    assert sg.load_model(f"{mine}:model").n_classes == 4


def test_names_that_are_none(mine: str) -> None:
    """Errors say what was meant, with near names."""
    for name, kind, text in (
        ("digit", ValueError, "unknown model 'digit'; did you mean 'digits'"),
        (f"{mine}:tripel", ValueError, "has no function 'tripel'; did you mean 'triple'"),
        (f"{mine}:constant", ValueError, "has no function 'constant'"),
        (f"{mine}:number", ValueError, "must return a Model or \\(score, sde, shape\\), got int"),
        (f"{mine}s:triple", ImportError, f"no module '{mine}s'.*did you mean '{mine}'"),
        (":triple", ValueError, "no name of a module"),
    ):
        with pytest.raises(kind, match=text):
            sg.load_model(name)


def test_weights_tell_networks_apart() -> None:
    """The fingerprint depends on names and values of parameters and buffers, and on nothing else."""
    sde = sg.VPSDE()

    def weights(net: nn.Module) -> str:
        return sg.Model("m", sg.from_noise(net, sde), sde, (2,)).weights

    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    first = weights(net)
    assert first == weights(net.train()) == weights(net.eval().requires_grad_(False))
    net[1].running_mean[0] += 1e-6
    assert weights(net) != first
    assert weights(nn.Sequential(net[0])) != weights(net)
    assert sg.Model("m", sg.from_score(lambda x, t: -x, sde), sde, (2,)).weights == ""


def test_a_model_is_checked() -> None:
    """Wrong shapes, counts and ranges are refused."""
    sde = sg.VPSDE()
    score = sg.from_score(lambda x, t: -x, sde)
    for options, text in (
        ({"shape": (3, 0)}, "3, 0"),
        ({"n_classes": 0}, "n_classes .* got 0"),
        ({"n_levels": 1}, "n_levels .* got 1"),
        ({"data_range": (1.0, -1.0)}, "lo < hi"),
        ({"sde": sg.VESDE()}, "the score was made for"),
    ):
        with pytest.raises(ValueError, match=text):
            sg.Model(**({"name": "m", "score": score, "sde": sde, "shape": (3,)} | options))  # type: ignore[arg-type]
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    with pytest.raises(ValueError, match=r"pass net.module"):
        sg.Model("m", sg.from_noise(wrapped, sde), sde, (3,))
