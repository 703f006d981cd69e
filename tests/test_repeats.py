"""No logic stands in two places: `tools/repeats.py` finds runs of six lines, and finds none in the package."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import ROOT, tool

TOOL = tool("repeats")

COPIED = '''
def one(x, y):
    """The sum of squares."""
    total = 0.0
    for a in x:
        # Each is squared.
        square = a * a
        total = total + square
    total = total + y
    return total


def other(values, last):
    found = 0.0
    for v in values:
        product = v * v
        found = found + product

    found = found + last
    return found
'''


def test_the_package_repeats_nothing() -> None:
    """Outside tests: benchmarks, tools and examples, too."""
    found = TOOL["repeats"](TOOL["files"]([ROOT / path for path in TOOL["PATHS"]]))
    assert not found, "\n".join(f"{a.path}:{a.number} ~ {b.path}:{b.number}, {n} lines" for n, a, b in found)


def test_a_copy_under_other_names_is_found(tmp_path: Path) -> None:
    """Comments, blank lines and docstrings make no difference, one more or less of a statement does."""
    (tmp_path / "a.py").write_text(COPIED)
    ((lines, first, second),) = TOOL["repeats"](TOOL["files"]([tmp_path]))
    assert (lines, first.number, second.number) == (6, 4, 14)

    (tmp_path / "a.py").write_text(COPIED.replace("    product = v * v\n", "    product = v * v\n        print(v)\n"))
    assert TOOL["repeats"](TOOL["files"]([tmp_path])) == []
