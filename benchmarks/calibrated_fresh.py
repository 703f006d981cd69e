"""Calibrated solvers on networks of recipes that are on no test bed, trained here in a minute.

    python -m benchmarks.calibrated_fresh                    # all four; what was fitted is kept in out/fresh
    python -m benchmarks.calibrated_fresh --names roll,board

A residual network for 8 numbers on DDPM's table (noise), one for a rolled line on the cosine process (data), one for a
checkerboard by flow matching, and a small U-Net in EDM's preconditioning for 8x8 digits. Each is calibrated, and run on
fresh noises beside what the pilot takes and the best of all candidates of the pilot and of six solvers on four grids,
chosen on these very noises. Further samples, without exact ones, must not lie beyond the exact ones.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sgm_sde as sg
from benchmarks import command
from sgm_sde.nn.digits import digits_data
from sgm_sde.sampling.trials import REFERENCE, default_candidates

BUDGETS = (4, 6, 8, 12)
SOLVERS = ("ipndm3", "dpm++2m", "unipc3", "deis3", "ddim", "heun")
GRIDS = (None, "karras", "log-snr", "uniform")
SEED = 3
HELD_OUT = 128
BATCH = 512

Draw = Callable[[int, torch.Generator], Tensor]


class Residual(nn.Module):
    """Residual network of points, with sines of the time."""

    f: Tensor

    def __init__(self, d: int, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.register_buffer("f", torch.linspace(0.5, 12, 8))
        self.a = nn.Linear(d + 16, width)
        self.b = nn.ModuleList([self._block(width) for _ in range(depth)])
        self.c = nn.Linear(width, d)

    @staticmethod
    def _block(width: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction at x (B, d) and t (B,)."""
        e = t[:, None] * self.f
        h = self.a(torch.cat([x, e.sin(), e.cos()], 1))
        for block in self.b:
            h = h + block(h)
        out: Tensor = self.c(h)
        return out


class UNet(nn.Module):
    """U-Net of two resolutions in EDM's preconditioning; scales and shifts by log sigma."""

    f: Tensor

    def __init__(self, w: int = 24) -> None:
        super().__init__()
        self.t = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 6 * w))
        self.w = w
        self.i = nn.Conv2d(1, w, 3, padding=1)
        self.d1 = nn.Conv2d(w, w, 3, padding=1)
        self.d2 = nn.Conv2d(w, 2 * w, 3, padding=1, stride=2)
        self.m = nn.Conv2d(2 * w, 2 * w, 3, padding=1)
        self.u = nn.Conv2d(2 * w, w, 3, padding=1)
        self.o1 = nn.Conv2d(2 * w, w, 3, padding=1)
        self.o = nn.Conv2d(w, 1, 3, padding=1)
        self.n1 = nn.GroupNorm(4, w)
        self.n2 = nn.GroupNorm(4, 2 * w)
        self.n3 = nn.GroupNorm(4, w)
        self.register_buffer("f", torch.linspace(0.25, 3, 8))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """The denoised data at x (B, 1, 8, 8) and sigma (B,), for data of standard deviation a half."""
        w = self.w
        e = s.log()[:, None] * self.f
        q = self.t(torch.cat([e.sin(), e.cos()], 1))[:, :, None, None]
        s2 = (s**2)[:, None, None, None]

        h = self.i(x * (s2 + 0.25).rsqrt())
        fine = h + F.silu(self.n1(self.d1(h)) * (1 + q[:, :w]) + q[:, w : 2 * w])
        coarse = self.d2(fine)
        coarse = coarse + F.silu(self.n2(self.m(coarse)) * (1 + q[:, 2 * w : 4 * w]) + q[:, 4 * w :])
        both = torch.cat([F.interpolate(self.u(coarse), scale_factor=2), fine], 1)
        out: Tensor = self.o(F.silu(self.n3(self.o1(both))))
        return 0.25 / (s2 + 0.25) * x + (s2 * 0.25 / (s2 + 0.25)).sqrt() * out


