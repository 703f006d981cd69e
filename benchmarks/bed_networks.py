"""The networks of the test beds, as people train them, and their training.

    python -m benchmarks.bed_networks                # train all and store their weights in benchmarks/beds/weights
    python -m benchmarks.bed_networks moons-vp-0     # or some

Ordinary recipes, and too few iterations: U-Nets on scikit-learn's digits with class labels that are dropped for a tenth
of the images, multilayer perceptrons on two moons. Each is trained twice, 0 and 1, with other widths, seeds and numbers
of iterations. Together about five minutes of CPU time on one core, the same to the bit on the same machine.

| network       | predicts | process               | time goes in as                                |
|---------------|----------|-----------------------|------------------------------------------------|
| digits-linear | noise    | DDPM's linear table   | sines and cosines of the index                 |
| digits-capped | noise    | cosine, betas <= .999 | the same                                       |
| digits-lookup | noise    | DDPM's linear table   | `nn.Embedding` of the index                    |
| digits-v      | v        | cosine                | sines and cosines of 1000 t                    |
| digits-flow   | flow     | noise to data         | sines and cosines of 1000 t                    |
| moons-vp      | noise    | VP                    | t, beside x                                    |
| moons-ve      | noise    | VE                    | log(sigma) / 4, beside x / sqrt(1 + sigma^2)   |
| moons-flow    | flow     | noise to data         | t, beside x                                    |

The flows are torchcfm's: t runs from noise to data, and the network predicts data minus noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command
from sgm_sde.nn._weights import store
from sgm_sde.nn.digits import digits_data
from sgm_sde.nn.unet import UNet
from sgm_sde.training import EMA, Table, denoising_score_matching

WEIGHTS = Path(__file__).parent / "beds" / "weights"
LABEL_DROPOUT = 0.1
CLASSES = 10


class DigitsUNet(UNet):
    """A small U-Net for 8x8 digits that takes an index of a thousand.

    Args:
        second: whether this is the second training's, wider on 2x2 patches.
        table: whether the index is looked up in an `nn.Embedding`, rather than seen through sines and cosines.
        skip: whether the input is added to the output. Normalised layers forget how long x is, which varies by 9 % on
            64 pixels and by 1 % on photographs: from a log-SNR of -20 on, the flow of one that forgets diverges.
    """

    def __init__(self, second: bool = False, table: bool = False, skip: bool = False) -> None:
        shape: dict[str, Any] = {"channels": (24, 32), "patch": 2} if second else {"channels": (16, 32), "patch": 1}
        super().__init__(1, blocks=1, attention=(), classes=CLASSES, embed=32, groups=8, **shape)
        # DDPM's frequencies, for sines and cosines of the index itself.
        self.frequencies = 10000 ** -torch.linspace(0, 1, len(self.frequencies)) / (2 * math.pi)
        self.table, self.skip = nn.Embedding(1000, 32) if table else None, skip

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The output (B, 1, 8, 8) for images x (B, 1, 8, 8), times t (B,) and labels y (B,)."""
        out = super().forward(x, t, y)
        return x + out if self.skip else out

    def _embedding(self, t: Tensor, y: Tensor | None) -> Tensor:
        if self.table is None:  # the angle in single precision also where the weights are in half
            angle = 2 * math.pi * t.float()[:, None] * self.frequencies
            feature = self.time(torch.cat([angle.sin(), angle.cos()], 1).to(self.mix.weight.dtype))
        else:
            feature = self.table(t)
        assert self.label is not None
        label = self.label.weight[self.NULL_LABEL] if y is None else self.label(y)
        return F.silu(self.mix(F.silu(feature + label)))


