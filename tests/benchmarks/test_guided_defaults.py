"""The benchmark of the default on guided scores: cells whose reference sees each jump, and rows of a table."""

from __future__ import annotations

import torch

from benchmarks import guided_defaults
from benchmarks.guided_modes import Modes


def test_a_reference_has_its_nodes_where_the_guided_score_jumps() -> None:
    bed = guided_defaults.modes(Modes(0, 3, 2, 0.3, 3.0), (0.5, 4.0), "edm")
    for t, above_is_guided in zip(bed.jumps, (True, False), strict=True):
        rows = [bed.score.network_evals(torch.tensor([t * (1 + off)], dtype=torch.float64)) for off in (1e-7, -1e-7)]
        assert rows == ([2, 1] if above_is_guided else [1, 2])


def test_a_row_has_the_mean_and_the_worst_of_the_beds() -> None:
    chosen = [guided_defaults.modes(Modes(0, 3, 2, 0.3, scale), (0.5, 4.0), "edm") for scale in (2.0, 8.0)]
    rows = list(guided_defaults.rows(chosen, lambda bed, nfe: [bed.score.scale, float(nfe)]))
    assert rows[0] == "| 4 | 4, 8 | 4, 4 |"
    assert len(rows) == len(guided_defaults.BUDGETS)
