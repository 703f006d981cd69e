r"""The default on trained networks of recipes that no test bed has.

    python -m benchmarks.unseen_networks train       # weights into out/beds/unseen, about six minutes on one core
    python -m benchmarks.unseen_networks             # tables; trains what is missing

The first eight were a look from outside; today's default was chosen with them. The second six were trained when it was
frozen, and chose nothing. The last four predict the data without a skip connection: their default (`bare=True`) was
chosen on networks of the first two recipes of these, with rings-x0, and the other two chose nothing.

| network           | data              | predicts | process             | recipe                                      |
|-------------------|-------------------|----------|---------------------|---------------------------------------------|
| tokens-edm        | digits            | EDM's F  | EDM                 | transformer of 2x2 patches, adaptive norms  |
| shapes-variance   | shapes, 16x16     | noise    | DDPM's linear table | U-Net, twice the channels: learned variance |
| table-vp          | 8 skew columns    | noise    | VP                  | residual layers, 4 frequencies of time      |
| two-values-ve     | two values, 1-D   | score    | VE                  | conditioned on log(sigma)                   |
| checkerboard-flow | checkerboard, 2-D | flow     | noise to data       | t beside x, not scaled                      |
| rings-x0          | two rings, 2-D    | data     | cosine              | residual layers, 4 frequencies of time      |
| digits-short      | digits            | noise    | DDPM's linear table | U-Net after 200 iterations                  |
| spiral-ema        | spiral, 2-D       | noise    | DDPM's linear table | averaged from the initial weights on, .999  |
|                   |                   |          |                     |                                             |
| pinwheel-vp       | pinwheel, 2-D     | noise    | VP                  | t beside x, ReLU, narrow                    |
| waves-v           | waves of 32       | v        | cosine              | residual layers, 4 frequencies of time      |
| skew-edm          | skew, 3-D         | EDM's F  | EDM                 | residual layers of c_noise                  |
| moons-lookup      | two moons, 2-D    | noise    | DDPM's linear table | index looked up                             |
| gratings-flow     | gratings, 16x16   | flow     | noise to data       | U-Net after 400 iterations                  |
| digits-ve         | digits            | score    | VE                  | U-Net of log(sigma), divided by sigma       |
|                   |                   |          |                     |                                             |
| digits-x0         | digits            | data     | DDPM's linear table | U-Net, error of the data                    |
| gratings-x0       | gratings, 16x16   | data     | noise to data       | U-Net, error of the flow, logit-normal t    |
| tokens-x0         | digits            | data     | noise to data       | transformer, the same loss and times        |
| columns-x0        | 8 skew columns    | data     | cosine              | residual layers, error of the data          |

A network's error is that of the test beds (`benchmarks.beds`): against the flow of the very network, relative to the
standard deviation of the data; that of a typical sample is the median. "Best" is the least error of any deterministic
entry of today's registry, on three grids, with and without lower final orders.

Several of these networks take single noises far out of the data: normalised layers hardly tell how long a noise is, and
in few dimensions few noises of the training were long. One such sample of 16 outweighs all others. A U-Net without a
skip connection on the capped cosine table, which starts at a log-SNR of -20, takes all of them out, to 178 standard
deviations, and is not listed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import beds
from benchmarks.bed_networks import file_hash, filled, moons
from benchmarks.defaults import geometric, programs
from sgm_sde.nn._weights import store
from sgm_sde.nn.digits import digits_data
from sgm_sde.nn.unet import UNet, edm_preconditioning
from sgm_sde.training import EMA, LogNormal, Table, Times, denoising_score_matching

WEIGHTS = beds.CACHE / "unseen"
BUDGETS = (5, 8, 12, 20, 35, 50)
BATCH = 128


# ----------------------------------------------------------------------------------------------------------------- data


def digits(n: int, generator: torch.Generator) -> Tensor:
    """Scikit-learn's digits, (1, 8, 8)."""
    return digits_data("train")[0]


def shapes(n: int, generator: torch.Generator) -> Tensor:
    """A bright ellipse or rectangle of random place and size on dark ground, (1, 16, 16), with smooth edges."""
    axis = torch.linspace(-1, 1, 16)
    centre = 0.8 * torch.rand(n, 2, 1, 1, generator=generator) - 0.4
    radius = 0.2 + 0.4 * torch.rand(n, 2, 1, 1, generator=generator)
    rows = ((axis[:, None] - centre[:, 0]) / radius[:, 0]).abs().expand(n, 16, 16)
    columns = ((axis[None, :] - centre[:, 1]) / radius[:, 1]).abs().expand(n, 16, 16)
    round_ = torch.rand(n, 1, 1, generator=generator) < 0.5
    distance = torch.where(round_, torch.hypot(rows, columns), torch.maximum(rows, columns))
    return torch.tanh(6 * (1 - distance))[:, None]


