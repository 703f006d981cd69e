"""Reading images, and the training script: its checkpoints, and each kind of data, on a few tiny images."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks import train_images
from sgm_sde.data.images import read_idx
from sgm_sde.nn.fashion import FashionClassifier, fashion_unet
from sgm_sde.nn.unet import EDMPreconditioned
from sgm_sde.training import load_images


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


@pytest.mark.parametrize("compressed", [True, False])
def test_idx(tmp_path: Path, compressed: bool) -> None:
    images, labels = pixels(5, 4, 3), np.arange(5, dtype=np.uint8)
    for stem, array in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)):
        if compressed:
            (tmp_path / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (tmp_path / stem).write_bytes(idx(array))
    read = load_images(tmp_path, "test")
    assert np.array_equal(read.pixels[:, 0].numpy(), images)
    assert read.labels is not None
    assert read.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(read.scaled(), read.pixels.float() / 127.5 - 1)
    with pytest.raises(FileNotFoundError, match="neither idx files nor pictures"):
        load_images(tmp_path, "train")


def test_npz(tmp_path: Path) -> None:
    grey, colour = pixels(4, 6, 5), pixels(4, 6, 5, 3)
    np.savez(tmp_path / "mnist.npz", x_train=grey, y_train=np.arange(4), x_test=grey[:2], y_test=np.arange(2))
    np.savez(tmp_path / "own.npz", images=colour)
    train, test = load_images(tmp_path / "mnist.npz"), load_images(tmp_path / "mnist.npz", "test")
    assert (train.pixels.shape, test.pixels.shape) == ((4, 1, 6, 5), (2, 1, 6, 5))
    assert train.labels is not None
    assert train.labels.dtype == torch.int64
    own = load_images(tmp_path / "own.npz")
    assert own.labels is None
    assert np.array_equal(own.pixels[1, 2].numpy(), colour[1, :, :, 2])


def test_pictures(tmp_path: Path) -> None:
    """One folder a class, in alphabetical order; or one folder without labels; PNG as it was written."""
    image = pytest.importorskip("PIL.Image")
    arrays = pixels(4, 5, 5)
    for i, name in enumerate(("train/b/0.png", "train/a/1.png", "train/a/2.png", "train/b/3.PNG")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(arrays[i]).save(tmp_path / name)
    read = load_images(tmp_path, "train")
    assert read.labels is not None
    assert read.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(read.pixels[:, 0].numpy(), arrays[[1, 2, 0, 3]])
    flat = load_images(tmp_path / "train" / "a")
    assert flat.labels is None
    assert len(flat.pixels) == 2
    image.fromarray(pixels(1, 6, 5)[0]).save(tmp_path / "train" / "a" / "odd.png")
    with pytest.raises(ValueError, match=r"odd\.png"):
        load_images(tmp_path)


def test_pictures_lose_nothing(tmp_path: Path) -> None:
    """More than 8 bits, and what is not opaque, is refused by name; palettes are read as they are."""
    image = pytest.importorskip("PIL.Image")
    grey, colour = pixels(1, 4, 4)[0], pixels(1, 4, 4, 3)[0]
    opaque = np.concatenate([colour, np.full((4, 4, 1), 255, np.uint8)], 2)
    clear = opaque.copy()
    clear[0, 0, 3] = 0
    ramp = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    palette = image.fromarray(colour).quantize(16)
    good = {
        "opaque": (image.fromarray(opaque), colour),
        "grey, opaque": (image.fromarray(np.stack([grey, np.full_like(grey, 255)], 2), "LA"), grey[..., None]),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "two levels": (image.fromarray(grey > 99), (grey > 99)[..., None] * np.uint8(255)),
    }
    for name, (picture, expected) in good.items():
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png")
        assert np.array_equal(load_images(tmp_path / name).pixels[0].permute(1, 2, 0).numpy(), expected), name
    bad = {
        "16 bits": (image.fromarray(ramp), "its mode is 'I;16'; images are 8-bit grey or RGB"),
        "clear": (image.fromarray(clear), "it is not opaque"),
    }
    for name, (picture, text) in bad.items():
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png")
        with pytest.raises(ValueError, match=f"0.png holds no picture: {text}"):
            load_images(tmp_path / name)


@pytest.mark.parametrize(
    "name, text",
    [
        ("few.npz", r"6 images need as many labels, got the shape \(3,\)"),
        (".", r"6 images need as many labels, got the shape \(3,\)"),
        ("real.npz", "must be integers, got float64"),
    ],
    ids=["file", "folder", "dtype"],
)
def test_labels_go_with_images(tmp_path: Path, name: str, text: str) -> None:
    """One a image, integers."""
    images = pixels(6, 4, 4)
    np.savez(tmp_path / "few.npz", images=images, labels=np.arange(3))
    np.savez(tmp_path / "real.npz", images=images, labels=np.linspace(0, 1, 6))
    for stem, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", np.arange(3, dtype=np.uint8))):
        (tmp_path / stem).write_bytes(idx(array))
    with pytest.raises(ValueError, match=text):
        load_images(tmp_path / name)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "png").write_bytes(b"\x89PNG")
    (tmp_path / "short").write_bytes(idx(pixels(3, 2))[:-1])
    np.savez(tmp_path / "float.npz", images=np.zeros((2, 4, 4)))
    np.savez(tmp_path / "other.npz", pictures=pixels(2, 4, 4))
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, "PNG", lambda: read_idx(tmp_path / "png")),
        (ValueError, r"\[3, 2\] values and holds 5", lambda: read_idx(tmp_path / "short")),
        (ValueError, "float64", lambda: load_images(tmp_path / "float.npz")),
        (FileNotFoundError, "pictures", lambda: load_images(tmp_path / "other.npz")),
        (FileNotFoundError, "nowhere", lambda: load_images(tmp_path / "nowhere")),
    ]
    for error, text, call in cases:
        with pytest.raises(error, match=text):
            call()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Eight labelled images of 28x28 as an npz file."""
    labels = np.arange(8)
    np.savez(tmp_path / "tiny.npz", x_train=pixels(8, 28, 28), y_train=labels, x_test=pixels(80, 28, 28)[:70])
    return tmp_path / "tiny.npz"


