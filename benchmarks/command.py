"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch


def parser(description: str | None, out: str | None = None) -> argparse.ArgumentParser:
    """Options of a benchmark that its docstring describes: `--out` where it has a folder for results."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if out is not None:
        made.add_argument("--out", type=Path, default=Path(out), help="folder for results (%(default)s)")
    return made


def begin(options: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with the folder made and one thread for torch: the tensors are small, and more only cost."""
    args = options.parse_args(argv)
    if getattr(args, "out", None) is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return args
