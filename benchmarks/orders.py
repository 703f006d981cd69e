"""Measure the order of every registered solver and write the table to docs/orders.md.

    python -m benchmarks.orders [--out docs/orders.md] [--check]     # all of it, some ten minutes
    python -m benchmarks.orders --only seeds2 seeds3                 # these rows anew, the others as they stand

Deterministic solvers: slope of the error on the probability flow, against the closed form on Gaussian data and
against SciPy's DOP853 on a three-mode mixture. Stochastic solvers: slope of the error of the output law on Gaussian
data, by impulse response, and on a mixture, by quasi-Monte-Carlo. All in float64, on a log-SNR grid and a random one;
the smallest of the slopes counts.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command
from sgm_sde import testing
from sgm_sde.grids import LogSNR
from sgm_sde.testing import OrderMeasurement, default_oracle, rough

PROCESSES: dict[str, sg.LinearSDE] = {
    "VP": sg.VPSDE(),
    "sub-VP": sg.SubVPSDE(),
    "cosine": sg.CosineVPSDE(),
    "VE": sg.VESDE(),
    "EDM": sg.EDMSDE(),
    "flow": sg.RectifiedFlowSDE(),
    "DDPM table": sg.presets.ddpm(),
}
RULES = (LogSNR(), rough())
WEAK_MIXTURE_ON = [("VP", LogSNR()), ("EDM", rough(period=8)), ("flow", rough(period=8))]
WEAK_STEPS = (8, 16, 32)
MIXTURE_ON = ("VP", "EDM")  # its reference is expensive to compute, and nothing there depends on the process
STEPS = (160, 320)  # whole periods of the random grid
# iPNDM_v's weights, exact on even steps alone, reach their order late: 1.74, 1.87, 1.94, 1.97 from 160 to 2560 steps.
MORE_STEPS = {"ipndm-v4": (640, 1280)}

HEAD = """# Claimed and measured orders

Made by `python -m benchmarks.orders`; the tests assert the claims on more processes. An entry is the smallest slope of
the error between {steps} steps on a log-SNR grid and a random one, in float64, on Gaussian data, on VP and EDM also on
a mixture; from the noise level 3 on, where the denoiser depends on the state and a first step of low order shows.
*Order* is that of the error on the probability-flow ODE, *weak order* that of the mean and standard deviation of the
samples on four Gaussian data sets, measured without Monte Carlo from the response to one-hot noises. *Weak, mixture* is
that of two moments and two waves on a mixture of two modes in one dimension, between {weak_steps} steps from the noise
level 2 to 0.4 on VP (log-SNR), EDM and flow (random grids), with its standard error from 4 scramblings of 2^{points}
points; errors below 5 standard errors are left out, and slopes at so few steps may lie above the order. "-" claims
nothing: the bias of a Langevin step depends on its own step size, and inflated noise or a restart of few steps does not
vanish with the steps of the run. `ipndm-v4` reaches its order late, and is measured between 640 and 1280 steps.

"""


def measured(solver: sg.Solver, process: str, steps: tuple[int, ...]) -> float:
    """The smallest slope over grids, and over data for deterministic solvers."""
    sde = PROCESSES[process]
    if solver.stochastic:
        return min(testing.measure_weak_order(solver, sde, rule=rule, steps=steps).order for rule in RULES)
    kinds = ("gaussian", "mixture") if process in MIXTURE_ON else ("gaussian",)
    oracles = [default_oracle(kind) for kind in kinds]
    return min(
        testing.measure_order(solver, sde, oracle=o, rule=rule, steps=steps).order for o in oracles for rule in RULES
    )


def measured_on_mixture(solver: sg.Solver, points: int) -> OrderMeasurement:
    """The weak order on a mixture: the measurement of the smallest slope."""
    cases = [
        testing.measure_weak_order_on_mixture(
            solver, PROCESSES[process], rule=rule, steps=WEAK_STEPS, log2_points=points
        )
        for process, rule in WEAK_MIXTURE_ON
    ]
    return min(cases, key=lambda case: -math.inf if math.isnan(case.order) else case.order)


def row(name: str, solver: sg.Solver, points: int) -> tuple[str, list[str]]:
    """A solver's line of the table, and the claims that are not reached."""
    failures = []
    claim = solver.weak_order if solver.stochastic else solver.order
    cells = []
    for process in PROCESSES:
        value = measured(solver, process, MORE_STEPS.get(name, STEPS)) if claim else float("nan")
        cells.append(f"{value:.2f}" if claim else "-")
        if claim and not value > claim - 0.15:
            failures.append(f"{name} on {process}: {value:.2f}, claimed {claim}")
    if solver.weak_order:
        on_mixture = measured_on_mixture(solver, points)
        cells.append(f"{on_mixture.order:.2f} ± {on_mixture.order_stderr:.2f}")
        if not on_mixture.order > solver.weak_order - 0.15:
            failures.append(f"{name} on a mixture: {cells[-1]}, claimed {solver.weak_order}")
    else:
        cells.append("-" if solver.stochastic else "")
    order, weak = solver.order or "-", solver.weak_order or "-"
    return f"| `{name}` | {solver.nfe_per_step} | {order} | {weak} | {' | '.join(cells)} |", failures


def standing(path: Path) -> dict[str, str]:
    """The lines of a table that is there, by solver."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def main() -> int:
    """Write the table; with --check, fail if a claim is not reached."""
    solvers = sg.solvers().fixed
    parser = command.parser(__doc__)
    parser.add_argument("--out", dest="table", type=Path, default=Path("docs/orders.md"), help="file (%(default)s)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a measured order is below its claim")
    parser.add_argument("--only", nargs="+", choices=list(solvers), metavar="SOLVER", help="measure these rows only")
    parser.add_argument("--missing", action="store_true", help="measure the rows only that the table does not have")
    parser.add_argument("--points", type=int, default=15, help="logarithm to base 2 of the points on the mixture")
    args = command.begin(parser)

    kept = standing(args.table) if args.only or args.missing else {}
    wanted = [name for name in solvers if name not in kept] if args.missing else args.only
    lines, failures = [], []
    for name, solver in tqdm(solvers.items(), desc="solvers"):
        if wanted is not None and name not in wanted and name in kept:
            lines.append(kept[name])
        else:
            line, missed = row(name, solver, args.points)
            lines.append(line)
            failures += missed

    title = [
        "| solver | NFE/step | order | weak order | " + " | ".join(PROCESSES) + " | weak, mixture |",
        "|---|---:|---:|---:|" + "---:|" * (len(PROCESSES) + 1),
    ]
    listed, few = (", ".join(map(str, n)) for n in (STEPS, WEAK_STEPS))
    head = HEAD.format(steps=listed, weak_steps=few, points=args.points)
    args.table.write_text(head + "\n".join([*title, *lines]) + "\n")
    sys.stdout.write("\n".join([*title, *lines, *failures]) + "\n")
    return 1 if failures and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
