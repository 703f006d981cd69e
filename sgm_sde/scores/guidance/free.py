"""Guidance without a classifier: by the prediction without a condition, and by a weaker network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sgm_sde._utils.checks import annotate, described, instance_of, number
from sgm_sde._utils.tree import Arguments, Conditions, Path, each_leaf, map_leaves, shown
from sgm_sde.grids import Grid
from sgm_sde.processes.linear import LinearSDE
from sgm_sde.scores.conditions import (
    ROWS,
    Numbers,
    PerSample,
    Rows,
    Shared,
    bare,
    count_of,
    each_rows,
    has_rows_of_samples,
    is_leaf,
    joined,
    map_rows,
    named_in,
    nullified,
    resolve,
    rows_for,
    with_marks_inside,
)
from sgm_sde.scores.guidance.base import Extrapolation, Interval, Scale
from sgm_sde.scores.score import Score


class ClassifierFree(Extrapolation):
    r"""Classifier-free guidance: $D = D_\emptyset + w\,(D_c - D_\emptyset)$.

    Both branches go through the network as one batch of 2B rows. The condition c is what the call brings
    (`model_kwargs={"y": labels}`); the null branch gets the same arguments with those of `null` in their place. Other
    arguments of one row per sample are marked, `sg.PerSample(mask)`; one that has as many rows as there are samples and
    is the same for all is `sg.Shared(table)`.

    Nested conditions are named as they are nested: `null={"added_cond_kwargs": {"text_embeds": 0.0}}`; one number
    stands for all tensors of a sequence. Where None stands for no condition, the branches are two calls of B rows.

    A negative condition is a null condition that means something: `null={"y": unwanted}`. One of another length than
    the condition, such as a negative prompt, is `negative={"tokens": unwanted, "mask": its_mask}`; the branches are
    then two calls of B rows.

    Args:
        score: a score whose network takes a condition.
        scale: w; 1 is plain conditional sampling and 0 unconditional, B rows each.
        null: what stands for no condition, by the name of the argument, nested or not: a number, a tensor that expands
            to the condition's shape, `PerSample(unwanted)` with one row per sample, or None; a text, or a list of B,
            for a list of B texts. `{"y": net.NULL_LABEL}` if not given and the network has that attribute.
        negative: arguments of the other branch, in the place of those of the call, instead of `null`: tensors of B
            rows, or of one row that all samples share; what is in `Shared(...)`, and other values, as they are.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance; plain
            conditional sampling elsewhere. All if not given. The guided score then jumps in time, which named
            multistep solvers carry on; the default starts anew there.

    Raises:
        ValueError: for a network without a null label when `null` is not given or empty, and a score that is guided by
            the same condition already; at a call, if a condition of `null` is missing, no tensor, not of one row per
            sample, or of a shape that the null condition does not expand to, or if nothing says whether another
            argument goes with the samples.
        TypeError: for a `null` or `negative` that does not map names to conditions.

    Source: Ho & Salimans, 2022, arXiv:2207.12598; Kynkaanniemi et al., 2024, arXiv:2404.07724 (interval); Liu et al.,
    2022, arXiv:2206.01714 (negative conditions).

    Examples:
        >>> import sgm_sde as sg
        >>> net = lambda x, sigma, y: 0 * x + 0.1 * y[:, None]  # data at one point for each label
        >>> score = ClassifierFree(sg.from_denoiser(net, sg.EDMSDE()), scale=3.0, null={"y": 10})
        >>> y = torch.tensor([3, 7])
        >>> res = sg.sample(score, sg.EDMSDE(), (2, 1), nfe=4, seed=0, model_kwargs={"y": y})
        >>> res.nfe, res.network_evals
        (4, 16)
    """

    def __init__(
        self,
        score: Score,
        scale: Scale,
        null: Conditions | None = None,
        *,
        negative: Conditions | None = None,
        interval: Interval | None = None,
    ) -> None:
        super().__init__([score], scale, interval)
        if negative is not None:
            if null is not None:
                raise ValueError("give null= or negative=, not both")
            _require_named(negative)
        self.negative = None if negative is None else with_marks_inside(negative)

        if null is None and negative is None and score.null_label is not None:
            null = {"y": score.null_label}
        if null is not None and not isinstance(null, Mapping):
            raise TypeError(f"null must map names of conditions to what stands for none, got {described(null)}")

        self.null = with_marks_inside(null or {})
        self._named = named_in(self.null)
        if not self._named and negative is None:
            raise ValueError(
                f"{score!r} declares no null label (NULL_LABEL): give what stands for no condition, such as "
                f"null={{'y': 10}}, got null={null}; a network that was trained without one takes Classifier guidance"
            )
        if interval is None:
            _require_guided_once(score, self._named)
        self._absent = any(leaf is None for _, leaf in each_leaf(self.null))

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row per sample: those of `null`, and those that the score knows."""
        own = frozenset({(ROWS,)} if has_rows_of_samples([self.null, self.negative]) else ())
        return super().conditions | self._named | own

    def _predictions(self, x: Tensor, t: Tensor, kwargs: Arguments, main: bool, reference: bool) -> list[Tensor]:
        try:
            return self._branches(x, t, kwargs, main, reference)
        except (IndexError, TypeError) as error:
            if reference and self.negative is None:
                annotate(error, f"guidance gives the network null={self.null} for no condition, in rows of their own")
            raise

    def _branches(self, x: Tensor, t: Tensor, kwargs: Arguments, main: bool, reference: bool) -> list[Tensor]:
        score = self.parts[0]
        batch = len(x)
        numbers = Numbers.of(kwargs)
        if self.negative is None:
            without = nullified(kwargs, self.null, batch, numbers)
        else:
            without = self._with_negative(kwargs, batch, numbers)
        if not (main and reference):
            return [score.output(x, t, **(kwargs if main else without))]
        if self._absent or self.negative is not None:  # no row of a batch can be None
            with_condition = score.output(x, t, **kwargs)
            without_it = score.output(x, t, **without)
            return [with_condition, without_it]

        null = each_rows(bare(without))

        def in_both(path: Path, rows: Rows) -> Rows:
            return joined(rows, null.get(path, rows))

        resolved = resolve(kwargs, batch, self.conditions, called=2 * batch)
        both = map_rows(in_both, resolved)
        states = torch.cat([x, x])
        times = torch.cat([t, t])
        out = score.output(states, times, **both)
        return list(out.chunk(2))

    def _with_negative(self, kwargs: Arguments, batch: int, numbers: Numbers | None) -> Arguments:
        """The arguments with the negative ones in their place."""
        assert self.negative is not None
        missing = sorted(self.negative.keys() - kwargs.keys())
        if missing:
            raise ValueError(
                f"negative names {missing[0]!r}, which the call does not have: pass it in model_kwargs, "
                f"got {sorted(kwargs.keys() - {ROWS})}"
            )

        def rows(path: Path, leaf: object) -> object:
            return _negative_rows(path, leaf, batch, numbers)

        negative = map_leaves(rows, self.negative, is_leaf)
        return kwargs | negative


