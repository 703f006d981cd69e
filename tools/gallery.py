"""Pictures of docs/gallery.md that no benchmark makes, drawn from the networks that ship.

    python tools/gallery.py

Writes docs/gallery/*.png, in seconds on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sgm_sde as sg
from sgm_sde.nn.digits import load_digits_denoiser

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
SDE = sg.EDMSDE()
SIZE = 4  # screen pixels of a pixel


def save(images: Tensor, name: str, columns: int) -> None:
    """Write images (B, 1, 8, 8) in [-1, 1], enlarged."""
    large = images.clamp(-1, 1).repeat_interleave(SIZE, -1).repeat_interleave(SIZE, -2)
    sys.stdout.write(f"{sg.pictures.save_grid(large, FOLDER / name, columns=columns)}\n")


def labels(digits: Tensor) -> dict[str, object]:
    """The condition of a class for each sample."""
    return {"y": sg.PerSample(digits)}


def denoising(score: sg.Score) -> None:
    """States of ten runs, a line for each noise level, scaled to unit variance."""
    kept = sg.Record(trajectory="all")
    digits = torch.arange(10)
    run = sg.sample(
        score, SDE, (10, 1, 8, 8), solver="dpm++3m", steps=12, seed=4, model_kwargs=labels(digits), record=kept
    )
    assert run.trajectory is not None
    assert run.trajectory_times is not None
    levels = torch.as_tensor(run.trajectory_times)[:, None, None, None, None]
    states = run.trajectory / (0.25 + levels**2).sqrt() / 2
    save(torch.cat([*states[::2], run.x]), "denoising.png", 10)


def guidance(score: sg.Score) -> None:
    """One class, the same noise in each column, with guidance of 0, 1, 2 and 4, a line for each."""
    threes = labels(torch.full((10,), 3))
    rows = []
    for scale in (0.0, 1.0, 2.0, 4.0):
        guided = sg.guidance.ClassifierFree(score, scale, null={"y": 10})
        rows.append(sg.sample(guided, SDE, (10, 1, 8, 8), nfe=30, seed=2, model_kwargs=threes).x)
    save(torch.cat(rows), "guidance.png", 10)


def inpainting(score: sg.Score) -> None:
    """A digit, what is seen of it, and eight draws from the posterior, for four digits."""
    digits = torch.tensor([2, 3, 5, 8])
    truth = sg.sample(score, SDE, (4, 1, 8, 8), nfe=30, seed=7, model_kwargs=labels(digits)).x
    seen = torch.zeros(1, 8, 8, dtype=torch.bool)
    seen[:, :4] = True
    mask = sg.inverse.Mask(seen)
    rows = []
    for digit, x in zip(digits, truth, strict=True):
        measurement = sg.inverse.Measurement(mask, mask.apply(x[None])[0], 0.05)
        posterior = sg.inverse.MMPS(score, measurement)
        condition = labels(digit.expand(8))
        draws = sg.sample(posterior, SDE, (8, 1, 8, 8), solver="ancestral", steps=50, seed=1, model_kwargs=condition).x
        rows += [x[None], torch.where(seen, x, -1.0)[None], draws]
    save(torch.cat(rows), "inpainting.png", 10)


PICTURES: tuple[Callable[[sg.Score], None], ...] = (denoising, guidance, inpainting)


def main() -> int:
    """Draw all of them."""
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    score = sg.from_denoiser(load_digits_denoiser(), SDE)
    for picture in PICTURES:
        picture(score)
    return 0


if __name__ == "__main__":
    sys.exit(main())
