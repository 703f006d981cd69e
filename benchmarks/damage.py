"""Damaged and hostile files: what reading them ends in.

    python -m benchmarks.damage --mutants 400 --out out/bench

Files of every kind that a command reads are damaged at random: bits flipped, cut off, bytes put in or taken out,
numbers in their text changed. Each has to be read, or refused with a ValueError or OSError of one line; anything else
counts as a failure. A program that is accepted has to run, and to give states.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

import sgm_sde as sg
from sgm_sde.data.images import read_data, read_idx
from sgm_sde.engine.executor import execute
from sgm_sde.evaluation.bench import bench, load_result
from sgm_sde.evaluation.metrics.features import load_extractor
from sgm_sde.evaluation.metrics.reference import load_reference, measure
from sgm_sde.runs.distributed import load
from sgm_sde.runs.store import Store, read_manifest
from sgm_sde.scores.model import BoundScore
from sgm_sde.training import load_images

NUMBERS = ["-1", "0.5", "1e999", "NaN", "null", "true", '"a"', "10" * 9, "[]", "{}", "1e300", "-0.0"]


class FixedNoise:
    """Standard normal noise from one generator."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: Any = None) -> torch.Tensor:
        """The next draw."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float32).to(dtype)


def run_program(text: str) -> None:
    """Read a program and run it on a Gaussian; a process that is singular at one of its times may say so."""
    program = sg.Program.from_json(text)
    sde: sg.SDE = sg.CLD() if program.blocks == 2 else sg.EDMSDE()
    shape = (2, 2, 3) if program.blocks == 2 else (2, 3)
    score = sg.from_score(lambda x, t: -x, sde)
    model = BoundScore(score, sde, (0.0, max(max(s.t for s in program.stages), sde.T)))
    try:
        plan = model.plan(program)
    except ValueError as error:
        if "does not determine" in str(error):
            raise
        raise AssertionError(error) from error
    del plan
    run = execute(program, torch.ones(shape), model, FixedNoise())
    assert run.x.shape == shape


def kinds(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """A good file of each kind, and what reads it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    x, y = 15 * rng.integers(0, 18, (6, 1, 8, 8), dtype=np.uint8), np.arange(6)
    np.save(folder / "data.npy", x)
    np.savez(folder / "plain.npz", x=x, y=y)
    np.savez_compressed(folder / "packed.npz", images=x[:, 0], labels=y)
    safetensors.numpy.save_file({"x": x, "y": y}, folder / "data.safetensors")
    idx = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (6, 8, 8)) + x.tobytes()
    (folder / "images.gz").write_bytes(gzip.compress(idx, mtime=0))
    for suffix, mode in (("png", "L"), ("jpg", "RGB")):
        (folder / suffix).mkdir()
        Image.fromarray(np.repeat(x[0, 0, :, :, None], 3, 2) if mode == "RGB" else x[0, 0]).save(
            folder / suffix / f"0.{suffix}"
        )
    extractor = load_extractor("pixels", (1, 8, 8))
    measure("real", torch.from_numpy(x), extractor).save(folder / "statistics.safetensors")
    with Store(folder / "run", {"seed": 0}) as store:
        store.save("00000", {"x": torch.from_numpy(x)}, {"nfe": 3})
        store.finish(["00000"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bench("digits", folder / "bench", solvers=["ddim"], nfe=[3], n=8, metrics=["sw"])
    programs: dict[str, tuple[sg.SDE, Any]] = {
        "program": (sg.EDMSDE(), "seeds2"),
        "matrix program": (sg.CLD(), sg.schemes.GDDIM()),
    }
    for name, (sde, solver) in programs.items():
        table = sg.sampling.planning.plan(sde, solver, nfe=7)[2]
        assert table is not None
        (folder / f"{name}.json").write_text(table.to_json())
    return {
        "npy": (folder / "data.npy", read_data),
        "npz": (folder / "plain.npz", read_data),
        "npz, compressed": (folder / "packed.npz", load_images),
        "safetensors": (folder / "data.safetensors", read_data),
        "idx.gz": (folder / "images.gz", read_idx),
        "png": (folder / "png" / "0.png", lambda path: load_images(path.parent)),
        "jpg": (folder / "jpg" / "0.jpg", lambda path: load_images(path.parent)),
        "statistics": (folder / "statistics.safetensors", lambda path: load_reference(path, extractor, (1, 8, 8))),
        "shard": (folder / "run" / "00000.safetensors", lambda path: load(path.parent)),
        "manifest": (folder / "run" / "manifest.json", lambda path: (read_manifest(path.parent), load(path.parent))),
        "results.json": (folder / "bench" / "results.json", load_result),
        "program": (folder / "program.json", lambda path: run_program(path.read_text())),
        "matrix program": (folder / "matrix program.json", lambda path: run_program(path.read_text())),
    }


def mutate(data: bytes, choose: random.Random) -> bytes:
    """A damaged copy."""
    changed = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 5))):
        at = choose.randrange(max(1, len(changed)))
        match choose.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << choose.randrange(8)]) if changed else b""
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = choose.randbytes(choose.randrange(1, 9))
            case 3:
                del changed[at : at + choose.randrange(1, 9)]
            case 4:
                changed[at : at + 4] = choose.choice((b"\xff" * 4, b"\0" * 4))
            case 5:
                numbers = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?|true|false", changed))
                if numbers:
                    one = choose.choice(numbers)
                    changed[slice(*one.span())] = choose.choice(NUMBERS).encode()
    return bytes(changed)