def columns(n: int, generator: torch.Generator) -> Tensor:
    """Eight columns of a table, each of unit scale: dependent, skew, two of them of a few values."""
    z = torch.randn(n, 4, generator=generator) @ torch.randn(4, 8, generator=generator) / 2
    z += 0.3 * torch.randn(n, 8, generator=generator)
    skew = z[:, :3].exp().clamp(max=8)
    few = (2 * z[:, 3:5]).round().clamp(-2, 2) / 2 + 0.02 * torch.randn(n, 2, generator=generator)
    table = torch.cat([skew, few, z[:, 5:]], 1)
    return (table - table.mean(0)) / table.std(0)


def two_values(n: int, generator: torch.Generator) -> Tensor:
    """-1 of deviation .1 with probability .3, else 1 of deviation .3, (1,)."""
    low = torch.rand(n, 1, generator=generator) < 0.3
    z = torch.randn(n, 1, generator=generator)
    return torch.where(low, -1 + 0.1 * z, 1 + 0.3 * z)


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Eight of sixteen squares, centred, of deviation about 1."""
    corner = torch.randint(0, 4, (n, 2), generator=generator)
    corner[:, 1] = 2 * (corner[:, 1] // 2) + corner[:, 0] % 2
    return (corner + torch.rand(n, 2, generator=generator) - 2) / 1.15


def rings(n: int, generator: torch.Generator) -> Tensor:
    """Two circles of radii .6 and 1.6, of width .04."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    inner = torch.rand(n, generator=generator) < 0.4
    radius = torch.where(inner, 0.6, 1.6) + 0.04 * torch.randn(n, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def spiral(n: int, generator: torch.Generator) -> Tensor:
    """One and a half turns of a spiral, of width .03."""
    angle = 3 * math.pi * torch.rand(n, generator=generator).sqrt()
    points = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / 5
    return points + 0.03 * torch.randn(n, 2, generator=generator)


def pinwheel(n: int, generator: torch.Generator) -> Tensor:
    """Five bent arms, of unit scale."""
    arm = torch.randint(0, 5, (n,), generator=generator)
    along = 1 + 0.3 * torch.randn(n, generator=generator)
    across = 0.1 * torch.randn(n, generator=generator)
    angle = 2 * math.pi * arm / 5 + 0.4 * along.exp()
    return torch.stack([along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()], 1)


def waves(n: int, generator: torch.Generator) -> Tensor:
    """Two sines of random frequency, phase and height at 32 places."""
    place = torch.linspace(0, 2 * math.pi, 32)
    frequency = 1 + torch.randint(0, 4, (n, 2, 1), generator=generator)
    phase = 2 * math.pi * torch.rand(n, 2, 1, generator=generator)
    height = 0.3 + 0.7 * torch.rand(n, 2, 1, generator=generator)
    return (height * (frequency * place + phase).sin()).sum(1)


def skew(n: int, generator: torch.Generator) -> Tensor:
    """Three dependent columns with long tails on one side, of scale .5."""
    z = torch.randn(n, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    x = torch.expm1(0.6 * z).clamp(max=10)
    return 0.5 * (x - x.mean(0)) / x.std(0)


def gratings(n: int, generator: torch.Generator) -> Tensor:
    """Waves across an image in a random direction, (1, 16, 16), in [-1, 1]."""
    axis = torch.linspace(-1, 1, 16)
    angle = math.pi * torch.rand(n, 1, 1, generator=generator)
    frequency = 2 + 4 * torch.rand(n, 1, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(n, 1, 1, generator=generator)
    return (frequency * (angle.cos() * axis[:, None] + angle.sin() * axis) + phase).sin()[:, None]


# ------------------------------------------------------------------------------------------------------------- networks


class Tokens(nn.Module):
    """A transformer of 2x2 patches whose norms are scaled and shifted by the time's embedding, as DiT's are."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.cut = nn.Linear(4, width)
        self.place = nn.Parameter(0.02 * torch.randn(16, width))
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(self._block(width) for _ in range(depth))
        self.last = nn.Linear(width, 4)
        nn.init.zeros_(self.last.weight)
        self.register_buffer("frequencies", 2.0 ** torch.linspace(-2, 4, 16))

    @staticmethod
    def _block(width: int) -> nn.ModuleDict:
        block = nn.ModuleDict({
            "change": nn.Linear(width, 6 * width),
            "qkv": nn.Linear(width, 3 * width),
            "out": nn.Linear(width, width),
            "mlp": nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
        })  # fmt: skip
        nn.init.zeros_(block["change"].weight)  # type: ignore[arg-type]
        return block

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The output (B, 1, 8, 8) for images of that shape and c_noise (B,)."""
        angle = t[:, None] * self.frequencies
        emb = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.cut(F.pixel_unshuffle(x, 2).flatten(2).mT) + self.place
        for block in self.blocks:
            h = self._mixed(block, h, emb)  # type: ignore[arg-type]
        h = self.last(F.layer_norm(h, h.shape[-1:]))
        return F.pixel_shuffle(h.mT.unflatten(2, (4, 4)), 2)

    def _mixed(self, block: nn.ModuleDict, h: Tensor, emb: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = block["change"](emb)[:, None].chunk(6, 2)
        normed = F.layer_norm(h, h.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in block["qkv"](normed).chunk(3, 2))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate1 * block["out"](attended)
        normed = F.layer_norm(h, h.shape[-1:]) * (1 + scale2) + shift2
        return h + gate2 * block["mlp"](normed)


class Preconditioned(nn.Module):
    """EDM's preconditioning around a network."""

    def __init__(self, net: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.net, self.sigma_data = net, sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoised images at noise levels sigma (B,)."""
        c = edm_preconditioning(sigma.to(x), self.sigma_data)
        skip, out, scale = (value.reshape(-1, *[1] * (x.ndim - 1)) for value in (c.c_skip, c.c_out, c.c_in))
        return skip * x + out * self.net(scale * x, c.c_noise)


class Residual(nn.Module):
    """Residual layers on vectors, with a few sines and cosines of a number added to each."""

    def __init__(self, d: int, width: int = 96, depth: int = 3, frequencies: Sequence[float] = (0.5, 1, 2, 4)) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(d, width), nn.Linear(width, d)
        self.time = nn.Linear(2 * len(frequencies), width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.register_buffer("frequencies", torch.tensor(frequencies) * math.pi)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The output (B, d) for x (B, d) and a number (B,)."""
        angle = t.to(x)[:, None] * self.frequencies
        emb = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.first(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            h = h + outer(F.silu(inner(F.silu(h + emb))))
        return self.last(F.silu(h))  # type: ignore[no-any-return]


class Beside(nn.Module):
    """Plain layers on a vector with a number beside it."""

    def __init__(self, d: int, width: int = 128, depth: int = 3, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(d + 1, width), activation()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, d))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The output (B, d) for x (B, d) and a number (B,)."""
        return self.layers(torch.cat([x, t.to(x)[:, None]], 1))  # type: ignore[no-any-return]


class OverSigma(nn.Module):
    """The score on VE from a network of log(sigma): divided by sigma inside, as NCSN's are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score at noise levels sigma (B,)."""
        sigma = sigma.to(x)
        scaled = x / (1 + sigma[:, None] ** 2).sqrt()
        return self.net(scaled, sigma.log()) / sigma[:, None]  # type: ignore[no-any-return]


class OverSigmaOfImages(nn.Module):
    """The score of images on VE, from a U-Net of log(sigma), divided by sigma inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(1, (16, 32), blocks=1, attention=(), patch=1, embed=64)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score at noise levels sigma (B,)."""
        sigma = sigma.to(x)
        column = sigma.reshape(-1, 1, 1, 1)
        return self.net(x / (1 + column**2).sqrt(), sigma.log() / 4) / column  # type: ignore[no-any-return]


class LookedUp(nn.Module):
    """Plain layers on a vector, to which a row of a table of 1000 is added."""

    def __init__(self, d: int, width: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, width)
        self.first = nn.Linear(d, width)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, d))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The output (B, d) for x (B, d) and an index (B,)."""
        return self.layers(self.first(x) + self.table(t))  # type: ignore[no-any-return]


class TwoOutputs(nn.Module):
    """A U-Net of twice the channels: noise and what its variance is made from."""

    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(2, (16, 32), blocks=1, attention=(1,), embed=64, time="positional")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Both (B, 2, 16, 16), for x (B, 1, 16, 16)."""
        return self.net(torch.cat([x, x], 1), t)  # type: ignore[no-any-return]


class First(nn.Module):
    """The first half of a network's channels; the second is kept for the loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.second: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The first half."""
        first, self.second = self.net(x, t).chunk(2, 1)
        return first


# -------------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """How a network is made, and how many noises and reference steps it is measured with."""

    seed: int
    process: str
    data: Callable[[int, torch.Generator], Tensor]
    net: Callable[[], nn.Module]
    score: Callable[[nn.Module, Any], sg.Score]
    iterations: int
    weighting: Any = "simple"
    times: Times | None = None
    decay: float = 0.995
    from_start: bool = False
    rate: float = 1e-3
    n: int = 64
    steps: tuple[int, int] = (400, 400)


def _eps(**options: Any) -> Callable[[nn.Module, Any], sg.Score]:
    return lambda net, sde: sg.from_noise(net, sde, **options)


def _flow(net: nn.Module, sde: Any) -> sg.Score:
    return sg.adapters.from_flow_matching(net, from_noise=True)[0]


def _v(net: nn.Module, sde: Any) -> sg.Score:
    return sg.from_v(net, sde)


def _edm(net: nn.Module, sde: Any) -> sg.Score:
    return sg.adapters.from_edm(net, sde)[0]


def _ve(net: nn.Module, sde: Any) -> sg.Score:
    return sg.from_score(net, sde, time_label=sg.time_labels.noise_level(sde))


def _x0(net: nn.Module, sde: Any) -> sg.Score:
    return sg.from_denoiser(net, sde)


SIGMA_DATA = 0.5
INDEX = sg.time_labels.ddpm(1000)
LOOKED_UP = sg.time_labels.ddpm(1000, integer=True)
AT_MUCH_NOISE = LogNormal(mean=0.8, std=0.8)  # the logit of rectified flow's time, as JiT has it
RECIPES: dict[str, Recipe] = {
    "tokens-edm": Recipe(
        0, "edm", digits, lambda: Preconditioned(Tokens(), SIGMA_DATA), _edm, 2000,
        weighting=sg.training.EDM(SIGMA_DATA), times=LogNormal(), n=16, steps=(300, 0),
    ),
    "shapes-variance": Recipe(
        2, "ddpm", shapes, TwoOutputs, lambda net, sde: sg.from_noise(First(net), sde, time_label=INDEX), 1200,
        times=Table(), n=8, steps=(150, 350), rate=2e-3,
    ),
    "table-vp": Recipe(3, "vp", columns, lambda: Residual(8), _eps(), 4000),
    "two-values-ve": Recipe(
        4, "ve", two_values, lambda: OverSigma(Beside(1, 64, activation=nn.Tanh)), _ve, 4000,
        weighting="sigma^2", n=128,
    ),
    "checkerboard-flow": Recipe(5, "flow", checkerboard, lambda: Beside(2, 128), _flow, 6000, weighting="flow", n=128),
    "rings-x0": Recipe(6, "cosine", rings, lambda: Residual(2), _x0, 5000, weighting=sg.training.MinSNR(5.0), n=128),
    "digits-short": Recipe(
        7, "ddpm", digits, lambda: UNet(1, (24, 32), blocks=1, attention=(), patch=1, embed=64, time="positional"),
        _eps(time_label=INDEX), 200, times=Table(), decay=0.9, n=8, steps=(150, 350), rate=2e-3,
    ),
    "spiral-ema": Recipe(
        8, "ddpm", spiral, lambda: Residual(2, frequencies=(0.5, 1, 2, 4, 8, 16)), _eps(), 3000,
        times=Table(), decay=0.999, from_start=True, n=128,
    ),
    "pinwheel-vp": Recipe(11, "vp", pinwheel, lambda: Beside(2, 64), _eps(), 3000, n=128),
    "waves-v": Recipe(12, "cosine", waves, lambda: Residual(32), _v, 3000, weighting="v", n=32),
    "skew-edm": Recipe(
        13, "edm", skew, lambda: Preconditioned(Residual(3), SIGMA_DATA), _edm, 3000,
        weighting=sg.training.EDM(SIGMA_DATA), times=LogNormal(), n=128,
    ),
    "moons-lookup": Recipe(
        14, "ddpm", moons, lambda: LookedUp(2), _eps(time_label=LOOKED_UP), 4000, times=Table(), n=128, steps=(200, 0),
    ),
    "gratings-flow": Recipe(
        15, "flow", gratings, lambda: UNet(1, (16, 32), blocks=1, attention=(), embed=64), _flow, 400,
        weighting="flow", n=8, steps=(150, 250), rate=2e-3,
    ),
    "digits-ve": Recipe(
        16, "ve", digits, OverSigmaOfImages, _ve, 400, weighting="sigma^2", n=8, steps=(300, 0), rate=2e-3,
    ),
    "digits-x0": Recipe(
        21, "ddpm", digits, lambda: UNet(1, (16, 32), blocks=1, attention=(), patch=1, embed=64, time="positional"),
        lambda net, sde: sg.from_denoiser(net, sde, time_label=INDEX), 900,
        weighting="data", times=Table(), n=8, steps=(200, 200), rate=2e-3,
    ),
    "gratings-x0": Recipe(
        22, "flow", gratings, lambda: UNet(1, (16, 32), blocks=1, attention=(), embed=64), _x0, 400,
        weighting="flow", times=AT_MUCH_NOISE, n=8, steps=(200, 200), rate=2e-3,
    ),
    "tokens-x0": Recipe(
        23, "flow", digits, lambda: Tokens(96), _x0, 1200,
        weighting="flow", times=AT_MUCH_NOISE, n=16, steps=(200, 200), rate=2e-3,
    ),
    "columns-x0": Recipe(24, "cosine", columns, lambda: Residual(8, 128), _x0, 4000, weighting="data"),
}  # fmt: skip
FIRST, SECOND, THIRD = 8, 14, 16  # the first chose the default, and those between the last two that of bare networks


def _file(name: str) -> Any:
    return WEIGHTS / f"{name}.safetensors"


def train(name: str) -> None:
    """Train a network and store its averaged weights."""
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)  # initial weights; everything else draws from the generator
    generator = torch.Generator().manual_seed(recipe.seed)
    net = recipe.net()
    model = recipe.score(net, beds.PROCESSES[recipe.process]())
    data = recipe.data(20000, generator)
    optimiser = torch.optim.Adam(net.parameters(), lr=recipe.rate)
    ema = EMA(net, recipe.decay)
    average = {key: value.detach().clone() for key, value in net.state_dict().items()}
    started = time.process_time()
    for _ in (bar := tqdm(range(recipe.iterations), desc=name, mininterval=5)):
        x = data[torch.randint(len(data), (BATCH,), generator=generator)]
        losses = denoising_score_matching(model, x, generator=generator, weighting=recipe.weighting, times=recipe.times)
        value = losses.mean()
        optimiser.zero_grad()
        (value + _of_variance(model, losses)).backward()
        optimiser.step()
        ema.update(net)
        if recipe.from_start:  # without the correction that forgets the initial weights
            with torch.no_grad():
                for key, moving in net.state_dict().items():
                    average[key].lerp_(moving, 1 - recipe.decay)
        bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
    if recipe.from_start:
        net.load_state_dict(average)
    else:
        ema.copy_to(net)
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    store(net, _file(name))
    sys.stdout.write(f"{name}: loss {value.item():.3f}, {time.process_time() - started:.0f} CPU s\n")


def _of_variance(model: sg.Score, losses: Tensor) -> Tensor | float:
    """What a second half of the channels adds to the loss: it is fitted to the logarithm of the error, lightly."""
    net = model.net
    if not isinstance(net, First):
        return 0.0
    assert net.second is not None
    return 0.01 * (net.second.flatten(1).mean(1) - losses.detach().log()).square().mean()


def bed(name: str) -> beds.Bed:
    """The network as a test bed that is in no half."""
    recipe = RECIPES[name]
    if not _file(name).exists():
        train(name)
    net = filled(recipe.net(), _file(name))
    sde = beds.PROCESSES[recipe.process]()
    data = recipe.data(20000, torch.Generator().manual_seed(recipe.seed))
    weights = file_hash(_file(name))
    return beds.Bed(
        beds.Recipe("unseen", "network", recipe.process, name), sde, recipe.score(net, sde),
        (recipe.n, *data.shape[1:]), beds.spread(data), torch.float32, steps=recipe.steps, weights=weights,
        jumps=beds.table_jumps(sde) if isinstance(net, LookedUp) else (),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Cell:
    """Errors at a budget, none below what the reference is known to."""

    default: float
    median: float
    best: float
    best_median: float
    by: str
    ddim: float


def measure(bed: beds.Bed) -> dict[int, Cell]:
    """The default, the best of the registry and DDIM by budget."""
    found = {}
    for nfe in BUDGETS:
        tried = programs(bed.sde, nfe)
        errors = beds.errors_of(bed, list(tried))
        each = dict(zip(map(str, tried.values()), errors, strict=True))
        by = min(each, key=lambda name: each[name].rmse)
        ours = beds.errors(bed, None, nfe)
        ddim = beds.error(bed, "ddim", nfe, "log-snr")
        best_median = min(e.median for e in errors)
        least = bed.reference.doubt
        found[nfe] = Cell(
            max(ours.rmse, least), max(ours.median, least), max(each[by].rmse, least), max(best_median, least), by,
            max(ddim, least),
        )  # fmt: skip
    return found


def tables(found: dict[str, dict[int, Cell]]) -> list[str]:
    """Default / best by network, and the ratios to best and DDIM and the growth by budget."""
    header = f"| {' | '.join(map(str, BUDGETS))} |"
    rule = "|---|" + "---:|" * len(BUDGETS)
    lines = ["## default / best of the registry", "", f"| network {header}", rule]
    for name, cells in found.items():
        lines.append(f"| {name} | {' | '.join(f'{c.default:.3g} / {c.best:.3g}' for c in cells.values())} |")
    lines += ["", "## medians over samples: default / least of the registry", "", f"| network {header}", rule]
    for name, cells in found.items():
        lines.append(f"| {name} | {' | '.join(f'{c.median:.3g} / {c.best_median:.3g}' for c in cells.values())} |")
    lines += ["", "## by budget", "", f"| {header}", rule]

    def row(title: str, value: Callable[[Sequence[float]], float], of: Callable[[Cell], float]) -> None:
        figures = (value([of(cells[nfe]) for cells in found.values()]) for nfe in BUDGETS)
        lines.append(f"| {title} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")

    row("default / best, geometric mean", geometric, lambda c: c.default / c.best)
    row("default / best, worst", max, lambda c: c.default / c.best)
    row("medians, geometric mean", geometric, lambda c: c.median / c.best_median)
    row("medians, worst", max, lambda c: c.median / c.best_median)
    row("default / DDIM, geometric mean", geometric, lambda c: c.default / c.ddim)
    row("default / DDIM, worst", max, lambda c: c.default / c.ddim)
    growths = []
    for nfe in BUDGETS:
        least = {name: min((c.default for n, c in cells.items() if n < nfe), default=math.inf)
                 for name, cells in found.items()}  # fmt: skip
        growths.append(max(cells[nfe].default / least[name] for name, cells in found.items()))
    lines.append(f"| default / the default of fewer calls, worst | {' | '.join(f'{g:.2f}' for g in growths)} |")
    lines += ["", "## where the default is above 1.5 of the best, or 1.1 of DDIM", ""]
    lines += ["| network | calls | default | best | by | DDIM |", "|---|---:|---:|---:|---|---:|"]
    for name, cells in found.items():
        for nfe, c in cells.items():
            if c.default > 1.5 * c.best or c.default > 1.1 * c.ddim:
                lines.append(f"| {name} | {nfe} | {c.default:.3g} | {c.best:.3g} | {c.by} | {c.ddim:.3g} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["report", "train"], nargs="?", default="report")
    parser.add_argument("names", nargs="*", metavar="network", help="networks; all if not given")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = args.names or list(RECIPES)
    if args.what == "train":
        for name in names:
            train(name)
        return
    found = {}
    for name in (bar := tqdm(names)):
        bar.set_description(name)
        here = bed(name)
        sys.stderr.write(f"{name}: reference known to {here.reference.doubt:.2g}\n")
        found[name] = measure(here)
    groups = {
        "that chose the default": names[:FIRST],
        "that chose nothing": names[FIRST:SECOND],
        "without a skip connection, whose recipes chose": names[SECOND:THIRD],
        "without a skip connection, that chose nothing": names[THIRD:],
    }
    for title, of in groups.items():
        if args.names or not of:
            continue
        sys.stdout.write("\n".join([f"# Networks {title}", "", *tables({name: found[name] for name in of})]) + "\n\n")
    if args.names:
        sys.stdout.write("\n".join(tables(found)) + "\n")


if __name__ == "__main__":
    main()
