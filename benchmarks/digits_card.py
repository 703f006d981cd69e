"""Print the figures of the model card in sgm_sde/assets/README.md, for the weights that ship.

    python benchmarks/digits_card.py [--n 5000]

Samples are those of Heun's method in 18 steps of EDM's grid (35 network calls). Distances are Frechet distances of
the classifier's 32 features to the held-out images.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import torch
from train_digits import SIGMA_BINS, loss_by_sigma

import sgm_sde as sg
from sgm_sde.metrics.frechet import frechet_distance
from sgm_sde.nn.digits import digits_data, load_digits_classifier, load_digits_denoiser


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5000, help="number of samples")
    n = parser.parse_args().n
    torch.set_num_threads(1)
    denoiser, classifier = load_digits_denoiser(), load_digits_classifier()
    (train, train_y), (held, held_y) = digits_data("train"), digits_data("held_out")

    print("loss by sigma | " + " | ".join(f"{a:g}-{b:g}" for a, b in pairwise(SIGMA_BINS)) + " | mean")
    for name, x, y in (("train", train, train_y), ("held out", held, held_y)):
        losses = loss_by_sigma(denoiser, x, y, repeats=20)
        accuracy = (classifier(x).argmax(1) == y).float().mean()
        row = " | ".join(f"{v:.3f}" for v in [*losses, sum(losses) / len(losses)])
        print(f"{name} | {row} | classifier accuracy {accuracy:.4f}")

    sde = sg.EDMSDE()
    labels = torch.arange(n) % 10
    reference = classifier.features(held)
    print(f"the training images themselves: {frechet_distance(classifier.features(train), reference).value:.2f}")
    for name, kwargs in (("with labels", {"y": labels}), ("without labels", {})):
        score = sg.from_denoiser(denoiser, sde)
        x = sg.sample(score, sde, (n, 1, 8, 8), solver="heun", steps=17, seed=0, model_kwargs=kwargs).x
        distance = frechet_distance(classifier.features(x), reference).value
        agreement = (classifier(x).argmax(1) == labels).float().mean() if kwargs else float("nan")
        nearest = torch.cdist(x.flatten(1), train.flatten(1)).min(1).values
        beyond = (x.abs() > 1.25).float().mean()
        print(
            f"{name}: distance {distance:.2f}, asked digit found {100 * agreement:.1f} %, nearest training image "
            f"median {nearest.median():.2f} smallest {nearest.min():.2f}, pixels beyond 1.25 {100 * beyond:.1f} %, "
            f"farthest {x.abs().max():.2f}"
        )
    own = torch.cdist(held.flatten(1), train.flatten(1)).min(1).values
    print(f"held-out images: nearest training image median {own.median():.2f} smallest {own.min():.2f}")


if __name__ == "__main__":
    main()
