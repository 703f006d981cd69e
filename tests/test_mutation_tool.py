"""The mutation tool: the mutants of a text, and finding the one that is meant however its code is laid out."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from tools import mutation
from tools.mutation import Mutant, meant, mutants_in

TEXT = """
class Step:
    order = 2

    def size(self, a, b, fraction=0.5):
        if a < b:
            return (a + b) * 3
        return max(a, b) - a + b
"""
MOVED = """
LIMIT = 4
class Step:
    "In another file, with other lines."
    def size(
        self,
        a,
        b,
        fraction=0.5,  # of the step
    ):
        total = (
            a
            + b  # both
        )
        return max(a, b) - a + b if a >= b else total * 3
"""


@cache
def package() -> list[Mutant]:
    """All mutants of the package."""
    files = sorted(path.relative_to(mutation.ROOT).as_posix() for path in (mutation.ROOT / "sgm_sde").rglob("*.py"))
    return [mutant for file in files for mutant in mutation.mutants_of(file)]


@pytest.mark.parametrize("entry", mutation.known(), ids=lambda e: f"{e['scope']}: {e['code'][:40]} {e['kind']}")
def test_every_entry_means_one_mutant(entry: dict[str, str]) -> None:
    """Of the list of those that no test can tell from the original; each says why."""
    assert entry["reason"].endswith(".")
    assert len(meant(entry, package())) == 1, "tools/equivalent.json: the code that it is about has changed"


def test_the_mutants_of_a_text() -> None:
    """Operators, comparisons, constants, conditions and functions, with the class and function they are in."""
    found = [(m.name, m.kind) for m in mutants_in(TEXT)]
    of_function = [kind for name, kind in found if name == "Step.size"]
    assert [kind for name, kind in found if name == "Step"] == ["2 -> 1"]
    assert of_function == [
        "0.5 -> 1.0", "negate if", "< -> <=", "+ -> -", "* -> /", "3 -> 6", "max -> min", "- -> +", "+ -> -",
    ]  # fmt: skip
    assert len(found) == len(of_function) + 1
    assert all(m.compiles for m in mutants_in(TEXT))


def test_a_mutant_changes_one_place() -> None:
    """Its text is the original but for that, and its id says where."""
    (times,) = [m for m in mutants_in(TEXT) if m.kind == "* -> /"]
    assert times.source == TEXT.replace("* 3", "/ 3")
    assert (times.old, times.new) == ("return (a + b) * 3", "return (a + b) / 3")
    assert times.id == "file.py:7:28:* -> /"


@pytest.mark.parametrize("text", [TEXT, MOVED], ids=["as it was", "laid out anew"])
@pytest.mark.parametrize(
    ("code", "kind", "place"),
    [
        ("a + b", "+ -> -", "the sum"),
        ("_ - a + b", "+ -> -", "max(a, b) - a - b"),
        ("max(_, b)", "max -> min", "min(a, b)"),
        ("fraction = 0.5", "0.5 -> 1.0", "fraction=1.0"),
        ("_ * 3", "3 -> 6", "* 6"),
    ],
)
def test_what_is_meant_is_found_by_scope_and_code(text: str, code: str, kind: str, place: str) -> None:
    """Other lines, comments, conditions around it and another order leave it found."""
    entry = {"scope": "Step.size", "code": code, "kind": kind}
    (found,) = meant(entry, mutants_in(text))
    if place != "the sum":
        assert place in found.source
    assert not meant({**entry, "scope": "Step.other"}, mutants_in(text))
    assert not meant({**entry, "kind": "drop -"}, mutants_in(text))
    assert not meant({**entry, "file": "another.py"}, mutants_in(text))


def test_the_innermost_is_meant_and_several_are_an_error() -> None:
    """A pattern that two mutants match equally means both; `nth` is one of them."""
    text = "def f(x):\n    return x[0] * g(x[0], 0)\n"
    mutants = mutants_in(text)
    entry: dict[str, Any] = {"scope": "f", "code": "x[0]", "kind": "index + 1"}
    assert [m.col for m in meant(entry, mutants)] == [14, 23]
    assert [m.col for m in meant({**entry, "nth": "1"}, mutants)] == [23]
    assert [m.col for m in meant({**entry, "code": "g(_, 0)"}, mutants)] == [23]
    assert not meant({**entry, "code": "g(_, 1)"}, mutants)


def test_survivors_are_explained_by_the_list(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry turns a survivor into an equivalent; one for a killed mutant, or for none, is an error."""
    mutants = mutants_in(TEXT)
    entries = [
        {"scope": "Step.size", "code": "a < b", "kind": "< -> <=", "reason": "Both are the same there."},
        {"scope": "Step.size", "code": "_ * 3", "kind": "* -> /", "reason": "Wrong."},
        {"scope": "Step.size", "code": "a ** b", "kind": "* -> /", "reason": "Gone."},
        {"scope": "Step.size", "kind": "* -> /", "reason": "No code."},
    ]
    listed = tmp_path / "equivalent.json"
    listed.write_text(json.dumps(entries))
    monkeypatch.setattr(mutation, "EQUIVALENT", listed)
    fates = {m.id: "survived" if m.kind == "< -> <=" else "killed" for m in mutants}
    results = mutation.Results(mutants, fates)
    errors = mutation.explain(results, mutants)
    assert [error.partition(":")[0] for error in errors] == [
        "the tests kill it", "there is no such mutant",
        "needs scope, code, kind, reason and at most file and nth besides",
    ]  # fmt: skip
    assert results.counts() == (len(mutants), len(mutants) - 1, 0, 0, 1)
    assert "| all | 10 | 9 | 0 | 0 | 1 | 100.0 % |" in mutation.report(results, errors, "Check")
