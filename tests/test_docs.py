"""The documentation's Python runs, and its tables agree with the code."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import sgm_sde as sg
from tests.conventions import case_id, some_slow

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
REPOSITORY = "https://github.com/sgm-sde/sgm_sde"
OURS = (f"{REPOSITORY}/blob/main/", f"{REPOSITORY.replace('github.com', 'raw.githubusercontent.com')}/main/")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Of several seconds on their own.
FAST_PAGES = [page for page in PAGES if page.name != "calibrated.md"]
FAST_NOTEBOOKS = [path for path in NOTEBOOKS if path.stem not in ("first_hour", "likelihood_of_images")]


@pytest.mark.parametrize("page", some_slow(PAGES, fast=FAST_PAGES), ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of a page, in order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(block, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures exist, and absolute ones into this repository."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        here = next(
            (ROOT / target.removeprefix(base) for base in OURS if target.startswith(base)), page.parent / target
        )
        assert here.exists() or (target.startswith("http") and not target.startswith(REPOSITORY)), target


def test_the_readme_is_read_anywhere() -> None:
    """Its links are absolute, since package indexes show it without the repository; all addresses of it are one."""
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://"), target
    assert f"repository-code: {REPOSITORY}\n" in (ROOT / "CITATION.cff").read_text()
    with_urls = (ROOT / "pyproject.toml").read_text().partition("[project.urls]")[2].partition("\n[")[0]
    assert all(REPOSITORY in line for line in with_urls.strip().splitlines())


@pytest.mark.parametrize(("name", "solver"), sg.solvers().fixed.items(), ids=case_id)
def test_every_solver_is_in_the_table_of_orders(name: str, solver: Any) -> None:
    """docs/orders.md lists the registry with the claims the code makes."""
    text = (ROOT / "docs" / "orders.md").read_text()
    row = f"| `{name}` | {solver.nfe_per_step} | {solver.order or '-'} | {solver.weak_order or '-'} |"
    assert row in text, f"run python -m benchmarks.orders: {row}"


# Matplotlib asks tensors for arrays in a way that numpy is about to change.
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("path", some_slow(NOTEBOOKS, fast=FAST_NOTEBOOKS), ids=lambda p: p.stem)
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of a notebook, in order; what they draw is thrown away."""
    plt = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("sklearn")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    cells = json.loads(path.read_text())["cells"]
    namespace: dict[str, object] = {"__name__": path.stem}
    monkeypatch.setitem(sys.modules, path.stem, type(sys)(path.stem))  # where its dataclasses look their module up
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pages_of_notebooks_are_what_was_run(path: Path) -> None:
    """Cells were run from first to last, and the page has their code and what they printed."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    page = "\n".join(line.strip() for line in path.with_suffix(".md").read_text().splitlines())
    for cell in cells:
        printed = [output["text"] for output in cell["outputs"] if output["output_type"] == "stream"]
        for text in (cell["source"], *printed):
            lines = [line.strip() for line in "".join(text).strip().splitlines()]
            assert "\n".join(lines) in page


def test_every_public_name_is_in_the_reference() -> None:
    """docs/api is what tools/api_pages.py writes, and has every name of the face."""
    tool = runpy.run_path(str(ROOT / "tools" / "api_pages.py"))
    assert not tool["missing"]()
    for name, text in tool["pages"]().items():
        assert (ROOT / "docs" / "api" / name).read_text() == text, f"run python tools/api_pages.py: {name}"
