"""Whether samples depend on the number of processes or on an interruption: every solver, on the digits network.

    python benchmarks/runs.py --out out/bench

For each solver one process draws the samples without interruption; then one, two and three processes do, and one that is
killed (SIGKILL) in the middle of its writing, at a random point, and started again. The table has the largest difference
of a sample to the first run's, and whether all files of the folder, checksums and manifest included, are the same.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.append(str(Path(__file__).parent.parent))

from sgm_sde import distributed
from sgm_sde.solvers import ADAPTIVE, REGISTRY
from tests.forks import Forks

COLUMNS = ("1 process", "2 processes", "3 processes", "killed and resumed")
Row = dict[str, tuple[float, bool]]


def measure(names: Sequence[str], n: int, batch: int, nfe: int) -> Iterator[tuple[str, Row]]:
    """For each solver and column: the largest difference, and whether all files are the same."""
    choose = random.Random(0)
    points = 4 * (2 + -(-n // batch))  # of the writing: two manifests and the shards
    with Forks("sgm_sde.demo") as forks, tempfile.TemporaryDirectory() as scratch:
        for name in tqdm(names, desc="solvers", unit="solver"):
            folders = [Path(scratch) / name / column for column in ("reference", *COLUMNS)]
            argv = [
                "sample",
                "--model",
                "digits",
                "-n",
                n,
                "--batch",
                batch,
                "--solver",
                name,
                "--quiet",
                "--device",
                "cpu",
            ]
            argv += [] if name in ADAPTIVE else ["--nfe", nfe]
            for size, folder in zip((1, 1, 2, 3), folders[:-1], strict=True):
                _succeed(forks.together([*argv, "--out", folder], size))
            killed = forks.run(*argv, "--out", folders[-1], die_at=choose.randint(5, points - 4))
            assert killed.status == -signal.SIGKILL, killed
            _succeed([forks.run(*argv, "--out", folders[-1])])
            x, files = distributed.load(folders[0])["x"], _files(folders[0])
            yield (
                name,
                {
                    column: (_difference(distributed.load(folder)["x"], x), _files(folder) == files)
                    for column, folder in zip(COLUMNS, folders[1:], strict=True)
                },
            )


def _succeed(ended: Sequence[object]) -> None:
    for done in ended:
        if getattr(done, "status", None) != 0:
            raise RuntimeError(f"a run failed: {done}")


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def table(rows: dict[str, Row]) -> str:
    """The rows as Markdown."""
    lines = ["| solver | " + " | ".join(COLUMNS) + " | same files |", "|---|" + "---:|" * len(COLUMNS) + "---|"]
    for name, row in rows.items():
        cells = [f"{row[column][0]:.1e}" if row[column][0] else "0" for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} | {'yes' if all(same for _, same in row.values()) else 'NO'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for the results (%(default)s)")
    parser.add_argument("--n", type=int, default=24, help="samples for each entry (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="batch size (%(default)s)")
    parser.add_argument("--nfe", type=int, default=12, help="network calls of solvers on a grid (%(default)s)")
    parser.add_argument("--solvers", nargs="*", default=[*REGISTRY, *ADAPTIVE], help="names (all)")
    args = parser.parse_args()
    rows = dict(measure(args.solvers, args.n, args.batch, args.nfe))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "runs.md").write_text(table(rows) + "\n")
    (args.out / "runs.json").write_text(
        json.dumps({"arguments": vars(args) | {"out": str(args.out)}, "rows": rows}) + "\n"
    )
    print(table(rows))
    same = sum(same for row in rows.values() for _, same in row.values())
    print(f"\n{same} of {len(rows) * len(COLUMNS)} folders are the same to the last bit; {len(rows)} runs were killed.")


if __name__ == "__main__":
    main()
