"""All solvers with a name, as a mapping that prints as a table."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import TypeVar

from sgm_sde.grids import rule_name
from sgm_sde.processes.edm import EDMSDE
from sgm_sde.processes.vp import VPSDE
from sgm_sde.schemes.base import ADAPTIVE, REGISTRY, AdaptiveSolver, Solver, canonical

WIDTH = 100  # columns of a terminal
COLUMNS = ("name", "order", "weak", "NFE", "grid (VP / EDM)", "source")

S = TypeVar("S")


class SolverTable(Mapping[str, Solver | AdaptiveSolver]):
    """Named solvers: a mapping from names to solvers, of fixed and of adaptive step size.

    Prints as a table of at most 100 columns, and as HTML in a notebook. `order` is that of the error on the
    probability-flow ODE, `weak` that of the error of the samples' law, `NFE` the network calls per step (var. where the
    solver chooses its steps). The grid is the one that places the steps where none is given (`Solver.default_grid`): on
    VP, whose time is its own, and on EDM, whose time is the noise level. Names of other libraries lead there, too:
    `"dpmpp_2m" in sg.solvers()`.

    Attributes:
        fixed: the solvers on a grid, by name.
        adaptive: the solvers that choose their own steps, by name.

    Examples:
        >>> import sgm_sde as sg
        >>> table = sg.solvers()
        >>> table["ddim"], "dpmpp_2m" in table, "dopri5" in table.adaptive
        (DDIM(eta=0.0), True, True)
    """

    def __init__(self, fixed: Mapping[str, Solver], adaptive: Mapping[str, AdaptiveSolver]) -> None:
        self.fixed = dict(fixed)
        self.adaptive = dict(adaptive)

    def __getitem__(self, name: str) -> Solver | AdaptiveSolver:
        key = canonical(name) if isinstance(name, str) else name
        if key in self.fixed:
            return self.fixed[key]
        if key in self.adaptive:
            return self.adaptive[key]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from self.fixed
        yield from self.adaptive

    def __len__(self) -> int:
        return len(self.fixed) + len(self.adaptive)

    def keys(self) -> KeysView[str]:
        """The names."""
        return dict.fromkeys(self).keys()

    def values(self) -> ValuesView[Solver | AdaptiveSolver]:
        """The solvers."""
        return dict(super().items()).values()

    def items(self) -> ItemsView[str, Solver | AdaptiveSolver]:
        """Names and solvers."""
        return dict(super().items()).items()

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells as text: name, order, weak order, NFE per step, grid, source."""
        return [row(name, solver) for name, solver in self.items()]

    def __str__(self) -> str:
        rows = self.rows()
        columns = zip(COLUMNS[:-1], *(row[:-1] for row in rows), strict=True)
        widths = [max(map(len, column)) for column in columns]
        indent = sum(widths) + 2 * len(widths)
        room = WIDTH - indent  # for the sources, which are wrapped

        rule = "  ".join("-" * width for width in [*widths, room])
        lines = [_line(COLUMNS, widths), rule]
        for row in rows:
            first, *more = textwrap.wrap(row[-1], room)
            lines.append(_line((*row[:-1], first), widths))
            lines += [" " * indent + text for text in more]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table in a notebook, with the classes behind the names."""

        def line(tag: str, cells: tuple[str, ...]) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        rows = [line("td", (*row(name, solver), repr(solver))) for name, solver in self.items()]
        head = line("th", (*COLUMNS, "solver"))
        return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    return "  ".join([*padded, cells[-1]])


def row(name: str, solver: Solver | AdaptiveSolver) -> tuple[str, ...]:
    """The table's cells of one solver as text."""
    if isinstance(solver, AdaptiveSolver):
        return name, "-" if solver.stochastic else str(solver.order), "-", "var.", "-", solver.source
    weak = "-" if solver.weak_order is None else str(solver.weak_order)
    return name, str(solver.order), weak, str(solver.nfe_per_step), _grids(solver), solver.source


def _grids(solver: Solver) -> str:
    """The names of the solver's grids on VP and on EDM, one where they are the same."""
    found = dict.fromkeys(rule_name(solver.default_grid(sde)) for sde in (VPSDE(), EDMSDE()))
    return " / ".join(found)


def solvers() -> SolverTable:
    """All named solvers: a mapping from names to solvers that prints as a table.

    Examples:
        >>> import sgm_sde as sg
        >>> table = sg.solvers()
        >>> "dpm++2m" in table, table["dpm++2m"].order, len(table) == len(table.fixed) + len(table.adaptive)
        (True, 2, True)
    """
    return SolverTable(_made(REGISTRY), _made(ADAPTIVE))


def _made(known: Mapping[str, Callable[[], S]]) -> dict[str, S]:
    return {name: make() for name, make in known.items()}
