"""Arguments of the network besides x and t: which have one row per sample, and which are the same for all.

Guidance doubles the batch, adaptive solvers and likelihoods run some of its samples alone. Then a condition of one row
per sample goes with its sample, a table that all share does not, and a shape cannot tell the two apart: a table of ten
entries looks like ten labels. So the roles are what the caller says:

| a tensor ...                                                   | is taken                          |
|----------------------------------------------------------------|-----------------------------------|
| in `PerSample(...)`                                            | as one row per sample               |
| in `Shared(...)`                                               | as the same for all               |
| named as a condition: in `null`, by `Classifier`, or `y` of a network with a `NULL_LABEL` | as one row per sample |
| of another length than the batch, and than a call              | as the same for all               |
| else                                                           | as an error, where it matters     |

Conditions may be nested: mappings, lists, tuples and dataclasses are walked, and a mark holds for all in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import NamedTuple, overload

import torch
from torch import Tensor

from sgm_sde._utils.checks import described
from sgm_sde._utils.tree import Arguments, Conditions, Path, children, each_leaf, map_leaves, shown, with_parts


@dataclass(frozen=True, eq=False)
class Mark:
    """Role of a network argument in a batch.

    Args:
        value: a tensor, or nested mappings, sequences and dataclasses of tensors.

    Raises:
        TypeError: for a value without a tensor in it.
    """

    value: object

    def __post_init__(self) -> None:
        if isinstance(self.value, Mark):
            raise TypeError(f"{type(self).__name__} takes what is to be marked, got another mark: {self.value!r}")
        if not any(isinstance(leaf, Tensor) for _, leaf in each_leaf(self.value)):
            raise TypeError(
                f"{type(self).__name__} takes a tensor, or a mapping or sequence of tensors, got "
                f"{described(self.value)}"
            )


class PerSample(Mark):
    """An argument of the network with one row for each sample, (B, *).

    Args:
        value: a tensor, or nested mappings, sequences and dataclasses of tensors, each of B rows.

    Raises:
        TypeError: for a value without a tensor in it.
        ValueError: at a call, where a tensor in it has another number of rows than there are samples.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> net = lambda x, sigma, y: x * y[:, None] / (1 + sigma[:, None] ** 2)
        >>> kwargs = {"y": sg.PerSample(torch.tensor([0.5, 1.0]))}
        >>> score = sg.from_denoiser(net, sg.EDMSDE())
        >>> sg.sample(score, sg.EDMSDE(), (2, 1), solver="dopri5", seed=0, model_kwargs=kwargs).status.ok
        True
    """


class Shared(Mark):
    """An argument of the network that is the same for all samples, though its length may be that of a batch.

    Args:
        value: a tensor, or nested mappings, sequences and dataclasses of tensors.

    Raises:
        TypeError: for a value without a tensor in it.

    Examples:
        >>> import torch
        >>> Shared(torch.zeros(3, 4)).value.shape
        torch.Size([3, 4])
    """


class AmbiguousArgument(ValueError):
    """An argument of the network of which nothing says whether it has one row per sample or is the same for all."""


LEAVES = (Tensor, Mark)
ROWS = "numbers of the samples"  # an argument (B, 2) of scores that keep something of each, who name it as a condition


class Numbers(NamedTuple):
    """The samples of a run that a call is about.

    Attributes:
        of_each: their numbers (b,).
        total: how many the run has.
    """

    of_each: Tensor
    total: int

    @staticmethod
    def of(kwargs: Conditions) -> Numbers | None:
        """Those that come with a call's arguments; None for all samples in their order."""
        given = bare(kwargs.get(ROWS))
        if not isinstance(given, Tensor) or not len(given):
            return None
        return Numbers(given[:, 0], int(given[0, 1]))


def rows_for(name: str, value: Tensor, numbers: Numbers | None, batch: int) -> Tensor:
    """The rows for a call's samples of a tensor that a score keeps, with one row for each of the run's.

    Args:
        name: of the tensor, in messages.
        value: the tensor (B, *).
        numbers: of the samples; None for all.
        batch: number of samples of the call.

    Raises:
        ValueError: for another number of rows than the run has samples.
    """
    total = batch if numbers is None else numbers.total
    if value.ndim == 0 or len(value) != total:
        given = f"{len(value)} rows" if value.ndim else "no rows"
        raise ValueError(f"{name} has {given}: expected one for each of {total} samples")
    return value if numbers is None else value[numbers.of_each.to(value.device)]


@overload
def bare(value: Arguments) -> Arguments: ...
@overload
def bare(value: object) -> object: ...
def bare(value: object) -> object:
    """The arguments as the network gets them, without marks."""
    return map_leaves(lambda _, leaf: leaf.value if isinstance(leaf, Mark) else leaf, value, LEAVES)


