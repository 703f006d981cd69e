"""Tests lie where the code lies: tests/<package>/test_<module>.py, beside promises that many modules keep together."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent
APART = {"clients"}  # programs of other people, in an environment of their own
PROMISES = {  # at the top of tests/, of no single module
    "adding_a_solver", "bare", "budgets", "catalogue", "coupled", "damaged_files", "density", "devices", "docs",
    "docstrings",
    "ends_and_grids", "face", "faults", "fuzz", "identity", "independence", "law", "layout", "loops",
    "mutation_tool", "orders", "paper_algorithms", "refusals", "repeats", "values",
}  # fmt: skip
FILES = sorted(path.relative_to(HERE) for path in HERE.rglob("test_*.py") if path.parent.name not in APART)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_test_file_is_named_after_a_module(path: Path) -> None:
    """Or after its package, where the package's modules keep a promise together; or it is a known promise of all."""
    name = path.stem.removeprefix("test_")
    folder, *inner = path.parts[:-1] or (".",)
    home = ROOT / folder if folder == "benchmarks" else ROOT / "sgm_sde" / {"utils": "_utils"}.get(folder, folder)
    module = home.joinpath(*inner, name)
    of_module = module.with_suffix(".py").exists() or (module / "__init__.py").exists()
    of_package = name == path.parent.name
    assert of_module or of_package or (folder == "." and name in PROMISES)


def test_the_promises_are_there() -> None:
    """The list names no file that is gone."""
    assert {path.stem.removeprefix("test_") for path in FILES if len(path.parts) == 1} >= PROMISES


def test_the_files_of_the_package_are_installed_with_it() -> None:
    """Networks, BibTeX and the mark of types are in wheels and in the source distribution."""
    tomllib = pytest.importorskip("tomllib")
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    kept = [f"{package.replace('.', '/')}/{pattern}" for package, some in patterns.items() for pattern in some]
    for path in (ROOT / "sgm_sde").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != ".DS_Store":
            assert any(fnmatch(str(path.relative_to(ROOT)), pattern) for pattern in kept), path
    for package in patterns:
        assert (ROOT / package.replace(".", "/") / "__init__.py").exists()
