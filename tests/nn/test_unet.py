"""The U-Net and EDM's preconditioning: shapes, conditioning, derivatives, and errors in the user's words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.likelihood import Exact, FixedGrid
from sgm_sde.nn.unet import EDMPreconditioned, UNet, edm_preconditioning
from tests.conventions import case_id


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unet(seed: int = 0, **options: object) -> UNet:
    """A small network with every weight random: zeros at initialisation would hide what they multiply."""
    settings = {"channels": (8, 16), "blocks": 1, "classes": 3, "embed": 16, "groups": 4, "heads": 2, **options}
    net = UNet(**settings).eval().requires_grad_(False)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.normal_(0, 0.3, generator=generator)
    return net


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 1, 8, 8)),
        ({"in_channels": 3, "patch": 1, "attention": ()}, (2, 3, 6, 10)),
        ({"channels": (8, 16, 8), "blocks": 2, "attention": (0, 2)}, (2, 1, 16, 8)),
        ({"channels": (8,), "patch": 4, "attention": (0,)}, (2, 1, 12, 12)),
        ({"time": "fourier", "rescale": True}, (2, 1, 8, 8)),
        ({"in_channels": 3, "time": "positional", "middle": "attention", "attention": ()}, (2, 3, 8, 8)),
    ],
)
def test_shapes(options: dict[str, object], shape: tuple[int, ...]) -> None:
    """Any number of levels, blocks and channels; any sides that the reduction divides; finite values that vary."""
    out = unet(**options)(noise(*shape), torch.tensor([0.1, -0.7]), torch.tensor([0, 3]))
    assert out.shape == shape
    assert out.isfinite().all()
    assert out.std() > 1e-3


def test_what_the_output_depends_on() -> None:
    """Every pixel, the time and the label; no batch-mate; no label means the label `classes`."""
    net, x, t, y = unet(), noise(4, 1, 8, 8), torch.tensor([0.0, 0.3, 0.3, 0.6]), torch.tensor([0, 1, 2, 3])
    out = net(x, t, y)
    assert torch.allclose(net(x[2:3], t[2:3], y[2:3]), out[2:3], atol=1e-5)
    assert torch.allclose(net(x, t), net(x, t, torch.full((4,), 3)), atol=1e-5)
    assert (net(x, t + 0.1, y) - out).abs().max() > 1e-3
    assert (net(x, t, (y + 1) % 4) - out).abs().flatten(1).amax(1).min() > 1e-3
    x = x[:1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(x, t[:1], y[:1])[0, 0, 0, 0], x)
    assert (slope != 0).all()


def test_options_of_the_literature() -> None:
    """Time features by their formulas, rescaled sums; the defaults are the network of the weights here."""
    song, ddpm = unet(time="fourier").frequencies, unet(time="positional").frequencies
    assert torch.equal(song, unet(seed=1, time="fourier").frequencies)
    assert 8 < UNet(time="fourier", embed=1024).frequencies.std() < 24
    angles = 2 * torch.pi * ddpm
    assert torch.allclose(angles[[0, -1]], torch.tensor([1.0, 1e-4]))
    assert torch.equal(unet().frequencies, 2.0 ** torch.linspace(-1, 4, 8))

    named = {name for name, _ in unet(middle="attention").named_parameters()}
    assert {"middle.1.qkv.weight", "middle.2.conv1.weight"} <= named
    plain, rescaled = unet().down[0], unet(rescale=True).down[0]  # a block without attention
    h, emb = noise(4, 8, 4, 4), noise(4, 16)
    assert torch.allclose(rescaled(h, emb), plain(h, emb) / 2**0.5)


@pytest.mark.parametrize("option", [{"time": "fourier"}, {"time": "positional"}, {"rescale": True}], ids=case_id)
def test_options_of_the_literature_are_used(option: dict[str, object]) -> None:
    x, t, y = noise(2, 1, 8, 8), torch.tensor([0.1, 0.4]), torch.tensor([0, 1])

    assert not torch.allclose(unet(**option)(x, t, y), unet()(x, t, y), atol=1e-3), option


def test_inference_leaves_the_global_random_state_alone() -> None:
    net, state = unet(), torch.get_rng_state()
    assert torch.equal(net(noise(2, 1, 8, 8), torch.zeros(2)), net(noise(2, 1, 8, 8), torch.zeros(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_derivatives_of_both_modes_and_twice() -> None:
    """Forward and reverse mode agree with differences; reverse mode maps over vectors and can be repeated."""
    net, x, t = unet().double(), noise(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.2, 0.4])

    def f(z: Tensor) -> Tensor:
        return net(z, t)

    tangent, step = noise(2, 1, 8, 8, seed=1, dtype=torch.float64), 1e-5
    _, slope = torch.func.jvp(f, (x,), (tangent,))
    assert torch.allclose(slope, (f(x + step * tangent) - f(x - step * tangent)) / (2 * step), atol=1e-6)

    x = x.requires_grad_()
    out = f(x)
    vectors = noise(3, *out.shape, seed=2, dtype=torch.float64)
    (batched,) = torch.autograd.grad(out, x, vectors, is_grads_batched=True, retain_graph=True)
    (first,) = torch.autograd.grad(out, x, vectors[0], create_graph=True)
    assert torch.allclose(batched[0], first)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.abs().max() > 0


def test_the_exact_trace_of_a_likelihood() -> None:
    """The likelihood's batched Jacobian rows go through the network, and agree with one row at a time."""
    D, sde = EDMPreconditioned(unet(patch=1), sigma_data=0.5), sg.EDMSDE()
    x = noise(2, 1, 4, 4)
    score = sg.from_denoiser(D, sde)
    many, one = (sg.log_prob(score, sde, x, method=FixedGrid(6), trace=Exact(chunk)).value for chunk in (16, 1))
    assert torch.allclose(many, one, rtol=1e-4)


