r"""The default on flows that were trained on coupled pairs of data and noise.

    python -m benchmarks.coupled_flows train     # weights into out/beds/coupled, two minutes on one core
    python -m benchmarks.coupled_flows           # tables; trains what is missing

Paths of coupled pairs are nearly straight, so that few steps in the coordinates of rectified flow go far where those
for independent pairs do not. The default for such flows was chosen on half of the networks, with each kind of coupling.

| network             | data              | coupling                            | half   |
|---------------------|-------------------|-------------------------------------|--------|
| moons-transport     | two moons, 2-D    | optimal transport, batches of 128   | choose |
| digits-transport    | digits            | optimal transport, batches of 128   | choose |
| rings-reflow        | two rings, 2-D    | that of a flow of independent pairs | choose |
| columns-transport   | 8 skew columns    | optimal transport, batches of 128   | report |
| gratings-transport  | gratings, 16x16   | optimal transport, batches of 128   | report |
| checkerboard-reflow | checkerboard, 2-D | that of a flow of independent pairs | report |

Errors are those of the test beds (`benchmarks.beds`). "Best" is the least error of any deterministic entry of the
registry, on three grids, with and without lower final orders.

Sources: Tong et al., 2023, arXiv:2302.00482; Liu et al., 2022, arXiv:2209.03003.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import beds, command
from benchmarks.bed_networks import file_hash, filled, moons
from benchmarks.defaults import geometric, programs
from benchmarks.unseen_networks import Beside, Residual, checkerboard, columns, digits, gratings, rings
from sgm_sde.nn._weights import store
from sgm_sde.nn.unet import UNet
from sgm_sde.training import EMA, denoising_score_matching

WEIGHTS = beds.CACHE / "coupled"
BATCH = 128
PAIRS = 8000  # of a flow that is straightened


@dataclass(frozen=True)
class Recipe:
    """How a network is made: by optimal transport within batches, or as the straightened flow of another."""

    seed: int
    data: Callable[[int, torch.Generator], Tensor]
    net: Callable[[], nn.Module]
    iterations: int
    reflow: bool = False
    half: str = "report"
    n: int = 128
    steps: tuple[int, int] = (400, 400)
    rate: float = 1e-3


def _unet() -> nn.Module:
    return UNet(1, (16, 32), blocks=1, attention=(), embed=64)


RECIPES = {
    "moons-transport": Recipe(0, moons, lambda: Beside(2, 128, activation=nn.SELU), 3000, half="choose"),
    "digits-transport": Recipe(
        1, digits, lambda: UNet(1, (24, 32), blocks=1, attention=(), patch=1, embed=64), 400,
        half="choose", n=16, steps=(200, 200), rate=2e-3,
    ),
    "rings-reflow": Recipe(2, rings, lambda: Residual(2), 3000, reflow=True, half="choose"),
    "columns-transport": Recipe(3, columns, lambda: Residual(8), 3000, n=64),
    "gratings-transport": Recipe(4, gratings, _unet, 400, n=8, steps=(150, 250), rate=2e-3),
    "checkerboard-reflow": Recipe(5, checkerboard, lambda: Beside(2, 128), 3000, reflow=True),
}  # fmt: skip


def _score(net: nn.Module, coupled: bool = True) -> sg.Score:
    return sg.adapters.from_flow_matching(net, from_noise=True, coupled=coupled)[0]


def transported(x: Tensor, z: Tensor) -> Tensor:
    """The noises z of a batch, in the order that makes the sum of squared distances to the data x the least."""
    cost = torch.cdist(x.flatten(1), z.flatten(1)).square()
    _, order = linear_sum_assignment(cost.numpy())
    return z[order]


def _fit(
    recipe: Recipe,
    model: sg.Score,
    pairs: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    generator: torch.Generator,
) -> None:
    """Train a flow on pairs of data and noise, averaged."""
    net = model.net
    assert isinstance(net, nn.Module)
    optimiser = torch.optim.Adam(net.parameters(), lr=recipe.rate)
    ema = EMA(net, 0.995)
    for _ in tqdm(range(recipe.iterations), mininterval=5):
        x, z = pairs(generator)
        loss = denoising_score_matching(model, x, noise=z, generator=generator, weighting="flow").mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        ema.update(net)
    ema.copy_to(net)


def train(name: str) -> None:
    """Train a network and store its averaged weights."""
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)  # initial weights; everything else draws from the generator
    generator = torch.Generator().manual_seed(recipe.seed)
    data = recipe.data(20000, generator)
    started = time.process_time()

    def of_data(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = data[torch.randint(len(data), (BATCH,), generator=generator)]
        return x, torch.randn(x.shape, generator=generator)

    def by_transport(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, z = of_data(generator)
        return x, transported(x, z)

    pairs = by_transport
    if recipe.reflow:
        first = _score(recipe.net(), coupled=False)
        _fit(recipe, first, of_data, generator)
        sde = beds.PROCESSES["flow"]()
        z = torch.randn((PAIRS, *data.shape[1:]), generator=generator)
        x = sg.sample(first, sde, x_T=sde.prior_std * z, nfe=50).x

        def by_flow(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            some = torch.randint(PAIRS, (BATCH,), generator=generator)
            return x[some], z[some]

        pairs = by_flow
    net = recipe.net()
    _fit(recipe, _score(net), pairs, generator)
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    store(net, WEIGHTS / f"{name}.safetensors")
    sys.stdout.write(f"{name}: {time.process_time() - started:.0f} CPU s\n")


def bed(name: str) -> beds.Bed:
    """The network as a test bed that is in no half."""
    recipe = RECIPES[name]
    file = WEIGHTS / f"{name}.safetensors"
    if not file.exists():
        train(name)
    net = filled(recipe.net(), file)
    data = recipe.data(20000, torch.Generator().manual_seed(recipe.seed))
    return beds.Bed(
        beds.Recipe("coupled", "network", "flow", name), beds.PROCESSES["flow"](), _score(net),
        (recipe.n, *data.shape[1:]), beds.spread(data), torch.float32, steps=recipe.steps,
        weights=file_hash(file),
    )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Errors of a network at a budget, none below what the reference is known to.

    Attributes:
        default: of the default for coupled pairs.
        independent: of that for independent pairs.
        ddim: of DDIM on even steps of log-SNR.
        best: the least of the registry.
        by: whose it is.
    """

    default: float
    independent: float
    ddim: float
    best: float
    by: str


