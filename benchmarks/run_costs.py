"""What a run costs beside its network: seconds a sample against the number of samples, with the progress bar shown.

    python -m benchmarks.run_costs --n 10000 100000 1000000 --out out/bench
    python -m benchmarks.run_costs --n 10000 100000 1000000 10000000 --shape 2 --batch 1024 --out out/bench

The network is one multiplication, of 8x8 samples in batches of 64 if not told otherwise, so that what is measured is
the loop, the noise, the writing and the bookkeeping. The same command is then started again, which checks all that is
there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sgm_sde as sg
from sgm_sde.runs import distributed


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of this process' CPU, and on the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        call()
    return time.process_time() - cpu, time.perf_counter() - clock


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--shape", type=int, nargs="+", default=[1, 8, 8], help="of a sample (1 8 8)")
    parser.add_argument("--batch", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)
    sde = sg.EDMSDE()
    model = sg.models.Model("scaling", sg.from_denoiser(lambda x, t: 0.5 * x, sde), sde, tuple(args.shape))
    lines = [
        "| samples | shards | CPU, µs a sample | clock, µs a sample | again, s | loaded, s |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    print(*lines, sep="\n", flush=True)
    for n in args.n:
        with tempfile.TemporaryDirectory() as folder:

            def run(n: int = n, folder: str = folder) -> object:
                options = {"batch": args.batch, "nfe": 4, "solver": "ddim", "device": "cpu"}
                return distributed.sample(model, n, folder, progress=True, **options)

            cpu, clock = measure(run)
            again, _ = measure(run)
            loaded, _ = measure(lambda folder=folder: distributed.load(folder))  # type: ignore[misc]
            shards = len(list(Path(folder).glob("*.safetensors")))
        lines.append(f"| {n} | {shards} | {1e6 * cpu / n:.1f} | {1e6 * clock / n:.1f} | {again:.2f} | {loaded:.2f} |")
        print(lines[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "run_costs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
