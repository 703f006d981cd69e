"""Mutation check: change the package one operator or constant at a time and see whether the tests notice.

    .venv/bin/python tests/mutation/run.py --only sgm_sde/engine/phi.py sgm_sde/processes/vp.py:120
    .venv/bin/python tests/mutation/run.py --sample 200 --seed 0 --report out/mutation.md

The parent imports what the tests need, but not the package. For each mutant it forks a child, which imports the
package with one module's source changed and runs the test files that execute the changed function, the nearest
and fastest first, until a test fails (killed), none is left (survived) or one takes too long (timeout). Which test
executes what is recorded in a first run on the unchanged package, which must be green. Code outside functions is
checked against every test file.

`equivalent.json` lists the mutants that no test can tell from the original: objects with `file`, `line` (the
original line's text), `kind`, `reason` and, where a line has several mutants of a kind, `mutated` (the changed
line's text). An entry that explains no survivor is an error.

Out of reach: code that tests run in a subprocess, and tests marked slow. The exit status is 1 if a mutant survived
unexplained or the list is wrong.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import pickle
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sgm_sde"
MUTATED = ("processes", "engine", "solvers")
EQUIVALENT = Path(__file__).with_name("equivalent.json")
MEMORY = 4 << 30  # bytes of data a child may hold

Scope = tuple[str, int]  # (file, first line of a function), or (file, 0) for the module
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
    source: str = field(repr=False)
    old: str
    new: str

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


class Mutator(ast.NodeVisitor):
    """Collects the mutants of one file. Edits are made in its bytes, so that everything else stays as it is."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text, self.raw = file, text, text.encode()
        self.starts = [0]
        for line in self.raw.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.scope: Scope = (file, 0)
        self.mutants: dict[str, Mutant] = {}  # by mutated text: the same change is made once
        self.visit(ast.parse(text))

    def start(self, node: ast.expr) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr) -> int:
        return self.starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    def add(self, kind: str, *edits: tuple[int, int, str]) -> None:
        raw = self.raw
        for start, end, new in sorted(edits, reverse=True):
            raw = raw[:start] + new.encode() + raw[end:]
        text = raw.decode()
        try:
            compile(text, self.file, "exec", dont_inherit=True)
        except SyntaxError:
            return
        pairs = zip(self.text.splitlines(), text.splitlines(), strict=False)
        number, old, new = next((i, a, b) for i, (a, b) in enumerate(pairs, 1) if a != b)
        col = min(edits)[0] - self.starts[number - 1] + 1
        mutant = Mutant(self.file, number, col, kind, self.scope, text, old.strip(), new.strip())
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
        defaults = [d for d in node.args.kw_defaults if d is not None]
        for outside in [*node.decorator_list, *node.args.defaults, *defaults]:
            self.visit(outside)
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        outer, self.scope = self.scope, (self.file, first)
        for statement in node.body:
            self.visit(statement)
        self.scope = outer

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


def mutants_of(file: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        mutator = Mutator(file, (ROOT / file).read_text(encoding="utf-8"))
    return sorted(mutator.mutants.values(), key=lambda m: (m.line, m.col, m.kind))


# --- Children --------------------------------------------------------------------------------------------------------


class MutatedLoader(SourceFileLoader):
    """Loads a module from changed source, and finds it: an importer for one mutant."""

    def __init__(self, mutant: Mutant) -> None:
        module = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(module, str(ROOT / mutant.file))
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.mutant.source, self.path, "exec", dont_inherit=True)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None


@dataclass
class Target:
    """A file with tests or doctests, and what the unchanged run found."""

    path: str
    seconds: float = 0.0
    covers: set[Scope] = field(default_factory=set)
    tests: dict[str, tuple[float, frozenset[Scope]]] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)

    def covering(self, scope: Scope) -> list[str]:
        """The tests that execute a function."""
        return [test for test, (_, covers) in self.tests.items() if scope in covers]

    @property
    def overhead(self) -> float:
        """Seconds besides those of the tests: imports and collection."""
        return self.seconds - sum(seconds for seconds, _ in self.tests.values())

    def cost(self, scope: Scope) -> float:
        """Seconds until the tests that execute a function have run."""
        return self.overhead + sum(self.tests[test][0] for test in self.covering(scope))


