"""The shipped Fashion-MNIST networks: what they return and how good they are, without the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.cli import main
from sgm_sde.evaluation.demo import fashion_bits, run_fashion
from sgm_sde.evaluation.metrics.frechet import gaussian_frechet
from sgm_sde.nn.fashion import (
    CLASSES,
    FashionClassifier,
    load_fashion_classifier,
    load_fashion_denoiser,
    load_fashion_statistics,
)
from sgm_sde.nn.unet import EDMPreconditioned
from sgm_sde.zoo.shipped import fashion_score


@pytest.fixture(scope="module")
def denoiser() -> EDMPreconditioned:
    return load_fashion_denoiser()


@pytest.fixture(scope="module")
def classifier() -> FashionClassifier:
    return load_fashion_classifier()


@pytest.fixture(scope="module")
def clothes() -> tuple[Tensor, Tensor]:
    """Six samples of each class, and their labels."""
    sde, labels = sg.EDMSDE(), torch.arange(60) % 10
    res = sg.sample(
        fashion_score(sde), sde, (60, 1, 28, 28), solver="dpm++2m", nfe=15, seed=1, model_kwargs={"y": labels}
    )
    return res.x, labels


def test_samples_are_of_their_class(clothes: tuple[Tensor, Tensor], classifier: FashionClassifier) -> None:
    """Samples with labels are recognised, about as often as real images are, and stay in the range of the data."""
    x, labels = clothes
    assert (classifier(x).argmax(1) == labels).float().mean() > 0.75
    assert (x.abs() > 1.25).float().mean() < 0.02
    assert torch.allclose(classifier.head(classifier.features(x)), classifier(x))


def test_samples_lie_near_the_data(clothes: tuple[Tensor, Tensor], classifier: FashionClassifier) -> None:
    """The mean of the features of samples is that of the data within its standard error and a margin."""
    features = classifier.features(clothes[0]).double()
    mean, cov, n = load_fashion_statistics("test")
    assert (mean.shape, cov.shape, n) == ((64,), (64, 64), 10_000)
    assert torch.linalg.eigvalsh(cov).min() > 0
    z = (features.mean(0) - mean) / (cov.diagonal() / len(features)).sqrt()
    assert z.square().mean().sqrt() < 3
    train = load_fashion_statistics("train")
    blank = gaussian_frechet(torch.zeros(64), torch.zeros(64, 64), mean, cov)
    assert gaussian_frechet(train.mean, train.cov, mean, cov) < 0.01 * blank
    with pytest.raises(ValueError, match="'held_out'"):
        load_fashion_statistics("held_out")  # type: ignore[arg-type]


def test_denoising(clothes: tuple[Tensor, Tensor], denoiser: EDMPreconditioned) -> None:
    """Noised samples come back: far better than the noisy input, better with labels than without at much noise."""
    x, labels = clothes
    errors = {}
    for sigma in (0.1, 1.0, 5.0):
        noisy = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        level = torch.full((len(x),), sigma)
        errors[sigma] = [float((denoiser(noisy, level, y) - x).square().mean()) for y in (labels, None)]
        assert errors[sigma][0] < 0.5 * sigma**2
    assert errors[5.0][0] < 0.9 * errors[5.0][1]
    assert torch.equal(denoiser(x[:2], torch.zeros(2)), x[:2])


def test_one_network_on_every_process() -> None:
    """Trained in EDM's coordinates, it draws the same clothes on VP and rectified flow."""
    labels, x = torch.arange(5), []
    for sde in (sg.EDMSDE(), sg.VPSDE(eps=1e-5), sg.RectifiedFlowSDE(T=0.9999, eps=2e-3)):
        kwargs = {"model_kwargs": {"y": labels}, "seed": 0, "solver": "dpm++2m", "grid": "log-snr", "nfe": 30}
        x.append(sg.sample(fashion_score(sde), sde, (5, 1, 28, 28), **kwargs).x)
    for other in x[1:]:
        assert (other - x[0]).square().mean().sqrt() < 0.1


@pytest.mark.slow
def test_bits_of_images() -> None:
    """Samples, rounded to 8 bits, take far fewer bits than noise does; the protocol says how they were counted."""
    sde = sg.EDMSDE()
    x = sg.sample(fashion_score(sde), sde, (2, 1, 28, 28), solver="dpm++2m", nfe=10, seed=0).x
    images = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    bits = fashion_bits(images)
    assert 0 < bits.value < 6
    assert "256 levels" in bits.protocol


def test_the_demo_draws_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", "fashion", "--n", "16", "--out", str(tmp_path)]) == 0
    assert "16 images by dpm++2m in 20 network calls" in capsys.readouterr().out
    assert (tmp_path / "fashion.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "fashion.json").exists()
    assert len(CLASSES) == 10
    with pytest.raises(ValueError, match="n=12"):
        run_fashion(tmp_path, n=12)