def is_named(path: Path, named: Collection[Path]) -> bool:
    """True if a path is one of those named, or lies within one."""
    return any(path[:n] in named for n in range(1, len(path) + 1))


def require_rows(kwargs: Conditions, batch: int) -> None:
    """Raise ValueError where something that is marked as one row per sample is not."""

    def check(path: Path, leaf: object) -> object:
        if isinstance(leaf, PerSample):
            _marked(path, leaf, batch)
        return leaf

    map_leaves(check, kwargs, LEAVES)


def require_numbers(kwargs: Conditions) -> None:
    """Raise TypeError for an argument of the network that is a tensor without numbers."""
    for path, value in each_leaf(kwargs):
        if isinstance(value, Tensor) and value.is_meta:
            raise TypeError(
                f"model_kwargs[{path[0]!r}] is on the device meta, which has no numbers, and the states are not"
            )


def resolve(kwargs: Conditions, batch: int, named: Collection[Path] = (), called: int | None = None) -> Arguments:
    """The arguments with each tensor marked as what it is in a batch.

    Args:
        kwargs: the arguments, marked in part.
        batch: number of samples.
        named: paths of conditions.
        called: number of rows that the network gets in a call, of a run in parts or of a guided one; that of samples if
            not given.

    Raises:
        AmbiguousArgument: for a tensor that may be either.
        ValueError: for one that is marked as one row per sample and is not.
    """

    def mark(path: Path, leaf: object) -> object:
        if isinstance(leaf, Mark):
            return _marked(path, leaf, batch)
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.ndim == 0:
            return Shared(leaf)

        name = shown(path)
        if len(leaf) == called and called not in (1, batch):
            raise AmbiguousArgument(
                f"the argument {name!r} of shape {tuple(leaf.shape)} "
                f"has as many rows as the network gets in one call, {called}, and there are {batch} samples: "
                f"pass sg.PerSample({name}) of {batch} rows, one for each sample, "
                f"or sg.Shared({name}) for the same to all"
            )
        if len(leaf) != batch:
            return Shared(leaf)
        if is_named(path, named):
            return PerSample(leaf)
        raise AmbiguousArgument(
            f"the argument {name!r} of shape {tuple(leaf.shape)} has as many rows as there are samples, {batch}, and "
            f"nothing says whether it goes with them: pass sg.PerSample({name}) for one row per sample, or "
            f"sg.Shared({name}) for the same to all"
        )

    resolved = map_leaves(mark, dict(kwargs), LEAVES)
    if (ROWS,) not in named:
        return resolved

    numbers = torch.arange(batch, device="cpu")
    totals = torch.full_like(numbers, batch)
    of_each = torch.stack([numbers, totals], 1)
    return {ROWS: PerSample(of_each), **resolved}


def with_marks_inside(value: Conditions) -> Arguments:
    """The arguments with marks on single tensors, in place of those on what holds tensors."""

    def spread(_: Path, leaf: object) -> object:
        if not isinstance(leaf, Mark):
            return leaf
        kind = type(leaf)
        return map_leaves(lambda _, inner: kind(inner) if isinstance(inner, Tensor) else inner, leaf.value)

    return map_leaves(spread, dict(value), LEAVES)


def has_rows_of_samples(value: object) -> bool:
    """True if what a score keeps has a tensor that may have one row per sample."""
    found: list[bool] = []

    def look(_: Path, leaf: object) -> object:
        many = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) > 1
        found.append(many or isinstance(leaf, PerSample))
        return leaf

    map_leaves(look, value, LEAVES)
    return any(found)


@overload
def nullified(kwargs: Arguments, null: Conditions, batch: int, numbers: Numbers | None = None) -> Arguments: ...
@overload
def nullified(kwargs: object, null: object, batch: int, numbers: Numbers | None = None, path: Path = ()) -> object: ...
def nullified(kwargs: object, null: object, batch: int, numbers: Numbers | None = None, path: Path = ()) -> object:
    """The arguments with the null conditions of `null` in place of the conditions that it names.

    Args:
        kwargs: the arguments, or what lies in them at the path.
        null: a mapping (or a sequence, for a sequence) of what stands for no condition by name, to any depth; else that
            itself: None, a number, a tensor that expands to each tensor of the condition, or one that is marked.
        batch: number of samples.
        numbers: of the samples, of which a null condition of one row per sample has the rows; None for all.
        path: within the arguments.

    Raises:
        ValueError: for a condition that is missing, is not one row per sample, or to which its null does not expand;
            for a null with a fraction in the place of integers.
    """
    if null is None:
        return None
    if isinstance(kwargs, Mark):
        kwargs = kwargs.value
    parts = None if isinstance(kwargs, Tensor) else children(kwargs)
    if parts is not None and isinstance(null, Mapping | list | tuple):
        wanted = children(null) or {}
        _require_parts(parts, wanted, path)
        changed = dict(parts)
        for name, part in parts.items():
            if name in wanted:
                changed[name] = nullified(part, wanted[name], batch, numbers, (*path, name))
        return with_parts(kwargs, changed)

    def in_place_of(inner: Path, leaf: object) -> object:
        return _null_row((*path, *inner), leaf, null, batch, numbers)

    return map_leaves(in_place_of, kwargs)