def run(data: Path, out: Path, what: str, *options: object) -> dict[str, Tensor]:
    """Run the script on the data; returns its checkpoint."""
    train_images.main([what, "--data", str(data), "--out", str(out), "--batch", "4", *map(str, options)])
    return safetensors.torch.load_file(out / f"{what}.checkpoint.safetensors")


def test_an_interrupted_run_goes_on_to_the_bit(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, average, Adam's moments and random state after 2 + 2 steps are those after 4."""
    options = ("--steps", 4, "--warmup", 2, "--minutes", 0)
    straight = run(tiny, tmp_path / "straight", "denoiser", *options)
    advance = train_images.Training.advance

    def interrupted(self: train_images.Training, *args: object) -> float:
        if self.step == 2:
            raise KeyboardInterrupt
        return advance(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train_images.Training, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, tmp_path / "halves", "denoiser", *options)
    halves = run(tiny, tmp_path / "halves", "denoiser", *options, "--resume")
    assert {name.partition(".")[0] for name in straight} == {"net", "ema", "adam", "generator"}
    assert straight.keys() == halves.keys()
    assert int(halves["ema.updates"]) == 4
    for name, value in straight.items():
        assert torch.equal(value, halves[name]), name
    other = run(tiny, tmp_path / "other", "denoiser", *options, "--seed", 1)
    assert not torch.equal(other["ema.net.last.weight"], straight["ema.net.last.weight"])
    stored = safetensors.torch.load_file(tmp_path / "halves" / "fashion_denoiser.safetensors")
    assert torch.equal(stored["net.last.weight"], halves["ema.net.last.weight"].half())


def test_the_learning_rate() -> None:
    """Up in a straight line, constant, down to the last step in a straight line."""
    run = train_images.Training(nn.Linear(1, 1), lr=2.0, warmup=10, decay=0.5, ema_decay=0.9, seed=0)
    rates = []
    for run.step in range(100):
        rates.append(run.learning_rate(100))
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:51] == [2.0] * 41
    assert rates[51:] == pytest.approx([2.0 * (100 - i) / 50 for i in range(51, 100)])


def test_every_kind_of_run(tiny: Path, tmp_path: Path) -> None:
    """Images without labels train an unconditional network; classifier and statistics go together."""
    np.savez(tmp_path / "colour.npz", images=pixels(6, 8, 8, 3))
    run(tmp_path / "colour.npz", tmp_path / "colour", "denoiser", "--steps", 1, "--name", "own")
    stored = safetensors.torch.load_file(tmp_path / "colour" / "own_denoiser.safetensors")
    net = EDMPreconditioned(fashion_unet(None, 3), 1.0)
    net.load_state_dict({name: value.float() for name, value in stored.items()})
    assert float(net.sigma_data) == pytest.approx(load_images(tmp_path / "colour.npz").scaled().std().item(), abs=1e-4)

    with np.load(tiny) as file:
        np.savez(tiny, **file, y_test=np.arange(70) % 8)
    run(tiny, tmp_path / "own", "classifier", "--steps", 1)
    train_images.main(["statistics", "--data", str(tiny), "--out", str(tmp_path / "own")])
    stored = safetensors.torch.load_file(tmp_path / "own" / "fashion_statistics.safetensors")
    weights = safetensors.torch.load_file(tmp_path / "own" / "fashion_classifier.safetensors")
    classifier = FashionClassifier()
    classifier.load_state_dict({name: value.float() for name, value in weights.items()})
    with torch.no_grad():
        features = classifier.features(load_images(tiny, "test").scaled()).double().numpy()
    assert int(stored["test.n"]) == 70
    assert np.allclose(stored["test.mean"].numpy(), features.mean(0))
    assert np.allclose(stored["test.cov"].numpy(), np.cov(features.T))

    with pytest.raises(SystemExit, match="28x28 grey"):
        train_images.main(["classifier", "--data", str(tmp_path / "colour.npz"), "--out", str(tmp_path)])
