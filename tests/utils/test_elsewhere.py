"""Arguments by their names elsewhere."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from sgm_sde._utils.elsewhere import Constructed, instead_of, named_elsewhere


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


class Plain(Constructed):
    """An object without options."""


class Sized(Constructed):
    """An object of a size."""

    _elsewhere = instead_of(("n", "count"), "size=")

    def __init__(self, size: int = 1) -> None:
        self.size = size


class Open(Sized):
    """An object that takes any."""

    def __init__(self, **options: int) -> None:
        super().__init__(options.get("n", 1))


def test_constructors_say_what_there_is_instead() -> None:
    """By the name of the class, and what passes options on is left alone."""
    assert (Sized(size=3).size, Sized(3).size, Open(n=3).size, type(Plain())) == (3, 3, 3, Plain)
    with pytest.raises(TypeError, match=r"^Sized\(\) got an unexpected argument 'siz'; did you mean 'size'\?"):
        Sized(siz=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["n", "count"])
def test_constructors_refuse_names_elsewhere(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^Sized\(\) has no argument '{name}': give size=$"):
        Sized(**{name: 3})


def test_what_has_no_constructor_takes_nothing() -> None:
    """As Python has it."""
    with pytest.raises(TypeError, match=r"^Plain\(\) takes no arguments, got 1"):
        Plain(3)
    with pytest.raises(TypeError, match=r"^Plain\(\) got an unexpected argument 'n'"):
        Plain(n=3)


def test_objects_are_copied_and_pickled() -> None:
    """Without going through the constructor."""
    assert copy.copy(Sized(3)).size == pickle.loads(pickle.dumps(Sized(3))).size == 3
