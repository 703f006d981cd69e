"""The documentation's Python runs, and its tables agree with the code."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

import sgm_sde as sg

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of a page, in order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(block, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures exist."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_solver_is_in_the_table_of_orders() -> None:
    """docs/orders.md lists the registry with the claims the code makes."""
    text = (ROOT / "docs" / "orders.md").read_text()
    for name, solver in sg.solvers().fixed.items():
        row = f"| `{name}` | {solver.nfe_per_step} | {solver.order or '-'} | {solver.weak_order or '-'} |"
        assert row in text, f"run python benchmarks/orders.py: {row}"
