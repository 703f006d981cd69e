"""Registry."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

import sgm_sde as sg
from sgm_sde.likelihood import FixedGrid
from sgm_sde.schemes.base import ADAPTIVE, NEAREST, REGISTRY, called, resolve, resolve_any
from sgm_sde.schemes.table import WIDTH, SolverTable
from sgm_sde.testing import OrderMeasurement
from tests import golden


@pytest.mark.parametrize("name", [*REGISTRY, *ADAPTIVE])
def test_the_registry(name: str) -> None:
    """What the names stand for, their orders, cost and grids, as in the table that a person has looked at."""
    assert golden.expected().get(name) == golden.registry(name), "if that is meant: python -m tests.golden"


def test_the_registry_has_no_other_names() -> None:
    """Nothing has left it, and the table prints all of it in its order."""
    table = sg.solvers()
    assert list(golden.expected()) == list(table) == [*REGISTRY, *ADAPTIVE]
    assert list(table.fixed) == list(REGISTRY)
    assert [row[0] for row in table.rows()] == list(table)
    assert len(table) == len(REGISTRY) + len(ADAPTIVE)
    assert repr(table.keys()) == f"dict_keys({list(table)})"
    assert list(table.items()) == list(zip(table.keys(), table.values(), strict=True))


def test_the_registry_as_text() -> None:
    """Columns as wide as their widest cell, under a line; sources that are longer go on below."""
    long = dataclasses.replace(sg.schemes.ExponentialAdams(), source="Someone, 2024, arXiv:2401.00001; " * 2 + "end")
    fixed = {"a": sg.DDIM(), "longer": sg.Heun(s_churn=1.0), "b": long}
    lines = str(SolverTable(fixed, {"c": sg.schemes.GGF()})).splitlines()
    assert lines[0] == "name    order  weak  NFE   grid (VP / EDM)   source"
    assert lines[1].startswith("------  -----  ----  ----  ----------------  ---")
    assert lines[2] == "a       1      -     1     uniform / karras  Song, Meng & Ermon, 2021, arXiv:2010.02502"
    assert lines[3].startswith("longer  2      2     2     karras            Karras")
    assert [line[:2].strip() for line in lines[4:]] == ["b", "", "c"]
    assert lines[5] == " " * 45 + "arXiv:2401.00001; end"
    assert max(map(len, lines)) == len(lines[1]) == WIDTH
    assert max(map(len, str(sg.solvers()).splitlines())) == WIDTH


def test_what_results_print() -> None:
    """What a person wants to see, in a line or a small table."""
    points = torch.eye(3)
    assert repr(sg.oracles.Gaussian(points[0], 1.0)) == "Gaussian(one component of shape (3,))"
    assert repr(sg.oracles.GaussianMixture(points, 0.1)) == "GaussianMixture(3 components of shape (3,))"
    assert repr(sg.oracles.Empirical(points, 0.1)) == "Empirical(3 points of shape (3,), bandwidth 0.1)"
    info = sg.options.StepInfo(1, 4, 0.5, 0.25, points, None, 2)
    assert repr(info) == "StepInfo(step 2 of 4, t=0.5 -> 0.25, x=(3, 3), nfe=2)"

    order = OrderMeasurement((10, 20, 40), (0.04, 0.01, 0.0025))
    assert str(order).splitlines() == [
        " steps     error  order", "    10  4.00e-02", "    20  1.00e-02   2.00", "    40  2.50e-03   2.00",
        "order 2.00",
    ]  # fmt: skip
    noisy = OrderMeasurement((10, 20), (0.04, 0.01), (1e-4, 1e-4))
    assert repr(noisy).splitlines()[1:] == [
        "    10  4.00e-02 +- 1e-04", "    20  1.00e-02 +- 1e-04   2.00", "order 2.00 +- 0.01",
    ]  # fmt: skip

    vp = sg.VPSDE()
    score = sg.oracles.Gaussian(points[0], 1.0).score(vp)
    found = sg.log_prob(score, vp, torch.zeros(6, 3), trace="exact", method=FixedGrid(8))
    text = repr(found)
    assert text.startswith(", ".join([f"{float(found.value[0]):.3f} +- 0"] * 4) + ", ... for 6 samples nats; mean ")
    assert str(found.protocol) in text
    assert text.endswith(f"{found.nfe} network calls)")


def test_the_registry_as_a_mapping() -> None:
    """Names of other libraries lead there, adaptive ones too; others are no keys; a notebook shows all of them."""
    table = sg.solvers()
    assert table["ddim"] == sg.DDIM()
    assert table["dpmpp_2m"] == table["dpm++2m"]
    assert table["dopri5"] == sg.Adaptive(sg.tableaus.DOPRI5)
    assert "ddim" in table and "dopri5" in table and "unipc_3" not in table and 3 not in table
    assert dict(table) == table.fixed | table.adaptive
    with pytest.raises(KeyError):
        table["nothing"]
    shown = table._repr_html_()
    assert shown.count("<tr>") == len(table) + 1
    assert all(f"<td>{name}</td>" in shown for name in table)
    assert "Zhang &amp; Chen" in shown


def test_names_and_solvers_are_resolved() -> None:
    """The class itself is neither."""
    assert resolve("ddim") == sg.DDIM()
    assert resolve(sg.DDIM()) == sg.DDIM()
    with pytest.raises(TypeError, match="the class DDIM: call it"):
        resolve(sg.DDIM)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "nearest", "n"),
    [("dpm++9", "dpm++", 4), ("eulr-xx", "euler", 1), ("unipc33", "unipc3", 4), ("langevin", "annealed-langevin", 1)],
)
def test_unknown_names_are_met_with_near_ones(name: str, nearest: str, n: int) -> None:
    """Four at most, the best first."""
    with pytest.raises(ValueError, match="unknown solver") as error:
        resolve(name)
    shown = re.findall(r"'([^']+)'", str(error.value).split("did you mean")[1])
    assert set(shown) <= set(REGISTRY)
    assert len(shown) == n
    assert shown[0].startswith(nearest)


@pytest.mark.parametrize("name", ["zzzzzz", "lawson", "gradient_estimation", "cosine"])
def test_names_that_are_near_none_are_met_with_none(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^unknown solver '{name}'\. solvers\(\) has all of them$"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dpm_fast", "what comes nearest is 'dpm3' with nfe="),
        ("dpm_adaptive", "what comes nearest is 'exp-rk32'"),
        ("EulerDiscreteScheduler", "what comes nearest is 'ddim', which is Euler's method in the noise level"),
        ("DPMSolverMultistepScheduler", r"what comes nearest is 'dpm\+\+2m'$"),
        ("linear", "'linear' is no solver but a grid, which grid= takes: steps of equal time are 'uniform'"),
        ("euler_cfg_pp", "what comes nearest is 'ddim', with CFG"),
        ("karras", "'karras' is no solver but a grid, which grid= takes$"),
    ],
)
def test_names_of_other_libraries_lead_to_what_there_is_here(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve(name)


@pytest.mark.parametrize("words", NEAREST.values(), ids=list(NEAREST))
def test_what_comes_nearest_is_there(words: str) -> None:
    """Every solver that is named as the nearest to one elsewhere is a name."""
    names = re.findall(r"'([^' ]+)'", words)
    assert names == [name for name in names if resolve_any(name)]
    assert names


@pytest.mark.parametrize(
    ("theirs", "solver", "grid"),
    [
        ("DPM++ 2M Karras", "dpm++2m", "karras"),
        ("DPM++ 2M SDE Karras", "sde-dpm++2m", "karras"),
        ("euler_a_karras", "euler-ancestral", "karras"),
        ("DPM++ 2M Exponential", "dpm++2m", "log-snr"),
    ],
)
def test_names_of_a_solver_with_a_grid_are_taken_apart(theirs: str, solver: str, grid: str) -> None:
    """What is to be written in their place, which is there."""
    with pytest.raises(ValueError, match=re.escape(f"give solver={solver!r}, grid={grid!r}")):
        sg.sample(lambda x, t: -x, sg.VPSDE(), (2, 2), solver=theirs, nfe=4)
    assert sg.sample(lambda x, t: -x, sg.VPSDE(), (2, 2), solver=solver, grid=grid, nfe=4, seed=0).nfe == 4


def test_rk45_is_the_pair_of_that_name() -> None:
    """MATLAB's and SciPy's, Dormand and Prince's."""
    assert resolve_any("RK45") == resolve_any("dopri5")
    assert resolve_any("rk23") == resolve_any("bosh3")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("DDIM", "ddim"),
        ("PC", "pc"),
        ("em", "euler-maruyama"),
        ("dpmsolver++", "dpm++2m"),
        ("DPM-Solver++(2M)", "dpm++2m"),
        ("dpm-solver-3", "dpm3"),
        ("euler_a", "euler-ancestral"),
        ("euler_ancestral", "euler-ancestral"),
        ("Heun", "heun"),
        ("lms", "lms4"),
        ("dpm_2", "dpm2"),
        ("dpm_2_ancestral", "dpm2-ancestral"),
        ("dpmpp_2m", "dpm++2m"),
        ("DPM++2M", "dpm++2m"),
        ("dpmpp_2s_ancestral", "dpm++2s-ancestral"),
        ("dpmpp_sde", "sde-dpm++2s"),
        ("dpmpp_2m_sde", "sde-dpm++2m"),
        ("dpmpp_3m_sde", "sde-dpm++3m"),
        ("ipndm", "ipndm4"),
        ("ipndm_v", "ipndm-v4"),
        ("seeds_2", "seeds2"),
        ("er_sde", "er-sde3"),
        ("sa_solver", "sa-solver"),
    ],
)
def test_names_of_other_libraries(theirs: str, ours: str) -> None:
    """k-diffusion's, ComfyUI's and the papers' spellings are the registry's names."""
    assert resolve(theirs) == resolve(ours) == REGISTRY[ours]()


