"""What `citation` returns: an entry for every method, with the facts that the sources of the code state."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sgm_sde as sg
from sgm_sde.grids import RULES
from sgm_sde.references import AUTHORS_AND_YEAR, IDENTIFIER, Work, cited, works, works_of
from tests.test_fuzz import public

SOLVERS = [*sg.solvers(), "scipy:RK45", "torchdiffeq:dopri5", "torchsde:euler"]
ELSEWHERE = ("testing", "metrics", "nn")  # what nobody's run is made with


def keys(*parts: object) -> list[str]:
    """Keys of the entries."""
    return re.findall(r"^@\w+\{(\w+),$", sg.citation(*parts), re.MULTILINE)


def sources() -> list[str]:
    """References that the code of the methods states, with arXiv numbers."""
    package = Path(sg.__file__).parent
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in ELSEWHERE]
    texts = [re.sub(r"\s+", " ", path.read_text()) for path in files]
    reference = r"[A-Z][^;:()\"]{0,90}?,? \(?\d{4}\)?, arXiv:\d{4}\.\d{4,5}"
    return sorted({found for text in texts for found in re.findall(reference, text)})


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_has_a_reference(name: str) -> None:
    """By its name, and as a value."""
    assert keys(name)
    assert keys(sg.schemes.resolve_any(name)) == keys(name)


@pytest.mark.parametrize(
    "kind", [kind for kind in public(sg.processes).values() if isinstance(kind, type) and issubclass(kind, sg.SDE)]
)
def test_every_process_has_a_reference(kind: type) -> None:
    """In its docstring, or in that of a class it is derived from."""
    assert keys(kind)


@pytest.mark.parametrize("method", [*public(sg.inverse).values(), *public(sg.guidance).values()])
def test_methods_that_state_a_source_have_an_entry_with_a_title(method: type) -> None:
    """Guidance, posteriors and their helpers."""
    if "Source: " in (method.__doc__ or "") and "this library" not in (method.__doc__ or ""):
        assert keys(method)
        assert all("  title = " in work.entry for work in works_of(method)), list(works_of(method))


@pytest.mark.parametrize("source", sources())
def test_entries_agree_with_the_sources(source: str) -> None:
    """First author, and the year of publication or of the preprint; every arXiv number of a method has its entry."""
    (work,) = cited(source)
    number, named = IDENTIFIER.search(source), AUTHORS_AND_YEAR.search(source)
    assert number is not None and named is not None
    assert work.identifier == number[1], "references.bib does not have it"
    assert plain(work.surname) in plain(named[1])
    assert named[2] in (work.year, f"20{number[1][:2]}")


def plain(name: str) -> str:
    """A name without what is written in several ways."""
    return re.sub(r"[^a-z ]", "", name.lower().replace("ä", "a").replace("ü", "u").replace("č", "c"))


def test_entries_are_whole_and_unique() -> None:
    """A title, authors as "Surname, Name", and a year; no work twice; the old ones are found by author and year."""
    found = list(works().values())
    assert len({work.key for work in found}) == len({work.entry for work in found}) == len(found)
    for work in found:
        assert re.search(r"^  title = \{.+\},$", work.entry, re.MULTILINE), work.key
        assert all("," in author or author == "others" for author in work.author.split(" and ")), work.key
        assert re.fullmatch(r"\d{4}", work.year)
        assert work.entry.count("{") == work.entry.count("}")
    assert [work.key for work in cited("Butcher, 2016; Hairer, Norsett & Wanner, 1993, section II.4")] == [
        "butcher2016numerical", "hairer1993solving",
    ]  # fmt: skip


def test_a_work_that_is_not_listed() -> None:
    """What the source says, without a title."""
    (work,) = cited("Doe, Roe & Poe, 2031, arXiv:3101.00001, section 2")
    assert work == Work("doe2031", "Doe and Roe and Poe", "2031", "", work.entry)
    assert work.entry.splitlines() == [
        "@misc{doe2031,", "  author = {Doe and Roe and Poe},", "  year = {2031},", "  eprint = {3101.00001},",
        "  archivePrefix = {arXiv},", "}",
    ]  # fmt: skip
    assert "others" in next(cited("Doe et al., 2031, doi:10.1/x")).author
    assert list(cited("this library; user")) == []


def test_parts_within_parts_count_once() -> None:
    """Wrapped solvers, settings, guided and posterior scores with their process."""
    vp = sg.VPSDE()
    assert keys(sg.Restart(sg.DPMSolverPP(3)), vp) == [
        "xu2023restart", "lu2022dpmpp", "song2021scorebased", "ho2020denoising",
    ]  # fmt: skip
    assert keys(sg.Setting("unipc3", "karras")) == ["zhao2023unipc", "karras2022elucidating"]
    score = sg.oracles.Gaussian(torch.zeros(2), 1.0).score(vp)
    guided = sg.guidance.Auto(score, score, 2.0)
    measurement = sg.inverse.Measurement(sg.inverse.Mask(torch.tensor([True, False])), torch.zeros(2), 0.1)
    of_vp = ["song2021scorebased", "ho2020denoising"]
    assert keys(guided) == keys(guided, vp) == keys([guided, guided]) == ["karras2024guiding", *of_vp]
    assert keys(sg.inverse.PiGDM(score, measurement)) == ["song2023pseudoinverse", *of_vp]
    assert keys("ddim", "log-snr") == ["song2021denoising", "lu2022dpm"]
    assert set(keys(sg.log_prob)) > {"song2021scorebased", "grathwohl2019ffjord"}
    assert keys(*RULES) and keys() == []


class Fresh(sg.SDE):
    """A process of the user's, without a source."""

    T, eps, prior_std = 1.0, 1e-3, 1.0

    def f(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -x

    def g(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(t)


def test_a_process_of_the_user_s_has_the_reference_of_its_base() -> None:
    """Score-based models with SDEs."""
    assert keys(Fresh()) == ["song2021scorebased"]


@pytest.mark.parametrize(("part", "error"), [("dpm++9", ValueError), (3, TypeError), (SimpleNamespace(), TypeError)])
def test_what_can_have_no_source_is_refused(part: object, error: type[Exception]) -> None:
    """Unknown names and things of other kinds."""
    with pytest.raises(error):
        sg.citation("ddim", part)
