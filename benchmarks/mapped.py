"""A run mapped over the workers of Dask or Ray by the same call, beside the run of one process.

    pip install "sgm_sde[dask]"        # or [ray]
    python -m benchmarks.mapped --engine dask --parts 4 --out out/dask

Each task draws a part of the samples into one folder, which all workers reach; the last call checks all of them and
writes the manifest. The files have to be those of a run in one process, to the last byte.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from sgm_sde.runs import distributed


def draw(k: int, parts: int, n: int, folder: str) -> int:
    """One part of the run."""
    return distributed.sample("digits", n, folder, batch=8, nfe=10, device="cpu", part=(k, parts)).n


def on_dask(parts: int, n: int, folder: str) -> list[int]:
    """All parts, on a cluster of two workers of this machine."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        return list(client.gather(client.map(partial(draw, parts=parts, n=n, folder=folder), range(parts))))


def on_ray(parts: int, n: int, folder: str) -> list[int]:
    """All parts, on a cluster of two workers of this machine."""
    import ray

    with ray.init(num_cpus=2, include_dashboard=False):
        task = ray.remote(draw)
        return list(ray.get([task.remote(k, parts, n, folder) for k in range(parts)]))


ENGINES = {"dask": on_dask, "ray": on_ray}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, hidden ones apart."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=sorted(ENGINES), default="dask", help="(%(default)s)")
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("out/mapped"))
    args = parser.parse_args(argv)
    folder = args.out.resolve()
    done = ENGINES[args.engine](args.parts, args.n, str(folder))
    print(f"{args.n} samples by {args.parts} tasks: {done}")
    print(distributed.sample("digits", args.n, folder, batch=8, nfe=10, device="cpu"))
    alone = args.out.with_name(args.out.name + "-alone")
    distributed.sample("digits", args.n, alone, batch=8, nfe=10, device="cpu")
    same = contents(folder) == contents(alone)
    print(f"{len(contents(folder))} files, {'all the same' if same else 'NOT the same'} as those of one process")


if __name__ == "__main__":
    main()
