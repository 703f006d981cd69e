"""Methods: gradients with respect to data and parameters."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.likelihood import (
    AdjointFlow,
    FixedGrid,
)
from tests.helpers import F64, GAUSSIAN, LINEAR
from tests.likelihood.cases import points


class Small(nn.Module):
    """A network of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, 0.2], dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.w[0] * x) + self.w[1] * x * t[:, None]


def test_gradients_with_respect_to_the_data() -> None:
    """That of the log-density is the score."""
    sde = LINEAR["vp"]
    x = points(GAUSSIAN, "vp", 3).requires_grad_()
    marginal = {"prior": lambda z: GAUSSIAN.log_prob(z, sde, sde.T)}
    value = sg.log_prob(
        GAUSSIAN.score(sde), sde, x, trace="exact", enable_grad=True, method=FixedGrid(100), **marginal
    ).value
    (grad,) = torch.autograd.grad(value.sum(), x)
    expected = GAUSSIAN.score(sde)(x.detach(), torch.tensor(1e-5, dtype=F64))
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_gradients_with_respect_to_parameters() -> None:
    """Against finite differences, and nothing is left behind in the parameters."""
    sde = LINEAR["vp"]

    net = Small()
    score = sg.from_noise(net, sde)
    x = torch.tensor([[0.3, -0.4]], dtype=F64)

    def value() -> Tensor:
        return sg.log_prob(score, sde, x, trace="exact", enable_grad=True, method=FixedGrid(12)).value.sum()

    (grad,) = torch.autograd.grad(value(), net.w)
    for i in range(2):
        with torch.no_grad():
            net.w[i] += 1e-5
            up = value()
            net.w[i] -= 2e-5
            down = value()
            net.w[i] += 1e-5
        assert float(grad[i]) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)
    assert net.w.grad is None
    assert net.w.requires_grad
    assert not sg.log_prob(score, sde, x, seed=0, method=FixedGrid(6)).value.requires_grad


class Held:
    """A tensor that the tape keeps; detached, since an output held by its own node would never go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def test_the_adjoint_s_gradients_are_backpropagation_s() -> None:
    """With respect to x and to parameters, to 5e-6 at tolerance 1e-8, in memory that does not grow with the steps."""
    sde, net = LINEAR["vp"], Small()
    score = sg.from_noise(net, sde)
    x = torch.tensor([[0.3, -0.4], [0.1, 0.9]], dtype=F64, requires_grad=True)

    def value(method: FixedGrid | AdjointFlow) -> Tensor:
        return sg.log_prob(score, sde, x, trace="exact", enable_grad=True, method=method).value

    def kept(method: FixedGrid | AdjointFlow) -> int:
        alive: weakref.WeakSet[Held] = weakref.WeakSet()

        def pack(tensor: Tensor) -> Held:
            held = Held(tensor)
            alive.add(held)
            return held

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            result = value(method)
            return sum(held.tensor.numel() for held in alive) + 0 * len(result)

    tight = AdjointFlow(1e-8, 1e-8)
    gradients = [
        torch.autograd.grad(value(method).sum(), (x, net.w))
        for method in (FixedGrid(200), tight, AdjointFlow(1e-8, 1e-8, parameters=(net.w,)))
    ]
    for backward, adjoint, with_parameters in zip(*gradients, strict=True):
        torch.testing.assert_close(adjoint, backward, rtol=5e-6, atol=5e-6)
        torch.testing.assert_close(with_parameters, adjoint)
    assert kept(tight) == kept(AdjointFlow(1e-3, 1e-3))
    assert kept(FixedGrid(60)) > 3 * kept(FixedGrid(12))
    assert net.w.grad is None
