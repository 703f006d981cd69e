"""Print the figures of the model card in sgm_sde/zoo/assets/README.md, for the weights that ship.

    python -m benchmarks.model_card digits [--n 5000]
    python -m benchmarks.model_card fashion [--n 2000] [--data /usr/share/datasets/fashion-mnist]

Samples are those of Heun's method in 18 steps of EDM's grid (35 network calls). Distances are Frechet distances of
the classifier's penultimate features to the images that were held out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sgm_sde as sg
from benchmarks import command
from benchmarks.train_digits import SIGMA_BINS, loss_by_sigma
from sgm_sde.evaluation import demo
from sgm_sde.evaluation.metrics.frechet import frechet_distance
from sgm_sde.likelihood import BitsPerDimResult
from sgm_sde.nn.digits import digits_data, load_digits_classifier, load_digits_denoiser
from sgm_sde.nn.fashion import load_fashion_classifier, load_fashion_denoiser
from sgm_sde.training import load_images
from sgm_sde.zoo.shipped import digits_score, fashion_score


@dataclass(frozen=True)
class Card:
    """The shipped networks of one data set, and its data: images and labels."""

    denoiser: nn.Module
    classifier: Any
    score: sg.Score
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    bits: Callable[[], BitsPerDimResult]
    for_losses: int  # images of each part that the losses are taken on, each `repeats` times
    repeats: int


def digits(options: argparse.Namespace) -> Card:
    """8x8 digits."""
    score = digits_score(sg.EDMSDE())
    parts = digits_data("train"), digits_data("held_out")
    return Card(load_digits_denoiser(), load_digits_classifier(), score, *parts, demo.digits_bits, 2000, 20)


def fashion(options: argparse.Namespace) -> Card:
    """28x28 clothes."""
    train, test = load_images(options.data, "train"), load_images(options.data, "test")
    assert train.labels is not None and test.labels is not None
    score = fashion_score(sg.EDMSDE())
    chosen = torch.randperm(len(test.pixels), generator=torch.Generator().manual_seed(0))[: options.bits_images]
    parts = (train.scaled(), train.labels), (test.scaled(), test.labels)

    def bits() -> BitsPerDimResult:
        return demo.fashion_bits(test.pixels[chosen])

    return Card(load_fashion_denoiser(), load_fashion_classifier(), score, *parts, bits, 1000, 1)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = command.parser(__doc__)
    parser.add_argument("model", choices=["digits", "fashion"])
    parser.add_argument("--n", type=int, help="number of samples (5000 digits, 2000 clothes)")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument(
        "--bits-images", type=int, default=256, help="test images of clothes for bits/dim (%(default)s)"
    )
    options = command.begin(parser)
    card = {"digits": digits, "fashion": fashion}[options.model](options)
    n = options.n or {"digits": 5000, "fashion": 2000}[options.model]
    (train, _), (held, _) = card.train, card.held_out

    def batched(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([f(chunk) for chunk in x.split(1000)])

    print("loss by sigma | " + " | ".join(f"{a:g}-{b:g}" for a, b in pairwise(SIGMA_BINS)) + " | mean")
    for name, (x, y) in (("train", card.train), ("held out", card.held_out)):
        k = card.for_losses
        losses = loss_by_sigma(card.denoiser, x[:k], y[:k], repeats=card.repeats)
        accuracy = (batched(card.classifier, x).argmax(1) == y).float().mean()
        row = " | ".join(f"{v:.3f}" for v in [*losses, sum(losses) / len(losses)])
        print(f"{name} | {row} | classifier accuracy {accuracy:.4f}")

    labels = torch.arange(n) % 10
    reference = batched(card.classifier.features, held)
    same_n = batched(card.classifier.features, train[:n])
    print(f"training images to held-out ones: all {len(train)}: "
          f"{frechet_distance(batched(card.classifier.features, train), reference).value:.2f}, "
          f"the first {len(same_n)}: {frechet_distance(same_n, reference).value:.2f}")  # fmt: skip
    flat = train.flatten(1)

    def nearest(x: Tensor) -> Tensor:
        return batched(lambda chunk: torch.cdist(chunk.flatten(1), flat).min(1).values, x)

    for name, labelled in (("with labels", True), ("without labels", False)):
        kwargs = {"y": labels} if labelled else {}
        shape = (n, *train.shape[1:])
        x = sg.sample(
            card.score,
            sg.EDMSDE(),
            shape,
            solver="heun",
            steps=17,
            seed=0,
            model_kwargs=kwargs,
            record=sg.Record(progress=True),
        ).x
        distance = frechet_distance(batched(card.classifier.features, x), reference).value
        found = (batched(card.classifier, x).argmax(1) == labels).float().mean()
        agreement = f"asked class found {100 * found:.1f} %, " if labelled else ""
        near = nearest(x)
        print(
            f"{name}: distance {distance:.2f}, {agreement}nearest training image median {near.median():.2f} smallest "
            f"{near.min():.2f}, pixels beyond 1.25 {100 * (x.abs() > 1.25).float().mean():.1f} %, farthest "
            f"{x.abs().max():.2f}"
        )
    own = nearest(held[:n])
    print(f"held-out images: nearest training image median {own.median():.2f} smallest {own.min():.2f}")
    print(f"held-out images, without labels: {card.bits()}")


if __name__ == "__main__":
    main()