def _require_parts(parts: Mapping[str | int, object], wanted: Mapping[str | int, object], path: Path) -> None:
    """Raise ValueError for a condition that a null condition names and the arguments at the path lack."""
    for name in wanted.keys() - parts.keys():
        missing = (*path, name)
        where = f" in {shown(path)!r}" if path else ""
        raise ValueError(
            f"guidance asks for the condition {shown(missing)!r}: pass model_kwargs={{{missing[0]!r}: ...}}, "
            f"got {sorted(map(str, parts.keys() - {ROWS}))}{where}"
        )


def _null_row(path: Path, condition: object, null: object, batch: int, numbers: Numbers | None) -> Tensor:
    """The null condition in the shape of the condition."""
    if not isinstance(condition, Tensor) or condition.ndim == 0 or len(condition) != batch:
        given = f"shape {tuple(condition.shape)}" if isinstance(condition, Tensor) else described(condition)
        raise ValueError(
            f"the condition {shown(path)!r} must be a tensor of one row per sample, {batch} in all, got {given}: "
            f"classes are an int64 tensor, as torch.tensor([3, 7]) for two samples"
        )
    exact = _null_tensor(path, condition, null, numbers)
    value = exact.to(condition.dtype)
    of_classes = exact.is_floating_point() and not condition.is_floating_point()
    if of_classes and not torch.equal(value.to(exact.dtype), exact):
        raise ValueError(
            f"the null condition {shown(path)!r} is {described(bare(null))}, and the condition is of {condition.dtype}"
        )
    try:
        return value.expand_as(condition)
    except RuntimeError:
        raise ValueError(
            f"the null condition {shown(path)!r} of shape {tuple(value.shape)} does not expand to the condition's "
            f"{tuple(condition.shape)}"
        ) from None


def _null_tensor(path: Path, condition: Tensor, null: object, numbers: Numbers | None) -> Tensor:
    """The null condition as a tensor that goes with the condition (b, *) of the samples of some numbers."""
    name = f"the null condition {shown(path)!r}"
    if isinstance(null, PerSample):
        assert isinstance(null.value, Tensor)
        rows = rows_for(name, null.value, numbers, len(condition))
        ones = [1] * (condition.ndim - rows.ndim)
        return rows.reshape(*rows.shape, *ones).to(condition.device)

    # In the dimensions of the condition nothing but the samples can have more than one row.
    tensor = torch.as_tensor(bare(null), device=condition.device)
    if numbers is None or isinstance(null, Shared) or tensor.ndim != condition.ndim or len(tensor) == 1:
        return tensor
    return rows_for(name, tensor, numbers, len(condition))


def named_in(null: object, path: Path = ()) -> frozenset[Path]:
    """The paths of the conditions that a null condition names.

    Raises:
        TypeError: for what stands for no condition and is neither None, a number nor a tensor.
    """
    if isinstance(null, Mapping):
        return frozenset().union(*(named_in(value, (*path, name)) for name, value in null.items()))
    for _, leaf in each_leaf(null):
        if not isinstance(leaf, Tensor | Number | None):
            raise TypeError(
                f"the null condition {shown(path)!r} must be None, a number or a tensor, got {described(leaf)}"
            )
    return frozenset({path})


def _marked(path: Path, mark: Mark, batch: int) -> object:
    """Contents of a mark, with each tensor marked."""

    def each(inner: Path, leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        if isinstance(mark, PerSample) and (leaf.ndim == 0 or len(leaf) != batch):
            raise ValueError(
                f"the argument {shown((*path, *inner))!r} is marked PerSample and has shape {tuple(leaf.shape)}: "
                f"expected one row for each of {batch} samples"
            )
        return type(mark)(leaf)

    return map_leaves(each, mark.value)


def has_rows(resolved: Conditions) -> bool:
    """True if any of the network's arguments from `resolve` has one row per sample."""
    found: list[bool] = []
    given = {name: value for name, value in resolved.items() if name != ROWS}
    map_leaves(lambda _, leaf: found.append(isinstance(leaf, PerSample)), given, LEAVES)
    return any(found)


def map_rows(change: Callable[[Path, Tensor], Tensor], resolved: Conditions) -> Arguments:
    """Arguments from `resolve` with every tensor of one row per sample changed."""

    def each(path: Path, leaf: object) -> object:
        if isinstance(leaf, PerSample) and isinstance(leaf.value, Tensor):
            return PerSample(change(path, leaf.value))
        return leaf

    return map_leaves(each, dict(resolved), LEAVES)