class Recorder:
    """Notes each test's time and the package's functions it executes; `covers` has those of the whole file too."""

    def __init__(self, target: Target) -> None:
        self.target, self.prefix, self.seen = target, f"{ROOT / PACKAGE}{os.sep}", target.covers
        sys.settrace(self.trace)

    def trace(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if code.co_filename.startswith(self.prefix):
            file = Path(code.co_filename).relative_to(ROOT).as_posix()
            self.seen |= {(file, code.co_firstlineno), (file, 0)}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.seen, start = set(), time.monotonic()
        sys.settrace(self.trace)
        result = yield
        self.target.tests[item.nodeid] = time.monotonic() - start, frozenset(self.seen)
        self.target.covers |= self.seen
        self.seen = self.target.covers
        return result


class Director:
    """Runs the tests that execute the mutant first, fast ones first, each under a time limit that ends the child."""

    def __init__(self, target: Target, scope: Scope, timeout: float) -> None:
        self.known, self.first, self.timeout = target.tests, set(target.covering(scope)), timeout

    def seconds(self, item: pytest.Item) -> float:
        return self.known.get(item.nodeid, (0.0, None))[0]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: (item.nodeid not in self.first, self.seconds(item)))

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
    return pytest.main([path, *options], plugins=[plugin]) in (0, 5)  # 5: all of them slow


def record(target: Target, result: Path) -> bool:
    """In a child: run a test file on the unchanged package and write down what it executes."""
    start = time.monotonic()
    recorder = Recorder(target)
    package = importlib.import_module(PACKAGE)
    if not Path(str(package.__file__)).is_relative_to(ROOT):
        raise RuntimeError(f"{PACKAGE} comes from {package.__file__}, not from {ROOT}")
    green = passes(target.path, recorder)
    sys.settrace(None)
    target.seconds = time.monotonic() - start
    ours = (PACKAGE, "tests", "conftest", "benchmarks", "__main__")
    target.modules = [name for name in sys.modules if name.split(".")[0] not in ours]
    result.write_bytes(pickle.dumps(target))
    return green


def survives(mutant: Mutant, targets: Sequence[Target], timeout: float) -> bool:
    """In a child: run the tests on the mutant."""
    signal.setitimer(signal.ITIMER_REAL, timeout)
    loader = MutatedLoader(mutant)
    sys.meta_path.insert(0, loader)
    importlib.import_module(loader.name)  # before pytest puts its own importer first
    for target in targets:
        signal.setitimer(signal.ITIMER_REAL, timeout + 10 * target.overhead)
        if not passes(target.path, Director(target, mutant.scope, timeout)):
            return False
    return True


def relevant(mutant: Mutant, targets: Sequence[Target]) -> list[Target]:
    """The test files that execute the mutant, the ones that get there fastest first; all for code outside functions."""
    _, line = mutant.scope
    chosen = [target for target in targets if line == 0 or mutant.scope in target.covers]
    return sorted(chosen, key=lambda t: (not t.covering(mutant.scope), t.cost(mutant.scope)))


# --- Parent ----------------------------------------------------------------------------------------------------------


