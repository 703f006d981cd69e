"""The table of pipelines in docs/adapters.md: `python -m tests.clients.table --write`."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from torch import Tensor

DOCS = Path(__file__).parents[2] / "docs" / "adapters.md"
START, END = "<!-- tests/clients/table.py -->", "<!-- end -->"


def difference(a: Tensor, b: Tensor) -> str:
    """The largest difference, in units of the largest number."""
    return f"{float((a - b).abs().max() / b.abs().max()):.0e}"


def rows() -> list[str]:
    """The table's lines: the largest difference of latents by pipeline and task."""
    import diffusers

    from sgm_sde.adapters import SolverScheduler
    from tests.clients.pipelines import BETAS, FAMILIES, TASKS, few_steps, latents, theirs_of

    diffusers.logging.set_verbosity_error()
    lines = [f"| pipeline | {' | '.join(TASKS.values())} |", "|---" * (1 + len(TASKS)) + "|"]
    for family, (_, kinds) in FAMILIES.items():
        cells = []
        for kind in TASKS:
            if kind not in kinds:
                cells.append("no pipeline")
                continue
            ours = SolverScheduler(theirs_of(family), "ddim", grid="scheduler", unit_noise=True)
            cells.append(difference(latents(family, kind, ours), latents(family, kind, theirs_of(family))))
        lines.append(f"| {family} | {' | '.join(cells)} |")

    cells = []
    for kind in ("", "Img2Img"):
        theirs = diffusers.LCMScheduler(**BETAS)
        ours = SolverScheduler(theirs, seed=7, unit_noise=True)
        cells.append(difference(few_steps(kind, ours, 7), few_steps(kind, theirs, 7)))
    lines.append(f"| Latent consistency, `lcm` | {' | '.join(cells)} | no pipeline |")
    return lines


def main() -> None:
    """Print the table, or put it into the docs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="into docs/adapters.md")
    write = parser.parse_args().write
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = "\n".join(rows())
    print(table)
    if write:
        before, rest = DOCS.read_text().split(START)
        DOCS.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