def _require_named(negative: object) -> None:
    """Raise TypeError unless negative arguments are given by their names."""
    named = isinstance(negative, Mapping) and all(isinstance(key, str) for key in negative)
    if not named or not negative:
        raise TypeError(f"negative must map names of arguments to values, got {described(negative)}")


def _require_guided_once(score: Score, named: frozenset[Path]) -> None:
    """Raise ValueError for a score that these conditions guide at all levels already, itself or in its main part."""
    if isinstance(score, ClassifierFree) and score.interval is None and (twice := score._named & named):
        raise ValueError(
            f"the score is guided by {shown(min(twice))!r} already, at scale {described(score.scale)}: guide the score "
            f"inside once, at the scale wanted"
        )
    for part in score.parts[:1]:
        _require_guided_once(part, named)


def _has_row_of_each(value: object, numbers: Numbers | None, batch: int) -> bool:
    """True for a list, not marked, with an entry for each of the run's samples."""
    total = batch if numbers is None else numbers.total
    return isinstance(value, list) and count_of(value) == total


def _negative_rows(path: Path, value: object, batch: int, numbers: Numbers | None) -> object:
    """A negative argument for a batch: its one row for all, or those of the samples of some numbers."""
    tensor = bare(value)
    name = f"the negative {shown(path)!r}"
    if isinstance(tensor, list) and (isinstance(value, PerSample) or _has_row_of_each(value, numbers, batch)):
        return rows_for(name, tensor, numbers, batch)
    if isinstance(value, Shared) or not isinstance(tensor, Tensor) or tensor.ndim == 0:
        return tensor
    if len(tensor) == 1 and not isinstance(value, PerSample):
        return tensor.expand(batch, *tensor.shape[1:])
    return rows_for(name, tensor, numbers, batch)


