"""Rounds of parallel sampling against calls of the sequential run: `python -m benchmarks.parallel_in_time`.

Each bed runs a solver sequentially and in parallel from the same seed, and finds the largest tolerance, among powers of
ten, at which the largest difference of a sample, in units of the data's standard deviation, is below the asked one.
"""

from __future__ import annotations

import torch

import sgm_sde as sg
from sgm_sde.parallel import sample_in_parallel

F64 = torch.float64
SOLVERS = ("ddim", "dpm++2m", "unipc3", "heun", "euler-ancestral", "sde-dpm++2m")
WINDOWS = (8, 16, 32)
ERRORS = (1e-4, 1e-6)
CALLS = 100


def beds() -> dict[str, tuple[sg.Score, sg.LinearSDE, tuple[int, ...], dict[str, torch.Tensor]]]:
    """An exact score and a trained network."""
    mixture = sg.oracles.GaussianMixture(torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.0, -1.0]], dtype=F64), 0.1)
    digits = sg.load_model("digits")
    labels = {"y": torch.arange(8) % 10}
    found: dict[str, tuple[sg.Score, sg.LinearSDE, tuple[int, ...], dict[str, torch.Tensor]]] = {
        f"mixture, {name}": (mixture.score(sde), sde, (64, 2), {})
        for name, sde in {"VP": sg.VPSDE(), "EDM": sg.EDMSDE(), "flow": sg.RectifiedFlowSDE()}.items()
    }
    found["digits"] = (digits.score, digits.sde, (8, *digits.shape), labels)
    return found


def rounds(bed: str, solver: str, window: int, error: float) -> tuple[int, float] | None:
    """Rounds and network evaluations per sequential one at the largest tolerance that keeps the error."""
    score, sde, shape, kwargs = beds()[bed]
    options = {"solver": solver, "nfe": CALLS, "seed": 0, "dtype": F64, "model_kwargs": kwargs}
    exact = sg.sample(score, sde, shape, **options)
    for k in range(2, 12):
        run = sample_in_parallel(score, sde, shape, window=window, tolerance=10.0**-k, **options)
        if float((run.x - exact.x).abs().max() / exact.x.std()) < error:
            return run.rounds, run.network_evals / max(1, exact.network_evals)
    return None


def main() -> None:
    """Print the table."""
    print(f"| bed | solver | calls | {' | '.join(f'window {w}, {e:.0e}' for w in WINDOWS for e in ERRORS)} |")
    print("|---" * (3 + len(WINDOWS) * len(ERRORS)) + "|")
    for bed in beds():
        for solver in SOLVERS:
            cells = []
            for window in WINDOWS:
                for error in ERRORS:
                    found = rounds(bed, solver, window, error)
                    cells.append("-" if found is None else f"{found[0]} ({found[1]:.1f}x)")
            print(f"| {bed} | {solver} | {CALLS} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
