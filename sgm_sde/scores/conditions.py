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

So are NumPy arrays, and lists and tuples without tensors in them, such as prompts: an entry is a row.

Conditions may be nested: mappings, lists, tuples and dataclasses are walked, and a mark holds for all in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import NamedTuple, TypeAlias, TypeGuard, overload

import numpy as np
import torch
from torch import Tensor

from sgm_sde._utils.checks import described
from sgm_sde._utils.tree import Arguments, Conditions, Path, children, each_leaf, map_leaves, shown, with_parts

Rows: TypeAlias = Tensor | np.ndarray | list[object] | tuple[object, ...]  # an argument that may have one per sample


@dataclass(frozen=True, eq=False)
class Mark:
    """Role of a network argument in a batch.

    Args:
        value: a tensor, a NumPy array, a list, or nested mappings, sequences and dataclasses of them.

    Raises:
        TypeError: for a value without any of them in it.
    """

    value: object

    def __post_init__(self) -> None:
        if isinstance(self.value, Mark):
            raise TypeError(f"{type(self).__name__} takes what is to be marked, got another mark: {self.value!r}")
        if not each_rows(self.value):
            raise TypeError(
                f"{type(self).__name__} takes a tensor, an array or a list, or a mapping or sequence of them, got "
                f"{described(self.value)}"
            )


class PerSample(Mark):
    """An argument of the network with one row for each sample, (B, *).

    Args:
        value: a tensor, a NumPy array or a list, such as prompts, or nested mappings, sequences and dataclasses of
            them, each of B rows. A list with tensors in it is a sequence of tensors; one within something that is
            marked, and of another length, is no row of it.

    Raises:
        TypeError: for a value without any of them in it.
        ValueError: at a call, where one in it has another number of rows than there are samples.

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
        value: a tensor, a NumPy array or a list, or nested mappings, sequences and dataclasses of them.

    Raises:
        TypeError: for a value without any of them in it.

    Examples:
        >>> import torch
        >>> Shared(torch.zeros(3, 4)).value.shape
        torch.Size([3, 4])
    """


class AmbiguousArgument(ValueError):
    """An argument of the network of which nothing says whether it has one row per sample or is the same for all."""


def is_rows(value: object) -> TypeGuard[Rows]:
    """True for a tensor or array of any dimension, and a list or tuple that is no sequence of these.

    Examples:
        >>> is_rows(["a cat", "a dog"]), is_rows([torch.zeros(2), torch.zeros(3)]), is_rows("a cat")
        (True, False, False)
    """
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    named = hasattr(value, "_fields")
    return isinstance(value, list | tuple) and bool(value) and not named and not _holds_arrays(value)


def _holds_arrays(value: object) -> bool:
    """True if something in a value is a tensor, an array or marked."""
    if isinstance(value, Tensor | np.ndarray | Mark):
        return True
    parts = children(value)
    return parts is not None and any(map(_holds_arrays, parts.values()))


def is_leaf(value: object) -> bool:
    """True for what has one role in a batch."""
    return isinstance(value, Tensor | Mark) or is_rows(value)


def each_rows(value: object) -> dict[Path, Rows]:
    """The tensors, arrays and lists in a value without marks, each with its path."""
    found: dict[Path, Rows] = {}

    def look(path: Path, leaf: object) -> object:
        if isinstance(leaf, Tensor) or is_rows(leaf):
            found[path] = leaf
        return leaf

    map_leaves(look, value, is_leaf)
    return found


def count_of(value: object) -> int | None:
    """Number of rows of a tensor, array or list; None for what has none."""
    return len(value) if is_rows(value) else None


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


@overload
def rows_for(name: str, value: Tensor, numbers: Numbers | None, batch: int) -> Tensor: ...
@overload
def rows_for(name: str, value: list[object], numbers: Numbers | None, batch: int) -> list[object]: ...
def rows_for(name: str, value: Tensor | list[object], numbers: Numbers | None, batch: int) -> Rows:
    """The rows for a call's samples of what a score keeps, with one row for each of the run's.

    Args:
        name: in messages.
        value: a tensor (B, *) or a list.
        numbers: of the samples; None for all.
        batch: number of samples of the call.

    Raises:
        ValueError: for another number of rows than the run has samples.
    """
    total = batch if numbers is None else numbers.total
    count = count_of(value)
    if count != total:
        given = "no rows" if count is None else f"{count} rows"
        raise ValueError(f"{name} has {given}: expected one for each of {total} samples")
    return value if numbers is None else _taken(value, numbers.of_each)


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
    for path, leaf in each_leaf(kwargs, LEAVES):
        if isinstance(leaf, PerSample):
            _marked(path, leaf, batch)


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
        count = count_of(leaf)
        if count is None:
            return Shared(leaf) if isinstance(leaf, Tensor) else leaf

        name = shown(path)
        given = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor | np.ndarray) else f"{count} entries"
        if count == called and called not in (1, batch):
            raise AmbiguousArgument(
                f"the argument {name!r} of {given} "
                f"has as many rows as the network gets in one call, {called}, and there are {batch} samples: "
                f"pass sg.PerSample({name}) of {batch} rows, one for each sample, "
                f"or sg.Shared({name}) for the same to all"
            )
        if count != batch:
            return Shared(leaf)
        if is_named(path, named):
            return PerSample(leaf)
        raise AmbiguousArgument(
            f"the argument {name!r} of {given} has as many rows as there are samples, {batch}, and "
            f"nothing says whether it goes with them: pass sg.PerSample({name}) for one row per sample, or "
            f"sg.Shared({name}) for the same to all"
        )

    resolved = map_leaves(mark, dict(kwargs), is_leaf)
    if (ROWS,) not in named:
        return resolved

    numbers = torch.arange(batch, device="cpu")
    totals = torch.full_like(numbers, batch)
    of_each = torch.stack([numbers, totals], 1)
    return {ROWS: PerSample(of_each), **resolved}


