"""Train the class-conditional U-Net and the classifier that ship in sgm_sde/zoo/assets, or on images of your own.

    python -m benchmarks.train_images denoiser   --out out/fashion [--data FOLDER_OR_NPZ] [--resume]
    python -m benchmarks.train_images classifier --out out/fashion
    python -m benchmarks.train_images statistics --out out/fashion

The default data is Fashion-MNIST where Debian puts it (apt install dataset-fashion-mnist). The denoiser is trained with
EDM's loss (Karras et al. 2022, arXiv:2206.00364), the classifier with cross-entropy; `statistics` stores mean and
covariance of the classifier's features of the train and the test set. A checkpoint is written every few minutes;
`--resume` goes on from it, to the bit. With more --steps it goes on longer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import sgm_sde as sg
from sgm_sde.nn._weights import store
from sgm_sde.nn.fashion import FashionClassifier, fashion_unet
from sgm_sde.nn.unet import EDMPreconditioned
from sgm_sde.training import EDM, EMA, Images, LogNormal, denoising_score_matching, load_images

DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")
TIMES = LogNormal(mean=-1.0, std=1.4)  # wider than EDM's: at small noise likelihoods are decided
LABEL_DROPOUT = 0.1
STEPS = {"denoiser": 8800, "classifier": 3000}
BATCH = {"denoiser": 64, "classifier": 128}

Loss = Callable[[nn.Module, Tensor, Tensor | None, torch.Generator], Tensor]


class Training:
    """The state of a run: everything that a checkpoint holds."""

    def __init__(self, net: nn.Module, lr: float, warmup: int, decay: float, ema_decay: float, seed: int) -> None:
        self.net, self.lr, self.warmup, self.decay = net, lr, warmup, decay
        self.step, self.ema = 0, EMA(net, ema_decay)
        self.optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))
        self.generator = torch.Generator().manual_seed(seed)

    def learning_rate(self, steps: int) -> float:
        """Linear warm-up, a constant, and a linear fall to zero over the last share `decay` of the steps."""
        return self.lr * min(1.0, (self.step + 1) / self.warmup, (steps - self.step) / (self.decay * steps))

    def advance(self, images: Tensor, labels: Tensor | None, batch: int, steps: int, loss: Loss) -> float:
        """One optimiser step; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(steps)
        index = torch.randint(len(images), (batch,), generator=self.generator)
        value = loss(self.net, images[index], None if labels is None else labels[index], self.generator)
        self.optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.ema.update(self.net)
        self.step += 1
        return value.item()

    def save(self, path: Path) -> None:
        """Write the state; a run that dies here leaves the last checkpoint whole."""
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
        tensors["generator"] = self.generator.get_state()
        partial = path.with_suffix(".partial")
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        safetensors.torch.save_file(contiguous, partial, {"step": str(self.step)})
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        with safetensors.safe_open(path, "pt") as file:
            self.step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.generator.set_state(tensors.pop("generator"))
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "adam": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.net.load_state_dict(parts["net"])
        self.ema.load_state_dict(parts["ema"])
        adam = self.optimiser.state_dict()
        for name, value in parts["adam"].items():
            i, _, key = name.partition(".")
            adam["state"].setdefault(int(i), {})[key] = value
        self.optimiser.load_state_dict(adam)


def denoiser_and_loss(images: Images) -> tuple[nn.Module, Loss]:
    """An untrained denoiser of such images, and EDM's loss with dropped labels."""
    classes = None if images.labels is None else int(images.labels.max()) + 1
    sigma_data = round(images.scaled().std().item(), 4)
    net = EDMPreconditioned(fashion_unet(classes, images.pixels.shape[1]), sigma_data)
    score = sg.from_denoiser(net, sg.EDMSDE())

    def loss(_: nn.Module, x: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        options = {"weighting": EDM(sigma_data), "times": TIMES, "generator": generator}
        if y is not None:
            null = torch.rand(len(x), generator=generator) < LABEL_DROPOUT
            options["model_kwargs"] = {"y": torch.where(null, classes, y)}
        return denoising_score_matching(score, x, **options).mean()

    return net.to(memory_format=torch.channels_last), loss


def classifier_and_loss(images: Images) -> tuple[nn.Module, Loss]:
    """An untrained classifier, and cross-entropy on slightly noisy images."""
    if images.labels is None or images.pixels.shape[1:] != (1, 28, 28):
        raise SystemExit(f"the classifier needs labelled 28x28 grey images, got {tuple(images.pixels.shape)}")

    def loss(net: nn.Module, x: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        return F.cross_entropy(net(x), y, label_smoothing=0.05)

    return FashionClassifier().to(memory_format=torch.channels_last), loss


def train(options: argparse.Namespace) -> None:
    """Train one network and write its averaged weights."""
    images = load_images(options.data)
    torch.manual_seed(options.seed)  # initial weights; everything else draws from the run's generator
    net, loss = {"denoiser": denoiser_and_loss, "classifier": classifier_and_loss}[options.what](images)
    run = Training(net, options.lr, options.warmup, options.decay, options.ema, options.seed)
    checkpoint = options.out / f"{options.what}.checkpoint.safetensors"
    if options.resume and checkpoint.exists():
        run.load(checkpoint)
    x, steps, mean, saved = images.scaled(), options.steps, None, time.monotonic()
    with tqdm(total=steps, initial=run.step, desc=options.what, mininterval=5) as bar:
        while run.step < steps:
            value = run.advance(x, images.labels, options.batch, steps, loss)
            mean = value if mean is None else mean + 0.01 * (value - mean)
            bar.update()
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if time.monotonic() - saved > 60 * options.minutes or run.step == steps:
                run.save(checkpoint)
                saved = time.monotonic()
    run.ema.copy_to(net)
    store(net, options.out / f"{options.name}_{options.what}.safetensors")


@torch.no_grad()
def statistics(options: argparse.Namespace) -> None:
    """Write mean, covariance and number of the classifier's features of the train and the test set."""
    net = FashionClassifier()
    weights = options.out / f"{options.name}_classifier.safetensors"
    net.load_state_dict({name: value.float() for name, value in safetensors.torch.load_file(weights).items()})
    tensors = {}
    for split in ("train", "test"):
        images = load_images(options.data, split)
        x = torch.cat([net.features(chunk) for chunk in images.scaled().split(1000)]).double()
        accuracy = (net.head(x.float()).argmax(1) == images.labels).float().mean()
        tensors |= {f"{split}.mean": x.mean(0), f"{split}.cov": x.T.cov(), f"{split}.n": torch.tensor(len(x))}
        print(f"{split}: {len(x)} images, classifier accuracy {accuracy:.4f}")
    safetensors.torch.save_file(tensors, options.out / f"{options.name}_statistics.safetensors")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["denoiser", "classifier", "statistics"])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="idx folder, npz file or folder of pictures")
    parser.add_argument("--out", type=Path, default=Path("out/fashion"), help="folder for checkpoints and weights")
    parser.add_argument("--name", default="fashion", help="first word of the weights' file names")
    parser.add_argument("--steps", type=int, help=f"optimiser steps; default {STEPS}")
    parser.add_argument("--batch", type=int, help=f"images a step; default {BATCH}")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--decay", type=float, default=0.4, help="share of the steps over which the rate falls to 0")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=3.0, help="between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "statistics":
        statistics(options)
        return
    options.steps = STEPS[options.what] if options.steps is None else options.steps
    options.batch = BATCH[options.what] if options.batch is None else options.batch
    train(options)


if __name__ == "__main__":
    main()
