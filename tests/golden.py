"""The registry of solvers as it was when somebody last looked at it.

    python -m tests.golden     # after adding a solver; what it changes in tests/golden.json is for the reviewer

For each name: the solver behind it, its order, weak order and network calls per step, the grids that place its steps on
VP and on EDM, and its source, as `sg.solvers()` prints them, and the keys of the works that `sg.citation` gives.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import sgm_sde as sg
from sgm_sde.references import works_of
from sgm_sde.schemes.table import row

GOLDEN = Path(__file__).with_suffix(".json")
KINDS = ("order", "weak order", "NFE per step", "grid", "source")  # columns of the table beside the name


def registry(name: str) -> dict[str, str]:
    """The facts of a name as they are."""
    table = sg.solvers()
    _, *facts = row(name, table[name])
    works = ", ".join(dict.fromkeys(work.key for work in works_of(name)))
    return {"solver": repr(table[name]), **dict(zip(KINDS, facts, strict=True)), "works": works}


@cache
def expected() -> dict[str, dict[str, str]]:
    """The registry as it was."""
    known: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text())
    return known


def main() -> int:
    """Write the registry down."""
    lines = [f"{json.dumps(name)}: {json.dumps(registry(name), ensure_ascii=False)}" for name in sg.solvers()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")  # a solver a line
    return 0


if __name__ == "__main__":
    sys.exit(main())
