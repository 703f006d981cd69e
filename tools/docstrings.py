"""Public docstrings without an example that runs, or without what they raise.

    python tools/docstrings.py

Public is what the reference has (`tools/api_pages.py`). An example is asked of every class and function but exceptions,
warnings, protocols and typed dictionaries. "Raises:" is asked of each function, each class and each public method that
has a `raise` of its own, checks its arguments (`sgm_sde/_utils/`), or calls a private function of its module that
does. Prints the names, and exits with 1 if there are any.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import runpy
import sys
import textwrap
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import TypeGuard

TOOL = Path(__file__).with_name("api_pages.py")
MADE = ("__init__", "__post_init__", "__new__")  # what runs when a value of a class is made
CHECKS = ("sgm_sde._utils.checks", "sgm_sde._utils.ranges")


def public() -> dict[str, object]:
    """The reference's classes and functions by their full names."""
    texts = runpy.run_path(str(TOOL))["pages"]().values()
    paths = sorted({line[4:] for text in texts for line in text.splitlines() if line.startswith("::: ")})
    return {path: _value(path) for path in paths}


def without_example() -> list[str]:
    """Names whose docstring has nothing that doctest runs."""
    return [path for path, value in public().items() if _shows(value) and ">>>" not in (value.__doc__ or "")]


def without_raises() -> list[str]:
    """Names that raise something and do not say so."""
    return [path for path, doc in _raising() if "Raises:" not in doc]


def _value(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _shows(value: object) -> bool:
    if not inspect.isclass(value):
        return True
    return not (issubclass(value, Exception) or getattr(value, "_is_protocol", False) or typing.is_typeddict(value))


def _raising() -> Iterator[tuple[str, str]]:
    """Names that raise, and their docstrings."""
    for path, value in public().items():
        if isinstance(value, FunctionType):
            if _raises(value):
                yield path, value.__doc__ or ""
        elif inspect.isclass(value) and _shows(value):
            methods = {name: member for name, member in vars(value).items() if isinstance(member, FunctionType)}
            if any(_raises(methods[name]) for name in MADE if name in methods):
                yield path, value.__doc__ or ""
            for name, method in methods.items():
                inherited = any(hasattr(base, name) for base in value.__bases__)
                if not (name.startswith("_") or inherited) and method.__doc__ and _raises(method):
                    yield f"{path}.{name}", method.__doc__


@cache
def _raises(function: FunctionType) -> bool:
    """True if its own text has a raise, or calls a check of arguments or a private function of its module that has."""
    return _raises_in(function, frozenset())


def _raises_in(function: FunctionType, seen: frozenset[object]) -> bool:
    function = inspect.unwrap(function)
    if function.__code__.co_filename == "<string>":  # what dataclasses write
        return False
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" not in ast.unparse(node):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = function.__globals__.get(node.func.id)
            if _is_part(called, function) and called not in seen and _raises_in(called, seen | {called}):
                return True
    return False


def _is_part(called: object, function: FunctionType) -> TypeGuard[FunctionType]:
    """True for a check of arguments, and for a private function of the module."""
    if not isinstance(called, FunctionType):
        return False
    own = called.__module__ == function.__module__ and called.__name__.startswith("_")
    return own or called.__module__ in CHECKS


def main() -> int:
    """Print the names."""
    examples, raises = without_example(), without_raises()
    for path in examples:
        sys.stdout.write(f"no example: {path}\n")
    for path in raises:
        sys.stdout.write(f"no Raises:  {path}\n")
    sys.stdout.write(
        f"{len(public())} public names, {len(examples)} without an example, {len(raises)} without Raises\n"
    )
    return int(bool(examples or raises))


if __name__ == "__main__":
    sys.exit(main())