class MLP(nn.Module):
    """Three hidden layers on the state with one more number beside it."""

    def __init__(self, second: bool = False) -> None:
        super().__init__()
        width = 128 if second else 96
        layers: list[nn.Module] = [nn.Linear(3, width), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The output (B, 2) for x (B, 2) and a number (B,)."""
        return self.layers(torch.cat([x, t.to(x)[:, None]], 1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Recipe:
    """How a network is made: on what data, on which process, as what."""

    data: str
    score: Callable[[nn.Module], sg.Score]
    iterations: tuple[int, int]
    table: bool = False
    skip: bool = False
    loss: str = "simple"


def _noise(sde: Any, **options: Any) -> Callable[[nn.Module], sg.Score]:
    return lambda net: sg.from_noise(net, sde, **options)


def _flow(net: nn.Module, scale: float = 1.0) -> sg.Score:
    return sg.adapters.from_flow_matching(net, from_noise=True, scale=scale)[0]


def _ve(net: nn.Module) -> sg.Score:
    sde = sg.VESDE()
    scale: Callable[[Tensor], Tensor] = lambda t: (1 + sde.sigma(t) ** 2).rsqrt()  # noqa: E731
    return sg.from_noise(net, sde, time_label=sg.time_labels.edm_c_noise(sde), input_scale=scale)


_INDEX = sg.time_labels.ddpm(1000)
NETWORKS: dict[str, Recipe] = {
    "digits-linear": Recipe("digits", _noise(sg.presets.ddpm(), time_label=_INDEX), (1000, 1500)),
    "digits-capped": Recipe("digits", _noise(sg.presets.iddpm_cosine(), time_label=_INDEX), (1000, 1500), skip=True),
    "digits-lookup": Recipe(
        "digits",
        _noise(sg.presets.ddpm(), time_label=sg.time_labels.ddpm(1000, integer=True)),
        (1200, 2500),
        table=True,
    ),
    "digits-v": Recipe(
        "digits",
        lambda net: sg.from_v(net, sg.presets.cosine(), time_label=lambda t: 1000 * t),
        (1000, 1500),
        loss="v",
    ),
    "digits-flow": Recipe("digits", lambda net: _flow(net, 1000.0), (1000, 1500), loss="flow"),
    "moons-vp": Recipe("moons", _noise(sg.VPSDE()), (3000, 6000)),
    "moons-ve": Recipe("moons", _ve, (3000, 6000)),
    "moons-flow": Recipe("moons", _flow, (3000, 6000), loss="flow"),
}


def names() -> list[str]:
    """All networks of `NETWORKS`, twice."""
    return [f"{name}-{k}" for name in NETWORKS for k in (0, 1)]


def untrained(name: str) -> nn.Module:
    """The network before training, by name with its number."""
    kind, k = name.rsplit("-", 1)
    recipe, second = NETWORKS[kind], k == "1"
    return DigitsUNet(second, recipe.table, recipe.skip) if recipe.data == "digits" else MLP(second)


def trained(name: str) -> nn.Module:
    """The network with its weights, frozen."""
    with torch.device("meta"):
        net = untrained(name)
    return filled(net, WEIGHTS / f"{name}.safetensors")


def filled(net: nn.Module, weights: Path) -> nn.Module:
    """The network with the weights of a file, in single precision and frozen."""
    stored = safetensors.torch.load_file(weights)
    net.load_state_dict({key: value.float() for key, value in stored.items()}, assign=True)
    return net.eval().requires_grad_(False)


def in_bfloat16(net: nn.Module) -> nn.Module:
    """The network with parameters in bfloat16 and buffers as they are."""
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16()
    return net


def score(name: str, net: nn.Module) -> sg.Score:
    """The network as a score on its process."""
    return NETWORKS[name.rsplit("-", 1)[0]].score(net)


def data_std(name: str) -> float:
    """Standard deviation of the network's data around their mean."""
    std: float = _index()[name]["data_std"]
    return std


def weights_hash(name: str) -> str:
    """The first digits of the SHA-256 of the weights' file."""
    return file_hash(WEIGHTS / f"{name}.safetensors")


def file_hash(weights: Path) -> str:
    """The first digits of the SHA-256 of a file."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def exists(name: str) -> bool:
    """True if the weights are there."""
    return (WEIGHTS / f"{name}.safetensors").exists() and name in _index()


def _index() -> dict[str, Any]:
    file = WEIGHTS / "index.json"
    return json.loads(file.read_text()) if file.exists() else {}


def moons(n: int, generator: torch.Generator) -> Tensor:
    """Two moons with noise of 0.05, centred, of standard deviation about 1."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x - 0.5, y - 0.25], 1) + 0.05 * torch.randn(n, 2, generator=generator)
    return points / 0.7


def train(name: str) -> None:
    """Train a network and store its averaged weights."""
    kind, k = name.rsplit("-", 1)
    recipe = NETWORKS[kind]
    steps = recipe.iterations[int(k)]
    torch.manual_seed(int(k))  # initial weights; everything else draws from the generator
    net = untrained(name)
    model, generator = recipe.score(net), torch.Generator().manual_seed(int(k))
    digits = recipe.data == "digits"
    images, labels = digits_data("train") if digits else (moons(20000, generator), None)
    batch, ema = 128, EMA(net, 0.995)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3 if digits else 1e-3)
    started = time.process_time()
    for _ in (bar := tqdm(range(steps), desc=name, mininterval=5)):
        index = torch.randint(len(images), (batch,), generator=generator)
        x, kwargs = images[index], {}
        if labels is not None:
            null = torch.rand(batch, generator=generator) < LABEL_DROPOUT
            kwargs["y"] = torch.where(null, CLASSES, labels[index])
        if recipe.loss == "flow":  # as torchcfm has it
            t, x0 = torch.rand(batch, generator=generator), torch.randn(x.shape, generator=generator)
            column = t.reshape(-1, *[1] * (x.ndim - 1))
            scale = 1000.0 if digits else 1.0
            value = (net(column * x + (1 - column) * x0, scale * t, **kwargs) - (x - x0)).square().mean()
        else:
            times = Table() if hasattr(model.sde, "times") else None
            losses = denoising_score_matching(
                model, x, generator=generator, weighting=recipe.loss, times=times, model_kwargs=kwargs
            )
            value = losses.mean()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        ema.update(net)
        bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
    ema.copy_to(net)
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    store(net, WEIGHTS / f"{name}.safetensors")
    std = float((images - images.mean(0)).square().mean().sqrt())
    seconds = round(time.process_time() - started, 1)
    index_ = _index() | {name: {"data_std": std, "iterations": steps, "cpu_seconds": seconds}}
    (WEIGHTS / "index.json").write_text(json.dumps(dict(sorted(index_.items())), indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Train the named networks, or all."""
    parser = command.parser(__doc__)
    parser.add_argument("names", nargs="*", help="networks; all if not given")
    args = command.begin(parser, argv)
    for name in args.names or names():
        train(name)
    sys.stdout.write(f"written to {WEIGHTS}\n")


if __name__ == "__main__":
    main()
