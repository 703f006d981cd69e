"""Agreement with the condition, and pixels out of range, by kind and scale of guidance.

    python -m benchmarks.guidance_range [--model digits] [--n 200] [--nfe 20] [--seed 0] [--kinds "APG;CFG"]

Samples of a shipped class-conditional network, labels in turn, by DDIM on its default grid. In each cell: how often a
classifier finds the label that was asked for, and the share of pixels out of the data's range. `--kinds` takes the
rows that begin with one of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

import sgm_sde as sg
from benchmarks import command
from benchmarks.guidance import MODELS, Task
from sgm_sde.sampling.planning import plan
from sgm_sde.scores.guidance import APG, ClassifierFree, Rescaled, Thresholded, cfg_plus_plus

SCALES = (1.0, 2.0, 4.0, 7.0, 10.0)
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)  # of CFG++, which interpolates

KINDS: dict[str, Callable[[sg.Score], sg.Score]] = {
    "classifier-free": lambda guided: guided,
    "rescaled, 0.7": lambda guided: Rescaled(guided, 0.7),
    "APG, eta 0": APG,
    "APG, eta 0, norm 2": lambda guided: APG(guided, norm=2.0),
    "static threshold": Thresholded,
    "dynamic threshold, 0.995": lambda guided: Thresholded(guided, percentile=0.995),
}
INTERPOLATED = "CFG++, by its lambda"


def measure(task: Task, data_range: tuple[float, float], score: sg.Score, grid: sg.Grid, n: int, seed: int) -> str:
    """A cell: agreement and share of pixels out of range."""
    y = torch.arange(n) % task.classes
    options = {"solver": "ddim", "grid": grid, "seed": seed, "model_kwargs": {"y": sg.PerSample(y)}}
    x = sg.sample(score, score.sde, (n, *task.shape), **options).x
    low, high = data_range
    agreement = float((task.predict(x) == y).double().mean())
    outside = float(((x < low) | (x > high)).double().mean())
    return f"{100 * agreement:.0f} %, {100 * outside:.1f} %"


def main() -> None:
    """Print the table."""
    parser = command.parser(__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="digits")
    parser.add_argument("--n", type=int, default=200, help="number of samples")
    parser.add_argument("--nfe", type=int, default=20, help="network calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="rows that begin with one of these, separated by semicolons")
    args = command.begin(parser)
    warnings.simplefilter("ignore", sg.diagnosis.ImplausibleWarning)  # samples of large scales are named as such
    task = MODELS[args.model]()
    _, grid, _ = plan(task.score.sde, "ddim", nfe=args.nfe)
    print(f"| {args.model} | {' | '.join(f'scale {scale:g}' for scale in SCALES)} |")
    print("|---" * (1 + len(SCALES)) + "|")
    null = {"y": task.null}
    data_range = sg.load_model(args.model).data_range
    assert data_range is not None
    wanted = tuple(args.kinds.split(";"))
    for name, change in KINDS.items():
        if not name.startswith(wanted):
            continue
        scores = [change(ClassifierFree(task.score, scale, null)) for scale in SCALES]
        cells = [measure(task, data_range, score, grid, args.n, args.seed) for score in scores]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if not INTERPOLATED.startswith(wanted):
        return
    scores = [ClassifierFree(task.score, cfg_plus_plus(share, task.score.sde, grid), null) for share in SHARES]
    cells = [measure(task, data_range, score, grid, args.n, args.seed) for score in scores]
    named = [f"{share:g}: {cell}" for share, cell in zip(SHARES, cells, strict=True)]
    print(f"| {INTERPOLATED} | {' | '.join(named)} |", flush=True)


if __name__ == "__main__":
    main()
