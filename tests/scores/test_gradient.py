"""Networks that lose some of their gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sgm_sde as sg
from sgm_sde.scores.gradient import Cuts, is_compiled, lost_share
from tests.helpers import F64


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.cos()
    return x * y


CUTTING = {
    "detach": lambda x: x * x.detach(),
    "no_grad": without_gradients,
    "data": lambda x: x * x.data,
    "numpy": lambda x: x * torch.from_numpy(x.detach().numpy()),
    "round": lambda x: x * (8 * x).round(),
    "in-place round": lambda x: x * (8 * x).clone().round_(),
    "integers": lambda x: x * (8 * x).long(),
    "in a list": lambda x: x * torch.stack([x, x]).detach()[0],
}
WHOLE = {
    "smooth": lambda x: x.sin() + x,
    "a shape": lambda x: (
        x * torch.zeros_like(x) + x.new_ones(3, 2) + torch.ones(3, 2).to(x) + torch.ones(2).expand_as(x)
    ),
    "a mask": lambda x: torch.where(x > 0, x, 0.1 * x),
    "kinks": torch.relu,
    "no state": lambda x: x + torch.arange(2).detach().round(),
    "a score's own look at its first call": lambda x: sg.from_score(lambda x, t: -x, sg.VPSDE())(x, 0.5),
}


@pytest.mark.parametrize("name", CUTTING)
def test_what_may_lose_a_gradient_is_seen(name: str) -> None:
    x = torch.randn(3, 2, requires_grad=True)
    with Cuts() as cuts:
        CUTTING[name](x)
    assert cuts.seen


@pytest.mark.parametrize("name", WHOLE)
def test_what_loses_none_is_not(name: str) -> None:
    """Shapes, masks and what does not depend on the state: a network of these is asked nothing more."""
    x = torch.randn(3, 2, requires_grad=True)
    with Cuts() as cuts:
        WHOLE[name](x)
    assert not cuts.seen


def softmax(x: Tensor) -> Tensor:
    """Its greatest exponent taken off, as constants."""
    e = (3 * x - 3 * x.amax(1, keepdim=True).detach()).exp()
    return e / e.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("net", "share"),
    [
        (torch.relu, 0.0),
        (softmax, 0.0),
        (lambda x: x.bfloat16().float().bfloat16().float(), 0.0),  # roundings pass gradients on
        (lambda x: x + x.detach(), 0.5),
        (lambda x: (1000 * x).round() / 1000, 1.0),
        (lambda x: x.detach(), 0.0),  # of a network without any the caller says so
    ],
)
def test_the_share_that_is_lost(net: Callable[[Tensor], Tensor], share: float) -> None:
    """It is that of the change with the state, and rounding to bfloat16 is none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, dtype=F64, generator=generator)
    z = torch.randn(200, 4, dtype=F64, generator=generator).sign()
    assert lost_share(net, x, z, 0.2) == pytest.approx(share, abs=0.05)


def test_compiled_networks_are_known() -> None:
    """Wherever a function calls them."""
    net = nn.Linear(2, 2)
    compiled = torch.compile(net)
    assert is_compiled(compiled) and is_compiled(lambda x: compiled(x))
    assert is_compiled(torch.compile(lambda x: x)) and not is_compiled(net) and not is_compiled(lambda x: net(x))