class Auto(Extrapolation):
    r"""Autoguidance: $D = D_w + w\,(D - D_w)$, away from a weaker network of the same task.

    Args:
        score: the score.
        weak: that of a smaller or less trained network, on the same process; of any prediction. It gets the same
            arguments, and its rows count like the other's.
        scale: w; 1 is the score alone, 0 the weak one.
        interval: noise levels sigma / alpha, above the first and up to the second, at which there is guidance.

    Raises:
        ValueError: for scores on different processes, or options out of range.

    Source: Karras et al., 2024, arXiv:2406.02507.

    Examples:
        >>> import sgm_sde as sg
        >>> sde = sg.EDMSDE()
        >>> good, weak = (sg.oracles.Gaussian(torch.zeros(1), v).score(sde) for v in (1.0, 2.0))
        >>> Auto(good, weak, scale=2.0).denoised(torch.ones(1, 1), 1.0)
        tensor([[0.3333]])
    """

    def __init__(self, score: Score, weak: Score, scale: Scale, *, interval: Interval | None = None) -> None:
        super().__init__([score, weak], scale, interval)

    def _predictions(self, x: Tensor, t: Tensor, kwargs: Arguments, main: bool, reference: bool) -> list[Tensor]:
        wanted = [part for part, asked in zip(self.parts, (main, reference), strict=True) if asked]
        return [part.predict(self.prediction, x, t, **kwargs) for part in wanted]


def cfg_plus_plus(scale: float, sde: LinearSDE, grid: Grid | Sequence[float]) -> Callable[[Tensor], Tensor]:
    r"""The scale with which classifier-free guidance is CFG++ in the steps of DDIM on a grid.

    CFG++ interpolates the data estimates with a $\lambda$ in [0, 1] and renoises with the unconditional noise,

    $$ x' = \alpha' D_\lambda + \sigma' \epsilon_\emptyset, \qquad
       D_\lambda = D_\emptyset + \lambda\,(D_c - D_\emptyset), \qquad
       \epsilon_\emptyset = (x - \alpha D_\emptyset)/\sigma $$

    With noise levels $s = \sigma/\alpha$, that is a DDIM step from s to s' of guidance at the scale
    $w = \lambda / (1 - s'/s)$, and $\lambda$ in the last, denoising call. Between the grid's levels w is that of the
    level above.

    Args:
        scale: $\lambda$.
        sde: the process.
        grid: the grid of the run, `Grid` or times, whose last is the denoising call's.

    Returns:
        a function of the noise level, for `ClassifierFree(score, scale=...)` and `solver="ddim"`.

    Raises:
        ValueError: for a scale outside [0, 1].

    Source: Chung et al., 2024, arXiv:2406.08070.

    Examples:
        >>> import sgm_sde as sg
        >>> cfg_plus_plus(0.6, sg.EDMSDE(), [8.0, 4.0, 1.0])(torch.tensor([8.0, 4.0, 1.0]))
        tensor([1.2000, 0.8000, 0.6000])
    """
    scale = number("scale", scale, least=0, most=1)
    instance_of("sde", sde, LinearSDE, "a LinearSDE")
    times = Grid.of(grid).times
    levels = [math.exp(-node.lam) for node in sde.nodes(times)]
    values = [scale / (1 - after / before) for before, after in pairwise(levels)] + [scale]
    # Levels of a run are rounded in its precision: boundaries lie half-way between two.
    edges = [math.sqrt(before * after) for before, after in pairwise(levels)]

    def scale_at(level: Tensor) -> Tensor:
        rising = torch.tensor(edges[::-1], dtype=torch.float64, device=level.device)
        table = torch.tensor(values[::-1], dtype=torch.float64, device=level.device)
        return table[torch.searchsorted(rising, level.double())].to(level.dtype)

    return scale_at
