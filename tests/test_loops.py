"""Cases of tests are parameters: `tools/loops.py` finds loops over them, and finds none in the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import ROOT, tool

TOOL = tool("loops")

TEMPLATE = """
TABLE = {{"a": 1, "b": 2}}


def cases():
    yield from (1, 2)


def test_something(sde):
    x = f()
    rng = g()
    total = 0
    table = [(1, "one"), (2, "two")]
    for {target} in {cases}:
        {body}
"""


def found(folder: Path, target: str, cases: str, body: str) -> list[str]:
    """The loops that the tool finds in a test of one loop."""
    path = folder / "test_made.py"
    path.write_text(TEMPLATE.format(target=target, cases=cases, body=body))
    return [loop.text for loop in TOOL["loops"](path)]


def test_cases_are_parameters() -> None:
    """Everywhere: in all files of tests."""
    loops = [loop for path in sorted((ROOT / "tests").rglob("test_*.py")) for loop in TOOL["loops"](path)]
    assert not loops, "\n".join(f"{loop.path}:{loop.number} {loop.test}: {loop.text}" for loop in loops)


@pytest.mark.parametrize(
    "target, cases, body",
    [
        ("k", "(1, 2)", "assert k"),
        ("k", "range(3)", "assert k"),
        ("k", "TABLE.values()", "check(k)"),
        ("a, b", "zip((1, 2), (3, 4))", "assert a < b"),
        ("a, b", "table", "assert a, b"),
        ("k", "cases()", "assert x == k"),
        ("k", "(1, 2)", "y = x + k; assert y"),
    ],
)
def test_a_loop_over_cases_is_found(tmp_path: Path, target: str, cases: str, body: str) -> None:
    """Displays, registries, ranges, tables with a name, functions of the file."""
    assert len(found(tmp_path, target, cases, body)) == 1


@pytest.mark.parametrize(
    "target, cases, body",
    [
        ("k", "(1, 2)", "print(k)"),  # checks nothing
        ("k", "x", "assert k"),  # elements of a result
        ("k", "range(3)", "assert x[k]"),
        ("k", "(0, 5)", "row = slice(k, k + 1); assert x[row]"),
        ("_", "range(3)", "assert x"),  # repetitions
        ("k", "(1, 2, 1)", "assert f(k)"),  # in turn
        ("k", "(1, 2)", "total += k; assert total"),  # steps
        ("k", "(1, 2)", "x.append(k); assert x"),
        ("k", "(1, 2)", "assert rng.integers(k)"),
        ("k", "range(40)", "assert f(k)"),  # a sweep
        ("k", "(1, sde.T)", "assert f(k)"),  # points of a parameter's own
        ("path", "Path('.').iterdir()", "assert path"),  # files
    ],
)
def test_other_loops_are_none(tmp_path: Path, target: str, cases: str, body: str) -> None:
    """What is not known before the test runs, and what does not stand alone."""
    assert found(tmp_path, target, cases, body) == []
