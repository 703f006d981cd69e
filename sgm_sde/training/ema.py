"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sgm_sde._utils.checks import instance_of, number
from sgm_sde._utils.wrappers import plain_name, unwrapped


class EMA:
    r"""Exponential moving average $\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta$ of a network's weights.

    After $n$ updates $d = \min(\text{decay}, (1 + n) / (10 + n))$, so that the random initial weights are forgotten
    soon. Averages are kept in at least float32, since $(1 - d)(\theta - \bar\theta)$ is less than half a unit in the
    last place of bfloat16 weights, and nothing would move. Buffers are copied, not averaged. A network in
    `torch.compile` or a wrapper of parallel training has the names of its weights without.

    Args:
        net: the network; its weights at this moment start the average.
        decay: the largest $d$, at least 0 and below 1.

    Raises:
        ValueError: for a decay outside [0, 1).

    Examples:
        >>> net = nn.Linear(1, 1)
        >>> ema = EMA(net, decay=0.9)
        >>> ema.update(net)
        >>> ema.copy_to(net)
    """

    def __init__(self, net: nn.Module, decay: float = 0.9999) -> None:
        instance_of("net", net, nn.Module, "an nn.Module")
        self.decay = number("decay", decay, least=0, below=1)
        self.updates = 0
        parameters = unwrapped(net).named_parameters(remove_duplicate=False)
        self._parameters = frozenset(plain_name(name) for name, _ in parameters)
        self.average = {
            name: value.detach().to(self._dtype(name, value), copy=True) for name, value in _weights(net).items()
        }

    def _dtype(self, name: str, value: Tensor) -> torch.dtype:
        """Dtype of the average of a value: that of a parameter is at least single precision."""
        averaged = name in self._parameters and value.is_floating_point()
        return torch.promote_types(value.dtype, torch.float32) if averaged else value.dtype

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the network's present weights.

        Raises:
            TypeError: for anything but an `nn.Module`.
            ValueError: for another network.
        """
        instance_of("net", net, nn.Module, "an nn.Module")
        weights = self._known(net)
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in weights.items():
            if name in self._parameters:
                self.average[name].lerp_(value.to(self.average[name]), 1 - d)
            else:
                self.average[name].copy_(value)

    def copy_to(self, net: nn.Module) -> None:
        """Give a network the averaged weights, in its own dtype.

        Raises:
            TypeError: for anything but an `nn.Module`.
            ValueError: for another network.
        """
        instance_of("net", net, nn.Module, "an nn.Module")
        self._known(net)
        inner = unwrapped(net)
        inner.load_state_dict({name: self.average[plain_name(name)] for name in inner.state_dict()})

    def _known(self, net: nn.Module) -> dict[str, Tensor]:
        """The weights of a network by name, if they are those of the average.

        Raises:
            ValueError: for another network.
        """
        weights = _weights(net)
        shapes = {name: value.shape for name, value in self.average.items()}
        others = {name: value.shape for name, value in weights.items()}
        if unlike := sorted(dict(shapes.items() ^ others.items())):
            raise ValueError(
                f"the network is not the one whose weights are averaged; names or shapes differ in {unlike[:6]}"
            )
        return weights

    def state_dict(self) -> dict[str, Tensor]:
        """The averages and the number of updates, as tensors that safetensors stores."""
        return {**self.average, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from what `state_dict` returned.

        Raises:
            ValueError: for the state of another network.
        """
        if missing := (set(self.average) | {"updates"}) ^ set(state):
            raise ValueError(f"the state is that of another network; names in one of the two only: {sorted(missing)}")
        self.updates = int(state["updates"])
        for name, value in self.average.items():
            value.copy_(state[name])


def _weights(net: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of the network in its wrappers, by their names there."""
    return {plain_name(name): value for name, value in unwrapped(net).state_dict().items()}
