"""The pilot's benchmark: what its table says of cells, and noises that neither bed nor pilot has seen."""

from __future__ import annotations

import pytest
import torch

from benchmarks import beds, pilots
from benchmarks.pilots import BUDGETS, Cell


def cells(ratio: float, further: float | None) -> dict[int, Cell]:
    """Cells of a bed at all budgets."""
    return {nfe: Cell("ddim", 0.1, ratio, 2 * ratio, ratio / 2, further, 1.9, ["cannot tell"]) for nfe in BUDGETS}


def test_the_table_says_what_the_cells_hold() -> None:
    """Geometric means, shares within bounds and the worst; beds without further noises count in their own columns."""
    rows = {"one": cells(0.5, 0.25), "two": cells(2.0, None), "three": cells(1.0, 1.2)}
    head, _, first, *_, note = pilots.table(rows).splitlines()
    assert head.startswith(
        "| network calls | geometric mean | at most 1.1 | at most 1.3 | worst | medians: geometric mean"
    )
    assert (
        first
        == "| 5 | 1 | 67 % | 67 % | 2 | 2 | 33 % | 33 % | 4 | .50 | 100 % | 100 % | 1 | .55 | 50 % | 100 % | 1.2 |"
    )
    assert note.startswith("3 beds, 2 of them with further noises.")
    assert "1.90 in the mean, 1.90 at most" in note

    missed = pilots.missed(rows).splitlines()
    assert len(missed) == 2 * len(BUDGETS)
    assert all("two at" in line for line in missed[::2])


@pytest.mark.parametrize("name", ["exact/mixture-1/ve", "network/moons-flow-1/plain/flow"])
def test_further_noises(name: str) -> None:
    """They are others than the bed's, and the ends of the exact flow go with them."""
    bed = beds.bed(name)
    more = pilots.further(bed)
    assert more is not None
    assert more.shape == (256, *bed.shape[1:])
    assert more.noise.dtype == bed.noise.dtype
    assert not torch.isin(more.noise, bed.noise).any()
    solver, grid = pilots.frozen_setting(bed, 10)
    ours, theirs = (beds.errors(b, solver, 10, grid).median for b in (more, bed))
    assert 0.3 * theirs < ours < 3 * theirs
