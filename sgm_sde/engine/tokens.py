r"""Programs of tokens with times of their own, as one program with a coefficient for each token.

Each token (frame, pixel) has a column of times along common rows, and waits where its column stands still. A solver is
compiled for every column without its pauses; then the columns' stages are put side by side. A token's state or
evaluation at one of its nodes is that of the last row that it spends there, so that the network has seen the latest of
the others.

A token's noises are those of a run on its own column, in the order in which that draws them. A token that is late needs
a draw later than others do. It is made again then, and not kept: noise is a function of the number of its draw. So the
memory of a run does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from sgm_sde.engine.matrix import Diagonal
from sgm_sde.engine.program import Program, Stage, Terms

NO_DRAW = -1


@dataclass(frozen=True)
class Column:
    """Times of some tokens that move, and the program on them without pauses.

    Attributes:
        tokens: which have them, a mask (*).
        program: the program.
        asked: its times where the network is first asked at or after each node, by the stage of the table of all.
    """

    tokens: np.ndarray
    program: Program
    asked: Mapping[int, float]


@dataclass(frozen=True)
class TokenProgram:
    """A program of tokens with times of their own.

    Attributes:
        program: the table, with a `Diagonal` wherever coefficients differ; the time of a stage is its largest.
        times: of each stage and token, (n, *).
        asked: whether the program uses the evaluation of each stage and token, (n, *).
        draws: of each of the program's noises, in their order, the number of each token's draw (*), -1 for none.
        columns: the distinct columns of tokens that move.
    """

    program: Program
    times: np.ndarray
    asked: np.ndarray
    draws: tuple[np.ndarray, ...]
    columns: tuple[Column, ...]


def align(times: np.ndarray, compile_on: Callable[[tuple[float, ...]], Program]) -> TokenProgram:
    """The program of a solver on columns of times.

    Args:
        times: not increasing along the rows, (n + 1, *); in every row some token moves on.
        compile_on: the solver's program on a grid.
    """
    shape = times.shape[1:]
    distinct, column_of = np.unique(times.reshape(len(times), -1), axis=1, return_inverse=True)
    tokens = column_of.reshape(-1)
    tracks = [_Track(tuple(column), compile_on) for column in distinct.T.tolist()]
    table, starts = _together(tracks, len(times) - 1)

    def of_tokens(values: np.ndarray) -> np.ndarray:
        """Values of the columns (..., u) as those of the tokens (..., *)."""
        return values[..., tokens].reshape(*values.shape[:-1], *shape)

    stages, draws = _stages(table, set(starts), of_tokens)
    columns = _columns(tracks, tokens.reshape(shape))
    program = replace(columns[0].program, stages=tuple(stages))
    return TokenProgram(program, of_tokens(table.times), of_tokens(table.asked), tuple(draws), columns)


def _columns(tracks: Sequence[_Track], column_of: np.ndarray) -> tuple[Column, ...]:
    """The columns of tokens that move, of which the numbers are given, (*)."""
    return tuple(
        Column(column_of == u, track.program, track.asked)
        for u, track in enumerate(tracks)
        if track.program is not None
    )


def _together(tracks: Sequence[_Track], n_rows: int) -> tuple[_Table, list[int]]:
    """The table of all columns, and the stage that each row of times starts at."""
    lengths = [max(track.length(m) for track in tracks) for m in range(n_rows)]
    starts = [0, *accumulate(lengths)]
    table = _Table(starts[-1] + 1, len(tracks))
    for u, track in enumerate(tracks):
        track.write(table, u, starts)
    return table, starts


def _stages(
    table: _Table, nodes: Container[int], of_tokens: Callable[[np.ndarray], np.ndarray]
) -> tuple[list[Stage], list[np.ndarray]]:
    """The stages of a table, and the numbers of the tokens' draws for each of their noises."""
    stages = []
    draws: list[np.ndarray] = []
    for k, terms in enumerate(table.terms):
        states = _diagonals(terms["states"], of_tokens)
        evals = _diagonals(terms["evals"], of_tokens)
        coefficients = dict(enumerate((c for _, c in table.noises[k]), len(draws)))
        noises = _diagonals(coefficients, of_tokens)
        draws += [of_tokens(draw) for draw, _ in table.noises[k]]

        t = float(table.times[k].max())
        asked = bool(table.asked[k].any())
        stages.append(Stage(t, states, evals, noises, evaluate=asked, node=k in nodes))
    return stages, draws


