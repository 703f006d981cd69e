"""Pixels out of the data's range by kind and scale of guidance: `python -m benchmarks.guidance_range`."""

from __future__ import annotations

import torch

import sgm_sde as sg
from sgm_sde.scores.guidance import APG, ClassifierFree, Rescaled, Thresholded

SAMPLES, CALLS = 50, 20
SCALES = (1.0, 3.0, 10.0)


def main() -> None:
    """Print the table."""
    model = sg.load_model("digits")
    low, high = model.data_range
    labels = sg.PerSample(torch.arange(SAMPLES) % 10)
    kinds = {
        "classifier-free": lambda guided: guided,
        "rescaled, 0.7": lambda guided: Rescaled(guided, 0.7),
        "APG, eta 0": APG,
        "APG, eta 0, norm 2": lambda guided: APG(guided, norm=2.0),
        "dynamic threshold, 0.995": lambda guided: Thresholded(guided, percentile=0.995),
    }
    print(f"| guidance | {' | '.join(f'scale {scale:g}' for scale in SCALES)} |")
    print("|---" * (1 + len(SCALES)) + "|")
    for name, change in kinds.items():
        cells = []
        for scale in SCALES:
            score = change(ClassifierFree(model.score, scale))
            shape = (SAMPLES, *model.shape)
            options = {"solver": "ddim", "nfe": CALLS, "seed": 0, "model_kwargs": {"y": labels}}
            x = sg.sample(score, model.sde, shape, **options).x
            cells.append(f"{100 * float(((x < low) | (x > high)).float().mean()):.1f} %")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
