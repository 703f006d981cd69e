"""Density of the code: expression nodes, depth and blank lines of its longer functions, and its hidden dispatch.

    python tools/density.py [PATH ...] [--rows 25] [--least 15]

A function counts if its body spans `--least` lines, the docstring left out; those inside another are part of it. Of
these bodies, per line of code (neither blank nor a comment): nodes of expressions, and the nesting of the deepest
expression; and the share of blank lines in all lines. Hidden dispatch are tests of what a value happens to be or to
have, `hasattr(`, `getattr(x, name, default)` and `type(x) is`, counted in all code. Prints the densest functions, then
each room of the package and the total, where long functions are one text: the sum of nodes over the sum of lines.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

LEAST = 15  # lines from which a body is long

Function = ast.FunctionDef | ast.AsyncFunctionDef
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Body:
    """Counts of one function's body, or of several together.

    Attributes:
        name: where it is.
        lines: lines that it spans.
        code: those of code.
        blank: those without anything.
        nodes: nodes of expressions.
        depth: nesting of the deepest expression that begins in each line of code, summed.
    """

    name: str
    lines: int
    code: int
    blank: int
    nodes: int
    depth: int

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of the table."""
        code = max(self.code, 1)
        blank = 100 * self.blank / max(self.lines, 1)
        return self.name, str(self.lines), f"{self.nodes / code:.2f}", f"{self.depth / code:.2f}", f"{blank:.1f}"


def long_bodies(path: Path, least: int = LEAST) -> Iterator[Body]:
    """Bodies of at least so many lines in a file."""
    text = path.read_text()
    lines = text.splitlines()
    code = set(_lines_of_code(text))
    for name, function in _functions(ast.parse(text)):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        if not body:
            continue

        first, last = body[0].lineno, body[-1].end_lineno
        assert last is not None
        span = range(first, last + 1)
        if len(span) < least:
            continue

        yield Body(
            f"{path}:{function.lineno} {name}",
            lines=len(span),
            code=sum(number in code for number in span),
            blank=sum(not lines[number - 1].strip() for number in span),
            nodes=sum(isinstance(node, ast.expr) for statement in body for node in ast.walk(statement)),
            depth=sum(_deepest(body).values()),
        )


def together(name: str, bodies: Sequence[Body]) -> Body:
    """Several bodies as one text."""
    return Body(
        name,
        lines=sum(body.lines for body in bodies),
        code=sum(body.code for body in bodies),
        blank=sum(body.blank for body in bodies),
        nodes=sum(body.nodes for body in bodies),
        depth=sum(body.depth for body in bodies),
    )


def hidden_dispatch(path: Path) -> int:
    """Number of tests of what a value happens to be or to have."""
    return sum(_is_hidden(node) for node in ast.walk(ast.parse(path.read_text())))


def _is_hidden(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
    if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.Is | ast.IsNot | ast.Eq | ast.NotEq):
        return False
    left = node.left
    return isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id == "type"


def _functions(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, Function]]:
    """Functions and methods by their names, without those inside another function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield scope + node.name, node
        else:
            yield from _functions(node, f"{scope}{node.name}." if isinstance(node, ast.ClassDef) else scope)


def _lines_of_code(text: str) -> Iterator[int]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            yield from range(token.start[0], token.end[0] + 1)


def _deepest(body: Iterable[ast.AST]) -> dict[int, int]:
    """Line numbers, and the nesting of the deepest expression that begins there."""
    found: dict[int, int] = {}

    def visit(node: ast.AST, depth: int) -> None:
        if isinstance(node, ast.expr):
            depth += 1
            found[node.lineno] = max(depth, found.get(node.lineno, 0))
        for child in ast.iter_child_nodes(node):
            visit(child, 0 if isinstance(child, ast.stmt) else depth)

    for statement in body:
        visit(statement, 0)
    return found


def _room(path: Path) -> str:
    """Folder of a file in the package, or the file itself where it lies at the top."""
    inside = path.parts[1:]
    return inside[0] if inside else str(path)


def report(paths: Sequence[Path], rows: int, least: int) -> Iterator[str]:
    """Lines of the tables."""
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))
    bodies = {file: list(long_bodies(file, least)) for file in files}
    found = [body for some in bodies.values() for body in some]

    header = ("lines", "nodes/line", "depth/line", "blank %")
    yield _cells("densest functions", *header)
    for body in sorted(found, key=lambda body: -body.nodes / body.code)[:rows]:
        yield _cells(*body.row)

    yield ""
    yield _cells("long functions of", *header, "hidden dispatch")
    for room, members in groupby(files, key=_room):
        some = list(members)
        counts = together(room, [body for file in some for body in bodies[file]])
        hidden = sum(map(hidden_dispatch, some))
        if counts.lines or hidden:
            yield _cells(*counts.row, str(hidden))
    yield _cells(*together("total", found).row, str(sum(map(hidden_dispatch, files))))


def _cells(name: str, *numbers: str) -> str:
    return f"{name:<84}" + "".join(f"{number:>{max(len(number), 10) + 2}}" for number in numbers)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[Path("sgm_sde")])
    parser.add_argument("--rows", type=int, default=25, help="how many of the densest functions")
    parser.add_argument("--least", type=int, default=LEAST, help="lines from which a function counts")
    args = parser.parse_args()
    sys.stdout.write("\n".join(report(args.paths, args.rows, args.least)) + "\n")


if __name__ == "__main__":
    main()
