"""A new solver is one file and its lines in the registry; everything else finds it, or is written anew by a command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sgm_sde as sg
from tests.forks import ROOT

SOLVER = '''"""Adams and Bashforth's method."""

from __future__ import annotations

from dataclasses import dataclass

from sgm_sde._utils.checks import number, settle
from sgm_sde.engine.program import Form, Step
from sgm_sde.schemes.base import Solver


@dataclass(frozen=True)
class Damped(Solver):
    """Adams and Bashforth's method of two nodes, of less extrapolation at the first steps if asked.

    Args:
        ramp: number of steps over which the extrapolation grows to what the order needs.

    Source: Doe & Roe, 2031, arXiv:3101.00001.
    """

    ramp: float = 1.0
    name = "damped"
    order = 2
    prediction = "drift"
    source = "Doe & Roe, 2031, arXiv:3101.00001"

    def __post_init__(self) -> None:
        settle(self, ramp=number("ramp", self.ramp, above=0, most=9))

    def step(self, k: Step) -> Form:
        """The state at the step's end."""
        h = k.end.t - k.start.t
        v = k.evaluate(k.x, k.start)
        if k.i == 0:
            return k.x + h * v
        before, v_before = k.previous(1)
        r = min(k.i / self.ramp, 1.0) * h / (k.start.t - before.t)
        return k.x + h * ((1 + r / 2) * v - r / 2 * v_before)
'''
REGISTERED = (  # in schemes/__init__.py: the import, the name, and the export of the class
    (
        "from sgm_sde.schemes.euler import",
        "from sgm_sde.schemes.damped import Damped\nfrom sgm_sde.schemes.euler import",
    ),
    ('        "pc": lambda:', '        "damped": Damped,\n        "pc": lambda:'),
    ('    "DPMSolver",\n', '    "DPMSolver",\n    "Damped",\n'),
)
# What watches solvers without knowing them: orders, options, identity, registry, tables of the documentation.
WATCHED = (
    "test_orders.py",
    "sampling/test_sampler.py",
    "test_identity.py",
    "schemes/test_base.py",
    "test_docs.py",
    "test_face.py",
    "adapters/test_k_diffusion.py",
)
# The solver in the list, and the commands of `make tables`, in one process, since each takes seconds to begin.
TABLES = """
import runpy, sys
import sgm_sde as sg

print(sg.solvers())
print(sg.from_spec(sg.solvers()["damped"].spec()))
print("Tables")

def command(run, name, *options):
    sys.argv = [name, *options]
    try:
        run(name, run_name="__main__")
    except SystemExit as done:
        assert not done.code, (name, done.code)

command(runpy.run_module, "benchmarks.orders", "--missing", "--check")
command(runpy.run_path, "tools/api_pages.py")
command(runpy.run_module, "tests.golden")
"""
CHOSEN = "damped or Damped or round_trip or every_class or table_of_orders or in_the_reference or no_other_names"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the solver in it: one file more, and one file changed."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("sgm_sde", "tests", "benchmarks", "examples", "tools", "docs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "README.md", folder)
    (folder / "sgm_sde" / "schemes" / "damped.py").write_text(SOLVER)
    registry = folder / "sgm_sde" / "schemes" / "__init__.py"
    text = registry.read_text()
    for old, new in REGISTERED:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    registry.write_text(text)
    return folder


def run(folder: Path, *command: str) -> str:
    """The output of a Python command in the copy, which must succeed."""
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_new_solver_is_two_files(copy: Path) -> None:
    """It is listed by its name, and after the commands of `make tables` all tests that watch solvers accept it."""
    listed, _, _ = run(copy, "-c", TABLES).partition("\nTables")
    assert "\ndamped " in listed
    assert listed.splitlines()[-1] == "Damped(ramp=1.0)"

    row = next(line for line in (copy / "docs" / "orders.md").read_text().splitlines() if "`damped`" in line)
    measured = [float(cell) for cell in row.split("|")[5:-2]]
    assert min(measured) > 1.85
    assert "::: sgm_sde.schemes.damped.Damped" in (copy / "docs" / "api" / "solvers.md").read_text()

    tests = [f"tests/{name}" for name in WATCHED]
    tried = run(copy, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", "-k", CHOSEN, *tests)
    assert " passed" in tried.splitlines()[-1] and "failed" not in tried


def test_a_solver_without_a_paper() -> None:
    """One that nobody has published runs; it has a name, an order, a prediction and a step."""

    class Halves(sg.Solver):
        name, order, prediction = "halves", 1, "drift"

        def step(self, k: Any) -> Any:
            return k.x + (k.end.t - k.start.t) * k.evaluate(k.x, k.start)

    score = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(sg.VPSDE())
    run = sg.sample(score, sg.VPSDE(), (4, 2), solver=Halves(), nfe=5, seed=0)
    assert run.nfe == 5
    assert Halves().source == ""
