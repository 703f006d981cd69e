"""What the pictures of the benchmarks have in common. Matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ERROR = "error / standard deviation of the data"


def panels(n: int, width: float, height: float, *, sharey: bool = False) -> tuple[Any, Any]:
    """A figure of n panels side by side, each of a size in inches, and their axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, n, figsize=(width * n, height), sharey=sharey, squeeze=False)
    return figure, axes.flat


def ticks(axis: Any, values: Iterable[float]) -> None:
    """Ticks of the horizontal axis at some values alone."""
    values = list(values)
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()


def save(figure: Any, path: Path, label: str = "", *, legend: int | None = None, size: int = 8, dpi: int = 110) -> None:
    """Write a figure; first label its leftmost vertical axis, and give the panel of a number a legend."""
    import matplotlib.pyplot as plt

    if label:
        figure.axes[0].set_ylabel(label)
    if legend is not None:
        figure.axes[legend].legend(frameon=False, fontsize=size)
    figure.tight_layout()
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def sheet(axis: Any, rows: dict[str, Tensor], n: int) -> None:
    """The first n of each row of digits (B, 1, 8, 8), a row below the other, with their names."""
    padded = [torch.nn.functional.pad(x[:n, 0], (1, 1, 1, 1), value=-1.0) for x in rows.values()]
    strips = torch.cat([strip.permute(1, 0, 2).reshape(10, -1) for strip in padded])
    axis.imshow(strips.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_yticks([10 * i + 4.5 for i in range(len(rows))], list(rows), fontsize=8)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.set_frame_on(False)
