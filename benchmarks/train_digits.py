"""Train the digits denoiser and classifier whose weights ship in sgm_sde/zoo/assets.

    python -m benchmarks.train_digits --seed 0 --out sgm_sde/zoo/assets

Denoising score matching with the EDM loss (Karras et al. 2022, arXiv:2206.00364) for the denoiser,
cross-entropy for the classifier; together about eight minutes of CPU time on one core. With --cld, hybrid score
matching for the network on critically damped Langevin diffusion (Dockhorn et al. 2022, arXiv:2112.07068).
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command
from sgm_sde.nn import DigitsClassifier, DigitsDenoiser, DigitsVelocity, digits_data
from sgm_sde.nn._weights import store
from sgm_sde.training import EDM, denoising_score_matching

P_MEAN, P_STD = -0.4, 1.5  # ln(sigma) ~ N(P_MEAN, P_STD^2), centred where the digit takes shape
LABEL_DROPOUT = 0.1
AUGMENTED = 0.3  # share of the images that are moved: enough to delay memorising, too few to blur the samples
SIGMA_BINS = (0.002, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 80.0)


def augment(images: Tensor, generator: torch.Generator, shift: float, degrees: float, zoom: float) -> Tensor:
    """Shift (pixels), rotate (degrees) and zoom (relative) each image by independent uniform amounts."""

    def uniform(limit: float) -> Tensor:
        return limit * (2 * torch.rand(len(images), generator=generator) - 1)

    angle, scale = uniform(math.radians(degrees)), 1 + uniform(zoom)
    dx, dy = uniform(shift / 4), uniform(shift / 4)  # a pixel is 1/4 of grid_sample's [-1, 1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, dx, sin, cos, dy], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # The background is -1 and grid_sample pads with 0; bicubic, because bilinear blurs 8x8 images visibly.
    moved = F.grid_sample(images + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False) - 1
    return moved.clamp(-1, 1)


def denoising_loss(net: nn.Module, sigma_data: Tensor, x: Tensor, y: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return the batch mean of EDM's loss, (sigma^2 + s^2) / (sigma s)^2 |D(x + sigma noise, sigma, y) - x|^2 / d."""
    score = sg.from_denoiser(net, sg.EDMSDE())
    weighting = EDM(float(sigma_data))
    options = {"weighting": weighting, "model_kwargs": {"y": y}}
    return denoising_score_matching(score, x, t=sigma, noise=noise, **options).mean()


