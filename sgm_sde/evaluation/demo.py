"""The main job on real data: samplers beside one another on scikit-learn's 8x8 digits, and a grid of clothes.

One small network, trained in EDM's coordinates and shipped with the package, is run through several samplers at
several budgets of network calls. Quality is the Frechet distance to held-out digits in the features of a small
classifier that ships too; it is no FID, and compares with nothing outside this page.
"""

from __future__ import annotations

import itertools
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sgm_sde import __version__
from sgm_sde._utils.files import JsonObject
from sgm_sde.data.images import to_uint8
from sgm_sde.engine.noise import one_seed
from sgm_sde.evaluation.metrics.features import Extractor, load_extractor
from sgm_sde.evaluation.metrics.frechet import FrechetResult, frechet_distance
from sgm_sde.likelihood import BitsPerDimResult, bits_per_dim
from sgm_sde.nn.digits import digits_data, load_digits_classifier
from sgm_sde.nn.fashion import CLASSES, load_fashion_classifier
from sgm_sde.processes import EDMSDE, VPSDE, LinearSDE
from sgm_sde.sampling.diagnosis import UnsuitedWarning
from sgm_sde.sampling.sampler import sample
from sgm_sde.schemes import Langevin, PredictorCorrector, Solver, resolve
from sgm_sde.zoo.shipped import digits_score, fashion_score

FEATURES = "digits-classifier-32"
BUDGETS = (5, 10, 20, 50)
SHOWN = (10, 50)  # budgets whose samples are drawn
FASHION_ROWS = (0, 1, 2, 3, 5, 7, 8, 9)  # coats look like pullovers and shirts like T-shirts
FASHION_SOLVER = "dpm++2m"


@dataclass(frozen=True)
class Entry:
    """One line of the demo: a sampler on a process."""

    name: str
    solver: Solver
    sde: LinearSDE


def entries() -> tuple[Entry, ...]:
    """The samplers of the demo."""
    edm = EDMSDE()
    named = [Entry(name, resolve(name), edm) for name in ("ddim", "dpm++2m", "heun", "ancestral", "reverse-diffusion")]
    pc = PredictorCorrector(resolve("dpm++2m"), Langevin(snr=0.16))  # a multistep predictor takes a corrector too
    return (*named, Entry("dpm++2m + Langevin", pc, edm), Entry("dpm++2m, on VP", resolve("dpm++2m"), VPSDE()))


def run(out: Path, *, n: int = 1000, seed: int = 0, progress: bool = True) -> str:
    """Run the demo and write table, figures and pictures to a folder.

    Args:
        out: folder for `table.md`, `results.json`, `samples.png` and `curves.png`; made if absent.
        n: number of samples for each line and budget.
        seed: of the samples.
        progress: show a progress bar.

    Returns:
        the table as text.

    Raises:
        ImportError: without scikit-learn and matplotlib (`pip install "sgm_sde[bench]"`).
        ValueError: for n below 100, where the distance means nothing.
    """
    if n < 100:
        raise ValueError(f"a Frechet distance needs at least 100 samples, got n={n}")
    one_seed(seed)
    _require_matplotlib()
    from tqdm.auto import tqdm

    out.mkdir(parents=True, exist_ok=True)
    classifier = load_digits_classifier()
    extractor = load_extractor(FEATURES, (1, 8, 8))

    test_images, _ = digits_data("held_out")
    held_out = _features(extractor, test_images)
    real = torch.cat([digits_data("train")[0], test_images])
    floor = _distance_of_halves(extractor, real)
    labels = torch.arange(n) % 10

    started = time.perf_counter()
    rows: list[JsonObject] = []
    pictures: dict[str, Tensor] = {}
    runs = list(itertools.product(entries(), BUDGETS))
    for entry, nfe in tqdm(runs, desc="samplers", unit="run", disable=not progress):
        score = digits_score(entry.sde)
        conditions = {"y": labels}
        with warnings.catch_warnings():  # the table shows what too few calls do
            warnings.simplefilter("ignore", UnsuitedWarning)
            result = sample(
                score, entry.sde, (n, 1, 8, 8), solver=entry.solver, nfe=nfe, seed=seed, model_kwargs=conditions
            )

        distance = frechet_distance(_features(extractor, result.x), held_out, features=FEATURES)
        agreement = _agreement(classifier, result.x, labels)
        rows.append(
            {
                "sampler": entry.name,
                "budget": nfe,
                "nfe": result.nfe,
                "distance": distance.value,
                "agreement": agreement,
            }
        )
        if nfe in SHOWN:
            pictures[f"{entry.name}, {result.nfe} NFE"] = result.x[:20]
    seconds = time.perf_counter() - started

    bits = digits_bits(seed)
    gaussian = gaussian_bits(seed)
    table = _table(rows, floor, n, len(held_out), seconds) + "\n\n" + _bits_line(bits, gaussian)
    figures = {
        "n": n,
        "seed": seed,
        "features": FEATURES,
        "held_out": len(held_out),
        "halves": {"distance": floor.value, "n": floor.n},
        "rows": rows,
        "bits_per_dim": {"value": bits.value, "stderr": bits.stderr, "protocol": bits.protocol, "gaussian": gaussian},
    }

    (out / "table.md").write_text(table + "\n")
    _write(out / "results.json", figures)
    _draw_strips(pictures | {"real digits": real[:20]}, out / "samples.png", (10, 0.62 * (len(pictures) + 1)))
    _draw_curves(rows, floor, out / "curves.png")
    return f"{table}\n\nWritten to {out}: table.md, results.json, samples.png, curves.png"


