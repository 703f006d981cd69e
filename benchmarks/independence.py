"""Does a sample depend on its batch? Print how far it moves, solver by solver, and what leaving the batch saves.

    python -m benchmarks.independence [--out out/bench] [--solvers dopri5 ggf ...]

Each column of the first table runs the same 64 seeds another way and shows the largest difference to every sample run
alone, in float64 with a score of elementwise arithmetic: `batch` all at once, `permuted` in another order, `outlier`
with one start 200 times too large, which is not compared; `sgm-sde sample` in one to three `processes`, and `killed`
with SIGKILL at a random point of its writing and started again. The second table runs 64 samples of which one is stiff:
what the network has seen, and what it would have seen had all stayed until the slowest was done.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command
from sgm_sde.runs import distributed
from sgm_sde.schemes import ADAPTIVE, resolve_any

ROOT = Path(__file__).parent.parent
N, OUTLIER = 64, 5
SEEDS = list(range(N))
FEW = SEEDS[:16]  # for what starts processes
SDE = sg.VPSDE()
ON_GRIDS = ("dpm5m-cold", "dpm++2m", "heun", "euler-maruyama", "ancestral", "sde-dpm++2m", "edm-sde", "pc")
BACKENDS = ("torchdiffeq:dopri5", "scipy:RK45", "torchsde:srk")


def score(x: Tensor, t: Tensor) -> Tensor:
    """The score of a mixture of two Gaussians, at -1 and 1 in every coordinate, by elementwise arithmetic."""
    alpha, sigma = (f(t).reshape(-1, *[1] * (x.ndim - 1)) for f in (SDE.alpha, SDE.sigma))
    variance = (0.2 * alpha) ** 2 + sigma**2
    return (alpha * torch.tanh(alpha * x / variance) - x) / variance


def stiff(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The same with an oscillation at one of the samples."""
    hard = (label == OUTLIER).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return score(x, t) + hard * 3 * torch.sin(40 * x)


def starts(outlier: float = 1.0) -> Tensor:
    """The states that all runs start from."""
    x = torch.cat([SDE.prior_sample((1, 3), seed=[s], dtype=torch.float64) for s in SEEDS])
    x[OUTLIER] *= outlier
    return x


def run(solver: Any, rows: Sequence[int], x: Tensor) -> Tensor:
    """Some of the samples."""
    options = {} if isinstance(solver, sg.AdaptiveSolver) else {"steps": 20}
    return sg.sample(score, SDE, x_T=x[list(rows)], solver=solver, seed=[SEEDS[i] for i in rows], **options).x


def batch(solver: Any, alone: Tensor) -> float:
    """All at once."""
    return float((run(solver, range(N), starts()) - alone).abs().max())


