"""A run mapped over the workers of Dask by the same call, beside the run of one process.

    pip install "sgm_sde[dask]"
    python benchmarks/on_dask.py --parts 4 --out out/dask

Each task draws a part of the samples into one folder, which all workers reach; the last call checks all of them and
writes the manifest. The files have to be those of a run in one process, to the last byte.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dask.distributed import Client, LocalCluster

from sgm_sde import distributed


def draw(k: int, parts: int, n: int, folder: str) -> int:
    """One part of the run."""
    return distributed.sample("digits", n, folder, batch=8, nfe=10, device="cpu", part=(k, parts)).n


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, hidden ones apart."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("out/dask"))
    args = parser.parse_args(argv)
    folder = args.out.resolve()
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        done = client.gather(client.map(draw, range(args.parts), parts=args.parts, n=args.n, folder=str(folder)))
    print(f"{done} samples by {args.parts} tasks")
    print(distributed.sample("digits", args.n, folder, batch=8, nfe=10, device="cpu"))
    alone = args.out.with_name(args.out.name + "-alone")
    distributed.sample("digits", args.n, alone, batch=8, nfe=10, device="cpu")
    same = contents(folder) == contents(alone)
    print(f"{len(contents(folder))} files, {'all the same' if same else 'NOT the same'} as those of one process")


if __name__ == "__main__":
    main()