def _diagonals(terms: Mapping[int, np.ndarray], of_tokens: Callable[[np.ndarray], np.ndarray]) -> Terms:
    """Terms with a coefficient for each token, in the order of their numbers."""
    return tuple((j, Diagonal.of(of_tokens(c))) for j, c in sorted(terms.items()))


class _Table:
    """Coefficients by stage, kind and number, one for each distinct column (u,)."""

    def __init__(self, stages: int, columns: int) -> None:
        self.columns = columns
        self.terms: list[dict[str, dict[int, np.ndarray]]] = [{"states": {}, "evals": {}} for _ in range(stages)]
        self.noises: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(stages)]  # numbers, coefficients
        self.times = np.zeros((stages, columns))
        self.asked = np.zeros((stages, columns), dtype=bool)

    def draw(self, k: int, u: int, place: int, number: int, c: float) -> None:
        """Add a noise at stage k for column u: which of its noises there, and the number of the draw."""
        if place == len(self.noises[k]):
            self.noises[k].append((np.full(self.columns, NO_DRAW), np.zeros(self.columns)))
        numbers, coefficients = self.noises[k][place]
        numbers[u] = number
        coefficients[u] = c

    def add(self, k: int, kind: str, j: int, u: int, c: float) -> None:
        self.terms[k][kind].setdefault(j, np.zeros(self.columns))[u] += c


class _Track:
    """A column of times, and the program on it without pauses; none where it never moves.

    Attributes:
        asked: the times where the program first asks at or after each node, by stages of the table it is written to.
    """

    def __init__(self, column: tuple[float, ...], compile_on: Callable[[tuple[float, ...]], Program]) -> None:
        self.column = column
        grid = tuple(dict.fromkeys(column))
        self.program = compile_on(grid) if len(grid) > 1 else None
        self._nodes: list[int] = []
        self._draw: dict[int, int] = {}  # its noises in the order in which they are drawn
        if self.program is not None:
            self._nodes = [k for k, stage in enumerate(self.program.stages) if stage.node]
            for stage in self.program.stages:
                for m, _ in stage.noises:
                    self._draw.setdefault(m, len(self._draw))
        self.asked: dict[int, float] = {}
        self._step = [0, *accumulate(int(b < a) for a, b in pairwise(column))]

    def moves(self, m: int) -> bool:
        """True if it moves on after row m."""
        return self._step[m + 1] > self._step[m]

    def length(self, m: int) -> int:
        """Number of its stages between row m and the next."""
        i = self._step[m]
        return self._nodes[i + 1] - self._nodes[i] if self.moves(m) else 0

    def write(self, table: _Table, u: int, starts: list[int]) -> None:
        """Write its coefficients into column u of a table."""
        place: dict[int, int] = {}  # of its stages in the table
        table.times[0, u] = self.column[0]
        for m, (start, end) in enumerate(pairwise(starts)):
            if not self.moves(m):
                self._wait(table, u, range(start + 1, end + 1))
                continue

            first = self._nodes[self._step[m]]
            length = self.length(m)
            for b in range(length):
                place[first + b] = start + b
                self._write_stage(table, u, first + b, place)
            self._wait(table, u, range(start + length, end))  # for tokens of more stages

            last = first + length
            place[last] = end
            self._write_terms(table, u, last, place)
            table.times[end, u] = self.column[m + 1]

        if self.program is not None:
            asked = zip(self.program.asked_stages, self.program.asked_times, strict=True)
            self.asked = {place[k]: t for k, t in asked}

    def _wait(self, table: _Table, u: int, stages: range) -> None:
        """Leave the state of column u as it is through some stages."""
        for k in stages:
            table.add(k, "states", k - 1, u, 1.0)
            table.times[k, u] = table.times[k - 1, u]

    def _write_stage(self, table: _Table, u: int, k: int, place: dict[int, int]) -> None:
        stage = self._stages[k]
        if not stage.node:
            self._write_terms(table, u, k, place)
            table.times[place[k], u] = stage.t
        table.asked[place[k], u] = stage.evaluate

    def _write_terms(self, table: _Table, u: int, k: int, place: dict[int, int]) -> None:
        stage = self._stages[k]
        for j, c in stage.states:
            table.add(place[k], "states", place[j], u, c)
        for j, c in stage.evals:
            table.add(place[k], "evals", place[j], u, c)
        for i, (m, c) in enumerate(stage.noises):
            table.draw(place[k], u, i, self._draw[m], c)

    @property
    def _stages(self) -> tuple[Any, ...]:
        assert self.program is not None
        return self.program.stages
