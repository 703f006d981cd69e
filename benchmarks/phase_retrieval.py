"""Phase retrieval of held-out digits: the picture from the magnitudes of its Fourier transform alone.

    python -m benchmarks.phase_retrieval --out out/bench

Digits of 8x8 pixels in [0, 1] are padded to 16x16 with zeros, and the magnitudes of the transform are measured with
noise of std 0.05. A picture and the same turned by half a turn have the same magnitudes, and so has one that is moved,
which the frame of zeros allows little of: such pictures are found as well as the true one. As in the paper, four runs
are made for each digit and the one of the smallest misfit is kept.

The step size is chosen on the first half of the digits, by the misfit, which needs no truth; the table is of the other
half, and shows the same denoiser on four processes. Without a measurement, samples of the network are the yardstick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command, pictures
from sgm_sde import inverse
from sgm_sde.nn.digits import digits_data, load_digits_classifier
from sgm_sde.zoo.shipped import digits_score

PROCESSES: dict[str, sg.LinearSDE] = {
    "VP": sg.VPSDE(), "flow": sg.RectifiedFlowSDE(), "EDM": sg.EDMSDE(), "VE": sg.VESDE(sigma_max=80.0),
}  # fmt: skip
ZETAS = (0.3, 1.0, 3.0)
RUNS = 4


def magnitudes(x: Tensor) -> Tensor:
    """Magnitudes of the transform of pictures in [-1, 1], padded to twice their size, orthonormal."""
    return torch.fft.rfft2((x + 1) / 2, s=(16, 16), norm="ortho").abs()


def retrieve(sde: sg.LinearSDE, seen: inverse.Measurement, n: int, zeta: float, steps: int) -> tuple[Tensor, Tensor]:
    """Of `RUNS` pictures for each measurement the one of the smallest misfit, and its misfit, rms."""
    solver = inverse.DPS(sg.Ancestral(), seen, zeta)
    runs = [
        sg.sample(digits_score(sde), sde, (n, 1, 8, 8), solver=solver, grid="log-snr", steps=steps, seed=seed).x
        for seed in range(RUNS)
    ]
    misfits = torch.stack([seen.residual(x).square().mean((1, 2, 3)).sqrt() for x in runs])
    best = misfits.argmin(0)
    return torch.stack(runs)[best, torch.arange(n)], misfits.amin(0)


def errors(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Errors, rms, of the pictures as they are, and up to half a turn."""
    plain, turned = ((y - truth).square().mean((1, 2, 3)).sqrt() for y in (x, x.flip((2, 3))))
    return plain, torch.minimum(plain, turned)


def draw(rows: dict[str, Tensor], path: Path) -> None:
    """A row a process, a column a digit."""
    figure, (axis,) = pictures.panels(1, 8, 0.66 * len(rows))
    pictures.sheet(axis, rows, 16)
    pictures.save(figure, path, dpi=120)


def main() -> int:
    """Choose a step size, measure, print, draw."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--n", type=int, default=32, help="held-out digits, half of them to choose on")
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    args = command.begin(parser)

    images, labels = (part[: args.n] for part in digits_data("held_out"))
    operator = inverse.NonlinearMap(magnitudes, (1, 8, 8))
    half = args.n // 2
    first, second = (
        inverse.Measurement.simulate(operator, part, 0.05, seed=seed) for seed, part in enumerate(images.split(half))
    )
    tried = {}
    for zeta in tqdm(ZETAS, desc="step sizes"):
        tried[zeta] = float(retrieve(PROCESSES["VP"], first, half, zeta, args.steps)[1].mean())
    zeta = min(tried, key=lambda z: tried[z])
    lines = [", ".join(f"zeta {z:g}: misfit {misfit:.4f}" for z, misfit in tried.items()) + f"; chosen {zeta:g}", ""]
    lines += [
        "| process | misfit, rms | error, rms | up to half a turn | classifier agrees |",
        "|---|--:|--:|--:|--:|",
    ]
    truth, classifier, measured = images[half:], load_digits_classifier(), []
    rows = {"truth": truth}
    for name, sde in tqdm(PROCESSES.items(), desc="processes"):
        x, misfit = retrieve(sde, second, args.n - half, zeta, args.steps)
        plain, turned = errors(x, truth)
        agree = float((classifier(x).argmax(1) == labels[half:]).float().mean())
        measured.append(
            {
                "process": name, "misfit": float(misfit.mean()), "rmse": float(plain.mean()),
                "turned": float(turned.mean()), "agreement": agree,
            }
        )  # fmt: skip
        lines.append(
            f"| {name} | {float(misfit.mean()):.3f} | {float(plain.mean()):.2f} | {float(turned.mean()):.2f} | "
            f"{agree:.0%} |"
        )
        rows[name] = x
    free = sg.sample(digits_score(PROCESSES["VP"]), PROCESSES["VP"], tuple(truth.shape), nfe=50, seed=0).x
    plain, turned = errors(free, truth)
    misfit = second.residual(free).square().mean((1, 2, 3)).sqrt()
    agree = float((classifier(free).argmax(1) == labels[half:]).float().mean())
    lines.append(
        f"| nothing measured | {float(misfit.mean()):.3f} | {float(plain.mean()):.2f} | {float(turned.mean()):.2f} | "
        f"{agree:.0%} |"
    )
    result = {"zeta": zeta, "chosen on": tried, "processes": measured}
    (args.out / "phase_retrieval.json").write_text(json.dumps(result, indent=1))
    draw(rows, args.out / "phase_retrieval.png")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