def _distance_of_halves(extractor: Extractor, real: Tensor) -> FrechetResult:
    """Distance of one half of the real data to the other: what a perfect sampler would have."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    first, second = _features(extractor, real[order]).chunk(2)
    return frechet_distance(first, second, features=FEATURES)


def _agreement(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """The share of images in which the classifier finds the class that was asked for."""
    predicted = classifier(images).argmax(1)
    return float((predicted == labels).float().mean())


def run_fashion(out: Path, *, n: int = 64, seed: int = 0, nfe: int = 20) -> str:
    """Draw a grid of clothes, each row of one class, and write it and its figures to a folder.

    Args:
        out: folder for `fashion.png` and `fashion.json`; made if absent.
        n: number of images, a multiple of 8: the rows are eight classes.
        seed: of the samples.
        nfe: network calls.

    Returns:
        what was done, as text.

    Raises:
        ImportError: without matplotlib (`pip install "sgm_sde[bench]"`).
        ValueError: for n that is no positive multiple of 8.
    """
    if n < 8 or n % 8:
        raise ValueError(f"the grid has eight rows: n must be a multiple of 8, got n={n}")
    one_seed(seed)
    _require_matplotlib()
    out.mkdir(parents=True, exist_ok=True)

    sde = EDMSDE()
    score = fashion_score(sde)
    columns = n // 8
    labels = torch.tensor(FASHION_ROWS).repeat_interleave(columns)

    started = time.perf_counter()
    conditions = {"y": labels}
    result = sample(score, sde, (n, 1, 28, 28), solver=FASHION_SOLVER, nfe=nfe, seed=seed, model_kwargs=conditions)
    seconds = time.perf_counter() - started

    agreement = _agreement(load_fashion_classifier(), result.x, labels)
    figures = {"n": n, "seed": seed, "solver": FASHION_SOLVER, "nfe": result.nfe, "agreement": agreement}
    _write(out / "fashion.json", figures)
    names = [CLASSES[label] for label in FASHION_ROWS]
    rows = dict(zip(names, torch.split(result.x, columns), strict=True))
    _draw_strips(rows, out / "fashion.png", (1 + columns, 8))
    return (
        f"{n} images by {FASHION_SOLVER} in {result.nfe} network calls: {seconds:.1f} s. The classifier finds the "
        f"asked class in {100 * agreement:.1f} %.\n\nWritten to {out}: fashion.png, fashion.json"
    )


def _write(path: Path, figures: dict[str, object]) -> None:
    """Figures as JSON, with the versions that made them."""
    versions = {"version": __version__, "torch": torch.__version__}
    path.write_text(json.dumps(versions | figures, indent=1) + "\n")


def digits_bits(seed: int = 0) -> BitsPerDimResult:
    """Bits/dim of the held-out digits, 17 levels, under the shipped network without labels.

    The network was trained on the levels themselves, so that the bound goes through noise of the process: at eps = 0.1
    the noise is about a level's width.
    """
    images, _ = digits_data("held_out")
    levels = ((images + 1) * 8).round().long()
    sde = EDMSDE()
    edges = (-1 - 1 / 16, 1 + 1 / 16)  # level k stands at k / 8 - 1
    return bits_per_dim(
        digits_score(sde), sde, levels, n_levels=17, data_range=edges, dequantize="diffusion", eps=0.1, seed=seed
    )


def fashion_bits(images: Tensor, seed: int = 0) -> BitsPerDimResult:
    """Bits/dim of Fashion-MNIST images (B, 1, 28, 28), uint8, under the shipped network without labels.

    As `digits_bits`, with eps = 0.01 for levels that lie 0.008 apart.
    """
    sde = EDMSDE()
    edges = (-1 - 1 / 255, 1 + 1 / 255)  # level v stands at v / 127.5 - 1
    return bits_per_dim(
        fashion_score(sde), sde, images, n_levels=256, data_range=edges, dequantize="diffusion", eps=0.01, seed=seed
    )


def gaussian_bits(seed: int = 0) -> tuple[float, float]:
    """Bits/dim of the held-out digits under a Gaussian fitted to the others, and its standard error."""
    generator = torch.Generator().manual_seed(seed)

    def dequantised(split: Literal["train", "held_out"]) -> Tensor:
        x = digits_data(split)[0].flatten(1).double()
        return x + (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5) / 8

    train = dequantised("train")
    held_out = dequantised("held_out")
    fitted = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.T))
    d = train.shape[1]
    nats: Tensor = fitted.log_prob(held_out)  # type: ignore[no-untyped-call]
    bits = -(nats - d * math.log(8)) / (d * math.log(2))
    return float(bits.mean()), float(bits.std()) / math.sqrt(len(bits))


def _bits_line(bits: BitsPerDimResult, gaussian: tuple[float, float]) -> str:
    return (
        f"Held-out digits, 17 levels: {bits.value:.3f} +- {bits.stderr:.3f} bits/dim (upper bound); under a Gaussian "
        f"fitted to the other digits {gaussian[0]:.3f} +- {gaussian[1]:.3f}."
    )


def _features(extractor: Extractor, images: Tensor) -> Tensor:
    """Of 8-bit images, as in every benchmark."""
    return extractor(to_uint8(images))


def _table(rows: list[JsonObject], floor: FrechetResult, n: int, n_held_out: int, seconds: float) -> str:
    budgets = [f"{nfe} NFE" for nfe in BUDGETS]
    lines = [
        f"Frechet distance of {n} samples to {n_held_out} held-out digits ({FEATURES}), by budget of network calls "
        f"(NFE), and in brackets the calls made where they are less",
        "",
        f"| sampler | {' | '.join(budgets)} | label agreement at 50 |",
        "|---|" + "---:|" * (len(BUDGETS) + 1),
    ]

    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        cells = map(_cell, own)
        agreement = 100 * own[-1]["agreement"]
        lines.append(f"| {name} | {' | '.join(cells)} | {agreement:.1f} % |")

    n_first, n_second = floor.n
    lines += [
        "",
        f"Two halves of the real data ({n_first} and {n_second} digits): {floor.value:.2f}. "
        f"Sampling took {seconds:.1f} s.",
    ]
    return "\n".join(lines)


def _cell(row: JsonObject) -> str:
    """The distance of a run, and its network calls if they are less than the budget."""
    calls = f" ({row['nfe']})" if row["nfe"] < row["budget"] else ""
    return f"{row['distance']:.2f}{calls}"


def _require_matplotlib() -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('the demo draws its figures with matplotlib: pip install "sgm_sde[bench]"') from error
    matplotlib.use("Agg")


def _draw_strips(rows: dict[str, Tensor], path: Path, size: tuple[float, float]) -> None:
    """Rows of images (n, 1, H, W) in [-1, 1], each with its name."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), 1, figsize=size)
    for axis, (name, x) in zip(axes, rows.items(), strict=True):
        strip = _strip(x)
        axis.imshow(strip.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axis.set_yticks([(len(strip) - 1) / 2], [name], fontsize=8)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.set_frame_on(False)

    figure.tight_layout(h_pad=0.2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _strip(x: Tensor) -> Tensor:
    """Images (n, 1, H, W) side by side, with a black border of a pixel."""
    padded = torch.nn.functional.pad(x[:, 0], (1, 1, 1, 1), value=-1.0)
    return padded.permute(1, 0, 2).reshape(padded.shape[1], -1)


def _draw_curves(rows: list[JsonObject], floor: FrechetResult, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        axis.plot([row["nfe"] for row in own], [row["distance"] for row in own], marker="o", markersize=4, label=name)
    axis.axhline(floor.value, color="gray", linestyle="--", linewidth=1, label="two halves of the real data")
    axis.set(xscale="log", yscale="log", xlabel="network calls (NFE)", ylabel=f"Frechet distance ({FEATURES})")
    axis.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
