"""Arguments by their names elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from sgm_sde._utils.elsewhere import instead_of, named_elsewhere


@named_elsewhere(instead_of(("n", "count"), "size="))
def counted(size: int = 1) -> int:
    """A size."""
    return size


@named_elsewhere({"n": "size="})
def passing(**options: Any) -> list[str]:
    """What is passed on."""
    return list(options)


def test_what_there_is_instead() -> None:
    """By the name of the function; what it has is passed, and its name and words stay."""
    assert (counted(size=3), counted.__name__, counted.__doc__) == (3, "counted", "A size.")
    with pytest.raises(TypeError, match=r"^counted\(\) got an unexpected argument 'siz'; did you mean 'size'\?"):
        counted(siz=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["n", "count"])
def test_names_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^counted\(\) has no argument '{name}': give size=$"):
        counted(**{name: 3})


def test_what_is_passed_on_is_left_to_the_function() -> None:
    """But for names that nobody has."""
    assert passing(other=3) == ["other"]
    with pytest.raises(TypeError, match=r"^passing\(\) has no argument 'n': give size=$"):
        passing(n=3)
