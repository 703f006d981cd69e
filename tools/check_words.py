"""Rules of docs/glossary.md that a program can hold: first lines of docstrings, phrases, and names that were replaced.

    python tools/check_words.py [FILE ...]

Prints each breach as FILE:LINE and exits with status 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A first line is a noun phrase, or an imperative for a function: no sentence about "what" something is.
OPENINGS = {"what", "whether", "as", "that", "which", "how", "where"}

EMPTY = {"One step.", "The solver's.", "Time.", "No.", "Yes."}  # say nothing

PHRASES = {
    r"\bwhole numbers?\b": "integer",
    r"\bbe had\b": "is computed, exists, is available",
    r"\btold otherwise\b": "by default",
    r"\bgo(ne|es)? on with\b": "resume, continue with",
    r"\b(a|one a) sample each\b": "per sample",
    r"\bnetwork calls a step\b": "network calls per step",
    r"\bis dear\b": "is expensive",
    r"\b(are|is|was|were) had\b": "is computed, exists, is available",
    r"\b(is|are) told (by|from)\b": "is estimated, detected, identified by",
    r"\b(paths?|pairs?|numbers?|probes?|rows?|calls?|evaluations|values?|draws?|labels?|noises?) an? "
    r"(sample|step|dimension|stage|node|interval|batch|round|level|pixel)\b": "per ...",
    r"\beta: noise level\b|\bnoise level `?\$?\\?eta\b": "stochasticity: the noise level is sigma / alpha",
    r"\bvelocity[- ]prediction\b": "v-prediction: velocity is the second block of CLD's state",
    r"\bnatural grid\b": "default grid",
}

NAMES = {
    "from_velocity": "from_v",
    "natural_grid": "default_grid",
    "less_noise": "at_reduced_noise",
    "BoundModel": "BoundScore",
    "StepControl": "AdaptiveStats",
    "on_host": "cpu_float64",
    "is_linear": "marginal_kind",
    "has_kernel": "marginal_kind",
    "KernelValues": "MarginalValues",
    "integer_table": "ddpm(n, integer=True)",
}


def breaches(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and messages of a file's breaches."""
    text = path.read_text()
    if path.suffix == ".py":
        yield from _openings(text)
    for number, line in enumerate(text.splitlines(), start=1):
        for phrase, better in PHRASES.items():
            if found := re.search(phrase, line, re.IGNORECASE):
                yield number, f"{found.group()!r}: write {better}"
        for name, better in NAMES.items():
            if re.search(rf"\b{name}\b", line):
                yield number, f"{name} is called {better}"


def _openings(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = (ast.get_docstring(node) or "").partition("\n")[0]
        if first and first.split()[0].lower() in OPENINGS:
            yield node.body[0].lineno, f"a docstring opens with a noun phrase, not with {first.split()[0]!r}"
        if first in EMPTY:
            yield node.body[0].lineno, f"{first!r} says nothing"


def main(arguments: list[str]) -> int:
    """Check the files, or the whole project; the exit status."""
    own = [*ROOT.glob("sgm_sde/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    paths = [Path(name).resolve() for name in arguments] or [p for p in own if p.name != "glossary.md"]
    count = 0
    for path in sorted(paths):
        for line, message in breaches(path):
            print(f"{path.relative_to(ROOT)}:{line}: {message}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
