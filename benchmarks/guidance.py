"""How often a classifier finds the class that was asked for, by guidance scale.

    python -m benchmarks.guidance [--model digits] [--n 2000] [--nfe 20] [--solver dpm++2m] [--seed 0]

Samples of the shipped class-conditional network, labels in turn. `free` is classifier-free guidance at every noise
level, `interval` the same at noise levels from 0.2 to 3 only, where the guided score jumps in time: once by the solver
named and once by the default, which starts anew there. Distances are Frechet distances, in the classifier's features,
to held-out images; rows are what the network saw for one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sgm_sde as sg
from benchmarks import command
from sgm_sde.evaluation.metrics.frechet import gaussian_frechet, moments
from sgm_sde.nn.digits import digits_data, load_digits_classifier
from sgm_sde.nn.fashion import load_fashion_classifier, load_fashion_statistics
from sgm_sde.scores.guidance import Interval
from sgm_sde.zoo.shipped import digits_score, fashion_score

SCALES = (0.0, 1.0, 2.0, 4.0)
INTERVAL = (0.2, 3.0)


@dataclass(frozen=True)
class Task:
    """A network with labels and what judges it.

    Attributes:
        score: the class-conditional score.
        shape: of one sample.
        classes: number of labels.
        null: the label that stands for none.
        predict: labels (B,) that a classifier finds.
        features: what distances are measured in, (B, d).
        reference: mean and covariance of the features of real images.
    """

    score: sg.Score
    shape: tuple[int, ...]
    classes: int
    null: int
    predict: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    reference: tuple[Tensor, Tensor]


def digits() -> Task:
    """The 8x8 digits of the demo."""
    classifier = load_digits_classifier()
    return Task(
        digits_score(sg.EDMSDE()), (1, 8, 8), 10, 10, lambda x: classifier(x).argmax(1), classifier.features,
        moments(classifier.features(digits_data("held_out")[0]).double()),
    )  # fmt: skip


def fashion() -> Task:
    """The 28x28 clothes."""
    classifier = load_fashion_classifier()
    return Task(
        fashion_score(sg.EDMSDE()), (1, 28, 28), 10, 10, lambda x: classifier(x).argmax(1), classifier.features,
        load_fashion_statistics("test")[:2],
    )  # fmt: skip


MODELS: dict[str, Callable[[], Task]] = {"digits": digits, "fashion": fashion}


def measure(task: Task, scale: float, interval: Interval | None, n: int, solver: str | None, **run: int) -> list[str]:
    """One line of the table."""
    y = torch.arange(n) % task.classes
    score = sg.guidance.ClassifierFree(task.score, scale, {"y": task.null}, interval=interval)
    res = sg.sample(score, score.sde, (n, *task.shape), solver=solver, model_kwargs={"y": y}, **run)
    agreement = float((task.predict(res.x) == y).double().mean())
    stderr = math.sqrt(agreement * (1 - agreement) / n)
    distance = gaussian_frechet(*moments(task.features(res.x).double()), *task.reference)
    name = "free" if interval is None else "interval"
    cells = [
        name,
        solver or "default",
        f"{scale:g}",
        f"{100 * agreement:.1f} +- {100 * stderr:.1f} %",
        f"{distance:.2f}",
    ]
    return [*cells, str(res.nfe), f"{res.network_evals / n:g}"]


def main() -> None:
    """Measure and print."""
    parser = command.parser(__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="digits")
    parser.add_argument("--n", type=int, default=2000, help="number of samples")
    parser.add_argument("--nfe", type=int, default=20, help="network calls")
    parser.add_argument("--solver", default="dpm++2m")
    parser.add_argument("--seed", type=int, default=0)
    args = command.begin(parser)
    task = MODELS[args.model]()
    columns = ("guidance", "solver", "scale", "asked label found", "Frechet distance", "NFE", "rows per sample")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for interval, solver in ((None, args.solver), (INTERVAL, args.solver), (INTERVAL, None)):
        for scale in SCALES if interval is None else SCALES[2:]:
            cells = measure(task, scale, interval, args.n, solver, nfe=args.nfe, seed=args.seed)
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
