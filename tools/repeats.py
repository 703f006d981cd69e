"""Repeats in the code: runs of six and more statements that stand in two places, but for names and values.

    python tools/repeats.py [PATH ...] [--least 6]

Compared are the lines of bodies of different functions, without their docstrings, blank lines and comments, with
names, numbers and texts replaced by what they are. Signatures, fields of dataclasses and their values, and bodies of
one statement do not count: they say what there is, and types are written out where they hold. Prints the pairs, longest
first, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import ast
import io
import keyword
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LEAST = 6  # lines from which a run is a repeat
PATHS = ("sgm_sde", "benchmarks", "tools", "examples")
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}

Function = ast.FunctionDef | ast.AsyncFunctionDef
FIELDS = ("name = name ,", "name = name . name ,")  # fields that are given by their names, one a line
COMPOUND = (ast.For, ast.While, ast.If, ast.With, ast.Try)


@dataclass(frozen=True)
class Line:
    """A line of a function's body.

    Attributes:
        path: its file.
        number: its number there.
        shape: its tokens, names and values by their kind.
    """

    path: Path
    number: int
    shape: str


def bodies(path: Path) -> Iterator[list[Line]]:
    """The lines of each function's body in a file, those of functions inside it included."""
    text = path.read_text()
    shapes = _shapes(text)
    for function in _outermost(ast.parse(text)):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        if not body or (len(body) == 1 and not isinstance(body[0], COMPOUND)):
            continue

        last = body[-1].end_lineno
        assert last is not None
        span = range(body[0].lineno, last + 1)
        yield [Line(path, number, shapes[number]) for number in span if number in shapes]


def repeats(paths: Sequence[Path], least: int = LEAST) -> list[tuple[int, Line, Line]]:
    """Pairs of places with as many lines of the same shapes from there on, the longest first."""
    known = [body for path in paths for body in bodies(path)]
    places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for b, body in enumerate(known):
        for i in range(len(body) - least + 1):
            places[tuple(line.shape for line in body[i : i + least])].append((b, i))

    found = []
    for several in places.values():
        for n, first in enumerate(several):
            for second in several[n + 1 :]:
                if first[0] != second[0] and not _goes_on(known, first, second):
                    n_lines = _length(known, first, second)
                    b, i = first
                    if sum(line.shape not in FIELDS for line in known[b][i : i + n_lines]) >= least:
                        found.append((n_lines, known[b][i], known[second[0]][second[1]]))
    return sorted(found, key=lambda pair: (-pair[0], str(pair[1].path), pair[1].number))


def _goes_on(known: list[list[Line]], first: tuple[int, int], second: tuple[int, int]) -> bool:
    """True if the lines before are the same, too, so that the run is known by an earlier place."""
    (a, i), (b, j) = first, second
    return i > 0 and j > 0 and known[a][i - 1].shape == known[b][j - 1].shape


def _length(known: list[list[Line]], first: tuple[int, int], second: tuple[int, int]) -> int:
    (a, i), (b, j) = first, second
    n = 0
    while i + n < len(known[a]) and j + n < len(known[b]) and known[a][i + n].shape == known[b][j + n].shape:
        n += 1
    return n


def _shapes(text: str) -> dict[int, str]:
    """The shape of each line that has more than brackets and commas."""
    tokens: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in LAYOUT:
            continue
        shape = token.string
        if token.type == tokenize.NAME and not keyword.iskeyword(shape):
            shape = "name"
        elif token.type in (tokenize.NUMBER, tokenize.STRING):
            shape = tokenize.tok_name[token.type]
        tokens[token.start[0]].append(shape)
    return {number: " ".join(row) for number, row in tokens.items() if any(shape not in "()[]{}," for shape in row)}


def _outermost(tree: ast.AST) -> Iterator[Function]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node
        else:
            yield from _outermost(node)


def files(paths: Sequence[str | Path]) -> list[Path]:
    """The Python files below some paths."""
    return sorted(file for path in map(Path, paths) for file in ([path] if path.is_file() else path.rglob("*.py")))


def main() -> int:
    """Print the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=list(PATHS))
    parser.add_argument("--least", type=int, default=LEAST, help="lines from which a run counts (%(default)s)")
    args = parser.parse_args()
    found = repeats(files(args.paths), args.least)
    for n, first, second in found:
        sys.stdout.write(f"{n} lines: {first.path}:{first.number} ~ {second.path}:{second.number}\n")
    sys.stdout.write(f"{len(found)} repeats of {args.least} lines and more\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
