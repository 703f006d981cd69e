"""Mutation check: change the package one operator or constant at a time and see whether the tests notice.

    python tools/mutation.py --only sgm_sde/engine/phi.py sgm_sde/processes/vp.py:120
    python tools/mutation.py --sample 200 --seed 0 --report out/mutation.md

The parent imports what the tests need, but not the package. For each mutant it forks a child, which imports the
package with one module's source changed and runs the tests that execute the changed function, the fastest first,
until one fails (killed), none is left (survived) or one takes too long (timeout). Which test executes what is
recorded in a first run on the unchanged package, which must be green. For code outside functions the tests are those
that execute any function of the file or, where none does, of a file that imports it. A mutant gets the fastest of its
tests up to a budget of seconds; `--budget inf` runs them all.

`equivalent.json` lists the mutants that no test can tell from the original: objects with `scope` (the class and
function, "Class.method"; empty outside of both), `code` (the changed expression or one around it, where `_` stands for
any expression), `kind`, `reason` and, where needed, `file` for a scope that several have and `nth` (from 0) for one of
several alike in the code. So an entry stands however its lines are broken and wherever its function goes. Of the
mutants in matching code the innermost is meant; an entry that means none, or two, or explains no survivor is an error.

Out of reach: code that tests run in a subprocess, and tests marked slow. Leave the files alone while it runs: children
read them afresh. The exit status is 1 if a mutant survived unexplained or the list is wrong.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib
import json
import os
import random
import re
import resource
import signal
import statistics
import sys
import time
import traceback
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from inspect import CO_OPTIMIZED
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sgm_sde"
MUTATED = ("processes", "engine", "schemes")
EQUIVALENT = Path(__file__).with_name("equivalent.json")
FOUND = ROOT / "out" / "mutation-baseline"  # what the unchanged runs found
MEMORY = 4 << 30  # bytes of data a child may hold

REQUIRED = {"scope", "code", "kind", "reason"}  # of an entry
Scope = tuple[str, int]  # (file, first line of a function), or (file, 0) for the module
Plan = list[tuple["Target", dict[str, float]]]  # by test file, the tests to run and their seconds
T = TypeVar("T")


# --- Mutants ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change to one file."""

    file: str
    line: int
    col: int
    kind: str
    scope: Scope
    name: str  # of the function with its classes
    around: tuple[ast.AST, ...] = field(repr=False, compare=False)  # the changed node, and those it stands in
    source: str = field(repr=False)
    old: str
    new: str

    @property
    def compiles(self) -> bool:
        """True if the changed source is Python."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            try:
                compile(self.source, self.file, "exec", dont_inherit=True)
            except SyntaxError:
                return False
        return True

    @property
    def id(self) -> str:
        """file:line:col:kind."""
        return f"{self.file}:{self.line}:{self.col}:{self.kind}"

    @property
    def diff(self) -> str:
        """The changed line before and after."""
        return f"- {self.old}\n+ {self.new}"


ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
ARITHMETIC |= {ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*")}
COMPARISONS = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
COMPARISONS |= {ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")}
COMPARISONS |= {ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")}
FLIPPED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # their mutant is the negation
UNARY = {ast.USub: "-", ast.Not: "not", ast.Invert: "~"}
CONSTANTS = {0: 1, 1: 2, 2: 1, 0.5: 1}  # any other is doubled
FUNCTIONS = {"expm1": "exp", "log1p": "log", "sin": "cos", "cos": "sin", "min": "max", "max": "min"}
FUNCTIONS |= {"any": "all", "all": "any"}
SKIPPED_NAMES = {"__all__", "__slots__", "name", "source"}
SKIPPED_KEYWORDS = {"strict", "stacklevel", "repr", "maxsize"}  # guards, messages and memory


def defaults_of(node: ast.FunctionDef) -> Iterator[ast.Assign]:
    """The defaults of a function's arguments as assignments."""
    arguments = [*node.args.posonlyargs, *node.args.args]
    pairs = [*zip(reversed(arguments), reversed(node.args.defaults), strict=False)][::-1]
    pairs += [(a, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None]
    for argument, default in pairs:
        yield ast.Assign([ast.Name(argument.arg, ast.Store())], default, lineno=default.lineno)


class Mutator(ast.NodeVisitor):
    """Collects the mutants of one file. Edits are made in its bytes, so that everything else stays as it is."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text, self.raw = file, text, text.encode()
        self.starts = [0]
        for line in self.raw.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.scope: Scope = (file, 0)
        self.names: list[str] = []
        self.around: list[ast.AST] = []
        self.mutants: dict[str, Mutant] = {}  # by mutated text: the same change is made once
        self.visit(ast.parse(text))

    def visit(self, node: ast.AST) -> None:
        """Visit a node, with those it stands in at hand."""
        self.around.append(node)
        super().visit(node)
        self.around.pop()

    def start(self, node: ast.expr) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr) -> int:
        return self.starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    def add(self, kind: str, *edits: tuple[int, int, str]) -> None:
        raw = self.raw
        for start, end, new in sorted(edits, reverse=True):
            raw = raw[:start] + new.encode() + raw[end:]
        text = raw.decode()
        pairs = zip(self.text.splitlines(), text.splitlines(), strict=False)
        number, old, new = next((i, a, b) for i, (a, b) in enumerate(pairs, 1) if a != b)
        col = min(edits)[0] - self.starts[number - 1] + 1
        name, around = ".".join(self.names), tuple(reversed(self.around))
        mutant = Mutant(self.file, number, col, kind, self.scope, name, around, text, old.strip(), new.strip())
        self.mutants.setdefault(text, mutant)

    def between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replace the operator that stands between two operands."""
        start = self.end(left)
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.raw[start : self.start(right)])
        found = re.search(re.escape(old).replace(r"\ ", r"\s+").encode(), gap)
        if found:
            self.add(f"{old} -> {new}", (start + found.start(), start + found.end(), new))

    def negate(self, test: ast.expr) -> None:
        flipped = isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], FLIPPED)
        if not flipped and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            self.add("negate if", (self.start(test), self.start(test), "not ("), (self.end(test), self.end(test), ")"))

    # What is left alone.

    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id in SKIPPED_NAMES for target in node.targets):
            self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in SKIPPED_KEYWORDS:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__repr__", "__str__"):
            return
        for decorator in node.decorator_list:
            self.visit(decorator)
        for default in defaults_of(node):  # as `name = value` in the function, computed outside of it
            self.names.append(node.name)
            self.visit(default)
            self.names.pop()
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        outer, self.scope = self.scope, (self.file, first)
        self.names.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.names.pop()
        self.scope = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()

    # What is changed.

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC:
            self.between(node.left, node.right, *ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in ARITHMETIC:
            self.between(node.target, node.value, *ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        swap = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, *swap)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.between(left, right, *COMPARISONS[type(op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if type(node.op) in UNARY:
            token, start = UNARY[type(node.op)], self.start(node)
            self.add(f"drop {token}", (start, start + len(token), ""))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value: Any = node.value
        if isinstance(value, bool):
            new: Any = not value
        elif isinstance(value, int | float):
            new = type(value)(CONSTANTS.get(value, 2 * value))
        else:
            return
        self.add(f"{value!r} -> {new!r}", (self.start(node), self.end(node), repr(new)))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for index in indices:
            for bound in (index.lower, index.upper) if isinstance(index, ast.Slice) else (index,):
                if isinstance(bound, ast.Constant) and type(bound.value) is int:
                    self.add("index + 1", (self.start(bound), self.end(bound), str(bound.value + 1)))
                elif isinstance(bound, ast.BinOp | ast.UnaryOp):
                    self.add("index + 1", (self.end(bound), self.end(bound), " + 1"))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function, end = node.func, self.end(node.func)
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in FUNCTIONS:
            self.add(f"{name} -> {FUNCTIONS[name]}", (end - len(name), end, FUNCTIONS[name]))
        if name == "sqrt" and node.args:
            self.add("drop sqrt", (self.start(function), end, ""))
        elif name == "sqrt":
            self.add("drop sqrt", (end - len(".sqrt"), self.end(node), ""))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.negate(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.negate(test)
        self.generic_visit(node)


@cache
def mutants_of(file: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    return mutants_in((ROOT / file).read_text(encoding="utf-8"), file)


def mutants_in(text: str, file: str = "file.py") -> list[Mutant]:
    """The same of a source text; some of them may be no Python."""
    return sorted(Mutator(file, text).mutants.values(), key=lambda m: (m.line, m.col, m.kind))


# --- Mutants that are meant -------------------------------------------------------------------------------------------


def matches(pattern: ast.AST, node: ast.AST) -> bool:
    """True if a node is as in the pattern, in which `_` stands for any expression."""
    if isinstance(pattern, ast.Name) and pattern.id == "_" and isinstance(node, ast.expr):
        return True
    if isinstance(pattern, ast.expr_context) and isinstance(node, ast.expr_context):
        return True
    if type(pattern) is not type(node):
        return False
    return all(_alike(getattr(pattern, name), getattr(node, name)) for name in pattern._fields if name not in UNSAID)


UNSAID = {"type_comment", "kind"}


def _alike(pattern: Any, part: Any) -> bool:
    if isinstance(pattern, list):
        return isinstance(part, list) and len(pattern) == len(part) and all(map(_alike, pattern, part))
    if isinstance(pattern, ast.AST):
        return isinstance(part, ast.AST) and matches(pattern, part)
    return type(pattern) is type(part) and bool(pattern == part)


def pattern_of(code: str) -> ast.AST:
    """The expression or statement that a pattern's code is."""
    (statement,) = ast.parse(code).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def meant(entry: Mapping[str, str], mutants: Sequence[Mutant]) -> list[Mutant]:
    """The mutants that an entry of `equivalent.json` is about: of those in matching code the innermost."""
    pattern = pattern_of(entry["code"])
    depths: dict[int, list[Mutant]] = {}
    for mutant in mutants:
        if (mutant.name, mutant.kind) != (entry["scope"], entry["kind"]) or entry.get(
            "file", mutant.file
        ) != mutant.file:
            continue
        depth = next((i for i, node in enumerate(mutant.around) if matches(pattern, node)), None)
        if depth is not None:
            depths.setdefault(depth, []).append(mutant)
    found = depths[min(depths)] if depths else []
    return found[int(entry["nth"]) :][:1] if "nth" in entry else found


def known() -> list[dict[str, str]]:
    """The entries of `equivalent.json`."""
    entries: list[dict[str, str]] = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return entries


def module_of(file: str) -> str:
    """The name under which a file is imported."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def importers(file: str) -> frozenset[Scope]:
    """The modules of the package that import a file or names from it."""
    found, module = set(), module_of(file)
    for path in (ROOT / PACKAGE).rglob("*.py"):
        nodes = [
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
        ]
        if any(module in (node.module, *(f"{node.module}.{name.name}" for name in node.names)) for node in nodes):
            found.add((path.relative_to(ROOT).as_posix(), 0))
    return frozenset(found)


# --- Children --------------------------------------------------------------------------------------------------------


def fork() -> int:
    """`os.fork`, whatever Python thinks of it beside threads: those of the libraries here are idle."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class MutatedLoader(SourceFileLoader):
    """Loads a module from changed source, and finds it: an importer for one mutant."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(module_of(mutant.file), str(ROOT / mutant.file))
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.mutant.source, self.path, "exec", dont_inherit=True)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None


@dataclass
class Target:
    """A file with tests or doctests, and what the unchanged run found."""

    path: str
    overhead: float = 0.0  # seconds besides those of the tests: imports and collection
    tests: dict[str, tuple[float, frozenset[Scope]]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """The findings as text."""
        tests = {name: [seconds, sorted(covers)] for name, (seconds, covers) in self.tests.items()}
        return json.dumps([self.path, self.overhead, tests, self.modules])

    @staticmethod
    def from_json(text: str) -> Target:
        """The findings that `to_json` wrote."""
        path, overhead, tests, modules = json.loads(text)
        covers = {name: (seconds, frozenset((file, line) for file, line in c)) for name, (seconds, c) in tests.items()}
        return Target(path, overhead, covers, modules)


class Recorder:
    """Notes each test's seconds and the package's functions that it executes.

    Every test has a process of its own, which inherits what import and collection did and no more: so a value that
    an earlier test left in a cache or a fixture hides nothing.
    """

    def __init__(self) -> None:
        self.prefix = f"{ROOT / PACKAGE}{os.sep}"
        self.seen: set[tuple[str, int]] = set()
        self.tests: dict[str, tuple[float, frozenset[Scope]]] = {}
        sys.settrace(self.trace)

    def trace(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if code.co_flags & CO_OPTIMIZED and code.co_filename.startswith(self.prefix):  # functions, not class bodies
            self.seen.add((code.co_filename, code.co_firstlineno))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool:
        reader, writer = os.pipe()
        start = time.monotonic()
        if not (pid := fork()):
            with suppress(BaseException):
                reports = runtestprotocol(item, log=False, nextitem=None)
                failure = "\n".join(report.longreprtext for report in reports if report.failed)
                with os.fdopen(writer, "w") as stream:
                    json.dump([sorted(self.seen), failure], stream)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            data = stream.read()
        os.waitpid(pid, 0)
        seen, failure = json.loads(data) if data else ([], "its process died")
        if failure:
            item.session.shouldfail = f"{item.nodeid}\n{failure}"
        covers = {(Path(name).relative_to(ROOT).as_posix(), line) for name, line in seen}
        covers |= {(file, 0) for file, _ in covers}
        self.tests[item.nodeid] = time.monotonic() - start, frozenset(covers)
        return True


class Director:
    """Runs the chosen tests of a file, fast ones first, each under a time limit that ends the process."""

    def __init__(self, target: Target, chosen: dict[str, float], timeout: float) -> None:
        self.known, self.chosen, self.timeout = target.tests, chosen, timeout

    def seconds(self, item: pytest.Item) -> float:
        return self.chosen.get(item.nodeid, 0.0)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self.chosen or item.nodeid not in self.known]
        items.sort(key=self.seconds)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.timeout + 10 * self.seconds(item))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os._exit(1)  # at once: nobody reads the summary


def passes(path: str, plugin: object) -> bool:
    """Run the tests of a file in this process."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--tb=short", "--hypothesis-profile=mutation"]
    options += [f"--rootdir={ROOT}", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins imported before
    return pytest.main([path, *options], plugins=[plugin]) in (0, 5)  # 5: no tests, or all of them slow


def record(path: str, result: Path) -> bool:
    """In a child: run a test file on the unchanged package and write down what it executes."""
    start = time.monotonic()
    recorder = Recorder()
    package = importlib.import_module(PACKAGE)
    if not Path(str(package.__file__)).is_relative_to(ROOT):
        raise RuntimeError(f"{PACKAGE} comes from {package.__file__}, not from {ROOT}")
    green = passes(path, recorder)
    sys.settrace(None)
    overhead = time.monotonic() - start - sum(seconds for seconds, _ in recorder.tests.values())
    ours = (PACKAGE, "tests", "conftest", "benchmarks", "__main__")
    modules = [name for name in sys.modules if name.split(".")[0] not in ours]
    if green:
        partly = result.with_suffix(f".{os.getpid()}")
        partly.write_text(Target(path, overhead, recorder.tests, modules).to_json())
        partly.replace(result)
    return green


def survives(mutant: Mutant, plan: Plan, timeout: float) -> bool:
    """In a child: run the tests on the mutant."""
    signal.setitimer(signal.ITIMER_REAL, timeout)
    loader = MutatedLoader(mutant)
    sys.meta_path.insert(0, loader)
    importlib.import_module(loader.name)  # before pytest puts its own importer first
    for target, chosen in plan:
        signal.setitimer(signal.ITIMER_REAL, timeout + 10 * target.overhead)
        if not passes(target.path, Director(target, chosen, timeout)):
            return False
    return True


def plan_for(mutant: Mutant, targets: Sequence[Target], budget: float) -> tuple[Plan, int]:
    """The fastest tests that depend on the mutant, as many as the budget of seconds allows, by file; the cheapest
    file first. Returns the number of tests left out as well."""
    known = [(target, test, *found) for target in targets for test, found in target.tests.items()]
    scopes = frozenset({mutant.scope})
    if mutant.scope[1] == 0 and not any(scopes & covers for *_, covers in known):
        scopes = importers(mutant.file)
    tests = sorted(((s, target.path, test) for target, test, s, covers in known if scopes & covers))
    spent = list(accumulate(seconds for seconds, _, _ in tests))
    taken = max(bisect_right(spent, budget), min(len(tests), 1))
    chosen: dict[str, dict[str, float]] = {}
    for seconds, path, test in tests[:taken]:
        chosen.setdefault(path, {})[test] = seconds
    plan = [(target, chosen[target.path]) for target in targets if target.path in chosen]
    return sorted(plan, key=lambda part: part[0].overhead + sum(part[1].values())), len(tests) - taken


# --- Parent ----------------------------------------------------------------------------------------------------------


def start(task: Callable[[], bool], log: str) -> int:
    """Run a task in a child with its output in a file; it exits with 0 for True and 1 for False or an exception."""
    if pid := fork():
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 0 if task() else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def pool(work: Iterable[tuple[T, Callable[[], bool], str]], jobs: int) -> Iterator[tuple[T, int, float]]:
    """Run (item, task, log) side by side; yields each item with its child's wait status and seconds."""
    queue = iter(work)
    running: dict[int, tuple[T, float]] = {}
    try:
        while True:
            while len(running) < jobs and (job := next(queue, None)) is not None:
                running[start(job[1], job[2])] = job[0], time.monotonic()
            if not running:
                return
            pid, status = os.wait()
            if pid in running:
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)  # what the child may have left behind
                item, began = running.pop(pid)
                yield item, status, time.monotonic() - began
    finally:
        for pid in running:
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


def baseline(jobs: int, examples: int) -> list[Target]:
    """Run the tests on the unchanged package, each file in a child of its own; exits if they are not green.

    What a file's run found is kept until the file or anything it may depend on changes.
    """
    sources = sorted((ROOT / PACKAGE).rglob("*.py"))
    files = [path for path in sources if ">>> " in path.read_text(encoding="utf-8")]
    tests = sorted((ROOT / "tests").rglob("*.py"))
    files += [path for path in tests if path.name.startswith("test_")]
    shared = hashlib.sha256(f"{sys.version} {examples}".encode())
    for path in [ROOT / "pyproject.toml", *sources, *(path for path in tests if path not in files)]:
        shared.update(path.read_bytes())
    FOUND.mkdir(parents=True, exist_ok=True)
    results: dict[str, Path] = {}
    for path in files:
        digest = shared.copy()
        digest.update(path.read_bytes())
        results[path.relative_to(ROOT).as_posix()] = FOUND / f"{path.stem}-{digest.hexdigest()[:16]}.json"
    for old in set(FOUND.iterdir()) - set(results.values()):
        if old.stat().st_mtime < time.time() - 24 * 3600:  # younger ones may be another run's
            old.unlink(missing_ok=True)

    missing = [name for name, result in results.items() if not result.exists()]
    work = ((name, partial(record, name, results[name]), f"{results[name]}.log") for name in missing)
    for name, status, seconds in pool(work, jobs):
        if status:
            print(Path(f"{results[name]}.log").read_text(errors="replace")[-3000:])
            sys.exit(f"the unmutated tests are not green: {name}")
        print(f"unmutated: {name} green in {seconds:.1f} s", flush=True)
    targets = [Target.from_json(result.read_text()) for result in results.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in dict.fromkeys(module for target in targets for module in target.modules):
            with suppress(Exception):
                importlib.import_module(module)  # once here, instead of in every child
    return targets


@dataclass
class Results:
    """What became of the mutants that were run."""

    mutants: list[Mutant]
    fate: dict[str, str] = field(default_factory=dict)  # id: killed, timeout, survived or equivalent
    notes: dict[str, str] = field(default_factory=dict)  # by id, which tests were not there or not run
    seconds: list[float] = field(default_factory=list)

    def counts(self, file: str | None = None) -> tuple[int, ...]:
        """Mutants, killed, timeouts, survived and equivalent, of one file or all."""
        fates = [self.fate[m.id] for m in self.mutants if file in (None, m.file)]
        return len(fates), *(fates.count(fate) for fate in ("killed", "timeout", "survived", "equivalent"))


def check(mutants: Sequence[Mutant], targets: Sequence[Target], jobs: int, timeout: float, budget: float) -> Results:
    """Run the tests on every mutant."""
    results = Results(list(mutants))

    def work() -> Iterator[tuple[Mutant, Callable[[], bool], str]]:
        for mutant in mutants:
            plan, left_out = plan_for(mutant, targets, budget)
            if not plan:
                results.notes[mutant.id] = "no test executes it"
            elif left_out:
                results.notes[mutant.id] = f"{left_out} slower tests were not run"
            yield mutant, partial(survives, mutant, plan, timeout), os.devnull

    for done, (mutant, status, seconds) in enumerate(pool(work(), jobs), 1):
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        results.fate[mutant.id] = "survived" if status == 0 else "timeout" if late else "killed"
        results.seconds.append(seconds)
        if status == 0 or late or done % 25 == 0:
            print(f"[{done}/{len(mutants)}] {results.fate[mutant.id]:8} {seconds:5.1f} s  {mutant.id}", flush=True)
    return results


def explain(results: Results, every: Sequence[Mutant]) -> list[str]:
    """Mark the survivors that `equivalent.json` explains; returns what is wrong with the list."""
    errors, files = [], {mutant.file for mutant in every}
    names = {mutant.name for mutant in every}
    for entry in known():
        if not REQUIRED <= set(entry) <= REQUIRED | {"file", "nth"}:
            errors.append(f"needs scope, code, kind, reason and at most file and nth besides: {entry}")
            continue
        if entry["scope"] not in names or ("file" in entry and entry["file"] not in files):
            continue  # of a file that was not asked for; a test looks for every entry
        where = f"{entry['scope']}: `{entry['code']}` ({entry['kind']})"
        matching = meant(entry, every)
        fates = {m.id: results.fate.get(m.id, "not run") for m in matching}
        for key in [key for key, fate in fates.items() if fate in ("survived", "equivalent")]:
            results.fate[key], results.notes[key] = "equivalent", entry["reason"]
        if not matching:
            errors.append(f"there is no such mutant: {where}")
        elif len(matching) > 1:
            errors.append(f"several mutants are meant, say which with more of the code: {where}")
        elif set(fates.values()) <= {"killed", "timeout"}:
            errors.append(f"the tests kill it: {where}")
    return errors


def report(results: Results, errors: Sequence[str], title: str) -> str:
    """The outcome as Markdown."""
    lines = [f"# {title}", "", "| file | mutants | killed | timeouts | survived | equivalent | kill rate |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for file in [*dict.fromkeys(m.file for m in results.mutants), None]:
        n, killed, late, survived, equivalent = results.counts(file)
        rate = f"{100 * (killed + late) / (n - equivalent):.1f} %" if n > equivalent else "-"
        lines.append(f"| {file or 'all'} | {n} | {killed} | {late} | {survived} | {equivalent} | {rate} |")
    if results.seconds:
        middle, longest = statistics.median(results.seconds), max(results.seconds)
        lines += ["", f"Seconds a mutant: median {middle:.1f}, longest {longest:.1f}."]
    for fate, heading in (("survived", "Survivors"), ("timeout", "Timeouts"), ("equivalent", "Equivalent")):
        chosen = [mutant for mutant in results.mutants if results.fate[mutant.id] == fate]
        lines += ["", f"## {heading}"] if chosen else []
        for m in chosen:
            note = results.notes.get(m.id, "") if fate != "timeout" else ""
            lines += ["", f"`{m.id}`" + (f": {note}" if note else ""), "```diff", m.diff, "```"]
    if errors:
        lines += ["", f"## Errors in {EQUIVALENT.name}", "", *(f"- {error}" for error in errors)]
    return "\n".join(lines) + "\n"


def select(only: Sequence[str]) -> tuple[list[Mutant], list[Mutant]]:
    """All mutants of the files asked for, and among them those on the lines asked for."""
    wanted: dict[str, list[str]] = {}  # lines by file, "" for all of them
    for argument in only or [f"{PACKAGE}/{part}" for part in MUTATED]:
        name, _, line = argument.partition(":")
        path = (ROOT / name).resolve()
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not source.is_file() or not source.is_relative_to(ROOT / PACKAGE):
                sys.exit(f"no source file of the package: {argument}")
            wanted.setdefault(source.relative_to(ROOT).as_posix(), []).append(line)
    every = [mutant for file in wanted for mutant in mutants_of(file)]
    chosen = [m for m in every if {"", str(m.line)} & set(wanted[m.file]) and m.compiles]
    return every, chosen


def main() -> int:
    """Parse the command line, run and report."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="PATH[:LINE]", help="files or folders, or one line")
    parser.add_argument("--jobs", type=int, default=2, help="children side by side")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--report", type=Path, help="write the report here, as Markdown")
    parser.add_argument("--timeout", type=float, default=20, help="seconds a test may take beyond 10 times its own")
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests a mutant, in their unmutated times")
    parser.add_argument("--examples", type=int, default=20, help="examples of a property-based test")
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")
    args = parser.parse_args()

    every, mutants = select(args.only)
    if args.sample is not None:
        mutants = random.Random(args.seed).sample(mutants, min(args.sample, len(mutants)))
        mutants.sort(key=lambda m: (m.file, m.line, m.col))
    if args.list:
        print("\n".join(f"{mutant.id}\n{mutant.diff}" for mutant in mutants))
        return 0

    os.chdir(ROOT)
    sys.path[0] = str(ROOT)  # the package of this checkout, wherever another may be installed
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    import torch
    from hypothesis import HealthCheck, Phase, settings

    torch.set_num_threads(1)
    settings.register_profile(
        "mutation",
        derandomize=True,
        max_examples=args.examples,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    gc.freeze()  # pytest collects garbage often: it need not look at torch each time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # takes the children along
    began = time.monotonic()
    targets = baseline(args.jobs, args.examples)
    if PACKAGE in sys.modules:
        sys.exit(f"{PACKAGE} is imported already: the children would not see the mutants")
    n_tests, seconds = sum(len(t.tests) for t in targets), time.monotonic() - began
    print(f"{n_tests} tests in {len(targets)} files green in {seconds:.0f} s; {len(mutants)} mutants", flush=True)
    gc.freeze()

    results = check(mutants, targets, args.jobs, args.timeout, args.budget)
    errors = explain(results, every)
    drawn = f", {len(mutants)} of {len(every)} mutants" if len(mutants) < len(every) else ""
    text = report(results, errors, f"Mutation check{drawn}")
    print(f"\n{text}\n{time.monotonic() - began:.0f} s")
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(text, encoding="utf-8")
    return 1 if errors or "survived" in results.fate.values() else 0


if __name__ == "__main__":
    sys.exit(main())
