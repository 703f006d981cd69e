"""`sample(..., compile=True)`: the network by `torch.compile`, on CUDA the whole run as one graph.

The loop's own arithmetic is not compiled: on a CPU one matrix-vector product a stage into memory at hand is faster
than a compiled kernel with its guards (measured 1.3 to 3 times), and on CUDA the graph has the launches already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor

from sgm_sde._utils.tree import Conditions, Path, each_leaf, map_leaves
from sgm_sde.engine.executor import Recording, Run
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Program
from sgm_sde.scores.conditions import bare
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score

HELD = "_sgm_sde_compiled"


class _Held:
    """Compiled forms of a network, stored on it and freed with it.

    A table of networks, with weak keys or not, would keep them alive by its values. Copies and pickles of a network
    have none of it.
    """

    def __init__(self) -> None:
        self.compiled: Callable[..., Tensor] | None = None
        self.recordings: dict[Hashable, tuple[BoundScore, Recording]] = {}

    def __deepcopy__(self, memo: object) -> _Held:
        return _Held()

    def __reduce__(self) -> tuple[object, ...]:
        return _Held, ()


def _held(net: Callable[..., Tensor]) -> _Held:
    """Compiled forms stored on a network; none where it can store nothing, as a bound method."""
    held = getattr(net, "__dict__", {}).get(HELD)
    if held is None:
        held = _Held()
        with contextlib.suppress(AttributeError, TypeError):
            object.__setattr__(net, HELD, held)
    return held


def compile_network(score: Score) -> Score:
    """The same score with its networks compiled, once for all runs."""

    def compiled(net: Callable[..., Tensor]) -> Callable[..., Tensor]:
        held = _held(net)
        if held.compiled is None:
            held.compiled = torch.compile(net)
        return held.compiled

    return score.map_net(compiled)


def replay(program: Program, x: Tensor, model: BoundScore, noise: NoiseSource, kwargs: Conditions | None) -> Run:
    """Run a program as a CUDA graph, recorded the first time that it is asked for with this network.

    Other tensors in `kwargs` of the same shapes are copied into the recording; anything else makes a new one.
    """
    given = bare(dict(kwargs or {}))
    leaves = list(each_leaf(given))
    key = _key(program, x, model, leaves)
    held = _held(model.score.net)
    recordings = held.recordings
    if key not in recordings:
        kept = map_leaves(_copied, given)
        recorded = model.with_kwargs(kept)
        recordings[key] = (recorded, Recording(program, x, recorded))

    recorded, recording = recordings[key]
    for (_, copy), (_, new) in zip(each_leaf(recorded.kwargs), leaves, strict=True):
        if isinstance(copy, Tensor) and isinstance(new, Tensor):
            copy.copy_(new)

    model.nfe += program.nfe
    model.network_evals += program.nfe * len(x) * model.score.branches
    return recording.replay(x, noise)


def _copied(_: Path, leaf: object) -> object:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _key(program: Program, x: Tensor, model: BoundScore, leaves: Iterable[tuple[Path, object]]) -> Hashable:
    """Everything that a recording depends on, but for the values of tensors."""
    signature = tuple(
        (path, (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf) for path, leaf in leaves
    )
    score = model.score
    reading = (score.prediction, score.time_label, score.input_scale)  # how this score has its network read x and t
    process = model.sde if isinstance(model.sde, Hashable) else id(model.sde)  # the recording keeps it alive
    return (program, reading, process, tuple(x.shape), x.dtype, x.device, signature)