def fork(task: Callable[[], bool], log: str) -> int:
    """Run a task in a child with its output in a file; it exits with 0 for True and 1 for False or an exception."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
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
                running[fork(job[1], job[2])] = job[0], time.monotonic()
            if not running:
                return
            pid, status = os.wait()
            if pid in running:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)  # what the child may have left behind
                item, start = running.pop(pid)
                yield item, status, time.monotonic() - start
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)


def baseline(jobs: int) -> list[Target]:
    """Run the tests on the unchanged package, each file in a child of its own; exits if they are not green."""
    sources = sorted((ROOT / PACKAGE).rglob("*.py"))
    paths = [path for path in sources if ">>> " in path.read_text(encoding="utf-8")]
    paths += sorted((ROOT / "tests").rglob("test_*.py"))
    targets = []
    with tempfile.TemporaryDirectory() as name:
        work = []
        for i, path in enumerate(path.relative_to(ROOT).as_posix() for path in paths):
            result = Path(name, f"{i}.pickle")
            work.append(((path, result), partial(record, Target(path), result), f"{result}.log"))
        for (path, result), status, _ in pool(work, jobs):
            if status:
                print(Path(f"{result}.log").read_text(errors="replace")[-3000:])
                sys.exit(f"the unmutated tests are not green: {path}")
            targets.append(pickle.loads(result.read_bytes()))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for module in targets[-1].modules:
                    with suppress(Exception):
                        importlib.import_module(module)  # once here, instead of in every child from now on
    return targets


@dataclass
class Results:
    """What became of the mutants that were run."""

    mutants: list[Mutant]
    fate: dict[str, str] = field(default_factory=dict)  # id: killed, timeout, survived or equivalent
    reasons: dict[str, str] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)  # ids that no test executes
    seconds: list[float] = field(default_factory=list)

    def counts(self, file: str | None = None) -> tuple[int, ...]:
        """Mutants, killed, timeouts, survived and equivalent, of one file or all."""
        fates = [self.fate[m.id] for m in self.mutants if file in (None, m.file)]
        return len(fates), *(fates.count(fate) for fate in ("killed", "timeout", "survived", "equivalent"))


def check(mutants: Sequence[Mutant], targets: Sequence[Target], jobs: int, timeout: float) -> Results:
    """Run the tests on every mutant."""
    results = Results(list(mutants))

    def work() -> Iterator[tuple[Mutant, Callable[[], bool], str]]:
        for mutant in mutants:
            chosen = relevant(mutant, targets)
            if not chosen:
                results.unseen.add(mutant.id)
            yield mutant, partial(survives, mutant, chosen, timeout), os.devnull

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
    for entry in json.loads(EQUIVALENT.read_text(encoding="utf-8")):
        keys = set(entry)
        if not {"file", "line", "kind", "reason"} <= keys <= {"file", "line", "kind", "reason", "mutated"}:
            errors.append(f"needs file, line, kind, reason and at most mutated besides: {entry}")
            continue
        where = f"{entry['file']}: `{entry['line']}` ({entry['kind']})"
        if not (ROOT / entry["file"]).exists():
            errors.append(f"no such file: {where}")
        if entry["file"] not in files:
            continue
        wanted = (entry["file"], entry["line"].strip(), entry["kind"])
        matching = [m for m in every if (m.file, m.old, m.kind) == wanted and entry.get("mutated", m.new) == m.new]
        fates = {m.id: results.fate.get(m.id, "not run") for m in matching}
        for key in [key for key, fate in fates.items() if fate in ("survived", "equivalent")]:
            results.fate[key], results.reasons[key] = "equivalent", entry["reason"]
        if not matching:
            errors.append(f"there is no such mutant: {where}")
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
            note = results.reasons.get(m.id, "no test executes it" if m.id in results.unseen else "")
            lines += ["", f"`{m.id}`" + (f": {note}" if note else ""), "```diff", m.diff, "```"]
    if errors:
        lines += ["", f"## Errors in {EQUIVALENT.name}", "", *(f"- {error}" for error in errors)]
    return "\n".join(lines) + "\n"


def select(only: Sequence[str]) -> tuple[list[Mutant], list[Mutant]]:
    """All mutants of the files asked for, and among them those on the lines asked for."""
    every: list[Mutant] = []
    chosen: list[Mutant] = []
    for argument in only or [f"{PACKAGE}/{part}" for part in MUTATED]:
        name, _, line = argument.partition(":")
        path = (ROOT / name).resolve()
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if not source.is_file() or not source.is_relative_to(ROOT / PACKAGE):
                sys.exit(f"no source file of the package: {argument}")
            mutants = mutants_of(source.relative_to(ROOT).as_posix())
            every += [mutant for mutant in mutants if mutant not in every]
            chosen += [m for m in mutants if m not in chosen and (not line or m.line == int(line))]
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
    began = time.monotonic()
    targets = baseline(args.jobs)
    if PACKAGE in sys.modules:
        sys.exit(f"{PACKAGE} is imported already: the children would not see the mutants")
    n_tests, seconds = sum(len(t.tests) for t in targets), time.monotonic() - began
    print(f"{n_tests} tests in {len(targets)} files green in {seconds:.0f} s; {len(mutants)} mutants", flush=True)
    gc.freeze()

    results = check(mutants, targets, args.jobs, args.timeout)
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