@torch.no_grad()
def loss_by_sigma(net: nn.Module, x: Tensor, y: Tensor, repeats: int) -> list[float]:
    """Return the denoising loss in each of SIGMA_BINS, with the same noise at every call."""
    generator = torch.Generator().manual_seed(1)
    x, y = x.repeat(repeats, 1, 1, 1), y.repeat(repeats)
    losses = []
    for low, high in pairwise(SIGMA_BINS):
        sigma = low * (high / low) ** torch.rand(len(x), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        losses.append(denoising_loss(net, net.sigma_data, x, y, sigma, noise).item())
    return losses


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def train(
    net: nn.Module, loss: Loss, steps: int, batch: int, generator: torch.Generator, report: Callable[[nn.Module], str]
) -> nn.Module:
    """Return the exponential moving average of the weights of `net` trained on `loss(net, images, labels)`."""
    images, labels = digits_data("train")
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999)).eval()
    optimiser = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=6e-3, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    for step in (bar := tqdm(range(1, steps + 1), desc=type(net).__name__)):
        index = torch.randint(len(images), (batch,), generator=generator)
        moved = torch.rand(len(index), generator=generator) < AUGMENTED
        x = images[index]
        x[moved] = augment(x[moved], generator, shift=0.4, degrees=6, zoom=0.06)
        null = torch.rand(len(index), generator=generator) < LABEL_DROPOUT
        y = torch.where(null, DigitsDenoiser.NULL_LABEL, labels[index])
        value = loss(net, x, y)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(net)
        if step % max(1, steps // 10) == 0:
            bar.write(f"step {step:6d}  {report(average.module)}")
    return average.module


def train_denoiser(steps: int, generator: torch.Generator) -> DigitsDenoiser:
    """Return the exponential moving average of the trained denoiser's weights."""
    held_out = digits_data("held_out")
    net = DigitsDenoiser(sigma_data=digits_data("train")[0].std().item(), dropout=0.05)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        sigma = (P_MEAN + P_STD * torch.randn(len(x), generator=generator)).exp()
        return denoising_loss(net, net.sigma_data, x, y, sigma, torch.randn(x.shape, generator=generator))

    def report(net: nn.Module) -> str:
        held = loss_by_sigma(net, *held_out, repeats=20)
        return "held-out loss by sigma " + " ".join(f"{v:.4f}" for v in held)

    return train(net, loss, steps, 512, generator, report)


def velocity_loss(net: DigitsVelocity, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return the batch mean of the hybrid score matching loss / c^2, with the mixed parametrisation."""
    score = sg.scores.from_velocity_noise(net, net.sde, mixed=float(net.sigma_data))
    loss = sg.processes.hybrid_score_matching(lambda z, t: score.output(z, t, y=y)[:, 1], net.sde, x, t, noise)
    return (loss / net.scales(t)[1].to(loss.dtype) ** 2).mean()


def train_velocity(steps: int, generator: torch.Generator) -> DigitsVelocity:
    """Return the exponential moving average of the weights of the network on CLD."""
    images, labels = digits_data("held_out")
    net = DigitsVelocity(sigma_data=digits_data("train")[0].std().item(), dropout=0.05)
    # Noise levels as the denoiser's: times at evenly spread quantiles of ln(s) ~ N(P_MEAN, P_STD^2).
    u = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    ends = [float(net.sde.log_snr(t)) for t in (net.sde.T, 1e-5)]
    times = net.sde.time((-2 * (P_MEAN + P_STD * torch.special.ndtri(u))).clamp(*ends)).float()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        t = times[torch.randint(len(times), (len(x),), generator=generator)]
        return velocity_loss(net, x, y, t, torch.randn(x[:, None].repeat(1, 2, 1, 1, 1).shape, generator=generator))

    @torch.no_grad()
    def report(net: nn.Module) -> str:
        fixed = torch.Generator().manual_seed(1)
        noise = torch.randn((len(images), 2, *images.shape[1:]), generator=fixed)
        levels = times[256::512]
        losses = [velocity_loss(net, images, labels, t.expand(len(images)), noise).item() for t in levels]
        return "held-out loss from early to late times " + " ".join(f"{v:.4f}" for v in losses)

    return train(net, loss, steps, 256, generator, report)


def train_classifier(steps: int, generator: torch.Generator) -> DigitsClassifier:
    """Return a classifier trained on moved and slightly noisy digits."""
    images, labels = digits_data("train")
    net = DigitsClassifier(dropout=0.3)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps, cycle_momentum=False)
    for _ in tqdm(range(steps), desc="classifier"):
        index = torch.randint(len(images), (256,), generator=generator)
        x = augment(images[index], generator, shift=0.75, degrees=10, zoom=0.1)
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        loss = F.cross_entropy(net(x), labels[index], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def main() -> None:
    parser = command.parser(__doc__, out="out/digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12000, help="denoiser steps; the classifier takes 1/8 of them")
    parser.add_argument("--cld", action="store_true", help="the network on CLD instead: 256 images a step")
    options = command.begin(parser)

    torch.manual_seed(options.seed)  # initial weights and dropout; everything else draws from `generator`
    generator = torch.Generator().manual_seed(options.seed)
    if options.cld:
        store(train_velocity(options.steps // 2, generator), options.out / "digits_velocity.safetensors")
        return
    classifier = train_classifier(options.steps // 8, generator)
    denoiser = train_denoiser(options.steps, generator)
    store(classifier, options.out / "digits_classifier.safetensors")
    store(denoiser, options.out / "digits_denoiser.safetensors")

    print("loss by sigma   " + " ".join(f"{a:g}-{b:g}" for a, b in pairwise(SIGMA_BINS)))
    for split in ("train", "held_out"):
        images, labels = digits_data(split)
        losses = loss_by_sigma(denoiser, images, labels, repeats=20)
        with torch.no_grad():
            accuracy = (classifier(images).argmax(1) == labels).float().mean().item()
        bins = " ".join(f"{v:.4f}" for v in losses)
        print(f"{split:9s} mean {sum(losses) / len(losses):.4f}  bins {bins}  classifier accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
