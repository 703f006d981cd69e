"""Loops over cases in tests that should be parameters: a parameter has a name, fails alone and can be run alone.

    python tools/loops.py [PATH ...]

A loop at the top of a test goes through cases when all of these hold:

* it checks something: an assertion, `pytest.raises`, or a call of a function whose name says that it checks;
* its cases are known before the test runs: several different ones, written of constants and names of the module, or
  given by a function of the file;
* each pass stands alone: nothing that one binds or changes is there for the next one or behind the loop, and the target
  is not a mere index into what the test made.

So a loop through the elements of a result, the steps of a simulation, repetitions, a range of more than ten numbers
that one property is swept over, files found on disk or points that depend on a parameter of the test is none. Prints
the loops, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKS = re.compile("assert|raises|warns|check|close|same|refus")
CHANGES = {"append", "extend", "add", "update", "pop", "popleft", "remove", "insert", "clear", "setdefault"}
CHANGES |= {"integers", "permutation", "random"}  # draws of NumPy's generators
SWEEP = 10  # a longer range is one property, swept
OF_ITERABLES = {"enumerate", "list", "product", "range", "reversed", "sorted", "zip"}


@dataclass(frozen=True)
class Loop:
    """A loop over cases.

    Attributes:
        path: its file.
        number: the number of its line.
        test: the test it is in.
        text: its target and what it goes through.
    """

    path: Path
    number: int
    test: str
    text: str


def loops(path: Path) -> Iterator[Loop]:
    """The loops over cases in the tests of a file."""
    tree = ast.parse(path.read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for test in ast.walk(tree):
        if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test_"):
            continue

        local = _bound(test.body) | {argument.arg for argument in (*test.args.args, *test.args.kwonlyargs)}
        tables = {node.targets[0].id: node.value for node in test.body if _is_table(node)}  # type: ignore[attr-defined]
        for i, node in enumerate(test.body):
            if not isinstance(node, ast.For):
                continue
            cases = tables.get(getattr(node.iter, "id", ""), node.iter)
            if _read([cases]) & local:
                continue
            if _checks(node) and _known(cases, functions) and _alone(node, test.body[i + 1 :], local):
                text = f"{ast.unparse(node.target)} in {ast.unparse(node.iter)}"
                yield Loop(path, node.lineno, test.name, text)


def _is_table(node: ast.stmt) -> bool:
    """True for a display that gets a name."""
    is_name = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    return is_name and isinstance(node.value, ast.Tuple | ast.List | ast.Dict)  # type: ignore[attr-defined]


def _nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of some statements."""
    return (node for statement in body for node in ast.walk(statement))