def measure(name: str) -> dict[int, Cell]:
    """Errors of a network by budget."""
    here = bed(name)
    least = here.reference.doubt
    cells = {}
    for nfe in beds.BUDGETS:
        tried = programs(here.sde, nfe)
        found = {str(c): e.rmse for c, e in zip(tried.values(), beds.errors_of(here, list(tried)), strict=True)}
        by = min(found, key=lambda one: found[one])
        independent = sg.defaults.default_setting(here.sde, nfe)
        cells[nfe] = Cell(
            default=max(beds.error(here, None, nfe), least),
            independent=max(beds.error(here, independent, nfe), least),
            ddim=max(beds.error(here, "ddim", nfe, "log-snr"), least),
            best=max(found[by], least),
            by=by,
        )
    return cells


RATIOS: dict[str, Callable[[Cell], float]] = {
    "default / best": lambda cell: cell.default / cell.best,
    "for independent pairs / best": lambda cell: cell.independent / cell.best,
    "default / DDIM": lambda cell: cell.default / cell.ddim,
}


def tables(found: dict[str, dict[int, Cell]]) -> list[str]:
    """The cells, and geometric means and worst of their ratios by half."""
    lines = ["| network | half | calls | default | for independent pairs | DDIM | best | by |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|---|")
    for name, cells in found.items():
        for nfe, cell in cells.items():
            errors = " | ".join(f"{error:.2g}" for error in (cell.default, cell.independent, cell.ddim, cell.best))
            lines.append(f"| {name} | {RECIPES[name].half} | {nfe} | {errors} | {cell.by} |")

    for half in beds.HALVES:
        lines += ["", f"| {half} | {' | '.join(map(str, beds.BUDGETS))} |", "|---|" + "--:|" * len(beds.BUDGETS)]
        of = [cells for name, cells in found.items() if RECIPES[name].half == half]
        for title, ratio in RATIOS.items() if of else ():
            by_budget = [[ratio(cells[nfe]) for cells in of] for nfe in beds.BUDGETS]
            lines.append(f"| {title}, geometric mean | {' | '.join(f'{geometric(r):.2f}' for r in by_budget)} |")
            lines.append(f"| {title}, worst | {' | '.join(f'{max(r):.1f}' for r in by_budget)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or print the tables."""
    parser = command.parser(__doc__)
    parser.add_argument("what", choices=["report", "train"], nargs="?", default="report")
    args = command.begin(parser, argv)
    if args.what == "train":
        for name in RECIPES:
            train(name)
        return
    sys.stdout.write("\n".join(tables({name: measure(name) for name in tqdm(RECIPES)})) + "\n")


if __name__ == "__main__":
    main()