def numbers(n: int, g: torch.Generator) -> Tensor:
    """Eight numbers that hang together, with tails."""
    u = torch.randn(n, 4, generator=g)
    k = (torch.rand(n, generator=g) < 0.3).float()
    columns = [
        u[:, 0], u[:, 0] ** 2 + 0.3 * u[:, 1], u[:, 1].exp().clamp(max=8), (2 * u[:, 2]).sin() + 0.1 * u[:, 3],
        k + 0.05 * u[:, 3], u[:, 2] * u[:, 0], (u[:, 3] + k).abs(), 0.5 * u[:, 0] - u[:, 2],
    ]  # fmt: skip
    mean = torch.tensor([0, 1, 1.6, 0, 0.3, 0, 0.95, 0])
    return (torch.stack(columns, 1) - mean) / torch.tensor([1, 1.5, 1.7, 0.7, 0.46, 1, 0.65, 1.1])


def roll(n: int, g: torch.Generator) -> Tensor:
    """A rolled line."""
    r = 1 + 3 * torch.rand(n, generator=g)
    a = 2 * math.pi * r / 1.8
    return torch.stack([r * a.cos(), r * a.sin()], 1) / 2.2 + 0.03 * torch.randn(n, 2, generator=g)


def board(n: int, g: torch.Generator) -> Tensor:
    """Points of a checkerboard's columns."""
    x = 4 * torch.rand(n, generator=g) - 2
    torch.rand(n, generator=g)
    i = torch.randint(0, 2, (n,), generator=g)
    y = torch.rand(n, generator=g) - 2 * i + (x.floor() % 2)
    return torch.stack([x, y], 1) / 1.2


def digits(n: int, g: torch.Generator) -> Tensor:
    """Digits."""
    images = digits_data("train")[0]
    return images[torch.randint(0, len(images), (n,), generator=g)]


@dataclass(frozen=True)
class Recipe:
    """A network with its process, its data and what it predicts."""

    net: Callable[[], nn.Module]
    sde: sg.LinearSDE
    shape: tuple[int, ...]
    draw: Draw
    predicts: str
    noises: int
    fresh: int = 2048
    steps: int = 3000


def recipes() -> dict[str, Recipe]:
    """All four."""
    table = sg.DiscreteVPSDE(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist())
    return {
        "numbers": Recipe(lambda: Residual(8), table, (8,), numbers, "noise", 128),
        "roll": Recipe(lambda: Residual(2), sg.CosineVPSDE(), (2,), roll, "data", 512),
        "board": Recipe(lambda: Residual(2), sg.RectifiedFlowSDE(), (2,), board, "flow", 512),
        "unet": Recipe(UNet, sg.EDMSDE(), (1, 8, 8), digits, "denoised", 128, 192, 1500),
    }


def score_of(recipe: Recipe, net: nn.Module) -> sg.Score:
    """The network as a score."""
    made = {"noise": sg.from_noise, "data": sg.from_denoiser, "flow": sg.from_flow, "denoised": sg.from_denoiser}
    return made[recipe.predicts](net, recipe.sde)


