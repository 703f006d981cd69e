"""Every public name shows how it is used, and says what it raises."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from sgm_sde import grids
from sgm_sde._utils import checks

TOOL = runpy.run_path(str(Path(__file__).parent.parent / "tools" / "docstrings.py"))


@pytest.mark.parametrize("lacking", ["without_example", "without_raises"])
def test_public_docstrings_are_complete(lacking: str) -> None:
    """An example that doctest runs; "Raises:" wherever arguments are checked."""
    assert TOOL[lacking]() == []


def test_what_is_lacking_is_found() -> None:
    """A raise of a function's own, in a private function that it calls, and in a check of arguments."""
    raises = TOOL["_raises"]
    assert raises(checks.one_of)  # itself
    assert raises(grids.Karras.__post_init__)  # by `number`
    assert raises(grids.GridRule.__call__)
    assert not raises(checks.did_you_mean)
    assert len(TOOL["public"]()) > 250
