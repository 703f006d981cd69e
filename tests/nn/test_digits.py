"""The shipped digits networks: what they return and how good they are."""

import builtins
from typing import Any, Literal

import pytest
import torch

from sgm_sde.nn import (
    DigitsClassifier,
    DigitsDenoiser,
    digits_data,
    load_digits_classifier,
    load_digits_denoiser,
)


@pytest.fixture(scope="module")
def denoiser() -> DigitsDenoiser:
    return load_digits_denoiser()


@pytest.fixture(scope="module")
def classifier() -> DigitsClassifier:
    return load_digits_classifier()


def _noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("split, n", [("train", 1442), ("held_out", 355)])
def test_data_is_a_fixed_stratified_split(split: Literal["train", "held_out"], n: int) -> None:
    state = torch.get_rng_state()
    images, labels = digits_data(split)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.shape == (n, 1, 8, 8)
    assert labels.shape == (n,)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.bincount().max() - labels.bincount().min() <= n / 100
    assert torch.equal(digits_data(split)[0], images)


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="'train', 'held_out', got 'test'"):
        digits_data("test")  # type: ignore[arg-type]


def test_data_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_sklearn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ImportError, match=r'pip install "sgm_sde\[bench\]"'):
        digits_data("train")


def test_classifier_is_accurate_on_held_out_digits(classifier: DigitsClassifier) -> None:
    images, labels = digits_data("held_out")
    logits, features = classifier(images), classifier.features(images)
    assert logits.shape == (355, 10)
    assert features.shape == (355, 32)
    assert torch.allclose(classifier.head(features), logits)
    assert (logits.argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("labelled", [True, False])
def test_denoiser_keeps_shape_and_dtype(denoiser: DigitsDenoiser, labelled: bool) -> None:
    x, sigma = _noise(5), torch.tensor([0.002, 0.1, 1.0, 10.0, 80.0])
    y = torch.arange(5) if labelled else None
    single = denoiser(x, sigma, y)
    double = denoiser(x.double(), sigma.double(), y)
    assert (single.shape, single.dtype) == (x.shape, torch.float32)
    assert (double.shape, double.dtype) == (x.shape, torch.float64)
    assert torch.allclose(single.double(), double, atol=1e-4)


def test_missing_label_is_the_null_label(denoiser: DigitsDenoiser) -> None:
    x, sigma = _noise(3), torch.ones(3)
    null = torch.full((3,), denoiser.NULL_LABEL)
    assert torch.allclose(denoiser(x, sigma), denoiser(x, sigma, null), atol=1e-6)
    assert not torch.allclose(denoiser(x, sigma), denoiser(x, sigma, torch.arange(3)), atol=1e-2)


def test_pure_noise_denoises_to_the_mean(denoiser: DigitsDenoiser) -> None:
    images, labels = digits_data("train")
    x, sigma = 80 * _noise(500), torch.full((500,), 80.0)
    assert (denoiser(x, sigma).mean(0) - images.mean(0)).abs().max() < 0.1
    for digit in range(10):
        mean = denoiser(x, sigma, torch.full((500,), digit)).mean(0)
        assert (mean - images[labels == digit].mean(0)).abs().max() < 0.15


@pytest.mark.parametrize("sigma", [0.0, 0.002])
def test_nearly_clean_digits_are_returned(denoiser: DigitsDenoiser, sigma: float) -> None:
    images, labels = digits_data("held_out")
    x = images + sigma * _noise(len(images))
    denoised = denoiser(x, torch.full((len(images),), sigma), labels)
    assert (denoised - x).abs().max() <= 5 * sigma


def test_denoising_beats_returning_the_input_and_the_mean(denoiser: DigitsDenoiser) -> None:
    images, labels = digits_data("held_out")
    noisy = images + 0.5 * _noise(len(images))
    denoised = denoiser(noisy, torch.full((len(images),), 0.5), labels)
    error = (denoised - images).square().mean()
    assert error < 0.2 * (noisy - images).square().mean()
    assert error < 0.2 * images.var()


def test_denoiser_works_under_vmap_and_jvp(denoiser: DigitsDenoiser) -> None:
    x, sigma, y = _noise(4), torch.tensor([0.1, 0.5, 2.0, 20.0]), torch.arange(4)
    batched = torch.func.vmap(denoiser)(x, sigma, y)
    assert torch.allclose(batched, denoiser(x, sigma, y), atol=1e-5)
    assert torch.allclose(torch.func.vmap(denoiser)(x, sigma), denoiser(x, sigma), atol=1e-5)

    tangent, step = _noise(4, seed=1).double(), 1e-3
    x, sigma = x.double(), sigma.double()
    net = load_digits_denoiser().double()
    _, slope = torch.func.jvp(lambda z: net(z, sigma, y), (x,), (tangent,))
    difference = (net(x + step * tangent, sigma, y) - net(x - step * tangent, sigma, y)) / (2 * step)
    assert torch.allclose(slope, difference, atol=1e-3)


def test_denoiser_under_autocast_stays_close(denoiser: DigitsDenoiser) -> None:
    x, sigma = _noise(8), torch.full((8,), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = denoiser(x, sigma)
    assert low.dtype == torch.float32
    assert (low - denoiser(x, sigma)).abs().max() < 0.1