@pytest.mark.parametrize("name", ["edm-sde", "ddpm", "euler-ancestral", "pc", "heun", "dpm++3m"])
def test_a_solver_is_called_by_the_name_that_people_gave(name: str) -> None:
    """Also where its own is that of the class; another that is in no registry has its own."""
    assert called(sg.schemes.resolve(name)) == name
    assert called(sg.Heun(s_churn=3.0)) == "heun"


@pytest.mark.parametrize(("name", "solver"), [("gddim", r"sg.schemes.GDDIM\(\)"), ("SSCS", r"sg.schemes.SSCS\(\)")])
def test_solvers_of_processes_with_a_matrix_are_no_names(name: str, solver: str) -> None:
    with pytest.raises(ValueError, match=f"{solver} is for a process with a matrix, such as CLD"):
        sg.schemes.resolve(name)


@pytest.mark.parametrize(("nodes", "bounds"), [(9, "between 1 and 3"), (4, "between 1 and 3")])
def test_a_corrector_through_too_many_evaluations_is_refused_in_its_own_words(nodes: int, bounds: str) -> None:
    with pytest.raises(ValueError, match=f"nodes of UniC on .* must lie {bounds}, got {nodes}"):
        sg.schemes.UniC(sg.DEIS(2), nodes=nodes)


def test_the_default_has_no_name() -> None:
    with pytest.raises(
        ValueError, match="solver='default' is no name: the default is what runs where solver= is left out"
    ):
        sg.sample(
            sg.oracles.Gaussian(torch.zeros(2), 0.5).score(sg.VPSDE()), sg.VPSDE(), (2, 2), solver="default", nfe=5
        )
