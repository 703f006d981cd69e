"""Networks in train mode whose layers would make a sample depend on more than its seed."""

from __future__ import annotations

from weakref import WeakSet

from torch import nn

from sgm_sde.identity import called_networks


class TrainModeWarning(UserWarning):
    """A network is in train mode and holds layers that make a sample depend on more than its seed."""


_told: WeakSet[nn.Module] = WeakSet()


def in_train_mode(net: object) -> str | None:
    """Warning for a network in train mode with Dropout or BatchNorm, given once; None for others.

    A function has the modules that it calls, as far as its code names them.
    """
    new = [network for network in called_networks(net) if network.training and network not in _told]
    layers = [layer for network in new for layer in network.modules()]
    _told.update(layers)
    used = sorted({type(layer).__name__ for layer in layers if layer.training and _random_or_coupled(layer)})
    if not used:
        return None
    return (
        f"the network is in train mode and uses {', '.join(used)}, so that results depend on more than seeds: "
        f"call net.eval() first"
    )


def _random_or_coupled(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0