def _names(body: Iterable[ast.AST], context: type[ast.expr_context]) -> set[str]:
    """Names that are loaded or stored."""
    return {node.id for node in _nodes(body) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def _bound(body: Sequence[ast.AST]) -> set[str]:
    """Names that get a value, a function or a class."""
    defined = {node.name for node in _nodes(body) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return _names(body, ast.Store) | defined


def _read(body: Sequence[ast.AST]) -> set[str]:
    """Names that are read, but for those of lambdas and comprehensions themselves."""
    inner: set[str] = set()
    for node in _nodes(body):
        if isinstance(node, ast.Lambda):
            inner |= {argument.arg for argument in node.args.args}
        elif isinstance(node, ast.comprehension):
            inner |= _bound([node.target])
    return _names(body, ast.Load) - inner - set(dir(builtins))


def _called(node: ast.AST) -> str:
    """The last name of what is called, if it is a call."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _checks(loop: ast.For) -> bool:
    """True if there is an assertion, or a call of what checks."""
    return any(isinstance(node, ast.Assert) or CHECKS.search(_called(node)) for node in ast.walk(loop))


def _known(cases: ast.expr, functions: set[str]) -> bool:
    """True if there are several cases, which the module knows."""
    if isinstance(cases, ast.Tuple | ast.List | ast.Set):
        written = {ast.dump(case) for case in cases.elts}
        several = len(written) > 1 or any(isinstance(case, ast.Starred) for case in cases.elts)
        return several and len(written) == len(cases.elts)
    if isinstance(cases, ast.Dict):
        return len(cases.keys) > 1
    if isinstance(cases, ast.Call):
        return _known_call(cases, functions)
    return isinstance(cases, ast.Name | ast.Attribute | ast.Subscript | ast.ListComp | ast.GeneratorExp)


def _known_call(cases: ast.Call, functions: set[str]) -> bool:
    """True for entries of known cases, what combines them, a short range, and a function of the file."""
    called = _called(cases)
    if called in ("items", "keys", "values"):
        assert isinstance(cases.func, ast.Attribute)
        return _known(cases.func.value, functions)
    if called == "range":
        ends = [argument.value for argument in cases.args if isinstance(argument, ast.Constant)]
        return len(ends) == len(cases.args) and len(range(*ends)) <= SWEEP
    if called in OF_ITERABLES:
        return all(_known(argument, functions) for argument in cases.args)
    return called in functions


def _alone(loop: ast.For, after: Sequence[ast.stmt], local: set[str]) -> bool:
    """True if a pass neither needs another one nor is needed behind the loop, and is about its target's own value."""
    bound = _bound([loop])
    needed = bound & (_read(after) - _bound(after))
    is_used = _bound([loop.target]) & _read(loop.body)
    if needed or not is_used:
        return False

    outside = local - bound
    goes_on = _goes_on(loop, bound) or _changes(loop, outside)
    return not goes_on and not _is_index(loop, outside)


def _goes_on(loop: ast.For, bound: set[str]) -> bool:
    """True if a pass reads a name that the loop binds before this pass has bound it."""
    seen = _bound([loop.target])
    for statement in loop.body:
        new = _bound([statement])
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            read = _read([statement.value]) if statement.value is not None else set()
        elif isinstance(statement, ast.AugAssign):
            read = _read([statement]) | _bound([statement.target])
        else:
            read = _read([statement]) - new
        if read & (bound - seen):
            return True
        seen |= new
    return False


def _changes(loop: ast.For, outside: set[str]) -> bool:
    """True if the loop may end early, or a pass changes something from outside of it."""
    for node in _nodes(loop.body):
        if isinstance(node, ast.Break) or _called(node) == "next":
            return True
        if isinstance(node, ast.Call) and _called(node) in CHANGES and _root(node.func) in outside:
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and _root(node) in outside:
            return True
    return False


def _is_index(loop: ast.For, outside: set[str]) -> bool:
    """True if items of what the test made are taken by an integer, which is the target or made of it."""
    made_of_target = _bound([loop.target])
    for statement in loop.body:
        if isinstance(statement, ast.Assign) and _read([statement.value]) & made_of_target:
            made_of_target |= _bound(statement.targets)

    items = (node for node in _nodes(loop.body) if isinstance(node, ast.Subscript) and _root(node) in outside)
    if not any(_names([item.slice], ast.Load) & made_of_target for item in items):
        return False
    if _called(loop.iter) == "enumerate":
        return True
    entries = (node for case in getattr(loop.iter, "elts", []) for node in getattr(case, "elts", [case]))
    return all(isinstance(node, ast.Constant) and isinstance(node.value, int) for node in entries)


def _root(node: ast.AST) -> str:
    """The name that attributes and items are taken of."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return getattr(node, "id", "")


def main() -> int:
    """Print the loops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=["tests"])
    args = parser.parse_args()
    paths = map(Path, args.paths)
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py")))
    found = [loop for path in files for loop in loops(path)]
    for loop in found:
        sys.stdout.write(f"{loop.path}:{loop.number} {loop.test}: {loop.text}\n")
    sys.stdout.write(f"{len(found)} loops over cases\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
