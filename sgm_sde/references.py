"""References of what a run used, as BibTeX.

Solvers, processes, scores and functions state their sources where they are defined: in the attribute `source`, or in
the line "Source:" of the docstring. `references.bib` has the works behind them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sgm_sde._utils.checks import described
from sgm_sde.grids import RULES, rule
from sgm_sde.identity import Value
from sgm_sde.schemes import resolve_any
from sgm_sde.scores.score import Score

__all__ = ["Work", "citation", "works"]

WORKS = Path(__file__).with_name("references.bib")
ADDRESS = r"(?:openreview\.net|github\.com)/[\w./?=-]*[\w=-]"
IDENTIFIER = re.compile(rf"arXiv:(\d{{4}}\.\d{{4,5}})|doi:(\S*[\w)])|({ADDRESS})")
SEPARATORS = {" & ": " and ", " et al.": " and others", ", ": " and "}  # of authors, in sources and in BibTeX
AUTHORS_AND_YEAR = re.compile(r"([^\d,;]+(?:, [^\d,;]+)*?),? \(?((?:17|18|19|20)\d\d)\b")


class Work(NamedTuple):
    """A work of the literature.

    Attributes:
        key: its BibTeX key.
        author: its authors as BibTeX has them.
        year: of publication.
        identifier: arXiv number, doi or address, without "https://"; empty for old works.
        entry: its BibTeX entry.

    Examples:
        >>> work = works()["2010.02502"]
        >>> work.surname, work.year
        ('Song', '2021')
    """

    key: str
    author: str
    year: str
    identifier: str
    entry: str

    @property
    def surname(self) -> str:
        """Surname of the first author, without accents' commands."""
        return re.sub(r"\\(?:[a-z](?=\{)|\W)|[{}]", "", self.author.partition(",")[0])


def citation(*parts: object) -> str:
    """BibTeX entries of the works that solvers, processes, scores and functions are from.

    Solvers and grids may be given by their names. What is inside counts as well: the solver and grid of a setting, the
    predictor and corrector, the process of a score, the score that guidance or a posterior wraps.

    Args:
        parts: what a run used: solver, process, score, grid, `log_prob` or any other function here, in any order.

    Returns:
        The entries, each once, in the order of the parts; empty where nothing has a source.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that can have no source, such as a number.

    Examples:
        >>> import sgm_sde as sg
        >>> print(sg.citation("ddim"))
        @inproceedings{song2021denoising,
          title = {Denoising Diffusion Implicit Models},
          author = {Song, Jiaming and Meng, Chenlin and Ermon, Stefano},
          year = {2021},
          booktitle = {International Conference on Learning Representations},
          eprint = {2010.02502},
          archivePrefix = {arXiv},
        }
        >>> pc = sg.PredictorCorrector(sg.ReverseDiffusion(), sg.Langevin())
        >>> sg.citation(pc, sg.CosineVPSDE(), sg.log_prob).count("author = ")  # Song et al. once
        6
    """
    found = {work.key: work for part in parts for work in works_of(part)}
    return "\n\n".join(work.entry for work in found.values())


def works_of(part: object) -> Iterator[Work]:
    """The works that a part of a run, and what is inside of it, are from."""
    if isinstance(part, str):
        part = rule(part) if part in RULES else resolve_any(part)

    if isinstance(part, type):
        yield from _of_class(part)
    elif inspect.isroutine(part):
        yield from _documented(part)
    elif isinstance(part, Sequence | Mapping):
        for inner in part.values() if isinstance(part, Mapping) else part:
            yield from works_of(inner)
    elif isinstance(part, Value | Score):
        yield from _of_value(part)
    else:
        raise TypeError(f"citation is of solvers, processes, scores and functions, got {described(part)}")


def _of_value(part: Value | Score) -> Iterator[Work]:
    """The works of a value's own source, or else of its class, then those of the values inside."""
    source = getattr(part, "source", "")
    own = list(cited(source)) if isinstance(source, str) else []
    yield from own or _of_class(type(part))
    for inner in vars(part).values():
        if isinstance(inner, Value | Score):
            yield from works_of(inner)


def _of_class(kind: type) -> list[Work]:
    """The works of the nearest class in the line of inheritance whose docstring states any."""
    return next((works for works in map(_documented, kind.__mro__) if works), [])


def _documented(thing: object) -> list[Work]:
    """The works in the paragraph "Source:" of a docstring or, where it has none, in its text."""
    if str(getattr(thing, "__module__", "")).partition(".")[0] == "builtins":
        return []
    text = thing.__doc__ or ""
    paragraph = re.search(r"^ *Source:(.*?)(?:\n\s*\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if paragraph is None:
        return [work for number in IDENTIFIER.finditer(text) if (work := works().get(_identifier(number)))]
    return list(cited(paragraph[1]))


def cited(source: str) -> Iterator[Work]:
    """The works that a source such as "Ho et al., 2020, arXiv:2006.11239; Butcher, 2016" names."""
    for text in re.sub(r"\s+", " ", source).split(";"):
        identifier = IDENTIFIER.search(text)
        named = AUTHORS_AND_YEAR.search(text)
        work = works().get(_identifier(identifier)) if identifier else None
        if work is None and named is not None:
            authors, year = named.groups()
            work = None if identifier else _by_author(authors, year)
            work = work or _unlisted(authors.strip(), year, identifier)
        if work is not None:
            yield work


def _by_author(authors: str, year: str) -> Work | None:
    """The first work of a year whose first author is among those named."""
    of_year = (work for work in works().values() if work.year == year)
    return next((work for work in of_year if work.surname in authors), None)


def _identifier(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group)


def _unlisted(authors: str, year: str, identifier: re.Match[str] | None) -> Work:
    """The entry of a work that the list does not have: what the source says of it, without a title."""
    for separator, bibtex in SEPARATORS.items():
        authors = authors.replace(separator, bibtex)
    first = authors.partition(" and ")[0].split()[-1]

    number = doi = address = None
    if identifier:
        number, doi, address = identifier.groups()

    fields = {
        "author": authors,
        "year": year,
        "eprint": number,
        "archivePrefix": number and "arXiv",
        "doi": doi,
        "url": address and f"https://{address}",
    }
    key = f"{first.lower()}{year}"
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    entry = "\n".join([f"@misc{{{key},", *lines, "}"])
    return Work(key, authors, year, "", entry)


@cache
def works() -> Mapping[str, Work]:
    """The works of `references.bib` by arXiv number, doi, address, or key."""
    found = {}
    for entry in re.findall(r"^@.*?^\}$", WORKS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
        key = re.match(r"@\w+\{(\w+),", entry)
        assert key is not None, entry
        identifier = fields.get("eprint") or fields.get("doi") or fields.get("url", "").removeprefix("https://")
        found[identifier or key[1]] = Work(key[1], fields["author"], fields["year"], identifier, entry)
    return found
