"""The pages of the API reference, from the public names of the package.

    python tools/api_pages.py [--check]

Writes docs/api/*.md: a page for each subject, with what its public modules define. `--check` writes nothing and ends
with 1 if a page is not what it would write.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

PAGES = Path(__file__).parent.parent / "docs" / "api"


class Subject(NamedTuple):
    """A page of the reference."""

    page: str
    title: str
    about: str
    modules: tuple[str, ...]


SUBJECTS = [Subject(**entry) for entry in json.loads(Path(__file__).with_suffix(".json").read_text())]


def public(module: ModuleType) -> list[str]:
    """Full names of the documented classes and functions that a module exports, where they are defined."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = []
    for name in names:
        value = getattr(module, name)
        home = getattr(value, "__module__", "") or ""
        defined_here = home == module.__name__ or home.startswith(module.__name__ + ".")
        if (inspect.isclass(value) or inspect.isfunction(value)) and defined_here and value.__doc__:
            found.append(f"{home}.{value.__qualname__}")
    return sorted(set(found), key=lambda path: (path.rsplit(".", 1)[1].lower(), path))


def exported() -> list[str]:
    """The same of the package's own face, wherever it is defined."""
    import sgm_sde

    values = [getattr(sgm_sde, name) for name in sgm_sde.__all__]
    return [f"{v.__module__}.{v.__qualname__}" for v in values if inspect.isclass(v) or inspect.isfunction(v)]


def pages() -> dict[str, str]:
    """Text of each page by its name."""
    texts, contents = {}, []
    for subject in SUBJECTS:
        paths = list(dict.fromkeys(chain(*(public(importlib.import_module(f"sgm_sde.{m}")) for m in subject.modules))))
        entries = "\n\n".join(f"::: {path}" for path in paths)
        texts[f"{subject.page}.md"] = f"# {subject.title}\n\n{subject.about}\n\n{entries}\n"
        about = subject.about[0].lower() + subject.about[1:]
        contents.append(f"- [{subject.title}]({subject.page}.md): {about}")
    texts["index.md"] = (
        "# API reference\n\nEvery public name, with its formula, shapes, units, source and a short example.\n\n"
        + "\n".join(contents)
        + "\n"
    )
    return texts


def missing() -> list[str]:
    """What the package exports at the top and no page has."""
    everything = "\n".join(pages().values()).splitlines()
    return [path for path in exported() if f"::: {path}" not in everything]


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is stale")
    args = parser.parse_args()
    for path in missing():
        print(f"on no page: {path}", file=sys.stderr)
    stale = []
    for name, text in pages().items():
        page = PAGES / name
        if not page.exists() or page.read_text() != text:
            stale.append(name)
            if not args.check:
                PAGES.mkdir(exist_ok=True)
                page.write_text(text)
    print(f"{len(stale)} pages {'stale: ' + ', '.join(stale) if args.check and stale else 'written'}")
    return int(bool(missing() or (args.check and stale)))


if __name__ == "__main__":
    sys.exit(main())
