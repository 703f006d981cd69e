"""The demo and the command line: files, table, errors in the user's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sgm_sde as sg
from sgm_sde.cli import main
from sgm_sde.evaluation import demo
from sgm_sde.nn.digits import load_digits_classifier
from sgm_sde.zoo.shipped import digits_score
from tests.conventions import case_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    demo.run(out, n=120, seed=0, progress=False)
    return out


def test_the_demo_writes_its_files(folder: Path) -> None:
    """Table, figures as JSON and two pictures."""
    assert {path.name for path in folder.iterdir()} == {"table.md", "results.json", "samples.png", "curves.png"}
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    table = (folder / "table.md").read_text()
    for entry in demo.entries():
        assert f"| {entry.name} |" in table
    assert "FID" not in table


def test_the_demo_s_figures(folder: Path) -> None:
    """At least five samplers, one of them a predictor-corrector; budgets kept; more calls help; labels are met."""
    results = json.loads((folder / "results.json").read_text())
    rows = {(row["sampler"], row["budget"]): row for row in results["rows"]}
    names = {name for name, _ in rows}
    assert len(names) >= 5
    assert any(isinstance(entry.solver, sg.PredictorCorrector) for entry in demo.entries())
    assert (results["n"], results["features"]) == (120, "digits-classifier-32")
    for row in rows.values():
        assert 0 < row["nfe"] <= row["budget"]
    for name in names - {"dpm++2m", "dpm++2m, on VP"}:  # which have converged at 5
        assert rows[name, 50]["distance"] < rows[name, 5]["distance"]
    assert rows["dpm++2m", 50]["agreement"] > 0.9
    assert rows["dpm++2m", 10]["distance"] < rows["ddim", 10]["distance"]


def test_the_demo_s_bits(folder: Path) -> None:
    """The network's bound beats the Gaussian by far, with errors that a difference of 0.5 bits/dim dwarfs."""
    bits = json.loads((folder / "results.json").read_text())["bits_per_dim"]
    assert 1.5 < bits["value"] < bits["gaussian"][0] - 0.5
    assert 0 < bits["stderr"] < 0.05
    assert "17 levels" in bits["protocol"]
    assert f"{bits['value']:.3f}" in (folder / "table.md").read_text()


def test_one_network_on_every_process() -> None:
    """The digits network, trained in EDM's coordinates, draws the same digits on VP, VE and rectified flow."""
    labels = torch.arange(10)
    x = {}
    for sde in (sg.EDMSDE(), sg.VPSDE(eps=1e-5), sg.VESDE(0.002, 80.0), sg.RectifiedFlowSDE(T=0.9999, eps=2e-3)):
        score = digits_score(sde)
        res = sg.sample(
            score, sde, (10, 1, 8, 8), solver="dpm++2m", grid="log-snr", nfe=100, seed=0, model_kwargs={"y": labels}
        )
        x[type(sde).__name__] = res.x
        assert (load_digits_classifier()(res.x).argmax(1) == labels).float().mean() >= 0.9
    for name, other in x.items():
        assert (other - x["EDMSDE"]).square().mean().sqrt() < 0.1, name


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`sgm-sde solvers` lists the registry; wrong arguments exit with 2 and the value."""
    assert main(["solvers"]) == 0
    assert "dpm++2m" in capsys.readouterr().out
    for argv, text in ((["demo", "--n", "3"], "n=3"), (["demo", "--out", str(folder / "table.md")], "table.md")):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["sing"], ["demo", "--colour"]], ids=case_id)
def test_what_is_no_command(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
