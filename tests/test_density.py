"""Air in the longer functions of the package, as `tools/density.py` measures it."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import ROOT, tool

TOOL = tool("density")


def test_longer_functions_have_air() -> None:
    """At most six nodes of expressions a line in the mean, and every twelfth line blank: `python tools/density.py`."""
    files = sorted((ROOT / "sgm_sde").rglob("*.py"))
    total = TOOL["together"]("total", [body for file in files for body in TOOL["long_bodies"](file)])
    assert total.nodes / total.code <= 6.0
    assert total.blank / total.lines >= 1 / 12


def test_a_dense_function_is_counted(tmp_path: Path) -> None:
    """By hand: fifteen lines x = a + b, of four nodes each (three names and a sum), and no blank line."""
    path = tmp_path / "dense.py"
    path.write_text("def f(a, b):\n" + "    x = a + b\n" * 15)
    (body,) = TOOL["long_bodies"](path)
    assert (body.lines, body.code, body.blank) == (15, 15, 0)
    assert body.nodes == 60
