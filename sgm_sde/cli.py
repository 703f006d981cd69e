"""The command line: `sgm-sde`, also `python -m sgm_sde`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sgm_sde import __version__
from sgm_sde.solvers import solvers


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Example:
        >>> main(["solvers"])  # doctest: +ELLIPSIS
        name ...
        0
    """
    parser = argparse.ArgumentParser(prog="sgm-sde", description="Samplers for score-based generative models.")
    parser.add_argument("--version", action="version", version=f"sgm_sde {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("solvers", help="list the solvers with their orders and sources")
    demo = commands.add_parser("demo", help="sample 8x8 digits with several solvers, or a grid of clothes")
    demo.add_argument("--model", choices=["digits", "fashion"], default="digits", help="shipped network (%(default)s)")
    demo.add_argument("--out", type=Path, default=Path("sgm_sde_demo"), help="folder for the results (%(default)s)")
    demo.add_argument("--n", type=int, help="samples for each entry (1000), or images of clothes (64)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    demo.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    try:
        if args.command == "solvers":
            sys.stdout.write(f"{solvers()}\n")
        else:
            import torch

            from sgm_sde.demo import run, run_fashion

            if args.model == "fashion":
                text = run_fashion(args.out, n=64 if args.n is None else args.n, seed=args.seed)
            else:
                torch.set_num_threads(1)  # the networks are tiny: more threads would spend their time waiting
                n = 1000 if args.n is None else args.n
                text = run(args.out, n=n, seed=args.seed, progress=not args.quiet)
            sys.stdout.write(text + "\n")
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"sgm-sde: {error}\n")
    return 0