def permuted(solver: Any, alone: Tensor) -> float:
    """In another order."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()
    return float((run(solver, order, starts()) - alone[order]).abs().max())


def outlier(solver: Any, alone: Tensor) -> float:
    """Beside one that starts far off."""
    others = [i for i in range(N) if i != OUTLIER]
    return float((run(solver, range(N), starts(200.0)) - alone)[others].abs().max())


def model() -> sg.models.Model:
    """The score for `sgm-sde sample`, in double precision."""
    torch.set_default_dtype(torch.float64)
    return sg.models.Model("mixture", sg.from_score(score, SDE), SDE, (3,))


PROCESSES = {"1 process": 1, "2 processes": 2, "3 processes": 3, "killed": 1}


def across_processes(name: str, forks: Any, choose: random.Random) -> dict[str, float]:
    """Largest differences to the samples alone of the folders that commands leave, 16 samples in batches of 4."""
    solver, adaptive = resolve_any(name), isinstance(resolve_any(name), sg.AdaptiveSolver)
    options: dict[str, Any] = {} if adaptive else {"steps": 20}
    draws = [
        sg.sample(
            score, SDE, (1, 3), solver=solver, seed=[(0, i)], execution=sg.Execution(dtype=torch.float64), **options
        )
        for i in FEW
    ]
    alone = torch.cat([draw.x for draw in draws])
    argv = [
        "sample",
        "--model",
        "benchmarks.independence:model",
        "-n",
        len(FEW),
        "--batch",
        4,
        "--solver",
        name,
        "--quiet",
    ]
    argv += ["--device", "cpu"] + ([] if adaptive else ["--steps", 20])
    moved = {}
    with tempfile.TemporaryDirectory() as folder:
        for column, size in PROCESSES.items():
            out = Path(folder) / column
            if column == "killed":  # a write is four points, and manifest, four shards and manifest are written
                ended = forks.run(*argv, "--out", out, die_at=choose.randint(5, 20))
                if ended.status != -signal.SIGKILL:
                    raise RuntimeError(f"{name} was not killed: {ended}")
            for ended in forks.together([*argv, "--out", out], size):
                if ended.status != 0:
                    raise RuntimeError(f"{name} with {column}: {ended}")
            moved[column] = float((distributed.load(out)["x"] - alone).abs().max())
    return moved


# A further way to run the same seeds is a further entry: (solver, the samples run alone) -> largest difference.
CHECKS: dict[str, Callable[[Any, Tensor], float]] = {"batch": batch, "permuted": permuted, "outlier": outlier}


def differences(name: str, forks: Any, choose: random.Random) -> dict[str, Any]:
    """A row of the first table."""
    solver = resolve_any(name)
    alone = torch.cat([run(solver, [i], starts()) for i in range(N)])
    together = {column: check(solver, alone) for column, check in CHECKS.items()}
    return {"solver": name} | together | across_processes(name, forks, choose)


def compaction(name: str) -> dict[str, Any]:
    """A row of the second table."""
    label = torch.arange(N)
    solver = resolve_any(name) if name == "ggf" else replace(resolve_any(name), rtol=1e-3, atol=1e-3)
    kwargs = {"label": sg.PerSample(label)}
    execution = sg.Execution(dtype=torch.float64)
    res = sg.sample(
        stiff, SDE, (N, 3), solver=solver, seed=0, model_kwargs=kwargs, final="none", execution=execution
    )  # fmt: skip
    made = res.control.evaluations
    others = made[label != OUTLIER].double()
    return {
        "solver": name, "evaluations_stiff": int(made[OUTLIER]), "evaluations_others": float(others.mean()),
        "rows": res.network_evals, "rows_without": N * int(made.max()),
        "saved": 1 - res.network_evals / (N * int(made.max())),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--solvers", nargs="*", help="only these")
    args = command.begin(parser)
    warnings.simplefilter("ignore", sg.schemes.BatchCoupledWarning)
    chosen = args.solvers or [*ON_GRIDS, *ADAPTIVE, *BACKENDS]
    sys.path.append(str(ROOT))
    from tests.forks import Forks

    with Forks() as forks:
        choose = random.Random(0)
        rows = [differences(name, forks, choose) for name in tqdm(chosen, desc="solvers")]
    columns = [*CHECKS, *PROCESSES]
    lines = [f"| solver | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    lines += [f"| `{row['solver']}` | {' | '.join(f'{row[c]:.1e}' for c in columns)} |" for row in rows]
    saved = [compaction(name) for name in chosen if name in ADAPTIVE]
    lines += ["", "| solver | evaluations, stiff | others, mean | rows | 64 x slowest | saved |"]
    lines += ["|---|" + "---:|" * 5]
    lines += [
        f"| `{s['solver']}` | {s['evaluations_stiff']} | {s['evaluations_others']:.1f} | {s['rows']} | "
        f"{s['rows_without']} | {s['saved']:.0%} |"
        for s in saved
    ]
    (args.out / "independence.md").write_text("\n".join(lines) + "\n")
    (args.out / "independence.json").write_text(json.dumps({"differences": rows, "compaction": saved}, indent=1) + "\n")
    sys.stdout.write("\n".join(lines) + f"\n\nWritten to {args.out}\n")


if __name__ == "__main__":
    main()