def hostile(kind: str, data: bytes) -> list[bytes]:
    """What nobody writes by accident: nesting without end, promises that cannot be kept, much in little."""
    deep = b"[" * 200_000
    files = [b"", deep, b'{"a":' * 100_000, (10**400).to_bytes(200, "big")]
    header = (2**40).to_bytes(8, "little")
    files += [header + data[8:], len(deep).to_bytes(8, "little") + deep]
    if kind.startswith("npy"):
        for shape in ("(10000000000000,)", "(-1,)", "(99999999999999999999,)", "(6, 1, 8, " * 300):
            files.append(re.sub(rb"\(6, 1, 8, 8\)", shape.encode(), data))
    if kind.startswith("npz"):
        packed = io.BytesIO()
        np.savez_compressed(packed, x=np.zeros(3 * 10**8, np.uint8))
        files.append(packed.getvalue())
    if kind == "idx.gz":
        files += [gzip.compress(bytes(3 * 10**8), 1), gzip.compress(b"\0\0\x08\xff" + b"\xff" * 2000)]
    return files


def damage(
    kind: str, path: Path, read: Callable[[Path], object], mutants: int, seed: int
) -> tuple[Counter[str], list[str]]:
    """How reading damaged copies of a file ends, and what went wrong."""
    good, choose = path.read_bytes(), random.Random(f"{kind} {seed}")
    read(path)
    counts: Counter[str] = Counter()
    failures = []
    for data in [*hostile(kind, good), *(mutate(good, choose) for _ in range(mutants))]:
        path.write_bytes(data)
        try:
            read(path)
            counts["read"] += 1
        except (ValueError, OSError) as error:
            # One line, and one of ours: what Python or a parser says alone does not name the file.
            counts["refused"] += 1
            if "\n" in str(error):
                failures.append(f"{kind}: {type(error).__name__} of several lines: {error}")
        except Exception as error:
            failures.append(f"{kind}: {type(error).__name__}: {error}; {data[:60]!r}")
    path.write_bytes(good)
    counts["failed"] = len(failures)
    return counts, failures


def main(argv: list[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=400, help="of each kind of file (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args(argv)
    lines = ["| file | damaged | read | refused in one line | failed |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        for kind, (path, read) in kinds(Path(folder)).items():
            counts, failures = damage(kind, path, read, args.mutants, args.seed)
            total = counts["read"] + counts["refused"] + counts["failed"]
            lines.append(f"| {kind} | {total} | {counts['read']} | {counts['refused']} | {counts['failed']} |")
            print(lines[-1], *failures[:5], sep="\n", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "damage.md").write_text("\n".join(lines) + "\n")
    print(json.dumps({"mutants": args.mutants, "seed": args.seed}))


if __name__ == "__main__":
    main()
