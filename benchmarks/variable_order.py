"""The default's order beside orders that each sample chooses at each step, on the test beds for choosing.

    python -m benchmarks.variable_order

From 30 calls on the default goes through five evaluations in every step. Of the steps through one to six, a sample
takes here the one before the least difference of two in turn, or goes on to the next as long as the differences shrink.
Errors are those of `benchmarks.beds`, over the least of the registry. Takes a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import beds, command, defaults
from benchmarks.beds import Bed
from sgm_sde.engine.node import Node
from sgm_sde.sampling.planning import plan
from sgm_sde.schemes import ExponentialAdams
from sgm_sde.schemes.linear_part import LinearPart

BUDGETS = (35, 50)
MOST = 5  # evaluations of a step; one more tells the difference to the next

Choice = Callable[[Sequence[Tensor]], Tensor]  # of a state out of those through 1, 2, ... evaluations


def through(n: int) -> Choice:
    """The step through n evaluations, as far as there are so many."""
    return lambda states: states[min(n, len(states)) - 1]


def least_difference(states: Sequence[Tensor]) -> Tensor:
    """The step after the least of the differences of neighbours, sample by sample."""
    if len(states) < 3:
        return states[min(2, len(states)) - 1]
    return _chosen(states, 1 + _differences(states)[: MOST - 1].argmin(0))


def shrinking_differences(states: Sequence[Tensor]) -> Tensor:
    """The step up to which differences of neighbours shrink, sample by sample."""
    if len(states) < 3:
        return states[min(2, len(states)) - 1]
    sizes = _differences(states)
    shrink = (sizes[1:] < sizes[:-1]).long().cumprod(0)
    return _chosen(states, (1 + shrink.sum(0)).clamp(max=MOST - 1))


def _differences(states: Sequence[Tensor]) -> Tensor:
    """Sizes (n - 1, B) of the differences of n states (B, *) in turn."""
    return torch.stack(states).diff(dim=0).flatten(2).square().mean(2)


def _chosen(states: Sequence[Tensor], at: Tensor) -> Tensor:
    """For each sample the state of a number (B,)."""
    return torch.stack(states)[at, torch.arange(len(at))]


CHOICES: dict[str, Choice] = {
    "three evaluations": through(3),
    "four evaluations": through(4),
    "five evaluations": through(5),
    "least difference": least_difference,
    "as long as differences shrink": shrinking_differences,
}


@torch.no_grad()
def run(bed: Bed, nfe: int, choose: Choice) -> Tensor:
    """The samples of the default of 30 calls and more, with another choice of orders in predictor and corrector."""
    solver, grid, _ = plan(bed.sde, None, nfe=nfe)
    assert isinstance(solver, ExponentialAdams)
    *nodes, last = bed.sde.nodes(grid.times)
    history: list[tuple[Node, Tensor]] = []  # newest first
    step: tuple[LinearPart, Node, Tensor] | None = None
    x = nodes[0].sigma * bed.noise
    for s, t in zip(nodes, [*nodes[1:], last], strict=True):
        c_x, c_r = s.convert("data", "v", sigma_data=solver.sigma_data)
        history.insert(0, (s, c_x * x + c_r * data(bed, x, s)))
        if step is not None:
            x = choose(states(*step, s, history))
        step = solver.part(s, t), s, x
        x = choose(states(*step, t, history))
    return data(bed, x, last)


def data(bed: Bed, x: Tensor, node: Node) -> Tensor:
    """The network's estimate of the data."""
    time = torch.full((len(x),), node.t, dtype=torch.float64)
    return bed.score.predict("data", x, time, **bed.model_kwargs).to(x.dtype)


def states(part: LinearPart, s: Node, x: Tensor, t: Node, history: Sequence[tuple[Node, Tensor]]) -> list[Tensor]:
    """The states at t from x at s through 1, 2, ... of the newest evaluations."""
    found = []
    for n in range(1, 1 + min(MOST + 1, len(history))):
        weights = part.weights(s, t, [node for node, _ in history[:n]])
        found.append(part.factor(s, t) * x + sum(w * v for w, (_, v) in zip(weights, history, strict=False)))
    return found


def main() -> None:
    """Print the table."""
    args = command.begin(command.parser(__doc__, out="out/bench"))
    known = defaults.frozen()
    ratios: dict[str, dict[int, list[float]]] = {name: {nfe: [] for nfe in BUDGETS} for name in CHOICES}
    for bed in tqdm([bed for bed in beds.load("choose") if bed.name in known], mininterval=10):
        for nfe in BUDGETS:
            least = known[bed.name]["best"][str(nfe)]["rmse"]
            for name, choose in CHOICES.items():
                error = beds.compare(bed, run(bed, nfe, choose)).rmse
                ratios[name][nfe].append(max(error, bed.reference.doubt) / max(least, bed.reference.doubt))

    lines = [f"| order | {' | '.join(f'{nfe} calls' for nfe in BUDGETS)} |", "|---|" + "--:|" * len(BUDGETS)]
    for name, by_budget in ratios.items():
        cells = (f"{defaults.geometric(values):.2f}" for values in by_budget.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "variable_order.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
