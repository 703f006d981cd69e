"""Files that are damaged or hostile end in one line, and a program that is accepted runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sgm_sde as sg
from benchmarks.damage import damage, kinds
from sgm_sde.cli import main
from sgm_sde.runs import store
from tests.conventions import case_id

KINDS = (
    "npy", "npz", "npz, compressed", "safetensors", "idx.gz", "png", "jpg", "statistics", "shard", "manifest",
    "results.json", "program", "matrix program",
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Callable[[Path], object]]]]:
    pytest.importorskip("PIL")
    yield kinds(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind: str, files: dict[str, tuple[Path, Callable[[Path], object]]]) -> None:
    """`benchmarks/damage.py` does the same to many more."""
    assert files.keys() == set(KINDS)
    counts, failures = damage(kind, *files[kind], mutants=40, seed=1)
    assert failures == []
    assert counts["refused"] >= 6  # those that nobody writes by accident


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p["stages"][1]["states"][0].__setitem__(0, 0.0), "integers for indices, got 0.0"),
        (lambda p: p["stages"][1]["states"][0].__setitem__(0, True), "integers for indices, got True"),
        (lambda p: p["stages"][1]["states"][0].__setitem__(0, -1), "integers for indices, got -1"),
        (lambda p: p["stages"][1]["states"].append([0, 1.0]), "name an index twice: [0, 0]"),
        (lambda p: p["stages"][1]["noises"][0].__setitem__(0, 10**18), "numbered in the order in which they are drawn"),
        (
            lambda p: p["stages"][1]["states"][0].__setitem__(1, {"rows": []}),
            "rows or more, got rows of []",
        ),
        (
            lambda p: p["stages"][1]["states"][0].__setitem__(1, {"rows": [[1.0]]}),
            "rows or more, got rows of [1]",
        ),
        (lambda p: p["stages"][1]["states"][0].__setitem__(1, "1"), "must be a finite number, got '1'"),
        (lambda p: p["stages"][1].__setitem__("t", None), "time of stage 1 must be a finite number, got None"),
        (lambda p: p["stages"][1].__setitem__("t", -1.0), "time of stage 1 is -1.0, before 0"),
        (lambda p: p["stages"][1].__setitem__("t", 100.0), "must strictly decrease, got 80.0 followed by 100.0"),
        (lambda p: p["stages"][1].__setitem__("evaluate", "no"), "evaluate of stage 1 must be true or false, got 'no'"),
        (lambda p: p["stages"][1].__setitem__("more", 1), "stage 1 has t, states, evals, noises, evaluate, node, got"),
        (lambda p: p.__setitem__("eta", 1e999), "Infinity is no number of JSON"),
        (lambda p: p.__setitem__("eta", "1"), "eta must be a finite number, got '1'"),
        (lambda p: p.__setitem__("sigma_data", -1), "sigma_data above 0, got 0.0 and -1.0"),
        (lambda p: p.__setitem__("prediction", "future"), "unknown prediction 'future'"),
        (lambda p: p.__setitem__("name", 3), "name must be a text, got 3"),
        (lambda p: p.pop("eta"), "a program has name, prediction, stages, eta, sigma_data, got"),
    ],
)
def test_programs_that_do_not_run_are_refused(change: Callable[[Any], object], text: str) -> None:
    """With what is wrong, and where."""
    program = sg.sampling.planning.plan(sg.EDMSDE(), "ancestral", nfe=4)[2]
    assert program is not None
    data = json.loads(program.to_json())
    change(data)
    with pytest.raises(ValueError, match=r"not the JSON of a program: ") as refused:
        sg.Program.from_json(json.dumps(data))
    assert text in str(refused.value)


@pytest.mark.parametrize("sde", [sg.VPSDE(), sg.EDMSDE(), sg.RectifiedFlowSDE(), sg.CLD()], ids=case_id)
@pytest.mark.parametrize("final", ["denoise", "mean"])
@pytest.mark.parametrize("name", sg.solvers().fixed)
def test_every_program_is_accepted(sde: sg.SDE, final: str, name: str) -> None:
    """Of every solver on a process it runs on, with each end."""
    try:
        program = sg.sampling.planning.plan(sde, name, nfe=12, final=final)[2]
    except (TypeError, ValueError):  # not on this process, or not for so few calls
        return
    assert program is not None
    assert sg.Program.from_json(program.to_json()) == program


def test_a_command_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 for data that expand without end, a manifest of another layout, and a name that is none."""
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(3 * 10**8, np.uint8))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "manifest.json").write_bytes(store._pretty({"format": "sgm_sde results 99"}))
    likelihood = ["likelihood", "--model", "digits", "--out", str(tmp_path / "out"), "--data"]
    sample = ["sample", "--model", "digits", "-n", "2", "--nfe", "3", "--quiet", "--out"]
    for argv, text in (
        ([*likelihood, str(tmp_path / "bomb.npz")], "expands to more than"),
        ([*sample, str(tmp_path / "new")], "another version of sgm_sde: its format is 'sgm_sde results 99'"),
        ([*sample, f"{tmp_path}/a\0b"], "NUL character"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.count("\n") == 1
        assert text in error