def test_autocast_stays_close() -> None:
    D, x, sigma = EDMPreconditioned(unet(), sigma_data=0.5), noise(4, 1, 8, 8), torch.full((4,), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = D(x, sigma)
    assert low.dtype == torch.float32
    assert (low - D(x, sigma)).abs().max() < 0.1


def test_the_preconditioning_s_principles() -> None:
    """Input and target of the network have unit variance, c_out is the least possible; D(x, 0) = x; dtypes are x's."""
    sigma, s = torch.logspace(-3, 2, 50, dtype=torch.float64), 0.7
    c = edm_preconditioning(sigma, s)
    assert torch.allclose(c.c_in**2 * (s**2 + sigma**2), torch.ones_like(sigma))
    target_variance = (1 - c.c_skip) ** 2 * s**2 + c.c_skip**2 * sigma**2
    assert torch.allclose(target_variance, c.c_out**2)
    for other in (c.c_skip - 0.01, c.c_skip + 0.01):
        assert ((1 - other) ** 2 * s**2 + other**2 * sigma**2 > c.c_out**2).all()
    assert torch.allclose(c.c_noise, sigma.log() / 4)

    D, x = EDMPreconditioned(unet(), sigma_data=s), noise(2, 1, 8, 8)
    assert torch.equal(D(x, torch.zeros(2)), x)
    double = D(x.double(), torch.full((2,), 0.3), torch.tensor([0, 1]))
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), D(x, torch.full((2,), 0.3), y=torch.tensor([0, 1])), atol=1e-5)


def test_a_preconditioned_network_of_another_kind() -> None:
    """The wrapper takes any network and any rank."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.linear(x) * t[:, None]
            return out

    net = Net()
    D, x, sigma = EDMPreconditioned(net, 1.0), noise(3, 5), torch.tensor([0.1, 1.0, 5.0])
    c = edm_preconditioning(sigma, 1.0)
    by_hand = c.c_skip[:, None] * x + c.c_out[:, None] * net(c.c_in[:, None] * x, c.c_noise)
    assert torch.allclose(D(x, sigma), by_hand)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: UNet(channels=(8, 12), groups=8), r"\(8, 12\)"),
        (lambda: UNet(channels=(8, 16), groups=8, heads=3), "heads=3"),
        (lambda: UNet(channels=(8, 16), attention=(2,)), r"attention=\(2,\)"),
        (lambda: UNet(channels=(8, 16), attention=(), heads=3, middle="attention"), "heads=3"),
        (lambda: UNet(time="learned"), "learned"),
        (lambda: UNet(middle="none"), "none"),
        (lambda: unet()(noise(1, 1, 6, 8), torch.zeros(1)), r"multiples of 4, got \(1, 1, 6, 8\)"),
        (lambda: unet(classes=None)(noise(1, 1, 8, 8), torch.zeros(1), torch.zeros(1).long()), "without classes"),
        (lambda: EDMPreconditioned(unet(), 0.0), "got 0.0"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