def trained(recipe: Recipe) -> nn.Module:
    """The network after its steps of Adam."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    net = recipe.net()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        loss = loss_of(recipe, net, g)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval()


def loss_of(recipe: Recipe, net: nn.Module, g: torch.Generator) -> Tensor:
    """The usual loss of what the network predicts, on a fresh batch."""
    images = len(recipe.shape) > 1
    n = 96 if images else 256
    sde = recipe.sde
    x = recipe.draw(n, g)
    z = torch.randn(x.shape, generator=g)
    if images:
        t = (1.2 * torch.randn(n, generator=g) - 1.2).exp()
    elif recipe.predicts == "noise":
        t = sde.eps + (sde.T - sde.eps) * torch.randint(0, 1000, (n,), generator=g) / 999
    else:
        t = sde.eps + (sde.T - sde.eps) * torch.rand(n, generator=g)

    wide = (-1,) + (1,) * (x.ndim - 1)
    alpha = sde.alpha(t).float().view(wide)
    sigma = sde.sigma(t).float().view(wide)
    out = net(alpha * x + sigma * z, t.float())
    if recipe.predicts == "noise":
        return (out - z).square().mean()
    if recipe.predicts == "flow":
        return (out - (z - x)).square().mean()
    weight = 1 / (sigma**2 + 0.02) if recipe.predicts == "data" else (sigma**2 + 0.25) / (sigma**2 * 0.25)
    return ((out - x).square() * weight).mean()


@dataclass(frozen=True)
class Errors:
    """Root mean square and median over noises, and the former without the largest hundredth."""

    rmse: float
    median: float
    most: float

    def __str__(self) -> str:
        return f"{self.rmse:.3g} / {self.median:.2g} / {self.most:.3g}"


class Check:
    """Runs on fresh noises, beside exact ones."""

    def __init__(self, recipe: Recipe, score: sg.Score, calls: int) -> None:
        self.recipe = recipe
        self.score = score
        self.exact = self.run(REFERENCE, calls)
        self.std = float(self.exact.std())
        self.center = self.exact.mean(0)

    def run(self, solver: Any, nfe: int, grid: str | None = None, n: int | None = None, seed: int = 999) -> Tensor:
        """Samples (n, d)."""
        n = self.recipe.fresh if n is None else n
        parts = [
            sg.sample(
                self.score, self.recipe.sde, (min(BATCH, n - k), *self.recipe.shape), solver=solver, nfe=nfe,
                seed=seed + k, grid=grid,
            ).x
            for k in range(0, n, BATCH)
        ]  # fmt: skip
        return torch.cat(parts).flatten(1).double()

    def errors(self, solver: Any, nfe: int, grid: str | None = None) -> Errors:
        """Errors in units of the samples' standard deviation."""
        each = (self.run(solver, nfe, grid) - self.exact).square().mean(1).sqrt() / self.std
        most = each.sort().values[: int(0.99 * len(each))]
        return Errors(float(each.square().mean().sqrt()), float(each.median()), float(most.square().mean().sqrt()))

    def best(self, nfe: int) -> tuple[Errors, str]:
        """The least error of what is off the shelf."""
        able: list[tuple[Any, str | None]] = [(setting, None) for setting in default_candidates(nfe)]
        able += [(name, grid) for name in SOLVERS for grid in GRIDS]
        found = []
        for solver, grid in able:
            try:
                found.append((self.errors(solver, nfe, grid), f"{solver}{f' on {grid}' if grid else ''}"))
            except ValueError:  # it needs more calls
                continue
        return min((one for one in found if math.isfinite(one[0].rmse)), key=lambda one: one[0].rmse)

    def farthest(self, x: Tensor) -> float:
        """The largest distance from the mean of the exact samples."""
        return float((x - self.center).square().mean(1).sqrt().max())


def measure(name: str, recipe: Recipe, out: Path) -> None:
    """Train, calibrate, and print a line for each budget."""
    score = score_of(recipe, trained(recipe))
    found = sg.calibrate(
        score, recipe.sde, (recipe.noises, *recipe.shape), nfe=BUDGETS, held_out=HELD_OUT, seed=SEED,
        checkpoint=out / name,
    )  # fmt: skip
    check = Check(recipe, score, min(256, int(found[BUDGETS[0]].protocol["reference_nfe"])))
    for nfe, one in found.items():
        ours = check.errors(one, nfe)
        pilot = check.errors(one.off_the_shelf.setting, nfe)
        best, who = check.best(nfe)
        far = check.farthest(check.run(one, nfe, n=2 * recipe.fresh, seed=10**6)) / check.farthest(check.exact)
        ratio = ours.rmse / best.rmse
        middle = ours.median / best.median
        sys.stdout.write(
            f"{name} at {nfe} calls: calibrated {ours}, pilot {pilot}, best {best} ({who}); ratio {ratio:.2f}, "
            f"of medians {middle:.2f}; farthest {far:.2f} ({one.errors[0].name})\n"
        )
        sys.stdout.flush()


def main(argv: list[str] | None = None) -> None:
    """Measure all, or those named."""
    options = command.parser(__doc__, "out/fresh")
    options.add_argument("--names", default="", help="with commas between")
    args = command.begin(options, argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a calibration says of itself is in its remarks
        for name, recipe in recipes().items():
            if not args.names or name in args.names.split(","):
                measure(name, recipe, args.out)


if __name__ == "__main__":
    main()
