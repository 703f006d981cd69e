"""Identities of the network and the process that a table was fitted to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from sgm_sde._utils.warn import warn
from sgm_sde.engine.node import Process
from sgm_sde.identity import disagreement, networks, portable, spec, weights
from sgm_sde.processes.base import SDE
from sgm_sde.scores.score import Score

OF_FUNCTIONS = ("net", "weights", "code", "function", "of", "given")  # keys of a specification


class CalibrationWarning(UserWarning):
    """A table on another network than the one it was fitted to, or a fit whose outcome cannot be relied on."""


_known: WeakKeyDictionary[object, str] = WeakKeyDictionary()  # checksums of weights, by network


def network_of(score: Score) -> str:
    """The identity of a score's network and of its guidance, as JSON text.

    Without a module it is that of the tensors and arrays that the score's functions hold or name, and "" without any.
    Networks are not called for it.
    """
    checksum = _weights(score)
    return json.dumps({"weights": checksum, "score": _without_nets(spec(score))}, sort_keys=True) if checksum else ""


def check_network(fitted: str, score: Score, name: str) -> None:
    """Warn if the score is another one than that of the identity `fitted`.

    Nothing is said where one of the two has no weights that can be found, or is compiled.
    """
    if not fitted or any(hasattr(net, "_orig_mod") for net in networks(score)):
        return
    now = network_of(score)
    if not now:
        return
    there = json.loads(fitted)
    here = json.loads(now)
    other = there["weights"] != here["weights"]
    if not other and same(*(_without_nets(known["score"]) for known in (there, here))):
        return
    what = "a network of other weights" if other else "another guidance or convention"
    warn(
        f"{name} is used on {what} than it was fitted to, where its error is not known: calibrate on this one",
        CalibrationWarning,
    )


def process_of(sde: SDE) -> str:
    """The identity of a process as JSON text."""
    return json.dumps(portable(spec(sde)), sort_keys=True)


def is_process(fitted: str, sde: Process) -> bool:
    """True if the process is that of the identity `fitted`."""
    return same(portable(json.loads(fitted)), portable(spec(sde)))


def same(there: object, now: object) -> bool:
    """True if two values of `spec` are the same but for what another machine rounds differently.

    Examples:
        >>> import sgm_sde as sg
        >>> same(spec(sg.VPSDE()), spec(sg.VPSDE())), same(spec(sg.VPSDE()), spec(sg.VPSDE(beta_max=10.0)))
        (True, False)
    """
    if (found := disagreement(there, now)) is not None:
        return found == 0
    if isinstance(there, dict) and isinstance(now, dict):
        return there.keys() == now.keys() and all(same(there[key], now[key]) for key in there)
    if isinstance(there, Sequence) and isinstance(now, Sequence) and not isinstance(there, str):
        return len(there) == len(now) and all(map(same, there, now))
    return bool(there == now)


def _weights(score: Score) -> str:
    net = getattr(score, "net", None)
    try:
        return _known[net]
    except (KeyError, TypeError):
        found = weights(networks(score)) or weights(score)
    with contextlib.suppress(TypeError):  # None, or what has no weak reference
        _known[net] = found
    return found


def _without_nets(value: object) -> object:
    """A score's specification by numbers: names and code of functions change with wrappers and versions."""
    if isinstance(value, Mapping):
        return {key: _without_nets(item) for key, item in value.items() if key not in OF_FUNCTIONS}
    return [_without_nets(item) for item in value] if isinstance(value, list) else value