def with_marks_inside(value: Conditions) -> Arguments:
    """The arguments with marks on single tensors, arrays and lists, in place of those on what holds them."""

    def spread(_: Path, leaf: object) -> object:
        if not isinstance(leaf, Mark):
            return leaf
        kind = type(leaf)
        return map_leaves(lambda _, inner: kind(inner) if is_leaf(inner) else inner, leaf.value, is_leaf)

    return map_leaves(spread, dict(value), LEAVES)


def has_rows_of_samples(value: object) -> bool:
    """True if what a score keeps has a tensor that may have one row per sample."""
    return any(isinstance(leaf, PerSample) or (count_of(leaf) or 0) > 1 for _, leaf in each_leaf(value, is_leaf))


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
    parts = None if is_rows(kwargs) else children(kwargs)
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

    return map_leaves(in_place_of, kwargs, lambda value: isinstance(value, Tensor) or is_rows(value))


def _require_parts(parts: Mapping[str | int, object], wanted: Mapping[str | int, object], path: Path) -> None:
    """Raise ValueError for a condition that a null condition names and the arguments at the path lack."""
    for name in wanted.keys() - parts.keys():
        missing = (*path, name)
        where = f" in {shown(path)!r}" if path else ""
        raise ValueError(
            f"guidance asks for the condition {shown(missing)!r}: pass model_kwargs={{{missing[0]!r}: ...}}, "
            f"got {sorted(map(str, parts.keys() - {ROWS}))}{where}"
        )


def _null_row(path: Path, condition: object, null: object, batch: int, numbers: Numbers | None) -> Rows:
    """The null condition in the shape of the condition."""
    if isinstance(bare(null), str | list | tuple):
        return _null_texts(path, condition, null, batch, numbers)
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


def _null_texts(path: Path, condition: object, null: object, batch: int, numbers: Numbers | None) -> Rows:
    """Null conditions in a list like that of the condition."""
    if not isinstance(condition, list | tuple | np.ndarray) or len(condition) != batch:
        raise ValueError(
            f"the null condition {shown(path)!r} is {described(bare(null))}, and the condition must be a list of "
            f"{batch} entries, one per sample, got {described(condition)}"
        )
    texts = bare(null)
    if isinstance(texts, str):
        rows: list[object] = [texts] * batch
    else:
        assert isinstance(texts, list | tuple)
        rows = list(rows_for(f"the null condition {shown(path)!r}", list(texts), numbers, batch))
    return rows if isinstance(condition, list) else tuple(rows)


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
        if not isinstance(leaf, Tensor | Number | str | None):
            raise TypeError(
                f"the null condition {shown(path)!r} must be None, a number, a text or a tensor, got {described(leaf)}"
            )
    return frozenset({path})


def _marked(path: Path, mark: Mark, batch: int) -> object:
    """Contents of a mark, with each tensor marked."""

    def each(inner: Path, leaf: object) -> object:
        if not is_leaf(leaf):
            return leaf
        of_all = isinstance(leaf, list | tuple) and bool(inner)  # beside what has rows, such as a list of sizes
        if of_all and count_of(leaf) != batch:
            return leaf
        if isinstance(mark, PerSample) and count_of(leaf) != batch:
            given = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor | np.ndarray) else f"{count_of(leaf)} rows"
            raise ValueError(
                f"the argument {shown((*path, *inner))!r} is marked PerSample and has {given}: "
                f"expected one row for each of {batch} samples"
            )
        return type(mark)(leaf)

    return map_leaves(each, mark.value, is_leaf)


def has_rows(resolved: Conditions) -> bool:
    """True if any of the network's arguments from `resolve` has one row per sample."""
    return any(isinstance(leaf, PerSample) for path, leaf in each_leaf(resolved, LEAVES) if path[0] != ROWS)


def map_rows(change: Callable[[Path, Rows], Rows], resolved: Conditions) -> Arguments:
    """Arguments from `resolve` with all that has one row per sample changed."""

    def each(path: Path, leaf: object) -> object:
        if isinstance(leaf, PerSample) and isinstance(leaf.value, Tensor | np.ndarray | list | tuple):
            return PerSample(change(path, leaf.value))
        return leaf

    return map_leaves(each, dict(resolved), LEAVES)


def rows_at(resolved: Conditions, index: Tensor | slice) -> Arguments:
    """Arguments from `resolve` for the samples of some numbers, or of a slice."""
    return map_rows(lambda _, rows: _taken(rows, index), resolved)


def _taken(rows: Rows, index: Tensor | slice) -> Rows:
    """Some of the rows, as what they are in."""
    if isinstance(index, slice):
        return rows[index]
    if isinstance(rows, Tensor):
        return rows[index.to(rows.device)]
    if isinstance(rows, np.ndarray):
        taken: np.ndarray = rows[index.numpy(force=True)]
        return taken
    some = [rows[i] for i in index.tolist()]
    return some if isinstance(rows, list) else tuple(some)


def joined(rows: Rows, more: Rows) -> Rows:
    """The rows of both, as what the first are in.

    Examples:
        >>> joined(["a cat"], [""])
        ['a cat', '']
    """
    if isinstance(rows, Tensor) and isinstance(more, Tensor):
        return torch.cat([rows, more])
    if isinstance(rows, np.ndarray):
        return np.concatenate([rows, np.asarray(more)])
    both = [*rows, *more]
    return both if isinstance(rows, list) else tuple(both)
